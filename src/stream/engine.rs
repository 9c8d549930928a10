//! The window of a stream: batches on their way, results that wait for their turn.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Poll, Waker};

use super::records::{Arrivals, Records};
use crate::context::{BatchBytes, Named};
use crate::error::{CodecError, TaskError};
use crate::life::job::{Job, Outcome};
use crate::life::wait::Awaited;
use crate::memory::codec::{self, Encoded, Payload};
use crate::pool::{Handle, encode_error};
use crate::protocol::code::CodeId;
use crate::protocol::lane::{Batch, Parcel};
use crate::protocol::records::{Parsed, parse};
use crate::protocol::wire::Status;
use crate::task;

/// Batches in flight for each worker. Deep enough that a worker never waits for the caller, shallow enough that little
/// has to move when a worker falls behind (measured: 1.3 ns an item at 16, 1.9 at 4).
const DEPTH: usize = 16;
/// With few items in a batch, a deeper window makes up for the caller's pauses.
const DEPTH_SMALL: usize = 64;
const SMALL: usize = 16;

/// A stream's outcome of one item.
pub(super) type Item<R> = Result<R, TaskError>;

/// One batch in the window.
#[derive(Debug)]
struct Slot<R> {
    /// `None`: the batch is over.
    job: Option<&'static Job>,
    records: Arc<Records>,
    items: u32,
    received: u32,
    /// Index of its first item in the stream.
    first: u64,
    /// Bytes of records that have come, and how many of them are read.
    bytes: Vec<u8>,
    read: usize,
    /// Results that wait for their turn, in an ordered stream.
    held: VecDeque<Item<R>>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Engine<R> {
    handle: Handle,
    code: CodeId,
    ordered: bool,
    granularity: usize,
    window: usize,
    slots: Vec<Option<Slot<R>>>,
    free: Vec<usize>,
    /// Slots in the order of their items.
    order: VecDeque<usize>,
    /// Results that may be delivered, with their indices.
    out: VecDeque<(u64, Item<R>)>,
    arrivals: Arc<Arrivals>,
    looked_at: Vec<usize>,
    filling: BatchBytes,
    filling_first: u64,
    pub(super) pulled: u64,
    pub(super) batches: u64,
}

impl<R: Payload> Engine<R> {
    pub(super) fn new(handle: Handle, named: Named, granularity: usize, window: Option<usize>, ordered: bool) -> Self {
        let core = handle.core();
        let code = CodeId::of(named.code, named.types, &core.objects);
        let depth = if granularity < SMALL { DEPTH_SMALL } else { DEPTH };
        let window = match window {
            Some(items) => items.div_ceil(granularity).max(1),
            None => core.stations.len() * depth,
        };
        Self {
            handle,
            code,
            ordered,
            granularity,
            window,
            slots: Vec::new(),
            free: Vec::new(),
            order: VecDeque::new(),
            out: VecDeque::new(),
            arrivals: Arc::default(),
            looked_at: Vec::new(),
            filling: BatchBytes::default(),
            filling_first: 0,
            pulled: 0,
            batches: 0,
        }
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(super) fn arrivals(&self) -> &Arc<Arrivals> {
        &self.arrivals
    }

    /// Whether another item may be pulled from the source.
    #[inline]
    pub(super) fn wants_items(&self) -> bool {
        self.order.len() < self.window
    }

    /// Whether the window is at most half full: time to pull even though results wait.
    pub(super) fn is_low(&self) -> bool {
        self.order.len() <= self.window / 2
    }

    /// Whether nothing is on its way and nothing waits to be delivered.
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty() && self.out.is_empty() && self.filling.len() == 0
    }

    /// Takes an item of the source in; sends the batch when it is full.
    #[inline]
    pub(super) fn push<I: Payload>(&mut self, item: &I) {
        let index = self.pulled;
        self.pulled += 1;
        if self.filling.len() == 0 {
            self.filling_first = index;
        }
        match self.filling.push(item, self.handle.core().max_payload) {
            Ok(()) if self.filling.len() as usize >= self.granularity => self.flush(),
            Ok(()) => {}
            Err(error) => {
                self.flush();
                self.fail_item(index, encode_error(error));
            }
        }
    }

    /// Sends the batch that is being filled, if there is one.
    pub(super) fn flush(&mut self) {
        let items = self.filling.len();
        if items == 0 {
            return;
        }
        let input = std::mem::take(&mut self.filling).finish();
        let at = self.open_slot(self.filling_first, items);
        self.batches += 1;
        self.send(at, Parcel { code: self.code, batch: Some(Batch { items, done: 0 }), input });
    }

    /// An item that cannot be sent takes its place among the results.
    fn fail_item(&mut self, index: u64, error: TaskError) {
        let at = self.open_slot(index, 1);
        self.settle(at, Err(error));
        self.close_slot(at);
    }

    fn open_slot(&mut self, first: u64, items: u32) -> usize {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let records = Arc::new(Records::new(at, self.arrivals.clone()));
        self.slots[at] = Some(Slot {
            job: None,
            records,
            items,
            received: 0,
            first,
            bytes: Vec::new(),
            read: 0,
            held: VecDeque::new(),
        });
        self.order.push_back(at);
        at
    }

    fn send(&mut self, at: usize, parcel: Parcel) {
        let Some(slot) = &mut self.slots[at] else { return };
        let core = self.handle.core();
        if !core.is_here() {
            return self.fail_rest(at, &TaskError::NotInThisProcess);
        }
        let (mut held, job) = Job::allocate(core);
        held.set_batch(slot.records.clone());
        slot.job = Some(job);
        core.submit(held, parcel);
    }

    /// The station that the oldest batch in flight is at.
    fn station(&self) -> usize {
        self.order
            .iter()
            .find_map(|&at| self.slots[at].as_ref()?.job)
            .map_or(0, |job| job.place().station)
    }

    /// Blocks until something has arrived.
    pub(super) fn wait(&self) {
        self.handle.core().wait(self, None);
    }

    /// Reads what has arrived.
    pub(super) fn collect(&mut self) {
        let mut batches = std::mem::take(&mut self.looked_at);
        self.arrivals.take(&mut batches);
        for at in batches.drain(..) {
            self.look_at(at);
        }
        self.looked_at = batches;
    }

    fn look_at(&mut self, at: usize) {
        let Some(slot) = self.slots.get_mut(at).and_then(Option::as_mut) else { return };
        let Some(job) = slot.job else { return };
        // Before the records are taken: when it is done, they are all there.
        let done = job.is_done();
        let records = slot.records.clone();
        records.take(&mut slot.bytes);
        if !self.read_records(at) {
            return self.fail_rest(at, &TaskError::Decode(CodecError::new("a batch's results are damaged")));
        }
        if done {
            self.end(at, job.take());
        }
    }

    /// Reads whole records. `false`: they make no sense.
    fn read_records(&mut self, at: usize) -> bool {
        let stride = codec::plain_size::<R>().filter(|&bytes| bytes <= crate::context::STRIDE_MAX);
        loop {
            let Some(slot) = &mut self.slots[at] else { return true };
            let (status, payload, len) = match parse(&slot.bytes[slot.read..], stride) {
                Parsed::Partial => break,
                Parsed::Invalid => return false,
                Parsed::Record { status, payload, bytes } => (status, payload, bytes),
            };
            if slot.received == slot.items {
                return false;
            }
            let item = match status {
                Status::Value => codec::decode::<R>(payload).map_err(TaskError::Decode),
                Status::SizedValue => task::decode::<R>(&Encoded::Heap(payload.into())),
                status => Err(task::error_of(status, payload)),
            };
            slot.read += len;
            self.settle(at, item);
        }
        if let Some(slot) = &mut self.slots[at] {
            if slot.read == slot.bytes.len() {
                slot.bytes.clear();
            } else {
                slot.bytes.drain(..slot.read);
            }
            slot.read = 0;
        }
        true
    }

    /// The next item of a batch has this outcome.
    #[inline]
    fn settle(&mut self, at: usize, item: Item<R>) {
        let Some(slot) = &mut self.slots[at] else { return };
        let index = slot.first + u64::from(slot.received);
        slot.received += 1;
        if self.ordered && self.order.front() != Some(&at) {
            slot.held.push_back(item);
        } else {
            self.out.push_back((index, item));
        }
    }

    /// The batch's job has ended.
    fn end(&mut self, at: usize, outcome: Outcome) {
        if let Some(slot) = &mut self.slots[at] {
            slot.job = None;
        }
        match outcome {
            Outcome::Reply(reply) if reply.status == Status::BatchDone => {
                // All there, unless the worker miscounted.
                self.fail_rest(at, &TaskError::Decode(CodecError::new("a batch ended before its items")));
            }
            Outcome::Reply(reply) => self.fail_rest(at, &task::error_of(reply.status, reply.body.as_bytes())),
            Outcome::Failed(error) => self.fail_rest(at, &error),
            Outcome::BatchLost(lost) => self.go_on(at, lost.0, lost.1),
        }
    }

    /// A worker died: the item that was running fails, and the rest runs elsewhere.
    fn go_on(&mut self, at: usize, mut parcel: Parcel, error: TaskError) {
        let Some(slot) = &mut self.slots[at] else { return };
        // A record that was not whole is the victim's.
        slot.bytes.clear();
        slot.read = 0;
        let unfinished = slot.received < slot.items;
        if unfinished {
            self.settle(at, Err(error));
        }
        let Some(slot) = &self.slots[at] else { return };
        if slot.received == slot.items {
            return self.close_slot(at);
        }
        parcel.batch = Some(Batch { items: slot.items, done: slot.received });
        self.batches += 1;
        self.send(at, parcel);
    }

    fn fail_rest(&mut self, at: usize, error: &TaskError) {
        while self.slots[at].as_ref().is_some_and(|slot| slot.received < slot.items) {
            self.settle(at, Err(error.clone()));
        }
        self.close_slot(at);
    }

    /// All items of a batch have their outcomes.
    fn close_slot(&mut self, at: usize) {
        if !self.ordered {
            self.order.retain(|&other| other != at);
            self.slots[at] = None;
            self.free.push(at);
            return;
        }
        // In order: the front batch leaves when it is complete, and the next one's results may go out.
        while let Some(&front) = self.order.front() {
            let Some(slot) = &mut self.slots[front] else { break };
            let next = slot.first + u64::from(slot.received) - slot.held.len() as u64;
            self.out.extend((next..).zip(slot.held.drain(..)));
            if slot.received < slot.items {
                break;
            }
            self.slots[front] = None;
            self.free.push(front);
            self.order.pop_front();
        }
    }

    /// A result that may be delivered.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<(u64, Item<R>)> {
        self.out.pop_front()
    }
}

impl<R: Payload> Awaited for Engine<R> {
    fn is_done(&self) -> bool {
        self.arrivals.any()
    }

    fn station(&self) -> usize {
        Engine::station(self)
    }

    fn register(&self, waker: &Waker) -> Poll<()> {
        self.arrivals.register(waker)
    }

    fn job(&self) -> Option<&'static Job> {
        None
    }
}

impl<R> Drop for Engine<R> {
    /// Calls off what has not started; what is running can see that it is cancelled.
    fn drop(&mut self) {
        let core = self.handle.core().clone();
        if !core.is_here() {
            return;
        }
        for slot in self.slots.iter_mut().flatten() {
            if let Some(job) = slot.job.take() {
                let generation = job.generation();
                if job.abandon(false) {
                    core.call_off(job, generation, &TaskError::Cancelled);
                }
            }
        }
    }
}
