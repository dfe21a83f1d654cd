//! The queue of passes and the passes themselves, under the names that controller-runtime gave
//! such metrics: dashboards and alerts that exist find them.

use std::{
    sync::atomic::AtomicI64,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// The one controller of this program.
const CONTROLLER: &str = "ssechannel";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    controller: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result {
    controller: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Named {
    controller: &'static str,
    name: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Depth {
    controller: &'static str,
    name: &'static str,
    priority: &'static str,
}

const OF: Of = Of { controller: CONTROLLER };
const NAMED: Named = Named { controller: CONTROLLER, name: CONTROLLER };

type Level = Gauge<i64, AtomicI64>;

/// Counters of the queue; shared by reference.
pub(crate) struct Queue {
    results: Family<Result, Counter>,
    errors: Family<Of, Counter>,
    panics: Family<Of, Counter>,
    took: Family<Of, Histogram>,
    active: Family<Of, Level>,
    slots: Family<Of, Level>,
    depth: Family<Depth, Level>,
    adds: Family<Named, Counter>,
    retries: Family<Named, Counter>,
    waited: Family<Named, Histogram>,
    oldest_age: Family<Named, Gauge<f64, std::sync::atomic::AtomicU64>>,
    /// Since when the pass waits that has waited longest.
    oldest: Mutex<Option<Instant>>,
}

impl Queue {
    pub(super) fn register(registry: &mut Registry) -> Self {
        // From one answer of the API server to the time limits of NATS added up.
        let took: Family<Of, Histogram> = Family::new_with_constructor(|| {
            Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
        });
        // controller-runtime's: a free slot is taken within microseconds.
        let waited: Family<Named, Histogram> = Family::new_with_constructor(|| {
            Histogram::new([1e-6, 1e-5, 1e-4, 0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0])
        });
        let (results, errors, panics) = (Family::default(), Family::default(), Family::default());
        let (active, slots, depth) = (Family::default(), Family::default(), Family::default());
        let (adds, retries, oldest_age) = (Family::default(), Family::default(), Family::default());
        let text = "Passes over channels by result: success, requeue_after or error";
        registry.register("controller_runtime_reconcile", text, Family::clone(&results));
        let text = "Passes that were cut short by an error";
        registry.register("controller_runtime_reconcile_errors", text, Family::clone(&errors));
        let text = "Passes that a defect of this program ended";
        registry.register("controller_runtime_reconcile_panics", text, Family::clone(&panics));
        let text = "Duration of a pass";
        registry.register_with_unit(
            "controller_runtime_reconcile_time",
            text,
            Unit::Seconds,
            took.clone(),
        );
        let text = "Passes under way";
        registry.register("controller_runtime_active_workers", text, Family::clone(&active));
        let text = "Passes that may be under way at a time";
        registry.register(
            "controller_runtime_max_concurrent_reconciles",
            text,
            Family::clone(&slots),
        );
        let text = "Passes that wait for a slot, by priority: edit, change or look";
        registry.register("workqueue_depth", text, Family::clone(&depth));
        let text = "Passes that were queued";
        registry.register("workqueue_adds", text, Family::clone(&adds));
        let text = "Passes that are to be repeated after a failure";
        registry.register("workqueue_retries", text, Family::clone(&retries));
        let text = "How long a pass waited for its slot";
        registry.register_with_unit(
            "workqueue_queue_duration",
            text,
            Unit::Seconds,
            waited.clone(),
        );
        let text = "How long the pass has waited that waits longest";
        registry.register_with_unit(
            "workqueue_oldest_age",
            text,
            Unit::Seconds,
            Family::clone(&oldest_age),
        );
        Self {
            results,
            errors,
            panics,
            took,
            active,
            slots,
            depth,
            adds,
            retries,
            waited,
            oldest_age,
            oldest: Mutex::default(),
        }
    }

    /// A pass is over; `failed` says whether it was cut short, else `again` whether it is to be
    /// repeated at a time that is known.
    pub(crate) fn reconciled(&self, failed: bool, again: bool, took: Duration) {
        let result = match (failed, again) {
            (true, _) => "error",
            (false, true) => "requeue_after",
            (false, false) => "success",
        };
        self.results.get_or_create(&Result { controller: CONTROLLER, result }).inc();
        if failed {
            self.errors.get_or_create(&OF).inc();
            self.retries.get_or_create(&NAMED).inc();
        }
        self.took.get_or_create(&OF).observe(took.as_secs_f64());
    }

    pub(crate) fn panicked(&self) {
        self.panics.get_or_create(&OF).inc();
    }

    pub(crate) fn slots(&self, slots: usize) {
        self.slots.get_or_create(&OF).set(i64::try_from(slots).unwrap_or(i64::MAX));
    }

    pub(crate) fn added(&self) {
        self.adds.get_or_create(&NAMED).inc();
    }

    /// A pass has its slot.
    pub(crate) fn admitted(&self, waited: Duration) {
        self.waited.get_or_create(&NAMED).observe(waited.as_secs_f64());
    }

    /// How many passes wait, by priority, since when the oldest does, and how many are under way.
    pub(crate) fn stands(
        &self,
        depths: impl IntoIterator<Item = (&'static str, usize)>,
        oldest: Option<Instant>,
        active: usize,
    ) {
        let level = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (priority, depth) in depths {
            let labels = Depth { controller: CONTROLLER, name: CONTROLLER, priority };
            self.depth.get_or_create(&labels).set(level(depth));
        }
        self.active.get_or_create(&OF).set(level(active));
        *self.oldest.lock() = oldest;
    }

    /// Brings what depends on the time up to date.
    pub(super) fn refresh(&self) {
        let age = self.oldest.lock().map_or(0.0, |since| since.elapsed().as_secs_f64());
        self.oldest_age.get_or_create(&NAMED).set(age);
    }
}
