//! Privileged: loads maps into the kernel.
//!
//! The layouts of the data plane's maps as the kernel tells them, and what is refused.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
};

use aya::{EbpfLoader, maps::Map};
use lb_tests::kernel::{next_object, object};
use lb_userspace::dataplane::layout::{Conversion, MapLayout, MapLayoutError};

/// The kernel takes no types for device maps (kernel/bpf/devmap.c, `map_check_no_btf`).
const WITHOUT_TYPES: &str = "tx_ports";

/// Makes the maps of an object, and asks the kernel for the layout of each; sections of variables have a dot in front.
fn layouts(object: &Path) -> BTreeMap<String, Result<MapLayout, MapLayoutError>> {
    let bytes = fs::read(object).expect("the object can be read");
    let ebpf = EbpfLoader::new().load(&bytes).expect("the object's maps can be made");
    let layout = |(name, map): (&str, &Map)| {
        let (Map::Array(data)
        | Map::HashMap(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data)
        | Map::DevMap(data)) = map
        else {
            panic!("{name} is of a kind that no test knows")
        };
        let (layout, info) = (MapLayout::of(data.fd()), data.info().expect("the kernel knows it"));
        if let Ok(layout) = &layout {
            let sizes = (layout.key_size, layout.value_size, layout.max_entries);
            assert_eq!(sizes, (info.key_size(), info.value_size(), info.max_entries()), "{name}");
            assert_eq!((layout.map_type, layout.flags), (info.map_type().unwrap() as u32, info.map_flags()), "{name}");
            assert_eq!((layout.key.size, layout.value.size), (sizes.0 as usize, sizes.1 as usize), "{name}");
        }
        (name.to_owned(), layout)
    };
    ebpf.maps().map(layout).collect()
}

#[test]
fn the_kernel_tells_the_layout_of_every_map_but_the_device_map() {
    let Some(object) = object() else { return };
    for (name, layout) in layouts(&object) {
        // The loader gives sections of variables no types.
        let without_types = name.starts_with('.') || name == WITHOUT_TYPES;
        match layout {
            Ok(_) => assert!(!without_types, "{name} has a layout"),
            Err(MapLayoutError::NoTypes { .. }) => assert!(without_types, "{name} carries no types"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn entries_of_every_map_of_this_build_have_a_way_to_the_next_one_and_back() {
    let (Some(object), Some(next)) = (object(), next_object()) else { return };
    let mut next = layouts(&next);
    let mut changed = Vec::new();
    for (name, layout) in layouts(&object) {
        let (Ok(old), Some(Ok(new))) = (layout, next.remove(&name)) else { continue };
        assert!(Conversion::between(&old.key, &new.key).expect("a way there").is_identity(), "keys of {name}");
        Conversion::between(&new.value, &old.value).expect("a way back");
        if !Conversion::between(&old.value, &new.value).expect("a way there").is_identity() {
            changed.push(name);
        }
    }
    assert_eq!(changed, ["backends", "bypasses", "earlier_bypasses", "endpoints", "services"]);
}

#[test]
fn what_is_no_map_is_refused_by_what_it_is() {
    let Some(_) = object() else { return };
    let refusal = MapLayout::of(File::open("/dev/null").expect("it is there")).unwrap_err();
    assert_eq!(refusal.to_string(), "it is no map, but /dev/null");
}
