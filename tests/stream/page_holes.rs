//! Pages name what is missing inside them, too.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::run;

use crate::fixture::{Fixture, ORDERS, Setup};

const LIMIT: Duration = Duration::from_secs(60);

async fn page(fixture: &Fixture, query: &str) -> Value {
    let url = fixture.plane.url(&format!("{ORDERS}{query}"));
    let request = reqwest::Client::new().get(url).header("accept", "application/json");
    let response = request.send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200, "{query}");
    response.json().await.unwrap()
}

fn sequences(page: &Value) -> Vec<u64> {
    let sequence = |event: &Value| event["id"].as_str()?.split_once('-')?.1.parse().ok();
    page["events"].as_array().unwrap().iter().map(|event| sequence(event).unwrap()).collect()
}

/// All pages from `from` on: events, and gaps by their first and last sequence.
async fn walk(fixture: &Fixture, from: &str, filter: &str) -> (Vec<u64>, Vec<(u64, u64, String)>) {
    let (mut events, mut gaps) = (Vec::new(), Vec::new());
    let mut from = from.to_owned();
    for _ in 0..20 {
        let page = page(fixture, &format!("?from={from}{filter}")).await;
        let gap = &page["gap"];
        if !gap.is_null() {
            let number = |name: &str| gap[name].as_u64().unwrap();
            assert!(sequences(&page).first().is_none_or(|first| *first > number("from")));
            assert_eq!(number("missed"), number("to") + 1 - number("from"));
            gaps.push((number("from"), number("to"), gap["reason"].as_str().unwrap().to_owned()));
        }
        events.extend(sequences(&page));
        if page["upToDate"] == json!(true) {
            return (events, gaps);
        }
        page["next"].as_str().unwrap().clone_into(&mut from);
    }
    panic!("the pages do not end");
}

#[test]
fn a_page_ends_before_a_hole_and_the_next_one_begins_with_it() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        fixture.publish_many("a", 10).await;
        for sequence in [5, 6, 10] {
            fixture.streams.delete_message(fixture.names.stream.as_str(), sequence).await;
        }
        let deleted = |from, to| (from, to, "deleted".to_owned());
        let holes = vec![deleted(5, 6), deleted(10, 10)];
        let all = (vec![1, 2, 3, 4, 7, 8, 9], holes.clone());
        assert_eq!(walk(&fixture, "earliest", "").await, all);
        assert_eq!(
            walk(&fixture, &fixture.cursor(3).to_string(), "").await,
            (vec![4, 7, 8, 9], holes)
        );
        let first = page(&fixture, "?from=earliest").await;
        assert_eq!((sequences(&first), &first["upToDate"]), (vec![1, 2, 3, 4], &json!(false)));
        assert_eq!(first["next"], fixture.cursor(4).to_string());
        let second = page(&fixture, &format!("?from={}", fixture.cursor(4))).await;
        assert_eq!(sequences(&second), [7, 8, 9]);
        assert_eq!(second["gap"], json!({"from": 5, "to": 6, "missed": 2, "reason": "deleted"}));
        // Also where a filter selects nothing around it.
        let none = walk(&fixture, &fixture.cursor(2).to_string(), "&topic=none").await;
        assert_eq!(none.0, [0u64; 0]);
        assert!(none.1.contains(&deleted(5, 6)), "{none:?}");
    });
}

#[test]
fn a_page_of_a_compacted_channel_counts_what_it_leaves_out() {
    run(LIMIT, async {
        let fixture = Fixture::with(Setup {
            stream: &|s| s.max_messages_per_subject = 1,
            channel: &|c| c.stream.compacted = true,
            ..Setup::default()
        })
        .await;
        for topic in ["a", "b", "a", "c", "a", "d"] {
            fixture.publish(topic, "x").await;
        }
        // It is answered once the pod has come to the last one.
        page(&fixture, &format!("?from={}", fixture.cursor(6))).await;
        // 2 b, 4 c, 5 a, 6 d are left.
        let page = page(&fixture, &format!("?from={}", fixture.cursor(0))).await;
        assert_eq!((sequences(&page), &page["upToDate"]), (vec![2, 4, 5, 6], &json!(true)));
        assert_eq!(page["gap"], json!({"from": 1, "to": 3, "missed": 2, "reason": "compacted"}));
    });
}
