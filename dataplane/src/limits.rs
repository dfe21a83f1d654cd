//! Bounds of the data plane that more than one module keeps, or that a client sees: value, unit,
//! and why it is what it is.

use std::time::Duration;

/// A history segment covers at most this many sequences and starts at a multiple of it, so that
/// readers near the same place share one segment and one read of the store.
pub(crate) const SEGMENT_SEQUENCES: u64 = 1_024;
/// A segment is cut once it holds this many encoded bytes. One event may overshoot it, and what
/// encoding adds to the payloads of one answer of the store, which is asked for no more than what
/// is left of it.
pub(crate) const SEGMENT_BYTES: usize = 1024 * 1024;
/// What one write to a subscriber hands over at most, bytes (one event may overshoot it).
pub(crate) const WRITE_BYTES: usize = 64 * 1024;
/// What is read of the log at a time, bytes (one event may overshoot it): of a write that a full
/// socket cuts short, the rest of one such slice has to be kept for as long as the subscriber
/// stalls, and what follows it has not.
pub const SLICE_BYTES: usize = 16 * 1024;
/// Most events of one JSON page, and the most that `last=` may ask for.
pub const PAGE_EVENTS: usize = 1_000;
/// Bytes of one JSON page, as it is sent; a page ends early rather than pass it, by more than one
/// event.
pub(crate) const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Events that `last=` looks back over, in memory and history, before it settles for fewer.
pub(crate) const LAST_SCAN_EVENTS: u64 = 100_000;
/// Longest `Idempotency-Key`, bytes: room for anything that tells two events apart.
pub(crate) const IDEMPOTENCY_KEY_BYTES: usize = 128;
/// How long a stream that is to end may stand still before it ends without its last frame: less
/// than a drain waits for the last ones.
pub(crate) const LAST_FRAME_TIMEOUT: Duration = Duration::from_secs(1);
/// Entries of a table that is not worth the trouble.
const SMALL_TABLE: usize = 256;

/// The capacity to which a table is shrunk: one that grows with a crowd keeps its memory when the
/// crowd has gone. Once less than a quarter is in use it is twice what is, so that shrinking costs
/// little for each that leaves. `None`: the table stays as it is.
pub(crate) const fn spare(used: usize, capacity: usize) -> Option<usize> {
    if capacity > SMALL_TABLE && used < capacity / 4 { Some(used * 2) } else { None }
}
