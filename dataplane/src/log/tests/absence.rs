//! What the log claims to be gone, by a store that does not know or does not say.

use super::*;

/// How often replicas answer their leader.
const HEARTBEAT: Duration = Duration::from_secs(1);

fn filled(events: u64) -> MemorySource {
    let memory = MemorySource::default();
    for i in 1..=events {
        memory.put("t", format!("{i}"));
    }
    memory
}

async fn reaches_life(running: &Running, life: u64, limit: Duration) -> bool {
    let mut head = running.log.head();
    tokio::time::timeout(limit, head.wait_for(|h| h.life >= life)).await.is_ok()
}

async fn is_warm(running: &Running, limit: Duration) -> bool {
    let warm = async {
        while !running.log.status().warm {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(limit, warm).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_makes_no_hole_of_what_is_known_to_exist() {
    let memory = filled(3_000);
    memory.set_replicated(HEARTBEAT);
    let running = start(&memory, options());
    running.reached(3_001).await;
    memory.cut_off(500);
    let read = running.read(1, 400, 0, &Filter::default()).await;
    assert!(matches!(read, Err(Error::Unreachable(_))), "{read:?}");
    let page = running.log.events(1, 600, 1_000).await;
    assert!(matches!(page, Err(Error::Unreachable(_))), "{page:?}");
    tokio::time::sleep(Duration::from_secs(30)).await;
    memory.heal();
    assert_eq!(running.walk(400, &Filter::default()).await, ((400..=3_000).collect(), vec![]));
    assert_eq!(running.log.head_now().life, 1);
}

#[tokio::test(start_paused = true)]
async fn even_what_reaches_the_end_is_gone_only_when_that_is_proven() {
    let memory = filled(3_000);
    memory.set_replicated(HEARTBEAT);
    for sequence in 1_000..1_024 {
        memory.delete(sequence);
    }
    let running = start(&memory, options());
    running.reached(3_001).await;
    // The leader knows that there is more, and is asked about the end of a block that has none.
    memory.set_replica_last(Some(999));
    memory.cut_off(3_000);
    let read = running.read(1, 500, 0, &Filter::default()).await;
    assert!(read.is_ok(), "what comes after a hole shows that it is one: {read:?}");
    for sequence in 1_500..=3_000 {
        memory.delete(sequence);
    }
    let read = running.read(1, 1_600, 0, &Filter::default()).await;
    assert!(matches!(read, Err(Error::Unreachable(_))), "{read:?}");
    memory.heal();
    memory.set_replica_last(None);
    let began = tokio::time::Instant::now();
    let read = running.read(1, 1_600, 0, &Filter::default()).await;
    assert!(matches!(read, Ok(Read::Slice(Slice::Gap { .. }))), "{read:?}");
    assert!(began.elapsed() < HEARTBEAT * 2, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_never_begins_a_new_life() {
    let memory = filled(10);
    memory.set_replicated(HEARTBEAT);
    let running = start(&memory, options());
    running.reached(11).await;
    memory.cut_off(5);
    assert!(!reaches_life(&running, 2, Duration::from_secs(120)).await);
    assert!(running.log.head_now().down_since.is_some(), "subscribers are told that it is away");
    memory.put("t", "11");
    memory.heal();
    running.reached(12).await;
    assert_eq!(running.walk(1, &Filter::default()).await, ((1..=11).collect(), vec![]));
    assert_eq!(running.log.head_now().life, 1);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_leader_that_is_cut_off_is_an_outage_like_any_other() {
    let memory = filled(10);
    memory.set_replicated(HEARTBEAT);
    let running = start(&memory, options());
    running.reached(11).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(running.log.status().activity, Activity::Tailing);
    assert_eq!(running.log.head_now().down_since, None);
    memory.cut_off(10);
    let mut head = running.log.head();
    let told = tokio::time::timeout(Duration::from_secs(15), async {
        head.wait_for(|head| head.down_since.is_some()).await.map(drop)
    });
    assert!(told.await.is_ok(), "{:?}", running.log.status());
    assert!(running.log.status().error.is_some_and(|error| error.contains("majority")));
    memory.heal();
    let over = tokio::time::timeout(Duration::from_secs(10), async {
        head.wait_for(|head| head.down_since.is_none()).await.map(drop)
    });
    assert!(over.await.is_ok(), "{:?}", running.log.status());
    let status = running.log.status();
    assert_eq!((status.activity, status.error), (Activity::Tailing, None));
    memory.put("t", "11");
    running.reached(12).await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_does_not_count_for_a_store_that_moved_back() {
    let memory = filled(10);
    let running = start(&memory, options());
    running.reached(11).await;
    memory.set_reachable(false);
    tokio::time::sleep(Duration::from_secs(30)).await;
    memory.move_back(5);
    memory.set_reachable(true);
    assert!(!reaches_life(&running, 2, Duration::from_secs(5)).await, "behind for 5 s");
    assert!(reaches_life(&running, 2, Duration::from_secs(30)).await);
    running.reached(6).await;
}

#[tokio::test(start_paused = true)]
async fn the_newest_event_deleted_is_a_hole_and_the_log_is_warm() {
    for (heartbeat, limit) in [(Duration::ZERO, 2), (HEARTBEAT, 4)] {
        let memory = filled(5);
        memory.set_replicated(heartbeat);
        memory.delete(4);
        memory.delete(5);
        let running = start(&memory, options());
        assert!(is_warm(&running, Duration::from_secs(limit)).await, "{:?}", running.log.status());
        assert_eq!(running.log.head_now().next, 6);
        let states = memory.states();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let status = running.log.status();
        assert_eq!((status.activity, status.lag, status.error), (Activity::Tailing, 0, None));
        assert!(memory.states() - states <= 13, "nothing is stalled: no tail is opened again");
        let gone = vec![(4, 5, GapReason::Deleted)];
        assert_eq!(running.walk(1, &Filter::default()).await, (vec![1, 2, 3], gone.clone()));
        memory.put("t", "6");
        running.reached(7).await;
        assert_eq!(running.walk(1, &Filter::default()).await, (vec![1, 2, 3, 6], gone));
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_deleted_before_a_live_reader_had_it_is_a_hole_too() {
    let memory = filled(5);
    let running = start(&memory, options());
    running.reached(6).await;
    memory.put("t", "6");
    memory.delete(6);
    running.reached(7).await;
    assert_eq!(running.log.status().lag, 0);
    assert_eq!(
        running.walk(5, &Filter::default()).await,
        (vec![5], vec![(6, 6, GapReason::Deleted)])
    );
}

#[tokio::test(start_paused = true)]
async fn the_newest_event_is_not_called_deleted_by_a_leader_that_is_cut_off() {
    let memory = filled(5);
    memory.set_replicated(HEARTBEAT);
    memory.delete(5);
    memory.cut_off(5);
    let running = start(&memory, options());
    assert!(!is_warm(&running, Duration::from_secs(30)).await);
    memory.heal();
    assert!(is_warm(&running, Duration::from_secs(10)).await);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_set_back_and_filled_again_is_a_new_life() {
    let memory = filled(50);
    let running = start(&memory, options());
    running.reached(51).await;
    for i in 51..=80 {
        memory.put("t", format!("{i}"));
    }
    running.reached(81).await;
    memory.set_reachable(false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    memory.move_back(50);
    for i in 51..=90 {
        memory.put("t", format!("again {i}"));
    }
    memory.set_reachable(true);
    assert!(reaches_life(&running, 2, Duration::from_secs(20)).await);
    running.reached(91).await;
    let Ok(Read::Slice(Slice::Frames { parts, .. })) =
        running.read(2, 60, 0, &Filter::default()).await
    else {
        panic!("memory of the former life was dropped")
    };
    assert!(parts[0].starts_with(b"id: 00000001-60\ndata: again 60\n\n"), "{parts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reconnect_to_the_same_stream_goes_on_whatever_was_deleted() {
    let memory = filled(50);
    let running = start(&memory, options());
    running.reached(51).await;
    for i in 51..=80 {
        memory.put("t", format!("{i}"));
    }
    running.reached(81).await;
    for round in 0..5 {
        memory.set_reachable(false);
        memory.delete(80 - round);
        tokio::time::sleep(Duration::from_secs(3)).await;
        memory.set_reachable(true);
        memory.put("t", "more");
        running.reached(82 + round).await;
    }
    memory.set_reachable(false);
    memory.purge_before(85);
    tokio::time::sleep(Duration::from_secs(3)).await;
    memory.set_reachable(true);
    memory.put("t", "more");
    running.reached(87).await;
    assert_eq!(running.log.head_now().life, 1);
}

#[tokio::test(start_paused = true)]
async fn a_read_under_way_when_the_encoding_changes_is_not_kept() {
    let memory = filled(3_000);
    let running = start(&memory, options());
    running.reached(3_001).await;
    // The read waits for a replica that lags while the encoding changes.
    memory.set_replica_last(Some(0));
    let everything = Filter::default();
    let change = async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        running.log.set_options(Options { encoding: Encoding::Base64, ..options() });
        memory.set_replica_last(None);
    };
    let _ = futures::future::join(running.read(1, 100, 0, &everything), change).await;
    let Ok(Read::Slice(Slice::Frames { parts, .. })) = running.read(1, 100, 0, &everything).await
    else {
        panic!("events")
    };
    assert!(parts[0].starts_with(b"id: 00000001-100\ndata: MTAw\n\n"), "the old rule: {parts:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_trimmed_before_a_live_reader_has_it_is_not_called_deleted() {
    let memory = filled(10);
    let running = start(&memory, options());
    running.reached(11).await;
    (11..=20).for_each(|i| {
        memory.put("t", format!("{i}"));
    });
    memory.purge_before(18);
    running.reached(21).await;
    let trimmed = vec![(11, 17, GapReason::Expired)];
    assert_eq!(running.walk(11, &Filter::default()).await, (vec![18, 19, 20], trimmed));
}

#[tokio::test(start_paused = true)]
async fn what_a_leader_that_has_just_lost_its_place_does_not_find_is_no_hole() {
    let memory = filled(3_000);
    memory.set_replicated(HEARTBEAT);
    let running = start(&memory, options());
    running.reached(3_001).await;
    memory.set_replica_last(Some(500));
    memory.ask_the_former_leader(1);
    assert_eq!(running.walk(490, &Filter::default()).await, ((490..=3_000).collect(), vec![]));
    memory.set_replica_last(None);
    // Nor is the newest event one that was deleted, where the tail is late.
    memory.lose_next_delivery();
    memory.ask_the_former_leader(1);
    let newest = memory.put("t", "newest");
    running.reached(newest + 1).await;
    assert_eq!(running.walk(2_990, &Filter::default()).await, ((2_990..=newest).collect(), vec![]));
}

#[tokio::test(start_paused = true)]
async fn what_a_replica_lacks_at_the_front_is_not_gone_while_the_leader_has_it() {
    let memory = filled(3_000);
    memory.set_replicated(HEARTBEAT);
    let running = start(&memory, options());
    running.reached(3_001).await;
    memory.delete(400);
    // No replica has them: the leader gives them, one by one.
    memory.set_replica_first(500);
    let (sequences, gaps) = running.walk(390, &Filter::default()).await;
    let due: Vec<u64> = (390..=3_000).filter(|sequence| *sequence != 400).collect();
    assert_eq!(sequences, due);
    assert_eq!(gaps, [(400, 400, GapReason::Deleted)]);
    // Nor does the tail leave them out.
    memory.set_replica_first(3_005);
    for _ in 3_001..=3_010 {
        memory.put("t", "x");
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(running.log.head_now().next, 3_001, "it waits for a replica that has them");
    memory.set_replica_first(0);
    running.reached(3_011).await;
    let (sequences, gaps) = running.walk(3_000, &Filter::default()).await;
    assert_eq!((sequences, gaps), ((3_000..=3_010).collect(), vec![]));
}
