//! Subscribers and a publisher that go on while things go wrong, and the reckoning after each case.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use sluice_tests::{clients::digest, eventually, nats::Streams};
use tokio::{sync::watch, task::JoinHandle, time::MissedTickBehavior};

use crate::{fixture::LIMIT, subscriber::Subscriber};

/// How many subscribers.
const SUBSCRIBERS: usize = 200;
/// Time between two events.
const PACE: Duration = Duration::from_millis(50);
/// Longest that one event may wait for its acknowledgement: longer than any outage of the cases.
const PUBLISH_LIMIT: Duration = Duration::from_secs(240);
/// How long a case goes on at least, so that it is seen to be well afterwards too.
const CASE_TIME: Duration = Duration::from_secs(4);

/// What one case showed.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    case: String,
    took: Duration,
    sent: usize,
    delivered: usize,
    duplicated: u64,
    missing: usize,
    reconnects: u64,
    silence: Duration,
}

impl Row {
    /// This row alone.
    fn line(&self) -> String {
        let Self { case, took, sent, delivered, duplicated, missing, reconnects, silence } = self;
        let (took, silence) = (took.as_secs_f64(), silence.as_secs_f64());
        format!(
            "{case}: {took:.0} s, {sent} sent, {delivered} delivered, {duplicated} duplicated, {missing} missing, {reconnects} reconnects, longest silence {silence:.1} s"
        )
    }

    /// All rows as a table.
    pub(crate) fn table(rows: &[Self]) -> String {
        let head = [
            "case",
            "seconds",
            "sent",
            "delivered",
            "duplicated",
            "missing",
            "reconnects",
            "longest silence, s",
        ]
        .map(str::to_owned)
        .to_vec();
        let cells = |row: &Self| {
            vec![
                row.case.clone(),
                format!("{:.0}", row.took.as_secs_f64()),
                row.sent.to_string(),
                row.delivered.to_string(),
                row.duplicated.to_string(),
                row.missing.to_string(),
                row.reconnects.to_string(),
                format!("{:.1}", row.silence.as_secs_f64()),
            ]
        };
        let lines: Vec<Vec<String>> = std::iter::once(head).chain(rows.iter().map(cells)).collect();
        let widths: Vec<usize> = (0..lines[0].len())
            .map(|i| lines.iter().map(|l| l[i].len()).max().unwrap_or(0))
            .collect();
        let line = |cells: &Vec<String>| -> String {
            let cells = cells.iter().zip(&widths).enumerate();
            cells
                .map(|(i, (cell, width))| {
                    if i == 0 { format!("| {cell:<width$} ") } else { format!("| {cell:>width$} ") }
                })
                .collect()
        };
        let mut text: Vec<String> = lines.iter().map(|cells| line(cells) + "|").collect();
        let rule: String = widths
            .iter()
            .enumerate()
            .map(|(i, w)| format!("|{}{}", "-".repeat(w + 1), if i == 0 { "-" } else { ":" }))
            .collect();
        text.insert(1, rule + "|");
        format!(
            "\n{SUBSCRIBERS} subscribers through the Service, an event every {} ms\n\n{}\n",
            PACE.as_millis(),
            text.join("\n")
        )
    }
}

type Sent = Arc<Mutex<Vec<(u64, u64)>>>;

/// Subscribers and a publisher.
#[derive(Debug)]
pub(crate) struct Fleet {
    subscribers: Vec<Subscriber>,
    /// Sequence and digest of what JetStream has acknowledged.
    sent: Sent,
    publisher: JoinHandle<()>,
    anew: watch::Sender<()>,
    /// Everything up to here has been reckoned.
    reckoned: u64,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.publisher.abort();
    }
}

impl Fleet {
    /// Connects all subscribers, and begins to publish when each knows where it starts.
    pub(crate) async fn start(address: SocketAddr, path: &str, nats: &str, prefix: String) -> Self {
        let anew = watch::Sender::new(());
        let subscribers: Vec<Subscriber> = (0..SUBSCRIBERS)
            .map(|_| Subscriber::start(address, path.to_owned(), anew.subscribe()))
            .collect();
        eventually("all subscribers are connected", LIMIT, async || {
            let placed =
                |s: &Subscriber| s.tally.lock().expect("no panic while held").position.is_some();
            subscribers.iter().all(placed).then_some(())
        })
        .await;
        let sent = Sent::default();
        let publisher =
            tokio::spawn(publish(Streams::connect(nats).await, prefix, Arc::clone(&sent)));
        Self { subscribers, sent, publisher, anew, reckoned: 0 }
    }

    /// Makes every subscriber drop its stream, wherever in it that is, and come back.
    pub(crate) fn reconnect(&self) {
        self.anew.send_replace(());
    }

    /// Runs `body` while events flow, waits until every subscriber has everything, and counts.
    ///
    /// # Panics
    /// When an event is missing, doubled or altered, or something else happened that should not.
    pub(crate) async fn case<T>(&mut self, name: &str, body: impl Future<Output = T>) -> (Row, T) {
        for subscriber in &self.subscribers {
            let mut tally = subscriber.tally.lock().expect("no panic while held");
            tally.connections = 0;
            tally.silence = Duration::ZERO;
        }
        let started = Instant::now();
        let result = body.await;
        tokio::time::sleep(CASE_TIME.saturating_sub(started.elapsed())).await;
        let row = self.reckon(name, started).await;
        (row, result)
    }

    async fn reckon(&mut self, name: &str, started: Instant) -> Row {
        // Something that was published after all of it must arrive: then the publisher is well too.
        let newest = || {
            self.sent
                .lock()
                .expect("no panic while held")
                .last()
                .map_or(0, |(sequence, _)| *sequence)
        };
        let before = newest();
        let goal = eventually("events are published", LIMIT, async || {
            assert!(!self.publisher.is_finished(), "the publisher gave up");
            Some(newest()).filter(|newest| *newest > before)
        });
        let goal = goal.await;
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline
            && self
                .subscribers
                .iter()
                .any(|s| s.tally.lock().expect("no panic while held").last() < goal)
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let sent: Vec<(u64, u64)> = {
            let mut sent = self.sent.lock().expect("no panic while held");
            let rest = sent.partition_point(|(sequence, _)| *sequence <= goal);
            sent.drain(..rest).collect()
        };
        let mut row = Row {
            case: name.to_owned(),
            took: started.elapsed(),
            sent: sent.len(),
            delivered: 0,
            duplicated: 0,
            missing: 0,
            reconnects: 0,
            silence: Duration::ZERO,
        };
        let mut faults = Vec::new();
        for (number, subscriber) in self.subscribers.iter().enumerate() {
            let mut tally = subscriber.tally.lock().expect("no panic while held");
            let rest = tally.entries.partition_point(|(sequence, _)| *sequence <= goal);
            let got: Vec<(u64, u64)> = tally.entries.drain(..rest).collect();
            let matched = sent.iter().filter(|entry| got.binary_search(entry).is_ok()).count();
            row.delivered += matched;
            row.missing += sent.len() - matched;
            row.duplicated += std::mem::take(&mut tally.duplicates);
            row.reconnects += tally.connections;
            row.silence = row.silence.max(tally.silence);
            if got.len() > matched {
                faults.push(format!(
                    "subscriber {number}: {} events that were not published so",
                    got.len() - matched
                ));
            }
            faults.extend(
                tally.faults.drain(..).map(|fault| format!("subscriber {number}: {fault}")),
            );
        }
        self.reckoned = goal;
        println!("{}", row.line());
        faults.truncate(10);
        let is_whole = row.missing == 0 && row.duplicated == 0 && faults.is_empty();
        assert!(
            is_whole,
            "{name}: {} missing, {} duplicated, faults: {faults:#?}",
            row.missing, row.duplicated
        );
        row
    }

    /// Sequence up to which everything has been reckoned.
    pub(crate) fn reckoned(&self) -> u64 {
        self.reckoned
    }
}

async fn publish(streams: Streams, prefix: String, sent: Sent) {
    let mut ticks = tokio::time::interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0_u64.. {
        ticks.tick().await;
        let payload = format!(
            "{{\"number\":{number},\"text\":\"{}\"}}",
            "x".repeat(usize::try_from(number % 200).unwrap_or(0))
        );
        let id = format!("cluster-{number}");
        let topic = format!("t{}", number % 7);
        let event = streams
            .publish_through_outages(
                &prefix,
                &topic,
                &id,
                Bytes::from(payload.clone()),
                PUBLISH_LIMIT,
            )
            .await;
        sent.lock().expect("no panic while held").push((event.sequence, digest(&payload)));
    }
}
