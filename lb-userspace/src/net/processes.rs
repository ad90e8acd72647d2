//! Which process has a socket, from what the kernel shows under /proc.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

/// A process that has a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its name, as the kernel keeps it.
    pub name: String,
}

impl Holder {
    /// Who has one of these sockets, by their inodes. None where it cannot be seen: the process is in another PID namespace, or has
    /// more privileges than who asks (ptrace(2), "Ptrace access mode checking").
    #[must_use]
    pub fn of_sockets(inodes: &[u64]) -> Option<Self> {
        let wanted: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
        let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
        let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let pid = pids.find(|pid| has_any(*pid, &wanted))?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Some(Self { pid, name: name.trim_end().to_owned() })
    }

    /// For messages.
    #[must_use]
    pub fn describe(holder: Option<&Self>) -> String {
        match holder {
            Some(Self { pid, name }) => format!("another process, {name} (pid {pid})"),
            None => "another process, which cannot be seen from here".into(),
        }
    }
}

fn has_any(pid: u32, wanted: &[String]) -> bool {
    let Ok(descriptors) = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")) else { return false };
    descriptors
        .filter_map(Result::ok)
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|link| link.to_str().is_some_and(|link| wanted.iter().any(|wanted| wanted == link)))
}
