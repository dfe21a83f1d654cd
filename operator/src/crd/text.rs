//! Texts with a grammar of their own: durations, sizes, subjects, origins.
//!
//! They stay texts in the API object, so what a user wrote is what he reads back; the numbers come
//! out of [`DurationText::parse`] and [`SizeText::parse`]. Each type's schema carries the CEL rule
//! that says the same.

use std::{borrow::Cow, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// A text that is no duration or no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not in the grammar of Gateway API durations (GEP-2257).
    #[error("{0:?} must be a duration like 15s, 500ms or 1h30m")]
    Duration(String),
    /// Not a whole quantity of bytes.
    #[error("{0:?} must be a size like 64Ki, 1Gi or 1048576")]
    Size(String),
}

/// A duration like `15s` or `1h30m` (GEP-2257: up to four numbers of up to five digits with `h`,
/// `m`, `s` or `ms`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DurationText(pub String);

impl DurationText {
    /// The duration in numbers.
    ///
    /// # Errors
    /// [`Error::Duration`] when the text is outside the grammar.
    pub fn parse(&self) -> Result<Duration, Error> {
        let fail = || Error::Duration(self.0.clone());
        let (mut rest, mut total, mut parts) = (self.0.as_str(), Duration::ZERO, 0);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest
                .get(..digits)
                .filter(|_| (1..=5).contains(&digits))
                .and_then(|n| n.parse().ok())
                .ok_or_else(fail)?;
            rest = rest.get(digits..).ok_or_else(fail)?;
            let letters = rest.bytes().take_while(u8::is_ascii_lowercase).count();
            let (unit, after) = rest.split_at_checked(letters).ok_or_else(fail)?;
            total += match unit {
                "h" => Duration::from_secs(number * 3600),
                "m" => Duration::from_secs(number * 60),
                "s" => Duration::from_secs(number),
                "ms" => Duration::from_millis(number),
                _ => return Err(fail()),
            };
            (rest, parts) = (after, parts + 1);
        }
        if (1..=4).contains(&parts) { Ok(total) } else { Err(fail()) }
    }
}

impl From<&str> for DurationText {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl JsonSchema for DurationText {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 28,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$')",
                "message": "must be a duration like 15s, 500ms or 1h30m",
            }],
        })
    }
}

/// A number of bytes like `64Ki`, `1Gi` or `1048576`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SizeText(pub String);

impl SizeText {
    /// The size in bytes.
    ///
    /// # Errors
    /// [`Error::Size`] when the text is no whole quantity, or over 2^63 - 1.
    pub fn parse(&self) -> Result<u64, Error> {
        let fail = || Error::Size(self.0.clone());
        let digits = self.0.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = self
            .0
            .split_at_checked(digits)
            .filter(|_| (1..=16).contains(&digits))
            .ok_or_else(fail)?;
        let unit: u64 = match suffix {
            "" => 1,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return Err(fail()),
        };
        let bytes =
            number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(fail)?;
        if bytes <= i64::MAX as u64 { Ok(bytes) } else { Err(fail()) }
    }
}

impl From<&str> for SizeText {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl JsonSchema for SizeText {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 18,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^[0-9]{1,16}(k|M|G|T|Ki|Mi|Gi|Ti)?$')",
                "message": "must be a size in quotes or with a unit, like 64Ki, 1Gi or \"1048576\"",
            }],
        })
    }
}

/// A resource quantity as in a Pod (`100m`, `2`, `512Mi`): a number in YAML is taken too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Amount(pub String);

impl From<&str> for Amount {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Text(String),
            Number(serde_json::Number),
        }
        Either::deserialize(deserializer).map(|either| match either {
            Either::Text(text) => Self(text),
            Either::Number(number) => Self(number.to_string()),
        })
    }
}

impl JsonSchema for Amount {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Amount".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"x-kubernetes-int-or-string": true, "maxLength": 32})
    }
}

/// A subject in NATS's syntax.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Subject(pub String);

impl JsonSchema for Subject {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Subject".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": 256,
            "x-kubernetes-validations": [
                {
                    "rule": "self.matches('^([^ \\t\\r\\n.*>]+|[*])([.]([^ \\t\\r\\n.*>]+|[*]))*([.]>)?$')",
                    "message": "must be a NATS subject: words separated by '.', '*' for one word, '>' only as the last word after others",
                },
                {
                    "rule": "self != '*' && !self.startsWith('$') && !self.startsWith('_INBOX')",
                    "message": "must not be '*' alone and must not begin with '$' or '_INBOX': those belong to NATS itself",
                },
            ],
        })
    }
}

/// An origin of the Fetch standard (`https://app.example.com`), or `*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Origin(pub String);

impl JsonSchema for Origin {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Origin".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 256,
            "x-kubernetes-validations": [{
                "rule": "self == '*' || self.matches('^[a-z][a-z0-9+.-]*://[^/ *]+$')",
                "message": "must be an origin like https://app.example.com (scheme and host, no path, no '/' at the end), or '*'",
            }],
        })
    }
}

/// A text of at most 253 bytes, the longest Kubernetes name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Text(pub String);

impl JsonSchema for Text {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Text".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 1, "maxLength": 253})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let parse = |text: &str| DurationText::from(text).parse();
        assert_eq!(parse("15s"), Ok(Duration::from_secs(15)));
        assert_eq!(parse("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("1h2m3s4ms"), Ok(Duration::from_millis(3_723_004)));
        assert_eq!(parse("0s"), Ok(Duration::ZERO));
        assert_eq!(parse("8760h"), Ok(Duration::from_secs(8760 * 3600)));
        for bad in [
            "",
            "15",
            "s",
            "1d",
            "1.5s",
            "-1s",
            "100000s",
            "1h1h1h1h1h",
            "1h ",
            "١s",
            "99999999999999999999h",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        let parse = |text: &str| SizeText::from(text).parse();
        assert_eq!(parse("1Gi"), Ok(1 << 30));
        assert_eq!(parse("64Ki"), Ok(65_536));
        assert_eq!(parse("1048576"), Ok(1_048_576));
        assert_eq!(parse("2G"), Ok(2_000_000_000));
        for bad in ["", "Gi", "1.5Gi", "-1", "1gi", "1Pi", "9999999999999999Ti", "1 Gi"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
