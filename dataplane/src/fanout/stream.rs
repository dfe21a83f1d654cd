//! One socket of a fan-out thread, and what waits to be written to it.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, Read, Write},
    time::Instant,
};

use bytes::{Buf, Bytes};
use mio::net::TcpStream;

use super::{chunk, waiters::NOT_WAITING};
use crate::subscriber::{Checkpoint, Subscriber};

/// Buffers of one `writev` at most.
const SLICES: usize = 64;
/// Chunks of one delivery at most.
pub(super) const SEND: usize = 8;
/// Frames of fewer bytes are copied into one buffer with their framing: cheaper than buffers of
/// their own.
const COPY_BYTES: usize = 4 * 1024;
/// Frames in more parts than this are copied too.
const COPY_PARTS: usize = 16;

/// What is read away of one stream at a time, bytes.
pub(super) const READ_BYTES: usize = 16 * 1024;

/// What a peer sends while its stream goes on, which is of no meaning (RFC 9112 section 9.3.2 knows
/// nothing but a next request, and a stream has no end to wait for).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// So many bytes, and there may be more.
    More(usize),
    /// Nothing more by now.
    Nothing,
    /// It will send nothing more.
    End,
    /// The connection is broken.
    Broken,
}

/// A chunk of events that was added to a stream and can still be rolled back.
#[derive(Debug)]
pub(super) struct Uncommitted {
    /// The subscriber's state before them.
    pub(super) checkpoint: Checkpoint,
    pub(super) events: u64,
    /// Bytes of frames.
    pub(super) bytes: usize,
}

/// A subscriber and its socket. There is one for each subscriber: every byte counts.
#[derive(Debug)]
pub(super) struct Stream {
    socket: TcpStream,
    pub(super) subscriber: Subscriber,
    /// What was to be written and was not taken yet. Empty nearly always, and then without memory
    /// of its own. While the socket is full, no more than about a slice of events and what the
    /// channel itself has to say: [`Self::roll_back`], [`Self::keep`].
    out: VecDeque<Bytes>,
    /// Tells this user of a key from former ones.
    pub(super) generation: u64,
    /// Its channel's group.
    pub(super) group: u32,
    /// Number of its filter in the group.
    pub(super) filter: u32,
    /// Its slot among the streams that wait for the head, or [`NOT_WAITING`].
    pub(super) slot: u32,
    /// Whether it is in the queue.
    pub(super) queued: bool,
    /// Whether the socket was full at the last write.
    pub(super) blocked: bool,
    /// Whether the end of the body is in `out` or was written.
    pub(super) ending: bool,
    /// Whether the kernel may have received something that was not read yet.
    pub(super) unread: bool,
    /// Whether the peer has closed its side: it sends nothing more, and may go on reading.
    pub(super) half_closed: bool,
    /// When its earliest timer is due.
    pub(super) timer_at: Option<Instant>,
}

impl Stream {
    pub(super) fn new(
        socket: TcpStream,
        head: Bytes,
        subscriber: Subscriber,
        generation: u64,
        group: u32,
        filter: u32,
    ) -> Self {
        let out = VecDeque::from([head]);
        Self {
            socket,
            subscriber,
            out,
            generation,
            group,
            filter,
            slot: NOT_WAITING,
            queued: false,
            blocked: false,
            ending: false,
            unread: false,
            half_closed: false,
            timer_at: None,
        }
    }

    /// Adds frames as one chunk; returns how many bytes they are.
    pub(super) fn push(&mut self, mut parts: Vec<Bytes>) -> usize {
        let length = parts.iter().map(Bytes::len).sum();
        if length == 0 {
            return 0;
        }
        if length < COPY_BYTES || parts.len() > COPY_PARTS {
            self.out.push_back(chunk::whole(&parts));
        } else {
            self.out.push_back(chunk::head(length));
            self.out.extend(parts.drain(..));
            self.out.push_back(chunk::END);
        }
        length
    }

    /// Adds the end of the body.
    pub(super) fn push_end(&mut self) {
        self.ending = true;
        self.out.push_back(chunk::LAST);
    }

    /// Writes `chunks`, which are whole, when nothing else waits. Returns how many bytes the socket
    /// took.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn send<'c>(
        &mut self,
        chunks: impl ExactSizeIterator<Item = &'c Bytes>,
    ) -> io::Result<usize> {
        debug_assert!(
            self.out.is_empty() && chunks.len() <= SEND,
            "chunks are written in their order, and all of them"
        );
        let mut slices = [IoSlice::new(&[]); SEND];
        let count = slices
            .iter_mut()
            .zip(chunks)
            .map(|(slice, chunk)| *slice = IoSlice::new(chunk))
            .count();
        loop {
            // Nearly always there is one chunk, and that has the cheaper call.
            let taken = if count == 1 {
                self.socket.write(&slices[0])
            } else {
                self.socket.write_vectored(&slices[..count])
            };
            match taken {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                taken => return taken,
            }
        }
    }

    /// Keeps the `rest` of a chunk that the socket did not take. Other streams may keep it too.
    pub(super) fn keep(&mut self, rest: Bytes) {
        self.out.push_back(rest);
        self.set_blocked();
    }

    /// Rolls back those of the chunks added last, `uncommitted`, of which the socket took nothing,
    /// but never all that is left to write. The rest is copied, so that it keeps no segment in
    /// memory.
    pub(super) fn roll_back(&mut self, uncommitted: &mut Vec<Uncommitted>) {
        let mut left: usize = self.out.iter().map(Bytes::len).sum();
        while let Some(last) = uncommitted.last() {
            let mut framed = chunk::length(last.bytes);
            if framed >= left {
                break;
            }
            left -= framed;
            while framed > 0 {
                framed -= self.out.pop_back().map_or(framed, |part| part.len());
            }
            self.subscriber.roll_back(last.checkpoint);
            uncommitted.pop();
        }
        let mut rest = Vec::with_capacity(left);
        self.out.iter().for_each(|part| rest.extend_from_slice(part));
        self.out = VecDeque::from([rest.into()]);
    }

    /// Writes what is left to write. Returns whether the socket took all of it.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        while !self.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut length = 0;
            let mut count = 0;
            for (slice, part) in slices.iter_mut().zip(&self.out) {
                *slice = IoSlice::new(part);
                length += part.len();
                count += 1;
            }
            let taken = match self.socket.write_vectored(&slices[..count]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(taken) => taken,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.consume(taken);
            if taken > 0 && self.blocked {
                self.blocked = false;
                self.subscriber.entry().peer().progressed();
            }
            // A short write is a full socket: the kernel reports when there is room again.
            if taken < length {
                self.set_blocked();
                return Ok(false);
            }
        }
        // The buffer's memory goes back: nearly all streams have nothing to write.
        self.out = VecDeque::new();
        Ok(true)
    }

    /// Reads away what the peer has sent, into `buffer`: the kernel would keep it.
    pub(super) fn receive(&mut self, buffer: &mut [u8; READ_BYTES]) -> Received {
        let received = match self.socket.read(buffer) {
            Ok(0) => Received::End,
            Ok(count) => Received::More(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Received::Nothing,
            Err(error) if error.kind() == ErrorKind::Interrupted => Received::More(0),
            Err(_) => Received::Broken,
        };
        self.unread = matches!(received, Received::More(_));
        received
    }

    fn consume(&mut self, mut taken: usize) {
        while let Some(first) = self.out.front_mut() {
            if taken < first.len() {
                first.advance(taken);
                return;
            }
            taken -= first.len();
            self.out.pop_front();
        }
    }

    fn set_blocked(&mut self) {
        self.blocked = true;
        self.subscriber.release_segment();
        self.subscriber.entry().peer().blocked();
    }

    /// Ends the stream towards the peer, and gives the socket back to wait for the peer's own end.
    pub(super) fn finish(self) -> TcpStream {
        // The peer may be gone already.
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
        self.socket
    }
}
