//! A run: who is there, one fault after another, faults at once, quiet.

use std::{net::IpAddr, time::Duration};

use super::{
    Trace, Violation,
    faults::Change,
    monitor::{Monitor, Seen},
    node::{Node, Phase, address, vip},
    random::Random,
    world::World,
};
use lb_userspace::announce::vrrp::{
    Family, Interval, Priority, Version, Vrid,
    machine::{LISTEN_MIN, Peers, Preemption, Settings, Stop, Vips},
    packet::VersionRule,
    spread::{self, Eligibility},
};

/// Delays of packets and lateness of agents that no formula knows of. Two packets one after another, and both agents
/// late.
const EPSILON: Duration = Duration::from_millis(4);
/// Faults that come one at a time.
const SINGLE_FAULTS: usize = 3;
/// Faults that come at once.
const MIXED_FAULTS: u64 = 8;
/// No bound.
const ENDLESS: Duration = Duration::MAX;

/// Simulates one seed.
///
/// # Errors
/// The first rule that is broken.
pub fn run(seed: u64) -> Result<Trace, Violation> {
    let mut random = Random::new(seed);
    let plan = Plan::new(&mut random);
    let nodes = plan.settings.iter().map(|settings| {
        let offset = random.time(Duration::ZERO, Duration::from_secs(1_000_000));
        Node::new(offset, settings.clone())
    });
    let nodes: Vec<Node> = nodes.collect();
    let rule = VersionRule::Only(plan.interval.version());
    let monitor = Monitor::new(plan.vips.clone());
    let mut run = Run { world: World::new(seed, random, nodes, rule, monitor), plan };
    run.start()?;
    for _ in 0..SINGLE_FAULTS {
        run.single_fault()?;
    }
    run.mixed_faults()?;
    run.quiet()?;
    Ok(run.world.trace)
}

/// Who is there and what each is told.
struct Plan {
    /// Of each node, for each virtual router.
    settings: Vec<Vec<Settings>>,
    /// Each VIP that all nodes know, and its virtual router.
    vips: Vec<(IpAddr, usize)>,
    /// The longest of any node.
    interval: Interval,
    /// The longest time until a node that starts is a backup, and has preempted.
    settling: Duration,
}

impl Plan {
    fn new(random: &mut Random) -> Self {
        let count = random.between(2, 6) as usize;
        let (family, version) = match random.below(6) {
            0 => (Family::Ipv4, Version::V2),
            1 | 2 => (Family::Ipv6, Version::V3),
            _ => (Family::Ipv4, Version::V3),
        };
        let of = |each| Interval::new(version, each).expect("an interval that the version can say");
        let names: Vec<String> = (0..count).map(|at| format!("worker-{at}.{}", random.between(0, 99))).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let vrids: Vec<Vrid> =
            (50..50 + random.between(1, 4) as u16).filter_map(|number| Vrid::new(number).ok()).collect();
        let mut lists: Vec<Vec<IpAddr>> = vec![Vec::new(); vrids.len()];
        for last in 1..=random.between(1, 6) as u8 {
            let vip = vip(family, last);
            let carrier = spread::vrid(vip, &vrids).and_then(|vrid| vrids.iter().position(|other| *other == vrid));
            lists[carrier.unwrap_or(0)].push(vip);
        }
        let used: Vec<(Vrid, Vec<IpAddr>)> =
            vrids.into_iter().zip(lists).filter(|(_, list)| !list.is_empty()).collect();
        let intervals = [50, 100, 100, 250, 1000].map(Duration::from_millis);
        let (shared, is_mixed) = match version {
            Version::V2 => (intervals[4], false),
            Version::V3 => (intervals[random.below(5)], random.is_within(25)),
        };
        let are_equal = random.is_within(10);
        let start_delay = if random.is_within(20) { Duration::from_secs(random.between(0, 3)) } else { Duration::ZERO };
        let mut plan = Self {
            settings: Vec::new(),
            vips: used.iter().enumerate().flat_map(|(at, (_, list))| list.iter().map(move |vip| (*vip, at))).collect(),
            interval: of(shared),
            settling: Duration::ZERO,
        };
        let mut longest_delay = Duration::ZERO;
        for (at, name) in names.iter().enumerate() {
            let each = if is_mixed && random.is_within(50) { intervals[random.below(5)] } else { shared };
            let preemption = match random.below(if is_mixed { 3 } else { 1 }) {
                0 => Preemption::After(Duration::ZERO),
                1 => Preemption::Off,
                _ => Preemption::After(Duration::from_millis(random.between(1, 3000))),
            };
            if let Preemption::After(delay) = preemption {
                longest_delay = longest_delay.max(delay);
            }
            if each > plan.interval.duration() {
                plan.interval = of(each);
            }
            let routers = used.iter().map(|(vrid, list)| {
                let eligibility = match random.below(12) {
                    0 => Eligibility::None,
                    1 => Eligibility::Partial,
                    _ => Eligibility::Full,
                };
                let ranked = spread::rank(name, *vrid, &names).and_then(|rank| spread::priority(rank, eligibility));
                let priority = match (are_equal, is_mixed) {
                    (true, _) => Priority::new(100).ok(),
                    (false, true) => Priority::new(random.between(1, 254) as u16).ok(),
                    (false, false) => ranked,
                };
                let mut list = list.clone();
                if is_mixed && list.len() > 1 && random.is_within(30) {
                    list.pop();
                }
                Settings {
                    vrid: *vrid,
                    interval: of(each),
                    priority,
                    preemption,
                    start_delay,
                    address: Some(address(family, at)),
                    vips: vips(*vrid, family, &list),
                    peers: Peers::Group,
                    has_virtual_mac: false,
                    refresh: None,
                }
            });
            plan.settings.push(routers.collect());
        }
        // Those that only some nodes know may go unanswered.
        let all = |(vip, at): &(IpAddr, usize)| plan.settings.iter().all(|node| node[*at].vips.carries(vip));
        plan.vips.retain(all);
        plan.settling = LISTEN_MIN.max(start_delay)
            + plan.interval.active_down_max() * 2
            + longest_delay
            + plan.interval.duration() * 2;
        plan
    }
}

impl Plan {
    /// A node's list without its last VIP, where it has more.
    fn shorter(&self, node: usize, router: usize) -> Vips {
        let Settings { vrid, vips: known, .. } = &self.settings[node][router];
        match known.all() {
            [rest @ .., _] if !rest.is_empty() => vips(*vrid, known.family(), rest),
            _ => known.clone(),
        }
    }
}

fn vips(vrid: Vrid, family: Family, list: &[IpAddr]) -> Vips {
    Vips::new(vrid, family, list.iter().copied()).expect("some VIPs of one family")
}

/// What a fault may cost, where another node is able: how long a VIP goes unanswered, and how long two answer.
#[derive(Clone, Copy, Debug)]
struct Cost {
    gap: Duration,
    overlap: Duration,
    /// Whether the node only sleeps.
    is_sleep: bool,
}

struct Run {
    world: World,
    plan: Plan,
}

impl Run {
    /// Nodes start one after another.
    fn start(&mut self) -> Result<(), Violation> {
        let count = self.world.nodes.len();
        self.join();
        for at in 0..count {
            let when = self.world.random.time(Duration::ZERO, Duration::from_secs(2));
            self.world.plan(when, Change::Start(at));
        }
        self.settle(Duration::from_secs(2))?;
        self.expect_one("the start", true)
    }

    /// All are in one group.
    fn join(&mut self) {
        self.world.monitor.group(&[(0..self.world.nodes.len()).collect()]);
    }

    fn settle(&mut self, first: Duration) -> Result<(), Violation> {
        let end = self.world.now + first + self.plan.settling;
        self.world.run_until(end)
    }

    /// From here on each VIP that some node is able to hold is answered by one, and others by none. After a single fault hosts
    /// know by whom; after several only the refresh sees to that, where one that hosts know has died unheard.
    fn expect_one(&mut self, after: &str, is_single: bool) -> Result<(), Violation> {
        self.world.monitor.look();
        let end = self.world.now + self.plan.interval.duration() * 4;
        self.world.run_until(end)?;
        for seen in self.world.monitor.look() {
            let able = (0..self.world.nodes.len()).any(|at| self.world.nodes[at].is_able(seen.router));
            if seen.overlap > Duration::ZERO || able && seen.gap > Duration::ZERO {
                return self.world.violation(format!("once quiet after {after}: {seen:?}, able: {able}"));
            }
            let holder = self.world.nodes.iter().position(|node| node.answers_until(seen.vip) > self.world.now);
            if able && is_single && self.world.cache.get(&seen.vip).copied() != holder {
                let what = format!("after {after} {holder:?} answers and hosts have another: {:?}", self.world.cache);
                return self.world.violation(what);
            }
            if !able && self.world.nodes.iter().any(|node| node.answers_until(seen.vip) > self.world.now) {
                return self.world.violation(format!("after {after} a node answers that may not: {seen:?}"));
            }
        }
        Ok(())
    }

    /// One fault and its end.
    fn single_fault(&mut self) -> Result<(), Violation> {
        let count = self.world.nodes.len();
        let victim = self.victim();
        let each = self.plan.interval.duration();
        let pause = self.world.random.time(each / 10, each * 8);
        let (name, changes, cost) = self.choose(victim, pause);
        // Bounds are for those VIPs that another node is able to take over.
        let routers = self.plan.settings[0].len();
        let others: Vec<bool> = (0..routers)
            .map(|router| (0..count).any(|at| at != victim && self.world.nodes[at].is_able(router)))
            .collect();
        self.world.monitor.look();
        let local = self.world.nodes[victim].local(self.world.now);
        let is_idle = self.world.nodes[victim].table.values().all(|until| *until <= local);
        let takeovers = self.world.takeovers;
        self.world.change(changes.0)?;
        let middle = self.world.now + pause;
        self.world.run_until(middle)?;
        let is_split = cost.overlap == ENDLESS;
        let split = is_split.then(|| self.world.monitor.look());
        self.world.change(changes.1)?;
        self.settle(Duration::ZERO)?;
        let mut seen = self.world.monitor.look();
        // While a node is not heard, who answers is asked for nothing but an answer.
        seen.extend(split.into_iter().flatten().map(|seen| Seen { overlap: Duration::ZERO, ..seen }));
        let overlap_max = if is_split { each + EPSILON } else { cost.overlap };
        for seen in seen.into_iter().filter(|seen| others[seen.router]) {
            if cost.gap != ENDLESS {
                self.world.trace.longest_gap = self.world.trace.longest_gap.max(seen.gap);
            }
            if seen.gap > cost.gap || seen.overlap > overlap_max {
                let what = format!("{name} of node {victim} for {pause:?} may cost {cost:?}, and cost {seen:?}");
                return self.world.violation(what);
            }
        }
        // A node that slept and held nothing has heard no silence.
        if cost.is_sleep && is_idle && self.world.takeovers != takeovers {
            return self.world.violation(format!("{name} of the idle node {victim} for {pause:?} led to a take-over"));
        }
        self.expect_one(name, true)
    }

    /// A node, more often one that holds something.
    fn victim(&mut self) -> usize {
        let now = self.world.now;
        let holds = |node: &Node| node.table.values().any(|until| *until > node.local(now));
        let holders: Vec<usize> = (0..self.world.nodes.len()).filter(|at| holds(&self.world.nodes[*at])).collect();
        if holders.is_empty() || self.world.random.is_within(30) {
            return self.world.random.below(self.world.nodes.len());
        }
        holders[self.world.random.below(holders.len())]
    }

    /// A fault, its end, and what it may cost.
    fn choose(&mut self, victim: usize, pause: Duration) -> (&'static str, (Change, Change), Cost) {
        let interval = self.plan.interval;
        let skew = interval.active_down_max() - interval.validity();
        // After silence others take over when their timers end; who still answers by his table does so for three
        // intervals.
        let dead = Cost { gap: interval.active_down_max() + EPSILON, overlap: EPSILON, is_sleep: false };
        let silent = Cost { gap: skew + EPSILON, overlap: EPSILON, is_sleep: false };
        let asleep = Cost { is_sleep: true, ..silent };
        let nothing = Cost { gap: Duration::ZERO, overlap: EPSILON, is_sleep: false };
        let split = Cost { gap: dead.gap, overlap: ENDLESS, is_sleep: false };
        let router = self.world.random.below(self.plan.settings[victim].len());
        let priority = self.plan.settings[victim][router].priority;
        let jump = self.world.random.time(Duration::ZERO, interval.duration() * 10);
        let list = self.plan.settings[victim][router].vips.clone();
        let shorter = self.plan.shorter(victim, router);
        match self.world.random.below(15) {
            0 => ("loss of power", (Change::Crash(victim), Change::Start(victim)), dead),
            1 => ("death of the agent", (Change::Kill(victim), Change::Start(victim)), silent),
            2 => ("standstill of the agent", (Change::Stop(victim), Change::Continue(victim)), asleep),
            3 => ("pause of the VM", (Change::Pause(victim), Change::Continue(victim)), asleep),
            4 => ("standstill while sending", (Change::Trap(victim, pause), Change::Untrap(victim)), silent),
            5 => ("ordered stop", (Change::Order(victim, Stop::MakeBeforeBreak), Change::Resume(victim)), nothing),
            6 => ("immediate stop", (Change::Order(victim, Stop::Immediate), Change::Resume(victim)), silent),
            7 => {
                let changes = (Change::Eligible(victim, router, None), Change::Eligible(victim, router, priority));
                ("loss of eligibility", changes, silent)
            }
            8 => ("loss of the link", (Change::Link(victim, false), Change::Link(victim, true)), dead),
            9 => ("jump of the clock", (Change::Jump(victim, jump), Change::Heal), Cost { is_sleep: true, ..dead }),
            10 => ("silence one way", (Change::Mute(victim), Change::Heal), split),
            11 => {
                let changes = (Change::List(victim, router, shorter), Change::List(victim, router, list));
                // What it does not know it answers not, and nobody else does.
                ("change of the list", changes, Cost { gap: ENDLESS, ..nothing })
            }
            12 => ("loss of the data plane", (Change::Install(victim, false), Change::Install(victim, true)), silent),
            13 => ("partition", (Change::Part(1 << victim), Change::Heal), split),
            _ => ("some loss", (Change::Loss(2), Change::Heal), split),
        }
    }

    /// Anything at any time.
    fn mixed_faults(&mut self) -> Result<(), Violation> {
        let each = self.plan.interval.duration();
        let begin = self.world.now;
        let span = each * 30;
        for _ in 0..self.world.random.between(1, MIXED_FAULTS) {
            let victim = self.world.random.below(self.world.nodes.len());
            let at = begin + self.world.random.time(Duration::ZERO, span / 2);
            let pause = self.world.random.time(each / 10, each * 12);
            let mask = self.world.random.next() as u32;
            let loss = self.world.random.between(5, 60);
            let (first, second) = match self.world.random.below(3) {
                0 => (Change::Part(mask), Change::Heal),
                1 => (Change::Loss(loss), Change::Heal),
                _ => self.choose(victim, pause).1,
            };
            self.world.plan(at, first);
            self.world.plan(at + pause, second);
        }
        self.world.run_until(begin + span)
    }

    /// All is mended, and one node answers for each VIP.
    fn quiet(&mut self) -> Result<(), Violation> {
        self.world.change(Change::Heal)?;
        for at in 0..self.world.nodes.len() {
            self.world.nodes[at].trap = None;
            self.world.change(Change::Continue(at))?;
            match self.world.nodes[at].phase {
                Phase::Dead => self.world.change(Change::Start(at))?,
                Phase::Runs | Phase::Stopped | Phase::Paused => {}
            }
            self.world.change(Change::Install(at, true))?;
            self.world.change(Change::Link(at, true))?;
            self.world.change(Change::Resume(at))?;
        }
        self.settle(Duration::ZERO)?;
        self.expect_one("everything", false)
    }
}
