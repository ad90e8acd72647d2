//! The agent's state in the words of the status.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use lb_common::{
    abi::{Counter, Traffic},
    reason::Reason,
};

use super::Engine;
use crate::{
    health::targets::fails_open,
    model::Service,
    plan::planner::{EndpointKey, VipKey},
    preflight::{self, resolve::Place},
    status::{BackendState, BackendStatus, MapStatus, ProgramStatus, ReasonStatus, ServiceStatus, Source, Status},
};

/// Now, in seconds since 1970 UTC: to be shown, never to be reckoned with.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Engine {
    /// Everything that the status shows, as it is now.
    pub(super) fn status(&self) -> Status {
        let uptime = self.started.elapsed();
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(uptime);
        Status {
            source: Source::Agent,
            version: env!("CARGO_PKG_VERSION").into(),
            since_unix_seconds: since.as_secs(),
            uptime_seconds: uptime.as_secs(),
            node_addresses: self.snapshot.node_addresses.clone(),
            programs: self.program_status(),
            services: self.snapshot.services.iter().map(|service| self.service_status(service)).collect(),
            reasons: self.reason_status(),
            maps: self.map_status(),
            last_error: self.refusal.clone(),
            waiting: self.waiting.clone(),
            preflight: self.preflight.all(),
            observation: self.observer.state.borrow().clone(),
            announce: self.announce_status(),
            activity: self.meter.activity().clone(),
        }
    }

    fn program_status(&self) -> Vec<ProgramStatus> {
        let attached: Vec<ProgramStatus> = self.attached.programs().cloned().collect();
        let missing = missing(&attached, &self.places, &self.refused_uplinks);
        attached.into_iter().chain(missing).collect()
    }

    fn service_status(&self, service: &Service) -> ServiceStatus {
        let key = VipKey::new(service.vip, service.protocol, service.port);
        let installed = self.planner.services().get(&key);
        let backends: Vec<BackendStatus> = service
            .backends
            .iter()
            .enumerate()
            .map(|(at, backend)| {
                let finding = self.findings.get(&(backend.address, service.rung));
                let installed = installed.and_then(|installed| installed.backends.get(at));
                let id = installed.map(|backend| backend.value.id);
                let traffic = id.map(|id| self.traffic_of(id)).unwrap_or_default();
                BackendStatus {
                    address: backend.address,
                    port: backend.port,
                    weight: Some(backend.weight),
                    drain: backend.drain,
                    slots: installed.map_or(0, |backend| backend.share),
                    rung: finding.and_then(|finding| finding.rung),
                    state: finding.map_or(BackendState::Pending, |finding| finding.state),
                    opaque: self.why_opaque(&EndpointKey::of(service, backend)),
                    reason: finding.and_then(|finding| finding.reason.clone()),
                    interface: finding.and_then(|finding| finding.interface().map(str::to_owned)),
                    health: self.health_of(service, backend),
                    vip_on_lo: finding.and_then(|finding| finding.vip_on_lo),
                    packets: traffic.packets,
                    bytes: traffic.bytes,
                    reply_packets: traffic.reply_packets,
                    reply_bytes: traffic.reply_bytes,
                }
            })
            .collect();
        let gone = self.gone_traffic(&key);
        let table = installed.and_then(|installed| installed.slots());
        ServiceStatus {
            name: Some(service.name.clone()),
            vip: service.vip,
            protocol: service.protocol,
            port: service.port,
            replies: service.replies,
            session_affinity_seconds: service.affinity.map(|affinity| affinity.timeout.as_secs()),
            health_check: service.health_check.as_ref().map(ToString::to_string),
            fails_open: fails_open(service, self.health.failed()),
            packets: gone.packets + backends.iter().map(|backend| backend.packets).sum::<u64>(),
            bytes: gone.bytes + backends.iter().map(|backend| backend.bytes).sum::<u64>(),
            reply_packets: gone.reply_packets + backends.iter().map(|backend| backend.reply_packets).sum::<u64>(),
            reply_bytes: gone.reply_bytes + backends.iter().map(|backend| backend.reply_bytes).sum::<u64>(),
            slots: installed.filter(|i| i.value.backends_count != 0).map_or(0, |i| 1 << i.value.slots_log2),
            moved_slots: table.map_or(0, |table| table.moved() as u32),
            dropped_owners: table.map_or(0, |table| {
                let dropped = table.dropped();
                dropped.overflows + dropped.silent_overflows + dropped.list_overflows
            }),
            backends,
        }
    }

    /// Of all backends that ever were.
    pub(super) fn total_traffic(&self) -> Traffic {
        let here =
            self.planner.services().values().flat_map(|service| &service.backends).map(|backend| backend.value.id);
        let ids = here.chain(self.planner.leaving().keys().copied());
        ids.fold(self.gone_total, |sum, id| sum + self.traffic_of(id))
    }

    fn traffic_of(&self, backend: u32) -> Traffic {
        self.tables.backend_traffic(backend).unwrap_or_default()
    }

    /// What the service's backends forwarded that are its no more: its own count never falls.
    fn gone_traffic(&self, service: &VipKey) -> Traffic {
        let leaving = self.planner.leaving().iter().filter(|(_, of)| *of == service);
        let kept = self.gone_traffic.get(service).copied().unwrap_or_default();
        leaving.fold(kept, |sum, (id, _)| sum + self.traffic_of(*id))
    }

    /// Takes over the counts of backends whose ids are given out anew.
    pub(super) fn keep_traffic(&mut self, backends: &[(u32, VipKey)]) {
        for (id, service) in backends {
            let traffic = self.traffic_of(*id);
            let kept = self.gone_traffic.entry(*service).or_default();
            *kept = *kept + traffic;
            self.gone_total = self.gone_total + traffic;
        }
        self.gone_traffic.retain(|service, _| self.planner.services().contains_key(service));
    }

    fn reason_status(&self) -> Vec<ReasonStatus> {
        let mut counted = self.tables.reasons().unwrap_or_default();
        let traffic = self.total_traffic();
        for (reason, counter) in &mut counted {
            let counted_elsewhere = match reason {
                Reason::Forwarded => Counter { packets: traffic.packets, bytes: traffic.bytes },
                Reason::Replied => Counter { packets: traffic.reply_packets, bytes: traffic.reply_bytes },
                _ => continue,
            };
            *counter = counted_elsewhere;
        }
        let status = |(reason, counter): (Reason, Counter)| ReasonStatus {
            name: reason.name().into(),
            packets: counter.packets,
            bytes: counter.bytes,
            doc: reason.doc().into(),
        };
        counted.into_iter().map(status).collect()
    }

    fn map_status(&self) -> Vec<MapStatus> {
        let (flows, bypasses) = self.tables.fill();
        let used = |name: &str| match name {
            "services" => Some(self.planner.services().len()),
            "vips" => Some(self.planner.vips().len()),
            "histories" => {
                let tables = self.planner.services().values().filter_map(|service| service.slots());
                Some(tables.map(|table| table.lists().count()).sum())
            }
            "backend_counters" => Some(self.planner.services().values().map(|service| service.backends.len()).sum()),
            "endpoints" => Some(self.planner.endpoints().values().filter(|e| e.value.is_some()).count()),
            "bypasses" => Some(bypasses as usize),
            "flows" => Some(flows as usize),
            _ => None,
        };
        let cpus = aya::util::nr_cpus().unwrap_or(1) as u64;
        let entry = |(name, capacity, bytes): (&str, u32, u64)| {
            // A bucket of these holds several.
            let capacity = match name {
                "flows" => capacity * lb_common::flow::WAYS as u32,
                "fragments" => capacity * lb_common::fragments::WAYS as u32,
                _ => capacity,
            };
            let entries = used(name).map(|entries| entries as u64);
            MapStatus { name: name.into(), entries, capacity: capacity.into(), bytes }
        };
        self.sizes.maps(cpus).into_iter().map(entry).collect()
    }
}

/// One for each interface that an uplink means and that has no XDP program.
fn missing(attached: &[ProgramStatus], places: &[Place], refused: &[preflight::Finding]) -> Vec<ProgramStatus> {
    let attached = attached.iter().filter(|program| program.attach_point == "xdp");
    let attached: BTreeSet<&str> = attached.map(|program| program.interface.as_str()).collect();
    let awaited = places.iter().map(|place| (place.wanted.interface.as_str(), None));
    let refused = refused.iter().map(|finding| (finding.object.as_str(), Some(&finding.found)));
    // Each once: two uplinks may be refused for the same interface.
    let missing: BTreeMap<&str, Option<&String>> =
        awaited.chain(refused).filter(|(interface, _)| !attached.contains(interface)).collect();
    let program = |(interface, error): (&str, Option<&String>)| ProgramStatus {
        name: "sluice_xdp".into(),
        interface: interface.to_owned(),
        attach_point: "xdp".into(),
        mode: None,
        program_id: None,
        error: error.cloned(),
    };
    missing.into_iter().map(program).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Uplink, XdpModeChoice},
        preflight::{Check, Finding},
        status::AttachMode,
    };

    #[test]
    fn a_bond_is_attached_where_its_members_are() {
        let attached = |interface: &str| ProgramStatus {
            name: "sluice_xdp".into(),
            interface: interface.into(),
            attach_point: "xdp".into(),
            mode: Some(AttachMode::Native),
            program_id: Some(7),
            error: None,
        };
        let place = |index, member: &str| Place {
            index,
            wanted: Uplink { interface: member.into(), mode: XdpModeChoice::Auto },
            exits: vec![9],
        };
        let bond = [place(2, "eth0"), place(3, "eth1")];
        let rows = |attached: &[ProgramStatus], refused: &[Finding]| -> Vec<(String, Option<String>)> {
            missing(attached, &bond, refused).into_iter().map(|row| (row.interface, row.error)).collect()
        };
        assert_eq!(rows(&[attached("eth0"), attached("eth1")], &[]), []);
        assert_eq!(rows(&[attached("eth0")], &[]), [("eth1".into(), None)]);
        let refusal = |interface: &str| Finding::new(Check::UplinkMissing, interface, "there is none", "make it");
        let gone = [refusal("eth1"), refusal("eth5"), refusal("eth5")];
        let why = Some("there is none".to_owned());
        assert_eq!(rows(&[attached("eth0")], &gone), [("eth1".into(), why.clone()), ("eth5".into(), why)]);
    }
}
