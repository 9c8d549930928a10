//! A response that flows through the arena: a long result, or the results of a batch.

use super::Port;
use crate::faults::{Point, point};
use crate::ground::ring::Head;
use crate::ground::sys::SysError;
use crate::memory::layout::{ARENA_BYTES, SPAN_ALIGN};
use crate::protocol::records::{OPEN_END, sized_header};
use crate::protocol::wire::{Place, Status};
use crate::sync::{Ordering, fence};

impl Port {
    /// The batch that is about to be opened is over so soon that whoever sleeps is rung at its end only.
    pub(crate) fn be_quiet(&mut self) {
        self.quiet = true;
    }

    /// Starts a response that flows: the items of a batch, as bare `values` or as records, or a result larger than the
    /// arena.
    pub(crate) fn open_stream(&mut self, index: u64, total_bytes: u64, values: bool) -> u64 {
        self.open_elements(index, total_bytes, values, 0)
    }

    /// As [`open_stream`](Self::open_stream), of numbers of so many bytes.
    pub(super) fn open_elements(
        &mut self,
        index: u64,
        total_bytes: u64,
        values: bool,
        element_bytes: u8,
    ) -> u64 {
        let start = self.stream_start();
        if self.head == self.tail {
            self.tail = start;
        }
        self.head = start;
        let out = &self.region.b().out.0;
        // Edge OUT-OPEN, first half: who sees any of the words below does not see the old tag after them.
        out.tag.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        out.start.store(self.head, Ordering::Relaxed);
        out.sent.store(self.head, Ordering::Relaxed);
        out.total_bytes.store(total_bytes, Ordering::Relaxed);
        out.element_bytes.store(element_bytes.into(), Ordering::Relaxed);
        self.values_end = if values { OPEN_END } else { self.head };
        out.values_end.store(self.values_end, Ordering::Relaxed);
        point(Point::StreamUntagged);
        // Edge OUT-OPEN, second half: the words above before the tag that announces them.
        out.tag.store(index + 1, Ordering::Release);
        self.stream = Some(self.head);
        point(Point::StreamOpened);
        self.head
    }

    /// Where a stream begins that is opened at this moment: an empty ring restarts at its beginning.
    fn stream_start(&mut self) -> u64 {
        self.refresh_tail();
        let align = if self.head == self.tail { ARENA_BYTES } else { SPAN_ALIGN };
        self.head.next_multiple_of(align as u64)
    }

    /// Backs the arena for a stream of about this many bytes that is about to be opened.
    pub(crate) fn reserve_stream(&mut self, bytes: usize) -> Result<(), SysError> {
        let start = self.stream_start() as usize & (ARENA_BYTES - 1);
        // One that goes around the end comes by everywhere.
        self.region.reserve(start.saturating_add(bytes).min(ARENA_BYTES))
    }

    /// The peer's index is read only when the copy of it that is at hand seems to leave no room.
    pub(super) fn refresh_tail(&mut self) {
        self.tail = self.tail.max(self.region.a().out_received.0.load(Ordering::Acquire)).min(self.head);
    }

    /// Adds bytes to the open stream; they become visible with [`commit`](Self::commit), or before if room runs out.
    #[inline]
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        let room = (self.tail + ARENA_BYTES as u64).saturating_sub(self.head) as usize;
        if bytes.len() <= room {
            self.region.arena().copy_in(self.head, bytes);
            self.head += bytes.len() as u64;
        } else {
            self.append_slowly(bytes);
        }
    }

    #[cold]
    fn append_slowly(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (self.tail + ARENA_BYTES as u64).saturating_sub(self.head) as usize;
            if room == 0 {
                self.commit();
                point(Point::PartCommitted);
                let waited = self.wait_for(|port| {
                    port.refresh_tail();
                    (port.tail + ARENA_BYTES as u64 > port.head).then_some(())
                });
                if waited.is_none() {
                    return;
                }
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.region.arena().copy_in(self.head, now);
            self.head += now.len() as u64;
            point(Point::PartCopied);
            bytes = later;
        }
    }

    /// One result of a batch without a length: a bare value, which takes a byte at least, or a record. That in two writes:
    /// put together first, it would be read back in one piece before its parts have left the store buffer, which costs
    /// 5 ns.
    #[inline]
    pub(crate) fn append_value(&mut self, bytes: &[u8]) {
        if self.values_end == OPEN_END {
            let value = if bytes.is_empty() { &[0] } else { bytes };
            self.await_room(value.len());
            return self.append(value);
        }
        self.append(&[Status::Value as u8]);
        point(Point::RecordTorn);
        self.append(bytes);
    }

    /// Waits until so many bytes fit in one piece of the ring: a bare value that went in two could be seen half.
    fn await_room(&mut self, bytes: usize) {
        let fits = |port: &Self| (port.tail + ARENA_BYTES as u64).saturating_sub(port.head) >= bytes as u64;
        if !fits(self) {
            self.commit();
            point(Point::PartCommitted);
            // Given up: what has no room is dropped.
            let _ = self.wait_for(|port| {
                port.refresh_tail();
                fits(port).then_some(())
            });
        }
    }

    /// One record of a batch with a length in front. Bare values end with the first one.
    pub(crate) fn append_sized(&mut self, status: Status, bytes: &[u8]) {
        if self.values_end == OPEN_END {
            self.values_end = self.head;
            // Relaxed: before `sent` goes beyond it, which is edge OUT-SENT.
            self.region.b().out.0.values_end.store(self.head, Ordering::Relaxed);
            point(Point::ValuesEnded);
        }
        self.append(&sized_header(status, bytes.len()));
        point(Point::RecordTorn);
        self.append(bytes);
    }

    /// Makes the stream visible up to here.
    #[inline]
    pub(crate) fn commit(&mut self) {
        // Edge OUT-SENT: the bytes before the position behind them.
        self.region.b().out.0.sent.store(self.head, Ordering::Release);
        point(Point::Committed);
        self.notify_of_item();
    }

    /// Ends a batch: all of it is done, or it was cut. How long it took, as
    /// [`time_code`](crate::protocol::wire::time_code), or 0.
    pub(crate) fn close_stream(&mut self, index: u64, start: u64, status: Status, time_code: u8) {
        self.stream = None;
        self.quiet = false;
        let slot = self.region.response(index);
        slot.set(0, start);
        slot.set(1, self.head - start);
        slot.set(2, self.values_end);
        point(Point::BatchUnpublished);
        self.publish(index, Head { kind: Place::Stream as u8, len: time_code, extra: status as u16 });
        point(Point::BatchPublished);
        self.notify();
    }
}
