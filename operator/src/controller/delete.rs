//! The end of a channel. Its objects go with it by themselves; its stream only where
//! `deletionPolicy: Delete` says so, and only the one whose metadata names this very object.

use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use sluice_channel::{ChannelName, StreamName};

use super::{apply::is_not_found, context::Context, status, validate};
use crate::{
    crd::{ABANDON_STREAM, FINALIZER, ManagementPolicy, SseChannel, stream::DeletionPolicy},
    stream::{Deletion, Owner},
};

/// What is left to do for a channel that is being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing.
    Nothing,
    /// To come again: NATS is away.
    Retry,
}

/// Whether the channel has, and should have, the finalizer.
pub(super) fn has_finalizer(channel: &SseChannel) -> bool {
    channel.finalizers().iter().any(|f| f == FINALIZER)
}

/// Puts the finalizer on a channel whose stream is to be deleted with it, and takes it off one
/// whose stream stays. Taking it off needs nothing of NATS.
pub(super) async fn settle_finalizer(
    ctx: &Context,
    api: &Api<SseChannel>,
    channel: &SseChannel,
) -> Result<(), kube::Error> {
    match (channel.spec.stream.deletion_policy, has_finalizer(channel)) {
        (DeletionPolicy::Delete, false) => {
            let operation = if channel.finalizers().is_empty() {
                json!([{"op": "test", "path": "/metadata/finalizers", "value": null}, {"op": "add", "path": "/metadata/finalizers", "value": [FINALIZER]}])
            } else {
                json!([{"op": "add", "path": "/metadata/finalizers/-", "value": FINALIZER}])
            };
            patch(ctx, api, channel, operation).await
        }
        (DeletionPolicy::Retain, true) => remove_finalizer(ctx, api, channel).await,
        (DeletionPolicy::Delete, true) | (DeletionPolicy::Retain, false) => Ok(()),
    }
}

async fn remove_finalizer(
    ctx: &Context,
    api: &Api<SseChannel>,
    channel: &SseChannel,
) -> Result<(), kube::Error> {
    let Some(index) = channel.finalizers().iter().position(|f| f == FINALIZER) else {
        return Ok(());
    };
    let path = format!("/metadata/finalizers/{index}");
    // The test keeps another's finalizer safe when the list has moved meanwhile.
    let operation =
        json!([{"op": "test", "path": path, "value": FINALIZER}, {"op": "remove", "path": path}]);
    match patch(ctx, api, channel, operation).await {
        Err(error) if is_not_found(&error) => Ok(()),
        other => other,
    }
}

async fn patch(
    ctx: &Context,
    api: &Api<SseChannel>,
    channel: &SseChannel,
    operations: Value,
) -> Result<(), kube::Error> {
    let patch = serde_json::from_value(operations).map_err(kube::Error::SerdeError)?;
    ctx.metrics.api_write("SseChannel", "patch");
    api.patch(&channel.name_any(), &PatchParams::default(), &Patch::Json::<()>(patch))
        .await
        .map(|_| ())
}

/// Brings a deletion forward.
pub(super) async fn delete(
    ctx: &Context,
    api: &Api<SseChannel>,
    channel: &SseChannel,
) -> Result<Left, kube::Error> {
    let namespace = channel.namespace().unwrap_or_default();
    let stream = ChannelName::new(channel.name_any())
        .map_err(validate::Error::from)
        .and_then(|name| validate::stream_name(&channel.spec.stream, &namespace, &name));
    let owner = Owner {
        cluster: ctx.cluster.clone(),
        namespace,
        name: channel.name_any(),
        uid: channel.uid().unwrap_or_default(),
    };
    if !has_finalizer(channel) {
        ctx.streams.forget(&owner);
        return Ok(Left::Nothing);
    }
    // A name that is none can have no stream.
    let Ok(stream) = stream else {
        remove_finalizer(ctx, api, channel).await?;
        return Ok(Left::Nothing);
    };
    let may_delete = channel.spec.stream.deletion_policy == DeletionPolicy::Delete
        && channel.spec.management_policy == ManagementPolicy::Enforce
        && channel.annotations().get(ABANDON_STREAM).map(String::as_str) != Some(stream.as_str());
    if !may_delete {
        ctx.tell(channel, "StreamRetained", &format!("stream {stream} and its events stay"), false)
            .await;
        ctx.streams.forget(&owner);
        remove_finalizer(ctx, api, channel).await?;
        return Ok(Left::Nothing);
    }
    match ctx.streams.delete(&stream, &owner).await {
        Ok(Deletion::Deleted) => {
            ctx.tell(
                channel,
                "StreamDeleted",
                &format!("stream {stream} and its events are deleted"),
                false,
            )
            .await;
        }
        Ok(Deletion::NotFound) => {}
        Ok(Deletion::NotOurs) => {
            ctx.tell(
                channel,
                "StreamRetained",
                &format!("stream {stream} names another owner and was left alone"),
                true,
            )
            .await;
        }
        Err(error) => return wait(ctx, api, channel, &stream, &error).await,
    }
    remove_finalizer(ctx, api, channel).await?;
    Ok(Left::Nothing)
}

async fn wait(
    ctx: &Context,
    api: &Api<SseChannel>,
    channel: &SseChannel,
    stream: &StreamName,
    error: &crate::stream::Error,
) -> Result<Left, kube::Error> {
    let (name, namespace) = (channel.name_any(), channel.namespace().unwrap_or_default());
    let message = format!(
        "stream {stream} is still to be deleted: {error}. To let go of it and keep its events: \
         kubectl annotate sse/{name} -n {namespace} {ABANDON_STREAM}={stream}"
    );
    let why = status::Unobserved::Deleting(message);
    let status = status::unobserved(channel, &why, ctx.now());
    match status::write(api, channel, &status, &ctx.metrics).await {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(Left::Retry),
    }
}
