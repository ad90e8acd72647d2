//! Families of what is announced: VIPs, virtual routers, BGP peers, BFD sessions. What others say in words is no label.

use std::{collections::BTreeMap, fmt};

use super::{
    BaseUnit, Family,
    Kind::{self, Counter, Gauge},
    Samples,
    Source::{Agent, Other},
    families::family,
};
use crate::status::{BfdStatus, BgpStatus, RouterStatus, Status};

const ROUTER: &[&str] = &["group", "interface", "family", "vrid"];
const ROUTERS: &str = "virtual routers";
const PEERS: &str = "BGP peers";
const SESSIONS: &str = "BFD sessions";

/// What a virtual router can be (see [`RouterStatus::state`]).
const ROUTER_STATES: [&str; 5] = ["init", "listening", "backup", "active", "leaving"];
/// What a peer can be (see [`BgpStatus::state`]).
const PEER_STATES: [&str; 6] = ["idle", "connect", "active", "openSent", "openConfirm", "established"];
/// What a session can be (see [`BfdStatus::state`]).
const SESSION_STATES: [&str; 4] = ["admin-down", "down", "init", "up"];

/// All of them.
pub(super) const FAMILIES: &[Family] = &[
    family(
        "sluice_leaving",
        None,
        Gauge,
        "1 while this node leaves or is drained: it announces nothing, or soon will not",
        Agent(|view| view.status.announce.leaving.is_some().into()),
    ),
    other(
        "sluice_announcements",
        Gauge,
        "VIPs by means, each once for each means, by whether this node holds it, another does, or it is withheld",
        &["state"],
        "3",
        announcements,
    ),
    other(
        "sluice_announcements_withheld",
        Gauge,
        "VIPs by means that are withheld, once for each reason that there is; `sluice status vip` has them in words",
        &["reason"],
        "reasons that there are",
        withheld,
    ),
    family(
        "sluice_vip_conflicts",
        None,
        Counter,
        "How often others were heard claiming VIPs that this node holds",
        Agent(|view| view.status.announce.conflicts.iter().map(|conflict| conflict.count).sum()),
    ),
    other(
        "sluice_vrrp_state",
        Gauge,
        "1 for the state of the virtual router",
        &STATE_OF_ROUTER,
        ROUTERS,
        |status, out| routers(status, out, |router, labels, out| states(&ROUTER_STATES, &router.state, labels, out)),
    ),
    seconds(
        "sluice_vrrp_state_age",
        "For how long the virtual router has been in its state",
        ROUTER,
        ROUTERS,
        |status, out| routers(status, out, |router, labels, out| out.put(labels, router.since_seconds)),
    ),
    other(
        "sluice_vrrp_priority",
        Gauge,
        "What the virtual router competes with; 0 where it may not",
        ROUTER,
        ROUTERS,
        |status, out| {
            routers(status, out, |router, labels, out| out.put(labels, router.priority.unwrap_or_default().into()))
        },
    ),
    other("sluice_vrrp_advertisements_sent", Counter, "Advertisements that left", ROUTER, ROUTERS, |status, out| {
        routers(status, out, |router, labels, out| out.put(labels, router.sent))
    }),
    other(
        "sluice_vrrp_advertisements_unsent",
        Counter,
        "Advertisements that could not be sent",
        ROUTER,
        ROUTERS,
        |status, out| routers(status, out, |router, labels, out| out.put(labels, router.unsent)),
    ),
    other(
        "sluice_vrrp_advertisements_received",
        Counter,
        "Advertisements of other routers that counted",
        ROUTER,
        ROUTERS,
        |status, out| routers(status, out, |router, labels, out| out.put(labels, router.received)),
    ),
    other(
        "sluice_vrrp_transitions",
        Counter,
        "Changes of the virtual router's state, by cause",
        &BY_CAUSE,
        ROUTERS,
        |status, out| routers(status, out, |router, labels, out| each(&router.transitions, labels, out)),
    ),
    other(
        "sluice_vrrp_discarded",
        Counter,
        "Advertisements for the virtual router that did not count, by reason",
        &BY_REASON,
        ROUTERS,
        |status, out| routers(status, out, |router, labels, out| each(&router.discarded, labels, out)),
    ),
    other(
        "sluice_vrrp_differences",
        Counter,
        "Advertisements that show another configuration elsewhere, by what differs",
        &BY_KIND,
        ROUTERS,
        |status, out| {
            routers(status, out, |router, labels, out| {
                let counts = router.alarms.iter().map(|(kind, alarm)| (kind.clone(), alarm.count)).collect();
                each(&counts, labels, out)
            })
        },
    ),
    other(
        "sluice_vrrp_malformed",
        Counter,
        "Packets of VRRP that could not be read, by reason",
        &["reason"],
        "reasons that there are",
        |status, out| each(&status.announce.malformed, &[], out),
    ),
    other(
        "sluice_bgp_state",
        Gauge,
        "1 for the state of the peer (RFC 4271, 8.2.2)",
        &["peer", "state"],
        PEERS,
        |status, out| {
            peers(status, out, |peer, labels, out| {
                states(&PEER_STATES, peer.state.as_deref().unwrap_or_default(), labels, out)
            })
        },
    ),
    seconds("sluice_bgp_state_age", "For how long the peer has been in its state", &["peer"], PEERS, |status, out| {
        peers(status, out, |peer, labels, out| out.put(labels, peer.since_seconds))
    }),
    other(
        "sluice_bgp_message_errors",
        Counter,
        "Messages of the peer that were wrong: in their header, as an OPEN, out of turn, or a refresh of what is not sent",
        &["peer", "kind"],
        PEERS,
        |status, out| peers(status, out, |peer, labels, out| each(&peer.errors, labels, out)),
    ),
    other(
        "sluice_bgp_connections_refused",
        Counter,
        "Connections that were closed before a word: of strangers, and of peers beyond one or without the password",
        &["from"],
        "2",
        |status, out| each(&status.announce.bgp_refused, &[], out),
    ),
    other(
        "sluice_bgp_sessions_established",
        Counter,
        "Sessions with the peer that came to be",
        &["peer"],
        PEERS,
        |status, out| peers(status, out, |peer, labels, out| out.put(labels, peer.established)),
    ),
    other(
        "sluice_bgp_messages_sent",
        Counter,
        "Messages to the peer, by type",
        &["peer", "type"],
        PEERS,
        |status, out| peers(status, out, |peer, labels, out| each(&peer.sent, labels, out)),
    ),
    other(
        "sluice_bgp_messages_received",
        Counter,
        "Messages from the peer, by type",
        &["peer", "type"],
        PEERS,
        |status, out| peers(status, out, |peer, labels, out| each(&peer.received, labels, out)),
    ),
    other(
        "sluice_bgp_prefixes_announced",
        Gauge,
        "Prefixes that the peer has been sent, by address family",
        &["peer", "family"],
        PEERS,
        |status, out| peers(status, out, |peer, labels, out| each(&counts(&peer.announced), labels, out)),
    ),
    other(
        "sluice_bgp_prefixes_not_announced",
        Gauge,
        "Prefixes for the peer that it has not been sent, by reason",
        &["peer", "reason"],
        PEERS,
        |status, out| peers(status, out, |peer, labels, out| each(&counts(&peer.not_announced), labels, out)),
    ),
    other(
        "sluice_bgp_transitions",
        Counter,
        "What changed something about the peer, by cause",
        &["peer", "cause"],
        PEERS,
        |status, out| peers(status, out, |peer, labels, out| each(&peer.transitions, labels, out)),
    ),
    other(
        "sluice_bfd_state",
        Gauge,
        "1 for the state of the session that watches the peer (RFC 5880, 6.2)",
        &["peer", "state"],
        SESSIONS,
        |status, out| {
            sessions(status, out, |bfd, labels, out| {
                states(&SESSION_STATES, bfd.state.as_deref().unwrap_or_default(), labels, out)
            })
        },
    ),
    seconds(
        "sluice_bfd_state_age",
        "For how long the session has been in its state",
        &["peer"],
        SESSIONS,
        |status, out| sessions(status, out, |bfd, labels, out| out.put(labels, bfd.since_seconds)),
    ),
    other(
        "sluice_bfd_packets_dropped",
        Counter,
        "Datagrams for BFD that reached no session, by reason",
        &["reason"],
        "reasons that there are",
        |status, out| each(&status.announce.bfd_dropped, &[], out),
    ),
    other("sluice_bfd_packets_sent", Counter, "Control packets to the peer", &["peer"], SESSIONS, |status, out| {
        sessions(status, out, |bfd, labels, out| out.put(labels, bfd.sent))
    }),
    other(
        "sluice_bfd_packets_received",
        Counter,
        "Control packets from the peer that counted",
        &["peer"],
        SESSIONS,
        |status, out| sessions(status, out, |bfd, labels, out| out.put(labels, bfd.received)),
    ),
    other(
        "sluice_bfd_packets_withheld",
        Counter,
        "Control packets that were due while the engine or the data plane was gone",
        &["peer"],
        SESSIONS,
        |status, out| sessions(status, out, |bfd, labels, out| out.put(labels, bfd.withheld)),
    ),
    other(
        "sluice_bfd_losses",
        Counter,
        "How often the session was up and then no more, by cause",
        &["peer", "cause"],
        SESSIONS,
        |status, out| sessions(status, out, |bfd, labels, out| each(&bfd.downs, labels, out)),
    ),
];

const STATE_OF_ROUTER: [&str; 5] = ["group", "interface", "family", "vrid", "state"];
const BY_CAUSE: [&str; 5] = ["group", "interface", "family", "vrid", "cause"];
const BY_REASON: [&str; 5] = ["group", "interface", "family", "vrid", "reason"];
const BY_KIND: [&str; 5] = ["group", "interface", "family", "vrid", "kind"];

const fn other(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    labels: &'static [&'static str],
    series: &'static str,
    samples: fn(&Status, &mut Samples) -> fmt::Result,
) -> Family {
    family(name, None, kind, help, Other { labels, series, samples })
}

/// A gauge of seconds.
const fn seconds(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    series: &'static str,
    samples: fn(&Status, &mut Samples) -> fmt::Result,
) -> Family {
    family(name, Some(BaseUnit::Seconds), Gauge, help, Other { labels, series, samples })
}

fn announcements(status: &Status, out: &mut Samples) -> fmt::Result {
    let mut counts = BTreeMap::from(["held", "elsewhere", "withheld"].map(|state| (state.to_owned(), 0)));
    for means in status.announce.vips.iter().flat_map(|vip| &vip.means) {
        let state = match (means.holds, means.against.is_empty()) {
            (true, _) => "held",
            (false, true) => "elsewhere",
            (false, false) => "withheld",
        };
        *counts.entry(state.to_owned()).or_default() += 1;
    }
    each(&counts, &[], out)
}

fn withheld(status: &Status, out: &mut Samples) -> fmt::Result {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let means = status.announce.vips.iter().flat_map(|vip| &vip.means);
    for against in means.flat_map(|means| &means.against) {
        *counts.entry(against.reason.clone()).or_default() += 1;
    }
    each(&counts, &[], out)
}

fn routers(
    status: &Status,
    out: &mut Samples,
    write: impl Fn(&RouterStatus, &[&str], &mut Samples) -> fmt::Result,
) -> fmt::Result {
    status.announce.routers.iter().try_for_each(|router| {
        let vrid = router.vrid.to_string();
        write(router, &[&router.group, &router.interface, &router.family, &vrid], out)
    })
}

fn peers(
    status: &Status,
    out: &mut Samples,
    write: impl Fn(&BgpStatus, &[&str], &mut Samples) -> fmt::Result,
) -> fmt::Result {
    status.announce.bgp.iter().try_for_each(|peer| write(peer, &[&peer.name], out))
}

fn sessions(
    status: &Status,
    out: &mut Samples,
    write: impl Fn(&BfdStatus, &[&str], &mut Samples) -> fmt::Result,
) -> fmt::Result {
    status.announce.bfd.iter().try_for_each(|bfd| write(bfd, &[&bfd.peer], out))
}

/// One sample for each state, 1 for the one that there is.
fn states(all: &[&str], now: &str, labels: &[&str], out: &mut Samples) -> fmt::Result {
    all.iter().try_for_each(|state| out.put(&[labels, &[*state]].concat(), u64::from(*state == now)))
}

/// One sample for each count, its name as the last label.
fn each(counts: &BTreeMap<String, u64>, labels: &[&str], out: &mut Samples) -> fmt::Result {
    counts.iter().try_for_each(|(name, count)| out.put(&[labels, &[name.as_str()]].concat(), *count))
}

fn counts(sizes: &BTreeMap<String, usize>) -> BTreeMap<String, u64> {
    sizes.iter().map(|(name, size)| (name.clone(), *size as u64)).collect()
}
