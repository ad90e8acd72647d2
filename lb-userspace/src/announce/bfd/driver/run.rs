//! The thread.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
    time::Duration,
};

use serde::Serialize;

use super::{Command, Family, Opening, Sink, lateness::Histogram, sys};
use crate::announce::bfd::{
    driver::Lateness,
    machine::{DropReason, Endpoint, Heartbeat, Path, Port, Received, SESSIONS_MAX, Session, Sessions, Status},
};

/// Above ordinary threads, and below what watches over the kernel itself.
const PRIORITY: i32 = 10;
/// Datagrams that are taken from a socket before timers have their turn: who floods a port does not silence us.
const RECEIVED_AT_ONCE_MAX: usize = 256;
/// Longest sleep, while there are no sessions.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// The place of the eventfd in the poller; the receiving sockets have the others.
const COMMANDS: usize = 0;
const PLACES: usize = 1 + LISTENERS.len();
const LISTENERS: [(Port, Family); 4] = [
    (Port::SingleHop, Family::Ipv4),
    (Port::SingleHop, Family::Ipv6),
    (Port::Multihop, Family::Ipv4),
    (Port::Multihop, Family::Ipv6),
];

/// How the thread is scheduled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduling {
    /// Before all ordinary threads.
    Realtime {
        /// Of SCHED_FIFO.
        priority: i32,
    },
    /// Like any thread: sessions may be lost when the node is busy.
    Normal {
        /// Why not better.
        why: String,
    },
}

/// One session in a report.
#[derive(Clone, Debug, Serialize)]
pub struct SessionReport {
    /// Its ends.
    pub endpoint: Endpoint,
    /// How it stands.
    pub status: Status,
    /// Packets that the kernel did not take.
    pub send_errors: u64,
    /// Why it did not take the last of them.
    pub last_send_error: Option<String>,
}

/// Everything as it stands.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How the thread is scheduled.
    pub scheduling: Scheduling,
    /// Each session.
    pub sessions: Vec<SessionReport>,
    /// Datagrams that reached a session.
    pub accepted: u64,
    /// Those that did not, by reason; all reasons are listed.
    pub dropped: Vec<(DropReason, u64)>,
    /// How late packets left.
    pub lateness: Lateness,
    /// Processor time that the thread has used.
    pub thread_time: Duration,
}

struct Sender {
    socket: OwnedFd,
    to: sys::SocketAddress,
    errors: u64,
    /// As the kernel numbers them.
    last_error: Option<i32>,
}

/// What the thread owns.
pub struct Runner {
    sessions: Sessions,
    /// By the session's slot.
    senders: Box<[Option<Sender>]>,
    listeners: [Option<OwnedFd>; LISTENERS.len()],
    poller: sys::Poller<PLACES>,
    payload: [u8; sys::PAYLOAD_BYTES_MAX],
    heartbeat: Arc<Heartbeat>,
    sink: Box<dyn Sink>,
    commands: Receiver<Command>,
    wake: Arc<OwnedFd>,
    scheduling: Scheduling,
    lateness: Histogram,
}

impl Runner {
    /// Not running yet.
    pub fn new(
        seed: u64,
        heartbeat: Arc<Heartbeat>,
        sink: Box<dyn Sink>,
        commands: Receiver<Command>,
        wake: Arc<OwnedFd>,
    ) -> Self {
        let mut poller = sys::Poller::waiting_for_none();
        poller.set(COMMANDS, &wake);
        Self {
            sessions: Sessions::new(seed),
            senders: (0..SESSIONS_MAX).map(|_| None).collect(),
            listeners: [const { None }; LISTENERS.len()],
            poller,
            payload: [0; sys::PAYLOAD_BYTES_MAX],
            heartbeat,
            sink,
            commands,
            wake,
            scheduling: Scheduling::Normal { why: "the thread has not begun".into() },
            lateness: Histogram::new(),
        }
    }

    /// Until it is told to end.
    pub fn run(mut self, prepared: impl FnOnce()) {
        self.scheduling = match sys::make_realtime(PRIORITY) {
            Ok(()) => Scheduling::Realtime { priority: PRIORITY },
            Err(error) => Scheduling::Normal { why: format!("SCHED_FIFO is refused: {error}; CAP_SYS_NICE allows it") },
        };
        prepared();
        loop {
            let due = self.sessions.poll_timeout();
            let wait = due.map_or(SLEEP_MAX, |due| due.saturating_sub(sys::boot_time()).min(SLEEP_MAX));
            self.poller.wait(wait);
            // What has come in time counts, also where this thread comes late: packets before timers.
            self.receive();
            let now = sys::boot_time();
            self.sessions.handle_timeout(now);
            self.transmit(now);
            while let Some((path, event)) = self.sessions.poll_event() {
                self.sink.notify(path, event);
            }
            if self.poller.is_ready(COMMANDS) && !self.obey() {
                return;
            }
        }
    }

    fn receive(&mut self) {
        let now = sys::boot_time();
        for (place, (port, family)) in LISTENERS.into_iter().enumerate() {
            let Some(socket) = self.listeners[place].as_ref().filter(|_| self.poller.is_ready(place + 1)) else {
                continue;
            };
            for _ in 0..RECEIVED_AT_ONCE_MAX {
                let Some(arrival) = sys::receive(socket, &mut self.payload) else { break };
                let received = Received {
                    port,
                    source: arrival.source,
                    destination: arrival.destination.unwrap_or(family.any()),
                    interface: arrival.interface,
                    ttl: arrival.ttl,
                    payload: &self.payload[..arrival.length],
                };
                // Dropped ones are counted there.
                let _ = self.sessions.handle_packet(&received, now);
            }
        }
    }

    fn transmit(&mut self, now: Duration) {
        let pulse = self.heartbeat.pulse();
        while let Some(transmit) = self.sessions.poll_transmit(now, pulse) {
            let Some(sender) = &mut self.senders[transmit.slot.index()] else { continue };
            match sys::send(&sender.socket, &transmit.payload, &sender.to) {
                Ok(()) => self.sessions.handle_sent(transmit.slot),
                Err(error) => {
                    sender.errors += 1;
                    sender.last_error = error.raw_os_error();
                }
            }
            if !transmit.due.is_zero() {
                self.lateness.record(sys::boot_time().saturating_sub(transmit.due));
            }
        }
    }

    /// False where the thread is to end.
    fn obey(&mut self) -> bool {
        sys::drain(&self.wake);
        loop {
            let now = sys::boot_time();
            match self.commands.try_recv() {
                Ok(Command::Listen(port, family, socket)) => self.listen(port, family, socket),
                Ok(Command::Unlisten(port, family)) => self.unlisten(port, family),
                Ok(Command::Open(opening)) => self.open(*opening, now),
                Ok(Command::Close(path)) => self.close(path),
                Ok(Command::Set(path, settings)) => {
                    self.sessions.with(path, |session| session.set_settings(settings, now));
                }
                Ok(Command::Stop(path)) => self.each(path, |session| session.stop(now)),
                Ok(Command::Resume(path)) => self.each(path, |session| session.resume(now)),
                Ok(Command::ResetForwardingPlane) => {
                    self.sessions.with_each(|session| session.reset_forwarding_plane(now));
                }
                Ok(Command::Report(tell)) => {
                    // Who asked may have given up.
                    let _ = tell.try_send(self.report());
                }
                Ok(Command::End) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn listen(&mut self, port: Port, family: Family, socket: OwnedFd) {
        if let Some(place) = LISTENERS.iter().position(|listener| *listener == (port, family)) {
            self.poller.set(place + 1, &socket);
            self.listeners[place] = Some(socket);
        }
    }

    fn unlisten(&mut self, port: Port, family: Family) {
        if let Some(place) = LISTENERS.iter().position(|listener| *listener == (port, family)) {
            self.poller.clear(place + 1);
            self.listeners[place] = None;
        }
    }

    fn open(&mut self, opening: Opening, now: Duration) {
        let Opening { endpoint, settings, socket, to } = opening;
        let slot = self.sessions.open(endpoint, settings, now).expect("the driver has checked paths and their number");
        self.senders[slot.index()] = Some(Sender { socket, to, errors: 0, last_error: None });
    }

    fn close(&mut self, path: Path) {
        if let Some(slot) = self.sessions.close(path) {
            self.senders[slot.index()] = None;
        }
    }

    fn each(&mut self, path: Option<Path>, mut act: impl FnMut(&mut Session)) {
        match path {
            Some(path) => {
                self.sessions.with(path, act);
            }
            None => self.sessions.with_each(&mut act),
        }
    }

    fn report(&self) -> Report {
        let sessions = self.sessions.statuses().map(|(slot, endpoint, status)| {
            let sender = self.senders[slot.index()].as_ref();
            SessionReport {
                endpoint,
                status,
                send_errors: sender.map_or(0, |sender| sender.errors),
                last_send_error: sender
                    .and_then(|sender| sender.last_error)
                    .map(|error| io::Error::from_raw_os_error(error).to_string()),
            }
        });
        Report {
            scheduling: self.scheduling.clone(),
            sessions: sessions.collect(),
            accepted: self.sessions.counts().accepted(),
            dropped: self.sessions.counts().drops().collect(),
            lateness: self.lateness.summary(),
            thread_time: sys::thread_time(),
        }
    }
}
