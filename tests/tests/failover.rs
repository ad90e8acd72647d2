//! Privileged: makes network namespaces, loads programs into the kernel, mounts bpffs, and runs several agents.
//!
//! Nodes that share VIPs out among themselves on one segment, and what becomes of the VIPs when nodes do not hear each
//! other, are cut off, or stand still.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::available,
    cluster::{
        Asker, Fabric, PortState, SEGMENT, VIP_PORT, held_by,
        routed::{Peers, Stop, Watch, agents},
        team::{Kind, Team},
    },
    lab::{UPLINK, vip, wait_until},
    programs::{
        keepalived::neighbor,
        prober::{Probe, Prober, who_answers},
    },
};
use lb_userspace::announce::vrrp::{Vrid, spread};

const NODES: usize = 3;
/// Where all VIPs share their fate.
const SPLIT_VRID: RangeInclusive<u16> = 51..=51;
/// How long a change may take until all agree. Many advertisements, because machines that tests run on stand still at times.
const PATIENCE: Duration = Duration::from_secs(20);
/// From one advertisement to the next.
const INTERVAL: Duration = Duration::from_millis(100);
/// From one packet of BFD to the next: not the fastest, as the tests run beside others.
const BFD_MILLISECONDS: u32 = 100;
/// How long what must not happen is watched for: a detection time, several times.
const WATCH: Duration = Duration::from_secs(3);

fn vips(count: u8) -> Vec<IpAddr> {
    (1..=count).map(|last| vip(last).v4.into()).collect()
}

/// Who holds which VIP by rank, where only these nodes are left.
fn by_rank(team: &Team, vrids: RangeInclusive<u16>, nodes: &[usize]) -> BTreeMap<IpAddr, usize> {
    let vrids: Vec<Vrid> = vrids.filter_map(|vrid| Vrid::new(vrid).ok()).collect();
    let names: Vec<&str> = team.cluster.nodes.iter().map(|node| node.name).collect();
    let of = |vip: &IpAddr| {
        let vrid = spread::vrid(*vip, &vrids)?;
        nodes.iter().copied().min_by_key(|node| spread::rank(names[*node], vrid, &names))
    };
    team.vips.iter().filter_map(|vip| Some((*vip, of(vip)?))).collect()
}

fn team(name: &str, vips: &[IpAddr], vrids: &RangeInclusive<u16>) -> Result<Team> {
    let (first, last, interval) = (vrids.start(), vrids.end(), INTERVAL.as_millis());
    let group = format!("{{ name: lab, interface: {UPLINK}, vrids: {first}-{last}, interval: {interval}ms }}");
    let kind = Kind::Sluice { announces: vec![format!("  vrrp: [{group}]\n"); NODES] };
    Team::start(name, Fabric::Segment, NODES, vips, kind)
}

/// Who says of a VIP that it answers for it, of these nodes.
fn holders(team: &mut Team, nodes: &[usize]) -> Result<BTreeMap<IpAddr, Vec<usize>>> {
    let mut holders: BTreeMap<IpAddr, Vec<usize>> = team.vips.iter().map(|vip| (*vip, Vec::new())).collect();
    for node in nodes {
        for held in held_by(team.agent(*node)?)?.into_iter().filter(|held| held.holds) {
            holders.entry(held.vip).or_default().push(*node);
        }
    }
    Ok(holders)
}

/// Waits until each VIP is held by the node that is first by rank among these, and by none else of them.
fn wait_by_rank(team: &mut Team, vrids: &RangeInclusive<u16>, nodes: &[usize]) -> Result<BTreeMap<IpAddr, usize>> {
    let wanted = by_rank(team, vrids.clone(), nodes);
    let exactly: BTreeMap<IpAddr, Vec<usize>> = wanted.iter().map(|(vip, node)| (*vip, vec![*node])).collect();
    let mut last = BTreeMap::new();
    let reached = wait_until("the first by rank to hold each VIP", PATIENCE, || {
        last = holders(team, nodes)?;
        Ok((last == exactly).then_some(()))
    });
    reached.with_context(|| format!("wanted: {wanted:?}\nholders: {last:?}\n{}", team.logs()))?;
    Ok(wanted)
}

/// Asks the segment until somebody answers for a VIP: a machine that stands still answers late.
fn answering(team: &Team, vip: Ipv4Addr) -> Result<BTreeSet<String>> {
    let asker = Asker::new(&team.cluster)?;
    wait_until(&format!("an answer for {vip}"), PATIENCE, || {
        Ok(Some(asker.ask(vip)?).filter(|answers| !answers.is_empty()))
    })
}

/// Fails where two answer for a VIP, or the router goes to another than the holder.
fn check_segment(team: &Team, of: &BTreeMap<IpAddr, usize>) -> Result<()> {
    for (vip, node) in of {
        let mac = team.cluster.mac(*node)?;
        let IpAddr::V4(address) = *vip else { continue };
        let answer = answering(team, address)?;
        ensure!(answer == BTreeSet::from([mac.clone()]), "{vip} of node {node}, {mac}: answered by {answer:?}");
        let tag = who_answers(&team.cluster.element, *vip, VIP_PORT)?;
        ensure!(tag == u8::try_from(*node).ok(), "{vip} is held by node {node}, and node {tag:?} has the traffic");
        let known = neighbor(&team.cluster.router, SEGMENT, *vip)?;
        ensure!(known.as_ref() == Some(&mac), "{vip} of node {node}, {mac}: the router has {known:?}");
    }
    Ok(())
}

fn nodes_with_any(of: &BTreeMap<IpAddr, usize>) -> BTreeSet<usize> {
    of.values().copied().collect()
}

#[test]
fn three_nodes_share_the_vips_out_and_a_dead_ones_go_to_both_others() -> Result<()> {
    if !available("failover") {
        return Ok(());
    }
    let vrids = 51..=62;
    let mut team = team("shared", &vips(24), &vrids)?;
    let before = wait_by_rank(&mut team, &vrids, &[0, 1, 2])?;
    ensure!(nodes_with_any(&before) == BTreeSet::from([0, 1, 2]), "not all carry some: {before:?}");
    check_segment(&team, &before)?;

    // It is gone with its data plane, and nobody is told.
    team.cluster.set_port(0, PortState::Disabled)?;
    let during = wait_by_rank(&mut team, &vrids, &[1, 2])?;
    let lost: BTreeSet<IpAddr> = before.iter().filter(|(_, node)| **node == 0).map(|(vip, _)| *vip).collect();
    let heirs: BTreeSet<usize> = lost.iter().map(|vip| during[vip]).collect();
    ensure!(heirs == BTreeSet::from([1, 2]), "{lost:?} went to {heirs:?} alone");
    let stayed = |(vip, node): (&IpAddr, &usize)| lost.contains(vip) || during[vip] == *node;
    ensure!(before.iter().all(stayed), "others moved too: {before:?}, {during:?}");
    check_segment(&team, &during)?;

    // It comes back, and has its own again.
    team.cluster.set_port(0, PortState::Forwarding)?;
    wait_by_rank(&mut team, &vrids, &[0, 1, 2])?;
    check_segment(&team, &before)
}

/// Nodes that do not hear each other all hold; when they do again, one does, and nothing is lost. `holding` is how many
/// hold meanwhile.
fn heals(team: &mut Team, holding: usize, split: impl FnOnce(&Team, usize) -> Result<()>) -> Result<()> {
    let vip = team.vips[0];
    let first = wait_by_rank(team, &SPLIT_VRID, &[0, 1, 2])?[&vip];
    split(team, first)?;
    wait_until("a split brain", PATIENCE, || Ok((holders(team, &[0, 1, 2])?[&vip].len() == holding).then_some(())))?;
    thread::sleep(INTERVAL * 4);
    let prober = Prober::start(&team.cluster.element, team.target())?;
    thread::sleep(INTERVAL * 5);
    team.cluster.set_ports(PortState::Forwarding)?;
    let healed = wait_by_rank(team, &SPLIT_VRID, &[0, 1, 2]);
    thread::sleep(WATCH);
    let probe = prober.stop();
    let healed = healed?;
    ensure!(probe.lost() == 0, "{} lost of {}, {:?}", probe.lost(), probe.sent.len(), probe.histogram());
    check_segment(team, &healed)
}

#[test]
fn a_split_brain_heals_without_loss_whoever_was_on_the_routers_side() -> Result<()> {
    if !available("failover") {
        return Ok(());
    }
    let mut team = team("split", &vips(1), &SPLIT_VRID)?;
    // The first by rank was cut off, and the router's side has another: that one loses.
    heals(&mut team, 2, |team, first| team.cluster.set_port(first, PortState::Disabled))?;
    // Another was cut off and has taken the VIP where nobody asks for it; it loses too, and the router never turned to it.
    heals(&mut team, 2, |team, first| team.cluster.set_port((first + 1) % NODES, PortState::Disabled))?;
    // All are heard by the router, which goes to whoever spoke last, and by nobody else.
    heals(&mut team, 3, |team, _| team.cluster.set_ports(PortState::Isolated))
}

#[test]
fn a_hung_agents_vips_move_and_never_two_answer() -> Result<()> {
    if !available("failover") {
        return Ok(());
    }
    let vrids = 51..=53;
    let mut team = team("hung", &vips(6), &vrids)?;
    let before = wait_by_rank(&mut team, &vrids, &[0, 1, 2])?;
    let address = vip(1).v4;
    let hung = before[&address.into()];
    let others: Vec<usize> = (0..NODES).filter(|node| *node != hung).collect();
    let mac = team.cluster.mac(hung)?;

    let prober = Prober::start(&team.cluster.element, team.target())?;
    team.agent(hung)?.signal(libc::SIGSTOP)?;
    watch(&team, address)?;
    let during = wait_by_rank(&mut team, &vrids, &others)?;
    check_segment(&team, &during)?;
    ensure!(!answering(&team, address)?.contains(&mac), "the hung one answers");

    // Its time was over while it stood still: it has let go when it goes on, and then takes its turn again.
    team.agent(hung)?.signal(libc::SIGCONT)?;
    watch(&team, address)?;
    wait_by_rank(&mut team, &vrids, &[0, 1, 2])?;
    let probe = prober.stop();
    ensure!(probe.lost() == 0, "{} lost of {}, {:?}", probe.lost(), probe.sent.len(), probe.histogram());
    check_segment(&team, &before)
}

/// Asks for a VIP over and over while it moves: no question has two answers.
fn watch(team: &Team, vip: Ipv4Addr) -> Result<()> {
    let asker = Asker::new(&team.cluster)?;
    let end = Instant::now() + WATCH;
    while Instant::now() < end {
        let answers = asker.ask(vip)?;
        ensure!(answers.len() <= 1, "a question for {vip} was answered by {answers:?}");
    }
    Ok(())
}

/// Probes while something happens to the node that answers, until another one does; what became of the probes.
fn moved(peers: &mut Peers, event: impl FnOnce(&mut Team, usize) -> Result<()>) -> Result<(usize, Probe)> {
    let prober = Prober::start(&peers.team.cluster.element, peers.team.target())?;
    let from = wait_until("an answer", PATIENCE, || Ok(prober.last_tag()))?;
    event(&mut peers.team, from.into())?;
    wait_until("another node's answer", PATIENCE, || Ok(prober.last_tag().filter(|tag| *tag != from)))?;
    Ok((from.into(), prober.stop()))
}

#[test]
fn a_silent_node_is_missed_by_bfd_and_one_that_leaves_in_order_loses_nothing() -> Result<()> {
    if !available("failover") {
        return Ok(());
    }
    let mut peers = Peers::start(Watch::Bfd, BFD_MILLISECONDS, agents(Watch::Bfd, BFD_MILLISECONDS, Stop::Ordered))?;
    let (node, probe) = moved(&mut peers, |team, node| team.cluster.set_port(node, PortState::Disabled))?;
    // Three intervals; with what a virtual machine that stands still adds, and the prober itself.
    let limit = Duration::from_millis(900) + probe.longest_stall();
    ensure!(probe.longest_gap() < limit, "no answer for {:?}\n{}", probe.longest_gap(), peers.team.logs());
    peers.team.cluster.set_port(node, PortState::Forwarding)?;
    peers.wait_routes(Watch::Bfd)?;
    let (_, probe) = moved(&mut peers, Team::leave)?;
    ensure!(probe.lost() == 0, "{} datagrams were lost\n{}", probe.lost(), peers.team.logs());
    Ok(())
}
