//! The timers of a virtual router, by name.

use std::time::Duration;

/// What may become due. Of those due together the first named is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// Listening, backup: shows that time has not passed unseen.
    Watch,
    /// Active: what was advertised holds no longer.
    Validity,
    /// Leaving: no successor has been heard.
    Leave,
    /// Listening: has listened long enough.
    Listen,
    /// Backup: `Active_Down_Timer`.
    ActiveDown,
    /// Backup: the lower active has had its delay.
    Preempt,
    /// Active and leaving: `Adver_Timer`.
    Advertise,
    /// Active: the next round of gratuitous announcements.
    Gratuitous,
}

const ALL: [Timer; 8] = [
    Timer::Watch,
    Timer::Validity,
    Timer::Leave,
    Timer::Listen,
    Timer::ActiveDown,
    Timer::Preempt,
    Timer::Advertise,
    Timer::Gratuitous,
];

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timers([Option<Duration>; ALL.len()]);

impl Timers {
    pub(super) fn set(&mut self, timer: Timer, at: Duration) {
        self.0[timer as usize] = Some(at);
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    pub(super) fn clear_all(&mut self) {
        *self = Self::default();
    }

    pub(super) const fn get(&self, timer: Timer) -> Option<Duration> {
        self.0[timer as usize]
    }

    pub(super) fn next(&self) -> Option<Duration> {
        self.0.iter().flatten().min().copied()
    }

    /// Takes the earliest that is due.
    pub(super) fn take_due(&mut self, now: Duration) -> Option<(Duration, Timer)> {
        let due = ALL.into_iter().filter_map(|timer| Some((self.get(timer)?, timer)));
        let (at, timer) = due.filter(|(at, _)| *at <= now).min_by_key(|(at, _)| *at)?;
        self.clear(timer);
        Some((at, timer))
    }
}
