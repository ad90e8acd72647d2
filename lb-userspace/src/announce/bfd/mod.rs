//! BFD: whether the path to a neighbour carries packets both ways, told within a few intervals (RFC 5880 to 5883).
//!
//! Asynchronous mode, single hop and multihop. The machine decides, the driver runs it on a thread of its own, and the
//! engine hears of what changes. A received AdminDown never closes a routing session (RFC 5882 4.2); all that follows
//! from an [`Event`](machine::Event) is the engine's.
//!
//! Deliberately absent, with the rules that this leaves open:

//= not rfc5880#6.7:authentication SHOULD: not offered: its keys are MD5 and SHA-1, and single hop has TTL 255
//= not rfc5880#9:multihop-authentication SHOULD: as above; multihop has a random discriminator and a minimum TTL
//= not rfc5880#6.4:echo MAY: the kernel would reflect it, so it tests less than control packets do
//= not rfc5880#6.6:own-demand MAY: we never ask for demand mode: silence is what detection lives on
//= not rfc5880#7:congestion-multihop MUST: only that a lost session falls back to one packet a second
//= not rfc5881#6:point-to-point MUST: all links are multiaccess here: a first packet comes from the peer's address
//= not rfc5882#4.1:block-adjacency SHOULD: BGP comes up without BFD unless `strict` is set, which the engine decides

pub mod driver;
pub mod machine;
pub mod packet;
#[cfg(test)]
mod tests;
