//! The rows of a segment, where a VIP is held by VRRP: Sluice and keepalived.

use std::{thread, time::Duration};

use anyhow::Result;
use lb_tests::{
    cluster::{
        Fabric, PortState,
        team::{Kind, Team},
    },
    lab::{UPLINK, vip},
};

use crate::rows::{Bound, Round, Row, Side, observe};

const VRID: u8 = 51;
const KEEPALIVED: Option<&str> = Some("keepalived");
/// Three advertisements, and the skew of the second of the ranks.
const FAST: Duration = Duration::from_millis(310);
const SLOW: Duration = Duration::from_millis(3100);
/// Make before break.
const HAND_OVER: Duration = Duration::from_millis(10);
/// How long the healing of a split brain is watched: keepalived takes the time of a router that asks again.
const HEALING: Duration = Duration::from_secs(10);

/// From one advertisement to the next.
#[derive(Clone, Copy, Debug)]
enum Interval {
    Tenth,
    Second,
}

impl Interval {
    const fn seconds(self) -> &'static str {
        match self {
            Self::Tenth => "0.1",
            Self::Second => "1",
        }
    }

    const fn duration(self) -> Duration {
        match self {
            Self::Tenth => Duration::from_millis(100),
            Self::Second => Duration::from_secs(1),
        }
    }

    /// What every take-over is done in, by either side and by the least of the priorities.
    fn settled(self) -> Duration {
        self.duration() * 4 + Duration::from_millis(500)
    }
}

pub fn rows() -> Vec<Row> {
    use Interval::{Second, Tenth};
    let row = |name, usual, bound, measure: fn(Side, Interval, usize) -> Result<Vec<Round>>, interval| Row {
        name,
        usual,
        bound,
        measure: Box::new(move |side, rounds| measure(side, interval, rounds)),
    };
    vec![
        row("VRRP, silent loss, 100 ms", KEEPALIVED, Bound::Gap(FAST), silent_loss, Tenth),
        row("VRRP, silent loss, 1 s", KEEPALIVED, Bound::Gap(SLOW), silent_loss, Second),
        row("VRRP, ordered stop, 100 ms", KEEPALIVED, Bound::Gap(HAND_OVER), ordered_stop, Tenth),
        row("VRRP, ordered stop, 1 s", KEEPALIVED, Bound::Gap(HAND_OVER), ordered_stop, Second),
        row("VRRP, split brain heals", KEEPALIVED, Bound::NoLoss, split_brain_heals, Tenth),
        row("VRRP, agent killed, 100 ms", None, Bound::NoLossAndMoved(FAST), killed, Tenth),
        row("VRRP, agent hangs, 100 ms", None, Bound::NoLossAndMoved(FAST), hangs, Tenth),
    ]
}

fn team(side: Side, interval: Interval, nodes: usize) -> Result<Team> {
    let kind = match side {
        Side::Sluice => {
            let group = format!(
                "  vrrp: [{{ name: lab, interface: {UPLINK}, vrids: {VRID}, interval: {}ms }}]\n",
                interval.duration().as_millis()
            );
            Kind::Sluice { announces: vec![group; nodes] }
        }
        Side::Usual => Kind::Keepalived { interval: interval.seconds(), vrid: VRID },
    };
    Team::start("failover", Fabric::Segment, nodes, &[vip(1).v4.into()], kind)
}

/// Each round with the node that holds by rank, which is made to hold again.
fn rounds(
    team: &mut Team,
    interval: Interval,
    rounds: usize,
    mut round: impl FnMut(&mut Team) -> Result<Round>,
) -> Result<Vec<Round>> {
    team.wait_competing()?;
    thread::sleep(interval.settled());
    let first = team.wait_answer(None)?;
    let mut all = Vec::new();
    for _ in 0..rounds {
        team.wait_competing()?;
        team.wait_answer(Some(first))?;
        // At no certain place between two advertisements.
        thread::sleep(interval.duration() / 7 * (all.len() as u32 % 7));
        all.push(round(team)?);
    }
    Ok(all)
}

fn silent_loss(side: Side, interval: Interval, count: usize) -> Result<Vec<Round>> {
    let mut team = team(side, interval, 2)?;
    rounds(&mut team, interval, count, |team| {
        let mut cut = 0;
        let round = observe(team, interval.settled(), |team, node| {
            cut = node;
            team.cluster.set_port(node, PortState::Disabled)
        })?;
        team.cluster.set_port(cut, PortState::Forwarding)?;
        thread::sleep(interval.settled());
        Ok(round)
    })
}

fn ordered_stop(side: Side, interval: Interval, count: usize) -> Result<Vec<Round>> {
    let mut team = team(side, interval, 2)?;
    rounds(&mut team, interval, count, |team| {
        let mut left = 0;
        let round = observe(team, interval.settled(), |team, node| {
            left = node;
            team.leave(node)
        })?;
        team.join(left)?;
        thread::sleep(interval.settled());
        Ok(round)
    })
}

/// The node that was cut off holds all the while, and so does the one that took over. Then they hear each other.
fn split_brain_heals(side: Side, interval: Interval, count: usize) -> Result<Vec<Round>> {
    let mut team = team(side, interval, 3)?;
    rounds(&mut team, interval, count, |team| {
        let first = team.wait_answer(None)?;
        team.cluster.set_port(first, PortState::Disabled)?;
        thread::sleep(interval.settled());
        observe(team, HEALING, |team, _| team.cluster.set_port(first, PortState::Forwarding))
    })
}

fn killed(side: Side, interval: Interval, count: usize) -> Result<Vec<Round>> {
    let mut team = team(side, interval, 2)?;
    rounds(&mut team, interval, count, |team| {
        let mut dead = 0;
        let round = observe(team, interval.settled(), |team, node| {
            dead = node;
            team.kill(node)
        })?;
        team.join(dead)?;
        thread::sleep(interval.settled());
        Ok(round)
    })
}

fn hangs(side: Side, interval: Interval, count: usize) -> Result<Vec<Round>> {
    let mut team = team(side, interval, 2)?;
    rounds(&mut team, interval, count, |team| {
        let mut hung = 0;
        let round = observe(team, interval.settled(), |team, node| {
            hung = node;
            team.agent(node)?.signal(libc::SIGSTOP)
        })?;
        team.agent(hung)?.signal(libc::SIGCONT)?;
        thread::sleep(interval.settled());
        Ok(round)
    })
}
