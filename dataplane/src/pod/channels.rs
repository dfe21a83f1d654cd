//! The channels that the configuration directory names, and the task that keeps the log of each at
//! the tail of its stream.

use std::{collections::BTreeMap, sync::Arc};

use sluice_channel::ChannelConfig;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    channel::Channel,
    config_dir::{Changes, Troubles},
    frame::CloseReason,
    source::jetstream::{self, JetStream},
    state::Shared,
};

/// The channels and the tasks that keep their logs at the tail.
pub(super) struct Channels {
    shared: Arc<Shared>,
    connection: jetstream::Connection,
    tasks: TaskTracker,
    abort: CancellationToken,
    running: BTreeMap<String, CancellationToken>,
}

impl Channels {
    /// No channels yet; their tasks are tracked by `tasks` and end with `abort`.
    pub(super) fn new(
        shared: Arc<Shared>,
        connection: jetstream::Connection,
        tasks: TaskTracker,
        abort: CancellationToken,
    ) -> Self {
        Self { shared, connection, tasks, abort, running: BTreeMap::new() }
    }

    pub(super) fn apply(&mut self, changes: Changes) {
        for (path, reason) in changes.refused {
            tracing::warn!(path = %path.display(), reason, "a channel configuration was refused; what was in force stays so");
            self.shared.metrics.config_error();
        }
        for (path, fields) in changes.unknown {
            tracing::warn!(
                path = %path.display(),
                fields = fields.join(", "),
                "a channel configuration has fields that this release does not know; the rest is in force"
            );
        }
        for name in changes.removed {
            self.remove(&name);
        }
        for config in changes.set {
            self.set(config);
        }
        // Last: a request must not find a file mended and its channel not there yet.
        self.shared.set_troubles(changes.troubles);
    }

    /// The directory cannot be read: what is in force stays so, and nothing else is known.
    pub(super) fn unreadable(&self, error: &std::io::Error) {
        let mut troubles = Troubles::clone(&self.shared.troubles());
        troubles.directory = Some(error.to_string());
        self.shared.set_troubles(troubles);
    }

    fn set(&mut self, config: ChannelConfig) {
        let name = config.name.to_string();
        if let Some(channel) = self.shared.channel(&name).filter(|c| !c.is_removed()) {
            if channel.config().stream.name == config.stream.name
                && channel.config().stream.topic_prefix == config.stream.topic_prefix
            {
                tracing::info!(
                    channel = name,
                    generation = config.generation,
                    "configuration applied"
                );
                channel.set_config(config);
                return;
            }
            // Another stream is another channel: its cursors are of another epoch.
            self.remove(&name);
        }
        tracing::info!(channel = name, stream = %config.stream.name, "channel added");
        let source = JetStream::new(
            self.connection.clone(),
            config.stream.name.clone(),
            &config.stream.topic_prefix,
            &self.shared.instance,
        );
        let channel =
            Arc::new(Channel::new(config, Arc::new(source), self.shared.metrics.channel(&name)));
        let cancel = self.abort.child_token();
        self.tasks.spawn(Arc::clone(channel.log()).run(cancel.clone()));
        self.running.insert(name.clone(), cancel);
        self.shared.insert(name, channel);
    }

    fn remove(&mut self, name: &str) {
        let Some(channel) = self.shared.channel(name) else { return };
        tracing::info!(channel = name, "channel removed");
        channel.set_removed();
        if let Some(cancel) = self.running.remove(name) {
            cancel.cancel();
        }
        for entry in
            self.shared.registry.entries().iter().filter(|e| Arc::ptr_eq(e.channel(), &channel))
        {
            entry.close(CloseReason::Removed, channel.retry());
        }
    }
}
