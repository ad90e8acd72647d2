//! TCP sessions through a VIP, and datagrams beside them, while the backends change at random.

pub(crate) mod clients;
mod datagrams;
pub(crate) mod traffic;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;
use serde_json::Value;

use self::{
    clients::End,
    datagrams::Datagrams,
    traffic::{Report, STALL, Session, Traffic},
};
use crate::{
    agent::{Agent, Configuration},
    lab::{ELEMENT, Family, Lab, Namespace, Options, vip},
    packets::random::Random,
    pinned::Pinned,
    programs::conversation::{self, Speaker},
    world::sockets::socket::allow_many,
};

const VIP_PORT: u16 = 80;
const POD_PORT: u16 = 8080;
const UDP_VIP_PORT: u16 = 514;
const UDP_POD_PORT: u16 = 5514;
const PODS: usize = 6;
/// So many weights that the table grows twice: 3 backends of 1, then one of 4 beside them, then one of 16.
const WEIGHTS: [u16; 3] = [1, 4, 16];
/// Clients that use their port again in one go.
const REUSES: usize = 12;
/// The maps are looked through often: no larger than needed.
const CAPACITIES: &str =
    "capacities: {services: 64, backends: 128, maglevSlots: 524288, bypasses: 4096, flows: 16384}\n";

/// What is done while sessions live.
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
    /// The flow cache loses every record.
    Wipe,
    /// Clients use their ports again that the pods have in TIME_WAIT.
    ReuseClosed,
    /// Clients use their ports again whose old connections live on in the pods.
    ReuseVanished,
}

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of everything that is random.
    pub seed: u64,
    /// Sessions at a time, of both families together.
    pub sessions: usize,
    /// Changes of the backends; wipes and used ports come beside them.
    pub changes: u32,
    /// The negative control: slots' histories are taken out of the maps after each change, so that no packet is offered.
    pub without_histories: bool,
}

/// What one kind of change met.
#[derive(Clone, Copy, Debug, Default)]
pub struct Met {
    /// How often it was made.
    pub times: u32,
    /// Sessions that there were, each time.
    pub sessions: u64,
    /// Those of them that broke though their pods stayed backends.
    pub lost: u64,
}

/// What came of one run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// By kind of change.
    pub by_change: BTreeMap<Change, Met>,
    /// How some of the lost sessions broke.
    pub losses: Vec<String>,
    /// Slots of the table at the end.
    pub slots: u64,
    /// How often the table has grown.
    pub growths: u32,
    /// Lines that sessions have exchanged.
    pub lines: u64,
    /// Those, and new connections, that took longer than three seconds.
    pub stalls: u64,
    /// The longest that any took.
    pub longest: Duration,
    /// Resets that reached clients.
    pub resets: u64,
    /// Resets that clients sent: one for each old connection that they did not know any more.
    pub resets_sent: u64,
    /// Ports that were used again while the pod held the old connection, in TIME_WAIT or open.
    pub reused: [u64; 2],
    /// Those of them whose new connection came to another pod.
    pub reused_elsewhere: [u64; 2],
    /// Records that were wiped out of the flow cache.
    pub wiped: u64,
    /// Datagrams, in a wrong pod, unanswered, and repetitions of those that got no answer at once.
    pub datagrams: [u64; 4],
    /// Answers whose client was not recorded, which so did not leave from the VIP: the flow cache may lose a record, and the
    /// client's repetition makes another.
    pub unrecorded: u64,
}

impl Outcome {
    /// Sessions that broke though their pods stayed backends.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.by_change.values().map(|met| met.lost).sum()
    }

    /// Fails unless everything was as it must be.
    pub fn check(&self) -> Result<()> {
        ensure!(self.lost() == 0, "{} sessions lost: {:#?}", self.lost(), self.losses);
        ensure!(self.stalls == 0, "{} stalls over {STALL:?}, the longest {:?}", self.stalls, self.longest);
        ensure!(self.resets == 0, "{} resets reached clients", self.resets);
        // More where an answer to a SYN is late, or the last FIN is sent twice.
        let [_, vanished] = self.reused;
        let expected = vanished..=2 * vanished;
        ensure!(expected.contains(&self.resets_sent), "{} resets of clients, {expected:?} expected", self.resets_sent);
        let [_, wrong, unanswered, _] = self.datagrams;
        ensure!(wrong == 0 && unanswered == 0, "{wrong} datagrams in a wrong pod, {unanswered} unanswered");
        Ok(())
    }

    /// Fails unless what is to be tried has come to pass: a table that grew twice, records to wipe, and ports of moved
    /// slots.
    pub fn check_reach(&self) -> Result<()> {
        ensure!(self.growths >= 2, "the table grew {} times", self.growths);
        ensure!(self.wiped > 0 && self.reused_elsewhere.iter().all(|count| *count > 0), "{self:?}");
        Ok(())
    }

    fn take(&mut self, change: Change, report: Report) {
        let Report { sessions, lost, lines, stalls, longest } = report;
        let met = self.by_change.entry(change).or_default();
        met.times += 1;
        met.sessions += sessions as u64;
        met.lost += lost.len() as u64;
        self.losses.extend(lost.into_iter().map(|loss| format!("{change:?}: {loss}")));
        self.losses.truncate(20);
        self.lines += lines;
        self.stalls += stalls;
        self.longest = self.longest.max(longest);
    }

    fn took(&mut self, time: Duration) {
        self.stalls += u64::from(time > STALL);
        self.longest = self.longest.max(time);
    }
}

#[derive(Clone, Copy)]
struct State {
    weight: u16,
    drain: bool,
}

type States = [Option<State>; PODS];

/// Holds sessions through changes.
pub fn run(plan: &Plan) -> Result<Outcome> {
    allow_many();
    let mut lab = Lab::new("survive", Options { pods: PODS as u8, ..Options::default() })?;
    lab.attach_router_program()?;
    let mut run = Run::start(&lab, plan)?;
    for number in 0..plan.changes {
        run.beside().and_then(|()| run.change()).with_context(|| format!("seed {}, change {number}", plan.seed))?;
        // The negative control has seen enough.
        if plan.without_histories && run.outcome.lost() > 0 {
            break;
        }
    }
    run.finish()
}

struct Run<'a> {
    lab: &'a Lab,
    plan: &'a Plan,
    random: Random,
    listeners: Vec<TcpListener>,
    states: States,
    agent: Agent,
    pinned: Pinned,
    resets: [u64; 2],
    traffic: Traffic,
    datagrams: Datagrams,
    open: usize,
    outcome: Outcome,
}

impl<'a> Run<'a> {
    fn start(lab: &'a Lab, plan: &'a Plan) -> Result<Self> {
        let listeners = lab.pods.iter().map(|pod| conversation::listen(&pod.namespace, POD_PORT));
        let listeners = listeners.collect::<Result<Vec<_>>>()?;
        let mut states: States = [None; PODS];
        states[..3].fill(Some(State { weight: 1, drain: false }));
        let agent = Agent::start_with(lab, &yaml(lab, &states))?;
        let slots = settled(&agent, lab, &states)?;
        watch_resets(&lab.element)?;
        Ok(Self {
            lab,
            plan,
            random: Random::new(plan.seed),
            listeners,
            states,
            pinned: Pinned::of(&agent),
            agent,
            resets: resets(&lab.element)?,
            traffic: Traffic::start(),
            datagrams: Datagrams::new(lab, UDP_VIP_PORT, UDP_POD_PORT)?,
            open: 0,
            outcome: Outcome { slots, ..Outcome::default() },
        })
    }

    /// Opens what is missing, and at random does what changes no backend.
    fn beside(&mut self) -> Result<()> {
        let wanted = (self.open..self.plan.sessions).map(|number| {
            let family = Family::BOTH[number % 2];
            (
                SocketAddr::new(ELEMENT.of(family), 0),
                SocketAddr::new(vip(1).of(family), VIP_PORT),
                Speaker::BOTH[number / 2 % 2],
            )
        });
        let opened = clients::open(&self.lab.element, &self.listeners, &wanted.collect::<Vec<_>>())?;
        self.open += opened.len();
        self.begin(opened)?;
        if self.random.one_in(4) {
            self.outcome.wiped += self.pinned.wipe_flows()?;
            self.met(Change::Wipe)?;
        }
        if self.random.one_in(6) {
            let (end, change) = match self.random.one_in(2) {
                true => (End::TimeWait, Change::ReuseClosed),
                false => (End::Vanished, Change::ReuseVanished),
            };
            self.reuse(end)?;
            self.met(change)?;
        }
        Ok(())
    }

    fn reuse(&mut self, end: End) -> Result<()> {
        let mut random = Random::new(self.random.next());
        let mut left = REUSES;
        let one_in = (self.open / REUSES / 2).max(1);
        let taken = self.traffic.take(move |_| {
            let is_taken = left > 0 && random.one_in(one_in);
            left -= usize::from(is_taken);
            is_taken
        })?;
        let speaker = self.random.pick(&Speaker::BOTH);
        let reopened = clients::reopen(&self.lab.element, &self.listeners, taken, end, speaker)?;
        let kind = usize::from(end == End::Vanished);
        self.outcome.reused[kind] += reopened.len() as u64;
        let elsewhere = reopened.iter().filter(|(before, session, _)| *before != session.place).count();
        self.outcome.reused_elsewhere[kind] += elsewhere as u64;
        self.begin(reopened.into_iter().map(|(_, session, took)| (session, took)).collect())
    }

    /// Lets new sessions speak, which must be in pods that take new connections.
    fn begin(&mut self, opened: Vec<(Session, Duration)>) -> Result<()> {
        let mut sessions = Vec::with_capacity(opened.len());
        for (session, took) in opened {
            let place = session.place;
            ensure!(serves(&self.states, place), "a new connection went to pod {place}, which takes none");
            self.outcome.took(took);
            sessions.push(session);
        }
        self.traffic.add(sessions)
    }

    fn change(&mut self) -> Result<()> {
        let before = self.states;
        // One of 16 at once would make one step of two.
        let weights = &WEIGHTS[..if self.outcome.growths == 0 { 2 } else { 3 }];
        let change = choose(&mut self.random, &mut self.states, weights);
        if let Some(gone) = (0..PODS).find(|pod| before[*pod].is_some() && self.states[*pod].is_none()) {
            // Sessions of a backend that goes end with it, and say goodbye before.
            let ended = self.traffic.take(move |session| session.place == gone)?;
            self.open -= ended.len();
            ended.into_iter().try_for_each(clients::close)?;
        }
        self.agent.reload(&yaml(self.lab, &self.states))?;
        if self.random.one_in(3) {
            self.outcome.wiped += self.pinned.wipe_flows()?;
        }
        let slots = settled(&self.agent, self.lab, &self.states).with_context(|| format!("{change:?}"))?;
        self.outcome.growths += u32::from(slots > self.outcome.slots);
        self.outcome.slots = slots;
        if self.plan.without_histories {
            self.pinned.forget_histories()?;
        }
        self.met(change)?;
        let states = self.states;
        let tally = self.datagrams.round(|pod| serves(&states, pod))?;
        let sums = self.outcome.datagrams.iter_mut();
        sums.zip([tally.sent, tally.wrong, tally.unanswered, tally.repeated]).for_each(|(sum, more)| *sum += more);
        Ok(())
    }

    /// Waits for an exchange of every session.
    fn met(&mut self, change: Change) -> Result<()> {
        let report = self.traffic.tell()?;
        self.open -= report.lost.len();
        self.outcome.take(change, report);
        Ok(())
    }

    fn finish(mut self) -> Result<Outcome> {
        let now = resets(&self.lab.element)?;
        [self.outcome.resets, self.outcome.resets_sent] = [now[0] - self.resets[0], now[1] - self.resets[1]];
        self.outcome.unrecorded = self.pinned.reason(Reason::Unrecorded.index())?;
        drop(self.traffic);
        self.agent.stop()?;
        Ok(self.outcome)
    }
}

fn serves(states: &States, pod: usize) -> bool {
    states[pod].is_some_and(|state| !state.drain)
}

/// Makes one change that leaves at least two backends that take connections.
fn choose(random: &mut Random, states: &mut States, weights: &[u16]) -> Change {
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
                let other = random.pick(weights);
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

const PROTOCOLS: [(&str, u16, u16); 2] = [("TCP", VIP_PORT, POD_PORT), ("UDP", UDP_VIP_PORT, UDP_POD_PORT)];

fn yaml(lab: &Lab, states: &States) -> String {
    let mut text = CAPACITIES.to_owned() + &Configuration { mode: "native", services: Vec::new() }.yaml_in(lab);
    for (family, (protocol, vip_port, pod_port)) in Family::BOTH.into_iter().flat_map(|f| PROTOCOLS.map(|p| (f, p))) {
        let (name, vip) = (format!("{family:?}-{protocol}").to_lowercase(), vip(1).of(family));
        let _ =
            write!(text, "  - name: {name}\n    vip: \"{vip}\"\n    protocol: {protocol}\n    ports: [{vip_port}]\n");
        text += "    backends:\n";
        for (pod, state) in lab.pods.iter().zip(states) {
            let Some(State { weight, drain }) = state else { continue };
            let address = pod.addresses.of(family);
            let _ = writeln!(
                text,
                "      - {{ address: \"{address}\", port: {pod_port}, weight: {weight}, drain: {drain} }}"
            );
        }
    }
    text
}

/// Waits until the agent has applied what is wanted; the slots of the table.
fn settled(agent: &Agent, lab: &Lab, states: &States) -> Result<u64> {
    agent.wait_status("the change to be applied", |status| {
        let services = status["services"].as_array()?;
        let as_wanted =
            Family::BOTH.into_iter().flat_map(|family| [family; 2]).zip(services).all(|(family, service)| {
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
        (services.len() == 4 && as_wanted && status["lastError"].is_null() && status["waiting"].is_null())
            .then(|| services[0]["slots"].as_u64())?
    })
}

/// Counts the resets that a namespace gets and sends, whatever its sockets make of them.
fn watch_resets(namespace: &Namespace) -> Result<()> {
    let chain = |hook: &str| {
        format!(
            "chain {hook} {{ type filter hook {hook} priority 0; tcp flags & rst == rst counter name {hook}_resets\n }}\n"
        )
    };
    let rules = format!(
        "table inet watch {{\ncounter input_resets {{}}\ncounter output_resets {{}}\n{}{}}}\n",
        chain("input"),
        chain("output")
    );
    let mut nft = namespace.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("nft")?;
    nft.stdin.take().context("nft has no standard input")?.write_all(rules.as_bytes())?;
    ensure!(nft.wait()?.success(), "nft refuses:\n{rules}");
    Ok(())
}

/// Resets that came in and went out.
fn resets(namespace: &Namespace) -> Result<[u64; 2]> {
    let output = namespace.command("nft").args(["-j", "list", "counters"]).output().context("nft")?;
    let listed: Value = serde_json::from_slice(&output.stdout).context("nft prints no JSON")?;
    let count = |name: &str| {
        let mut counters = listed["nftables"].as_array()?.iter().map(|item| &item["counter"]);
        counters.find(|counter| counter["name"] == name)?["packets"].as_u64()
    };
    let both = count("input_resets").zip(count("output_resets")).with_context(|| format!("no counters in {listed}"))?;
    Ok([both.0, both.1])
}
