//! How the agent is watched: metrics, health and state over HTTP, read-only.
//!
//! [`metrics`] and [`meter`] are pure. The rest runs on a thread of its own without privileges, so that a scrape of a hundred
//! thousand backends takes no time from the engine, and an engine that hangs is told of instead of hanging the answer. The
//! thread asks the engine by [`Question`]s and knows nothing else.

mod credentials;
mod engine;
mod http;
pub mod meter;
pub mod metrics;
mod server;
#[cfg(test)]
mod tests;

use std::{io, thread};

use tokio::sync::{mpsc, oneshot, watch};
use tracing::warn;

use crate::{
    model::Observation,
    privileges,
    status::{ObservationStatus, Status},
};

/// Questions that wait for the engine; who asks more waits too.
const QUESTIONS_MAX: usize = 8;

/// What the engine is asked.
#[derive(Debug)]
pub enum Question {
    /// How it is. Cheap, whatever the size of the node.
    Health(oneshot::Sender<Health>),
    /// Everything.
    Status(oneshot::Sender<Status>),
}

/// What the engine says of itself. That it says something shows that its task runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// What of the wanted state is not in force, and why.
    pub waiting: Option<String>,
}

/// The engine's end.
#[derive(Debug)]
pub struct Observer {
    /// What is asked.
    pub questions: mpsc::Receiver<Question>,
    /// Whether somebody can ask.
    pub state: watch::Receiver<ObservationStatus>,
}

/// The other ends of an [`Observer`], until somebody serves.
#[derive(Debug)]
pub struct Ends {
    ask: mpsc::Sender<Question>,
    tell: watch::Sender<ObservationStatus>,
}

/// What the engine and the thread that serves have in common. No thread yet.
pub fn prepare(observation: &Observation) -> (Observer, Ends) {
    let (ask, questions) = mpsc::channel(QUESTIONS_MAX);
    let (tell, state) = watch::channel(ObservationStatus { listen: observation.listen, error: None });
    (Observer { questions, state }, Ends { ask, tell })
}

impl Ends {
    /// Serves from now on until the process ends. An address or file that cannot be used is no reason not to balance: it is
    /// tried again each second, and told in the status.
    pub fn begin(self, observation: &Observation) -> io::Result<()> {
        let Some(address) = observation.listen else { return Ok(()) };
        let (observation, Self { ask, tell }) = (observation.clone(), self);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("observe".into()).spawn(move || {
            if let Err(error) = privileges::drop_all() {
                warn!(%error, "the thread that serves HTTP keeps its capabilities");
            }
            runtime.block_on(server::run(address, &observation, &engine::Engine::new(ask), &tell))
        })?;
        Ok(())
    }
}

/// [`prepare`] and [`Ends::begin`] in one.
#[cfg(test)]
pub(crate) fn start(observation: &Observation) -> io::Result<Observer> {
    let (observer, ends) = prepare(observation);
    ends.begin(observation)?;
    Ok(observer)
}
