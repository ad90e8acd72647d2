//! What is to be announced, decided anew for all VIPs after a change of one.

use std::{
    collections::BTreeSet,
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
};

use lb_userspace::{
    announce::{
        eligibility::{Facts, InterfaceFacts, VipFacts},
        wanted::wanted,
    },
    model::announce::{Announce, VrrpGroup},
};

use super::VIPS;
use crate::{
    measure::own_time,
    scale::{Figure, median},
};

const NODES: usize = 12;
const CHANGES: usize = 15;
/// What another change of the engine may take, too.
const MAX_MS: f64 = 20.0;

/// By virtual routers of this many identifiers.
fn announce(vrids: u8) -> Announce {
    let nodes: Vec<String> = (1..=NODES).map(|number| format!("node-{number}")).collect();
    let group = VrrpGroup::new("core", "eth0", 1..=vrids);
    Announce { node: nodes[0].clone(), nodes, vrrp: vec![group], ..Announce::default() }
}

fn facts() -> Facts {
    let vip = VipFacts { is_installed: true, has_backends: true, reachable: 1, ..VipFacts::default() };
    let address = |number| IpAddr::from(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + number));
    let addresses = ["192.0.2.1", "fe80::1"].map(|text| text.parse().expect("an address")).to_vec();
    let interface =
        InterfaceFacts { index: 2, is_running: true, attached: vec![2], addresses, ..InterfaceFacts::default() };
    Facts {
        vips: (0..VIPS).map(|number| (address(number), vip)).collect(),
        interfaces: [("eth0".to_owned(), interface)].into(),
        has_uplink: true,
        ..Facts::default()
    }
}

/// With few virtual routers, and with as many as there can be.
pub fn figures() -> Vec<Figure> {
    [16, 255].map(figure).into()
}

fn figure(vrids: u8) -> Figure {
    let (announce, mut facts) = (announce(vrids), facts());
    let vips: BTreeSet<IpAddr> = facts.vips.keys().copied().collect();
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let changed = facts.vips.values_mut().nth(change * 100).expect("one of many");
        changed.reachable ^= 1;
        let began = own_time();
        black_box(wanted(black_box(&announce), &vips, &facts));
        times.push(own_time() - began);
    }
    let name = format!("eligibility of 10,000 VIPs after one change, {vrids} VRIDs, {NODES} nodes");
    Figure::time(name, median(times), Some(MAX_MS))
}
