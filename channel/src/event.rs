//! One record of a channel, as the store holds it.

use bytes::Bytes;

use crate::limits;

/// NATS header (and HTTP request header) that carries the SSE `event:` name.
pub const NAME_HEADER: &str = "Event-Name";
/// NATS header that keeps the `Content-Type` of an HTTP publish.
pub const CONTENT_TYPE_HEADER: &str = "Content-Type";
/// Event names that begin so are the product's own; publishing one is refused.
pub const RESERVED_NAME_PREFIX: &str = "channel.";

/// One event of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// JetStream sequence.
    pub sequence: u64,
    /// When the store took it, Unix time in nanoseconds (the store's clock).
    pub time_nanos: i64,
    /// The subject after the channel's topic prefix; [`topic::opaque`](crate::topic::opaque) where
    /// it is not UTF-8.
    pub topic: String,
    /// The SSE `event:` name, already checked with [`check_name`].
    pub name: Option<String>,
    /// The payload, any bytes.
    pub payload: Bytes,
}

/// Why an event name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, too long, or with a control character.
    #[error("an event name must be 1 to {max} bytes without control characters", max = limits::EVENT_NAME_BYTES)]
    Malformed,
    /// One of the product's own.
    #[error("event names that begin with \"channel.\" are reserved")]
    Reserved,
}

/// Checks an SSE event name. CR, LF and NUL would end the field or be dropped by the parser
/// (WHATWG HTML 9.2.6), so a name with any control character is refused.
///
/// # Errors
/// [`NameError`] says which rule was broken.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if !(1..=limits::EVENT_NAME_BYTES).contains(&name.len()) || name.chars().any(char::is_control) {
        return Err(NameError::Malformed);
    }
    if name.starts_with(RESERVED_NAME_PREFIX) {
        return Err(NameError::Reserved);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["order.created", "a b", "größe", &"x".repeat(128)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "a\nb", "a\rb", "a\0b", "a\u{85}b", &"x".repeat(129)] {
            assert_eq!(check_name(bad), Err(NameError::Malformed), "{bad:?}");
        }
        assert_eq!(check_name("channel.gap"), Err(NameError::Reserved));
    }
}
