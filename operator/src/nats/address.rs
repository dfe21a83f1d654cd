//! Servers' addresses, and what of them may be shown.

/// Servers' addresses that are no secret: none holds a user, a password or a token. What pods are
/// given stands in their Deployment, which the editors of its namespace read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicServers(Vec<String>);

impl PublicServers {
    /// `None` when one of them holds more than an address. The caller says which option is meant,
    /// without its value.
    #[must_use]
    pub(crate) fn new(urls: Vec<String>) -> Option<Self> {
        // No address has an `@`: whatever stands before it, in whatever form, is for the server.
        (!urls.iter().any(|url| url.contains('@'))).then_some(Self(urls))
    }

    /// Comma-separated, as `--nats` takes them.
    #[must_use]
    pub(crate) fn list(&self) -> String {
        self.0.join(",")
    }
}

/// An address that may be shown: a password in it is not.
pub(crate) fn without_user(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_addresses_are_public() {
        let public = |url: &str| PublicServers::new(vec!["nats://a:4222".into(), url.into()]);
        for url in ["nats://nats:4222", "tls://[::1]:4222", "nats:4222"] {
            assert_eq!(public(url).unwrap().list(), format!("nats://a:4222,{url}"));
        }
        for url in ["nats://u:p@nats:4222", "nats://token@nats", "u:p@nats", "wss://u:p@a/@b", "@"]
        {
            assert_eq!(public(url), None, "{url}");
        }
    }

    #[test]
    fn an_address_is_shown_without_its_user() {
        for (url, shown) in [
            ("nats://nats:4222", "nats://nats:4222"),
            ("tls://user:p@ss@nats.example:4222", "tls://nats.example:4222"),
            ("token@nats:4222", "nats:4222"),
        ] {
            assert_eq!(without_user(url), shown, "{url}");
        }
    }
}
