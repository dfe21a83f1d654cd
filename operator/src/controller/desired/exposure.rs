//! The way in from outside: an Ingress or an HTTPRoute to the channel's Service.

use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule,
    IngressServiceBackend, IngressSpec, IngressTLS, ServiceBackendPort,
};
use serde_json::json;

use super::{
    common::{metadata, object_name},
    service,
};
use crate::{
    controller::{
        foreign::{HTTPRoute, HTTPRouteSpec, ParentReference},
        validate::ValidChannel,
    },
    crd::exposure::{self, Scheme},
};

/// Path at which the pods serve the channel.
fn served_path(channel: &ValidChannel) -> String {
    format!("/channels/{}", channel.name)
}

pub(super) fn ingress(channel: &ValidChannel) -> Option<Ingress> {
    let spec = channel.exposure.ingress.as_ref()?;
    let mut metadata = metadata(channel);
    if !spec.annotations.is_empty() {
        metadata.annotations = Some(spec.annotations.clone());
    }
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let service = IngressServiceBackend {
        name: object_name(channel.name.as_str()),
        port: Some(ServiceBackendPort { name: Some(service::PORT_NAME.to_owned()), number: None }),
    };
    let path = HTTPIngressPath {
        path: Some(given(&spec.path).unwrap_or_else(|| served_path(channel))),
        path_type: "Prefix".to_owned(),
        backend: IngressBackend { service: Some(service), resource: None },
    };
    Some(Ingress {
        metadata,
        spec: Some(IngressSpec {
            ingress_class_name: given(&spec.class_name),
            rules: Some(vec![IngressRule {
                host: Some(spec.host.clone()),
                http: Some(HTTPIngressRuleValue { paths: vec![path] }),
            }]),
            tls: given(&spec.tls_secret_name).map(|secret| {
                vec![IngressTLS { hosts: Some(vec![spec.host.clone()]), secret_name: Some(secret) }]
            }),
            ..IngressSpec::default()
        }),
        ..Ingress::default()
    })
}

pub(super) fn http_route(channel: &ValidChannel) -> Option<HTTPRoute> {
    let spec = channel.exposure.http_route.as_ref()?;
    let (public, served) = (public_path(channel, spec), served_path(channel));
    let mut rule = json!({
        "matches": [{"path": {"type": "PathPrefix", "value": public}}],
        "backendRefs": [{"name": object_name(channel.name.as_str()), "port": service::PORT}],
        // A stream is one request that lasts; the limits of some Gateways are 15 s by default. Zero
        // means none.
        "timeouts": {"request": "0s"},
    });
    if !is_above(&public, &served) {
        rule["filters"] = json!([{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": served}}}]);
    }
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let parents = spec.parent_refs.iter().map(|parent| ParentReference {
        name: parent.name.clone(),
        namespace: given(&parent.namespace),
        section_name: given(&parent.section_name),
    });
    let mut route = HTTPRoute::new(
        "",
        HTTPRouteSpec {
            parent_refs: parents.collect(),
            hostnames: spec.hostnames.iter().map(|h| h.0.clone()).collect(),
            rules: vec![rule],
        },
    );
    route.metadata = metadata(channel);
    Some(route)
}

/// The path that the route matches, without a `/` at the end.
fn public_path(channel: &ValidChannel, spec: &exposure::HttpRouteSpec) -> String {
    match spec.path.as_str() {
        "" => served_path(channel),
        path => {
            Some(path.trim_end_matches('/')).filter(|p| !p.is_empty()).unwrap_or("/").to_owned()
        }
    }
}

/// Whether requests for `served` match `public` as they are; otherwise the path has to be
/// rewritten.
fn is_above(public: &str, served: &str) -> bool {
    public == "/" || served == public || served.starts_with(&format!("{public}/"))
}

/// The channel's addresses outside the cluster, as far as its spec names a host.
#[must_use]
pub(crate) fn external_urls(channel: &ValidChannel) -> Vec<String> {
    let url = |scheme: &str, host: &str, path: &str| format!("{scheme}://{host}{path}");
    let is_one = |host: &&str| !host.starts_with('*');
    let served = served_path(channel);
    if let Some(ingress) = &channel.exposure.ingress {
        let scheme = if ingress.tls_secret_name.is_empty() { "http" } else { "https" };
        return Some(ingress.host.as_str())
            .filter(is_one)
            .map(|host| url(scheme, host, &served))
            .into_iter()
            .collect();
    }
    let Some(route) = &channel.exposure.http_route else { return Vec::new() };
    let scheme = match route.scheme {
        Scheme::Https => "https",
        Scheme::Http => "http",
    };
    let public = public_path(channel, route);
    let path = if is_above(&public, &served) { served } else { public };
    route
        .hostnames
        .iter()
        .map(|h| h.0.as_str())
        .filter(is_one)
        .map(|host| url(scheme, host, &path))
        .collect()
}
