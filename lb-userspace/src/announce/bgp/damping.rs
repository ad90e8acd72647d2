//! Flaps of a VIP: it is withdrawn at once, and announced again only once it has been eligible for a while.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// How long a VIP is eligible before it is announced again.
pub const WAIT_MIN: Duration = Duration::from_secs(1);
/// The longest such wait.
pub const WAIT_MAX: Duration = Duration::from_secs(60);
/// Flaps that count: those of the last five minutes.
pub const WINDOW: Duration = Duration::from_secs(300);
/// Flaps that are remembered: one more would not make the wait longer.
const FLAPS_MAX: usize = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not eligible.
    Out,
    /// Eligible, and not announced before then.
    Waiting(Duration),
    /// Announced.
    In,
}

#[derive(Debug)]
struct Entry {
    phase: Phase,
    /// When it was lost while it was announced.
    flaps: VecDeque<Duration>,
}

impl Entry {
    /// A second, doubled by each flap but the first; the first one makes it a second at all.
    fn wait(&mut self, now: Duration) -> Duration {
        while self.flaps.front().is_some_and(|at| *at + WINDOW <= now) {
            self.flaps.pop_front();
        }
        match u32::try_from(self.flaps.len()).unwrap_or(u32::MAX) {
            0 => Duration::ZERO,
            flaps => WAIT_MIN.saturating_mul(1_u32.checked_shl(flaps - 1).unwrap_or(u32::MAX)).min(WAIT_MAX),
        }
    }
}

/// Damping of a set of things that can be eligible or not, by name. One that has never been announced does not wait.
#[derive(Debug, Default)]
pub struct Damping<T> {
    entries: BTreeMap<T, Entry>,
}

impl<T: Ord + Clone> Damping<T> {
    /// Without any.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: BTreeMap::new() }
    }

    /// From here on these are eligible and no others. What is gone for longer than flaps count is forgotten.
    pub fn set_eligible(&mut self, eligible: &BTreeSet<T>, now: Duration) {
        self.handle_timeout(now);
        for name in eligible {
            let entry = self.entries.entry(name.clone()).or_insert(Entry { phase: Phase::Out, flaps: VecDeque::new() });
            match entry.phase {
                Phase::Out => {
                    let wait = entry.wait(now);
                    entry.phase = if wait.is_zero() { Phase::In } else { Phase::Waiting(now + wait) };
                }
                Phase::Waiting(_) | Phase::In => {}
            }
        }
        self.entries.retain(|name, entry| {
            if eligible.contains(name) {
                return true;
            }
            match entry.phase {
                Phase::In => {
                    if entry.flaps.len() == FLAPS_MAX {
                        entry.flaps.pop_front();
                    }
                    entry.flaps.push_back(now);
                }
                Phase::Out | Phase::Waiting(_) => {}
            }
            entry.phase = Phase::Out;
            entry.flaps.back().is_some_and(|at| now < *at + WINDOW)
        });
    }

    /// Those whose wait is over are in.
    pub fn handle_timeout(&mut self, now: Duration) {
        for entry in self.entries.values_mut() {
            match entry.phase {
                Phase::Waiting(until) if until <= now => entry.phase = Phase::In,
                Phase::Waiting(_) | Phase::Out | Phase::In => {}
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let waits = self.entries.values().filter_map(|entry| match entry.phase {
            Phase::Waiting(until) => Some(until),
            Phase::Out | Phase::In => None,
        });
        waits.min()
    }

    /// Whether it may be announced.
    pub fn is_in(&self, name: &T) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.phase == Phase::In)
    }

    /// Until when it is held down, where that is why it is not announced.
    pub fn held_until(&self, name: &T) -> Option<Duration> {
        match self.entries.get(name)?.phase {
            Phase::Waiting(until) => Some(until),
            Phase::Out | Phase::In => None,
        }
    }
}
