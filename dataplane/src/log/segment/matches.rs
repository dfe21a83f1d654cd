//! Which events of a sealed segment pass a filter: found once, however many subscribers with that
//! filter read it.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use sluice_channel::Filter;

use super::Entry;

/// What is kept of matches for each event of a segment, bytes at most: a segment of 1,024 events
/// has room for about fifty short filters. Part of the segment's cost from the start, so that the
/// cache's bound holds whatever filters come later.
pub(super) const ENTRY_BYTES: usize = 16;

#[cfg(test)]
thread_local! {
    /// Topics that were matched against filters on this thread: what a search costs.
    pub(in crate::log) static MATCHED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// One bit for each event of the segment.
pub(super) type Passing = Arc<[u64]>;

/// The matches found last; the oldest make room.
#[derive(Debug, Default)]
pub(super) struct Matches {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    filters: VecDeque<(Filter, Passing)>,
    bytes: usize,
}

fn bytes_of(filter: &Filter, passing: &Passing) -> usize {
    filter.bytes() + size_of_val::<[u64]>(passing) + size_of::<(Filter, Passing)>()
}

impl Matches {
    /// The events among `entries`, whose topics are `topics`, that pass `filter`. Adds to
    /// `compared` the comparisons that it takes.
    pub(super) fn of(
        &self,
        filter: &Filter,
        entries: &[Entry],
        topics: &[Box<str>],
        compared: &mut usize,
    ) -> Passing {
        let mut known = self.known.lock();
        if let Some((_, passing)) = known.filters.iter().find(|(other, _)| other == filter) {
            return Arc::clone(passing);
        }
        // Under the lock: a second search for the same filter would cost more than the wait for the
        // first.
        let passing = find(filter, entries, topics);
        *compared += topics.len() * filter.patterns();
        known.keep(filter, &passing, entries.len() * ENTRY_BYTES);
        passing
    }
}

impl Known {
    fn keep(&mut self, filter: &Filter, passing: &Passing, capacity: usize) {
        let bytes = bytes_of(filter, passing);
        if bytes > capacity {
            return;
        }
        while self.bytes + bytes > capacity {
            let Some((filter, passing)) = self.filters.pop_front() else { break };
            self.bytes -= bytes_of(&filter, &passing);
        }
        self.bytes += bytes;
        self.filters.push_back((filter.clone(), Arc::clone(passing)));
    }
}

fn find(filter: &Filter, entries: &[Entry], topics: &[Box<str>]) -> Passing {
    #[cfg(test)]
    MATCHED.with(|matched| matched.set(matched.get() + topics.len()));
    let topics: Vec<bool> = topics.iter().map(|topic| filter.matches(topic)).collect();
    let passes = |entry: &Entry| topics.get(entry.topic as usize).is_some_and(|passes| *passes);
    entries
        .chunks(u64::BITS as usize)
        .map(|chunk| {
            chunk
                .iter()
                .enumerate()
                .fold(0, |bits, (at, entry)| bits | (u64::from(passes(entry)) << at))
        })
        .collect()
}

/// Whether the bit at `index` is set.
pub(super) fn has(passing: &[u64], index: usize) -> bool {
    let bits = u64::BITS as usize;
    passing.get(index / bits).is_some_and(|word| word >> (index % bits) & 1 == 1)
}

/// Indexes from `from` on whose bit is set.
pub(super) fn from(passing: &[u64], from: usize) -> impl Iterator<Item = usize> + '_ {
    let bits = u64::BITS as usize;
    passing.iter().enumerate().skip(from / bits).flat_map(move |(at, word)| {
        let mut left = if at == from / bits { word & (u64::MAX << (from % bits)) } else { *word };
        std::iter::from_fn(move || {
            let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(at * bits + bit)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: u32) -> Vec<Entry> {
        (0..count)
            .map(|i| Entry { sequence: u64::from(i), time_nanos: 0, topic: i % 3, end: 0 })
            .collect()
    }

    #[test]
    fn one_in_three() {
        let topics: Vec<Box<str>> = vec!["a".into(), "b".into(), "c".into()];
        let matches = Matches::default();
        let passing = matches.of(&Filter::new(["b"]).unwrap(), &entries(200), &topics, &mut 0);
        assert_eq!(from(&passing, 0).collect::<Vec<_>>(), (1..200).step_by(3).collect::<Vec<_>>());
        assert_eq!(
            from(&passing, 64).collect::<Vec<_>>(),
            (64..200).step_by(3).collect::<Vec<_>>()
        );
        assert_eq!(from(&passing, 65).next(), Some(67));
        assert_eq!(from(&passing, 200).next(), None);
        let again = matches.of(&Filter::new(["b"]).unwrap(), &entries(200), &topics, &mut 0);
        assert!(Arc::ptr_eq(&passing, &again), "found once");
    }

    #[test]
    fn many_filters_take_no_more_than_their_room() {
        let topics: Vec<Box<str>> = vec!["a".into(), "b".into(), "c".into()];
        let (matches, entries) = (Matches::default(), entries(1_024));
        for i in 0..1_000 {
            matches.of(&Filter::new([format!("orders.{i}")]).unwrap(), &entries, &topics, &mut 0);
            let known = matches.known.lock();
            let sum: usize =
                known.filters.iter().map(|(filter, passing)| bytes_of(filter, passing)).sum();
            assert!(sum == known.bytes && sum <= 1_024 * ENTRY_BYTES, "{sum}");
        }
        assert!(matches.known.lock().filters.len() > 40);
        let large: Vec<String> = (0..32).map(|i| format!("{i:0>250}")).collect();
        let kept = matches.known.lock().filters.len();
        matches.of(&Filter::new(large).unwrap(), &entries[..64], &topics, &mut 0);
        assert!(matches.known.lock().filters.len() <= kept, "one that has no room is not kept");
    }
}
