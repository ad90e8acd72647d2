//! VIPs announced by BGP, and peers watched by BFD.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    num::{NonZeroU8, NonZeroU16},
    ops::RangeInclusive,
    time::Duration,
};

use serde_json::{Value, json};
use serde_saphyr::Spanned;

use super::{
    announce::{Reader, name, prefix},
    observation::PATH_BYTES_MAX,
    problem::{Position, Problem},
    raw::{
        announce::RawAnnounce,
        bgp::{RawBfd, RawBgp, RawPeer},
    },
    scalar::{Scalar, decimal, position, quote},
    validate::{bounded, interface_name, missing, repeated},
};
use crate::{
    announce::{
        bfd::machine as bfd,
        bgp::{
            machine::{Mode, PeerAs},
            route::{BandwidthKind, COMMUNITIES_MAX, Community, LargeCommunity},
            values::{AsNumber, Family, HoldTime, Identifier, Prefix, RESTART_SECONDS_MAX, RestartTime},
        },
    },
    model::bgp::{BfdProfile, Bgp, BgpPeer, Distance, NodeSelection, PasswordFile, PeerPlace, StopMode},
};

/// Peers of one node: the routers of its rack, many times over.
pub(super) const BGP_PEERS_MAX: usize = 256;
/// BFD profiles: one for each peer.
pub(super) const PROFILES_MAX: usize = BGP_PEERS_MAX;
/// Aggregates of one peer.
const AGGREGATES_MAX: usize = super::announce::PREFIXES_MAX;

pub(super) const FAMILIES: [(&str, Family); 2] = [("ipv4", Family::Ipv4), ("ipv6", Family::Ipv6)];
pub(super) const MODES: [(&str, Mode); 3] =
    [("both", Mode::DialAndAccept), ("dial", Mode::Dial), ("accept", Mode::Accept)];
pub(super) const STOPS: [(&str, StopMode); 2] = [("ordered", StopMode::Ordered), ("graceful", StopMode::Graceful)];
pub(super) const BANDWIDTHS: [(&str, BandwidthKind); 2] =
    [("nonTransitive", BandwidthKind::NonTransitive), ("transitive", BandwidthKind::Transitive)];

const EXTERNAL: &str = "external";
const PORT_DEFAULT: NonZeroU16 = NonZeroU16::new(179).expect("is not 0");
const SHUTDOWN_WAITS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);
const SHUTDOWN_WAIT_DEFAULT: Duration = Duration::from_secs(5);
const HOLD_TIMES: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(u16::MAX as u64);
const CONNECT_TIMES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(120);
const CONNECT_TIME_DEFAULT: Duration = Duration::from_secs(10);
const RESTART_TIMES: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(RESTART_SECONDS_MAX as u64);
const INTERVALS: RangeInclusive<Duration> = bfd::INTERVAL_MIN..=bfd::INTERVAL_MAX;
const INTERVAL_DEFAULT: Duration = Duration::from_millis(300);
const MULTIPLIER_DEFAULT: u32 = 3;
const LOCAL_PREFERENCE_DEFAULT: u32 = 100;
/// With GTSM even the farthest is at least one link away from being any.
const GTSM_LINKS: RangeInclusive<u32> = 1..=254;

/// What a peer's keys say about each other.
pub(super) fn rules() -> Value {
    let absent = |key: &str| json!({ "properties": { key: { "type": "null" } } });
    let given = |key: &str| json!({ "required": [key], "not": absent(key) });
    json!([
        { "anyOf": [given("address"), given("interface")] },
        { "if": given("gtsm"), "then": absent("multihop") },
    ])
}

impl Reader<'_> {
    pub(super) fn profile(&mut self, raw: &RawBfd, place: Position) -> Option<BfdProfile> {
        let name = self.named("name", raw.name.as_ref(), place, "write a name for this profile");
        let interval = self.duration(raw.interval.as_ref(), "interval", INTERVALS, INTERVAL_DEFAULT)?;
        let receive = self.duration(raw.receive_interval.as_ref(), "receiveInterval", INTERVALS, interval)?;
        let multiplier = self.number_or(raw.multiplier.as_ref(), "multiplier", 1..=255, MULTIPLIER_DEFAULT)?;
        let minimum_ttl = self.number_or(raw.minimum_ttl.as_ref(), "minimumTtl", 1..=255, 1)?;
        Some(BfdProfile {
            name: name?,
            transmit: interval,
            receive,
            multiplier: octet(multiplier),
            minimum_ttl: octet(minimum_ttl),
        })
    }

    pub(super) fn bgp(&mut self, raw: &Spanned<RawBgp>, profiles: &[BfdProfile]) -> Option<Bgp> {
        let place = position(&raw.referenced);
        let raw = &raw.value;
        let local_as = match &raw.local_as {
            None => {
                self.problems.push(missing(place, "localAs", "write the number of this node's autonomous system"));
                None
            }
            Some(raw) => self.taken(as_number(raw, "localAs")),
        };
        let identifier = raw.identifier.as_ref().map(identifier).map(|read| self.taken(read));
        let stop = raw.stop.as_ref().map_or(Ok(StopMode::Ordered), |stop| stop.choice("stop", &STOPS));
        let stop = self.taken(stop);
        let shutdown_wait =
            self.duration(raw.shutdown_wait.as_ref(), "shutdownWait", SHUTDOWN_WAITS, SHUTDOWN_WAIT_DEFAULT);
        self.names.clear();
        let (mut places, mut watched) = (HashMap::new(), HashMap::new());
        let peers = match &raw.peers {
            None => {
                self.problems.push(missing(place, "peers", "write the routers that are told of VIPs"));
                Vec::new()
            }
            Some(list) => {
                bounded("peers", list.value.len(), 1..=BGP_PEERS_MAX, position(&list.referenced), self.problems);
                let peer = |raw: &Spanned<RawPeer>| self.peer(raw, local_as, profiles, &mut places, &mut watched);
                list.value.iter().filter_map(peer).collect()
            }
        };
        let identifier = match identifier {
            None => None,
            Some(read) => Some(read?),
        };
        Some(Bgp { local_as: local_as?, identifier, stop: stop?, shutdown_wait: shutdown_wait?, peers })
    }

    fn peer(
        &mut self,
        raw: &Spanned<RawPeer>,
        local_as: Option<AsNumber>,
        profiles: &[BfdProfile],
        places: &mut HashMap<(PeerPlace, Option<IpAddr>), Position>,
        watched: &mut HashMap<PeerPlace, Position>,
    ) -> Option<BgpPeer> {
        let place = position(&raw.referenced);
        let raw = &raw.value;
        let name = self.named("name", raw.name.as_ref(), place, "write a name for this peer");
        let at = self.peer_place(raw, place);
        let source = raw.source.as_ref().map(|source| address("source", source)).map(|read| self.taken(read));
        let source = source.flatten();
        if let Some(at) = &at {
            let scalar = raw.address.as_ref().or(raw.interface.as_ref()).expect("it says where the peer is");
            if let Some(first) = places.insert((reached(at), source), scalar.position) {
                self.problems.push(repeated(scalar, "peer", first));
            }
            self.of_one_family(at, raw.source.as_ref(), source);
        }
        let port = raw.port.as_ref().map(Scalar::port).map(|read| self.taken(read));
        let peer_as = self.peer_as(raw.r#as.as_ref(), place);
        let families = self.families(raw.families.as_ref());
        let hold_time = raw.hold_time.as_ref().map_or(Ok(HoldTime::DEFAULT), hold_time);
        let hold_time = self.taken(hold_time);
        let connect_time = self.duration(raw.connect_time.as_ref(), "connectTime", CONNECT_TIMES, CONNECT_TIME_DEFAULT);
        let mode = raw.mode.as_ref().map_or(Ok(Mode::DialAndAccept), |mode| mode.choice("mode", &MODES));
        let mode = self.taken(mode);
        let password_file = raw.password_file.as_ref().map(password_file).and_then(|read| self.taken(read));
        let is_internal = peer_as.is_some_and(|peer_as| local_as.is_some_and(|own| peer_as == PeerAs::Number(own)));
        let distance = self.distance(raw, is_internal);
        let bfd = self.bfd_of(raw.bfd.as_ref(), profiles);
        if let (Some(scalar), Some(at)) = (&raw.bfd, &at)
            && distance.is_some_and(Distance::is_direct)
            && let Some(first) = watched.insert(reached(at), scalar.position)
        {
            let what = format!("BFD already watches a peer there, in line {}", first.line);
            self.problems
                .push(scalar.problem(what, "take bfd from one of them: one session watches the link to a neighbour"));
        }
        let graceful_restart = self.graceful_restart(raw, hold_time, raw.bfd.is_some());
        let (communities, large_communities) = (
            self.set("communities", raw.communities.as_ref(), COMMUNITIES_MAX, community),
            self.set("largeCommunities", raw.large_communities.as_ref(), COMMUNITIES_MAX, large_community),
        );
        let local_preference =
            self.number_or(raw.local_preference.as_ref(), "localPreference", 0..=u32::MAX, LOCAL_PREFERENCE_DEFAULT);
        let med = raw.med.as_ref().map(|med| med.number("med", 0..=u32::MAX)).and_then(|read| self.taken(read));
        let link_bandwidth = raw.link_bandwidth.as_ref().map(|unit| unit.number("linkBandwidth", 1..=u32::MAX));
        let link_bandwidth = link_bandwidth.and_then(|read| self.taken(read));
        let kind = raw.link_bandwidth_type.as_ref();
        let kind = kind.map_or(Ok(BandwidthKind::default()), |kind| kind.choice("linkBandwidthType", &BANDWIDTHS));
        let bandwidth_kind = self.taken(kind);
        let mut next_hop =
            |raw: Option<&Scalar>, key| raw.map(|raw| address(key, raw)).and_then(|read| self.taken(read));
        let next_hop_ipv4 = next_hop(raw.next_hop_ipv4.as_ref(), "nextHopIpv4");
        let next_hop_ipv6 = next_hop(raw.next_hop_ipv6.as_ref(), "nextHopIpv6");
        if let Some(raw) = raw.next_hop_ipv6.as_ref().filter(|_| next_hop_ipv6.is_some_and(|hop| hop.is_ipv4())) {
            let what = format!("nextHopIpv6 {} is an IPv4 address", quote(&raw.text));
            self.problems.push(raw.problem(what, "write an IPv6 address of this node"));
        }
        Some(BgpPeer {
            name: name?,
            at: at?,
            port: match port {
                None => PORT_DEFAULT,
                Some(port) => NonZeroU16::new(port?)?,
            },
            peer_as: peer_as?,
            families: families?,
            hold_time: hold_time?,
            connect_time: connect_time?,
            mode: mode?,
            password_file,
            distance: distance?,
            source,
            next_hop_ipv4,
            next_hop_ipv6,
            extended_next_hop: self.switch_or(raw.extended_next_hop.as_ref(), "extendedNextHop", true)?,
            graceful_restart: graceful_restart?,
            bfd: bfd?,
            bfd_strict: self.switch_or(raw.bfd_strict.as_ref(), "bfdStrict", false)?,
            communities,
            large_communities,
            local_preference: local_preference?,
            med,
            link_bandwidth,
            bandwidth_kind: bandwidth_kind?,
            aggregates: self.set("aggregates", raw.aggregates.as_ref(), AGGREGATES_MAX, aggregate),
            vips: self.selection(raw.vips.as_ref()),
            nodes: self.node_selection(raw.nodes.as_ref()),
        })
    }

    fn peer_place(&mut self, raw: &RawPeer, place: Position) -> Option<PeerPlace> {
        let interface =
            raw.interface.as_ref().map(|interface| interface_name(interface).map(|()| interface.text.clone()));
        let interface = match interface {
            None => None,
            Some(read) => Some(self.taken(read)?),
        };
        match (&raw.address, interface) {
            (None, None) => {
                let advice = "write the peer's address, or the interface on which it advertises itself";
                self.problems.push(missing(place, "address", advice));
                None
            }
            (None, Some(interface)) => Some(PeerPlace::Interface(interface)),
            (Some(raw), interface) => {
                let address = self.taken(address("address", raw))?;
                if is_link_local(address) && interface.is_none() {
                    let what = format!("address {} is valid on its link alone", quote(&raw.text));
                    self.problems.push(raw.problem(what, "write the interface too"));
                }
                Some(PeerPlace::Address { address, interface })
            }
        }
    }

    fn of_one_family(&mut self, at: &PeerPlace, raw: Option<&Scalar>, source: Option<IpAddr>) {
        let (Some(raw), Some(source)) = (raw, source) else { return };
        let is_ipv4 = match at {
            PeerPlace::Address { address, .. } => address.is_ipv4(),
            PeerPlace::Interface(_) => false,
        };
        if is_ipv4 != source.is_ipv4() {
            let what = format!("source {} is not of the peer's family", quote(&raw.text));
            self.problems.push(raw.problem(what, "write an address of the family that the session goes over"));
        }
    }

    fn peer_as(&mut self, raw: Option<&Scalar>, place: Position) -> Option<PeerAs> {
        let Some(raw) = raw else {
            self.problems.push(missing(place, "as", "write the number of the peer's autonomous system, or external"));
            return None;
        };
        if raw.text == EXTERNAL {
            return Some(PeerAs::External);
        }
        self.taken(as_number(raw, "as")).map(PeerAs::Number)
    }

    fn families(&mut self, raw: Option<&Spanned<Vec<Scalar>>>) -> Option<BTreeSet<Family>> {
        let Some(list) = raw else { return Some(Family::ALL.into()) };
        bounded("families", list.value.len(), 1..=FAMILIES.len(), position(&list.referenced), self.problems);
        let families = self.set("families", raw, FAMILIES.len(), |raw| raw.choice("family", &FAMILIES));
        (!families.is_empty()).then_some(families)
    }

    fn distance(&mut self, raw: &RawPeer, is_internal: bool) -> Option<Distance> {
        match (&raw.multihop, &raw.gtsm) {
            (Some(_), Some(gtsm)) => {
                let what = "gtsm and multihop exclude each other: what has come over links has no TTL of 255";
                self.problems.push(gtsm.problem(what, "write gtsm with the number of links, or multihop, not both"));
                None
            }
            (None, Some(gtsm)) => self.taken(gtsm.number("gtsm", GTSM_LINKS)).map(|links| Distance::Gtsm(octet(links))),
            (Some(multihop), None) => {
                self.taken(multihop.number("multihop", 1..=255)).map(|links| Distance::Multihop(octet(links)))
            }
            (None, None) if is_internal => Some(Distance::Multihop(NonZeroU8::MAX)),
            (None, None) => Some(Distance::Direct),
        }
    }

    /// The inner `None`: without BFD.
    #[expect(clippy::option_option, reason = "the outer one says that there is a problem")]
    fn bfd_of(&mut self, raw: Option<&Scalar>, profiles: &[BfdProfile]) -> Option<Option<BfdProfile>> {
        let Some(raw) = raw else { return Some(None) };
        let found = profiles.iter().find(|profile| profile.name == raw.text);
        if found.is_none() {
            let what = format!("bfd {} is no profile", quote(&raw.text));
            self.problems.push(raw.problem(what, "write the name of one of announce.bfd"));
        }
        found.map(|profile| Some(profile.clone()))
    }

    /// The inner `None`: off.
    #[expect(clippy::option_option, reason = "the outer one says that there is a problem")]
    fn graceful_restart(
        &mut self,
        raw: &RawPeer,
        hold_time: Option<HoldTime>,
        has_bfd: bool,
    ) -> Option<Option<RestartTime>> {
        let Some(raw) = &raw.graceful_restart else { return Some(None) };
        let time = self.taken(raw.duration("gracefulRestart", RESTART_TIMES).and_then(|time| seconds(raw, time)))?;
        let hold = hold_time?.seconds();
        if !has_bfd && hold != 0 && time > hold {
            self.problems.push(raw.problem(
                format!(
                    "gracefulRestart {} is longer than the hold time, and no BFD tells of a dead node",
                    quote(&raw.text)
                ),
                format!("write at most {hold}s, or name a profile of BFD"),
            ));
            return None;
        }
        Some(RestartTime::from_seconds(time).ok().filter(|time| time.seconds() != 0))
    }

    pub(super) fn node_selection(&mut self, raw: Option<&Spanned<Vec<Scalar>>>) -> NodeSelection {
        let nodes = self.set("nodes", raw, super::announce::NODES_MAX, |raw| name("node", raw));
        if let Some(list) = raw {
            bounded(
                "nodes",
                list.value.len(),
                1..=super::announce::NODES_MAX,
                position(&list.referenced),
                self.problems,
            );
        }
        for raw in raw.into_iter().flat_map(|list| &list.value) {
            if !self.nodes.contains(&raw.text) {
                let what = format!("node {} is none of announce.nodes", quote(&raw.text));
                self.problems.push(raw.problem(what, "write names of nodes that announce"));
            }
        }
        NodeSelection(nodes)
    }

    /// A list without anything twice.
    fn set<T: Ord>(
        &mut self,
        key: &str,
        raw: Option<&Spanned<Vec<Scalar>>>,
        length_max: usize,
        read: impl Fn(&Scalar) -> Result<T, Problem>,
    ) -> BTreeSet<T> {
        let Some(list) = raw else { return BTreeSet::new() };
        if list.value.len() > length_max {
            bounded(key, list.value.len(), 0..=length_max, position(&list.referenced), self.problems);
        }
        let mut first: HashMap<&str, Position> = HashMap::new();
        let mut set = BTreeSet::new();
        for raw in &list.value {
            if let Some(first) = first.insert(&raw.text, raw.position) {
                self.problems.push(repeated(raw, key, first));
            }
            set.extend(self.taken(read(raw)));
        }
        set
    }

    fn duration(
        &mut self,
        raw: Option<&Scalar>,
        key: &str,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Option<Duration> {
        self.taken(raw.map_or(Ok(default), |raw| raw.duration(key, range)))
    }

    fn number_or(&mut self, raw: Option<&Scalar>, key: &str, range: RangeInclusive<u32>, default: u32) -> Option<u32> {
        self.taken(raw.map_or(Ok(default), |raw| raw.number(key, range)))
    }

    fn switch_or(&mut self, raw: Option<&Scalar>, key: &str, default: bool) -> Option<bool> {
        self.taken(raw.map_or(Ok(default), |raw| raw.switch(key)))
    }
}

/// Of a number that was read within 1 to 255.
fn octet(number: u32) -> NonZeroU8 {
    u8::try_from(number).ok().and_then(NonZeroU8::new).expect("within the range")
}

fn as_number(raw: &Scalar, key: &str) -> Result<AsNumber, Problem> {
    let number = raw.number(key, 0..=u32::MAX)?;
    AsNumber::new(number).map_err(|_| {
        let what = format!("{key} {number} is reserved");
        raw.problem(what, "write the number that was assigned to this network, or one from 64512 to 65534")
    })
}

fn identifier(raw: &Scalar) -> Result<Identifier, Problem> {
    let address: Option<Ipv4Addr> = raw.text.parse().ok();
    address.and_then(|address| Identifier::new(address).ok()).ok_or_else(|| {
        let what = format!("identifier {} is no BGP identifier", quote(&raw.text));
        raw.problem(what, "write four numbers such as 192.0.2.1, not all of them 0")
    })
}

/// Addresses that this host must have, because sessions of its peers come from them, each with its place. What is no address
/// is told of elsewhere.
pub(super) fn own_addresses(raw: Option<&Spanned<RawAnnounce>>) -> Vec<(IpAddr, Position)> {
    let Some(raw) = raw else { return Vec::new() };
    let node = raw.value.node.as_ref().map(|node| &node.text);
    let is_here = |peer: &&RawPeer| match (&peer.nodes, node) {
        (Some(nodes), Some(node)) => nodes.value.iter().any(|name| name.text == *node),
        (Some(_), None) | (None, _) => true,
    };
    let peers = raw.value.bgp.as_ref().and_then(|bgp| bgp.value.peers.as_ref());
    let here = peers.into_iter().flat_map(|peers| &peers.value).map(|peer| &peer.value).filter(is_here);
    let sources = here.filter_map(|peer| peer.source.as_ref());
    sources.filter_map(|raw| Some((raw.text.parse().ok()?, raw.position))).collect()
}

/// Where a peer is, however it is written: an address that is not link-local is the same one by any interface.
fn reached(at: &PeerPlace) -> PeerPlace {
    match at {
        PeerPlace::Address { address, .. } if !is_link_local(*address) => {
            PeerPlace::Address { address: *address, interface: None }
        }
        PeerPlace::Address { .. } | PeerPlace::Interface(_) => at.clone(),
    }
}

/// An address of a router, which may be link-local.
fn address(role: &str, raw: &Scalar) -> Result<IpAddr, Problem> {
    match raw.text.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) if v6.is_unicast_link_local() => Ok(v6.into()),
        Ok(_) | Err(_) => raw.unicast(role),
    }
}

const fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn hold_time(raw: &Scalar) -> Result<HoldTime, Problem> {
    let time = seconds(raw, raw.duration("holdTime", HOLD_TIMES)?)?;
    HoldTime::from_seconds(time).map_err(|_| {
        let what = format!("holdTime {} is too short", quote(&raw.text));
        raw.problem(what, "write 0s for ever, or at least 3s")
    })
}

/// Messages say whole seconds.
fn seconds(raw: &Scalar, time: Duration) -> Result<u16, Problem> {
    let whole = u16::try_from(time.as_secs()).ok().filter(|_| time.subsec_nanos() == 0);
    whole.ok_or_else(|| raw.problem(format!("{} is not in whole seconds", quote(&raw.text)), "write whole seconds"))
}

fn password_file(raw: &Scalar) -> Result<PasswordFile, Problem> {
    let path = raw.directory("passwordFile", PATH_BYTES_MAX, "Linux takes no longer one")?;
    Ok(PasswordFile { path, line: raw.position.line })
}

fn aggregate(raw: &Scalar) -> Result<Prefix, Problem> {
    let read = prefix(raw)?;
    Prefix::new(read.address, read.length).map_err(|_| {
        let what = format!("{} is no unicast prefix", quote(&raw.text));
        raw.problem(what, "write a prefix of unicast addresses")
    })
}

fn community(raw: &Scalar) -> Result<Community, Problem> {
    let parts: Option<Vec<u16>> = raw.text.split(':').map(decimal).collect();
    match parts.as_deref() {
        Some([own, value]) => Ok(Community(u32::from(*own) << 16 | u32::from(*value))),
        _ => {
            let what = format!("{} is no community", quote(&raw.text));
            Err(raw
                .problem(what, "write two numbers up to 65535, such as 64512:100; larger ones fit in largeCommunities"))
        }
    }
}

fn large_community(raw: &Scalar) -> Result<LargeCommunity, Problem> {
    let parts: Option<Vec<u32>> = raw.text.split(':').map(decimal).collect();
    match parts.as_deref() {
        Some([own, first, second]) => Ok(LargeCommunity(*own, *first, *second)),
        _ => {
            let what = format!("{} is no large community", quote(&raw.text));
            Err(raw.problem(what, "write three numbers, such as 64512:1:2"))
        }
    }
}
