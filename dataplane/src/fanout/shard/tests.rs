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

use proptest::prelude::*;

use sluice_channel::Filter;
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
        Step::Events(_, _, checkpoint) => Some(checkpoint),
        _ => None,
    });
    subscriber.roll_back(checkpoint.expect("events are there"));
    let Step::Write(parts) = subscriber.step(head, now + 2 * HEARTBEAT) else {
        panic!("a heartbeat")
    };
    let text = String::from_utf8(parts.concat()).unwrap();
    assert_eq!(text, "id: 00000001-1024\nevent: channel.cursor\ndata: \n\n");
}
