//! bpf(2) where aya has no words for it: any map's bytes, any link's program, the types of a map.

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use aya_obj::generated::{bpf_attr, bpf_btf_info, bpf_cmd, bpf_link_info, bpf_map_info};

/// Calls it with attributes that `fill` has filled in; what it does not set is zero.
///
/// # Safety
/// Addresses in the attributes are 0 or of buffers that live across the call and are as long as the command takes them for.
pub unsafe fn bpf(command: bpf_cmd, fill: impl FnOnce(&mut bpf_attr)) -> io::Result<libc::c_int> {
    // SAFETY: a union of plain integers, for which zero is a value.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    fill(&mut attributes);
    // SAFETY: the attributes live across the call and have the size that is given; the caller vouches for the addresses.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as u32, &raw mut attributes, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

/// The same for a command that opens something.
///
/// # Safety
/// As for [`bpf`], and the command returns a new descriptor.
pub unsafe fn open(command: bpf_cmd, fill: impl FnOnce(&mut bpf_attr)) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for it.
    let descriptor = unsafe { bpf(command, fill) }?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// What the kernel says of an object: plain integers, any of which it may write, and addresses of buffers to be written.
pub trait Facts: Sized {
    /// Nothing is known, and there are no buffers.
    fn unknown() -> Self {
        // SAFETY: plain integers, for which zero is a value.
        unsafe { mem::zeroed() }
    }
}
impl Facts for bpf_map_info {}
impl Facts for bpf_btf_info {}
impl Facts for bpf_link_info {}

/// Asks the kernel of a map, link or type information.
///
/// # Safety
/// Addresses in `facts` are 0 or of buffers that live across the call and are as long as `facts` says.
pub unsafe fn info<T: Facts>(object: BorrowedFd<'_>, facts: &mut T) -> io::Result<()> {
    let fill = |attributes: &mut bpf_attr| {
        attributes.info.bpf_fd = object.as_raw_fd() as u32;
        attributes.info.info_len = size_of::<T>() as u32;
        attributes.info.info = (&raw mut *facts) as u64;
    };
    // SAFETY: the kernel writes as much of `facts` as is said, and the caller vouches for what they name.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, fill) }.map(drop)
}
