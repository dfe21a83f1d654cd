//! Step 3: everything a pass needs to know of the cluster, read fresh, so that no stale cache
//! decides anything.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Debug,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, Resource, api::ListParams, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;

pub(crate) use super::kinds::Live;
use super::{
    desired::{self, object_name, selector_text},
    kinds::for_each_kind,
    validate::ValidChannel,
};

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
    let wanted = desired::wanted(channel);
    let mut unknown = BTreeSet::new();
    macro_rules! read {
        ($({
            $(#[$_doc:meta])*
            $field:ident: $kind:ty, $_presence:ident, $_part:ident, $_removal:ident
        })*) => {{
            let (pods, $($field,)*) = tokio::try_join!(
                pods.list(&selected),
                $(objects.optional(absent.look::<$kind>(wanted.$field)),)*
            )?;
            $(let $field = absent.note::<$kind>(wanted.$field, $field, &mut unknown);)*
            Live { $($field,)* unknown, pods: pods.items }
        }};
    }
    Ok(for_each_kind!(read))
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
