//! Topic filters: what is a pattern, and what it selects. An input's lines are patterns, the last
//! one a topic.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use sluice_channel::{
    Filter, Topic, limits,
    topic::{Error, Pattern},
};

use crate::engine::Target;

pub(crate) const TARGET: Target = Target {
    name: "filter",
    check,
    valid,
    words: &["*", ">", ".", "..", ".*", ".>", "*.", "\n", "a", "größe", " ", "\u{a0}", "\0", "\r"],
};

/// Few words, so that patterns and topics meet.
const WORDS: &[&str] = &["a", "b", "eu", "orders", "ü"];

pub(crate) fn topic(rng: &mut StdRng) -> String {
    let words: Vec<_> = (0..rng.random_range(1..5)).map(|_| *WORDS.choose(rng).unwrap()).collect();
    words.join(".")
}

/// A topic in which some words are wildcards.
pub(crate) fn pattern(rng: &mut StdRng) -> String {
    let topic = topic(rng);
    let mut words: Vec<_> = topic.split('.').collect();
    for word in &mut words {
        if rng.random_bool(0.3) {
            *word = "*";
        }
    }
    if rng.random_bool(0.3) {
        *words.last_mut().unwrap() = ">";
    }
    words.join(".")
}

fn valid(rng: &mut StdRng) -> Vec<u8> {
    let count =
        if rng.random_bool(0.05) { rng.random_range(30..35) } else { rng.random_range(0..4) };
    let mut lines: Vec<_> = (0..count).map(|_| pattern(rng)).collect();
    lines.push(topic(rng));
    lines.join("\n").into_bytes()
}

/// What a word of a pattern is.
#[derive(PartialEq)]
enum Word<'t> {
    Literal(&'t str),
    One,
    Rest,
}

/// NATS's rules for subjects: words without white space and control characters between single
/// dots, `*` and `>` as whole words only, `>` as the last one.
fn words(text: &str) -> Option<Vec<Word<'_>>> {
    if text.len() > limits::TOPIC_BYTES {
        return None;
    }
    let mut words = Vec::new();
    let mut begin = 0;
    for (at, character) in text.char_indices().chain([(text.len(), '.')]) {
        if character == '.' {
            words.push(match &text[begin..at] {
                "" => return None,
                "*" => Word::One,
                ">" if at == text.len() => Word::Rest,
                word if word.contains('*') || word.contains('>') => return None,
                word => Word::Literal(word),
            });
            begin = at + 1;
        } else if character.is_whitespace() || character.is_control() {
            return None;
        }
    }
    Some(words)
}

/// Whether a pattern's words select a subject's, one by one.
fn selects(pattern: &[Word<'_>], subject: &[&str]) -> bool {
    match (pattern, subject) {
        ([], []) => true,
        ([Word::Rest], [_, ..]) => true,
        ([Word::One, pattern @ ..], [_, subject @ ..]) => selects(pattern, subject),
        ([Word::Literal(word), pattern @ ..], [first, subject @ ..]) => {
            word == first && selects(pattern, subject)
        }
        _ => false,
    }
}

/// Whether a filter selects a topic; `None` where one of its patterns is none, or there are too
/// many. A topic that begins with a blank stands for bytes that are no text: only `>` selects it.
pub(crate) fn reference(patterns: &[&str], topic: &str) -> Option<bool> {
    if patterns.len() > limits::FILTERS_PER_SUBSCRIBER {
        return None;
    }
    let subject: Vec<_> = topic.split('.').collect();
    let patterns = patterns.iter().map(|text| words(text)).collect::<Option<Vec<_>>>()?;
    let selects = |pattern: &Vec<Word<'_>>| match pattern[..] {
        [Word::Rest] => true,
        _ => !topic.starts_with(' ') && selects(pattern, &subject),
    };
    Some(patterns.is_empty() || patterns.iter().any(selects))
}

fn check(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let mut lines: Vec<_> = text.split('\n').collect();
    let topic = lines.pop().unwrap_or_default();
    for text in lines.iter().chain([&topic]) {
        pattern_and_topic(text);
    }
    let filter = Filter::new(lines.iter().copied());
    let expected = reference(&lines, topic);
    let selected = filter.as_ref().ok().map(|filter| {
        // A lone `>` selects what has no words, too: there is nothing that it could leave out.
        filter.matches(topic)
    });
    assert_eq!(selected, expected, "{lines:?} on {topic:?}");
    match &filter {
        Ok(filter) => {
            let everything = lines.is_empty() || lines.contains(&">");
            assert_eq!(filter.is_all(), everything, "{lines:?}");
        }
        Err(Error::TooMany) => assert!(lines.len() > limits::FILTERS_PER_SUBSCRIBER),
        Err(Error::Filter(named)) => assert!(words(named).is_none(), "{named:?} is a pattern"),
        Err(error @ Error::Topic(_)) => panic!("{error}"),
    }
    filter.is_ok()
}

fn pattern_and_topic(text: &str) {
    let words = words(text);
    let pattern = Pattern::new(text);
    assert_eq!(pattern.is_ok(), words.is_some(), "{text:?}");
    if let Ok(pattern) = pattern {
        assert_eq!(pattern.as_str(), text);
    }
    let is_literal =
        words.is_some_and(|words| words.iter().all(|word| matches!(word, Word::Literal(_))));
    let topic = Topic::new(text);
    assert_eq!(topic.is_ok(), is_literal, "{text:?}");
    if let Ok(topic) = topic {
        assert_eq!(topic.to_string(), text);
        assert!(Pattern::new(text).is_ok_and(|pattern| pattern.matches(text)), "it selects itself");
    }
}
