//! Maps whose keys and values this build has no types for, as bytes. aya's maps are typed.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use aya::maps::MapData;
use aya_obj::generated::{bpf_attr, bpf_cmd};

use super::{DataPlaneError, syscall};

/// The bytes of a key and of its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Every key and value of a map that is not per CPU. Entries that come or go meanwhile may be missing.
pub fn entries(map: &MapData) -> Result<Vec<Entry>, DataPlaneError> {
    let info = map.info()?;
    let mut entries = Vec::new();
    let mut key: Option<Vec<u8>> = None;
    // A key that goes while it is the last one read begins the round anew (kernel/bpf/hashtab.c), so the round has an end.
    for _ in 0..2 * u64::from(info.max_entries()) + 1 {
        let mut next = vec![0; info.key_size() as usize];
        match next_key(map.fd().as_fd(), key.as_deref(), &mut next) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(source) => return Err(DataPlaneError::Entries { source }),
        }
        let mut value = vec![0; info.value_size() as usize];
        match value_of(map.fd().as_fd(), &next, &mut value) {
            Ok(()) => entries.push((next.clone(), value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(source) => return Err(DataPlaneError::Entries { source }),
        }
        key = Some(next);
    }
    Ok(entries)
}

/// The key after another one, or the first. Both are as long as the map's keys.
fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<()> {
    let fill = |attributes: &mut bpf_attr| {
        attributes.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
        attributes.__bindgen_anon_2.key = key.map_or(0, |key| key.as_ptr() as u64);
        attributes.__bindgen_anon_2.__bindgen_anon_1.next_key = next.as_mut_ptr() as u64;
    };
    // SAFETY: the buffers live across the call and are as long as the map's keys.
    unsafe { syscall::bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, fill) }.map(drop)
}

/// Both are as long as the map's keys and values, of which there is one for all CPUs.
fn value_of(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let fill = |attributes: &mut bpf_attr| {
        attributes.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
        attributes.__bindgen_anon_2.key = key.as_ptr() as u64;
        attributes.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    };
    // SAFETY: the buffers live across the call and are as long as the map's keys and values.
    unsafe { syscall::bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, fill) }.map(drop)
}
