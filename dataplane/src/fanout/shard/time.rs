//! What is due by the clock.

use std::time::Duration;

use super::Shard;
use crate::{fanout::socket::Socket, frame::CloseReason};

impl Shard {
    /// Moments that have come.
    pub(super) fn tick(&mut self) {
        while let Some((at, key, ticket)) = self.timers.due(self.now) {
            match self.sockets.get_mut(key) {
                Some(Socket::Stream(stream))
                    if stream.ticket == ticket && stream.timer_at == Some(at) =>
                {
                    stream.timer_at = None;
                    self.look(key);
                }
                Some(Socket::Lingering(lingering)) if lingering.ticket == ticket => {
                    self.sockets.try_remove(key);
                }
                // It has another moment, or another user.
                Some(_) | None => {}
            }
        }
        if self.groups.iter().any(|(_, group)| group.members == 0) {
            self.forget_groups();
        }
    }

    /// Its moment has come, unless it was written to in the meantime.
    fn look(&mut self, key: usize) {
        let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) else { return };
        if stream.blocked {
            // The kernel tells of room once there is much of it; there may be some.
            match stream.flush() {
                Ok(true) => return self.queue.push(key, stream),
                Ok(false) => {}
                Err(_) => return self.remove(key),
            }
            let entry = stream.subscriber.entry();
            let timeout = entry.channel().config().delivery.write_timeout;
            let blocked = entry.connection().blocked_for();
            if blocked < timeout {
                self.timers.arm(self.now + (timeout - blocked), key, stream);
                return;
            }
            // Nothing can be told to such a subscriber. Its cursor is intact, so it comes back to
            // the place.
            tracing::debug!(peer = %entry.connection().peer, ?blocked, "a socket takes nothing: closing it");
            entry.close(CloseReason::Slow, Duration::ZERO);
            return self.remove(key);
        }
        let due = stream.subscriber.due().into_std();
        if due <= self.now {
            self.queue.push(key, stream);
        } else {
            self.timers.arm(due, key, stream);
        }
    }
}
