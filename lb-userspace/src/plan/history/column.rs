//! The owners of a table's slots in few bits: an agent with ten thousand services has more slots than anything else.

use crate::plan::maglev::NO_OWNER;

/// Numbers of 16 bits, each in 4, 8 or 16 bits: as many as the highest of them needs. [`NO_OWNER`] is all ones.
#[derive(Clone, Debug)]
pub(in crate::plan) struct Column {
    len: usize,
    width: u32,
    words: Vec<u64>,
}

const WIDTH_MIN: u32 = 4;

impl Column {
    /// So many times [`NO_OWNER`].
    pub fn new(len: usize) -> Self {
        Self { len, width: WIDTH_MIN, words: vec![u64::MAX; len.div_ceil(per_word(WIDTH_MIN))] }
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    /// # Panics
    /// Beyond the end.
    pub fn get(&self, at: usize) -> u16 {
        assert!(at < self.len, "element {at} of {}", self.len);
        let (word, shift) = self.place(at);
        self.unpack(self.words[word] >> shift)
    }

    /// # Panics
    /// Beyond the end.
    pub fn set(&mut self, at: usize, value: u16) {
        assert!(at < self.len, "element {at} of {}", self.len);
        while value != NO_OWNER && u64::from(value) >= mask(self.width) {
            *self = self.widened();
        }
        let (word, shift) = self.place(at);
        let mask = mask(self.width);
        self.words[word] = self.words[word] & !(mask << shift) | (u64::from(value) & mask) << shift;
    }

    pub fn iter(&self) -> impl Iterator<Item = u16> {
        let in_word = move |word: &u64| {
            let word = *word;
            (0..per_word(self.width)).map(move |at| self.unpack(word >> (at as u32 * self.width)))
        };
        self.words.iter().flat_map(in_word).take(self.len)
    }

    /// Each element four times.
    pub fn grown(&self) -> Self {
        Self::packed(4 * self.len, self.width, self.iter().flat_map(|value| [value; 4]))
    }

    fn widened(&self) -> Self {
        Self::packed(self.len, 2 * self.width, self.iter())
    }

    /// Of as many values as that, none of which needs more bits.
    fn packed(len: usize, width: u32, mut values: impl Iterator<Item = u16>) -> Self {
        let word = |_| {
            let of_word = values.by_ref().take(per_word(width)).zip((0..).step_by(width as usize));
            // What is no element any more is all ones, as in a new column.
            of_word.fold(u64::MAX, |word, (value, shift)| {
                word & !(mask(width) << shift) | (u64::from(value) & mask(width)) << shift
            })
        };
        Self { len, width, words: (0..len.div_ceil(per_word(width))).map(word).collect() }
    }

    const fn place(&self, at: usize) -> (usize, u32) {
        let per_word = per_word(self.width);
        (at / per_word, (at % per_word) as u32 * self.width)
    }

    const fn unpack(&self, word: u64) -> u16 {
        let value = word & mask(self.width);
        if value == mask(self.width) { NO_OWNER } else { value as u16 }
    }
}

impl FromIterator<u16> for Column {
    fn from_iter<I: IntoIterator<Item = u16>>(values: I) -> Self {
        let values: Vec<u16> = values.into_iter().collect();
        let highest = values.iter().filter(|value| **value != NO_OWNER).max().copied().unwrap_or_default();
        let suffices = |width: &u32| u64::from(highest) < mask(*width);
        let width = [WIDTH_MIN, 8].into_iter().find(suffices).unwrap_or(16);
        Self::packed(values.len(), width, values.into_iter())
    }
}

const fn per_word(width: u32) -> usize {
    (u64::BITS / width) as usize
}

const fn mask(width: u32) -> u64 {
    (1 << width) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_new_column_has_no_owners_and_takes_half_a_byte_for_each() {
        let column = Column::new(128);
        assert!(column.iter().all(|owner| owner == NO_OWNER));
        assert_eq!((column.iter().count(), column.words.len()), (128, 8));
    }

    proptest! {
        #[test]
        fn a_column_holds_what_was_written(
            writes in proptest::collection::vec((0usize..100, prop_oneof![0u16..20, 200u16..300, Just(NO_OWNER), any::<u16>()]), 0..200)
        ) {
            let (mut column, mut plain) = (Column::new(100), vec![NO_OWNER; 100]);
            for (at, value) in writes {
                column.set(at, value);
                plain[at] = value;
                prop_assert_eq!(column.get(at), value);
            }
            prop_assert_eq!(column.iter().collect::<Vec<_>>(), plain.clone());
            prop_assert_eq!(plain.iter().copied().collect::<Column>().iter().collect::<Vec<_>>(), plain.clone());
            let grown: Vec<u16> = plain.iter().flat_map(|value| [*value; 4]).collect();
            prop_assert_eq!(column.grown().iter().collect::<Vec<_>>(), grown);
        }
    }
}
