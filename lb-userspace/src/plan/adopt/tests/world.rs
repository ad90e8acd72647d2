//! A planner's life, with maps in memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use lb_common::{
    abi::{self, ServiceKey},
    address::Address,
};
use proptest::prelude::*;

use crate::{
    model::{
        Affinity, Announce, Backend, Capacities, Limits, Protocol, ReplyMode, Rung, RungChoice, Service, Snapshot,
    },
    plan::{
        adopt::{Adopted, Arrays, ReadBack},
        history::Position,
        maglev,
        ops::MapOp,
        planner::{EndpointKey, Place, Places, Planner, backend_entries, table_member, vip_key},
        service::history_entries,
    },
};

pub const CAPACITIES: Capacities =
    Capacities { services: 64, backends: 256, maglev_slots: 1 << 17, bypasses: 1, flows: 4, fragments: 8 };
pub const HERTZ: u64 = 250;

/// The maps, as programs and the agent read them.
#[derive(Clone)]
pub struct Maps {
    pub services: HashMap<ServiceKey, abi::Service>,
    pub vips: HashMap<Address, u32>,
    pub endpoints: HashMap<ServiceKey, abi::Endpoint>,
    pub members: BTreeMap<u32, abi::Member>,
    pub backend_vips: HashMap<u32, ServiceKey>,
    pub tx_ports: BTreeMap<u32, u32>,
    pub slots: Vec<abi::Slot>,
    pub histories: Vec<abi::History>,
    pub backends: Vec<abi::Backend>,
}

impl Arrays for Maps {
    fn slot(&self, at: u32) -> Option<abi::Slot> {
        self.slots.get(at as usize).copied()
    }

    fn history(&self, at: u32) -> Option<abi::History> {
        self.histories.get(at as usize).copied()
    }

    fn backend(&self, at: u32) -> Option<abi::Backend> {
        self.backends.get(at as usize).copied()
    }
}

/// What a packet in one slot finds: the owner's entry, and those of earlier ones.
pub type Found = (Option<abi::Backend>, Vec<abi::Backend>);

impl Maps {
    pub fn new(capacities: &Capacities) -> Self {
        let (services, vips, endpoints, members, backend_vips, tx_ports) = Default::default();
        let slots = vec![abi::Slot::default(); capacities.maglev_slots as usize];
        let histories = vec![abi::History::default(); history_entries(capacities.maglev_slots) as usize];
        let backends = vec![abi::Backend::default(); backend_entries(capacities) as usize];
        Self { services, vips, endpoints, members, backend_vips, tx_ports, slots, histories, backends }
    }

    pub fn apply(&mut self, op: &MapOp) {
        match op.clone() {
            MapOp::SetTxPort { id, ifindex: 0 } => drop(self.tx_ports.remove(&id)),
            MapOp::SetTxPort { id, ifindex } => drop(self.tx_ports.insert(id, ifindex)),
            MapOp::WriteBackends { offset, backends } => {
                self.backends[offset as usize..][..backends.len()].copy_from_slice(&backends);
            }
            MapOp::WriteSlots { offset, slots } => {
                (offset as usize..).zip(slots.slots()).for_each(|(at, slot)| self.slots[at] = slot);
            }
            MapOp::UpdateSlots { offset, slots } => {
                slots.into_iter().for_each(|(at, slot)| self.slots[(offset + at) as usize] = slot);
            }
            MapOp::WriteHistory { at, value } => self.histories[at as usize] = value,
            MapOp::SetBackendVip { id, key } => drop(self.backend_vips.insert(id, key)),
            MapOp::SetMember { id, value } if value == abi::Member::default() => drop(self.members.remove(&id)),
            MapOp::SetMember { id, value } => drop(self.members.insert(id, value)),
            MapOp::SetEndpoint { key, value } => drop(self.endpoints.insert(key, value)),
            MapOp::RemoveEndpoint { key } => drop(self.endpoints.remove(&key)),
            MapOp::SetService { key, value } => drop(self.services.insert(key, value)),
            MapOp::RemoveService { key } => drop(self.services.remove(&key)),
            MapOp::SetVip { address, services: 0 } => drop(self.vips.remove(&address)),
            MapOp::SetVip { address, services } => drop(self.vips.insert(address, services)),
            MapOp::ClearBackendCounters { .. } => {}
        }
    }

    pub fn read_back(&self) -> ReadBack {
        ReadBack {
            services: self.services.iter().map(|(key, value)| (*key, *value)).collect(),
            vips: self.vips.iter().map(|(vip, services)| (*vip, *services)).collect(),
            endpoints: self.endpoints.iter().map(|(key, value)| (*key, *value)).collect(),
            members: self.members.iter().map(|(id, member)| (*id, *member)).collect(),
            tx_ports: self.tx_ports.iter().map(|(id, ifindex)| (*id, *ifindex)).collect(),
        }
    }

    pub fn adopt(&self, now: Duration) -> Adopted {
        Planner::adopt(CAPACITIES, HERTZ, &self.read_back(), self, now)
    }

    /// Slot by slot; empty where the service refuses.
    pub fn found(&self, service: &abi::Service) -> Vec<Found> {
        if service.backends_count == 0 {
            return Vec::new();
        }
        let backend = |position: u16| {
            assert!(position < service.backends_count, "position {position} of {service:?}");
            self.backends[(service.backends + u32::from(position)) as usize]
        };
        let found = |slot: &abi::Slot| {
            let owner = (slot.owner != abi::NO_OWNER).then(|| backend(slot.owner));
            let list = match slot.history {
                0 => abi::History::default(),
                n => self.histories[(service.histories + u32::from(n - 1)) as usize],
            };
            (owner, list.owners[..list.count.into()].iter().map(|owner| backend(*owner)).collect())
        };
        self.slots[service.slots as usize..][..1 << service.slots_log2].iter().map(found).collect()
    }

    /// Positions that slots lead to.
    fn named(&self, service: &abi::Service) -> BTreeSet<u16> {
        if service.backends_count == 0 {
            return BTreeSet::new();
        }
        let (mut owners, mut references) = (vec![false; 1 << 16], vec![false; 1 << 16]);
        for slot in &self.slots[service.slots as usize..][..1 << service.slots_log2] {
            owners[usize::from(slot.owner)] = true;
            references[usize::from(slot.history)] = true;
        }
        let of = |flags: Vec<bool>| (0..=u16::MAX).zip(flags).filter(|(_, is_set)| *is_set).map(|(number, _)| number);
        let mut named: BTreeSet<u16> = of(owners).filter(|owner| *owner != abi::NO_OWNER).collect();
        for reference in of(references).filter(|reference| *reference != 0) {
            let list = self.histories[(service.histories + u32::from(reference - 1)) as usize];
            named.extend(&list.owners[..list.count.into()]);
        }
        named
    }

    /// All that programs see of services.
    pub fn seen(&self) -> HashMap<ServiceKey, (abi::Service, Vec<Found>)> {
        let places_apart = |value: &abi::Service| abi::Service { slots: 0, histories: 0, backends: 0, ..*value };
        self.services.iter().map(|(key, value)| (*key, (places_apart(value), self.found(value)))).collect()
    }

    /// Every visible slot leads to backends of the service whose replies find back.
    pub fn check(&self) {
        for (key, service) in &self.services {
            for position in self.named(service) {
                assert!(position < service.backends_count, "position {position} of {service:?}");
                let backend = self.backends[(service.backends + u32::from(position)) as usize];
                assert_eq!(self.backend_vips.get(&backend.id), Some(key), "{backend:?}");
                let member = self.members.get(&backend.id).expect("a visible backend is a member");
                assert_eq!((member.service, member.endpoint), (*key, backend.endpoint), "{backend:?}");
                if backend.rung != abi::rung::NONE {
                    assert_eq!(self.tx_ports.get(&backend.tx_port), Some(&backend.ifindex), "{backend:?}");
                }
            }
        }
    }
}

/// Each write that a crash may come after.
pub fn atoms(ops: &[MapOp]) -> Vec<MapOp> {
    let mut atoms = Vec::new();
    for op in ops {
        match op {
            MapOp::UpdateSlots { offset, slots } => {
                atoms.extend(slots.iter().map(|slot| MapOp::UpdateSlots { offset: *offset, slots: vec![*slot] }));
            }
            MapOp::WriteBackends { offset, backends } => {
                let backends = (*offset..).zip(backends);
                atoms.extend(
                    backends.map(|(offset, backend)| MapOp::WriteBackends { offset, backends: vec![*backend] }),
                );
            }
            op => atoms.push(op.clone()),
        }
    }
    atoms
}

/// What is wanted at one time: services, how pods are reached, and those whose sockets are not seen.
#[derive(Clone, Debug)]
pub struct Step {
    pub services: Vec<Service>,
    /// By last byte, whether the pod has moved.
    pub hosts: BTreeMap<u8, bool>,
    pub opaque: BTreeSet<u8>,
    pub retires: bool,
    pub prunes: bool,
}

pub fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

/// A pod's interface; once moved, it shares one with its neighbour.
fn place(last: u8, is_moved: bool, rung: Rung) -> Place {
    let ifindex = u32::from(if is_moved { 100 + last / 2 } else { last });
    let mac = [2, 0, 0, 0, 0, ifindex as u8];
    let netns_id = if last == 5 && rung != Rung::Direct { None } else { Some(ifindex) };
    Place { ifindex, mtu: 1500, destination_mac: mac, source_mac: mac, netns_id, rung }
}

impl Step {
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            node_addresses: Vec::new(),
            uplinks: Vec::new(),
            pin_directory: "/sys/fs/bpf/sluice".into(),
            run_directory: "/run/sluice".into(),
            capacities: CAPACITIES,
            limits: Limits::default(),
            observation: crate::model::Observation::default(),
            announce: Announce::default(),
            services: self.services.clone(),
        }
    }

    pub fn places(&self) -> Places {
        let mut places = Places::new();
        for service in &self.services {
            let rung = if service.rung.owned_vip().is_some() { Rung::Direct } else { Rung::Redirect };
            let reached = self.hosts.iter();
            places.extend(reached.map(|(&host, &moved)| ((ip(host), service.rung), place(host, moved, rung))));
        }
        places
    }

    pub fn plan(&self, planner: &mut Planner, now: Duration) -> Vec<MapOp> {
        planner.set_opaque(self.opaque.iter().map(|host| EndpointKey::new(ip(*host), Protocol::Tcp, 80)).collect());
        planner.plan(&self.snapshot(), &self.places(), now).expect("it fits")
    }

    /// Whether each slot has the owner that its service alone says.
    pub fn assert_owned(&self, maps: &Maps) {
        assert_eq!(maps.services.len(), self.services.len());
        for service in &self.services {
            let found = maps.found(&maps.services[&vip_key(service).to_abi()]);
            let Some(size) = maglev::TableSize::from_slots(found.len()) else {
                let serves = service.backends.iter().any(|backend| table_member(backend).weight > 0);
                assert!(found.is_empty() && !serves, "{service:?}");
                continue;
            };
            let members: Vec<_> = service.backends.iter().map(table_member).collect();
            let wanted = maglev::owners(&members, size);
            for ((owner, _), wanted) in found.iter().zip(wanted) {
                let pod = owner.as_ref().map(|owner| IpAddr::from(maps.members[&owner.id].pod));
                assert_eq!(pod, service.backends.get(usize::from(wanted)).map(|backend| backend.address));
            }
        }
    }
}

/// A planner and the maps that it has written.
#[derive(Clone)]
pub struct World {
    pub planner: Planner,
    pub maps: Maps,
    pub now: Duration,
}

impl World {
    pub fn new() -> Self {
        let planner = Planner::new(CAPACITIES).at_hertz(HERTZ);
        Self { planner, maps: Maps::new(&CAPACITIES), now: Duration::from_secs(100) }
    }

    pub fn of(steps: &[Step]) -> Self {
        let mut world = Self::new();
        for step in steps {
            let ops = world.take(step);
            world.apply(&ops);
        }
        world
    }

    /// The writes of a step. Whatever else it does has been written.
    pub fn take(&mut self, step: &Step) -> Vec<MapOp> {
        self.now += Duration::from_secs(2);
        if step.retires {
            self.planner.retire(self.now);
        }
        if step.prunes {
            let mut pruned = Vec::new();
            for (vip, service) in self.planner.services() {
                let lists = service.slots().into_iter().flat_map(|slots| slots.lists());
                let owners: BTreeSet<Position> =
                    lists.flat_map(|(_, list)| list.owners().collect::<Vec<_>>()).collect();
                pruned.extend(owners.into_iter().map(|owner| (*vip, owner)));
            }
            for (vip, owner) in pruned {
                let ops = self.planner.prune(&vip, owner, self.now, |slot| slot % 3 == 0, self.now);
                self.apply(&ops);
            }
        }
        step.plan(&mut self.planner, self.now)
    }

    /// Looks after each write that may show something, and at times after those that come in crowds.
    pub fn apply(&mut self, ops: &[MapOp]) {
        for (n, op) in ops.iter().enumerate() {
            self.maps.apply(op);
            let is_one_of_many =
                matches!(op, MapOp::UpdateSlots { .. } | MapOp::WriteBackends { .. } | MapOp::WriteHistory { .. });
            if !is_one_of_many || n % 64 == 0 {
                self.maps.check();
            }
        }
        self.maps.check();
    }
}

/// What a service always is, by the last byte of its VIP: so it outlives its backends.
fn kind(vip: u8) -> (Protocol, ReplyMode) {
    match vip {
        1 | 2 => (Protocol::Tcp, ReplyMode::Static),
        3 => (Protocol::Udp, ReplyMode::Recorded),
        4 => (Protocol::Udp, ReplyMode::Static),
        _ => (Protocol::Udp, ReplyMode::None),
    }
}

fn any_service() -> impl Strategy<Value = Service> {
    let vip = (1u8..6).prop_map(|last| (IpAddr::from([198, 51, 100, last]), kind(last)));
    let backends = prop::collection::btree_map(1u8..6, (1u16..4, prop::bool::weighted(0.2)), 0..5);
    (vip, backends, prop::bool::weighted(0.3), prop::bool::weighted(0.2)).prop_map(
        |((vip, (protocol, replies)), backends, is_kept, is_direct)| Service {
            name: "s".into(),
            vip,
            protocol,
            port: 80,
            replies,
            rung: if is_direct { RungChoice::Direct { vip, assign: false } } else { RungChoice::Auto },
            affinity: is_kept.then_some(Affinity { timeout: Duration::from_secs(60) }),
            health_check: None,
            backends: backends
                .into_iter()
                .map(|(host, (weight, drain))| Backend { address: ip(host), port: 80, weight, drain })
                .collect(),
        },
    )
}

pub fn any_step() -> impl Strategy<Value = Step> {
    let services = prop::collection::vec(any_service(), 1..6).prop_map(|services| {
        let distinct: BTreeMap<IpAddr, Service> = services.into_iter().map(|service| (service.vip, service)).collect();
        distinct.into_values().collect()
    });
    let hosts = prop::collection::btree_map(1u8..6, prop::bool::weighted(0.3), 2..6);
    let opaque = prop::collection::btree_set(1u8..6, 0..2);
    (services, hosts, opaque, any::<bool>(), any::<bool>())
        .prop_map(|(services, hosts, opaque, retires, prunes)| Step { services, hosts, opaque, retires, prunes })
}

pub fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(any_step(), 1..6)
}
