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
mod followed;
mod foreign;
mod gate;
mod hash;
mod kinds;
mod live;
mod ownership;
mod pass;
mod pods;
pub(crate) mod prober;
mod quota;
mod remembered;
pub(crate) mod rollouts;
mod scaling;
mod status;
mod tell;
mod tenancy;
pub mod validate;
pub mod watch;

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use futures::FutureExt;
use kube::runtime::{controller::Action, reflector::ObjectRef};
use tracing::{Instrument, Span};

use crate::crd::SseChannel;
use context::Context;
use followed::Followed;
use pass::Error;

/// One pass over one channel, once it is its turn, unless another operator leads: then every
/// channel is looked at once this one does.
async fn reconcile(object: Arc<Followed>, ctx: Arc<Context>) -> Result<Action, Error> {
    let channel = object.reference();
    let pass = async {
        let known = ctx.channels.load(Ordering::Relaxed);
        let turn = ctx.gate.enter(&channel, object.is_edited(), known, ctx.resync);
        let Some(_slot) = turn.await else { return Ok(Action::await_change()) };
        // Passes that wait are many, and a pass under way is large.
        Box::pin(led(&channel, &ctx).instrument(span(&channel))).await
    };
    ctx.lead.hold(pass).await.unwrap_or_else(|| Ok(Action::await_change()))
}

async fn led(channel: &ObjectRef<SseChannel>, ctx: &Context) -> Result<Action, Error> {
    let started = Instant::now();
    let pass = contained(pass::run(ctx, channel));
    let result = match tokio::time::timeout(pass::LIMIT, pass).await {
        Err(_) => Err(Error::TooLong),
        Ok(Ok(result)) => result,
        Ok(Err(panicked)) => {
            ctx.metrics.queue.panicked();
            Err(panicked)
        }
    };
    let again = result.as_ref().is_ok_and(|action| *action != Action::await_change());
    ctx.metrics.queue.reconciled(result.is_err(), again, started.elapsed());
    result
}

/// Makes a panic the failure of the one pass that has it.
async fn contained<T>(pass: impl Future<Output = T>) -> Result<T, Error> {
    AssertUnwindSafe(pass).catch_unwind().await.map_err(|panic| Error::Panicked(text(&*panic)))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown").to_owned()
}

// The signature is kube's.
#[allow(clippy::needless_pass_by_value)]
fn on_error(object: Arc<Followed>, error: &Error, ctx: Arc<Context>) -> Action {
    let channel = object.reference();
    let mut remembered = ctx.remembered.take(&channel);
    remembered.belongs_to(Some(object.uid()));
    let (text, pause) = (error.to_string(), remembered.failed());
    // A pass is repeated for ever; one line for each fault is enough.
    if remembered.error.as_ref() != Some(&text) {
        let retry_seconds = pause.as_secs();
        span(&channel)
            .in_scope(|| tracing::warn!(error = text, retry_seconds, "reconciliation failed"));
        remembered.error = Some(text);
    }
    ctx.look_after(&channel, pause)
}

/// Around every pass, so that each of its lines names its channel. Of the highest level, so that no
/// filter leaves it out.
fn span(channel: &ObjectRef<SseChannel>) -> Span {
    let namespace = channel.namespace.as_deref().unwrap_or_default();
    tracing::error_span!("channel", namespace, name = channel.name)
}

#[cfg(test)]
mod tests;
