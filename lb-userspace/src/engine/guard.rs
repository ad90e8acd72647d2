//! What must be so before anything is touched: privileges, and that no other agent runs.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    os::fd::AsRawFd,
    path::Path,
};

use anyhow::{Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{capabilities, failure::in_run_directory};

/// Refuses to go on without the capabilities that the agent needs, and names all that are missing.
pub fn check_capabilities() -> Result<()> {
    let missing = capabilities::missing()?;
    if !missing.is_empty() {
        bail!("not allowed to run: missing {}; run as root, or grant them", missing.join(", "));
    }
    Ok(())
}

/// Allows as many descriptors as may be: each program at an interface has one, and each health check that runs. The usual soft
/// limit of 1024 is for users of select(2), which nobody here is. Under a filter of system calls it stays as the unit has it.
pub fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Held as long as the agent runs; the kernel lets go of it however the agent ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of a run directory, which is made where it is missing.
    pub fn take(run_directory: &Path) -> Result<Self> {
        fs::create_dir_all(run_directory)
            .map_err(|error| in_run_directory(error, "make the run directory", run_directory))?;
        let path = run_directory.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| in_run_directory(error, "open the lock", &path))?;
        // SAFETY: a descriptor that lives across the call.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let mut holder = String::new();
            file.read_to_string(&mut holder).unwrap_or_default();
            bail!(
                "another agent runs on this node (process {}, lock {}); stop it first",
                if holder.trim().is_empty() { "unknown" } else { holder.trim() },
                path.display()
            );
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|error| in_run_directory(error, "write to the lock", &path))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_who_the_first_is() {
        let directory = std::env::temp_dir().join(format!("sluice-lock-{}", std::process::id()));
        let first = Lock::take(&directory).unwrap();
        let refusal = Lock::take(&directory).unwrap_err().to_string();
        assert!(refusal.contains(&format!("process {}", std::process::id())), "{refusal}");
        drop(first);
        Lock::take(&directory).unwrap();
        fs::remove_dir_all(&directory).unwrap();
    }
}
