//! Live events: from the log's head to the streams that wait for it.

use std::sync::Arc;

use super::Shard;
use crate::fanout::{
    group::{Delivered, Tally},
    socket::Socket,
};

/// Deliveries to one channel's streams in one turn: about two milliseconds' worth.
const TURN_DELIVERIES: usize = 512;
/// Deliveries after which the head is read again. Streams that come later get what has come
/// meanwhile with the same write, instead of with another one.
const HEAD_EVERY: usize = 64;

impl Shard {
    /// Gives live events to the streams that wait for them. [`Shard::live_due`] says afterwards
    /// whether some are left.
    pub(super) fn deliver_live(&mut self) {
        self.live_due = false;
        for group_key in 0..self.groups.capacity() {
            self.deliver_to_group(group_key);
        }
    }

    fn deliver_to_group(&mut self, group_key: usize) {
        let Some(group) = self.groups.get(group_key) else { return };
        let channel = Arc::clone(&group.channel);
        let heartbeat_at = self.now + channel.config().delivery.heartbeat;
        let mut tally = Tally::default();
        for delivery in 0..TURN_DELIVERIES {
            let Some(group) = self.groups.get_mut(group_key) else { break };
            if delivery % HEAD_EVERY == 0 {
                group.read_head();
            }
            let Some(key) = group.waiters.next_due() else { break };
            self.live_deliveries += 1;
            let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) else { continue };
            match group.deliver(stream, heartbeat_at, &mut tally) {
                Delivered::AtHead => {}
                Delivered::Individual => self.queue.push(key, stream),
                Delivered::Blocked => self.await_writable(key),
                Delivered::Broken => self.remove(key),
            }
        }
        tally.count(&channel);
        self.live_due |= self.groups.get(group_key).is_some_and(|group| group.waiters.has_due());
    }
}
