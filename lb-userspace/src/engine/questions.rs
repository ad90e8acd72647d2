//! What clients of the socket ask.

use std::io;

use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use super::{Engine, reload::check_fixed};
use crate::{
    config,
    health::targets::without_failed,
    model::Snapshot,
    plan::{self, diff::Diff},
    status::{Answer, Question, Status},
};

/// A question to the engine, and where the answer goes.
pub(super) enum Asked {
    Status(oneshot::Sender<Status>),
    Diff(Box<Snapshot>, oneshot::Sender<Diff>),
    Drain(oneshot::Sender<io::Result<()>>),
    Undrain(oneshot::Sender<io::Result<()>>),
}

/// Has the engine answer. A configuration is read here, so that the engine is not kept from its work.
pub(super) async fn answer(engine: mpsc::Sender<Asked>, question: Question) -> Answer {
    let gone = || Answer::Declined { declined: "the agent is stopping".into() };
    match question {
        Question::Status => {
            let (reply, status) = oneshot::channel();
            let _ = engine.send(Asked::Status(reply)).await;
            Answer::Status(Box::new(status.await.unwrap_or_default()))
        }
        Question::Diff { name, text } => {
            let Ok(read) = spawn_blocking(move || config::parse(&name, &text)).await else { return gone() };
            let snapshot = match read {
                Ok(snapshot) => snapshot,
                Err(refusal) => return Answer::Declined { declined: refusal.to_string() },
            };
            let (reply, diff) = oneshot::channel();
            let _ = engine.send(Asked::Diff(Box::new(snapshot), reply)).await;
            diff.await.map_or_else(|_| gone(), |diff| Answer::Diff { diff: Box::new(diff) })
        }
        Question::Drain => change(engine, Asked::Drain, "draining").await.unwrap_or_else(gone),
        Question::Undrain => change(engine, Asked::Undrain, "announcing again").await.unwrap_or_else(gone),
        Question::Unknown(question) => Answer::Declined {
            declined: format!(
                "the agent, of version {}, does not know the question `{question}`; use a `sluice` of its version",
                env!("CARGO_PKG_VERSION")
            ),
        },
    }
}

/// Has the engine do something; `None` where it is gone.
async fn change(
    engine: mpsc::Sender<Asked>,
    asked: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Asked,
    words: &str,
) -> Option<Answer> {
    let (reply, done) = oneshot::channel();
    let _ = engine.send(asked(reply)).await;
    Some(match done.await.ok()? {
        Ok(()) => Answer::Done { done: words.to_owned() },
        Err(error) => Answer::Declined { declined: error.to_string() },
    })
}

impl Engine {
    /// Answers, unless whoever asked has left.
    pub(super) fn answer(&mut self, asked: Asked) {
        match asked {
            Asked::Status(reply) => drop(reply.send(self.status())),
            Asked::Diff(wanted, reply) => drop(reply.send(self.diff(&wanted))),
            Asked::Drain(reply) => drop(reply.send(self.drain())),
            Asked::Undrain(reply) => drop(reply.send(self.undrain())),
        }
    }

    /// What a reload would change. Nothing is written, attached or tested.
    fn diff(&mut self, wanted: &Snapshot) -> Diff {
        let places = self.known_places();
        let mut planner = self.planner.clone();
        planner.set_opaque(self.opaque_endpoints());
        let failed = self.health.failed();
        let (now, planned) = (without_failed(&self.snapshot, failed), without_failed(wanted, failed));
        let mut diff = plan::diff::diff(&planner, &now, &planned, &places, self.started.elapsed());
        let refusal = check_fixed(&self.snapshot, wanted).and_then(|()| self.approve_uplinks(wanted).map(drop)).err();
        diff.refused = refusal.map(|refusal| format!("{refusal:#}")).or(diff.refused);
        let mut unknown: Vec<String> = wanted
            .services
            .iter()
            .flat_map(|service| service.backends.iter().map(|backend| (backend.address, service.rung)))
            .filter(|pod| !self.findings.contains_key(pod))
            .map(|(address, _)| {
                format!("{address}: its interface is looked for, and its rung tested, when it is applied")
            })
            .collect();
        unknown.sort();
        unknown.dedup();
        diff.notes.extend(unknown);
        diff
    }
}
