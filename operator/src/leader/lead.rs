//! What every pass is held by: it goes on for as long as this operator leads, and not a step
//! longer.

use std::{future::poll_fn, pin::pin, task::Poll};

use futures::{Stream, stream};
use tokio::{sync::watch, time::Instant};

/// Whether this operator acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// There is no election: it acts.
    Alone,
    /// It follows and waits.
    Standby {
        /// The operator that acts, as far as is known.
        holder: Option<String>,
    },
    /// It acts.
    Leader {
        /// What the lease calls it.
        identity: String,
        /// Counts the times that it became leader, from 1.
        term: u64,
        /// Until when, unless the lease is renewed before.
        until: Instant,
    },
}

impl Role {
    /// The term in which it acts at `now`; 0 without an election.
    pub(super) fn term(&self, now: Instant) -> Option<u64> {
        match self {
            Self::Alone => Some(0),
            Self::Leader { term, until, .. } if now < *until => Some(*term),
            Self::Leader { .. } | Self::Standby { .. } => None,
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Alone => write!(f, "role: leader\nholder: none, there is no election"),
            Self::Standby { holder } => {
                write!(f, "role: standby\nholder: {}", holder.as_deref().unwrap_or("none"))
            }
            Self::Leader { identity, .. } => write!(f, "role: leader\nholder: {identity}"),
        }
    }
}

/// What everything that writes is held by.
#[derive(Debug, Clone)]
pub(crate) struct Lead {
    pub(super) role: watch::Receiver<Role>,
}

impl Lead {
    /// Without an election: always ours.
    #[must_use]
    pub(crate) fn alone() -> Self {
        Self { role: watch::channel(Role::Alone).1 }
    }

    /// Ours while `role` says so.
    pub(crate) fn following(role: watch::Receiver<Role>) -> Self {
        Self { role }
    }

    /// What this operator is now.
    #[must_use]
    pub(crate) fn role(&self) -> Role {
        let role = self.role.borrow().clone();
        match role {
            Role::Leader { .. } if role.term(Instant::now()).is_none() => {
                Role::Standby { holder: None }
            }
            role => role,
        }
    }

    /// Does `work` for as long as this operator leads without a break; then it is dropped and the
    /// answer is `None`.
    ///
    /// The clock is read before each step of `work`: a process that was stopped for a while does
    /// nothing more when it wakes, even before the lease's loss is known to it.
    pub(crate) async fn hold<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let term = self.role.borrow().term(Instant::now())?;
        let mut role = self.role.clone();
        let mut work = pin!(work);
        let mut over = pin!(async {
            role.wait_for(|role| role.term(Instant::now()) != Some(term)).await.is_ok()
        });
        let mut watched = true;
        poll_fn(|cx| {
            if self.role.borrow().term(Instant::now()) != Some(term) {
                return Poll::Ready(None);
            }
            // An error means that the role can change no more, as without an election.
            if watched && let Poll::Ready(is_over) = over.as_mut().poll(cx) {
                watched = false;
                if is_over {
                    return Poll::Ready(None);
                }
            }
            work.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// One item each time that this operator becomes leader.
    pub(crate) fn terms(&self) -> impl Stream<Item = ()> + Send + 'static {
        stream::unfold((self.role.clone(), 0), |(mut role, last)| async move {
            let found = role
                .wait_for(|role| role.term(Instant::now()).is_some_and(|term| term > last))
                .await
                .ok()?
                .term(Instant::now());
            Some(((), (role, found.unwrap_or(last))))
        })
    }
}
