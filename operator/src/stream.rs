//! JetStream streams as owned resources: the whole desired configuration is compared with a fresh
//! read, written, and read back, and only then is a stream said to be in sync. A stream that is not
//! ours is never written.

mod adoption;
mod claim;
mod config;
mod desired;
mod error;
mod fields;
mod history;
mod reserved;
mod restored;
mod server;
mod table;
mod text;

use std::time::Duration;

use sluice_channel::{Epoch, StreamName};

use crate::{crd::status::Mark, nats};
use claim::Claim;
use config::Want;
pub use config::{Difference, EXISTS, MISSING};
pub use desired::{Desired, Owner, TAKE_OVER, UID};
pub use error::{Class, Error};
use history::{History, Key};
pub(crate) use reserved::Reserved;
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
    /// The stream of this owner was handed over on purpose.
    TakenOver(Owner),
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

/// Every field of a stream's configuration that the operator knows, by JetStream's names.
pub fn known_fields() -> impl Iterator<Item = &'static str> {
    table::FIELDS.iter().map(|field| field.nats)
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

    /// Tells of a stream that was once seen to be this owner's, as the channel's status remembers
    /// it: after a restart a stream without marks of an owner is then known again, and one that has
    /// gone is known to have been there.
    pub fn remember(&self, name: &str, owner: &Owner, created: &str) {
        self.history.remember(&Key::new(name, owner), created, None);
    }

    /// The same, with one of the stream's events: where another one has its place, or the stream
    /// ends before it, the stream was set back while nothing looked.
    pub fn remember_mark(&self, name: &str, owner: &Owner, created: &str, mark: &Mark) {
        self.history.remember(&Key::new(name, owner), created, Some(mark));
    }

    /// The owner that the metadata of the stream `name` names, if there is such a stream and it is
    /// marked.
    ///
    /// # Errors
    /// [`Error`] when NATS cannot be asked.
    pub async fn owner(&self, name: &StreamName) -> Result<Option<Owner>, Error> {
        let observed = self.server.info(name.as_str()).await?;
        Ok(observed.and_then(|observed| fields::owner(&observed.config)))
    }

    /// Makes the stream `desired`, or tells what differs.
    ///
    /// # Errors
    /// [`Error`], each with its condition reason. Nothing is written to a stream that is not the
    /// owner's.
    pub async fn ensure(&self, desired: &Desired, mode: Mode) -> Result<Report, Error> {
        self.server.check_version().await?;
        let key = &Key::of(desired);
        let Some(mut observed) = self.server.info(desired.name.as_str()).await? else {
            return self.create(key, desired, mode).await;
        };
        let claim = self.claim(key, desired, &observed)?;
        let epoch = self.new_epoch(key, &observed).await?;
        let set_back = epoch.as_ref().filter(|epoch| epoch.set_back && claim == Claim::Ours);
        if let Some(epoch) = set_back.filter(|_| mode == Mode::Enforce) {
            // By itself and first: whatever becomes of the rest, it is told, and told once.
            observed = self.tell_set_back(key, observed, &epoch.mark).await?;
        }
        let set_back = set_back.is_some();
        let mark = epoch.as_ref().map(|epoch| epoch.mark.as_str());
        let want = self.want(key, desired, &claim, &observed, mark)?;
        let differences = config::diff(&want, &observed.config);
        if differences.is_empty() || mode == Mode::Observe {
            if mode == Mode::Enforce || !set_back {
                self.history.seen(key, &observed);
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
        self.check_cluster_size(desired, &observed).await?;
        let observed = match &claim {
            Claim::Ours => self.converge(&want, observed).await?,
            Claim::Unowned | Claim::TakeOver(_) => self.take(key, desired, want, observed).await?,
        };
        self.history.seen(key, &observed);
        let change = match claim {
            Claim::Unowned => Change::Adopted,
            Claim::TakeOver(from) => Change::TakenOver(from),
            Claim::Ours if set_back => Change::Restored,
            Claim::Ours => Change::Updated(differences),
        };
        Ok(Report { change, stream: Some(facts(desired, &observed)?), drift: Vec::new() })
    }

    /// What the observed stream should become, if it can.
    fn want(
        &self,
        key: &Key,
        desired: &Desired,
        claim: &Claim,
        observed: &Observed,
        mark: Option<&str>,
    ) -> Result<Want, Error> {
        let mut want = config::whole(desired, mark);
        if *claim != Claim::Ours || self.is_adopted(key, observed) {
            want = adoption::widened(want, desired, &observed.config);
        }
        match claim {
            Claim::Ours => {}
            Claim::Unowned => adoption::check(desired, &want, observed)?,
            Claim::TakeOver(_) => adoption::check_kept(desired, &want, observed)?,
        }
        config::immutable(&want, &observed.config)?;
        Ok(want)
    }

    /// Deletes the stream `name` if its metadata names `owner`, UID included.
    ///
    /// # Errors
    /// [`Error`] when NATS cannot be asked; a stream that is not there is no error.
    pub async fn delete(&self, name: &StreamName, owner: &Owner) -> Result<Deletion, Error> {
        let key = Key::new(name.as_str(), owner);
        let Some(observed) = self.server.info(name.as_str()).await? else {
            self.history.forget(&key);
            return Ok(Deletion::NotFound);
        };
        if !fields::owner(&observed.config).is_some_and(|found| found.same_object(owner)) {
            return Ok(Deletion::NotOurs);
        }
        self.server.delete(name.as_str()).await?;
        self.history.forget(&key);
        Ok(Deletion::Deleted)
    }

    /// Forgets what was seen of the streams of a channel that is gone.
    pub fn forget(&self, owner: &Owner) {
        self.history.forget_owner(owner);
    }

    /// Forgets what was seen of all streams: another operator may have acted since.
    pub fn forget_all(&self) {
        self.history.clear();
    }

    async fn create(&self, key: &Key, desired: &Desired, mode: Mode) -> Result<Report, Error> {
        let name = desired.name.as_str();
        if mode == Mode::Observe {
            let missing = Difference::new("spec.stream", EXISTS, MISSING);
            return Ok(Report { change: Change::None, stream: None, drift: vec![missing] });
        }
        self.server.check_cluster_size(desired.replicas, None).await?;
        let want = config::whole(desired, None);
        // Creating a stream that exists already with this very configuration succeeds, so two
        // operators that race both end here; the read-back below finds the owner.
        self.server.create(&want.fields).await?;
        let observed = self
            .server
            .info(name)
            .await?
            .ok_or_else(|| Error::NotApplied { fields: "spec.stream".to_owned() })?;
        self.claim(key, desired, &observed)?;
        let left = config::diff(&want, &observed.config);
        if !left.is_empty() {
            return Err(not_applied(&left));
        }
        let change = if self.history.knows(key) { Change::Recreated } else { Change::Created };
        self.history.seen(key, &observed);
        Ok(Report { change, stream: Some(facts(desired, &observed)?), drift: Vec::new() })
    }

    async fn check_cluster_size(
        &self,
        desired: &Desired,
        observed: &Observed,
    ) -> Result<(), Error> {
        let current = fields::replicas(&observed.config);
        if desired.replicas <= current {
            Ok(())
        } else {
            self.server.check_cluster_size(desired.replicas, Some(observed)).await
        }
    }

    /// Writes `want` over `observed`, one class of change per update: nats-server refuses to move
    /// and to scale a stream at once.
    async fn converge(&self, want: &Want, mut observed: Observed) -> Result<Observed, Error> {
        for class in [table::Class::Settings, table::Class::Replicas, table::Class::Placement] {
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
