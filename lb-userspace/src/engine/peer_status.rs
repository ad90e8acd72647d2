//! BGP peers and BFD sessions in the words of the status.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use super::{Engine, announce_status::word, watch::Session};
use crate::{
    announce::{
        bfd::{
            driver as bfd,
            machine::{Cause, Downs, Hops},
        },
        bgp::{
            driver::{PeerReport, Shown},
            machine::{Bfd, ByType, Counters, LastError, Stage, Status},
        },
        driver::boot_time,
    },
    status::{BfdRemoteStatus, BfdStatus, BgpStatus, PeerErrorStatus},
};

impl Engine {
    /// Every peer, by name.
    pub(super) fn bgp_status(&self) -> Vec<BgpStatus> {
        let now = boot_time();
        let mut all: Vec<BgpStatus> = self
            .peers
            .report()
            .peers
            .iter()
            .map(|peer| {
                let known = bgp_status(peer, now);
                let (address, peer_as) = self.peers.configured(&peer.name);
                BgpStatus { address: known.address.or(address), peer_as: known.peer_as.or(peer_as), ..known }
            })
            .collect();
        let known: BTreeSet<String> = all.iter().map(|peer| peer.name.clone()).collect();
        let announce = &self.snapshot.announce;
        for peer in announce.bgp.iter().flat_map(|bgp| &bgp.peers).filter(|peer| !known.contains(&peer.name)) {
            let problem = match self.peers.error() {
                Some(error) => error.to_owned(),
                None if !peer.nodes.contains(&announce.node) => "is for other nodes".to_owned(),
                None => "is just being begun".to_owned(),
            };
            all.push(BgpStatus { name: peer.name.clone(), problems: vec![problem], ..BgpStatus::default() });
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Connections for BGP that were closed before a word.
    pub(super) fn bgp_refused(&self) -> BTreeMap<String, u64> {
        let report = self.peers.report();
        [("stranger", report.strangers), ("peer", report.refused)]
            .map(|(whose, count)| (whose.to_owned(), count))
            .into()
    }

    /// What there is of BFD; nothing where it has no sessions.
    pub(super) fn bfd_shown(&self) -> BfdShown {
        let watch = &self.peers.watch;
        if !watch.is_busy() {
            return BfdShown::default();
        }
        let now = boot_time();
        let report = watch.report();
        let status = |(peer, session): (&String, &Session)| bfd_status(peer, session, report.as_ref(), now);
        let dropped = report.iter().flat_map(|report| &report.dropped).filter(|(_, count)| *count != 0);
        BfdShown {
            sessions: watch.sessions().iter().map(status).collect(),
            scheduling: report.as_ref().ok().map(|report| scheduling_words(&report.scheduling)),
            dropped: dropped.map(|(reason, count)| (reason.name().to_owned(), *count)).collect(),
        }
    }
}

/// What is shown of BFD.
#[derive(Default)]
pub(super) struct BfdShown {
    /// Every session, by peer.
    pub sessions: Vec<BfdStatus>,
    /// How its thread is scheduled.
    pub scheduling: Option<String>,
    /// Datagrams that reached no session, by reason.
    pub dropped: BTreeMap<String, u64>,
}

fn scheduling_words(scheduling: &bfd::Scheduling) -> String {
    match scheduling {
        bfd::Scheduling::Realtime { priority } => format!("realtime {priority}"),
        bfd::Scheduling::Normal { why } => format!("like any thread: {why}"),
    }
}

fn seconds(now: Duration, since: Duration) -> u64 {
    now.saturating_sub(since).as_secs()
}

fn bgp_status(peer: &PeerReport, now: Duration) -> BgpStatus {
    let problems = peer.problems.iter().map(|Shown { text, .. }| text.clone()).collect();
    let connection = peer.connections.first();
    let plain = BgpStatus {
        name: peer.name.clone(),
        address: connection.map(|(_, remote)| remote.ip()),
        local_address: connection.map(|(local, _)| local.ip()),
        listening: peer.listening,
        problems,
        ..BgpStatus::default()
    };
    let Some(status) = &peer.status else { return plain };
    let Status { state, since, negotiated, stage, bfd, held_by_bfd, counters, .. } = status;
    let negotiated = negotiated.as_ref();
    BgpStatus {
        state: Some(camel(word(state))),
        since_seconds: seconds(now, *since),
        peer_as: negotiated.map(|session| session.peer_as.get()),
        identifier: negotiated.map(|session| IpAddr::V4(session.peer_identifier.get())),
        hold_time_seconds: negotiated.map(|session| session.hold_time.seconds()),
        families: negotiated.into_iter().flat_map(|session| &session.families).map(ToString::to_string).collect(),
        stage: stage_word(stage).to_owned(),
        bfd: bfd_word(*bfd).to_owned(),
        is_held_by_bfd: *held_by_bfd,
        announced: status.announced.iter().map(|(family, count)| (family.to_string(), *count)).collect(),
        not_announced: status.not_announced.iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect(),
        established: counters.established,
        received: by_type(&counters.received),
        sent: by_type(&counters.sent),
        errors: errors(counters),
        transitions: status.causes.iter().map(|(cause, count)| (camel(word(cause)), *count)).collect(),
        last_error: status.last_error.as_ref().map(|error| error_status(error, now)),
        ..plain
    }
}

fn error_status(error: &LastError, now: Duration) -> PeerErrorStatus {
    PeerErrorStatus {
        seconds_ago: seconds(now, error.at),
        cause: camel(word(error.cause)),
        detail: error.detail.clone(),
        words: error.words.clone(),
    }
}

/// As JSON has names.
fn camel(word: String) -> String {
    let mut characters = word.chars();
    let first = characters.next();
    first.into_iter().flat_map(char::to_lowercase).chain(characters).collect()
}

const fn stage_word(stage: &Stage) -> &'static str {
    match stage {
        Stage::Running => "running",
        Stage::GracefulShutdown => "gracefulShutdown",
        Stage::Withdrawn => "withdrawn",
        Stage::Ceased(..) => "ceased",
        Stage::Left => "left",
    }
}

const fn bfd_word(bfd: Bfd) -> &'static str {
    match bfd {
        Bfd::None => "none",
        Bfd::Up => "up",
        Bfd::Down => "down",
        Bfd::AdminDown => "adminDown",
        Bfd::SilentSince(_) => "silentSince",
    }
}

fn errors(counters: &Counters) -> BTreeMap<String, u64> {
    let Counters { header_errors, open_errors, unexpected, refreshes_ignored, .. } = *counters;
    let all =
        [("header", header_errors), ("open", open_errors), ("unexpected", unexpected), ("refresh", refreshes_ignored)];
    all.map(|(kind, count)| (kind.to_owned(), count)).into()
}

fn by_type(counts: &ByType) -> BTreeMap<String, u64> {
    let ByType { open, update, notification, keepalive, route_refresh } = *counts;
    let all = [
        ("open", open),
        ("update", update),
        ("notification", notification),
        ("keepalive", keepalive),
        ("routeRefresh", route_refresh),
    ];
    all.map(|(kind, count)| (kind.to_owned(), count)).into()
}

fn bfd_status(peer: &str, session: &Session, report: Result<&bfd::Report, &String>, now: Duration) -> BfdStatus {
    let endpoint = session.endpoint;
    let problem = session.problem.as_ref().map(|(problem, _)| problem.clone());
    let plain = BfdStatus {
        peer: peer.to_owned(),
        local_address: Some(endpoint.local()),
        address: Some(endpoint.remote()),
        is_multihop: matches!(endpoint.hops(), Hops::Multi { .. }),
        ..BfdStatus::default()
    };
    let shown = match report {
        Ok(report) => report.sessions.iter().find(|shown| shown.endpoint == endpoint),
        Err(error) => return BfdStatus { problem: Some(error.clone()), ..plain },
    };
    let Some(shown) = shown else { return BfdStatus { problem, ..plain } };
    let status = &shown.status;
    let remote = status.remote.map(|remote| BfdRemoteStatus {
        state: word(remote.state),
        diagnostic: remote.diagnostic.to_string(),
        desired_min_tx_microseconds: micros(remote.desired_min_tx),
        required_min_rx_microseconds: micros(remote.required_min_rx),
        multiplier: remote.detect_mult.get(),
    });
    BfdStatus {
        state: Some(word(status.state)),
        since_seconds: seconds(now, status.since),
        diagnostic: Some(status.diagnostic.to_string()),
        last_cause: status.last_cause.map(cause_word),
        transmit_interval_microseconds: micros(status.transmit_interval),
        detection_time_microseconds: status.detection_time.map(micros),
        is_withheld: status.is_withheld,
        remote,
        sent: status.counts.sent,
        received: status.counts.received,
        withheld: status.counts.withheld,
        send_errors: shown.send_errors,
        ups: status.counts.ups,
        downs: downs(&status.counts.downs),
        problem,
        ..plain
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn cause_word(cause: Cause) -> String {
    match cause {
        Cause::Silence { .. } => "silence",
        Cause::Remote { .. } => "remote",
        Cause::ForwardingPlane => "forwardingPlane",
    }
    .to_owned()
}

fn downs(downs: &Downs) -> BTreeMap<String, u64> {
    let Downs { silence, remote, remote_order, own_order, forwarding_plane } = *downs;
    let all = [
        ("silence", silence),
        ("remote", remote),
        ("remoteOrder", remote_order),
        ("ownOrder", own_order),
        ("forwardingPlane", forwarding_plane),
    ];
    all.map(|(cause, count)| (cause.to_owned(), count)).into()
}
