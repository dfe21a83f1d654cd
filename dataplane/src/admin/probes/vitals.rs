//! Whether all that has to go on does.

use crate::pulse::Pulse;

/// Ticks of the probes' own thread, seconds at least, after which what has not gone on is dead. A
/// machine that is busy gives each thread its turn long before.
const DEAD_TICKS: u32 = 20;

#[derive(Debug)]
pub(super) struct Vitals(Vec<Sign>);

#[derive(Debug)]
struct Sign {
    name: String,
    pulse: Pulse,
    last: u64,
    /// Ticks since it was seen to go on.
    stood: u32,
}

impl Vitals {
    pub(super) fn new(signs: Vec<(String, Pulse)>) -> Self {
        let sign =
            |(name, pulse): (String, Pulse)| Sign { name, last: pulse.count(), pulse, stood: 0 };
        Self(signs.into_iter().map(sign).collect())
    }

    /// To be called about once in a second.
    pub(super) fn tick(&mut self) {
        for sign in &mut self.0 {
            let count = sign.pulse.count();
            sign.stood = if count == sign.last { sign.stood.saturating_add(1) } else { 0 };
            sign.last = count;
        }
    }

    /// What is dead, if anything.
    pub(super) fn dead(&self) -> Option<&str> {
        self.0.iter().find(|sign| sign.stood >= DEAD_TICKS).map(|sign| sign.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_still_is_dead_until_it_goes_on() {
        let (first, second) = (Pulse::default(), Pulse::default());
        let signs = vec![("a".to_owned(), first.clone()), ("b".to_owned(), second.clone())];
        let mut vitals = Vitals::new(signs);
        for _ in 0..DEAD_TICKS {
            assert_eq!(vitals.dead(), None);
            first.beat();
            vitals.tick();
        }
        assert_eq!(vitals.dead(), Some("b"));
        second.beat();
        vitals.tick();
        assert_eq!(vitals.dead(), None);
        for _ in 0..DEAD_TICKS {
            vitals.tick();
        }
        assert_eq!(vitals.dead(), Some("a"));
    }
}
