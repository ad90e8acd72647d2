//! Who a TCP connection belongs to. The pod's own kernel socket is the record; `bypasses` says only what it cannot: that
//! a connection did not come through the endpoint's default service.
//!
//! Nobody but a SYN makes or changes a record, and none that a living connection has: a forged packet moves nothing.

use crate::{
    abi::{Backend, Bypass, BypassKey, NO_BACKEND, backend_flags, protocol},
    address::Address,
    limiter::Class,
};

/// What a pod's kernel has under a connection's addresses and ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Socket {
    /// A connection, open, half open or half closed.
    Living,
    /// None, one in TIME_WAIT, or a listener alone.
    Gone,
    /// The pod cannot be asked.
    Unknown,
}

impl Socket {
    /// From a state of include/net/tcp_states.h. TIME_WAIT is no connection: its client may use the port again.
    #[inline(always)]
    pub const fn of_state(state: u32) -> Self {
        // ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2; CLOSE_WAIT, LAST_ACK; CLOSING, NEW_SYN_RECV.
        if state < 32 && 1 << state & 0b1_1011_0011_1110u32 != 0 { Self::Living } else { Self::Gone }
    }
}

/// What both directions ask and tell about connections.
pub trait Sessions {
    /// False only where the address is certainly no VIP; asked first, to be cheap.
    #[inline(always)]
    fn may_be_vip(&self, _address: Address) -> bool {
        true
    }
    /// Whether the address is a VIP.
    fn is_vip(&self, address: Address) -> bool;
    /// Whether an endpoint has any record in `bypasses`.
    fn has_bypasses(&self, endpoint: u32) -> bool;
    /// The record of a connection.
    fn bypass(&self, key: &BypassKey) -> Option<Bypass>;
    /// Records the backend, or [`NO_BACKEND`], that a connection belongs to. False where it cannot.
    fn record_bypass(&self, key: &BypassKey, endpoint: u32, backend: u32) -> bool;
    /// Takes the record of a connection away.
    fn forget_bypass(&self, key: &BypassKey, endpoint: u32);
    /// What the pod's kernel has for a TCP connection.
    fn socket(&self, netns_id: u32, connection: &BypassKey) -> Socket;
    /// Whether the pod's kernel has a socket, in any state but LISTEN, for a TCP connection; none where the pod cannot be
    /// asked.
    fn is_seen(&self, netns_id: u32, connection: &BypassKey) -> Option<bool>;
    /// The record of a connection was used.
    fn refresh_bypass(&self, key: &BypassKey);
    /// Takes a token for an answer; false where there is none.
    fn admit(&self, class: Class) -> bool;
}

/// Flags of a TCP header (RFC 9293, 3.1).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronize.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Acknowledgement.
    pub const ACK: u8 = 16;
}

/// Whether a segment opens a connection.
#[inline(always)]
pub const fn opens(flags: u8) -> bool {
    flags & (flag::SYN | flag::ACK) == flag::SYN
}

/// Whether a client's segment may go to a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Claim {
    /// Its replies will leave under the right address.
    Granted = 0,
    /// It opens a connection that must be recorded, and there is no room.
    Full,
    /// Of a connection that belongs to somebody else.
    Foreign,
    /// Of no connection that the pod knows.
    NoSession,
}

/// A client's segment on its way to a backend.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Claimed {
    /// Its connection.
    pub key: BypassKey,
    /// The backend's id.
    pub backend: u32,
    /// The backend's endpoint.
    pub endpoint: u32,
    /// The backend's network namespace.
    pub netns_id: u32,
    /// The backend's flags.
    pub flags: u16,
    /// 1 where it opens a connection.
    pub opens: u16,
}

impl Claimed {
    /// A segment of this connection to this backend.
    #[inline(always)]
    pub const fn new(key: BypassKey, backend: &Backend, opens: bool) -> Self {
        let (flags, opens) = (backend.flags as u16, opens as u16);
        Self { key, backend: backend.id, endpoint: backend.endpoint, netns_id: backend.netns_id, flags, opens }
    }
}

/// Sees to it that the replies of a client's connection leave under the VIP of this backend's service. A datagram says
/// nothing of whether it is the first: what came last through a service is answered from there.
#[inline(always)]
pub fn claim<S: Sessions>(sessions: &S, claimed: &Claimed) -> Claim {
    let Claimed { key, backend: id, endpoint, netns_id, .. } = claimed;
    let opens = claimed.opens != 0;
    if key.protocol != protocol::TCP {
        return if sessions.record_bypass(key, *endpoint, *id) { Claim::Granted } else { Claim::Full };
    }
    let is_recorded = claimed.flags & backend_flags::RECORD as u16 != 0;
    if !(is_recorded || opens && sessions.has_bypasses(*endpoint)) {
        return Claim::Granted;
    }
    let wanted = if is_recorded { Some(*id) } else { None };
    let known = sessions.bypass(key).map(|bypass| bypass.backend);
    if known == wanted {
        return Claim::Granted;
    }
    let socket = sessions.socket(*netns_id, key);
    match (opens, socket) {
        (false, Socket::Gone) => Claim::NoSession,
        (false, _) => Claim::Foreign,
        // The pod's kernel answers for the connection that it has, whoever sent this.
        (true, Socket::Living) => Claim::Granted,
        (true, _) if !is_recorded => {
            sessions.forget_bypass(key, *endpoint);
            Claim::Granted
        }
        (true, _) if sessions.record_bypass(key, *endpoint, *id) => Claim::Granted,
        (true, _) => Claim::Full,
    }
}

/// What is done with a segment that reaches an endpoint without a VIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beside {
    /// Goes on.
    Seen,
    /// It opens a connection that must be recorded, and there is no room.
    Full,
    /// The pod will refuse it, and more such refusals than this are not recorded.
    TooMany,
}

/// Records a connection that reaches an endpoint without a VIP.
#[inline(always)]
pub fn beside<S: Sessions>(
    sessions: &S,
    key: &BypassKey,
    endpoint: u32,
    netns_id: u32,
    opens: bool,
    learning: bool,
) -> Beside {
    let known = sessions.bypass(key).map(|bypass| bypass.backend);
    if known == Some(NO_BACKEND) || known.is_some() && !opens {
        return Beside::Seen;
    }
    // While an endpoint is learned, what is not recorded yet is no session of a VIP.
    if !learning && sessions.socket(netns_id, key) == Socket::Living {
        return Beside::Seen;
    }
    // The pod refuses what is no SYN and no connection: for the sake of the RST's source, as far as it goes.
    if !opens && !learning && !sessions.admit(Class::Refusal) {
        return Beside::TooMany;
    }
    if sessions.record_bypass(key, endpoint, NO_BACKEND) { Beside::Seen } else { Beside::Full }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_states_that_are_a_connection() {
        // Linux 6.18, include/net/tcp_states.h.
        let living = [1, 2, 3, 4, 5, 8, 9, 11, 12];
        for state in 0..40 {
            let wanted = if living.contains(&state) { Socket::Living } else { Socket::Gone };
            assert_eq!(Socket::of_state(state), wanted, "state {state}");
        }
    }
}
