//! `sluice-operator permissions`: the NATS permissions that a role needs and no more, as
//! nats-server and `nsc` take them.

use std::{collections::BTreeSet, io::Write, path::Path};

use kube::{Api, Client, Config, api::ListParams};
use serde_json::Value;

use crate::{
    args::{PermissionsArgs, Role},
    controller::validate::{self, ValidChannel},
    crd::{SseChannel, manifest, stream::DeletionPolicy},
    kube_error,
    nats::{api_prefix, inbox},
};

/// Namespace of a manifest that names none, as with kubectl.
const DEFAULT_NAMESPACE: &str = "default";
/// Largest manifest file, bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Why there are no permissions to print.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cluster is configured.
    #[error(
        "no Kubernetes cluster is configured: {0}. Set KUBECONFIG, or name a manifest with --filename"
    )]
    Kubeconfig(#[from] kube::config::InferConfigError),
    /// The API server does not give the channels.
    #[error("cannot read the channels: {}", kube_error::text(.0))]
    Kubernetes(#[from] kube::Error),
    /// The manifest cannot be used.
    #[error("{0}")]
    Manifest(String),
    /// The argument is no channel.
    #[error("{0:?} must be NAMESPACE/NAME")]
    Channel(String),
    /// A channel that cannot be made.
    #[error("channel {0}: {1}")]
    Invalid(String, validate::Error),
    /// There is nothing that needs permissions.
    #[error("there is no channel in namespace {0}")]
    NoChannels(String),
    /// The result could not be written.
    #[error("cannot write the result: {0}")]
    Output(#[from] std::io::Error),
}

/// What a role may do; everything else is denied.
#[derive(Debug, Default, PartialEq, Eq)]
struct Permissions {
    publish: BTreeSet<String>,
    subscribe: BTreeSet<String>,
}

/// Prints the permissions of the role that `args` names.
///
/// # Errors
/// [`Error`] when the channels cannot be read or are not valid.
pub async fn run(args: PermissionsArgs, mut output: impl Write) -> Result<(), Error> {
    let channels = channels(&args).await?;
    let valid = channels.into_iter().map(checked).collect::<Result<Vec<_>, _>>()?;
    let whole = args.namespace.as_deref();
    let permissions = of(args.role, &valid, whole, args.jetstream_domain.as_deref());
    let names: Vec<_> = valid.iter().map(|c| format!("{}/{}", c.namespace, c.name)).collect();
    let about = format!("{} of {}", args.role.subject(), names.join(", "));
    let user = match (valid.as_slice(), whole) {
        ([one], None) => format!("sluice-{}-{}-{}", args.role.user(), one.namespace, one.name),
        (_, namespace) => {
            format!("sluice-{}-{}", args.role.user(), namespace.unwrap_or("all"))
        }
    };
    output.write_all(text(&permissions, &about, &user, args.role).as_bytes())?;
    Ok(())
}

async fn channels(args: &PermissionsArgs) -> Result<Vec<SseChannel>, Error> {
    if let Some(file) = &args.filename {
        return from_file(file);
    }
    let client = Client::try_from(Config::infer().await?)?;
    if let Some(namespace) = &args.namespace {
        let api: Api<SseChannel> = Api::namespaced(client, namespace);
        let found = api.list(&ListParams::default()).await?.items;
        return if found.is_empty() {
            Err(Error::NoChannels(namespace.clone()))
        } else {
            Ok(found)
        };
    }
    let wanted = args.channel.as_deref().unwrap_or_default();
    let (namespace, name) =
        wanted.split_once('/').ok_or_else(|| Error::Channel(wanted.to_owned()))?;
    let api: Api<SseChannel> = Api::namespaced(client, namespace);
    Ok(vec![api.get(name).await?])
}

/// Channels that need not be in a cluster yet.
fn from_file(path: &Path) -> Result<Vec<SseChannel>, Error> {
    let fail = |why: String| Error::Manifest(format!("{}: {why}", path.display()));
    let size = path.metadata().map_err(|error| fail(error.to_string()))?.len();
    if size > MAX_FILE_BYTES {
        return Err(fail(format!("is larger than {MAX_FILE_BYTES} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
        .map_err(|error| fail(format!("is not YAML: {error}")))?;
    let ours = documents.iter().filter(|document| document["kind"] == "SseChannel");
    let channels = ours.map(manifest::read).collect::<Result<Vec<_>, _>>();
    let channels = channels.map_err(|problems| fail(problems.to_string()))?;
    if channels.is_empty() { Err(fail("holds no SseChannel".to_owned())) } else { Ok(channels) }
}

fn checked(mut channel: SseChannel) -> Result<ValidChannel, Error> {
    let metadata = &mut channel.metadata;
    metadata.namespace.get_or_insert_with(|| DEFAULT_NAMESPACE.to_owned());
    // No subject depends on it.
    metadata.uid.get_or_insert_default();
    let name = metadata.name.clone().unwrap_or_default();
    validate::validate(&channel, "").map_err(|error| Error::Invalid(name, error))
}

/// All that `role` needs for `channels`: of the `whole` namespace where its users are shared by all
/// of its channels.
fn of(
    role: Role,
    channels: &[ValidChannel],
    whole: Option<&str>,
    domain: Option<&str>,
) -> Permissions {
    let api = api_prefix(domain);
    let mut permissions = Permissions::default();
    if role == Role::Operator {
        // `sluice-operator check` asks whether there is JetStream.
        permissions.publish.insert(format!("{api}.INFO"));
        permissions.subscribe.insert(format!("{}.>", inbox::OPERATOR));
    }
    for channel in channels {
        let (namespace, stream) = (channel.namespace.as_str(), channel.stream.name.as_str());
        let name = channel.name.as_str();
        let of_stream = |request: &str| format!("{api}.{request}.{stream}");
        let subjects = channel.stream.subjects.iter().cloned();
        match role {
            Role::Operator => {
                let requests = ["INFO", "CREATE", "UPDATE", "MSG.GET"];
                permissions.publish.extend(requests.map(|r| of_stream(&format!("STREAM.{r}"))));
                if channel.deletion_policy == DeletionPolicy::Delete {
                    permissions.publish.insert(of_stream("STREAM.DELETE"));
                }
            }
            Role::Pod => {
                let requests = ["STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET"];
                permissions.publish.extend(requests.map(of_stream));
                // The last word is the consumer's name: a pod's own, with a random end.
                let consumers = ["CONSUMER.CREATE", "CONSUMER.DELETE", "CONSUMER.MSG.NEXT"];
                permissions.publish.extend(consumers.map(|r| format!("{}.*", of_stream(r))));
                if channel.config.publish.http {
                    permissions.publish.extend(subjects);
                }
                let inbox =
                    whole.map_or_else(|| inbox::of_pods(namespace, name), inbox::of_pods_in);
                permissions.subscribe.insert(format!("{inbox}.>"));
            }
            Role::Publisher => {
                permissions.publish.extend(subjects);
                let channel = whole.is_none().then_some(name);
                let inbox = inbox::of_publishers(namespace, channel);
                permissions.subscribe.insert(format!("{inbox}.>"));
            }
        }
    }
    permissions
}

/// Both forms, with a line on what they are for.
fn text(permissions: &Permissions, about: &str, user: &str, role: Role) -> String {
    let quoted = |subjects: &BTreeSet<String>| {
        subjects.iter().map(|s| format!("      {}", Value::from(s.as_str()))).collect::<Vec<_>>()
    };
    let listed = |subjects: &BTreeSet<String>| {
        // Subjects hold neither a quote nor a comma where `validate` has seen them; a shell and
        // `nsc` take them as they are.
        subjects.iter().map(String::as_str).collect::<Vec<_>>().join(",")
    };
    let hint = match role {
        Role::Publisher => {
            let inbox = permissions.subscribe.first().map_or("", |s| s.trim_end_matches(".>"));
            format!("# Acknowledgements come to an inbox of its own: set the client's inbox prefix to {inbox}.\n")
        }
        Role::Operator => "# A channel that is made later needs its own, before the operator can make its stream.\n".to_owned(),
        Role::Pod => String::new(),
    };
    format!(
        "# NATS permissions for the {about}. Everything else is denied.\n{hint}# nats-server, in a user of `authorization` or `accounts`:\npermissions: {{\n  publish: {{\n    allow: [\n{}\n    ]\n  }}\n  subscribe: {{\n    allow: [\n{}\n    ]\n  }}\n}}\n# nsc:\n# nsc add user --name {user} --allow-pub '{}' --allow-sub '{}'\n",
        quoted(&permissions.publish).join(",\n"),
        quoted(&permissions.subscribe).join(",\n"),
        listed(&permissions.publish),
        listed(&permissions.subscribe),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn channel(name: &str, spec: &Value) -> ValidChannel {
        let manifest = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "SseChannel",
            "metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        checked(manifest::read(&manifest).unwrap()).unwrap()
    }

    fn all(set: &BTreeSet<String>) -> Vec<&str> {
        set.iter().map(String::as_str).collect()
    }

    #[test]
    fn each_role_has_what_it_needs_and_no_more() {
        let spec = json!({"stream": {"name": "S", "subjects": ["a.>", "b.*"], "topicPrefix": ""}});
        let orders = [channel("orders", &spec)];
        let pod = of(Role::Pod, &orders, None, None);
        assert_eq!(
            all(&pod.publish),
            [
                "$JS.API.CONSUMER.CREATE.S.*",
                "$JS.API.CONSUMER.DELETE.S.*",
                "$JS.API.CONSUMER.MSG.NEXT.S.*",
                "$JS.API.DIRECT.GET.S",
                "$JS.API.STREAM.INFO.S",
                "$JS.API.STREAM.MSG.GET.S",
            ]
        );
        assert_eq!(all(&pod.subscribe), ["_INBOX.sluice.pods.shop.orders.>"]);
        let operator = of(Role::Operator, &orders, None, Some("hub"));
        assert_eq!(
            all(&operator.publish),
            [
                "$JS.hub.API.INFO",
                "$JS.hub.API.STREAM.CREATE.S",
                "$JS.hub.API.STREAM.INFO.S",
                "$JS.hub.API.STREAM.MSG.GET.S",
                "$JS.hub.API.STREAM.UPDATE.S",
            ]
        );
        assert_eq!(all(&operator.subscribe), ["_INBOX.sluice.operator.>"]);
        let publisher = of(Role::Publisher, &orders, None, None);
        assert_eq!(all(&publisher.publish), ["a.>", "b.*"]);
        assert_eq!(all(&publisher.subscribe), ["_INBOX.sluice.publishers.shop.orders.>"]);
    }

    #[test]
    fn a_pod_publishes_and_the_operator_deletes_only_where_the_spec_says_so() {
        let spec = json!({"publish": {"mode": "Http", "allowAnonymous": true}, "stream": {"deletionPolicy": "Delete"}});
        let orders = [channel("orders", &spec)];
        let pod = of(Role::Pod, &orders, None, None);
        assert!(pod.publish.contains("sse.shop.orders.>"));
        let operator = of(Role::Operator, &orders, None, None);
        assert!(operator.publish.iter().any(|s| s.starts_with("$JS.API.STREAM.DELETE.sse_shop_")));
    }

    #[test]
    fn a_namespace_has_what_its_channels_have_together() {
        let channels = [channel("orders", &json!({})), channel("news", &json!({}))];
        let publisher = of(Role::Publisher, &channels, Some("shop"), None);
        assert_eq!(all(&publisher.publish), ["sse.shop.news.>", "sse.shop.orders.>"]);
        assert_eq!(all(&publisher.subscribe), ["_INBOX.sluice.publishers.shop.>"]);
        let pod = of(Role::Pod, &channels, Some("shop"), None);
        assert_eq!((pod.publish.len(), pod.subscribe.len()), (12, 1));
    }
}
