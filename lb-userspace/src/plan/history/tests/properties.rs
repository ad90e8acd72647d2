//! Random changes of a service with sessions, and what must hold after each.

use std::{collections::HashSet, net::Ipv4Addr};

use lb_common::steer::slot_of;
use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, RngSeed},
};

use super::*;
use crate::plan::maglev::{self, Member};

/// How long lists and positions rest.
const GRACE: Duration = Duration::from_secs(1);
const BACKENDS_MAX: usize = 24;

#[derive(Clone, Debug)]
enum Op {
    Add {
        weight: u16,
    },
    Remove(prop::sample::Index),
    /// Drains, fails or recovers.
    Weigh(prop::sample::Index, u16),
    Open(Vec<u64>),
    Close(prop::sample::Index),
    /// A backend's sockets are listed now, and used so many operations later.
    List(prop::sample::Index, usize),
    /// As `List`, but what travels is the news.
    Report(prop::sample::Index, usize),
    Wait(u64),
    /// What the slots refer to is written to another range of lists.
    MoveLists,
}

fn op() -> impl Strategy<Value = Op> {
    let weight = prop_oneof![2 => Just(0), 3 => Just(1), 1 => 1_u16..8];
    prop_oneof![
        3 => (1_u16..4).prop_map(|weight| Op::Add { weight }),
        2 => any::<prop::sample::Index>().prop_map(Op::Remove),
        5 => (any::<prop::sample::Index>(), weight).prop_map(|(backend, weight)| Op::Weigh(backend, weight)),
        4 => prop::collection::vec(any::<u64>(), 1..40).prop_map(Op::Open),
        1 => any::<prop::sample::Index>().prop_map(Op::Close),
        4 => (any::<prop::sample::Index>(), 0_usize..4).prop_map(|(backend, delay)| Op::List(backend, delay)),
        3 => (any::<prop::sample::Index>(), 0_usize..12).prop_map(|(backend, delay)| Op::Report(backend, delay)),
        4 => prop_oneof![0_u64..900, 1000_u64..5000].prop_map(Op::Wait),
        1 => Just(Op::MoveLists),
    ]
}

/// What is to be used later.
enum Later {
    Listing { owner: Position, listed_at: Duration, hashes: Vec<u64> },
    News(News),
}

/// A connection that the owner's kernel has, or will have when its SYN has landed.
struct Session {
    hash: u64,
    owner: Position,
    lands_at: Duration,
}

struct World {
    limits: Limits,
    now: Duration,
    next_address: u32,
    members: Vec<Member>,
    positions: Positions,
    table: SlotTable,
    sessions: Vec<Session>,
    later: Vec<(usize, Later)>,
    maps: Maps,
}

/// What the data plane reads, as it is written.
#[derive(Default)]
struct Maps {
    slots: Vec<Slot>,
    lists: HashMap<u16, List>,
    /// When a slot last referred to a list.
    referred: HashMap<u16, Duration>,
}

impl Maps {
    fn write(&mut self, change: &Change, table: &SlotTable, now: Duration) {
        for (place, list) in &change.lists {
            if self.lists.get(place).is_some_and(|before| before != list) {
                let last = self.referred.get(place).copied().unwrap_or_default();
                assert!(last + GRACE <= now, "list {place} is overwritten while a program may read it");
            }
            self.lists.insert(*place, *list);
        }
        match change.grown {
            true => self.slots = table.slots().collect(),
            false => change.slots.iter().for_each(|&(slot, value)| self.slots[slot as usize] = value),
        }
        for slot in self.slots.iter().filter(|slot| slot.history != 0) {
            self.referred.insert(slot.history - 1, now);
        }
        assert!(change.slots.is_sorted_by_key(|(slot, _)| *slot));
        assert!(self.slots.iter().copied().eq(table.slots()), "what was not written is as it was");
        for (place, list) in table.lists() {
            assert_eq!(self.lists.get(&place), Some(&list));
        }
    }
}

impl World {
    fn new(limits: Limits) -> Self {
        let table = SlotTable::new(TableSize::MIN, limits);
        let maps = Maps { slots: table.slots().collect(), ..Maps::default() };
        let (members, sessions, later) = Default::default();
        let positions = Positions::default();
        Self { limits, now: Duration::ZERO, next_address: 0, members, positions, table, sessions, later, maps }
    }

    fn slot(&self, hash: u64) -> u32 {
        slot_of(hash, self.table.size().bits() as _)
    }

    fn is_candidate(&self, session: &Session) -> bool {
        let slot = self.slot(session.hash);
        self.table.slot(slot).owner == session.owner.0
            || self.table.history(slot).owners().any(|owner| owner == session.owner)
    }

    fn lost(&self) -> usize {
        self.sessions.iter().filter(|session| !self.is_candidate(session)).count()
    }

    fn take(&mut self, op: &Op) {
        self.now += ms(1);
        let backend = |index: &prop::sample::Index| index.index(self.members.len());
        match op {
            Op::Add { .. } if self.members.len() == BACKENDS_MAX => {}
            Op::Add { weight } => {
                self.next_address += 1;
                let address = Ipv4Addr::from_bits(0x0af4_0000 + self.next_address).into();
                self.members.push(Member { identity: (address, 179), weight: *weight });
                self.change();
            }
            _ if self.members.is_empty() => {}
            Op::Remove(index) => {
                let index = backend(index);
                self.members.remove(index);
                self.change();
            }
            Op::Weigh(index, weight) => {
                let index = backend(index);
                self.members[index].weight = *weight;
                self.change();
            }
            Op::Open(hashes) => {
                for &hash in hashes {
                    let owner = Position(self.table.slot(self.slot(hash)).owner);
                    if owner != Position::NONE {
                        self.sessions.push(Session { hash, owner, lands_at: self.now + ms(hash % 999) });
                    }
                }
            }
            Op::Close(index) if !self.sessions.is_empty() => {
                self.sessions.swap_remove(index.index(self.sessions.len()));
            }
            Op::Close(_) => {}
            Op::List(index, delay) => {
                let (owner, hashes) = self.list(backend(index));
                self.later.push((*delay, Later::Listing { owner, listed_at: self.now, hashes }));
            }
            Op::Report(index, delay) => {
                let (owner, hashes) = self.list(backend(index));
                let slots = self.slots_of(&hashes);
                let news = self.table.news(owner, self.now, |slot| slots.contains(&slot));
                self.later.push((*delay, Later::News(news)));
            }
            Op::MoveLists => self.maps.lists = self.table.lists().collect(),
            Op::Wait(time) => self.now += ms(*time),
        }
        self.use_listings();
        self.table.release_before(self.now.saturating_sub(GRACE));
        self.positions.release_before(self.now.saturating_sub(GRACE), |position| self.table.refers_to(position));
    }

    /// Sockets of a backend: connections that have arrived.
    fn list(&self, backend: usize) -> (Position, Vec<u64>) {
        let owner = self.positions.get(&self.members[backend].identity).expect("each backend has a position");
        let of = |session: &&Session| session.owner == owner && session.lands_at <= self.now;
        (owner, self.sessions.iter().filter(of).map(|session| session.hash).collect())
    }

    fn slots_of(&self, hashes: &[u64]) -> BTreeSet<u32> {
        hashes.iter().map(|&hash| self.slot(hash)).collect()
    }

    fn change(&mut self) {
        let identities: Vec<_> = self.members.iter().map(|member| member.identity).collect();
        let positions = self.positions.update(&identities, self.now).expect("there are fewer than 65,535");
        let wanted = maglev::table_size(self.members.iter().map(|member| member.weight));
        let size = wanted.max(self.table.size());
        let owners = by_position(&maglev::owners(&self.members, size), &positions);
        self.sessions.retain(|session| self.positions.contains(session.owner));
        let (lost_before, dropped, grown_from) = (self.lost(), self.table.dropped(), self.table.size());
        let change = self.table.change(&owners, |position| self.positions.contains(position), self.now);
        assert_eq!(change.grown, size > grown_from);
        let lost = (self.lost() - lost_before) as u64;
        let counted = self.table.dropped();
        if counted == dropped {
            assert_eq!(lost, 0, "a session is lost and no overflow is counted");
        }
        let sum = |dropped: Dropped| dropped.overflows + dropped.silent_overflows + dropped.list_overflows;
        assert!(lost == 0 || sum(counted) > sum(dropped));
        self.sessions.retain({
            let lost: BTreeSet<_> = self.sessions.iter().filter(|s| !self.is_candidate(s)).map(|s| s.hash).collect();
            move |session| !lost.contains(&session.hash)
        });
        self.maps.write(&change, &self.table, self.now);
        let columns = self.table.owners().map(Position);
        assert!(columns.eq(owners), "the owners are Maglev's");
    }

    fn use_listings(&mut self) {
        let mut due = Vec::new();
        for (delay, later) in std::mem::take(&mut self.later) {
            match delay.checked_sub(1) {
                Some(delay) => self.later.push((delay, later)),
                None => due.push(later),
            }
        }
        for later in due {
            let dropped = self.table.dropped();
            let change = match later {
                Later::News(news) => {
                    let change = self.table.apply(&news, self.now);
                    self.assert_heeded(&news);
                    change
                }
                Later::Listing { owner, listed_at, hashes } => {
                    let slots = self.slots_of(&hashes);
                    self.table.prune(owner, listed_at, |slot| slots.contains(&slot), self.now)
                }
            };
            self.maps.write(&change, &self.table, self.now);
            assert_eq!(self.lost(), 0, "pruning loses a session");
            assert_eq!(self.table.dropped(), dropped, "pruning is no overflow");
        }
    }

    fn assert_heeded(&self, news: &News) {
        let shift = self.table.size().bits() - news.size.bits();
        for slot in 0..self.table.size().slots() as u32 {
            let left = self.table.earlier(slot).find(|earlier| earlier.owner == news.owner).map(|earlier| earlier.left);
            let said = news.slots.iter().find(|(parent, _)| *parent == slot >> shift).map(|(_, epoch)| *epoch);
            assert!(
                left.is_none() || left != said || self.limits.lists < u16::MAX,
                "slot {slot} has {left:?} after {said:?}"
            );
        }
    }

    fn assert_sound(&self) {
        let limits = self.limits;
        for slot in 0..self.table.size().slots() as u32 {
            let owner = Position(self.table.slot(slot).owner);
            let list = self.table.history(slot);
            let owners: BTreeSet<_> = list.owners().collect();
            assert!(owners.len() <= limits.owners && owners.len() == usize::from(list.count), "{list:?}");
            assert!(!owners.contains(&owner), "{owner:?} owns slot {slot} and stands in its history");
            assert!(owners.iter().all(|owner| self.positions.contains(*owner)), "a deleted backend: {list:?}");
        }
        assert!(self.table.lists_end() <= limits.lists);
        let moved = self.table.slots().filter(|slot| slot.history != 0).count();
        assert_eq!(self.table.moved(), moved);
        let distinct: HashSet<_> = self.table.lists().map(|(_, list)| list).collect();
        assert_eq!(distinct.len(), self.table.lists().count(), "equal lists are one");
        let in_use: BTreeSet<_> = self.table.slots().map(|slot| slot.history).filter(|&id| id != 0).collect();
        assert!(self.table.lists().map(|(place, _)| place + 1).eq(in_use), "lists are those that slots refer to");
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(162),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(1000))]

    /// One slot that three backends hand to each other; news are taken and used in any order, once, twice or never.
    #[test]
    fn news_in_any_order_drop_no_owner_with_a_connection(
        steps in prop::collection::vec((0_u8..5, 0_u16..3, any::<prop::sample::Index>(), 0_u64..1500), 1..60),
    ) {
        let mut slot = Slot0::new(LIMITS);
        let mut connected = [false; 3];
        let (mut now, mut kept) = (0, Vec::new());
        slot.take(&Owner(0, A));
        for (step, backend, which, pause) in steps {
            now += pause;
            match step {
                0 => slot.take(&Owner(now, backend)),
                1 => connected[usize::from(slot.owner.0)] = true,
                2 => connected[usize::from(backend)] = false,
                3 => kept.push(slot.table.news(Position(backend), ms(now), |_| connected[usize::from(backend)])),
                _ if kept.is_empty() => {}
                _ => drop(slot.table.apply(&kept[which.index(kept.len())], ms(now))),
            }
            let history = slot.history();
            for backend in (0..3).filter(|backend| connected[usize::from(*backend)] && slot.owner.0 != *backend) {
                prop_assert!(history.contains(&backend), "{backend} is connected, history {history:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn sessions_outlive_changes_or_an_overflow_is_counted(
        ops in prop::collection::vec(op(), 1..120),
        lists in prop_oneof![Just(u16::MAX), 1_u16..400],
        owners in prop_oneof![3 => Just(OWNERS_MAX), 1 => 0_usize..OWNERS_MAX],
    ) {
        let mut world = World::new(Limits { lists, owners });
        for op in &ops {
            world.take(op);
            world.assert_sound();
        }
    }
}
