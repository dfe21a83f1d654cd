//! The place of a subscriber in a channel: epoch and sequence, written as an SSE event id.

use std::{fmt, str::FromStr};

use crate::{limits, name::fnv1a32};

/// Identity of one life of a stream: it changes when the stream was recreated or restored to an
/// older state, so that a cursor of another life is never taken for a place in this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(u32);

impl Epoch {
    /// The epoch of a stream created at `created_nanos` (Unix time), with the mark that an operator
    /// wrote into the stream's metadata under [`EPOCH_METADATA`] (empty when there is none). Every
    /// pod computes the same one from the stream's information.
    #[must_use]
    pub fn of_stream(created_nanos: i128, mark: &str) -> Self {
        Self(fnv1a32(&[&created_nanos.to_be_bytes(), mark.as_bytes()]))
    }

    /// An epoch by its number, for tests and stores without a creation time.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The epoch as a number.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// Key in a stream's metadata whose value takes part in the epoch.
pub const EPOCH_METADATA: &str = "sluice.dev/epoch";

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A place in a channel: everything up to and including `sequence` has been seen.
///
/// Text form: `<8 hex digits>-<decimal>`. Only `[a-z0-9-]` and at most 29 bytes, so a browser may
/// send it as `Last-Event-ID` across origins without a preflight (Fetch standard).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The stream's life that the sequence belongs to.
    pub epoch: Epoch,
    /// JetStream sequence; 0 is the place before the first event.
    pub sequence: u64,
}

impl Cursor {
    /// A cursor at `sequence` of `epoch`.
    #[must_use]
    pub const fn new(epoch: Epoch, sequence: u64) -> Self {
        Self { epoch, sequence }
    }
}

impl Cursor {
    /// Appends what [`Display`](fmt::Display) writes. Every event has one: this takes a quarter of
    /// the time.
    pub fn append_to(self, out: &mut Vec<u8>) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let Self { epoch: Epoch(bits), sequence } = self;
        out.extend((0..8).rev().map(|nibble| DIGITS[(bits >> (4 * nibble)) as usize & 15]));
        out.push(b'-');
        // 20 digits are enough for any u64.
        let (mut text, mut at, mut rest) = ([0; 20], 20, sequence);
        loop {
            at -= 1;
            text[at] = DIGITS[(rest % 10) as usize];
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        out.extend_from_slice(&text[at..]);
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.sequence)
    }
}

/// A text that is no cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a cursor must be 8 lower-case hexadecimal digits, '-', and a sequence number, for example 5f3c01aa-1042"
)]
pub struct ParseError;

impl FromStr for Cursor {
    type Err = ParseError;

    /// Reads exactly what [`Display`](fmt::Display) writes; one place has one text.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.len() > limits::CURSOR_BYTES {
            return Err(ParseError);
        }
        let (epoch, sequence) = text.split_once('-').ok_or(ParseError)?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if epoch.len() != 8 || !epoch.bytes().all(hex) {
            return Err(ParseError);
        }
        let leading_zero = sequence.len() > 1 && sequence.starts_with('0');
        if sequence.is_empty() || leading_zero || !sequence.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ParseError);
        }
        Ok(Self {
            epoch: Epoch(u32::from_str_radix(epoch, 16).map_err(|_| ParseError)?),
            sequence: sequence.parse().map_err(|_| ParseError)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_forms() {
        let cursor = Cursor::new(Epoch::from_bits(0x00ab_cdef), 1042);
        assert_eq!(cursor.to_string(), "00abcdef-1042");
        assert_eq!("00abcdef-1042".parse(), Ok(cursor));
        assert_eq!(Cursor::new(Epoch::from_bits(u32::MAX), u64::MAX).to_string().len(), 29);
    }

    #[test]
    fn what_is_no_cursor() {
        let long = format!("00abcdef-{}", "1".repeat(120));
        assert_eq!(long.len(), 129);
        for bad in [
            "",
            "-",
            "00abcdef",
            "00abcdef-",
            "00ABCDEF-1",
            "0abcdef-1",
            "00abcdef-01",
            "00abcdef--1",
            "00abcdef-+1",
            "00abcdef-1 ",
            " 00abcdef-1",
            "00abcdeg-1",
            "00abcdef-18446744073709551616",
            "00abcdef-1\0",
            "１0abcdef-1",
            &long,
        ] {
            assert_eq!(bad.parse::<Cursor>(), Err(ParseError), "{bad:?}");
        }
    }

    #[test]
    fn a_recreated_or_marked_stream_has_another_epoch() {
        let first = Epoch::of_stream(1_700_000_000_000_000_001, "");
        assert_eq!(first, Epoch::of_stream(1_700_000_000_000_000_001, ""));
        assert_ne!(first, Epoch::of_stream(1_700_000_000_000_000_002, ""));
        assert_ne!(first, Epoch::of_stream(1_700_000_000_000_000_001, "restored-1"));
    }

    proptest! {
        #[test]
        fn round_trip(epoch: u32, sequence: u64) {
            let cursor = Cursor::new(Epoch::from_bits(epoch), sequence);
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
            let mut appended = b"id: ".to_vec();
            cursor.append_to(&mut appended);
            prop_assert_eq!(appended, format!("id: {cursor}").into_bytes());
        }

        #[test]
        fn any_text_is_read_without_a_panic_and_only_canonical_text_is_taken(text in ".{0,140}") {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }
    }
}
