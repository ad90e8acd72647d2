//! What few frames need: decided by a program of its own, with a stack and a verifier's budget of its own, which `steer`
//! hands such frames to.

use crate::{
    abi::protocol,
    headers, icmp,
    packet::Frame,
    reason::Reason,
    steer::{Tables, Verdict},
};

/// Decides what becomes of a frame that `steer` has found to be one of these, and rewrites it.
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

/// Both programs as one.
#[cfg(not(target_arch = "bpf"))]
pub fn whole<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    match crate::steer::steer(frame, tables) {
        Verdict::Slow => slow(frame, tables),
        verdict => verdict,
    }
}
