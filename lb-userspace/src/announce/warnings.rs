//! What looks wrong about a VIP and does not keep it from being announced. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use serde::Serialize;

use super::{eligibility::Facts, vrrp::Vrid};
use crate::model::{announce::Announce, bgp::NodeSelection};

/// For each VIP the virtual routers that share one fate among more than this node can serve.
pub type SharedFates = BTreeMap<IpAddr, BTreeSet<(String, Vrid)>>;

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase", tag = "warning")]
pub enum Warning {
    /// Nobody on the segment asks for it there, unless a route says so.
    OutsidePrefixes {
        /// Where it is to be answered for.
        interface: String,
    },
    /// This host has it on an interface: kube-proxy in IPVS mode puts it there, or somebody by mistake.
    OnThisHost {
        /// Which.
        interface: String,
    },
    /// Where this node holds the virtual router, others of its VIPs are dark; where another does, this one may be.
    SharedFate {
        /// Its group.
        group: String,
        /// The virtual router.
        vrid: Vrid,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutsidePrefixes { interface } => write!(
                f,
                "it lies in none of the prefixes of {interface}: who is to find it there needs a route to it on that segment"
            ),
            Self::OnThisHost { interface } => write!(
                f,
                "this host has it on {interface}: what the data plane does not take, the host answers itself; unless \
                 kube-proxy has put it there, take it away"
            ),
            Self::SharedFate { group, vrid } => write!(
                f,
                "its virtual router {vrid} of {group} has other VIPs, which this node cannot serve, and one node has all of them: give VIPs whose backends \
                 are on other nodes a group with vrids of its own"
            ),
        }
    }
}

/// What is to be looked at of a VIP.
#[must_use]
pub fn warnings(announce: &Announce, vip: IpAddr, facts: &Facts, fates: &SharedFates) -> BTreeSet<Warning> {
    let is_here = |nodes: &NodeSelection| nodes.contains(&announce.node);
    let always = announce.always.iter().filter(|always| is_here(&always.nodes));
    let always = always.map(|always| (&always.interface, &always.vips));
    let groups = announce.vrrp.iter().filter(|group| is_here(&group.nodes));
    let groups = groups.map(|group| (&group.interface, &group.vips));
    let outside = always.chain(groups).filter(|(_, vips)| vips.contains(vip)).filter_map(|(interface, _)| {
        let known = facts.interfaces.get(interface)?;
        let is_inside = known.prefixes.iter().any(|prefix| prefix.contains(vip));
        (!is_inside).then(|| Warning::OutsidePrefixes { interface: interface.clone() })
    });
    let here = facts.own.get(&vip).map(|interface| Warning::OnThisHost { interface: interface.clone() });
    let shared = fates
        .get(&vip)
        .into_iter()
        .flatten()
        .map(|(group, vrid)| Warning::SharedFate { group: group.clone(), vrid: *vrid });
    outside.chain(here).chain(shared).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        announce::eligibility::InterfaceFacts,
        model::announce::{Always, Prefix, Selection},
    };

    #[test]
    fn a_vip_outside_the_prefixes_or_on_this_host_is_worth_a_look() {
        let prefix = Prefix::new("192.0.2.0".parse().unwrap(), 24).unwrap();
        let interface = InterfaceFacts { prefixes: vec![prefix], ..InterfaceFacts::default() };
        let [inside, outside, own]: [IpAddr; 3] =
            ["192.0.2.7", "198.51.100.7", "192.0.2.8"].map(|text| text.parse().unwrap());
        let facts = Facts {
            interfaces: [("eth0".to_owned(), interface)].into(),
            own: [(own, "kube-ipvs0".to_owned())].into(),
            ..Facts::default()
        };
        let always =
            Always { interface: "eth0".to_owned(), vips: Selection::default(), nodes: NodeSelection::default() };
        let announce = Announce { always: vec![always], ..Announce::default() };
        let vrid = Vrid::new(51).unwrap();
        let fates = [(inside, [("core".to_owned(), vrid)].into())].into();
        let of = |vip| warnings(&announce, vip, &facts, &fates).into_iter().collect::<Vec<_>>();
        assert_eq!(of(inside), [Warning::SharedFate { group: "core".to_owned(), vrid }]);
        assert_eq!(of(outside), [Warning::OutsidePrefixes { interface: "eth0".to_owned() }]);
        assert_eq!(of(own), [Warning::OnThisHost { interface: "kube-ipvs0".to_owned() }]);
        assert_eq!(warnings(&Announce::default(), outside, &facts, &fates), BTreeSet::new());
    }
}
