//! One peer with its machine and its connections.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use rustix::event::PollFlags;
use socket2::Socket;
use tracing::{debug, info, warn};

use super::{
    connection::{Connection, Heard},
    holder::find_session,
    report::{PeerReport, Problem, Shown},
    signatures::Signatures,
    sockets::{dial, local_towards, prepare_accepted, socket_address, words},
    wanted::{Secret, WantedPeer},
};
use crate::announce::bgp::{
    machine::{
        Action, Cause, CeaseReason, ConnectionId, Direction, Endpoints, Event, Mode, Peer, RestartFacts, Stage, State,
    },
    values::is_link_local,
};
use crate::net::processes::Holder;

/// What one peer may want at a time. More waits for the next turn, in which others have theirs.
const ROUNDS_MAX: usize = 1024;
/// Connections of a peer, those that end among them: two are what RFC 4271, 6.8 knows, the others end within seconds.
const CONNECTIONS_MAX: usize = 16;
/// For so long after the last dropped segment a password is shown as wrong: twice what peers wait between dials.
const MISMATCH_SHOWN: Duration = Duration::from_secs(120);
/// A peer that goes on with a wrong password is told of so often.
const MISMATCH_INTERVAL: Duration = Duration::from_secs(30);

/// Dropped segments that may be the peer's.
#[derive(Clone, Copy)]
struct Mismatch {
    told_at: Duration,
    seen_at: Duration,
    dropped: Signatures,
}

/// How it goes on.
enum Course {
    Stays,
    /// It is not wanted any more.
    Leaves,
    /// It is wanted like this, once what is there has ended.
    Changes(Box<WantedPeer>),
}

/// One peer.
pub struct Entry {
    name: String,
    wanted: WantedPeer,
    remote: SocketAddr,
    /// Where we listen.
    port: u16,
    restart: RestartFacts,
    course: Course,
    peer: Peer,
    connections: Vec<Connection>,
    /// Where it can connect to us, if it may.
    listen_at: Option<SocketAddr>,
    unreachable: Option<Problem>,
    session_of_other: Option<Problem>,
    mismatch: Option<Mismatch>,
    /// The last problem with listening that the machine was told of.
    told: Option<Problem>,
    /// What the machine was told.
    stage: Stage,
    is_stage_sent: bool,
}

impl Entry {
    /// Begins; the error says why it cannot.
    pub fn new(
        name: &str,
        wanted: WantedPeer,
        port: u16,
        restart: RestartFacts,
        seed: u64,
        now: Duration,
    ) -> Result<Self, Problem> {
        let remote = check(&wanted)?;
        let peer = Peer::new(wanted.settings.clone(), restart.clone(), seed, now);
        let peer = peer.map_err(|error| Problem::Settings(error.to_string()))?;
        let mut entry = Self {
            name: name.to_owned(),
            wanted: wanted.clone(),
            remote,
            port,
            restart,
            course: Course::Stays,
            peer,
            connections: Vec::new(),
            listen_at: None,
            unreachable: None,
            session_of_other: None,
            mismatch: None,
            told: None,
            stage: Stage::Running,
            is_stage_sent: true,
        };
        entry.peer.set_interface(wanted.interface_addresses);
        entry.peer.set_routes(wanted.routes.as_ref().clone(), wanted.routes_complete);
        entry.peer.set_bfd(wanted.bfd, now);
        entry.set_stage(wanted.stage, now);
        Ok(entry)
    }

    /// Takes up what is wanted of it.
    pub fn follow(&mut self, wanted: &WantedPeer, port: u16, restart: &RestartFacts, now: Duration) {
        // A neighbour that is not seen for a while may still be there.
        let known = self.wanted.remote.filter(|_| self.wanted.interface == wanted.interface);
        let wanted = WantedPeer { remote: wanted.remote.or(known), ..wanted.clone() };
        self.port = port;
        match self.course {
            Course::Stays if self.wanted.needs_other_session(&wanted) => {
                self.course = Course::Changes(Box::new(wanted));
                self.set_stage(Stage::Ceased(CeaseReason::SettingsChanged, None), now);
            }
            Course::Stays => {
                if self.restart.forwarding != restart.forwarding {
                    self.restart.forwarding.clone_from(&restart.forwarding);
                    self.peer.set_forwarding(restart.forwarding.clone());
                }
                self.peer.set_interface(wanted.interface_addresses);
                let is_same = Arc::ptr_eq(&self.wanted.routes, &wanted.routes);
                if !is_same || self.wanted.routes_complete != wanted.routes_complete {
                    self.peer.set_routes(wanted.routes.as_ref().clone(), wanted.routes_complete);
                }
                if self.wanted.bfd != wanted.bfd {
                    self.peer.set_bfd(wanted.bfd, now);
                }
                self.set_stage(wanted.stage.clone(), now);
                self.wanted = wanted;
            }
            Course::Leaves | Course::Changes(_) => self.course = Course::Changes(Box::new(wanted)),
        }
    }

    /// It is not wanted any more.
    pub fn leave(&mut self, reason: CeaseReason, now: Duration) {
        if let Course::Stays = self.course
            && !self.is_stopped()
        {
            self.set_stage(Stage::Ceased(reason, None), now);
        }
        self.course = Course::Leaves;
    }

    /// Whether its last word is said, or there is to be none.
    const fn is_stopped(&self) -> bool {
        match self.stage {
            Stage::Ceased(..) | Stage::Left => true,
            Stage::Running | Stage::GracefulShutdown | Stage::Withdrawn => false,
        }
    }

    fn set_stage(&mut self, stage: Stage, now: Duration) {
        if self.stage != stage {
            // The machine says so for all others.
            self.is_stage_sent = stage == Stage::Running;
            self.peer.set_stage(stage.clone(), now);
            self.stage = stage;
        }
    }

    /// Whether nothing is left of it that was to end.
    pub fn has_ended(&self) -> bool {
        !matches!(self.course, Course::Stays) && self.connections.is_empty()
    }

    /// What is wanted in its place, and what that is to know of a restart.
    pub fn into_next(self) -> Option<(WantedPeer, RestartFacts)> {
        let had_session = self.peer.status().counters.established > 0;
        match self.course {
            Course::Stays | Course::Leaves => None,
            Course::Changes(wanted) => {
                Some((*wanted, RestartFacts { restarted: self.restart.restarted && !had_session, ..self.restart }))
            }
        }
    }

    /// Whether another peer would be this one.
    pub fn has_ends_of(&self, other: &WantedPeer) -> bool {
        (self.wanted.remote, self.wanted.interface, self.wanted.source) == (other.remote, other.interface, other.source)
    }

    /// Where it is.
    pub const fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Looks where it is to connect to, and how it is wanted there.
    pub fn listen_at(&mut self) -> Option<(SocketAddr, &WantedPeer)> {
        let wanted = match &self.course {
            Course::Leaves => return None,
            // Until its successor looks for itself.
            Course::Changes(next) => return Some((self.listen_at?, next)),
            Course::Stays => &self.wanted,
        };
        match wanted.settings.mode {
            Mode::Dial => return None,
            Mode::Accept | Mode::DialAndAccept => {}
        }
        self.unreachable = None;
        match wanted.source.map_or_else(|| local_towards(self.remote), Ok) {
            Ok(local) => self.listen_at = Some(socket_address(local, self.port, wanted.interface)),
            // Where it was known, it will be the same again.
            Err(error) => {
                self.unreachable = Some(Problem::Unreachable { remote: self.remote.ip(), error: words(&error) });
            }
        }
        Some((self.listen_at?, &self.wanted))
    }

    /// Tells the machine why nobody can connect, once.
    pub fn set_listening(&mut self, problem: Option<&Problem>, now: Duration) {
        if self.told.as_ref() != problem {
            if let Some(problem @ Problem::PortTaken { .. }) = problem {
                self.peer.handle_error(Cause::PortTaken, &problem.to_string(), now);
            }
            self.told = problem.cloned();
        }
    }

    /// Segments were dropped for their signatures, and may be its.
    pub fn handle_signatures(&mut self, dropped: Signatures, now: Duration) {
        let accepts = matches!(self.wanted.settings.mode, Mode::Accept | Mode::DialAndAccept);
        if self.peer.state() == State::Established || !accepts || !matches!(self.course, Course::Stays) {
            return;
        }
        let Some(its) = dropped.of_peer(self.wanted.password.is_some()) else { return };
        let before = self.mismatch.filter(|before| now.saturating_sub(before.told_at) < MISMATCH_INTERVAL);
        let dropped = self.mismatch.map_or(its, |before| before.dropped.plus(its));
        self.mismatch = Some(Mismatch { told_at: before.map_or(now, |before| before.told_at), seen_at: now, dropped });
        if before.is_none() {
            let text = Problem::PasswordMismatch(dropped).to_string();
            self.peer.handle_error(Cause::PasswordMismatch, &text, now);
        }
    }

    /// Whether a connection between these is this peer's business.
    pub fn is_from(&self, at: SocketAddr, from: SocketAddr) -> bool {
        let is_link = match (self.remote, from) {
            (SocketAddr::V6(remote), SocketAddr::V6(from)) if is_link_local(*remote.ip()) => {
                remote.scope_id() == from.scope_id()
            }
            (SocketAddr::V4(_) | SocketAddr::V6(_), _) => true,
        };
        is_link && self.remote.ip() == from.ip() && self.listen_at.is_none_or(|it| it == at)
    }

    /// The password that its connections carry.
    pub fn password(&self) -> Option<&Secret> {
        match &self.course {
            Course::Stays | Course::Leaves => self.wanted.password.as_ref(),
            Course::Changes(next) => next.password.as_ref(),
        }
    }

    /// It has connected. False where it has too many connections.
    pub fn accept(&mut self, socket: Socket, at: SocketAddr, from: SocketAddr, now: Duration) -> bool {
        if self.connections.len() >= CONNECTIONS_MAX {
            return false;
        }
        if let Err(error) = prepare_accepted(&socket, from.ip(), self.wanted.ttl) {
            warn!(peer = self.name, error = words(&error), "a connection was not accepted");
            return false;
        }
        let id = self.peer.handle_accepted(Endpoints { local: at.ip(), remote: from.ip() }, now);
        self.connections.push(Connection::accepted(id, socket, (at, from)));
        true
    }

    /// Hands over what has come.
    pub fn hear(&mut self, buffer: &mut [u8], now: Duration) {
        let Self { peer, connections, .. } = self;
        connections.retain_mut(|connection| {
            let id = connection.id();
            if connection.is_closing() {
                let is_closed = connection.is_closed(buffer, now);
                if is_closed {
                    peer.handle_closed(id, None, now);
                }
                return !is_closed;
            }
            let mut is_there = true;
            connection.hear(buffer, |heard, octets| match heard {
                Heard::Connected(endpoints) => peer.handle_connected(id, endpoints, now),
                Heard::Octets => peer.handle_packet(id, octets, now),
                Heard::End(error) => {
                    is_there = false;
                    peer.handle_closed(id, error.as_ref().map(words).as_deref(), now);
                }
            });
            is_there
        });
    }

    /// Does what is due, and what follows from it. True where there is more to do at once.
    pub fn handle_timeout(&mut self, now: Duration) -> bool {
        self.peer.handle_timeout(now);
        let mut has_more = true;
        for _ in 0..ROUNDS_MAX {
            for connection in &mut self.connections {
                let written = connection.write();
                if written > 0 {
                    self.peer.handle_written(connection.id(), written, now);
                }
            }
            let Some(action) = self.peer.poll_transmit(now) else {
                has_more = false;
                break;
            };
            self.act(action, now);
        }
        while let Some(event) = self.peer.poll_event() {
            self.tell(event);
        }
        self.mismatch = self.mismatch.filter(|it| now.saturating_sub(it.seen_at) <= MISMATCH_SHOWN);
        if self.peer.state() == State::Established {
            (self.mismatch, self.session_of_other) = (None, None);
        }
        has_more
    }

    fn act(&mut self, action: Action, now: Duration) {
        match action {
            // Given up before it began: that it is to be closed comes next.
            Action::Dial(_) if self.is_stopped() => {}
            Action::Dial(id) => {
                if let Err(text) = self.dial(id) {
                    self.peer.handle_closed(id, Some(&text), now);
                }
            }
            Action::Send(id, octets) => {
                let Some(at) = self.connections.iter().position(|connection| connection.id() == id) else { return };
                if let Err(error) = self.connections[at].push(&octets) {
                    self.connections.remove(at);
                    self.peer.handle_closed(id, Some(&words(&error)), now);
                }
            }
            Action::Close(id) => match self.connections.iter_mut().find(|connection| connection.id() == id) {
                Some(connection) => connection.close(now),
                None => self.peer.handle_closed(id, None, now),
            },
        }
    }

    /// Looks first whether another process would lose its session by it.
    fn dial(&mut self, id: ConnectionId) -> Result<(), String> {
        let said = |error: io::Error| words(&error);
        let local = self.wanted.source.map_or_else(|| local_towards(self.remote), Ok).map_err(said)?;
        let ours = self.connections.iter().filter_map(Connection::ends);
        let ours: Vec<(u16, u16)> = ours.map(|(local, remote)| (local.port(), remote.port())).collect();
        let other = find_session(local, self.remote, self.port, &ours);
        self.session_of_other = other.map(|inode| Problem::SessionOfOther {
            local,
            remote: self.remote.ip(),
            sockets: vec![inode],
            holder: Holder::of_sockets(&[inode]),
        });
        if let Some(problem) = &self.session_of_other {
            return Err(problem.to_string());
        }
        let from = self.wanted.source.map(|source| socket_address(source, 0, self.wanted.interface));
        let socket = dial(from, self.remote, self.wanted.ttl, self.wanted.password.as_ref()).map_err(said)?;
        self.connections.push(Connection::dialled(id, socket));
        Ok(())
    }

    fn tell(&mut self, event: Event) {
        let peer = &self.name;
        match event {
            Event::Transition { at: _, from, to, cause } => info!(peer, ?from, ?to, ?cause, "BGP peer"),
            Event::Error(error) => {
                warn!(peer, cause = ?error.cause, words = error.words, error = error.detail, "BGP peer");
            }
            Event::Negotiated(negotiated) => debug!(peer, ?negotiated, "BGP session"),
            Event::EndOfRib(family, Direction::Sent) => info!(peer, %family, "all routes were sent"),
            Event::EndOfRib(family, Direction::Received) => debug!(peer, %family, "all routes were received"),
            Event::StageSent(stage) => {
                info!(peer, %stage, "stage of an ordered stop");
                self.is_stage_sent |= stage == self.stage;
            }
            Event::RoutesLeftOut(count) => warn!(peer, count, "more routes than a peer is sent: the last are left out"),
        }
    }

    /// When [`hear`](Self::hear) and [`handle_timeout`](Self::handle_timeout) are to be called next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.peer.poll_timeout().into_iter().chain(self.connections.iter().filter_map(Connection::close_at)).min()
    }

    /// For whoever waits, with what for.
    pub fn descriptors(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.connections.iter().map(|connection| {
            let flags = if connection.wants_to_write() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            (connection.socket().as_fd(), flags)
        })
    }

    /// As it is shown; `listening` is what is wrong with its listening socket.
    pub fn report(&self, listening: Option<&Problem>) -> PeerReport {
        let mismatch = self.mismatch.map(|it| Problem::PasswordMismatch(it.dropped));
        let problems = [self.unreachable.as_ref(), listening, self.session_of_other.as_ref(), mismatch.as_ref()];
        PeerReport {
            name: self.name.clone(),
            status: Some(self.peer.status()),
            stage_sent: self.is_stage_sent,
            is_leaving: !matches!(self.course, Course::Stays),
            connections: self.connections.iter().filter_map(Connection::ends).collect(),
            listening: self.listen_at.filter(|_| listening.is_none()),
            problems: problems.into_iter().flatten().map(Shown::from).collect(),
        }
    }

    /// Where it was last looked for.
    pub const fn last_listen_at(&self) -> Option<SocketAddr> {
        self.listen_at
    }
}

/// Where the peer is, where that can be told.
fn check(wanted: &WantedPeer) -> Result<SocketAddr, Problem> {
    let remote = wanted.remote.ok_or(Problem::NeighbourUnknown)?;
    if let IpAddr::V6(address) = remote
        && is_link_local(address)
        && wanted.interface.is_none()
    {
        return Err(Problem::InterfaceMissing(remote));
    }
    if let Some(source_address) = wanted.source.filter(|source| source.is_ipv4() != remote.is_ipv4()) {
        return Err(Problem::Family { source_address, remote });
    }
    Ok(socket_address(remote, wanted.port.get(), wanted.interface))
}
