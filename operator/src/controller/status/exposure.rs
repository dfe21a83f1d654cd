//! The condition Exposed: what the Ingress or the HTTPRoute says of itself.

use k8s_openapi::{api::networking::v1::Ingress, apimachinery::pkg::apis::meta::v1::Condition};
use kube::ResourceExt;

use super::outcome::Outcome;
use crate::{
    controller::{
        apply,
        foreign::{HTTPRoute, ParentReference},
        live::Live,
        validate::ValidChannel,
    },
    crd::{
        SseChannel,
        condition::{Cause, ConditionStatus::Unknown, EXPOSED, Verdict, reason},
    },
};

/// What became of the way in from outside.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Exposure<'a> {
    /// None was asked for.
    NotRequested,
    /// It is not made before the pods' objects.
    Waiting,
    /// It could not be made.
    Failed(&'a apply::Error),
    Ingress(Option<&'a Ingress>),
    Route(Option<&'a HTTPRoute>),
}

impl<'a> Exposure<'a> {
    /// What became of the channel's way in, given what became of its objects.
    #[must_use]
    pub(crate) fn of(channel: &ValidChannel, applied: &'a apply::Applied, live: &'a Live) -> Self {
        let exposure = &channel.exposure;
        if exposure.ingress.is_none() && exposure.http_route.is_none() {
            // What is left of an earlier wish is told, too.
            return applied.exposure.as_ref().err().map_or(Self::NotRequested, Self::Failed);
        }
        match (&applied.pods, &applied.exposure) {
            (_, Err(error)) => Self::Failed(error),
            (Err(_), Ok(())) => Self::Waiting,
            // Not served yet: see `Workload::Waiting`.
            (Ok(()), Ok(())) if live.deployment.is_none() => Self::Waiting,
            (Ok(()), Ok(())) if exposure.ingress.is_some() => Self::Ingress(live.ingress.as_ref()),
            (Ok(()), Ok(())) => Self::Route(live.http_route.as_ref()),
        }
    }
}

pub(super) fn outcome(exposure: Exposure<'_>) -> Outcome {
    let left = |why, message: &str| Outcome::Left(Cause::new(why, message));
    match exposure {
        Exposure::NotRequested => Outcome::Serving(not_requested()),
        Exposure::Waiting => left(reason::PENDING, "it is made once the channel's pods are"),
        Exposure::Failed(apply::Error::UnknownKind { kind }) => {
            let message = format!(
                "the cluster does not know the kind {kind}: install the Gateway API (version 1.2 or newer), or use spec.exposure.ingress; this is retried automatically"
            );
            let cause = Cause::new(reason::GATEWAY_API_MISSING, message);
            Outcome::Blocked { cause, transient: false }
        }
        Exposure::Failed(error) => super::failure(error, false),
        Exposure::Ingress(None) => left(reason::SERVER_DIFFERS, "there is no Ingress"),
        Exposure::Route(None) => left(reason::SERVER_DIFFERS, "there is no HTTPRoute"),
        Exposure::Ingress(Some(ingress)) => by_ingress(ingress),
        Exposure::Route(Some(route)) => by_route(route),
    }
}

/// The verdict on a channel that is not looked at.
pub(super) fn unobserved(channel: &SseChannel, why: &'static str, message: &str) -> Verdict {
    let exposure = &channel.spec.exposure;
    if exposure.ingress.is_none() && exposure.http_route.is_none() {
        return Outcome::Serving(not_requested()).verdict(EXPOSED);
    }
    Verdict::new(EXPOSED, Unknown, why, message)
}

fn not_requested() -> Cause {
    Cause::new(reason::NOT_REQUESTED, "not exposed outside the cluster (spec.exposure is empty)")
}

fn by_ingress(ingress: &Ingress) -> Outcome {
    let points = ingress
        .status
        .iter()
        .flat_map(|s| &s.load_balancer)
        .flat_map(|b| b.ingress.iter().flatten());
    let address = points
        .filter_map(|point| point.hostname.as_deref().or(point.ip.as_deref()))
        .find(|address| !address.is_empty());
    if let Some(address) = address {
        let message = format!("the Ingress has the address {address}");
        return Outcome::Serving(Cause::new(reason::ACCEPTED, message));
    }
    let class = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref());
    let class = class
        .map_or_else(|| "the cluster's default class".to_owned(), |class| format!("class {class}"));
    let message = format!(
        "Ingress {} has no address: see that a controller for {class} runs and publishes its address in the status of Ingresses",
        ingress.name_any()
    );
    Outcome::Left(Cause::new(reason::NO_ADDRESS, message))
}

fn by_route(route: &HTTPRoute) -> Outcome {
    let refused = route
        .spec
        .parent_refs
        .iter()
        .find_map(|parent| objection(route, parent).map(|what| (parent, what)));
    match refused {
        None => {
            Outcome::Serving(Cause::new(reason::ACCEPTED, "every Gateway has taken the HTTPRoute"))
        }
        Some((parent, what)) => {
            let message =
                format!("Gateway {}/{}: {what}", namespace_of(route, parent), parent.name);
            // No watch tells of HTTPRoutes.
            Outcome::Settling { cause: Cause::new(reason::NOT_ACCEPTED, message), served: false }
        }
    }
}

/// What keeps a Gateway from taking the route; `None` = it has taken it.
fn objection(route: &HTTPRoute, parent: &ParentReference) -> Option<String> {
    let same = |other: &ParentReference| {
        other.name == parent.name
            && namespace_of(route, other) == namespace_of(route, parent)
            && other.section_name == parent.section_name
    };
    // What was said of an older generation says nothing of this one.
    let current =
        |condition: &&Condition| condition.observed_generation >= route.metadata.generation;
    let said = route
        .status
        .iter()
        .flat_map(|status| &status.parents)
        .filter(|status| same(&status.parent_ref));
    let mut objection =
        "it has not said whether it takes the HTTPRoute; see that the Gateway is there, and a controller for its class".to_owned();
    for status in said {
        let find =
            |type_: &str| status.conditions.iter().filter(current).find(|c| c.type_ == type_);
        let Some(accepted) = find("Accepted") else { continue };
        match find("ResolvedRefs").filter(|c| c.status == "False") {
            None if accepted.status == "True" => return None,
            Some(refs) if accepted.status == "True" => {
                objection = format!("{}: {}", refs.reason, refs.message);
            }
            _ => objection = format!("{}: {}", accepted.reason, accepted.message),
        }
    }
    Some(objection)
}

fn namespace_of(route: &HTTPRoute, parent: &ParentReference) -> String {
    parent.namespace.clone().or_else(|| route.namespace()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::crd::condition::ConditionStatus::{False, True};

    fn route(parents: &Value) -> HTTPRoute {
        serde_json::from_value(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "orders-sse", "namespace": "shop", "generation": 3},
            "spec": {"parentRefs": [{"name": "web", "namespace": "infra"}, {"name": "own"}], "rules": []},
            "status": {"parents": parents},
        }))
        .unwrap()
    }

    fn said(parent: &Value, type_: &str, status: &str, generation: i64) -> Value {
        let condition = |type_: &str, status: &str| {
            json!({"type": type_, "status": status, "reason": "Because", "message": "so it is", "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let other = if type_ == "Accepted" { "ResolvedRefs" } else { "Accepted" };
        json!({"parentRef": parent, "controllerName": "a.example/c", "conditions": [condition(other, "True"), condition(type_, status)]})
    }

    #[test]
    fn a_route_is_accepted_when_every_gateway_took_this_generation() {
        let (web, own) = (
            json!({"name": "web", "namespace": "infra"}),
            json!({"group": "g", "name": "own", "namespace": "shop"}),
        );
        let good = |parent: &Value| said(parent, "Accepted", "True", 3);
        for (parents, expected) in [
            (json!([good(&web), good(&own)]), None),
            (json!([good(&own), said(&web, "Accepted", "False", 3), good(&web)]), None),
            (json!([]), Some("Gateway infra/web: it has not said")),
            (json!([good(&web)]), Some("Gateway shop/own: it has not said")),
            (
                json!([good(&web), said(&own, "Accepted", "True", 2)]),
                Some("Gateway shop/own: it has not said"),
            ),
            (
                json!([good(&web), said(&own, "Accepted", "False", 3)]),
                Some("Gateway shop/own: Because: so it is"),
            ),
            (
                json!([said(&web, "ResolvedRefs", "False", 3), good(&own)]),
                Some("Gateway infra/web: Because: so it is"),
            ),
        ] {
            let verdict = by_route(&route(&parents)).verdict(EXPOSED);
            match expected {
                None => assert_eq!(
                    (verdict.status, verdict.reason),
                    (True, reason::ACCEPTED),
                    "{parents}"
                ),
                Some(text) => {
                    assert_eq!(
                        (verdict.status, verdict.reason),
                        (False, reason::NOT_ACCEPTED),
                        "{parents}"
                    );
                    assert!(verdict.message.starts_with(text), "{}", verdict.message);
                }
            }
        }
    }

    #[test]
    fn an_ingress_without_an_address_leads_nowhere() {
        let ingress = |points: Value| {
            let status = json!({"metadata": {"name": "orders-sse"}, "spec": {"ingressClassName": "nginx"}, "status": {"loadBalancer": points}});
            serde_json::from_value::<Ingress>(status).unwrap()
        };
        for nothing in [json!({}), json!({"ingress": []}), json!({"ingress": [{"ip": ""}]})] {
            let verdict = by_ingress(&ingress(nothing)).verdict(EXPOSED);
            assert_eq!((verdict.status, verdict.reason), (False, reason::NO_ADDRESS));
            assert!(verdict.message.contains("class nginx"), "{}", verdict.message);
        }
        for point in [json!({"ip": "192.0.2.1"}), json!({"hostname": "lb.example.com"})] {
            let verdict = by_ingress(&ingress(json!({"ingress": [point]}))).verdict(EXPOSED);
            assert_eq!(verdict.status, True);
        }
    }
}
