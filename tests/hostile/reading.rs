//! The ways to read a channel, and what all of them must show of it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use sluice_channel::{Cursor, Event};
use sluice_dataplane::source::{
    ReadLimit, Source,
    jetstream::{self, JetStream, Settings, connect},
};
use sluice_tests::{
    clients::{Reader, Request},
    dataplane::DataPlane,
    nats::NatsServer,
};
use tokio::task::JoinHandle;

use crate::{
    fixture::{Fixture, ORDERS, SOON},
    messages::plain,
    raw::{Raw, Sent},
    truth::{Due, truth},
};

/// Messages that the publisher sends at a time.
const AT_A_TIME: usize = 100;
/// Longest wait for the next event while messages are published, which includes what the store does
/// with those that are no events.
const LIVE: Duration = Duration::from_secs(120);

/// What one way to read gave, in its order.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Sequence, name and data; of a page the whole event without its id.
    events: Vec<(u64, String, String)>,
    /// First and last sequence.
    gaps: Vec<(u64, u64)>,
}

impl Seen {
    fn gap(&mut self, gap: &Value) {
        self.gaps.push((gap["from"].as_u64().unwrap(), gap["to"].as_u64().unwrap()));
    }

    /// The events are those that are due, and each hole between them is named. `is_history`: what
    /// the store has no more is not there either.
    fn assert(
        &self,
        way: &str,
        due: &[Due],
        is_history: bool,
        shown: impl Fn(&Due) -> (String, String),
    ) {
        let rises = self.events.windows(2).all(|pair| pair[0].0 < pair[1].0);
        assert!(rises, "{way}: order");
        let events: BTreeMap<u64, _> =
            self.events.iter().map(|(at, name, data)| (*at, (name, data))).collect();
        for due in due {
            let expected = shown(due);
            let Some((name, data)) = events.get(&due.sequence) else {
                panic!("{way}: it is missing; {due:?}; gaps {:?}", self.gaps);
            };
            assert_eq!((*name, *data), (&expected.0, &expected.1), "{way}: {due:?}");
            let told = self.gaps.iter().find(|(from, to)| (*from..=*to).contains(&due.sequence));
            assert_eq!(told, None, "{way}: it is there, and named as missing: {due:?}");
        }
        if is_history {
            let last = due.last().map_or(0, |due| due.sequence);
            let count = events.range(..=last).count();
            assert_eq!(count, due.len(), "{way}: events that the store has no more");
        }
        for pair in self.events.windows(2) {
            let (from, to) = (pair[0].0 + 1, pair[1].0);
            let unnamed = (from..to)
                .find(|hole| !self.gaps.iter().any(|(from, to)| (*from..=*to).contains(hole)));
            assert_eq!(unnamed, None, "{way}: a hole without a name; gaps {:?}", self.gaps);
        }
    }
}

fn sequence(id: &str) -> u64 {
    id.parse::<Cursor>().unwrap_or_else(|_| panic!("{id:?} is no cursor")).sequence
}

/// Reads `path` in the background, as events come, up to the one that `last` names once it is
/// known.
fn follow(
    address: SocketAddr,
    path: &str,
    mut last: tokio::sync::watch::Receiver<u64>,
) -> JoinHandle<Seen> {
    let request = Request::get(path);
    tokio::spawn(async move {
        let mut reader = Reader::open(address, &request).await;
        let mut seen = Seen::default();
        loop {
            let end = *last.borrow_and_update();
            if seen.events.last().is_some_and(|(at, ..)| *at >= end) {
                return seen;
            }
            tokio::select! {
                event = reader.event(LIVE) => {
                    let event = event.expect("the stream goes on");
                    if event.name == "channel.gap" {
                        seen.gap(&serde_json::from_str(&event.data).unwrap());
                    } else {
                        seen.events.push((sequence(&event.last_event_id), event.name, event.data));
                    }
                }
                changed = last.changed() => if changed.is_err() {
                    // The test has failed elsewhere.
                    return seen;
                },
            }
        }
    })
}

/// Reads `path` up to sequence `last`.
async fn stream(plane: &DataPlane, path: &str, last: u64) -> Seen {
    let (_known, last) = tokio::sync::watch::channel(last);
    follow(plane.http(), path, last).await.unwrap()
}

async fn pages(plane: &DataPlane, query: &str) -> Seen {
    let client = reqwest::Client::new();
    let (mut from, mut seen) = ("earliest".to_owned(), Seen::default());
    loop {
        let url = plane.url(&format!("{ORDERS}?limit=1000&from={from}{query}"));
        let answer = client.get(url).header("accept", "application/json").send().await.unwrap();
        let page: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        if page["gap"].is_object() {
            seen.gap(&page["gap"]);
        }
        let events = page["events"].as_array().unwrap_or_else(|| panic!("{page}"));
        for event in events {
            let mut event = event.clone();
            let id = event.as_object_mut().unwrap().remove("id").unwrap();
            seen.events.push((sequence(id.as_str().unwrap()), String::new(), event.to_string()));
        }
        from = page["next"].as_str().unwrap().to_owned();
        if page["upToDate"] == true {
            return seen;
        }
    }
}

/// The pages of a query that selects what is `due`.
pub(crate) async fn assert_pages(way: &str, plane: &DataPlane, due: &[Due], query: &str) {
    let seen = pages(plane, query).await;
    let shown: Vec<_> = seen.events.iter().map(|(at, _, event)| (*at, event.clone())).collect();
    let expected: Vec<_> =
        due.iter().map(|due| (due.sequence, due.on_page().to_string())).collect();
    assert_eq!(shown, expected, "{way}: pages{query}");
}

pub(crate) async fn connection(nats: &NatsServer) -> jetstream::Connection {
    let settings =
        Settings { servers: vec![nats.url()], name: "any bytes".into(), ..Settings::default() };
    let connection = connect(&settings).await.unwrap();
    let up = async || connection.is_up().then_some(());
    sluice_tests::eventually("a connection", SOON, up).await;
    connection
}

/// The tail, reads in a row (direct gets, then a consumer) and the leader's word give the same.
async fn assert_source(fixture: &Fixture, due: &[Due]) {
    let last = due.last().unwrap().sequence;
    let source = JetStream::new(
        connection(&fixture.nats).await,
        fixture.names.stream.clone(),
        &fixture.names.prefix,
        "any-bytes",
    );
    let mut tail = source.tail(1).await.unwrap();
    let mut tailed: Vec<Event> = Vec::new();
    while tailed.last().is_none_or(|event| event.sequence < last) {
        let delivery = tokio::time::timeout(SOON, tail.next()).await.expect("a delivery").unwrap();
        tailed.push(delivery.event);
    }
    let mut read: Vec<Event> = Vec::new();
    while read.last().is_none_or(|event| event.sequence < last) {
        let from = read.last().map_or(1, |event| event.sequence + 1);
        let limit = ReadLimit { events: 100, bytes: 1024 * 1024 };
        let batch = source.read(from, limit).await.unwrap().events;
        assert!(!batch.is_empty(), "nothing from {from} on, and {last} is the last");
        read.extend(batch.into_iter().take(100));
    }
    let ask = |due: &Due| source.read_leader(due.sequence);
    let led: Vec<Event> = stream::iter(due.iter().map(ask))
        .buffered(64)
        .map_ok(Option::unwrap)
        .try_collect()
        .await
        .unwrap();
    assert_eq!((tailed.len(), read.len()), (due.len(), due.len()), "all events, and no other");
    for ((tailed, read), led) in tailed.iter().zip(&read).zip(&led) {
        assert_eq!(tailed, read, "the tail and a read");
        assert_eq!(tailed, led, "the tail and the leader");
    }
    for (due, event) in due.iter().zip(&tailed) {
        assert_eq!((due.sequence, &due.name), (event.sequence, &event.name), "{due:?}");
    }
}

/// Publishes `sent` and one more, each under `published`, and compares all ways to read what the
/// store made of it. Returns what is due.
pub(crate) async fn assert_all_ways(
    fixture: &Fixture,
    published: &str,
    sent: &mut Vec<Sent>,
) -> Vec<Due> {
    let (known, last) = tokio::sync::watch::channel(u64::MAX);
    let live = follow(fixture.plane.http(), &format!("{ORDERS}?from=earliest"), last);
    sent.push(plain(sent.len(), published));
    let mut raw = Raw::connect(&fixture.nats).await;
    for some in sent.chunks(AT_A_TIME) {
        raw.publish(some).await;
    }
    settled(fixture, sent.last().unwrap()).await;
    let (due, _) = truth(fixture, published, sent).await;
    let end = due.last().unwrap().sequence;
    known.send(end).unwrap();
    let on_stream = |due: &Due| due.on_stream();
    live.await.unwrap().assert("live", &due, false, on_stream);

    let path = format!("{ORDERS}?from=earliest");
    stream(&fixture.plane, &path, end).await.assert("memory", &due, false, on_stream);
    let on_page = |due: &Due| (String::new(), due.on_page().to_string());
    pages(&fixture.plane, "").await.assert("pages", &due, false, on_page);
    let restarted = fixture.another().await;
    stream(&restarted, &path, end).await.assert("history", &due, true, on_stream);
    let all = format!("{path}&topic=%3E");
    stream(&restarted, &all, end).await.assert("history, filtered", &due, true, on_stream);
    pages(&restarted, "").await.assert("pages of history", &due, true, on_page);
    let envelopes = stream(&restarted, &format!("{path}&envelope=json"), end).await;
    for (due, (_, name, data)) in due.iter().zip(&envelopes.events) {
        if name != "channel.invalid" {
            let envelope: Value = serde_json::from_str(data).unwrap();
            assert_eq!(envelope["topic"], due.topic, "{due:?}");
            assert_eq!(envelope["time"], due.time, "{due:?}");
        }
    }
    assert_source(fixture, &due).await;
    due
}

/// Waits until the stream has the last message, and changes no more: lifetimes that have run out
/// take messages away, and schedules add some.
async fn settled(fixture: &Fixture, last: &Sent) {
    let stream = fixture.names.stream.as_str();
    let client = fixture.streams.context().client();
    let topic = String::from_utf8(last.subject.clone()).unwrap();
    let topic = topic.rsplit_once('.').unwrap().1;
    let subject = format!("$JS.API.DIRECT.GET.{stream}.{}{topic}", fixture.names.prefix);
    sluice_tests::eventually("the last message", SOON * 3, async || {
        let found = client.request(subject.clone(), "".into()).await.ok()?;
        (found.payload == last.payload).then_some(())
    })
    .await;
    let state = async || {
        let state = fixture.streams.info(stream).await.state;
        (state.messages, state.last_sequence)
    };
    let mut before = state().await;
    sluice_tests::eventually("a stream at rest", SOON * 3, async || {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let now = state().await;
        (std::mem::replace(&mut before, now) == now).then_some(())
    })
    .await;
}
