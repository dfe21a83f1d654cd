//! Messages to a fan-out thread.

use std::{
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
    pub(super) subscriber: Subscriber,
}

/// The stream that an answer of the store is for. A key is used again; a generation is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) key: usize,
    pub(super) generation: u64,
}

#[derive(Debug)]
pub(super) enum Message {
    /// A new subscriber.
    Arrived(Box<Arrival>),
    /// The stream with this key is to end; its entry says why.
    Close(usize),
    /// The store's answer to one stream.
    Answered(Address, Answer),
    /// The store's answer to all streams that wait for this segment.
    SegmentRead(SegmentKey, Answer),
    /// The thread is to end.
    Stop,
}

/// The way into a fan-out thread. Its queue is bounded by what is registered: a subscriber arrives
/// once, is asked to close once, and has one question on its way at most.
#[derive(Debug)]
pub(super) struct Inbox {
    /// The thread's number, as in its name.
    thread: usize,
    messages: Mutex<Vec<Message>>,
    waker: mio::Waker,
    load: AtomicUsize,
}

impl Inbox {
    pub(super) fn new(thread: usize, waker: mio::Waker) -> Self {
        Self { thread, messages: Mutex::default(), waker, load: AtomicUsize::new(0) }
    }

    /// Sends a message. Only the first one that waits has to wake the thread.
    pub(super) fn send(&self, message: Message) {
        let first = {
            let mut messages = self.messages.lock();
            messages.push(message);
            messages.len() == 1
        };
        if first {
            self.wake_thread();
        }
    }

    /// Takes what waits; `into` must be empty.
    pub(super) fn take(&self, into: &mut Vec<Message>) {
        debug_assert!(into.is_empty(), "all messages were handled");
        std::mem::swap(&mut *self.messages.lock(), into);
    }

    /// Wakes the thread: it takes its messages and reads the heads.
    pub(super) fn wake_thread(&self) {
        if let Err(error) = self.waker.wake() {
            // The counter behind the waker is full at 2^64 - 2 wake-ups that the thread has not
            // seen: it is about to see them.
            tracing::debug!(thread = self.thread, %error, "a fan-out thread could not be woken");
        }
    }

    /// How many subscribers the thread has or is about to have.
    pub(super) fn load(&self) -> usize {
        self.load.load(Relaxed)
    }

    pub(super) fn stream_added(&self) {
        self.load.fetch_add(1, Relaxed);
    }

    pub(super) fn stream_removed(&self) {
        self.load.fetch_sub(1, Relaxed);
    }
}

impl Writer for Inbox {
    fn close_wanted(&self, key: u64) {
        self.send(Message::Close(usize::try_from(key).unwrap_or(usize::MAX)));
    }
}

/// Logs wake the thread when their heads change.
impl Wake for Inbox {
    fn wake(self: Arc<Self>) {
        self.wake_thread();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_thread();
    }
}
