//! What a configuration would change, without changing it: services, backends, slots, and how much is written.
//!
//! A plan for the proposed configuration, by a copy of the planner, is compared with what is installed.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use lb_common::abi::Slot;
use serde::{Deserialize, Serialize};

use super::{
    ops::MapOp,
    planner::{GRACE, Places, PlanError, Planner, VipKey, vip_key},
    room::Stage,
    service::InstalledService,
};
use crate::model::{
    Affinity, Backend, Capacities, Limits, Observation, Protocol, RungChoice, Service, Snapshot, Uplink,
};

/// All that a reload would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diff {
    /// Why the reload would be refused as a whole, where it would be.
    pub refused: Option<String>,
    /// What concerns all services.
    pub settings: Vec<Setting>,
    /// In the order of the configurations.
    pub uplinks: Vec<UplinkChange>,
    /// In the order of the proposed configuration; those that go stand last.
    pub services: Vec<ServiceChange>,
    /// Entries that would be written or removed, by map. Also what waits to be written without the change.
    pub writes: BTreeMap<String, u64>,
    /// What is known only once it is done, and what else is to be said.
    pub notes: Vec<String>,
}

/// A key whose value changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Setting {
    /// As the configuration names it.
    pub key: String,
    /// The value in force.
    pub before: String,
    /// The proposed one.
    pub after: String,
}

/// What happens to something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is only in the proposed configuration.
    Added,
    /// It is only in the one that is in force.
    Removed,
    /// It is in both, and not the same.
    Changed,
}

/// An uplink that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UplinkChange {
    /// Interface name.
    pub interface: String,
    /// What happens to it.
    pub change: Change,
    /// Its keys whose values change.
    pub settings: Vec<Setting>,
}

/// A service that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceChange {
    /// Its name; the proposed one.
    pub name: String,
    /// The virtual address.
    pub vip: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port at the VIP.
    pub port: u16,
    /// What happens to it.
    pub change: Change,
    /// Its keys whose values change.
    pub settings: Vec<Setting>,
    /// Its backends that are not the same; all of them where it is added or removed.
    pub backends: Vec<BackendChange>,
    /// Its Maglev table, where that changes.
    pub slots: Option<SlotChange>,
}

/// A backend that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendChange {
    /// The pod's address and port.
    pub address: SocketAddr,
    /// What happens to it.
    pub change: Change,
    /// Its keys whose values change.
    pub settings: Vec<Setting>,
}

/// Slots that change their owner. TCP sessions in them stay where they are, and new ones go to the new owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotChange {
    /// Slots of the table now; 0 without one.
    pub before: u32,
    /// Slots of the table then.
    pub after: u32,
    /// Slots, of the larger of both, whose owner is another.
    pub moved: u32,
    /// From whom to whom, the most first.
    pub moves: Vec<Move>,
}

/// Slots that go from one backend to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Move {
    /// Who has them now; nobody where they refuse.
    pub from: Option<SocketAddr>,
    /// Who has them then.
    pub to: Option<SocketAddr>,
    /// How many.
    pub slots: u32,
}

impl Diff {
    /// Whether the reload would change nothing.
    pub fn is_empty(&self) -> bool {
        let Self { refused, settings, uplinks, services, writes: _, notes: _ } = self;
        refused.is_none() && settings.is_empty() && uplinks.is_empty() && services.is_empty()
    }
}

/// Compares what is in force, and installed by `planner`, with what is proposed. `places` holds the pods that are known.
pub fn diff(planner: &Planner, before: &Snapshot, after: &Snapshot, places: &Places, now: Duration) -> Diff {
    let mut diff = Diff { settings: settings(before, after), uplinks: uplinks(before, after), ..Diff::default() };
    if before.capacities != after.capacities {
        // A plan for other sizes would be one for other maps.
        diff.notes
            .push("slots and writes are not known: they follow from the sizes that the maps will have".to_owned());
        diff.services = services(planner, planner, before, after);
        return diff;
    }
    let mut next = planner.clone();
    let planned = next.plan_in_stages(after, places, now).and_then(|stage| match stage {
        Stage::Whole(ops) => Ok(ops),
        Stage::Part(mut ops, PlanError::Full { what, .. }) => {
            diff.notes
                .push(format!("in two steps, {} s apart: {what} takes the place of one that goes", GRACE.as_secs()));
            let rested = now + 2 * GRACE;
            next.retire(rested);
            ops.extend(next.plan(after, places, rested)?);
            Ok(ops)
        }
    });
    match planned {
        Ok(ops) => ops.iter().for_each(|op| count(op, &mut diff.writes)),
        Err(full) => diff.refused = Some(full.to_string()),
    }
    diff.services = services(planner, &next, before, after);
    diff
}

fn setting(key: &str, before: impl ToString, after: impl ToString) -> Option<Setting> {
    let (before, after) = (before.to_string(), after.to_string());
    (before != after).then(|| Setting { key: key.to_owned(), before, after })
}

fn path(path: Option<&PathBuf>) -> String {
    path.map_or_else(|| "none".to_owned(), |path| path.display().to_string())
}

fn settings(before: &Snapshot, after: &Snapshot) -> Vec<Setting> {
    let text = |snapshot: &Snapshot| {
        // No catch-all: whoever adds a key says here how it is compared.
        let Snapshot {
            node_addresses,
            uplinks: _,
            pin_directory,
            run_directory,
            capacities: Capacities { services, backends, maglev_slots, bypasses, flows, fragments },
            limits: Limits { refusals, echo_replies, icmp_errors },
            observation: Observation { listen, tls, token_file, backend_series },
            announce,
            services: _,
        } = snapshot;
        let addresses: Vec<String> = node_addresses.iter().map(IpAddr::to_string).collect();
        [
            ("node.addresses", addresses.join(", ")),
            ("pinDirectory", pin_directory.display().to_string()),
            ("runDirectory", run_directory.display().to_string()),
            ("capacities.services", services.to_string()),
            ("capacities.backends", backends.to_string()),
            ("capacities.maglevSlots", maglev_slots.to_string()),
            ("capacities.bypasses", bypasses.to_string()),
            ("capacities.flows", flows.to_string()),
            ("capacities.fragments", fragments.to_string()),
            ("limits.refusals", refusals.to_string()),
            ("limits.echoReplies", echo_replies.to_string()),
            ("limits.icmpErrors", icmp_errors.to_string()),
            ("observation.listen", listen.map_or_else(|| "none".to_owned(), |listen| listen.to_string())),
            ("observation.tls.certificate", path(tls.as_ref().map(|tls| &tls.certificate))),
            ("observation.tls.key", path(tls.as_ref().map(|tls| &tls.key))),
            ("observation.tokenFile", path(token_file.as_ref())),
            ("observation.backendSeries", backend_series.to_string()),
            ("announce", serde_json::to_string(announce).unwrap_or_default()),
        ]
    };
    let pairs = text(before).into_iter().zip(text(after));
    pairs.filter_map(|((key, before), (_, after))| setting(key, before, after)).collect()
}

fn uplinks(before: &Snapshot, after: &Snapshot) -> Vec<UplinkChange> {
    let mut known: HashMap<&str, &Uplink> = before.uplinks.iter().map(|up| (up.interface.as_str(), up)).collect();
    let change = |interface: &str, change, settings| UplinkChange { interface: interface.to_owned(), change, settings };
    let mut changes = Vec::new();
    for Uplink { interface, mode } in &after.uplinks {
        let Some(old) = known.remove(interface.as_str()) else {
            changes.push(change(interface, Change::Added, Vec::new()));
            continue;
        };
        let name = |mode| format!("{mode:?}").to_lowercase();
        let settings: Vec<Setting> = setting("mode", name(old.mode), name(*mode)).into_iter().collect();
        if !settings.is_empty() {
            changes.push(change(interface, Change::Changed, settings));
        }
    }
    let gone = before.uplinks.iter().filter(|uplink| known.contains_key(uplink.interface.as_str()));
    changes.extend(gone.map(|uplink| change(&uplink.interface, Change::Removed, Vec::new())));
    changes
}

fn services(planner: &Planner, next: &Planner, before: &Snapshot, after: &Snapshot) -> Vec<ServiceChange> {
    let mut known: BTreeMap<VipKey, &Service> =
        before.services.iter().map(|service| (vip_key(service), service)).collect();
    let slots = |key: VipKey| slot_change(planner.services().get(&key), next.services().get(&key));
    let mut changes = Vec::new();
    for service in &after.services {
        let key = vip_key(service);
        let change = match known.remove(&key) {
            None => Some(whole(service, Change::Added, slots(key))),
            Some(old) => changed(old, service, slots(key)),
        };
        changes.extend(change);
    }
    let gone = before.services.iter().filter(|service| known.contains_key(&vip_key(service)));
    changes.extend(gone.map(|service| whole(service, Change::Removed, slots(vip_key(service)))));
    changes
}

/// A service that comes or goes: no session moves between its backends.
fn whole(service: &Service, change: Change, slots: Option<SlotChange>) -> ServiceChange {
    let backend = |backend: &Backend| {
        let settings = backend_settings(&Backend { weight: 1, drain: false, ..backend.clone() }, backend);
        BackendChange { address: address(backend), change, settings }
    };
    ServiceChange {
        name: service.name.clone(),
        vip: service.vip,
        protocol: service.protocol,
        port: service.port,
        change,
        settings: Vec::new(),
        backends: service.backends.iter().map(backend).collect(),
        slots: slots.map(|slots| SlotChange { moved: 0, moves: Vec::new(), ..slots }),
    }
}

fn changed(old: &Service, new: &Service, slots: Option<SlotChange>) -> Option<ServiceChange> {
    let settings = service_settings(old, new);
    let mut known: HashMap<SocketAddr, &Backend> = old.backends.iter().map(|b| (address(b), b)).collect();
    let mut backends = Vec::new();
    for backend in &new.backends {
        let address = address(backend);
        let (change, settings) = match known.remove(&address) {
            None => (Change::Added, backend_settings(&Backend { weight: 1, drain: false, ..backend.clone() }, backend)),
            Some(old) => (Change::Changed, backend_settings(old, backend)),
        };
        if change == Change::Added || !settings.is_empty() {
            backends.push(BackendChange { address, change, settings });
        }
    }
    for backend in old.backends.iter().filter(|backend| known.contains_key(&address(backend))) {
        backends.push(BackendChange { address: address(backend), change: Change::Removed, settings: Vec::new() });
    }
    if settings.is_empty() && backends.is_empty() && slots.is_none() {
        return None;
    }
    let Service { name, vip, protocol, port, .. } = new;
    let (name, vip, protocol, port) = (name.clone(), *vip, *protocol, *port);
    Some(ServiceChange { name, vip, protocol, port, change: Change::Changed, settings, backends, slots })
}

const fn address(backend: &Backend) -> SocketAddr {
    SocketAddr::new(backend.address, backend.port)
}

fn service_settings(old: &Service, new: &Service) -> Vec<Setting> {
    let text = |service: &Service| {
        let Service { name, vip: _, protocol: _, port: _, replies, rung, affinity, backends: _, health_check } =
            service;
        let (rung, assign) = match rung {
            RungChoice::Auto => ("auto", false),
            RungChoice::Only(rung) => (rung.name(), false),
            RungChoice::Direct { vip: _, assign } => ("direct", *assign),
        };
        let affinity = match affinity {
            None => "None".to_owned(),
            Some(Affinity { timeout }) => format!("ClientIP for {} s", timeout.as_secs()),
        };
        [
            ("name", name.clone()),
            ("replies", format!("{replies:?}").to_lowercase()),
            ("rung", rung.to_owned()),
            ("assignVip", assign.to_string()),
            ("sessionAffinity", affinity),
            ("healthCheck", health_check.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)),
        ]
    };
    let pairs = text(old).into_iter().zip(text(new));
    pairs.filter_map(|((key, before), (_, after))| setting(key, before, after)).collect()
}

fn backend_settings(old: &Backend, new: &Backend) -> Vec<Setting> {
    let Backend { address: _, port: _, weight, drain } = new;
    [setting("weight", old.weight, weight), setting("drain", old.drain, drain)].into_iter().flatten().collect()
}

fn slot_change(old: Option<&InstalledService>, new: Option<&InstalledService>) -> Option<SlotChange> {
    let table = |service: Option<&InstalledService>| service.and_then(InstalledService::slots).map(std::ptr::from_ref);
    if table(old) == table(new) {
        // Copies of a planner share what neither has changed.
        return None;
    }
    let bits = |service: Option<&InstalledService>| service.and_then(InstalledService::slots).map(|t| t.size().bits());
    let (before, after) = (bits(old), bits(new));
    let largest = before.max(after)?;
    let mut moves: HashMap<_, u32> = HashMap::new();
    let (owners_before, owners_after) = (owners(old), owners(new));
    for slot in 0..1usize << largest {
        let from = owner(slot, largest, before, old, &owners_before);
        let to = owner(slot, largest, after, new, &owners_after);
        if from != to {
            *moves.entry((from, to)).or_default() += 1;
        }
    }
    if moves.is_empty() && before == after {
        return None;
    }
    let mut moves: Vec<Move> = moves.into_iter().map(|((from, to), slots)| Move { from, to, slots }).collect();
    moves.sort_by_key(|one| (std::cmp::Reverse(one.slots), one.from, one.to));
    let slots = |bits: Option<u32>| bits.map_or(0, |bits| 1 << bits);
    let moved = moves.iter().map(|one| one.slots).sum();
    Some(SlotChange { before: slots(before), after: slots(after), moved, moves })
}

/// Who stands at a position: positions are given out anew, addresses are not.
fn owners(service: Option<&InstalledService>) -> HashMap<u16, SocketAddr> {
    let backends = service.into_iter().flat_map(|service| &service.backends);
    backends.map(|b| (b.position.0, SocketAddr::new(b.endpoint.address, b.endpoint.port))).collect()
}

/// The owner of a slot of a table of `largest` bits: in a smaller one it has its parent's, since a slot is the first bits
/// of a hash.
fn owner(
    slot: usize,
    largest: u32,
    bits: Option<u32>,
    service: Option<&InstalledService>,
    owners: &HashMap<u16, SocketAddr>,
) -> Option<SocketAddr> {
    let Slot { owner, .. } = service?.slots()?.slot((slot >> (largest - bits?)) as u32);
    owners.get(&owner).copied()
}

fn count(op: &MapOp, writes: &mut BTreeMap<String, u64>) {
    let (map, entries) = match op {
        MapOp::SetTxPort { .. } => ("tx_ports", 1),
        MapOp::WriteBackends { backends, .. } => ("backends", backends.len()),
        MapOp::WriteSlots { slots, .. } => ("maglev", slots.size().slots()),
        MapOp::UpdateSlots { slots, .. } => ("maglev", slots.len()),
        MapOp::WriteHistory { .. } => ("histories", 1),
        MapOp::SetBackendVip { .. } => ("backend_vips", 1),
        MapOp::SetEndpoint { .. } | MapOp::RemoveEndpoint { .. } => ("endpoints", 1),
        MapOp::SetService { .. } | MapOp::RemoveService { .. } => ("services", 1),
        MapOp::SetVip { .. } => ("vips", 1),
        MapOp::ClearBackendCounters { .. } => ("backend_counters", 1),
        MapOp::SetMember { .. } => ("members", 1),
    };
    *writes.entry(map.to_owned()).or_default() += entries as u64;
}

#[cfg(test)]
mod tests;
