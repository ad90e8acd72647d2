//! Fuzzing: unpacks a target's corpus, runs `cargo fuzz` on it, and packs what it has found.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::shell::{fresh_directory, root, run};

#[path = "../../tests/src/fuzz/corpus.rs"]
mod corpus;

/// What is fuzzed, and for how long.
#[derive(Args)]
pub struct Options {
    /// A decoder: `tests/fuzz/targets` has them; all one after another without
    target: Option<String>,
    /// For how long, each
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Longest input
    #[arg(long, default_value_t = 4096)]
    bytes_max: usize,
    /// What is instrumented beside coverage: `none` builds with the usual compiler where no nightly one is there
    #[arg(long, default_value = "address")]
    sanitizer: String,
    /// Add so many of the inputs that reach new code to the corpus, the shortest first
    #[arg(long, default_value_t = 0)]
    keep: usize,
}

/// Runs the fuzzers. Fails where an input breaks a promise; it is under `target/fuzz/artifacts` then.
pub fn fuzz(options: &Options) -> Result<()> {
    let known = targets()?;
    let chosen = match &options.target {
        Some(target) => {
            ensure!(known.contains(target), "{target} is none of {}", Vec::from_iter(known).join(", "));
            BTreeSet::from([target.clone()])
        }
        None => known,
    };
    // The versions are those of the product; cargo adds the fuzzer's own.
    fs::copy(root().join("Cargo.lock"), directory().join("Cargo.lock")).context("cannot copy Cargo.lock")?;
    chosen.iter().try_for_each(|target| fuzz_one(target, options))
}

fn directory() -> PathBuf {
    root().join("tests/fuzz")
}

fn targets() -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(directory().join("targets")).context("cannot list the fuzz targets")?;
    let name = |entry: fs::DirEntry| Some(entry.path().file_stem()?.to_str()?.to_owned());
    Ok(entries.filter_map(|entry| name(entry.ok()?)).collect())
}

fn fuzz_one(target: &str, options: &Options) -> Result<()> {
    let made = root().join("target/fuzz");
    let (inputs, artifacts) = (made.join("corpus").join(target), made.join("artifacts").join(target));
    let packed = directory().join("corpus").join(target).with_extension("hex");
    let text = fs::read_to_string(&packed).with_context(|| format!("cannot read {}", packed.display()))?;
    let committed = corpus::read(&text).map_err(|error| anyhow::anyhow!("{}: {error}", packed.display()))?;
    fresh_directory(&inputs)?;
    fs::create_dir_all(&artifacts)?;
    for (number, input) in committed.iter().enumerate() {
        fs::write(inputs.join(format!("{number:03}")), input)?;
    }
    println!("==> {target}: {} inputs, {} s", committed.len(), options.seconds);
    let mut command = cargo_fuzz("run", options);
    command.arg(target).arg(&inputs).arg("--");
    command.arg(format!("-max_total_time={}", options.seconds)).arg(format!("-max_len={}", options.bytes_max));
    command.arg(format!("-artifact_prefix={}/", artifacts.display())).arg("-print_final_stats=1");
    run(&mut command).with_context(|| format!("if an input broke a promise, it is in {}", artifacts.display()))?;
    if options.keep > 0 {
        run(cargo_fuzz("cmin", options).arg(target).arg(&inputs))?;
        keep(&packed, &text, &committed, &inputs, options.keep)?;
    }
    Ok(())
}

/// `cargo fuzz`, by the nightly compiler where there is one, else by the usual one, told to be like it.
fn cargo_fuzz(verb: &str, options: &Options) -> Command {
    let nightly = Command::new("rustc").args(["+nightly", "--version"]).output();
    let mut command = Command::new("cargo");
    if nightly.is_ok_and(|output| output.status.success()) {
        command.arg("+nightly");
    } else {
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    // What cargo set for this program is about the usual compiler.
    for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "CARGO_MANIFEST_DIR", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    command.current_dir(directory()).args(["fuzz", verb, "--fuzz-dir"]).arg(directory());
    command.arg("--target-dir").arg(root().join("target/fuzz/build")).args(["--sanitizer", &options.sanitizer]);
    command
}

/// Adds what is new.
fn keep(packed: &Path, text: &str, committed: &[Vec<u8>], inputs: &Path, limit: usize) -> Result<()> {
    let mut found = Vec::new();
    for entry in fs::read_dir(inputs)? {
        let input = fs::read(entry?.path())?;
        if !committed.contains(&input) {
            found.push(input);
        }
    }
    found.sort_by_key(|input| (input.len(), input.clone()));
    let lines: String = found.iter().take(limit).map(|input| corpus::line(input, "found by fuzzing")).collect();
    if !text.ends_with('\n') {
        bail!("{} ends within a line", packed.display());
    }
    fs::write(packed, format!("{text}{lines}"))?;
    println!("{} of {} new inputs are kept in {}", found.len().min(limit), found.len(), packed.display());
    Ok(())
}
