//! Packet access. [`Frame::at`] checks bounds once and returns a view of fixed size; every access into a view has a
//! constant offset that is checked at compile time. So code over packets cannot panic, and the verifier sees one
//! pointer comparison per header.

/// Plain integers that may be read from a packet, in memory order: byte order is the caller's.
pub trait Int: Copy {
    /// Bytes.
    const SIZE: usize;
    /// Made of the bytes that `byte` gives by position.
    fn gather(byte: impl Fn(usize) -> u8) -> Self;
    /// Hands each byte with its position to `put`.
    fn scatter(self, put: impl Fn(usize, u8));
}

// A macro because no trait of core covers from_ne_bytes and to_ne_bytes.
macro_rules! int {
    ($($t:ty),*) => {$(
        impl Int for $t {
            const SIZE: usize = size_of::<$t>();
            #[inline(always)]
            fn gather(byte: impl Fn(usize) -> u8) -> Self {
                <$t>::from_ne_bytes(core::array::from_fn(byte))
            }
            #[inline(always)]
            fn scatter(self, put: impl Fn(usize, u8)) {
                for (i, b) in self.to_ne_bytes().into_iter().enumerate() {
                    put(i, b);
                }
            }
        }
    )*};
}
int!(u8, u16, u32, u64);

/// `N` bytes of a packet that are known to be in bounds.
pub trait View<const N: usize>: Copy {
    /// The integer at offset `O`, in memory order.
    fn get<const O: usize, I: Int>(self) -> I;
    /// Writes the integer at offset `O`, in memory order.
    fn put<const O: usize, I: Int>(self, value: I);
}

/// A received frame that can be read, written, and, where it is XDP's, grown or cut at both ends.
pub trait Frame {
    /// A window of `N` bytes.
    type View<'a, const N: usize>: View<N>
    where
        Self: 'a;

    /// The `N` bytes at `offset`, or `None` where the frame is too short.
    fn at<const N: usize>(&self, offset: usize) -> Option<Self::View<'_, N>>;

    /// The EtherType, as it lies in memory, of a frame that begins with its network header.
    #[inline(always)]
    fn bare(&self) -> Option<u16> {
        None
    }

    /// Whether the frame has at least `length` bytes, also where `at` cannot reach them all.
    fn holds(&self, length: usize) -> bool;

    /// Bytes in the frame, for counters.
    fn length(&self) -> usize;

    /// [`sum_words`], which the kernel's programs keep apart from the rest.
    #[inline(always)]
    fn sum(&self, start: usize, bytes: usize) -> u64 {
        sum_words(self, start, bytes)
    }

    /// Puts `bytes` (of unknown content) in front of the frame. `false`, and nothing changed, where there is no room.
    #[inline(always)]
    fn grow_head(&mut self, bytes: usize) -> bool {
        let _ = bytes;
        false
    }

    /// Takes `bytes` off the front. `false`, and nothing changed, where they are not there.
    #[inline(always)]
    fn shrink_head(&mut self, bytes: usize) -> bool {
        let _ = bytes;
        false
    }

    /// Cuts the frame to `length` bytes. `false`, and nothing changed, where it is shorter.
    #[inline(always)]
    fn truncate(&mut self, length: usize) -> bool {
        let _ = length;
        false
    }
}

/// Bytes that [`sum_words`] adds up at most: an IPv6 packet that no way refuses (RFC 8200, 5).
pub const MAX_SUMMED: usize = 1280;

/// Partial sum, as `checksum` takes it, over `bytes`, which are a multiple of four; it ends where the frame does.
#[inline(always)]
pub fn sum_words<F: Frame + ?Sized>(frame: &F, start: usize, bytes: usize) -> u64 {
    let mut sum = 0;
    for word in 0..MAX_SUMMED / 4 {
        if word * 4 >= bytes {
            break;
        }
        let Some(window) = frame.at::<4>(start + word * 4) else { break };
        sum += window.get::<0, u32>() as u64;
    }
    sum
}

/// A frame in the host's memory, with room in front as a driver leaves it.
#[cfg(not(target_arch = "bpf"))]
pub mod host {
    extern crate alloc;
    use super::{Frame, Int, View};
    use alloc::vec::Vec;
    use core::cell::Cell;

    /// `XDP_PACKET_HEADROOM` (include/uapi/linux/bpf.h).
    pub const HEADROOM: usize = 256;

    /// Bytes with [`HEADROOM`] in front.
    pub struct HostFrame {
        bytes: Vec<Cell<u8>>,
        start: usize,
    }

    impl HostFrame {
        /// A frame with these bytes.
        pub fn new(bytes: &[u8]) -> Self {
            let room = core::iter::repeat_n(0, HEADROOM);
            Self { bytes: room.chain(bytes.iter().copied()).map(Cell::new).collect(), start: HEADROOM }
        }

        /// The frame's bytes as they are now.
        pub fn to_vec(&self) -> Vec<u8> {
            self.bytes[self.start..].iter().map(Cell::get).collect()
        }
    }

    impl Frame for HostFrame {
        type View<'a, const N: usize> = &'a [Cell<u8>; N];

        fn at<const N: usize>(&self, offset: usize) -> Option<Self::View<'_, N>> {
            self.bytes.get(self.start + offset..)?.first_chunk()
        }

        fn holds(&self, length: usize) -> bool {
            length <= self.length()
        }

        fn length(&self) -> usize {
            self.bytes.len() - self.start
        }

        fn grow_head(&mut self, bytes: usize) -> bool {
            let room = bytes <= self.start;
            if room {
                self.start -= bytes;
            }
            room
        }

        fn shrink_head(&mut self, bytes: usize) -> bool {
            // As bpf_xdp_adjust_head, which leaves at least an Ethernet header.
            let there = bytes + 14 <= self.length();
            if there {
                self.start += bytes;
            }
            there
        }

        fn truncate(&mut self, length: usize) -> bool {
            let there = length <= self.length();
            if there {
                self.bytes.truncate(self.start + length);
            }
            there
        }
    }

    impl<const N: usize> View<N> for &[Cell<u8>; N] {
        fn get<const O: usize, I: Int>(self) -> I {
            const { assert!(O + I::SIZE <= N) };
            I::gather(|i| self[O + i].get())
        }

        fn put<const O: usize, I: Int>(self, value: I) {
            const { assert!(O + I::SIZE <= N) };
            value.scatter(|i, b| self[O + i].set(b));
        }
    }
}

/// A window into a frame in the kernel.
#[cfg(target_arch = "bpf")]
pub mod kernel {
    use super::{Int, View};

    /// `N` bytes at an address that a comparison with the frame's end has proved.
    #[derive(Clone, Copy)]
    pub struct Raw<const N: usize>(*mut u8);

    /// The `N` bytes at `offset` of the packet that lies between `data` and `end`.
    #[inline(always)]
    pub fn window<const N: usize>(data: usize, end: usize, offset: usize) -> Option<Raw<N>> {
        // Addresses are compared, never lengths: the verifier learns a range only from `pointer + N > end`.
        let start = data + offset;
        if start + N > end { None } else { Some(Raw(start as *mut u8)) }
    }

    impl<const N: usize> View<N> for Raw<N> {
        #[inline(always)]
        fn get<const O: usize, I: Int>(self) -> I {
            const { assert!(O + I::SIZE <= N) };
            // SAFETY: `window` proved N bytes, the assertion that O + SIZE lies within.
            unsafe { self.0.add(O).cast::<I>().read_unaligned() }
        }

        #[inline(always)]
        fn put<const O: usize, I: Int>(self, value: I) {
            const { assert!(O + I::SIZE <= N) };
            // SAFETY: as in `get`.
            unsafe { self.0.add(O).cast::<I>().write_unaligned(value) }
        }
    }
}
