//! Who is active: what follows from advertisements and timers (RFC 9568 6.4, RFC 3768 6.4).

use std::{net::IpAddr, time::Duration};

use super::{
    super::{
        Family, Interval,
        packet::{Advertised, Advertisement},
    },
    ALARM_INTERVAL, Alarm, AlarmKind, Cause, Event, GRATUITOUS_GAP_MIN, GRATUITOUS_ROUNDS, GRATUITOUS_SPACING, Heard,
    Ignored, LISTEN_MIN, Peers, Preemption, Purpose, Router, SLEPT_INTERVALS, State, Timer,
    settings::is_link_local,
};

/// What an advertisement is to a router that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rank {
    Leaves,
    Lower,
    /// The same priority, from a lower address.
    EqualLower,
    /// The same priority, from a higher address.
    EqualHigher,
    Higher,
}

impl Router {
    /// Time passes: what has ended with it ends before anything else is looked at.
    pub(super) fn advance(&mut self, now: Duration) {
        // A clock that goes back is taken to stand still.
        let before = self.now;
        self.now = now.max(before);
        match self.state {
            State::Init => {}
            State::Listening { interval, .. } | State::Backup { interval, .. } => {
                if self.now - before > interval.duration() * SLEPT_INTERVALS {
                    self.wake(interval);
                }
                self.timers.set(Timer::Watch, self.now + interval.duration());
            }
            State::Active { valid_until, .. } if self.now >= valid_until => self.step_down(Cause::ValidityOver),
            State::Leaving { limit, .. } if self.now >= limit => self.rest(Cause::NoSuccessor),
            State::Active { .. } | State::Leaving { .. } => {}
        }
    }

    /// It has slept, so that the silence proves nothing: it begins anew.
    fn wake(&mut self, interval: Interval) {
        self.counters.slept += 1;
        let down_at = self.down_at(interval);
        match self.state {
            State::Listening { .. } => {
                self.state = State::Listening { interval, down_at, preempt_at: None };
                self.timers.set(Timer::Listen, self.listened_at(interval));
            }
            State::Backup { .. } => {
                self.state = State::Backup { interval, active_left: false };
                self.timers.set(Timer::ActiveDown, down_at);
                self.timers.clear(Timer::Preempt);
            }
            State::Init | State::Active { .. } | State::Leaving { .. } => {}
        }
    }

    pub(super) fn reason_to_ignore(&self, source: IpAddr, advertisement: &Advertisement) -> Option<Ignored> {
        //= rfc9568#7.1:vrid MUST: an advertisement of a VRID that is not configured here is discarded
        //= rfc3768#7.1:vrid MUST: an advertisement of a VRID that is not configured here is discarded
        if advertisement.vrid() != self.settings.vrid {
            return Some(Ignored::OtherVrid);
        }
        if advertisement.family() != self.family() || Family::of(source) != self.family() {
            return Some(Ignored::OtherFamily);
        }
        if self.settings.address == Some(source) {
            return Some(Ignored::Own);
        }
        match &self.settings.peers {
            Peers::Unicast(peers) if !peers.contains(&source) => Some(Ignored::NotPeer),
            Peers::Unicast(_) | Peers::Group => None,
        }
    }

    pub(super) fn hear(&mut self, source: IpAddr, advertisement: &Advertisement) {
        self.compare(source, advertisement);
        let interval = advertisement.interval();
        let priority = advertisement.priority();
        self.heard = Some(Heard { address: source, priority, interval, last: self.now });
        let Some(rank) = self.rank(source, advertisement).filter(|_| self.state != State::Init) else {
            self.counters.received_idle += 1;
            return;
        };
        match rank {
            Rank::Leaves => self.counters.received_leaves += 1,
            Rank::Lower | Rank::EqualLower => self.counters.received_lower += 1,
            Rank::EqualHigher | Rank::Higher => self.counters.received_higher += 1,
        }
        match self.state {
            State::Init => {}
            State::Listening { interval: known, .. } | State::Backup { interval: known, .. } => {
                self.hear_as_backup(rank, interval, known);
            }
            State::Active { .. } => self.hear_as_active(rank, interval),
            State::Leaving { .. } => match rank {
                Rank::Leaves => {}
                Rank::Lower | Rank::EqualLower | Rank::EqualHigher | Rank::Higher => self.rest(Cause::SuccessorHeard),
            },
        }
    }

    /// `None` where it has no priority of its own.
    fn rank(&self, source: IpAddr, advertisement: &Advertisement) -> Option<Rank> {
        let own = Advertised::from(self.settings.priority?);
        let other = advertisement.priority();
        if other == Advertised::LEAVES {
            return Some(Rank::Leaves);
        }
        Some(match other.cmp(&own) {
            std::cmp::Ordering::Less => Rank::Lower,
            std::cmp::Ordering::Greater => Rank::Higher,
            // Addresses are compared as numbers in network order, as their type is.
            std::cmp::Ordering::Equal if self.settings.address < Some(source) => Rank::EqualHigher,
            std::cmp::Ordering::Equal => Rank::EqualLower,
        })
    }

    fn hear_as_backup(&mut self, rank: Rank, interval: Interval, known: Interval) {
        match rank {
            //= rfc9568#6.4.2:zero MUST: after priority 0 a backup waits for its skew alone
            //= rfc3768#6.4.2:zero MUST: after priority 0 a backup waits for its skew alone
            Rank::Leaves => {
                let skew = self.settings.priority.map_or(Duration::ZERO, |priority| known.skew(priority));
                self.arm(known, self.now + skew, true);
                self.set_preempt(None);
            }
            Rank::Lower => match self.settings.preemption {
                Preemption::Off => self.accept(interval),
                //= rfc9568#6.4.2:lower MUST: a backup that preempts discards a lower priority, and its timer runs on
                //= rfc3768#6.4.2:lower MUST: a backup that preempts discards a lower priority, and its timer runs on
                Preemption::After(Duration::ZERO) => {}
                Preemption::After(delay) => {
                    let at = self.preempt_at().unwrap_or(self.now + delay);
                    self.accept(interval);
                    self.set_preempt(Some(at));
                }
            },
            Rank::EqualLower | Rank::EqualHigher | Rank::Higher => self.accept(interval),
        }
    }

    /// There is an active, and it will be heard again within this interval.
    //= rfc9568#6.4.2:accept MUST: a backup waits anew, by the active's interval, for all that it does not preempt
    //= rfc3768#6.4.2:accept MUST: a backup waits anew for all that it does not preempt
    fn accept(&mut self, interval: Interval) {
        self.arm(interval, self.down_at(interval), false);
        self.set_preempt(None);
    }

    fn preempt_at(&self) -> Option<Duration> {
        match self.state {
            State::Listening { preempt_at, .. } => preempt_at,
            State::Init | State::Backup { .. } | State::Active { .. } | State::Leaving { .. } => {
                self.timers.get(Timer::Preempt)
            }
        }
    }

    /// A delay that begins while listening counts, and nothing comes of it before the end of that.
    pub(super) fn set_preempt(&mut self, at: Option<Duration>) {
        match (&mut self.state, at) {
            (State::Listening { preempt_at, .. }, at) => *preempt_at = at,
            (State::Backup { .. }, Some(at)) => self.timers.set(Timer::Preempt, at),
            (State::Init | State::Backup { .. } | State::Active { .. } | State::Leaving { .. }, _) => {
                self.timers.clear(Timer::Preempt);
            }
        }
    }

    fn arm(&mut self, interval: Interval, down_at: Duration, active_left: bool) {
        match self.state {
            State::Listening { preempt_at, .. } => self.state = State::Listening { interval, down_at, preempt_at },
            State::Backup { .. } => {
                self.state = State::Backup { interval, active_left };
                self.timers.set(Timer::ActiveDown, down_at);
            }
            State::Init | State::Active { .. } | State::Leaving { .. } => return,
        }
        self.timers.set(Timer::Watch, self.now + interval.duration());
    }

    fn hear_as_active(&mut self, rank: Rank, interval: Interval) {
        match rank {
            //= rfc9568#6.4.3:zero MUST: an active answers priority 0 with an advertisement and sets its timer anew
            //= rfc3768#6.4.3:zero MUST: an active answers priority 0 with an advertisement and sets its timer anew
            //= rfc9568#6.4.3:lower MUST: an active answers what is lower, by priority and then address, at once
            Rank::Leaves | Rank::Lower | Rank::EqualLower => {
                self.claim();
                self.announce();
            }
            //= rfc9568#6.4.3:higher MUST: an active that hears what is higher is a backup with that interval
            //= rfc3768#6.4.3:higher MUST: an active that hears what is higher is a backup
            Rank::EqualHigher | Rank::Higher => {
                self.step_down(Cause::HigherHeard);
                // So that the winner answers and announces itself once more, now that this node is silent.
                self.pending = Some(Purpose::Yield);
                self.accept(interval);
            }
        }
    }

    /// What another says of itself that differs from what is configured here.
    //= rfc9568#7.1:interval SHOULD: an interval that differs is reported, not too often
    //= rfc9568#7.1:addresses SHOULD: a list that differs is reported, not too often
    //= rfc9568#8.3.2:owner SHOULD: priority 255 is reported
    fn compare(&mut self, source: IpAddr, advertisement: &Advertisement) {
        let vips = &self.settings.vips;
        let is_same = advertisement.lists_same(vips.listed());
        // The link-local one may be nobody's choice.
        let is_shared = |address: &IpAddr| !is_link_local(address) && vips.carries(address);
        let is_foreign = !is_same && !advertisement.addresses().iter().any(is_shared);
        let same_version = advertisement.version() == self.settings.interval.version();
        let found = [
            (is_foreign, AlarmKind::Foreign),
            (!is_same && !is_foreign, AlarmKind::Vips),
            (same_version && advertisement.interval() != self.settings.interval, AlarmKind::Interval),
            (!same_version, AlarmKind::Version),
            (advertisement.priority() == Advertised::OWNER, AlarmKind::Owner),
        ];
        for (_, kind) in found.into_iter().filter(|(differs, _)| *differs) {
            let now = self.now;
            let new = Alarm { from: source, first: now, last: now, reported: now, count: 0 };
            let alarm = self.alarms.entry(kind).or_insert(new);
            alarm.count += 1;
            (alarm.from, alarm.last) = (source, now);
            if alarm.count == 1 || now - alarm.reported >= ALARM_INTERVAL {
                alarm.reported = now;
                self.tell(Event::Alarm { kind, from: source });
            }
        }
    }

    pub(super) fn expire(&mut self, timer: Timer, due: Duration) {
        match timer {
            // `advance` has looked at them.
            Timer::Watch | Timer::Validity | Timer::Leave => {}
            Timer::Listen => {
                if let State::Listening { interval, down_at, preempt_at } = self.state {
                    self.is_fresh = false;
                    self.enter(State::Backup { interval, active_left: false }, Cause::Listened);
                    self.timers.set(Timer::ActiveDown, down_at.max(self.now));
                    self.set_preempt(preempt_at.map(|at| at.max(self.now)));
                    self.timers.set(Timer::Watch, self.now + interval.duration());
                }
            }
            Timer::ActiveDown => self.reign(self.cause_of_silence()),
            Timer::Preempt => self.reign(Cause::Preempted),
            Timer::Advertise => self.advertise_again(due),
            Timer::Gratuitous => self.announce_round(),
        }
    }

    /// Why `Active_Down_Timer` has ended.
    fn cause_of_silence(&self) -> Cause {
        match self.state {
            State::Backup { active_left: true, .. } => Cause::ActiveLeft,
            State::Backup { interval, active_left: false } => {
                // One that is discarded for its lower priority goes on speaking.
                let speaks =
                    |heard: &Heard| heard.priority != Advertised::LEAVES && self.now < heard.last + interval.validity();
                if self.heard.as_ref().is_some_and(speaks) { Cause::Preempted } else { Cause::Silence }
            }
            State::Init | State::Listening { .. } | State::Active { .. } | State::Leaving { .. } => Cause::Silence,
        }
    }

    //= rfc9568#6.4.3:timer MUST: an active advertises each interval
    //= rfc3768#6.4.3:timer MUST: an active advertises each interval
    fn advertise_again(&mut self, due: Duration) {
        match self.state {
            State::Init | State::Listening { .. } | State::Backup { .. } => {}
            State::Active { .. } => {
                self.claim();
                // Keeps its place, so that small delays do not add up.
                let next = due + self.settings.interval.duration();
                if next > self.now {
                    self.timers.set(Timer::Advertise, next);
                }
            }
            // The first may have been lost.
            State::Leaving { .. } => self.say_goodbye(),
        }
    }

    /// Becomes active.
    //= rfc9568#6.4.2:down MUST: when its timer ends a backup advertises, announces the addresses and is active
    //= rfc3768#6.4.2:down MUST: when its timer ends a backup advertises, announces the addresses and is active
    fn reign(&mut self, cause: Cause) {
        self.reign += 1;
        self.rounds_left = GRATUITOUS_ROUNDS;
        let valid_until = self.now + self.settings.interval.validity();
        self.enter(State::Active { valid_until, holds: false }, cause);
        self.timers.set(Timer::Validity, valid_until);
        self.claim();
    }

    /// Goes on after it had begun to leave.
    pub(super) fn resume(&mut self, valid_until: Duration) {
        self.reign += 1;
        self.rounds_left = GRATUITOUS_ROUNDS;
        self.enter(State::Active { valid_until, holds: true }, Cause::Resumed);
        self.timers.set(Timer::Validity, valid_until);
        self.claim();
    }

    /// An advertisement as active, now; the next an interval later.
    pub(super) fn claim(&mut self) {
        self.pending = Some(Purpose::Claim(self.reign));
        self.timers.set(Timer::Advertise, self.now + self.settings.interval.duration());
    }

    //= rfc9568#6.4.3:answer MUST: an active answers ARP requests and solicitations for the addresses
    //= rfc3768#6.4.3:answer MUST: an active answers ARP requests for the addresses
    pub(super) fn take_sent(&mut self, purpose: Purpose, at: Duration) {
        match (purpose, self.state) {
            (Purpose::Claim(reign), State::Active { valid_until, holds }) => {
                if reign == self.reign {
                    self.take_claim(valid_until.max(at + self.settings.interval.validity()), holds);
                }
            }
            (Purpose::Leave, State::Leaving { valid_until, limit }) => {
                if valid_until < limit {
                    self.state = State::Leaving { valid_until: limit, limit };
                    self.tell(Event::Hold { until: limit });
                }
            }
            (
                Purpose::Claim(_) | Purpose::Yield | Purpose::Leave,
                State::Init | State::Listening { .. } | State::Backup { .. },
            )
            | (Purpose::Yield | Purpose::Leave, State::Active { .. })
            | (Purpose::Claim(_) | Purpose::Yield, State::Leaving { .. }) => {}
        }
    }

    fn take_claim(&mut self, until: Duration, held: bool) {
        self.state = State::Active { valid_until: until, holds: true };
        self.timers.set(Timer::Validity, until);
        self.tell(Event::Hold { until });
        // VIPs are answered by now.
        //= rfc9568#8.1.2:boot MUST: nothing is announced by ARP before the addresses are answered
        //= rfc9568#8.2.2:boot MUST: nothing is announced by ND before the addresses are answered
        //= rfc9568#8.1.2:gratuitous SHOULD: an active announces its addresses by gratuitous ARP
        //= rfc9568#8.2.2:unsolicited SHOULD: an active announces its addresses by unsolicited advertisements
        if !held || self.rounds_left == GRATUITOUS_ROUNDS {
            self.announce();
        }
    }

    /// A burst from now on.
    fn announce(&mut self) {
        self.rounds_left = GRATUITOUS_ROUNDS;
        match self.state {
            // A first advertisement comes first.
            State::Active { holds: true, .. } => self.announce_round(),
            State::Active { holds: false, .. } => {}
            State::Init | State::Listening { .. } | State::Backup { .. } | State::Leaving { .. } => {}
        }
    }

    fn announce_round(&mut self) {
        let earliest = self.last_round.map_or(self.now, |last| last + GRATUITOUS_GAP_MIN);
        if earliest > self.now {
            return self.timers.set(Timer::Gratuitous, earliest);
        }
        self.last_round = Some(self.now);
        self.tell(Event::Gratuitous);
        self.rounds_left = self.rounds_left.saturating_sub(1);
        if self.rounds_left > 0 {
            self.timers.set(Timer::Gratuitous, self.now + GRATUITOUS_SPACING);
        } else if let Some(refresh) = self.settings.refresh {
            self.timers.set(Timer::Gratuitous, self.now + refresh);
        }
    }

    /// From active to backup, in silence.
    fn step_down(&mut self, cause: Cause) {
        let interval = self.settings.interval;
        self.enter(State::Backup { interval, active_left: false }, cause);
        self.timers.set(Timer::ActiveDown, self.down_at(interval));
        self.timers.set(Timer::Watch, self.now + interval.duration());
    }

    pub(super) fn begin_leaving(&mut self, valid_until: Duration) {
        let limit = self.now + self.settings.interval.active_down_max();
        self.enter(State::Leaving { valid_until: valid_until.min(limit), limit }, Cause::Stopped);
        self.timers.set(Timer::Leave, limit);
        self.say_goodbye();
    }

    fn say_goodbye(&mut self) {
        self.pending = Some(Purpose::Leave);
        self.timers.set(Timer::Advertise, self.now + self.settings.interval.duration());
    }

    /// Takes no part any more, and says so where it was active.
    //= rfc9568#6.4.3:shutdown MUST: an active that is stopped sends priority 0 and is in Initialize
    //= rfc3768#6.4.3:shutdown MUST: an active that is stopped sends priority 0 and is in Initialize
    pub(super) fn leave_at_once(&mut self, cause: Cause) {
        let says_goodbye = match self.state {
            State::Init | State::Listening { .. } | State::Backup { .. } => false,
            State::Active { .. } | State::Leaving { .. } => true,
        };
        self.rest(cause);
        if says_goodbye {
            self.pending = Some(Purpose::Leave);
        }
    }

    /// As [`leave_at_once`](Self::leave_at_once), where nothing can be said.
    pub(super) fn vanish(&mut self, cause: Cause) {
        self.rest(cause);
        self.is_fresh = true;
    }

    pub(super) fn rest(&mut self, cause: Cause) {
        if self.state != State::Init {
            self.enter(State::Init, cause);
        }
    }

    //= rfc9568#6.4.1:startup MUST: a router that does not own the addresses starts as a backup with a whole wait
    //= rfc3768#6.4.1:startup MUST: a router that does not own the addresses starts as a backup with a whole wait
    pub(super) fn start_if_possible(&mut self) {
        if !self.missing().is_empty() {
            return;
        }
        let own = self.settings.interval;
        // A slower active that is heard is waited for.
        let heard = self.heard.filter(|heard| heard.may_live(self.now)).map_or(own, |heard| heard.interval);
        let interval = if heard.duration() > own.duration() { heard } else { own };
        let down_at = self.down_at(interval);
        self.enter(State::Listening { interval, down_at, preempt_at: None }, Cause::Started);
        self.timers.set(Timer::Listen, self.listened_at(interval));
        self.timers.set(Timer::Watch, self.now + interval.duration());
    }

    /// When an active that speaks now and never again is held dead.
    fn down_at(&self, interval: Interval) -> Duration {
        self.now + self.settings.priority.map_or(interval.active_down_max(), |priority| interval.active_down(priority))
    }

    fn listened_at(&self, interval: Interval) -> Duration {
        let whole = self.down_at(interval);
        if self.is_fresh { whole.max(self.now + LISTEN_MIN).max(self.now + self.settings.start_delay) } else { whole }
    }

    /// Changes the state. What was due in the old one is not any more, and what was to be said neither.
    //= rfc9568#6.4.2:answer MUST: a backup answers no ARP request and no solicitation for the addresses
    //= rfc3768#6.4.2:answer MUST: a backup answers no ARP request for the addresses
    fn enter(&mut self, state: State, cause: Cause) {
        let (from, to) = (self.state.name(), state.name());
        let answered = self.hold().is_some();
        self.state = state;
        self.since = self.now;
        self.timers.clear_all();
        self.pending = None;
        *self.counters.transitions.entry(cause).or_default() += 1;
        self.tell(Event::Transition { from, to, cause });
        if answered && self.hold().is_none() {
            self.tell(Event::Release { vips: self.settings.vips.all().to_vec() });
        }
    }
}
