//! Keys below `announce`.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::bgp::{RawBfd, RawBgp};
use crate::config::{
    announce::{
        self, GROUPS_MAX, NAME_BYTES_MAX, NODES_MAX, PEERS_MAX, PREFIXES_MAX, TRACKED_MAX, UNHEALTHY, VERSIONS,
    },
    bgp::PROFILES_MAX,
    kinds::{Address, AddressPrefix, Number, Switch, Text, TimeSpan, optional_words},
    scalar::Scalar,
    validate::INTERFACE_BYTES_MAX,
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("allOf" = announce::rules()))]
pub(in crate::config) struct RawAnnounce {
    /// This node's name, one of `nodes`; visible ASCII characters.
    #[schemars(
        with = "Option<Text>",
        length(min = 1, max = NAME_BYTES_MAX),
        extend("pattern" = "^[!-~]*$", "x-default" = "the first of `nodes`", "x-kubernetes" = "metadata.name of the Node")
    )]
    pub node: Option<Scalar>,
    /// All nodes that announce the same VIPs, the same list on each: by it VIPs are shared out.
    #[schemars(
        with = "Option<Vec<Text>>",
        length(min = 1, max = NODES_MAX),
        inner(length(min = 1, max = NAME_BYTES_MAX)),
        extend("uniqueItems" = true, "x-default" = "this node alone")
    )]
    pub nodes: Option<Spanned<Vec<Scalar>>>,
    /// What becomes of a VIP whose backends on this node all fail their health checks. `withdraw`: another node is to have it; where
    /// they fail on all nodes, nobody has. `announce`: where no backend at all passes, it stays, and packets go to all of them.
    #[schemars(with = "Option<Text>", extend("enum" = optional_words(&UNHEALTHY), "default" = "withdraw"))]
    pub when_unhealthy: Option<Scalar>,
    /// Segments on which this node alone answers for VIPs, without any election; also after the agent has died.
    #[schemars(with = "Option<Vec<RawAlways>>", length(max = GROUPS_MAX), extend("default" = []))]
    pub always: Option<Spanned<Vec<Spanned<RawAlways>>>>,
    /// Segments on which VIPs are held by virtual routers (VRRP).
    #[schemars(with = "Option<Vec<RawVrrp>>", length(max = GROUPS_MAX), extend("default" = []))]
    pub vrrp: Option<Spanned<Vec<Spanned<RawVrrp>>>>,
    /// How BFD (RFC 5880) watches peers: profiles that peers name.
    #[schemars(with = "Option<Vec<RawBfd>>", length(max = PROFILES_MAX), extend("default" = []))]
    pub bfd: Option<Spanned<Vec<Spanned<RawBfd>>>>,
    /// Routers that are told of VIPs by BGP.
    #[schemars(with = "Option<RawBgp>", extend("x-default" = "no BGP"))]
    pub bgp: Option<Spanned<RawBgp>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct RawAlways {
    /// One of the uplinks.
    #[schemars(with = "Text", length(min = 1, max = INTERFACE_BYTES_MAX))]
    pub interface: Option<Scalar>,
    /// Only VIPs in these prefixes.
    #[schemars(with = "Option<Vec<AddressPrefix>>", length(min = 1, max = PREFIXES_MAX), extend("x-default" = "all VIPs"))]
    pub vips: Option<Spanned<Vec<Scalar>>>,
    /// Only on these nodes; the others need not have the interface, and answer no question for these VIPs, by their kernel either.
    #[schemars(
        with = "Option<Vec<Text>>",
        length(min = 1, max = NODES_MAX),
        inner(length(min = 1, max = NAME_BYTES_MAX)),
        extend("uniqueItems" = true, "x-default" = "all nodes")
    )]
    pub nodes: Option<Spanned<Vec<Scalar>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct RawVrrp {
    /// What status and logs call it; visible ASCII characters, no two alike.
    #[schemars(with = "Text", length(min = 1, max = NAME_BYTES_MAX), extend("pattern" = "^[!-~]*$"))]
    pub name: Option<Scalar>,
    /// One of the uplinks.
    #[schemars(with = "Text", length(min = 1, max = INTERFACE_BYTES_MAX))]
    pub interface: Option<Scalar>,
    /// Virtual router identifier, 1 to 255, or a range of them, `10-13`: VIPs are shared out over these, and the nodes take turns
    /// in being the first for each. With another vendor's router on the segment use one, and list every VIP there too.
    #[schemars(with = "Text", extend("pattern" = "^[1-9][0-9]{0,2}(-[1-9][0-9]{0,2})?$"))]
    pub vrids: Option<Scalar>,
    /// 3 (RFC 9568), or 2 (RFC 3768) for IPv4 with routers that know nothing newer.
    #[schemars(with = "Option<Text>", extend("enum" = optional_words(&VERSIONS), "default" = "3"))]
    pub version: Option<Scalar>,
    /// From one advertisement to the next: 10 ms to 40.95 s in hundredths of a second; of version 2, 1 to 255 s in seconds. A
    /// silent loss is noticed after three and a bit of these.
    #[schemars(with = "Option<TimeSpan>", extend("default" = "1s"))]
    pub interval: Option<Scalar>,
    /// Of this node for all of these virtual routers. Without it the node's rank among `nodes` says it, from 254 down to 129, in
    /// another order for each.
    #[schemars(
        with = "Option<Number>",
        range(min = *announce::PRIORITIES.start(), max = *announce::PRIORITIES.end()),
        extend("x-default" = "by rank")
    )]
    pub priority: Option<Scalar>,
    /// Whether a node with a higher priority takes over from one that is active.
    #[schemars(with = "Option<Switch>", extend("default" = true))]
    pub preempt: Option<Scalar>,
    /// How long it waits until then, counted from the first advertisement that it hears of the lower one; at most an hour.
    #[schemars(with = "Option<TimeSpan>", extend("default" = "0s"))]
    pub preempt_delay: Option<Scalar>,
    /// How long a node listens after its start before it competes; at most an hour.
    #[schemars(with = "Option<TimeSpan>", extend("default" = "0s"))]
    pub start_delay: Option<Scalar>,
    /// Addresses of the other routers, where the segment carries no multicast: advertisements go to these, and are taken from
    /// these alone. Each is for its family; one without any has multicast.
    #[schemars(
        with = "Option<Vec<Address>>",
        length(min = 1, max = PEERS_MAX),
        extend("uniqueItems" = true, "x-default" = "multicast")
    )]
    pub peers: Option<Spanned<Vec<Scalar>>>,
    /// How often the active node says again that it has the VIPs, by gratuitous ARP and unsolicited advertisements; `0s` for
    /// only once, else a second to an hour. Shorter beside routers that step down without a word, as keepalived does where a
    /// split segment heals: until then neighbors send to them.
    #[schemars(with = "Option<TimeSpan>", extend("default" = "60s"))]
    pub refresh: Option<Scalar>,
    /// Whether VIPs are at the MAC of their virtual router, 00-00-5E-00-01-VRID or for IPv6 00-00-5E-00-02-VRID, which moves along
    /// with them, instead of at the uplink's. Routers that share VIPs should all do the same. Advertisements to `peers` leave from
    /// the uplink's MAC all the same.
    #[schemars(with = "Option<Switch>", extend("default" = false))]
    pub virtual_mac: Option<Scalar>,
    /// The link-local VIP that is listed first in IPv6, of version 3, where other vendors' routers have another than ours; for one
    /// identifier in `vrids`.
    #[schemars(with = "Option<Address>", extend("x-default" = "fe80::5e:VRID"))]
    pub link_local: Option<Scalar>,
    /// Interfaces without which the node does not compete, beside the uplink.
    #[schemars(
        with = "Option<Vec<Text>>",
        length(min = 1, max = TRACKED_MAX),
        inner(length(min = 1, max = INTERFACE_BYTES_MAX)),
        extend("uniqueItems" = true, "x-default" = "none")
    )]
    pub track: Option<Spanned<Vec<Scalar>>>,
    /// Only VIPs in these prefixes.
    #[schemars(with = "Option<Vec<AddressPrefix>>", length(min = 1, max = PREFIXES_MAX), extend("x-default" = "all VIPs"))]
    pub vips: Option<Spanned<Vec<Scalar>>>,
    /// Only these nodes take part, and are ranked; the others need not have the interface, and answer no question for these VIPs,
    /// by their kernel either. No other group of an interface of that
    /// name may have the same `vrids`, on whatever nodes.
    #[schemars(
        with = "Option<Vec<Text>>",
        length(min = 1, max = NODES_MAX),
        inner(length(min = 1, max = NAME_BYTES_MAX)),
        extend("uniqueItems" = true, "x-default" = "all nodes")
    )]
    pub nodes: Option<Spanned<Vec<Scalar>>>,
}
