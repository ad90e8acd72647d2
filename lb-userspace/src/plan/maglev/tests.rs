use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, RngSeed},
};

use super::*;

type Identity = (IpAddr, u16);

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(162),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        // Neighbours, as a node's pods are.
        (0_u32..300).prop_map(|n| IpAddr::V4(Ipv4Addr::from_bits(0x0af4_0000 + n))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
    ]
}

/// Sets of at least `least` members that own something, and drained ones.
fn members(least: usize, weights: std::ops::RangeInclusive<u16>) -> impl Strategy<Value = Vec<Member>> {
    let some = prop::collection::btree_map((address(), 1_u16..4), weights, least..40);
    let drained = prop::collection::btree_set((address(), 4_u16..6), 0..3);
    (some, drained).prop_map(|(some, drained)| {
        let drained = drained.into_iter().map(|identity| Member { identity, weight: 0 });
        some.into_iter().map(|(identity, weight)| Member { identity, weight }).chain(drained).collect()
    })
}

fn weights() -> impl Strategy<Value = std::ops::RangeInclusive<u16>> {
    prop_oneof![Just(1..=1), Just(1..=3), Just(1..=10), Just(1..=1000)]
}

fn size_of(members: &[Member]) -> TableSize {
    table_size(members.iter().map(|member| member.weight))
}

fn identities(members: &[Member], size: TableSize) -> Vec<Identity> {
    owners(members, size).into_iter().map(|owner| members[usize::from(owner)].identity).collect()
}

/// Each member's slots are its exact share, rounded up or down; within 1 % where the size allows that.
fn assert_shares(members: &[Member], size: TableSize) {
    let table = owners(members, size);
    assert_eq!(table.len(), size.slots());
    let mut counts = vec![0_u64; members.len()];
    for owner in table {
        counts[usize::from(owner)] += 1;
    }
    let slots = size.slots() as u64;
    let sum: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    let lightest = members.iter().map(|member| u64::from(member.weight)).filter(|&weight| weight > 0).min();
    let fine = slots * lightest.expect("someone has a weight") >= 100 * sum;
    for (member, count) in members.iter().zip(counts) {
        // Both sides times the sum of weights: exact.
        let (share, exact) = (count * sum, slots * u64::from(member.weight));
        assert!(share.abs_diff(exact) < sum, "{member:?} has {count} of {slots} slots");
        assert!(!fine || share.abs_diff(exact) * 100 <= exact, "{member:?} has {count}: more than 1 % off");
    }
}

/// Of the slots that are not the removed member's, the percentage that changes its owner.
fn disruption_percent(members: &[Member], table: &[u16], size: TableSize, removed: usize) -> f64 {
    let mut rest = members.to_vec();
    rest.remove(removed);
    let after = owners(&rest, size);
    let (mut others, mut moved) = (0_u32, 0_u32);
    for (&before, &after) in table.iter().zip(&after).filter(|&(&before, _)| usize::from(before) != removed) {
        others += 1;
        let after = usize::from(after);
        moved += u32::from(usize::from(before) != after + usize::from(after >= removed));
    }
    f64::from(moved) * 100. / f64::from(others.max(1))
}

proptest! {
    #![proptest_config(config(96))]

    #[test]
    fn shares_are_within_a_slot_of_the_weights(
        members in weights().prop_flat_map(|weights| members(1, weights)),
        other_size in 0..7_u8,
    ) {
        assert_shares(&members, size_of(&members));
        assert_shares(&members, TableSize { bits: 7 + 2 * other_size });
    }

    #[test]
    fn the_table_is_a_function_of_the_set(
        (members, shuffled) in weights().prop_flat_map(|weights| members(1, weights))
            .prop_flat_map(|members| (Just(members.clone()), Just(members).prop_shuffle())),
    ) {
        let size = size_of(&members);
        prop_assert_eq!(identities(&members, size), identities(&shuffled, size));
        let awake: Vec<_> = members.iter().copied().filter(|member| member.weight > 0).collect();
        prop_assert_eq!(identities(&members, size), identities(&awake, size), "drained members leave no trace");
    }

    #[test]
    fn removing_a_member_moves_at_most_four_percent_of_the_others_slots(
        members in weights().prop_flat_map(|weights| members(2, weights)),
        removed in any::<prop::sample::Index>(),
    ) {
        let size = size_of(&members);
        let removed = removed.index(members.len());
        let percent = disruption_percent(&members, &owners(&members, size), size, removed);
        prop_assert!(percent <= 4., "{percent:.2} % of {} slots", size.slots());
    }

    #[test]
    fn the_matching_is_that_of_taking_turns(
        members in weights().prop_flat_map(|weights| members(1, weights)),
    ) {
        let size = TableSize { bits: 9 };
        prop_assert_eq!(owners(&members, size), by_turns(&members, size));
    }

    #[test]
    fn a_walk_visits_every_slot_once(hash in any::<u64>(), bits in 0..7_u8) {
        let size = TableSize { bits: 7 + 2 * bits };
        let mut walk = Walk::new(hash, size);
        let slots: BTreeSet<_> = (0..size.slots()).map(|_| walk.step().1).collect();
        prop_assert_eq!(slots.len(), size.slots());
        prop_assert_eq!(slots.last(), Some(&(size.slots() - 1)));
    }
}

/// The definition, naively: all pairs in the order of their times, each slot to the first who comes and may.
fn by_turns(members: &[Member], size: TableSize) -> Vec<u16> {
    let claimants = claimants(members, size, CLUSTER_SEED);
    let times = unit_times(size);
    let mut turns = Vec::new();
    for (index, claimant) in claimants.iter().enumerate() {
        let mut walk = Walk::new(claimant.hash, size);
        turns.extend((0..size.slots()).map(|_| {
            let (visit, slot) = walk.step();
            (times[visit] / u32::from(claimant.weight), index, visit, slot)
        }));
    }
    turns.sort_unstable();
    let mut quotas: Vec<_> = claimants.iter().map(|claimant| claimant.quota).collect();
    let mut table = vec![NO_OWNER; size.slots()];
    for (_, index, _, slot) in turns {
        if table[slot] == NO_OWNER && quotas[index] > 0 {
            table[slot] = claimants[index].member;
            quotas[index] -= 1;
        }
    }
    table
}

fn pods(count: usize, first: u32, weight: impl Fn(usize) -> u16) -> Vec<Member> {
    let address = |n: usize| IpAddr::V4(Ipv4Addr::from_bits(0x0af4_0000 + first + n as u32));
    (0..count).map(|n| Member { identity: (address(n), 57_400), weight: weight(n) }).collect()
}

/// A value of its own for each backend of each set, the same in every run.
fn scatter(set: usize, n: usize, modulus: u64) -> u16 {
    (finalize((set << 32 | n) as u64 + 1) % modulus) as u16
}

/// Mean and greatest disruption over several sets of `count` members and several removals from each.
fn measure(count: usize, sets: usize, weight: impl Fn(usize, usize) -> u16) -> (usize, f64, f64) {
    let (mut slots, mut sum, mut most, mut removals) = (0, 0., 0_f64, 0);
    for set in 0..sets {
        let members = pods(count, (set * 1000) as u32, |n| weight(set, n));
        let size = size_of(&members);
        slots = slots.max(size.slots());
        let table = owners(&members, size);
        let lightest = (0..count).min_by_key(|&n| members[n].weight).unwrap_or(0);
        let heaviest = (0..count).max_by_key(|&n| members[n].weight).unwrap_or(0);
        for removed in BTreeSet::from([0, count / 2, count - 1, lightest, heaviest]) {
            let percent = disruption_percent(&members, &table, size, removed);
            sum += percent;
            most = most.max(percent);
            removals += 1;
        }
    }
    (slots, sum / f64::from(removals), most)
}

/// The table of docs/steering.md.
#[test]
fn maglev_figures() {
    /// From the number of the set and of the backend.
    type Weight = fn(usize, usize) -> u16;
    let kinds: [(&str, Weight); 4] = [
        ("equal", |_, _| 1),
        ("1 to 3", |set, n| 1 + scatter(set, n, 3)),
        ("1 to 10", |set, n| 1 + scatter(set, n, 10)),
        ("1, one 10", |_, n| if n == 0 { 10 } else { 1 }),
    ];
    println!(
        "| backends | weights | slots, at most | moved of the others' slots, mean | most |\n|---|---|---|---|---|"
    );
    for count in [2, 3, 4, 5, 6, 10, 20, 50, 100, 200, 1000] {
        for (name, weight) in kinds {
            let (slots, mean, most) = measure(count, (300 / count).clamp(1, 100), weight);
            println!("| {count} | {name} | {slots} | {mean:.2} % | {most:.2} % |");
            assert!(most <= 4., "{count} backends, weights {name}: {most:.2} %");
        }
    }
}

#[test]
fn every_number_of_equal_backends_stays_under_four_percent() {
    for count in 2..=200 {
        let members = pods(count, 0, |_| 1);
        let size = size_of(&members);
        let table = owners(&members, size);
        for removed in [0, count / 2] {
            let percent = disruption_percent(&members, &table, size, removed);
            assert!(percent <= 4., "removing {removed} of {count} moves {percent:.2} %");
        }
    }
}

/// A change of this is a change of every cluster's tables: all nodes must be upgraded at once, and sessions move.
#[test]
fn tables_do_not_change_between_versions() {
    let members = pods(5, 0, |n| n as u16);
    let table = owners(&members, TableSize::MIN);
    let digest = table.iter().fold(0, |hash, &owner| Random(hash ^ u64::from(owner)).next());
    assert_eq!(digest, 0x3150_0ff5_029e_1e3d, "{digest:#x}");
    assert_ne!(table, owners_seeded(&members, TableSize::MIN, 1), "the seed matters");
}

#[test]
fn without_weights_nobody_owns_anything() {
    assert_eq!(owners(&[], TableSize::MIN), [NO_OWNER; 128]);
    assert_eq!(owners(&pods(3, 0, |_| 0), TableSize::MIN), [NO_OWNER; 128]);
    assert_eq!(table_size([0, 0].into_iter()), TableSize::MIN);
}

#[test]
fn sizes_follow_the_weights() {
    fn check(weights: &[u16], slots: usize) {
        assert_eq!(table_size(weights.iter().copied()).slots(), slots, "{weights:?}");
    }
    check(&[], 128);
    check(&[7], 128);
    check(&[1, 1], 512);
    check(&[1, 0, 1], 512);
    check(&[1, 4], 512);
    check(&[1, 5], 2048);
    check(&[1, 1, 1], 2048);
    check(&[2; 20], 2048);
    check(&[2; 21], 8192);
    check(&[1, 1, 10], 8192);
    check(&[1; 1000], 131_072);
    check(&[1, u16::MAX, u16::MAX], 524_288);
}

#[test]
fn only_steps_of_four_are_sizes() {
    let sizes: Vec<_> = (0..1 << 20).filter_map(TableSize::from_slots).map(TableSize::slots).collect();
    assert_eq!(sizes, [128, 512, 2048, 8192, 32_768, 131_072, 524_288]);
}

#[test]
fn children_inherit_from_their_parent() {
    let parent = owners(&pods(5, 0, |_| 1), TableSize::MIN);
    let children = grow(&parent);
    assert_eq!(children.len(), 512);
    for hash in (0..=u32::MAX).step_by(0x10_0001) {
        assert_eq!(children[(hash >> 23) as usize], parent[(hash >> 25) as usize]);
    }
}

#[test]
fn times_follow_the_logarithm() {
    let size = TableSize { bits: 11 };
    let times = unit_times(size);
    assert!(times.is_sorted());
    for (visit, &time) in times.iter().enumerate() {
        let exact = -(1. - (visit as f64 + 0.5) / 2048.).ln();
        assert!((f64::from(time) / f64::from(1 << 27) - exact).abs() < 0.01, "visit {visit}");
    }
    assert_eq!(unit_times(TableSize::MAX).len(), 1 << 19);
}

#[test]
fn each_backend_has_a_quarter_of_each_quarter() {
    // Shares hold for parts of the hash's range too, roughly: no backend's slots lie together.
    let members = pods(4, 0, |_| 1);
    let table = owners(&members, TableSize { bits: 11 });
    for quarter in table.chunks(table.len() / 4) {
        let mut counts = BTreeMap::new();
        for owner in quarter {
            *counts.entry(owner).or_insert(0_usize) += 1;
        }
        for count in counts.values() {
            assert!(count.abs_diff(quarter.len() / 4) < quarter.len() / 10, "{counts:?}");
        }
    }
}
