//! The hand-over from replay to live, explored: what a fan-out thread, its subscribers, the log and
//! the store do in any order of their steps.
//!
//! All of it is the real code; only [`Shard::run`]'s loop is taken apart into its calls
//! ([`World::step`]), and between any two of them the store may take or lose events, the reader and
//! the questions to the store may go on, and a peer may read, come or go. A socket is one end of a
//! pair of Unix sockets with the least buffer that the kernel gives: it takes all, part or nothing
//! of a write, as its peer reads. The clock is simulated and stands still while the thread comes to
//! rest, so that no heartbeat can stand in for a wake-up that was lost.
//!
//! A model checker wants states that can be cloned and compared, so it would check a copy of this
//! code; here a sequence of actions is the state, and each is run from the beginning.

mod peer;
mod world;

use std::sync::Arc;

use proptest::prelude::*;
use sluice_channel::{Cursor, Filter};
use tokio::time::Instant;

use self::world::{Action, HEARTBEAT, Setting, World};
use crate::subscriber::{Start, Step};

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (0u8..4).prop_map(|steps| Action::Steps(steps + 1)),
        6 => (0usize..6, 1u8..5, 0u8..2)
            .prop_map(|(size, count, topic)| Action::Publish { size, count, topic }),
        5 => (1u8..12).prop_map(Action::Runtime),
        4 => (0u8..7, 0u8..4).prop_map(|(start, filter)| Action::Subscribe { start, filter }),
        5 => (any::<prop::sample::Index>(), 0usize..6_000)
            .prop_map(|(peer, bytes)| Action::Read(peer, bytes)),
        1 => any::<prop::sample::Index>().prop_map(Action::Leave),
        1 => any::<prop::sample::Index>().prop_map(Action::HalfClose),
        1 => (any::<prop::sample::Index>(), 1usize..50_000)
            .prop_map(|(peer, bytes)| Action::Send(peer, bytes)),
        1 => any::<prop::sample::Index>().prop_map(Action::Close),
        1 => any::<prop::sample::Index>().prop_map(Action::Delete),
        1 => any::<prop::sample::Index>().prop_map(Action::Purge),
        1 => Just(Action::Recreate),
        1 => Just(Action::Beat),
        1 => Just(Action::Probe),
        2 => Just(Action::Rest),
    ]
}

fn setting() -> impl Strategy<Value = Setting> {
    let history = prop_oneof![4 => 0u64..8, 1 => 1_020u64..1_500];
    (history, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(history, on_gap_latest, small_cache, outages)| Setting {
            history,
            on_gap_latest,
            small_cache,
            outages,
        },
    )
}

fn explore(setting: &Setting, actions: &[Action]) {
    let mut world = World::new(setting);
    actions.iter().for_each(|action| world.act(action));
    world.end();
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn any_order_of_steps(setting in setting(), actions in prop::collection::vec(action(), 0..70)) {
        explore(&setting, &actions);
    }
}

/// Every order of a few actions, so that what a random walk seldom meets is met each time: two
/// subscribers, one of which does not read, while events come that fill its socket.
#[test]
fn every_order_of_a_few_steps() {
    let alphabet = [
        Action::Publish { size: 4, count: 2, topic: 0 },
        Action::Runtime(12),
        Action::Steps(5),
        Action::ReadFrom(0, 5_000),
        Action::Subscribe { start: 0, filter: 0 },
    ];
    const DEPTH: u32 = 4;
    let setting = Setting { history: 3, on_gap_latest: false, small_cache: false, outages: false };
    let first =
        [Action::Subscribe { start: 5, filter: 0 }, Action::Subscribe { start: 0, filter: 1 }];
    for number in 0..alphabet.len().pow(DEPTH) {
        let order =
            (0..DEPTH).map(|place| &alphabet[number / alphabet.len().pow(place) % alphabet.len()]);
        let actions: Vec<_> = first.iter().chain(order).cloned().collect();
        explore(&setting, &actions);
    }
}

/// A tail that was opened after the stream was recreated is not taken for one of its former life.
#[test]
fn the_stream_is_recreated_between_its_state_and_its_tail() {
    let setting = Setting { history: 0, on_gap_latest: false, small_cache: false, outages: false };
    let actions = [
        Action::Recreate,
        Action::Beat,
        Action::Recreate,
        Action::Subscribe { start: 2, filter: 0 },
        Action::Publish { size: 0, count: 1, topic: 0 },
    ];
    explore(&setting, &actions);
}

/// Events that are rolled back leave nothing behind in the subscriber: its next heartbeat tells of
/// the place before them, which no frame has told of.
#[test]
fn what_is_rolled_back_was_never_sent() {
    let setting = Setting { history: 0, on_gap_latest: false, small_cache: false, outages: false };
    let mut world = World::new(&setting);
    let (mut subscriber, _) = world.register(Start::Earliest, Filter::new(["a"]).unwrap());
    // A whole segment that the filter passes over, then what it selects.
    (0..1_024).for_each(|_| world.publish(1, "b"));
    (0..3).for_each(|_| world.publish(1, "a"));
    world.runtime(100);
    let (head, now) = (world.head(), Instant::now());
    let checkpoint = (0..10).map(|_| subscriber.step(head, now)).find_map(|step| match step {
        Step::Events { checkpoint, .. } => Some(checkpoint),
        _ => None,
    });
    subscriber.roll_back(checkpoint.expect("events are there"));
    let Step::Write(parts) = subscriber.step(head, now + 2 * HEARTBEAT) else {
        panic!("a heartbeat")
    };
    let text = String::from_utf8(parts.concat()).unwrap();
    assert_eq!(text, "id: 00000001-1024\nevent: channel.cursor\ndata: \n\n");
}

const QUIET: Setting =
    Setting { history: 0, on_gap_latest: false, small_cache: false, outages: false };

/// As many patterns as a filter may have, which select nothing.
fn nothing(number: usize) -> Filter {
    Filter::new((0..32).map(|pattern| format!("none.{number}.*.{pattern}"))).unwrap()
}

/// Topics that are compared one by one.
fn topics(count: usize) -> impl Iterator<Item = &'static str> {
    (0..count).map(|i| &*String::leak(format!("none.{i}.b.x")))
}

/// Between two looks at the head a thread looks at about a segment, however many replays select
/// nothing of what they read.
#[test]
fn replays_that_select_nothing_have_a_bound_on_what_they_look_at_in_a_turn() {
    const SEGMENT: u64 = 1_024;
    let mut world = World::new(&QUIET);
    topics(3 * 1_024).for_each(|topic| world.publish(1, topic));
    world.runtime(250);
    let head = world.head();
    assert_eq!(head.next, 3 * SEGMENT + 1);
    let channel = Arc::clone(&world.channel);
    let start = || Start::After(Cursor::new(head.epoch.unwrap(), 0));
    let peers: Vec<_> =
        (0..100).map(|number| world.arrive(&channel, start(), nothing(number))).collect();
    world.take_in();
    let (mut passed, mut turns) = (0, 0);
    while passed < 100 * 3 * SEGMENT {
        assert!(!world.shard.queue.is_empty(), "{passed} passed, and nothing more to do");
        world.shard.serve_queue();
        let now = world.positions().iter().sum();
        assert!(now - passed <= 2 * SEGMENT, "{} events in one turn", now - passed);
        (passed, turns) = (now, turns + 1);
    }
    println!("{} replays in {turns} turns", peers.len());
}

#[test]
fn live_deliveries_have_a_bound_on_what_they_look_at_in_a_turn() {
    let mut world = World::new(&QUIET);
    let channel = Arc::clone(&world.channel);
    let _peers: Vec<_> =
        (0..300).map(|number| world.arrive(&channel, Start::Latest, nothing(number))).collect();
    world.settle();
    // 6,400 comparisons for each, as long as 50 deliveries: a turn has 512.
    topics(200).for_each(|topic| world.publish(1, topic));
    world.runtime(250);
    world.take_in();
    world.shard.deliver_live();
    let passed = world.positions().iter().filter(|position| **position == 200).count();
    assert!((1..=12).contains(&passed), "{passed} of 300 were visited");
    world.settle();
    assert!(world.positions().iter().all(|position| *position == 200));
}

/// With thousands of channels in a process an event costs a thread what its own channel costs.
#[test]
fn a_head_that_moves_has_no_other_channel_visited() {
    let mut world = World::new(&QUIET);
    let channels: Vec<_> = (0..50).map(|_| world.another_channel()).collect();
    let _peers: Vec<_> = channels
        .iter()
        .map(|(channel, _)| world.arrive(channel, Start::Latest, Filter::default()))
        .collect();
    world.settle();
    for chosen in [7, 30, 7] {
        let (channel, memory) = &channels[chosen];
        memory.put("a", "x");
        world.runtime(50);
        world.take_in();
        let visited: Vec<_> = world
            .shard
            .live
            .iter()
            .map(|key| Arc::as_ptr(&world.shard.groups[*key].channel))
            .collect();
        assert_eq!(visited, [Arc::as_ptr(channel)]);
        world.settle();
    }
    assert_eq!(world.positions().iter().sum::<u64>(), 3, "they were delivered");
}
