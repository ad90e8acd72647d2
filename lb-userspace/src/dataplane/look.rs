//! What there is of BPF on this node: features of the kernel, others' programs, pins. Nothing is changed; features are
//! tried by loading programs of two instructions, which go at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
};

use aya::{
    programs::{
        ProgramError, ProgramType, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
    sys::{BpfHelper, is_helper_supported},
};

use super::{
    bpffs::{self, OWNER, PARTS, USUAL_PLACE},
    summed::Summed,
};
use crate::preflight::facts::{Kernel, PinsState, Program, Unseen};

/// Helpers that not every kernel has, by the type of the program that calls them, and what they are for.
const HELPERS: [(ProgramType, &str, BpfHelper, &str); 8] = [
    (ProgramType::Xdp, "XDP", BpfHelper::BPF_FUNC_skc_lookup_tcp, "bpf_skc_lookup_tcp, which tells whose a session is"),
    (ProgramType::Xdp, "XDP", BpfHelper::BPF_FUNC_redirect_map, "bpf_redirect_map, which delivers to pods"),
    (ProgramType::Xdp, "XDP", BpfHelper::BPF_FUNC_xdp_get_buff_len, "bpf_xdp_get_buff_len, for large frames"),
    (ProgramType::SchedClassifier, "tc", BpfHelper::BPF_FUNC_skc_lookup_tcp, "bpf_skc_lookup_tcp, for opaque pods"),
    (ProgramType::SchedClassifier, "tc", BpfHelper::BPF_FUNC_fib_lookup, "bpf_fib_lookup, which tells a reply's way"),
    (
        ProgramType::SchedClassifier,
        "tc",
        BpfHelper::BPF_FUNC_redirect_neigh,
        "bpf_redirect_neigh, by which replies leave",
    ),
    (ProgramType::SchedClassifier, "tc", BpfHelper::BPF_FUNC_redirect_peer, "bpf_redirect_peer, for rung peer"),
    (ProgramType::SchedClassifier, "tc", BpfHelper::BPF_FUNC_jiffies64, "bpf_jiffies64, the programs' clock"),
];

/// What the kernel can, as far as this process may try.
pub fn kernel(unseen: &mut Vec<Unseen>) -> Kernel {
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let mut kernel = Kernel {
        release: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        types: Summed::of_kernel().is_some(),
        unprivileged_bpf_disabled: read("/proc/sys/kernel/unprivileged_bpf_disabled")
            .and_then(|text| text.parse().ok()),
        // `none [integrity] confidentiality`, where securityfs is mounted.
        lockdown: read("/sys/kernel/security/lockdown")
            .and_then(|text| text.split(['[', ']']).nth(1).map(str::to_owned)),
        ..Kernel::default()
    };
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => kernel.tcx = Some(true),
        Err(error) if errno(&error) == Some(libc::EINVAL) => kernel.tcx = Some(false),
        Err(error) => unseen.push(not_seen("tcx", &error)),
    }
    for (kind, name, helper, purpose) in HELPERS {
        match is_helper_supported(kind, helper) {
            Ok(true) => {}
            Ok(false) => kernel.missing_helpers.push(format!("{name} helper {purpose}")),
            Err(error) => {
                // What keeps one from being tried keeps all.
                unseen.push(not_seen("helpers", &error));
                break;
            }
        }
    }
    kernel.jit = jit(read("/proc/sys/net/core/bpf_jit_enable").as_deref());
    kernel
}

/// The setting is in the first network namespace alone; elsewhere a program tells.
fn jit(setting: Option<&str>) -> Option<bool> {
    match setting {
        Some(setting) => Some(setting != "0"),
        None => loaded_programs().next()?.ok().map(|program| program.size_jitted() > 0),
    }
}

fn errno(error: &ProgramError) -> Option<i32> {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(this) = cause {
        if let Some(error) = this.downcast_ref::<io::Error>() {
            return error.raw_os_error();
        }
        cause = this.source();
    }
    None
}

fn not_seen(what: &str, error: &ProgramError) -> Unseen {
    let why = match errno(error) {
        Some(libc::EPERM | libc::EACCES) => "needs CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN".to_owned(),
        _ => crate::failure::describe(&anyhow::anyhow!(error.to_string())),
    };
    Unseen { what: what.to_owned(), why }
}

/// Ids of the programs behind the links that an agent has pinned in this directory. Empty where nobody may look.
pub fn own_programs(pins: &Path) -> BTreeSet<u32> {
    if !bpffs::is_marked(pins) {
        return BTreeSet::new();
    }
    let links = fs::read_dir(pins.join("links")).into_iter().flatten().flatten();
    let of_link = |path: &Path| FdLink::from(PinnedLink::from_pin(path).ok()?).info().ok();
    links.filter_map(|link| of_link(&link.path())).map(|info| info.program_id()).collect()
}

/// Names of all loaded programs by id. Empty where nobody may look.
pub fn program_names() -> BTreeMap<u32, String> {
    let named = |program: aya::programs::ProgramInfo| Some((program.id(), program.name_as_str()?.to_owned()));
    loaded_programs().filter_map(Result::ok).filter_map(named).collect()
}

/// tcx programs on an interface that are not among `own`.
pub fn other_tcx(interface: &str, own: &BTreeSet<u32>) -> Result<Vec<Program>, Unseen> {
    let mut others = Vec::new();
    for (at, place) in [(TcAttachType::Ingress, "ingress"), (TcAttachType::Egress, "egress")] {
        let (_, programs) = match SchedClassifier::query_tcx(interface, at) {
            Ok(programs) => programs,
            // Said once, of the kernel.
            Err(error) if errno(&error) == Some(libc::EINVAL) => return Ok(others),
            Err(error) => return Err(not_seen(&format!("tcx programs of {interface}"), &error)),
        };
        let other = |program: aya::programs::ProgramInfo| {
            let name = program.name_as_str().map(str::to_owned);
            (!own.contains(&program.id())).then(|| Program { place, name, id: program.id() })
        };
        others.extend(programs.into_iter().filter_map(other));
    }
    Ok(others)
}

/// What is at the pin directory's path; the errors are of looking.
pub fn pins(path: &Path) -> io::Result<PinsState> {
    let usual = Path::new(USUAL_PLACE);
    if path.starts_with(usual) && !bpffs::is_bpffs(usual)? {
        return Ok(PinsState::NoBpffs);
    }
    // What is missing is made below what is there.
    let mut there = path;
    let facts = loop {
        match fs::metadata(there) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && there.parent().is_some() => {
                there = there.parent().unwrap_or(there);
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Ok(PinsState::NoPlace("a part of the path is no directory".to_owned()));
            }
            other => break other?,
        }
    };
    if !facts.is_dir() {
        return Ok(PinsState::NoPlace(format!("{} is no directory", there.display())));
    }
    if !bpffs::is_bpffs(there)? {
        if there == path && fs::read_dir(path)?.next().is_some() {
            return Ok(PinsState::NoPlace("it holds files, which a mount would hide".to_owned()));
        }
        return Ok(PinsState::NoBpffs);
    }
    if is_read_only(there) {
        return Ok(PinsState::ReadOnly);
    }
    match PARTS.iter().find(|part| fs::symlink_metadata(path.join(part)).is_ok()) {
        Some(part) if !bpffs::is_marked(path) => Ok(PinsState::Foreign((*part).to_owned())),
        None if fs::symlink_metadata(path.join(OWNER)).is_err() => Ok(PinsState::Free),
        _ => Ok(PinsState::Agents),
    }
}

/// Whether nobody can write below a directory, whoever it is.
pub fn is_read_only(path: &Path) -> bool {
    bpffs::writable(path).is_err_and(|error| error.raw_os_error() == Some(libc::EROFS))
}

/// Why a directory cannot be written; none where it can, or where it is missing and can be made.
pub fn obstacle(path: &Path) -> Option<String> {
    let there = path.ancestors().find(|ancestor| fs::symlink_metadata(ancestor).is_ok())?;
    if !there.is_dir() {
        return Some(format!("{} is no directory", there.display()));
    }
    bpffs::writable(there).err().map(|error| format!("{} cannot be written: {error}", there.display()))
}

/// The process that holds a lock of flock(2) on a file or directory, by /proc/locks: to ask by flock(2) would keep an agent
/// from taking it for a moment.
pub fn lock_holder(path: &Path) -> Option<u32> {
    let facts = fs::metadata(path).ok()?;
    let device = (libc::major(facts.dev()), libc::minor(facts.dev()));
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| holder(line, device, facts.ino()))
}

/// `1: FLOCK  ADVISORY  WRITE 1234 00:1a:5678 0 EOF`: process, device in hexadecimal, inode.
fn holder(line: &str, (major, minor): (u32, u32), inode: u64) -> Option<u32> {
    let mut words = line.split_whitespace();
    let (kind, process, place) = (words.nth(1)?, words.nth(2)?, words.next()?);
    let mut place = place.split(':');
    let mut hexadecimal = || u32::from_str_radix(place.next()?, 16).ok();
    let is_it = kind == "FLOCK" && hexadecimal()? == major && hexadecimal()? == minor;
    (is_it && place.next()?.parse() == Ok(inode)).then(|| process.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_locks_names_process_device_and_inode() {
        let line = "3: FLOCK  ADVISORY  WRITE 1234 00:1a:5678 0 EOF";
        assert_eq!(holder(line, (0, 0x1a), 5678), Some(1234));
        for (device, inode) in [((0, 0x1b), 5678), ((1, 0x1a), 5678), ((0, 0x1a), 5679)] {
            assert_eq!(holder(line, device, inode), None);
        }
        assert_eq!(holder(&line.replace("FLOCK", "POSIX"), (0, 0x1a), 5678), None);
        for length in 0..line.len() {
            let _ = holder(&line[..length], (0, 0x1a), 5678);
        }
    }

    #[test]
    fn the_holder_of_a_lock_is_found_without_taking_it() {
        use std::os::fd::AsRawFd;
        let directory = std::env::temp_dir().join(format!("sluice-holder-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        assert_eq!(lock_holder(&directory), None);
        let file = fs::File::open(&directory).unwrap();
        // SAFETY: a descriptor that lives across the call.
        assert_eq!(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }, 0);
        assert_eq!(lock_holder(&directory), Some(std::process::id()));
        drop(file);
        fs::remove_dir(&directory).unwrap();
    }
}
