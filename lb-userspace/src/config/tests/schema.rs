//! The schema against the validator. What the schema refuses `sluice check` refuses; and the other way round wherever a
//! schema can say it.

use jsonschema::Validator;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn validator() -> Validator {
    jsonschema::options().should_validate_formats(true).build(&schema()).expect("the schema is one")
}

/// A configuration with every key.
fn full() -> Value {
    json!({
        "node": { "addresses": ["192.0.2.1", "2001:db8::1"] },
        "uplinks": [{ "interface": "eth0", "mode": "native" }],
        "pinDirectory": "/sys/fs/bpf/sluice",
        "runDirectory": "/run/sluice",
        "capacities": {
            "services": 8, "backends": 16, "maglevSlots": 8192, "bypasses": 256, "flows": 1024, "fragments": 64
        },
        "limits": { "refusals": 1, "echoReplies": 2, "icmpErrors": 3 },
        "observation": {
            "listen": "127.0.0.1:9000", "tls": { "certificate": "/tls.crt", "key": "/tls.key" },
            "tokenFile": "/token", "backendSeries": 5
        },
        "announce": announce(),
        "services": [{
            "name": "bgp", "vip": "198.51.100.1", "protocol": "TCP", "ports": [179], "replies": "static",
            "rung": "direct", "assignVip": true, "sessionAffinity": "ClientIP", "sessionAffinityTimeoutSeconds": 60,
            "healthCheck": {
                "type": "http", "port": 8080, "interval": "5s", "timeout": "500ms", "rise": 1, "fall": 2,
                "path": "/ready", "host": "example.org"
            },
            "backends": [{ "address": "10.0.0.1", "port": 179, "weight": 2, "drain": false }]
        }, {
            "name": "telemetry", "vip": "198.51.100.2", "protocol": "TCP", "ports": [57400],
            "healthCheck": { "type": "grpc", "service": "gnmi" }
        }, {
            "name": "syslog", "vip": "198.51.100.2", "protocol": "UDP", "ports": [514],
            "healthCheck": { "type": "udp", "payload": "0a" }
        }]
    })
}

/// Its section of what is announced.
fn announce() -> Value {
    json!({
        "node": "a", "nodes": ["a", "b"], "whenUnhealthy": "announce",
        "always": [{ "interface": "eth0", "vips": ["198.51.100.0/24", "2001:db8::1"], "nodes": ["a"] }],
        "vrrp": [{
            "name": "core", "interface": "eth0", "vrids": "10", "version": "3", "interval": "100ms", "priority": 200,
            "preempt": true, "preemptDelay": "5s", "startDelay": "1s", "peers": ["192.0.2.2", "fe80::2"],
            "refresh": "60s", "virtualMac": true, "linkLocal": "fe80::7", "track": ["eth1"],
            "vips": ["198.51.100.0/24"], "nodes": ["a"]
        }, { "name": "edge", "interface": "eth0", "vrids": "20-23" }],
        "bfd": [{
            "name": "fast", "interval": "50ms", "receiveInterval": "100ms", "multiplier": 3, "minimumTtl": 254
        }],
        "bgp": bgp()
    })
}

/// Its section of BGP.
fn bgp() -> Value {
    json!({
        "localAs": 64512, "identifier": "192.0.2.1", "stop": "graceful", "shutdownWait": "5s",
        "peers": [{
            "name": "tor1", "address": "2001:db8::254", "interface": "eth0", "port": 179, "as": 64513,
            "families": ["ipv4", "ipv6"], "holdTime": "90s", "connectTime": "10s", "mode": "both",
            "passwordFile": "/etc/sluice/tor1", "multihop": 2, "source": "2001:db8::1", "nextHopIpv4": "192.0.2.1",
            "nextHopIpv6": "2001:db8::1", "extendedNextHop": true, "gracefulRestart": "30s", "bfd": "fast",
            "bfdStrict": false, "communities": ["64512:100"], "largeCommunities": ["64512:1:2"],
            "localPreference": 100, "med": 10, "linkBandwidth": 125000000, "linkBandwidthType": "transitive",
            "aggregates": ["198.51.100.0/24"], "vips": ["198.51.100.0/24"], "nodes": ["a"]
        }, { "name": "tor2", "interface": "eth0", "as": "external", "gtsm": 1 }]
    })
}

/// JSON is YAML.
fn is_taken(file: &Value) -> bool {
    parse("f", &file.to_string()).is_ok()
}

fn at<'a>(file: &'a mut Value, path: &str) -> &'a mut Value {
    file.pointer_mut(path).unwrap_or_else(|| panic!("no {path}"))
}

#[test]
fn both_take_a_file_with_every_key_and_the_sample() {
    let validator = validator();
    let file = full();
    assert!(is_taken(&file) && validator.is_valid(&file), "{:?}", validator.iter_errors(&file).collect::<Vec<_>>());
    for Key { path, .. } in keys() {
        let is_in = |entry: u32| {
            let first = path.replacen("[]", &format!("/{entry}"), 1).replace("[]", "/0");
            file.pointer(&format!("/{}", first.replace('.', "/"))).is_some()
        };
        assert!((0..3).any(is_in), "`{path}` is new: write it into the file of this test");
    }
    let sample = repository_file("deploy/samples/standalone.yaml");
    assert!(taken(&sample).services.len() > 3);
    let sample: Value = serde_saphyr::from_str(&sample).unwrap();
    assert!(validator.is_valid(&sample), "{:?}", validator.iter_errors(&sample).collect::<Vec<_>>());
}

#[test]
fn what_a_schema_can_say_both_refuse() {
    let bad = [
        ("/node", json!([])),
        ("/node/addresses", json!([])),
        ("/node/addresses/0", json!("192.0.2.256")),
        ("/node/addresses/0", json!("2001:db8::1")),
        ("/node/addresses", json!(vec!["192.0.2.1"; 65])),
        ("/uplinks", json!([])),
        ("/uplinks", json!({})),
        ("/uplinks/0/interface", json!("")),
        ("/uplinks/0/interface", json!("eth/0")),
        ("/uplinks/0/interface", json!("interface-of-16-b")),
        ("/uplinks/0/mode", json!("driver")),
        ("/pinDirectory", json!("relative")),
        ("/pinDirectory", json!("/a/../b")),
        ("/runDirectory", json!(format!("/{}", "r".repeat(95)))),
        ("/runDirectory", json!(7)),
        ("/capacities/services", json!(0)),
        ("/capacities/services", json!("many")),
        ("/capacities/backends", json!(1 << 30)),
        ("/capacities/maglevSlots", json!(128)),
        ("/capacities/flows", json!(1.5)),
        ("/capacities/fragments", json!(-8)),
        ("/limits/refusals", json!(1_000_001)),
        ("/limits/echoReplies", json!(true)),
        ("/announce/node", json!("a b")),
        ("/announce/nodes", json!([])),
        ("/announce/nodes", json!(["a", "a"])),
        ("/announce/whenUnhealthy", json!("move")),
        ("/announce/always/0/interface", json!("")),
        ("/announce/always/0/vips", json!([])),
        ("/announce/always/0/vips/0", json!("everything")),
        ("/announce/vrrp/0/vrids", json!("1-2-3")),
        ("/announce/vrrp/0/vrids", json!("+5")),
        ("/announce/vrrp/0/vrids", json!("1-05")),
        ("/announce/vrrp/0/version", json!("4")),
        ("/announce/vrrp/0/interval", json!("1")),
        ("/announce/vrrp/0/priority", json!(0)),
        ("/announce/vrrp/0/priority", json!(255)),
        ("/announce/vrrp/0/peers/0", json!("router")),
        ("/announce/vrrp/0/track", json!([])),
        ("/announce/bfd/0/interval", json!("fast")),
        ("/announce/bfd/0/multiplier", json!(256)),
        ("/announce/bgp/localAs", json!("AS1")),
        ("/announce/bgp/stop", json!("now")),
        ("/announce/bgp/peers", json!([])),
        ("/announce/bgp/peers/0/as", json!("internal")),
        ("/announce/bgp/peers/0/port", json!(0)),
        ("/announce/bgp/peers/0/families", json!(["ipv4", "ipv4"])),
        ("/announce/bgp/peers/0/families/0", json!("l2vpn")),
        ("/announce/bgp/peers/0/mode", json!("passive")),
        ("/announce/bgp/peers/0/passwordFile", json!("secret")),
        ("/announce/bgp/peers/1/gtsm", json!(255)),
        ("/announce/bgp/peers/0/multihop", json!(256)),
        ("/announce/bgp/peers/0/communities/0", json!("no-export")),
        ("/announce/bgp/peers/0/largeCommunities/0", json!("1:2")),
        ("/announce/bgp/peers/1/interface", Value::Null),
        ("/services/0/name", json!("a b")),
        ("/services/0/name", json!("n".repeat(254))),
        ("/services/0/vip", json!("example.org")),
        ("/services/0/vip", json!("198.51.100.1/32")),
        ("/services/0/protocol", json!("SCTP")),
        ("/services/0/ports", json!([])),
        ("/services/0/ports", json!([179, 179])),
        ("/services/0/ports/0", json!(0)),
        ("/services/0/ports/0", json!(65536)),
        ("/services/0/replies", json!("recorded")),
        ("/services/0/rung", json!("fastest")),
        ("/services/0/rung", json!("peer")),
        ("/services/0/assignVip", json!("yes")),
        ("/services/0/sessionAffinity", json!("None")),
        ("/services/0/sessionAffinityTimeoutSeconds", json!(0)),
        ("/services/0/sessionAffinityTimeoutSeconds", json!(86_401)),
        ("/services/0/backends/0", json!("10.0.0.1")),
        ("/services/0/backends/0/address", Value::Null),
        ("/services/0/backends/0/port", json!(0)),
        ("/services/0/backends/0/weight", json!(1001)),
        ("/services/0/backends/0/drain", json!(1)),
    ];
    let validator = validator();
    for (path, value) in bad {
        let mut file = full();
        *at(&mut file, path) = value.clone();
        assert!(!is_taken(&file), "the validator takes {value} at {path}");
        assert!(!validator.is_valid(&file), "the schema takes {value} at {path}");
    }
    for Key { path, required, .. } in keys() {
        let pointer = format!("/{}", path.replace("[]", "/0").replace('.', "/"));
        let (above, key) = pointer.rsplit_once('/').unwrap();
        let mut without = full();
        let mut beside = full();
        at(&mut without, above).as_object_mut().unwrap().remove(key);
        at(&mut beside, above)["noSuchKey"] = json!(1);
        assert!(!validator.is_valid(&beside) && !is_taken(&beside), "an unknown key beside {path}");
        // A schema cannot say that a name stands elsewhere too.
        let is_named_elsewhere = path == "announce.bfd";
        assert!(validator.is_valid(&without) == is_taken(&without) || is_named_elsewhere, "without {path}");
        assert!(!required || !is_taken(&without), "{path} is required");
    }
}

#[test]
fn both_take_numbers_and_truth_values_in_quotes_and_keys_without_a_value() {
    let validator = validator();
    let good = [
        ("/services/0/ports/0", json!("179")),
        ("/services/0/assignVip", json!("true")),
        ("/capacities/services", json!("+8")),
        ("/capacities", Value::Null),
        ("/limits/refusals", Value::Null),
        ("/services/0/rung", Value::Null),
        ("/services/0/name", json!(7)),
        ("/services/0/replies", Value::Null),
    ];
    for (path, value) in good {
        let mut file = full();
        *at(&mut file, path) = value.clone();
        if path == "/services/0/rung" {
            *at(&mut file, "/services/0/assignVip") = Value::Null;
        }
        assert!(is_taken(&file), "{value} at {path}: {}", parse("f", &file.to_string()).unwrap_err());
        assert!(validator.is_valid(&file), "the schema refuses {value} at {path}");
    }
}

/// Values that somebody may write anywhere.
fn values() -> Vec<Value> {
    let words = [
        "",
        "0",
        "1",
        "007",
        "+5",
        "+5s",
        "1-+5",
        "+1:2",
        "1:+2:3",
        "0007",
        "01:2",
        "10.0.0.0/+8",
        "::/0128",
        "-1",
        "1e3",
        "0x10",
        "true",
        "yes",
        "None",
        "ClientIP",
        "direct",
        "auto",
        "peer",
        "UDP",
        "none",
        "recorded",
        "/",
        "/a/..",
        "/..a",
        "//",
        "eth1",
        "a:b",
        "10.0.0.9",
        "::1",
        "2001:db8::7",
        "::ffff:1.2.3.4",
        "01.2.3.4",
        "fe80::1%1",
        "\u{fc}",
        "\u{1}",
    ];
    let numbers = [-1i64, 0, 1, 2, 64, 128, 179, 256, 1024, 65535, 65536, 1 << 20, 1 << 40];
    let others = [json!(0.5), json!(true), json!(false), Value::Null, json!([]), json!({}), json!([1])];
    words.map(Value::from).into_iter().chain(numbers.map(Value::from)).chain(others).collect()
}

/// Writes a value at a key of the file, or takes the key out, where the file still has the object that it is of.
fn set(file: &mut Value, key: &Key, value: Option<Value>) {
    let pointer = format!("/{}", key.path.replace("[]", "/0").replace('.', "/"));
    let (above, name) = pointer.rsplit_once('/').unwrap();
    let Some(Value::Object(above)) = file.pointer_mut(above) else { return };
    match value {
        Some(value) => drop(above.insert(name.to_owned(), value)),
        None => drop(above.remove(name)),
    }
}

fn refused_by_the_schema_alone(file: &Value) -> Option<Vec<String>> {
    thread_local!(static VALIDATOR: Validator = validator());
    let is_refused = is_taken(file) && !VALIDATOR.with(|it| it.is_valid(file));
    is_refused.then(|| VALIDATOR.with(|it| it.iter_errors(file).map(|error| error.masked().to_string()).collect()))
}

#[test]
fn no_value_at_any_key_is_refused_by_the_schema_alone() {
    let wrong: Vec<String> = keys()
        .iter()
        .flat_map(|key| {
            let is_list = key.schema["items"].is_object();
            let value = move |value| if is_list { json!([value]) } else { value };
            values().into_iter().map(move |it| Some(value(it))).chain([None]).map(move |value| (key, value))
        })
        .filter_map(|(key, value)| {
            let mut file = full();
            let shown = format!("{} = {value:?}", key.path);
            set(&mut file, key, value);
            refused_by_the_schema_alone(&file).map(|refusals| format!("{shown}: {refusals:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Two keys are given other values, or taken out.
    #[test]
    fn what_the_schema_refuses_the_validator_refuses(
        changes in proptest::array::uniform2((
            any::<proptest::sample::Index>(), proptest::option::of(proptest::sample::select(values()))
        ))
    ) {
        let mut file = full();
        let keys = keys();
        for (index, value) in changes {
            set(&mut file, index.get(&keys), value);
        }
        let refusals = refused_by_the_schema_alone(&file);
        prop_assert!(refusals.is_none(), "{file:#}\nis refused by the schema alone: {refusals:?}");
    }
}
