//! The peer: what one writes by hand with axum and a tokio `broadcast` queue, and with care. It
//! encodes for each connection and keeps no history, so it has no replay.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
    routing::get,
};
use futures::{Stream, StreamExt, stream};
use http::StatusCode;
use tokio::sync::broadcast;

/// Events that a connection may be behind before it loses some: more than the benchmark ever has on
/// its way.
const QUEUE: usize = 4_096;

type Message = (u64, Arc<str>);

#[derive(Clone)]
struct Peer {
    events: broadcast::Sender<Message>,
    last: Arc<std::sync::atomic::AtomicU64>,
}

async fn subscribe(State(peer): State<Peer>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let events = stream::unfold(peer.events.subscribe(), |mut events| async {
        events.recv().await.ok().map(|event| (event, events))
    });
    let events =
        events.map(|(id, data)| Ok(Event::default().id(format!("00000000-{id}")).data(&*data)));
    Sse::new(events).keep_alive(KeepAlive::default())
}

async fn publish(State(peer): State<Peer>, body: String) -> StatusCode {
    let id = peer.last.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
    // There may be no subscriber.
    let _ = peer.events.send((id, body.into()));
    StatusCode::ACCEPTED
}

/// Serves until it is killed. Prints `listening http=<address>` first.
pub(crate) fn serve() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(([127, 0, 0, 1], 0).into())?;
        let listener = socket.listen(4_096)?;
        println!("listening http={}", listener.local_addr()?);
        let peer = Peer { events: broadcast::Sender::new(QUEUE), last: Arc::default() };
        let listener = axum::serve::ListenerExt::tap_io(listener, |socket| {
            let _ = socket.set_nodelay(true);
        });
        axum::serve(
            listener,
            Router::new().route("/", get(subscribe).post(publish)).with_state(peer),
        )
        .await?;
        Ok(())
    })
}
