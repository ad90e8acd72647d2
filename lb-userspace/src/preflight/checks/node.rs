//! The node as a whole: kernel, privileges, memory, directories, forwarding.

use std::net::IpAddr;

use super::mebibytes;
use crate::{
    model::{Rung, RungChoice, Snapshot},
    preflight::{
        Check, Facts, Finding,
        facts::{Kernel, Memory, Pins, PinsState, RunDirectory, has_address},
        resolve,
    },
};

/// The first Linux with tcx, for which nothing stands in.
const OLDEST: (u32, u32) = (6, 6);

pub(super) fn check(facts: &Facts, snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = Vec::new();
    kernel(&facts.kernel, &mut findings);
    if !facts.missing_capabilities.is_empty() {
        let found = format!("not allowed to run: missing {}", facts.missing_capabilities.join(", "));
        findings.push(Finding::new(Check::Capabilities, "process", found, "run as root, or grant them"));
    }
    memory(&facts.memory, &mut findings);
    pins(&facts.pins, &facts.run, &mut findings);
    run_directory(&facts.run, &mut findings);
    network(facts, snapshot, &mut findings);
    findings
}

fn kernel(kernel: &Kernel, findings: &mut Vec<Finding>) {
    // What was tried says more than a number: distributions bring later things into old kernels.
    let too_old = kernel.tcx.map_or_else(|| version(&kernel.release).is_some_and(|is| is < OLDEST), |tcx| !tcx);
    if too_old {
        let found = format!("Linux {} has no tcx, by which programs are attached to interfaces", kernel.release);
        findings.push(Finding::new(Check::KernelVersion, "kernel", found, "boot Linux 6.6 or newer"));
    }
    for helper in &kernel.missing_helpers {
        findings.push(Finding::new(
            Check::KernelHelper,
            "kernel",
            format!("Linux {} lacks {helper}", kernel.release),
            "boot a kernel with CONFIG_NET, CONFIG_INET, CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_ACT, 6.6 or newer",
        ));
    }
    if kernel.jit == Some(false) {
        findings.push(Finding::new(
            Check::KernelJit,
            "net.core.bpf_jit_enable",
            "the kernel interprets BPF, and refuses programs that call kernel functions then",
            "sysctl -w net.core.bpf_jit_enable=1",
        ));
    }
    if !kernel.types {
        findings.push(Finding::new(
            Check::KernelTypes,
            "kernel",
            "the kernel has no bpf_cast_to_kern_ctx, or does not show its types: a reply costs some 20 ns more",
            "use a kernel with CONFIG_DEBUG_INFO_BTF, or live with it",
        ));
    }
    if kernel.lockdown.as_deref() == Some("confidentiality") {
        let found = "the kernel is locked down for confidentiality; Sluice calls nothing that this forbids";
        findings.push(Finding::note(Check::KernelLockdown, "kernel", found));
    }
    if kernel.unprivileged_bpf_disabled == Some(0) {
        findings.push(Finding::new(
            Check::UnprivilegedBpf,
            "kernel.unprivileged_bpf_disabled",
            "every user of this node may load BPF programs, which has been a way to read the kernel's memory",
            "sysctl -w kernel.unprivileged_bpf_disabled=2; Sluice does not need it",
        ));
    }
}

/// Major and minor number of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn memory(memory: &Memory, findings: &mut Vec<Finding>) {
    let needed = memory.maps_bytes;
    let advice = "lower `capacities`, which the maps' memory follows from, or give more memory";
    let mut add = |check, object, found: String| findings.push(Finding::new(check, object, found, advice));
    if let Some(available) = memory.available_bytes {
        let found = format!("the maps take {}, and {} are available", mebibytes(needed), mebibytes(available));
        if needed > available {
            add(Check::Memory, "memory", found);
        } else if needed > available / 2 {
            add(Check::MemoryLow, "memory", found);
        }
    }
    if let Some(left) = memory.group_left_bytes.filter(|left| needed > *left) {
        let found = format!("the maps take {}, and the control group leaves {}", mebibytes(needed), mebibytes(left));
        add(Check::MemoryLimit, "memory.max", found);
    }
}

fn pins(pins: &Pins, run: &RunDirectory, findings: &mut Vec<Finding>) {
    let path = pins.path.display().to_string();
    let mut add = |check, found: String, advice: &str| findings.push(Finding::new(check, &path, found, advice));
    match &pins.state {
        PinsState::NoBpffs => add(
            Check::BpffsMissing,
            format!("{path} is on no bpffs"),
            "the agent mounts one; mount it at boot where several programs use it",
        ),
        PinsState::NoPlace(obstacle) => {
            add(Check::PinsNoPlace, format!("{path}: {obstacle}"), "set pinDirectory to a directory on a bpffs");
        }
        PinsState::ReadOnly => add(
            Check::BpffsReadOnly,
            format!("{path} is on a bpffs that is mounted read-only (Read-only file system)"),
            "remount the bpffs read-write, or set pinDirectory to one that is",
        ),
        PinsState::Foreign(part) => add(
            Check::PinsForeign,
            format!("{path}: `{part}` is there, and not an agent's"),
            "set pinDirectory to a directory of its own",
        ),
        PinsState::Unseen | PinsState::Free | PinsState::Agents => {}
    }
    match pins.holder {
        Some(holder) if run.holder != Some(holder) => add(
            Check::PinsInUse,
            format!("{path}: another agent uses it (process {holder}), with another run directory"),
            "stop the agent that uses it, or set another pinDirectory",
        ),
        None if pins.state == PinsState::Agents => {
            let found = format!("{path}: an earlier agent has left its programs and maps, which the next one takes up");
            findings.push(Finding::note(Check::PinsLeft, &path, found));
        }
        _ => {}
    }
}

fn run_directory(run: &RunDirectory, findings: &mut Vec<Finding>) {
    let path = run.path.display().to_string();
    if let Some(obstacle) = &run.obstacle {
        let advice = "set runDirectory to one that may be written";
        findings.push(Finding::new(Check::RunDirectory, &path, format!("{path}: {obstacle}"), advice));
    }
    if let Some(holder) = run.holder {
        let found = format!("an agent runs on this node (process {holder}); the next starts only when it has ended");
        findings.push(Finding::note(Check::AgentRunning, &path, found));
    }
}

fn network(facts: &Facts, snapshot: &Snapshot, findings: &mut Vec<Finding>) {
    for address in snapshot.node_addresses.iter().filter(|address| !has_address(&facts.links, **address)) {
        findings.push(Finding::new(
            Check::NodeAddress,
            address.to_string(),
            format!("node address {address} is on no interface of this node"),
            "write the addresses of this node; ICMP errors of the data plane come from them",
        ));
    }
    let families = [("IPv4", "net.ipv4.ip_forward", true), ("IPv6", "net.ipv6.conf.all.forwarding", false)];
    for (forwards, (family, setting, is_v4)) in facts.forwarding.into_iter().zip(families) {
        let used = snapshot.services.iter().any(|service| service.vip.is_ipv4() == is_v4);
        if used && forwards == Some(false) {
            findings.push(Finding::new(
                Check::Forwarding,
                setting,
                format!("this node does not forward {family}: pods' replies would be lost, whatever the rung"),
                format!("sysctl -w {setting}=1"),
            ));
        }
    }
    reverse_path(facts, snapshot, findings);
    let exits: Vec<u32> =
        resolve::resolve(&snapshot.uplinks, &facts.links).places.into_iter().flat_map(|place| place.exits).collect();
    let mut ways = facts.default_ways.clone();
    ways.dedup();
    // Without an uplink there is more to say than this.
    for way in ways.into_iter().filter(|way| !exits.is_empty() && !exits.contains(way)) {
        let name = resolve::by_index(&facts.links, way).map_or_else(|| way.to_string(), |link| link.name.clone());
        findings.push(Finding::new(
            Check::ReplyWay,
            &name,
            format!("a default route leaves by {name}, which is no uplink: replies to clients there do not leave"),
            format!("name {name} as an uplink, unless no client is behind it"),
        ));
    }
}

/// What XDP passes on to the stack meets the filter, and may have come by another uplink than its sender's.
fn reverse_path(facts: &Facts, snapshot: &Snapshot, findings: &mut Vec<Finding>) {
    let by_stack = |choice: &RungChoice| matches!(choice, RungChoice::Auto | RungChoice::Only(Rung::Stack));
    let concerned =
        snapshot.services.iter().any(|service| matches!(service.vip, IpAddr::V4(_)) && by_stack(&service.rung));
    if snapshot.uplinks.len() < 2 || !concerned {
        return;
    }
    for uplink in snapshot.uplinks.iter().filter(|uplink| facts.strict_reverse_path.contains(&uplink.interface)) {
        let name = &uplink.interface;
        findings.push(Finding::new(
            Check::ReversePath,
            name,
            format!(
                "{name}: strict reverse path filtering drops what rung stack passes on, where it came by another uplink"
            ),
            format!("sysctl -w net.ipv4.conf.{name}.rp_filter=2, unless each client always comes by the same uplink"),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn a_release_begins_with_its_version() {
        assert_eq!(version("6.6.0-rc1+"), Some((6, 6)));
        assert_eq!(version("5.14.0-503.el9.x86_64"), Some((5, 14)));
        assert_eq!(version("6-x"), None);
        assert_eq!(version(""), None);
    }
}
