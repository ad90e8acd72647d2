//! Messages: framing, what the machine handles of them, and what it sends.
//!
//! `netgauze-bgp-pkt` writes OPEN, UPDATE, KEEPALIVE and ROUTE-REFRESH. What it cannot do is said where it is done here.

mod frame;
mod notification;
mod open;
mod update;

use netgauze_bgp_pkt::BgpMessage;
use netgauze_parse_utils::WritablePdu;

pub use frame::{Frame, FrameError, Framer, HEADER_OCTETS, MESSAGE_OCTETS_MAX, MessageType};
pub use notification::{
    COMMUNICATION_OCTETS_MAX, Communication, Notification, cease, code, fsm, header, open as open_error,
};
pub use open::{Capabilities, GracefulRestart, Open, OpenError, VERSION};
pub use update::{Announcement, Encoding, NextHop, end_of_rib, read_end_of_rib, withdrawal};

use super::values::Family;

/// A ROUTE-REFRESH that is to be answered (RFC 2918, 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteRefresh(pub Family);

impl RouteRefresh {
    /// From what follows the header: None for another family, and for the markers of RFC 7313, which is not offered.
    #[must_use]
    pub const fn parse(body: &[u8]) -> Option<Self> {
        match body {
            [0, 1, 0, 1] => Some(Self(Family::Ipv4)),
            [0, 2, 0, 1] => Some(Self(Family::Ipv6)),
            _ => None,
        }
    }
}

/// The whole message.
#[must_use]
pub fn keepalive() -> Vec<u8> {
    write(&BgpMessage::KeepAlive)
}

/// Writing to memory does not fail, and nothing that is built here is too long.
fn write(message: &BgpMessage) -> Vec<u8> {
    let mut octets = Vec::with_capacity(message.len());
    let written = message.write(&mut octets);
    debug_assert_eq!(written, Ok(()), "messages are built within their bounds");
    octets
}
