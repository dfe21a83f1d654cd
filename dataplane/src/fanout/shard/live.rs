//! Live events: from the log's head to the streams that wait for it.

use std::sync::Arc;

use super::{COMPARISON_BYTES, LEAST_BYTES, Shard};
use crate::fanout::{
    group::{Delivered, Tally},
    socket::Socket,
};

/// Deliveries to one channel's streams in one turn: about two milliseconds' worth.
const TURN_DELIVERIES: usize = 512;
/// Comparisons of topics that take as long as a delivery. With a filter of its own for each stream,
/// most of a round may be those.
const COMPARISONS: usize = LEAST_BYTES / COMPARISON_BYTES;
/// Deliveries after which the head is read again. Streams that come later get what has come
/// meanwhile with the same write, instead of with another one.
const HEAD_EVERY: usize = 64;

impl Shard {
    /// Gives live events to the streams that wait for them. [`Shard::live`] has afterwards the
    /// groups in which some are left.
    pub(super) fn deliver_live(&mut self) {
        let mut groups = std::mem::take(&mut self.live);
        groups.drain(..).for_each(|group_key| self.deliver_to_group(group_key));
        if self.live.is_empty() {
            // Its memory is used again.
            self.live = groups;
        }
    }

    /// Notes the groups whose heads have moved.
    pub(super) fn take_moved(&mut self) {
        let mut moved = std::mem::take(&mut self.moved);
        self.inbox.take_moved(&mut moved);
        for group_key in moved.drain(..) {
            let Some(group) = self.groups.get_mut(group_key) else { continue };
            group.watch.forget();
            if !std::mem::replace(&mut group.listed, true) {
                self.live.push(group_key);
            }
        }
        self.moved = moved;
    }

    fn deliver_to_group(&mut self, group_key: usize) {
        let Some(group) = self.groups.get(group_key) else { return };
        let channel = Arc::clone(&group.channel);
        let heartbeat_at = self.now + channel.config().delivery.heartbeat;
        let mut tally = Tally::default();
        let mut deliveries = 0;
        while deliveries + tally.compared / COMPARISONS < TURN_DELIVERIES {
            let Some(group) = self.groups.get_mut(group_key) else { break };
            if deliveries % HEAD_EVERY == 0 {
                group.read_head();
            }
            let Some(key) = group.waiters.next_due() else { break };
            deliveries += 1;
            let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) else { continue };
            match group.deliver(stream, heartbeat_at, &mut tally) {
                Delivered::AtHead => {}
                Delivered::Individual => self.queue.push(key, stream),
                Delivered::Blocked => self.await_writable(key),
                Delivered::Broken => self.remove(key),
            }
        }
        self.live_deliveries += deliveries + tally.compared / COMPARISONS;
        tally.count(&channel);
        let Some(group) = self.groups.get_mut(group_key) else { return };
        group.listed = group.waiters.has_due();
        if group.listed {
            self.live.push(group_key);
        } else {
            group.end_round();
        }
    }
}
