//! A stream of single items, each of which is a task like any other.
//!
//! With one item in a message there is nothing to collect: the window is a row of tasks, whose cells say when they are done. Who
//! delivers their results does not have to know of the stream, unless that sleeps (edge ITEMS).

use std::cell::Cell;
use std::collections::VecDeque;
use std::task::{Poll, Waker};

use super::Engine;
use crate::caller::Caller;
use crate::error::TaskError;
use crate::ground::sys::clock;
use crate::life::job::Job;
use crate::life::terms::Terms;
use crate::memory::codec::{self, Payload};
use crate::pool::encode_error;
use crate::protocol::lane::{Parcel, SmallRequest};
use crate::protocol::records::{record_stride, value_bytes};
use crate::stream::results::{Outbox, Run};
use crate::stream::stop::Message;
use crate::task;

/// After so many items a stream looks what has come. Each look takes a line away from the worker that it is about to write to.
const BURST: u32 = 40;
/// Cells that a glance takes in.
const GLANCE: usize = 64;

/// An item on its way.
#[derive(Debug)]
pub(super) struct Single {
    pub(super) index: u64,
    pub(super) job: &'static Job,
    /// Its number among those that are on their way.
    place: u32,
}

/// The window of a stream of single items.
#[derive(Debug, Default)]
pub(super) struct Singles {
    /// What the pool knows the stream by.
    tag: u8,
    /// In the order of their items, if that matters.
    row: VecDeque<Single>,
    free_places: Vec<u32>,
    places: u32,
    /// Sent since the last look, and when that was, on the coarse clock.
    sent: u32,
    looked_ns: u64,
    /// The item of the first value that was collected last.
    run_first: u64,
    /// Whether there was a result behind one that is missing at the last look.
    has_later: bool,
    /// Where the next [glance](Singles::glance) goes on.
    glanced: Cell<usize>,
}

impl Singles {
    pub(super) fn new(tag: u8) -> Self {
        Self { tag, ..Self::default() }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.row.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Single> {
        self.row.iter()
    }

    pub(super) fn oldest(&self) -> Option<&'static Job> {
        self.row.front().map(|single| single.job)
    }

    /// Whether there is a result to out, as far as was seen at the last look: two loads.
    #[inline]
    pub(super) fn has_next(&self) -> bool {
        self.has_later || self.row.front().is_some_and(|single| single.job.is_done())
    }

    /// Whether there is a result to deliver.
    #[inline]
    pub(super) fn has_any(&self, ordered: bool) -> bool {
        match ordered {
            true => self.has_next(),
            false => self.row.iter().any(|single| single.job.is_done()),
        }
    }

    /// As [`has_any`](Self::has_any), for whoever asks time and again: of a long row each time a part.
    #[inline]
    pub(super) fn glance(&self, ordered: bool) -> bool {
        if ordered || self.row.len() <= GLANCE {
            return self.has_any(ordered);
        }
        let start = self.glanced.get() % self.row.len();
        let part = start..self.row.len().min(start + GLANCE);
        self.glanced.set(part.end);
        self.has_next() || self.row.range(part).any(|single| single.job.is_done())
    }

    fn place(&mut self) -> u32 {
        self.free_places.pop().unwrap_or_else(|| {
            self.places += 1;
            self.places - 1
        })
    }

    /// Whether it is time to look what has come: every so often, so that a source that takes its time does not keep results from
    /// whoever waits for them.
    #[inline]
    fn is_time(&mut self) -> bool {
        self.sent = self.sent.saturating_add(1);
        let now_ns = clock::coarse_now_ns();
        // Whatever has come, there is something on its way while it is delivered.
        let is_time = self.row.len() > 1 && (self.sent >= BURST || now_ns != self.looked_ns);
        if is_time {
            (self.sent, self.looked_ns) = (0, now_ns);
        }
        is_time
    }

    /// Nobody wants what is on its way: what of it is not over.
    pub(super) fn abandon(&mut self, messages: &mut Vec<Message>) {
        for Single { index: first, job, .. } in self.row.drain(..) {
            messages.extend(Message::abandon(first, job));
        }
    }
}

impl<R: Payload> Engine<R> {
    /// Takes an item in and sends it.
    #[inline]
    pub(super) fn push_single<I: Payload>(&mut self, item: &I) {
        // Before the serializer runs: should it panic, the item's position stays empty.
        let index = self.pulled;
        self.pulled += 1;
        let core = self.handle.core();
        let words = codec::plain_words(item).filter(|&(len, _)| usize::from(len) <= self.max_payload);
        if let Some((len, [low, high])) = words
            && self.terms.is_none()
            && core.takes_small()
            && core.is_here()
            && Caller::current().is_none()
            && !self.control.is_stopped()
        {
            let (held, job) = Job::allocate(core);
            held.be_item(self.singles.tag);
            let request = SmallRequest { code: self.code, words: [low, high], len: len.into() };
            self.station = core.submit_item_along(self.station, held, &request);
            self.messages += 1;
            self.add_single(index, job);
        } else {
            let job = self.send_single(item).unwrap_or_else(|error| Job::failed(self.handle.core(), error));
            self.add_single(index, job);
        }
        if self.singles.is_time() && self.is_here() {
            self.look_for_singles();
        }
    }

    /// Has what has come delivered to its cells.
    fn look_for_singles(&mut self) {
        self.handle.core().peek_at(self.station);
        self.singles.has_later = self.singles.has_any(self.ordered);
    }

    /// As [`push_single`](Self::push_single), of any item on any terms. An item that does not get as far as a worker ends with
    /// the error.
    fn send_single<I: Payload>(&mut self, item: &I) -> Result<&'static Job, TaskError> {
        let input = codec::encode(item, self.max_payload).map_err(encode_error)?;
        let terms = self.terms.map(Terms::starting_now);
        if let Some(refusal) = self.refusal(terms) {
            return Err(refusal);
        }
        let core = self.handle.core();
        let (mut held, job) = Job::allocate(core);
        held.be_item(self.singles.tag);
        held.note_caller(Caller::current());
        let deadline = terms.and_then(|terms| held.agree(terms));
        let parcel = Parcel { code: self.code, batch: None, input };
        self.station = core.submit_along(self.station, held, parcel);
        if let Some(deadline) = deadline {
            core.set_deadline(deadline);
        }
        self.messages += 1;
        Ok(job)
    }

    /// Something that needs no worker has ended so.
    pub(super) fn fail_single(&mut self, error: TaskError) {
        let (index, job) = (self.pulled, Job::failed(self.handle.core(), error));
        self.pulled += 1;
        self.add_single(index, job);
    }

    #[inline]
    fn add_single(&mut self, index: u64, job: &'static Job) {
        let place = self.singles.place();
        self.singles.row.push_back(Single { index, job, place });
        if self.control.is_watched() {
            self.note_single(&Single { index, job, place });
        }
    }

    fn note_single(&self, &Single { index: first, job, place }: &Single) {
        self.control.note(place as usize, Message::of(first, job));
    }

    /// A stopper wants to know the jobs.
    pub(super) fn note_singles(&self) {
        self.singles.iter().for_each(|single| self.note_single(single));
    }

    /// Delivers what is done, but for values of items that follow each other: they are a [run](Self::run_of_singles), to be
    /// delivered next. `false`: nothing was done.
    #[inline]
    pub(in crate::stream) fn collect_singles(&mut self, out: &mut Outbox<R>) -> bool {
        if !self.is_single {
            return false;
        }
        let before = self.singles.len();
        self.singles.has_later = false;
        self.singles.run_first = self.collect_run(out);
        if !self.ordered && !self.singles.row.is_empty() {
            self.collect_later(out);
        }
        self.singles.len() < before
    }

    /// The values that were collected last.
    #[inline]
    pub(in crate::stream) fn run_of_singles(&self) -> Run<'_, R> {
        Run::new(self.singles.run_first, &self.news.bytes)
    }

    /// The index of the first value of the run.
    #[inline]
    fn collect_run(&mut self, out: &mut Outbox<R>) -> u64 {
        let Singles { row, free_places, .. } = &mut self.singles;
        let (stride, width) = (record_stride::<R>(), value_bytes::<R>().unwrap_or(1));
        let (mut first, mut end) = (0, 0);
        self.news.bytes.clear();
        while let Some(&Single { index, job, place }) = row.front() {
            let is_next = self.news.bytes.is_empty() || index == end;
            if let Some([low, high]) = stride.filter(|_| is_next).and_then(|bytes| job.take_words(bytes)) {
                row.pop_front();
                let words = u128::from(low) | u128::from(high) << 64;
                if self.news.bytes.is_empty() {
                    first = index;
                }
                end = index + 1;
                self.news.bytes.extend_from_slice(&words.to_le_bytes()[..width]);
            } else if self.news.bytes.is_empty() && job.is_done() {
                row.pop_front();
                out.one(index, task::take_result(job));
            } else {
                break;
            }
            free_places.push(place);
        }
        first
    }

    /// Delivers what is done behind an item that is not.
    fn collect_later(&mut self, out: &mut Outbox<R>) {
        let Singles { row, free_places, .. } = &mut self.singles;
        row.retain(|&Single { index, job, place }| {
            let is_done = job.is_done();
            if is_done {
                free_places.push(place);
                out.one(index, task::take_result(job));
            }
            !is_done
        });
    }

    /// In another process than the pool's.
    pub(super) fn disown_singles(&mut self, out: &mut Outbox<R>) {
        for single in self.singles.row.drain(..) {
            single.job.discard();
            out.one(single.index, Err(TaskError::NotInThisProcess));
        }
    }

    /// As [`Awaited::register`](crate::life::wait::Awaited::register).
    pub(super) fn register_singles(&self, waker: &Waker) -> Poll<()> {
        if self.arrivals.register(waker).is_ready() {
            return Poll::Ready(());
        }
        self.handle.core().note_sleeping_stream(self.singles.tag);
        if self.singles.has_any(self.ordered) { Poll::Ready(()) } else { Poll::Pending }
    }
}
