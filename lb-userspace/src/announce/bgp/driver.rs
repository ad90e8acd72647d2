//! Speaks BGP, on a thread of its own.
//!
//! The engine hands over the whole of what is wanted, and the thread follows. Waits for nothing but its sockets, its
//! timers and the engine. Needs CAP_NET_BIND_SERVICE for as long as it listens below port 1024. To name another user's
//! process that holds a port or a session it needs CAP_SYS_PTRACE, and the host's PID namespace.
//!
//! Once the engine has begun to beat it must go on. Where nothing was heard of it for [`HEARTBEAT_MAX`](crate::announce::silence::HEARTBEAT_MAX), all routes are
//! withdrawn, with BFD or without: nobody knows then whether what is announced can be served. Sessions stay, and with its
//! next beat all is announced again that it wanted last. Where it is gone, connections end without a word.

mod connection;
mod entry;
mod holder;
mod listening;
mod report;
mod running;
mod signatures;
mod sockets;
mod wanted;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender, TryRecvError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    time::Timespec,
};

use self::running::Running;
use crate::announce::silence::Silence;

pub use crate::net::processes::Holder;
pub use report::{PeerReport, Problem, Report, Shown};
pub use signatures::Signatures;
pub use sockets::{local_towards, socket_address};
pub use wanted::{BGP_PORT, Interface, SECRET_OCTETS_MAX, Secret, SecretError, Ttl, Wanted, WantedPeer};

/// How long a stop waits for last words to be taken: longer than a connection has for that.
const STOP_MAX: Duration = Duration::from_secs(3);
/// How long the engine waits for a report, which the thread gives between two turns.
const REPORT_MAX: Duration = Duration::from_millis(500);

pub use crate::announce::driver::boot_time;

enum Order {
    Want(Box<Wanted>),
    Report(Sender<Report>),
    Stop,
}

/// The thread as the engine sees it. Where this is dropped without a stop, as where the agent dies, connections end
/// without a word.
#[derive(Debug)]
pub struct Speaker {
    orders: Sender<Order>,
    wake: Arc<OwnedFd>,
    /// When the engine lived, in nanoseconds of the boot clock; 0: it has not said so yet.
    beat: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Speaker {
    /// Begins; nothing is wanted yet. `seed` is random, so that nodes do not retry in step. `prepare` is called on the
    /// thread first of all: to drop privileges that it does not need. Sockets are those of the caller's network
    /// namespace.
    pub fn start(seed: u64, prepare: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (orders, received) = mpsc::channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let beat = Arc::new(AtomicU64::new(0));
        let theirs = (Arc::clone(&wake), Arc::clone(&beat));
        let run = move || {
            prepare();
            let (wake, beat) = theirs;
            let now = boot_time();
            Driver { orders: received, wake, beat, silence: Silence::new(now), running: Running::new(seed) }.run();
        };
        let thread = thread::Builder::new().name("bgp".into()).spawn(run)?;
        Ok(Self { orders, wake, beat, thread: Some(thread) })
    }

    /// Says that the engine lives. Once this was said, routes are withdrawn where it is not for [`HEARTBEAT_MAX`](crate::announce::silence::HEARTBEAT_MAX).
    pub fn beat(&self) {
        self.beat.store(boot_time().as_nanos() as u64, Ordering::Relaxed);
    }

    /// From here on this is announced to these peers and nothing else. May be said as often as one likes. Whoever beats says
    /// by it that it lives, too: this may be the end of long work.
    pub fn want(&self, wanted: Wanted) {
        if self.beat.load(Ordering::Relaxed) != 0 {
            self.beat();
        }
        self.order(Order::Want(Box::new(wanted)));
    }

    /// What it does. `None` where it does not answer.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        let (answer, report) = mpsc::channel();
        self.order(Order::Report(answer));
        report.recv_timeout(REPORT_MAX).ok()
    }

    /// Ends all sessions, within seconds. What a stage has not ended before is told by a Cease.
    pub fn stop(&mut self) {
        self.order(Order::Stop);
        if let Some(thread) = self.thread.take() {
            // It has said what went wrong itself.
            let _ = thread.join();
        }
    }

    /// A thread that has ended does nothing, and says so in reports.
    fn order(&self, order: Order) {
        if self.orders.send(order).is_ok() {
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }
}

impl Drop for Speaker {
    /// Wakes the thread, which finds that nobody is there.
    fn drop(&mut self) {
        self.orders = mpsc::channel().0;
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}

struct Driver {
    orders: Receiver<Order>,
    wake: Arc<OwnedFd>,
    beat: Arc<AtomicU64>,
    silence: Silence,
    running: Running,
}

/// What the engine says.
enum Told {
    Nothing,
    Stop,
    /// It is gone.
    Gone,
}

impl Driver {
    fn run(mut self) {
        let mut stop_at: Option<Duration> = None;
        loop {
            let _ = rustix::io::read(&*self.wake, &mut [0u8; 8]);
            match self.follow_orders() {
                Told::Nothing => {}
                Told::Stop => {
                    stop_at = Some(boot_time() + STOP_MAX);
                    self.running.stop(boot_time());
                }
                Told::Gone if stop_at.is_none() => return,
                Told::Gone => {}
            }
            let is_silent = self.silence.turn(self.heard(), boot_time());
            self.running.set_silenced(is_silent, boot_time());
            self.running.hear(boot_time());
            let has_more = self.running.handle_timeout(boot_time());
            if stop_at.is_some_and(|at| self.running.has_ended() || boot_time() >= at) {
                return;
            }
            if !has_more {
                self.wait(stop_at);
            }
        }
    }

    /// The engine's last beat.
    fn heard(&self) -> Option<Duration> {
        let heard = self.beat.load(Ordering::Relaxed);
        (heard != 0).then(|| Duration::from_nanos(heard))
    }

    fn follow_orders(&mut self) -> Told {
        loop {
            match self.orders.try_recv() {
                Ok(Order::Want(wanted)) => self.running.follow(*wanted, boot_time()),
                // Whoever asked may have left.
                Ok(Order::Report(answer)) => drop(answer.send(self.running.report())),
                Ok(Order::Stop) => return Told::Stop,
                Err(TryRecvError::Empty) => return Told::Nothing,
                Err(TryRecvError::Disconnected) => return Told::Gone,
            }
        }
    }

    fn wait(&self, stop_at: Option<Duration>) {
        let rest = self.running.poll_timeout().into_iter().chain(stop_at).min();
        let rest = rest.map(|due| due.saturating_sub(boot_time()));
        let timeout =
            rest.map(|rest| Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: i64::from(rest.subsec_nanos()) });
        let wake = [(self.wake.as_fd(), PollFlags::IN)];
        let descriptors = wake.into_iter().chain(self.running.descriptors());
        let mut descriptors: Vec<PollFd<'_>> =
            descriptors.map(|(descriptor, flags)| PollFd::from_borrowed_fd(descriptor, flags)).collect();
        // Interrupted or not, the loop looks at everything.
        let _ = poll(&mut descriptors, timeout.as_ref());
    }
}
