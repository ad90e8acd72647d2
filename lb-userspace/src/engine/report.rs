//! The agent's state in the words of the status.

use std::time::SystemTime;

use lb_common::reason::Reason;

use super::Engine;
use crate::{
    model::Service,
    plan::planner::{EndpointKey, VipKey},
    status::{BackendState, BackendStatus, MapStatus, ReasonStatus, ServiceStatus, Status},
};

impl Engine {
    /// Everything that the status shows, as it is now.
    pub(super) fn status(&self) -> Status {
        let uptime = self.started.elapsed();
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(uptime);
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            since_unix_seconds: since.as_secs(),
            uptime_seconds: uptime.as_secs(),
            node_addresses: self.snapshot.node_addresses.clone(),
            programs: self.attached.programs().cloned().collect(),
            services: self.snapshot.services.iter().map(|service| self.service_status(service)).collect(),
            reasons: self.reason_status(),
            maps: self.map_status(),
            last_error: self.refusal.clone(),
            waiting: self.waiting.clone(),
        }
    }

    fn service_status(&self, service: &Service) -> ServiceStatus {
        let key = VipKey { address: service.vip, protocol: service.protocol, port: service.port };
        let installed = self.planner.services().get(&key);
        let traffic = installed.and_then(|i| self.tables.service_traffic(i.value.id).ok()).unwrap_or_default();
        let shares = installed.map_or(&[][..], |installed| &installed.shares);
        let backends = service.backends.iter().enumerate().map(|(at, backend)| {
            let finding = self.findings.get(&(backend.address, service.rung));
            let id = self.planner.backends().get(&EndpointKey::of(service, backend)).map(|b| b.id);
            let traffic = id.and_then(|id| self.tables.backend_traffic(id).ok()).unwrap_or_default();
            BackendStatus {
                address: backend.address,
                port: backend.port,
                weight: backend.weight,
                drain: backend.drain,
                slots: shares.get(at).copied().unwrap_or(0),
                rung: finding.and_then(|finding| finding.rung),
                state: finding.map_or(BackendState::Pending, |finding| finding.state),
                reason: finding.and_then(|finding| finding.reason.clone()),
                interface: finding.and_then(|finding| finding.interface().map(str::to_owned)),
                packets: traffic.packets,
                bytes: traffic.bytes,
            }
        });
        ServiceStatus {
            name: service.name.clone(),
            vip: service.vip,
            protocol: service.protocol,
            port: service.port,
            replies: service.replies,
            packets: traffic.packets,
            bytes: traffic.bytes,
            slots: installed.filter(|i| i.value.members_count != 0).map_or(0, |i| 1 << i.value.slots_log2),
            backends: backends.collect(),
        }
    }

    fn reason_status(&self) -> Vec<ReasonStatus> {
        let counted = self.tables.reasons().unwrap_or_default();
        let status = |(reason, counter): (Reason, lb_common::abi::Counter)| ReasonStatus {
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
            "backends" => Some(self.planner.backends().len()),
            "endpoints" => Some(self.planner.backends().values().filter(|b| b.endpoint.is_some()).count()),
            "bypasses" => Some(bypasses as usize),
            "flows" => Some(flows as usize),
            _ => None,
        };
        let cpus = aya::util::nr_cpus().unwrap_or(1) as u64;
        let entry = |(name, capacity, bytes): (&str, u32, u64)| {
            // A bucket of the flow cache holds several.
            let capacity = if name == "flows" { capacity * lb_common::flow::WAYS as u32 } else { capacity };
            let entries = used(name).map(|entries| entries as u64);
            MapStatus { name: name.into(), entries, capacity: capacity.into(), bytes }
        };
        self.sizes.maps(cpus).into_iter().map(entry).collect()
    }
}
