//! Harness of the tests: real servers as child processes, and clients that keep a ledger of what
//! they got.
//!
//! A harness that fails should fail the test at that place, so it panics with a message where a
//! product would return an error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod clients;
pub mod dataplane;
pub mod docs;
pub mod kube_api;
pub mod nats;
pub mod process;
pub mod proxy;
pub mod sse;
#[cfg(test)]
mod vectors;

use std::{future::Future, pin::pin, time::Duration};

/// Runs a test's body on a runtime of its own and fails it when it takes longer than `limit`.
///
/// The body is dropped while the panic unwinds, so process guards in it print their logs.
///
/// # Panics
/// When the limit passes or the body panics.
pub fn run<F: Future<Output = ()>>(limit: Duration, body: F) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut body = pin!(tokio::time::timeout(limit, body));
        if body.as_mut().await.is_err() {
            panic!("the test took longer than its limit of {limit:?}");
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
}

/// Copies a directory with all that is in it, such as the store of a nats-server that is down.
pub fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Polls `check` until it gives a value; fails the test with `what` after `limit`.
///
/// # Panics
/// When the limit passes.
pub async fn eventually<T, F: AsyncFnMut() -> Option<T>>(
    what: &str,
    limit: Duration,
    mut check: F,
) -> T {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs `f` when the test's process ends: for servers in a static, which Rust never drops.
#[allow(unsafe_code)]
pub fn at_exit(f: extern "C" fn()) {
    // SAFETY: `f` is a valid function for the whole life of the process, and does not unwind across
    // the border: a panic in an `extern "C"` function aborts.
    unsafe {
        libc::atexit(f);
    }
}
