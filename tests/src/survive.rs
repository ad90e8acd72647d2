//! TCP sessions through a VIP while the backends change at random.

use std::{
    fmt::Write as _,
    net::{SocketAddr, TcpListener},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::{Agent, Configuration},
    lab::{Family, Lab, Options, vip},
    packets::random::Random,
    programs::conversation::{self, Conversation, Resets, Speaker},
};

const VIP_PORT: u16 = 80;
const POD_PORT: u16 = 8080;
const PODS: usize = 6;
/// So many weights, and so many backends, that the table grows twice: 6 backends of 1, then one of 4 beside them, then
/// one of 16.
const WEIGHTS: [u16; 3] = [1, 4, 16];

/// What is done to the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A pod becomes a backend.
    Add,
    /// A backend gets no new connections.
    Drain,
    /// A draining backend serves again.
    Undrain,
    /// A backend's weight changes.
    Weigh,
    /// A backend goes, and its sessions with it.
    Remove,
}

/// What came of one run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// How often each kind of change was made, with the sessions that were there and those that broke.
    pub by_change: std::collections::BTreeMap<Change, (u32, u64, u64)>,
    /// Slots of the table at the end.
    pub slots: u64,
}

impl Outcome {
    /// Sessions that broke though their pods stayed backends.
    pub fn lost(&self) -> u64 {
        self.by_change.values().map(|(_, _, lost)| lost).sum()
    }
}

#[derive(Clone, Copy)]
struct State {
    weight: u16,
    drain: bool,
}

struct Session {
    conversation: Conversation,
    pod: usize,
    speaker: Speaker,
}

/// Holds `sessions` sessions of each family through `changes` changes.
pub fn run(seed: u64, sessions: usize, changes: u32) -> Result<Outcome> {
    let mut random = Random::new(seed);
    let mut lab = Lab::new("survive", Options { pods: PODS as u8, ..Options::default() })?;
    lab.attach_router_program()?;
    let listeners: Vec<TcpListener> =
        lab.pods.iter().map(|pod| conversation::listen(&pod.namespace, POD_PORT)).collect::<Result<_>>()?;
    let mut states: [Option<State>; PODS] = [None; PODS];
    for state in &mut states[..3] {
        *state = Some(State { weight: 1, drain: false });
    }
    let mut agent = Agent::start_with(&lab, &yaml(&lab, &states))?;
    settled(&agent, &lab, &states)?;
    let resets = Resets::of(&lab.element)?;
    let mut open = Vec::new();
    let mut outcome = Outcome::default();
    for number in 0..changes {
        while open.len() < 2 * sessions {
            let family = Family::BOTH[open.len() % 2];
            let target = SocketAddr::new(vip(1).of(family), VIP_PORT);
            let (conversation, pod) = Conversation::open_any(&lab.element, target, &listeners)?;
            let serves = states[pod].is_some_and(|state| !state.drain);
            ensure!(serves, "change {number}: a new connection went to pod {pod}, which takes none");
            let speaker = Speaker::BOTH[open.len() / 2 % 2];
            open.push(Session { conversation, pod, speaker });
        }
        let change = choose(&mut random, &mut states);
        agent.reload(&yaml(&lab, &states))?;
        outcome.slots = settled(&agent, &lab, &states).with_context(|| format!("change {number}, {change:?}"))?;
        // Who is no backend any more has no sessions; the client's end is closed without a word to the VIP.
        open.retain(|session| states[session.pod].is_some());
        let before = open.len();
        open.retain_mut(|session| session.conversation.exchange(session.speaker).is_ok());
        let entry = outcome.by_change.entry(change).or_default();
        *entry = (entry.0 + 1, entry.1 + before as u64, entry.2 + (before - open.len()) as u64);
    }
    let _ = resets;
    drop(open);
    agent.stop()?;
    Ok(outcome)
}

/// Makes one change that leaves at least two backends that take connections.
fn choose(random: &mut Random, states: &mut [Option<State>; PODS]) -> Change {
    loop {
        let pod = random.below(PODS);
        let serving = states.iter().flatten().filter(|state| !state.drain).count();
        let spare = serving > 2 || states[pod].is_none_or(|state| state.drain);
        match (random.below(6), states[pod]) {
            (0 | 1, None) => {
                states[pod] = Some(State { weight: 1, drain: false });
                return Change::Add;
            }
            (0 | 1, Some(State { weight, .. })) => {
                let other = WEIGHTS[random.below(3)];
                if other != weight {
                    states[pod].as_mut().expect("it is there").weight = other;
                    return Change::Weigh;
                }
            }
            (2 | 3, Some(state)) if state.drain => {
                states[pod] = Some(State { drain: false, ..state });
                return Change::Undrain;
            }
            (2..=4, Some(state)) if !state.drain && spare => {
                states[pod] = Some(State { drain: true, ..state });
                return Change::Drain;
            }
            (5, Some(_)) if spare => {
                states[pod] = None;
                return Change::Remove;
            }
            _ => {}
        }
    }
}

fn yaml(lab: &Lab, states: &[Option<State>; PODS]) -> String {
    let mut text = Configuration { mode: "native", services: Vec::new() }.yaml_in(lab);
    for family in Family::BOTH {
        let (name, vip) = (format!("{family:?}").to_lowercase(), vip(1).of(family));
        let _ = write!(text, "  - name: {name}\n    vip: \"{vip}\"\n    protocol: TCP\n    ports: [{VIP_PORT}]\n");
        text += "    backends:\n";
        for (pod, state) in lab.pods.iter().zip(states) {
            let Some(State { weight, drain }) = state else { continue };
            let address = pod.addresses.of(family);
            let _ = writeln!(
                text,
                "      - {{ address: \"{address}\", port: {POD_PORT}, weight: {weight}, drain: {drain} }}"
            );
        }
    }
    text
}

/// Waits until the agent has applied what is wanted; the slots of the table.
fn settled(agent: &Agent, lab: &Lab, states: &[Option<State>; PODS]) -> Result<u64> {
    agent.wait_status("the change to be applied", |status| {
        let services = status["services"].as_array()?;
        let as_wanted = Family::BOTH.into_iter().zip(services).all(|(family, service)| {
            let wanted: Vec<_> =
                lab.pods.iter().zip(states).filter_map(|(pod, state)| Some((pod, (*state)?))).collect();
            let backends = service["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
            wanted.len() == backends.len()
                && wanted.iter().zip(backends).all(|((pod, state), backend)| {
                    backend["address"] == pod.addresses.of(family).to_string()
                        && backend["weight"] == state.weight
                        && backend["drain"] == state.drain
                        && backend["state"] == "ready"
                        && (backend["slots"] == 0) == state.drain
                })
        });
        (services.len() == 2 && as_wanted && status["lastError"].is_null() && status["waiting"].is_null())
            .then(|| services[0]["slots"].as_u64())?
    })
}
