//! The pods: what the Deployment, the pods themselves and the autoscaler say.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentCondition},
        autoscaling::v2::HorizontalPodAutoscaler,
    },
    jiff::Timestamp,
};

use super::{Observation, Workload, outcome::Outcome};
use crate::{
    controller::{
        desired::selector_text,
        pods::{Pods, Serves, Weight, config_refused, quoted},
    },
    crd::{
        condition::{Cause, reason},
        status::WorkloadStatus,
    },
    english::count,
};

pub(super) const SCALED_TO_ZERO: &str =
    "spec.workload.replicas is 0: no pod serves the channel, as asked";

/// How long an autoscaler may have no numbers before it is told: new pods have none for a while.
const METRICS_PATIENCE_SECONDS: i64 = 120;

/// Whether there are enough pods, and whether each is as asked.
pub(super) fn outcomes(seen: &Observation<'_>) -> (Outcome, Outcome) {
    let none = |outcome: Outcome| {
        // What there is none of is not to be rolled out.
        (outcome, Outcome::Serving(Cause::new(reason::IN_SYNC, "")))
    };
    match &seen.workload {
        Workload::Waiting => none(Outcome::Left(Cause::new(
            reason::PENDING,
            "pods are made once the stream is known to be this channel's",
        ))),
        Workload::Failed(error) => none(super::failure(error, false)),
        Workload::Seen { deployment: None, .. } => {
            none(Outcome::Left(Cause::new(reason::SERVER_DIFFERS, "there is no Deployment")))
        }
        Workload::Seen { deployment: Some(deployment), pods, generation } => {
            let replicas = Replicas::of(deployment);
            let obstacle = obstacle(deployment, pods);
            let was_ready = seen.was_ready.as_ref().map(|was| was.pods);
            (
                enough(&replicas, obstacle.clone(), was_ready),
                rollout(&replicas, obstacle, pods, *generation, was_ready.is_some()),
            )
        }
    }
}

/// `status.workload`.
pub(super) fn counts(seen: &Observation<'_>) -> Option<WorkloadStatus> {
    let Workload::Seen { deployment: Some(deployment), .. } = &seen.workload else { return None };
    let replicas = Replicas::of(deployment);
    Some(WorkloadStatus {
        replicas: replicas.all,
        ready_replicas: replicas.ready,
        ready: format!("{}/{}", replicas.ready, replicas.wanted),
        updated_replicas: replicas.updated,
        selector: selector_text(seen.name),
    })
}

/// Pods that the Deployment asks for.
pub(super) fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Numbers of pods.
struct Replicas {
    wanted: i32,
    all: i32,
    updated: i32,
    ready: i32,
    /// Whether the Deployment's controller has taken in what is asked.
    current: bool,
}

impl Replicas {
    fn of(deployment: &Deployment) -> Self {
        let status = deployment.status.as_ref();
        let number = |of: Option<i32>| of.unwrap_or_default();
        Self {
            wanted: wanted(deployment),
            all: number(status.and_then(|status| status.replicas)),
            updated: number(status.and_then(|status| status.updated_replicas)),
            ready: number(status.and_then(|status| status.ready_replicas)),
            current: status.and_then(|status| status.observed_generation)
                >= deployment.metadata.generation,
        }
    }

    fn are_rolling(&self) -> bool {
        !self.current
            || self.updated < self.wanted
            || self.all > self.updated
            || self.all > self.wanted
    }

    fn under_way(&self) -> Cause {
        let (wanted, ready) = (pods_text(self.wanted), self.ready);
        let message =
            format!("rollout in progress: {} of {wanted} updated, {ready} ready", self.updated);
        Cause::new(reason::ROLLOUT_IN_PROGRESS, message)
    }
}

fn pods_text(number: i32) -> String {
    count(usize::try_from(number).unwrap_or_default(), "pod")
}

/// Pods are enough where as many are ready as are asked for. Where more are asked for than before,
/// those that served before are enough until the new ones are there.
fn enough(replicas: &Replicas, obstacle: Option<Obstacle>, was_ready: Option<i32>) -> Outcome {
    let Replicas { wanted, ready, current, .. } = *replicas;
    if wanted == 0 {
        return Outcome::Serving(Cause::new(reason::SCALED_TO_ZERO, SCALED_TO_ZERO));
    }
    if current && ready >= wanted {
        let message = format!("{} ready", pods_text(wanted));
        return Outcome::Serving(Cause::new(reason::MINIMUM_REPLICAS_AVAILABLE, message));
    }
    let not_ready = || {
        let message = format!("{ready} of {} ready", pods_text(wanted));
        Cause::new(reason::PODS_NOT_READY, message)
    };
    if was_ready.is_some_and(|before| ready >= before.min(wanted).max(1)) {
        let but = obstacle.map(|obstacle| format!("; {}", obstacle.cause.message));
        let message = not_ready().message + &but.unwrap_or_default();
        let cause = Cause::new(reason::MINIMUM_REPLICAS_AVAILABLE, message);
        return Outcome::Settling { cause, served: true };
    }
    match obstacle {
        Some(obstacle) => obstacle.outcome(false),
        None if replicas.are_rolling() => {
            Outcome::Settling { cause: replicas.under_way(), served: false }
        }
        None => Outcome::Settling { cause: not_ready(), served: false },
    }
}

fn rollout(
    replicas: &Replicas,
    obstacle: Option<Obstacle>,
    pods: &Pods,
    generation: i64,
    was_ready: bool,
) -> Outcome {
    if replicas.wanted == 0 {
        return Outcome::Serving(Cause::new(reason::SCALED_TO_ZERO, SCALED_TO_ZERO));
    }
    if !replicas.are_rolling() {
        // More are asked for than before, and one of the new ones does not come up.
        return match obstacle.filter(|_| replicas.ready < replicas.wanted) {
            Some(obstacle) => obstacle.outcome(was_ready),
            None => loading(pods, generation, was_ready),
        };
    }
    match obstacle {
        Some(obstacle) => obstacle.outcome(was_ready),
        None => Outcome::Settling { cause: replicas.under_way(), served: was_ready },
    }
}

/// Whether all ready pods serve `generation`. Where they did when last heard of (`was_ready`), pods
/// that were not asked yet are no reason to say otherwise.
fn loading(pods: &Pods, generation: i64, was_ready: bool) -> Outcome {
    let late = |serves: &Serves| match serves {
        Serves::Generation(served) => *served != generation,
        Serves::Unasked => !was_ready,
        Serves::Nothing | Serves::Unreachable => true,
    };
    let unreachable = pods.ready.iter().find(|(_, serves)| *serves == Serves::Unreachable);
    if let Some((pod, _)) = unreachable {
        let message = format!(
            "the admin port of pod {pod} cannot be reached from the operator, so it is not known what it serves; allow it in network policies"
        );
        let cause = Cause::new(reason::POD_UNREACHABLE, message);
        return Outcome::Settling { cause, served: false };
    }
    let is_late = pods.ready.iter().any(|(_, serves)| late(serves));
    if let Some(why) = pods.refused.as_deref().filter(|_| is_late) {
        return Outcome::Blocked { cause: config_refused(why), transient: false };
    }
    if is_late {
        let message = format!(
            "waiting for pods to load the new configuration (generation {generation}); this takes up to a minute"
        );
        let serves_nothing = pods.ready.iter().any(|(_, serves)| *serves == Serves::Nothing);
        return Outcome::Settling {
            cause: Cause::new(reason::CONFIG_PROPAGATING, message),
            served: was_ready && !serves_nothing,
        };
    }
    Outcome::Serving(Cause::new(reason::IN_SYNC, "every pod serves this generation"))
}

/// What keeps new pods from coming up.
#[derive(Debug, Clone)]
struct Obstacle {
    cause: Cause,
    weight: Weight,
}

impl Obstacle {
    /// `served`: whether pods of before serve.
    fn outcome(self, served: bool) -> Outcome {
        let Self { cause, weight } = self;
        match weight {
            Weight::Passing => Outcome::Settling { cause, served },
            Weight::Failing => Outcome::Settling { cause, served: false },
            Weight::Lasting => Outcome::Blocked { cause, transient: false },
        }
    }
}

fn obstacle(deployment: &Deployment, pods: &Pods) -> Option<Obstacle> {
    let conditions = deployment.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let find = |type_: &str, status: &str| {
        conditions.clone().find(|c| c.type_ == type_ && c.status == status)
    };
    let of_pods = || {
        let trouble = pods.trouble.clone()?;
        Some(Obstacle { cause: trouble.cause, weight: trouble.weight })
    };
    let found = find("ReplicaFailure", "True").map(pods_refused).or_else(of_pods);
    let late = find("Progressing", "False")
        .filter(|c| c.reason.as_deref() == Some("ProgressDeadlineExceeded"));
    match (found, late) {
        (Some(found), Some(_)) => Some(Obstacle { weight: Weight::Lasting, ..found }),
        (None, Some(late)) => {
            let words = quoted(late.message.as_deref().unwrap_or_default());
            let message = format!("the pods make no progress: {words}; see their Events and logs");
            let cause = Cause::new(reason::PROGRESS_DEADLINE_EXCEEDED, message);
            Some(Obstacle { cause, weight: Weight::Lasting })
        }
        (found, None) => found,
    }
}

/// Why the ReplicaSet cannot make a pod. Its words begin with a name that the pod would have had,
/// which is another one at each attempt.
fn pods_refused(condition: &DeploymentCondition) -> Obstacle {
    let words = condition.message.as_deref().unwrap_or_default();
    let (words, is_forbidden) = match words.split_once(" is forbidden: ") {
        Some((_, words)) => (words, true),
        None => (words, false),
    };
    let why = if is_forbidden && words.contains("exceeded quota") {
        reason::QUOTA_EXCEEDED
    } else {
        reason::PODS_REFUSED
    };
    let message = format!("the API server refuses the pods: {}", quoted(words));
    // A rule of the cluster stays until it is changed; a webhook may only be away.
    let weight = if is_forbidden { Weight::Lasting } else { Weight::Failing };
    Obstacle { cause: Cause::new(why, message), weight }
}

/// Why the number of pods does not follow the use of the processor.
pub(super) fn not_scaled(scaler: &HorizontalPodAutoscaler, now: Timestamp) -> Option<String> {
    let conditions = scaler.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let inactive = conditions.into_iter().find(|c| {
        // It is switched off where there are no pods, as asked.
        let off = c.reason.as_deref() == Some("ScalingDisabled");
        c.type_ == "ScalingActive" && c.status == "False" && !off
    })?;
    let since = inactive.last_transition_time.as_ref()?.0;
    if now.as_second() - since.as_second() < METRICS_PATIENCE_SECONDS {
        return None;
    }
    let words = quoted(inactive.message.as_deref().unwrap_or_default());
    Some(format!("not scaled by the use of the processor: {words}"))
}
