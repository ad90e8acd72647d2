//! What the agent says about itself.

/// The status socket in the run directory.
pub const SOCKET_NAME: &str = "status.sock";
