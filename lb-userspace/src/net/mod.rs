//! Links, addresses, routes and sockets of this node and of its pods, through netlink.
//!
//! Edge code: it asks the kernel and hands back plain values; what follows from them is decided elsewhere.
//! Everything here is synchronous and takes microseconds to milliseconds; call it from a thread that may block.
//!
//! A socket belongs for life to the network namespace it was opened in, whatever thread uses it later. So only
//! opening needs [`netns::Netns::run`]; the questions may then be asked from anywhere.

pub mod blackholes;
pub mod ethtool;
pub mod filters;
pub mod links;
pub mod loopback;
pub mod monitor;
pub mod neighbors;
pub mod netns;
pub mod processes;
pub mod routes;
pub mod sockets;
pub mod unicast;
pub mod xdp_features;

mod error;
mod netlink;
mod sys;

pub use error::{Capability, Error, Result};
pub use netlink::Netlink;

/// An interface's number, unique within its network namespace and never 0.
pub type InterfaceIndex = u32;

/// The name that *our* namespace has for another one (`nsid`), never negative. Two namespaces may know a third by
/// different ids, and an id is given to another namespace once its own is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct NetnsId(pub i32);

impl std::fmt::Display for NetnsId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
