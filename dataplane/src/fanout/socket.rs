//! The two uses of a fan-out thread's socket: it is a stream, or lingers after the last frame.

use std::{
    io::{self, Read},
    time::Duration,
};

use mio::net::TcpStream;

use super::stream::Stream;

/// How long a peer that has its last frame may take to close. A socket that is closed with unread
/// bytes in it would take back what the peer has not read yet (RFC 9112 section 9.6).
pub(super) const LINGER: Duration = Duration::from_secs(2);

#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly all are streams, and a box would cost each delivery a cache line"
)]
pub(super) enum Socket {
    Stream(Stream),
    /// The last frame was written.
    Lingering(Lingering),
}

/// A socket that waits for the peer's end.
#[derive(Debug)]
pub(super) struct Lingering {
    pub(super) socket: TcpStream,
    /// The stream's: see [`Stream::generation`].
    pub(super) generation: u64,
}

impl Lingering {
    /// Reads away what the peer still sends. Returns whether the peer has closed.
    pub(super) fn drained(&mut self) -> bool {
        let mut buffer = [0; 1_024];
        // A peer that goes on sending is cut off after [`LINGER`]; one read must not last that
        // long.
        for _ in 0..16 {
            match self.socket.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
        false
    }
}
