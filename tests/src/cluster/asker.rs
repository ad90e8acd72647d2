//! Asks a segment who has an address, and hears everybody who answers.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Cluster, SEGMENT};
use crate::{
    lab::{Namespace, Tap},
    packets::{CLIENT_MAC, neighbor::Arp},
};

/// ARP's EtherType.
const ARP: u16 = 0x0806;
/// Who asks: nobody's address, so that no table learns anything from the answer.
const ASKER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 200);
/// How long answers to one question are heard.
const WINDOW: Duration = Duration::from_millis(20);
/// Destination, source and EtherType lead the ARP packet, whose sender's MAC and address are at 8 and 14.
const SENDER_MAC: usize = 14 + 8;
const SENDER: usize = 14 + 14;
const OPERATION: usize = 14 + 6;

/// Questions on a segment, from the router's end of it.
pub struct Asker<'a> {
    router: &'a Namespace,
    tap: Tap,
}

impl<'a> Asker<'a> {
    /// Begins to hear.
    pub fn new(cluster: &'a Cluster) -> Result<Self> {
        Ok(Self { router: &cluster.router, tap: cluster.router.tap(SEGMENT, ARP)? })
    }

    /// Asks once. The MACs of all who answer this question; claims that nobody asked for are no answers.
    pub fn ask(&self, vip: Ipv4Addr) -> Result<BTreeSet<String>> {
        self.router.send_frame(SEGMENT, &Arp::request(IpAddr::from(vip)).from(IpAddr::from(ASKER)).frame())?;
        let deadline = Instant::now() + WINDOW;
        let mut answers = BTreeSet::new();
        while let Some(frame) = self.tap.receive(deadline)? {
            if frame.len() < SENDER + 4 {
                continue;
            }
            let is_reply = frame[OPERATION..SENDER_MAC] == [0, 2] && frame[..6] == CLIENT_MAC;
            if is_reply && frame[SENDER..SENDER + 4] == vip.octets() {
                let mac: Vec<String> = frame[SENDER_MAC..SENDER].iter().map(|octet| format!("{octet:02x}")).collect();
                answers.insert(mac.join(":"));
            }
        }
        Ok(answers)
    }
}
