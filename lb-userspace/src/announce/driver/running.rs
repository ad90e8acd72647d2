//! What is announced now, and how it follows what is wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::BorrowedFd,
    time::Duration,
};

use lb_common::holder::{Conflict, HolderKey};
use tracing::{info, warn};

use super::{
    Answers, ConflictReport, Report, RouterError, RouterReport,
    complaints::Complaints,
    groups::Groups,
    name,
    sockets::{Frames, PACKET_MAX, Routers},
    tell::{Teller, Told},
    written::{Entry, Mishap, Written},
};
use crate::{
    announce::{
        l2::{Claims, Role, to_group},
        silence::LOOK_INTERVAL,
        vrrp::{
            Family, Vrid,
            machine::{Event, Missing, Peers, Router, Settings, StateName, Stop, Transmit},
            packet::{Advertisement, Malformed, VersionRule, check_hop_limit},
        },
        wanted::{RouterKey, Segment, Wanted, WantedRouter},
    },
    net::links::mac_text,
};

/// How long a claim by somebody else is shown after the last one.
const CONFLICT_SHOWN: Duration = Duration::from_secs(600);
/// What one router may want at a time: events and a packet or two. More waits for the next call.
const ROUNDS_MAX: usize = 128;

/// Everything that is announced.
pub struct Running {
    sockets: Routers,
    teller: Teller,
    written: Written,
    wanted: Wanted,
    routers: BTreeMap<RouterKey, Entry>,
    claims: Claims<(String, IpAddr)>,
    /// VIPs that can be served again, of routers that may have been active all the time.
    served: Claims<(RouterKey, IpAddr)>,
    groups: Groups,
    /// The engine says nothing.
    is_silenced: bool,
    conflicts: BTreeMap<HolderKey, Conflict>,
    malformed: BTreeMap<Malformed, u64>,
    looked: Duration,
    complaints: Complaints,
    out: Vec<u8>,
}

impl Running {
    pub fn new(sockets: Routers, frames: Frames, answers: Box<dyn Answers>) -> Self {
        Self {
            sockets,
            teller: Teller::new(frames),
            written: Written::new(answers),
            wanted: Wanted::default(),
            routers: BTreeMap::new(),
            claims: Claims::default(),
            served: Claims::default(),
            groups: Groups::default(),
            is_silenced: false,
            conflicts: BTreeMap::new(),
            malformed: BTreeMap::new(),
            looked: Duration::ZERO,
            complaints: Complaints::default(),
            out: Vec::new(),
        }
    }

    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.descriptors()
    }

    /// Takes up what is wanted.
    pub fn follow(&mut self, wanted: Wanted, now: Duration) {
        self.is_silenced = false;
        let moved = |name: &String, new: &Segment| {
            self.wanted.segments.get(name).is_some_and(|old| (old.index, old.mac) != (new.index, new.mac))
        };
        let moved: BTreeSet<String> =
            wanted.segments.iter().filter(|(name, new)| moved(name, new)).map(|(name, _)| name.clone()).collect();
        let held: Vec<_> = wanted.always.iter().filter(|(_, holds)| **holds).map(|(key, _)| key.clone()).collect();
        // What is at another MAC now is claimed anew.
        self.claims.set(held.iter().filter(|(interface, _)| !moved.contains(interface)).cloned(), now);
        self.claims.set(held, now);
        for (key, entry) in &mut self.routers {
            if entry.is_wanted && !wanted.routers.contains_key(key) {
                entry.is_wanted = false;
                entry.router.stop(Stop::MakeBeforeBreak, now);
            }
        }
        for (key, router) in &wanted.routers {
            let withheld = self.routers.get(key).map(|entry| &entry.withheld);
            for vip in withheld.into_iter().flat_map(|withheld| withheld.difference(&router.withheld)) {
                self.served.begin((key.clone(), *vip), now);
            }
            match (wanted.segments.get(&key.interface), self.routers.get_mut(key)) {
                (Some(segment), _) => self.follow_router(key, router, segment, now),
                // Without its interface it is nowhere, and hears nobody; the status says why.
                (None, Some(entry)) => {
                    entry.router.set_link(false, now);
                    self.groups.forget(entry.segment.index);
                }
                (None, None) => {}
            }
        }
        self.wanted = wanted;
        let routers = self.routers.iter().map(|(key, entry)| (key.family, entry.segment.index));
        self.groups.follow(&self.sockets, &self.teller, routers.collect(), &self.wanted, &mut self.complaints, now);
        self.written.write_all(&self.wanted, &self.routers, &mut self.complaints, now);
        let holds =
            |(key, entry): &(&RouterKey, &Entry)| moved.contains(&key.interface) && entry.router.hold().is_some();
        let again: Vec<RouterKey> = self.routers.iter().filter(holds).map(|(key, _)| key.clone()).collect();
        again.iter().for_each(|key| self.tell_of(key));
    }

    fn follow_router(&mut self, key: &RouterKey, wanted: &WantedRouter, segment: &Segment, now: Duration) {
        if let Some(entry) = self.routers.get_mut(key) {
            if !is_other(entry.router.settings(), &wanted.settings) {
                entry.group.clone_from(&wanted.group);
                self.teller.forget(entry.segment.index, key.vrid, wanted.withheld.difference(&entry.withheld));
                entry.withheld.clone_from(&wanted.withheld);
                entry.segment = segment.clone();
                entry.is_wanted = true;
                if wanted.is_leaving {
                    entry.router.stop(Stop::MakeBeforeBreak, now);
                } else if entry.router.missing().contains(&Missing::Stopped) {
                    entry.router.start(now);
                }
                entry.router.set_link(segment.is_running, now);
                let taken = entry.router.set_vips(wanted.settings.vips.clone(), now);
                let taken = taken.and_then(|()| entry.router.set_address(wanted.settings.address, now));
                if let Err(error) = taken {
                    warn!(%error, router = name(key), "virtual router stays as it was");
                }
                entry.router.set_priority(wanted.settings.priority, now);
                return;
            }
            // Another router with the same number: this one's last word is said at once.
            entry.router.stop(Stop::Immediate, now);
            self.serve(key);
            self.routers.remove(key);
        }
        // Of a node that leaves it does not begin; the next time that this is followed it is stopped.
        let priority = wanted.settings.priority.filter(|_| !wanted.is_leaving);
        match Router::new(Settings { priority, ..wanted.settings.clone() }, now) {
            Ok(mut router) => {
                router.set_link(segment.is_running, now);
                let (group, segment, withheld) = (wanted.group.clone(), segment.clone(), wanted.withheld.clone());
                let entry = Entry { router, group, segment, withheld, is_wanted: true, last_error: None };
                self.routers.insert(key.clone(), entry);
            }
            Err(error) => warn!(%error, router = name(key), "virtual router does not run"),
        }
    }

    /// Takes one packet; false where there is none.
    pub fn receive(&mut self, family: Family, buffer: &mut [u8; PACKET_MAX]) -> bool {
        let received = match self.sockets.receive(family, buffer) {
            Ok(Some(received)) => received,
            Ok(None) => return false,
            Err(error) => {
                self.complaints.say("receive", super::boot_time(), || {
                    warn!(%error, "cannot hear other virtual routers");
                });
                return false;
            }
        };
        let now = super::boot_time();
        let parsed = check_hop_limit(received.hop_limit).and_then(|()| {
            Advertisement::parse(received.bytes, received.source, received.destination, VersionRule::Any)
        });
        let on_interface = |entry: &Entry| entry.segment.index == received.interface;
        match parsed {
            Ok(advertisement) => {
                let heard = self.routers.iter_mut().filter(|(key, entry)| {
                    on_interface(entry) && key.family == family && key.vrid == advertisement.vrid()
                });
                for (_, entry) in heard {
                    entry.router.handle_packet(received.source, &advertisement, now);
                }
            }
            Err(reason) => {
                *self.malformed.entry(reason).or_default() += 1;
                // The number stands where it does in both versions.
                let vrid = received.bytes.get(1).and_then(|vrid| Vrid::new(u16::from(*vrid)).ok());
                for (key, entry) in &mut self.routers {
                    if on_interface(entry) && key.family == family && Some(key.vrid) == vrid {
                        entry.router.count_malformed(reason);
                        let detail = format!("from {}: {reason}", received.source);
                        entry.last_error = Some(Mishap { at: now, cause: "malformed", detail });
                    }
                }
            }
        }
        true
    }

    /// Does what is due, and tells the segments and the data plane.
    pub fn handle_timeout(&mut self, now: Duration) {
        let keys: Vec<RouterKey> = self.routers.keys().cloned().collect();
        for key in &keys {
            if let Some(entry) = self.routers.get_mut(key) {
                entry.router.handle_timeout(now);
            }
            self.serve(key);
        }
        let before = self.routers.len();
        self.routers.retain(|_, entry| entry.is_wanted || entry.router.state().name() != StateName::Init);
        if self.routers.len() != before {
            self.written.write_all(&self.wanted, &self.routers, &mut self.complaints, now);
        }
        for (interface, vip) in self.claims.handle_timeout(now) {
            if let Some(segment) = self.wanted.segments.get(&interface) {
                let (segment, mac) = (segment.clone(), segment.mac);
                self.teller.add(Told { owner: None, segment, vip, mac, role: Role::Host });
            }
        }
        for (key, vip) in self.served.handle_timeout(now) {
            self.tell_one(&key, vip);
        }
        self.served.end();
        self.teller.go_on(now, &mut self.complaints);
        if now.saturating_sub(self.looked) >= LOOK_INTERVAL {
            self.looked = now;
            self.look(now);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let routers = self.routers.values().filter_map(|entry| entry.router.poll_timeout());
        let claims = self.claims.poll_timeout().into_iter().chain(self.served.poll_timeout());
        routers.chain(claims).chain(self.teller.poll_timeout()).min()
    }

    /// Sends and does what one router wants. Who holds is written before anybody is told of it.
    fn serve(&mut self, key: &RouterKey) {
        for _ in 0..ROUNDS_MAX {
            let Some(entry) = self.routers.get_mut(key) else { return };
            let event = entry.router.poll_event();
            let transmit = if event.is_some() { None } else { entry.router.poll_transmit(super::boot_time()) };
            match (event, transmit) {
                (Some(event), _) => self.act(key, event),
                (None, Some(transmit)) => self.transmit(key, &transmit),
                (None, None) => return,
            }
        }
    }

    fn act(&mut self, key: &RouterKey, event: Event) {
        match event {
            Event::Transition { from, to, cause } => {
                info!(router = name(key), ?from, ?to, ?cause, "virtual router");
            }
            Event::Hold { .. } => self.write(key),
            Event::Release { vips } => {
                if let Some(entry) = self.routers.get(key) {
                    self.teller.forget(entry.segment.index, key.vrid, &vips);
                }
                self.write(key);
            }
            Event::Gratuitous => {
                self.write(key);
                self.tell_of(key);
            }
            Event::Alarm { kind, from } => {
                warn!(router = name(key), kind = kind.name(), %from, "another virtual router differs");
                if let Some(entry) = self.routers.get_mut(key) {
                    let detail = format!("{from} has another {}", kind.name());
                    entry.last_error = Some(Mishap { at: super::boot_time(), cause: "differs", detail });
                }
            }
        }
    }

    fn write(&mut self, key: &RouterKey) {
        if let Some(entry) = self.routers.get(key) {
            self.written.write(&self.wanted, &key.interface, entry, &mut self.complaints, super::boot_time());
        }
    }

    /// One round for all VIPs that a router holds.
    fn tell_of(&mut self, key: &RouterKey) {
        let held: Vec<IpAddr> = self.routers.get(key).into_iter().flat_map(Entry::held).collect();
        held.into_iter().for_each(|vip| self.tell_one(key, vip));
    }

    /// One round for a VIP, if a router holds it.
    fn tell_one(&mut self, key: &RouterKey, vip: IpAddr) {
        let Some(entry) = self.routers.get(key).filter(|entry| entry.router.hold().is_some()) else { return };
        if entry.router.vips().all().contains(&vip) && !entry.withheld.contains(&vip) {
            let mac = entry.router.virtual_mac().unwrap_or(entry.segment.mac);
            let segment = entry.segment.clone();
            self.teller.add(Told { owner: Some(key.vrid), segment, vip, mac, role: Role::Router });
        }
    }

    fn transmit(&mut self, key: &RouterKey, transmit: &Transmit) {
        let Some(entry) = self.routers.get_mut(key) else { return };
        let targets: Vec<IpAddr> = match &entry.router.settings().peers {
            Peers::Group => vec![key.family.group()],
            Peers::Unicast(peers) => peers.iter().copied().collect(),
        };
        let at = super::boot_time();
        if at >= transmit.not_after {
            return entry.router.unsent(transmit.id);
        }
        let mut is_sent = false;
        for target in targets {
            self.out.clear();
            transmit.advertisement.emit(transmit.source, target, &mut self.out);
            // A switch learns where the virtual MAC is.
            let sent =
                match entry.router.virtual_mac().and_then(|mac| to_group(mac, transmit.source, target, &self.out)) {
                    Some(frame) => self.teller.frames().send(entry.segment.index, &frame),
                    None => self.sockets.send(entry.segment.index, transmit.source, target, &self.out),
                };
            match sent {
                Ok(()) => is_sent = true,
                Err(error) => {
                    self.complaints.say("advertisement", at, || {
                        warn!(router = name(key), %error, "advertisement not sent");
                    });
                    entry.last_error = Some(Mishap { at, cause: "unsent", detail: format!("to {target}: {error}") });
                }
            }
        }
        if is_sent {
            entry.router.sent(transmit.id, at);
        } else {
            entry.router.unsent(transmit.id);
        }
    }

    /// Takes up who else claims what is held here. Who takes over claims it too, a moment before this node lets go: what is not
    /// held any more is no conflict.
    fn look(&mut self, now: Duration) {
        let nanoseconds = now.as_nanos() as u64;
        let found = match self.written.take_conflicts() {
            Ok(found) => found,
            Err(error) => {
                return self.complaints.say("conflicts", now, || warn!(%error, "cannot read who else claims VIPs"));
            }
        };
        for (key, conflict) in found.into_iter().filter(|(key, _)| self.written.holds(key, nanoseconds)) {
            let known = self.conflicts.entry(key).or_default();
            if known.count == 0 || known.mac != conflict.mac {
                warn!(vip = %key.address, ifindex = key.interface, mac = mac_text(conflict.mac), "somebody else claims a VIP");
            }
            *known = Conflict { count: known.count + conflict.count, ..conflict };
        }
        let shown = CONFLICT_SHOWN.as_nanos() as u64;
        self.conflicts.retain(|_, conflict| nanoseconds.saturating_sub(conflict.last) < shown);
    }

    /// The engine is silent: whoever can, takes over.
    pub fn silence(&mut self, now: Duration) {
        if !std::mem::replace(&mut self.is_silenced, true) {
            warn!("the engine says nothing: virtual routers leave");
        }
        for entry in self.routers.values_mut() {
            entry.router.set_priority(None, now);
        }
    }

    /// The engine was heard.
    pub fn resume(&mut self, now: Duration) {
        if !std::mem::replace(&mut self.is_silenced, false) {
            return;
        }
        for (key, entry) in &mut self.routers {
            if let Some(wanted) = self.wanted.routers.get(key).filter(|wanted| !wanted.is_leaving) {
                entry.router.set_priority(wanted.settings.priority, now);
            }
        }
    }

    /// Hands over, make before break. Questions for what was held stay ours.
    pub fn stop(&mut self, now: Duration) {
        self.written.stop();
        for entry in self.routers.values_mut() {
            entry.is_wanted = false;
            entry.router.stop(Stop::MakeBeforeBreak, now);
        }
    }

    /// Whether all have handed over.
    pub fn has_left(&self) -> bool {
        self.routers.is_empty()
    }

    pub fn report(&self, now: Duration) -> Report {
        let router = |(key, entry): (&RouterKey, &Entry)| {
            let status = entry.router.status();
            let since_seconds = now.saturating_sub(status.since).as_secs();
            let (group, interface) = (entry.group.clone(), key.interface.clone());
            let virtual_mac = entry.router.virtual_mac().map(|mac| (entry.segment.index, mac));
            let last_error = entry.last_error.as_ref().map(|Mishap { at, cause, detail }| RouterError {
                seconds_ago: now.saturating_sub(*at).as_secs(),
                cause,
                detail: detail.clone(),
            });
            RouterReport { group, interface, virtual_mac, since_seconds, last_error, status }
        };
        let conflict = |(key, conflict): (&HolderKey, &Conflict)| ConflictReport {
            interface: key.interface,
            vip: key.address.into(),
            mac: mac_text(conflict.mac),
            count: conflict.count,
        };
        let always = self.wanted.always.iter().filter(|(_, holds)| **holds).map(|(key, _)| key.clone());
        Report {
            routers: self.routers.iter().map(router).collect(),
            always: always.collect(),
            conflicts: self.conflicts.iter().map(conflict).collect(),
            malformed: self.malformed.clone(),
        }
    }
}

/// Whether what cannot be changed in a router that runs is another.
fn is_other(now: &Settings, wanted: &Settings) -> bool {
    let fixed = |settings: &Settings| {
        let Settings { interval, preemption, start_delay, peers, has_virtual_mac, refresh, .. } = settings;
        (*interval, *preemption, *start_delay, peers.clone(), *has_virtual_mac, *refresh)
    };
    fixed(now) != fixed(wanted)
}
