//! The tail: one pull consumer whose position is the reader's.
//!
//! Not the client library's streams of messages: its ordered consumer begins again at the head of
//! the stream when it is reset before its first message; and its pull stream takes a status that a
//! *publisher* wrote for the server's word, and asks for ever for a message that is larger than a
//! pull may be.

use std::time::Duration;

use futures::{FutureExt, StreamExt, future::BoxFuture};
use rand::Rng;
use serde_json::json;
use tokio::time::Instant;

use super::{JetStream, delivery};
use crate::source::{Delivery, Error, Tail};

/// Messages of one pull. The next one is asked for when half of it has come.
const PULL_MESSAGES: usize = 1_000;
/// Bytes of one pull: bounds the client's buffer, and leaves room for several of the largest
/// messages of an ordinary stream. A larger one is asked for alone.
const PULL_BYTES: usize = 8 * 1024 * 1024;
/// A pull ends after this long, and is asked for again.
const EXPIRES: Duration = Duration::from_secs(30);
/// The server says this often that it is still there.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Two missed heartbeats end the tail.
const SILENCE: Duration = Duration::from_secs(4);
/// Where the server says how pulls end: behind the inbox.
const MANY: &str = "many";
const ALONE: &str = "alone";

pub(super) struct JetStreamTail {
    source: JetStream,
    consumer: String,
    inbox: String,
    answers: async_nats::Subscriber,
    /// Messages and bytes that were asked for and have not come.
    due: (usize, usize),
    large: Large,
    /// When the server was heard last.
    heard: Instant,
}

/// Whether the next message is larger than a pull may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Large {
    No,
    /// It is, and has to be asked for.
    Found,
    Asked,
}

pub(super) async fn open(source: JetStream, from: u64) -> Result<JetStreamTail, Error> {
    let consumer = format!("{}_{:08x}", source.reader_name, rand::rng().random::<u32>());
    let inbox = source.client().new_inbox();
    let answers = source
        .client()
        .subscribe(format!("{inbox}.*"))
        .await
        .map_err(|e| Error::Unreachable(e.to_string()))?;
    source.create_consumer(&consumer, "tail of a sluice data plane", from).await?;
    let heard = Instant::now();
    let mut tail =
        JetStreamTail { source, consumer, inbox, answers, due: (0, 0), large: Large::No, heard };
    tail.pull().await?;
    Ok(tail)
}

impl JetStreamTail {
    /// Asks for more when little is due. Cancel safe: what was not sent does not count.
    async fn pull(&mut self) -> Result<(), Error> {
        let (messages, bytes) = self.due;
        match self.large {
            Large::No if messages <= PULL_MESSAGES / 2 || bytes <= PULL_BYTES / 2 => {
                self.ask(MANY, PULL_MESSAGES, Some(PULL_BYTES)).await?;
                self.due = (messages + PULL_MESSAGES, bytes + PULL_BYTES);
            }
            Large::Found => {
                self.ask(ALONE, 1, None).await?;
                self.large = Large::Asked;
            }
            Large::No | Large::Asked => {}
        }
        Ok(())
    }

    async fn ask(&self, reply: &str, batch: usize, max_bytes: Option<usize>) -> Result<(), Error> {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let mut request = json!({
            "batch": batch,
            "expires": nanos(EXPIRES),
            "idle_heartbeat": nanos(HEARTBEAT),
        });
        if let Some(bytes) = max_bytes {
            request["max_bytes"] = bytes.into();
        }
        let reply = format!("{}.{reply}", self.inbox);
        let asked = self.source.pull(&self.consumer, reply, &request).await;
        asked.map_err(|e| Error::TailEnded(e.to_string()))
    }

    /// Takes note of what the server says of a pull.
    fn note(&mut self, status: &async_nats::Message) -> Result<(), Error> {
        let ended = || {
            let code = status.status.map_or(0, |status| status.as_u16());
            let text = status.description.as_deref().unwrap_or("no description");
            Error::TailEnded(format!("the server says {code}: {text}"))
        };
        let left = |name: &str| -> Option<usize> {
            status.headers.as_ref()?.get(name)?.as_str().parse().ok()
        };
        match status.status.map(|status| status.as_u16()) {
            Some(100) => return Ok(()),
            Some(408 | 409) => {}
            Some(_) => return Err(ended()),
            None => return Err(Error::TailEnded("a delivery without its numbers".into())),
        }
        // A pull has ended. The server says what is left of it, unless the consumer is gone.
        let messages = left("Nats-Pending-Messages").ok_or_else(ended)?;
        let bytes = left("Nats-Pending-Bytes").ok_or_else(ended)?;
        if status.subject.ends_with(ALONE) {
            self.large = Large::No;
            return Ok(());
        }
        self.due = (self.due.0.saturating_sub(messages), self.due.1.saturating_sub(bytes));
        let too_large = status.description.as_deref().is_some_and(|d| d.contains("MaxBytes"));
        if too_large && bytes == PULL_BYTES && self.large == Large::No {
            self.large = Large::Found;
        }
        Ok(())
    }

    async fn delivery(&mut self) -> Result<Delivery, Error> {
        loop {
            self.pull().await?;
            let message = tokio::select! {
                biased;
                message = tokio::time::timeout_at(self.heard + SILENCE, self.answers.next()) => message,
                () = self.source.connection.down() => {
                    return Err(Error::TailEnded("disconnected".into()));
                }
            };
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => return Err(Error::TailEnded("the connection was closed".into())),
                Err(_) => return Err(Error::TailEnded("no heartbeat of the server".into())),
            };
            self.heard = Instant::now();
            // Not by its status: a publisher may have written one into the message.
            let Some(numbers) = message.reply.as_deref().and_then(delivery) else {
                self.note(&message)?;
                continue;
            };
            if self.large == Large::Asked {
                self.large = Large::No;
            } else {
                let (messages, bytes) = self.due;
                self.due = (messages.saturating_sub(1), bytes.saturating_sub(message.length));
            }
            let event = self.source.delivered(numbers, message);
            return Ok(Delivery { delivery_sequence: numbers.delivery_sequence, event });
        }
    }
}

impl Tail for JetStreamTail {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, Error>> {
        self.delivery().boxed()
    }
}

impl Drop for JetStreamTail {
    fn drop(&mut self) {
        self.source.delete_consumer(std::mem::take(&mut self.consumer));
    }
}
