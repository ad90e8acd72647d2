//! What memory a process takes, by what it is of.

use std::fs;

use anyhow::{Context as _, Result};

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resident {
    /// Of BPF maps that it has mapped: the kernel's memory, counted at the process too.
    pub maps: u64,
    /// Everything else: its own memory, its program and libraries.
    pub rest: u64,
    /// The most that all together ever were.
    pub peak: u64,
}

/// Reads it (proc(5), `smaps` and `status`).
pub fn resident(process: u32) -> Result<Resident> {
    let path = format!("/proc/{process}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let (mut resident, mut is_map) = (Resident::default(), false);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Rss:") => {
                let bytes = kibibytes(words.next())?;
                *(if is_map { &mut resident.maps } else { &mut resident.rest }) += bytes;
            }
            Some(word) if !word.ends_with(':') => is_map = line.contains("bpf-map"),
            _ => {}
        }
    }
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    resident.peak = kibibytes(peak.split_whitespace().next())?;
    Ok(resident)
}

fn kibibytes(word: Option<&str>) -> Result<u64> {
    Ok(1024 * word.and_then(|word| word.parse::<u64>().ok()).context("a size is no number")?)
}
