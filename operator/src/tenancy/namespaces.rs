//! What the Namespaces of the cluster grant, as it is known at the moment.
//!
//! An operator of all namespaces follows them; one of some namespaces has no right to a watch,
//! since Namespaces are in none, and reads each when it is needed.

use std::{
    collections::{BTreeMap, HashMap},
    pin::pin,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, ResourceExt,
    core::PartialObjectMeta,
    runtime::{PredicateConfig, WatchStreamExt, predicates, reflector, watcher},
};
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::{Mode, PREFIX, Rights, Settings};
use crate::kube_error;

/// How long what was read of a Namespace counts, where it is not followed: a grant that is
/// withdrawn is gone within a minute, with the time until the channel is looked at.
const AGE: Duration = Duration::from_secs(30);
/// Changed Namespaces that wait to be taken; beyond them channels learn of it when they are looked
/// at the next time.
const CHANGES: usize = 1024;

type Meta = PartialObjectMeta<Namespace>;

/// The Namespaces' grants.
pub struct Namespaces {
    settings: Settings,
    client: Client,
    followed: reflector::Store<Meta>,
    /// Taken by the task that follows Namespaces, where there is one.
    writer: Mutex<Option<reflector::store::Writer<Meta>>>,
    read: Mutex<HashMap<String, Read>>,
    changes: broadcast::Sender<String>,
}

#[derive(Clone)]
struct Read {
    at: Instant,
    /// Annotations, or why there are none.
    found: Result<BTreeMap<String, String>, String>,
}

impl Namespaces {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(settings: Settings, client: Client) -> Self {
        let (followed, writer) = reflector::store();
        let (changes, _) = broadcast::channel(CHANGES);
        let (writer, read) = (Mutex::new(Some(writer)), Mutex::default());
        Self { settings, client, followed, writer, read, changes }
    }

    /// Follows all Namespaces until `stop`.
    pub async fn follow(&self, stop: CancellationToken) {
        let writer = match self.settings.mode {
            Mode::Open => None,
            Mode::Isolated => self.writer.lock().take(),
        };
        // Nothing is to be followed, and a task that ends is one that has failed.
        let Some(writer) = writer else { return stop.cancelled().await };
        let namespaces = Api::<Meta>::all(self.client.clone());
        let changed = watcher(namespaces, watcher::Config::default())
            .default_backoff()
            .modify(strip)
            .reflect(writer)
            .applied_objects()
            .predicate_filter(predicates::annotations, PredicateConfig::default())
            .take_until(stop.cancelled());
        let (mut changed, mut trouble) = (pin!(changed), None);
        while let Some(namespace) = changed.next().await {
            match namespace {
                Ok(namespace) => {
                    trouble = None;
                    // Without a receiver there is no channel to tell.
                    let _ = self.changes.send(namespace.name_any());
                }
                Err(error) => {
                    let text = kube_error::text(&error);
                    if trouble.as_ref() != Some(&text) {
                        tracing::warn!(error = text, "Namespaces cannot be followed; retrying");
                        trouble = Some(text);
                    }
                }
            }
        }
    }

    /// Names of Namespaces whose grants have changed, where they are followed.
    pub fn changes(&self) -> impl Stream<Item = String> + Send + use<> {
        let changes = self.changes.subscribe();
        stream::unfold(changes, |mut changes| async {
            loop {
                match changes.recv().await {
                    Ok(namespace) => return Some((namespace, changes)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
    }

    /// What channels of `namespace` may ask for; `None` where everything may be asked for. Where
    /// the Namespace may not be read, nothing is granted by it.
    ///
    /// # Errors
    /// What may pass: the API server does not answer.
    pub async fn rights(&self, namespace: &str) -> Result<Option<Rights>, kube::Error> {
        if self.settings.mode == Mode::Open {
            return Ok(None);
        }
        let followed = self.followed.get(&reflector::ObjectRef::new(namespace));
        if let Some(found) = followed {
            return Ok(Some(self.settings.rights(namespace, found.annotations())));
        }
        Ok(Some(match self.read(namespace).await? {
            Ok(annotations) => self.settings.rights(namespace, &annotations),
            Err(why) => self.settings.rights(namespace, &BTreeMap::new()).unread(why),
        }))
    }

    async fn read(
        &self,
        namespace: &str,
    ) -> Result<Result<BTreeMap<String, String>, String>, kube::Error> {
        let known = self.read.lock().get(namespace).filter(|read| read.at.elapsed() < AGE).cloned();
        if let Some(read) = known {
            return Ok(read.found);
        }
        let at = Instant::now();
        let found = match Api::<Namespace>::all(self.client.clone()).get_metadata(namespace).await {
            Ok(mut found) => {
                strip(&mut found);
                Ok(std::mem::take(found.annotations_mut()))
            }
            Err(kube::Error::Api(status)) if [401, 403, 404].contains(&status.code) => {
                let said = kube_error::text(&kube::Error::Api(status));
                Err(format!(
                    "no grant of Namespace {namespace} counts, since it cannot be read ({said})"
                ))
            }
            Err(error) => return Err(error),
        };
        let mut read = self.read.lock();
        // As many as are in use.
        read.retain(|_, read| read.at.elapsed() < AGE);
        read.insert(namespace.to_owned(), Read { at, found: found.clone() });
        Ok(found)
    }
}

/// Leaves name and grants, of what may be a lot.
fn strip(namespace: &mut Meta) {
    namespace.managed_fields_mut().clear();
    namespace.labels_mut().clear();
    namespace.annotations_mut().retain(|name, _| name.starts_with(PREFIX));
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;
    use crate::{crd::manifest, tenancy::Ask};

    fn namespaces(code: u16, answer: Value, asked: &Arc<AtomicUsize>) -> Namespaces {
        let asked = Arc::clone(asked);
        let service = tower::service_fn(move |request: Request<Body>| {
            assert_eq!(request.uri().path(), "/api/v1/namespaces/shop");
            asked.fetch_add(1, Ordering::Relaxed);
            let body = Body::from(answer.to_string().into_bytes());
            async move { Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap()) }
        });
        let settings = Settings {
            mode: Mode::Isolated,
            max_bytes: "10Gi".parse().unwrap(),
            quota: "50Gi".parse().unwrap(),
            grants: BTreeMap::new(),
        };
        Namespaces::new(settings, Client::new(service, "shop"))
    }

    fn ask() -> Ask {
        let manifest = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "SseChannel",
            "metadata": {"name": "c", "namespace": "shop"}, "spec": {"stream": {"subjects": ["telemetry.>"]}}});
        Ask::of(&manifest::read(&manifest).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_namespace_that_may_not_be_read_grants_nothing_and_that_is_told() {
        let asked = Arc::default();
        let status =
            json!({"kind": "Status", "code": 403, "status": "Failure", "message": "no right"});
        let namespaces = namespaces(403, status, &asked);
        let rights = namespaces.rights("shop").await.unwrap().unwrap();
        let refused = rights.refused(&ask()).unwrap();
        assert!(refused.contains("cannot be read") && refused.contains("no right"), "{refused}");
    }

    #[tokio::test]
    async fn what_was_read_counts_for_a_while() {
        let asked: Arc<AtomicUsize> = Arc::default();
        let answer = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {
            "name": "shop", "annotations": {"tenancy.sluice.dev/subjects": "telemetry.>"}}});
        let namespaces = namespaces(200, answer, &asked);
        for _ in 0..3 {
            let rights = namespaces.rights("shop").await.unwrap().unwrap();
            assert_eq!(rights.refused(&ask()), None);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn an_api_server_that_is_away_is_no_verdict() {
        let status =
            json!({"kind": "Status", "code": 503, "status": "Failure", "message": "later"});
        let namespaces = namespaces(503, status, &Arc::default());
        assert!(namespaces.rights("shop").await.is_err());
    }
}
