//! What the admin listener shows of each channel: `/readyz` and the console say the same.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{channel::Channel, log::Head, state::Shared};

/// What is told of each channel that is served, and what it was told of: the channel, and its head
/// at that moment.
pub(super) fn served(shared: &Shared) -> Vec<(Arc<Channel>, Head, Value)> {
    let tell = |channel: Arc<Channel>| {
        let (config, head, status) =
            (channel.config(), channel.log().head_now(), channel.log().status());
        let told = json!({
            "name": config.name.as_str(),
            "namespace": config.namespace,
            "generation": config.generation,
            "reader": status.activity,
            "epoch": head.epoch.map(|e| e.to_string()),
            "last": head.next.saturating_sub(1),
            "error": status.error,
            "connections": channel.connections(),
        });
        drop(config);
        (channel, head, told)
    };
    shared.channels().into_iter().filter(|channel| !channel.is_removed()).map(tell).collect()
}

/// Adds to `told` what of the configuration is not in force, if anything.
pub(super) fn troubles(shared: &Shared, told: &mut Value) {
    let troubles = shared.troubles();
    let refused: Vec<_> = troubles
        .told()
        .map(|refused| json!({"file": refused.file, "reason": refused.reason}))
        .collect();
    if !refused.is_empty() {
        told["refused"] = json!(refused);
    }
    if troubles.unknown_fields > 0 {
        told["unknownFields"] = json!(troubles.unknown_fields);
    }
    if let Some(error) = &troubles.directory {
        told["configuration"] = json!(error);
    } else if shared.channels().is_empty() {
        told["configuration"] = json!("no channel is configured");
    }
}
