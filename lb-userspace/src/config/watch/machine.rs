//! When to read a file that is changing: pure.

use std::time::{Duration, Instant};

/// After the last sign of a change that leaves nothing half-written: several such come together, as when files are put
/// into a directory and one of them after the other is swapped.
pub const QUIET: Duration = Duration::from_millis(5);
/// The same is not put off longer than this, however many come.
pub const DELAY_MAX: Duration = Duration::from_millis(50);
/// How long a writer may pause before the file is taken as it is, although he has not closed it.
pub const WRITER_SILENCE_MAX: Duration = Duration::from_secs(1);
/// How long he may write in all.
pub const WRITER_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a file that only its version tells of, because the file system tells nothing, must stay as it is.
pub const UNTOLD_QUIET: Duration = Duration::from_millis(900);
/// From one reading to the next, where the first found no file or one that changed.
pub const RETRY: Duration = Duration::from_millis(10);
/// How long that is tried before it is told.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// What is heard of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Another file is there, or none.
    Replaced,
    /// Somebody writes into it.
    Writing,
    /// Who wrote has closed it.
    Written,
    /// It has another version than the one that was read, and nothing else tells of it.
    Seen,
    /// Somebody wants it to be read now, whatever state it is in.
    Asked,
}

/// How a reading went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What was read is one version of the file, or the file cannot be read.
    Whole,
    /// It changed meanwhile.
    Changing,
    /// It was not there.
    Missing,
}

/// Waits until the file is at rest. Due times are the earliest moment; later does no harm.
#[derive(Clone, Debug, Default)]
pub struct Settling {
    /// The first sign since the last reading.
    first: Option<Instant>,
    due: Option<Instant>,
    is_being_written: bool,
    /// The first reading of a row of those that were not whole.
    unsettled: Option<Instant>,
}

impl Settling {
    /// Takes up a sign.
    pub fn hear(&mut self, sign: Sign, now: Instant) {
        let first = *self.first.get_or_insert(now);
        match sign {
            Sign::Writing => self.is_being_written = true,
            Sign::Replaced | Sign::Written => self.is_being_written = false,
            // What else tells of it knows better when it is whole.
            Sign::Seen if self.due.is_some() => return,
            Sign::Seen => {}
            Sign::Asked => {
                self.due = Some(now);
                return;
            }
        }
        self.due = Some(match sign {
            _ if self.is_being_written => (now + WRITER_SILENCE_MAX).min(first + WRITER_TIME_MAX),
            Sign::Seen => now + UNTOLD_QUIET,
            _ => (now + QUIET).min(first + DELAY_MAX).max(now),
        });
    }

    /// When to read, if there is anything to.
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Whether to read now. If so, the reading begins here: what is heard from now on calls for another.
    pub fn begins(&mut self, now: Instant) -> bool {
        let begins = self.due.is_some_and(|due| due <= now);
        if begins {
            (self.first, self.due, self.is_being_written) = (None, None, false);
        }
        begins
    }

    /// Takes up how the reading went. True where what it found counts; else there will be another.
    pub fn ends(&mut self, outcome: Outcome, now: Instant) -> bool {
        let since = *self.unsettled.get_or_insert(now);
        if outcome == Outcome::Whole || now.saturating_duration_since(since) >= PATIENCE {
            self.unsettled = None;
            return true;
        }
        self.first.get_or_insert(now);
        self.due.get_or_insert(now + RETRY);
        false
    }
}
