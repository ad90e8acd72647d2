//! Which interfaces a configured uplink means.
//!
//! Programs are attached where frames come in: to the members of a bond and to the parent of a VLAN, in any stack of
//! these. Replies leave by the interface that routes lead to, which is the configured one: its *exit*. Level-triggered:
//! asked with each picture of the links, so a member that joins a bond later is attached like the others.

use std::collections::BTreeMap;

use super::{Check, Finding};
use crate::{
    model::{Uplink, XdpModeChoice},
    net::{
        InterfaceIndex,
        links::{Bond, Link, LinkKind},
    },
};

/// Interfaces that programs are attached to: as many as 16 uplinks, each a bond of four.
pub const PLACES_MAX: usize = 64;
/// Devices from an uplink down to the wire: a VLAN in a VLAN on a bond has four.
const DEPTH_MAX: usize = 8;
/// How many names a refusal lists.
const NAMES_MAX: usize = 16;

/// An interface that programs are to be attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where.
    pub index: InterfaceIndex,
    /// Its name, and the mode of the uplinks that mean it.
    pub wanted: Uplink,
    /// The uplinks that mean it, in the order of the configuration; never empty.
    pub exits: Vec<InterfaceIndex>,
}

impl Place {
    /// The first uplink that means it: what routes lead to.
    pub fn exit(&self) -> InterfaceIndex {
        self.exits.first().copied().unwrap_or(self.index)
    }
}

/// What all uplinks mean together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolution {
    /// Each interface once: in the order of the uplinks, and of a bond's members the ones that carry traffic first.
    pub places: Vec<Place>,
    /// Why others mean nothing.
    pub refused: Vec<Finding>,
}

/// Resolves the uplinks of a configuration. `links` are this node's, ordered by index.
pub fn resolve(uplinks: &[Uplink], links: &[Link]) -> Resolution {
    let mut resolution = Resolution::default();
    let mut at: BTreeMap<InterfaceIndex, usize> = BTreeMap::new();
    for uplink in uplinks {
        let (exit, found) = match wires(&uplink.interface, links) {
            Ok(found) => found,
            Err(refusal) => {
                resolution.refused.push(*refusal);
                continue;
            }
        };
        for link in found {
            let known = resolution.places.len();
            let place = *at.entry(link.index).or_insert(known);
            match resolution.places.get_mut(place) {
                Some(other) if other.wanted.mode != uplink.mode => {
                    let refusal = modes_differ(&uplink.interface, other.wanted.mode, uplink.mode, link);
                    resolution.refused.push(refusal);
                }
                Some(other) => other.exits.push(exit),
                None if known < PLACES_MAX => {
                    let wanted = Uplink { interface: link.name.clone(), mode: uplink.mode };
                    resolution.places.push(Place { index: link.index, wanted, exits: vec![exit] });
                }
                None => {
                    at.remove(&link.index);
                    resolution.refused.push(Finding::new(
                        Check::UplinkTooMany,
                        &link.name,
                        format!("{} is one interface too many below the uplinks, at most {PLACES_MAX}", link.name),
                        "take uplinks out of the configuration",
                    ));
                }
            }
        }
    }
    resolution
}

/// The configured interface's index, and the interfaces below it that frames come in by.
pub(super) fn wires<'a>(name: &str, links: &'a [Link]) -> Result<(InterfaceIndex, Vec<&'a Link>), Box<Finding>> {
    let uplink = links.iter().find(|link| link.name == name).ok_or_else(|| Box::new(missing(name, links)))?;
    let mut wires = Vec::new();
    descend(uplink, None, links, DEPTH_MAX, &mut wires)?;
    Ok((uplink.index, wires))
}

fn descend<'a>(
    link: &'a Link,
    above: Option<&Link>,
    links: &'a [Link],
    depth: usize,
    wires: &mut Vec<&'a Link>,
) -> Result<(), Box<Finding>> {
    let refuse = |check, found: String, advice: &str| Err(Box::new(Finding::new(check, &link.name, found, advice)));
    if depth == 0 {
        return refuse(
            Check::UplinkElsewhere,
            format!("{} is built on more than {DEPTH_MAX} devices", link.name),
            "name an interface nearer to the wire",
        );
    }
    check_master(link, above, links)?;
    match &link.kind {
        LinkKind::Physical | LinkKind::Veth => {
            if !link.is_ethernet {
                let found = format!("{} carries no Ethernet frames", link.name);
                return refuse(Check::UplinkKind, found, "name the interface that Ethernet frames come in by");
            }
            wires.push(link);
            Ok(())
        }
        LinkKind::Vlan(_) => {
            let parent = link.peer.filter(|_| link.peer_netns.is_none());
            match parent.and_then(|parent| by_index(links, parent)) {
                Some(parent) => descend(parent, Some(link), links, depth - 1, wires),
                None => refuse(
                    Check::UplinkElsewhere,
                    format!("the parent of VLAN {} is not in this network namespace", link.name),
                    "run the agent in the namespace that has the parent",
                ),
            }
        }
        LinkKind::Bond(bond) => {
            let mut members: Vec<&Link> = links.iter().filter(|member| member.master == Some(link.index)).collect();
            // The self-test uses the first: frames that come in by another than the active one are not for the stack.
            members.sort_by_key(|member| (bond.active != Some(member.index), !member.is_running));
            members.into_iter().try_for_each(|member| descend(member, Some(link), links, depth - 1, wires))
        }
        LinkKind::Loopback => refuse(
            Check::UplinkKind,
            format!("{} is the loopback interface, which nothing from outside comes in by", link.name),
            "name the interface that packets for VIPs arrive on",
        ),
        LinkKind::Bridge => refuse(
            Check::UplinkKind,
            format!("{} is a bridge, whose ports take frames before any program on it does", link.name),
            "give the addresses to an interface that is in no bridge, and name that one",
        ),
        LinkKind::Vrf => refuse(
            Check::UplinkKind,
            format!("{} is a VRF, which no frames come in by", link.name),
            "name an interface that is in no VRF: the sockets of a VRF cannot be asked for",
        ),
        LinkKind::Other(kind) => other(link, kind, wires),
    }
}

/// Kinds that steering cannot work on, whatever their drivers say, and why.
const UNFIT: [(&str, &[&str], &str); 4] = [
    ("shares the frames of another interface", &["macvlan", "macvtap", "ipvlan", "ipvtap"], "name that one"),
    ("is a team, whose members change unseen", &["team"], "make it a bond, whose members the agent follows"),
    (
        "is a tunnel, or has no frames of Ethernet",
        &[
            "gre",
            "gretap",
            "ip6gre",
            "ip6gretap",
            "erspan",
            "ip6erspan",
            "ipip",
            "ip6tnl",
            "sit",
            "vti",
            "vti6",
            "xfrm",
            "wireguard",
            "vxlan",
            "geneve",
            "bareudp",
            "gtp",
            "pfcp",
            "can",
            "vcan",
            "vxcan",
            "wwan",
            "rmnet",
            "amt",
            "macsec",
        ],
        "name the interface that its packets come in by",
    ),
    (
        "carries nothing from outside",
        &["dummy", "ifb", "nlmon", "netkit"],
        "name the interface that packets for VIPs arrive on",
    ),
];

fn other<'a>(link: &'a Link, kind: &str, wires: &mut Vec<&'a Link>) -> Result<(), Box<Finding>> {
    match UNFIT.iter().find(|(_, kinds, _)| kinds.contains(&kind)) {
        Some((why, _, advice)) => {
            let found = format!("{} is of kind {kind}: it {why}", link.name);
            Err(Box::new(Finding::new(Check::UplinkKind, &link.name, found, *advice)))
        }
        // Kinds that come after this program are tried: see `Check::UplinkUntried`.
        None => {
            wires.push(link);
            Ok(())
        }
    }
}

/// Refuses what is part of something else than that which it was reached from.
fn check_master(link: &Link, above: Option<&Link>, links: &[Link]) -> Result<(), Box<Finding>> {
    let Some(master) = link.master.filter(|master| above.is_none_or(|above| above.index != *master)) else {
        return Ok(());
    };
    let master = by_index(links, master);
    let name = master.map_or("another", |master| master.name.as_str());
    let (check, found, advice) = match master.map(|master| &master.kind) {
        Some(LinkKind::Vrf) => (
            Check::UplinkVrf,
            format!(
                "{} is in the VRF {name}, where every question for a socket fails: sessions would break",
                link.name
            ),
            format!("take it out of {name} (`ip link set {} nomaster`), or name another interface", link.name),
        ),
        Some(LinkKind::Bond(_)) => (
            Check::UplinkMember,
            format!("{} is a member of the bond {name}, which routes lead to and replies leave by", link.name),
            format!("name {name}: the agent attaches to its members"),
        ),
        Some(LinkKind::Other(kind)) if kind == "team" => (
            Check::UplinkMember,
            format!("{} is a member of the team {name}, whose members change unseen", link.name),
            "make it a bond, and name that".to_owned(),
        ),
        _ => (
            Check::UplinkBridgePort,
            format!(
                "{} is a port of {name}, which routes lead to and takes the frames that are not for pods",
                link.name
            ),
            "name an interface that is in no bridge and has the node's addresses".to_owned(),
        ),
    };
    Err(Box::new(Finding::new(check, &link.name, found, advice)))
}

fn missing(name: &str, links: &[Link]) -> Finding {
    let mut there: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
    let nearest = there.iter().map(|other| (strsim::osa_distance(name, other), *other)).min();
    // Pods' interfaces may be hundreds; what could be meant comes first.
    there.sort_by_key(|other| strsim::osa_distance(name, other));
    let more = if there.len() > NAMES_MAX { format!(" and {} more", there.len() - NAMES_MAX) } else { String::new() };
    there.truncate(NAMES_MAX);
    let advice = match nearest {
        Some((distance, nearest)) if distance <= 2 => format!("did you mean {nearest}?"),
        _ => "write the name of one that packets for VIPs arrive on".to_owned(),
    };
    let found = format!("uplink {name} does not exist on this node; there are: {}{more}", there.join(", "));
    Finding::new(Check::UplinkMissing, name, found, advice)
}

fn modes_differ(object: &str, first: XdpModeChoice, second: XdpModeChoice, link: &Link) -> Finding {
    let name = |mode| match mode {
        XdpModeChoice::Auto => "auto",
        XdpModeChoice::Native => "native",
        XdpModeChoice::Generic => "generic",
    };
    let found = format!(
        "uplink {object} asks for mode {} on {}, and another uplink for {}",
        name(second),
        link.name,
        name(first)
    );
    Finding::new(Check::UplinkModes, object, found, "write the same mode for both")
}

/// The tag that an interface's frames have where programs see them, 0 for none, and the bond that carries them. Nothing for
/// frames with a tag within a tag.
pub fn carrier<'a>(link: &'a Link, links: &'a [Link]) -> Option<(u16, Option<&'a Bond>)> {
    let (tag, below) = match link.kind {
        LinkKind::Vlan(id) => (id?, by_index(links, link.peer?)?),
        _ => (0, link),
    };
    let is_tagged = |link: &Link| matches!(link.kind, LinkKind::Vlan(_));
    match &below.kind {
        LinkKind::Vlan(_) => None,
        LinkKind::Bond(bond) => {
            let mut members = links.iter().filter(|member| member.master == Some(below.index));
            (!members.any(is_tagged)).then_some((tag, Some(bond)))
        }
        _ => Some((tag, None)),
    }
}

pub(super) fn by_index(links: &[Link], index: InterfaceIndex) -> Option<&Link> {
    links.iter().find(|link| link.index == index)
}
