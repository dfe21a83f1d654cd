//! Step 1, pure: an `SseChannel` as the API server holds it → a channel whose names, sizes and
//! durations are checked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use sluice_channel::{
    ChannelConfig, ChannelName, StreamName,
    config::{self, Encoding, Start},
    name, text,
};

use crate::{
    crd::{
        ManagementPolicy, SseChannel,
        delivery::{self, DeliverySpec, PublishMode},
        exposure::ExposureSpec,
        network::{NetworkPeer, NetworkPolicySpec},
        stream::{DeletionPolicy, StreamSpec},
        text::{DurationText, SizeText},
        workload::{MonitoringSpec, ServiceSpec, WorkloadSpec},
    },
    stream::{self, Owner},
    tenancy::{Ask, Rights},
};

/// Why a channel cannot be made what it asks for. Only a change of the channel helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The object has no name, namespace or UID: it does not come from an API server.
    #[error("metadata.{0} is missing")]
    Metadata(&'static str),
    /// The channel's or the stream's name.
    #[error(transparent)]
    Name(#[from] name::Error),
    /// A duration or a size.
    #[error("{field}: {source}")]
    Text {
        /// Path in the object.
        field: &'static str,
        /// What is wrong with it.
        source: text::Error,
    },
    /// The prefix does not fit the default subject.
    #[error(
        "spec.stream.topicPrefix {0:?} is no beginning of the default subject {1:?}; leave topicPrefix out, or set spec.stream.subjects as well"
    )]
    TopicPrefix(String, String),
    /// A range of addresses that is none.
    #[error(
        "spec.networkPolicy.from[{0}].cidr {1:?} must be a range of addresses like 10.0.0.0/8 or 2001:db8::/32"
    )]
    Cidr(usize, String),
    /// What the channel's namespace may not ask for.
    #[error("{0}")]
    NotGranted(String),
    /// A number that cannot be.
    #[error("{field} must be {must}")]
    Range {
        /// Path in the object.
        field: &'static str,
        /// What it must be.
        must: &'static str,
    },
}

/// A channel that can be made.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidChannel {
    pub(crate) name: ChannelName,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) generation: i64,
    /// What the operator may do.
    pub(crate) management_policy: ManagementPolicy,
    /// What becomes of the stream on delete.
    pub(crate) deletion_policy: DeletionPolicy,
    /// The stream.
    pub stream: stream::Desired,
    /// The file that the data plane reads.
    pub(crate) config: ChannelConfig,
    pub(crate) workload: WorkloadSpec,
    pub(crate) service: ServiceSpec,
    pub(crate) exposure: ExposureSpec,
    pub(crate) network_policy: NetworkPolicySpec,
    pub(crate) monitoring: MonitoringSpec,
}

/// The same as [`validate`], and checks that the channel asks for no more than its namespace may;
/// without `rights` it may ask for everything.
///
/// # Errors
/// [`Error::NotGranted`] tells what it may not ask for, and how that is granted.
pub fn within(
    channel: &SseChannel,
    cluster: &str,
    rights: Option<&Rights>,
) -> Result<ValidChannel, Error> {
    let mut valid = validate(channel, cluster)?;
    let granted = rights.and_then(|rights| rights.take_over(valid.stream.name.as_str()));
    valid.stream.take_over = granted.map(str::to_owned);
    let ask = rights.and_then(|rights| Some((rights, Ask::of(channel)?)));
    match ask.and_then(|(rights, ask)| rights.refused(&ask)) {
        Some(refused) => Err(Error::NotGranted(refused)),
        None => Ok(valid),
    }
}

/// Checks `channel`. `cluster` is the identity of the Kubernetes cluster, `local` without one.
///
/// # Errors
/// [`Error`] names the field and what it must be.
pub fn validate(channel: &SseChannel, cluster: &str) -> Result<ValidChannel, Error> {
    let metadata = &channel.metadata;
    let name = ChannelName::new(metadata.name.clone().ok_or(Error::Metadata("name"))?)?;
    let namespace = metadata.namespace.clone().ok_or(Error::Metadata("namespace"))?;
    let uid = metadata.uid.clone().ok_or(Error::Metadata("uid"))?;
    let generation = metadata.generation.unwrap_or_default();
    let owner = Owner {
        cluster: cluster.to_owned(),
        namespace: namespace.clone(),
        name: name.to_string(),
        uid: uid.clone(),
    };

    let spec = &channel.spec;
    let stream = stream(&spec.stream, owner, &namespace, &name)?;
    let config = ChannelConfig {
        version: config::VERSION,
        requires: Vec::new(),
        name: name.clone(),
        namespace: namespace.clone(),
        generation,
        stream: config::Stream {
            name: stream.name.clone(),
            subjects: stream.subjects.clone(),
            topic_prefix: topic_prefix(&spec.stream, &namespace, &name)?,
            max_message_size: stream.max_message_size,
            compacted: stream.max_messages_per_topic.is_some(),
        },
        delivery: delivery(&spec.delivery)?,
        publish: config::Publish { http: spec.publish.mode == PublishMode::Http },
    };
    Ok(ValidChannel {
        name,
        namespace,
        uid,
        generation,
        management_policy: spec.management_policy,
        deletion_policy: spec.stream.deletion_policy,
        stream,
        config,
        workload: spec.workload.clone(),
        service: spec.service.clone(),
        exposure: spec.exposure.clone(),
        network_policy: network_policy(&spec.network_policy)?,
        monitoring: spec.monitoring.clone(),
    })
}

fn network_policy(spec: &NetworkPolicySpec) -> Result<NetworkPolicySpec, Error> {
    // An empty one is a peer by labels.
    let is_range = |peer: &NetworkPeer| peer.cidr.is_empty() || is_cidr(&peer.cidr);
    match spec.from.iter().enumerate().find(|(_, peer)| !is_range(peer)) {
        Some((i, peer)) => Err(Error::Cidr(i, peer.cidr.clone())),
        None => Ok(spec.clone()),
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    !bits.starts_with('+') && bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

fn stream(
    spec: &StreamSpec,
    owner: Owner,
    namespace: &str,
    name: &ChannelName,
) -> Result<stream::Desired, Error> {
    let duration =
        |field, text: &DurationText| text.parse().map_err(|source| Error::Text { field, source });
    let size =
        |field, text: &SizeText| text.parse().map_err(|source| Error::Text { field, source });
    let subjects = match spec.subjects.as_slice() {
        [] => vec![name::default_subject(namespace, name)],
        subjects => subjects.iter().map(|s| s.0.clone()).collect(),
    };
    let replicas = usize::try_from(spec.replicas).ok().filter(|n| [1, 3, 5].contains(n));
    Ok(stream::Desired {
        name: stream_name(spec, namespace, name)?,
        subjects,
        storage: spec.storage,
        replicas: replicas
            .ok_or(Error::Range { field: "spec.stream.replicas", must: "1, 3 or 5" })?,
        max_age: duration("spec.stream.maxAge", &spec.max_age)?,
        max_bytes: size("spec.stream.maxBytes", &spec.max_bytes)?,
        max_messages: spec.max_messages,
        max_messages_per_topic: spec.max_messages_per_topic,
        max_message_size: size("spec.stream.maxMessageSize", &spec.max_message_size)?,
        duplicate_window: duration("spec.stream.duplicateWindow", &spec.duplicate_window)?,
        compression: spec.compression,
        placement: spec.placement.clone(),
        adoption: spec.adoption,
        unsaid: unsaid(spec),
        words: words(spec),
        owner,
        take_over: None,
    })
}

/// What the spec leaves at its default. The API server fills defaults in, so a default that is
/// written out is one, too, in whichever words.
fn unsaid(spec: &StreamSpec) -> BTreeSet<&'static str> {
    let default = StreamSpec::default();
    let duration =
        |text: &DurationText, default: &DurationText| text.parse().ok() == default.parse().ok();
    let size = |text: &SizeText, default: &SizeText| text.parse().ok() == default.parse().ok();
    [
        ("num_replicas", spec.replicas == default.replicas),
        ("max_age", duration(&spec.max_age, &default.max_age)),
        ("max_bytes", size(&spec.max_bytes, &default.max_bytes)),
        ("max_msg_size", size(&spec.max_message_size, &default.max_message_size)),
        ("duplicate_window", duration(&spec.duplicate_window, &default.duplicate_window)),
        ("compression", spec.compression == default.compression),
        ("placement", spec.placement == default.placement),
    ]
    .into_iter()
    .filter_map(|(field, is_default)| is_default.then_some(field))
    .collect()
}

/// The spec's own words for what can be written in several ways: 24h and 1440m are the same.
fn words(spec: &StreamSpec) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("max_age", spec.max_age.0.clone()),
        ("max_bytes", spec.max_bytes.0.clone()),
        ("max_msg_size", spec.max_message_size.0.clone()),
        ("duplicate_window", spec.duplicate_window.0.clone()),
    ])
}

/// The name of the stream behind a channel, also when the rest of its spec is invalid: a delete
/// needs no more.
///
/// # Errors
/// [`Error::Name`] when the name chosen by the user is none.
pub(crate) fn stream_name(
    spec: &StreamSpec,
    namespace: &str,
    name: &ChannelName,
) -> Result<StreamName, Error> {
    if spec.name.is_empty() {
        Ok(StreamName::derived(namespace, name))
    } else {
        Ok(StreamName::new(spec.name.clone())?)
    }
}

fn topic_prefix(spec: &StreamSpec, namespace: &str, name: &ChannelName) -> Result<String, Error> {
    let default_subject = name::default_subject(namespace, name);
    match (spec.subjects.is_empty(), spec.topic_prefix.as_str()) {
        (true, "") => Ok(name::default_topic_prefix(namespace, name)),
        (true, prefix) if default_subject.starts_with(prefix) => Ok(prefix.to_owned()),
        (true, prefix) => Err(Error::TopicPrefix(prefix.to_owned(), default_subject)),
        (false, prefix) => Ok(prefix.to_owned()),
    }
}

fn delivery(spec: &DeliverySpec) -> Result<config::Delivery, Error> {
    let duration =
        |field, text: &DurationText| text.parse().map_err(|source| Error::Text { field, source });
    let start = |position| match position {
        delivery::Position::Latest => Start::Latest,
        delivery::Position::Earliest => Start::Earliest,
    };
    let max_connections = u32::try_from(spec.max_connections_per_pod);
    Ok(config::Delivery {
        start_at: start(spec.start_at),
        on_gap: start(spec.on_gap),
        heartbeat: duration("spec.delivery.heartbeat", &spec.heartbeat)?,
        retry_min: duration("spec.delivery.retry.min", &spec.retry.min)?,
        retry_max: duration("spec.delivery.retry.max", &spec.retry.max)?,
        max_connection_age: duration("spec.delivery.maxConnectionAge", &spec.max_connection_age)?,
        write_timeout: duration("spec.delivery.writeTimeout", &spec.write_timeout)?,
        max_connections: max_connections.map_err(|_| Error::Range {
            field: "spec.delivery.maxConnectionsPerPod",
            must: "from 1 to 1000000",
        })?,
        cache_bytes: spec
            .cache
            .parse()
            .map_err(|source| Error::Text { field: "spec.delivery.cache", source })?,
        encoding: match spec.encoding {
            delivery::Encoding::Text => Encoding::Text,
            delivery::Encoding::Base64 => Encoding::Base64,
        },
        cors: config::Cors {
            allowed_origins: spec.cors.allowed_origins.iter().map(|o| o.0.clone()).collect(),
            allow_credentials: spec.cors.allow_credentials,
            max_age: duration("spec.delivery.cors.maxAge", &spec.cors.max_age)?,
        },
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::crd::manifest;

    /// A channel as the API server would hold it. Namespace, name and UID differ, so that a mix-up
    /// shows.
    pub(crate) fn channel(name: &str, spec: &Value) -> SseChannel {
        let manifest = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "SseChannel",
            "metadata": {"name": name, "namespace": "shop", "uid": "b1f6", "generation": 7}, "spec": spec});
        manifest::read(&manifest).unwrap()
    }

    #[test]
    fn the_file_says_what_the_spec_says() {
        let spec = json!({"delivery": {"startAt": "Earliest", "onGap": "Latest", "heartbeat": "20s", "retry": {"min": "2s", "max": "9s"},
            "maxConnectionAge": "30m", "writeTimeout": "11s", "maxConnectionsPerPod": 5, "cache": "2Mi", "encoding": "Base64",
            "cors": {"allowedOrigins": ["https://a.example"], "allowCredentials": true, "maxAge": "2h"}},
            "stream": {"maxMessagesPerTopic": 1, "maxMessageSize": "2Ki"}, "publish": {"mode": "Http", "allowAnonymous": true}});
        let config = validate(&channel("orders", &spec), "c").unwrap().config;
        insta::assert_snapshot!(config.to_json().unwrap());
        assert_eq!(ChannelConfig::from_json(config.to_json().unwrap().as_bytes()).unwrap(), config);
    }

    #[test]
    fn a_default_channel_has_its_own_stream_and_subject() {
        let channel = validate(&channel("orders", &json!({})), "c").unwrap();
        assert!(channel.stream.name.as_str().starts_with("sse_shop_orders_"));
        assert_eq!(channel.stream.subjects, ["sse.shop.orders.>"]);
        assert_eq!(channel.config.stream.topic_prefix, "sse.shop.orders.");
        assert_eq!(channel.config.generation, 7);
    }

    #[test]
    fn a_range_of_addresses_is_one() {
        for (cidr, good) in [
            ("10.0.0.0/8", true),
            ("2001:db8::/32", true),
            ("10.0.0.0", false),
            ("10.0.0.0/33", false),
            ("10.0.0/8", false),
            ("10.0.0.0/+8", false),
            ("ten/8", false),
        ] {
            // Past the definition's own rules, as they may be of another release.
            let mut channel = channel("orders", &json!({}));
            let policy =
                json!({"mode": "Restrict", "from": [{"podLabels": {"a": "b"}}, {"cidr": cidr}]});
            channel.spec.network_policy = serde_json::from_value(policy).unwrap();
            let result = validate(&channel, "c").map(|_| ());
            assert_eq!(result, if good { Ok(()) } else { Err(Error::Cidr(1, cidr.to_owned())) });
        }
    }

    #[test]
    fn with_subjects_of_its_own_a_channel_has_no_prefix_unless_it_says_so() {
        let prefix = |spec: Value| {
            validate(&channel("orders", &json!({"stream": spec})), "c")
                .map(|c| c.config.stream.topic_prefix)
        };
        assert_eq!(prefix(json!({"subjects": ["a.>"]})).unwrap(), "");
        assert_eq!(prefix(json!({"subjects": ["a.b.>"], "topicPrefix": "a."})).unwrap(), "a.");
        assert_eq!(prefix(json!({"topicPrefix": "sse.shop."})).unwrap(), "sse.shop.");
        assert!(matches!(prefix(json!({"topicPrefix": "other."})), Err(Error::TopicPrefix(..))));
    }
}
