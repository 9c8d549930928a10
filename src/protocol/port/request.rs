//! A claimed request and its bytes: in place, or copied together as they come.

#![allow(unsafe_code, reason = "requests are read in place")]

use super::{Port, given_up};
use crate::faults::{Point, point};
use crate::ground::ring::Head;
use crate::ground::sys::SysError;
use crate::memory::codec::{AlignedBytes, Elements};
use crate::protocol::code::CodeId;
use crate::protocol::wire::{BATCH, CANCELLED, FLOWS, INLINE_WORD, Place, Status, TIMED};
use crate::sync::Ordering;
#[cfg(not(target_arch = "x86_64"))]
use crate::sync::fence;

/// A request that the worker has claimed. It stays where it is and is filled in field by field: a core that reads a copy which
/// it has just put together from pieces of another size waits for its own stores.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) index: u64,
    pub(crate) code: CodeId,
    /// Items and how many of them are done already.
    pub(crate) batch: Option<(u32, u32)>,
    /// Whether to say how long the batch took; of a batch only.
    pub(crate) timed: bool,
    place: Place,
    len: usize,
    position: u64,
    /// The bytes of its elements, if it may still be on its way: see [`FLOWS`].
    flowing: Option<usize>,
    /// Whether there are words about its caller.
    #[cfg(feature = "tracing")]
    has_caller: bool,
}

impl Request {
    /// How many tasks it is: the items of a batch that are left to do.
    pub(crate) fn tasks(&self) -> u64 {
        self.batch.map_or(1, |(items, done)| u64::from(items.saturating_sub(done)))
    }

    /// Whether it is a row of numbers that may still be on its way.
    pub(crate) fn flows(&self) -> bool {
        self.flowing.is_some()
    }
}

/// The bytes of a request: in place, or copied together from a stream.
#[derive(Debug)]
pub(crate) enum Input<'a> {
    InPlace(&'a [u8]),
    Streamed(AlignedBytes),
}

impl std::ops::Deref for Input<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::InPlace(bytes) => bytes,
            Self::Streamed(bytes) => bytes,
        }
    }
}

impl Port {
    /// Reads a claimed request. `false`: it was cancelled before it started, and is answered.
    #[inline]
    pub(super) fn open(&mut self, index: u64, head: Head, request: &mut Request) -> bool {
        // The claim is a full barrier: either this load sees the mark, or the master, which marks, fences and then
        // reads the claim word, sees that the request had started (edge CANCEL). On x86 a locked instruction is that by
        // itself; the language promises nothing about a plain load after it.
        #[cfg(not(target_arch = "x86_64"))]
        fence(Ordering::SeqCst);
        let slot = self.region.request(index);
        let head = slot.poll(index).unwrap_or(head);
        if head.extra & CANCELLED != 0 {
            self.answer(index, Status::Skipped, &[]);
            return false;
        }
        request.index = index;
        request.code.place = slot.get(0);
        request.code.types = slot.get(1);
        request.place = Place::from_wire(head.kind).unwrap_or(Place::Inline);
        request.len = usize::from(head.len);
        request.flowing = None;
        request.batch = None;
        if request.place != Place::Inline {
            request.position = slot.get(INLINE_WORD);
            request.len = slot.get(INLINE_WORD + 1) as usize;
            if request.place == Place::Span && head.extra & FLOWS != 0 {
                request.flowing = Some(slot.get(INLINE_WORD + 2) as usize);
            }
        }
        if head.extra & BATCH != 0 {
            let items = slot.get(2);
            request.batch = Some((items as u32, (items >> 32) as u32));
            request.timed = head.extra & TIMED != 0;
        }
        #[cfg(feature = "tracing")]
        {
            request.has_caller = head.extra & crate::protocol::wire::CALLER != 0;
        }
        true
    }

    /// The bytes of the request that is running, all of them.
    #[inline]
    pub(crate) fn input(&mut self, request: &Request) -> Result<Input<'static>, SysError> {
        match request.place {
            // SAFETY: the master leaves a slot alone until its request is answered, and the slice is used only
            // before that; the region outlives what runs in this worker.
            Place::Inline => Ok(Input::InPlace(unsafe { self.static_inline(request) })),
            Place::Span => {
                if request.flows() {
                    self.await_span(request).ok_or_else(given_up)?;
                }
                // SAFETY: the same holds for spans in `A`, which only the master writes.
                let span = unsafe { self.region.peer_arena().span(request.position, request.len) };
                let span = span.ok_or_else(|| SysError::new("span", std::io::ErrorKind::InvalidData))?;
                // SAFETY: as above; the region outlives what runs in this worker.
                Ok(Input::InPlace(unsafe { std::slice::from_raw_parts(span.as_ptr(), span.len()) }))
            }
            Place::Stream => self.receive(request).map(Input::Streamed).ok_or_else(given_up),
        }
    }

    /// The words about who has submitted a request, if there are any.
    #[cfg(feature = "tracing")]
    pub(crate) fn caller(&self, request: &Request) -> Option<[u64; crate::caller::CALLER_WORDS]> {
        let words =
            || self.region.callers(request.index).0.each_ref().map(|word| word.load(Ordering::Relaxed));
        request.has_caller.then(words)
    }

    /// Waits for all of a span that flows. Its lines are in the master's cache; they come here part by part, while the next ones
    /// are still being written. `None`: this worker was given up.
    fn await_span(&mut self, request: &Request) -> Option<()> {
        let (mut at, end) = (request.position, request.position + request.len as u64);
        while at < end {
            // Edge IN-SENT.
            let sent = self.wait_for(|port| Some(port.in_sent().min(end)).filter(|&sent| sent > at))?;
            self.region.peer_arena().prefetch(at, (sent - at) as usize);
            at = sent;
        }
        Some(())
    }

    /// How far the master is with what it is copying into the arena of `A`. It never goes back.
    fn in_sent(&self) -> u64 {
        self.region.a().in_sent.0.load(Ordering::Acquire)
    }

    /// Copies the elements of a request that [`flows`](Request::flows), part by part as they come. `None`: no number has
    /// that size, or this worker was given up.
    pub(crate) fn receive_elements(&mut self, request: &Request, size: u8) -> Option<Elements> {
        let bytes = request.flowing?.min(request.len);
        let mut elements = Elements::with_room(size, bytes)?;
        let end = request.position + bytes as u64;
        while elements.len() < bytes {
            let at = request.position + elements.len() as u64;
            // Edge IN-SENT: the position before the bytes in front of it.
            let sent = self.wait_for(|port| Some(port.in_sent().min(end)).filter(|&sent| sent > at))?;
            point(Point::PartSeen);
            self.region.peer_arena().append_to(at, (sent - at) as usize, &mut elements);
        }
        Some(elements)
    }

    /// # Safety
    ///
    /// The slice is not used after the request has been answered.
    unsafe fn static_inline(&self, request: &Request) -> &'static [u8] {
        // SAFETY: the caller's promise.
        let bytes = unsafe { self.region.inline_payload(request.index, request.len) };
        // SAFETY: the region outlives what runs in this worker.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr(), bytes.len()) }
    }

    /// Copies a request together that flows through the arena of `A`. `None`: this worker was given up.
    fn receive(&mut self, request: &Request) -> Option<AlignedBytes> {
        let mut bytes = AlignedBytes::with_capacity(request.len);
        self.in_received = request.position;
        self.region.b().in_received.0.store(self.in_received, Ordering::Release);
        point(Point::ReceiveOpened);
        self.notify();
        while bytes.len() < request.len {
            let sent = self.wait_for(|port| {
                let sent = port.region.a().in_sent.0.load(Ordering::Acquire);
                (sent > port.in_received).then_some(sent)
            })?;
            point(Point::ChunkSeen);
            let len = usize::try_from(sent - self.in_received).unwrap_or(0).min(request.len - bytes.len());
            self.region.peer_arena().append_to(self.in_received, len, &mut bytes);
            point(Point::ChunkCopied);
            self.in_received += len as u64;
            self.region.b().in_received.0.store(self.in_received, Ordering::Release);
            point(Point::ChunkReceived);
            self.notify();
        }
        Some(bytes)
    }
}
