//! Clients that open sessions, also from ports that were theirs before.

use std::{
    io::{ErrorKind, Read as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::traffic::Session;
use crate::{
    lab::Namespace,
    programs::conversation::Speaker,
    world::sockets::socket::{bound, connect},
};

/// How long a connection may take to open: more than three transmissions of a SYN.
const LIMIT: Duration = Duration::from_secs(8);
/// Clients that connect at a time.
const AT_A_TIME: usize = 32;

/// How a client's connection ends before it uses its port again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The pod closes first, and holds TIME_WAIT.
    TimeWait,
    /// The client is gone without a word: for the pod the connection lives.
    Vanished,
}

/// A client's port, where it connects to and who speaks first.
pub type Wanted = (SocketAddr, SocketAddr, Speaker);

/// Opens sessions, and says how long each took.
pub fn open(from: &Namespace, listeners: &[TcpListener], wanted: &[Wanted]) -> Result<Vec<(Session, Duration)>> {
    let mut opened = Vec::with_capacity(wanted.len());
    for part in wanted.chunks(AT_A_TIME) {
        opened.extend(from.run(|| open_at_once(listeners, part))?);
    }
    Ok(opened)
}

fn open_at_once(listeners: &[TcpListener], wanted: &[Wanted]) -> Result<Vec<(Session, Duration)>> {
    let begun = Instant::now();
    let mut clients = Vec::with_capacity(wanted.len());
    for (local, target, speaker) in wanted {
        let client = bound(*local);
        client.set_nonblocking(true)?;
        match connect(&client, *target) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
                return Err(error).with_context(|| format!("cannot connect from {local} to {target}"));
            }
            _ => {}
        }
        clients.push(Some((client.local_addr()?, client, *target, *speaker)));
    }
    let mut opened = Vec::with_capacity(wanted.len());
    while opened.len() < wanted.len() {
        let before = opened.len();
        for (place, listener) in listeners.iter().enumerate() {
            let Some((pod, peer)) = accept(listener)? else { continue };
            let mut waiting = clients.iter_mut();
            let waiting = waiting.find(|client| client.as_ref().is_some_and(|(local, ..)| *local == peer));
            let waiting = waiting.and_then(Option::take);
            let (_, client, target, speaker) = waiting.with_context(|| format!("nobody connects from {peer}"))?;
            opened.push((Session::new(client, pod, place, target, speaker)?, begun.elapsed()));
        }
        if opened.len() == before {
            if begun.elapsed() > LIMIT {
                let left: Vec<_> = clients.iter().flatten().map(|(local, _, target, _)| (local, target)).collect();
                bail!("no connection after {LIMIT:?}: {left:?}");
            }
            thread::sleep(Duration::from_micros(100));
        }
    }
    Ok(opened)
}

fn accept(listener: &TcpListener) -> Result<Option<(TcpStream, SocketAddr)>> {
    match listener.accept() {
        Ok((pod, peer)) => Ok(Some((pod, SocketAddr::new(peer.ip().to_canonical(), peer.port())))),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Closes a session in order, the pod first.
pub fn close(session: Session) -> Result<()> {
    let Session { client, pod, .. } = session;
    drop(pod);
    await_end(&client, |read| matches!(read, Ok(0))).context("the pod's end")
}

/// Ends sessions and opens new ones from the same ports. Where the pod knows nothing of the end, it must learn of it by
/// the client's reset. The pods before and after, and how long each took.
pub fn reopen(
    from: &Namespace,
    listeners: &[TcpListener],
    sessions: Vec<Session>,
    end: End,
    speaker: Speaker,
) -> Result<Vec<(usize, Session, Duration)>> {
    let mut wanted = Vec::with_capacity(sessions.len());
    let mut before = Vec::with_capacity(sessions.len());
    for session in sessions {
        let (local, place) = (session.client.local_addr()?, session.place);
        wanted.push((local, session.target, speaker));
        before.push((
            local,
            place,
            match end {
                End::TimeWait => close(session).map(|()| None)?,
                End::Vanished => Some(vanish(session)?),
            },
        ));
    }
    let mut reopened = Vec::with_capacity(wanted.len());
    for (session, took) in open(from, listeners, &wanted)? {
        let local = session.client.local_addr()?;
        let at = before.iter().position(|(known, ..)| *known == local).context("another port")?;
        let (_, place, old) = before.swap_remove(at);
        if let Some(old) = old {
            let is_reset =
                |read: &std::io::Result<usize>| matches!(read, Err(e) if e.kind() == ErrorKind::ConnectionReset);
            await_end(&old, is_reset).with_context(|| format!("the old connection of {local} in pod {place}"))?;
        }
        reopened.push((place, session, took));
    }
    Ok(reopened)
}

/// The client's end goes without a segment (`TCP_REPAIR`, tcp(7)); the pod's is left.
fn vanish(session: Session) -> Result<TcpStream> {
    let on = 1i32;
    let (level, length) = (libc::IPPROTO_TCP, size_of::<i32>() as libc::socklen_t);
    let fd = session.client.as_raw_fd();
    // SAFETY: the value lives across the call and has the option's type.
    let result = unsafe { libc::setsockopt(fd, level, libc::TCP_REPAIR, (&raw const on).cast(), length) };
    ensure!(result == 0, "TCP_REPAIR: {}", std::io::Error::last_os_error());
    Ok(session.pod)
}

fn await_end(mut stream: &TcpStream, is_end: impl Fn(&std::io::Result<usize>) -> bool) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let read = stream.read(&mut [0; 64]);
        match &read {
            read if is_end(read) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {}
            other => bail!("{other:?} instead of its end"),
        }
        thread::sleep(Duration::from_micros(100));
    }
}
