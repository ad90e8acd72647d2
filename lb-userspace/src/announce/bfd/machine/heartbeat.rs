//! Whether the agent behind the thread lives: a hung agent must not look alive to its neighbours.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde::Serialize;

/// When the engine and the data plane were last known to be well, by the boot clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pulse {
    /// The engine has said so itself.
    pub engine: Duration,
    /// The engine has said so of the data plane.
    pub data_plane: Duration,
}

impl Pulse {
    /// Both were well at that time.
    #[must_use]
    pub const fn at(time: Duration) -> Self {
        Self { engine: time, data_plane: time }
    }

    /// Neither has been gone for longer than `limit`.
    #[must_use]
    pub fn is_within(&self, limit: Duration, now: Duration) -> bool {
        now.saturating_sub(self.engine) <= limit && now.saturating_sub(self.data_plane) <= limit
    }
}

/// A [`Pulse`] that the engine writes and the thread reads, without a lock. Nanoseconds of the boot clock.
///
/// Begins with neither: nothing is sent before the first beat.
#[derive(Debug, Default)]
pub struct Heartbeat {
    engine: AtomicU64,
    data_plane: AtomicU64,
}

impl Heartbeat {
    /// The engine lives, and says whether the data plane is there. `now` is the boot clock's time.
    ///
    /// To be called several times in the shortest detection time of any session.
    pub fn beat(&self, now: Duration, is_data_plane_there: bool) {
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        if is_data_plane_there {
            self.data_plane.store(nanos, Ordering::Relaxed);
        } else {
            // What was said ahead of a piece of work does not hold any more.
            self.data_plane.fetch_min(nanos, Ordering::Relaxed);
        }
        self.engine.store(nanos, Ordering::Relaxed);
    }

    /// As it stands.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        Pulse {
            engine: Duration::from_nanos(self.engine.load(Ordering::Relaxed)),
            data_plane: Duration::from_nanos(self.data_plane.load(Ordering::Relaxed)),
        }
    }
}
