//! Runs the machine on a thread of its own, with real-time priority where that is allowed.
//!
//! Between waking up and sending the thread allocates nothing, takes no lock and waits for no channel: datagrams are
//! read into buffers that are there, and sent from them. Events, commands and reports have their turn after that.

mod holder;
mod lateness;
mod run;
mod sys;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{self, SyncSender, TrySendError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde::Serialize;

use super::machine::{Endpoint, Event, Heartbeat, Hops, OpenError, Path, Port, SESSIONS_MAX, Settings};

pub use crate::net::processes::Holder;
pub use lateness::Lateness;
pub use run::{Report, Scheduling, SessionReport};
pub use sys::boot_time;

/// Commands that wait for the thread: a few for each session, all of which an engine may give at its start.
const COMMANDS_MAX: usize = 4 * SESSIONS_MAX;
/// Longest wait for a report: far above what the thread takes, so that a hung thread does not hang its asker.
const REPORT_WAIT_MAX: Duration = Duration::from_secs(1);
/// Source ports that may be used (RFC 5881 4).
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49152..=65535;
/// Source ports that are tried for a session; others' sockets lie in that range too.
const SOURCE_PORTS_TRIED_MAX: usize = 256;

/// Who hears of events. Is called on the thread: must not block, and should not allocate much.
pub trait Sink: Send {
    /// Something has happened to the session of that path.
    fn notify(&mut self, path: Path, event: Event);
}

impl<F: FnMut(Path, Event) + Send> Sink for F {
    fn notify(&mut self, path: Path, event: Event) {
        self(path, event);
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }

    const fn any(self) -> IpAddr {
        match self {
            Self::Ipv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::Ipv6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

/// Why something asked of the thread is not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The table refuses the session.
    #[error(transparent)]
    Refused(#[from] OpenError),
    /// Another process receives at the port.
    #[error(
        "UDP port {port} ({family}) is held by {}: stop its BFD, or take BFD from our peers",
        Holder::describe(.holder.as_ref())
    )]
    PortTaken {
        /// 3784 or 4784.
        port: u16,
        /// Of this family.
        family: Family,
        /// Its sockets, by their inodes.
        sockets: Vec<u64>,
        /// Who holds it, where that can be seen.
        holder: Option<Holder>,
    },
    /// The socket that receives cannot be opened.
    #[error("no socket at UDP port {port} ({family}): {error}")]
    Receive {
        /// 3784 or 4784.
        port: u16,
        /// Of this family.
        family: Family,
        /// Why.
        error: io::Error,
    },
    /// The socket that sends cannot be opened.
    #[error("no socket to send from {local}: {error}; is the address on this node?")]
    Send {
        /// Our end.
        local: IpAddr,
        /// Why.
        error: io::Error,
    },
    /// Too many source ports are in use.
    #[error(
        "no free source port at {local} among {SOURCE_PORTS_TRIED_MAX} tried from 49152 to 65535: close what holds them"
    )]
    SourcePorts {
        /// Our end.
        local: IpAddr,
    },
    /// There is no such session.
    #[error("{0:?} has no session")]
    Unknown(Path),
    /// Too many commands wait.
    #[error("{COMMANDS_MAX} commands wait for the BFD thread already: try again")]
    Busy,
    /// The thread has ended.
    #[error("the BFD thread has ended: restart the agent")]
    Gone,
}

/// What the thread is told.
enum Command {
    Listen(Port, Family, OwnedFd),
    /// No session is left that needs it.
    Unlisten(Port, Family),
    Open(Box<Opening>),
    Close(Path),
    Set(Path, Settings),
    Stop(Option<Path>),
    Resume(Option<Path>),
    ResetForwardingPlane,
    Report(SyncSender<Report>),
    End,
}

struct Opening {
    endpoint: Endpoint,
    settings: Settings,
    socket: OwnedFd,
    to: sys::SocketAddress,
}

/// The sessions as the engine sees them. They end, without a word to the other ends, when this is dropped.
#[derive(Debug)]
pub struct Driver {
    commands: SyncSender<Command>,
    wake: Arc<OwnedFd>,
    listening: BTreeSet<(Port, Family)>,
    paths: BTreeSet<Path>,
    next_source_port: u16,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    /// Begins, without sessions. `seed` is random. Nothing is sent while `heartbeat` is not kept up. `prepared` is called on
    /// the thread once it has its priority, for which CAP_SYS_NICE is needed: to drop privileges.
    pub fn start(
        seed: u64,
        heartbeat: Arc<Heartbeat>,
        sink: Box<dyn Sink>,
        prepared: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (commands, orders) = mpsc::sync_channel(COMMANDS_MAX);
        let wake = Arc::new(sys::eventfd()?);
        let runner = run::Runner::new(seed, heartbeat, sink, orders, Arc::clone(&wake));
        let thread = thread::Builder::new().name("bfd".into()).spawn(move || runner.run(prepared))?;
        let ports = SOURCE_PORTS.end() - SOURCE_PORTS.start();
        let next_source_port = SOURCE_PORTS.start() + (seed % u64::from(ports)) as u16;
        Ok(Self {
            commands,
            wake,
            listening: BTreeSet::new(),
            paths: BTreeSet::new(),
            next_source_port,
            thread: Some(thread),
        })
    }

    /// Begins a session. Sockets are opened in the caller's network namespace. After an error nothing has changed, and
    /// the same may be tried again.
    pub fn open(&mut self, endpoint: Endpoint, settings: Settings) -> Result<(), Error> {
        let path = endpoint.path();
        if self.paths.contains(&path) {
            return Err(OpenError::Duplicate(path).into());
        }
        if self.paths.len() >= SESSIONS_MAX {
            return Err(OpenError::Full.into());
        }
        self.listen(endpoint.port(), Family::of(endpoint.local()))?;
        let socket = self.source_socket(&endpoint)?;
        let scope = match endpoint.hops() {
            Hops::Single { interface } => interface.get(),
            Hops::Multi { .. } => 0,
        };
        let to = sys::SocketAddress::new(endpoint.remote(), endpoint.port().number(), scope);
        self.command(Command::Open(Box::new(Opening { endpoint, settings, socket, to })))?;
        self.paths.insert(path);
        Ok(())
    }

    /// Ends a session without a word. The port is given back with its last one.
    pub fn close(&mut self, path: Path) -> Result<(), Error> {
        self.known(path)?;
        self.command(Command::Close(path))?;
        self.paths.remove(&path);
        let listener = |path: &Path| (path.port(), Family::of(path.remote()));
        let unused = listener(&path);
        if !self.paths.iter().any(|path| listener(path) == unused) {
            self.command(Command::Unlisten(unused.0, unused.1))?;
            self.listening.remove(&unused);
            // Whoever opens the next session needs the port: an answer means that the thread has let go of it.
            self.report()?;
        }
        Ok(())
    }

    /// Other settings from here on; the other end is told by a poll sequence.
    pub fn set_settings(&self, path: Path, settings: Settings) -> Result<(), Error> {
        self.known(path)?;
        self.command(Command::Set(path, settings))
    }

    /// Ordered stop: AdminDown is said; `AdminDownSent` and `Stopped` tell when it has been.
    pub fn stop(&self, path: Path) -> Result<(), Error> {
        self.known(path)?;
        self.command(Command::Stop(Some(path)))
    }

    /// Ordered stop of all sessions.
    pub fn stop_all(&self) -> Result<(), Error> {
        self.command(Command::Stop(None))
    }

    /// Ends an ordered stop.
    pub fn resume(&self, path: Path) -> Result<(), Error> {
        self.known(path)?;
        self.command(Command::Resume(Some(path)))
    }

    /// Ends an ordered stop of all sessions.
    pub fn resume_all(&self) -> Result<(), Error> {
        self.command(Command::Resume(None))
    }

    /// The data plane has lost what it knew: all sessions go down with that diagnostic.
    pub fn reset_forwarding_plane(&self) -> Result<(), Error> {
        self.command(Command::ResetForwardingPlane)
    }

    /// Everything as it stands. Waits for the thread, a second at most.
    pub fn report(&self) -> Result<Report, Error> {
        let (tell, report) = mpsc::sync_channel(1);
        self.command(Command::Report(tell))?;
        report.recv_timeout(REPORT_WAIT_MAX).map_err(|_| Error::Gone)
    }

    fn known(&self, path: Path) -> Result<(), Error> {
        if self.paths.contains(&path) { Ok(()) } else { Err(Error::Unknown(path)) }
    }

    fn command(&self, command: Command) -> Result<(), Error> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => Error::Busy,
            TrySendError::Disconnected(_) => Error::Gone,
        })?;
        sys::wake(&self.wake);
        Ok(())
    }

    /// One socket receives for all sessions of a port and family.
    fn listen(&mut self, port: Port, family: Family) -> Result<(), Error> {
        if self.listening.contains(&(port, family)) {
            return Ok(());
        }
        let number = port.number();
        let socket = sys::open(family.any(), number, sys::Purpose::Receive).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                let sockets = holder::sockets_at(number);
                let holder = Holder::of_sockets(&sockets);
                Error::PortTaken { port: number, family, sockets, holder }
            }
            _ => Error::Receive { port: number, family, error },
        })?;
        self.command(Command::Listen(port, family, socket))?;
        self.listening.insert((port, family));
        Ok(())
    }

    fn source_socket(&mut self, endpoint: &Endpoint) -> Result<OwnedFd, Error> {
        let local = endpoint.local();
        let interface = match endpoint.hops() {
            Hops::Single { interface } => Some(interface),
            Hops::Multi { .. } => None,
        };
        for _ in 0..SOURCE_PORTS_TRIED_MAX {
            let port = self.next_source_port;
            //= rfc5881#4:source-port MUST: from 49152 to 65535, and the same for all packets of a session
            //= rfc5881#4:source-port-unique SHOULD: each session has its own, until all have been used
            self.next_source_port = if port == *SOURCE_PORTS.end() { *SOURCE_PORTS.start() } else { port + 1 };
            match sys::open(local, port, sys::Purpose::Send(interface)) {
                Ok(socket) => return Ok(socket),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(Error::Send { local, error }),
            }
        }
        Err(Error::SourcePorts { local })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Where the queue is full, the thread ends when it finds it closed.
        let _ = self.command(Command::End);
        let (closed, _) = mpsc::sync_channel(1);
        drop(std::mem::replace(&mut self.commands, closed));
        sys::wake(&self.wake);
        if let Some(thread) = self.thread.take() {
            // One that has panicked has said so on its own.
            let _ = thread.join();
        }
    }
}
