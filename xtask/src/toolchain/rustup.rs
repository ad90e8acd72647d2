//! The usual route: nightly Rust with its sources from rustup, and bpf-linker from the crate registry.

use std::{
    env,
    net::{TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::Result;

use super::BPF_LINKER_VERSION;
use crate::shell::{cargo, probe, run, which};

/// How long the toolchain server may take to answer before rustup is given up.
const REACHABLE_WITHIN: Duration = Duration::from_secs(5);

/// The sysroot of a toolchain that rustup has already installed.
pub fn sysroot(toolchain: &str) -> Option<PathBuf> {
    which("rustup")?;
    let mut rustup = Command::new("rustup");
    // Looking must not install anything.
    rustup.env("RUSTUP_AUTO_INSTALL", "0").args(["run", toolchain, "rustc", "--print", "sysroot"]);
    probe(&mut rustup).map(PathBuf::from)
}

/// The linker that [`make`] installed.
pub fn private_linker(directory: &Path) -> Option<PathBuf> {
    Some(root(directory).join("bin/bpf-linker")).filter(|path| path.is_file())
}

/// Whether rustup is here, allowed to install, and likely to reach its server.
pub fn may_fetch() -> bool {
    if which("rustup").is_none() || env::var("RUSTUP_AUTO_INSTALL").is_ok_and(|value| value == "0") {
        return false;
    }
    // Behind a proxy a direct connection says nothing.
    if ["https_proxy", "HTTPS_PROXY", "RUSTUP_DIST_SERVER"].iter().any(|name| env::var_os(name).is_some()) {
        return true;
    }
    // In a thread, because name resolution has no deadline of its own.
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let reached = ("static.rust-lang.org", 443)
            .to_socket_addrs()
            .is_ok_and(|mut addresses| addresses.any(|a| TcpStream::connect_timeout(&a, REACHABLE_WITHIN).is_ok()));
        sender.send(reached).ok();
    });
    receiver.recv_timeout(REACHABLE_WITHIN).unwrap_or(false)
}

/// Installs both. The linker goes into the private directory, since another project may want another version.
pub fn make(directory: &Path) -> Result<()> {
    run(Command::new("rustup").args([
        "toolchain",
        "install",
        "nightly",
        "--profile",
        "minimal",
        "--component",
        "rust-src",
    ]))?;
    if which("bpf-linker").is_some() {
        return Ok(());
    }
    run(cargo()
        .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--root"])
        .arg(root(directory)))
}

fn root(directory: &Path) -> PathBuf {
    directory.with_file_name("bpf-linker")
}
