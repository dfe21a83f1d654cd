//! One conformance suite for every store behind the data plane's log: what holds for the one in
//! memory, which the tests of the log use, holds for JetStream on a real nats-server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{sync::Arc, time::Duration};

use futures::future::LocalBoxFuture;
use sluice_dataplane::source::{
    Append, Error, ReadLimit, Source, Tail,
    jetstream::{JetStream, Settings, connect},
    memory::MemorySource,
};
use sluice_tests::nats::{NatsServer, Streams, names, stream_config};

/// A store and the means to change it behind the source's back.
trait Backend {
    fn source(&self) -> Arc<dyn Source>;
    fn prefix(&self) -> String;
    fn delete(&self, sequence: u64) -> LocalBoxFuture<'_, ()>;
    fn purge_before(&self, sequence: u64) -> LocalBoxFuture<'_, ()>;
    fn recreate(&self) -> LocalBoxFuture<'_, ()>;
}

impl Backend for MemorySource {
    fn source(&self) -> Arc<dyn Source> {
        Arc::new(self.clone())
    }
    fn prefix(&self) -> String {
        String::new()
    }
    fn delete(&self, sequence: u64) -> LocalBoxFuture<'_, ()> {
        Box::pin(async move { Self::delete(self, sequence) })
    }
    fn purge_before(&self, sequence: u64) -> LocalBoxFuture<'_, ()> {
        Box::pin(async move { Self::purge_before(self, sequence) })
    }
    fn recreate(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async { Self::recreate(self) })
    }
}

struct Real {
    _server: NatsServer,
    streams: Streams,
    names: sluice_tests::nats::Names,
    source: JetStream,
}

impl Real {
    async fn start() -> Self {
        let server = NatsServer::start().await;
        let streams = Streams::connect(&server.url()).await;
        let names = names("conformance");
        streams.create(stream_config(&names)).await;
        let settings = Settings {
            servers: vec![server.url()],
            name: "conformance".into(),
            ..Settings::default()
        };
        let connection = connect(&settings).await.unwrap();
        let source = JetStream::new(connection, names.stream.clone(), &names.prefix, "conformance");
        sluice_tests::eventually("a connection", Duration::from_secs(10), async || {
            source.connected().then_some(())
        })
        .await;
        Self { _server: server, streams, names, source }
    }
}

impl Backend for Real {
    fn source(&self) -> Arc<dyn Source> {
        Arc::new(self.source.clone())
    }
    fn prefix(&self) -> String {
        self.names.prefix.clone()
    }
    fn delete(&self, sequence: u64) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.streams.delete_message(self.names.stream.as_str(), sequence))
    }
    fn purge_before(&self, sequence: u64) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.streams.purge_before(self.names.stream.as_str(), sequence))
    }
    fn recreate(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {
            self.streams.context().delete_stream(self.names.stream.as_str()).await.unwrap();
            self.streams.create(stream_config(&self.names)).await;
        })
    }
}

async fn put(backend: &dyn Backend, topic: &str, payload: &str) -> u64 {
    let append = Append {
        subject: format!("{}{topic}", backend.prefix()),
        name: None,
        content_type: None,
        idempotency_key: None,
        expected_last: None,
        payload: payload.to_owned().into(),
    };
    backend.source().append(append).await.unwrap().sequence
}

async fn read(backend: &dyn Backend, from: u64, events: u64) -> Vec<u64> {
    let limit = ReadLimit { events, bytes: 1024 * 1024 };
    backend.source().read(from, limit).await.unwrap().events.iter().map(|e| e.sequence).collect()
}

async fn next(tail: &mut dyn Tail) -> Result<(u64, u64), Error> {
    let delivery = tokio::time::timeout(Duration::from_secs(10), tail.next())
        .await
        .expect("a delivery in time");
    delivery.map(|d| (d.delivery_sequence, d.event.sequence))
}

async fn an_empty_stream(backend: &dyn Backend) {
    let source = backend.source();
    let state = source.state().await.unwrap();
    assert_eq!((state.first, state.last), (1, 0));
    assert!(read(backend, 1, 10).await.is_empty());
    assert_eq!(source.read_leader(1).await.unwrap(), None);
    assert_eq!(source.first_since(0).await.unwrap(), None);
}

async fn events_are_read_back_as_they_were(backend: &dyn Backend) {
    for i in 1..=5 {
        assert_eq!(
            put(backend, if i % 2 == 0 { "even.x" } else { "odd" }, &format!("p{i}")).await,
            i
        );
    }
    let source = backend.source();
    let state = source.state().await.unwrap();
    assert_eq!((state.first, state.last), (1, 5));
    let batch = source.read(2, ReadLimit { events: 2, bytes: 1024 }).await.unwrap();
    assert!(batch.more);
    let seen: Vec<_> =
        batch.events.iter().map(|e| (e.sequence, e.topic.as_str(), &e.payload[..])).collect();
    assert_eq!(seen, [(2, "even.x", &b"p2"[..]), (3, "odd", &b"p3"[..])]);
    assert!(!source.read(4, ReadLimit { events: 10, bytes: 1024 }).await.unwrap().more);
    // One event may overshoot the bytes, and at least one is given.
    let small = source.read(1, ReadLimit { events: 5, bytes: 1 }).await.unwrap();
    assert_eq!((small.events[0].sequence, small.more), (1, true));
    assert!(read(backend, 6, 10).await.is_empty());
    let direct =
        source.read(3, ReadLimit { events: 1, bytes: 1024 }).await.unwrap().events.remove(0);
    assert_eq!(
        source.read_leader(3).await.unwrap(),
        Some(direct.clone()),
        "leader and replica tell the same"
    );
    assert_eq!(source.first_since(direct.time_nanos).await.unwrap(), Some(3));
    assert_eq!(source.first_since(i64::MAX / 2).await.unwrap(), None);
}

async fn holes(backend: &dyn Backend) {
    backend.delete(3).await;
    assert_eq!(read(backend, 3, 2).await, [4, 5]);
    assert_eq!(backend.source().read_leader(3).await.unwrap().map(|e| e.sequence), Some(4));
    backend.purge_before(2).await;
    assert_eq!(backend.source().state().await.unwrap().first, 2);
    assert_eq!(read(backend, 1, 10).await, [2, 4, 5]);
}

async fn a_tail_numbers_its_deliveries(backend: &dyn Backend) {
    let source = backend.source();
    let mut tail = source.tail(1).await.unwrap();
    // Sequences jump over what is gone, deliveries do not.
    for expected in [(1, 2), (2, 4), (3, 5)] {
        assert_eq!(next(&mut *tail).await.unwrap(), expected);
    }
    let idle = tokio::time::timeout(Duration::from_millis(300), tail.next()).await;
    assert!(idle.is_err(), "nothing more yet; a wait that is dropped loses nothing");
    put(backend, "odd", "p6").await;
    assert_eq!(next(&mut *tail).await.unwrap(), (4, 6));
    let mut from_the_middle = source.tail(5).await.unwrap();
    assert_eq!(next(&mut *from_the_middle).await.unwrap(), (1, 5));
    assert_eq!(next(&mut *from_the_middle).await.unwrap(), (2, 6));
    let mut from_the_head = source.tail(7).await.unwrap();
    put(backend, "odd", "p7").await;
    assert_eq!(next(&mut *from_the_head).await.unwrap(), (1, 7));
}

async fn appends(backend: &dyn Backend) {
    let source = backend.source();
    let append = |key: Option<&str>, expected: Option<u64>| Append {
        subject: format!("{}conditional", backend.prefix()),
        name: None,
        content_type: None,
        idempotency_key: key.map(Into::into),
        expected_last: expected,
        payload: "x".into(),
    };
    let first = source.append(append(Some("k1"), Some(0))).await.unwrap();
    assert_eq!((first.sequence, first.duplicate), (8, false));
    let again = source.append(append(Some("k1"), None)).await.unwrap();
    assert_eq!((again.sequence, again.duplicate), (8, true));
    assert!(matches!(source.append(append(None, Some(7))).await, Err(Error::WrongLastSequence)));
    assert_eq!(source.append(append(None, Some(8))).await.unwrap().sequence, 9);
}

async fn a_new_life(backend: &dyn Backend) {
    let source = backend.source();
    let before = source.state().await.unwrap();
    let mut tail = source.tail(before.last + 1).await.unwrap();
    backend.recreate().await;
    let after = source.state().await.unwrap();
    assert_ne!(after.epoch, before.epoch);
    assert_eq!((after.first, after.last), (1, 0));
    let ended = tokio::time::timeout(Duration::from_secs(15), tail.next())
        .await
        .expect("the tail ends in time");
    assert!(ended.is_err());
}

/// A reader that reads on and on, and others that read near by at the same time, get everything
/// that is there from where they begin.
async fn reads_in_a_row(backend: &dyn Backend) {
    let source = backend.source();
    let start = source.state().await.unwrap().last + 1;
    for sequence in start..start + 600 {
        assert_eq!(put(backend, "row", &format!("r{sequence}")).await, sequence);
    }
    let mut there: Vec<u64> = (start..start + 600).collect();
    for hole in [120..125, 249..251, 300..302, 596..597] {
        for sequence in hole.map(|i| start + i) {
            backend.delete(sequence).await;
            there.retain(|s| *s != sequence);
        }
    }
    let check = async |from: u64, limit: ReadLimit| {
        let batch = source.read(from, limit).await.unwrap();
        let seen: Vec<u64> = batch.events.iter().map(|e| e.sequence).collect();
        let expected: Vec<u64> =
            there.iter().copied().filter(|s| *s >= from).take(seen.len()).collect();
        assert_eq!(seen, expected, "read from {from}");
        assert!(!seen.is_empty() && seen.len() as u64 <= limit.events, "read from {from}");
        assert!(
            batch
                .events
                .iter()
                .all(|e| e.topic == "row" && e.payload == format!("r{}", e.sequence))
        );
        *seen.last().unwrap()
    };
    for (events, bytes) in [(50, 1024 * 1024), (50, 60), (7, 1024 * 1024)] {
        let (mut from, mut other) = (start, start);
        while from < start + 600 {
            let to = from + events - 1;
            let last = check(from, ReadLimit { events, bytes }).await;
            // What lies after the block is only a sign that there is nothing before it.
            from = if last > to { to + 1 } else { last + 1 };
            // Steps of 37, so that it comes to the same places, before and after.
            other = start + (other + 37 - start) % 590;
            check(other, ReadLimit { events: 20, bytes }).await;
        }
    }
    // In a row again, up to the middle; then the stream is another, with other events at the same
    // places.
    let mut from = start;
    while from < start + 300 {
        from = check(from, ReadLimit { events: 30, bytes: 1024 * 1024 }).await + 1;
    }
    backend.recreate().await;
    for _ in 0..from + 100 {
        put(backend, "new", "n").await;
    }
    let is_new =
        |batch: &sluice_dataplane::source::Batch| batch.events.iter().all(|e| e.topic == "new");
    let batch = source.read(from, ReadLimit { events: 30, bytes: 1024 * 1024 }).await.unwrap();
    let new = source.state().await.unwrap().epoch;
    assert!(
        is_new(&batch) || batch.epoch.is_some_and(|epoch| epoch != new),
        "old events are never taken for new ones"
    );
    let batch = source.read(from, ReadLimit { events: 30, bytes: 1024 * 1024 }).await.unwrap();
    assert!(is_new(&batch) && batch.events.len() == 30);
}

async fn conformance(backend: &dyn Backend) {
    an_empty_stream(backend).await;
    events_are_read_back_as_they_were(backend).await;
    holes(backend).await;
    a_tail_numbers_its_deliveries(backend).await;
    appends(backend).await;
    a_new_life(backend).await;
    reads_in_a_row(backend).await;
}

#[test]
fn memory_conforms() {
    sluice_tests::run(Duration::from_secs(30), async {
        conformance(&MemorySource::default()).await;
    });
}

#[test]
fn jetstream_conforms() {
    sluice_tests::run(Duration::from_secs(60), async { conformance(&Real::start().await).await });
}
