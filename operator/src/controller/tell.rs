//! Events: what happened to a channel, for `kubectl describe`. Best effort: an Event is no state.

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Resource,
    core::error_boundary::InvalidObject,
    runtime::events::{Event, EventType},
};
use sluice_channel::StreamName;

use super::{
    context::Context,
    status::{self, Exposure, Observation},
};
use crate::{
    crd::{
        SseChannel, SseChannelStatus,
        condition::{EXPOSED, READY, STALLED, STREAM_READY},
    },
    english::count,
    kube_error,
    stream::{self, Change, Report, TAKE_OVER, UID},
};

/// What the operator did, where nothing else is to be said of it.
const RECONCILE: &str = "Reconcile";

impl Context {
    /// Says in an Event on the channel, and in the log, what happened.
    pub(super) async fn tell(&self, channel: &SseChannel, what: &str, note: &str, warning: bool) {
        self.tell_of(&channel.object_ref(&()), what, note, warning, RECONCILE).await;
    }

    /// `action`: Events of one reason and one action within some minutes become one, with the words
    /// of the first.
    async fn tell_of(
        &self,
        object: &ObjectReference,
        what: &str,
        note: &str,
        warning: bool,
        action: &str,
    ) {
        let type_ = if warning { EventType::Warning } else { EventType::Normal };
        // The API server takes notes of up to 1 KiB.
        let note: String = note.chars().take(900).collect();
        if warning {
            tracing::warn!(reason = what, "{note}");
        } else {
            tracing::info!(reason = what, "{note}");
        }
        let event = Event {
            type_,
            reason: what.to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        self.metrics.api_write("Event", "create");
        if let Err(error) = self.recorder.publish(&event, object).await {
            let error = kube_error::text(&error);
            tracing::warn!(error, "cannot record the Event {what}");
        }
    }
}

/// What became of the stream.
pub(super) async fn of_stream(
    ctx: &Context,
    channel: &SseChannel,
    name: &StreamName,
    result: &Result<Report, stream::Error>,
) {
    let had_one = channel.status.as_ref().and_then(|s| s.stream.as_ref()).is_some_and(|s| s.owned);
    match result {
        Ok(report) => match &report.change {
            Change::None => {}
            Change::Created if !had_one => {
                ctx.tell(channel, "StreamCreated", &format!("stream {name} was created"), false)
                    .await;
            }
            Change::Created | Change::Recreated => {
                let note = format!(
                    "stream {name} had gone and was created again: its events are lost, subscribers are told by channel.gap"
                );
                ctx.tell(channel, "StreamRecreated", &note, true).await;
            }
            Change::Adopted => {
                ctx.tell(
                    channel,
                    "StreamAdopted",
                    &format!("stream {name} was taken over with its events"),
                    false,
                )
                .await;
            }
            Change::TakenOver(from) => {
                let note = format!(
                    "stream {name} was handed over with its events by {from} (UID {}), as the annotation {TAKE_OVER} of the Namespace says; it fits no longer and may be removed",
                    from.uid
                );
                ctx.tell(channel, "StreamTakenOver", &note, false).await;
            }
            // The mark of an earlier channel of this name.
            Change::Updated(fields)
                if !had_one && fields.iter().any(|d| d.field.ends_with(UID)) =>
            {
                let note =
                    format!("stream {name} was kept and is used again with the events in it");
                ctx.tell(channel, "StreamReused", &note, false).await;
            }
            Change::Updated(fields) => {
                let fields: Vec<_> = fields
                    .iter()
                    .map(|d| format!("{} from {} to {}", d.field, d.observed, d.desired))
                    .collect();
                let note: String = format!("stream {name} was changed: {}", fields.join(", "))
                    .chars()
                    .take(900)
                    .collect();
                ctx.tell(channel, "StreamUpdated", &note, false).await;
            }
            Change::Restored => {
                let note = format!(
                    "stream {name} was set back to an older state; it has a new epoch, subscribers are told by channel.gap"
                );
                ctx.tell(channel, "StreamRestored", &note, true).await;
            }
        },
        Err(error) => {
            // Once for each new reason, not for each attempt.
            let before =
                channel.status.as_ref().and_then(|s| status::find(&s.conditions, STREAM_READY));
            if before.is_none_or(|c| c.reason != error.reason()) {
                ctx.tell(channel, error.reason(), &error.to_string(), true).await;
            }
        }
    }
}

/// Tells once of each trouble with what surrounds the pods.
pub(super) async fn of_surroundings(
    ctx: &Context,
    channel: &SseChannel,
    status: &SseChannelStatus,
    seen: &Observation<'_>,
    unmonitored: &mut Option<String>,
) {
    if let Exposure::Ingress(_) | Exposure::Route(_) = seen.exposure {
        of_exposure(ctx, channel, status, &seen.external_urls).await;
    }
    let exposed = |status: &SseChannelStatus| status::find(&status.conditions, EXPOSED).cloned();
    if let (Exposure::Failed(_), Some(now)) = (seen.exposure, exposed(status))
        && channel
            .status
            .as_ref()
            .and_then(exposed)
            .is_none_or(|before| before.reason != now.reason)
    {
        ctx.tell(channel, &now.reason, &now.message, true).await;
    }
    let before = std::mem::replace(unmonitored, seen.unmonitored.clone());
    if let Some(why) = seen.unmonitored.as_ref().filter(|why| before.as_ref() != Some(why)) {
        ctx.tell(
            channel,
            "NotMonitored",
            &format!("no PodMonitor: {why}; the channel is still served"),
            true,
        )
        .await;
    }
}

async fn of_exposure(
    ctx: &Context,
    channel: &SseChannel,
    status: &SseChannelStatus,
    urls: &[String],
) {
    match Turn::of(channel, status, EXPOSED) {
        Some(Turn::True(_)) => {
            let note = format!("reachable from outside at {}", urls.join(", "));
            ctx.tell(channel, "Exposed", &note, false).await;
        }
        Some(Turn::NoLonger(now)) => {
            ctx.tell(channel, "NotExposed", &format!("{}: {}", now.reason, now.message), true)
                .await;
        }
        None => {}
    }
}

/// A condition that says the opposite of what it said before.
enum Turn<'a> {
    True(&'a Condition),
    NoLonger(&'a Condition),
}

impl<'a> Turn<'a> {
    fn of(channel: &SseChannel, status: &'a SseChannelStatus, type_: &str) -> Option<Self> {
        let is_true = |condition: &Condition| condition.status == "True";
        let before = channel.status.as_ref().and_then(|s| status::find(&s.conditions, type_));
        let now = status::find(&status.conditions, type_)?;
        match (before.is_some_and(is_true), is_true(now)) {
            (false, true) => Some(Self::True(now)),
            (true, false) => Some(Self::NoLonger(now)),
            _ => None,
        }
    }
}

/// Tells what `status` says otherwise than the channel's status of before: that it is ready, or no
/// longer, and what newly keeps it from being so for good.
pub(super) async fn of_status(ctx: &Context, channel: &SseChannel, status: &SseChannelStatus) {
    match Turn::of(channel, status, READY) {
        Some(Turn::True(now)) => ctx.tell(channel, "Ready", &now.message, false).await,
        Some(Turn::NoLonger(now)) => {
            let note = format!("{}: {}", now.reason, now.message);
            ctx.tell(channel, "NotReady", &note, true).await;
        }
        None => {}
    }
    let stalled = |status: &SseChannelStatus| {
        status::find(&status.conditions, STALLED).filter(|c| c.status == "True").cloned()
    };
    let before = channel.status.as_ref().and_then(stalled).map(|c| c.reason);
    let of_stream = status::find(&status.conditions, STREAM_READY).map(|c| c.reason.as_str());
    if let Some(now) = stalled(status)
        && before.as_ref() != Some(&now.reason)
        // That is told by itself.
        && of_stream != Some(now.reason.as_str())
    {
        ctx.tell(channel, &now.reason, &now.message, true).await;
    }
}

/// Pods asked for before and after a pass, where there is a Deployment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scaled {
    pub(super) before: Option<i32>,
    pub(super) after: Option<i32>,
}

/// Tells that this operator has changed the number of pods.
pub(super) async fn of_scaling(ctx: &Context, channel: &SseChannel, scaled: Scaled) {
    if let Scaled { before: Some(before), after: Some(after) } = scaled
        && before != after
    {
        let pods = count(usize::try_from(after).unwrap_or_default(), "pod");
        let action = if after > before { "ScaleUp" } else { "ScaleDown" };
        let note = format!("from {before} to {pods}");
        ctx.tell_of(&channel.object_ref(&()), "Scaled", &note, false, action).await;
    }
}

/// An object that this operator cannot read. Told once for each version of it.
pub(super) async fn of_undecodable(
    ctx: &Context,
    invalid: &InvalidObject,
    told: &mut Option<String>,
) {
    let version = &invalid.metadata.resource_version;
    if *told == *version {
        return;
    }
    told.clone_from(version);
    let object = ObjectReference {
        api_version: Some(SseChannel::api_version(&()).into_owned()),
        kind: Some(SseChannel::kind(&()).into_owned()),
        name: invalid.metadata.name.clone(),
        namespace: invalid.metadata.namespace.clone(),
        uid: invalid.metadata.uid.clone(),
        ..ObjectReference::default()
    };
    let note = format!(
        "the channel cannot be read and is left alone: {}; correct its spec",
        invalid.error
    );
    ctx.tell_of(&object, "Undecodable", &note, true, RECONCILE).await;
}
