//! The rows of routed nodes, of which a router knows by BGP: Sluice and BIRD on the nodes, BIRD on the router.

use std::{thread, time::Duration};

use anyhow::Result;
use lb_tests::cluster::{
    PortState,
    routed::{FAST, Peers, Stop, Watch, agents, speakers},
    team::Team,
};

use crate::rows::{Bound, Round, Row, Side, observe};

const BIRD: Option<&str> = Some("BIRD");
/// Detection by BFD, which is said to have been the floor of the machine that the bound was found on.
const DETECTED: Duration = Duration::from_millis(150);
/// How long an event is watched: a stop waits for flows to have moved, and a restart reads everything anew.
const OBSERVED: Duration = Duration::from_secs(4);
/// From one moment to the next, so that no round hits the same one.
const DRIFT: Duration = Duration::from_millis(17);

pub fn rows() -> Vec<Row> {
    let restart = |name, watch, bound| Row {
        name,
        usual: None,
        bound,
        measure: Box::new(move |side, rounds| graceful_restart(side, watch, rounds)),
    };
    vec![
        Row {
            name: "BGP, silent loss, BFD 3×50 ms",
            usual: BIRD,
            bound: Bound::Gap(DETECTED),
            measure: Box::new(silent_loss),
        },
        Row { name: "BGP, ordered stop", usual: BIRD, bound: Bound::NoLoss, measure: Box::new(ordered_stop) },
        restart("BGP, graceful restart, no BFD", Watch::Without, Bound::NoLossAndStayed),
        restart("BGP, graceful restart, bfd graceful", Watch::BfdGraceful, Bound::NoLossAndStayed),
        restart("BGP, graceful restart, bfd on", Watch::Bfd, Bound::NoLoss),
    ]
}

fn start(side: Side, watch: Watch, stop: Stop) -> Result<Peers> {
    let kind = match side {
        Side::Sluice => agents(watch, FAST, stop),
        Side::Usual => speakers(),
    };
    Peers::start(watch, FAST, kind)
}

fn rounds(
    peers: &mut Peers,
    watch: Watch,
    rounds: usize,
    mut event: impl FnMut(&mut Team, usize) -> Result<()>,
    mut mend: impl FnMut(&mut Team, usize) -> Result<()>,
) -> Result<Vec<Round>> {
    let mut all = Vec::new();
    for number in 0..rounds {
        peers.wait_routes(watch)?;
        thread::sleep(DRIFT * u32::try_from(number)?);
        let mut hit = 0;
        let round = observe(&mut peers.team, OBSERVED, |team, node| {
            hit = node;
            event(team, node)
        })?;
        // More than any detection explains: whose session ended, and why, is in the logs.
        if round.lost > 0 && round.gap > DETECTED * 2 {
            eprintln!("round {}, node {hit}:\n{}\n{}", number + 1, peers.router.log_tail(), peers.team.logs());
        }
        mend(&mut peers.team, hit)?;
        all.push(round);
    }
    Ok(all)
}

fn silent_loss(side: Side, count: usize) -> Result<Vec<Round>> {
    rounds(
        &mut start(side, Watch::Bfd, Stop::Ordered)?,
        Watch::Bfd,
        count,
        |team, node| team.cluster.set_port(node, PortState::Disabled),
        |team, node| team.cluster.set_port(node, PortState::Forwarding),
    )
}

fn ordered_stop(side: Side, count: usize) -> Result<Vec<Round>> {
    rounds(&mut start(side, Watch::Bfd, Stop::Ordered)?, Watch::Bfd, count, Team::leave, Team::join)
}

/// The agent ends without a word, and starts anew with what is pinned.
fn graceful_restart(side: Side, watch: Watch, count: usize) -> Result<Vec<Round>> {
    let restart = |team: &mut Team, node| {
        team.end(node)?;
        team.join(node)
    };
    rounds(&mut start(side, watch, Stop::Graceful)?, watch, count, restart, |_, _| Ok(()))
}
