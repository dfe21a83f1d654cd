//! What the README says, typed as it stands there: install, apply, wait, curl.

use std::time::Instant;

use sluice_channel::{ChannelName, name};
use sluice_tests::{docs::block, nats::Streams};

use crate::{
    fixture::{Fixture, LIMIT, SHOP, SYSTEM},
    kubectl::kubectl,
    pages::{Running, forwarded, typed},
};

/// `helm install` on a cluster that has nothing but nodes, DNS and a class of volumes.
pub(crate) async fn install(fixture: &'static Fixture) {
    install_release(fixture).await;
    kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd/ssechannels.sluice.dev",
        "--timeout=30s",
    ])
    .await;
    fixture.until_operators_are_ready().await;
    let [_, test] =
        <[String; 2]>::try_from(block("cluster", "install").commands()).expect("two commands");
    assert_eq!(test, block("cluster", "check").command(), "both pages have the same check");
    let tested = typed(fixture, &test).await;
    assert!(tested.contains("Phase:          Succeeded"), "{tested}");
    assert!(
        tested.contains("POD LOGS")
            && tested.lines().filter(|line| line.starts_with("ok ")).count() >= 3,
        "{tested}"
    );
}

/// The same for a release that was there before.
pub(crate) async fn install_release(fixture: &'static Fixture) {
    typed(fixture, &block("cluster", "install").commands()[0]).await;
    // All that is in these namespaces must be admitted by the strictest of the Pod Security
    // Standards, the release included.
    kubectl(&[
        "label",
        "namespace",
        SYSTEM,
        "pod-security.kubernetes.io/enforce=restricted",
        "--overwrite",
    ])
    .await;
}

/// Apply an example, wait for it, subscribe and publish with curl; what is published over NATS
/// arrives as well.
pub(crate) async fn first_steps(fixture: &'static Fixture) {
    kubectl(&["create", "namespace", SHOP]).await;
    kubectl(&["label", "namespace", SHOP, "pod-security.kubernetes.io/enforce=restricted"]).await;
    let [apply, wait] = <[String; 2]>::try_from(block("cluster", "first-channel").commands())
        .expect("two commands");
    typed(fixture, &apply).await;
    let started = Instant::now();
    typed(fixture, &wait).await;
    println!("Ready {:.1} s after apply", started.elapsed().as_secs_f64());

    let [forward, subscribe, publish] =
        <[String; 3]>::try_from(block("cluster", "first-events").commands())
            .expect("three commands");
    let _forward = forwarded(fixture, &forward).await;
    let mut subscriber = Running::new(fixture, &subscribe).await;
    subscriber.shows(|line| line == "event: channel.cursor").await;
    typed(fixture, &publish).await;
    subscriber.shows(|line| line == r#"data: {"order":1}"#).await;
    // The other way in.
    let streams = Streams::connect(&fixture.nats_url().await).await;
    let prefix = name::default_topic_prefix(SHOP, &ChannelName::new("orders").expect("a name"));
    let published = streams.publish(&prefix, "created", r#"{"order":2}"#).await;
    let seen = subscriber.shows(|line| line == r#"data: {"order":2}"#).await;
    assert!(
        seen.iter()
            .any(|line| line.starts_with("id: ")
                && line.ends_with(&format!("-{}", published.sequence))),
        "{seen:#?}"
    );

    // And over the Service itself.
    let address = fixture.address(SHOP, "orders-sse", "http").await;
    let answer = reqwest::Client::new()
        .post(format!("http://{address}/channels/orders/created"))
        .body(r#"{"order":3}"#)
        .timeout(LIMIT);
    assert_eq!(answer.send().await.expect("an answer").status(), 201);
}
