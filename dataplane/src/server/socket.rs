//! A connection's socket as hyper has it: watched, and kept from writing the head of a stream that
//! leaves.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{handoff::Handoff, writing::Responses};
use crate::peer::Peer;

/// Bytes of one read of what nothing asks for, and such reads in a row.
const DROPPED_BYTES: usize = 4 * 1024;
const DROPPED_READS: usize = 16;

/// A socket that notes when it takes bytes and when it would not.
pub(super) struct WatchedSocket {
    pub(super) socket: TcpStream,
    /// What was read from it before hyper had it.
    pub(super) first: Bytes,
    pub(super) peer: Arc<Peer>,
    pub(super) handoff: Option<Arc<Handoff>>,
    /// HTTP/1: whether a stream is open, which ends when its peer closes its half.
    pub(super) responses: Option<Arc<Responses>>,
}

impl WatchedSocket {
    fn note(&self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(_) => self.peer.progressed(),
            Poll::Pending => self.peer.blocked(),
        }
    }
}

impl WatchedSocket {
    /// Reads what comes behind the request of a stream, and drops it: nothing was asked for by it,
    /// and the end of what the peer sends is seen behind it only. An error once that has come.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut dropped = [0; DROPPED_BYTES];
        for _ in 0..DROPPED_READS {
            let mut buf = ReadBuf::new(&mut dropped);
            match Pin::new(&mut self.socket).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if buf.filled().is_empty() => {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Ready(Ok(())),
            }
        }
        // The others first.
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for WatchedSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let length = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.split_to(length));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for WatchedSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.handoff.as_ref().is_some_and(|handoff| handoff.keep(buf)) {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(handoff) = &self.handoff {
            let kept =
                bufs.iter().take_while(|buf| handoff.keep(buf)).map(|buf| buf.len()).sum::<usize>();
            if kept > 0 {
                return Poll::Ready(Ok(kept));
            }
        }
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper does not read while it answers, so that a client may close its half; but a
        // subscriber that does so has left. hyper flushes whenever it has nothing more to do.
        // Of one that leaves hyper, the fan-out thread sees to both.
        let leaves = self.handoff.as_ref().is_some_and(|handoff| handoff.holds());
        if !leaves && self.responses.as_ref().is_some_and(|responses| responses.has_stream()) {
            std::task::ready!(self.poll_left(cx))?;
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
