//! The end of connections, the store's answers, and time.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Interest, Token, net::TcpStream};

use super::{LINGER, Shard, Slot};
use crate::{
    fanout::{
        inbox::{Address, Message},
        stream::Stream,
        timers::Timers,
    },
    frame::CloseReason,
    subscriber::{Answer, Question, SegmentKey, Step},
};

impl Shard {
    /// Moments that have come.
    pub(super) fn tick(&mut self) {
        while let Some((at, key, ticket)) = self.timers.due(self.now) {
            match self.slots.get_mut(key) {
                Some(Slot::Stream(stream))
                    if stream.ticket == ticket && stream.timer_at == Some(at) =>
                {
                    stream.timer_at = None;
                    self.look(key);
                }
                Some(Slot::Lingering(_, of)) if *of == ticket => {
                    self.slots.try_remove(key);
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
        let Some(Slot::Stream(stream)) = self.slots.get_mut(key) else { return };
        if stream.blocked {
            // The kernel tells of room once there is much of it; there may be some.
            match stream.flush() {
                Ok(true) => return enqueue(&mut self.queue, key, stream),
                Ok(false) => {}
                Err(_) => return self.remove(key),
            }
            let entry = stream.subscriber.entry();
            let timeout = entry.channel().config().delivery.write_timeout;
            let blocked = entry.connection().blocked_for();
            if blocked < timeout {
                set_timer(&mut self.timers, self.now + (timeout - blocked), key, stream);
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
            enqueue(&mut self.queue, key, stream);
        } else {
            set_timer(&mut self.timers, due, key, stream);
        }
    }

    /// Sends a question on its way.
    pub(super) fn ask(&mut self, key: usize, question: Question) {
        let Some(Slot::Stream(stream)) = self.slots.get(key) else { return };
        let address = Address { key, ticket: stream.ticket };
        let Some(segment) = SegmentKey::of(&question) else {
            self.questions.ask(
                question,
                move |answer| Message::Answered(address, answer),
                &self.inbox,
            );
            return;
        };
        let waiting = self.readers.entry(segment).or_default();
        waiting.push(address);
        // The first to ask has an answer for its own position; the others find the segment in the
        // cache then, or ask.
        if waiting.len() == 1 {
            self.questions.ask(question, move |answer| Message::Read(segment, answer), &self.inbox);
        }
    }

    /// An answer has come.
    pub(super) fn answered(&mut self, address: Address, answer: Answer) {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(address.key) else { return };
        if stream.ticket != address.ticket {
            return;
        }
        if let Step::Write(parts) = stream.subscriber.answer(answer, self.now.into()) {
            stream.push(parts);
        }
        if stream.blocked {
            stream.subscriber.let_go();
        } else {
            enqueue(&mut self.queue, address.key, stream);
        }
    }

    /// The last frame was written.
    pub(super) fn finish(&mut self, key: usize) {
        let Some(stream) = self.take(key) else { return };
        let ticket = stream.ticket;
        let mut socket = stream.finish();
        if !drained(&mut socket) {
            let slot = self.slots.vacant_entry();
            let key = slot.key();
            // Under its new key.
            if self.poll.registry().reregister(&mut socket, Token(key), Interest::READABLE).is_ok()
            {
                slot.insert(Slot::Lingering(socket, ticket));
                self.timers.set(self.now + LINGER, key, ticket);
            }
        }
    }

    /// Closes the socket as it is.
    pub(super) fn remove(&mut self, key: usize) {
        drop(self.take(key));
    }

    /// Takes the stream out: its place in the registry is free once it is dropped.
    fn take(&mut self, key: usize) -> Option<Stream> {
        self.stop_waiting(key);
        match self.slots.try_remove(key)? {
            Slot::Stream(stream) => {
                if let Some(group) = self.groups.get_mut(stream.group as usize) {
                    group.leave(stream.subscriber.filter());
                }
                self.inbox.left();
                Some(stream)
            }
            Slot::Lingering(..) => None,
        }
    }

    /// Channels that nobody here subscribes to any more.
    fn forget_groups(&mut self) {
        let waker = &self.waker;
        let by_channel = &mut self.by_channel;
        self.groups.retain(|_, group| {
            if group.members == 0 {
                group.channel.log().forget_waker(waker);
                by_channel.remove(&(Arc::as_ptr(&group.channel) as usize));
            }
            group.members > 0
        });
    }
}

pub(super) fn enqueue(queue: &mut VecDeque<usize>, key: usize, stream: &mut Stream) {
    if !stream.queued {
        stream.queued = true;
        queue.push_back(key);
    }
}

pub(super) fn set_timer(timers: &mut Timers, at: Instant, key: usize, stream: &mut Stream) {
    if stream.timer_at.is_none_or(|set| at < set) {
        stream.timer_at = Some(at);
        timers.set(at, key, stream.ticket);
    }
}

/// Reads away what the peer still sends; whether it has ended.
pub(super) fn drained(socket: &mut TcpStream) -> bool {
    let mut buffer = [0; 1_024];
    // A peer that goes on sending is closed when its time is over.
    for _ in 0..16 {
        match socket.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return true,
        }
    }
    false
}
