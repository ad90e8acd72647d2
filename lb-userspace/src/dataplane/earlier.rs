//! The maps of an earlier data plane, which may be of another ABI and of other capacities, read while its programs go on.
//!
//! Entries are taken over by the names of their fields: see [`layout`](super::layout). What an earlier data plane has
//! recorded of clients is carried twice: before the programs are switched to the new maps, and once more after, for what
//! came in between. Meanwhile the return programs of the new data plane look into both.

use std::{
    collections::{HashMap, HashSet},
    io,
    mem::{MaybeUninit, offset_of},
    path::{Path, PathBuf},
};

use aya::{
    Pod,
    maps::{Map, MapData, MapError, MapInfo, PerCpuArray, PerCpuValues, xdp::DevMap},
    programs::loaded_programs,
};
use lb_common::{
    abi::{self, Bypass, BypassKey, Counter, Settings, SlotBlock, Traffic},
    agent::FLOW_FORMAT,
    flow,
    holder::{Holder, HolderKey, VirtualMac, VirtualMacKey},
};

use super::{
    DataPlaneError, bpffs,
    layout::{Conversion, Kind, MapLayout},
    mapped::Mapped,
    pinned,
    tables::Tables,
};
use crate::{
    model::Capacities,
    plan::adopt::{Arrays, ReadBack},
};

/// Maps of an earlier data plane, and how their entries become those of this ABI.
pub struct Earlier {
    maps: PathBuf,
    /// Maps of this build's, with the types that entries are converted to.
    own: PathBuf,
    slots: Vec<abi::Slot>,
    histories: Vec<abi::History>,
    backends: Vec<abi::Backend>,
    /// Whether the words of its flow cache mean what they mean to this build.
    has_own_flows: bool,
}

/// Records that were carried over, and what each was.
pub type Carried = HashMap<BypassKey, Bypass>;

impl Earlier {
    /// Reads what is pinned in `maps`. In `own`, maps of this build are pinned.
    pub fn open(maps: &Path, own: &Path) -> Result<Self, DataPlaneError> {
        let (maps, own) = (maps.to_path_buf(), own.to_path_buf());
        let has_own_flows = pinned::about(&maps)?.is_some_and(|about| about.flow_format == FLOW_FORMAT);
        let (slots, histories, backends) = Default::default();
        let mut earlier = Self { maps, own, slots, histories, backends, has_own_flows };
        earlier.slots = earlier.elements::<SlotBlock>("maglev")?.into_iter().flat_map(|block| block.slots).collect();
        earlier.histories = earlier.elements("histories")?;
        earlier.backends = earlier.elements("backends")?;
        Ok(earlier)
    }

    fn data(&self, map: &str) -> Result<MapData, DataPlaneError> {
        Ok(MapData::from_pin(self.maps.join(map))?)
    }

    fn layouts(&self, map: &str) -> Result<(MapLayout, MapLayout), DataPlaneError> {
        let of = |directory: &Path| {
            let path = directory.join(map);
            let fail = |what: String| DataPlaneError::ForeignPin { path: path.clone(), what };
            let data = MapData::from_pin(&path).map_err(|error| fail(format!("cannot be read as a map: {error}")))?;
            MapLayout::of(data.fd()).map_err(|error| fail(error.to_string()))
        };
        Ok((of(&self.maps)?, of(&self.own)?))
    }

    fn conversion(
        &self,
        map: &str,
        of: fn(&MapLayout) -> &super::layout::Layout,
    ) -> Result<Conversion, DataPlaneError> {
        let (old, new) = self.layouts(map)?;
        Conversion::between(of(&old), of(&new)).map_err(|error| self.unconverted(map, error))
    }

    fn unconverted(&self, map: &str, error: impl std::fmt::Display) -> DataPlaneError {
        let what = format!("its entries cannot be carried over: {error}; go back to the agent that made it");
        DataPlaneError::ForeignPin { path: self.maps.join(map), what }
    }

    /// All elements of an array that is read through memory.
    fn elements<V: Pod>(&self, map: &str) -> Result<Vec<V>, DataPlaneError> {
        let (old, _) = self.layouts(map)?;
        let conversion = self.conversion(map, |layout| &layout.value)?;
        let stride = (old.value_size as usize).next_multiple_of(8);
        let words = stride / 8 * old.max_entries as usize;
        let memory: Mapped<u64> = Mapped::new(&self.data(map)?, words)
            .map_err(|source| DataPlaneError::Memory { map: "of an earlier data plane", source })?;
        let mut bytes = Vec::with_capacity(stride);
        let element = |at: usize| {
            bytes.clear();
            let words = at * stride / 8..(at + 1) * stride / 8;
            bytes.extend(words.filter_map(|word| memory.read(word)).flat_map(u64::to_ne_bytes));
            self.converted(map, &conversion, &bytes[..old.value_size as usize])
        };
        (0..old.max_entries as usize).map(element).collect()
    }

    fn converted<V: Pod>(&self, map: &str, conversion: &Conversion, old: &[u8]) -> Result<V, DataPlaneError> {
        let mut value = MaybeUninit::<V>::zeroed();
        // SAFETY: as long as the value, and zero by now; any bytes are one (`Pod`).
        let bytes = unsafe { std::slice::from_raw_parts_mut(value.as_mut_ptr().cast::<u8>(), size_of::<V>()) };
        conversion.apply(old, bytes).map_err(|error| self.unconverted(map, error))?;
        // SAFETY: as above.
        Ok(unsafe { value.assume_init() })
    }

    /// All entries of a hash.
    fn entries<K: Pod, V: Pod>(&self, map: &str) -> Result<Vec<(K, V)>, DataPlaneError> {
        let (key, value) = (self.conversion(map, |layout| &layout.key)?, self.conversion(map, |layout| &layout.value)?);
        let entries = super::raw::entries(&self.data(map)?)?;
        let convert = |(old_key, old_value): super::raw::Entry| {
            Ok((self.converted(map, &key, &old_key)?, self.converted(map, &value, &old_value)?))
        };
        entries.into_iter().map(convert).collect()
    }

    /// All elements of an array that is read one by one, with their indexes.
    fn indexed<V: Pod>(&self, map: &str) -> Result<Vec<(u32, V)>, DataPlaneError> {
        let value = self.conversion(map, |layout| &layout.value)?;
        let elements = super::raw::entries(&self.data(map)?)?;
        let convert = |(at, old): (u32, super::raw::Entry)| Ok((at, self.converted(map, &value, &old.1)?));
        (0..).zip(elements).map(convert).collect()
    }

    /// The capacities that the maps were made with.
    pub fn capacities(&self) -> Result<Capacities, DataPlaneError> {
        let entries = |map: &str| Ok::<u32, DataPlaneError>(self.data(map)?.info()?.max_entries());
        Ok(Capacities {
            // One of each is the self-test's.
            services: entries("services")? - 1,
            backends: entries("backend_vips")? - 1,
            maglev_slots: (entries("maglev")? - 1) * abi::SLOTS_PER_BLOCK as u32,
            bypasses: entries("bypasses")?,
            flows: entries("flows")? * flow::WAYS as u32,
            fragments: entries("fragments")? * lb_common::fragments::WAYS as u32,
        })
    }

    /// What is installed.
    pub fn read_back(&self) -> Result<ReadBack, DataPlaneError> {
        let ports: DevMap<MapData> = Map::DevMap(self.data("tx_ports")?).try_into()?;
        let port = |id| Some((id, ports.get(id, 0).ok().map(|port| port.if_index).filter(|ifindex| *ifindex != 0)?));
        Ok(ReadBack {
            services: self.entries("services")?,
            vips: self.entries("vips")?,
            endpoints: self.entries("endpoints")?,
            members: self.indexed("members")?.into_iter().filter(|(_, m): &(_, abi::Member)| m.flags != 0).collect(),
            tx_ports: (0..ports.len()).filter_map(port).collect(),
        })
    }

    /// The uplinks, by interface.
    pub fn uplinks(&self) -> Result<Vec<(u32, abi::Uplink)>, DataPlaneError> {
        self.entries("uplinks")
    }

    /// Who answers for VIPs; nothing where the earlier agent had no such map.
    pub fn holders(&self) -> Result<Vec<(HolderKey, Holder)>, DataPlaneError> {
        self.entries_if_any("holders")
    }

    /// Which virtual MACs are taken.
    pub fn virtual_macs(&self) -> Result<Vec<(VirtualMacKey, VirtualMac)>, DataPlaneError> {
        self.entries_if_any("virtual_macs")
    }

    fn entries_if_any<K: Pod, V: Pod>(&self, map: &str) -> Result<Vec<(K, V)>, DataPlaneError> {
        if self.maps.join(map).exists() { self.entries(map) } else { Ok(Vec::new()) }
    }

    /// The settings. Whoever carries records over needs the same seeds.
    pub fn settings(&self) -> Result<Settings, DataPlaneError> {
        let (old, new) = self.layouts("node")?;
        let field = |layout: &MapLayout| match &layout.value.kind {
            Kind::Struct(fields) => fields.iter().find(|field| field.name == "settings").cloned(),
            _ => None,
        };
        let both = field(&old).zip(field(&new));
        let (old, own) = both.ok_or_else(|| self.unconverted("node", "it has no settings"))?;
        assert_eq!(own.offset, offset_of!(abi::Node, settings), "this build's types are this build's");
        let conversion =
            Conversion::between(&old.layout, &own.layout).map_err(|error| self.unconverted("node", error))?;
        let (_, node) = super::raw::entries(&self.data("node")?)?.swap_remove(0);
        self.converted("node", &conversion, &node[old.offset..old.offset + old.layout.size])
    }

    /// What is to be known of the maps to read them beside one's own: bits of `EARLIER`, the place of a bypass' backend,
    /// and the logarithm to base 2 of the buckets of `flows`.
    pub fn beside(&self) -> Result<Beside, DataPlaneError> {
        let (old, new) = self.layouts("bypasses")?;
        let backend = match &old.value.kind {
            Kind::Struct(fields) => fields.iter().find(|field| field.name == "backend"),
            _ => None,
        };
        let readable = backend.filter(|field| old.key == new.key && field.layout.size == 4);
        Ok(Beside {
            maps: self.maps.clone(),
            backend_at: readable.map(|field| field.offset as u32),
            flows_log2: match self.has_own_flows {
                true => Some(self.data("flows")?.info()?.max_entries().ilog2()),
                false => None,
            },
        })
    }

    /// How many bypasses are recorded.
    pub fn bypasses_count(&self) -> Result<usize, DataPlaneError> {
        Ok(super::raw::entries(&self.data("bypasses")?)?.len())
    }

    /// Whether records of the flow cache can be carried over.
    pub const fn has_own_flows(&self) -> bool {
        self.has_own_flows
    }

    /// Connections that are recorded.
    pub fn bypasses(&self) -> Result<Vec<(BypassKey, Bypass)>, DataPlaneError> {
        self.entries("bypasses")
    }

    /// Carries the records of clients over to other tables, where `endpoint_of` says what is installed.
    pub fn carry(
        &self,
        tables: &mut Tables,
        endpoint_of: impl Fn(&BypassKey) -> Option<u32>,
    ) -> Result<Carried, DataPlaneError> {
        let mut carried = Carried::new();
        for (key, bypass) in self.bypasses()? {
            if let Some(endpoint) = endpoint_of(&key) {
                tables.carry_bypass(&key, bypass, endpoint)?;
                carried.insert(key, bypass);
            }
        }
        if self.has_own_flows {
            let data = self.data("flows")?;
            let buckets = data.info()?.max_entries() as usize;
            let memory: Mapped<flow::Bucket> = Mapped::new(&data, buckets)
                .map_err(|source| DataPlaneError::Memory { map: "flows of an earlier data plane", source })?;
            for entry in memory.elements().iter().flat_map(|bucket| &bucket.entries) {
                if let Some((key, backend, since)) = flow::snapshot(entry) {
                    tables.carry_flow(&key, backend, since);
                }
            }
        }
        Ok(carried)
    }

    /// Adds what was counted to other tables' counters, once.
    pub fn carry_counters(&self) -> Result<(), DataPlaneError> {
        self.add::<Counter>("reasons", |one, other| Counter {
            packets: one.packets + other.packets,
            bytes: one.bytes + other.bytes,
        })?;
        self.add::<Traffic>("backend_counters", |one, other| one + other)
    }

    fn add<V: Pod + Default + PartialEq>(&self, map: &str, sum: fn(V, V) -> V) -> Result<(), DataPlaneError> {
        let open = |directory: &Path| {
            let data = MapData::from_pin(directory.join(map))?;
            PerCpuArray::<MapData, V>::try_from(Map::PerCpuArray(data))
        };
        let (old, new) = self.layouts(map)?;
        if old.value != new.value {
            tracing::warn!(map, "counters of an earlier data plane are laid out otherwise, and begin anew");
            return Ok(());
        }
        let (mut from, mut to) = (open(&self.maps)?, open(&self.own)?);
        for at in 0..from.len().min(to.len()) {
            let counted = from.get(&at, 0)?;
            if counted.iter().all(|value| *value == V::default()) {
                continue;
            }
            let sums: Vec<V> =
                to.get(&at, 0)?.iter().zip(counted.iter()).map(|(one, other)| sum(*one, *other)).collect();
            to.set(at, PerCpuValues::try_from(sums).map_err(MapError::from)?, 0)?;
            // Not added again by an agent that takes up what this one leaves half done.
            let zero = vec![V::default(); counted.len()];
            from.set(at, PerCpuValues::try_from(zero).map_err(MapError::from)?, 0)?;
        }
        Ok(())
    }
}

/// Gives maps that were laid aside their place back where no attached program uses those that have taken it: an agent has
/// ended before it switched the first one, and everything goes on as if it had never begun. True where it did so.
pub fn restore_unused(directory: &Path) -> Result<bool, DataPlaneError> {
    let fail = |source| DataPlaneError::PinDirectory {
        path: directory.to_path_buf(),
        what: "looking at maps that were laid aside",
        source,
        advice: "",
    };
    if !directory.join(bpffs::MAPS_OLD).exists() || is_used(directory).map_err(fail)? {
        return Ok(false);
    }
    bpffs::restore_maps(directory).map_err(fail)?;
    Ok(true)
}

/// Whether an attached program uses a map that is pinned in `maps`.
fn is_used(directory: &Path) -> io::Result<bool> {
    let maps = bpffs::entries(&directory.join(bpffs::MAPS))?;
    let maps: HashSet<u32> = maps.iter().filter_map(|pin| Some(MapInfo::from_pin(pin).ok()?.id())).collect();
    let links = bpffs::entries(&directory.join(bpffs::LINKS))?;
    let programs: HashSet<u32> = links.iter().filter_map(|pin| bpffs::program_of(pin).ok()).collect();
    for program in loaded_programs().filter_map(Result::ok).filter(|program| programs.contains(&program.id())) {
        let used = program.map_ids().map_err(io::Error::other)?;
        // A kernel that does not tell has them used.
        if used.is_none_or(|used| used.iter().any(|id| maps.contains(id))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How the programs read an earlier data plane's maps beside their own.
#[derive(Clone, Debug)]
pub struct Beside {
    /// Where those are pinned.
    pub maps: PathBuf,
    /// Where `backend` stands in a value of `bypasses`; `None` where they cannot be read so.
    pub backend_at: Option<u32>,
    /// Logarithm to base 2 of the buckets of `flows`; `None` where they cannot be read.
    pub flows_log2: Option<u32>,
}

impl Arrays for Earlier {
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
