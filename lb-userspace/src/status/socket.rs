//! Questions over a Unix socket, and their answers: one JSON document, after which the connection is closed.
//!
//! A client that says nothing asks for the status: it closes its sending side at once, or, as those of version 0.1.0 do,
//! leaves it open. Any other question is a line of JSON ([`Question`]) with what belongs to it behind it, up to the end of the
//! sending side. An agent that does not know a question says so; one of before there were questions answers with its
//! status, which the client tells from an answer.

use std::{
    fs,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{SOCKET_UNREADY_NAME, Status};
use crate::{failure::in_run_directory, plan::diff::Diff};

/// Largest answer that a client takes: services and backends at their largest capacities.
const ANSWER_BYTES_MAX: u64 = 1 << 30;
/// How long a client waits for the agent to say something.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long a client may take to begin its question; who says nothing until then asks for the status.
const QUESTION_DELAY_MAX: Duration = Duration::from_millis(200);
/// How long it may take to end it.
const QUESTION_TIME_MAX: Duration = Duration::from_secs(2);
/// Longest question: the longest configuration, and the line before it.
const QUESTION_BYTES_MAX: u64 = (64 << 20) + 4096;
/// How long a client waits for what the agent has to compute.
const THOUGHT_MAX: Duration = Duration::from_secs(60);
/// How long one client may take to read; the next one waits meanwhile.
const READER_DELAY_MAX: Duration = Duration::from_secs(2);
/// Pause after a failed `accept`: out of file descriptors, it fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Question {
    /// The status.
    #[default]
    Status,
    /// What a reload with this configuration would change.
    Diff {
        /// What messages call it.
        name: String,
        /// Its text.
        text: String,
    },
    /// To hand everything over that is announced, and announce nothing more.
    Drain,
    /// To announce again.
    Undrain,
    /// Something that this version does not know, in its own words.
    Unknown(String),
}

/// The first line of a question.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "question")]
enum Head {
    Diff { name: String },
    Drain,
    Undrain,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// To [`Question::Diff`].
    Diff {
        /// What would change.
        diff: Box<Diff>,
    },
    /// To [`Question::Drain`] and [`Question::Undrain`].
    Done {
        /// What is being done.
        done: String,
    },
    /// Why there is no other answer.
    Declined {
        /// In words for the user.
        declined: String,
    },
    /// To [`Question::Status`].
    Status(Box<Status>),
}

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
    /// The agent answers nothing but its status.
    #[error("the agent on {} is of version {version}, which does not know this question; restart it as the version of this `sluice`", path.display())]
    Older {
        /// The socket.
        path: PathBuf,
        /// The agent's version.
        version: String,
    },
    /// The agent has no answer, and says why.
    #[error("{why}")]
    Declined {
        /// The agent's words.
        why: String,
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

/// Asks the agent that listens on `socket` for its status.
pub fn fetch(socket: &Path) -> Result<Status, FetchError> {
    // No byte is sent: agents that read nothing would leave it unread, which resets the connection.
    let answer = ask(socket, &[], SILENCE_MAX)?;
    serde_json::from_slice(&answer).map_err(|cause| FetchError::Malformed { path: socket.to_path_buf(), cause })
}

/// Asks the agent that listens on `socket` what a reload with this configuration would change.
pub fn fetch_diff(socket: &Path, name: &str, text: &str) -> Result<Diff, FetchError> {
    let head = serde_json::to_string(&Head::Diff { name: name.to_owned() }).expect("a name is plain data");
    let answer = ask(socket, format!("{head}\n{text}").as_bytes(), THOUGHT_MAX)?;
    let path = socket.to_path_buf();
    match serde_json::from_slice(&answer).map_err(|cause| FetchError::Malformed { path: path.clone(), cause })? {
        Answer::Diff { diff } => Ok(*diff),
        Answer::Done { done } => Err(FetchError::Declined { why: done }),
        Answer::Declined { declined } => Err(FetchError::Declined { why: declined }),
        Answer::Status(status) => Err(FetchError::Older { path, version: status.version }),
    }
}

/// Tells the agent that listens on `socket` to hand over what it announces, or to announce again. Returns what it does.
pub fn tell_drain(socket: &Path, is_to_drain: bool) -> Result<String, FetchError> {
    let head = if is_to_drain { Head::Drain } else { Head::Undrain };
    let head = serde_json::to_string(&head).expect("a name is plain data");
    let answer = ask(socket, format!("{head}\n").as_bytes(), SILENCE_MAX)?;
    let path = socket.to_path_buf();
    match serde_json::from_slice(&answer).map_err(|cause| FetchError::Malformed { path: path.clone(), cause })? {
        Answer::Done { done } => Ok(done),
        Answer::Diff { .. } => Err(FetchError::Declined { why: "the agent has answered another question".into() }),
        Answer::Declined { declined } => Err(FetchError::Declined { why: declined }),
        Answer::Status(status) => Err(FetchError::Older { path, version: status.version }),
    }
}

fn ask(socket: &Path, question: &[u8], patience: Duration) -> Result<Vec<u8>, FetchError> {
    let converse = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        let said = stream.write_all(question).and_then(|()| stream.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        let heard = (&stream).take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
        // Who answers without having read the question resets the connection, behind what it has to say.
        match said.and(heard.map(drop)) {
            Err(error) if answer.is_empty() => Err(error),
            _ => Ok(answer),
        }
    };
    converse().map_err(|cause| why(socket.to_path_buf(), cause))
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

/// A socket that nobody can find yet; removed where it never becomes one.
#[derive(Debug)]
pub struct Socket {
    listener: Option<std::os::unix::net::UnixListener>,
    unready: PathBuf,
    path: PathBuf,
}

impl Socket {
    /// Makes the socket that will be at `path`, for its owner alone.
    pub fn make(path: &Path) -> anyhow::Result<Self> {
        let failed = |error| in_run_directory(error, "make the status socket", path);
        // Between bind and chmod anybody could connect, so that happens under another name.
        let unready = path.with_file_name(SOCKET_UNREADY_NAME);
        match fs::remove_file(&unready) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = std::os::unix::net::UnixListener::bind(&unready).map_err(failed)?;
        let socket = Self { listener: Some(listener), unready, path: path.to_path_buf() };
        fs::set_permissions(&socket.unready, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(socket)
    }

    /// Puts it at its path, in place of one that an earlier agent left behind.
    ///
    /// The caller holds the lock of the run directory: a socket that somebody still listens on would be taken from them.
    pub fn publish(mut self) -> anyhow::Result<UnixListener> {
        let failed = |error| in_run_directory(error, "listen at", &self.path);
        fs::rename(&self.unready, &self.path).map_err(failed)?;
        let listener = self.listener.take().expect("it is published once");
        listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener)).map_err(failed)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.listener.is_some() {
            let _ = fs::remove_file(&self.unready);
        }
    }
}

/// Answers one connection after the other with what `provider` gives, until it is dropped.
pub async fn serve<P, F>(listener: UnixListener, provider: P)
where
    P: Fn(Question) -> F,
    F: Future<Output = Answer>,
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
        let question = match hear(&mut stream).await {
            Ok(question) => question,
            Err(error) => {
                debug!(%error, "a client did not end its question");
                continue;
            }
        };
        let answer = serde_json::to_vec(&provider(question).await).expect("an answer is plain data");
        let write = async {
            stream.write_all(&answer).await?;
            stream.shutdown().await
        };
        match timeout(READER_DELAY_MAX, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "a client left before it had its answer"),
            Err(_) => debug!("a client did not read its answer"),
        }
    }
}

/// Reads a client's question.
async fn hear(stream: &mut tokio::net::UnixStream) -> io::Result<Question> {
    let mut said = vec![0];
    match timeout(QUESTION_DELAY_MAX, stream.read(&mut said)).await {
        Err(_) | Ok(Ok(0)) => return Ok(Question::Status),
        Ok(read) => read?,
    };
    let rest = async { stream.take(QUESTION_BYTES_MAX).read_to_end(&mut said).await };
    timeout(QUESTION_TIME_MAX, rest).await.map_err(|_| io::ErrorKind::TimedOut)??;
    if said.len() as u64 > QUESTION_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(understand(said))
}

fn understand(said: Vec<u8>) -> Question {
    let Ok(said) = String::from_utf8(said) else { return Question::Unknown("bytes that are not UTF-8".to_owned()) };
    let (head, text) = said.split_once('\n').unwrap_or((&said, ""));
    match serde_json::from_str(head) {
        Ok(Head::Diff { name }) => Question::Diff { name, text: text.to_owned() },
        Ok(Head::Drain) => Question::Drain,
        Ok(Head::Undrain) => Question::Undrain,
        Err(_) => Question::Unknown(head.chars().take(60).flat_map(char::escape_debug).collect()),
    }
}
