//! What a namespace may ask for, in a pass: the condition `Accepted`, channels that ask for more,
//! and the size of a stream for which there is no room.

use kube::{
    Api, ResourceExt,
    runtime::{controller::Action, reflector::ObjectRef},
};

use super::{
    context::Context,
    quota::{self, Look, Room},
    remembered::Remembered,
    status::{self, Unobserved},
    validate::ValidChannel,
};
use crate::{
    crd::{
        SseChannel, SseChannelStatus,
        condition::{
            self, ACCEPTED, Cause,
            ConditionStatus::{False, True, Unknown},
            Verdict, reason,
        },
    },
    stream,
    tenancy::Rights,
};

/// Puts the condition `Accepted` into `status`.
pub(super) fn set_accepted(
    ctx: &Context,
    channel: &SseChannel,
    status: &mut SseChannelStatus,
    accepted: &Verdict,
) {
    let previous = channel.status.as_ref().map(|status| status.conditions.as_slice());
    let generation = channel.metadata.generation;
    let merged = condition::merge(
        std::slice::from_ref(accepted),
        previous.unwrap_or_default(),
        generation,
        ctx.now(),
    );
    status.conditions.retain(|condition| condition.type_ != ACCEPTED);
    status.conditions.extend(merged);
}

/// The channel asks for nothing that its namespace may not have.
pub(super) fn accepted(rights: Option<&Rights>) -> Verdict {
    let message = match rights {
        Some(_) => "the namespace may ask for what the spec says",
        None => "namespaces are not kept apart: a channel may ask for everything",
    };
    Verdict::new(ACCEPTED, True, reason::ACCEPTED, message)
}

/// It is not known, since the channel is not looked at.
pub(super) fn unknown(why: &Cause) -> Verdict {
    Verdict::new(ACCEPTED, Unknown, why.reason, why.message.clone())
}

/// The end of a pass over a channel that asks for what is not granted. Where its stream is known to
/// be its own it goes on as it is, conditions included: a grant that is withdrawn must not end what
/// is served. Nothing is applied.
pub(super) async fn refuse(
    ctx: &Context,
    api: &Api<SseChannel>,
    channel: &SseChannel,
    why: &Unobserved,
) -> Result<Action, kube::Error> {
    let serves = channel.status.as_ref().filter(|status| {
        status.stream.as_ref().is_some_and(|stream| stream.owned)
            && status::find(&status.conditions, condition::READY).is_some()
    });
    let mut status = match serves {
        Some(status) => status.clone(),
        None => status::unobserved(channel, why, ctx.now()),
    };
    let Cause { reason, message } = why.cause();
    let verdict = Verdict::new(ACCEPTED, False, reason, message);
    end(ctx, api, channel, &mut status, &verdict).await
}

/// The end of a pass over a channel without a stream, for whose stream there is no room.
pub(super) async fn no_room(
    ctx: &Context,
    api: &Api<SseChannel>,
    channel: &SseChannel,
    message: String,
) -> Result<Action, kube::Error> {
    let why = Unobserved::NoRoom(message);
    let mut status = status::unobserved(channel, &why, ctx.now());
    let Cause { reason, message } = why.cause();
    let verdict = Verdict::new(ACCEPTED, False, reason, message);
    end(ctx, api, channel, &mut status, &verdict).await
}

async fn end(
    ctx: &Context,
    api: &Api<SseChannel>,
    channel: &SseChannel,
    status: &mut SseChannelStatus,
    verdict: &Verdict,
) -> Result<Action, kube::Error> {
    set_accepted(ctx, channel, status, verdict);
    let known = channel.status.as_ref().and_then(|s| status::find(&s.conditions, ACCEPTED));
    if known.is_none_or(|known| known.reason != verdict.reason) {
        ctx.tell(channel, verdict.reason, &verdict.message, true).await;
    }
    status::write(api, channel, status, &ctx.metrics).await?;
    let (namespace, name) = (channel.namespace().unwrap_or_default(), channel.name_any());
    ctx.metrics.channel(&namespace, &name, &status.conditions);
    // A grant, or room that others leave, is not always told of.
    Ok(ctx.look_after(&ObjectRef::from_obj(channel), ctx.resync))
}

/// What the channel's stream may be.
pub(super) enum Fit {
    /// As the channel has it now, with the verdict.
    Stream(Verdict),
    /// There is none, and there is no room for one.
    NoRoom(String),
    /// NATS could not be asked.
    Unknown(stream::Error),
}

/// Looks whether there is room for the stream. One that has been there keeps its size where there
/// is none for a larger one.
pub(super) async fn fit(
    ctx: &Context,
    rights: Option<&Rights>,
    channel: &SseChannel,
    valid: &mut ValidChannel,
    remembered: &mut Remembered,
) -> Result<Fit, kube::Error> {
    let fine = Fit::Stream(accepted(rights));
    let asked = (valid.stream.max_bytes, valid.stream.replicas);
    let Some(rights) = rights.filter(|_| remembered.fits != Some(asked)) else { return Ok(fine) };
    let look =
        Look { client: &ctx.client, streams: &ctx.streams, cluster: &ctx.cluster, rights, channel };
    Ok(match ctx.quotas.room(&look).await {
        Ok(Room::Enough) => {
            remembered.fits = Some(asked);
            fine
        }
        Ok(Room::Former { why, max_bytes, replicas }) => {
            valid.stream.replicas = replicas;
            valid.stream.max_bytes = max_bytes.unwrap_or(valid.stream.max_bytes);
            Fit::Stream(Verdict::new(
                ACCEPTED,
                False,
                reason::QUOTA_EXCEEDED,
                format!("{why}. The stream keeps its size until then"),
            ))
        }
        Ok(Room::None { why }) => Fit::NoRoom(why),
        Err(quota::Error::Stream(error)) => Fit::Unknown(error),
        Err(quota::Error::Api(error)) => return Err(error),
    })
}
