//! Keys below `announce.bgp` and `announce.bfd`.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::{
    announce::bgp::route::COMMUNITIES_MAX,
    config::{
        announce::{NAME_BYTES_MAX, NODES_MAX, PREFIXES_MAX},
        bgp::{self, BANDWIDTHS, BGP_PEERS_MAX, FAMILIES, MODES, STOPS},
        kinds::{
            Address, AddressPrefix, FamilyName, Number, NumberPair, NumberTriple, PathName, Switch, Text, TimeSpan,
            optional_words,
        },
        observation::PATH_BYTES_MAX,
        scalar::Scalar,
        validate::INTERFACE_BYTES_MAX,
    },
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct RawBfd {
    /// What peers name it by; visible ASCII characters, no two alike.
    #[schemars(with = "Text", length(min = 1, max = NAME_BYTES_MAX), extend("pattern" = "^[!-~]*$"))]
    pub name: Option<Scalar>,
    /// From one packet of ours to the next, once both ends are up; 10 ms to 60 s.
    #[schemars(with = "Option<TimeSpan>", extend("default" = "300ms"))]
    pub interval: Option<Scalar>,
    /// The same of the peer's packets: what we can take; 10 ms to 60 s.
    #[schemars(with = "Option<TimeSpan>", extend("x-default" = "`interval`"))]
    pub receive_interval: Option<Scalar>,
    /// After so many intervals of silence an end gives the other up. On virtual machines that stall, three of 50 ms are the
    /// least that hold.
    #[schemars(with = "Option<Number>", range(min = 1, max = 255), extend("default" = 3))]
    pub multiplier: Option<Scalar>,
    /// Packets of peers behind routers are taken with at least this TTL. Some send 255, BIRD sends 64.
    #[schemars(with = "Option<Number>", range(min = 1, max = 255), extend("default" = 1))]
    pub minimum_ttl: Option<Scalar>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct RawBgp {
    /// The number of this node's autonomous system.
    #[schemars(with = "Number", range(min = 1, max = u32::MAX))]
    pub local_as: Option<Scalar>,
    /// BGP identifier, in the form of an IPv4 address; each node has its own.
    #[schemars(
        with = "Option<Address>",
        extend("x-default" = "the first IPv4 address of `node.addresses`, else of the node's name")
    )]
    pub identifier: Option<Scalar>,
    /// What SIGTERM means. `ordered`: routes get the community GRACEFUL_SHUTDOWN, are withdrawn, and sessions end with a Cease.
    /// `graceful`: nothing is said, so that peers with `gracefulRestart` keep routes until the agent is back. `sluice drain` is
    /// always ordered.
    #[schemars(with = "Option<Text>", extend("enum" = optional_words(&STOPS), "default" = "ordered"))]
    pub stop: Option<Scalar>,
    /// How long routes carry GRACEFUL_SHUTDOWN before they are withdrawn; at most ten minutes.
    #[schemars(with = "Option<TimeSpan>", extend("default" = "5s"))]
    pub shutdown_wait: Option<Scalar>,
    /// The routers that are told of VIPs. Nothing that they tell is used.
    #[schemars(with = "Vec<RawPeer>", length(min = 1, max = BGP_PEERS_MAX))]
    pub peers: Option<Spanned<Vec<Spanned<RawPeer>>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("allOf" = bgp::rules()))]
pub(in crate::config) struct RawPeer {
    /// What status, logs and metrics call it; visible ASCII characters, no two alike.
    #[schemars(with = "Text", length(min = 1, max = NAME_BYTES_MAX), extend("pattern" = "^[!-~]*$"))]
    pub name: Option<Scalar>,
    /// The peer's address; without one it is the router that advertises itself on `interface`.
    #[schemars(with = "Option<Address>", extend("x-default" = "by router advertisement on `interface`"))]
    pub address: Option<Scalar>,
    /// Where a link-local address, or the peer without an address, is.
    #[schemars(
        with = "Option<Text>",
        length(min = 1, max = INTERFACE_BYTES_MAX),
        extend("x-default" = "wherever routes lead")
    )]
    pub interface: Option<Scalar>,
    /// Where it listens. We do at 179.
    #[schemars(with = "Option<Number>", range(min = 1, max = u16::MAX), extend("default" = 179))]
    pub port: Option<Scalar>,
    /// The number of its autonomous system, or `external` for any but ours.
    #[schemars(with = "Text", extend("pattern" = "^(\\+?[0-9]+|external)$"))]
    pub r#as: Option<Scalar>,
    /// What is announced to it, over one session.
    #[schemars(
        with = "Option<Vec<FamilyName>>",
        length(min = 1, max = FAMILIES.len()),
        extend("uniqueItems" = true, "default" = ["ipv4", "ipv6"])
    )]
    pub families: Option<Spanned<Vec<Scalar>>>,
    /// How long either end may be silent: `0s` for ever, else 3 s to 65,535 s; the lower of both ends' counts.
    #[schemars(with = "Option<TimeSpan>", extend("default" = "90s"))]
    pub hold_time: Option<Scalar>,
    /// How long a connection may take to come about, 1 s to 120 s.
    #[schemars(with = "Option<TimeSpan>", extend("default" = "10s"))]
    pub connect_time: Option<Scalar>,
    /// Who connects: `both`, we alone (`dial`), or the peer alone (`accept`).
    #[schemars(with = "Option<Text>", extend("enum" = optional_words(&MODES), "default" = "both"))]
    pub mode: Option<Scalar>,
    /// File with the password of TCP MD5 (RFC 2385), 1 to 80 bytes; a line break at its end is none of it. Read at start and with
    /// each reload.
    #[schemars(with = "Option<PathName>", length(max = PATH_BYTES_MAX), extend("x-default" = "no password"))]
    pub password_file: Option<Scalar>,
    /// For peers behind routers: so many links at most. BFD then is multihop (RFC 5883).
    #[schemars(
        with = "Option<Number>",
        range(min = 1, max = 255),
        extend("x-default" = "1 towards another AS, 255 within the own")
    )]
    pub multihop: Option<Scalar>,
    /// GTSM (RFC 5082): both ends send TTL 255, and packets over more links than this are dropped; 1 for a peer on the link.
    /// In place of `multihop`.
    #[schemars(with = "Option<Number>", range(min = 1, max = 254), extend("x-default" = "off"))]
    pub gtsm: Option<Scalar>,
    /// Our end of the session.
    #[schemars(with = "Option<Address>", extend("x-default" = "the kernel's choice"))]
    pub source: Option<Scalar>,
    /// Next hop of IPv4 prefixes; an IPv6 address needs a peer that takes such (RFC 8950).
    #[schemars(
        with = "Option<Address>",
        extend("x-default" = "our end of the session, else its interface's address of that family")
    )]
    pub next_hop_ipv4: Option<Scalar>,
    /// Next hop of IPv6 prefixes.
    #[schemars(
        with = "Option<Address>",
        extend("x-default" = "our end of the session, else its interface's address of that family")
    )]
    pub next_hop_ipv6: Option<Scalar>,
    /// Whether IPv4 prefixes with IPv6 next hops are offered (RFC 8950).
    #[schemars(with = "Option<Switch>", extend("default" = true))]
    pub extended_next_hop: Option<Scalar>,
    /// Graceful restart (RFC 4724): how long the peer keeps routes while the agent restarts, `0s` for not at all. At most 4095 s,
    /// and without BFD at most the hold time: so long may the peer send to a dead node.
    #[schemars(with = "Option<TimeSpan>", extend("default" = "0s"))]
    pub graceful_restart: Option<Scalar>,
    /// The profile by which BFD watches the peer.
    #[schemars(
        with = "Option<Text>",
        length(min = 1, max = NAME_BYTES_MAX),
        extend("x-default" = "no BFD", "pattern" = "^[!-~]*$")
    )]
    pub bfd: Option<Scalar>,
    /// Whether a session waits for BFD to be up.
    #[schemars(with = "Option<Switch>", extend("default" = false))]
    pub bfd_strict: Option<Scalar>,
    /// Communities (RFC 1997) of each route, such as `64512:100`.
    #[schemars(
        with = "Option<Vec<NumberPair>>",
        length(max = COMMUNITIES_MAX),
        extend("uniqueItems" = true, "default" = [])
    )]
    pub communities: Option<Spanned<Vec<Scalar>>>,
    /// Large communities (RFC 8092) of each route, such as `64512:1:2`.
    #[schemars(
        with = "Option<Vec<NumberTriple>>",
        length(max = COMMUNITIES_MAX),
        extend("uniqueItems" = true, "default" = [])
    )]
    pub large_communities: Option<Spanned<Vec<Scalar>>>,
    /// LOCAL_PREF of each route; sent within the AS alone, where greater ones win.
    #[schemars(with = "Option<Number>", range(min = 0, max = u32::MAX), extend("default" = 100))]
    pub local_preference: Option<Scalar>,
    /// MULTI_EXIT_DISC of each route; smaller ones win.
    #[schemars(with = "Option<Number>", range(min = 0, max = u32::MAX), extend("x-default" = "none"))]
    pub med: Option<Scalar>,
    /// Octets a second that each ready backend of this node stands for: their sum is told as link bandwidth, by which routers weigh
    /// nodes. On all nodes or on none.
    #[schemars(with = "Option<Number>", range(min = 1, max = u32::MAX), extend("x-default" = "none is told"))]
    pub link_bandwidth: Option<Scalar>,
    /// How bandwidth is marked towards another AS; within the own it is always `nonTransitive`.
    #[schemars(with = "Option<Text>", extend("enum" = optional_words(&BANDWIDTHS), "default" = "nonTransitive"))]
    pub link_bandwidth_type: Option<Scalar>,
    /// Prefixes that are announced while any VIP in them can be. A VIP in one still has a route of its own, as long as nodes do
    /// not know of each other whether all can serve it.
    #[schemars(with = "Option<Vec<AddressPrefix>>", length(max = PREFIXES_MAX), extend("uniqueItems" = true, "default" = []))]
    pub aggregates: Option<Spanned<Vec<Scalar>>>,
    /// Only VIPs in these prefixes.
    #[schemars(with = "Option<Vec<AddressPrefix>>", length(min = 1, max = PREFIXES_MAX), extend("x-default" = "all VIPs"))]
    pub vips: Option<Spanned<Vec<Scalar>>>,
    /// Only on these nodes.
    #[schemars(
        with = "Option<Vec<Text>>",
        length(min = 1, max = NODES_MAX),
        inner(length(min = 1, max = NAME_BYTES_MAX)),
        extend("uniqueItems" = true, "x-default" = "all nodes")
    )]
    pub nodes: Option<Spanned<Vec<Scalar>>>,
}
