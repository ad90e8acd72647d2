//! The maps of who answers for VIPs. Apart from the other tables, because another thread writes them.

use aya::{
    Ebpf,
    maps::{HashMap as BpfHash, MapData, MapError},
};
use lb_common::holder::{Conflict, Holder, HolderKey, VirtualMac, VirtualMacKey};

use super::DataPlaneError;

/// `holders`, `virtual_macs` and `conflicts`.
pub struct Holders {
    holders: BpfHash<MapData, HolderKey, Holder>,
    macs: BpfHash<MapData, VirtualMacKey, VirtualMac>,
    conflicts: BpfHash<MapData, HolderKey, Conflict>,
}

impl Holders {
    /// Takes them out of a loaded object.
    pub fn take(object: &mut Ebpf) -> Result<Self, DataPlaneError> {
        let missing = || DataPlaneError::ForeignObject { what: "map holders" };
        Ok(Self {
            holders: object.take_map("holders").ok_or_else(missing)?.try_into()?,
            macs: object.take_map("virtual_macs").ok_or_else(missing)?.try_into()?,
            conflicts: object.take_map("conflicts").ok_or_else(missing)?.try_into()?,
        })
    }

    /// What is in `holders`.
    pub fn all(&self) -> Result<Vec<(HolderKey, Holder)>, MapError> {
        self.holders.iter().collect()
    }

    /// Writes an entry.
    pub fn set(&mut self, key: &HolderKey, holder: &Holder) -> Result<(), MapError> {
        self.holders.insert(key, holder, 0)
    }

    /// Removes one; questions for the address are the kernel's from here on.
    pub fn remove(&mut self, key: &HolderKey) -> Result<(), MapError> {
        match self.holders.remove(key) {
            Err(MapError::KeyNotFound) => Ok(()),
            removed => removed,
        }
    }

    /// What is in `virtual_macs`.
    pub fn all_macs(&self) -> Result<Vec<(VirtualMacKey, VirtualMac)>, MapError> {
        self.macs.iter().collect()
    }

    /// Writes an entry of these.
    pub fn set_mac(&mut self, key: &VirtualMacKey, mac: &VirtualMac) -> Result<(), MapError> {
        self.macs.insert(key, mac, 0)
    }

    /// Removes one; frames to the MAC are none of ours from here on.
    pub fn remove_mac(&mut self, key: &VirtualMacKey) -> Result<(), MapError> {
        match self.macs.remove(key) {
            Err(MapError::KeyNotFound) => Ok(()),
            removed => removed,
        }
    }

    /// Takes out who has claimed what since the last time. A claim meanwhile may count as of the next time, or not at all.
    pub fn take_conflicts(&mut self) -> Result<Vec<(HolderKey, Conflict)>, MapError> {
        let found: Vec<_> = self.conflicts.iter().collect::<Result<_, _>>()?;
        for (key, _) in &found {
            match self.conflicts.remove(key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}
