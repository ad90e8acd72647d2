//! BGP peers: from the configuration and what is decided to the thread that speaks to them, and to BFD that watches them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tracing::{info, warn};

use super::{Engine, pods::Finding, watch::Watch};
use crate::{
    announce::{
        bfd::machine as bfd,
        bgp::{
            driver::{
                self, Problem, Report, Secret, Shown, Speaker, Ttl, Wanted, WantedPeer, local_towards, socket_address,
            },
            machine::{BfdUse, InterfaceAddresses, Mode, PeerAs, RestartFacts, Settings, Stage, State},
            route::Route,
            values::{Family, Identifier, Prefix},
        },
        driver::boot_time,
        leaving::Step,
    },
    model::{
        Snapshot,
        announce::Announce,
        bgp::{Bgp, BgpPeer, Distance, PasswordFile, PeerPlace},
    },
    net::{
        Error as NetError, Netlink,
        blackholes::Blackholes,
        links::{Link, Links},
        neighbors, routes,
    },
    privileges::{self, Helper},
    status::BackendState,
};

/// What a password's file is read of: more than a password has, to tell one that is too long.
const PASSWORD_FILE_BYTES_MAX: u64 = 4096;
/// Ticks from one look at what is left of the blackhole routes to the next.
const BLACKHOLE_TICKS: u64 = 30;
/// What peers read in a Cease (RFC 9003).
const STOPPING: &str = "this load balancer stops";
const DRAINED: &str = "this load balancer is drained";

/// Passwords by their files.
pub(super) type Secrets = BTreeMap<PathBuf, Secret>;

/// BGP and BFD as the engine has them.
pub(super) struct Peers {
    speaker: Result<Speaker, String>,
    pub watch: Watch,
    secrets: Secrets,
    /// As they were told last.
    wanted: BTreeMap<String, WantedPeer>,
    restart: RestartFacts,
    /// The last.
    report: Report,
    began: Duration,
    /// What ends on this node where the data plane does not take it; None: to be read.
    blackholes: Option<Blackholes>,
}

impl Peers {
    /// Without threads yet.
    pub(super) fn new() -> Self {
        Self {
            speaker: Err("the agent is still starting".to_owned()),
            watch: Watch::new(),
            secrets: Secrets::new(),
            wanted: BTreeMap::new(),
            restart: RestartFacts::default(),
            report: Report::default(),
            began: boot_time(),
            blackholes: None,
        }
    }

    /// Starts the threads; nothing is wanted yet. `is_adopted`: a data plane was there, and forwarded all the time.
    pub(super) fn begin(&mut self, secrets: Secrets, is_adopted: bool) {
        let prepare = || {
            if let Err(error) = privileges::keep_for_bgp() {
                warn!(%error, "the thread of BGP keeps its capabilities");
            }
        };
        let speaker = Speaker::start(random(), prepare);
        self.speaker = speaker.map_err(|error| format!("the thread of BGP cannot be started: {error}"));
        self.watch.begin(random());
        self.secrets = secrets;
        let forwarding = if is_adopted { Family::ALL.into() } else { BTreeSet::new() };
        // Also after a start of the machine, which nothing tells from the first: its peers may still have routes of before.
        self.restart = RestartFacts { restarted: true, forwarding };
        self.began = boot_time();
    }

    /// Whether anything is wanted of BGP.
    pub(super) fn is_busy(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// What the thread said last.
    pub(super) const fn report(&self) -> &Report {
        &self.report
    }

    /// Address and AS of a peer, as far as they are known without a session.
    pub(super) fn configured(&self, name: &str) -> (Option<IpAddr>, Option<u32>) {
        let Some(wanted) = self.wanted.get(name) else { return (None, None) };
        let peer_as = match wanted.settings.peer_as {
            PeerAs::Number(number) => Some(number.get()),
            PeerAs::External => None,
        };
        (wanted.remote, peer_as)
    }

    /// Why BGP cannot be had.
    pub(super) fn error(&self) -> Option<&str> {
        self.speaker.as_ref().err().map(String::as_str)
    }

    pub(super) fn set_secrets(&mut self, secrets: Secrets) {
        self.secrets = secrets;
    }

    /// Asks the thread how things stand, and `helper` for processes that the thread may not look into.
    pub(super) fn look(&mut self, helper: &mut Helper) {
        let Some(report) = self.speaker.as_ref().ok().and_then(Speaker::report) else { return };
        let before = std::mem::replace(&mut self.report, report);
        let known: Vec<&Shown> = before.peers.iter().flat_map(|peer| &peer.problems).collect();
        for shown in self.report.peers.iter_mut().flat_map(|peer| &mut peer.problems) {
            let Some(sockets) = shown.unseen() else { continue };
            let same = known.iter().find_map(|known| known.named().filter(|(of, _)| *of == sockets));
            let holder = match same {
                Some((_, holder)) => Some(holder.clone()),
                None => helper.holder(sockets).ok().flatten(),
            };
            if let Some(holder) = holder {
                shown.name(&holder);
            }
        }
    }

    /// Peers that another process of this node keeps from having a session at all.
    pub(super) fn taken(&self) -> BTreeMap<String, String> {
        let in_the_way = |peer: &driver::PeerReport| {
            let only_accepts = self.wanted.get(&peer.name).is_some_and(|wanted| wanted.settings.mode == Mode::Accept);
            let problem = peer.problems.iter().find(|shown| match shown.problem {
                Problem::SessionOfOther { .. } => true,
                Problem::PortTaken { .. } => only_accepts,
                Problem::Settings(_)
                | Problem::NeighbourUnknown
                | Problem::InterfaceMissing(_)
                | Problem::Family { .. }
                | Problem::Listen { .. }
                | Problem::Unreachable { .. }
                | Problem::PasswordMismatch(_)
                | Problem::Duplicate(_)
                | Problem::TooMany(_) => false,
            })?;
            Some((peer.name.clone(), problem.text.clone()))
        };
        self.report.peers.iter().filter_map(in_the_way).collect()
    }

    /// Sessions that are up, and whether all peers have been sent what a stage asks for.
    pub(super) fn told(&self, stage: &Stage) -> (usize, bool) {
        let is_up =
            |peer: &&driver::PeerReport| peer.status.as_ref().is_some_and(|status| status.state == State::Established);
        let is_told = |peer: &driver::PeerReport| {
            peer.status.as_ref().is_none_or(|status| status.stage == *stage && peer.stage_sent)
        };
        (self.report.peers.iter().filter(is_up).count(), self.report.peers.iter().all(is_told))
    }

    fn want(&self) {
        if let Ok(speaker) = &self.speaker {
            speaker.want(Wanted { peers: self.wanted.clone(), restart: self.restart.clone(), ..Wanted::default() });
        }
    }

    /// Says that the engine lives.
    pub(super) fn beat(&self) {
        if let Ok(speaker) = &self.speaker {
            speaker.beat();
        }
    }

    /// Ends all sessions: with a Cease where no stage has ended them before.
    pub(super) fn stop(&mut self) {
        if let Ok(speaker) = &mut self.speaker {
            speaker.stop();
        }
    }
}

/// Of a generator that needs no secrecy, only that nodes differ.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// Reads the passwords that a configuration names.
///
/// # Errors
/// Names the line, the peer and the file, never what is in it.
pub(super) fn read_secrets(announce: &Announce) -> Result<Secrets> {
    let peers = announce.bgp.iter().flat_map(|bgp| &bgp.peers);
    let files = peers.filter_map(|peer| Some((&peer.name, peer.password_file.as_ref()?)));
    files
        .map(|(peer, PasswordFile { path, line })| {
            let place = || format!("line {line}: BGP peer {peer}: the password in {}", path.display());
            let secret = read_secret(path).with_context(place)?;
            Ok((path.clone(), secret))
        })
        .collect()
}

fn read_secret(path: &Path) -> Result<Secret> {
    let mut octets = Vec::new();
    // A pipe would keep the engine waiting for whoever writes.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        bail!("it is no file");
    }
    file.take(PASSWORD_FILE_BYTES_MAX).read_to_end(&mut octets)?;
    if octets.last() == Some(&b'\n') {
        octets.pop();
    }
    if octets.last() == Some(&b'\r') {
        octets.pop();
    }
    Ok(Secret::new(&octets)?)
}

/// What is known of the way to a peer.
struct Way {
    remote: Option<IpAddr>,
    local: Option<IpAddr>,
    /// The interface that is named.
    interface: Option<u32>,
    /// The one that the session goes over.
    over: Option<u32>,
    addresses: InterfaceAddresses,
}

impl Engine {
    /// Has peers told these routes, and watched.
    pub(super) fn follow_peers(&mut self, links: &Links, mut routes: BTreeMap<String, BTreeMap<Prefix, Route>>) {
        let announce = &self.snapshot.announce;
        let peers = announce.bgp.as_ref().map_or(&[][..], |bgp| &bgp.peers);
        if peers.is_empty() && !self.peers.is_busy() && self.has_no_blackholes() {
            return;
        }
        let mut wanted = BTreeMap::new();
        let mut watched = BTreeMap::new();
        if let Some(bgp) = &announce.bgp {
            for peer in peers.iter().filter(|peer| peer.nodes.contains(&announce.node)) {
                let way = way(peer, links, &mut self.netlink, self.peers.wanted.get(&peer.name));
                if let Some(profile) = &peer.bfd {
                    // The way may be unknown for a moment, as while a link is down: that is what BFD is to notice.
                    let session =
                        endpoint(peer, profile, &way).or_else(|| self.peers.watch.last(&peer.name, way.remote));
                    watched.extend(session.map(|session| (peer.name.clone(), session)));
                }
                let mut one = wanted_peer(bgp, peer, &way, &self.snapshot);
                let fresh = routes.remove(&peer.name).unwrap_or_default();
                let before = self.peers.wanted.get(&peer.name);
                one.routes = match before {
                    Some(before) if *before.routes == fresh => Arc::clone(&before.routes),
                    Some(_) | None => Arc::new(fresh),
                };
                one.password = peer.password_file.as_ref().and_then(|file| self.peers.secrets.get(&file.path)).cloned();
                if let Some(before) = before {
                    (one.bfd, one.stage, one.routes_complete) =
                        (before.bfd, before.stage.clone(), before.routes_complete);
                }
                wanted.insert(peer.name.clone(), one);
            }
        }
        self.peers.watch.follow(&watched, boot_time(), &mut self.helper);
        self.peers.wanted = wanted;
        // What is announced ends here before it is announced, and what is withdrawn after that.
        let blackholes = self.wanted_blackholes().inspect_err(warn_of_loops).ok();
        self.follow_blackholes(blackholes.as_ref(), true);
        self.refresh_peers();
        self.peers.want();
        self.follow_blackholes(blackholes.as_ref(), false);
    }

    /// What is to end here of what routers send by these routes and the data plane does not take.
    fn wanted_blackholes(&mut self) -> Result<Blackholes, NetError> {
        let prefixes = self.peers.wanted.values().flat_map(|peer| peer.routes.keys());
        let mut wanted = Blackholes::default();
        wanted.prefixes.extend(prefixes.map(|prefix| (prefix.address(), prefix.length())));
        if !wanted.prefixes.is_empty() {
            wanted.interfaces.extend(self.snapshot.uplinks.iter().map(|uplink| uplink.interface.clone()));
            // Within an aggregate lie pods and links, too: what the main table knows better goes on to it.
            let routes = routes::snapshot(&mut self.netlink)?;
            wanted.let_pass(routes.0.iter().map(|route| (route.destination, route.prefix_length)));
        }
        Ok(wanted)
    }

    /// Has packets end here as `wanted`, if that could be found out. `is_growing`: what is there stays.
    fn follow_blackholes(&mut self, wanted: Option<&Blackholes>, is_growing: bool) {
        let Some(wanted) = wanted else { return };
        if let Err(error) = self.try_follow_blackholes(wanted, is_growing) {
            warn_of_loops(&error);
        }
    }

    fn try_follow_blackholes(&mut self, wanted: &Blackholes, is_growing: bool) -> Result<(), NetError> {
        let mut found = match self.peers.blackholes.take() {
            Some(found) => found,
            None => Blackholes::read(&mut self.netlink)?,
        };
        if is_growing {
            let mut both = wanted.clone();
            both.add(&found);
            found.become_like(&both, &mut self.netlink)?;
        } else {
            found.become_like(wanted, &mut self.netlink)?;
        }
        self.peers.blackholes = Some(found);
        Ok(())
    }

    /// Whether nothing is left of what BGP has had made.
    pub(super) fn has_no_blackholes(&self) -> bool {
        self.peers.blackholes.as_ref().is_some_and(Blackholes::is_empty)
    }

    /// Takes up what changes without the configuration: BFD, the stage of leaving, whether more routes are about to come. True
    /// where anything has.
    fn refresh_peers(&mut self) -> bool {
        let stage = self.stage();
        let is_pending = |finding: &Finding| finding.state == BackendState::Pending;
        let is_settled = self.waiting.is_none()
            && self.announcing.damped_for().is_none()
            && !self.findings.values().any(is_pending)
            && self.health.has_all_verdicts();
        let waited = boot_time().saturating_sub(self.peers.began);
        let verdicts = self.peers.watch.report().map(|report| self.peers.watch.verdicts(&report));
        let mut has_changed = false;
        for (name, peer) in &mut self.peers.wanted {
            let before = (peer.bfd, peer.stage.clone(), peer.routes_complete);
            // Who is not watched, or no more, is not known to be up.
            peer.bfd = verdicts.as_ref().map_or(peer.bfd, |all| all.get(name).copied().unwrap_or_default());
            peer.stage.clone_from(&stage);
            let limit = peer.settings.graceful_restart.map_or(Duration::ZERO, |time| time.duration() / 2);
            // A router that keeps routes of before drops at End-of-RIB what has not come again.
            peer.routes_complete = is_settled || waited >= limit;
            has_changed |= before != (peer.bfd, peer.stage.clone(), peer.routes_complete);
        }
        has_changed
    }

    /// Tells peers what has changed without the configuration.
    pub(super) fn nudge_peers(&mut self) {
        if self.peers.is_busy() && self.refresh_peers() {
            self.peers.want();
        }
    }

    /// What peers are told of this node's leaving.
    pub(super) fn stage(&self) -> Stage {
        match &self.leave {
            None => Stage::Running,
            Some(leave) if leave.is_silent => Stage::Left,
            Some(leave) => leave.departure.step().stage(if leave.ends { STOPPING } else { DRAINED }),
        }
    }

    /// What time brings to peers: what they say, who is their neighbour, and when BFD is tried again.
    pub(super) fn look_after_peers(&mut self, ticks: u64) {
        if !self.peers.is_busy() {
            return;
        }
        if ticks.is_multiple_of(BLACKHOLE_TICKS) {
            // Others flush rules that are not their own.
            self.peers.blackholes = None;
            let blackholes = self.wanted_blackholes().inspect_err(warn_of_loops).ok();
            self.follow_blackholes(blackholes.as_ref(), false);
        }
        let taken = self.peers.taken();
        self.peers.look(&mut self.helper);
        if self.peers.taken() != taken || self.has_unknown_neighbor() || self.has_unwatched() {
            self.announce_anew();
        }
        self.nudge_peers();
    }

    /// A router that is known by its interface alone may appear, or be another, at any time.
    fn has_unknown_neighbor(&self) -> bool {
        let announce = &self.snapshot.announce;
        let mut peers =
            announce.bgp.iter().flat_map(|bgp| &bgp.peers).filter(|peer| peer.nodes.contains(&announce.node));
        peers.any(|peer| matches!(peer.at, PeerPlace::Interface(_)))
    }

    fn has_unwatched(&self) -> bool {
        let is_watched =
            |peer: &BgpPeer| self.peers.watch.sessions().get(&peer.name).is_some_and(|s| s.problem.is_none());
        let announce = &self.snapshot.announce;
        let peers = announce.bgp.iter().flat_map(|bgp| &bgp.peers).filter(|peer| peer.nodes.contains(&announce.node));
        peers.into_iter().any(|peer| peer.bfd.is_some() && !is_watched(peer))
    }

    /// Where the node goes to another step of its leaving.
    pub(super) fn note_step(&mut self, step: Step) {
        info!(step = ?step, "leaving");
        if step == Step::Silence {
            self.peers.watch.stop();
        }
    }
}

fn warn_of_loops(error: &NetError) {
    warn!(%error, "packets for announced prefixes may loop where the data plane is gone; tried again");
}

/// `before`: how the peer was wanted last.
fn way(peer: &BgpPeer, links: &Links, netlink: &mut Netlink, before: Option<&WantedPeer>) -> Way {
    let named = peer.at.interface().and_then(|name| links.by_name(name));
    let remote = match &peer.at {
        PeerPlace::Address { address, .. } => Some(*address),
        PeerPlace::Interface(_) => {
            let routers = named.and_then(|link| neighbors::routers(netlink, link.index).ok());
            let interface = named.and_then(|link| driver::Interface::new(link.index));
            let known = before.filter(|before| before.interface == interface).and_then(|before| before.remote);
            stay(&routers.unwrap_or_default(), known)
        }
    };
    let interface = named.map(|link| link.index);
    let towards = |remote: IpAddr| {
        let interface = interface.and_then(driver::Interface::new);
        local_towards(socket_address(remote, peer.port.get(), interface)).ok()
    };
    let local = peer.source.or_else(|| remote.and_then(towards));
    let has = |link: &&Link, local: IpAddr| link.addresses.iter().any(|address| address.address == local);
    let over = named.or_else(|| local.and_then(|local| links.links.iter().find(|link| has(link, local))));
    let mut addresses = InterfaceAddresses::default();
    for address in over.iter().flat_map(|link| &link.addresses).filter(|own| own.is_global && !own.is_tentative).rev() {
        match address.address {
            IpAddr::V4(v4) => addresses.ipv4 = Some(v4),
            IpAddr::V6(v6) => addresses.ipv6 = Some(v6),
        }
    }
    Way { remote, local, interface, over: over.map(|link| link.index), addresses }
}

/// The router of an interface that is the peer: the one that it was, unless others alone are there.
fn stay(routers: &[Ipv6Addr], known: Option<IpAddr>) -> Option<IpAddr> {
    let mut routers = routers.iter().copied().map(IpAddr::V6);
    let first = routers.clone().next();
    match known {
        Some(known) if routers.any(|router| router == known) => Some(known),
        known => first.or(known),
    }
}

fn endpoint(
    peer: &BgpPeer,
    profile: &crate::model::bgp::BfdProfile,
    way: &Way,
) -> Option<(bfd::Endpoint, bfd::Settings)> {
    let hops = if peer.distance.is_direct() {
        bfd::Hops::Single { interface: bfd::Interface::new(way.over?)? }
    } else {
        bfd::Hops::Multi { minimum_ttl: bfd::MinimumTtl::new(profile.minimum_ttl.get())? }
    };
    let settings = bfd::Settings::new(profile.transmit, profile.receive, profile.multiplier.get()).ok()?;
    Some((bfd::Endpoint::new(way.local?, way.remote?, hops).ok()?, settings))
}

fn wanted_peer(bgp: &Bgp, peer: &BgpPeer, way: &Way, snapshot: &Snapshot) -> WantedPeer {
    let node_address: Option<Ipv4Addr> = snapshot.node_addresses.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    let identifier = Identifier::choose(bgp.identifier, node_address, &snapshot.announce.node);
    let settings = Settings {
        families: peer.families.clone(),
        hold_time: peer.hold_time,
        mode: peer.mode,
        dial_time: peer.connect_time,
        extended_next_hop: peer.extended_next_hop,
        graceful_restart: peer.graceful_restart,
        bfd: match (&peer.bfd, peer.bfd_strict) {
            (None, _) => BfdUse::Off,
            (Some(_), false) => BfdUse::On,
            (Some(_), true) => BfdUse::Strict,
        },
        bandwidth: peer.bandwidth_kind,
        ..Settings::new(bgp.local_as, peer.peer_as, identifier)
    };
    WantedPeer {
        port: peer.port,
        source: peer.source,
        interface: way.interface.and_then(driver::Interface::new),
        ttl: match peer.distance {
            Distance::Direct => Ttl::Direct,
            Distance::Multihop(links) => Ttl::Multihop(links),
            Distance::Gtsm(hops) => Ttl::Gtsm { hops },
        },
        interface_addresses: way.addresses,
        ..WantedPeer::new(settings, way.remote)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_stays_the_router_that_it_was_unless_others_alone_are_there() {
        let [low, high]: [Ipv6Addr; 2] = [1, 2].map(|last| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last));
        let check = |routers: &[Ipv6Addr], known: Option<Ipv6Addr>, wanted: Option<Ipv6Addr>| {
            assert_eq!(stay(routers, known.map(IpAddr::V6)), wanted.map(IpAddr::V6), "{routers:?}, {known:?}");
        };
        check(&[], None, None);
        check(&[low, high], None, Some(low));
        check(&[low, high], Some(high), Some(high));
        check(&[], Some(high), Some(high));
        check(&[low], Some(high), Some(low));
    }
}
