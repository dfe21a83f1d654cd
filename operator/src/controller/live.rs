//! Step 3: everything a pass needs to know of the cluster, read fresh, so that no stale cache
//! decides anything.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Debug,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{ConfigMap, Pod, Service, ServiceAccount},
    networking::v1::{Ingress, NetworkPolicy},
    policy::v1::PodDisruptionBudget,
};
use kube::{Api, Client, Resource, api::ListParams, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;

use super::{
    desired::{object_name, selector_text},
    foreign::{HTTPRoute, PodMonitor},
    validate::ValidChannel,
};
use crate::crd::{network::NetworkPolicyMode, workload};

/// The channel's objects as they are. An object of the right name that belongs to another owner is
/// here too: [`super::ownership::is_ours`] tells.
#[derive(Debug, Clone, Default)]
pub(crate) struct Live {
    pub(crate) service_account: Option<ServiceAccount>,
    pub(crate) config: Option<ConfigMap>,
    pub(crate) deployment: Option<Deployment>,
    pub(crate) service: Option<Service>,
    pub(crate) disruption_budget: Option<PodDisruptionBudget>,
    pub(crate) network_policy: Option<NetworkPolicy>,
    pub(crate) autoscaler: Option<HorizontalPodAutoscaler>,
    pub(crate) ingress: Option<Ingress>,
    pub(crate) http_route: Option<HTTPRoute>,
    pub(crate) pod_monitor: Option<PodMonitor>,
    /// Kinds that the cluster does not know.
    pub(crate) unknown: BTreeSet<String>,
    pub(crate) pods: Vec<Pod>,
}

/// How long an object that a channel does not ask for and does not have is believed not to appear.
const ABSENCE: Duration = Duration::from_secs(600);

/// Kinds that a channel does not ask for and has no object of, each with the time it was looked
/// for. Only this operator makes such objects, so a look in every pass would be waste.
#[derive(Debug, Default)]
pub(crate) struct Absent(HashMap<String, Instant>);

impl Absent {
    /// Whether to look for the object of a kind.
    fn look<K: Resource<DynamicType = ()>>(&mut self, wanted: bool) -> bool {
        let kind = K::kind(&());
        if wanted || self.0.get(&*kind).is_some_and(|since| since.elapsed() >= ABSENCE) {
            self.0.remove(&*kind);
        }
        !self.0.contains_key(&*kind)
    }

    /// Takes in what was found, or that nothing was looked for.
    fn note<K: Resource<DynamicType = ()>>(
        &mut self,
        wanted: bool,
        found: Optional<K>,
        unknown: &mut BTreeSet<String>,
    ) -> Option<K> {
        let kind = K::kind(&()).into_owned();
        let found = match found {
            Optional::Object(found) => found.map(|found| *found),
            Optional::UnknownKind => {
                unknown.insert(kind.clone());
                None
            }
        };
        if !wanted && found.is_none() {
            self.0.entry(kind).or_insert_with(Instant::now);
        }
        found
    }
}

/// Reads the objects of the channel.
///
/// # Errors
/// What the API server or the network said.
pub(crate) async fn read(
    client: &Client,
    channel: &ValidChannel,
    absent: &mut Absent,
) -> Result<Live, kube::Error> {
    let objects = ObjectReader {
        client,
        namespace: &channel.namespace,
        object: &object_name(channel.name.as_str()),
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), objects.namespace);
    let selected = ListParams::default().labels(&selector_text(channel.name.as_str()));
    let restricted = channel.network_policy.mode == NetworkPolicyMode::Restrict;
    let by_cpu = channel
        .workload
        .autoscaling
        .as_ref()
        .is_some_and(|scaling| scaling.cpu_utilization.is_some());
    let (by_ingress, by_route) =
        (channel.exposure.ingress.is_some(), channel.exposure.http_route.is_some());
    let monitored = channel.monitoring.pod_monitor == workload::PodMonitor::Enabled;

    let (
        service_account,
        config,
        deployment,
        service,
        disruption_budget,
        pods,
        policy,
        autoscaler,
        ingress,
        route,
        monitor,
    ) = tokio::try_join!(
        objects.get(),
        objects.get(),
        objects.get(),
        objects.get(),
        objects.get(),
        pods.list(&selected),
        objects.optional(absent.look::<NetworkPolicy>(restricted)),
        objects.optional(absent.look::<HorizontalPodAutoscaler>(by_cpu)),
        objects.optional(absent.look::<Ingress>(by_ingress)),
        objects.optional(absent.look::<HTTPRoute>(by_route)),
        objects.optional(absent.look::<PodMonitor>(monitored)),
    )?;
    let mut unknown = BTreeSet::new();
    Ok(Live {
        service_account,
        config,
        deployment,
        service,
        disruption_budget,
        network_policy: absent.note(restricted, policy, &mut unknown),
        autoscaler: absent.note(by_cpu, autoscaler, &mut unknown),
        ingress: absent.note(by_ingress, ingress, &mut unknown),
        http_route: absent.note(by_route, route, &mut unknown),
        pod_monitor: absent.note(monitored, monitor, &mut unknown),
        unknown,
        pods: pods.items,
    })
}

/// Reads the objects of one channel, which all have the same name.
struct ObjectReader<'a> {
    client: &'a Client,
    namespace: &'a str,
    object: &'a str,
}

/// An object of a kind that a channel may do without.
enum Optional<K> {
    Object(Option<Box<K>>),
    UnknownKind,
}

impl ObjectReader<'_> {
    fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    async fn get<K>(&self) -> Result<Option<K>, kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        self.api::<K>().get_opt(self.object).await
    }

    async fn optional<K>(&self, look: bool) -> Result<Optional<K>, kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        if !look {
            return Ok(Optional::Object(None));
        }
        match self.api::<K>().get(self.object).await {
            Ok(found) => Ok(Optional::Object(Some(Box::new(found)))),
            // An object that is missing is named in the answer; a kind that is missing is not even
            // known by name.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let named =
                    status.details.as_ref().is_some_and(|details| details.name == self.object);
                Ok(if named { Optional::Object(None) } else { Optional::UnknownKind })
            }
            Err(error) => Err(error),
        }
    }
}
