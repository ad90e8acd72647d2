//! Programs of tests and benchmarks, never of the product.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the program macros generate functions without documentation")]

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

/// Passes everything: the peer of a veth must have a program, or what XDP_TX sends is lost.
#[xdp]
pub fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
