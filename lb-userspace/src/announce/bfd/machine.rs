//! One session: when what is sent, and what follows from what is heard or not. Pure: time is an argument, counted by
//! the boot clock, and randomness comes from a seed.
//!
//! Two rules pull at the transmit timer. An interval that falls takes effect at once, measured from the last packet
//! sent (some peers ask for a slow pace until Up and lower it then: a timer left where it was would miss their new
//! detection time, and the session would flap for ever). An interval that the peer must be told of first waits for the
//! end of the poll sequence.

mod heartbeat;
mod sessions;
mod settings;
mod status;
mod transition;
mod winners;

use std::{collections::VecDeque, time::Duration};

use super::packet::{ControlPacket, Diagnostic, Discriminator, Sequence, State};

pub use heartbeat::{Heartbeat, Pulse};
pub use sessions::{
    Counts, DropReason, Endpoint, Hops, Interface, MinimumTtl, OpenError, Path, Port, Received, SESSIONS_MAX, Sessions,
    Slot, TTL_UNTOUCHED, Transmit,
};
pub use settings::{IDLE_INTERVAL, INTERVAL_MAX, INTERVAL_MIN, Random, Settings, SettingsError};
pub use status::{Downs, RemoteStatus, SessionCounts, Status};
pub use transition::{Input, transition};

/// Events that wait to be fetched; the oldest goes first. They are fetched after each packet and timeout, and no one of
/// these makes more than two.
const EVENTS_MAX: usize = 8;
/// Longest time that AdminDown is said, whatever pace the other end has asked for: a stop waits for it.
const LINGER_MAX: Duration = Duration::from_secs(10);
/// Hundredths of the interval by which a packet comes early, at most (RFC 5880 6.8.7).
const JITTER_MAX: u32 = 25;
/// And at least, with a multiplier of 1 (RFC 5880 6.8.7): a single packet at its latest is still in time.
const JITTER_ALONE_MIN: u32 = 10;

/// What the engine hears of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Both ends hear each other.
    Up,
    /// The session was up and is not: what runs over the path is to be closed.
    Down {
        /// What we tell the other end of it.
        diagnostic: Diagnostic,
        /// Why.
        cause: Cause,
    },
    /// The other end holds the session down by order: no word about the path. Comes instead of `Down`.
    RemoteAdminDown {
        /// What it says of it.
        diagnostic: Diagnostic,
    },
    /// Ordered to stop: a packet that says so has left. Does not come where none could be sent.
    AdminDownSent,
    /// Ordered to stop: the other end has been told for a detection time, and the session may be closed.
    Stopped,
}

/// Why a session went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Nothing was heard for a detection time.
    Silence {
        /// Since the last packet that counted.
        silent_for: Duration,
    },
    /// The other end said so.
    Remote {
        /// What it gave as its reason.
        diagnostic: Diagnostic,
    },
    /// The own forwarding plane was reset.
    ForwardingPlane,
}

/// The timers of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    /// The next periodic packet.
    Transmit,
    /// The other end has been silent for too long.
    Detection,
    /// AdminDown has been said for long enough.
    Linger,
}

/// Where a poll sequence stands (RFC 5880 6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Poll {
    /// None runs.
    Idle,
    /// The next periodic packet begins one.
    Wanted,
    /// Packets ask, and no answer has come.
    Asked,
    /// As before, and values have changed since: another follows.
    AskedAndWanted,
}

/// The two intervals of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Intervals {
    transmit: Duration,
    receive: Duration,
}

/// What the other end said last.
#[derive(Clone, Copy, Debug)]
struct Remote {
    discriminator: Discriminator,
    packet: ControlPacket,
    heard: Duration,
}

/// Why a session takes no notice of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session is stopped")]
pub struct IsAdminDown;

/// One session, from its creation to its end.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    local: Discriminator,
    state: State,
    diagnostic: Diagnostic,
    since: Duration,
    remote: Option<Remote>,
    /// What packets say.
    advertised: Intervals,
    /// What is kept to; lags behind `advertised` until a poll sequence has ended.
    in_use: Intervals,
    poll: Poll,
    is_final_owed: bool,
    last_sent: Option<Duration>,
    last_heard: Option<Duration>,
    created: Duration,
    timers: [Option<Duration>; 3],
    is_stop_said: bool,
    is_withheld: bool,
    events: VecDeque<Event>,
    random: Random,
    counts: SessionCounts,
    last_cause: Option<Cause>,
}

impl Session {
    /// Begins in Down, and sends its first packet within a quarter of a second: sessions that begin together do not
    /// send together.
    pub fn new(local: Discriminator, settings: Settings, seed: u64, now: Duration) -> Self {
        let advertised =
            Intervals { transmit: settings.desired_min_tx().max(IDLE_INTERVAL), receive: settings.required_min_rx() };
        let mut session = Self {
            settings,
            local,
            state: State::Down,
            diagnostic: Diagnostic::None,
            since: now,
            remote: None,
            advertised,
            in_use: advertised,
            poll: Poll::Idle,
            is_final_owed: false,
            last_sent: None,
            last_heard: None,
            created: now,
            timers: [None; 3],
            is_stop_said: false,
            is_withheld: false,
            events: VecDeque::with_capacity(EVENTS_MAX),
            random: Random::new(seed),
            counts: SessionCounts::default(),
            last_cause: None,
        };
        //= rfc5881#3:active MUST: single hop: packets are sent unasked
        //= rfc5883#4.3:active MUST: multihop: likewise
        let first = session.random.part(IDLE_INTERVAL, 0, JITTER_MAX);
        session.set_timer(Timer::Transmit, Some(now + first));
        session
    }

    /// A packet has come that belongs to this session and has passed all checks before.
    pub fn handle_packet(&mut self, packet: &ControlPacket, now: Duration) -> Result<(), IsAdminDown> {
        //= rfc5880#6.8.6:remote-values MUST: the sender's state, discriminator, demand and interval are taken over
        let before = self.remote.map(|remote| remote.packet);
        let heard = self.remote.map_or(now, |remote| remote.heard);
        self.remote = Some(Remote { discriminator: packet.my_discriminator, packet: *packet, heard });
        //= rfc5880#6.8.6:final MUST: a poll sequence ends with Final
        if packet.sequence == Sequence::Final {
            self.end_poll(now);
        }
        //= rfc5880#6.8.6:admin-down-discards MUST: held down by order, nothing more is taken from packets
        if self.state == State::AdminDown {
            self.retime(before, now);
            return Err(IsAdminDown);
        }
        self.counts.received += 1;
        let was_admin_down = before.is_some_and(|packet| packet.state == State::AdminDown);
        if let Some((state, diagnostic)) = transition(self.state, Input::Heard(packet.state)) {
            self.enter(state, diagnostic, Some(Cause::Remote { diagnostic: packet.diagnostic }), now);
        }
        if packet.state == State::AdminDown && !was_admin_down {
            self.tell(Event::RemoteAdminDown { diagnostic: packet.diagnostic });
        }
        //= rfc5880#6.8.7:final-answer MUST: Poll is answered by Final at once, whatever the timers say
        self.is_final_owed |= packet.sequence == Sequence::Poll;
        //= rfc5880#6.8.6:received MUST: what is not discarded counts as received for the detection time
        self.last_heard = Some(now);
        if let Some(remote) = &mut self.remote {
            remote.heard = now;
        }
        self.retime(before, now);
        Ok(())
    }

    /// Does what is due by `now`, but for sending.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.is_due(Timer::Detection, now) {
            self.set_timer(Timer::Detection, None);
            let silent_for = self.last_heard.map_or(Duration::ZERO, |heard| now.saturating_sub(heard));
            if let Some((state, diagnostic)) = transition(self.state, Input::Silence) {
                self.enter(state, diagnostic, Some(Cause::Silence { silent_for }), now);
            }
            //= rfc5880#6.8.1:forget-discriminator MUST: the other end's is zero after a detection time of silence
            //= rfc5880#6.8.18:forget-interval SHOULD: so is its wish for less or no packets
            let before = self.remote.take().map(|remote| remote.packet);
            self.retime(before, now);
        }
        if self.is_due(Timer::Linger, now) {
            self.set_timer(Timer::Linger, None);
            self.tell(Event::Stopped);
        }
    }

    /// The next packet that is due at `now`, if the agent is well enough to send it.
    pub fn poll_transmit(&mut self, now: Duration, pulse: Pulse) -> Option<ControlPacket> {
        let may_send = self.may_send(now, pulse);
        if self.is_final_owed {
            self.is_final_owed = false;
            if may_send {
                return Some(self.packet(Sequence::Final));
            }
            self.counts.withheld += 1;
        }
        if !self.is_due(Timer::Transmit, now) {
            return None;
        }
        let packet = may_send.then(|| {
            //= rfc5880#6.5:poll-on-schedule MUST: Poll rides on the periodic packets, and no others are sent for it
            let sequence = match self.poll {
                Poll::Idle => Sequence::Neither,
                Poll::Wanted => {
                    self.poll = Poll::Asked;
                    Sequence::Poll
                }
                Poll::Asked | Poll::AskedAndWanted => Sequence::Poll,
            };
            self.packet(sequence)
        });
        self.is_withheld = packet.is_none();
        if packet.is_some() {
            self.last_sent = Some(now);
        } else {
            self.counts.withheld += 1;
        }
        let wait = self.jittered();
        self.set_timer(Timer::Transmit, self.is_periodic().then_some(now + wait));
        packet
    }

    /// A packet of [`poll_transmit`](Self::poll_transmit) has really left.
    pub fn handle_sent(&mut self) {
        if self.state == State::AdminDown && !self.is_stop_said {
            self.is_stop_said = true;
            self.tell(Event::AdminDownSent);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        earliest(self.timer(Timer::Detection), self.timer(Timer::Linger))
    }

    /// When [`poll_transmit`](Self::poll_transmit) has something to send next.
    #[must_use]
    pub const fn transmit_at(&self) -> Option<Duration> {
        if self.is_final_owed { Some(Duration::ZERO) } else { self.timer(Timer::Transmit) }
    }

    /// The next news.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether packets may leave: neither the engine nor the data plane has been gone for longer than the time in which
    /// the other end would give us up. AdminDown says nothing of being alive and may always be said.
    ///
    /// While not up, the time that the session will have once it is: the slow pace of a lost session must not make room
    /// for a hung agent to come up again.
    #[must_use]
    pub fn may_send(&self, now: Duration, pulse: Pulse) -> bool {
        let limit = match self.state {
            State::AdminDown => return true,
            State::Down | State::Init => self.settings.desired_min_tx() * u32::from(self.settings.detect_mult().get()),
            State::Up => self.promised_detection_time(),
        };
        pulse.is_within(limit, now)
    }

    /// Other settings from here on. The other end is told by a poll sequence.
    pub fn set_settings(&mut self, settings: Settings, now: Duration) {
        //= rfc5880#6.8.12:detect-mult-change MAY: another multiplier goes out with the next packet, without Poll
        self.settings = settings;
        self.advertise(now);
    }

    /// Ordered stop: AdminDown, said for a detection time.
    pub fn stop(&mut self, now: Duration) {
        self.order(Input::Stop, now);
    }

    /// Ends an ordered stop: begins again in Down, and knows nothing of the other end.
    pub fn resume(&mut self, now: Duration) {
        self.order(Input::Resume, now);
    }

    /// The own forwarding plane has lost what it knew: the other end must not rely on it any more.
    pub fn reset_forwarding_plane(&mut self, now: Duration) {
        //= rfc5880#6.8.15:forwarding-plane-reset MUST: diagnostic 4, and Down
        self.order(Input::ForwardingPlaneReset, now);
    }

    /// Where the session stands.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// What the other end calls us by.
    #[must_use]
    pub const fn discriminator(&self) -> Discriminator {
        self.local
    }

    /// Since when the other end has been silent: its last packet that counted, or the session's beginning.
    #[must_use]
    pub fn silent_since(&self) -> Duration {
        self.last_heard.unwrap_or(self.created)
    }

    /// The time of silence after which the other end is given up; `None` while it is not known.
    #[must_use]
    pub fn detection_time(&self) -> Option<Duration> {
        //= rfc5880#6.8.4:detection-time MUST: remote multiplier × max(own receive interval, remote transmit interval)
        let packet = self.remote?.packet;
        Some(self.in_use.receive.max(packet.desired_min_tx) * u32::from(packet.detect_mult.get()))
    }

    /// The interval of the own packets, before jitter.
    #[must_use]
    pub fn transmit_interval(&self) -> Duration {
        //= rfc5880#6.8.2:interval MUST: not more often than the other end receives
        let wished = self.remote.map_or(Duration::ZERO, |remote| remote.packet.required_min_rx);
        self.in_use.transmit.max(wished)
    }

    /// The time of silence after which the other end gives us up.
    fn promised_detection_time(&self) -> Duration {
        self.transmit_interval() * u32::from(self.settings.detect_mult().get())
    }

    fn order(&mut self, input: Input, now: Duration) {
        let Some((state, diagnostic)) = transition(self.state, input) else { return };
        let before = self.remote.map(|remote| remote.packet);
        match input {
            Input::Stop => {
                self.is_stop_said = false;
                self.is_final_owed = false;
            }
            Input::Resume => {
                // Who comes next has heard no other values.
                (self.remote, self.poll) = (None, Poll::Idle);
                self.set_timer(Timer::Linger, None);
            }
            Input::Heard(_) | Input::Silence | Input::ForwardingPlaneReset => {}
        }
        let cause = (input == Input::ForwardingPlaneReset).then_some(Cause::ForwardingPlane);
        self.enter(state, diagnostic, cause, now);
        if input == Input::Stop {
            //= rfc5880#6.8.16:tell-admin-down SHOULD: AdminDown is said for a detection time
            self.set_timer(Timer::Linger, Some(now + self.promised_detection_time().min(LINGER_MAX)));
        }
        self.retime(before, now);
    }

    /// Changes the state, tells the engine, and sends at once: the other end is to know quickly.
    fn enter(&mut self, state: State, diagnostic: Option<Diagnostic>, cause: Option<Cause>, now: Duration) {
        let was_up = self.state == State::Up;
        (self.state, self.since) = (state, now);
        self.diagnostic = diagnostic.unwrap_or(self.diagnostic);
        if state == State::Up {
            self.counts.ups += 1;
            self.tell(Event::Up);
        } else if was_up {
            self.note_down(cause);
        }
        self.advertise(now);
        //= rfc5880#6.8.7:changed-contents SHOULD: a change of state is sent without waiting for the timer
        if self.is_periodic() {
            self.set_timer(Timer::Transmit, Some(now));
        }
    }

    fn note_down(&mut self, cause: Option<Cause>) {
        let is_by_order = self.remote.is_some_and(|remote| remote.packet.state == State::AdminDown);
        let downs = &mut self.counts.downs;
        match cause {
            Some(Cause::Silence { .. }) => downs.silence += 1,
            //= rfc5882#4.2:admin-down SHOULD: an order of the other end is told apart from a failure
            Some(Cause::Remote { .. }) if is_by_order => {
                downs.remote_order += 1;
                return;
            }
            Some(Cause::Remote { .. }) => downs.remote += 1,
            Some(Cause::ForwardingPlane) => downs.forwarding_plane += 1,
            None => downs.own_order += 1,
        }
        if let Some(cause) = cause {
            self.tell(Event::Down { diagnostic: self.diagnostic, cause });
            self.last_cause = Some(cause);
        }
    }

    /// Takes the values over that packets are to say now.
    fn advertise(&mut self, now: Duration) {
        let is_up = self.state == State::Up;
        //= rfc5880#6.8.3:slow-start MUST: at least a second between packets in any state but Up
        let least = if is_up { Duration::ZERO } else { IDLE_INTERVAL };
        let wanted =
            Intervals { transmit: self.settings.desired_min_tx().max(least), receive: self.settings.required_min_rx() };
        let before = self.transmit_interval();
        if wanted != self.advertised {
            //= rfc5880#6.8.3:poll-on-change MUST: a change of either interval begins a poll sequence
            self.advertised = wanted;
            self.poll = match self.poll {
                Poll::Idle | Poll::Wanted => Poll::Wanted,
                Poll::Asked | Poll::AskedAndWanted => Poll::AskedAndWanted,
            };
        }
        //= rfc5880#6.8.3:slower-waits MUST: while Up, a longer transmit interval waits for the end of the poll sequence
        if !is_up || wanted.transmit < self.in_use.transmit {
            self.in_use.transmit = wanted.transmit;
        }
        //= rfc5880#6.8.3:shorter-detection-waits MUST: while Up, a shorter receive interval waits likewise
        if !is_up || wanted.receive > self.in_use.receive {
            self.in_use.receive = wanted.receive;
        }
        self.rearm_transmit(before, now);
        self.rearm_detection();
    }

    fn end_poll(&mut self, now: Duration) {
        match self.poll {
            Poll::Asked => {
                let before = self.transmit_interval();
                self.poll = Poll::Idle;
                self.in_use = self.advertised;
                self.rearm_transmit(before, now);
                self.rearm_detection();
            }
            Poll::AskedAndWanted => self.poll = Poll::Wanted,
            // Answers a question that was not asked.
            Poll::Idle | Poll::Wanted => {}
        }
    }

    /// After what is known of the other end has changed from `before`.
    fn retime(&mut self, before: Option<ControlPacket>, now: Duration) {
        let wished = before.map_or(Duration::ZERO, |packet| packet.required_min_rx);
        self.rearm_transmit(self.in_use.transmit.max(wished), now);
        self.rearm_detection();
    }

    /// After the transmit interval was `before`, or what forbids periodic packets has come or gone.
    fn rearm_transmit(&mut self, before: Duration, now: Duration) {
        if !self.is_periodic() {
            self.set_timer(Timer::Transmit, None);
            return;
        }
        //= rfc5880#6.8.7:recalculate MUST: the interval follows either end's value whenever one changes
        let interval = self.transmit_interval();
        let last = self.last_sent.unwrap_or(now);
        let after_wait = last + self.jittered();
        let next = match self.timer(Timer::Transmit) {
            //= rfc5880#6.8.14:demand-ends MUST: periodic packets begin again when the other end no longer forbids them
            None => after_wait.max(now),
            Some(next) if interval < before => {
                next.min(last + interval * (100 - JITTER_ALONE_MIN) / 100).max(now.min(next))
            }
            Some(next) if interval > before && next > now => after_wait.max(next),
            Some(next) => next,
        };
        self.set_timer(Timer::Transmit, Some(next));
    }

    fn rearm_detection(&mut self) {
        let detection = match self.state {
            // Nothing counts as received; a resumed session begins anew.
            State::AdminDown => None,
            State::Down | State::Init | State::Up => {
                self.remote.and_then(|remote| Some(remote.heard + self.detection_time()?))
            }
        };
        self.set_timer(Timer::Detection, detection);
    }

    /// Whether packets are sent by the timer.
    fn is_periodic(&self) -> bool {
        let Some(Remote { packet, .. }) = self.remote else { return true };
        //= rfc5880#6.8.7:remote-demand MUST: silence while the other end is in demand mode and nothing is polled
        let is_demand = packet.is_demand && self.state == State::Up && packet.state == State::Up;
        //= rfc5880#6.8.7:remote-receives-none MUST: no periodic packets to who receives none
        !(packet.required_min_rx.is_zero() || is_demand && self.poll == Poll::Idle)
    }

    /// The time to the next packet.
    fn jittered(&mut self) -> Duration {
        //= rfc5880#6.8.7:jitter MUST: each packet comes up to a quarter of the interval early
        //= rfc5880#6.8.7:jitter-alone MUST: with a multiplier of 1 between a tenth and a quarter
        let least = if self.settings.detect_mult().get() == 1 { JITTER_ALONE_MIN } else { 0 };
        let interval = self.transmit_interval();
        interval - self.random.part(interval, least, JITTER_MAX)
    }

    fn packet(&mut self, sequence: Sequence) -> ControlPacket {
        self.counts.sent += 1;
        ControlPacket {
            diagnostic: self.diagnostic,
            state: self.state,
            sequence,
            //= rfc5880#6.8.7:control-plane-independent MUST: C is 0, because BFD ends with the agent
            is_control_plane_independent: false,
            is_demand: false,
            detect_mult: self.settings.detect_mult(),
            my_discriminator: self.local,
            your_discriminator: self.remote.map(|remote| remote.discriminator),
            desired_min_tx: self.advertised.transmit,
            required_min_rx: self.advertised.receive,
            required_min_echo_rx: Duration::ZERO,
        }
    }

    fn tell(&mut self, event: Event) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    const fn timer(&self, timer: Timer) -> Option<Duration> {
        self.timers[timer as usize]
    }

    fn is_due(&self, timer: Timer, now: Duration) -> bool {
        self.timer(timer).is_some_and(|at| at <= now)
    }

    const fn set_timer(&mut self, timer: Timer, at: Option<Duration>) {
        self.timers[timer as usize] = at;
    }
}

fn earliest(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
