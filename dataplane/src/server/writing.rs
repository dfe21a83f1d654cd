//! Whether a response goes on: what its body has and hyper does not take.
//!
//! hyper asks a body for more only when it can pass on what it has. So a body stands still from the
//! moment that it has something (it was woken, or gave something and may have more) until hyper
//! asks again. One that has nothing to give does not stand still, however long that lasts.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use axum::body::Body;
use bytes::Bytes;
use futures::task::AtomicWaker;
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;
use sluice_channel::limits::WRITE_TIMEOUT;
use tokio::time::Sleep;

use super::connections::{Place, Standing};
use crate::{
    channel::Channel, frame::CloseReason, limits::LAST_FRAME_TIMEOUT, peer::Stall, registry::Entry,
};

/// How often a deadline that lies further ahead is looked at anew: the configuration that it comes
/// from may change, and a stream may be asked to end.
const RECHECK: Duration = Duration::from_millis(500);

/// One response, from its request to its last byte.
#[derive(Debug)]
pub(crate) struct Writing {
    body: Arc<Stall>,
    waker: AtomicWaker,
    channel: OnceLock<Arc<Channel>>,
    stream: OnceLock<Arc<Entry>>,
}

impl Writing {
    fn new() -> Self {
        Self {
            body: Arc::new(Stall::new()),
            waker: AtomicWaker::new(),
            channel: OnceLock::new(),
            stream: OnceLock::new(),
        }
    }

    /// Since when the body has had something that hyper does not take.
    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.body.since()
    }

    /// Until when it may stand still, as it does `since`.
    pub(super) fn deadline(&self, since: Instant) -> Instant {
        let channel = self.stream.get().map(|entry| entry.channel()).or(self.channel.get());
        let timeout =
            channel.map_or(WRITE_TIMEOUT, |channel| channel.config().delivery.write_timeout);
        let last_frame = self
            .stream
            .get()
            .and_then(|entry| entry.end_due())
            .map(|end| end.max(since) + LAST_FRAME_TIMEOUT);
        last_frame.map_or(since + timeout, |at| at.min(since + timeout))
    }

    /// Says why a stream ends, which its peer will not hear: it does not read.
    pub(super) fn give_up(&self) {
        let Some(entry) = self.stream.get() else { return };
        let old = entry.end_due().is_some_and(|end| end <= Instant::now());
        entry.close(if old { CloseReason::Age } else { CloseReason::Slow }, Duration::ZERO);
        let (channel, peer) = (entry.channel().name(), entry.peer().address);
        tracing::debug!(%channel, %peer, "a stream takes nothing: closing it");
    }
}

/// The body has something.
impl Wake for Writing {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.body.begin();
        self.waker.wake();
    }
}

/// The responses under way on one connection.
#[derive(Debug)]
pub(super) struct Responses {
    place: Place,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    writings: Vec<Arc<Writing>>,
    /// The one that ended last: the end of it may lie in hyper's buffer still.
    last: Option<Arc<Writing>>,
    /// Since when there has been none; while there is one: since when there last was none.
    idle_since: Instant,
}

impl Responses {
    pub(super) fn new(place: Place) -> Arc<Self> {
        let open = Open { writings: Vec::new(), last: None, idle_since: Instant::now() };
        Arc::new(Self { place, open: Mutex::new(open) })
    }

    /// One more.
    pub(super) fn begin(self: &Arc<Self>) -> Response {
        let writing = Arc::new(Writing::new());
        let mut open = self.open.lock();
        open.writings.push(Arc::clone(&writing));
        self.stand(&open);
        Response { responses: Arc::clone(self), writing }
    }

    fn stand(&self, open: &Open) {
        let streams = open.writings.iter().any(|writing| writing.stream.get().is_some());
        let standing = if open.writings.is_empty() { Standing::Silent } else { Standing::Asked };
        self.place.stand((!streams).then_some(standing));
    }

    /// Whether one of them is a stream.
    pub(super) fn has_stream(&self) -> bool {
        self.open.lock().writings.iter().any(|writing| writing.stream.get().is_some())
    }

    /// Until when the socket may stand still, as it does `since`.
    pub(super) fn deadline(&self, since: Instant) -> Instant {
        let open = self.open.lock();
        let first = open.writings.iter().map(|writing| writing.deadline(since)).min();
        let last = || open.last.as_ref().map(|writing| writing.deadline(since));
        first.or_else(last).unwrap_or(since + WRITE_TIMEOUT)
    }

    /// Says of all of them that they end because the socket takes nothing.
    pub(super) fn give_up(&self) {
        self.open.lock().writings.iter().for_each(|writing| writing.give_up());
    }

    /// Resolves once there has been none for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let at = {
                let open = self.open.lock();
                let since = if open.writings.is_empty() { open.idle_since } else { Instant::now() };
                since + limit
            };
            if at <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(at.into()).await;
        }
    }
}

/// One of a connection's responses, until it is dropped.
#[derive(Debug)]
pub(super) struct Response {
    responses: Arc<Responses>,
    writing: Arc<Writing>,
}

impl Response {
    pub(super) const fn writing(&self) -> &Arc<Writing> {
        &self.writing
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        let mut open = self.responses.open.lock();
        open.writings.retain(|writing| !Arc::ptr_eq(writing, &self.writing));
        open.last = Some(Arc::clone(&self.writing));
        open.idle_since = Instant::now();
        self.responses.stand(&open);
    }
}

/// What a handler knows of its response.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    responses: Arc<Responses>,
    writing: Arc<Writing>,
}

impl Answer {
    pub(super) fn of(response: &Response) -> Self {
        let Response { responses, writing } = response;
        Self { responses: Arc::clone(responses), writing: Arc::clone(writing) }
    }

    pub(super) const fn writing(&self) -> &Arc<Writing> {
        &self.writing
    }

    /// The response is of `channel`, and may stand still for as long as that says.
    pub(super) fn is_of(&self, channel: &Arc<Channel>) {
        let _ = self.writing.channel.set(Arc::clone(channel));
    }

    /// The response is this stream.
    pub(super) fn is_stream(&self, entry: &Arc<Entry>) {
        entry.written_as(&self.writing.body);
        let _ = self.writing.stream.set(Arc::clone(entry));
        self.responses.stand(&self.responses.open.lock());
    }
}

/// Whether something has stood still for too long.
#[derive(Debug, Default)]
pub(super) struct Overdue {
    /// Kept for the next time: what stalls once often does again.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Overdue {
    /// Ready once what stands still `since` should no longer, by `deadline`. To be called again
    /// whenever that may have changed.
    pub(super) fn poll(
        &mut self,
        since: Option<Instant>,
        deadline: impl Fn(Instant) -> Instant,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(since) = since else { return Poll::Pending };
        loop {
            let (now, deadline) = (Instant::now(), deadline(since));
            if now >= deadline {
                return Poll::Ready(());
            }
            let next = deadline.min(now + RECHECK).into();
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
            timer.as_mut().reset(next);
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

/// A body that notes in its `Writing` whether it stands still.
#[derive(Debug)]
pub(super) struct Watched {
    body: Body,
    writing: Arc<Writing>,
    /// What wakes `writing`, and hyper with it.
    waker: Waker,
    /// Most bytes handed to hyper at a time.
    most: usize,
    /// The rest of what the body gave last.
    rest: Bytes,
    /// Ends the response with the body, where its future does not.
    _response: Option<Response>,
}

impl Watched {
    /// `body` in pieces of at most `most` bytes.
    pub(super) fn new(
        body: Body,
        writing: Arc<Writing>,
        most: usize,
        response: Option<Response>,
    ) -> Self {
        let waker = Waker::from(Arc::clone(&writing));
        Self { body, writing, waker, most, rest: Bytes::new(), _response: response }
    }

    /// The next piece of `rest`. The last byte of a body goes alone: hyper lets go of a response
    /// once it has the end, so by then all but that byte has to lie within the peer's window.
    fn piece(&mut self) -> Bytes {
        let length = self.rest.len();
        if length <= 1 {
            // Not a part of something large that it would keep in memory.
            return Bytes::copy_from_slice(&std::mem::take(&mut self.rest));
        }
        let last = self.most < usize::MAX && self.body.is_end_stream();
        self.rest.split_to(self.most.min(if last { length - 1 } else { length }))
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        this.writing.waker.register(cx.waker());
        this.writing.body.end();
        if this.rest.is_empty() {
            let mut inner = Context::from_waker(&this.waker);
            match Pin::new(&mut this.body).poll_frame(&mut inner) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return other,
            }
        }
        let piece = this.piece();
        // hyper asks for the next one once it has passed on this.
        this.writing.body.begin();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}
