//! The streams that wait for a channel's head, and which of them have yet to be given it.
//!
//! Streams are visited in a circle. When the head moves in the middle, the visits go on from there
//! until each stream was visited under the new head. So the stream that was last under one head is
//! not last again, and gets what has come meanwhile with the same write.

use crate::limits;

/// The slot of a stream that does not wait.
pub(super) const NOT_WAITING: u32 = u32::MAX;

/// Slots in a circle, each with the key of a stream.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    keys: Vec<usize>,
    /// The slot to visit next.
    at: usize,
    /// How many visits from there on are due.
    due: usize,
}

impl Waiters {
    /// Gives `key` a slot, or [`NOT_WAITING`] where there are no more numbers.
    pub(super) fn insert(&mut self, key: usize) -> u32 {
        let slot = u32::try_from(self.keys.len()).unwrap_or(NOT_WAITING);
        if slot != NOT_WAITING {
            self.keys.push(key);
            // The new slot may lie between the next visit and the last.
            self.due += usize::from(self.has_due());
        }
        slot
    }

    /// Takes `slot` back. Returns the key that is in it now, if the last one had to move. While
    /// visits are due, the move may be from a slot that is still to be visited to one that was: the
    /// caller has to visit that key itself.
    pub(super) fn remove(&mut self, slot: u32) -> Option<usize> {
        let slot = slot as usize;
        if slot >= self.keys.len() {
            return None;
        }
        self.keys.swap_remove(slot);
        if let Some(capacity) = limits::spare(self.keys.len(), self.keys.capacity()) {
            self.keys.shrink_to(capacity);
        }
        self.keys.get(slot).copied()
    }

    /// All are to be visited.
    pub(super) fn head_moved(&mut self) {
        self.due = self.keys.len();
    }

    /// Whether visits are due.
    pub(super) const fn has_due(&self) -> bool {
        self.due > 0
    }

    /// The next key to visit.
    pub(super) fn next_due(&mut self) -> Option<usize> {
        // Slots may have been taken back since the head moved.
        self.due = self.due.min(self.keys.len());
        self.due = self.due.checked_sub(1)?;
        if self.at >= self.keys.len() {
            self.at = 0;
        }
        self.at += 1;
        self.keys.get(self.at - 1).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stream_inserted_in_the_middle_takes_no_other_streams_visit() {
        let mut waiters = Waiters::default();
        assert_eq!([7, 8].map(|key| waiters.insert(key)), [0, 1]);
        waiters.head_moved();
        assert_eq!(waiters.next_due(), Some(7));
        waiters.head_moved();
        assert_eq!(waiters.insert(9), 2);
        assert_eq!(
            [waiters.next_due(), waiters.next_due(), waiters.next_due(), waiters.next_due()],
            [Some(8), Some(9), Some(7), None]
        );
    }

    #[derive(Debug, Clone)]
    enum Act {
        Insert,
        Remove(prop::sample::Index),
        HeadMoved,
        Visit(u8),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => Just(Act::Insert),
            2 => any::<prop::sample::Index>().prop_map(Act::Remove),
            1 => Just(Act::HeadMoved),
            3 => any::<u8>().prop_map(|count| Act::Visit(count % 8)),
        ]
    }

    proptest! {
        /// Each stream that waited when the head moved is visited, or returned as moved, or was
        /// removed.
        #[test]
        fn no_waiter_is_left_out(acts in prop::collection::vec(act(), 0..200)) {
            let mut waiters = Waiters::default();
            let mut slot_of: HashMap<usize, u32> = HashMap::new();
            let mut owed: BTreeSet<usize> = BTreeSet::new();
            let mut keys = 0;
            for act in acts.into_iter().chain([Act::Visit(u8::MAX)]) {
                match act {
                    Act::Insert => {
                        slot_of.insert(keys, waiters.insert(keys));
                        keys += 1;
                    }
                    Act::Remove(which) if !slot_of.is_empty() => {
                        let mut present: Vec<_> = slot_of.keys().copied().collect();
                        present.sort_unstable();
                        let key = *which.get(&present);
                        let slot = slot_of.remove(&key).unwrap();
                        owed.remove(&key);
                        if let Some(moved) = waiters.remove(slot) {
                            prop_assert!(slot_of.insert(moved, slot).is_some_and(|before| before > slot), "the last one moves");
                            if waiters.has_due() {
                                owed.remove(&moved);
                            }
                        }
                    }
                    Act::Remove(_) => {}
                    Act::HeadMoved => {
                        owed = slot_of.keys().copied().collect();
                        waiters.head_moved();
                    }
                    Act::Visit(count) => {
                        for _ in 0..count {
                            let Some(key) = waiters.next_due() else { break };
                            prop_assert!(slot_of.contains_key(&key));
                            owed.remove(&key);
                        }
                    }
                }
            }
            prop_assert!(!waiters.has_due() || keys > usize::from(u8::MAX));
            prop_assert!(owed.is_empty(), "left out: {owed:?}");
        }
    }
}
