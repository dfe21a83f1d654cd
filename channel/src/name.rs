//! Names of channels, streams and subjects, checked once at construction.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not an RFC 1035 label, or too long.
    #[error(
        "channel name {0:?} must be a DNS label: a letter, then letters, digits or '-', at most {max} characters, all lower case",
        max = limits::CHANNEL_NAME_BYTES
    )]
    Channel(String),
    /// Not a name that JetStream and this product take.
    #[error("stream name {0:?} must consist of 1 to {max} letters, digits, '_' or '-'", max = limits::DERIVED_STREAM_NAME_BYTES)]
    Stream(String),
}

/// Name of a channel: an RFC 1035 label of at most [`limits::CHANNEL_NAME_BYTES`]. No dots: a
/// channel `b.c` would overlap the subjects of `b`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChannelName(String);

impl ChannelName {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`Error::Channel`] when it is not such a label.
    pub fn new(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        let bytes = name.as_bytes();
        let ok = bytes.len() <= limits::CHANNEL_NAME_BYTES
            && bytes.first().is_some_and(u8::is_ascii_lowercase)
            && bytes.last().is_some_and(|b| *b != b'-')
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
        if ok { Ok(Self(name)) } else { Err(Error::Channel(name)) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ChannelName {
    type Error = Error;
    fn try_from(name: String) -> Result<Self, Error> {
        Self::new(name)
    }
}

impl From<ChannelName> for String {
    fn from(name: ChannelName) -> Self {
        name.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a JetStream stream: letters, digits, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamName(String);

impl StreamName {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`Error::Stream`] when it holds another character, is empty or too long.
    pub fn new(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        let ok = (1..=limits::DERIVED_STREAM_NAME_BYTES).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if ok { Ok(Self(name)) } else { Err(Error::Stream(name)) }
    }

    /// The name of the stream behind channel `name` of `namespace` when the user chose none. The
    /// hash of `namespace/name` keeps it apart from any name that a user could choose by hand for
    /// another channel.
    #[must_use]
    pub fn derived(namespace: &str, name: &ChannelName) -> Self {
        Self(format!(
            "sse_{namespace}_{name}_{:08x}",
            fnv1a32(&[namespace.as_bytes(), b"/", name.0.as_bytes()])
        ))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for StreamName {
    type Error = Error;
    fn try_from(name: String) -> Result<Self, Error> {
        Self::new(name)
    }
}

impl From<StreamName> for String {
    fn from(name: StreamName) -> Self {
        name.0
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The fixed head of a channel's default subject, with its last dot: `sse.<namespace>.<name>.`.
#[must_use]
pub fn default_topic_prefix(namespace: &str, name: &ChannelName) -> String {
    format!("sse.{namespace}.{name}.")
}

/// The default subject of a channel: `sse.<namespace>.<name>.>`.
#[must_use]
pub fn default_subject(namespace: &str, name: &ChannelName) -> String {
    format!("{}>", default_topic_prefix(namespace, name))
}

/// FNV-1a, 32 bits: for identity only, never for security.
pub(crate) fn fnv1a32(parts: &[&[u8]]) -> u32 {
    parts
        .iter()
        .flat_map(|p| p.iter())
        .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_names_are_dns_labels() {
        for good in ["orders", "a", "a1-b2", &"x".repeat(48)] {
            assert!(ChannelName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "Orders", "1a", "a.b", "a_b", "-a", "a-", "ä", "a b", &"x".repeat(49)] {
            assert!(ChannelName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn fnv_is_the_published_one() {
        // Test vectors of the FNV reference: "" and "foobar".
        assert_eq!(fnv1a32(&[b""]), 0x811c_9dc5);
        assert_eq!(fnv1a32(&[b"foo", b"bar"]), 0xbf9c_f968);
    }

    #[test]
    fn namespaces_and_names_that_look_alike_have_different_streams() {
        let stream =
            |ns: &str, name: &str| StreamName::derived(ns, &ChannelName::new(name).unwrap());
        assert_ne!(stream("a--b", "c"), stream("a", "b--c"));
        assert_ne!(stream("a-b", "c"), stream("a", "b-c"));
        let longest = stream(&"n".repeat(63), &"x".repeat(48));
        assert!(StreamName::new(longest.as_str()).is_ok());
    }
}
