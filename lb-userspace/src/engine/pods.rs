//! Which interface leads to a pod, and which rung gets packets into it: asked of the kernel, proved by the self-test.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_common::abi;
use tracing::{debug, info, warn};

use super::{Engine, vips};
use crate::{
    dataplane::probe::{self, Question},
    model::{Rung, RungChoice},
    net::{
        links::{Link, LinkKind, Links, PodInterface},
        routes::{Family, Routes},
    },
    plan::planner::{Place, Places, rung_number},
    status::{AttachMode, BackendState, VipOnLo},
};

/// How long a rung that failed is left alone before it is tried again.
const RETRY: Duration = Duration::from_secs(3);
/// How long addresses are tested in one go; the rest is left to the next tick. The agent does nothing else meanwhile, and
/// an address that does not answer takes more than half a second.
const TESTS_TIME_MAX: Duration = Duration::from_secs(1);
/// Largest packet that a host-network pod takes: what the loopback interface does.
const LOOPBACK_MTU: u32 = 65_535;

/// How an address is reached, as far as netlink tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Site {
    /// Behind a veth.
    Pod(PodInterface),
    /// One of this node's own addresses.
    Host,
    /// By a route through an interface that is neither veth nor uplink.
    Routed(Link),
}

impl Site {
    fn interface(&self) -> Option<&str> {
        match self {
            Self::Pod(pod) => Some(&pod.host_name),
            Self::Host => None,
            Self::Routed(link) => Some(&link.name),
        }
    }

    fn place(&self, rung: Rung) -> Place {
        match self {
            Self::Pod(pod) => Place {
                ifindex: pod.host_ifindex,
                mtu: pod.mtu,
                destination_mac: pod.pod_mac,
                source_mac: pod.host_mac,
                netns_id: u32::try_from(pod.netns_id.0).ok(),
                rung,
            },
            Self::Host => Place {
                ifindex: 1,
                mtu: LOOPBACK_MTU,
                destination_mac: [0; 6],
                source_mac: [0; 6],
                netns_id: Some(abi::HOST_NETNS),
                rung,
            },
            Self::Routed(link) => Place {
                ifindex: link.index,
                mtu: link.mtu,
                destination_mac: [0; 6],
                source_mac: link.mac,
                netns_id: None,
                rung,
            },
        }
    }

    /// Whether what was found out about one holds for the other: a pod's further addresses and names change no way.
    fn is_same_way(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pod(one), Self::Pod(two)) => {
                one.pod_ifindex == two.pod_ifindex && self.place(Rung::Redirect) == other.place(Rung::Redirect)
            }
            _ => self == other,
        }
    }

    fn rungs(&self, choice: RungChoice) -> Vec<Rung> {
        let all = match self {
            Self::Pod(_) => &[Rung::Redirect, Rung::Peer, Rung::Stack][..],
            Self::Host | Self::Routed(_) => &[Rung::Stack],
        };
        match choice {
            RungChoice::Auto => all.to_vec(),
            RungChoice::Only(rung) => all.iter().copied().filter(|other| *other == rung).collect(),
            RungChoice::Direct { .. } if matches!(self, Self::Pod(_)) => vec![Rung::Direct],
            RungChoice::Direct { .. } => Vec::new(),
        }
    }
}

/// What was found out about one address and rung choice.
#[derive(Clone, Debug)]
pub struct Finding {
    site: Option<Site>,
    /// The rung that passed.
    pub rung: Option<Rung>,
    /// In words of the status.
    pub state: BackendState,
    /// Where the state comes from.
    pub reason: Option<String>,
    /// By rung `direct`: whether the pod owns the VIP.
    pub vip_on_lo: Option<VipOnLo>,
    /// When it was tested; `None` while it waits for that.
    tried: Option<Instant>,
}

impl Finding {
    /// What the maps say of a pod, where that is still how it is reached and how it is asked for.
    pub(super) fn adopted(site: Site, choice: RungChoice, way: &abi::Backend) -> Option<Self> {
        let rung = site.rungs(choice).into_iter().find(|rung| rung_number(*rung) == way.rung)?;
        let place = site.place(rung);
        let is_same = (place.ifindex, place.mtu, place.netns_id.unwrap_or(abi::NO_NETNS))
            == (way.ifindex, way.mtu, way.netns_id)
            && (place.destination_mac, place.source_mac) == (way.destination_mac, way.source_mac);
        let vip_on_lo = match (&site, choice.owned_vip()) {
            (Site::Pod(pod), Some(vip)) => Some(vips::vip_on_lo(pod, vip)),
            _ => None,
        };
        let owns = vip_on_lo != Some(VipOnLo::Missing);
        (is_same && owns).then(|| Self {
            site: Some(site),
            rung: Some(rung),
            state: BackendState::Ready,
            reason: None,
            vip_on_lo,
            tried: Some(Instant::now()),
        })
    }

    /// The host's interface that leads to the pod.
    pub fn interface(&self) -> Option<&str> {
        self.site.as_ref().and_then(Site::interface)
    }

    /// The pod's interface, where it has one.
    pub fn pod(&self) -> Option<&PodInterface> {
        match &self.site {
            Some(Site::Pod(pod)) => Some(pod),
            _ => None,
        }
    }

    /// Whether the address is this node's own.
    pub fn is_host(&self) -> bool {
        matches!(self.site, Some(Site::Host))
    }
}

/// An address and the rung that its services ask for.
pub type Wanted = (IpAddr, RungChoice);

impl Engine {
    /// Finds every backend's pod, attaches what its interface needs, and settles its rung. Nothing is taken away from
    /// pods that are wanted no longer: see [`Engine::release_pods`].
    pub(super) fn find_pods(&mut self, links: &Links, routes: &Routes) -> Places {
        let wanted = self.wanted_pods();
        let sites: BTreeMap<IpAddr, Option<Site>> =
            wanted.iter().map(|(address, _)| (*address, self.site(*address, links, routes))).collect();
        self.attach_pods(sites.values().flatten(), links);
        let mut places = Places::new();
        // Those that wait longest first: what never answers must not keep others waiting.
        let mut order: Vec<Wanted> = wanted.into_iter().collect();
        order.sort_by_key(|wanted| self.findings.get(wanted).and_then(|known| known.tried));
        let deadline = Instant::now() + TESTS_TIME_MAX;
        for (address, choice) in order {
            let site = sites.get(&address).cloned().flatten();
            let known = self.known((address, choice), site.as_ref(), deadline);
            let finding = known.unwrap_or_else(|| self.settle((address, choice), site, links, routes));
            if let (Some(site), Some(rung)) = (&finding.site, finding.rung) {
                places.insert((address, choice), site.place(rung));
            }
            self.findings.insert((address, choice), finding);
        }
        places
    }

    /// The pods that are reached now.
    pub(super) fn known_places(&self) -> Places {
        let reached = |(wanted, found): (&Wanted, &Finding)| Some((*wanted, found.site.as_ref()?.place(found.rung?)));
        self.findings.iter().filter_map(reached).collect()
    }

    pub(super) fn wanted_pods(&self) -> BTreeSet<Wanted> {
        self.wanted.iter().collect()
    }

    /// Forgets pods that are wanted no longer, and takes the programs off their interfaces. Called when the maps do not
    /// lead to them any more: a reply that nobody rewrites ends its session.
    pub(super) fn release_pods(&mut self, links: &Links) {
        let wanted = self.wanted_pods();
        self.findings.retain(|known, _| wanted.contains(known));
        // Not those of pods without an interface: one that moves is without for a moment.
        let addresses: BTreeSet<IpAddr> = wanted.iter().map(|(address, _)| *address).collect();
        let followed = self.followed.iter().filter(|(address, _)| addresses.contains(address));
        let in_use: BTreeSet<u64> = followed.map(|(_, cookie)| *cookie).collect();
        self.followed.retain(|_, cookie| in_use.contains(cookie));
        let pods = self.findings.values().filter_map(Finding::pod).map(|pod| pod.host_ifindex);
        let needed: BTreeSet<u32> = pods.chain(self.uplinks.iter().map(|uplink| uplink.ifindex)).collect();
        for ifindex in self.attached.interfaces().into_iter().filter(|ifindex| !needed.contains(ifindex)) {
            self.attached.detach(ifindex);
            let link = links.by_index(ifindex);
            info!(interface = link.map(|link| link.name.as_str()), ifindex, "pod interface released");
        }
        self.restore_gro(links, &needed);
        self.withdraw_vips(links);
    }

    pub(super) fn site(&self, address: IpAddr, links: &Links, routes: &Routes) -> Option<Site> {
        if let Some(pod) = links.pod_with_address(address) {
            return pod.is_running.then(|| Site::Pod(pod.clone()));
        }
        if links.addresses().any(|own| own.address == address) {
            return Some(Site::Host);
        }
        let route = routes.to(address)?;
        let link = links.by_index(route.interface)?;
        let is_uplink = self.is_exit(link.index);
        // A bridge or veth leads to pods that have just gone or are just coming.
        let is_podless = matches!(link.kind, LinkKind::Bond(_) | LinkKind::Vlan(_) | LinkKind::Other(_));
        (!is_uplink && is_podless).then(|| Site::Routed(link.clone()))
    }

    /// Attaches the recorder and the return program to the interfaces of these pods, and tidies up after interfaces that
    /// are gone.
    fn attach_pods<'a>(&mut self, sites: impl Iterator<Item = &'a Site>, links: &Links) {
        for ifindex in self.attached.interfaces() {
            if links.by_index(ifindex).is_none() {
                self.attached.detach(ifindex);
            }
        }
        let pods: BTreeMap<u32, &PodInterface> = sites
            .filter_map(|site| match site {
                Site::Pod(pod) => Some((pod.host_ifindex, pod)),
                _ => None,
            })
            .collect();
        for (ifindex, pod) in pods {
            if self.attached.is_pod(ifindex) {
                continue;
            }
            // An agent that was killed between its two programs.
            self.attached.detach(ifindex);
            if let Err(error) = self.attach_pod(pod) {
                warn!(interface = pod.host_name, %error, "cannot attach to a pod's interface");
                self.attached.detach(ifindex);
            }
        }
    }

    fn attach_pod(&mut self, pod: &PodInterface) -> anyhow::Result<()> {
        self.attached.attach_recorder(&mut self.object, pod.host_ifindex, &pod.host_name)?;
        // What came in before the recorder was there, on endpoints that are served already.
        let addresses: Vec<IpAddr> = pod.addresses.iter().chain(&pod.loopback_addresses).copied().collect();
        self.learn_pod(pod, &addresses)?;
        self.attached.attach_return(&mut self.object, pod.host_ifindex, &pod.host_name)?;
        info!(interface = pod.host_name, pod = ?pod.addresses, "pod interface attached");
        Ok(())
    }

    /// What is known without a test: the earlier finding where nothing has changed, or that there is no time for a test.
    fn known(&self, wanted: Wanted, site: Option<&Site>, deadline: Instant) -> Option<Finding> {
        let earlier = self.findings.get(&wanted).filter(|known| match (&known.site, site) {
            (Some(known), Some(site)) => known.is_same_way(site),
            (known, site) => known.is_none() && site.is_none(),
        });
        let on_lo = |site: Option<&Site>| match site {
            Some(Site::Pod(pod)) => wanted.1.owned_vip().map(|vip| vips::vip_on_lo(pod, vip)),
            _ => None,
        };
        let earlier = earlier.filter(|known| known.vip_on_lo == on_lo(site));
        // Nothing would rewrite its replies.
        let has_programs = |pod: &PodInterface| self.attached.is_pod(pod.host_ifindex);
        let earlier = earlier.filter(|known| known.rung.is_none() || known.pod().is_none_or(has_programs));
        let late = site.is_some() && Instant::now() >= deadline;
        let is_recent = |known: &Finding| known.tried.is_some_and(|tried| tried.elapsed() < RETRY);
        match earlier {
            Some(known) if known.state == BackendState::Ready || late || is_recent(known) => {
                Some(Finding { site: site.cloned(), ..known.clone() })
            }
            None if late => Some(Finding {
                site: site.cloned(),
                rung: None,
                state: BackendState::Pending,
                reason: Some("waits for its self-test; others are tested".into()),
                vip_on_lo: on_lo(site),
                tried: None,
            }),
            _ => None,
        }
    }

    fn settle(&mut self, wanted: Wanted, site: Option<Site>, links: &Links, routes: &Routes) -> Finding {
        let tried = Some(Instant::now());
        let owned = match (&site, wanted.1) {
            (Some(Site::Pod(pod)), RungChoice::Direct { vip, assign }) => Some(self.own_vip(pod, vip, assign)),
            _ => None,
        };
        let vip_on_lo = owned.as_ref().map(|owned| owned.as_ref().copied().unwrap_or(VipOnLo::Missing));
        let finding = |state, rung, reason| Finding { site: site.clone(), rung, state, reason, vip_on_lo, tried };
        if let Some(Err(reason)) = owned {
            warn!(pod = %wanted.0, reason, "backend cannot be reached");
            return finding(BackendState::VipMissing, None, Some(reason));
        }
        let Some(found) = &site else {
            let reason = match links.pod_with_address(wanted.0) {
                Some(pod) => format!("the pod's interface is down; see `ip link show {}`", pod.host_name),
                None => "no pod on this node has the address".into(),
            };
            return finding(BackendState::NoInterface, None, Some(reason));
        };
        if let Site::Pod(pod) = found
            && !self.attached.is_pod(pod.host_ifindex)
        {
            // Tested as soon as it has them.
            let reason = Some("programs cannot be attached to its interface: the log says why".into());
            return Finding { tried: None, ..finding(BackendState::SelfTestFailed, None, reason) };
        }
        let mut reasons = Vec::new();
        for rung in found.rungs(wanted.1) {
            let tested = self.try_rung(wanted, found, rung, links, routes);
            self.meter.self_test(rung, tested.is_ok());
            match tested {
                Ok(()) => {
                    info!(pod = %wanted.0, rung = rung.name(), interface = found.interface(), "backend reached");
                    let reason = (!reasons.is_empty()).then(|| reasons.join("; "));
                    return finding(BackendState::Ready, Some(rung), reason);
                }
                Err(reason) => {
                    debug!(pod = %wanted.0, rung = rung.name(), reason, "rung failed");
                    reasons.push(format!("{}: {reason}", rung.name()));
                }
            }
        }
        if reasons.is_empty() {
            reasons.push("the asked-for rung needs a veth".into());
        }
        let reason = reasons.join("; ");
        warn!(pod = %wanted.0, reason, "backend cannot be reached");
        finding(BackendState::SelfTestFailed, None, Some(reason))
    }

    fn try_rung(
        &mut self,
        (address, choice): Wanted,
        site: &Site,
        rung: Rung,
        links: &Links,
        routes: &Routes,
    ) -> Result<(), String> {
        if let Site::Pod(pod) = site
            && matches!(rung, Rung::Redirect | Rung::Direct)
        {
            self.turn_gro_on(pod).map_err(|error| format!("GRO of the pod's interface: {error}"))?;
        }
        if matches!(site, Site::Host) {
            // The stack delivers to this node's own addresses by definition, and answers nothing from outside that
            // claims to be somebody behind the uplink.
            return Ok(());
        }
        let uplink = self.uplinks.first().ok_or("no uplink is attached")?;
        let client = routes
            .probe_client(links, uplink.exit, Family::of(address))
            .ok_or("the uplink has no address of this family to test from")?;
        let question = Question {
            address,
            vip: choice.owned_vip(),
            place: site.place(rung),
            client,
            uplink: uplink.ifindex,
            uplink_mac: uplink.mac,
            generic: uplink.mode == AttachMode::Generic,
            port: self.unused_port(address, choice.owned_vip()),
        };
        match probe::ask(&mut self.object, &mut self.tables, &self.sizes, &question) {
            Ok(true) => Ok(()),
            Ok(false) => Err("no answer to the self-test".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// A TCP port of a pod, and of the VIP that it owns, that no service uses.
    fn unused_port(&self, address: IpAddr, vip: Option<IpAddr>) -> u16 {
        let services = &self.snapshot.services;
        let pods = services.iter().flat_map(|service| &service.backends);
        let pods = pods.filter(|backend| backend.address == address).map(|backend| backend.port);
        let vips = services.iter().filter(|service| Some(service.vip) == vip).map(|service| service.port);
        let used: BTreeSet<u16> = pods.chain(vips).collect();
        (1..u16::MAX).find(|port| !used.contains(port)).unwrap_or(u16::MAX)
    }
}
