//! nats-servers as production has them: TLS, and accounts of operator mode (JWTs) whose users may
//! do exactly what they are given.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Process, free_port, tool};

/// How long a server may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A certificate authority.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, rcgen::KeyPair>);

impl Default for Authority {
    fn default() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }
}

impl Authority {
    /// Its own certificate, PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate and key, PEM, for names or addresses.
    ///
    /// # Panics
    /// When one of them is neither.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names).expect("names");
        (params.signed_by(&key, &self.0).expect("a certificate").pem(), key.serialize_pem())
    }
}

/// What a user may do; everything else is denied.
#[derive(Debug, Clone)]
pub struct Permissions {
    /// Subjects to publish to.
    pub publish: Vec<String>,
    /// Subjects to subscribe to.
    pub subscribe: Vec<String>,
}

impl Permissions {
    /// Everything is allowed.
    pub fn all() -> Self {
        Self { publish: vec![">".to_owned()], subscribe: vec![">".to_owned()] }
    }
}

/// An account with JetStream, and the operator that vouches for it.
pub struct Account {
    operator: KeyPair,
    system: KeyPair,
    account: KeyPair,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Account").field(&self.account.public_key()).finish()
    }
}

impl Default for Account {
    fn default() -> Self {
        Self {
            operator: KeyPair::new_operator(),
            system: KeyPair::new_account(),
            account: KeyPair::new_account(),
        }
    }
}

impl Account {
    /// The part of a server's configuration that makes it trust the operator and know the account.
    pub fn configuration(&self) -> String {
        let (operator, system, account) =
            (self.operator.public_key(), self.system.public_key(), self.account.public_key());
        let limits = |jetstream: i64| {
            json!({"type": "account", "version": 2, "limits": {
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
                "wildcards": true, "conn": -1, "leaf": -1, "mem_storage": jetstream,
                "disk_storage": jetstream, "streams": -1, "consumer": -1}})
        };
        let claims = json!({"type": "operator", "version": 2, "system_account": system});
        let of_operator = token(&self.operator, &operator, &claims, None);
        let of_system = token(&self.operator, &system, &limits(0), None);
        let of_account = token(&self.operator, &account, &limits(-1), None);
        format!(
            "operator: {of_operator}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload {{ {system}: {of_system}, {account}: {of_account} }}\n"
        )
    }

    /// The credentials file of a new user; `lives` for so long from now, which may be over.
    ///
    /// # Panics
    /// When no key can be made.
    pub fn user(&self, name: &str, permissions: &Permissions, lives: Option<i64>) -> String {
        let user = KeyPair::new_user();
        let claims = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1,
            "pub": {"allow": permissions.publish}, "sub": {"allow": permissions.subscribe},
            "name": name});
        let expires = lives.map(|seconds| now() + seconds);
        let jwt = token(&self.account, &user.public_key(), &claims, expires);
        let seed = user.seed().expect("a seed");
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    i64::try_from(since.as_secs()).expect("a clock of this age")
}

/// A JWT as NATS signs them.
fn token(issuer: &KeyPair, subject: &str, nats: &Value, expires: Option<i64>) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let mut claims = json!({"jti": format!("test-{subject}"), "iat": now() - 3600,
        "iss": issuer.public_key(), "sub": subject, "name": subject, "nats": nats});
    if let Some(expires) = expires {
        claims["exp"] = expires.into();
    }
    let signed = [part(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), part(&claims)].join(".");
    let signature = issuer.sign(signed.as_bytes()).expect("a signature");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A nats-server with JetStream and a configuration file.
#[derive(Debug)]
pub struct SecuredServer {
    port: u16,
    files: TempDir,
    process: Process,
}

impl SecuredServer {
    /// Starts one with this configuration beside JetStream's and the listener's; `files` are put
    /// beside it, by their names.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(configuration: &str, files: &[(&str, &str)]) -> Self {
        let dir = TempDir::with_prefix("sluice-secured-").expect("a directory");
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).expect("a file");
        }
        let (port, path) = (free_port(), dir.path().join("nats.conf"));
        let store = dir.path().join("store");
        let all = format!(
            "listen: 127.0.0.1:{port}\njetstream {{ store_dir: {store:?} }}\n{configuration}\n"
        );
        std::fs::write(&path, all).expect("a configuration");
        let mut command = Command::new(tool("nats-server"));
        command.arg("-c").arg(&path).current_dir(dir.path());
        let process = Process::spawn("nats", command);
        crate::eventually("nats-server is ready", START_LIMIT, async || {
            process.stderr().contains("Server is ready").then_some(())
        })
        .await;
        Self { port, files: dir, process }
    }

    /// One with TLS for 127.0.0.1 by `authority`, and the accounts of `account`.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn of_production(authority: &Authority, account: &Account) -> Self {
        let (certificate, key) = authority.issue(&["127.0.0.1"]);
        let configuration = format!("{TLS}\n{}", account.configuration());
        Self::start(&configuration, &[("tls.crt", &certificate), ("tls.key", &key)]).await
    }

    /// `host:port` of it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `tls://…` of it.
    pub fn url(&self) -> String {
        format!("tls://{}", self.address())
    }

    /// A file with this text beside its configuration.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.files.path().join(name);
        let temporary = self.files.path().join(format!(".{name}"));
        std::fs::write(&temporary, text).expect("a file");
        std::fs::rename(&temporary, &path).expect("a file");
        path
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    /// A client of the credentials in `file`, which trusts `authority`.
    ///
    /// # Panics
    /// When it cannot connect.
    pub async fn client(&self, credentials: &str, ca: &Path) -> async_nats::Client {
        async_nats::ConnectOptions::with_credentials(credentials)
            .expect("credentials")
            .add_root_certificates(ca.to_path_buf())
            .connect(self.url())
            .await
            .expect("a connection")
    }
}

/// TLS of a server with the files `tls.crt` and `tls.key`.
pub const TLS: &str = "tls { cert_file: \"tls.crt\", key_file: \"tls.key\" }";
