//! What a pass found, part by part. Every verdict of the status and the time of the next pass
//! follow from it, and from nothing else: no reason is compared, and nothing is read back out of
//! the status.

use std::time::{Duration, Instant};

use crate::crd::condition::{
    Cause,
    ConditionStatus::{False, True, Unknown},
    EXPOSED, READY, RECONCILING, STALLED, STREAM_READY, Verdict, WORKLOAD_AVAILABLE, reason,
};

/// How it is with one part of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is as asked.
    Serving(Cause),
    /// It is not yet as asked, and becomes so without help.
    Settling {
        cause: Cause,
        /// Whether what was there before is served meanwhile.
        served: bool,
    },
    /// It is not as asked: that was seen.
    Blocked {
        cause: Cause,
        /// Whether the next attempt may succeed without a change from outside.
        transient: bool,
    },
    /// It could not be seen.
    Unknown(Cause),
    /// It could not be seen for a moment, and what was said of it last stays said.
    Kept {
        /// Why it could not be seen.
        cause: Cause,
        /// That it was as asked.
        said: Cause,
        /// The generation of which it was said.
        of: Option<i64>,
        /// Whether that is the newest one.
        newest: bool,
    },
    /// It is not as asked and is left so: by `managementPolicy: Observe`, until another part is
    /// as asked, or because its object's watch tells of every change.
    Left(Cause),
}

impl Outcome {
    /// What a condition that speaks of this part alone says.
    pub(super) fn verdict(&self, type_: &'static str) -> Verdict {
        let (status, cause) = match self {
            Self::Serving(cause) | Self::Settling { cause, served: true } => (True, cause),
            Self::Settling { cause, served: false }
            | Self::Blocked { cause, .. }
            | Self::Left(cause) => (False, cause),
            Self::Unknown(cause) => (Unknown, cause),
            Self::Kept { said, of, newest, .. } => {
                let of = if *newest { None } else { *of };
                let verdict = Verdict::new(type_, True, said.reason, said.message.clone());
                return Verdict { of, ..verdict };
            }
        };
        Verdict::new(type_, status, cause.reason, cause.message.clone())
    }

    /// What stands against `Ready`, also where the pods serve.
    fn objection(&self) -> Option<&Cause> {
        match self {
            Self::Settling { cause, served: false }
            | Self::Blocked { cause, transient: false }
            | Self::Left(cause) => Some(cause),
            _ => None,
        }
    }

    /// Why it is not known, or not the case, that this part is as asked, although it was before.
    fn doubt(&self) -> Option<&Cause> {
        match self {
            Self::Blocked { cause, transient: true } | Self::Unknown(cause) => Some(cause),
            _ => None,
        }
    }
}

/// That the status says that the channel is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WasReady {
    /// Of which generation.
    pub(crate) generation: Option<i64>,
    /// Pods that were ready then.
    pub(crate) pods: i32,
    /// In these words.
    pub(crate) message: String,
}

/// When to look again without being told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Soon, and then less and less often.
    Soon,
    /// As often as a channel that is as asked.
    Resync,
}

/// All parts of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) stream: Outcome,
    /// Whether the objects could be written.
    pub(crate) objects: Outcome,
    /// Whether there are enough pods.
    pub(crate) pods: Outcome,
    /// Whether each pod is of the newest template and serves the newest file.
    pub(crate) rollout: Outcome,
    /// Of no influence on `Ready`, `Reconciling` and `Stalled`: other controllers bring it about.
    pub(crate) exposure: Outcome,
    /// An object for which only time is needed. It is in the way of nothing that is served.
    pub(crate) pending: Option<Cause>,
    /// What differs, and was not (yet) repaired.
    pub(crate) drifted: Verdict,
    pub(crate) was_ready: Option<WasReady>,
    /// What `Ready` says where everything is as asked.
    pub(crate) summary: Cause,
}

impl Parts {
    /// All conditions, in the order of the status.
    pub(super) fn verdicts(&self) -> [Verdict; 7] {
        [
            self.ready(),
            self.stream.verdict(STREAM_READY),
            self.pods.verdict(WORKLOAD_AVAILABLE),
            self.exposure.verdict(EXPOSED),
            self.drifted.clone(),
            self.reconciling(),
            self.stalled(),
        ]
    }

    /// When to look again. What Kubernetes tells by itself needs no other look, but pods and
    /// HTTPRoutes are not watched.
    pub(crate) fn next(&self) -> Next {
        let all = [&self.stream, &self.objects, &self.pods, &self.rollout, &self.exposure];
        let is_open = |part: &&Outcome| match part {
            Outcome::Settling { .. }
            | Outcome::Blocked { transient: true, .. }
            | Outcome::Unknown(_)
            | Outcome::Kept { .. } => true,
            Outcome::Serving(_) | Outcome::Blocked { transient: false, .. } | Outcome::Left(_) => {
                false
            }
        };
        if all.iter().any(is_open) { Next::Soon } else { Next::Resync }
    }

    /// What decides whether the channel is ready; the first is told first.
    const fn needed(&self) -> [&Outcome; 4] {
        [&self.stream, &self.objects, &self.pods, &self.rollout]
    }

    fn ready(&self) -> Verdict {
        let needed = self.needed();
        let objected = needed.iter().any(|part| part.objection().is_some());
        let first = |of: &dyn Fn(&&Outcome) -> Option<Cause>| needed.iter().find_map(of);
        let no = |cause: Cause| Verdict::new(READY, False, cause.reason, cause.message);
        let doubt = first(&|part| part.doubt().cloned());
        let unfinished = || {
            first(&|part| match part {
                Outcome::Settling { cause, .. } => Some(cause.clone()),
                Outcome::Kept { cause, newest: false, .. } => Some(cause.clone()),
                _ => None,
            })
        };
        if objected {
            let why = first(&|part| part.objection().or(part.doubt()).cloned());
            return why.map_or_else(|| self.is_ready(), no);
        }
        match (doubt.or_else(unfinished), &self.was_ready) {
            (Some(why), None) => no(why),
            (Some(why), Some(was)) => {
                let message = format!("the channel is still served; {}", why.message);
                Verdict {
                    of: was.generation,
                    ..Verdict::new(READY, True, self.summary.reason, message)
                }
            }
            (None, Some(was)) if needed.iter().any(|part| matches!(part, Outcome::Kept { .. })) => {
                Verdict::new(READY, True, self.summary.reason, was.message.clone())
            }
            (None, _) => self.is_ready(),
        }
    }

    fn is_ready(&self) -> Verdict {
        Verdict::new(READY, True, self.summary.reason, self.summary.message.clone())
    }

    fn reconciling(&self) -> Verdict {
        let of = |why, cause: &Cause| Verdict::new(RECONCILING, True, why, cause.message.clone());
        let under_way = |part: &&Outcome| match part {
            Outcome::Settling { cause, .. } => Some(of(reason::PROGRESSING, cause)),
            Outcome::Kept { cause, newest: false, .. } => Some(of(reason::RETRYING, cause)),
            part => part.doubt().map(|cause| of(reason::RETRYING, cause)),
        };
        let idle = || Verdict::new(RECONCILING, False, reason::IDLE, "no changes in progress");
        // kstatus: what is stalled is not in progress.
        if self.stall().is_some() {
            return idle();
        }
        let pending = || Some(of(reason::PROGRESSING, self.pending.as_ref()?));
        self.needed().iter().find_map(under_way).or_else(pending).unwrap_or_else(idle)
    }

    fn stall(&self) -> Option<&Cause> {
        self.needed().into_iter().find_map(|part| match part {
            Outcome::Blocked { cause, transient: false } => Some(cause),
            _ => None,
        })
    }

    fn stalled(&self) -> Verdict {
        match self.stall() {
            Some(cause) => Verdict::new(STALLED, True, cause.reason, cause.message.clone()),
            None => Verdict::new(STALLED, False, reason::IDLE, "no blocking problems"),
        }
    }
}

/// First pause while something is not yet as asked; doubled each time, up to the resync.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// How long a channel has not been as asked.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    looks: u32,
    unsure_since: Option<Instant>,
}

impl Pace {
    /// Takes in whether the stream could be seen (`unsure`: it could not). Answers whether that is
    /// so for less than `grace`.
    pub(crate) fn is_within_grace(&mut self, unsure: bool, grace: Duration, now: Instant) -> bool {
        if !unsure {
            self.unsure_since = None;
            return false;
        }
        let since = *self.unsure_since.get_or_insert(now);
        now.saturating_duration_since(since) < grace
    }

    /// How long to wait, `longest` at most.
    pub(crate) fn pause(&mut self, next: Next, longest: Duration) -> Duration {
        match next {
            Next::Resync => {
                self.looks = 0;
                longest
            }
            Next::Soon => {
                let pause = FIRST_LOOK * 2_u32.saturating_pow(self.looks.min(10));
                self.looks = self.looks.saturating_add(1);
                pause.min(longest)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::condition::DRIFTED;

    fn cause(reason: &'static str) -> Cause {
        Cause::new(reason, reason)
    }

    fn serving() -> Outcome {
        Outcome::Serving(cause("AsAsked"))
    }

    fn settling(served: bool) -> Outcome {
        Outcome::Settling { cause: cause("Underway"), served }
    }

    fn blocked(transient: bool) -> Outcome {
        Outcome::Blocked { cause: cause("Refused"), transient }
    }

    fn unknown() -> Outcome {
        Outcome::Unknown(cause("Unseen"))
    }

    fn kept(newest: bool) -> Outcome {
        Outcome::Kept { cause: cause("Unseen"), said: cause("AsAsked"), of: Some(1), newest }
    }

    fn left() -> Outcome {
        Outcome::Left(cause("LeftSo"))
    }

    fn parts(was_ready: bool) -> Parts {
        let was = WasReady { generation: Some(1), pods: 1, message: "it was".to_owned() };
        Parts {
            stream: serving(),
            objects: serving(),
            pods: serving(),
            rollout: serving(),
            exposure: serving(),
            pending: None,
            drifted: Verdict::new(DRIFTED, False, reason::IN_SYNC, ""),
            was_ready: was_ready.then_some(was),
            summary: cause(reason::READY),
        }
    }

    fn told(parts: &Parts) -> String {
        let verdicts = parts.verdicts();
        let words = verdicts.iter().filter(|v| v.type_ != DRIFTED).map(|v| {
            let of = v.of.map_or_else(String::new, |of| format!("@{of}"));
            format!("{}/{}{of}", v.status.as_str(), v.reason)
        });
        format!("{} {:?}", words.collect::<Vec<_>>().join(" "), parts.next())
    }

    const OK: &str = "True/AsAsked";
    const IDLE: &str = "False/Idle";
    const READY_NOW: &str = "True/Ready";
    const STILL: &str = "True/Ready@1";
    const PROGRESSING: &str = "True/Progressing";
    const RETRYING: &str = "True/Retrying";

    /// An outcome; whether the channel was ready; then `Ready`, the part's own condition,
    /// `Reconciling`, `Stalled`, and the next look.
    type Row = (Outcome, bool, [&'static str; 5]);

    /// Every outcome as that of the stream.
    fn of_the_stream() -> Vec<Row> {
        vec![
            (serving(), false, [READY_NOW, OK, IDLE, IDLE, "Resync"]),
            (serving(), true, [READY_NOW, OK, IDLE, IDLE, "Resync"]),
            (settling(true), false, ["False/Underway", "True/Underway", PROGRESSING, IDLE, "Soon"]),
            (settling(true), true, [STILL, "True/Underway", PROGRESSING, IDLE, "Soon"]),
            (
                settling(false),
                true,
                ["False/Underway", "False/Underway", PROGRESSING, IDLE, "Soon"],
            ),
            (
                blocked(false),
                false,
                ["False/Refused", "False/Refused", IDLE, "True/Refused", "Resync"],
            ),
            (
                blocked(false),
                true,
                ["False/Refused", "False/Refused", IDLE, "True/Refused", "Resync"],
            ),
            (blocked(true), false, ["False/Refused", "False/Refused", RETRYING, IDLE, "Soon"]),
            (blocked(true), true, [STILL, "False/Refused", RETRYING, IDLE, "Soon"]),
            (unknown(), false, ["False/Unseen", "Unknown/Unseen", RETRYING, IDLE, "Soon"]),
            (unknown(), true, [STILL, "Unknown/Unseen", RETRYING, IDLE, "Soon"]),
            (kept(true), false, [READY_NOW, OK, IDLE, IDLE, "Soon"]),
            (kept(true), true, [READY_NOW, OK, IDLE, IDLE, "Soon"]),
            (kept(false), false, ["False/Unseen", "True/AsAsked@1", RETRYING, IDLE, "Soon"]),
            (kept(false), true, [STILL, "True/AsAsked@1", RETRYING, IDLE, "Soon"]),
            (left(), false, ["False/LeftSo", "False/LeftSo", IDLE, IDLE, "Resync"]),
            (left(), true, ["False/LeftSo", "False/LeftSo", IDLE, IDLE, "Resync"]),
        ]
    }

    /// What others bring about stands in the way of nothing.
    fn of_the_exposure() -> Vec<Row> {
        vec![
            (settling(false), false, [READY_NOW, "False/Underway", IDLE, IDLE, "Soon"]),
            (blocked(true), false, [READY_NOW, "False/Refused", IDLE, IDLE, "Soon"]),
            (blocked(false), false, [READY_NOW, "False/Refused", IDLE, IDLE, "Resync"]),
            (left(), false, [READY_NOW, "False/LeftSo", IDLE, IDLE, "Resync"]),
        ]
    }

    #[test]
    fn all_verdicts_and_the_next_look_follow_from_the_outcomes() {
        for (outcome, was_ready, [ready, own, reconciling, stalled, next]) in of_the_stream() {
            let rest = |own: [&str; 3]| {
                let [stream, pods, exposed] = own;
                format!("{ready} {stream} {pods} {exposed} {reconciling} {stalled} {next}")
            };
            let all = || parts(was_ready);
            let what = format!("{outcome:?}, was ready: {was_ready}");
            let stream = Parts { stream: outcome.clone(), ..all() };
            assert_eq!(told(&stream), rest([own, OK, OK]), "stream {what}");
            // The same holds of the pods, and of the parts that have no condition of their own.
            let pods = Parts { pods: outcome.clone(), ..all() };
            assert_eq!(told(&pods), rest([OK, own, OK]), "pods {what}");
            let rollout = Parts { rollout: outcome.clone(), ..all() };
            assert_eq!(told(&rollout), rest([OK, OK, OK]), "rollout {what}");
            let objects = Parts { objects: outcome, ..all() };
            assert_eq!(told(&objects), rest([OK, OK, OK]), "objects {what}");
        }
        for (exposure, _, [ready, own, reconciling, stalled, next]) in of_the_exposure() {
            let parts = Parts { exposure, ..parts(false) };
            let expected = format!("{ready} {OK} {OK} {own} {reconciling} {stalled} {next}");
            assert_eq!(told(&parts), expected);
        }
        // Of several, the stream comes first, and what is blocked before what is under way.
        let several = Parts { stream: unknown(), pods: settling(false), ..parts(true) };
        assert!(told(&several).starts_with("False/Unseen Unknown/Unseen False/Underway"));
        let several = Parts { stream: settling(true), rollout: blocked(false), ..parts(true) };
        assert!(told(&several).starts_with("False/Refused"));
        assert!(told(&several).ends_with("False/Idle True/Refused Soon"));
    }

    #[test]
    fn looks_become_rare_while_something_is_not_as_asked() {
        let (mut pace, longest) = (Pace::default(), Duration::from_secs(30));
        let soon: Vec<_> = (0..7).map(|_| pace.pause(Next::Soon, longest).as_secs()).collect();
        assert_eq!(soon, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pace.pause(Next::Resync, longest), longest);
        assert_eq!(pace.pause(Next::Soon, longest).as_secs(), 1);
    }

    #[test]
    fn the_grace_begins_with_the_first_miss_and_ends_with_an_answer() {
        let (mut pace, start, grace) = (Pace::default(), Instant::now(), Duration::from_secs(30));
        let mut at = |second, unsure| {
            pace.is_within_grace(unsure, grace, start + Duration::from_secs(second))
        };
        assert_eq!(
            [at(0, false), at(10, true), at(39, true), at(40, true), at(41, false), at(42, true)],
            [false, true, true, false, false, true]
        );
    }
}
