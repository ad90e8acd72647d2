//! VIPs that pods own (rung `direct`): put on their `lo` where the configuration asks for that, and taken away.
//!
//! What the agent has put somewhere is read from there, not remembered: so is what an earlier agent left.

use std::{collections::BTreeSet, net::IpAddr};

use tracing::{info, warn};

use super::Engine;
use crate::{
    model::RungChoice,
    net::{
        NetnsId,
        links::{Links, PodInterface},
    },
    status::VipOnLo,
};

/// Whether a pod owns a VIP, as far as netlink told.
pub(super) fn vip_on_lo(pod: &PodInterface, vip: IpAddr) -> VipOnLo {
    match pod.loopback.iter().find(|there| there.address == vip) {
        None => VipOnLo::Missing,
        Some(there) if there.is_assigned => VipOnLo::Agent,
        Some(_) => VipOnLo::Other,
    }
}

/// The VIPs that agents have put on pods, each once however many interfaces the pod has.
pub(super) fn assigned(links: &Links) -> BTreeSet<(NetnsId, IpAddr)> {
    let of_pod = |pod: &PodInterface| {
        let assigned = pod.loopback.iter().filter(|there| there.is_assigned).map(|there| there.address);
        assigned.map(|vip| (pod.netns_id, vip)).collect::<Vec<_>>()
    };
    links.pods.iter().flat_map(of_pod).collect()
}

impl Engine {
    /// Sees to it that a pod owns a VIP, and by whom; or says why it does not, and what to do.
    pub(super) fn own_vip(&mut self, pod: &PodInterface, vip: IpAddr, assign: bool) -> Result<VipOnLo, String> {
        match vip_on_lo(pod, vip) {
            VipOnLo::Missing if assign => {
                self.put_vip(pod, vip).map_err(|error| format!("VIP not on lo: {error}"))?;
                info!(%vip, interface = pod.host_name, "VIP put on a pod's lo");
                Ok(VipOnLo::Agent)
            }
            VipOnLo::Missing => {
                let prefix = if vip.is_ipv4() { 32 } else { 128 };
                Err(format!(
                    "VIP not on lo: in the pod, `ip address add {vip}/{prefix} dev lo`; or write assignVip: true, and the \
                     agent does"
                ))
            }
            there => Ok(there),
        }
    }

    fn put_vip(&mut self, pod: &PodInterface, vip: IpAddr) -> anyhow::Result<()> {
        let raised = if vip.is_ipv4() { self.note_arp(pod.netns_id)? } else { 0 };
        Ok(self.helper.assign_vip(pod.netns_id, vip, raised)?)
    }

    /// Takes VIPs from pods that no service wants there any more. Called when the maps do not lead to them any more.
    pub(super) fn withdraw_vips(&mut self, links: &Links) {
        let wanted: BTreeSet<(IpAddr, IpAddr)> = self
            .wanted_pods()
            .into_iter()
            .filter_map(|(address, choice)| match choice {
                RungChoice::Direct { vip, assign: true } => Some((address, vip)),
                RungChoice::Direct { .. } | RungChoice::Auto | RungChoice::Only(_) => None,
            })
            .collect();
        let is_wanted = |netns_id, vip| {
            let addresses = links.pods.iter().filter(|pod| pod.netns_id == netns_id).flat_map(|pod| &pod.addresses);
            addresses.into_iter().any(|address| wanted.contains(&(*address, vip)))
        };
        for (netns_id, vip) in assigned(links).into_iter().filter(|(netns_id, vip)| !is_wanted(*netns_id, *vip)) {
            self.withdraw_vip(netns_id, vip);
        }
        self.restore_arp(links);
    }

    fn withdraw_vip(&mut self, netns_id: NetnsId, vip: IpAddr) {
        match self.helper.withdraw_vip(netns_id, vip) {
            Ok(()) => info!(%vip, "VIP taken from a pod's lo"),
            // Where the pod is gone, so is the address.
            Err(error) => warn!(%error, %vip, "VIP stays on a pod's lo"),
        }
    }
}
