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
    /// Asks the store, unless the same question is on its way for another stream.
    pub(super) fn ask(&mut self, key: usize, question: Question) {
        let Some(Socket::Stream(stream)) = self.sockets.get(key) else { return };
        let address = Address { key, generation: stream.generation };
        let Some(segment) = SegmentKey::of(&question) else {
            self.questions.ask(
                question,
                move |answer| Message::Answered(address, answer),
                &self.inbox,
            );
            return;
        };
        let waiting = self.segment_requests.entry(segment).or_default();
        waiting.push(address);
        // The first question is for its stream's own position. By its answer the other streams find
        // the segment in the cache, or ask again.
        if waiting.len() == 1 {
            self.questions.ask(
                question,
                move |answer| Message::SegmentRead(segment, answer),
                &self.inbox,
            );
        }
    }

    /// Gives an answer to the stream that asked, if it is still there.
    pub(super) fn answer(&mut self, address: Address, answer: Answer) {
        let Some(Socket::Stream(stream)) = self.sockets.get_mut(address.key) else { return };
        if stream.generation != address.generation {
            return;
        }
        if let Step::Write(parts) = stream.subscriber.answer(answer, self.now.into()) {
            stream.push(parts);
        }
        if stream.blocked {
            stream.subscriber.release_segment();
        } else {
            self.queue.push(address.key, stream);
        }
    }
}
