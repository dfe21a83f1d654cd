//! The configuration file: what is taken keeps every rule and is written back as it was; what is
//! not is refused with a sentence.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Map, Value, json};
use sluice_channel::{ChannelConfig, ChannelName, StreamName, config, limits};

use crate::engine::Target;

pub(crate) const TARGET: Target = Target {
    name: "config",
    check,
    valid,
    words: &[
        "\"",
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "null",
        "true",
        "false",
        "\\u0000",
        "\\ud800",
        "\u{feff}",
        "-",
        "e9",
        "\"version\"",
        "\"name\"",
        "\"stream\"",
        "\"subjects\"",
        "\"delivery\"",
        "\"Earliest\"",
        "\"Base64\"",
        "\"cors\":{\"allowCredentials\":true,\"allowedOrigins\":[\"*\"]}",
        "\"heartbeatMillis\":99",
        "\"cacheBytes\":0",
        "\"publish\":{\"http\":true}",
        "\"unknown\":1",
    ],
};

fn valid(rng: &mut StdRng) -> Vec<u8> {
    let subjects: Vec<_> = (0..rng.random_range(1..4)).map(|i| format!("sse.shop.{i}.>")).collect();
    let mut delivery = Map::new();
    let mut set = |name: &str, value: Value| delivery.insert(name.to_owned(), value);
    for _ in 0..rng.random_range(0..6) {
        let bits = rng.random_range(8..40);
        let millis = rng.random_range(100..1u64 << bits);
        let short = millis.min(300_000);
        match rng.random_range(0..9) {
            0 => set("heartbeatMillis", short.into()),
            1 => set("retryMinMillis", rng.random_range(0..=1_000).into()),
            2 => set("retryMaxMillis", short.max(1_000).into()),
            3 => set("maxConnectionAgeMillis", millis.min(86_400_000).into()),
            4 => set("writeTimeoutMillis", short.into()),
            5 => set("startAt", json!(["Latest", "Earliest"].choose(rng).unwrap())),
            6 => set("encoding", json!(["Text", "Base64"].choose(rng).unwrap())),
            7 => set(
                "cors",
                json!({"allowedOrigins": ["https://a.example"], "allowCredentials": true}),
            ),
            _ => set("cacheBytes", rng.random_range(1u64 << 20..=1 << 36).into()),
        };
    }
    let config = json!({
        "version": 1, "name": "orders", "namespace": "shop", "generation": rng.random::<i64>(),
        "stream": {
            "name": "sse_shop_orders_00000000", "subjects": subjects, "topicPrefix": "sse.shop.",
            "compacted": rng.random::<bool>(),
        },
        "delivery": delivery, "publish": {"http": rng.random::<bool>()},
    });
    let text = if rng.random() {
        serde_json::to_string_pretty(&config)
    } else {
        serde_json::to_string(&config)
    };
    text.unwrap().into_bytes()
}

/// The rules, as the documentation of each value states them.
fn keeps_the_rules(config: &ChannelConfig) -> bool {
    let delivery = &config.delivery;
    let credentials_for_all =
        delivery.cors.allow_credentials && delivery.cors.allowed_origins.contains(&"*".to_owned());
    config.version == config::VERSION
        && ChannelName::new(config.name.as_str()).is_ok()
        && StreamName::new(config.stream.name.as_str()).is_ok()
        && (1..=limits::SUBJECTS_PER_CHANNEL).contains(&config.stream.subjects.len())
        && (1..=limits::MESSAGE_BYTES).contains(&config.stream.max_message_size)
        && delivery.heartbeat.max(delivery.write_timeout) <= limits::LONGEST
        && delivery.retry_max <= limits::LONGEST
        && delivery.max_connection_age.max(delivery.cors.max_age) <= limits::DAY
        && (1..=limits::MOST_CONNECTIONS).contains(&delivery.max_connections)
        && (limits::LEAST_CACHE_BYTES..=limits::MOST_CACHE_BYTES).contains(&delivery.cache_bytes)
        && delivery.cors.allowed_origins.len() <= limits::ORIGINS
        && delivery.heartbeat.as_millis() >= 100
        && delivery.write_timeout.as_millis() >= 100
        && delivery.retry_min <= delivery.retry_max
        && !credentials_for_all
}

fn check(input: &[u8]) -> bool {
    match ChannelConfig::from_json(input) {
        Ok(config) => {
            assert!(keeps_the_rules(&config), "{config:?}");
            let text = config.to_json().unwrap();
            assert_eq!(ChannelConfig::from_json(text.as_bytes()).unwrap(), config);
            assert!(text.ends_with("}\n"));
            true
        }
        Err(error) => {
            let sentence = error.to_string();
            assert!(sentence.len() > 10, "{sentence:?}");
            // A name that is refused is quoted, and its escapes are longer than itself.
            assert!(sentence.len() < 500 + 10 * input.len(), "{} bytes", sentence.len());
            // What is refused is no configuration: nothing that keeps the rules is.
            let as_value = serde_json::from_slice::<Value>(input);
            let cleared =
                as_value.ok().and_then(|value| serde_json::from_value::<ChannelConfig>(value).ok());
            assert!(
                !cleared.is_some_and(|config| keeps_the_rules(&config) && !has_twice(input)),
                "{sentence}"
            );
            false
        }
    }
}

/// Whether a key stands twice in one object, which a JSON value forgets and the file's reader
/// refuses: then the two cannot be compared. Told by a value that is written shorter than it was
/// read.
fn has_twice(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let keys = |text: &str| {
        text.matches("\":").count() + text.matches("\" :").count() + text.matches("\"\n").count()
    };
    let value = serde_json::from_slice::<Value>(input).unwrap_or_default();
    keys(&text) != keys(&value.to_string())
}
