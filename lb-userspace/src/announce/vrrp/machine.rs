//! One virtual router on one interface. Pure: time is an argument, by a clock that goes on while the node sleeps
//! (`CLOCK_BOOTTIME`), counted from any origin.
//!
//! Who answers for the VIPs is never decided by the state alone: answering has an end, [`Event::Hold`], and only an
//! advertisement that has really been sent moves it, to that moment and three intervals. Others hold an active dead
//! later than that, by their skew. So a node that stands still (a hung agent, SIGSTOP, a paused VM) stops answering
//! before another begins, without running any code. When it goes on, each verb first looks at the time:
//! - an active whose validity is over sends nothing and answers nothing any more. It is a backup, and listens for a
//!   whole `Active_Down_Interval`;
//! - what it has handed to the driver before carries a time after which it must not be sent ([`Transmit::not_after`]),
//!   and is not believed when sent later;
//! - a backup has a timer for each interval, and where two have passed without a call its silence begins anew: it heard
//!   nobody because it slept.
//!
//! The driver reads its socket empty before it calls [`Router::handle_timeout`], takes the time before it sends, and
//! after each verb fetches events, then transmits.

mod election;
mod settings;
mod status;
mod timers;

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

pub use settings::{
    InvalidSettings, InvalidVips, Peers, Preemption, REFRESH, REFRESH_MIN, Settings, UNICAST_PEERS_MAX, VIPS_MAX, Vips,
};
pub use status::{Alarm, AlarmKind, Cause, Counters, Heard, Ignored, Missing, StateName, Status};
use timers::{Timer, Timers};

use super::{
    Family, Interval, Priority, Vrid,
    packet::{Advertised, Advertisement, Malformed},
};

/// Rounds of gratuitous announcements of who becomes active, or has shown another that it is. One may be lost, and some
/// hosts ignore the first after a change.
pub const GRATUITOUS_ROUNDS: u8 = 5;
/// Between them.
pub const GRATUITOUS_SPACING: Duration = Duration::from_millis(250);
/// Least time between two rounds whatever happens: another active that cannot hear us must not make us flood the
/// segment.
pub const GRATUITOUS_GAP_MIN: Duration = Duration::from_millis(20);
/// Least time that a VRID is listened to after the start or a link's return: one advertisement at the protocol's
/// default interval of a second, and a tenth.
pub const LISTEN_MIN: Duration = Duration::from_millis(1100);
/// Between two events of one kind of alarm.
pub const ALARM_INTERVAL: Duration = Duration::from_secs(60);
/// Events that wait to be fetched. A verb makes a handful.
pub const EVENTS_MAX: usize = 64;
/// Intervals without any call after which a router has slept. The watch calls it once an interval.
const SLEPT_INTERVALS: u32 = 2;

/// Where a virtual router stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Takes no part: [`Router::missing`] says why.
    Init,
    /// Hears who is there.
    Listening {
        /// The active's, or its own while none was heard.
        interval: Interval,
        /// When an active that was heard is held dead; nothing comes of it before it is a backup.
        down_at: Duration,
        /// When it may preempt a lower active that was heard.
        preempt_at: Option<Duration>,
    },
    /// Another is active, or about to be held dead.
    Backup {
        /// The active's, or its own while none was heard.
        interval: Interval,
        /// Whether the active has said that it leaves.
        active_left: bool,
    },
    /// Active.
    Active {
        /// It goes on until then, unless an advertisement is sent.
        valid_until: Duration,
        /// Whether one has been sent, so that VIPs are answered.
        holds: bool,
    },
    /// Has sent priority 0, and answers until it hears its successor.
    Leaving {
        /// VIPs are answered until then.
        valid_until: Duration,
        /// It is gone by then.
        limit: Duration,
    },
}

impl State {
    /// Without its data.
    #[must_use]
    pub const fn name(self) -> StateName {
        match self {
            Self::Init => StateName::Init,
            Self::Listening { .. } => StateName::Listening,
            Self::Backup { .. } => StateName::Backup,
            Self::Active { .. } => StateName::Active,
            Self::Leaving { .. } => StateName::Leaving,
        }
    }
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Goes on answering until the successor is heard.
    MakeBeforeBreak,
    /// Priority 0, and gone.
    Immediate,
}

/// What an advertisement is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// An active's, of this reign: extends the validity.
    Claim(u64),
    /// The last one of a router that steps down: the winner is to answer it.
    Yield,
    /// Priority 0.
    Leave,
}

/// An advertisement's number, never given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransmitId(u64);

/// To be sent, to the group or to each unicast peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// For [`Router::sent`] or [`Router::unsent`].
    pub id: TransmitId,
    /// What.
    pub advertisement: Advertisement,
    /// From which address.
    pub source: IpAddr,
    /// Not from then on: another may be active by then.
    pub not_after: Duration,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A change of state.
    Transition {
        /// Left.
        from: StateName,
        /// Entered.
        to: StateName,
        /// Why.
        cause: Cause,
    },
    /// All VIPs are answered until then.
    Hold {
        /// By the router's clock.
        until: Duration,
    },
    /// These are not answered from here on.
    Release {
        /// Which.
        vips: Vec<IpAddr>,
    },
    /// One round for all VIPs, now: for IPv4 gratuitous ARP in both forms (request and reply), for IPv6 an unsolicited
    /// neighbour advertisement with Router and Override. Later rounds are events of their own.
    Gratuitous,
    /// Another router differs.
    Alarm {
        /// In what.
        kind: AlarmKind,
        /// Who.
        from: IpAddr,
    },
}

/// A virtual router.
#[derive(Debug)]
pub struct Router {
    settings: Settings,
    is_stopped: bool,
    is_up: bool,
    /// No listening has ended since the start or the link's return.
    is_fresh: bool,
    state: State,
    since: Duration,
    /// The latest time given.
    now: Duration,
    timers: Timers,
    /// To be fetched.
    pending: Option<Purpose>,
    /// Fetched, and not yet said to be sent: its purpose and end.
    in_flight: Option<(TransmitId, Purpose, Duration)>,
    next_id: u64,
    reign: u64,
    rounds_left: u8,
    last_round: Option<Duration>,
    events: VecDeque<Event>,
    heard: Option<Heard>,
    counters: Counters,
    alarms: BTreeMap<AlarmKind, Alarm>,
}

impl Router {
    /// Starts where nothing is missing; the interface is taken to be up.
    ///
    /// # Errors
    /// Settings that do not fit together.
    pub fn new(settings: Settings, now: Duration) -> Result<Self, InvalidSettings> {
        settings.check()?;
        let mut router = Self {
            settings,
            is_stopped: false,
            is_up: true,
            is_fresh: true,
            state: State::Init,
            since: now,
            now,
            timers: Timers::default(),
            pending: None,
            in_flight: None,
            next_id: 0,
            reign: 0,
            rounds_left: 0,
            last_round: None,
            events: VecDeque::new(),
            heard: None,
            counters: Counters::default(),
            alarms: BTreeMap::new(),
        };
        router.start_if_possible();
        Ok(router)
    }

    /// Hears an advertisement that has passed the checks of [`packet`](super::packet).
    pub fn handle_packet(&mut self, source: IpAddr, advertisement: &Advertisement, now: Duration) {
        self.advance(now);
        match self.reason_to_ignore(source, advertisement) {
            Some(reason) => *self.counters.ignored.entry(reason).or_default() += 1,
            None => self.hear(source, advertisement),
        }
    }

    /// Does what is due by `now`.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.advance(now);
        while let Some((due, timer)) = self.timers.take_due(self.now) {
            self.expire(timer, due);
        }
    }

    /// The next advertisement to be sent. One waits at most: a later one says more.
    pub fn poll_transmit(&mut self, now: Duration) -> Option<Transmit> {
        self.advance(now);
        let purpose = self.pending.take()?;
        let source = self.settings.address?;
        let priority = match purpose {
            Purpose::Claim(_) | Purpose::Yield => self.settings.priority?.into(),
            Purpose::Leave => Advertised::LEAVES,
        };
        let soon = self.now + self.settings.interval.duration();
        let not_after = match (purpose, self.state) {
            (Purpose::Claim(_), State::Active { valid_until, .. }) => valid_until,
            (Purpose::Leave, State::Leaving { limit, .. }) => limit,
            (Purpose::Yield | Purpose::Leave, State::Init | State::Listening { .. } | State::Backup { .. }) => soon,
            // Changes of state have taken it back.
            (
                Purpose::Claim(_),
                State::Init | State::Listening { .. } | State::Backup { .. } | State::Leaving { .. },
            )
            | (Purpose::Yield | Purpose::Leave, State::Active { .. })
            | (Purpose::Yield, State::Leaving { .. }) => return None,
        };
        let listed = self.settings.vips.listed().to_vec();
        let advertisement = Advertisement::new(self.settings.vrid, priority, self.settings.interval, listed).ok()?;
        let id = TransmitId(self.next_id);
        self.next_id += 1;
        self.in_flight = Some((id, purpose, not_after));
        Some(Transmit { id, advertisement, source, not_after })
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.timers.next()
    }

    /// The next news.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// An advertisement has really been sent (to one unicast peer at least). `at` is the time *before* it was.
    pub fn sent(&mut self, id: TransmitId, at: Duration) {
        self.advance(at);
        let fetched = self.in_flight.take_if(|(flying, ..)| *flying == id);
        if let Some((_, purpose, not_after)) = fetched {
            match purpose {
                Purpose::Claim(_) | Purpose::Yield => self.counters.sent += 1,
                Purpose::Leave => self.counters.sent_leaves += 1,
            }
            // What left after its end is believed by nobody, least by its sender.
            if at < not_after {
                self.take_sent(purpose, at);
            }
        }
    }

    /// An advertisement was not sent: the socket failed, or its time was over.
    pub fn unsent(&mut self, id: TransmitId) {
        if self.in_flight.take_if(|(flying, ..)| *flying == id).is_some() {
            self.counters.unsent += 1;
        }
    }

    /// A packet that was for this virtual router was discarded by a check of [`packet`](super::packet).
    pub fn count_malformed(&mut self, reason: Malformed) {
        *self.counters.malformed.entry(reason).or_default() += 1;
    }

    /// What it competes with from here on. `None`: it may hold nothing, so that an active leaves at once, with priority
    /// 0.
    pub fn set_priority(&mut self, priority: Option<Priority>, now: Duration) {
        self.advance(now);
        if self.settings.priority == priority {
            return;
        }
        self.settings.priority = priority;
        let Some(priority) = priority else {
            return self.leave_at_once(Cause::NotEligible);
        };
        match self.state {
            State::Init => self.start_if_possible(),
            State::Leaving { .. } => {}
            State::Listening { .. } | State::Backup { .. } => {
                // A last word under another priority might be a claim.
                self.pending = None;
                if self.heard.is_some_and(|heard| heard.priority >= priority.into()) {
                    self.set_preempt(None);
                }
            }
            // Others learn of it now.
            State::Active { .. } => self.claim(),
        }
    }

    /// What it is about from here on.
    ///
    /// # Errors
    /// VIPs of the other family.
    pub fn set_vips(&mut self, vips: Vips, now: Duration) -> Result<(), InvalidSettings> {
        if vips.family() != self.settings.vips.family() {
            return Err(InvalidSettings::Family(self.settings.vrid));
        }
        self.advance(now);
        let old = std::mem::replace(&mut self.settings.vips, vips);
        let new = &self.settings.vips;
        if old == *new {
            return Ok(());
        }
        match self.state {
            State::Init | State::Listening { .. } | State::Backup { .. } => {}
            State::Active { .. } | State::Leaving { .. } => {
                let kept: std::collections::BTreeSet<_> = new.all().iter().collect();
                let gone: Vec<_> = old.all().iter().filter(|vip| !kept.contains(vip)).copied().collect();
                if !gone.is_empty() {
                    self.tell(Event::Release { vips: gone });
                }
            }
        }
        match self.state {
            State::Init | State::Listening { .. } | State::Backup { .. } | State::Leaving { .. } => {}
            State::Active { .. } => {
                self.claim();
                self.rounds_left = GRATUITOUS_ROUNDS;
            }
        }
        Ok(())
    }

    /// The address that it sends from from here on; `None` while the interface has none (or it is tentative).
    ///
    /// # Errors
    /// An address of the other family, or an IPv6 one that is not link-local.
    pub fn set_address(&mut self, address: Option<IpAddr>, now: Duration) -> Result<(), InvalidSettings> {
        self.settings.check_address(address)?;
        self.advance(now);
        if self.settings.address == address {
            return Ok(());
        }
        self.settings.address = address;
        if address.is_none() {
            self.vanish(Cause::NoAddress);
            return Ok(());
        }
        match self.state {
            State::Init => self.start_if_possible(),
            State::Listening { .. } | State::Backup { .. } | State::Leaving { .. } => {}
            State::Active { .. } => self.claim(),
        }
        Ok(())
    }

    /// Whether the interface is up.
    pub fn set_link(&mut self, is_up: bool, now: Duration) {
        self.advance(now);
        if self.is_up == is_up {
            return;
        }
        self.is_up = is_up;
        if is_up {
            self.is_fresh = true;
            self.start_if_possible();
        } else {
            self.vanish(Cause::InterfaceDown);
        }
    }

    /// Stops it.
    //= rfc9568#6.4.2:shutdown MUST: a backup that is stopped cancels its timer and is in Initialize
    //= rfc3768#6.4.2:shutdown MUST: a backup that is stopped cancels its timer and is in Initialize
    pub fn stop(&mut self, how: Stop, now: Duration) {
        self.advance(now);
        self.is_stopped = true;
        match (self.state, how) {
            (State::Active { valid_until, holds: true }, Stop::MakeBeforeBreak) => self.begin_leaving(valid_until),
            (State::Leaving { .. }, Stop::MakeBeforeBreak) => {}
            (
                State::Init
                | State::Listening { .. }
                | State::Backup { .. }
                | State::Active { .. }
                | State::Leaving { .. },
                _,
            ) => self.leave_at_once(Cause::Stopped),
        }
    }

    /// Starts it after a stop. One that is still leaving goes on as active.
    pub fn start(&mut self, now: Duration) {
        self.advance(now);
        self.is_stopped = false;
        match self.state {
            State::Init => {
                self.is_fresh = true;
                self.start_if_possible();
            }
            State::Listening { .. } | State::Backup { .. } | State::Active { .. } => {}
            State::Leaving { valid_until, .. } => self.resume(valid_until),
        }
    }

    /// Where it stands.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Until when VIPs are answered. `None`: they are not.
    #[must_use]
    pub const fn hold(&self) -> Option<Duration> {
        match self.state {
            State::Init | State::Listening { .. } | State::Backup { .. } | State::Active { holds: false, .. } => None,
            State::Active { valid_until, holds: true } | State::Leaving { valid_until, .. } => Some(valid_until),
        }
    }

    /// Its VIPs.
    #[must_use]
    pub const fn vips(&self) -> &Vips {
        &self.settings.vips
    }

    /// Its configuration as it stands.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The MAC that VIPs are answered with and advertisements leave from, where it is not the interface's own.
    //= rfc9568#7.2:mac MUST: advertisements leave from the virtual MAC, where it is on
    //= rfc3768#7.2:mac MUST: advertisements leave from the virtual MAC, where it is on
    #[must_use]
    pub fn virtual_mac(&self) -> Option<[u8; 6]> {
        self.settings.has_virtual_mac.then(|| self.settings.vrid.mac(self.family()))
    }

    /// All that it lacks to take part.
    #[must_use]
    pub fn missing(&self) -> Vec<Missing> {
        let all = [
            (self.is_stopped, Missing::Stopped),
            (!self.is_up, Missing::InterfaceUp),
            (self.settings.address.is_none(), Missing::Address),
            (self.settings.priority.is_none(), Missing::Eligibility),
        ];
        all.into_iter().filter_map(|(lacks, what)| lacks.then_some(what)).collect()
    }

    /// Everything that is shown of it.
    #[must_use]
    pub fn status(&self) -> Status {
        let vips = &self.settings.vips;
        Status {
            vrid: self.settings.vrid,
            family: vips.family(),
            version: self.settings.interval.version(),
            state: self.state.name(),
            since: self.since,
            missing: self.missing(),
            priority: self.settings.priority,
            address: self.settings.address,
            hold_until: self.hold(),
            heard: self.heard,
            vips: vips.all().len(),
            listed: vips.listed().len(),
            counters: self.counters.clone(),
            alarms: self.alarms.clone(),
        }
    }

    /// Of its VIPs.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.settings.vips.family()
    }

    /// Its number.
    #[must_use]
    pub const fn vrid(&self) -> Vrid {
        self.settings.vrid
    }

    fn tell(&mut self, event: Event) {
        if let (Some(Event::Hold { until: old }), Event::Hold { until }) = (self.events.back_mut(), &event) {
            *old = *until;
            return;
        }
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
            self.counters.events_lost += 1;
        }
        self.events.push_back(event);
    }
}
