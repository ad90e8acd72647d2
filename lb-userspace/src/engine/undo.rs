//! What the agent changes of others' interfaces, and puts back as it was. Each change is noted in the map `undo` before it
//! is made, so that it is known after a crash too.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::agent::{UndoKey, setting};
use tracing::{info, warn};

use super::{Engine, uplinks::AttachedUplink};
use crate::{
    dataplane::DataPlaneError,
    net::{
        NetnsId,
        ethtool::{Ethtool, Offload},
        links::{Links, PodInterface},
    },
};

/// Pods' interfaces whose GRO was turned on, and where each is.
pub(super) type GroChanges = BTreeMap<UndoKey, NetnsId>;

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
        for (key, was_on) in
            changed.into_iter().filter(|(key, _)| (key.netns_cookie, key.ifindex) == (0, uplink.ifindex))
        {
            if let (Ok(ethtool), Some(offload)) = (Ethtool::open(), offload_of(key.setting)) {
                // An interface that is gone has taken its setting along.
                let _ = ethtool.set(&uplink.wanted.interface, offload, was_on);
            }
            self.forget_undo(&key);
        }
    }

    fn forget_undo(&mut self, key: &UndoKey) {
        if let Err(error) = self.tables.forget_undo(key) {
            warn!(%error, ifindex = key.ifindex, "cannot forget a change that was undone");
        }
    }

    /// Takes over what earlier agents have noted of the pods that are here.
    pub(super) fn adopt_undos(&mut self, links: &Links) {
        let noted = self.tables.undos();
        let of_pods: Vec<UndoKey> = noted.into_iter().map(|(key, _)| key).filter(|key| key.netns_cookie != 0).collect();
        if of_pods.is_empty() {
            return;
        }
        let cookies = self.cookies(links);
        for key in of_pods {
            match cookies.get(&key.netns_cookie) {
                Some(netns_id) => drop(self.gro_changes.insert(key, *netns_id)),
                None => self.forget_undo(&key),
            }
        }
    }

    /// The pods' namespaces by cookie.
    pub(super) fn cookies(&mut self, links: &Links) -> BTreeMap<u64, NetnsId> {
        let ids: BTreeSet<NetnsId> = links.pods.iter().map(|pod| pod.netns_id).collect();
        ids.into_iter().filter_map(|id| Some((self.helper.cookie(id).ok()?, id))).collect()
    }
}
