//! JetStream streams as owned resources: the whole desired configuration is compared with a fresh
//! read, written, and read back, and only then is a stream said to be in sync. A stream that is not
//! ours is never written.

mod adoption;
mod config;
mod desired;
mod error;
mod fields;
mod history;
mod restored;
mod server;

use std::time::Duration;

use serde_json::{Map, Value};
use sluice_channel::{Epoch, StreamName};

use crate::{
    crd::{status::Mark, stream::Adoption},
    nats,
};
pub use config::{Difference, EXISTS, MISSING};
pub use desired::{Desired, Owner, UID};
pub use error::Error;
use history::History;
pub use restored::MARK_INTERVAL;
use server::{Observed, Reached, Server};

/// What [`Streams::ensure`] may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Make the stream as desired.
    Enforce,
    /// Only tell what differs.
    Observe,
}

/// What [`Streams::ensure`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing: the stream was as desired, or only observed.
    None,
    /// The stream was made.
    Created,
    /// A stream that was known to exist had gone and was made again: its events are lost.
    Recreated,
    /// A stream without an owner was taken over.
    Adopted,
    /// These fields were changed.
    Updated(Vec<Difference>),
    /// The stream was set back to an older state (restored from a copy, or writes were lost): a new
    /// epoch tells subscribers so.
    Restored,
}

/// A stream as it was read last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Name.
    pub name: String,
    /// When it was created, as the server says.
    pub created: String,
    /// Head of every cursor.
    pub epoch: Epoch,
    /// Whether its metadata names the channel.
    pub owned: bool,
    /// Last sequence.
    pub last_sequence: u64,
    /// How often it was given a new epoch.
    pub epochs: i64,
}

/// What was found and done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What was done.
    pub change: Change,
    /// The stream, if there is one.
    pub stream: Option<Facts>,
    /// What differs still; empty means in sync.
    pub drift: Vec<Difference>,
}

/// What [`Streams::delete`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// The stream is gone, by us.
    Deleted,
    /// There was none.
    NotFound,
    /// The stream is there and belongs to another; it was left alone.
    NotOurs,
}

/// The streams of one JetStream account.
pub struct Streams {
    server: Server,
    history: History,
    mark_interval: Duration,
}

impl Streams {
    /// Streams reached through `context`; `servers` is what messages call them.
    #[must_use]
    pub fn new(context: async_nats::jetstream::Context, servers: &str) -> Self {
        Self::of(Server::new(Reached::Directly(context), servers))
    }

    /// Streams reached over `connection`, whose own troubles make the errors clearer.
    #[must_use]
    pub(crate) fn over(connection: &nats::Connection) -> Self {
        Self::of(Server::new(Reached::Over(connection.clone()), connection.servers()))
    }

    fn of(server: Server) -> Self {
        Self { server, history: History::default(), mark_interval: MARK_INTERVAL }
    }

    /// The same, comparing streams with their marks this often.
    #[must_use]
    pub(crate) fn marked_every(self, mark_interval: Duration) -> Self {
        Self { mark_interval, ..self }
    }

    /// What stands against events of `max_message_size` bytes, where nats-server takes none so
    /// large.
    pub(crate) fn too_large(&self, max_message_size: u64) -> Option<String> {
        let max = self.server.max_payload().filter(|max| *max < max_message_size)?;
        Some(format!(
            "nats-server takes no message above {max} bytes (max_payload), and spec.stream.maxMessageSize is {max_message_size}: raise the one or lower the other"
        ))
    }

    /// How often a stream is compared with its mark, and how often at most one is written.
    pub(crate) const fn mark_interval(&self) -> Duration {
        self.mark_interval
    }

    /// Version of the server that answers, once it has shown that it can hold streams for the
    /// operator.
    ///
    /// # Errors
    /// [`Error`] when it cannot be reached, refuses the operator, is too old or has no JetStream.
    pub(crate) async fn look(&self) -> Result<String, Error> {
        self.server.check_version().await?;
        self.server.account().await?;
        Ok(self.server.version())
    }

    /// Tells of a stream that was once seen to be the channel's own, as its status remembers it:
    /// after a restart a stream without marks of an owner is then known again, and one that has
    /// gone is known to have been there.
    pub fn remember(&self, name: &str, created: &str) {
        self.history.remember(name, created, None);
    }

    /// The same, with one of the stream's events: where another one has its place, or the stream
    /// ends before it, the stream was set back while nothing looked.
    pub fn remember_mark(&self, name: &str, created: &str, mark: &Mark) {
        self.history.remember(name, created, Some(mark));
    }

    /// Makes the stream `desired`, or tells what differs.
    ///
    /// # Errors
    /// [`Error`], each with its condition reason. Nothing is written to a stream that is not the
    /// owner's.
    pub async fn ensure(&self, desired: &Desired, mode: Mode) -> Result<Report, Error> {
        self.server.check_version().await?;
        let name = desired.name.as_str();
        let Some(mut observed) = self.server.info(name).await? else {
            return self.create(desired, mode).await;
        };
        let claim = self.claim(desired, &observed)?;
        let epoch = self.new_epoch(name, &observed).await?;
        let set_back = epoch.as_ref().filter(|epoch| epoch.set_back && claim == Claim::Ours);
        if let Some(epoch) = set_back.filter(|_| mode == Mode::Enforce) {
            // By itself and first: whatever becomes of the rest, it is told, and told once.
            observed = self.tell_set_back(observed, &epoch.mark).await?;
        }
        let set_back = set_back.is_some();
        let mut want = config::whole(desired, epoch.as_ref().map(|epoch| epoch.mark.as_str()));
        if claim == Claim::Unowned || self.is_adopted(name, &observed) {
            want = adoption::widened(want, desired, &observed.config);
        }
        if claim == Claim::Unowned {
            adoption::check(desired, &want, &observed)?;
        }
        config::immutable(&want, &observed.config)?;
        let differences = config::diff(&want, &observed.config);
        if differences.is_empty() || mode == Mode::Observe {
            if mode == Mode::Enforce || !set_back {
                self.history.seen(name, &observed);
            }
            return Ok(Report {
                change: if mode == Mode::Enforce && set_back {
                    Change::Restored
                } else {
                    Change::None
                },
                stream: Some(facts(desired, &observed)?),
                drift: differences,
            });
        }
        self.check_cluster_size(desired, &observed)?;
        let before = (claim == Claim::Unowned).then(|| observed.config.clone());
        let observed = match (self.converge(&want, observed).await, before) {
            (Err(error), Some(before)) => return Err(self.give_back(desired, before, error).await),
            (converged, _) => converged?,
        };
        self.history.seen(name, &observed);
        let change = match claim {
            Claim::Unowned => Change::Adopted,
            Claim::Ours if set_back => Change::Restored,
            Claim::Ours => Change::Updated(differences),
        };
        Ok(Report { change, stream: Some(facts(desired, &observed)?), drift: Vec::new() })
    }

    /// Deletes the stream `name` if its metadata names `owner`, UID included.
    ///
    /// # Errors
    /// [`Error`] when NATS cannot be asked; a stream that is not there is no error.
    pub async fn delete(&self, name: &StreamName, owner: &Owner) -> Result<Deletion, Error> {
        let Some(observed) = self.server.info(name.as_str()).await? else {
            self.history.forget(name.as_str());
            return Ok(Deletion::NotFound);
        };
        if !fields::owner(&observed.config).is_some_and(|found| found.same_object(owner)) {
            return Ok(Deletion::NotOurs);
        }
        self.server.delete(name.as_str()).await?;
        self.history.forget(name.as_str());
        Ok(Deletion::Deleted)
    }

    /// Forgets what was seen of a stream that is no longer managed.
    pub(crate) fn forget(&self, name: &StreamName) {
        self.history.forget(name.as_str());
    }

    /// Forgets what was seen of all streams: another operator may have acted since.
    pub fn forget_all(&self) {
        self.history.clear();
    }

    async fn create(&self, desired: &Desired, mode: Mode) -> Result<Report, Error> {
        let name = desired.name.as_str();
        if mode == Mode::Observe {
            let missing = Difference::new("spec.stream", EXISTS, MISSING);
            return Ok(Report { change: Change::None, stream: None, drift: vec![missing] });
        }
        self.server.check_cluster_size(desired.replicas, None)?;
        let want = config::whole(desired, None);
        // Creating a stream that exists already with this very configuration succeeds, so two
        // operators that race both end here; the read-back below finds the owner.
        self.server.create(&want).await?;
        let observed = self
            .server
            .info(name)
            .await?
            .ok_or_else(|| Error::NotApplied { fields: "spec.stream".to_owned() })?;
        self.claim(desired, &observed)?;
        let left = config::diff(&want, &observed.config);
        if !left.is_empty() {
            return Err(not_applied(&left));
        }
        let change = if self.history.knows(name) { Change::Recreated } else { Change::Created };
        self.history.seen(name, &observed);
        Ok(Report { change, stream: Some(facts(desired, &observed)?), drift: Vec::new() })
    }

    /// The claim on the observed stream. Anything but an own stream, or one without an owner that
    /// may be adopted, is an error.
    fn claim(&self, desired: &Desired, observed: &Observed) -> Result<Claim, Error> {
        let name = desired.name.to_string();
        match fields::owner(&observed.config) {
            Some(owner)
                if owner.same_object(&desired.owner) || owner.same_channel(&desired.owner) =>
            {
                Ok(Claim::Ours)
            }
            Some(owner) => Err(Error::OwnedByOther { stream: name, owner: owner.to_string() }),
            // The marks were wiped, but no other stream was created at that very nanosecond.
            None if self.history.is_same(&name, observed) => Ok(Claim::Ours),
            None if fields::partly_owned(&observed.config) => Err(Error::OwnedByOther {
                stream: name,
                owner: "another owner, of which its metadata has an incomplete mark".to_owned(),
            }),
            None if desired.adoption == Adoption::Never => Err(Error::Unowned { stream: name }),
            None => Ok(Claim::Unowned),
        }
    }

    /// Whether the stream was once taken over. Where its marks were wiped and it is not remembered,
    /// it may have been.
    fn is_adopted(&self, name: &str, observed: &Observed) -> bool {
        let wiped = fields::owner(&observed.config).is_none();
        fields::adopted(&observed.config) || wiped && self.history.may_be_adopted(name)
    }

    /// Puts a stream that could not be taken over back as it was: it is not the channel's, and the
    /// next attempt would end the same. What passes soon is tried again instead.
    async fn give_back(
        &self,
        desired: &Desired,
        mut before: Map<String, Value>,
        error: Error,
    ) -> Error {
        let passes = error.is_transient() && !matches!(error, Error::NotApplied { .. });
        if let Some(metadata) = before.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|key, _| !key.starts_with("_nats."));
        }
        if passes || self.server.update(&before).await.is_err() {
            return error;
        }
        match error {
            Error::Api { .. } | Error::NotApplied { .. } | Error::ImmutableField { .. } => {
                Error::Incompatible { stream: desired.name.to_string(), why: error.to_string() }
            }
            other => other,
        }
    }

    fn check_cluster_size(&self, desired: &Desired, observed: &Observed) -> Result<(), Error> {
        let current = fields::replicas(&observed.config);
        if desired.replicas <= current {
            Ok(())
        } else {
            self.server.check_cluster_size(desired.replicas, Some(observed))
        }
    }

    /// Writes `want` over `observed`, one class of change per update: nats-server refuses to move
    /// and to scale a stream at once.
    async fn converge(
        &self,
        want: &Map<String, Value>,
        mut observed: Observed,
    ) -> Result<Observed, Error> {
        for class in [config::Class::Settings, config::Class::Replicas, config::Class::Placement] {
            if let Some(update) = config::update(want, &observed.config, class) {
                self.server.update(&update).await?;
                let name = observed.name.clone();
                observed = self
                    .server
                    .info(&name)
                    .await?
                    .ok_or_else(|| Error::NotApplied { fields: "spec.stream".to_owned() })?;
            }
        }
        let left = config::diff(want, &observed.config);
        if left.is_empty() { Ok(observed) } else { Err(not_applied(&left)) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    Ours,
    Unowned,
}

fn facts(desired: &Desired, observed: &Observed) -> Result<Facts, Error> {
    Ok(Facts {
        name: observed.name.clone(),
        created: observed.created.clone(),
        epoch: Epoch::of_stream(observed.created_nanos()?, fields::epoch_mark(&observed.config)),
        owned: fields::owner(&observed.config).as_ref() == Some(&desired.owner),
        last_sequence: observed.last_sequence,
        epochs: fields::epochs(&observed.config),
    })
}

fn not_applied(left: &[Difference]) -> Error {
    let fields: Vec<_> = left
        .iter()
        .map(|d| format!("{} ({} instead of {})", d.field, d.observed, d.desired))
        .collect();
    Error::NotApplied { fields: fields.join(", ") }
}
