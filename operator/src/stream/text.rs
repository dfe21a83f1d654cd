//! Fields and values of a stream's configuration as the spec would write them.

use serde_json::Value;

use super::table::{Show, field};

/// Path in the channel's spec where the field is one of it, else its name in JetStream.
pub(super) fn path(nats: &str) -> String {
    field(nats).and_then(|field| field.spec).unwrap_or(nats).to_owned()
}

/// A value as the spec would write it.
pub(super) fn of(nats: &str, value: &Value) -> String {
    let show = field(nats).map_or(Show::Plain, |field| field.show);
    match (show, value, value.as_u64()) {
        (Show::Duration, _, Some(nanos)) => duration_text(nanos / 1_000_000),
        (Show::Size, _, Some(bytes)) => size_text(bytes),
        (_, Value::Number(number), _) if number.as_i64() == Some(-1) => "unlimited".to_owned(),
        (_, Value::String(text), _) => text.clone(),
        (_, Value::Null, _) => "unset".to_owned(),
        (_, other, _) => other.to_string(),
    }
}

fn duration_text(mut millis: u64) -> String {
    let mut text = String::new();
    for (unit, length) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if millis >= length {
            text += &format!("{}{unit}", millis / length);
            millis %= length;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

fn size_text(bytes: u64) -> String {
    let fits = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)]
        .into_iter()
        .find(|(_, bits)| bytes >= 1 << bits && bytes.trailing_zeros() >= *bits);
    fits.map_or_else(|| bytes.to_string(), |(unit, bits)| format!("{}{unit}", bytes >> bits))
}
