//! The interfaces that replies leave by: those that the configuration names and routes lead to, whatever is attached below
//! them. Only what is in the map `uplinks` is left by; anything else is taken for this node itself.

use anyhow::Result;
use tracing::warn;

use super::Engine;
use crate::{
    net::links::Links,
    preflight::resolve::{self, Place},
};

impl Engine {
    /// Takes up what the configured uplinks mean now. Returns why some mean nothing.
    pub(super) fn resolve_uplinks(&mut self, links: &Links) -> Vec<String> {
        let resolution = resolve::resolve(&self.snapshot.uplinks, &links.links);
        self.places = resolution.places;
        self.refused_uplinks = resolution.refused;
        self.refused_uplinks.iter().map(ToString::to_string).collect()
    }

    /// Whether an uplink is attached where the configuration wants it. All are while it cannot be said what is wanted.
    pub(super) fn is_place(&self, ifindex: u32) -> bool {
        !self.refused_uplinks.is_empty() || self.places.iter().any(|place| place.index == ifindex)
    }

    /// Whether replies leave by an interface.
    pub(super) fn is_exit(&self, ifindex: u32) -> bool {
        self.exits.contains_key(&ifindex)
    }

    /// Writes the exits that are new or have another MAC, before anything is attached below them.
    pub(super) fn name_exits(&mut self, links: &Links) -> Result<()> {
        let exits: Vec<u32> = self.places.iter().flat_map(|place| place.exits.iter().copied()).collect();
        for link in exits.into_iter().filter_map(|exit| links.by_index(exit)) {
            if self.exits.get(&link.index) != Some(&link.mac) {
                self.tables.set_uplink(link.index, link.mac)?;
                self.exits.insert(link.index, link.mac);
            }
        }
        self.forget_exits(|exit| links.by_index(exit).is_some());
        Ok(())
    }

    /// Forgets exits that the configuration means no longer.
    pub(super) fn release_exits(&mut self) {
        let wanted: Vec<u32> = self.places.iter().flat_map(|place: &Place| place.exits.iter().copied()).collect();
        self.forget_exits(|exit| wanted.contains(&exit));
    }

    fn forget_exits(&mut self, keep: impl Fn(u32) -> bool) {
        let gone: Vec<u32> = self.exits.keys().copied().filter(|exit| !keep(*exit)).collect();
        for exit in gone {
            match self.tables.remove_uplink(exit) {
                Ok(()) => drop(self.exits.remove(&exit)),
                Err(error) => warn!(%error, ifindex = exit, "cannot forget an uplink"),
            }
        }
    }
}
