//! Layouts of the maps by the type information in the built objects, against the structs of `lb-common`, and what becomes
//! of each map's entries between this build and the one with the next ABI. Skipped where no objects are named.

use std::{collections::BTreeSet, fs, mem::offset_of};

use lb_common::{
    abi::{
        Backend, Bucket, Bypass, BypassCount, BypassKey, Counter, Endpoint, History, Node, Route, Service, ServiceKey,
        Settings, SlotBlock, Traffic, Uplink, Watch,
    },
    address::Address,
    flow, fragments,
    index::{EndpointBucket, ServiceBucket},
};
use lb_userspace::{
    dataplane::{
        btf::{Btf, kind},
        capacity::Sizes,
        layout::{Conversion, Field, Kind, Layout},
    },
    model::Capacities,
};

/// The type information of the object that a variable names. `None` where there is none.
fn types_of(variable: &str) -> Option<Vec<u8>> {
    let Some(path) = std::env::var_os(variable) else {
        assert!(std::env::var_os("SLUICE_REQUIRE_PRIVILEGES").is_none(), "{variable} names no object");
        eprintln!("skipped: {variable} names no object: run by `cargo xtask test`");
        return None;
    };
    let bytes = fs::read(path).expect("the object can be read");
    let object = aya_obj::Object::parse(&bytes).expect("an eBPF object");
    Some(object.btf.expect("type information").to_bytes())
}

/// Layout of a map's keys or values, by the struct that declares the map to the loader.
fn layout(types: &Btf<'_>, map: &str, part: &str) -> Layout {
    let (_, variable) = types.find(kind::VAR, map).unwrap_or_else(|| panic!("no map {map}"));
    let declaration = types.get(variable.target()).expect("a type");
    let pointer = declaration.members().find(|member| member.is_named(part)).expect("key or value").target;
    let target = types.get(pointer).expect("a pointer").target();
    Layout::of_type(types, target).unwrap_or_else(|error| panic!("{part} of {map}: {error}"))
}

fn fields(layout: &Layout) -> &[Field] {
    match &layout.kind {
        Kind::Struct(fields) => fields,
        _ => panic!("no struct, but {layout}"),
    }
}

/// The map's key or value has this size, and these fields at these offsets.
fn check(types: &Btf<'_>, (map, part): (&str, &str), size: usize, expected: &[(&str, usize)]) {
    let layout = layout(types, map, part);
    assert_eq!(layout.size, size, "{part} of {map}");
    for (name, offset) in expected {
        let field = fields(&layout).iter().find(|field| field.name == *name);
        assert_eq!(field.map(|field| field.offset), Some(*offset), "{name} in the {part} of {map}");
    }
}

macro_rules! check {
    ($types:expr, $place:expr, $struct:ty $(, $field:ident)*) => {
        check($types, $place, size_of::<$struct>(), &[$((stringify!($field), offset_of!($struct, $field))),*])
    };
}

#[test]
fn the_objects_layouts_are_those_of_the_structs() {
    let Some(bytes) = types_of("SLUICE_EBPF_OBJECT") else { return };
    let types = &Btf::parse(&bytes).expect("type information");
    check!(types, ("services", "key"), ServiceKey, address, port, protocol, pad, interface);
    check!(types, ("services", "value"), Service, slots, backends, backends_count, slots_log2, flags, histories, id);
    check!(types, ("vips", "key"), Address, bytes);
    check!(types, ("service_index", "value"), ServiceBucket, sequence, entries);
    check!(types, ("backend_vips", "value"), ServiceKey, address, interface);
    check!(types, ("maglev", "value"), SlotBlock, slots);
    check!(types, ("histories", "value"), History, count, owners);
    check!(types, ("backends", "value"), Backend, address, id, endpoint, port, rung, destination_mac, address_change);
    check!(types, ("endpoints", "key"), ServiceKey, address, interface);
    check!(types, ("endpoints", "value"), Endpoint, vip, vip_port, flags, id, backend, netns_id);
    check!(types, ("endpoint_index", "value"), EndpointBucket, sequence, entries);
    check!(types, ("bypasses", "key"), BypassKey, client, pod, client_port, pod_port, protocol, pad2);
    check!(types, ("bypasses", "value"), Bypass, backend, since);
    check!(types, ("endpoint_bypasses", "value"), BypassCount, count, watch);
    check!(types, ("flows", "value"), flow::Bucket, entries);
    check!(types, ("fragments", "value"), fragments::Bucket, entries);
    check!(types, ("uplinks", "value"), Uplink, mac, pad);
    check!(types, ("routes", "value"), Route, client, since, ifindex, source_mac, mtu);
    check!(types, ("node", "value"), Node, settings, vip_filter);
    check!(types, ("limiters", "value"), Bucket, tokens, since);
    check!(types, ("reasons", "value"), Counter, packets, bytes);
    check!(types, ("backend_counters", "value"), Traffic, packets, bytes, reply_packets, reply_bytes);
}

#[test]
fn structs_in_structs_and_wrapped_words_are_read_to_the_ground() {
    let Some(bytes) = types_of("SLUICE_EBPF_OBJECT") else { return };
    let types = &Btf::parse(&bytes).expect("type information");
    let named = |layout: &Layout, name: &str| {
        fields(layout).iter().find(|field| field.name == name).unwrap_or_else(|| panic!("no {name}")).clone()
    };
    let settings = named(&layout(types, "node", "value"), "settings");
    assert_eq!(settings.layout.size, size_of::<Settings>());
    assert_eq!(named(&settings.layout, "route_epoch").offset, offset_of!(Settings, route_epoch));
    let watch = named(&layout(types, "endpoint_bypasses", "value"), "watch");
    let seen = named(&watch.layout, "seen");
    assert_eq!((watch.offset, seen.offset), (offset_of!(BypassCount, watch), offset_of!(Watch, seen)));
    let word = named(&named(&seen.layout, "value").layout, "value");
    assert_eq!(word.layout, Layout::integer(8));
    let Kind::Array { element, count } = named(&layout(types, "histories", "value"), "owners").layout.kind else {
        panic!("owners are an array")
    };
    assert_eq!((*element, count), (Layout::integer(2), lb_common::abi::HISTORY));
}

/// Maps whose entries are other ones in the next ABI.
const CHANGED: [&str; 5] = ["backends", "bypasses", "earlier_bypasses", "endpoints", "services"];

#[test]
fn the_next_abi_has_other_values_in_some_maps_and_they_are_converted_without_loss() {
    let (Some(this), Some(next)) = (types_of("SLUICE_EBPF_OBJECT"), types_of("SLUICE_NEXT_OBJECT")) else { return };
    let (this, next) = (Btf::parse(&this).expect("types"), Btf::parse(&next).expect("types"));
    let mut changed = BTreeSet::new();
    for (map, ..) in Sizes::new(&Capacities::default()).maps(1) {
        // The kernel takes no types for them.
        if map == "tx_ports" {
            continue;
        }
        let between = |part: &str| {
            let (old, new) = (layout(&this, map, part), layout(&next, map, part));
            let there = Conversion::between(&old, &new).expect("a way there");
            (there, Conversion::between(&new, &old).expect("a way back"), old.size, new.size)
        };
        assert!(between("key").0.is_identity(), "keys of {map}");
        let (there, back, size, next_size) = between("value");
        let added: &[&str] = if map.ends_with("bypasses") && map != "endpoint_bypasses" { &["later"] } else { &[] };
        assert_eq!(there.added(), added, "{map}");
        assert!(there.dropped().is_empty(), "{map}");
        assert_eq!((back.added(), back.dropped()), (there.dropped(), there.added()), "{map}");
        let value: Vec<u8> = (1..=size).map(|byte| byte as u8).collect();
        let (mut converted, mut again) = (vec![0; next_size], vec![0; size]);
        there.apply(&value, &mut converted).expect("there is room");
        back.apply(&converted, &mut again).expect("there is room");
        assert_eq!(again, value, "{map}");
        if converted != value {
            assert!(!there.is_identity());
            changed.insert(map);
        }
    }
    assert_eq!(changed, CHANGED.into());
}
