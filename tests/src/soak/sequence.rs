//! What is done, step after step: follows from the seed alone, whatever the machine and the time do.

use crc32fast::Hasher;

use crate::{
    life::{PODS, Share, Wish},
    packets::random::Random,
};

/// Other sizes of maps. Not fewer services or backends: of those that came and went in a storm, ids above a smaller number are in use,
/// and it would be refused. Weights of 1 and 4 need tables of 8,192 slots, twice while they are written.
const CAPACITIES: [&str; 2] = [
    "{services: 200, backends: 500, maglevSlots: 262144, bypasses: 4096, flows: 16384}",
    "{services: 200, backends: 500, maglevSlots: 524288, bypasses: 8192, flows: 65536, fragments: 4096}",
];
const WEIGHTS: [u16; 3] = [1, 2, 3];
/// Milliseconds after which an agent that starts is killed: before it touches anything, while the kernel verifies its programs,
/// and, by the load of the machine, while it exchanges them or serves.
const CUTS: [u16; 4] = [20, 300, 900, 1500];
/// Ports of the service without traffic: never the same twice in a row.
const OTHER_PORTS: [u16; 3] = [9000, 9001, 9002];
/// Pods that take new connections at least.
const SERVING_MIN: usize = 2;

/// What happens in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL and restart.
    Crash,
    /// SIGKILL while it takes up so many configurations, and restart.
    CrashWhileWriting {
        /// How many.
        changes: u16,
    },
    /// SIGTERM, then an agent that is killed while it starts, then one that stays.
    CutShort {
        /// When it is killed.
        milliseconds: u16,
    },
    /// SIGTERM and restart.
    Restart,
    /// The other build takes over: an upgrade, or a downgrade.
    Exchange {
        /// The one before is killed.
        crash: bool,
    },
    /// All maps get other sizes.
    Resize {
        /// The agent before is killed.
        crash: bool,
    },
    /// A pod gets another namespace and interface.
    RestartPod {
        /// Which one, from 0.
        pod: usize,
    },
    /// The same while there is no agent.
    RestartPodUnseen {
        /// Which one, from 0.
        pod: usize,
    },
    /// A pod gets no new connections any more, or gets them again.
    Drain {
        /// Which one, from 0.
        pod: usize,
    },
    /// A pod's share of new connections changes.
    Weigh {
        /// Which one, from 0.
        pod: usize,
        /// Its weight.
        weight: u16,
    },
    /// A pod is a backend no longer, or is one again.
    Member {
        /// Which one, from 0.
        pod: usize,
    },
    /// A service that carries no traffic changes.
    OtherService,
    /// So many configurations, faster than they are taken up.
    Storm {
        /// How many.
        changes: u16,
    },
    /// An uplink without traffic is removed and comes back.
    OtherUplink,
}

/// The kinds of [`Action`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// See [`Action::Crash`].
    Crash,
    /// See [`Action::CrashWhileWriting`].
    CrashWhileWriting,
    /// See [`Action::CutShort`].
    CutShort,
    /// See [`Action::Restart`].
    Restart,
    /// See [`Action::Exchange`].
    Exchange,
    /// See [`Action::Resize`].
    Resize,
    /// See [`Action::RestartPod`].
    RestartPod,
    /// See [`Action::RestartPodUnseen`].
    RestartPodUnseen,
    /// See [`Action::Drain`].
    Drain,
    /// See [`Action::Weigh`].
    Weigh,
    /// See [`Action::Member`].
    Member,
    /// See [`Action::OtherService`].
    OtherService,
    /// See [`Action::Storm`].
    Storm,
    /// See [`Action::OtherUplink`].
    OtherUplink,
}

/// A deck is gone through before the next: no kind waits for its turn by chance.
const DECK: [Kind; 17] = [
    Kind::Crash,
    Kind::CrashWhileWriting,
    Kind::CutShort,
    Kind::Restart,
    Kind::Exchange,
    Kind::Exchange,
    Kind::Resize,
    Kind::RestartPod,
    Kind::RestartPodUnseen,
    Kind::Drain,
    Kind::Drain,
    Kind::Weigh,
    Kind::Member,
    Kind::Member,
    Kind::OtherService,
    Kind::Storm,
    Kind::OtherUplink,
];

/// One step, and what is so after it.
#[derive(Clone, Debug)]
pub struct Step {
    /// From 1.
    pub number: u32,
    /// Its kind.
    pub kind: Kind,
    /// What happens.
    pub action: Action,
    /// What is configured then.
    pub wish: Wish,
    /// Whether the agent is of the other build then.
    pub is_other_build: bool,
    /// Stands for this step and all before it.
    pub hash: u32,
}

/// All steps of a seed, without end.
pub struct Sequence {
    random: Random,
    deck: Vec<Kind>,
    number: u32,
    wish: Wish,
    is_other_build: bool,
    hasher: Hasher,
}

impl Sequence {
    /// That of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let (random, hasher) = (Random::new(seed), Hasher::new());
        Self { random, deck: Vec::new(), number: 0, wish: Self::first(), is_other_build: false, hasher }
    }

    /// What is configured before the first step.
    #[must_use]
    pub fn first() -> Wish {
        Wish { capacities: CAPACITIES[0], programs: true, ..Wish::default() }
    }

    fn draw(&mut self) -> Kind {
        if self.deck.is_empty() {
            self.deck.extend(DECK);
        }
        self.deck.swap_remove(self.random.below(self.deck.len()))
    }

    /// A pod whose taking away leaves enough that serve, or any that does not serve now.
    fn dispensable(&mut self) -> usize {
        let serving = (0..usize::from(PODS)).filter(|pod| self.wish.serves(*pod)).count();
        loop {
            let pod = self.pod();
            if !self.wish.serves(pod) || serving > SERVING_MIN {
                return pod;
            }
        }
    }

    const fn pod(&mut self) -> usize {
        self.random.below(PODS as usize)
    }

    fn act(&mut self, kind: Kind) -> Action {
        match kind {
            Kind::Crash => Action::Crash,
            Kind::Restart => Action::Restart,
            Kind::CrashWhileWriting => Action::CrashWhileWriting { changes: 1 + self.random.below(20) as u16 },
            Kind::CutShort => Action::CutShort { milliseconds: self.random.pick(&CUTS) },
            Kind::Exchange => {
                self.is_other_build = !self.is_other_build;
                Action::Exchange { crash: self.random.one_in(2) }
            }
            Kind::Resize => {
                let is_first = self.wish.capacities == CAPACITIES[0];
                self.wish.capacities = CAPACITIES[usize::from(is_first)];
                Action::Resize { crash: self.random.one_in(2) }
            }
            Kind::RestartPod => Action::RestartPod { pod: self.pod() },
            Kind::RestartPodUnseen => Action::RestartPodUnseen { pod: self.pod() },
            Kind::Drain => {
                let pod = self.dispensable();
                let share = self.wish.shares[pod].get_or_insert_default();
                share.drain = !share.drain;
                Action::Drain { pod }
            }
            Kind::Weigh => {
                let (pod, weight) = (self.pod(), self.random.pick(&WEIGHTS));
                self.wish.shares[pod].get_or_insert_default().weight = weight;
                Action::Weigh { pod, weight }
            }
            Kind::Member => {
                let pod = self.dispensable();
                let share = &mut self.wish.shares[pod];
                *share = if share.is_some() { None } else { Some(Share::default()) };
                Action::Member { pod }
            }
            Kind::OtherService => {
                let others =
                    OTHER_PORTS.map(|port| if port == self.wish.other_port { OTHER_PORTS[0] + 3 } else { port });
                self.wish.other_port = self.random.pick(&others);
                Action::OtherService
            }
            Kind::Storm => Action::Storm { changes: 20 + self.random.below(60) as u16 },
            Kind::OtherUplink => Action::OtherUplink,
        }
    }
}

impl Iterator for Sequence {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let kind = self.draw();
        let action = self.act(kind);
        self.number += 1;
        self.hasher.update(format!("{action:?}").as_bytes());
        let hash = self.hasher.clone().finalize();
        let (number, wish, is_other_build) = (self.number, self.wish.clone(), self.is_other_build);
        Some(Step { number, kind, action, wish, is_other_build, hash })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const STEPS: usize = 1000;

    #[test]
    fn a_seed_makes_one_sequence_and_another_seed_another() {
        let hashes = |seed| Sequence::new(seed).take(STEPS).map(|step| step.hash).collect::<Vec<_>>();
        assert_eq!(hashes(7), hashes(7));
        assert_ne!(hashes(7), hashes(8));
    }

    #[test]
    fn two_pods_take_new_connections_after_every_step() {
        for step in (0..20).flat_map(|seed| Sequence::new(seed).take(STEPS)) {
            let serving = (0..usize::from(PODS)).filter(|pod| step.wish.serves(*pod)).count();
            assert!(serving >= SERVING_MIN, "{step:?}");
        }
    }

    #[test]
    fn every_kind_comes_once_in_each_deck() {
        let kinds = Sequence::new(1).map(|step| step.kind);
        let all: BTreeSet<Kind> = DECK.into_iter().collect();
        let drawn: Vec<Kind> = kinds.take(10 * DECK.len()).collect();
        assert!(drawn.chunks(DECK.len()).all(|deck| deck.iter().copied().collect::<BTreeSet<_>>() == all), "{drawn:?}");
    }
}
