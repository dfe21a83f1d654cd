//! Messages to a fan-out thread.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{AcqRel, Relaxed},
        },
    },
    task::Wake,
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    limits,
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
    /// Keys of the groups whose heads have moved; each once, so that the groups bound it.
    moved: Mutex<Vec<usize>>,
    waker: mio::Waker,
    load: AtomicUsize,
}

impl Inbox {
    pub(super) fn new(thread: usize, waker: mio::Waker) -> Self {
        Self {
            thread,
            messages: Mutex::default(),
            moved: Mutex::default(),
            waker,
            load: AtomicUsize::new(0),
        }
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
        if let Some(capacity) = limits::spare(0, into.capacity()) {
            into.shrink_to(capacity);
        }
        std::mem::swap(&mut *self.messages.lock(), into);
    }

    /// Takes the keys of the groups whose heads have moved; `into` must be empty.
    pub(super) fn take_moved(&self, into: &mut Vec<usize>) {
        debug_assert!(into.is_empty(), "all were noted");
        std::mem::swap(&mut *self.moved.lock(), into);
    }

    /// Wakes the thread: it takes its messages, and the groups whose heads have moved.
    fn wake_thread(&self) {
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

/// Tells a thread that the head of one channel's log has moved. Until the thread has taken note, it
/// is told once: an event costs it the groups that have something to do, not all that it has.
#[derive(Debug)]
pub(super) struct HeadWatch {
    inbox: Arc<Inbox>,
    group: usize,
    told: AtomicBool,
}

impl HeadWatch {
    /// For the group with the key `group`.
    pub(super) fn new(inbox: &Arc<Inbox>, group: usize) -> Arc<Self> {
        Arc::new(Self { inbox: Arc::clone(inbox), group, told: AtomicBool::new(false) })
    }

    /// Notes that the thread will read the head: what moves it from now on is told anew.
    pub(super) fn forget(&self) {
        // Both ways: the head is read after this, and what set the flag has moved the head before.
        self.told.swap(false, AcqRel);
    }
}

/// Logs wake it when their heads change.
impl Wake for HeadWatch {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.told.swap(true, AcqRel) {
            self.inbox.moved.lock().push(self.group);
            self.inbox.wake_thread();
        }
    }
}
