//! The window of a stream: messages on their way, results that wait for their turn.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Instant;

use super::records::{Address, Arrivals, News, Note, Records, What};
use super::stop::{Control, Message, call_off};
use crate::context::{BatchBytes, Named, item_of};
use crate::error::{CodecError, TaskError};
use crate::life::core::Core;
use crate::life::crashers::Scene;
use crate::life::job::{Job, Outcome};
use crate::life::terms::Terms;
use crate::life::verdict::Why;
use crate::life::wait::Awaited;
use crate::memory::codec::{self, AlignedBytes, Encoded, Payload};
use crate::pool::{Handle, encode_error};
use crate::protocol::code::CodeId;
use crate::protocol::lane::{Batch, Form, Parcel, Reply};
use crate::protocol::records::{Parsed, STRIDE_MAX, parse, record_stride, value_bytes};
use crate::protocol::wire::Status;
use crate::task;

/// Batches in flight for each worker. Deep enough that a worker never waits for the caller, shallow enough that little
/// has to move when a worker falls behind.
const DEPTH: usize = 16;
/// With few items in a message, a deeper window makes up for the caller's pauses.
const DEPTH_SMALL: usize = 64;
const SMALL: usize = 16;

/// A stream's outcome of one item.
pub(super) type Item<R> = Result<R, TaskError>;

/// Where results go, with the indices of their items, as soon as it is their turn.
pub(super) trait Deliver<R> {
    fn one(&mut self, index: u64, item: Item<R>);

    /// Values of items that follow each other.
    #[inline]
    fn run(&mut self, first: u64, values: impl Iterator<Item = R>) {
        (first..).zip(values).for_each(|(index, value)| self.one(index, Ok(value)));
    }
}

impl<R, F: FnMut(u64, Item<R>)> Deliver<R> for F {
    #[inline]
    fn one(&mut self, index: u64, item: Item<R>) {
        self(index, item);
    }
}

/// One message of the window, or a free place for one.
#[derive(Debug)]
struct Slot<R> {
    /// `None`: nothing is on its way.
    job: Option<&'static Job>,
    records: Arc<Records>,
    items: u32,
    received: u32,
    /// Index of its first item in the stream.
    first: u64,
    /// Bytes of a record that is not whole.
    bytes: Vec<u8>,
    /// Results that wait for their turn, in an ordered stream.
    held: VecDeque<Item<R>>,
    /// When all of it has to be over, if it is known.
    due: Option<Instant>,
    /// How many workers were lost over the item that comes next.
    losses: u32,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Engine<R> {
    handle: Handle,
    control: Arc<Control>,
    code: CodeId,
    ordered: bool,
    granularity: usize,
    max_payload: usize,
    /// `None`: the pool's.
    terms: Option<Terms>,
    window: usize,
    /// Where the last message went.
    station: usize,
    slots: Vec<Slot<R>>,
    free: Vec<usize>,
    /// In an ordered stream, the slots in use, in the order of their items.
    order: VecDeque<usize>,
    arrivals: Arc<Arrivals>,
    /// Empty between two collections.
    news: News,
    /// Where a record's payload is decoded: records are packed, and views are aligned.
    aligned: AlignedBytes,
    filling: BatchBytes,
    filling_first: u64,
    /// Whether an item is being encoded, which is user code.
    encoding: bool,
    pub(super) pulled: u64,
    pub(super) messages: u64,
}

impl<R: Payload> Engine<R> {
    pub(super) fn new(
        handle: Handle,
        control: Arc<Control>,
        named: Named,
        granularity: usize,
        window: Option<usize>,
        ordered: bool,
        terms: Option<Terms>,
    ) -> Self {
        let core = handle.core();
        let code = CodeId::of(named.code, named.types, &core.objects);
        let depth = if granularity < SMALL { DEPTH_SMALL } else { DEPTH };
        let window = match window {
            Some(items) => items.div_ceil(granularity).max(1),
            None => core.stations.len() * depth,
        };
        let max_payload = core.policy.max_payload;
        let station = core.next_in_turn();
        let arrivals = control.arrivals.clone();
        Self {
            handle,
            control,
            code,
            ordered,
            granularity,
            max_payload,
            terms,
            window,
            station,
            slots: Vec::new(),
            free: Vec::new(),
            order: VecDeque::new(),
            arrivals,
            news: News::default(),
            aligned: AlignedBytes::new(),
            filling: BatchBytes::default(),
            filling_first: 0,
            encoding: false,
            pulled: 0,
            messages: 0,
        }
    }

    /// Whether something has arrived that has not been read.
    #[inline]
    pub(super) fn has_news(&self) -> bool {
        self.arrivals.any()
    }

    fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many messages the window holds while so many results wait to be asked for.
    pub(super) fn room(&self, waiting: usize) -> usize {
        self.window.saturating_sub(waiting / self.granularity)
    }

    /// Whether another item may be pulled from the source, in a window of so many messages.
    #[inline]
    pub(super) fn wants_items(&self, room: usize) -> bool {
        self.in_use() < room
    }

    /// While fewer results than this wait, the window is at most half full: time to pull even though they do.
    pub(super) fn low_mark(&self) -> usize {
        // `in_use + waiting / granularity <= window / 2`, without a division for each result.
        match (self.window / 2).checked_sub(self.in_use()) {
            Some(spare) => (spare + 1).saturating_mul(self.granularity),
            None => 0,
        }
    }

    /// Whether nothing is on its way and nothing waits for its turn.
    pub(super) fn is_empty(&self) -> bool {
        self.in_use() == 0 && self.filling.len() == 0
    }

    /// Takes an item of the source in; sends the message when it is full.
    #[inline]
    pub(super) fn push<I: Payload>(&mut self, item: &I, deliver: &mut impl Deliver<R>) {
        if std::mem::replace(&mut self.encoding, true) {
            // The serializer of the item before panicked: its position stays empty, so the batch ends there.
            self.flush(deliver);
        }
        let index = self.pulled;
        self.pulled += 1;
        let limit = self.max_payload;
        let result = if self.granularity == 1 {
            codec::encode(item, limit).map(|input| {
                let at = self.open(index, 1);
                self.send(at, Parcel { code: self.code, batch: None, input }, false, deliver);
            })
        } else {
            if self.filling.len() == 0 {
                self.filling_first = index;
            }
            self.filling.push(item, limit)
        };
        self.encoding = false;
        if let Err(error) = result {
            self.flush(deliver);
            let at = self.open(index, 1);
            self.fail_rest(at, &encode_error(error), deliver);
        } else if self.filling.len() as usize >= self.granularity {
            self.flush(deliver);
        }
    }

    /// Whether items of this type are [`fill`](Self::fill)ed in.
    #[inline]
    pub(super) fn fills<I: Payload>(&self) -> bool {
        self.granularity > 1 && BatchBytes::are_plain::<I>(self.max_payload)
    }

    /// Takes items of a plain type in, whose encoding is no user code, until the message is full and sent, something has
    /// come, or the stream is over. `false`: the source has ended.
    #[inline]
    pub(super) fn fill<T: Iterator<Item = B>, I: Payload, B: Borrow<I>>(
        &mut self,
        source: &mut Option<T>,
        deliver: &mut impl Deliver<R>,
    ) -> bool {
        if self.filling.len() == 0 {
            self.filling_first = self.pulled;
        }
        let goal = u32::try_from(self.granularity).unwrap_or(u32::MAX);
        // The end of the stream or of its pool is an arrival, too.
        let arrivals = &*self.arrivals;
        let enough = || arrivals.any();
        let more = self.filling.fill::<T, I, B>(source, goal, &mut self.pulled, enough);
        if self.filling.len() >= goal {
            self.flush(deliver);
        }
        more
    }

    /// An item of the source that no worker is needed for: its outcome is an error in its place, which the caller
    /// replaces.
    pub(super) fn hold_place(&mut self, deliver: &mut impl Deliver<R>) {
        self.flush(deliver);
        let index = self.pulled;
        self.pulled += 1;
        let at = self.open(index, 1);
        self.fail_rest(at, &TaskError::Cancelled, deliver);
    }

    /// Whether the source is not to be pulled again.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.control.is_over()
    }

    /// Whether this is the process of the pool.
    pub(super) fn is_here(&self) -> bool {
        self.handle.core().is_here()
    }

    /// In another process than the pool's, nothing more comes of what was on its way.
    pub(super) fn disown(&mut self, deliver: &mut impl Deliver<R>) {
        self.flush(deliver);
        for at in 0..self.slots.len() {
            if self.slots[at].job.take().is_some() {
                self.fail_rest(at, &TaskError::NotInThisProcess, deliver);
            }
        }
    }

    /// A stopper wants to know the jobs.
    pub(super) fn be_watched(&self) {
        for (at, slot) in self.slots.iter().enumerate() {
            if let Some(job) = slot.job {
                self.control.note(at, Message { first: slot.first, job, generation: job.generation() });
            }
        }
    }

    /// Sends the batch that is being filled, if there is one.
    pub(super) fn flush(&mut self, deliver: &mut impl Deliver<R>) {
        let items = self.filling.len();
        if items > 0 {
            let input = self.filling.finish();
            let at = self.open(self.filling_first, items);
            let parcel = Parcel { code: self.code, batch: Some(Batch { items, done: 0 }), input };
            self.send(at, parcel, false, deliver);
        }
    }

    /// Takes a slot for a message of so many items.
    fn open(&mut self, first: u64, items: u32) -> usize {
        let at = self.free.pop().unwrap_or_else(|| {
            let address = Address { slot: self.slots.len() as u32, epoch: 0 };
            let records = Arc::new(Records { address, arrivals: self.arrivals.clone() });
            let (bytes, held) = (Vec::new(), VecDeque::new());
            self.slots.push(Slot {
                job: None,
                records,
                items: 0,
                received: 0,
                first: 0,
                bytes,
                held,
                due: None,
                losses: 0,
            });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[at];
        (slot.items, slot.received, slot.first) = (items, 0, first);
        (slot.due, slot.losses) = (None, 0);
        if self.ordered {
            self.order.push_back(at);
        }
        at
    }

    fn send(&mut self, at: usize, parcel: Parcel, again: bool, deliver: &mut impl Deliver<R>) {
        let core = self.handle.core();
        if !core.is_here() {
            return self.fail_rest(at, &TaskError::NotInThisProcess, deliver);
        }
        if self.control.is_stopped() {
            return self.fail_rest(at, &TaskError::Cancelled, deliver);
        }
        // What is sent again has the time that is left.
        let mut terms = self.terms.map(Terms::starting_now);
        let slot = &mut self.slots[at];
        if let Some(terms) = &mut terms {
            terms.due = slot.due.or(terms.due);
            slot.due = terms.due;
        }
        if let Some(limit) = terms.unwrap_or(core.policy.terms).expired() {
            return self.fail_rest(at, &TaskError::TimedOut { limit }, deliver);
        }
        self.messages += 1;
        let (mut held, job) = Job::allocate(core);
        held.set_batch(slot.records.clone());
        slot.job = Some(job);
        let message = Message { first: slot.first, job, generation: job.generation() };
        let deadline = terms.and_then(|terms| held.agree(terms));
        if again {
            core.submit_again(held, parcel);
        } else {
            self.station = core.submit_along(self.station, held, parcel);
        }
        if let Some(deadline) = deadline {
            core.set_deadline(deadline);
        }
        if self.control.is_watched() {
            self.control.note(at, message);
        }
    }

    /// Blocks until something has arrived.
    pub(super) fn wait(&self) {
        self.handle.core().wait(self, None);
    }

    /// Reads what has arrived.
    pub(super) fn collect(&mut self, deliver: &mut impl Deliver<R>) {
        let mut news = std::mem::take(&mut self.news);
        self.arrivals.take(&mut news);
        let mut read = 0;
        for &Note { address, what } in &news.notes {
            let len = if let What::Results(_, len) = what { len } else { 0 };
            let bytes = &news.bytes[read..read + len];
            read += len;
            self.accept(address, what, bytes, deliver);
        }
        news.clear();
        self.news = news;
    }

    /// Something has come for a message.
    #[inline]
    fn accept(&mut self, address: Address, what: What, bytes: &[u8], deliver: &mut impl Deliver<R>) {
        let at = address.slot as usize;
        let slot = &mut self.slots[at];
        if slot.records.address != address {
            // It was given up.
            return;
        }
        let valid = match what {
            What::Results(Form::Values, _) => self.read_values(at, bytes, deliver),
            What::Results(Form::Records, _) => self.read_records(at, bytes, deliver),
            What::Ended => {
                if let Some(job) = slot.job.take_if(|job| job.is_done()) {
                    self.end(at, job.take(), deliver);
                }
                true
            }
        };
        if !valid {
            self.abort(at, "a batch's results are damaged", deliver);
        }
    }

    /// Reads whole records. `false`: they make no sense.
    fn read_records(&mut self, at: usize, new: &[u8], deliver: &mut impl Deliver<R>) -> bool {
        let stride = record_stride::<R>();
        let mut kept = std::mem::take(&mut self.slots[at].bytes);
        let torn = !kept.is_empty();
        if torn {
            kept.extend_from_slice(new);
        }
        let bytes = if torn { &*kept } else { new };
        let mut read = 0;
        let valid = loop {
            let (status, payload, len) = match parse(&bytes[read..], stride, self.max_payload) {
                Parsed::Partial => break true,
                Parsed::Invalid => break false,
                Parsed::Record { status, payload, bytes } => (status, payload, bytes),
            };
            if self.slots[at].received == self.slots[at].items {
                break false;
            }
            let item = match status {
                Status::Value => codec::decode::<R>(payload).map_err(TaskError::Decode),
                Status::SizedValue => {
                    self.aligned.clear_for_reuse();
                    self.aligned.extend_from_slice(payload);
                    task::decode_aligned::<R>(&self.aligned)
                }
                status => Err(task::error_of(status, payload)),
            };
            read += len;
            self.settle(at, item, deliver);
        };
        if torn {
            kept.drain(..read);
        } else {
            kept.extend_from_slice(&new[read..]);
        }
        self.slots[at].bytes = kept;
        valid
    }

    /// Settles a run of bare values. `false`: they make no sense.
    #[inline]
    fn read_values(&mut self, at: usize, bytes: &[u8], deliver: &mut impl Deliver<R>) -> bool {
        let (Some(stride), Some(width)) = (record_stride::<R>(), value_bytes::<R>()) else { return false };
        let value = |bytes: &[u8]| codec::plain_value::<R>(&bytes[..stride]);
        let front = !self.ordered || self.order.front() == Some(&at);
        let slot = &mut self.slots[at];
        let count = bytes.len() / width;
        if count * width != bytes.len() || count > (slot.items - slot.received) as usize {
            return false;
        }
        let first = slot.first + u64::from(slot.received);
        slot.received += count as u32;
        slot.losses = 0;
        if front {
            for (first, bytes) in (first..).step_by(RUN).zip(bytes.chunks(RUN * width)) {
                // On the stack, where nothing else can be, so that the caller's function keeps what it counts in registers.
                let mut run = [0; RUN * STRIDE_MAX];
                let run = &mut run[..bytes.len()];
                run.copy_from_slice(bytes);
                deliver.run(first, run.chunks_exact(width).map_while(value));
            }
        } else {
            slot.held.extend(bytes.chunks_exact(width).map_while(value).map(Ok));
        }
        true
    }

    /// The next item of a message has this outcome.
    #[inline]
    fn settle(&mut self, at: usize, item: Item<R>, deliver: &mut impl Deliver<R>) {
        let front = !self.ordered || self.order.front() == Some(&at);
        let slot = &mut self.slots[at];
        let index = slot.first + u64::from(slot.received);
        slot.received += 1;
        slot.losses = 0;
        if front {
            deliver.one(index, item);
        } else {
            slot.held.push_back(item);
        }
    }

    /// The message's job has ended.
    fn end(&mut self, at: usize, outcome: Outcome, deliver: &mut impl Deliver<R>) {
        match outcome {
            Outcome::Reply(Reply { status: Status::BatchDone, .. }) => {
                // All there, unless the worker miscounted.
                self.fail_rest(at, &damaged("a batch ended before its items"), deliver);
            }
            Outcome::Small(reply) if reply.status == Status::Value && self.slots[at].items == 1 => {
                let item = task::decode_small(&reply);
                self.settle(at, item, deliver);
                self.close(at, deliver);
            }
            Outcome::Small(reply) => self.end(at, Outcome::Reply(reply.into()), deliver),
            Outcome::Reply(Reply { status: Status::Value, body }) if self.slots[at].items == 1 => {
                let item = task::decode(body);
                self.settle(at, item, deliver);
                self.close(at, deliver);
            }
            Outcome::Reply(reply) => {
                self.fail_rest(at, &task::error_of(reply.status, reply.body.as_bytes()), deliver);
            }
            Outcome::Failed(error) => self.fail_rest(at, &error, deliver),
            Outcome::BatchLost(lost) => {
                let (parcel, error, scene) = *lost;
                if let Some(scene) = scene {
                    self.save_item(at, &parcel, scene);
                }
                self.go_on(at, parcel, error, deliver);
            }
        }
    }

    /// The item that was running is one whose inputs are to be kept, unless it is to be started again.
    #[cold]
    fn save_item(&self, at: usize, parcel: &Parcel, scene: Scene) {
        let (core, slot) = (self.handle.core(), &self.slots[at]);
        let retries = self.terms.unwrap_or(core.policy.terms).retries;
        if slot.received == slot.items || scene.is_loss && slot.losses < retries {
            return;
        }
        let Some((saver, about)) = core.crashers.as_ref().zip(parcel.code.about(&core.objects)) else {
            return;
        };
        let (items, running) = (slot.items as usize, slot.received as usize);
        if let Some(item) = item_of(parcel.input.as_bytes(), items, running, about.shape) {
            saver.keep(scene, Some(about), Encoded::Heap(AlignedBytes::from(item)));
            saver.start();
        }
    }

    /// A batch was cut short, by the end of its worker if there is an error: the item that was running fails, and the rest
    /// runs elsewhere.
    fn go_on(
        &mut self,
        at: usize,
        mut parcel: Parcel,
        error: Option<TaskError>,
        deliver: &mut impl Deliver<R>,
    ) {
        let retries = self.terms.unwrap_or(self.handle.core().policy.terms).retries;
        let slot = &mut self.slots[at];
        // A record that is not whole was the victim's.
        slot.bytes.clear();
        match error {
            Some(error) if slot.received < slot.items => {
                slot.losses += 1;
                if !error.is_worker_lost() || slot.losses > retries {
                    let error = error.after_attempts(slot.losses);
                    self.settle(at, Err(error), deliver);
                }
            }
            _ => {}
        }
        let Slot { items, received: done, .. } = self.slots[at];
        if done == items {
            return self.close(at, deliver);
        }
        parcel.batch = Some(Batch { items, done });
        self.send(at, parcel, true, deliver);
    }

    /// Gives up on a message whose results make no sense.
    fn abort(&mut self, at: usize, why: &str, deliver: &mut impl Deliver<R>) {
        if let Some(job) = self.slots[at].job.take() {
            let (core, generation) = (self.handle.core(), job.generation());
            if job.abandon(false) {
                core.call_off(job, generation, &TaskError::Cancelled);
            }
        }
        let slot = &mut self.slots[at];
        slot.bytes.clear();
        // For as long as the worker goes on, more may come.
        let address = Address { epoch: slot.records.address.epoch.wrapping_add(1), ..slot.records.address };
        slot.records = Arc::new(Records { address, arrivals: self.arrivals.clone() });
        self.fail_rest(at, &damaged(why), deliver);
    }

    fn fail_rest(&mut self, at: usize, error: &TaskError, deliver: &mut impl Deliver<R>) {
        while self.slots[at].received < self.slots[at].items {
            self.settle(at, Err(error.clone()), deliver);
        }
        self.close(at, deliver);
    }

    /// All items of a message have their outcomes.
    fn close(&mut self, at: usize, deliver: &mut impl Deliver<R>) {
        self.slots[at].bytes.clear();
        if !self.ordered {
            self.free.push(at);
            return;
        }
        // In order: the front message leaves when it is complete, and the next one's results may go out.
        while let Some(&front) = self.order.front() {
            let slot = &mut self.slots[front];
            let next = slot.first + u64::from(slot.received) - slot.held.len() as u64;
            (next..).zip(slot.held.drain(..)).for_each(|(index, item)| deliver.one(index, item));
            // All results may be there before the news that the job has ended, which must not find the slot's next message.
            if slot.received < slot.items || slot.job.is_some() {
                break;
            }
            self.free.push(front);
            self.order.pop_front();
        }
    }
}

/// So many values are delivered in one go.
const RUN: usize = 128;

#[cold]
fn damaged(why: &str) -> TaskError {
    TaskError::Decode(CodecError::new(why))
}

impl<R: Payload> Awaited for Engine<R> {
    fn is_done(&self) -> bool {
        self.arrivals.any()
    }

    fn station(&self) -> usize {
        let oldest =
            self.order.iter().map(|&at| &self.slots[at]).chain(&self.slots).find_map(|slot| slot.job);
        oldest.map_or(0, |job| job.place().station)
    }

    fn job(&self) -> Option<&'static Job> {
        None
    }

    fn register(&self, waker: &Waker) -> Poll<()> {
        self.arrivals.register(waker)
    }

    fn is_everywhere(&self) -> bool {
        true
    }

    fn call_off(&self, core: &Core, error: &TaskError) {
        for job in self.slots.iter().filter_map(|slot| slot.job) {
            core.call_off(job, job.generation(), error);
        }
    }
}

impl<R> Drop for Engine<R> {
    /// Calls off what has not started; what is running can see that it is cancelled.
    fn drop(&mut self) {
        let core = self.handle.core();
        if !core.is_here() {
            return;
        }
        self.arrivals.close();
        let mut messages = Vec::new();
        for slot in &mut self.slots {
            if let Some(job) = slot.job.take() {
                // Once abandoned, the cell may be somebody else's.
                let message = Message { first: slot.first, job, generation: job.generation() };
                if job.abandon(false) {
                    messages.push(message);
                }
            }
        }
        call_off(core, messages.clone());
        if self.terms.is_some_and(|terms| terms.kill_on_drop) {
            for Message { job, generation, .. } in messages {
                core.kill(job, generation, &TaskError::Cancelled, Why::Killed);
            }
        }
    }
}
