//! What the slots' histories are worth: sessions that are lost when backends change, for histories of several lengths,
//! with and without pruning. `cargo run --release -p lb-userspace --example slot_histories [SEED]`.
//!
//! Services of several sizes see random changes, some alone, some in bursts as of a rolling update. All variants see the
//! same changes and the same clients: half of the sessions last ten minutes in the mean, half for as long as the
//! simulation; who loses a session connects again. Pods list their sockets each ten seconds.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use lb_userspace::plan::{
    history::{Limits, Position, Positions, SETTLE, SlotTable, by_position},
    maglev::{Member, TableSize, owners, table_size},
};

/// What happens to services, and who talks to them.
struct Scenario {
    name: &'static str,
    /// Clients for each slot of the first table.
    clients_a_slot: f64,
    /// Backends of a service, services of that kind, changes of each.
    kinds: &'static [(usize, usize, usize)],
    /// Each change replaces the oldest backend, which drains and is never deleted. Otherwise changes are of any kind.
    rolls: bool,
}

const KINDS: &[(usize, usize, usize)] =
    &[(3, 12, 300), (5, 8, 300), (10, 8, 300), (20, 6, 300), (100, 2, 300), (1000, 1, 50)];
const SCENARIOS: [Scenario; 4] = [
    Scenario { name: "a client for four slots", clients_a_slot: 0.25, kinds: KINDS, rolls: false },
    Scenario { name: "four clients a slot", clients_a_slot: 4., kinds: KINDS, rolls: false },
    Scenario { name: "rollouts, four clients a slot", clients_a_slot: 4., kinds: &[(3, 8, 150)], rolls: true },
    Scenario { name: "rollouts, 32 clients a slot", clients_a_slot: 32., kinds: &[(3, 4, 150)], rolls: true },
];
const OWNERS: [usize; 5] = [0, 1, 2, 4, 7];
const LISTING_INTERVAL_SECONDS: f64 = 10.;
/// Between changes that are not of one burst.
const PAUSE_MEAN_SECONDS: f64 = 600.;
/// Between those that are.
const BURST_SECONDS: f64 = 0.2;
const SHORT_SESSION_MEAN_SECONDS: f64 = 600.;

fn main() {
    let seed = std::env::args().nth(1).map_or(1, |seed| seed.parse().expect("the seed is a number"));
    println!("seed {seed}");
    let mut seeds = Random(seed);
    for scenario in &SCENARIOS {
        let mut totals = vec![Totals::default(); 2 * OWNERS.len()];
        let mut by_kind = Vec::new();
        for &(backends, services, changes) in scenario.kinds {
            let mut kind = vec![Totals::default(); totals.len()];
            for _ in 0..services {
                Service::new(scenario, backends, Random(seeds.next())).run(changes, &mut kind);
            }
            by_kind.push((backends, kind[totals.len() - 1].clone()));
            totals.iter_mut().zip(&kind).for_each(|(total, kind)| total.add(kind));
        }
        let Totals { changes, moved, ended, deleted, .. } = totals[0];
        println!("\n{}: {changes} changes moved {moved} slots;", scenario.name);
        println!("{ended} sessions ended, {deleted} went with their backend\n");
        println!("| owners | pruned {HEAD}|---|---{HEAD_END}");
        for (index, total) in totals.iter().enumerate() {
            let pruned = if index % 2 == 1 { "yes" } else { "no" };
            println!("| {} | {pruned} {total}", OWNERS[index / 2]);
        }
        println!("\n| backends {HEAD}|---{HEAD_END}");
        for (backends, total) in by_kind {
            println!("| {backends} {total}");
        }
    }
}

const HEAD: &str = "| lost: too many owners | no room for a list | by pruning | % in 100 changes | owners dropped \
     | moved slots | owners in each | lists, most |\n";
const HEAD_END: &str = "|---|---|---|---|---|---|---|---|";

/// What became of one variant.
#[derive(Clone, Default)]
struct Totals {
    changes: usize,
    moved: usize,
    ended: usize,
    deleted: usize,
    lost_overflow: usize,
    lost_lists: usize,
    lost_pruning: usize,
    /// Earlier owners that were counted as dropped though they may live.
    dropped: u64,
    /// Sessions, summed up over the changes.
    exposed: usize,
    /// Slots, moved slots and owners in their histories, summed up over the changes.
    slots: usize,
    moved_slots: usize,
    earlier_owners: usize,
    lists_most: usize,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.changes += other.changes;
        self.moved += other.moved;
        self.ended += other.ended;
        self.deleted += other.deleted;
        self.lost_overflow += other.lost_overflow;
        self.lost_lists += other.lost_lists;
        self.lost_pruning += other.lost_pruning;
        self.dropped += other.dropped;
        self.exposed += other.exposed;
        self.slots += other.slots;
        self.moved_slots += other.moved_slots;
        self.earlier_owners += other.earlier_owners;
        self.lists_most = self.lists_most.max(other.lists_most);
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lost = (self.lost_overflow + self.lost_lists + self.lost_pruning) as f64;
        write!(
            f,
            "| {} | {} | {} | {:.4} | {} | {:.1} % | {:.2} | {} |",
            self.lost_overflow,
            self.lost_lists,
            self.lost_pruning,
            lost * 100. * 100. / self.exposed as f64,
            self.dropped,
            self.moved_slots as f64 * 100. / self.slots as f64,
            self.earlier_owners as f64 / self.moved_slots.max(1) as f64,
            self.lists_most,
        )
    }
}

struct Backend {
    identity: (IpAddr, u16),
    weight: u16,
    /// Drains or is down.
    is_out: bool,
}

/// A client, the same in all variants.
struct Client {
    hash: u64,
    ends_at: f64,
    is_short: bool,
}

/// One way to keep histories, with whom each client is connected to.
struct Variant {
    table: SlotTable,
    prunes: bool,
    owners: usize,
    sessions: Vec<Position>,
    totals: Totals,
}

struct Service {
    random: Random,
    now: f64,
    next_address: u32,
    usual: usize,
    rolls: bool,
    backends: Vec<Backend>,
    positions: Positions,
    clients: Vec<Client>,
    variants: Vec<Variant>,
}

impl Service {
    fn new(scenario: &Scenario, usual: usize, random: Random) -> Self {
        let size = table_size((0..usual).map(|_| 1));
        let variant = |index: usize| Variant {
            table: SlotTable::new(TableSize::MIN, Limits { lists: u16::MAX, owners: OWNERS[index / 2] }),
            prunes: index % 2 == 1,
            owners: OWNERS[index / 2],
            sessions: Vec::new(),
            totals: Totals::default(),
        };
        let mut service = Self {
            random,
            now: 0.,
            next_address: 0x0af4_0000,
            usual,
            rolls: scenario.rolls,
            backends: Vec::new(),
            positions: Positions::default(),
            clients: Vec::new(),
            variants: (0..2 * OWNERS.len()).map(variant).collect(),
        };
        (0..usual).for_each(|_| service.add());
        service.install();
        for number in 0..(size.slots() as f64 * scenario.clients_a_slot) as usize {
            let is_short = number % 2 == 0;
            let mut client = Client { hash: 0, ends_at: f64::INFINITY, is_short };
            service.random.renew(&mut client, 0.);
            service.variants.iter_mut().for_each(|variant| variant.connect(number, client.hash));
            service.clients.push(client);
        }
        service
    }

    fn run(mut self, changes: usize, totals: &mut [Totals]) {
        for _ in 0..changes {
            let is_burst = self.random.below(3) > 0;
            let pause = if is_burst { BURST_SECONDS } else { self.random.exponential(PAUSE_MEAN_SECONDS) };
            self.pass(pause);
            self.change_one();
            let moved = self.install();
            self.see_what_is_lost(moved);
        }
        for (total, variant) in totals.iter_mut().zip(&mut self.variants) {
            let dropped = variant.table.dropped();
            variant.totals.dropped = dropped.overflows + dropped.silent_overflows + dropped.list_overflows;
            total.add(&variant.totals);
        }
    }

    /// Sessions end and begin, and then sockets are listed: of each pod once, because only the last listing before the
    /// next change matters.
    fn pass(&mut self, pause: f64) {
        self.now += pause;
        for (number, client) in self.clients.iter_mut().enumerate() {
            if client.ends_at <= self.now {
                self.random.renew(client, self.now);
                for variant in &mut self.variants {
                    variant.totals.ended += 1;
                    variant.connect(number, client.hash);
                }
            }
        }
        let listed: Vec<(Position, Duration)> = self
            .backends
            .iter()
            .filter_map(|backend| {
                let before = self.random.unit() * LISTING_INTERVAL_SECONDS;
                let position = self.positions.get(&backend.identity)?;
                (before < pause).then(|| (position, Duration::from_secs_f64(self.now - before)))
            })
            .collect();
        let now = Duration::from_secs_f64(self.now);
        for variant in self.variants.iter_mut().filter(|variant| variant.prunes) {
            let connected: HashSet<(u32, Position)> =
                self.clients.iter().zip(&variant.sessions).map(|(c, &owner)| (variant.slot(c.hash), owner)).collect();
            for &(owner, listed_at) in &listed {
                variant.table.prune(owner, listed_at, |slot| connected.contains(&(slot, owner)), now);
            }
            let lost = |(client, owner): (&Client, &Position)| !variant.is_candidate(client.hash, *owner);
            variant.totals.lost_pruning +=
                self.clients.iter().zip(&variant.sessions).filter(|&pair| lost(pair)).count();
        }
    }

    fn add(&mut self) {
        self.next_address += 1;
        let identity = (IpAddr::V4(Ipv4Addr::from_bits(self.next_address)), 179);
        let weight = if self.random.below(5) == 0 { 2 } else { 1 };
        self.backends.push(Backend { identity, weight, is_out: false });
    }

    fn change_one(&mut self) {
        if self.rolls {
            if let Some(oldest) = self.backends.iter_mut().find(|backend| !backend.is_out) {
                oldest.is_out = true;
            }
            return self.add();
        }
        let index = self.random.below(self.backends.len());
        let out = self.backends.iter().position(|backend| backend.is_out);
        let may_lose = self.backends.iter().filter(|backend| !backend.is_out).count() > 1.max(self.usual / 2);
        match (self.random.below(10), out) {
            // Who drains or is down comes back, or goes for good.
            (0..=1, Some(out)) => self.backends[out].is_out = false,
            (2..=3, Some(out)) => drop(self.backends.remove(out)),
            (0..=4, _) if self.backends.len() < self.usual * 3 / 2 + 1 => self.add(),
            (5, _) if may_lose => drop(self.backends.remove(index)),
            (6..=7, _) if may_lose => self.backends[index].is_out = true,
            _ => self.backends[index].weight = 3 - self.backends[index].weight,
        }
    }

    /// Slots that got another owner.
    fn install(&mut self) -> usize {
        let weight = |backend: &Backend| if backend.is_out { 0 } else { backend.weight };
        let members: Vec<_> =
            self.backends.iter().map(|b| Member { identity: b.identity, weight: weight(b) }).collect();
        let identities: Vec<_> = self.backends.iter().map(|backend| backend.identity).collect();
        let now = Duration::from_secs_f64(self.now);
        let positions = self.positions.update(&identities, now).expect("there are fewer than 65,535");
        let size = table_size(members.iter().map(|member| member.weight)).max(self.variants[0].table.size());
        let column = by_position(&owners(&members, size), &positions);
        let mut moved = 0;
        for variant in &mut self.variants {
            moved = variant.table.change(&column, |position| self.positions.contains(position), now).moved;
            variant.table.release_before(now.saturating_sub(SETTLE));
        }
        let table = &self.variants[0].table;
        self.positions.release_before(now.saturating_sub(SETTLE), |position| table.refers_to(position));
        moved
    }

    fn see_what_is_lost(&mut self, moved: usize) {
        for variant in &mut self.variants {
            let totals = &mut variant.totals;
            totals.changes += 1;
            totals.moved += moved;
            totals.exposed += self.clients.len();
            totals.slots += variant.table.size().slots();
            totals.moved_slots += variant.table.moved();
            totals.earlier_owners += (0..variant.table.size().slots() as u32)
                .map(|slot| usize::from(variant.table.history(slot).count))
                .sum::<usize>();
            totals.lists_most = totals.lists_most.max(variant.table.lists().count());
            for (number, client) in self.clients.iter().enumerate() {
                let owner = variant.sessions[number];
                if !self.positions.contains(owner) {
                    variant.totals.deleted += usize::from(owner != Position::NONE);
                } else if variant.is_candidate(client.hash, owner) {
                    continue;
                } else if usize::from(variant.table.history(variant.slot(client.hash)).count) < variant.owners {
                    variant.totals.lost_lists += 1;
                } else {
                    variant.totals.lost_overflow += 1;
                }
                variant.connect(number, client.hash);
            }
        }
    }
}

impl Variant {
    fn slot(&self, hash: u64) -> u32 {
        (hash >> (64 - self.table.size().bits())) as u32
    }

    /// To the owner of the client's slot.
    fn connect(&mut self, number: usize, hash: u64) {
        let owner = Position(self.table.slot(self.slot(hash)).owner);
        match self.sessions.get_mut(number) {
            Some(session) => *session = owner,
            None => self.sessions.push(owner),
        }
    }

    fn is_candidate(&self, hash: u64, owner: Position) -> bool {
        let slot = self.slot(hash);
        self.table.slot(slot).owner == owner.0 || self.table.history(slot).owners().any(|earlier| earlier == owner)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.unit() * limit as f64) as usize
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -(1. - self.unit()).ln() * mean
    }

    /// Another session of the client, from another port.
    fn renew(&mut self, client: &mut Client, now: f64) {
        client.hash = self.next();
        if client.is_short {
            client.ends_at = now + self.exponential(SHORT_SESSION_MEAN_SECONDS);
        }
    }
}
