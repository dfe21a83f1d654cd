//! The fan-out: threads that write streams of plain HTTP/1.1 to their sockets.
//!
//! ```text
//! hyper ─ response head is ready ─▶ Handoff ─ socket, head, subscriber ─▶ Inbox ─▶ Shard ─ write ─▶ sockets
//!                                                    log's head has changed ──▲  └─ questions ─▶ runtime ─ answers ─▶ Inbox
//! ```
//! A thread has no task, queue or timer of a stream's own: it has one `epoll`, one heap of moments,
//! and for each channel one list of the streams that wait for its head. When the head moves, the
//! new frames are put into one chunk, and that is written to each of them. HTTP/2 and HTTP/1.0 stay
//! with hyper, over the same [`Subscriber`]; `--fanout-threads 0` leaves everything there.

mod batch;
mod chunk;
mod group;
mod inbox;
mod questions;
mod queue;
mod shard;
mod socket;
mod stream;
mod timers;
mod waiters;

use std::{io, sync::Arc, thread::JoinHandle};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    inbox::{Arrival, Inbox, Message},
    questions::Questions,
    shard::{INBOX, Shard},
};
use crate::{pulse::Pulse, subscriber::Subscriber};

/// The fan-out threads of a pod.
#[derive(Debug)]
pub(crate) struct FanOut {
    inboxes: Vec<Arc<Inbox>>,
    pulses: Vec<Pulse>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Cancels `failed` when its thread ends otherwise than by [`Message::Stop`].
struct Watch {
    /// The thread's number, as in its name.
    thread: usize,
    failed: CancellationToken,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(
                thread = self.thread,
                "a fan-out thread has died: draining, so that the pod is started anew"
            );
            self.failed.cancel();
        }
    }
}

impl FanOut {
    /// Starts `threads` threads. Questions to the store become tasks of `tasks` until `abort`;
    /// `failed` is cancelled when a thread dies.
    ///
    /// # Errors
    /// The operating system's, when it gives no thread or no `epoll`.
    pub(crate) fn start(
        threads: usize,
        tasks: &TaskTracker,
        abort: &CancellationToken,
        failed: &CancellationToken,
    ) -> io::Result<Self> {
        let questions =
            Questions { runtime: Handle::current(), tasks: tasks.clone(), abort: abort.clone() };
        let fan_out = Self { inboxes: Vec::new(), pulses: Vec::new(), threads: Mutex::default() };
        (0..threads).try_fold(fan_out, |mut fan_out, number| {
            let poll = mio::Poll::new()?;
            let inbox = Arc::new(Inbox::new(number, mio::Waker::new(poll.registry(), INBOX)?));
            let shard = Shard::new(poll, Arc::clone(&inbox), questions.clone());
            let pulse = shard.pulse();
            let watch = Watch { thread: number, failed: failed.clone() };
            let thread = std::thread::Builder::new().name(format!("fanout-{number}")).spawn(move || {
                if let Err(error) = shard.run() {
                    tracing::error!(
                        thread = watch.thread,
                        %error,
                        "a fan-out thread cannot go on: draining, so that the pod is started anew"
                    );
                    watch.failed.cancel();
                }
            })?;
            fan_out.inboxes.push(inbox);
            fan_out.pulses.push(pulse);
            fan_out.threads.get_mut().push(thread);
            Ok(fan_out)
        })
    }

    /// The signs of life of its threads, in the order of their numbers.
    pub(crate) fn pulses(&self) -> &[Pulse] {
        &self.pulses
    }

    /// Gives a stream to the thread that has the fewest. `head` is the response head, which is not
    /// written yet; the body follows in chunks.
    pub(crate) fn take(&self, socket: std::net::TcpStream, head: Bytes, subscriber: Subscriber) {
        if let Some(inbox) = self.inboxes.iter().min_by_key(|inbox| inbox.load()) {
            inbox.stream_added();
            inbox.send(Message::Arrived(Box::new(Arrival { socket, head, subscriber })));
        }
    }

    /// Ends the threads and the streams that they still have. Blocks until the threads have ended.
    pub(crate) fn stop(&self) {
        for inbox in &self.inboxes {
            inbox.send(Message::Stop);
        }
        for thread in self.threads.lock().drain(..) {
            // A thread that has died has logged it.
            let _ = thread.join();
        }
    }
}

impl Drop for FanOut {
    fn drop(&mut self) {
        for inbox in &self.inboxes {
            inbox.send(Message::Stop);
        }
    }
}
