//! `sluice-operator tenancy check`: which channels of a cluster would not fit where namespaces are
//! kept apart, for before that is so.

use std::{collections::BTreeMap, io::Write};

use kube::{Api, Client, Config, ResourceExt, api::ListParams, core::DeserializeGuard};

use super::{Ask, PREFIX, Refusal, Rights, Settings, namespaces::Namespaces, quota};
use crate::{crd::SseChannel, kube_error};

/// Channels that are read at a time.
const PAGE: u32 = 500;

/// Why there is no clean answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cluster is configured.
    #[error("no Kubernetes cluster is configured: {0}")]
    Kubeconfig(#[from] kube::config::InferConfigError),
    /// The API server did not answer, or refused.
    #[error("{}", kube_error::text(.0))]
    Api(#[from] kube::Error),
    /// Channels do not fit; each has been told on a line of its own.
    #[error("{count} of {all} channels would not fit")]
    Unfit {
        /// How many.
        count: usize,
        /// Of how many.
        all: usize,
    },
    /// The result could not be written.
    #[error("cannot write the result: {0}")]
    Output(#[from] std::io::Error),
}

/// Writes a line to `output` for each channel that would not fit, with the annotation to set.
///
/// # Errors
/// [`Error::Unfit`] when there is one.
pub async fn run(
    settings: Settings,
    namespaces: &[String],
    mut output: impl Write,
) -> Result<(), Error> {
    let client = Client::try_from(Config::infer().await?)?;
    let mut channels: BTreeMap<String, Vec<SseChannel>> = BTreeMap::new();
    let mut unreadable = Vec::new();
    for api in scopes(&client, namespaces) {
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = api.list(&page).await?;
            for channel in list.items {
                let namespace = channel.namespace().unwrap_or_default();
                match channel.0 {
                    Ok(channel) => channels.entry(namespace).or_default().push(channel),
                    Err(invalid) => unreadable.push((invalid.metadata.name, namespace)),
                }
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => break,
            }
        }
    }
    let known = Namespaces::new(Settings { mode: super::Mode::Isolated, ..settings }, client);
    let all = unreadable.len() + channels.values().map(Vec::len).sum::<usize>();
    let mut count = unreadable.len();
    for (name, namespace) in unreadable {
        writeln!(output, "{namespace}/{}: its spec cannot be read", name.unwrap_or_default())?;
    }
    for (namespace, channels) in channels {
        let Some(rights) = known.rights(&namespace).await? else { continue };
        for line in unfit(&rights, &channels) {
            writeln!(output, "{namespace}/{line}")?;
            count += 1;
        }
    }
    if count > 0 {
        return Err(Error::Unfit { count, all });
    }
    writeln!(output, "all {all} channels fit")?;
    Ok(())
}

fn scopes(client: &Client, namespaces: &[String]) -> Vec<Api<DeserializeGuard<SseChannel>>> {
    if namespaces.is_empty() {
        return vec![Api::all(client.clone())];
    }
    namespaces.iter().map(|namespace| Api::namespaced(client.clone(), namespace)).collect()
}

/// A line for each of the channels of a namespace that does not fit.
fn unfit(rights: &Rights, channels: &[SseChannel]) -> Vec<String> {
    let asks: Vec<_> = channels.iter().map(|channel| (channel, Ask::of(channel))).collect();
    let asking: Vec<_> = asks
        .iter()
        .filter_map(|(channel, ask)| quota::Asking::of(channel, ask.as_ref()?))
        .collect();
    let sum = asking.iter().fold(0_u64, |sum, one| sum.saturating_add(one.wants));
    let mut lines = Vec::new();
    for (channel, ask) in &asks {
        let name = channel.name_any();
        let Some(ask) = ask else {
            lines.push(format!("{name}: its spec is not valid"));
            continue;
        };
        let mut refusals = rights.refusals(ask);
        let quota = rights.quota();
        if let Err(used) = quota::fits(quota.bytes, &BTreeMap::new(), asking.clone(), &name) {
            refusals.push(quota::refusal(used, ask.reserves(), quota, Some(sum)));
        }
        if !refusals.is_empty() {
            lines.push(format!("{name}: {}", line(rights, &refusals)));
        }
    }
    lines
}

fn line(rights: &Rights, refusals: &[Refusal]) -> String {
    let told: Vec<_> = refusals.iter().map(|refusal| refusal.message.clone()).collect();
    let set: Vec<_> = refusals
        .iter()
        .filter_map(|refusal| refusal.annotation.as_ref())
        .map(|(key, value)| format!("{PREFIX}{key}='{}'", rights.with(key, value)))
        .collect();
    match set.as_slice() {
        [] => told.join("; "),
        set => format!(
            "{}: kubectl annotate --overwrite namespace {} {}",
            told.join("; "),
            rights.namespace(),
            set.join(" ")
        ),
    }
}
