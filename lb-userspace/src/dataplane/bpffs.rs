//! The directory that maps and links are pinned in.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use super::DataPlaneError;

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Where everybody expects a bpffs.
const USUAL_PLACE: &str = "/sys/fs/bpf";

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    let path = c_path(path)?;
    // SAFETY: plain integers, for which zero is a value.
    let mut facts: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated path and a structure that live across the call.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut facts) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(facts.f_type == BPF_FS_MAGIC)
}

fn mount(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let kind = c"bpf";
    // SAFETY: terminated strings that live across the call.
    let result = unsafe { libc::mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    if result != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the directory usable: mounts a bpffs where there is none, empties what an earlier agent left.
/// Returns whether a bpffs was mounted.
pub fn prepare(directory: &Path) -> Result<bool, DataPlaneError> {
    let fail = |what, advice| {
        move |source| DataPlaneError::PinDirectory { path: directory.to_path_buf(), what, source, advice }
    };
    let usual = Path::new(USUAL_PLACE);
    let mut mounted = false;
    if directory.starts_with(usual) && !is_bpffs(usual).map_err(fail("looking at the bpffs above it", ""))? {
        mount(usual).map_err(fail("mounting a bpffs at /sys/fs/bpf", "; mount it, or run with CAP_SYS_ADMIN"))?;
        mounted = true;
    }
    let read_only = "; remount the bpffs read-write, or set pinDirectory to one that is";
    fs::create_dir_all(directory).map_err(fail("making the directory", read_only))?;
    if !is_bpffs(directory).map_err(fail("looking at it", ""))? {
        mount(directory).map_err(fail("mounting a bpffs", "; set pinDirectory to a directory on a bpffs"))?;
        mounted = true;
    }
    remove(directory).map_err(fail("removing what an earlier agent left", read_only))?;
    for part in ["maps", "links"] {
        fs::create_dir_all(directory.join(part)).map_err(fail("making a directory in it", read_only))?;
    }
    Ok(mounted)
}

/// Detaches a pinned link and removes its pin. Without the first, the kernel detaches some time after the pin is gone,
/// and until then refuses the next program in the same place.
pub fn detach(pin: &Path) -> io::Result<()> {
    let link = open_pinned(pin)?;
    let attributes = libc::c_uint::try_from(link.as_raw_fd()).map_err(io::Error::other)?;
    let detached = bpf(BPF_LINK_DETACH, &attributes);
    fs::remove_file(pin)?;
    match detached {
        // Its interface is gone.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        other => other.map(drop),
    }
}

fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let attributes = ObjectAttributes { path: path.as_ptr() as u64, descriptor: 0, flags: 0 };
    let descriptor = bpf(BPF_OBJ_GET, &attributes)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Commands of bpf(2) (`enum bpf_cmd`, include/uapi/linux/bpf.h).
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;

/// What `BPF_OBJ_GET` reads of `union bpf_attr`.
#[repr(C)]
struct ObjectAttributes {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// bpf(2) with a command that writes nothing back.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    let pointer = std::ptr::from_ref(attributes);
    // SAFETY: the pointer and length describe `attributes`, which lives across the call and has no padding.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

/// Detaches the programs and removes the pins, which takes down maps that nothing else holds.
pub fn remove(directory: &Path) -> io::Result<()> {
    for link in fs::read_dir(directory.join("links")).into_iter().flatten().flatten() {
        // What is no link is removed all the same.
        let _ = detach(&link.path());
    }
    for part in ["links", "maps"] {
        match fs::remove_dir_all(directory.join(part)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
