//! The multicast groups that must be heard: those of VRRP, and of IPv6 those that questions for VIPs go to, which a NIC's filter
//! and a switch that snoops MLD would keep from the data plane.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use tracing::warn;

use super::{complaints::Complaints, sockets::Routers, tell::Teller};
use crate::announce::{
    vrrp::Family,
    wanted::{Segment, Wanted},
};

/// Groups of one interface that are joined one by one; with more it hears all multicast. The socket's memory
/// (`net.core.optmem_max`) has room for some two thousand.
const SOLICITED_MAX: usize = 512;

/// What has been joined.
#[derive(Debug, Default)]
pub struct Groups {
    routers: BTreeSet<(Family, u32)>,
    solicited: BTreeSet<(u32, Ipv6Addr)>,
    /// Interfaces that hear everything.
    all: BTreeSet<u32>,
}

impl Groups {
    /// An interface has gone, and its memberships with it, also if it comes back with the same index.
    pub fn forget(&mut self, interface: u32) {
        self.routers.retain(|(_, index)| *index != interface);
        self.solicited.retain(|(index, _)| *index != interface);
        self.all.remove(&interface);
    }

    /// Joins what is wanted, and leaves what is not.
    pub fn follow(
        &mut self,
        sockets: &Routers,
        teller: &Teller,
        routers: BTreeSet<(Family, u32)>,
        wanted: &Wanted,
        complaints: &mut Complaints,
        now: Duration,
    ) {
        for (family, interface) in self.routers.difference(&routers) {
            // Where the interface is gone, so is this.
            let _ = sockets.leave(*family, *interface);
        }
        self.routers.retain(|joined| routers.contains(joined));
        for (family, interface) in routers {
            match sockets.join(family, interface) {
                Ok(()) => drop(self.routers.insert((family, interface))),
                Err(error) => complaints.say("join", now, || {
                    warn!(%error, ifindex = interface, "cannot hear other virtual routers; tried again");
                }),
            }
        }
        let mut by_interface: BTreeMap<u32, BTreeSet<Ipv6Addr>> = BTreeMap::new();
        let always = wanted.always.keys().filter_map(|(interface, vip)| Some((wanted.segments.get(interface)?, *vip)));
        let routed = wanted.routers.iter().flat_map(|(key, router)| {
            let segment = wanted.segments.get(&key.interface);
            router.settings.vips.all().iter().filter_map(move |vip| Some((segment?, *vip)))
        });
        for (Segment { index, .. }, vip) in always.chain(routed) {
            if let IpAddr::V6(vip) = vip {
                by_interface.entry(*index).or_default().insert(solicited_node(vip));
            }
        }
        self.solicit(sockets, teller, &by_interface, complaints, now);
    }

    fn solicit(
        &mut self,
        sockets: &Routers,
        teller: &Teller,
        wanted: &BTreeMap<u32, BTreeSet<Ipv6Addr>>,
        complaints: &mut Complaints,
        now: Duration,
    ) {
        let is_wanted =
            |(interface, group): &(u32, Ipv6Addr)| wanted.get(interface).is_some_and(|all| all.contains(group));
        for (interface, group) in self.solicited.iter().filter(|joined| !is_wanted(joined)) {
            let _ = sockets.leave_solicited(*group, *interface);
        }
        self.solicited.retain(is_wanted);
        //= rfc4861#7.2.1:join MUST: the solicited-node group of each VIP is joined, also where this node does not hold it
        for (interface, groups) in wanted {
            if groups.len() > SOLICITED_MAX {
                if self.all.insert(*interface) {
                    warn!(
                        ifindex = *interface,
                        "hears all multicast: it has more IPv6 VIPs than groups are joined for"
                    );
                    if let Err(error) = teller.frames().hear_all(*interface) {
                        self.all.remove(interface);
                        complaints.say("hear all", now, || {
                            warn!(%error, ifindex = *interface, "cannot hear questions for IPv6 VIPs; tried again");
                        });
                    }
                }
                continue;
            }
            for group in groups {
                if self.solicited.contains(&(*interface, *group)) {
                    continue;
                }
                match sockets.join_solicited(*group, *interface) {
                    Ok(()) => drop(self.solicited.insert((*interface, *group))),
                    Err(error) => complaints.say("solicited", now, || {
                        warn!(%error, ifindex = *interface, "cannot hear questions for an IPv6 VIP; tried again");
                    }),
                }
            }
        }
    }
}

/// The group that questions for an address go to (RFC 4291, 2.7.1).
fn solicited_node(vip: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = vip.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | high & 0xff, low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_an_address_has_its_last_three_octets() {
        let group = solicited_node("2001:db8::a1:b2c3:d4e5".parse().unwrap());
        assert_eq!(group, "ff02::1:ffc3:d4e5".parse::<Ipv6Addr>().unwrap());
    }
}
