//! How much a run sends, and from which seed.
//!
//! `make hostile` sets `HOSTILE_LONG`; `make test` runs seconds of each part. `HOSTILE_SEED`
//! repeats a run.

use std::time::Duration;

use rand::{SeedableRng, rngs::StdRng};

/// Longest answer of a probe in a long run, where nothing else runs on the machine.
const PROBE: Duration = Duration::from_millis(500);
/// The kubelet's time for a probe: beside other suites the test itself waits for its turn, too.
const PROBE_OF_KUBELET: Duration = Duration::from_secs(2);

pub(crate) fn is_long() -> bool {
    std::env::var_os("HOSTILE_LONG").is_some_and(|value| !value.is_empty())
}

/// One of the two, by the kind of run.
pub(crate) fn of<T>(short: T, long: T) -> T {
    if is_long() { long } else { short }
}

/// How long a probe may take.
pub(crate) fn probe() -> Duration {
    of(PROBE_OF_KUBELET, PROBE)
}

/// What a run begins with that names no seed: the same each time in `make test`, so that a change
/// is judged by what it changes; any in a long one.
fn default_seed() -> u64 {
    if is_long() { rand::random() } else { 0x5e5e }
}

/// A generator for the part `name`, from the run's seed; prints how to repeat it.
pub(crate) fn rng(name: &str) -> StdRng {
    let text = std::env::var("HOSTILE_SEED").ok().filter(|text| !text.is_empty());
    let seed = text.map_or_else(default_seed, |text| {
        text.parse().unwrap_or_else(|_| panic!("HOSTILE_SEED={text:?} is no number"))
    });
    eprintln!("{name}: HOSTILE_SEED={seed}");
    StdRng::seed_from_u64(seed)
}
