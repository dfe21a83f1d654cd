//! The console on the admin listener: what it serves, what it tells, what it refuses. How it looks
//! and works in a browser is tested with the other clients.

use std::{net::Ipv4Addr, time::Duration};

use reqwest::{Client, Method, Response};
use serde_json::Value;
use sluice_tests::{
    clients::{Connection, Reader, Request},
    dataplane::{DataPlane, Options},
    eventually, run,
};

use crate::fixture::{Fixture, ORDERS, SOON};

const LIMIT: Duration = Duration::from_secs(90);

async fn admin(
    fixture: &Fixture,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> Response {
    let mut request = Client::new()
        .request(method, format!("http://{}{path}", fixture.plane.admin()))
        .timeout(SOON);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

#[test]
fn the_page_asks_nothing_but_its_own_listener() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        for (path, kind) in [
            ("/", "text/html; charset=utf-8"),
            ("/console.css", "text/css; charset=utf-8"),
            ("/console.js", "text/javascript; charset=utf-8"),
        ] {
            let response = admin(&fixture, Method::GET, path, &[]).await;
            assert_eq!(
                (response.status().as_u16(), response.headers()["content-type"].to_str().unwrap()),
                (200, kind),
                "{path}"
            );
            let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
            assert!(
                policy.starts_with("default-src 'none'")
                    && policy.contains("frame-ancestors 'none'"),
                "{policy}"
            );
            let text = response.text().await.unwrap();
            assert!(!text.contains("https://"), "{path} names an outside asset");
        }
        for path in ["/", "/console.js", "/debug/channels"] {
            let public =
                Client::new().get(fixture.plane.url(path)).timeout(SOON).send().await.unwrap();
            assert_eq!(public.status().as_u16(), 404, "{path} must not be on the public listener");
        }
    });
}

#[test]
fn it_tells_of_channels_and_of_the_subscribers_furthest_behind() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.publish.http = true).await;
        fixture.publish_many("a", 30).await;
        let _live = fixture.open(ORDERS).await;
        // Reads nothing: whatever does not fit into the socket it stays behind by; here it is only
        // the order that counts.
        let _other = fixture.open(&format!("{ORDERS}?topic=b")).await;
        let pod: Value = eventually("both are subscribers", SOON, async || {
            let pod: Value =
                admin(&fixture, Method::GET, "/debug/channels", &[]).await.json().await.unwrap();
            (pod["channels"][0]["connections"] == 2 && pod["channels"][0]["last"] == 30)
                .then_some(pod)
        })
        .await;
        let channel = &pod["channels"][0];
        assert_eq!(
            (&pod["phase"], &channel["name"], &channel["first"], &channel["publish"]),
            (&"Ready".into(), &"orders".into(), &1.into(), &true.into()),
            "{pod}"
        );
        assert_eq!(channel["epoch"], fixture.epoch.to_string(), "{pod}");
        let list: Value =
            admin(&fixture, Method::GET, "/debug/subscribers?channel=orders&limit=1", &[])
                .await
                .json()
                .await
                .unwrap();
        assert_eq!(
            (list["subscribers"].as_array().unwrap().len(), &list["total"]),
            (1, &2.into()),
            "{list}"
        );
        let none: Value = admin(&fixture, Method::GET, "/debug/subscribers?channel=other", &[])
            .await
            .json()
            .await
            .unwrap();
        assert_eq!(none["total"], 0, "{none}");
    });
}

#[test]
fn channels_are_read_and_published_beside_it_but_not_by_pages_of_other_sites() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.publish.http = true).await;
        let path = format!("{ORDERS}/a");
        for site in ["cross-site", "same-site"] {
            for (path, method) in [(path.as_str(), Method::POST), ("/drain", Method::POST)] {
                let refused = admin(&fixture, method, path, &[("sec-fetch-site", site)]).await;
                assert_eq!(refused.status().as_u16(), 403, "{path} from {site}");
            }
        }
        assert_eq!(fixture.plane.readyz().await.0, 200, "no drain has begun");
        let mut reader =
            Reader::open(fixture.plane.admin(), &Request::get(format!("{ORDERS}?from=earliest")))
                .await;
        for site in [Some("same-origin"), Some("none"), None] {
            let headers: Vec<_> = site.map(|s| ("sec-fetch-site", s)).into_iter().collect();
            assert_eq!(
                admin(&fixture, Method::POST, &path, &headers).await.status().as_u16(),
                201,
                "{site:?}"
            );
        }
        // Nothing of what was refused is in the stream.
        reader.until_sequence(3, SOON).await;
        assert_eq!(reader.ledger.sequences(), [1, 2, 3]);
    });
}

/// Status of a request to the admin listener as a browser or a tool sends it.
async fn asked(
    plane: &DataPlane,
    method: &'static str,
    path: &str,
    headers: &[(&str, &str)],
) -> u16 {
    let mut request = Request::get(path);
    request.method = method;
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    Connection::open(plane.admin(), &request).await.unwrap().status()
}

/// A page on evil.example that makes its own name point to 127.0.0.1 is of the same origin to its
/// browser, and so is everything that it asks.
#[test]
fn a_page_that_rebinds_its_name_reads_nothing_and_drains_nothing() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.publish.http = true).await;
        let port = fixture.plane.admin().port();
        let evil = format!("evil.example:{port}");
        let rebound = [("Host", evil.as_str()), ("Origin", &format!("http://{evil}"))];
        for path in
            ["/", "/debug/channels", "/debug/subscribers", "/metrics", "/readyz", "/livez", ORDERS]
        {
            for headers in [&rebound[..1], &rebound[..]] {
                assert_eq!(asked(&fixture.plane, "GET", path, headers).await, 421, "{path}");
            }
        }
        let own = fixture.plane.admin().to_string();
        let post = format!("{ORDERS}/a");
        for path in ["/drain", &post] {
            assert_eq!(asked(&fixture.plane, "POST", path, &rebound).await, 421, "{path}");
            // Without rebinding: the name is ours, the page is not. No Sec-Fetch-Site: a browser
            // leaves it out for addresses that are not trustworthy.
            for origin in ["http://evil.example", "null", "http://localhost:1", "http://127.0.0.1"]
            {
                let headers = [("Host", own.as_str()), ("Origin", origin)];
                assert_eq!(asked(&fixture.plane, "POST", path, &headers).await, 403, "{origin}");
                let headers = [("Host", "10.0.0.5:9090"), ("Origin", origin)];
                assert_eq!(asked(&fixture.plane, "POST", path, &headers).await, 403, "{origin}");
            }
        }
        assert_eq!(fixture.plane.readyz().await.0, 200, "no drain has begun");
        // The console itself.
        let local = format!("localhost:{port}");
        let headers = [("Host", local.as_str()), ("Origin", &format!("http://{local}"))];
        assert_eq!(asked(&fixture.plane, "GET", "/debug/channels", &headers).await, 200);
    });
}

#[test]
fn other_hosts_are_answered_probes_and_metrics_alone() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.publish.http = true).await;
        let options = Options {
            arguments: &["--admin-access", "any", "--admin-host", "pod.example"],
            ..Options::default()
        };
        let open = DataPlane::start_with(&fixture.nats.url(), &fixture.configs, &options).await;
        let other = Client::builder().local_address(Some(Ipv4Addr::new(127, 0, 0, 2).into()));
        let other = other.build().unwrap();
        let ask = async |plane: &DataPlane, method: Method, path: &str| {
            let url = format!("http://{}{path}", plane.admin());
            other.request(method, url).timeout(SOON).send().await.unwrap().status().as_u16()
        };
        for path in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(ask(&fixture.plane, Method::GET, path).await, 200, "{path}");
        }
        for path in ["/", "/console.js", "/debug/channels", "/debug/subscribers", ORDERS] {
            assert_eq!(ask(&fixture.plane, Method::GET, path).await, 403, "{path}");
            assert_eq!(ask(&open, Method::GET, path).await, 200, "{path}");
        }
        for path in [&format!("{ORDERS}/a"), "/drain"] {
            assert_eq!(ask(&fixture.plane, Method::POST, path).await, 403, "{path}");
        }
        assert_eq!(ask(&open, Method::POST, "/drain").await, 403, "never from another host");
        assert_eq!(open.readyz().await.0, 200);
        for (host, status) in [("pod.example:9090", 200), ("other.example", 421)] {
            assert_eq!(asked(&open, "GET", "/debug/channels", &[("Host", host)]).await, status);
        }
    });
}
