//! Maps that an earlier agent has filled: taken over as they are, and read back.

use std::collections::HashMap;

use aya::Ebpf;
use lb_common::{
    abi::{self, ABI_VERSION, ServiceKey, Settings, service_flags},
    agent::{About, FLOW_FORMAT, MAGIC},
    flow, index,
};

use super::{BucketContent, FilterWriter, IndexWriter, Tables, bucket_of, service_words};
use crate::{
    dataplane::{DataPlaneError, capacity::Sizes},
    plan::adopt::{Arrays, ReadBack, UsedIds},
};

impl<const V: usize> IndexWriter<V> {
    /// Writes every bucket: an agent that was killed may have left one half written.
    fn fill(&mut self, entries: impl Iterator<Item = (ServiceKey, [u64; V])>) {
        let mut content: HashMap<usize, BucketContent<V>> = HashMap::new();
        for (key, value) in entries {
            content.entry(bucket_of(index::hash(&key, self.seed), self.log2)).or_default().push((key, value));
        }
        for (at, bucket) in self.memory.elements().iter().enumerate() {
            bucket.write(content.get(&at).into_iter().flatten().map(|(key, value)| (key, *value)));
        }
        content.retain(|_, entries| entries.len() > index::WAYS);
        content.shrink_to_fit();
        self.overfull = content;
    }
}

impl Tables {
    /// Takes the maps out of an object whose maps an earlier agent has filled. Programs go on meanwhile: what they find
    /// stays where it is.
    pub fn adopt(object: &mut Ebpf, sizes: &Sizes) -> Result<Self, DataPlaneError> {
        let mut tables = Self::open(object, sizes, Settings::default())?;
        let settings = tables.node.settings();
        let seed = settings.table_seed;
        tables.written = settings;
        (tables.service_index.seed, tables.endpoint_index.seed) = (seed, seed);
        let services: Vec<_> = tables.services.iter().filter_map(Result::ok).collect();
        let vips: Vec<_> = tables.vips.keys().filter_map(Result::ok).map(ServiceKey::of_vip).collect();
        let vip = abi::Service { flags: service_flags::VIP, ..abi::Service::default() };
        let entries = services.iter().copied().chain(vips.iter().map(|key| (*key, vip)));
        tables.service_index.fill(entries.map(|(key, value)| (key, service_words(value))));
        let endpoints = tables.endpoints.iter().filter_map(Result::ok);
        tables.endpoint_index.fill(endpoints.map(|(key, value)| (key, super::endpoint_words(value))));
        let keys = services.iter().map(|(key, _)| key).chain(&vips);
        tables.vip_filter = FilterWriter::new(tables.node.vip_filter(), seed, keys);
        Ok(tables)
    }

    /// Says that the maps are complete, and whose they are: from here on another agent may adopt them.
    pub fn sign(&mut self, build: &str) -> Result<(), DataPlaneError> {
        let mut about = About { magic: MAGIC, abi_version: ABI_VERSION, flow_format: FLOW_FORMAT, build: [0; 48] };
        for (to, from) in about.build.iter_mut().zip(build.bytes()) {
            *to = from;
        }
        Ok(self.about.set(0, about, 0)?)
    }

    /// The agent that has signed the maps.
    pub fn signed_by(&self) -> Result<String, DataPlaneError> {
        let build = self.about.get(&0, 0)?.build;
        Ok(String::from_utf8_lossy(&build).trim_end_matches('\0').to_owned())
    }

    /// Removes what is recorded under ids that nothing installed has: another will have them. `endpoint_of` is the
    /// installed endpoint of a bypass.
    pub fn keep_only(&mut self, used: &UsedIds, endpoint_of: impl Fn(&abi::BypassKey) -> Option<u32>) -> usize {
        let mut removed = 0;
        for entry in self.flows.elements().iter().flat_map(|bucket| &bucket.entries) {
            let Some((key, backend, _)) = flow::snapshot(entry) else { continue };
            let named = key.parts().0;
            let is_known = match key.kind() {
                flow::Kind::Udp => used.endpoints.contains(&named),
                flow::Kind::Tcp | flow::Kind::Affinity => used.services.contains(&named),
            };
            if !is_known || !used.backends.contains(&backend) {
                removed += usize::from(flow::remove(entry, &key));
            }
        }
        for (key, bypass) in self.bypasses() {
            let endpoint = endpoint_of(&key);
            if endpoint.is_none() || bypass.backend != abi::NO_BACKEND && !used.backends.contains(&bypass.backend) {
                removed += usize::from(self.remove_bypass(&key, endpoint).is_ok());
            }
        }
        for id in (0..self.bypass_counts.len() as u32).filter(|id| !used.endpoints.contains(id)) {
            self.clear_bypass_count(id);
        }
        removed
    }

    /// Records a bypass as an earlier data plane has it, unless it is recorded here.
    pub fn carry_bypass(
        &mut self,
        key: &abi::BypassKey,
        bypass: abi::Bypass,
        endpoint: u32,
    ) -> Result<(), DataPlaneError> {
        self.insert_bypass(key, bypass, endpoint)
    }

    /// Records a client as an earlier data plane has it, unless it is recorded here.
    pub fn carry_flow(&self, key: &flow::Key, backend: u32, since: u32) {
        let buckets = self.flows.elements();
        let log2 = buckets.len().ilog2();
        let bucket = &buckets[bucket_of(key.hash(self.written.table_seed), log2)];
        if !flow::holds(bucket, key) {
            flow::record(bucket, key, backend, since);
        }
    }

    /// Takes away bypasses that were carried over and have not changed since, but are gone where they came from.
    pub fn drop_carried(
        &mut self,
        gone: impl Iterator<Item = (abi::BypassKey, abi::Bypass)>,
        endpoint_of: impl Fn(&abi::BypassKey) -> Option<u32>,
    ) -> Result<(), DataPlaneError> {
        for (key, carried) in gone {
            if self.bypasses.get(&key, 0).is_ok_and(|now| now == carried) {
                self.remove_bypass(&key, endpoint_of(&key))?;
            }
        }
        Ok(())
    }

    /// The uplinks that have a name.
    pub fn uplinks(&self) -> Vec<(u32, abi::Uplink)> {
        self.uplinks.iter().filter_map(Result::ok).collect()
    }

    /// What the maps hold.
    pub fn read_back(&self) -> ReadBack {
        let ids = |entries: usize| 0..entries as u32;
        let member = |id| Some((id, self.members.read(id as usize).filter(|member| member.flags != 0)?));
        let port =
            |id| Some((id, self.tx_ports.get(id, 0).ok().map(|port| port.if_index).filter(|ifindex| *ifindex != 0)?));
        ReadBack {
            services: self.services.iter().filter_map(Result::ok).collect(),
            vips: self.vips.iter().filter_map(Result::ok).collect(),
            endpoints: self.endpoints.iter().filter_map(Result::ok).collect(),
            members: ids(self.members.len()).filter_map(member).collect(),
            tx_ports: ids(self.tx_ports.len() as usize).filter_map(port).collect(),
        }
    }
}

impl Arrays for Tables {
    fn slot(&self, at: u32) -> Option<abi::Slot> {
        self.slots.read(at as usize)
    }

    fn history(&self, at: u32) -> Option<abi::History> {
        self.histories.read(at as usize)
    }

    fn backend(&self, at: u32) -> Option<abi::Backend> {
        self.backends.read(at as usize)
    }
}
