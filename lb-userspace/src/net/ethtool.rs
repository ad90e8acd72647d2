//! Offloads of an interface: what ethtool(8) sets with `-K`.
//!
//! By ioctl, not by ethtool's netlink family: the ioctl's commands for single features are the same in every kernel
//! in question, and need no bitset of names.

use std::os::{
    fd::{AsFd, OwnedFd},
    unix::net::UnixDatagram,
};

use super::{
    Capability, Error, InterfaceIndex, Result,
    netns::Netns,
    sys::{self, InterfaceName},
};

// linux/ethtool.h; each of these carries a `struct ethtool_value`.
const GET_TX_CHECKSUM: u32 = 0x16;
const SET_TX_CHECKSUM: u32 = 0x17;
const GET_FLAGS: u32 = 0x25;
const SET_FLAGS: u32 = 0x26;
const GET_GRO: u32 = 0x2b;
const SET_GRO: u32 = 0x2c;

const FLAG_RX_VLAN: u32 = 1 << 8;
const FLAG_LRO: u32 = 1 << 15;

/// What can be switched on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offload {
    /// Generic receive offload. On a veth it turns NAPI on, without which frames that XDP redirects into its peer are
    /// lost; in generic XDP mode it must be off.
    Gro,
    /// Large receive offload; must be off in generic XDP mode.
    Lro,
    /// The NIC takes VLAN tags out of received frames, where XDP does not see them.
    RxVlan,
    /// The sender leaves checksums to the interface. On a veth nobody computes them, so tests turn it off.
    TxChecksum,
}

impl Offload {
    /// The kernel's name for it, as `ethtool -k` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gro => "generic-receive-offload",
            Self::Lro => "large-receive-offload",
            Self::RxVlan => "rx-vlan-offload",
            Self::TxChecksum => "tx-checksumming",
        }
    }

    /// Command to read, command to write, and the bit that is meant in the value (any, for a truth value).
    fn commands(self) -> (u32, u32, Option<u32>) {
        match self {
            Self::Gro => (GET_GRO, SET_GRO, None),
            Self::Lro => (GET_FLAGS, SET_FLAGS, Some(FLAG_LRO)),
            Self::RxVlan => (GET_FLAGS, SET_FLAGS, Some(FLAG_RX_VLAN)),
            Self::TxChecksum => (GET_TX_CHECKSUM, SET_TX_CHECKSUM, None),
        }
    }
}

/// Reads and switches offloads in one namespace.
pub struct Ethtool {
    socket: OwnedFd,
}

impl Ethtool {
    /// For the namespace of the calling thread.
    pub fn open() -> Result<Self> {
        // Any socket will do, and this kind exists in every kernel.
        match UnixDatagram::unbound() {
            Ok(socket) => Ok(Self { socket: socket.into() }),
            Err(source) => Err(Error::new("open a socket for ethtool", Capability::NetAdmin, source)),
        }
    }

    /// For another namespace, which lives for as long as this does.
    pub fn open_in(netns: &Netns) -> Result<Self> {
        netns.run(Self::open)?
    }

    /// The current name of an interface.
    pub fn interface_name(&self, index: InterfaceIndex) -> Result<String> {
        sys::interface_name(self.socket.as_fd(), index)
            .map_err(|source| Error::new(format!("name interface {index}"), Capability::NetAdmin, source))
    }

    /// Whether an offload is on.
    pub fn get(&self, interface: &str, offload: Offload) -> Result<bool> {
        let action = || format!("read {} of {interface}", offload.name());
        let (get, _, bit) = offload.commands();
        Ok(self.value(interface, get, 0, action)? & bit.unwrap_or(u32::MAX) != 0)
    }

    /// Switches an offload and returns how it was before. An interface that already is as wanted is not touched.
    ///
    /// # Errors
    /// [`Error::Unsupported`] also where the driver accepts the request and does nothing. Needs CAP_NET_ADMIN in the
    /// interface's namespace if there is something to switch.
    pub fn set(&self, interface: &str, offload: Offload, on: bool) -> Result<bool> {
        let action = || format!("turn {} {} of {interface}", if on { "on" } else { "off" }, offload.name());
        let before = self.get(interface, offload)?;
        if before == on {
            return Ok(before);
        }
        let (get, set, bit) = offload.commands();
        let wanted = match bit {
            None => u32::from(on),
            Some(bit) => self.value(interface, get, 0, action)? & !bit | if on { bit } else { 0 },
        };
        self.value(interface, set, wanted, action)?;
        // The kernel drops what the driver cannot do and reports success.
        if self.get(interface, offload)? != on {
            return Err(Error::Unsupported { action: action() });
        }
        Ok(before)
    }

    /// The name of the interface's driver, like `veth` or `mlx5_core`.
    pub fn driver(&self, interface: &str) -> Result<String> {
        let action = || format!("read the driver of {interface}");
        sys::ethtool_driver(self.socket.as_fd(), interface_name(interface, action)?)
            .map_err(|source| Error::new(action(), Capability::NetAdmin, source))
    }

    fn value(&self, interface: &str, command: u32, data: u32, action: impl Fn() -> String) -> Result<u32> {
        sys::ethtool_value(self.socket.as_fd(), interface_name(interface, &action)?, command, data)
            .map_err(|source| Error::new(action(), Capability::NetAdmin, source))
    }
}

/// Whether an offload of a pod's interface is on.
pub fn get_in(netns: &Netns, index: InterfaceIndex, offload: Offload) -> Result<bool> {
    let ethtool = Ethtool::open_in(netns)?;
    ethtool.get(&ethtool.interface_name(index)?, offload)
}

/// Switches an offload of a pod's interface and returns how it was before; see [`Ethtool::set`].
pub fn set_in(netns: &Netns, index: InterfaceIndex, offload: Offload, on: bool) -> Result<bool> {
    let ethtool = Ethtool::open_in(netns)?;
    ethtool.set(&ethtool.interface_name(index)?, offload, on)
}

fn interface_name(name: &str, action: impl Fn() -> String) -> Result<InterfaceName> {
    InterfaceName::new(name).ok_or_else(|| Error::NoInterface { action: action() })
}
