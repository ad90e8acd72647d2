//! XDP buffers and socket buffers as the frames that `steer` and `reply` read.

use core::ptr::addr_of;

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::generated::{bpf_skb_pull_data, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
};
use lb_common::packet::{
    Frame,
    kernel::{Raw, window},
};

/// A frame in an XDP program. Its start is read afresh each time where `FRESH`: see [`SkbFrame::bounds`]. The program that
/// all packets pay for does without, as long as the compiler lets it.
pub struct XdpFrame<const FRESH: bool> {
    /// The kernel's context.
    pub context: *mut xdp_md,
}

impl<const FRESH: bool> XdpFrame<FRESH> {
    /// Start and end. The end is read afresh each time, or the compiler would conclude one comparison from another
    /// and leave the verifier without it.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the kernel's context is valid for the whole program.
        unsafe {
            let start = addr_of!((*self.context).data);
            let start = if FRESH { start.read_volatile() } else { start.read() };
            (start as usize, addr_of!((*self.context).data_end).read_volatile() as usize)
        }
    }

    /// Bytes of the whole frame, those in fragments included.
    #[inline(always)]
    fn whole(&self) -> usize {
        // SAFETY: as above.
        unsafe { bpf_xdp_get_buff_len(self.context) as usize }
    }
}

impl<const FRESH: bool> Frame for XdpFrame<FRESH> {
    type View<'a, const N: usize> = Raw<N>;

    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<Raw<N>> {
        let (data, end) = self.bounds();
        window(data, end, offset)
    }

    #[inline(always)]
    fn holds(&self, length: usize) -> bool {
        let (data, end) = self.bounds();
        end - data >= length || self.whole() >= length
    }

    #[inline(always)]
    fn length(&self) -> usize {
        let (data, end) = self.bounds();
        end - data
    }

    #[inline(always)]
    fn sum(&self, start: usize, bytes: usize) -> u64 {
        crate::apart::sluice_sum(self.context, start as u32, bytes as u32)
    }

    #[inline(always)]
    fn grow_head(&mut self, bytes: usize) -> bool {
        // SAFETY: the kernel's context; windows taken before are not used after, as borrows show.
        unsafe { bpf_xdp_adjust_head(self.context, -(bytes as i32)) == 0 }
    }

    #[inline(always)]
    fn shrink_head(&mut self, bytes: usize) -> bool {
        // SAFETY: as above.
        unsafe { bpf_xdp_adjust_head(self.context, bytes as i32) == 0 }
    }

    #[inline(always)]
    fn truncate(&mut self, length: usize) -> bool {
        let excess = self.whole() as i32 - length as i32;
        // SAFETY: as above.
        excess == 0 || (excess > 0 && unsafe { bpf_xdp_adjust_tail(self.context, -excess) == 0 })
    }
}

/// A frame in a tc program. The kernel makes the linear part writable before the program begins.
pub struct SkbFrame {
    /// The kernel's context.
    pub skb: *mut __sk_buff,
}

/// Bytes that hold any headers that are looked at, but for long chains of IPv6 extension headers.
const HEADERS: u32 = 160;

impl SkbFrame {
    /// A frame whose headers lie in the linear part.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        let frame = Self { skb };
        // SAFETY: the kernel's context is valid for the whole program.
        let total = unsafe { (*skb).len };
        let wanted = if total < HEADERS { total } else { HEADERS };
        if frame.linear() < wanted as usize {
            // Where it fails the frame is short of headers, and passes as it is.
            // SAFETY: as above.
            let _ = unsafe { bpf_skb_pull_data(skb, wanted) };
        }
        frame
    }

    /// As in [`XdpFrame`]; the start as well, or the compiler copies it as the 32 bits that the context declares, and
    /// the verifier sees a number instead of a pointer.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: as above.
        unsafe {
            let data = addr_of!((*self.skb).data).read_volatile() as usize;
            (data, addr_of!((*self.skb).data_end).read_volatile() as usize)
        }
    }

    #[inline(always)]
    fn linear(&self) -> usize {
        let (data, end) = self.bounds();
        end - data
    }
}

impl Frame for SkbFrame {
    type View<'a, const N: usize> = Raw<N>;

    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<Raw<N>> {
        let (data, end) = self.bounds();
        window(data, end, offset)
    }

    #[inline(always)]
    fn holds(&self, length: usize) -> bool {
        self.length() >= length
    }

    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.skb).len as usize }
    }
}

/// A frame at the uplink's tc ingress, which may begin with its network header.
pub struct UplinkFrame {
    /// The frame.
    pub frame: SkbFrame,
    /// Its EtherType where the link header is not there.
    pub kind: Option<u16>,
}

impl Frame for UplinkFrame {
    type View<'a, const N: usize> = Raw<N>;

    #[inline(always)]
    fn bare(&self) -> Option<u16> {
        self.kind
    }

    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<Raw<N>> {
        self.frame.at(offset)
    }

    #[inline(always)]
    fn holds(&self, length: usize) -> bool {
        self.frame.holds(length)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.frame.length()
    }
}
