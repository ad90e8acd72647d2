//! Which VRID carries which VIP of a group, and with what priority each node competes for it: the same on every node,
//! without a word between them.
//!
//! Rendezvous hashing: the VRID (the node) whose mixed hash with the VIP (the VRID) is highest has it. What goes takes
//! along only what it had. The hash is FNV-1a of 64 bits over the bytes of both, each led by its length, and then the
//! finalizer of SplitMix64, because the high bits of FNV of short inputs are poor. Equal hashes are decided by the
//! names themselves.

use std::net::IpAddr;

use super::{Priority, Vrid};

/// Ranks that lie ten apart, so that no two skews are close: 254, 244, … 144.
const WIDE_RANKS: usize = 12;
/// The priority of rank 0.
const HIGHEST: u16 = 254;
/// The least priority of a node that is wholly eligible: one that is partly so has 128 less and is always below.
const LEAST: u16 = 129;
/// What is taken off where a node may hold only some of the VIPs.
pub const PARTIAL_PENALTY: u16 = 128;

/// How much of a VRID's VIPs, of those that have a backend at all, a node may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Eligibility {
    /// None: it is silent.
    None,
    /// Some.
    Partial,
    /// All.
    Full,
}

/// The VRID of a VIP. `None` without VRIDs.
#[must_use]
pub fn vrid(vip: IpAddr, vrids: &[Vrid]) -> Option<Vrid> {
    // A VRID is one octet, so all that is hashed before it is the same for each of them; and the comparison is by hand,
    // because that of pairs takes longer than the hash. Thousands of VIPs are spread over up to 255 whenever one changes.
    let before = Hash::NEW.part(&octets(vip)).length(1);
    let mut best = None;
    for vrid in vrids {
        let weight = before.octets(&[vrid.get()]).finish();
        best = match best {
            Some((most, of)) if weight < most || weight == most && *vrid < of => Some((most, of)),
            Some(_) | None => Some((weight, *vrid)),
        };
    }
    best.map(|(_, vrid)| vrid)
}

/// A node's place among those that may hold a VRID, 0 first. `None` where it is not one of `nodes`. A name that stands
/// there twice counts once.
#[must_use]
pub fn rank(node: &str, vrid: Vrid, nodes: &[&str]) -> Option<usize> {
    if !nodes.contains(&node) {
        return None;
    }
    let place = |name: &str| (weight(&[vrid.get()], name.as_bytes()), name.to_owned());
    let own = place(node);
    let before: std::collections::BTreeSet<&str> = nodes.iter().copied().filter(|other| place(other) > own).collect();
    Some(before.len())
}

/// What a node of this rank competes with; `None` is silence.
#[must_use]
pub fn priority(rank: usize, eligibility: Eligibility) -> Option<Priority> {
    let full = match u16::try_from(rank) {
        Ok(rank) if usize::from(rank) < WIDE_RANKS => HIGHEST - 10 * rank,
        Ok(rank) => (HIGHEST - 10 * (WIDE_RANKS as u16 - 1)).saturating_sub(rank - (WIDE_RANKS as u16 - 1)).max(LEAST),
        Err(_) => LEAST,
    };
    match eligibility {
        Eligibility::None => None,
        Eligibility::Partial => Priority::new(full - PARTIAL_PENALTY).ok(),
        Eligibility::Full => Priority::new(full).ok(),
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn weight(one: &[u8], other: &[u8]) -> u64 {
    Hash::NEW.part(one).part(other).finish()
}

/// FNV-1a under way.
#[derive(Clone, Copy)]
struct Hash(u64);

impl Hash {
    const NEW: Self = Self(0xcbf2_9ce4_8422_2325);

    /// Led by its length.
    fn part(self, part: &[u8]) -> Self {
        self.length(part.len()).octets(part)
    }

    fn length(self, length: usize) -> Self {
        self.octets(&(length as u64).to_be_bytes())
    }

    fn octets(self, octets: &[u8]) -> Self {
        let add = |hash: u64, octet: &u8| (hash ^ u64::from(*octet)).wrapping_mul(0x0000_0100_0000_01b3);
        Self(octets.iter().fold(self.0, add))
    }

    /// The finalizer of SplitMix64.
    const fn finish(self) -> u64 {
        let hash = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    }
}
