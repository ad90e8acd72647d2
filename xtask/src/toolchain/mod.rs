//! The toolchain that compiles `lb-ebpf`: a rustc with the *matching* library sources, since `core` is built from
//! source for this tier 3 target, and a `bpf-linker` whose LLVM is at least as new as that rustc's.

mod debian;
mod rustup;

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::shell::{probe, step, which};

/// The bpf-linker that this project is built with.
const BPF_LINKER_VERSION: &str = "0.13.0";

/// A rustc and a linker that fit each other.
pub struct Toolchain {
    /// What it is and where it was found, for people.
    pub origin: String,
    /// The compiler, or a wrapper of it.
    pub rustc: PathBuf,
    /// The cargo that belongs to the compiler, where it has its own.
    pub cargo: Option<PathBuf>,
    /// `bpf-linker`.
    pub linker: PathBuf,
    /// `clippy-driver` of the same version, where there is one.
    pub clippy: Option<PathBuf>,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  rustc  {}\n  linker {}", self.origin, self.rustc.display(), self.linker.display())
    }
}

/// The toolchain, made first where none is found.
pub fn find_or_make() -> Result<Toolchain> {
    if let Some(found) = find()? {
        return Ok(found);
    }
    let directory = private_directory()?;
    if rustup::may_fetch() {
        match step("installing nightly Rust with rustup, and bpf-linker", || rustup::make(&directory)) {
            Ok(()) => {}
            Err(error) => eprintln!("    {error:#}; trying Debian's packages instead"),
        }
    }
    if find()?.is_none() && debian::is_possible() {
        step(&format!("making a private eBPF toolchain in {}", directory.display()), || debian::make(&directory))?;
    }
    find()?.context(
        "no eBPF toolchain, and none could be made here; on a machine with internet access these two commands do it:\n  \
         rustup toolchain install nightly --component rust-src\n  cargo install bpf-linker\n\
         or name one with EBPF_RUSTC (its sysroot must have the library sources) and BPF_LINKER",
    )
}

/// Overrides, then nightly, the default toolchain, the system's, and the one that `setup` made. The first with library
/// sources and a linker wins.
fn find() -> Result<Option<Toolchain>> {
    let private = private_directory()?;
    let linker = match env::var_os("BPF_LINKER") {
        Some(path) => Some(existing("BPF_LINKER", path.into())?),
        None => which("bpf-linker").or_else(|| rustup::private_linker(&private)),
    };
    if let Some(path) = env::var_os("EBPF_RUSTC") {
        let rustc = existing("EBPF_RUSTC", path.into())?;
        let Some(linker) = linker.or_else(|| debian::private_linker(&private)) else {
            bail!("EBPF_RUSTC is set but there is no bpf-linker: set BPF_LINKER or `cargo install bpf-linker`");
        };
        if !has_sources(&sysroot(&mut Command::new(&rustc)).unwrap_or_default()) {
            bail!(
                "EBPF_RUSTC={} has no library sources (lib/rustlib/src/rust/library) in its sysroot",
                rustc.display()
            );
        }
        return Ok(Some(Toolchain { origin: "EBPF_RUSTC".into(), rustc, cargo: None, linker, clippy: None }));
    }
    if let Some(linker) = linker {
        let candidates = [
            ("nightly Rust of rustup", rustup::sysroot("nightly")),
            ("the default Rust", sysroot(&mut Command::new("rustc"))),
            ("the system's Rust", sysroot(&mut Command::new("/usr/bin/rustc"))),
        ];
        for (origin, sysroot) in candidates {
            if let Some(sysroot) = sysroot.filter(|sysroot| has_sources(sysroot)) {
                let own_cargo = sysroot.join("bin/cargo");
                return Ok(Some(Toolchain {
                    origin: origin.into(),
                    rustc: sysroot.join("bin/rustc"),
                    cargo: own_cargo.is_file().then_some(own_cargo),
                    linker,
                    clippy: Some(sysroot.join("bin/clippy-driver")).filter(|driver| driver.is_file()),
                }));
            }
        }
    }
    Ok(debian::find(&private))
}

/// Where `setup` keeps what it makes; nothing outside of it is touched.
fn private_directory() -> Result<PathBuf> {
    let cache = match env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache"),
    };
    Ok(cache.join("sluice/ebpf-toolchain"))
}

/// `core` is only ever built from the sources that came with the compiler: another version's do not compile.
fn has_sources(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").is_file()
}

fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    probe(rustc.args(["--print", "sysroot"])).map(PathBuf::from)
}

fn existing(variable: &str, path: PathBuf) -> Result<PathBuf> {
    if !path.is_file() {
        bail!("{variable}={} is not a file", path.display());
    }
    Ok(path)
}
