//! Frames to virtual routers' MACs (RFC 9568, 7.3): whoever is active takes them as if they were to its own.

use crate::{
    headers::{self, ETHERNET},
    holder::VirtualMacKey,
    neighbor::{Holders, mac_words},
    packet::{Frame, View},
};

/// First octets of virtual MACs, and of others that IANA gives out (RFC 9542).
const PREFIX: u32 = u32::from_ne_bytes([0, 0, 0x5e, 0]);
/// The octet behind them, of IPv4's and of IPv6's.
const FAMILIES: [u8; 2] = [1, 2];

/// Whether a frame may be to a virtual MAC, and [`admit`] is to decide. All frames pay for this.
#[inline(always)]
pub fn may_be_virtual<F: Frame>(frame: &F) -> bool {
    frame.at::<ETHERNET>(0).is_some_and(|ethernet| ethernet.get::<0, u32>() == PREFIX)
}

/// Whether a frame is to be looked at. One to a virtual MAC that this node takes is given the interface's own: the kernel takes
/// no other, and all else need not know the difference.
#[inline(always)]
pub fn admit<F: Frame, T: Holders>(frame: &F, tables: &T) -> bool {
    let Some(ethernet) = frame.at::<ETHERNET>(0) else { return true };
    let (family, vrid) = (ethernet.get::<4, u8>(), ethernet.get::<5, u8>());
    if !FAMILIES.contains(&family) {
        return true;
    }
    let Some(vlan) = headers::kind(frame).and_then(|(_, l3)| headers::vlan(frame, l3)) else { return true };
    let key = VirtualMacKey { interface: tables.ingress(), vlan, family, vrid };
    let Some(found) = tables.virtual_mac(&key) else { return true };
    // RFC 9568, 6.4.2: a backup discards what is sent to it; 6.4.3: an active router takes it.
    if !found.is_taken(tables.boot_time()) {
        return false;
    }
    let Some(ethernet) = frame.at::<ETHERNET>(0) else { return true };
    let (high, low) = mac_words(found.own);
    ethernet.put::<0, u32>(high);
    ethernet.put::<4, u16>(low);
    true
}
