//! Whether the engine has fallen silent, as the threads of virtual routers and of BGP find out.

use std::time::Duration;

/// Longest silence of the engine: ten of its ticks, of which a plan of everything takes two.
pub const HEARTBEAT_MAX: Duration = Duration::from_secs(10);
/// How often a thread looks at what it is not told of, where it has anything to do: the engine's beats among it.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// From one turn of the thread to the next, where it has anything to do: several times as long as it waits, which is no longer
/// than [`LOOK_INTERVAL`].
const TURN_MAX: Duration = LOOK_INTERVAL.saturating_mul(4);

/// How a thread misses an engine that hangs. Times are of any clock that goes on while the machine sleeps.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    /// The last turn of the thread.
    turned: Duration,
    /// When it went on after it had stood still.
    woke: Duration,
    /// The last beat before the engine was given up.
    given_up: Option<Duration>,
}

impl Silence {
    /// Of a thread that begins.
    #[must_use]
    pub const fn new(now: Duration) -> Self {
        Self { turned: now, woke: now, given_up: None }
    }

    /// A turn of the thread: whether nothing was heard of the engine for longer than [`HEARTBEAT_MAX`]. `heard` is its last
    /// beat, None where it has not begun to beat.
    ///
    /// Whoever stood still cannot say that of another, and counts anew. Only a beat ends a silence that was said.
    pub fn turn(&mut self, heard: Option<Duration>, now: Duration) -> bool {
        if now.saturating_sub(self.turned) > TURN_MAX {
            self.woke = now;
        }
        self.turned = now;
        let Some(heard) = heard else { return false };
        let is_missed = now.saturating_sub(heard.max(self.woke)) > HEARTBEAT_MAX;
        let is_silent = is_missed || self.given_up == Some(heard);
        self.given_up = is_silent.then_some(heard);
        is_silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: Duration = Duration::from_secs(1000);
    const TICK: Duration = Duration::from_millis(1);

    /// Turns of a thread that stands still nowhere, until then.
    fn check(silence: &mut Silence, heard: Option<Duration>, until: Duration, expected: bool) {
        let mut now = silence.turned;
        while now < until {
            now = until.min(now + LOOK_INTERVAL);
            assert_eq!(silence.turn(heard, now), expected, "heard {heard:?}, at {now:?}");
        }
    }

    #[test]
    fn an_engine_that_never_beat_is_not_missed() {
        let mut silence = Silence::new(BEGIN);
        check(&mut silence, None, BEGIN + HEARTBEAT_MAX * 10, false);
        // Its first beat is long after the thread's beginning.
        let heard = silence.turned + TICK;
        check(&mut silence, Some(heard), heard + HEARTBEAT_MAX, false);
    }

    #[test]
    fn an_engine_that_beats_is_not_missed() {
        let mut silence = Silence::new(BEGIN);
        for beats in 0..10 {
            let heard = BEGIN + HEARTBEAT_MAX * beats;
            check(&mut silence, Some(heard), heard + HEARTBEAT_MAX, false);
        }
    }

    #[test]
    fn an_engine_is_silent_after_the_time_and_not_before() {
        let mut silence = Silence::new(BEGIN);
        check(&mut silence, Some(BEGIN), BEGIN + HEARTBEAT_MAX, false);
        check(&mut silence, Some(BEGIN), BEGIN + HEARTBEAT_MAX + TICK, true);
        check(&mut silence, Some(BEGIN), BEGIN + HEARTBEAT_MAX * 10, true);
    }

    #[test]
    fn a_beat_ends_the_silence_and_the_next_one_takes_as_long() {
        let mut silence = Silence::new(BEGIN);
        check(&mut silence, Some(BEGIN), BEGIN + HEARTBEAT_MAX, false);
        check(&mut silence, Some(BEGIN), BEGIN + HEARTBEAT_MAX * 2, true);
        let heard = silence.turned;
        check(&mut silence, Some(heard), heard + HEARTBEAT_MAX, false);
        check(&mut silence, Some(heard), heard + HEARTBEAT_MAX + TICK, true);
    }

    #[test]
    fn a_thread_that_stood_still_counts_anew() {
        let mut silence = Silence::new(BEGIN);
        check(&mut silence, Some(BEGIN), BEGIN + HEARTBEAT_MAX / 2, false);
        // The whole machine was paused.
        let woke = BEGIN + HEARTBEAT_MAX * 100;
        assert!(!silence.turn(Some(BEGIN), woke));
        check(&mut silence, Some(BEGIN), woke + HEARTBEAT_MAX, false);
        check(&mut silence, Some(BEGIN), woke + HEARTBEAT_MAX + TICK, true);
    }

    #[test]
    fn a_thread_that_is_merely_late_does_not_count_anew() {
        let mut silence = Silence::new(BEGIN);
        for turns in 1..4 {
            assert_eq!(silence.turn(Some(BEGIN), BEGIN + TURN_MAX * turns), TURN_MAX * turns > HEARTBEAT_MAX);
        }
    }

    #[test]
    fn a_thread_that_stood_still_during_a_silence_takes_no_beat_from_that() {
        let mut silence = Silence::new(BEGIN);
        check(&mut silence, Some(BEGIN), BEGIN + HEARTBEAT_MAX, false);
        check(&mut silence, Some(BEGIN), BEGIN + HEARTBEAT_MAX + TICK, true);
        let woke = BEGIN + HEARTBEAT_MAX * 100;
        assert!(silence.turn(Some(BEGIN), woke));
        assert!(!silence.turn(Some(woke), woke + TICK));
    }
}
