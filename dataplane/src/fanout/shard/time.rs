//! What is due by the clock.

use std::time::Duration;

use super::Shard;
use crate::{fanout::socket::Socket, frame::CloseReason};

impl Shard {
    /// Acts on timers that are due.
    pub(super) fn fire_timers(&mut self) {
        while let Some((at, key, generation)) = self.timers.pop_due(self.now) {
            match self.sockets.get_mut(key) {
                Some(Socket::Stream(stream))
                    if stream.generation == generation && stream.timer_at == Some(at) =>
                {
                    stream.timer_at = None;
                    self.timer_fired(key);
                }
                Some(Socket::Lingering(lingering)) if lingering.generation == generation => {
                    self.take_socket(key);
                }
                // The stream has a timer that is earlier, or the key is another's by now.
                Some(_) | None => {}
            }
        }
        self.drop_empty_groups();
    }

    /// Looks at a stream whose timer was due. If it was written to since the timer was armed, its
    /// next moment is later.
    fn timer_fired(&mut self, key: usize) {
        let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) else { return };
        if stream.blocked {
            // The kernel reports room once there is much of it; there may be some already.
            match stream.flush() {
                Ok(true) => return self.queue.push(key, stream),
                Ok(false) => {}
                Err(_) => return self.remove(key),
            }
            let entry = stream.subscriber.entry();
            let timeout = entry.channel().config().delivery.write_timeout;
            let blocked = entry.peer().blocked_for();
            if blocked < timeout {
                self.timers.arm(self.now + (timeout - blocked), key, stream);
                return;
            }
            // The socket is full, so no close event can be written. The subscriber's cursor is
            // intact: its next connection goes on where this one ends.
            tracing::debug!(
                channel = %entry.channel().name(),
                peer = %entry.peer().address,
                ?blocked,
                "a socket takes nothing: closing it"
            );
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
