//! Everything that decides what happens to a packet, compiled for the kernel (BPF) and for the host.
//!
//! [`steer`](steer::steer) is the forwarding decision of an uplink, [`reply`](reply::reply) that of the return path.
//! Both are generic over the packet and over the tables, so that the same code runs against BPF maps and against
//! memory. [`abi`] is what kernel and user space exchange through maps.
#![no_std]
#![cfg_attr(
    target_arch = "bpf",
    feature(core_intrinsics),
    expect(internal_features, reason = "the BPF target has no compare-and-swap outside core::intrinsics")
)]

pub mod abi;
pub mod address;
pub mod affinity;
pub mod agent;
pub mod answer;
pub mod checksum;
pub mod flow;
pub mod fragments;
pub mod headers;
pub mod holder;
pub mod icmp;
pub mod index;
pub mod limiter;
pub mod mark;
pub mod neighbor;
pub mod offer;
pub mod opaque;
pub mod packet;
pub mod reason;
pub mod reply;
pub mod session;
pub mod slow;
pub mod slow_reply;
pub mod steer;
pub mod summed;
pub mod virtual_mac;
pub mod word;

#[cfg(feature = "user")]
mod pod;
