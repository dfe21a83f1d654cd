//! The etcd under the API server, written to directly: for objects that the API server itself would
//! refuse, as a later or an earlier version of our resource may have left them.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// Client of etcd's JSON gateway.
#[derive(Debug)]
pub struct Etcd {
    url: String,
}

impl Etcd {
    pub(super) fn new(url: String) -> Self {
        Self { url }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The stored JSON of the custom resource `group/plural` called `namespace/name`.
    ///
    /// # Panics
    /// When etcd does not answer or has no such object.
    pub async fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Value {
        let answer = self
            .call("range", &json!({"key": STANDARD.encode(key(group, plural, namespace, name))}))
            .await;
        let value = answer["kvs"][0]["value"].as_str().expect("a stored object");
        serde_json::from_slice(&STANDARD.decode(value).expect("base64"))
            .expect("custom resources are stored as JSON")
    }

    /// Stores `object` without any check.
    ///
    /// # Panics
    /// When etcd refuses it.
    pub async fn put(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
        object: &Value,
    ) {
        let value = STANDARD.encode(serde_json::to_vec(object).expect("an object"));
        self.call(
            "put",
            &json!({"key": STANDARD.encode(key(group, plural, namespace, name)), "value": value}),
        )
        .await;
    }

    async fn call(&self, what: &str, body: &Value) -> Value {
        let response = reqwest::Client::new()
            .post(format!("{}/v3/kv/{what}", self.url))
            .json(body)
            .send()
            .await
            .expect("etcd answers");
        let status = response.status();
        let text = response.text().await.expect("etcd's answer");
        assert!(status.is_success(), "etcd: {status}: {text}");
        serde_json::from_str(&text).expect("etcd's JSON")
    }
}

fn key(group: &str, plural: &str, namespace: &str, name: &str) -> String {
    format!("/registry/{group}/{plural}/{namespace}/{name}")
}
