//! The channels of local mode: what their manifests say, what became of their streams, and what was
//! last said of them.

use std::{collections::BTreeMap, path::PathBuf};

use super::{manifests, marks::Marks, replace::replace, say::say};
use crate::{
    controller::{
        desired::config::file_name,
        prober::ServedChannel,
        validate::{self, ValidChannel},
    },
    crd::{
        ManagementPolicy, SseChannel,
        condition::{
            ConditionStatus::{False, True, Unknown},
            READY, STREAM_READY, Verdict, WORKLOAD_AVAILABLE, reason,
        },
        manifest,
        stream::DeletionPolicy,
    },
    stream::{self, Change, Mode, Report, Streams},
};

/// Identity of a directory of manifests in streams' metadata.
const CLUSTER: &str = "local";

pub(super) struct Channels {
    streams: Streams,
    /// Where the data plane looks.
    dir: PathBuf,
    marks: Marks,
    known: BTreeMap<String, Known>,
    fingerprint: manifests::Fingerprint,
    /// Said last of the directory of manifests, while it cannot be read.
    trouble: Option<String>,
    /// Objects that are no channels.
    passed_over: Vec<String>,
}

struct Known {
    file: PathBuf,
    object: SseChannel,
    channel: ValidChannel,
    stream: Option<Result<Report, stream::Error>>,
    /// The channel's file as it was written, once its stream was known to be its own.
    written: Option<String>,
    said: BTreeMap<&'static str, Verdict>,
}

impl Channels {
    pub(super) fn new(
        streams: Streams,
        dir: PathBuf,
        marks: PathBuf,
        found: manifests::Found,
    ) -> Self {
        let mut channels = Self {
            streams,
            dir,
            marks: Marks::new(marks),
            known: BTreeMap::new(),
            fingerprint: found.fingerprint,
            trouble: None,
            passed_over: Vec::new(),
        };
        channels.pass_over(found.passed_over);
        for (name, (file, object)) in found.channels {
            channels.take(name, file, object);
        }
        channels
    }

    /// Says what no channel is, once.
    fn pass_over(&mut self, objects: Vec<String>) {
        for object in objects.iter().filter(|object| !self.passed_over.contains(object)) {
            say(&format!("note: {object}"));
        }
        self.passed_over = objects;
    }

    pub(super) fn fingerprint(&self) -> &manifests::Fingerprint {
        &self.fingerprint
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// The channel that examples are given for.
    pub(super) fn first(&self) -> Option<&ValidChannel> {
        self.known.get("orders").or_else(|| self.known.values().next()).map(|known| &known.channel)
    }

    /// Whether a stream could not be brought in sync for a reason that may pass soon.
    pub(super) fn wants_retry(&self) -> bool {
        self.known
            .values()
            .any(|known| matches!(&known.stream, Some(Err(error)) if error.is_transient()))
    }

    pub(super) fn manifests_unreadable(&mut self, error: &manifests::Error) {
        let text = error.to_string();
        if self.trouble.as_ref() != Some(&text) {
            say(&format!("error: {text} (keeping the previous configuration)"));
            self.trouble = Some(text);
        }
    }

    /// Takes over what the manifests say now. While one of the files has a mistake nothing is
    /// removed: its channels stay as they were, and so does a channel that may have moved there.
    pub(super) async fn change(&mut self, found: manifests::Found) {
        (self.fingerprint, self.trouble) = (found.fingerprint, None);
        self.pass_over(found.passed_over);
        let gone: Vec<_> = self
            .known
            .iter()
            .filter(|(name, _)| !found.channels.contains_key(*name))
            .map(|(name, known)| (name.clone(), known.file.clone()))
            .collect();
        for (name, file) in gone {
            match found.broken.first() {
                None => self.remove(&name).await,
                Some(_) if found.broken.contains(&file) => {}
                Some(broken) => say(&format!(
                    "{name}: is in no manifest; it stays until {} is corrected",
                    broken.display()
                )),
            }
        }
        for (name, (file, object)) in found.channels {
            // What is in force stays. At the start the first one is served.
            if found.ambiguous.contains(&name) && self.known.contains_key(&name) {
                continue;
            }
            if self.take(name.clone(), file, object) {
                self.sync(&name).await;
            }
        }
    }

    /// Whether the channel is new or changed.
    fn take(&mut self, name: String, file: PathBuf, mut object: SseChannel) -> bool {
        if let Some(known) = self.known.get_mut(&name) {
            known.file.clone_from(&file);
            let generation = known.object.metadata.generation.unwrap_or_default();
            if known.object.spec == object.spec
                && known.object.metadata.namespace == object.metadata.namespace
            {
                return false;
            }
            if known.object.metadata.namespace != object.metadata.namespace {
                say(&format!(
                    "error: channel {name}: metadata.namespace must not be changed; delete the channel first (keeping the previous configuration)"
                ));
                return false;
            }
            if let Err(problems) = manifest::rules(&object, Some(&known.object)) {
                say(&format!(
                    "error: channel {name}: {problems} (keeping the previous configuration)"
                ));
                return false;
            }
            object.metadata.generation = Some(generation + 1);
        }
        let channel = match validate::validate(&object, CLUSTER) {
            Ok(channel) => channel,
            Err(error) => {
                say(&format!("error: channel {name}: {error}"));
                return false;
            }
        };
        match self.known.get_mut(&name) {
            Some(known) => {
                (known.object, known.channel) = (object, channel);
            }
            None => {
                let known = Known {
                    file,
                    object,
                    channel,
                    stream: None,
                    written: None,
                    said: BTreeMap::new(),
                };
                self.known.insert(name, known);
            }
        }
        true
    }

    async fn remove(&mut self, name: &str) {
        let Some(known) = self.known.remove(name) else { return };
        let _ = std::fs::remove_file(self.dir.join(file_name(name)));
        let stream = &known.channel.stream;
        self.streams.forget(&stream.owner);
        let delete = known.channel.deletion_policy == DeletionPolicy::Delete
            && known.channel.management_policy == ManagementPolicy::Enforce;
        if !delete {
            return say(&format!(
                "{name}: removed; its stream {} and its events stay",
                stream.name
            ));
        }
        match self.streams.delete(&stream.name, &stream.owner).await {
            Ok(_) => {
                self.marks.forget(&stream.name);
                say(&format!("{name}: removed, with its stream {}", stream.name));
            }
            Err(error) => say(&format!(
                "{name}: removed, but its stream {} is still there: {error}",
                stream.name
            )),
        }
    }

    pub(super) async fn sync_all(&mut self) {
        let names: Vec<_> = self.known.keys().cloned().collect();
        for name in names {
            self.sync(&name).await;
        }
    }

    async fn sync(&mut self, name: &str) {
        let Some(known) = self.known.get_mut(name) else { return };
        let mode = match known.channel.management_policy {
            ManagementPolicy::Enforce => Mode::Enforce,
            ManagementPolicy::Observe => Mode::Observe,
            ManagementPolicy::Paused => return,
        };
        self.marks.remember(&self.streams, &known.channel.stream);
        let result = self.streams.ensure(&known.channel.stream, mode).await;
        if let (Mode::Enforce, Ok(Report { stream: Some(facts), .. })) = (mode, &result)
            && let Err(error) =
                self.marks.write(&self.streams, &known.channel.stream.owner, facts).await
        {
            say(&format!("error: {name}: cannot write down where its stream is: {error}"));
        }
        if let Ok(report) = &result {
            let stream = &known.channel.stream.name;
            match &report.change {
                Change::Recreated => say(&format!(
                    "{name}: stream {stream} had gone and was created again; its events are lost"
                )),
                Change::Restored => say(&format!(
                    "{name}: stream {stream} was set back to an older state; it has a new epoch"
                )),
                Change::Adopted => {
                    say(&format!("{name}: stream {stream} was taken over with its events"));
                }
                Change::TakenOver(from) => {
                    say(&format!("{name}: stream {stream} was handed over by {from}"));
                }
                Change::Created | Change::Updated(_) | Change::None => {}
            }
        }
        // A stream that may have another owner is not served.
        let foreign = result.as_ref().is_err_and(stream::Error::is_foreign);
        if (result.is_ok() || known.written.is_some()) && !foreign {
            match known.channel.config.to_json() {
                Ok(text) if known.written.as_ref() == Some(&text) => {}
                Ok(text) => match replace(&self.dir.join(file_name(name)), &text) {
                    Ok(()) => known.written = Some(text),
                    Err(error) => say(&format!("error: {name}: cannot write its file: {error}")),
                },
                Err(error) => say(&format!("error: {name}: {error}")),
            }
        }
        known.stream = Some(result);
    }

    /// Says what is new of each channel. `served` is what the data plane says it serves, if it
    /// answers.
    pub(super) fn report(&mut self, served: Option<&[ServedChannel]>) {
        for (name, known) in &mut self.known {
            let too_large = self.streams.too_large(known.channel.stream.max_message_size);
            for mut verdict in known.verdicts(name, served) {
                if let Some(why) = too_large
                    .as_ref()
                    .filter(|_| verdict.type_ == STREAM_READY && verdict.status == True)
                {
                    verdict.message = format!("{}; but {why}", verdict.message);
                }
                let before = known.said.get(verdict.type_);
                if before != Some(&verdict) {
                    say(&format!(
                        "{name}: {}={} ({}) {}",
                        verdict.type_,
                        verdict.status.as_str(),
                        verdict.reason,
                        verdict.message
                    ));
                    known.said.insert(verdict.type_, verdict);
                }
            }
        }
    }
}

impl Known {
    fn verdicts(&self, name: &str, served: Option<&[ServedChannel]>) -> [Verdict; 3] {
        let stream_name = &self.channel.stream.name;
        let stream = match &self.stream {
            None if self.channel.management_policy == ManagementPolicy::Paused => Verdict::new(
                STREAM_READY,
                Unknown,
                reason::PAUSED,
                "spec.managementPolicy is Paused",
            ),
            None => Verdict::new(STREAM_READY, Unknown, reason::PENDING, "not looked at yet"),
            Some(Err(error)) => {
                Verdict::new(STREAM_READY, False, error.reason(), error.to_string())
            }
            Some(Ok(report)) => match report.drift.first() {
                Some(first) => {
                    let message = format!("stream {stream_name}: {first}");
                    Verdict::new(STREAM_READY, False, reason::SERVER_DIFFERS, message)
                }
                None => Verdict::new(
                    STREAM_READY,
                    True,
                    reason::IN_SYNC,
                    format!("stream {stream_name} is as the spec says"),
                ),
            },
        };
        let of =
            |status, why, message: String| Verdict::new(WORKLOAD_AVAILABLE, status, why, message);
        let namespace = &self.channel.namespace;
        let mine = served
            .map(|served| served.iter().find(|c| c.name == name && c.namespace == *namespace));
        let generation = self.channel.config.generation;
        let workload = match mine {
            None => {
                of(False, reason::PODS_NOT_READY, "sluice-dataplane does not answer".to_owned())
            }
            Some(None) => of(
                False,
                reason::CONFIG_PROPAGATING,
                "sluice-dataplane has not taken the channel yet".to_owned(),
            ),
            Some(Some(c)) => match &c.error {
                Some(error) => {
                    of(False, reason::PODS_NOT_READY, format!("sluice-dataplane says: {error}"))
                }
                None if c.generation == generation => of(
                    True,
                    reason::MINIMUM_REPLICAS_AVAILABLE,
                    "sluice-dataplane serves it".to_owned(),
                ),
                None => of(
                    False,
                    reason::CONFIG_PROPAGATING,
                    format!("sluice-dataplane still serves generation {}", c.generation),
                ),
            },
        };
        let ready = match (&stream, &workload) {
            (s, _) if s.status != True => Verdict { type_: READY, status: False, ..s.clone() },
            (_, w) if w.status != True => Verdict { type_: READY, status: False, ..w.clone() },
            _ => Verdict::new(
                READY,
                True,
                reason::READY,
                format!("generation {generation} is served"),
            ),
        };
        [stream, workload, ready]
    }
}
