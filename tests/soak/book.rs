//! What was published and acknowledged, by sequence, and what the test has taken out of the stream
//! again: the truth that subscribers are judged by.

use crate::{
    events::{STORED_BYTES, topic_number},
    session::{Broken, Millis, broken},
};

/// Never.
pub(crate) const NEVER: Millis = Millis::MAX;
/// Limits act a moment after the event that passes them was stored.
const SLACK: Millis = 2_000;

/// What is known of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    /// Number of the event; 0 while it is not known.
    pub(crate) id: u64,
    /// When it was sent for the first time.
    pub(crate) sent: Millis,
    /// When it was acknowledged to its publisher.
    pub(crate) acknowledged: Millis,
}

const UNKNOWN: Known = Known { id: 0, sent: NEVER, acknowledged: NEVER };

/// Something that takes events out of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    /// All events of this topic.
    Topic(u64),
    /// All events before this sequence.
    Before(u64),
    /// This event.
    One(u64),
    /// All but the newest so many.
    AllBut(u64),
}

impl Removal {
    /// The limit `max_bytes`.
    pub(crate) fn bytes(limit: u64) -> Self {
        Self::AllBut(limit / STORED_BYTES)
    }
}

/// A removal, and when it may have acted: from the request on, until the answer, or until it was
/// taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    removal: Removal,
    from: Millis,
    to: Millis,
}

/// The ledger of the stream.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// By sequence, from 0, which no event has.
    known: Vec<Known>,
    removals: Vec<Span>,
    acknowledged: u64,
}

impl Book {
    fn at(&mut self, sequence: u64) -> &mut Known {
        let index = usize::try_from(sequence).unwrap();
        if index >= self.known.len() {
            self.known.resize(index + 1, UNKNOWN);
        }
        &mut self.known[index]
    }

    /// JetStream has stored event `id`.
    pub(crate) fn acknowledge(
        &mut self,
        sequence: u64,
        id: u64,
        sent: Millis,
        now: Millis,
    ) -> Result<(), Broken> {
        self.saw(sequence, id)?;
        let known = self.at(sequence);
        known.sent = known.sent.min(sent);
        let is_new = known.acknowledged == NEVER;
        known.acknowledged = known.acknowledged.min(now);
        self.acknowledged += u64::from(is_new);
        Ok(())
    }

    /// Event `id` is said to have this sequence.
    pub(crate) fn saw(&mut self, sequence: u64, id: u64) -> Result<(), Broken> {
        let known = self.at(sequence);
        if known.id != 0 && known.id != id {
            let before = known.id;
            return broken(
                "two events at one sequence",
                format!("event {sequence} has number {id}, and had {before}"),
            );
        }
        known.id = id;
        Ok(())
    }

    /// The highest sequence that was acknowledged or seen.
    pub(crate) fn last(&self) -> u64 {
        self.known.len().saturating_sub(1) as u64
    }

    /// How many events were acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub(crate) fn get(&self, sequence: u64) -> Known {
        let index = usize::try_from(sequence).unwrap();
        self.known.get(index).copied().unwrap_or(UNKNOWN)
    }

    /// The test asks for `removal` now. What is not answered may act until the end.
    pub(crate) fn removes(&mut self, removal: Removal, now: Millis) -> usize {
        self.removals.push(Span { removal, from: now, to: NEVER });
        self.removals.len() - 1
    }

    /// The store has answered, or a limit was taken back: what is sent from now on stays.
    pub(crate) fn removed(&mut self, number: usize, now: Millis) {
        self.removals[number].to = now;
    }

    /// Whether all events of the stream may have been forgotten as duplicates: a purge does that.
    pub(crate) fn has_purged(&self) -> bool {
        let is_purge = |span: &Span| matches!(span.removal, Removal::Topic(_) | Removal::Before(_));
        self.removals.iter().any(is_purge)
    }

    /// For each sequence the earliest moment at which the test may have had it removed; [`NEVER`]
    /// where it has not.
    pub(crate) fn gone_from(&self) -> Vec<Millis> {
        let mut gone = vec![NEVER; self.known.len()];
        for Span { removal, from, to } in &self.removals {
            let (from, to) = (*from, *to);
            let mut may = |sequence: usize, at: Millis| {
                let sent = self.known[sequence].sent;
                let at = at.max(if sent == NEVER { 0 } else { sent });
                if at <= to.saturating_add(SLACK) {
                    gone[sequence] = gone[sequence].min(at);
                }
            };
            match removal {
                Removal::Topic(topic) => {
                    for (sequence, known) in self.known.iter().enumerate() {
                        // One that was not acknowledged may be of any topic.
                        if known.id == 0 || topic_number(known.id) == *topic {
                            may(sequence, from);
                        }
                    }
                }
                Removal::Before(end) => {
                    let end = usize::try_from(*end).unwrap().min(self.known.len());
                    (0..end).for_each(|sequence| may(sequence, from));
                }
                Removal::One(sequence) => {
                    let sequence = usize::try_from(*sequence).unwrap();
                    if sequence < self.known.len() {
                        may(sequence, from);
                    }
                }
                Removal::AllBut(count) => {
                    let count = usize::try_from(*count).unwrap();
                    // When the first of those was sent that push this one out.
                    let mut pushed = NEVER;
                    for sequence in (0..self.known.len().saturating_sub(count)).rev() {
                        pushed = pushed.min(self.known[sequence + count].sent);
                        if pushed != NEVER {
                            may(sequence, pushed.max(from));
                        }
                    }
                }
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events 1 to 100, number = sequence, sent at 1,000 × sequence.
    fn book() -> Book {
        let mut book = Book::default();
        for n in 1..=100_u32 {
            book.acknowledge(n.into(), n.into(), n * 1_000, n * 1_000 + 5).unwrap();
        }
        book
    }

    fn gone(book: &Book) -> Vec<(u64, Millis)> {
        let gone = book.gone_from();
        (1..).zip(gone.into_iter().skip(1)).filter(|(_, at)| *at != NEVER).collect()
    }

    #[test]
    fn nothing_goes_that_nothing_has_removed() {
        assert_eq!(gone(&book()), []);
        assert_eq!((book().last(), book().acknowledged()), (100, 100));
    }

    #[test]
    fn a_purge_takes_what_was_there_when_it_was_asked_for() {
        let mut book = book();
        let number = book.removes(Removal::Before(4), 50_000);
        book.removed(number, 50_100);
        assert_eq!(gone(&book), [(1, 50_000), (2, 50_000), (3, 50_000)]);
        let number = book.removes(Removal::Topic(topic_number(30)), 40_000);
        book.removed(number, 40_100);
        let of_topic: Vec<u64> =
            (4..=42).filter(|n| topic_number(*n) == topic_number(30)).collect();
        let found: Vec<u64> = gone(&book).iter().map(|(n, _)| *n).filter(|n| *n > 3).collect();
        assert_eq!(found, of_topic);
    }

    #[test]
    fn one_that_is_not_answered_may_act_later() {
        let mut book = book();
        book.removes(Removal::Topic(topic_number(90)), 40_000);
        assert!(gone(&book).contains(&(90, 90_000)));
        book.removes(Removal::One(99), 40_000);
        assert!(gone(&book).contains(&(99, 99_000)));
    }

    #[test]
    fn a_limit_takes_an_event_when_so_many_came_after_it_while_it_was_in_force() {
        let mut book = book();
        let number = book.removes(Removal::AllBut(10), 30_000);
        book.removed(number, 60_000);
        let gone = gone(&book);
        // 21 is pushed out by 31; what 20 and those before it had behind them was there at once.
        assert_eq!(&gone[19..22], [(20, 30_000), (21, 31_000), (22, 32_000)]);
        // Taken back at 60 s, with the slack that 61 and 62 may have used.
        assert_eq!(gone.last(), Some(&(52, 62_000)));
    }

    #[test]
    fn a_sequence_has_one_event() {
        let mut book = book();
        assert_eq!(book.saw(7, 8).unwrap_err().kind, "two events at one sequence");
        assert!(book.acknowledge(100, 100, 0, 0).is_ok());
        assert_eq!(book.acknowledged(), 100);
    }
}
