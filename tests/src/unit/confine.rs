//! Limits, put on a command between fork and exec.

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    ptr,
    str::FromStr as _,
};

use anyhow::{Context as _, Result, bail};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use syscalls::Sysno;

use super::Limits;

/// File systems that `ProtectSystem=strict` leaves writable.
const API_FILE_SYSTEMS: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Kinds of namespaces but those of the network, which `RestrictNamespaces=net` forbids.
const NAMESPACES: [libc::c_int; 6] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
];

/// One step, with everything that it needs made beforehand: nothing may be allocated between fork and exec.
enum Step {
    /// Bind a path to itself, to have a mount that can be changed apart from the rest.
    Bind(CString),
    /// Make a mount and those below read-only, or writable again.
    ReadOnly(CString, bool),
    /// An empty file system over a directory.
    Hide(CString),
    Filter(BpfProgram),
}

/// Puts the limits on a command. `instead` gives places of a lab for places of the unit.
pub fn confine(mut command: Command, limits: &Limits, instead: &[(&str, &Path)]) -> Result<Command> {
    let mut steps = mounts(limits, instead)?;
    steps.extend(filters(limits)?.into_iter().map(Step::Filter));
    let kept = limits.capabilities.iter().map(|name| number_of_capability(name)).collect::<Result<Vec<_>>>()?;
    let umask = limits.umask as libc::mode_t;
    // SAFETY: all calls are async-signal-safe and get pointers to what `steps` holds; nothing is allocated, unless a call fails,
    // which ends the child.
    unsafe {
        command.pre_exec(move || {
            libc::umask(umask);
            check(libc::unshare(libc::CLONE_NEWNS))?;
            // What is mounted on the host later, such as a new namespace's name, is seen; nothing goes the other way.
            check(libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), libc::MS_REC | libc::MS_SLAVE, ptr::null()))?;
            for capability in (0..64).filter(|capability| !kept.contains(capability)) {
                if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 {
                    break;
                }
            }
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            steps.iter().try_for_each(take)
        });
    }
    Ok(command)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn take(step: &Step) -> io::Result<()> {
    match step {
        // SAFETY: terminated strings that live across the call.
        Step::Bind(path) => check(unsafe {
            libc::mount(path.as_ptr(), path.as_ptr(), ptr::null(), libc::MS_BIND | libc::MS_REC, ptr::null())
        }),
        Step::ReadOnly(path, on) => {
            let flag = libc::MOUNT_ATTR_RDONLY;
            let (attr_set, attr_clr) = if *on { (flag, 0) } else { (0, flag) };
            let change = libc::mount_attr { attr_set, attr_clr, propagation: 0, userns_fd: 0 };
            // SAFETY: a terminated string and a structure of the stated size that live across the call.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_mount_setattr,
                    libc::AT_FDCWD,
                    path.as_ptr(),
                    libc::AT_RECURSIVE,
                    ptr::from_ref(&change),
                    size_of_val(&change),
                )
            };
            check(result as libc::c_int)
        }
        // SAFETY: terminated strings that live across the call.
        Step::Hide(path) => check(unsafe {
            libc::mount(c"tmpfs".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), libc::MS_RDONLY, ptr::null())
        }),
        Step::Filter(program) => apply_filter(program).map_err(io::Error::other),
    }
}

fn mounts(limits: &Limits, instead: &[(&str, &Path)]) -> Result<Vec<Step>> {
    let at = |path: &Path| -> Result<CString> {
        let moved = instead.iter().find(|(of_unit, _)| Path::new(of_unit) == path).map(|(_, of_lab)| *of_lab);
        Ok(CString::new(moved.unwrap_or(path).as_os_str().as_bytes())?)
    };
    let mut steps = Vec::new();
    let there = |paths: Vec<&PathBuf>| paths.into_iter().filter(|path| path.exists()).cloned().collect::<Vec<_>>();
    // All binds first: a mount below a bind is bound with it.
    for path in limits.read_only.iter().chain(&limits.read_write) {
        if instead.iter().any(|(of_unit, _)| Path::new(of_unit) == path) || path.exists() {
            steps.push(Step::Bind(at(path)?));
        }
    }
    steps.push(Step::ReadOnly(c"/".into(), true));
    for path in API_FILE_SYSTEMS {
        steps.push(Step::ReadOnly(CString::new(path)?, false));
    }
    for path in there(limits.read_only.iter().collect()) {
        steps.push(Step::ReadOnly(at(&path)?, true));
    }
    for path in &limits.read_write {
        steps.push(Step::ReadOnly(at(path)?, false));
    }
    for path in there(limits.hidden.iter().collect()) {
        steps.push(Step::Hide(at(&path)?));
    }
    Ok(steps)
}

fn number_of_capability(name: &str) -> Result<libc::c_int> {
    Ok(match name {
        "CAP_SETPCAP" => 8,
        "CAP_NET_BIND_SERVICE" => 10,
        "CAP_NET_BROADCAST" => 11,
        "CAP_NET_ADMIN" => 12,
        "CAP_NET_RAW" => 13,
        "CAP_SYS_PTRACE" => 19,
        "CAP_SYS_ADMIN" => 21,
        "CAP_SYS_NICE" => 23,
        "CAP_PERFMON" => 38,
        "CAP_BPF" => 39,
        other => bail!("{other}: write down its number (include/uapi/linux/capability.h)"),
    })
}

fn number_of_family(name: &str) -> Result<u64> {
    Ok(match name {
        "AF_UNIX" => libc::AF_UNIX,
        "AF_INET" => libc::AF_INET,
        "AF_INET6" => libc::AF_INET6,
        "AF_NETLINK" => libc::AF_NETLINK,
        "AF_PACKET" => libc::AF_PACKET,
        other => bail!("{other}: write down its number"),
    } as u64)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// As systemd makes them: one of what may be called, others of what may not be called with some arguments. The last one installed is
/// the one that would forbid installing.
fn filters(limits: &Limits) -> Result<Vec<BpfProgram>> {
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let mut by_argument = Rules::new();
    for call in [libc::SYS_unshare, libc::SYS_clone] {
        by_argument.insert(call, NAMESPACES.iter().map(|flag| has(0, *flag as u64)).collect::<Result<_>>()?);
    }
    // Zero stands for any kind.
    by_argument.insert(libc::SYS_setns, vec![rule(vec![is_not(1, libc::CLONE_NEWNET as u64)?])?]);
    let both = (libc::PROT_WRITE | libc::PROT_EXEC) as u64;
    by_argument.insert(libc::SYS_mmap, vec![has(2, both)?]);
    by_argument.insert(libc::SYS_mprotect, vec![has(2, libc::PROT_EXEC as u64)?]);
    for (call, argument) in [(libc::SYS_fchmod, 1), (libc::SYS_fchmodat, 2), (libc::SYS_mkdirat, 2)] {
        by_argument.insert(call, vec![has(argument, 0o4000)?, has(argument, 0o2000)?]);
    }
    let families = limits.address_families.iter().map(|name| is_not(0, number_of_family(name)?));
    let families = Rules::from([(libc::SYS_socket, vec![rule(families.collect::<Result<_>>()?)?])]);
    let absent = Rules::from([(libc::SYS_clone3, vec![])]);
    // Names of other architectures are in the groups too.
    let allowed: Rules = limits
        .system_calls
        .iter()
        .filter_map(|name| Sysno::from_str(name).ok())
        .map(|call| (i64::from(call.id()), vec![]))
        .collect();
    Ok(vec![
        program(absent, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?,
        program(by_argument, SeccompAction::Allow, refused.clone())?,
        program(families, SeccompAction::Allow, SeccompAction::Errno(libc::EAFNOSUPPORT as u32))?,
        program(allowed, refused, SeccompAction::Allow)?,
    ])
}

fn program(rules: Rules, otherwise: SeccompAction, action: SeccompAction) -> Result<BpfProgram> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, otherwise, action, architecture)?.try_into()?)
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule> {
    SeccompRule::new(conditions).context("a rule without conditions")
}

fn has(argument: u8, bits: u64) -> Result<SeccompRule> {
    rule(vec![SeccompCondition::new(argument, Dword, SeccompCmpOp::MaskedEq(bits), bits)?])
}

fn is_not(argument: u8, value: u64) -> Result<SeccompCondition> {
    Ok(SeccompCondition::new(argument, Dword, SeccompCmpOp::Ne, value)?)
}
