//! The directory that maps and links are pinned in.

use std::{ffi::CString, fs, io, os::unix::ffi::OsStrExt, path::Path};

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

/// Removes the pins, which takes down programs and maps that nothing else holds.
pub fn remove(directory: &Path) -> io::Result<()> {
    for part in ["links", "maps"] {
        match fs::remove_dir_all(directory.join(part)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
