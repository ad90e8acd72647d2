//! How the network learns where VIPs are.
//!
//! Pure: [`eligibility`] says for each VIP and means whether this node may announce it, or everything that is against it;
//! [`wanted`] makes of that and the configuration what is to be announced; [`l2`] has the frames that tell a segment of it,
//! [`vrrp`] the virtual routers. [`driver`] does it, on a thread of its own: the engine may be busy for a second, and
//! others take over sooner.
//!
//! [`bgp`] tells routers, [`bfd`] watches them, each on a thread of its own as well; [`silence`] says when such a thread misses
//! the engine, [`leaving`] in which order a node takes its leave of all of them.
//!
//! Holding decides what is answered, never what is forwarded: the data plane steers packets for every VIP that is
//! installed, whoever holds it.

pub mod bfd;
pub mod bgp;
pub mod driver;
pub mod eligibility;
pub mod l2;
pub mod leaving;
pub mod silence;
pub mod vrrp;
pub mod wanted;
pub mod warnings;
