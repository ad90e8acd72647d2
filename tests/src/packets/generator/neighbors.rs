//! Questions and claims about who has an address.

use std::net::IpAddr;

use super::Generator;
use crate::{
    packets::{
        CLIENT_MAC, QINQ, ToIp as _, VLAN,
        neighbor::{Arp, Discovery},
    },
    world::{
        content::VIPS,
        holders::{self, LINK_LOCAL, VLAN_ID, VLAN_MAC},
    },
};

const MACS: [[u8; 6]; 5] = [CLIENT_MAC, CLIENT_MAC, holders::MAC, VLAN_MAC, [0x33, 0x33, 0, 0, 0, 1]];

impl Generator {
    /// ARP, or a message of Neighbor Discovery.
    pub(super) fn neighbor(&mut self) -> Vec<u8> {
        if self.random.one_in(2) { self.arp() } else { self.discovery() }
    }

    fn tags(&mut self) -> Vec<(u16, u16)> {
        let tci = self.random.pick(&[VLAN_ID, 0x6000 | VLAN_ID, 0, 0x8000, 8]);
        match self.random.below(8) {
            0..5 => Vec::new(),
            5 | 6 => vec![(VLAN, tci)],
            _ => vec![(QINQ, 3), (VLAN, tci)],
        }
    }

    fn arp(&mut self) -> Vec<u8> {
        let tags = self.tags();
        let random = &mut self.random;
        let mut arp = Arp::request(random.pick(&[VIPS[0][0], VIPS[0][0], VIPS[0][1], VIPS[0][2], "192.0.2.9"]));
        arp = arp.from(random.pick(&["192.0.2.7", "192.0.2.7", "0.0.0.0", VIPS[0][0], VIPS[0][1], VIPS[0][2]]));
        arp.tags = tags;
        arp.mac = random.pick(&MACS);
        arp.operation = random.pick(&[1, 1, 1, 1, 2, 2, 3, 0x100]);
        if random.one_in(10) {
            let at = random.below(6);
            arp.kinds[at] ^= 1 << random.below(8);
        }
        arp.frame()
    }

    fn discovery(&mut self) -> Vec<u8> {
        let tags = self.tags();
        let random = &mut self.random;
        let target = random.pick(&[
            VIPS[1][0],
            VIPS[1][0],
            VIPS[1][1],
            VIPS[1][2],
            LINK_LOCAL,
            "2001:db8:2::9",
            "ff02::1:ff00:1",
        ]);
        let mut message = Discovery::solicitation(target);
        let group = message.destination;
        message.destination =
            random.pick::<IpAddr>(&[group, group, group, target.to_ip(), "ff02::1".to_ip(), "2001:db8:2::9".to_ip()]);
        message.source = random.pick(&["2001:db8:2::7", "fe80::7", "::", VIPS[1][0], VIPS[1][1]]).to_ip();
        message.kind = random.pick(&[135, 135, 135, 136, 136, 134]);
        message.tags = tags;
        message.mac = random.pick(&MACS);
        let mac = [&[1, 1][..], &message.mac].concat();
        message.options = match random.below(10) {
            0..3 => Vec::new(),
            3..6 => mac,
            6 => [mac, vec![14, 1, 1, 2, 3, 4, 5, 6]].concat(),
            7 => [vec![14, 1, 1, 2, 3, 4, 5, 6], mac].concat(),
            8 => random.pick(&[&[1, 0, 0, 0, 0, 0, 0, 0][..], &[14, 2, 0, 0, 0, 0, 0, 0], &[9; 4]]).to_vec(),
            _ => [14, 1, 0, 0, 0, 0, 0, 0].repeat(random.pick(&[7, 8, 9])),
        };
        if random.one_in(10) {
            message.hops = random.pick(&[254, 64, 1]);
        }
        if random.one_in(12) {
            message.code = 1;
        }
        if random.one_in(12) {
            message.error = 1;
        }
        message.frame()
    }
}
