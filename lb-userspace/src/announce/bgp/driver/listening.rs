//! The sockets that listen: one for each address that a peer connects to, and no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use socket2::Socket;
use tracing::{info, warn};

use super::{
    holder::listeners,
    report::Problem,
    sockets::{accept, listen, set_key, set_least_ttl, words},
    wanted::{Secret, Ttl},
};
use crate::net::processes::Holder;

/// How long after another process was found at the port it is tried again.
const TAKEN_RETRY: Duration = Duration::from_secs(30);
/// The same for other errors: an address that comes late, as link-local ones do, is there soon.
const OTHER_RETRY: Duration = Duration::from_secs(2);
/// Connections that are accepted at a time from each socket: a flood may not keep us from other work.
const ACCEPTS_MAX: usize = 64;

/// Passwords by the peer's address.
type Keys = BTreeMap<IpAddr, Secret>;

/// What is wanted at an address of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    keys: Keys,
    /// What packets of all peers have at least. A connection has a rule of its own once it is accepted; this one holds
    /// for what comes before, and is the weakest peer's.
    least_ttl: u8,
}

impl Default for Rules {
    /// For nobody.
    fn default() -> Self {
        Self { keys: Keys::new(), least_ttl: u8::MAX }
    }
}

impl Rules {
    /// Another peer is to connect.
    pub fn add(&mut self, remote: IpAddr, password: Option<&Secret>, ttl: Ttl) {
        self.keys.extend(password.map(|password| (remote, password.clone())));
        self.least_ttl = self.least_ttl.min(ttl.least_received());
    }
}

enum Listener {
    Open { socket: Socket, rules: Rules },
    Failed { problem: Problem, again_at: Duration },
}

/// All of them.
#[derive(Default)]
pub struct Listeners(BTreeMap<SocketAddr, Listener>);

impl Listeners {
    /// From here on these and no others; opens what it is time for.
    pub fn follow(&mut self, wanted: &BTreeMap<SocketAddr, Rules>, now: Duration) {
        self.0.retain(|at, _| wanted.contains_key(at));
        for (at, rules) in wanted {
            match self.0.get_mut(at) {
                Some(Listener::Open { socket, rules: set }) => {
                    if let Err(error) = follow_rules(socket, at.ip(), set, rules) {
                        // Nobody may come without a password who should have one.
                        let problem = Problem::Listen { address: *at, error: words(&error) };
                        warn!(%problem, "BGP listens no more; tried again");
                        self.0.insert(*at, Listener::Failed { problem, again_at: now + OTHER_RETRY });
                    }
                }
                Some(Listener::Failed { again_at, .. }) if now < *again_at => {}
                Some(Listener::Failed { .. }) | None => self.open(*at, rules, now),
            }
        }
    }

    fn open(&mut self, at: SocketAddr, rules: &Rules, now: Duration) {
        let listener = match listen(at, &rules.keys, rules.least_ttl) {
            Ok(socket) => {
                info!(address = %at, "BGP listens");
                Listener::Open { socket, rules: rules.clone() }
            }
            Err(error) => {
                let is_taken = error.kind() == io::ErrorKind::AddrInUse;
                let (problem, retry) = if is_taken {
                    (taken(at), TAKEN_RETRY)
                } else {
                    (Problem::Listen { address: at, error: words(&error) }, OTHER_RETRY)
                };
                if self.problem(at) != Some(&problem) {
                    warn!(%problem, "BGP does not listen; tried again");
                }
                Listener::Failed { problem, again_at: now + retry }
            }
        };
        self.0.insert(at, listener);
    }

    /// Why nobody can connect there.
    pub fn problem(&self, at: SocketAddr) -> Option<&Problem> {
        match self.0.get(&at)? {
            Listener::Open { .. } => None,
            Listener::Failed { problem, .. } => Some(problem),
        }
    }

    /// Where connections are accepted.
    pub fn open_ones(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().filter_map(|(at, listener)| match listener {
            Listener::Open { .. } => Some(*at),
            Listener::Failed { .. } => None,
        })
    }

    /// Whether connections from the peer must carry its password there.
    pub fn has_key(&self, at: SocketAddr, remote: IpAddr, password: Option<&Secret>) -> bool {
        match self.0.get(&at) {
            Some(Listener::Open { rules, .. }) => rules.keys.get(&remote) == password,
            Some(Listener::Failed { .. }) | None => false,
        }
    }

    /// What has come: socket, the address that it came to, the other end.
    pub fn accept(&mut self, now: Duration) -> Vec<(Socket, SocketAddr, SocketAddr)> {
        let mut accepted = Vec::new();
        for (at, listener) in &mut self.0 {
            let Listener::Open { socket, .. } = listener else { continue };
            for _ in 0..ACCEPTS_MAX {
                match accept(socket) {
                    Ok(Some((connection, from))) => accepted.push((connection, *at, from)),
                    Ok(None) => break,
                    // Would be there again at once: nobody is heard for a while.
                    Err(error) if is_shortage(&error) => {
                        let problem = Problem::Listen { address: *at, error: words(&error) };
                        warn!(%problem, "BGP listens no more; tried again");
                        *listener = Listener::Failed { problem, again_at: now + OTHER_RETRY };
                        break;
                    }
                    // Of the connection, and not of the socket.
                    Err(error) => warn!(address = %at, error = words(&error), "a connection was not accepted"),
                }
            }
        }
        accepted
    }

    /// For whoever waits.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.values().filter_map(|listener| match listener {
            Listener::Open { socket, .. } => Some(socket.as_fd()),
            Listener::Failed { .. } => None,
        })
    }
}

/// Whether it is not the connection that is at fault (accept(2)).
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

fn follow_rules(socket: &Socket, at: IpAddr, set: &mut Rules, wanted: &Rules) -> io::Result<()> {
    if set.least_ttl != wanted.least_ttl {
        set_least_ttl(socket, at, wanted.least_ttl)?;
        set.least_ttl = wanted.least_ttl;
    }
    let all: BTreeSet<IpAddr> = set.keys.keys().chain(wanted.keys.keys()).copied().collect();
    for remote in all {
        let key = wanted.keys.get(&remote);
        if set.keys.get(&remote) != key {
            set_key(socket, remote, key)?;
            set.keys.remove(&remote);
            set.keys.extend(key.map(|key| (remote, key.clone())));
        }
    }
    Ok(())
}

/// Another process listens there.
fn taken(at: SocketAddr) -> Problem {
    let sockets = listeners(at);
    let holder = Holder::of_sockets(&sockets);
    Problem::PortTaken { address: at, sockets, holder }
}
