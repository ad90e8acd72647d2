//! The engine as the server sees it: it answers within a bound, or not.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::timeout,
};

use super::{Health, Question};
use crate::status::Status;

/// How long the engine may take to say how it is. Its longest work without a pause, a round of self-tests, takes less.
pub(super) const HEALTH_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long it may take to tell everything.
const STATUS_WAIT_MAX: Duration = Duration::from_secs(10);
/// How old a status may be: who asks without a pause does not keep the engine from its work.
const STATUS_AGE_MAX: Duration = Duration::from_secs(1);

/// Asks the engine.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    questions: mpsc::Sender<Question>,
    /// Held while the engine is asked: all who wait get the same answer.
    last: Arc<Mutex<Option<Known>>>,
}

/// A status, and when it was asked for.
type Known = (Instant, Arc<Status>);

impl Engine {
    pub(super) fn new(questions: mpsc::Sender<Question>) -> Self {
        Self { questions, last: Arc::default() }
    }

    /// None where it does not answer.
    pub(super) async fn health(&self) -> Option<Health> {
        self.ask(Question::Health, HEALTH_WAIT_MAX).await
    }

    /// Not older than a second; none where the engine does not answer.
    pub(super) async fn status(&self) -> Option<Arc<Status>> {
        let mut last = self.last.lock().await;
        if let Some((asked, status)) = &*last
            && asked.elapsed() < STATUS_AGE_MAX
        {
            return Some(status.clone());
        }
        let asked = Instant::now();
        let status = Arc::new(self.ask(Question::Status, STATUS_WAIT_MAX).await?);
        *last = Some((asked, status.clone()));
        Some(status)
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question, wait_max: Duration) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.questions.send(question(reply)).await.ok()?;
            answer.await.ok()
        };
        timeout(wait_max, asked).await.ok().flatten()
    }
}
