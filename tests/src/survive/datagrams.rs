//! UDP beside the sessions: each datagram must come to a pod that serves, and its answer from the VIP.

use std::{
    io::ErrorKind,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    lab::{Family, Lab, vip},
    programs::conversation::any,
};

/// Clients of each family.
const CLIENTS: usize = 50;
/// How long an answer may take in all.
const LIMIT: Duration = Duration::from_secs(3);
/// After which a client says it again: queues may be full, and nobody else repeats what they lose.
const REPEAT: Duration = Duration::from_millis(500);

/// What came of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sent by clients, without repetitions.
    pub sent: u64,
    /// Repetitions.
    pub repeated: u64,
    /// Arrived in a pod that does not serve.
    pub wrong: u64,
    /// Whose answer did not come from the VIP in time.
    pub unanswered: u64,
}

/// Clients that keep their ports, and a receiver in each pod.
pub struct Datagrams {
    clients: Vec<UdpSocket>,
    pods: Vec<UdpSocket>,
    number: u32,
}

impl Datagrams {
    /// To `vip_port` of the first VIPs; pods listen on `pod_port`.
    pub fn new(lab: &Lab, vip_port: u16, pod_port: u16) -> Result<Self> {
        let mut clients = Vec::new();
        for family in Family::BOTH.repeat(CLIENTS) {
            let client = lab.element.run(|| UdpSocket::bind(any(family, 0)))?;
            // Takes nothing from anybody else from now on.
            lab.element.run(|| client.connect(SocketAddr::new(vip(1).of(family), vip_port)))?;
            client.set_nonblocking(true)?;
            clients.push(client);
        }
        let mut pods = Vec::new();
        for pod in &lab.pods {
            let socket = pod.namespace.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, pod_port)));
            let socket = socket.with_context(|| format!("UDP port {pod_port} in {}", pod.namespace.name()))?;
            socket.set_nonblocking(true)?;
            pods.push(socket);
        }
        Ok(Self { clients, pods, number: 0 })
    }

    /// One datagram of each client, and its answer. `serves` says which pods may get any.
    pub fn round(&mut self, serves: impl Fn(usize) -> bool) -> Result<Tally> {
        self.number += 1;
        let number = self.number.to_ne_bytes();
        for client in &self.clients {
            client.send(&number).context("cannot send a datagram")?;
        }
        let mut tally = Tally { sent: self.clients.len() as u64, ..Tally::default() };
        let mut answered = vec![false; self.clients.len()];
        let begun = Instant::now();
        let (deadline, mut repeat) = (begun + LIMIT, begun + REPEAT);
        while !answered.iter().all(|answered| *answered) && Instant::now() < deadline {
            for (place, pod) in self.pods.iter().enumerate() {
                while let Some((received, from)) = receive(pod)? {
                    // What was sent before the change may come after it.
                    if received == number {
                        tally.wrong += u64::from(!serves(place));
                        pod.send_to(&received, from).context("cannot answer a datagram")?;
                    }
                }
            }
            for (client, answered) in self.clients.iter().zip(&mut answered) {
                while let Some((received, _)) = receive(client)? {
                    *answered |= received == number;
                }
            }
            if Instant::now() >= repeat {
                repeat += REPEAT;
                for (client, _) in self.clients.iter().zip(&answered).filter(|(_, answered)| !**answered) {
                    client.send(&number).context("cannot repeat a datagram")?;
                    tally.repeated += 1;
                }
            }
            thread::sleep(Duration::from_micros(200));
        }
        tally.unanswered = answered.iter().filter(|answered| !**answered).count() as u64;
        Ok(tally)
    }
}

fn receive(socket: &UdpSocket) -> Result<Option<([u8; 4], SocketAddr)>> {
    let mut bytes = [0; 4];
    match socket.recv_from(&mut bytes) {
        Ok((_, from)) => Ok(Some((bytes, from))),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error).context("a datagram"),
    }
}
