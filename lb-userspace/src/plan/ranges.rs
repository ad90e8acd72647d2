//! Who has which part of a flat array: the Maglev slots of all services, the member lists.
//!
//! A buddy allocator: ranges are powers of two long and begin at a multiple of their length; two free halves of one
//! range become it again. A range that is given up rests for a while, because the data plane may still be reading under
//! the offset that it loaded before the switch.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use thiserror::Error;

#[cfg(test)]
mod tests;

/// Part of the array: `offset..offset + len`, `len` a power of two and `offset` a multiple of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    /// First element.
    pub offset: u32,
    /// Number of elements.
    pub len: u32,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.len)
    }
}

/// Counts the times at which no reader of an earlier one is left. Whoever applies changes advances it; the allocator
/// only compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// A range that was read back cannot be what the allocator gave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReserveError {
    /// Not a power of two, or not at a multiple of it.
    #[error("range {0} is not an aligned power of two")]
    Misshapen(Range),
    /// Beyond the array.
    #[error("range {0} ends beyond the capacity of {1}")]
    Beyond(Range, u32),
    /// Shares elements with a range in use or at rest.
    #[error("range {0} overlaps another one")]
    Overlap(Range),
}

/// Gives out ranges of an array.
///
/// Each element is in exactly one place: free, in use, or at rest until [`Ranges::release_before`].
#[derive(Clone, Debug)]
pub struct Ranges {
    capacity: u32,
    /// Offsets of the free ranges, by the logarithm of their length. Never both halves of one range.
    free: [BTreeSet<u32>; ORDERS],
    /// Length by offset.
    used: HashMap<u32, u32>,
    resting: Vec<(Epoch, Range)>,
}

/// Lengths 2^0 to 2^31.
const ORDERS: usize = 32;

impl Ranges {
    /// All of `capacity` elements free. A capacity that is no power of two is fully used, in ranges that fit.
    pub fn new(capacity: u32) -> Self {
        let mut ranges = Self {
            capacity,
            free: std::array::from_fn(|_| BTreeSet::new()),
            used: HashMap::new(),
            resting: Vec::new(),
        };
        let mut offset = 0;
        for order in (0..ORDERS).rev() {
            if capacity & 1 << order != 0 {
                ranges.free[order].insert(offset);
                offset += 1 << order;
            }
        }
        ranges
    }

    /// Elements in all.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Elements that are neither in use nor at rest. A range of that length need not be among them.
    pub fn available(&self) -> u32 {
        self.free.iter().enumerate().map(|(order, offsets)| (offsets.len() as u32) << order).sum()
    }

    /// The longest range that [`Ranges::allocate`] would give now; 0 when there is none.
    pub fn longest(&self) -> u32 {
        self.free.iter().rposition(|offsets| !offsets.is_empty()).map_or(0, |order| 1 << order)
    }

    /// A range of `len` elements, rounded up to a power of two; `None` when no free one is that long.
    ///
    /// Takes from the shortest free range that suffices, the first of them, so that long ones stay whole.
    ///
    /// # Panics
    /// When `len` is 0.
    pub fn allocate(&mut self, len: u32) -> Option<Range> {
        assert!(len > 0, "an empty range has no place");
        let len = len.checked_next_power_of_two()?;
        let order = (order_of(len)..ORDERS).find(|&order| !self.free[order].is_empty())?;
        let offset = *self.free[order].first()?;
        let range = Range { offset, len };
        self.take(range, order, offset);
        Some(range)
    }

    /// Gives up a range, which readers that began no later than at `now` may still use.
    ///
    /// # Panics
    /// When the range is not in use as it stands: freed twice, or never given out.
    pub fn free(&mut self, range: Range, now: Epoch) {
        let len = self.used.remove(&range.offset);
        assert_eq!(len, Some(range.len), "range {range} is freed and was not in use");
        self.resting.push((now, range));
    }

    /// Makes available what was freed before `epoch`.
    pub fn release_before(&mut self, epoch: Epoch) {
        let mut resting = std::mem::take(&mut self.resting);
        resting.retain(|&(freed, range)| {
            let rests = freed >= epoch;
            if !rests {
                self.give_back(range);
            }
            rests
        });
        self.resting = resting;
    }

    /// Takes the very range that a map read back names, as if it had been allocated.
    ///
    /// # Errors
    /// When the range cannot be one of this array's, or is not free. Nothing has changed then.
    pub fn reserve(&mut self, range: Range) -> Result<(), ReserveError> {
        let Range { offset, len } = range;
        if !len.is_power_of_two() || offset % len != 0 {
            return Err(ReserveError::Misshapen(range));
        }
        if offset.checked_add(len).is_none_or(|end| end > self.capacity) {
            return Err(ReserveError::Beyond(range, self.capacity));
        }
        let around = |order: usize| offset & !((1 << order) - 1);
        let order = (order_of(len)..ORDERS)
            .find(|&order| self.free[order].contains(&around(order)))
            .ok_or(ReserveError::Overlap(range))?;
        self.take(range, order, around(order));
        Ok(())
    }

    /// Cuts `range` out of the free range of `order` at `offset`; the halves beside it stay free.
    fn take(&mut self, range: Range, order: usize, mut offset: u32) {
        assert!(self.free[order].remove(&offset), "the range to be cut is free");
        for half in (order_of(range.len)..order).rev() {
            let upper = offset + (1 << half);
            let other = if range.offset < upper { upper } else { std::mem::replace(&mut offset, upper) };
            self.free[half].insert(other);
        }
        assert_eq!(offset, range.offset, "cutting ends at the range");
        let earlier = self.used.insert(range.offset, range.len);
        assert_eq!(earlier, None, "range {range} is given out once");
    }

    /// Makes a range free, joined with its other half as long as that is free too.
    fn give_back(&mut self, range: Range) {
        let (mut offset, mut order) = (range.offset, order_of(range.len));
        // The capacity is at most 2^32 - 1, so the longest range has no other half.
        while order + 1 < ORDERS && self.free[order].remove(&(offset ^ 1 << order)) {
            offset &= !(1 << order);
            order += 1;
        }
        assert!(self.free[order].insert(offset), "range {range} is given back once");
    }
}

fn order_of(len: u32) -> usize {
    len.trailing_zeros() as usize
}
