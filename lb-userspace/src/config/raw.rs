//! The file as it is written: which keys there are and where their values stand. Nothing is judged here but the
//! shape; scalars stay text, so that one wrong number does not hide the next problem.
//!
//! A key added here is documented in `docs/configuration.md`, or a test fails.

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::scalar::Scalar;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawConfig {
    pub node: Option<Spanned<RawNode>>,
    pub uplinks: Option<Spanned<Vec<Spanned<RawUplink>>>>,
    pub pin_directory: Option<Scalar>,
    pub run_directory: Option<Scalar>,
    pub capacities: Option<RawCapacities>,
    pub limits: Option<RawLimits>,
    pub observation: Option<RawObservation>,
    pub services: Option<Vec<Spanned<RawService>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawNode {
    pub addresses: Option<Spanned<Vec<Scalar>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawUplink {
    pub interface: Option<Scalar>,
    pub mode: Option<Scalar>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawCapacities {
    pub services: Option<Scalar>,
    pub backends: Option<Scalar>,
    pub maglev_slots: Option<Scalar>,
    pub bypasses: Option<Scalar>,
    pub flows: Option<Scalar>,
    pub fragments: Option<Scalar>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawLimits {
    pub refusals: Option<Scalar>,
    pub echo_replies: Option<Scalar>,
    pub icmp_errors: Option<Scalar>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawObservation {
    pub listen: Option<Scalar>,
    pub tls: Option<Spanned<RawTls>>,
    pub token_file: Option<Scalar>,
    pub backend_series: Option<Scalar>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawTls {
    pub certificate: Option<Scalar>,
    pub key: Option<Scalar>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawService {
    pub name: Option<Scalar>,
    pub vip: Option<Scalar>,
    pub protocol: Option<Scalar>,
    pub ports: Option<Spanned<Vec<Scalar>>>,
    pub replies: Option<Scalar>,
    pub rung: Option<Scalar>,
    pub assign_vip: Option<Scalar>,
    pub session_affinity: Option<Scalar>,
    pub session_affinity_timeout_seconds: Option<Scalar>,
    pub backends: Option<Spanned<Vec<Spanned<RawBackend>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawBackend {
    pub address: Option<Scalar>,
    pub port: Option<Scalar>,
    pub weight: Option<Scalar>,
    pub drain: Option<Scalar>,
}
