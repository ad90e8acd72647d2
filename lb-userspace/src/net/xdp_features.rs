//! What a driver can do with XDP, by the kernel's family `netdev` of generic netlink (Linux 6.3,
//! Documentation/netlink/specs/netdev.yaml).

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_HEADER_SIZE, Nla, NlasIterator, ParseableParametrized,
};
use netlink_packet_generic::{
    GenlFamily, GenlHeader, GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};

use super::{Error, InterfaceIndex, Netlink, Result};

const FAMILY: &str = "netdev";
/// `NETDEV_CMD_DEV_GET`, `NETDEV_A_DEV_IFINDEX` and `NETDEV_A_DEV_XDP_FEATURES` (include/uapi/linux/netdev.h).
const GET_DEVICE: u8 = 1;
const INDEX: u16 = 1;
const FEATURES: u16 = 3;

/// `enum netdev_xdp_act`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures(pub u64);

impl XdpFeatures {
    /// Programs run in the driver.
    pub const fn is_native(self) -> bool {
        self.0 & 1 != 0
    }

    /// What they redirect is sent on.
    pub const fn redirects(self) -> bool {
        self.0 & 2 != 0
    }

    /// Frames may lie in several pages: no MTU is too large.
    pub const fn takes_large_frames(self) -> bool {
        self.0 & 32 != 0
    }
}

/// Asks for several devices over one socket.
pub struct NetDevices {
    netlink: Netlink,
    family: u16,
}

impl NetDevices {
    /// For the namespace of the calling thread.
    pub fn open() -> Result<Self> {
        let action = "ask for the netlink family netdev (Linux 6.3)";
        let mut netlink = Netlink::open_generic()?;
        let nlas = vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())];
        let question = GenlMessage::from_payload(GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas });
        let answer: GenlMessage<GenlCtrl> = netlink.get(action, question)?;
        let family = answer.payload.nlas.iter().find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(*id),
            _ => None,
        });
        match family {
            Some(family) => Ok(Self { netlink, family }),
            None => Err(Error::Answer { action: action.to_owned(), detail: "one without a number".to_owned() }),
        }
    }

    /// What the driver of an interface can.
    pub fn xdp_features(&mut self, index: InterfaceIndex) -> Result<XdpFeatures> {
        let action = format!("ask for the XDP features of interface {index}");
        let mut question = GenlMessage::from_payload(Device { index, features: 0 });
        question.set_resolved_family_id(self.family);
        let answer: GenlMessage<Device> = self.netlink.get(&action, question)?;
        Ok(XdpFeatures(answer.payload.features))
    }
}

/// A question for a device, which has its index alone, and the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    index: InterfaceIndex,
    features: u64,
}

impl Device {
    fn question(&self) -> DefaultNla {
        DefaultNla::new(INDEX, self.index.to_ne_bytes().to_vec())
    }
}

impl GenlFamily for Device {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        GET_DEVICE
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Device {
    fn buffer_len(&self) -> usize {
        NLA_HEADER_SIZE + self.question().value_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.question().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Device {
    fn parse_with_param(bytes: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        let mut device = Self { index: 0, features: 0 };
        for attribute in NlasIterator::new(bytes) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                INDEX => device.index = number(value)? as InterfaceIndex,
                FEATURES => device.features = number(value)?,
                _ => {}
            }
        }
        Ok(device)
    }
}

/// Of four or eight bytes, as the kernel likes it.
fn number(bytes: &[u8]) -> Result<u64, DecodeError> {
    if let Ok(bytes) = bytes.try_into() {
        return Ok(u64::from_ne_bytes(bytes));
    }
    match bytes.try_into() {
        Ok(bytes) => Ok(u32::from_ne_bytes(bytes).into()),
        Err(_) => Err(DecodeError::from(format!("an integer of {} bytes", bytes.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Device, DecodeError> {
        Device::parse_with_param(bytes, GenlHeader { cmd: GET_DEVICE, version: 1 })
    }

    /// As Linux 6.18 answers for a veth: index 5, padding, features 0x67, zero-copy segments.
    const ANSWER: [u8; 36] = [
        8, 0, 1, 0, 5, 0, 0, 0, 12, 0, 3, 0, 0x67, 0, 0, 0, 0, 0, 0, 0, 8, 0, 4, 0, 1, 0, 0, 0, 8, 0, 99, 0, 7, 7, 7, 7,
    ];

    #[cfg(target_endian = "little")]
    #[test]
    fn an_answer_is_read_and_what_is_new_in_it_is_skipped() {
        let device = parse(&ANSWER).unwrap();
        assert_eq!(device, Device { index: 5, features: 0x67 });
        let features = XdpFeatures(device.features);
        assert!(features.is_native() && features.redirects() && features.takes_large_frames());
    }

    #[test]
    fn a_question_is_the_index_alone() {
        let question = Device { index: 5, features: 0 };
        let mut bytes = vec![0; question.buffer_len()];
        question.emit(&mut bytes);
        assert_eq!(parse(&bytes).unwrap(), question);
    }

    #[test]
    fn answers_that_are_cut_short_never_panic() {
        for length in 0..ANSWER.len() {
            let _ = parse(&ANSWER[..length]);
        }
        assert!(parse(&[7, 0, 3, 0, 1, 2, 3, 0]).is_err());
    }
}
