//! Who holds VIPs, in memory.

use lb_common::{
    address::Address,
    holder::{ALWAYS, Holder, HolderKey, VirtualMac, VirtualMacKey, holder_flags},
    neighbor::Holders,
};

use super::{
    World,
    content::{VIPS, address},
};

/// The interface that frames of a test run come in by: loopback.
pub const INTERFACE: u32 = 1;
/// A VLAN on which VIPs are held with [`VLAN_MAC`].
pub const VLAN_ID: u16 = 7;
/// What untagged questions are answered.
pub const MAC: [u8; 6] = [0x02, 0x0d, 0, 0, 0, 0x10];
/// The MAC of a virtual router, 7 of IPv4.
pub const VLAN_MAC: [u8; 6] = [0, 0, 0x5e, 0, 1, 7];
/// The MACs of virtual routers that this node knows of, in the order of [`virtual_macs`].
pub const VIRTUAL_MACS: [[u8; 6]; 5] =
    [VLAN_MAC, [0, 0, 0x5e, 0, 2, 7], [0, 0, 0x5e, 0, 1, 8], [0, 0, 0x5e, 0, 2, 8], [0, 0, 0x5e, 0, 1, 9]];
/// MACs that look like these, and are no virtual router's that this node knows of.
pub const OTHER_MACS: [[u8; 6]; 4] =
    [[0, 0, 0x5e, 0, 1, 10], [0, 0, 0x5e, 0, 3, 7], [0, 0, 0x5e, 0, 0x52, 0x13], [0, 0, 0x5e, 1, 1, 7]];
/// The link-local VIP of virtual router 7.
pub const LINK_LOCAL: &str = "fe80::5e:7";

/// Nanoseconds since the host has booted.
const NOW: u64 = 1 << 40;

/// What the agent would have written: of each family's three VIPs the first is held, the second was never, the third is no
/// more; on a VLAN the first is held by a virtual router, and in IPv6 a link-local one.
pub fn content() -> Vec<(HolderKey, Holder)> {
    let key = |text: &str, vlan| HolderKey { address: address(text), interface: INTERFACE, vlan, pad: 0 };
    let mut holders = Vec::new();
    for vips in VIPS {
        for (vip, until) in vips.into_iter().zip([ALWAYS, 0, 1]) {
            holders.push((key(vip, 0), Holder { until, mac: MAC, flags: 0 }));
        }
        let router = Holder { until: ALWAYS, mac: VLAN_MAC, flags: holder_flags::ROUTER };
        holders.push((key(vips[0], VLAN_ID), router));
    }
    let router = Holder { until: ALWAYS, mac: MAC, flags: holder_flags::ROUTER };
    holders.push((key(LINK_LOCAL, 0), router));
    holders
}

/// On the untagged segment this node is active for virtual router 7 in both families, for 8 in IPv6 alone, and for 9 no more. On
/// a VLAN it is active for 8.
pub fn virtual_macs() -> Vec<(VirtualMacKey, VirtualMac)> {
    let of = |[.., family, vrid]: [u8; 6], vlan, until| {
        (VirtualMacKey { interface: INTERFACE, vlan, family, vrid }, VirtualMac { until, own: MAC, pad: 0 })
    };
    let untagged = VIRTUAL_MACS.into_iter().zip([ALWAYS, ALWAYS, 0, ALWAYS, 1]);
    untagged.map(|(mac, until)| of(mac, 0, until)).chain([of(VIRTUAL_MACS[2], VLAN_ID, ALWAYS)]).collect()
}

/// The group that solicitations for an address go to (RFC 4291, 2.7.1).
pub fn solicited_node(target: Address) -> Address {
    let mut bytes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    bytes[13..].copy_from_slice(&target.bytes[13..]);
    Address { bytes }
}

impl Holders for World {
    fn holder(&self, key: &HolderKey) -> Option<Holder> {
        self.content.holders.iter().find(|(known, _)| known == key).map(|(_, holder)| *holder)
    }

    fn virtual_mac(&self, key: &VirtualMacKey) -> Option<VirtualMac> {
        self.content.virtual_macs.iter().find(|(known, _)| known == key).map(|(_, mac)| *mac)
    }

    fn note_conflict(&self, key: &HolderKey, mac: [u8; 6]) {
        let mut conflicts = self.conflicts.borrow_mut();
        let conflict = conflicts.entry(*key).or_default();
        *conflict = (conflict.0 + 1, mac);
    }

    fn ingress(&self) -> u32 {
        INTERFACE
    }

    fn boot_time(&self) -> u64 {
        NOW
    }
}
