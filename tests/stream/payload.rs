//! Payloads arrive as the value that the standard's parser must see.

use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use proptest::{
    prelude::*,
    test_runner::{Config as ProptestConfig, TestCaseError, TestRunner},
};
use serde_json::Value;
use sluice_channel::config::Encoding;
use sluice_tests::{run, sse::normalise};

use crate::fixture::{Fixture, ORDERS, SOON};

const LIMIT: Duration = Duration::from_secs(120);

/// Payloads that encoders of event streams get wrong.
fn corpus() -> Vec<String> {
    let small = [
        "",
        " ",
        "  two leading spaces",
        "\ttab",
        ":leading colon",
        ": comment look-alike",
        "\r",
        "\n",
        "\r\n",
        "\n\n",
        "\r\r",
        "\n\r",
        "\r\n\r\n",
        "a\rb",
        "a\r\nb",
        "a\n\nb",
        "a\n\n",
        "\n\na",
        "ends with cr\r",
        "ends with lf\n",
        "\u{FEFF}",
        "\u{FEFF}after a byte order mark",
        "data: x",
        "data: x\n\ndata: y",
        "id: 5\n\nevent: channel.close\ndata: x\n\n",
        "\nid: 00000000-0\n",
        "\n\nretry: 1\n\n",
        "event: x\rid: y\r\rdata: z",
        ":\n:\n",
        "nul \0 inside",
        "control \u{1}\u{b}\u{c}\u{1b}\u{7f}\u{85}",
        "line and paragraph separators \u{2028}\u{2029}",
        "emoji 🙂👩‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿",
        "{\"json\": \"with \\n escape\"}",
        "U+FFFD itself \u{FFFD}",
        "\u{10FFFF}",
    ];
    let mut corpus: Vec<String> = small.map(str::to_owned).to_vec();
    corpus.push("🙂".repeat(50_000));
    corpus.push("line\n".repeat(20_000));
    corpus.push("\r".repeat(5_000));
    corpus
}

#[test]
fn line_ends_spaces_colons_marks_and_look_alikes_arrive() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let corpus = corpus();
        // Live first, then the same from memory, by another subscriber.
        let mut live = fixture.open(ORDERS).await;
        assert!(live.read_for(Duration::from_millis(200)).await);
        for payload in &corpus {
            fixture.publish("a", payload.clone()).await;
        }
        let mut replay = fixture.open("/channels/orders?from=earliest").await;
        for reader in [&mut live, &mut replay] {
            for (i, payload) in corpus.iter().enumerate() {
                let event = reader.event(SOON).await.unwrap();
                let head: String = payload.chars().take(40).collect();
                assert!(
                    event.data == normalise(payload),
                    "payload {i} {head:?} arrived as {:?}",
                    event.data.chars().take(80).collect::<String>()
                );
                assert_eq!(
                    (event.name.as_str(), event.last_event_id),
                    ("message", fixture.cursor(i as u64 + 1).to_string())
                );
            }
        }
    });
}

#[test]
fn one_mebibyte_arrives_live_and_from_the_store() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let payload: String =
            (0..1024 * 1024).map(|i| char::from(b'a' + u8::try_from(i % 23).unwrap())).collect();
        let mut live = fixture.open(ORDERS).await;
        assert!(live.read_for(Duration::from_millis(200)).await);
        for _ in 0..8 {
            fixture.publish("a", payload.clone()).await;
        }
        let plane = fixture.another().await;
        let request = sluice_tests::clients::Request::get("/channels/orders?from=earliest");
        let mut replay = sluice_tests::clients::Reader::open(plane.http(), &request).await;
        for reader in [&mut live, &mut replay] {
            for _ in 0..8 {
                assert!(reader.event(SOON).await.unwrap().data == payload);
            }
            assert_eq!(reader.ledger.sequences(), (1..=8).collect::<Vec<_>>());
        }
    });
}

#[test]
fn what_is_not_utf8_is_named_by_its_sequence() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        fixture.publish("a", "before").await;
        let bad = fixture.publish("a", Bytes::from_static(b"\xFF\xFE\x00binary\xC3")).await;
        fixture.publish("a", "after").await;
        let mut reader = fixture.open("/channels/orders?from=earliest").await;
        assert_eq!(reader.event(SOON).await.unwrap().data, "before");
        let invalid = reader.event(SOON).await.unwrap();
        assert_eq!(invalid.name, "channel.invalid");
        assert_eq!(invalid.last_event_id, fixture.cursor(bad.sequence).to_string());
        let data: Value = serde_json::from_str(&invalid.data).unwrap();
        assert_eq!(data["sequence"], bad.sequence);
        assert_eq!(reader.event(SOON).await.unwrap().data, "after");
        // It counts as seen: a resume from it does not repeat it.
        let mut reader = fixture.resume(ORDERS, &invalid.last_event_id).await;
        assert_eq!(reader.event(SOON).await.unwrap().data, "after");
    });
}

#[test]
fn a_base64_channel_delivers_any_bytes() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.delivery.encoding = Encoding::Base64).await;
        let payloads: Vec<Vec<u8>> = vec![
            b"\xFF\xFE\x00binary\xC3".to_vec(),
            Vec::new(),
            b"\r\n".to_vec(),
            (0..=255).collect(),
            b"text".to_vec(),
        ];
        for payload in &payloads {
            fixture.publish("a", payload.clone()).await;
        }
        let mut reader = fixture.open("/channels/orders?from=earliest").await;
        for payload in &payloads {
            let event = reader.event(SOON).await.unwrap();
            assert_eq!(
                &base64::engine::general_purpose::STANDARD.decode(&event.data).unwrap(),
                payload
            );
        }
    });
}

#[test]
fn names_of_nats_publishers_are_kept_and_bad_ones_dropped() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let long = "x".repeat(129);
        for (name, expected) in [
            ("order.created", "order.created"),
            ("größe 🙂", "größe 🙂"),
            ("channel.gap", "message"),
            ("channel.close", "message"),
            (&long, "message"),
            ("message", "message"),
        ] {
            let published =
                fixture.streams.publish_named(&fixture.names.prefix, "a", name, "x").await;
            let mut reader = fixture.resume(ORDERS, fixture.cursor(published.sequence - 1)).await;
            let event = reader.event(SOON).await.unwrap();
            assert_eq!((event.name.as_str(), event.data.as_str()), (expected, "x"), "{name}");
        }
    });
}

/// Text in which everything that matters to the format is frequent.
fn payload() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[ -~]{0,12}",
        3 => prop_oneof![Just("\r".to_owned()), Just("\n".to_owned()), Just("\r\n".to_owned())],
        2 => prop_oneof![Just(":"), Just(" "), Just("data"), Just("id:"), Just("event: x"), Just("retry: 1"), Just("\u{FEFF}"), Just("\0")].prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    proptest::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
}

#[test]
fn any_text_arrives() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let fixture = runtime.block_on(Fixture::new());
    let batches = proptest::collection::vec(payload(), 1..60);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 40,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    });
    let result = runner.run(&batches, |batch| {
        runtime.block_on(async {
            let events = batch.iter().map(|payload| ("a".to_owned(), Bytes::from(payload.clone())));
            let published = fixture.streams.publish_all(&fixture.names.prefix, events).await;
            let mut reader =
                fixture.resume(ORDERS, fixture.cursor(published[0].sequence - 1)).await;
            for sent in &published {
                let event = reader
                    .event(SOON)
                    .await
                    .ok_or_else(|| TestCaseError::fail("the stream ended"))?;
                let expected = normalise(std::str::from_utf8(&sent.payload).unwrap());
                prop_assert_eq!(event.data, expected);
                prop_assert_eq!(event.last_event_id, fixture.cursor(sent.sequence).to_string());
                prop_assert_eq!(event.name, "message");
            }
            Ok(())
        })
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    drop(fixture);
}
