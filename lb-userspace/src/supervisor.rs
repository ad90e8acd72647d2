//! What a service manager such as systemd is told (sd_notify(3)). Without one, nothing is sent.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::warn;

/// The least watchdog time that the engine keeps without effort: it says that it lives once a second.
pub const WATCHDOG_MIN: Duration = Duration::from_secs(5);

/// The service manager that has started this process, if one has.
///
/// Messages are sent as sd_notify(3) sends them: a manager that does not read for long holds up whoever tells it.
#[derive(Debug)]
pub struct Supervisor {
    is_there: bool,
    /// Whether it wants to hear that the engine lives.
    watches: bool,
    /// The last status that it was told.
    status: String,
    /// It could not be told something; said once.
    is_deaf: bool,
}

impl Supervisor {
    /// From the environment, which says where it listens and how often it wants to hear.
    pub fn from_environment() -> Self {
        let watchdog = sd_notify::watchdog_enabled();
        if let Some(time) = watchdog.filter(|time| *time < WATCHDOG_MIN) {
            warn!(
                watchdog_seconds = time.as_secs_f32(),
                "the service manager's watchdog may end a healthy agent; raise WatchdogSec to {} s",
                WATCHDOG_MIN.as_secs()
            );
        }
        let is_there = std::env::var_os("NOTIFY_SOCKET").is_some();
        Self { is_there, watches: watchdog.is_some(), status: String::new(), is_deaf: false }
    }

    /// The data plane is in place, or in place again after [`Supervisor::reloading`].
    pub fn ready(&mut self, status: String) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
        self.status = status;
    }

    /// A configuration is being read.
    pub fn reloading(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => self.cannot_tell(&error),
        }
    }

    /// The engine lives: called from its own loop, so that one that hangs says nothing. The status is sent where it has
    /// changed.
    pub fn alive(&mut self, status: impl FnOnce() -> String) {
        if !self.is_there {
            return;
        }
        let status = status();
        let mut states = Vec::with_capacity(2);
        if self.watches {
            states.push(NotifyState::Watchdog);
        }
        if status != self.status {
            states.push(NotifyState::Status(&status));
        }
        if !states.is_empty() {
            self.tell(&states);
        }
        self.status = status;
    }

    /// The agent ends.
    pub fn stopping(&mut self, status: &str) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }

    fn tell(&mut self, states: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(states) {
            self.cannot_tell(&error);
        }
    }

    fn cannot_tell(&mut self, error: &std::io::Error) {
        if !std::mem::replace(&mut self.is_deaf, true) {
            warn!(%error, "cannot tell the service manager anything");
        }
    }
}
