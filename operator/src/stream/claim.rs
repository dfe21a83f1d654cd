//! Whose a stream is, and how it becomes a channel's that was not.

use super::{
    Class, Error, Streams, config, config::Want, desired::Desired, fields, history::Key,
    server::Observed,
};
use crate::crd::stream::Adoption;

/// What entitles a channel to a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    /// It has the channel's mark, or had it when it was last seen.
    Ours,
    /// It has no mark, and may be adopted.
    Unowned,
    /// It has this owner's mark, which is handed over on purpose.
    TakeOver(super::Owner),
}

impl Streams {
    /// The claim on the observed stream, or what stands against one. A name entitles to nothing:
    /// marks change hands by [`Desired::take_over`] alone, and what another channel has seen of a
    /// stream of this name does not count.
    pub(super) fn claim(
        &self,
        key: &Key,
        desired: &Desired,
        observed: &Observed,
    ) -> Result<Claim, Error> {
        let stream = desired.name.to_string();
        match fields::owner(&observed.config) {
            Some(owner)
                if owner.same_object(&desired.owner) || owner.same_channel(&desired.owner) =>
            {
                Ok(Claim::Ours)
            }
            Some(owner) if desired.take_over.as_ref() == Some(&owner.uid) => {
                Ok(Claim::TakeOver(owner))
            }
            Some(owner) => {
                // Whatever it was before: without marks it would not be this channel's again.
                self.history.forget(key);
                let owner = format!("{owner} (UID {})", owner.uid);
                Err(Error::OwnedByOther { stream, owner })
            }
            // The marks were wiped, but no other stream was created at that very nanosecond.
            None if self.history.is_same(key, observed) => Ok(Claim::Ours),
            None if fields::partly_owned(&observed.config) => Err(Error::OwnedByOther {
                stream,
                owner: "another owner, of which its metadata has an incomplete mark".to_owned(),
            }),
            None if desired.adoption == Adoption::Never => Err(Error::Unowned { stream }),
            None => Ok(Claim::Unowned),
        }
    }

    /// Whether the stream was once taken over. Where its marks were wiped and it is not remembered,
    /// it may have been.
    pub(super) fn is_adopted(&self, key: &Key, observed: &Observed) -> bool {
        let wiped = fields::owner(&observed.config).is_none();
        fields::adopted(&observed.config) || wiped && self.history.may_be_adopted(key)
    }

    /// Makes a stream `want` that was not the channel's, or leaves it as it was. What has failed
    /// once is not written again before stream or channel differ.
    pub(super) async fn take(
        &self,
        key: &Key,
        desired: &Desired,
        want: Want,
        observed: Observed,
    ) -> Result<Observed, Error> {
        if let Some(error) = self.history.refused(key, &observed, &want) {
            return Err(error);
        }
        match self.converge(&want, observed.clone()).await {
            Ok(taken) => Ok(taken),
            Err(error) => Err(self.give_back(key, desired, want, observed, error).await),
        }
    }

    /// Puts a stream that could not be taken over back as it was, where the server still answers.
    async fn give_back(
        &self,
        key: &Key,
        desired: &Desired,
        want: Want,
        before: Observed,
        error: Error,
    ) -> Error {
        if !error.is_an_answer() {
            return error;
        }
        let name = before.name.as_str();
        // What was refused as a whole has changed nothing.
        let Ok(Some(mut after)) = self.server.info(name).await else { return error };
        let written = after.config != before.config;
        if written {
            let restored = config::without_servers_own(before.config);
            if self.server.update(&restored).await.is_err() {
                return error;
            }
            let Ok(Some(restored)) = self.server.info(name).await else { return error };
            after = restored;
        }
        let error = match error {
            Error::Api { class: Class::Fix, .. }
            | Error::NotApplied { .. }
            | Error::ImmutableField { .. } => {
                Error::Incompatible { stream: desired.name.to_string(), why: error.to_string() }
            }
            other => other,
        };
        if written || matches!(error, Error::Incompatible { .. }) {
            self.history.refuse(key, after, want, error.clone());
        }
        error
    }
}
