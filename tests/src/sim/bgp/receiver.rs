//! What a router has of a node: a table of routes that goes by the receiving speaker's rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use lb_userspace::announce::bgp::{machine::Negotiated, packet::GracefulRestart, values::Family};

use super::update::Update;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Learnt {
    pub(super) next_hop: Option<IpAddr>,
    pub(super) is_leaving: bool,
    pub(super) is_stale: bool,
}

/// What the router makes of BFD's Down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnBfdDown {
    /// Routes go, stale ones too: BIRD's `bfd on`.
    Flush,
    /// As if the session had broken: BIRD's `bfd graceful`.
    Keep,
}

/// How a session was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// The connection broke, or another took its place.
    Broke,
    /// Either side sent a NOTIFICATION.
    Notified,
    /// A NOTIFICATION that ends all state.
    HardReset,
    /// BFD is Down.
    Bfd,
}

#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) routes: BTreeMap<IpAddr, Learnt>,
    /// The stream that the session goes over.
    pub(super) session: Option<u64>,
    /// Families whose End-of-RIB has come.
    pub(super) ended: BTreeSet<Family>,
    on_bfd_down: OnBfdDown,
    /// The router helps who restarts.
    is_helper: bool,
    /// What the node said of its restarts.
    restart: Option<GracefulRestart>,
    notification_keeps: bool,
    /// Stale routes go then.
    pub(super) stale_until: Option<Duration>,
}

impl Receiver {
    pub(super) const fn new(on_bfd_down: OnBfdDown, is_helper: bool) -> Self {
        Self {
            routes: BTreeMap::new(),
            session: None,
            ended: BTreeSet::new(),
            on_bfd_down,
            is_helper,
            restart: None,
            notification_keeps: false,
            stale_until: None,
        }
    }

    /// A session has begun. RFC 4724, 4.2: what the node has not forwarded meanwhile goes at once.
    pub(super) fn begin(&mut self, stream: u64, negotiated: &Negotiated) {
        self.session = Some(stream);
        self.ended.clear();
        self.restart = negotiated.peer.graceful_restart.clone().filter(|_| self.is_helper);
        self.notification_keeps = negotiated.notification_keeps;
        self.stale_until = None;
        let restart = self.restart.as_ref();
        let forwarded = |vip: &IpAddr| restart.and_then(|it| it.families.get(&Family::of(*vip))).copied();
        self.routes.retain(|vip, _| forwarded(vip).unwrap_or(false));
    }

    /// Routes stay after a NOTIFICATION.
    pub(super) const fn keeps_notified(&self) -> bool {
        self.notification_keeps && self.restart.is_some()
    }

    /// An UPDATE.
    pub(super) fn learn(&mut self, update: Update) {
        for vip in update.withdrawn {
            self.routes.remove(&vip);
        }
        let Update { next_hop, is_leaving, .. } = update;
        let learnt = update.announced.into_iter().map(|vip| (vip, Learnt { next_hop, is_leaving, is_stale: false }));
        self.routes.extend(learnt);
    }

    /// End-of-RIB: what has not come again goes.
    pub(super) fn end(&mut self, family: Family) {
        self.ended.insert(family);
        self.routes.retain(|vip, learnt| !learnt.is_stale || Family::of(*vip) != family);
    }

    /// The session is gone.
    pub(super) fn lose(&mut self, loss: Loss, now: Duration) {
        self.session = None;
        let keeps = match loss {
            Loss::Broke => true,
            Loss::Notified => self.notification_keeps,
            Loss::HardReset => false,
            Loss::Bfd => self.on_bfd_down == OnBfdDown::Keep,
        };
        let Some(restart) = self.restart.as_ref().filter(|_| keeps) else { return self.flush() };
        // Those of the restart before have not come again.
        self.routes.retain(|vip, it| !it.is_stale && restart.families.contains_key(&Family::of(*vip)));
        self.routes.values_mut().for_each(|learnt| learnt.is_stale = true);
        self.stale_until = Some(now + restart.time.duration());
    }

    /// BFD is Down, whatever the session does.
    pub(super) fn bfd_down(&mut self) {
        if self.on_bfd_down == OnBfdDown::Flush {
            self.flush();
        }
    }

    /// The router has lost all that it knew.
    pub(super) fn forget(&mut self) {
        self.flush();
        (self.session, self.restart, self.notification_keeps) = (None, None, false);
        self.ended.clear();
    }

    fn flush(&mut self) {
        self.routes.clear();
        self.stale_until = None;
    }

    /// The restart time is over.
    pub(super) fn pass(&mut self, now: Duration) {
        if self.stale_until.is_some_and(|until| until <= now) {
            self.stale_until = None;
            self.routes.retain(|_, learnt| !learnt.is_stale);
        }
    }
}
