//! What follows from the facts.

mod node;
mod uplink;

use super::{Check, Facts, Finding, facts::AttachedFacts};
use crate::{model::Snapshot, net::links::XdpMode};

/// Everything that is to be said of a node, for the agent that `snapshot` describes: what is refused first.
pub fn check(facts: &Facts, snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = node::check(facts, snapshot);
    findings.extend(uplink::check(facts, &snapshot.uplinks));
    let unseen = facts.unseen.iter();
    findings.extend(unseen.map(|unseen| {
        let found = format!("{} could not be looked at: {}", unseen.what, unseen.why);
        Finding::note(Check::NotSeen, &unseen.what, found)
    }));
    // Stable: within a severity in the order of the checks.
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// What is to be said of the uplinks alone, as when only they change.
pub fn check_uplinks(facts: &Facts, snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = uplink::check(facts, &snapshot.uplinks);
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// What is to be said of an uplink once it is attached.
pub fn attached(facts: &AttachedFacts) -> Vec<Finding> {
    let AttachedFacts { interface, is_generic, is_auto, program_id, reported, strips_vlan } = facts;
    let mut findings = Vec::new();
    let mode = if *is_generic { XdpMode::Generic } else { XdpMode::Native };
    let as_attached =
        |(reported, id): &(XdpMode, u32)| *reported == mode && program_id.is_none_or(|attached| attached == *id);
    if reported.iter().any(as_attached) {
        let found = format!("{interface}: sluice_xdp runs {}, as the kernel reports", mode_name(mode));
        findings.push(Finding::note(Check::XdpAttached, interface, found));
    } else {
        let reported: Vec<String> =
            reported.iter().map(|(mode, id)| format!("program {id} {}", mode_name(*mode))).collect();
        let reported = if reported.is_empty() { "no program".to_owned() } else { reported.join(", ") };
        findings.push(Finding::new(
            Check::XdpMode,
            interface,
            format!("{interface}: attached {}, and the kernel reports {reported}", mode_name(mode)),
            "see who else attaches programs there; a restart of the agent attaches its own again",
        ));
    }
    if *is_generic && *is_auto {
        findings.push(generic(
            interface,
            format!("{interface}: the driver took no program, so XDP is generic there: slower, by the socket buffer"),
        ));
    }
    if *strips_vlan {
        findings.push(Finding::new(
            Check::VlanStrippingStays,
            interface,
            format!("{interface}: the driver still takes VLAN tags out of frames, where XDP cannot see them"),
            "answers of the data plane itself leave without a tag there; use an untagged port, or another driver",
        ));
    }
    findings
}

fn generic(interface: &str, found: String) -> Finding {
    Finding::new(Check::XdpGeneric, interface, found, "write mode: generic where that is meant, or use another driver")
}

fn mode_name(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
        XdpMode::Hardware => "offloaded",
    }
}

/// In MiB, and rounded up: nothing takes 0.
fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
