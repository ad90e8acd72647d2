//! Format, clippy for host and eBPF, and the repository's own rules.

use anyhow::{Result, bail};

use crate::{
    ebpf, rules,
    shell::{cargo, root, run, step},
};

/// Runs all of them, the quickest first, also after one has failed.
pub fn lint() -> Result<()> {
    let checks =
        [step("repository rules", check_rules), step("cargo fmt --check", fmt), step("clippy", clippy), ebpf::lint()];
    let failed: Vec<String> = checks.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    Ok(())
}

fn check_rules() -> Result<()> {
    let violations = rules::violations(&root())?;
    if !violations.is_empty() {
        bail!("{} violations:\n  {}", violations.len(), violations.join("\n  "));
    }
    Ok(())
}

fn fmt() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    run(cargo().args([
        "clippy",
        "--workspace",
        "--exclude",
        "lb-ebpf",
        "--all-targets",
        "--keep-going",
        "--",
        "-Dwarnings",
    ]))
}
