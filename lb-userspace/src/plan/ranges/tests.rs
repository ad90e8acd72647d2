use proptest::{prelude::*, test_runner::RngAlgorithm};

use super::*;

/// What an element is, one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    Free,
    Used,
    Resting(Epoch),
}

/// The allocator beside a list of its elements.
struct Pair {
    ranges: Ranges,
    elements: Vec<Element>,
    used: Vec<Range>,
    now: Epoch,
}

#[derive(Clone, Debug)]
enum Operation {
    Allocate(u32),
    Reserve(Range),
    /// Of the ranges in use, by position.
    Free(usize),
    Advance,
    /// Everything freed so many epochs ago.
    Release(u64),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => (1_u32..40).prop_map(Operation::Allocate),
        1 => (1_u32..600).prop_map(Operation::Allocate),
        1 => (0_u32..9, 0_u32..400).prop_map(|(log, n)| Operation::Reserve(Range { offset: n, len: 1 << log })),
        1 => (0_u32..9, 0_u32..400).prop_map(|(log, n)| {
            Operation::Reserve(Range { offset: n >> log << log, len: 1 << log })
        }),
        4 => any::<usize>().prop_map(Operation::Free),
        2 => Just(Operation::Advance),
        2 => (0_u64..3).prop_map(Operation::Release),
    ]
}

impl Pair {
    fn new(capacity: u32) -> Self {
        let elements = vec![Element::Free; capacity as usize];
        Self { ranges: Ranges::new(capacity), elements, used: Vec::new(), now: Epoch(0) }
    }

    fn part(&mut self, range: Range) -> &mut [Element] {
        &mut self.elements[range.offset as usize..(range.offset + range.len) as usize]
    }

    fn is_free(&self, range: Range) -> bool {
        let end = range.offset as usize + range.len as usize;
        self.elements.get(range.offset as usize..end).is_some_and(|part| part.iter().all(|&e| e == Element::Free))
    }

    /// Whether some aligned place of `len` is free: then the allocator must find one.
    fn has_room(&self, len: u32) -> bool {
        (0..self.ranges.capacity()).step_by(len as usize).any(|offset| self.is_free(Range { offset, len }))
    }

    fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Allocate(len) => {
                let rounded = len.next_power_of_two();
                let room = self.has_room(rounded);
                match self.ranges.allocate(len) {
                    Some(range) => {
                        assert_eq!((range.len, range.offset % range.len), (rounded, 0));
                        assert!(self.is_free(range), "{range} was not free");
                        self.part(range).fill(Element::Used);
                        self.used.push(range);
                    }
                    None => assert!(!room, "there is room for {len}"),
                }
            }
            Operation::Reserve(range) => {
                let fits = range.offset % range.len == 0 && self.is_free(range);
                assert_eq!(self.ranges.reserve(range).is_ok(), fits, "reserve {range}");
                if fits {
                    self.part(range).fill(Element::Used);
                    self.used.push(range);
                }
            }
            Operation::Free(_) if self.used.is_empty() => {}
            Operation::Free(position) => {
                let range = self.used.swap_remove(position % self.used.len());
                let now = self.now;
                self.ranges.free(range, now);
                self.part(range).fill(Element::Resting(now));
            }
            Operation::Advance => self.now.0 += 1,
            Operation::Release(ago) => self.release_before(Epoch(self.now.0.saturating_sub(ago))),
        }
    }

    fn release_before(&mut self, epoch: Epoch) {
        self.ranges.release_before(epoch);
        for element in &mut self.elements {
            if matches!(element, Element::Resting(freed) if *freed < epoch) {
                *element = Element::Free;
            }
        }
    }

    fn assert_agreement(&self) {
        let free = self.elements.iter().filter(|&&e| e == Element::Free).count();
        assert_eq!(self.ranges.available() as usize, free, "nothing leaks");
        let longest = (0..32).rev().map(|log| 1 << log).find(|&len| len <= 1024 && self.has_room(len));
        assert_eq!(self.ranges.longest(), longest.unwrap_or(0), "free halves are joined");
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: proptest::test_runner::RngSeed::Fixed(3),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn random_operations_agree_with_a_list_of_elements(
        capacity in prop_oneof![Just(512_u32), 1_u32..700],
        operations in prop::collection::vec(operation(), 1..200),
    ) {
        let mut pair = Pair::new(capacity);
        for operation in operations {
            pair.apply(operation);
            pair.assert_agreement();
        }
        while let Some(range) = pair.used.pop() {
            pair.ranges.free(range, pair.now);
        }
        pair.ranges.release_before(Epoch(pair.now.0 + 1));
        prop_assert_eq!(pair.ranges.free, Ranges::new(capacity).free, "the whole comes back in one piece");
    }

    #[test]
    fn what_was_read_back_in_any_order_leaves_the_same_free_ranges(
        lens in prop::collection::vec(1_u32..64, 1..30),
        gone in prop::collection::vec(any::<bool>(), 30),
    ) {
        let mut ranges = Ranges::new(1024);
        let given: Vec<_> = lens.into_iter().filter_map(|len| ranges.allocate(len)).collect();
        let mut kept = Vec::new();
        for (range, gone) in given.into_iter().zip(gone) {
            if gone { ranges.free(range, Epoch(0)) } else { kept.push(range) }
        }
        ranges.release_before(Epoch(1));

        let mut rebuilt = Ranges::new(1024);
        for &range in kept.iter().rev() {
            prop_assert_eq!(rebuilt.reserve(range), Ok(()));
        }
        prop_assert_eq!(rebuilt.free, ranges.free);
        prop_assert_eq!(rebuilt.used, ranges.used);
    }
}

#[test]
fn a_freed_range_rests_until_its_epoch_has_passed() {
    let mut ranges = Ranges::new(128);
    let range = ranges.allocate(100).expect("the array is empty");
    assert_eq!(range, Range { offset: 0, len: 128 });
    ranges.free(range, Epoch(7));
    ranges.release_before(Epoch(7));
    assert_eq!((ranges.allocate(1), ranges.available()), (None, 0));
    ranges.release_before(Epoch(8));
    assert_eq!(ranges.allocate(128), Some(range));
}

#[test]
fn a_range_at_rest_cannot_be_reserved() {
    let mut ranges = Ranges::new(64);
    let range = ranges.allocate(64).expect("the array is empty");
    ranges.free(range, Epoch(0));
    assert_eq!(ranges.reserve(range), Err(ReserveError::Overlap(range)));
}

#[test]
fn what_no_allocator_gave_out_is_refused() {
    let mut ranges = Ranges::new(100);
    for (offset, len) in [(0, 0), (0, 3), (4, 8)] {
        let range = Range { offset, len };
        assert_eq!(ranges.reserve(range), Err(ReserveError::Misshapen(range)));
    }
    for (offset, len) in [(64, 64), (128, 1), (1 << 31, 1 << 31)] {
        let range = Range { offset, len };
        assert_eq!(ranges.reserve(range), Err(ReserveError::Beyond(range, 100)));
    }
    assert_eq!(ranges.available(), 100);
}

#[test]
fn the_longest_array_is_one_element_short_of_all_offsets() {
    let mut ranges = Ranges::new(u32::MAX);
    assert_eq!(ranges.allocate(u32::MAX), None);
    let half = ranges.allocate(1 << 31).expect("half of it is there");
    assert_eq!(ranges.longest(), 1 << 30);
    ranges.free(half, Epoch(0));
    ranges.release_before(Epoch(1));
    assert_eq!((ranges.available(), ranges.longest()), (u32::MAX, 1 << 31));
}

#[test]
#[should_panic(expected = "was not in use")]
fn freeing_twice_is_a_bug() {
    let mut ranges = Ranges::new(8);
    let range = ranges.allocate(8).expect("the array is empty");
    ranges.free(range, Epoch(0));
    ranges.free(range, Epoch(0));
}
