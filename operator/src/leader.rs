//! Leader election: of several operators one acts, the others follow the channels and wait.
//!
//! The lock is a `Lease` ([`election`] has its rules). Its holder acts until `renew_deadline`
//! after its last renewal was sent, and others take over `lease_duration` after they saw it: what
//! lies between is the time in which a request under way comes to its end. A lease can still not
//! fence the stores behind it (a packet may be late), so every write is one that may be repeated,
//! and every pass reads afresh.
//!
//! An operator that loses the lease does not end but waits again: its passes are futures, which can
//! be dropped, and an API server that is away for a while must not send every operator into
//! Kubernetes' crash back-off.

mod election;
mod lead;
mod settings;

use std::sync::Arc;

use k8s_openapi::{api::coordination::v1::Lease, jiff::Timestamp};
use kube::{
    Api, Client, Resource,
    api::PostParams,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use rand::Rng;
use tokio::{
    sync::watch,
    time::{Duration, Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{kube_error, metrics::Metrics};
use election::Election;
pub(crate) use lead::{Lead, Role};
pub(crate) use settings::Settings;

/// How long letting go of the lease may take at the end; without it others wait for the lease's
/// duration.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);
/// How much longer than `retry_period` a waiting operator may pause, so that several do not ask in
/// step.
const JITTER: f64 = 0.2;

/// An identity that no other operator has: the pod's name, and something random, since a pod's
/// containers restart.
#[must_use]
pub(crate) fn identity(pod: Option<&str>) -> String {
    format!("{}_{:08x}", pod.unwrap_or("sluice-operator"), rand::rng().random::<u32>())
}

/// Takes part in the election.
pub(crate) struct Candidate {
    election: Election,
    api: Api<Lease>,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    role: watch::Sender<Role>,
    terms: u64,
    trouble: Option<String>,
}

/// What came of an attempt.
type Attempt = Result<(), String>;

impl Candidate {
    /// One that waits. `client` should be used for nothing else: a renewal must not queue behind
    /// passes.
    #[must_use]
    pub(crate) fn new(
        settings: Settings,
        client: &Client,
        reporter: Reporter,
        metrics: Arc<Metrics>,
    ) -> (Self, Lead) {
        let (role, lead) = watch::channel(Role::Standby { holder: None });
        let candidate = Self {
            api: Api::namespaced(client.clone(), &settings.namespace),
            recorder: Recorder::new(client.clone(), reporter),
            election: Election::new(settings),
            metrics,
            role,
            terms: 0,
            trouble: None,
        };
        (candidate, Lead::following(lead))
    }

    /// Holds the lease, or waits for it, until `stop`; then lets go of it. `prepare` is called each
    /// time before this operator begins to act: what it remembers from before may not be true any
    /// more.
    pub(crate) async fn run(mut self, stop: CancellationToken, prepare: impl Fn()) {
        loop {
            let attempt = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                attempt = self.attempt() => attempt,
            };
            self.note(attempt);
            let began = self.assume_role(&prepare);
            let pause = sleep_until(self.next_attempt());
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = async { if began { self.tell().await } pause.await } => {}
            }
            // The deadline may have passed meanwhile.
            self.assume_role(&prepare);
        }
        self.release().await;
    }

    /// One attempt to hold the lease.
    async fn attempt(&mut self) -> Attempt {
        let leads = self.election.leads(Instant::now());
        if !leads {
            // Said before the lease can be won anew: what was under way before a break does not go
            // on after it.
            self.wait_for_holder();
            self.read().await?;
        }
        let Some(claim) = self.election.claim(Instant::now(), Timestamp::now()) else {
            return Ok(());
        };
        let asked = Instant::now();
        match self.write(&claim).await {
            Ok(lease) => self.election.won(lease, asked),
            // Another client has written it. If that was no claim but, say, a label, ours is next.
            Err(Failure::Conflict) if leads => {
                self.read().await?;
                let asked = Instant::now();
                if let Some(claim) = self
                    .election
                    .claim(asked, Timestamp::now())
                    .filter(|_| self.election.leads(asked))
                {
                    let lease = self.write(&claim).await.map_err(Failure::text)?;
                    self.election.won(lease, asked);
                }
            }
            // The next attempt reads which one was faster.
            Err(Failure::Conflict) => {}
            Err(Failure::Other(text)) => return Err(text),
        }
        Ok(())
    }

    async fn read(&mut self) -> Attempt {
        match timeout_at(self.limit(), self.api.get_opt(&self.election.settings().name)).await {
            Ok(Ok(Some(lease))) => self.election.saw(lease, Instant::now()),
            Ok(Ok(None)) => self.election.missing(),
            Ok(Err(error)) => return Err(kube_error::text(&error)),
            Err(_) => return Err(self.no_answer()),
        }
        Ok(())
    }

    async fn write(&self, lease: &Lease) -> Result<Lease, Failure> {
        let name = &self.election.settings().name;
        let parameters = PostParams::default();
        let create = lease.metadata.resource_version.is_none();
        self.metrics.api_write("Lease", if create { "create" } else { "update" });
        let request = async {
            if create {
                self.api.create(&parameters, lease).await
            } else {
                self.api.replace(name, &parameters, lease).await
            }
        };
        match timeout_at(self.limit(), request).await {
            Ok(Ok(lease)) => Ok(lease),
            // 404: it was deleted, which the next read shows.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                Err(Failure::Conflict)
            }
            Ok(Err(error)) => Err(Failure::Other(kube_error::text(&error))),
            Err(_) => Err(Failure::Other(self.no_answer())),
        }
    }

    fn no_answer(&self) -> String {
        format!(
            "no answer from the API server within {:?}",
            self.election.settings().request_limit()
        )
    }

    /// When waiting for an answer ends; while we lead no later than that.
    fn limit(&self) -> Instant {
        let limit = Instant::now() + self.election.settings().request_limit();
        self.election.leads_until().map_or(limit, |until| until.min(limit))
    }

    fn next_attempt(&self) -> Instant {
        let pause = self.election.settings().retry_period;
        match self.election.leads_until() {
            Some(until) => until.min(Instant::now() + pause),
            None => Instant::now() + pause.mul_f64(1.0 + rand::rng().random_range(0.0..JITTER)),
        }
    }

    /// Attempts repeat for ever; one line says it all.
    fn note(&mut self, attempt: Attempt) {
        let trouble = attempt.err();
        if trouble != self.trouble {
            let Settings { name, namespace, .. } = self.election.settings();
            match &trouble {
                Some(error) => {
                    tracing::warn!(%error, "cannot hold or read the lease {namespace}/{name}; trying again");
                }
                None => {
                    tracing::info!("the lease {namespace}/{name} can be read and written again");
                }
            }
            self.trouble = trouble;
        }
    }

    /// Makes known what we are. Answers whether we have just begun to act.
    fn assume_role(&mut self, prepare: &impl Fn()) -> bool {
        let leads = self.election.leads(Instant::now());
        let led = matches!(*self.role.borrow(), Role::Leader { .. });
        let began = leads && !led;
        if began {
            self.terms += 1;
            prepare();
        }
        let identity = self.election.settings().identity.clone();
        match self.election.leads_until() {
            Some(until) => self.set_role(Role::Leader { identity, term: self.terms, until }),
            None => self.wait_for_holder(),
        }
        began
    }

    fn wait_for_holder(&self) {
        let identity = self.election.settings().identity.as_str();
        self.set_role(Role::Standby {
            holder: self.election.holder().filter(|holder| *holder != identity).map(str::to_owned),
        });
    }

    fn set_role(&self, role: Role) {
        let before = self.role.borrow().clone();
        match (&before, &role) {
            (Role::Standby { .. }, Role::Leader { identity, .. }) => {
                tracing::info!(%identity, "became leader; reconciling channels");
            }
            (Role::Leader { .. }, Role::Standby { holder }) => {
                tracing::warn!(
                    holder = holder.as_deref().unwrap_or("none"),
                    "no longer the leader; passes under way are dropped"
                );
            }
            (Role::Standby { holder: old }, Role::Standby { holder }) if old != holder => {
                tracing::info!(
                    holder = holder.as_deref().unwrap_or("none"),
                    "standby; another operator is the leader"
                );
            }
            _ => {}
        }
        self.metrics.leader(matches!(role, Role::Leader { .. }));
        self.role.send_replace(role);
    }

    /// An Event on the Lease. Best effort, and never at the price of a late renewal.
    async fn tell(&self) {
        let Settings { name, namespace, identity, retry_period, .. } = self.election.settings();
        let note = Some(format!("{identity} became leader"));
        let event = Event {
            type_: EventType::Normal,
            reason: "LeaderElection".to_owned(),
            note,
            action: "Lead".to_owned(),
            secondary: None,
        };
        let mut reference = Lease::default().object_ref(&());
        (reference.name, reference.namespace) = (Some(name.clone()), Some(namespace.clone()));
        self.metrics.api_write("Event", "create");
        match tokio::time::timeout(*retry_period, self.recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = kube_error::text(&error);
                tracing::warn!(error, "cannot record the event that {identity} became leader");
            }
            Err(_) => tracing::warn!("no time to record the event that {identity} became leader"),
        }
    }

    /// Stops to act, and lets others begin at once.
    async fn release(&mut self) {
        self.wait_for_holder();
        let release = async {
            loop {
                // An attempt may have been cut off after it was sent, so what was seen last may not
                // be the last, and what is read now neither.
                self.read().await?;
                let Some(free) = self.election.release(Timestamp::now()) else { return Ok(false) };
                match self.write(&free).await {
                    Ok(_) => return Ok(true),
                    Err(Failure::Conflict) => {}
                    Err(error) => return Err(error.text()),
                }
            }
        };
        match tokio::time::timeout(RELEASE_LIMIT, release).await {
            Ok(Ok(true)) => tracing::info!("the lease is released"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the lease could not be released; others wait for its end");
            }
            Err(_) => tracing::warn!(
                "the lease could not be released within {RELEASE_LIMIT:?}; others wait for its end"
            ),
        }
    }
}

enum Failure {
    /// The lease is not as it was read.
    Conflict,
    Other(String),
}

impl Failure {
    fn text(self) -> String {
        match self {
            Self::Conflict => "another writer has changed the lease".to_owned(),
            Self::Other(text) => text,
        }
    }
}

#[cfg(test)]
mod tests;
