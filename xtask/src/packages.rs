//! The Debian packages that demo and tests need.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::shell::{is_root, probe, run, run_quietly, step, which};

struct Package {
    name: &'static str,
    /// Its presence means that nothing is to be installed, whatever package it came from.
    binary: &'static str,
    why: &'static str,
}

const PACKAGES: &[Package] = &[
    Package { name: "iproute2", binary: "ip", why: "network namespaces, veth pairs, routes" },
    Package { name: "ethtool", binary: "ethtool", why: "checksum and receive offloads of the test's interfaces" },
    Package {
        name: "nftables",
        binary: "nft",
        why: "NodePort- and hostPort-like DNAT in the tests of the return path",
    },
    Package { name: "bpftool", binary: "bpftool", why: "checks that every map prints with named fields" },
    Package {
        name: "systemd",
        binary: "systemd-analyze",
        why: "checks the unit, and says what is in its filter's groups",
    },
    Package { name: "snmp", binary: "snmptrap", why: "sends SNMP traps and informs" },
    Package { name: "snmptrapd", binary: "snmptrapd", why: "receives them in the pods" },
    Package { name: "bird2", binary: "bird", why: "BGP on both sides of a VIP" },
    Package { name: "keepalived", binary: "keepalived", why: "the other VRRP router" },
    Package { name: "tshark", binary: "tshark", why: "reads what is sent, and finds fault with it" },
];

/// Debian's hook that package scripts ask before they start a service: 101 forbids it.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs what is missing; quick where nothing is.
pub fn install_missing() -> Result<()> {
    let missing: Vec<&Package> = PACKAGES.iter().filter(|package| which(package.binary).is_none()).collect();
    if missing.is_empty() {
        println!("Debian packages: all {} are here", PACKAGES.len());
        return Ok(());
    }
    for package in &missing {
        println!("missing: {:<10} {}", package.name, package.why);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let by_hand = format!("apt-get install --no-install-recommends {}", names.join(" "));
    if which("apt-get").is_none() {
        bail!("this is no Debian: install the programs listed above by other means");
    }
    if !is_root() {
        bail!("installing packages needs root: sudo {by_hand}");
    }
    step(&format!("installing {}", names.join(", ")), || {
        let _quiet = NoServices::new()?;
        if !names.iter().all(|name| is_known(name)) {
            update_lists()?;
        }
        if install(&names).is_err() {
            // Lists that are older than the archive name files that are gone.
            update_lists()?;
            install(&names).with_context(|| format!("by hand: {by_hand}"))?;
        }
        Ok(())
    })
}

/// `apt-get update`.
pub fn update_lists() -> Result<()> {
    if !is_root() {
        bail!("the package lists are missing or old, and refreshing them needs root: sudo apt-get update");
    }
    step("apt-get update", || run_quietly(Command::new("apt-get").args(["-q", "update"]))).map(drop)
}

/// Whether dpkg has this package.
pub fn is_installed(package: &str) -> bool {
    let status = probe(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status} ", package]));
    status.is_some_and(|status| status.split(' ').any(|word| word == "installed"))
}

fn is_known(package: &str) -> bool {
    probe(Command::new("apt-cache").args(["show", "--no-all-versions", package])).is_some()
}

fn install(names: &[&str]) -> Result<()> {
    run(Command::new("apt-get")
        .args(["-q", "-y", "--no-install-recommends", "install"])
        .args(names)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(Stdio::null()))
}

/// Keeps newly installed daemons from starting on the host: the tests start their own, in namespaces. Dropping it
/// restores what was there.
struct NoServices {
    /// The machine's own hook, where it had one.
    previous: Option<Vec<u8>>,
}

impl NoServices {
    fn new() -> Result<Self> {
        let previous = match fs::read(POLICY) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {POLICY}")),
        };
        write_policy(b"#!/bin/sh\nexit 101\n")?;
        Ok(Self { previous })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        let restored = match &self.previous {
            Some(text) => write_policy(text),
            None => fs::remove_file(POLICY).map_err(Into::into),
        };
        if let Err(error) = restored {
            eprintln!("warning: {POLICY} still keeps services from starting: {error:#}");
        }
    }
}

fn write_policy(text: &[u8]) -> Result<()> {
    fs::write(POLICY, text).with_context(|| format!("cannot write {POLICY}"))?;
    fs::set_permissions(Path::new(POLICY), fs::Permissions::from_mode(0o755)).context("cannot set its mode")
}
