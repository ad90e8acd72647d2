//! BGP-4, announcing only: what a peer sends is framed, counted and discarded, but for End-of-RIB.
//!
//! [`packet`] is the messages, [`machine`] one configured peer, [`route`] what it is to be sent. [`damping`] holds flapping
//! VIPs down and [`aggregate`] turns VIPs into prefixes, both before routes are made. Nothing of these has a clock, a socket
//! or a secret: TCP MD5, GTSM and source addresses are the [`driver`]'s, which runs machines on a thread.

// What RFCs ask for and is not done:
//= not rfc4271#6.3:update-errors MUST: received UPDATEs are not read, so no error in one is found
//= not rfc7606#2:revised-errors MUST: received UPDATEs are not read, so there is nothing to treat as withdrawn
//= not rfc4271#9.1:decision MUST: nothing that is received is ever used, so nothing is selected
//= not rfc4271#9.2:advertise MUST: only routes of this node are announced, none of a peer's is passed on
//= not rfc4271#9.2.1.1:min-route-advertisement MUST: flaps are damped per VIP before a route changes; a fixed wait between changes would delay a withdrawn VIP's return to others
//= not rfc4271#8.1.1:delay-open MAY: there is no DelayOpenTimer: OPEN is sent at once
//= not rfc4271#8.1.1:damp-oscillations MAY: the back-off between connections takes the place of IdleHoldTimer
//= not rfc4724#4.2:helper MUST: no route of a peer is kept, so none becomes stale
//= not rfc4724#4.1:deferral MUST: no routes are selected, so nothing is deferred until a peer's End-of-RIB
//= not rfc2918#3:request MAY: routes are never asked for
//= not rfc6793#4.2.2:as4-aggregator MUST: no AGGREGATOR is sent
//= not rfc8538#4.1:stale MUST: no route of a peer is kept
//= not rfc2545#3:shared-subnet SHOULD: on sessions between global addresses the next hop is the global address alone: the peer resolves it on their link
//= not rfc5492#5:retry-without MAY: an answer 2/7 is shown and not worked around: nothing is offered that can be done without
//= not rfc7313#4:enhanced MAY: enhanced route refresh is not offered
//= not rfc8654#3:extended MAY: messages above 4096 octets are not offered
//= not rfc9072#2:parameters MAY: optional parameters above 255 octets are refused as unknown
//= not rfc5492#4:dynamic MAY: capabilities change with a new session
//= not rfc8326#4.2:local-preference SHOULD: the preference stays as on the other nodes: ECMP asks for the same attributes on all, and receivers lower it by the community

pub mod aggregate;
pub mod damping;
pub mod driver;
pub mod machine;
pub mod packet;
pub mod route;
pub mod values;

#[cfg(test)]
mod tests;
