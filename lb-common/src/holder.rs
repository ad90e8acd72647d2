//! Who answers for VIPs on a shared segment: what the agent tells the programs, and what they tell it.

use crate::address::Address;

/// Key of `holders` and `conflicts`: an address on a segment, which is an interface and a VLAN of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
#[repr(C)]
pub struct HolderKey {
    /// The VIP.
    pub address: Address,
    /// Index of the interface that frames come in by: the uplink, of a bond its member.
    pub interface: u32,
    /// VLAN identifier (802.1Q, 9.6) of frames with one tag; 0: untagged, or tagged for priority alone.
    pub vlan: u16,
    /// Zero.
    pub pad: u16,
}
const _: () = assert!(size_of::<HolderKey>() == 24);

impl HolderKey {
    /// The same segment's key of another address.
    #[inline(always)]
    pub const fn of(self, address: Address) -> Self {
        Self { address, ..self }
    }
}

/// Value of `holders`. Where an address has one, no question for it is left to the kernel: it is answered or dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Holder {
    /// This node answers until then, in nanoseconds of the boot clock, which goes on while a machine sleeps; 0: not at all,
    /// [`ALWAYS`]: without end.
    pub until: u64,
    /// What it answers.
    pub mac: [u8; 6],
    /// [`holder_flags`].
    pub flags: u16,
}
const _: () = assert!(size_of::<Holder>() == 16);

/// In [`Holder::until`]: also after the agent has died.
pub const ALWAYS: u64 = u64::MAX;

/// Bits of [`Holder::flags`].
pub mod holder_flags {
    /// Advertisements say that a router has sent them (RFC 9568, 8.2.3), which VRRP asks for.
    pub const ROUTER: u16 = 1 << 0;
}

impl Holder {
    /// Whether this node answers now.
    #[inline(always)]
    pub const fn holds(&self, now: u64) -> bool {
        now < self.until
    }
}

/// Key of `virtual_macs`: a virtual router's MAC (RFC 9568, 7.3) on a segment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
#[repr(C)]
pub struct VirtualMacKey {
    /// As [`HolderKey::interface`].
    pub interface: u32,
    /// As [`HolderKey::vlan`].
    pub vlan: u16,
    /// The fifth octet: 1 for IPv4, 2 for IPv6.
    pub family: u8,
    /// The last octet.
    pub vrid: u8,
}
const _: () = assert!(size_of::<VirtualMacKey>() == 8);

/// Value of `virtual_macs`. Where a virtual MAC has one, frames to it are taken or dropped; else they are none of our
/// business.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct VirtualMac {
    /// Frames are taken until then, as [`Holder::until`].
    pub until: u64,
    /// The interface's own MAC.
    pub own: [u8; 6],
    /// Zero.
    pub pad: u16,
}
const _: () = assert!(size_of::<VirtualMac>() == 16);

impl VirtualMac {
    /// Whether this node takes frames now.
    #[inline(always)]
    pub const fn is_taken(&self, now: u64) -> bool {
        now < self.until
    }
}

/// Entries of `virtual_macs`: all identifiers in both families on two interfaces.
pub const VIRTUAL_MACS_MAX: u32 = 1024;

/// Value of `conflicts`: somebody else says that an address is his which this node holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Conflict {
    /// How often. What two CPUs hear at once may count once.
    pub count: u64,
    /// When last, as [`Holder::until`].
    pub last: u64,
    /// Who said so last.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: u16,
}
const _: () = assert!(size_of::<Conflict>() == 24);

/// Entries of `conflicts`: as many VIPs as anybody would look into one by one.
pub const CONFLICTS_MAX: u32 = 1024;
