//! All sessions' traffic, without a pause, from one thread: each says a line, hears the answer, and is timed.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    sync::mpsc::{Receiver, Sender, TryRecvError, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::programs::conversation::Speaker;

/// A line that takes longer is a stall.
pub const STALL: Duration = Duration::from_secs(3);
/// A session that hears nothing for so long is lost.
const GIVE_UP: Duration = Duration::from_secs(12);
/// Lines under way at a time: fewer than a veth's ring takes.
const WINDOW: usize = 128;
/// Between two rounds, so that others get to run.
const PAUSE: Duration = Duration::from_millis(10);
const LINE_BYTES: usize = 32;

/// One connection, of which this process has both ends.
#[derive(Debug)]
pub struct Session {
    /// The end in the network element.
    pub client: TcpStream,
    /// The end in the pod.
    pub pod: TcpStream,
    /// Number of the pod.
    pub place: usize,
    /// The VIP that the client dialled.
    pub target: SocketAddr,
    speaker: Speaker,
    said: u32,
    heard: [u8; LINE_BYTES],
    length: usize,
}

impl Session {
    /// A connection, both of whose ends do not block.
    pub fn new(client: TcpStream, pod: TcpStream, place: usize, target: SocketAddr, speaker: Speaker) -> Result<Self> {
        for end in [&client, &pod] {
            end.set_nonblocking(true)?;
            end.set_nodelay(true)?;
        }
        Ok(Self { client, pod, place, target, speaker, said: 0, heard: [0; LINE_BYTES], length: 0 })
    }

    fn line(&self) -> [u8; LINE_BYTES] {
        let text = format!("{:>width$}", self.said, width = LINE_BYTES);
        text.as_bytes().try_into().expect("a number is shorter than a line")
    }

    /// The end that speaks in a leg of an exchange: first the speaker, then the other.
    const fn from(&self, leg: Leg) -> &TcpStream {
        match (self.speaker, leg) {
            (Speaker::Client, Leg::First) | (Speaker::Pod, Leg::Answer) => &self.client,
            (Speaker::Pod, Leg::First) | (Speaker::Client, Leg::Answer) => &self.pod,
        }
    }

    const fn to(&self, leg: Leg) -> &TcpStream {
        match leg {
            Leg::First => self.from(Leg::Answer),
            Leg::Answer => self.from(Leg::First),
        }
    }

    fn say(&mut self, leg: Leg) -> io::Result<()> {
        self.said += 1;
        self.length = 0;
        // One line is under way at a time, so there is always room for it.
        self.from(leg).write_all(&self.line())
    }

    /// Whether the whole line is there.
    fn hear(&mut self, leg: Leg) -> io::Result<bool> {
        let mut buffer = [0; LINE_BYTES];
        match self.to(leg).read(&mut buffer[self.length..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                self.heard[self.length..self.length + read].copy_from_slice(&buffer[self.length..self.length + read]);
                self.length += read;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
        if self.length < LINE_BYTES {
            return Ok(false);
        }
        if self.heard == self.line() { Ok(true) } else { Err(io::Error::other("another line than was said")) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leg {
    First,
    Answer,
}

/// What came of the traffic since the last report.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Sessions that there were.
    pub sessions: usize,
    /// Those that broke, and how.
    pub lost: Vec<String>,
    /// Lines that arrived.
    pub lines: u64,
    /// Lines that took longer than [`STALL`].
    pub stalls: u64,
    /// The longest that a line took.
    pub longest: Duration,
}

type Pick = Box<dyn FnMut(&Session) -> bool + Send>;

enum Order {
    Add(Vec<Session>),
    Take(Pick, Sender<Vec<Session>>),
    Tell(Sender<Report>),
}

/// The thread.
pub struct Traffic {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    /// Without sessions yet.
    #[must_use]
    pub fn start() -> Self {
        let (orders, receiver) = channel();
        Self { orders: Some(orders), thread: Some(thread::spawn(move || run(&receiver))) }
    }

    /// These speak from now on.
    pub fn add(&self, sessions: Vec<Session>) -> Result<()> {
        self.order(Order::Add(sessions))
    }

    /// Those speak no more.
    pub fn take(&self, pick: impl FnMut(&Session) -> bool + Send + 'static) -> Result<Vec<Session>> {
        let (reply, taken) = channel();
        self.order(Order::Take(Box::new(pick), reply))?;
        taken.recv().context("the traffic has ended")
    }

    /// Waits until every session has made an exchange that began after this call, and says what broke since the last one.
    pub fn tell(&self) -> Result<Report> {
        let (reply, report) = channel();
        self.order(Order::Tell(reply))?;
        report.recv().context("the traffic has ended")
    }

    fn order(&self, order: Order) -> Result<()> {
        let orders = self.orders.as_ref().context("the traffic has ended")?;
        orders.send(order).ok().context("the traffic has ended")
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

fn run(orders: &Receiver<Order>) {
    let mut sessions = Vec::new();
    let mut report = Report::default();
    loop {
        let mut asked = Vec::new();
        loop {
            match orders.try_recv() {
                Ok(Order::Add(more)) => sessions.extend(more),
                Ok(Order::Take(mut pick, reply)) => {
                    // Whoever asked may have failed.
                    let _ = reply.send(sessions.extract_if(.., |session| pick(session)).collect());
                }
                Ok(Order::Tell(reply)) => asked.push(reply),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        let before = sessions.len();
        round(&mut sessions, &mut report);
        for reply in asked {
            let _ = reply.send(Report { sessions: before, ..std::mem::take(&mut report) });
        }
        thread::sleep(PAUSE);
    }
}

/// An exchange under way.
struct Exchange {
    session: usize,
    leg: Leg,
    since: Instant,
}

/// One exchange of every session.
fn round(sessions: &mut Vec<Session>, report: &mut Report) {
    let mut open: Vec<Exchange> = Vec::with_capacity(WINDOW);
    let mut broken = Vec::new();
    let mut next = 0;
    loop {
        while open.len() < WINDOW && next < sessions.len() {
            let exchange = Exchange { session: next, leg: Leg::First, since: Instant::now() };
            match sessions[next].say(Leg::First) {
                Ok(()) => open.push(exchange),
                Err(error) => broken.push((next, error)),
            }
            next += 1;
        }
        if open.is_empty() {
            break;
        }
        wait(sessions, &open);
        open.retain_mut(|exchange| match step(&mut sessions[exchange.session], exchange, report) {
            Ok(done) => !done,
            Err(error) => {
                broken.push((exchange.session, error));
                false
            }
        });
    }
    broken.sort_unstable_by_key(|(session, _)| std::cmp::Reverse(*session));
    for (at, error) in broken {
        let Session { client, place, target, .. } = sessions.swap_remove(at);
        report.lost.push(format!("{:?} to {target}, in pod {place}: {error}", client.local_addr().ok()));
    }
}

/// Whether the exchange is done.
fn step(session: &mut Session, exchange: &mut Exchange, report: &mut Report) -> io::Result<bool> {
    if !session.hear(exchange.leg)? {
        let waited = exchange.since.elapsed();
        return if waited < GIVE_UP { Ok(false) } else { Err(io::Error::other(format!("silent for {waited:?}"))) };
    }
    let took = exchange.since.elapsed();
    report.lines += 1;
    report.stalls += u64::from(took > STALL);
    report.longest = report.longest.max(took);
    if exchange.leg == Leg::Answer {
        return Ok(true);
    }
    (exchange.leg, exchange.since) = (Leg::Answer, Instant::now());
    session.say(Leg::Answer)?;
    Ok(false)
}

/// Until one of the lines may be there.
fn wait(sessions: &[Session], open: &[Exchange]) {
    let fd = |exchange: &Exchange| sessions[exchange.session].to(exchange.leg).as_raw_fd();
    let mut fds: Vec<_> = open.iter().map(|e| libc::pollfd { fd: fd(e), events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the array lives across the call and has as many elements. An interrupted wait is followed by a look.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 100) };
}
