//! The NATS servers: those of one's own, and the one for evaluation.

use serde_json::json;

use super::{Row, row};
use crate::helm::{Objects, RELEASE};

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "a NATS of one's own, secured",
            json!({
                "nats": {
                    "servers": ["tls://a.example:4222", "tls://b.example:4222"],
                    "credentialsSecret": {"name": "creds", "key": "op.creds"}, "caSecret": {"name": "ca"}, "clientCertSecret": {"name": "cert"},
                    "jetStreamDomain": "hub",
                },
                "dataplane": {
                    "natsServers": ["tls://c.example:4222"],
                    "credentialsSecretName": "pods", "caSecretName": "podsca", "clientCertSecretName": "podscert",
                },
            }),
            secured,
        ),
        row("a NATS for evaluation", json!({"natsServer": {"enabled": true}}), to_try_with),
        row(
            "a NATS for evaluation, on a class, of another image",
            json!({"natsServer": {
                "enabled": true,
                "image": {"repository": "registry.example/nats", "tag": "2.12-scratch"},
                "persistence": {"storageClass": "fast", "size": "50Gi"},
                "maxFileStore": "40GB",
            }}),
            on_a_class_of_another_image,
        ),
        row(
            "a NATS for evaluation, that forgets",
            json!({"natsServer": {"enabled": true, "persistence": {"enabled": false}}}),
            that_forgets,
        ),
        row(
            "one's own servers go before the one for evaluation",
            json!({"natsServer": {"enabled": true}, "nats": {"servers": ["nats://mine:4222"]}}),
            own_servers_go_first,
        ),
    ]
}

fn secured(o: &Objects) {
    let nats = [
        "--nats=tls://a.example:4222,tls://b.example:4222",
        "--nats-credentials=/var/run/sluice/credentials/op.creds",
        "--nats-ca=/var/run/sluice/ca/ca.crt",
        "--nats-client-cert=/var/run/sluice/client/tls.crt",
        "--nats-client-key=/var/run/sluice/client/tls.key",
        "--jetstream-domain=hub",
    ];
    let pods = [
        "--dataplane-nats=tls://c.example:4222",
        "--dataplane-credentials-secret=pods",
        "--dataplane-ca-secret=podsca",
        "--dataplane-client-cert-secret=podscert",
    ];
    for flag in nats.iter().chain(&pods) {
        assert!(o.arguments().contains(flag), "{flag}: {:?}", o.arguments());
    }
    let check = o.get("Pod", "sluice-check");
    for flag in nats {
        assert!(
            check["spec"]["containers"][0]["args"].as_array().unwrap().contains(&json!(flag)),
            "{flag}: {check:#}"
        );
    }
    for pod in [o.operator(), &check["spec"]] {
        let secrets: Vec<_> =
            pod["volumes"].as_array().unwrap().iter().map(|v| &v["secret"]["secretName"]).collect();
        assert_eq!(secrets, ["creds", "ca", "cert"]);
        let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
        assert!(mounts.len() == 3 && mounts.iter().all(|m| m["readOnly"] == true), "{mounts:?}");
    }
}

fn to_try_with(o: &Objects) {
    assert!(
        o.arguments().contains(&"--nats=nats://sluice-nats.sluice-system.svc:4222"),
        "{:?}",
        o.arguments()
    );
    let set = &o.get("StatefulSet", "sluice-nats")["spec"];
    assert_eq!(
        set["persistentVolumeClaimRetentionPolicy"],
        json!({"whenDeleted": "Retain", "whenScaled": "Retain"})
    );
    let claim = &set["volumeClaimTemplates"][0]["spec"];
    assert_eq!(
        claim,
        &json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}})
    );
    let container = &o.nats()["containers"][0];
    assert_eq!(container["image"], "nats:2.15.1");
    assert!(
        container["volumeMounts"]
            .as_array()
            .unwrap()
            .contains(&json!({"name": "data", "mountPath": "/data"}))
    );
    assert_eq!(o.nats()["automountServiceAccountToken"], false);
    for (probe, path) in
        [("startupProbe", "/healthz"), ("readinessProbe", "/healthz?js-server-only=true")]
    {
        assert_eq!(container[probe]["httpGet"], json!({"path": path, "port": "monitor"}));
    }
    let selector = &o.get("Service", "sluice-nats")["spec"]["selector"];
    assert_eq!(&set["template"]["metadata"]["labels"], selector);
    assert_ne!(&o.get("Service", RELEASE)["spec"]["selector"], selector);
}

fn on_a_class_of_another_image(o: &Objects) {
    assert_eq!(o.nats()["containers"][0]["image"], "registry.example/nats:2.12-scratch");
    let claim = &o.get("StatefulSet", "sluice-nats")["spec"]["volumeClaimTemplates"][0]["spec"];
    assert_eq!(
        (&claim["storageClassName"], &claim["resources"]["requests"]["storage"]),
        (&json!("fast"), &json!("50Gi"))
    );
    let conf = o.get("ConfigMap", "sluice-nats")["data"]["nats.conf"].as_str().unwrap();
    assert!(conf.contains("max_file_store: 40GB"), "{conf}");
}

fn that_forgets(o: &Objects) {
    assert!(o.get("StatefulSet", "sluice-nats")["spec"].get("volumeClaimTemplates").is_none());
    assert!(
        o.nats()["volumes"].as_array().unwrap().contains(&json!({"name": "data", "emptyDir": {}}))
    );
}

fn own_servers_go_first(o: &Objects) {
    assert!(o.arguments().contains(&"--nats=nats://mine:4222"));
}
