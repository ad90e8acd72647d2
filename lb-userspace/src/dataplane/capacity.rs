//! How large each map is: follows from the configured capacities alone.

use lb_common::{
    abi, agent, flow, fragments,
    holder::{self, CONFLICTS_MAX, HolderKey, VIRTUAL_MACS_MAX},
    index,
};

use crate::{
    model::{Capacities, UPLINKS_MAX},
    plan::{planner::backend_entries, service::history_entries},
};

/// Sizes that the loader sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Services, one of them the self-test's.
    pub services: u32,
    /// Ids of backends and of endpoints, and ports; one of each the self-test's.
    pub backends: u32,
    /// Elements of `maglev`, the last the self-test's.
    pub slot_blocks: u32,
    /// Entries of `histories`.
    pub histories: u32,
    /// Entries of `backends`, the last the self-test's.
    pub backend_entries: u32,
    /// Entries of `bypasses`.
    pub bypasses: u32,
    /// Logarithm to base 2 of the buckets of `flows`.
    pub flows_log2: u32,
    /// Logarithm to base 2 of the buckets of `fragments`.
    pub fragments_log2: u32,
    /// Logarithm to base 2 of the buckets of `service_index`.
    pub service_index_log2: u32,
    /// Logarithm to base 2 of the buckets of `endpoint_index`.
    pub endpoint_index_log2: u32,
    /// Entries of `holders`: each service with a VIP of its own, on two interfaces, and as many VIPs of routers as there are
    /// identifiers for these.
    pub holders: u32,
}

/// A name, its entries, and the bytes of memory they take.
pub type MapSize = (&'static str, u32, u64);

impl Sizes {
    /// Sizes for these capacities.
    pub const fn new(capacities: &Capacities) -> Self {
        let services = capacities.services + 1;
        let backends = capacities.backends + 1;
        Self {
            services,
            backends,
            slot_blocks: capacities.maglev_slots.div_ceil(abi::SLOTS_PER_BLOCK as u32) + 1,
            histories: history_entries(capacities.maglev_slots),
            backend_entries: backend_entries(capacities) + 1,
            bypasses: capacities.bypasses,
            flows_log2: log2(capacities.flows.div_ceil(flow::WAYS as u32)),
            fragments_log2: log2(capacities.fragments.div_ceil(fragments::WAYS as u32)),
            // Half full at most, VIPs counted as services: then hardly a bucket overflows.
            service_index_log2: log2(services),
            endpoint_index_log2: log2(backends.div_ceil(2)),
            holders: 2 * capacities.services + 256,
        }
    }

    /// Entries and memory of each map. A hash has a head of 48 bytes on each entry, a spare entry for each CPU, and 16
    /// bytes for each of a power of two of buckets (kernel/bpf/hashtab.c, `htab_map_alloc`).
    pub fn maps(&self, cpus: u64) -> Vec<MapSize> {
        let array = |entries: u32, bytes: usize| u64::from(entries) * (bytes as u64).next_multiple_of(8);
        let hash = |entries: u32, key: usize, value: usize| {
            let entry = 48 + (key as u64).next_multiple_of(8) + (value as u64).next_multiple_of(8);
            (u64::from(entries) + cpus) * entry + u64::from(entries.next_power_of_two()) * 16
        };
        // And a pointer to each element's copies.
        let per_cpu = |entries: u32, bytes: usize| cpus * array(entries, bytes) + array(entries, 8);
        let key = size_of::<abi::ServiceKey>();
        let (services, backends) = (self.services, self.backends);
        let (service_buckets, endpoint_buckets) = (1 << self.service_index_log2, 1 << self.endpoint_index_log2);
        let (flows, fragments) = (1 << self.flows_log2, 1 << self.fragments_log2);
        let (traffic, holder) = (size_of::<abi::Traffic>(), size_of::<HolderKey>());
        vec![
            ("services", services, hash(services, key, size_of::<abi::Service>())),
            ("vips", services, hash(services, 16, 4)),
            ("service_index", service_buckets, array(service_buckets, size_of::<index::ServiceBucket>())),
            ("backend_vips", backends, array(backends, key)),
            ("maglev", self.slot_blocks, array(self.slot_blocks, size_of::<abi::SlotBlock>())),
            ("histories", self.histories, array(self.histories, size_of::<abi::History>())),
            ("backends", self.backend_entries, array(self.backend_entries, size_of::<abi::Backend>())),
            ("tx_ports", backends, array(backends, 8)),
            ("endpoints", backends, hash(backends, key, size_of::<abi::Endpoint>())),
            ("endpoint_index", endpoint_buckets, array(endpoint_buckets, size_of::<index::EndpointBucket>())),
            ("bypasses", self.bypasses, hash(self.bypasses, size_of::<abi::BypassKey>(), size_of::<abi::Bypass>())),
            ("endpoint_bypasses", backends, array(backends, size_of::<abi::BypassCount>())),
            ("flows", flows, array(flows, size_of::<flow::Bucket>())),
            ("uplinks", UPLINKS_MAX, hash(UPLINKS_MAX, 4, size_of::<abi::Uplink>())),
            ("routes", 1024, per_cpu(1024, size_of::<abi::Route>())),
            ("node", 1, array(1, size_of::<abi::Node>())),
            ("limiters", 3, per_cpu(3, size_of::<abi::Bucket>())),
            ("reasons", lb_common::reason::REASONS as u32, per_cpu(lb_common::reason::REASONS as u32, 16)),
            ("backend_counters", backends, per_cpu(backends, traffic)),
            ("programs", abi::program::COUNT, array(abi::program::COUNT, 8)),
            ("return_programs", abi::return_program::COUNT, array(abi::return_program::COUNT, 8)),
            ("fragments", fragments, array(fragments, size_of::<fragments::Bucket>())),
            ("members", backends, array(backends, size_of::<abi::Member>())),
            ("holders", self.holders, hash(self.holders, holder, size_of::<holder::Holder>())),
            (
                "virtual_macs",
                VIRTUAL_MACS_MAX,
                hash(VIRTUAL_MACS_MAX, size_of::<holder::VirtualMacKey>(), size_of::<holder::VirtualMac>()),
            ),
            ("conflicts", CONFLICTS_MAX, hash(CONFLICTS_MAX, holder, size_of::<holder::Conflict>())),
            ("about", 1, array(1, size_of::<agent::About>())),
            // Those of an earlier data plane take their place where there is one.
            ("earlier_bypasses", 1, hash(1, size_of::<abi::BypassKey>(), size_of::<abi::Bypass>())),
            ("earlier_flows", 1, array(1, size_of::<flow::Bucket>())),
            (
                "undo",
                agent::UNDO_MAX as u32,
                hash(agent::UNDO_MAX as u32, size_of::<agent::UndoKey>(), size_of::<agent::Undo>()),
            ),
        ]
    }
}

/// Logarithm to base 2 of the smallest power of two that is not less.
const fn log2(n: u32) -> u32 {
    n.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_capacities_take_less_than_128_mebibytes_on_64_cpus() {
        let total: u64 = Sizes::new(&Capacities::default()).maps(64).iter().map(|(_, _, bytes)| bytes).sum();
        assert!(total < 128 << 20, "{} MiB", total >> 20);
    }

    #[test]
    fn a_bucket_count_is_the_next_power_of_two() {
        assert_eq!([log2(1), log2(2), log2(3), log2(1024), log2(1025)], [0, 1, 2, 10, 11]);
    }
}
