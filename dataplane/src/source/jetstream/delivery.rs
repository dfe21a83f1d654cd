//! What JetStream says of a delivery in its reply subject (ADR-15):
//! `$JS.ACK.<stream>.<consumer>.<times>.<stream sequence>.<consumer sequence>.<time>.<pending>`, or
//! with a domain and an account before the stream and, maybe, a token at the end.

/// The numbers of one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Numbers {
    /// The consumer's own count.
    pub(crate) delivery_sequence: u64,
    /// The event's.
    pub(crate) sequence: u64,
    /// When the store took it, Unix nanoseconds.
    pub(crate) time_nanos: i64,
    /// Events that the consumer has yet to deliver.
    pub(crate) pending: u64,
}

/// The numbers in a reply subject; `None` when it is none of JetStream's.
pub(crate) fn delivery(reply: &str) -> Option<Numbers> {
    let words = reply.strip_prefix("$JS.ACK.")?;
    // Neither names nor domains contain a dot.
    let before = if words.bytes().filter(|byte| *byte == b'.').count() >= 8 { 5 } else { 3 };
    let mut numbers = words.split('.').skip(before);
    let mut next = || numbers.next();
    let sequence = next()?.parse().ok()?;
    let delivery_sequence = next()?.parse().ok()?;
    let time_nanos = next()?.parse().ok()?;
    Some(Numbers { delivery_sequence, sequence, time_nanos, pending: next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_reply_subjects() {
        let expected = Some(Numbers {
            delivery_sequence: 7,
            sequence: 42,
            time_nanos: 1_700_000_000_123_456_789,
            pending: 3,
        });
        assert_eq!(delivery("$JS.ACK.orders.reader.1.42.7.1700000000123456789.3"), expected);
        assert_eq!(
            delivery("$JS.ACK._.ACCOUNT.orders.reader.1.42.7.1700000000123456789.3"),
            expected
        );
        assert_eq!(
            delivery("$JS.ACK.hub.ACCOUNT.orders.reader.1.42.7.1700000000123456789.3.token"),
            expected
        );
        for none in [
            "",
            "_INBOX.a.b",
            "$JS.ACK.orders.reader.1.42",
            "$JS.ACK.orders.reader.1.x.7.1.3",
            "$JS.ACK.orders.reader.1.-1.7.1.3",
        ] {
            assert_eq!(delivery(none), None, "{none}");
        }
    }
}
