//! What must be written to the maps, in order.

use std::sync::Arc;

use lb_common::{
    abi::{Backend, Endpoint, History, Member, Service, ServiceKey, Slot},
    address::Address,
};

use super::history::SlotTable;

/// One write. A list of them is applied in order: what a later one makes visible is complete by then.
#[derive(Clone, Debug, PartialEq)]
pub enum MapOp {
    /// `tx_ports`.
    SetTxPort {
        /// Index.
        id: u32,
        /// The interface; 0 empties the port.
        ifindex: u32,
    },
    /// `backends`, a range that nothing points to yet.
    WriteBackends {
        /// First entry.
        offset: u32,
        /// Entries.
        backends: Vec<Backend>,
    },
    /// `maglev`, a range that nothing points to yet.
    WriteSlots {
        /// First slot.
        offset: u32,
        /// The slots; those of all services together would take more memory than everything else.
        slots: Arc<SlotTable>,
    },
    /// `maglev`, slots that are in use: each is written as one word.
    UpdateSlots {
        /// First slot of the table.
        offset: u32,
        /// By number in the table.
        slots: Vec<(u32, Slot)>,
    },
    /// `histories`, an entry that no slot refers to yet.
    WriteHistory {
        /// Entry.
        at: u32,
        /// Earlier owners.
        value: History,
    },
    /// `backend_vips`.
    SetBackendVip {
        /// Backend id.
        id: u32,
        /// VIP, port, protocol.
        key: ServiceKey,
    },
    /// `members`.
    SetMember {
        /// Backend id.
        id: u32,
        /// Whose backend it is; the default where it is nobody's any more.
        value: Member,
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
    ClearBackendCounters {
        /// Index.
        id: u32,
    },
}
