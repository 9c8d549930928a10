//! The window of a stream: messages on their way, results that wait for their turn.
//!
//! Items go out in [`send`], their results come in through [`receive`], and some go out once more: [`again`]. What is sent item by
//! item has a window of its own: [`singles`].

mod again;
mod receive;
mod send;
mod singles;

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Instant;

use self::send::Begun;
use self::singles::Singles;
use super::Granularity;
use super::auto::Auto;
use super::records::{Arrivals, News, Records};
use super::results::Outbox;
use super::stop::{Control, Message, call_off};
use crate::context::{BatchBytes, Named};
use crate::error::TaskError;
use crate::life::core::Core;
use crate::life::job::Job;
use crate::life::terms::Terms;
use crate::life::verdict::Why;
use crate::life::wait::Awaited;
use crate::memory::codec::{AlignedBytes, Encoded, Payload};
use crate::pool::Handle;
use crate::protocol::code::CodeId;
use crate::protocol::lane::Parcel;

/// Batches in flight for each worker. Deep enough that a worker never waits for the caller, shallow enough that little
/// has to move when a worker falls behind.
const DEPTH: usize = 16;

/// With few items in a message, a deeper window makes up for the caller's pauses.
const DEPTH_SMALL: usize = 64;
const SMALL: usize = 16;

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
    held: Outbox<R>,
    /// When all of it has to be over, if it is known.
    due: Option<Instant>,
    /// How many workers were lost over the item that comes next.
    losses: u32,
    /// In which step of an automatic granularity it was made.
    step: u32,
    /// How many items were done when it was sent, and at the last look at what is slow.
    received_sent: u32,
    /// Bytes of results since then.
    result_bytes: usize,
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
    /// Whether every item is a task of its own, and those that are on their way.
    is_single: bool,
    singles: Singles,
    /// Whether the message that is being filled is an item by itself.
    alone: bool,
    /// When the message that is being filled was begun, if it is not to wait for a slow source.
    begun: Option<Begun>,
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

/// How much a window holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    messages: usize,
    items: u64,
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
        let is_single = auto.is_none() && granularity == 1;
        let tag = core.next_stream_tag();
        if is_single {
            arrivals.expect_items(tag);
        }
        Self {
            handle,
            control,
            code,
            ordered,
            granularity,
            is_single,
            singles: Singles::new(tag),
            alone: false,
            auto,
            begun: None,
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
        self.arrivals.any() || self.singles.has_any(self.ordered)
    }

    /// Likewise, as far as is known without a look at everything that is on its way.
    #[inline]
    pub(super) fn has_quick_news(&self) -> bool {
        self.arrivals.any() || self.singles.has_next()
    }

    fn in_use(&self) -> usize {
        self.slots.len() - self.free.len() + self.singles.len()
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

    /// Whether the source is not to be pulled again.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.control.is_over()
    }

    /// Whether somebody stopped the stream.
    pub(super) fn is_stopped(&self) -> bool {
        self.control.is_stopped()
    }

    /// Whether this is the process of the pool.
    pub(super) fn is_here(&self) -> bool {
        self.handle.core().is_here()
    }

    /// In another process than the pool's, nothing more comes of what was on its way.
    pub(super) fn disown(&mut self, out: &mut Outbox<R>) {
        self.flush(out);
        self.disown_singles(out);
        for at in 0..self.slots.len() {
            if self.slots[at].job.take().is_some() {
                self.fail_rest(at, &TaskError::NotInThisProcess, out);
            }
        }
    }

    /// The pool takes nothing more, and nothing is on its way: the next item of the source tells of it.
    #[cold]
    pub(super) fn refuse_item(&mut self, out: &mut Outbox<R>) {
        out.one(self.pulled, Err(self.handle.core().refusal()));
        self.pulled += 1;
    }

    /// A stopper wants to know the jobs.
    pub(super) fn be_watched(&self) {
        self.note_singles();
        for (at, slot) in self.slots.iter().enumerate() {
            if let Some(job) = slot.job {
                self.control.note(at, Message::of(slot.first, job));
            }
        }
    }

    /// The job of the oldest message, or, in a stream without an order, of one of them.
    fn oldest(&self) -> Option<&'static Job> {
        let slots = self.order.iter().map(|&at| &self.slots[at]).chain(&self.slots);
        self.singles.oldest().or_else(|| slots.into_iter().find_map(|slot| slot.job))
    }

    /// Blocks until something has arrived.
    pub(super) fn wait(&self) {
        let core = self.handle.core();
        if self.is_single && core.stations.len() > 1 {
            core.peek_everywhere();
        }
        core.wait(self, None);
    }
}

impl<R: Payload> Awaited for Engine<R> {
    fn is_done(&self) -> bool {
        self.arrivals.any() || self.singles.glance(self.ordered)
    }

    fn station(&self) -> usize {
        self.oldest().map_or(0, Job::station)
    }

    /// In an ordered stream, what comes of other messages before the oldest one ends can neither go out nor make room for another one.
    fn needs(&self) -> Option<&'static Job> {
        self.oldest().filter(|_| self.ordered)
    }

    fn job(&self) -> Option<&'static Job> {
        None
    }

    fn register(&self, waker: &Waker) -> Poll<()> {
        match self.is_single {
            true => self.register_singles(waker),
            false => self.arrivals.register(waker),
        }
    }

    fn unregister(&self) {
        self.arrivals.unregister();
    }

    fn call_off(&self, core: &Core, error: &TaskError) {
        let singles = self.singles.iter().map(|single| single.job);
        for job in self.slots.iter().filter_map(|slot| slot.job).chain(singles) {
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
        self.singles.abandon(&mut messages);
        for slot in &mut self.slots {
            if let Some(job) = slot.job.take() {
                messages.extend(Message::abandon(slot.first, job));
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
