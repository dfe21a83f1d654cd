//! The streams that have something to do that is not live delivery.

use std::collections::VecDeque;

use super::stream::Stream;
use crate::limits;

/// Keys of streams in the order in which they are served. A stream is in it once at most, so the
/// thread's streams bound it.
#[derive(Debug, Default)]
pub(super) struct Queue(VecDeque<usize>);

impl Queue {
    /// Adds a stream, unless it is queued already.
    pub(super) fn push(&mut self, key: usize, stream: &mut Stream) {
        if !stream.queued {
            stream.queued = true;
            self.0.push_back(key);
        }
    }

    /// The next key; its stream may be gone.
    pub(super) fn pop(&mut self) -> Option<usize> {
        let key = self.0.pop_front();
        if let Some(capacity) = limits::spare(self.0.len(), self.0.capacity()) {
            self.0.shrink_to(capacity);
        }
        key
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
