//! How VIPs are announced.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    ops::RangeInclusive,
    time::Duration,
};

use serde_json::{Value, json};
use serde_saphyr::Spanned;

use super::{
    problem::{Position, Problem},
    raw::announce::{RawAlways, RawAnnounce, RawVrrp},
    scalar::{Scalar, decimal, position, quote},
    validate::{bounded, interface_name, missing, repeated},
};
use crate::{
    announce::vrrp::Vrid,
    model::{
        Uplink,
        announce::{Always, Announce, Prefix, Selection, VrrpGroup, VrrpVersion, WhenUnhealthy},
        bgp::NodeSelection,
    },
};

/// Bytes of a node's or group's name: those of a Kubernetes object.
pub(super) const NAME_BYTES_MAX: usize = 253;
/// Nodes that share VIPs: as many as have priorities of their own.
pub(super) const NODES_MAX: usize = 27;
/// Groups: one for each identifier that an interface has in a family, on as many interfaces as anybody has.
pub(super) const GROUPS_MAX: usize = 1024;
/// Prefixes of one selection.
pub(super) const PREFIXES_MAX: usize = 1024;
/// Unicast peers of one group; each costs a packet for each advertisement.
pub(super) const PEERS_MAX: usize = 32;
/// Tracked interfaces of one group.
pub(super) const TRACKED_MAX: usize = 16;
/// 0 says that a router stops, and 255 that it owns the addresses, which nobody does (RFC 9568, 5.2.4).
pub(super) const PRIORITIES: RangeInclusive<u32> = 1..=254;

pub(super) const UNHEALTHY: [(&str, WhenUnhealthy); 2] =
    [("withdraw", WhenUnhealthy::Withdraw), ("announce", WhenUnhealthy::Announce)];
pub(super) const VERSIONS: [(&str, VrrpVersion); 2] = [("3", VrrpVersion::V3), ("2", VrrpVersion::V2)];

/// What an interval of version 3 can say in twelve bits of hundredths (RFC 9568, 5.2.7); 4,095 of them.
const INTERVALS_V3: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_millis(40_950);
/// What one of version 2 can say in eight bits of seconds (RFC 3768, 5.3.7).
const INTERVALS_V2: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(255);
const DELAYS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

const REFRESH_MIN: Duration = Duration::from_secs(1);

const EXAMPLE: &str = "write the name of one of the uplinks";

/// What its keys say about each other: of several nodes it is said which this one is.
pub(super) fn rules() -> Value {
    json!([{
        "if": { "required": ["nodes"], "properties": { "nodes": { "type": "array", "minItems": 2 } } },
        "then": { "required": ["node"], "not": { "properties": { "node": { "type": "null" } } } }
    }])
}

/// Reads the section; without it nothing is announced.
pub(super) fn announce(
    raw: Option<&Spanned<RawAnnounce>>,
    uplinks: &[Uplink],
    problems: &mut Vec<Problem>,
) -> Announce {
    let Some(raw) = raw else { return Announce::default() };
    let (node, nodes) = nodes(&raw.value, problems);
    let mut reader = Reader {
        uplinks,
        node: &node,
        nodes: &nodes,
        problems,
        names: HashMap::new(),
        vrids: HashMap::new(),
        link_locals: HashMap::new(),
    };
    let when_unhealthy = raw.value.when_unhealthy.as_ref().map(|raw| raw.choice("whenUnhealthy", &UNHEALTHY));
    let when_unhealthy = when_unhealthy.and_then(|read| reader.taken(read)).unwrap_or_default();
    let always = reader.list(raw.value.always.as_ref(), "always", Reader::always);
    let vrrp = reader.list(raw.value.vrrp.as_ref(), "vrrp", Reader::vrrp);
    reader.names.clear();
    let profiles = reader.list(raw.value.bfd.as_ref(), "bfd", Reader::profile);
    let bgp = raw.value.bgp.as_ref().and_then(|raw| reader.bgp(raw, &profiles));
    Announce { node, nodes, when_unhealthy, always, vrrp, bgp }
}

fn nodes(raw: &RawAnnounce, problems: &mut Vec<Problem>) -> (String, Vec<String>) {
    let mut seen: HashMap<&str, Position> = HashMap::new();
    let list = raw.nodes.as_ref();
    if let Some(list) = list {
        bounded("nodes", list.value.len(), 1..=NODES_MAX, position(&list.referenced), problems);
    }
    for scalar in list.into_iter().flat_map(|list| &list.value).chain(&raw.node) {
        problems.extend(name("node", scalar).err());
    }
    for scalar in list.into_iter().flat_map(|list| &list.value) {
        if let Some(first) = seen.insert(&scalar.text, scalar.position) {
            problems.push(repeated(scalar, "node", first));
        }
    }
    let names: Vec<String> = list.into_iter().flat_map(|list| &list.value).map(|scalar| scalar.text.clone()).collect();
    match (&raw.node, names.first()) {
        (Some(node), Some(_)) if !names.contains(&node.text) => {
            let what = format!("node {} is none of nodes", quote(&node.text));
            problems.push(node.problem(what, "write the same list of nodes on each, with this one in it"));
            (node.text.clone(), names)
        }
        (Some(node), Some(_)) => (node.text.clone(), names),
        (Some(node), None) => (node.text.clone(), vec![node.text.clone()]),
        (None, Some(first)) if names.len() == 1 => (first.clone(), names),
        (None, Some(_)) => {
            let place = list.map_or(Position::START, |list| position(&list.referenced));
            problems.push(missing(place, "node", "write which of the nodes this one is"));
            (String::new(), names)
        }
        (None, None) => ("node".to_owned(), vec!["node".to_owned()]),
    }
}

/// Visible ASCII, as names of Kubernetes objects are.
pub(super) fn name(what: &str, scalar: &Scalar) -> Result<String, Problem> {
    let text = &scalar.text;
    let is_name = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_name {
        return Ok(text.clone());
    }
    Err(scalar.problem(
        format!("{what} {} is no name", quote(text)),
        format!("write 1 to {NAME_BYTES_MAX} visible ASCII characters"),
    ))
}

pub(super) struct Reader<'a> {
    uplinks: &'a [Uplink],
    node: &'a str,
    pub(super) nodes: &'a [String],
    pub(super) problems: &'a mut Vec<Problem>,
    /// Of the list that is read.
    pub(super) names: HashMap<String, Position>,
    /// By interface and identifier; version 2 and 3 are one family in IPv4, and a group may have both families.
    vrids: HashMap<(String, u8), Position>,
    /// By interface and address.
    link_locals: HashMap<(String, Ipv6Addr), Position>,
}

impl Reader<'_> {
    fn list<R, T>(
        &mut self,
        raw: Option<&Spanned<Vec<Spanned<R>>>>,
        key: &str,
        mut read: impl FnMut(&mut Self, &R, Position) -> Option<T>,
    ) -> Vec<T> {
        let Some(list) = raw else { return Vec::new() };
        if list.value.len() > GROUPS_MAX {
            bounded(key, list.value.len(), 0..=GROUPS_MAX, position(&list.referenced), self.problems);
        }
        list.value.iter().filter_map(|entry| read(self, &entry.value, position(&entry.referenced))).collect()
    }

    fn always(&mut self, raw: &RawAlways, place: Position) -> Option<Always> {
        let nodes = self.node_selection(raw.nodes.as_ref());
        let interface = self.uplink(raw.interface.as_ref(), &nodes, place);
        let vips = self.selection(raw.vips.as_ref());
        Some(Always { interface: interface?, vips, nodes })
    }

    fn vrrp(&mut self, raw: &RawVrrp, place: Position) -> Option<VrrpGroup> {
        let name = self.named("name", raw.name.as_ref(), place, "write a name for this group of virtual routers");
        let nodes = self.node_selection(raw.nodes.as_ref());
        let interface = self.uplink(raw.interface.as_ref(), &nodes, place);
        let vrids = self.vrids(raw.vrids.as_ref(), interface.as_deref(), place);
        let version = raw.version.as_ref().map_or(Ok(VrrpVersion::V3), |version| version.choice("version", &VERSIONS));
        let version = self.taken(version);
        let interval = match &raw.interval {
            None => Some(VrrpGroup::INTERVAL),
            Some(interval) => self.taken(advertised(interval, version.unwrap_or(VrrpVersion::V3))),
        };
        let number = raw.priority.as_ref().map(|priority| priority.number("priority", PRIORITIES));
        let priority = number.and_then(|number| self.taken(number)).map(|priority| priority as u8);
        let preempt = raw.preempt.as_ref().map_or(Ok(true), |preempt| preempt.switch("preempt"));
        let preempt = self.taken(preempt);
        let preempt_delay = self.delay(raw.preempt_delay.as_ref(), "preemptDelay", Duration::ZERO);
        let start_delay = self.delay(raw.start_delay.as_ref(), "startDelay", Duration::ZERO);
        let refresh = raw.refresh.as_ref().map(refresh_interval);
        let refresh = refresh.and_then(|refresh| self.taken(refresh)).unwrap_or(VrrpGroup::REFRESH);
        let virtual_mac = raw.virtual_mac.as_ref().map_or(Ok(false), |on| on.switch("virtualMac"));
        let virtual_mac = self.taken(virtual_mac);
        let peers = self.peers(raw.peers.as_ref());
        let of = (interface.as_deref(), version, vrids.as_ref());
        let link_local = raw.link_local.as_ref().and_then(|raw| self.link_local(raw, of));
        let track = self.tracked(raw.track.as_ref());
        let vips = self.selection(raw.vips.as_ref());
        Some(VrrpGroup {
            name: name?,
            interface: interface?,
            vrids: vrids?,
            version: version?,
            interval: interval?,
            priority,
            preempt: preempt?,
            preempt_delay,
            start_delay,
            peers,
            refresh,
            has_virtual_mac: virtual_mac?,
            link_local,
            track,
            vips,
            nodes,
        })
    }

    pub(super) fn taken<T>(&mut self, value: Result<T, Problem>) -> Option<T> {
        value.map_err(|problem| self.problems.push(problem)).ok()
    }

    fn delay(&mut self, raw: Option<&Scalar>, key: &str, default: Duration) -> Duration {
        let read = raw.map(|raw| raw.duration(key, DELAYS));
        read.and_then(|read| self.taken(read)).unwrap_or(default)
    }

    /// A name that nothing else in its list has.
    pub(super) fn named(&mut self, key: &str, raw: Option<&Scalar>, place: Position, advice: &str) -> Option<String> {
        let Some(raw) = raw else {
            self.problems.push(missing(place, key, advice));
            return None;
        };
        let read = self.taken(name(key, raw))?;
        if let Some(first) = self.names.insert(read.clone(), raw.position) {
            self.problems.push(repeated(raw, key, first));
        }
        Some(read)
    }

    fn uplink(&mut self, raw: Option<&Scalar>, nodes: &NodeSelection, place: Position) -> Option<String> {
        let Some(raw) = raw else {
            self.problems.push(missing(place, "interface", EXAMPLE));
            return None;
        };
        // Of another node.
        if !nodes.contains(self.node) {
            return self.taken(interface_name(raw)).map(|()| raw.text.clone());
        }
        if !self.uplinks.iter().any(|uplink| uplink.interface == raw.text) {
            let what = format!("interface {} is none of the uplinks, so nothing answers there", quote(&raw.text));
            self.problems.push(raw.problem(what, EXAMPLE));
            return None;
        }
        Some(raw.text.clone())
    }

    fn vrids(&mut self, raw: Option<&Scalar>, interface: Option<&str>, place: Position) -> Option<RangeInclusive<u8>> {
        const WHAT: &str = "write one identifier from 1 to 255, or a range such as 10-13";
        let Some(raw) = raw else {
            self.problems.push(missing(place, "vrids", WHAT));
            return None;
        };
        let number = |text: &str| decimal::<u8>(text).filter(|vrid| *vrid != 0);
        let (first, last) = raw.text.split_once('-').unwrap_or((&raw.text, &raw.text));
        let range = match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => first..=last,
            _ => {
                let what = format!("vrids {} are no identifiers of virtual routers", quote(&raw.text));
                self.problems.push(raw.problem(what, WHAT));
                return None;
            }
        };
        for vrid in range.clone() {
            let Some(interface) = interface else { continue };
            if let Some(first) = self.vrids.insert((interface.to_owned(), vrid), raw.position) {
                self.problems.push(raw.problem(
                    format!("virtual router {vrid} is already written for {interface} in line {}", first.line),
                    "give each group of an interface identifiers of its own",
                ));
                break;
            }
        }
        Some(range)
    }

    pub(super) fn selection(&mut self, raw: Option<&Spanned<Vec<Scalar>>>) -> Selection {
        let Some(list) = raw else { return Selection::default() };
        bounded("vips", list.value.len(), 1..=PREFIXES_MAX, position(&list.referenced), self.problems);
        Selection(list.value.iter().filter_map(|raw| self.taken(prefix(raw))).collect())
    }

    fn link_local(
        &mut self,
        raw: &Scalar,
        (interface, version, vrids): (Option<&str>, Option<VrrpVersion>, Option<&RangeInclusive<u8>>),
    ) -> Option<Ipv6Addr> {
        let quoted = quote(&raw.text);
        let is_local = |address: &Ipv6Addr| address.segments()[..4] == [0xfe80, 0, 0, 0];
        let Some(address) = raw.text.parse::<Ipv6Addr>().ok().filter(is_local) else {
            let what = format!("linkLocal {quoted} is no link-local IPv6 address");
            self.problems.push(raw.problem(what, "write an address of fe80::/64 that no interface of the segment has"));
            return None;
        };
        if version == Some(VrrpVersion::V2) {
            let what = format!("linkLocal {quoted} is of IPv6, and version 2 of VRRP for IPv4 alone");
            self.problems.push(raw.problem(what, "write version 3, or leave linkLocal out"));
        }
        let (Some(interface), Some(vrids)) = (interface, vrids) else { return None };
        if vrids.start() != vrids.end() {
            let what = format!("linkLocal {quoted} would be of several virtual routers");
            self.problems.push(raw.problem(what, "write one identifier in vrids, or leave linkLocal out"));
        }
        let of_other =
            |vrid: u8| vrid != *vrids.start() && Vrid::new(vrid.into()).is_ok_and(|vrid| vrid.link_local() == address);
        if (1..=u8::MAX).any(of_other) {
            let what = format!("linkLocal {quoted} is what another virtual router has where nothing is written");
            self.problems.push(raw.problem(what, "write another address of fe80::/64"));
        }
        if let Some(first) = self.link_locals.insert((interface.to_owned(), address), raw.position) {
            self.problems.push(repeated(raw, "linkLocal", first));
        }
        Some(address)
    }

    fn peers(&mut self, raw: Option<&Spanned<Vec<Scalar>>>) -> Vec<IpAddr> {
        let Some(list) = raw else { return Vec::new() };
        bounded("peers", list.value.len(), 1..=PEERS_MAX, position(&list.referenced), self.problems);
        let mut seen = HashMap::new();
        let mut peers = Vec::new();
        for raw in &list.value {
            // Link-local addresses are those of IPv6 routers.
            let address = raw.text.parse::<IpAddr>().map_or_else(
                |_| raw.unicast("peer"),
                |address| match address {
                    IpAddr::V6(v6) if v6.is_unicast_link_local() => Ok(address),
                    _ => raw.unicast("peer"),
                },
            );
            let Some(address) = self.taken(address) else { continue };
            if let Some(first) = seen.insert(address, raw.position) {
                self.problems.push(repeated(raw, "peer", first));
            }
            peers.push(address);
        }
        peers
    }

    fn tracked(&mut self, raw: Option<&Spanned<Vec<Scalar>>>) -> Vec<String> {
        let Some(list) = raw else { return Vec::new() };
        bounded("track", list.value.len(), 1..=TRACKED_MAX, position(&list.referenced), self.problems);
        let mut seen = HashMap::new();
        for raw in &list.value {
            self.taken(interface_name(raw));
            if let Some(first) = seen.insert(raw.text.as_str(), raw.position) {
                self.problems.push(repeated(raw, "interface", first));
            }
        }
        list.value.iter().map(|raw| raw.text.clone()).collect()
    }
}

/// Never, or once in a second at most.
fn refresh_interval(raw: &Scalar) -> Result<Duration, Problem> {
    let refresh = raw.duration("refresh", DELAYS)?;
    if refresh.is_zero() || refresh >= REFRESH_MIN {
        return Ok(refresh);
    }
    let what = format!("refresh {} is too short", quote(&raw.text));
    Err(raw.problem(what, "write 0s for never, or 1s to 3600s: each VIP is told of each time"))
}

/// An interval that the version can say.
fn advertised(raw: &Scalar, version: VrrpVersion) -> Result<Duration, Problem> {
    let (range, unit) = match version {
        VrrpVersion::V3 => (INTERVALS_V3, Duration::from_millis(10)),
        VrrpVersion::V2 => (INTERVALS_V2, Duration::from_secs(1)),
    };
    let interval = raw.duration("interval", range)?;
    if interval.as_millis().is_multiple_of(unit.as_millis()) {
        return Ok(interval);
    }
    let what = format!("interval {} is between what an advertisement can say", quote(&raw.text));
    Err(raw.problem(what, format!("write a multiple of {unit:?}")))
}

/// An address with a length, or one address.
pub(super) fn prefix(raw: &Scalar) -> Result<Prefix, Problem> {
    const ADVICE: &str = "write a prefix such as 192.0.2.0/24, or an address";
    let (address, length) = raw.text.split_once('/').map_or((raw.text.as_str(), None), |(a, l)| (a, Some(l)));
    let refuse = || raw.problem(format!("{} is no prefix of addresses", quote(&raw.text)), ADVICE);
    let address: IpAddr = address.parse().map_err(|_| refuse())?;
    let whole = if address.is_ipv4() { 32 } else { 128 };
    let length = length.map_or(Some(whole), decimal).ok_or_else(refuse)?;
    let is_beyond = length > whole;
    Prefix::new(address, length).ok_or_else(|| {
        if is_beyond {
            return refuse();
        }
        raw.problem(format!("{} has bits behind its length", quote(&raw.text)), "write its first address")
    })
}
