//! Services whose pods own the VIP: what goes to them is not rewritten, and their sockets have its address.

use lb_common::abi::{Backend, HOST_NETNS, History, NO_NETNS, Slot, protocol, rung};

use super::{
    Content, address, backend, hop,
    moved::{NETNS_NOWHERE, SLOTS_LOG2},
    pod_of,
};

/// Pods that own VIPs, on the scheme of [`backend`]: the only one of its services, and the one that connections are with.
pub const OWNER: u32 = 28;
/// Behind an MTU of 1400, in a namespace that the node has no such id for.
pub const NARROW: u32 = 29;
/// Behind an interface that has gone, and its kernel cannot be asked.
pub const GONE: u32 = 30;
/// Not to be reached, whatever its kernel has.
pub const SHUT_OFF: u32 = 31;
const PODS: [u32; 4] = [OWNER, NARROW, GONE, SHUT_OFF];
/// The interface of [`OWNER`]: the one that test runs come from.
pub const INTERFACE: u32 = 1;

/// TCP, [`OWNER`] alone.
pub const PORT: u16 = 7101;
/// UDP, [`OWNER`] alone.
pub const PORT_UDP: u16 = 7102;
/// TCP, all of them.
pub const PORT_MANY: u16 = 7103;
/// TCP, all of them, in moved slots.
pub const PORT_MOVED: u16 = 7104;

/// The services' ports by protocol, for generators.
pub const PORTS: [(u16, u8); 4] =
    [(PORT, protocol::TCP), (PORT_UDP, protocol::UDP), (PORT_MANY, protocol::TCP), (PORT_MOVED, protocol::TCP)];

/// Earlier owners of moved slots, by position.
const HISTORIES: [&[u16]; 6] = [&[1, 0], &[2, 0], &[3, 0], &[0], &[1, 2, 3], &[3, 2, 1, 0]];

impl Content {
    pub(super) fn add_direct_services(&mut self, vip: &str) {
        for (port, protocol) in PORTS {
            for (id, hop, rung, netns_id) in [
                (OWNER, hop::VETH, rung::DIRECT, HOST_NETNS),
                (NARROW, hop::NARROW, rung::DIRECT, NETNS_NOWHERE),
                (GONE, hop::GONE, rung::DIRECT, NO_NETNS),
                (SHUT_OFF, hop::VETH, rung::NONE, HOST_NETNS),
            ] {
                let ifindex = if id == OWNER { INTERFACE } else { 100 + id };
                let (address, way) = (address(vip), pod_of(id, hop));
                self.add_pod(address.is_v4(), Backend { address, port, ifindex, rung, netns_id, ..way });
            }
            let pods = if matches!(port, PORT | PORT_UDP) { &PODS[..1] } else { &PODS };
            self.add_service(vip, port, protocol, 0, 0, pods);
        }
        self.move_direct_slots();
    }

    /// Gives the service that was added last more slots, and histories.
    fn move_direct_slots(&mut self) {
        let (_, service) = self.services.last_mut().expect("one was added");
        (service.slots_log2, service.histories) = (SLOTS_LOG2, self.histories.len() as u32);
        self.slots.truncate(service.slots as usize);
        for at in 0..1usize << SLOTS_LOG2 {
            let history = (at % (HISTORIES.len() + 1)) as u16;
            self.slots.push(Slot { owner: (at % PODS.len()) as u16, history });
        }
        for earlier in HISTORIES {
            let mut history = History { count: earlier.len() as u16, ..History::default() };
            history.owners[..earlier.len()].copy_from_slice(earlier);
            self.histories.push(history);
        }
    }
}

/// Whether a backend's pod owns the VIP, reachable or not.
pub(super) const fn owns_vip(backend: &Backend) -> bool {
    backend.endpoint % backend::V6 >= OWNER
}
