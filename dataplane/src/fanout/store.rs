//! Questions to the store: a thread must not wait for answers, so tasks of the runtime do.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::inbox::{Inbox, Message};
use crate::{
    frame::Dialect,
    limits,
    subscriber::{Answer, Question},
};

/// A place of a log whose subscribers share one question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Address of the log, which the question keeps alive.
    log: usize,
    life: u64,
    dialect: Dialect,
    block: u64,
}

impl Place {
    /// The place of a question that others may have too.
    pub(super) fn of(question: &Question) -> Option<Self> {
        match question {
            Question::Segment { log, life, position, dialect } => Some(Self {
                log: Arc::as_ptr(log) as usize,
                life: *life,
                dialect: *dialect,
                block: position / limits::SEGMENT_SEQUENCES,
            }),
            Question::Place { .. } => None,
        }
    }
}

/// Where questions are asked. There are never more on their way than subscribers, and their reads
/// of the store are bounded by the log.
#[derive(Debug, Clone)]
pub(super) struct Store {
    pub(super) runtime: Handle,
    /// Owns the tasks.
    pub(super) tasks: TaskTracker,
    /// Ends them.
    pub(super) abort: CancellationToken,
}

impl Store {
    /// Asks, and sends the answer to `inbox` as `message` makes it.
    pub(super) fn ask(
        &self,
        question: Question,
        message: impl FnOnce(Answer) -> Message + Send + 'static,
        inbox: &Arc<Inbox>,
    ) {
        let (abort, inbox) = (self.abort.clone(), Arc::clone(inbox));
        let asking = async move {
            if let Some(answer) = abort.run_until_cancelled(question.ask()).await {
                inbox.send(message(answer));
            }
        };
        self.tasks.spawn_on(asking, &self.runtime);
    }
}
