//! Capabilities: those of the start, and those that stay.

use std::{fs, io};

use rustix::{
    io::Errno,
    process::Pid,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs,
    },
};

use super::filter;
use crate::net::{self, netns::Netns};

/// What start can make use of; anything beyond is dropped before a file is read, so that what works at start works
/// later too: without CAP_DAC_OVERRIDE a file that root may not read stays unread both times.
const STARTING: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_BROADCAST)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::SYS_PTRACE);

/// What threads of their own need that are made last: to listen for BGP, and to be before ordinary threads for BFD.
const FOR_THREADS: CapabilitySet = CapabilitySet::NET_BIND_SERVICE.union(CapabilitySet::SYS_NICE);

/// What the agent keeps: links, addresses and routes of pods, offloads of uplinks, and attaching to what comes later. Maps
/// and loaded programs are used through descriptors that it has, which needs nothing.
const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN;

/// What the helper keeps: to enter namespaces, to change things there, and to look at the namespaces of other users' processes.
pub(super) const KEPT_BY_HELPER: CapabilitySet =
    CapabilitySet::NET_ADMIN.union(CapabilitySet::SYS_ADMIN).union(CapabilitySet::SYS_PTRACE);

/// Why privileges could not be dropped. Nothing goes on then.
#[derive(Debug, thiserror::Error)]
pub enum DropError {
    /// The system refused it.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// No filter was made or taken.
    #[error("cannot install the system call filter: {0}")]
    Filter(#[from] seccompiler::Error),
    /// A thread was made too early, and has its own capabilities.
    #[error("thread {thread} still has more privileges than the agent keeps: it was made before they were dropped")]
    Thread {
        /// Its id.
        thread: i32,
    },
    /// A namespace could be entered although nothing should allow it.
    #[error("privileges were dropped, and entering a namespace still works: {0}")]
    StillThere(String),
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> DropError {
    move |source| DropError::System { action, source: source.into() }
}

/// Drops what not even start needs. For the first thread, before any other is made.
pub fn begin() -> Result<(), DropError> {
    set_no_new_privs(true).map_err(failed("set no_new_privs"))?;
    let now = capabilities(None).map_err(failed("read the capabilities"))?;
    // Inheritable ones stay until the helper has inherited them, where the agent is not root.
    let kept = CapabilitySets {
        effective: now.permitted & STARTING,
        permitted: now.permitted & STARTING,
        inheritable: now.inheritable & STARTING,
    };
    set_capabilities(None, kept).map_err(failed("drop capabilities"))
}

/// Drops all that the agent needed for its start only, for good, and proves that it is gone. What threads need that are made
/// last goes with [`settle`].
///
/// # Errors
/// Where anything of it cannot be dropped, or a thread that was made before has more.
pub fn relinquish() -> Result<(), DropError> {
    keep_only(KEPT.union(FOR_THREADS))?;
    check_threads()?;
    // Entering the namespace that one is in changes nothing and needs the same privilege as any other.
    let entered = Netns::current().and_then(|own| own.enter());
    if !matches!(entered, Err(net::Error::Privilege { .. })) {
        return Err(DropError::StillThere(format!("{entered:?}")));
    }
    filter::install_for_agent()
}

/// Drops what the agent had for threads that are made by now.
///
/// # Errors
/// Where the kernel refuses it.
pub fn settle() -> Result<(), DropError> {
    keep_only(KEPT)
}

/// Drops all that a thread which listens for BGP does not need.
///
/// # Errors
/// Where the kernel refuses it.
pub fn keep_for_bgp() -> Result<(), DropError> {
    keep_only(CapabilitySet::NET_BIND_SERVICE)
}

/// Drops the calling thread's capabilities; those that it starts later have none either. What it reads from then on are
/// its user's own files.
///
/// # Errors
/// Where the kernel refuses it.
pub fn drop_all() -> Result<(), DropError> {
    keep_only(CapabilitySet::empty())
}

/// Drops every capability but these from every set of the calling thread; no set lets it regain any.
pub(super) fn keep_only(kept: CapabilitySet) -> Result<(), DropError> {
    let now = capabilities(None).map_err(failed("read the capabilities"))?;
    // Without CAP_SETPCAP the bounding set is what the agent was given, and no_new_privs alone sees to it that nothing
    // of it comes back.
    if now.effective.contains(CapabilitySet::SETPCAP) {
        empty_bounding_set()?;
    }
    clear_ambient_capability_set().map_err(failed("clear the ambient capabilities"))?;
    let permitted = now.permitted & kept;
    set_capabilities(None, CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() })
        .map_err(failed("drop capabilities"))
}

/// Includes capabilities of kernels to come: the kernel says where they end.
fn empty_bounding_set() -> Result<(), DropError> {
    for bit in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Err(Errno::INVAL) => break,
            other => other.map_err(failed("empty the bounding set"))?,
        }
    }
    Ok(())
}

/// Capabilities are each thread's own.
fn check_threads() -> Result<(), DropError> {
    for entry in fs::read_dir("/proc/self/task").map_err(failed("list the threads"))?.flatten() {
        let thread = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(thread) = thread else { continue };
        match capabilities(Some(thread)) {
            Ok(sets) if KEPT.union(FOR_THREADS).contains(sets.permitted) && sets.inheritable.is_empty() => {}
            Ok(_) => return Err(DropError::Thread { thread: thread.as_raw_nonzero().get() }),
            // It has ended.
            Err(Errno::SRCH) => {}
            Err(error) => return Err(failed("read a thread's capabilities")(error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_that_drops_all_starts_none_that_has_any() {
        let permitted = || capabilities(None).unwrap().permitted;
        let (own, started) = thread::spawn(move || {
            drop_all().unwrap();
            (permitted(), thread::spawn(permitted).join().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!((own, started), (CapabilitySet::empty(), CapabilitySet::empty()));
    }
}
