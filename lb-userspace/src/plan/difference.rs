//! What of a snapshot a plan has to look at: that which differs from the one before, and whatever that concerns.
//!
//! A plan of everything and a plan of the difference make the same writes; the tests compare them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    ops::Range,
};

use super::planner::{EndpointKey, InstalledEndpoint, Place, Places, Planner, VipKey, vip_key};
use crate::model::{Service, Snapshot};

/// What the last plan was made from.
#[derive(Clone, Debug, Default)]
pub(super) struct Applied {
    services: Vec<Service>,
    places: Places,
    opaque: BTreeSet<EndpointKey>,
}

/// What a plan looks at.
pub(super) struct Difference<'a> {
    /// Services to be written, in the snapshot's order: those that differ, and those that share an endpoint with what
    /// differs.
    pub services: Vec<&'a Service>,
    /// Services that are wanted no longer.
    pub gone: Vec<VipKey>,
    /// Endpoints that may differ, or come or go. All their services are among those to be written or gone.
    pub endpoints: BTreeSet<EndpointKey>,
    /// It is everything that is wanted.
    pub is_whole: bool,
    /// What of the services that were applied is replaced by what of the snapshot's.
    replaced: (Range<usize>, Range<usize>),
}

/// How two lists of services differ.
struct Changed<'a> {
    /// Services that are in one list only, or differ.
    services: Vec<&'a Service>,
    gone: Vec<VipKey>,
    replaced: (Range<usize>, Range<usize>),
}

impl Applied {
    /// `None` where services have changed places: which of several is the first one of an endpoint says how it is
    /// reached.
    fn changed<'a>(&'a self, wanted: &'a [Service]) -> Option<Changed<'a>> {
        let same = self.services.iter().zip(wanted).take_while(|(one, other)| one == other).count();
        let (old, new) = (&self.services[same..], &wanted[same..]);
        let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(one, other)| one == other).count();
        let (old, new) = (&old[..old.len() - tail], &new[..new.len() - tail]);
        let mut before: HashMap<VipKey, (usize, &Service)> =
            old.iter().enumerate().map(|(at, service)| (vip_key(service), (at, service))).collect();
        let mut services = Vec::new();
        let mut last = None;
        for service in new {
            let Some((at, earlier)) = before.remove(&vip_key(service)) else {
                services.push(service);
                continue;
            };
            if last.replace(at).is_some_and(|last| at < last) {
                return None;
            }
            if earlier != service {
                services.extend([earlier, service]);
            }
        }
        services.extend(before.values().map(|(_, service)| *service));
        let mut gone: Vec<VipKey> = before.into_keys().collect();
        gone.sort_unstable();
        Some(Changed { services, gone, replaced: (same..same + old.len(), same..same + new.len()) })
    }

    /// Addresses whose place is another one, by any rung.
    fn moved(&self, places: &Places) -> BTreeSet<IpAddr> {
        let differs = |one: &Places, other: &Places| -> Vec<IpAddr> {
            let is_other = |(key, place): &(&_, &Place)| other.get(*key) != Some(*place);
            one.iter().filter(is_other).map(|((address, _), _)| *address).collect()
        };
        if self.places == *places {
            return BTreeSet::new();
        }
        [differs(&self.places, places), differs(places, &self.places)].concat().into_iter().collect()
    }

    /// The difference is applied.
    pub fn follow(
        &mut self,
        snapshot: &Snapshot,
        places: &Places,
        opaque: &BTreeSet<EndpointKey>,
        (old, new): (Range<usize>, Range<usize>),
    ) {
        self.services.splice(old, snapshot.services[new].iter().cloned());
        if self.places != *places {
            self.places.clone_from(places);
        }
        if self.opaque != *opaque {
            self.opaque.clone_from(opaque);
        }
    }
}

impl<'a> Difference<'a> {
    /// From what the planner has applied to what is wanted.
    pub fn new(planner: &Planner, before: Option<&'a Applied>, snapshot: &'a Snapshot, places: &Places) -> Self {
        let changed = before.and_then(|applied| Some((applied, applied.changed(&snapshot.services)?)));
        let Some((applied, changed)) = changed else { return Self::whole(planner, before, snapshot) };
        let mut endpoints: BTreeSet<EndpointKey> = BTreeSet::new();
        for service in &changed.services {
            endpoints.extend(service.backends.iter().map(|backend| EndpointKey::of(service, backend)));
        }
        for address in applied.moved(places) {
            endpoints.extend(planner.endpoints_at(address).map(|(key, _)| *key));
        }
        if applied.opaque != *planner.opaque() {
            let differ = applied.opaque.symmetric_difference(planner.opaque());
            endpoints.extend(differ.filter(|key| planner.endpoints().contains_key(key)));
        }
        let mut services: BTreeSet<VipKey> = changed.services.iter().map(|service| vip_key(service)).collect();
        let installed = endpoints.iter().filter_map(|key| planner.endpoints().get(key));
        services.extend(installed.flat_map(|endpoint| &endpoint.services));
        Self {
            services: if services.is_empty() { Vec::new() } else { in_order(snapshot, &services) },
            gone: changed.gone,
            endpoints,
            is_whole: false,
            replaced: changed.replaced,
        }
    }

    fn whole(planner: &Planner, before: Option<&Applied>, snapshot: &'a Snapshot) -> Self {
        let wanted: BTreeSet<VipKey> = snapshot.services.iter().map(vip_key).collect();
        let of_service = |service: &'a Service| service.backends.iter().map(|b| EndpointKey::of(service, b));
        let mut endpoints: BTreeSet<EndpointKey> = snapshot.services.iter().flat_map(of_service).collect();
        endpoints.extend(planner.endpoints().keys());
        let applied = before.map_or(0, |applied| applied.services.len());
        Self {
            services: snapshot.services.iter().collect(),
            gone: planner.services().keys().filter(|key| !wanted.contains(key)).copied().collect(),
            endpoints,
            is_whole: true,
            replaced: (0..applied, 0..snapshot.services.len()),
        }
    }

    /// What [`Applied::follow`] is to replace.
    pub fn replaced(&self) -> (Range<usize>, Range<usize>) {
        self.replaced.clone()
    }

    /// By endpoint, the services that want it, in the snapshot's order.
    pub fn wanted(&self) -> BTreeMap<EndpointKey, Vec<&'a Service>> {
        let mut wanted: BTreeMap<EndpointKey, Vec<&Service>> = BTreeMap::new();
        for &service in &self.services {
            for key in service.backends.iter().map(|backend| EndpointKey::of(service, backend)) {
                if self.endpoints.contains(&key) {
                    wanted.entry(key).or_default().push(service);
                }
            }
        }
        wanted
    }
}

impl Planner {
    /// Endpoints of a pod's address.
    fn endpoints_at(&self, address: IpAddr) -> impl Iterator<Item = (&EndpointKey, &InstalledEndpoint)> {
        let from = EndpointKey::first_of(address);
        self.endpoints().range(from..).take_while(move |(key, _)| key.address == address)
    }
}

/// The services of these keys, in the snapshot's order.
fn in_order<'a>(snapshot: &'a Snapshot, keys: &BTreeSet<VipKey>) -> Vec<&'a Service> {
    snapshot.services.iter().filter(|service| keys.contains(&vip_key(service))).collect()
}
