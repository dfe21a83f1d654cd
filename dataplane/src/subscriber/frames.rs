//! A subscriber as a sequence of ready frames, for a body that hyper writes: HTTP/2, HTTP/1.0, and
//! everything where there are no fan-out threads.

use std::future::Future;

use bytes::{Bytes, BytesMut};
use tokio::{sync::watch, time::Instant};

use super::{Subscriber, question::Question, step::Step};
use crate::{limits, log::Head, registry::Entry};

/// Drives a subscriber.
#[derive(Debug)]
pub(crate) struct Frames {
    subscriber: Subscriber,
    head: watch::Receiver<Head>,
    /// A question that has to wait until the events before it are written.
    question: Option<Question>,
}

/// Waits for the wish to close, `work`, or `deadline`, in this order when several are due. `None`:
/// it was not the work.
async fn wait<T>(
    entry: &Entry,
    deadline: Option<Instant>,
    work: impl Future<Output = T>,
) -> Option<T> {
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
    pub(crate) fn new(subscriber: Subscriber) -> Self {
        let head = subscriber.entry().channel().log().head();
        if let Some(at) = subscriber.clock.ends_at() {
            subscriber.entry().ends_at(at.into_std());
        }
        Self { subscriber, head, question: None }
    }

    /// The next bytes to write, whole frames; `None` at the end of the stream. Waits no longer than
    /// the heartbeat interval plus one answer of the store.
    ///
    /// They are a copy of about [`limits::SLICE_BYTES`] at most, and the segment that they are of
    /// is let go: hyper does not say whether the socket takes them.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        let mut step = self.question.take().map(Step::Ask);
        let mut out = BytesMut::new();
        loop {
            let now = Instant::now();
            let head = *self.head.borrow_and_update();
            match step.take().unwrap_or_else(|| self.subscriber.step(head, now)) {
                Step::Write(parts) => {
                    parts.iter().for_each(|part| out.extend_from_slice(part));
                    return Some(self.done(out));
                }
                Step::Events { parts, events, .. } => {
                    let length = parts.iter().map(Bytes::len).sum();
                    out.reserve(length);
                    parts.iter().for_each(|part| out.extend_from_slice(part));
                    self.subscriber.count_delivered(events, length);
                    if out.len() >= limits::SLICE_BYTES {
                        return Some(self.done(out));
                    }
                }
                Step::Ask(question) if !out.is_empty() => {
                    self.question = Some(question);
                    return Some(self.done(out));
                }
                // The next call of `step` says the same again.
                Step::Wait(_) | Step::Yield { .. } | Step::End if !out.is_empty() => {
                    return Some(self.done(out));
                }
                Step::Wait(until) => {
                    let _ = wait(self.subscriber.entry(), Some(until), self.head.changed()).await;
                }
                // Bounded by the store's own time limit, so the heartbeat may wait for it.
                Step::Ask(question) => {
                    match wait(self.subscriber.entry(), None, question.ask()).await {
                        Some(answer) => step = Some(self.subscriber.answer(answer, Instant::now())),
                        None => self.subscriber.forget_question(),
                    }
                }
                Step::Yield { .. } => tokio::task::yield_now().await,
                Step::End => return None,
            }
        }
    }

    fn done(&mut self, out: BytesMut) -> Bytes {
        self.subscriber.release_segment();
        out.freeze()
    }
}
