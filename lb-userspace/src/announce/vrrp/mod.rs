//! Virtual routers: who answers for VIPs on a shared segment (RFC 9568, version 3 for IPv4 and IPv6; RFC 3768, version
//! 2 for IPv4).
//!
//! [`packet`] is the advertisement on the wire, [`machine`] one virtual router on one interface, [`spread`] the share
//! of VIPs and priorities among several. All pure: the driver has the sockets and the clock.
//!
//! A VIP is on no interface and nobody here is its owner. Holding decides who answers ARP and ND, never what is
//! forwarded, so the rules on accepting and forwarding by state do not apply.

// What is deliberately not done, or not as the RFC says.
//= not rfc9568#5.1.1.2:forward MUST: the kernel forwards nothing to a group of the link
//= not rfc9568#5.1.2.2:forward MUST: the kernel forwards nothing to a group of the link
//= not rfc9568#5.2.4:owner MUST: nobody owns a VIP, it is on no interface; priority 255 is never sent
//= not rfc9568#6.4.1:owner MUST: nobody starts as the owner of an address, for the same reason
//= not rfc9568#6.4.2:forward MUST: a node that does not hold a VIP forwards too, so that a hand-over loses nothing
//= not rfc9568#6.4.3:router-advertisement MUST: VIPs are no default gateways
//= not rfc9568#7.1:version-alarm MUST: let in by the driver, another version is alarmed and counts: no second active
//= not rfc9568#7.1:log SHOULD: discards are counted by reason and shown, not logged: a flood of them would be a flood of lines
//= not rfc9568#7.1:owner SHOULD: the local router is never the owner
//= not rfc9568#8.1.1:redirect MAY: VIPs are steered before the kernel routes, which sends redirects
//= not rfc9568#8.1.2:physical-mac MUST: the virtual MAC is an option (`virtualMac`); without it VIPs are answered with the interface's own, kept right by gratuitous ARP
//= not rfc9568#8.2.2:physical-mac MUST: as for ARP
//= not rfc9568#8.1.3:proxy-arp MUST: no proxy ARP
//= not rfc9568#8.2.3:router-advertisement MUST: no router advertisements
//= not rfc9568#8.3.2:distinct SHOULD: ranks beyond the 26th share a priority; the higher address decides
//= not rfc9568#8.4.2:both MAY: a virtual router sends one version
//= not rfc9568#8.4.2:prefer SHOULD: a router is let in with one version, or with each that it sends
//= not rfc3768#5.3.6:authentication MUST: types other than 0 are obsolete and discarded; they are not offered
//= not rfc3768#7.1:interval MUST: another interval is alarmed and counts, or both routers would be active
//= not rfc3768#7.1:addresses MAY: unequal lists are alarmed and never lead to a discard
//= not rfc3768#6.4.3:lower MUST: a lower priority is answered as in version 3, so that a split brain heals
//= not rfc3768#6.4.3:forward MUST: as for version 3

pub mod machine;
pub mod packet;
pub mod spread;
#[cfg(test)]
mod tests;
mod values;

pub use values::{Family, Interval, InvalidInterval, InvalidPriority, InvalidVrid, Priority, Version, Vrid};
