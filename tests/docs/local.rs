//! "Try it" of the README and the examples of the wire contract, on this machine.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};
use sluice_tests::{
    docs::{self, block},
    eventually,
    nats::{NatsServer, Streams},
    process::free_port,
    sse::{Event, Item, Parser},
};
use tempfile::TempDir;

use crate::terminal::{Terminal, data, events};

pub(crate) const TEST_LIMIT: Duration = Duration::from_secs(600);
/// The epoch of the pages' examples.
const EPOCH: &str = "5f3c01aa";

/// Where a reader works: ports, a data directory and a copy of `examples/` of its own.
pub(crate) struct Desk {
    http: u16,
    admin: u16,
    pub(crate) nats: u16,
    pub(crate) data: TempDir,
    examples: TempDir,
    /// What stands on the pages, and what it is here.
    here: Vec<(String, String)>,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let (http, admin, nats) = (free_port(), free_port(), free_port());
        let examples = TempDir::with_prefix("sluice-examples-").unwrap();
        for entry in std::fs::read_dir(docs::root().join("examples")).unwrap().flatten() {
            std::fs::copy(entry.path(), examples.path().join(entry.file_name())).unwrap();
        }
        let address = |port: u16| format!("127.0.0.1:{port}");
        let here = vec![(address(8080), address(http)), (address(9090), address(admin))];
        Self {
            http,
            admin,
            nats,
            data: TempDir::with_prefix("sluice-data-").unwrap(),
            examples,
            here,
        }
    }

    pub(crate) fn is_here(&mut self, page: impl Into<String>, here: impl Into<String>) {
        self.here.push((page.into(), here.into()));
    }

    fn here(&self, text: &str) -> String {
        self.here.iter().fold(text.to_owned(), |text, (page, here)| text.replace(page, here))
    }

    /// Types a command. What a reader leaves to `make run`'s defaults (ports, directories) is given
    /// as variables.
    pub(crate) fn types(&self, command: &str) -> Terminal {
        let path = |dir: &TempDir| dir.path().display().to_string();
        let variables = [
            ("LISTEN", format!("127.0.0.1:{}", self.http)),
            ("ADMIN", format!("127.0.0.1:{}", self.admin)),
            ("DATA", path(&self.data)),
            ("EXAMPLES", path(&self.examples)),
            (
                "RUN_ARGS",
                if command.contains("NATS=") {
                    String::new()
                } else {
                    format!("--nats-port {}", self.nats)
                },
            ),
        ];
        Terminal::open(
            &self.here(command),
            &variables.map(|(name, value)| (name.to_owned(), value)),
        )
    }

    /// Programs that work on the data directory.
    fn running(&self) -> Vec<String> {
        let mine = self.data.path().display().to_string();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        lines
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(&mine))
            .collect()
    }

    pub(crate) async fn nats_client(&self) -> Streams {
        Streams::connect(&format!("nats://127.0.0.1:{}", self.nats)).await
    }
}

/// Ids and numbers as placeholders, so that the page's and the server's may differ in these.
fn shape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let word: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
        let after = &rest[word.len()..];
        let number: String = after
            .strip_prefix('-')
            .unwrap_or("")
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        let is_epoch = word.len() == EPOCH.len() && word.chars().all(|c| c.is_ascii_hexdigit());
        if is_epoch && !number.is_empty() {
            out.push_str("ID");
            rest = &after[1 + number.len()..];
        } else if !word.is_empty() {
            out.push_str(if word.chars().all(|c| c.is_ascii_digit()) && word.len() != 3 {
                "N"
            } else {
                &word
            });
            rest = after;
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// Every line of a page's answer is in the real one.
fn assert_answers(real: &str, page: &str) {
    let (real, wanted) = (shape(real), shape(page));
    let lines: Vec<&str> = real.lines().map(str::trim_end).collect();
    for line in wanted.lines() {
        assert!(lines.contains(&line), "{line:?} is not in\n{real}");
    }
}

fn header(answer: &str, name: &str) -> String {
    let value = answer
        .lines()
        .find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)));
    value.unwrap_or_else(|| panic!("no {name} in\n{answer}")).1.trim().to_owned()
}

pub(crate) async fn until_nothing_runs(desk: &Desk) {
    eventually("everything that was started has ended", Duration::from_secs(20), async || {
        desk.running().is_empty().then_some(())
    })
    .await;
}

#[test]
fn what_the_readme_and_the_wire_contract_show() {
    sluice_tests::run(TEST_LIMIT, async {
        let mut desk = Desk::new();
        let mut server = desk.types(&block("local", "make-run").command());
        server.serves().await;
        let console = reqwest::get(format!("http://127.0.0.1:{}/", desk.admin))
            .await
            .unwrap()
            .error_for_status()
            .unwrap();
        assert!(console.headers()["content-type"].to_str().unwrap().starts_with("text/html"));

        let epoch = try_it(&desk).await;
        desk.is_here(EPOCH, epoch);
        resume(&desk).await;
        let names = [("paid.eu", 5), ("other", 6)];
        let nats = desk.nats_client().await;
        for (topic, order) in names {
            nats.publish("sse.default.orders.", topic, format!(r#"{{"order":{order}}}"#)).await;
        }
        starts(&desk, &nats).await;
        unreadable(&desk).await;
        filter(&desk).await;
        answers(&desk).await;
        let live = publish(&desk).await;
        cors(&desk, &mut server).await;
        frames(live).await;

        server.interrupt().await;
        until_nothing_runs(&desk).await;
        // "The events are there again at the next `make run`."
        let mut server = desk.types(&block("local", "make-run").command());
        server.serves().await;
        let mut replay = desk.types(&block("local", "try-it").commands()[2]);
        let seen = replay.events("what was there before", |seen| data(seen).len() == 8).await;
        assert_eq!(data(&seen)[..2], [r#"{"order":1}"#, r#"{"order":2}"#]);
        server.interrupt().await;
        until_nothing_runs(&desk).await;
    });
}

/// Subscribe, publish, replay; returns the epoch of the ids.
async fn try_it(desk: &Desk) -> String {
    let [subscribe, publish, replay] =
        <[String; 3]>::try_from(block("local", "try-it").commands()).expect("three commands");
    let mut subscriber = desk.types(&subscribe);
    subscriber.events("the stream is open", |seen| !seen.is_empty()).await;
    desk.types(&publish).output().await;
    // "Or with any NATS client to the subject sse.default.orders.<topic>."
    desk.nats_client().await.publish("sse.default.orders.", "created", r#"{"order":2}"#).await;
    let seen = subscriber.events("both events", |seen| data(seen).len() == 2).await;
    assert_eq!(data(&seen), [r#"{"order":1}"#, r#"{"order":2}"#]);
    let mut again = desk.types(&replay);
    let replayed = again.events("both events again", |seen| data(seen).len() == 2).await;
    let ids = |events: &[Event]| {
        events
            .iter()
            .filter(|e| e.name == "message")
            .map(|e| e.last_event_id.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&seen), ids(&replayed), "the same events under the same ids");
    let first = &ids(&seen)[0];
    let (epoch, sequence) = first.split_once('-').expect("a cursor");
    assert_eq!((epoch.len(), sequence), (EPOCH.len(), "1"), "an id such as {EPOCH}-1: {first}");
    epoch.to_owned()
}

/// "Publish a few more, and ask for what came after the last id you saw."
async fn resume(desk: &Desk) {
    let nats = desk.nats_client().await;
    for order in 3..=4 {
        nats.publish("sse.default.orders.", "created", format!(r#"{{"order":{order}}}"#)).await;
    }
    let mut resumed = desk.types(&block("local", "resume").command());
    let seen = resumed.events("what was missed", |seen| data(seen).len() >= 3).await;
    assert_eq!(data(&seen), [r#"{"order":2}"#, r#"{"order":3}"#, r#"{"order":4}"#]);
}

/// Every start position. Events 1 to 6 are stored.
async fn starts(desk: &Desk, nats: &Streams) {
    let commands = block("local", "starts").commands();
    let firsts = [3, 3, 3, 1, 1, 1, 5, 7];
    assert_eq!(commands.len(), firsts.len());
    for (command, first) in commands.iter().zip(firsts) {
        let mut terminal = desk.types(command);
        if first == 7 {
            terminal.events("it is open", |seen| !seen.is_empty()).await;
            nats.publish("sse.default.orders.", "other", r#"{"order":7}"#).await;
        }
        let wanted: Vec<String> =
            (first..=first.max(6)).map(|order| format!(r#"{{"order":{order}}}"#)).collect();
        let seen = terminal.events("what is stored", |seen| data(seen).len() >= wanted.len()).await;
        assert_eq!(data(&seen), wanted, "{command}");
    }
}

async fn unreadable(desk: &Desk) {
    let [query, cursor] =
        <[String; 2]>::try_from(block("local", "unreadable").commands()).expect("two commands");
    let said = desk.types(&query).output().await;
    assert!(
        said.starts_with("HTTP/1.1 400 ")
            && said.contains("application/problem+json")
            && said.contains("last"),
        "{said}"
    );
    let mut terminal = desk.types(&cursor);
    let seen = terminal.events("a gap", |seen| !seen.is_empty()).await;
    let gap: Value = serde_json::from_str(&seen[0].data).unwrap();
    assert_eq!(
        (seen[0].name.as_str(), &gap["reason"]),
        ("channel.gap", &json!("unknown")),
        "{seen:?}"
    );
}

async fn filter(desk: &Desk) {
    let commands = block("local", "filter").commands();
    assert_eq!(commands.len(), 2);
    for command in commands {
        let mut terminal = desk.types(&command);
        let seen = terminal.events("what it selects", |seen| data(seen).len() >= 5).await;
        let wanted: Vec<String> = (1..=5).map(|order| format!(r#"{{"order":{order}}}"#)).collect();
        assert_eq!(data(&seen), wanted, "{command}");
    }
}

/// Requests that are answered at once. Events 1 to 7 are stored.
async fn answers(desk: &Desk) {
    let head = desk.types(&block("local", "head").command()).output().await;
    assert_answers(&head, &block("local", "head-answer").text);
    assert_eq!(header(&head, "Event-Cursor"), desk.here(&format!("{EPOCH}-7")));
    assert_eq!(header(&head, "Event-Earliest"), desk.here(&format!("{EPOCH}-1")));

    for (command, first) in block("local", "pages").commands().iter().zip([1, 3]) {
        let page: Value = serde_json::from_str(&desk.types(command).output().await).unwrap();
        let got: Vec<&Value> =
            page["events"].as_array().unwrap().iter().map(|event| &event["data"]).collect();
        let wanted = [first, first + 1].map(|order| json!(format!(r#"{{"order":{order}}}"#)));
        assert_eq!(got, wanted.iter().collect::<Vec<_>>(), "{command}");
        assert_eq!(page["next"], desk.here(&format!("{EPOCH}-{}", first + 1)));
        assert_eq!(page["upToDate"], false);
    }
    let mut terminal = desk.types(&block("local", "envelope").command());
    let seen = terminal.events("the newest event", |seen| data(seen).len() == 1).await;
    let envelope: Value = serde_json::from_str(data(&seen)[0]).unwrap();
    assert_eq!(
        (&envelope["topic"], &envelope["data"]),
        (&json!("other"), &json!(r#"{"order":7}"#)),
        "{envelope}"
    );
    assert_eq!(envelope["id"], desk.here(&format!("{EPOCH}-7")));

    let mut terminal = desk.types(&block("local", "open").command());
    let seen = terminal.events("the first event", |seen| !seen.is_empty()).await;
    assert_eq!(seen[0].name, "channel.open");
}

/// Publishing, while a subscriber is connected; that one is returned.
async fn publish(desk: &Desk) -> Terminal {
    let mut live = desk.types(&block("local", "starts").commands()[7]);
    live.events("it is open", |seen| !seen.is_empty()).await;
    let commands = block("local", "publish").commands();
    let mut said = Vec::new();
    for command in &commands {
        said.push(desk.types(command).output().await);
    }
    let status: Vec<&str> = said.iter().map(|answer| answer.split(' ').nth(1).unwrap()).collect();
    assert_eq!(status, ["201", "200", "412"], "{said:?}");
    assert_eq!(header(&said[0], "Event-Cursor"), desk.here(&format!("{EPOCH}-8")));
    assert_eq!(header(&said[1], "Event-Cursor"), header(&said[0], "Event-Cursor"));
    assert_eq!(header(&said[1], "Event-Duplicate"), "true");
    live
}

/// An edit of a manifest is followed; the preflight is answered as the page says.
async fn cors(desk: &Desk, server: &mut Terminal) {
    let orders: PathBuf = desk.examples.path().join("orders.yaml");
    assert!(orders.exists(), "examples/orders.yaml");
    std::fs::write(orders, block("manifest", "cors").text).unwrap();
    server.shows("generation 2 is served").await;
    let said = desk.types(&block("local", "preflight").command()).output().await;
    assert_answers(&said, &block("local", "preflight-answer").text);
    assert!(
        header(&said, "Access-Control-Allow-Headers").to_lowercase().contains("last-event-id"),
        "{said}"
    );
}

/// A subscriber that came after one event has seen what the page shows, numbers apart.
async fn frames(mut live: Terminal) {
    let page = block("local", "frames").text;
    live.shows("\n: hb\n").await;
    let seen = live.printed();
    // An editor takes blanks at the ends of lines away, so the page cannot have the one behind
    // `data:`.
    let trimmed =
        |text: &str| shape(text).lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    assert!(
        trimmed(&seen).starts_with(&trimmed(&page)),
        "the page shows\n{page}\nand the server sent\n{seen}"
    );
    // What the page shows is what its words say of it.
    let mut parser = Parser::new();
    parser.push(page.as_bytes());
    let items: Vec<Item> = std::iter::from_fn(|| parser.pop()).collect();
    assert!(
        matches!(items.first(), Some(Item::Retry(_)))
            && matches!(items.last(), Some(Item::Comment(_))),
        "{items:?}"
    );
    let names: Vec<String> = events(&page).into_iter().map(|event| event.name).collect();
    assert_eq!(names, ["channel.cursor", "order.created"]);
}

#[test]
fn other_ports_and_a_nats_of_ones_own() {
    sluice_tests::run(TEST_LIMIT, async {
        let mut desk = Desk::new();
        let (http, admin) = (free_port(), free_port());
        desk.is_here("127.0.0.1:9000", format!("127.0.0.1:{http}"));
        desk.is_here("127.0.0.1:9001", format!("127.0.0.1:{admin}"));
        let mut server = desk.types(&block("local", "other-ports").command());
        server.serves().await;
        let answer = reqwest::Client::new()
            .head(format!("http://127.0.0.1:{http}/channels/orders"))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(
            reqwest::get(format!("http://127.0.0.1:{admin}/readyz")).await.unwrap().status(),
            200
        );
        server.interrupt().await;
        until_nothing_runs(&desk).await;

        let nats = NatsServer::start().await;
        desk.is_here("nats://127.0.0.1:4222", nats.url());
        let mut server = desk.types(&block("local", "own-nats").command());
        server.serves().await;
        let started = desk.running();
        assert!(started.iter().any(|line| line.contains("sluice-operator")), "{started:?}");
        assert!(!started.iter().any(|line| line.contains("nats-server")), "{started:?}");
        let streams = Streams::connect(&nats.url()).await;
        let published = streams.publish("sse.default.orders.", "created", "x").await;
        assert_eq!(published.sequence, 1, "the stream is on that server");
        server.interrupt().await;
        until_nothing_runs(&desk).await;
    });
}
