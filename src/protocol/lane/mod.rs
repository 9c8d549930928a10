//! The master's end of a lane: one worker process, its rings and its arenas.
//!
//! A `Lane` is used by one thread at a time (its owner, see [`crate::life::station`]) and runs no user code. It carries
//! tokens of type `T`, one for each request, without knowing what they are, so it runs on the heap in tests.
//!
//! Everything that is read from side `B` is fetched once into a local and checked; what cannot be is a
//! [`Violation`], after which the worker is retired. Side `A` is written by this process alone and is believed.
//!
//! [`message`] says what goes through it. Requests go out in [`send`], responses come in through [`receive`] and, if they
//! flow, [`stream`]; [`calls`] are the worker's. [`claim`] is about what has not started, or is not to go on, [`wake`] about
//! who is rung, [`census`] about what is known of the worker.

mod calls;
mod census;
mod claim;
mod message;
mod receive;
mod send;
mod stream;
mod wake;

use std::num::NonZeroU32;

pub(crate) use self::census::Census;
pub(crate) use self::message::{Batch, Form, Parcel, Refusal, Reply, Run, Sink, SmallReply, SmallRequest};
use self::stream::Body;
use crate::caller::Caller;
use crate::memory::codec::AlignedBytes;
use crate::memory::layout::RING_SLOTS;
use crate::memory::region::Region;

/// Something in side `B` that no worker which keeps the protocol writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) &'static str);

const TOO_LARGE: Violation = Violation("a response exceeds its limit");

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
    /// Whether the worker rings nobody for the items of this batch.
    quiet: bool,
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
    /// Whether the worker has an order that it has to see, whatever it sleeps for.
    is_ordered: bool,
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
    pub(crate) fn new(region: Region, max_payload: usize) -> Self {
        Self {
            region,
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
            is_ordered: false,
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

    /// Requests that are answered or retired: the index of the oldest one in flight.
    pub(crate) fn answered(&self) -> u64 {
        self.answered
    }

    /// Whether the ring has room for another request.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight() < RING_SLOTS
    }

    /// Who has submitted the request that is pushed next.
    #[inline]
    pub(crate) fn set_caller(&mut self, caller: Option<Caller>) {
        self.caller = caller;
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
}
