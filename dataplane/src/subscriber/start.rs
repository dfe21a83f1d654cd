//! Where a subscriber starts, and what it has missed by then.

use sluice_channel::{Cursor, Epoch, Filter, config, limits};

use crate::{
    channel::Channel,
    frame::{Gap, GapReason},
    log::Head,
    source::Error,
};

/// What the request says of the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// After this place.
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
pub struct Place {
    /// The sequence to deliver first.
    pub position: u64,
    /// What the subscriber has to be told of first.
    pub gap: Option<Gap>,
    /// There was no cursor: nothing before the first event is missed.
    pub fresh: bool,
}

const fn fresh(position: u64) -> Place {
    Place { position, gap: None, fresh: true }
}

const fn after(cursor: Cursor) -> Place {
    Place { position: cursor.sequence + 1, gap: None, fresh: false }
}

/// Finds the position for `start` in the log as of `head` where that needs no store.
pub(super) fn at_once(channel: &Channel, start: &Start, head: Head, epoch: Epoch) -> Option<Place> {
    match start {
        Start::Unreadable => Some(after_gap(channel, head, GapReason::Unknown)),
        Start::After(cursor) if cursor.epoch != epoch => {
            Some(after_gap(channel, head, GapReason::Epoch))
        }
        Start::After(cursor) if cursor.sequence < head.next => Some(after(*cursor)),
        Start::Earliest => Some(fresh(head.first.max(1))),
        Start::Latest => Some(fresh(head.next)),
        Start::After(_) | Start::Since(_) | Start::Last(_) => None,
    }
}

/// Finds the position for `start` in the log as of `head`.
///
/// # Errors
/// The store's, where it had to be asked: try again.
pub async fn resolve(
    channel: &Channel,
    start: &Start,
    filter: &Filter,
    head: Head,
    epoch: Epoch,
) -> Result<Place, Error> {
    if let Some(place) = at_once(channel, start, head, epoch) {
        return Ok(place);
    }
    Ok(match start {
        // Another pod may be ahead of this one: only the store can say that there is no such event,
        // and has to prove it.
        Start::After(cursor) => match channel.log().reaches(epoch, cursor.sequence).await? {
            true => after(*cursor),
            false => after_gap(channel, head, GapReason::Unknown),
        },
        Start::Since(time) => fresh(channel.log().since(*time).await?),
        Start::Last(count) => {
            fresh(channel.log().newest((*count).min(limits::PAGE_EVENTS), filter).await?)
        }
        Start::Unreadable | Start::Earliest | Start::Latest => fresh(head.next),
    })
}

/// The place to go on at when a cursor is of no use, by the channel's policy.
pub(super) fn after_gap(channel: &Channel, head: Head, reason: GapReason) -> Place {
    let position = match channel.config().delivery.on_gap {
        config::Start::Earliest => head.first.max(1),
        config::Start::Latest => head.next,
    };
    let gap = Gap { from: None, to: Some(position - 1).filter(|to| *to > 0), missed: None, reason };
    Place { position, gap: Some(gap), fresh: true }
}
