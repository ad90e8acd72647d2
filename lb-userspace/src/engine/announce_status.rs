//! What is announced, in the words of the status.

use std::{collections::BTreeSet, net::IpAddr};

use serde::Serialize;

use super::Engine;
use crate::{
    announce::{
        bgp::{
            self,
            machine::{NotAnnounced, State},
        },
        driver::{Report, RouterReport, boot_time},
        eligibility::{Attributes, Decision, Means, Reason},
        vrrp::{Family, Version},
        warnings::Warning,
    },
    net::links::mac_text,
    status::{
        AgainstStatus, AlarmStatus, AnnounceStatus, ConflictStatus, HeardStatus, MeansStatus, PeerErrorStatus,
        RouterStatus, VipStatus,
    },
};

impl Engine {
    /// What is announced, for the status.
    pub(super) fn announce_status(&self) -> AnnounceStatus {
        if !self.announcing.is_busy {
            let leaving = self.leaving_word().map(str::to_owned);
            return AnnounceStatus { leaving, ..AnnounceStatus::default() };
        }
        let (report, error) = match &self.announcing.announcer {
            Ok(announcer) => match announcer.report() {
                Some(report) => (report, None),
                None => (Report::default(), Some("the thread that announces does not answer".to_owned())),
            },
            Err(error) => (Report::default(), Some(error.clone())),
        };
        let means = |(means, decision): &(Means, Decision), vip: IpAddr| {
            let warnings = self.announcing.warnings.get(&vip);
            means_status(means, decision, vip, warnings, &report, self.peers.report())
        };
        let vip = |(vip, all): (&IpAddr, &Vec<(Means, Decision)>)| VipStatus {
            vip: *vip,
            means: all.iter().map(|one| means(one, *vip)).collect(),
            warnings: self.announcing.warnings.get(vip).into_iter().flatten().map(ToString::to_string).collect(),
        };
        let bfd = self.bfd_shown();
        AnnounceStatus {
            vips: self.announcing.decisions.iter().map(vip).collect(),
            routers: report.routers.iter().map(router_status).collect(),
            conflicts: report.conflicts.iter().map(conflict_status).collect(),
            malformed: report.malformed.iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect(),
            leaving: self.leaving_word().map(str::to_owned),
            bgp: self.bgp_status(),
            bgp_refused: self.bgp_refused(),
            bfd: bfd.sessions,
            bfd_dropped: bfd.dropped,
            bfd_scheduling: bfd.scheduling,
            error,
        }
    }
}

fn means_status(
    means: &Means,
    decision: &Decision,
    vip: IpAddr,
    warnings: Option<&BTreeSet<Warning>>,
    report: &Report,
    peers: &bgp::driver::Report,
) -> MeansStatus {
    let mut against: Vec<AgainstStatus> = match (decision, means) {
        (Decision::Withhold(reasons), _) => reasons.iter().map(against).collect(),
        (Decision::Announce(_), Means::Bgp { peer, .. }) => {
            held_back(peers, peer, vip).map(not_announced).into_iter().collect()
        }
        (Decision::Announce(_), Means::Always { .. } | Means::Vrrp { .. }) => Vec::new(),
    };
    let router = match means {
        Means::Always { .. } | Means::Bgp { .. } => None,
        Means::Vrrp { interface, vrid, .. } => report.routers.iter().find(|router| {
            router.interface == *interface && router.status.vrid == *vrid && router.status.family == Family::of(vip)
        }),
    };
    // What a node hands over it serves until then.
    let is_served = match decision {
        Decision::Announce(_) => true,
        Decision::Withhold(reasons) => reasons.iter().all(|reason| *reason == Reason::Draining),
    };
    let holds = match means {
        Means::Always { interface } => report.always.binary_search(&(interface.clone(), vip)).is_ok(),
        Means::Vrrp { .. } => is_served && router.is_some_and(|router| router.status.hold_until.is_some()),
        Means::Bgp { .. } => against.is_empty(),
    };
    if !holds && against.is_empty() {
        against.extend(warnings.into_iter().flatten().filter_map(|warning| shared_fate(means, warning)));
    }
    // Whoever was heard last may have left, which 0 says, or fallen silent.
    let now = boot_time();
    let heard = router.and_then(|router| router.status.heard);
    let heard = heard.filter(|heard| heard.priority.get() != 0 && heard.may_live(now));
    let holder = heard.filter(|_| !holds).map(|heard| heard.address);
    let is_going = matches!(decision, Decision::Announce(Attributes { is_going: true, .. }));
    MeansStatus { means: means.to_string(), holds, is_going, holder, against }
}

/// Why a peer has not been sent what it is to have.
fn held_back(peers: &bgp::driver::Report, peer: &str, vip: IpAddr) -> Option<NotAnnounced> {
    let found = peers.peers.iter().find(|report| report.name == *peer);
    match found.and_then(|report| report.status.as_ref()) {
        Some(status) if status.state == State::Established => {
            status.held_back.get(&bgp::values::Family::of(vip)).copied()
        }
        Some(_) | None => Some(NotAnnounced::NoSession),
    }
}

/// That another node has the virtual router, which may not serve this VIP of it.
fn shared_fate(means: &Means, warning: &Warning) -> Option<AgainstStatus> {
    let (Means::Vrrp { group, vrid, .. }, Warning::SharedFate { group: shared, vrid: number }) = (means, warning)
    else {
        return None;
    };
    let is_it = (group, vrid) == (shared, number);
    is_it.then(|| AgainstStatus { reason: "shared_fate".to_owned(), text: warning.to_string() })
}

fn not_announced(reason: NotAnnounced) -> AgainstStatus {
    AgainstStatus { reason: reason.name().to_owned(), text: reason.to_string() }
}

fn against(reason: &Reason) -> AgainstStatus {
    AgainstStatus { reason: reason.name().to_owned(), text: reason.to_string() }
}

fn conflict_status(conflict: &crate::announce::driver::ConflictReport) -> ConflictStatus {
    let crate::announce::driver::ConflictReport { interface, vip, mac, count } = conflict;
    ConflictStatus { vip: *vip, ifindex: *interface, mac: mac.clone(), count: *count }
}

fn router_status(router: &RouterReport) -> RouterStatus {
    let RouterReport { group, interface, virtual_mac, since_seconds, last_error, status } = router;
    let counters = &status.counters;
    let ignored = counters.ignored.iter().map(|(reason, count)| (reason.name().to_owned(), *count));
    let malformed = counters.malformed.iter().map(|(reason, count)| (reason.name().to_owned(), *count));
    let alarm = |alarm: &crate::announce::vrrp::machine::Alarm| AlarmStatus { from: alarm.from, count: alarm.count };
    RouterStatus {
        group: group.clone(),
        interface: interface.clone(),
        family: status.family.to_string().to_lowercase(),
        vrid: status.vrid.get(),
        version: match status.version {
            Version::V2 => 2,
            Version::V3 => 3,
        },
        state: word(status.state),
        since_seconds: *since_seconds,
        priority: status.priority.map(|priority| priority.get()),
        address: status.address,
        virtual_mac: virtual_mac.map(|(_, mac)| mac_text(mac)),
        missing: status.missing.iter().map(ToString::to_string).collect(),
        heard: status.heard.map(|heard| HeardStatus { address: heard.address, priority: heard.priority.get() }),
        vips: status.vips,
        listed: status.listed,
        sent: counters.sent + counters.sent_leaves,
        received: counters.received_higher
            + counters.received_lower
            + counters.received_leaves
            + counters.received_idle,
        unsent: counters.unsent,
        transitions: counters.transitions.iter().map(|(cause, count)| (word(cause), *count)).collect(),
        discarded: ignored.chain(malformed).collect(),
        alarms: status.alarms.iter().map(|(kind, record)| (kind.name().to_owned(), alarm(record))).collect(),
        last_error: last_error.as_ref().map(|error| PeerErrorStatus {
            seconds_ago: error.seconds_ago,
            cause: error.cause.to_owned(),
            detail: error.detail.clone(),
            words: None,
        }),
    }
}

/// As it is serialized.
pub(super) fn word(value: impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::announce::vrrp::{
        Interval, Vrid,
        machine::{Peers, Preemption, Router, Settings, Status, Vips},
    };

    /// A virtual router of this node, active or not.
    fn router(is_active: bool) -> RouterReport {
        let vrid = Vrid::new(7).unwrap();
        let settings = Settings {
            vrid,
            interval: Interval::new(Version::V3, Duration::from_secs(1)).unwrap(),
            priority: None,
            preemption: Preemption::Off,
            start_delay: Duration::ZERO,
            address: None,
            vips: Vips::new(vrid, Family::Ipv4, vec![IpAddr::from([192, 0, 2, 1])]).unwrap(),
            peers: Peers::Group,
            has_virtual_mac: false,
            refresh: None,
        };
        let status = Router::new(settings, Duration::ZERO).unwrap().status();
        let hold_until = is_active.then_some(Duration::MAX);
        let (group, interface) = ("core".to_owned(), "eth0".to_owned());
        let status = Status { hold_until, ..status };
        RouterReport { group, interface, virtual_mac: None, since_seconds: 0, last_error: None, status }
    }

    #[test]
    fn a_vip_is_held_where_its_router_is_and_it_is_served_and_else_has_the_reason() {
        let (vip, vrid) = (IpAddr::from([192, 0, 2, 1]), Vrid::new(7).unwrap());
        let (group, interface) = ("core".to_owned(), "eth0".to_owned());
        let means = Means::Vrrp { group: group.clone(), interface, vrid, track: Vec::new() };
        let announced = Decision::Announce(Attributes { backends: 1, is_going: false });
        let withheld = |reason| Decision::Withhold([reason].into());
        let fates = BTreeSet::from([Warning::SharedFate { group, vrid }]);
        let other = BTreeSet::from([Warning::SharedFate { group: "edge".to_owned(), vrid }]);
        type Case<'a> = (&'a Decision, bool, Option<&'a BTreeSet<Warning>>, bool, &'a [&'a str]);
        let cases: [Case<'_>; 7] = [
            (&announced, true, None, true, &[]),
            (&announced, true, Some(&fates), true, &[]),
            (&announced, false, None, false, &[]),
            (&announced, false, Some(&fates), false, &["shared_fate"]),
            (&announced, false, Some(&other), false, &[]),
            (&withheld(Reason::NoReachableBackend), true, None, false, &["no_reachable_backend"]),
            (&withheld(Reason::Draining), true, None, true, &["draining"]),
        ];
        for (decision, is_active, warnings, holds, reasons) in cases {
            let report = Report { routers: vec![router(is_active)], ..Report::default() };
            let status = means_status(&means, decision, vip, warnings, &report, &bgp::driver::Report::default());
            let against: Vec<&str> = status.against.iter().map(|against| against.reason.as_str()).collect();
            assert_eq!((status.holds, &against[..]), (holds, reasons), "{decision:?}, {is_active}, {warnings:?}");
        }
    }
}
