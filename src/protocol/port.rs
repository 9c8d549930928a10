//! The worker's end of a lane.
//!
//! Everything in here runs in a worker process, which is single-threaded until user code says otherwise, or on one thread
//! of the master's process. The worker claims requests in order, runs one at a time and answers each in its slot. It may
//! block on room in `B`, which the master always drains, and on nothing else but its doorbell. A thread that the master has
//! [given up](Order::GivenUp) waits for nothing: what would not get through is dropped, since nobody reads it.

#![allow(unsafe_code, reason = "requests are read in place")]

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use crate::faults::{Point, point};
use crate::ground::barrier;
use crate::ground::claim::Claim;
use crate::ground::doorbell::Doorbell;
use crate::ground::prefetch;
use crate::ground::ring::{Head, RESPONSE_WORDS, RequestSlot};
use crate::ground::spin::SpinBudget;
use crate::ground::sys::{SysError, clock};
use crate::memory::arena::place;
use crate::memory::codec::{self, AlignedBytes, Elements, ElementsRef, Payload};
use crate::memory::layout::{ARENA_BYTES, RING_SLOTS, SPAN_ALIGN, WINDOW_BYTES};
use crate::memory::region::WorkerRegion;
use crate::protocol::code::CodeId;
use crate::protocol::records::{OPEN_END, sized_header, value_bytes};
use crate::protocol::wire::{
    AnswerKind, BATCH, CANCELLED, FLOW_MIN_BYTES, FLOWS, INLINE_WORD, Order, PART_BYTES, Parting, Place,
    RESPONSE_INLINE_BYTES, SHORTENED, Status, TIMED, Wake, WorkerState,
};
use crate::sync::{AtomicU64, Ordering, fence};

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

/// The three doorbells that a worker holds.
#[derive(Debug)]
pub(crate) struct Bells {
    /// The one it sleeps on.
    pub(crate) request: Doorbell,
    /// The one of a thread that waits for this lane.
    pub(crate) response: Doorbell,
    /// The driver's.
    pub(crate) driver: Doorbell,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Port {
    region: &'static mut WorkerRegion,
    bells: Bells,
    spin: SpinBudget,
    /// How long to look for the next request.
    patience: SpinBudget,
    /// The request to look at next.
    next: u64,
    /// How many requests in a row were there already when they were looked for.
    run: u32,
    /// End of the youngest bytes in the arena of `B`, and a lower bound of the oldest that are still in use.
    head: u64,
    tail: u64,
    /// How often it has gone to sleep.
    naps: u64,
    /// Whether its doorbell was rung and not cleared since.
    bell_rings: bool,
    /// The wake word that was last obeyed.
    rung: u64,
    /// Whether it has slept since it last rang.
    has_woken: bool,
    /// Whether the master was asked to look at the claim word since the last request.
    complained: bool,
    /// Bytes of the calls made so far, and of the answers received.
    calls: u64,
    call_sent: u64,
    answer_received: u64,
    in_received: u64,
    /// Position up to which an open stream has been published.
    stream: Option<u64>,
    /// Where the bare values of the open batch end, if they have.
    values_end: u64,
    /// Whether the master wants to know when requests were started and answered.
    stamps: bool,
    /// What to do when there is nothing to do, and the [stamp](Self::stamp) at which that was done last.
    when_idle: fn(),
    idle_at_ns: u64,
    /// Whether nobody is rung for a single item of the open batch: whoever wants them looks by himself in time.
    quiet: bool,
}

impl Port {
    /// `when_idle` is called before the worker sleeps, and when it has to wait, every few milliseconds at most.
    pub(crate) fn new(
        region: &'static mut WorkerRegion,
        bells: Bells,
        spin: SpinBudget,
        when_idle: fn(),
    ) -> Self {
        Self {
            region,
            bells,
            spin,
            patience: spin,
            next: 0,
            run: 0,
            head: 0,
            tail: 0,
            naps: 0,
            bell_rings: false,
            rung: 0,
            has_woken: false,
            complained: false,
            calls: 0,
            call_sent: 0,
            answer_received: 0,
            in_received: 0,
            stream: None,
            values_end: OPEN_END,
            stamps: false,
            when_idle,
            idle_at_ns: 0,
            quiet: false,
        }
    }

    /// The batch that is about to be opened is over so soon that whoever sleeps is rung at its end only.
    pub(crate) fn be_quiet(&mut self) {
        self.quiet = true;
    }

    /// Tells the master how far this worker is.
    pub(crate) fn set_state(&mut self, state: WorkerState, text: &str) {
        let text = &text.as_bytes()[..text.len().min(ARENA_BYTES / 2)];
        // Later, the arena belongs to results, which the master may not have read yet.
        let unused = self.next == 0 && self.head == 0;
        if unused && !text.is_empty() && self.region.reserve(text.len()).is_ok() {
            self.region.arena().copy_in(0, text);
            self.region.b().state.0.text_bytes.store(text.len() as u64, Ordering::Relaxed);
        }
        // Edge STATE: the text before the state that it explains.
        self.region.b().state.0.state.store(state as u64, Ordering::Release);
        point(Point::StateUnannounced);
        self.bells.driver.ring();
    }

    /// Nothing more starts here: what is unstarted is the master's, and this worker leaves.
    pub(crate) fn leave(&mut self, why: Parting) {
        // Before the state, which makes the master take the unstarted requests away.
        self.region.b().claim.0.seal();
        self.region.b().state.0.parting.store(why as u64, Ordering::Relaxed);
        self.set_state(WorkerState::Leaving, "");
    }

    /// Blocks until there is a request to run. `false`: the worker is to leave.
    #[inline]
    pub(crate) fn next_request(&mut self, request: &mut Request) -> bool {
        self.stamp();
        match self.look(request) {
            Some(Look::Start) => {
                self.run = self.run.saturating_add(1);
                true
            }
            Some(Look::Leave) => false,
            None => self.wait_for_request(request),
        }
    }

    /// Looks for the next request until there is one.
    #[inline(never)]
    fn wait_for_request(&mut self, request: &mut Request) -> bool {
        // The stamp moves every few milliseconds.
        let stamp = self.region.b().free_at_ns.0.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.idle_at_ns, stamp) != stamp {
            (self.when_idle)();
        }
        if self.run >= LONG_RUN && !self.spin.is_none() {
            // Whoever publishes in a loop is quicker when nobody tears the line away that it is about to write.
            (0..LULL_PAUSES).for_each(|_| std::hint::spin_loop());
        }
        self.run = 0;
        loop {
            let spin = self.patience;
            if spin.spin(|| self.has_news().then_some(())).is_some() {
                if spin.is_endless() {
                    self.stamp();
                }
                match self.look(request) {
                    Some(Look::Start) => return true,
                    Some(Look::Leave) => return false,
                    // A claim word that cannot be: the master has been told.
                    None => {}
                }
            }
            let found = self.sleep_until(|port| port.look(request));
            self.stamp();
            match found {
                Some(Look::Start) => return true,
                Some(Look::Leave) => return false,
                None => {}
            }
        }
    }

    /// Whether there is anything for [`look`](Self::look) to see.
    #[inline]
    fn has_news(&self) -> bool {
        let claimed = self.region.b().claim.0.load();
        self.region.request(self.next).poll(self.next).is_some()
            || claimed.sealed
            || claimed.count != self.next
            || self.ordered_to_leave()
    }

    /// Notes that nothing is in hand at the moment. After an answer rather than before a task: nobody waits for it there.
    #[inline]
    fn stamp(&self) {
        let now = clock::coarse_now_ns();
        self.region.b().free_at_ns.0.store(now, Ordering::Relaxed);
    }

    /// The next request, if there is one to run.
    #[cfg(any(test, forkring_faults))]
    pub(crate) fn try_next_request(&mut self) -> Option<Request> {
        let mut request = Request::default();
        matches!(self.look(&mut request), Some(Look::Start)).then_some(request)
    }

    #[inline]
    fn look(&mut self, request: &mut Request) -> Option<Look> {
        loop {
            let Some(head) = self.region.request(self.next).poll(self.next) else {
                let claimed = self.region.b().claim.0.load();
                if claimed.sealed {
                    self.complain();
                } else if claimed.count != self.next && self.follow(claimed.count) {
                    // Requests were taken back while this worker was busy with an earlier one.
                    continue;
                }
                return self.ordered_to_leave().then_some(Look::Leave);
            };
            point(Point::RequestSeen);
            match self.region.b().claim.0.claim(self.next) {
                Claim::Won => {
                    point(Point::Claimed);
                    let index = self.next;
                    self.next += 1;
                    self.complained = false;
                    if self.run >= LONG_RUN {
                        prefetch::for_reading(self.region.request(index + prefetch::SLOTS_AHEAD));
                    }
                    if self.open(index, head, request) {
                        return Some(Look::Start);
                    }
                }
                Claim::Moved(to) if self.follow(to) => {}
                Claim::Moved(_) => return None,
                Claim::Sealed => {
                    self.complain();
                    return self.ordered_to_leave().then_some(Look::Leave);
                }
            }
        }
    }

    /// Goes on at the request that the claim word names, if the master may have taken back all below it, which it has
    /// then published. `false`: a stray write of this process has hit the word.
    fn follow(&mut self, to: u64) -> bool {
        let published = |last: u64| {
            let slot = self.region.request(last);
            // What was taken back is retired, and the slot may have been used once more.
            slot.poll(last).is_some() || slot.poll(last.wrapping_add(RING_SLOTS as u64)).is_some()
        };
        // While this worker was busy with one request the master may have published and taken back many laps of others, but not
        // so many that the halves of the numbers that heads carry come around.
        if to > self.next && to - self.next < 1 << 31 && published(to - 1) {
            self.next = to;
            return true;
        }
        // If the word has moved on, the slot may have been used twice.
        let moved = self.region.b().claim.0.load().count != to;
        if !moved {
            self.complain();
        }
        moved
    }

    /// Has the master look at the claim word: it alone knows what should be there, and ends a worker that has lost it.
    /// If it has sealed the word itself, that is on its way.
    #[cold]
    fn complain(&mut self) {
        if !std::mem::replace(&mut self.complained, true) {
            self.bells.driver.ring();
        }
    }

    fn ordered_to_leave(&self) -> bool {
        Order::from_wire(self.region.a().order.0.load(Ordering::Acquire)) != Some(Order::Run)
    }

    /// Whether the master has let go of this worker, without being able to end it.
    #[inline]
    pub(crate) fn is_given_up(&self) -> bool {
        self.region.a().order.0.load(Ordering::Acquire) == Order::GivenUp as u64
    }

    /// Reads a claimed request. `false`: it was cancelled before it started, and is answered.
    #[inline]
    fn open(&mut self, index: u64, head: Head, request: &mut Request) -> bool {
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
    fn publish(&self, index: u64, head: Head) {
        if self.stamps {
            self.stamp_answer(index);
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

    /// The peer's index is read only when the copy of it that is at hand seems to leave no room.
    fn refresh_tail(&mut self) {
        self.tail = self.tail.max(self.region.a().out_received.0.load(Ordering::Acquire)).min(self.head);
    }

    /// Starts a response that flows: the items of a batch, as bare `values` or as records, or a result larger than the
    /// arena.
    pub(crate) fn open_stream(&mut self, index: u64, total_bytes: u64, values: bool) -> u64 {
        self.open_elements(index, total_bytes, values, 0)
    }

    /// As [`open_stream`](Self::open_stream), of numbers of so many bytes.
    fn open_elements(&mut self, index: u64, total_bytes: u64, values: bool, element_bytes: u8) -> u64 {
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

    /// As [`notify`](Self::notify), but of a quiet batch nobody is rung. What follows is a look at the marks (edge CUT), which
    /// takes the barrier in either case.
    pub(crate) fn notify_of_item(&mut self) {
        if self.quiet {
            barrier::light();
        } else {
            self.notify();
        }
    }

    /// Ends a batch: all of it is done, or it was cut. How long it took, as [`time_code`](super::wire::time_code), or 0.
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

    /// Rings whoever on the master's side asked for it, once for each time it was asked.
    #[inline]
    pub(crate) fn notify(&mut self) {
        // Edge SLEEP: what was published comes before this look at the wake word; the master writes the word,
        // fences, and looks at what is published before it sleeps. One of the two sees the other.
        barrier::light();
        let wake = self.region.a().wake.0.load(Ordering::Relaxed);
        if wake != self.rung {
            self.ring(wake);
        }
    }

    fn ring(&mut self, mut wake: u64) {
        // Whoever woke this worker may be waiting for the CPU that it woke up on.
        let has_woken = std::mem::take(&mut self.has_woken);
        if has_woken && Wake::of(wake) == Wake::Driver {
            // He may be about to look for himself, which spares two wake-ups. Edge SLEEP holds for this later look too.
            std::thread::yield_now();
            wake = self.region.a().wake.0.load(Ordering::Relaxed);
        }
        self.rung = wake;
        match Wake::of(wake) {
            Wake::Nobody => {}
            Wake::Driver => {
                point(Point::RingingDriver);
                self.bells.driver.ring();
            }
            Wake::Waiter => {
                point(Point::RingingWaiter);
                self.bells.response.ring();
                if has_woken {
                    std::thread::yield_now();
                }
            }
        }
    }

    /// Sends a service request and waits for the answer.
    pub(crate) fn call(&mut self, request: &[u8]) -> (AnswerKind, AlignedBytes) {
        self.calls += 1;
        let words = &self.region.b().call.0;
        words.total_bytes.store(request.len() as u64, Ordering::Relaxed);
        point(Point::CallUnnumbered);
        // Edge CALL-OPEN.
        words.number.store(self.calls, Ordering::Release);
        point(Point::CallNumbered);
        let mut rest = request;
        loop {
            let received = self.region.a().call_received.0.load(Ordering::Acquire);
            let room = (received + WINDOW_BYTES as u64).saturating_sub(self.call_sent) as usize;
            let (now, later) = rest.split_at(rest.len().min(room));
            self.region.call_window().copy_in(self.call_sent, now);
            self.call_sent += now.len() as u64;
            point(Point::CallCopied);
            self.region.b().call.0.sent.store(self.call_sent, Ordering::Release);
            point(Point::CallSent);
            self.notify();
            rest = later;
            if rest.is_empty() {
                break;
            }
            let waited = self.wait_for(|port| {
                let received = port.region.a().call_received.0.load(Ordering::Acquire);
                (received + WINDOW_BYTES as u64 > port.call_sent).then_some(())
            });
            if waited.is_none() {
                return refused();
            }
        }
        self.receive_answer().unwrap_or_else(refused)
    }

    /// `None`: this worker was given up.
    fn receive_answer(&mut self) -> Option<(AnswerKind, AlignedBytes)> {
        let total = self.wait_for(|port| {
            let words = &port.region.a().answer.0;
            (words.number.load(Ordering::Acquire) == port.calls)
                .then(|| words.total_bytes.load(Ordering::Relaxed) as usize)
        })?;
        point(Point::AnswerSeen);
        let kind = self.region.a().answer.0.kind.load(Ordering::Relaxed);
        let mut bytes = AlignedBytes::with_capacity(total);
        while bytes.len() < total {
            let sent = self.wait_for(|port| {
                let sent = port.region.a().answer.0.sent.load(Ordering::Acquire);
                (sent > port.answer_received).then_some(sent)
            })?;
            let len = ((sent - self.answer_received) as usize).min(total - bytes.len());
            self.region.answer_window().append_to(self.answer_received, len, &mut bytes);
            point(Point::AnswerCopied);
            self.answer_received += len as u64;
            self.region.b().answer_received.0.store(self.answer_received, Ordering::Release);
            self.notify();
        }
        point(Point::AnswerReceived);
        Some((AnswerKind::from_wire(kind).unwrap_or(AnswerKind::Refused), bytes))
    }

    /// Whether the request that is running has been cancelled.
    pub(crate) fn cancelled(&self, index: u64) -> bool {
        is_cancelled(self.region.request(index), index)
    }

    /// Whether no other item of the batch that is running is to start.
    pub(crate) fn ends_early(&self, index: u64) -> bool {
        let marks = CANCELLED | SHORTENED;
        self.region.request(index).poll(index).is_some_and(|head| head.extra & marks != 0)
    }

    /// Waits until `look` finds something. `None`: this worker was given up meanwhile.
    fn wait_for<T>(&mut self, mut look: impl FnMut(&mut Self) -> Option<T>) -> Option<T> {
        if let Some(found) = look(self) {
            return Some(found);
        }
        // Whatever this waits for, the master may have to be told first what is there already.
        self.notify();
        let spin = self.spin;
        let mut look = |port: &mut Self| match look(port) {
            Some(found) => Some(Some(found)),
            None => port.is_given_up().then_some(None),
        };
        loop {
            if let Some(found) = spin.spin(|| look(self)).or_else(|| self.sleep_until(&mut look)) {
                return found;
            }
        }
    }

    /// One sleep on the doorbell, unless `look` finds something first. May return early with nothing.
    fn sleep_until<T>(&mut self, mut look: impl FnMut(&mut Self) -> Option<T>) -> Option<T> {
        // Edge BELL: the flag, a fence, a second look; the master publishes, fences, and looks at the flag.
        self.naps += 1;
        // A ring for this nap cannot come before the flag; earlier ones are forgotten where nobody waits for it.
        if std::mem::take(&mut self.bell_rings) {
            self.bells.request.clear();
        }
        let sleeping = &self.region.b().sleeping.0;
        sleeping.store(2 * self.naps - 1, Ordering::Relaxed);
        point(Point::SleepStored);
        let fenced = barrier::heavy();
        let found = look(self);
        if found.is_none() {
            point(Point::Drowsy);
            // Whoever publishes something meanwhile rings, and the bell remembers.
            (self.when_idle)();
            // The master's death ends this process, so the wait needs no limit but where the fence failed.
            let asleep_since = Instant::now();
            self.bell_rings = self.bells.request.await_ring((!fenced).then_some(UNFENCED_SLEEP));
            self.patience = self.spin.after_sleep(asleep_since.elapsed());
            self.has_woken = true;
            point(Point::Woken);
        }
        self.region.b().sleeping.0.store(2 * self.naps, Ordering::Relaxed);
        found
    }
}

#[cold]
fn given_up() -> SysError {
    SysError::new("wait", std::io::ErrorKind::ConnectionAborted)
}

#[cold]
fn refused() -> (AnswerKind, AlignedBytes) {
    (AnswerKind::Refused, AlignedBytes::from(&b"the task has been ended meanwhile"[..]))
}

#[inline]
fn is_cancelled(slot: &RequestSlot, index: u64) -> bool {
    slot.poll(index).is_some_and(|head| head.extra & CANCELLED != 0)
}

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
        let Self { mut next, mut position, rung, head, light, .. } = self;
        for (_, input) in (0..self.left).zip(inputs) {
            point(Point::BeforeFunction);
            let value = value_of(input)?;
            point(Point::AfterFunction);
            let Some(bytes) = codec::plain_bytes(&value).filter(|bytes| bytes.len() <= width) else { break };
            // SAFETY: WINDOW-1: this is done `left` times at most, and `bytes` is memory of this process alone.
            unsafe { next.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
            // SAFETY: as above.
            next = unsafe { next.add(width) };
            prefetch::for_writing_behind(next.as_ptr());
            position += width as u64;
            point(Point::RecordUncommitted);
            // Edge OUT-SENT: the bytes before the position behind them.
            self.sent.store(position, Ordering::Release);
            point(Point::Committed);
            // Edges SLEEP and CUT: the publication before the looks.
            light.barrier();
            if self.wake.load(Ordering::Relaxed) != rung || self.request.word() != head {
                point(Point::RecordDone);
                break;
            }
            point(Point::RecordDone);
        }
        Ok(())
    }
}

/// After so many requests in a row the next one is no answer to a response.
const LONG_RUN: u32 = 8;
/// How long the next one is given: some tenths of a microsecond.
const LULL_PAUSES: u32 = 16;

/// How long a worker sleeps that cannot be sure to have been seen sleeping.
const UNFENCED_SLEEP: Duration = Duration::from_millis(1);

enum Look {
    Start,
    Leave,
}
