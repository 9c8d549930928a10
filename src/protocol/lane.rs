//! The master's end of a lane: one worker process, its rings and its arenas.
//!
//! A `Lane` is used by one thread at a time (its owner, see [`crate::life::station`]) and runs no user code. It carries
//! tokens of type `T`, one for each request, without knowing what they are, so it runs on the heap in tests.
//!
//! Everything that is read from side `B` is fetched once into a local and checked; what cannot be is a
//! [`Violation`], after which the worker is retired. Side `A` is written by this process alone and is believed.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::caller::Caller;
use crate::ground::barrier;
use crate::ground::claim::Claimed;
use crate::ground::doorbell::Doorbell;
use crate::ground::prefetch::{self, Ahead, SLOTS_AHEAD as AHEAD};
use crate::ground::ring::{Head, RESPONSE_WORDS};
use crate::ground::sys::{SysError, clock};
use crate::memory::arena::{ArenaReader, place};
use crate::memory::codec::{AlignedBytes, Elements, ElementsRef, Encoded};
use crate::memory::layout::{ARENA_BYTES, RING_SLOTS, SPAN_ALIGN, WINDOW_BYTES, slot_of};
use crate::memory::region::Region;
use crate::protocol::code::CodeId;
use crate::protocol::records::{OPEN_END, SIZED_HEADER_BYTES, TEXT_BYTES_MAX};
use crate::protocol::wire::{
    AnswerKind, BATCH, CALLER, CANCELLED, FLOW_MIN_BYTES, FLOWS, INLINE_WORD, Order, PART_BYTES, Parting,
    Place, RESPONSE_INLINE_BYTES, SHORTENED, Status, TIMED, Wake, WorkerState,
};
use crate::sync::{Ordering, fence};

/// Something in side `B` that no worker which keeps the protocol writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) &'static str);

/// Items of a batch, and how many of them are done already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) items: u32,
    pub(crate) done: u32,
    /// Whether the worker is to say how long it took.
    pub(crate) timed: bool,
}

/// A request outside the ring.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) code: CodeId,
    pub(crate) batch: Option<Batch>,
    pub(crate) input: Encoded,
}

/// A response, copied to private memory.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: Status,
    pub(crate) body: Encoded,
}

/// A request of a number, as words. It is handed on by reference: see [`SmallReply`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct SmallRequest {
    pub(crate) code: CodeId,
    pub(crate) words: [u64; 2],
    pub(crate) len: usize,
}

impl From<&SmallRequest> for Parcel {
    fn from(small: &SmallRequest) -> Self {
        let mut bytes = [0; 16];
        for (to, word) in bytes.chunks_exact_mut(8).zip(small.words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Self { code: small.code, batch: None, input: Encoded::inline(&bytes[..small.len]) }
    }
}

/// A response that came in its slot, as words: what is written and read in pieces of another size waits in the store buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SmallReply {
    pub(crate) words: [u64; RESPONSE_WORDS],
    pub(crate) len: u8,
    pub(crate) status: Status,
}

impl SmallReply {
    pub(crate) const PACKED_WORDS: usize = RESPONSE_WORDS + 1;

    /// As words of one size, for memory that is written and read as such.
    #[inline]
    pub(crate) fn pack(&self) -> [u64; Self::PACKED_WORDS] {
        let [a, b, c] = self.words;
        [a, b, c, u64::from(self.len) | u64::from(self.status as u8) << 8]
    }

    #[inline]
    pub(crate) fn unpack([a, b, c, rest]: [u64; Self::PACKED_WORDS]) -> Self {
        let status = Status::from_wire((rest >> 8) as u8).unwrap_or(Status::Skipped);
        Self { words: [a, b, c], len: rest as u8, status }
    }

    /// Its payload is the first `len` of these bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> [u8; RESPONSE_INLINE_BYTES] {
        let mut bytes = [0; RESPONSE_INLINE_BYTES];
        for (to, word) in bytes.chunks_exact_mut(8).zip(self.words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

impl From<SmallReply> for Reply {
    fn from(small: SmallReply) -> Self {
        let body = Encoded::inline(&small.bytes()[..usize::from(small.len)]);
        Self { status: small.status, body }
    }
}

/// What the bytes of a batch's results are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Results of a fixed size, one after the other.
    Values,
    /// See [`crate::protocol::records`].
    Records,
}

/// Why a request was not taken. It comes back whole.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The ring or the arena is full.
    Full,
    /// There is no memory to back the arena.
    Memory(SysError),
}

/// Where a lane delivers what it receives. Called by the lane's owner; must not run user code.
pub(crate) trait Sink<T> {
    /// The request of `token` is probably going to be answered soon.
    fn expect(&self, _token: &T) {}
    /// The request of `token` is answered.
    fn reply(&mut self, token: T, reply: Reply);
    /// Likewise, in a slot.
    fn small_reply(&mut self, token: T, reply: SmallReply) {
        self.reply(token, reply.into());
    }
    /// The batch of `token` was cut after the records that have come: the request, for the rest of it.
    fn cut(&mut self, token: T, parcel: Parcel);
    /// More results of the batch of `token` have come: bare values, or records. No values come after a record.
    fn results(&mut self, token: &mut T, form: Form, from: ArenaReader<'_>, position: u64, len: usize);
    /// Whether [`timed`](Self::timed) is wanted, which the worker has to be told, too.
    const TIMED: bool = false;
    /// The request of `token` has run, and is about to be answered.
    fn timed(&mut self, _token: &T, _run: Run) {}
    /// The worker asks the service something.
    fn call(&mut self, number: u64, request: AlignedBytes);
}

/// What is known about a request that a worker has run, where workers are asked to stamp requests. The times are the worker's,
/// so they are figures to show, nothing more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) index: u64,
    pub(crate) code: CodeId,
    pub(crate) started_ns: u64,
    pub(crate) ended_ns: u64,
    pub(crate) status: Status,
    /// Items, if it is a batch.
    pub(crate) items: Option<NonZeroU32>,
}

#[derive(Debug)]
struct Entry<T> {
    /// `None`: nobody wants the response.
    token: Option<T>,
    /// Taken back: the worker does not touch the slot any more, and no response comes.
    taken: bool,
    /// Where the arena's tail goes once this entry and all before it are answered.
    span_end: u64,
    /// How many items it has, if it is a batch.
    batch: Option<NonZeroU32>,
    /// The worker was stopped while it ran this batch.
    stopped: bool,
}

/// A request larger than the arena, on its way. There is one at most, and no span behind it.
#[derive(Debug)]
struct Outgoing {
    index: u64,
    start: u64,
    bytes: AlignedBytes,
}

/// A response that is flowing in.
#[derive(Debug)]
struct Incoming {
    /// Where it began, and how far it has been copied.
    start: u64,
    at: u64,
    /// Where a batch's bare values end, once that is known.
    values_end: u64,
    body: Body,
}

/// The bytes of a response, in the memory that they will stay in.
#[derive(Debug)]
enum Body {
    Archive(AlignedBytes),
    Elements(Elements),
}

impl Body {
    /// Room for so many bytes; `element` as in a response's head.
    fn with_room(element: u8, bytes: usize) -> Result<Self, Violation> {
        match element {
            0 => Ok(Self::Archive(AlignedBytes::with_capacity(bytes))),
            _ => Elements::with_room(element, bytes)
                .map(Self::Elements)
                .ok_or(Violation("a response's elements have an impossible size")),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Archive(bytes) => bytes.len(),
            Self::Elements(elements) => elements.len(),
        }
    }

    fn append(&mut self, arena: ArenaReader<'_>, position: u64, len: usize) {
        match self {
            Self::Archive(bytes) => arena.append_to(position, len, bytes),
            Self::Elements(elements) => arena.append_to(position, len, elements),
        }
    }

    /// What it is, if it is what its head says: see [`with_room`](Self::with_room).
    fn finish(self, element: u8) -> Result<Encoded, Violation> {
        match self {
            Self::Archive(bytes) if element == 0 => Ok(Encoded::Heap(bytes)),
            Self::Elements(elements) if element == elements.size() && elements.is_whole() => {
                Ok(Encoded::Elements(elements))
            }
            _ => Err(Violation("a response's elements are not what they should be")),
        }
    }
}

/// A service answer on its way.
#[derive(Debug)]
struct Answer {
    bytes: AlignedBytes,
    at: usize,
}

/// The state of the worker's service calls.
#[derive(Debug, Default)]
struct Calls {
    /// Calls received whole, and calls whose answer has been started.
    received: u64,
    answered: u64,
    /// Bytes of calls copied, and of answers written, over all calls.
    in_bytes: u64,
    out_bytes: u64,
    incoming: Option<AlignedBytes>,
    outgoing: Option<Answer>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Lane<T> {
    region: Region,
    bell: Arc<Doorbell>,
    entries: Box<[Option<Entry<T>>; RING_SLOTS]>,
    /// Requests published, and requests that are answered or retired.
    sent: u64,
    answered: u64,
    /// The highest count seen in the claim word, which never goes back, and whether this side has sealed it.
    claimed: u64,
    sealed: bool,
    /// How many entries have lost their tokens before they were retired: cancelled, or taken back.
    emptied: u64,
    /// Bytes of requests and of responses that did not fit their slots.
    in_bytes: u64,
    out_bytes: u64,
    /// Of the request that is published next, and whether there is memory for that.
    caller: Option<Caller>,
    has_callers: bool,
    head: u64,
    tail: u64,
    out_tail: u64,
    wake_epoch: u64,
    /// The worker's nap that it was last rung for.
    rung_nap: u64,
    max_payload: usize,
    outgoing: Option<Outgoing>,
    incoming: Option<Incoming>,
    calls: Calls,
}

/// Made on the heap, where it stays.
fn empty_ring<T>() -> Box<[Option<T>; RING_SLOTS]> {
    let entries: Box<[Option<T>]> = (0..RING_SLOTS).map(|_| None).collect();
    entries.try_into().unwrap_or_else(|_| unreachable!("there are RING_SLOTS of them"))
}

impl<T> Lane<T> {
    /// `bell` is the one that the worker sleeps on.
    pub(crate) fn new(region: Region, bell: Arc<Doorbell>, max_payload: usize) -> Self {
        Self {
            region,
            bell,
            entries: empty_ring(),
            sent: 0,
            answered: 0,
            claimed: 0,
            sealed: false,
            emptied: 0,
            in_bytes: 0,
            out_bytes: 0,
            caller: None,
            has_callers: false,
            head: 0,
            tail: 0,
            out_tail: 0,
            wake_epoch: 0,
            rung_nap: 0,
            max_payload,
            outgoing: None,
            incoming: None,
            calls: Calls::default(),
        }
    }

    /// Requests published and not answered, taken back ones included until they are retired.
    #[inline]
    pub(crate) fn in_flight(&self) -> usize {
        (self.sent - self.answered) as usize
    }

    /// Requests published so far.
    #[inline]
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Who has submitted the request that is pushed next.
    #[inline]
    pub(crate) fn set_caller(&mut self, caller: Option<Caller>) {
        self.caller = caller;
    }

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
    fn enter(&mut self, token: T, index: u64, batch: Option<NonZeroU32>) {
        self.entries[slot_of(index)] =
            Some(Entry { token: Some(token), taken: false, span_end: self.head, batch, stopped: false });
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
        self.enter(token, index, batch.and_then(|batch| NonZeroU32::new(batch.items)));
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

    /// Wakes the worker if it sleeps, after something was published for it.
    #[inline]
    pub(crate) fn ring_if_asleep(&mut self) {
        // Edge BELL: the publication, a fence, this look; the worker sets the word, fences, and looks again. An odd
        // number is a nap, and one ring is enough for each, however long it takes until the worker runs.
        barrier::light();
        let nap = self.region.b().sleeping.0.load(Ordering::Relaxed);
        if nap % 2 == 1 && nap != self.rung_nap {
            self.rung_nap = nap;
            self.bell.ring();
        }
    }

    /// Whether the worker sleeps, or has been rung and is not awake yet: an answer is several microseconds away.
    pub(crate) fn is_asleep(&self) -> bool {
        self.region.b().sleeping.0.load(Ordering::Relaxed) % 2 == 1
    }

    /// Whether the ring has room for another request.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight() < RING_SLOTS
    }

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
    fn retire(&mut self) -> Option<T> {
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

    /// A response in its slot, if this one is such and nothing is strange about it.
    #[inline]
    fn read_small(&self, index: u64, head: Head) -> Option<SmallReply> {
        let is_small = head.kind == Place::Inline as u8
            && usize::from(head.len) <= RESPONSE_INLINE_BYTES
            && self.incoming.is_none();
        let status = u8::try_from(head.extra).ok().and_then(Status::from_wire)?;
        let slot = self.region.response(index);
        (is_small && status.is_single()).then(|| SmallReply {
            words: [slot.get(0), slot.get(1), slot.get(2)],
            len: head.len,
            status,
        })
    }

    fn read_reply(&mut self, index: u64, head: Head) -> Result<Reply, Violation> {
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
    fn check_start(&self, start: u64) -> Result<(), Violation> {
        match start.checked_sub(self.out_tail) {
            Some(skip) if skip < 2 * ARENA_BYTES as u64 && start < u64::MAX / 2 => Ok(()),
            _ => Err(Violation("a response's position is out of range")),
        }
    }

    /// Gives the bytes up to `position` of the arena of `B` back to the worker.
    fn release(&mut self, position: u64) {
        self.out_tail = position;
        self.region.a().out_received.0.store(position, Ordering::Release);
        // The worker may be waiting for room.
        self.ring_if_asleep();
    }

    /// The last part of a result that is larger than the arena.
    fn receive_stream(
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
    fn finish_batch(&mut self, index: u64, head: Head, sink: &mut impl Sink<T>) -> Result<(), Violation> {
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
            self.deliver_results(index, start, end, values_end, sink)?;
            self.incoming = None;
            if cut {
                self.cut_batch(index, sink);
                return Ok(());
            }
            let status = Status::BatchDone;
            if let Some(token) = self.retire() {
                // How long it took, if that was wanted.
                sink.reply(token, Reply { status, body: Encoded::inline(&[head.len]) });
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
            self.copy_results(&mut entry, &mut incoming, sent, sink)
        };
        self.entries[slot_of(index)] = Some(entry);
        self.incoming = Some(incoming);
        copied
    }

    /// The values that are new, then the records.
    #[inline]
    fn copy_results(
        &mut self,
        entry: &mut Entry<T>,
        incoming: &mut Incoming,
        sent: u64,
        sink: &mut impl Sink<T>,
    ) -> Result<(), Violation> {
        let mut copy = |lane: &mut Self, at: &mut u64, form, to| {
            lane.copy_stream(at, to, |arena, at, len| {
                if let Some(token) = &mut entry.token {
                    sink.results(token, form, arena, at, len);
                }
            })
        };
        let values_end = incoming.values_end;
        if incoming.at < values_end {
            // What lies behind `sent` is out of range, here as below.
            copy(self, &mut incoming.at, Form::Values, sent.min(values_end))?;
        }
        if incoming.at == sent { Ok(()) } else { copy(self, &mut incoming.at, Form::Records, sent) }
    }

    /// Moves on whatever flows: a long request, an unfinished response, service calls and answers.
    fn move_streams(&mut self, sink: &mut impl Sink<T>) -> Result<(), Violation> {
        self.check_claim()?;
        if self.outgoing.is_some() {
            self.send_outgoing()?;
        }
        self.receive_open_stream(sink)?;
        self.receive_call(sink)?;
        if self.calls.outgoing.is_some() {
            self.send_answer()?;
        }
        Ok(())
    }

    /// Copies the part of the oldest response that is there, if it flows.
    fn receive_open_stream(&mut self, sink: &mut impl Sink<T>) -> Result<(), Violation> {
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
            return self.deliver_results(index, start, sent, values_end, sink);
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

    /// Fills the arena of `A` with the next part of a long request, once the worker has claimed it.
    fn send_outgoing(&mut self) -> Result<(), Violation> {
        let Some(outgoing) = &self.outgoing else { return Ok(()) };
        if self.region.b().claim.0.load().count <= outgoing.index {
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

    fn receive_call(&mut self, sink: &mut impl Sink<T>) -> Result<(), Violation> {
        let words = &self.region.b().call.0;
        let number = words.number.load(Ordering::Acquire);
        if number == self.calls.received {
            return Ok(());
        }
        let answered = self.calls.answered == self.calls.received && self.calls.outgoing.is_none();
        if number != self.calls.received + 1 || !answered {
            return Err(Violation("a service call is out of turn"));
        }
        let total = words.total_bytes.load(Ordering::Relaxed);
        if total > self.max_payload as u64 {
            return Err(Violation("a service request exceeds max_payload"));
        }
        let sent = words.sent.load(Ordering::Acquire);
        let total = total as usize;
        let mut bytes =
            self.calls.incoming.take().unwrap_or_else(|| AlignedBytes::with_capacity(total.min(ARENA_BYTES)));
        let len = match sent.checked_sub(self.calls.in_bytes) {
            Some(len) if len <= WINDOW_BYTES as u64 && len as usize <= total.saturating_sub(bytes.len()) => {
                len
            }
            _ => return Err(Violation("a service call's position is out of range")),
        };
        self.region.call_window().append_to(self.calls.in_bytes, len as usize, &mut bytes);
        self.calls.in_bytes += len;
        self.region.a().call_received.0.store(self.calls.in_bytes, Ordering::Release);
        self.ring_if_asleep();
        if bytes.len() < total {
            self.calls.incoming = Some(bytes);
        } else {
            self.calls.received = number;
            sink.call(number, bytes);
        }
        Ok(())
    }

    /// Starts to answer service call `number`.
    pub(crate) fn answer(
        &mut self,
        number: u64,
        kind: AnswerKind,
        bytes: AlignedBytes,
    ) -> Result<(), Violation> {
        if number != self.calls.received || number == self.calls.answered {
            return Ok(());
        }
        self.calls.answered = number;
        let words = &self.region.a().answer.0;
        words.kind.store(kind as u64, Ordering::Relaxed);
        words.total_bytes.store(bytes.len() as u64, Ordering::Relaxed);
        // Edge CALL-OPEN, the way back.
        words.number.store(number, Ordering::Release);
        self.calls.outgoing = Some(Answer { bytes, at: 0 });
        self.ring_if_asleep();
        self.send_answer()
    }

    fn send_answer(&mut self) -> Result<(), Violation> {
        let Some(answer) = &mut self.calls.outgoing else { return Ok(()) };
        let received = self.region.b().answer_received.0.load(Ordering::Acquire);
        let in_window = match self.calls.out_bytes.checked_sub(received) {
            Some(n) if n <= WINDOW_BYTES as u64 => n as usize,
            _ => return Err(Violation("an answer's position is out of range")),
        };
        let rest = &answer.bytes[answer.at..];
        let part = &rest[..rest.len().min(WINDOW_BYTES - in_window)];
        self.region.answer_window().copy_in(self.calls.out_bytes, part);
        answer.at += part.len();
        self.calls.out_bytes += part.len() as u64;
        self.region.a().answer.0.sent.store(self.calls.out_bytes, Ordering::Release);
        if answer.at == answer.bytes.len() {
            self.calls.outgoing = None;
        }
        self.ring_if_asleep();
        Ok(())
    }

    /// Says whom the worker is to ring. Publishing a request afterwards needs no fence: its response cannot come
    /// before it. Otherwise the caller fences ([`fence_and_ready`](Self::fence_and_ready)) and looks again.
    #[inline]
    pub(crate) fn arm(&mut self, wake: Wake) {
        self.wake_epoch += 1;
        self.region.a().wake.0.store(wake.word(self.wake_epoch), Ordering::Release);
    }

    /// The second look before a sleep (edge SLEEP): whether something has come since.
    pub(crate) fn fence_and_ready(&self) -> bool {
        // The master has no system call filter that it did not have when the pool was built.
        let fenced = barrier::heavy();
        debug_assert!(fenced);
        self.ready() || self.stream_pending()
    }

    /// Whether a stream can be moved on.
    fn stream_pending(&self) -> bool {
        if self.seen_claim().is_err() {
            return true;
        }
        if self.region.b().call.0.number.load(Ordering::Acquire) != self.calls.received {
            let sent = self.region.b().call.0.sent.load(Ordering::Acquire);
            if self.calls.incoming.is_none() || sent != self.calls.in_bytes {
                return true;
            }
        }
        if self.calls.outgoing.is_some()
            && self.calls.out_bytes.wrapping_sub(self.region.b().answer_received.0.load(Ordering::Acquire))
                != WINDOW_BYTES as u64
        {
            return true;
        }
        if let Some(outgoing) = &self.outgoing {
            let sent = self.region.a().in_sent.0.load(Ordering::Relaxed);
            let received = self.region.b().in_received.0.load(Ordering::Acquire).max(outgoing.start);
            let unsent = sent - outgoing.start < outgoing.bytes.len() as u64;
            if unsent
                && sent.saturating_sub(received) < ARENA_BYTES as u64
                && self.region.b().claim.0.load().count > outgoing.index
            {
                return true;
            }
        }
        let out = &self.region.b().out.0;
        if self.sent != self.answered && out.tag.load(Ordering::Acquire) == self.answered + 1 {
            let sent = out.sent.load(Ordering::Acquire);
            return self.incoming.as_ref().is_none_or(|incoming| incoming.at != sent);
        }
        false
    }

    /// The count in the claim word, if it is one that may be there.
    fn seen_claim(&self) -> Result<u64, Violation> {
        let Claimed { count, sealed } = self.region.b().claim.0.load();
        // All that is answered or retired was claimed or taken back, and the count never goes back.
        // Once it is sealed it stays what it is, and the requests behind it are this side's. A worker that has decided to leave
        // seals it itself.
        let possible = match self.sealed {
            true => self.claimed..=self.claimed,
            false => self.answered.max(self.claimed)..=self.sent,
        };
        if !possible.contains(&count) || self.sealed && !sealed {
            return Err(CLAIM_RANGE);
        }
        // A worker answers one request before it claims another, or finds the master to have taken some between.
        let oldest = self.answered;
        let alone = |index| self.entries[slot_of(index)].as_ref().is_none_or(|entry| entry.taken);
        if count > oldest + 1 && !self.ready() && !alone(oldest) && !(oldest + 1..count).all(alone) {
            return Err(Violation("a request was passed over"));
        }
        Ok(count)
    }

    /// Whether the worker has sealed its claim word, because it is about to leave.
    pub(crate) fn is_leaving(&self) -> bool {
        !self.sealed && self.region.b().claim.0.load().sealed
    }

    fn check_claim(&mut self) -> Result<u64, Violation> {
        self.claimed = self.seen_claim()?;
        Ok(self.claimed)
    }

    /// Requests that the worker has not claimed.
    pub(crate) fn unclaimed(&mut self) -> Result<u64, Violation> {
        Ok(self.sent - self.check_claim()?)
    }

    /// Takes back at most `max` of the oldest requests that have not started.
    pub(crate) fn take_back(&mut self, max: u64) -> Result<Vec<(T, Parcel)>, Violation> {
        let range = self.region.b().claim.0.take_back(self.sent, max);
        if range.start > self.sent || range.start < self.answered.max(self.claimed) {
            return Err(CLAIM_RANGE);
        }
        self.claimed = range.end;
        Ok(range.filter_map(|index| self.reclaim(index)).collect())
    }

    /// Takes the token and the request out of a slot that is the master's again.
    fn reclaim(&mut self, index: u64) -> Option<(T, Parcel)> {
        let entry = self.entries[slot_of(index)].as_mut()?;
        entry.taken = true;
        let token = entry.token.take()?;
        self.emptied += 1;
        Some((token, self.parcel(index)))
    }

    /// Reads a request back from side `A`, which only this process writes.
    fn parcel(&mut self, index: u64) -> Parcel {
        let slot = self.region.request(index);
        let head = slot.poll(index).unwrap_or(Head::new(Place::Inline as u8, 0));
        let items = slot.get(2);
        let timed = head.extra & TIMED != 0;
        let batch = Batch { items: items as u32, done: (items >> 32) as u32, timed };
        let batch = (head.extra & BATCH != 0).then_some(batch);
        let code = CodeId { place: slot.get(0), types: slot.get(1) };
        let (position, len) = (slot.get(INLINE_WORD), slot.get(INLINE_WORD + 1));
        let input = match Place::from_wire(head.kind) {
            Some(Place::Span) => {
                let mut bytes = AlignedBytes::with_capacity(len as usize);
                self.region.arena().reader().append_to(position, len as usize, &mut bytes);
                Encoded::Heap(bytes)
            }
            Some(Place::Stream) if self.outgoing.as_ref().is_some_and(|o| o.index == index) => {
                Encoded::Heap(self.outgoing.take().map(|o| o.bytes).unwrap_or_default())
            }
            _ => {
                let mut bytes = [0; 32];
                slot.get_bytes(INLINE_WORD, &mut bytes);
                Encoded::Inline { len: head.len, bytes }
            }
        };
        Parcel { code, batch, input }
    }

    /// How long the worker has had something in hand; the word is its own, so it is a figure to show, nothing more.
    pub(crate) fn ran_for(&self) -> Option<Duration> {
        let free_at = self.region.b().free_at_ns.0.load(Ordering::Relaxed);
        (free_at > 0).then(|| Duration::from_nanos(clock::coarse_now_ns().saturating_sub(free_at)))
    }

    /// The request that the worker is running, as far as is known: the oldest one that is not answered, if it was claimed.
    pub(crate) fn running(&self) -> Option<Running<'_, T>> {
        let index = self.answered;
        let entry = self.entries.get(slot_of(index))?.as_ref().filter(|entry| !entry.taken)?;
        if index == self.sent || self.region.b().claim.0.load().count <= index {
            return None;
        }
        let out = &self.region.b().out.0;
        let flows = out.tag.load(Ordering::Acquire) == index + 1;
        let progress = if flows { out.sent.load(Ordering::Acquire) } else { 0 };
        Some(Running { index, progress, token: entry.token.as_ref() })
    }

    /// Before the worker is ended on purpose: no other request starts in it. What has not started comes back.
    pub(crate) fn stop(&mut self) -> Result<Vec<(T, Parcel)>, Violation> {
        self.region.b().claim.0.seal();
        let count = self.check_claim()?;
        self.sealed = true;
        Ok((count..self.sent).filter_map(|index| self.reclaim(index)).collect())
    }

    /// After [`stop`](Self::stop): if the worker is at a batch, no other item of it starts. The caller [`poll`](Self::poll)s,
    /// and what is then not answered is running still.
    pub(crate) fn cut(&mut self) {
        // It runs one request at a time, in their order: the last one that it has claimed. Earlier ones may be answered, which
        // nobody has looked at.
        let claimed = (self.answered..self.claimed).rev();
        let is_claimed = |entry: &&mut Option<Entry<T>>| entry.as_ref().is_some_and(|entry| !entry.taken);
        for index in claimed {
            let Some(Some(entry)) = Some(&mut self.entries[slot_of(index)]).filter(is_claimed) else {
                continue;
            };
            if entry.batch.is_some() {
                entry.stopped = true;
                self.mark_cancelled(index);
                // Edge CUT: the mark, a barrier, then a look at the records.
                let _ = barrier::heavy();
            }
            return;
        }
    }

    /// Lets go of a worker that cannot be killed, being a thread: nothing more starts in it, a batch that it runs ends with the
    /// item that runs, and it does not wait for this side any more.
    pub(crate) fn give_up(&mut self) {
        self.region.b().claim.0.seal();
        for index in self.answered..self.sent {
            if let Some(entry) = &mut self.entries[slot_of(index)]
                && !entry.taken
                && entry.batch.is_some()
            {
                entry.stopped = true;
                self.mark_cancelled(index);
            }
        }
        self.order(Order::GivenUp);
    }

    /// Tells the task that runs that its result is not wanted.
    pub(crate) fn ask_to_stop(&mut self) {
        if let Some(index) = self.running().map(|running| running.index) {
            self.mark_cancelled(index);
        }
    }

    fn mark_cancelled(&mut self, index: u64) {
        self.mark(index, CANCELLED);
    }

    fn is_marked(&self, index: u64, flags: u16) -> bool {
        self.region.request(index).poll(index).is_some_and(|head| head.extra & flags != 0)
    }

    fn mark(&mut self, index: u64, flag: u16) {
        let slot = self.region.request(index);
        if let Some(mut head) = slot.poll(index) {
            head.extra |= flag;
            slot.publish(index, head);
        }
    }

    /// If this request is a batch that is running, no other item of it starts, and the one that is running does not notice.
    /// Its request as it was. The caller [`poll`](Self::poll)s: of the items that have no result then, the first one may have
    /// started, the others have not and never will.
    pub(crate) fn shorten(&mut self, index: u64) -> Option<Parcel> {
        let running = self.running()?;
        if running.index != index || running.token.is_none() || self.outgoing.is_some() {
            return None;
        }
        let entry = self.entries[slot_of(index)].as_ref()?;
        // What was larger than the arena is not there any more.
        let head = self.region.request(index).poll(index)?;
        if entry.batch.is_none() || entry.stopped || Place::from_wire(head.kind) == Some(Place::Stream) {
            return None;
        }
        let parcel = self.parcel(index);
        self.mark(index, SHORTENED);
        // Edge CUT: the mark, a barrier, then a look at the records.
        let _ = barrier::heavy();
        Some(parcel)
    }

    /// Marks a request as cancelled. The token comes back if it had not started: then it never does, and the worker's
    /// response, which comes in its turn, is dropped.
    pub(crate) fn cancel(&mut self, index: u64) -> Option<T> {
        if index < self.answered || index >= self.sent {
            return None;
        }
        self.mark_cancelled(index);
        // Edge CANCEL: the mark, a fence, the claim word; the worker claims with a full barrier, then looks for it.
        fence(Ordering::SeqCst);
        if self.region.b().claim.0.load().count > index {
            return None;
        }
        let token = self.entries[slot_of(index)].as_mut()?.token.take()?;
        self.emptied += 1;
        Some(token)
    }

    /// Where its requests are. Goes over all that are in flight.
    pub(crate) fn census(&self) -> Census {
        // Where the word is nonsense, what it was when it made sense last.
        let claimed = self.seen_claim().unwrap_or(self.claimed);
        let (mut unclaimed, mut running, mut empty) = (0, 0, 0);
        for index in self.answered..self.sent {
            let wanted = self.entries[slot_of(index)].as_ref().is_some_and(|entry| entry.token.is_some());
            *match wanted {
                false => &mut empty,
                true if index < claimed => &mut running,
                true => &mut unclaimed,
            } += 1;
        }
        // All others that are empty have been retired, without a delivery.
        let dropped = self.emptied.saturating_sub(empty);
        let delivered = self.answered.saturating_sub(dropped);
        Census { unclaimed, running, delivered, in_bytes: self.in_bytes, out_bytes: self.out_bytes }
    }

    /// After the worker's death and a last [`poll`](Self::poll): the request that it was running, and those that had
    /// not started. If the claim word is nonsense, each may have started.
    pub(crate) fn remains(mut self) -> Remains<T> {
        let seen = self.seen_claim();
        let (claimed, valid) = (seen.unwrap_or(self.sent), seen.is_ok());
        let mut remains = Remains { started: Vec::new(), unstarted: Vec::new(), valid };
        for index in self.answered..self.sent {
            if let Some((token, parcel)) = self.reclaim(index) {
                if index < claimed {
                    remains.started.push((index, token, parcel));
                } else {
                    remains.unstarted.push((token, parcel));
                }
            }
        }
        remains
    }

    /// The worker's state and, where it failed, why.
    pub(crate) fn worker_state(&self) -> Result<(WorkerState, String), Violation> {
        let words = &self.region.b().state.0;
        let state = WorkerState::from_wire(words.state.load(Ordering::Acquire));
        let state = state.ok_or(Violation("a worker's state is unknown"))?;
        let mut text = String::new();
        if state == WorkerState::Failed {
            let len = words.text_bytes.load(Ordering::Relaxed).min(ARENA_BYTES as u64 / 2) as usize;
            let mut bytes = vec![0; len];
            self.region.peer_arena().copy_out(0, &mut bytes);
            text = String::from_utf8_lossy(&bytes).into_owned();
        }
        Ok((state, text))
    }

    /// Why the worker leaves, if it does so by its own decision.
    pub(crate) fn parting(&self) -> Option<Parting> {
        let words = &self.region.b().state.0;
        // Edge STATE: the reason is older than the state.
        let state = WorkerState::from_wire(words.state.load(Ordering::Acquire));
        let leaving = state == Some(WorkerState::Leaving);
        leaving.then(|| Parting::from_wire(words.parting.load(Ordering::Relaxed))).flatten()
    }

    /// Gives the standing order and makes sure that the worker looks at it.
    pub(crate) fn order(&mut self, order: Order) {
        self.region.a().order.0.store(order as u64, Ordering::Release);
        self.ring_if_asleep();
    }
}

/// A worker's word for a result's size is taken up to here.
const TRUSTED_HINT_BYTES: usize = 256 << 20;

const TOO_LARGE: Violation = Violation("a response exceeds its limit");
const CLAIM_RANGE: Violation = Violation("the claim word is out of range");

/// A request that is running, and a figure that grows whenever a part of its response has come: an item of a batch, a piece
/// of a large result.
#[derive(Debug)]
pub(crate) struct Running<'a, T> {
    pub(crate) index: u64,
    pub(crate) progress: u64,
    /// `None`: nobody wants the response.
    pub(crate) token: Option<&'a T>,
}

/// Requests of a lane that have, or had, somebody who wants their responses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) unclaimed: u64,
    /// Claimed, and the response has not been delivered.
    pub(crate) running: u64,
    /// Since the lane was made.
    pub(crate) delivered: u64,
    /// Likewise: bytes of requests and of responses that did not fit their slots.
    pub(crate) in_bytes: u64,
    pub(crate) out_bytes: u64,
}

/// What a dead worker leaves.
#[derive(Debug)]
pub(crate) struct Remains<T> {
    /// With their indices.
    pub(crate) started: Vec<(u64, T, Parcel)>,
    pub(crate) unstarted: Vec<(T, Parcel)>,
    /// Whether the claim word could be believed.
    pub(crate) valid: bool,
}
