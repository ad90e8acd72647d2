//! VIPs on a pod's `lo`, put there and taken away.
//!
//! The address itself says who put it there, so that nobody need remember it: not for a pod that is gone, and not across a
//! crash. It has the protocol [`ASSIGNED`] (`IFA_PROTO`, Linux 5.18), and an IPv4 one a label that says as well which of
//! the pod's settings were changed for it. Who puts it there notes that elsewhere too: addresses may be removed by hand.
//!
//! IPv4 counts an address as the host's, whichever interface has it: by default a pod answers ARP for the VIP on every
//! link that it has, and names it as the sender of its own questions, which a gateway with a strict reverse path filter
//! leaves unanswered (net/ipv4/arp.c, `arp_ignore` and `arp_solicit`). So the settings of these names are raised for all
//! interfaces, where they are 0. IPv6 counts an address as its interface's (net/ipv6/ndisc.c, `ndisc_recv_ns` and
//! `ndisc_send_ns`) and needs nothing.

use std::{fs, io, net::IpAddr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol},
};

use super::{Capability, Error, InterfaceIndex, Netlink, Result, netns::Netns};

/// The protocol of addresses that an agent puts on a pod's `lo`. Linux has 1 to 3, and leaves the rest to whoever needs
/// one; `ip address show proto 83` lists them.
pub const ASSIGNED: AddressProtocol = AddressProtocol::Other(b'S');

/// `lo` has this number in every namespace (include/net/net_namespace.h, `LOOPBACK_IFINDEX`).
pub const LOOPBACK: InterfaceIndex = 1;
/// Beginning of the label of an IPv4 address; a digit follows, the sum of [`Setting::bit`] of what was changed.
const LABEL: &str = "lo:sluice";

/// [`ARP_IGNORE`] and [`ARP_ANNOUNCE`] as bits of a set.
pub type Raised = u8;
/// `arp_ignore`.
pub const ARP_IGNORE: Raised = 1;
/// `arp_announce`.
pub const ARP_ANNOUNCE: Raised = 2;

/// A setting of all interfaces of a namespace (Documentation/networking/ip-sysctl.rst).
struct Setting {
    path: &'static str,
    /// What it is raised to from 0.
    raised: &'static str,
    bit: Raised,
}

const SETTINGS: [Setting; 2] = [
    // Only interfaces that have the address answer for it.
    Setting { path: "/proc/sys/net/ipv4/conf/all/arp_ignore", raised: "1", bit: ARP_IGNORE },
    // Questions come from an address of the interface.
    Setting { path: "/proc/sys/net/ipv4/conf/all/arp_announce", raised: "2", bit: ARP_ANNOUNCE },
];

/// The settings of the calling thread's namespace that [`assign_here`] would raise.
pub fn to_raise_here() -> Result<Raised> {
    let mut low = 0;
    for setting in &SETTINGS {
        low |= if read(setting)? == "0" { setting.bit } else { 0 };
    }
    Ok(low)
}

/// [`lower_unused_here`] in another namespace.
pub fn lower_unused(netns: &Netns, raised: Raised) -> Result<bool> {
    netns.run(|| lower_unused_here(raised))?
}

/// Lowers settings of the calling thread's namespace that were raised, unless agents have IPv4 VIPs there still, or somebody
/// has changed them meanwhile. False where they have.
pub fn lower_unused_here(raised: Raised) -> Result<bool> {
    let is_used = assigned(&mut Netlink::open()?)?.iter().any(|(address, _)| address.is_ipv4());
    if !is_used {
        lower(raised)?;
    }
    Ok(!is_used)
}

/// [`assign_here`] in another namespace.
pub fn assign(netns: &Netns, vip: IpAddr, raised: Raised) -> Result<()> {
    netns.run(|| assign_here(vip, raised))?
}

/// [`withdraw_here`] in another namespace.
pub fn withdraw(netns: &Netns, vip: IpAddr) -> Result<()> {
    netns.run(|| withdraw_here(vip))?
}

/// Puts a VIP on the `lo` of the calling thread's namespace, as a /32 or /128. One that is there stays as it is, whoever
/// put it there. `raised` is what agents are known to have raised there before.
///
/// # Errors
/// Needs CAP_NET_ADMIN over the namespace and, for IPv4, a writable `/proc/sys/net`.
pub fn assign_here(vip: IpAddr, raised: Raised) -> Result<()> {
    let mut netlink = Netlink::open()?;
    let mut label = None;
    if vip.is_ipv4() {
        let known = assigned(&mut netlink)?.into_iter().find_map(|(_, changed)| changed);
        // What it was before is known from the first VIP on.
        let changed = raised | known.map_or_else(raise, Ok)?;
        label = Some(AddressAttribute::Label(format!("{LABEL}{changed}")));
    }
    let mut message = message(vip);
    message.attributes.extend([AddressAttribute::Protocol(ASSIGNED)].into_iter().chain(label));
    // No other interface can have heard of it: there is nobody to ask for duplicates.
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    let action = format!("put {vip} on the pod's lo");
    match netlink.change(&action, RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL) {
        Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        done => done,
    }
}

/// Takes a VIP from the `lo` of the calling thread's namespace, if an agent has put it there; with the last one of IPv4
/// the settings are as they were, unless somebody has changed them meanwhile.
pub fn withdraw_here(vip: IpAddr) -> Result<()> {
    let mut netlink = Netlink::open()?;
    let there = assigned(&mut netlink)?;
    let Some(&(_, changed)) = there.iter().find(|(address, _)| *address == vip) else { return Ok(()) };
    let action = format!("take {vip} from the pod's lo");
    netlink.change(&action, RouteNetlinkMessage::DelAddress(message(vip)), 0)?;
    match changed {
        Some(changed) if there.iter().filter(|(address, _)| address.is_ipv4()).count() == 1 => lower(changed),
        _ => Ok(()),
    }
}

fn message(vip: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    (message.header.family, message.header.prefix_len) = match vip {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.index = LOOPBACK;
    message.attributes = vec![AddressAttribute::Local(vip), AddressAttribute::Address(vip)];
    message
}

/// The addresses that agents have put on this namespace's `lo`, each with what its label says was changed.
fn assigned(netlink: &mut Netlink) -> Result<Vec<(IpAddr, Option<u8>)>> {
    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let answers = netlink.dump("list the addresses of a pod", question)?;
    let assigned = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewAddress(message) if message.header.index == LOOPBACK => decode(&message),
        _ => None,
    });
    Ok(assigned.collect())
}

fn decode(message: &AddressMessage) -> Option<(IpAddr, Option<u8>)> {
    let (mut address, mut is_assigned, mut changed) = (None, false, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Protocol(protocol) => is_assigned = *protocol == ASSIGNED,
            AddressAttribute::Label(label) => changed = label.strip_prefix(LABEL).and_then(|digit| digit.parse().ok()),
            _ => {}
        }
    }
    address.filter(|_| is_assigned).map(|address| (address, changed))
}

/// Raises the settings that are 0, and says which.
fn raise() -> Result<u8> {
    let mut changed = 0;
    for setting in &SETTINGS {
        if read(setting)? == "0" {
            write(setting, setting.raised)?;
            changed |= setting.bit;
        }
    }
    Ok(changed)
}

fn lower(changed: u8) -> Result<()> {
    for setting in SETTINGS.iter().filter(|setting| changed & setting.bit != 0) {
        if read(setting)? == setting.raised {
            write(setting, "0")?;
        }
    }
    Ok(())
}

/// Of the calling thread's namespace.
fn read(setting: &Setting) -> Result<String> {
    let text = fs::read_to_string(setting.path);
    text.map(|text| text.trim().to_owned()).map_err(|source| failed("read", setting, source))
}

fn write(setting: &Setting, value: &str) -> Result<()> {
    fs::write(setting.path, value).map_err(|source| failed("write", setting, source))
}

fn failed(verb: &str, setting: &Setting, source: io::Error) -> Error {
    Error::new(format!("{verb} {} of the pod", setting.path), Capability::NetAdmin, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_agent_has_put_there_is_known_as_such() {
        let vip = IpAddr::from([198, 51, 100, 11]);
        let mut message = message(vip);
        assert_eq!(decode(&message), None);
        message.attributes.push(AddressAttribute::Label(format!("{LABEL}3")));
        assert_eq!(decode(&message), None, "a label is anybody's");
        message.attributes.push(AddressAttribute::Protocol(ASSIGNED));
        assert_eq!(decode(&message), Some((vip, Some(3))));
    }
}
