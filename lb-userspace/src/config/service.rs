//! The services of the file: each entry with its ports becomes one [`Service`] for each port.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    net::IpAddr,
    ops::RangeInclusive,
    time::Duration,
};

use serde_saphyr::Spanned;

use super::{
    health,
    problem::{Position, Problem},
    raw::{RawBackend, RawService},
    scalar::{Scalar, position, quote},
    validate::{bounded, missing},
};
use crate::{
    model::{Affinity, Backend, Protocol, ReplyMode, Rung, RungChoice, SELF_TEST_VIPS, Service},
    plan::maglev,
};

/// Largest weight. With the smallest it bounds a table to a thousand times what equal weights need.
pub(super) const WEIGHT_MAX: u16 = 1000;
/// Weight of a backend that names none.
pub(super) const WEIGHT_DEFAULT: u16 = 1;
/// A Kubernetes name; with its namespace, twice that would do as well.
pub(super) const NAME_BYTES_MAX: usize = 253;
/// Ports of one entry; each is a service with a table of its own.
pub(super) const PORTS_MAX: usize = 4096;
/// Backends of one entry: as many owners as a Maglev table tells apart.
pub(super) const BACKENDS_MAX: usize = maglev::NO_OWNER as usize;

/// How long a client keeps its backend, in seconds: what Kubernetes allows (`ClientIPConfig.timeoutSeconds`).
pub(super) const AFFINITY_SECONDS: RangeInclusive<u32> = 1..=86_400;
/// The same where nothing is said.
pub(super) const AFFINITY_SECONDS_DEFAULT: u32 = 10_800;

pub(super) const AFFINITIES: [(&str, bool); 2] = [("None", false), ("ClientIP", true)];
pub(super) const PROTOCOLS: [(&str, Protocol); 2] = [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp)];
pub(super) const REPLIES: [(&str, ReplyMode); 3] =
    [("static", ReplyMode::Static), ("recorded", ReplyMode::Recorded), ("none", ReplyMode::None)];
pub(super) const RUNGS: [(&str, Option<Rung>); 5] = [
    ("auto", None),
    ("redirect", Some(Rung::Redirect)),
    ("peer", Some(Rung::Peer)),
    ("stack", Some(Rung::Stack)),
    ("direct", Some(Rung::Direct)),
];

/// Reads all entries; holds what one entry must not have in common with another.
pub(super) struct Services<'a> {
    nodes: HashMap<IpAddr, Position>,
    /// Where each backend address is first named.
    pods: HashMap<IpAddr, Position>,
    names: HashMap<&'a str, Position>,
    /// The entry and place of each (VIP, protocol, port).
    taken: HashMap<(IpAddr, Protocol, u16), (&'a str, Position)>,
    problems: &'a mut Vec<Problem>,
}

/// A backend as the file has it, without the port that the service's stands in for.
struct Target {
    address: IpAddr,
    port: Option<u16>,
    weight: u16,
    drain: bool,
    position: Position,
    /// Where the port stands, if it is written.
    port_position: Position,
}

impl<'a> Services<'a> {
    pub(super) fn read(
        entries: &'a [Spanned<RawService>],
        nodes: &[(IpAddr, Position)],
        problems: &'a mut Vec<Problem>,
    ) -> Vec<Service> {
        let mut pods = HashMap::new();
        let backends = entries.iter().flat_map(|entry| entry.value.backends.iter().flat_map(|list| &list.value));
        for address in backends.filter_map(|backend| backend.value.address.as_ref()) {
            if let Ok(pod) = address.text.parse() {
                pods.entry(pod).or_insert(address.position);
            }
        }
        let mut reader = Services {
            nodes: nodes.iter().copied().collect(),
            pods,
            names: HashMap::new(),
            taken: HashMap::new(),
            problems,
        };
        entries.iter().flat_map(|entry| reader.entry(&entry.value, position(&entry.referenced))).collect()
    }

    fn note<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.problems.push(problem)).ok()
    }

    /// The value of a key that must be there.
    fn required(&mut self, value: Option<&'a Scalar>, place: Position, key: &str, advice: &str) -> Option<&'a Scalar> {
        if value.is_none() {
            self.problems.push(missing(place, key, advice));
        }
        value
    }

    /// The services of one entry. Empty where something is wrong that the services cannot be made without.
    fn entry(&mut self, raw: &'a RawService, place: Position) -> Vec<Service> {
        let name = self.name(raw.name.as_ref(), place);
        let vip = self.vip(raw.vip.as_ref(), place);
        let protocol = self
            .required(raw.protocol.as_ref(), place, "protocol", "write protocol: TCP or protocol: UDP")
            .and_then(|value| self.note(value.choice("protocol", &PROTOCOLS)));
        let ports = self.ports(raw.ports.as_ref(), place);
        let rung = raw.rung.as_ref().map_or(Ok(None), |rung| rung.choice("rung", &RUNGS));
        let rung = self.note(rung);
        let is_direct = rung == Some(Some(Rung::Direct));
        let replies = protocol.and_then(|protocol| self.replies(raw.replies.as_ref(), protocol, is_direct));
        let assign = self.assign_vip(raw.assign_vip.as_ref(), is_direct || rung.is_none());
        let affinity = self.affinity(raw);
        let health_check = raw.health_check.as_ref().and_then(|raw| health::check(raw, protocol, self.problems));
        let targets = self.targets(raw.backends.as_ref(), vip);
        self.check_same_backend(&targets, &ports);
        if is_direct {
            self.check_same_port(&targets, &ports);
        }

        let (Some(name), Some(vip), Some(protocol)) = (name, vip, protocol) else {
            return Vec::new();
        };
        self.check_taken(name, vip, protocol, &ports);
        let (Some(replies), Some(rung), Some(assign), Some(affinity)) = (replies, rung, assign, affinity) else {
            return Vec::new();
        };
        let rung = match rung {
            None => RungChoice::Auto,
            Some(Rung::Direct) => RungChoice::Direct { vip, assign },
            Some(rung) => RungChoice::Only(rung),
        };
        let service = |&(port, _): &(u16, Position)| Service {
            name: name.to_owned(),
            vip,
            protocol,
            port,
            replies,
            rung,
            affinity,
            health_check: health_check.clone(),
            backends: targets.iter().map(|target| target.backend(port)).collect(),
        };
        ports.iter().map(service).collect()
    }

    fn name(&mut self, name: Option<&'a Scalar>, place: Position) -> Option<&'a str> {
        let name = self.required(name, place, "name", "write name: with a word that tells the service from others")?;
        let text = name.text.as_str();
        if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            self.problems.push(name.problem(
                format!("the service name {} cannot be used", quote(text)),
                format!("write 1 to {NAME_BYTES_MAX} ASCII letters, digits and punctuation, without spaces"),
            ));
        }
        match self.names.entry(text) {
            Entry::Occupied(first) => self.problems.push(name.problem(
                format!("another service is called {} too, in line {}", quote(text), first.get().line),
                "give each service a name of its own",
            )),
            Entry::Vacant(slot) => {
                slot.insert(name.position);
            }
        }
        Some(text)
    }

    fn vip(&mut self, vip: Option<&'a Scalar>, place: Position) -> Option<IpAddr> {
        let scalar = self.required(vip, place, "vip", "write vip: with the virtual address of the service")?;
        let vip = self.note(scalar.unicast("VIP"))?;
        if SELF_TEST_VIPS.contains(&vip) {
            let what = format!("VIP {} is what the agent tests pods with", quote(&scalar.text));
            self.problems.push(scalar.problem(what, "choose another address"));
        }
        let owner = match (self.nodes.get(&vip), self.pods.get(&vip)) {
            (Some(node), _) => Some(("this node, see", node)),
            (None, Some(pod)) => Some(("a backend, see", pod)),
            (None, None) => None,
        };
        if let Some((owner, Position { line, .. })) = owner {
            self.problems.push(scalar.problem(
                format!("VIP {vip} is the address of {owner} line {line}"),
                "choose an address that no machine and no pod has",
            ));
        }
        Some(vip)
    }

    fn ports(&mut self, list: Option<&Spanned<Vec<Scalar>>>, place: Position) -> Vec<(u16, Position)> {
        let Some(list) = list else {
            self.problems.push(missing(place, "ports", "write ports: [162]"));
            return Vec::new();
        };
        bounded("ports", list.value.len(), 1..=PORTS_MAX, position(&list.referenced), self.problems);
        let ports = list.value.iter();
        ports.filter_map(|port| self.note(port.port()).map(|number| (number, port.position))).collect()
    }

    fn replies(&mut self, replies: Option<&Scalar>, protocol: Protocol, is_direct: bool) -> Option<ReplyMode> {
        let default = match protocol {
            Protocol::Udp if !is_direct => ReplyMode::Recorded,
            Protocol::Tcp | Protocol::Udp => ReplyMode::Static,
        };
        let Some(scalar) = replies else {
            return Some(default);
        };
        let mode = self.note(scalar.choice("replies", &REPLIES))?;
        if protocol == Protocol::Tcp && mode != ReplyMode::Static {
            self.problems.push(scalar.problem(
                format!("replies {} is for UDP, and the service is TCP", quote(&scalar.text)),
                "remove the key: replies of TCP are always static",
            ));
        } else if is_direct && mode == ReplyMode::Recorded {
            self.problems.push(scalar.problem(
                "replies `recorded` is for services whose replies are rewritten, and rung `direct` rewrites nothing",
                "write replies: static, or replies: none to leave what the pods send to the node's stack",
            ));
        }
        Some(mode)
    }

    fn assign_vip(&mut self, switch: Option<&Scalar>, is_for_direct: bool) -> Option<bool> {
        let Some(scalar) = switch else { return Some(false) };
        let assign = self.note(scalar.switch("assignVip"))?;
        if assign && !is_for_direct {
            self.problems.push(scalar.problem(
                "assignVip is for rung `direct`: by the other rungs pods know nothing of the VIP",
                "write rung: direct beside it, or remove the key",
            ));
        }
        Some(assign)
    }

    /// A pod that owns the VIP gets the packet as it came.
    fn check_same_port(&mut self, targets: &[Target], ports: &[(u16, Position)]) {
        for target in targets {
            let Some(port) = target.port else { continue };
            if let Some((other, Position { line, .. })) = ports.iter().find(|(service_port, _)| *service_port != port) {
                self.problems.push(Problem::new(
                    target.port_position,
                    format!("backend port {port} is not the service's {other}, see line {line}: rung `direct` rewrites nothing"),
                    "remove the key `port`, and let the pod listen on the service's port",
                ));
            }
        }
    }

    fn affinity(&mut self, raw: &RawService) -> Option<Option<Affinity>> {
        let kept = raw.session_affinity.as_ref();
        let kept = self.note(kept.map_or(Ok(false), |kept| kept.choice("sessionAffinity", &AFFINITIES)))?;
        let Some(seconds) = &raw.session_affinity_timeout_seconds else {
            let timeout = Duration::from_secs(AFFINITY_SECONDS_DEFAULT.into());
            return Some(kept.then_some(Affinity { timeout }));
        };
        let number = self.note(seconds.number("sessionAffinityTimeoutSeconds", AFFINITY_SECONDS))?;
        if !kept {
            self.problems.push(seconds.problem(
                "a timeout stands here, and clients are not kept together",
                "write sessionAffinity: ClientIP too, or remove the timeout",
            ));
        }
        Some(kept.then_some(Affinity { timeout: Duration::from_secs(number.into()) }))
    }

    fn targets(&mut self, list: Option<&'a Spanned<Vec<Spanned<RawBackend>>>>, vip: Option<IpAddr>) -> Vec<Target> {
        let Some(list) = list else { return Vec::new() };
        let place = position(&list.referenced);
        bounded("backends", list.value.len(), 0..=BACKENDS_MAX, place, self.problems);
        let raw = list.value.iter();
        let targets: Vec<Target> =
            raw.filter_map(|raw| self.target(&raw.value, position(&raw.referenced), vip)).collect();
        if !targets.is_empty() && targets.iter().all(|target| target.weight == 0) {
            self.problems.push(Problem::new(
                place,
                "the weights of all backends are 0, so none would get a connection",
                "give one a weight from 1 to 1000, or write drain: true where no new connections are wanted",
            ));
        }
        targets
    }

    fn target(&mut self, raw: &'a RawBackend, place: Position, vip: Option<IpAddr>) -> Option<Target> {
        let address = self.required(raw.address.as_ref(), place, "address", "write address: with the pod's address");
        let parsed = address.and_then(|address| self.note(address.unicast("backend address")));
        if let (Some(scalar), Some(parsed), Some(vip)) = (address, parsed, vip)
            && parsed.is_ipv4() != vip.is_ipv4()
        {
            let family = |address: IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
            self.problems.push(scalar.problem(
                format!("backend {parsed} is {} and the VIP {vip} is {}", family(parsed), family(vip)),
                format!("write the pod's {} address, or a service of its own for each family", family(vip)),
            ));
        }
        let port_position = raw.port.as_ref().map_or(place, |port| port.position);
        let port = raw.port.as_ref().map(Scalar::port).transpose();
        let weight = raw.weight.as_ref().map_or(Ok(WEIGHT_DEFAULT), Scalar::weight);
        let drain = raw.drain.as_ref().map_or(Ok(false), |drain| drain.switch("drain"));
        let (port, weight, drain) = (self.note(port), self.note(weight), self.note(drain));
        Some(Target { address: parsed?, port: port?, weight: weight?, drain: drain?, position: place, port_position })
    }

    /// Two entries may be the same backend on one of the ports only: one names it, the other takes the service's.
    fn check_same_backend(&mut self, targets: &[Target], ports: &[(u16, Position)]) {
        let mut told = HashSet::new();
        for (service_port, _) in ports {
            let mut seen = HashMap::new();
            for target in targets {
                let port = target.port.unwrap_or(*service_port);
                if let Some(first) = seen.insert((target.address, port), target.position)
                    && told.insert(target.position)
                {
                    self.problems.push(Problem::new(
                        target.position,
                        format!("backend {} port {port} is already in line {}", target.address, first.line),
                        "remove one of them; a larger share is a larger weight",
                    ));
                }
            }
        }
    }

    fn check_taken(&mut self, name: &'a str, vip: IpAddr, protocol: Protocol, ports: &[(u16, Position)]) {
        for &(port, place) in ports {
            match self.taken.entry((vip, protocol, port)) {
                Entry::Vacant(slot) => {
                    slot.insert((name, place));
                }
                Entry::Occupied(first) => {
                    let (other, Position { line, column }) = *first.get();
                    self.problems.push(Problem::new(
                        place,
                        format!(
                            "VIP {vip} {protocol} port {port} is already the service {} in line {line}, column {column}",
                            quote(other)
                        ),
                        "remove the port from one of them, or use another VIP",
                    ));
                }
            }
        }
    }
}

impl Target {
    fn backend(&self, service_port: u16) -> Backend {
        Backend {
            address: self.address,
            port: self.port.unwrap_or(service_port),
            weight: self.weight,
            drain: self.drain,
        }
    }
}

#[cfg(test)]
mod tests;
