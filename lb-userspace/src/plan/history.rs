//! The slots of one service: who owns each, and who did before.
//!
//! A slot whose owner changes is *moved*: packets that reach it are offered to its earlier owners first, because a pod's
//! kernel socket is the only record of a connection. `docs/steering.md` has the design, and what it costs in figures.
//!
//! Pure. What comes out is a [`Change`]: the lists and slots that differ, and nothing else.
//!
//! # Pruning
//! An owner's pod lists its connections, and the owner leaves the history of each slot where it has none. That is final:
//! since the slot moved away the owner gets no new connection of it, and what was on its way has arrived [`SETTLE`]
//! after. Only a listing that began later counts, and what it says is tied to the [`Epoch`] in which the slot moved
//! away. [`News`] that come late therefore find either the entry that they are about, or one of another epoch, or
//! none; news that are lost are repeated by the next listing.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use lb_common::abi::Slot;

use super::maglev::TableSize;

mod column;
mod lists;
mod positions;
mod read_back;
#[cfg(test)]
mod tests;

pub(super) use column::Column;
use lists::Lists;
pub use lists::{List, OWNERS_MAX};
pub use positions::{Identity, Position, Positions, PositionsFull};

/// How long after a move a connection of the slot may still reach the earlier owner: programs run for microseconds,
/// frames wait in queues for milliseconds.
pub const SETTLE: Duration = Duration::from_secs(1);

/// Changes whose times are remembered. A listing that is reported when so many have come since prunes nothing.
const CHANGES_MAX: usize = 64;

/// The number of a change in which slots moved. One a second last for 136 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(u32);

/// What a table may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Lists, those at rest included. There are never more in use than slots.
    pub lists: u16,
    /// Earlier owners of a slot, at most [`OWNERS_MAX`]. Fewer are for measuring what they would lose.
    pub owners: usize,
}

/// What must be written. Lists first: a slot never refers to a list that is not there yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// By place in the service's range of lists.
    pub lists: Vec<(u16, List)>,
    /// Ascending by slot. Where the table has grown, all of [`SlotTable::slots`] stand in a new range instead, and these
    /// are the ones that differ from their parent's.
    pub slots: Vec<(u32, Slot)>,
    /// The table has more slots than before.
    pub grown: bool,
    /// Slots that have another owner.
    pub moved: usize,
}

/// Earlier owners that were dropped though their connections may live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// The slot had as many as it can have.
    pub overflows: u64,
    /// The same, but the owner's last listing, less than [`SETTLE`] after the move, had no connection of the slot: only
    /// one that was on its way then is lost.
    pub silent_overflows: u64,
    /// There was no room for another list.
    pub list_overflows: u64,
}

/// Slots where an owner has no connection any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Whose sockets were listed.
    pub owner: Position,
    /// What the slots are slots of.
    pub size: TableSize,
    /// Slots, and the epoch in which each moved away from the owner.
    pub slots: Vec<(u32, Epoch)>,
}

/// An earlier owner of a slot.
#[derive(Clone, Copy)]
struct Earlier {
    owner: Position,
    left: Epoch,
    silent: bool,
}

/// What a moved slot has beside its list, in the list's order.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    left: [Epoch; OWNERS_MAX],
    /// 1 + the place of its list.
    reference: u16,
    /// Bits of owners that had no connection when they were last listed, too early for it to be final.
    silent: u8,
}

/// The slots of one service with their histories.
///
/// Memory: half a byte a slot with up to 15 backends, a byte with up to 255 and two with more; at most 100 more for a moved
/// one, and at most 120 a list.
#[derive(Clone, Debug)]
pub struct SlotTable {
    size: TableSize,
    limits: Limits,
    owners: Column,
    moved: BTreeMap<u32, Moved>,
    lists: Lists,
    epoch: Epoch,
    /// The last changes and their times.
    changes: VecDeque<(Epoch, Duration)>,
    dropped: Dropped,
}

impl SlotTable {
    /// A table of that size which nobody owns anything of.
    pub fn new(size: TableSize, limits: Limits) -> Self {
        Self { owners: Column::new(size.slots()), ..Self::empty(size, limits) }
    }

    /// A table that is new and has these owners.
    ///
    /// # Panics
    /// When `owners` is no [`TableSize`] long.
    pub fn of(owners: &[Position], limits: Limits) -> Self {
        let size = TableSize::from_slots(owners.len()).expect("as many owners as a table has slots");
        Self { owners: owners.iter().map(|owner| owner.0).collect(), ..Self::empty(size, limits) }
    }

    /// Without its slots.
    fn empty(size: TableSize, limits: Limits) -> Self {
        Self {
            size,
            limits: Limits { owners: limits.owners.min(OWNERS_MAX), ..limits },
            owners: Column::new(0),
            moved: BTreeMap::new(),
            lists: Lists::new(limits.lists),
            epoch: Epoch::default(),
            changes: VecDeque::new(),
            dropped: Dropped::default(),
        }
    }

    /// Lists that the table may have from now on; never less than before.
    pub fn allow(&mut self, lists: u16) {
        self.limits.lists = self.limits.lists.max(lists);
        self.lists.allow(self.limits.lists);
    }

    /// Earlier owners that a slot remembers from now on, at most [`OWNERS_MAX`]. What is there already stays.
    pub fn remember(&mut self, owners: usize) {
        self.limits.owners = owners.min(OWNERS_MAX);
    }

    /// How many that are.
    pub const fn remembered(&self) -> usize {
        self.limits.owners
    }

    /// Number of slots.
    pub const fn size(&self) -> TableSize {
        self.size
    }

    /// What the data plane reads. A history that is not 0 is 1 + the place of a list.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        let mut moved = self.moved.iter().peekable();
        (0..).zip(self.owners.iter()).map(move |(slot, owner)| Slot {
            owner,
            history: moved.next_if(|(at, _)| **at == slot).map_or(0, |(_, moved)| moved.reference),
        })
    }

    /// One of these.
    ///
    /// # Panics
    /// Beyond the last slot.
    pub fn slot(&self, slot: u32) -> Slot {
        Slot { owner: self.owners.get(slot as usize), history: self.reference(slot) }
    }

    /// The owner of each slot, or [`NO_OWNER`].
    pub fn owners(&self) -> impl Iterator<Item = u16> {
        self.owners.iter()
    }

    fn reference(&self, slot: u32) -> u16 {
        self.moved.get(&slot).map_or(0, |moved| moved.reference)
    }

    /// The lists that slots refer to, by place.
    pub fn lists(&self) -> impl Iterator<Item = (u16, List)> {
        self.lists.used()
    }

    /// Length that the service's range of lists must have. Never less than before.
    pub fn lists_end(&self) -> u16 {
        self.lists.end()
    }

    /// Slots that have earlier owners.
    pub fn moved(&self) -> usize {
        self.moved.len()
    }

    /// Since the table was made.
    pub const fn dropped(&self) -> Dropped {
        self.dropped
    }

    /// The earlier owners of a slot, the one that was displaced last first.
    ///
    /// # Panics
    /// Beyond the last slot.
    pub fn history(&self, slot: u32) -> List {
        self.lists.get(self.reference(slot))
    }

    /// Whether any slot names that position, as owner or earlier owner.
    pub fn refers_to(&self, position: Position) -> bool {
        self.owners.iter().any(|owner| owner == position.0)
            || self.lists.used().any(|(_, list)| list.owners().any(|owner| owner == position))
    }

    /// Makes `owners` the owners, one for each slot; displaced ones become earlier owners. Backends that do not exist
    /// any more leave every history; those that exist and own nothing (they drain, or are down) stay.
    ///
    /// More slots than before: each child has its parent's owner and history first, so that no flow sees a difference
    /// but through `owners`.
    ///
    /// `now` stands for the time at which the slots are written. Where they are written later, listings that begin
    /// before [`SETTLE`] after that must not be given to [`SlotTable::prune`]: connections went to the old owners so long.
    ///
    /// `exists` is asked for every owner in every list: it should be an index into an array.
    ///
    /// # Panics
    /// When `owners` is shorter than the table, or no [`TableSize`] long: a table never shrinks.
    pub fn change(&mut self, owners: &[Position], exists: impl Fn(Position) -> bool, now: Duration) -> Change {
        let mut change = Change { grown: self.grow(owners.len()), ..Change::default() };
        let epoch = Epoch(self.epoch.0.saturating_add(1));
        let gone = self.lists.having(|owner| !exists(owner));
        let has_gone = |reference: u16| gone.as_ref().is_some_and(|gone| gone[usize::from(reference)]);
        let before = self.owners.clone();
        let mut history = Vec::with_capacity(OWNERS_MAX + 1);
        for ((index, &owner), before) in (0..).zip(owners).zip(before.iter()) {
            if before == owner.0 && (gone.is_none() || !has_gone(self.reference(index))) {
                continue;
            }
            history.clear();
            let displaced = Position(before);
            if displaced != owner {
                change.moved += 1;
                if displaced != Position::NONE && exists(displaced) {
                    history.push(Earlier { owner: displaced, left: epoch, silent: false });
                }
            }
            history.extend(self.earlier(index).filter(|earlier| earlier.owner != owner && exists(earlier.owner)));
            self.write(index, owner, &mut history, now, &mut change);
        }
        if change.moved > 0 {
            self.epoch = epoch;
            if self.changes.len() == CHANGES_MAX {
                self.changes.pop_front();
            }
            self.changes.push_back((epoch, now));
        }
        change
    }

    /// Drops an owner from the history of each slot where it has no connection, by a listing of its sockets that began
    /// at `listed_at`. `has_connection` is asked for slots of the present [`SlotTable::size`].
    ///
    /// Slots that moved away less than [`SETTLE`] before keep it, and give it up first when they overflow.
    pub fn prune(
        &mut self,
        owner: Position,
        listed_at: Duration,
        has_connection: impl Fn(u32) -> bool,
        now: Duration,
    ) -> Change {
        let news = self.news(owner, listed_at, &has_connection);
        let seen = self.last_change(|time| time <= listed_at);
        for slot in self.slots_with(owner) {
            let index = self.history(slot).owners().position(|earlier| earlier == owner);
            let (Some(index), Some(moved)) = (index, self.moved.get_mut(&slot)) else { continue };
            if has_connection(slot) {
                moved.silent &= !(1 << index);
            } else if moved.left[index] <= seen {
                moved.silent |= 1 << index;
            }
        }
        self.apply(&news, now)
    }

    /// What such a listing says for good, to whoever has a table of this service with the same epochs.
    pub fn news(&self, owner: Position, listed_at: Duration, has_connection: impl Fn(u32) -> bool) -> News {
        let settled = self.last_change(|time| time + SETTLE < listed_at);
        let is_final = |slot: &(u32, Epoch)| slot.1 <= settled && !has_connection(slot.0);
        let left = |slot| Some((slot, self.earlier(slot).find(|earlier| earlier.owner == owner)?.left));
        let slots = self.slots_with(owner).into_iter().filter_map(left).filter(is_final).collect();
        News { owner, size: self.size, slots }
    }

    /// Drops the owner where the news are about the very move that made it an earlier owner. News of a smaller table
    /// hold for the children, which inherited the epoch; those of a larger one are left to the next listing.
    ///
    /// Where there is no room for the shorter list, the slot keeps the longer one until the next listing.
    pub fn apply(&mut self, news: &News, now: Duration) -> Change {
        let mut change = Change::default();
        let Some(shift) = self.size.bits().checked_sub(news.size.bits()) else { return change };
        let mut history = Vec::with_capacity(OWNERS_MAX);
        for &(parent, epoch) in news.slots.iter().filter(|(slot, _)| (*slot as usize) < news.size.slots()) {
            for slot in parent << shift..(parent + 1) << shift {
                history.clear();
                history.extend(self.earlier(slot));
                let about = |earlier: &Earlier| earlier.owner == news.owner && earlier.left == epoch;
                if !history.iter().any(about) {
                    continue;
                }
                history.retain(|earlier| !about(earlier));
                if let Some((reference, is_new)) = self.lists.intern(list_of(&history)) {
                    let value = Slot { owner: self.owners.get(slot as usize), history: reference };
                    self.set(slot, value, is_new, &history, now, &mut change);
                }
            }
        }
        change
    }

    /// Frees what was given up at or before `time`, when no program can hold a reference to it any more.
    pub fn release_before(&mut self, time: Duration) {
        self.lists.free_before(time);
    }

    fn grow(&mut self, slots: usize) -> bool {
        let size = TableSize::from_slots(slots);
        let size = size.filter(|size| *size >= self.size).unwrap_or_else(|| {
            panic!("{slots} owners for {} slots: a table stays as it is or grows by fours", self.size.slots())
        });
        let grown = size > self.size;
        while self.owners.len() < slots {
            self.owners = self.owners.grown();
            let children = |(slot, moved)| (0..4).map(move |child| (4 * slot + child, moved));
            self.moved = std::mem::take(&mut self.moved).into_iter().flat_map(children).collect();
            self.lists.quadruple();
        }
        self.size = size;
        grown
    }

    fn earlier(&self, slot: u32) -> impl Iterator<Item = Earlier> {
        let list = self.history(slot);
        let moved = if list.count > 0 { self.moved.get(&slot).copied() } else { None }.unwrap_or_default();
        (0..usize::from(list.count)).map(move |index| Earlier {
            owner: Position(list.owners[index]),
            left: moved.left[index],
            silent: moved.silent & 1 << index != 0,
        })
    }

    /// Slots that have this earlier owner.
    fn slots_with(&self, owner: Position) -> Vec<u32> {
        let Some(having) = self.lists.having(|earlier| earlier == owner) else { return Vec::new() };
        self.moved.iter().filter(|(_, moved)| having[usize::from(moved.reference)]).map(|(slot, _)| *slot).collect()
    }

    /// The last change at a time that `suffices`, and so do all times before; the epoch before the first where none does,
    /// or where it is forgotten.
    fn last_change(&self, suffices: impl Fn(Duration) -> bool) -> Epoch {
        let last = self.changes.iter().rev().find(|(_, time)| suffices(*time));
        last.map_or(Epoch::default(), |(epoch, _)| *epoch)
    }

    /// Writes a slot with as much of its history as there is room for.
    fn write(&mut self, slot: u32, owner: Position, history: &mut Vec<Earlier>, now: Duration, change: &mut Change) {
        while history.len() > self.limits.owners {
            match shorten(history) {
                true => self.dropped.silent_overflows += 1,
                false => self.dropped.overflows += 1,
            }
        }
        let (reference, is_new) = self.intern(history);
        self.set(slot, Slot { owner: owner.0, history: reference }, is_new, history, now, change);
    }

    /// A list for one more slot, of as much of its history as there is room for; whether it is to be written.
    fn intern(&mut self, history: &mut Vec<Earlier>) -> (u16, bool) {
        loop {
            if let Some(found) = self.lists.intern(list_of(history)) {
                return found;
            }
            shorten(history);
            self.dropped.list_overflows += 1;
        }
    }

    /// Sets a slot to a list that counts it already, and takes it from the list that it had.
    fn set(&mut self, slot: u32, value: Slot, is_new: bool, history: &[Earlier], now: Duration, change: &mut Change) {
        if is_new {
            change.lists.push((value.history - 1, self.lists.get(value.history)));
        }
        let before = self.slot(slot);
        self.owners.set(slot as usize, value.owner);
        self.lists.release(before.history, now);
        if history.is_empty() {
            self.moved.remove(&slot);
        } else {
            let mut moved = Moved { reference: value.history, ..Moved::default() };
            for (index, earlier) in history.iter().enumerate() {
                moved.left[index] = earlier.left;
                moved.silent |= u8::from(earlier.silent) << index;
            }
            self.moved.insert(slot, moved);
        }
        if before != value {
            change.slots.push((slot, value));
        }
    }
}

/// Where the slots that the data plane reads are the same; lists are written apart.
impl PartialEq for SlotTable {
    fn eq(&self, other: &Self) -> bool {
        self.slots().eq(other.slots())
    }
}

/// Who goes when there are too many: the oldest of those that had no connection when they were last listed, else the
/// oldest. Whether it had none.
fn shorten(history: &mut Vec<Earlier>) -> bool {
    let silent = history.iter().rposition(|earlier| earlier.silent);
    let Some(index) = silent.or(history.len().checked_sub(1)) else { return true };
    history.remove(index);
    silent.is_some()
}

fn list_of(history: &[Earlier]) -> List {
    List::new(history.iter().map(|earlier| earlier.owner))
}

/// A Maglev table by position: `positions` has those of the table's members, in their order.
pub fn by_position(owners: &[u16], positions: &[Position]) -> Vec<Position> {
    owners.iter().map(|&owner| positions.get(usize::from(owner)).copied().unwrap_or(Position::NONE)).collect()
}
