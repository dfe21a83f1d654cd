//! Types of the conditions and every reason that one can have, each with its fix.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// The channel is served; `observedGeneration` is the newest generation that is served wholly, the
/// stream in sync and every ready pod with its file.
pub const READY: &str = "Ready";
/// The stream exists, is this channel's, and is as the spec says.
pub const STREAM_READY: &str = "StreamReady";
/// The pods are there and serve.
pub const WORKLOAD_AVAILABLE: &str = "WorkloadAvailable";
/// The channel is reachable from outside as asked.
pub const EXPOSED: &str = "Exposed";
/// What exists differs from the spec and was not (yet) repaired.
pub const DRIFTED: &str = "Drifted";
/// Changes are in progress (kstatus).
pub const RECONCILING: &str = "Reconciling";
/// Nothing more will happen without a change from outside (kstatus).
pub const STALLED: &str = "Stalled";

/// The namespace may ask for what the spec says. Judged before anything is looked at: what does not
/// fit is not applied, and what there is goes on.
pub const ACCEPTED: &str = "Accepted";

/// Every type, in the order of the status; all are always present. `Accepted` is judged apart.
#[cfg(test)]
pub const TYPES: [&str; 7] =
    [READY, STREAM_READY, WORKLOAD_AVAILABLE, EXPOSED, DRIFTED, RECONCILING, STALLED];

/// Reasons of all conditions. A reason is part of the API: scripts and alerts match on it.
pub mod reason {
    /// Everything that Ready asks for holds.
    pub const READY: &str = "Ready";
    /// What exists is what the spec says.
    pub const IN_SYNC: &str = "InSync";
    /// Enough pods are ready.
    pub const MINIMUM_REPLICAS_AVAILABLE: &str = "MinimumReplicasAvailable";
    /// `workload.replicas` is 0, as asked.
    pub const SCALED_TO_ZERO: &str = "ScaledToZero";
    /// The Ingress has an address, or every Gateway has taken the HTTPRoute.
    pub const ACCEPTED: &str = "Accepted";
    /// The namespace may not ask for what the spec says. Fix: as the message says, an annotation of
    /// the Namespace.
    pub const NOT_GRANTED: &str = "NotGranted";
    /// Nothing was asked for.
    pub const NOT_REQUESTED: &str = "NotRequested";
    /// Not looked at yet, or something before it failed.
    pub const PENDING: &str = "Pending";
    /// `managementPolicy: Paused`.
    pub const PAUSED: &str = "Paused";
    /// No changes are in progress.
    pub const IDLE: &str = "Idle";
    /// A change is in progress.
    pub const PROGRESSING: &str = "Progressing";
    /// An attempt failed and will be repeated.
    pub const RETRYING: &str = "Retrying";
    /// The channel is being deleted.
    pub const DELETING: &str = "Deleting";
    /// What exists differs from the spec and `managementPolicy: Observe` forbids the repair.
    pub const SERVER_DIFFERS: &str = "ServerDiffers";

    /// NATS has not answered for longer than `--nats-grace`. Fix: start it, or correct the
    /// operator's `--nats`.
    pub const NATS_UNREACHABLE: &str = "NatsUnreachable";
    /// NATS is there, but the servers that hold the stream are not, or have no majority. Retried.
    pub const STREAM_UNAVAILABLE: &str = "StreamUnavailable";
    /// NATS refuses the operator. Fix: credentials or permissions on `$JS.API.>`.
    pub const AUTH_FAILED: &str = "AuthFailed";
    /// JetStream is off. Fix: `jetstream: enabled` in nats-server, or for the account.
    pub const JETSTREAM_DISABLED: &str = "JetStreamDisabled";
    /// The stream belongs to another channel or to none. Fix: another name, or `adoption:
    /// IfUnowned`.
    pub const OWNED_BY_OTHER: &str = "OwnedByOther";
    /// Another stream takes the subjects already. Fix: other `subjects`.
    pub const SUBJECT_OVERLAP: &str = "SubjectOverlap";
    /// The stream to adopt has a setting that excludes it. Fix: another stream.
    pub const INCOMPATIBLE: &str = "Incompatible";
    /// More copies than servers. Fix: fewer `stream.replicas`, or a larger NATS cluster.
    pub const NOT_ENOUGH_SERVERS: &str = "NotEnoughServers";
    /// A field that nats-server cannot change. Fix: set it back.
    pub const IMMUTABLE_FIELD: &str = "ImmutableField";
    /// A limit of the NATS account or server, or of the namespace, is reached (fix: smaller
    /// `maxBytes`, or a larger limit), or a ResourceQuota, which the message names.
    pub const QUOTA_EXCEEDED: &str = "QuotaExceeded";
    /// nats-server refused the configuration for another reason, quoted in the message.
    pub const REJECTED: &str = "Rejected";
    /// What was written was not what was read back. Retried.
    pub const NOT_APPLIED: &str = "NotApplied";

    /// The spec does not pass the operator's own checks. Fix: as the message says.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// An object of the name that the operator needs exists and is not the channel's. Fix: remove
    /// or rename it.
    pub const NAME_TAKEN: &str = "NameTaken";
    /// The API server refused an object, quoted in the message.
    pub const API_REJECTED: &str = "ApiRejected";
    /// Pods are being replaced.
    pub const ROLLOUT_IN_PROGRESS: &str = "RolloutInProgress";
    /// Pods are refused by the API server, whose words are in the message. Fix: as they say: a
    /// ServiceAccount, a PriorityClass, the namespace's Pod Security level.
    pub const PODS_REFUSED: &str = "PodsRefused";
    /// A pod waits for a Secret that its namespace does not have. Fix: create it.
    pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
    /// The Deployment has made no progress for longer than its deadline. Fix: the pods' Events and
    /// logs.
    pub const PROGRESS_DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
    /// Pods do not become ready; the message says why.
    pub const PODS_NOT_READY: &str = "PodsNotReady";
    /// The image cannot be pulled, for the reason in the message. Fix: `workload.image`,
    /// `imagePullSecrets`.
    pub const IMAGE_PULL_FAILED: &str = "ImagePullFailed";
    /// A pod's container keeps crashing. Fix: its log.
    pub const CRASH_LOOPING: &str = "CrashLooping";
    /// A pod cannot be scheduled. Fix: room in the cluster, `resources`, `nodeSelector`,
    /// `topologySpread`.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// The Ingress has no address. Fix: an ingress controller for its class, which publishes its
    /// address.
    pub const NO_ADDRESS: &str = "NoAddress";
    /// A Gateway has not taken the HTTPRoute. Fix: as the message says.
    pub const NOT_ACCEPTED: &str = "NotAccepted";
    /// The cluster has no HTTPRoutes. Fix: install the Gateway API, or use `exposure.ingress`.
    pub const GATEWAY_API_MISSING: &str = "GatewayApiMissing";
    /// Pods do not serve this generation's file yet. Kubernetes brings it to them within about a
    /// minute.
    pub const CONFIG_PROPAGATING: &str = "ConfigPropagating";
    /// A pod refuses the file: it is of a release that cannot read it. Fix: `dataplane.image`,
    /// `workload.image`.
    pub const CONFIG_REFUSED: &str = "ConfigRefused";
    /// A ready pod's admin port cannot be reached from the operator. Fix: network policies.
    pub const POD_UNREACHABLE: &str = "PodUnreachable";
}

/// `status` of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionStatus {
    /// `True`
    True,
    /// `False`
    False,
    /// `Unknown`
    Unknown,
}

impl From<bool> for ConditionStatus {
    fn from(known: bool) -> Self {
        if known { Self::True } else { Self::False }
    }
}

impl ConditionStatus {
    /// As Kubernetes writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// What a condition says, before it is known since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// One of the types above.
    pub type_: &'static str,
    /// `status` of the condition.
    pub status: ConditionStatus,
    /// One of [`reason`].
    pub reason: &'static str,
    /// What is the case and what to do.
    pub message: String,
    /// The generation that it speaks of; `None` = the newest.
    pub of: Option<i64>,
}

/// What is the case: a reason for programs, and words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// One of [`reason`].
    pub reason: &'static str,
    /// What is the case and what to do.
    pub message: String,
}

impl Cause {
    /// A cause.
    #[must_use]
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl Verdict {
    /// A verdict.
    #[must_use]
    pub fn new(
        type_: &'static str,
        status: ConditionStatus,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { type_, status, reason, message: message.into(), of: None }
    }
}

/// Longest message of a condition, bytes; metav1.Condition allows 32,768, people read one screen.
const MESSAGE_BYTES: usize = 1_024;

/// Conditions out of `verdicts`: the time of the last transition is kept from `previous` unless the
/// status flips. `Accepted` stays as it was where no verdict speaks of it.
#[must_use]
pub fn merge(
    verdicts: &[Verdict],
    previous: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let condition = |verdict: &Verdict| {
        let status = verdict.status.as_str();
        let since = previous
            .iter()
            .find(|c| c.type_ == verdict.type_ && c.status == status)
            .map(|c| c.last_transition_time.clone());
        Condition {
            type_: verdict.type_.to_owned(),
            status: status.to_owned(),
            reason: verdict.reason.to_owned(),
            message: shorten(&verdict.message),
            observed_generation: verdict.of.or(generation),
            last_transition_time: since.unwrap_or_else(|| Time(whole_seconds(now))),
        }
    };
    let accepted = previous.iter().filter(|c| {
        c.type_ == ACCEPTED && !verdicts.iter().any(|verdict| verdict.type_ == ACCEPTED)
    });
    verdicts.iter().map(condition).chain(accepted.cloned()).collect()
}

/// The API server keeps whole seconds; anything finer would differ from what is read back, for
/// ever.
fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

fn shorten(message: &str) -> String {
    if message.len() <= MESSAGE_BYTES {
        return message.to_owned();
    }
    let end = (0..=MESSAGE_BYTES).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", message.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_transition_moves_only_when_the_status_flips() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = merge(
            &[Verdict::new(READY, ConditionStatus::False, reason::PENDING, "a")],
            &[],
            Some(1),
            at(10),
        );
        let same = merge(
            &[Verdict::new(READY, ConditionStatus::False, reason::ROLLOUT_IN_PROGRESS, "b")],
            &first,
            Some(2),
            at(20),
        );
        assert_eq!(same[0].last_transition_time, Time(at(10)));
        assert_eq!(
            (same[0].reason.as_str(), same[0].observed_generation),
            (reason::ROLLOUT_IN_PROGRESS, Some(2))
        );
        let flipped = merge(
            &[Verdict::new(READY, ConditionStatus::True, reason::READY, "c")],
            &same,
            Some(2),
            at(30),
        );
        assert_eq!(flipped[0].last_transition_time, Time(at(30)));
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let cut = shorten(&"ä".repeat(2_000));
        assert!(cut.len() <= MESSAGE_BYTES + '…'.len_utf8() && cut.ends_with('…'));
    }
}
