//! What few frames need: decided by a program of its own, with a stack and a verifier's budget of its own, which `steer`
//! hands such frames to.

use crate::{
    abi::protocol,
    answer,
    fragments::{Key, Record},
    headers::{self, Headers, Piece, Position},
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

/// Decides what becomes of a frame that `steer` has found to be one of these, and rewrites it.
#[inline(always)]
pub fn slow<F: Frame, T: Tables + Fragments>(frame: &mut F, tables: &T) -> Verdict {
    let Some(headers) = headers::parse(frame) else {
        return Verdict::Pass(Reason::NotIp);
    };
    if headers.defect.is_some() {
        return match headers::piece(frame, &headers) {
            Some(piece) => fragment(frame, tables, &headers, &piece),
            None => Verdict::Drop(Reason::Malformed),
        };
    }
    match headers.protocol {
        protocol::ICMP | protocol::ICMPV6 => answer::echo(frame, tables, &headers),
        _ => Verdict::Pass(Reason::OtherProtocol),
    }
}

/// Both programs as one.
#[cfg(not(target_arch = "bpf"))]
pub fn whole<F: Frame, T: Tables + Fragments>(frame: &mut F, tables: &T) -> Verdict {
    match steer::steer(frame, tables) {
        Verdict::Slow => slow(frame, tables),
        verdict => verdict,
    }
}

/// The first fragment is steered as the whole packet would be, the others follow it.
#[inline(always)]
fn fragment<F: Frame, T: Tables + Fragments>(frame: &mut F, tables: &T, headers: &Headers, piece: &Piece) -> Verdict {
    if !piece.is_of_service() {
        return Verdict::Pass(Reason::Fragment);
    }
    let key = Key::inbound(headers.source, headers.destination, piece.identification, piece.protocol);
    match piece.position() {
        Position::Bad => Verdict::Drop(Reason::BadFragment),
        Position::First => steer::steer_transport(frame, tables, &piece.as_whole(headers), |place, backend| {
            tables.record_fragment(&key, Record::new(place, backend))
        }),
        Position::Later => {
            let record = tables.fragment(&key, !piece.more);
            let Some(backend) = tables.backend(record.place) else {
                return Verdict::Drop(Reason::BrokenTable);
            };
            if !record.is(backend) {
                return Verdict::Drop(Reason::FragmentUnmatched);
            }
            // No ICMP error is sent about these (RFC 1122, 3.2.2).
            if headers.hops <= 1 || headers.length > backend.mtu as usize {
                return Verdict::Drop(Reason::NotAnswered);
            }
            steer::rewrite_network(frame, headers, backend);
            steer::deliver(frame, headers, backend)
        }
    }
}
