use tokio::{sync::mpsc, task::JoinHandle};

use super::*;

const FOREVER: Duration = Duration::from_secs(365 * 86_400);

fn channel(namespace: &str, name: &str) -> Channel {
    ObjectRef::new(name).within(namespace)
}

fn gate(slots: usize) -> Arc<Gate> {
    Gate::new(slots, Arc::default())
}

/// Passes that give their names when they begin, and end when they are told to.
struct Passes {
    gate: Arc<Gate>,
    begin: mpsc::UnboundedSender<(String, Slot)>,
    begun: mpsc::UnboundedReceiver<(String, Slot)>,
}

impl Passes {
    fn through(gate: &Arc<Gate>) -> Self {
        let (begin, begun) = mpsc::unbounded_channel();
        Self { gate: Arc::clone(gate), begin, begun }
    }

    async fn queue(&self, cause: Cause, namespace: &str, name: &str) {
        drop(self.start(cause, namespace, name).await);
    }

    /// A pass that waits by now, or has its slot.
    async fn start(&self, cause: Cause, namespace: &str, name: &str) -> JoinHandle<()> {
        let (gate, channel) = (Arc::clone(&self.gate), channel(namespace, name));
        match cause {
            Cause::Edit => {}
            Cause::Change => gate.look_after(&channel, FOREVER),
            Cause::Look => gate.look_after(&channel, Duration::ZERO),
        }
        let begin = self.begin.clone();
        let pass = tokio::spawn(async move {
            let slot = gate.enter(&channel, cause == Cause::Edit, 1, FOREVER).await;
            if let Some(slot) = slot {
                let _ =
                    begin.send((format!("{}/{}", channel.namespace.unwrap(), channel.name), slot));
            }
        });
        settle().await;
        pass
    }

    /// The pass that begins next.
    fn next(&mut self) -> Option<(String, Slot)> {
        self.begun.try_recv().ok()
    }

    /// Lets one pass after the other begin and end, `first` being under way; their names.
    async fn one_after_the_other(&mut self, first: Slot, count: usize) -> Vec<String> {
        let (mut names, mut slot) = (Vec::new(), first);
        for _ in 0..count {
            drop(slot);
            settle().await;
            let (name, next) = self.next().expect("a slot is free and a pass waits");
            names.push(name);
            slot = next;
        }
        names
    }
}

async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

/// A gate of one slot, the slot, and what waits for it.
async fn busy() -> (Passes, Slot) {
    let mut passes = Passes::through(&gate(1));
    passes.queue(Cause::Edit, "busy", "first").await;
    let (_, slot) = passes.next().unwrap();
    (passes, slot)
}

#[tokio::test]
async fn edits_go_before_changes_and_those_before_looks() {
    let (mut passes, slot) = busy().await;
    for n in 0..50 {
        passes.queue(Cause::Look, "a", &format!("look-{n}")).await;
    }
    passes.queue(Cause::Change, "a", "change").await;
    passes.queue(Cause::Edit, "a", "edit").await;
    let order = passes.one_after_the_other(slot, 3).await;
    assert_eq!(order, ["a/edit", "a/change", "a/look-0"]);
}

#[tokio::test]
async fn looks_get_their_part_however_many_edits_there_are() {
    let (mut passes, slot) = busy().await;
    for n in 0..200 {
        passes.queue(Cause::Edit, "a", &format!("edit-{n}")).await;
    }
    for n in 0..10 {
        passes.queue(Cause::Look, "b", &format!("look-{n}")).await;
    }
    let order = passes.one_after_the_other(slot, 90).await;
    let looks = order.iter().filter(|name| name.starts_with("b/")).count();
    assert!(looks >= 9, "{looks} looks among {order:?}");
}

#[tokio::test]
async fn namespaces_take_turns() {
    let (mut passes, slot) = busy().await;
    for n in 0..100 {
        passes.queue(Cause::Edit, "large", &format!("{n}")).await;
    }
    passes.queue(Cause::Edit, "small", "one").await;
    let order = passes.one_after_the_other(slot, 2).await;
    assert_eq!(order, ["large/0", "small/one"]);
}

#[tokio::test]
async fn no_namespace_holds_all_slots() {
    for slots in [2, 3, 4, 16] {
        let mut passes = Passes::through(&gate(slots));
        let mut held = Vec::new();
        for n in 0..100 {
            passes.queue(Cause::Edit, "slow", &format!("{n}")).await;
            held.extend(passes.next());
        }
        assert!(held.len() < slots && held.len() >= slots / 2, "{} of {slots}", held.len());
        for cause in CAUSES {
            passes.queue(cause, "other", "one").await;
            assert_eq!(passes.next().unwrap().0, "other/one", "{cause:?}");
        }
    }
}

#[tokio::test]
async fn one_slot_is_enough() {
    let (passes, slot) = busy().await;
    drop(slot);
    passes.queue(Cause::Look, "busy", "second").await;
    assert!({ passes }.next().is_some());
}

#[tokio::test]
async fn a_pass_that_waits_goes_with_the_edits_once_its_channel_is_edited() {
    let (mut passes, slot) = busy().await;
    for n in 0..50 {
        passes.queue(Cause::Look, "a", &format!("{n}")).await;
    }
    passes.gate.edited(&channel("a", "42"));
    assert_eq!(passes.one_after_the_other(slot, 1).await, ["a/42"]);
}

#[tokio::test(start_paused = true)]
async fn first_looks_are_spread_and_edits_are_not() {
    let (gate, started) = (gate(16), tokio::time::Instant::now());
    let longest = Duration::from_secs(30);
    let mut looks = tokio::task::JoinSet::new();
    for n in 0..1_000 {
        let (gate, channel) = (Arc::clone(&gate), channel("a", &format!("{n}")));
        looks.spawn(async move {
            let slot = gate.enter(&channel, false, 1_000, longest).await;
            (slot.is_some(), started.elapsed())
        });
    }
    // One is edited meanwhile, one was from the beginning.
    settle().await;
    gate.edited(&channel("a", "7"));
    let edited = gate.enter(&channel("b", "edited"), true, 1_000, longest).await;
    assert!(edited.is_some() && started.elapsed() < Duration::from_millis(1));
    let mut times = Vec::new();
    while let Some(Ok((entered, time))) = looks.join_next().await {
        assert!(entered);
        times.push(time);
    }
    times.sort();
    assert!(times[0] < Duration::from_millis(1), "the edited one: {:?}", times[0]);
    assert!(times[999] <= SPREAD * 1_000 + Duration::from_millis(2), "{:?}", times[999]);
    for second in 0..20 {
        let within = Duration::from_secs(second)..Duration::from_secs(second + 1);
        let count = times.iter().filter(|time| within.contains(*time)).count();
        assert!((15..110).contains(&count), "{count} first looks in second {second}");
    }
}

#[tokio::test]
async fn a_pass_that_is_cut_off_holds_no_place_and_no_slot() {
    let (mut passes, slot) = busy().await;
    let waits = passes.start(Cause::Edit, "a", "cut-off").await;
    waits.abort();
    settle().await;
    assert_eq!(passes.gate.inner.lock().waiting.iter().map(Turns::len).sum::<usize>(), 0);
    passes.queue(Cause::Edit, "a", "next").await;
    assert_eq!(passes.one_after_the_other(slot, 1).await, ["a/next"]);
    settle().await;
    let inner = passes.gate.inner.lock();
    assert!(inner.total == 0 && inner.running.is_empty(), "{:?}", inner.running);
}

#[tokio::test]
async fn no_pass_begins_behind_a_closed_gate() {
    let (mut passes, slot) = busy().await;
    let waits = passes.start(Cause::Edit, "a", "waits").await;
    let first = Arc::clone(&passes.gate);
    let first = tokio::spawn(async move {
        first.enter(&channel("a", "first"), false, 1_000_000, FOREVER).await.is_none()
    });
    settle().await;
    passes.gate.close();
    waits.await.unwrap();
    assert!(first.await.unwrap());
    drop(slot);
    assert!(passes.next().is_none());
    assert!(passes.gate.enter(&channel("a", "late"), true, 1, FOREVER).await.is_none());
}

#[tokio::test]
async fn the_queue_can_be_observed() {
    let metrics = Arc::new(Metrics::default());
    let mut passes = Passes::through(&Gate::new(1, Arc::clone(&metrics)));
    for cause in [Cause::Edit, Cause::Look, Cause::Look] {
        let _ =
            passes.queue(cause, "a", &format!("{cause:?}-{}", passes.gate.inner.lock().ids)).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let value = |name: &str| {
        let text = metrics.text().unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).expect(name).to_owned();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let depth = |priority| {
        value(&format!(
            "workqueue_depth{{controller=\"ssechannel\",name=\"ssechannel\",priority=\"{priority}\"}}"
        ))
    };
    assert_eq!((depth("edit"), depth("change"), depth("look")), (0.0, 0.0, 2.0));
    assert!(value("workqueue_oldest_age_seconds") >= 0.02);
    assert_eq!(value("controller_runtime_active_workers"), 1.0);
    assert_eq!(value("workqueue_adds_total"), 3.0);
    let (_, slot) = passes.next().unwrap();
    passes.one_after_the_other(slot, 2).await;
    settle().await;
    assert_eq!(depth("look"), 0.0);
    assert_eq!(value("workqueue_oldest_age_seconds"), 0.0);
    assert_eq!(value("workqueue_queue_duration_seconds_count"), 3.0);
}
