//! `healthCheck` of a service.

use std::{ops::RangeInclusive, time::Duration};

use hyper::http::uri::PathAndQuery;
use serde_json::{Value, json};
use serde_saphyr::Spanned;

use super::{
    problem::Problem,
    raw::RawHealthCheck,
    scalar::{Scalar, position, quote},
    validate::missing,
};
use crate::model::{
    Protocol,
    health::{HealthCheck, Probe, Timing},
};

/// Below, the checks of a node cost more than what they find out; above, nobody waits for one.
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
/// The same of a check by datagram: a kernel tells one sender of an unreachable port once a second (`icmp_ratelimit`).
const INTERVAL_UDP: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
/// Shorter than a scheduler's turn nobody can be expected to answer.
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);
/// Checks in a row that decide.
pub(super) const ROW: RangeInclusive<u32> = 1..=100;
pub(super) const RISE_DEFAULT: u32 = 2;
pub(super) const FALL_DEFAULT: u32 = 3;
/// What servers take as a request line, and more than a path has.
pub(super) const PATH_BYTES_MAX: usize = 1024;
/// A name in the DNS (RFC 1035, 2.3.4), which a gRPC service's is shorter than too.
pub(super) const NAME_BYTES_MAX: usize = 253;
/// The datagram fits into one packet anywhere.
pub(super) const PAYLOAD_BYTES_MAX: usize = 512;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    None,
    Tcp,
    Http,
    Grpc,
    Udp,
}

pub(super) const KINDS: [(&str, Kind); 5] =
    [("none", Kind::None), ("tcp", Kind::Tcp), ("http", Kind::Http), ("grpc", Kind::Grpc), ("udp", Kind::Udp)];

const ALL: &[Kind] = &[Kind::Tcp, Kind::Http, Kind::Grpc, Kind::Udp];
/// Which types of check each key is for.
const KEYS: [(&str, &[Kind]); 9] = [
    ("port", &[Kind::Tcp, Kind::Http, Kind::Grpc]),
    ("path", &[Kind::Http]),
    ("host", &[Kind::Http]),
    ("service", &[Kind::Grpc]),
    ("payload", &[Kind::Udp]),
    ("interval", ALL),
    ("timeout", ALL),
    ("rise", ALL),
    ("fall", ALL),
];

/// The same in the words of a JSON schema.
pub(super) fn rules() -> Value {
    let rule = |(name, kind): &(&str, Kind)| {
        let strangers = KEYS.iter().filter(|(_, kinds)| !kinds.contains(kind));
        let none: serde_json::Map<String, Value> =
            strangers.map(|(key, _)| ((*key).to_owned(), json!({ "type": "null" }))).collect();
        json!({ "if": { "properties": { "type": { "const": name } } }, "then": { "properties": none } })
    };
    KINDS.iter().map(rule).collect()
}

/// Reads the check; what is wrong with it goes to `problems`. `None` also where something is.
pub(super) fn check(
    raw: &Spanned<RawHealthCheck>,
    protocol: Option<Protocol>,
    problems: &mut Vec<Problem>,
) -> Option<HealthCheck> {
    let before = problems.len();
    let place = position(&raw.referenced);
    let raw = &raw.value;
    let Some(scalar) = &raw.r#type else {
        problems.push(missing(place, "type", "write type: tcp, http, grpc, udp or none"));
        return None;
    };
    let mut note = Note(problems);
    let kind = note.value(scalar.choice("type", &KINDS))?;
    note.strangers(raw, kind);
    if kind == Kind::None {
        return None;
    }
    if kind == Kind::Udp && protocol == Some(Protocol::Tcp) {
        note.0.push(
            scalar.problem("a check by datagram is for UDP, and the service is TCP", "write type: tcp, http or grpc"),
        );
    }
    let probe = note.probe(raw, kind);
    let port = raw.port.as_ref().and_then(|port| note.value(port.port()));
    if kind != Kind::Udp && protocol == Some(Protocol::Udp) && raw.port.is_none() {
        note.0.push(missing(place, "port", "write port: with the TCP port on which the pod tells whether it is well"));
    }
    let timing = note.timing(raw, kind);
    (problems.len() == before).then_some(HealthCheck { probe: probe?, port, timing })
}

struct Note<'a>(&'a mut Vec<Problem>);

impl Note<'_> {
    fn value<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.0.push(problem)).ok()
    }

    /// Keys of another type of check.
    fn strangers(&mut self, raw: &RawHealthCheck, kind: Kind) {
        let values = [
            &raw.port,
            &raw.path,
            &raw.host,
            &raw.service,
            &raw.payload,
            &raw.interval,
            &raw.timeout,
            &raw.rise,
            &raw.fall,
        ];
        for ((key, kinds), value) in KEYS.into_iter().zip(values) {
            let Some(scalar) = value.as_ref().filter(|_| !kinds.contains(&kind)) else { continue };
            let names = KINDS.iter().filter(|(_, kind)| kinds.contains(kind)).map(|(name, _)| *name);
            let what = match (key, kind) {
                ("port", Kind::Udp) => "a check by datagram goes to the backend's own port".into(),
                _ => format!("`{key}` is for checks of type {}", names.collect::<Vec<_>>().join(", ")),
            };
            self.0.push(scalar.problem(what, "remove the key"));
        }
    }

    fn probe(&mut self, raw: &RawHealthCheck, kind: Kind) -> Option<Probe> {
        Some(match kind {
            Kind::None => return None,
            Kind::Tcp => Probe::Tcp,
            Kind::Http => {
                let path = raw.path.as_ref().map_or(Ok("/".to_owned()), path);
                let host = raw.host.as_ref().map(|host| name(host, "host")).transpose();
                let (path, host) = (self.value(path), self.value(host));
                Probe::Http { path: path?, host: host? }
            }
            Kind::Grpc => {
                let service = raw.service.as_ref().map_or(Ok(String::new()), |service| name(service, "service"));
                Probe::Grpc { service: self.value(service)? }
            }
            Kind::Udp => {
                let payload = raw.payload.as_ref().map_or(Ok(Vec::new()), payload);
                Probe::Udp { payload: self.value(payload)? }
            }
        })
    }

    fn timing(&mut self, raw: &RawHealthCheck, kind: Kind) -> Timing {
        let bounds = if kind == Kind::Udp { INTERVAL_UDP } else { INTERVAL };
        let interval = raw.interval.as_ref().map_or(Ok(INTERVAL_DEFAULT), |value| value.duration("interval", bounds));
        let interval = self.value(interval);
        let longest = interval.unwrap_or(*INTERVAL.end());
        let timeout = raw.timeout.as_ref().map(|value| value.duration("timeout", TIMEOUT_MIN..=longest));
        let timeout = timeout.map_or(Some(TIMEOUT_DEFAULT.min(longest)), |timeout| self.value(timeout));
        let mut row = |value: &Option<Scalar>, key, default| {
            value.as_ref().map_or(Some(default), |value| self.value(value.number(key, ROW)))
        };
        let (rise, fall) = (row(&raw.rise, "rise", RISE_DEFAULT), row(&raw.fall, "fall", FALL_DEFAULT));
        // Where a problem was noted, nobody sees these.
        Timing {
            interval: longest,
            timeout: timeout.unwrap_or(longest),
            rise: rise.unwrap_or(RISE_DEFAULT),
            fall: fall.unwrap_or(FALL_DEFAULT),
        }
    }
}

/// The path of a request in origin form (RFC 9112, 3.2.1).
fn path(scalar: &Scalar) -> Result<String, Problem> {
    let text = &scalar.text;
    let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    let is_short = text.len() <= PATH_BYTES_MAX && text.starts_with('/');
    if is_short && is_visible && text.parse::<PathAndQuery>().is_ok() {
        return Ok(text.clone());
    }
    Err(scalar.problem(
        format!("path {} cannot be asked for", quote(text)),
        format!("write a path that starts with / and has at most {PATH_BYTES_MAX} visible ASCII characters"),
    ))
}

fn name(scalar: &Scalar, key: &str) -> Result<String, Problem> {
    let text = &scalar.text;
    if !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(text.clone());
    }
    let advice = format!("write 1 to {NAME_BYTES_MAX} visible ASCII characters, or remove the key");
    Err(scalar.problem(format!("{key} {} cannot be used", quote(text)), advice))
}

/// Pairs of hexadecimal digits.
fn payload(scalar: &Scalar) -> Result<Vec<u8>, Problem> {
    let digits = scalar.text.as_bytes();
    let value = |digit: u8| char::from(digit).to_digit(16);
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some((value(*high)? << 4 | value(*low)?) as u8),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
    bytes.filter(|bytes| bytes.len() <= PAYLOAD_BYTES_MAX).ok_or_else(|| {
        scalar.problem(
            format!("payload {} cannot be sent", quote(&scalar.text)),
            format!("write pairs of hexadecimal digits, in quotes, for at most {PAYLOAD_BYTES_MAX} bytes"),
        )
    })
}
