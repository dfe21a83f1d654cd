//! The history that tests of one process share: 100,000 events, which no test changes.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sluice_channel::{Cursor, Epoch};
use sluice_tests::{
    at_exit,
    clients::{Reader, Request, expected},
    dataplane::{ConfigDir, DataPlane, channel_config},
    nats::{Log, NatsServer, Streams, events, log, names, stream_config},
    run,
};
use tokio::sync::Mutex;

use crate::fixture::{QUIET, SOON};

/// Longest that a test on the shared history may take, the making of it included.
const LIMIT: Duration = Duration::from_secs(120);
/// How many events it has.
pub(crate) const STORED: u64 = 100_000;
/// Sequence of the last event before the pause in the middle of the history.
pub(crate) const BEFORE_PAUSE: u64 = 40_000;

/// A stream of 100,000 events, which no test changes, and a data plane that serves it.
pub(crate) struct History {
    pub(crate) plane: DataPlane,
    pub(crate) epoch: Epoch,
    pub(crate) log: Log,
    /// A moment after event [`BEFORE_PAUSE`] and before the next, Unix time.
    pub(crate) pause: Duration,
    _configs: ConfigDir,
    _nats: NatsServer,
}

static HISTORY: Mutex<Option<Arc<History>>> = Mutex::const_new(None);

/// A static is never dropped, but its servers must end and its store must go.
extern "C" fn drop_history() {
    if let Ok(mut history) = HISTORY.try_lock() {
        history.take();
    }
}

impl History {
    /// The one of this process; made by the first test that asks.
    pub(crate) async fn get() -> Arc<Self> {
        let mut history = HISTORY.lock().await;
        if let Some(history) = &*history {
            return Arc::clone(history);
        }
        at_exit(drop_history);
        Arc::clone(history.insert(Arc::new(Self::make().await)))
    }

    async fn make() -> Self {
        let nats = NatsServer::start().await;
        let names = names("history");
        let streams = Streams::connect(&nats.url()).await;
        let epoch = streams.create(stream_config(&names)).await;
        let mut all = events(usize::try_from(STORED).unwrap(), 50, 2_000, 1);
        let first = all.by_ref().take(usize::try_from(BEFORE_PAUSE).unwrap()).collect::<Vec<_>>();
        let mut published = streams.publish_all(&names.prefix, first).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let pause = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        published.extend(streams.publish_all(&names.prefix, all).await);
        let configs = ConfigDir::new(&[channel_config(&names)]);
        let plane = DataPlane::start(&nats.url(), &configs).await;
        Self { plane, epoch, log: log(published), pause, _configs: configs, _nats: nats }
    }

    pub(crate) fn cursor(&self, sequence: u64) -> Cursor {
        Cursor::new(self.epoch, sequence)
    }

    /// Reads to the newest event and checks that it is exactly what follows `from`.
    pub(crate) async fn reads_on_from(&self, request: &Request, from: u64, filter: &[&str]) {
        let expected = expected(&self.log, from, STORED, filter);
        let mut reader = Reader::open(self.plane.http(), request).await;
        if let Some((last, _)) = expected.last() {
            reader.until_sequence(*last, SOON * 2).await;
        } else {
            assert!(reader.read_for(QUIET).await);
        }
        reader.ledger.assert_exactly(&request.path, &expected);
        assert_eq!(reader.ledger.gaps, []);
    }
}

/// Runs a test on the shared history; its data plane's log is checked, and printed when the test
/// fails.
pub(crate) fn on_history(body: impl AsyncFnOnce(&History)) {
    struct Tail(Arc<History>);
    impl Drop for Tail {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.plane.print_log();
            }
        }
    }
    run(LIMIT, async {
        let tail = Tail(History::get().await);
        body(&tail.0).await;
        assert_eq!(tail.0.plane.unexpected_errors(), Vec::<String>::new());
    });
}

/// Its channel.
pub(crate) const HISTORY_PATH: &str = "/channels/history";

/// A request for it; `query` begins with `?` or is empty.
pub(crate) fn history(query: &str) -> Request {
    Request::get(format!("{HISTORY_PATH}{query}"))
}
