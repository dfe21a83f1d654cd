//! What the log says is not there, which it has to have proven: see [`crate::source::proof`].

use sluice_channel::{Epoch, Event};
use tokio::time::Instant;

use super::{Log, history::missing, stretch::recreated};
use crate::source::{Error, StreamState, proof::Asked};

/// Marks that are looked up to know the stream again: the newest may have been deleted.
const MARKS_CHECKED: usize = 3;

/// Sequences that were not delivered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hole {
    pub(super) from: u64,
    pub(super) to: u64,
    /// How many of the delivered events come before it.
    pub(super) before: usize,
}

impl Log {
    /// The epoch of the stream by a question that is asked after this call.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn epoch(&self) -> Result<Epoch, Error> {
        Ok(self.proofs.state().await?.state.epoch)
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

    /// What is missing before and between `events`, which follow the head, where that is a
    /// question.
    pub(super) fn holes(&self, events: &[Event]) -> Vec<Hole> {
        if self.options.read().compacted {
            return Vec::new();
        }
        let mut next = self.head.borrow().next;
        let mut holes = Vec::new();
        for (before, event) in events.iter().enumerate() {
            if event.sequence > next {
                holes.push(Hole { from: next, to: event.sequence - 1, before });
            }
            next = event.sequence + 1;
        }
        holes
    }

    /// The first of the `holes` in which the leader has an event: the replica that the tail reads
    /// lacks it. What is before the leader's `first` is gone by its own word.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn lacking(&self, holes: &[Hole], first: u64) -> Result<Option<Hole>, Error> {
        for hole in holes.iter().filter(|hole| hole.to >= first) {
            let there = self.source.read_leader(hole.from.max(first)).await?;
            if there.is_some_and(|event| event.sequence <= hole.to) {
                return Ok(Some(*hole));
            }
        }
        Ok(None)
    }
}
