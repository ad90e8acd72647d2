//! What is counted of every packet, on each CPU for itself.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use lb_common::{
    abi::{Counter, Traffic},
    reason::{REASONS, Reason},
};

/// Packets and bytes by reason. Written by all programs. 4.18.
#[btf_map(name = "reasons")]
static REASON_COUNTERS: PerCpuArray<Counter, REASONS> = PerCpuArray::new();
/// Packets and bytes by backend id. Written by `sluice_xdp` and the return programs. 4.18.
#[btf_map(name = "backend_counters")]
static BACKEND_COUNTERS: PerCpuArray<Traffic, 1> = PerCpuArray::new();

/// Counts a packet under a reason.
#[inline(always)]
pub fn count_reason(reason: u32, bytes: u64) {
    if let Some(counter) = REASON_COUNTERS.get_ptr_mut(reason) {
        // SAFETY: this CPU's own element, and programs of one CPU don't interrupt each other.
        let counter = unsafe { &mut *counter };
        counter.packets += 1;
        counter.bytes += bytes;
    }
}

/// Counts a packet to a backend.
#[inline(always)]
pub fn count_forwarded(backend: u32, bytes: u64) {
    if let Some(traffic) = BACKEND_COUNTERS.get_ptr_mut(backend) {
        // SAFETY: this CPU's own element.
        let traffic = unsafe { &mut *traffic };
        traffic.packets += 1;
        traffic.bytes += bytes;
    } else {
        count_reason(Reason::BrokenTable.index(), bytes);
    }
}

/// Counts a reply of a backend.
#[inline(always)]
pub fn count_replied(backend: u32, bytes: u64) {
    if let Some(traffic) = BACKEND_COUNTERS.get_ptr_mut(backend) {
        // SAFETY: this CPU's own element.
        let traffic = unsafe { &mut *traffic };
        traffic.reply_packets += 1;
        traffic.reply_bytes += bytes;
    }
}
