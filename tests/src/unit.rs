//! A systemd unit's limits without systemd: read from the unit file, and put on a command that a test starts.
//!
//! What a directive becomes follows systemd.exec(5). A directive that this module does not know is an error, so that
//! none is taken for kept that was not tried.

mod confine;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

pub use confine::confine;

/// Directives that say how the service is run, and limit nothing that a test could miss.
const NOT_LIMITS: &[&str] = &[
    "Type",
    "NotifyAccess",
    "ExecStart",
    "ExecReload",
    "Restart",
    "RestartSec",
    "WatchdogSec",
    "TimeoutStartSec",
    "TimeoutStopSec",
    "KillMode",
    "OOMScoreAdjust",
    "RuntimeDirectoryMode",
    "RuntimeDirectoryPreserve",
    "SystemCallErrorNumber",
    "LimitNOFILE",
];

/// Directives that hide devices and temporary files: the agent uses neither, and labs are in `/tmp`.
const NOT_TRIED: &[&str] = &["PrivateTmp", "PrivateDevices"];

/// Directives whose system calls `SystemCallFilter` leaves out already, with such a call.
const FILTERED: &[(&str, &[&str])] = &[
    ("ProtectKernelModules", &["init_module", "finit_module", "delete_module"]),
    ("ProtectKernelLogs", &["syslog"]),
    ("ProtectClock", &["clock_settime", "settimeofday", "clock_adjtime"]),
    ("ProtectHostname", &["sethostname", "setdomainname"]),
    ("RestrictRealtime", &["sched_setscheduler", "sched_setattr"]),
    ("LockPersonality", &[]),
];

/// The limits of a unit.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// `CapabilityBoundingSet`.
    pub capabilities: BTreeSet<String>,
    /// `SystemCallFilter` with its groups expanded.
    pub system_calls: BTreeSet<String>,
    /// `RestrictAddressFamilies`.
    pub address_families: BTreeSet<String>,
    /// `ReadOnlyPaths`, and what else is made read-only.
    pub read_only: BTreeSet<PathBuf>,
    /// `ReadWritePaths`, and the runtime directory.
    pub read_write: BTreeSet<PathBuf>,
    /// `ProtectHome`.
    pub hidden: BTreeSet<PathBuf>,
    /// `UMask`.
    pub umask: u32,
}

/// The directives of a section, in the order of the file.
fn directives<'a>(unit: &'a str, section: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let marker = format!("[{section}]");
    let lines = unit.lines().map(str::trim).skip_while(move |line| *line != marker).skip(1);
    lines
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
}

impl Limits {
    /// Reads a unit file.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?)
    }

    /// The limits in the text of a unit.
    pub fn parse(unit: &str) -> Result<Self> {
        let mut limits = Self::default();
        let (mut filtered, mut switched) = (Vec::new(), BTreeSet::new());
        for (key, value) in directives(unit, "Service") {
            let words = || value.split_whitespace();
            match (key, value) {
                _ if NOT_LIMITS.contains(&key) || NOT_TRIED.contains(&key) => {}
                ("CapabilityBoundingSet", _) => limits.capabilities.extend(words().map(str::to_owned)),
                ("SystemCallFilter", _) => limits.filter(value)?,
                ("RestrictAddressFamilies", _) => limits.address_families.extend(words().map(str::to_owned)),
                ("ReadOnlyPaths", _) => limits.read_only.extend(words().map(PathBuf::from)),
                ("ReadWritePaths", _) => limits.read_write.extend(words().map(PathBuf::from)),
                ("RuntimeDirectory", _) => {
                    limits.read_write.extend(words().map(|name| Path::new("/run").join(name)));
                }
                ("ProtectControlGroups", "yes") => {
                    limits.read_only.insert("/sys/fs/cgroup".into());
                }
                ("ProtectHome", "yes") => {
                    limits.hidden.extend(["home", "root", "run/user"].map(|name| Path::new("/").join(name)));
                }
                ("UMask", _) => limits.umask = u32::from_str_radix(value, 8).context("UMask is no octal number")?,
                ("ProtectSystem", "strict")
                | ("NoNewPrivileges" | "MemoryDenyWriteExecute" | "RestrictSUIDSGID", "yes")
                | ("RestrictNamespaces", "net")
                | ("SystemCallArchitectures", "native") => {
                    switched.insert(key);
                }
                (_, "yes") if FILTERED.iter().any(|(name, _)| *name == key) => filtered.push(key),
                _ => bail!("{key}={value}: this module does not know what that limits"),
            }
        }
        // `confine` does what these ask for without being asked.
        for key in [
            "ProtectSystem",
            "NoNewPrivileges",
            "MemoryDenyWriteExecute",
            "RestrictNamespaces",
            "RestrictSUIDSGID",
            "SystemCallArchitectures",
        ] {
            ensure!(switched.contains(key), "{key} is missing, or not as strict as a test of it would be");
        }
        let calls = FILTERED.iter().filter(|(name, _)| filtered.contains(name)).flat_map(|(_, calls)| *calls);
        for call in calls {
            ensure!(
                !limits.system_calls.contains(*call),
                "{call} is in SystemCallFilter, and another directive forbids it"
            );
        }
        Ok(limits)
    }

    /// A line of `SystemCallFilter`: the first one decides that the list is of what is allowed; one with `~` takes out.
    fn filter(&mut self, line: &str) -> Result<()> {
        let takes_out = line.starts_with('~');
        ensure!(!takes_out || !self.system_calls.is_empty(), "SystemCallFilter={line} is a list of what is forbidden");
        for name in line.trim_start_matches('~').split_whitespace() {
            let calls = if name.starts_with('@') { expand(name)? } else { BTreeSet::from([name.to_owned()]) };
            if takes_out {
                self.system_calls.retain(|call| !calls.contains(call));
            } else {
                self.system_calls.extend(calls);
            }
        }
        if !takes_out {
            // systemd needs it to start the service at all.
            self.system_calls.extend(expand("@default")?);
        }
        Ok(())
    }
}

/// The system calls of a group, as the systemd that is installed has it.
fn expand(group: &str) -> Result<BTreeSet<String>> {
    static KNOWN: std::sync::Mutex<BTreeMap<String, BTreeSet<String>>> = std::sync::Mutex::new(BTreeMap::new());
    let known = || KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(calls) = known().get(group) {
        return Ok(calls.clone());
    }
    crate::lab::require_program("systemd-analyze", "systemd")?;
    let output = Command::new("systemd-analyze").args(["--no-pager", "syscall-filter", group]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8(output.stdout)?;
    let mut calls = BTreeSet::new();
    for name in text.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if name.starts_with('@') {
            calls.extend(expand(name)?);
        } else {
            calls.insert(name.to_owned());
        }
    }
    ensure!(!calls.is_empty(), "systemd-analyze knows no system calls of {group}");
    known().insert(group.to_owned(), calls.clone());
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: &str = "[Service]\nProtectSystem=strict\nNoNewPrivileges=yes\nMemoryDenyWriteExecute=yes\n\
        RestrictNamespaces=net\nRestrictSUIDSGID=yes\nSystemCallArchitectures=native\n";

    #[test]
    fn what_is_not_known_or_missing_is_an_error() {
        let limits =
            Limits::parse(&format!("{STRICT}ReadWritePaths=/a /b\nRuntimeDirectory=c\n[Install]\nX=y\n")).unwrap();
        assert!(limits.read_write.iter().eq(["/a", "/b", "/run/c"].map(Path::new)));
        for (unit, why) in [
            (format!("{STRICT}ProtectNothing=yes\n"), "ProtectNothing=yes: this module does not know"),
            (STRICT.replace("strict", "full"), "ProtectSystem=full"),
            (STRICT.replace("NoNewPrivileges=yes\n", ""), "NoNewPrivileges is missing"),
            (format!("{STRICT}SystemCallFilter=~mount\n"), "a list of what is forbidden"),
        ] {
            let error = Limits::parse(&unit).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
