//! Step 6: what was observed becomes the status. Pure but for [`write`], which writes only what
//! differs.

pub(crate) mod exposure;

use k8s_openapi::{
    api::apps::v1::Deployment, apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{
    apply,
    desired::selector_text,
    ownership::MANAGER,
    pods::{Pods, Serves, config_refused},
};
use crate::{
    crd::{
        SseChannel, SseChannelStatus,
        condition::{
            self,
            ConditionStatus::{False, True, Unknown},
            DRIFTED, READY, RECONCILING, STALLED, STREAM_READY, Verdict, WORKLOAD_AVAILABLE,
            reason,
        },
        status::{Drift, Endpoint, EndpointType, StreamStatus, WorkloadStatus},
    },
    english::count,
    metrics::Metrics,
    stream::{self, Difference, Report},
};

/// Most rows of `status.endpoints`.
const ENDPOINTS: usize = 8;
/// Most rows of `status.drift`.
const DRIFT_ROWS: usize = 20;

pub(crate) use exposure::Exposure;

/// What one pass saw.
pub(crate) struct Observation<'a> {
    pub(crate) name: &'a str,
    pub(crate) stream_name: &'a str,
    pub(crate) stream: &'a Result<Report, stream::Error>,
    /// What became of the objects.
    pub(crate) workload: Workload<'a>,
    /// Whether the status says of this generation that it is ready.
    pub(crate) was_ready: bool,
    /// Objects that differ and were left so.
    pub(crate) drift: Vec<Difference>,
    /// Address inside the cluster.
    pub(crate) url: String,
    /// What became of the way in from outside.
    pub(crate) exposure: Exposure<'a>,
    /// Addresses outside the cluster, if the way in works.
    pub(crate) external_urls: Vec<String>,
    /// Why there is no PodMonitor although there should be one.
    pub(crate) unmonitored: Option<String>,
    /// Why events of the greatest size cannot be published, although the stream would take them.
    pub(crate) too_large: Option<String>,
}

/// What became of the objects of a channel.
pub(crate) enum Workload<'a> {
    /// None was made: it is not known yet whether the stream is the channel's.
    Waiting,
    /// One could not be made.
    Failed(&'a apply::Error),
    /// They are there.
    Seen {
        deployment: Option<&'a Deployment>,
        pods: &'a Pods,
        /// The generation that ready pods must serve.
        generation: i64,
    },
}

/// The status of a channel after a pass.
#[must_use]
pub(crate) fn status(
    channel: &SseChannel,
    seen: &Observation<'_>,
    now: Timestamp,
) -> SseChannelStatus {
    let stream_ready = stream_ready(seen);
    let (workload, exposed) = (workload(seen), exposure::verdict(seen.exposure));
    let outside = if exposed.status == True { seen.external_urls.as_slice() } else { &[] };
    let endpoint = |type_, url: &String| Endpoint { type_, url: url.clone() };
    let mut endpoints = vec![endpoint(EndpointType::Internal, &seen.url)];
    endpoints.extend(
        outside.iter().take(ENDPOINTS - 1).map(|url| endpoint(EndpointType::External, url)),
    );
    let mut drift: Vec<Difference> =
        seen.stream.as_ref().map(|report| report.drift.clone()).unwrap_or_default();
    drift.extend(seen.drift.iter().cloned());
    let verdicts = [
        ready(seen, &stream_ready, &workload),
        stream_ready,
        workload.verdict.clone(),
        exposed,
        drifted(seen, &drift),
        reconciling(seen, &workload),
        stalled(seen),
    ];
    let previous = channel.status.clone().unwrap_or_default();
    let created = previous.stream.as_ref().map(|stream| stream.created_time.clone());
    let stream = stream_status(seen, previous.stream);
    SseChannelStatus {
        // Of this life of the stream alone.
        mark: previous.mark.filter(|_| created.as_ref() == Some(&stream.created_time)),
        observed_generation: channel.metadata.generation,
        conditions: condition::merge(
            &verdicts,
            &previous.conditions,
            channel.metadata.generation,
            now,
        ),
        stream: Some(stream),
        workload: workload.counts,
        endpoints,
        drift: drift.into_iter().take(DRIFT_ROWS).map(row).collect(),
    }
}

/// The status of a channel that is not looked at: every condition says why.
#[must_use]
pub(crate) fn unobserved(
    channel: &SseChannel,
    why: &'static str,
    message: &str,
    stalled: bool,
    now: Timestamp,
) -> SseChannelStatus {
    let previous = channel.status.clone().unwrap_or_default();
    let of = |type_, status| Verdict::new(type_, status, why, message);
    let verdicts = [
        of(READY, if why == reason::PAUSED { Unknown } else { False }),
        of(STREAM_READY, Unknown),
        of(WORKLOAD_AVAILABLE, Unknown),
        exposure::unobserved(channel, why, message),
        of(DRIFTED, Unknown),
        of(RECONCILING, (why == reason::DELETING && !stalled).into()),
        of(STALLED, stalled.into()),
    ];
    let conditions =
        condition::merge(&verdicts, &previous.conditions, channel.metadata.generation, now);
    SseChannelStatus { observed_generation: channel.metadata.generation, conditions, ..previous }
}

/// Writes `status` if it differs from what `channel` has.
///
/// # Errors
/// What the API server or the network said.
pub(crate) async fn write(
    api: &Api<SseChannel>,
    channel: &SseChannel,
    status: &SseChannelStatus,
    metrics: &Metrics,
) -> Result<(), kube::Error> {
    if channel.status.as_ref() == Some(status) {
        return Ok(());
    }
    let patch = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "SseChannel", "metadata": {"uid": channel.uid()}, "status": status});
    metrics.api_write("SseChannel/status", "apply");
    api.patch_status(
        &channel.name_any(),
        &PatchParams::apply(MANAGER).force(),
        &Patch::Apply(&patch),
    )
    .await
    .map(|_| ())
}

fn stream_ready(seen: &Observation<'_>) -> Verdict {
    let of = |status, why, message: String| Verdict::new(STREAM_READY, status, why, message);
    match seen.stream {
        Err(error) => of(False, error.reason(), error.to_string()),
        Ok(report) if report.stream.is_none() => {
            of(False, reason::SERVER_DIFFERS, format!("stream {} does not exist", seen.stream_name))
        }
        Ok(report) if !report.drift.is_empty() => of(
            False,
            reason::SERVER_DIFFERS,
            format!("stream {} differs from the spec; see status.drift", seen.stream_name),
        ),
        Ok(_) => {
            let mut message = format!("stream {} is as the spec says", seen.stream_name);
            if let Some(why) = &seen.too_large {
                message = format!("{message}; but {why}");
            }
            of(True, reason::IN_SYNC, message)
        }
    }
}

struct WorkloadView {
    verdict: Verdict,
    /// What stands against `Ready` although enough pods are there: a roll-out, or the file that is
    /// on its way.
    unsettled: Option<(&'static str, String)>,
    counts: Option<WorkloadStatus>,
}

fn workload(seen: &Observation<'_>) -> WorkloadView {
    let of = |status, why, message: String| Verdict::new(WORKLOAD_AVAILABLE, status, why, message);
    match &seen.workload {
        Workload::Waiting => {
            let message = "pods are made once the stream is known to be this channel's".to_owned();
            WorkloadView {
                verdict: of(False, reason::PENDING, message),
                unsettled: None,
                counts: None,
            }
        }
        Workload::Failed(error) => WorkloadView {
            verdict: of(False, error.reason(), error.to_string()),
            unsettled: None,
            counts: None,
        },
        Workload::Seen { deployment: None, .. } => {
            let message = "there is no Deployment".to_owned();
            WorkloadView {
                verdict: of(False, reason::SERVER_DIFFERS, message),
                unsettled: None,
                counts: None,
            }
        }
        Workload::Seen { deployment: Some(deployment), pods, generation } => {
            pods_view(seen, deployment, pods, *generation)
        }
    }
}

fn pods_view(
    seen: &Observation<'_>,
    deployment: &Deployment,
    pods: &Pods,
    generation: i64,
) -> WorkloadView {
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let current = status.observed_generation >= deployment.metadata.generation;
    let (replicas, updated) =
        (status.replicas.unwrap_or_default(), status.updated_replicas.unwrap_or_default());
    let ready = status.ready_replicas.unwrap_or_default();
    let rolling = !current || updated < wanted || replicas > updated;
    let trouble = pods.trouble.clone();
    let rollout = || {
        (
            reason::ROLLOUT_IN_PROGRESS,
            format!(
                "rollout in progress: {updated} of {} updated, {ready} ready",
                pods_text(wanted)
            ),
        )
    };
    let of = |status, (why, message): (&'static str, String)| {
        Verdict::new(WORKLOAD_AVAILABLE, status, why, message)
    };

    let verdict = if wanted == 0 {
        of(
            True,
            (
                reason::SCALED_TO_ZERO,
                "spec.workload.replicas is 0: no pod serves the channel, as asked".to_owned(),
            ),
        )
    } else if current && ready >= wanted {
        of(True, (reason::MINIMUM_REPLICAS_AVAILABLE, format!("{} ready", pods_text(wanted))))
    } else {
        let not_ready = || {
            if rolling {
                rollout()
            } else {
                (reason::PODS_NOT_READY, format!("{ready} of {} ready", pods_text(wanted)))
            }
        };
        of(False, trouble.clone().unwrap_or_else(not_ready))
    };
    let unsettled = if wanted == 0 {
        Some((reason::SCALED_TO_ZERO, "no pod serves: spec.workload.replicas is 0".to_owned()))
    } else if rolling {
        Some(trouble.unwrap_or_else(rollout))
    } else {
        behind(pods, generation, seen.was_ready)
    };
    let counts = WorkloadStatus {
        replicas,
        ready_replicas: ready,
        ready: format!("{ready}/{wanted}"),
        updated_replicas: updated,
        selector: selector_text(seen.name),
    };
    WorkloadView { verdict, unsettled, counts: Some(counts) }
}

fn pods_text(number: i32) -> String {
    count(usize::try_from(number).unwrap_or_default(), "pod")
}

/// Ready pods that do not serve `generation`. Where they did when last heard of (`was_ready`), pods
/// that were not asked yet are no reason to say otherwise.
fn behind(pods: &Pods, generation: i64, was_ready: bool) -> Option<(&'static str, String)> {
    let unreachable: Vec<_> = pods
        .ready
        .iter()
        .filter(|(_, s)| *s == Serves::Unreachable)
        .map(|(name, _)| name.as_str())
        .collect();
    let late = pods
        .ready
        .iter()
        .filter(|(_, s)| {
            !(matches!(s, Serves::Generation(g) if *g == generation)
                || *s == Serves::Unasked && was_ready)
        })
        .count();
    if let Some(pod) = unreachable.first() {
        let message = format!(
            "the admin port of pod {pod} cannot be reached from the operator, so it is not known what it serves; allow it in network policies"
        );
        return Some((reason::POD_UNREACHABLE, message));
    }
    if let Some(why) = pods.refused.as_deref().filter(|_| late > 0) {
        return Some(config_refused(why));
    }
    (late > 0).then(|| {
        let message = format!("waiting for pods to load the new configuration (generation {generation}); this takes up to a minute");
        (reason::CONFIG_PROPAGATING, message)
    })
}

fn ready(seen: &Observation<'_>, stream: &Verdict, workload: &WorkloadView) -> Verdict {
    if stream.status != True {
        return Verdict { type_: READY, status: False, ..stream.clone() };
    }
    if workload.verdict.status != True {
        return Verdict { type_: READY, status: False, ..workload.verdict.clone() };
    }
    match &workload.unsettled {
        Some((why, message)) => Verdict::new(READY, False, why, message.clone()),
        None => {
            let mut message =
                "the stream is in sync and every pod serves this generation".to_owned();
            if let Some(why) = &seen.unmonitored {
                message = format!("{message}; no PodMonitor: {why}");
            }
            if let Some(why) = &seen.too_large {
                message = format!("{message}; but {why}");
            }
            Verdict::new(READY, True, reason::READY, message)
        }
    }
}

fn drifted(seen: &Observation<'_>, drift: &[Difference]) -> Verdict {
    match (seen.stream, drift) {
        (_, [first, ..]) => {
            let message = match drift.len() {
                1 => first.to_string(),
                all => format!("{all} differences found; first: {first}"),
            };
            Verdict::new(DRIFTED, True, reason::SERVER_DIFFERS, message)
        }
        (Err(_), []) => {
            Verdict::new(DRIFTED, Unknown, reason::PENDING, "the stream could not be compared")
        }
        (Ok(_), []) => {
            Verdict::new(DRIFTED, False, reason::IN_SYNC, "everything is as the spec says")
        }
    }
}

fn reconciling(seen: &Observation<'_>, workload: &WorkloadView) -> Verdict {
    let under_way = |message: String| Verdict::new(RECONCILING, True, reason::PROGRESSING, message);
    let idle = || Verdict::new(RECONCILING, False, reason::IDLE, "no changes in progress");
    match (seen.stream, &workload.unsettled) {
        (Err(error), _) if error.is_transient() => {
            Verdict::new(RECONCILING, True, reason::RETRYING, error.to_string())
        }
        (Err(_), _) => idle(),
        (Ok(_), Some((why, _))) if *why == reason::SCALED_TO_ZERO => idle(),
        (Ok(_), Some((_, message))) => under_way(message.clone()),
        (Ok(_), None) => match &seen.workload {
            Workload::Failed(error) if error.is_transient() => {
                Verdict::new(RECONCILING, True, reason::RETRYING, workload.verdict.message.clone())
            }
            Workload::Seen { .. } if workload.verdict.status == False && seen.drift.is_empty() => {
                under_way(workload.verdict.message.clone())
            }
            Workload::Waiting | Workload::Failed(_) | Workload::Seen { .. } => idle(),
        },
    }
}

fn stalled(seen: &Observation<'_>) -> Verdict {
    let of = |why, message: String| Verdict::new(STALLED, True, why, message);
    match (seen.stream, &seen.workload) {
        (Err(error), _) if !error.is_transient() => of(error.reason(), error.to_string()),
        (_, Workload::Failed(error)) if !error.is_transient() => {
            of(error.reason(), error.to_string())
        }
        _ => Verdict::new(STALLED, False, reason::IDLE, "no blocking problems"),
    }
}

fn stream_status(seen: &Observation<'_>, previous: Option<StreamStatus>) -> StreamStatus {
    let unknown = || StreamStatus { name: seen.stream_name.to_owned(), ..StreamStatus::default() };
    match seen.stream {
        Ok(Report { stream: Some(facts), .. }) => StreamStatus {
            name: facts.name.clone(),
            epoch: facts.epoch.to_string(),
            created_time: facts.created.clone(),
            owned: facts.owned,
        },
        // What was known of our stream is not forgotten because NATS is away, or because a change
        // was refused.
        Err(error) if !error.is_foreign() => {
            previous.filter(|p| p.name == seen.stream_name).unwrap_or_else(unknown)
        }
        Ok(Report { stream: None, .. }) | Err(_) => unknown(),
    }
}

fn row(difference: Difference) -> Drift {
    let short = |text: String, max: usize| text.chars().take(max).collect();
    Drift {
        field: short(difference.field, 128),
        desired: short(difference.desired, 256),
        observed: short(difference.observed, 256),
    }
}

/// The condition `type_` of a list.
#[must_use]
pub(crate) fn find<'c>(conditions: &'c [Condition], type_: &str) -> Option<&'c Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

#[cfg(test)]
mod tests;
