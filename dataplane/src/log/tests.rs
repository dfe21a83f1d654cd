mod absence;
mod starts;

use std::time::Duration;

use proptest::prelude::*;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{reader::Activity, *};
use crate::source::{ReadLimit, memory::MemorySource};

struct Running {
    log: Arc<Log>,
    memory: MemorySource,
    _stop: DropGuard,
}

fn options() -> Options {
    Options { encoding: Encoding::Text, compacted: false, cache_bytes: 8 * 1024 * 1024 }
}

fn start(memory: &MemorySource, options: Options) -> Running {
    let log = Arc::new(Log::new(Arc::new(memory.clone()), options, tracing::Span::none()));
    let cancel = CancellationToken::new();
    #[allow(clippy::disallowed_methods)]
    tokio::spawn(Arc::clone(&log).run(cancel.clone()));
    Running { log, memory: memory.clone(), _stop: cancel.drop_guard() }
}

#[derive(Debug)]
enum Read {
    Slice(Slice),
    Wait,
    FormerLife,
}

impl Running {
    async fn reached(&self, next: u64) {
        let mut head = self.log.head();
        let reached = tokio::time::timeout(
            Duration::from_secs(60),
            head.wait_for(|h| h.next >= next && h.epoch.is_some()),
        )
        .await;
        assert!(
            reached.is_ok_and(|r| r.is_ok()),
            "the log did not reach {next}: {:?}",
            self.log.head_now()
        );
    }

    /// What a subscriber reads at `position`.
    async fn read(
        &self,
        life: u64,
        position: u64,
        told: u64,
        filter: &Filter,
    ) -> Result<Read, Error> {
        let segment = match self.log.read_now(life, position, told, filter, Dialect::Plain) {
            Now::Slice(slice) => return Ok(Read::Slice(slice)),
            Now::Cached(segment) => return Ok(Read::Slice(segment.slice(position, told, filter))),
            Now::Wait => return Ok(Read::Wait),
            Now::FormerLife => return Ok(Read::FormerLife),
            Now::Missing => self.log.segment(life, position, Dialect::Plain).await?,
        };
        Ok(segment.map_or(Read::FormerLife, |(segment, _)| {
            Read::Slice(segment.slice(position, told, filter))
        }))
    }

    /// Everything from `position` to the head: sequences of events, and gaps.
    async fn walk(
        &self,
        mut position: u64,
        filter: &Filter,
    ) -> (Vec<u64>, Vec<(u64, u64, GapReason)>) {
        let head = self.log.head_now();
        let (mut sequences, mut gaps, mut told) = (Vec::new(), Vec::new(), 0);
        loop {
            match self.read(head.life, position, told, filter).await.unwrap() {
                Read::Wait => return (sequences, gaps),
                Read::FormerLife => panic!("a new life began"),
                Read::Slice(Slice::Frames { parts, events, next, .. }) => {
                    assert!(next > position, "a read makes progress");
                    let before = sequences.len();
                    for part in parts {
                        let text = String::from_utf8(part.to_vec()).unwrap();
                        let ids = text.lines().filter_map(|l| l.strip_prefix("id: 00000001-"));
                        sequences.extend(ids.map(|id| id.parse::<u64>().unwrap()));
                    }
                    assert_eq!((sequences.len() - before) as u64, events);
                    position = next;
                }
                Read::Slice(Slice::Gap { gap, next }) => {
                    gaps.push((gap.from.unwrap(), gap.to.unwrap(), gap.reason));
                    told = gap.to.unwrap();
                    position = next;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ring_and_history_are_one_log() {
    let memory = MemorySource::default();
    for i in 0..5_000 {
        memory.put(if i % 7 == 0 { "seventh" } else { "other" }, format!("event {i}"));
    }
    let running = start(&memory, options());
    running.reached(5_001).await;
    assert!(
        running.log.rings.read().plain.start() > 3_900,
        "only the newest events are read at the start"
    );
    for from in [1, 2, 1_023, 1_024, 1_025, 3_900, 4_999, 5_000, 5_001] {
        let (sequences, gaps) = running.walk(from, &Filter::default()).await;
        assert_eq!(sequences, (from..=5_000).collect::<Vec<_>>());
        assert!(gaps.is_empty());
    }
    let (sequences, _) = running.walk(1, &Filter::new(["seventh"]).unwrap()).await;
    assert_eq!(sequences, (1..=5_000).step_by(7).collect::<Vec<_>>());
    assert_eq!(running.log.newest(3, &Filter::new(["seventh"]).unwrap()).await.unwrap(), 4_985);
    assert_eq!(running.log.newest(1_000, &Filter::default()).await.unwrap(), 4_001);
    assert_eq!(running.log.newest(1_000, &Filter::new(["seventh"]).unwrap()).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_herd_at_one_place_costs_one_read_of_the_store() {
    let memory = MemorySource::default();
    (0..5_000).for_each(|i| {
        memory.put("t", format!("{i}"));
    });
    let running = start(&memory, options());
    running.reached(5_001).await;
    let before = memory.reads();
    let everything = Filter::default();
    let all =
        futures::future::join_all((0..1_000).map(|_| running.read(1, 100, 0, &everything))).await;
    assert!(all.iter().all(|r| matches!(r, Ok(Read::Slice(Slice::Frames { .. })))));
    // One for all, and one ahead of them.
    let reads = memory.reads() - before;
    assert!((1..=2).contains(&reads), "{reads}");
    // What is ahead is there when they come to it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(memory.reads() - before, 2);
    assert!(matches!(
        running.log.read_now(1, 1_024, 0, &everything, Dialect::Plain),
        Now::Cached(_)
    ));
    assert!(matches!(running.log.read_now(1, 2_048, 0, &everything, Dialect::Plain), Now::Missing));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_lags_makes_no_hole() {
    let memory = MemorySource::default();
    (0..3_000).for_each(|i| {
        memory.put("t", format!("{i}"));
    });
    let running = start(&memory, options());
    running.reached(3_001).await;
    memory.set_replica_last(Some(500));
    let (sequences, gaps) = running.walk(490, &Filter::default()).await;
    assert_eq!((sequences, gaps), ((490..=3_000).collect(), vec![]));
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_is_named_with_its_reason() {
    let memory = MemorySource::default();
    (0..3_000).for_each(|i| {
        memory.put("t", format!("{i}"));
    });
    memory.purge_before(1_500);
    memory.delete(1_600);
    memory.delete(1_601);
    let running = start(&memory, options());
    running.reached(3_001).await;
    let (sequences, gaps) = running.walk(10, &Filter::default()).await;
    assert_eq!(gaps, [(10, 1_499, GapReason::Expired), (1_600, 1_601, GapReason::Deleted)]);
    assert_eq!(
        sequences,
        (1_500..=3_000).filter(|s| !(1_600..=1_601).contains(s)).collect::<Vec<_>>()
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_store_has_removed_is_not_served_from_memory() {
    let memory = MemorySource::default();
    (0..3_000).for_each(|i| {
        memory.put("t", format!("{i}"));
    });
    let running = start(&memory, options());
    running.reached(3_001).await;
    // In the ring, and in the cache.
    assert_eq!(running.walk(1, &Filter::default()).await.0.len(), 3_000);
    memory.purge_before(2_900);
    let mut head = running.log.head();
    tokio::time::timeout(Duration::from_secs(10), head.wait_for(|h| h.first == 2_900))
        .await
        .unwrap()
        .unwrap();
    for from in [1, 1_030, 2_899] {
        let (sequences, gaps) = running.walk(from, &Filter::default()).await;
        assert_eq!(
            (sequences, gaps),
            ((2_900..=3_000).collect(), vec![(from, 2_899, GapReason::Expired)])
        );
    }
    memory.purge_before(3_001);
    tokio::time::timeout(Duration::from_secs(10), head.wait_for(|h| h.first == 3_001))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        running.walk(2_950, &Filter::default()).await,
        (vec![], vec![(2_950, 3_000, GapReason::Expired)])
    );
    memory.put("t", "after");
    running.reached(3_002).await;
    assert_eq!(running.walk(3_001, &Filter::default()).await, (vec![3_001], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_lost_delivery_is_fetched_again() {
    let memory = MemorySource::default();
    memory.put("t", "1");
    let running = start(&memory, options());
    running.reached(2).await;
    memory.lose_next_delivery();
    (0..10).for_each(|i| {
        memory.put("t", format!("{i}"));
    });
    running.reached(12).await;
    assert_eq!(running.walk(1, &Filter::default()).await, ((1..=11).collect(), vec![]));
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_and_nothing_is_lost() {
    let memory = MemorySource::default();
    memory.put("t", "1");
    let running = start(&memory, options());
    running.reached(2).await;
    assert_eq!(running.log.status().activity, Activity::Tailing);
    memory.set_reachable(false);
    let mut head = running.log.head();
    tokio::time::timeout(Duration::from_secs(10), head.wait_for(|h| h.down_since.is_some()))
        .await
        .unwrap()
        .unwrap();
    let status = running.log.status();
    assert!(status.warm, "a pod that was warm stays so");
    assert_eq!((status.activity, status.error.is_some()), (Activity::Interrupted, true));
    assert_eq!(running.walk(1, &Filter::default()).await.0, [1], "memory still serves");
    memory.put("t", "2");
    memory.set_reachable(true);
    tokio::time::timeout(Duration::from_secs(10), head.wait_for(|h| h.down_since.is_none()))
        .await
        .unwrap()
        .unwrap();
    running.reached(3).await;
    assert_eq!(running.walk(1, &Filter::default()).await, (vec![1, 2], vec![]));
    assert_eq!(running.log.head_now().life, 1, "the same life goes on");
}

#[tokio::test(start_paused = true)]
async fn a_short_interruption_is_nobodys_business() {
    let memory = MemorySource::default();
    memory.put("t", "1");
    let running = start(&memory, options());
    running.reached(2).await;
    let mut head = running.log.head();
    memory.set_reachable(false);
    tokio::time::sleep(Duration::from_millis(800)).await;
    memory.set_reachable(true);
    let told =
        tokio::time::timeout(Duration::from_secs(30), head.wait_for(|h| h.down_since.is_some()))
            .await;
    assert!(told.is_err(), "no subscriber hears of it");
}

#[tokio::test(start_paused = true)]
async fn a_recreated_stream_begins_a_new_life() {
    let memory = MemorySource::default();
    (0..10).for_each(|i| {
        memory.put("t", format!("{i}"));
    });
    let running = start(&memory, options());
    running.reached(11).await;
    memory.recreate();
    memory.put("t", "new");
    let mut head = running.log.head();
    let new = *tokio::time::timeout(
        Duration::from_secs(60),
        head.wait_for(|h| h.life == 2 && h.next == 2),
    )
    .await
    .unwrap()
    .unwrap();
    assert_eq!(new.epoch, Some(memory.epoch()));
    assert!(matches!(running.read(1, 5, 0, &Filter::default()).await, Ok(Read::FormerLife)));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_moved_back_is_believed_only_when_it_stays_so() {
    let memory = MemorySource::default();
    (0..10).for_each(|i| {
        memory.put("t", format!("{i}"));
    });
    let running = start(&memory, options());
    running.reached(11).await;
    memory.move_back(5);
    let mut head = running.log.head();
    let early =
        tokio::time::timeout(Duration::from_secs(5), head.wait_for(|h| h.life == 2)).await.is_ok();
    assert!(!early, "a new leader may not have applied all that it has");
    tokio::time::timeout(Duration::from_secs(60), head.wait_for(|h| h.life == 2))
        .await
        .unwrap()
        .unwrap();
    running.reached(6).await;
}

#[tokio::test(start_paused = true)]
async fn events_of_a_new_life_are_never_taken_for_those_of_the_old() {
    let memory = MemorySource::default();
    (0..3_000).for_each(|i| {
        memory.put("t", format!("{i}"));
    });
    let running = start(&memory, options());
    running.reached(3_001).await;
    // The reader has not had its turn to notice when the read is made.
    memory.recreate();
    (0..3_000).for_each(|i| {
        memory.put("t", format!("new {i}"));
    });
    let read = running.read(1, 100, 0, &Filter::default()).await;
    assert!(matches!(read, Err(Error::TailEnded(_)) | Ok(Read::FormerLife)), "{read:?}");
}

#[tokio::test(start_paused = true)]
async fn a_changed_encoding_applies_to_everything_read_after_it() {
    let memory = MemorySource::default();
    (0..10).for_each(|i| {
        memory.put("t", format!("{i}"));
    });
    let running = start(&memory, options());
    running.reached(11).await;
    running.log.set_options(Options { encoding: Encoding::Base64, ..options() });
    memory.put("t", "x");
    running.reached(12).await;
    let Ok(Read::Slice(Slice::Frames { parts, .. })) =
        running.read(1, 10, 0, &Filter::default()).await
    else {
        panic!()
    };
    assert!(parts[0].starts_with(b"id: 00000001-10\ndata: OQ==\n\n"));
    assert_eq!(running.walk(1, &Filter::default()).await.0, (1..=11).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_log_that_has_ended_holds_nothing_and_still_answers() {
    let memory = MemorySource::default();
    (0..5_000).for_each(|_| {
        memory.put("t", vec![b'x'; 1_000]);
    });
    let log = Arc::new(Log::new(Arc::new(memory.clone()), options(), tracing::Span::none()));
    let cancel = CancellationToken::new();
    let running = Running { log: Arc::clone(&log), memory, _stop: cancel.clone().drop_guard() };
    let walked = async {
        running.reached(5_001).await;
        running.walk(1, &Filter::default()).await;
        assert!(log.rings.read().plain.cost() > 1_000_000);
        assert!(log.history.cached_bytes() > 1_000_000);
        cancel.cancel();
    };
    futures::join!(Arc::clone(&log).run(cancel.clone()), walked);
    // A stream that reads while it is being closed.
    assert_eq!(running.walk(1, &Filter::default()).await.0.len(), 5_000);
    assert_eq!(log.history.cached_bytes(), 0);
    assert!(log.rings.read().plain.cost() < 1_000);
}

#[tokio::test(start_paused = true)]
async fn memory_is_bounded_by_the_cache_size() {
    let memory = MemorySource::default();
    let running = start(&memory, Options { cache_bytes: 4 * 1024 * 1024, ..options() });
    for i in 0..20u64 {
        (0..100).for_each(|_| {
            memory.put("t", vec![b'x'; 10_000]);
        });
        running.reached((i + 1) * 100 + 1).await;
    }
    let rings = running.log.rings.read();
    // Half of the cache, and the open segment.
    assert!(rings.plain.cost() < 2 * 1024 * 1024 + 1_100_000, "{}", rings.plain.cost());
    assert!(rings.plain.start() > 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever is deleted, wherever a subscriber starts: each sequence from there on is delivered
    /// once or named by a gap once, in order.
    #[test]
    fn every_sequence_is_delivered_or_named(
        total in 1u64..3_000,
        holes in proptest::collection::vec((0u64..3_000, 1u64..1_500), 0..6),
        from in 1u64..3_000,
        sizes in proptest::collection::vec(0usize..20_000, 1..8),
        lag in proptest::option::of(0u64..3_000),
        late in 0u64..50,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let memory = MemorySource::default();
            for i in 0..total {
                memory.put("t", vec![b'x'; sizes[i as usize % sizes.len()]]);
            }
            for (start, length) in holes {
                (start..start + length).filter(|s| *s < total).for_each(|s| memory.delete(s));
            }
            let running = start(&memory, options());
            running.reached(total.min(total + 1)).await;
            (0..late).for_each(|_| { memory.put("t", "late"); });
            running.reached(total + late + u64::from(late > 0)).await;
            running.memory.set_replica_last(lag);
            let head = running.log.head_now();
            let (sequences, gaps) = running.walk(from, &Filter::default()).await;
            let mut covered: Vec<u64> = sequences.clone();
            prop_assert!(sequences.is_sorted());
            for (from, to, _) in gaps {
                covered.extend(from..=to);
            }
            covered.sort_unstable();
            prop_assert_eq!(covered, (from..head.next.max(from)).collect::<Vec<_>>());
            Ok(())
        })?;
    }
}
