//! The connections of a peer: when one begins, and what follows from its end.

use std::time::Duration;

use super::{
    super::{
        packet::{Framer, MessageType, Notification},
        values::Family,
    },
    Action, Bfd, BfdUse, Cause, ConnectionId, Endpoints, Peer,
    agree::{Offer, offer},
    session::{Connection, Phase, Session},
    timers::Timer,
};

/// First wait after a failure; each further one doubles it.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest wait after a failure. A session that lasted so long makes the next wait the first again.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How long an OPEN may take to come (RFC 4271, 8.2.2: four minutes are suggested).
const OPEN_TIME: Duration = Duration::from_secs(240);
/// Connections whose end the driver has not confirmed: each has a limit there, so these are few.
const CLOSING_MAX: usize = 16;

impl Peer {
    pub(super) fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        self.connections.iter().find(|connection| connection.id == id)
    }

    pub(super) fn connection_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|connection| connection.id == id)
    }

    pub(super) fn session(&self) -> Option<&Session> {
        self.connections.iter().find_map(|connection| match &connection.phase {
            Phase::Established(session) => Some(&**session),
            Phase::Connect | Phase::OpenSent { .. } | Phase::OpenConfirm { .. } => None,
        })
    }

    pub(super) fn new_id(&mut self) -> ConnectionId {
        self.next_id += 1;
        ConnectionId(self.next_id)
    }

    pub(super) fn may_open(&self) -> bool {
        let is_up = self.bfd == Bfd::Up;
        self.stage.opens() && !self.is_held && (self.settings.bfd != BfdUse::Strict || is_up)
    }

    /// Dials, where it is time to.
    pub(super) fn pursue(&mut self, now: Duration) {
        let is_busy = self.connections.iter().any(|connection| match connection.phase {
            Phase::Connect | Phase::Established(_) => true,
            Phase::OpenSent { .. } | Phase::OpenConfirm { .. } => connection.is_dialled,
        });
        let dials = self.may_open() && self.settings.mode.dials();
        if is_busy || !dials || self.timers.is_set(Timer::ConnectRetry) {
            return;
        }
        let id = self.new_id();
        self.connections.push(Connection::new(id, true, now));
        self.timers.set(Timer::Dial(id), now + self.settings.dial_time);
        self.actions.push_back(Action::Dial(id));
        self.note(Cause::Dialled, now);
    }

    /// Our OPEN, first of all.
    pub(super) fn greet(&mut self, id: ConnectionId, endpoints: Endpoints, now: Duration) {
        let ours = offer(
            &self.settings,
            Offer {
                restart: &self.restart,
                is_first: self.is_first,
                // Without capabilities IPv4 is all there is.
                is_bare: self.is_bare && self.settings.families.contains(&Family::Ipv4),
                peer_hold_time: self.peer_hold_time,
            },
        );
        //= rfc4271#8.2.2:connect MUST: a connection that comes to be is sent an OPEN, and is given a long time
        self.send(id, MessageType::Open, ours.emit(), now);
        self.timers.set(Timer::Open(id), now + OPEN_TIME);
        if let Some(connection) = self.connection_mut(id) {
            connection.phase = Phase::OpenSent { endpoints, ours: Box::new(ours) };
            connection.since = now;
        }
        self.note(Cause::Connected, now);
    }

    pub(super) fn send(&mut self, id: ConnectionId, kind: MessageType, octets: Vec<u8>, now: Duration) {
        let Some(connection) = self.connection_mut(id) else { return };
        connection.unsent += octets.len();
        let is_session = matches!(connection.phase, Phase::Established(_));
        self.report.counters.sent.count(kind);
        self.actions.push_back(Action::Send(id, octets));
        if is_session && !self.timers.is_set(Timer::SendHold(id)) {
            self.start_send_hold_timer(id, now);
        }
    }

    pub(super) fn start_send_hold_timer(&mut self, id: ConnectionId, now: Duration) {
        let time = self.session().and_then(|session| session.negotiated.send_hold_time());
        if let Some(time) = time {
            self.timers.set(Timer::SendHold(id), now + time);
        }
    }

    /// `is_final`: the peer is to forget our routes at once.
    pub(super) fn end_all(&mut self, cause: Cause, notification: Option<Notification>, is_final: bool, now: Duration) {
        for id in self.connections.iter().map(|connection| connection.id).collect::<Vec<_>>() {
            // In OpenConfirm, too: the peer may have its session already, and with it routes of before.
            let ending = notification.clone().map(|it| match self.negotiated(id) {
                Some(negotiated) => negotiated.ending(it, is_final),
                None => it,
            });
            self.end(id, cause, ending, now);
        }
    }

    /// Ends a connection from our side.
    pub(super) fn end(&mut self, id: ConnectionId, cause: Cause, notification: Option<Notification>, now: Duration) {
        let Some(connection) = self.connection(id) else { return };
        let is_connected = !matches!(connection.phase, Phase::Connect);
        self.close(id, notification.filter(|_| is_connected));
        self.forget(id, cause, now);
    }

    pub(super) fn close(&mut self, id: ConnectionId, notification: Option<Notification>) {
        if let Some(notification) = notification {
            self.report.counters.sent.count(MessageType::Notification);
            //= rfc4271#6:close MUST: after a NOTIFICATION the connection is closed
            self.actions.push_back(Action::Send(id, notification.emit()));
        }
        self.actions.push_back(Action::Close(id));
        self.closing.insert(id);
        while self.closing.len() > CLOSING_MAX {
            self.closing.pop_first();
        }
    }

    /// A connection counts no more. Where it was the last one, there is a wait before the next.
    pub(super) fn forget(&mut self, id: ConnectionId, cause: Cause, now: Duration) {
        self.timers.clear_connection(id);
        let Some(at) = self.connections.iter().position(|connection| connection.id == id) else { return };
        let connection = self.connections.remove(at);
        let lasted = now.saturating_sub(connection.since);
        if matches!(connection.phase, Phase::Established(_)) && lasted >= RETRY_MAX {
            self.failures = 0;
        }
        if self.connections.is_empty() && cause != Cause::Stopped {
            let wait = RETRY_MIN.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(RETRY_MAX);
            self.failures = (self.failures + 1).min(u32::BITS);
            let wait = self.random.jittered(wait);
            self.timers.set(Timer::ConnectRetry, now + wait);
        }
        if cause == Cause::Stopped {
            self.failures = 0;
            self.timers.clear(Timer::ConnectRetry);
        }
        self.note(cause, now);
    }
}

impl Connection {
    pub(super) fn new(id: ConnectionId, is_dialled: bool, since: Duration) -> Self {
        Self { id, is_dialled, since, framer: Framer::default(), unsent: 0, phase: Phase::Connect }
    }
}
