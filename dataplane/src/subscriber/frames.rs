//! A subscriber as a sequence of ready frames, for a body that hyper writes: HTTP/2, HTTP/1.0, and everything where
//! there are no fan-out threads.

use std::future::Future;

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};

use super::{Step, Subscriber, output::join};
use crate::{log::Head, registry::Entry};

/// Drives a subscriber.
#[derive(Debug)]
pub struct Frames {
    subscriber: Subscriber,
    head: watch::Receiver<Head>,
}

/// Waits for `work`, the wish to close, or `deadline`, in this order when several are due. `None`: not for the work.
async fn wait<T>(entry: &Entry, deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    let time = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = entry.close_wanted() => None,
        done = work => Some(done),
        () = time => None,
    }
}

impl Frames {
    /// The frames of `subscriber`.
    #[must_use]
    pub fn new(subscriber: Subscriber) -> Self {
        let head = subscriber.entry().channel().log().head();
        Self { subscriber, head }
    }

    /// The next bytes to write, whole frames; `None` at the end of the stream. Waits no longer than the
    /// heartbeat interval plus one answer of the store.
    pub async fn next(&mut self) -> Option<Bytes> {
        let mut step = None;
        loop {
            let now = Instant::now();
            let head = *self.head.borrow_and_update();
            match step.take().unwrap_or_else(|| self.subscriber.step(head, now)) {
                Step::Write(parts) => return Some(join(parts)),
                Step::Wait(until) => {
                    let _ = wait(self.subscriber.entry(), Some(until), self.head.changed()).await;
                }
                // Bounded by the store's own time limit, so the heartbeat may wait for it.
                Step::Ask(question) => match wait(self.subscriber.entry(), None, question.ask()).await {
                    Some(answer) => step = Some(self.subscriber.answer(answer, Instant::now())),
                    None => self.subscriber.unanswered(),
                },
                Step::Yield => tokio::task::yield_now().await,
                Step::End => return None,
            }
        }
    }
}
