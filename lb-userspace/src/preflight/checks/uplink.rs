//! The uplinks: what they mean, and each interface that programs are attached to.

use super::generic;
use crate::{
    model::{Uplink, XdpModeChoice},
    net::links::{Link, LinkKind},
    preflight::{
        Check, Facts, Finding,
        facts::{Device, Program},
        resolve::{self, Place},
    },
};

/// Largest IP packet of native XDP where frames lie in one page: the page, less the headroom of 256 bytes, the shared
/// information of 320, and an Ethernet header with two tags. Drivers differ by some bytes below it.
const PAGE_MTU: u32 = 4096 - 256 - 320 - 22;

pub(super) fn check(facts: &Facts, uplinks: &[Uplink]) -> Vec<Finding> {
    // Every namespace has `lo`: without any interface nobody could look, which is told as unseen.
    if facts.links.is_empty() {
        return Vec::new();
    }
    let resolution = resolve::resolve(uplinks, &facts.links);
    let mut findings = resolution.refused;
    for uplink in uplinks {
        if let Some(link) = facts.links.iter().find(|link| link.name == uplink.interface) {
            configured(link, facts, &mut findings);
        }
    }
    for place in &resolution.places {
        let Some(link) = resolve::by_index(&facts.links, place.index) else { continue };
        let unseen = Device::default();
        let device = facts.devices.get(&place.index).unwrap_or(&unseen);
        state(link, &mut findings);
        if let LinkKind::Other(kind) = &link.kind {
            let found = format!("{} is of kind {kind}, which nobody has tried", link.name);
            let advice = "see by the status whether the self-test of the rungs passes, and which mode XDP got";
            findings.push(Finding::new(Check::UplinkUntried, &link.name, found, advice));
        }
        findings.push(Finding::note(Check::UplinkIs, &link.name, describe(link, device, place, facts)));
        programs(link, device, &mut findings);
        let native = place.wanted.mode != XdpModeChoice::Generic;
        if native {
            native_mode(link, device, place.wanted.mode, facts.cpus, &mut findings);
        }
        offloads(link, device, native, &mut findings);
    }
    findings
}

/// The interface that the configuration names, where it is not the wire itself.
fn configured(link: &Link, facts: &Facts, findings: &mut Vec<Finding>) {
    let name = &link.name;
    if let LinkKind::Bond(bond) = &link.kind
        && bond.is_broadcast
    {
        findings.push(Finding::new(
            Check::UplinkBroadcast,
            name,
            format!(
                "the bond {name} is in mode broadcast: a packet that comes by several members is delivered as often"
            ),
            "use another mode, such as active-backup or 802.3ad",
        ));
    }
    if !matches!(link.kind, LinkKind::Bond(_) | LinkKind::Vlan(_)) {
        return;
    }
    let Ok((_, wires)) = resolve::wires(name, &facts.links) else { return };
    if wires.is_empty() {
        findings.push(Finding::new(
            Check::UplinkNoMembers,
            name,
            format!("{name} has no interface below it: nothing comes in"),
            format!("give the bond members (`ip link set DEV master {name}`); the agent attaches to them as they come"),
        ));
    }
    state(link, findings);
    // What is attached above keeps the kernel from attaching below.
    if let Some(attached) = link.xdp.first() {
        let program = Program { place: "xdp", name: None, id: attached.program_id };
        findings.push(other_xdp(name, &program, "; nothing can be attached below it"));
    }
}

fn state(link: &Link, findings: &mut Vec<Finding>) {
    let name = &link.name;
    let (found, advice) = match (link.is_up, link.is_running) {
        (true, true) => return,
        (false, _) => (format!("{name} is down"), format!("ip link set {name} up")),
        (true, false) => (format!("{name} has no carrier"), "see to the cable and the switch".to_owned()),
    };
    findings.push(Finding::new(Check::UplinkDown, name, found, advice));
}

/// One line of what is known of an interface.
fn describe(link: &Link, device: &Device, place: &Place, facts: &Facts) -> String {
    let mut parts = vec![format!("driver {}", device.driver.as_deref().unwrap_or("unknown"))];
    parts.extend(device.xdp.map(|xdp| {
        let able = [(xdp.redirects(), " redirect"), (xdp.takes_large_frames(), " frags")];
        let able: String = able.iter().filter(|(can, _)| *can).map(|(_, name)| *name).collect();
        if xdp.is_native() { format!("native XDP{able}") } else { "no native XDP".to_owned() }
    }));
    parts.extend(device.queues.map(|queues| format!("queues {} for {} CPUs", queues.now, facts.cpus)));
    parts.push(format!("MTU {}", link.mtu));
    let above = place.exits.iter().filter(|exit| **exit != link.index);
    let above: Vec<&str> =
        above.filter_map(|exit| resolve::by_index(&facts.links, *exit)).map(|exit| exit.name.as_str()).collect();
    if !above.is_empty() {
        parts.push(format!("below {}", above.join(", ")));
    }
    format!("{}: {}", link.name, parts.join(", "))
}

fn other_xdp(name: &str, program: &Program, addition: &str) -> Finding {
    let program_name = program
        .name
        .as_deref()
        .map_or_else(|| format!("id {}", program.id), |program_name| format!("{program_name} (id {})", program.id));
    let found = format!("{name} has XDP program {program_name} already{addition}");
    Finding::new(Check::XdpOther, name, found, format!("detach it first, for instance by `ip link set {name} xdp off`"))
}

fn programs(link: &Link, device: &Device, findings: &mut Vec<Finding>) {
    let name = &link.name;
    findings.extend(device.other_xdp.iter().map(|program| other_xdp(name, program, "")));
    for program in &device.other_tcx {
        let which = program.name.as_deref().unwrap_or("without a name");
        findings.push(Finding::new(
            Check::TcxOther,
            name,
            format!("{name} has tcx program {which} (id {}) at {}", program.id, program.place),
            "see that it lets packets of VIPs and pods through: which comes first follows from who attaches last",
        ));
    }
    for filter in &device.filters {
        findings.push(Finding::new(
            Check::TcFilters,
            name,
            format!("{name} has tc filters of kind {} at {}", filter.kind, filter.place),
            "they see only what Sluice leaves alone: a policy among them does not meet packets of VIPs",
        ));
    }
}

fn native_mode(link: &Link, device: &Device, mode: XdpModeChoice, cpus: u32, findings: &mut Vec<Finding>) {
    let name = &link.name;
    let driver = device.driver.as_deref().unwrap_or("unknown");
    if let Some(too_few) = veth_queues(link, device, mode) {
        return findings.push(too_few);
    }
    if let Some(xdp) = device.xdp {
        if !xdp.is_native() {
            let found = format!("{name}: the driver {driver} runs no XDP programs");
            findings.push(if mode == XdpModeChoice::Native {
                Finding::new(
                    Check::XdpNoNative,
                    name,
                    found,
                    "write mode: auto or mode: generic, or use another driver",
                )
            } else {
                generic(name, found + ", so XDP is generic there: slower, by the socket buffer")
            });
            return;
        }
        if !xdp.redirects() {
            findings.push(Finding::new(
                Check::XdpNoRedirect,
                name,
                format!(
                    "{name}: the driver {driver} does not redirect: rungs redirect and direct fail their self-test"
                ),
                "leave the rung to the agent, which takes peer then, or use another driver",
            ));
        }
        if !xdp.takes_large_frames() && link.mtu > PAGE_MTU {
            findings.push(Finding::new(
                Check::XdpMtu,
                name,
                format!(
                    "{name}: MTU {} may be more than the driver {driver} takes with XDP, which is a page",
                    link.mtu
                ),
                format!("ip link set {name} mtu {PAGE_MTU}, or less where the kernel's log says so"),
            ));
        }
    }
    if link.kind == LinkKind::Veth {
        findings.extend(veth_peer(link, device));
    } else if let Some(queues) = device.queues.filter(|queues| queues.now < cpus) {
        let advice = if queues.most >= cpus {
            format!("ethtool -L {name} combined {cpus}")
        } else {
            "if the driver refuses the program, write mode: generic; else CPUs share queues, and nothing is lost"
                .to_owned()
        };
        findings.push(Finding::new(
            Check::XdpQueues,
            name,
            format!(
                "{name}: fewer queues ({}) than CPUs ({cpus}), and some drivers want one for each to run XDP",
                queues.now
            ),
            advice,
        ));
    }
}

/// Whether a veth has too few queues for native mode: the kernel then takes the feature from it, and refuses programs
/// (`veth_xdp_set`, `veth_set_xdp_features`).
fn veth_queues(link: &Link, device: &Device, mode: XdpModeChoice) -> Option<Finding> {
    let name = &link.name;
    let receiving = device.queues.map_or(link.queues.0, |queues| queues.now);
    let sending = device.end?.sending_queues.filter(|sending| receiving < *sending)?;
    let check = if mode == XdpModeChoice::Native { Check::XdpNoNative } else { Check::VethQueues };
    Some(Finding::new(
        check,
        name,
        format!("{name}: fewer receiving queues ({receiving}) than its other end sends by ({sending}): no native XDP"),
        format!("ethtool -L {name} rx {sending}, or fewer sending queues at the other end"),
    ))
}

fn veth_peer(link: &Link, device: &Device) -> Option<Finding> {
    let name = &link.name;
    device.end.filter(|end| !end.has_native_xdp)?;
    Some(Finding::new(
        Check::VethPeer,
        name,
        format!("{name}: the other end of this veth has no XDP program, so what XDP sends back by it vanishes"),
        "attach one that passes everything there, or write mode: generic; echo replies and refusals are lost else",
    ))
}

fn offloads(link: &Link, device: &Device, native: bool, findings: &mut Vec<Finding>) {
    let name = &link.name;
    if device.strips_vlan == Some(true) {
        let found = format!("{name}: the driver takes VLAN tags out of frames, where XDP cannot see them");
        findings.push(Finding::new(Check::VlanStripping, name, found, "the agent switches rx-vlan-offload off"));
    }
    let generic = !native || device.xdp.is_some_and(|xdp| !xdp.is_native());
    if generic && device.merges == Some(true) {
        let found = format!("{name}: packets are merged, and generic XDP drops what was merged when it redirects it");
        findings.push(Finding::new(Check::GenericGro, name, found, "the agent switches GRO and LRO off"));
    }
}
