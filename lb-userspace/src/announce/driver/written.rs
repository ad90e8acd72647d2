//! Who answers for VIPs, as the data plane's map says it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::Duration,
};

use lb_common::holder::{ALWAYS, Conflict, Holder, HolderKey, VirtualMac, VirtualMacKey, holder_flags};
use tracing::warn;

use super::{Answers, complaints::Complaints};
use crate::announce::{
    vrrp::machine::Router,
    wanted::{RouterKey, Segment, Wanted},
};

/// A virtual router that runs, or leaves.
pub struct Entry {
    pub router: Router,
    pub group: String,
    /// Where it announces; kept while it leaves.
    pub segment: Segment,
    /// Of its VIPs, those that this node cannot serve.
    pub withheld: BTreeSet<IpAddr>,
    pub is_wanted: bool,
    pub last_error: Option<Mishap>,
}

/// What went wrong with a virtual router, when, and by whom.
pub struct Mishap {
    pub at: Duration,
    pub cause: &'static str,
    pub detail: String,
}

impl Entry {
    /// VIPs that are answered for where the router is active.
    pub fn held(&self) -> impl Iterator<Item = IpAddr> {
        self.router.vips().all().iter().copied().filter(|vip| !self.withheld.contains(vip))
    }
}

/// The map, and what is in it.
pub struct Written {
    answers: Box<dyn Answers>,
    written: BTreeMap<HolderKey, Holder>,
    macs: BTreeMap<VirtualMacKey, VirtualMac>,
    /// What an earlier agent has promised, which holds until its end: others rely on it.
    inherited: BTreeMap<HolderKey, u64>,
    inherited_macs: BTreeMap<VirtualMacKey, u64>,
    /// The agent stops: questions are left to nobody else.
    is_stopping: bool,
}

impl Written {
    pub fn new(answers: Box<dyn Answers>) -> Self {
        let found = answers.all().unwrap_or_else(|error| {
            warn!(%error, "cannot read who answers for VIPs");
            Vec::new()
        });
        let macs = answers.all_macs().unwrap_or_else(|error| {
            warn!(%error, "cannot read which virtual MACs are taken");
            Vec::new()
        });
        let inherited =
            found.iter().filter(|(_, holder)| holder.until != ALWAYS).map(|(key, holder)| (*key, holder.until));
        Self {
            inherited: inherited.collect(),
            inherited_macs: macs.iter().map(|(key, mac)| (*key, mac.until)).collect(),
            written: found.into_iter().collect(),
            macs: macs.into_iter().collect(),
            answers,
            is_stopping: false,
        }
    }

    /// From here on no question is given back to the kernel.
    pub const fn stop(&mut self) {
        self.is_stopping = true;
    }

    /// Whether this node answers for an address now.
    pub fn holds(&self, key: &HolderKey, now: u64) -> bool {
        self.written.get(key).is_some_and(|holder| holder.holds(now))
    }

    pub fn take_conflicts(&mut self) -> io::Result<Vec<(HolderKey, Conflict)>> {
        self.answers.take_conflicts()
    }

    /// Writes what one router holds, which changes with each of its advertisements.
    pub fn write(
        &mut self,
        wanted: &Wanted,
        interface: &str,
        entry: &Entry,
        complaints: &mut Complaints,
        now: Duration,
    ) {
        // Whoever is answered sends to the MAC at once.
        for (key, mac) in self.macs_of(entry, now) {
            self.set_mac(key, mac, complaints, now);
        }
        for (key, holder) in self.of_router(entry, now) {
            // Who holds always does not ask a router.
            let is_always = !wanted.always.is_empty()
                && wanted.always.contains_key(&(interface.to_owned(), IpAddr::from(key.address)));
            if !is_always {
                self.set(key, holder, complaints, now);
            }
        }
    }

    /// Brings the whole map to what is held.
    pub fn write_all(
        &mut self,
        wanted: &Wanted,
        routers: &BTreeMap<RouterKey, Entry>,
        complaints: &mut Complaints,
        now: Duration,
    ) {
        let macs: BTreeMap<VirtualMacKey, VirtualMac> =
            routers.values().flat_map(|entry| self.macs_of(entry, now)).collect();
        self.write_macs(macs, complaints, now);
        let mut all: BTreeMap<HolderKey, Holder> = BTreeMap::new();
        for entry in routers.values() {
            all.extend(self.of_router(entry, now));
        }
        for ((interface, vip), holds) in &wanted.always {
            if let Some(segment) = wanted.segments.get(interface) {
                let until = if *holds { ALWAYS } else { 0 };
                all.extend(keys(segment, *vip).map(|key| (key, Holder { until, mac: segment.mac, flags: 0 })));
            }
        }
        for (interface, vip) in &wanted.elsewhere {
            let Some(segment) = wanted.segments.get(interface) else { continue };
            for key in keys(segment, *vip) {
                all.entry(key).or_insert(Holder { until: 0, mac: segment.mac, flags: 0 });
            }
        }
        let gone: Vec<HolderKey> = self.written.keys().filter(|key| !all.contains_key(key)).copied().collect();
        for (key, holder) in all {
            self.set(key, holder, complaints, now);
        }
        for key in gone {
            self.let_go(key, complaints, now);
        }
    }

    fn of_router(&self, entry: &Entry, now: Duration) -> Vec<(HolderKey, Holder)> {
        let now = now.as_nanos() as u64;
        let hold = entry.router.hold().map_or(0, |until| until.as_nanos() as u64);
        let mac = entry.router.virtual_mac().unwrap_or(entry.segment.mac);
        let mut found = Vec::new();
        for vip in entry.router.vips().all() {
            let is_withheld = entry.withheld.contains(vip);
            for key in keys(&entry.segment, *vip) {
                let until = match hold {
                    _ if is_withheld => 0,
                    0 => self.inherited.get(&key).copied().filter(|until| *until > now).unwrap_or(0),
                    until => until,
                };
                found.push((key, Holder { until, mac, flags: holder_flags::ROUTER }));
            }
        }
        found
    }

    /// What is said of a router's virtual MAC. Frames to it are taken an interval longer than questions are answered: another is
    /// active by then, and takes them itself, and until then they are nobody else's. Who has heard of another takes none.
    //= rfc9568#6.4.2:mac MUST: a backup discards what is sent to the virtual MAC, where it is on
    //= rfc3768#6.4.2:mac MUST: a backup discards what is sent to the virtual MAC, where it is on
    //= rfc9568#6.4.3:mac MUST: an active forwards what is sent to the virtual MAC, where it is on
    //= rfc3768#6.4.3:mac MUST: an active forwards what is sent to the virtual MAC, where it is on
    fn macs_of(&self, entry: &Entry, now: Duration) -> Vec<(VirtualMacKey, VirtualMac)> {
        let Some([.., family, vrid]) = entry.router.virtual_mac() else { return Vec::new() };
        let hold = entry.router.hold().map(|until| until + entry.router.settings().interval.duration());
        let (own, now) = (entry.segment.mac, now.as_nanos() as u64);
        let keys = entry.segment.attached.iter();
        let mac = |interface: &u32| {
            let key = VirtualMacKey { interface: *interface, vlan: entry.segment.vlan, family, vrid };
            let inherited = || self.inherited_macs.get(&key).copied().filter(|until| *until > now).unwrap_or(0);
            (key, VirtualMac { until: hold.map_or_else(inherited, |until| until.as_nanos() as u64), own, pad: 0 })
        };
        keys.map(mac).collect()
    }

    fn write_macs(&mut self, wanted: BTreeMap<VirtualMacKey, VirtualMac>, complaints: &mut Complaints, now: Duration) {
        let gone: Vec<_> =
            self.macs.iter().filter(|(key, _)| !wanted.contains_key(key)).map(|(k, m)| (*k, *m)).collect();
        for (key, mac) in wanted {
            self.set_mac(key, mac, complaints, now);
        }
        for (key, mac) in gone {
            if self.is_stopping {
                self.set_mac(key, VirtualMac { until: 0, ..mac }, complaints, now);
                continue;
            }
            match self.answers.remove_mac(&key) {
                Ok(()) => drop(self.macs.remove(&key)),
                Err(error) => complaints.say("macs", now, || {
                    warn!(%error, vrid = key.vrid, "cannot write who takes a virtual MAC; tried again");
                }),
            }
        }
    }

    fn set_mac(&mut self, key: VirtualMacKey, mac: VirtualMac, complaints: &mut Complaints, now: Duration) {
        if self.macs.get(&key) == Some(&mac) {
            return;
        }
        match self.answers.set_mac(&key, &mac) {
            Ok(()) => drop(self.macs.insert(key, mac)),
            Err(error) => complaints.say("macs", now, || {
                warn!(%error, vrid = key.vrid, "cannot write who takes a virtual MAC; tried again");
            }),
        }
    }

    fn set(&mut self, key: HolderKey, holder: Holder, complaints: &mut Complaints, now: Duration) {
        if self.written.get(&key) == Some(&holder) {
            return;
        }
        match self.answers.set(&key, &holder) {
            Ok(()) => drop(self.written.insert(key, holder)),
            Err(error) => complaints.say("holders", now, || {
                warn!(%error, vip = %key.address, "cannot write who answers for a VIP; tried again");
            }),
        }
    }

    fn let_go(&mut self, key: HolderKey, complaints: &mut Complaints, now: Duration) {
        if self.is_stopping {
            let holder = self.written.get(&key).copied().unwrap_or_default();
            // Of one that is always held, the data plane goes on answering.
            if holder.until != ALWAYS {
                self.set(key, Holder { until: 0, ..holder }, complaints, now);
            }
            return;
        }
        match self.answers.remove(&key) {
            Ok(()) => drop(self.written.remove(&key)),
            Err(error) => complaints.say("holders", now, || {
                warn!(%error, vip = %key.address, "cannot write who answers for a VIP; tried again");
            }),
        }
    }
}

/// An address wherever a segment's questions come in.
fn keys(segment: &Segment, vip: IpAddr) -> impl Iterator<Item = HolderKey> {
    segment.attached.iter().map(move |interface| HolderKey {
        address: vip.into(),
        interface: *interface,
        vlan: segment.vlan,
        pad: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vip_is_answered_for_wherever_its_segment_comes_in_and_in_its_vlan() {
        let segment = Segment { index: 10, mac: [2; 6], attached: vec![1, 2], vlan: 100, is_running: true };
        let keys: Vec<_> = keys(&segment, IpAddr::from([192, 0, 2, 1])).map(|key| (key.interface, key.vlan)).collect();
        assert_eq!(keys, [(1, 100), (2, 100)]);
    }
}
