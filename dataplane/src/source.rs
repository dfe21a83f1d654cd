//! Where events come from: the one seam between the log and a store.
//!
//! Two implementations, [`jetstream`] and [`memory`]; both pass the same conformance suite.

pub mod jetstream;
pub mod memory;
pub mod proof;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use sluice_channel::{Epoch, Event};

/// What the store says of a stream, asked of its leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    /// The stream's life.
    pub epoch: Epoch,
    /// Lowest sequence still kept; `last + 1` when the stream is empty.
    pub first: u64,
    /// Highest sequence ever given out; 0 before the first.
    pub last: u64,
    /// Which leader says so, and whether others still follow it.
    pub lead: Lead,
}

/// The leader behind an answer. A leader that is cut off from its cluster goes on answering for a
/// minute; what tells it from a real one is when the replicas were last heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lead {
    /// Stands for the leader's name and the connection that its answer came over.
    pub id: u64,
    /// How long ago so many replicas were heard by it that they are, with itself, a majority. Zero
    /// where one replica is all there is; `Duration::MAX` where no leader is known.
    pub unheard: Duration,
}

impl Lead {
    /// The leader `name` of a stream whose other replicas it heard so long ago, over the
    /// connection of this number.
    #[must_use]
    pub fn new(name: Option<&str>, connection: u64, mut heard: Vec<Duration>) -> Self {
        let mut hasher = DefaultHasher::new();
        (name, connection).hash(&mut hasher);
        heard.sort_unstable();
        // Of R replicas, ⌊R/2⌋ beside the leader are a majority with it.
        let unheard = match (name, heard.len().div_ceil(2)) {
            (None, _) => Duration::MAX,
            (Some(_), 0) => Duration::ZERO,
            (Some(_), needed) => heard[needed - 1],
        };
        Self { id: hasher.finish(), unheard }
    }
}

/// One event as the tail delivers it.
#[derive(Debug)]
pub struct Delivery {
    /// Rises by one with each delivery of one tail, starting at 1: a jump means a lost delivery. A
    /// jump of the *stream* sequence alone means that messages are gone from the store.
    pub delivery_sequence: u64,
    /// The event.
    pub event: Event,
}

/// An answer to a history read.
#[derive(Debug, Default)]
pub struct Batch {
    /// Events in rising order.
    pub events: Vec<Event>,
    /// Whether the replica that answered had more.
    pub more: bool,
    /// The stream's epoch, where the way that they came proves it.
    pub epoch: Option<Epoch>,
}

/// How much to read at most.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimit {
    /// Events, at least 1.
    pub events: u64,
    /// Payload and header bytes; one event may overshoot it.
    pub bytes: usize,
}

/// An event to append.
#[derive(Debug, Clone)]
pub struct Append {
    /// Full subject.
    pub subject: String,
    /// SSE event name.
    pub name: Option<String>,
    /// `Content-Type` to keep with it.
    pub content_type: Option<String>,
    /// Deduplication key within the stream's duplicate window.
    pub idempotency_key: Option<String>,
    /// The append is refused unless the last sequence of this subject is this one.
    pub expected_last: Option<u64>,
    /// Payload.
    pub payload: Bytes,
}

/// An event of the store as it was published, to compare a repeat with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Full subject; U+FFFD stands for what is not UTF-8 in it.
    pub subject: String,
    /// SSE event name.
    pub name: Option<String>,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// Payload.
    pub payload: Bytes,
}

impl Published {
    /// Whether it is what `append` would store.
    #[must_use]
    pub fn is(&self, append: &Append) -> bool {
        let same = |stored: &Option<String>, given: &Option<String>| {
            // NATS does not keep blanks around the value of a header.
            stored.as_deref().map(str::trim) == given.as_deref().map(str::trim)
        };
        self.subject == append.subject
            && self.payload == append.payload
            && same(&self.name, &append.name)
            && same(&self.content_type, &append.content_type)
    }
}

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Sequence of the event, or of the first one with the same key.
    pub sequence: u64,
    /// The key was seen before; nothing was stored.
    pub duplicate: bool,
}

/// Why a store did not answer as asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No connection, no leader, or no answer in time. Worth trying again.
    #[error("the store does not answer: {0}")]
    Unreachable(String),
    /// The stream does not exist (yet). Worth trying again: the operator creates it.
    #[error("stream {0} does not exist; the operator creates it from the SseChannel")]
    NoStream(String),
    /// A tail ended and has to be set up again.
    #[error("the tail ended: {0}")]
    TailEnded(String),
    /// The store refused the request itself (permissions, limits).
    #[error("the store refused: {0}")]
    Refused(String),
    /// The message is larger than the stream takes.
    #[error("the message is larger than the stream takes")]
    TooLarge,
    /// The message with its headers is larger than the server takes, whatever the stream does.
    #[error("the message is larger than the {0} bytes that the server takes")]
    TooLargeForServer(usize),
    /// `expected_last` did not hold.
    #[error("the last sequence of the topic is not the expected one")]
    WrongLastSequence,
}

impl Error {
    /// What a client may read of it: names of streams and subjects, and the store's own words, are
    /// for the log.
    #[must_use]
    pub const fn told(&self) -> &'static str {
        match self {
            Self::Unreachable(_) | Self::TailEnded(_) => {
                "the store does not answer, or cannot prove what it says, at this moment"
            }
            Self::NoStream(_) => "the channel has no stream at this moment",
            Self::Refused(_) => "the store refused",
            Self::TooLarge | Self::TooLargeForServer(_) => "the message is too large",
            Self::WrongLastSequence => "the topic has moved on",
        }
    }
}

/// A live feed from a given sequence on.
pub trait Tail: Send {
    /// The next delivery. Cancel safe. Ends in an error only; then the tail is done with.
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, Error>>;
}

/// A store of one stream.
pub trait Source: Send + Sync + 'static {
    /// The stream's state by its leader.
    fn state(&self) -> BoxFuture<'_, Result<StreamState, Error>>;
    /// A feed of everything from `from` on, old and new.
    fn tail(&self, from: u64) -> BoxFuture<'_, Result<Box<dyn Tail>, Error>>;
    /// Events from `from` on. Any replica may answer, also one that lags: an early end is no proof
    /// of absence.
    fn read(&self, from: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Batch, Error>>;
    /// The first event at or after `from` by the leader's word; `None` = it knows of none, which
    /// is no proof while it may be cut off: see [`proof`].
    fn read_leader(&self, from: u64) -> BoxFuture<'_, Result<Option<Event>, Error>>;
    /// Sequence of the first event stored at or after `time_nanos` (Unix time); `None` = none yet.
    fn first_since(&self, time_nanos: i64) -> BoxFuture<'_, Result<Option<u64>, Error>>;
    /// Appends; resolves once the store has it for good.
    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended, Error>>;
    /// The event at `sequence` as it was published, by the leader's word; `None` = it is gone.
    fn published(&self, sequence: u64) -> BoxFuture<'_, Result<Option<Published>, Error>>;
    /// Whether there is a connection at this moment.
    fn connected(&self) -> bool;
}

/// Longest wait for one answer of the store.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
