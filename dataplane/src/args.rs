//! The command line.

use std::{
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use sluice_channel::{limits, text};

use crate::{
    pod::{Access, Guard, Options, Pace},
    source::jetstream::Settings,
};

/// Serves the events of JetStream streams as Server-Sent Events.
#[derive(Debug, Parser)]
#[command(name = "sluice-dataplane", version)]
pub struct Args {
    /// Directory of channel configurations (`*.json`); followed while the process runs.
    #[arg(
        long,
        env = "SLUICE_CONFIG_DIR",
        default_value = "/etc/sluice/channels",
        value_name = "DIR"
    )]
    config_dir: PathBuf,
    /// Address of the public listener; [::] takes IPv4 too.
    #[arg(long, default_value_t = (Ipv6Addr::UNSPECIFIED, limits::HTTP_PORT).into(), value_name = "ADDR")]
    listen: SocketAddr,
    /// Address of the admin listener: probes, metrics, debug; [::] takes IPv4 too.
    #[arg(long, default_value_t = (Ipv6Addr::UNSPECIFIED, limits::ADMIN_PORT).into(), value_name = "ADDR")]
    admin: SocketAddr,
    /// From where the console, /debug and channels on the admin listener are answered; /drain
    /// always from this host, probes and metrics always from everywhere.
    #[arg(long, env = "SLUICE_ADMIN_ACCESS", value_enum, default_value_t = Access::Local)]
    admin_access: Access,
    /// A host name that the admin listener answers to, beside addresses, localhost and the
    /// instance's name; may be given several times. Other names are refused.
    #[arg(
        long = "admin-host",
        env = "SLUICE_ADMIN_HOST",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    admin_hosts: Vec<String>,
    /// NATS servers.
    #[arg(
        long,
        env = "SLUICE_NATS",
        hide_env_values = true,
        default_value = "nats://127.0.0.1:4222",
        value_delimiter = ',',
        value_name = "URL"
    )]
    nats: Vec<String>,
    /// Credentials file (`.creds`); read again at each connect.
    #[arg(long, value_name = "FILE")]
    nats_credentials: Option<PathBuf>,
    /// PEM file of the authorities to trust.
    #[arg(long, value_name = "FILE")]
    nats_ca: Option<PathBuf>,
    /// PEM file of the client certificate.
    #[arg(long, requires = "nats_client_key", value_name = "FILE")]
    nats_client_cert: Option<PathBuf>,
    /// PEM file of the client certificate's key.
    #[arg(long, requires = "nats_client_cert", value_name = "FILE")]
    nats_client_key: Option<PathBuf>,
    /// Prefix of the subjects that answers come to; below _INBOX, so that NATS permissions which
    /// allow that go on allowing it.
    #[arg(
        long,
        env = "SLUICE_NATS_INBOX_PREFIX",
        default_value = "_INBOX",
        value_parser = subject,
        value_name = "SUBJECT"
    )]
    nats_inbox_prefix: String,
    /// JetStream domain.
    #[arg(long, value_name = "NAME")]
    jetstream_domain: Option<String>,
    /// Name of this process; a pod's name. Default: the host's name.
    #[arg(long, env = "SLUICE_INSTANCE", value_name = "NAME")]
    instance: Option<String>,
    /// Threads that write streams of plain HTTP/1.1 to their sockets; 0 leaves them to the HTTP
    /// library. Default: the CPUs this process may use (affinity and cgroup quota).
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(0..=1024))]
    fanout_threads: Option<u16>,
    /// Most memory to use, bytes, or such as 512Mi: above nine tenths of it new subscribers are
    /// told to come back later. Default: the limit of its cgroup (version 2), which is the
    /// container's.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory_limit: Option<u64>,
    /// How long to accept after SIGTERM, until the last proxy knows.
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "DURATION")]
    drain_delay: Duration,
    /// Over how long to spread the closes after that.
    #[arg(long, default_value = "45s", value_parser = duration, value_name = "DURATION")]
    drain_period: Duration,
    /// Form of the log on standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Reads `5s`, `1h30m` and the like, as a manifest has them. What this program took before that
/// grammar was one for all (`1.5s`, `2 minutes`, `PT5S`) goes on working.
fn duration(text: &str) -> Result<Duration, String> {
    text::duration(text).or_else(|error| {
        let other = text.parse::<jiff::SignedDuration>().map_err(|_| error.to_string())?;
        Duration::try_from(other).map_err(|_| "must not be negative".to_owned())
    })
}

/// Reads `1048576`, `512Mi` and the like, as a manifest has them. A plain number may be longer than
/// there: a cgroup without a limit says 9223372036854771712.
fn bytes(text: &str) -> Result<u64, String> {
    let bytes = text::size(text).ok().or_else(|| text.parse().ok());
    bytes
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "must be a number of bytes such as 536870912 or 512Mi".to_owned())
}

/// A subject without wildcards.
fn subject(text: &str) -> Result<String, String> {
    let word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_graphic() && b != b'*' && b != b'>')
    };
    if text.split('.').all(word) {
        Ok(text.to_owned())
    } else {
        Err("must be words without wildcards, joined by dots".to_owned())
    }
}

impl Args {
    /// The form of the log.
    #[must_use]
    pub const fn log_format(&self) -> LogFormat {
        self.log_format
    }

    /// What the pod is started with.
    #[must_use]
    pub fn into_options(self) -> Options {
        let Self {
            config_dir,
            listen,
            admin,
            admin_access,
            admin_hosts,
            nats,
            nats_credentials,
            nats_ca,
            nats_client_cert,
            nats_client_key,
            nats_inbox_prefix,
            jetstream_domain,
            instance,
            fanout_threads,
            memory_limit,
            drain_delay,
            drain_period,
            log_format: _,
        } = self;
        let instance = instance.or_else(host_name).unwrap_or_else(|| "unnamed".to_owned());
        let nats = Settings {
            servers: nats,
            credentials: nats_credentials,
            ca: nats_ca,
            client_certificate: nats_client_cert.zip(nats_client_key),
            domain: jetstream_domain,
            inbox_prefix: Some(nats_inbox_prefix),
            name: format!("sluice-dataplane {instance}"),
            replaced: Default::default(),
        };
        let fanout_threads = fanout_threads.map_or_else(available_cpus, usize::from);
        let pace = Pace { delay: drain_delay, period: drain_period };
        Options {
            config_dir,
            listen,
            admin,
            guard: Guard { access: admin_access, hosts: admin_hosts },
            nats,
            instance,
            fanout_threads,
            memory: memory_limit,
            pace,
        }
    }
}

/// CPUs this process may use: its affinity, less what a cgroup's quota (v1 or v2) leaves of them.
fn available_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_as_kubernetes_writes_them() {
        for (text, value) in [("1", 1), ("1024Ki", 1 << 20), ("512Mi", 512 << 20), ("2Gi", 2 << 30)]
        {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
        assert_eq!(bytes("9223372036854771712"), Ok(9_223_372_036_854_771_712));
        for bad in ["", "0", "-1", "1.5Gi", "512MB", "Mi", "18446744073709551615Gi"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_inbox_prefix_is_a_plain_subject() {
        for text in ["_INBOX", "_INBOX.sluice.pods.shop.orders"] {
            assert_eq!(subject(text), Ok(text.to_owned()));
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a.*", "a.>", "a b", "a\r\nb"] {
            assert!(subject(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_of_manifests_and_those_of_before() {
        for (text, millis) in [
            ("5s", 5_000),
            ("1h30m", 5_400_000),
            ("0s", 0),
            ("500ms", 500),
            ("1.5s", 1_500),
            ("2 minutes", 120_000),
            ("PT5S", 5_000),
            ("100000s", 100_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "5", "-5s", "5 apples"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
