//! Asks one pod once. How long it may take is the caller's business: to give up is to drop the future.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
};

use http_body_util::Empty;
use hyper::{Request, Uri, client::conn::http1, header, http::uri::PathAndQuery};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tower::service_fn;

use super::{Outcome, Subject};
use crate::model::health::Probe;

/// Bytes of a response's head; only its first line matters.
const HTTP_HEAD_BYTES_MAX: usize = 64 << 10;
/// Bytes of an answer to `Health/Check`, which is two numbers.
const GRPC_ANSWER_BYTES_MAX: usize = 4096;

/// The answer to a check.
pub(super) async fn ask(subject: &Subject) -> Outcome {
    let answer = match &subject.probe {
        Probe::Tcp => connect(subject.address).await.map(drop).map_err(|error| describe(&error)),
        Probe::Http { path, host } => get(subject.address, path, host.as_deref()).await,
        Probe::Grpc { service } => check(subject.address, service).await,
        Probe::Udp { payload } => send(subject.address, payload).await.map_err(|error| describe(&error)),
    };
    match answer {
        Ok(()) => Outcome::Passed,
        Err(why) => Outcome::Failed(why),
    }
}

/// A connection that ends by a reset as it is dropped: nothing is left of it in the pod, whose kernel so never sends a late
/// segment, nor in TIME_WAIT here, where thousands a second would fill the kernel's table.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_zero_linger()?;
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

async fn get(address: SocketAddr, path: &str, host: Option<&str>) -> Result<(), String> {
    let stream = connect(address).await.map_err(|error| describe(&error))?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HTTP_HEAD_BYTES_MAX)
        .handshake::<_, Empty<&[u8]>>(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    // In origin form, as a server expects it (RFC 9112, 3.2.1).
    let target: PathAndQuery = path.parse().map_err(|_| format!("the path {path} cannot be asked for"))?;
    let request = Request::get(Uri::from(target))
        .header(header::HOST, host.map_or_else(|| address.to_string(), str::to_owned))
        .header(header::USER_AGENT, concat!("sluice/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    // The connection is driven beside the request, and dropped with it: the body is not waited for. One that ends has
    // brought the request its answer, or the reason why there is none.
    let mut answer = pin!(sender.send_request(request));
    let response = tokio::select! {
        biased;
        response = &mut answer => response,
        _ = connection => answer.await,
    };
    let status = response.map_err(|error| in_full(&error))?.status();
    match status.as_u16() {
        200..=399 => Ok(()),
        code => Err(format!("HTTP status {code}")),
    }
}

async fn check(address: SocketAddr, service: &str) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let connector = service_fn(move |_: Uri| async move { connect(address).await.map(TokioIo::new) });
    let channel = endpoint.connect_with_connector(connector).await.map_err(|error| in_full(&error))?;
    let mut client = HealthClient::new(channel).max_decoding_message_size(GRPC_ANSWER_BYTES_MAX);
    let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await;
    match answer.map(|answer| answer.into_inner().status()) {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(status) => Err(format!("gRPC health {}", status.as_str_name())),
        Err(status) => Err(format!("gRPC status {:?}: {}", status.code(), status.message())),
    }
}

/// Sends the datagram and waits for what it brings: an error, or a datagram. Silence ends with the caller's patience.
async fn send(address: SocketAddr, payload: &[u8]) -> io::Result<()> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Of what is not connected the kernel reports no ICMP errors.
    socket.connect(address).await?;
    socket.send(payload).await?;
    socket.recv(&mut [0; 1]).await.map(drop)
}

/// What the system says, without its number.
fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_lowercase()
}

/// An error with everything that led to it, whose own words are often only "transport error".
fn in_full(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = match error.downcast_ref::<io::Error>() {
            // The system's words say it all.
            Some(error) => describe(error),
            None => format!("{text}: {error}"),
        };
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
