//! Lists of earlier owners, each kept once however many slots have it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use super::Position;

/// Most earlier owners of a slot.
///
/// Chosen by simulation: `docs/steering.md` has the sessions that are lost with fewer.
pub const OWNERS_MAX: usize = 7;

/// Earlier owners of a slot, the one that was displaced last first: 16 bytes, the value of a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct List {
    /// Owners in use, at most [`OWNERS_MAX`].
    pub count: u16,
    /// [`Position`]s; those beyond `count` are 0, so that equal lists are equal values.
    pub owners: [u16; OWNERS_MAX],
}
const _: () = assert!(size_of::<List>() == 16);

impl List {
    /// A list of these owners, at most [`OWNERS_MAX`].
    pub(super) fn new(owners: impl Iterator<Item = Position>) -> Self {
        let mut list = Self::default();
        for (Position(owner), place) in owners.zip(&mut list.owners) {
            *place = owner;
            list.count += 1;
        }
        list
    }

    /// The owners.
    pub fn owners(&self) -> impl Iterator<Item = Position> {
        self.owners.iter().take(usize::from(self.count)).copied().map(Position)
    }
}

/// One place in the service's range of lists.
#[derive(Clone, Copy, Debug)]
struct Entry {
    list: List,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Slots that refer to it.
    Used(u32),
    /// No slot refers to it since then, but a program may hold a reference that it loaded before.
    Resting(Duration),
}

/// Lists by content, under references that slots carry: 0 is the empty list, `n` the list in place `n - 1`.
///
/// Memory: at most 120 bytes a list.
#[derive(Clone, Debug)]
pub(super) struct Lists {
    limit: u16,
    /// Those of more than one owner, used or resting.
    long: u16,
    resting: u16,
    entries: Vec<Entry>,
    by_content: HashMap<List, u16>,
    free: BTreeSet<u16>,
}

impl Lists {
    pub(super) fn new(limit: u16) -> Self {
        let (entries, by_content, free) = Default::default();
        Self { limit, long: 0, resting: 0, entries, by_content, free }
    }

    /// These lists at these places, each content once and none of them empty, with the slots that refer to each.
    pub(super) fn in_use(limit: u16, used: &BTreeMap<u16, (List, u32)>) -> Self {
        let mut lists = Self::new(limit);
        let end = used.last_key_value().map_or(0, |(place, _)| usize::from(*place) + 1);
        lists.entries = vec![Entry { list: List::default(), state: State::Free }; end];
        lists.free = (0..end as u16).filter(|place| !used.contains_key(place)).collect();
        for (&place, &(list, slots)) in used {
            lists.entries[usize::from(place)] = Entry { list, state: State::Used(slots) };
            lists.by_content.insert(list, place);
            lists.long += u16::from(list.count > 1);
        }
        lists
    }

    pub(super) const fn allow(&mut self, limit: u16) {
        self.limit = limit;
    }

    /// The list behind a reference.
    pub(super) fn get(&self, reference: u16) -> List {
        match reference {
            0 => List::default(),
            _ => self.entries[usize::from(reference) - 1].list,
        }
    }

    /// Places that were ever used: the length that the service's range of lists must have.
    pub(super) fn end(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Lists that slots refer to.
    pub(super) fn used(&self) -> impl Iterator<Item = (u16, List)> {
        let used = (0..).zip(&self.entries).filter(|(_, entry)| matches!(entry.state, State::Used(_)));
        used.map(|(place, entry)| (place, entry.list))
    }

    /// By reference, whether the list has an owner that `is_one`; `None` where no list has.
    pub(super) fn having(&self, is_one: impl Fn(Position) -> bool) -> Option<Vec<bool>> {
        let mut any = false;
        let mut having = vec![false; self.entries.len() + 1];
        for (place, list) in self.used() {
            let has = list.owners().any(&is_one);
            having[usize::from(place) + 1] = has;
            any |= has;
        }
        any.then_some(having)
    }

    /// Lets one more slot refer to a list. The reference, and whether it must be written before a slot says so; `None`
    /// where there is no room.
    ///
    /// Lists of one owner have an eighth of the places to themselves: a slot so keeps the owner that it lost last
    /// however many long lists there are.
    pub(super) fn intern(&mut self, list: List) -> Option<(u16, bool)> {
        if list.count == 0 {
            return Some((0, false));
        }
        if let Some(&place) = self.by_content.get(&list) {
            let state = &mut self.entries[usize::from(place)].state;
            let written = match state {
                State::Used(slots) => {
                    *slots += 1;
                    true
                }
                State::Resting(_) | State::Free => {
                    self.resting -= 1;
                    *state = State::Used(1);
                    // Its place may have been left out when the range was last written as a whole.
                    false
                }
            };
            return Some((place + 1, !written));
        }
        if list.count > 1 && self.long >= self.limit - self.limit / 8 {
            return None;
        }
        let entry = Entry { list, state: State::Used(1) };
        let place = match self.free.pop_first() {
            Some(place) => {
                self.entries[usize::from(place)] = entry;
                place
            }
            None if self.end() < self.limit => {
                self.entries.push(entry);
                self.end() - 1
            }
            None => return None,
        };
        self.long += u16::from(list.count > 1);
        self.by_content.insert(list, place);
        Some((place + 1, true))
    }

    /// One slot less refers to it; the last one lays it to rest.
    pub(super) fn release(&mut self, reference: u16, now: Duration) {
        if reference == 0 {
            return;
        }
        let state = &mut self.entries[usize::from(reference) - 1].state;
        match state {
            State::Used(1) => {
                *state = State::Resting(now);
                self.resting += 1;
            }
            State::Used(slots) => *slots -= 1,
            State::Free | State::Resting(_) => panic!("list {reference} is released and was not in use"),
        }
    }

    /// Frees the places of lists that rest since `time` or longer.
    pub(super) fn free_before(&mut self, time: Duration) {
        if self.resting == 0 {
            return;
        }
        for (place, entry) in (0..).zip(&mut self.entries) {
            if matches!(entry.state, State::Resting(since) if since <= time) {
                entry.state = State::Free;
                self.resting -= 1;
                self.long -= u16::from(entry.list.count > 1);
                self.by_content.remove(&entry.list);
                self.free.insert(place);
            }
        }
    }

    /// Each slot has become four.
    pub(super) fn quadruple(&mut self) {
        for entry in &mut self.entries {
            if let State::Used(slots) = &mut entry.state {
                *slots *= 4;
            }
        }
    }
}
