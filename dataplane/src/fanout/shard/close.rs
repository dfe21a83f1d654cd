//! The end of streams, and of the groups that they leave empty.

use std::sync::Arc;

use mio::{Interest, Token};

use super::Shard;
use crate::{
    fanout::{
        socket::{LINGER, Lingering, Socket},
        stream::Stream,
    },
    limits,
};

impl Shard {
    /// Ends a stream whose last frame was written.
    pub(super) fn finish(&mut self, key: usize) {
        let Some(stream) = self.take_out(key) else { return };
        let generation = stream.generation;
        let mut lingering = Lingering { socket: stream.finish(), generation };
        if !lingering.drained() {
            let vacant = self.sockets.vacant_entry();
            let key = vacant.key();
            let socket = &mut lingering.socket;
            // Under its new key.
            if self.poll.registry().reregister(socket, Token(key), Interest::READABLE).is_ok() {
                vacant.insert(Socket::Lingering(lingering));
                self.timers.insert(self.now + LINGER, key, generation);
            }
        }
    }

    /// Closes the socket as it is.
    pub(super) fn remove(&mut self, key: usize) {
        drop(self.take_out(key));
    }

    /// Takes the stream out: its entry in the registry goes once it is dropped.
    fn take_out(&mut self, key: usize) -> Option<Stream> {
        self.stop_waiting(key);
        match self.take_socket(key)? {
            Socket::Stream(stream) => {
                if let Some(group) = self.groups.get_mut(stream.group as usize) {
                    group.leave(stream.subscriber.filter());
                    if group.members == 0 {
                        self.emptied.push(stream.group as usize);
                    }
                }
                self.inbox.stream_removed();
                Some(stream)
            }
            Socket::Lingering(..) => None,
        }
    }

    /// Takes a socket out, and gives back the memory of what a crowd that has gone took up. Keys
    /// stay as they are, so that is what lies behind the last socket.
    pub(super) fn take_socket(&mut self, key: usize) -> Option<Socket> {
        let socket = self.sockets.try_remove(key);
        if self.sockets.len() <= self.shrink_at
            && limits::spare(self.sockets.len(), self.sockets.capacity()).is_some()
        {
            // Not again before half of the others have gone: it walks over all of the table.
            self.shrink_at = self.sockets.len() / 2;
            self.sockets.shrink_to_fit();
        }
        socket
    }

    /// Lets go of channels that have no stream on this thread any more.
    pub(super) fn drop_empty_groups(&mut self) {
        for key in self.emptied.drain(..) {
            if self.groups.get(key).is_some_and(|group| group.members == 0) {
                let group = self.groups.remove(key);
                group.forget_watch();
                self.by_channel.remove(&(Arc::as_ptr(&group.channel) as usize));
            }
        }
    }
}
