//! Topics (the part of a NATS subject that subscribers see) and the filters that select them.

use std::fmt;

use crate::limits;

/// Why a topic or filter was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The topic itself is not well formed.
    #[error("topic {0:?} must be 1 to {max} bytes of '.'-separated words without spaces, control characters, '*' or '>'", max = limits::TOPIC_BYTES)]
    Topic(String),
    /// The filter is not well formed.
    #[error(
        "topic filter {0:?} must be '.'-separated words; '*' stands for one word and '>' at the end for one or more"
    )]
    Filter(String),
    /// Too many filters on one subscription.
    #[error("at most {max} topic filters may be given", max = limits::FILTERS_PER_SUBSCRIBER)]
    TooMany,
}

/// A topic that may be published to: literal NATS subject tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Topic(String);

impl Topic {
    /// Checks `topic`.
    ///
    /// # Errors
    /// [`Error::Topic`] when it is empty, too long, or has an empty, wildcard or unprintable word.
    pub fn new(topic: impl Into<String>) -> Result<Self, Error> {
        let topic = topic.into();
        if well_formed(&topic)
            && topic.split('.').all(|w| w != "*" && w != ">" && !w.contains(['*', '>']))
        {
            Ok(Self(topic))
        } else {
            Err(Error::Topic(topic))
        }
    }

    /// The topic as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn well_formed(text: &str) -> bool {
    (1..=limits::TOPIC_BYTES).contains(&text.len())
        && text.split('.').all(|word| !word.is_empty())
        && !text.chars().any(|c| c.is_whitespace() || c.is_control())
}

/// Begins what stands for a topic that is not UTF-8. No subject has a blank, so nothing else does.
const OPAQUE: char = ' ';

/// What stands for a topic that is not UTF-8: another for each, equal to none that is, and selected
/// by no pattern but `>`. [`shown`] has it as text.
#[must_use]
pub fn opaque(topic: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::from(OPAQUE);
    for byte in topic {
        if byte.is_ascii_graphic() && *byte != b'%' {
            text.push(char::from(*byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// Whether `topic` stands for one that is not UTF-8, and the text to show: percent-encoded if so.
#[must_use]
pub fn shown(topic: &str) -> (bool, &str) {
    topic.strip_prefix(OPAQUE).map_or((false, topic), |encoded| (true, encoded))
}

/// One pattern in NATS's subject syntax.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern(String);

impl Pattern {
    /// Checks `pattern`.
    ///
    /// # Errors
    /// [`Error::Filter`] when it is not a subject in NATS's syntax.
    pub fn new(pattern: impl Into<String>) -> Result<Self, Error> {
        let pattern = pattern.into();
        let last = pattern.split('.').count().saturating_sub(1);
        let words_ok = pattern.split('.').enumerate().all(|(i, word)| match word {
            "*" => true,
            ">" => i == last,
            literal => !literal.contains(['*', '>']),
        });
        if well_formed(&pattern) && words_ok {
            Ok(Self(pattern))
        } else {
            Err(Error::Filter(pattern))
        }
    }

    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `subject` is one that the pattern selects (NATS subject semantics).
    #[must_use]
    pub fn matches(&self, subject: &str) -> bool {
        if subject.starts_with(OPAQUE) {
            return self.0 == ">";
        }
        let mut words = subject.split('.');
        for pattern in self.0.split('.') {
            match (pattern, words.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (literal, Some(word)) if literal == word => {}
                _ => return false,
            }
        }
        words.next().is_none()
    }
}

/// Which events a subscriber sees: all, or those whose topic matches one of the patterns.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Filter(Vec<Pattern>);

impl Filter {
    /// The filter of these patterns; none, or a lone `>`, selects everything.
    ///
    /// # Errors
    /// [`Error::Filter`] for a malformed pattern, [`Error::TooMany`] for over
    /// [`limits::FILTERS_PER_SUBSCRIBER`].
    pub fn new<I: IntoIterator<Item: Into<String>>>(patterns: I) -> Result<Self, Error> {
        let mut all = Vec::new();
        for pattern in patterns {
            if all.len() == limits::FILTERS_PER_SUBSCRIBER {
                return Err(Error::TooMany);
            }
            all.push(Pattern::new(pattern)?);
        }
        if all.iter().any(|p| p.0 == ">") {
            all.clear();
        }
        Ok(Self(all))
    }

    /// Whether every event passes.
    #[must_use]
    pub const fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// How many patterns a topic that does not pass is compared with.
    #[must_use]
    pub const fn patterns(&self) -> usize {
        self.0.len()
    }

    /// Memory that it takes, bytes, roughly.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|pattern| size_of::<Pattern>() + pattern.0.len()).sum()
    }

    /// Whether an event on `topic` passes.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|p| p.matches(topic))
    }
}

/// The patterns with commas between them; empty where every event passes.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pattern) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(&pattern.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matching_follows_nats() {
        for (pattern, subject, expected) in [
            ("orders", "orders", true),
            ("orders", "orders.eu", false),
            ("orders.*", "orders.eu", true),
            ("orders.*", "orders", false),
            ("orders.*", "orders.eu.1", false),
            ("orders.>", "orders.eu.1", true),
            ("orders.>", "orders", false),
            ("*.eu.*", "orders.eu.1", true),
            ("*.eu.*", "orders.us.1", false),
            (">", "a", true),
            ("*", "a", true),
            ("*", "a.b", false),
        ] {
            assert_eq!(
                Pattern::new(pattern).unwrap().matches(subject),
                expected,
                "{pattern} on {subject}"
            );
        }
    }

    #[test]
    fn malformed_filters_are_refused() {
        for bad in [
            "",
            ".",
            "a..b",
            ".a",
            "a.",
            "a.>.b",
            "a*",
            "a>b",
            "a b",
            "a\tb",
            "a\u{0}b",
            &"x".repeat(257),
        ] {
            assert!(Filter::new([bad]).is_err(), "{bad:?}");
        }
        assert_eq!(Filter::new(vec!["a"; 33]), Err(Error::TooMany));
    }

    #[test]
    fn a_topic_that_is_no_text_is_selected_by_everything_only() {
        let topic = opaque(b"a.\xff%\r");
        assert_eq!(shown(&topic), (true, "a.%FF%25%0D"));
        assert_eq!(shown("a.%FF%25%0D"), (false, "a.%FF%25%0D"));
        for pattern in ["a.%FF%25%0D", "a.*", "a.>", "*.*", "*"] {
            assert!(!Filter::new([pattern]).unwrap().matches(&topic), "{pattern}");
        }
        assert!(Filter::default().matches(&topic));
        assert!(Filter::new(["a", ">"]).unwrap().matches(&topic));
        assert!(Pattern::new(">").unwrap().matches(&topic));
    }

    #[test]
    fn topics_are_literal() {
        for bad in ["", "a.*", ">", "a.>", "a..b", "a b", "a\r\nb", "a*b"] {
            assert!(Topic::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "a.b-c_d", "größe.1"] {
            assert!(Topic::new(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn no_filter_and_the_full_wildcard_select_everything() {
        assert!(Filter::default().is_all());
        assert!(Filter::new(["a", ">"]).unwrap().is_all());
        assert_eq!(Filter::new(["a", ">"]).unwrap().to_string(), "");
        let some = Filter::new(["a.*", "b"]).unwrap();
        assert!(some.matches("a.x") && some.matches("b") && !some.matches("c"));
        assert_eq!(some.to_string(), "a.*,b");
    }
}
