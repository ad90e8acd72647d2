//! Links as netlink describes them: RTM_NEWLINK messages, byte by byte as `rtnl_fill_ifinfo` (net/core/rtnetlink.c) writes
//! them. The kernels that this is tested on make neither bonds, VLANs, VRFs nor teams.

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;

use crate::net::links::{Link, decode_link};

const RTM_NEWLINK: u16 = 16;
const ETHER: u16 = 1;
const UP: u32 = 1;
const LOWER_UP: u32 = 0x1_0000;

/// An attribute, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = (length as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

fn word(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_ne_bytes())
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

/// A link under construction.
#[derive(Clone)]
pub struct Description {
    index: u32,
    layer: u16,
    flags: u32,
    attributes: Vec<u8>,
    info: Vec<u8>,
}

impl Description {
    /// An Ethernet interface of a card, up and running, MTU 1500, four queues each way.
    pub fn new(index: u32, name: &str) -> Self {
        let attributes = [
            text(3, name),
            word(13, 1000),
            attribute(16, &[6]),
            word(4, 1500),
            word(50, 68),
            word(31, 4),
            word(32, 4),
            attribute(33, &[1]),
            attribute(1, &[2, 0, 0, 0, 0, index as u8]),
        ];
        Self { index, layer: ETHER, flags: UP | LOWER_UP | 0x40, attributes: attributes.concat(), info: Vec::new() }
    }

    /// `IFLA_INFO_KIND`, and the data of that kind.
    pub fn kind(mut self, kind: &str, data: &[u8]) -> Self {
        self.info.extend(text(1, kind));
        if !data.is_empty() {
            self.info.extend(attribute(2, data));
        }
        self
    }

    pub fn bond(self, mode: u8, active: Option<u32>) -> Self {
        let mut data = attribute(1, &[mode]);
        data.extend(active.map(|active| word(2, active)).unwrap_or_default());
        data.extend(word(3, 100));
        self.kind("bond", &data)
    }

    /// Of `parent`, by IEEE 802.1Q.
    pub fn vlan(self, parent: u32, id: u16) -> Self {
        let data = [
            attribute(5, &0x8100u16.to_be_bytes()),
            attribute(1, &id.to_ne_bytes()),
            attribute(2, &[1, 0, 0, 0, 255, 255, 255, 255]),
        ];
        self.link(parent).kind("vlan", &data.concat())
    }

    /// `IFLA_LINK`.
    pub fn link(mut self, index: u32) -> Self {
        self.attributes.extend(word(5, index));
        self
    }

    /// `IFLA_LINK_NETNSID`.
    pub fn elsewhere(mut self, id: u32) -> Self {
        self.attributes.extend(word(37, id));
        self
    }

    /// `IFLA_MASTER`, with what the master says of its part.
    pub fn part_of(mut self, master: u32, kind: &str, data: &[u8]) -> Self {
        self.attributes.extend(word(10, master));
        self.info.extend(text(4, kind));
        self.info.extend(attribute(5, data));
        self
    }

    pub fn bond_member(self, bond: u32) -> Self {
        let data = [attribute(1, &[0]), attribute(2, &[0]), word(3, 0), attribute(4, &[2, 0, 0, 0, 0, 9])];
        self.part_of(bond, "bond", &data.concat())
    }

    pub fn down(mut self) -> Self {
        self.flags = 0;
        self
    }

    pub fn without_carrier(mut self) -> Self {
        self.flags = UP;
        self
    }

    pub fn mtu(mut self, mtu: u32) -> Self {
        self.attributes.extend(word(4, mtu));
        self
    }

    /// `ARPHRD_*` of its frames.
    pub fn layer(mut self, layer: u16) -> Self {
        self.layer = layer;
        self
    }

    pub fn loopback(mut self) -> Self {
        self.flags |= 8;
        self.layer(772)
    }

    /// `IFLA_XDP` of a program in the driver.
    pub fn xdp(mut self, id: u32) -> Self {
        self.attributes.extend(attribute(43, &[attribute(2, &[1]), word(4, id), word(5, id)].concat()));
        self
    }

    /// The whole message.
    pub fn bytes(&self) -> Vec<u8> {
        let mut body = vec![0, 0];
        body.extend(self.layer.to_ne_bytes());
        body.extend(self.index.to_ne_bytes());
        body.extend(self.flags.to_ne_bytes());
        body.extend([0; 4]);
        body.extend(&self.attributes);
        if !self.info.is_empty() {
            body.extend(attribute(18, &self.info));
        }
        let mut bytes = (16 + body.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(RTM_NEWLINK.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    pub fn parse(&self) -> Link {
        parse(&self.bytes()).expect("a link")
    }
}

/// As the agent reads a message; none where it is no description of a link.
pub fn parse(bytes: &[u8]) -> Option<Link> {
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).ok()?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => Some(decode_link(message)),
        _ => None,
    }
}
