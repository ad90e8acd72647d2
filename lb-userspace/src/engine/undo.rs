//! What the agent changes of others' interfaces, and puts back as it was. Each change is noted in the map `undo` before it
//! is made, so that it is known after a crash too.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::agent::{UndoKey, setting};
use tracing::{info, warn};

use super::{Engine, uplinks::AttachedUplink, virtual_macs::virtual_mac};
use crate::{
    dataplane::DataPlaneError,
    net::{
        NetnsId,
        ethtool::{Ethtool, Offload},
        links::{Links, PodInterface},
        loopback::{self, Raised},
    },
};

/// Pods' interfaces whose GRO was turned on, and where each is.
pub(super) type GroChanges = BTreeMap<UndoKey, NetnsId>;

/// By cookie, pods' namespaces whose settings were raised for VIPs, and where each is.
pub(super) type ArpChanges = BTreeMap<u64, (NetnsId, Raised)>;

const ARP: [(u32, Raised); 2] =
    [(setting::ARP_IGNORE, loopback::ARP_IGNORE), (setting::ARP_ANNOUNCE, loopback::ARP_ANNOUNCE)];

/// The setting of a pod that a journal entry is about, where it is one that was raised for a VIP.
pub(super) fn raised_by(number: u32) -> Option<Raised> {
    ARP.into_iter().find(|(setting, _)| *setting == number).map(|(_, raised)| raised)
}

fn of_lo(netns_cookie: u64, setting: u32) -> UndoKey {
    UndoKey { netns_cookie, ifindex: loopback::LOOPBACK, setting }
}

/// The offload that a journal entry is about; `None` for a setting that this agent does not know.
pub(super) const fn offload_of(number: u32) -> Option<Offload> {
    match number {
        setting::GRO => Some(Offload::Gro),
        setting::LRO => Some(Offload::Lro),
        setting::RX_VLAN => Some(Offload::RxVlan),
        _ => None,
    }
}

const fn number_of(offload: Offload) -> Option<u32> {
    match offload {
        Offload::Gro => Some(setting::GRO),
        Offload::Lro => Some(setting::LRO),
        Offload::RxVlan => Some(setting::RX_VLAN),
        Offload::TxChecksum => None,
    }
}

/// The journal's key for an offload of an interface of the agent's own namespace.
fn own(ifindex: u32, offload: Offload) -> Option<UndoKey> {
    number_of(offload).map(|setting| UndoKey { netns_cookie: 0, ifindex, setting })
}

impl Engine {
    /// Turns on GRO of a pod's interface, so that the interface takes what XDP redirects to it.
    pub(super) fn turn_gro_on(&mut self, pod: &PodInterface) -> anyhow::Result<()> {
        let (netns, ifindex) = (pod.netns_id, pod.pod_ifindex);
        if self.helper.gro(netns, ifindex)? {
            return Ok(());
        }
        let key = UndoKey { netns_cookie: self.helper.cookie(netns)?, ifindex, setting: setting::GRO };
        self.tables.note_undo(key, false)?;
        self.helper.set_gro(netns, ifindex, true)?;
        self.gro_changes.insert(key, pod.netns_id);
        Ok(())
    }

    /// Turns GRO off again at pods that no service has any more: `needed` are the host's interfaces of those that have one.
    pub(super) fn restore_gro(&mut self, links: &Links, needed: &BTreeSet<u32>) {
        let mut over = Vec::new();
        for (key, netns_id) in &self.gro_changes {
            let is_its = |pod: &&PodInterface| (pod.netns_id, pod.pod_ifindex) == (*netns_id, key.ifindex);
            match links.pods.iter().find(is_its) {
                Some(pod) if needed.contains(&pod.host_ifindex) => {}
                pod => over.push((*key, pod.map(|pod| (*netns_id, pod.host_name.clone())))),
            }
        }
        for (key, pod) in over {
            // A pod that is gone has taken its setting along.
            if let Some((netns_id, interface)) = pod {
                if let Err(error) = self.helper.set_gro(netns_id, key.ifindex, false) {
                    warn!(%error, interface, "GRO of a pod's interface stays on");
                    continue;
                }
                info!(interface, "GRO of a pod's interface turned off again");
            }
            self.gro_changes.remove(&key);
            self.forget_undo(&key);
        }
    }

    /// Notes what of a pod's settings is about to be raised for its first VIP, and gives all that agents have raised there.
    pub(super) fn note_arp(&mut self, netns_id: NetnsId) -> anyhow::Result<Raised> {
        let (cookie, low) = (self.helper.cookie(netns_id)?, self.helper.to_raise(netns_id)?);
        for (setting, _) in ARP.into_iter().filter(|(_, raised)| low & raised != 0) {
            self.tables.note_undo(of_lo(cookie, setting), false)?;
        }
        let change = self.arp_changes.entry(cookie).or_insert((netns_id, 0));
        change.1 |= low;
        Ok(change.1)
    }

    /// Lowers pods' settings again where no VIP is left, however it went: withdrawn by the agent, or removed by hand.
    pub(super) fn restore_arp(&mut self, links: &Links) {
        let has_vip = |pod: &PodInterface| pod.loopback.iter().any(|vip| vip.is_assigned && vip.address.is_ipv4());
        let in_use: BTreeSet<NetnsId> = links.pods.iter().filter(|pod| has_vip(pod)).map(|pod| pod.netns_id).collect();
        let unused: Vec<(u64, (NetnsId, Raised))> =
            self.arp_changes.iter().filter(|(_, (id, _))| !in_use.contains(id)).map(|(k, v)| (*k, *v)).collect();
        for (cookie, (netns_id, raised)) in unused {
            let done = match self.helper.cookie(netns_id) {
                Ok(now) if now == cookie => self.helper.lower_unused(netns_id, raised),
                // A pod that is gone has taken its settings along.
                _ => Ok(true),
            };
            match done {
                Ok(false) => continue,
                Ok(true) => {}
                Err(error) => {
                    warn!(%error, "arp_ignore and arp_announce of a pod stay raised");
                    continue;
                }
            }
            self.arp_changes.remove(&cookie);
            for (setting, _) in ARP {
                self.forget_undo(&of_lo(cookie, setting));
            }
        }
    }

    /// Switches an offload of an uplink off, if the driver has it.
    pub(super) fn switch_off(&mut self, uplink: &AttachedUplink, offload: Offload) -> Result<(), DataPlaneError> {
        let interface = &uplink.wanted.interface;
        // One that the driver does not have is off.
        let Ok(ethtool) = Ethtool::open() else { return Ok(()) };
        let (Ok(true), Some(key)) = (ethtool.get(interface, offload), own(uplink.ifindex, offload)) else {
            return Ok(());
        };
        self.tables.note_undo(key, true)?;
        match ethtool.set(interface, offload, false) {
            Ok(_) => info!(interface, offload = offload.name(), "offload switched off"),
            Err(error) => {
                warn!(%error, interface, offload = offload.name(), "offload cannot be switched off");
                self.forget_undo(&key);
            }
        }
        Ok(())
    }

    /// Puts an uplink's offloads back as they were.
    pub(super) fn switch_back(&mut self, uplink: &AttachedUplink) {
        let changed = self.tables.undos();
        // Virtual MACs go with their routers.
        let is_its = |key: &UndoKey| {
            (key.netns_cookie, key.ifindex) == (0, uplink.ifindex) && virtual_mac(key.setting).is_none()
        };
        for (key, was_on) in changed.into_iter().filter(|(key, _)| is_its(key)) {
            if let (Ok(ethtool), Some(offload)) = (Ethtool::open(), offload_of(key.setting)) {
                // An interface that is gone has taken its setting along.
                let _ = ethtool.set(&uplink.wanted.interface, offload, was_on);
            }
            self.forget_undo(&key);
        }
    }

    pub(super) fn forget_undo(&mut self, key: &UndoKey) {
        if let Err(error) = self.tables.forget_undo(key) {
            warn!(%error, ifindex = key.ifindex, "cannot forget a change that was undone");
        }
    }

    /// Takes over what earlier agents have noted of the pods and uplinks that are here.
    pub(super) fn adopt_undos(&mut self, links: &Links) {
        let noted = self.tables.undos();
        let (own, of_pods): (Vec<_>, Vec<_>) = noted.into_iter().partition(|(key, _)| key.netns_cookie == 0);
        for (key, was_on) in own {
            self.adopt_own_undo(links, &key, was_on);
        }
        if of_pods.is_empty() {
            return;
        }
        let cookies = self.cookies(links);
        for (key, _) in of_pods {
            match cookies.get(&key.netns_cookie) {
                Some(netns_id) if key.setting == setting::GRO => drop(self.gro_changes.insert(key, *netns_id)),
                Some(netns_id) => {
                    let change = self.arp_changes.entry(key.netns_cookie).or_insert((*netns_id, 0));
                    change.1 |= raised_by(key.setting).unwrap_or(0);
                }
                None => self.forget_undo(&key),
            }
        }
    }

    /// What is noted of an uplink stays noted while it is one. Attaching it may have been cut short, and the configuration
    /// may name it no longer.
    fn adopt_own_undo(&mut self, links: &Links, key: &UndoKey, was_on: bool) {
        if let Some(mac) = virtual_mac(key.setting) {
            self.announcing.let_in.insert((key.ifindex, mac));
            return;
        }
        let link = links.by_index(key.ifindex);
        let is_wanted = |name: &str| self.snapshot.uplinks.iter().any(|uplink| uplink.interface == name);
        if self.uplinks.iter().any(|uplink| uplink.ifindex == key.ifindex) || link.is_some_and(|l| is_wanted(&l.name)) {
            return;
        }
        if let (Some(link), Ok(ethtool), Some(offload)) = (link, Ethtool::open(), offload_of(key.setting))
            && let Err(error) = ethtool.set(&link.name, offload, was_on)
        {
            warn!(%error, interface = link.name, offload = offload.name(), "an offload stays as it is");
            return;
        }
        self.forget_undo(key);
    }

    /// The pods' namespaces by cookie.
    pub(super) fn cookies(&mut self, links: &Links) -> BTreeMap<u64, NetnsId> {
        let ids: BTreeSet<NetnsId> = links.pods.iter().map(|pod| pod.netns_id).collect();
        ids.into_iter().filter_map(|id| Some((self.helper.cookie(id).ok()?, id))).collect()
    }
}
