//! How the backends of a service are checked.

use std::{fmt, time::Duration};

use serde::Serialize;

/// The check of a service's backends: each is asked by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// The pod's port that is asked; the backend's own where none is named.
    pub port: Option<u16>,
    /// When, and what it takes to change one's mind.
    pub timing: Timing,
}

/// What is asked of a pod, and what counts as an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// A TCP connection; it is closed at once.
    Tcp,
    /// An HTTP/1.1 GET; status 200 to 399 is an answer, as for the probes of Kubernetes.
    Http {
        /// Path and query.
        path: String,
        /// The header `Host`; the pod's address and port where none is named.
        host: Option<String>,
    },
    /// `grpc.health.v1.Health/Check`, in clear text; SERVING is an answer.
    Grpc {
        /// The name that is asked for; empty: the server as a whole.
        service: String,
    },
    /// A UDP datagram; all but an ICMP error is an answer, silence too. Also failed where the pod has told anybody since
    /// the last check that its port is unreachable.
    Udp {
        /// What the datagram carries.
        payload: Vec<u8>,
    },
}

impl Probe {
    /// As the configuration calls it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http { .. } => "http",
            Self::Grpc { .. } => "grpc",
            Self::Udp { .. } => "udp",
        }
    }
}

/// How often a backend is checked, and how many checks decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Timing {
    /// From the begin of one check to that of the next.
    pub interval: Duration,
    /// How long an answer may take; no longer than the interval, so that one check runs at a time.
    pub timeout: Duration,
    /// Checks in a row that must pass before a failed backend is used again.
    pub rise: u32,
    /// Checks in a row that must fail before a backend is used no more.
    pub fall: u32,
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.probe.name())?;
        if let Some(port) = self.port {
            write!(f, " at port {port}")?;
        }
        write!(f, " every {:?}", self.timing.interval)
    }
}
