//! Who has TCP sockets that are in our way, from the tables that the kernel shows under /proc.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// Of this network namespace, whichever thread asks.
const TABLES: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];

/// Sockets that listen where we would: at the address, or at all. By their inodes.
#[must_use]
pub fn listeners(at: SocketAddr) -> Vec<u64> {
    let in_the_way = |row: &Row| {
        // One that listens at all addresses of IPv6 most often does for IPv4, too.
        let is_same = row.local.ip() == at.ip() || row.local.ip().is_unspecified();
        row.state == State::Listen && row.local.port() == at.port() && is_same
    };
    rows().into_iter().filter(in_the_way).map(|row| row.inode).collect()
}

/// Whether another process has a session between the same addresses: ours would be taken for its second one. `ours` are
/// the ports of connections that we have ourselves, local first. Its socket, by its inode.
pub fn find_session(local: IpAddr, remote: SocketAddr, port: u16, ours: &[(u16, u16)]) -> Option<u64> {
    rows().into_iter().find(|row| is_session(row, local, remote, port, ours)).map(|row| row.inode)
}

fn is_session(row: &Row, local: IpAddr, remote: SocketAddr, port: u16, ours: &[(u16, u16)]) -> bool {
    let ports = (row.local.port(), row.remote.port());
    row.state == State::Established
        && (row.local.ip(), row.remote.ip()) == (local, remote.ip())
        && (ports.1 == remote.port() || ports.0 == port)
        && !ours.contains(&ports)
}

/// A socket in one of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    local: SocketAddr,
    remote: SocketAddr,
    state: State,
    inode: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Established,
    Listen,
    Other,
}

fn rows() -> Vec<Row> {
    let tables = TABLES.iter().filter_map(|table| fs::read_to_string(table).ok());
    tables.flat_map(|table| table.lines().skip(1).filter_map(parse_row).collect::<Vec<_>>()).collect()
}

/// proc_net_tcp(5): number, both ends, state, queues, timers, retransmits, user, timeout, inode.
fn parse_row(row: &str) -> Option<Row> {
    let mut words = row.split_ascii_whitespace().skip(1);
    let (local, remote) = (parse_address(words.next()?)?, parse_address(words.next()?)?);
    // include/net/tcp_states.h.
    let state = match u8::from_str_radix(words.next()?, 16).ok()? {
        1 => State::Established,
        10 => State::Listen,
        _ => State::Other,
    };
    Some(Row { local, remote, state, inode: words.nth(5)?.parse().ok()? })
}

/// Words of 32 bits in the machine's order, and the port as a number. Mapped addresses are those of IPv4.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::net::processes::Holder;

    /// From a machine of little endian.
    const ESTABLISHED: &str = "   1: 0100000A:00B3 0200000A:9C4A 01 00000000:00000000 02:000A8F1C 00000000 \
                               0        0 48213 2 0000000000000000 20 4 30 10 -1";
    const LISTENING: &str = "   0: 00000000000000000000000000000000:00B3 00000000000000000000000000000000:0000 0A \
                             00000000:00000000 00:00000000 00000000 0 0 20511 1 0000000000000000 100 0 0 10 0";
    const MAPPED: &str = "   3: 0000000000000000FFFF00000100000A:C350 0000000000000000FFFF00000200000A:00B3 01 \
                          00000000:00000000 00:00000000 00000000     0        0 777 1 0000000000000000 20 4 0 10 -1";

    #[cfg(target_endian = "little")]
    #[test]
    fn rows_are_read_as_the_kernel_prints_them() {
        let row = |text| parse_row(text).expect("a row");
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let expected = |local, remote, state, inode| Row { local: at(local), remote: at(remote), state, inode };
        assert_eq!(row(ESTABLISHED), expected("10.0.0.1:179", "10.0.0.2:40010", State::Established, 48213));
        assert_eq!(row(LISTENING), expected("[::]:179", "[::]:0", State::Listen, 20511));
        assert_eq!(row(MAPPED), expected("10.0.0.1:50000", "10.0.0.2:179", State::Established, 777));
    }

    #[test]
    fn what_is_no_row_is_none() {
        for text in ["", "1:", "1: 01:02 03:04 01", "  sl  local_address rem_address   st", "1: 0100000A 0200000A 01"] {
            assert_eq!(parse_row(text), None, "{text}");
        }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_session_of_others_is_one_that_is_not_ours() {
        let (local, remote) = ("10.0.0.1".parse().expect("one"), "10.0.0.2:179".parse().expect("one"));
        for row in [ESTABLISHED, MAPPED] {
            let row = parse_row(row).expect("a row");
            let ports = (row.local.port(), row.remote.port());
            assert!(is_session(&row, local, remote, 179, &[]));
            assert!(!is_session(&row, local, remote, 179, &[ports]), "it is ours");
            assert!(!is_session(&row, remote.ip(), remote, 179, &[]), "it is from another address");
        }
        let other = Row { local: "10.0.0.1:8080".parse().expect("one"), ..parse_row(ESTABLISHED).expect("a row") };
        assert!(!is_session(&other, local, remote, 179, &[]), "it is no BGP");
    }

    #[test]
    fn a_listening_socket_is_found_with_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let sockets = listeners(listener.local_addr().expect("an address"));
        let holder = Holder::of_sockets(&sockets).expect("we hold it");
        assert_eq!(holder.pid, std::process::id());
    }
}
