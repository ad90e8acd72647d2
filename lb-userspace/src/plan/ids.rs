//! Small integers that name things in arrays, given out again only after a while.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

/// Identifiers from 0 to a capacity.
#[derive(Clone, Debug)]
pub struct Ids {
    capacity: u32,
    next: u32,
    /// Whether those from `next` on were never given out by anybody.
    is_pristine: bool,
    free: Vec<u32>,
    resting: VecDeque<(Duration, u32)>,
}

impl Ids {
    /// All of `0..capacity` free.
    pub const fn new(capacity: u32) -> Self {
        Self { capacity, next: 0, is_pristine: true, free: Vec::new(), resting: VecDeque::new() }
    }

    /// These in use, all others free at once.
    ///
    /// # Panics
    /// Where one is beyond the capacity.
    pub fn in_use(capacity: u32, used: &BTreeSet<u32>) -> Self {
        let next = used.last().map_or(0, |last| last + 1);
        assert!(next <= capacity, "identifier {} of {capacity}", next - 1);
        // The lowest is taken first.
        let free = (0..next).rev().filter(|id| !used.contains(id)).collect();
        Self { capacity, next, is_pristine: false, free, resting: VecDeque::new() }
    }

    /// The same of another capacity.
    ///
    /// # Errors
    /// The highest identifier that is used or rests, where it is beyond that.
    pub fn resized(&self, capacity: u32) -> Result<Self, u32> {
        let free: BTreeSet<u32> = self.free.iter().copied().collect();
        if let Some(highest) = (0..self.next).rev().find(|id| !free.contains(id)).filter(|id| *id >= capacity) {
            return Err(highest);
        }
        let mut resized = Self { capacity, next: self.next.min(capacity), ..self.clone() };
        resized.free.retain(|id| *id < capacity);
        Ok(resized)
    }

    /// A free identifier, or `None` where all are used or resting.
    pub fn take(&mut self) -> Option<u32> {
        self.take_noted().map(|(id, _)| id)
    }

    /// The same, and whether something else may have had it before.
    pub fn take_noted(&mut self) -> Option<(u32, bool)> {
        if let Some(id) = self.free.pop() {
            return Some((id, true));
        }
        let id = self.next;
        (id < self.capacity).then(|| {
            self.next += 1;
            (id, !self.is_pristine)
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

    #[test]
    fn only_what_nobody_can_have_had_is_called_new() {
        let mut ids = Ids::new(2);
        assert_eq!(ids.take_noted(), Some((0, false)));
        ids.free(0, Duration::ZERO);
        ids.release_before(Duration::ZERO);
        assert_eq!((ids.take_noted(), ids.take_noted()), (Some((0, true)), Some((1, false))));
        let mut read_back = Ids::in_use(2, &BTreeSet::from([0]));
        assert_eq!(read_back.take_noted(), Some((1, true)), "an earlier agent may have given it out");
    }

    #[test]
    fn identifiers_that_were_read_back_are_not_given_out() {
        let mut ids = Ids::in_use(5, &BTreeSet::from([1, 3]));
        let taken: Vec<u32> = std::iter::from_fn(|| ids.take()).collect();
        assert_eq!(taken, [0, 2, 4]);
    }

    #[test]
    fn a_smaller_capacity_takes_what_is_in_use_or_rests_or_says_what_does_not_fit() {
        let mut ids = Ids::in_use(8, &BTreeSet::from([0, 2, 5]));
        assert_eq!(ids.resized(5).unwrap_err(), 5);
        ids.free(5, Duration::ZERO);
        assert_eq!(ids.resized(5).unwrap_err(), 5, "records may name it");
        ids.release_before(Duration::ZERO);
        let mut smaller = ids.resized(5).unwrap();
        let taken: BTreeSet<u32> = std::iter::from_fn(|| smaller.take()).collect();
        assert_eq!(taken, BTreeSet::from([1, 3, 4]));
        let mut larger = ids.resized(9).unwrap();
        let taken: BTreeSet<u32> = std::iter::from_fn(|| larger.take()).collect();
        assert_eq!(taken, BTreeSet::from([1, 3, 4, 5, 6, 7, 8]));
    }
}
