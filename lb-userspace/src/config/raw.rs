//! The file as it is written: which keys there are and where their values stand. Nothing is judged here but the
//! shape; scalars stay text, so that one wrong number does not hide the next problem.
//!
//! What a key means, what may stand there and what stands there unsaid is written beside it: the schema that editors
//! use and the tables of `docs/configuration.md` are made from here (see [`super::schema`]). So a key that is added
//! says in its comment what it means, and by `schemars(with = …)` what may stand there, in the words of
//! [`super::kinds`]; `Option` where it may be left out. Tests name the key that lacks one of these.

pub(super) mod announce;
pub(super) mod bgp;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::Spanned;

use self::announce::RawAnnounce;
use super::{
    PIN_DIRECTORY_DEFAULT, RUN_DIRECTORY_DEFAULT,
    capacity::{self, LIMIT_MAX},
    health,
    kinds::{Address, Number, PathName, PowerOfTwo, Switch, Text, TimeSpan, optional_words, rules, words},
    observation::{BACKEND_SERIES_MAX, LISTEN_DEFAULT, PATH_BYTES_MAX},
    scalar::Scalar,
    service::{
        self, AFFINITIES, AFFINITY_SECONDS, AFFINITY_SECONDS_DEFAULT, NAME_BYTES_MAX, PORTS_MAX, PROTOCOLS, REPLIES,
        RUNGS, WEIGHT_DEFAULT, WEIGHT_MAX,
    },
    validate::{INTERFACE_BYTES_MAX, MODES, NODE_ADDRESSES_MAX, PIN_DIRECTORY_BYTES_MAX, RUN_DIRECTORY_BYTES_MAX},
};
use crate::model::{Capacities, Limits, Observation, UPLINKS_MAX};

/// Configuration of the agent of Sluice.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Sluice")]
pub(super) struct RawConfig {
    /// This machine.
    #[schemars(with = "RawNode", extend("x-kubernetes" = "Node"))]
    pub node: Option<Spanned<RawNode>>,
    /// The interfaces that packets for VIPs arrive on, each once.
    #[schemars(with = "Vec<RawUplink>", length(min = 1, max = UPLINKS_MAX))]
    pub uplinks: Option<Spanned<Vec<Spanned<RawUplink>>>>,
    /// Where maps and links are pinned, on a bpffs, which is mounted there where there is none and the directory is
    /// empty; no `..`. For one agent alone: the agent does not start where another one runs with it, or where somebody
    /// else has pinned `maps` or `links`.
    #[schemars(
        with = "Option<PathName>",
        length(max = PIN_DIRECTORY_BYTES_MAX),
        extend("default" = PIN_DIRECTORY_DEFAULT)
    )]
    pub pin_directory: Option<Scalar>,
    /// Lock file, status socket, whose path has at most 107 bytes, and what outlives the agent: that the node is drained, and what fails
    /// its health checks; no `..`.
    #[schemars(
        with = "Option<PathName>",
        length(max = RUN_DIRECTORY_BYTES_MAX),
        extend("default" = RUN_DIRECTORY_DEFAULT)
    )]
    pub run_directory: Option<Scalar>,
    /// Entries of each map.
    #[schemars(with = "Option<RawCapacities>")]
    pub capacities: Option<RawCapacities>,
    /// Packets that the data plane makes itself, for each CPU and second, with as many in one burst; 0 for none.
    #[schemars(with = "Option<RawLimits>")]
    pub limits: Option<RawLimits>,
    /// Metrics, health and state over HTTP, read-only.
    #[schemars(with = "Option<RawObservation>", extend("x-default" = "all defaults"))]
    pub observation: Option<RawObservation>,
    /// Where and how the network is told of the VIPs.
    #[schemars(with = "Option<RawAnnounce>", extend("x-default" = "nothing is announced"))]
    pub announce: Option<Spanned<RawAnnounce>>,
    /// May be empty: `services: []`.
    #[schemars(with = "Vec<RawService>", extend("x-kubernetes" = "Service, EndpointSlice"))]
    pub services: Option<Vec<Spanned<RawService>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawNode {
    /// The machine's own addresses, each once. No VIP may be one of them.
    #[schemars(
        with = "Vec<Address>",
        length(min = 1, max = NODE_ADDRESSES_MAX),
        extend("uniqueItems" = true, "x-kubernetes" = "status.addresses")
    )]
    pub addresses: Option<Spanned<Vec<Scalar>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawUplink {
    /// Interface name. A bond means its members and a VLAN its parent; docs/preflight.md says what is refused.
    #[schemars(with = "Text", length(min = 1, max = INTERFACE_BYTES_MAX), extend("pattern" = "^[^/: \\t\\n\\f\\r]*$"))]
    pub interface: Option<Scalar>,
    /// How the XDP program is attached. `native`: in the driver, or the file is not applied. `generic`: after the driver,
    /// slower, on any interface. `auto`: native where the driver can.
    #[schemars(with = "Option<Text>", extend("enum" = optional_words(&MODES), "default" = "auto"))]
    pub mode: Option<Scalar>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawCapacities {
    /// (VIP, protocol, port).
    #[schemars(
        with = "Option<Number>",
        range(min = 1, max = capacity::SERVICES_MAX),
        extend("default" = Capacities::default().services)
    )]
    pub services: Option<Scalar>,
    /// (address, protocol, port), each once however many services share it.
    #[schemars(
        with = "Option<Number>",
        range(min = 1, max = capacity::BACKENDS_MAX),
        extend("default" = Capacities::default().backends)
    )]
    pub backends: Option<Scalar>,
    /// Slots over all services, 4 bytes each. See below.
    #[schemars(
        with = "Option<PowerOfTwo>",
        range(min = capacity::MAGLEV_SLOTS_MIN, max = capacity::MAGLEV_SLOTS_MAX),
        extend("default" = Capacities::default().maglev_slots)
    )]
    pub maglev_slots: Option<Scalar>,
    /// Recorded connections that reach a pod without Sluice.
    #[schemars(
        with = "Option<Number>",
        range(min = 1, max = capacity::BYPASSES_MAX),
        extend("default" = Capacities::default().bypasses)
    )]
    pub bypasses: Option<Scalar>,
    /// Entries of the flow cache, 32 bytes each: clients of recorded UDP and of services with affinity, owners of
    /// connections in moved slots, connections of opaque backends.
    #[schemars(
        with = "Option<PowerOfTwo>",
        range(min = capacity::FLOWS_MIN, max = capacity::FLOWS_MAX),
        extend("default" = Capacities::default().flows)
    )]
    pub flows: Option<Scalar>,
    /// Datagrams under way in fragments, 64 bytes each.
    #[schemars(
        with = "Option<PowerOfTwo>",
        range(min = capacity::FRAGMENTS_MIN, max = capacity::FRAGMENTS_MAX),
        extend("default" = Capacities::default().fragments)
    )]
    pub fragments: Option<Scalar>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawLimits {
    /// TCP RST and ICMP unreachable, for closed ports and services without a backend.
    #[schemars(with = "Option<Number>", range(min = 0, max = LIMIT_MAX), extend("default" = Limits::default().refusals))]
    pub refusals: Option<Scalar>,
    /// ICMP echo replies for VIPs.
    #[schemars(
        with = "Option<Number>",
        range(min = 0, max = LIMIT_MAX),
        extend("default" = Limits::default().echo_replies)
    )]
    pub echo_replies: Option<Scalar>,
    /// ICMP Time Exceeded and Packet Too Big.
    #[schemars(
        with = "Option<Number>",
        range(min = 0, max = LIMIT_MAX),
        extend("default" = Limits::default().icmp_errors)
    )]
    pub icmp_errors: Option<Scalar>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawObservation {
    /// Where: an address with a port, or `none` for nowhere. An address that is not loopback needs `tls` and `tokenFile`, or
    /// the file is refused.
    #[schemars(with = "Option<Text>", extend("default" = LISTEN_DEFAULT))]
    pub listen: Option<Scalar>,
    /// PEM files of the server's TLS (1.2 and 1.3).
    #[schemars(with = "Option<RawTls>", extend("x-default" = "no TLS"))]
    pub tls: Option<Spanned<RawTls>>,
    /// File with the bearer token that metrics and state are given for; white space around it does not count, at most 4096
    /// bytes.
    #[schemars(with = "Option<PathName>", length(max = PATH_BYTES_MAX), extend("x-default" = "no token"))]
    pub token_file: Option<Scalar>,
    /// Backends at most that have time series of their own. See [observation.md](observation.md#cardinality).
    #[schemars(
        with = "Option<Number>",
        range(min = 0, max = BACKEND_SERIES_MAX),
        extend("default" = Observation::default().backend_series)
    )]
    pub backend_series: Option<Scalar>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawTls {
    /// The certificate, followed by those that lead to its root.
    #[schemars(with = "PathName", length(max = PATH_BYTES_MAX))]
    pub certificate: Option<Scalar>,
    /// Its private key: PKCS #8, PKCS #1 or SEC 1.
    #[schemars(with = "PathName", length(max = PATH_BYTES_MAX))]
    pub key: Option<Scalar>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("allOf" = rules()))]
pub(super) struct RawService {
    /// What status and logs call it; visible ASCII characters, no two alike.
    #[schemars(
        with = "Text",
        length(min = 1, max = NAME_BYTES_MAX),
        extend("pattern" = "^[!-~]*$", "x-kubernetes" = "metadata.name")
    )]
    pub name: Option<Scalar>,
    /// The virtual address: unicast, reachable from elsewhere (not loopback or link-local), not IPv4-mapped, no address of
    /// this node or of a backend, and not 192.0.0.8 or 100::8, which the self-test uses.
    #[schemars(with = "Address", extend("x-kubernetes" = "status.loadBalancer.ingress[].ip"))]
    pub vip: Option<Scalar>,
    /// A TCP and a UDP service may share a VIP and port.
    #[schemars(with = "Text", extend("enum" = words(&PROTOCOLS), "x-kubernetes" = "spec.ports[].protocol"))]
    pub protocol: Option<Scalar>,
    /// Each is a service of its own to the data plane. A (VIP, protocol, port) belongs to one service.
    #[schemars(
        with = "Vec<Number>",
        length(min = 1, max = PORTS_MAX),
        inner(range(min = 1, max = u16::MAX)),
        extend("uniqueItems" = true, "x-kubernetes" = "spec.ports[].port")
    )]
    pub ports: Option<Spanned<Vec<Scalar>>>,
    /// How a reply is told from what the pod sends on its own account, see below.
    #[schemars(
        with = "Option<Text>",
        extend("enum" = optional_words(&REPLIES), "x-default" = "TCP and rung `direct`: `static`; UDP: `recorded`")
    )]
    pub replies: Option<Scalar>,
    /// How a packet gets from the uplink into the pod. `auto` takes the best of `redirect`, `peer` and `stack` whose
    /// self-test passes; another one is taken or none. `direct`: see below.
    #[schemars(with = "Option<Text>", extend("enum" = optional_words(&RUNGS), "default" = "auto"))]
    pub rung: Option<Scalar>,
    /// With rung `direct` only: the agent puts the VIP on the pods' `lo`, and takes it away.
    #[schemars(with = "Option<Switch>", extend("default" = false))]
    pub assign_vip: Option<Scalar>,
    /// `ClientIP`: a client, by its address, stays with one backend of this (VIP, protocol, port), see below.
    #[schemars(
        with = "Option<Text>",
        extend("enum" = optional_words(&AFFINITIES), "default" = "None", "x-kubernetes" = "spec.sessionAffinity")
    )]
    pub session_affinity: Option<Scalar>,
    /// For how many seconds after its last packet; only with `ClientIP`.
    #[schemars(
        with = "Option<Number>",
        range(min = *AFFINITY_SECONDS.start(), max = *AFFINITY_SECONDS.end()),
        extend(
            "default" = AFFINITY_SECONDS_DEFAULT,
            "x-kubernetes" = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
        )
    )]
    pub session_affinity_timeout_seconds: Option<Scalar>,
    /// Whether the pods answer is asked, see below.
    #[schemars(with = "Option<RawHealthCheck>", extend("x-default" = "none"))]
    pub health_check: Option<Spanned<RawHealthCheck>>,
    /// The pods, each (address, port) once. Without any, and with all of them draining, new connections are refused.
    #[schemars(
        with = "Option<Vec<RawBackend>>",
        length(max = service::BACKENDS_MAX),
        extend("default" = [], "x-kubernetes" = "EndpointSlice.endpoints[]")
    )]
    pub backends: Option<Spanned<Vec<Spanned<RawBackend>>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("allOf" = health::rules()))]
pub(super) struct RawHealthCheck {
    /// What is asked; `none` as if the key was not there.
    #[schemars(with = "Text", extend("enum" = words(&health::KINDS)))]
    pub r#type: Option<Scalar>,
    /// The pod's TCP port that is asked. A UDP service must name it; not for `udp`, which asks the backend's own.
    #[schemars(with = "Option<Number>", range(min = 1, max = u16::MAX), extend("x-default" = "the backend's port"))]
    pub port: Option<Scalar>,
    /// From the begin of one check to that of the next, 100 ms to an hour; for `udp` at least `1s`. A duration is a whole
    /// number of `ms` or `s`.
    #[schemars(with = "Option<TimeSpan>", extend("default" = "5s"))]
    pub interval: Option<Scalar>,
    /// How long an answer may take, 10 ms to the interval.
    #[schemars(with = "Option<TimeSpan>", extend("x-default" = "`2s`, at most the interval"))]
    pub timeout: Option<Scalar>,
    /// Checks in a row that must pass before a failed backend is used again.
    #[schemars(
        with = "Option<Number>",
        range(min = *health::ROW.start(), max = *health::ROW.end()),
        extend("default" = health::RISE_DEFAULT)
    )]
    pub rise: Option<Scalar>,
    /// Checks in a row that must fail before a backend gets no new connections.
    #[schemars(
        with = "Option<Number>",
        range(min = *health::ROW.start(), max = *health::ROW.end()),
        extend("default" = health::FALL_DEFAULT)
    )]
    pub fall: Option<Scalar>,
    /// `http`: path and query, visible ASCII characters.
    #[schemars(
        with = "Option<Text>",
        length(max = health::PATH_BYTES_MAX),
        extend("pattern" = "^/[!-~]*$", "default" = "/")
    )]
    pub path: Option<Scalar>,
    /// `http`: the header `Host`, visible ASCII characters.
    #[schemars(
        with = "Option<Text>",
        length(min = 1, max = health::NAME_BYTES_MAX),
        extend("pattern" = "^[!-~]*$", "x-default" = "the pod's address and port")
    )]
    pub host: Option<Scalar>,
    /// `grpc`: the name that is asked for, visible ASCII characters.
    #[schemars(
        with = "Option<Text>",
        length(min = 1, max = health::NAME_BYTES_MAX),
        extend("pattern" = "^[!-~]*$", "x-default" = "the server as a whole")
    )]
    pub service: Option<Scalar>,
    /// `udp`: what the datagram carries, in pairs of hexadecimal digits.
    #[schemars(
        with = "Option<Text>",
        length(max = 2 * health::PAYLOAD_BYTES_MAX),
        extend("pattern" = "^([0-9a-fA-F]{2})*$", "default" = "")
    )]
    pub payload: Option<Scalar>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawBackend {
    /// The pod's address, of the VIP's family.
    #[schemars(with = "Address", extend("x-kubernetes" = "EndpointSlice.endpoints[].addresses[]"))]
    pub address: Option<Scalar>,
    /// The pod's port. With rung `direct` no other than the service's.
    #[schemars(
        with = "Option<Number>",
        range(min = 1, max = u16::MAX),
        extend("x-default" = "the service's port", "x-kubernetes" = "EndpointSlice.ports[].port")
    )]
    pub port: Option<Scalar>,
    /// Share of new connections relative to the other backends. Not all of a service may be 0.
    #[schemars(with = "Option<Number>", range(min = 0, max = WEIGHT_MAX), extend("default" = WEIGHT_DEFAULT))]
    pub weight: Option<Scalar>,
    /// No new connections.
    #[schemars(
        with = "Option<Switch>",
        extend("default" = false, "x-kubernetes" = "EndpointSlice.endpoints[].conditions.terminating")
    )]
    pub drain: Option<Scalar>,
}
