//! One TCP connection of a peer, or an attempt at one.

use std::{
    collections::VecDeque,
    io::{self, Read},
    net::{Shutdown, SocketAddr},
    time::Duration,
};

use socket2::Socket;

use super::sockets::{address_of, is_connected, send};
use crate::announce::bgp::machine::{ConnectionId, Endpoints};

/// Octets that wait for the kernel. The machine builds nothing above a quarter of it; what it answers at once is small.
const WAITING_OCTETS_MAX: usize = 256 * 1024;
/// How long a connection that ends may take: to hand over the last word, and to hear that it was read.
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// Reads at a time: a flood of one peer may not keep the others from being heard.
const READS_MAX: usize = 16;

enum Phase {
    /// The handshake is under way.
    Connecting,
    Open,
    /// What is left is written until then; what comes is thrown away.
    Closing {
        until: Duration,
        is_shut: bool,
    },
}

pub struct Connection {
    id: ConnectionId,
    socket: Socket,
    ends: Option<(SocketAddr, SocketAddr)>,
    phase: Phase,
    waiting: VecDeque<u8>,
    /// Nothing can be written any more. What the peer said before is still read.
    broken: Option<io::Error>,
}

/// What has come.
pub enum Heard {
    /// A dial has succeeded.
    Connected(Endpoints),
    Octets,
    /// The end, with the reason where it is no ordinary one.
    End(Option<io::Error>),
}

impl Connection {
    pub fn dialled(id: ConnectionId, socket: Socket) -> Self {
        Self { id, socket, ends: None, phase: Phase::Connecting, waiting: VecDeque::new(), broken: None }
    }

    pub fn accepted(id: ConnectionId, socket: Socket, ends: (SocketAddr, SocketAddr)) -> Self {
        Self { id, socket, ends: Some(ends), phase: Phase::Open, waiting: VecDeque::new(), broken: None }
    }

    pub const fn id(&self) -> ConnectionId {
        self.id
    }

    pub const fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Ours first; None while it is dialled.
    pub const fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.ends
    }

    /// Whether there is something to wait for room for.
    pub fn wants_to_write(&self) -> bool {
        match self.phase {
            Phase::Connecting => true,
            Phase::Open | Phase::Closing { .. } => !self.waiting.is_empty(),
        }
    }

    /// What has come, up to the buffer's size and a limit of reads, in turn. Ends by itself.
    pub fn hear(&mut self, buffer: &mut [u8], mut each: impl FnMut(Heard, &[u8])) {
        if let Phase::Connecting = self.phase {
            match self.connected() {
                Ok(Some(endpoints)) => each(Heard::Connected(endpoints), &[]),
                Ok(None) => return,
                Err(error) => return each(Heard::End(Some(error)), &[]),
            }
        }
        for _ in 0..READS_MAX {
            match (&self.socket).read(buffer) {
                Ok(0) => return each(Heard::End(self.broken.take()), &[]),
                Ok(count) => each(Heard::Octets, &buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return each(Heard::End(Some(error)), &[]),
            }
        }
    }

    fn connected(&mut self) -> io::Result<Option<Endpoints>> {
        if !is_connected(&self.socket)? {
            return Ok(None);
        }
        let ends = (address_of(&self.socket.local_addr()?)?, address_of(&self.socket.peer_addr()?)?);
        self.ends = Some(ends);
        self.phase = Phase::Open;
        Ok(Some(Endpoints { local: ends.0.ip(), remote: ends.1.ip() }))
    }

    /// Takes octets to write; an error where too many wait.
    pub fn push(&mut self, octets: &[u8]) -> io::Result<()> {
        if self.waiting.len() + octets.len() > WAITING_OCTETS_MAX {
            return Err(io::Error::other(format!("more than {WAITING_OCTETS_MAX} octets wait to be sent")));
        }
        self.waiting.extend(octets);
        Ok(())
    }

    /// Writes what the kernel takes, and says how much.
    pub fn write(&mut self) -> usize {
        let mut written = 0;
        if let Phase::Connecting = self.phase {
            return written;
        }
        while !self.waiting.is_empty() {
            match send(&self.socket, self.waiting.as_slices().0) {
                Ok(Some(count)) => {
                    self.waiting.drain(..count);
                    written += count;
                }
                Ok(None) => break,
                Err(error) => {
                    self.waiting.clear();
                    self.broken = Some(error);
                }
            }
        }
        written
    }

    /// Ends it: what waits is written first.
    pub fn close(&mut self, now: Duration) {
        self.phase = match self.phase {
            // Nothing was said, and nothing is heard.
            Phase::Connecting => Phase::Closing { until: now, is_shut: true },
            Phase::Open => Phase::Closing { until: now + CLOSE_TIME, is_shut: false },
            Phase::Closing { until, is_shut } => Phase::Closing { until, is_shut },
        };
    }

    pub const fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }

    /// When its time is up, where it ends.
    pub const fn close_at(&self) -> Option<Duration> {
        match self.phase {
            Phase::Closing { until, .. } => Some(until),
            Phase::Connecting | Phase::Open => None,
        }
    }

    /// Goes on with ending it: true once it is over. The other end's own close is waited for, or what it has sent
    /// meanwhile would make the kernel throw our last word away.
    pub fn is_closed(&mut self, buffer: &mut [u8], now: Duration) -> bool {
        let Phase::Closing { until, .. } = self.phase else { return false };
        if now >= until {
            return true;
        }
        self.write();
        let mut has_ended = self.broken.is_some();
        if let Phase::Closing { is_shut: is_shut @ false, .. } = &mut self.phase
            && self.waiting.is_empty()
        {
            *is_shut = true;
            has_ended |= self.socket.shutdown(Shutdown::Write).is_err();
        }
        self.hear(buffer, |heard, _| has_ended |= matches!(heard, Heard::End(_)));
        has_ended
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends of a connection, ours first.
    fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let theirs = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (ours, from) = listener.accept().expect("it has connected");
        ours.set_nonblocking(true).expect("a socket");
        let ends = (ours.local_addr().expect("bound"), from);
        (Connection::accepted(ConnectionId(1), ours.into(), ends), theirs)
    }

    #[test]
    fn the_last_word_is_read_to_its_end_before_the_connection_is_closed() {
        let (mut ours, mut theirs) = pair();
        let words = vec![7; WAITING_OCTETS_MAX];
        ours.push(&words).expect("so much may wait");
        ours.close(Duration::ZERO);
        let reads = std::thread::spawn(move || {
            let mut read = Vec::new();
            theirs.read_to_end(&mut read).map(|_| read)
        });
        let mut buffer = [0; 100];
        while !ours.is_closed(&mut buffer, CLOSE_TIME / 2) {
            std::thread::yield_now();
        }
        assert_eq!(reads.join().expect("no panic").expect("no reset"), words);
    }

    #[test]
    fn a_peer_that_reads_nothing_costs_no_more_memory_than_the_limit() {
        let (mut ours, _theirs) = pair();
        let mut taken = 0;
        while ours.push(&[7; 4096]).is_ok() {
            taken += ours.write();
        }
        assert!(taken > 0 && ours.waiting.len() <= WAITING_OCTETS_MAX);
        ours.close(Duration::ZERO);
        assert!(!ours.is_closed(&mut [0; 100], CLOSE_TIME / 2), "it may still read");
        assert!(ours.is_closed(&mut [0; 100], CLOSE_TIME), "but not for ever");
    }

    #[test]
    fn what_was_said_before_a_reset_is_heard_and_the_reset_too() {
        let (mut ours, theirs) = pair();
        let socket = Socket::from(theirs);
        socket.send(b"bye").expect("connected");
        socket.set_linger(Some(Duration::ZERO)).expect("a socket");
        drop(socket);
        let (mut heard, mut end) = (Vec::new(), None);
        while end.is_none() {
            ours.hear(&mut [0; 100], |it, octets| match it {
                Heard::Octets => heard.extend_from_slice(octets),
                Heard::End(error) => {
                    end = Some(error.map(|error| crate::announce::bgp::driver::sockets::words(&error)))
                }
                Heard::Connected(_) => unreachable!("it was accepted"),
            });
        }
        assert_eq!(end.flatten().as_deref(), Some("connection reset by peer"));
        assert_eq!(heard, b"bye");
    }
}
