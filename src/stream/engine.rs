//! The window of a stream: messages on their way, results that wait for their turn.

use std::borrow::Borrow;
use std::cell::Cell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::Granularity;
use super::auto::Auto;
use super::records::{Address, Arrivals, News, Note, Records, What};
use super::stop::{Control, Message, call_off};
use crate::caller::Caller;
use crate::context::{BatchBytes, Named, item_of};
use crate::error::{CodecError, TaskError};
use crate::life::core::Core;
use crate::life::crashers::Scene;
use crate::life::job::{Job, Outcome};
use crate::life::terms::Terms;
use crate::life::timers::Timer;
use crate::life::verdict::Why;
use crate::life::wait::Awaited;
use crate::memory::codec::{self, AlignedBytes, Encoded, Payload};
use crate::pool::{Handle, encode_error};
use crate::protocol::code::CodeId;
use crate::protocol::lane::{Batch, Form, Parcel, Reply};
use crate::protocol::records::{Parsed, parse, record_stride, value_bytes};
use crate::protocol::wire::{Status, time_of_code};
use crate::task;

/// Batches in flight for each worker. Deep enough that a worker never waits for the caller, shallow enough that little
/// has to move when a worker falls behind.
const DEPTH: usize = 16;
/// An automatic message waits for so long for a slow source to fill it.
const FILL_TIME_MAX: Duration = Duration::from_millis(1);
/// With few items in a message, a deeper window makes up for the caller's pauses.
const DEPTH_SMALL: usize = 64;
const SMALL: usize = 16;
/// An automatic message with so many bytes is full.
const AUTO_BYTES_MAX: usize = 128 << 10;
/// An item that has not ended between two looks, so far apart, is slow: others do not wait behind it.
const SLOW: Duration = Duration::from_millis(2);

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
    /// In which step of an automatic granularity it was made.
    step: u32,
    /// How many items were done when it was sent, and at the last look at what is slow.
    received_sent: u32,
    received_seen: Option<u32>,
}

/// What a message has to carry.
#[derive(Debug)]
enum Load {
    /// An item by itself.
    One(Encoded),
    /// What has been filled in.
    Filled,
    /// What is left of a batch.
    Again(Parcel),
}

/// Whether a message that was begun then, and has so many items by now, has waited for more of them for long enough. The clock
/// is read for the first items and then for one in 64: a source is slow from its first item on, or hardly ever.
#[inline]
fn is_late(begun_at: Option<Instant>, items: u32) -> bool {
    begun_at.is_some_and(|at| (items < 8 || items.is_multiple_of(64)) && at.elapsed() > FILL_TIME_MAX)
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Engine<R> {
    handle: Handle,
    control: Arc<Control>,
    code: CodeId,
    ordered: bool,
    /// Items of a message: fixed, or of the one that is being filled.
    granularity: usize,
    auto: Option<Auto>,
    /// Whether the message that is being filled is an item by itself.
    alone: bool,
    /// When the message that is being filled was begun, if it is not to wait for a slow source.
    begun_at: Option<Instant>,
    /// How many items the source has in all, if it is known.
    total: Option<u64>,
    /// When to look for slow items again.
    look_at: Option<Instant>,
    /// When the last timed answer was read.
    answered_at: Option<Instant>,
    max_payload: usize,
    /// `None`: the pool's.
    terms: Option<Terms>,
    /// How many messages the window holds, if that is fixed; and how many items, if that was asked for.
    window: Option<usize>,
    window_items: Option<usize>,
    /// Items whose messages are over.
    closed: u64,
    /// Where the last message went.
    station: usize,
    slots: Vec<Slot<R>>,
    free: Vec<usize>,
    /// In an ordered stream, the slots in use, in the order of their items.
    order: VecDeque<usize>,
    arrivals: Arc<Arrivals>,
    /// What has come, and how much of it has been read.
    news: News,
    notes_read: usize,
    bytes_read: usize,
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
        granularity: Granularity,
        window: Option<usize>,
        ordered: bool,
        terms: Option<Terms>,
    ) -> Self {
        let core = handle.core();
        let code = CodeId::of(named.code, named.types, &core.objects);
        let workers = core.stations.len();
        let window_items = window;
        let (granularity, auto, window) = match granularity {
            Granularity::Fixed(items) => {
                let depth = if items < SMALL { DEPTH_SMALL } else { DEPTH };
                let window = window.map_or(workers * depth, |window| window.div_ceil(items).max(1));
                (items, None, Some(window))
            }
            Granularity::Auto => (1, Some(Auto::new(workers, window)), None),
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
            alone: auto.is_none() && granularity == 1,
            auto,
            begun_at: None,
            total: None,
            look_at: None,
            answered_at: None,
            max_payload,
            terms,
            window,
            window_items,
            closed: 0,
            station,
            slots: Vec::new(),
            free: Vec::new(),
            order: VecDeque::new(),
            arrivals,
            news: News::default(),
            notes_read: 0,
            bytes_read: 0,
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

    /// How much the window holds while so many results wait to be asked for.
    pub(super) fn room(&self, waiting: usize) -> Room {
        let messages = self.window().saturating_sub(waiting / self.granularity);
        let items = match self.window_items {
            Some(items) if self.auto.is_some() => items.max(1).saturating_sub(waiting) as u64,
            _ => u64::MAX,
        };
        Room { messages, items }
    }

    /// Messages of the window.
    fn window(&self) -> usize {
        let automatic = || self.handle.core().stations.len() * self.auto.as_ref().map_or(DEPTH, Auto::depth);
        self.window.unwrap_or_else(automatic)
    }

    /// Whether another item may be pulled from the source, in a window of that size.
    #[inline]
    pub(super) fn wants_items(&self, room: Room) -> bool {
        self.in_use() < room.messages && self.pulled - self.closed < room.items
    }

    /// The source has so many items in all.
    pub(super) fn expect(&mut self, total: Option<u64>) {
        self.total = total;
    }

    /// The next message begins.
    #[inline]
    fn begin(&mut self) {
        self.filling_first = self.pulled;
        if let Some(auto) = &mut self.auto {
            let left = self.total.map(|total| total.saturating_sub(self.pulled));
            self.granularity = auto.size(left);
            self.alone = self.granularity == 1 && auto.skips_timing();
            self.begun_at = (self.granularity > 1).then(Instant::now);
        }
    }

    /// While fewer results than this wait, the window is at most half full: time to pull even though they do.
    pub(super) fn low_mark(&self) -> usize {
        // `in_use + waiting / granularity <= window / 2`, without a division for each result.
        match (self.window() / 2).checked_sub(self.in_use()) {
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
            self.closed += 1;
            self.flush(deliver);
        }
        if self.filling.len() == 0 {
            self.begin();
        }
        let index = self.pulled;
        self.pulled += 1;
        let limit = self.max_payload;
        let result = if self.alone {
            codec::encode(item, limit).map(|input| {
                let at = self.open(index, 1, None);
                self.send(at, Load::One(input), deliver);
            })
        } else {
            self.filling.push(item, limit)
        };
        self.encoding = false;
        if let Err(error) = result {
            self.flush(deliver);
            let at = self.open(index, 1, None);
            self.fail_rest(at, &encode_error(error), deliver);
        } else if self.filling.len() as usize >= self.granularity
            || self.auto.is_some() && self.filling.bytes() >= AUTO_BYTES_MAX
            || is_late(self.begun_at, self.filling.len())
        {
            self.flush(deliver);
        }
    }

    /// Whether items of this type are [`fill`](Self::fill)ed in.
    #[inline]
    pub(super) fn fills<I: Payload>(&self) -> bool {
        (self.granularity > 1 || self.auto.is_some()) && BatchBytes::are_plain::<I>(self.max_payload)
    }

    /// Takes items of a plain type in, whose encoding is no user code, until the message is full and sent, something has
    /// come, or the stream is over. `false`: the source has ended.
    #[inline]
    pub(super) fn fill<T: Iterator<Item = B>, I: Payload, B: Borrow<I>>(
        &mut self,
        source: &mut Option<T>,
        room: Room,
        deliver: &mut impl Deliver<R>,
    ) -> bool {
        if self.filling.len() == 0 {
            self.begin();
        }
        let goal = u32::try_from(self.granularity).unwrap_or(u32::MAX);
        let room = room.items.saturating_sub(self.pulled - self.closed);
        let most = room.saturating_add(self.filling.len().into()).min(goal.into()) as u32;
        // The end of the stream or of its pool is an arrival, too.
        let arrivals = &*self.arrivals;
        let (begun_at, items, late) = (self.begun_at, Cell::new(0), Cell::new(false));
        let enough = || {
            items.set(items.get() + 1);
            late.set(is_late(begun_at, items.get()));
            late.get() || arrivals.any()
        };
        let more = self.filling.fill::<T, I, B>(source, most, &mut self.pulled, enough);
        if self.filling.len() >= goal || late.get() {
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
        let at = self.open(index, 1, None);
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
            let at = self.open(self.filling_first, items, None);
            self.send(at, Load::Filled, deliver);
        }
    }

    /// Takes a slot for a message of so many items; its place in the order of an ordered stream, if that is not the end.
    fn open(&mut self, first: u64, items: u32, place: Option<usize>) -> usize {
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
                step: 0,
                received_sent: 0,
                received_seen: None,
            });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[at];
        (slot.items, slot.received, slot.first) = (items, 0, first);
        (slot.due, slot.losses) = (None, 0);
        slot.step = self.auto.as_ref().map_or(0, Auto::step);
        if self.ordered {
            self.order.insert(place.unwrap_or(self.order.len()), at);
        }
        at
    }

    fn send(&mut self, at: usize, load: Load, deliver: &mut impl Deliver<R>) {
        let core = self.handle.core();
        let refusal = if !core.is_here() {
            Some(TaskError::NotInThisProcess)
        } else if self.control.is_stopped() {
            Some(TaskError::Cancelled)
        } else {
            None
        };
        // What is sent again has the time that is left.
        let mut terms = self.terms.map(Terms::starting_now);
        let slot = &mut self.slots[at];
        if let Some(terms) = &mut terms {
            terms.due = slot.due.or(terms.due);
            slot.due = terms.due;
        }
        let refusal = refusal.or_else(|| {
            let limit = terms.unwrap_or(core.policy.terms).expired()?;
            Some(TaskError::TimedOut { limit })
        });
        if let Some(error) = refusal {
            if let Load::Filled = load {
                self.filling.clear();
            }
            return self.fail_rest(at, &error, deliver);
        }
        self.messages += 1;
        let (mut held, job) = Job::allocate(core);
        held.set_batch(slot.records.clone());
        held.note_caller(Caller::current());
        slot.job = Some(job);
        (slot.received_sent, slot.received_seen) = (slot.received, None);
        let timed = self.auto.is_some();
        let message = Message { first: slot.first, job, generation: job.generation() };
        let deadline = terms.and_then(|terms| held.agree(terms));
        match load {
            Load::Again(parcel) => core.submit_again(held, parcel),
            Load::One(input) => {
                let parcel = Parcel { code: self.code, batch: None, input };
                self.station = core.submit_along(self.station, held, parcel);
            }
            Load::Filled => {
                let (code, batch) = (self.code, Batch { items: slot.items, done: 0, timed });
                let payload = self.filling.payload();
                self.station = match core.submit_batch_along(self.station, held, code, batch, payload) {
                    Ok((station, ahead)) => {
                        self.filling.clear();
                        self.filling.ahead = ahead;
                        station
                    }
                    Err((held, station)) => {
                        let parcel = Parcel { code, batch: Some(batch), input: self.filling.finish() };
                        core.leave_at(station, held, parcel);
                        station
                    }
                };
            }
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
        self.gather();
        while let Some(run) = self.read_note(deliver) {
            deliver.run(run.first, run.values());
        }
    }

    /// Takes what has arrived, to be [read](Self::read_note) note by note. `false`: nothing has.
    pub(super) fn gather(&mut self) -> bool {
        let news = !self.is_reading() && self.has_news();
        if news {
            self.news.clear();
            (self.notes_read, self.bytes_read) = (0, 0);
            self.arrivals.take(&mut self.news);
        }
        news
    }

    /// Whether some of what was gathered is still to be read.
    pub(super) fn is_reading(&self) -> bool {
        self.notes_read < self.news.notes.len()
    }

    /// Reads the next note of what was gathered: delivers its results, or gives them back if they are values whose turn it
    /// is. `None`: all has been read.
    pub(super) fn read_note(&mut self, deliver: &mut impl Deliver<R>) -> Option<Run<'_, R>> {
        let &Note { address, what } = self.news.notes.get(self.notes_read)?;
        self.notes_read += 1;
        let len = if let What::Results(_, len) = what { len } else { 0 };
        let start = self.bytes_read;
        self.bytes_read += len;
        let bytes = std::mem::take(&mut self.news.bytes);
        let first = self.accept(address, what, &bytes[start..start + len], deliver);
        self.news.bytes = bytes;
        let run = if first.is_some() { &self.news.bytes[start..start + len] } else { &[] };
        Some(Run { first: first.unwrap_or_default(), bytes: run, _values: PhantomData })
    }

    /// Something has come for a message. The index of the first one, if they are values whose turn it is.
    #[inline]
    fn accept(
        &mut self,
        address: Address,
        what: What,
        bytes: &[u8],
        deliver: &mut impl Deliver<R>,
    ) -> Option<u64> {
        let at = address.slot as usize;
        let slot = &mut self.slots[at];
        if slot.records.address != address {
            // It was given up.
            return None;
        }
        let mut run = None;
        let valid = match what {
            What::Results(Form::Values, _) => self.read_values(at, bytes, &mut run),
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
        run
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

    /// Settles a run of bare values; `run` is the index of the first one if it is their turn. `false`: they make no sense.
    #[inline]
    fn read_values(&mut self, at: usize, bytes: &[u8], run: &mut Option<u64>) -> bool {
        let Some(width) = value_bytes::<R>() else { return false };
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
            *run = Some(first);
        } else {
            slot.held.extend(Run { first, bytes, _values: PhantomData }.values().map(Ok));
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
            Outcome::Reply(Reply { status: Status::BatchDone, body }) => {
                let time = body.as_bytes().first().and_then(|&code| time_of_code(code));
                if let (Some(auto), Some(ns)) = (&mut self.auto, time) {
                    let slot = &self.slots[at];
                    let now = Instant::now();
                    if let Some(before) = self.answered_at.replace(now) {
                        auto.answered(now.duration_since(before).as_nanos() as u64, ns);
                    }
                    auto.done(slot.step, slot.items - slot.received_sent, ns);
                }
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
        // One that was shortened still has the table of all that it had.
        let items = parcel.batch.map_or(slot.items, |batch| batch.items) as usize;
        let running = slot.received as usize;
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
        if let Some(batch) = parcel.batch.filter(|batch| batch.items != items) {
            // It was shortened, and a batch consists of its items and nothing else.
            let part = self.filling.part(parcel.input.as_bytes(), batch.items as usize, 0..items as usize);
            let Some(input) = part else {
                return self.fail_rest(at, &damaged("a batch's table is damaged"), deliver);
            };
            parcel.input = input;
        }
        let timed = self.auto.is_some();
        parcel.batch = Some(Batch { items, done, timed });
        self.send(at, Load::Again(parcel), deliver);
    }

    /// To be called before a wait for results, where all that has come has been read: takes back what waits behind a slow item
    /// while there is a worker that has nothing to do, and has the stream woken when it is time to look again.
    pub(super) fn mind_slow_items(&mut self, deliver: &mut impl Deliver<R>) {
        let is_batch = |slot: &Slot<R>| slot.job.is_some() && slot.items - slot.received > 1;
        if self.auto.is_none() || !self.slots.iter().any(is_batch) {
            return;
        }
        let now = Instant::now();
        if self.look_at.is_some_and(|at| now < at) {
            return;
        }
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            if is_batch(slot) && slot.received_seen.replace(slot.received) == Some(slot.received) {
                self.shorten(at, deliver);
            }
        }
        self.look_at = Some(now + SLOW);
        self.handle.core().set_timer(now + SLOW, Timer::Wake(Waker::from(self.arrivals.clone())));
    }

    /// If this message is at the item at which it was when it was looked at last, the items behind go elsewhere.
    fn shorten(&mut self, at: usize, deliver: &mut impl Deliver<R>) {
        let core = self.handle.core();
        let Some(job) = self.slots[at].job else { return };
        let generation = job.generation();
        if !core.is_running(job, generation) {
            return;
        }
        // That has delivered what there is.
        self.collect(deliver);
        let slot = &self.slots[at];
        if slot.received_seen != Some(slot.received) || slot.job.is_none() {
            return;
        }
        if let Some(auto) = &mut self.auto {
            auto.is_running(SLOW.as_nanos() as u64);
        }
        let core = self.handle.core();
        if !core.idle.any() {
            return;
        }
        let Some(Parcel { code: _, batch: Some(batch), input }) = core.shorten(job, generation) else {
            return;
        };
        self.collect(deliver);
        let slot = &mut self.slots[at];
        let (first, rest, items) = (slot.first, slot.received + 1, slot.items);
        // It may have ended since, and what remained of it been sent again.
        let is_same = slot.job.is_some_and(|now| std::ptr::eq(now, job) && now.generation() == generation);
        if !is_same || rest >= items {
            return;
        }
        // Of the items that have no result the first one runs there, or comes back with what remains of the message.
        let Some(parts) = self.parts(&input, batch, rest..items) else { return };
        let slot = &mut self.slots[at];
        slot.items = rest;
        let mut place = self.order.iter().position(|&other| other == at);
        for (part, input) in parts {
            place = place.map(|place| place + 1);
            let to = self.open(first + u64::from(part.start), part.end - part.start, place);
            let batch = Some(Batch { items: part.end - part.start, done: 0, timed: true });
            self.send(to, Load::Again(Parcel { code: self.code, batch, input }), deliver);
        }
    }

    /// Items of a message as messages of their own.
    fn parts(&self, input: &Encoded, batch: Batch, items: Range<u32>) -> Option<Vec<(Range<u32>, Encoded)>> {
        let workers = self.handle.core().stations.len() as u32;
        let size = self.auto.as_ref()?.size(None) as u32;
        let size = size.min(items.len().div_ceil(workers as usize) as u32).max(1);
        let starts = items.clone().step_by(size as usize);
        let parts = starts.map(|start| {
            let part = start..items.end.min(start + size);
            let range = part.start as usize..part.end as usize;
            Some((part, self.filling.part(input.as_bytes(), batch.items as usize, range)?))
        });
        parts.collect()
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
            self.closed += u64::from(self.slots[at].items);
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
            self.closed += u64::from(slot.items);
            self.free.push(front);
            self.order.pop_front();
        }
    }
}

/// How much a window holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    messages: usize,
    items: u64,
}

/// Values of items that follow each other, as they came.
#[derive(Debug)]
pub(super) struct Run<'a, R> {
    /// The index of the first item.
    pub(super) first: u64,
    bytes: &'a [u8],
    _values: PhantomData<fn() -> R>,
}

impl<'a, R: Payload> Run<'a, R> {
    pub(super) fn empty() -> Self {
        Self { first: 0, bytes: &[], _values: PhantomData }
    }

    #[inline]
    pub(super) fn values(&self) -> impl Iterator<Item = R> + use<'a, R> {
        let (stride, width) = (record_stride::<R>().unwrap_or(0), value_bytes::<R>().unwrap_or(1));
        self.bytes.chunks_exact(width).map_while(move |bytes| codec::plain_value::<R>(&bytes[..stride]))
    }
}

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
