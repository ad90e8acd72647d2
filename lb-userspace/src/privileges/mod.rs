//! What the agent may do, and when it stops being able to.
//!
//! Start needs much: to mount a bpffs, load programs, hear of changes in pods' namespaces. Afterwards the process that
//! reads packets' tables, files and sockets needs CAP_NET_ADMIN alone. Entering pods' namespaces needs CAP_SYS_ADMIN,
//! which is nearly everything; a [`Helper`] of one thread keeps it, which understands the requests of [`protocol::Work`]
//! and nothing else.
//!
//! Steps, in this order: [`begin`] before anything else, [`Helper::start`] before any thread is made, [`relinquish`] once what
//! start needs is done, [`settle`] once the threads are there that need more than the rest. Nothing is ever regained: a helper that dies is not replaced, but
//! the agent ends, and whatever supervises it starts another, which adopts the data plane.

mod capabilities;
mod filter;
mod helper;
pub mod protocol;
mod serve;

pub use capabilities::{DropError, begin, drop_all, keep_for_bgp, relinquish, settle};
pub use helper::{Helper, HelperError};
pub use serve::serve;

/// The subcommand of this binary that is the helper; nobody calls it by hand.
pub const HELPER_COMMAND: &str = "netns-helper";
