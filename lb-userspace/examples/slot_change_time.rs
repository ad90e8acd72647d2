//! How long it takes from a new Maglev table to what must be written, with one backend added to 1,000 in 131,072 slots:
//! `cargo run --release -p lb-userspace --example slot_change_time`.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use lb_userspace::plan::{
    history::{Identity, Limits, OWNERS_MAX, Position, Positions, SETTLE, SlotTable, by_position},
    maglev::{Member, TableSize, owners, table_size},
};

/// The least time counts, because others only ever add to it.
const ROUNDS: usize = 20;
const BACKENDS: u32 = 1000;
/// Backends that are replaced by others before, and nothing is pruned.
const CHANGES_BEFORE: u32 = 100;

fn main() {
    let mut positions = Positions::default();
    let mut table = SlotTable::new(TableSize::MIN, Limits { lists: u16::MAX, owners: OWNERS_MAX });
    let size = table_size((0..BACKENDS).map(|_| 1));
    table.change(&column(&mut positions, 0..BACKENDS, 0, size), |_| true, Duration::ZERO);
    measure("all slots stable", &table, &positions);
    for change in 1..=CHANGES_BEFORE {
        // Each drains and another one comes: nobody is deleted, so histories grow.
        let now = Duration::from_secs(u64::from(change));
        table.change(&column(&mut positions, 0..BACKENDS + change, change, size), |_| true, now);
        table.release_before(now - SETTLE);
    }
    measure("after 100 changes without pruning", &table, &positions);
}

fn measure(what: &str, table: &SlotTable, positions: &Positions) {
    let now = Duration::from_secs(1000);
    let count = positions.end() as u32;
    let mut positions = positions.clone();
    let column = column(&mut positions, 0..count + 1, count - BACKENDS, table.size());
    let change = table.clone().change(&column, |position| positions.contains(position), now);
    println!(
        "{what}: {} slots, {} moved, {} lists; a change writes {} slots and {} lists",
        table.size().slots(),
        table.moved(),
        table.lists().count(),
        change.slots.len(),
        change.lists.len()
    );
    let best = |mut work: Box<dyn FnMut(&mut SlotTable) + '_>| {
        let times = (0..ROUNDS).map(|_| {
            let mut table = table.clone();
            let start = Instant::now();
            work(&mut table);
            start.elapsed()
        });
        times.min().unwrap_or_default()
    };
    let added = best(Box::new(|table| {
        black_box(table.change(&column, |position| positions.contains(position), now));
    }));
    let pruned = best(Box::new(|table| {
        black_box(table.prune(Position(0), now, |slot| slot % 2 == 0, now));
    }));
    let cloned = best(Box::new(|table| {
        black_box(table.clone());
    }));
    let larger: Vec<Position> = column.iter().flat_map(|&owner| [owner; 4]).collect();
    let grown = best(Box::new(|table| {
        black_box(table.change(&larger, |position| positions.contains(position), now));
    }));
    println!("  one backend added {added:?}, one pruned {pruned:?}, cloned {cloned:?}, grown by four {grown:?}");
}

/// Of backends with these numbers, of which the first `out` drain.
fn column(positions: &mut Positions, numbers: std::ops::Range<u32>, out: u32, size: TableSize) -> Vec<Position> {
    let identity = |n: u32| -> Identity { (IpAddr::V4(Ipv4Addr::from_bits(0x0af4_0000 + n)), 179) };
    let identities: Vec<_> = numbers.clone().map(identity).collect();
    let members: Vec<_> = numbers.map(|n| Member { identity: identity(n), weight: u16::from(n >= out) }).collect();
    let positions = positions.update(&identities, Duration::ZERO).expect("there are fewer than 65,535");
    by_position(&owners(&members, size), &positions)
}
