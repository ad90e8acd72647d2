//! From the services to their checks, and back from what those have come to. Pure.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use super::{Subject, Target};
use crate::model::{Backend, Service, Snapshot};

/// The check of a service's backend, where it has one.
pub fn target(service: &Service, backend: &Backend) -> Option<Target> {
    let check = service.health_check.as_ref()?;
    let address = SocketAddr::new(backend.address, check.port.unwrap_or(backend.port));
    let subject = Subject { address, probe: check.probe.clone() };
    Some(Target { subject, timing: check.timing })
}

/// All checks, each once.
pub fn targets(snapshot: &Snapshot) -> BTreeSet<Arc<Target>> {
    let of_service = |service: &Service| {
        let targets: Vec<_> = service.backends.iter().filter_map(|backend| target(service, backend)).collect();
        targets.into_iter().map(Arc::new)
    };
    snapshot.services.iter().flat_map(of_service).collect()
}

/// Whether all backends that would get connections have failed. They all get connections then: a check that fails
/// everywhere says more of itself than of the pods, and refusing everybody would help nobody.
pub fn fails_open(service: &Service, failed: &HashSet<Arc<Target>>) -> bool {
    let mut taking = service.backends.iter().filter(|backend| !backend.drain && backend.weight != 0).peekable();
    // Most of the time none has.
    !failed.is_empty()
        && service.health_check.is_some()
        && taking.peek().is_some()
        && taking.all(|backend| target(service, backend).is_some_and(|target| failed.contains(&target)))
}

/// The services as they are planned: failed backends drain, and keep their sessions.
pub fn without_failed<'a>(snapshot: &'a Snapshot, failed: &HashSet<Arc<Target>>) -> Cow<'a, Snapshot> {
    if failed.is_empty() {
        return Cow::Borrowed(snapshot);
    }
    let mut planned = snapshot.clone();
    for (service, planned) in snapshot.services.iter().zip(&mut planned.services) {
        if service.health_check.is_none() || fails_open(service, failed) {
            continue;
        }
        for (backend, planned) in service.backends.iter().zip(&mut planned.backends) {
            planned.drain |= target(service, backend).is_some_and(|target| failed.contains(&target));
        }
    }
    Cow::Owned(planned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    const SERVICES: &str = "\
node: { addresses: [192.0.2.1] }
uplinks: [{ interface: eth0 }]
services:
  - name: a
    vip: 198.51.100.1
    protocol: TCP
    ports: [80, 81]
    healthCheck: { type: tcp }
    backends: [{ address: 10.0.0.1, port: 8080 }, { address: 10.0.0.2 }, { address: 10.0.0.3, drain: true }]
  - name: b
    vip: 198.51.100.2
    protocol: UDP
    ports: [162]
    healthCheck: { type: tcp, port: 8080 }
    backends: [{ address: 10.0.0.1 }, { address: 10.0.0.4, weight: 0 }, { address: 10.0.0.5 }]
  - { name: c, vip: 198.51.100.3, protocol: TCP, ports: [80], backends: [{ address: 10.0.0.1, port: 8080 }] }
";

    fn snapshot() -> Snapshot {
        parse("test.yaml", SERVICES).unwrap_or_else(|error| panic!("{error}"))
    }

    fn failed(addresses: &[&str]) -> HashSet<Arc<Target>> {
        let addresses: Vec<SocketAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let of = |target: &Arc<Target>| addresses.contains(&target.subject.address);
        let failed: HashSet<_> = targets(&snapshot()).into_iter().filter(of).collect();
        assert_eq!(failed.len(), addresses.len(), "all of these are checked");
        failed
    }

    /// Who drains, by service and last byte of the address.
    fn draining(snapshot: &Snapshot) -> Vec<(String, u16, String)> {
        let of = |service: &Service| {
            let drains = service.backends.iter().filter(|backend| backend.drain);
            drains.map(|b| (service.name.clone(), service.port, b.address.to_string())).collect::<Vec<_>>()
        };
        snapshot.services.iter().flat_map(of).collect()
    }

    fn row(name: &str, port: u16, address: &str) -> (String, u16, String) {
        (name.into(), port, address.into())
    }

    #[test]
    fn what_several_services_ask_alike_is_asked_once() {
        let addresses: Vec<String> = targets(&snapshot()).iter().map(|t| t.subject.address.to_string()).collect();
        let expected = [
            "10.0.0.1:8080",
            "10.0.0.2:80",
            "10.0.0.2:81",
            "10.0.0.3:80",
            "10.0.0.3:81",
            "10.0.0.4:8080",
            "10.0.0.5:8080",
        ];
        assert_eq!(addresses, expected);
    }

    #[test]
    fn a_failed_backend_drains_in_every_service_that_asks_for_it_and_in_no_other() {
        let snapshot = snapshot();
        let planned = without_failed(&snapshot, &failed(&["10.0.0.1:8080"]));
        let (a, of_a) = ("10.0.0.1", "10.0.0.3");
        assert_eq!(
            draining(&planned),
            [row("a", 80, a), row("a", 80, of_a), row("a", 81, a), row("a", 81, of_a), row("b", 162, a)]
        );
        assert!(matches!(without_failed(&snapshot, &HashSet::new()), Cow::Borrowed(_)));
    }

    #[test]
    fn where_all_that_take_connections_have_failed_nobody_drains() {
        let snapshot = snapshot();
        // 10.0.0.3 drains anyway, 10.0.0.4 has no weight: neither is one that could take over.
        let planned = without_failed(&snapshot, &failed(&["10.0.0.1:8080", "10.0.0.2:80", "10.0.0.5:8080"]));
        assert_eq!(
            draining(&planned),
            [row("a", 80, "10.0.0.3"), row("a", 81, "10.0.0.1"), row("a", 81, "10.0.0.3")],
            "port 81 has 10.0.0.2 left"
        );
    }

    #[test]
    fn a_service_without_backends_or_check_does_not_fail_open() {
        let mut snapshot = snapshot();
        snapshot.services[0].backends.clear();
        let failed = failed(&["10.0.0.1:8080"]);
        assert!(!fails_open(&snapshot.services[0], &failed) && !fails_open(&snapshot.services[3], &failed));
    }
}
