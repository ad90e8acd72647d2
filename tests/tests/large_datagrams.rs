//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! SNMP informs of 8 KiB, which travel in fragments both ways: net-snmp at both ends, through VIPs, by every rung.

use std::{io::Write as _, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::{Agent, Configuration, available},
    lab::{ELEMENT, Family, Lab, Namespace, Options},
    programs::snmp::{self, Kind},
    scenario::{PODS, services, trap_vip},
};

/// Messages of each family: enough that missing one of two pods by chance has odds of 2^-15.
const MESSAGES: usize = 16;
/// Datagrams that kernels put together from fragments (RFC 1213, RFC 4293).
const REASSEMBLED: [(&str, &str); 2] = [("/proc/net/snmp", "ReasmOKs"), ("/proc/net/snmp6", "Ip6ReasmOKs")];

/// Has the node's netfilter follow connections, and drop what does not fit one.
const FOLLOWED: &str = "table inet followed {\n chain forward {\n type filter hook forward priority 0\n \
                        ct state invalid counter drop\n }\n}\n";

fn informs_arrive(rung: &'static str, rules: Option<&str>, options: Options) -> Result<()> {
    if !available("large_datagrams") {
        return Ok(());
    }
    let mut lab = Lab::new("large", Options { pods: PODS, ..options })?;
    if let Some(rules) = rules {
        filter(&lab.node, rules)?;
    }
    let receivers = [&lab.pods[0], &lab.pods[1]].map(|pod| snmp::Receiver::start(pod, lab.directory()));
    let receivers = receivers.into_iter().collect::<Result<Vec<_>>>()?;
    let services = services(&lab, rung).into_iter().filter(|service| service.protocol == "UDP").collect();
    let agent = Agent::start(&mut lab, &Configuration { mode: "native", services })?;
    for family in Family::BOTH {
        let mut sources = std::collections::BTreeSet::new();
        let vip = trap_vip(family);
        let mut send = || {
            snmp::exchange(&lab.element, vip, Kind::LargeInformV2c, MESSAGES, &receivers, lab.directory(), |_, seen| {
                sources.insert(seen.source.ip());
            })
        };
        let owners = send().with_context(|| format!("{rung}, {family:?}: {}", agent.status_line()))?;
        let owners: std::collections::BTreeSet<_> = owners.into_iter().collect();
        ensure!(owners == [0, 1].into(), "{rung}, {family:?}: arrived at {owners:?}");
        ensure!(sources == [ELEMENT.of(family)].into(), "{rung}: the pods saw {sources:?}");
        let here = reassembled(&lab.element, family)?;
        let there = reassembled(&lab.pods[0].namespace, family)? + reassembled(&lab.pods[1].namespace, family)?;
        let all = MESSAGES as u64;
        ensure!(here >= all && there >= all, "{rung}, {family:?}: {there} and {here} were in fragments");
    }
    agent.stop()
}

fn reassembled(namespace: &Namespace, family: Family) -> Result<u64> {
    let (file, name) = REASSEMBLED[usize::from(matches!(family, Family::V6))];
    let output = namespace.command("cat").arg(file).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // IPv6 has a line for each; IPv4 a line of names and one of numbers.
    if let Some(line) = text.lines().find(|line| line.starts_with(name)) {
        return Ok(line.rsplit(char::is_whitespace).next().context("no number")?.parse()?);
    }
    let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
    let (names, numbers) = (lines.next().context("no names")?, lines.next().context("no numbers")?);
    let mut pairs = names.split_whitespace().zip(numbers.split_whitespace());
    let (_, number) = pairs.find(|(listed, _)| *listed == name).with_context(|| format!("no {name}"))?;
    Ok(number.parse()?)
}

fn filter(node: &Namespace, rules: &str) -> Result<()> {
    let mut child = node.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("cannot start nft")?;
    child.stdin.take().context("nft has no standard input")?.write_all(rules.as_bytes())?;
    ensure!(child.wait()?.success(), "nft refuses {rules}");
    Ok(())
}

#[test]
fn informs_in_fragments_arrive_by_rung_redirect() -> Result<()> {
    informs_arrive("redirect", None, Options { checksum_offload: true, ..Options::default() })
}

#[test]
fn informs_in_fragments_arrive_by_rung_peer() -> Result<()> {
    informs_arrive("peer", None, Options::default())
}

#[test]
fn informs_in_fragments_arrive_by_rung_stack() -> Result<()> {
    informs_arrive("stack", None, Options::default())
}

#[test]
fn informs_in_fragments_arrive_by_rung_stack_where_netfilter_puts_them_together_on_the_way() -> Result<()> {
    informs_arrive("stack", Some(FOLLOWED), Options { checksum_offload: true, ..Options::default() })
}

#[test]
fn informs_in_fragments_arrive_by_rung_redirect_past_a_netfilter_that_follows_connections() -> Result<()> {
    informs_arrive("redirect", Some(FOLLOWED), Options::default())
}
