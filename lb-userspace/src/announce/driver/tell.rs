//! Tells segments of VIPs, a few frames at a time: there may be ten thousand VIPs, and advertisements wait for nobody.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::IpAddr,
    time::Duration,
};

use tracing::warn;

use super::{complaints::Complaints, sockets::Frames};
use crate::{
    announce::{
        l2::{Role, announcement},
        vrrp::Vrid,
        wanted::Segment,
    },
    net::{InterfaceIndex, links::Mac},
};

/// VIPs told of in one turn: some 3 ms of sending.
const TURN_MAX: usize = 256;
/// Before the next turn where frames wait, or the kernel takes none.
const PAUSE: Duration = Duration::from_millis(2);

/// That a VIP is on a segment.
#[derive(Clone, Debug)]
pub struct Told {
    /// Whose it is: a virtual router's, or held always.
    pub owner: Option<Vrid>,
    pub segment: Segment,
    pub vip: IpAddr,
    /// Where it is.
    pub mac: Mac,
    pub role: Role,
}

type Key = (InterfaceIndex, Option<Vrid>, IpAddr);

/// What is still to be told. Each owner's VIP waits once on a segment, so they are never more than there are.
#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<Key>,
    told: BTreeMap<Key, Told>,
}

impl Queue {
    /// What waits already is told as it is now.
    fn add(&mut self, told: Told) {
        let key = (told.segment.index, told.owner, told.vip);
        if self.told.insert(key, told).is_none() {
            self.order.push_back(key);
        }
    }

    fn forget<'a>(&mut self, segment: InterfaceIndex, owner: Vrid, vips: impl IntoIterator<Item = &'a IpAddr>) {
        let before = self.told.len();
        for vip in vips {
            self.told.remove(&(segment, Some(owner), *vip));
        }
        if self.told.len() != before {
            self.order.retain(|key| self.told.contains_key(key));
        }
    }

    /// The next, which stays.
    fn first(&self) -> Option<&Told> {
        self.told.get(self.order.front()?)
    }

    /// The first has been told.
    fn pass(&mut self) {
        if let Some(key) = self.order.pop_front() {
            self.told.remove(&key);
        }
    }
}

/// Who tells it.
#[derive(Debug)]
pub struct Teller {
    frames: Frames,
    queue: Queue,
    next: Duration,
}

impl Teller {
    pub fn new(frames: Frames) -> Self {
        Self { frames, queue: Queue::default(), next: Duration::ZERO }
    }

    /// The socket that frames leave by.
    pub const fn frames(&self) -> &Frames {
        &self.frames
    }

    pub fn add(&mut self, told: Told) {
        self.queue.add(told);
    }

    /// A virtual router does not answer for these VIPs any more: what waits of them is not told.
    pub fn forget<'a>(&mut self, segment: InterfaceIndex, owner: Vrid, vips: impl IntoIterator<Item = &'a IpAddr>) {
        self.queue.forget(segment, owner, vips);
    }

    /// Sends what one turn allows.
    pub fn go_on(&mut self, now: Duration, complaints: &mut Complaints) {
        if now < self.next {
            return;
        }
        for _ in 0..TURN_MAX {
            let Some(told) = self.queue.first() else { break };
            match tell(&self.frames, told) {
                Ok(()) => {}
                // No room in the queues for the moment.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS) =>
                {
                    break;
                }
                // The next round follows; the interface may be down.
                Err(error) => complaints.say("tell", now, || {
                    warn!(%error, ifindex = told.segment.index, "a segment was not told of a VIP");
                }),
            }
            self.queue.pass();
        }
        self.next = now + PAUSE;
    }

    pub fn poll_timeout(&self) -> Option<Duration> {
        (!self.queue.told.is_empty()).then_some(self.next)
    }
}

fn tell(frames: &Frames, Told { segment, vip, mac, role, .. }: &Told) -> io::Result<()> {
    announcement(*vip, *mac, *role).iter().try_for_each(|frame| frames.send(segment.index, frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn vrid(number: u16) -> Vrid {
        Vrid::new(number).expect("a number")
    }

    fn told(vip: IpAddr, last: u8) -> Told {
        let mac = [2, 0, 0, 0, 0, last];
        let segment = Segment { index: 7, mac, attached: vec![7], vlan: 0, is_running: true };
        Told { owner: Some(vrid(1)), segment, vip, mac, role: Role::Router }
    }

    /// VIPs with the last octet of their MACs, in the order in which they are told.
    fn drain(queue: &mut Queue) -> Vec<(IpAddr, u8)> {
        let next = |queue: &mut Queue| {
            let found = queue.first().map(|told| (told.vip, told.mac[5]));
            queue.pass();
            found
        };
        std::iter::from_fn(|| next(queue)).collect()
    }

    #[test]
    fn a_vip_that_waits_is_told_once_and_as_it_is_by_then() {
        let mut queue = Queue::default();
        [told(VIP, 1), told(OTHER, 1), told(VIP, 2)].into_iter().for_each(|told| queue.add(told));
        assert_eq!(drain(&mut queue), [(VIP, 2), (OTHER, 1)]);
    }

    #[test]
    fn a_vip_that_others_have_meanwhile_is_not_told() {
        let mut queue = Queue::default();
        [told(VIP, 1), told(OTHER, 1)].into_iter().for_each(|told| queue.add(told));
        queue.forget(8, vrid(1), [&OTHER]);
        queue.forget(7, vrid(1), [&VIP]);
        assert_eq!(drain(&mut queue), [(OTHER, 1)]);
        [told(VIP, 3), told(OTHER, 3)].into_iter().for_each(|told| queue.add(told));
        queue.forget(7, vrid(1), [&VIP]);
        queue.add(told(VIP, 4));
        assert_eq!((queue.order.len(), drain(&mut queue)), (2, vec![(OTHER, 3), (VIP, 4)]));
    }

    #[test]
    fn what_one_virtual_router_gives_up_another_of_the_node_may_have() {
        let mut queue = Queue::default();
        queue.add(told(VIP, 1));
        queue.add(Told { owner: Some(vrid(2)), ..told(VIP, 2) });
        queue.add(Told { owner: None, ..told(VIP, 3) });
        queue.forget(7, vrid(1), [&VIP]);
        assert_eq!(drain(&mut queue), [(VIP, 2), (VIP, 3)]);
    }
}
