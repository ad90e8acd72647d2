//! Small integers that name things in arrays, given out again only after a while.

use std::{collections::VecDeque, time::Duration};

/// Identifiers from 0 to a capacity.
#[derive(Clone, Debug)]
pub struct Ids {
    capacity: u32,
    next: u32,
    free: Vec<u32>,
    resting: VecDeque<(Duration, u32)>,
}

impl Ids {
    /// All of `0..capacity` free.
    pub const fn new(capacity: u32) -> Self {
        Self { capacity, next: 0, free: Vec::new(), resting: VecDeque::new() }
    }

    /// A free identifier, or `None` where all are used or resting.
    pub fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let id = self.next;
            (id < self.capacity).then(|| {
                self.next += 1;
                id
            })
        })
    }

    /// Lays an identifier to rest.
    pub fn free(&mut self, id: u32, now: Duration) {
        assert!(id < self.next, "identifier {id} was never given out");
        self.resting.push_back((now, id));
    }

    /// Identifiers that were freed at or before `time`; free from now on.
    pub fn release_before(&mut self, time: Duration) -> Vec<u32> {
        let rested = self.resting.iter().take_while(|(freed, _)| *freed <= time).count();
        let released: Vec<u32> = self.resting.drain(..rested).map(|(_, id)| id).collect();
        self.free.extend(&released);
        released
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_identifier_rests_before_it_is_given_out_again() {
        let mut ids = Ids::new(2);
        assert_eq!((ids.take(), ids.take(), ids.take()), (Some(0), Some(1), None));
        ids.free(0, Duration::from_secs(5));
        assert_eq!(ids.take(), None);
        assert!(ids.release_before(Duration::from_secs(4)).is_empty());
        assert_eq!(ids.release_before(Duration::from_secs(5)), [0]);
        assert_eq!((ids.take(), ids.take()), (Some(0), None));
    }
}
