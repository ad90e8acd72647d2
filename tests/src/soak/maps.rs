//! What the pinned maps hold, against what the agent says of itself.
//!
//! The maps are read by the product's own way of reading an earlier agent's, so that those of another build are read as
//! well: what a new agent would adopt now, and what it would have to clean up.

use std::{collections::BTreeMap, ffi::CString, fs, net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use lb_common::{abi, flow};
use lb_userspace::{
    dataplane::{
        bpffs::{MAPS, MAPS_NEW, MAPS_OLD},
        capacity::Sizes,
        earlier::Earlier,
        object::{self, Pins},
    },
    model::{Capacities, Protocol},
    plan::{
        adopt::{Adopted, UsedIds},
        planner::{EndpointKey, Planner, VipKey, rung_number},
        service::InstalledBackend,
    },
    status::{BackendStatus, ServiceStatus, Status},
};

use crate::{
    kernel::shared::Shared,
    lab::{Lab, Namespace},
};

/// Maps of this build, whose types those of the running agent are read as.
const OWN: Capacities =
    Capacities { services: 1, backends: 1, maglev_slots: 1024, bypasses: 1, flows: 8, fragments: 8 };
/// Times in the maps are of no interest here.
const HERTZ: u64 = 1000;
/// Characters of an entry that a difference shows.
const SHOWN: usize = 300;

/// The maps of the agent in a lab.
pub struct Maps {
    pins: PathBuf,
    own: PathBuf,
}

impl Maps {
    /// Of the lab whose agent pins here.
    pub fn of(lab: &Lab, pins: PathBuf) -> Result<Self> {
        let own = lab.bpffs().join("soak");
        fs::create_dir_all(&own)?;
        object::make_maps(&Sizes::new(&OWN), Some(&Pins::new(own.clone())), None)?;
        Ok(Self { pins, own })
    }

    /// Every difference between the maps and what the agent says; none where nothing is left to do.
    pub fn differences(&self, node: &Namespace, status: &Status) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for directory in [MAPS_NEW, MAPS_OLD] {
            if self.pins.join(directory).exists() {
                found.push(format!("{directory} is there"));
            }
        }
        let maps = Earlier::open(&self.pins.join(MAPS), &self.own)?;
        let adopted = Planner::adopt(maps.capacities()?, HERTZ, &maps.read_back()?, &maps, Duration::ZERO);
        let Adopted { planner, ops, discarded, used } = &adopted;
        found.extend(discarded.iter().map(|words| format!("not understood: {words}")));
        found.extend(ops.iter().map(|op| format!("left over: {op:?}").chars().take(SHOWN).collect()));
        compare(node, planner, status, &mut found);
        self.check_bypasses(&maps, planner, &mut found)?;
        if maps.has_own_flows() {
            self.check_flows(used, &mut found)?;
        }
        Ok(found)
    }

    /// A record is of an endpoint that is installed, and counted there.
    fn check_bypasses(&self, maps: &Earlier, planner: &Planner, found: &mut Vec<String>) -> Result<()> {
        let mut by_endpoint: BTreeMap<u32, u64> = BTreeMap::new();
        for (key, bypass) in maps.bypasses()? {
            let protocol = Protocol::from_number(key.protocol).context("a bypass of no protocol")?;
            let endpoint = EndpointKey::new(IpAddr::from(key.pod), protocol, key.pod_port);
            match planner.endpoints().get(&endpoint) {
                Some(endpoint) => *by_endpoint.entry(endpoint.id).or_default() += 1,
                None => found.push(format!("a record of no endpoint: {key:?} {bypass:?}")),
            }
        }
        let counts: Shared<abi::BypassCount> = Shared::pinned(&self.pins.join(MAPS).join("endpoint_bypasses"))?;
        for (endpoint, records) in by_endpoint {
            let count = counts.get(endpoint as usize).map_or(0, |count| count.count.load());
            if count < records {
                found.push(format!("endpoint {endpoint} has {records} records, and counts {count}"));
            }
        }
        Ok(())
    }

    /// A client's record names what is installed.
    fn check_flows(&self, used: &UsedIds, found: &mut Vec<String>) -> Result<()> {
        let flows: Shared<flow::Bucket> = Shared::pinned(&self.pins.join(MAPS).join("flows"))?;
        for entry in flows.iter().flat_map(|bucket| &bucket.entries) {
            let Some((key, backend, _)) = flow::snapshot(entry) else { continue };
            let named = key.parts().0;
            let is_known = match key.kind() {
                flow::Kind::Udp => used.endpoints.contains(&named),
                flow::Kind::Tcp | flow::Kind::Affinity => used.services.contains(&named),
            };
            if !is_known || !used.backends.contains(&backend) {
                found.push(format!("a record of nothing installed: {:?} {named} of backend {backend}", key.kind()));
            }
        }
        Ok(())
    }
}

/// Only what is read from pinned maps has no name.
fn name(service: &ServiceStatus) -> &str {
    service.name.as_deref().unwrap_or("without a name")
}

fn compare(node: &Namespace, planner: &Planner, status: &Status, found: &mut Vec<String>) {
    let mut vips: BTreeMap<IpAddr, u32> = BTreeMap::new();
    for service in &status.services {
        *vips.entry(service.vip).or_default() += 1;
        let key = VipKey::new(service.vip, service.protocol, service.port);
        let Some(installed) = planner.services().get(&key) else {
            found.push(format!("service {} is not in the maps", name(service)));
            continue;
        };
        let slots = if installed.value.backends_count == 0 { 0 } else { 1 << installed.value.slots_log2 };
        let moved = installed.slots().map_or(0, |table| table.moved() as u32);
        let (said, is) = ((service.slots, service.moved_slots, service.backends.len()), (slots, moved));
        if said != (is.0, is.1, installed.backends.len()) {
            let count = installed.backends.len();
            found.push(format!("{}: (slots, moved, backends) are said to be {said:?}, {is:?} {count}", name(service)));
        }
        for backend in &service.backends {
            let is_it =
                |i: &&InstalledBackend| (i.endpoint.address, i.endpoint.port) == (backend.address, backend.port);
            match installed.backends.iter().find(is_it) {
                Some(installed) => compare_backend(node, service, backend, installed, found),
                None => found.push(format!("{}: backend {} is not in the maps", name(service), backend.address)),
            }
        }
    }
    if planner.services().len() != status.services.len() {
        found.push(format!("{} services in the maps, not {}", planner.services().len(), status.services.len()));
    }
    if *planner.vips() != vips {
        found.push(format!("VIPs in the maps: {:?}, not {vips:?}", planner.vips()));
    }
}

fn compare_backend(
    node: &Namespace,
    service: &ServiceStatus,
    said: &BackendStatus,
    is: &InstalledBackend,
    found: &mut Vec<String>,
) {
    let said_parts = (said.weight, said.drain, said.slots, said.rung.map(rung_number));
    let parts = (Some(is.weight), is.drain, is.share, Some(is.value.rung).filter(|rung| *rung != abi::rung::NONE));
    if said_parts != parts {
        let name = name(service);
        found.push(format!("{name}: {} is said to be {said_parts:?}, and is {parts:?}", said.address));
    }
    let ifindex = said.interface.as_ref().map(|name| index_of(node, name));
    if ifindex.is_some_and(|ifindex| ifindex != is.value.ifindex) {
        let (name, is) = (name(service), is.value.ifindex);
        found.push(format!(
            "{name}: {} is said to be at {:?} ({ifindex:?}), and is at {is}",
            said.address, said.interface
        ));
    }
}

/// 0 where there is none.
fn index_of(node: &Namespace, interface: &str) -> u32 {
    let Ok(name) = CString::new(interface) else { return 0 };
    // SAFETY: the name is a string that lives across the call.
    node.run(|| unsafe { libc::if_nametoindex(name.as_ptr()) })
}
