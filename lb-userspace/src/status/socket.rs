//! The status over a Unix socket: who connects gets one JSON document, and the connection is closed.

use std::{
    fs,
    io::{self, Read},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::AsyncWriteExt,
    net::UnixListener,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::Status;

/// Largest answer that a client takes: services and backends at their largest capacities.
const ANSWER_BYTES_MAX: u64 = 1 << 30;
/// How long a client waits for the agent to say something.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long one client may take to read; the next one waits meanwhile.
const READER_DELAY_MAX: Duration = Duration::from_secs(2);
/// Pause after a failed `accept`: out of file descriptors, it fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no status.
#[derive(Debug, Error)]
pub enum FetchError {
    /// No socket there.
    #[error("no agent is running: {} does not exist; start one with `sluice agent --config FILE`, or name its socket with --socket", path.display())]
    Missing {
        /// The socket.
        path: PathBuf,
    },
    /// A socket that nobody listens on.
    #[error("no agent is running: nobody listens on {}, which an agent left behind; start one with `sluice agent --config FILE`", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
    },
    /// The socket belongs to another user.
    #[error("no permission to connect to {}; only the agent's user may, try with sudo", path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// The agent accepted, and then said nothing.
    #[error("the agent on {} did not answer within {} s; its log may say why", path.display(), SILENCE_MAX.as_secs())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The connection failed in another way.
    #[error("cannot read the status from {}: {cause}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        cause: io::Error,
    },
    /// What was read is not a status.
    #[error("what {} answered is not a status: {cause}; is `sluice` of the same version as the agent?", path.display())]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// The first thing that is not as expected.
        #[source]
        cause: serde_json::Error,
    },
}

/// Asks the agent that listens on `socket`.
pub fn fetch(socket: &Path) -> Result<Status, FetchError> {
    let path = socket.to_path_buf();
    let read = || {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = match read() {
        Ok(answer) => answer,
        Err(cause) => return Err(why(path, cause)),
    };
    serde_json::from_slice(&answer).map_err(|cause| FetchError::Malformed { path, cause })
}

pub(super) fn why(path: PathBuf, cause: io::Error) -> FetchError {
    match cause.kind() {
        io::ErrorKind::NotFound => FetchError::Missing { path },
        io::ErrorKind::ConnectionRefused => FetchError::Refused { path },
        io::ErrorKind::PermissionDenied => FetchError::Permission { path },
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => FetchError::Silent { path },
        _ => FetchError::Io { path, cause },
    }
}

/// Makes the socket at `path`, for its owner alone, in place of one that an earlier agent left behind.
///
/// The caller holds the lock of the run directory: a socket that somebody still listens on would be taken from them.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    // Between bind and chmod anybody could connect, so that happens under another name.
    let unready = path.with_extension("new");
    match fs::remove_file(&unready) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&unready)?;
    fs::set_permissions(&unready, fs::Permissions::from_mode(0o600))?;
    fs::rename(&unready, path)?;
    Ok(listener)
}

/// Answers every connection with what `provider` gives, one after the other, until it is dropped.
pub async fn serve<P, F>(listener: UnixListener, provider: P)
where
    P: Fn() -> F,
    F: Future<Output = Status>,
{
    loop {
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection to the status socket");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let answer = serde_json::to_vec(&provider().await).expect("a status is plain data");
        let write = async {
            stream.write_all(&answer).await?;
            stream.shutdown().await
        };
        match timeout(READER_DELAY_MAX, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "a client left before it had the status"),
            Err(_) => debug!("a client did not read the status"),
        }
    }
}
