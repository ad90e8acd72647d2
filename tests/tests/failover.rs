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
        moves::{Move, check_nothing_lost, moved},
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
    team_of(name, NODES, vips, vrids)
}

fn team_of(name: &str, nodes: usize, vips: &[IpAddr], vrids: &RangeInclusive<u16>) -> Result<Team> {
    let (first, last, interval) = (vrids.start(), vrids.end(), INTERVAL.as_millis());
    let group = format!("{{ name: lab, interface: {UPLINK}, vrids: {first}-{last}, interval: {interval}ms }}");
    let kind = Kind::Sluice { announces: vec![format!("  vrrp: [{group}]\n"); nodes] };
    Team::start(name, Fabric::Segment, nodes, vips, kind)
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
        if let IpAddr::V4(address) = *vip {
            let answer = answering(team, address)?;
            ensure!(answer == BTreeSet::from([mac.clone()]), "{vip} of node {node}, {mac}: answered by {answer:?}");
        }
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
    check_nothing_lost(team, &probe)?;
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

    // kube-proxy in IPVS mode has put the VIP on every node, whose kernels would answer for it too.
    for node in &team.cluster.nodes {
        node.namespace.ip(&format!("address add {address}/32 dev lo\n"))?;
    }
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
    check_nothing_lost(&team, &probe)?;
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

/// Three intervals; with what a virtual machine that stands still adds, and the prober itself.
fn check_gap(team: &Team, probe: &Probe) -> Result<()> {
    let limit = Duration::from_millis(900) + probe.longest_stall();
    ensure!(probe.longest_gap() < limit, "no answer for {:?}\n{}", probe.longest_gap(), team.logs());
    Ok(())
}

#[test]
fn a_silent_node_is_missed_by_vrrp_and_one_that_leaves_or_whose_agent_is_killed_loses_nothing() -> Result<()> {
    if !available("failover") {
        return Ok(());
    }
    let (mut team, address) = (team("vrrp", &vips(1), &SPLIT_VRID)?, vip(1).v4);
    wait_by_rank(&mut team, &SPLIT_VRID, &[0, 1, 2])?;
    let Move { from: first, probe, .. } =
        moved(&mut team, |team, node| team.cluster.set_port(node, PortState::Disabled))?;
    check_gap(&team, &probe)?;
    team.cluster.set_port(first, PortState::Forwarding)?;
    wait_by_rank(&mut team, &SPLIT_VRID, &[0, 1, 2])?;

    let Move { probe, .. } = moved(&mut team, Team::leave)?;
    check_nothing_lost(&team, &probe)?;
    team.join(first)?;
    wait_by_rank(&mut team, &SPLIT_VRID, &[0, 1, 2])?;

    // The data plane of a killed agent goes on until another has the VIP, and then for nobody who asks.
    let others: Vec<usize> = (0..NODES).filter(|node| *node != first).collect();
    let Move { probe, .. } = moved(&mut team, |team, node| {
        team.kill(node)?;
        watch(team, address)
    })?;
    check_nothing_lost(&team, &probe)?;
    let during = wait_by_rank(&mut team, &SPLIT_VRID, &others)?;
    check_segment(&team, &during)
}

/// On each node, an interface that nothing but its state matters of.
const TRACKED: &str = "tracked0";

fn set_tracked(team: &Team, node: usize, state: &str) -> Result<()> {
    team.cluster.nodes[node].namespace.ip(&format!("link set {TRACKED} {state}\n"))
}

/// Where the advertisements go that a node hears for longer than anybody is believed that says nothing.
fn advertised_to(team: &Team, node: usize) -> Result<BTreeSet<Ipv4Addr>> {
    const IPV4: u16 = 0x0800;
    const VRRP: u8 = 112;
    // After the Ethernet header of 14 octets (RFC 791, 3.1).
    const PROTOCOL: usize = 14 + 9;
    const DESTINATION: usize = 14 + 16;
    let tap = team.cluster.nodes[node].namespace.tap(UPLINK, IPV4)?;
    let end = Instant::now() + WATCH;
    let mut found = BTreeSet::new();
    while let Some(frame) = tap.receive(end)? {
        let destination = frame.get(DESTINATION..DESTINATION + 4).and_then(|octets| <[u8; 4]>::try_from(octets).ok());
        if let (Some(&VRRP), Some(destination)) = (frame.get(PROTOCOL), destination) {
            found.insert(destination.into());
        }
    }
    Ok(found)
}

#[test]
fn routers_that_know_each_others_addresses_need_no_multicast_and_follow_other_interfaces() -> Result<()> {
    if !available("failover") {
        return Ok(());
    }
    let addresses: Vec<String> = (0..NODES).map(|node| format!("198.51.100.{}", 10 + node)).collect();
    let announce = |node: usize| {
        let peers: Vec<&str> =
            (0..NODES).filter(|other| *other != node).map(|other| addresses[other].as_str()).collect();
        let group = format!("interval: {}ms, peers: [{}], track: [{TRACKED}]", INTERVAL.as_millis(), peers.join(", "));
        format!("  vrrp: [{{ name: lab, interface: {UPLINK}, vrids: 51, {group} }}]\n")
    };
    let kind = Kind::Sluice { announces: (0..NODES).map(announce).collect() };
    let mut team = Team::start("unicast", Fabric::Segment, NODES, &vips(1), kind)?;
    for node in &team.cluster.nodes {
        node.namespace.ip(&format!("link add {TRACKED} type veth peer name tracked1\nlink set tracked1 up\n"))?;
    }
    (0..NODES).try_for_each(|node| set_tracked(&team, node, "up"))?;
    let vip = team.vips[0];
    let first = wait_by_rank(&mut team, &SPLIT_VRID, &[0, 1, 2])?[&vip];
    let heard = advertised_to(&team, (first + 1) % NODES)?;
    ensure!(!heard.is_empty() && heard.iter().all(|to| !to.is_multicast()), "advertisements went to {heard:?}");
    let before = wait_by_rank(&mut team, &SPLIT_VRID, &[0, 1, 2])?;
    check_segment(&team, &before)?;

    set_tracked(&team, first, "down")?;
    let others: Vec<usize> = (0..NODES).filter(|node| *node != first).collect();
    let during = wait_by_rank(&mut team, &SPLIT_VRID, &others)?;
    check_segment(&team, &during)?;
    ensure!(holders(&mut team, &[first])?.values().all(Vec::is_empty), "it holds by a node whose interface is down");
    set_tracked(&team, first, "up")?;
    wait_by_rank(&mut team, &SPLIT_VRID, &[0, 1, 2])?;
    check_segment(&team, &before)
}

#[test]
fn a_vip_of_ipv6_moves_with_its_neighbour_advertisements() -> Result<()> {
    if !available("failover") {
        return Ok(());
    }
    let mut team = team_of("vrrp6", 2, &[vip(1).v6.into()], &SPLIT_VRID)?;
    let before = wait_by_rank(&mut team, &SPLIT_VRID, &[0, 1])?;
    check_segment(&team, &before)?;
    let Move { from: first, probe, .. } = moved(&mut team, Team::leave)?;
    check_nothing_lost(&team, &probe)?;
    let during = wait_by_rank(&mut team, &SPLIT_VRID, &[1 - first])?;
    check_segment(&team, &during)?;
    // It comes back, and takes over from who is well: neither does that lose anything.
    let Move { probe, .. } = moved(&mut team, |team, _| team.join(first))?;
    check_nothing_lost(&team, &probe)?;
    wait_by_rank(&mut team, &SPLIT_VRID, &[0, 1])?;
    check_segment(&team, &before)?;

    let Move { probe, .. } = moved(&mut team, |team, node| team.cluster.set_port(node, PortState::Disabled))?;
    check_gap(&team, &probe)?;
    wait_by_rank(&mut team, &SPLIT_VRID, &[1 - first])?;
    check_segment(&team, &during)
}

/// One node answers without any election, and the same configuration tells the other not to.
#[test]
fn a_hung_agent_that_always_answers_goes_on_doing_so_and_nobody_else_does() -> Result<()> {
    if !available("failover") {
        return Ok(());
    }
    let always = format!("  always: [{{ interface: {UPLINK}, nodes: [a] }}]\n");
    let kind = Kind::Sluice { announces: vec![always; 2] };
    let (mut team, address) = (Team::start("always", Fabric::Segment, 2, &vips(1), kind)?, vip(1).v4);
    for node in &team.cluster.nodes {
        node.namespace.ip(&format!("address add {address}/32 dev lo\n"))?;
    }
    team.wait_answer(Some(0))?;
    let prober = Prober::start(&team.cluster.element, team.target())?;
    team.agent(0)?.signal(libc::SIGSTOP)?;
    let (asker, only) = (Asker::new(&team.cluster)?, BTreeSet::from([team.cluster.mac(0)?]));
    let end = Instant::now() + WATCH;
    let (mut asked, mut answered) = (0, 0);
    while Instant::now() < end {
        let answers = asker.ask(address)?;
        ensure!(answers.is_subset(&only), "a question for {address} was answered by {answers:?}");
        (asked, answered) = (asked + 1, answered + answers.len());
        if asked % 10 == 0 {
            team.cluster.router.ip(&format!("neighbor flush dev {SEGMENT}\n"))?;
        }
    }
    ensure!(answered > asked / 2, "{answered} of {asked} questions were answered");
    team.agent(0)?.signal(libc::SIGCONT)?;
    team.agent(0)?.wait_status("the agent to be there again", |_| Some(()))?;
    let probe = prober.stop();
    check_nothing_lost(&team, &probe)?;
    ensure!(probe.tags() == [0], "nodes {:?} have answered", probe.tags());
    Ok(())
}
