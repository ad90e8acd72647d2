//! The listener: connections, one request each, all of them bounded in number and time.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::{
    credentials::{Access, CredentialError, Tls, TokenFile},
    engine::Engine,
    http,
};
use crate::{model::Observation, status::ObservationStatus};

/// Connections at a time; further ones wait in the kernel. A few scrapers and probes are the use.
const CONNECTIONS_MAX: usize = 32;
/// How long a client may take to send its request, and before it for the handshake of TLS.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a connection lives: long enough for the largest state over a slow line.
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// Bytes of a request's head; a token has 4096 at most. hyper takes no less than 8192.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Pause after what failed: the address is in use, or the files are not there yet.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a failed `accept`: out of file descriptors, it fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error("cannot listen at {address}: {cause}; free it, or set observation.listen to another one from port 1024 on")]
    Bind { address: SocketAddr, cause: std::io::Error },
    #[error(transparent)]
    Credentials(#[from] CredentialError),
}

/// Serves for as long as the process lives.
pub(super) async fn run(
    address: SocketAddr,
    observation: &Observation,
    engine: &Engine,
    state: &watch::Sender<ObservationStatus>,
) -> Infallible {
    let (listener, mut tls) = loop {
        match listen(address, observation).await {
            Ok(ready) => break ready,
            Err(error) => {
                let error = error.to_string();
                let is_new = state.send_if_modified(|state| {
                    let is_new = state.error.as_ref() != Some(&error);
                    state.error = Some(error.clone());
                    is_new
                });
                if is_new {
                    warn!(error, "metrics, health and state are not served yet; tried again");
                }
            }
        }
        sleep(RETRY_PAUSE).await;
    };
    state.send_modify(|state| state.error = None);
    let mut token = observation.token_file.clone().map(TokenFile::new);
    info!(listen = %address, tls = tls.is_some(), token = token.is_some(), "metrics, health and state are served");
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = connections.clone().acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection to the HTTP server");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = Connection {
            tls: tls.as_mut().map(Tls::acceptor),
            access: token.as_mut().map_or(Access::Everybody, TokenFile::access),
            engine: engine.clone(),
            backend_series: observation.backend_series,
        };
        tokio::spawn(async move {
            let _permit = permit;
            if timeout(CONNECTION_MAX, connection.serve(stream)).await.is_err() {
                debug!("an HTTP client did not read its answer");
            }
        });
    }
}

async fn listen(address: SocketAddr, observation: &Observation) -> Result<(TcpListener, Option<Tls>), ListenError> {
    let tls = observation.tls.as_ref().map(Tls::load).transpose()?;
    let listener = TcpListener::bind(address).await.map_err(|cause| ListenError::Bind { address, cause })?;
    Ok((listener, tls))
}

/// What one connection needs.
struct Connection {
    tls: Option<TlsAcceptor>,
    access: Access,
    engine: Engine,
    backend_series: u32,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        match self.tls.clone() {
            None => self.serve_http(stream).await,
            Some(tls) => match timeout(REQUEST_WAIT_MAX, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.serve_http(stream).await,
                Ok(Err(error)) => debug!(%error, "an HTTP client's TLS handshake failed"),
                Err(_) => debug!("an HTTP client did not end its TLS handshake"),
            },
        }
    }

    /// One request: a connection that stays open would outlive the token that it was opened with.
    async fn serve_http(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let answer = service_fn(|request: hyper::Request<_>| async {
            let (head, _unread) = request.into_parts();
            let answer = http::answer(&head, &self.access, &self.engine, self.backend_series).await;
            Ok::<_, Infallible>(answer)
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_WAIT_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), answer)
            .await;
        if let Err(error) = served {
            debug!(%error, "an HTTP client left early");
        }
    }
}
