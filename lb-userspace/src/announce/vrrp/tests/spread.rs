//! The spread is the same everywhere, even, and moves no more than it must.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use proptest::prelude::*;

use super::vrid;
use crate::announce::vrrp::{
    Vrid,
    spread::{self, Eligibility},
};

fn vip(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + number).into()
}

fn vrids(numbers: &BTreeSet<u16>) -> Vec<Vrid> {
    numbers.iter().copied().map(vrid).collect()
}

#[test]
fn priorities_by_rank_are_far_apart_for_twelve_nodes_and_never_those_of_the_owner_or_the_partly_eligible() {
    let of = |rank, eligibility| spread::priority(rank, eligibility).map(|priority| priority.get());
    let full: Vec<u8> = (0..12).filter_map(|rank| of(rank, Eligibility::Full)).collect();
    assert_eq!(full, [254, 244, 234, 224, 214, 204, 194, 184, 174, 164, 154, 144]);
    assert_eq!((of(12, Eligibility::Full), of(13, Eligibility::Full)), (Some(143), Some(142)));
    assert_eq!((of(25, Eligibility::Full), of(26, Eligibility::Full)), (Some(130), Some(129)));
    for rank in [27, 1000, 65_535, 65_536, usize::MAX] {
        assert_eq!(of(rank, Eligibility::Full), Some(129), "rank {rank}");
    }
    for rank in 0..100 {
        let (full, partial) = (of(rank, Eligibility::Full), of(rank, Eligibility::Partial));
        assert_eq!(partial.map(|partial| partial + 128), full);
        assert!(partial >= Some(1) && partial < of(1000, Eligibility::Full), "below the least wholly eligible");
        assert_eq!(of(rank, Eligibility::None), None);
    }
}

#[test]
fn vips_are_spread_over_vrids_and_vrids_over_nodes() {
    let vrids = vrids(&(50..66).collect());
    let mut carried: BTreeMap<Vrid, u32> = BTreeMap::new();
    for number in 0..16_000 {
        *carried.entry(spread::vrid(vip(number), &vrids).expect("a VRID")).or_default() += 1;
    }
    let (least, most) = (carried.values().min(), carried.values().max());
    assert!(carried.len() == 16 && least > Some(&850) && most < Some(&1150), "{carried:?}");
    let all: Vec<Vrid> = (1..=255).map(vrid).collect();
    let nodes = ["node-1", "node-2", "node-3", "node-4", "node-5"];
    for node in nodes {
        let firsts = all.iter().filter(|vrid| spread::rank(node, **vrid, &nodes) == Some(0)).count();
        assert!((35..70).contains(&firsts), "{node} is first for {firsts} of 255");
    }
}

#[test]
fn the_hash_is_what_it_was() {
    // Nodes of different releases must agree.
    let vrids = vrids(&(1..=8).collect());
    let chosen: Vec<u8> = (0..8).filter_map(|number| spread::vrid(vip(number), &vrids)).map(Vrid::get).collect();
    assert_eq!(chosen, CHOSEN);
    let nodes = ["a", "b", "c"];
    let ranks: Vec<_> = nodes.iter().filter_map(|node| spread::rank(node, vrid(9), &nodes)).collect();
    assert_eq!(ranks, RANKS);
}

/// Computed by another program.
const CHOSEN: [u8; 8] = [4, 3, 8, 4, 5, 8, 5, 4];
const RANKS: [usize; 3] = [0, 1, 2];

#[test]
fn nothing_is_chosen_from_nothing() {
    assert_eq!(spread::vrid(vip(1), &[]), None);
    assert_eq!(spread::rank("a", vrid(1), &[]), None);
    assert_eq!(spread::rank("a", vrid(1), &["b"]), None);
}

proptest! {
    #[test]
    fn the_order_of_the_inputs_and_doubles_change_nothing(
        names in prop::collection::btree_set("[a-z]{1,8}", 1..20),
        numbers in prop::collection::btree_set(1..=255u16, 1..20),
        number: u32,
    ) {
        let sorted: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut turned: Vec<&str> = sorted.iter().rev().copied().collect();
        turned.push(sorted[0]);
        let ranks: BTreeSet<_> = sorted.iter().map(|name| spread::rank(name, vrid(9), &sorted)).collect();
        prop_assert_eq!(ranks, (0..sorted.len()).map(Some).collect());
        for name in &sorted {
            prop_assert_eq!(spread::rank(name, vrid(9), &sorted), spread::rank(name, vrid(9), &turned));
        }
        let sorted = vrids(&numbers);
        let turned: Vec<Vrid> = sorted.iter().rev().copied().collect();
        let vip = IpAddr::V4(Ipv4Addr::from(number));
        prop_assert_eq!(spread::vrid(vip, &sorted), spread::vrid(vip, &turned));
    }

    #[test]
    fn what_goes_takes_along_only_what_it_had(
        names in prop::collection::btree_set("[a-z]{1,8}", 2..20),
        numbers in prop::collection::btree_set(1..=255u16, 2..20),
        gone: prop::sample::Index,
    ) {
        let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
        let node = *gone.get(&nodes);
        let rest: Vec<&str> = nodes.iter().copied().filter(|name| *name != node).collect();
        let first = |nodes: &[&str], vrid| {
            nodes.iter().find(|name| spread::rank(name, vrid, nodes) == Some(0)).map(|name| (*name).to_owned())
        };
        for vrid in (1..=255).map(vrid) {
            let before = first(&nodes, vrid);
            if before.as_deref() != Some(node) {
                prop_assert_eq!(before, first(&rest, vrid));
            }
        }
        let vrids = vrids(&numbers);
        let vrid = *gone.get(&vrids);
        let rest: Vec<Vrid> = vrids.iter().copied().filter(|other| *other != vrid).collect();
        for vip in (0..200).map(vip) {
            let before = spread::vrid(vip, &vrids);
            if before != Some(vrid) {
                prop_assert_eq!(before, spread::vrid(vip, &rest));
            }
        }
    }
}
