//! The tasks that the operator consists of: where one ends, the operator does.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Error, STOP_LIMIT};

/// Tasks that run until the end; each answers with what it did.
#[derive(Default)]
pub(super) struct Tasks(JoinSet<&'static str>);

impl Tasks {
    pub(super) fn spawn(
        &mut self,
        what: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.0.spawn(async move {
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            if ended.is_err() {
                tracing::error!(task = what, "a task panicked");
            }
            what
        });
    }

    /// The first task to end, for ever where there is none.
    async fn first_end(&mut self) -> Error {
        match self.0.join_next().await {
            Some(Ok(task)) => Error::Ended { task, why: String::new() },
            Some(Err(error)) => Error::Ended { task: "a task", why: format!(": {error}") },
            None => std::future::pending().await,
        }
    }

    pub(super) async fn shutdown(&mut self) {
        self.0.shutdown().await;
    }

    /// Waits for all of them, but no longer than [`STOP_LIMIT`].
    pub(super) async fn have_ended(&mut self) -> bool {
        let ended = async { while self.0.join_next().await.is_some() {} };
        tokio::time::timeout(STOP_LIMIT, ended).await.is_ok()
    }
}

/// Waits for `stop`, or for the first task that ends without it.
pub(super) async fn until_ended(
    stop: &CancellationToken,
    passes: &mut Tasks,
    others: &mut Tasks,
) -> Result<(), Error> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        error = passes.first_end() => Err(error),
        error = others.first_end() => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn end_of(task: impl Future<Output = ()> + Send + 'static, passes: bool) -> String {
        let (mut busy, mut ends) = (Tasks::default(), Tasks::default());
        busy.spawn("busy", std::future::pending());
        ends.spawn("following channels", task);
        let stop = CancellationToken::new();
        let ended = if passes {
            until_ended(&stop, &mut ends, &mut busy).await
        } else {
            until_ended(&stop, &mut busy, &mut ends).await
        };
        ended.unwrap_err().to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn an_operator_ends_with_the_first_of_its_tasks_that_ends() {
        for passes in [true, false] {
            let ended = end_of(async {}, passes).await;
            assert!(ended.starts_with("following channels ended unexpectedly"), "{ended}");
            let panicked = end_of(async { panic!("a defect") }, passes).await;
            assert!(panicked.starts_with("following channels ended unexpectedly"), "{panicked}");
        }
        let (mut busy, stop) = (Tasks::default(), CancellationToken::new());
        busy.spawn("busy", std::future::pending());
        stop.cancel();
        assert!(until_ended(&stop, &mut busy, &mut Tasks::default()).await.is_ok());
    }
}
