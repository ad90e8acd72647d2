//! Privileged: makes network namespaces, loads programs into the kernel, mounts bpffs, and runs several agents and BIRD.
//!
//! Two nodes that a router knows by BGP, watched by BFD: where it sends packets when a node is cut off, an agent dies, stands
//! still, restarts or leaves, and when a VIP goes from one of the nodes.

use std::{cell::Cell, collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    agent::available,
    cluster::{
        PortState, VIP_PORT,
        moves::{Move, Probing, check_nothing_lost, moved},
        routed::{NODES, Peers, Stop, Watch, agents},
        team::{Kind, Team},
    },
    lab::{vip, wait_until},
    programs::{
        PATIENCE,
        prober::{Probe, who_answers},
    },
};

/// From one packet of BFD to the next: not the fastest, as the tests run beside others.
const BFD_MILLISECONDS: u32 = 100;
/// The detection time of three of them, twice as long again for what comes after on a busy machine.
const MOVED_MAX: Duration = Duration::from_millis(900);
/// How long an engine may be busy and not be taken for hung.
const WORK_MAX: Duration = Duration::from_secs(5);

/// Probes while the router's traffic goes away from the node that has it, and comes back: nothing is lost. How long that
/// took, and what may be added to a limit for a machine that stood still.
fn goes_and_comes_back(
    peers: &mut Peers,
    away: impl FnOnce(&mut Team, usize) -> Result<()>,
    back: impl FnOnce(&mut Team, usize) -> Result<()>,
) -> Result<(Duration, Duration)> {
    let probing = Probing::start(&peers.team)?;
    let (node, since) = (probing.node(), probing.now());
    away(&mut peers.team, node)?;
    probing.wait_moved().with_context(|| peers.router.log_tail())?;
    back(&mut peers.team, node)?;
    peers.wait_routes(Watch::Bfd)?;
    // The router spreads flows by addresses and ports alone.
    probing.wait_back()?;
    let Move { took, probe, .. } = probing.stop(since)?;
    check_nothing_lost(&peers.team, &probe).with_context(|| peers.router.log_tail())?;
    Ok((took, probe.longest_stall()))
}

/// The same of a node whose BFD falls silent: within the detection time.
fn is_missed(
    peers: &mut Peers,
    away: impl FnOnce(&mut Team, usize) -> Result<()>,
    back: impl FnOnce(&mut Team, usize) -> Result<()>,
) -> Result<()> {
    let (took, stall) = goes_and_comes_back(peers, away, back)?;
    let logs = || format!("{}\n{}", peers.router.log_tail(), peers.team.logs());
    ensure!(took < MOVED_MAX + stall, "moved after {took:?}, where the prober stood still for {stall:?}\n{}", logs());
    Ok(())
}

/// Agents whose routes are to be kept while they restart, by a router that does not as soon as BFD falls silent.
#[test]
fn an_agent_that_is_killed_or_hangs_or_restarts_is_missed_by_bfd_and_nothing_is_lost() -> Result<()> {
    if !available("routed") {
        return Ok(());
    }
    let kind = agents(Watch::Bfd, BFD_MILLISECONDS, Stop::Graceful);
    let mut peers = Peers::start(Watch::Bfd, BFD_MILLISECONDS, kind)?;
    is_missed(&mut peers, Team::kill, Team::join).context("killed")?;
    let stop = |team: &mut Team, node| team.agent(node)?.signal(libc::SIGSTOP);
    let go_on = |team: &mut Team, node| team.agent(node)?.signal(libc::SIGCONT);
    is_missed(&mut peers, stop, go_on).context("hung")?;
    // Threads that speak for an engine that hangs must not go on for longer than its work may take.
    let halted = Cell::new(None);
    let halt = |team: &mut Team, node| {
        halted.set(Some(team.agent(node)?.halt_engine()?));
        Ok(())
    };
    let go_on = |_: &mut Team, _| {
        drop(halted.take());
        Ok(())
    };
    let (took, stall) = goes_and_comes_back(&mut peers, halt, go_on).context("the engine hangs")?;
    ensure!(took < WORK_MAX + MOVED_MAX + stall, "an engine that hangs was missed after {took:?}");
    is_missed(&mut peers, Team::end, Team::join).context("restarted")
}

fn reload_as_it_was(team: &mut Team, node: usize) -> Result<()> {
    let yaml = team.yaml(node, &team.vips)?;
    team.agent(node)?.reload(&yaml)
}

/// Has a node withdraw its VIP although its pod still answers.
fn withdraws_in_each_way(peers: &mut Peers) -> Result<()> {
    // Where no pod is well all get packets, until other nodes do.
    let failing = |team: &mut Team, node| {
        let check = "{ type: tcp, port: 9, interval: 200ms, timeout: 100ms, fall: 2 }";
        let checked = format!("    rung: auto\n    healthCheck: {check}\n");
        let yaml = team.yaml(node, &team.vips)?.replace("    rung: auto\n", &checked);
        team.agent(node)?.reload(&yaml)?;
        team.agent(node)?.wait_status("the VIP to be unhealthy", |status| {
            let against = &status["announce"]["vips"][0]["means"][0]["against"];
            (against[0]["reason"] == "unhealthy").then_some(())
        })
    };
    goes_and_comes_back(peers, failing, reload_as_it_was).context("its pod fails its health check")?;
    let other_vips = |team: &mut Team, node| {
        let yaml = team.yaml(node, &team.vips)?.replace("families: [ipv4]", "families: [ipv4], vips: [10.97.0.0/24]");
        team.agent(node)?.reload(&yaml)
    };
    goes_and_comes_back(peers, other_vips, reload_as_it_was).context("the peer is to be told of other VIPs")?;
    let drain = |team: &mut Team, node| team.agent(node)?.ask(&["drain", "--wait"]).map(drop);
    let undrain = |team: &mut Team, node| team.agent(node)?.ask(&["undrain"]).map(drop);
    goes_and_comes_back(peers, drain, undrain).context("the node is drained")?;
    Ok(())
}

#[test]
fn a_silent_node_is_missed_by_bfd_and_one_that_withdraws_or_leaves_loses_nothing() -> Result<()> {
    if !available("routed") {
        return Ok(());
    }
    let kind = agents(Watch::Bfd, BFD_MILLISECONDS, Stop::Ordered);
    let mut peers = Peers::start(Watch::Bfd, BFD_MILLISECONDS, kind)?;
    let cut = |team: &mut Team, node| team.cluster.set_port(node, PortState::Disabled);
    let Move { from, probe, .. } = moved(&mut peers.team, cut)?;
    check_gap(&peers, &probe, MOVED_MAX)?;
    peers.team.cluster.set_port(from, PortState::Forwarding)?;
    peers.wait_routes(Watch::Bfd)?;
    withdraws_in_each_way(&mut peers)?;

    // Without a backend there is nobody for what is on its way already, nor for what comes until agent and router have had
    // their turns on a busy machine.
    let unserved = |team: &mut Team, node| {
        let yaml = team.yaml(node, &[])?;
        team.agent(node)?.reload(&yaml)
    };
    let Move { from, probe, .. } = moved(&mut peers.team, unserved)?;
    check_gap(&peers, &probe, MOVED_MAX)?;
    reload_as_it_was(&mut peers.team, from)?;
    peers.wait_routes(Watch::Bfd)?;
    let Move { probe, .. } = moved(&mut peers.team, Team::leave)?;
    check_nothing_lost(&peers.team, &probe)
}

/// With what a machine that stands still adds.
fn check_gap(peers: &Peers, probe: &Probe, limit: Duration) -> Result<()> {
    let (gap, stall) = (probe.longest_gap(), probe.longest_stall());
    ensure!(
        gap < limit + stall,
        "no answer for {gap:?}, where the prober stood still for {stall:?}\n{}",
        peers.team.logs()
    );
    Ok(())
}

const AGGREGATE: &str = "10.96.0.0/29";

/// The prefixes that the router has of a node.
fn routes_of(peers: &Peers, node: usize) -> Result<BTreeSet<String>> {
    let shown = peers.router.control(&["show", "route", "protocol", &format!("node{node}")])?;
    let prefix = |line: &str| line.split_whitespace().next().filter(|word| word.contains('/')).map(str::to_owned);
    Ok(shown.lines().filter_map(prefix).collect())
}

/// Has each node's pod serve these VIPs, and waits until the router has their routes, and the aggregate's where there is one.
fn serve(peers: &mut Peers, served: [&[IpAddr]; NODES]) -> Result<()> {
    for (node, vips) in served.into_iter().enumerate() {
        let yaml = peers.team.yaml(node, vips)?;
        peers.team.agent(node)?.reload(&yaml)?;
    }
    for (node, vips) in served.into_iter().enumerate() {
        let own = vips.iter().map(|vip| format!("{vip}/32"));
        let wanted: BTreeSet<String> = own.chain((!vips.is_empty()).then(|| AGGREGATE.to_owned())).collect();
        let mut found = BTreeSet::new();
        let reached = wait_until(&format!("node {node}'s routes"), PATIENCE, || {
            found = routes_of(peers, node)?;
            Ok((found == wanted).then_some(()))
        });
        reached.with_context(|| format!("wanted: {wanted:?}\nfound: {found:?}\n{}", peers.team.logs()))?;
    }
    Ok(())
}

#[test]
fn an_aggregate_stays_while_any_vip_of_it_does_and_the_others_are_found_by_their_own_prefixes() -> Result<()> {
    if !available("routed") {
        return Ok(());
    }
    let kind = agents(Watch::Bfd, BFD_MILLISECONDS, Stop::Ordered);
    let Kind::Sluice { mut announces } = kind else { bail!("no agents are to run") };
    for announce in &mut announces {
        *announce = announce.replace("families: [ipv4]", &format!("families: [ipv4], aggregates: [{AGGREGATE}]"));
    }
    let vips: [IpAddr; 2] = [vip(1).v4.into(), vip(2).v4.into()];
    let [first, second] = vips;
    let mut peers = Peers::start_with(&vips, Watch::Bfd, BFD_MILLISECONDS, Kind::Sluice { announces })?;
    serve(&mut peers, [&vips, &vips])?;
    // Whoever sends to the aggregate's addresses finds the one node that serves them.
    serve(&mut peers, [&[first], &vips])?;
    let element = &peers.team.cluster.element;
    wait_until("node 1 to have the second VIP alone", PATIENCE, || {
        Ok((who_answers(element, second, VIP_PORT)? == Some(1)).then_some(()))
    })?;
    serve(&mut peers, [&[], &[first]])?;
    serve(&mut peers, [&[second], &[first]])?;
    for (at, node) in [(first, 1), (second, 0)] {
        let element = &peers.team.cluster.element;
        wait_until(&format!("node {node} to have {at}"), PATIENCE, || {
            Ok((who_answers(element, at, VIP_PORT)? == Some(node)).then_some(()))
        })?;
    }
    Ok(())
}
