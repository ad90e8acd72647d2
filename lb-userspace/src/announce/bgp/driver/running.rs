//! All peers, and how they follow what is wanted.

use std::{collections::BTreeMap, net::SocketAddr, os::fd::BorrowedFd, sync::Arc, time::Duration};

use rustix::event::PollFlags;
use socket2::Socket;
use tracing::{debug, info, warn};

use super::{
    entry::Entry,
    listening::{Listeners, Rules},
    report::{PeerReport, Problem, Report, Shown},
    signatures::Signatures,
    wanted::{Wanted, WantedPeer},
};
use crate::announce::{
    bgp::machine::{CeaseReason, RestartFacts},
    silence::LOOK_INTERVAL,
};

/// Peers of a node: far more than a node has routers.
const PEERS_MAX: usize = 256;
/// Octets read at a time.
const READ_OCTETS: usize = 65_536;

/// All peers.
pub struct Running {
    port: u16,
    restart: RestartFacts,
    /// What was said last.
    wanted: Wanted,
    /// The engine says nothing.
    is_silenced: bool,
    /// All peers end, and none begins again.
    is_stopping: bool,
    peers: BTreeMap<String, Entry>,
    /// Peers that are wanted and cannot be, until others have ended at least.
    impossible: BTreeMap<String, Impossible>,
    listeners: Listeners,
    signatures: Signatures,
    look_at: Duration,
    strangers: u64,
    refused: u64,
    seed: u64,
    buffer: Vec<u8>,
}

/// A peer that is wanted and cannot be.
struct Impossible {
    wanted: WantedPeer,
    restart: RestartFacts,
    problem: Problem,
}

impl Impossible {
    /// Whether it may be possible once another peer has ended.
    const fn waits_for_others(&self) -> bool {
        match self.problem {
            Problem::Duplicate(_) | Problem::TooMany(_) => true,
            Problem::Settings(_)
            | Problem::NeighbourUnknown
            | Problem::InterfaceMissing(_)
            | Problem::Family { .. }
            | Problem::Listen { .. }
            | Problem::PortTaken { .. }
            | Problem::SessionOfOther { .. }
            | Problem::Unreachable { .. }
            | Problem::PasswordMismatch(_) => false,
        }
    }
}

impl Running {
    pub fn new(seed: u64) -> Self {
        let Wanted { port, restart, .. } = Wanted::default();
        Self {
            port: port.get(),
            restart,
            wanted: Wanted::default(),
            is_silenced: false,
            is_stopping: false,
            peers: BTreeMap::new(),
            impossible: BTreeMap::new(),
            listeners: Listeners::default(),
            signatures: Signatures::read(),
            look_at: Duration::ZERO,
            strangers: 0,
            refused: 0,
            seed,
            buffer: vec![0; READ_OCTETS],
        }
    }

    /// Takes up what is wanted, by an engine that lives.
    pub fn follow(&mut self, wanted: Wanted, now: Duration) {
        self.is_silenced = false;
        self.wanted = wanted.clone();
        self.take_up(wanted, now);
    }

    /// Whether the engine says nothing: nobody knows then whether what is announced can be served, and it is withdrawn.
    /// Nothing changes any more after a [`stop`](Self::stop), for which the engine waits in silence.
    pub fn set_silenced(&mut self, is_silenced: bool, now: Duration) {
        if self.is_stopping || self.is_silenced == is_silenced {
            return;
        }
        self.is_silenced = is_silenced;
        let mut wanted = self.wanted.clone();
        if is_silenced {
            warn!("the engine says nothing: routes are withdrawn");
            wanted.peers.values_mut().for_each(|peer| peer.routes = Arc::default());
        }
        self.take_up(wanted, now);
    }

    fn take_up(&mut self, wanted: Wanted, now: Duration) {
        self.port = wanted.port.get();
        self.restart = wanted.restart;
        self.impossible.clear();
        for (name, entry) in &mut self.peers {
            if !wanted.peers.contains_key(name) {
                entry.leave(CeaseReason::PeerRemoved, now);
            }
        }
        for (name, peer) in wanted.peers {
            match self.peers.get_mut(&name) {
                Some(entry) => entry.follow(&peer, self.port, &self.restart, now),
                None => self.begin(&name, peer, self.restart.clone(), now),
            }
        }
        self.listen(now);
    }

    fn begin(&mut self, name: &str, wanted: WantedPeer, restart: RestartFacts, now: Duration) {
        // The golden ratio of 64 bits: any odd number that spreads would do.
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let same = self.peers.iter().find(|(_, entry)| entry.has_ends_of(&wanted)).map(|(name, _)| name.clone());
        let entry = match same {
            Some(other) => Err(Problem::Duplicate(other)),
            None if self.peers.len() >= PEERS_MAX => Err(Problem::TooMany(PEERS_MAX)),
            None => Entry::new(name, wanted.clone(), self.port, restart.clone(), self.seed, now),
        };
        match entry {
            Ok(entry) => {
                self.peers.insert(name.to_owned(), entry);
            }
            Err(problem) => {
                debug!(peer = name, %problem, "BGP peer does not run");
                self.impossible.insert(name.to_owned(), Impossible { wanted, restart, problem });
            }
        }
    }

    /// Opens and closes what listens.
    fn listen(&mut self, now: Duration) {
        let mut wanted: BTreeMap<SocketAddr, Rules> = BTreeMap::new();
        for entry in self.peers.values_mut() {
            let remote = entry.remote().ip();
            if let Some((at, peer)) = entry.listen_at() {
                let rules = wanted.entry(at).or_default();
                rules.add(remote, peer.password.as_ref(), peer.ttl);
            }
        }
        self.listeners.follow(&wanted, now);
        for entry in self.peers.values_mut() {
            let problem = entry.last_listen_at().and_then(|at| self.listeners.problem(at));
            entry.set_listening(problem, now);
        }
    }

    /// Hands over what has come, before any timer is looked at: what has come in time counts.
    pub fn hear(&mut self, now: Duration) {
        for entry in self.peers.values_mut() {
            entry.hear(&mut self.buffer, now);
        }
        for (socket, at, from) in self.listeners.accept(now) {
            self.accept(socket, at, from, now);
        }
    }

    fn accept(&mut self, socket: Socket, at: SocketAddr, from: SocketAddr, now: Duration) {
        let Some(entry) = self.peers.values_mut().find(|entry| entry.is_from(at, from)) else {
            self.strangers += 1;
            debug!(%from, "a connection was closed that is no peer's");
            return;
        };
        let is_signed = self.listeners.has_key(at, from.ip(), entry.password());
        if !(is_signed && entry.accept(socket, at, from, now)) {
            self.refused += 1;
        }
    }

    /// Does what is due. True where there is more to do at once.
    pub fn handle_timeout(&mut self, now: Duration) -> bool {
        let mut has_more = false;
        for entry in self.peers.values_mut() {
            has_more |= entry.handle_timeout(now);
        }
        let ended = self.peers.extract_if(.., |_, entry| entry.has_ended()).collect::<Vec<_>>();
        let has_room = !ended.is_empty();
        for (name, entry) in ended {
            if let Some((wanted, restart)) = entry.into_next() {
                self.begin(&name, wanted, restart, now);
                self.look_at = now;
                has_more = true;
            }
        }
        if has_room {
            // One that was renamed, or has changed places with another, waited for its addresses.
            let waiting = self.impossible.extract_if(.., |_, it| it.waits_for_others()).collect::<Vec<_>>();
            for (name, Impossible { wanted, restart, .. }) in waiting {
                self.begin(&name, wanted, restart, now);
                self.look_at = now;
                has_more = true;
            }
        }
        if now >= self.look_at {
            self.look_at = now + LOOK_INTERVAL;
            self.look(now);
        }
        has_more
    }

    fn look(&mut self, now: Duration) {
        self.listen(now);
        let signatures = Signatures::read();
        let dropped = signatures.since(self.signatures);
        self.signatures = signatures;
        if dropped != Signatures::default() {
            for entry in self.peers.values_mut() {
                entry.handle_signatures(dropped, now);
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next. Without peers nothing is looked at.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let look_at = (!self.peers.is_empty()).then_some(self.look_at);
        self.peers.values().filter_map(Entry::poll_timeout).chain(look_at).min()
    }

    /// For whoever waits, with what for.
    pub fn descriptors(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let listening = self.listeners.descriptors().map(|descriptor| (descriptor, PollFlags::IN));
        listening.chain(self.peers.values().flat_map(Entry::descriptors))
    }

    /// All peers end, those that were told no last word by a Cease.
    pub fn stop(&mut self, now: Duration) {
        if !self.peers.is_empty() {
            info!("BGP ends");
        }
        self.is_stopping = true;
        // Those that wait for the addresses of others would begin as these end.
        self.impossible.clear();
        for entry in self.peers.values_mut() {
            entry.leave(CeaseReason::Shutdown, now);
        }
        self.listen(now);
    }

    /// Whether all have ended.
    pub fn has_ended(&self) -> bool {
        self.peers.is_empty()
    }

    pub fn report(&self) -> Report {
        let runs = self
            .peers
            .values()
            .map(|entry| entry.report(entry.last_listen_at().and_then(|at| self.listeners.problem(at))));
        let impossible = self.impossible.iter().map(|(name, impossible)| PeerReport {
            name: name.clone(),
            status: None,
            stage_sent: true,
            is_leaving: false,
            connections: Vec::new(),
            listening: None,
            problems: vec![Shown::from(&impossible.problem)],
        });
        Report {
            peers: runs.chain(impossible).collect(),
            listening: self.listeners.open_ones().collect(),
            strangers: self.strangers,
            refused: self.refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::announce::bgp::{
        machine::{Mode, PeerAs, Settings, Stage},
        values::{AsNumber, Identifier},
    };

    const NOW: Duration = Duration::from_secs(1000);

    /// A peer that has no sockets before its first turn.
    fn wanted() -> Wanted {
        let number = |number| AsNumber::new(number).expect("legal");
        let identifier = Identifier::new("10.0.0.1".parse().expect("an address")).expect("legal");
        let settings = Settings::new(number(65001), PeerAs::Number(number(65002)), identifier);
        let settings = Settings { mode: Mode::Dial, ..settings };
        let peer = WantedPeer::new(settings, Some("127.0.0.1".parse().expect("an address")));
        Wanted { peers: [("router".to_owned(), peer)].into(), ..Wanted::default() }
    }

    #[test]
    fn a_stop_in_a_silence_and_at_its_end_leaves_no_peer() {
        for (before, after) in [(true, false), (true, true), (false, true), (false, false)] {
            let mut running = Running::new(1);
            running.follow(wanted(), NOW);
            running.set_silenced(before, NOW);
            running.stop(NOW);
            running.set_silenced(after, NOW);
            running.handle_timeout(NOW);
            assert!(running.has_ended(), "silenced before: {before}, after: {after}");
        }
    }

    #[test]
    fn who_waits_for_the_addresses_of_another_does_not_begin_in_a_stop() {
        let mut running = Running::new(1);
        let mut twice = wanted();
        let peer = twice.peers["router"].clone();
        twice.peers.insert("same".to_owned(), peer);
        running.follow(twice, NOW);
        assert_eq!((running.peers.len(), running.impossible.len()), (1, 1));
        running.stop(NOW);
        running.handle_timeout(NOW);
        assert!(running.has_ended());
    }

    #[test]
    fn a_silence_and_its_end_keep_the_peer() {
        let mut running = Running::new(1);
        running.follow(wanted(), NOW);
        for is_silenced in [true, false] {
            running.set_silenced(is_silenced, NOW);
            let report = running.report();
            let status = report.peers[0].status.as_ref().expect("it runs");
            assert_eq!((report.peers[0].is_leaving, &status.stage), (false, &Stage::Running));
        }
    }
}
