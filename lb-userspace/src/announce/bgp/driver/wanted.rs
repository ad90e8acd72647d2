//! What the engine wants of BGP, whole.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    num::{NonZeroU8, NonZeroU16, NonZeroU32},
    sync::Arc,
};

use thiserror::Error;

use crate::announce::bgp::{
    machine::{Bfd, InterfaceAddresses, RestartFacts, Settings, Stage},
    route::Route,
    values::Prefix,
};

/// Octets of a password (TCP_MD5SIG_MAXKEYLEN of include/uapi/linux/tcp.h).
pub const SECRET_OCTETS_MAX: usize = 80;

/// A password of TCP MD5 (RFC 2385): 1 to 80 octets. Is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

/// Why a password cannot be one. Does not hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a password of {0} octets is not allowed: give 1 to {SECRET_OCTETS_MAX}")]
pub struct SecretError(usize);

impl Secret {
    /// Refuses an empty one, and what the kernel does not take.
    pub fn new(octets: &[u8]) -> Result<Self, SecretError> {
        let is_legal = (1..=SECRET_OCTETS_MAX).contains(&octets.len());
        if is_legal { Ok(Self(octets.into())) } else { Err(SecretError(octets.len())) }
    }

    pub(super) fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// An interface's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface(NonZeroU32);

impl Interface {
    /// None for 0, which is no interface.
    #[must_use]
    pub fn new(index: u32) -> Option<Self> {
        NonZeroU32::new(index).map(Self)
    }

    /// The index.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// How far away the peer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// GTSM (RFC 5082): what came over more links than `hops` is dropped. 1 for a peer on the same link.
    Gtsm {
        /// Links on the way.
        hops: NonZeroU8,
    },
    /// So many links at most: eBGP multihop, and iBGP.
    Multihop(NonZeroU8),
    /// On the same link: eBGP.
    Direct,
}

impl Ttl {
    /// TTL or hop limit of what is sent.
    pub(super) const fn sent(self) -> u8 {
        match self {
            //= rfc5082#3:sent MUST: packets to a peer with GTSM leave with TTL 255
            Self::Gtsm { .. } => 255,
            Self::Multihop(links) => links.get(),
            Self::Direct => 1,
        }
    }

    /// Least TTL of what is received; 0 for any.
    pub(super) const fn least_received(self) -> u8 {
        match self {
            Self::Gtsm { hops } => u8::MAX - (hops.get() - 1),
            Self::Multihop(_) | Self::Direct => 0,
        }
    }
}

/// A peer as it is wanted. What is not marked as free to change makes another session when it changes: the old one is
/// ended by Cease / Other Configuration Change first.
#[derive(Clone, Debug)]
pub struct WantedPeer {
    /// Of the session. Who accepts has a listening socket; who only dials has none.
    pub settings: Settings,
    /// The peer's address. None for one that is known by its interface and whose router advertisement has not come:
    /// it waits, or goes on with the address that it had on this interface.
    pub remote: Option<IpAddr>,
    /// The peer's port: 179.
    pub port: NonZeroU16,
    /// Ours; None lets the kernel choose.
    pub source: Option<IpAddr>,
    /// Of link-local addresses.
    pub interface: Option<Interface>,
    /// How far away it may be.
    pub ttl: Ttl,
    /// TCP MD5.
    pub password: Option<Secret>,
    /// Free to change: addresses of the interface that the session goes over.
    pub interface_addresses: InterfaceAddresses,
    /// Free to change: what is announced. The same `Arc` is not looked at twice.
    pub routes: Arc<BTreeMap<Prefix, Route>>,
    /// Free to change: nothing else is about to come. End-of-RIB waits for it.
    pub routes_complete: bool,
    /// Free to change: what BFD says, by the clock of [`boot_time`](super::boot_time).
    pub bfd: Bfd,
    /// Free to change: how far an ordered stop has come.
    pub stage: Stage,
}

impl WantedPeer {
    /// Without password and routes, at port 179, on the same link.
    #[must_use]
    pub fn new(settings: Settings, remote: Option<IpAddr>) -> Self {
        Self {
            settings,
            remote,
            port: BGP_PORT,
            source: None,
            interface: None,
            ttl: Ttl::Direct,
            password: None,
            interface_addresses: InterfaceAddresses::default(),
            routes: Arc::default(),
            routes_complete: false,
            bfd: Bfd::None,
            stage: Stage::Running,
        }
    }

    /// Whether `other` needs another session.
    pub(super) fn needs_other_session(&self, other: &Self) -> bool {
        let fixed = |it: &Self| (it.settings.clone(), it.port, it.source, it.interface, it.ttl, it.password.clone());
        fixed(self) != fixed(other) || other.remote.is_some_and(|remote| Some(remote) != self.remote)
    }
}

/// RFC 4271, 8.2.1.
pub const BGP_PORT: NonZeroU16 = NonZeroU16::new(179).expect("is not 0");

/// Everything that is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// By name, which logs and reports use.
    pub peers: BTreeMap<String, WantedPeer>,
    /// Where we listen: 179.
    pub port: NonZeroU16,
    /// What is known of the agent's own restart. A peer that is new takes all of it; forwarding may change later.
    pub restart: RestartFacts,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { peers: BTreeMap::new(), port: BGP_PORT, restart: RestartFacts::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_shown_nowhere_and_has_a_length_that_the_kernel_takes() {
        let secret = Secret::new(b"hunter2").expect("legal");
        assert_eq!(format!("{secret:?}"), "Secret");
        assert_eq!(Secret::new(b""), Err(SecretError(0)));
        assert!(Secret::new(&[7; SECRET_OCTETS_MAX]).is_ok());
        let error = Secret::new(&[b'x'; SECRET_OCTETS_MAX + 1]).expect_err("too long");
        assert_eq!(error.to_string(), "a password of 81 octets is not allowed: give 1 to 80");
    }

    //= test rfc5082#3:sent
    //= test rfc5082#3:received
    #[test]
    fn with_gtsm_255_is_sent_and_one_less_is_accepted_for_each_router_on_the_way() {
        let ttl = |hops| Ttl::Gtsm { hops: NonZeroU8::new(hops).expect("is not 0") };
        let pairs = [1, 2, 255].map(|hops| (ttl(hops).sent(), ttl(hops).least_received()));
        assert_eq!(pairs, [(255, 255), (255, 254), (255, 1)]);
        let far = Ttl::Multihop(NonZeroU8::new(3).expect("is not 0"));
        assert_eq!((far.sent(), far.least_received()), (3, 0));
        assert_eq!((Ttl::Direct.sent(), Ttl::Direct.least_received()), (1, 0));
    }
}
