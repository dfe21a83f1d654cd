//! What keeps the operator from NATS is told by its cause, with the setting that mends it.

use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use sluice_tests::{
    nats::secured::{Account, Authority, Permissions, SecuredServer, TLS},
    process::{free_port, workspace_program},
};
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(90);

/// Runs `sluice-operator check` for `seconds`.
async fn check(seconds: u32, arguments: &[&str]) -> Output {
    let mut command = Command::new(workspace_program("sluice-operator"));
    command
        .args(["check", "--operator=http://127.0.0.1:1", &format!("--timeout={seconds}s")])
        .args(arguments)
        .env("KUBECONFIG", "/nonexistent")
        .env_remove("RUST_LOG");
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// What it says of NATS in the end, and what it logged.
async fn said(arguments: &[&str]) -> (String, String) {
    let output = check(3, arguments).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let out = text(output.stdout);
    let line = out.lines().find(|line| line.contains(" NATS: ")).unwrap_or_else(|| panic!("{out}"));
    (line.to_owned(), text(output.stderr))
}

/// The check fails, and says all of `words` in one line.
async fn fails(arguments: &[&str], words: &[&str]) {
    let (line, log) = said(arguments).await;
    assert!(line.starts_with("failed"), "{line}");
    for word in words {
        assert!(line.contains(word), "{word:?} is not in: {line}\n{log}");
    }
    let lines = log.lines().filter(|line| !line.starts_with("sluice-operator: ")).count();
    assert!(lines <= 2, "each fault is logged once:\n{log}");
}

fn arg(flag: &str, path: &Path) -> String {
    format!("--nats-{flag}={}", path.display())
}

#[test]
fn of_names_and_addresses() {
    sluice_tests::run(LIMIT, async {
        fails(
            &["--nats=nats://nats.nowhere.invalid:4222"],
            &["\"nats.nowhere.invalid\"", "DNS", "nats.servers", "--nats"],
        )
        .await;
        let address = format!("127.0.0.1:{}", free_port());
        let url = format!("--nats=nats://op:s3cret@{address}");
        fails(&[&url], &[&address, "refuses connections", "nats.servers"]).await;
        // Two servers, two causes, both told.
        let both = format!("--nats=nats://nats.nowhere.invalid:4222,nats://{address}");
        fails(&[&both], &["\"nats.nowhere.invalid\"", "refuses connections"]).await;
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("--nats=nats://{}", silent.local_addr().unwrap());
        let output = check(8, &[&url]).await;
        let out = String::from_utf8(output.stdout).unwrap();
        assert!(out.contains("does not answer. See that NATS runs"), "{out}");
    });
}

#[test]
fn of_tls() {
    sluice_tests::run(LIMIT, async {
        let (authority, other) = (Authority::default(), Authority::default());
        let (certificate, key) = authority.issue(&["nats.example"]);
        let files = [("tls.crt", certificate.as_str()), ("tls.key", key.as_str())];
        let server = SecuredServer::start(TLS, &files).await;
        let url = format!("--nats={}", server.url());
        let ca = arg("ca", &server.file("ca.pem", &authority.pem()));
        let wrong = arg("ca", &server.file("other.pem", &other.pem()));
        let missing = arg("ca", Path::new("/nonexistent/ca.crt"));
        fails(&[&url, &wrong], &["another authority", "nats.caSecret", "--nats-ca"]).await;
        fails(&[&url], &["does not trust", "nats.caSecret"]).await;
        fails(&[&url, &ca], &["is not for the name \"127.0.0.1\"", "nats.servers"]).await;
        fails(&[&url, &missing], &["/nonexistent/ca.crt", "cannot be read", "nats.caSecret"]).await;
        let (certificate, key) = authority.issue(&["127.0.0.1"]);
        let pem = authority.pem();
        let files = [("tls.crt", &*certificate), ("tls.key", &*key), ("ca.crt", &*pem)];
        let verify = "tls { cert_file: \"tls.crt\", key_file: \"tls.key\", ca_file: \"ca.crt\", verify: true }";
        let server = SecuredServer::start(verify, &files).await;
        let url = format!("--nats={}", server.url());
        fails(&[&url, &ca], &["asks for a client certificate", "nats.clientCertSecret"]).await;
        let plain = SecuredServer::start("", &[]).await;
        fails(&[&format!("--nats={}", plain.url()), &ca], &["does not speak TLS"]).await;
    });
}

#[test]
fn of_users_and_passwords() {
    sluice_tests::run(LIMIT, async {
        let users = "accounts { A { jetstream: enabled, users: [{user: op, password: right}] } }";
        let server = SecuredServer::start(users, &[]).await;
        let address = server.address();
        fails(
            &[&format!("--nats=nats://{address}")],
            &["asks for credentials", "nats.credentialsSecret", "--nats-credentials"],
        )
        .await;
        let in_url = format!("--nats=nats://op:s3cret@{address}");
        fails(&[&in_url], &["are not sent", "nats.credentialsSecret"]).await;
        let (line, log) = said(&[&in_url]).await;
        assert!(!(line + &log).contains("s3cret"), "no password is shown");
    });
}

#[test]
fn of_credentials_files() {
    sluice_tests::run(LIMIT, async {
        let (authority, account) = (Authority::default(), Account::default());
        let server = SecuredServer::of_production(&authority, &account).await;
        let ca = arg("ca", &server.file("ca.pem", &authority.pem()));
        let url = format!("--nats={}", server.url());
        let of = |name: &str, text: &str| arg("credentials", &server.file(name, text));
        let all = Permissions::all();
        let good = of("good", &account.user("good", &all, None));
        let (line, _) = said(&[&url, &ca, &good]).await;
        assert!(line.starts_with("ok"), "{line}");
        let setting = "nats.credentialsSecret (--nats-credentials)";
        for (credentials, words) in [
            (of("late", &account.user("late", &all, Some(-60))), "expired at 20"),
            (of("empty", "no credentials"), "must hold a user JWT and an NKEY seed"),
            (arg("credentials", Path::new("/nonexistent/nats.creds")), "/nonexistent/nats.creds"),
            (
                of("foreign", &Account::default().user("foreign", &all, None)),
                "does not accept the user",
            ),
        ] {
            fails(&[&url, &ca, &credentials], &["refuses the operator", words, setting]).await;
        }
    });
}

#[test]
fn of_permissions_by_the_subject() {
    sluice_tests::run(LIMIT, async {
        let (authority, account) = (Authority::default(), Account::default());
        let server = SecuredServer::of_production(&authority, &account).await;
        let ca = arg("ca", &server.file("ca.pem", &authority.pem()));
        let url = format!("--nats={}", server.url());
        for (publish, subscribe, words) in [
            ("a.>", "_INBOX.>", "may not publish to \"$JS.API.INFO\""),
            ("$JS.API.>", "a.>", "may not subscribe to \"_INBOX."),
        ] {
            let permissions = Permissions {
                publish: vec![publish.to_owned()],
                subscribe: vec![subscribe.to_owned()],
            };
            let credentials = account.user("narrow", &permissions, None);
            let credentials = arg("credentials", &server.file("nats.creds", &credentials));
            fails(&[&url, &ca, &credentials], &[words, "sluice-operator permissions"]).await;
        }
    });
}

/// The check asks again and again, and does not leave a client behind each time.
#[test]
fn a_check_holds_one_connection() {
    sluice_tests::run(LIMIT, async {
        let server = SecuredServer::start("debug: true\nauthorization { token: right }", &[]).await;
        let seconds = 12;
        let output = check(seconds, &[&format!("--nats=nats://{}", server.address())]).await;
        assert!(!output.status.success());
        // One client tries every two seconds, after some faster ones at first; a client for each
        // attempt of the check would make several times as many.
        let tried = server.log().matches("Client connection created").count();
        assert!((3..=14).contains(&tried), "{tried} connections in {seconds} s");
    });
}
