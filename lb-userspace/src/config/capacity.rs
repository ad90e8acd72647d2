//! Whether what the services need fits the maps, whose sizes are fixed while the agent runs.

use super::{
    problem::{Position, Problem},
    raw::{RawCapacities, RawLimits},
    scalar::Scalar,
};
use crate::{
    model::{Capacities, Limits, Service},
    plan::maglev,
};

/// A service and its tables cost the agent about 1 KiB; more than this is not a balancer of one node any more.
pub(super) const SERVICES_MAX: u32 = 1 << 16;
/// Every backend is four times 64 bytes of a preallocated array; the pods of a cluster of the largest supported size fit.
pub(super) const BACKENDS_MAX: u32 = 1 << 20;
/// The smallest table and the second range that a change of it needs.
pub(super) const MAGLEV_SLOTS_MIN: u32 = 2 * TABLE_SLOTS_MIN;
/// 4 bytes each: 1 GiB.
pub(super) const MAGLEV_SLOTS_MAX: u32 = 1 << 28;
/// A hash entry is about 80 bytes: 1.3 GiB.
pub(super) const BYPASSES_MAX: u32 = 1 << 24;
/// One set of the 4-way cache.
pub(super) const FLOWS_MIN: u32 = 4;
/// 32 bytes each: 2 GiB.
pub(super) const FLOWS_MAX: u32 = 1 << 26;
/// One set of the 8-way table.
pub(super) const FRAGMENTS_MIN: u32 = 8;
/// 64 bytes each: 1 GiB.
pub(super) const FRAGMENTS_MAX: u32 = 1 << 24;
/// Per CPU and second; above it the answers are a flood of their own.
pub(super) const LIMIT_MAX: u32 = 1_000_000;

/// Slots of the smallest Maglev table.
const TABLE_SLOTS_MIN: u32 = 128;

pub(super) fn capacities(raw: Option<&RawCapacities>, problems: &mut Vec<Problem>) -> Capacities {
    let default = Capacities::default();
    let Some(raw) = raw else { return default };
    let mut take = |value: Option<&Scalar>, otherwise, read: &dyn Fn(&Scalar) -> Result<u32, Problem>| {
        value
            .map(read)
            .transpose()
            .unwrap_or_else(|problem| {
                problems.push(problem);
                None
            })
            .unwrap_or(otherwise)
    };
    Capacities {
        services: take(raw.services.as_ref(), default.services, &|value| value.number("services", 1..=SERVICES_MAX)),
        backends: take(raw.backends.as_ref(), default.backends, &|value| value.number("backends", 1..=BACKENDS_MAX)),
        maglev_slots: take(raw.maglev_slots.as_ref(), default.maglev_slots, &|value| {
            value.power_of_two("maglevSlots", MAGLEV_SLOTS_MIN..=MAGLEV_SLOTS_MAX)
        }),
        bypasses: take(raw.bypasses.as_ref(), default.bypasses, &|value| value.number("bypasses", 1..=BYPASSES_MAX)),
        flows: take(raw.flows.as_ref(), default.flows, &|value| value.power_of_two("flows", FLOWS_MIN..=FLOWS_MAX)),
        fragments: take(raw.fragments.as_ref(), default.fragments, &|value| {
            value.power_of_two("fragments", FRAGMENTS_MIN..=FRAGMENTS_MAX)
        }),
    }
}

pub(super) fn limits(raw: Option<&RawLimits>, problems: &mut Vec<Problem>) -> Limits {
    let default = Limits::default();
    let Some(raw) = raw else { return default };
    let mut take = |key, value: Option<&Scalar>, otherwise| {
        value
            .map(|value| value.number(key, 0..=LIMIT_MAX))
            .transpose()
            .unwrap_or_else(|problem| {
                problems.push(problem);
                None
            })
            .unwrap_or(otherwise)
    };
    Limits {
        refusals: take("refusals", raw.refusals.as_ref(), default.refusals),
        echo_replies: take("echoReplies", raw.echo_replies.as_ref(), default.echo_replies),
        icmp_errors: take("icmpErrors", raw.icmp_errors.as_ref(), default.icmp_errors),
    }
}

/// Counts what `services` need and refuses what the maps cannot hold. `place` is the line of the services.
pub(super) fn check(
    services: &[Service],
    capacities: &Capacities,
    raw: Option<&RawCapacities>,
    place: Position,
    problems: &mut Vec<Problem>,
) {
    let at = |value: Option<&Scalar>| value.map_or(place, |value| value.position);
    let backends = services.iter().map(|service| service.backends.len()).sum();
    let counted = [
        ("services", services.len(), capacities.services, raw.and_then(|raw| raw.services.as_ref()), SERVICES_MAX),
        ("backends", backends, capacities.backends, raw.and_then(|raw| raw.backends.as_ref()), BACKENDS_MAX),
    ];
    for (key, needed, capacity, value, most) in counted {
        if needed as u64 > u64::from(capacity) {
            problems.push(Problem::new(
                at(value),
                format!("{needed} {key} do not fit the capacity of {capacity}"),
                format!("set capacities.{key} to at least {needed} (at most {most}), or configure fewer"),
            ));
        }
    }
    check_maglev(services, capacities.maglev_slots, at(raw.and_then(|raw| raw.maglev_slots.as_ref())), problems);
}

fn check_maglev(services: &[Service], capacity: u32, place: Position, problems: &mut Vec<Problem>) {
    let needed = maglev_slots(services);
    if needed <= u64::from(capacity) {
        return;
    }
    let largest = services.iter().max_by_key(|service| service_slots(service));
    let hungry = largest.map_or_else(String::new, |service| {
        format!(" (the most by `{}`: {} slots)", service.name, service_slots(service))
    });
    let advice = match needed.next_power_of_two() {
        enough if enough <= u64::from(MAGLEV_SLOTS_MAX) => {
            format!("set capacities.maglevSlots to {enough}, or let the weights of a service lie closer together")
        }
        _ => "let the weights of each service lie closer together: slots follow from sum / smallest".to_owned(),
    };
    problems.push(Problem::new(
        place,
        format!("the services need {needed} Maglev slots{hungry} and the capacity is {capacity}"),
        advice,
    ));
}

/// Slots that the services need: a changed table is written beside the old one, and all may change at once.
pub fn maglev_slots(services: &[Service]) -> u64 {
    2 * services.iter().map(|service| u64::from(service_slots(service))).sum::<u64>()
}

fn service_slots(service: &Service) -> u32 {
    let weights = service.backends.iter().filter(|backend| !backend.drain).map(|backend| backend.weight);
    maglev::table_size(weights).slots() as u32
}
