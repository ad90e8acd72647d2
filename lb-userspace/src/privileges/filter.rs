//! Filters of system calls (seccomp(2)), for what capabilities do not cover.
//!
//! The helper may call what it needs and nothing else. The agent loses what it never needs again: other programs,
//! namespaces, mounts, other processes' memory, and kernel interfaces with a history of holes. Under systemd the unit's
//! filter applies as well.

use std::{collections::BTreeMap, env};

use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter, apply_filter_all_threads,
};

use super::DropError;

/// Never again, once the agent runs. Creating threads stays allowed.
const REFUSED_TO_AGENT: &[libc::c_long] = &[
    // other programs and other processes
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // namespaces and mounts
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // files past their permissions
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // the kernel itself
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_personality,
];

/// What the helper may call with any arguments: its socket, netlink and ethtool, `/proc` and the directories of namespaces,
/// memory, and its end.
const ALLOWED_TO_HELPER: &[libc::c_long] = &[
    // the agent's socket; netlink and ethtool
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_close,
    libc::SYS_fcntl,
    // namespaces and their settings
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_getdents64,
    // which process has a socket
    libc::SYS_readlink,
    // memory, and what the libraries do by themselves
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigreturn,
    // to end, with or without a reason
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

const REFUSED: SeccompAction = SeccompAction::Errno(libc::EPERM as u32);

/// Filters all threads of the agent.
pub(super) fn install_for_agent() -> Result<(), DropError> {
    // clone3 takes its flags where no filter sees them. Libraries know kernels without it and call clone instead, whose
    // flags for namespaces are refused.
    let absent = filter([(libc::SYS_clone3, vec![])], SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?;
    apply_filter_all_threads(&absent)?;
    let refused = REFUSED_TO_AGENT.iter().map(|call| (*call, vec![]));
    apply_filter_all_threads(&filter(
        refused.chain([(libc::SYS_clone, namespace_flags()?)]),
        SeccompAction::Allow,
        REFUSED,
    )?)?;
    Ok(())
}

/// Filters the helper, which is one thread.
pub(super) fn install_for_helper() -> Result<(), DropError> {
    let allowed = ALLOWED_TO_HELPER.iter().map(|call| (*call, vec![]));
    let with_arguments = [
        (libc::SYS_setns, one_of(1, &[libc::CLONE_NEWNET as u64])?),
        (libc::SYS_socket, one_of(0, &[libc::AF_UNIX as u64, libc::AF_NETLINK as u64])?),
        (libc::SYS_ioctl, one_of(1, &[libc::SIOCETHTOOL, libc::SIOCGIFNAME])?),
    ];
    Ok(apply_filter(&filter(allowed.chain(with_arguments), REFUSED, SeccompAction::Allow)?)?)
}

/// Any of the flags of clone(2) that make a namespace.
fn namespace_flags() -> Result<Vec<SeccompRule>, DropError> {
    let flags = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    flags.into_iter().map(|flag| rule(0, SeccompCmpOp::MaskedEq(flag as u64), flag as u64)).collect()
}

/// An argument of 32 bits that has one of these values.
fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, DropError> {
    values.iter().map(|value| rule(argument, SeccompCmpOp::Eq, *value)).collect()
}

fn rule(argument: u8, comparison: SeccompCmpOp, value: u64) -> Result<SeccompRule, DropError> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, comparison, value);
    Ok(condition.and_then(|condition| SeccompRule::new(vec![condition])).map_err(Error::from)?)
}

fn filter(
    calls: impl IntoIterator<Item = (libc::c_long, Vec<SeccompRule>)>,
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<BpfProgram, DropError> {
    let calls: BTreeMap<i64, Vec<SeccompRule>> = calls.into_iter().collect();
    let architecture = TargetArch::try_from(env::consts::ARCH).map_err(Error::from)?;
    let filter = SeccompFilter::new(calls, otherwise, action, architecture).map_err(Error::from)?;
    Ok(filter.try_into().map_err(Error::from)?)
}
