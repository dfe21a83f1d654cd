mod absence;

use std::sync::Arc;

use sluice_channel::{ChannelConfig, config};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::{
    channel::Channel, metrics::Metrics, peer::Peer, registry::Registry,
    source::memory::MemorySource,
};

struct Fixture {
    memory: MemorySource,
    channel: Arc<Channel>,
    registry: Arc<Registry>,
    _stop: DropGuard,
}

const CONFIG: &str = r#"{
    "version": 1, "name": "c", "namespace": "d", "generation": 1,
    "stream": {"name": "s", "subjects": [">"], "topicPrefix": ""},
    "delivery": {"heartbeatMillis": 15000, "maxConnectionAgeMillis": 3600000, "onGap": "Earliest"}
}"#;

impl Fixture {
    async fn new(events: u64, change: impl FnOnce(&mut ChannelConfig)) -> Self {
        let memory = MemorySource::default();
        for i in 1..=events {
            memory.put(if i % 2 == 0 { "even" } else { "odd" }, format!("p{i}"));
        }
        let mut config = ChannelConfig::from_json(CONFIG.as_bytes()).unwrap();
        change(&mut config);
        let channel = Arc::new(Channel::new(
            config,
            Arc::new(memory.clone()),
            Metrics::default().channel("c"),
        ));
        let cancel = CancellationToken::new();
        #[allow(clippy::disallowed_methods)]
        tokio::spawn(Arc::clone(channel.log()).run(cancel.clone()));
        let fixture =
            Self { memory, channel, registry: Arc::default(), _stop: cancel.drop_guard() };
        if events > 0 {
            let mut head = fixture.channel.log().head();
            head.wait_for(|h| h.next > events).await.unwrap();
        }
        fixture
    }

    fn subscribe(&self, start: Start, topics: &[&str]) -> Frames {
        let peer = Arc::new(Peer::new("127.0.0.1:1".parse().unwrap()));
        let entry = self.registry.register(&self.channel, &peer, String::new()).unwrap();
        let filter = Filter::new(topics.iter().copied()).unwrap();
        Frames::new(Subscriber::new(
            entry,
            Request { start, filter, dialect: Dialect::Plain, open: false },
        ))
    }

    fn after(&self, sequence: u64) -> Start {
        Start::After(Cursor::new(self.memory.epoch(), sequence))
    }
}

async fn next(subscriber: &mut Frames) -> String {
    let bytes = tokio::time::timeout(Duration::from_secs(7_200), subscriber.next())
        .await
        .expect("a bounded wait");
    String::from_utf8(bytes.expect("the stream goes on").to_vec()).unwrap()
}

/// Frames until all of `count` events have come; the opening `retry:` and cursor are checked and
/// left out.
async fn opened(subscriber: &mut Frames) -> String {
    let retry = next(subscriber).await;
    assert!(retry.starts_with("retry: ") && retry.find('\n') == Some(retry.len() - 1), "{retry:?}");
    next(subscriber).await
}

#[tokio::test(start_paused = true)]
async fn replay_then_live_in_one_order() {
    let fixture = Fixture::new(3, |_| {}).await;
    let mut subscriber = fixture.subscribe(fixture.after(1), &[]);
    assert_eq!(opened(&mut subscriber).await, "id: 00000001-1\nevent: channel.cursor\ndata: \n\n");
    assert_eq!(
        next(&mut subscriber).await,
        "id: 00000001-2\ndata: p2\n\nid: 00000001-3\ndata: p3\n\n"
    );
    fixture.memory.put("odd", "live");
    assert_eq!(next(&mut subscriber).await, "id: 00000001-4\ndata: live\n\n");
}

#[tokio::test(start_paused = true)]
async fn an_idle_stream_beats_and_a_filtered_one_moves_its_cursor() {
    let fixture = Fixture::new(2, |_| {}).await;
    let mut subscriber = fixture.subscribe(Start::Latest, &["odd"]);
    assert_eq!(opened(&mut subscriber).await, "id: 00000001-2\nevent: channel.cursor\ndata: \n\n");
    let before = Instant::now();
    assert_eq!(next(&mut subscriber).await, ": hb\n");
    assert_eq!(before.elapsed().as_secs(), 15);
    fixture.memory.put("even", "not for this one");
    assert_eq!(next(&mut subscriber).await, "id: 00000001-3\nevent: channel.cursor\ndata: \n\n");
    assert_eq!(before.elapsed().as_secs(), 30);
    assert_eq!(next(&mut subscriber).await, ": hb\n", "announced once");
}

#[tokio::test(start_paused = true)]
async fn what_lay_behind_the_last_match_is_known_by_the_next_heartbeat() {
    let fixture = Fixture::new(4, |_| {}).await;
    let mut subscriber = fixture.subscribe(fixture.after(0), &["odd"]);
    opened(&mut subscriber).await;
    let events = next(&mut subscriber).await;
    assert!(events.ends_with("id: 00000001-3\ndata: p3\n\n"), "{events}");
    // Event 4 is behind it, too, and no frame has said so.
    assert_eq!(next(&mut subscriber).await, "id: 00000001-4\nevent: channel.cursor\ndata: \n\n");
    assert_eq!(next(&mut subscriber).await, ": hb\n", "announced once");
}

/// The oldest event moves on between two looks of the pod at the store; here, after the last one.
#[tokio::test(start_paused = true)]
async fn a_hole_right_behind_the_start_is_named_once_the_start_was() {
    let fixture = Fixture::new(3, |_| {}).await;
    let step = |subscriber: &mut Subscriber| {
        subscriber.step(fixture.channel.log().head_now(), Instant::now())
    };
    let open = |start| {
        let peer = Arc::new(Peer::new("127.0.0.1:1".parse().unwrap()));
        let entry = fixture.registry.register(&fixture.channel, &peer, String::new()).unwrap();
        let (filter, dialect) = (Filter::default(), Dialect::Plain);
        Subscriber::new(entry, Request { start, filter, dialect, open: false })
    };
    let text = |step: Step| match step {
        Step::Write(parts) | Step::Events { parts, .. } => {
            String::from_utf8(parts.concat()).unwrap()
        }
        step => panic!("{step:?}"),
    };
    let (mut told, mut newcomer) = (open(Start::Latest), open(Start::Earliest));
    for subscriber in [&mut told, &mut newcomer] {
        assert!(text(step(subscriber)).starts_with("retry: "));
    }
    assert_eq!(text(step(&mut told)), "id: 00000001-3\nevent: channel.cursor\ndata: \n\n");
    // Seven more, of which a limit leaves the last two: no tail was fast enough to see the others.
    (4..=10).for_each(|i| {
        fixture.memory.put("odd", format!("p{i}"));
    });
    fixture.memory.purge_before(9);
    fixture.channel.log().head().wait_for(|head| head.next == 11).await.unwrap();
    let gap = "id: 00000001-8\nevent: channel.gap\n\
               data: {\"from\":4,\"to\":8,\"missed\":5,\"reason\":\"expired\"}\n\n";
    assert_eq!(text(step(&mut told)), gap);
    let rest = "id: 00000001-9\ndata: p9\n\nid: 00000001-10\ndata: p10\n\n";
    assert_eq!(text(step(&mut told)), rest);
    // What was told nothing yet starts at the oldest event that is there.
    let found =
        (0..10).map(|_| step(&mut newcomer)).find(|step| !matches!(step, Step::Yield { .. }));
    assert_eq!(text(found.unwrap()), "id: 00000001-8\nevent: channel.cursor\ndata: \n\n");
    assert_eq!(text(step(&mut newcomer)), rest);
}

#[tokio::test(start_paused = true)]
async fn a_busy_channel_does_not_keep_a_filtered_stream_silent() {
    let fixture = Fixture::new(1, |_| {}).await;
    let mut subscriber = fixture.subscribe(Start::Latest, &["none"]);
    opened(&mut subscriber).await;
    let memory = fixture.memory.clone();
    #[allow(clippy::disallowed_methods)]
    let publisher = tokio::spawn(async move {
        loop {
            memory.put("odd", "x");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let before = Instant::now();
    assert!(next(&mut subscriber).await.contains("event: channel.cursor\n"));
    assert_eq!(before.elapsed().as_secs(), 15);
    publisher.abort();
}

#[tokio::test(start_paused = true)]
async fn cursors_that_are_of_no_use_are_answered_with_a_gap_and_the_policy() {
    let other = Start::After(Cursor::new(Epoch::from_bits(0xffff), 2));
    let future = |f: &Fixture| f.after(99);
    for latest in [false, true] {
        let fixture = Fixture::new(3, |c| {
            c.delivery.on_gap = if latest { config::Start::Latest } else { config::Start::Earliest }
        })
        .await;
        for (start, reason) in [
            (other.clone(), "epoch"),
            (Start::Unreadable, "unknown"),
            (future(&fixture), "unknown"),
        ] {
            let mut subscriber = fixture.subscribe(start, &[]);
            let (id, to) = if latest { (3, "3") } else { (0, "null") };
            let expected = format!(
                "id: 00000001-{id}\nevent: channel.gap\ndata: {{\"from\":null,\"to\":{to},\"missed\":null,\"reason\":\"{reason}\"}}\n\n"
            );
            assert_eq!(opened(&mut subscriber).await, expected);
            let after = next(&mut subscriber).await;
            assert_eq!(after.contains("data: p1\n"), !latest, "{after}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_cursor_names_what_is_gone() {
    for latest in [false, true] {
        let fixture = Fixture::new(5, |c| {
            c.delivery.on_gap = if latest { config::Start::Latest } else { config::Start::Earliest }
        })
        .await;
        let source = fixture.memory.clone();
        source.purge_before(4);
        // A pod that starts now: nothing of what is gone is in its memory.
        let fixture = {
            let config = (**fixture.channel.config()).clone();
            let channel = Arc::new(Channel::new(
                config,
                Arc::new(source.clone()),
                Metrics::default().channel("c"),
            ));
            let cancel = CancellationToken::new();
            #[allow(clippy::disallowed_methods)]
            tokio::spawn(Arc::clone(channel.log()).run(cancel.clone()));
            channel.log().head().wait_for(|h| h.next == 6).await.unwrap();
            Fixture {
                memory: source,
                channel,
                registry: Arc::default(),
                _stop: cancel.drop_guard(),
            }
        };
        let mut subscriber = fixture.subscribe(fixture.after(1), &[]);
        assert!(
            opened(&mut subscriber).await.starts_with("id: 00000001-1\nevent: channel.cursor\n")
        );
        let (to, missed) = if latest { (5, 4) } else { (3, 2) };
        let gap = format!(
            "id: 00000001-{to}\nevent: channel.gap\ndata: {{\"from\":2,\"to\":{to},\"missed\":{missed},\"reason\":\"expired\"}}\n\n"
        );
        assert_eq!(next(&mut subscriber).await, gap);
        let after = next(&mut subscriber).await;
        assert_eq!(
            after,
            if latest {
                ": hb\n"
            } else {
                "id: 00000001-4\ndata: p4\n\nid: 00000001-5\ndata: p5\n\n"
            }
        );
        // Without a cursor nothing is lost.
        let mut newcomer = fixture.subscribe(Start::Earliest, &[]);
        assert_eq!(
            opened(&mut newcomer).await,
            "id: 00000001-3\nevent: channel.cursor\ndata: \n\n"
        );
        assert!(next(&mut newcomer).await.starts_with("id: 00000001-4\ndata: p4\n"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_said_in_band_and_a_connect_during_it_waits() {
    let fixture = Fixture::new(1, |_| {}).await;
    let mut subscriber = fixture.subscribe(Start::Latest, &[]);
    opened(&mut subscriber).await;
    fixture.memory.set_reachable(false);
    assert!(
        next(&mut subscriber)
            .await
            .starts_with("id: 00000001-1\nevent: channel.degraded\ndata: {\"since\":\"2")
    );
    let mut late = fixture.subscribe(fixture.after(5), &[]);
    assert!(next(&mut late).await.starts_with("retry: "));
    assert!(
        next(&mut late).await.starts_with("id: 00000001-5\nevent: channel.degraded\n"),
        "the place it named itself"
    );
    fixture.memory.put("odd", "p2");
    (3..=6).for_each(|i| {
        fixture.memory.put("odd", format!("p{i}"));
    });
    fixture.memory.set_reachable(true);
    assert!(next(&mut subscriber).await.starts_with("id: 00000001-1\nevent: channel.recovered\n"));
    assert!(next(&mut subscriber).await.starts_with("id: 00000001-2\ndata: p2\n"));
    let mut frames = String::new();
    while !frames.contains("data: p6") {
        frames += &next(&mut late).await;
    }
    assert!(!frames.contains("data: p5") && !frames.contains("channel.gap"), "{frames}");
}

#[tokio::test(start_paused = true)]
async fn a_recreated_stream_is_a_gap_then_its_events() {
    let fixture = Fixture::new(3, |_| {}).await;
    let mut subscriber = fixture.subscribe(Start::Latest, &[]);
    opened(&mut subscriber).await;
    fixture.memory.recreate();
    fixture.memory.put("odd", "first of the new life");
    let mut frames = String::new();
    while !frames.contains("data: first of the new life") {
        frames += &next(&mut subscriber).await;
    }
    let gap = "id: 00000002-0\nevent: channel.gap\ndata: {\"from\":null,\"to\":null,\"missed\":null,\"reason\":\"epoch\"}\n\n";
    assert!(frames.contains(gap), "{frames}");
    assert!(frames.ends_with("id: 00000002-1\ndata: first of the new life\n\n"), "{frames}");
}

#[tokio::test(start_paused = true)]
async fn streams_end_with_a_reason_and_a_time_to_return() {
    let fixture = Fixture::new(1, |_| {}).await;
    let mut subscriber = fixture.subscribe(Start::Latest, &[]);
    opened(&mut subscriber).await;
    let before = Instant::now();
    let mut last = String::new();
    while let Some(bytes) = subscriber.next().await {
        last = String::from_utf8(bytes.to_vec()).unwrap();
    }
    assert!((48 * 60..=60 * 60).contains(&before.elapsed().as_secs()), "{:?}", before.elapsed());
    assert!(last.starts_with("id: 00000001-1\nretry: "), "{last}");
    assert!(last.contains("event: channel.close\ndata: {\"reason\":\"age\",\"retry\":"), "{last}");

    let mut subscriber = fixture.subscribe(Start::Latest, &[]);
    opened(&mut subscriber).await;
    fixture
        .registry
        .entries()
        .iter()
        .for_each(|e| e.close(CloseReason::Drain, Duration::from_millis(1234)));
    let close = "id: 00000001-1\nretry: 1234\nevent: channel.close\ndata: {\"reason\":\"drain\",\"retry\":1234}\n\n";
    assert_eq!(next(&mut subscriber).await, close);
    assert_eq!(subscriber.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn slots_are_bounded_and_given_back() {
    let fixture = Fixture::new(1, |c| c.delivery.max_connections = 2).await;
    let one = fixture.subscribe(Start::Latest, &[]);
    let _two = fixture.subscribe(Start::Latest, &[]);
    let peer = Arc::new(Peer::new("127.0.0.1:1".parse().unwrap()));
    assert!(fixture.registry.register(&fixture.channel, &peer, String::new()).is_none());
    drop(one);
    assert!(fixture.registry.register(&fixture.channel, &peer, String::new()).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_after_the_end_adds_nothing() {
    let fixture = Fixture::new(3, |_| {}).await;
    let peer = Arc::new(Peer::new("127.0.0.1:1".parse().unwrap()));
    let entry = fixture.registry.register(&fixture.channel, &peer, String::new()).unwrap();
    let request = Request {
        start: Start::Last(1),
        filter: Filter::default(),
        dialect: Dialect::Plain,
        open: false,
    };
    let mut subscriber = Subscriber::new(entry, request);
    let mut step = || subscriber.step(fixture.channel.log().head_now(), Instant::now());
    assert!(matches!(step(), Step::Write(_)), "retry");
    let Step::Ask(question) = step() else { panic!("only the log can count events back") };
    fixture
        .registry
        .entries()
        .iter()
        .for_each(|e| e.close(CloseReason::Drain, Duration::from_millis(1)));
    assert!(matches!(step(), Step::Write(_)), "close");
    assert!(matches!(step(), Step::End));
    let after = subscriber.answer(question.ask().await, Instant::now());
    assert!(!matches!(after, Step::Write(_)), "{after:?}");
    let view = serde_json::to_value(fixture.registry.view(None)).unwrap();
    assert_ne!(view[0]["state"], "Replaying", "{view}");
}

#[test]
fn a_subscriber_stays_small() {
    // There is one for each connection: what it grows by, the memory of a connection grows by.
    assert!(size_of::<Subscriber>() <= 200, "{} bytes", size_of::<Subscriber>());
}
