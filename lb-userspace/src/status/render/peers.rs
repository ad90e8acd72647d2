//! BGP peers and BFD sessions, as tables.

use super::{
    Line, Style, Table,
    announce::{counted, rendered},
    cell, count, duration, optional,
};
use crate::status::{AnnounceStatus, BfdStatus, BgpStatus, PeerErrorStatus};

/// `sluice status bgp`.
pub fn render_bgp(status: &AnnounceStatus, color: bool) -> String {
    rendered(color, |out| match status.bgp.as_slice() {
        [] => out.line("no BGP peers are configured"),
        all => {
            peers(all).write(out);
            counted(out, "connections closed before a word", &status.bgp_refused);
        }
    })
}

/// `sluice status bfd`.
pub fn render_bfd(status: &AnnounceStatus, color: bool) -> String {
    rendered(color, |out| match status.bfd.as_slice() {
        [] => out.line("no BGP peer is watched by BFD"),
        all => {
            sessions(all).write(out);
            if let Some(scheduling) = &status.bfd_scheduling {
                out.line(&format!("its thread is scheduled: {scheduling}"));
            }
            counted(out, "datagrams that reached no session", &status.bfd_dropped);
        }
    })
}

pub(super) fn peers(peers: &[BgpStatus]) -> Table {
    let mut lines = Vec::new();
    for peer in peers {
        let state = peer.state.as_deref().unwrap_or("not running");
        let style = match state {
            "established" => Style::Good,
            "not running" => Style::Bad,
            _ => Style::Partly,
        };
        let bfd = match peer.bfd.as_str() {
            "up" => cell("up").styled(Style::Good),
            "" | "none" => cell("-"),
            "silentSince" => cell("silent").styled(Style::Bad),
            other => cell(other).styled(Style::Bad),
        };
        lines.push(Line::Row(vec![
            cell(&peer.name),
            optional(peer.address),
            optional(peer.peer_as),
            cell(state).styled(style),
            cell(duration(peer.since_seconds)),
            bfd,
            cell(peer.announced.values().sum::<usize>().to_string()),
            cell(count(peer.sent.values().sum())),
            cell(count(peer.received.values().sum())),
        ]));
        let note = |text: String, style| Line::Note(cell(text).styled(style));
        lines.extend(peer.problems.iter().map(|problem| note(problem.clone(), Style::Bad)));
        if !matches!(peer.stage.as_str(), "" | "running") {
            lines.push(note(format!("this node leaves: {}", peer.stage), Style::Partly));
        }
        if peer.is_held_by_bfd {
            lines
                .push(note("BFD has lost it: no session before it is back, or silent for 30 s".to_owned(), Style::Bad));
        }
        let withheld = peer.not_announced.iter().filter(|(reason, _)| reason.as_str() != "no_session");
        lines.extend(
            withheld.map(|(reason, count)| note(format!("{count} prefixes not announced: {reason}"), Style::Partly)),
        );
        if let Some(error) = peer.last_error.as_ref().filter(|_| state != "established") {
            lines.push(note(error_text(error), Style::Partly));
        }
    }
    Table {
        titles: &["BGP PEER", "ADDRESS", "AS", "STATE", "FOR", "BFD", "PREFIXES", "SENT", "RECEIVED"],
        right: &[6, 7, 8],
        lines,
    }
}

pub(super) fn error_text(error: &PeerErrorStatus) -> String {
    let PeerErrorStatus { seconds_ago, cause, detail, words } = error;
    let words = words.as_ref().map(|words| format!("; the peer says: {words}")).unwrap_or_default();
    format!("{} ago: {cause}: {detail}{words}", duration(*seconds_ago))
}

pub(super) fn sessions(sessions: &[BfdStatus]) -> Table {
    let mut lines = Vec::new();
    for session in sessions {
        let state = session.state.as_deref().unwrap_or("not running");
        let style = if state == "up" { Style::Good } else { Style::Bad };
        lines.push(Line::Row(vec![
            cell(&session.peer),
            optional(session.address),
            cell(if session.is_multihop { "multihop" } else { "single hop" }),
            cell(state).styled(style),
            cell(duration(session.since_seconds)),
            cell(milliseconds(session.transmit_interval_microseconds)),
            optional(session.detection_time_microseconds.map(milliseconds)),
            optional(session.remote.as_ref().map(|remote| remote.state.clone())),
            cell(count(session.sent)),
            cell(count(session.received)),
            cell(count(session.downs.values().sum())),
        ]));
        let note = |text: String| Line::Note(cell(text).styled(Style::Bad));
        lines.extend(session.problem.clone().map(note));
        if session.is_withheld {
            lines.push(note("packets are held back: the engine or the data plane is gone".to_owned()));
        }
        if state != "up" {
            let ours = session.diagnostic.as_ref().map(|diagnostic| format!("we say: {diagnostic}"));
            let theirs = session.remote.as_ref().map(|remote| format!("the peer says: {}", remote.diagnostic));
            let said = ours.into_iter().chain(theirs).filter(|words| !words.ends_with(": no reason"));
            lines.extend(said.map(note));
        }
    }
    Table {
        titles: &[
            "BFD PEER",
            "ADDRESS",
            "OVER",
            "STATE",
            "FOR",
            "INTERVAL",
            "DETECTION",
            "THERE",
            "SENT",
            "RECEIVED",
            "LOSSES",
        ],
        right: &[5, 6, 8, 9, 10],
        lines,
    }
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}ms", microseconds as f64 / 1000.0)
}
