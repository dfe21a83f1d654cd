//! Control events: where the stream starts, holes, outages, and how far it has come.

use serde_json::json;
use sluice_channel::{Cursor, Epoch, config::Delivery};

use crate::{
    frame::{self, Gap},
    log::Head,
    metrics::ChannelMetrics,
};

/// Appends `channel.open`.
pub(super) fn open(
    out: &mut Vec<u8>,
    cursor: Cursor,
    epoch: Epoch,
    head: Head,
    delivery: &Delivery,
) {
    let data = json!({
        "cursor": cursor.to_string(),
        "earliest": Cursor::new(epoch, head.first.min(head.next.saturating_sub(1))).to_string(),
        "latest": Cursor::new(epoch, head.next.saturating_sub(1)).to_string(),
        "heartbeat": delivery.heartbeat.as_millis(),
        "maxConnectionAge": delivery.max_connection_age.as_millis(),
    });
    frame::control(out, "channel.open", Some(cursor), &data.to_string(), None);
}

/// Appends `channel.cursor`.
pub(super) fn cursor(out: &mut Vec<u8>, cursor: Cursor) {
    frame::control(out, "channel.cursor", Some(cursor), "", None);
}

/// Appends `channel.gap`, and counts it.
pub(super) fn gap(out: &mut Vec<u8>, cursor: Cursor, gap: Gap, metrics: &ChannelMetrics) {
    metrics.gap(gap.reason);
    // A struct of numbers and a word: serialising cannot fail.
    let data = serde_json::to_string(&gap).unwrap_or_default();
    frame::control(out, "channel.gap", Some(cursor), &data, None);
}

/// Appends `channel.degraded`, or `channel.recovered` where the store is reachable again.
pub(super) fn outage(out: &mut Vec<u8>, cursor: Option<Cursor>, down_since: Option<i64>) {
    let (name, since) = match down_since {
        Some(since) => ("channel.degraded", since),
        None => ("channel.recovered", jiff::Timestamp::now().as_millisecond()),
    };
    let data = json!({"since": frame::rfc3339(since.saturating_mul(1_000_000))});
    frame::control(out, name, cursor, &data.to_string(), None);
}
