//! A run: who is there, one fault after another, faults at once, quiet.

use std::{net::IpAddr, time::Duration};

use lb_userspace::announce::{bfd::machine::Event as BfdEvent, silence::HEARTBEAT_MAX};

use super::{
    Trace, Violation,
    agent::Phase,
    checks::of_pair,
    faults::{Change, MARK_FOR},
    plan::{EPSILON, OLD_SESSION, Pair, Plan, make, timers},
    world::World,
};

/// Faults that come one at a time.
const SINGLE_FAULTS: usize = 3;
/// Faults that come at once.
const MIXED_FAULTS: u64 = 5;
/// No bound.
const ENDLESS: Duration = Duration::MAX;
/// All that may be waited for: an OPEN that never comes, the longest wait before a dial, and then a session.
const SETTLE_MAX: Duration = Duration::from_secs(330);
/// So often it is looked whether all is quiet, and so often in a row it must be.
const LOOK: (Duration, u32) = (Duration::from_millis(500), 3);
/// At last nothing may happen for so long.
const QUIET: Duration = Duration::from_secs(5);
/// The longest wait of a VIP that flaps in the single faults, and the engine's look at it.
const DAMPED_MAX: Duration = Duration::from_secs(5);

/// From leaving without a word to the end of the process.
const LEFT: Duration = Duration::from_millis(50);

/// Simulates one seed.
///
/// # Errors
/// The first rule that is broken.
pub fn run(seed: u64) -> Result<Trace, Violation> {
    let (world, plan) = make(seed);
    let mut run = Run { world, plan };
    run.start()?;
    for _ in 0..SINGLE_FAULTS {
        run.single_fault()?;
    }
    run.mixed_faults()?;
    run.quiet()?;
    Ok(run.world.trace)
}

/// What a fault may cost a pair that it touches.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// A route is there of who may not announce it.
    wrong: Duration,
    /// A VIP that is served has no route.
    gap: Duration,
    /// Where the fault lasts for less than the first, the gap is no longer than the second.
    short: Option<(Duration, Duration)>,
    /// BFD may go down.
    falls: bool,
    /// The router hears nothing: its BFD goes down after its detection time, and not before.
    is_silence: bool,
}

const NOTHING: Cost = Cost { wrong: EPSILON, gap: Duration::ZERO, short: None, falls: false, is_silence: false };
const ANYTHING: Cost = Cost { wrong: ENDLESS, gap: ENDLESS, short: None, falls: true, is_silence: false };

/// A fault, what ends it, whom it touches, and what it costs each of them.
struct Fault {
    name: &'static str,
    begin: Change,
    end: Change,
    costs: Vec<(Pair, Cost)>,
}

struct Run {
    world: World,
    plan: Plan,
}

impl Run {
    fn start(&mut self) -> Result<(), Violation> {
        for at in 0..self.world.agents.len() {
            let when = self.world.random.time(Duration::ZERO, Duration::from_secs(2));
            self.world.plan(when, Change::Start(at));
        }
        self.world.run_until(Duration::from_secs(2))?;
        self.settle("the start")
    }

    /// Until all is quiet and stays so for a moment.
    fn settle(&mut self, after: &str) -> Result<(), Violation> {
        let end = self.world.now + SETTLE_MAX;
        let (mut quiet, mut unrest) = (0, None);
        while self.world.now < end {
            let next = self.world.now + LOOK.0;
            self.world.run_until(next)?;
            let plan = &self.plan;
            unrest = plan.pairs.iter().find_map(|pair| self.world.unrest(plan, *pair));
            quiet = if unrest.is_none() { quiet + 1 } else { 0 };
            if quiet == LOOK.1 {
                return Ok(());
            }
        }
        self.world.violation(format!("{SETTLE_MAX:?} after {after}: {unrest:?}"))
    }

    /// One fault and its end.
    fn single_fault(&mut self) -> Result<(), Violation> {
        if self.world.random.is_within(50) {
            let old = self.world.now + OLD_SESSION;
            self.world.run_until(old)?;
        }
        let fault = self.choose();
        let Fault { name, begin, end, costs } = fault;
        let pause = self.pause(&begin, &costs);
        let what = format!("{name}, {begin:?} for {pause:?}");
        self.world.look();
        self.world.told.clear();
        let start = self.world.now;
        let drained = match begin {
            Change::Drain(node) => Some(node),
            _ => None,
        };
        let left_by = match begin {
            Change::Leave(node) => Some(node),
            _ => None,
        };
        self.world.change(begin);
        if let Some(node) = left_by {
            self.world.plan(start + LEFT, Change::Kill(node));
        }
        if let Some(node) = drained {
            self.check_marks(node, start)?;
        }
        self.world.run_until(start + pause)?;
        self.check_silence(&what, &costs, start, pause)?;
        self.world.change(end);
        self.settle(&what)?;
        self.check_costs(&what, &costs, pause)
    }

    /// No pair paid more than the fault may cost it.
    fn check_costs(&mut self, what: &str, costs: &[(Pair, Cost)], pause: Duration) -> Result<(), Violation> {
        let seen = self.world.look();
        for pair in &self.plan.pairs {
            let cost = costs.iter().find(|(touched, _)| touched == pair).map_or(NOTHING, |(_, cost)| *cost);
            let gap_max = cost.short.filter(|(limit, _)| pause < *limit).map_or(cost.gap, |(_, gap)| gap);
            for seen in of_pair(&seen, *pair) {
                if !self.world.is_spoken(seen.router, seen.node, &seen.vip) {
                    continue;
                }
                if gap_max != ENDLESS {
                    self.world.trace.longest_gap = self.world.trace.longest_gap.max(seen.gap);
                }
                if seen.wrong > cost.wrong || seen.gap > gap_max {
                    return self.world.violation(format!("{what} may cost {cost:?}, and cost {seen:?}"));
                }
            }
            let fell = self.downs(*pair).next();
            if let Some(fell) = fell.filter(|_| !cost.falls) {
                return self.world.violation(format!("{what} took BFD down: {fell:?}"));
            }
        }
        Ok(())
    }

    /// Failures of a pair's BFD.
    fn downs(&self, pair: Pair) -> impl Iterator<Item = (Duration, usize)> {
        let sides = [(pair.router, pair.node), (pair.node, pair.router)];
        let is_down = move |told: &&super::world::Told| {
            sides.contains(&(told.1, told.2)) && matches!(told.3, BfdEvent::Down { .. })
        };
        self.world.told.iter().filter(is_down).map(|told| (told.0, told.1))
    }

    /// Routes are marked before they go, and before that no route goes.
    fn check_marks(&mut self, node: usize, start: Duration) -> Result<(), Violation> {
        self.world.run_until(start + MARK_FOR / 2)?;
        let unmarked = self.plan.pairs.iter().find(|pair| pair.node == node && !self.world.is_marked(**pair));
        match unmarked {
            Some(pair) => self.world.violation(format!("{pair:?}: routes are not marked while the node drains")),
            None => Ok(()),
        }
    }

    /// BFD of a router that hears nothing falls at its time.
    fn check_silence(
        &mut self,
        what: &str,
        costs: &[(Pair, Cost)],
        start: Duration,
        pause: Duration,
    ) -> Result<(), Violation> {
        for (pair, _) in costs.iter().filter(|(_, cost)| cost.is_silence) {
            let times = self.world.detection(pair.router, pair.node).zip(self.world.interval(pair.node, pair.router));
            let Some((detection, interval)) = times else { continue };
            let fell = self.downs(*pair).find(|(_, at)| *at == pair.router).map(|(time, _)| time - start);
            let is_right = match fell {
                Some(fell) => fell + EPSILON >= detection - interval && fell <= detection + EPSILON,
                None => pause < detection + EPSILON,
            };
            if !is_right {
                let what =
                    format!("{what}: BFD of {pair:?} fell after {fell:?}, and its detection time is {detection:?}");
                return self.world.violation(what);
            }
        }
        Ok(())
    }

    /// How long a fault lasts: half of them are over before anybody would notice.
    fn pause(&mut self, begin: &Change, costs: &[(Pair, Cost)]) -> Duration {
        let is_short = costs.iter().all(|(_, cost)| !cost.falls);
        let unnoticed = costs.iter().map(|(pair, _)| self.plan.unnoticed_max(&self.world, *pair)).min();
        match begin {
            Change::Stop(_) | Change::Pause(_) if is_short => {
                self.world.random.time(Duration::ZERO, unnoticed.unwrap_or_default())
            }
            Change::Crash(_) if self.world.random.is_within(50) => {
                self.world.random.time(Duration::from_millis(20), Duration::from_secs(2))
            }
            Change::Drain(_) => self.world.random.time(MARK_FOR, MARK_FOR * 8),
            Change::Hang(_) => self.world.random.time(Duration::from_millis(20), HEARTBEAT_MAX * 2),
            Change::Order(..) => self.world.random.time(Duration::ZERO, Duration::from_secs(5)),
            Change::Leave(_) => self.world.random.time(LEFT * 2, Duration::from_secs(6)),
            _ => self.world.random.time(Duration::from_millis(20), Duration::from_secs(10)),
        }
    }

    fn pairs_of(&self, at: usize) -> Vec<Pair> {
        self.plan.pairs.iter().filter(|pair| pair.node == at || pair.router == at).copied().collect()
    }

    fn costs(&self, pairs: &[Pair], cost: impl Fn(Pair) -> Cost) -> Vec<(Pair, Cost)> {
        pairs.iter().map(|pair| (*pair, cost(*pair))).collect()
    }

    /// A fault, its end, and what it may cost.
    fn choose(&mut self) -> Fault {
        let node = self.world.random.below(self.plan.nodes);
        let router = self.plan.nodes + self.world.random.below(self.world.agents.len() - self.plan.nodes);
        let pair = Pair { router, node };
        let (of_node, of_router) = (self.pairs_of(node), self.pairs_of(router));
        let vip = self.vip();
        let ready = self.world.agents[node].vips[&vip].reachable;
        let kind = self.world.random.below(24);
        let is_first = self.world.random.is_within(50);
        let by = self.world.random.time(Duration::ZERO, Duration::from_secs(12));
        let tuned = timers(&mut self.world.random);
        let (plan, world) = (&self.plan, &self.world);
        let cost = |wrong| Cost { wrong, ..ANYTHING };
        let silent = |pair| Cost { is_silence: true, ..cost(plan.silent_max(world, pair)) };
        let lost = |pair| Cost { short: world.replaced_within(pair).map(|it| (it, EPSILON)), ..silent(pair) };
        let kept = |pair| world.kept_for(pair).map(|it| (it, Duration::ZERO));
        let dead = |pair| Cost { short: kept(pair), ..cost(plan.dead_max(world, pair)) };
        let left = |pair| Cost { short: kept(pair), ..cost(plan.dead_max(world, pair) + LEFT) };
        let deaf = |pair| cost(plan.deaf_max(world, pair));
        let unmissed = |pair| plan.unmissed(world, pair).map(|it| (it, Duration::ZERO));
        let hung = |pair| Cost { short: unmissed(pair), ..cost(plan.hung_max(world, pair)) };
        let nothing = |_: Pair| NOTHING;
        let unnoticed = |_: Pair| Cost { wrong: ENDLESS, ..NOTHING };
        let unwell = |_: Pair| Cost { gap: DAMPED_MAX, ..NOTHING };
        let disturbed = |_: Pair| Cost { wrong: EPSILON, ..ANYTHING };
        let both = [pair];
        let (first, last, costs, name) = match kind {
            0 | 22 | 23 => (Change::Crash(node), Change::Start(node), self.costs(&of_node, lost), "loss of power"),
            1 | 2 => (Change::Kill(node), Change::Start(node), self.costs(&of_node, dead), "death of the agent"),
            3 => (Change::Stop(node), Change::Continue(node), self.costs(&of_node, silent), "standstill of the agent"),
            4 => (Change::Pause(node), Change::Continue(node), self.costs(&of_node, silent), "pause of the VM"),
            5 => (Change::Stop(node), Change::Continue(node), self.costs(&of_node, unnoticed), "short standstill"),
            6 => (
                Change::Stop(router),
                Change::Continue(router),
                self.costs(&of_router, unnoticed),
                "router's short one",
            ),
            7 => (
                Change::Stop(router),
                Change::Continue(router),
                self.costs(&of_router, disturbed),
                "router's standstill",
            ),
            8 => (Change::Part(1 << node), Change::Heal, self.costs(&of_node, silent), "partition"),
            9 => (Change::Cut(node, router), Change::Heal, self.costs(&both, silent), "silence towards the router"),
            10 => (Change::Cut(router, node), Change::Heal, self.costs(&both, deaf), "silence towards the node"),
            11 | 12 => {
                let last = Change::Install(node, vip, true);
                (Change::Install(node, vip, false), last, self.costs(&of_node, unwell), "VIP not installed")
            }
            13 => {
                let last = Change::Backends(node, vip, ready);
                (Change::Backends(node, vip, 0), last, self.costs(&of_node, unwell), "loss of backends")
            }
            14 => (Change::Drain(node), Change::Undrain(node), self.costs(&of_node, disturbed), "drain"),
            15 => (Change::Leave(node), Change::Start(node), self.costs(&of_node, left), "restart without a word"),
            16 => (Change::Hang(node), Change::Unhang(node), self.costs(&of_node, hung), "hung engine"),
            17 => (
                Change::Program(node, false),
                Change::Program(node, true),
                self.costs(&of_node, disturbed),
                "no program",
            ),
            18 => (
                Change::Order(node, true),
                Change::Order(node, false),
                self.costs(&of_node, nothing),
                "BFD stopped in order",
            ),
            19 => {
                let (at, other) = if is_first { (node, router) } else { (router, node) };
                let had = self.world.agents[at].neighbor(other).and_then(|it| it.bfd);
                let last = had.map_or(Change::Heal, |had| Change::Tune(at, other, had));
                let first = if had.is_some() { Change::Tune(at, other, tuned) } else { Change::Heal };
                (first, last, self.costs(&both, nothing), "other timers")
            }
            20 => (
                Change::Crash(router),
                Change::Start(router),
                self.costs(&of_router, disturbed),
                "router's loss of power",
            ),
            _ => {
                let at = if is_first { node } else { router };
                (Change::Jump(at, by), Change::Heal, self.costs(&self.pairs_of(at), disturbed), "jump of the clock")
            }
        };
        Fault { name, begin: first, end: last, costs }
    }

    fn vip(&mut self) -> IpAddr {
        self.plan.vips[self.world.random.below(self.plan.vips.len())]
    }

    /// Anything at any time.
    fn mixed_faults(&mut self) -> Result<(), Violation> {
        let holds = self.plan.pairs.iter().map(|pair| {
            let restart = self.world.restart_time(*pair).unwrap_or_default();
            self.world.hold(*pair) * 3 + restart * 2 + Duration::from_secs(15)
        });
        let wrong_max = holds.max();
        self.world.look();
        self.world.wrong_max = wrong_max;
        let begin = self.world.now;
        let span = Duration::from_secs(12);
        for _ in 0..self.world.random.between(1, MIXED_FAULTS) {
            let at = begin + self.world.random.time(Duration::ZERO, span / 2);
            let pause = self.world.random.time(Duration::from_millis(20), span / 2);
            let mask = self.world.random.next() as u32;
            let loss = self.world.random.between(5, 40);
            let (first, second) = match self.world.random.below(4) {
                0 => (Change::Part(mask), Change::Heal),
                1 => (Change::Loss(loss), Change::Heal),
                2 => {
                    let node = self.world.random.below(self.plan.nodes);
                    self.world.plan(at, Change::Kill(node));
                    (Change::Detach(node), Change::Start(node))
                }
                _ => {
                    let Fault { begin, end, .. } = self.choose();
                    (begin, end)
                }
            };
            self.world.plan(at, first);
            self.world.plan(at + pause, second);
        }
        self.world.run_until(begin + span)
    }

    /// All is mended, each router has what it is to have, and nothing happens any more.
    fn quiet(&mut self) -> Result<(), Violation> {
        self.world.change(Change::Heal);
        for at in 0..self.world.agents.len() {
            self.world.change(Change::Continue(at));
            if self.world.agents[at].is_silent_leave {
                self.world.change(Change::Kill(at));
            }
            self.world.change(Change::Unhang(at));
            self.world.change(Change::Order(at, false));
            self.world.change(Change::Program(at, true));
            self.world.change(Change::Undrain(at));
            if self.world.agents[at].phase != Phase::Runs {
                self.world.change(Change::Start(at));
            }
        }
        self.settle("everything")?;
        self.world.check_wrongs();
        self.world.told.clear();
        let transitions = self.world.trace.transitions;
        let before = self.world.bfd_sent(&self.plan.pairs);
        let end = self.world.now + QUIET;
        self.world.run_until(end)?;
        self.world.check_bfd_rate(&self.plan.pairs, QUIET, &before);
        self.world.run_until(end + LOOK.0)?;
        if self.world.trace.transitions != transitions {
            return self.world.violation(format!("something changed while all was quiet: {:?}", self.world.told));
        }
        Ok(())
    }
}
