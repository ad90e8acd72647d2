//! Services whose slots have moved, and the pods that own them or did: histories of every length, shared by slots, and
//! broken in every way.

use std::net::IpAddr;

use lb_common::{
    abi::{
        Backend, HISTORY, HOST_NETNS, History, NO_NETNS, NO_OWNER, ServiceKey, Slot, backend_flags, protocol, rung,
        service_flags,
    },
    steer::{flow_hash, ports_word, slot_of},
};

use super::{Content, backend, hop, pod, pod_of};
use crate::packets::random::Random;

/// Pods that own slots or did: numbers behind those of [`backend`], on the same scheme.
pub const OWNERS: [u32; 10] = [11, 12, 13, SHUT_OFF, 15, UNASKED, NO_SUCH_NAMESPACE, 18, SILENT, 20];
/// Not to be reached, whatever its kernel has.
pub const SHUT_OFF: u32 = 14;
/// Its kernel cannot be asked.
pub const UNASKED: u32 = 16;
/// In a namespace that the node has no such id for: its kernel has nothing.
pub const NO_SUCH_NAMESPACE: u32 = 17;
/// The id of the namespace that pods are in; half of them are known by it, the others as the node's own.
pub const NETNS_ID: u32 = 7;
/// The id of that namespace.
pub const NETNS_NOWHERE: u32 = 4711;
/// Nobody listens there.
pub const SILENT: u32 = 19;
/// Opaque to [`PORT_OPAQUE`]; what the kernels have of their connections means nothing there.
pub const OPAQUE: [u32; 4] = [12, 15, UNASKED, 20];
/// Listens on [::], for both families; the others on their own addresses.
pub const DUAL: [u32; 3] = [12, 15, 18];

/// TCP, whose histories have one to seven owners.
pub const PORT: u16 = 7001;
/// The same pods, whose connections must be recorded.
pub const PORT_RECORDED: u16 = 7002;
/// Slots without an owner.
pub const PORT_NO_OWNER: u16 = 7003;
/// References that point nowhere.
pub const PORT_NOWHERE: u16 = 7004;
/// Owners beyond the backends, and counts beyond the owners.
pub const PORT_BEYOND: u16 = 7005;
/// Some of the pods are opaque there.
pub const PORT_OPAQUE: u16 = 7012;
/// UDP, whose clients are recorded.
pub const PORT_UDP: u16 = 7006;
/// UDP, whose clients are not.
pub const PORT_UDP_UNRECORDED: u16 = 7007;
/// TCP, whose clients are kept together.
pub const PORT_KEPT: u16 = 7008;
/// UDP, whose clients are kept together.
pub const PORT_KEPT_UDP: u16 = 7009;
/// TCP, whose clients were kept together before.
pub const PORT_REHASHED: u16 = 7010;
/// TCP, whose clients were not kept together before.
pub const PORT_KEPT_REHASHED: u16 = 7011;
/// Coarse ticks that a client's record counts.
pub const AFFINITY: u32 = 100;
/// Owners that take no new connection by a record.
pub const DRAINING: [u32; 2] = [12, 18];

/// The services' ports by protocol, for generators.
pub const PORTS: [(u16, u8); 12] = [
    (PORT, protocol::TCP),
    (PORT_RECORDED, protocol::TCP),
    (PORT_NO_OWNER, protocol::TCP),
    (PORT_NOWHERE, protocol::TCP),
    (PORT_BEYOND, protocol::TCP),
    (PORT_OPAQUE, protocol::TCP),
    (PORT_UDP, protocol::UDP),
    (PORT_UDP_UNRECORDED, protocol::UDP),
    (PORT_KEPT, protocol::TCP),
    (PORT_KEPT_UDP, protocol::UDP),
    (PORT_REHASHED, protocol::TCP),
    (PORT_KEPT_REHASHED, protocol::TCP),
];

/// The first of them have neither client affinity nor another hash than before.
pub const PLAIN: usize = 8;

/// Slots of each, as a logarithm: enough for every list and every breakage.
pub(super) const SLOTS_LOG2: u8 = 6;
/// Lists of each.
const LISTS: usize = 21;

impl Content {
    pub(super) fn add_owners(&mut self, is_v4: bool) {
        for (at, id) in OWNERS.into_iter().enumerate() {
            let (rung, hop) = match id {
                SHUT_OFF => (rung::NONE, hop::VETH),
                _ => [(rung::REDIRECT, hop::VETH), (rung::PEER, hop::PEER), (rung::STACK, hop::STACK)][at % 3],
            };
            let hop = if id == 20 { hop::NARROW } else { hop };
            let netns_id = match id {
                UNASKED => NO_NETNS,
                NO_SUCH_NAMESPACE => NETNS_NOWHERE,
                _ => [HOST_NETNS, NETNS_ID][at % 2],
            };
            self.add_pod(is_v4, Backend { address: pod(is_v4, id), rung, netns_id, ..pod_of(id, hop) });
        }
    }

    pub(super) fn add_moved_services(&mut self, vip: &str) {
        for (port, protocol) in PORTS {
            let flags = match port {
                PORT_UDP => service_flags::RECORD,
                PORT_KEPT => service_flags::AFFINITY,
                PORT_KEPT_UDP => service_flags::AFFINITY | service_flags::RECORD,
                PORT_REHASHED => service_flags::REHASHED,
                PORT_KEPT_REHASHED => service_flags::AFFINITY | service_flags::REHASHED,
                PORT_OPAQUE => service_flags::OPAQUE,
                _ => 0,
            };
            let backend_flags = if port == PORT_RECORDED { backend_flags::RECORD } else { 0 };
            self.add_service(vip, port, protocol, flags, backend_flags, &OWNERS);
            self.move_slots(port);
            if port == PORT_OPAQUE {
                let (_, service) = self.services.last().expect("one was added");
                for (at, _) in OWNERS.iter().enumerate().filter(|(_, id)| OPAQUE.contains(id)) {
                    self.backends[service.backends as usize + at].flags |= backend_flags::OPAQUE;
                }
            }
        }
    }

    /// Gives the service that was added last more slots, and histories.
    fn move_slots(&mut self, port: u16) {
        let mut random = Random::new(port.into());
        let (_, service) = self.services.last_mut().expect("one was added");
        (service.slots_log2, service.histories) = (SLOTS_LOG2, self.histories.len() as u32);
        if service.flags & service_flags::AFFINITY != 0 {
            service.affinity = AFFINITY;
            for (backend, owner) in self.backends[service.backends as usize..].iter_mut().zip(OWNERS) {
                backend.flags |= if DRAINING.contains(&owner) { backend_flags::DRAINS } else { 0 };
            }
        }
        self.slots.truncate(service.slots as usize);
        let owners = OWNERS.len();
        for at in 0..1usize << SLOTS_LOG2 {
            let owner = match port {
                PORT_NO_OWNER if at % 3 == 0 => NO_OWNER,
                PORT_BEYOND if at % 5 == 0 => (owners + at / 5) as u16,
                _ => random.below(owners) as u16,
            };
            let history = match port {
                PORT_NOWHERE if at % 4 == 0 => 30_000,
                // The list behind the last, which nobody has written.
                PORT_NOWHERE if at % 4 == 2 => 1 + LISTS as u16,
                PORT_KEPT | PORT_KEPT_UDP | PORT_KEPT_REHASHED if at % 3 == 0 => 0,
                PORT_OPAQUE if at % 2 == 1 => 0,
                _ if at % 8 == 7 => 0,
                // Lists are shared, and each is used.
                _ => 1 + (at % LISTS) as u16,
            };
            self.slots.push(Slot { owner, history });
        }
        let limit = if port == PORT_BEYOND { 2 * owners } else { owners };
        for list in 0..LISTS {
            let mut left: Vec<_> = (0..limit as u16).collect();
            // Full, so that one who reads beyond the count finds owners there.
            let owners = std::array::from_fn(|_| left.swap_remove(random.below(left.len())));
            let count = 1 + list % HISTORY + if port == PORT_BEYOND && list % 4 == 0 { HISTORY } else { 0 };
            self.histories.push(History { count: count as u16, owners });
        }
        self.histories.push(History::default());
    }

    /// Lets a client's slot of a moved service have this owner and these earlier ones, by their pods' numbers.
    pub fn set_owners(&mut self, client: (IpAddr, u16), vip: (IpAddr, u16), current: Option<u32>, earlier: &[u32]) {
        self.set_slot(self.slot_at(client, tcp(vip)), tcp(vip), current, earlier);
    }

    /// The same of a slot by its place.
    pub fn set_slot(&mut self, at: usize, of: ServiceKey, current: Option<u32>, earlier: &[u32]) {
        let position = |id: u32| OWNERS.iter().position(|owner| *owner == id).expect("one of the owners") as u16;
        let mut history = History { count: earlier.len() as u16, ..History::default() };
        history.owners.iter_mut().zip(earlier).for_each(|(owner, id)| *owner = position(*id));
        self.histories.push(history);
        let reference = self.histories.len() as u16;
        let slot = &mut self.slots[at];
        slot.owner = current.map_or(NO_OWNER, position);
        slot.history = if earlier.is_empty() { 0 } else { reference };
        let (_, service) = self.services.iter_mut().find(|(key, _)| *key == of).expect("a service");
        // Of its own: what it had before is not looked at any more.
        service.histories = 0;
    }

    /// The slot of a client's connection.
    pub fn slot_mut(&mut self, client: (IpAddr, u16), vip: (IpAddr, u16)) -> &mut Slot {
        let at = self.slot_at(client, tcp(vip));
        &mut self.slots[at]
    }

    /// The place of a client's slot; with port 0 where clients are kept together.
    pub fn slot_at(&self, client: (IpAddr, u16), key: ServiceKey) -> usize {
        let (_, service) = self.services.iter().find(|(known, _)| *known == key).expect("a service");
        let source = lb_common::address::Address::from(client.0).words();
        let ports = ports_word(client.1, key.port);
        let hash = flow_hash(self.settings.maglev_seed, source, key.address.words(), ports, key.protocol);
        (service.slots + slot_of(hash, service.slots_log2)) as usize
    }

    /// An owner by its number.
    pub fn owner(&self, is_v4: bool, id: u32) -> Backend {
        self.pod(id + if is_v4 { 0 } else { backend::V6 })
    }
}

fn tcp(vip: (IpAddr, u16)) -> ServiceKey {
    ServiceKey::new(vip.0.into(), vip.1, protocol::TCP)
}
