//! Families of metrics of what the agent is and does, the data plane, services, backends.

use std::fmt;

use lb_common::abi::ABI_VERSION;

use super::{
    BaseUnit::{self, Bytes, Seconds},
    Family,
    Kind::{self, Counter, Gauge, Histogram, Info},
    Samples,
    Source::{self, Agent, Backend, Map, Other, Reason, Service},
};
use crate::status::{
    AttachMode, BackendState, BackendStatus, HealthState, PROGRAMMING_BOUNDS_MICROSECONDS, Programming, Status,
};

const MICROSECONDS_PER_SECOND: f64 = 1e6;

/// All of them.
pub(super) const FAMILIES: &[Family] = &[
    family("sluice_build", None, Info, "Version of the agent, and of the maps' layout", BUILD),
    family(
        "sluice_start_time",
        Some(Seconds),
        Gauge,
        "When the agent started, since 1970 UTC",
        Agent(|view| view.status.since_unix_seconds),
    ),
    family(
        "sluice_uptime",
        Some(Seconds),
        Gauge,
        "How long the agent has run, by a clock that nobody sets",
        Agent(|view| view.status.uptime_seconds),
    ),
    family(
        "sluice_waiting",
        None,
        Gauge,
        "1 while some of what is wanted is not in force, as an uplink that is missing; the status says what",
        Agent(|view| view.status.waiting.is_some().into()),
    ),
    family(
        "sluice_configuration_refused",
        None,
        Gauge,
        "1 while the newest configuration is refused and the one before is in force",
        Agent(|view| view.status.last_error.is_some().into()),
    ),
    family(
        "sluice_configuration_applied_timestamp",
        Some(Seconds),
        Gauge,
        "When the configuration in force was taken, since 1970 UTC",
        Agent(|view| view.status.activity.configured_unix_seconds),
    ),
    family(
        "sluice_reloads",
        None,
        Counter,
        "Configurations that were read after the start, by whether they were applied or refused",
        RELOADS,
    ),
    family(
        "sluice_programming_duration",
        Some(Seconds),
        Histogram,
        "From the moment that the agent sees a change of the configuration or of the network until the maps are written; \
         changes that write nothing are not counted",
        PROGRAMMING,
    ),
    family(
        "sluice_map_writes",
        None,
        Counter,
        "Writes to the maps, by whether they were done or failed; what failed is tried again",
        MAP_WRITES,
    ),
    family(
        "sluice_netlink_overruns",
        None,
        Counter,
        "How often the kernel had more to tell than fits; everything is read anew then",
        Agent(|view| view.status.activity.netlink_overruns),
    ),
    family(
        "sluice_self_tests",
        None,
        Counter,
        "Self-tests of the ways into pods, by whether a frame got through",
        SELF_TESTS,
    ),
    family(
        "sluice_uplink_xdp_mode",
        None,
        Gauge,
        "1 for the mode in which the interface, an uplink's member or parent too, has its XDP program: native, generic, or none",
        UPLINKS,
    ),
    family("sluice_programs_attached", None, Gauge, "Interfaces that the program is attached to", PROGRAMS),
    family("sluice_map_entries", None, Gauge, "Entries in use, of maps that are counted", Map(|map| map.entries)),
    family("sluice_map_capacity", None, Gauge, "Most entries of the map", Map(|map| Some(map.capacity))),
    family(
        "sluice_map_memory",
        Some(Bytes),
        Gauge,
        "Memory of the map, by the kernel's account",
        Map(|map| Some(map.bytes)),
    ),
    family(
        "sluice_reason_packets",
        None,
        Counter,
        "Packets by outcome; docs/dataplane.md says what each reason means",
        Reason(|reason| reason.packets),
    ),
    family("sluice_reason", Some(Bytes), Counter, "Bytes of whole frames by outcome", Reason(|reason| reason.bytes)),
    family(
        "sluice_services",
        None,
        Gauge,
        "Configured services: (VIP, protocol, port)",
        Agent(|view| view.status.services.len() as u64),
    ),
    family(
        "sluice_backends",
        None,
        Gauge,
        "Configured backends of all services, by whether they can take packets",
        BACKENDS,
    ),
    family(
        "sluice_service_packets",
        None,
        Counter,
        "Packets from clients that were forwarded",
        Service(|service| service.packets),
    ),
    family(
        "sluice_service",
        Some(Bytes),
        Counter,
        "Bytes of whole frames from clients that were forwarded",
        Service(|service| service.bytes),
    ),
    family(
        "sluice_service_reply_packets",
        None,
        Counter,
        "Packets to clients that left under the VIP",
        Service(|service| service.reply_packets),
    ),
    family(
        "sluice_service_reply",
        Some(Bytes),
        Counter,
        "Bytes of whole frames to clients that left under the VIP",
        Service(|service| service.reply_bytes),
    ),
    family(
        "sluice_service_backends",
        None,
        Gauge,
        "Configured backends of the service",
        Service(|service| service.backends.len() as u64),
    ),
    family(
        "sluice_service_backends_ready",
        None,
        Gauge,
        "Backends of the service that can take packets",
        Service(|service| service.backends.iter().filter(|of| of.state == BackendState::Ready).count() as u64),
    ),
    family(
        "sluice_service_backends_unhealthy",
        None,
        Gauge,
        "Backends of the service that fail their health check; those of a service without one never do",
        Service(|service| service.backends.iter().filter(|of| is_unhealthy(of)).count() as u64),
    ),
    family(
        "sluice_service_fails_open",
        None,
        Gauge,
        "1 while all backends of the service fail their health check, and all get packets therefore",
        Service(|service| service.fails_open.into()),
    ),
    family(
        "sluice_service_slots",
        None,
        Gauge,
        "Slots of the Maglev table; 0 without one",
        Service(|service| service.slots.into()),
    ),
    family(
        "sluice_service_moved_slots",
        None,
        Gauge,
        "Slots whose packets are offered to earlier owners",
        Service(|service| service.moved_slots.into()),
    ),
    family(
        "sluice_service_dropped_owners",
        None,
        Counter,
        "Earlier owners that were dropped from a slot although their sessions may live",
        Service(|service| service.dropped_owners),
    ),
    family("sluice_backend_packets", None, Counter, "Packets sent to the backend", Backend(|backend| backend.packets)),
    family(
        "sluice_backend",
        Some(Bytes),
        Counter,
        "Bytes of whole frames sent to the backend",
        Backend(|backend| backend.bytes),
    ),
    family(
        "sluice_backend_reply_packets",
        None,
        Counter,
        "Packets from the backend that left under the VIP",
        Backend(|backend| backend.reply_packets),
    ),
    family(
        "sluice_backend_reply",
        Some(Bytes),
        Counter,
        "Bytes of whole frames from the backend that left under the VIP",
        Backend(|backend| backend.reply_bytes),
    ),
    family(
        "sluice_backend_ready",
        None,
        Gauge,
        "1 while the backend can take packets",
        Backend(|backend| (backend.state == BackendState::Ready).into()),
    ),
    family(
        "sluice_backend_series_omitted",
        None,
        Gauge,
        "Backends without series of their own, because more are configured than observation.backendSeries",
        Agent(|view| view.omitted() as u64),
    ),
];

pub(super) const fn family(
    name: &'static str,
    unit: Option<BaseUnit>,
    kind: Kind,
    help: &'static str,
    source: Source,
) -> Family {
    Family { name, unit, kind, help, source }
}

const BUILD: Source = Other {
    labels: &["version", "abi"],
    series: "1",
    samples: |status, out| out.info(&[&status.version, &ABI_VERSION.to_string()]),
};

const RELOADS: Source = Other {
    labels: &["result"],
    series: "2",
    samples: |status, out| {
        out.put(&["applied"], status.activity.reloads_applied)?;
        out.put(&["refused"], status.activity.reloads_refused)
    },
};

const PROGRAMMING: Source = Other {
    labels: &["cause"],
    series: "2, with 13 buckets each",
    samples: |status, out| status.activity.programming.iter().try_for_each(|of| programming(of, out)),
};

fn programming(of: &Programming, out: &mut Samples) -> fmt::Result {
    let bounds = PROGRAMMING_BOUNDS_MICROSECONDS.iter().map(|bound| *bound as f64 / MICROSECONDS_PER_SECOND);
    let bounds = bounds.chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(of.buckets).collect();
    out.histogram(&[of.cause.name()], &buckets, of.sum_microseconds as f64 / MICROSECONDS_PER_SECOND)
}

const MAP_WRITES: Source = Other {
    labels: &["result"],
    series: "2",
    samples: |status, out| {
        out.put(&["done"], status.activity.map_writes)?;
        out.put(&["failed"], status.activity.map_write_failures)
    },
};

const SELF_TESTS: Source = Other {
    labels: &["rung", "result"],
    series: "8",
    samples: |status, out| {
        status.activity.self_tests.iter().try_for_each(|tests| {
            out.put(&[tests.rung.name(), "passed"], tests.passed)?;
            out.put(&[tests.rung.name(), "failed"], tests.failed)
        })
    },
};

const UPLINKS: Source = Other {
    labels: &["interface", "mode"],
    series: "3 for each interface that an uplink means, of which there are at most 64",
    samples: uplinks,
};

fn is_unhealthy(backend: &BackendStatus) -> bool {
    backend.health.as_ref().is_some_and(|health| health.state == HealthState::Unhealthy)
}

fn uplinks(status: &Status, out: &mut Samples) -> fmt::Result {
    let uplinks = status.programs.iter().filter(|program| program.attach_point == "xdp");
    for uplink in uplinks {
        for (mode, name) in
            [(Some(AttachMode::Native), "native"), (Some(AttachMode::Generic), "generic"), (None, "none")]
        {
            out.put(&[&uplink.interface, name], (uplink.mode == mode).into())?;
        }
    }
    Ok(())
}

const PROGRAMS: Source =
    Other { labels: &["program"], series: "programs that are attached, at most 5", samples: programs };

fn programs(status: &Status, out: &mut Samples) -> fmt::Result {
    let mut attached: std::collections::BTreeMap<&str, u64> = std::collections::BTreeMap::new();
    for program in &status.programs {
        *attached.entry(&program.name).or_default() += u64::from(program.mode.is_some());
    }
    attached.iter().try_for_each(|(program, interfaces)| out.put(&[program], *interfaces))
}

const BACKENDS: Source = Other { labels: &["state"], series: "states, 7", samples: backends };

fn backends(status: &Status, out: &mut Samples) -> fmt::Result {
    let mut counts = BackendState::ALL.map(|state| (state, 0));
    for backend in status.services.iter().flat_map(|service| &service.backends) {
        if let Some((_, count)) = counts.iter_mut().find(|(state, _)| *state == backend.state) {
            *count += 1;
        }
    }
    counts.iter().try_for_each(|(state, count)| out.put(&[&state.name().replace(' ', "_")], *count))
}
