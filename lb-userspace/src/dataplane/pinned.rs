//! What an earlier agent has left pinned, and whether this one may adopt it.

use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, MapInfo};
use lb_common::{
    abi::ABI_VERSION,
    agent::{About, FLOW_FORMAT, MAGIC},
};

use super::{
    DataPlaneError, bpffs,
    capacity::Sizes,
    object::{self, CALLS, EARLIER, Shape, Shapes},
};

/// The map that says which data plane the others are.
const ABOUT: &str = "about";

/// What is pinned.
#[derive(Clone, Debug, PartialEq)]
pub enum Left {
    /// Nothing, or what a start that was cut short has made: nothing has led there.
    Nothing,
    /// The data plane of an agent of this ABI and of these capacities.
    Same,
    /// The data plane of another one, and how it differs.
    Other {
        /// What it says of itself, where it says anything.
        about: Option<About>,
        /// In words.
        how: String,
    },
}

/// Looks at the maps that are pinned in a directory, without changing anything.
///
/// # Errors
/// Where there are pins that no agent makes.
pub fn look(maps: &Path, wanted: &Shapes) -> Result<Left, DataPlaneError> {
    let foreign = |path: &Path, what: String| DataPlaneError::ForeignPin { path: path.to_path_buf(), what };
    let pins = bpffs::entries(maps).map_err(|source| DataPlaneError::PinDirectory {
        path: maps.to_path_buf(),
        what: "looking at what is pinned",
        source,
        advice: "",
    })?;
    let Some(about) = about(maps)? else {
        // An agent before ABI 2 said nothing of itself.
        let is_old = pins.iter().any(|pin| pin.ends_with("services")) && !pins.iter().any(|pin| pin.ends_with(ABOUT));
        return Ok(match is_old {
            true => Left::Other { about: None, how: "its ABI is older than 2".into() },
            false => Left::Nothing,
        });
    };
    if about.abi_version != ABI_VERSION {
        let how = format!("its ABI is {}, this agent's is {ABI_VERSION}", about.abi_version);
        return Ok(Left::Other { about: Some(about), how });
    }
    let mut differ = Vec::new();
    if about.flow_format != FLOW_FORMAT {
        differ.push(format!("its flows are of format {}, this agent's are of {FLOW_FORMAT}", about.flow_format));
    }
    for (name, wanted) in wanted.iter().filter(|(name, _)| !CALLS.iter().chain(&EARLIER).any(|other| other == name)) {
        let path = maps.join(name);
        let info =
            MapInfo::from_pin(&path).map_err(|error| foreign(&path, format!("cannot be read as a map: {error}")))?;
        if let Some(what) = difference(&info, wanted) {
            return Err(foreign(&path, what));
        }
        if info.max_entries() != wanted.entries {
            differ.push(format!("{name} has room for {}, not for {}", info.max_entries(), wanted.entries));
        }
        let missing = wanted.flags & !info.map_flags();
        if missing != 0 {
            differ.push(format!("{name} lacks the flags {missing:#x}"));
        }
    }
    Ok(match differ.is_empty() {
        true => Left::Same,
        false => Left::Other { about: Some(about), how: differ.join(", ") },
    })
}

/// Bytes that the maps take that are pinned in a directory, by the sizes that others of these names have.
pub fn held(maps: &Path, sizes: &Sizes, cpus: u64) -> u64 {
    let held = |(name, entries, bytes): (&str, u32, u64)| {
        let info = MapInfo::from_pin(maps.join(name)).ok()?;
        Some(bytes * u64::from(info.max_entries()) / u64::from(entries.max(1)))
    };
    sizes.maps(cpus).into_iter().filter_map(held).sum()
}

/// How a map differs from every map of this ABI by that name.
fn difference(info: &MapInfo, wanted: &Shape) -> Option<String> {
    let kind = info.map_type().ok().map(|kind| kind as u32);
    if kind != Some(wanted.kind) {
        let kind = kind.map_or_else(|| "unknown".into(), |kind| kind.to_string());
        return Some(format!("its type is {kind}, not {} as in ABI {ABI_VERSION}", wanted.kind));
    }
    let (key, value) = (info.key_size(), info.value_size());
    ((key, value) != (wanted.key, wanted.value)).then(|| {
        format!(
            "keys and values have {key} and {value} bytes, not {} and {} as in ABI {ABI_VERSION}",
            wanted.key, wanted.value
        )
    })
}

/// Pins among an agent's that no agent has made: another name in `links` than of one of its programs, and in `maps` than of
/// one of its maps. Maps of another ABI may have any names; there, only what is no map is somebody else's.
pub fn foreign(directory: &Path) -> Result<Vec<PathBuf>, DataPlaneError> {
    let entries = |part: &str| {
        let path = directory.join(part);
        bpffs::entries(&path).map_err(|source| DataPlaneError::PinDirectory {
            path,
            what: "looking at what is pinned",
            source,
            advice: "",
        })
    };
    let name = |pin: &Path| pin.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_other = |about: About| about.abi_version != ABI_VERSION;
    let knows_all = !about(&directory.join(bpffs::MAPS)).is_ok_and(|about| about.is_some_and(is_other));
    let is_map = |pin: &Path| match knows_all {
        true => object::is_map(&name(pin)),
        false => MapInfo::from_pin(pin).is_ok(),
    };
    let mut foreign = entries(bpffs::LINKS)?;
    foreign.retain(|pin| !name(pin).starts_with("sluice_"));
    foreign.extend(entries(bpffs::MAPS)?.into_iter().filter(|pin| !is_map(pin)));
    Ok(foreign)
}

/// What the maps say of themselves; `None` where they are not complete, or there are none.
pub fn about(maps: &Path) -> Result<Option<About>, DataPlaneError> {
    let path = maps.join(ABOUT);
    if !path.exists() {
        return Ok(None);
    }
    let foreign = |what: String| DataPlaneError::ForeignPin { path: path.clone(), what };
    let info = MapInfo::from_pin(&path).map_err(|error| foreign(format!("cannot be read as a map: {error}")))?;
    if info.value_size() as usize != size_of::<About>() {
        return Err(foreign(format!("its value has {} bytes, not {}", info.value_size(), size_of::<About>())));
    }
    let data = MapData::from_pin(&path)?;
    let about = Array::<_, About>::try_from(Map::Array(data))?.get(&0, 0)?;
    match about.magic {
        MAGIC => Ok(Some(about)),
        0 => Ok(None),
        other => Err(foreign(format!("it begins with {other:#x}, not with {MAGIC:#x}"))),
    }
}
