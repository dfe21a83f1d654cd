//! Questions to the store, and its answers.

use super::Shard;
use crate::{
    fanout::{
        inbox::{Address, Message},
        socket::Socket,
    },
    subscriber::{Answer, Question, SegmentKey, Step},
};

impl Shard {
    /// Sends a question on its way.
    pub(super) fn ask(&mut self, key: usize, question: Question) {
        let Some(Socket::Stream(stream)) = self.sockets.get(key) else { return };
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
        let Some(Socket::Stream(stream)) = self.sockets.get_mut(address.key) else { return };
        if stream.ticket != address.ticket {
            return;
        }
        if let Step::Write(parts) = stream.subscriber.answer(answer, self.now.into()) {
            stream.push(parts);
        }
        if stream.blocked {
            stream.subscriber.let_go();
        } else {
            self.queue.push(address.key, stream);
        }
    }
}
