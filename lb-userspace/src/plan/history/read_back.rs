//! Slots and lists as an earlier agent has left them, perhaps in the middle of a change.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::Duration,
};

use lb_common::abi::{HISTORY, History, Slot};

use super::{Change, Earlier, Epoch, Limits, List, Moved, OWNERS_MAX, Position, SlotTable, lists::Lists};
use crate::plan::maglev::TableSize;

/// All moves that were read back count as one change at the time of reading: when each was is not in the maps.
const FIRST: Epoch = Epoch(1);

/// What stands behind a reference that slots carry.
#[derive(Clone, Copy)]
struct Reference {
    /// Owners that exist, each once.
    list: List,
    /// Nothing else stands there, nor this behind another one.
    is_sound: bool,
    /// Slots that may keep it.
    slots: u32,
}

/// By reference, where any slot has it.
struct References<'a> {
    /// The last one.
    limit: u16,
    /// As far as slots have any.
    read: Vec<Option<Reference>>,
    distinct: HashSet<List>,
    history: &'a dyn Fn(u16) -> Option<History>,
    exists: &'a dyn Fn(Position) -> bool,
}

impl References<'_> {
    /// The list behind a reference; nothing stands behind 0 and beyond the range.
    fn get(&mut self, reference: u16) -> Reference {
        if reference == 0 || reference > self.limit {
            return Reference { list: List::default(), is_sound: false, slots: 0 };
        }
        let at = usize::from(reference);
        if self.read.len() <= at {
            self.read.resize(at + 1, None);
        }
        if let Some(known) = self.read[at] {
            return known;
        }
        let found = self.checked((self.history)(reference - 1).unwrap_or_default());
        self.read[at] = Some(found);
        found
    }

    fn checked(&mut self, history: History) -> Reference {
        let mut owners: Vec<Position> = Vec::with_capacity(HISTORY);
        for owner in history.owners.iter().take(history.count.into()).copied().map(Position) {
            if (self.exists)(owner) && !owners.contains(&owner) {
                owners.push(owner);
            }
        }
        let is_whole = owners.len() == usize::from(history.count) && !owners.is_empty();
        let list = List::new(owners.into_iter());
        Reference { list, is_sound: is_whole && self.distinct.insert(list), slots: 0 }
    }

    fn count(&mut self, reference: u16) {
        if let Some(Some(reference)) = self.read.get_mut(usize::from(reference)) {
            reference.slots += 1;
        }
    }

    /// Lists that slots keep, by place.
    fn used(&self) -> BTreeMap<u16, (List, u32)> {
        let references = (0u16..).zip(self.read.iter().skip(1));
        let found = references.filter_map(|(place, reference)| Some((place, (*reference)?)));
        found.filter(|(_, found)| found.slots > 0).map(|(place, found)| (place, (found.list, found.slots))).collect()
    }
}

impl SlotTable {
    /// The table that these slots and lists are, and what must be written so that they are one: owners that do not
    /// exist are dropped, whatever else stands there.
    ///
    /// `history` is what stands in a place of the service's range of lists.
    ///
    /// # Panics
    /// When there are not as many slots as `size` says.
    pub(in crate::plan) fn read_back(
        (size, limits): (TableSize, Limits),
        mut slots: Vec<Slot>,
        history: impl Fn(u16) -> Option<History>,
        exists: impl Fn(Position) -> bool,
        now: Duration,
    ) -> (Self, Change) {
        assert_eq!(slots.len(), size.slots(), "slots of a table");
        let (read, distinct) = Default::default();
        let mut references = References { limit: limits.lists, read, distinct, history: &history, exists: &exists };
        let mut broken = Vec::new();
        for (index, slot) in (0..).zip(&slots) {
            let has_owner = slot.owner == Position::NONE.0 || exists(Position(slot.owner));
            if slot.history == 0 && has_owner {
                continue;
            }
            let Reference { list, is_sound, .. } = references.get(slot.history);
            if has_owner && is_sound && !list.owners().any(|earlier| earlier.0 == slot.owner) {
                references.count(slot.history);
            } else {
                let owner = if has_owner { Position(slot.owner) } else { Position::NONE };
                broken.push((index, owner, list));
            }
        }
        let mut table = Self {
            lists: Lists::in_use(limits.lists, &references.used()),
            epoch: FIRST,
            changes: VecDeque::from([(FIRST, now)]),
            ..Self::empty(size, limits)
        };
        let change = table.repair(&broken, &mut slots);
        table.owners = slots.iter().map(|slot| slot.owner).collect();
        let is_moved = |(_, slot): &(u32, &Slot)| slot.history != 0;
        let of_slot = |slot: &Slot| Moved { left: [FIRST; OWNERS_MAX], reference: slot.history, silent: 0 };
        let moved = (0..).zip(&slots).filter(is_moved);
        table.moved = moved.map(|(at, slot)| (at, of_slot(slot))).collect();
        (table, change)
    }

    /// Gives slots that are counted for no list an owner, and of these earlier ones those that are others.
    fn repair(&mut self, broken: &[(u32, Position, List)], slots: &mut [Slot]) -> Change {
        let mut change = Change::default();
        let mut history = Vec::with_capacity(OWNERS_MAX);
        for &(slot, owner, list) in broken {
            history.clear();
            let others = list.owners().filter(|earlier| *earlier != owner);
            history.extend(others.map(|owner| Earlier { owner, left: FIRST, silent: false }));
            let (reference, is_new) = self.intern(&mut history);
            if is_new {
                change.lists.push((reference - 1, self.lists.get(reference)));
            }
            slots[slot as usize] = Slot { owner: owner.0, history: reference };
            change.slots.push((slot, slots[slot as usize]));
        }
        change
    }
}
