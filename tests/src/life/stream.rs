//! A steady stream of datagrams whose every one is counted at both ends, and whose answers are.

use std::{
    io::ErrorKind,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    lab::{Family, Lab, Pod, vip, wait_until},
    programs::conversation::any,
};

/// Datagrams a second, of both kinds together.
const RATE: u64 = 5000;
/// Between two bursts.
const BEAT: Duration = Duration::from_millis(2);
/// Datagrams in a burst at most: after a pause the sender does not make up for it, because a veth's ring has 256 places.
const BURST_MAX: u64 = 40;
/// Clients of each family and kind, with a port each.
const CLIENTS: usize = 25;
/// What the last datagrams take to arrive.
const LANDING: Duration = Duration::from_secs(5);
/// Bytes of a socket's queue: more than a second of datagrams.
static QUEUE_BYTES: libc::c_int = 16 << 20;

/// A service that datagrams go to.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Port of the first VIPs.
    pub vip_port: u16,
    /// Port of the pods.
    pub pod_port: u16,
    /// Whether pods answer.
    pub answered: bool,
}

/// What was counted of one kind since the stream began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Sent by clients.
    pub sent: u64,
    /// Arrived in pods.
    pub arrived: u64,
    /// Answers that came from the VIP: clients take no others.
    pub answers: u64,
}

#[derive(Default)]
struct Counters {
    sent: AtomicU64,
    arrived: AtomicU64,
    answers: AtomicU64,
}

/// The stream; ends on drop.
pub struct Stream {
    kinds: Vec<(Kind, Arc<Counters>)>,
    pause: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    pods: Arc<Mutex<Vec<Receiver>>>,
    by_pod: Vec<Arc<AtomicU64>>,
}

/// A pod's socket of one kind.
struct Receiver {
    pod: u8,
    kind: Kind,
    counters: Arc<Counters>,
    arrived: Arc<AtomicU64>,
    socket: UdpSocket,
}

impl Stream {
    /// Begins: clients in the element speak to the kinds' services in turn.
    pub fn start(lab: &Lab, kinds: &[Kind]) -> Result<Self> {
        let kinds: Vec<(Kind, Arc<Counters>)> = kinds.iter().map(|kind| (*kind, Arc::default())).collect();
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            for (place, family) in Family::BOTH.into_iter().enumerate() {
                for (at, (kind, counters)) in kinds.iter().enumerate() {
                    // Another port each, and the same in each run.
                    let local = any(family, 20_000 + ((number * kinds.len() + at) * 2 + place) as u16);
                    let client = lab.element.run(|| UdpSocket::bind(local))?;
                    let target = SocketAddr::new(vip(1).of(family), kind.vip_port);
                    lab.element.run(|| client.connect(target))?;
                    prepare(&client)?;
                    clients.push((client, Arc::clone(counters)));
                }
            }
        }
        let by_pod = lab.pods.iter().map(|_| Arc::default()).collect();
        let (pause, end, threads, pods) = Default::default();
        let stream = Self { kinds, pause, end, threads, pods, by_pod };
        for pod in &lab.pods {
            stream.receive_in(pod)?;
        }
        Ok(stream.run(clients))
    }

    fn run(mut self, clients: Vec<(UdpSocket, Arc<Counters>)>) -> Self {
        let (end, pods) = (Arc::clone(&self.end), Arc::clone(&self.pods));
        self.threads.push(thread::spawn(move || {
            while !end.load(Relaxed) {
                let pods = pods.lock().expect("nobody panics with it");
                for Receiver { kind, counters, arrived, socket, .. } in &*pods {
                    receive(socket, |from, bytes| {
                        arrived.fetch_add(1, Relaxed);
                        counters.arrived.fetch_add(1, Relaxed);
                        if kind.answered {
                            // A lost answer is found by its absence.
                            let _ = socket.send_to(bytes, from);
                        }
                    });
                }
                drop(pods);
                thread::sleep(BEAT / 4);
            }
        }));
        let clients = Arc::new(clients);
        let (end, listening) = (Arc::clone(&self.end), Arc::clone(&clients));
        self.threads.push(thread::spawn(move || {
            while !end.load(Relaxed) {
                for (client, counters) in &*listening {
                    receive(client, |_, _| {
                        counters.answers.fetch_add(1, Relaxed);
                    });
                }
                thread::sleep(BEAT);
            }
        }));
        let (end, pause) = (Arc::clone(&self.end), Arc::clone(&self.pause));
        self.threads.push(thread::spawn(move || send(&clients, &end, &pause)));
        self
    }

    /// Lets a pod receive, which may be one that was made anew: what stood for it before is closed, and with it the last
    /// that keeps its namespace.
    pub fn receive_in(&self, pod: &Pod) -> Result<()> {
        self.pods.lock().expect("nobody panics with it").retain(|receiver| receiver.pod != pod.index);
        for (kind, counters) in &self.kinds {
            let bind = || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, kind.pod_port));
            let socket = pod.namespace.run(bind);
            let socket = socket.with_context(|| format!("UDP port {} in {}", kind.pod_port, pod.namespace.name()))?;
            prepare(&socket)?;
            let (counters, arrived) = (Arc::clone(counters), Arc::clone(&self.by_pod[usize::from(pod.index) - 1]));
            let receiver = Receiver { pod: pod.index, kind: *kind, counters, arrived, socket };
            self.pods.lock().expect("nobody panics with it").push(receiver);
        }
        Ok(())
    }

    /// Stops, waits until what was sent has arrived and has been answered, and goes on. What was counted by kind.
    ///
    /// # Errors
    /// Where a datagram or an answer is missing, or came twice.
    pub fn check(&self) -> Result<Vec<Counted>> {
        let counted = self.pause()?;
        self.resume();
        Ok(counted)
    }

    /// As [`check`](Self::check), and stays silent.
    pub fn pause(&self) -> Result<Vec<Counted>> {
        self.pause.store(true, Relaxed);
        // The sender is between two bursts by then, or sees the flag before the next.
        let mut before = u64::MAX;
        let landed = wait_until("the datagrams to land", LANDING, || {
            let now = self.counted();
            let sum = now.iter().map(|counted| counted.sent).sum();
            let still = std::mem::replace(&mut before, sum) == sum;
            let whole = now.iter().zip(&self.kinds).all(|(counted, (kind, _))| is_whole(counted, kind));
            Ok((still && whole).then_some(()))
        });
        let counted = self.counted();
        for (counted, (kind, _)) in counted.iter().zip(&self.kinds) {
            ensure!(is_whole(counted, kind), "{kind:?}: {counted:?}");
        }
        landed?;
        Ok(counted)
    }

    /// Goes on.
    pub fn resume(&self) {
        self.pause.store(false, Relaxed);
    }

    /// Datagrams that have arrived in each pod, of all kinds.
    pub fn arrived_by_pod(&self) -> Vec<u64> {
        self.by_pod.iter().map(|arrived| arrived.load(Relaxed)).collect()
    }

    /// What was counted so far.
    pub fn counted(&self) -> Vec<Counted> {
        let counted = |(_, counters): &(Kind, Arc<Counters>)| Counted {
            sent: counters.sent.load(Relaxed),
            arrived: counters.arrived.load(Relaxed),
            answers: counters.answers.load(Relaxed),
        };
        self.kinds.iter().map(counted).collect()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

const fn is_whole(counted: &Counted, kind: &Kind) -> bool {
    counted.arrived == counted.sent && counted.answers == if kind.answered { counted.sent } else { 0 }
}

/// Not blocking, and with a queue that a stalled reader does not overflow.
fn prepare(socket: &UdpSocket) -> Result<()> {
    socket.set_nonblocking(true)?;
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        let length = size_of_val(&QUEUE_BYTES) as libc::socklen_t;
        let value = (&raw const QUEUE_BYTES).cast();
        // SAFETY: the value lives across the call and has the option's type.
        let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, length) };
        ensure!(result == 0, "a socket's queue: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

fn receive(socket: &UdpSocket, mut take: impl FnMut(SocketAddr, &[u8])) {
    let mut bytes = [0; 64];
    // Errors are ports that were closed meanwhile; what they cost is counted by its absence.
    while let Ok((length, from)) = socket.recv_from(&mut bytes) {
        take(from, &bytes[..length]);
    }
}

fn send(clients: &[(UdpSocket, Arc<Counters>)], end: &AtomicBool, pause: &AtomicBool) {
    let mut next = 0u64;
    let mut last = Instant::now();
    while !end.load(Relaxed) {
        thread::sleep(BEAT);
        let due = (last.elapsed().as_micros() as u64 * RATE / 1_000_000).min(BURST_MAX);
        last = Instant::now();
        if pause.load(Relaxed) {
            continue;
        }
        for _ in 0..due {
            let (client, counters) = &clients[next as usize % clients.len()];
            match client.send(&next.to_ne_bytes()) {
                Ok(_) => {
                    counters.sent.fetch_add(1, Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // What an ICMP error left at the socket; the next try sends.
                Err(_) => {
                    if client.send(&next.to_ne_bytes()).is_ok() {
                        counters.sent.fetch_add(1, Relaxed);
                    }
                }
            }
            next += 1;
        }
    }
}
