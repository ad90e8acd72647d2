//! The capabilities that the agent needs.

use std::fs;

use anyhow::{Context, Result};

/// Capabilities (include/uapi/linux/capability.h), and what each is for.
const NEEDED: [(u32, &str, &str); 5] = [
    (11, "CAP_NET_BROADCAST", "hear of changes in pods' network namespaces"),
    (12, "CAP_NET_ADMIN", "attach programs to interfaces"),
    (21, "CAP_SYS_ADMIN", "enter pods' network namespaces and mount a bpffs"),
    (38, "CAP_PERFMON", "load programs that read packets"),
    (39, "CAP_BPF", "make maps and load programs"),
];

/// Those that this process lacks, each with what it is for.
pub fn missing() -> Result<Vec<String>> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read this process' capabilities")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .context("/proc/self/status names no effective capabilities")?;
    Ok(missing_of(effective))
}

fn missing_of(effective: u64) -> Vec<String> {
    let lacks = |bit: u32| effective & (1 << bit) == 0;
    NEEDED.iter().filter(|(bit, _, _)| lacks(*bit)).map(|(_, name, why)| format!("{name} (to {why})")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_capability_is_named_with_its_reason() {
        assert_eq!(missing_of(u64::MAX), Vec::<String>::new());
        let all = missing_of(0).join(", ");
        assert!(all.contains("CAP_BPF (to make maps and load programs)") && all.contains("CAP_NET_ADMIN"), "{all}");
    }
}
