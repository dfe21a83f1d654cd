//! A real Ingress controller, Traefik, in front of a channel: it reads the Ingress that the
//! operator makes, publishes its address in the status, and streams pass through it with TLS and
//! HTTP/2.

use std::{path::Path, process::Command as Program, time::Instant};

use sluice_channel::{ChannelName, name};
use sluice_tests::{
    docs, eventually,
    nats::Streams,
    process::{Process, free_port, tool},
};
use tempfile::TempDir;

use crate::{
    fixture::{Fixture, LIMIT, SHOP, current_condition},
    kubectl::{kubectl, kubectl_with},
    pages::Running,
};

const CLASS: &str = "
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: traefik}
spec: {controller: traefik.io/ingress-controller}
";
const HOST: &str = "events.example.com";

/// The manifest that docs/proxies.md has for Traefik, with the controller that it is for: the
/// channel `outside` is there already.
pub(crate) async fn traefik_serves_it(fixture: &'static Fixture) {
    let files = TempDir::with_prefix("sluice-ingress-").expect("a folder");
    let certificate = certificate(files.path()).await;
    let said = kubectl_with(&["apply", "-f", "-"], CLASS).await;
    assert!(said.ok, "{}", said.err);
    let port = free_port();
    let mut traefik = start(port);

    let pages: Vec<_> = docs::manifests()
        .into_iter()
        .filter(|block| block.text.contains("className: traefik\n"))
        .collect();
    assert_eq!(pages.len(), 1, "one manifest for Traefik");
    let said = kubectl_with(
        &["apply", "-n", SHOP, "-f", "-"],
        &pages[0].text.replacen("name: orders", "name: outside", 1),
    )
    .await;
    assert!(said.ok, "{}", said.err);
    let url = format!("https://{HOST}/channels/outside");
    eventually("the channel is exposed, and says where", LIMIT, async || {
        assert!(traefik.ended().is_none(), "{}{}", traefik.stdout(), traefik.stderr());
        let channel = fixture.channel(SHOP, "outside").await;
        let endpoints = channel["status"]["endpoints"].as_array()?;
        let is_there = endpoints
            .iter()
            .any(|endpoint| endpoint["type"] == "External" && endpoint["url"] == url.as_str());
        (current_condition(&channel, "Exposed")?["status"] == "True" && is_there).then_some(())
    })
    .await;

    let connect =
        format!("--connect-to {HOST}:443:127.0.0.1:{port} --cacert {}", certificate.display());
    // Until Traefik has heard of it, it answers 404, and curl asks again.
    let mut curl = Running::new(
        fixture,
        &format!(
            "curl -siN --http2 --fail --retry 20 --retry-delay 1 --retry-all-errors {connect} {url}"
        ),
    )
    .await;
    let head = curl.shows(|line| line == "event: channel.cursor").await;
    assert!(head.iter().any(|line| line.starts_with("HTTP/2 200")), "{head:#?}");
    let streams = Streams::connect(&fixture.nats_url().await).await;
    let prefix = name::default_topic_prefix(SHOP, &ChannelName::new("outside").expect("a name"));
    let published = Instant::now();
    streams.publish(&prefix, "created", "through an Ingress").await;
    curl.shows(|line| line == "data: through an Ingress").await;
    println!("through Traefik {:.2} s after it was published", published.elapsed().as_secs_f64());
    assert!(published.elapsed().as_secs_f64() < 1.0, "{:?}", published.elapsed());
    kubectl(&["delete", "secret/events-tls", "ingressclass/traefik", "-n", SHOP]).await;
}

/// Traefik with an administrator's rights, on loopback in the tests' network; it ends with the
/// value.
fn start(port: u16) -> Process {
    let mut command = Program::new(tool("traefik"));
    command.arg(format!("--entrypoints.websecure.address=127.0.0.1:{port}")).args([
        "--global.checknewversion=false",
        "--global.sendanonymoususage=false",
        "--providers.kubernetesingress=true",
        &format!("--providers.kubernetesingress.namespaces={SHOP}"),
        &format!("--providers.kubernetesingress.ingressendpoint.hostname={HOST}"),
    ]);
    Process::spawn("traefik", command)
}

/// A certificate for the host, as the Secret that the manifest names; its file.
async fn certificate(folder: &Path) -> std::path::PathBuf {
    let (key, certificate) = (folder.join("tls.key"), folder.join("tls.crt"));
    let mut openssl = Program::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]);
    openssl.args([
        "-subj",
        &format!("/CN={HOST}"),
        "-addext",
        &format!("subjectAltName=DNS:{HOST}"),
    ]);
    openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    let said = openssl.output().expect("openssl is there: the cluster's keys are made with it");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let (key, file) =
        (format!("--key={}", key.display()), format!("--cert={}", certificate.display()));
    kubectl(&["create", "secret", "tls", "events-tls", "-n", SHOP, &key, &file]).await;
    certificate
}
