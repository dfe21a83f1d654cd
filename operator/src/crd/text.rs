//! Texts with a grammar of their own: durations, sizes, subjects, origins.
//!
//! They stay texts in the API object, so that `kubectl get -o yaml` shows what was applied; the
//! numbers come out of [`DurationText::parse`] and [`SizeText::parse`]. Each type's schema carries
//! the CEL rule that says the same.

use std::{borrow::Cow, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use sluice_channel::text;

/// An image reference as container runtimes read it, or nothing.
pub(super) const IMAGE_RULE: &str = r"self == '' || self.matches('^(([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\\[[0-9A-Fa-f:]+\\])(:[0-9]{1,5})?/)?[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(@[A-Za-z][-A-Za-z0-9_+.]*:[0-9A-Fa-f]{32,128})?$')";
/// What it asks for.
pub(super) const IMAGE_MESSAGE: &str = "must be an image reference like registry.example.com/team/sluice-dataplane:v2: no scheme, no spaces, the repository in lower case";
/// The name of an object in Kubernetes, or nothing.
pub(super) const NAME_RULE: &str = "self == '' || self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')";
/// What it asks for.
pub(super) const NAME_MESSAGE: &str =
    "must be a name in Kubernetes: letters in lower case, digits, '-' and '.'";

/// A duration like `15s` or `1h30m`; see [`text::duration`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DurationText(pub String);

impl DurationText {
    /// The duration in numbers.
    ///
    /// # Errors
    /// [`text::Error::Duration`] when the text is outside the grammar.
    pub fn parse(&self) -> Result<Duration, text::Error> {
        text::duration(&self.0)
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

/// A number of bytes like `64Ki`, `1Gi` or `1048576`; see [`text::size`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SizeText(pub String);

impl SizeText {
    /// The size in bytes.
    ///
    /// # Errors
    /// [`text::Error::Size`] when the text is no whole quantity, or over 2^63 - 1.
    pub fn parse(&self) -> Result<u64, text::Error> {
        text::size(&self.0)
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

/// A resource quantity as in a Pod (`100m`, `2`, `512Mi`): a whole number in YAML is taken too.
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
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 32,
            "x-kubernetes-validations": [{
                "rule": "isQuantity(string(self)) && !string(self).startsWith('-')",
                "message": "must be a quantity like 100m, 2 or 512Mi",
            }],
        })
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
                    "rule": "!self.matches('^[*]([.]|$)') && !self.startsWith('$') && !self.startsWith('_INBOX')",
                    "message": "must not be '*' alone and must not begin with the word '*', with '$' or '_INBOX': those belong to NATS itself",
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
