//! Reads the layout of a map from the kernel.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
};

use aya_obj::generated::{bpf_btf_info, bpf_cmd, bpf_map_info};
use thiserror::Error;

use super::{Btf, Layout, LayoutError};
use crate::dataplane::syscall::{self, Facts as _, info};

/// What the kernel calls the file of a map (kernel/bpf/syscall.c, `bpf_map_new_fd`).
const MAP_FILE: &str = "anon_inode:bpf-map";

/// What a map is, and what lies where in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapLayout {
    /// `enum bpf_map_type` (include/uapi/linux/bpf.h).
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value, on one CPU.
    pub value_size: u32,
    /// Entries at most.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
    /// Of the keys.
    pub key: Layout,
    /// Of the values.
    pub value: Layout,
}

/// Why the layout of a map cannot be told.
#[derive(Debug, Error)]
pub enum MapLayoutError {
    /// The kernel does not say.
    #[error("{what}: {source}{advice}")]
    Ask {
        /// What was asked.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// It is another kind of file.
    #[error("it is no map, but {}", file.display())]
    NoMap {
        /// What the kernel calls it.
        file: PathBuf,
    },
    /// The kernel takes no types for maps of some kinds, and others' programs may have none.
    #[error("the map (type {map_type}) carries no types, so nothing says what is in it")]
    NoTypes {
        /// `enum bpf_map_type`.
        map_type: u32,
    },
    /// The types cannot be read.
    #[error("the map's type information is not in this machine's form")]
    Foreign,
    /// There is something in it that is in no map of Sluice.
    #[error("{part} of the map: {source}")]
    Unreadable {
        /// Key or value.
        part: &'static str,
        /// Why.
        source: LayoutError,
    },
    /// The types are of something else.
    #[error("{part} of the map has {size} bytes, and by its type {typed}")]
    Size {
        /// Key or value.
        part: &'static str,
        /// As the map says.
        size: u32,
        /// As the type says.
        typed: usize,
    },
}

impl MapLayout {
    /// Reads the layout of a map. Needs `CAP_SYS_ADMIN`, as long as the kernel has the types under an id only.
    pub fn of(map: impl AsFd) -> Result<Self, MapLayoutError> {
        let map = map.as_fd();
        let ask = |what, advice| move |source| MapLayoutError::Ask { what, source, advice };
        let file = fs::read_link(format!("/proc/self/fd/{}", map.as_raw_fd()))
            .map_err(ask("looking at the map's file", "; is /proc mounted?"))?;
        if file.to_str() != Some(MAP_FILE) {
            return Err(MapLayoutError::NoMap { file });
        }
        let mut facts = bpf_map_info::unknown();
        // SAFETY: the facts name no buffers.
        unsafe { info(map, &mut facts) }.map_err(ask("asking for the map's facts", ""))?;
        if facts.btf_id == 0 {
            return Err(MapLayoutError::NoTypes { map_type: facts.type_ });
        }
        let bytes = types(facts.btf_id)
            .map_err(ask("reading the map's types", "; that needs CAP_SYS_ADMIN, which the agent has at its start"))?;
        let types = Btf::parse(&bytes).ok_or(MapLayoutError::Foreign)?;
        Ok(Self {
            map_type: facts.type_,
            key_size: facts.key_size,
            value_size: facts.value_size,
            max_entries: facts.max_entries,
            flags: facts.map_flags,
            key: layout(&types, "the key", facts.btf_key_type_id, facts.key_size)?,
            value: layout(&types, "the value", facts.btf_value_type_id, facts.value_size)?,
        })
    }
}

fn layout(types: &Btf<'_>, part: &'static str, id: u32, size: u32) -> Result<Layout, MapLayoutError> {
    let layout = Layout::of_type(types, id).map_err(|source| MapLayoutError::Unreadable { part, source })?;
    if layout.size != size as usize {
        return Err(MapLayoutError::Size { part, size, typed: layout.size });
    }
    Ok(layout)
}

/// The type information with this id, as it was loaded.
fn types(id: u32) -> io::Result<Vec<u8>> {
    // SAFETY: there is no address, and the call returns a new descriptor.
    let types = unsafe {
        syscall::open(bpf_cmd::BPF_BTF_GET_FD_BY_ID, |attributes| {
            attributes.__bindgen_anon_6.__bindgen_anon_1.btf_id = id;
        })
    }?;
    let mut facts = bpf_btf_info::unknown();
    // SAFETY: the facts name no buffers.
    unsafe { info(types.as_fd(), &mut facts) }?;
    // It never changes, so it is as long the second time.
    let mut bytes = vec![0; facts.btf_size as usize];
    facts = bpf_btf_info::unknown();
    facts.btf = bytes.as_mut_ptr() as u64;
    facts.btf_size = bytes.len() as u32;
    // SAFETY: the facts name this buffer, with its length.
    unsafe { info(types.as_fd(), &mut facts) }?;
    Ok(bytes)
}
