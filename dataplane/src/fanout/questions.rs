//! Questions to the store: a thread must not wait for answers, so tasks of the runtime do.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::inbox::{Inbox, Message};
use crate::subscriber::{Answer, Question};

/// Asks the store. A stream has one question on its way at most, and the log bounds the reads.
#[derive(Debug, Clone)]
pub(super) struct Questions {
    pub(super) runtime: Handle,
    /// Owns the tasks.
    pub(super) tasks: TaskTracker,
    /// Ends the tasks.
    pub(super) abort: CancellationToken,
}

impl Questions {
    /// Asks, and sends the answer to `inbox` as the message that `message` makes of it.
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
