use k8s_openapi::api::{
    apps::v1::{DeploymentSpec, DeploymentStatus},
    networking::v1::Ingress,
};
use serde_json::json;
use sluice_channel::Epoch;

use super::{outcome::Next, status as status_of, *};
use crate::{
    controller::{
        pods::{Serves, Trouble, Weight},
        validate::tests::channel,
    },
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
        unwritten: None,
        kept: None,
        was_ready: None,
        drift: Vec::new(),
        pending: &[],
        url: "u".to_owned(),
        exposure: Exposure::NotRequested,
        external_urls: Vec::new(),
        unmonitored: None,
        too_large: None,
        autoscaler: None,
    }
}

fn was_ready(pods: i32) -> Option<WasReady> {
    Some(WasReady { generation: Some(1), pods, message: "it was".to_owned() })
}

fn status(channel: &SseChannel, seen: &Observation<'_>, now: Timestamp) -> SseChannelStatus {
    status_of(channel, seen, &parts(channel, seen, now), now)
}

fn said(status: &SseChannelStatus, type_: &str) -> String {
    let c = find(&status.conditions, type_).unwrap();
    format!("{type_}={}/{}", c.status, c.reason)
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
        (deployment(0, 0, 0, 0), pods(&[]), "Ready=True/ScaledToZero"),
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
    pods.trouble = Some(Trouble::new(Weight::Failing, reason::IMAGE_PULL_FAILED, "image x"));
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
    assert_eq!(found[1], "StreamReady=Unknown/NatsUnreachable", "what was not seen is not denied");
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
        (Serves::Unasked, was_ready(2), "Ready=True/Ready"),
        (Serves::Unasked, None, "Ready=False/ConfigPropagating"),
        (Serves::Generation(6), was_ready(2), "Ready=True/Ready"),
        (Serves::Nothing, was_ready(2), "Ready=False/ConfigPropagating"),
        (Serves::Unreachable, was_ready(2), "Ready=False/PodUnreachable"),
    ] {
        let pods = pods(&[Serves::Generation(7), second]);
        let stream = in_sync();
        let seen = Observation { was_ready, ..observation(&stream, seen(&deployment, &pods)) };
        let status = status(&channel("orders", &json!({})), &seen, Timestamp::UNIX_EPOCH);
        let ready = &status.conditions[0];
        assert_eq!(format!("Ready={}/{}", ready.status, ready.reason), expected);
    }
}

/// A channel of generation 3 whose status says of generation 2 that it was ready.
fn edited() -> SseChannel {
    let mut channel = channel("orders", &json!({}));
    channel.metadata.generation = Some(3);
    channel
}

#[test]
fn while_everything_is_served_a_change_is_reconciled_and_does_not_take_readiness_back() {
    let (new, old) = (Serves::Generation(7), Serves::Generation(6));
    let stream = in_sync();
    for (what, deployment, pods, before) in [
        ("the file is on its way", deployment(2, 2, 2, 2), pods(&[new.clone(), old]), 2),
        ("more pods", deployment(3, 3, 3, 1), pods(std::slice::from_ref(&new)), 1),
        ("fewer pods", deployment(1, 3, 3, 3), pods(&[new.clone(), new.clone()]), 3),
        ("a new template", deployment(2, 3, 1, 2), pods(&[new.clone(), new.clone()]), 2),
    ] {
        let what_was = Some(WasReady { generation: Some(2), ..was_ready(before).unwrap() });
        let workload = Workload::Seen { deployment: Some(&deployment), pods: &pods, generation: 7 };
        let seen = Observation { was_ready: what_was, ..observation(&stream, workload) };
        let status = status(&edited(), &seen, Timestamp::UNIX_EPOCH);
        assert_eq!(
            [READY, WORKLOAD_AVAILABLE, RECONCILING, STALLED]
                .map(|type_| said(&status, type_))
                .map(|said| said.split('/').next().unwrap_or_default().to_owned()),
            ["Ready=True", "WorkloadAvailable=True", "Reconciling=True", "Stalled=False"],
            "{what}"
        );
        let ready = find(&status.conditions, READY).unwrap();
        assert_eq!(ready.observed_generation, Some(2), "{what}: the newest one is not served yet");
        assert_eq!(find(&status.conditions, RECONCILING).unwrap().observed_generation, Some(3));
    }
    let two = deployment(2, 2, 2, 2);
    let both = pods(&[new.clone(), new]);
    let seen = Observation { was_ready: was_ready(2), ..observation(&stream, seen(&two, &both)) };
    let status = status(&edited(), &seen, Timestamp::UNIX_EPOCH);
    assert_eq!(find(&status.conditions, READY).unwrap().observed_generation, Some(3));
}

#[test]
fn a_pod_that_is_lost_takes_readiness_back() {
    let stream = in_sync();
    let seven = || Serves::Generation(7);
    for (ready, wanted, before, expected) in [
        (2, 3, 3, "Ready=False/PodsNotReady"),
        (1, 3, 2, "Ready=False/PodsNotReady"),
        (0, 2, 0, "Ready=False/PodsNotReady"),
        (2, 3, 2, "Ready=True/Ready"),
    ] {
        let deployment = deployment(wanted, wanted, wanted, ready);
        let pods = pods(&(0..ready).map(|_| seven()).collect::<Vec<_>>());
        let workload = Workload::Seen { deployment: Some(&deployment), pods: &pods, generation: 7 };
        let seen = Observation { was_ready: was_ready(before), ..observation(&stream, workload) };
        let status = status(&edited(), &seen, Timestamp::UNIX_EPOCH);
        assert_eq!(said(&status, READY), expected, "{ready} of {wanted}, {before} before");
    }
}

fn with_condition(type_: &str, status: &str, reason: &str, message: &str) -> Deployment {
    let mut deployment = deployment(2, 0, 0, 0);
    deployment.status.as_mut().unwrap().conditions =
        Some(vec![k8s_openapi::api::apps::v1::DeploymentCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            ..Default::default()
        }]);
    deployment
}

#[test]
fn why_pods_do_not_exist_is_told_in_the_words_of_what_refuses_them() {
    let forbidden = |why: &str| format!("pods \"orders-sse-5d4-x2x4v\" is forbidden: {why}");
    for (message, why, is_stalled) in [
        (
            forbidden("exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0"),
            reason::QUOTA_EXCEEDED,
            true,
        ),
        (
            forbidden("violates PodSecurity \"restricted:latest\": runAsNonRoot != true"),
            reason::PODS_REFUSED,
            true,
        ),
        (
            forbidden(
                "error looking up service account shop/own: serviceaccount \"own\" not found",
            ),
            reason::PODS_REFUSED,
            true,
        ),
        (forbidden("no PriorityClass with name high was found"), reason::PODS_REFUSED, true),
        (
            "Internal error occurred: failed calling webhook \"w\": exceeded quota: x".to_owned(),
            reason::PODS_REFUSED,
            false,
        ),
    ] {
        let deployment = with_condition("ReplicaFailure", "True", "FailedCreate", &message);
        let (stream, pods) = (in_sync(), pods(&[]));
        let seen = observation(&stream, seen(&deployment, &pods));
        let status = status(&edited(), &seen, Timestamp::UNIX_EPOCH);
        assert_eq!(said(&status, READY), format!("Ready=False/{why}"));
        assert_eq!(said(&status, WORKLOAD_AVAILABLE), format!("WorkloadAvailable=False/{why}"));
        let stalled = find(&status.conditions, STALLED).unwrap();
        let reconciling = find(&status.conditions, RECONCILING).unwrap();
        assert_eq!(
            (stalled.status == "True", reconciling.status == "True"),
            (is_stalled, !is_stalled)
        );
        let told = &find(&status.conditions, READY).unwrap().message;
        assert!(!told.contains("x2x4v"), "a name that changes with each attempt: {told}");
        let words = message.rsplit("forbidden: ").next().unwrap();
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn pods_that_make_no_progress_in_time_stall_the_channel() {
    let late = "ReplicaSet \"orders-sse-5d4\" has timed out progressing.";
    let deployment = with_condition("Progressing", "False", "ProgressDeadlineExceeded", late);
    let troubled = Pods {
        trouble: Some(Trouble::new(Weight::Failing, reason::CRASH_LOOPING, "it crashes")),
        ..Pods::default()
    };
    for (pods, why) in
        [(Pods::default(), reason::PROGRESS_DEADLINE_EXCEEDED), (troubled, reason::CRASH_LOOPING)]
    {
        let found = conditions(&in_sync(), seen(&deployment, &pods), Vec::new());
        assert_eq!(
            (found[0].clone(), found[5].as_str(), found[6].clone()),
            (format!("Ready=False/{why}"), "Reconciling=False/Idle", format!("Stalled=True/{why}"))
        );
    }
}

#[test]
fn a_stream_out_of_sight_for_a_moment_changes_nothing() {
    let (deployment, pods) = (deployment(1, 1, 1, 1), pods(&[Serves::Generation(7)]));
    let mut object = edited();
    let first = observation(&in_sync(), Workload::Waiting).stream_name.to_owned();
    let synced = in_sync();
    let seen_now = observation(&synced, seen(&deployment, &pods));
    let before = status(&object, &seen_now, Timestamp::UNIX_EPOCH);
    object.status = Some(before.clone());
    let was = WasReady {
        generation: Some(3),
        pods: 1,
        message: find(&before.conditions, READY).unwrap().message.clone(),
    };
    let kept = |generation| Kept {
        message: find(&before.conditions, STREAM_READY).unwrap().message.clone(),
        generation: Some(generation),
    };
    let away = Err(stream::Error::Unreachable { servers: first });
    let out_of_sight = |generation| Observation {
        kept: Some(kept(generation)),
        was_ready: Some(was.clone()),
        ..observation(&away, seen(&deployment, &pods))
    };
    assert_eq!(status(&object, &out_of_sight(3), Timestamp::UNIX_EPOCH), before);
    let parts = parts(&object, &out_of_sight(3), Timestamp::UNIX_EPOCH);
    assert_eq!(parts.next(), Next::Soon, "it is looked at again before the grace is over");
    // A newer generation was not seen at all.
    let edited = status(&object, &out_of_sight(2), Timestamp::UNIX_EPOCH);
    assert_eq!(said(&edited, RECONCILING), "Reconciling=True/Retrying");
    let stream = find(&edited.conditions, STREAM_READY).unwrap();
    assert_eq!((stream.status.as_str(), stream.observed_generation), ("True", Some(2)));
    // After the grace the stream is unknown, and the pods go on.
    let gone = Observation { kept: None, ..out_of_sight(3) };
    let gone = status(&object, &gone, Timestamp::UNIX_EPOCH);
    assert_eq!(
        [READY, STREAM_READY, RECONCILING, STALLED].map(|type_| said(&gone, type_)),
        [
            "Ready=True/Ready",
            "StreamReady=Unknown/NatsUnreachable",
            "Reconciling=True/Retrying",
            "Stalled=False/Idle"
        ]
    );
    assert!(find(&gone.conditions, READY).unwrap().message.contains("cannot be reached"));
}

#[test]
fn what_is_paused_is_as_ready_as_it_was_and_current() {
    for (before, expected) in [
        (True, "Ready=True/Paused"),
        (False, "Ready=False/Paused"),
        (Unknown, "Ready=Unknown/Paused"),
    ] {
        let mut object = edited();
        let verdict = Verdict::new(READY, before, reason::READY, "");
        object.status = Some(SseChannelStatus {
            conditions: condition::merge(&[verdict], &[], Some(2), Timestamp::UNIX_EPOCH),
            ..SseChannelStatus::default()
        });
        let status = unobserved(&object, &Unobserved::Paused, Timestamp::UNIX_EPOCH);
        assert_eq!(
            [READY, RECONCILING, STALLED].map(|type_| said(&status, type_)),
            [expected, "Reconciling=False/Paused", "Stalled=False/Paused"]
        );
        assert_eq!(status.observed_generation, Some(3));
    }
}

#[test]
fn an_autoscaler_without_numbers_is_told_once_it_lasts() {
    let scaler: HorizontalPodAutoscaler = serde_json::from_value(json!({"status": {
        "desiredReplicas": 1,
        "conditions": [{"type": "ScalingActive", "status": "False", "reason": "FailedGetResourceMetric",
            "message": "no metrics returned", "lastTransitionTime": "1970-01-01T00:00:00Z"}],
    }}))
    .unwrap();
    let (deployment, pods, stream) =
        (deployment(1, 1, 1, 1), pods(&[Serves::Generation(7)]), in_sync());
    for (second, is_told) in [(30, false), (600, true)] {
        let seen = Observation {
            autoscaler: Some(&scaler),
            ..observation(&stream, seen(&deployment, &pods))
        };
        let status = status(&edited(), &seen, Timestamp::from_second(second).unwrap());
        let ready = find(&status.conditions, READY).unwrap();
        assert_eq!(
            (ready.status.as_str(), ready.message.contains("no metrics")),
            ("True", is_told)
        );
    }
}

#[test]
fn an_api_server_that_stumbles_takes_no_readiness_back() {
    let answer =
        kube::core::Status::failure("etcdserver: request timed out", "Timeout").with_code(500);
    let error = apply::Error::Api(kube::Error::Api(Box::new(answer)));
    let (deployment, pods, stream) =
        (deployment(1, 1, 1, 1), pods(&[Serves::Generation(7)]), in_sync());
    let seen = Observation {
        unwritten: Some(&error),
        was_ready: was_ready(1),
        ..observation(&stream, seen(&deployment, &pods))
    };
    let status = status(&edited(), &seen, Timestamp::UNIX_EPOCH);
    assert_eq!(
        [READY, WORKLOAD_AVAILABLE, RECONCILING, STALLED].map(|type_| said(&status, type_)),
        [
            "Ready=True/Ready",
            "WorkloadAvailable=True/MinimumReplicasAvailable",
            "Reconciling=True/Retrying",
            "Stalled=False/Idle"
        ]
    );
}
