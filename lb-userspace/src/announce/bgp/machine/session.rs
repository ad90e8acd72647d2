//! What messages do to a connection (RFC 4271, 8.2.2).

use std::{collections::BTreeSet, time::Duration};

use super::{
    super::{
        packet::{
            Frame, Framer, MessageType, Notification, Open, RouteRefresh, cease, code, fsm, keepalive, open_error,
            read_end_of_rib,
        },
        values::Family,
    },
    Cause, ConnectionId, Direction, Endpoints, Event, Negotiated, Peer,
    agree::agree,
    export::{Outgoing, RibOut},
    timers::Timer,
};

/// Octets handed out and not yet taken by the kernel, above which no further UPDATE is built: what is built late is of
/// the latest state.
const UNSENT_OCTETS_MAX: usize = 65_536;
/// KEEPALIVEs are at least so far apart (RFC 4271, 4.4).
const KEEPALIVE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// A connection that the driver has, or is about to have.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) is_dialled: bool,
    /// When its phase began.
    pub(super) since: Duration,
    pub(super) framer: Framer,
    pub(super) unsent: usize,
    pub(super) phase: Phase,
}

/// Where it stands.
#[derive(Debug)]
pub(super) enum Phase {
    Connect,
    OpenSent { endpoints: Endpoints, ours: Box<Open> },
    OpenConfirm { endpoints: Endpoints, negotiated: Box<Negotiated> },
    Established(Box<Session>),
}

/// The one connection that routes go over.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) endpoints: Endpoints,
    pub(super) negotiated: Negotiated,
    pub(super) rib: RibOut,
    pub(super) received_ends: BTreeSet<Family>,
    /// Nothing is waited for any more before End-of-RIB.
    pub(super) must_end: bool,
}

impl Peer {
    /// Whole messages, one after the other, for as long as the connection is there.
    pub(super) fn read(&mut self, id: ConnectionId, mut octets: &[u8], now: Duration) {
        while let Some(connection) = self.connection_mut(id) {
            match connection.framer.next(&mut octets) {
                Ok(Some(frame)) => self.handle_frame(id, &frame, now),
                Ok(None) => return,
                Err(error) => {
                    self.report.counters.header_errors += 1;
                    self.fail(Cause::HeaderError, &error.to_string(), None, now);
                    self.end(id, Cause::HeaderError, error.notification(), now);
                }
            }
        }
    }

    fn handle_frame(&mut self, id: ConnectionId, frame: &Frame, now: Duration) {
        self.report.counters.received.count(frame.kind);
        let Some(connection) = self.connection(id) else { return };
        match (&connection.phase, frame.kind) {
            // Nothing can come over a connection that is not there.
            (Phase::Connect, _) => {}
            (_, MessageType::Notification) => self.handle_notification(id, frame, now),
            (Phase::OpenSent { .. }, MessageType::Open) => self.handle_open(id, frame, now),
            (Phase::OpenConfirm { .. }, MessageType::Keepalive) => self.establish(id, now),
            (Phase::Established(_), MessageType::Keepalive) => self.restart_hold_timer(id, now),
            (Phase::Established(_), MessageType::Update) => {
                self.restart_hold_timer(id, now);
                self.look_for_end_of_rib(id, frame);
            }
            (Phase::Established(_), MessageType::RouteRefresh) => self.handle_refresh(id, frame),
            (Phase::OpenSent { .. }, MessageType::Update | MessageType::Keepalive | MessageType::RouteRefresh) => {
                self.handle_unexpected(id, frame.kind, fsm::IN_OPEN_SENT, now);
            }
            (Phase::OpenConfirm { .. }, MessageType::Open | MessageType::Update | MessageType::RouteRefresh) => {
                self.handle_unexpected(id, frame.kind, fsm::IN_OPEN_CONFIRM, now);
            }
            (Phase::Established(_), MessageType::Open) => {
                self.handle_unexpected(id, frame.kind, fsm::IN_ESTABLISHED, now);
            }
        }
    }

    /// Told once for each family: a peer cannot fill the queue of events with them.
    fn look_for_end_of_rib(&mut self, id: ConnectionId, frame: &Frame) {
        let Some(family) = read_end_of_rib(frame.body()) else { return };
        let Some(Connection { phase: Phase::Established(session), .. }) = self.connection_mut(id) else { return };
        if session.received_ends.insert(family) {
            self.push_event(Event::EndOfRib(family, Direction::Received));
        }
    }

    fn handle_unexpected(&mut self, id: ConnectionId, kind: MessageType, subcode: u8, now: Duration) {
        self.report.counters.unexpected += 1;
        self.fail(Cause::UnexpectedMessage, &format!("the peer sent {kind:?} out of turn"), None, now);
        //= rfc4271#6.6:unexpected MUST: a message out of turn is answered by code 5
        //= rfc6608#3:subcode MUST: with the subcode of the state, and the type of the message
        let notification = Notification::new(code::FSM, subcode, vec![kind.code()]);
        self.end(id, Cause::UnexpectedMessage, Some(notification), now);
    }

    fn handle_notification(&mut self, id: ConnectionId, frame: &Frame, now: Duration) {
        let Some(notification) = Notification::parse(frame.body()) else { return };
        let lacks_parameters = (code::OPEN, open_error::UNSUPPORTED_PARAMETER);
        let is_established = self.connection(id).is_some_and(|it| matches!(it.phase, Phase::Established(_)));
        let is_bare = !is_established && (notification.code(), notification.subcode()) == lacks_parameters;
        self.fail(Cause::NotificationReceived, &notification.to_string(), notification.words(), now);
        //= rfc4271#6.4:close MUST: a NOTIFICATION ends the connection, and is not answered
        self.end(id, Cause::NotificationReceived, None, now);
        //= rfc5492#3:retry SHOULD: a peer that reads no optional parameters is tried again without
        self.is_bare = is_bare && !self.is_bare;
    }

    fn handle_open(&mut self, id: ConnectionId, frame: &Frame, now: Duration) {
        let Some(Connection { phase: Phase::OpenSent { endpoints, ours }, .. }) = self.connection(id) else { return };
        let endpoints = *endpoints;
        let agreed = match Open::parse(frame.body()) {
            Ok(theirs) => {
                agree(&self.settings, ours, theirs).map_err(|refusal| (refusal.to_string(), refusal.notification(ours)))
            }
            Err(error) => Err((error.to_string(), error.notification())),
        };
        let negotiated = match agreed {
            Ok(negotiated) => negotiated,
            Err((detail, notification)) => {
                self.report.counters.open_errors += 1;
                self.fail(Cause::OpenError, &detail, None, now);
                self.end(id, Cause::OpenError, Some(notification), now);
                return;
            }
        };
        if !self.resolve_collision(id, &negotiated, now) {
            return;
        }
        self.peer_hold_time = Some(negotiated.hold_time);
        //= rfc4271#8.2.2:open-sent MUST: an OPEN that is accepted is answered by a KEEPALIVE
        self.send(id, MessageType::Keepalive, keepalive(), now);
        if negotiated.hold_time.duration().is_some() {
            // Where silence is never too long it still is before a session.
            self.timers.clear(Timer::Open(id));
        }
        if let Some(connection) = self.connection_mut(id) {
            connection.phase = Phase::OpenConfirm { endpoints, negotiated: Box::new(negotiated) };
            connection.since = now;
        }
        self.restart_hold_timer(id, now);
        self.restart_keepalive_timer(id, now);
        self.note(Cause::OpenReceived, now);
    }

    fn establish(&mut self, id: ConnectionId, now: Duration) {
        let Some(connection) = self.connection_mut(id) else { return };
        let Phase::OpenConfirm { endpoints, negotiated } = &connection.phase else { return };
        let (endpoints, negotiated) = (*endpoints, Negotiated::clone(negotiated));
        let rib = RibOut::default();
        let received_ends = BTreeSet::new();
        let session = Session { endpoints, negotiated: negotiated.clone(), rib, received_ends, must_end: false };
        connection.phase = Phase::Established(Box::new(session));
        connection.since = now;
        self.is_first = false;
        self.is_bare = false;
        self.report.counters.established += 1;
        self.timers.clear(Timer::ConnectRetry);
        self.timers.clear(Timer::Open(id));
        self.restart_hold_timer(id, now);
        self.timers.set(Timer::EndOfRib(id), now + negotiated.end_of_rib_time());
        self.note(Cause::KeepaliveReceived, now);
        // A dial that is out, or a connection without an OPEN: there is nothing left for them to win.
        let rest: Vec<_> = self.connections.iter().map(|it| it.id).filter(|other| *other != id).collect();
        for other in rest {
            self.end(other, Cause::Collision, Some(Notification::cease(cease::COLLISION)), now);
        }
        self.push_event(Event::Negotiated(Box::new(negotiated)));
        self.want_all();
    }

    fn handle_refresh(&mut self, id: ConnectionId, frame: &Frame) {
        let Some(Connection { phase: Phase::Established(session), .. }) = self.connection_mut(id) else { return };
        match RouteRefresh::parse(frame.body()) {
            //= rfc2918#4:answer MUST: a request is answered by all routes of its family
            Some(RouteRefresh(family)) if session.negotiated.families.contains(&family) => session.rib.refresh(family),
            //= rfc2918#4:ignore MUST: one for a family that was not agreed on is ignored
            Some(_) | None => self.report.counters.refreshes_ignored += 1,
        }
    }

    pub(super) fn restart_hold_timer(&mut self, id: ConnectionId, now: Duration) {
        //= rfc4271#8.2.2:hold-restart MUST: each KEEPALIVE and UPDATE of the peer restarts the hold timer
        match self.negotiated(id).and_then(|negotiated| negotiated.hold_time.duration()) {
            Some(hold) => self.timers.set(Timer::Hold(id), now + hold),
            None => self.timers.clear(Timer::Hold(id)),
        }
    }

    pub(super) fn restart_keepalive_timer(&mut self, id: ConnectionId, now: Duration) {
        let Some(interval) = self.negotiated(id).and_then(Negotiated::keepalive_interval) else { return };
        //= rfc4271#4.4:rate MUST: KEEPALIVEs are at least a second apart
        let interval = self.random.jittered(interval).max(KEEPALIVE_INTERVAL_MIN);
        self.timers.set(Timer::Keepalive(id), now + interval);
    }

    /// The agreement of a connection that has come so far.
    pub(super) fn negotiated(&self, id: ConnectionId) -> Option<&Negotiated> {
        match &self.connection(id)?.phase {
            Phase::Connect | Phase::OpenSent { .. } => None,
            Phase::OpenConfirm { negotiated, .. } => Some(negotiated),
            Phase::Established(session) => Some(&session.negotiated),
        }
    }

    /// The next message with routes, where there is room for one.
    pub(super) fn produce(&mut self, now: Duration) {
        let is_complete = self.routes_complete;
        let Self { connections, settings, .. } = self;
        let Some((id, session)) = connections.iter_mut().find_map(|connection| match &mut connection.phase {
            Phase::Established(session) if connection.unsent < UNSENT_OCTETS_MAX => Some((connection.id, session)),
            Phase::Connect | Phase::OpenSent { .. } | Phase::OpenConfirm { .. } | Phase::Established(_) => None,
        }) else {
            return;
        };
        let Session { rib, negotiated, must_end, .. } = &mut **session;
        let ends = (is_complete || *must_end).then_some(&negotiated.families);
        let Some(outgoing) = rib.next_message(negotiated.encoding(settings), ends) else { return };
        let octets = match outgoing {
            Outgoing::Update(octets) => octets,
            Outgoing::EndOfRib(family, octets) => {
                self.push_event(Event::EndOfRib(family, Direction::Sent));
                octets
            }
        };
        self.send(id, MessageType::Update, octets, now);
        self.restart_keepalive_timer(id, now);
    }
}
