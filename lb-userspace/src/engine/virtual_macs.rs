//! Virtual routers' MACs in the filters of the uplinks. Here and not where VRRP is spoken, because that needs a privilege which
//! only the engine keeps. Each is noted in the map `undo` before, like all that is changed of others' interfaces.

use std::collections::BTreeSet;

use anyhow::Result;
use lb_common::agent::{UndoKey, setting};
use tracing::warn;

use super::Engine;
use crate::net::{InterfaceIndex, links::Mac, unicast};

/// An interface, and a MAC that its filter lets in.
pub(super) type LetIn = (InterfaceIndex, Mac);

/// The virtual MAC that a journal entry is about, if it is about one.
pub(super) const fn virtual_mac(number: u32) -> Option<Mac> {
    let [a, b, family, vrid] = number.to_be_bytes();
    if number & !0xffff == setting::VIRTUAL_MAC { Some([0, 0, a, b, family, vrid]) } else { None }
}

fn journal_key((ifindex, [_, _, a, b, family, vrid]): LetIn) -> UndoKey {
    UndoKey { netns_cookie: 0, ifindex, setting: u32::from_be_bytes([a, b, family, vrid]) }
}

impl Engine {
    /// Lets frames to these MACs in, and returns those that cannot be had.
    pub(super) fn let_in(&mut self, wanted: BTreeSet<LetIn>) -> BTreeSet<LetIn> {
        let mut failed = BTreeSet::new();
        for one in &wanted {
            // Also what was let in before: an interface may have come anew with its number.
            if let Err(error) = self.let_one_in(*one) {
                warn!(error = format!("{error:#}"), ifindex = one.0, "a virtual router cannot have its MAC");
                failed.insert(*one);
            }
        }
        self.announcing.macs_wanted = wanted;
        failed
    }

    fn let_one_in(&mut self, one: LetIn) -> Result<()> {
        let is_noted = self.announcing.let_in.contains(&one);
        if !is_noted {
            self.tables.note_undo(journal_key(one), false)?;
            self.announcing.let_in.insert(one);
        }
        let done = unicast::let_in(&mut self.netlink, one.0, one.1);
        // Of one that another has put there nothing is to be undone.
        if !is_noted && !matches!(done, Ok(true)) {
            self.announcing.let_in.remove(&one);
            self.forget_undo(&journal_key(one));
        }
        done.map(drop).map_err(Into::into)
    }

    /// Shuts out those of virtual routers that are gone. One that leaves takes frames until another has taken over.
    pub(super) fn shut_out(&mut self) {
        let (let_in, wanted) = (&self.announcing.let_in, &self.announcing.macs_wanted);
        if let_in.is_subset(wanted) {
            return;
        }
        let reported = match &self.announcing.announcer {
            Ok(announcer) => match announcer.report() {
                Some(report) => report.routers,
                // Asked again with the next tick.
                None => return,
            },
            Err(_) => Vec::new(),
        };
        let leaving: BTreeSet<LetIn> = reported.iter().filter_map(|router| router.virtual_mac).collect();
        let gone: Vec<LetIn> =
            let_in.iter().filter(|one| !wanted.contains(one) && !leaving.contains(one)).copied().collect();
        for one in gone {
            if let Err(error) = unicast::shut_out(&mut self.netlink, one.0, one.1) {
                warn!(%error, ifindex = one.0, "a virtual MAC stays in an interface's filter; tried again");
                continue;
            }
            self.announcing.let_in.remove(&one);
            self.forget_undo(&journal_key(one));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_entry_names_its_mac_and_no_other_setting_does() {
        for mac in [[0, 0, 0x5e, 0, 1, 51], [0, 0, 0x5e, 0, 2, 255]] {
            let key = journal_key((7, mac));
            assert_eq!((key.netns_cookie, key.ifindex, virtual_mac(key.setting)), (0, 7, Some(mac)));
        }
        assert!(
            [setting::GRO, setting::LRO, setting::RX_VLAN, setting::ARP_IGNORE]
                .map(virtual_mac)
                .iter()
                .all(Option::is_none)
        );
    }
}
