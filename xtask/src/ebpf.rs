//! Builds `lb-ebpf`, apart from the rest of the workspace, so that a machine without an eBPF toolchain can still check
//! and test everything else.

use std::{
    env::{self, consts::ARCH},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    budget,
    shell::{cargo, root, run, set_aside, step},
    toolchain::{self, Toolchain},
    verifier,
};

const TARGET: &str = "bpfel-unknown-none";
/// The feature of the packages that stands for the next release.
pub const NEXT_ABI: &str = "next-abi";

/// Where what is built with [`NEXT_ABI`] is set aside.
pub fn next_directory() -> PathBuf {
    root().join("target/next")
}

/// How to build and judge the objects.
#[derive(Args, Default)]
pub struct Options {
    /// Write today's costs into the budget instead of comparing
    #[arg(long)]
    pub update_budget: bool,
}

/// Where the objects are.
pub struct Objects {
    /// The product's programs.
    pub sluice: PathBuf,
    /// The programs of tests and benchmarks.
    pub lab: PathBuf,
}

/// Builds both objects, and judges the product's where this process may load programs.
pub fn build(options: &Options) -> Result<Objects> {
    let toolchain = toolchain::find_or_make()?;
    let target_directory = root().join("target/ebpf");
    step("building the eBPF objects", || run(&mut compile(&toolchain, &target_directory, "build")))?;
    let objects = target_directory.join(TARGET).join("release");
    let objects = Objects { sluice: objects.join("sluice"), lab: objects.join("lab") };
    let object = fs::read(&objects.sluice).with_context(|| format!("cannot read {}", objects.sluice.display()))?;
    match verifier::measure(&object)? {
        Some(costs) if options.update_budget => budget::update(&costs)?,
        Some(costs) => budget::check(&costs)?,
        None if env::var_os("CI").is_some() => bail!("loading the programs needs CAP_BPF and CAP_NET_ADMIN"),
        None => println!("not loaded, so not compared with the budget: that needs CAP_BPF and CAP_NET_ADMIN (root)"),
    }
    Ok(objects)
}

/// Builds the product's object with the ABI that stands for the next release's. Before [`build`]: cargo puts both in the
/// same place, whose dependencies they share.
pub fn build_next() -> Result<PathBuf> {
    let toolchain = toolchain::find_or_make()?;
    let target_directory = root().join("target/ebpf");
    let mut compile = compile(&toolchain, &target_directory, "build");
    compile.args(["--bin", "sluice", "--features", NEXT_ABI]);
    step("building the eBPF object of the next ABI", || run(&mut compile))?;
    set_aside(&target_directory.join(TARGET).join("release/sluice"), &next_directory().join("sluice.o"))
}

/// Clippy, where the toolchain has it, and otherwise the compiler's own warnings, as errors.
pub fn lint() -> Result<()> {
    let toolchain = toolchain::find_or_make()?;
    // Not the build's directory: other flags would make each of the two rebuild `core`.
    let mut check = compile(&toolchain, &root().join("target/ebpf-lint"), "check");
    let what = match &toolchain.clippy {
        Some(driver) => {
            // What `cargo clippy` does, which rustup alone could find for this toolchain.
            check.env("RUSTC_WORKSPACE_WRAPPER", driver).env("CLIPPY_ARGS", "-Dwarnings");
            "clippy for the eBPF programs"
        }
        None => {
            check.env("CARGO_ENCODED_RUSTFLAGS", format!("{}\x1f-Dwarnings", flags(&toolchain)));
            "warnings of the eBPF programs (this toolchain has no clippy)"
        }
    };
    step(what, || run(&mut check))
}

fn compile(toolchain: &Toolchain, target_directory: &Path, subcommand: &str) -> Command {
    let mut command = cargo();
    if let Some(own) = &toolchain.cargo {
        command = Command::new(own);
        command.current_dir(root());
    }
    command
        .args([subcommand, "-Zbuild-std=core", "--target", TARGET, "--release", "--package", "lb-ebpf", "--target-dir"])
        .arg(target_directory)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(toolchain));
    // What a developer or a CI sets for the host's code does not fit this target.
    for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(name);
    }
    command
}

/// In the form of `CARGO_ENCODED_RUSTFLAGS`.
fn flags(toolchain: &Toolchain) -> String {
    [
        format!("--cfg=bpf_target_arch=\"{ARCH}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Ctarget-cpu=v3".to_owned(),
        format!("-Clinker={}", toolchain.linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // Unaligned loads are one instruction on every machine that has XDP.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned(),
    ]
    .join("\x1f")
}
