//! A frame on the host as `BPF_PROG_TEST_RUN` makes it in the kernel.

use std::cell::Cell;

use lb_common::packet::{Frame, host::HEADROOM};

/// Bytes that lie in one piece, the rest being in fragments: a page less headroom and `struct skb_shared_info`
/// (net/bpf/test_run.c, bpf_prog_test_run_xdp).
pub const LINEAR: usize = 4096 - HEADROOM - 320;
/// In front of a frame's first byte: what the program left untouched keeps it.
const UNTOUCHED: u8 = 0xa5;

/// Bytes with headroom in front, whose first [`LINEAR`] can be reached.
pub struct TestFrame {
    bytes: Vec<Cell<u8>>,
    start: usize,
    linear_end: usize,
}

impl TestFrame {
    /// A frame of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let mut room = Vec::with_capacity(HEADROOM + bytes.len());
        room.resize(HEADROOM, Cell::new(UNTOUCHED));
        room.extend(bytes.iter().copied().map(Cell::new));
        Self { bytes: room, start: HEADROOM, linear_end: HEADROOM + bytes.len().min(LINEAR) }
    }

    /// The frame's bytes as they are now.
    pub fn to_vec(&self) -> Vec<u8> {
        assert!(self.bytes[..self.start].iter().take(64).all(|byte| byte.get() == UNTOUCHED), "wrote in front");
        self.bytes[self.start..].iter().map(Cell::get).collect()
    }
}

impl Frame for TestFrame {
    type View<'a, const N: usize> = &'a [Cell<u8>; N];

    fn at<const N: usize>(&self, offset: usize) -> Option<Self::View<'_, N>> {
        self.bytes[self.start..self.linear_end].get(offset..)?.first_chunk()
    }

    fn holds(&self, length: usize) -> bool {
        length <= self.bytes.len() - self.start
    }

    fn length(&self) -> usize {
        self.linear_end - self.start
    }

    fn grow_head(&mut self, bytes: usize) -> bool {
        let room = bytes <= self.start;
        if room {
            self.start -= bytes;
        }
        room
    }

    fn shrink_head(&mut self, bytes: usize) -> bool {
        // bpf_xdp_adjust_head leaves at least an Ethernet header.
        let there = bytes + 14 <= self.length();
        if there {
            self.start += bytes;
        }
        there
    }

    fn truncate(&mut self, length: usize) -> bool {
        let there = (14..=self.bytes.len() - self.start).contains(&length);
        if there {
            self.bytes.truncate(self.start + length);
            self.linear_end = self.linear_end.min(self.bytes.len());
        }
        there
    }
}
