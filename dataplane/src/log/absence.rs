//! What the log says is not there, which it has to have proven: see [`crate::source::proof`].

use std::time::Duration;

use sluice_channel::{Epoch, Event};
use tokio::time::Instant;
use tracing::Instrument;

use super::{
    Log,
    history::{is_of, missing},
};
use crate::{
    limits,
    source::{Error, ReadLimit, StreamState, proof::Asked},
};

/// Marks that are looked up to know the stream again: the newest may have been deleted.
const MARKS_CHECKED: usize = 3;
/// How often a replica that lags is asked again for a place in time.
const LAG_RETRIES: u32 = 3;
/// Pause before it is.
const LAG_PAUSE: Duration = Duration::from_millis(50);

/// A run of the log as the store has it: what is neither among the events nor at `end` or later is
/// not there, and that is proven.
#[derive(Debug, Default)]
pub(crate) struct Stretch {
    /// Events in rising order.
    pub(crate) events: Vec<Event>,
    /// The sequence to go on at.
    pub(crate) end: u64,
}

fn recreated() -> Error {
    Error::TailEnded("the stream was recreated".into())
}

impl Log {
    /// What the store has from `position` on, up to the head at most. Not cached.
    ///
    /// # Errors
    /// The store's; also when it cannot prove that nothing is there.
    pub(crate) async fn events(&self, position: u64) -> Result<Stretch, Error> {
        let head = self.head_now();
        let last = head.next.saturating_sub(1);
        let Some(epoch) = head.epoch.filter(|_| position <= last) else {
            return Ok(Stretch { events: Vec::new(), end: position });
        };
        let count = (last + 1 - position).min(limits::PAGE_EVENTS as u64);
        let limit = ReadLimit { events: count, bytes: limits::SEGMENT_BYTES };
        let (mut events, proven) =
            self.history.events(position, limit, last).instrument(self.span.clone()).await?;
        if !is_of(proven, epoch)? {
            self.history.check_epoch(epoch).instrument(self.span.clone()).await?;
        }
        let end = events.last().map_or(last + 1, |event| (event.sequence + 1).min(last + 1));
        events.retain(|event| event.sequence <= last);
        Ok(Stretch { events, end })
    }

    /// Whether the stream of `epoch` has come to `sequence`, of which this pod may not know yet.
    ///
    /// # Errors
    /// The store's; also when it seems not to have, and cannot prove it.
    pub(crate) async fn reaches(&self, epoch: Epoch, sequence: u64) -> Result<bool, Error> {
        let Asked { at, state } = self.proofs.state().await?;
        if state.epoch != epoch {
            return Err(recreated());
        }
        if sequence <= state.last {
            return Ok(true);
        }
        let state = self.proofs.prove(state.lead, at).await?;
        if state.epoch == epoch { Ok(sequence <= state.last) } else { Err(recreated()) }
    }

    /// The sequence of the first event stored at or after `time_nanos`; the head where there is
    /// none.
    ///
    /// # Errors
    /// The store's; also when it says that there is none, and the log has seen one.
    pub(crate) async fn since(&self, time_nanos: i64) -> Result<u64, Error> {
        let head = self.head_now();
        for attempt in 0..=LAG_RETRIES {
            if attempt > 0 {
                tokio::time::sleep(LAG_PAUSE).await;
            }
            if let Some(sequence) = self.source.first_since(time_nanos).await? {
                return Ok(sequence);
            }
            // All that comes after the head will be delivered, so what counts is what was before.
            let newest = self.marks.lock().newest();
            if newest.is_none_or(|(_, newest_nanos)| newest_nanos < time_nanos) {
                return Ok(head.next);
            }
        }
        Err(Error::Unreachable("a replica that lags was asked for a place in time".into()))
    }

    /// Whether the stream of this state was set back to an older one and filled again since: an
    /// event that the log has seen is another one now.
    pub(super) async fn is_set_back(&self, state: StreamState) -> Result<bool, Error> {
        let marks = self.marks.lock().newest_first(state.first);
        for (sequence, time_nanos) in marks.into_iter().take(MARKS_CHECKED) {
            match self.source.read_leader(sequence).await {
                Ok(Some(event)) if event.sequence == sequence => {
                    if event.time_nanos == time_nanos {
                        return Ok(false);
                    }
                    self.proofs.prove(state.lead, Instant::now()).await?;
                    return Ok(true);
                }
                // Deleted since, or not to be read: the next one tells.
                Ok(_) | Err(Error::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Moves the head over what is proven to be gone: everything from `from` to the end of the
    /// stream. `false` when the tail has delivered something there meanwhile.
    pub(super) fn end_at(&self, from: u64, state: StreamState) -> bool {
        let reason = missing(self.options.read().compacted, state.last, state.first);
        let next = state.last + 1;
        {
            let mut rings = self.rings.write();
            if rings.plain.next() != from || next <= from {
                return false;
            }
            rings.plain.skip_to(next, reason);
            if let Some(ring) = &mut rings.envelope {
                ring.skip_to(next, reason);
            }
        }
        self.change_head(|head| std::mem::replace(&mut head.next, next) != next)
    }

    /// Whether something is missing before the end of `events`, which follow the head, and why is a
    /// question.
    pub(super) fn is_torn(&self, events: &[Event]) -> bool {
        if self.options.read().compacted {
            return false;
        }
        let next = self.head.borrow().next;
        events
            .last()
            .is_some_and(|last| (last.sequence + 1).saturating_sub(next) > events.len() as u64)
    }
}
