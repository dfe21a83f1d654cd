//! What a fan-out thread is told by others.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Wake,
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    registry::Writer,
    subscriber::{Answer, SegmentKey, Subscriber},
};

/// A subscriber whose socket has left hyper.
#[derive(Debug)]
pub(super) struct Arrival {
    /// The socket, not blocking.
    pub(super) socket: std::net::TcpStream,
    /// The response head, not written yet.
    pub(super) head: Bytes,
    /// Who it is.
    pub(super) subscriber: Subscriber,
}

/// Whom an answer of the store is for. A key is used again; the ticket is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) key: usize,
    pub(super) ticket: u64,
}

/// One thing that a thread is told.
#[derive(Debug)]
pub(super) enum Message {
    /// A new subscriber.
    Arrived(Box<Arrival>),
    /// A stream is to end; the wish is in its entry.
    Close(usize),
    /// The store's answer to one.
    Answered(Address, Answer),
    /// The store's answer to all streams that wait for this segment.
    Read(SegmentKey, Answer),
    /// The thread is to end.
    Stop,
}

/// The way into a fan-out thread. Its queue is bounded by what is registered: a subscriber arrives
/// once, is asked to close once, and has one question on its way at most.
#[derive(Debug)]
pub(super) struct Inbox {
    messages: Mutex<Vec<Message>>,
    waker: mio::Waker,
    /// Subscribers that the thread has or is about to have.
    load: AtomicUsize,
}

impl Inbox {
    pub(super) fn new(waker: mio::Waker) -> Self {
        Self { messages: Mutex::default(), waker, load: AtomicUsize::new(0) }
    }

    /// Tells the thread. Only the first message that waits has to wake it.
    pub(super) fn send(&self, message: Message) {
        let first = {
            let mut messages = self.messages.lock();
            messages.push(message);
            messages.len() == 1
        };
        if first {
            self.rouse();
        }
    }

    /// Takes what waits; `into` must be empty.
    pub(super) fn take(&self, into: &mut Vec<Message>) {
        debug_assert!(into.is_empty(), "all messages were handled");
        std::mem::swap(&mut *self.messages.lock(), into);
    }

    /// Makes the thread look around.
    pub(super) fn rouse(&self) {
        if let Err(error) = self.waker.wake() {
            log_failure(&error);
        }
    }

    /// How many subscribers the thread has.
    pub(super) fn load(&self) -> usize {
        self.load.load(Relaxed)
    }

    pub(super) fn came(&self) {
        self.load.fetch_add(1, Relaxed);
    }

    pub(super) fn left(&self) {
        self.load.fetch_sub(1, Relaxed);
    }
}

fn log_failure(error: &io::Error) {
    // Its counter is full at 2^64 - 2 wake-ups that nobody saw: it is about to wake.
    tracing::debug!(%error, "a fan-out thread could not be woken");
}

impl Writer for Inbox {
    fn close_wanted(&self, key: u64) {
        self.send(Message::Close(usize::try_from(key).unwrap_or(usize::MAX)));
    }
}

/// The head of a log has changed.
impl Wake for Inbox {
    fn wake(self: Arc<Self>) {
        self.rouse();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rouse();
    }
}
