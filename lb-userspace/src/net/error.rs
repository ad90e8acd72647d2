//! What can go wrong, in words that say what to do.

use std::{fmt, io};

use serde::{Deserialize, Serialize};

use super::NetnsId;

/// The result of asking the kernel.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the kernel did not answer as hoped. Crosses process boundaries whole: the system's error number stays what it is.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    /// The process lacks a privilege.
    #[error("cannot {action}: needs {capability}; run as root or grant that capability")]
    Privilege {
        /// What was tried.
        action: String,
        /// What would have allowed it.
        capability: Capability,
    },
    /// There is no such interface, or no longer.
    #[error("cannot {action}: no such interface; `ip link` in that namespace lists them")]
    NoInterface {
        /// What was tried, naming the interface.
        action: String,
    },
    /// A namespace went away, or never had this id here.
    #[error("cannot {action}: there is no network namespace with id {id} here, or no longer")]
    NoNamespace {
        /// What was tried.
        action: String,
        /// The id that is unknown.
        id: NetnsId,
    },
    /// The interface or its driver cannot do this.
    #[error("cannot {action}: the interface's driver does not support it")]
    Unsupported {
        /// What was tried, naming the interface.
        action: String,
    },
    /// Tables changed under each reading; the next change notification is a good moment to try again.
    #[error("cannot {action}: the kernel's table changed during each of {attempts} readings")]
    Unsteady {
        /// What was tried.
        action: String,
        /// How often.
        attempts: u32,
    },
    /// An answer that does not fit the protocol: a bug here or a kernel that is too new.
    #[error("cannot {action}: unexpected answer from the kernel: {detail}")]
    Answer {
        /// What was tried.
        action: String,
        /// What is wrong with the answer.
        detail: String,
    },
    /// Anything else that the kernel says.
    #[error("cannot {action}: {source}")]
    Kernel {
        /// What was tried.
        action: String,
        /// The kernel's error.
        #[serde(with = "system_error")]
        source: io::Error,
    },
}

impl Error {
    /// Names the cause of a failed call; `capability` is the one whose lack this call reports as `EPERM` or `EACCES`.
    pub(super) fn new(action: impl Into<String>, capability: Capability, source: io::Error) -> Self {
        let action = action.into();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Privilege { action, capability },
            Some(libc::ENODEV | libc::ENXIO) => Self::NoInterface { action },
            Some(libc::EOPNOTSUPP) => Self::Unsupported { action },
            _ => Self::Kernel { action, source },
        }
    }

    /// For `map_err`.
    pub(super) fn from_io(action: &str, capability: Capability) -> impl Fn(io::Error) -> Self {
        move |source| Self::new(action, capability, source)
    }
}

/// A capability of capabilities(7) that this module may miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Capability {
    /// Interfaces' settings, and looking into other namespaces.
    NetAdmin,
    /// Hearing notifications of other namespaces.
    NetBroadcast,
    /// Entering a namespace.
    SysAdmin,
    /// Looking at the namespaces of other users' processes.
    SysPtrace,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetBroadcast => "CAP_NET_BROADCAST",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysPtrace => "CAP_SYS_PTRACE",
        })
    }
}

/// An error of the system as its number, and one of the library as its text.
mod system_error {
    use std::io;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(error: &io::Error, serializer: S) -> Result<S::Ok, S::Error> {
        match error.raw_os_error() {
            Some(number) => Ok(number),
            None => Err(error.to_string()),
        }
        .serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<io::Error, D::Error> {
        Ok(match Result::<i32, String>::deserialize(deserializer)? {
            Ok(number) => io::Error::from_raw_os_error(number),
            Err(text) => io::Error::other(text),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(errno: i32, expected: &str) {
        let error = Error::new("turn on GRO of eth0", Capability::NetAdmin, io::Error::from_raw_os_error(errno));
        assert!(error.to_string().contains(expected), "{error}");
    }

    #[test]
    fn errors_say_what_failed_and_what_to_do() {
        check(libc::EPERM, "cannot turn on GRO of eth0: needs CAP_NET_ADMIN");
        check(libc::EACCES, "needs CAP_NET_ADMIN");
        check(libc::ENODEV, "no such interface");
        check(libc::EOPNOTSUPP, "does not support");
        check(libc::EIO, "Input/output error");
    }
}
