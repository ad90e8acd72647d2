//! Whether this node may announce a VIP. Pure: one function of what is known, for each VIP and means.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use serde::Serialize;

use super::{vrrp::Vrid, wanted::RouterKey};
use crate::{
    model::announce::Prefix,
    net::{InterfaceIndex, links::Mac},
};

/// What is known of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Every configured VIP.
    pub vips: BTreeMap<IpAddr, VipFacts>,
    /// Interfaces by name: those that exist.
    pub interfaces: BTreeMap<String, InterfaceFacts>,
    /// A program is attached to an uplink that carries packets.
    pub has_uplink: bool,
    /// How far this node has gone in leaving.
    pub leaving: Leaving,
    /// BGP peers, by name, that another process of this node stands in the way of, and how.
    pub taken: BTreeMap<String, String>,
    /// This host's addresses, and the interface of each.
    pub own: BTreeMap<IpAddr, String>,
}

/// How far a node has gone in leaving: by `sluice drain`, or as the agent stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Leaving {
    /// It stays.
    #[default]
    Stays,
    /// It hands over to others. Routers still have its routes, marked as going.
    HandsOver,
    /// It announces nothing.
    Left,
}

/// What is known of a VIP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipFacts {
    /// The maps have it.
    pub is_installed: bool,
    /// Any of its services has a backend, wherever.
    pub has_backends: bool,
    /// Backends that packets reach from here and that take new connections. Until there is delivery between nodes, those
    /// of this node.
    pub reachable: usize,
    /// Backends of this node into whose pods no rung has brought a packet by the self-test.
    pub untested: usize,
    /// Backends whose pods can be reached from here, but whose health checks fail.
    pub unhealthy: usize,
    /// It was lost too often lately, and has not been well for long enough.
    pub is_held_down: bool,
}

impl VipFacts {
    /// Whether packets for it would reach a backend.
    #[must_use]
    pub const fn is_served(&self) -> bool {
        self.is_installed && self.reachable != 0
    }
}

/// What is known of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceFacts {
    /// Its index.
    pub index: InterfaceIndex,
    /// What frames from it have as their source.
    pub mac: Mac,
    /// It can carry packets.
    pub is_running: bool,
    /// The VLAN that its frames have where a program looks at them; 0: none. Nothing where they have two tags.
    pub vlan: Option<u16>,
    /// Where its frames come in and a program looks at them: of a bond, members that carry traffic. None: nowhere.
    pub attached: Vec<InterfaceIndex>,
    /// Its addresses, in the kernel's order: the first of a family is the primary one.
    pub addresses: Vec<IpAddr>,
    /// The prefixes of these.
    pub prefixes: Vec<Prefix>,
}

/// A way to announce a VIP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase", tag = "by")]
pub enum Means {
    /// By answering for it on an interface's segment, without any election.
    Always {
        /// The interface.
        interface: String,
    },
    /// By a virtual router.
    Vrrp {
        /// The group.
        group: String,
        /// Its interface.
        interface: String,
        /// The virtual router that has this VIP.
        vrid: Vrid,
        /// Other interfaces that must carry packets.
        track: Vec<String>,
    },
    /// By a route to a router.
    Bgp {
        /// The peer.
        peer: String,
        /// The interface that it is on, where that is configured.
        interface: Option<String>,
    },
}

impl Means {
    /// The interface on which the VIP is told of.
    fn interface(&self) -> Option<&str> {
        match self {
            Self::Always { interface } | Self::Vrrp { interface, .. } => Some(interface),
            Self::Bgp { interface, .. } => interface.as_deref(),
        }
    }

    fn tracked(&self) -> &[String] {
        match self {
            Self::Always { .. } | Self::Bgp { .. } => &[],
            Self::Vrrp { track, .. } => track,
        }
    }

    /// Whether it is this virtual router; of its family are its VIPs.
    #[must_use]
    pub(super) fn is_of(&self, key: &RouterKey) -> bool {
        match self {
            Self::Vrrp { interface, vrid, .. } => *interface == key.interface && *vrid == key.vrid,
            Self::Always { .. } | Self::Bgp { .. } => false,
        }
    }

    /// From when on a leaving node does not announce: routes are marked before they go.
    const fn ends_with(&self) -> Leaving {
        match self {
            Self::Always { .. } | Self::Vrrp { .. } => Leaving::HandsOver,
            Self::Bgp { .. } => Leaving::Left,
        }
    }
}

/// Whether the configuration wants a VIP announced by a means at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The means is for this VIP.
    pub has_vip: bool,
    /// The means is for addresses of this family.
    pub has_family: bool,
    /// The means is for this node.
    pub has_node: bool,
}

impl Scope {
    /// It does.
    pub const ALL: Self = Self { has_vip: true, has_family: true, has_node: true };
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always { interface } => write!(f, "always on {interface}"),
            Self::Vrrp { group, interface, vrid, .. } => write!(f, "VRRP {group}: {vrid} on {interface}"),
            Self::Bgp { peer, .. } => write!(f, "BGP {peer}"),
        }
    }
}

/// What of an announcement depends on this node as it is. All else is the configuration's, and the same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Backends that can be reached, of which link bandwidth is made.
    pub backends: usize,
    /// It is marked as going (RFC 8326): this node hands over.
    pub is_going: bool,
}

/// What is decided of a VIP and means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may be announced, with these.
    Announce(Attributes),
    /// Everything that is against it; never empty.
    Withhold(BTreeSet<Reason>),
}

impl Decision {
    /// This too is against it.
    pub(super) fn add(&mut self, reason: Reason) {
        match self {
            Self::Announce(_) => *self = Self::Withhold([reason].into()),
            Self::Withhold(reasons) => drop(reasons.insert(reason)),
        }
    }
}

/// Why a VIP is not announced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase", tag = "reason")]
pub enum Reason {
    /// The maps do not have it: it is new, or they are full.
    NotInstalled,
    /// None of its services has a backend, wherever.
    NoBackends,
    /// None of its backends can be reached from this node.
    NoReachableBackend,
    /// The self-test has not brought a packet into the pod of any that is on this node.
    SelfTestFailed,
    /// All that can be reached fail their health checks.
    Unhealthy,
    /// An interface is not there.
    NoInterface {
        /// Which.
        interface: String,
    },
    /// An interface is down, or has no carrier.
    InterfaceDown {
        /// Which.
        interface: String,
    },
    /// No program is attached where the interface's frames come in.
    NoProgram {
        /// Which.
        interface: String,
    },
    /// Its frames have a tag within a tag, and questions in such are not answered.
    Vlan {
        /// Which.
        interface: String,
    },
    /// Version 2 of VRRP is for IPv4 alone.
    Version,
    /// The virtual router that has it has more than one can carry.
    TooManyVips,
    /// The interface does not take frames to the virtual router's MAC.
    MacRefused {
        /// Which.
        interface: String,
    },
    /// The interface has no address that advertisements can come from: of IPv4, or link-local of IPv6.
    NoAddress {
        /// Which.
        interface: String,
    },
    /// The means is for other VIPs.
    NotSelected,
    /// The means is for the other family.
    Family,
    /// The means is for other nodes.
    NodeExcluded,
    /// No uplink carries packets and has a program attached.
    NoUplink,
    /// The node is leaving: by `sluice drain`, or because the agent stops.
    Draining,
    /// It was lost several times lately, and comes back once it has been well for a while.
    HeldDown,
    /// Another process of this node holds the peer's session, or the port for it.
    Taken {
        /// Who, and what to do about it.
        how: String,
    },
}

impl Reason {
    /// The name as the status shows it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NotInstalled => "not_installed",
            Self::NoBackends => "no_backends",
            Self::NoReachableBackend => "no_reachable_backend",
            Self::SelfTestFailed => "self_test_failed",
            Self::Unhealthy => "unhealthy",
            Self::NoInterface { .. } => "no_interface",
            Self::InterfaceDown { .. } => "interface_down",
            Self::NoProgram { .. } => "no_program",
            Self::Vlan { .. } => "vlan",
            Self::Version => "version",
            Self::TooManyVips => "too_many_vips",
            Self::MacRefused { .. } => "mac_refused",
            Self::NoAddress { .. } => "no_address",
            Self::NotSelected => "not_selected",
            Self::Family => "family",
            Self::NodeExcluded => "node_excluded",
            Self::NoUplink => "no_uplink",
            Self::Draining => "draining",
            Self::HeldDown => "held_down",
            Self::Taken { .. } => "taken",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled => f.write_str("the maps do not have it yet"),
            Self::NoBackends => f.write_str("its services have no backends"),
            Self::NoReachableBackend => f.write_str("none of its backends can be reached from this node"),
            Self::SelfTestFailed => {
                f.write_str("no packet came into its pods on this node by the self-test: `sluice status` says why")
            }
            Self::Unhealthy => f.write_str("all of its backends on this node fail their health checks"),
            Self::NoInterface { interface } => write!(f, "there is no interface {interface}"),
            Self::InterfaceDown { interface } => write!(f, "{interface} is down"),
            Self::NoProgram { interface } => write!(f, "no program is attached to {interface}"),
            Self::Vlan { interface } => {
                write!(f, "{interface} is a VLAN in a VLAN: questions with two tags are not answered")
            }
            Self::Version => f.write_str("version 2 of VRRP is for IPv4 alone"),
            Self::TooManyVips => f.write_str("its virtual router has too many VIPs: write more vrids"),
            Self::MacRefused { interface } => {
                write!(f, "{interface} does not take frames to the MAC of its virtual router: the log says why")
            }
            Self::NoAddress { interface } => write!(f, "{interface} has no address that advertisements can come from"),
            Self::NotSelected => f.write_str("the configuration does not want it announced there"),
            Self::Family => f.write_str("its address family is not announced there"),
            Self::NodeExcluded => f.write_str("the configuration does not want this node to announce there"),
            Self::NoUplink => f.write_str("no uplink is up with a program attached"),
            Self::Draining => f.write_str("this node is leaving: `sluice undrain` brings it back"),
            Self::HeldDown => f.write_str("it was lost several times lately, and has to be well for longer"),
            Self::Taken { how } => f.write_str(how),
        }
    }
}

/// Decides about a VIP and means.
#[must_use]
pub fn decide(facts: &Facts, vip: IpAddr, means: &Means, scope: Scope) -> Decision {
    let known = facts.vips.get(&vip).copied().unwrap_or_default();
    let mut against = BTreeSet::new();
    let mut check = |holds: bool, reason: Reason| {
        if !holds {
            against.insert(reason);
        }
    };
    check(scope.has_vip, Reason::NotSelected);
    check(scope.has_family, Reason::Family);
    check(scope.has_node, Reason::NodeExcluded);
    check(facts.leaving < means.ends_with(), Reason::Draining);
    check(known.is_installed, Reason::NotInstalled);
    check(known.has_backends, Reason::NoBackends);
    // Without any there is none to be reached: one reason is enough.
    let is_near = known.reachable + known.unhealthy + known.untested != 0;
    check(is_near || !known.has_backends, Reason::NoReachableBackend);
    check(known.reachable != 0 || known.untested == 0, Reason::SelfTestFailed);
    check(known.reachable != 0 || known.unhealthy == 0, Reason::Unhealthy);
    for interface in means.interface().into_iter().chain(means.tracked().iter().map(String::as_str)) {
        let named = || interface.to_owned();
        match facts.interfaces.get(interface) {
            None => check(false, Reason::NoInterface { interface: named() }),
            Some(facts) => check(facts.is_running, Reason::InterfaceDown { interface: named() }),
        }
    }
    match means {
        Means::Always { interface } | Means::Vrrp { interface, .. } => {
            let named = || interface.clone();
            if let Some(facts) = facts.interfaces.get(interface) {
                check(facts.vlan.is_some(), Reason::Vlan { interface: named() });
                check(!facts.attached.is_empty(), Reason::NoProgram { interface: named() });
                let needs_address = matches!(means, Means::Vrrp { .. });
                check(!needs_address || facts.source(vip).is_some(), Reason::NoAddress { interface: named() });
            }
        }
        Means::Bgp { peer, .. } => {
            // Routers send by any way to the next hop, which is this node.
            check(facts.has_uplink, Reason::NoUplink);
            check(!known.is_held_down, Reason::HeldDown);
            if let Some(how) = facts.taken.get(peer) {
                check(false, Reason::Taken { how: how.clone() });
            }
        }
    }
    if against.is_empty() {
        let is_going = facts.leaving != Leaving::Stays;
        Decision::Announce(Attributes { backends: known.reachable, is_going })
    } else {
        Decision::Withhold(against)
    }
}

impl InterfaceFacts {
    /// The address that advertisements about a VIP come from (RFC 9568, 5.1.1.1 and 5.1.2.1).
    #[must_use]
    pub fn source(&self, vip: IpAddr) -> Option<IpAddr> {
        let fits = |address: &&IpAddr| match (vip, address) {
            (IpAddr::V4(_), IpAddr::V4(_)) => true,
            (IpAddr::V6(_), IpAddr::V6(address)) => address.is_unicast_link_local(),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        };
        self.addresses.iter().find(fits).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: &str = "198.51.100.1";

    fn facts() -> Facts {
        let addresses = ["192.0.2.1", "2001:db8::1", "fe80::1"].map(|text| text.parse().unwrap()).to_vec();
        let interface = InterfaceFacts {
            index: 2,
            vlan: Some(0),
            is_running: true,
            attached: vec![2],
            addresses,
            ..InterfaceFacts::default()
        };
        let vip = VipFacts { is_installed: true, has_backends: true, reachable: 1, ..VipFacts::default() };
        Facts {
            vips: [VIP, "2001:db8:1::1"].map(|text| (text.parse().unwrap(), vip)).into(),
            interfaces: ["eth0", "eth1"].map(|name| (name.to_owned(), interface.clone())).into(),
            has_uplink: true,
            ..Facts::default()
        }
    }

    fn means() -> [Means; 3] {
        let interface = "eth0".to_owned();
        let vrid = Vrid::new(7).unwrap();
        let track = vec!["eth1".to_owned()];
        [
            Means::Always { interface: interface.clone() },
            Means::Vrrp { group: "core".to_owned(), interface, vrid, track },
            Means::Bgp { peer: "tor".to_owned(), interface: None },
        ]
    }

    fn against(facts: &Facts, means: &Means) -> Vec<&'static str> {
        match decide(facts, VIP.parse().unwrap(), means, Scope::ALL) {
            Decision::Announce(_) => Vec::new(),
            Decision::Withhold(reasons) => reasons.iter().map(Reason::name).collect(),
        }
    }

    #[test]
    fn what_nothing_is_against_is_announced() {
        for means in means() {
            for vip in [VIP, "2001:db8:1::1"] {
                let plain = Decision::Announce(Attributes { backends: 1, is_going: false });
                assert_eq!(decide(&facts(), vip.parse().unwrap(), &means, Scope::ALL), plain, "{means}");
            }
        }
        let going = Facts { leaving: Leaving::HandsOver, ..facts() };
        let [.., route] = means();
        let marked = Decision::Announce(Attributes { backends: 1, is_going: true });
        assert_eq!(decide(&going, VIP.parse().unwrap(), &route, Scope::ALL), marked);
    }

    #[test]
    fn each_reason_alone_is_against_it_and_all_are_told_together() {
        type Change = (fn(&mut Facts), [&'static [&'static str]; 3]);
        fn vip(facts: &mut Facts) -> &mut VipFacts {
            facts.vips.values_mut().next().unwrap()
        }
        fn interface<'a>(facts: &'a mut Facts, name: &str) -> &'a mut InterfaceFacts {
            facts.interfaces.get_mut(name).unwrap()
        }
        let changes: [Change; 19] = [
            (|facts| vip(facts).is_installed = false, [&["not_installed"]; 3]),
            (|facts| vip(facts).reachable = 0, [&["no_reachable_backend"]; 3]),
            (|facts| (vip(facts).reachable, vip(facts).unhealthy) = (0, 2), [&["unhealthy"]; 3]),
            (|facts| vip(facts).unhealthy = 2, [&[]; 3]),
            (|facts| (vip(facts).reachable, vip(facts).untested) = (0, 2), [&["self_test_failed"]; 3]),
            (|facts| vip(facts).untested = 2, [&[]; 3]),
            (
                |facts| *vip(facts) = VipFacts { reachable: 0, unhealthy: 1, untested: 1, ..*vip(facts) },
                [&["self_test_failed", "unhealthy"]; 3],
            ),
            (|facts| *vip(facts) = VipFacts { is_installed: true, ..VipFacts::default() }, [&["no_backends"]; 3]),
            (|facts| interface(facts, "eth0").is_running = false, [&["interface_down"], &["interface_down"], &[]]),
            (|facts| interface(facts, "eth0").attached.clear(), [&["no_program"], &["no_program"], &[]]),
            (|facts| interface(facts, "eth0").vlan = None, [&["vlan"], &["vlan"], &[]]),
            (|facts| interface(facts, "eth0").addresses.retain(IpAddr::is_ipv6), [&[], &["no_address"], &[]]),
            (|facts| interface(facts, "eth1").is_running = false, [&[], &["interface_down"], &[]]),
            (|facts| drop(facts.interfaces.remove("eth1")), [&[], &["no_interface"], &[]]),
            (|facts| facts.has_uplink = false, [&[], &[], &["no_uplink"]]),
            (|facts| vip(facts).is_held_down = true, [&[], &[], &["held_down"]]),
            (|facts| drop(facts.taken.insert("tor".to_owned(), "bird".to_owned())), [&[], &[], &["taken"]]),
            (|facts| facts.leaving = Leaving::HandsOver, [&["draining"], &["draining"], &[]]),
            (|facts| facts.leaving = Leaving::Left, [&["draining"]; 3]),
        ];
        for (change, expected) in &changes {
            let mut changed = facts();
            change(&mut changed);
            assert_eq!(means().map(|means| against(&changed, &means)), expected.map(<[_]>::to_vec));
        }
        let nothing = Facts::default();
        let all = [["no_backends", "no_interface", "not_installed"]; 2];
        let all = [&all[0][..], &all[1][..], &["no_backends", "no_uplink", "not_installed"]];
        for (means, all) in means().iter().zip(all) {
            let mut found = against(&nothing, means);
            found.sort_unstable();
            found.dedup();
            assert_eq!(found, all, "{means}");
        }
    }

    #[test]
    fn what_the_configuration_does_not_want_there_has_its_reasons_too() {
        let scopes = [
            (Scope { has_vip: false, ..Scope::ALL }, Reason::NotSelected),
            (Scope { has_family: false, ..Scope::ALL }, Reason::Family),
            (Scope { has_node: false, ..Scope::ALL }, Reason::NodeExcluded),
        ];
        for ((scope, reason), means) in scopes.iter().zip(means()) {
            let decision = decide(&facts(), VIP.parse().unwrap(), &means, *scope);
            assert_eq!(decision, Decision::Withhold([reason.clone()].into()), "{means}");
        }
    }
}
