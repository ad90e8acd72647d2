//! Records of the flow cache that are past their time go. Programs only ever write one over another, so without this
//! the cache would name clients of last year, and its fill would say nothing.

use std::time::Duration;

use lb_common::flow::Key;

use super::Engine;

/// Buckets that one tick looks at: 8 MiB, read in a few milliseconds. The default capacity takes one tick, the largest
/// 256.
const BUCKETS_MAX: usize = 65_536;
/// A UDP client that neither asks nor is answered for so long is answered as the pod's own business.
const UDP_IDLE: Duration = Duration::from_secs(600);
/// A shortcut: the next segment asks again.
const TCP_IDLE: Duration = Duration::from_secs(600);

/// Goes round the flow cache, a part of it in each tick.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    /// The next bucket.
    next: usize,
}

impl Engine {
    /// Takes the next part of the flow cache's old records out.
    pub(super) fn sweep_flows(&mut self) {
        let clock = &self.clock;
        let is_over = |key: &Key, since: u32| clock.age(since) > idle_limit(key);
        self.sweeper.next =
            self.tables.sweep_flows(self.sweeper.next, BUCKETS_MAX, |key, _, since| is_over(key, since));
    }
}

/// How long a record stays unused.
const fn idle_limit(key: &Key) -> Duration {
    if key.is_tcp() { TCP_IDLE } else { UDP_IDLE }
}
