//! The Service in front of a channel's pods. The admin port is not in it.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::common::{Settings, metadata, object_name, selector_labels};
use crate::{
    controller::validate::ValidChannel,
    crd::workload::{IpFamilyPolicy, ServiceType, SessionAffinity},
};

/// Port of the Service; clients inside the cluster need none in the URL.
pub(super) const PORT: i32 = 80;
/// Name of that port.
pub(super) const PORT_NAME: &str = "http";

pub(super) fn service(channel: &ValidChannel) -> Service {
    let mut metadata = metadata(channel);
    if !channel.service.annotations.is_empty() {
        metadata.annotations = Some(channel.service.annotations.clone());
    }
    let type_ = match channel.service.type_ {
        ServiceType::ClusterIP => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    let affinity = match channel.service.session_affinity {
        SessionAffinity::None => "None",
        SessionAffinity::ClientIP => "ClientIP",
    };
    let families = match channel.service.ip_family_policy {
        IpFamilyPolicy::SingleStack => "SingleStack",
        IpFamilyPolicy::PreferDualStack => "PreferDualStack",
        IpFamilyPolicy::RequireDualStack => "RequireDualStack",
    };
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(type_.to_owned()),
            ip_family_policy: Some(families.to_owned()),
            session_affinity: Some(affinity.to_owned()),
            selector: Some(selector_labels(channel.name.as_str())),
            ports: Some(vec![ServicePort {
                name: Some(PORT_NAME.to_owned()),
                port: PORT,
                protocol: Some("TCP".to_owned()),
                target_port: Some(IntOrString::String("http".to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The channel's address inside the cluster.
#[must_use]
pub(crate) fn internal_url(channel: &ValidChannel, settings: &Settings) -> String {
    let (name, service) = (channel.name.as_str(), object_name(channel.name.as_str()));
    format!(
        "http://{service}.{}.svc.{}/channels/{name}",
        channel.namespace, settings.cluster_domain
    )
}
