//! What an agent would have written: every rung, every reply mode, both families, and every way a table can be broken.

use std::net::IpAddr;

use lb_common::{
    abi::{
        ABI_VERSION, Backend, Endpoint, History, Limit, NO_NETNS, SLOTS_PER_BLOCK, Service, ServiceKey, Settings, Slot,
        backend_flags, endpoint_flags, protocol, rung, service_flags,
    },
    address::Address,
    checksum,
    holder::{Holder, HolderKey, VirtualMac, VirtualMacKey},
    limiter::TOKEN,
};

use super::holders;
use crate::packets::ToIp as _;

pub mod direct;
pub mod moved;

/// The content of all tables that packets don't change.
#[derive(Clone, Debug)]
pub struct Content {
    /// Map `services`.
    pub services: Vec<(ServiceKey, Service)>,
    /// Map `vips`.
    pub vips: Vec<Address>,
    /// Map `maglev`, whole blocks.
    pub slots: Vec<Slot>,
    /// Map `histories`.
    pub histories: Vec<History>,
    /// Map `backends`.
    pub backends: Vec<Backend>,
    /// Which elements of `tx_ports` have an interface.
    pub ports: Vec<bool>,
    /// Map `endpoints`.
    pub endpoints: Vec<(ServiceKey, Endpoint)>,
    /// Map `holders`.
    pub holders: Vec<(HolderKey, Holder)>,
    /// Map `virtual_macs`.
    pub virtual_macs: Vec<(VirtualMacKey, VirtualMac)>,
    /// Map `backend_vips`.
    pub backend_vips: Vec<ServiceKey>,
    /// Ids of endpoints.
    pub endpoint_ids: usize,
    /// Map `settings`.
    pub settings: Settings,
    /// Entries of `bypasses`.
    pub bypasses_capacity: usize,
    /// Of the buckets of `service_index` and `endpoint_index`.
    pub index_log2: u32,
    /// Of the buckets of `flows`.
    pub flows_log2: u32,
    /// Of the buckets of `fragments`.
    pub fragments_log2: u32,
    /// The pods by their endpoint ids, without the ids and flags that they have in a service.
    pods: Vec<Backend>,
}

/// The interfaces that lead to pods, by what they are good for.
pub mod hop {
    /// Rung `redirect`.
    pub const VETH: u32 = 0;
    /// Rung `redirect`, an MTU below Ethernet's.
    pub const NARROW: u32 = 1;
    /// Its interface has gone.
    pub const GONE: u32 = 2;
    /// Rung `peer`.
    pub const PEER: u32 = 3;
    /// Rung `stack`.
    pub const STACK: u32 = 4;
    /// Takes jumbo frames.
    pub const JUMBO: u32 = 5;
    /// Takes whatever IP can say.
    pub const ANY_SIZE: u32 = 6;
    /// Not in the table.
    pub const MISSING: u32 = 99;
}

/// The pods of a family, by what they are good for: endpoint ids from 0 for IPv4, from [`V6`](backend::V6) for IPv6.
pub mod backend {
    /// First id of IPv6.
    pub const V6: u32 = 32;
    /// By the rungs.
    pub const REDIRECT: u32 = 0;
    /// Behind an MTU of 1400.
    pub const NARROW: u32 = 1;
    /// Behind an interface that has gone.
    pub const GONE: u32 = 2;
    /// By `bpf_redirect_peer`.
    pub const PEER: u32 = 3;
    /// By the node's stack.
    pub const STACK: u32 = 4;
    /// Not to be reached.
    pub const UNREACHABLE: u32 = 5;
    /// Of a rung that nobody knows.
    pub const ODD_RUNG: u32 = 6;
    /// Whose port is not in the table.
    pub const NO_PORT: u32 = 7;
    /// Behind jumbo frames.
    pub const JUMBO: u32 = 8;
    /// Of the other family.
    pub const FOREIGN: u32 = 9;
    /// Behind an interface that takes anything.
    pub const ANY_SIZE: u32 = 10;
    /// How many each family has, but for the [owners of moved slots](super::moved).
    pub const COUNT: u32 = 11;
}

/// VIPs by family: the main one, a second one on the same pods, and one without any service.
pub const VIPS: [[&str; 3]; 2] =
    [["198.51.100.1", "198.51.100.2", "198.51.100.3"], ["2001:db8:1::1", "2001:db8:1::2", "2001:db8:1::3"]];

/// This node's own addresses.
pub const NODE: [&str; 2] = ["192.0.2.254", "2001:db8:2::254"];

/// Services of the main VIP: port, protocol, flags, flags of its backends, pods.
const SERVICES: &[(u16, u8, u8, u8, &[u32])] = {
    use backend::*;
    use protocol::{TCP, UDP};
    const R: u8 = service_flags::RECORD;
    const M: u8 = backend_flags::RECORD;
    &[
        (80, TCP, 0, 0, &[REDIRECT, NARROW, PEER, STACK]),
        (179, TCP, 0, M, &[REDIRECT, NARROW]),
        (162, UDP, 0, 0, &[REDIRECT, PEER, STACK]),
        (53, UDP, R, 0, &[REDIRECT, PEER, STACK, JUMBO, NARROW]),
        (514, UDP, 0, M, &[REDIRECT, STACK]),
        (2055, UDP, R, M, &[REDIRECT, PEER]),
        (443, TCP, 0, 0, &[]),
        (443, UDP, 0, 0, &[]),
        (81, TCP, 0, 0, &[UNREACHABLE]),
        (81, UDP, R, 0, &[UNREACHABLE, REDIRECT]),
        (84, TCP, 0, 0, &[FOREIGN]),
        (85, TCP, 0, 0, &[NO_PORT]),
        (86, UDP, R, 0, &[ODD_RUNG]),
        (87, TCP, 0, 0, &[GONE]),
        (87, UDP, 0, M, &[GONE, REDIRECT]),
        (90, TCP, 0, 0, &[JUMBO]),
        (91, UDP, 0, 0, &[ANY_SIZE]),
        (92, TCP, 0, 0, &[ANY_SIZE, PEER]),
        (93, TCP, 0, 0, &[STACK]),
        (94, UDP, 0, 0, &[PEER]),
        // A flag that says nothing for TCP.
        (96, TCP, R, 0, &[REDIRECT]),
        // Ports whose backends, slots or owners are broken below.
        (82, TCP, 0, 0, &[REDIRECT, PEER]),
        (83, TCP, 0, 0, &[REDIRECT, PEER]),
        (89, TCP, 0, 0, &[REDIRECT, PEER]),
        (95, UDP, 0, 0, &[REDIRECT]),
    ]
};

/// A service's port whose slots name owners beyond its backends.
pub const PORT_OWNER_BEYOND: u16 = 82;
/// A service's port whose backends lie beyond the table.
pub const PORT_BACKENDS_BEYOND: u16 = 83;
/// A service's port whose slots lie beyond the table.
pub const PORT_SLOTS_BEYOND: u16 = 89;
/// A service's port whose backend has no counter.
pub const PORT_UNCOUNTED: u16 = 95;

/// Every port of the main VIP, for generators.
pub fn service_ports() -> Vec<(u16, u8)> {
    SERVICES.iter().map(|service| (service.0, service.1)).chain(direct::PORTS).collect()
}

/// An address from text.
pub fn address(text: &str) -> Address {
    text.to_ip().into()
}

/// A pod's address by backend.
pub fn pod(is_v4: bool, id: u32) -> Address {
    let last = 10 + id as u8;
    if is_v4 { IpAddr::from([10, 244, 7, last]).into() } else { address(&format!("fd00:10:244::7:{last:x}")) }
}

/// By [`hop`].
const MTUS: [u32; 7] = [1500, 1400, 1500, 1500, 1500, 9000, 70_000];

/// MACs of a pod's end and of the host's end, by [`hop`].
pub const fn veth(hop: u32) -> ([u8; 6], [u8; 6]) {
    ([0x02, 0xf0, 0, 0, hop as u8, 1], [0x02, 0xf1, 0, 0, hop as u8, 2])
}

impl Content {
    /// Everything that is described above.
    pub fn full() -> Self {
        let mut content = Self {
            services: Vec::new(),
            vips: Vec::new(),
            slots: Vec::new(),
            histories: vec![History::default()],
            backends: Vec::new(),
            ports: (0..MTUS.len()).map(|i| i as u32 != hop::GONE).collect(),
            endpoints: Vec::new(),
            holders: holders::content(),
            virtual_macs: holders::virtual_macs(),
            backend_vips: Vec::new(),
            endpoint_ids: 2 * backend::V6 as usize,
            settings: Settings {
                abi_version: ABI_VERSION,
                uplink: 1,
                maglev_seed: 0x5155_4943_4521,
                table_seed: 0x7461_626c_6573,
                node_v4: address(NODE[0]),
                node_v6: address(NODE[1]),
                limits: [Limit { burst: TOKEN << 32, per_jiffy: 0 }; 3],
                route_lifetime: u64::MAX,
                fragment_lifetime: 1 << 30,
                route_epoch: 7,
            },
            bypasses_capacity: 4096,
            index_log2: 8,
            flows_log2: 9,
            fragments_log2: 3,
            pods: vec![Backend::default(); 2 * backend::V6 as usize],
        };
        for (is_v4, vips) in [(true, VIPS[0]), (false, VIPS[1])] {
            content.add_pods(is_v4);
            content.add_owners(is_v4);
            content.vips.extend(vips.map(address));
            for (port, protocol, flags, backend, pods) in SERVICES {
                content.add_service(vips[0], *port, *protocol, *flags, *backend, pods);
            }
            // The same pods behind a second VIP, whose connections must be recorded.
            let (tcp, udp) = (protocol::TCP, protocol::UDP);
            content.add_service(vips[1], 80, tcp, 0, backend_flags::RECORD, &[0, 1, 3, 4]);
            content.add_service(vips[1], 53, udp, service_flags::RECORD, 0, &[0, 3, 4]);
            content.add_service(vips[1], 8080, tcp, 0, 0, &[0]);
            content.add_moved_services(vips[0]);
            content.add_direct_services(vips[0]);
        }
        content.break_tables();
        content.slots.resize(content.slots.len().next_multiple_of(SLOTS_PER_BLOCK), Slot::default());
        content
    }

    /// The same with limits of this many packets for each class of answer.
    pub fn limited(mut self, packets: [u64; 3]) -> Self {
        self.settings.limits = packets.map(|packets| Limit { burst: packets * TOKEN, per_jiffy: 0 });
        self
    }

    /// The same with room for this many bypasses.
    pub fn with_bypasses(mut self, capacity: usize) -> Self {
        self.bypasses_capacity = capacity;
        self
    }

    /// The same with indexes of this many buckets.
    pub fn with_index_log2(mut self, log2: u32) -> Self {
        self.index_log2 = log2;
        self
    }

    /// What stands for a VIP as a whole.
    pub fn vip_entry() -> Service {
        Service { flags: service_flags::VIP, ..Service::default() }
    }

    /// The id of a pod as a backend of a service.
    pub fn backend_id(&self, vip: &str, port: u16, protocol: u8, pod: u32) -> u32 {
        let key = ServiceKey::new(address(vip), port, protocol);
        let pod = pod + if key.address.is_v4() { 0 } else { backend::V6 };
        let is_wanted = |b: &&Backend| b.endpoint == pod && self.backend_vips.get(b.id as usize) == Some(&key);
        self.backends.iter().find(is_wanted).expect("the service is one of the content").id
    }

    /// The id of a service.
    pub fn service_id(&self, vip: &str, port: u16, protocol: u8) -> u32 {
        let key = ServiceKey::new(address(vip), port, protocol);
        self.services.iter().find(|(known, _)| *known == key).expect("the service is one of the content").1.id
    }

    /// A pod by its endpoint id.
    pub fn pod(&self, endpoint: u32) -> Backend {
        self.pods[endpoint as usize]
    }

    fn add_pods(&mut self, is_v4: bool) {
        use backend::*;
        let rungs = [
            (REDIRECT, rung::REDIRECT, hop::VETH),
            (NARROW, rung::REDIRECT, hop::NARROW),
            (GONE, rung::REDIRECT, hop::GONE),
            (PEER, rung::PEER, hop::PEER),
            (STACK, rung::STACK, hop::STACK),
            (UNREACHABLE, rung::NONE, hop::VETH),
            (ODD_RUNG, 77, hop::VETH),
            (NO_PORT, rung::REDIRECT, hop::MISSING),
            (JUMBO, rung::REDIRECT, hop::JUMBO),
            (FOREIGN, rung::REDIRECT, hop::VETH),
            (ANY_SIZE, rung::REDIRECT, hop::ANY_SIZE),
        ];
        for (id, rung, hop) in rungs {
            let netns_id = NO_NETNS;
            self.add_pod(
                is_v4,
                Backend { address: pod(is_v4 ^ (id == FOREIGN), id), rung, netns_id, ..pod_of(id, hop) },
            );
        }
    }

    /// Under the endpoint id that it has in IPv4.
    fn add_pod(&mut self, is_v4: bool, pod: Backend) {
        let endpoint = pod.endpoint + if is_v4 { 0 } else { backend::V6 };
        self.pods[endpoint as usize] = Backend { endpoint, ..pod };
    }

    fn add_service(&mut self, vip: &str, port: u16, protocol: u8, flags: u8, backend_flags: u8, pods: &[u32]) {
        let vip = address(vip);
        let first = if vip.is_v4() { 0 } else { backend::V6 };
        let number = self.services.len();
        // Of different sizes, so that a slot chosen by the wrong number of bits shows.
        let slots_log2 = if pods.is_empty() { 0 } else { 2 + number as u8 % 5 };
        let service = Service {
            slots: self.slots.len() as u32,
            backends: self.backends.len() as u32,
            backends_count: pods.len() as u16,
            slots_log2,
            flags,
            id: number as u32 + 1,
            ..Service::default()
        };
        for slot in 0..if pods.is_empty() { 0 } else { 1usize << slots_log2 } {
            let owner = (slot * 7 + number) % pods.len();
            self.slots.push(Slot { owner: owner as u16, history: 0 });
        }
        let key = ServiceKey::new(vip, port, protocol);
        self.services.push((key, service));
        for pod in pods {
            let id = self.backend_vips.len() as u32;
            let pod = self.pods[(first + pod) as usize];
            let address_change = checksum::change_address(vip, pod.address, vip.is_v4());
            let backend = Backend { id, flags: backend_flags, address_change, ..pod };
            self.backends.push(backend);
            self.backend_vips.push(key);
            self.add_endpoint(&backend, key, service);
        }
    }

    /// The first service of an endpoint is its default.
    fn add_endpoint(&mut self, backend: &Backend, key: ServiceKey, service: Service) {
        let endpoint_key = ServiceKey::new(backend.address, backend.port, key.protocol);
        let endpoint_key = if direct::owns_vip(backend) { endpoint_key.at(backend.ifindex) } else { endpoint_key };
        if self.endpoints.iter().any(|(known, _)| *known == endpoint_key) {
            return;
        }
        let recorded = key.protocol == protocol::UDP && service.flags & service_flags::RECORD != 0;
        let mode = if recorded { endpoint_flags::RECORDED } else { endpoint_flags::STATIC };
        let place = if backend.rung == rung::STACK { endpoint_flags::STACK } else { 0 };
        let (vip, vip_port) = (key.address, key.port);
        let id = backend.endpoint;
        let endpoint =
            Endpoint { vip, vip_port, flags: mode | place, id, backend: backend.id, netns_id: backend.netns_id };
        self.endpoints.push((endpoint_key, endpoint));
    }

    fn break_tables(&mut self) {
        let (slots, backends) = (self.slots.len() as u32, self.backends.len() as u32);
        for (key, service) in &mut self.services {
            let range = service.slots as usize..service.slots as usize + (1 << service.slots_log2);
            match key.port {
                PORT_OWNER_BEYOND => {
                    for (slot, owner) in self.slots[range].iter_mut().zip([2u16, 0, 3, 1, 0xffff].into_iter().cycle()) {
                        slot.owner = owner;
                    }
                }
                PORT_BACKENDS_BEYOND => service.backends = backends,
                PORT_SLOTS_BEYOND => service.slots = slots + 1024,
                PORT_UNCOUNTED => self.backends[service.backends as usize].id = 100_000,
                _ => {}
            }
        }
    }
}

/// A pod behind an interface.
fn pod_of(id: u32, hop: u32) -> Backend {
    let (destination_mac, source_mac) = veth(hop);
    Backend {
        port: if id == backend::PEER { 80 } else { 8000 + id as u16 },
        endpoint: id,
        ifindex: 100 + hop,
        tx_port: hop,
        mtu: MTUS.get(hop as usize).copied().unwrap_or(1500),
        destination_mac,
        source_mac,
        ..Backend::default()
    }
}
