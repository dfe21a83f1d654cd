//! Asks the pods of all channels, in a task of its own, which generation they serve.
//!
//! A pass reads what was answered and waits for no pod, so that pods that accept and say nothing
//! hold up no pass, and no pod of another namespace; it is started anew when an answer changes what
//! it said.

mod asker;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    net::IpAddr,
    panic::AssertUnwindSafe,
    time::Duration,
};

use futures::{FutureExt, Stream, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::ObjectRef;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub(crate) use asker::{Asker, ServedChannel};

use super::{
    desired::config::file_name,
    pods::{Pods, Serves, Trouble, Weight, config_refused, is_ready, trouble},
};
use crate::crd::{SseChannel, condition::reason};
use asker::Readyz;

/// Pods asked at a time: with [`LAST_RETRY`], enough for 1,900 that are silent, and for 240 of one
/// namespace.
const ASKED_AT_ONCE: usize = 64;
/// Pods of one namespace asked at a time, so that those of another wait for none of them.
const ASKED_OF_A_NAMESPACE: usize = 8;
/// Pause before a pod is asked again that does not serve the wanted generation yet, or was silent
/// for the first time; the latter is doubled each time.
const SOON: Duration = Duration::from_secs(2);
/// Longest pause before a silent pod is asked again.
const LAST_RETRY: Duration = Duration::from_secs(60);
/// How long a file may take to the pods before they are asked less often.
const PROPAGATION: Duration = Duration::from_secs(90);
/// How long a pass may wait for the first answers of pods that have not been asked: a pod that is
/// well answers in a few milliseconds, and is not told to be late because it is new.
const FIRST_ANSWER: Duration = Duration::from_millis(250);
/// Channels that no pass has looked at for so many of their pauses are forgotten.
const FORGOTTEN_AFTER: u32 = 10;
/// Channels that wait for a pass because an answer has changed; those beyond it wait for the next
/// look.
const WAKES: usize = 1_024;

/// What a data plane says of one channel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    channel: Option<ServedChannel>,
    /// Why it refuses the channel's file.
    refused: Option<String>,
}

type Channel = ObjectRef<SseChannel>;

/// One pod of a channel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Place {
    namespace: String,
    channel: String,
    pod: String,
}

impl Place {
    fn channel(&self) -> Channel {
        ObjectRef::new(&self.channel).within(&self.namespace)
    }
}

/// What Kubernetes says of a pod: whether it is ready, whether its containers run, and how often
/// they were started anew.
type Sign = (bool, bool, i32);

/// What is known of a pod.
#[derive(Debug)]
struct Known {
    ip: IpAddr,
    /// Where that changes, it is asked at once.
    sign: Sign,
    /// Its last answer.
    answer: Option<Answer>,
    /// Silences since its last answer.
    silences: u32,
    /// When it is to be asked. `None` while it is, or waits for its turn.
    due: Option<Instant>,
    /// It is to be asked once more when its answer is here: what was asked is out of date.
    again: bool,
}

/// A channel whose pods are asked.
#[derive(Debug)]
struct Watched {
    generation: i64,
    /// When this generation was first looked for.
    since: Instant,
    /// How often a pod that serves it is asked.
    every: Duration,
    /// When a pass last looked.
    looked: Instant,
    pods: HashMap<String, Known>,
}

impl Watched {
    fn serves(&self, known: &Known) -> Serves {
        let answered = known.silences == 0;
        match known.answer.as_ref().map(|answer| answer.channel.as_ref()) {
            // A pod never goes back to an older file: one that gives no answer just now serves
            // what it served.
            Some(Some(said)) if answered || said.generation == self.generation => {
                Serves::Generation(said.generation)
            }
            Some(None) if answered => Serves::Nothing,
            None if answered => Serves::Unasked,
            _ => Serves::Unreachable,
        }
    }

    /// What an answer has to change for a pass to be of use. Connections are not of it: they
    /// change all the time.
    fn said(&self, pod: &str) -> Option<(Serves, Option<String>, Option<String>)> {
        let known = self.pods.get(pod)?;
        let answer = known.answer.as_ref();
        let error = answer.and_then(|answer| answer.channel.as_ref()?.error.clone());
        let refused = answer.and_then(|answer| answer.refused.clone());
        Some((self.serves(known), error, refused))
    }

    fn pause(&self, known: &Known, now: Instant) -> Duration {
        if known.silences > 0 {
            return (SOON * 2_u32.saturating_pow(known.silences.saturating_sub(1).min(10)))
                .min(LAST_RETRY);
        }
        let is_late = self.serves(known) != Serves::Generation(self.generation);
        if is_late && now.saturating_duration_since(self.since) < PROPAGATION {
            SOON.min(self.every)
        } else {
            self.every
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    channels: HashMap<Channel, Watched>,
    /// When which pod is due; entries that no longer agree with the pod are passed over.
    due: BinaryHeap<Reverse<(Instant, Place)>>,
    /// Pods whose time has come, by namespace; the namespaces take turns.
    waiting: VecDeque<(String, VecDeque<Place>)>,
    asked: HashMap<String, usize>,
    /// Where changes are told: for all namespaces, or for one.
    wakes: Vec<(Option<String>, mpsc::Sender<Channel>)>,
}

impl Inner {
    fn known(&mut self, place: &Place) -> Option<&mut Known> {
        self.channels.get_mut(&place.channel())?.pods.get_mut(&place.pod)
    }

    fn set_due(&mut self, place: Place, at: Instant) {
        if let Some(known) = self.known(&place) {
            known.due = Some(at);
            self.due.push(Reverse((at, place)));
        }
    }

    /// Puts the pods whose time has come behind the others of their namespace. Returns when the
    /// next one's comes.
    fn collect(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse((at, _))) = self.due.peek() {
            if *at > now {
                return Some(*at);
            }
            let Some(Reverse((at, place))) = self.due.pop() else { break };
            match self.known(&place) {
                Some(known) if known.due == Some(at) => known.due = None,
                _ => continue,
            }
            let queue =
                self.waiting.iter_mut().find(|(namespace, _)| *namespace == place.namespace);
            match queue {
                Some((_, queue)) => queue.push_back(place),
                None => self.waiting.push_back((place.namespace.clone(), VecDeque::from([place]))),
            }
        }
        None
    }

    /// The next pod to ask, and its address.
    fn next(&mut self) -> Option<(Place, IpAddr)> {
        for _ in 0..self.waiting.len() {
            let (namespace, mut queue) = self.waiting.pop_front()?;
            let asked = self.asked.get(&namespace).copied().unwrap_or_default();
            let mut found = None;
            while asked < ASKED_OF_A_NAMESPACE && found.is_none() {
                let Some(place) = queue.pop_front() else { break };
                found = self.known(&place).map(|known| known.ip).map(|ip| (place, ip));
            }
            if !queue.is_empty() {
                self.waiting.push_back((namespace.clone(), queue));
            }
            if let Some(found) = found {
                *self.asked.entry(namespace).or_default() += 1;
                return Some(found);
            }
        }
        None
    }

    /// Takes in what the pod at `ip` has answered.
    fn answered(&mut self, place: &Place, ip: IpAddr, answer: Option<Readyz>, now: Instant) {
        if let Some(asked) = self.asked.get_mut(&place.namespace) {
            *asked -= 1;
            if *asked == 0 {
                self.asked.remove(&place.namespace);
            }
        }
        let channel = place.channel();
        let Some(watched) = self.channels.get_mut(&channel) else { return };
        let before = watched.said(&place.pod);
        // Another one has its name by now, and is due by itself.
        let Some(known) = watched.pods.get_mut(&place.pod).filter(|known| known.ip == ip) else {
            return;
        };
        match answer {
            Some(Readyz { channels, refused }) => {
                let of_it = |said: &ServedChannel| {
                    said.name == place.channel && said.namespace == place.namespace
                };
                let file = file_name(&place.channel);
                known.answer = Some(Answer {
                    channel: channels.into_iter().find(of_it),
                    refused: refused.into_iter().find(|r| r.file == file).map(|r| r.reason),
                });
                known.silences = 0;
            }
            None => known.silences = known.silences.saturating_add(1),
        }
        let again = std::mem::take(&mut known.again);
        let changed = watched.said(&place.pod) != before;
        let pause =
            watched.pods.get(&place.pod).map_or(watched.every, |known| watched.pause(known, now));
        self.set_due(place.clone(), if again { now } else { now + pause });
        if changed {
            self.wake(channel);
        }
    }

    fn wake(&self, channel: Channel) {
        let namespace = &channel.namespace;
        let to = self.wakes.iter().find(|(scope, _)| scope.is_none() || scope == namespace);
        if let Some((_, wakes)) = to {
            // Where too many wait already, the next look of a pass sees it.
            let _ = wakes.try_send(channel);
        }
    }

    fn forget_idle(&mut self, now: Instant) {
        self.channels.retain(|_, watched| {
            now.saturating_duration_since(watched.looked) < watched.every * FORGOTTEN_AFTER
        });
    }
}

/// Asks pods, and keeps their answers.
#[derive(Debug)]
pub(super) struct Prober {
    asker: Asker,
    inner: Mutex<Inner>,
    /// There may be a pod to ask.
    work: Notify,
    /// A pod was asked.
    answered: Notify,
}

/// What a pass wants to know of a channel's pods.
pub(super) struct Look<'a> {
    pub(super) channel: &'a Channel,
    pub(super) pods: &'a [Pod],
    /// What they should serve.
    pub(super) generation: i64,
    /// How often to ask them when they do.
    pub(super) every: Duration,
}

impl Prober {
    /// Asks at `port` of each pod, once [`Prober::run`] runs.
    pub(super) fn new(port: u16) -> Self {
        Self {
            asker: Asker::new(port),
            inner: Mutex::default(),
            work: Notify::new(),
            answered: Notify::new(),
        }
    }

    /// The channels of `namespace`, or of all, whose pods answer otherwise than before.
    pub(super) fn wakes(
        &self,
        namespace: Option<String>,
    ) -> impl Stream<Item = Channel> + Send + use<> {
        let (wakes, woken) = mpsc::channel(WAKES);
        self.inner.lock().wakes.push((namespace, wakes));
        stream::unfold(woken, |mut woken| async { woken.recv().await.map(|one| (one, woken)) })
    }

    /// What is known of the pods. Waits for those that were never asked, for a moment.
    pub(super) async fn look(&self, look: &Look<'_>) -> Pods {
        self.note(look, Instant::now());
        self.work.notify_one();
        let all_asked = async {
            loop {
                let answered = self.answered.notified();
                if !self.pods(look).ready.iter().any(|(_, serves)| *serves == Serves::Unasked) {
                    return;
                }
                answered.await;
            }
        };
        let _ = tokio::time::timeout(FIRST_ANSWER, all_asked).await;
        self.pods(look)
    }

    /// The channel has gone.
    pub(super) fn forget(&self, channel: &Channel) {
        self.inner.lock().channels.remove(channel);
    }

    /// Takes in which pods there are and what they should serve.
    fn note(&self, look: &Look<'_>, now: Instant) {
        let mut inner = self.inner.lock();
        let watched = inner.channels.entry(look.channel.clone()).or_insert_with(|| Watched {
            generation: look.generation,
            since: now,
            every: look.every,
            looked: now,
            pods: HashMap::new(),
        });
        (watched.looked, watched.every) = (now, look.every);
        let is_new = std::mem::replace(&mut watched.generation, look.generation) != look.generation;
        if is_new {
            watched.since = now;
        }
        let mut before = std::mem::take(&mut watched.pods);
        let mut due = Vec::new();
        for pod in present(look.pods) {
            let (Some(name), Some(ip)) = (pod.metadata.name.clone(), address(pod)) else {
                continue;
            };
            let sign = sign(pod);
            let known = before.remove(&name).filter(|known| known.ip == ip);
            let mut known = known.unwrap_or(Known {
                ip,
                sign,
                answer: None,
                silences: 0,
                due: Some(now),
                again: false,
            });
            let changed = std::mem::replace(&mut known.sign, sign) != sign;
            if changed && known.answer.is_none() {
                // It was asked before it could answer.
                known.silences = 0;
            }
            let is_first = known.due == Some(now);
            if is_first || is_new || changed {
                match known.due {
                    Some(_) => due.push(name.clone()),
                    // It is being asked, or about to be: by the answer, it may be out of date.
                    None => known.again = true,
                }
            }
            watched.pods.insert(name, known);
        }
        let namespace = look.channel.namespace.clone().unwrap_or_default();
        for pod in due {
            let channel = look.channel.name.clone();
            inner.set_due(Place { namespace: namespace.clone(), channel, pod }, now);
        }
    }

    fn pods(&self, look: &Look<'_>) -> Pods {
        let inner = self.inner.lock();
        let mut found = Pods::default();
        let Some(watched) = inner.channels.get(look.channel) else { return found };
        let mut present: Vec<_> = present(look.pods).collect();
        present.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        for pod in present {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let known = watched.pods.get(&name);
            let answer = known.and_then(|known| known.answer.as_ref());
            let said = answer.and_then(|answer| answer.channel.as_ref());
            let refused = answer.and_then(|answer| answer.refused.as_deref());
            let connections = said
                .filter(|_| known.is_some_and(|known| known.silences == 0))
                .and_then(|said| said.connections);
            if found.refused.is_none() {
                found.refused = refused.map(str::to_owned);
            }
            found.connections += connections.map_or(0, u64::from);
            found.uncounted |= connections.is_none() && is_ready(pod);
            if is_ready(pod) {
                let serves = known.map_or(Serves::Unreachable, |known| watched.serves(known));
                found.ready.push((name, serves));
            } else if found.trouble.is_none() {
                let error = said.and_then(|said| said.error.as_ref());
                let reported = || {
                    let message = format!("pod reports: {}", error?);
                    Some(Trouble::new(Weight::Passing, reason::PODS_NOT_READY, message))
                };
                let is_refused =
                    |why: &str| Trouble { cause: config_refused(why), weight: Weight::Failing };
                found.trouble = trouble(pod).or_else(|| refused.map(is_refused)).or_else(reported);
            }
        }
        found
    }

    /// Asks pods until `stop`.
    pub(super) async fn run(&self, stop: CancellationToken) {
        let mut asking = JoinSet::new();
        let mut tidy = tokio::time::interval(LAST_RETRY);
        loop {
            let (due, idle) = {
                let mut inner = self.inner.lock();
                let now = Instant::now();
                let due = inner.collect(now);
                while asking.len() < ASKED_AT_ONCE
                    && let Some((place, ip)) = inner.next()
                {
                    let asker = self.asker.clone();
                    // A panic is a pod that gives no answer, and holds no place for ever.
                    let answer = async move { asker.readyz(ip).await };
                    let answer = AssertUnwindSafe(answer).catch_unwind();
                    asking.spawn(async move { (place, ip, answer.await.ok().flatten()) });
                }
                (due, asking.is_empty())
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.work.notified() => {}
                () = sleep_until(due) => {}
                _ = tidy.tick() => self.inner.lock().forget_idle(Instant::now()),
                Some(answer) = asking.join_next(), if !idle => {
                    if let Ok((place, ip, answer)) = answer {
                        self.inner.lock().answered(&place, ip, answer, Instant::now());
                        self.answered.notify_waiters();
                    }
                }
            }
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Pods that are there to stay.
fn present(pods: &[Pod]) -> impl Iterator<Item = &Pod> {
    pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none())
}

fn address(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

fn sign(pod: &Pod) -> Sign {
    let containers = || pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let runs = containers().any(|c| c.state.as_ref().is_some_and(|state| state.running.is_some()));
    (is_ready(pod), runs, containers().map(|container| container.restart_count).sum())
}

#[cfg(test)]
mod tests;
