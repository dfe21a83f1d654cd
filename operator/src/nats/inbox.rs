//! Where answers come to: each role and each channel has a prefix of its own, so that permissions
//! can keep one from reading the answers to another. All lie below NATS's default, `_INBOX`.

/// The operator's.
pub(crate) const OPERATOR: &str = "_INBOX.sluice.operator";

/// Of the pods of a namespace's channels.
#[must_use]
pub(crate) fn of_pods_in(namespace: &str) -> String {
    format!("_INBOX.sluice.pods.{namespace}")
}

/// Of the pods of one channel. Neither name has a dot.
#[must_use]
pub(crate) fn of_pods(namespace: &str, channel: &str) -> String {
    format!("{}.{channel}", of_pods_in(namespace))
}

/// Of publishers to one channel, or to all of a namespace.
#[must_use]
pub(crate) fn of_publishers(namespace: &str, channel: Option<&str>) -> String {
    let all = format!("_INBOX.sluice.publishers.{namespace}");
    channel.map_or_else(|| all.clone(), |channel| format!("{all}.{channel}"))
}
