//! How a stream leaves hyper.
//!
//! The handler puts the subscriber into the connection's [`Handoff`] and answers with a body that
//! never has anything. From then on what hyper writes is kept instead of sent: it is the response
//! head. Once hyper waits for the body, the head is whole, and the connection's task gives socket,
//! head and subscriber to a fan-out thread and ends; hyper's buffers go with it.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use http_body::Frame;
use parking_lot::Mutex;

use super::writing::Answer;
use crate::{peer::Peer, subscriber::Subscriber};

#[derive(Debug, Default)]
struct Kept {
    /// Some: what is written from now on is kept.
    subscriber: Option<Subscriber>,
    head: Vec<u8>,
    /// hyper has asked for the body: the head is written.
    body_wanted: bool,
}

/// Where a request and its connection's task meet.
#[derive(Debug, Default)]
pub(crate) struct Handoff(Mutex<Kept>);

impl Handoff {
    /// Takes `subscriber` out of hyper's hands; answer with the returned body.
    pub(super) fn put(self: &Arc<Self>, subscriber: Subscriber) -> Body {
        self.0.lock().subscriber = Some(subscriber);
        Body::new(Nothing(Arc::clone(self)))
    }

    /// Keeps `bytes` if a subscriber was put here.
    pub(super) fn keep(&self, bytes: &[u8]) -> bool {
        let mut kept = self.0.lock();
        if kept.subscriber.is_some() {
            kept.head.extend_from_slice(bytes);
        }
        kept.subscriber.is_some()
    }

    /// Whether a subscriber is here.
    pub(super) fn holds(&self) -> bool {
        self.0.lock().subscriber.is_some()
    }

    /// The response head and the subscriber, once both are there.
    pub(super) fn take(&self) -> Option<(Bytes, Subscriber)> {
        let mut kept = self.0.lock();
        if !kept.body_wanted || !kept.head.ends_with(b"\r\n\r\n") {
            return None;
        }
        let subscriber = kept.subscriber.take()?;
        Some((std::mem::take(&mut kept.head).into(), subscriber))
    }
}

/// A body that never has anything.
struct Nothing(Arc<Handoff>);

impl http_body::Body for Nothing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // No waker: the connection's task looks for the handoff each time that hyper has nothing to
        // do.
        self.0.0.lock().body_wanted = true;
        Poll::Pending
    }
}

/// What a request knows of its connection.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) peer: Arc<Peer>,
    /// Where a stream can leave hyper, if it can.
    pub(crate) handoff: Option<Arc<Handoff>>,
    /// One response at a time has the connection for itself.
    pub(crate) is_http1: bool,
    pub(crate) answer: Answer,
}

#[cfg(test)]
impl Link {
    /// Of the first request that comes from `address`.
    pub(crate) fn from(address: std::net::SocketAddr) -> Self {
        let place = Arc::new(super::connections::Connections::new(1)).enter(address);
        let peer = Arc::clone(place.peer());
        let answer = Answer::of(&super::writing::Responses::new(place).begin());
        Self { peer, handoff: None, is_http1: true, answer }
    }
}
