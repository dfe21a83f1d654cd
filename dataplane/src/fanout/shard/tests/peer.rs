//! The other end of a stream, which judges what it gets as it comes.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read},
    ops::Bound::{Excluded, Included},
    os::unix::net::UnixStream,
    sync::Arc,
};

use sluice_channel::{Cursor, Filter};

use crate::registry::Entry;

/// An event that the store has taken.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) topic: &'static str,
    pub(super) payload: String,
    /// It was removed since.
    pub(super) gone: bool,
}

/// Every event that the store has ever taken, by epoch and sequence.
pub(super) type Truth = BTreeMap<u32, BTreeMap<u64, Taken>>;

/// Everything up to a sequence of a life was delivered, told as missing, or never asked for: what
/// lies before the first `id:` is no loss, unless the subscriber named a cursor.
#[derive(Debug, Clone, Copy)]
struct Covered {
    epoch: u32,
    sequence: u64,
}

#[derive(Debug, Default)]
struct Block {
    id: Option<Cursor>,
    event: String,
    data: Vec<String>,
}

/// A client.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) socket: UnixStream,
    pub(super) entry: Arc<Entry>,
    filter: Filter,
    /// The cursor that it named.
    named: Option<Cursor>,
    on_gap_latest: bool,
    wire: Vec<u8>,
    head_passed: bool,
    body: String,
    block: Block,
    covered: Option<Covered>,
    /// `channel.close` was read.
    pub(super) closed: bool,
    /// The end of the body was read.
    pub(super) ended: bool,
    /// Heartbeats and cursors.
    pub(super) beats: usize,
    pub(super) gaps: usize,
}

impl Peer {
    pub(super) fn new(
        socket: UnixStream,
        entry: Arc<Entry>,
        filter: Filter,
        named: Option<Cursor>,
        on_gap_latest: bool,
    ) -> Self {
        Self {
            socket,
            entry,
            filter,
            named,
            on_gap_latest,
            wire: Vec::new(),
            head_passed: false,
            body: String::new(),
            block: Block::default(),
            covered: None,
            closed: false,
            ended: false,
            beats: 0,
            gaps: 0,
        }
    }

    /// Reads up to `limit` bytes and judges them; returns how many there were.
    pub(super) fn read(&mut self, limit: usize, truth: &Truth) -> usize {
        let mut buffer = vec![0; limit.min(64 * 1024)];
        let mut all = 0;
        while all < limit {
            let left = buffer.len().min(limit - all);
            match self.socket.read(&mut buffer[..left]) {
                Ok(0) => break,
                Ok(count) => {
                    self.wire.extend_from_slice(&buffer[..count]);
                    all += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // A stream that was closed as it is.
                Err(_) => break,
            }
        }
        self.judge(truth);
        all
    }

    fn judge(&mut self, truth: &Truth) {
        if !self.head_passed {
            let Some(end) = self.wire.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                return;
            };
            self.wire.drain(..end + 4);
            self.head_passed = true;
        }
        while let Some(end) = self.wire.windows(2).position(|bytes| bytes == b"\r\n") {
            let length = std::str::from_utf8(&self.wire[..end]).expect("a chunk's head is text");
            let length = usize::from_str_radix(length, 16).expect("a chunk begins with its length");
            if self.wire.len() < end + 2 + length + 2 {
                break;
            }
            assert!(!self.ended, "nothing comes after the end of the body");
            let chunk: Vec<u8> = self.wire.drain(..end + 2 + length + 2).skip(end + 2).collect();
            assert_eq!(&chunk[length..], b"\r\n", "a chunk ends where its length says");
            self.ended = length == 0;
            self.body +=
                std::str::from_utf8(&chunk[..length]).expect("frames are whole in a chunk");
        }
        while let Some(end) = self.body.find('\n') {
            let line: String = self.body.drain(..=end).collect();
            self.line(line.trim_end_matches('\n'), truth);
        }
    }

    fn line(&mut self, line: &str, truth: &Truth) {
        match line.split_once(": ") {
            None if line.is_empty() => {
                let block = std::mem::take(&mut self.block);
                self.event(&block, truth);
            }
            Some(("id", id)) => self.block.id = Some(id.parse().expect("an id is a cursor")),
            Some(("event", name)) => self.block.event = name.to_owned(),
            Some(("data", data)) => self.block.data.push(data.to_owned()),
            Some(("retry", _)) => {}
            Some(("", "hb")) => self.beats += 1,
            _ => panic!("no line of a frame: {line:?}"),
        }
    }

    fn event(&mut self, block: &Block, truth: &Truth) {
        assert!(!self.closed, "nothing comes after channel.close: {block:?}");
        let data = block.data.join("\n");
        match block.event.as_str() {
            "" => self.message(block.id.expect("an event has an id"), &data, truth),
            "channel.gap" => self.gap(block.id.expect("a gap has an id"), &data, truth),
            "channel.cursor" | "channel.degraded" | "channel.recovered" | "channel.close" => {
                self.beats += usize::from(block.event == "channel.cursor");
                self.closed = block.event == "channel.close";
                if let Some(id) = block.id {
                    self.claim(id, truth);
                }
            }
            other => panic!("an event that was not expected: {other}"),
        }
    }

    /// A frame says that everything up to `id` was seen.
    fn claim(&mut self, id: Cursor, truth: &Truth) {
        let Some(covered) = self.covered else {
            // Where it starts; what it named itself, if it did.
            let named = self.named;
            assert!(named.is_none_or(|named| named == id), "it starts at {id}, not at {named:?}");
            self.covered = Some(Covered { epoch: id.epoch.bits(), sequence: id.sequence });
            return;
        };
        assert_eq!(covered.epoch, id.epoch.bits(), "another life without a gap");
        assert!(id.sequence >= covered.sequence, "{id} after {}", covered.sequence);
        let missed: Vec<_> =
            self.wanted(covered, id.sequence, truth).map(|(sequence, _)| sequence).collect();
        assert!(missed.is_empty(), "{id} although {missed:?} were not delivered");
        self.covered = Some(Covered { sequence: id.sequence, ..covered });
    }

    /// Events up to `to` that pass its filter and are not covered.
    fn wanted<'t>(
        &self,
        covered: Covered,
        to: u64,
        truth: &'t Truth,
    ) -> impl Iterator<Item = (u64, &'t Taken)> {
        let range = (Excluded(covered.sequence), Included(to.max(covered.sequence)));
        let life = truth.get(&covered.epoch).into_iter().flat_map(move |life| life.range(range));
        life.filter(|(_, taken)| self.filter.matches(taken.topic))
            .map(|(sequence, taken)| (*sequence, taken))
    }

    fn message(&mut self, id: Cursor, data: &str, truth: &Truth) {
        let covered = self.covered.expect("a place comes before events");
        assert!(
            id.sequence > covered.sequence,
            "{id} after {}: twice or out of order",
            covered.sequence
        );
        self.claim(Cursor { sequence: id.sequence - 1, ..id }, truth);
        let taken = truth.get(&id.epoch.bits()).and_then(|life| life.get(&id.sequence));
        let taken = taken.unwrap_or_else(|| panic!("{id} was never published"));
        assert!(taken.payload == data, "{id} has another payload");
        assert!(self.filter.matches(taken.topic), "{id} does not pass the filter");
        self.covered = Some(Covered { sequence: id.sequence, ..covered });
    }

    fn gap(&mut self, id: Cursor, data: &str, truth: &Truth) {
        self.gaps += 1;
        let gap: serde_json::Value = serde_json::from_str(data).expect("a gap is JSON");
        let exists = |epoch: u32, sequences: std::ops::RangeInclusive<u64>| {
            truth
                .get(&epoch)
                .is_some_and(|life| life.range(sequences).any(|(_, taken)| !taken.gone))
        };
        let epoch = id.epoch.bits();
        let Some(from) = gap["from"].as_u64() else {
            // The place before is of no use: another life, or a cursor that is none.
            assert!(
                self.on_gap_latest || !exists(epoch, 0..=id.sequence),
                "{id} {gap}: events are there"
            );
            self.covered = Some(Covered { epoch, sequence: id.sequence });
            return;
        };
        self.claim(Cursor { sequence: from - 1, ..id }, truth);
        let to = gap["to"].as_u64().expect("the end of a hole is known");
        let skips = self.on_gap_latest && gap["reason"] == "expired";
        assert!(skips || !exists(epoch, from..=to), "{gap} although some of it is there");
        assert_eq!(id.sequence, to, "a gap is a place");
        let covered = self.covered.expect("claimed");
        self.covered = Some(Covered { sequence: to, ..covered });
    }

    /// The last sequence that it knows to be behind it.
    pub(super) fn place(&self) -> Option<u64> {
        self.covered.map(|covered| covered.sequence)
    }

    /// What is still to come of what is there.
    pub(super) fn lacks(&self, epoch: u32, truth: &Truth) -> Option<String> {
        let Some(covered) = self.covered else { return Some("a place to start".to_owned()) };
        if covered.epoch != epoch {
            return Some("its stream is in a former life".to_owned());
        }
        let there = self.wanted(covered, u64::MAX, truth).filter(|(_, taken)| !taken.gone);
        let missed: Vec<_> = there.map(|(sequence, _)| sequence).collect();
        (!missed.is_empty()).then(|| format!("left out: {missed:?} after {}", covered.sequence))
    }
}
