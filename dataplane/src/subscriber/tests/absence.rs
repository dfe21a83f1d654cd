//! Starts that a store which is cut off, or a replica that lags, cannot decide.

use super::*;

async fn within(subscriber: &mut Frames, limit: Duration) -> Option<String> {
    let bytes = tokio::time::timeout(limit, subscriber.next()).await.ok()?;
    Some(String::from_utf8(bytes?.to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_cursor_ahead_of_a_leader_that_is_cut_off_waits_until_the_cut_is_over() {
    let fixture = Fixture::new(100, |_| {}).await;
    fixture.memory.set_replicated(Duration::from_secs(1));
    fixture.memory.cut_off(100);
    for _ in 0..20 {
        fixture.memory.put("odd", "stored by the others");
    }
    // Longer than no time ago: the replicas were heard of just before the cut.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut subscriber = fixture.subscribe(fixture.after(120), &[]);
    let retry = next(&mut subscriber).await;
    assert!(retry.starts_with("retry: "));
    for _ in 0..4 {
        let told = next(&mut subscriber).await;
        assert!(told == ": hb\n" || told.contains("event: channel.degraded\n"), "{told}");
    }
    fixture.memory.heal();
    loop {
        let told = next(&mut subscriber).await;
        assert!(!told.contains("channel.gap"), "{told}");
        if told.contains("id: 00000001-120\nevent: channel.cursor\n") {
            break;
        }
    }
    fixture.memory.put("odd", "p121");
    assert!(
        within(&mut subscriber, Duration::from_secs(10)).await.unwrap().contains("data: p121\n")
    );
}

#[tokio::test(start_paused = true)]
async fn a_cursor_ahead_of_a_stream_that_a_majority_follows_is_unknown_within_seconds() {
    let fixture = Fixture::new(3, |_| {}).await;
    fixture.memory.set_replicated(Duration::from_secs(1));
    let mut subscriber = fixture.subscribe(fixture.after(99), &[]);
    next(&mut subscriber).await;
    let told = within(&mut subscriber, Duration::from_secs(3)).await.expect("an answer");
    assert!(
        told.contains("event: channel.gap\n") && told.contains(r#""reason":"unknown""#),
        "{told}"
    );
}

#[tokio::test(start_paused = true)]
#[allow(
    clippy::disallowed_methods,
    reason = "the store's times are the real clock's, which the paused one does not move"
)]
async fn a_replica_that_lags_moves_no_start_by_time() {
    let fixture = Fixture::new(0, |_| {}).await;
    for i in 1..=9 {
        fixture.memory.put("odd", format!("p{i}"));
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut head = fixture.channel.log().head();
    head.wait_for(|h| h.next > 9).await.unwrap();
    let seventh = fixture.channel.log().source().read_leader(7).await.unwrap().unwrap();
    fixture.memory.set_replica_last(Some(5));
    let mut subscriber = fixture.subscribe(Start::Since(seventh.time_nanos), &[]);
    let catch_up = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        fixture.memory.set_replica_last(None);
    };
    let read = async {
        let mut told = String::new();
        while !told.contains("data: p9\n") {
            told.push_str(&next(&mut subscriber).await);
            assert!(!told.contains(": hb"), "it did not start in time: {told}");
        }
        told
    };
    let (told, ()) = futures::future::join(read, catch_up).await;
    assert!(told.contains("data: p7\n"), "{told}");
    // Nothing so new is there: the start is the head.
    let mut subscriber = fixture.subscribe(Start::Since(i64::MAX / 2), &[]);
    assert!(opened(&mut subscriber).await.contains("id: 00000001-9\n"));
}
