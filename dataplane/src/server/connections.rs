//! The connections of one listener: how many there are, and which of them may be closed to make
//! room. A connection that carries a stream is never one of these.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;

use crate::peer::Peer;

/// What a connection without a stream is at. The order is the one in which they make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It asks nothing: no request yet, or none since the last answer.
    Silent,
    /// It is being answered.
    Asked,
}

type Key = (Standing, u64);

/// How often a connection that was told to close is looked at, and how many times before the next
/// one is accepted all the same: its task has to run, on a machine that may be busy.
const CLOSE_POLL: Duration = Duration::from_millis(1);
const CLOSE_POLLS: u32 = 50;

/// The connections of one listener.
#[derive(Debug)]
pub(crate) struct Connections {
    /// Most of them, about: one that is told to close may take longer than is waited for.
    most: usize,
    /// A clone for each connection.
    open: Arc<()>,
    /// Those without a stream, each by what it is at and since when, as a number that rises.
    expendable: Mutex<Expendable>,
}

#[derive(Debug, Default)]
struct Expendable {
    peers: BTreeMap<Key, Arc<Peer>>,
    next: u64,
}

impl Connections {
    /// A listener that keeps about `most` connections.
    #[must_use]
    pub(crate) fn new(most: usize) -> Self {
        Self { most, open: Arc::default(), expendable: Mutex::default() }
    }

    fn count(&self) -> usize {
        Arc::strong_count(&self.open) - 1
    }

    /// Waits until there is room for one more. Where there is none, another has to go: the one that
    /// has been silent for longest, or else the one that has been answered for longest.
    pub(super) async fn room(&self) {
        if self.count() < self.most {
            return;
        }
        self.make_room();
        for _ in 0..CLOSE_POLLS {
            tokio::time::sleep(CLOSE_POLL).await;
            if self.count() < self.most {
                return;
            }
        }
    }

    /// Takes in the connection of `address`.
    pub(super) fn enter(self: &Arc<Self>, address: SocketAddr) -> Place {
        let peer = Arc::new(Peer::counted(address, Arc::clone(&self.open)));
        let place = Place { connections: Arc::clone(self), peer, key: Mutex::default() };
        place.stand(Some(Standing::Silent));
        place
    }

    /// Closes a connection that carries no stream, if there is one.
    pub(super) fn make_room(&self) {
        let first = self.expendable.lock().peers.pop_first();
        if let Some((_, peer)) = first {
            tracing::debug!(peer = %peer.address, "too many connections: closing one that has no stream");
            peer.disconnect();
        }
    }
}

/// One connection of a listener, in the hands of its task.
#[derive(Debug)]
pub(super) struct Place {
    connections: Arc<Connections>,
    peer: Arc<Peer>,
    /// Where it is among the expendable ones.
    key: Mutex<Option<Key>>,
}

impl Place {
    pub(super) const fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Says what the connection is at from now on; `None`: it carries a stream.
    pub(super) fn stand(&self, standing: Option<Standing>) {
        let mut key = self.key.lock();
        let mut expendable = self.connections.expendable.lock();
        if let Some(before) = key.take() {
            if Some(before.0) == standing {
                *key = Some(before);
                return;
            }
            expendable.peers.remove(&before);
        }
        if let Some(standing) = standing {
            expendable.next += 1;
            let now = (standing, expendable.next);
            expendable.peers.insert(now, Arc::clone(&self.peer));
            *key = Some(now);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stand(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the connection was told to close.
    fn told(place: &Place) -> bool {
        let wanted = std::pin::pin!(place.peer().disconnect_wanted());
        futures::FutureExt::now_or_never(wanted).is_some()
    }

    async fn enter(connections: &Arc<Connections>) -> Place {
        connections.room().await;
        connections.enter(SocketAddr::from(([127, 0, 0, 1], 1)))
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_silent_makes_room_and_a_stream_never_does() {
        let connections = Arc::new(Connections::new(4));
        let stream = enter(&connections).await;
        let asked = enter(&connections).await;
        let first = enter(&connections).await;
        let second = enter(&connections).await;
        stream.stand(None);
        asked.stand(Some(Standing::Asked));
        let third = enter(&connections).await;
        assert!(told(&first) && !told(&second), "the first of the silent ones, and no other");
        let fourth = enter(&connections).await;
        assert!(told(&second));
        // Its answer is out: it is silent since now, behind the others.
        asked.stand(Some(Standing::Silent));
        fourth.stand(Some(Standing::Asked));
        let fifth = enter(&connections).await;
        assert!(told(&third) && !told(&asked) && !told(&fourth));
        fifth.stand(None);
        let sixth = enter(&connections).await;
        assert!(told(&asked));
        sixth.stand(None);
        let _seventh = enter(&connections).await;
        assert!(told(&fourth), "where none is silent, one that is answered");
        assert!(!told(&stream) && !told(&fifth) && !told(&sixth));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_gone_makes_room_by_itself() {
        let connections = Arc::new(Connections::new(2));
        let kept = enter(&connections).await;
        for _ in 0..10 {
            drop(enter(&connections).await);
        }
        assert!(!told(&kept));
        // A stream that has left its task is still a connection: its peer lives on.
        let left = Arc::clone(enter(&connections).await.peer());
        let _next = enter(&connections).await;
        assert!(told(&kept), "{} connections", connections.count());
        drop(left);
    }
}
