//! What the kernel knows of a socket buffer's checksum, and shows in no program's context.

use core::arch::asm;

use aya_ebpf::bindings::__sk_buff;
use lb_common::summed::UNKNOWN;

/// `ip_summed` of the buffer, as `lb_common::summed` names its values, or [`UNKNOWN`].
#[inline(always)]
pub fn of(skb: *mut __sk_buff) -> u64 {
    let summed;
    // SAFETY: as compiled this sets `r0` and nothing else. The loader puts a call and a load from what it returns in its place
    // (`lb_common::summed::PLACE`): the call takes the context in `r1` and may use up the registers of arguments.
    unsafe {
        asm!(
            "r0 = {unknown}",
            "goto +0",
            "goto +0",
            "goto +0",
            unknown = const UNKNOWN,
            out("r0") summed,
            inlateout("r1") skb => _,
            out("r2") _,
            out("r3") _,
            out("r4") _,
            out("r5") _,
            options(nostack, readonly),
        );
    }
    summed
}
