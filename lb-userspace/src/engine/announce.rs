//! What is announced: from the snapshot and what is in force to the thread that announces.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, bail};
use lb_common::{
    abi::rung,
    holder::{Conflict, Holder, HolderKey, VirtualMac, VirtualMacKey},
};
use tracing::warn;

use super::{Engine, peers::Secrets, virtual_macs::LetIn};
use crate::{
    announce::{
        bgp::damping::Damping,
        driver::{Announcer, Answers, Opened, boot_time},
        eligibility::{Decision, Facts, InterfaceFacts, Means, VipFacts},
        wanted::wanted,
        warnings::{SharedFates, Warning, warnings},
    },
    dataplane::holders::Holders,
    health::{Target, targets::target},
    model::{
        Announce, Backend, Service,
        announce::{Prefix, WhenUnhealthy},
        bgp::NodeSelection,
    },
    net::links::{Link, Links},
    plan::{
        planner::{EndpointKey, VipKey},
        service::InstalledBackend,
    },
    preflight::resolve::carrier,
    status::BackendState,
};

/// Warnings of one look that have lines of their own in the log.
const WARNINGS_MAX: usize = 10;

/// What the engine knows of announcing.
pub(super) struct Announcing {
    /// Why nothing can be announced, or who does.
    pub(super) announcer: Result<Announcer, String>,
    /// The last decisions, for the status.
    pub(super) decisions: BTreeMap<IpAddr, Vec<(Means, Decision)>>,
    /// What looks wrong about them.
    pub(super) warnings: BTreeMap<IpAddr, BTreeSet<Warning>>,
    /// VIPs that flap.
    damping: Damping<IpAddr>,
    /// What this or an earlier agent has had interfaces let in.
    pub(super) let_in: BTreeSet<LetIn>,
    /// What they must let in.
    pub(super) macs_wanted: BTreeSet<LetIn>,
    /// Something was wanted the last time.
    pub(super) is_busy: bool,
}

impl Announcing {
    /// Nothing is announced yet.
    pub(super) fn new() -> Self {
        Self {
            announcer: Err("the agent is still starting".to_owned()),
            decisions: BTreeMap::new(),
            warnings: BTreeMap::new(),
            damping: Damping::new(),
            let_in: BTreeSet::new(),
            macs_wanted: BTreeSet::new(),
            is_busy: false,
        }
    }

    /// How long it takes until a VIP is held down no more.
    pub(super) fn damped_for(&self) -> Option<Duration> {
        self.damping.poll_timeout().map(|at| at.saturating_sub(boot_time()))
    }

    /// Takes note of VIPs that are held down no more. Whether there are any.
    pub(super) fn take_waited(&mut self) -> bool {
        let now = boot_time();
        let is_over = self.damping.poll_timeout().is_some_and(|at| at <= now);
        // At once: nothing may follow from it, and the pulse would find the same wait over again and again.
        self.damping.handle_timeout(now);
        is_over
    }

    /// Whether a segment finds VIPs here. Who does not answer may hold some.
    pub(super) fn holds(&self) -> bool {
        let Ok(announcer) = &self.announcer else { return false };
        announcer.report().is_none_or(|report| {
            !report.always.is_empty() || report.routers.iter().any(|router| router.status.hold_until.is_some())
        })
    }

    /// Whether a configuration can be followed.
    ///
    /// # Errors
    /// Where it wants something announced, and nothing can be.
    pub(super) fn check(&self, announce: &Announce) -> Result<()> {
        match &self.announcer {
            Err(error) if needs_segments(announce) => bail!("nothing can be announced: {error}"),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Opens what announcing needs, before anything is touched and privileges are dropped.
///
/// # Errors
/// Where anything is to be announced. Else the reason is kept for a configuration that wants it later.
pub(super) fn open(announce: &Announce) -> Result<Result<Opened, String>> {
    let opened = Opened::open();
    let opened = opened.map_err(|error| format!("raw sockets cannot be opened: {error}; give the agent CAP_NET_RAW"));
    match opened {
        Err(error) if needs_segments(announce) => bail!("nothing can be announced: {error}"),
        opened => Ok(opened),
    }
}

/// Whether a segment is to be told of anything, for which raw sockets are needed.
fn needs_segments(announce: &Announce) -> bool {
    let mut always = announce.always.iter().map(|always| &always.nodes);
    let mut groups = announce.vrrp.iter().map(|group| &group.nodes);
    let is_here = |nodes: &NodeSelection| nodes.contains(&announce.node);
    always.any(is_here) || groups.any(is_here)
}

/// Also where other nodes alone announce: this host may have their VIPs on an interface, and must not answer.
fn is_wanted(announce: &Announce) -> bool {
    !announce.always.is_empty() || !announce.vrrp.is_empty() || announce.bgp.is_some()
}

impl Answers for Holders {
    fn all(&self) -> io::Result<Vec<(HolderKey, Holder)>> {
        Self::all(self).map_err(io::Error::other)
    }

    fn set(&mut self, key: &HolderKey, holder: &Holder) -> io::Result<()> {
        Self::set(self, key, holder).map_err(io::Error::other)
    }

    fn remove(&mut self, key: &HolderKey) -> io::Result<()> {
        Self::remove(self, key).map_err(io::Error::other)
    }

    fn all_macs(&self) -> io::Result<Vec<(VirtualMacKey, VirtualMac)>> {
        Self::all_macs(self).map_err(io::Error::other)
    }

    fn set_mac(&mut self, key: &VirtualMacKey, mac: &VirtualMac) -> io::Result<()> {
        Self::set_mac(self, key, mac).map_err(io::Error::other)
    }

    fn remove_mac(&mut self, key: &VirtualMacKey) -> io::Result<()> {
        Self::remove_mac(self, key).map_err(io::Error::other)
    }

    fn take_conflicts(&mut self) -> io::Result<Vec<(HolderKey, Conflict)>> {
        Self::take_conflicts(self).map_err(io::Error::other)
    }
}

impl Engine {
    /// Begins to announce by sockets that were opened before privileges were dropped.
    ///
    /// # Errors
    /// Where the configuration wants something announced, and nothing can be.
    pub(super) fn begin_announcing(&mut self, opened: Result<Opened, String>, secrets: Secrets) -> Result<()> {
        let mut holders = Holders::take(&mut self.object)?;
        self.announcing.announcer = match opened {
            Ok(opened) => Announcer::start(opened, Box::new(holders))
                .map_err(|error| format!("the thread that announces cannot be started: {error}")),
            Err(error) => {
                // An earlier agent could; what it has promised without end is kept by nobody now.
                for (key, _) in holders.all()? {
                    holders.remove(&key)?;
                }
                for (key, _) in holders.all_macs()? {
                    holders.remove_mac(&key)?;
                }
                Err(error)
            }
        };
        self.announcing.check(&self.snapshot.announce)?;
        self.peers.begin(secrets, self.is_adopted);
        self.recall_drained();
        // What came and went while this agent found its way in was announced to nobody.
        self.announcing.damping = Damping::new();
        // Also where nothing is wanted: an earlier agent may have held something always.
        self.announcing.is_busy = true;
        self.announce_anew();
        Ok(())
    }

    /// The same by the links of this moment, where anything is wanted.
    pub(super) fn announce_anew(&mut self) {
        if !is_wanted(&self.snapshot.announce) && !self.announcing.is_busy && self.has_no_blackholes() {
            return;
        }
        match crate::net::links::snapshot(&mut self.netlink) {
            Ok(links) => self.announce(&links),
            Err(error) => {
                warn!(%error, "what is announced does not follow before the links can be read");
                self.waiting.get_or_insert_with(|| format!("what is announced: {error}"));
            }
        }
    }

    /// Hands over what is to be announced as things stand.
    fn announce(&mut self, links: &Links) {
        let is_busy = is_wanted(&self.snapshot.announce);
        let was_busy = std::mem::replace(&mut self.announcing.is_busy, is_busy);
        if !is_busy && !was_busy && self.has_no_blackholes() {
            return;
        }
        let facts = self.facts(links);
        let vips: BTreeSet<IpAddr> = facts.vips.keys().copied().collect();
        let mut wanted = wanted(&self.snapshot.announce, &vips, &facts);
        // Who is being looked for will be there.
        let is_pending = self.findings.values().any(|finding| finding.state == BackendState::Pending);
        let fates = if is_pending { SharedFates::new() } else { std::mem::take(&mut wanted.shared_fates) };
        self.warn_of(&vips, &facts, &fates);
        let routes = std::mem::take(&mut wanted.routes);
        let failed = self.let_in(wanted.virtual_macs());
        wanted.silence(&failed);
        self.announcing.decisions = std::mem::take(&mut wanted.decisions);
        if let Ok(announcer) = &self.announcing.announcer {
            announcer.want(wanted);
        }
        self.shut_out();
        self.follow_peers(links, routes);
    }

    /// Notes what looks wrong, and says what is new of it.
    fn warn_of(&mut self, vips: &BTreeSet<IpAddr>, facts: &Facts, fates: &SharedFates) {
        let announce = &self.snapshot.announce;
        let found = vips.iter().map(|vip| (*vip, warnings(announce, *vip, facts, fates)));
        let found: BTreeMap<IpAddr, BTreeSet<Warning>> = found.filter(|(_, warnings)| !warnings.is_empty()).collect();
        let before = std::mem::replace(&mut self.announcing.warnings, found);
        let known = |vip: &IpAddr, warning: &Warning| before.get(vip).is_some_and(|known| known.contains(warning));
        let new = self.announcing.warnings.iter().flat_map(|(vip, all)| all.iter().map(move |warning| (vip, warning)));
        let new: Vec<_> = new.filter(|(vip, warning)| !known(vip, warning)).collect();
        for (vip, warning) in new.iter().take(WARNINGS_MAX) {
            warn!(%vip, "{warning}");
        }
        if let Some(more) = new.len().checked_sub(WARNINGS_MAX).filter(|more| *more != 0) {
            warn!(count = more, "more VIPs are worth a look; `sluice status vip VIP` says why");
        }
    }

    /// Everything that is known of this node.
    fn facts(&mut self, links: &Links) -> Facts {
        let mut vips = self.vip_facts();
        let is_up = |ifindex: u32| links.by_index(ifindex).is_some_and(|link| link.is_running);
        let has_uplink = self.uplinks.iter().any(|uplink| is_up(uplink.ifindex));
        // Whoever leaves is not flapping.
        let served = vips.iter().filter(|(_, facts)| facts.is_served() && has_uplink).map(|(vip, _)| *vip).collect();
        self.announcing.damping.set_eligible(&served, boot_time());
        for (vip, facts) in &mut vips {
            facts.is_held_down = self.announcing.damping.held_until(vip).is_some();
        }
        let address_of =
            |link: &Link, address: IpAddr| vips.contains_key(&address).then(|| (address, link.name.clone()));
        let own = links
            .links
            .iter()
            .flat_map(|link| link.addresses.iter().filter_map(move |address| address_of(link, address.address)));
        let own = own.collect();
        Facts {
            vips,
            interfaces: self.interface_facts(links),
            has_uplink,
            leaving: self.leave.as_ref().map(|leave| leave.departure.step().leaving()).unwrap_or_default(),
            taken: self.peers.taken(),
            own,
        }
    }

    /// Says that this engine lives.
    pub(super) fn beat(&mut self) {
        if let Ok(announcer) = &self.announcing.announcer {
            announcer.beat();
        }
        self.peers.beat();
        if self.peers.watch.is_busy() {
            let is_there = self.has_data_plane();
            self.peers.watch.beat(boot_time(), is_there);
        }
    }

    /// The same ahead of a plan of everything, which takes seconds on a large node.
    pub(super) fn beat_for_long(&self) {
        self.peers.watch.beat_for_long(boot_time());
    }

    /// Hands over to other nodes.
    pub(super) fn stop_announcing(&mut self) {
        if let Ok(announcer) = &mut self.announcing.announcer {
            announcer.stop();
        }
    }

    fn vip_facts(&self) -> BTreeMap<IpAddr, VipFacts> {
        let addresses = self.health.failed().iter().map(|target| target.subject.address).collect();
        let withdraws = self.snapshot.announce.when_unhealthy == WhenUnhealthy::Withdraw;
        let mut vips: BTreeMap<IpAddr, VipFacts> = BTreeMap::new();
        for service in &self.snapshot.services {
            let facts = vips.entry(service.vip).or_default();
            facts.is_installed = self.planner.vips().contains_key(&service.vip);
            facts.has_backends |= !service.backends.is_empty();
            let key = VipKey::new(service.vip, service.protocol, service.port);
            let backends = self.planner.services().get(&key).into_iter().flat_map(|service| &service.backends);
            let failing = failing(service, self.health.failed(), &addresses);
            for InstalledBackend { endpoint, value, weight, drain, .. } in backends {
                if value.rung == rung::NONE || *weight == 0 {
                    let found = self.findings.get(&(endpoint.address, service.rung));
                    let is_refused = found.is_some_and(|found| found.state == BackendState::SelfTestFailed);
                    facts.untested += usize::from(is_refused && *weight != 0);
                    continue;
                }
                match (failing.contains(endpoint), drain) {
                    // Where all fail none of them drains, and packets go to all.
                    (true, false) if !withdraws => facts.reachable += 1,
                    (true, _) => facts.unhealthy += 1,
                    (false, false) => facts.reachable += 1,
                    (false, true) => {}
                }
            }
        }
        vips
    }

    fn interface_facts(&self, links: &Links) -> BTreeMap<String, InterfaceFacts> {
        let announce = &self.snapshot.announce;
        let own = announce.always.iter().map(|always| &always.interface);
        let own = own.chain(announce.vrrp.iter().flat_map(|group| group.track.iter().chain([&group.interface])));
        let peers = announce.bgp.iter().flat_map(|bgp| &bgp.peers).filter_map(|peer| peer.at.interface());
        let names: BTreeSet<&str> = own.map(String::as_str).chain(peers).collect();
        let facts = |name: &str| Some((name.to_owned(), self.facts_of(links.by_name(name)?, links)));
        names.into_iter().filter_map(facts).collect()
    }

    fn facts_of(&self, link: &Link, links: &Links) -> InterfaceFacts {
        let carrier = carrier(link, &links.links);
        // Of a bond with an active member, the others hear what they must not answer.
        let active = carrier.and_then(|(_, bond)| bond?.active);
        let places = self.places.iter().filter(|place| place.exits.contains(&link.index)).map(|place| place.index);
        let is_attached = |index: &u32| self.uplinks.iter().any(|uplink| uplink.ifindex == *index);
        InterfaceFacts {
            index: link.index,
            mac: link.mac,
            is_running: link.is_running,
            vlan: carrier.map(|(tag, _)| tag),
            attached: places.filter(is_attached).filter(|index| active.is_none_or(|active| active == *index)).collect(),
            // Nothing may be sent from one that another may have (RFC 4862, 5.4).
            addresses: link.addresses.iter().filter(|own| !own.is_tentative).map(|own| own.address).collect(),
            prefixes: link
                .addresses
                .iter()
                .filter_map(|address| Prefix::around(address.address, address.prefix_length))
                .collect(),
        }
    }
}

/// Backends that would get connections if their health checks did not fail.
fn failing(service: &Service, failed: &HashSet<Arc<Target>>, addresses: &HashSet<SocketAddr>) -> HashSet<EndpointKey> {
    let Some(check) = service.health_check.as_ref().filter(|_| !failed.is_empty()) else { return HashSet::new() };
    let fails = |backend: &&Backend| {
        // Few have failed, most of the time: without what a target costs for each of the others.
        let port = check.port.unwrap_or(backend.port);
        addresses.contains(&SocketAddr::new(backend.address, port))
            && target(service, backend).is_some_and(|target| failed.contains(&target))
    };
    let failing = service.backends.iter().filter(|backend| !backend.drain).filter(fails);
    failing.map(|backend| EndpointKey::of(service, backend)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also where announcing has been taken out of the configuration meanwhile.
    #[test]
    fn that_a_vip_take_waited_is_said_once() {
        let (mut announcing, vip) = (Announcing::new(), IpAddr::from([192, 0, 2, 1]));
        // It flapped two seconds ago, and came back: that is a second of waiting.
        let ago = boot_time().saturating_sub(Duration::from_secs(2));
        for eligible in [true, false, true] {
            announcing.damping.set_eligible(&eligible.then_some(vip).into_iter().collect(), ago);
        }
        assert_eq!(announcing.damped_for(), Some(Duration::ZERO));
        assert!(announcing.take_waited() && !announcing.take_waited());
        assert_eq!(announcing.damped_for(), None);
    }
}
