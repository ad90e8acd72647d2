//! Privileged: makes network namespaces, loads programs into the kernel and runs them millions of times.
//!
//! A flood of SYNs to a running agent's TCP service is forwarded, and changes no map but counters.

use std::{collections::BTreeMap, fs, hash::Hasher as _, net::SocketAddr, process::Command};

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use lb_common::abi::protocol;
use lb_tests::{
    agent::{Agent, Configuration, Service, available},
    lab::{Family, Lab, Options, vip},
    pinned::Pinned,
};

use frames::Packet;
use lab_programs::{Kind, LabPrograms, Load, PRODUCT};

#[path = "../src/bin/bench/frames.rs"]
mod frames;
#[expect(dead_code, reason = "the benchmark's, of which this needs one program")]
#[path = "../src/bin/bench/lab_programs.rs"]
mod lab_programs;

const VIP_PORT: u16 = 80;
/// SYNs of each family, each from another address.
const SYNS: u32 = 10_000_000;
/// Of one call: a call is not interrupted.
const AT_A_TIME: u32 = 500_000;
/// What counts and limits, and nothing else (docs/dataplane.md).
const MAY_CHANGE: [&str; 3] = ["reasons", "backend_counters", "limiters"];
const CAPACITIES: &str = "capacities: {services: 64, backends: 128, maglevSlots: 8192, bypasses: 256, flows: 1024}\n";
const SYN: u8 = 2;
const XDP_REDIRECT: u32 = 4;

fn service(lab: &Lab, family: Family, pods: usize) -> Service {
    Service {
        name: format!("{family:?}").to_lowercase(),
        vip: vip(1).of(family),
        protocol: "TCP",
        port: VIP_PORT,
        replies: None,
        rung: "redirect",
        backends: lab.pods[..pods].iter().map(|pod| SocketAddr::new(pod.addresses.of(family), 8080)).collect(),
    }
}

fn yaml(lab: &Lab, pods: usize) -> String {
    let services = Family::BOTH.map(|family| service(lab, family, pods)).to_vec();
    CAPACITIES.to_owned() + &Configuration { mode: "native", services }.yaml_in(lab)
}

fn settled(agent: &Agent, pods: usize) -> Result<u32> {
    agent.wait_status("every pod to be a backend", |status| {
        let services = status["services"].as_array()?;
        let right = services.iter().all(|service| {
            let backends = service["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
            backends.len() == pods && backends.iter().all(|b| b["state"] == "ready" && b["slots"] != 0)
        });
        let program = status["programs"].as_array()?.iter().find(|program| program["name"] == "sluice_xdp")?;
        (right && status["waiting"].is_null()).then(|| program["programId"].as_u64())?.map(|id| id as u32)
    })
}

/// Everything in every pinned map, digested.
fn digest(pinned: &Pinned) -> Result<BTreeMap<String, u64>> {
    let mut digests = BTreeMap::new();
    for entry in fs::read_dir(pinned.path(""))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(pinned.path(&name)).output();
        let output = output.context("bpftool")?;
        ensure!(output.status.success() && !output.stdout.is_empty(), "bpftool map dump of {name}");
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(&output.stdout);
        digests.insert(name, hasher.finish());
    }
    Ok(digests)
}

/// Different addresses among so many SYNs, by the formula of the lab's `vary` programs.
fn sources(load: &Load) -> usize {
    let mut seen = vec![0u64; 1 << 20];
    for next in 0..SYNS {
        let address = (next.wrapping_mul(0x9e37_79b1) & load.flows_mask) >> 6;
        seen[address as usize / 64] |= 1 << (address % 64);
    }
    seen.iter().map(|word| word.count_ones() as usize).sum()
}

#[test]
fn a_flood_of_syns_changes_nothing_but_counters() -> Result<()> {
    if !available("flood") {
        return Ok(());
    }
    let mut lab = Lab::new("flood", Options { pods: 3, ..Options::default() })?;
    lab.attach_router_program()?;
    let mut agent = Agent::start_with(&lab, &yaml(&lab, 2))?;
    settled(&agent, 2)?;
    agent.reload(&yaml(&lab, 3))?;
    let program = settled(&agent, 3)?;
    let pinned = Pinned::of(&agent);
    // It prunes histories in time, and must not now.
    // SAFETY: takes numbers only; the agent is a child that has not been waited for.
    ensure!(unsafe { libc::kill(agent.id() as libc::pid_t, libc::SIGSTOP) } == 0, "SIGSTOP");
    let outcome = flood(&lab, &pinned, program);
    // SAFETY: as above.
    ensure!(unsafe { libc::kill(agent.id() as libc::pid_t, libc::SIGCONT) } == 0, "SIGCONT");
    outcome?;
    agent.stop()
}

fn flood(lab: &Lab, pinned: &Pinned, program: u32) -> Result<()> {
    let mut programs = LabPrograms::load()?;
    let all = loaded_programs().filter_map(Result::ok);
    let product = all.into_iter().find(|info| info.id() == program).context("the agent's program is gone")?;
    programs.set_product(Kind::Xdp, &product.fd()?)?;
    for family in Family::BOTH {
        let target = SocketAddr::new(vip(1).of(family), VIP_PORT);
        let moved = pinned.moved_share(target)?;
        ensure!((0.1..0.9).contains(&moved), "{family:?}: {moved} of the slots have moved");
        let client = match family {
            Family::V4 => "203.0.0.0:1024",
            Family::V6 => "[2001:db8:9::]:1024",
        };
        let packet =
            Packet { source: client.parse()?, destination: target, protocol: protocol::TCP, flags: SYN, payload: 0 };
        let mut load = packet.load(PRODUCT, 1);
        load.flows_mask = u32::MAX;
        let different = sources(&load);
        ensure!(different == SYNS as usize, "{different} sources");
        let (maps, forwarded) = (digest(pinned)?, pinned.forwarded()?);
        lab.node.run(|| -> Result<()> {
            while load.next < u64::from(SYNS) {
                let returned =
                    programs.run((Kind::Xdp, family == Family::V4), &load, &packet.frame(), None, AT_A_TIME)?;
                ensure!(returned == XDP_REDIRECT, "{family:?}: the last SYN returned {returned}");
                load.next += u64::from(AT_A_TIME);
            }
            Ok(())
        })?;
        let forwarded = pinned.forwarded()? - forwarded;
        ensure!(forwarded == u64::from(SYNS), "{family:?}: {forwarded} of {SYNS} SYNs were forwarded");
        let after = digest(pinned)?;
        let changed: Vec<_> = after.iter().filter(|(name, digest)| maps.get(*name) != Some(digest)).collect();
        println!("{family:?}: {different} sources, {moved:.2} of the slots moved; changed: {changed:?}");
        let named = changed.iter().map(|(name, _)| name.as_str());
        ensure!(after.len() == maps.len() && named.clone().all(|name| MAY_CHANGE.contains(&name)), "{changed:?}");
        ensure!(named.clone().any(|name| name == "backend_counters"), "a digest that sees nothing: {changed:?}");
    }
    Ok(())
}
