//! The watches that wake channels. Each pauses by itself when it fails.

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use kube::{
    Api, Client, Resource,
    core::{NamespaceResourceScope, PartialObjectMeta},
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        utils::Backoff,
        watcher,
    },
};
use serde::de::DeserializeOwned;

use crate::controller::{
    context::Context,
    desired,
    followed::{Followed, Roll},
};

/// The channels of `namespace`, as they come and change. What has gone is forgotten on the way.
pub(super) fn followed(
    ctx: &Arc<Context>,
    namespace: Option<&str>,
) -> (Store<Followed>, impl Stream<Item = Result<Followed, watcher::Error>> + Send + use<>) {
    let (reader, writer) = reflector::store();
    let channels = scoped::<Followed>(&ctx.client, namespace);
    let (ctx, scope) = (Arc::clone(ctx), namespace.unwrap_or("*").to_owned());
    ctx.metrics.scope(&scope, false);
    let mut roll = Roll::default();
    let note = move |event: &Result<watcher::Event<Followed>, watcher::Error>| {
        ctx.metrics.scope(&scope, event.is_ok());
        let Ok(event) = event else { return };
        let before = roll.len();
        for gone in roll.note(event) {
            ctx.forget(&gone);
        }
        ctx.count(before, roll.len());
        if let watcher::Event::Apply(channel) = event
            && channel.is_edited()
        {
            ctx.gate.edited(&channel.reference());
        }
    };
    let events = watcher(channels, watcher::Config::default()).default_backoff();
    (reader, events.modify(Followed::strip).inspect(note).reflect(writer).applied_objects())
}

/// Whenever an object of that kind changes that the operator made, what is needed to find its
/// channel.
pub(super) fn children<K>(
    client: &Client,
    namespace: Option<&str>,
) -> impl Stream<Item = Result<PartialObjectMeta<K>, watcher::Error>> + Send + use<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let ours = format!("app.kubernetes.io/managed-by={}", desired::MANAGED_BY);
    let ours = watcher::Config::default().labels(&ours);
    let api = scoped::<PartialObjectMeta<K>>(client, namespace);
    watcher(api, ours).default_backoff().touched_objects()
}

/// Between failures of any of the watches. Each pauses by itself: one that lacks a right must not
/// hold up the others, and with them the edits of channels.
#[derive(Debug)]
pub(super) struct NoPause;

impl Iterator for NoPause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
}

impl Backoff for NoPause {
    fn reset(&mut self) {}
}

fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}
