//! How the agent is watched over HTTP: where, and who may.

use std::{net::SocketAddr, path::PathBuf};

use serde_saphyr::Spanned;

use super::{
    problem::Problem,
    raw::{RawObservation, RawTls},
    scalar::{Scalar, position, quote},
    validate::missing,
};
use crate::model::{Observation, TlsFiles};

/// `PATH_MAX` of Linux with its NUL.
pub(super) const PATH_BYTES_MAX: usize = 4095;
/// Every backend of the largest capacity.
pub(super) const BACKEND_SERIES_MAX: u32 = 1 << 20;
/// [`Observation::default`] as it is written.
pub(super) const LISTEN_DEFAULT: &str = "127.0.0.1:16080";
/// The value of `listen` that means nowhere.
const NOWHERE: &str = "none";

pub(super) fn observation(raw: Option<&RawObservation>, problems: &mut Vec<Problem>) -> Observation {
    let default = Observation::default();
    let Some(raw) = raw else { return default };
    let listen = taken(raw.listen.as_ref().map(listen), problems).unwrap_or(default.listen);
    let read = Observation {
        listen,
        tls: raw.tls.as_ref().and_then(|tls| tls_files(tls, problems)),
        token_file: file(raw.token_file.as_ref(), "tokenFile", problems),
        backend_series: taken(
            raw.backend_series.as_ref().map(|value| value.number("backendSeries", 0..=BACKEND_SERIES_MAX)),
            problems,
        )
        .unwrap_or(default.backend_series),
    };
    if let (Some(scalar), Some(address)) = (&raw.listen, listen)
        && let Some(lacking) = lacking(address, raw.tls.is_some(), raw.token_file.is_some())
    {
        problems.push(scalar.problem(
            format!("listen {} can be reached from other machines, and {lacking} missing", quote(&scalar.text)),
            "write tls and tokenFile, or listen at 127.0.0.1 or [::1] behind a proxy that has both",
        ));
    }
    read
}

/// What an address that others can reach needs and does not have. The state tells where every service and pod is, and a
/// token that is sent in the clear is anybody's: so both or neither, and no key that opens it all the same.
const fn lacking(address: SocketAddr, tls: bool, token: bool) -> Option<&'static str> {
    match (address.ip().is_loopback(), tls, token) {
        (true, ..) | (false, true, true) => None,
        (false, false, false) => Some("tls and tokenFile are"),
        (false, false, true) => Some("tls is"),
        (false, true, false) => Some("tokenFile is"),
    }
}

fn taken<T>(value: Option<Result<T, Problem>>, problems: &mut Vec<Problem>) -> Option<T> {
    match value? {
        Ok(value) => Some(value),
        Err(problem) => {
            problems.push(problem);
            None
        }
    }
}

fn listen(value: &Scalar) -> Result<Option<SocketAddr>, Problem> {
    if value.text == NOWHERE {
        return Ok(None);
    }
    match value.text.parse::<SocketAddr>() {
        // Nobody would know which port the kernel chose.
        Ok(address) if address.port() != 0 && !address.ip().is_multicast() => Ok(Some(address)),
        _ => Err(value.problem(
            format!("listen {} is not an address with a port", quote(&value.text)),
            "write for example 127.0.0.1:16080 or \"[::1]:16080\", or none",
        )),
    }
}

fn file(value: Option<&Scalar>, key: &str, problems: &mut Vec<Problem>) -> Option<PathBuf> {
    taken(value.map(|value| value.directory(key, PATH_BYTES_MAX, "no path is longer")), problems)
}

fn tls_files(raw: &Spanned<RawTls>, problems: &mut Vec<Problem>) -> Option<TlsFiles> {
    let RawTls { certificate, key } = &raw.value;
    for (value, name) in [(certificate, "certificate"), (key, "key")] {
        if value.is_none() {
            problems.push(missing(position(&raw.referenced), name, "write the path of a PEM file"));
        }
    }
    let files = (file(certificate.as_ref(), "certificate", problems), file(key.as_ref(), "key", problems));
    let (Some(certificate), Some(key)) = files else { return None };
    Some(TlsFiles { certificate, key })
}
