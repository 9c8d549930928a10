//! A piece of the open stream that is written without the port.

#![allow(unsafe_code, reason = "values are written in place")]

use std::marker::PhantomData;
use std::ptr::NonNull;

use super::Port;
use crate::faults::{Point, point};
use crate::ground::barrier;
use crate::ground::prefetch;
use crate::ground::ring::RequestSlot;
use crate::memory::codec::{self, Payload};
use crate::memory::layout::ARENA_BYTES;
use crate::protocol::records::{OPEN_END, value_bytes};
use crate::sync::{AtomicU64, Ordering};

/// A contiguous piece of the open stream, free and backed by memory, for bare values. It spares the loop over a
/// batch's items everything that is the same for all of them.
///
/// * WINDOW-1: from `next` on there are `left` times [`value_bytes`] bytes of the arena of `B`, none of which have been
///   published, and nobody else writes there.
/// * WINDOW-2: the words lie in the region, which outlives what runs in this worker and consists there of atomics
///   (REGION-1, REGION-2).
#[derive(Debug)]
pub(crate) struct Window<'a, R> {
    next: NonNull<u8>,
    left: usize,
    position: u64,
    sent: &'a AtomicU64,
    wake: &'a AtomicU64,
    request: &'a RequestSlot,
    /// The request's head while nobody marks it.
    head: u64,
    rung: u64,
    light: barrier::Light,
    _values: PhantomData<fn(R)>,
}

impl<R: Payload> Window<'_, R> {
    /// How many values fit.
    pub(crate) fn room(&self) -> usize {
        self.left
    }

    /// Writes and publishes the value of each input, until the window is full, somebody wants to be rung, the request was
    /// cancelled, or there is no value.
    ///
    /// One loop over what can be kept in registers: this is all that an item costs beside its function.
    #[inline(always)]
    pub(crate) fn run<I, E>(
        self,
        inputs: impl Iterator<Item = I>,
        mut value_of: impl FnMut(I) -> Result<R, E>,
    ) -> Result<(), E> {
        let Some(width) = value_bytes::<R>() else { return Ok(()) };
        let in_line = (prefetch::LINE_BYTES / width).max(1);
        let mut inputs = inputs.take(self.left);
        let (mut next, mut position) = (self.next, self.position);
        // Line by line, of which the next ones are asked for.
        loop {
            prefetch::for_writing_behind(next.as_ptr());
            for _ in 0..in_line {
                let Some(input) = inputs.next() else { return Ok(()) };
                point(Point::BeforeFunction);
                let value = value_of(input)?;
                point(Point::AfterFunction);
                let Some(bytes) = codec::plain_bytes(&value).filter(|bytes| bytes.len() <= width) else {
                    return Ok(());
                };
                // SAFETY: WINDOW-1: this is done `left` times at most, and `bytes` is memory of this process alone.
                unsafe { next.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
                // SAFETY: as above.
                next = unsafe { next.add(width) };
                position += width as u64;
                point(Point::RecordUncommitted);
                // Edge OUT-SENT: the bytes before the position behind them.
                self.sent.store(position, Ordering::Release);
                point(Point::Committed);
                // Edges SLEEP and CUT: the publication before the looks.
                self.light.barrier();
                if self.wake.load(Ordering::Relaxed) != self.rung || self.request.word() != self.head {
                    point(Point::RecordDone);
                    return Ok(());
                }
                point(Point::RecordDone);
            }
        }
    }
}

impl Port {
    /// A piece of the open stream for up to `values` bare values, which is written without the port. `None`: there is no
    /// room for one, or records have begun.
    ///
    /// Nothing else is appended until [`leave_window`](Self::leave_window).
    pub(crate) fn window<R: Payload>(&mut self, index: u64, values: usize) -> Option<Window<'static, R>> {
        let value_bytes = value_bytes::<R>().filter(|_| self.values_end == OPEN_END)?;
        let room = |port: &Self| (port.tail + ARENA_BYTES as u64).saturating_sub(port.head) as usize;
        if room(self) / value_bytes < values {
            self.refresh_tail();
        }
        // The arena's size is a multiple of a value's, so none goes around the end.
        let values = (room(self) / value_bytes).min(values);
        let (next, bytes) = self.region.arena().piece(self.head, values * value_bytes);
        let start = self.head as usize & (ARENA_BYTES - 1);
        if bytes == 0 || self.region.reserve(start + bytes).is_err() {
            return None;
        }
        let out = &self.region.b().out.0;
        // In a quiet batch, a word that stays what it is.
        let wake = if self.quiet { &raw const out.start } else { &raw const self.region.a().wake.0 };
        let rung = if self.quiet { out.start.load(Ordering::Relaxed) } else { self.rung };
        let sent = &raw const out.sent;
        let request = std::ptr::from_ref(self.region.request(index));
        // SAFETY: WINDOW-2.
        let request: &RequestSlot = unsafe { &*request };
        // One that is marked already is looked at after the first value.
        let head = request.word();
        let head = if self.ends_early(index) { !head } else { head };
        Some(Window {
            next,
            left: bytes / value_bytes,
            position: self.head,
            // SAFETY: WINDOW-2.
            sent: unsafe { &*sent },
            // SAFETY: WINDOW-2.
            wake: unsafe { &*wake },
            request,
            head,
            rung,
            light: barrier::Light::get(),
            _values: PhantomData,
        })
    }

    /// Goes on behind what was written into a window for `values` values; how many there are.
    pub(crate) fn leave_window<R: Payload>(&mut self, values: usize) -> usize {
        let value_bytes = value_bytes::<R>().unwrap_or(1) as u64;
        // This side's own word, which nobody but a stray write has changed.
        let sent = self.region.b().out.0.sent.load(Ordering::Relaxed);
        let written = (sent.wrapping_sub(self.head) / value_bytes).min(values as u64);
        self.head += written * value_bytes;
        written as usize
    }
}
