//! How many pods: by the spec, by the connections that were counted, or by a
//! HorizontalPodAutoscaler.

use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricSpec,
    MetricTarget, ResourceMetricSource,
};

use super::common::{metadata, object_name};
use crate::{controller::validate::ValidChannel, crd::workload::Autoscaling};

/// What was observed of a channel's load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Pods that the connections ask for; `None` when they are not counted.
    pub(crate) asked: Option<i32>,
    /// Whether the Deployment exists and has pods. Something else may scale it then, so its number
    /// of pods is left alone where a HorizontalPodAutoscaler is in charge; another one starts with
    /// the fewest.
    pub(crate) deployed: bool,
}

/// The number in the Deployment; `None` = an autoscaler's to say.
pub(super) fn replicas(channel: &ValidChannel, load: Load) -> Option<i32> {
    match &channel.workload.autoscaling {
        None => Some(channel.workload.replicas),
        Some(scaling) if scaling.cpu_utilization.is_some() && load.deployed => None,
        Some(scaling) => Some(least(scaling, load)),
    }
}

/// The fewest pods: as the spec says, and enough for the connections.
fn least(scaling: &Autoscaling, load: Load) -> i32 {
    load.asked.unwrap_or(scaling.min_replicas).clamp(scaling.min_replicas, scaling.max_replicas)
}

pub(super) fn autoscaler(channel: &ValidChannel, load: Load) -> Option<HorizontalPodAutoscaler> {
    let scaling = channel.workload.autoscaling.as_ref()?;
    let utilization = scaling.cpu_utilization?;
    let target = MetricTarget {
        type_: "Utilization".to_owned(),
        average_utilization: Some(utilization),
        ..MetricTarget::default()
    };
    Some(HorizontalPodAutoscaler {
        metadata: metadata(channel),
        spec: Some(HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: Some("apps/v1".to_owned()),
                kind: "Deployment".to_owned(),
                name: object_name(channel.name.as_str()),
            },
            // Connections raise the fewest, so that the larger of both numbers counts.
            min_replicas: Some(least(scaling, load)),
            max_replicas: scaling.max_replicas,
            metrics: Some(vec![MetricSpec {
                type_: "Resource".to_owned(),
                resource: Some(ResourceMetricSource { name: "cpu".to_owned(), target }),
                ..MetricSpec::default()
            }]),
            behavior: None,
        }),
        ..HorizontalPodAutoscaler::default()
    })
}
