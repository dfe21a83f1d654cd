//! Whatever bytes a broker accepts, a channel goes on, and all ways to read it agree.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use async_nats::jetstream::stream::{Config, Republish, Source as Origin, SubjectTransform};
use bytes::Bytes;
use sluice_dataplane::source::{Source, jetstream::JetStream};
use sluice_tests::{
    clients::{Connection, Reader, Request},
    dataplane::{ConfigDir, DataPlane, channel_config},
    nats::{NatsServer, Streams, names, stream_config},
    run,
};

use crate::{
    fixture::{Fixture, ORDERS, SOON},
    messages::{BLOCKS, SUBJECTS, random_message, sent},
    raw::Sent,
    reading::{assert_all_ways, assert_pages, connection},
    scale,
    truth::Due,
};

const LIMIT: Duration = Duration::from_secs(120);
/// How late an event of another channel of the process may come meanwhile.
const BESIDE: Duration = Duration::from_secs(2);
/// The prefix of a default channel's subjects.
const PREFIX: &str = "sse.test.orders.";
/// Subjects that are not the channel's, of which its stream gets what is published.
const ELSEWHERE: &str = "in.";

/// A fixture whose memory is small: what is old is read from the store.
async fn small_cache() -> Fixture {
    Fixture::channel(|channel| channel.delivery.cache_bytes = 1024 * 1024).await
}

#[test]
fn each_message_that_a_broker_takes_arrives_on_every_path() {
    run(LIMIT, async {
        let fixture = small_cache().await;
        let mut messages = Vec::new();
        for block in BLOCKS {
            messages.push(sent(messages.len(), PREFIX, b"a", Some(block), b" text"));
        }
        let forged = format!(
            "NATS/1.0\r\nNats-Stream: {}\r\nNats-Subject: x\r\nNats-Sequence: 5\r\nNats-Time-Stamp: 2001-01-01T00:00:00Z\r\nNats-Num-Pending: 0\r\n\r\n",
            fixture.names.stream
        );
        messages.push(sent(messages.len(), PREFIX, b"a", Some(forged.as_bytes()), b" text"));
        for subject in SUBJECTS {
            messages.push(sent(messages.len(), PREFIX, subject, None, b" text"));
            let block = b"NATS/1.0\r\nEvent-Name: n\r\n\r\n";
            messages.push(sent(messages.len(), PREFIX, subject, Some(block), b" text"));
        }
        messages.push(sent(messages.len(), PREFIX, b"a", None, b"\xff"));
        let due = assert_all_ways(&fixture, PREFIX, &mut messages).await;
        assert_eq!(due.len(), messages.len(), "the store takes all of them");
        let names: Vec<_> = due.iter().filter_map(|due| due.name.as_deref()).collect();
        assert_eq!(names[..4], ["after", "lower", "behind", "a"]);
        // A filter selects none of those whose topic is no text, unless it is `>`.
        let some: Vec<Due> = due.into_iter().filter(|due| due.is_text).collect();
        for plane in [&fixture.plane, &fixture.another().await] {
            let [one, more] = ["*", "*.>"].map(|filter| format!("&topic={filter}"));
            assert_pages("one word or more", plane, &some, &format!("{one}{more}")).await;
        }
        let metrics = fixture.plane.metrics().await;
        let invalid = metrics.sum("sluice_invalid_payloads", &[("channel", "orders")]);
        assert_eq!(invalid, 5.0, "topics of two messages each, and one payload");
        assert!(fixture.plane.log().contains("an event that is not text"), "the log names one");
    });
}

/// Publishes on a second channel of the process for as long as `task` takes; the longest time that
/// an event took to its subscriber.
async fn beside<T>(fixture: &Fixture, task: impl Future<Output = T>) -> (T, Duration) {
    let names = names("beside");
    fixture.streams.create(stream_config(&names)).await;
    fixture.configs.write(&channel_config(&names));
    let path = "/channels/beside";
    sluice_tests::eventually("the second channel", SOON, async || {
        let opened = Connection::open(fixture.plane.http(), &Request::get(path)).await.ok()?;
        (opened.status() == 200).then_some(())
    })
    .await;
    let mut reader = fixture.open(path).await;
    assert!(reader.read_for(Duration::from_millis(300)).await);
    let longest = Cell::new(Duration::ZERO);
    let publishing = async {
        loop {
            let begun = Instant::now();
            fixture.streams.publish(&names.prefix, "a", "x").await;
            assert_eq!(reader.event(SOON).await.unwrap().data, "x");
            longest.set(longest.get().max(begun.elapsed()));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let value = tokio::select! {
        value = task => value,
        () = publishing => unreachable!("it never ends"),
    };
    (value, longest.get())
}

/// How messages come to the channel's stream.
struct Way {
    /// Names the test's generator.
    name: &'static str,
    /// What publishers write before the rest of a subject.
    published: &'static str,
    /// The channel's stream.
    stream: fn(&mut Config),
    /// The stream that publishers write to, where that is another one.
    other: Option<fn(&mut Config)>,
    /// Whether the broker goes on after the message.
    survives: fn(&Sent) -> bool,
}

/// A stream as it is for a default channel.
const PLAIN: Way =
    Way { name: "plain", published: PREFIX, stream: |_| {}, other: None, survives: |_| true };

/// nats-server 2.15.1 holds a mirror and a source to what the publisher expected of the stream
/// before it, its name or its last sequence: they stop at the message for good.
fn expects_nothing(sent: &Sent) -> bool {
    let name = b"nats-expected-";
    let block = sent.block.as_deref().unwrap_or_default();
    !block.windows(name.len()).any(|window| window.eq_ignore_ascii_case(name))
}

fn transform() -> SubjectTransform {
    SubjectTransform { source: format!("{ELSEWHERE}>"), destination: format!("{PREFIX}>") }
}

impl Way {
    async fn fixture(&self) -> Fixture {
        let nats = NatsServer::start().await;
        let streams = Streams::connect(&nats.url()).await;
        let names = names("orders");
        let mut config = stream_config(&names);
        if let Some(other) = self.other {
            let mut config = Config {
                name: "other".into(),
                subjects: vec![format!("{}>", self.published)],
                ..config.clone()
            };
            other(&mut config);
            streams.create(config).await;
        }
        (self.stream)(&mut config);
        let mut channel = channel_config(&names);
        channel.delivery.cache_bytes = 1024 * 1024;
        let epoch = streams.create(config).await;
        let configs = ConfigDir::new(&[channel]);
        let plane = DataPlane::start(&nats.url(), &configs).await;
        Fixture { plane, configs, streams, nats, names, epoch }
    }

    /// Sends `count` random messages, in rounds, each to servers of its own.
    fn assert(&self, count: usize) {
        let mut rng = scale::rng(self.name);
        run(LIMIT + Duration::from_millis(count as u64 * 20), async {
            for round in 0..count.div_ceil(ROUND) {
                let fixture = self.fixture().await;
                let count = ROUND.min(count - round * ROUND);
                let mut messages = (0..count)
                    .map(|number| {
                        let mut any = std::iter::repeat_with(|| {
                            random_message(number, self.published, &mut rng)
                        });
                        any.find(self.survives).unwrap()
                    })
                    .collect();
                let sending = assert_all_ways(&fixture, self.published, &mut messages);
                let (due, longest) = beside(&fixture, sending).await;
                eprintln!(
                    "{}: {} of {count} messages are there; beside them {longest:?} at most",
                    self.name,
                    due.len()
                );
                assert!(due.len() > count / 4, "the store has many of them: {}", due.len());
                let odd = due.iter().filter(|due| !due.is_text).count();
                let named = due.iter().filter(|due| due.name.is_some()).count();
                assert!(odd > 0 && named > 0, "{odd} topics that are no text, {named} names");
                assert!(longest < BESIDE, "an event of another channel came after {longest:?}");
            }
        });
    }
}

/// Messages of one round.
const ROUND: usize = 5_000;

#[test]
fn random_messages_arrive_alike_on_every_path() {
    PLAIN.assert(scale::of(2_000, 50_000));
}

#[test]
fn what_headers_may_do_to_a_stream_is_seen_alike_on_every_path() {
    let stream = |config: &mut Config| {
        config.allow_rollup = true;
        config.allow_message_ttl = true;
        config.allow_message_schedules = true;
        config.allow_atomic_publish = true;
    };
    Way { name: "all allowed", stream, ..PLAIN }.assert(scale::of(500, 10_000));
}

#[test]
fn transformed_subjects_are_the_channels_on_every_path() {
    let stream = |config: &mut Config| {
        config.subjects = vec![format!("{ELSEWHERE}>")];
        config.subject_transform = Some(transform());
    };
    Way { name: "transformed", published: ELSEWHERE, stream, ..PLAIN }
        .assert(scale::of(300, 10_000));
}

#[test]
fn a_mirror_is_read_alike_on_every_path() {
    let stream = |config: &mut Config| {
        config.subjects = Vec::new();
        config.mirror = Some(Origin { name: "other".into(), ..Origin::default() });
        config.mirror_direct = true;
    };
    Way {
        name: "mirror",
        published: PREFIX,
        stream,
        other: Some(|_| {}),
        survives: expects_nothing,
    }
    .assert(scale::of(300, 10_000));
}

#[test]
fn a_stream_with_a_source_is_read_alike_on_every_path() {
    let stream = |config: &mut Config| {
        config.subjects = Vec::new();
        // The header that a source adds would make the largest messages too large, and it would
        // stop at one for good.
        config.max_message_size = -1;
        config.sources = Some(vec![Origin {
            name: "other".into(),
            subject_transforms: vec![transform()],
            ..Origin::default()
        }]);
    };
    Way {
        name: "source",
        published: ELSEWHERE,
        stream,
        other: Some(|_| {}),
        survives: expects_nothing,
    }
    .assert(scale::of(300, 10_000));
}

#[test]
fn republished_messages_are_read_alike_on_every_path() {
    let other = |config: &mut Config| {
        let SubjectTransform { source, destination } = transform();
        config.republish = Some(Republish { source, destination, headers_only: false });
    };
    // nats-server 2.15.1 panics where it republishes a message whose block of headers is one byte.
    let survives = |sent: &Sent| sent.block.as_ref().is_none_or(|block| block.len() != 1);
    Way { name: "republished", published: ELSEWHERE, other: Some(other), survives, ..PLAIN }
        .assert(scale::of(300, 10_000));
}

#[test]
fn a_stream_of_nothing_but_invalid_messages_is_read_to_its_end() {
    run(LIMIT, async {
        let fixture = small_cache().await;
        let count = scale::of(1_500, 20_000);
        let mut messages = (0..count)
            .map(|number| match number % 3 {
                0 => sent(number, PREFIX, b"a", None, b"\xff"),
                1 => sent(number, PREFIX, b"\xff\xfe", None, b"text"),
                _ => sent(number, PREFIX, b"b.\xff", Some(BLOCKS[6]), &[0xc3; 2_000]),
            })
            .collect();
        let due = assert_all_ways(&fixture, PREFIX, &mut messages).await;
        let invalid = due.iter().filter(|due| due.on_stream().0 == "channel.invalid").count();
        assert_eq!((invalid, due.len()), (count, count + 1), "all but the last");
    });
}

#[test]
fn a_message_larger_than_a_pull_does_not_stop_the_tail() {
    const LARGE: usize = 9 * 1024 * 1024;
    run(LIMIT, async {
        let config = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(config.path(), "max_payload: 16MB\n").unwrap();
        let nats = NatsServer::start_with(&["-c", config.path().to_str().unwrap()]).await;
        let names = names("orders");
        let streams = Streams::connect(&nats.url()).await;
        let stream = Config { max_message_size: -1, ..stream_config(&names) };
        streams.create(stream).await;
        let configs = ConfigDir::new(&[channel_config(&names)]);
        let plane = DataPlane::start(&nats.url(), &configs).await;
        let mut live = Reader::open(plane.http(), &Request::get(ORDERS)).await;
        assert!(live.read_for(Duration::from_millis(200)).await);
        let large = Bytes::from("x".repeat(LARGE));
        let payloads: Vec<Bytes> =
            ["1".into(), large.clone(), "3".into(), large.clone(), large, "6".into()].into();
        for payload in &payloads {
            streams.publish(&names.prefix, "a", payload.clone()).await;
        }
        let another = DataPlane::start(&nats.url(), &configs).await;
        let request = Request::get(format!("{ORDERS}?from=earliest"));
        let mut replay = Reader::open(another.http(), &request).await;
        for reader in [&mut live, &mut replay] {
            for payload in &payloads {
                let event = reader.event(SOON).await.unwrap();
                assert!(event.data.as_bytes() == payload, "{} bytes came", event.data.len());
            }
        }
        // And it goes on as it should.
        streams.publish(&names.prefix, "a", "7").await;
        assert_eq!(live.event(SOON).await.unwrap().data, "7");
    });
}

#[test]
fn a_client_that_has_ended_is_replaced() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        fixture.publish("a", "1").await;
        let connection = connection(&fixture.nats).await;
        let (stream, prefix) = (fixture.names.stream.clone(), fixture.names.prefix.clone());
        let source = JetStream::new(connection.clone(), stream, &prefix, "replaced");
        let mut tail = source.tail(1).await.unwrap();
        assert_eq!(tail.next().await.unwrap().event.sequence, 1);
        // Ends the client's task, as a panic in it would.
        connection.client().drain().await.unwrap();
        let ended = tokio::time::timeout(SOON, tail.next()).await.expect("the tail ends");
        assert!(ended.is_err());
        let state =
            sluice_tests::eventually("another client", SOON, async || source.state().await.ok());
        assert_eq!(state.await.last, 1);
        assert!(connection.is_up());
        let mut tail = source.tail(1).await.unwrap();
        assert_eq!(tail.next().await.unwrap().event.sequence, 1);
        assert!(source.read_leader(1).await.unwrap().is_some());
    });
}
