//! The Kubernetes side. [`watch`] starts a pass over a channel when something has changed or a
//! time is over, and a [`pass`] takes these steps:
//!
//! 1. [`validate`] (pure): the checks that the API server cannot make
//! 2. [`crate::stream`] (NATS): the stream is compared, written and read back
//! 3. [`live`] (client): the channel's objects and pods, read fresh; what the pods say is asked by
//!    the [`prober`], for which no pass waits
//! 4. [`desired`] (pure): the objects that should exist
//! 5. [`apply`] (client): those that differ are written
//! 6. [`status`] (pure, then written where it differs): what was observed

mod apply;
mod context;
mod delete;
pub(crate) mod desired;
mod foreign;
mod hash;
mod kinds;
mod live;
mod ownership;
mod pass;
mod pods;
pub(crate) mod prober;
mod quota;
mod remembered;
mod scaling;
mod status;
mod tell;
mod tenancy;
pub mod validate;
pub mod watch;

use std::{sync::Arc, time::Instant};

use kube::{
    ResourceExt,
    core::DeserializeGuard,
    runtime::{controller::Action, reflector::ObjectRef},
};
use tracing::{Instrument, Span};

use crate::crd::SseChannel;
use context::Context;
use pass::Error;

/// One pass over one channel, unless another operator leads: then every channel is looked at once
/// this one does.
async fn reconcile(
    object: Arc<DeserializeGuard<SseChannel>>,
    ctx: Arc<Context>,
) -> Result<Action, Error> {
    let channel = reference(&object);
    let pass = led(&channel, &ctx).instrument(span(&channel));
    ctx.lead.hold(pass).await.unwrap_or_else(|| Ok(Action::await_change()))
}

async fn led(channel: &ObjectRef<SseChannel>, ctx: &Context) -> Result<Action, Error> {
    let started = Instant::now();
    let result = tokio::time::timeout(pass::LIMIT, pass::run(ctx, channel)).await;
    let result = result.unwrap_or(Err(Error::TooLong));
    let outcome = match &result {
        Ok(_) => "ok",
        Err(_) => "error",
    };
    ctx.metrics.reconciled(outcome, started.elapsed());
    result
}

// The signature is kube's.
#[allow(clippy::needless_pass_by_value)]
fn on_error(object: Arc<DeserializeGuard<SseChannel>>, error: &Error, ctx: Arc<Context>) -> Action {
    let channel = reference(&object);
    let mut remembered = ctx.remembered.take(&channel);
    let (text, pause) = (error.to_string(), remembered.failed());
    // A pass is repeated for ever; one line for each fault is enough.
    if remembered.error.as_ref() != Some(&text) {
        let retry_seconds = pause.as_secs();
        span(&channel)
            .in_scope(|| tracing::warn!(error = text, retry_seconds, "reconciliation failed"));
        remembered.error = Some(text);
    }
    Action::requeue(pause)
}

/// Around every pass, so that each of its lines names its channel. Of the highest level, so that no
/// filter leaves it out.
fn span(channel: &ObjectRef<SseChannel>) -> Span {
    let namespace = channel.namespace.as_deref().unwrap_or_default();
    tracing::error_span!("channel", namespace, name = channel.name)
}

fn reference(object: &DeserializeGuard<SseChannel>) -> ObjectRef<SseChannel> {
    ObjectRef::new(&object.name_any()).within(&object.namespace().unwrap_or_default())
}

#[cfg(test)]
mod tests;
