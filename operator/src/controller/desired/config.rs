//! The ConfigMap with the channel's file. Pods see a change of it without being restarted.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;

use super::common::metadata;
use crate::controller::validate::ValidChannel;

/// Name of the file of the channel `name`.
#[must_use]
pub(crate) fn file_name(name: &str) -> String {
    format!("{name}.json")
}

pub(super) fn config_map(channel: &ValidChannel) -> Result<ConfigMap, serde_json::Error> {
    Ok(ConfigMap {
        metadata: metadata(channel),
        data: Some(BTreeMap::from([(file_name(channel.name.as_str()), channel.config.to_json()?)])),
        ..ConfigMap::default()
    })
}
