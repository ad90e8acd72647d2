//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! The pinned maps as an operator sees them: bpftool prints every one with named fields, and values that people read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;
use lb_tests::{
    agent::{Agent, Configuration, Service, available},
    lab::{ELEMENT, Family, Lab, NODE, Options, ROUTER_END, UPLINK, vip, wait_until},
    packets::neighbor::Arp,
    programs::conversation::{self, Conversation, Speaker},
};
use lb_userspace::{
    config,
    dataplane::{capacity::Sizes, object},
};
use serde_json::Value;

const TCP: u64 = 6;
const UDP: u64 = 17;
const VIP_PORT: u16 = 80;
const POD_PORT: u16 = 8080;
const UDP_VIP_PORT: u16 = 162;
const UDP_POD_PORT: u16 = 1162;
/// Small, because bpftool prints every element, and not one of them the default.
const CAPACITIES: &str =
    "capacities: {services: 64, backends: 128, maglevSlots: 4096, bypasses: 256, flows: 1024, fragments: 64}\n";
/// What the kernel may take beyond the reckoning, for each map: its own part and the rounding to pages and buckets.
const SLACK_BYTES: u64 = 16 * 1024;
/// The same for a whole set of maps, in percent.
const SLACK_PERCENT: u64 = 5;

/// Every map with the fields of its key and of its value, in the order of `lb-common`; none where it is one number.
const FIELDS: &[(&str, &[&str], &[&str])] = &[
    (
        "services",
        SERVICE_KEY,
        &["slots", "backends", "backends_count", "slots_log2", "flags", "histories", "id", "affinity"],
    ),
    ("vips", &["bytes"], &[]),
    ("service_index", &[], &["sequence", "entries"]),
    ("backend_vips", &[], SERVICE_KEY),
    ("maglev", &[], &["slots"]),
    ("histories", &[], &["count", "owners"]),
    (
        "backends",
        &[],
        &[
            "address",
            "id",
            "endpoint",
            "ifindex",
            "tx_port",
            "mtu",
            "netns_id",
            "generation",
            "port",
            "rung",
            "flags",
            "destination_mac",
            "source_mac",
            "address_change",
        ],
    ),
    ("endpoints", SERVICE_KEY, &["vip", "vip_port", "flags", "id", "backend", "netns_id"]),
    ("endpoint_index", &[], &["sequence", "entries"]),
    ("bypasses", &["client", "pod", "client_port", "pod_port", "protocol", "pad", "pad2"], &["backend", "since"]),
    ("endpoint_bypasses", &[], &["count", "watch"]),
    ("flows", &[], &["entries"]),
    ("uplinks", &[], &["mac", "pad"]),
    ("routes", &[], &["client", "since", "epoch", "ifindex", "flags", "destination_mac", "source_mac", "mtu"]),
    ("node", &[], &["settings", "vip_filter"]),
    ("limiters", &[], &["tokens", "since"]),
    ("reasons", &[], &["packets", "bytes"]),
    ("backend_counters", &[], &["packets", "bytes", "reply_packets", "reply_bytes"]),
    ("programs", &[], &[]),
    ("return_programs", &[], &[]),
    ("fragments", &[], &["entries"]),
    ("members", &[], &["service", "pod", "since", "endpoint", "port", "pad", "weight", "position", "flags", "pad2"]),
    ("holders", HOLDER_KEY, &["until", "mac", "flags"]),
    ("virtual_macs", &["interface", "vlan", "family", "vrid"], &["until", "own", "pad"]),
    ("conflicts", HOLDER_KEY, &["count", "last", "mac", "pad"]),
    ("about", &[], &["magic", "abi_version", "flow_format", "build"]),
    ("undo", &["netns_cookie", "ifindex", "setting"], &["was_on", "pad"]),
];
const SETTINGS: &[&str] = &[
    "abi_version",
    "uplink",
    "maglev_seed",
    "table_seed",
    "node_v4",
    "node_v6",
    "limits",
    "route_lifetime",
    "route_epoch",
    "fragment_lifetime",
];
const SERVICE_KEY: &[&str] = &["address", "port", "protocol", "pad", "interface"];
const HOLDER_KEY: &[&str] = &["address", "interface", "vlan", "pad"];
/// The kernel takes no types for device maps (kernel/bpf/devmap.c, `map_check_no_btf`).
const WITHOUT_TYPES: &str = "tx_ports";

fn bpftool(arguments: &[&str], pin: &Path) -> Result<String> {
    let output = Command::new("bpftool").args(arguments).arg(pin).stdin(Stdio::null()).output().context("bpftool")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "bpftool {arguments:?} {}: {text}", pin.display());
    Ok(text)
}

/// Every map as `bpftool -j map dump` prints it: a list of typed keys and values.
fn dump_all(maps: &Path) -> Result<BTreeMap<String, Vec<(Value, Value)>>> {
    FIELDS.iter().map(|(name, ..)| Ok(((*name).to_owned(), dump_map(maps, name)?))).collect()
}

fn dump_map(maps: &Path, name: &str) -> Result<Vec<(Value, Value)>> {
    let dumped: Value = serde_json::from_str(&bpftool(&["-j", "map", "dump", "pinned"], &maps.join(name))?)?;
    let entries = dumped.as_array().context("not a list")?.iter().map(|entry| {
        let typed = &entry["formatted"];
        ensure!(typed.is_object(), "an entry of {name} has no types: {entry}");
        let value = if typed["value"].is_null() { &typed["values"] } else { &typed["value"] };
        Ok((typed["key"].clone(), value.clone()))
    });
    entries.collect()
}

fn names(value: &Value) -> BTreeSet<&str> {
    value.as_object().map(|fields| fields.keys().map(String::as_str).collect()).unwrap_or_default()
}

/// The named fields of everything that is printed.
fn check_fields(dump: &BTreeMap<String, Vec<(Value, Value)>>) -> Result<()> {
    for (name, key_fields, value_fields) in FIELDS {
        let entries = &dump[*name];
        ensure!(!entries.is_empty(), "{name} is empty: nothing is shown");
        for (key, value) in entries {
            ensure!(names(key) == key_fields.iter().copied().collect(), "key of {name}: {key}");
            // One value for each CPU, or one.
            let cpus = value.as_array().map(|cpus| cpus.iter().map(|cpu| &cpu["value"]).collect());
            for value in cpus.unwrap_or_else(|| vec![value]) {
                ensure!(names(value) == value_fields.iter().copied().collect(), "value of {name}: {value}");
            }
        }
    }
    Ok(())
}

/// An address as people write it, byte by byte: IPv4 in its IPv4-mapped form.
fn bytes(address: IpAddr) -> Value {
    let v6 = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    serde_json::json!({ "bytes": v6.octets() })
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("{value} is no number"))
}

/// The value under the key that `wanted` accepts, which must be one.
fn only(entries: &[(Value, Value)], wanted: impl Fn(&Value) -> bool) -> Result<&Value> {
    let found: Vec<_> = entries.iter().filter(|(key, _)| wanted(key)).collect();
    ensure!(found.len() == 1, "{} entries instead of one", found.len());
    Ok(&found[0].1)
}

/// Sum of a counter over the CPUs.
fn total(values: &Value, field: &str) -> Result<u64> {
    values.as_array().context("not a list of CPUs")?.iter().map(|cpu| number(&cpu["value"][field])).sum()
}

/// A service, its backend and its return path are what was configured.
fn check_service(dump: &BTreeMap<String, Vec<(Value, Value)>>, service: &Service) -> Result<()> {
    let backend = service.backends[0];
    let protocol = if service.protocol == "TCP" { TCP } else { UDP };
    let is = |value: &Value, address: IpAddr, port: u16| {
        value["address"] == bytes(address) && value["port"] == port && value["protocol"] == protocol
    };
    let found = only(&dump["services"], |key| is(key, service.vip, service.port)).context("services")?;
    ensure!(found["backends_count"] == 1 && found["slots_log2"] == 7, "{found}");
    only(&dump["vips"], |key| *key == bytes(service.vip)).context("vips")?;
    let entry = only(&dump["backends"], |key| *key == found["backends"])?;
    ensure!(entry["address"] == bytes(backend.ip()) && entry["port"] == backend.port(), "backends: {entry}");
    ensure!(entry["rung"] == 1, "rung redirect is 1: {entry}");
    ensure!(entry["mtu"] == 1500 && number(&entry["ifindex"])? > 0, "backends: {entry}");
    let address = only(&dump["backend_vips"], |key| *key == entry["id"])?;
    ensure!(is(address, service.vip, service.port), "backend_vips: {address}");

    let block = number(&found["slots"])? / 16;
    let slots = only(&dump["maglev"], |key| *key == block)?;
    ensure!(slots["slots"][0] == serde_json::json!({"owner": 0, "history": 0}), "maglev: {slots}");

    let endpoint = only(&dump["endpoints"], |key| is(key, backend.ip(), backend.port())).context("endpoints")?;
    ensure!(endpoint["vip"] == bytes(service.vip) && endpoint["vip_port"] == service.port, "endpoints: {endpoint}");
    ensure!(endpoint["backend"] == entry["id"] && endpoint["id"] == entry["endpoint"], "endpoints: {endpoint}");

    let counter = only(&dump["backend_counters"], |key| *key == entry["id"])?;
    ensure!(total(counter, "packets")? > 0 && total(counter, "bytes")? > 0, "backend_counters: {counter}");
    ensure!(total(counter, "reply_packets")? > 0, "backend_counters: {counter}");
    Ok(())
}

/// What is not of one service.
fn check_node(
    dump: &BTreeMap<String, Vec<(Value, Value)>>,
    lab: &Lab,
    beside: &[(SocketAddr, SocketAddr)],
) -> Result<()> {
    let node = only(&dump["node"], |key| *key == 0)?;
    let settings = &node["settings"];
    ensure!(names(settings) == SETTINGS.iter().copied().collect(), "settings: {settings}");
    ensure!(settings["node_v4"] == bytes(NODE.v4.into()) && settings["node_v6"] == bytes(NODE.v6.into()), "{settings}");
    ensure!(settings["abi_version"] == lb_common::abi::ABI_VERSION, "{settings}");

    let output = lab.node.command("ip").args(["-j", "link", "show", UPLINK]).output()?;
    let link = &serde_json::from_slice::<Value>(&output.stdout)?[0];
    ensure!(settings["uplink"] == link["ifindex"], "settings: {settings}");
    let uplink = only(&dump["uplinks"], |key| *key == link["ifindex"]).context("uplinks")?;
    let mac: Vec<String> = uplink["mac"]
        .as_array()
        .context("no MAC")?
        .iter()
        .map(|byte| format!("{:02x}", byte.as_u64().unwrap_or(u64::MAX)))
        .collect();
    ensure!(link["address"] == mac.join(":"), "{mac:?} is not the uplink's MAC: {link}");

    ensure!(dump["bypasses"].len() == beside.len(), "bypasses: {:?}", dump["bypasses"]);
    for (client, pod) in beside {
        let bypass = only(&dump["bypasses"], |key| {
            let ends = key["client"] == bytes(client.ip()) && key["pod"] == bytes(pod.ip());
            let ports = key["client_port"] == client.port() && key["pod_port"] == pod.port();
            ends && ports && key["protocol"] == TCP
        });
        let bypass = bypass.with_context(|| format!("bypass of {client}"))?;
        ensure!(bypass["backend"] == lb_common::abi::NO_BACKEND, "bypasses: {bypass}");
    }
    let counted: u64 =
        dump["endpoint_bypasses"].iter().filter_map(|(_, value)| value["count"]["value"]["value"].as_u64()).sum();
    ensure!(counted == beside.len() as u64, "endpoint_bypasses: {counted}");

    let passed = only(&dump["reasons"], |key| *key == Reason::NotForUs.index())?;
    ensure!(total(passed, "packets")? > 0, "reasons: {passed}");
    let clients: BTreeSet<String> = dump["routes"]
        .iter()
        .flat_map(|(_, cpus)| cpus.as_array().into_iter().flatten().map(|cpu| cpu["value"]["client"].to_string()))
        .collect();
    for family in Family::BOTH {
        let client = bytes(ELEMENT.of(family)).to_string();
        ensure!(clients.contains(&client), "routes remember {clients:?} but not {client}");
    }
    Ok(())
}

/// A UDP request and its answer, so that there is a record in the flow cache.
fn ask(lab: &Lab, target: SocketAddr, pod: SocketAddr) -> Result<()> {
    let server = lab.pods[0].namespace.run(|| UdpSocket::bind(pod))?;
    let family = if target.is_ipv4() { Family::V4 } else { Family::V6 };
    let client = lab.element.run(|| UdpSocket::bind((ELEMENT.of(family), 0)))?;
    client.connect(target)?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    client.send(b"?")?;
    let (_, from) = server.recv_from(&mut [0; 8]).context("no datagram at the pod")?;
    server.send_to(b"!", from)?;
    client.recv(&mut [0; 8]).context("no answer")?;
    Ok(())
}

fn services(lab: &Lab) -> Vec<Service> {
    let mut services = Vec::new();
    for family in Family::BOTH {
        for (protocol, port, pod_port) in [("TCP", VIP_PORT, POD_PORT), ("UDP", UDP_VIP_PORT, UDP_POD_PORT)] {
            services.push(Service {
                name: format!("{protocol}-{family:?}").to_lowercase(),
                vip: vip(1).of(family),
                protocol,
                port,
                replies: None,
                rung: "redirect",
                backends: vec![SocketAddr::new(lab.pods[0].addresses.of(family), pod_port)],
            });
        }
    }
    services
}

#[test]
fn bpftool_prints_every_map_with_names_and_readable_values() -> Result<()> {
    if !available("maps") {
        return Ok(());
    }
    let mut lab = Lab::new("maps", Options { pods: 1, ..Options::default() })?;
    lab.attach_router_program()?;
    let services = services(&lab);
    let announce = "announce: { always: [{ interface: eth0 }], vrrp: [{ name: core, interface: eth0, vrids: 51, virtualMac: true }] }\n";
    let yaml = Configuration { mode: "native", services: services.clone() }.yaml_in(&lab) + CAPACITIES + announce;
    let mut agent = Agent::start_with(&lab, &yaml)?;
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let mut open = Vec::new();
    let mut beside = Vec::new();
    for service in &services {
        let (target, pod) = (SocketAddr::new(service.vip, service.port), service.backends[0]);
        if service.protocol == "UDP" {
            ask(&lab, target, pod)?;
            continue;
        }
        for target in [target, pod] {
            let mut conversation = Conversation::open(&lab.element, target, &listener)?;
            conversation.exchange(Speaker::Client)?;
            if target == pod {
                beside.push((conversation.client_address()?, pod));
            }
            open.push(conversation);
        }
    }
    let maps = agent.pins().join("maps");
    agent.wait_status("VIPs to be held", |status| {
        let means = &status["announce"]["vips"].as_array()?.first()?["means"];
        (means[0]["holds"] == true).then_some(())
    })?;
    // The agent would take the claim out.
    agent.signal(libc::SIGSTOP)?;
    let vip = services[0].vip;
    lab.router.send_frame(ROUTER_END, &Arp::request(vip).from(vip).reply().frame())?;
    let claimed = || Ok((!dump_map(&maps, "conflicts")?.is_empty()).then_some(()));
    wait_until("the claim to be noted", Duration::from_secs(5), claimed)?;
    let dump = dump_all(&maps)?;
    check_fields(&dump)?;
    for service in &services {
        check_service(&dump, service).with_context(|| format!("{} at {}", service.name, service.vip))?;
    }
    check_node(&dump, &lab, &beside)?;
    check_words(&dump)?;
    check_plain(&maps)?;
    agent.signal(libc::SIGCONT)?;
    agent.stop()
}

/// Tables that are shared word by word have names down to the word.
fn check_words(dump: &BTreeMap<String, Vec<(Value, Value)>>) -> Result<()> {
    for (map, fields, used) in [
        ("service_index", &["address", "port_protocol", "value"][..], 6),
        ("endpoint_index", &["address", "port_protocol", "value"], 4),
        ("flows", &["control", "client", "value"], 2),
    ] {
        let mut filled = 0;
        for entry in dump[map].iter().flat_map(|(_, value)| value["entries"].as_array().into_iter().flatten()) {
            ensure!(names(entry) == fields.iter().copied().collect(), "{map}: {entry}");
            // What is not in use has a zero here, and may have an old address.
            let tail = if map == "flows" { &entry["control"] } else { &entry["port_protocol"] };
            filled += usize::from(tail["value"]["value"].as_u64().is_some_and(|word| word != 0));
        }
        ensure!(filled == used, "{map} has {filled} entries instead of {used}");
    }
    Ok(())
}

/// Without `-j`, which is what people type.
fn check_plain(maps: &Path) -> Result<()> {
    for (name, key_fields, value_fields) in FIELDS {
        let text = bpftool(&["map", "dump", "pinned"], &maps.join(name))?;
        for field in key_fields.iter().chain(*value_fields) {
            ensure!(text.contains(&format!("\"{field}\": ")), "{name} without {field}:\n{text:.1000}");
        }
    }
    let text = bpftool(&["map", "dump", "pinned"], &maps.join(WITHOUT_TYPES))?;
    ensure!(text.lines().any(|line| line.starts_with("key: ") && !line.contains("no entry")), "{text:.1000}");
    Ok(())
}

#[test]
fn the_pinned_maps_are_those_that_are_reckoned_with_and_no_larger() -> Result<()> {
    if !available("maps") {
        return Ok(());
    }
    let mut lab = Lab::new("memory", Options { pods: 1, ..Options::default() })?;
    lab.attach_router_program()?;
    for capacities in [CAPACITIES, ""] {
        let services = services(&lab);
        let yaml = Configuration { mode: "native", services }.yaml_in(&lab) + capacities;
        let snapshot = config::parse("lab", &yaml)?;
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)? as u64;
        let mut reckoned = Sizes::new(&snapshot.capacities).maps(cpus);
        reckoned.retain(|(name, ..)| !object::EARLIER.contains(name));
        let agent = Agent::start_with(&lab, &yaml)?;
        let maps = agent.pins().join("maps");
        let pinned = fs::read_dir(&maps)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let pinned = pinned.collect::<Result<BTreeSet<String>>>()?;
        ensure!(pinned == reckoned.iter().map(|(name, ..)| (*name).to_owned()).collect(), "pinned: {pinned:?}");
        let mut listed: BTreeSet<&str> = FIELDS.iter().map(|(name, ..)| *name).collect();
        listed.insert(WITHOUT_TYPES);
        ensure!(pinned.iter().map(String::as_str).collect::<BTreeSet<_>>() == listed, "this test lists {listed:?}");

        let (mut sum, mut reckoned_sum) = (0, 0);
        for (name, entries, bytes) in &reckoned {
            let shown = bpftool(&["-j", "map", "show", "pinned"], &maps.join(name))?;
            let shown: Value = serde_json::from_str(&shown)?;
            ensure!(shown["name"] == name[..name.len().min(15)], "{shown}");
            ensure!(shown["max_entries"] == *entries, "{name} has not {entries} entries: {shown}");
            let taken = number(&shown["bytes_memlock"])?;
            let limit = bytes + bytes * SLACK_PERCENT / 100 + SLACK_BYTES;
            ensure!(taken <= limit, "{name} takes {taken} bytes, {bytes} are reckoned with");
            sum += taken;
            reckoned_sum += bytes;
        }
        let limit = reckoned_sum + reckoned_sum * SLACK_PERCENT / 100 + SLACK_BYTES * reckoned.len() as u64;
        ensure!(sum <= limit, "all maps take {sum} bytes, {reckoned_sum} are reckoned with");
        agent.stop()?;
    }
    Ok(())
}
