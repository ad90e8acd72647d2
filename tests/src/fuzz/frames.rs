//! Frames that come to the uplink and from pods, as the programs in the kernel see them.

use std::cell::RefCell;

use lb_common::{
    headers,
    icmp::{self, Told},
    reason::Reason,
    reply::{self, Place, Reply},
    slow_reply,
};

use crate::{
    packets::hex,
    world::{World, action, content::Content, frame::TestFrame},
};

/// Shorter ones do not come to a program.
const FRAME_MIN: usize = 14;
/// A length in front of each frame but the last one, for which any that is too long stands.
const LENGTH: usize = 2;

thread_local! {
    /// Made once: it takes longer than many frames do.
    static WORLD: RefCell<World> = RefCell::new(World::new(&Content::full().with_bypasses(3).limited([40, 10, 5])));
}

/// Calls with each frame of an input, in a world that nothing has come to before.
fn each_frame(mut input: &[u8], mut check: impl FnMut(&World, &[u8])) {
    WORLD.with_borrow_mut(|world| {
        world.reset();
        while let Some((length, rest)) = input.split_first_chunk::<LENGTH>() {
            let (frame, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
            input = rest;
            if frame.len() >= FRAME_MIN {
                check(world, frame);
            }
        }
    });
}

/// Bytes of an Ethernet address.
const MAC_BYTES: usize = 6;

/// Whether a frame came out as it went in. To the kernel, one to a virtual MAC goes with the interface's own: it takes no others.
#[must_use]
pub fn is_kept(before: &[u8], after: &[u8]) -> bool {
    let is_virtual = before.starts_with(&[0, 0, 0x5e, 0, 1]) || before.starts_with(&[0, 0, 0x5e, 0, 2]);
    let from = if is_virtual { MAC_BYTES } else { 0 };
    before.len() == after.len() && before.get(from..) == after.get(from..)
}

/// Whether a packet of this reason leaves records and traffic counters behind.
#[must_use]
pub const fn may_record(reason: Reason) -> bool {
    use Reason::{BypassesFull, Forwarded, NoPort};
    matches!(reason, Forwarded | NoPort | BypassesFull)
}

/// Whether a packet of this reason may leave the program other than it came.
#[must_use]
pub const fn may_change(reason: Reason) -> bool {
    use Reason::{
        EchoAnswered, Forwarded, NeighborAnswered, NoBackend, NoPort, NoSession, PortClosed, TooBig, TtlExceeded,
    };
    matches!(
        reason,
        Forwarded
            | NoPort
            | EchoAnswered
            | PortClosed
            | NoBackend
            | NoSession
            | TooBig
            | TtlExceeded
            | NeighborAnswered
    )
}

/// One of the four programs of the uplink has one reason for it, and changes and records only what that one may.
pub(super) fn steer(input: &[u8]) {
    each_frame(input, |world, frame| {
        steer_one(world, frame);
    });
}

/// What it does with the frame, and why.
fn steer_one(world: &World, frame: &[u8]) -> (Vec<u8>, u32, Reason) {
    let (writes, counted) = (world.writes.get(), world.packets_counted());
    let (outcome, reason) = world.steer(frame);
    assert_eq!(world.packets_counted(), counted + 1, "{reason:?} of {}", hex(frame));
    assert!(may_record(reason) || world.writes.get() == writes, "{reason:?} left a record of {}", hex(frame));
    assert!(may_change(reason) || is_kept(frame, &outcome.bytes), "{reason:?} changed {}", hex(frame));
    (outcome.bytes, outcome.action, reason)
}

/// Who asks for a VIP is answered once: the answer, come back, is nobody's question.
pub(super) fn neighbor(input: &[u8]) {
    each_frame(input, |world, frame| {
        let (answer, action, reason) = steer_one(world, frame);
        if reason != Reason::NeighborAnswered {
            return;
        }
        assert_eq!(action, action::TX, "{}", hex(frame));
        // To one host, or to all where who asks has no address yet.
        assert!(answer[0] & 1 == 0 || answer[..6] == [0x33, 0x33, 0, 0, 0, 1], "{}", hex(&answer));
        let (_, again, reason) = steer_one(world, &answer);
        assert_eq!(again, action::PASS, "{reason:?} of {}", hex(&answer));
    });
}

/// A pod's frame, and one to a pod: whatever it is, replies are of VIPs, and nothing but ICMP errors is rewritten here.
pub(super) fn reply(input: &[u8]) {
    each_frame(input, |world, bytes| {
        for place in [Place::Pod, Place::Uplink] {
            let frame = TestFrame::new(bytes);
            reply::observe(&frame, world, place);
            let Some(headers) = headers::parse(&frame) else { continue };
            let mut may_change = false;
            match reply::reply(&frame, world, place, &headers) {
                Reply::Rewrite { vip, .. } => {
                    assert!(world.content.vips.contains(&vip), "{vip:?} is no VIP: {}", hex(bytes));
                }
                Reply::Message => may_change = matches!(icmp::to_client(&frame, world, place), Told::Client(_)),
                Reply::Fragment => {
                    if let Some(piece) = headers::piece(&frame, &headers) {
                        slow_reply::reply(&frame, world, place, &headers, &piece);
                    }
                }
                Reply::Pass(_) | Reply::Drop(_) | Reply::Leave { .. } | Reply::Answer { .. } => {}
            }
            assert!(may_change || frame.to_vec() == bytes, "changed: {}", hex(bytes));
        }
    });
}
