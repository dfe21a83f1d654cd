//! Who waits for a channel's head, and whom of them it has yet to be given to.
//!
//! Visits go round and round: when the head moves in the middle, they go on from there until all
//! were visited under the new head. So who was last under one head is not last again, and gets what
//! has come meanwhile with the same write.

/// Has no seat.
pub(super) const NOT_WAITING: u32 = u32::MAX;

/// Seats in a circle.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    /// Keys of those who wait.
    seats: Vec<usize>,
    /// The seat to visit next.
    at: usize,
    /// How many visits from there on are due.
    due: usize,
}

impl Waiters {
    /// Gives `key` a seat, unless there are no more numbers.
    pub(super) fn insert(&mut self, key: usize) -> u32 {
        let seat = u32::try_from(self.seats.len()).unwrap_or(NOT_WAITING);
        if seat != NOT_WAITING {
            self.seats.push(key);
            // It may sit between the next visit and the last.
            self.due += usize::from(self.has_due());
        }
        seat
    }

    /// Takes `seat` back. Returns who sits in it now, if the last one had to move. While visits are
    /// due, it may have come from a place that is still to be visited to one that was: the caller
    /// has to see to it.
    pub(super) fn remove(&mut self, seat: u32) -> Option<usize> {
        let seat = seat as usize;
        if seat >= self.seats.len() {
            return None;
        }
        self.seats.swap_remove(seat);
        self.seats.get(seat).copied()
    }

    /// The head has moved: all are to be visited.
    pub(super) fn head_moved(&mut self) {
        self.due = self.seats.len();
    }

    /// Whether visits are due.
    pub(super) const fn has_due(&self) -> bool {
        self.due > 0
    }

    /// The next one to visit.
    pub(super) fn next_due(&mut self) -> Option<usize> {
        // Some may have gone.
        self.due = self.due.min(self.seats.len());
        self.due = self.due.checked_sub(1)?;
        if self.at >= self.seats.len() {
            self.at = 0;
        }
        self.at += 1;
        self.seats.get(self.at - 1).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_sits_down_in_the_middle_takes_nobodys_visit() {
        let mut round = Waiters::default();
        assert_eq!([7, 8].map(|key| round.insert(key)), [0, 1]);
        round.head_moved();
        assert_eq!(round.next_due(), Some(7));
        round.head_moved();
        assert_eq!(round.insert(9), 2);
        assert_eq!(
            [round.next_due(), round.next_due(), round.next_due(), round.next_due()],
            [Some(8), Some(9), Some(7), None]
        );
    }

    #[derive(Debug, Clone)]
    enum Act {
        Sit,
        Leave(prop::sample::Index),
        Begin,
        Next(u8),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => Just(Act::Sit),
            2 => any::<prop::sample::Index>().prop_map(Act::Leave),
            1 => Just(Act::Begin),
            3 => any::<u8>().prop_map(|count| Act::Next(count % 8)),
        ]
    }

    proptest! {
        /// Whoever had a seat when the head moved is visited, or was told of as moved, or has left.
        #[test]
        fn nobody_is_left_out(acts in prop::collection::vec(act(), 0..200)) {
            let mut round = Waiters::default();
            let mut seat_of: HashMap<usize, u32> = HashMap::new();
            let mut owed: BTreeSet<usize> = BTreeSet::new();
            let mut keys = 0;
            for act in acts.into_iter().chain([Act::Next(u8::MAX)]) {
                match act {
                    Act::Sit => {
                        seat_of.insert(keys, round.insert(keys));
                        keys += 1;
                    }
                    Act::Leave(which) if !seat_of.is_empty() => {
                        let mut present: Vec<_> = seat_of.keys().copied().collect();
                        present.sort_unstable();
                        let key = *which.get(&present);
                        let seat = seat_of.remove(&key).unwrap();
                        owed.remove(&key);
                        if let Some(moved) = round.remove(seat) {
                            prop_assert!(seat_of.insert(moved, seat).is_some_and(|before| before > seat), "the last one moves");
                            if round.has_due() {
                                owed.remove(&moved);
                            }
                        }
                    }
                    Act::Leave(_) => {}
                    Act::Begin => {
                        owed = seat_of.keys().copied().collect();
                        round.head_moved();
                    }
                    Act::Next(count) => {
                        for _ in 0..count {
                            let Some(key) = round.next_due() else { break };
                            prop_assert!(seat_of.contains_key(&key));
                            owed.remove(&key);
                        }
                    }
                }
            }
            prop_assert!(!round.has_due() || keys > usize::from(u8::MAX));
            prop_assert!(owed.is_empty(), "left out: {owed:?}");
        }
    }
}
