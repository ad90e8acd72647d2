//! What happens to cables: the ports of the switch that lead to the nodes.

use anyhow::Result;

use super::Cluster;
use crate::lab::checked;

/// How a port of the switch is. Neither end of the cable notices a state other than [`Down`](Self::Down).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// Carries everything.
    Forwarding,
    /// Drops all frames of both directions.
    Disabled,
    /// Carries nothing from and to other isolated ports: the nodes do not hear each other, the router and they do.
    Isolated,
    /// Has no carrier, which the node's kernel sees.
    Down,
}

impl Cluster {
    /// Puts a node's port into this state.
    pub fn set_port(&self, node: usize, state: PortState) -> Result<()> {
        let port = format!("port{node}");
        match state {
            PortState::Forwarding => {
                self.switch.ip(&format!("link set {port} up\n"))?;
                self.bridge(&port, &["state", "forwarding", "isolated", "off"])
            }
            PortState::Disabled => self.bridge(&port, &["state", "disabled"]),
            PortState::Isolated => self.bridge(&port, &["isolated", "on"]),
            PortState::Down => self.switch.ip(&format!("link set {port} down\n")),
        }
    }

    /// By AF_BRIDGE: a state that is set as a link's own setting is computed anew at once, and is forwarding again.
    fn bridge(&self, port: &str, words: &[&str]) -> Result<()> {
        checked(self.switch.command("bridge").args(["link", "set", "dev", port]).args(words))
    }

    /// Puts all nodes' ports into this state.
    pub fn set_ports(&self, state: PortState) -> Result<()> {
        (0..self.nodes.len()).try_for_each(|node| self.set_port(node, state))
    }
}
