//! How much of the store the channels of a namespace may reserve: what is asked of NATS and of the
//! API server for [`crate::tenancy::quota`], which decides.
//!
//! One decision at a time, so that two channels do not both get the last room. A channel that has
//! what it asks for is not asked about.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use kube::{Api, Client, ResourceExt, api::ListParams, core::DeserializeGuard};
use tokio::sync::Mutex;

use crate::{
    crd::SseChannel,
    stream::{self, Reserved, Streams},
    tenancy::{
        Ask, Rights,
        quota::{self, Asking},
    },
};

/// How long what was read counts for a decision in the channel's favour; one against it is made by
/// what was read after it was asked for.
const AGE: Duration = Duration::from_secs(30);

/// How long a stream may take to grow, once there is room: as long as a pass may take.
const GROWTH: Duration = Duration::from_secs(60);

/// What is known of the room in the store; as many entries as there are namespaces with channels
/// that have grown lately, and as streams that have.
#[derive(Default)]
pub(super) struct Quotas {
    known: Mutex<Known>,
    /// Another operator may have acted since it was read.
    outdated: AtomicBool,
}

#[derive(Default)]
struct Known {
    streams: Option<(Instant, Vec<Reserved>)>,
    channels: HashMap<String, Channels>,
    /// Streams that were allowed to grow, with their new sizes: until they have done so.
    growing: HashMap<String, Growing>,
}

struct Channels {
    at: Instant,
    asking: Vec<Asking>,
    /// By UID: the generation that was read.
    generations: HashMap<String, i64>,
}

struct Growing {
    at: Instant,
    namespace: String,
    bytes: u64,
}

/// What a channel may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Room {
    /// What it asks for.
    Enough,
    /// What its stream has already: why it is no more, and what that is.
    Former { why: String, max_bytes: Option<u64>, replicas: usize },
    /// Nothing, and why.
    None { why: String },
}

/// Why it is not known.
#[derive(Debug)]
pub(super) enum Error {
    Stream(stream::Error),
    Api(kube::Error),
}

impl From<stream::Error> for Error {
    fn from(error: stream::Error) -> Self {
        Self::Stream(error)
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(error)
    }
}

/// Where it is looked.
pub(super) struct Look<'a> {
    pub(super) client: &'a Client,
    pub(super) streams: &'a Streams,
    pub(super) cluster: &'a str,
    pub(super) rights: &'a Rights,
    pub(super) channel: &'a SseChannel,
}

impl Quotas {
    /// Forgets what is known, before the next decision.
    pub(super) fn forget_all(&self) {
        self.outdated.store(true, Ordering::Relaxed);
    }

    /// Whether there is room for what the channel asks for.
    pub(super) async fn room(&self, look: &Look<'_>) -> Result<Room, Error> {
        let Some(ask) = Ask::of(look.channel) else { return Ok(Room::Enough) };
        let asked = Instant::now();
        let mut known = self.known.lock().await;
        if self.outdated.swap(false, Ordering::Relaxed) {
            *known = Known::default();
        }
        match known.decide(look, &ask, AGE).await? {
            Room::Enough => Ok(Room::Enough),
            // Once more, by what is so now: streams that went have left room, and its own may have
            // been made since. Passes that waited meanwhile share the answer.
            Room::Former { .. } | Room::None { .. } => {
                known.decide(look, &ask, asked.elapsed()).await
            }
        }
    }
}

impl Known {
    async fn decide(&mut self, look: &Look<'_>, ask: &Ask, age: Duration) -> Result<Room, Error> {
        let namespace = look.channel.namespace().unwrap_or_default();
        if self.streams.as_ref().is_none_or(|(at, _)| at.elapsed() >= age) {
            let at = Instant::now();
            let streams = look.streams.reserved().await?;
            let sizes: HashMap<_, _> =
                streams.iter().map(|one| (one.stream.as_str(), one.bytes())).collect();
            self.growing.retain(|stream, growing| {
                let has_grown =
                    sizes.get(stream.as_str()).is_some_and(|size| *size >= growing.bytes);
                growing.at > at || !has_grown
            });
            self.streams = Some((at, streams));
        }
        let Some((at, streams)) = &self.streams else { return Ok(Room::Enough) };
        // A stream that was not there when they were listed may be on its way.
        self.growing.retain(|_, growing| growing.at.elapsed() < GROWTH || growing.at > *at);
        let ours =
            |one: &&Reserved| one.owner.cluster == look.cluster && one.owner.namespace == namespace;
        let mut held: BTreeMap<String, u64> =
            streams.iter().filter(ours).map(|one| (one.stream.clone(), one.bytes())).collect();
        let own = streams.iter().filter(ours).find(|one| one.stream == ask.stream).cloned();
        for (stream, growing) in &self.growing {
            if growing.namespace == namespace && *stream != ask.stream {
                let bytes = held.entry(stream.clone()).or_default();
                *bytes = (*bytes).max(growing.bytes);
            }
        }
        let has = held.get(&ask.stream).copied().unwrap_or_default();
        let unlimited = own.as_ref().is_some_and(|own| own.max_bytes.is_none());
        if ask.reserves() <= has || unlimited {
            self.growing.remove(&ask.stream);
            return Ok(Room::Enough);
        }
        let asking = self.asking(look, &namespace, age).await?;
        let quota = look.rights.quota();
        let Err(used) = quota::fits(quota.bytes, &held, asking, &look.channel.name_any()) else {
            let growing = Growing { at: Instant::now(), namespace, bytes: ask.reserves() };
            self.growing.insert(ask.stream.clone(), growing);
            return Ok(Room::Enough);
        };
        let why = quota::refusal(used, ask.reserves(), quota, None).message;
        Ok(match own {
            Some(own) => Room::Former { why, max_bytes: own.max_bytes, replicas: own.replicas },
            None => Room::None { why },
        })
    }

    /// What the channels of the namespace ask for. A list that has this channel as it is has every
    /// one that was created before it.
    async fn asking(
        &mut self,
        look: &Look<'_>,
        namespace: &str,
        age: Duration,
    ) -> Result<Vec<Asking>, kube::Error> {
        let uid = look.channel.uid().unwrap_or_default();
        let generation = look.channel.metadata.generation.unwrap_or_default();
        let has = |known: &&Channels| {
            known.at.elapsed() < age && known.generations.get(&uid) == Some(&generation)
        };
        if let Some(known) = self.channels.get(namespace).filter(has) {
            return Ok(known.asking.clone());
        }
        let at = Instant::now();
        let api: Api<DeserializeGuard<SseChannel>> =
            Api::namespaced(look.client.clone(), namespace);
        let list = api.list(&ListParams::default()).await?;
        let channels: Vec<_> = list.items.into_iter().filter_map(|one| one.0.ok()).collect();
        let generations = channels
            .iter()
            .filter_map(|one| Some((one.uid()?, one.metadata.generation.unwrap_or_default())))
            .collect();
        let asks = channels.iter().filter_map(|one| Some((one, Ask::of(one)?)));
        let asking: Vec<_> = asks
            .filter(|(_, ask)| look.rights.refusals(ask).is_empty())
            .filter_map(|(one, ask)| Asking::of(one, &ask))
            .collect();
        self.channels.retain(|_, known| known.at.elapsed() < AGE);
        let known = Channels { at, asking: asking.clone(), generations };
        self.channels.insert(namespace.to_owned(), known);
        Ok(asking)
    }
}
