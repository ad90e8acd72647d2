//! One speaker: an agent of a node, or a router.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_userspace::announce::{
    bfd::{
        machine::{Endpoint, Hops, Interface, Path, Pulse, Sessions, Settings as BfdSettings},
        packet::{PACKET_BYTES, State as BfdState},
    },
    bgp::{
        damping::Damping,
        machine::{Peer, RestartFacts, Settings, Stage},
        route::Route,
        values::Prefix,
    },
    eligibility::VipFacts,
    leaving::Departure,
    silence::Silence,
};

/// Datagrams that a socket keeps for who stands still.
const SOCKET_MAX: usize = 128;

/// A datagram on its way, with its source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram {
    pub(super) source: IpAddr,
    pub(super) payload: [u8; PACKET_BYTES],
}

/// What a speaker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Runs,
    /// SIGSTOP: sockets fill, and the kernel goes on.
    Stopped,
    /// The VM is paused.
    Paused,
    /// The process is dead; the kernel, and a node's data plane, go on.
    Dead,
    /// Without power.
    Off,
}

/// One speaker's side towards another.
#[derive(Debug)]
pub(super) struct Neighbor {
    /// Its place in the world.
    pub(super) other: usize,
    pub(super) settings: Settings,
    pub(super) bfd: Option<BfdSettings>,
    /// None while the process is dead.
    pub(super) peer: Option<Peer>,
    /// The machine was told this, and has said that it is sent.
    pub(super) stage: Stage,
    pub(super) is_stage_sent: bool,
    /// The last packet of BFD that was sent: when, and the state that it said.
    pub(super) last_bfd: Option<(Duration, BfdState)>,
    pub(super) bfd_sent: u64,
}

impl Neighbor {
    pub(super) const fn new(other: usize, settings: Settings, bfd: Option<BfdSettings>) -> Self {
        Self {
            other,
            settings,
            bfd,
            peer: None,
            stage: Stage::Running,
            is_stage_sent: true,
            last_bfd: None,
            bfd_sent: 0,
        }
    }
}

#[derive(Debug)]
pub(super) struct Agent {
    pub(super) is_router: bool,
    /// Its clock less the world's.
    pub(super) offset: Duration,
    pub(super) phase: Phase,
    pub(super) neighbors: Vec<Neighbor>,
    /// None while the process is dead.
    pub(super) sessions: Option<Sessions>,
    pub(super) socket: VecDeque<Datagram>,
    /// When it is next called, by the world's clock.
    pub(super) wake: Option<Duration>,
    /// What the next process knows of its restart.
    pub(super) restart: RestartFacts,
    /// The engine hangs since then, by its own clock.
    pub(super) hung_since: Option<Duration>,
    /// The engine's last beat that BGP's thread has heard, by its own clock.
    pub(super) heard: Option<Duration>,
    pub(super) silence: Silence,
    pub(super) is_silenced: bool,
    /// What the engine wants announced, and whether that is all.
    pub(super) wanted: (BTreeMap<Prefix, Route>, bool),
    /// BGP's thread looks after the engine then, by its own clock.
    pub(super) look_at: Duration,
    /// No program is attached since then, by its own clock.
    pub(super) bare_since: Option<Duration>,
    /// The data plane's VIPs. In the kernel: outlive the process.
    pub(super) vips: BTreeMap<IpAddr, VipFacts>,
    pub(super) damping: Damping<IpAddr>,
    pub(super) departure: Option<Departure>,
    /// Leaves without a word, to come back.
    pub(super) is_silent_leave: bool,
    /// VIPs were looked at, and no others are about to come.
    pub(super) is_settled: bool,
    /// BFD has said AdminDown to so many.
    pub(super) silenced: usize,
}

impl Agent {
    pub(super) fn new(is_router: bool, offset: Duration, neighbors: Vec<Neighbor>) -> Self {
        Self {
            is_router,
            offset,
            phase: Phase::Off,
            neighbors,
            sessions: None,
            socket: VecDeque::new(),
            wake: None,
            restart: RestartFacts::default(),
            hung_since: None,
            heard: None,
            silence: Silence::new(offset),
            is_silenced: false,
            wanted: (BTreeMap::new(), false),
            look_at: offset,
            bare_since: None,
            vips: BTreeMap::new(),
            damping: Damping::new(),
            departure: None,
            is_silent_leave: false,
            is_settled: true,
            silenced: 0,
        }
    }

    /// Its own time.
    pub(super) fn local(&self, now: Duration) -> Duration {
        now + self.offset
    }

    pub(super) fn keep(&mut self, datagram: Datagram) {
        if self.socket.len() < SOCKET_MAX {
            self.socket.push_back(datagram);
        }
    }

    /// Its kernel answers.
    pub(super) fn has_kernel(&self) -> bool {
        matches!(self.phase, Phase::Runs | Phase::Stopped | Phase::Dead)
    }

    pub(super) fn neighbor(&self, other: usize) -> Option<&Neighbor> {
        self.neighbors.iter().find(|neighbor| neighbor.other == other)
    }

    pub(super) fn neighbor_mut(&mut self, other: usize) -> Option<&mut Neighbor> {
        self.neighbors.iter_mut().find(|neighbor| neighbor.other == other)
    }

    /// What BFD's thread is told of the engine and the data plane.
    pub(super) fn pulse(&self, local: Duration) -> Pulse {
        let engine = self.hung_since.unwrap_or(local);
        Pulse { engine, data_plane: self.bare_since.unwrap_or(local).min(engine) }
    }

    /// Packets for the VIP would be served, whatever the agent does.
    pub(super) fn serves(&self, vip: &IpAddr) -> bool {
        let has_power = !matches!(self.phase, Phase::Off | Phase::Paused);
        has_power && self.bare_since.is_none() && self.vips.get(vip).is_some_and(VipFacts::is_served)
    }
}

/// The other end of a link as BFD has it.
pub(super) fn endpoint(local: usize, remote: usize) -> Endpoint {
    let interface = Interface::new(1).expect("an index");
    Endpoint::new(address(local), address(remote), Hops::Single { interface }).expect("two addresses")
}

/// The session with another.
pub(super) fn path(remote: usize) -> Path {
    endpoint(remote + 1, remote).path()
}

/// Of a speaker.
pub(super) fn address(at: usize) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, 1 + at as u8).into()
}

/// Of a speaker's interface.
pub(super) fn address_v6(at: usize) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1 + at as u16)
}

/// Whose address it is.
pub(super) fn owner(address: IpAddr) -> Option<usize> {
    match address {
        IpAddr::V4(address) => usize::from(address.octets()[3]).checked_sub(1),
        IpAddr::V6(_) => None,
    }
}
