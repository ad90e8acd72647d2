//! Maps whose keys and values this build has no types for, as bytes. aya's maps are typed.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use aya::maps::MapData;

use super::DataPlaneError;

/// Commands of bpf(2) (`enum bpf_cmd`, include/uapi/linux/bpf.h).
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;

/// What the commands on elements read of `union bpf_attr`.
#[repr(C)]
struct ElementAttributes {
    map: u32,
    pad: u32,
    key: u64,
    value_or_next_key: u64,
    flags: u64,
}

/// The bytes of a key and of its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Every key and value of a map that is not per CPU. Entries that come or go meanwhile may be missing.
pub fn entries(map: &MapData) -> Result<Vec<Entry>, DataPlaneError> {
    let info = map.info()?;
    let descriptor = map.fd().as_fd().as_raw_fd() as u32;
    let mut entries = Vec::new();
    let mut key: Option<Vec<u8>> = None;
    // A key that goes while it is the last one read begins the round anew (kernel/bpf/hashtab.c), so the round has an end.
    for _ in 0..2 * u64::from(info.max_entries()) + 1 {
        let mut next = vec![0; info.key_size() as usize];
        let from = key.as_ref().map_or(0, |key| key.as_ptr() as u64);
        match element(BPF_MAP_GET_NEXT_KEY, descriptor, from, next.as_mut_ptr() as u64) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(source) => return Err(DataPlaneError::Entries { source }),
        }
        let mut value = vec![0; info.value_size() as usize];
        match element(BPF_MAP_LOOKUP_ELEM, descriptor, next.as_ptr() as u64, value.as_mut_ptr() as u64) {
            Ok(()) => entries.push((next.clone(), value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(source) => return Err(DataPlaneError::Entries { source }),
        }
        key = Some(next);
    }
    Ok(entries)
}

fn element(command: libc::c_int, map: u32, key: u64, value_or_next_key: u64) -> io::Result<()> {
    let attributes = ElementAttributes { map, pad: 0, key, value_or_next_key, flags: 0 };
    let pointer = &raw const attributes;
    // SAFETY: the attributes live across the call; the addresses in them are of buffers as long as the map's keys and values,
    // or 0.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size_of::<ElementAttributes>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
