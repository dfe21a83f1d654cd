//! What one subscriber got from its first event to its last, over all its connections; what must
//! hold at any time is checked at once.

use sluice_channel::{Cursor, Epoch};

use crate::events::Selection;

/// Milliseconds since the soak began.
pub(crate) type Millis = u32;

/// Where a session began, as far as it matters for what it may leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// After the newest event, or after the newest so many.
    Newest,
    /// At the oldest event that is kept.
    Earliest,
    /// At the first event that was stored then or later.
    Since(Millis),
}

/// Sequences that came without a hole between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// When the first of them came.
    pub(crate) at: Millis,
}

/// A hole that was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) reason: String,
    pub(crate) at: Millis,
}

/// A promise that was broken, by its kind and in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) kind: &'static str,
    pub(crate) what: String,
}

/// `Err` with a broken promise.
pub(crate) fn broken<T>(kind: &'static str, what: impl Into<String>) -> Result<T, Broken> {
    Err(Broken { kind, what: what.into() })
}

/// The ledger of one subscriber.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) name: String,
    pub(crate) selection: Selection,
    pub(crate) from: From,
    /// When the request was sent that was answered with where it starts.
    pub(crate) opened: Millis,
    epoch: Epoch,
    /// Everything after this sequence has to come; none until the channel has said so.
    pub(crate) start: Option<u64>,
    /// Everything up to this was received, named or not selected.
    pub(crate) position: u64,
    pub(crate) runs: Vec<Run>,
    pub(crate) gaps: Vec<Told>,
    pub(crate) events: u64,
}

impl Session {
    pub(crate) fn new(
        name: String,
        selection: Selection,
        from: From,
        opened: Millis,
        epoch: Epoch,
    ) -> Self {
        let (start, position, events) = (None, 0, 0);
        let (runs, gaps) = (Vec::new(), Vec::new());
        Self { name, selection, from, opened, epoch, start, position, runs, gaps, events }
    }

    /// The cursor to go on with, once there is one.
    pub(crate) fn cursor(&self) -> Option<Cursor> {
        self.start.map(|_| Cursor::new(self.epoch, self.position))
    }

    /// What a hole is called that is not named: one that is made while a stream begins is of a
    /// kind of its own.
    fn hole(&self) -> &'static str {
        match self.events == 0 && self.gaps.is_empty() {
            true => "unnamed hole behind the first cursor",
            false => "unnamed hole",
        }
    }

    /// The sequence of an id.
    pub(crate) fn sequence(&self, id: &str) -> Result<u64, Broken> {
        match id.parse::<Cursor>() {
            Ok(cursor) if cursor.epoch == self.epoch => Ok(cursor.sequence),
            Ok(cursor) => broken("false epoch", format!("the id {cursor} is of another epoch")),
            Err(_) => broken("bad id", format!("{id:?} is no cursor")),
        }
    }

    /// The channel says that it stands at `sequence`. `begins`: it is the first word of a
    /// connection.
    pub(crate) fn stands_at(&mut self, sequence: u64, begins: bool) -> Result<(), Broken> {
        if self.start.is_none() {
            self.start = Some(sequence);
            self.position = sequence;
        }
        let position = self.position;
        if sequence < position || (begins && sequence != position) {
            return broken("moved back", format!("the cursor is {sequence} after {position}"));
        }
        if sequence > position && self.selection.is_all() {
            let kind = self.hole();
            self.position = sequence;
            return broken(
                kind,
                format!("the cursor goes from {position} to {sequence} and no event came"),
            );
        }
        self.position = sequence;
        Ok(())
    }

    /// An event came.
    pub(crate) fn event(&mut self, sequence: u64, id: u64, at: Millis) -> Result<(), Broken> {
        let position = match self.start {
            Some(_) => self.position,
            // Pages do not say where they begin.
            None => {
                self.start = Some(sequence - 1);
                sequence - 1
            }
        };
        if sequence <= position {
            return broken(
                "repeated",
                format!("event {sequence} (number {id}) came after {position}"),
            );
        }
        let hole = self.hole();
        self.position = sequence;
        self.events += 1;
        match self.runs.last_mut() {
            Some(run) if run.to + 1 == sequence => run.to = sequence,
            _ => self.runs.push(Run { from: sequence, to: sequence, at }),
        }
        if !self.selection.has(id) {
            return broken("not selected", format!("event {sequence} (number {id}) came"));
        }
        if self.selection.is_all() && sequence > position + 1 {
            return broken(hole, format!("event {sequence} came after {position}"));
        }
        Ok(())
    }

    /// The channel has begun anew, rightly or not: what came before says nothing of what follows.
    fn begin_anew(&mut self, position: u64) {
        (self.start, self.position, self.events) = (Some(position), position, 0);
        self.runs.clear();
        self.gaps.clear();
    }

    /// A hole was named.
    pub(crate) fn gap(&mut self, gap: &serde_json::Value, at: Millis) -> Result<(), Broken> {
        let reason = gap["reason"].as_str().unwrap_or_default().to_owned();
        if !["expired", "deleted"].contains(&reason.as_str()) {
            let was = self.position;
            self.begin_anew(gap["to"].as_u64().unwrap_or_default());
            let kind = match reason.as_str() {
                "epoch" => "false epoch",
                "unknown" => "false unknown",
                _ => "bad gap",
            };
            return broken(kind, format!("after {was}: {gap}"));
        }
        let (Some(from), Some(to)) = (gap["from"].as_u64(), gap["to"].as_u64()) else {
            return broken("bad gap", format!("after {}: {gap}", self.position));
        };
        let position = match self.start {
            Some(_) => self.position,
            None => {
                self.start = Some(from - 1);
                from - 1
            }
        };
        let hole = self.hole();
        self.gaps.push(Told { from, to, reason, at });
        self.position = self.position.max(to);
        if gap["missed"].as_u64() != (to + 1).checked_sub(from) {
            return broken("bad gap", format!("after {position}: {gap}"));
        }
        if from <= position {
            return broken("repeated", format!("after {position} came the gap {gap}"));
        }
        if self.selection.is_all() && from != position + 1 {
            return broken(hole, format!("after {position} came the gap {gap}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn session(selection: Selection) -> Session {
        Session::new("x".into(), selection, From::Newest, 0, Epoch::of_stream(1, ""))
    }

    fn kind(result: Result<(), Broken>) -> &'static str {
        result.expect_err("a broken promise").kind
    }

    #[test]
    fn what_follows_without_a_hole_or_after_a_named_one_is_well() {
        let mut session = session(Selection::ALL);
        session.stands_at(4, true).unwrap();
        session.event(5, 1, 10).unwrap();
        session.event(6, 2, 20).unwrap();
        let gap = json!({"from": 7, "to": 9, "missed": 3, "reason": "deleted"});
        session.gap(&gap, 30).unwrap();
        session.stands_at(9, true).unwrap();
        session.event(10, 3, 40).unwrap();
        let runs = [Run { from: 5, to: 6, at: 10 }, Run { from: 10, to: 10, at: 40 }];
        assert_eq!((session.runs.as_slice(), session.position), (&runs[..], 10));
    }

    #[test]
    fn each_broken_promise_is_seen_at_once() {
        let begun = || {
            let mut session = session(Selection::ALL);
            session.stands_at(4, true).unwrap();
            session
        };
        assert_eq!(kind(begun().event(6, 1, 0)), "unnamed hole behind the first cursor");
        assert_eq!(kind(begun().stands_at(5, false)), "unnamed hole behind the first cursor");
        assert_eq!(kind(begun().event(4, 1, 0)), "repeated");
        assert_eq!(kind(begun().stands_at(3, false)), "moved back");
        let mut further = begun();
        further.event(5, 1, 0).unwrap();
        assert_eq!(kind(further.clone().event(7, 1, 0)), "unnamed hole");
        assert_eq!(kind(further.clone().stands_at(6, false)), "unnamed hole");
        for (gap, expected) in [
            (
                json!({"from": null, "to": null, "missed": null, "reason": "unknown"}),
                "false unknown",
            ),
            (json!({"from": null, "to": null, "missed": null, "reason": "epoch"}), "false epoch"),
            (json!({"from": 5, "to": 7, "missed": 3, "reason": "deleted"}), "repeated"),
            (json!({"from": 7, "to": 7, "missed": 1, "reason": "deleted"}), "unnamed hole"),
            (json!({"from": 6, "to": 7, "missed": 1, "reason": "expired"}), "bad gap"),
            (json!({"from": 6, "to": 7, "missed": 2, "reason": "other"}), "bad gap"),
        ] {
            assert_eq!(kind(further.clone().gap(&gap, 0)), expected, "{gap}");
        }
        let id = Cursor::new(Epoch::of_stream(2, ""), 5).to_string();
        assert_eq!(begun().sequence(&id).unwrap_err().kind, "false epoch");
        assert_eq!(begun().sequence("5").unwrap_err().kind, "bad id");
        let mut some = session(Selection::of(&[0]));
        some.stands_at(0, true).unwrap();
        assert_eq!(kind(some.event(9, 4, 0)), "not selected");
    }
}
