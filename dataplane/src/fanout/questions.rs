//! Questions to the store: a thread must not wait for answers, so tasks of the runtime do.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::inbox::{Inbox, Message};
use crate::subscriber::{Answer, Question};

/// Where questions are asked. There are never more on their way than subscribers, and their reads
/// of the store are bounded by the log.
#[derive(Debug, Clone)]
pub(super) struct Questions {
    pub(super) runtime: Handle,
    /// Owns the tasks.
    pub(super) tasks: TaskTracker,
    /// Ends them.
    pub(super) abort: CancellationToken,
}

impl Questions {
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
