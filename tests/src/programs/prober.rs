//! A thousand datagrams a second to a VIP, each with a number, and the echo in the pods: who answered, when, and which
//! were lost.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::lab::{ELEMENT, Family, Namespace};

/// From one datagram to the next.
pub const PERIOD: Duration = Duration::from_millis(1);
/// How long the last answers are waited for.
const LINGER: Duration = Duration::from_millis(300);
/// How long a socket waits before it looks whether to stop.
const TICK: Duration = Duration::from_millis(50);
/// A datagram's number; an answer has the node's tag behind it.
const NUMBER_BYTES: usize = 8;
/// No responder's tag.
const NOBODY: u8 = u8::MAX;
/// Real-time priority of these threads, so that builds beside the measurement are not measured.
const PRIORITY: i32 = 2;

/// Answers each datagram with its own bytes and a tag; ends on drop.
#[derive(Debug)]
pub struct Responder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Listens at this address. An address that is not there yet needs `net.ipv4.ip_nonlocal_bind` of the namespace.
    pub fn start(namespace: &Namespace, at: SocketAddr, tag: u8) -> Result<Self> {
        let socket = namespace
            .run(|| UdpSocket::bind(at))
            .with_context(|| format!("cannot bind UDP {at} in {}", namespace.name()))?;
        socket.set_read_timeout(Some(TICK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            hurry();
            let mut buffer = [0; NUMBER_BYTES + 1];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, source)) = socket.recv_from(&mut buffer[..NUMBER_BYTES]) else { continue };
                buffer[length] = tag;
                // A lost answer is what is being counted.
                let _ = socket.send_to(&buffer[..=length], source);
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The datagram's number, from 0.
    pub number: usize,
    /// When it came, from the probe's beginning.
    pub at: Duration,
    /// Who answered.
    pub tag: u8,
}

/// Datagrams on their way.
#[derive(Debug)]
pub struct Prober {
    stop: Arc<AtomicBool>,
    /// The last tag that came, or [`NOBODY`].
    last: Arc<AtomicU8>,
    begun: Instant,
    sender: JoinHandle<Vec<Duration>>,
    receiver: JoinHandle<Vec<Answer>>,
}

impl Prober {
    /// Begins to send from the element, always by the same socket: to routers it is one flow.
    pub fn start(element: &Namespace, target: SocketAddr) -> Result<Self> {
        let family = if target.is_ipv4() { Family::V4 } else { Family::V6 };
        let socket = element.run(|| -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind((ELEMENT.of(family), 0))?;
            socket.connect(target)?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(TICK))?;
        let (stop, begun) = (Arc::new(AtomicBool::new(false)), Instant::now());
        let (sending, stopped) = (socket.try_clone()?, Arc::clone(&stop));
        let sender = thread::spawn(move || send(&sending, begun, &stopped));
        let (last, stopped) = (Arc::new(AtomicU8::new(NOBODY)), Arc::clone(&stop));
        let told = Arc::clone(&last);
        let receiver = thread::spawn(move || receive(&socket, begun, &stopped, &told));
        Ok(Self { stop, last, begun, sender, receiver })
    }

    /// Who has answered last.
    #[must_use]
    pub fn last_tag(&self) -> Option<u8> {
        Some(self.last.load(Ordering::Relaxed)).filter(|tag| *tag != NOBODY)
    }

    /// The time of the probe that this moment is.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Ends it.
    ///
    /// # Panics
    /// When one of its threads has.
    #[must_use]
    pub fn stop(self) -> Probe {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender does not panic");
        Probe { sent, answers: self.receiver.join().expect("the receiver does not panic") }
    }
}

fn send(socket: &UdpSocket, begun: Instant, stop: &AtomicBool) -> Vec<Duration> {
    hurry();
    let mut sent: Vec<Duration> = Vec::new();
    let mut due = begun;
    while !stop.load(Ordering::Relaxed) {
        let number = sent.len() as u64;
        sent.push(begun.elapsed());
        // An error that an earlier datagram drew; this one is then lost, or not.
        let _ = socket.send(&number.to_be_bytes());
        // What a stall has kept from being sent is not made up for: a burst measures something else.
        due = (due + PERIOD).max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    sent
}

fn receive(socket: &UdpSocket, begun: Instant, stop: &AtomicBool, last: &AtomicU8) -> Vec<Answer> {
    hurry();
    let mut answers = Vec::new();
    let mut end = None;
    let mut buffer = [0; NUMBER_BYTES + 1];
    loop {
        if end.is_none() && stop.load(Ordering::Relaxed) {
            end = Some(Instant::now() + LINGER);
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return answers;
        }
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let at = begun.elapsed();
        if let (true, Some((number, [tag]))) = (length == buffer.len(), buffer.split_first_chunk::<NUMBER_BYTES>()) {
            last.store(*tag, Ordering::Relaxed);
            answers.push(Answer { number: u64::from_be_bytes(*number) as usize, at, tag: *tag });
        }
    }
}

/// Runs this thread before all others, where that is allowed.
fn hurry() {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: the parameters live across the call, which changes this thread only.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
}

/// What came of a probe. Times count from its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// When each datagram was sent.
    pub sent: Vec<Duration>,
    /// The answers as they came.
    pub answers: Vec<Answer>,
}

impl Probe {
    /// Datagrams that nobody answered.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.losses().count()
    }

    /// How long before the end of sending the first and the last datagram that nobody answered were sent.
    #[must_use]
    pub fn lost_before_end(&self) -> Option<(Duration, Duration)> {
        let (end, mut losses) = (*self.sent.last()?, self.losses());
        let first = losses.next()?;
        Some((end - first, end - losses.last().unwrap_or(first)))
    }

    /// When they were sent.
    fn losses(&self) -> impl Iterator<Item = Duration> {
        let mut answered = vec![false; self.sent.len()];
        for answer in &self.answers {
            if let Some(known) = answered.get_mut(answer.number) {
                *known = true;
            }
        }
        self.sent.iter().copied().zip(answered).filter(|(_, known)| !known).map(|(sent, _)| sent)
    }

    /// The times between answers; the beginning and the end of sending count as one.
    fn gaps(&self) -> impl Iterator<Item = Duration> {
        let edges = [self.sent.first(), self.sent.last()];
        let mut times: Vec<Duration> =
            self.answers.iter().map(|answer| answer.at).chain(edges.into_iter().flatten().copied()).collect();
        times.sort_unstable();
        let pauses: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        pauses.into_iter()
    }

    /// The longest time without an answer.
    #[must_use]
    pub fn longest_gap(&self) -> Duration {
        self.gaps().max().unwrap_or_default()
    }

    /// The longest time in which nothing was sent: what the machine itself stood still, not the network.
    #[must_use]
    pub fn longest_stall(&self) -> Duration {
        self.sent.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// How many gaps there were of at least 2, 4, 8 … ms and less than twice as much.
    #[must_use]
    pub fn histogram(&self) -> BTreeMap<u64, usize> {
        let mut counts = BTreeMap::new();
        for gap in self.gaps().map(|gap| gap.as_millis() as u64).filter(|gap| *gap >= 2) {
            *counts.entry(1 << gap.ilog2()).or_default() += 1;
        }
        counts
    }

    /// Everybody who answered, in the order in which they first did.
    #[must_use]
    pub fn tags(&self) -> Vec<u8> {
        let mut tags = Vec::new();
        for answer in &self.answers {
            if !tags.contains(&answer.tag) {
                tags.push(answer.tag);
            }
        }
        tags
    }

    /// How long after this time another than `tag` answered for the first time.
    #[must_use]
    pub fn moved_from(&self, tag: u8, since: Duration) -> Option<Duration> {
        let mut later = self.answers.iter().filter(|answer| answer.at >= since && answer.tag != tag);
        later.next().map(|answer| answer.at - since)
    }
}

/// Who answers a VIP now: one datagram, and some more where the first is lost.
pub fn who_answers(element: &Namespace, vip: IpAddr, port: u16) -> Result<Option<u8>> {
    let prober = Prober::start(element, SocketAddr::new(vip, port))?;
    thread::sleep(TICK);
    let last = prober.last_tag();
    drop(prober.stop());
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    /// Ten datagrams at the millisecond; those of these numbers are answered in the same one.
    fn probe(answered: &[(usize, u8)]) -> Probe {
        let answer =
            |(number, tag): &(usize, u8)| Answer { number: *number, at: milliseconds(*number as u64), tag: *tag };
        Probe { sent: (0..10).map(milliseconds).collect(), answers: answered.iter().map(answer).collect() }
    }

    #[test]
    fn what_nobody_answers_is_lost_and_leaves_a_gap() {
        let all: Vec<_> = (0..10).map(|number| (number, 0)).collect();
        assert_eq!((probe(&all).lost(), probe(&all).longest_gap()), (0, milliseconds(1)));
        let hole = probe(&[(0, 0), (1, 0), (6, 1), (7, 1), (8, 1), (9, 1)]);
        assert_eq!((hole.lost(), hole.longest_gap()), (4, milliseconds(5)));
        assert_eq!(hole.histogram(), BTreeMap::from([(4, 1)]));
        assert_eq!(hole.moved_from(0, milliseconds(2)), Some(milliseconds(4)));
        assert_eq!(hole.moved_from(1, milliseconds(2)), None);
    }

    #[test]
    fn silence_until_the_end_is_a_gap_too() {
        assert_eq!(probe(&[(0, 0)]).longest_gap(), milliseconds(9));
        assert_eq!(probe(&[]).longest_gap(), milliseconds(9));
        assert_eq!(probe(&[(9, 0)]).longest_gap(), milliseconds(9));
        assert_eq!(Probe::default().longest_gap(), Duration::ZERO);
    }

    #[test]
    fn an_answer_that_comes_twice_is_one() {
        let twice = probe(&[(0, 0), (0, 1)]);
        assert_eq!(twice.lost(), 9);
    }

    #[test]
    fn a_stall_of_the_sender_is_no_loss() {
        let stalled = Probe {
            sent: vec![milliseconds(0), milliseconds(60)],
            answers: vec![
                Answer { number: 0, at: milliseconds(0), tag: 0 },
                Answer { number: 1, at: milliseconds(60), tag: 0 },
            ],
        };
        assert_eq!((stalled.lost(), stalled.longest_stall()), (0, milliseconds(60)));
    }
}
