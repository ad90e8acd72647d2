//! What is set for a session, and the small generator behind its jitter.

use std::time::Duration;

use serde::Serialize;

use crate::announce::bfd::packet::DetectMult;

/// Least interval that may be configured: below it a thread of a general kernel cannot keep the promise.
pub const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Greatest interval that may be configured: slower than any routing protocol's own keep-alive, so of no use.
pub const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Least interval in any state but Up (RFC 5880 6.8.3).
pub const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// Why settings are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The transmit interval is out of range.
    #[error("transmit interval {0:?} is outside of 10 ms to 60 s: choose one in between")]
    Transmit(Duration),
    /// The receive interval is out of range.
    #[error("receive interval {0:?} is outside of 10 ms to 60 s: choose one in between")]
    Receive(Duration),
    /// The multiplier is zero.
    #[error("detection multiplier 0 lets every session fail at once: choose 1 to 255")]
    Multiplier,
}

/// What is set for a session. May be changed while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    desired_min_tx: Duration,
    required_min_rx: Duration,
    detect_mult: DetectMult,
}

impl Settings {
    /// Intervals from [`INTERVAL_MIN`] to [`INTERVAL_MAX`], cut to whole microseconds; a multiplier of at least 1.
    pub fn new(desired_min_tx: Duration, required_min_rx: Duration, detect_mult: u8) -> Result<Self, SettingsError> {
        let range = INTERVAL_MIN..=INTERVAL_MAX;
        if !range.contains(&desired_min_tx) {
            return Err(SettingsError::Transmit(desired_min_tx));
        }
        if !range.contains(&required_min_rx) {
            return Err(SettingsError::Receive(required_min_rx));
        }
        //= rfc5880#6.8.1:detect-mult-nonzero MUST: the own multiplier is never zero
        let detect_mult = DetectMult::new(detect_mult).ok_or(SettingsError::Multiplier)?;
        Ok(Self {
            desired_min_tx: whole_micros(desired_min_tx),
            required_min_rx: whole_micros(required_min_rx),
            detect_mult,
        })
    }

    /// So often the session sends once it is up, if the other end can take it.
    #[must_use]
    pub const fn desired_min_tx(&self) -> Duration {
        self.desired_min_tx
    }

    /// So often the session receives.
    #[must_use]
    pub const fn required_min_rx(&self) -> Duration {
        self.required_min_rx
    }

    /// So many packets in a row may be lost.
    #[must_use]
    pub const fn detect_mult(&self) -> DetectMult {
        self.detect_mult
    }
}

fn whole_micros(time: Duration) -> Duration {
    Duration::new(time.as_secs(), time.subsec_micros() * 1000)
}

/// A small generator: splitmix64. Not for secrets; discriminators only have to be hard to guess from outside.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A part of `whole`, from `least` to `most` hundredths of it.
    pub fn part(&mut self, whole: Duration, least: u32, most: u32) -> Duration {
        let steps = u64::from(most - least) << 32;
        let hundredths = (u64::from(least) << 32) + ((u128::from(self.next()) * u128::from(steps)) >> 64) as u64;
        let nanos = (whole.as_nanos() * u128::from(hundredths) / 100) >> 32;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}
