//! The Maglev table: which backend owns which slot of a service.
//!
//! After Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016: each backend walks
//! the slots in an order of its own, and takes turns with the others at claiming slots. Three things differ, because
//! sessions pay for every slot that moves when *another* backend comes or goes:
//!
//! - **A turn that meets a taken slot is lost**, where the paper lets the backend walk on to the next free one. When a
//!   backend comes to a slot then depends on that backend alone, and not on how often the others stood in its way, so
//!   removing one backend does not shift the turns of the rest. This halves the movement.
//! - **Shares are fixed beforehand** (largest remainder) and a backend stops at its own. Turns come at the rate
//!   `weight × slots not yet visited`, under which the fastest of several walkers reaches a slot first with a
//!   probability proportional to its weight; few slots are then left for those that fall behind.
//! - **The walks are those of a digital net** over GF(2), cut into lanes, instead of offset and skip. With power-of-two
//!   sizes the skips of two backends are too easily (nearly) equal, and such a pair always meets in the same order: of
//!   removals from three backends on 512 slots, one in fifty then moved more than 4 % of the others' slots, up to 30 %.
//!
//! The rules make one total order of all (backend, slot) pairs, and the table is its greedy matching. It is computed by
//! proposals (Gale and Shapley), which need no queue of turns. `docs/steering.md` has the measured figures.
//!
//! Everything is integer arithmetic on the identities: every node of a cluster computes the same table.

use std::{net::IpAddr, sync::OnceLock};

#[cfg(test)]
mod tests;

/// Seed of the tables. The same in the whole cluster, or nodes send one flow to different backends; it is no secret
/// and not the seed of the flow's hash.
pub const CLUSTER_SEED: u64 = 0x51_75_69_63_65_4d_67_6c;

/// Stands in every slot of a table that no member owns anything of.
pub const NO_OWNER: u16 = u16::MAX;

/// A backend as the table sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Address and port; once in a set.
    pub identity: (IpAddr, u16),
    /// Share relative to the other members. 0 owns nothing: so is a draining backend to be given.
    pub weight: u16,
}

/// Number of slots of a table: 128·4^k, from 128 to 524,288.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableSize {
    bits: u8,
}

impl TableSize {
    /// 128 slots: a lone backend.
    pub const MIN: Self = Self { bits: 7 };
    /// 2^19 slots, 2 MiB of map values. Above 5,242 = 2^19 / 100 times the smallest weight in all, the lightest backends
    /// have fewer than 100 slots: shares stay within one slot, but one slot is then more than 1 % of such a share, and
    /// above 2^19 times the lightest may get none.
    pub const MAX: Self = Self { bits: 19 };

    /// The size with exactly `slots` slots, if there is one.
    pub const fn from_slots(slots: usize) -> Option<Self> {
        let bits = slots.trailing_zeros();
        if slots.is_power_of_two() && bits % 2 == 1 && bits >= 7 && bits <= 19 {
            Some(Self { bits: bits as u8 })
        } else {
            None
        }
    }

    /// Number of slots.
    pub const fn slots(self) -> usize {
        1 << self.bits
    }

    /// Number of high bits of a flow's hash that name its slot.
    pub const fn bits(self) -> u32 {
        self.bits as u32
    }

    /// Four times as many slots, unless that is more than [`TableSize::MAX`].
    pub const fn next(self) -> Option<Self> {
        if self.bits < Self::MAX.bits { Some(Self { bits: self.bits + 2 }) } else { None }
    }
}

/// Slots that the lightest backend shall have.
const SLOTS_OF_LIGHTEST: u64 = 100;

/// Slots that shall remain where they are when the heaviest of three or more backends goes: two thirds of 2,048.
///
/// Of 340 slots (three equal backends on 512) 4 % are 13, and one removal in 200 moves more by chance. Of 1,365 they are
/// 54, which no removal of thousands reached. Where only one backend remains, none can move.
const SLOTS_OF_OTHERS: u64 = 1365;

/// The smallest size with 100 slots for each (sum of weights / smallest weight), and, for three and more backends, 1,365
/// slots that are not the heaviest one's; at most [`TableSize::MAX`]. Weights of 0 do not count.
pub fn table_size(weights: impl Iterator<Item = u16>) -> TableSize {
    let (mut count, mut sum, mut lightest, mut heaviest) = (0, 0, u64::MAX, 0);
    for weight in weights.filter(|&weight| weight > 0).map(u64::from) {
        count += 1;
        sum += weight;
        lightest = lightest.min(weight);
        heaviest = heaviest.max(weight);
    }
    let suffices = |size: TableSize| {
        let slots = size.slots() as u64;
        let others_stay = count < 3 || slots * (sum - heaviest) >= SLOTS_OF_OTHERS * sum;
        count == 0 || slots * lightest >= SLOTS_OF_LIGHTEST * sum && others_stay
    };
    let mut size = TableSize::MIN;
    while !suffices(size) {
        match size.next() {
            Some(next) => size = next,
            None => break,
        }
    }
    size
}

/// A table of four times the size in which every slot inherits its parent's value.
///
/// A slot is the high bits of a flow's hash, so the children of slot `s` are `4s..4s + 4`, and no flow changes its value
/// by the growth itself.
pub fn grow<T: Copy>(parent: &[T]) -> Vec<T> {
    let mut children = Vec::with_capacity(parent.len() * 4);
    children.extend(parent.iter().flat_map(|&value| [value; 4]));
    children
}

/// The owner of each slot, as an index into `members`, under [`CLUSTER_SEED`].
///
/// A pure function of the set of members and the size: the order of `members` changes the indices and nothing else.
/// Each share is within one slot of its weight's proportion. All weights 0: all slots [`NO_OWNER`].
///
/// # Panics
/// With more than 65,535 members.
pub fn owners(members: &[Member], size: TableSize) -> Vec<u16> {
    owners_seeded(members, size, CLUSTER_SEED)
}

/// [`owners`] under a seed of one's own.
///
/// # Panics
/// With more than 65,535 members.
pub fn owners_seeded(members: &[Member], size: TableSize, seed: u64) -> Vec<u16> {
    assert!(members.len() <= usize::from(NO_OWNER), "{} members, a table names at most 65535", members.len());
    if members.iter().all(|member| member.weight == 0) {
        return vec![NO_OWNER; size.slots()];
    }
    propose(&claimants(members, size, seed), size)
}

/// A member with a weight.
struct Claimant {
    /// Index into the caller's members.
    member: u16,
    weight: u16,
    hash: u64,
    /// Slots that it gets.
    quota: u32,
}

/// Those that have a weight, at least one, in the order that decides ties: by hash, then identity.
fn claimants(members: &[Member], size: TableSize, seed: u64) -> Vec<Claimant> {
    let mut claimants: Vec<Claimant> = (0..)
        .zip(members)
        .filter(|(_, member)| member.weight > 0)
        .map(|(index, member)| Claimant {
            member: index,
            weight: member.weight,
            hash: identity_hash(member.identity, seed),
            quota: 0,
        })
        .collect();
    claimants.sort_unstable_by_key(|claimant| (claimant.hash, members[usize::from(claimant.member)].identity));
    set_quotas(&mut claimants, size);
    claimants
}

/// Largest remainder; equal remainders go to the earlier claimant.
fn set_quotas(claimants: &mut [Claimant], size: TableSize) {
    let slots = size.slots() as u64;
    let sum: u64 = claimants.iter().map(|claimant| u64::from(claimant.weight)).sum();
    let mut left = slots;
    for claimant in claimants.iter_mut() {
        claimant.quota = (slots * u64::from(claimant.weight) / sum) as u32;
        left -= u64::from(claimant.quota);
    }
    let mut by_remainder: Vec<usize> = (0..claimants.len()).collect();
    by_remainder.sort_by_key(|&index| std::cmp::Reverse(slots * u64::from(claimants[index].weight) % sum));
    for &index in &by_remainder[..left as usize] {
        claimants[index].quota += 1;
    }
}

/// When a walker with a weight comes to a slot of its walk.
type Time = u32;

/// The owners, by the claimants, whose quotas add up to the table.
///
/// Everyone proposes down its own walk until it holds its quota; a slot keeps the proposer that comes earliest. As both
/// sides rank by the same times, there is one stable outcome, whoever proposes first. Nobody walks past the end: who has
/// asked every slot in vain has found all of them taken, that is, all quotas filled, its own included.
fn propose(claimants: &[Claimant], size: TableSize) -> Vec<u16> {
    let times = unit_times(size);
    // Of each slot: the holder's time, then the holder; so compared, then so ranked.
    let claim = |time: Time, holder: u16| u64::from(time) << 16 | u64::from(holder);
    let mut held = vec![claim(Time::MAX, NO_OWNER); size.slots()];
    let mut walks: Vec<Walk> = claimants.iter().map(|claimant| Walk::new(claimant.hash, size)).collect();
    let mut missing: Vec<u32> = claimants.iter().map(|claimant| claimant.quota).collect();
    let mut unserved: Vec<u16> = (0..NO_OWNER).zip(&missing).filter(|&(_, &n)| n > 0).map(|(index, _)| index).collect();

    while let Some(proposer) = unserved.pop() {
        let index = usize::from(proposer);
        let weight = u32::from(claimants[index].weight);
        while missing[index] > 0 {
            let (visit, slot) = walks[index].step();
            // Nearly all have weight 1, and a division takes longer than all the rest.
            let time = if weight == 1 { times[visit] } else { times[visit] / weight };
            let claim = claim(time, proposer);
            if claim >= held[slot] {
                continue;
            }
            missing[index] -= 1;
            let loser = std::mem::replace(&mut held[slot], claim) as u16;
            if loser != NO_OWNER {
                missing[usize::from(loser)] += 1;
                if missing[usize::from(loser)] == 1 {
                    unserved.push(loser);
                }
            }
        }
    }
    held.into_iter().map(|claim| claimants[usize::from(claim as u16)].member).collect()
}

/// For each visit of a walk, the time of a walker of weight 1: −ln(1 − (visit + ½) / slots), in units of 2^-27.
///
/// A walker that visits unvisited slots at the rate `weight` follows this curve, and so comes first to a slot with a
/// probability proportional to its weight. Rounding is harmless, disagreement between nodes is not: hence integers.
///
/// Kept for each size: computing them is half the work of a small table.
fn unit_times(size: TableSize) -> &'static [Time] {
    static TIMES: [OnceLock<Vec<Time>>; TableSize::MAX.bits as usize + 1] =
        [const { OnceLock::new() }; TableSize::MAX.bits as usize + 1];
    TIMES[usize::from(size.bits)].get_or_init(|| computed_unit_times(size))
}

fn computed_unit_times(size: TableSize) -> Vec<Time> {
    const FRACTION: u32 = 56;
    let slots = size.slots() as u64;
    // ln((n + 1) / (n - 1)) = 2 (1/n + 1/3n³ + 1/5n⁵ + …), summed up over the steps of the curve.
    let step = |n: u64| {
        let first = (2 << FRACTION) / n;
        let square = n * n;
        if n > 1 << 12 { first } else { first + first / square / 3 + first / square / square / 5 }
    };
    let mut sum = step(4 * slots - 1);
    let mut times = Vec::with_capacity(size.slots());
    for unvisited in (1..=slots).rev() {
        times.push((sum >> (FRACTION - 27)) as Time);
        sum += step(if unvisited > 1 { 2 * (unvisited - 1) } else { 2 });
    }
    times
}

/// Most lanes that a walk is cut into.
const MAX_LANES_LOG2: u32 = 4;
/// Bits of a slot's number, at most.
const MAX_BITS: usize = TableSize::MAX.bits as usize;

/// The order in which one claimant visits the slots: all of them, once.
///
/// The table is cut into lanes that are visited in turn, each along a one-dimensional digital net of its own in Gray
/// code order: the next slot is the last one XOR a column of the lane's invertible matrix. What two claimants' matrices
/// happen to have in common so concerns one lane and evens out over the others. Large tables are one lane: their
/// matrices have enough bits.
struct Walk {
    visit: usize,
    lanes_log2: u32,
    /// XORed to the lane's number: who starts where.
    first_lane: u32,
    lane_bits: u32,
    lanes: Vec<Lane>,
}

struct Lane {
    position: u32,
    columns: [u32; MAX_BITS],
}

impl Walk {
    fn new(hash: u64, size: TableSize) -> Self {
        let lanes_log2 = if size.bits() <= 13 { MAX_LANES_LOG2 } else { 0 };
        let lane_bits = size.bits() - lanes_log2;
        let mut random = Random(hash);
        let first_lane = random.bits(lanes_log2);
        let lanes = (0..1 << lanes_log2)
            .map(|_| Lane { position: random.bits(lane_bits), columns: invertible(lane_bits, &mut random) })
            .collect();
        Self { visit: 0, lanes_log2, first_lane, lane_bits, lanes }
    }

    /// The number of this visit, from 0, and the slot.
    fn step(&mut self) -> (usize, usize) {
        let visit = self.visit;
        let lane = (visit as u32 & ((1 << self.lanes_log2) - 1)) ^ self.first_lane;
        let Lane { position, columns } = &mut self.lanes[lane as usize];
        let slot = lane << self.lane_bits | *position;
        let round = (visit >> self.lanes_log2) + 1;
        // After the last slot there is no further column; the walk ends there.
        if let Some(column) = columns.get(round.trailing_zeros() as usize) {
            *position ^= column;
        }
        self.visit += 1;
        (visit, slot as usize)
    }
}

/// The columns of a random invertible matrix over GF(2), `bits` × `bits`; the rest 0.
fn invertible(bits: u32, random: &mut Random) -> [u32; MAX_BITS] {
    let mut columns = [0; MAX_BITS];
    // By leading bit, what the columns so far span.
    let mut basis = [0u32; MAX_BITS];
    for column in &mut columns[..bits as usize] {
        loop {
            *column = random.bits(bits);
            let mut rest = *column;
            while rest != 0 && basis[rest.ilog2() as usize] != 0 {
                rest ^= basis[rest.ilog2() as usize];
            }
            if rest != 0 {
                basis[rest.ilog2() as usize] = rest;
                break;
            }
        }
    }
    columns
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        finalize(self.0)
    }

    /// A number of that many bits, at most 32.
    fn bits(&mut self, count: u32) -> u32 {
        ((self.next() >> 32) & ((1 << count) - 1)) as u32
    }
}

/// SplitMix64's finalizer: every input bit changes each output bit with a probability of about ½.
fn finalize(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The finalizer chained over the seed, the address as 16 bytes in network order (IPv4 mapped into IPv6), and the port.
fn identity_hash((address, port): (IpAddr, u16), seed: u64) -> u64 {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
    .to_bits();
    [(address >> 64) as u64, address as u64, u64::from(port)]
        .into_iter()
        .fold(seed, |hash, word| Random(hash ^ word).next())
}
