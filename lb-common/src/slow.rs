//! What few frames need: decided by a program of its own, with a stack and a verifier's budget of its own, which `steer`
//! hands such frames to.

#[cfg(not(target_arch = "bpf"))]
use crate::neighbor::{Holders, neighbor};
use crate::{
    abi::{protocol, rung},
    fragments::{Key, Record},
    headers::{self, Headers, Position},
    icmp,
    packet::Frame,
    reason::Reason,
    steer::{self, Tables, Verdict},
};

/// What is asked and told about datagrams in fragments.
pub trait Fragments {
    /// The record of a datagram, which it refreshes; the `last` fragment lets it make way for others.
    fn fragment(&self, key: &Key, last: bool) -> Record;
    /// Records whose a datagram is. False where there is no room.
    fn record_fragment(&self, key: &Key, record: Record) -> bool;
}

/// Decides what becomes of an ICMP message to a VIP, and rewrites it.
#[inline(always)]
pub fn slow<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    let Some(headers) = headers::parse(frame) else {
        return Verdict::Pass(Reason::NotIp);
    };
    if let Some(defect) = headers.defect {
        return Verdict::Pass(defect);
    }
    match headers.protocol {
        protocol::ICMP | protocol::ICMPV6 => icmp::to_vip(frame, tables, &headers),
        _ => Verdict::Pass(Reason::OtherProtocol),
    }
}

/// Decides what becomes of a fragment to a VIP, and rewrites it. The first one is steered as the whole packet would be, the
/// others follow it.
#[inline(always)]
pub fn fragment<F: Frame, T: Tables + Fragments>(frame: &mut F, tables: &T) -> Verdict {
    let Some(headers) = headers::parse(frame) else {
        return Verdict::Pass(Reason::NotIp);
    };
    let Some(piece) = headers::piece(frame, &headers) else {
        return Verdict::Drop(Reason::Malformed);
    };
    if !piece.is_of_service() {
        return Verdict::Pass(Reason::Fragment);
    }
    match piece.position() {
        Position::Bad => Verdict::Drop(Reason::BadFragment),
        Position::First => {
            let whole = piece.as_whole(&headers);
            // Read once more, so that it takes no stack from what is asked before.
            steer::steer_transport(frame, tables, &whole, |frame: &F, place, backend| {
                headers::piece_of(frame, &whole)
                    .is_some_and(|piece| tables.record_fragment(&piece.key(&whole), Record::new(place, backend)))
            })
        }
        Position::Later => {
            let record = tables.fragment(&piece.key(&headers), !piece.more);
            later(frame, tables, &headers, &record)
        }
    }
}

/// A later fragment goes where the first one went.
#[inline(always)]
fn later<F: Frame, T: Tables>(frame: &mut F, tables: &T, headers: &Headers, record: &Record) -> Verdict {
    let Some(backend) = tables.backend(record.place) else {
        return Verdict::Drop(Reason::BrokenTable);
    };
    if !record.is(backend) {
        return Verdict::Drop(Reason::FragmentUnmatched);
    }
    if let Some(reason) = steer::unusable(backend, headers.is_v4) {
        return Verdict::Drop(reason);
    }
    // To a pod that owns the VIP this node is no hop.
    let is_hop = backend.rung != rung::DIRECT;
    // No ICMP error is sent about these (RFC 1122, 3.2.2).
    if is_hop && headers.hops <= 1 || headers.length > backend.mtu as usize {
        return Verdict::Drop(Reason::NotAnswered);
    }
    if is_hop {
        steer::rewrite_network(frame, headers, backend);
    }
    steer::deliver(frame, headers, backend)
}

/// All four programs as one.
#[cfg(not(target_arch = "bpf"))]
pub fn whole<F: Frame, T: Tables + Fragments + Holders>(frame: &mut F, tables: &T) -> Verdict {
    match steer::steer(frame, tables) {
        Verdict::Slow => slow(frame, tables),
        Verdict::Fragment => fragment(frame, tables),
        Verdict::Neighbor => neighbor(frame, tables),
        verdict => verdict,
    }
}
