//! Tells the network what the engine wants told, on a thread of its own.
//!
//! The engine hands over the whole of what is wanted, and the thread follows. Where the engine says nothing for
//! [`HEARTBEAT_MAX`](super::silence::HEARTBEAT_MAX), or is gone, every virtual router leaves: who hangs must not look alive. What is held always stays.

mod complaints;
mod groups;
mod running;
mod sockets;
mod tell;
mod written;

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender, SyncSender, TryRecvError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lb_common::holder::{Conflict, Holder, HolderKey, VirtualMac, VirtualMacKey};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    time::{ClockId, Timespec, clock_gettime},
};
use serde::Serialize;
use tracing::warn;

use self::{
    running::Running,
    sockets::{Frames, PACKET_MAX, Routers},
};
use super::{
    silence::{LOOK_INTERVAL, Silence},
    vrrp::{Family, machine::Status, packet::Malformed},
    wanted::{RouterKey, Wanted},
};
use crate::{
    net::{InterfaceIndex, links::Mac},
    privileges,
};

/// How long a stop waits for successors at most: at longer intervals a second signal is not worth waiting for.
const STOP_MAX: Duration = Duration::from_secs(5);
/// How long the engine waits for a report, which the thread gives between two packets.
const REPORT_MAX: Duration = Duration::from_millis(500);

/// Where it is said who answers for a VIP: the data plane's maps, or memory in tests.
pub trait Answers: Send {
    /// What an earlier agent has left.
    fn all(&self) -> io::Result<Vec<(HolderKey, Holder)>>;
    /// From here on as this says.
    fn set(&mut self, key: &HolderKey, holder: &Holder) -> io::Result<()>;
    /// From here on not our business.
    fn remove(&mut self, key: &HolderKey) -> io::Result<()>;
    /// Of `all`, the virtual MACs.
    fn all_macs(&self) -> io::Result<Vec<(VirtualMacKey, VirtualMac)>>;
    /// From here on frames to a virtual MAC are treated as this says.
    fn set_mac(&mut self, key: &VirtualMacKey, mac: &VirtualMac) -> io::Result<()>;
    /// From here on they are not our business.
    fn remove_mac(&mut self, key: &VirtualMacKey) -> io::Result<()>;
    /// Who else has claimed held addresses since the last time.
    fn take_conflicts(&mut self) -> io::Result<Vec<(HolderKey, Conflict)>>;
}

/// Time by the clock that goes on while the machine sleeps, as the data plane reads it.
#[must_use]
pub fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// Questions that wait for an answer: the engine asks one at a time.
const ASKED_MAX: usize = 4;

/// To be told what is going on. Where nobody can send one any more, it is time to stop.
type Asked = Sender<Report>;

/// What the engine says without being waited for: only the newest counts.
#[derive(Debug, Default)]
struct Newest {
    wanted: Mutex<Option<Box<Wanted>>>,
    /// When the engine lived, in nanoseconds of the boot clock.
    beat: AtomicU64,
}

impl Newest {
    fn beat(&self) {
        self.beat.store(boot_time().as_nanos() as u64, Ordering::Relaxed);
    }
}

/// What a thread that announces shows of itself.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Virtual routers.
    pub routers: Vec<RouterReport>,
    /// Addresses that this node answers for without election, with the interface.
    pub always: Vec<(String, std::net::IpAddr)>,
    /// Who else claims what, by interface index and address: MAC and how often.
    pub conflicts: Vec<ConflictReport>,
    /// Packets of VRRP that were discarded before it was known whose they are, by reason.
    pub malformed: BTreeMap<Malformed, u64>,
}

/// A virtual router in a [`Report`].
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouterReport {
    /// Its group.
    pub group: String,
    /// Its interface.
    pub interface: String,
    /// The interface and the MAC that its VIPs are at, where it is not the interface's own.
    #[serde(skip)]
    pub virtual_mac: Option<(InterfaceIndex, Mac)>,
    /// How long it is in its state.
    pub since_seconds: u64,
    /// What went wrong last.
    pub last_error: Option<RouterError>,
    /// Everything else.
    #[serde(flatten)]
    pub status: Status,
}

/// What went wrong with a virtual router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouterError {
    /// How many seconds ago.
    pub seconds_ago: u64,
    /// `malformed`, `differs` or `unsent`.
    pub cause: &'static str,
    /// What exactly, and who has done it.
    pub detail: String,
}

/// Somebody else who claims a held address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConflictReport {
    /// Interface index.
    pub interface: u32,
    /// The VIP.
    pub vip: std::net::IpAddr,
    /// Who claimed it last.
    pub mac: String,
    /// How often.
    pub count: u64,
}

/// The thread as the engine sees it. It goes on answering for what is held always when this is dropped.
#[derive(Debug)]
pub struct Announcer {
    questions: Option<SyncSender<Asked>>,
    newest: Arc<Newest>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Sockets that need privileges to be opened, before they are dropped.
#[derive(Debug)]
pub struct Opened {
    routers: Routers,
    frames: Frames,
}

impl Opened {
    /// Opens them.
    pub fn open() -> io::Result<Self> {
        Ok(Self { routers: Routers::open()?, frames: Frames::open()? })
    }
}

impl Announcer {
    /// Begins; nothing is wanted yet, and what an earlier agent has left stays until something is.
    pub fn start(opened: Opened, answers: Box<dyn Answers>) -> io::Result<Self> {
        let (questions, received) = mpsc::sync_channel(ASKED_MAX);
        let newest = Arc::new(Newest::default());
        newest.beat();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let driver = Driver {
            questions: received,
            newest: Arc::clone(&newest),
            wake: Arc::clone(&wake),
            silence: Silence::new(boot_time()),
            running: Running::new(opened.routers, opened.frames, answers),
        };
        let run = move || {
            if let Err(error) = privileges::drop_all() {
                warn!(%error, "the thread that announces keeps its capabilities");
            }
            driver.run();
        };
        let thread = thread::Builder::new().name("announce".into()).spawn(run)?;
        Ok(Self { questions: Some(questions), newest, wake, thread: Some(thread) })
    }

    /// From here on this is announced and nothing else. Says that the engine lives, too.
    pub fn want(&self, wanted: Wanted) {
        self.newest.beat();
        *self.newest.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(wanted));
        self.wake();
    }

    /// Says that the engine lives.
    pub fn beat(&self) {
        self.newest.beat();
    }

    /// What it does. `None` where it does not answer.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        let (answer, report) = mpsc::channel();
        self.questions.as_ref()?.try_send(answer).ok()?;
        self.wake();
        report.recv_timeout(REPORT_MAX).ok()
    }

    /// Hands over to others, make before break, and ends.
    pub fn stop(&mut self) {
        self.questions = None;
        self.wake();
        if let Some(thread) = self.thread.take() {
            // It has said what went wrong itself.
            let _ = thread.join();
        }
    }

    fn wake(&self) {
        // It fails only where it is awake already.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}

struct Driver {
    questions: Receiver<Asked>,
    newest: Arc<Newest>,
    wake: Arc<OwnedFd>,
    silence: Silence,
    running: Running,
}

impl Driver {
    fn run(mut self) {
        let mut stop_at: Option<Duration> = None;
        loop {
            let _ = rustix::io::read(&*self.wake, &mut [0u8; 8]);
            if self.follow_orders() && stop_at.is_none() {
                stop_at = Some(boot_time() + STOP_MAX);
                self.running.stop(boot_time());
            }
            let now = boot_time();
            let heard = Duration::from_nanos(self.newest.beat.load(Ordering::Relaxed));
            if self.silence.turn(Some(heard), now) {
                self.running.silence(now);
            } else {
                self.running.resume(now);
            }
            self.hear();
            self.running.handle_timeout(boot_time());
            if stop_at.is_some_and(|at| self.running.has_left() || boot_time() >= at) {
                return;
            }
            self.wait(stop_at);
        }
    }

    /// True where it is to end.
    fn follow_orders(&mut self) -> bool {
        let wanted = self.newest.wanted.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(wanted) = wanted {
            self.running.follow(*wanted, boot_time());
        }
        loop {
            match self.questions.try_recv() {
                // Whoever asked may have left.
                Ok(asked) => drop(asked.send(self.running.report(boot_time()))),
                Err(TryRecvError::Disconnected) => return true,
                Err(TryRecvError::Empty) => return false,
            }
        }
    }

    /// Reads the sockets empty, before any timer is looked at: what has come in time counts.
    fn hear(&mut self) {
        /// A flood may not keep us from sending.
        const PACKETS_MAX: usize = 512;
        let mut buffer = [0; PACKET_MAX];
        for family in [Family::Ipv4, Family::Ipv6] {
            for _ in 0..PACKETS_MAX {
                if !self.running.receive(family, &mut buffer) {
                    break;
                }
            }
        }
    }

    fn wait(&self, stop_at: Option<Duration>) {
        let now = boot_time();
        let due = self.running.poll_timeout().into_iter().chain(stop_at).chain([now + LOOK_INTERVAL]).min();
        let rest = due.unwrap_or(now).saturating_sub(now);
        let timeout = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: i64::from(rest.subsec_nanos()) };
        let wake = [self.wake.as_fd()];
        let descriptors = wake.into_iter().chain(self.running.descriptors());
        let mut descriptors: Vec<PollFd<'_>> =
            descriptors.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN)).collect();
        // Interrupted or not, the loop looks at everything.
        let _ = poll(&mut descriptors, Some(&timeout));
    }
}

/// A virtual router's name in logs.
fn name(key: &RouterKey) -> String {
    format!("{} {} on {}", key.family, key.vrid, key.interface)
}
