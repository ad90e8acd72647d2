//! What the agent takes of the machine: nothing of it may grow.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::lab::Namespace;

/// How much more anonymous memory an agent may have than the first of its kind had when it was quiet for the first time:
/// what its allocator keeps after a plan, or after reading the maps of another build.
pub const MEMORY_TOLERANCE_KIB: u64 = 8 * 1024;
/// Descriptors that come and go: the answer to a question for the status, a netlink socket in a pod.
pub const DESCRIPTORS_TOLERANCE: usize = 4;

/// What there is at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Anonymous memory of the agent and its helpers: `VmRSS` without the maps that are mapped, whose size is configured.
    pub memory_kib: u64,
    /// Open files of the same, without the one of each pinned link.
    pub descriptors: usize,
    /// Files under the pin directory.
    pub pins: usize,
    /// Network namespaces that the node knows by an id, which one that anybody holds keeps.
    pub namespaces: usize,
}

impl Footprint {
    /// As it is now.
    pub fn read(agent: u32, pins: &Path, node: &Namespace) -> Result<Self> {
        let mut footprint = Self { pins: files(pins)?, namespaces: namespaces(node)?, ..Self::default() };
        for process in family(agent)? {
            footprint.memory_kib += memory(process)?;
            footprint.descriptors += fs::read_dir(format!("/proc/{process}/fd"))?.count();
        }
        footprint.descriptors = footprint.descriptors.saturating_sub(files(&pins.join("links"))?);
        Ok(footprint)
    }
}

/// What each agent, and each kind of agent, took when it was quiet for the first time.
#[derive(Debug, Default)]
pub struct Baselines {
    memory: BTreeMap<(bool, &'static str), u64>,
    /// Of each process: one that has taken over another data plane keeps some maps open twice.
    descriptors: BTreeMap<u32, usize>,
    first: Option<Footprint>,
    /// The largest of each that was seen.
    pub largest: Footprint,
}

impl Baselines {
    /// Fails where something has grown. `kind` is what memory depends on by design: the build and the capacities.
    pub fn check(&mut self, process: u32, kind: (bool, &'static str), now: Footprint) -> Result<()> {
        let first = *self.first.get_or_insert(now);
        let memory_kib = *self.memory.entry(kind).or_insert(now.memory_kib);
        ensure!(
            now.memory_kib <= memory_kib + MEMORY_TOLERANCE_KIB,
            "memory has grown from {memory_kib} to {} KiB",
            now.memory_kib
        );
        let (before, descriptors) = (*self.descriptors.entry(process).or_insert(now.descriptors), now.descriptors);
        ensure!(descriptors <= before + DESCRIPTORS_TOLERANCE, "open files have grown from {before} to {descriptors}");
        // Fewer where a pod is in no service.
        ensure!(now.pins <= first.pins, "there were {} pins, and are {}", first.pins, now.pins);
        let (before, namespaces) = (first.namespaces, now.namespaces);
        ensure!(namespaces == before, "there were {before} namespaces, and are {namespaces}");
        let largest = &mut self.largest;
        *largest = Footprint {
            memory_kib: largest.memory_kib.max(now.memory_kib),
            descriptors: largest.descriptors.max(now.descriptors),
            ..now
        };
        Ok(())
    }
}

/// A process and those that it has started.
fn family(process: u32) -> Result<Vec<u32>> {
    let mut all = vec![process];
    for task in fs::read_dir(format!("/proc/{process}/task"))?.flatten() {
        // A thread that has ended has no children.
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            all.extend(family(child.parse()?)?);
        }
    }
    Ok(all)
}

fn memory(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon in the status")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn files(directory: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { files(&entry.path())? } else { 1 };
    }
    Ok(count)
}

fn namespaces(node: &Namespace) -> Result<usize> {
    let output = node.command("ip").args(["netns", "list-id"]).output().context("ip")?;
    ensure!(output.status.success(), "ip netns list-id: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with("nsid")).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Footprint = Footprint { memory_kib: 10_000, descriptors: 30, pins: 60, namespaces: 5 };

    #[test]
    fn what_grows_beyond_its_tolerance_is_named() {
        let kind = (false, "small");
        let complaint = |now| {
            let mut baselines = Baselines::default();
            baselines.check(1, kind, USUAL).expect("the first is right");
            baselines.check(1, kind, now).expect_err("it has grown").to_string()
        };
        let memory_kib = USUAL.memory_kib + MEMORY_TOLERANCE_KIB + 1;
        assert!(complaint(Footprint { memory_kib, ..USUAL }).contains("memory"));
        let descriptors = USUAL.descriptors + DESCRIPTORS_TOLERANCE + 1;
        assert!(complaint(Footprint { descriptors, ..USUAL }).contains("open files"));
        assert!(complaint(Footprint { pins: 61, ..USUAL }).contains("pins"));
        assert!(complaint(Footprint { namespaces: 6, ..USUAL }).contains("namespaces"));
    }

    #[test]
    fn each_kind_of_agent_has_memory_of_its_own() {
        let mut baselines = Baselines::default();
        baselines.check(1, (false, "small"), USUAL).expect("the first is right");
        let more = Footprint { memory_kib: 3 * USUAL.memory_kib, ..USUAL };
        baselines.check(1, (false, "large"), more).expect("another kind may need more");
        baselines.check(1, (false, "small"), more).expect_err("this kind may not");
    }
}
