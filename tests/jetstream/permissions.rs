//! Pods and publishers with exactly the permissions that `sluice-operator permissions` prints, over
//! TLS, as users of an account of operator mode.

use std::{path::PathBuf, time::Duration};

use async_nats::jetstream;
use futures::StreamExt;
use sluice_dataplane::source::{
    Append, ReadLimit, Source,
    jetstream::{JetStream, Settings, connect},
};
use sluice_tests::{
    clients::{Reader, Request},
    dataplane::{ConfigDir, DataPlane, Options, channel_config},
    eventually,
    nats::{
        Names, names,
        permitted::{nsc, printed},
        secured::{Account, Authority, Permissions, SecuredServer},
        stream_config,
    },
};

const LIMIT: Duration = Duration::from_secs(90);
const INBOX: &str = "_INBOX.sluice.pods.test.orders";

/// A server with the stream of a channel, and the means of its users.
struct Bed {
    account: Account,
    server: SecuredServer,
    ca: PathBuf,
    names: Names,
    admin: jetstream::Context,
}

impl Bed {
    async fn start() -> Self {
        let (authority, account) = (Authority::default(), Account::default());
        let server = SecuredServer::of_production(&authority, &account).await;
        let ca = server.file("ca.pem", &authority.pem());
        let admin = account.user("admin", &Permissions::all(), None);
        let admin = jetstream::new(server.client(&admin, &ca).await);
        let names = names("orders");
        admin.create_stream(stream_config(&names)).await.unwrap();
        Self { account, server, ca, names, admin }
    }

    /// What is printed for the channel.
    fn permissions(&self, role: &str) -> Permissions {
        let manifest = "apiVersion: sluice.dev/v1alpha1\nkind: SseChannel\nmetadata: {name: orders, namespace: test}\nspec: {publish: {mode: Http, allowAnonymous: true}}\n";
        let path = self.server.file("orders.yaml", manifest);
        nsc(&printed(&["--filename", path.to_str().unwrap(), "--role", role]))
    }

    fn pod(&self, lives: Option<i64>) -> String {
        self.account.user("pod", &self.permissions("pod"), lives)
    }

    async fn publish(&self, topic: &str, payload: String) {
        let subject = format!("{}{topic}", self.names.prefix);
        self.admin.publish(subject, payload.into()).await.unwrap().await.unwrap();
    }
}

#[test]
fn a_pod_can_ask_the_store_all_that_it_ever_asks() {
    sluice_tests::run(LIMIT, async {
        let bed = Bed::start().await;
        for i in 0..200 {
            bed.publish("a", format!("{i}")).await;
        }
        let settings = Settings {
            servers: vec![bed.server.url()],
            credentials: Some(bed.server.file("pod.creds", &bed.pod(None))),
            ca: Some(bed.ca.clone()),
            inbox_prefix: Some(INBOX.to_owned()),
            name: "pod".to_owned(),
            ..Settings::default()
        };
        let source = JetStream::new(
            connect(&settings).await.unwrap(),
            bed.names.stream.clone(),
            &bed.names.prefix,
            "orders-sse-5d9c-x1",
        );
        eventually("a connection", LIMIT, async || source.connected().then_some(())).await;
        assert_eq!(source.state().await.unwrap().last, 200);
        assert_eq!(source.read_leader(7).await.unwrap().unwrap().sequence, 7);
        assert_eq!(source.first_since(0).await.unwrap(), Some(1));
        // Long enough in a row for a consumer of history.
        let limit = ReadLimit { events: 20, bytes: 1 << 20 };
        for from in (1..=181).step_by(20) {
            assert_eq!(source.read(from, limit).await.unwrap().events[0].sequence, from);
        }
        let mut tail = source.tail(200).await.unwrap();
        assert_eq!(tail.next().await.unwrap().event.sequence, 200);
        let append = Append {
            subject: format!("{}b", bed.names.prefix),
            payload: "x".into(),
            name: None,
            content_type: None,
            idempotency_key: None,
            expected_last: None,
        };
        assert_eq!(source.append(append).await.unwrap().sequence, 201);
        assert_eq!(&source.published(201).await.unwrap().unwrap().payload[..], b"x");
        drop(tail);
        // The consumers are deleted, which is asked for in the background.
        drop(source);
        let stream = bed.admin.get_stream(bed.names.stream.as_str()).await.unwrap();
        eventually("no consumer is left", LIMIT, async || {
            (stream.consumer_names().count().await == 0).then_some(())
        })
        .await;
        let log = bed.server.log();
        assert!(!log.contains("Violation"), "{log}");
    });
}

#[test]
fn whatever_else_a_pod_or_a_publisher_tries_is_denied() {
    sluice_tests::run(LIMIT, async {
        let bed = Bed::start().await;
        let stream = bed.names.stream.as_str();
        for role in ["pod", "publisher"] {
            let credentials = bed.account.user(role, &bed.permissions(role), None);
            let client = bed.server.client(&credentials, &bed.ca).await;
            for subject in [
                format!("$JS.API.STREAM.DELETE.{stream}"),
                format!("$JS.API.STREAM.PURGE.{stream}"),
                format!("$JS.API.STREAM.UPDATE.{stream}"),
                format!("$JS.API.STREAM.MSG.DELETE.{stream}"),
                "$JS.API.STREAM.INFO.OTHER".to_owned(),
                "$JS.API.DIRECT.GET.OTHER".to_owned(),
                "$JS.API.CONSUMER.CREATE.OTHER.c".to_owned(),
                "$JS.API.STREAM.NAMES".to_owned(),
                "sse.test.other.a".to_owned(),
                "payments".to_owned(),
                "$SYS.REQ.SERVER.PING".to_owned(),
            ] {
                client.publish(subject.clone(), "".into()).await.unwrap();
                client.flush().await.unwrap();
                denied(&bed.server, "Publish", &subject).await;
            }
            for subject in ["_INBOX.>", "_INBOX.sluice.operator.>", "sse.test.orders.>", ">"] {
                let _subscription = client.subscribe(subject).await.unwrap();
                client.flush().await.unwrap();
                denied(&bed.server, "Subscription", subject).await;
            }
        }
        let info = bed.admin.get_stream(stream).await.unwrap().cached_info().clone();
        assert_eq!(info.state.messages, 0);
    });
}

/// The server's log says so; each denial counts once.
async fn denied(server: &SecuredServer, what: &str, subject: &str) {
    eventually(&format!("{what} {subject} is denied"), Duration::from_secs(5), async || {
        let log = server.log();
        log.lines()
            .any(|l| {
                l.contains(&format!("{what} Violation")) && l.contains(&format!("\"{subject}\""))
            })
            .then_some(())
    })
    .await;
}

#[test]
fn a_publisher_is_acknowledged() {
    sluice_tests::run(LIMIT, async {
        let bed = Bed::start().await;
        let credentials = bed.account.user("publisher", &bed.permissions("publisher"), None);
        let client = async_nats::ConnectOptions::with_credentials(&credentials)
            .unwrap()
            .add_root_certificates(bed.ca.clone())
            .custom_inbox_prefix("_INBOX.sluice.publishers.test.orders")
            .connect(bed.server.url())
            .await
            .unwrap();
        let context = jetstream::new(client);
        let publish = context.publish(format!("{}a", bed.names.prefix), "1".into());
        assert_eq!(publish.await.unwrap().await.unwrap().sequence, 1);
        assert!(!bed.server.log().contains("Violation"));
    });
}

/// The printed block is what nats-server reads.
#[test]
fn a_server_takes_the_printed_permissions() {
    sluice_tests::run(LIMIT, async {
        let bed = Bed::start().await;
        let path = bed.server.file("c.yaml", "apiVersion: sluice.dev/v1alpha1\nkind: SseChannel\nmetadata: {name: orders, namespace: test}\nspec: {}\n");
        let block = printed(&["-f", path.to_str().unwrap(), "--role", "operator"]);
        let users = format!(
            "accounts {{ A {{ jetstream: enabled, users: [{{user: op, password: x\n{block}}}] }} }}"
        );
        let server = SecuredServer::start(&users, &[]).await;
        let options = |inbox: &str| {
            async_nats::ConnectOptions::with_user_and_password("op".into(), "x".into())
                .custom_inbox_prefix(inbox)
                .request_timeout(Some(Duration::from_secs(2)))
        };
        let url = format!("nats://{}", server.address());
        let client = options("_INBOX.sluice.operator").connect(&url).await.unwrap();
        jetstream::new(client.clone()).create_stream(stream_config(&bed.names)).await.unwrap();
        assert!(!server.log().contains("Violation"));
        let refused = client.request("$JS.API.STREAM.NAMES", "".into()).await;
        assert!(refused.is_err(), "the operator lists no streams");
    });
}

/// A user's JWT ends while events come; the file holds another one by then. The server closes the
/// connection, and subscribers miss nothing.
#[test]
fn rotation_under_load_loses_nothing() {
    sluice_tests::run(LIMIT, async {
        let bed = Bed::start().await;
        let credentials = bed.server.file("pod.creds", &bed.pod(Some(8)));
        let configs = ConfigDir::new(&[channel_config(&bed.names)]);
        let (credentials_arg, ca) = (credentials.to_str().unwrap(), bed.ca.to_str().unwrap());
        let arguments =
            ["--nats-credentials", credentials_arg, "--nats-ca", ca, "--nats-inbox-prefix", INBOX];
        let options = Options { arguments: &arguments, ..Options::default() };
        let plane = DataPlane::start_with(&bed.server.url(), &configs, &options).await;
        let path = "/channels/orders?from=earliest";
        let mut reader = Reader::open(plane.http(), &Request::get(path)).await;
        let total = 1_200_u32;
        let publishing = async {
            for i in 0..total {
                bed.publish("a", i.to_string()).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
                if i == 200 {
                    bed.server.file("pod.creds", &bed.pod(None));
                }
            }
        };
        let reading = async {
            for i in 0..total {
                let event = reader.event(LIMIT).await.expect("an event");
                assert_eq!(event.data, i.to_string(), "none is missing, none comes twice");
            }
        };
        tokio::join!(publishing, reading);
        let log = bed.server.log();
        assert_eq!(plane.log().matches(" connected to NATS").count(), 2, "{}", plane.log());
        assert!(!log.contains("Violation"), "{log}");
    });
}
