//! A NATS server that is cut off from its cluster goes on answering. No data plane believes what it
//! says is not there.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Config;
use bytes::Bytes;
use serde_json::Value;
use sluice_channel::{ChannelConfig, Cursor, Epoch};
use sluice_tests::{
    clients::{Reader, Request, expected},
    dataplane::{ConfigDir, DataPlane, channel_config},
    nats::{Log, Names, Streams, cut::CutCluster, log, names, stream_config},
    proxy::Proxy,
    run,
};

use crate::fixture::{ORDERS, SOON};

const LIMIT: Duration = Duration::from_secs(240);
/// How long the data plane is held at the server that is cut off: longer than any patience of it.
const HELD: Duration = Duration::from_secs(14);

struct Bed {
    cut: CutCluster,
    names: Names,
    epoch: Epoch,
    configs: ConfigDir,
    /// The server to be cut off: it leads the stream and JetStream.
    alone: usize,
    /// Publishes over one of the others.
    streams: Streams,
    other: String,
    log: Log,
}

impl Bed {
    /// Three replicas, 100 events, and the leader known.
    async fn new() -> Self {
        let cut = CutCluster::start().await;
        let names = names("orders");
        let alone = cut.meta_leader().await;
        let other = cut.cluster.servers[(alone + 1) % 3].url();
        let streams = Streams::connect(&other).await;
        let epoch = streams.create(Config { num_replicas: 3, ..stream_config(&names) }).await;
        cut.lead(&streams, names.stream.as_str(), alone).await;
        let config = channel_config(&names);
        // So little memory that what is asked for has to come from the store.
        let config = ChannelConfig {
            delivery: sluice_channel::config::Delivery {
                cache_bytes: 1024 * 1024,
                ..config.delivery
            },
            ..config
        };
        let configs = ConfigDir::new(&[config]);
        let mut bed = Self { cut, names, epoch, configs, alone, streams, other, log: Log::new() };
        bed.publish(100, 10).await;
        bed.cut.cluster.in_sync(&bed.streams, bed.names.stream.as_str()).await;
        bed
    }

    fn alone_url(&self) -> String {
        self.cut.cluster.servers[self.alone].url()
    }

    /// Publishes events of this size, through the election of another leader.
    async fn publish(&mut self, count: usize, bytes: usize) {
        let first = self.log.len();
        for i in first..first + count {
            let payload = Bytes::from(format!("{i:0bytes$}"));
            let limit = Duration::from_secs(60);
            let (streams, prefix) = (&self.streams, &self.names.prefix);
            let published =
                streams.publish_through_outages(prefix, "a", &i.to_string(), payload, limit).await;
            self.log.extend(log([published]));
        }
    }

    fn cursor(&self, sequence: u64) -> Cursor {
        Cursor::new(self.epoch, sequence)
    }

    fn expected(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        expected(&self.log, from, to, &[])
    }
}

async fn page(plane: &DataPlane, from: Cursor) -> (u16, Option<String>, Value) {
    let url = plane.url(&format!("{ORDERS}?from={from}"));
    let request = reqwest::Client::new().get(url).header("accept", "application/json");
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let retry_after = response.headers().get("retry-after");
    let retry_after = retry_after.map(|value| value.to_str().unwrap().to_owned());
    (status, retry_after, response.json().await.unwrap())
}

#[test]
fn a_cursor_of_an_event_that_the_others_stored_is_held_not_answered_unknown() {
    run(LIMIT, async {
        let mut bed = Bed::new().await;
        let plane = DataPlane::start(&bed.alone_url(), &bed.configs).await;
        let mut live =
            Reader::open(plane.http(), &Request::get(ORDERS).resume(bed.cursor(0))).await;
        live.until_sequence(100, SOON).await;
        bed.cut.cut(bed.alone);
        bed.publish(20, 10).await;
        // A client that had these from another pod comes to the one that cannot know of them.
        let began = Instant::now();
        let request = Request::get(ORDERS).resume(bed.cursor(120));
        let mut readers = Vec::new();
        while began.elapsed() < HELD {
            let mut reader = Reader::open(plane.http(), &request).await;
            assert!(reader.read_for(Duration::from_secs(1)).await, "the stream stays open");
            assert_eq!(reader.ledger.gaps, [], "{:?} after the cut", began.elapsed());
            readers.push(reader);
            let (status, retry_after, page) = page(&plane, bed.cursor(120)).await;
            assert_eq!((status, retry_after.is_some()), (503, true), "{page}");
        }
        bed.cut.heal(bed.alone);
        bed.publish(1, 10).await;
        for reader in &mut readers {
            reader.until_sequence(121, SOON * 2).await;
            assert_eq!(reader.ledger.gaps, []);
            reader.ledger.assert_exactly("held", &bed.expected(120, 121));
        }
        live.until_sequence(121, SOON * 2).await;
        assert_eq!(live.ledger.gaps, []);
        live.ledger.assert_exactly("live", &bed.expected(0, 121));
        // One that nobody has stored is unknown, also in a cluster.
        let request = Request::get(ORDERS).resume(bed.cursor(9_000));
        let mut reader = Reader::open(plane.http(), &request).await;
        reader.until("the gap", SOON, |l| !l.gaps.is_empty()).await;
        assert_eq!(reader.ledger.gaps[0].reason, "unknown");
    });
}

#[test]
fn a_quiet_channel_of_a_server_that_is_cut_off_is_degraded_and_never_up_to_date() {
    run(LIMIT, async {
        let mut bed = Bed::new().await;
        let plane = DataPlane::start(&bed.alone_url(), &bed.configs).await;
        let mut live =
            Reader::open(plane.http(), &Request::get(ORDERS).resume(bed.cursor(0))).await;
        live.until_sequence(100, SOON).await;
        let (status, _, known) = page(&plane, bed.cursor(99)).await;
        assert_eq!((status, &known["upToDate"]), (200, &Value::Bool(true)));
        bed.cut.cut(bed.alone);
        live.until("channel.degraded", HELD, |l| l.control_names().contains(&"channel.degraded"))
            .await;
        // It is not known whether the others have stored more.
        let (status, retry_after, last) = page(&plane, bed.cursor(100)).await;
        assert_eq!((status, retry_after.is_some()), (503, true), "{last}");
        let (status, _, known) = page(&plane, bed.cursor(99)).await;
        // Whether its direct gets are answered while it is cut off is that server's affair.
        match status {
            200 => assert_eq!(known["upToDate"], false, "{known}"),
            status => assert_eq!(status, 503, "{known}"),
        }
        bed.cut.heal(bed.alone);
        live.until("channel.recovered", SOON * 2, |l| {
            l.control_names().contains(&"channel.recovered")
        })
        .await;
        bed.publish(1, 10).await;
        live.until_sequence(101, SOON * 2).await;
        assert_eq!(live.ledger.gaps, []);
        live.ledger.assert_exactly("live", &bed.expected(0, 101));
    });
}

#[test]
fn a_data_plane_that_falls_to_a_server_that_is_cut_off_makes_no_hole_and_no_new_life() {
    run(LIMIT, async {
        let mut bed = Bed::new().await;
        let target = |url: &str| url.trim_start_matches("nats://").parse().unwrap();
        let proxy = Proxy::start(target(&bed.other)).await;
        // Not to be had before the other one is gone: a client takes its servers in any order.
        let to_alone = Proxy::start(target(&bed.alone_url())).await;
        to_alone.cut();
        let servers = format!("nats://{},nats://{}", proxy.address(), to_alone.address());
        let plane = DataPlane::start(&servers, &bed.configs).await;
        let mut live =
            Reader::open(plane.http(), &Request::get(ORDERS).resume(bed.cursor(0))).await;
        live.until_sequence(100, SOON).await;
        bed.cut.cut(bed.alone);
        bed.publish(120, 10_000).await;
        live.until_sequence(220, SOON).await;
        // Its own server goes away: it comes to the one that is cut off.
        to_alone.mend();
        drop(proxy);
        let began = Instant::now();
        let request = Request::get(ORDERS).resume(bed.cursor(105));
        let mut readers = Vec::new();
        let mut pages = (0, 0);
        while began.elapsed() < HELD {
            let reader = Reader::open(plane.http(), &request).await;
            readers.push(reader);
            for reader in &mut readers {
                assert!(reader.read_for(Duration::from_millis(50)).await, "it stays open");
                assert_eq!(reader.ledger.gaps, [], "{:?} after the cut", began.elapsed());
            }
            let (status, retry_after, page) = page(&plane, bed.cursor(105)).await;
            match status {
                200 => assert_eq!(page["events"][0]["id"], bed.cursor(106).to_string(), "{page}"),
                status => assert_eq!((status, retry_after.is_some()), (503, true), "{page}"),
            }
            pages = if status == 200 { (pages.0 + 1, pages.1) } else { (pages.0, pages.1 + 1) };
            assert!(live.read_for(Duration::from_millis(300)).await);
            assert_eq!(live.ledger.gaps, [], "{:?} after the cut", began.elapsed());
        }
        println!("pages while cut off: {} answered, {} sent away", pages.0, pages.1);
        assert!(pages.1 > 0, "the data plane did not come to the server that is cut off");
        bed.cut.heal(bed.alone);
        bed.publish(5, 10).await;
        for reader in readers.iter_mut() {
            reader.until_sequence(225, SOON * 2).await;
            assert_eq!(reader.ledger.gaps, []);
            reader.ledger.assert_exactly("resumed", &bed.expected(105, 225));
        }
        live.until_sequence(225, SOON * 2).await;
        assert_eq!(live.ledger.gaps, [], "an outage is not another stream");
        live.ledger.assert_exactly("live", &bed.expected(0, 225));
        // And nothing that was believed meanwhile is kept.
        for (from, path) in [(105, ORDERS.to_owned()), (0, format!("{ORDERS}?from=earliest"))] {
            let request = Request::get(path);
            let request = if from > 0 { request.resume(bed.cursor(from)) } else { request };
            let mut reader = Reader::open(plane.http(), &request).await;
            reader.until_sequence(225, SOON).await;
            assert_eq!(reader.ledger.gaps, [], "from {from}");
            reader.ledger.assert_exactly("afterwards", &bed.expected(from, 225));
        }
    });
}
