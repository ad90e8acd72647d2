//! A TCP connection of which a test holds both ends, so that it can say who speaks, and when.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::PATIENCE;
use crate::lab::{Family, Namespace, wait_until};

/// How long a connection may take to open, and a line to arrive: more than three retransmissions.
const LIMIT: Duration = Duration::from_secs(8);
const LINE_BYTES: usize = 32;

/// Which end says the first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// The end that opened the connection.
    Client,
    /// The end that accepted it, in the manner of SSH or SMTP.
    Pod,
}

impl Speaker {
    /// Both, in the order in which tests run them.
    pub const BOTH: [Self; 2] = [Self::Client, Self::Pod];
}

/// Listens in a namespace, over both families. A listener that the test has closed may live on for a moment: in a
/// process that another test is just starting, until that has become the program it is to run.
pub fn listen(namespace: &Namespace, port: u16) -> Result<TcpListener> {
    let what = format!("TCP port {port} in {} to be free", namespace.name());
    let listener =
        wait_until(&what, PATIENCE, || match namespace.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))) {
            Ok(listener) => Ok(Some(listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("cannot listen on TCP port {port} in {}", namespace.name()))
            }
        })?;
    // Never waits for ever: see `accept`.
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// An open connection.
#[derive(Debug)]
pub struct Conversation {
    client: TcpStream,
    pod: TcpStream,
    /// Counts the lines, so that each is another.
    said: u32,
}

impl Conversation {
    /// Dials from a namespace and takes the connection at the listener.
    pub fn open(from: &Namespace, target: SocketAddr, listener: &TcpListener) -> Result<Self> {
        let client = from
            .run(|| TcpStream::connect_timeout(&target, LIMIT))
            .with_context(|| format!("cannot connect from {} to {target}", from.name()))?;
        Self::accepted(client, listener)
    }

    /// As [`open`](Self::open), from a port of one's own choice.
    pub fn open_from_port(from: &Namespace, port: u16, target: SocketAddr, listener: &TcpListener) -> Result<Self> {
        Ok(Self::open_any_from_port(from, port, target, std::slice::from_ref(listener))?.0)
    }

    /// As [`open_any`](Self::open_any), from a port of one's own choice.
    pub fn open_any_from_port(
        from: &Namespace,
        port: u16,
        target: SocketAddr,
        listeners: &[TcpListener],
    ) -> Result<(Self, usize)> {
        let dial = || -> io::Result<TcpStream> {
            // The standard library cannot bind a socket that it connects.
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                let (socket, family) = match target.ip() {
                    IpAddr::V4(_) => (tokio::net::TcpSocket::new_v4()?, Family::V4),
                    IpAddr::V6(_) => (tokio::net::TcpSocket::new_v6()?, Family::V6),
                };
                socket.set_reuseaddr(true)?;
                socket.bind(any(family, port))?;
                let stream = tokio::time::timeout(LIMIT, socket.connect(target)).await??.into_std()?;
                stream.set_nonblocking(false)?;
                Ok(stream)
            })
        };
        let client =
            from.run(dial).with_context(|| format!("cannot connect from {} port {port} to {target}", from.name()))?;
        Self::accepted_by(client, listeners)
    }

    /// As [`open`](Self::open), where any of several listeners may take the connection: also which one did.
    pub fn open_any(from: &Namespace, target: SocketAddr, listeners: &[TcpListener]) -> Result<(Self, usize)> {
        let client = from
            .run(|| TcpStream::connect_timeout(&target, LIMIT))
            .with_context(|| format!("cannot connect from {} to {target}", from.name()))?;
        Self::accepted_by(client, listeners)
    }

    fn accepted(client: TcpStream, listener: &TcpListener) -> Result<Self> {
        Ok(Self::accepted_by(client, std::slice::from_ref(listener))?.0)
    }

    fn accepted_by(client: TcpStream, listeners: &[TcpListener]) -> Result<(Self, usize)> {
        let (pod, at) = wait_until("a connection at the pod", PATIENCE, || {
            for (at, listener) in listeners.iter().enumerate() {
                match listener.accept() {
                    Ok((stream, _)) => return Ok(Some((stream, at))),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(None)
        })?;
        for stream in [&client, &pod] {
            stream.set_nonblocking(false)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.set_write_timeout(Some(LIMIT))?;
        }
        Ok((Self { client, pod, said: 0 }, at))
    }

    /// One line each way, `first` first.
    pub fn exchange(&mut self, first: Speaker) -> Result<()> {
        let (one, other) = match first {
            Speaker::Client => (&self.client, &self.pod),
            Speaker::Pod => (&self.pod, &self.client),
        };
        self.said += 1;
        say(one, other, self.said).with_context(|| format!("{first:?} speaks"))?;
        say(other, one, self.said).with_context(|| format!("answer to {first:?}"))
    }

    /// The other end as the pod sees it.
    pub fn seen_by_pod(&self) -> Result<SocketAddr> {
        canonical(self.pod.peer_addr())
    }

    /// The client's own address.
    pub fn client_address(&self) -> Result<SocketAddr> {
        canonical(self.client.local_addr())
    }

    /// The client says a line that must be answered by a reset: how long that took.
    pub fn await_reset(self) -> Result<Duration> {
        Widow(self.client).await_reset()
    }

    /// The client says a line that nobody answers yet, not even by a reset, for so long.
    pub fn say_in_vain(&mut self, patience: Duration) -> Result<()> {
        self.said += 1;
        let line = format!("{:>width$}", self.said, width = LINE_BYTES);
        self.client.write_all(line.as_bytes()).context("cannot send")?;
        self.client.set_read_timeout(Some(patience))?;
        let read = self.client.read(&mut [0; 1]);
        self.client.set_read_timeout(Some(LIMIT))?;
        ensure!(matches!(&read, Err(error) if error.kind() == io::ErrorKind::WouldBlock), "{read:?} arrives");
        Ok(())
    }

    /// The line of [`say_in_vain`](Self::say_in_vain) arrives after all.
    pub fn hear_late(&mut self) -> Result<()> {
        let mut received = [0; LINE_BYTES];
        self.pod.read_exact(&mut received).context("nothing arrives")?;
        ensure!(received == format!("{:>width$}", self.said, width = LINE_BYTES).as_bytes(), "another line arrives");
        Ok(())
    }

    /// The pod's end goes as with a pod that is killed, whose kernel keeps nothing; the client's end is left.
    pub fn kill_pod_end(self) -> Result<Widow> {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let length = size_of::<libc::linger>() as libc::socklen_t;
        let (fd, value) = (self.pod.as_raw_fd(), (&raw const linger).cast());
        // SAFETY: the value lives across the call and has the option's type.
        let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, value, length) };
        ensure!(result == 0, "SO_LINGER: {}", io::Error::last_os_error());
        Ok(Widow(self.client))
    }

    /// Ends the connection from the client's side, as a health check does, and waits for the pod's end to see it.
    pub fn close(self) -> Result<()> {
        let Self { client, mut pod, .. } = self;
        drop(client);
        let read = pod.read(&mut [0; LINE_BYTES])?;
        ensure!(read == 0, "{read} bytes after the end");
        Ok(())
    }
}

/// The client's end of a connection whose other end is gone.
#[derive(Debug)]
pub struct Widow(TcpStream);

impl Widow {
    /// The client says a line that must be answered by a reset, unless an acknowledgement that it had still to send was
    /// before: how long that took.
    pub fn await_reset(mut self) -> Result<Duration> {
        let begun = Instant::now();
        let said = self.0.write_all(&[b'?'; LINE_BYTES]);
        match said.and_then(|()| self.0.read(&mut [0; LINE_BYTES])) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(begun.elapsed()),
            other => bail!("{other:?} after {:?} instead of a reset", begun.elapsed()),
        }
    }
}

/// One way, byte for byte.
fn say(mut from: &TcpStream, mut to: &TcpStream, number: u32) -> Result<()> {
    let line = format!("{number:>width$}", width = LINE_BYTES);
    from.write_all(line.as_bytes()).context("cannot send")?;
    let mut received = [0; LINE_BYTES];
    to.read_exact(&mut received).context("nothing arrives")?;
    if received != line.as_bytes() {
        bail!("{:?} arrived instead of {line:?}", String::from_utf8_lossy(&received));
    }
    Ok(())
}

fn canonical(address: io::Result<SocketAddr>) -> Result<SocketAddr> {
    let address = address?;
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// Resets that a namespace's kernel has sent and received on living connections: a connection that broke, or a segment
/// from an address that nobody talks to, shows here (RFC 4022, tcpOutRsts and tcpEstabResets; both families).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resets {
    /// `tcpOutRsts`.
    pub sent: u64,
    /// `tcpEstabResets`.
    pub connections: u64,
}

impl Resets {
    /// As they are now.
    pub fn of(namespace: &Namespace) -> Result<Self> {
        let text = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))?;
        let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
        let (names, values) = lines.next().zip(lines.next()).context("/proc/net/snmp has no TCP counters")?;
        let value = |wanted: &str| -> Result<u64> {
            let pair = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == wanted);
            Ok(pair.with_context(|| format!("no {wanted} in /proc/net/snmp"))?.1.parse()?)
        };
        Ok(Self { sent: value("OutRsts")?, connections: value("EstabResets")? })
    }
}

/// A family's unspecified address with a port, to bind to.
#[must_use]
pub const fn any(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), port),
        Family::V6 => SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
    }
}
