//! A thread of another process that stands still while the others of its process go on, which no signal can do.

use std::{io, ptr};

use anyhow::{Context as _, Result, ensure};

/// A thread that stands still (ptrace(2)) until this is dropped, by the thread that made it.
#[derive(Debug)]
pub struct Halted {
    id: libc::pid_t,
}

impl Halted {
    /// Stops it.
    pub(crate) fn thread(id: u32) -> Result<Self> {
        let id = libc::pid_t::try_from(id)?;
        request(libc::PTRACE_SEIZE, id).context("PTRACE_SEIZE")?;
        // From here on it is let go of.
        let halted = Self { id };
        request(libc::PTRACE_INTERRUPT, id).context("PTRACE_INTERRUPT")?;
        let mut status = 0;
        // SAFETY: the status lives across the call.
        let waited = unsafe { libc::waitpid(id, &raw mut status, libc::__WALL) };
        ensure!(waited == id && libc::WIFSTOPPED(status), "thread {id} does not stop: {waited}, {status:#x}");
        Ok(halted)
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = request(libc::PTRACE_DETACH, self.id);
    }
}

fn request(what: libc::c_uint, thread: libc::pid_t) -> io::Result<()> {
    let nothing = ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests take no memory.
    let done = unsafe { libc::ptrace(what, thread, nothing, nothing) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
