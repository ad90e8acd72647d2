//! The peer: what comes in, what goes out, and when it connects.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    super::{
        packet::{MessageType, Notification, cease, code, keepalive},
        route::{ROUTES_MAX, Route},
        values::{Family, HoldTime, Prefix},
    },
    Action, Bfd, BfdUse, Cause, ConnectionId, Counters, Endpoints, Event, InterfaceAddresses, LastError, NotAnnounced,
    RestartFacts, Settings, SettingsError, Stage, State, Status,
    collision::OPEN_SENT_WEIGHED,
    export::Site,
    session::{Connection, Phase, Session},
    timers::{Random, Timer, Timers},
};

/// After BFD lost the peer, so much silence on BFD says that the peer has switched it off.
const BFD_SILENCE: Duration = Duration::from_secs(30);
/// Events that wait to be taken. More than one input makes; a driver that takes none loses the oldest.
const EVENTS_MAX: usize = 256;

/// What is only shown.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) counters: Counters,
    last_error: Option<LastError>,
    causes: BTreeMap<Cause, u64>,
}

/// One configured peer.
#[derive(Debug)]
pub struct Peer {
    pub(super) settings: Settings,
    pub(super) restart: RestartFacts,
    pub(super) is_first: bool,
    pub(super) is_bare: bool,
    pub(super) peer_hold_time: Option<HoldTime>,
    pub(super) interface: InterfaceAddresses,
    pub(super) stage: Stage,
    is_stage_told: bool,
    pub(super) bfd: Bfd,
    pub(super) is_held: bool,
    routes: BTreeMap<Prefix, Route>,
    pub(super) routes_complete: bool,
    left_out: usize,
    /// At most two: see `handle_accepted`.
    pub(super) connections: Vec<Connection>,
    pub(super) closing: BTreeSet<ConnectionId>,
    pub(super) next_id: u64,
    pub(super) timers: Timers,
    pub(super) random: Random,
    pub(super) failures: u32,
    state: State,
    since: Duration,
    pub(super) actions: VecDeque<Action>,
    events: VecDeque<Event>,
    pub(super) report: Report,
}

impl Peer {
    /// Begins at once. `seed` is random, so that agents which start together do not retry in step.
    pub fn new(settings: Settings, restart: RestartFacts, seed: u64, now: Duration) -> Result<Self, SettingsError> {
        settings.check()?;
        let mut peer = Self {
            settings,
            restart,
            is_first: true,
            is_bare: false,
            peer_hold_time: None,
            interface: InterfaceAddresses::default(),
            stage: Stage::Running,
            is_stage_told: true,
            bfd: Bfd::None,
            is_held: false,
            routes: BTreeMap::new(),
            routes_complete: false,
            left_out: 0,
            connections: Vec::new(),
            closing: BTreeSet::new(),
            next_id: 0,
            timers: Timers::default(),
            random: Random(seed),
            failures: 0,
            state: State::Idle,
            since: now,
            actions: VecDeque::new(),
            events: VecDeque::new(),
            report: Report::default(),
        };
        peer.note(Cause::Started, now);
        peer.pursue(now);
        Ok(peer)
    }

    /// A dial has succeeded.
    pub fn handle_connected(&mut self, id: ConnectionId, endpoints: Endpoints, now: Duration) {
        // Given up meanwhile: the driver was told.
        if self.connection(id).is_some_and(|connection| matches!(connection.phase, Phase::Connect)) {
            self.timers.clear(Timer::Dial(id));
            self.greet(id, endpoints, now);
        }
    }

    /// The peer has connected. The number may already be one that is to be closed: see the actions.
    pub fn handle_accepted(&mut self, endpoints: Endpoints, now: Duration) -> ConnectionId {
        let id = self.new_id();
        if !(self.may_open() && self.settings.mode.accepts()) {
            //= rfc4486#4:rejected SHOULD: a connection that is not wanted is told so by subcode 5
            self.note(Cause::ConnectionRejected, now);
            let notification = Notification::cease(cease::CONNECTION_REJECTED);
            self.close(id, Some(notification));
            return id;
        }
        let replaced = self.connections.iter().filter_map(|connection| match &connection.phase {
            //= rfc4724#5:replaced MUST: a new connection of a peer that restarts ends the old one, without a word
            Phase::Established(session)
                if session.negotiated.peer_restarts() && now >= connection.since + OPEN_SENT_WEIGHED =>
            {
                Some((connection.id, Cause::PeerRestarted, None))
            }
            Phase::Established(_) | Phase::Connect => None,
            // A peer dials once at a time: it has given up the older one.
            Phase::OpenSent { .. } | Phase::OpenConfirm { .. } => (!connection.is_dialled)
                .then(|| (connection.id, Cause::Collision, Some(Notification::cease(cease::COLLISION)))),
        });
        for (old, cause, notification) in replaced.collect::<Vec<_>>() {
            self.end(old, cause, notification, now);
        }
        self.connections.push(Connection::new(id, false, now));
        debug_assert!(self.connections.len() <= 2, "one dialled and one accepted, or a session and one accepted");
        self.greet(id, endpoints, now);
        id
    }

    /// A connection is gone, or a dial has failed, for this reason; or what was to be closed is closed. What came before
    /// the end is handed over first: a NOTIFICATION says more than a closed connection.
    pub fn handle_closed(&mut self, id: ConnectionId, error: Option<&str>, now: Duration) {
        self.closing.remove(&id);
        let Some(connection) = self.connection(id) else { return };
        let (cause, detail) = match connection.phase {
            Phase::Connect => (Cause::DialFailed, error.unwrap_or("the peer cannot be reached")),
            Phase::OpenSent { .. } | Phase::OpenConfirm { .. } | Phase::Established(_) => {
                (Cause::ConnectionLost, error.unwrap_or("the peer closed the connection"))
            }
        };
        self.fail(cause, detail, None, now);
        self.forget(id, cause, now);
    }

    /// Octets have come.
    pub fn handle_packet(&mut self, id: ConnectionId, octets: &[u8], now: Duration) {
        self.read(id, octets, now);
    }

    /// The kernel has taken so many octets of what was to be sent.
    pub fn handle_written(&mut self, id: ConnectionId, octets: usize, now: Duration) {
        let Some(connection) = self.connection_mut(id) else { return };
        connection.unsent = connection.unsent.saturating_sub(octets);
        let is_all = connection.unsent == 0;
        if is_all {
            self.timers.clear(Timer::SendHold(id));
        } else if octets > 0 && self.timers.is_set(Timer::SendHold(id)) {
            //= rfc9687#3.3:restart MUST: the send hold timer begins anew whenever something was sent
            self.timers.clear(Timer::SendHold(id));
            self.start_send_hold_timer(id, now);
        }
    }

    /// The driver has found something out that only it can: a wrong password, a port that is taken.
    pub fn handle_error(&mut self, cause: Cause, detail: &str, now: Duration) {
        *self.report.causes.entry(cause).or_default() += 1;
        self.fail(cause, detail, None, now);
    }

    /// Does what is due by `now`. What has come in time is handed over first, or a peer looks silent that is not.
    pub fn handle_timeout(&mut self, now: Duration) {
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::ConnectRetry => self.pursue(now),
                Timer::Dial(id) => {
                    self.fail(
                        Cause::DialTimedOut,
                        "no answer: filtered, not configured there, or a password differs",
                        None,
                        now,
                    );
                    self.end(id, Cause::DialTimedOut, None, now);
                }
                Timer::Open(id) => self.expire(id, Cause::OpenTimerExpired, now),
                Timer::Hold(id) => self.expire(id, Cause::HoldTimerExpired, now),
                Timer::Keepalive(id) => {
                    self.send(id, MessageType::Keepalive, keepalive(), now);
                    self.restart_keepalive_timer(id, now);
                }
                Timer::SendHold(id) => {
                    self.fail(Cause::SendHoldTimerExpired, "the peer takes nothing from its connection", None, now);
                    //= rfc9687#3.3:expires MUST: a peer that takes nothing loses its connection, without a NOTIFICATION
                    self.end(id, Cause::SendHoldTimerExpired, None, now);
                }
                Timer::EndOfRib(id) => {
                    if let Some(Phase::Established(session)) = self.connection_mut(id).map(|it| &mut it.phase) {
                        session.must_end = true;
                    }
                }
                Timer::BfdSilence => self.weigh_bfd(now),
            }
        }
    }

    fn expire(&mut self, id: ConnectionId, cause: Cause, now: Duration) {
        self.fail(cause, "the peer is silent", None, now);
        //= rfc4271#6.5:hold-timer MUST: a peer that is silent for the hold time is told so by code 4
        let notification = Notification::new(code::HOLD_TIMER, 0, Vec::new());
        self.end(id, cause, Some(notification), now);
    }

    /// The next thing to do.
    pub fn poll_transmit(&mut self, now: Duration) -> Option<Action> {
        if self.actions.is_empty() {
            self.produce(now);
        }
        let action = self.actions.pop_front();
        if action.is_none() {
            self.tell_stage();
        }
        action
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.timers.next()
    }

    /// What has happened. Stages are told once there is nothing more to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// From here on these routes are announced and no others. `is_complete` says that no others are about to come:
    /// End-of-RIB waits for it.
    pub fn set_routes(&mut self, mut routes: BTreeMap<Prefix, Route>, is_complete: bool) {
        let left_out = routes.len().saturating_sub(ROUTES_MAX);
        while routes.len() > ROUTES_MAX {
            routes.pop_last();
        }
        if left_out > self.left_out {
            self.push_event(Event::RoutesLeftOut(left_out));
        }
        self.left_out = left_out;
        let old = std::mem::replace(&mut self.routes, routes);
        self.routes_complete = is_complete;
        let changed = |prefix: &&Prefix| self.routes.get(*prefix) != old.get(*prefix);
        let changed: BTreeSet<Prefix> = old.keys().chain(self.routes.keys()).filter(changed).copied().collect();
        self.want(changed);
    }

    /// An ordered stop goes on, or is taken back.
    pub fn set_stage(&mut self, stage: Stage, now: Duration) {
        if stage == self.stage {
            return;
        }
        self.is_stage_told = stage == Stage::Running;
        self.stage = stage;
        self.want_all();
        if !self.stage.opens() {
            self.end_all(Cause::Stopped, self.stage.notification(), self.stage.is_final(), now);
        }
        self.note(if self.stage.opens() { Cause::Started } else { Cause::Stopped }, now);
        self.pursue(now);
    }

    /// BFD says this from here on.
    pub fn set_bfd(&mut self, bfd: Bfd, now: Duration) {
        let was_up = std::mem::replace(&mut self.bfd, bfd) == Bfd::Up;
        let is_lost = match bfd {
            Bfd::Down | Bfd::SilentSince(_) => was_up && self.settings.bfd != BfdUse::Off,
            //= rfc5882#4.2:admin-down MUST: BFD that is switched off on the other side closes nothing
            Bfd::None | Bfd::Up | Bfd::AdminDown => false,
        };
        if is_lost {
            self.is_held = true;
            // A peer that ends a session may end BFD without a word after it: what it said of it stays.
            if self.state == State::Established {
                self.fail(Cause::BfdDown, "BFD lost the peer", None, now);
            }
            //= rfc9384#3:bfd-down SHOULD: a session that BFD ends is ended by subcode 10
            self.end_all(Cause::BfdDown, Some(Notification::cease(cease::BFD_DOWN)), true, now);
        }
        self.weigh_bfd(now);
    }

    /// Whether what BFD says still forbids a session.
    fn weigh_bfd(&mut self, now: Duration) {
        self.timers.clear(Timer::BfdSilence);
        if self.is_held {
            self.is_held = match self.bfd {
                Bfd::None | Bfd::Up => false,
                Bfd::Down | Bfd::AdminDown => true,
                Bfd::SilentSince(since) => now < since + BFD_SILENCE,
            };
            match self.bfd {
                Bfd::SilentSince(since) if self.is_held => self.timers.set(Timer::BfdSilence, since + BFD_SILENCE),
                Bfd::None | Bfd::Up | Bfd::Down | Bfd::AdminDown | Bfd::SilentSince(_) => {}
            }
            if !self.is_held {
                self.note(Cause::BfdReleased, now);
            }
        }
        self.note(Cause::Started, now);
        self.pursue(now);
    }

    /// The interface's addresses are these from here on.
    pub fn set_interface(&mut self, addresses: InterfaceAddresses) {
        if self.interface != addresses {
            self.interface = addresses;
            self.want_all();
        }
    }

    /// Traffic of these families has been forwarded without a break since the last session: F of the next OPEN.
    pub fn set_forwarding(&mut self, families: BTreeSet<Family>) {
        self.restart.forwarding = families;
    }

    /// What can be seen.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut announced: BTreeMap<Family, usize> = BTreeMap::new();
        for prefix in self.announced() {
            *announced.entry(prefix.family()).or_default() += 1;
        }
        let mut not_announced: BTreeMap<NotAnnounced, usize> = BTreeMap::new();
        let mut held_back = BTreeMap::new();
        for (prefix, reason) in self.routes.keys().filter_map(|prefix| Some((prefix, self.why_not(*prefix)?))) {
            *not_announced.entry(reason).or_default() += 1;
            held_back.insert(prefix.family(), reason);
        }
        let next_dial = self.timers.at(Timer::ConnectRetry).filter(|_| self.settings.mode.dials());
        Status {
            state: self.state,
            since: self.since,
            negotiated: self.session().map(|session| session.negotiated.clone()),
            stage: self.stage.clone(),
            bfd: self.bfd,
            held_by_bfd: self.is_held,
            next_dial,
            counters: self.report.counters,
            last_error: self.report.last_error.clone(),
            announced,
            not_announced,
            held_back,
            left_out: self.left_out,
            causes: self.report.causes.clone(),
        }
    }

    /// As RFC 4271 has it.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Why a wanted route is not announced; None where it is, or is about to be, or is not wanted.
    #[must_use]
    pub fn why_not(&self, prefix: Prefix) -> Option<NotAnnounced> {
        let route = self.routes.get(&prefix)?;
        if !self.stage.announces() {
            return Some(NotAnnounced::Stopping);
        }
        let Some(session) = self.session() else { return Some(NotAnnounced::NoSession) };
        site(session, self.interface, &self.stage).export(route).err()
    }

    /// What the peer has been sent, and not been told to forget.
    pub fn announced(&self) -> impl Iterator<Item = Prefix> {
        self.session().into_iter().flat_map(|session| session.rib.sent())
    }
}

impl Peer {
    pub(super) fn fail(&mut self, cause: Cause, detail: &str, words: Option<String>, now: Duration) {
        let error = LastError::new(now, cause, detail, words);
        self.report.last_error = Some(error.clone());
        self.push_event(Event::Error(error));
    }

    /// Something has happened for this reason: where that makes another state, it is told.
    pub(super) fn note(&mut self, cause: Cause, now: Duration) {
        let furthest = self.connections.iter().map(|connection| match connection.phase {
            Phase::Connect => State::Connect,
            Phase::OpenSent { .. } => State::OpenSent,
            Phase::OpenConfirm { .. } => State::OpenConfirm,
            Phase::Established(_) => State::Established,
        });
        let rests = if self.may_open() && self.settings.mode.accepts() { State::Active } else { State::Idle };
        let to = furthest.max().unwrap_or(rests);
        if to == self.state {
            // Two causes change no state and are worth counting.
            if matches!(cause, Cause::Collision | Cause::ConnectionRejected) {
                *self.report.causes.entry(cause).or_default() += 1;
            }
            return;
        }
        *self.report.causes.entry(cause).or_default() += 1;
        let from = std::mem::replace(&mut self.state, to);
        self.since = now;
        self.push_event(Event::Transition { at: now, from, to, cause });
    }

    pub(super) fn push_event(&mut self, event: Event) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    pub(super) fn want_all(&mut self) {
        let all: BTreeSet<Prefix> = self.routes.keys().copied().collect();
        self.want(all);
    }

    /// What is wanted of these prefixes may have changed.
    fn want(&mut self, prefixes: BTreeSet<Prefix>) {
        let Self { connections, routes, interface, stage, .. } = self;
        let session = connections.iter_mut().find_map(|connection| match &mut connection.phase {
            Phase::Established(session) => Some(session),
            Phase::Connect | Phase::OpenSent { .. } | Phase::OpenConfirm { .. } => None,
        });
        let Some(session) = session else { return };
        for prefix in prefixes {
            let route = routes.get(&prefix).filter(|_| stage.announces());
            let export = route.and_then(|route| site(session, *interface, stage).export(route).ok());
            session.rib.want(prefix, export);
        }
    }

    fn tell_stage(&mut self) {
        let is_sent = if self.stage.opens() {
            let is_quiet = |connection: &Connection| match &connection.phase {
                Phase::Established(session) => session.rib.is_quiet() && connection.unsent == 0,
                Phase::Connect | Phase::OpenSent { .. } | Phase::OpenConfirm { .. } => true,
            };
            self.connections.iter().all(is_quiet)
        } else {
            self.connections.is_empty() && self.closing.is_empty()
        };
        if is_sent && !self.is_stage_told {
            self.is_stage_told = true;
            self.push_event(Event::StageSent(self.stage.clone()));
        }
    }
}

fn site<'a>(session: &'a Session, interface: InterfaceAddresses, stage: &Stage) -> Site<'a> {
    let is_leaving = *stage == Stage::GracefulShutdown;
    Site { endpoints: session.endpoints, interface, negotiated: &session.negotiated, is_leaving }
}
