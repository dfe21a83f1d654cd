//! The kubelet's view of a process that is under attack, and what it must have given back later.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use sluice_tests::{dataplane::DataPlane, eventually};

use crate::{fixture::SOON, scale};

/// Pause between two probes.
const PERIOD: Duration = Duration::from_millis(100);
/// An answer that does not come.
const LIMIT: Duration = Duration::from_secs(5);
/// Descriptors that may be open more than before: NATS's, and files that are being read.
const SPARE_FILES: usize = 16;

/// Asks `/livez` again and again, on a connection of its own each time, from a thread that nothing
/// else of the test runs on.
#[derive(Debug)]
pub(crate) struct Probes {
    stop: Sender<()>,
    thread: JoinHandle<(usize, Duration)>,
}

impl Probes {
    pub(crate) fn start(plane: &DataPlane) -> Self {
        let address = plane.admin();
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let (mut count, mut longest) = (0, Duration::ZERO);
            while count == 0 || stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                let began = Instant::now();
                ask(address).unwrap_or_else(|error| {
                    panic!("/livez, after {count} answers and {:?}: {error}", began.elapsed())
                });
                count += 1;
                longest = longest.max(began.elapsed());
            }
            (count, longest)
        });
        Self { stop, thread }
    }

    /// The last probe has been answered, and each was in time.
    pub(crate) fn assert(self) {
        drop(self.stop);
        let (count, longest) = self.thread.join().expect("each probe is answered");
        eprintln!("  /livez: {count} answers, {longest:?} at most");
        assert!(longest < scale::probe(), "/livez was answered after {longest:?}");
    }
}

fn ask(address: SocketAddr) -> std::io::Result<()> {
    let mut socket = TcpStream::connect_timeout(&address, LIMIT)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    if answer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    Err(std::io::Error::other(String::from_utf8_lossy(&answer).into_owned()))
}

/// What a process holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) rss: u64,
    files: usize,
}

impl Held {
    pub(crate) fn by(plane: &mut DataPlane) -> Self {
        Self { rss: plane.process().rss(), files: plane.process().open_files() }
    }

    /// The process lives, has no stream but `open`, and holds about what it held: `growth` more
    /// bytes at most.
    pub(crate) async fn assert_given_back(self, plane: &mut DataPlane, open: usize, growth: u64) {
        assert_eq!(plane.process().ended(), None, "the process lives");
        eventually("the slots are free", SOON, async || {
            let slots = plane.metrics().await.sum("sluice_connections", &[]);
            (slots == open as f64 && plane.subscribers().await.len() == open).then_some(())
        })
        .await;
        eventually("the descriptors are closed", SOON * 2, async || {
            let files = plane.process().open_files();
            (files <= self.files + SPARE_FILES).then_some(())
        })
        .await;
        // The allocator gives back what is unused after some seconds.
        let what = format!("memory is given back, {} MiB before", self.rss >> 20);
        eventually(&what, SOON * 3, async || {
            (plane.process().rss() < self.rss + growth).then_some(())
        })
        .await;
        eprintln!("  before {self:?}, after {:?}", Self::by(plane));
        assert_eq!(plane.unexpected_errors(), Vec::<String>::new());
    }
}
