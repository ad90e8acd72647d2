//! The directory that maps and links are pinned in.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::symlink},
    },
    path::{Path, PathBuf},
};

use aya_obj::generated::{bpf_cmd, bpf_link_info};

use super::{
    DataPlaneError,
    syscall::{self, Facts},
};

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Where everybody expects a bpffs.
pub(super) const USUAL_PLACE: &str = "/sys/fs/bpf";
/// Where links are pinned in the directory.
pub const LINKS: &str = "links";
/// Where maps are pinned in the directory.
pub const MAPS: &str = "maps";
/// Where the maps of a data plane are pinned that is to take the place of the one in [`MAPS`], until they are complete.
pub const MAPS_NEW: &str = "maps-new";
/// Where the maps are pinned whose place others have taken, until every program has been switched to those.
pub const MAPS_OLD: &str = "maps-old";
/// Where the maps of [`MAPS_OLD`] go, if any are there when others take their place: their records are in those.
pub const MAPS_OLDER: &str = "maps-older";
/// Where maps may be pinned, what the next agent goes by first.
pub const MAP_DIRECTORIES: [&str; 4] = [MAPS, MAPS_OLD, MAPS_OLDER, MAPS_NEW];
/// What the agent makes in its directory, in the order in which it goes.
pub(super) const PARTS: [&str; 5] = [LINKS, MAPS_NEW, MAPS_OLDER, MAPS_OLD, MAPS];
/// The mark of a directory that is an agent's: what is pinned in another is never removed. A bpffs holds no files of its
/// own, but symlinks; this one leads nowhere.
pub(super) const OWNER: &str = "owner";
/// Where the mark leads.
const OWNER_TARGET: &str = "sluice";
/// Beside the mark where an agent has mounted the bpffs itself.
const MOUNTED: &str = "mounted";

/// The pin directory of this agent. Held as long as the agent runs; the kernel lets go of it however the agent ends.
#[derive(Debug)]
pub struct PinDirectory {
    /// Whether a bpffs was mounted for it.
    pub mounted: bool,
    _lock: File,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

pub(super) fn is_bpffs(path: &Path) -> io::Result<bool> {
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

/// Makes the directory usable and this agent's: mounts a bpffs where there is none. What an earlier agent left stays.
/// Takes neither from a running agent nor what somebody else has pinned, and covers no files by a mount.
pub fn prepare(directory: &Path) -> Result<PinDirectory, DataPlaneError> {
    let fail = |what, advice| {
        move |source| DataPlaneError::PinDirectory { path: directory.to_path_buf(), what, source, advice }
    };
    let usual = Path::new(USUAL_PLACE);
    let (mut mounted, mut is_own_mount) = (false, false);
    if directory.starts_with(usual) && !is_bpffs(usual).map_err(fail("looking at the bpffs above it", ""))? {
        mount(usual).map_err(fail("mounting a bpffs at /sys/fs/bpf", "; mount it, or run with CAP_SYS_ADMIN"))?;
        mounted = true;
    }
    let read_only = "; remount the bpffs read-write, or set pinDirectory to one that is";
    fs::create_dir_all(directory).map_err(fail("making the directory", read_only))?;
    if !is_bpffs(directory).map_err(fail("looking at it", ""))? {
        let elsewhere = "; set pinDirectory to a directory on a bpffs";
        is_empty(directory).map_err(fail("mounting a bpffs", elsewhere))?;
        mount(directory).map_err(fail("mounting a bpffs", elsewhere))?;
        (mounted, is_own_mount) = (true, true);
    }
    let lock =
        lock(directory).map_err(fail("locking it", "; stop the agent that uses it, or set another pinDirectory"))?;
    check_owner(directory).map_err(fail("looking at what is in it", "; set pinDirectory to a directory of its own"))?;
    mark(directory, OWNER).map_err(fail("marking it", read_only))?;
    if is_own_mount {
        mark(directory, MOUNTED).map_err(fail("marking it", read_only))?;
    }
    tidy(directory).map_err(fail("tidying up in it", read_only))?;
    for part in [LINKS, MAPS] {
        fs::create_dir_all(directory.join(part)).map_err(fail("making a directory in it", read_only))?;
    }
    Ok(PinDirectory { mounted, _lock: lock })
}

/// Completes what an agent was killed in: where the old maps have been laid aside, the new ones are complete and take
/// their place; otherwise they are not, and go.
fn tidy(directory: &Path) -> io::Result<()> {
    let [new, maps, old, older] = [MAPS_NEW, MAPS, MAPS_OLD, MAPS_OLDER].map(|part| directory.join(part));
    if older.exists() && !old.exists() {
        fs::rename(&older, &old)?;
    }
    match (new.exists(), maps.exists(), old.exists()) {
        (true, false, true) => fs::rename(new, maps),
        (true, ..) => remove_pins(&new),
        (false, ..) => Ok(()),
    }
}

/// Lets complete new maps take the place of those that there are, which are laid aside.
pub fn replace_maps(directory: &Path) -> io::Result<()> {
    let [new, maps, old, older] = [MAPS_NEW, MAPS, MAPS_OLD, MAPS_OLDER].map(|part| directory.join(part));
    if old.exists() {
        // Programs use what is in `maps`, or it would have been given back its place: these were carried over long ago.
        remove_pins(&older)?;
        fs::rename(&old, older)?;
    }
    fs::rename(&maps, old)?;
    fs::rename(new, maps)
}

/// Gives maps that were laid aside their place back; those that are there go.
pub fn restore_maps(directory: &Path) -> io::Result<()> {
    let [new, maps, old] = [MAPS_NEW, MAPS, MAPS_OLD].map(|part| directory.join(part));
    fs::rename(&maps, new)?;
    fs::rename(old, maps)?;
    tidy(directory)
}

/// Removes a directory of pins, if it is there.
pub fn remove_pins(directory: &Path) -> io::Result<()> {
    for pin in entries(directory)? {
        gone(fs::remove_file(&pin))?;
    }
    gone(fs::remove_dir(directory))
}

/// Takes the directory of an agent that does not run, to remove what is in it. `None` where no agent has left anything.
///
/// # Errors
/// Where an agent runs, or where the directory is somebody else's.
pub fn claim(directory: &Path) -> Result<Option<PinDirectory>, DataPlaneError> {
    let fail = |what, advice| {
        move |source| DataPlaneError::PinDirectory { path: directory.to_path_buf(), what, source, advice }
    };
    match is_bpffs(directory) {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail("looking at it", "")(error)),
    }
    let lock = lock(directory).map_err(fail("locking it", "; stop the agent that uses it"))?;
    check_owner(directory).map_err(fail("looking at what is in it", "; name the directory that agents use"))?;
    let is_marked = fs::symlink_metadata(directory.join(OWNER)).is_ok();
    Ok(is_marked.then_some(PinDirectory { mounted: false, _lock: lock }))
}

fn mark(directory: &Path, name: &str) -> io::Result<()> {
    match symlink(OWNER_TARGET, directory.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// A pinned link.
pub fn open_link(pin: &Path) -> io::Result<OwnedFd> {
    open_pinned(pin, 0)
}

/// The interface that a link is attached to; `None` where that is gone and the link leads nowhere.
pub fn interface_of(link: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let facts = link_info(link)?;
    // SAFETY: an agent's links are of XDP and of tcx, both with the interface in this place; any bytes are a number.
    let interface = unsafe { facts.__bindgen_anon_1.tcx.ifindex };
    Ok((interface != 0).then_some(interface))
}

/// The id of the program behind a pinned link.
pub fn program_of(pin: &Path) -> io::Result<u32> {
    Ok(link_info(open_link(pin)?.as_fd())?.prog_id)
}

fn link_info(link: BorrowedFd<'_>) -> io::Result<bpf_link_info> {
    let mut facts = bpf_link_info::unknown();
    // SAFETY: the facts name no buffers.
    unsafe { syscall::info(link, &mut facts) }?;
    Ok(facts)
}

/// Makes a part of an agent's directory again, and the mark that it is an agent's.
pub fn make_again(part: &Path) -> io::Result<()> {
    if part.exists() {
        return Ok(());
    }
    fs::create_dir_all(part)?;
    part.parent().map_or(Ok(()), |directory| mark(directory, OWNER))
}

/// Pins a link.
pub fn pin_link(link: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    let path = c_path(pin)?;
    // SAFETY: a terminated path that lives across the call.
    unsafe {
        syscall::bpf(bpf_cmd::BPF_OBJ_PIN, |attributes| {
            attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
            attributes.__bindgen_anon_4.bpf_fd = link.as_raw_fd() as u32;
        })
    }
    .map(drop)
}

/// Detaches a pinned link and removes its pin. Without the first, the kernel detaches some time after the pin is gone,
/// and until then refuses the next program in the same place.
pub fn detach(pin: &Path) -> io::Result<()> {
    detach_link(open_link(pin)?.as_fd(), pin)
}

/// The same of a link that may have lost its pin.
pub fn detach_link(link: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    // SAFETY: there is no address.
    let detached = unsafe {
        syscall::bpf(bpf_cmd::BPF_LINK_DETACH, |attributes| {
            attributes.link_detach.link_fd = link.as_raw_fd() as u32;
        })
    };
    gone(fs::remove_file(pin))?;
    match detached {
        // Its interface is gone.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        other => other.map(drop),
    }
}

/// `BPF_F_RDONLY` (include/uapi/linux/bpf.h).
const READ_ONLY: u32 = 1 << 3;

/// A pinned map by which nothing can be changed.
pub(super) fn open_read_only(path: &Path) -> io::Result<OwnedFd> {
    open_pinned(path, READ_ONLY)
}

fn open_pinned(path: &Path, flags: u32) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: a terminated path that lives across the call, which returns a new descriptor.
    unsafe {
        syscall::open(bpf_cmd::BPF_OBJ_GET, |attributes| {
            attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
            attributes.__bindgen_anon_4.file_flags = flags;
        })
    }
}

/// A bpffs over files would hide them from everybody.
fn is_empty(directory: &Path) -> io::Result<()> {
    match fs::read_dir(directory)?.next() {
        None => Ok(()),
        Some(_) => Err(io::Error::other("it holds files, which a mount would hide")),
    }
}

fn lock(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    // SAFETY: a descriptor that lives across the call.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(file);
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Err(io::Error::other("another agent uses it")),
        error => Err(error),
    }
}

/// Whether an agent has made what is in a directory.
pub(super) fn is_marked(directory: &Path) -> bool {
    fs::read_link(directory.join(OWNER)).is_ok_and(|target| target == Path::new(OWNER_TARGET))
}

/// Whether this process may write to a directory.
pub(super) fn writable(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: a terminated path that lives across the call.
    if unsafe { libc::access(path.as_ptr(), libc::W_OK) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Refuses a directory whose parts are there without an agent's mark.
fn check_owner(directory: &Path) -> io::Result<()> {
    let marked = is_marked(directory);
    match PARTS.iter().find(|part| fs::symlink_metadata(directory.join(part)).is_ok()) {
        Some(part) if !marked => Err(io::Error::other(format!("`{part}` is there, and not an agent's"))),
        _ => Ok(()),
    }
}

/// Detaches an agent's programs and removes its pins, which takes down maps that nothing else holds. The mark goes
/// last: what is left of a removal that was cut short is still an agent's. `foreign` pins stay.
pub fn remove(directory: &Path, foreign: &[PathBuf]) -> io::Result<()> {
    clear(directory, foreign)?;
    for part in PARTS.map(|part| directory.join(part)) {
        if !foreign.iter().any(|pin| pin.parent() == Some(&part)) {
            remove_pins(&part)?;
        }
    }
    let is_own_mount = fs::symlink_metadata(directory.join(MOUNTED)).is_ok();
    gone(fs::remove_file(directory.join(MOUNTED)))?;
    gone(fs::remove_file(directory.join(OWNER)))?;
    if is_own_mount && is_empty(directory).is_ok() {
        unmount(directory)?;
    }
    // Gone too, unless somebody has something in it, or a mount.
    let _ = fs::remove_dir(directory);
    Ok(())
}

/// Detaches an agent's programs and removes its pins; the directory stays the agent's, and `foreign` pins in it stay.
pub fn clear(directory: &Path, foreign: &[PathBuf]) -> io::Result<()> {
    let own = |part: &str| -> io::Result<Vec<PathBuf>> {
        Ok(entries(&directory.join(part))?.into_iter().filter(|pin| !foreign.contains(pin)).collect())
    };
    for link in own(LINKS)? {
        // What is no link is removed all the same.
        let _ = detach(&link);
        gone(fs::remove_file(&link))?;
    }
    for part in [MAPS_NEW, MAPS_OLDER, MAPS_OLD] {
        remove_pins(&directory.join(part))?;
    }
    for pin in own(MAPS)? {
        gone(fs::remove_file(&pin))?;
    }
    Ok(())
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What is in a directory; nothing where there is none.
pub fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Later, where somebody is in it: the directory is locked by who removes it.
fn unmount(directory: &Path) -> io::Result<()> {
    let path = c_path(directory)?;
    // SAFETY: a terminated path that lives across the call.
    if unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn only_what_an_agent_has_marked_is_its_own() {
        let directory = scratch("owner");
        check_owner(&directory).unwrap();
        fs::create_dir(directory.join("maps")).unwrap();
        let refusal = check_owner(&directory).unwrap_err().to_string();
        assert!(refusal.contains("`maps` is there"), "{refusal}");
        symlink(OWNER_TARGET, directory.join(OWNER)).unwrap();
        check_owner(&directory).unwrap();
        remove(&directory, &[]).unwrap();
        assert!(!directory.exists());
    }

    #[test]
    fn a_directory_is_one_agents_at_a_time() {
        let directory = scratch("pin-lock");
        let first = lock(&directory).unwrap();
        assert_eq!(lock(&directory).unwrap_err().to_string(), "another agent uses it");
        drop(first);
        lock(&directory).unwrap();
        fs::remove_dir(&directory).unwrap();
    }
}
