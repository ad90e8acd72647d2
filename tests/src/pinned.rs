//! The pinned maps of a running agent, read and changed beside it: what an operator, or an accident, could do.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use lb_common::{
    abi::{Backend, Counter, Service, ServiceKey, Slot, Traffic, protocol},
    address::Address,
    flow,
    steer::{flow_hash, ports_word, slot_of},
};
use lb_userspace::plan::maglev::CLUSTER_SEED;

use crate::{agent::Agent, kernel::shared::Shared};

/// History references of the two slots that share a word of the map `maglev` (little endian, owner first).
const HISTORIES: u64 = 0xffff_0000_ffff_0000;

/// The maps of one agent.
#[derive(Debug)]
pub struct Pinned {
    maps: PathBuf,
}

impl Pinned {
    /// Those of this agent.
    #[must_use]
    pub fn of(agent: &Agent) -> Self {
        Self { maps: agent.pins().join("maps") }
    }

    /// Those that are pinned in this directory, whether an agent runs or not.
    #[must_use]
    pub fn at(maps: PathBuf) -> Self {
        Self { maps }
    }

    /// Where a map is pinned.
    #[must_use]
    pub fn path(&self, map: &str) -> PathBuf {
        self.maps.join(map)
    }

    /// Takes every record out of the flow cache, as the product's own sweeper does, and says how many there were.
    pub fn wipe_flows(&self) -> Result<u64> {
        let flows: Shared<flow::Bucket> = Shared::pinned(&self.path("flows"))?;
        let entries = flows.iter().flat_map(|bucket| &bucket.entries);
        Ok(entries.filter(|entry| flow::snapshot(entry).is_some_and(|(key, ..)| flow::remove(entry, &key))).count()
            as u64)
    }

    /// Takes the history of every slot away: a data plane without offers.
    pub fn forget_histories(&self) -> Result<()> {
        let words: Shared<AtomicU64> = Shared::pinned(&self.path("maglev"))?;
        for word in words.iter().filter(|word| word.load(Relaxed) & HISTORIES != 0) {
            word.fetch_and(!HISTORIES, Relaxed);
        }
        Ok(())
    }

    /// The service at a VIP's TCP port.
    pub fn service(&self, vip: SocketAddr) -> Result<Service> {
        let map = Map::HashMap(MapData::from_pin(self.path("services"))?);
        let services: HashMap<_, ServiceKey, Service> = map.try_into()?;
        let key = ServiceKey::new(vip.ip().into(), vip.port(), protocol::TCP);
        services.get(&key, 0).with_context(|| format!("no service at {vip}"))
    }

    /// The slot of a client's TCP connection, and its place in the map.
    pub fn slot(&self, vip: SocketAddr, client: SocketAddr) -> Result<(u32, Slot)> {
        let service = self.service(vip)?;
        let words = |address: SocketAddr| Address::from(address.ip().to_canonical()).words();
        let ports = ports_word(client.port(), vip.port());
        let hash = flow_hash(CLUSTER_SEED, words(client), words(vip), ports, protocol::TCP);
        let at = service.slots + slot_of(hash, service.slots_log2);
        let slots: Shared<AtomicU64> = Shared::pinned(&self.path("maglev"))?;
        let word = slots[at as usize / 2].load(Relaxed) >> (32 * (at % 2));
        Ok((at, Slot { owner: word as u16, history: (word >> 16) as u16 }))
    }

    /// Share of a service's slots that have moved.
    pub fn moved_share(&self, vip: SocketAddr) -> Result<f64> {
        let service = self.service(vip)?;
        let words: Shared<AtomicU64> = Shared::pinned(&self.path("maglev"))?;
        let (first, count) = (service.slots as usize / 2, 1usize << service.slots_log2 >> 1);
        let moved = |word: &AtomicU64| (word.load(Relaxed) & HISTORIES).to_ne_bytes();
        let halves = words[first..first + count]
            .iter()
            .map(moved)
            .map(|bytes| usize::from(bytes[2..4] != [0, 0]) + usize::from(bytes[6..8] != [0, 0]));
        Ok(halves.sum::<usize>() as f64 / (2 * count) as f64)
    }

    /// A service's range of backends.
    pub fn backends(&self, service: &Service) -> Result<Vec<Backend>> {
        let map = Map::Array(MapData::from_pin(self.path("backends"))?);
        let backends: Array<_, Backend> = map.try_into()?;
        let range = service.backends..service.backends + u32::from(service.backends_count);
        range.map(|at| Ok(backends.get(&at, 0)?)).collect()
    }

    /// A service's backend at this pod's address.
    pub fn backend(&self, vip: SocketAddr, pod: IpAddr) -> Result<Backend> {
        let backends = self.backends(&self.service(vip)?)?;
        let backend = backends.into_iter().find(|backend| backend.address == pod.into());
        backend.with_context(|| format!("{pod} is no backend of {vip}"))
    }

    /// Packets counted under a reason.
    pub fn reason(&self, index: u32) -> Result<u64> {
        let map = Map::PerCpuArray(MapData::from_pin(self.path("reasons"))?);
        let reasons: PerCpuArray<_, Counter> = map.try_into()?;
        Ok(reasons.get(&index, 0)?.iter().map(|counter| counter.packets).sum())
    }

    /// Packets forwarded, of all backends.
    pub fn forwarded(&self) -> Result<u64> {
        let map = Map::PerCpuArray(MapData::from_pin(self.path("backend_counters"))?);
        let counters: PerCpuArray<_, Traffic> = map.try_into()?;
        let mut sum = 0;
        for values in counters.iter() {
            sum += values?.iter().map(|traffic| traffic.packets).sum::<u64>();
        }
        Ok(sum)
    }
}
