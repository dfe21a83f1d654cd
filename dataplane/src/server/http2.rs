//! The streams of an HTTP/2 connection, each a task that ends when its peer takes nothing.
//!
//! The socket of such a connection goes on taking bytes (answers to PING, other streams) while the
//! window of one stream is shut. hyper hands each stream to its executor as a future. To drop that
//! resets the stream (`CANCEL`) and frees what it holds; the connection lives on.

use std::{pin::pin, sync::Arc, task::Poll};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::writing::{Answer, Overdue, Response, Responses};

tokio::task_local! {
    /// The response that a stream's task makes.
    static CURRENT: Answer;
}

/// hyper's executor for one connection.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    responses: Arc<Responses>,
    tracker: TaskTracker,
    /// The connection is gone.
    end: CancellationToken,
}

impl Streams {
    pub(super) const fn new(
        responses: Arc<Responses>,
        tracker: TaskTracker,
        end: CancellationToken,
    ) -> Self {
        Self { responses, tracker, end }
    }

    /// The response of the stream whose task this is; `None` outside of such a task.
    pub(super) fn current() -> Option<Answer> {
        CURRENT.try_with(Answer::clone).ok()
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let response = self.responses.begin();
        let task = CURRENT.scope(Answer::of(&response), until_stalled(stream, response));
        let end = self.end.clone();
        self.tracker.spawn(async move {
            let _ = end.run_until_cancelled(task).await;
        });
    }
}

/// Drives a stream to its end, or until its body has stood still for too long.
async fn until_stalled(stream: impl Future, response: Response) {
    let (mut stream, mut overdue) = (pin!(stream), Overdue::default());
    let writing = response.writing();
    std::future::poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let deadline = |since| writing.deadline(since);
        overdue.poll(writing.stalled_since(), deadline, cx).map(|()| writing.give_up())
    })
    .await;
}
