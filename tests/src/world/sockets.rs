//! Real TCP connections of clients with pods, in every state that a pod's kernel can answer with. Needs privileges.
//!
//! All ends are in one network namespace, of the calling thread alone, on its loopback: there a test run of
//! `sluice_xdp` looks for them, and its packets never reach them, so states stay. TIME_WAIT ends after a minute.

pub(crate) mod socket;

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    abi::{BypassKey, HOST_NETNS, protocol},
    address::Address,
};

use super::content::{
    Content, VIPS, address, direct,
    moved::{DUAL, NETNS_ID, OWNERS, SILENT},
};
use crate::packets::random::Random;

/// Clients of each family that have connections.
pub const CLIENTS: usize = 6;
/// Ports of each, from [`FIRST_PORT`].
pub const PORTS: usize = 6;
/// First port of clients.
pub const FIRST_PORT: u16 = 40_000;
/// How long the kernel keeps TIME_WAIT (TCP_TIMEWAIT_LEN, include/net/tcp.h).
const TIME_WAIT: Duration = Duration::from_secs(60);
/// Longest wait for a state: all ends are here, so it takes microseconds.
const STATE_LIMIT: Duration = Duration::from_secs(10);

/// The address of a client by its number.
pub fn client(family: usize, number: u8) -> IpAddr {
    if family == 0 {
        IpAddr::from([203, 0, 113, number])
    } else {
        IpAddr::from([0x2001, 0xdb8, 0xc, 0, 0, u16::from(number) << 8, 0, 7])
    }
}

/// What a pod's kernel has of a client's connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Nothing but a listener, if that.
    Nothing,
    /// Nothing: the client closed first, then the pod.
    Done,
    /// Nothing: a handshake under SYN cookies before its ACK.
    Cookie,
    /// A handshake before its ACK: NEW_SYN_RECV.
    HalfOpen,
    /// Connected and accepted.
    Established,
    /// Connected and not accepted yet.
    Waiting,
    /// The pod's FIN is not acknowledged.
    FinWait1,
    /// The pod has closed its sending side.
    FinWait2,
    /// The client's FIN was seen.
    CloseWait,
    /// The same, and the pod's FIN is not acknowledged.
    LastAck,
    /// Both closed at once, and the pod's FIN is not acknowledged.
    Closing,
    /// Both closed, the pod first.
    TimeWait,
    /// The pod closed, the client is open: TIME_WAIT too, with FIN_WAIT2 inside, which is what /proc shows.
    HalfClosed,
}

impl State {
    /// All of them. Those that wait to be accepted last: who accepts another would get them.
    pub const ALL: [Self; 13] = [
        Self::Nothing,
        Self::Done,
        Self::Cookie,
        Self::HalfOpen,
        Self::Established,
        Self::FinWait1,
        Self::FinWait2,
        Self::CloseWait,
        Self::LastAck,
        Self::Closing,
        Self::TimeWait,
        Self::HalfClosed,
        Self::Waiting,
    ];

    /// As /proc/net/tcp shows it (include/net/tcp_states.h; NEW_SYN_RECV as SYN_RECV).
    const fn number(self) -> Option<u8> {
        match self {
            Self::Nothing | Self::Done | Self::Cookie => None,
            Self::Established | Self::Waiting => Some(1),
            Self::HalfOpen => Some(3),
            Self::FinWait1 => Some(4),
            Self::FinWait2 | Self::HalfClosed => Some(5),
            Self::TimeWait => Some(6),
            Self::CloseWait => Some(8),
            Self::LastAck => Some(9),
            Self::Closing => Some(11),
        }
    }

    /// Whether packets of the connection belong to the pod.
    pub const fn is_living(self) -> bool {
        !matches!(self, Self::Nothing | Self::Done | Self::Cookie | Self::TimeWait | Self::HalfClosed)
    }
}

/// The ends of one connection that are open.
type Ends = (Option<TcpStream>, Option<TcpStream>);

/// A network namespace with pods that listen, and connections.
pub struct Sockets {
    listeners: HashMap<(Address, u16), TcpListener>,
    states: HashMap<BypassKey, State>,
    ends: HashMap<BypassKey, Ends>,
    begun: Instant,
}

impl Sockets {
    /// Takes the calling thread into a namespace of its own, where the content's pods listen.
    pub fn new(content: &Content) -> Self {
        socket::allow_many();
        // SAFETY: takes a flag, and changes this thread only.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "a namespace of its own: {}", std::io::Error::last_os_error());
        let pods = || [true, false].into_iter().flat_map(|is_v4| OWNERS.map(|id| (id, content.owner(is_v4, id))));
        let clients = (0..2).flat_map(|family| (0..CLIENTS as u8).map(move |number| client(family, number)));
        let vips = VIPS.map(|vips| IpAddr::from(address(vips[0])));
        let addresses: Vec<_> = pods().map(|(_, pod)| IpAddr::from(pod.address)).chain(clients).chain(vips).collect();
        let lines = addresses.iter().map(|address| match address {
            IpAddr::V4(_) => format!("address add {address}/32 dev lo\n"),
            IpAddr::V6(_) => format!("address add {address}/128 dev lo nodad noprefixroute\n"),
        });
        ip(&std::iter::once("link set lo up\n".into()).chain(lines).collect::<String>());
        addresses.iter().for_each(await_route);
        socket::name_own_namespace(NETNS_ID);
        // Handshakes stay half open for as long as a test may take.
        sysctl("tcp_synack_retries", "12");
        let mut listeners = HashMap::new();
        for (id, pod) in pods().filter(|(id, _)| *id != SILENT) {
            let own = IpAddr::from(pod.address);
            let at = if DUAL.contains(&id) { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { own };
            let key = (at.into(), pod.port);
            listeners.entry(key).or_insert_with(|| TcpListener::bind((at, pod.port)).expect("the port is free"));
        }
        for vip in vips {
            let at = (vip, direct::PORT_MOVED);
            listeners.insert((vip.into(), at.1), TcpListener::bind(at).expect("the port is free"));
        }
        Self { listeners, states: HashMap::new(), ends: HashMap::new(), begun: Instant::now() }
    }

    /// The same with connections of [`CLIENTS`] and [`PORTS`], in states that the seed chooses.
    pub fn filled(content: &Content, seed: u64) -> Self {
        let mut sockets = Self::new(content);
        let mut random = Random::new(seed);
        let mut wanted = Vec::new();
        for is_v4 in [true, false] {
            for id in OWNERS.into_iter().filter(|id| *id != SILENT) {
                for at in 0..CLIENTS * PORTS {
                    let client = client(usize::from(!is_v4), (at % CLIENTS) as u8);
                    let port = FIRST_PORT + (at / CLIENTS) as u16;
                    if !random.one_in(4) {
                        let place = random.below(State::ALL.len());
                        wanted.push((place, connection(content, client, port, id)));
                    }
                }
            }
        }
        for (family, at) in (0..2).flat_map(|family| (0..CLIENTS * PORTS).map(move |at| (family, at))) {
            let client = client(family, (at % CLIENTS) as u8);
            let port = FIRST_PORT + (at / CLIENTS) as u16;
            if !random.one_in(4) {
                wanted.push((random.below(State::ALL.len()), direct_connection(client, port)));
            }
        }
        wanted.sort_by_key(|(place, _)| *place);
        for (place, key) in wanted {
            sockets.put(key, State::ALL[place]);
        }
        sockets
    }

    /// Connections that the pods' kernels have, of pods that can be asked.
    pub fn living(&self, content: &Content) -> HashSet<BypassKey> {
        let asked = |key: &BypassKey| {
            let pods = OWNERS.map(|id| content.owner(key.pod.is_v4(), id));
            // Of those that own the VIP, the one that can be asked has the connections.
            key.pod_port == direct::PORT_MOVED
                || pods.iter().any(|pod| pod.address == key.pod && matches!(pod.netns_id, HOST_NETNS | NETNS_ID))
        };
        self.states.iter().filter(|(key, state)| state.is_living() && asked(key)).map(|(key, _)| *key).collect()
    }

    /// Brings a connection, which is in no state yet, into this one.
    pub fn put(&mut self, key: BypassKey, state: State) {
        let ends = match state {
            State::Nothing => (None, None),
            State::Cookie => {
                sysctl("tcp_syncookies", "2");
                // Closed before it repeats its SYN.
                drop(half_open(&key));
                sysctl("tcp_syncookies", "1");
                (None, None)
            }
            State::HalfOpen => (Some(half_open(&key)), None),
            _ => self.connected(&key, state),
        };
        self.states.insert(key, state);
        self.ends.insert(key, ends);
    }

    /// Closes both ends, the client's first: the pod's kernel then has nothing.
    pub fn close(&mut self, key: &BypassKey) {
        let (Some(client), Some(pod)) = self.ends.remove(key).expect("a connection") else { panic!("it is not open") };
        close_both(client, pod);
        self.states.insert(*key, State::Done);
    }

    /// Waits until every connection is in its state; panics where one is not in the end.
    pub fn check(&self) {
        let give_up = Instant::now() + STATE_LIMIT;
        loop {
            let shown = shown();
            // When TIME_WAIT may have ended, the pod has nothing, which is answered alike.
            let over = self.begun.elapsed() > TIME_WAIT - STATE_LIMIT;
            let is_right = |key: &BypassKey, state: State| {
                shown.get(key).copied() == state.number()
                    || over && matches!(state, State::TimeWait | State::HalfClosed) && !shown.contains_key(key)
            };
            let Some((key, state)) = self.states.iter().find(|(key, state)| !is_right(key, **state)) else { return };
            assert!(Instant::now() < give_up, "{key:?} is to be in {state:?}, and is in {:?}", shown.get(key));
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// How many connections are in each state, by family.
    pub fn census(&self) -> HashMap<(bool, State), usize> {
        let mut census = HashMap::new();
        self.states.iter().for_each(|(key, state)| *census.entry((key.pod.is_v4(), *state)).or_default() += 1);
        census
    }

    fn connected(&self, key: &BypassKey, state: State) -> Ends {
        let client = socket::bound(SocketAddr::new(key.client.into(), key.client_port));
        let connected = socket::connect(&client, pod_end(key));
        connected.unwrap_or_else(|error| panic!("{key:?} in {state:?}: {error}"));
        if state == State::Waiting {
            return (Some(client), None);
        }
        let mut pod = self.accept(key);
        let close_for_sending = |end: &TcpStream| end.shutdown(Shutdown::Write).expect("it is connected");
        match state {
            State::FinWait1 | State::Closing => {
                socket::deafen(&client);
                close_for_sending(&pod);
                if state == State::Closing {
                    close_for_sending(&client);
                }
            }
            State::CloseWait | State::LastAck => {
                close_for_sending(&client);
                await_end(&mut pod);
                if state == State::LastAck {
                    socket::deafen(&client);
                    close_for_sending(&pod);
                }
            }
            State::FinWait2 => close_for_sending(&pod),
            State::TimeWait | State::HalfClosed => {
                drop(pod);
                return if state == State::TimeWait { (None, None) } else { (Some(client), None) };
            }
            State::Done => {
                close_both(client, pod);
                return (None, None);
            }
            _ => {}
        }
        (Some(client), Some(pod))
    }

    fn accept(&self, key: &BypassKey) -> TcpStream {
        let port = key.pod_port;
        let own = self.listeners.get(&(key.pod, port));
        let listener = own.or_else(|| self.listeners.get(&(address("::"), port))).expect("the pod listens");
        let (stream, from) = listener.accept().expect("a connection waits");
        let from = Address::from(from.ip().to_canonical());
        assert_eq!(from, key.client, "connections that wait are made last");
        stream
    }
}

/// A client's connection with an owner of slots.
pub fn connection(content: &Content, client: IpAddr, client_port: u16, owner: u32) -> BypassKey {
    let pod = content.owner(client.is_ipv4(), owner);
    let (client, protocol) = (Address::from(client), protocol::TCP);
    BypassKey { client, pod: pod.address, client_port, pod_port: pod.port, protocol, pad: 0, pad2: 0 }
}

/// A client's connection with a pod that owns the VIP.
pub fn direct_connection(client: IpAddr, client_port: u16) -> BypassKey {
    let pod = address(VIPS[usize::from(client.is_ipv6())][0]);
    let (client, pod_port, protocol) = (Address::from(client), direct::PORT_MOVED, protocol::TCP);
    BypassKey { client, pod, client_port, pod_port, protocol, pad: 0, pad2: 0 }
}

fn pod_end(key: &BypassKey) -> SocketAddr {
    SocketAddr::new(key.pod.into(), key.pod_port)
}

fn close_both(client: TcpStream, mut pod: TcpStream) {
    drop(client);
    await_end(&mut pod);
}

/// Waits for the client's FIN.
fn await_end(pod: &mut TcpStream) {
    assert_eq!(pod.read(&mut [0]).expect("the client's FIN comes"), 0);
}

/// A client that has sent its SYN and hears no answer.
fn half_open(key: &BypassKey) -> TcpStream {
    let client = socket::bound(SocketAddr::new(key.client.into(), key.client_port));
    socket::deafen(&client);
    client.set_nonblocking(true).expect("a socket");
    let error = socket::connect(&client, pod_end(key)).expect_err("nothing answers");
    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}");
    client
}

fn ip(lines: &str) {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("iproute2 is there");
    // Dropped at once: the end of the input ends the batch.
    let written = ip.stdin.take().expect("a pipe").write_all(lines.as_bytes());
    assert!(written.is_ok() && ip.wait().expect("it ends").success(), "ip refuses one of:\n{lines}");
}

/// The kernel adds its own route to an IPv6 address some time after the address.
fn await_route(to: &IpAddr) {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let probe = UdpSocket::bind((any, 0)).expect("a free port");
    let give_up = Instant::now() + STATE_LIMIT;
    while let Err(error) = probe.connect((*to, 9)) {
        assert!(Instant::now() < give_up, "no route to {to}: {error}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Of the thread's own namespace.
fn sysctl(name: &str, value: &str) {
    fs::write(format!("/proc/sys/net/ipv4/{name}"), value).expect("the namespace has this setting");
}

/// Every socket with a remote end in this namespace, as its own end sees it: local as pod, remote as client.
fn shown() -> HashMap<BypassKey, u8> {
    let mut shown = HashMap::new();
    for table in ["tcp", "tcp6"] {
        let path = format!("/proc/thread-self/net/{table}");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            text => text.expect("the kernel's own table"),
        };
        for line in text.lines().skip(1) {
            // Columns: number, local end, remote end, state (proc_pid_net(5)).
            let columns: Vec<_> = line.split_whitespace().collect();
            let (pod, pod_port) = end(columns[1]);
            let (client, client_port) = end(columns[2]);
            let state = u8::from_str_radix(columns[3], 16).expect("a state");
            let protocol = protocol::TCP;
            shown.insert(BypassKey { client, pod, client_port, pod_port, protocol, pad: 0, pad2: 0 }, state);
        }
    }
    shown
}

/// An address as words of four bytes in the machine's order, and a port.
fn end(text: &str) -> (Address, u16) {
    let (words, port) = text.split_once(':').expect("address:port");
    let word = |at: usize| u32::from_str_radix(&words[8 * at..8 * at + 8], 16).expect("hexadecimal").to_ne_bytes();
    let address = match words.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0))),
        _ => {
            let bytes = [0, 1, 2, 3].map(word).concat();
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).expect("four words"))).to_canonical()
        }
    };
    (address.into(), u16::from_str_radix(port, 16).expect("hexadecimal"))
}
