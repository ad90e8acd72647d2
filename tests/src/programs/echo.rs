//! A UDP echo service that tells its client which address it saw.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::PATIENCE;
use crate::lab::{ELEMENT, Family, Namespace, wait_until};

/// How long a socket waits before it looks whether to stop or to send again.
const TICK: Duration = Duration::from_millis(200);
/// Longest answer: a name and an address.
const ANSWER_BYTES_MAX: usize = 256;

/// An echo service in a pod; ends on drop.
#[derive(Debug)]
pub struct EchoServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Answers on `port` over both families with `NAME SOURCE-ADDRESS`.
    pub fn start(namespace: &Namespace, name: &str, port: u16) -> Result<Self> {
        let socket = namespace
            .run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))
            .with_context(|| format!("cannot bind UDP port {port} in {name}"))?;
        socket.set_read_timeout(Some(TICK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (name, stopped) = (name.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; ANSWER_BYTES_MAX];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((_, source)) = socket.recv_from(&mut buffer) else { continue };
                let seen = SocketAddr::new(source.ip().to_canonical(), source.port());
                // A lost answer is asked for again.
                let _ = socket.send_to(format!("{name} {seen}").as_bytes(), source);
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What an echo brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Echo {
    /// The server's name.
    pub server: String,
    /// The address that the server saw.
    pub seen: SocketAddr,
    /// The address that the client sent from.
    pub sent_from: SocketAddr,
}

/// Asks from the element. The socket is connected, so that an answer from another address than `target` is none.
pub fn ask(element: &Namespace, target: IpAddr, port: u16) -> Result<Echo> {
    let family = if target.is_ipv4() { Family::V4 } else { Family::V6 };
    let socket = element.run(|| -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((ELEMENT.of(family), 0))?;
        socket.connect((target, port))?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(TICK))?;
    let sent_from = socket.local_addr()?;
    let mut buffer = [0; ANSWER_BYTES_MAX];
    wait_until(&format!("an echo from {target} port {port}"), PATIENCE, || {
        // A refusal is what the last try drew; the next may find the service up.
        if socket.send(b"who am I?").is_err() {
            return Ok(None);
        }
        let Ok(length) = socket.recv(&mut buffer) else { return Ok(None) };
        let answer = std::str::from_utf8(&buffer[..length]).context("the echo is text")?;
        let (server, seen) = answer.split_once(' ').context("the echo has two words")?;
        Ok(Some(Echo { server: server.to_owned(), seen: seen.parse()?, sent_from }))
    })
}
