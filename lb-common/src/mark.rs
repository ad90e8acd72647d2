//! How XDP tells the uplink's tc ingress program what to do with a frame that it passes on.
//!
//! By the frame's Ethernet source address, which nobody behind the uplink's driver looks at, and not by XDP metadata:
//! many drivers have none, and in generic mode tc does not find it again (the copy that the kernel makes to get
//! headroom loses the length of the link header, net/core/skbuff.c, skb_pp_cow_data). A frame that comes in from
//! outside with such a source is dropped, so the mark can be trusted.

use crate::{
    headers::ETHERNET,
    packet::{Frame, View},
};

/// First half of a marked source address: locally administered, so that it is no vendor's.
pub const PREFIX: [u8; 3] = [0x02, b'S', b'l'];

/// What a marked frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// The stack delivers it.
    Stack,
    /// `bpf_redirect_peer` to this interface.
    Peer(u32),
}

/// Interface indexes fit into the other half; a larger one has no rung `peer`.
pub const IFINDEX_MAX: u32 = (1 << 24) - 1;

/// Writes the mark into the frame's source address. False where the frame is too short or the index too large.
#[inline(always)]
pub fn put<F: Frame>(frame: &F, mark: Mark) -> bool {
    let ifindex = match mark {
        Mark::Stack => 0,
        Mark::Peer(ifindex) => ifindex,
    };
    let Some(ethernet) = frame.at::<ETHERNET>(0) else { return false };
    if ifindex > IFINDEX_MAX {
        return false;
    }
    let [_, a, b, c] = ifindex.to_be_bytes();
    ethernet.put::<6, u32>(u32::from_ne_bytes([PREFIX[0], PREFIX[1], PREFIX[2], a]));
    ethernet.put::<10, u16>(u16::from_ne_bytes([b, c]));
    true
}

/// The mark in a source address.
#[inline(always)]
pub const fn read(source: [u8; 6]) -> Option<Mark> {
    if source[0] != PREFIX[0] || source[1] != PREFIX[1] || source[2] != PREFIX[2] {
        return None;
    }
    Some(match u32::from_be_bytes([0, source[3], source[4], source[5]]) {
        0 => Mark::Stack,
        ifindex => Mark::Peer(ifindex),
    })
}

/// Whether a frame carries a mark already.
#[inline(always)]
pub fn is_marked<F: Frame>(frame: &F) -> bool {
    let Some(ethernet) = frame.at::<ETHERNET>(0) else { return false };
    let prefix = u32::from_ne_bytes([PREFIX[0], PREFIX[1], PREFIX[2], 0]);
    let mask = u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
    ethernet.get::<6, u32>() & mask == prefix
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::host::HostFrame;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        for mark in [Mark::Stack, Mark::Peer(1), Mark::Peer(IFINDEX_MAX)] {
            let frame = HostFrame::new(&[0; 60]);
            assert!(!is_marked(&frame));
            assert!(put(&frame, mark));
            assert!(is_marked(&frame));
            let bytes = frame.to_vec();
            assert_eq!(read(bytes[6..12].try_into().unwrap()), Some(mark));
        }
        assert!(!put(&HostFrame::new(&[0; 60]), Mark::Peer(IFINDEX_MAX + 1)));
    }
}
