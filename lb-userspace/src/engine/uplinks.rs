//! The uplinks: attached together or not at all, followed while they come and go.

use anyhow::{Result, anyhow};
use tracing::{info, warn};

use super::Engine;
use crate::{
    model::Uplink,
    net::{
        ethtool::{Ethtool, Offload},
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
    wanted: Uplink,
    /// Offloads that were switched off, because XDP cannot work with them.
    switched_off: Vec<Offload>,
}

impl Engine {
    /// Brings the uplinks to what the configuration says. On an error those that were attached by this call are
    /// detached again.
    pub(super) fn attach_uplinks(&mut self) -> Result<()> {
        let links = links::snapshot(&mut self.netlink)?;
        let wanted = self.snapshot.uplinks.clone();
        let mut fresh = Vec::new();
        for uplink in &wanted {
            if self.uplinks.iter().any(|attached| attached.wanted == *uplink) {
                continue;
            }
            let result = links
                .by_name(&uplink.interface)
                .ok_or_else(|| missing(uplink, &links))
                .and_then(|link| self.attach_uplink(link, uplink));
            match result {
                Ok(attached) => fresh.push(attached),
                Err(error) => {
                    for attached in fresh {
                        self.release(&attached);
                    }
                    return Err(error);
                }
            }
        }
        let (keep, drop): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.uplinks).into_iter().partition(|attached| wanted.contains(&attached.wanted));
        for attached in drop {
            self.release(&attached);
        }
        self.uplinks = keep;
        self.uplinks.extend(fresh);
        self.name_first_uplink();
        Ok(())
    }

    fn attach_uplink(&mut self, link: &Link, uplink: &Uplink) -> Result<AttachedUplink> {
        let mut attached = AttachedUplink {
            ifindex: link.index,
            mac: link.mac,
            mode: AttachMode::Native,
            wanted: uplink.clone(),
            switched_off: Vec::new(),
        };
        // A tag that the NIC strips is one that XDP cannot see.
        switch_off(&mut attached, Offload::RxVlan);
        let mode = match self.attached.attach_uplink(&mut self.object, link, uplink.mode) {
            Ok(mode) => mode,
            Err(error) => {
                self.release(&attached);
                return Err(error.into());
            }
        };
        attached.mode = mode;
        if mode == AttachMode::Generic {
            // Generic XDP drops what has been merged when it redirects it.
            switch_off(&mut attached, Offload::Gro);
            switch_off(&mut attached, Offload::Lro);
        }
        self.tables.set_uplink(link.index, link.mac)?;
        info!(interface = link.name, ?mode, "uplink attached");
        Ok(attached)
    }

    fn release(&mut self, uplink: &AttachedUplink) {
        self.attached.detach(uplink.ifindex);
        if let Err(error) = self.tables.remove_uplink(uplink.ifindex) {
            warn!(%error, interface = uplink.wanted.interface, "cannot forget an uplink");
        }
        let Ok(ethtool) = Ethtool::open() else { return };
        for offload in &uplink.switched_off {
            // An interface that is gone has taken its setting along.
            let _ = ethtool.set(&uplink.wanted.interface, *offload, true);
        }
        info!(interface = uplink.wanted.interface, "uplink released");
    }

    /// Drops uplinks that are gone, attaches those that are back.
    pub(super) fn follow_uplinks(&mut self, links: &Links) {
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
        let missing: Vec<Uplink> = self
            .snapshot
            .uplinks
            .iter()
            .filter(|wanted| !self.uplinks.iter().any(|uplink| uplink.wanted == **wanted))
            .cloned()
            .collect();
        for uplink in missing {
            let Some(link) = links.by_name(&uplink.interface) else { continue };
            match self.attach_uplink(link, &uplink) {
                Ok(attached) => self.uplinks.push(attached),
                Err(error) => warn!(interface = uplink.interface, %error, "uplink cannot be attached; tried again"),
            }
        }
        self.name_first_uplink();
    }

    fn name_first_uplink(&mut self) {
        let first = self.uplinks.first().map_or(0, |uplink| uplink.ifindex);
        if let Err(error) = self.tables.change_settings(|settings| settings.uplink = first) {
            warn!(%error, "cannot write the settings");
        }
    }

    /// Takes down every uplink.
    pub(super) fn detach_uplinks(&mut self) {
        for uplink in std::mem::take(&mut self.uplinks) {
            self.release(&uplink);
        }
    }
}

fn missing(uplink: &Uplink, links: &Links) -> anyhow::Error {
    let there: Vec<&str> = links.links.iter().map(|link| link.name.as_str()).collect();
    anyhow!("uplink {} does not exist on this node; there are: {}", uplink.interface, there.join(", "))
}

/// Switches an offload off and remembers that it was on. One that the driver does not have is off.
fn switch_off(uplink: &mut AttachedUplink, offload: Offload) {
    let set = Ethtool::open().and_then(|ethtool| ethtool.set(&uplink.wanted.interface, offload, false));
    if let Ok(true) = set {
        info!(interface = uplink.wanted.interface, offload = offload.name(), "offload switched off");
        uplink.switched_off.push(offload);
    }
}
