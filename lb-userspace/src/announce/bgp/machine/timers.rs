//! Timers as named entries, and a little randomness.

use std::{collections::BTreeMap, time::Duration};

use super::ConnectionId;

/// All timers of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Until the next dial (RFC 4271, 8: ConnectRetryTimer, with back-off).
    ConnectRetry,
    /// A dial takes too long.
    Dial(ConnectionId),
    /// No OPEN comes (RFC 4271, 8.2.2: the hold timer's large value).
    Open(ConnectionId),
    /// The peer is silent.
    Hold(ConnectionId),
    /// Our turn to say something.
    Keepalive(ConnectionId),
    /// The peer takes nothing (RFC 9687).
    SendHold(ConnectionId),
    /// End-of-RIB is sent whatever is missing.
    EndOfRib(ConnectionId),
    /// The peer has been silent on BFD for long enough.
    BfdSilence,
}

/// A few entries: at most eight for two connections.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeMap<Timer, Duration>);

impl Timers {
    pub(super) fn set(&mut self, timer: Timer, at: Duration) {
        self.0.insert(timer, at);
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        self.0.remove(&timer);
    }

    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.0.contains_key(&timer)
    }

    pub(super) fn at(&self, timer: Timer) -> Option<Duration> {
        self.0.get(&timer).copied()
    }

    pub(super) fn clear_connection(&mut self, id: ConnectionId) {
        for timer in [Timer::Dial, Timer::Open, Timer::Hold, Timer::Keepalive, Timer::SendHold, Timer::EndOfRib] {
            self.0.remove(&timer(id));
        }
    }

    pub(super) fn next(&self) -> Option<Duration> {
        self.0.values().min().copied()
    }

    /// The earliest that is due, taken out.
    pub(super) fn pop(&mut self, now: Duration) -> Option<Timer> {
        let due = self.0.iter().filter(|(_, at)| **at <= now).min_by_key(|(_, at)| **at).map(|(timer, _)| *timer)?;
        self.0.remove(&due);
        Some(due)
    }
}

/// Splitmix64 (Steele, Lea, Flood 2014): spreads retries, keeps no secret.
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Between three quarters and all of it.
    pub(super) fn jittered(&mut self, time: Duration) -> Duration {
        //= rfc4271#10:jitter SHOULD: timers are shortened by up to a quarter, at random
        let percent = 75 + u32::try_from(self.next() % 26).unwrap_or(0);
        time * percent / 100
    }
}
