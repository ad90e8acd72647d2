//! One node: an agent with its virtual routers, and the table that answers.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_userspace::announce::vrrp::{
    Family, Priority,
    machine::{Router, Settings, Transmit},
};

/// Packets that a socket keeps for an agent that stands still.
const SOCKET_MAX: usize = 128;

/// What arrives.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) bytes: Vec<u8>,
}

/// What the agent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Runs,
    /// SIGSTOP: its socket fills.
    Stopped,
    /// The VM is paused: what comes is lost.
    Paused,
    Dead,
}

#[derive(Debug)]
pub(super) struct Node {
    /// Its clock less the world's.
    pub(super) offset: Duration,
    pub(super) phase: Phase,
    pub(super) is_linked: bool,
    /// Whether it was told to take part; a new agent is.
    pub(super) is_ordered: bool,
    /// The data plane has the VIPs.
    pub(super) is_installed: bool,
    /// For each virtual router, as a new agent would begin with.
    pub(super) settings: Vec<Settings>,
    pub(super) routers: Vec<Router>,
    /// Who is answered until when by the node's clock. In the kernel: outlives the agent.
    pub(super) table: BTreeMap<IpAddr, Duration>,
    pub(super) socket: VecDeque<Packet>,
    /// When the agent is next called, by the world's clock.
    pub(super) wake: Option<Duration>,
    /// Stands still for so long at the next sending, between the look at the clock and the packet.
    pub(super) trap: Option<Duration>,
    pub(super) held: Option<(usize, Transmit)>,
}

impl Node {
    pub(super) fn new(offset: Duration, settings: Vec<Settings>) -> Self {
        Self {
            offset,
            phase: Phase::Dead,
            is_linked: true,
            is_ordered: true,
            is_installed: true,
            settings,
            routers: Vec::new(),
            table: BTreeMap::new(),
            socket: VecDeque::new(),
            wake: None,
            trap: None,
            held: None,
        }
    }

    /// Its own time.
    pub(super) fn local(&self, now: Duration) -> Duration {
        now + self.offset
    }

    /// Until when it answers for a VIP, by the world's clock.
    pub(super) fn answers_until(&self, vip: IpAddr) -> Duration {
        self.table.get(&vip).map_or(Duration::ZERO, |until| until.saturating_sub(self.offset))
    }

    pub(super) fn keep(&mut self, packet: Packet) {
        if self.socket.len() < SOCKET_MAX {
            self.socket.push_back(packet);
        }
    }

    /// Whether it may hold a virtual router's VIPs before long, left alone.
    pub(super) fn is_able(&self, router: usize) -> bool {
        self.phase == Phase::Runs && self.is_linked && self.is_ordered && self.priority(router).is_some()
    }

    /// What it competes with: nothing without a data plane.
    pub(super) fn priority(&self, router: usize) -> Option<Priority> {
        self.settings[router].priority.filter(|_| self.is_installed)
    }
}

/// A node's primary address.
pub(super) fn address(family: Family, number: usize) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(10, 0, 0, 10 + number as u8).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 10 + number as u16).into(),
    }
}

/// A VIP.
pub(super) fn vip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(10, 0, 1, number).into(),
        Family::Ipv6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)).into(),
    }
}
