//! What proves that something is not there.
//!
//! An event that a store answers with is there, on any server's word. That none is there is another
//! matter: a replica may lag, and a leader that is cut off from its cluster goes on answering as if
//! it were not (nats-server 2.15: STREAM.INFO to the end of the cut, "no message found" for
//! seconds). So no answer of absence (not found; a last sequence below one that was read or named;
//! a stream that seems to be another) is claimed to anybody, or cached, before it is proven:
//!
//! > An answer given at *t* is proven by a STREAM.INFO that was asked later, at *t₂*, names the
//! > same leader over the same connection, and says that a majority of the replicas was heard of
//! > less than *t₂ − t* ago: after the answer, they still followed it.
//!
//! That costs about a second where there are replicas, which answer the leader's heartbeats once a
//! second, and one question where there are none. Waiting callers share a question. What cannot be
//! proven is [`Error::Unreachable`]: streams wait, pages are answered 503.
//!
//! Events between two of one answer need no proof: a replica applies what is deleted in order. What
//! is missing before the first one does: a replica that was cut off while a limit was lower goes on
//! by that limit while it catches up, and lacks a front that the others have (nats-server 2.15). So
//! the leader is asked for what comes next there; what it names is there.

use std::{sync::Arc, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Error, Lead, REQUEST_TIMEOUT, Source, StreamState};

/// Pause between two questions for a proof: a replica answers its leader once a second.
const PAUSE: Duration = Duration::from_millis(250);
/// Longest wait for a proof: as for any one answer of the store. A leader that no majority answers
/// for two heartbeats will not have one in the third.
const PROOF_TIMEOUT: Duration = REQUEST_TIMEOUT;

/// A state, and the moment at which it was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// When.
    pub at: Instant,
    /// The answer.
    pub state: StreamState,
}

/// A question under way. Shared, not locked: any waiting caller drives it, so that one caller
/// that is held up holds up no other.
type Question = Shared<BoxFuture<'static, Result<StreamState, Error>>>;

#[derive(Default)]
struct Known {
    newest: Option<Asked>,
    asking: Option<(Instant, Question)>,
    /// Questions so far.
    count: u64,
}

/// Proofs of one stream.
pub struct Proofs {
    source: Arc<dyn Source>,
    known: Mutex<Known>,
}

impl std::fmt::Debug for Proofs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proofs")
    }
}

impl Proofs {
    /// Proofs by `source`.
    #[must_use]
    pub fn new(source: Arc<dyn Source>) -> Self {
        Self { source, known: Mutex::default() }
    }

    /// The state by a question that is asked after this call: one at a time for all callers.
    ///
    /// # Errors
    /// The store's.
    pub async fn state(&self) -> Result<Asked, Error> {
        let before = self.known.lock().count;
        loop {
            let (number, answer) = self.question().await;
            if number > before {
                return answer;
            }
        }
    }

    /// The state as it was asked for at `since`, which is over, or later.
    async fn state_since(&self, since: Instant) -> Result<Asked, Error> {
        let newest = self.known.lock().newest;
        match newest.filter(|asked| asked.at >= since) {
            Some(asked) => Ok(asked),
            None => self.state().await,
        }
    }

    /// The number of the question under way, or of another one, and the answer to it.
    async fn question(&self) -> (u64, Result<Asked, Error>) {
        let (number, at, question) = {
            let mut known = self.known.lock();
            let (at, question) = match known.asking.clone() {
                Some(asking) => asking,
                None => {
                    known.count += 1;
                    let source = Arc::clone(&self.source);
                    let question = async move { source.state().await }.boxed().shared();
                    known.asking.insert((Instant::now(), question)).clone()
                }
            };
            (known.count, at, question)
        };
        let answer = question.clone().await.map(|state| Asked { at, state });
        let mut known = self.known.lock();
        // The first waiting caller notes it.
        if known.asking.as_ref().is_some_and(|(_, asking)| asking.ptr_eq(&question)) {
            known.asking = None;
            known.newest = answer.as_ref().ok().copied().or(known.newest);
        }
        (number, answer)
    }

    /// Waits until what the leader `by` answered before `at` is proven; the state that proves it.
    ///
    /// # Errors
    /// It is not: another leader answers by now, or no majority follows this one.
    pub async fn prove(&self, by: Lead, at: Instant) -> Result<StreamState, Error> {
        let proven = async {
            let mut since = at;
            loop {
                sleep_until(since).await;
                let asked = self.state_since(since).await?;
                if asked.state.lead.id != by.id {
                    return Err(unproven("another leader answers by now"));
                }
                if asked.state.lead.unheard <= asked.at - at {
                    return Ok(asked.state);
                }
                since = asked.at + PAUSE;
            }
        };
        let waited = timeout(PROOF_TIMEOUT, proven).await;
        waited
            .unwrap_or_else(|_| Err(unproven("no majority of its replicas has answered it since")))
    }
}

fn unproven(why: &str) -> Error {
    Error::Unreachable(format!("what the stream's leader said is not proven: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::memory::MemorySource;

    fn proofs(memory: &MemorySource) -> Proofs {
        Proofs::new(Arc::new(memory.clone()))
    }

    #[tokio::test(start_paused = true)]
    async fn one_replica_proves_at_once_and_three_within_a_heartbeat() {
        let memory = MemorySource::default();
        memory.put("t", "1");
        let proofs = proofs(&memory);
        let begun = Instant::now();
        let asked = proofs.state().await.unwrap();
        assert_eq!(proofs.prove(asked.state.lead, Instant::now()).await.unwrap().last, 1);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        memory.set_replicated(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(300)).await;
        let asked = proofs.state().await.unwrap();
        let at = Instant::now();
        assert_eq!(proofs.prove(asked.state.lead, at).await.unwrap().last, 1);
        assert!((700..1_300).contains(&at.elapsed().as_millis()), "{:?}", at.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_is_cut_off_proves_nothing_nor_does_the_next_one() {
        let memory = MemorySource::default();
        memory.set_replicated(Duration::from_secs(1));
        (0..5).for_each(|_| {
            memory.put("t", "x");
        });
        let proofs = proofs(&memory);
        memory.cut_off(3);
        tokio::time::sleep(Duration::from_millis(10)).await;
        let asked = proofs.state().await.unwrap();
        assert_eq!(asked.state.last, 3, "it answers");
        let at = Instant::now();
        assert!(matches!(proofs.prove(asked.state.lead, at).await, Err(Error::Unreachable(_))));
        assert!(at.elapsed() <= PROOF_TIMEOUT + PAUSE, "a bounded wait");
        memory.heal();
        let proven = proofs.prove(asked.state.lead, Instant::now()).await;
        assert!(matches!(proven, Err(Error::Unreachable(_))), "another leader did not say so");
        let asked = proofs.state().await.unwrap();
        assert_eq!(proofs.prove(asked.state.lead, Instant::now()).await.unwrap().last, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_share_the_questions() {
        let memory = MemorySource::default();
        memory.set_replicated(Duration::from_secs(1));
        let proofs = proofs(&memory);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let asked = proofs.state().await.unwrap();
        let before = memory.states();
        let at = Instant::now();
        let all = (0..1_000).map(|_| proofs.prove(asked.state.lead, at));
        assert!(futures::future::join_all(all).await.iter().all(Result::is_ok));
        assert!(memory.states() - before <= 10, "{}", memory.states() - before);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_is_held_up_holds_up_no_other() {
        let proofs = proofs(&MemorySource::default());
        let stalled = Proofs { source: Arc::clone(&proofs.source), known: Mutex::default() };
        let gate = Arc::new(tokio::sync::Notify::new());
        let (opened, answer) = (Arc::clone(&gate), proofs.state().await.unwrap().state);
        let question = async move {
            opened.notified().await;
            Ok(answer)
        };
        stalled.known.lock().asking = Some((Instant::now(), question.boxed().shared()));
        let mut held_up = Box::pin(stalled.state());
        assert!(held_up.as_mut().now_or_never().is_none());
        gate.notify_one();
        // The first one is not polled any more.
        assert!(stalled.state().await.is_ok());
        assert!(held_up.await.is_ok());
    }

    #[test]
    fn a_majority_is_half_of_the_replicas_beside_the_leader() {
        let seconds = |of: &[u64]| of.iter().copied().map(Duration::from_secs).collect::<Vec<_>>();
        let unheard = |of: &[u64]| Lead::new(Some("n1"), 1, seconds(of)).unheard;
        assert_eq!(unheard(&[]), Duration::ZERO);
        assert_eq!(unheard(&[9]), Duration::from_secs(9));
        assert_eq!(unheard(&[9, 1]), Duration::from_secs(1));
        assert_eq!(unheard(&[9, 2, 1, 8]), Duration::from_secs(2));
        assert_eq!(Lead::new(None, 1, seconds(&[1, 1])).unheard, Duration::MAX);
        let id = |name, connection| Lead::new(Some(name), connection, Vec::new()).id;
        assert_eq!(id("n1", 1), id("n1", 1));
        assert_ne!(id("n1", 1), id("n2", 1));
        assert_ne!(id("n1", 1), id("n1", 2));
    }
}
