//! The Deployment. What only a new process can take (image, resources, NATS address) is in the
//! pods' template, so a change of it rolls them; everything else is in the ConfigMap and reaches
//! running pods.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar,
            EnvVarSource, HTTPGetAction, LocalObjectReference, ObjectFieldSelector,
            PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
            ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext,
            TopologySpreadConstraint, Volume, VolumeMount, WeightedPodAffinityTerm,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity, apis::meta::v1::ObjectMeta, util::intstr::IntOrString,
    },
};
use sluice_channel::limits::{ADMIN_PORT, HTTP_PORT};

use super::{
    common::{Settings, labels, metadata, object_name, selector},
    scaling::{self, Load},
};
use crate::{
    controller::validate::ValidChannel,
    crd::{text::Amount, workload::TopologySpread},
    nats::inbox,
};

/// Name of the container.
pub(crate) const CONTAINER: &str = "dataplane";
/// Where the channel's file is mounted: as a directory, because a single file (`subPath`) is never
/// updated.
const CONFIG_DIR: &str = "/etc/sluice/channels";
const NATS_DIR: &str = "/etc/sluice/nats";
/// The conventional `nonroot` of distroless images; numeric, because `runAsNonRoot` cannot check a
/// name.
const USER: i64 = 65_532;

pub(super) fn deployment(channel: &ValidChannel, settings: &Settings, load: Load) -> Deployment {
    Deployment {
        metadata: metadata(channel),
        spec: Some(DeploymentSpec {
            replicas: scaling::replicas(channel, load),
            selector: selector(channel),
            revision_history_limit: Some(3),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                // New pods are ready before old ones drain: subscribers always have somewhere to
                // go.
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::String("25%".to_owned())),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(template_metadata(channel)),
                spec: Some(pod(channel, settings)),
            },
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

fn template_metadata(channel: &ValidChannel) -> ObjectMeta {
    let mut pod_labels = channel.workload.pod_labels.clone();
    pod_labels.extend(labels(channel));
    let annotations = channel.workload.pod_annotations.clone();
    ObjectMeta {
        labels: Some(pod_labels),
        annotations: (!annotations.is_empty()).then_some(annotations),
        ..ObjectMeta::default()
    }
}

fn pod(channel: &ValidChannel, settings: &Settings) -> PodSpec {
    let workload = &channel.workload;
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let (volumes, mounts) = volumes(channel, settings);
    PodSpec {
        service_account_name: Some(
            given(&workload.service_account_name)
                .unwrap_or_else(|| object_name(channel.name.as_str())),
        ),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        priority_class_name: given(&workload.priority_class_name),
        node_selector: (!workload.node_selector.is_empty()).then(|| workload.node_selector.clone()),
        tolerations: (!workload.tolerations.is_empty()).then(|| workload.tolerations.clone()),
        image_pull_secrets: (!workload.image_pull_secrets.is_empty()).then(|| {
            workload
                .image_pull_secrets
                .iter()
                .map(|s| LocalObjectReference { name: s.name.clone() })
                .collect()
        }),
        termination_grace_period_seconds: Some(workload.termination_grace_period_seconds),
        affinity: apart_by_zone(channel),
        topology_spread_constraints: spread(channel),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        containers: vec![container(channel, settings, mounts)],
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

fn container(channel: &ValidChannel, settings: &Settings, mounts: Vec<VolumeMount>) -> Container {
    let workload = &channel.workload;
    let port = |name: &str, number: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    Container {
        name: CONTAINER.to_owned(),
        image: Some(if workload.image.is_empty() {
            settings.image.clone()
        } else {
            workload.image.clone()
        }),
        args: Some(args(channel, settings)),
        env: Some(vec![
            EnvVar {
                name: "SLUICE_INSTANCE".to_owned(),
                value_from: Some(EnvVarSource {
                    field_ref: Some(ObjectFieldSelector {
                        field_path: "metadata.name".to_owned(),
                        api_version: Some("v1".to_owned()),
                    }),
                    ..EnvVarSource::default()
                }),
                ..EnvVar::default()
            },
            // No argument: a data plane that is older than the operator would not start with it.
            EnvVar {
                name: "SLUICE_NATS_INBOX_PREFIX".to_owned(),
                value: Some(inbox::of_pods(&channel.namespace, channel.name.as_str())),
                ..EnvVar::default()
            },
        ]),
        ports: Some(vec![port("http", HTTP_PORT), port("admin", ADMIN_PORT)]),
        resources: Some(ResourceRequirements {
            requests: quantities(&workload.resources.requests),
            limits: quantities(&workload.resources.limits),
            ..ResourceRequirements::default()
        }),
        liveness_probe: Some(probe("/livez", 10, 3)),
        readiness_probe: Some(probe("/readyz", 5, 2)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn args(channel: &ValidChannel, settings: &Settings) -> Vec<String> {
    let drain = Drain::within(channel.workload.termination_grace_period_seconds);
    let mut args = vec![
        format!("--config-dir={CONFIG_DIR}"),
        format!("--listen=[::]:{HTTP_PORT}"),
        format!("--admin=[::]:{ADMIN_PORT}"),
        format!("--nats={}", settings.nats.list()),
    ];
    if settings.credentials_secret.is_some() {
        args.push(format!("--nats-credentials={NATS_DIR}/credentials/nats.creds"));
    }
    if settings.ca_secret.is_some() {
        args.push(format!("--nats-ca={NATS_DIR}/ca/ca.crt"));
    }
    if settings.client_certificate_secret.is_some() {
        args.push(format!("--nats-client-cert={NATS_DIR}/client/tls.crt"));
        args.push(format!("--nats-client-key={NATS_DIR}/client/tls.key"));
    }
    args.extend(
        settings.jetstream_domain.iter().map(|domain| format!("--jetstream-domain={domain}")),
    );
    args.push(format!("--drain-delay={}s", drain.delay_seconds));
    args.push(format!("--drain-period={}s", drain.period_seconds));
    args.push("--log-format=json".to_owned());
    args
}

/// How a pod spends its grace period: it goes on accepting until every proxy knows that it leaves,
/// then closes its streams one by one, and is gone some time before it would be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Drain {
    delay_seconds: i64,
    period_seconds: i64,
}

impl Drain {
    fn within(grace_seconds: i64) -> Self {
        let reserve = (grace_seconds / 6).clamp(1, 10);
        let delay_seconds = (grace_seconds / 12).clamp(0, 5);
        Self { delay_seconds, period_seconds: (grace_seconds - reserve - delay_seconds).max(1) }
    }
}

fn volumes(channel: &ValidChannel, settings: &Settings) -> (Vec<Volume>, Vec<VolumeMount>) {
    let mount = |name: &str, path: String| VolumeMount {
        name: name.to_owned(),
        mount_path: path,
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let config = ConfigMapVolumeSource {
        name: object_name(channel.name.as_str()),
        ..ConfigMapVolumeSource::default()
    };
    let mut volumes =
        vec![Volume { name: "config".to_owned(), config_map: Some(config), ..Volume::default() }];
    let mut mounts = vec![mount("config", CONFIG_DIR.to_owned())];
    let secrets = [
        ("credentials", &settings.credentials_secret),
        ("ca", &settings.ca_secret),
        ("client", &settings.client_certificate_secret),
    ];
    for (part, secret) in secrets {
        if let Some(secret) = secret {
            let name = format!("nats-{part}");
            mounts.push(mount(&name, format!("{NATS_DIR}/{part}")));
            let source = SecretVolumeSource {
                secret_name: Some(secret.clone()),
                ..SecretVolumeSource::default()
            };
            volumes.push(Volume { name, secret: Some(source), ..Volume::default() });
        }
    }
    (volumes, mounts)
}

fn quantities(amounts: &BTreeMap<String, Amount>) -> Option<BTreeMap<String, Quantity>> {
    (!amounts.is_empty()).then(|| {
        amounts.iter().map(|(name, amount)| (name.clone(), Quantity(amount.0.clone()))).collect()
    })
}

fn probe(path: &str, period_seconds: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("admin".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn spread(channel: &ValidChannel) -> Option<Vec<TopologySpreadConstraint>> {
    let otherwise = match channel.workload.topology_spread {
        TopologySpread::None => return None,
        TopologySpread::Preferred => "ScheduleAnyway",
        TopologySpread::Required => "DoNotSchedule",
    };
    Some(vec![TopologySpreadConstraint {
        max_skew: 1,
        topology_key: "kubernetes.io/hostname".to_owned(),
        when_unsatisfiable: otherwise.to_owned(),
        label_selector: Some(selector(channel)),
        match_label_keys: each_rollout(),
        ..TopologySpreadConstraint::default()
    }])
}

/// Zones as well, where there are any. Not by a constraint: on nodes that have no zone, the
/// scheduler would disregard the constraint on nodes too, or schedule nothing at all.
fn apart_by_zone(channel: &ValidChannel) -> Option<Affinity> {
    if channel.workload.topology_spread == TopologySpread::None {
        return None;
    }
    let term = PodAffinityTerm {
        topology_key: "topology.kubernetes.io/zone".to_owned(),
        label_selector: Some(selector(channel)),
        match_label_keys: each_rollout(),
        ..PodAffinityTerm::default()
    };
    let preferred = vec![WeightedPodAffinityTerm { weight: 100, pod_affinity_term: term }];
    let apart = PodAntiAffinity {
        preferred_during_scheduling_ignored_during_execution: Some(preferred),
        ..PodAntiAffinity::default()
    };
    Some(Affinity { pod_anti_affinity: Some(apart), ..Affinity::default() })
}

/// Each roll-out is spread by itself, or old pods would push new ones together.
fn each_rollout() -> Option<Vec<String>> {
    Some(vec!["pod-template-hash".to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drain_fits_into_the_grace_period() {
        assert_eq!(Drain::within(60), Drain { delay_seconds: 5, period_seconds: 45 });
        for grace in 10..=900 {
            let drain = Drain::within(grace);
            assert!(drain.delay_seconds >= 0 && drain.period_seconds >= 1, "{grace}: {drain:?}");
            assert!(drain.delay_seconds + drain.period_seconds < grace, "{grace}: {drain:?}");
        }
    }
}
