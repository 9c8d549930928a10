//! Responses, in the order of their requests: what is there is checked and delivered.

use super::stream::Body;
use super::{Lane, Reply, Run, Sink, SmallReply, TOO_LARGE, Violation};
use crate::ground::prefetch::{self, SLOTS_AHEAD as AHEAD};
use crate::ground::ring::Head;
use crate::memory::codec::Encoded;
use crate::memory::layout::{ARENA_BYTES, RING_SLOTS, slot_of};
use crate::protocol::code::CodeId;
use crate::protocol::records::TEXT_BYTES_MAX;
use crate::protocol::wire::{Place, RESPONSE_INLINE_BYTES, Status};
use crate::sync::Ordering;

impl<T> Lane<T> {
    /// Whether half a lap of responses is there, so that a [`poll`](Self::poll) makes room.
    #[inline]
    pub(crate) fn half_is_ready(&self) -> bool {
        let middle = self.answered + RING_SLOTS as u64 / 2;
        // The middle one is no proof of the first: a loop that relied on it would not end.
        middle < self.sent && self.region.response(middle).poll(middle).is_some() && self.ready()
    }

    /// Whether the next response is there.
    #[inline]
    pub(crate) fn ready(&self) -> bool {
        self.sent != self.answered && self.region.response(self.answered).poll(self.answered).is_some()
    }

    /// Delivers what has come and, with `streams`, moves on what is on its way. Never blocks.
    #[inline]
    pub(crate) fn poll<S: Sink<T>>(&mut self, sink: &mut S, streams: bool) -> Result<usize, Violation> {
        let mut replies = 0;
        loop {
            let index = self.answered;
            if index == self.sent {
                break;
            }
            let Some(entry) = &self.entries[slot_of(index)] else {
                return Err(Violation("an entry is missing"));
            };
            if entry.taken {
                self.retire();
                continue;
            }
            let Some(head) = self.region.response(index).poll(index) else { break };
            if self.in_flight() > AHEAD as usize {
                prefetch::for_reading(self.region.response(index + AHEAD));
                if let Some(next) = &self.entries[slot_of(index + AHEAD)] {
                    next.token.iter().for_each(|token| sink.expect(token));
                }
            }
            if S::TIMED {
                let (token, run) = (entry.token.as_ref(), self.run_of(index, head));
                token.zip(run).into_iter().for_each(|(token, run)| sink.timed(token, run));
            }
            if entry.batch.is_some() {
                self.finish_batch(index, head, sink)?;
            } else if let Some(reply) = self.read_small(index, head) {
                if let Some(token) = self.retire() {
                    sink.small_reply(token, reply);
                }
            } else {
                let reply = self.read_reply(index, head)?;
                if let Some(token) = self.retire() {
                    sink.reply(token, reply);
                }
            }
            replies += 1;
        }
        if replies > 0 && (self.sent != self.answered || self.is_ordered) {
            // Edge TOLD: the worker may have fallen asleep with one of these responses.
            self.ring_if_asleep();
        }
        if streams {
            self.move_streams(sink)?;
        }
        Ok(replies)
    }

    /// What its worker has noted about a request that is answered. `None`: it did not run.
    fn run_of(&self, index: u64, head: Head) -> Option<Run> {
        let status = u8::try_from(head.extra).ok().and_then(Status::from_wire)?;
        let ended_ns = self.region.stamps(index).answered_ns.load(Ordering::Relaxed);
        (status != Status::Skipped).then(|| Run { status, ..self.run_until(index, ended_ns) })
    }

    /// What is known about a request that has been started and not been answered.
    fn run_until(&self, index: u64, ended_ns: u64) -> Run {
        let slot = self.region.request(index);
        Run {
            index,
            code: CodeId { place: slot.get(0), types: slot.get(1) },
            started_ns: self.region.stamps(index).started_ns.load(Ordering::Relaxed),
            ended_ns,
            status: Status::Skipped,
            items: self.entries[slot_of(index)].as_ref().and_then(|entry| entry.batch),
        }
    }

    /// The request that is running, as if it ended now. Only where workers stamp requests.
    pub(crate) fn running_until(&self, ended_ns: u64) -> Option<Run> {
        let running = self.running()?;
        let run = self.run_until(running.index, ended_ns);
        // Claimed, and the stamp may still be that of a lap before.
        (run.started_ns <= ended_ns && running.token.is_some()).then_some(run)
    }

    /// Ends the oldest entry.
    #[inline]
    pub(super) fn retire(&mut self) -> Option<T> {
        let entry = self.entries[slot_of(self.answered)].take()?;
        self.answered += 1;
        // An empty ring restarts at its beginning; `span_end` is then the head.
        self.tail = entry.span_end;
        if self.outgoing.as_ref().is_some_and(|o| o.index < self.answered) {
            self.outgoing = None;
        }
        if self.incoming.is_some() {
            // What flowed for this entry is none of the next one's.
            self.incoming = None;
        }
        entry.token
    }

    /// A value in its slot, if this response is such and nothing is strange about it.
    #[inline]
    fn read_small(&self, index: u64, head: Head) -> Option<SmallReply> {
        let is_small = head.kind == Place::Inline as u8
            && head.extra == Status::Value as u16
            && usize::from(head.len) <= RESPONSE_INLINE_BYTES
            && self.incoming.is_none();
        let slot = self.region.response(index);
        is_small.then(|| SmallReply { words: [slot.get(0), slot.get(1), slot.get(2)], len: head.len })
    }

    pub(super) fn read_reply(&mut self, index: u64, head: Head) -> Result<Reply, Violation> {
        let status = u8::try_from(head.extra).ok().and_then(Status::from_wire);
        let Some(status) = status.filter(|status| status.is_single()) else {
            return Err(Violation("a response's status is unknown"));
        };
        let place = Place::from_wire(head.kind);
        if self.incoming.is_some() && place != Some(Place::Stream) {
            return Err(Violation("a response that flowed ended as another kind"));
        }
        let limit = if status == Status::Value { self.max_payload } else { TEXT_BYTES_MAX };
        let slot = self.region.response(index);
        let body = match place {
            Some(Place::Inline) => {
                if usize::from(head.len) > RESPONSE_INLINE_BYTES {
                    return Err(Violation("an inline response is longer than its slot"));
                }
                let mut bytes = [0; 32];
                slot.get_bytes(0, &mut bytes[..RESPONSE_INLINE_BYTES]);
                Encoded::Inline { len: head.len, bytes }
            }
            Some(Place::Span) => {
                let (start, len) = (slot.get(0), slot.get(1));
                let len = self.check_extent(start, len, limit)?;
                if start as usize % ARENA_BYTES + len > ARENA_BYTES {
                    return Err(Violation("a response's span wraps"));
                }
                let element = self.element_of(head, status)?;
                let mut body = Body::with_room(element, len)?;
                body.append(self.region.peer_arena(), start, len);
                self.out_bytes += len as u64;
                self.release(start + len as u64);
                body.finish(element)?
            }
            Some(Place::Stream) => {
                let (start, len) = (slot.get(0), slot.get(1));
                let element = self.element_of(head, status)?;
                self.receive_stream(start, len, limit, element)?
            }
            None => return Err(Violation("a response's place is unknown")),
        };
        Ok(Reply { status, body })
    }

    /// The size of an element, if a response is a row of numbers, else 0.
    fn element_of(&self, head: Head, status: Status) -> Result<u8, Violation> {
        match status {
            Status::Value => Ok(head.len),
            _ if head.len == 0 => Ok(0),
            _ => Err(Violation("an error is no row of numbers")),
        }
    }

    /// Checks a span that a response claims to occupy in the arena of `B`.
    fn check_extent(&self, start: u64, len: u64, limit: usize) -> Result<usize, Violation> {
        self.check_start(start)?;
        if len > ARENA_BYTES as u64 {
            return Err(Violation("a response is longer than the arena"));
        }
        if len > limit as u64 {
            return Err(TOO_LARGE);
        }
        Ok(len as usize)
    }

    /// A response starts where the last one ended, or in the lap after it.
    pub(super) fn check_start(&self, start: u64) -> Result<(), Violation> {
        match start.checked_sub(self.out_tail) {
            Some(skip) if skip < 2 * ARENA_BYTES as u64 && start < u64::MAX / 2 => Ok(()),
            _ => Err(Violation("a response's position is out of range")),
        }
    }

    /// Gives the bytes up to `position` of the arena of `B` back to the worker.
    pub(super) fn release(&mut self, position: u64) {
        self.out_tail = position;
        self.region.a().out_received.0.store(position, Ordering::Release);
        // The worker may be waiting for room.
        self.ring_if_asleep();
    }
}
