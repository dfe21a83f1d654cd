//! What only the store can answer.

use std::sync::Arc;

use sluice_channel::{Epoch, Filter};

use super::start::{Start, StartPosition, resolve};
use crate::{
    channel::Channel,
    frame::Dialect,
    limits,
    log::{Head, Log, Origin, segment::Segment},
    source::Error,
};

/// A question to the store. It owns what it needs, so that any task can ask it.
#[derive(Debug)]
pub(crate) enum Question {
    /// Where does it start?
    Start {
        /// The channel.
        channel: Arc<Channel>,
        /// What the request says of the start.
        start: Start,
        /// For a start that counts events.
        filter: Filter,
        /// The head when it was asked.
        head: Head,
        /// The stream's epoch then.
        epoch: Epoch,
    },
    /// What is at this position?
    Segment {
        /// The log.
        log: Arc<Log>,
        /// The log's life.
        life: u64,
        /// The sequence that the segment has to cover.
        position: u64,
        /// Dialect of its frames.
        dialect: Dialect,
    },
}

/// What the store said.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// The start position as of that head.
    Start(Head, Epoch, Result<StartPosition, Error>),
    /// The segment and where it came from; `None` when the log's life is over.
    Segment(Result<Option<(Arc<Segment>, Origin)>, Error>),
}

impl Question {
    pub(super) fn start(
        channel: &Arc<Channel>,
        start: &Start,
        filter: &Filter,
        head: Head,
        epoch: Epoch,
    ) -> Self {
        let (start, filter) = (start.clone(), filter.clone());
        Self::Start { channel: Arc::clone(channel), start, filter, head, epoch }
    }

    pub(super) fn segment(log: &Arc<Log>, life: u64, position: u64, dialect: Dialect) -> Self {
        Self::Segment { log: Arc::clone(log), life, position, dialect }
    }

    /// Asks it. Ends within the store's own time limits.
    pub(crate) async fn ask(self) -> Answer {
        match self {
            Self::Start { channel, start, filter, head, epoch } => {
                Answer::Start(head, epoch, resolve(&channel, &start, &filter, head, epoch).await)
            }
            Self::Segment { log, life, position, dialect } => {
                Answer::Segment(log.segment(life, position, dialect).await)
            }
        }
    }
}

/// A part of a log whose subscribers share one question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SegmentKey {
    /// Address of the log, which the question keeps alive.
    log: usize,
    life: u64,
    dialect: Dialect,
    block: u64,
}

impl SegmentKey {
    /// The key of a question that other subscribers may have too.
    #[must_use]
    pub(crate) fn of(question: &Question) -> Option<Self> {
        match question {
            Question::Segment { log, life, position, dialect } => Some(Self {
                log: Arc::as_ptr(log) as usize,
                life: *life,
                dialect: *dialect,
                block: position / limits::SEGMENT_SEQUENCES,
            }),
            Question::Start { .. } => None,
        }
    }
}
