//! Live events: from the log's head to everyone who waits for it.

use std::sync::Arc;

use super::Shard;
use crate::fanout::{
    group::{Delivered, Tally},
    socket::Socket,
};

/// Subscribers of a channel that are visited in one turn: about two milliseconds' worth.
const VISITS: usize = 512;
/// Visits after which the head is looked at again. Who is visited later gets what has come
/// meanwhile with the same write, instead of with another one a round later.
const LOOK_EVERY: usize = 64;

impl Shard {
    /// Live events to those who wait for them; [`Shard::unserved`] says whether there are more.
    pub(super) fn live(&mut self) {
        self.unserved = false;
        for group_key in 0..self.groups.capacity() {
            self.visit(group_key);
        }
    }

    fn visit(&mut self, group_key: usize) {
        let Some(group) = self.groups.get(group_key) else { return };
        let channel = Arc::clone(&group.channel);
        let heartbeat_at = self.now + channel.config().delivery.heartbeat;
        let mut tally = Tally::default();
        for visit in 0..VISITS {
            let Some(group) = self.groups.get_mut(group_key) else { break };
            if visit % LOOK_EVERY == 0 {
                group.look();
            }
            let Some(key) = group.waiters.next_due() else { break };
            self.visits += 1;
            let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) else { continue };
            match group.deliver(stream, heartbeat_at, &mut tally) {
                Delivered::All => {}
                Delivered::NotAlike => self.queue.push(key, stream),
                Delivered::Blocked => self.block(key),
                Delivered::Broken => self.remove(key),
            }
        }
        tally.count(&channel);
        self.unserved |= self.groups.get(group_key).is_some_and(|group| group.waiters.has_due());
    }
}
