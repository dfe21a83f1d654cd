//! A subscriber that does what `EventSource` does, and counts what it gets instead of failing at
//! once.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use sluice_channel::Cursor;
use sluice_tests::{
    clients::{Connection, Request, digest},
    sse::{Event, Item},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// Longest wait for a response head: a pod's address may lead to a node that is dead.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Silence after which a stream counts as dead: three heartbeats of the channel and a reserve. A
/// browser leaves this to TCP's keep-alive, which takes it minutes; a node that loses power says no
/// goodbye.
const SILENCE_LIMIT: Duration = Duration::from_secs(12);
/// Wait before another attempt until the channel has given one.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// What a subscriber has got since it was last asked.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Sequence and digest of each event, in order of arrival.
    pub(crate) entries: Vec<(u64, u64)>,
    /// Events that came a second time.
    pub(crate) duplicates: u64,
    /// Streams opened.
    pub(crate) connections: u64,
    /// Longest time between two events.
    pub(crate) silence: Duration,
    /// What should never happen: a gap, an answer that is no stream, an event without a cursor.
    pub(crate) faults: Vec<String>,
    /// Where it is; none until the channel has said where the stream starts.
    pub(crate) position: Option<Cursor>,
    last_event: Option<Instant>,
}

impl Tally {
    /// Sequence of the newest event or of the start.
    pub(crate) fn last(&self) -> u64 {
        self.position.map_or(0, |cursor| cursor.sequence)
    }

    fn record(&mut self, event: &Event) {
        let Ok(cursor) = event.last_event_id.parse::<Cursor>() else {
            // Before the data plane has seen the stream at all, it has no cursor to give.
            if self.position.is_some() || !event.name.starts_with("channel.") {
                self.faults.push(format!("no cursor: {event:?}"));
            }
            return;
        };
        if self.position.is_some_and(|position| position.epoch != cursor.epoch) {
            self.faults.push(format!("another epoch: {event:?}"));
        }
        match event.name.as_str() {
            "channel.gap" | "channel.invalid" => {
                self.faults.push(format!("{}: {}", event.name, event.data));
            }
            name if name.starts_with("channel.") => {}
            _ => {
                if self.position.is_some_and(|position| cursor.sequence <= position.sequence) {
                    self.duplicates += 1;
                } else {
                    self.entries.push((cursor.sequence, digest(&event.data)));
                }
                let now = Instant::now();
                if let Some(last) = self.last_event.replace(now) {
                    self.silence = self.silence.max(now - last);
                }
            }
        }
        if self.position.is_none_or(|position| cursor.sequence >= position.sequence) {
            self.position = Some(cursor);
        }
    }
}

/// A subscriber as a task.
#[derive(Debug)]
pub(crate) struct Subscriber {
    /// What it got.
    pub(crate) tally: Arc<Mutex<Tally>>,
    task: JoinHandle<()>,
}

impl Subscriber {
    /// Subscribes to `path` at `address`, and again whenever the stream ends or `anew` changes.
    pub(crate) fn start(address: SocketAddr, path: String, anew: watch::Receiver<()>) -> Self {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let task = tokio::spawn(subscribe(address, path, anew, Arc::clone(&tally)));
        Self { tally, task }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn subscribe(
    address: SocketAddr,
    path: String,
    mut anew: watch::Receiver<()>,
    tally: Arc<Mutex<Tally>>,
) {
    let note = |item: &Item, retry: &mut Duration| match item {
        Item::Event(event) => tally.lock().expect("no panic while held").record(event),
        Item::Retry(millis) => *retry = Duration::from_millis(*millis),
        Item::Comment(_) => {}
    };
    let mut retry = FIRST_RETRY;
    loop {
        let request = Request::get(path.as_str());
        let position = tally.lock().expect("no panic while held").position;
        let request = match position {
            Some(cursor) => request.resume(cursor),
            None => request,
        };
        if let Ok(Ok(mut connection)) =
            timeout(CONNECT_LIMIT, Connection::open(address, &request)).await
        {
            if connection.status() == 200 {
                tally.lock().expect("no panic while held").connections += 1;
                anew.mark_unchanged();
                loop {
                    tokio::select! {
                        item = timeout(SILENCE_LIMIT, connection.item()) => match item {
                            Ok(Some(item)) => note(&item, &mut retry),
                            _ => break,
                        },
                        _ = anew.changed() => break,
                    }
                }
            } else {
                let body = String::from_utf8_lossy(&connection.body().await).into_owned();
                let problem: Value = serde_json::from_str(&body).unwrap_or_default();
                let fault = format!(
                    "answered {}: {}",
                    connection.status(),
                    problem["detail"].as_str().unwrap_or(&body)
                );
                tally.lock().expect("no panic while held").faults.push(fault);
            }
        }
        sleep(retry).await;
    }
}
