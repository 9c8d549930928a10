//! Responses that flow through the arena: long results, and the results of batches.

use std::num::NonZeroU32;

use super::{Entry, Form, Incoming, Lane, Sink, TOO_LARGE, Violation};
use crate::ground::ring::Head;
use crate::memory::arena::ArenaReader;
use crate::memory::codec::{AlignedBytes, Elements, Encoded};
use crate::memory::layout::{ARENA_BYTES, slot_of};
use crate::protocol::records::{OPEN_END, SIZED_HEADER_BYTES, TEXT_BYTES_MAX};
use crate::protocol::wire::{CANCELLED, Place, SHORTENED, Status};
use crate::sync::{Ordering, fence};

/// A worker's word for a result's size is taken up to here.
const TRUSTED_HINT_BYTES: usize = 256 << 20;

/// The bytes of a response, in the memory that they will stay in.
#[derive(Debug)]
pub(super) enum Body {
    Archive(AlignedBytes),
    Elements(Elements),
}

impl Body {
    /// Room for so many bytes; `element` as in a response's head.
    pub(super) fn with_room(element: u8, bytes: usize) -> Result<Self, Violation> {
        match element {
            0 => Ok(Self::Archive(AlignedBytes::with_capacity(bytes))),
            _ => Elements::with_room(element, bytes)
                .map(Self::Elements)
                .ok_or(Violation("a response's elements have an impossible size")),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Archive(bytes) => bytes.len(),
            Self::Elements(elements) => elements.len(),
        }
    }

    pub(super) fn append(&mut self, arena: ArenaReader<'_>, position: u64, len: usize) {
        match self {
            Self::Archive(bytes) => arena.append_to(position, len, bytes),
            Self::Elements(elements) => arena.append_to(position, len, elements),
        }
    }

    /// What it is, if it is what its head says: see [`with_room`](Self::with_room).
    pub(super) fn finish(self, element: u8) -> Result<Encoded, Violation> {
        match self {
            Self::Archive(bytes) if element == 0 => Ok(Encoded::Heap(bytes)),
            Self::Elements(elements) if element == elements.size() && elements.is_whole() => {
                Ok(Encoded::Elements(elements))
            }
            _ => Err(Violation("a response's elements are not what they should be")),
        }
    }
}

impl<T> Lane<T> {
    /// The last part of a result that is larger than the arena.
    pub(super) fn receive_stream(
        &mut self,
        start: u64,
        len: u64,
        limit: usize,
        element: u8,
    ) -> Result<Encoded, Violation> {
        if len > limit as u64 {
            return Err(TOO_LARGE);
        }
        let incoming = match self.incoming.take() {
            Some(incoming) => incoming,
            None => self.open_incoming(start, len, element)?,
        };
        let Some(end) = start.checked_add(len) else { return Err(Violation("a response is too long")) };
        let Incoming { mut at, mut body, .. } = incoming;
        self.copy_stream(&mut at, end, |arena, at, n| body.append(arena, at, n))?;
        if body.len() as u64 != len {
            return Err(Violation("a streamed response has the wrong length"));
        }
        body.finish(element)
    }

    fn open_incoming(&mut self, start: u64, total: u64, element: u8) -> Result<Incoming, Violation> {
        self.check_start(start)?;
        if total > self.max_payload as u64 {
            return Err(TOO_LARGE);
        }
        // The hint is bounded by `max_payload`, and what is not touched takes no memory; still a worker that lies must
        // not be able to make an allocation fail.
        let body = Body::with_room(element, (total as usize).min(TRUSTED_HINT_BYTES))?;
        Ok(Incoming { start, at: start, values_end: OPEN_END, body })
    }

    /// Copies what a stream holds between `at` and `sent`, and gives the room back.
    fn copy_stream(
        &mut self,
        at: &mut u64,
        sent: u64,
        copy: impl FnOnce(ArenaReader<'_>, u64, usize),
    ) -> Result<(), Violation> {
        match sent.checked_sub(*at) {
            Some(0) => return Ok(()),
            Some(n) if n <= ARENA_BYTES as u64 => {
                copy(self.region.peer_arena(), *at, n as usize);
                self.out_bytes += n;
            }
            _ => return Err(Violation("a stream's position is out of range")),
        }
        *at = sent;
        self.release(sent);
        Ok(())
    }

    /// The end of a batch: its last records.
    pub(super) fn finish_batch(
        &mut self,
        index: u64,
        head: Head,
        sink: &mut impl Sink<T>,
    ) -> Result<(), Violation> {
        let stopped = self.entries[slot_of(index)].as_ref().is_some_and(|entry| entry.stopped);
        if stopped && head.extra == Status::Skipped as u16 {
            // The worker was stopped between its claim and the first item.
            self.cut_batch(index, sink);
            return Ok(());
        }
        let cut = head.extra == Status::BatchCut as u16;
        if cut && !self.is_marked(index, CANCELLED | SHORTENED) {
            // Sent again, it would come back for ever.
            return Err(Violation("a batch was cut that nobody wanted cut"));
        }
        if (cut || head.extra == Status::BatchDone as u16) && head.kind == Place::Stream as u8 {
            let slot = self.region.response(index);
            let (start, len, values_end) = (slot.get(0), slot.get(1), slot.get(2));
            let Some(end) = start.checked_add(len) else { return Err(Violation("a batch is too long")) };
            // How long it took, if that was wanted.
            let time_code = head.len;
            let last = (!cut).then_some(time_code);
            self.deliver_results(index, start, end, values_end, last, sink)?;
            self.incoming = None;
            if cut {
                self.cut_batch(index, sink);
            } else if let Some(token) = self.retire() {
                sink.batch_done(token, time_code);
            }
            return Ok(());
        }
        // The whole batch failed for one cause: skipped, an unknown function, input that is not valid.
        if self.incoming.is_some() {
            return Err(Violation("a batch ended in the middle"));
        }
        let reply = self.read_reply(index, head)?;
        if reply.status == Status::Value {
            return Err(Violation("a batch ended with a single value"));
        }
        if let Some(token) = self.retire() {
            sink.reply(token, reply);
        }
        Ok(())
    }

    fn cut_batch(&mut self, index: u64, sink: &mut impl Sink<T>) {
        let parcel = self.parcel(index);
        if let Some(token) = self.retire() {
            sink.cut(token, parcel);
        }
    }

    fn deliver_results(
        &mut self,
        index: u64,
        start: u64,
        sent: u64,
        values_end: u64,
        last: Option<u8>,
        sink: &mut impl Sink<T>,
    ) -> Result<(), Violation> {
        let mut incoming = match self.incoming.take() {
            Some(incoming) => incoming,
            None => self.open_incoming(start, 0, 0)?,
        };
        let Some(mut entry) = self.entries[slot_of(index)].take() else {
            return Err(Violation("an entry is missing"));
        };
        // Nobody reads the results here, so their number is unknown; but not how much an honest worker could send.
        let item_max = self.max_payload.max(TEXT_BYTES_MAX) as u64 + SIZED_HEADER_BYTES as u64;
        let batch_max = item_max.saturating_mul(entry.batch.map_or(1, NonZeroU32::get).into());
        let known = incoming.values_end;
        let copied = if sent.saturating_sub(incoming.start) > batch_max {
            Err(TOO_LARGE)
        } else if known != values_end && (known != OPEN_END || values_end < incoming.at) {
            Err(Violation("a batch's values end where they cannot"))
        } else {
            incoming.values_end = values_end;
            self.copy_results(&mut entry, &mut incoming, sent, last, sink)
        };
        self.entries[slot_of(index)] = Some(entry);
        self.incoming = Some(incoming);
        copied
    }

    /// The values that are new, then the records. If these are the `last` ones, and new values and nothing else, the batch is
    /// answered with them.
    #[inline]
    fn copy_results(
        &mut self,
        entry: &mut Entry<T>,
        incoming: &mut Incoming,
        sent: u64,
        last: Option<u8>,
        sink: &mut impl Sink<T>,
    ) -> Result<(), Violation> {
        let last = last.filter(|_| sent <= incoming.values_end);
        let mut copy = |lane: &mut Self, at: &mut u64, form, to| {
            lane.copy_stream(at, to, |arena, at, len| match (&mut entry.token, last) {
                (Some(token), None) => sink.results(token, form, arena, at, len),
                (token, Some(time_code)) => {
                    let token = token.take();
                    token.into_iter().for_each(|token| {
                        sink.last_results(token, form, (arena, at, len), time_code);
                    });
                }
                (None, None) => {}
            })
        };
        let values_end = incoming.values_end;
        if incoming.at < values_end {
            // What lies behind `sent` is out of range, here as below.
            copy(self, &mut incoming.at, Form::Values, sent.min(values_end))?;
        }
        if incoming.at == sent { Ok(()) } else { copy(self, &mut incoming.at, Form::Records, sent) }
    }

    /// Copies the part of the oldest response that is there, if it flows.
    pub(super) fn receive_open_stream(&mut self, sink: &mut impl Sink<T>) -> Result<(), Violation> {
        let index = self.answered;
        if index == self.sent {
            return Ok(());
        }
        let out = &self.region.b().out.0;
        if out.tag.load(Ordering::Acquire) != index + 1 {
            return Ok(());
        }
        let (start, sent) = (out.start.load(Ordering::Relaxed), out.sent.load(Ordering::Acquire));
        let (total, element) =
            (out.total_bytes.load(Ordering::Relaxed), out.element_bytes.load(Ordering::Relaxed));
        // After `sent`, which does not go beyond it before it is there.
        let values_end = out.values_end.load(Ordering::Relaxed);
        // Edge OUT-OPEN: if the tag is still the same, the words belong to it. If not, this response is complete and
        // the next look finds it in its slot.
        fence(Ordering::Acquire);
        if out.tag.load(Ordering::Relaxed) != index + 1 {
            return Ok(());
        }
        if self.entries[slot_of(index)].as_ref().is_some_and(|e| e.batch.is_some()) {
            return self.deliver_results(index, start, sent, values_end, None, sink);
        }
        let mut incoming = match self.incoming.take() {
            Some(incoming) => incoming,
            None => self.open_incoming(start, total, u8::try_from(element).unwrap_or(u8::MAX))?,
        };
        let mut body = incoming.body;
        self.copy_stream(&mut incoming.at, sent, |arena, at, n| body.append(arena, at, n))?;
        if body.len() > self.max_payload {
            return Err(TOO_LARGE);
        }
        incoming.body = body;
        self.incoming = Some(incoming);
        Ok(())
    }
}
