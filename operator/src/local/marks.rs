//! What local mode remembers of each stream's events, in files beside NATS's own: as the status of
//! a channel does in a cluster.

use std::{collections::BTreeMap, io, path::PathBuf, time::Instant};

use serde::{Deserialize, Serialize};
use sluice_channel::StreamName;

use super::replace::replace;
use crate::{
    crd::status::Mark,
    stream::{Error, Facts, Streams},
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    /// When the stream was created, as nats-server says.
    created_time: String,
    mark: Mark,
}

pub(super) struct Marks {
    dir: PathBuf,
    /// When each was written, or first looked for; as many as there were channels.
    at: BTreeMap<String, Instant>,
}

impl Marks {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, at: BTreeMap::new() }
    }

    fn file(&self, stream: &str) -> PathBuf {
        self.dir.join(format!("{stream}.json"))
    }

    fn read(&self, stream: &str) -> Option<Kept> {
        serde_json::from_slice(&std::fs::read(self.file(stream)).ok()?).ok()
    }

    /// Tells `streams` what is known of one.
    pub(super) fn remember(&self, streams: &Streams, stream: &StreamName) {
        if let Some(Kept { created_time, mark }) = self.read(stream.as_str()) {
            streams.remember_mark(stream.as_str(), &created_time, &mark);
        }
    }

    /// Writes down where a stream is, once in a while.
    pub(super) async fn write(&mut self, streams: &Streams, facts: &Facts) -> io::Result<()> {
        let known = self.read(&facts.name).filter(|known| known.created_time == facts.created);
        let last = i64::try_from(facts.last_sequence).unwrap_or(i64::MAX);
        let renewed = known.as_ref().is_some_and(|known| known.mark.epochs < facts.epochs);
        let risen = known.as_ref().is_none_or(|known| known.mark.sequence < last);
        let at = self.at.get(&facts.name);
        let due = known.is_none() || at.is_none_or(|at| at.elapsed() >= streams.mark_interval());
        let wanted = renewed || risen && due && facts.last_sequence > 0;
        if !wanted {
            return Ok(());
        }
        let mark = match streams.mark(facts).await {
            Ok(mark) => mark,
            // The channel's own troubles are told elsewhere; the next look tries again.
            Err(
                Error::Unreachable { .. } | Error::NotConnected { .. } | Error::Unproven { .. },
            ) => return Ok(()),
            Err(error) => return Err(io::Error::other(error)),
        };
        self.at.insert(facts.name.clone(), Instant::now());
        let text = serde_json::to_string(&Kept { created_time: facts.created.clone(), mark })?;
        replace(&self.file(&facts.name), &text)
    }

    /// The stream was deleted.
    pub(super) fn forget(&mut self, stream: &StreamName) {
        self.at.remove(stream.as_str());
        let _ = std::fs::remove_file(self.file(stream.as_str()));
    }
}
