//! What a subscriber asked for: where it starts, and what it has missed by then.

use sluice_channel::{Cursor, Epoch, Filter, config};

use crate::{
    channel::Channel,
    frame::{Dialect, Gap, GapReason},
    limits,
    log::Head,
    source::Error,
};

/// What a subscriber asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where to start.
    pub start: Start,
    /// Which events.
    pub filter: Filter,
    /// In which form.
    pub dialect: Dialect,
    /// Whether `channel.open` is wanted.
    pub open: bool,
}

/// What the request says of the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// After this cursor.
    After(Cursor),
    /// A `Last-Event-ID` that is no cursor. A browser cannot change it, so it is answered with a
    /// gap.
    Unreadable,
    /// At the oldest event kept.
    Earliest,
    /// After the newest event.
    Latest,
    /// At the first event stored at or after this time, Unix nanoseconds.
    Since(i64),
    /// At the first of the newest so many events that pass the filter.
    Last(usize),
}

/// A start position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StartPosition {
    /// The sequence to deliver first.
    pub(crate) position: u64,
    /// What is missing before it: to be announced first.
    pub(crate) gap: Option<Gap>,
    /// There was no cursor: nothing before the first event is missed.
    pub(crate) lossless: bool,
}

const fn lossless(position: u64) -> StartPosition {
    StartPosition { position, gap: None, lossless: true }
}

const fn after(cursor: Cursor) -> StartPosition {
    StartPosition { position: cursor.sequence + 1, gap: None, lossless: false }
}

/// Finds the position for `start` in the log as of `head` where that needs no store.
pub(super) fn at_once(
    channel: &Channel,
    start: &Start,
    head: Head,
    epoch: Epoch,
) -> Option<StartPosition> {
    match start {
        Start::Unreadable => Some(after_gap(channel, head, GapReason::Unknown)),
        Start::After(cursor) if cursor.epoch != epoch => {
            Some(after_gap(channel, head, GapReason::Epoch))
        }
        Start::After(cursor) if cursor.sequence < head.next => Some(after(*cursor)),
        Start::Earliest => Some(lossless(head.first.max(1))),
        Start::Latest => Some(lossless(head.next)),
        Start::After(_) | Start::Since(_) | Start::Last(_) => None,
    }
}

/// Finds the position for `start` in the log as of `head`.
///
/// # Errors
/// The store's, where it had to be asked: try again.
pub(crate) async fn resolve(
    channel: &Channel,
    start: &Start,
    filter: &Filter,
    head: Head,
    epoch: Epoch,
) -> Result<StartPosition, Error> {
    if let Some(found) = at_once(channel, start, head, epoch) {
        return Ok(found);
    }
    Ok(match start {
        // Another pod may be ahead of this one: only the store can say that there is no such event,
        // and has to prove it.
        Start::After(cursor) => match channel.log().reaches(epoch, cursor.sequence).await? {
            true => after(*cursor),
            false => after_gap(channel, head, GapReason::Unknown),
        },
        Start::Since(time) => lossless(channel.log().since(*time).await?),
        Start::Last(count) => {
            lossless(channel.log().newest((*count).min(limits::PAGE_EVENTS), filter).await?)
        }
        Start::Unreadable | Start::Earliest | Start::Latest => lossless(head.next),
    })
}

/// Where to go on when a cursor is of no use, by the channel's policy.
pub(super) fn after_gap(channel: &Channel, head: Head, reason: GapReason) -> StartPosition {
    let position = match channel.config().delivery.on_gap {
        config::Start::Earliest => head.first.max(1),
        config::Start::Latest => head.next,
    };
    let gap = Gap { from: None, to: Some(position - 1).filter(|to| *to > 0), missed: None, reason };
    StartPosition { position, gap: Some(gap), lossless: true }
}
