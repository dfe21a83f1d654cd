//! What is granted to a namespace beyond its own.

use std::collections::BTreeMap;

use sluice_channel::{StreamName, text, topic::Pattern};

/// Beginning of the annotations of a Namespace that grant something.
pub const PREFIX: &str = "tenancy.sluice.dev/";

/// Most bytes of one annotation that are read: the admission policy has a budget for what it
/// computes, and a grant that it cannot read must not count elsewhere.
const ANNOTATION_BYTES: usize = 4096;

/// A number of bytes, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    /// As it was written, like `10Gi`.
    pub text: String,
    /// The number.
    pub bytes: u64,
}

impl std::str::FromStr for Size {
    type Err = text::Error;

    fn from_str(text: &str) -> Result<Self, text::Error> {
        Ok(Self { text: text.to_owned(), bytes: text::size(text)? })
    }
}

/// A stream that may change hands, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakeOver {
    /// Name of the stream.
    pub stream: String,
    /// UID of the owner that its mark names.
    pub owner: String,
}

/// What is granted to a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// Subjects, with wildcards.
    pub subjects: Vec<String>,
    /// Names of streams that may be named and adopted.
    pub adopt: Vec<String>,
    /// Instead of the greatest `maxBytes` of one channel.
    pub max_bytes: Option<Size>,
    /// Instead of the most that all streams of the namespace may reserve.
    pub quota: Option<Size>,
    /// Streams whose present owner's mark gives way.
    pub take_over: Vec<TakeOver>,
    /// NATS servers that channels may name for themselves.
    pub nats: Vec<String>,
    /// What was written and grants nothing.
    pub problems: Vec<String>,
}

impl Grant {
    /// The grants of a Namespace's annotations. What cannot be read grants nothing.
    #[must_use]
    pub fn of(annotations: &BTreeMap<String, String>) -> Self {
        let mut grant = Self::default();
        for (name, text) in annotations {
            if let Some(key) = name.strip_prefix(PREFIX) {
                grant.read(key, text);
            }
        }
        grant
    }

    /// Takes in the grant `key`, which is the name of an annotation without its prefix.
    pub fn read(&mut self, key: &str, text: &str) {
        if text.len() > ANNOTATION_BYTES {
            return self.problem(key, &format!("is longer than {ANNOTATION_BYTES} bytes"));
        }
        let words = || text.split(',').map(str::trim).filter(|word| !word.is_empty());
        match key {
            "max-bytes" | "quota" => match text.parse::<Size>() {
                Ok(size) if key == "quota" => self.quota = Some(size),
                Ok(size) => self.max_bytes = Some(size),
                Err(error) => self.problem(key, &error.to_string()),
            },
            "subjects" => words().for_each(|word| self.word(key, word, is_pattern(word))),
            "adopt" => words().for_each(|word| self.word(key, word, StreamName::new(word).is_ok())),
            "nats" => words().for_each(|word| self.word(key, word, !word.contains(['@', ' ']))),
            "take-over" => {
                for word in words() {
                    let named = word.split_once('=');
                    match named
                        .filter(|(stream, uid)| StreamName::new(*stream).is_ok() && !uid.is_empty())
                    {
                        Some((stream, owner)) => self
                            .take_over
                            .push(TakeOver { stream: stream.to_owned(), owner: owner.to_owned() }),
                        None => self.word(key, word, false),
                    }
                }
            }
            _ => self.problem(key, "is no grant that is known"),
        }
    }

    fn word(&mut self, key: &str, word: &str, good: bool) {
        if !good {
            return self.problem(key, &format!("has {word:?}, which cannot be granted"));
        }
        match key {
            "subjects" => self.subjects.push(word.to_owned()),
            "adopt" => self.adopt.push(word.to_owned()),
            _ => self.nats.push(word.to_owned()),
        }
    }

    fn problem(&mut self, key: &str, what: &str) {
        self.problems.push(format!("{PREFIX}{key} {what}"));
    }

    /// Adds what `other` grants. A size that is granted here stays.
    pub(super) fn add(&mut self, other: &Self) {
        let Self { subjects, adopt, max_bytes, quota, take_over, nats, problems } = other.clone();
        self.subjects.extend(subjects);
        self.adopt.extend(adopt);
        self.max_bytes = self.max_bytes.take().or(max_bytes);
        self.quota = self.quota.take().or(quota);
        self.take_over.extend(take_over);
        self.nats.extend(nats);
        self.problems.extend(problems);
    }
}

/// Whether `text` is a subject of NATS, wildcards and `>` alone included. No backslash: the
/// admission policy quotes with it.
fn is_pattern(text: &str) -> bool {
    Pattern::new(text).is_ok() && !text.contains('\\')
}

/// Whether every subject that `subject` takes is one that `pattern` takes, word by word as
/// nats-server compares them.
pub(super) fn covers(pattern: &str, subject: &str) -> bool {
    let mut words = subject.split('.');
    for granted in pattern.split('.') {
        match (granted, words.next()) {
            (">", Some(_)) => return true,
            ("*", Some(word)) if word != ">" => {}
            (granted, Some(word)) if granted == word && word != ">" => {}
            _ => return false,
        }
    }
    words.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_what_it_takes_whole_and_no_more() {
        for (pattern, subject, covered) in [
            ("telemetry.>", "telemetry.a", true),
            ("telemetry.>", "telemetry.*.*", true),
            ("telemetry.>", "telemetry.>", true),
            ("telemetry.>", "telemetry", false),
            ("telemetry.>", "telemetry2.a", false),
            ("telemetry.>", "*.a", false),
            ("telemetry.*", "telemetry.a", true),
            ("telemetry.*", "telemetry.*", true),
            ("telemetry.*", "telemetry.>", false),
            ("telemetry.*", "telemetry.a.b", false),
            ("telemetry.*.x", "telemetry.a.x", true),
            ("telemetry.*.x", "telemetry.a.*", false),
            ("telemetry.*.>", "telemetry.>", false),
            ("a.b", "a.*", false),
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.b.c", "a.b", false),
            (">", "a", true),
            (">", "a.>", true),
            ("*", "a.>", false),
        ] {
            assert_eq!(covers(pattern, subject), covered, "{pattern} {subject}");
        }
    }

    #[test]
    fn what_cannot_be_read_grants_nothing_and_is_named() {
        let mut grant = Grant::default();
        grant.read("subjects", " a.>, b..c,d.>.e, *.f,, g*, \\Q ,>");
        assert_eq!(grant.subjects, ["a.>", "*.f", ">"]);
        grant.read("adopt", "ORDERS, a.b,*");
        assert_eq!(grant.adopt, ["ORDERS"]);
        grant.read("max-bytes", "50Gi");
        grant.read("quota", "much");
        assert_eq!(grant.max_bytes.as_ref().map(|size| size.bytes), Some(50 << 30));
        assert_eq!(grant.quota, None);
        grant.read("take-over", "ORDERS=6f1c, OTHERS, =1, X=");
        assert_eq!(
            grant.take_over,
            [TakeOver { stream: "ORDERS".to_owned(), owner: "6f1c".to_owned() }]
        );
        grant.read("nats", "nats.team-a.svc:4222, user:secret@nats:4222");
        assert_eq!(grant.nats, ["nats.team-a.svc:4222"]);
        grant.read("subject", "a.>");
        assert_eq!(grant.problems.len(), 4 + 2 + 1 + 3 + 1 + 1, "{:?}", grant.problems);
        let long = format!("a.>,{}", "x".repeat(ANNOTATION_BYTES));
        let long = Grant::of(&BTreeMap::from([(format!("{PREFIX}subjects"), long)]));
        assert!(long.subjects.is_empty() && long.problems.len() == 1, "{long:?}");
    }
}
