//! The uplinks: attached together or not at all, followed while they come and go.

use anyhow::{Result, anyhow, bail};
use tracing::{info, warn};

use super::Engine;
use crate::{
    dataplane::DataPlaneError,
    model::{Uplink, XdpModeChoice},
    net::{
        ethtool::Offload,
        links::{self, Link, Links},
    },
    preflight::resolve::Place,
    status::AttachMode,
};

/// An uplink with its programs.
pub struct AttachedUplink {
    /// Interface index.
    pub ifindex: u32,
    /// Interface MAC.
    pub mac: [u8; 6],
    /// How XDP is attached.
    pub mode: AttachMode,
    /// Index of the interface that the configuration names: the bond, the VLAN, or this one.
    pub exit: u32,
    /// Its own name, and the configured mode.
    pub(super) wanted: Uplink,
}

impl Engine {
    /// Attaches what the configuration names. On an error those that were attached by this call are detached again;
    /// one whose mode changes is without programs then. Uplinks that are named no longer stay: see
    /// [`Engine::release_uplinks`].
    pub(super) fn attach_uplinks(&mut self) -> Result<()> {
        let links = links::snapshot(&mut self.netlink)?;
        if let [first, ..] = self.resolve_uplinks(&links).as_slice() {
            bail!("{first}");
        }
        self.name_exits(&links)?;
        let mut fresh = Vec::new();
        for place in self.places.clone() {
            if self.keeps(&place) {
                continue;
            }
            match self.attach_uplink(&place, &links) {
                Ok(attached) => fresh.push(attached),
                Err(error) => {
                    for attached in fresh {
                        self.release(&attached);
                    }
                    return Err(error);
                }
            }
        }
        self.uplinks.extend(fresh);
        self.name_first_uplink();
        Ok(())
    }

    /// Whether an uplink is attached as it is wanted. One that is attached in another mode is released: an interface
    /// takes one at a time.
    fn keeps(&mut self, place: &Place) -> bool {
        let wanted = &place.wanted;
        let Some(at) = self.uplinks.iter().position(|uplink| uplink.wanted.interface == wanted.interface) else {
            return false;
        };
        let uplink = &mut self.uplinks[at];
        let keeps = uplink.wanted == *wanted
            || match uplink.mode {
                AttachMode::Native => wanted.mode != XdpModeChoice::Generic,
                AttachMode::Generic | AttachMode::Tcx => wanted.mode == XdpModeChoice::Generic,
            };
        if keeps {
            uplink.wanted = wanted.clone();
            uplink.exit = place.exit();
        } else {
            let uplink = self.uplinks.remove(at);
            self.release(&uplink);
        }
        keeps
    }

    /// Releases uplinks that the configuration names no longer.
    pub(super) fn release_uplinks(&mut self) {
        let (kept, dropped): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.uplinks).into_iter().partition(|uplink| self.is_place(uplink.ifindex));
        self.uplinks = kept;
        for uplink in dropped {
            self.release(&uplink);
        }
        self.release_exits();
        self.name_first_uplink();
    }

    fn attach_uplink(&mut self, place: &Place, links: &Links) -> Result<AttachedUplink> {
        let link = links.by_index(place.index).ok_or_else(|| anyhow!("{} is gone", place.wanted.interface))?;
        let mut attached = AttachedUplink {
            ifindex: link.index,
            mac: link.mac,
            mode: AttachMode::Native,
            exit: place.exit(),
            wanted: place.wanted.clone(),
        };
        match self.attach_programs(link, &mut attached) {
            Ok(()) => Ok(attached),
            Err(error) => {
                self.release(&attached);
                Err(self.why_not_attached(place, error))
            }
        }
    }

    /// The error of attaching, or that the interface went away meanwhile, which makes any.
    fn why_not_attached(&mut self, place: &Place, error: DataPlaneError) -> anyhow::Error {
        let name = &place.wanted.interface;
        match links::of_node(&mut self.netlink) {
            Ok(links) if links.iter().all(|link| (link.index, &link.name) != (place.index, name)) => {
                anyhow!("{name} went away while it was being attached; it is attached as soon as it is back")
            }
            _ => error.into(),
        }
    }

    fn attach_programs(&mut self, link: &Link, uplink: &mut AttachedUplink) -> Result<(), DataPlaneError> {
        // Some of them are there where an agent was killed while it attached them.
        self.attached.detach(link.index);
        // A tag that the NIC strips is one that XDP cannot see.
        self.switch_off(uplink, Offload::RxVlan)?;
        uplink.mode = self.attached.attach_uplink(&mut self.object, link, uplink.wanted.mode)?;
        if uplink.mode == AttachMode::Generic {
            // Generic XDP drops what has been merged when it redirects it.
            self.switch_off(uplink, Offload::Gro)?;
            self.switch_off(uplink, Offload::Lro)?;
        }
        self.preflight.expire();
        info!(uplink = link.name, mode = ?uplink.mode, "uplink attached");
        Ok(())
    }

    fn release(&mut self, uplink: &AttachedUplink) {
        self.attached.detach(uplink.ifindex);
        self.preflight.expire();
        self.switch_back(uplink);
        info!(uplink = uplink.wanted.interface, "uplink released");
    }

    /// Whether packets meet the programs of any uplink, by the kernel's word of this moment.
    pub(super) fn has_data_plane(&self) -> bool {
        self.uplinks.iter().any(|uplink| self.attached.is_whole(uplink.ifindex))
    }

    /// Attaches anew what somebody else has detached from uplinks, or announces no more what nothing would steer.
    pub(super) fn restore_uplinks(&mut self) {
        let attached = self.uplinks.iter().map(|uplink| uplink.ifindex);
        let bereft = attached.filter(|ifindex| !self.attached.is_whole(*ifindex)).collect();
        self.restore(bereft);
    }

    /// The same for pods' interfaces too, and the pins of all.
    pub(super) fn restore_programs(&mut self) {
        let bereft = self.attached.bereft();
        self.restore(bereft);
        let (count, refused) = self.attached.restore_pins();
        if count != 0 {
            warn!(count, "somebody has removed pins of ours; they are made again");
        }
        let refused = refused.map(|error| error.to_string());
        if let Some(error) = refused.as_ref().filter(|_| refused != self.unpinned) {
            warn!(error, "links cannot be pinned: the next agent will not find them; tried again");
        }
        self.unpinned = refused;
    }

    fn restore(&mut self, bereft: Vec<u32>) {
        if bereft.is_empty() {
            return;
        }
        let Ok(links) = links::of_node(&mut self.netlink) else { return };
        for ifindex in bereft {
            // Of one that goes netlink tells.
            let Some(link) = links.iter().find(|link| link.index == ifindex) else { continue };
            // Connections are not listed as at the first time: those of VIPs would be taken for others.
            let Err(error) = self.attached.restore(&mut self.object, link) else {
                warn!(interface = link.name, "somebody has detached a program of ours; it is attached anew");
                continue;
            };
            warn!(interface = link.name, %error, "somebody has detached a program of ours, and it cannot be attached again");
            // As an interface is that has none yet.
            match self.uplinks.iter().position(|uplink| uplink.ifindex == ifindex) {
                Some(at) => {
                    let uplink = self.uplinks.remove(at);
                    self.release(&uplink);
                }
                None => self.attached.detach(ifindex),
            }
        }
        // What is still missing is tried again with each tick.
        let _ = self.reconcile();
    }

    /// Drops uplinks that are gone, attaches those that are back. Returns why others are missing.
    pub(super) fn follow_uplinks(&mut self, links: &Links) -> Vec<String> {
        let (here, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.uplinks).into_iter().partition(|uplink| {
            links.by_name(&uplink.wanted.interface).is_some_and(|link| link.index == uplink.ifindex)
        });
        self.uplinks = here;
        for uplink in gone {
            warn!(uplink = uplink.wanted.interface, "uplink is gone");
            self.release(&uplink);
        }
        let mut troubles = self.resolve_uplinks(links);
        if let Err(error) = self.name_exits(links) {
            troubles.push(format!("{error:#}"));
        }
        for uplink in &mut self.uplinks {
            if let Some(link) = links.by_index(uplink.ifindex) {
                uplink.mac = link.mac;
            }
            if let Some(place) = self.places.iter().find(|place| place.index == uplink.ifindex) {
                uplink.exit = place.exit();
            }
        }
        for place in self.places.clone() {
            // One that joins a bond is attached as it comes.
            if self.uplinks.iter().any(|uplink| uplink.ifindex == place.index) {
                continue;
            }
            match self.attach_uplink(&place, links) {
                Ok(attached) => self.uplinks.push(attached),
                Err(error) => troubles.push(format!("{error:#}")),
            }
        }
        // The first is the one that the self-test comes in by: of a bond, a member that carries traffic.
        let places = &self.places;
        let rank = |ifindex| places.iter().position(|place| place.index == ifindex).unwrap_or(usize::MAX);
        self.uplinks.sort_by_key(|uplink| rank(uplink.ifindex));
        self.name_first_uplink();
        troubles
    }

    pub(super) fn name_first_uplink(&mut self) {
        let first = self.uplinks.first().map_or(0, |uplink| uplink.exit);
        if let Err(error) = self.tables.change_settings(|settings| settings.uplink = first) {
            warn!(%error, "cannot write the settings");
        }
    }
}

impl AttachedUplink {
    /// The configured mode.
    pub(super) const fn mode_choice(&self) -> XdpModeChoice {
        self.wanted.mode
    }
}
