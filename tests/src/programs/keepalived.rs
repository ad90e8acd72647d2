//! keepalived: another vendor's VRRP router, on the router's end of the node's uplink.

use std::{fs, net::IpAddr, path::Path};

use anyhow::{Context as _, Result, ensure};

use super::{PATIENCE, make_directory};
use crate::{
    lab::{Namespace, ROUTER_END, require_program, wait_until},
    process::Process,
};

/// How it takes part.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// Version of VRRP.
    pub version: u8,
    /// Virtual router identifier.
    pub vrid: u8,
    /// Its priority.
    pub priority: u8,
    /// Seconds between advertisements, as it writes them.
    pub interval: &'a str,
    /// Addresses with prefix lengths, in the order that is advertised.
    pub vips: &'a [&'a str],
}

/// A running keepalived.
pub struct Keepalived {
    process: Process,
}

impl Keepalived {
    /// Starts it on the router's end of a lab, with its files in a directory.
    pub fn start(namespace: &Namespace, directory: &Path, settings: &Settings) -> Result<Self> {
        Self::start_on(namespace, ROUTER_END, directory, settings)
    }

    /// The same on another interface.
    pub fn start_on(namespace: &Namespace, interface: &str, directory: &Path, settings: &Settings) -> Result<Self> {
        require_program("keepalived", "keepalived")?;
        let directory = directory.join("keepalived");
        make_directory(&directory)?;
        let file = directory.join("keepalived.conf");
        let Settings { version, vrid, priority, interval, vips } = settings;
        let text = format!(
            "global_defs {{\n  router_id lab\n  vrrp_version {version}\n}}\n\
             vrrp_instance lab {{\n  state BACKUP\n  interface {interface}\n  virtual_router_id {vrid}\n  \
             priority {priority}\n  advert_int {interval}\n  virtual_ipaddress {{\n    {}\n  }}\n}}\n",
            vips.join("\n    ")
        );
        fs::write(&file, text)?;
        let mut command = namespace.command("keepalived");
        command.args(["--vrrp", "--dont-fork", "--log-console", "--log-detail", "--use-file"]).arg(&file);
        for (option, name) in [("--pid", "main.pid"), ("--vrrp_pid", "vrrp.pid")] {
            command.arg(option).arg(directory.join(name));
        }
        Ok(Self { process: Process::start("keepalived", &mut command)? })
    }

    /// Ends it in order: it says that it leaves.
    pub fn stop(mut self) -> Result<()> {
        self.process.stop()?;
        Ok(())
    }

    /// What it has said last.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}

/// Whether an address is on the router's end: whether packets for it end there, which begins later and ends later than `ip
/// address` shows it.
pub fn is_held_by(namespace: &Namespace, vip: IpAddr) -> Result<bool> {
    let family = if vip.is_ipv4() { "-4" } else { "-6" };
    let of_router = ["route", "show", "table", "local", "dev", ROUTER_END, "exact"];
    let output = namespace.command("ip").arg(family).args(of_router).arg(vip.to_string()).output()?;
    ensure!(output.status.success(), "ip route: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout.starts_with(b"local "))
}

/// Waits until an address is on the router's end, or is not.
pub fn wait_held_by(namespace: &Namespace, vip: IpAddr, wanted: bool) -> Result<()> {
    let what = format!("keepalived {} {vip}", if wanted { "to hold" } else { "not to hold" });
    wait_until(&what, PATIENCE, || Ok((is_held_by(namespace, vip)? == wanted).then_some(())))
}

/// The MAC that a host has for a neighbor, if it has one.
pub fn neighbor(namespace: &Namespace, interface: &str, address: IpAddr) -> Result<Option<String>> {
    let output = namespace
        .command("ip")
        .args(["neighbor", "show", "to", &address.to_string(), "dev", interface])
        .output()
        .context("ip neighbor")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut words = text.split_whitespace();
    let mac = words.by_ref().find(|word| *word == "lladdr").and_then(|_| words.next());
    Ok(mac.map(str::to_owned))
}
