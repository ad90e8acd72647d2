//! BFD sessions: which there are, how they stand, and that the thread behind them hears of this engine.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::{
    announce::{
        bfd::{
            driver::{self, Driver},
            machine::{Cause, Endpoint, Event, Heartbeat, Path, Settings},
            packet::State,
        },
        bgp::machine::Bfd,
    },
    privileges::{self, Helper},
};

/// Events that wait for the engine; each session has two at a time at most, and all may fail at once.
const EVENTS_MAX: usize = 4096;
/// From one try to open a session to the next.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// So often the engine says in the shortest detection time that it lives.
const BEATS: u32 = 4;
/// Slowest and fastest pace of saying so.
const BEAT_MAX: Duration = Duration::from_secs(1);
const BEAT_MIN: Duration = Duration::from_millis(5);
/// How much longer than a detection time the engine may be silent: an ordinary thread waits so long for its turn on a machine that has too much
/// to do, and a healthy node would look dead to its routers for that.
const TURN_MAX: Duration = Duration::from_millis(200);
/// How long the engine may be busy with one plan of everything and not be taken for hung.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// The sessions that are wanted, by peer, and the thread that has them.
pub(super) struct Watch {
    driver: Result<Driver, String>,
    heartbeat: Arc<Heartbeat>,
    events: mpsc::Receiver<(Path, Event)>,
    sessions: BTreeMap<String, Session>,
    /// Those that have said that they stop.
    silent: BTreeSet<Path>,
    is_stopping: bool,
    /// As it was with the last beat.
    is_data_plane_there: bool,
}

/// A session of a peer.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub endpoint: Endpoint,
    settings: Settings,
    /// Why it could not be opened, and when that is tried again.
    pub problem: Option<(String, Duration)>,
}

impl Watch {
    /// Without a thread yet.
    pub(super) fn new() -> Self {
        Self {
            driver: Err("the agent is still starting".to_owned()),
            heartbeat: Arc::new(Heartbeat::default()),
            events: mpsc::channel(EVENTS_MAX).1,
            sessions: BTreeMap::new(),
            silent: BTreeSet::new(),
            is_stopping: false,
            is_data_plane_there: false,
        }
    }

    /// Starts the thread, without sessions.
    pub(super) fn begin(&mut self, seed: u64) {
        let (tell, events) = mpsc::channel(EVENTS_MAX);
        // A full channel loses what the next report shows anyway.
        let sink = move |path: Path, event: Event| {
            let _ = tell.try_send((path, event));
        };
        let prepared = || {
            if let Err(error) = privileges::drop_all() {
                warn!(%error, "the thread of BFD keeps its capabilities");
            }
        };
        let driver = Driver::start(seed, Arc::clone(&self.heartbeat), Box::new(sink), prepared);
        self.driver = driver.map_err(|error| format!("the thread of BFD cannot be started: {error}"));
        self.events = events;
    }

    /// Waits for the next event. May be dropped at any time without losing one.
    pub(super) async fn event(&mut self) -> (Path, Event) {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Notes an event and says it in the log.
    pub(super) fn note(&mut self, path: Path, event: Event) {
        let peer = self.sessions.iter().find(|(_, session)| session.endpoint.path() == path);
        let Some((peer, _)) = peer else { return };
        match event {
            Event::Up => info!(peer, "BFD is up"),
            Event::Down { diagnostic, cause } => {
                let cause = match cause {
                    Cause::Silence { silent_for } => format!("nothing was heard for {silent_for:?}"),
                    Cause::Remote { diagnostic } => format!("the peer says: {diagnostic}"),
                    Cause::ForwardingPlane => "the data plane was reset".to_owned(),
                };
                warn!(peer, %diagnostic, cause, "BFD is down");
            }
            Event::RemoteAdminDown { diagnostic } => info!(peer, %diagnostic, "BFD was ended by the peer's operator"),
            Event::AdminDownSent => {
                info!(peer, "BFD was ended by our order: the peer is told AdminDown");
                self.silent.insert(path);
            }
            Event::Stopped => {
                self.silent.insert(path);
            }
        }
    }

    /// From here on these are watched and no others.
    pub(super) fn follow(
        &mut self,
        wanted: &BTreeMap<String, (Endpoint, Settings)>,
        now: Duration,
        helper: &mut Helper,
    ) {
        let Ok(driver) = &mut self.driver else { return };
        let is_same = |name: &String, session: &Session| {
            wanted.get(name).is_some_and(|(endpoint, _)| *endpoint == session.endpoint)
        };
        for (name, session) in self.sessions.extract_if(.., |name, session| !is_same(name, session)) {
            if session.problem.is_none()
                && let Err(error) = driver.close(session.endpoint.path())
            {
                warn!(peer = name, %error, "a BFD session cannot be closed");
            }
        }
        for (name, (endpoint, settings)) in wanted {
            match self.sessions.get_mut(name) {
                Some(session) if session.problem.is_none() => {
                    if session.settings != *settings
                        && let Err(error) = driver.set_settings(endpoint.path(), *settings)
                    {
                        warn!(peer = name, %error, "a BFD session keeps its settings");
                        continue;
                    }
                    session.settings = *settings;
                }
                Some(session) => {
                    session.settings = *settings;
                    if session.problem.as_ref().is_some_and(|(_, again)| now >= *again) {
                        session.problem = open(driver, name, *endpoint, *settings, self.is_stopping, now, helper);
                    }
                }
                None => {
                    let problem = open(driver, name, *endpoint, *settings, self.is_stopping, now, helper);
                    self.sessions.insert(name.clone(), Session { endpoint: *endpoint, settings: *settings, problem });
                }
            }
        }
    }

    /// What a peer's session is, where it is with this remote, or that is not known.
    pub(super) fn last(&self, peer: &str, remote: Option<IpAddr>) -> Option<(Endpoint, Settings)> {
        let session = self.sessions.get(peer)?;
        let is_same = remote.is_none_or(|remote| remote == session.endpoint.remote());
        is_same.then_some((session.endpoint, session.settings))
    }

    /// Everything as it stands; why not, where the thread does not say.
    pub(super) fn report(&self) -> Result<driver::Report, String> {
        self.driver.as_ref().map_err(Clone::clone)?.report().map_err(|error| error.to_string())
    }

    /// Whether any session is wanted.
    pub(super) fn is_busy(&self) -> bool {
        !self.sessions.is_empty()
    }

    /// By peer.
    pub(super) const fn sessions(&self) -> &BTreeMap<String, Session> {
        &self.sessions
    }

    /// What BGP is to know of each peer that is watched.
    pub(super) fn verdicts(&self, report: &driver::Report) -> BTreeMap<String, Bfd> {
        let verdict = |session: &Session| {
            let shown = report.sessions.iter().find(|shown| shown.endpoint == session.endpoint)?;
            let status = &shown.status;
            Some(match status.state {
                State::Up => Bfd::Up,
                // By our own order; says nothing about the path.
                State::AdminDown => Bfd::AdminDown,
                State::Down | State::Init => match status.remote {
                    Some(remote) if remote.state == State::AdminDown => Bfd::AdminDown,
                    Some(_) => Bfd::Down,
                    None => Bfd::SilentSince(status.silent_since),
                },
            })
        };
        self.sessions.iter().map(|(name, session)| (name.clone(), verdict(session).unwrap_or(Bfd::None))).collect()
    }

    /// Says that this engine lives, and whether the data plane is there.
    pub(super) fn beat(&mut self, now: Duration, is_data_plane_there: bool) {
        self.is_data_plane_there = is_data_plane_there;
        self.heartbeat.beat(now + TURN_MAX, is_data_plane_there);
    }

    /// Says the same as with the last beat, ahead of something that takes long.
    pub(super) fn beat_for_long(&self, now: Duration) {
        self.heartbeat.beat(now + BUSY_MAX, self.is_data_plane_there);
    }

    /// When it is to be said again; None where nobody listens.
    pub(super) fn beat_interval(&self) -> Option<Duration> {
        let detection = |session: &Session| {
            session.settings.required_min_rx().min(session.settings.desired_min_tx())
                * u32::from(session.settings.detect_mult().get())
        };
        let shortest = self.sessions.values().map(detection).min()?;
        Some((shortest / BEATS).clamp(BEAT_MIN, BEAT_MAX))
    }

    /// Says AdminDown in every session.
    pub(super) fn stop(&mut self) {
        self.is_stopping = true;
        self.silent.clear();
        if let Ok(driver) = &self.driver
            && let Err(error) = driver.stop_all()
        {
            warn!(%error, "BFD cannot be told to stop");
        }
    }

    /// Takes that back.
    pub(super) fn resume(&mut self) {
        self.is_stopping = false;
        if let Ok(driver) = &self.driver
            && let Err(error) = driver.resume_all()
        {
            warn!(%error, "BFD cannot be told to go on");
        }
    }

    /// Whether every session has said that it stops.
    pub(super) fn is_silent(&self) -> bool {
        let open = self.sessions.values().filter(|session| session.problem.is_none());
        self.driver.is_err() || open.into_iter().all(|session| self.silent.contains(&session.endpoint.path()))
    }
}

/// The problem, where there is one.
fn open(
    driver: &mut Driver,
    peer: &str,
    endpoint: Endpoint,
    settings: Settings,
    is_stopping: bool,
    now: Duration,
    helper: &mut Helper,
) -> Option<(String, Duration)> {
    let opened = driver.open(endpoint, settings);
    let opened = opened.and_then(|()| if is_stopping { driver.stop(endpoint.path()) } else { Ok(()) });
    let mut error = opened.err()?;
    if let driver::Error::PortTaken { sockets, holder: holder @ None, .. } = &mut error {
        // This process may not look into those with more privileges.
        *holder = helper.holder(sockets).ok().flatten();
    }
    let error = error.to_string();
    warn!(peer, error, "BFD does not watch this peer; tried again");
    Some((error, now + RETRY_INTERVAL))
}
