//! Events that the log has seen, to know the stream again by: one that was set back to an older
//! state and then filled has other events under the same numbers, and its epoch does not say so.

/// Places remembered: one for each power of two that a sequence can be apart from the head.
const MARKS: usize = 64;

/// Sequences and the times at which the store took them, ever farther apart: the newest of each
/// block of 2^k sequences' beginning, so that one is left of before any set-back.
#[derive(Debug)]
pub(super) struct Marks([(u64, i64); MARKS]);

impl Default for Marks {
    fn default() -> Self {
        Self([(0, 0); MARKS])
    }
}

impl Marks {
    /// Notes the newest event. Twice as rarely for each further mark, so about two writes a call.
    pub(super) fn note(&mut self, sequence: u64, time_nanos: i64) {
        for (power, mark) in self.0.iter_mut().enumerate() {
            if mark.0 != 0 && mark.0 >> power == sequence >> power {
                break;
            }
            *mark = (sequence, time_nanos);
        }
    }

    /// The newest event noted.
    pub(super) fn newest(&self) -> Option<(u64, i64)> {
        // The first mark is replaced each time.
        Some(self.0[0]).filter(|(sequence, _)| *sequence > 0)
    }

    /// The marks from the newest back to `first`.
    pub(super) fn newest_first(&self, first: u64) -> Vec<(u64, i64)> {
        let mut marks: Vec<_> =
            self.0.iter().copied().filter(|(sequence, _)| *sequence >= first.max(1)).collect();
        marks.sort_unstable_by(|a, b| b.cmp(a));
        marks.dedup();
        marks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_ever_farther_apart() {
        let mut marks = Marks::default();
        for sequence in 1..=1_000_000u64 {
            marks.note(sequence, i64::try_from(sequence).unwrap() * 10);
        }
        let kept = marks.newest_first(0);
        assert_eq!(kept[0], (1_000_000, 10_000_000));
        assert!(
            kept.iter().all(|(sequence, time)| i64::try_from(*sequence).unwrap() * 10 == *time)
        );
        for power in 1..20 {
            let near = 1_000_000 - (1 << power);
            assert!(kept.iter().any(|(sequence, _)| *sequence >= near), "one within 2^{power}");
        }
        assert_eq!(kept.last().unwrap().0, 1, "the first block's");
        assert!(marks.newest_first(999_990).iter().all(|(sequence, _)| *sequence >= 999_990));
        assert_eq!(marks.newest_first(1_000_001), []);
    }
}
