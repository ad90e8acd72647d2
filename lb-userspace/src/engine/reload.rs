//! Another configuration: all of it, or nothing and the reason.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::{JoinHandle, spawn_blocking},
    time::sleep_until,
};
use tracing::{error, info, warn};

use super::{Engine, peers::read_secrets, report::unix_seconds, start::settings};
use crate::{
    config::{
        ConfigError,
        watch::{self, Reading, Settling, Sign, Version, Watch},
    },
    failure, memory,
    model::Snapshot,
    status::Cause,
};

/// Services of which the reading takes memory that is worth giving back.
const SERVICES_MANY: usize = 1000;

/// The configuration file, followed.
pub(super) struct Source {
    path: PathBuf,
    watch: Option<Watch>,
    /// The watch, once there is a runtime.
    signs: Option<AsyncFd<Watch>>,
    settling: Settling,
    /// In a thread of its own: a large file takes as long to parse as the engine should not be away.
    reading: Option<JoinHandle<Reading>>,
    /// What was read last.
    version: Version,
    /// What was seen last.
    seen: Version,
}

impl Source {
    /// Reads the file for the first time.
    pub(super) fn open(path: &Path) -> Result<(Self, Snapshot), ConfigError> {
        // Before the file is read: whoever changes it meanwhile is heard.
        let watch = Watch::open(path).inspect_err(|error| {
            warn!(%error, "the configuration file cannot be watched, and is looked at each second; see sysctl fs.inotify");
        });
        let Reading { version, snapshot, .. } = watch::read_at_start(path);
        let source = Self {
            path: path.to_path_buf(),
            watch: watch.ok(),
            signs: None,
            settling: Settling::default(),
            reading: None,
            version,
            seen: version,
        };
        Ok((source, snapshot?))
    }

    /// Has the file read now.
    pub(super) fn ask(&mut self) {
        self.settling.hear(Sign::Asked, Instant::now());
    }

    /// Looks whether the file is another one, where the file system tells nothing of it.
    pub(super) fn look(&mut self) {
        let version = watch::version(&self.path);
        if version != self.version && version != self.seen && self.reading.is_none() {
            self.settling.hear(Sign::Seen, Instant::now());
        }
        self.seen = version;
    }

    /// Waits for the next configuration. May be dropped at any time without losing one.
    pub(super) async fn next(&mut self) -> Result<Snapshot, ConfigError> {
        loop {
            if let Some(reading) = &mut self.reading {
                let done = reading.await.expect("reading a configuration does not panic");
                self.reading = None;
                (self.version, self.seen) = (done.version, done.version);
                if self.settling.ends(done.outcome, Instant::now()) {
                    return done.snapshot;
                }
            }
            if self.settling.begins(Instant::now()) {
                let path = self.path.clone();
                self.reading = Some(spawn_blocking(move || watch::read(&path)));
                continue;
            }
            self.listen().await;
        }
    }

    /// Waits for signs or for the time to read.
    async fn listen(&mut self) {
        if let Some(watch) = self.watch.take() {
            // SAFETY: the watch keeps its descriptor open and unchanged for as long as it lives.
            let signs = unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) };
            self.signs =
                signs.inspect_err(|error| warn!(%error, "the configuration file is looked at each second")).ok();
        }
        let due = self.settling.poll_timeout();
        let rest = async {
            match due {
                Some(due) => sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        let Some(signs) = &mut self.signs else { return rest.await };
        tokio::select! {
            () = rest => {}
            ready = signs.readable_mut() => {
                let heard = ready.and_then(|mut ready| {
                    let drained = ready.get_inner_mut().drain()?;
                    if !drained.more {
                        ready.clear_ready();
                    }
                    Ok(drained.signs)
                });
                match heard {
                    Ok(heard) => heard.into_iter().for_each(|sign| self.settling.hear(sign, Instant::now())),
                    Err(error) => {
                        warn!(%error, "the configuration file cannot be watched any more, and is looked at each second");
                        self.signs = None;
                        self.settling.hear(Sign::Replaced, Instant::now());
                    }
                }
            }
        }
    }
}

/// Why one configuration cannot follow another while the agent runs.
pub(super) fn check_fixed(now: &Snapshot, wanted: &Snapshot) -> Result<()> {
    if wanted.capacities != now.capacities {
        bail!("capacities are fixed while the agent runs; restart it to change them");
    }
    if wanted.pin_directory != now.pin_directory || wanted.run_directory != now.run_directory {
        bail!("pinDirectory and runDirectory are fixed while the agent runs; restart it to change them");
    }
    if wanted.observation != now.observation {
        bail!("observation is fixed while the agent runs; restart it to change it");
    }
    Ok(())
}

impl Engine {
    /// Takes a configuration over, or keeps the one before and says why.
    pub(super) fn reload(&mut self, snapshot: Result<Snapshot, ConfigError>) {
        match snapshot.map_err(Into::into).and_then(|wanted| self.try_reload(wanted)) {
            Ok(applied_in) => {
                self.meter.configured(unix_seconds(), false);
                self.refusal = None;
                let microseconds = applied_in.as_micros() as u64;
                let services = self.snapshot.services.len();
                info!(services, microseconds, "configuration applied");
                if services > SERVICES_MANY {
                    spawn_blocking(memory::release);
                }
            }
            Err(error) => {
                let text = failure::describe(&error);
                error!(error = text, "configuration refused; the one before stays in force");
                self.meter.refused();
                self.refusal = Some(text);
            }
        }
    }

    /// Returns how long it took from the parsed configuration on.
    fn try_reload(&mut self, wanted: Snapshot) -> Result<Duration> {
        let began = Instant::now();
        check_fixed(&self.snapshot, &wanted)?;
        self.announcing.check(&wanted.announce)?;
        let secrets = read_secrets(&wanted.announce)?;
        let found = self.approve_uplinks(&wanted)?;
        self.meter.change_seen(Cause::Configuration, self.started.elapsed());
        let before = self.replace_snapshot(wanted);
        self.peers.set_secrets(secrets);
        if let Err(error) = self.take_over() {
            self.replace_snapshot(before);
            return Err(match self.take_over() {
                Ok(()) => error,
                Err(return_error) => {
                    error.context(format!("cannot return to the configuration before: {return_error:#}"))
                }
            });
        }
        self.note_approval(found);
        Ok(began.elapsed())
    }

    pub(super) fn take_over(&mut self) -> Result<()> {
        self.check_health();
        let new = settings(&self.snapshot, self.clock.hertz);
        self.tables.change_settings(|settings| {
            (settings.node_v4, settings.node_v6) = (new.node_v4, new.node_v6);
            settings.limits = new.limits;
        })?;
        self.attach_uplinks()?;
        self.reconcile()
    }
}

#[cfg(test)]
mod tests;
