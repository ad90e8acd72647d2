//! The control packet: a checked view over the bytes, and its value.
//!
//! All checks of RFC 5880 6.8.6 that need no session are made here. Times are whole microseconds on the wire and
//! `Duration` everywhere else.

use std::{
    fmt,
    num::{NonZeroU8, NonZeroU32},
    time::Duration,
};

use serde::Serialize;

/// Octets of a control packet without authentication (RFC 5880 4.1).
pub const PACKET_BYTES: usize = 24;
/// The only version there is (RFC 5880 4.1).
pub const VERSION: u8 = 1;

/// Octets of the least packet that announces an authentication section (RFC 5880 6.8.6).
const PACKET_WITH_AUTHENTICATION_BYTES: u8 = 26;
const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const CONTROL_PLANE_INDEPENDENT: u8 = 0x08;
const AUTHENTICATION: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;
const DIAGNOSTIC_MASK: u8 = 0x1f;

/// What one end calls a session by (RFC 5880 6.3). Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Discriminator(NonZeroU32);

impl Discriminator {
    /// `None` for zero, which says on the wire that the discriminator is not known.
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        match NonZeroU32::new(value) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// As on the wire.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Discriminator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.get())
    }
}

/// So many packets in a row may be lost before the session is (RFC 5880 4.1). Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct DetectMult(NonZeroU8);

impl DetectMult {
    /// `None` for zero.
    #[must_use]
    pub const fn new(value: u8) -> Option<Self> {
        match NonZeroU8::new(value) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// As on the wire.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0.get()
    }
}

/// Where a session stands, as each end tells the other (RFC 5880 4.1, 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Held down by order.
    AdminDown,
    /// The other end is not heard.
    Down,
    /// The other end is heard and does not hear us yet.
    Init,
    /// Both hear each other.
    Up,
}

impl State {
    /// All, in the order of their values on the wire.
    pub const ALL: [Self; 4] = [Self::AdminDown, Self::Down, Self::Init, Self::Up];

    /// From the two bits of the wire.
    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::AdminDown,
            1 => Self::Down,
            2 => Self::Init,
            _ => Self::Up,
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::AdminDown => 0,
            Self::Down => 1,
            Self::Init => 2,
            Self::Up => 3,
        }
    }
}

/// A diagnostic that RFC 5880 leaves unassigned: 9 to 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct UnassignedDiagnostic(u8);

/// Why an end's state changed last (RFC 5880 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Diagnostic {
    /// 0: no reason.
    None,
    /// 1: nothing was heard for a detection time.
    DetectionTimeExpired,
    /// 2: the echo function failed.
    EchoFailed,
    /// 3: the other end said that the session is down.
    NeighborSignaledDown,
    /// 4: the forwarding plane was reset.
    ForwardingPlaneReset,
    /// 5: the path is down.
    PathDown,
    /// 6: a path that this one is joined to is down.
    ConcatenatedPathDown,
    /// 7: by order.
    AdministrativelyDown,
    /// 8: a path that this one is joined to is down in the other direction.
    ReverseConcatenatedPathDown,
    /// 9 to 31.
    Unassigned(UnassignedDiagnostic),
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no reason",
            Self::DetectionTimeExpired => "nothing was heard for a detection time",
            Self::EchoFailed => "the echo function failed",
            Self::NeighborSignaledDown => "the other end says that the session is down",
            Self::ForwardingPlaneReset => "the forwarding plane was reset",
            Self::PathDown => "the path is down",
            Self::ConcatenatedPathDown => "a path that this one is joined to is down",
            Self::AdministrativelyDown => "by order",
            Self::ReverseConcatenatedPathDown => "a path that this one is joined to is down in the other direction",
            Self::Unassigned(UnassignedDiagnostic(other)) => {
                return write!(f, "diagnostic {other}, which has no meaning yet");
            }
        })
    }
}

impl Diagnostic {
    /// From the five bits of the wire; what is above them is left out.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & DIAGNOSTIC_MASK {
            0 => Self::None,
            1 => Self::DetectionTimeExpired,
            2 => Self::EchoFailed,
            3 => Self::NeighborSignaledDown,
            4 => Self::ForwardingPlaneReset,
            5 => Self::PathDown,
            6 => Self::ConcatenatedPathDown,
            7 => Self::AdministrativelyDown,
            8 => Self::ReverseConcatenatedPathDown,
            other => Self::Unassigned(UnassignedDiagnostic(other)),
        }
    }

    /// As on the wire.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::None => 0,
            Self::DetectionTimeExpired => 1,
            Self::EchoFailed => 2,
            Self::NeighborSignaledDown => 3,
            Self::ForwardingPlaneReset => 4,
            Self::PathDown => 5,
            Self::ConcatenatedPathDown => 6,
            Self::AdministrativelyDown => 7,
            Self::ReverseConcatenatedPathDown => 8,
            Self::Unassigned(UnassignedDiagnostic(other)) => other,
        }
    }
}

/// Poll and Final bits. They are never set together (RFC 5880 6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequence {
    /// Neither.
    Neither,
    /// Asks for a packet with Final.
    Poll,
    /// Answers one with Poll.
    Final,
}

/// Why bytes are no control packet that a session may see. Each is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Malformed {
    /// Fewer than 24 octets.
    #[error("the datagram is shorter than a control packet")]
    Truncated,
    /// Not version 1.
    #[error("the version is not 1")]
    Version,
    /// The Length field is less than the packet's fixed part, with authentication where that is announced.
    #[error("the length field is less than the fixed part")]
    LengthTooSmall,
    /// The Length field is more than there is.
    #[error("the length field is more than the datagram holds")]
    LengthTooLarge,
    /// Detect Mult is zero.
    #[error("the detection multiplier is 0")]
    DetectMultZero,
    /// The Multipoint bit is set.
    #[error("the multipoint bit is set")]
    Multipoint,
    /// My Discriminator is zero.
    #[error("the sender's discriminator is 0")]
    MyDiscriminatorZero,
    /// Your Discriminator is zero in Init or Up.
    #[error("the receiver's discriminator is 0 in a state that knows it")]
    YourDiscriminatorZero,
    /// Authentication is present; no session here uses any.
    #[error("the packet is authenticated, and no authentication is configured: turn it off at the peer")]
    Authenticated,
    /// Poll and Final are both set.
    #[error("the poll and the final bit are both set")]
    PollAndFinal,
}

impl Malformed {
    /// For labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Version => "version",
            Self::LengthTooSmall => "length-too-small",
            Self::LengthTooLarge => "length-too-large",
            Self::DetectMultZero => "detect-mult-zero",
            Self::Multipoint => "multipoint",
            Self::MyDiscriminatorZero => "my-discriminator-zero",
            Self::YourDiscriminatorZero => "your-discriminator-zero",
            Self::Authenticated => "authenticated",
            Self::PollAndFinal => "poll-and-final",
        }
    }
}

/// Bytes that have passed all checks. Accessors give the fields; the value is [`ControlPacket`].
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    bytes: &'a [u8; PACKET_BYTES],
    my_discriminator: Discriminator,
    detect_mult: DetectMult,
    sequence: Sequence,
}

impl<'a> View<'a> {
    /// Checks the payload of a datagram. What follows the packet's own length is left alone.
    pub fn new(payload: &'a [u8]) -> Result<Self, Malformed> {
        let bytes = payload.first_chunk::<PACKET_BYTES>().ok_or(Malformed::Truncated)?;
        //= rfc5880#6.8.6:version MUST: a packet of another version is discarded
        if bytes[0] >> 5 != VERSION {
            return Err(Malformed::Version);
        }
        let flags = bytes[1];
        //= rfc5880#6.8.6:length-least MUST: a length below the fixed part, 26 with authentication, is discarded
        let is_authenticated = flags & AUTHENTICATION != 0;
        let least = if is_authenticated { PACKET_WITH_AUTHENTICATION_BYTES } else { PACKET_BYTES as u8 };
        if bytes[3] < least {
            return Err(Malformed::LengthTooSmall);
        }
        //= rfc5880#6.8.6:length-most MUST: a length beyond the datagram's end is discarded
        if usize::from(bytes[3]) > payload.len() {
            return Err(Malformed::LengthTooLarge);
        }
        //= rfc5880#6.8.6:detect-mult MUST: a multiplier of zero is discarded
        let detect_mult = DetectMult::new(bytes[2]).ok_or(Malformed::DetectMultZero)?;
        //= rfc5880#6.8.6:multipoint MUST: a packet with the multipoint bit is discarded
        if flags & MULTIPOINT != 0 {
            return Err(Malformed::Multipoint);
        }
        //= rfc5880#6.8.6:my-discriminator MUST: a sender without a discriminator is discarded
        let my_discriminator = Discriminator::new(word(bytes, 4)).ok_or(Malformed::MyDiscriminatorZero)?;
        //= rfc5880#6.8.6:your-discriminator-zero MUST: without our discriminator only Down and AdminDown are taken
        if word(bytes, 8) == 0 {
            match State::from_bits(flags >> 6) {
                State::AdminDown | State::Down => {}
                State::Init | State::Up => return Err(Malformed::YourDiscriminatorZero),
            }
        }
        //= rfc5880#6.8.6:authentication-absent MUST: an authenticated packet is discarded where none is in use
        if is_authenticated {
            return Err(Malformed::Authenticated);
        }
        //= rfc5880#6.5:poll-and-final MUST: both bits are never set together
        let sequence = match (flags & POLL != 0, flags & FINAL != 0) {
            (false, false) => Sequence::Neither,
            (true, false) => Sequence::Poll,
            (false, true) => Sequence::Final,
            (true, true) => return Err(Malformed::PollAndFinal),
        };
        Ok(Self { bytes, my_discriminator, detect_mult, sequence })
    }

    /// Why the sender's state changed last.
    #[must_use]
    pub const fn diagnostic(&self) -> Diagnostic {
        Diagnostic::from_bits(self.bytes[0])
    }

    /// The sender's state.
    #[must_use]
    pub const fn state(&self) -> State {
        State::from_bits(self.bytes[1] >> 6)
    }

    /// Poll and Final.
    #[must_use]
    pub const fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// The sender's BFD outlives its control plane.
    #[must_use]
    pub const fn is_control_plane_independent(&self) -> bool {
        self.bytes[1] & CONTROL_PLANE_INDEPENDENT != 0
    }

    /// The sender wishes for demand mode.
    #[must_use]
    pub const fn is_demand(&self) -> bool {
        self.bytes[1] & DEMAND != 0
    }

    /// The sender's multiplier.
    #[must_use]
    pub const fn detect_mult(&self) -> DetectMult {
        self.detect_mult
    }

    /// The sender's discriminator.
    #[must_use]
    pub const fn my_discriminator(&self) -> Discriminator {
        self.my_discriminator
    }

    /// The receiver's discriminator, where the sender knows it.
    #[must_use]
    pub const fn your_discriminator(&self) -> Option<Discriminator> {
        Discriminator::new(word(self.bytes, 8))
    }

    /// The sender would like to send that often.
    #[must_use]
    pub const fn desired_min_tx(&self) -> Duration {
        Duration::from_micros(word(self.bytes, 12) as u64)
    }

    /// The sender can receive that often. Zero: it wants no periodic packets.
    #[must_use]
    pub const fn required_min_rx(&self) -> Duration {
        Duration::from_micros(word(self.bytes, 16) as u64)
    }

    /// The sender can return echo packets that often. Zero: not at all.
    #[must_use]
    pub const fn required_min_echo_rx(&self) -> Duration {
        Duration::from_micros(word(self.bytes, 20) as u64)
    }
}

/// A control packet (RFC 5880 4.1), without authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlPacket {
    /// Why the sender's state changed last.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// Poll and Final.
    pub sequence: Sequence,
    /// The sender's BFD outlives its control plane.
    pub is_control_plane_independent: bool,
    /// The sender wishes for demand mode.
    pub is_demand: bool,
    /// The sender's multiplier.
    pub detect_mult: DetectMult,
    /// The sender's discriminator.
    pub my_discriminator: Discriminator,
    /// The receiver's, where the sender knows it.
    pub your_discriminator: Option<Discriminator>,
    /// The sender would like to send that often.
    pub desired_min_tx: Duration,
    /// The sender can receive that often. Zero: it wants no periodic packets.
    pub required_min_rx: Duration,
    /// The sender can return echo packets that often. Zero: not at all.
    pub required_min_echo_rx: Duration,
}

impl ControlPacket {
    /// Checks and reads the payload of a datagram.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let view = View::new(payload)?;
        Ok(Self {
            diagnostic: view.diagnostic(),
            state: view.state(),
            sequence: view.sequence(),
            is_control_plane_independent: view.is_control_plane_independent(),
            is_demand: view.is_demand(),
            detect_mult: view.detect_mult(),
            my_discriminator: view.my_discriminator(),
            your_discriminator: view.your_discriminator(),
            desired_min_tx: view.desired_min_tx(),
            required_min_rx: view.required_min_rx(),
            required_min_echo_rx: view.required_min_echo_rx(),
        })
    }

    /// The payload of a datagram. Times are cut to whole microseconds and to what 32 bits hold.
    #[must_use]
    pub fn emit(&self) -> [u8; PACKET_BYTES] {
        let mut flags = self.state.bits() << 6;
        flags |= match self.sequence {
            Sequence::Neither => 0,
            Sequence::Poll => POLL,
            Sequence::Final => FINAL,
        };
        if self.is_control_plane_independent {
            flags |= CONTROL_PLANE_INDEPENDENT;
        }
        if self.is_demand {
            flags |= DEMAND;
        }
        let mut bytes = [0; PACKET_BYTES];
        bytes[0] = VERSION << 5 | self.diagnostic.bits();
        bytes[1] = flags;
        bytes[2] = self.detect_mult.get();
        bytes[3] = PACKET_BYTES as u8;
        bytes[4..8].copy_from_slice(&self.my_discriminator.get().to_be_bytes());
        bytes[8..12].copy_from_slice(&self.your_discriminator.map_or(0, Discriminator::get).to_be_bytes());
        bytes[12..16].copy_from_slice(&micros(self.desired_min_tx));
        bytes[16..20].copy_from_slice(&micros(self.required_min_rx));
        bytes[20..24].copy_from_slice(&micros(self.required_min_echo_rx));
        bytes
    }
}

const fn word(bytes: &[u8; PACKET_BYTES], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn micros(time: Duration) -> [u8; 4] {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX).to_be_bytes()
}
