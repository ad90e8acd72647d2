//! Who holds a UDP port.

use std::fs;

/// UDP sockets at `port` in this network namespace, by their inodes.
#[must_use]
pub fn sockets_at(port: u16) -> Vec<u64> {
    let tables = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"];
    let tables = tables.iter().filter_map(|table| fs::read_to_string(table).ok());
    tables.flat_map(|table| inodes_at(&table, port)).collect()
}

/// The inodes of the sockets at a port, from a table as the kernel prints it (proc_net_udp(5)).
fn inodes_at(table: &str, port: u16) -> Vec<u64> {
    let suffix = format!(":{port:04X}");
    let rows = table.lines().skip(1).map(|row| row.split_ascii_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(1).is_some_and(|local| local.ends_with(&suffix)))
        .filter_map(|row| row.get(9)?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::processes::Holder;

    #[test]
    fn a_socket_is_found_with_its_process() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let port = socket.local_addr().expect("an address").port();
        let holder = Holder::of_sockets(&sockets_at(port)).expect("we hold it");
        assert_eq!(holder.pid, std::process::id());
        drop(socket);
    }
}
