//! Bulk TCP in both directions at once, with the checksums that both ends saw.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use crc32fast::Hasher;

use super::PATIENCE;
use crate::lab::Namespace;

/// A transfer that makes no progress for this long has failed.
const STALL_LIMIT: Duration = Duration::from_secs(10);
/// How often an idle server looks whether to stop.
const TICK: Duration = Duration::from_millis(20);
const CHUNK_BYTES: usize = 64 * 1024;

/// Bytes that went one way, and their CRC-32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// How many.
    pub bytes: u64,
    /// Their CRC-32.
    pub crc: u32,
}

/// What one end of a connection sent and received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Where the other end is, as this end sees it.
    pub remote: SocketAddr,
    /// What it wrote.
    pub sent: Sum,
    /// What it read up to the other's FIN.
    pub received: Sum,
}

/// A server in a pod: sends as much on each connection as it was told to, and takes what comes. Ends on drop.
#[derive(Debug)]
pub struct BulkServer {
    served: mpsc::Receiver<io::Result<Tally>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BulkServer {
    /// Listens on `port` over both families; each connection is sent `bytes` bytes.
    pub fn start(namespace: &Namespace, port: u16, bytes: u64) -> Result<Self> {
        let listener = namespace
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))
            .with_context(|| format!("cannot listen on TCP port {port} in {}", namespace.name()))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, served) = mpsc::channel();
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let sender = sender.clone();
                        thread::spawn(move || {
                            // Nobody waits any more when the test has failed.
                            let _ = sender.send(exchange(&stream, bytes, SERVER_SEED));
                        });
                    }
                    Err(_) => thread::sleep(TICK),
                }
            }
        });
        Ok(Self { served, stop, thread: Some(thread) })
    }

    /// The next finished connection, as this end saw it.
    pub fn wait_served(&self) -> Result<Tally> {
        Ok(self.served.recv_timeout(PATIENCE).context("the server saw no whole connection")??)
    }
}

impl Drop for BulkServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Both ends of a finished transfer.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// The client's own address.
    pub client: SocketAddr,
    /// What the client saw.
    pub there: Tally,
    /// What the pod saw.
    pub here: Tally,
}

/// Sends `bytes` to `target` while receiving what the server sends. `server` is the only one behind the target.
pub fn transfer(from: &Namespace, target: IpAddr, port: u16, bytes: u64, server: &BulkServer) -> Result<Transfer> {
    let target = SocketAddr::new(target, port);
    let stream = from
        .run(|| TcpStream::connect_timeout(&target, STALL_LIMIT))
        .with_context(|| format!("cannot connect to {target}"))?;
    let client = stream.local_addr()?;
    let there = exchange(&stream, bytes, CLIENT_SEED).with_context(|| format!("bulk transfer with {target}"))?;
    Ok(Transfer { client, there, here: server.wait_served()? })
}

impl Transfer {
    /// Fails unless both ends agree on every byte and the pod saw the client's own address.
    pub fn check(&self, bytes_each: u64) -> Result<()> {
        let Self { client, there, here } = self;
        ensure!(there.sent.bytes == bytes_each && here.sent.bytes == bytes_each, "short transfer: {self:?}");
        ensure!(there.sent == here.received, "damaged on the way to the pod: {self:?}");
        ensure!(here.sent == there.received, "damaged on the way back: {self:?}");
        ensure!(here.remote == *client, "the pod saw {} instead of the sender's {client}", here.remote);
        Ok(())
    }
}

const CLIENT_SEED: u64 = 0x5eed_0001;
const SERVER_SEED: u64 = 0x5eed_0002;

/// Writes and reads at once, so that data and acknowledgements share segments.
fn exchange(stream: &TcpStream, bytes: u64, seed: u64) -> io::Result<Tally> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(STALL_LIMIT))?;
    stream.set_write_timeout(Some(STALL_LIMIT))?;
    let peer = stream.peer_addr()?;
    let (sent, received) = thread::scope(|scope| {
        let writer = scope.spawn(|| write_all(stream, bytes, seed));
        let received = read_all(stream);
        (writer.join().expect("the writer does not panic"), received)
    });
    let remote = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    Ok(Tally { remote, sent: sent?, received: received? })
}

fn write_all(mut stream: &TcpStream, bytes: u64, seed: u64) -> io::Result<Sum> {
    let (mut hasher, mut state, mut left) = (Hasher::new(), seed, bytes);
    let mut chunk = vec![0; CHUNK_BYTES];
    while left > 0 {
        fill(&mut chunk, &mut state);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        stream.write_all(&chunk[..length])?;
        hasher.update(&chunk[..length]);
        left -= length as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(Sum { bytes, crc: hasher.finalize() })
}

fn read_all(mut stream: &TcpStream) -> io::Result<Sum> {
    let (mut hasher, mut bytes) = (Hasher::new(), 0);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(Sum { bytes, crc: hasher.finalize() }),
            Ok(length) => {
                hasher.update(&chunk[..length]);
                bytes += length as u64;
            }
            // A program of another test has ended: with a time limit this is not begun anew by itself.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Bytes without a pattern that a one's complement sum could miss (xorshift64, Marsaglia 2003).
fn fill(chunk: &mut [u8], state: &mut u64) {
    for word in chunk.chunks_exact_mut(8) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        word.copy_from_slice(&state.to_ne_bytes());
    }
}
