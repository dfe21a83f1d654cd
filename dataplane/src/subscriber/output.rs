//! Small things on the way out.

use std::time::Duration;

use serde_json::json;
use sluice_channel::Cursor;

use crate::frame::{self, CloseReason};

/// Appends `channel.close`.
pub fn write_close(
    out: &mut Vec<u8>,
    cursor: Option<Cursor>,
    reason: CloseReason,
    retry: Duration,
) {
    let data = json!({"reason": reason.as_str(), "retry": u64::try_from(retry.as_millis()).unwrap_or(u64::MAX)});
    frame::control(out, "channel.close", cursor, &data.to_string(), Some(retry));
}

/// Nanoseconds since a time in Unix nanoseconds; 0 for one in the future.
fn nanos_since(time_nanos: i64) -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos());
    u64::try_from(i128::try_from(now).unwrap_or(i128::MAX) - i128::from(time_nanos)).unwrap_or(0)
}

/// Seconds since a time in Unix nanoseconds; 0 for one in the future.
#[must_use]
pub fn seconds_since(time_nanos: i64) -> f64 {
    Duration::from_nanos(nanos_since(time_nanos)).as_secs_f64()
}
