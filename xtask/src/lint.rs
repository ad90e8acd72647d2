//! Format, clippy for host and eBPF, and the repository's own rules.

use anyhow::{Result, bail};

use crate::{
    ebpf, rules,
    shell::{cargo, root, run, step},
};

/// Runs all of them, the quickest first.
pub fn lint() -> Result<()> {
    step("repository rules", || {
        let violations = rules::violations(&root())?;
        if !violations.is_empty() {
            bail!("{} violations:\n  {}", violations.len(), violations.join("\n  "));
        }
        Ok(())
    })?;
    step("cargo fmt --check", || run(cargo().args(["fmt", "--all", "--check"])))?;
    step("clippy for the host", || {
        run(cargo().args(["clippy", "--workspace", "--exclude", "lb-ebpf", "--all-targets", "--", "-Dwarnings"]))
    })?;
    ebpf::lint()
}
