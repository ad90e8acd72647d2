//! Who holds VIPs, for ARP and Neighbor Discovery.

use core::ptr::addr_of_mut;

use aya_ebpf::{bindings::xdp_md, btf_maps::HashMap, helpers::generated::bpf_ktime_get_boot_ns, macros::btf_map};
use lb_common::{
    holder::{CONFLICTS_MAX, Conflict, Holder, HolderKey, VIRTUAL_MACS_MAX, VirtualMac, VirtualMacKey},
    neighbor::Holders,
};

use crate::maps::Maps;

/// Address on an interface and VLAN → until when this node answers for it. Written by the agent, read by
/// `sluice_xdp_neighbor`. 5.8 (`bpf_ktime_get_boot_ns`).
#[btf_map(name = "holders")]
static HOLDERS: HashMap<HolderKey, Holder, 1> = HashMap::new();
/// The same → who else says that it is his. Written by `sluice_xdp_neighbor`, read and emptied by the agent. 4.18.
#[btf_map(name = "conflicts")]
static CONFLICTS: HashMap<HolderKey, Conflict, { CONFLICTS_MAX as usize }> = HashMap::new();

/// MAC of a virtual router on an interface and VLAN → until when this node takes frames to it, and the interface's own MAC.
/// Written by the agent, read by `sluice_xdp` for frames to such MACs alone. 5.8, as above.
#[btf_map(name = "virtual_macs")]
static VIRTUAL_MACS: HashMap<VirtualMacKey, VirtualMac, { VIRTUAL_MACS_MAX as usize }> = HashMap::new();

impl Holders for Maps {
    #[inline(always)]
    fn holder(&self, key: &HolderKey) -> Option<Holder> {
        // SAFETY: entries are replaced whole, and copied at once.
        unsafe { HOLDERS.get(key) }.copied()
    }

    #[inline(always)]
    fn virtual_mac(&self, key: &VirtualMacKey) -> Option<VirtualMac> {
        // SAFETY: as above.
        unsafe { VIRTUAL_MACS.get(key) }.copied()
    }

    #[inline(always)]
    fn note_conflict(&self, key: &HolderKey, mac: [u8; 6]) {
        let last = self.boot_time();
        if let Some(found) = CONFLICTS.get_ptr_mut(key) {
            // SAFETY: fields of a live element; whoever writes at the same time tells of the same address.
            unsafe {
                let count = addr_of_mut!((*found).count);
                count.write_volatile(count.read_volatile() + 1);
                addr_of_mut!((*found).last).write_volatile(last);
                addr_of_mut!((*found).mac).write_volatile(mac);
            }
            return;
        }
        // Where there is no room, as many are known already.
        let _ = CONFLICTS.insert(key, Conflict { count: 1, last, mac, pad: 0 }, 0);
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        // SAFETY: only XDP programs ask, whose context is valid for the whole program.
        unsafe { (*self.context.cast::<xdp_md>()).ingress_ifindex }
    }

    #[inline(always)]
    fn boot_time(&self) -> u64 {
        // SAFETY: takes nothing, touches nothing.
        unsafe { bpf_ktime_get_boot_ns() }
    }
}
