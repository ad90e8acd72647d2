//! Who is there and what is set for them, by chance; and the times that follow from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_userspace::announce::{
    bfd::{machine::Settings as BfdSettings, packet::State as BfdState},
    bgp::{
        machine::{BfdUse, Mode, PeerAs, Settings},
        values::{AsNumber, Family, HoldTime, Identifier, RestartTime},
    },
    eligibility::VipFacts,
    silence::{HEARTBEAT_MAX, LOOK_INTERVAL},
};

use super::{
    agent::{Agent, Neighbor},
    engine::TICK,
    monitor::Monitor,
    random::Random,
    receiver::{OnBfdDown, Receiver},
    world::World,
};

/// Delays of packets and lateness of speakers that no formula knows of.
pub(super) const EPSILON: Duration = Duration::from_millis(10);

/// What a new session may take.
const RECONNECTING: Duration = Duration::from_millis(500);
/// A session of this age is no half of a collision.
pub(super) const OLD_SESSION: Duration = Duration::from_secs(5);

/// A router and a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) router: usize,
    pub(super) node: usize,
}

/// Who is there.
#[derive(Debug)]
pub(super) struct Plan {
    /// Nodes come first, routers after them.
    pub(super) nodes: usize,
    pub(super) pairs: Vec<Pair>,
    pub(super) vips: Vec<IpAddr>,
    on_bfd_down: BTreeMap<(usize, usize), OnBfdDown>,
}

/// The world of a seed.
pub(super) fn make(seed: u64) -> (World, Plan) {
    let mut random = Random::new(seed);
    let nodes = [2, 2, 2, 3, 3, 4][random.below(6)];
    let routers = random.between(1, 2) as usize;
    let count = nodes + routers;
    let vips: Vec<IpAddr> = (1..=random.between(1, 3) as u8).map(|last| vip(&mut random, last)).collect();
    let mut sides: Vec<Vec<Neighbor>> = (0..count).map(|_| Vec::new()).collect();
    let (mut pairs, mut on_bfd_down, mut tables) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for router in nodes..count {
        let is_internal = random.is_within(25);
        for node in 0..nodes {
            let [ours, theirs] = pair(&mut random, node, router, is_internal);
            let on_down = if random.is_within(60) { OnBfdDown::Flush } else { OnBfdDown::Keep };
            on_bfd_down.insert((router, node), on_down);
            tables.insert((router, node), Receiver::new(on_down, theirs.settings.graceful_restart.is_some()));
            pairs.push(Pair { router, node });
            sides[node].push(ours);
            sides[router].push(theirs);
        }
    }
    let agents = sides.into_iter().enumerate().map(|(at, neighbors)| {
        let offset = random.time(Duration::ZERO, Duration::from_secs(1_000_000));
        let mut agent = Agent::new(at >= nodes, offset, neighbors);
        agent.restart.restarted = true;
        if at < nodes {
            let facts = |random: &mut Random| VipFacts {
                has_backends: true,
                reachable: usize::from(random.is_within(85)),
                ..VipFacts::default()
            };
            agent.vips = vips.iter().map(|vip| (*vip, facts(&mut random))).collect();
        }
        agent
    });
    let agents = agents.collect();
    let views = pairs.iter().flat_map(|pair: &Pair| vips.iter().map(|vip| (pair.router, pair.node, *vip)));
    let monitor = Monitor::new(views);
    let world = World::new(seed, random, agents, tables, monitor);
    (world, Plan { nodes, pairs, vips, on_bfd_down })
}

fn vip(random: &mut Random, last: u8) -> IpAddr {
    match random.is_within(30) {
        true => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(last)).into(),
        false => Ipv4Addr::new(198, 51, 100, last).into(),
    }
}

/// Both sides of a session: the node's and the router's.
fn pair(random: &mut Random, node: usize, router: usize, is_internal: bool) -> [Neighbor; 2] {
    let modes = [
        [Mode::DialAndAccept, Mode::DialAndAccept],
        [Mode::DialAndAccept, Mode::DialAndAccept],
        [Mode::Dial, Mode::Accept],
        [Mode::Accept, Mode::Dial],
        [Mode::DialAndAccept, Mode::Accept],
        [Mode::Accept, Mode::DialAndAccept],
        [Mode::Dial, Mode::DialAndAccept],
    ][random.below(7)];
    let number = |at: usize| if is_internal { 65_000 } else { 65_000 + at as u32 };
    let as_number = |at| AsNumber::new(number(at)).expect("a legal AS number");
    let is_graceful = random.is_within(50);
    let has_bfd = random.is_within(70);
    let side = |random: &mut Random, at: usize, other: usize, mode: Mode| {
        let identifier = Identifier::new(Ipv4Addr::new(10, 0, 0, 1 + at as u8)).expect("not zero");
        let hold = [3, 4, 6, 9][random.below(4)];
        let restart = RestartTime::from_seconds(random.between(3, 10) as u16).expect("fits");
        let uses = [BfdUse::On, BfdUse::On, BfdUse::On, BfdUse::Strict];
        let families: BTreeSet<_> = if random.is_within(80) { Family::ALL.into() } else { [Family::Ipv4].into() };
        let settings = Settings {
            mode,
            families,
            hold_time: HoldTime::from_seconds(hold).expect("a legal hold time"),
            graceful_restart: is_graceful.then_some(restart),
            bfd: if has_bfd { uses[random.below(4)] } else { BfdUse::Off },
            dial_time: Duration::from_secs(random.between(2, 10)),
            ..Settings::new(as_number(at), PeerAs::Number(as_number(other)), identifier)
        };
        Neighbor::new(other, settings, has_bfd.then(|| timers(random)))
    };
    let ours = side(random, node, router, modes[0]);
    [ours, side(random, router, node, modes[1])]
}

/// Timers of BFD.
pub(super) fn timers(random: &mut Random) -> BfdSettings {
    let each = [100, 300, 300, 500, 1000];
    let mut draw = || Duration::from_millis(each[random.below(5)]);
    let (transmit, receive) = (draw(), draw());
    BfdSettings::new(transmit, receive, random.between(1, 5) as u8).expect("within range")
}

impl World {
    fn side(&self, at: usize, other: usize) -> &Neighbor {
        self.agents[at].neighbor(other).expect("each node has each router")
    }

    /// So often `at` sends to `other` once BFD is up.
    pub(super) fn interval(&self, at: usize, other: usize) -> Option<Duration> {
        let (own, its) = (self.side(at, other).bfd?, self.side(other, at).bfd?);
        Some(own.desired_min_tx().max(its.required_min_rx()))
    }

    /// After so much silence `at` gives `other` up.
    pub(super) fn detection(&self, at: usize, other: usize) -> Option<Duration> {
        let its = self.side(other, at).bfd?;
        Some(self.interval(other, at)? * u32::from(its.detect_mult().get()))
    }

    /// After so much silence either side ends the session.
    pub(super) fn hold(&self, pair: Pair) -> Duration {
        let of = |at, other| self.side(at, other).settings.hold_time.duration().unwrap_or(Duration::MAX);
        of(pair.router, pair.node).min(of(pair.node, pair.router))
    }

    /// So long stale routes stay; none without graceful restart.
    pub(super) fn restart_time(&self, pair: Pair) -> Option<Duration> {
        let own = &self.side(pair.node, pair.router).settings;
        self.side(pair.router, pair.node).settings.graceful_restart?;
        let time = own.graceful_restart?.duration();
        match (own.bfd, own.hold_time.duration()) {
            (BfdUse::Off, Some(hold)) => Some(time.min(hold)),
            (BfdUse::Off | BfdUse::On | BfdUse::Strict, _) => Some(time),
        }
    }

    /// An agent that is dead for less than this finds its routes still there: it dials at once, and no BFD takes them away.
    pub(super) fn kept_for(&self, pair: Pair) -> Option<Duration> {
        let (node, router) = (self.side(pair.node, pair.router), self.side(pair.router, pair.node));
        let dials = matches!(node.settings.mode, Mode::Dial | Mode::DialAndAccept);
        let restart = self.restart_time(pair).filter(|_| dials && router.accepts() && node.bfd.is_none())?;
        // From the second session on a node knows the hold time that its router asks for.
        Some(restart.min(self.hold(pair)).saturating_sub(RECONNECTING))
    }

    /// A node that is without power for less than this is taken for one that restarts.
    pub(super) fn replaced_within(&self, pair: Pair) -> Option<Duration> {
        let status = self.side(pair.router, pair.node).peer.as_ref()?.status();
        let lasts = self.agents[pair.router].local(self.now).saturating_sub(status.since);
        self.kept_for(pair).filter(|_| lasts >= OLD_SESSION)?;
        Some(self.hold(pair).saturating_sub(RECONNECTING))
    }

    /// The router's time to find the node silent by BFD, where that watches it now.
    pub(super) fn watched(&self, pair: Pair) -> Option<Duration> {
        let is_up = self.bfd_status(pair.router, pair.node).is_some_and(|status| status.state == BfdState::Up);
        self.detection(pair.router, pair.node).filter(|_| is_up)
    }
}

impl Plan {
    fn flushes(&self, pair: Pair) -> bool {
        self.on_bfd_down[&(pair.router, pair.node)] == OnBfdDown::Flush
    }

    /// How long a router has routes of a node that says nothing any more.
    pub(super) fn silent_max(&self, world: &World, pair: Pair) -> Duration {
        let hold = world.hold(pair);
        let time = match (world.watched(pair), world.restart_time(pair)) {
            (Some(detection), None) => detection.min(hold),
            (Some(detection), Some(_)) if self.flushes(pair) => detection,
            (Some(detection), Some(restart)) => detection.min(hold) + restart,
            // Without BFD NOTIFICATIONs end stale routes.
            (None, _) => hold,
        };
        time + EPSILON
    }

    /// How long it has routes of a node whose agent has died, and whose kernel says so.
    pub(super) fn dead_max(&self, world: &World, pair: Pair) -> Duration {
        let time = match (world.watched(pair), world.restart_time(pair)) {
            (_, None) => Duration::ZERO,
            (Some(detection), Some(restart)) if self.flushes(pair) => detection.min(restart),
            (_, Some(restart)) => restart,
        };
        time + EPSILON
    }

    /// How long it has routes of a node that hears nothing of it any more.
    pub(super) fn deaf_max(&self, world: &World, pair: Pair) -> Duration {
        let hold = world.hold(pair);
        let detection = world.watched(pair).and_then(|_| world.detection(pair.node, pair.router));
        let time = match (detection, world.restart_time(pair)) {
            (Some(detection), None) => detection,
            (Some(detection), Some(_)) if self.flushes(pair) => detection,
            (Some(detection), Some(restart)) => detection.max(hold) + restart,
            // Its last word may be lost.
            (None, _) => hold * 2,
        };
        time + EPSILON
    }

    /// How long it has routes of a node whose engine hangs: until BGP's thread misses it and withdraws them, or BFD falls
    /// silent and the session ends before that.
    pub(super) fn hung_max(&self, world: &World, pair: Pair) -> Duration {
        let missed = HEARTBEAT_MAX + LOOK_INTERVAL;
        let kept = world.restart_time(pair).filter(|_| !self.flushes(pair)).unwrap_or_default();
        world.watched(pair).map_or(missed, |detection| missed.min(detection * 2) + kept) + EPSILON
    }

    /// An engine that hangs for less than this is not missed: the last beat may be as old as the time between two. By BFD it
    /// is missed sooner.
    pub(super) fn unmissed(&self, world: &World, pair: Pair) -> Option<Duration> {
        world.watched(pair).is_none().then(|| HEARTBEAT_MAX - TICK)
    }

    /// Longest pause of either side that neither notices.
    pub(super) fn unnoticed_max(&self, world: &World, pair: Pair) -> Duration {
        let of = |at, other| Some(world.detection(at, other)?.saturating_sub(world.interval(other, at)?));
        let bfd = [of(pair.router, pair.node), of(pair.node, pair.router)].into_iter().flatten().min();
        let hold = world.hold(pair) * 2 / 3;
        bfd.unwrap_or(Duration::MAX).min(hold).saturating_sub(EPSILON)
    }
}
