//! [`RawConfig`] to a [`Snapshot`]: every problem is collected, and only a file without any is taken.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    path::PathBuf,
};

use serde_saphyr::Spanned;

use super::{
    PIN_DIRECTORY_DEFAULT, RUN_DIRECTORY_DEFAULT, announce, bgp, capacity, observation,
    problem::{Position, Problem},
    raw::{RawConfig, RawNode, RawUplink},
    scalar::{Scalar, position, quote},
    service::Services,
};
use crate::{
    model::{Snapshot, UPLINKS_MAX, Uplink, XdpModeChoice},
    status::SOCKET_NAME,
};

/// `IFNAMSIZ` with its NUL (include/uapi/linux/if.h).
pub(super) const INTERFACE_BYTES_MAX: usize = 15;
/// `PATH_MAX`, less what is appended for the name of a map.
pub(super) const PIN_DIRECTORY_BYTES_MAX: usize = 3840;
/// `sun_path` of unix(7) with its NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// What the socket's name leaves of that.
pub(super) const RUN_DIRECTORY_BYTES_MAX: usize = SOCKET_PATH_BYTES_MAX - SOCKET_NAME.len() - 1;
/// Addresses of one node; each is compared with each VIP on the packet's path to the kernel.
pub(super) const NODE_ADDRESSES_MAX: usize = 64;

pub(super) const MODES: [(&str, XdpModeChoice); 3] =
    [("auto", XdpModeChoice::Auto), ("native", XdpModeChoice::Native), ("generic", XdpModeChoice::Generic)];

pub(super) fn validate(raw: &RawConfig) -> Result<Snapshot, Vec<Problem>> {
    let mut problems = Vec::new();
    let nodes = node_addresses(raw.node.as_ref(), &mut problems);
    let uplinks = uplinks(raw.uplinks.as_ref(), &mut problems);
    let mut directory = |value: &Option<Scalar>, key, otherwise: &str, bytes_max, why| match value {
        None => PathBuf::from(otherwise),
        Some(value) => value.directory(key, bytes_max, why).unwrap_or_else(|problem| {
            problems.push(problem);
            PathBuf::new()
        }),
    };
    let why = "names of maps are appended";
    let pin_directory =
        directory(&raw.pin_directory, "pinDirectory", PIN_DIRECTORY_DEFAULT, PIN_DIRECTORY_BYTES_MAX, why);
    let why = "a socket is made in it, and the path of a socket has at most 107";
    let run_directory =
        directory(&raw.run_directory, "runDirectory", RUN_DIRECTORY_DEFAULT, RUN_DIRECTORY_BYTES_MAX, why);
    let announce = announce::announce(raw.announce.as_ref(), &uplinks, &mut problems);
    let limits = capacity::limits(raw.limits.as_ref(), &mut problems);
    let observation = observation::observation(raw.observation.as_ref(), &mut problems);
    let unsized_problems = problems.len();
    let capacities = capacity::capacities(raw.capacities.as_ref(), &mut problems);
    let capacities_known = problems.len() == unsized_problems;

    let services = match &raw.services {
        None => {
            problems.push(missing(Position::START, "services", "write services: [] for a node without any"));
            Vec::new()
        }
        Some(raw_services) => {
            let own: Vec<_> = nodes.iter().copied().chain(bgp::own_addresses(raw.announce.as_ref())).collect();
            let services = Services::read(raw_services, &own, &mut problems);
            // Against a default in place of a wrong capacity, this would only be noise.
            if capacities_known && let Some(first) = raw_services.first() {
                let place = position(&first.referenced);
                capacity::check(&services, &capacities, raw.capacities.as_ref(), place, &mut problems);
            }
            services
        }
    };
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Snapshot {
        node_addresses: nodes.iter().map(|(address, _)| *address).collect(),
        uplinks,
        pin_directory,
        run_directory,
        capacities,
        limits,
        observation,
        announce,
        services,
    })
}

pub(super) fn missing(place: Position, key: &str, advice: &str) -> Problem {
    Problem::new(place, format!("the key `{key}` is missing"), advice)
}

/// In the order of the file, each with its place.
fn node_addresses(node: Option<&Spanned<RawNode>>, problems: &mut Vec<Problem>) -> Vec<(IpAddr, Position)> {
    const EXAMPLE: &str = "write node: { addresses: [192.0.2.1] } with the addresses of this machine";
    let Some(node) = node else {
        problems.push(missing(Position::START, "node", EXAMPLE));
        return Vec::new();
    };
    let Some(list) = &node.value.addresses else {
        problems.push(missing(position(&node.referenced), "addresses", EXAMPLE));
        return Vec::new();
    };
    let place = position(&list.referenced);
    bounded("addresses", list.value.len(), 1..=NODE_ADDRESSES_MAX, place, problems);
    let mut seen = HashMap::new();
    let mut addresses = Vec::new();
    for scalar in &list.value {
        match scalar.unicast("node address") {
            Err(problem) => problems.push(problem),
            Ok(address) => match seen.entry(address) {
                Entry::Occupied(first) => problems.push(repeated(scalar, "node address", *first.get())),
                Entry::Vacant(slot) => {
                    slot.insert(scalar.position);
                    addresses.push((address, scalar.position));
                }
            },
        }
    }
    addresses
}

fn uplinks(list: Option<&Spanned<Vec<Spanned<RawUplink>>>>, problems: &mut Vec<Problem>) -> Vec<Uplink> {
    const EXAMPLE: &str = "write uplinks: [{ interface: eth0 }] with the interfaces that VIP traffic arrives on";
    let Some(list) = list else {
        problems.push(missing(Position::START, "uplinks", EXAMPLE));
        return Vec::new();
    };
    bounded("uplinks", list.value.len(), 1..=UPLINKS_MAX as usize, position(&list.referenced), problems);
    let mut seen = HashMap::new();
    let mut uplinks = Vec::new();
    for raw in &list.value {
        let Some(interface) = &raw.value.interface else {
            problems.push(missing(position(&raw.referenced), "interface", "write interface: eth0"));
            continue;
        };
        if let Err(problem) = interface_name(interface) {
            problems.push(problem);
        }
        if let Some(first) = seen.insert(interface.text.clone(), interface.position) {
            problems.push(repeated(interface, "uplink", first));
        }
        let mode = raw.value.mode.as_ref().map_or(Ok(XdpModeChoice::Auto), |mode| mode.choice("mode", &MODES));
        match mode {
            Err(problem) => problems.push(problem),
            Ok(mode) => uplinks.push(Uplink { interface: interface.text.clone(), mode }),
        }
    }
    uplinks
}

/// The rules of `dev_valid_name` (net/core/dev.c).
pub(super) fn interface_name(name: &Scalar) -> Result<(), Problem> {
    let text = name.text.as_str();
    let refuse = |why: String| Err(name.problem(why, "write a name that `ip link` shows"));
    match text {
        "" => refuse("the interface name is empty".to_owned()),
        _ if text.len() > INTERFACE_BYTES_MAX => refuse(format!(
            "interface {} has {} bytes, at most {INTERFACE_BYTES_MAX} are possible",
            quote(text),
            text.len()
        )),
        "." | ".." => refuse(format!("interface {} is not a name that Linux allows", quote(text))),
        _ if text.contains(|c: char| matches!(c, '/' | ':' | '\0') || c.is_ascii_whitespace()) => {
            refuse(format!("interface {} is not a name that Linux allows", quote(text)))
        }
        _ => Ok(()),
    }
}

pub(super) fn repeated(scalar: &Scalar, what: &str, first: Position) -> Problem {
    scalar.problem(
        format!("{what} {} is already written in line {}", quote(&scalar.text), first.line),
        "remove one of them",
    )
}

/// A list whose length is not in `range` is a problem.
pub(super) fn bounded(
    key: &str,
    length: usize,
    range: std::ops::RangeInclusive<usize>,
    place: Position,
    problems: &mut Vec<Problem>,
) {
    if range.contains(&length) {
        return;
    }
    let what = if length == 0 { format!("the list `{key}` is empty") } else { format!("`{key}` has {length} entries") };
    problems.push(Problem::new(place, what, format!("write {} to {} entries", range.start(), range.end())));
}
