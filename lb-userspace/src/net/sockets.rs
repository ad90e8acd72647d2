//! TCP sockets of a namespace, through sock_diag(7): who is connected to which port.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};

use serde::{Deserialize, Serialize};

use super::{Netlink, Result, netns::Netns};

/// A TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Connection {
    /// Address and port of the namespace that was asked. IPv4, never mapped into IPv6. Unspecified for a listener on
    /// any address; one on `[::]` may accept IPv4 too.
    pub local: SocketAddr,
    /// The other side; unspecified for a listener.
    pub remote: SocketAddr,
    /// How far it is.
    pub state: TcpState,
}

/// States of a TCP connection (RFC 9293, section 3.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the RFC's names")]
pub enum TcpState {
    Established,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    Closed,
    CloseWait,
    LastAck,
    Listen,
    Closing,
}

impl TcpState {
    /// From the kernel's number (`net/tcp_states.h`), where 12 is a handshake that has no socket of its own yet.
    fn from_kernel(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Established,
            2 => Self::SynSent,
            3 | 12 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Closed,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            _ => return None,
        })
    }
}

/// Whether listening sockets are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listeners {
    /// Leave them out.
    Without,
    /// List them too.
    With,
}

/// TCP sockets whose local port is one of `local_ports`, of IPv4 and IPv6, in the calling thread's namespace: those
/// that applications own, half-open handshakes and TIME_WAIT. Ordered, each once.
///
/// The kernel walks its whole socket table twice (once for each family), and ports are compared by the kernel for one
/// port and here for more. The walk is no point in time: a connection that is made or ends meanwhile may be missed,
/// one that exists all along is not.
///
/// # Errors
/// `ENOENT` where the kernel lacks `tcp_diag` (CONFIG_INET_TCP_DIAG).
pub fn connections(local_ports: &[u16], listeners: Listeners) -> Result<Vec<Connection>> {
    let mut netlink = Netlink::open_sock_diag()?;
    let mut found = Vec::new();
    for (family, mut socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        match *local_ports {
            [] => return Ok(found),
            [port] => socket_id.source_port = port,
            _ => {}
        }
        let mut states = StateFlags::all();
        states.set(StateFlags::LISTEN, listeners == Listeners::With);
        // `SYN_RECV` stands for handshakes without a socket of their own as well (`inet_diag_dump_icsk`).
        let question = SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states,
            socket_id,
        });
        let answers = netlink.dump("list TCP sockets", question)?;
        found.extend(answers.iter().filter_map(|answer| match answer {
            SockDiagMessage::InetResponse(response) => decode(response),
            _ => None,
        }));
    }
    // A pod may have thousands of both.
    let wanted: HashSet<u16> = local_ports.iter().copied().collect();
    found.retain(|connection| wanted.contains(&connection.local.port()));
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// [`connections`] of another namespace.
pub fn connections_in(netns: &Netns, local_ports: &[u16], listeners: Listeners) -> Result<Vec<Connection>> {
    netns.run(|| connections(local_ports, listeners))?
}

fn decode(response: &InetResponse) -> Option<Connection> {
    let id = &response.header.socket_id;
    let address = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
    Some(Connection {
        local: address(id.source_address, id.source_port),
        remote: address(id.destination_address, id.destination_port),
        state: TcpState::from_kernel(response.header.state)?,
    })
}
