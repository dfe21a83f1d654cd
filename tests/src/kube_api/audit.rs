//! The API server's audit log: each request with its account, and the answer.

use std::{collections::BTreeMap, path::PathBuf};

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;

/// Everything but the controllers' own reads, one entry a request, when it is answered.
pub(super) const POLICY: &str = include_str!("audit-policy.yaml");

/// Reads the audit log.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
}

/// One request to the API server.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, …
    pub verb: String,
    /// Path and query.
    #[serde(rename = "requestURI")]
    pub uri: String,
    /// The account that asked.
    pub user: User,
    /// What it was about.
    #[serde(default)]
    pub object_ref: ObjectRef,
    /// The answer.
    #[serde(default)]
    pub response_status: ResponseStatus,
    /// When it was received.
    pub request_received_timestamp: Timestamp,
    /// The body of a write.
    #[serde(default)]
    pub request_object: serde_json::Value,
    /// What the API server noted, such as the authorizer's decision.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// The caller.
#[derive(Debug, Clone, Deserialize)]
pub struct User {
    /// `system:serviceaccount:<namespace>:<name>` for a service account.
    pub username: String,
    /// What else is known of it.
    #[serde(default)]
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What a request is about.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectRef {
    /// Plural name of the kind.
    pub resource: String,
    /// API group, empty for core.
    pub api_group: String,
    /// Namespace, empty for none or all.
    pub namespace: String,
    /// Name, empty for lists.
    pub name: String,
    /// `status`, `scale`, …, or empty.
    pub subresource: String,
}

/// The answer to a request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ResponseStatus {
    /// HTTP status.
    pub code: u16,
}

impl Entry {
    /// The pod that asked, for a service account's token that was made for a pod.
    pub fn pod(&self) -> Option<&str> {
        self.user.extra.get("authentication.kubernetes.io/pod-name")?.first().map(String::as_str)
    }

    /// Whether it asks to change something.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }

    /// Whether the caller's rights did not cover it. An answer of 403 that authorization had
    /// allowed is another thing: nothing can be created in a namespace that is being deleted.
    pub fn is_denied(&self) -> bool {
        let decision = self.annotations.get("authorization.k8s.io/decision").map(String::as_str);
        self.response_status.code == 403 && decision != Some("allow")
    }

    /// `patch apps/deployments/scale team/orders → 200`.
    pub fn brief(&self) -> String {
        let of = &self.object_ref;
        let parts: Vec<&str> = [of.api_group.as_str(), &of.resource, &of.subresource]
            .into_iter()
            .filter(|p| !p.is_empty())
            .collect();
        format!(
            "{} {} {}/{} → {}",
            self.verb,
            parts.join("/"),
            of.namespace,
            of.name,
            self.response_status.code
        )
    }
}

impl Audit {
    /// The log that the API server writes at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Every answered request of `user` so far, oldest first.
    ///
    /// # Panics
    /// When the log cannot be read or holds what is no audit entry.
    pub fn of_user(&self, user: &str) -> Vec<Entry> {
        let text = std::fs::read_to_string(&self.path).expect("the audit log");
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        // Most lines are of other tests' users: look before parsing.
        whole
            .lines()
            .filter(|line| line.contains(user))
            .map(|line| {
                serde_json::from_str::<Entry>(line)
                    .unwrap_or_else(|e| panic!("audit entry: {e}: {line}"))
            })
            .filter(|entry| entry.user.username == user)
            .collect()
    }
}
