//! Where packets that come to the network element come from: only from what it speaks to.

use std::{io::Write as _, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    lab::{Family, NODE, Namespace, vip},
    life::{DIRECT_PORT, KINDS, NODE_PORT, TCP},
    programs::{bird, snmp, telemetry},
    scenario::{session_vip, trap_vip},
};

/// Counts strangers from now on.
pub fn watch(element: &Namespace) -> Result<()> {
    let rules = format!(
        "table inet sources {{\n  set v4 {{ type ipv4_addr . inet_proto . inet_service; size 1024; flags dynamic; }}\n  \
         set v6 {{ type ipv6_addr . inet_proto . inet_service; size 1024; flags dynamic; }}\n  \
         chain input {{\n    type filter hook input priority filter\n    iif lo accept\n{}{}\n  }}\n}}\n",
        family_rules(Family::V4),
        family_rules(Family::V6),
    );
    let mut nft = element.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("nft")?;
    nft.stdin.take().context("nft has no standard input")?.write_all(rules.as_bytes())?;
    ensure!(nft.wait()?.success(), "nft refuses:\n{rules}");
    Ok(())
}

fn family_rules(family: Family) -> String {
    let (of, icmp, pods, set) = match family {
        Family::V4 => ("ip", "icmp", "10.244.0.0/24", "v4"),
        Family::V6 => ("ip6", "icmpv6", "fd00:244::/64", "v6"),
    };
    let known = [
        (vip(1).of(family), "tcp", TCP.0),
        (vip(2).of(family), "tcp", DIRECT_PORT),
        (NODE.of(family), "tcp", NODE_PORT),
        (session_vip(family), "tcp", bird::PORT),
        (session_vip(family), "tcp", telemetry::PORT),
        (vip(1).of(family), "udp", KINDS[0].vip_port),
        (trap_vip(family), "udp", snmp::PORT),
    ];
    let known = known.map(|(address, protocol, port)| format!("{address} . {protocol} . {port}")).join(", ");
    let add = format!("add @{set} {{ {of} saddr . meta l4proto . th sport }}");
    // An ICMP error may come from any router, but from no pod.
    format!(
        "    {of} saddr {pods} {add} return\n    meta l4proto {icmp} accept\n    \
         {of} saddr . meta l4proto . th sport {{ {known} }} accept\n    meta nfproto {} {add}\n",
        if family == Family::V4 { "ipv4" } else { "ipv6" },
    )
}

/// Who has spoken to the element and should not have.
pub fn strangers(element: &Namespace) -> Result<Vec<String>> {
    let output = element.command("nft").args(["-j", "list", "table", "inet", "sources"]).output().context("nft")?;
    let listed: Value = serde_json::from_slice(&output.stdout).context("nft prints no JSON")?;
    let items = listed["nftables"].as_array().with_context(|| format!("no table in {listed}"))?;
    let sets: Vec<&Value> = items.iter().map(|item| &item["set"]).filter(|set| set.is_object()).collect();
    ensure!(sets.len() >= 2, "the sets of strangers are gone: {listed}");
    let named = sets.into_iter().filter(|set| set["name"] == "v4" || set["name"] == "v6");
    Ok(named.flat_map(|set| set["elem"].as_array().into_iter().flatten()).map(Value::to_string).collect())
}
