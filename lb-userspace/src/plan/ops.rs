//! What must be written to the maps, in order.

use lb_common::{
    abi::{Backend, Endpoint, Member, NextHop, Service, ServiceKey, Slot},
    address::Address,
};

/// One write. A list of them is applied in order: what a later one makes visible is complete by then.
#[derive(Clone, Debug, PartialEq)]
pub enum MapOp {
    /// `next_hops` and `tx_ports`.
    SetNextHop {
        /// Index of both.
        id: u32,
        /// New value; interface 0 empties the port.
        value: NextHop,
    },
    /// `backends`.
    SetBackend {
        /// Index.
        id: u32,
        /// New value.
        value: Backend,
    },
    /// `members`, a range that nothing points to yet.
    WriteMembers {
        /// First entry.
        offset: u32,
        /// Entries.
        members: Vec<Member>,
    },
    /// `members`, in a range that is in use; entries keep their backend.
    UpdateMembers {
        /// First entry.
        offset: u32,
        /// Entries.
        members: Vec<Member>,
    },
    /// `maglev`, a range that nothing points to yet.
    WriteSlots {
        /// First slot.
        offset: u32,
        /// Slots.
        slots: Vec<Slot>,
    },
    /// `service_addresses`.
    SetServiceAddress {
        /// Index.
        id: u32,
        /// VIP, port, protocol.
        key: ServiceKey,
    },
    /// `endpoints` and its index.
    SetEndpoint {
        /// Pod address, port, protocol.
        key: ServiceKey,
        /// New value.
        value: Endpoint,
    },
    /// `endpoints` and its index.
    RemoveEndpoint {
        /// Pod address, port, protocol.
        key: ServiceKey,
    },
    /// `services` and its index.
    SetService {
        /// VIP, port, protocol.
        key: ServiceKey,
        /// New value.
        value: Service,
    },
    /// `services` and its index.
    RemoveService {
        /// VIP, port, protocol.
        key: ServiceKey,
    },
    /// `vips` and its index.
    SetVip {
        /// The VIP.
        address: Address,
        /// Services that it has; 0 removes it.
        services: u32,
    },
    /// Counters of an id that is given out anew.
    ClearServiceCounters {
        /// Index.
        id: u32,
    },
    /// Counters of an id that is given out anew.
    ClearBackendCounters {
        /// Index.
        id: u32,
    },
}
