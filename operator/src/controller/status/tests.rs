use k8s_openapi::api::{
    apps::v1::{DeploymentSpec, DeploymentStatus},
    networking::v1::Ingress,
};
use serde_json::json;
use sluice_channel::Epoch;

use super::*;
use crate::{
    controller::validate::tests::channel,
    stream::{Change, Facts},
};

fn in_sync() -> Result<Report, stream::Error> {
    let facts = Facts {
        name: "S".to_owned(),
        created: "t".to_owned(),
        epoch: Epoch::from_bits(1),
        owned: true,
        last_sequence: 0,
        epochs: 0,
    };
    Ok(Report { change: Change::None, stream: Some(facts), drift: Vec::new() })
}

fn deployment(wanted: i32, replicas: i32, updated: i32, ready: i32) -> Deployment {
    let mut deployment = Deployment::default();
    deployment.metadata.generation = Some(3);
    deployment.spec = Some(DeploymentSpec { replicas: Some(wanted), ..DeploymentSpec::default() });
    deployment.status = Some(DeploymentStatus {
        observed_generation: Some(3),
        replicas: Some(replicas),
        updated_replicas: Some(updated),
        ready_replicas: Some(ready),
        ..DeploymentStatus::default()
    });
    deployment
}

fn pods(serves: &[Serves]) -> Pods {
    Pods {
        ready: serves.iter().enumerate().map(|(i, s)| (format!("p{i}"), s.clone())).collect(),
        ..Pods::default()
    }
}

fn observation<'a>(
    stream: &'a Result<Report, stream::Error>,
    workload: Workload<'a>,
) -> Observation<'a> {
    Observation {
        name: "orders",
        stream_name: "S",
        stream,
        workload,
        was_ready: false,
        drift: Vec::new(),
        pending: &[],
        url: "u".to_owned(),
        exposure: Exposure::NotRequested,
        external_urls: Vec::new(),
        unmonitored: None,
        too_large: None,
    }
}

fn conditions(
    stream: &Result<Report, stream::Error>,
    workload: Workload<'_>,
    drift: Vec<Difference>,
) -> Vec<String> {
    let seen = Observation { drift, ..observation(stream, workload) };
    let status = status(&channel("orders", &json!({})), &seen, Timestamp::UNIX_EPOCH);
    assert_eq!(
        status.conditions.iter().map(|c| c.type_.as_str()).collect::<Vec<_>>(),
        condition::TYPES
    );
    status.conditions.iter().map(|c| format!("{}={}/{}", c.type_, c.status, c.reason)).collect()
}

fn seen<'a>(deployment: &'a Deployment, pods: &'a Pods) -> Workload<'a> {
    Workload::Seen { deployment: Some(deployment), pods, generation: 7 }
}

#[test]
fn ready_needs_the_stream_the_pods_and_this_generation_on_each() {
    let (two, old) = (Serves::Generation(7), Serves::Generation(6));
    for (deployment, pods, expected) in [
        (deployment(2, 2, 2, 2), pods(&[two.clone(), two.clone()]), "Ready=True/Ready"),
        (deployment(2, 2, 2, 2), pods(&[two.clone(), old]), "Ready=False/ConfigPropagating"),
        (
            deployment(2, 2, 2, 2),
            pods(&[two.clone(), Serves::Nothing]),
            "Ready=False/ConfigPropagating",
        ),
        (
            deployment(2, 2, 2, 2),
            pods(&[two.clone(), Serves::Unreachable]),
            "Ready=False/PodUnreachable",
        ),
        (
            deployment(2, 3, 1, 2),
            pods(&[two.clone(), two.clone()]),
            "Ready=False/RolloutInProgress",
        ),
        (deployment(2, 2, 2, 1), pods(std::slice::from_ref(&two)), "Ready=False/PodsNotReady"),
        (deployment(0, 0, 0, 0), pods(&[]), "Ready=False/ScaledToZero"),
    ] {
        assert_eq!(conditions(&in_sync(), seen(&deployment, &pods), Vec::new())[0], expected);
    }
    // Waiting would be of no use where a pod has the file and cannot read it.
    let refused = Pods {
        refused: Some("format version 2".to_owned()),
        ..pods(&[two.clone(), Serves::Generation(6)])
    };
    let ready = deployment(2, 2, 2, 2);
    assert_eq!(
        conditions(&in_sync(), seen(&ready, &refused), Vec::new())[0],
        "Ready=False/ConfigRefused"
    );
    let stale = Deployment { metadata: Default::default(), ..deployment(2, 2, 2, 2) };
    let mut stale = stale;
    stale.metadata.generation = Some(4);
    let pods = pods(&[two.clone(), two]);
    assert_eq!(
        conditions(&in_sync(), seen(&stale, &pods), Vec::new())[0],
        "Ready=False/RolloutInProgress"
    );
}

#[test]
fn conditions_of_a_ready_channel() {
    let (deployment, pods) = (deployment(1, 1, 1, 1), pods(&[Serves::Generation(7)]));
    assert_eq!(
        conditions(&in_sync(), seen(&deployment, &pods), Vec::new()),
        [
            "Ready=True/Ready",
            "StreamReady=True/InSync",
            "WorkloadAvailable=True/MinimumReplicasAvailable",
            "Exposed=True/NotRequested",
            "Drifted=False/InSync",
            "Reconciling=False/Idle",
            "Stalled=False/Idle"
        ]
    );
}

#[test]
fn a_roll_out_with_enough_old_pods_is_available_but_not_ready() {
    let deployment = deployment(2, 3, 1, 2);
    let mut pods = pods(&[Serves::Generation(7), Serves::Generation(7)]);
    pods.trouble = Some((reason::IMAGE_PULL_FAILED, "image x".to_owned()));
    let conditions = conditions(&in_sync(), seen(&deployment, &pods), Vec::new());
    assert_eq!(conditions[0], "Ready=False/ImagePullFailed");
    assert_eq!(conditions[2], "WorkloadAvailable=True/MinimumReplicasAvailable");
    assert_eq!(conditions[5], "Reconciling=True/Progressing");
}

#[test]
fn trouble_with_the_stream_is_retried_or_waits_for_somebody() {
    let (deployment, pods) = (deployment(1, 1, 1, 1), pods(&[Serves::Generation(7)]));
    let away = Err(stream::Error::Unreachable { servers: "nats://a".to_owned() });
    let found = conditions(&away, seen(&deployment, &pods), Vec::new());
    assert_eq!(
        (found[0].as_str(), found[5].as_str(), found[6].as_str()),
        ("Ready=False/NatsUnreachable", "Reconciling=True/Retrying", "Stalled=False/Idle")
    );
    let foreign = Err(stream::Error::Unowned { stream: "S".to_owned() });
    let found = conditions(&foreign, Workload::Waiting, Vec::new());
    assert_eq!(
        found,
        [
            "Ready=False/OwnedByOther",
            "StreamReady=False/OwnedByOther",
            "WorkloadAvailable=False/Pending",
            "Exposed=True/NotRequested",
            "Drifted=Unknown/Pending",
            "Reconciling=False/Idle",
            "Stalled=True/OwnedByOther"
        ]
    );
}

#[test]
fn what_is_known_of_the_stream_survives_an_outage() {
    let mut object = channel("orders", &json!({}));
    let known = StreamStatus {
        name: "S".to_owned(),
        epoch: "00000001".to_owned(),
        created_time: "t".to_owned(),
        owned: true,
    };
    object.status =
        Some(SseChannelStatus { stream: Some(known.clone()), ..SseChannelStatus::default() });
    let away = Err(stream::Error::Unreachable { servers: String::new() });
    assert_eq!(
        status(&object, &observation(&away, Workload::Waiting), Timestamp::UNIX_EPOCH).stream,
        Some(known)
    );
}

#[test]
fn the_same_observation_gives_the_same_status_at_any_time() {
    let (deployment, pods) = (deployment(1, 1, 1, 1), pods(&[Serves::Generation(7)]));
    let (stream, mut object) = (in_sync(), channel("orders", &json!({})));
    let at = |object: &SseChannel, second| {
        status(
            object,
            &observation(&stream, seen(&deployment, &pods)),
            Timestamp::from_second(second).unwrap(),
        )
    };
    let first = at(&object, 10);
    object.status = Some(first.clone());
    assert_eq!(at(&object, 99), first);
}

#[test]
fn addresses_outside_are_told_while_they_work() {
    let (deployment, pods, stream) =
        (deployment(1, 1, 1, 1), pods(&[Serves::Generation(7)]), in_sync());
    let taken: Ingress = serde_json::from_value(
        json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}),
    )
    .unwrap();
    let (object, urls) =
        (channel("orders", &json!({})), || (0..9).map(|i| format!("e{i}")).collect::<Vec<_>>());
    for (ingress, expected) in [(taken, ENDPOINTS), (Ingress::default(), 1)] {
        let exposure = Exposure::Ingress(Some(&ingress));
        let seen = Observation {
            exposure,
            external_urls: urls(),
            ..observation(&stream, seen(&deployment, &pods))
        };
        let status = status(&object, &seen, Timestamp::UNIX_EPOCH);
        assert_eq!(
            (status.endpoints.len(), status.endpoints[0].type_),
            (expected, EndpointType::Internal)
        );
        assert_eq!(
            status.conditions[0].status, "True",
            "Ready does not wait for others' load balancers"
        );
    }
}

#[test]
fn a_missing_pod_monitor_is_told_and_stands_in_nobodys_way() {
    let (deployment, pods, stream) =
        (deployment(1, 1, 1, 1), pods(&[Serves::Generation(7)]), in_sync());
    let seen = Observation {
        unmonitored: Some("not there".to_owned()),
        ..observation(&stream, seen(&deployment, &pods))
    };
    let ready = &status(&channel("orders", &json!({})), &seen, Timestamp::UNIX_EPOCH).conditions[0];
    assert!(
        ready.status == "True" && ready.message.ends_with("no PodMonitor: not there"),
        "{ready:?}"
    );
}

#[test]
fn pods_that_were_not_asked_yet_take_no_readiness_back() {
    let deployment = deployment(2, 2, 2, 2);
    for (second, was_ready, expected) in [
        (Serves::Unasked, true, "Ready=True/Ready"),
        (Serves::Unasked, false, "Ready=False/ConfigPropagating"),
        (Serves::Generation(6), true, "Ready=False/ConfigPropagating"),
        (Serves::Unreachable, true, "Ready=False/PodUnreachable"),
    ] {
        let pods = pods(&[Serves::Generation(7), second]);
        let stream = in_sync();
        let seen = Observation { was_ready, ..observation(&stream, seen(&deployment, &pods)) };
        let status = status(&channel("orders", &json!({})), &seen, Timestamp::UNIX_EPOCH);
        let ready = &status.conditions[0];
        assert_eq!(format!("Ready={}/{}", ready.status, ready.reason), expected);
    }
}
