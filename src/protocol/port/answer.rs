//! Responses: in their slots, as spans, or in one flow.

use super::Port;
use crate::faults::{Point, point};
use crate::ground::prefetch;
use crate::ground::ring::{Head, RESPONSE_WORDS};
use crate::ground::sys::clock;
use crate::memory::arena::place;
use crate::memory::codec::ElementsRef;
use crate::memory::layout::{ARENA_BYTES, SPAN_ALIGN};
use crate::protocol::wire::{FLOW_MIN_BYTES, PART_BYTES, Place, RESPONSE_INLINE_BYTES, Status};
use crate::sync::Ordering;

impl Port {
    /// From here on requests are stamped; the master has backed the memory for that.
    pub(crate) fn stamp_requests(&mut self) {
        self.stamps = true;
    }

    /// Request `index` is about to run. Only where requests are stamped.
    pub(crate) fn stamp_start(&self, index: u64) {
        // Relaxed: a figure to show while it runs; later ordered by PUBLISH.
        self.region.stamps(index).started_ns.store(clock::now_ns(), Ordering::Relaxed);
    }

    /// Makes a response visible. All go through here.
    #[inline]
    pub(super) fn publish(&mut self, index: u64, head: Head) {
        if self.stamps {
            self.stamp_answer(index);
        }
        if self.first_since_nap {
            self.foretell_nap();
        }
        self.region.response(index).publish(index, head);
    }

    #[cold]
    fn stamp_answer(&self, index: u64) {
        self.region.stamps(index).answered_ns.store(clock::now_ns(), Ordering::Relaxed);
    }

    /// Answers request `index` with a value that fits its slot, given as words.
    #[inline]
    pub(crate) fn answer_small(&mut self, index: u64, len: u8, words: [u64; RESPONSE_WORDS]) {
        let slot = self.region.response(index);
        for (at, word) in words.into_iter().enumerate().take(usize::from(len).div_ceil(8)) {
            slot.set(at, word);
        }
        point(Point::InlineWritten);
        self.publish(index, Head { kind: Place::Inline as u8, len, extra: Status::Value as u16 });
        point(Point::InlinePublished);
        prefetch::for_writing(self.region.response(index + prefetch::SLOTS_AHEAD));
        self.notify();
        point(Point::Answered);
    }

    /// Answers request `index`: inline, as a span, or streamed.
    pub(crate) fn answer(&mut self, index: u64, status: Status, bytes: &[u8]) {
        let slot_head = |place: Place, len| Head { kind: place as u8, len, extra: status as u16 };
        if bytes.len() <= RESPONSE_INLINE_BYTES {
            let slot = self.region.response(index);
            slot.set_bytes(0, bytes);
            point(Point::InlineWritten);
            self.publish(index, slot_head(Place::Inline, bytes.len() as u8));
            point(Point::InlinePublished);
        } else if bytes.len() <= ARENA_BYTES {
            if !self.answer_span(index, slot_head(Place::Span, 0), bytes) {
                return self.answer_no_memory(index);
            }
        } else {
            if self.region.reserve(ARENA_BYTES).is_err() {
                return self.answer_no_memory(index);
            }
            let start = self.open_stream(index, bytes.len() as u64, false);
            self.append(bytes);
            self.commit();
            self.end_stream(index, slot_head(Place::Stream, 0), start);
        }
        self.notify();
        point(Point::Answered);
    }

    /// Answers request `index` with a row of numbers, which is copied straight from where it is: as a span, or in parts that
    /// the master copies out while the next ones come.
    pub(crate) fn answer_elements(&mut self, index: u64, elements: &ElementsRef<'_>) {
        let bytes = elements.bytes();
        let head =
            |place: Place| Head { kind: place as u8, len: elements.size(), extra: Status::Value as u16 };
        if bytes.len() < FLOW_MIN_BYTES {
            if !self.answer_span(index, head(Place::Span), bytes) {
                return self.answer_no_memory(index);
            }
        } else {
            if self.reserve_stream(bytes.len()).is_err() {
                return self.answer_no_memory(index);
            }
            let start = self.open_elements(index, bytes.len() as u64, false, elements.size());
            for part in bytes.chunks(PART_BYTES) {
                self.append(part);
                self.commit();
            }
            self.end_stream(index, head(Place::Stream), start);
        }
        self.notify();
        point(Point::Answered);
    }

    /// Publishes a response that lies in one piece in the arena. `false`: there is no memory to back it.
    fn answer_span(&mut self, index: u64, head: Head, bytes: &[u8]) -> bool {
        let Some(start) = self.room_for_span(bytes.len()) else { return false };
        point(Point::SpanReserved);
        self.region.arena().copy_in(start, bytes);
        let slot = self.region.response(index);
        slot.set(0, start);
        slot.set(1, bytes.len() as u64);
        point(Point::SpanCopied);
        self.publish(index, head);
        point(Point::SpanPublished);
        true
    }

    /// Publishes a response that has flowed through the arena from `start` on.
    fn end_stream(&mut self, index: u64, head: Head, start: u64) {
        self.stream = None;
        let slot = self.region.response(index);
        slot.set(0, start);
        slot.set(1, self.head - start);
        point(Point::StreamUnpublished);
        self.publish(index, head);
        point(Point::StreamPublished);
    }

    fn answer_no_memory(&mut self, index: u64) {
        self.publish(index, Head { kind: Place::Inline as u8, len: 0, extra: Status::Memory as u16 });
        self.notify();
    }

    /// Waits for contiguous room in the arena of `B`. `None`: there is no memory to back it, or this worker was given up.
    fn room_for_span(&mut self, len: usize) -> Option<u64> {
        let start = self.wait_for(|port| {
            let fits = |tail, head| place(tail, head, ARENA_BYTES as u64, len as u64, SPAN_ALIGN as u64);
            fits(port.tail, port.head).filter(|_| port.head != port.tail).or_else(|| {
                port.refresh_tail();
                fits(port.tail, port.head)
            })
        })?;
        let at = start as usize & (ARENA_BYTES - 1);
        self.region.reserve(at + len).ok()?;
        if self.head == self.tail {
            self.tail = start;
        }
        self.head = start + len as u64;
        Some(start)
    }
}
