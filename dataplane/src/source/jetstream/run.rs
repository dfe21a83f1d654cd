//! Runs: pull consumers for reads that follow one another. Their answers name sequence and time in
//! the reply subject (ADR-13, ADR-37); an answer to a direct get has six headers instead, which
//! cost both ends more than the event.
//!
//! A consumer has its price, too, so a run begins where one read has followed another for a while,
//! and few live at a time. Whatever goes wrong with one, it is given up, and a direct get has the
//! answer.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{Message, Subscriber};
use parking_lot::Mutex;
use rand::Rng;
use serde_json::json;
use sluice_channel::{Epoch, Event};

use super::{JetStream, Numbers, delivery};
use crate::{
    limits,
    source::{Batch, Error, ReadLimit, Source},
};

/// Runs of one stream at a time: as many as the log reads at a time.
const RUNS: usize = 4;
/// Reads in a row before a run is worth a consumer: one costs about as much as half a read.
const READS_BEFORE: u32 = 2;
/// Ends of reads that are remembered, to know the next in a row.
const ENDS: usize = 16;
/// A run that was used since is not given up for another: crowds at many places must not make
/// consumers one after the other.
const IDLE: Duration = Duration::from_secs(1);
/// Bytes of one pull at most. What is more than was asked for waits for the next read.
const PULL_BYTES: usize = limits::SEGMENT_BYTES;

/// The runs of one stream.
#[derive(Debug, Default)]
pub(super) struct Runs(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    runs: Vec<Run>,
    /// Epoch and last sequence of the stream when it was last asked.
    seen: Option<(Epoch, u64)>,
    /// How often it turned out to be another one.
    lives: u64,
    /// Where reads ended that were no run's, and how many they were in a row.
    ends: VecDeque<(u64, u32)>,
}

/// One consumer and how far it has come.
struct Run {
    source: JetStream,
    consumer: String,
    inbox: String,
    answers: Subscriber,
    /// Pulls so far: tells the answers to the last one from answers that came late.
    pulls: u64,
    /// The consumer's own number of the last delivery: a jump is a loss.
    delivered: u64,
    /// Whether there was more after it.
    more: bool,
    /// Which of the stream's lives it is of.
    life: u64,
    /// The stream's epoch after the consumer was made. A consumer dies with its stream, so all that
    /// it delivers is of it.
    epoch: Epoch,
    /// Everything before this was given out, or is not there; everything from here on is in the
    /// surplus or yet to be delivered. A read that begins anywhere else is none of this run's.
    next: u64,
    /// Came with the last pull, but is more than was asked for. No more than one pull.
    surplus: VecDeque<Event>,
    used: Instant,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run")
            .field("consumer", &self.consumer)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

/// What becomes of a read.
enum Way {
    Run(Box<Run>),
    Begin(u64),
    Direct(u32),
}

impl Runs {
    /// The stream is of `epoch` and has come to `last`. What runs of another one have is of no use,
    /// nor of one that was set back.
    pub(super) fn saw(&self, epoch: Epoch, last: u64) {
        let mut known = self.0.lock();
        if known.seen.is_some_and(|(before, highest)| before != epoch || highest > last) {
            known.lives += 1;
            known.runs.clear();
            known.ends.clear();
        }
        known.seen = Some((epoch, last));
    }
}

impl Known {
    fn way(&mut self, from: u64) -> Way {
        if let Some(at) = self.runs.iter().position(|run| run.next == from) {
            return Way::Run(Box::new(self.runs.swap_remove(at)));
        }
        let Some(at) = self.ends.iter().position(|(end, _)| *end == from) else {
            return Way::Direct(0);
        };
        let in_a_row = self.ends.remove(at).map_or(0, |(_, in_a_row)| in_a_row);
        if in_a_row < READS_BEFORE || !self.make_room() {
            Way::Direct(in_a_row)
        } else {
            Way::Begin(self.lives)
        }
    }

    fn make_room(&mut self) -> bool {
        if self.runs.len() < RUNS {
            return true;
        }
        let idle = self.runs.iter().position(|run| run.used.elapsed() > IDLE);
        idle.is_some_and(|at| {
            self.runs.swap_remove(at);
            true
        })
    }

    fn ended(&mut self, end: u64, in_a_row: u32) {
        if self.ends.len() == ENDS {
            self.ends.pop_front();
        }
        self.ends.push_back((end, in_a_row));
    }

    /// Others may have begun meanwhile, then it is one too many; or the stream is another by now.
    fn put_back(&mut self, run: Run) {
        if run.life == self.lives && self.make_room() {
            self.runs.push(run);
        }
    }
}

/// Reads events from `from` on, by a run where that is worth it.
pub(super) async fn read(source: &JetStream, from: u64, limit: ReadLimit) -> Result<Batch, Error> {
    let from = from.max(1);
    let way = source.runs.0.lock().way(from);
    let run = match way {
        Way::Direct(in_a_row) => {
            let batch = super::direct::read(source, from, limit).await?;
            if let Some(last) = batch.events.last().filter(|_| limit.events > 1) {
                let end = (last.sequence + 1).min(from.saturating_add(limit.events));
                source.runs.0.lock().ended(end, in_a_row + 1);
            }
            return Ok(batch);
        }
        Way::Run(run) => Ok(run),
        Way::Begin(life) => Run::begin(source, from, life).await.map(Box::new),
    };
    let read = match run {
        Ok(mut run) => run.read(from, limit).await.map(|batch| (run, batch)),
        Err(error) => Err(error),
    };
    match read {
        Ok((run, batch)) => {
            source.runs.0.lock().put_back(*run);
            Ok(batch)
        }
        Err(error) => {
            tracing::debug!(%error, from, "a run of reads was given up");
            super::direct::read(source, from, limit).await
        }
    }
}

impl Run {
    async fn begin(source: &JetStream, from: u64, life: u64) -> Result<Self, Error> {
        let consumer =
            format!("{}_history_{:016x}", source.reader_name, rand::rng().random::<u64>());
        let inbox = source.client().new_inbox();
        let answers = source
            .client()
            .subscribe(format!("{inbox}.*"))
            .await
            .map_err(|e| Error::Unreachable(e.to_string()))?;
        source.create_consumer(&consumer, "replays of a sluice data plane", from).await?;
        // Without the runs, which own this one.
        let source = JetStream { runs: Arc::default(), ..source.clone() };
        let (surplus, used) = (VecDeque::new(), Instant::now());
        let epoch = Epoch::from_bits(0);
        let mut run = Self {
            source,
            consumer,
            inbox,
            answers,
            pulls: 0,
            delivered: 0,
            more: false,
            life,
            epoch,
            next: from,
            surplus,
            used,
        };
        run.epoch = run.source.state().await?.epoch;
        Ok(run)
    }

    /// Events from `from` on up to `limit`. The first one after that is named, too: it shows that
    /// there is nothing between.
    async fn read(&mut self, from: u64, limit: ReadLimit) -> Result<Batch, Error> {
        let to = from.saturating_add(limit.events.max(1) - 1);
        let mut batch = Batch { epoch: Some(self.epoch), ..Batch::default() };
        if self.surplus.is_empty() {
            self.pull(limit.events.max(1)).await?;
        }
        let mut bytes = 0;
        while bytes < limit.bytes {
            let Some(event) = self.surplus.pop_front() else { break };
            if event.sequence > to {
                batch.events.push(event.clone());
                self.surplus.push_front(event);
                self.next = to + 1;
                break;
            }
            bytes += event.payload.len();
            self.next = event.sequence + 1;
            batch.events.push(event);
        }
        batch.more = self.more || !self.surplus.is_empty();
        self.used = Instant::now();
        Ok(batch)
    }

    /// Asks for `count` events, and puts what comes to the surplus.
    async fn pull(&mut self, count: u64) -> Result<(), Error> {
        self.pulls += 1;
        let reply = format!("{}.{}", self.inbox, self.pulls);
        let request = json!({"batch": count, "max_bytes": PULL_BYTES, "no_wait": true});
        self.source.pull(&self.consumer, reply.clone(), &request).await?;
        let (mut left, mut bytes_left) = (count, PULL_BYTES);
        // The server says when it ends early, but not when the bytes are used up exactly.
        while left > 0 && bytes_left > 0 {
            let message = self.source.answer(&mut self.answers, "a pull").await?;
            // Not by its status: a publisher may have written one into the message.
            if let Some(numbers) = message.reply.as_deref().and_then(delivery) {
                left -= 1;
                bytes_left = bytes_left.saturating_sub(message.length);
                self.take(numbers, message)?;
                continue;
            }
            match message.status.map(|status| status.as_u16()) {
                None => return Err(Error::TailEnded("a delivery without its numbers".into())),
                // What is left of the pull before.
                Some(_) if message.subject.as_str() != reply => {}
                // No more events, or none that is small enough.
                Some(404 | 408) => break,
                Some(409) if left < count => break,
                Some(_) => return Err(Error::TailEnded(message.description.unwrap_or_default())),
            }
        }
        Ok(())
    }

    fn take(&mut self, numbers: Numbers, message: Message) -> Result<(), Error> {
        if numbers.delivery_sequence != self.delivered + 1 {
            return Err(Error::TailEnded(format!(
                "delivery {} came where {} was due",
                numbers.delivery_sequence,
                self.delivered + 1
            )));
        }
        (self.delivered, self.more) = (numbers.delivery_sequence, numbers.pending > 0);
        self.surplus.push_back(self.source.delivered(numbers, message));
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.source.delete_consumer(std::mem::take(&mut self.consumer));
    }
}
