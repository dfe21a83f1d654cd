//! The verdict over all sessions, once nothing moves any more.

use std::collections::{BTreeMap, HashSet};

use crate::{
    book::{Book, Known, NEVER},
    session::{Broken, From, Millis, Session, Told},
};

/// What the store has at the end.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Missing between the two.
    pub(crate) deleted: HashSet<u64>,
}

impl Store {
    fn has(&self, sequence: u64) -> bool {
        (self.first..=self.last).contains(&sequence) && !self.deleted.contains(&sequence)
    }
}

/// A broken promise, when it was noticed, and by which client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) at: Millis,
    pub(crate) by: String,
    pub(crate) broken: Broken,
}

/// Judges sessions by what was acknowledged and by what is stored.
pub(crate) struct Judge<'a> {
    book: &'a Book,
    store: &'a Store,
    /// When each sequence may have been removed at the earliest.
    gone: Vec<Millis>,
    /// When all up to and including a sequence may have been removed at the earliest.
    front: Vec<Millis>,
    findings: Vec<Finding>,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(book: &'a Book, store: &'a Store) -> Self {
        let gone = book.gone_from();
        let mut all = 0;
        let counts = |sequence: usize| book.get(sequence as u64).acknowledged != NEVER;
        let front = (0..gone.len()).map(|sequence| {
            if counts(sequence) {
                all = all.max(gone[sequence]);
            }
            all
        });
        let front = front.collect();
        Self { book, store, gone, front, findings: Vec::new() }
    }

    /// Everything that was found.
    pub(crate) fn judge(mut self, sessions: &[Session]) -> Vec<Finding> {
        self.store_has_kept();
        for session in sessions {
            self.start(session);
            self.nothing_is_missing(session);
        }
        self.gaps_are_true(sessions);
        self.findings.sort_by_key(|finding| finding.at);
        self.findings
    }

    fn found(&mut self, at: Millis, by: &str, kind: &'static str, what: String) {
        self.findings.push(Finding { at, by: by.to_owned(), broken: Broken { kind, what } });
    }

    /// Whether the event is known to be, or to have been, in the stream.
    fn is_event(&self, sequence: u64) -> bool {
        self.book.get(sequence).acknowledged != NEVER || self.store.has(sequence)
    }

    fn gone_at(&self, sequence: u64) -> Millis {
        usize::try_from(sequence).ok().and_then(|s| self.gone.get(s).copied()).unwrap_or(NEVER)
    }

    /// What was acknowledged and not removed is in the store: else it is the store that failed.
    fn store_has_kept(&mut self) {
        let lost: Vec<u64> = (1..=self.book.last())
            .filter(|s| self.book.get(*s).acknowledged != NEVER && self.gone_at(*s) == NEVER)
            .filter(|s| !self.store.has(*s))
            .collect();
        if let (Some(first), Some(last)) = (lost.first(), lost.last()) {
            let what = format!("{} events, {first} to {last}", lost.len());
            let at = self.book.get(*first).acknowledged;
            self.found(at, "nats-server", "the store lost what it acknowledged", what);
        }
    }

    /// A stream that begins at a place in the past leaves out nothing that was there.
    fn start(&mut self, session: &Session) {
        let (Some(start), opened) = (session.start, session.opened) else { return };
        let is_due = |known: &Known, sequence: u64| match session.from {
            From::Newest => false,
            From::Earliest => known.acknowledged < opened && self.gone_at(sequence) == NEVER,
            From::Since(time) => known.sent >= time && self.gone_at(sequence) == NEVER,
        };
        let missed = (1..=start).filter(|s| {
            let known = self.book.get(*s);
            known.acknowledged != NEVER && session.selection.has(known.id) && is_due(&known, *s)
        });
        let missed: Vec<u64> = missed.collect();
        if let Some(first) = missed.first() {
            let what = format!(
                "begins after {start} and leaves out {} events from {first} on",
                missed.len()
            );
            self.found(opened, &session.name, "begins too late", what);
        }
    }

    /// Everything after the start was received, or named as missing.
    fn nothing_is_missing(&mut self, session: &Session) {
        // What a session of everything has left out was seen when it happened.
        let Some(start) = session.start.filter(|_| !session.selection.is_all()) else { return };
        let named = |sequence| session.gaps.iter().any(|g| (g.from..=g.to).contains(&sequence));
        let first_gap = session.gaps.iter().map(|gap| gap.from).min().unwrap_or(u64::MAX);
        let first_event = session.runs.first().map_or(u64::MAX, |run| run.from);
        let end = [(session.position + 1, session.position, session.opened)];
        let runs = session.runs.iter().map(|run| (run.from, run.to, run.at)).chain(end);
        let mut position = start;
        let mut found = Vec::new();
        for (from, to, at) in runs {
            let missing = (position + 1..from).filter(|s| {
                let id = self.book.get(*s).id;
                id != 0 && session.selection.has(id) && self.is_event(*s) && !named(*s)
            });
            let missing: Vec<u64> = missing.collect();
            position = to.max(position);
            let (Some(first), Some(last)) = (missing.first(), missing.last()) else { continue };
            let gone = missing.iter().filter(|s| self.gone_at(**s) != NEVER).count();
            let what = format!(
                "{} events from {first} to {last} before {from} ({gone} of them were removed, the first at {})",
                missing.len(),
                self.gone_at(*first),
            );
            found.push((at, *first < first_event.min(first_gap), what));
        }
        for (at, is_fresh, what) in found {
            let kind =
                if is_fresh { "unnamed hole behind the first cursor" } else { "unnamed hole" };
            self.found(at, &session.name, kind, what);
        }
    }

    /// What a gap names had been removed when it was told.
    fn gaps_are_true(&mut self, sessions: &[Session]) {
        let mut earliest: BTreeMap<(u64, u64, &str), (&Told, &str)> = BTreeMap::new();
        for session in sessions {
            for told in &session.gaps {
                let entry = earliest
                    .entry((told.from, told.to, told.reason.as_str()))
                    .or_insert((told, session.name.as_str()));
                if told.at < entry.0.at {
                    *entry = (told, session.name.as_str());
                }
            }
        }
        for (told, name) in earliest.into_values() {
            let Told { from, to, reason, at } = told;
            let lies = (*from..=*to).filter(|s| self.is_event(*s) && self.gone_at(*s) > *at);
            let lies: Vec<u64> = lies.collect();
            if let (Some(first), Some(last)) = (lies.first(), lies.last()) {
                let stored = lies.iter().filter(|s| self.store.has(**s)).count();
                let what = format!(
                    "{from} to {to} is called {reason}; {} events of it from {first} to {last} were there, {stored} still are",
                    lies.len()
                );
                self.found(*at, name, "false gap", what);
            }
            let index = usize::try_from(*to).unwrap();
            let front = self.front.get(index).copied().unwrap_or(NEVER);
            if reason == "expired" && front > *at {
                let what =
                    format!("{from} to {to} is called expired, and something before it was kept");
                self.found(*at, name, "false reason", what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sluice_channel::Epoch;

    use super::*;
    use crate::{book::Removal, events::Selection};

    /// Events 1 to 60, number = sequence, sent at 1,000 × sequence; 1 to 9 purged at 30 s, 40 and
    /// 41 deleted at 50 s.
    fn book() -> Book {
        let mut book = Book::default();
        for n in 1..=60_u32 {
            book.acknowledge(n.into(), n.into(), n * 1_000, n * 1_000 + 5).unwrap();
        }
        for (removal, at) in
            [(Removal::Before(10), 30_000), (Removal::One(40), 50_000), (Removal::One(41), 50_000)]
        {
            let number = book.removes(removal, at);
            book.removed(number, at + 10);
        }
        book
    }

    fn store() -> Store {
        Store { first: 10, last: 60, deleted: HashSet::from([40, 41]) }
    }

    fn session(selection: Selection, from: From, start: u64) -> Session {
        let mut session =
            Session::new("x".into(), selection, from, 20_000, Epoch::of_stream(1, ""));
        session.stands_at(start, true).unwrap();
        session
    }

    fn kinds(sessions: &[Session]) -> Vec<&'static str> {
        let (book, store) = (book(), store());
        Judge::new(&book, &store).judge(sessions).iter().map(|f| f.broken.kind).collect()
    }

    fn gap(from: u64, to: u64, reason: &str) -> serde_json::Value {
        json!({"from": from, "to": to, "missed": to + 1 - from, "reason": reason})
    }

    #[test]
    fn a_session_that_got_all_and_was_told_the_truth_is_well() {
        let mut all = session(Selection::ALL, From::Newest, 2);
        all.gap(&gap(3, 9, "expired"), 31_000).unwrap();
        (10..=39).for_each(|n| all.event(n, n, 32_000).unwrap());
        all.gap(&gap(40, 41, "deleted"), 50_001).unwrap();
        (42..=60).for_each(|n| all.event(n, n, 60_000).unwrap());
        let mut some = session(Selection::of(&[1]), From::Earliest, 9);
        for n in (10..=60).filter(|n| ![40, 41].contains(n) && Selection::of(&[1]).has(*n)) {
            some.event(n, n, 55_000).unwrap();
        }
        some.gap(&gap(61, 60, "deleted"), 55_000).ok();
        assert_eq!(kinds(&[all, some]), Vec::<&str>::new());
    }

    #[test]
    fn what_a_filter_selects_and_did_not_come_is_found() {
        let mut some = session(Selection::of(&[1]), From::Newest, 9);
        // 27 and 28 before it, and 51 to 53.
        some.event(29, 29, 31_000).unwrap();
        some.stands_at(55, false).unwrap();
        assert_eq!(kinds(&[some]), ["unnamed hole", "unnamed hole behind the first cursor"]);
    }

    #[test]
    fn a_gap_over_what_is_there_or_was_there_then_is_found() {
        let told = |from, to, reason, at| {
            let mut all = session(Selection::ALL, From::Newest, from - 1);
            all.gap(&gap(from, to, reason), at).unwrap();
            vec![all]
        };
        assert_eq!(kinds(&told(40, 41, "deleted", 49_999)), ["false gap"]);
        assert_eq!(kinds(&told(40, 42, "deleted", 50_001)), ["false gap"]);
        assert_eq!(kinds(&told(3, 9, "expired", 29_999)), ["false gap", "false reason"]);
        assert_eq!(kinds(&told(40, 41, "expired", 50_001)), ["false reason"]);
    }

    #[test]
    fn a_start_that_leaves_out_what_was_there_is_found() {
        let early = session(Selection::ALL, From::Earliest, 12);
        assert_eq!(kinds(&[early]), ["begins too late"]);
        let since = session(Selection::ALL, From::Since(15_000), 15);
        assert_eq!(kinds(&[since]), ["begins too late"]);
        assert!(kinds(&[session(Selection::ALL, From::Since(15_001), 15)]).is_empty());
    }

    #[test]
    fn what_the_store_lost_is_the_stores() {
        let (book, store) = (book(), Store { last: 59, ..store() });
        let found = Judge::new(&book, &store).judge(&[]);
        assert_eq!(found[0].broken.kind, "the store lost what it acknowledged");
    }
}
