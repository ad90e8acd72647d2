//! Which pods services want, kept while configurations change: to ask all backends costs more than a change may take.

use std::collections::BTreeMap;

use super::{Engine, pods::Wanted};
use crate::model::{Service, Snapshot};

/// Addresses and rungs, with the backends that want each.
#[derive(Debug, Default)]
pub(super) struct WantedPods(BTreeMap<Wanted, usize>);

impl WantedPods {
    pub fn new(services: &[Service]) -> Self {
        let mut wanted = Self::default();
        wanted.change(&[], services);
        wanted
    }

    pub fn iter(&self) -> impl Iterator<Item = Wanted> {
        self.0.keys().copied()
    }

    /// From some services to others: costs those between the first and the last that differ, and a comparison.
    pub fn change(&mut self, old: &[Service], new: &[Service]) {
        let same = old.iter().zip(new).take_while(|(one, other)| one == other).count();
        let (old, new) = (&old[same..], &new[same..]);
        let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(one, other)| one == other).count();
        for wanted in pods(&new[..new.len() - tail]) {
            *self.0.entry(wanted).or_default() += 1;
        }
        for wanted in pods(&old[..old.len() - tail]) {
            let Some(backends) = self.0.get_mut(&wanted) else { continue };
            *backends -= 1;
            if *backends == 0 {
                self.0.remove(&wanted);
            }
        }
    }
}

fn pods(services: &[Service]) -> impl Iterator<Item = Wanted> {
    services.iter().flat_map(|service| service.backends.iter().map(|backend| (backend.address, service.rung)))
}

impl Engine {
    /// Takes up another snapshot, and returns the one before.
    pub(super) fn replace_snapshot(&mut self, snapshot: Snapshot) -> Snapshot {
        self.wanted.change(&self.snapshot.services, &snapshot.services);
        std::mem::replace(&mut self.snapshot, snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Backend, Protocol, ReplyMode, RungChoice};

    fn service(name: &str, pods: &[u8]) -> Service {
        let backend = |last: &u8| Backend { address: [10, 0, 0, *last].into(), port: 80, weight: 1, drain: false };
        Service {
            name: name.into(),
            vip: [198, 51, 100, 1].into(),
            protocol: Protocol::Tcp,
            port: 80,
            replies: ReplyMode::Static,
            rung: RungChoice::Auto,
            affinity: None,
            health_check: None,
            backends: pods.iter().map(backend).collect(),
        }
    }

    #[test]
    fn a_pod_is_wanted_as_long_as_one_backend_wants_it() {
        let lists = [
            vec![service("a", &[1, 2]), service("b", &[2, 3]), service("c", &[4])],
            vec![service("a", &[1, 2]), service("c", &[4])],
            vec![service("c", &[4]), service("a", &[1])],
            vec![],
            vec![service("b", &[1, 1])],
        ];
        let mut wanted = WantedPods::default();
        let mut before: &[Service] = &[];
        for services in &lists {
            wanted.change(before, services);
            assert_eq!(wanted.0, WantedPods::new(services).0);
            before = services;
        }
        assert_eq!(wanted.iter().count(), 1);
    }
}
