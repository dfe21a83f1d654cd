//! What keeps the operator from NATS: by its cause, and with the setting that mends it.
//!
//! The client says little of a failed attempt in its events; it keeps the error of each server,
//! which is what this reads. Names are looked up again here, since the client keeps no error of
//! that, and files are read again, since the client does not say which one was at fault.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use async_nats::Server;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::jiff::Timestamp;
use nkeys::KeyPair;
use serde::Deserialize;
use sluice_channel::Credentials;

use super::Settings;

/// How long a name may take to be looked up; the resolver's own limit is often longer.
const LOOKUP_LIMIT: Duration = Duration::from_secs(2);
/// Longest part of a text of others that goes on into a condition.
const QUOTED: usize = 200;

/// How users name the settings: by the chart's value and by the flag.
const SERVERS: &str = "nats.servers (--nats)";
const CREDENTIALS: &str = "nats.credentialsSecret (--nats-credentials)";
const CA: &str = "nats.caSecret (--nats-ca)";
const CLIENT_CERTIFICATE: &str = "nats.clientCertSecret (--nats-client-cert and --nats-client-key)";

/// Why there is no connection, or none that is of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// Whether NATS refuses the operator, or the credentials cannot even be sent; else NATS is not
    /// reached.
    pub(crate) refused: bool,
    /// The cause and what mends it. The same cause has the same text.
    pub(crate) text: String,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Trouble {
    fn refused(text: String) -> Self {
        Self { refused: true, text }
    }

    fn unreached(text: String) -> Self {
        Self { refused: false, text }
    }

    /// The server takes no subscription, so no answer can come.
    pub(super) fn no_answers(subject: &str) -> Self {
        Self::refused(format!(
            "the operator may not subscribe to {subject:?}, where answers come to. Allow it, as `sluice-operator permissions` prints"
        ))
    }

    /// The server takes no message on this subject.
    pub(super) fn not_allowed(subject: &str) -> Self {
        Self::refused(format!(
            "the operator may not publish to {subject:?}. Allow it, as `sluice-operator permissions` prints"
        ))
    }
}

/// The subject that a server's complaint is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Denied {
    Publish(String),
    Subscribe(String),
}

impl Denied {
    /// `Permissions Violation for Publish to "a.b"`, as nats-server writes it.
    pub(super) fn parse(complaint: &str) -> Option<Self> {
        let (_, rest) = complaint.split_once("Permissions Violation for ")?;
        let (what, rest) = rest.split_once(" to \"")?;
        let subject = rest.split('"').next()?.to_owned();
        match what {
            "Publish" => Some(Self::Publish(subject)),
            "Subscription" => Some(Self::Subscribe(subject)),
            _ => None,
        }
    }
}

/// Why the last attempts failed, by what the client keeps of each server; `None` before the first
/// one failed.
pub(super) async fn diagnose(settings: &Settings, servers: Vec<Server>) -> Option<Trouble> {
    let mut errors = BTreeMap::new();
    // Servers that the cluster announces are as good as the configured ones, but not what a user
    // can correct.
    for server in servers.into_iter().filter(|server| !server.is_discovered) {
        let (host, port) = (server.addr.host().to_owned(), server.addr.port());
        let address =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        if let Some(trouble) = not_found(&host, port).await {
            errors.insert(address, trouble);
        } else if let Some(error) = server.last_error {
            let trouble = explain(settings, &host, &address, &error).await;
            errors.insert(address, trouble);
        }
    }
    let refused = errors.values().any(|trouble| trouble.refused);
    let texts: BTreeSet<String> = errors.into_values().map(|trouble| trouble.text).collect();
    let text = texts.into_iter().collect::<Vec<_>>().join("; ");
    (!text.is_empty()).then_some(Trouble { refused, text })
}

/// Why the host has no address, if it has none.
async fn not_found(host: &str, port: u16) -> Option<Trouble> {
    let found = tokio::time::timeout(LOOKUP_LIMIT, tokio::net::lookup_host((host, port))).await;
    let why = match found {
        Ok(Ok(mut addresses)) => {
            if addresses.next().is_some() {
                return None;
            }
            format!("the name {host:?} has no address in DNS")
        }
        Ok(Err(error)) if error.to_string().contains("Temporary failure") => {
            format!("DNS does not answer for the name {host:?}")
        }
        Ok(Err(_)) => format!("the name {host:?} is not found in DNS"),
        Err(_) => format!("DNS does not answer for the name {host:?}"),
    };
    Some(Trouble::unreached(format!("{why}. Correct {SERVERS}, or see that the Service exists")))
}

async fn explain(settings: &Settings, host: &str, address: &str, error: &str) -> Trouble {
    let is = |part: &str| error.contains(part);
    let certificate = is("invalid peer certificate") || is("received fatal alert");
    if is("failed signing nonce") || is("authorization violation") || is("Authentication") {
        return Trouble::refused(refusal(settings, address, error).await);
    }
    if certificate {
        return Trouble::unreached(certificate_trouble(settings, host, address, error));
    }
    if error.starts_with("TLS error") {
        return Trouble::unreached(unreadable_files(settings, address, error).await);
    }
    Trouble::unreached(if is("Connection refused") {
        format!("{address} refuses connections. See that NATS runs there, or correct {SERVERS}")
    } else if is("timed out") {
        format!(
            "{address} does not answer. See that NATS runs there and that no network policy or firewall stands between, or correct {SERVERS}"
        )
    } else if is("InvalidContentType") {
        format!(
            "{address} does not speak TLS. Use nats:// instead of tls:// in {SERVERS}, or turn TLS on there"
        )
    } else if is("expected INFO") || is("InvalidInput") || is("invalid server operation") {
        format!("{address} answers, but not as NATS does. Correct {SERVERS}")
    } else {
        format!("{address}: {}. Correct {SERVERS}, or see that NATS runs there", quoted(error))
    })
}

/// What a certificate, the server's or ours, is refused for.
fn certificate_trouble(settings: &Settings, host: &str, address: &str, error: &str) -> String {
    let is = |part: &str| error.contains(part);
    let trust = match &settings.ca {
        Some(ca) => format!("not by one of those in {} from {CA}", ca.display()),
        None => format!("which the system does not trust: name it in {CA}"),
    };
    if is("UnknownIssuer") || is("BadSignature") {
        format!("the certificate of {address} was signed by another authority, {trust}")
    } else if is("not valid for name") || is("NotValidForName") {
        format!(
            "the certificate of {address} is not for the name {host:?}. Use a name that it holds in {SERVERS}, or give the server another certificate"
        )
    } else if is("expired") || is("Expired") {
        format!("the certificate of {address} has expired. Give the server a new one")
    } else if is("not valid yet") || is("NotValidYet") {
        format!("the certificate of {address} is not valid yet. Look at the clocks of both")
    } else if is("received fatal alert") && settings.client_certificate.is_none() {
        format!("{address} asks for a client certificate. Name one in {CLIENT_CERTIFICATE}")
    } else if is("received fatal alert") {
        format!(
            "{address} does not accept the client certificate of {CLIENT_CERTIFICATE} ({})",
            quoted(error)
        )
    } else {
        format!("TLS with {address} fails: {}. Look at {CA}", quoted(error))
    }
}

/// Which of the files for TLS cannot be used.
async fn unreadable_files(settings: &Settings, address: &str, error: &str) -> String {
    let files = [
        (CA, settings.ca.as_deref()),
        (CLIENT_CERTIFICATE, settings.client_certificate.as_ref().map(|(file, _)| file.as_path())),
        (CLIENT_CERTIFICATE, settings.client_certificate.as_ref().map(|(_, key)| key.as_path())),
    ];
    for (setting, file) in files {
        if let Some(file) = file
            && let Err(error) = tokio::fs::read(file).await
        {
            return format!("{} of {setting} cannot be read: {error}", file.display());
        }
    }
    format!(
        "TLS with {address} cannot begin: {}. Look at {CA} and {CLIENT_CERTIFICATE}",
        quoted(error)
    )
}

/// Why the server, or the operator itself, does not take the credentials.
async fn refusal(settings: &Settings, address: &str, error: &str) -> String {
    let Some(path) = &settings.credentials else {
        return if settings.servers.iter().any(|url| url.contains('@')) {
            format!(
                "{address} asks for credentials. A user and password in {SERVERS} are not sent; name a credentials file in {CREDENTIALS}"
            )
        } else if settings.client_certificate.is_some() {
            format!(
                "{address} knows no user with the certificate of {CLIENT_CERTIFICATE}, or asks for other credentials: name them in {CREDENTIALS}"
            )
        } else {
            format!("{address} asks for credentials. Name them in {CREDENTIALS}")
        };
    };
    match read(path).await {
        Err(why) => format!("the credentials file {why}. Correct {CREDENTIALS}"),
        Ok(credentials) => match out_of_time(&credentials.jwt, Timestamp::now()) {
            Some(when) => format!(
                "the JWT in the credentials file {} {when}. Issue another one, and put it into {CREDENTIALS}",
                path.display()
            ),
            None => format!(
                "{address} does not accept the user of the credentials file {} ({}). Correct {CREDENTIALS}, or see that the server knows its account",
                path.display(),
                quoted(error)
            ),
        },
    }
}

/// The credentials that the file holds now.
pub(super) async fn read(path: &Path) -> Result<Credentials, String> {
    let of = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = tokio::fs::read_to_string(path).await.map_err(|error| of(&error))?;
    let credentials = Credentials::parse(&text).map_err(|error| of(&error))?;
    KeyPair::from_seed(&credentials.seed)
        .map_err(|error| of(&format!("its NKEY seed is malformed ({error})")))?;
    Ok(credentials)
}

/// How a JWT says that this is not its time, if it does. One that cannot be read says nothing.
fn out_of_time(jwt: &str, now: Timestamp) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        #[serde(default)]
        exp: i64,
        #[serde(default)]
        nbf: i64,
    }
    let claims = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1)?).ok()?;
    let Claims { exp, nbf } = serde_json::from_slice(&claims).ok()?;
    let shown = |seconds| Timestamp::from_second(seconds).ok();
    if exp > 0 && exp <= now.as_second() {
        return shown(exp).map(|time| format!("expired at {time}"));
    }
    (nbf > now.as_second())
        .then(|| shown(nbf))
        .flatten()
        .map(|time| format!("is not valid before {time}"))
}

/// A part of an error that is not ours: without the kinds that say nothing, and bounded.
fn quoted(error: &str) -> String {
    let text = error.strip_prefix("IO error: ").unwrap_or(error);
    let text = text.strip_prefix("TLS error: ").unwrap_or(text);
    text.chars().filter(|c| !c.is_control()).take(QUOTED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_subject_is_named() {
        for (complaint, denied) in [
            (
                r#"nats: Permissions Violation for Publish to "$JS.API.STREAM.INFO.a""#,
                Some(Denied::Publish("$JS.API.STREAM.INFO.a".to_owned())),
            ),
            (
                r#"Permissions Violation for Subscription to "_INBOX.a.*""#,
                Some(Denied::Subscribe("_INBOX.a.*".to_owned())),
            ),
            (
                r#"Permissions Violation for Subscription to "a" using queue "b""#,
                Some(Denied::Subscribe("a".to_owned())),
            ),
            ("Authorization Violation", None),
            ("Permissions Violation", None),
            ("Permissions Violation for Publish to ", None),
        ] {
            assert_eq!(Denied::parse(complaint), denied, "{complaint}");
        }
    }

    #[test]
    fn a_jwt_says_whether_it_is_its_time() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let of = |claims: &str| {
            out_of_time(&format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims)), now)
        };
        assert_eq!(of(r#"{"exp":1699999999}"#), Some("expired at 2023-11-14T22:13:19Z".to_owned()));
        assert_eq!(
            of(r#"{"nbf":1700000001}"#),
            Some("is not valid before 2023-11-14T22:13:21Z".to_owned())
        );
        for claims in ["{}", r#"{"exp":0}"#, r#"{"exp":1700000001}"#, r#"{"exp":"x"}"#, "x"] {
            assert_eq!(of(claims), None, "{claims}");
        }
        for jwt in ["", ".", "a.%.c", "no"] {
            assert_eq!(out_of_time(jwt, now), None, "{jwt}");
        }
    }
}
