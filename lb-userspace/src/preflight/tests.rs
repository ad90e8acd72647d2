mod netlink;
mod resolve;

use std::collections::BTreeSet;

use super::{
    facts::{AttachedFacts, Device, End, Kernel, Memory, Pins, PinsState, Program, RunDirectory, Unseen},
    *,
};
use crate::{
    model::{
        Affinity, Announce, Capacities, Limits, Protocol, ReplyMode, RungChoice, Service, Snapshot, Uplink,
        XdpModeChoice,
    },
    net::{
        ethtool::Queues,
        filters::Filter,
        links::{InterfaceAddress, XdpMode},
        xdp_features::XdpFeatures,
    },
};
use netlink::Description;

/// A node on which nothing is wrong: two cards, one of them the uplink.
fn healthy() -> (Facts, Snapshot) {
    let mut facts = Facts {
        kernel: Kernel {
            release: "6.12.0".into(),
            tcx: Some(true),
            jit: Some(true),
            types: true,
            lockdown: Some("none".into()),
            unprivileged_bpf_disabled: Some(2),
            ..Kernel::default()
        },
        memory: Memory { maps_bytes: 100 << 20, available_bytes: Some(8 << 30), group_left_bytes: Some(1 << 30) },
        pins: Pins { path: "/sys/fs/bpf/sluice".into(), state: PinsState::Free, holder: None },
        run: RunDirectory { path: "/run/sluice".into(), ..RunDirectory::default() },
        cpus: 4,
        default_ways: vec![1],
        forwarding: [Some(true); 2],
        ..Facts::default()
    };
    set_links(&mut facts, &[Description::new(1, "eth1"), Description::new(2, "eth2")]);
    facts.devices.insert(1, card());
    facts.devices.insert(2, card());
    let service = Service {
        name: "web".into(),
        vip: "198.51.100.10".parse().unwrap(),
        protocol: Protocol::Tcp,
        port: 80,
        replies: ReplyMode::Static,
        rung: RungChoice::Auto,
        affinity: None::<Affinity>,
        health_check: None,
        backends: Vec::new(),
    };
    let snapshot = Snapshot {
        node_addresses: vec!["192.0.2.1".parse().unwrap()],
        uplinks: vec![uplink("eth1")],
        pin_directory: "/sys/fs/bpf/sluice".into(),
        run_directory: "/run/sluice".into(),
        capacities: Capacities::default(),
        limits: Limits::default(),
        observation: crate::model::Observation::default(),
        announce: Announce::default(),
        services: vec![service],
    };
    (facts, snapshot)
}

/// A driver that can everything.
fn card() -> Device {
    Device {
        driver: Some("mlx5_core".into()),
        xdp: Some(XdpFeatures(0x7f)),
        queues: Some(Queues { now: 4, most: 8, sending: 4 }),
        strips_vlan: Some(false),
        merges: Some(true),
        ..Device::default()
    }
}

fn uplink(interface: &str) -> Uplink {
    Uplink { interface: interface.to_owned(), mode: XdpModeChoice::Auto }
}

/// The first has the node's address.
fn set_links(facts: &mut Facts, descriptions: &[Description]) {
    facts.links = descriptions.iter().map(Description::parse).collect();
    facts.links[0].addresses.push(InterfaceAddress {
        address: "192.0.2.1".parse().unwrap(),
        prefix_length: 24,
        is_global: true,
        is_tentative: false,
        is_assigned: false,
    });
}

type Change = fn(&mut Facts, &mut Snapshot);

/// What is changed of a healthy node, and what that leads to beside the notes of what the uplinks are.
const CASES: &[(&str, Change, &[Check], &str)] = &[
    ("nothing", |_, _| {}, &[], ""),
    ("no tcx", |f, _| f.kernel.tcx = Some(false), &[Check::KernelVersion], "Linux 6.12.0 has no tcx"),
    (
        "an old release where nothing could be tried",
        |f, _| (f.kernel.tcx, f.kernel.release) = (None, "6.1.0-18-amd64".into()),
        &[Check::KernelVersion],
        "boot Linux 6.6 or newer",
    ),
    ("an old release that has it", |f, _| f.kernel.release = "5.14.0-503.el9".into(), &[], ""),
    (
        "a helper",
        |f, _| f.kernel.missing_helpers = vec!["XDP helper bpf_skc_lookup_tcp, which tells whose a session is".into()],
        &[Check::KernelHelper],
        "lacks XDP helper bpf_skc_lookup_tcp",
    ),
    ("no JIT", |f, _| f.kernel.jit = Some(false), &[Check::KernelJit], "sysctl -w net.core.bpf_jit_enable=1"),
    ("no types", |f, _| f.kernel.types = false, &[Check::KernelTypes], "20 ns more"),
    (
        "lockdown",
        |f, _| f.kernel.lockdown = Some("confidentiality".into()),
        &[Check::KernelLockdown],
        "locked down for confidentiality",
    ),
    ("integrity", |f, _| f.kernel.lockdown = Some("integrity".into()), &[], ""),
    (
        "BPF for everybody",
        |f, _| f.kernel.unprivileged_bpf_disabled = Some(0),
        &[Check::UnprivilegedBpf],
        "every user of this node may load BPF programs",
    ),
    (
        "capabilities",
        |f, _| f.missing_capabilities = vec!["CAP_BPF (to make maps and load programs)".into()],
        &[Check::Capabilities],
        "missing CAP_BPF",
    ),
    (
        "no memory",
        |f, _| f.memory.available_bytes = Some(99 << 20),
        &[Check::Memory],
        "the maps take 100 MiB, and 99 MiB are available",
    ),
    ("little memory", |f, _| f.memory.available_bytes = Some(199 << 20), &[Check::MemoryLow], "lower `capacities`"),
    ("a group's limit", |f, _| f.memory.group_left_bytes = Some(1), &[Check::MemoryLimit], "leaves 1 MiB"),
    (
        "no memory, and maps that an agent has left",
        |f, _| {
            (f.memory.available_bytes, f.memory.maps_bytes, f.pins.state) = (Some(1 << 20), 0, PinsState::Agents);
        },
        &[Check::PinsLeft],
        "",
    ),
    (
        "no memory, and an agent's maps of other capacities",
        |f, _| (f.memory.available_bytes, f.pins.state) = (Some(99 << 20), PinsState::Agents),
        &[Check::Memory, Check::PinsLeft],
        "the maps take 100 MiB",
    ),
    ("no limit", |f, _| f.memory.group_left_bytes = None, &[], ""),
    ("no bpffs", |f, _| f.pins.state = PinsState::NoBpffs, &[Check::BpffsMissing], "the agent mounts one"),
    ("a read-only bpffs", |f, _| f.pins.state = PinsState::ReadOnly, &[Check::BpffsReadOnly], "remount the bpffs"),
    (
        "files in the way",
        |f, _| f.pins.state = PinsState::NoPlace("it holds files, which a mount would hide".into()),
        &[Check::PinsNoPlace],
        "it holds files",
    ),
    (
        "others' pins",
        |f, _| f.pins.state = PinsState::Foreign("maps".into()),
        &[Check::PinsForeign],
        "`maps` is there, and not an agent's",
    ),
    (
        "an agent with another run directory",
        |f, _| (f.pins.state, f.pins.holder) = (PinsState::Agents, Some(7)),
        &[Check::PinsInUse],
        "another agent uses it (process 7)",
    ),
    ("a killed agent", |f, _| f.pins.state = PinsState::Agents, &[Check::PinsLeft], "an earlier agent has left"),
    (
        "a running agent",
        |f, _| (f.pins.state, f.pins.holder, f.run.holder) = (PinsState::Agents, Some(7), Some(7)),
        &[Check::AgentRunning],
        "an agent runs on this node (process 7)",
    ),
    (
        "no run directory",
        |f, _| f.run.obstacle = Some("/run is no directory".into()),
        &[Check::RunDirectory],
        "/run/sluice: /run is no directory; set runDirectory",
    ),
    (
        "another node's address",
        |_, s| s.node_addresses = vec!["192.0.2.9".parse().unwrap()],
        &[Check::NodeAddress],
        "node address 192.0.2.9 is on no interface",
    ),
    (
        "no forwarding",
        |f, _| f.forwarding = [Some(false); 2],
        &[Check::Forwarding],
        "does not forward IPv4: pods' replies would be lost, whatever the rung; sysctl -w net.ipv4.ip_forward=1",
    ),
    ("no forwarding of what no service has", |f, _| f.forwarding[1] = Some(false), &[], ""),
    ("another way out", |f, _| f.default_ways = vec![1, 2], &[Check::ReplyWay], "leaves by eth2, which is no uplink"),
    (
        "a VLAN with the addresses",
        |f, _| {
            set_links(f, &[Description::new(1, "eth1"), Description::new(5, "eth1.10").vlan(1, 10)]);
            f.default_ways = vec![5];
        },
        &[Check::ReplyWay],
        "name eth1.10 as an uplink",
    ),
    (
        "strict filters with two uplinks",
        |f, s| {
            f.strict_reverse_path = vec!["eth2".into()];
            s.uplinks.push(uplink("eth2"));
        },
        &[Check::ReversePath],
        "sysctl -w net.ipv4.conf.eth2.rp_filter=2",
    ),
    ("strict filters with one", |f, _| f.strict_reverse_path = vec!["eth1".into()], &[], ""),
    ("no such uplink", |_, s| s.uplinks = vec![uplink("eth3")], &[Check::UplinkMissing], "did you mean eth1?"),
    (
        "a bridge",
        |f, s| {
            set_links(f, &[Description::new(1, "br0").kind("bridge", &[])]);
            s.uplinks = vec![uplink("br0")];
        },
        &[Check::UplinkKind],
        "br0 is a bridge",
    ),
    (
        "a bridge's port",
        |f, _| {
            let port = Description::new(1, "eth1").part_of(9, "bridge", &[5, 0, 1, 0, 3, 0, 0, 0]);
            set_links(f, &[port, Description::new(9, "br0").kind("bridge", &[])]);
        },
        &[Check::UplinkBridgePort],
        "eth1 is a port of br0",
    ),
    (
        "a member",
        |f, _| set_links(f, &[Description::new(1, "eth1").bond_member(9), Description::new(9, "bond0").bond(1, None)]),
        &[Check::UplinkMember],
        "name bond0",
    ),
    (
        "a VRF",
        |f, _| {
            let member = Description::new(1, "eth1").part_of(9, "vrf", &[8, 0, 1, 0, 10, 0, 0, 0]);
            set_links(f, &[member, Description::new(9, "blue").kind("vrf", &[8, 0, 1, 0, 10, 0, 0, 0])]);
        },
        &[Check::UplinkVrf],
        "every question for a socket fails",
    ),
    (
        "a parent elsewhere",
        |f, _| set_links(f, &[Description::new(1, "eth1").vlan(7, 1).elsewhere(3)]),
        &[Check::UplinkElsewhere],
        "not in this network namespace",
    ),
    (
        "two modes",
        |f, s| {
            set_links(f, &[Description::new(1, "eth1"), Description::new(5, "v").vlan(1, 10)]);
            s.uplinks.push(Uplink { mode: XdpModeChoice::Generic, ..uplink("v") });
        },
        &[Check::UplinkModes],
        "uplink v asks for mode generic on eth1",
    ),
    (
        "a bond of everything",
        |f, s| {
            let mut all: Vec<_> = (100..165).map(|i| Description::new(i, &format!("p{i}")).bond_member(1)).collect();
            all.insert(0, Description::new(1, "eth1").bond(4, None));
            set_links(f, &all);
            f.devices = all.iter().map(|link| (link.parse().index, card())).collect();
            s.uplinks = vec![uplink("eth1")];
        },
        &[Check::UplinkTooMany],
        "p164 is one interface too many",
    ),
    (
        "a kind that nobody knows",
        |f, _| set_links(f, &[Description::new(1, "eth1").kind("warp", &[])]),
        &[Check::UplinkUntried],
        "eth1 is of kind warp",
    ),
    (
        "a bond without members",
        |f, _| set_links(f, &[Description::new(1, "eth1").bond(1, None)]),
        &[Check::UplinkNoMembers],
        "the agent attaches to them as they come",
    ),
    (
        "a bond that repeats itself",
        |f, _| {
            set_links(f, &[Description::new(1, "eth1").bond(3, None), Description::new(2, "eth2").bond_member(1)]);
        },
        &[Check::UplinkBroadcast],
        "delivered as often",
    ),
    ("down", |f, _| set_links(f, &[Description::new(1, "eth1").down()]), &[Check::UplinkDown], "ip link set eth1 up"),
    (
        "no carrier",
        |f, _| set_links(f, &[Description::new(1, "eth1").without_carrier()]),
        &[Check::UplinkDown],
        "eth1 has no carrier",
    ),
    (
        "another XDP program",
        |f, _| device(f).other_xdp = vec![Program { place: "xdp", name: Some("other".into()), id: 41 }],
        &[Check::XdpOther],
        "eth1 has XDP program other (id 41) already; detach it first",
    ),
    (
        "an XDP program on the bond",
        |f, _| {
            set_links(
                f,
                &[Description::new(1, "eth1").bond(1, None).xdp(42), Description::new(2, "eth2").bond_member(1)],
            );
        },
        &[Check::XdpOther],
        "eth1 has XDP program id 42 already; nothing can be attached below it",
    ),
    (
        "no native mode where it is asked for",
        |f, s| {
            device(f).xdp = Some(XdpFeatures(0));
            device(f).merges = Some(false);
            s.uplinks[0].mode = XdpModeChoice::Native;
        },
        &[Check::XdpNoNative],
        "the driver mlx5_core runs no XDP programs",
    ),
    (
        "no native mode",
        |f, _| (device(f).xdp, device(f).merges) = (Some(XdpFeatures(0)), Some(false)),
        &[Check::XdpGeneric],
        "XDP is generic there",
    ),
    (
        "no native mode, and merging",
        |f, _| device(f).xdp = Some(XdpFeatures(0)),
        &[Check::XdpGeneric, Check::GenericGro],
        "the agent switches GRO and LRO off",
    ),
    (
        "generic mode asked for",
        |f, s| {
            (device(f).xdp, device(f).merges) = (Some(XdpFeatures(0)), Some(false));
            s.uplinks[0].mode = XdpModeChoice::Generic;
        },
        &[],
        "",
    ),
    ("no redirect", |f, _| device(f).xdp = Some(XdpFeatures(0x21)), &[Check::XdpNoRedirect], "does not redirect"),
    (
        "a large MTU and no frags",
        |f, _| {
            set_links(f, &[Description::new(1, "eth1").mtu(9000)]);
            device(f).xdp = Some(XdpFeatures(0x07));
        },
        &[Check::XdpMtu],
        "MTU 9000 may be more than the driver",
    ),
    ("a large MTU and frags", |f, _| set_links(f, &[Description::new(1, "eth1").mtu(9000)]), &[], ""),
    ("few queues", |f, _| f.cpus = 8, &[Check::XdpQueues], "ethtool -L eth1 combined 8"),
    ("too few queues", |f, _| f.cpus = 64, &[Check::XdpQueues], "write mode: generic"),
    (
        "a veth",
        |f, _| veth(f, End { sending_queues: Some(1), has_native_xdp: false }),
        &[Check::VethPeer],
        "the other end of this veth has no XDP program",
    ),
    (
        "a veth with few queues",
        |f, _| veth(f, End { sending_queues: Some(8), has_native_xdp: true }),
        &[Check::VethQueues],
        "ethtool -L eth1 rx 8",
    ),
    (
        "a veth with few queues where native mode is asked for",
        |f, s| {
            veth(f, End { sending_queues: Some(8), has_native_xdp: true });
            s.uplinks[0].mode = XdpModeChoice::Native;
        },
        &[Check::XdpNoNative],
        "no native XDP",
    ),
    (
        "a veth whose other end cannot be asked",
        |f, _| veth(f, End { sending_queues: None, has_native_xdp: true }),
        &[],
        "",
    ),
    ("a veth as it should be", |f, _| veth(f, End { sending_queues: Some(4), has_native_xdp: true }), &[], ""),
    (
        "others' tcx programs",
        |f, _| device(f).other_tcx = vec![Program { place: "ingress", name: Some("cil_from_netdev".into()), id: 9 }],
        &[Check::TcxOther],
        "eth1 has tcx program cil_from_netdev (id 9) at ingress",
    ),
    (
        "filters",
        |f, _| device(f).filters = vec![Filter { kind: "bpf".into(), place: "egress" }],
        &[Check::TcFilters],
        "eth1 has tc filters of kind bpf at egress",
    ),
    (
        "tags taken out",
        |f, _| device(f).strips_vlan = Some(true),
        &[Check::VlanStripping],
        "the agent switches rx-vlan-offload off",
    ),
    (
        "something unseen",
        |f, _| f.unseen = vec![Unseen { what: "routes".into(), why: "needs CAP_X".into() }],
        &[Check::NotSeen],
        "routes could not be looked at: needs CAP_X",
    ),
    ("nobody could look at the uplink", |f, _| *device(f) = Device::default(), &[], ""),
];

fn device(facts: &mut Facts) -> &mut Device {
    facts.devices.entry(1).or_default()
}

fn veth(facts: &mut Facts, end: End) {
    set_links(facts, &[Description::new(1, "eth1").link(4).elsewhere(0).kind("veth", &[])]);
    device(facts).end = Some(end);
}

#[test]
fn each_fact_leads_to_its_finding_and_to_no_other() {
    for (name, change, expected, words) in CASES {
        let (mut facts, mut snapshot) = healthy();
        change(&mut facts, &mut snapshot);
        let mut findings = check(&facts, &snapshot);
        findings.retain(|finding| finding.id != Check::UplinkIs);
        let found: Vec<Check> = findings.iter().map(|finding| finding.id).collect();
        assert_eq!(&found, expected, "{name}: {findings:#?}");
        let text: Vec<String> = findings.iter().map(Finding::to_string).collect();
        assert!(text.join("\n").contains(words), "{name}: {words:?} is not in {text:?}");
    }
}

fn attached_natively() -> AttachedFacts {
    AttachedFacts {
        interface: "eth1".into(),
        is_generic: false,
        is_auto: true,
        program_id: Some(41),
        reported: vec![(XdpMode::Native, 41)],
        strips_vlan: false,
    }
}

/// A change of the facts, and what is found then.
type Found = (fn(&mut AttachedFacts), &'static [Check]);

/// What becomes of an uplink that is attached.
const ATTACHED: &[Found] = &[
    (|_| {}, &[Check::XdpAttached]),
    (|f| f.program_id = None, &[Check::XdpAttached]),
    (|f| f.strips_vlan = true, &[Check::XdpAttached, Check::VlanStrippingStays]),
    (|f| f.reported = vec![], &[Check::XdpMode]),
    (|f| f.reported = vec![(XdpMode::Native, 42)], &[Check::XdpMode]),
    (|f| f.reported = vec![(XdpMode::Generic, 41)], &[Check::XdpMode]),
    (|f| (f.is_generic, f.reported) = (true, vec![(XdpMode::Generic, 41)]), &[Check::XdpAttached, Check::XdpGeneric]),
    (|f| (f.is_generic, f.is_auto, f.reported) = (true, false, vec![(XdpMode::Generic, 41)]), &[Check::XdpAttached]),
];

#[test]
fn what_the_kernel_reports_is_compared_with_what_was_attached() {
    for (at, (change, expected)) in ATTACHED.iter().enumerate() {
        let mut facts = attached_natively();
        change(&mut facts);
        let found: Vec<Check> = attached(&facts).iter().map(|finding| finding.id).collect();
        assert_eq!(&found, expected, "row {at}");
    }
}

#[test]
fn every_check_has_a_case() {
    let cases = CASES.iter().flat_map(|(_, _, checks, _)| checks.iter());
    let attached = ATTACHED.iter().flat_map(|(_, checks)| checks.iter());
    let mut seen: BTreeSet<Check> = cases.chain(attached).copied().collect();
    // Of every uplink, also of a healthy one.
    seen.insert(Check::UplinkIs);
    let missing: Vec<_> = Check::ALL.iter().filter(|check| !seen.contains(check)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_healthy_node_is_described_in_one_line_for_each_interface() {
    let (mut facts, mut snapshot) = healthy();
    let members = [Description::new(1, "eth1").bond_member(9), Description::new(2, "eth2").bond_member(9)];
    set_links(&mut facts, &[&members[..], &[Description::new(9, "bond0").bond(1, Some(2))]].concat());
    facts.default_ways = vec![9];
    snapshot.uplinks = vec![uplink("bond0")];
    let findings = check(&facts, &snapshot);
    let text: Vec<String> = findings.iter().map(Finding::to_string).collect();
    let of = |name| {
        format!("{name}: driver mlx5_core, native XDP redirect frags, queues 4 for 4 CPUs, MTU 1500, below bond0")
    };
    assert_eq!(text, [of("eth2"), of("eth1")]);
    assert!(Report::new(&findings).passes(true));
}

#[test]
fn only_refusals_fail_unless_strictness_is_asked_for() {
    let report = |checks: &[Check], strict| {
        let findings: Vec<Finding> = checks.iter().map(|check| Finding::note(*check, "x", "y")).collect();
        Report::new(&findings).passes(strict)
    };
    let soft = [Check::VethPeer, Check::NotSeen, Check::BpffsMissing, Check::UplinkIs];
    assert!(report(&soft, false) && !report(&soft, true) && !report(&[Check::NotSeen], true));
    assert!(report(&[Check::BpffsMissing, Check::UplinkIs], true));
    assert!(!report(&[Check::XdpOther], false));
}

#[test]
fn what_is_refused_comes_first() {
    let (mut facts, mut snapshot) = healthy();
    facts.kernel.types = false;
    facts.pins.state = PinsState::NoBpffs;
    snapshot.uplinks = vec![uplink("nope"), uplink("eth1")];
    facts.unseen = vec![Unseen { what: "routes".into(), why: "no".into() }];
    let findings = check(&facts, &snapshot);
    let severities: Vec<Severity> = findings.iter().map(|finding| finding.severity).collect();
    let order = [Severity::Refused, Severity::Warned, Severity::Unseen, Severity::Mended, Severity::Noted];
    assert_eq!(severities, order);
    let table = render_table(&findings);
    assert!(table.starts_with("refused  uplink-missing  uplink nope does not exist"), "{table}");
    assert!(table.ends_with("The agent would not start here: 1 refused, 1 warned, 1 unseen.\n"), "{table}");
}

#[test]
fn a_finding_survives_the_way_through_json() {
    let finding = Finding::new(Check::XdpOther, "eth1", "found", "advice");
    let text = serde_json::to_string(&finding).unwrap();
    assert!(text.starts_with(r#"{"id":"xdp-other","severity":"refused","object":"eth1""#), "{text}");
    assert_eq!(serde_json::from_str::<Finding>(&text).unwrap(), finding);
}
