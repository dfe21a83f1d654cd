//! IPv4 and IPv6: a pod does not know which of them its cluster has.

use std::{net::SocketAddr, process::Command, time::Duration};

use serde_json::Value;
use sluice_tests::{dataplane::ConfigDir, eventually, run};

use crate::fixture::{Fixture, Setup};

const LIMIT: Duration = Duration::from_secs(60);

/// As the operator starts pods, but on ports that are free.
const ANY: &[&str] = &["--listen", "[::]:0", "--admin", "[::]:0"];

#[test]
fn a_pod_answers_over_both_families_and_names_the_peer_plainly() {
    run(LIMIT, async {
        let fixture = Fixture::with(Setup { arguments: ANY, ..Setup::default() }).await;
        let plane = &fixture.plane;
        let client = reqwest::Client::new();
        for host in ["127.0.0.1", "::1"] {
            let at = |port| SocketAddr::new(host.parse().unwrap(), port);
            let (http, admin) = (at(plane.http().port()), at(plane.admin().port()));
            let probe = client.get(format!("http://{admin}/readyz")).send().await.unwrap();
            assert_eq!(probe.status(), 200, "{host}");
            let body: Value = probe.json().await.unwrap();
            assert_eq!(body["reads"]["version"], 1, "{body}");
            let stream = format!("http://{http}/channels/{}", fixture.names.channel);
            let open = client.get(stream).send().await.unwrap();
            assert_eq!(open.status(), 200, "{host}");
            // The console and /debug are for this host, over either family.
            let url = format!("http://{admin}/debug/subscribers");
            let debug = client.get(url).send().await.unwrap();
            assert_eq!(debug.status(), 200, "{host}");
            let subscribers: Value = debug.json().await.unwrap();
            let peer = subscribers["subscribers"][0]["peer"].as_str().unwrap();
            assert_eq!(peer.parse::<SocketAddr>().unwrap().ip(), at(0).ip(), "{subscribers}");
            drop(open);
            eventually("the stream ends", LIMIT, async || {
                let text = client.get(format!("http://{admin}/debug/subscribers")).send().await;
                let told: Value = text.ok()?.json().await.ok()?;
                (told["total"] == 0).then_some(())
            })
            .await;
        }
    });
}

/// In a network namespace of its own, without IPv6 addresses; needs the right to make one.
#[test]
fn a_pod_answers_where_ipv6_is_switched_off() {
    let inside = r#"
        set -e
        ip link set lo up
        sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1
        "$0" --config-dir "$1" --listen '[::]:8080' --admin '[::]:9090' 2>/dev/null &
        trap 'kill $!' EXIT
        for _ in $(seq 100); do
            curl -sf -m 1 http://127.0.0.1:9090/livez && exit 0
            sleep 0.1
        done
        exit 1"#;
    let shell = |script: &str| {
        let configs = ConfigDir::new(&[]);
        Command::new("unshare")
            .args(["--net", "--map-root-user", "sh", "-c", script])
            .arg(sluice_tests::process::workspace_program("sluice-dataplane"))
            .arg(configs.path())
            .output()
    };
    let may =
        shell("ip link set lo up && sysctl -qw net.ipv6.conf.lo.disable_ipv6=1 && command -v curl");
    if !may.is_ok_and(|output| output.status.success()) {
        println!("no network namespace can be made here; server::accept tests the fall-back");
        return;
    }
    let said = shell(inside).unwrap();
    assert!(said.status.success(), "{said:?}");
}
