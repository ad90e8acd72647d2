use std::collections::{BTreeSet, HashMap};

use super::*;

mod properties;

const A: u16 = 0;
const B: u16 = 1;
const C: u16 = 2;

/// What happens to slot 0, at a time in milliseconds. All other slots belong to nobody.
enum Step {
    /// The slot gets this owner; the table has so many slots from then on.
    Owner(u64, u16),
    Nobody(u64),
    /// The backend is deleted; who owned the slot before still does, if it is another.
    Delete(u64, u16),
    Grow(u64),
    /// The owner's sockets were listed at the second time, with or without a connection of the slot.
    Listed {
        now: u64,
        owner: u16,
        listed_at: u64,
        connected: bool,
    },
    /// As `Listed` without connections, but what it says is kept back.
    NewsKept {
        owner: u16,
        listed_at: u64,
    },
    /// What was kept back arrives.
    NewsCome(u64),
}
use Step::*;

const fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}

/// One table and what happened to its slot 0.
struct Slot0 {
    table: SlotTable,
    owner: Position,
    slots: usize,
    deleted: BTreeSet<u16>,
    kept: Vec<News>,
}

impl Slot0 {
    fn new(limits: Limits) -> Self {
        let table = SlotTable::new(TableSize::MIN, limits);
        Self { table, owner: Position::NONE, slots: 128, deleted: BTreeSet::new(), kept: Vec::new() }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Owner(now, owner) => {
                self.owner = Position(owner);
                self.change(now);
            }
            Nobody(now) => {
                self.owner = Position::NONE;
                self.change(now);
            }
            Delete(now, owner) => {
                self.deleted.insert(owner);
                self.change(now);
            }
            Grow(now) => {
                self.slots *= 4;
                self.change(now);
            }
            Listed { now, owner, listed_at, connected } => {
                self.table.prune(Position(owner), ms(listed_at), |_| connected, ms(now));
            }
            NewsKept { owner, listed_at } => {
                self.kept.push(self.table.news(Position(owner), ms(listed_at), |_| false));
            }
            NewsCome(now) => {
                for news in self.kept.drain(..) {
                    self.table.apply(&news, ms(now));
                }
            }
        }
    }

    fn change(&mut self, now: u64) -> Change {
        let mut owners = vec![Position::NONE; self.slots];
        // What becomes of the slot as it was in the smallest table.
        owners[..self.slots / 128].fill(self.owner);
        self.table.change(&owners, |position| !self.deleted.contains(&position.0), ms(now))
    }

    fn history(&self) -> Vec<u16> {
        self.table.history(0).owners().map(|owner| owner.0).collect()
    }
}

const LIMITS: Limits = Limits { lists: u16::MAX, owners: OWNERS_MAX };

#[test]
fn a_slot_remembers_its_earlier_owners() {
    fn check(what: &str, steps: &[Step], history: &[u16]) {
        let mut slot = Slot0::new(LIMITS);
        for step in steps {
            slot.take(step);
        }
        assert_eq!(slot.history(), history, "{what}");
        let children: Vec<Slot> = slot.table.slots().take(slot.slots / 128).collect();
        assert!(children.iter().all(|child| *child == children[0] && child.owner == slot.owner.0), "{what}");
        assert_eq!(slot.table.dropped(), Dropped::default(), "{what}");
    }
    const fn listed(now: u64, owner: u16, listed_at: u64) -> Step {
        Listed { now, owner, listed_at, connected: false }
    }
    check("the first owner displaces nobody", &[Owner(0, A)], &[]);
    check("the same owner again is no move", &[Owner(0, A), Owner(1, A)], &[]);
    check("the displaced last stands first", &[Owner(0, A), Owner(1, B), Owner(2, C)], &[B, A]);
    check("who comes back is no earlier owner", &[Owner(0, A), Owner(1, B), Owner(2, A)], &[B]);
    check("who is displaced again stands first again", &[Owner(0, A), Owner(1, B), Owner(2, A), Owner(3, C)], &[A, B]);
    check("without any owner, the last one is an earlier one", &[Owner(0, A), Nobody(1)], &[A]);
    check("nobody is no earlier owner", &[Owner(0, A), Nobody(1), Owner(2, B)], &[A]);
    check("a deleted owner is no earlier owner", &[Owner(0, A), Delete(1, A), Owner(1, B)], &[]);
    check("a deleted earlier owner leaves", &[Owner(0, A), Owner(1, B), Owner(2, C), Delete(3, A)], &[B]);
    check("children inherit", &[Owner(0, A), Owner(1, B), Grow(2)], &[A]);
    check("and go on", &[Owner(0, A), Owner(1, B), Grow(2), Owner(3, C)], &[B, A]);
    check("a listing a second after prunes", &[Owner(0, A), Owner(10, B), listed(1011, A, 1011)], &[]);
    check("no earlier one does", &[Owner(0, A), Owner(10, B), listed(1011, A, 1010)], &[A]);
    check("one from before the move neither", &[Owner(0, A), Owner(5000, B), listed(9000, A, 4000)], &[A]);
    check(
        "a connection keeps its owner",
        &[Owner(0, A), Owner(1, B), Listed { now: 9000, owner: A, listed_at: 9000, connected: true }],
        &[A],
    );
    check("others stay", &[Owner(0, A), Owner(1, B), Owner(2, C), listed(9000, A, 9000)], &[B]);
    let late = [
        Owner(0, A),
        Owner(1, B),
        NewsKept { owner: A, listed_at: 2000 },
        Owner(3000, A),
        Owner(4000, B),
        NewsCome(9000),
    ];
    check("late news say nothing about a later move", &late, &[A]);
    let twice = [Owner(0, A), Owner(1, B), Owner(1, A), Owner(1, B), listed(9, A, 1001)];
    check("the last of several moves at one time counts", &twice, &[A]);
    let older = [Owner(0, A), Owner(1, B), NewsKept { owner: A, listed_at: 2000 }, Owner(3000, C), NewsCome(9000)];
    check("late news hold for the move that they are about", &older, &[B]);
    let grown = [Owner(0, A), Owner(1, B), NewsKept { owner: A, listed_at: 2000 }, Grow(3000), NewsCome(9000)];
    check("news of a smaller table hold for the children", &grown, &[]);
    let moved_child = [
        Owner(0, A),
        Owner(1, B),
        NewsKept { owner: A, listed_at: 2000 },
        Grow(3000),
        Owner(4000, A),
        Owner(4000, C),
        NewsCome(9000),
    ];
    check("but not for one that moved since", &moved_child, &[A, B]);
    let repeated = [
        Owner(0, A),
        Owner(1, B),
        NewsKept { owner: A, listed_at: 2000 },
        NewsKept { owner: A, listed_at: 3000 },
        NewsCome(9000),
    ];
    check("news may come twice", &repeated, &[]);
}

#[test]
fn news_of_a_larger_table_are_left_to_the_next_listing() {
    let mut larger = Slot0::new(LIMITS);
    let mut smaller = Slot0::new(LIMITS);
    for slot in [&mut larger, &mut smaller] {
        slot.take(&Owner(0, A));
        slot.take(&Owner(1, B));
    }
    larger.take(&Grow(2));
    let news = larger.table.news(Position(A), ms(9000), |_| false);
    assert_eq!(news.slots.len(), 4);
    assert_eq!(smaller.table.apply(&news, ms(9000)), Change::default());
    assert_eq!(smaller.history(), [A]);
}

#[test]
fn the_oldest_goes_when_there_are_too_many() {
    let mut slot = Slot0::new(LIMITS);
    for owner in 0..9 {
        slot.take(&Owner(u64::from(owner), owner));
    }
    assert_eq!(slot.history(), [7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(slot.table.dropped(), Dropped { overflows: 1, ..Dropped::default() });
}

#[test]
fn who_had_no_connection_when_last_listed_goes_first() {
    fn check(what: &str, listings: &[Step], history: &[u16], dropped: Dropped) {
        let mut slot = Slot0::new(LIMITS);
        for owner in 0..8 {
            slot.take(&Owner(100 + u64::from(owner), owner));
        }
        for listing in listings {
            slot.take(listing);
        }
        slot.take(&Owner(1000, 8));
        assert_eq!(slot.history(), history, "{what}");
        assert_eq!(slot.table.dropped(), dropped, "{what}");
    }
    const fn listed(owner: u16, listed_at: u64, connected: bool) -> Step {
        Listed { now: listed_at, owner, listed_at, connected }
    }
    let living = Dropped { overflows: 1, ..Dropped::default() };
    let silent = Dropped { silent_overflows: 1, ..Dropped::default() };
    check("nobody was listed", &[], &[7, 6, 5, 4, 3, 2, 1], living);
    check("one had none", &[listed(4, 500, false)], &[7, 6, 5, 3, 2, 1, 0], silent);
    check("the oldest of two", &[listed(2, 500, false), listed(4, 500, false)], &[7, 6, 5, 4, 3, 1, 0], silent);
    check("one had some", &[listed(4, 500, true)], &[7, 6, 5, 4, 3, 2, 1], living);
    check("it came since", &[listed(4, 500, false), listed(4, 600, true)], &[7, 6, 5, 4, 3, 2, 1], living);
    check("listed before it was displaced", &[listed(4, 104, false)], &[7, 6, 5, 4, 3, 2, 1], living);
}

#[test]
fn without_room_for_a_list_histories_are_shorter() {
    // Seven of eight places for lists of several owners, one for those of a single one.
    let mut table = SlotTable::new(TableSize::MIN, Limits { lists: 8, owners: OWNERS_MAX });
    let column = |round: u16| (0..128).map(|slot| Position((slot % 5 + round) % 5)).collect::<Vec<_>>();
    for round in 0..2 {
        table.change(&column(round), |_| true, ms(u64::from(round)));
    }
    assert_eq!(table.lists().count(), 5, "one list for each owner");
    table.change(&column(2), |_| true, ms(2));
    assert_eq!((table.lists().count(), table.lists_end()), (5, 8), "two of one owner, three of two; three rest");
    assert_eq!(table.dropped().list_overflows, 25 + 25, "slots 3, 8, … and 4, 9, … of 128");
    for slot in 0..128 {
        let displaced = Position((slot % 5 + 1) as u16 % 5);
        assert_eq!(table.history(slot).owners().next(), Some(displaced), "slot {slot} keeps the last one");
    }
}

#[test]
fn a_slot_whose_list_cannot_be_shortened_keeps_it() {
    let mut slot = Slot0::new(Limits { lists: 2, owners: OWNERS_MAX });
    let listed = |now| Listed { now, owner: A, listed_at: now, connected: false };
    for step in [Owner(0, A), Owner(1, B), Owner(2, C), listed(9000)] {
        slot.take(&step);
    }
    // The list of A alone rests in one place, that of both is in the other.
    assert_eq!(slot.history(), [B, A]);
    slot.table.release_before(ms(2));
    slot.take(&listed(9001));
    assert_eq!((slot.history(), slot.table.dropped()), (vec![B], Dropped::default()));
}

#[test]
fn a_list_at_rest_is_used_again() {
    let mut slot = Slot0::new(Limits { lists: 1, owners: OWNERS_MAX });
    for step in [Owner(0, A), Owner(1, B), Owner(2, A)] {
        slot.take(&step);
    }
    assert_eq!((slot.history(), slot.table.dropped().list_overflows), (vec![], 1), "no place for that of B");
    slot.take(&Owner(3, C));
    assert_eq!(slot.history(), [A]);
    slot.table.release_before(ms(9));
    assert_eq!(slot.history(), [A], "what is in use is not freed");
}

#[test]
fn only_what_changed_is_written() {
    let mut slot = Slot0::new(LIMITS);
    slot.take(&Owner(0, A));
    slot.owner = Position(B);
    let change = slot.change(1);
    let list = List::new([Position(A)].into_iter());
    assert_eq!(change.lists, [(0, list)]);
    assert_eq!(change.slots, [(0, Slot { owner: B, history: 1 })]);
    assert_eq!((change.moved, change.grown), (1, false));
    assert_eq!(slot.change(2), Change::default(), "again is nothing");
    slot.slots = 512;
    assert_eq!(slot.change(3), Change { grown: true, ..Change::default() }, "children are as their parents");
    let pruned = slot.table.prune(Position(A), ms(2000), |child| child == 2, ms(2000));
    let stable = Slot { owner: B, history: 0 };
    assert_eq!(pruned.slots, [(0, stable), (1, stable), (3, stable)]);
    assert_eq!(slot.table.lists().collect::<Vec<_>>(), [(0, list)]);
    assert_eq!(slot.table.moved(), 1);
}

#[test]
fn a_listing_older_than_the_remembered_changes_prunes_nothing() {
    let mut slot = Slot0::new(LIMITS);
    slot.take(&Owner(0, C));
    slot.take(&Owner(0, A));
    for change in 0..CHANGES_MAX as u64 {
        slot.take(&Owner(10_000 + change, if change % 2 == 0 { B } else { A }));
    }
    slot.take(&Listed { now: 20_000, owner: C, listed_at: 5000, connected: false });
    assert_eq!(slot.history(), [B, C]);
    slot.take(&Listed { now: 20_000, owner: C, listed_at: 20_000, connected: false });
    assert_eq!(slot.history(), [B]);
}

#[test]
#[should_panic(expected = "a table stays as it is or grows by fours")]
fn a_table_does_not_shrink() {
    let mut slot = Slot0::new(LIMITS);
    slot.take(&Grow(0));
    slot.slots = 128;
    slot.change(1);
}

#[test]
fn positions_are_kept_and_given_out_again_after_a_while() {
    let id = |n: u8| (std::net::IpAddr::from([10, 0, 0, n]), 179);
    let at = |positions: &[u16]| Ok(positions.iter().copied().map(Position).collect::<Vec<_>>());
    let mut positions = Positions::default();
    assert_eq!(positions.update(&[id(5), id(3), id(4)], ms(0)), at(&[0, 1, 2]));
    assert_eq!(positions.update(&[id(4), id(5)], ms(1)), at(&[2, 0]), "who stays keeps his");
    assert!(!positions.contains(Position(1)) && positions.contains(Position(2)));
    assert_eq!(positions.update(&[id(3), id(4), id(5)], ms(2)), at(&[3, 2, 0]), "who comes back is another");
    assert_eq!((positions.end(), positions.get(&id(3))), (4, Some(Position(3))));
    positions.release_before(ms(0), |_| false);
    assert_eq!(positions.update(&[id(3), id(4), id(5), id(6)], ms(3)), at(&[3, 2, 0, 4]), "still at rest");
    positions.release_before(ms(3), |position| position == Position(1));
    assert_eq!(positions.update(&[id(3), id(4), id(5), id(6), id(7)], ms(4)), at(&[3, 2, 0, 4, 5]), "in a history");
    positions.release_before(ms(3), |_| false);
    assert_eq!(positions.update(&[id(8), id(8)], ms(5)), at(&[1, 1]), "the lowest, once for each backend");
}

#[test]
fn more_backends_than_positions_are_refused_whole() {
    let ids =
        |count: u32, port| (0..count).map(|n| (std::net::Ipv4Addr::from_bits(n).into(), port)).collect::<Vec<_>>();
    let mut positions = Positions::default();
    assert_eq!(positions.update(&ids(65_536, 1), ms(0)), Err(PositionsFull));
    assert_eq!(positions.end(), 0);
    assert_eq!(positions.update(&ids(65_535, 1), ms(0)).map(|all| all[65_534]), Ok(Position(65_534)));
    assert_eq!(positions.update(&ids(1, 2), ms(0)), Err(PositionsFull), "those of removed ones rest");
    assert!(positions.contains(Position(65_534)), "nothing has changed");
}
