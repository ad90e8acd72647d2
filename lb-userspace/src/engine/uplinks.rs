//! The uplinks: attached together or not at all, followed while they come and go.

use anyhow::{Result, anyhow};
use tracing::{info, warn};

use super::Engine;
use crate::{
    dataplane::DataPlaneError,
    model::{Uplink, XdpModeChoice},
    net::{
        ethtool::Offload,
        links::{self, Link, Links},
    },
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
    pub(super) wanted: Uplink,
}

impl Engine {
    /// Attaches what the configuration names. On an error those that were attached by this call are detached again;
    /// one whose mode changes is without programs then. Uplinks that are named no longer stay: see
    /// [`Engine::release_uplinks`].
    pub(super) fn attach_uplinks(&mut self) -> Result<()> {
        let links = links::snapshot(&mut self.netlink)?;
        let mut found = Vec::new();
        for uplink in &self.snapshot.uplinks {
            let link = links.by_name(&uplink.interface).ok_or_else(|| missing(uplink, &links))?;
            found.push((link, uplink.clone()));
        }
        let mut fresh = Vec::new();
        for (link, uplink) in found {
            if self.keeps(&uplink) {
                continue;
            }
            match self.attach_uplink(link, &uplink) {
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
    fn keeps(&mut self, wanted: &Uplink) -> bool {
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
        } else {
            let uplink = self.uplinks.remove(at);
            self.release(&uplink);
        }
        keeps
    }

    /// Releases uplinks that the configuration names no longer.
    pub(super) fn release_uplinks(&mut self) {
        let wanted = &self.snapshot.uplinks;
        let (kept, dropped): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.uplinks).into_iter().partition(|uplink| wanted.contains(&uplink.wanted));
        self.uplinks = kept;
        for uplink in dropped {
            self.release(&uplink);
        }
        self.name_first_uplink();
    }

    fn attach_uplink(&mut self, link: &Link, uplink: &Uplink) -> Result<AttachedUplink> {
        let mut attached =
            AttachedUplink { ifindex: link.index, mac: link.mac, mode: AttachMode::Native, wanted: uplink.clone() };
        match self.attach_programs(link, &mut attached) {
            Ok(()) => Ok(attached),
            Err(error) => {
                self.release(&attached);
                Err(error.into())
            }
        }
    }

    fn attach_programs(&mut self, link: &Link, uplink: &mut AttachedUplink) -> Result<(), DataPlaneError> {
        // Some of them are there where an agent was killed while it attached them.
        self.attached.detach(link.index);
        // A tag that the NIC strips is one that XDP cannot see.
        self.switch_off(uplink, Offload::RxVlan)?;
        // Replies leave only by an uplink that has a name.
        self.tables.set_uplink(link.index, link.mac)?;
        uplink.mode = self.attached.attach_uplink(&mut self.object, link, uplink.wanted.mode)?;
        if uplink.mode == AttachMode::Generic {
            // Generic XDP drops what has been merged when it redirects it.
            self.switch_off(uplink, Offload::Gro)?;
            self.switch_off(uplink, Offload::Lro)?;
        }
        info!(interface = link.name, mode = ?uplink.mode, "uplink attached");
        Ok(())
    }

    fn release(&mut self, uplink: &AttachedUplink) {
        self.attached.detach(uplink.ifindex);
        if let Err(error) = self.tables.remove_uplink(uplink.ifindex) {
            warn!(%error, interface = uplink.wanted.interface, "cannot forget an uplink");
        }
        self.switch_back(uplink);
        info!(interface = uplink.wanted.interface, "uplink released");
    }

    /// Drops uplinks that are gone, attaches those that are back. Returns why others are missing.
    pub(super) fn follow_uplinks(&mut self, links: &Links) -> Vec<String> {
        let (here, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.uplinks).into_iter().partition(|uplink| {
            links.by_name(&uplink.wanted.interface).is_some_and(|link| link.index == uplink.ifindex)
        });
        self.uplinks = here;
        for uplink in gone {
            warn!(interface = uplink.wanted.interface, "uplink is gone");
            self.release(&uplink);
        }
        for uplink in &mut self.uplinks {
            if let Some(link) = links.by_index(uplink.ifindex)
                && link.mac != uplink.mac
            {
                uplink.mac = link.mac;
                if let Err(error) = self.tables.set_uplink(link.index, link.mac) {
                    warn!(%error, interface = link.name, "cannot write an uplink's MAC");
                }
            }
        }
        let wanted: Vec<Uplink> = self
            .snapshot
            .uplinks
            .iter()
            .filter(|wanted| !self.uplinks.iter().any(|uplink| uplink.wanted == **wanted))
            .cloned()
            .collect();
        let mut troubles = Vec::new();
        for uplink in wanted {
            let attached = match links.by_name(&uplink.interface) {
                Some(link) => self.attach_uplink(link, &uplink),
                None => Err(missing(&uplink, links)),
            };
            match attached {
                Ok(attached) => self.uplinks.push(attached),
                Err(error) => troubles.push(format!("{error:#}")),
            }
        }
        self.name_first_uplink();
        troubles
    }

    pub(super) fn name_first_uplink(&mut self) {
        let first = self.uplinks.first().map_or(0, |uplink| uplink.ifindex);
        if let Err(error) = self.tables.change_settings(|settings| settings.uplink = first) {
            warn!(%error, "cannot write the settings");
        }
    }
}

fn missing(uplink: &Uplink, links: &Links) -> anyhow::Error {
    let there: Vec<&str> = links.links.iter().map(|link| link.name.as_str()).collect();
    anyhow!("uplink {} does not exist on this node; there are: {}", uplink.interface, there.join(", "))
}
