//! The events of the soak: payload and topic follow from the number, so that each subscriber can
//! tell by itself whether what came is what was sent.

use std::sync::LazyLock;

/// Topics, `t0` to `t7`: as many as a filter's mask has bits.
pub(crate) const TOPICS: u64 = 8;
/// Longest filler of a payload, bytes.
const FILLER_BYTES: u64 = 500;
/// A stored event takes at most this much of `max_bytes`: payload, subject, headers, and what the
/// file store adds.
pub(crate) const STORED_BYTES: u64 = FILLER_BYTES + 500;

static FILLER: LazyLock<String> =
    LazyLock::new(|| ('a'..='z').cycle().take(usize::try_from(FILLER_BYTES).unwrap()).collect());

fn filler(id: u64) -> &'static str {
    &FILLER[..usize::try_from(id * 7_919 % FILLER_BYTES).unwrap()]
}

/// What event `id` (from 1) carries.
pub(crate) fn payload(id: u64) -> String {
    format!("{id} {}", filler(id))
}

/// The number of the event that carries `data`, if it is whole.
pub(crate) fn id_of(data: &str) -> Option<u64> {
    let (id, rest) = data.split_once(' ')?;
    let id = id.parse().ok()?;
    (rest == filler(id)).then_some(id)
}

/// Where event `id` is published.
pub(crate) fn topic(id: u64) -> String {
    format!("t{}", topic_number(id))
}

pub(crate) fn topic_number(id: u64) -> u64 {
    // Not the id itself: publishers take ids in turn, and each would have its own topics.
    id / 3 % TOPICS
}

/// Which topics a subscriber selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Selection(u8);

impl Selection {
    pub(crate) const ALL: Self = Self(u8::MAX);

    /// One topic, or two.
    pub(crate) fn of(topics: &[u64]) -> Self {
        Self(topics.iter().fold(0, |mask, topic| mask | 1 << (topic % TOPICS)))
    }

    pub(crate) fn is_all(self) -> bool {
        self == Self::ALL
    }

    /// Whether event `id` is among them.
    pub(crate) fn has(self, id: u64) -> bool {
        self.0 >> topic_number(id) & 1 == 1
    }

    /// As query parameters, each after `&`.
    pub(crate) fn query(self) -> String {
        if self.is_all() {
            return String::new();
        }
        let topics = (0..TOPICS).filter(|topic| self.0 >> topic & 1 == 1);
        topics.map(|topic| format!("&topic=t{topic}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_known_by_its_payload_and_only_if_it_is_whole() {
        for id in [1, 8, 501, 123_456] {
            let payload = payload(id);
            assert_eq!(id_of(&payload), Some(id));
            assert!(id_of(&format!("{payload}x")).is_none());
            assert!(id_of(&payload.replacen(' ', "", 1)).is_none());
            assert!(payload.len() + 400 < usize::try_from(STORED_BYTES).unwrap());
        }
    }

    #[test]
    fn a_selection_has_what_its_query_asks_for() {
        let two = Selection::of(&[1, 6]);
        assert_eq!(two.query(), "&topic=t1&topic=t6");
        let ids: Vec<u64> = (1..=48).filter(|id| two.has(*id)).collect();
        assert!(ids.iter().all(|id| ["t1", "t6"].contains(&topic(*id).as_str())));
        assert_eq!(ids.len(), 12);
        assert!((1..=48).all(|id| Selection::ALL.has(id)) && Selection::ALL.query().is_empty());
    }
}
