//! The journal of what agents have changed of others' interfaces: written before the change, kept with the maps, read by
//! the next agent and by `sluice detach`.

use std::path::Path;

use aya::maps::{HashMap as BpfHash, Map, MapData};
use lb_common::agent::{Undo, UndoKey};

use super::{Tables, ignore_missing};
use crate::dataplane::DataPlaneError;

/// Changes to be undone, and what was there before.
pub type Undos = Vec<(UndoKey, bool)>;

impl Tables {
    /// Notes that a setting is about to be changed. What was noted first stays: later changes are the agents' own.
    pub fn note_undo(&mut self, key: UndoKey, was_on: bool) -> Result<(), DataPlaneError> {
        if self.undo.get(&key, 0).is_ok() {
            return Ok(());
        }
        Ok(self.undo.insert(key, Undo { was_on: was_on.into(), pad: 0 }, 0)?)
    }

    /// Forgets a change: it was undone, or its interface is gone.
    pub fn forget_undo(&mut self, key: &UndoKey) -> Result<(), DataPlaneError> {
        ignore_missing(self.undo.remove(key))
    }

    /// Every change.
    pub fn undos(&self) -> Undos {
        undos(&self.undo)
    }
}

fn undos(map: &BpfHash<MapData, UndoKey, Undo>) -> Undos {
    map.iter().filter_map(Result::ok).map(|(key, undo)| (key, undo.was_on != 0)).collect()
}

/// The changes that a pin directory tells of; none where it has no such map.
pub fn read_undos(maps: &Path) -> Result<Undos, DataPlaneError> {
    let path = maps.join("undo");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let map = BpfHash::try_from(Map::HashMap(MapData::from_pin(path)?))?;
    Ok(undos(&map))
}
