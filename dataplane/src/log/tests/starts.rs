//! Where streams and pages start, and what finding that costs.

use futures::{FutureExt, future::join_all};

use super::*;
use crate::log::segment::MATCHED;

fn topics_matched() -> usize {
    MATCHED.with(|matched| matched.replace(0))
}

/// A log that has everything in memory.
fn large() -> Options {
    Options { cache_bytes: 256 * 1024 * 1024, ..options() }
}

#[tokio::test(start_paused = true)]
async fn a_herd_of_pages_costs_one_read_and_no_more_events_than_asked_for() {
    let memory = MemorySource::default();
    (0..5_000).for_each(|i| {
        memory.put("t", format!("event {i}"));
    });
    let running = start(&memory, options());
    running.reached(5_001).await;
    let before = memory.reads();
    // All turns are taken while they come.
    let mut turns = Vec::new();
    while let Some(turn) = running.log.history.turn().now_or_never() {
        turns.push(turn.unwrap());
    }
    let mut pages = (0..150).map(|_| running.log.events(1, 1, 1_000).boxed()).collect::<Vec<_>>();
    for page in &mut pages {
        assert!(page.now_or_never().is_none());
    }
    assert_eq!((turns.len(), memory.reads() - before), (4, 0), "reads at a time are bounded");
    drop(turns);
    for page in pages {
        let page = page.await.unwrap();
        assert_eq!((page.events.len(), page.events[0].sequence, page.end), (1_000, 1, 1_001));
    }
    assert_eq!(memory.reads() - before, 1, "all that wait share it");
    let one = running.log.events(1, 2_000, 1).await.unwrap();
    assert_eq!((one.events.len(), one.events[0].sequence, one.end), (1, 2_000, 2_001));
    memory.recreate();
    running.log.head().wait_for(|head| head.life == 2).await.unwrap();
    let former = running.log.events(1, 2_000, 1).await;
    assert!(matches!(former, Err(Error::TailEnded(_))), "{former:?}");
}

#[tokio::test(start_paused = true)]
async fn a_search_for_the_newest_matches_topics_once_and_not_events() {
    let memory = MemorySource::default();
    let running = start(&memory, large());
    for i in 0..50_000 {
        memory.put(["a.1", "a.2", "b.3"][i % 3], "x");
    }
    running.reached(50_001).await;
    let none = Filter::new((0..32).map(|i| format!("*.*.n{i}"))).unwrap();
    topics_matched();
    assert_eq!(running.log.newest(10, &none).await.unwrap(), 50_001);
    let matched = topics_matched();
    assert!((3..=3 * 50).contains(&matched), "{matched} for 50,000 events on 3 topics");
    assert_eq!(running.log.newest(10, &none).await.unwrap(), 50_001);
    assert!(topics_matched() <= 3, "found once for all that ask the same");
    assert_eq!(running.log.newest(2, &Filter::new(["b.>"]).unwrap()).await.unwrap(), 49_995);
}

#[tokio::test(start_paused = true)]
async fn a_search_ends_after_so_many_events_in_memory_too() {
    let memory = MemorySource::default();
    memory.put("first", "x");
    (0..120_000).for_each(|i| {
        memory.put(&format!("u.{i}"), "x");
    });
    // Memory reaches back further than a search does.
    let running = start(&memory, large());
    running.log.begin(memory.epoch(), 1, 1);
    running.log.append(
        memory.epoch(),
        &memory.read(1, ReadLimit { events: 130_000, bytes: usize::MAX }).await.unwrap().events,
    );
    assert_eq!(running.log.rings.read().plain.start(), 1);
    topics_matched();
    assert_eq!(running.log.newest(1, &Filter::new(["first"]).unwrap()).await.unwrap(), 120_002);
    let matched = topics_matched();
    assert!((90_000..=102_000).contains(&matched), "{matched}");
}

#[tokio::test(start_paused = true)]
async fn searches_take_turns_and_leave_the_runtime_to_others() {
    let memory = MemorySource::default();
    let running = start(&memory, large());
    (0..20_000).for_each(|_| {
        memory.put("t", "x");
    });
    running.reached(20_001).await;
    let others = std::cell::Cell::new(0);
    let none = Filter::new(["n"]).unwrap();
    let searches = join_all((0..5).map(|_| running.log.newest(1, &none)));
    tokio::select! {
        biased;
        () = async { loop { others.set(others.get() + 1); tokio::task::yield_now().await } } => {}
        found = searches => assert!(found.iter().all(|found| *found.as_ref().unwrap() == 20_001)),
    }
    assert!(others.get() >= 5 * 15, "{} turns", others.get());
    // A turn that never comes is waited for no longer than the store's answers are.
    let turn = running.log.turns.searches.acquire().await.unwrap();
    let waited = tokio::time::Instant::now();
    assert!(matches!(running.log.newest(1, &none).await, Err(Error::Unreachable(_))));
    assert!(waited.elapsed() <= crate::source::REQUEST_TIMEOUT);
    assert_eq!(running.log.newest(1, &Filter::default()).await.unwrap(), 20_000, "no search");
    drop(turn);
}

#[tokio::test(start_paused = true)]
async fn a_time_that_memory_reaches_back_to_is_no_question_to_the_store() {
    let memory = MemorySource::default();
    (0..3_000).for_each(|i| {
        memory.put("t", format!("{i}"));
    });
    let running = start(&memory, options());
    running.reached(3_001).await;
    let all = memory.read(1, ReadLimit { events: 3_000, bytes: usize::MAX }).await.unwrap().events;
    let start = running.log.rings.read().plain.start();
    for sequence in [start + 1, start + 2, 2_500, 3_000] {
        let nanos = all[usize::try_from(sequence).unwrap() - 1].time_nanos;
        let first = all.iter().find(|event| event.time_nanos >= nanos).unwrap().sequence;
        assert_eq!(running.log.since(nanos).await.unwrap(), first);
    }
    let after = all.last().unwrap().time_nanos + 1;
    let asked = memory.time_questions();
    assert_eq!(running.log.since(after).await.unwrap(), 3_001);
    assert_eq!(memory.time_questions(), asked, "memory knows");
    assert_eq!(running.log.since(all[0].time_nanos).await.unwrap(), 1);
    assert_eq!(memory.time_questions(), asked + 1);
    memory.set_reachable(false);
    assert_eq!(running.log.since(after).await.unwrap(), 3_001);
    // Once the store is known to be away, what comes next may be older than that.
    let mut head = running.log.head();
    head.wait_for(|head| head.down_since.is_some()).await.unwrap();
    assert!(matches!(running.log.since(after).await, Err(Error::Unreachable(_))));
}

#[tokio::test(start_paused = true)]
async fn a_search_needs_no_more_memory_than_one_segment() {
    let memory = MemorySource::default();
    memory.put("first", "x");
    (0..1_500).for_each(|_| {
        memory.put("t", "x".repeat(20_000));
    });
    let running = start(&memory, Options { cache_bytes: 1024 * 1024, ..options() });
    running.reached(1_502).await;
    let found = running.log.newest(1, &Filter::new(["first"]).unwrap()).await;
    assert_eq!(found.unwrap(), 1);
    assert_eq!(running.log.newest(300, &Filter::default()).await.unwrap(), 1_202);
}
