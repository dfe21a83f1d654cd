//! Whether a stream was set back to an older state: restored from a copy, or writes were lost.
//!
//! Its numbers then start over below what subscribers have seen, and a new epoch has to tell them.
//! Two memories prove it: the last sequence that this process saw, and the mark in the channel's
//! status, which is there still when operator, NATS and pods were all down. An answer by which
//! something is missing counts once a majority of the stream's servers has followed the one that
//! gave it: a leader that is cut off goes on answering.

use std::time::{Duration, Instant};

use serde_json::json;
use sluice_channel::cursor::EPOCH_METADATA;

use super::{
    Error, Facts, Streams,
    config::{self, Want},
    fields,
    history::Key,
    server::{Observed, Stored},
};
use crate::crd::status::Mark;

/// How often a stream is compared with its mark over one connection, and how often at most a mark
/// is written.
pub const MARK_INTERVAL: Duration = Duration::from_secs(600);
/// How often at least, and how long apart, what seems to be gone is looked for again: a replica
/// that has just become leader may still be catching up.
const READS: usize = 4;
const PAUSE: Duration = Duration::from_millis(500);
/// Most reads in one pass. A server hears of its replicas once a second.
const MOST_READS: usize = 12;

/// A mark of the epoch that is to be written.
pub(super) struct NewEpoch {
    pub(super) mark: String,
    /// Whether the stream was set back; else the mark was wiped and is put back.
    pub(super) set_back: bool,
}

impl Streams {
    /// What has to be written about the epoch of a stream, if anything.
    pub(super) async fn new_epoch(
        &self,
        key: &Key,
        observed: &Observed,
    ) -> Result<Option<NewEpoch>, Error> {
        let set_back = if self.history.regressed(key, observed) {
            self.stays(observed, |again| self.history.regressed(key, again)).await?
        } else {
            self.contradicts_its_mark(key, observed).await?
        };
        let (now, known) = (fields::epochs(&observed.config), self.history.epochs(key, observed));
        if set_back {
            // Above every number that was in use: a copy may bring an old one back.
            let mark = now.max(known).saturating_add(1).to_string();
            return Ok(Some(NewEpoch { mark, set_back }));
        }
        let wiped = fields::owner(&observed.config).is_none() && now < known;
        Ok(wiped.then(|| NewEpoch { mark: known.to_string(), set_back }))
    }

    /// Gives a stream that was set back the epoch of this mark, and nothing else.
    pub(super) async fn tell_set_back(
        &self,
        key: &Key,
        observed: Observed,
        mark: &str,
    ) -> Result<Observed, Error> {
        let mut want = config::without_servers_own(observed.config.clone());
        let metadata = want.entry("metadata").or_insert_with(|| json!({}));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert(EPOCH_METADATA.to_owned(), json!(mark));
        }
        let observed = self.converge(&Want::of(want), observed).await?;
        self.history.seen(key, &observed);
        Ok(observed)
    }

    /// Whether the stream cannot be the one that the mark was read from.
    async fn contradicts_its_mark(&self, key: &Key, observed: &Observed) -> Result<bool, Error> {
        let connects = self.server.connects();
        let Some(mark) = self.history.due(key, observed, connects, self.mark_interval) else {
            return Ok(false);
        };
        let epochs = fields::epochs(&observed.config);
        let wiped = fields::owner(&observed.config).is_none();
        let contradicts = if epochs > mark.epochs {
            // The status was not written any more after the last new epoch.
            false
        } else if epochs < mark.epochs && !wiped {
            self.stays(observed, |again| fields::epochs(&again.config) < mark.epochs).await?
        } else {
            match u64::try_from(mark.sequence).unwrap_or_default() {
                0 => false,
                sequence if observed.last_sequence < sequence => {
                    self.stays(observed, |again| again.last_sequence < sequence).await?
                }
                sequence => {
                    let found =
                        self.server.message(&observed.name, json!({"seq": sequence})).await?;
                    // One that was deleted or has expired says nothing.
                    found.is_some_and(|found| !is_of_time(&found, &mark.time))
                }
            }
        };
        if !contradicts {
            self.history.compared(key, connects);
        }
        Ok(contradicts)
    }

    /// Whether what `observed` shows stays so, by the word of a leader that has a majority.
    async fn stays(
        &self,
        observed: &Observed,
        shows: impl Fn(&Observed) -> bool,
    ) -> Result<bool, Error> {
        let (mut leader, mut since, mut reads) = (observed.leader.clone(), Instant::now(), 0);
        for _ in 0..MOST_READS {
            tokio::time::sleep(PAUSE).await;
            let asked = Instant::now();
            let Some(again) = self.server.info(&observed.name).await? else { return Ok(false) };
            if !shows(&again) || again.created != observed.created {
                return Ok(false);
            }
            if again.leader != leader {
                (leader, since, reads) = (again.leader.clone(), Instant::now(), 0);
                continue;
            }
            reads += 1;
            if reads >= READS && again.is_followed_within(asked - since) {
                return Ok(true);
            }
        }
        // Neither one nor the other; the next pass asks again.
        Err(Error::Unproven { stream: observed.name.clone() })
    }

    /// The mark of a stream as it is now.
    ///
    /// # Errors
    /// [`Error`] when NATS cannot be asked.
    pub async fn mark(&self, facts: &Facts) -> Result<Mark, Error> {
        let newest = self.newest(&facts.name, facts.last_sequence).await?;
        let (sequence, time) = newest.map_or((0, String::new()), |m| (m.sequence, m.time));
        let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
        Ok(Mark { sequence, time, epochs: facts.epochs })
    }

    /// One of the newest messages up to `last`. The newest may have been deleted, and many before
    /// it: each step looks for the first one from twice as far back.
    async fn newest(&self, name: &str, last: u64) -> Result<Option<Stored>, Error> {
        if last == 0 {
            return Ok(None);
        }
        let mut back = 0_u64;
        loop {
            let from = last.saturating_sub(back).max(1);
            let which = json!({"seq": from, "next_by_subj": ">"});
            let found = self.server.message(name, which).await?;
            if found.is_some() || from == 1 {
                return Ok(found);
            }
            back = (back * 2).max(1);
        }
    }
}

fn is_of_time(found: &Stored, time: &str) -> bool {
    let nanos = |text| {
        async_nats::datetime::parse_rfc3339(text).ok().map(|time| time.unix_timestamp_nanos())
    };
    match (nanos(&found.time), nanos(time)) {
        (Some(found), Some(time)) => found == time,
        _ => found.time == time,
    }
}
