//! Step 6: what was observed becomes the status. Pure but for [`write`], which writes only what
//! differs.

pub(crate) mod exposure;
pub(crate) mod outcome;
mod workload;

use k8s_openapi::{
    api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler},
    apimachinery::pkg::apis::meta::v1::Condition,
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{apply, ownership::MANAGER, pods::Pods};
use crate::{
    crd::{
        SseChannel, SseChannelStatus,
        condition::{
            self, Cause,
            ConditionStatus::{False, True, Unknown},
            DRIFTED, EXPOSED, READY, RECONCILING, STALLED, STREAM_READY, Verdict,
            WORKLOAD_AVAILABLE, reason,
        },
        status::{Drift, Endpoint, EndpointType, StreamStatus},
    },
    metrics::Metrics,
    stream::{self, Difference, Report},
};
use outcome::{Outcome, Parts, WasReady};

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
    /// Why the pods' objects could not be written, where the next attempt may succeed.
    pub(crate) unwritten: Option<&'a apply::Error>,
    /// Set while an answer of the stream may be missing without a word: what was said of it last.
    pub(crate) kept: Option<Kept>,
    pub(crate) was_ready: Option<WasReady>,
    /// Objects that differ and were left so.
    pub(crate) drift: Vec<Difference>,
    /// Those of them for which only time is needed.
    pub(crate) pending: &'a [Difference],
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
    /// What scales the pods by their use of the processor.
    pub(crate) autoscaler: Option<&'a HorizontalPodAutoscaler>,
}

/// What was said of the stream while it was in sync.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) message: String,
    /// Of which generation.
    pub(crate) generation: Option<i64>,
}

/// What became of the objects of a channel.
pub(crate) enum Workload<'a> {
    /// None was made: it is not known yet whether the stream is the channel's.
    Waiting,
    /// One could not be made, and there are no pods to speak of, or another attempt would not help.
    Failed(&'a apply::Error),
    /// They are there.
    Seen {
        deployment: Option<&'a Deployment>,
        pods: &'a Pods,
        /// The generation that ready pods must serve.
        generation: i64,
    },
}

/// The parts of a channel after a pass.
#[must_use]
pub(crate) fn parts(channel: &SseChannel, seen: &Observation<'_>, now: Timestamp) -> Parts {
    let (pods, rollout) = workload::outcomes(seen);
    let objects = match seen.unwritten {
        Some(error) => failure(error, true),
        None => Outcome::Serving(Cause::new(reason::IN_SYNC, "every object is as desired")),
    };
    Parts {
        stream: stream_outcome(seen, channel.metadata.generation),
        objects,
        pods,
        rollout,
        exposure: exposure::outcome(seen.exposure),
        pending: seen
            .pending
            .first()
            .map(|pending| Cause::new(reason::PROGRESSING, pending.to_string())),
        drifted: drifted(seen),
        was_ready: seen.was_ready.clone(),
        summary: summary(seen, now),
    }
}

/// The status of a channel after a pass that found `parts`.
#[must_use]
pub(crate) fn status(
    channel: &SseChannel,
    seen: &Observation<'_>,
    parts: &Parts,
    now: Timestamp,
) -> SseChannelStatus {
    let exposed = parts.exposure.verdict(EXPOSED).status == True;
    let outside = if exposed { seen.external_urls.as_slice() } else { &[] };
    let endpoint = |type_, url: &String| Endpoint { type_, url: url.clone() };
    let mut endpoints = vec![endpoint(EndpointType::Internal, &seen.url)];
    endpoints.extend(
        outside.iter().take(ENDPOINTS - 1).map(|url| endpoint(EndpointType::External, url)),
    );
    let previous = channel.status.clone().unwrap_or_default();
    let created = previous.stream.as_ref().map(|stream| stream.created_time.clone());
    let stream = stream_status(seen, previous.stream);
    SseChannelStatus {
        // Of this life of the stream alone.
        mark: previous.mark.filter(|_| created.as_ref() == Some(&stream.created_time)),
        observed_generation: channel.metadata.generation,
        conditions: condition::merge(
            &parts.verdicts(),
            &previous.conditions,
            channel.metadata.generation,
            now,
        ),
        stream: Some(stream),
        workload: workload::counts(seen),
        endpoints,
        drift: all_drift(seen).into_iter().take(DRIFT_ROWS).map(row).collect(),
    }
}

/// Why a channel is not looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unobserved {
    /// As it asks.
    Paused,
    /// It asks for what cannot be, in these words.
    Invalid(String),
    /// It asks for what its namespace may not have.
    NotGranted(String),
    /// There is no room for its stream.
    NoRoom(String),
    /// It is on its way out, and this is what it waits for.
    Deleting(String),
}

impl Unobserved {
    /// In a condition's words.
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Paused => Cause::new(
                reason::PAUSED,
                "spec.managementPolicy is Paused: nothing is looked at or changed",
            ),
            Self::Invalid(message) => Cause::new(reason::INVALID_SPEC, message.clone()),
            Self::NotGranted(message) => Cause::new(reason::NOT_GRANTED, message.clone()),
            Self::NoRoom(message) => Cause::new(reason::QUOTA_EXCEEDED, message.clone()),
            Self::Deleting(message) => Cause::new(reason::DELETING, message.clone()),
        }
    }
}

/// The status of a channel that is not looked at: every condition says why.
#[must_use]
pub(crate) fn unobserved(
    channel: &SseChannel,
    why: &Unobserved,
    now: Timestamp,
) -> SseChannelStatus {
    let previous = channel.status.clone().unwrap_or_default();
    let Cause { reason, message } = why.cause();
    let of = |type_, status| Verdict::new(type_, status, reason, message.clone());
    let (ready, stalled) = match why {
        // Nothing happens to what is paused: it is as ready as it was.
        Unobserved::Paused => (said(&previous.conditions, READY), false),
        Unobserved::Invalid(_)
        | Unobserved::NotGranted(_)
        | Unobserved::NoRoom(_)
        | Unobserved::Deleting(_) => (False, true),
    };
    let verdicts = [
        of(READY, ready),
        of(STREAM_READY, Unknown),
        of(WORKLOAD_AVAILABLE, Unknown),
        exposure::unobserved(channel, reason, &message),
        of(DRIFTED, Unknown),
        of(RECONCILING, False),
        of(STALLED, stalled.into()),
    ];
    let conditions =
        condition::merge(&verdicts, &previous.conditions, channel.metadata.generation, now);
    SseChannelStatus { observed_generation: channel.metadata.generation, conditions, ..previous }
}

fn said(conditions: &[Condition], type_: &str) -> condition::ConditionStatus {
    match find(conditions, type_).map(|condition| condition.status.as_str()) {
        Some("True") => True,
        Some("False") => False,
        _ => Unknown,
    }
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

/// What a failure to write objects amounts to; `served`: what there was before goes on meanwhile.
fn failure(error: &apply::Error, served: bool) -> Outcome {
    let cause = Cause::new(error.reason(), error.to_string());
    match error {
        apply::Error::Leaving { .. } | apply::Error::OfFormer { .. } => {
            Outcome::Settling { cause, served }
        }
        _ => Outcome::Blocked { cause, transient: error.is_transient() },
    }
}

fn stream_outcome(seen: &Observation<'_>, newest: Option<i64>) -> Outcome {
    let left = |message: String| Outcome::Left(Cause::new(reason::SERVER_DIFFERS, message));
    match (seen.stream, &seen.kept) {
        (Err(error), Some(kept)) if error.is_transient() => Outcome::Kept {
            cause: Cause::new(error.reason(), error.to_string()),
            said: Cause::new(reason::IN_SYNC, kept.message.clone()),
            of: kept.generation,
            newest: kept.generation == newest,
        },
        (Err(error), _) => {
            let cause = Cause::new(error.reason(), error.to_string());
            match error {
                error if !error.was_seen() => Outcome::Unknown(cause),
                error => Outcome::Blocked { cause, transient: error.is_transient() },
            }
        }
        (Ok(report), _) if report.stream.is_none() => {
            left(format!("stream {} does not exist", seen.stream_name))
        }
        (Ok(report), _) if !report.drift.is_empty() => {
            left(format!("stream {} differs from the spec; see status.drift", seen.stream_name))
        }
        (Ok(_), _) => {
            let message = format!("stream {} is as the spec says", seen.stream_name);
            let but = seen.too_large.iter().map(|why| format!("; but {why}"));
            let message = std::iter::once(message).chain(but).collect::<String>();
            Outcome::Serving(Cause::new(reason::IN_SYNC, message))
        }
    }
}

/// What `Ready` says where everything is as asked.
fn summary(seen: &Observation<'_>, now: Timestamp) -> Cause {
    let (why, mut message) = match &seen.workload {
        Workload::Seen { deployment: Some(deployment), .. }
            if workload::wanted(deployment) == 0 =>
        {
            (reason::SCALED_TO_ZERO, workload::SCALED_TO_ZERO.to_owned())
        }
        _ => {
            (reason::READY, "the stream is in sync and every pod serves this generation".to_owned())
        }
    };
    if let Some(why) = &seen.unmonitored {
        message = format!("{message}; no PodMonitor: {why}");
    }
    if let Some(why) = seen.autoscaler.and_then(|scaler| workload::not_scaled(scaler, now)) {
        message = format!("{message}; {why}");
    }
    if let Some(why) = &seen.too_large {
        message = format!("{message}; but {why}");
    }
    Cause::new(why, message)
}

fn all_drift(seen: &Observation<'_>) -> Vec<Difference> {
    let of_stream = seen.stream.as_ref().map(|report| report.drift.clone());
    let mut drift = of_stream.unwrap_or_default();
    drift.extend(seen.drift.iter().cloned());
    drift
}

fn drifted(seen: &Observation<'_>) -> Verdict {
    let drift = all_drift(seen);
    match (seen.stream, drift.as_slice()) {
        (_, [first, ..]) => {
            let message = match drift.len() {
                1 => first.to_string(),
                all => format!("{all} differences found; first: {first}"),
            };
            Verdict::new(DRIFTED, True, reason::SERVER_DIFFERS, message)
        }
        // Of the stream while it was seen; of the objects now.
        (Err(_), []) if seen.kept.is_none() => {
            Verdict::new(DRIFTED, Unknown, reason::PENDING, "the stream could not be compared")
        }
        (_, []) => Verdict::new(DRIFTED, False, reason::IN_SYNC, "everything is as the spec says"),
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
