//! Requests on their way out: in their slots, in the arena, or flowing through it.

use std::num::NonZeroU32;

use super::{Batch, Entry, Lane, Outgoing, Parcel, Refusal, SmallRequest, Violation};
use crate::caller::Caller;
use crate::ground::prefetch::{self, Ahead, SLOTS_AHEAD as AHEAD};
use crate::ground::ring::Head;
use crate::memory::arena::place;
use crate::memory::codec::{ElementsRef, Encoded};
use crate::memory::layout::{ARENA_BYTES, RING_SLOTS, SPAN_ALIGN, slot_of};
use crate::protocol::code::CodeId;
use crate::protocol::wire::{BATCH, CALLER, FLOW_MIN_BYTES, FLOWS, INLINE_WORD, PART_BYTES, Place, TIMED};
use crate::sync::Ordering;

impl<T> Lane<T> {
    /// Leaves word of the caller beside request `index`; its flag. Without memory for that, nothing travels.
    #[cold]
    fn write_caller(&mut self, index: u64, caller: Caller) -> u16 {
        self.has_callers = self.has_callers || self.region.reserve_callers().is_ok();
        if !self.has_callers {
            return 0;
        }
        for (to, word) in self.region.callers(index).0.iter().zip(caller.to_words()) {
            to.store(word, Ordering::Relaxed);
        }
        CALLER
    }

    /// Publishes a request; its index.
    #[inline]
    pub(crate) fn push(&mut self, token: T, parcel: Parcel) -> Result<u64, (T, Parcel, Refusal)> {
        if self.in_flight() >= RING_SLOTS {
            return Err((token, parcel, Refusal::Full));
        }
        let index = self.sent;
        let slot = self.region.request(index);
        let head = match &parcel.input {
            Encoded::Inline { len, bytes } => {
                slot.set_bytes(INLINE_WORD, &bytes[..usize::from(*len)]);
                Head::new(Place::Inline as u8, *len)
            }
            Encoded::Heap(_) | Encoded::Elements(_) => match self.place_payload(index, parcel.input) {
                Ok(head) => {
                    return Ok(self.publish(token, parcel.code, parcel.batch, head));
                }
                Err((input, refusal)) => return Err((token, Parcel { input, ..parcel }, refusal)),
            },
        };
        Ok(self.publish(token, parcel.code, parcel.batch, head))
    }

    /// As [`push`](Self::push), of a request that fits a slot. `Err`: the ring is full.
    #[inline]
    pub(crate) fn push_small(&mut self, token: T, request: &SmallRequest) -> Result<u64, T> {
        if self.in_flight() >= RING_SLOTS {
            return Err(token);
        }
        let index = self.sent;
        self.enter(token, index, None);
        // Everything that the slot gets comes in a row: its line may be taken away between two stores, since the worker looks
        // at it all the time, and stores wait for each other.
        let slot = self.region.request(index);
        let [low, high] = request.words;
        slot.set(INLINE_WORD, low);
        if request.len > 8 {
            slot.set(INLINE_WORD + 1, high);
        }
        slot.set(0, request.code.place);
        slot.set(1, request.code.types);
        slot.publish(index, Head::new(Place::Inline as u8, request.len as u8));
        self.sent += 1;
        prefetch::for_writing(self.region.request(index + AHEAD));
        Ok(index)
    }

    /// Notes what is about to be published.
    #[inline]
    fn enter(&mut self, token: T, index: u64, batch: Option<Batch>) {
        self.entries[slot_of(index)] = Some(Entry {
            token: Some(token),
            taken: false,
            span_end: self.head,
            batch: batch.and_then(|batch| NonZeroU32::new(batch.items)),
            quiet: batch.is_some_and(|batch| batch.timed),
            stopped: false,
        });
    }

    /// Publishes a request whose input is a row of numbers, which is copied straight from where it is. The token comes back
    /// if there is no room, or no memory, for it at once.
    ///
    /// A long row is published first and copied then (edge IN-SENT): the worker is woken, and takes the parts as they come.
    pub(crate) fn push_elements(
        &mut self,
        token: T,
        code: CodeId,
        elements: &ElementsRef<'_>,
    ) -> Result<u64, T> {
        let (bytes, len) = (elements.bytes(), elements.archive_bytes());
        let start = place(self.tail, self.head, ARENA_BYTES as u64, len as u64, SPAN_ALIGN as u64);
        let Some(start) = start.filter(|_| self.has_room() && self.outgoing.is_none()) else {
            return Err(token);
        };
        // Where the memory is wanting, the heap's way says so.
        if self.region.reserve(start as usize % ARENA_BYTES + len).is_err() {
            return Err(token);
        }
        self.in_bytes += len as u64;
        let slot = self.region.request(self.sent);
        slot.set(INLINE_WORD, start);
        slot.set(INLINE_WORD + 1, len as u64);
        slot.set(INLINE_WORD + 2, bytes.len() as u64);
        if self.head == self.tail {
            self.tail = start;
        }
        self.head = start + len as u64;
        let head = Head::new(Place::Span as u8, 0);
        if bytes.len() < FLOW_MIN_BYTES {
            self.copy_tail(start, elements);
            self.region.arena().copy_in(start, bytes);
            return Ok(self.publish(token, code, None, head));
        }
        self.region.a().in_sent.0.store(start, Ordering::Relaxed);
        let index = self.publish(token, code, None, Head { extra: FLOWS, ..head });
        self.ring_if_asleep();
        self.copy_tail(start, elements);
        let mut at = start;
        for part in bytes.chunks(PART_BYTES) {
            self.region.arena().copy_in(at, part);
            at += part.len() as u64;
            // Edge IN-SENT: the bytes before the position behind them. The last one covers the tail.
            let sent = if at == start + bytes.len() as u64 { self.head } else { at };
            self.region.a().in_sent.0.store(sent, Ordering::Release);
            self.ring_if_asleep();
        }
        Ok(index)
    }

    /// Publishes a batch whose payload is copied from where it is, into the arena. The token comes back if there is no room, or
    /// no memory, for it at once.
    pub(crate) fn push_batch(
        &mut self,
        token: T,
        code: CodeId,
        batch: Batch,
        payload: &[u8],
    ) -> Result<u64, T> {
        let len = payload.len();
        let start = place(self.tail, self.head, ARENA_BYTES as u64, len as u64, SPAN_ALIGN as u64);
        let Some(start) = start.filter(|_| self.has_room() && self.outgoing.is_none()) else {
            return Err(token);
        };
        // Where the memory is wanting, the heap's way says so.
        if self.region.reserve(start as usize % ARENA_BYTES + len).is_err() {
            return Err(token);
        }
        let slot = self.region.request(self.sent);
        slot.set(INLINE_WORD, start);
        slot.set(INLINE_WORD + 1, len as u64);
        if self.head == self.tail {
            self.tail = start;
        }
        self.head = start + len as u64;
        self.region.arena().copy_in(start, payload);
        self.in_bytes += len as u64;
        Ok(self.publish(token, code, Some(batch), Head::new(Place::Span as u8, 0)))
    }

    /// Where the next batch is likely to go, and what of the results is likely to be read next.
    pub(crate) fn ahead(&self) -> Ahead {
        let write = self.region.arena().piece(self.head.next_multiple_of(SPAN_ALIGN as u64), 0).0;
        Ahead::new(write.as_ptr(), self.region.peer_arena().address(self.out_tail))
    }

    /// What follows the elements in their archive.
    fn copy_tail(&self, start: u64, elements: &ElementsRef<'_>) {
        let (skip, tail) = elements.tail();
        self.region.arena().copy_in(start + elements.bytes().len() as u64, &tail[skip..]);
    }

    #[inline]
    fn publish(&mut self, token: T, code: CodeId, batch: Option<Batch>, mut head: Head) -> u64 {
        let index = self.sent;
        self.enter(token, index, batch);
        let slot = self.region.request(index);
        slot.set(0, code.place);
        slot.set(1, code.types);
        if let Some(Batch { items, done, timed }) = batch {
            slot.set(2, u64::from(items) | u64::from(done) << 32);
            head.extra |= if timed { BATCH | TIMED } else { BATCH };
        }
        if let Some(caller) = self.caller.take() {
            head.extra |= self.write_caller(index, caller);
        }
        self.region.request(index).publish(index, head);
        self.sent += 1;
        prefetch::for_writing(self.region.request(index + AHEAD));
        index
    }

    /// Puts a payload that does not fit the slot into the arena, or starts to stream it.
    fn place_payload(&mut self, index: u64, input: Encoded) -> Result<Head, (Encoded, Refusal)> {
        let bytes = input.into_aligned();
        if self.outgoing.is_some() {
            return Err((Encoded::Heap(bytes), Refusal::Full));
        }
        let len = bytes.len();
        let (start, place) = if len > ARENA_BYTES {
            (self.head.next_multiple_of(ARENA_BYTES as u64), Place::Stream)
        } else {
            match place(self.tail, self.head, ARENA_BYTES as u64, len as u64, SPAN_ALIGN as u64) {
                Some(start) => (start, Place::Span),
                None => return Err((Encoded::Heap(bytes), Refusal::Full)),
            }
        };
        let end = if place == Place::Stream { ARENA_BYTES } else { start as usize % ARENA_BYTES + len };
        if let Err(error) = self.region.reserve(end) {
            return Err((Encoded::Heap(bytes), Refusal::Memory(error)));
        }
        self.in_bytes += len as u64;
        let slot = self.region.request(index);
        slot.set(INLINE_WORD, start);
        slot.set(INLINE_WORD + 1, len as u64);
        if self.head == self.tail {
            self.tail = start;
        }
        self.head = start + len as u64;
        if place == Place::Stream {
            self.region.a().in_sent.0.store(start, Ordering::Relaxed);
            self.outgoing = Some(Outgoing { index, start, bytes });
        } else {
            self.region.arena().copy_in(start, &bytes);
        }
        Ok(Head::new(place as u8, 0))
    }

    /// Whether the whole arena of `A` is this request's: the worker has claimed it, and all before it are over. The worker has answered
    /// them, which has been seen, or they were taken back; what they have in the arena is not read any more.
    pub(super) fn has_arena(&self, index: u64) -> bool {
        let is_over = |before| self.entries[slot_of(before)].as_ref().is_none_or(|entry| entry.taken);
        (self.answered..index).all(is_over) && self.region.b().claim.0.load().count > index
    }

    /// Fills the arena of `A` with the next part of a long request, once it is that one's.
    pub(super) fn send_outgoing(&mut self) -> Result<(), Violation> {
        let Some(outgoing) = &self.outgoing else { return Ok(()) };
        if !self.has_arena(outgoing.index) {
            return Ok(());
        }
        let sent = self.region.a().in_sent.0.load(Ordering::Relaxed);
        let received = self.region.b().in_received.0.load(Ordering::Acquire);
        // The word keeps its value from an earlier stream until the worker opens this one.
        let received = received.max(outgoing.start);
        let room = match sent.checked_sub(received) {
            Some(unread) if unread <= ARENA_BYTES as u64 => ARENA_BYTES - unread as usize,
            // Beyond what was sent, or gone back.
            _ => return Err(Violation("a request's position is out of range")),
        };
        let done = (sent - outgoing.start) as usize;
        let part = &outgoing.bytes[done..];
        let part = &part[..part.len().min(room)];
        if !part.is_empty() {
            self.region.arena().copy_in(sent, part);
            self.region.a().in_sent.0.store(sent + part.len() as u64, Ordering::Release);
            self.ring_if_asleep();
        }
        Ok(())
    }
}
