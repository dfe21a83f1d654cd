//! The tail: one pull consumer whose position is the reader's.
//!
//! Not the client library's ordered consumer: reset before its first message it starts again at the
//! head of the stream. This one is created by start sequence each time, and the log says which.

use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use rand::Rng;

use super::{
    JetStream,
    delivery::{Numbers, delivery},
};
use crate::source::{Delivery, Error, Tail};

/// Messages that are asked for before the ones at hand are handled.
const BATCH_MESSAGES: usize = 1_000;
/// Bytes that are asked for before the ones at hand are handled: bounds the client's buffer, and
/// leaves room for several of the largest messages.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// The server says this often that it is still there; two missed ones end the tail.
const HEARTBEAT: Duration = Duration::from_secs(2);

pub(super) struct JetStreamTail {
    source: JetStream,
    messages: pull::Stream,
    consumer: String,
}

pub(super) async fn open(source: JetStream, from: u64) -> Result<JetStreamTail, Error> {
    let consumer = format!("{}_{:08x}", source.reader_name, rand::rng().random::<u32>());
    let created = source.create_consumer(&consumer, "tail of a sluice data plane", from).await?;
    let builder =
        created.stream().max_messages_per_batch(BATCH_MESSAGES).max_bytes_per_batch(BATCH_BYTES);
    let messages = source
        .ask(
            "the first pull",
            builder.expires(Duration::from_secs(30)).heartbeat(HEARTBEAT).messages(),
        )
        .await?;
    Ok(JetStreamTail { source, messages, consumer })
}

impl Tail for JetStreamTail {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, Error>> {
        async {
            let message = tokio::select! {
                biased;
                message = self.messages.next() => message,
                () = self.source.connection.down() => return Err(Error::TailEnded("disconnected".into())),
            };
            let message = match message {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Err(Error::TailEnded(error.to_string())),
                None => return Err(Error::TailEnded("the server closed it".into())),
            };
            let numbers = message.reply.as_deref().and_then(delivery);
            let Numbers { delivery_sequence, sequence, time_nanos, .. } =
                numbers.ok_or_else(|| Error::TailEnded("a delivery without its numbers".into()))?;
            let event = self.source.event(sequence, time_nanos, &message.subject, message.headers.as_ref(), message.payload.clone());
            Ok(Delivery { delivery_sequence, event })
        }
        .boxed()
    }
}

impl Drop for JetStreamTail {
    fn drop(&mut self) {
        self.source.delete_consumer(std::mem::take(&mut self.consumer));
    }
}
