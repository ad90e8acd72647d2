//! Messages out of a stream of bytes: the header (RFC 4271, 4.1 and 6.1).

use serde::Serialize;
use thiserror::Error;

use super::notification::{Notification, code, header};

/// Octets of the header: marker, length, type.
pub const HEADER_OCTETS: usize = 19;
/// Longest message without the extension of RFC 8654, which is not offered.
pub const MESSAGE_OCTETS_MAX: usize = 4096;

const MARKER_OCTETS: usize = 16;

/// The types of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum MessageType {
    /// 1, RFC 4271, 4.2.
    Open,
    /// 2, RFC 4271, 4.3.
    Update,
    /// 3, RFC 4271, 4.5.
    Notification,
    /// 4, RFC 4271, 4.4.
    Keepalive,
    /// 5, RFC 2918, 3.
    RouteRefresh,
}

impl MessageType {
    /// All.
    pub const ALL: [Self; 5] = [Self::Open, Self::Update, Self::Notification, Self::Keepalive, Self::RouteRefresh];

    /// As it is sent.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Update => 2,
            Self::Notification => 3,
            Self::Keepalive => 4,
            Self::RouteRefresh => 5,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Least and greatest length of a whole message.
    const fn lengths(self) -> (usize, usize) {
        match self {
            Self::Open => (29, MESSAGE_OCTETS_MAX),
            Self::Update => (23, MESSAGE_OCTETS_MAX),
            Self::Notification => (21, MESSAGE_OCTETS_MAX),
            Self::Keepalive => (19, 19),
            Self::RouteRefresh => (23, 23),
        }
    }
}

/// Why the stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Not all ones.
    #[error("the marker of a message is not all ones: the stream is out of step")]
    Marker,
    /// Below 19, above 4096, or not what the type has.
    #[error("a message says that it has {length} octets, which its type {kind} cannot have")]
    Length {
        /// As it was sent.
        length: u16,
        /// As it was sent.
        kind: u8,
    },
    /// Neither of the five.
    #[error("a message is of the unknown type {0}")]
    Type(u8),
}

impl FrameError {
    /// What is sent for it. None where the message was itself a NOTIFICATION, which is never answered.
    #[must_use]
    pub fn notification(self) -> Option<Notification> {
        let (subcode, data) = match self {
            //= rfc4271#6.1:marker MUST: a marker that is not all ones is answered by 1/1
            Self::Marker => (header::NOT_SYNCHRONIZED, Vec::new()),
            //= rfc4271#6.4:no-answer MUST: a malformed NOTIFICATION is not answered
            Self::Length { kind, .. } if kind == MessageType::Notification.code() => return None,
            //= rfc4271#6.1:length MUST: a length that the type cannot have is answered by 1/2 with that length
            Self::Length { length, .. } => (header::BAD_LENGTH, length.to_be_bytes().to_vec()),
            //= rfc4271#6.1:type MUST: an unknown type is answered by 1/3 with that type
            Self::Type(kind) => (header::BAD_TYPE, vec![kind]),
        };
        Some(Notification::new(code::HEADER, subcode, data))
    }
}

/// A whole message whose header is in order; the body is not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which.
    pub kind: MessageType,
    /// All octets, with the header.
    pub octets: Vec<u8>,
}

impl Frame {
    /// What follows the header.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.octets.get(HEADER_OCTETS..).unwrap_or_default()
    }
}

/// Collects octets until they make a message. Holds 4096 at most, whatever comes.
#[derive(Clone, Debug, Default)]
pub struct Framer {
    octets: Vec<u8>,
}

impl Framer {
    /// Takes from `input` what the message at hand needs. None: all of it was taken and is not enough. After an error
    /// nothing that follows makes sense.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        self.fill(input, HEADER_OCTETS);
        if self.octets.iter().take(MARKER_OCTETS).any(|octet| *octet != 0xff) {
            return Err(FrameError::Marker);
        }
        let Some(&[high, low, kind]) = self.octets.get(MARKER_OCTETS..HEADER_OCTETS) else { return Ok(None) };
        let length = u16::from_be_bytes([high, low]);
        let bad_length = FrameError::Length { length, kind };
        let size = usize::from(length);
        if !(HEADER_OCTETS..=MESSAGE_OCTETS_MAX).contains(&size) {
            return Err(bad_length);
        }
        let kind = MessageType::from_code(kind).ok_or(FrameError::Type(kind))?;
        let (least, greatest) = kind.lengths();
        if !(least..=greatest).contains(&size) {
            return Err(bad_length);
        }
        self.fill(input, size);
        if self.octets.len() < size {
            return Ok(None);
        }
        Ok(Some(Frame { kind, octets: std::mem::take(&mut self.octets) }))
    }

    fn fill(&mut self, input: &mut &[u8], size: usize) {
        let missing = size.saturating_sub(self.octets.len()).min(input.len());
        let (taken, rest) = input.split_at(missing);
        self.octets.extend_from_slice(taken);
        *input = rest;
    }
}

/// A message of this type around a body. The body is at most 4077 octets; who builds one sees to that.
pub(super) fn frame(kind: MessageType, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(HEADER_OCTETS + body.len()).unwrap_or(u16::MAX);
    let mut octets = vec![0xff; MARKER_OCTETS];
    octets.extend_from_slice(&length.to_be_bytes());
    octets.push(kind.code());
    octets.extend_from_slice(body);
    octets
}
