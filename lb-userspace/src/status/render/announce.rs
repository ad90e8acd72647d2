//! What is announced, as tables.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Cell, Line, Output, Style, Table, cell, count, duration, optional, peers};
use crate::status::{AnnounceStatus, ConflictStatus, MeansStatus, RouterStatus, VipStatus};

/// Virtual routers, VIPs that are withheld, and conflicts; nothing where nothing is to be announced.
pub(super) fn write(status: &AnnounceStatus, out: &mut Output) {
    if let Some(error) = &status.error {
        out.put(&cell("Nothing is announced:").styled(Style::Bad));
        out.end_line();
        out.note(&cell(error));
        out.end_section();
    }
    if let Some(leaving) = &status.leaving {
        out.put(&cell(format!("This node is leaving: {leaving}.")).styled(Style::Partly));
        out.end_line();
        out.note(&cell("`sluice undrain` brings it back"));
        out.end_section();
    }
    if !status.routers.is_empty() {
        routers(&status.routers).write(out);
    }
    if !status.bgp.is_empty() {
        peers::peers(&status.bgp).write(out);
    }
    if !status.bfd.is_empty() {
        peers::sessions(&status.bfd).write(out);
    }
    let wanted: Vec<VipStatus> = status.vips.iter().filter_map(by_wanted_means).collect();
    if !wanted.is_empty() {
        vips(&wanted, false).write(out);
    }
    if !status.conflicts.is_empty() {
        conflicts(&status.conflicts).write(out);
    }
}

/// Without means that the configuration does not want for it.
fn by_wanted_means(status: &VipStatus) -> Option<VipStatus> {
    const UNWANTED: [&str; 3] = ["not_selected", "family", "node_excluded"];
    let is_wanted =
        |means: &&MeansStatus| !means.against.iter().any(|against| UNWANTED.contains(&against.reason.as_str()));
    let means: Vec<MeansStatus> = status.means.iter().filter(is_wanted).cloned().collect();
    (!means.is_empty()).then(|| VipStatus { vip: status.vip, means, warnings: status.warnings.clone() })
}

/// `sluice status vrrp`.
pub fn render_vrrp(status: &AnnounceStatus, color: bool) -> String {
    rendered(color, |out| match status.routers.as_slice() {
        [] => out.line("no virtual routers are configured"),
        all => {
            routers(all).write(out);
            counted(out, "packets of VRRP that could not be read", &status.malformed);
        }
    })
}

/// `sluice status vip VIP`; `None` where nothing is to be announced of it.
pub fn render_vip(status: &AnnounceStatus, vip: IpAddr, color: bool) -> Option<String> {
    let wanted: Vec<VipStatus> = status.vips.iter().filter(|status| status.vip == vip).cloned().collect();
    let claimed: Vec<ConflictStatus> = status.conflicts.iter().filter(|status| status.vip == vip).cloned().collect();
    let write = |out: &mut Output| {
        vips(&wanted, true).write(out);
        if !claimed.is_empty() {
            conflicts(&claimed).write(out);
        }
    };
    (!wanted.is_empty()).then(|| rendered(color, write))
}

pub(super) fn rendered(color: bool, write: impl FnOnce(&mut Output)) -> String {
    let mut out = Output { text: String::new(), spaces: 0, color };
    write(&mut out);
    format!("{}\n", out.text.trim_end())
}

/// What happened ever, by kind; nothing where nothing did.
pub(super) fn counted(out: &mut Output, what: &str, counts: &BTreeMap<String, u64>) {
    let counts: Vec<String> =
        counts.iter().filter(|(_, count)| **count != 0).map(|(kind, count)| format!("{kind} {count}")).collect();
    if !counts.is_empty() {
        out.line(&format!("{what}: {}", counts.join(", ")));
    }
}

fn routers(routers: &[RouterStatus]) -> Table {
    let mut lines = Vec::new();
    for router in routers {
        let style = match router.state.as_str() {
            "active" => Style::Good,
            "init" => Style::Bad,
            _ => Style::Plain,
        };
        let heard = router.heard.as_ref().map(|heard| format!("{} ({})", heard.address, heard.priority));
        lines.push(Line::Row(vec![
            cell(&router.group),
            cell(&router.interface),
            cell(format!("{} {}", router.family, router.vrid)),
            cell(&router.state).styled(style),
            cell(duration(router.since_seconds)),
            optional(router.priority),
            optional(heard),
            cell(router.vips.to_string()),
            cell(count(router.sent)),
            cell(count(router.received)),
        ]));
        lines.extend(router.virtual_mac.iter().map(|mac| Line::Note(cell(format!("VIPs are at {mac}")))));
        let bad = |text: String| Line::Note(cell(text).styled(Style::Bad));
        lines.extend(router.missing.iter().map(|missing| Line::Note(cell(missing).styled(Style::Partly))));
        lines.extend(
            router
                .alarms
                .iter()
                .map(|(kind, alarm)| bad(format!("{} differs in {kind}, {} times", alarm.from, alarm.count))),
        );
        lines.extend(
            router.last_error.as_ref().map(|error| Line::Note(cell(peers::error_text(error)).styled(Style::Partly))),
        );
        if router.vips > router.listed {
            lines
                .push(Line::Note(cell(format!("{} VIPs do not fit into advertisements", router.vips - router.listed))));
        }
    }
    Table {
        titles: &["VRRP", "INTERFACE", "ROUTER", "STATE", "FOR", "PRIORITY", "HEARD", "VIPS", "SENT", "RECEIVED"],
        right: &[5, 7, 8, 9],
        lines,
    }
}

fn vips(vips: &[VipStatus], reasons_in_words: bool) -> Table {
    let mut lines = Vec::new();
    for VipStatus { vip, means, warnings } in vips {
        for one in means {
            let (state, holder) = state(one);
            lines.push(Line::Row(vec![cell(vip.to_string()), cell(&one.means), state, holder]));
            for against in &one.against {
                let text = if reasons_in_words { &against.text } else { &against.reason };
                lines.push(Line::Note(cell(text).styled(Style::Partly)));
            }
        }
        lines.extend(warnings.iter().map(|warning| Line::Note(cell(warning).styled(Style::Bad))));
    }
    Table { titles: &["VIP", "ANNOUNCED", "STATE", "HOLDER"], right: &[], lines }
}

fn state(means: &MeansStatus) -> (Cell, Cell) {
    let state = match (means.holds, means.against.is_empty()) {
        (true, _) if means.is_going => cell("held, going").styled(Style::Partly),
        (true, _) => cell("held").styled(Style::Good),
        (false, true) => cell("elsewhere"),
        (false, false) => cell("withheld").styled(Style::Partly),
    };
    let holder = if means.holds { cell("this node") } else { optional(means.holder) };
    (state, holder)
}

fn conflicts(all: &[ConflictStatus]) -> Table {
    let row = |conflict: &ConflictStatus| {
        Line::Row(vec![
            cell(conflict.vip.to_string()),
            cell(&conflict.mac).styled(Style::Bad),
            cell(conflict.ifindex.to_string()),
            cell(count(conflict.count)),
        ])
    };
    Table {
        titles: &["CONFLICT: VIP", "ALSO CLAIMED BY", "IFINDEX", "TIMES"],
        right: &[2, 3],
        lines: all.iter().map(row).collect(),
    }
}
