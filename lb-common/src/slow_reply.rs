//! The return path of fragments: the first is decided about as the whole packet would be, the others follow its record.

use crate::{
    abi::NO_BACKEND,
    address::Address,
    fragments::{Key, Record},
    headers::{Headers, Piece, Position},
    packet::Frame,
    reason::Reason,
    reply::{Place, Reply, ReturnTables, decide},
    slow::Fragments,
};

/// What becomes of a fragment from a pod: a [`Reply`] whose every field is written whatever it says, because the
/// compiler moves those around that nobody needs, and the verifier refuses what nobody has written.
#[derive(Clone, Copy, Debug)]
pub struct FragmentReply {
    /// What is done.
    pub action: FragmentAction,
    /// Why.
    pub reason: Reason,
    /// Where it is rewritten: the VIP, its port (0: carries none), and the id of the backend that it is counted under.
    pub vip: Address,
    /// As above.
    pub port: u16,
    /// As above.
    pub backend: u32,
}

/// What is done with a fragment from a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FragmentAction {
    /// Left as it is.
    Pass,
    /// Not forwarded.
    Drop,
    /// Source address and port become the VIP's.
    Rewrite,
    /// Sent out as it is, TTL included.
    Leave,
}

impl FragmentReply {
    const fn plain(action: FragmentAction, reason: Reason) -> Self {
        Self { action, reason, vip: Address::from_words([0, 0]), port: 0, backend: NO_BACKEND }
    }

    const fn pass(reason: Reason) -> Self {
        Self::plain(FragmentAction::Pass, reason)
    }

    const fn drop(reason: Reason) -> Self {
        Self::plain(FragmentAction::Drop, reason)
    }

    const fn leave(vip: Address, backend: u32) -> Self {
        Self { action: FragmentAction::Leave, reason: Reason::Replied, vip, port: 0, backend }
    }

    const fn rewrite(vip: Address, port: u16, backend: u32) -> Self {
        Self { action: FragmentAction::Rewrite, reason: Reason::Replied, vip, port, backend }
    }
}

/// Decides about a fragment that leaves a pod, whose headers the caller has read.
#[inline(always)]
pub fn reply<F: Frame, T: ReturnTables + Fragments>(
    frame: &F,
    tables: &T,
    place: Place,
    headers: &Headers,
    piece: &Piece,
) -> FragmentReply {
    if !piece.is_of_service() {
        return FragmentReply::pass(Reason::NotAReply);
    }
    let key = Key::outbound(headers.source, headers.destination, piece.identification, piece.protocol);
    match piece.position() {
        // No record is made of it, so that all of the datagram passes, and nobody puts it together.
        Position::Bad => FragmentReply::pass(Reason::NotAReply),
        Position::First => {
            let decided = match decide(frame, tables, place, &piece.as_whole(headers), false) {
                Reply::Rewrite { vip, port, backend } => FragmentReply::rewrite(vip, port, backend),
                Reply::Drop(reason) => FragmentReply::drop(reason),
                Reply::Pass(reason) => FragmentReply::pass(reason),
                Reply::Leave { backend } => FragmentReply::leave(headers.source, backend),
                // The self-test asks in one piece, and these are neither messages nor pieces any more.
                Reply::Answer { .. } | Reply::Message | Reply::Fragment => FragmentReply::drop(Reason::SelfTest),
            };
            // What is no reply needs no record, but must not follow that of an older datagram.
            if decided.backend == NO_BACKEND && tables.fragment(&key, true).is_none() {
                return decided;
            }
            if tables.record_fragment(&key, Record { backend: decided.backend, ..Record::NONE }) {
                decided
            } else {
                FragmentReply::drop(Reason::FragmentsFull)
            }
        }
        Position::Later => {
            let record = tables.fragment(&key, !piece.more);
            if record.is_none() {
                return FragmentReply::pass(Reason::NotAReply);
            }
            match tables.backend_vip(record.backend) {
                // Of a pod that owns the VIP, to which this node is no hop.
                Some(vip) if vip.port != 0 && vip.address == headers.source => {
                    FragmentReply::leave(vip.address, record.backend)
                }
                Some(_) if place == Place::Pod && headers.hops <= 1 => FragmentReply::pass(Reason::TtlExceeded),
                Some(vip) if vip.port != 0 => FragmentReply::rewrite(vip.address, 0, record.backend),
                _ => FragmentReply::drop(Reason::RecordWithoutService),
            }
        }
    }
}
