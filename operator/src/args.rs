//! The command line.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, ArgGroup, Args as ClapArgs, Parser, Subcommand, ValueEnum};
use hyper::Uri;
use sluice_channel::{limits::ADMIN_PORT, text};

use crate::{
    controller::{desired::Settings, rollouts::MaxRolling, watch::Options},
    leader,
    nats::{self, PublicServers},
    tenancy::{self, Grant, Size},
};

/// Turns SseChannel resources into JetStream streams and the pods that serve them.
#[derive(Debug, Parser)]
#[command(name = "sluice-operator", version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Form of the log on standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Reconcile the channels of a Kubernetes cluster.
    Run(Box<RunArgs>),
    /// Serve the channels of a directory of manifests on this machine, without Kubernetes.
    Local(Box<LocalArgs>),
    /// Ask the operator, the Kubernetes API and NATS whether they work together.
    Check(Box<CheckArgs>),
    /// How namespaces are kept apart.
    Tenancy(TenancyCommand),
    /// Print the NATS permissions that a role needs, and no more.
    Permissions(Box<PermissionsArgs>),
    /// Print the definition of the SseChannel resource.
    Crd,
}

/// Arguments of `tenancy`.
#[derive(Debug, Clone, ClapArgs)]
pub struct TenancyCommand {
    /// What to do.
    #[command(subcommand)]
    pub command: TenancyCommands,
}

/// What `tenancy` does.
#[derive(Debug, Clone, Subcommand)]
pub enum TenancyCommands {
    /// List the channels that would not fit with --tenancy=Isolated, with the annotations to set.
    Check(TenancyCheckArgs),
}

/// Arguments of `tenancy check`.
#[derive(Debug, Clone, ClapArgs)]
pub struct TenancyCheckArgs {
    /// A namespace whose channels are checked; may be repeated. Default: all.
    #[arg(long = "namespace", value_name = "NAMESPACE")]
    pub namespaces: Vec<String>,
    #[command(flatten)]
    tenancy: TenancyArgs,
}

impl TenancyCheckArgs {
    /// How namespaces would be kept apart.
    ///
    /// # Errors
    /// Which grant is none.
    pub fn settings(&self) -> Result<tenancy::Settings, String> {
        self.tenancy.clone().into_settings(tenancy::Mode::Isolated)
    }
}

/// How much namespaces may ask for.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct TenancyArgs {
    /// Most that a channel may have in maxBytes, where namespaces are isolated.
    #[arg(long = "tenancy-max-bytes", default_value = "10Gi", value_name = "SIZE")]
    max_bytes: Size,
    /// Most that the streams of a namespace may reserve together (maxBytes × replicas), where
    /// namespaces are isolated.
    #[arg(long = "tenancy-quota", default_value = "50Gi", value_name = "SIZE")]
    quota: Size,
    /// A grant beside those of Namespaces' annotations, like shop/subjects=telemetry.>; the same
    /// keys and values. May be repeated.
    #[arg(long = "tenancy-grant", value_name = "NAMESPACE/KEY=VALUE")]
    grants: Vec<String>,
}

impl TenancyArgs {
    fn into_settings(self, mode: tenancy::Mode) -> Result<tenancy::Settings, String> {
        let mut grants: BTreeMap<String, Grant> = BTreeMap::new();
        for text in &self.grants {
            let (namespace, grant) = text.split_once('/').unwrap_or_default();
            let (key, value) = grant.split_once('=').unwrap_or_default();
            if namespace.is_empty() || key.is_empty() {
                return Err(format!(
                    "--tenancy-grant={text}: must be like shop/subjects=telemetry.>"
                ));
            }
            grants.entry(namespace.to_owned()).or_default().read(key, value);
        }
        if let Some(problem) = grants.values().flat_map(|grant| &grant.problems).next() {
            return Err(format!("--tenancy-grant: {problem}"));
        }
        Ok(tenancy::Settings { mode, max_bytes: self.max_bytes, quota: self.quota, grants })
    }
}

/// How NATS is reached.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct NatsArgs {
    /// NATS servers.
    #[arg(
        long,
        env = "SLUICE_NATS",
        hide_env_values = true,
        value_delimiter = ',',
        default_value = "nats://127.0.0.1:4222",
        value_name = "URL"
    )]
    pub(crate) nats: Vec<String>,
    /// Credentials file (`.creds`); read again at each connect.
    #[arg(long, value_name = "FILE")]
    pub(crate) nats_credentials: Option<PathBuf>,
    /// PEM file of the authorities to trust.
    #[arg(long, value_name = "FILE")]
    pub(crate) nats_ca: Option<PathBuf>,
    /// PEM file of the client certificate.
    #[arg(long, requires = "nats_client_key", value_name = "FILE")]
    pub(crate) nats_client_cert: Option<PathBuf>,
    /// PEM file of the client certificate's key.
    #[arg(long, requires = "nats_client_cert", value_name = "FILE")]
    pub(crate) nats_client_key: Option<PathBuf>,
    /// JetStream domain.
    #[arg(long, value_name = "NAME")]
    pub(crate) jetstream_domain: Option<String>,
}

impl NatsArgs {
    /// The same, for a connection that the server lists as `name`.
    pub(crate) fn into_settings(self, name: &str) -> nats::Settings {
        let Self {
            nats: servers,
            nats_credentials: credentials,
            nats_ca: ca,
            nats_client_cert,
            nats_client_key,
            jetstream_domain: domain,
        } = self;
        let client_certificate = nats_client_cert.zip(nats_client_key);
        nats::Settings {
            servers,
            credentials,
            ca,
            client_certificate,
            domain,
            name: name.to_owned(),
        }
    }
}

/// Arguments of `run`.
#[derive(Debug, Clone, ClapArgs)]
pub struct RunArgs {
    /// The operator's connection to NATS.
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
    /// A namespace whose channels are reconciled; may be repeated. Default: all.
    #[arg(long = "namespace", value_name = "NAMESPACE")]
    pub(crate) namespaces: Vec<String>,
    /// Image of the data plane for channels that name none.
    #[arg(long, default_value = concat!("sluice-dataplane:", env!("CARGO_PKG_VERSION")), value_name = "IMAGE")]
    pub(crate) dataplane_image: String,
    /// NATS servers as pods reach them, without user and password. Default: those of --nats.
    #[arg(long, value_delimiter = ',', value_name = "URL")]
    pub(crate) dataplane_nats: Vec<String>,
    /// Secret in each channel's namespace with NATS credentials for the pods, key nats.creds.
    #[arg(long, value_name = "SECRET")]
    pub(crate) dataplane_credentials_secret: Option<String>,
    /// Secret in each channel's namespace with the authority of the NATS servers, key ca.crt.
    #[arg(long, value_name = "SECRET")]
    pub(crate) dataplane_ca_secret: Option<String>,
    /// Secret of type kubernetes.io/tls in each channel's namespace with a client certificate for
    /// the pods.
    #[arg(long, value_name = "SECRET")]
    pub(crate) dataplane_client_cert_secret: Option<String>,
    /// Address of the admin listener: probes, metrics; [::] takes IPv4 too.
    #[arg(long, default_value = "[::]:9091", value_name = "ADDR")]
    pub(crate) admin: SocketAddr,
    /// How often each channel is compared with cluster and NATS without being told of a change.
    #[arg(long, default_value = "30s", value_parser = resync, value_name = "DURATION")]
    pub(crate) resync: Duration,
    /// Channels worked on at a time, in all namespaces together. A quarter, one at least, is kept
    /// from any one namespace.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256), value_name = "N")]
    pub(crate) concurrency: u16,
    /// Channels whose pods may be replaced at a time when their specs do not ask for it, as after a
    /// new default image: a number, or a share of all channels (rounded up).
    #[arg(long, default_value = "10%", value_name = "N|N%")]
    pub(crate) max_rolling: MaxRolling,
    /// How long NATS may be out of reach before channels' conditions say so.
    #[arg(long, default_value = "30s", value_parser = text::duration, value_name = "DURATION")]
    pub(crate) nats_grace: Duration,
    /// How often a stream is compared with its mark, and how often at most one is written.
    #[arg(long, default_value = "10m", value_parser = text::duration, hide = true)]
    pub(crate) mark_interval: Duration,
    /// Name of this cluster in streams' metadata. Default: derived from the API server's
    /// certificate authority.
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// DNS domain of the cluster.
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    pub(crate) cluster_domain: String,
    /// Whether a channel may ask for any subject and stream (Open), or for those of its namespace
    /// and those that are granted to it (Isolated).
    #[arg(long, value_enum, ignore_case = true, default_value = "Open", value_name = "MODE")]
    pub(crate) tenancy: tenancy::Mode,
    #[command(flatten)]
    pub(crate) tenancy_bounds: TenancyArgs,
    /// Port at which pods are asked what they serve.
    #[arg(long, default_value_t = ADMIN_PORT, hide = true)]
    pub(crate) pod_admin_port: u16,
    /// Which of several operators acts.
    #[command(flatten)]
    pub(crate) election: ElectionArgs,
}

/// How it is found out which of several operators acts.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct ElectionArgs {
    /// Whether to act only while holding a Lease. Default: when the Lease's namespace is known, as
    /// it is in a pod of the chart.
    #[arg(long, action = ArgAction::Set, value_name = "BOOL")]
    pub(crate) leader_election: Option<bool>,
    /// Name of the Lease; operators of different namespaces need different ones.
    #[arg(long, default_value = "sluice-operator", value_name = "NAME")]
    pub(crate) lease_name: String,
    /// Namespace of the Lease.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    pub(crate) lease_namespace: Option<String>,
    /// How long others wait after the last renewal that they saw, before one takes over.
    #[arg(long, default_value = "15s", value_parser = text::duration, value_name = "DURATION")]
    pub(crate) lease_duration: Duration,
    /// How long this operator acts without a renewal; shorter than --lease-duration.
    #[arg(long, default_value = "10s", value_parser = text::duration, value_name = "DURATION")]
    pub(crate) renew_deadline: Duration,
    /// Pause between two attempts to take or renew the Lease; shorter than --renew-deadline.
    #[arg(long, default_value = "2s", value_parser = text::duration, value_name = "DURATION")]
    pub(crate) retry_period: Duration,
}

impl ElectionArgs {
    fn into_settings(self) -> Result<Option<leader::Settings>, String> {
        let Self {
            leader_election,
            lease_name: name,
            lease_namespace,
            lease_duration,
            renew_deadline,
            retry_period,
        } = self;
        let namespace = lease_namespace.filter(|namespace| !namespace.is_empty());
        let settings = match (leader_election, namespace) {
            (Some(false), _) | (None, None) => return Ok(None),
            (Some(true), None) => {
                return Err(
                    "--leader-election needs --lease-namespace, or POD_NAMESPACE".to_owned()
                );
            }
            (_, Some(namespace)) => {
                let identity = leader::identity(std::env::var("POD_NAME").ok().as_deref());
                leader::Settings {
                    name,
                    namespace,
                    identity,
                    lease_duration,
                    renew_deadline,
                    retry_period,
                }
            }
        };
        settings.validate()?;
        Ok(Some(settings))
    }
}

impl RunArgs {
    /// What the operator is started with.
    ///
    /// # Errors
    /// What of the arguments does not fit together.
    pub fn into_options(self) -> Result<Options, String> {
        let Self {
            nats,
            namespaces,
            dataplane_image,
            dataplane_nats,
            dataplane_credentials_secret,
            dataplane_ca_secret,
            dataplane_client_cert_secret,
            admin,
            resync,
            concurrency,
            max_rolling,
            nats_grace,
            mark_interval,
            cluster,
            cluster_domain,
            tenancy,
            tenancy_bounds,
            pod_admin_port,
            election,
        } = self;
        let election = election.into_settings()?;
        let tenancy = tenancy_bounds.into_settings(tenancy)?;
        let pods_nats = pods_servers(dataplane_nats, &nats.nats)?;
        let settings = Settings {
            image: dataplane_image,
            nats: pods_nats,
            credentials_secret: dataplane_credentials_secret,
            ca_secret: dataplane_ca_secret,
            client_certificate_secret: dataplane_client_cert_secret,
            jetstream_domain: nats.jetstream_domain.clone(),
            cluster_domain,
            operator_namespace: String::new(),
        };
        let nats = nats.into_settings("sluice-operator");
        Ok(Options {
            nats,
            namespaces,
            settings,
            cluster,
            admin,
            resync,
            concurrency,
            max_rolling,
            nats_grace,
            mark_interval,
            tenancy,
            pod_admin_port,
            election,
        })
    }
}

/// The servers as pods reach them: `given`, or the operator's. Pods never get the operator's
/// credentials, nor any that would stand in their Deployment.
fn pods_servers(given: Vec<String>, operators: &[String]) -> Result<PublicServers, String> {
    if given.is_empty() {
        PublicServers::new(operators.to_vec()).ok_or_else(|| {
            "--nats (SLUICE_NATS) holds a user, password or token, which pods would get and every reader of their Deployments would see. Name the servers without it in --dataplane-nats, and the Secret with the pods' own credentials in --dataplane-credentials-secret; or give the operator's credentials as a file, in --nats-credentials".to_owned()
        })
    } else {
        PublicServers::new(given).ok_or_else(|| {
            "--dataplane-nats holds a user, password or token, which would stand in the pods' Deployments. Leave it out, and name a Secret with credentials in --dataplane-credentials-secret".to_owned()
        })
    }
}

/// Arguments of `local`.
#[derive(Debug, Clone, ClapArgs)]
pub struct LocalArgs {
    /// Directory of manifests (*.yaml, *.yml); followed while this runs.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Address of the channels.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub(crate) listen: SocketAddr,
    /// Address of the data plane's admin listener.
    #[arg(long, default_value = "127.0.0.1:9090", value_name = "ADDR")]
    pub(crate) admin: SocketAddr,
    /// Directory for events and everything else that is kept.
    #[arg(long, default_value = "./.data", value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// A NATS server that runs already; without it one is started.
    #[arg(long, value_name = "URL", conflicts_with_all = ["nats_server", "nats_port"])]
    pub(crate) nats: Option<String>,
    /// The nats-server to start. Default: the one on PATH if it is 2.11 or newer, else
    /// .tools/bin/nats-server.
    #[arg(long, value_name = "PATH")]
    pub(crate) nats_server: Option<PathBuf>,
    /// Port for the nats-server that is started.
    #[arg(long, default_value_t = 4222, value_name = "PORT")]
    pub(crate) nats_port: u16,
    /// How often a stream is compared with its mark, and how often at most one is written.
    #[arg(long, default_value = "10m", value_parser = text::duration, hide = true)]
    pub(crate) mark_interval: Duration,
    /// The data plane to start. Default: sluice-dataplane beside this program, else on PATH.
    #[arg(long, value_name = "PATH")]
    pub(crate) dataplane: Option<PathBuf>,
}

/// Arguments of `check`.
#[derive(Debug, Clone, ClapArgs)]
pub struct CheckArgs {
    /// The operator's connection to NATS.
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
    /// A namespace whose channels the operator reconciles; may be repeated. Default: all.
    #[arg(long = "namespace", value_name = "NAMESPACE")]
    pub(crate) namespaces: Vec<String>,
    /// Address of the operator's admin listener, such as http://sluice.sluice-system.svc:9091.
    #[arg(long, value_name = "URL")]
    pub(crate) operator: Uri,
    /// How long to try again what fails.
    #[arg(long, default_value = "60s", value_parser = text::duration, value_name = "DURATION")]
    pub(crate) timeout: Duration,
}

/// Arguments of `permissions`.
#[derive(Debug, Clone, ClapArgs)]
#[command(group = ArgGroup::new("channels").required(true).args(["channel", "namespace", "filename"]))]
pub struct PermissionsArgs {
    /// A channel of the cluster.
    #[arg(value_name = "NAMESPACE/NAME")]
    pub(crate) channel: Option<String>,
    /// All channels of a namespace together, for a user that they share.
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// A manifest, of a channel that need not be there yet.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) filename: Option<PathBuf>,
    /// What the NATS user is for.
    #[arg(long, value_enum)]
    pub(crate) role: Role,
    /// JetStream domain.
    #[arg(long, value_name = "NAME")]
    pub(crate) jetstream_domain: Option<String>,
}

/// What a NATS user is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// The pods that serve the channel.
    Pod,
    /// A program that publishes its events over NATS.
    Publisher,
    /// The operator.
    Operator,
}

impl Role {
    /// As a text says it.
    pub(crate) const fn subject(self) -> &'static str {
        match self {
            Self::Pod => "pods",
            Self::Publisher => "publishers",
            Self::Operator => "operator",
        }
    }

    /// As the name of a user says it.
    pub(crate) const fn user(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Publisher => "publisher",
            Self::Operator => "operator",
        }
    }
}

/// Longest time without a look: a stream deleted behind the operator's back is made again within a
/// minute.
const LONGEST_RESYNC: Duration = Duration::from_secs(60);

fn resync(text: &str) -> Result<Duration, String> {
    let resync = text::duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_secs(1)..=LONGEST_RESYNC).contains(&resync) {
        Ok(resync)
    } else {
        Err("must be from 1s to 60s".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Result<Options, String> {
        let all = [&["sluice-operator", "run", "--leader-election=false"], arguments].concat();
        match Args::try_parse_from(all).unwrap().command {
            Command::Run(args) => args.into_options(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn permissions_are_of_one_channel_a_namespace_or_a_file() {
        let parse = |arguments: &[&str]| {
            let all = [&["sluice-operator", "permissions", "--role", "pod"], arguments].concat();
            Args::try_parse_from(all).is_ok()
        };
        for good in [&["a/b"][..], &["--namespace", "a"], &["-f", "x", "--jetstream-domain", "d"]] {
            assert!(parse(good), "{good:?}");
        }
        for bad in [&[][..], &["a/b", "-f", "x"], &["--namespace", "a", "a/b"]] {
            assert!(!parse(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_operators_credentials_never_go_to_pods() {
        let secret = "nats://op:s3cret@nats:4222";
        for arguments in [
            &["--nats", secret][..],
            &["--nats", "nats://s3cret@nats:4222"],
            &["--nats", "op:s3cret@nats"],
            &["--nats", "nats://a:4222,tls://op:s3cret@b:4222"],
            &["--nats", "nats://a:4222", "--dataplane-nats", secret],
            &["--nats", secret, "--dataplane-nats", secret],
        ] {
            let error = options(arguments).expect_err("refused");
            assert!(error.contains("--dataplane-nats"), "it says what to do: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
        let open = options(&["--nats", secret, "--dataplane-nats", "nats://nats:4222"]).unwrap();
        assert_eq!(open.settings.nats.list(), "nats://nats:4222");
        assert_eq!(
            options(&["--nats", "nats://a,nats://b"]).unwrap().settings.nats.list(),
            "nats://a,nats://b"
        );
        let shown = format!("{open:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
