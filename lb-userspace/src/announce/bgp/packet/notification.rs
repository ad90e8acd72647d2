//! NOTIFICATION (RFC 4271, 4.5), with what RFC 9003 and RFC 8538 put into it.
//!
//! The codec that the other messages use knows no codes or subcodes but the assigned ones, and has none for the send hold
//! timer; what a peer says in its last message must be readable whatever it holds. So this one is ours.

use std::fmt;

use serde::Serialize;

use super::frame::{MESSAGE_OCTETS_MAX, MessageType, frame};

/// Octets of a shutdown communication (RFC 9003, 2).
pub const COMMUNICATION_OCTETS_MAX: usize = 255;
/// Data that fits beside header, code and subcode.
const DATA_OCTETS_MAX: usize = MESSAGE_OCTETS_MAX - 21;
/// Hard Resets may be nested by nonsense; one is what there is.
const HARD_RESET_OVERHEAD: usize = 2;

/// Error codes (RFC 4271, 4.5; RFC 7313; RFC 9687).
#[expect(missing_docs, reason = "named as in the registry")]
pub mod code {
    pub const HEADER: u8 = 1;
    pub const OPEN: u8 = 2;
    pub const UPDATE: u8 = 3;
    pub const HOLD_TIMER: u8 = 4;
    pub const FSM: u8 = 5;
    pub const CEASE: u8 = 6;
    pub const ROUTE_REFRESH: u8 = 7;
    pub const SEND_HOLD_TIMER: u8 = 8;
}

/// Subcodes of code 1 (RFC 4271, 6.1).
#[expect(missing_docs, reason = "named as in the registry")]
pub mod header {
    pub const NOT_SYNCHRONIZED: u8 = 1;
    pub const BAD_LENGTH: u8 = 2;
    pub const BAD_TYPE: u8 = 3;
}

/// Subcodes of code 2 (RFC 4271, 6.2; RFC 5492, 5).
#[expect(missing_docs, reason = "named as in the registry")]
pub mod open {
    pub const UNSPECIFIC: u8 = 0;
    pub const UNSUPPORTED_VERSION: u8 = 1;
    pub const BAD_PEER_AS: u8 = 2;
    pub const BAD_IDENTIFIER: u8 = 3;
    pub const UNSUPPORTED_PARAMETER: u8 = 4;
    pub const UNACCEPTABLE_HOLD_TIME: u8 = 6;
    pub const UNSUPPORTED_CAPABILITY: u8 = 7;
}

/// Subcodes of code 5 (RFC 6608, 3).
#[expect(missing_docs, reason = "named as in the registry")]
pub mod fsm {
    pub const IN_OPEN_SENT: u8 = 1;
    pub const IN_OPEN_CONFIRM: u8 = 2;
    pub const IN_ESTABLISHED: u8 = 3;
}

/// Subcodes of code 6 (RFC 4486, 3; RFC 8538, 3; RFC 9384, 3).
#[expect(missing_docs, reason = "named as in the registry")]
pub mod cease {
    pub const MAXIMUM_PREFIXES: u8 = 1;
    pub const ADMINISTRATIVE_SHUTDOWN: u8 = 2;
    pub const PEER_DECONFIGURED: u8 = 3;
    pub const ADMINISTRATIVE_RESET: u8 = 4;
    pub const CONNECTION_REJECTED: u8 = 5;
    pub const OTHER_CHANGE: u8 = 6;
    pub const COLLISION: u8 = 7;
    pub const OUT_OF_RESOURCES: u8 = 8;
    pub const HARD_RESET: u8 = 9;
    pub const BFD_DOWN: u8 = 10;
}

/// Why a session ends, as it is told to the other side.
#[derive(Clone, PartialEq, Eq)]
pub struct Notification {
    code: u8,
    subcode: u8,
    data: Vec<u8>,
}

impl Notification {
    /// Data beyond what a message holds is cut off.
    #[must_use]
    pub fn new(code: u8, subcode: u8, mut data: Vec<u8>) -> Self {
        data.truncate(DATA_OCTETS_MAX);
        Self { code, subcode, data }
    }

    /// A Cease without data.
    #[must_use]
    pub const fn cease(subcode: u8) -> Self {
        Self { code: code::CEASE, subcode, data: Vec::new() }
    }

    /// A Cease with words for the operator of the other side: subcodes 2 and 4 alone carry them (RFC 9003, 2).
    #[must_use]
    pub fn cease_with(subcode: u8, communication: Option<&Communication>) -> Self {
        //= rfc9003#2:subcodes MUST: words go with shutdown and reset alone, behind their length in octets
        let has_words = matches!(subcode, cease::ADMINISTRATIVE_SHUTDOWN | cease::ADMINISTRATIVE_RESET);
        let words = communication.filter(|_| has_words).map(|words| words.0.as_bytes()).unwrap_or_default();
        let mut data = Vec::new();
        if !words.is_empty() {
            data.push(u8::try_from(words.len()).unwrap_or(u8::MAX));
            data.extend_from_slice(words);
        }
        Self { code: code::CEASE, subcode, data }
    }

    /// This one inside a Hard Reset (RFC 8538, 3.1).
    #[must_use]
    pub fn hardened(&self) -> Self {
        //= rfc8538#3.1:encapsulation MUST: a Hard Reset carries the true code, subcode and data
        let mut data = vec![self.code, self.subcode];
        data.extend_from_slice(self.data.get(..DATA_OCTETS_MAX - HARD_RESET_OVERHEAD).unwrap_or(&self.data));
        Self { code: code::CEASE, subcode: cease::HARD_RESET, data }
    }

    /// From what follows the header: None below two octets.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let (&code, rest) = body.split_first()?;
        let (&subcode, data) = rest.split_first()?;
        Some(Self::new(code, subcode, data.to_vec()))
    }

    /// The whole message.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut body = vec![self.code, self.subcode];
        body.extend_from_slice(&self.data);
        frame(MessageType::Notification, &body)
    }

    /// As it was sent.
    #[must_use]
    pub const fn code(&self) -> u8 {
        self.code
    }

    /// As it was sent.
    #[must_use]
    pub const fn subcode(&self) -> u8 {
        self.subcode
    }

    /// As it was sent.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Whether all state is to go, restart or not.
    #[must_use]
    pub const fn is_hard_reset(&self) -> bool {
        self.code == code::CEASE && self.subcode == cease::HARD_RESET
    }

    /// Without the Hard Reset around it, where there is one with something in it.
    #[must_use]
    pub fn true_one(&self) -> Self {
        if self.is_hard_reset() { Self::parse(&self.data).unwrap_or_else(|| self.clone()) } else { self.clone() }
    }

    /// What the peer's operator says, made fit to be shown: control characters and what is not UTF-8 are replaced.
    #[must_use]
    pub fn words(&self) -> Option<String> {
        let inner = self.true_one();
        let has_words = matches!(inner.subcode, cease::ADMINISTRATIVE_SHUTDOWN | cease::ADMINISTRATIVE_RESET);
        if inner.code != code::CEASE || !has_words {
            return None;
        }
        let (&length, rest) = inner.data.split_first()?;
        //= rfc9003#4:length SHOULD: a length beyond the message is an error of the peer, and its words are not shown
        let words = rest.get(..usize::from(length)).filter(|words| !words.is_empty())?;
        //= rfc9003#6:sanitize SHOULD: nothing but printable characters reaches logs and terminals
        let clean = String::from_utf8_lossy(words);
        Some(clean.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect())
    }

    /// What it says, in words.
    fn name(&self) -> &'static str {
        match (self.code, self.subcode) {
            (code::HEADER, header::NOT_SYNCHRONIZED) => "connection not synchronized",
            (code::HEADER, header::BAD_LENGTH) => "bad message length",
            (code::HEADER, header::BAD_TYPE) => "bad message type",
            (code::HEADER, _) => "message header error",
            (code::OPEN, open::UNSUPPORTED_VERSION) => "unsupported version number",
            (code::OPEN, open::BAD_PEER_AS) => "bad peer AS",
            (code::OPEN, open::BAD_IDENTIFIER) => "bad BGP identifier",
            (code::OPEN, open::UNSUPPORTED_PARAMETER) => "unsupported optional parameter",
            (code::OPEN, open::UNACCEPTABLE_HOLD_TIME) => "unacceptable hold time",
            (code::OPEN, open::UNSUPPORTED_CAPABILITY) => "unsupported capability",
            (code::OPEN, _) => "OPEN message error",
            (code::UPDATE, _) => "UPDATE message error",
            (code::HOLD_TIMER, _) => "hold timer expired",
            (code::FSM, _) => "unexpected message",
            (code::CEASE, cease::MAXIMUM_PREFIXES) => "maximum number of prefixes reached",
            (code::CEASE, cease::ADMINISTRATIVE_SHUTDOWN) => "administrative shutdown",
            (code::CEASE, cease::PEER_DECONFIGURED) => "peer de-configured",
            (code::CEASE, cease::ADMINISTRATIVE_RESET) => "administrative reset",
            (code::CEASE, cease::CONNECTION_REJECTED) => "connection rejected",
            (code::CEASE, cease::OTHER_CHANGE) => "other configuration change",
            (code::CEASE, cease::COLLISION) => "connection collision resolution",
            (code::CEASE, cease::OUT_OF_RESOURCES) => "out of resources",
            (code::CEASE, cease::HARD_RESET) => "hard reset",
            (code::CEASE, cease::BFD_DOWN) => "BFD down",
            (code::CEASE, _) => "cease",
            (code::ROUTE_REFRESH, _) => "ROUTE-REFRESH message error",
            (code::SEND_HOLD_TIMER, _) => "send hold timer expired",
            (_, _) => "unknown error",
        }
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}/{})", self.name(), self.code, self.subcode)?;
        if self.is_hard_reset() && self.data.len() >= HARD_RESET_OVERHEAD {
            let inner = self.true_one();
            write!(f, ": {} ({}/{})", inner.name(), inner.code, inner.subcode)?;
        }
        if let Some(words) = self.words() {
            write!(f, ": {words}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Notification({self}, {:02x?})", self.data)
    }
}

/// Words for the operator of the other side: at most 255 octets of UTF-8 (RFC 9003, 2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Communication(String);

impl Communication {
    /// What is too long is cut at a character's end.
    #[must_use]
    pub fn new(words: &str) -> Self {
        let mut end = words.len().min(COMMUNICATION_OCTETS_MAX);
        while !words.is_char_boundary(end) {
            end -= 1;
        }
        Self(words.get(..end).unwrap_or_default().to_owned())
    }
}
