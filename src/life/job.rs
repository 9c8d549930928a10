//! A task's cell: what a `Task` and the pool share about it.
//!
//! Cells come from a slab of this process, are never unmapped and are used again, each time under another
//! *generation*, so that a stale reference can tell. A cell is reached through plain `&'static` references.
//!
//! # Who may touch what
//!
//! * JOB-1: `stage` belongs to whoever holds the job on the pool's side (the submitting thread, then the owner of the
//!   station that its `place` names) until DONE is set; from then on it belongs to the `Task`.
//! * JOB-2: `waker` belongs to the `Task` while WAKER is clear and neither BUSY nor DONE is set, else to the pool's
//!   side. The pool's side takes it by moving WAKER → BUSY, and sets DONE after it has taken it.
//! * JOB-3: `core` is written only while the cell is free, by the thread that allocates it. A cell keeps its
//!   reference to the pool when it is freed, so that a task costs no reference count as long as cells stay with one
//!   pool.
//! * JOB-4: a cell is freed once, by the `Task` after DONE, or by the pool's side when it finds GONE.
//! * JOB-5: a cell's cold part is made once, by whoever needs it first, and never unmapped.
//!
//! | flag | set by | meaning |
//! |---|---|---|
//! | DONE | pool | `stage` holds the outcome |
//! | WAKER | task | `waker` holds a waker that wants to be called |
//! | BUSY | pool | the waker is being taken; DONE follows at once |
//! | GONE | task | nobody will take the outcome |
//! | PINNED | submitter | it must run at its station |
//! | REPORT | task | a failure goes to the log, since nobody takes the outcome |
//! | CALLED_OFF | whoever owns its station | it was cancelled while it ran |
//! | LIMITED | submitter | its terms have a time limit |
//! | PLACE | submitter | it holds a place of the pool's gate |
//! | SMALL | pool, with DONE | the outcome is in `small` and not in `stage` |
//! | KILL | submitter | who drops the task wants it killed |
//! | ITEM | submitter | it is an item of a stream, which looks for its end itself, and is [called](Core::call_streams) if it sleeps |
//! | EXTRA | whoever writes there | there may be something in the cold part that has to be dropped with the cell |
//!
//! A cell is one cache line. What only some jobs need is in its *cold part*, which is made when somebody first needs it and
//! stays with the cell. A task whose input and result fit their slots, and which nobody awaits before it is done, has none:
//! a million of them take 64 MB, and lie one behind the other.

#![allow(unsafe_code, reason = "cells are shared by hand-over, as listed above")]

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::core::Core;
use super::crashers::Scene;
use super::gate::{Gate, Pass};
use super::slab;
use super::terms::Terms;
use crate::caller::Caller;
use crate::error::TaskError;
use crate::memory::arena::ArenaReader;
use crate::protocol::code::CodeId;
use crate::protocol::lane::{Form, Parcel, Reply, SmallReply, SmallRequest};
use crate::protocol::wire::Status;

pub(crate) const DONE: u64 = 1;
const WAKER: u64 = 1 << 1;
const BUSY: u64 = 1 << 2;
const GONE: u64 = 1 << 3;
const PINNED: u64 = 1 << 4;
const REPORT: u64 = 1 << 5;
const LIMITED: u64 = 1 << 6;
const PLACE: u64 = 1 << 7;
const CALLED_OFF: u64 = 1 << 8;
const SMALL: u64 = 1 << 9;
const EXTRA: u64 = 1 << 10;
const KILL: u64 = 1 << 11;
const ITEM: u64 = 1 << 12;
/// Of which stream, as a bit of 64: see [`Core::note_sleeping_stream`].
const TAG_SHIFT: u32 = 13;
const TAG_BITS: u64 = 63;
const GENERATION_SHIFT: u32 = 32;

/// How a job ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Small(SmallReply),
    Reply(Reply),
    Failed(TaskError),
    /// A batch is not finished: the request, what its running item ends with, if one was running, and where that was, if
    /// somebody keeps the inputs of such items.
    BatchLost(Box<(Parcel, Option<TaskError>, Option<Scene>)>),
}

/// What the cell holds besides its flags.
#[derive(Debug)]
enum Stage {
    /// In a ring, or free.
    Empty,
    /// In a queue.
    Queued(Parcel),
    Ended(Outcome),
}

/// Receives the results of a batch. Called by a station's owner.
pub(crate) trait BatchSink: Send + Sync {
    /// Results have come. The waker, if any, is to be called once the station is released.
    fn append(&self, form: Form, arena: ArenaReader<'_>, position: u64, len: usize) -> Option<Waker>;
    /// The batch's job is done.
    fn ended(&self) -> Option<Waker>;
}

/// A task's cell.
#[repr(C, align(64))]
pub(crate) struct Job {
    state: AtomicU64,
    /// Station and index: see [`Place`].
    place: AtomicU64,
    core: UnsafeCell<Option<Arc<Core>>>,
    /// A number on its way: a small outcome, see [`SmallReply::pack`], or before that the input of a job in a queue. Shares the
    /// fate of `stage`. Relaxed, word by word: DONE publishes the outcome.
    small: [AtomicU64; SmallReply::PACKED_WORDS],
    /// Null until it is needed, then never changed.
    cold: AtomicPtr<Cold>,
}

/// The part of a cell that only some jobs use.
struct Cold {
    /// Link of the list that the job is in, if any.
    next: AtomicPtr<Job>,
    stage: UnsafeCell<Stage>,
    waker: UnsafeCell<Option<Waker>>,
    batch: UnsafeCell<Option<Arc<dyn BatchSink>>>,
    special: UnsafeCell<Option<Box<Special>>>,
    /// When it was submitted, where somebody wants to know.
    submitted_ns: AtomicU64,
}

/// When a job has to be over.
#[derive(Debug)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    pub(crate) job: &'static Job,
    pub(crate) generation: u64,
    pub(crate) limit: Duration,
}

/// What only some jobs have.
#[derive(Clone, Copy, Debug, Default)]
struct Special {
    /// `None`: the pool's.
    terms: Option<Terms>,
    /// How many workers were lost over it.
    losses: u32,
    caller: Option<Caller>,
}

pub(super) const LINE_BYTES: usize = 64;
const _: () = assert!(size_of::<Job>() == LINE_BYTES);

// SAFETY: every cell of interior mutability has one owner at a time, by JOB-1 to JOB-3.
unsafe impl Sync for Job {}

/// A reference to a job on the pool's side. Not `Clone`: whoever holds it holds the job (JOB-1).
#[derive(Debug)]
pub(crate) struct JobRef(&'static Job);

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("state", &self.state).field("place", &self.place).finish_non_exhaustive()
    }
}

/// Where a job is: at, or on its way from, a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) station: usize,
    pub(crate) spot: Spot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spot {
    /// In the ring, under this index.
    Ring(u64),
    /// In the queue, or in the inbox.
    Queue,
    /// Taken out, to be moved to another station.
    Moving,
}

const STATION_BITS: u32 = 16;
const QUEUE: u64 = (1 << (64 - STATION_BITS)) - 1;
const MOVING: u64 = QUEUE - 1;
/// In the queue, with an input of so many bytes in the cell's `small` words: this number less the bytes.
const QUEUE_SMALL: u64 = MOVING - 1;
const SMALL_BYTES_MAX: u64 = 16;

impl Place {
    fn pack(self) -> u64 {
        let spot = match self.spot {
            Spot::Ring(index) => index,
            Spot::Queue => QUEUE,
            Spot::Moving => MOVING,
        };
        spot << STATION_BITS | self.station as u64
    }

    fn unpack(word: u64) -> Self {
        let spot = match word >> STATION_BITS {
            QUEUE => Spot::Queue,
            MOVING => Spot::Moving,
            spot if spot >= QUEUE_SMALL - SMALL_BYTES_MAX => Spot::Queue,
            index => Spot::Ring(index),
        };
        Self { station: (word & ((1 << STATION_BITS) - 1)) as usize, spot }
    }
}

const _: () = assert!(crate::limits::WORKERS_MAX <= 1 << STATION_BITS);

impl Cold {
    fn new() -> Self {
        Self {
            next: AtomicPtr::new(std::ptr::null_mut()),
            stage: UnsafeCell::new(Stage::Empty),
            waker: UnsafeCell::new(None),
            batch: UnsafeCell::new(None),
            special: UnsafeCell::new(None),
            submitted_ns: AtomicU64::new(0),
        }
    }
}

impl Job {
    pub(super) const fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            place: AtomicU64::new(0),
            core: UnsafeCell::new(None),
            small: [const { AtomicU64::new(0) }; SmallReply::PACKED_WORDS],
            cold: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// The cold part. Both sides of a job may need it at the same time.
    #[inline]
    fn cold(&self) -> &'static Cold {
        // SAFETY: a cold part lives as long as its cell, which is for ever (JOB-5).
        unsafe { self.cold.load(Ordering::Acquire).as_ref() }.unwrap_or_else(|| self.make_cold())
    }

    #[cold]
    fn make_cold(&self) -> &'static Cold {
        let fresh = Box::into_raw(Box::new(Cold::new()));
        let null = std::ptr::null_mut();
        let cold = match self.cold.compare_exchange(null, fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => fresh,
            Err(known) => {
                // SAFETY: it comes from a box, and nobody else has seen it.
                drop(unsafe { Box::from_raw(fresh) });
                known
            }
        };
        // SAFETY: JOB-5.
        unsafe { &*cold }
    }

    #[inline]
    fn small(&self) -> [u64; SmallReply::PACKED_WORDS] {
        std::array::from_fn(|at| self.small[at].load(Ordering::Relaxed))
    }

    #[inline]
    fn set_small(&self, words: [u64; SmallReply::PACKED_WORDS]) {
        self.small.iter().zip(words).for_each(|(at, word)| at.store(word, Ordering::Relaxed));
    }

    /// A job for a task of `core`: the pool's side of it, and the task's.
    #[inline]
    pub(crate) fn allocate(core: &Arc<Core>) -> (JobRef, &'static Job) {
        let job = slab::take();
        // SAFETY: JOB-3: the cell is free and this thread has just taken it.
        let known = unsafe { &mut *job.core.get() };
        if !known.as_ref().is_some_and(|known| Arc::ptr_eq(known, core)) {
            *known = Some(core.clone());
        }
        // What a cell remembers of an earlier use may be no station of this pool.
        job.place.store(Place { station: 0, spot: Spot::Queue }.pack(), Ordering::Relaxed);
        (JobRef(job), job)
    }

    /// The task's side of a job that has ended before it began.
    pub(crate) fn failed(core: &Arc<Core>, error: TaskError) -> &'static Job {
        let (held, job) = Self::allocate(core);
        let woken = held.settle(Outcome::Failed(error));
        debug_assert!(woken.is_none(), "nobody knows of it");
        job
    }

    /// The link of the list that the job is in.
    pub(crate) fn link(&self) -> &AtomicPtr<Job> {
        &self.cold().next
    }

    /// The pool of the job.
    #[inline]
    pub(crate) fn core(&self) -> &Arc<Core> {
        // SAFETY: JOB-3: written only while the cell is free, and the caller holds one side of a job in use.
        let core = unsafe { &*self.core.get() };
        core.as_ref().expect("set when the cell was allocated")
    }

    /// Sequentially consistent, as is the setting of DONE: see edge ITEMS.
    #[inline]
    pub(crate) fn is_done(&self) -> bool {
        self.state.load(Ordering::SeqCst) & DONE != 0
    }

    pub(crate) fn is_killed_on_drop(&self) -> bool {
        self.state.load(Ordering::Relaxed) & KILL != 0
    }

    pub(crate) fn generation(&self) -> u64 {
        self.state.load(Ordering::Acquire) >> GENERATION_SHIFT
    }

    pub(crate) fn place(&self) -> Place {
        Place::unpack(self.place.load(Ordering::Acquire))
    }

    /// Task: wants `waker` called when the job is done. `Ready`: it is.
    pub(crate) fn register(&self, waker: &Waker) -> Poll<()> {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            if state & DONE != 0 {
                return Poll::Ready(());
            }
            if state & BUSY != 0 {
                std::hint::spin_loop();
                state = self.state.load(Ordering::Acquire);
                continue;
            }
            if state & WAKER != 0 {
                // Takes the slot back first: the pool's side may be about to read it (JOB-2).
                match self.change(state, state & !WAKER) {
                    Ok(()) => {
                        self.core().remove_sleeper();
                        state &= !WAKER;
                    }
                    Err(seen) => {
                        state = seen;
                        continue;
                    }
                }
            }
            // SAFETY: JOB-2: WAKER is clear, so the slot is the task's.
            let slot = unsafe { &mut *self.cold().waker.get() };
            if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
                *slot = Some(waker.clone());
            }
            // Counted before it can be uncounted.
            self.core().add_sleeper();
            match self.change(state, state | WAKER | EXTRA) {
                Ok(()) => return Poll::Pending,
                Err(seen) => {
                    self.core().remove_sleeper();
                    if seen & DONE != 0 {
                        // Whoever frees the cell would not know of it.
                        *slot = None;
                    }
                    state = seen;
                }
            }
        }
    }

    fn change(&self, from: u64, to: u64) -> Result<(), u64> {
        self.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::Acquire).map(drop)
    }

    /// Task: takes the outcome of a job that is done, and frees the cell.
    #[inline]
    pub(crate) fn take(&'static self) -> Outcome {
        let state = self.state.load(Ordering::Acquire);
        debug_assert!(state & DONE != 0);
        // SAFETY: JOB-1: DONE hands the outcome to the task.
        let outcome = unsafe { self.outcome(state) };
        self.free(state);
        outcome
    }

    /// Gives the cell back in a process that is not the pool's: of a task that was refused there, or of one that is over. Any
    /// other cell may be in use, if only in the copy of a queue.
    pub(crate) fn discard(&'static self) {
        // A waker would be user code of the other process.
        if self.state.load(Ordering::Acquire) & (DONE | EXTRA) == DONE {
            drop(self.take());
        }
    }

    /// As [`take`](Self::take), of a value that came in its slot, and of nothing else.
    #[inline(always)]
    pub(crate) fn take_value(&'static self) -> Option<SmallReply> {
        let state = self.state.load(Ordering::Acquire);
        if state & (DONE | SMALL) != DONE | SMALL {
            return None;
        }
        // JOB-1: DONE hands the outcome to the task.
        let reply = SmallReply::unpack(self.small());
        (reply.status == Status::Value).then(|| {
            self.free(state);
            reply
        })
    }

    /// As [`take_value`](Self::take_value), of one that has so many bytes, two words at most.
    #[inline(always)]
    pub(crate) fn take_words(&'static self, bytes: usize) -> Option<[u64; 2]> {
        let state = self.state.load(Ordering::Acquire);
        if state & (DONE | SMALL) != DONE | SMALL {
            return None;
        }
        let reply = SmallReply::unpack(self.small());
        (reply.status == Status::Value && usize::from(reply.len) == bytes).then(|| {
            self.free(state);
            [reply.words[0], reply.words[1]]
        })
    }

    /// Moves the outcome out of its place.
    ///
    /// # Safety
    ///
    /// The outcome has been written and is the caller's (JOB-1).
    #[inline]
    unsafe fn outcome(&self, state: u64) -> Outcome {
        if state & SMALL != 0 {
            return Outcome::Small(SmallReply::unpack(self.small()));
        }
        // SAFETY: the caller's promise.
        let stage = unsafe { &mut *self.cold().stage.get() };
        match std::mem::replace(stage, Stage::Empty) {
            Stage::Ended(outcome) => outcome,
            Stage::Empty | Stage::Queued(_) => Outcome::Failed(TaskError::Terminated),
        }
    }

    /// Task: will not take the outcome. `true`: the job is still the pool's.
    pub(crate) fn abandon(&'static self, report: bool) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            if state & DONE != 0 {
                let core = self.core().clone();
                let failure = failure(&self.take()).filter(|_| report);
                if let Some(error) = failure {
                    super::events::detached(&core, &error);
                }
                return false;
            }
            if state & BUSY != 0 {
                std::hint::spin_loop();
                state = self.state.load(Ordering::Acquire);
                continue;
            }
            if state & WAKER != 0 {
                // Dropped here: a waker is user code, which the pool's side must not run.
                match self.change(state, state & !WAKER) {
                    Ok(()) => {
                        self.core().remove_sleeper();
                        state &= !WAKER;
                        // SAFETY: JOB-2: WAKER is clear, so the slot is the task's.
                        drop(unsafe { (*self.cold().waker.get()).take() });
                    }
                    Err(seen) => state = seen,
                }
                continue;
            }
            let flags = if report { GONE | REPORT } else { GONE };
            match self.change(state, state | flags) {
                Ok(()) => return true,
                Err(seen) => state = seen,
            }
        }
    }

    /// JOB-4. `state`: its last word.
    #[inline]
    fn free(&'static self, state: u64) {
        if state & EXTRA != 0 {
            self.clear();
        }
        // The next generation, with no flags. Release: the cell's fields before its next use.
        let generation = state >> GENERATION_SHIFT;
        self.state.store(((generation + 1) & u64::from(u32::MAX)) << GENERATION_SHIFT, Ordering::Release);
        slab::give(self);
    }

    fn clear(&self) {
        // SAFETY: JOB-2: the job is over, so the slot is whoever's frees the cell.
        unsafe { *self.cold().waker.get() = None };
        // SAFETY: JOB-1, likewise.
        unsafe { *self.cold().batch.get() = None };
        // SAFETY: JOB-1, likewise.
        unsafe { *self.cold().special.get() = None };
    }
}

impl JobRef {
    pub(crate) fn job(&self) -> &'static Job {
        self.0
    }

    /// The pool's side, recovered from a pointer that [`into_raw`](Self::into_raw) made.
    ///
    /// # Safety
    ///
    /// The pointer stands for a job that its maker gave up holding, and is used once.
    pub(crate) unsafe fn from_raw(raw: *mut Job) -> Self {
        // SAFETY: cells are never unmapped.
        Self(unsafe { &*raw })
    }

    pub(crate) fn into_raw(self) -> *mut Job {
        std::ptr::from_ref(self.0).cast_mut()
    }

    #[inline]
    pub(crate) fn set_place(&self, place: Place) {
        self.0.place.store(place.pack(), Ordering::Release);
    }

    /// As [`set_place`](Self::set_place), by the owner of the station whose ring holds the reference.
    #[inline]
    pub(crate) fn note_place(job: &'static Job, place: Place) {
        job.place.store(place.pack(), Ordering::Release);
    }

    /// Keeps the input of a job that is to wait for its turn. The job's [place](Self::set_place) says so afterwards.
    pub(crate) fn queue(&mut self, parcel: Parcel) {
        // SAFETY: JOB-1.
        unsafe { *self.0.cold().stage.get() = Stage::Queued(parcel) };
    }

    /// As [`queue`](Self::queue), of a number, which fits the cell's first line. The job is in the queue of that station.
    #[inline]
    pub(crate) fn queue_small(&mut self, station: usize, request: &SmallRequest) {
        let SmallRequest { code, words: [low, high], len } = *request;
        self.0.set_small([code.place, code.types, low, high]);
        let spot = QUEUE_SMALL - len as u64;
        self.0.place.store(spot << STATION_BITS | station as u64, Ordering::Release);
    }

    /// What [`queue_small`](Self::queue_small) was given, for as long as the job is in that queue.
    #[inline]
    pub(crate) fn queued_small(&self) -> Option<SmallRequest> {
        // Relaxed: only whoever holds the job writes it.
        let spot = self.0.place.load(Ordering::Relaxed) >> STATION_BITS;
        let len = QUEUE_SMALL.checked_sub(spot).filter(|&len| len <= SMALL_BYTES_MAX)?;
        let [place, types, low, high] = self.0.small();
        Some(SmallRequest { code: CodeId { place, types }, words: [low, high], len: len as usize })
    }

    /// The input of a job that is taken out of a queue or an inbox, to be given another place.
    pub(crate) fn unqueue(&mut self) -> Option<Parcel> {
        if let Some(request) = self.queued_small() {
            return Some((&request).into());
        }
        // SAFETY: JOB-1.
        let stage = unsafe { &mut *self.0.cold().stage.get() };
        match std::mem::replace(stage, Stage::Empty) {
            Stage::Queued(parcel) => Some(parcel),
            Stage::Empty | Stage::Ended(_) => None,
        }
    }

    pub(crate) fn set_batch(&mut self, sink: Arc<dyn BatchSink>) {
        self.note_extra();
        // SAFETY: JOB-1.
        unsafe { *self.0.cold().batch.get() = Some(sink) };
    }

    fn note_extra(&self) {
        self.0.state.fetch_or(EXTRA, Ordering::Relaxed);
    }

    pub(crate) fn batch(&self) -> Option<&Arc<dyn BatchSink>> {
        if self.0.state.load(Ordering::Relaxed) & EXTRA == 0 {
            return None;
        }
        // SAFETY: JOB-1: changed only by whoever holds the job.
        unsafe { &*self.0.cold().batch.get() }.as_ref()
    }

    fn take_batch(&self) -> Option<Arc<dyn BatchSink>> {
        if self.0.state.load(Ordering::Relaxed) & EXTRA == 0 {
            return None;
        }
        // SAFETY: JOB-1: changed only by whoever holds the job.
        unsafe { (*self.0.cold().batch.get()).take() }
    }

    fn special(&self) -> Option<&Special> {
        if self.0.state.load(Ordering::Relaxed) & EXTRA == 0 {
            return None;
        }
        // SAFETY: JOB-1: changed only by whoever holds the job.
        unsafe { &*self.0.cold().special.get() }.as_deref()
    }

    fn special_mut(&mut self) -> &mut Special {
        self.note_extra();
        // SAFETY: JOB-1, and `self` is borrowed mutably.
        unsafe { &mut *self.0.cold().special.get() }.get_or_insert_default()
    }

    /// Gives the job terms of its own. The deadline, if they have one, is to be set once the job is submitted.
    #[cold]
    pub(crate) fn agree(&mut self, terms: Terms) -> Option<Deadline> {
        self.special_mut().terms = Some(terms);
        if terms.timeout.is_some() {
            self.0.state.fetch_or(LIMITED, Ordering::Relaxed);
        }
        if terms.kill_on_drop {
            self.0.state.fetch_or(KILL, Ordering::Relaxed);
        }
        let (limit, at) = (terms.deadline?, terms.due?);
        Some(Deadline { at, job: self.0, generation: self.0.generation(), limit })
    }

    /// It was submitted in this span.
    #[inline]
    pub(crate) fn note_caller(&mut self, caller: Option<Caller>) {
        if caller.is_some() {
            self.special_mut().caller = caller;
        }
    }

    #[inline]
    pub(crate) fn caller(&self) -> Option<Caller> {
        self.special().and_then(|special| special.caller)
    }

    fn terms(&self, core: &Core) -> Terms {
        self.special().and_then(|special| special.terms).unwrap_or(core.policy.terms)
    }

    /// Whether it may have a time limit: a look at the state word.
    #[inline]
    pub(crate) fn is_limited(&self, core: &Core) -> bool {
        core.policy.terms.timeout.is_some() || self.0.state.load(Ordering::Relaxed) & LIMITED != 0
    }

    /// How long it may run.
    pub(crate) fn timeout(&self, core: &Core) -> Option<Duration> {
        self.terms(core).timeout
    }

    /// It was cancelled while it ran: it is not started again.
    pub(crate) fn note_called_off(job: &'static Job) {
        job.state.fetch_or(CALLED_OFF, Ordering::Relaxed);
    }

    /// Its worker was lost. Whether it is to be started again, and how many times it has been started.
    pub(crate) fn note_loss(&mut self, core: &Core) -> (bool, u32) {
        let terms = self.terms(core);
        let called_off = self.0.state.load(Ordering::Relaxed) & CALLED_OFF != 0;
        let may_start = !called_off && !self.is_unwanted() && terms.expired().is_none();
        let special = self.special_mut();
        special.losses += 1;
        let losses = special.losses;
        (may_start && losses <= terms.retries, losses)
    }

    /// Whether it is neither an item of a stream, nor has it anything in its cold part.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.0.state.load(Ordering::Relaxed) & (ITEM | EXTRA) == 0
    }

    #[inline]
    pub(crate) fn is_item(&self) -> bool {
        self.0.state.load(Ordering::Relaxed) & ITEM != 0
    }

    /// It is a fresh job, and an item of a stream.
    #[inline]
    pub(crate) fn be_item(&self, tag: u8) {
        // Nobody else knows of it.
        let state = self.0.state.load(Ordering::Relaxed);
        let tag = (u64::from(tag) & TAG_BITS) << TAG_SHIFT;
        self.0.state.store(state | ITEM | tag, Ordering::Relaxed);
    }

    /// The job must run at its station.
    pub(crate) fn pin(&self) {
        self.0.state.fetch_or(PINNED, Ordering::Relaxed);
    }

    /// The job takes over the place that it was accepted with.
    #[inline]
    pub(crate) fn admit(&self, pass: Pass) {
        if pass.into_place() {
            self.0.state.fetch_or(PLACE, Ordering::Relaxed);
        }
    }

    /// It is submitted at this moment, of [`now_ns`](crate::ground::sys::clock::now_ns).
    pub(crate) fn note_submitted(&self, now_ns: u64) {
        self.0.cold().submitted_ns.store(now_ns, Ordering::Relaxed);
    }

    pub(crate) fn submitted_ns(&self) -> u64 {
        self.0.cold().submitted_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.0.state.load(Ordering::Relaxed) & PINNED != 0
    }

    /// Whether the job is not to start: nobody wants it, and it was not detached.
    #[inline]
    pub(crate) fn is_unwanted(&self) -> bool {
        let state = self.0.state.load(Ordering::Acquire);
        state & (GONE | REPORT) == GONE
    }

    /// Ends the job. What comes of it is to be done once the station is released.
    #[inline]
    pub(crate) fn finish(self, outcome: Outcome, after: &mut Vec<After>) {
        // The cell is not this side's any more once it is settled.
        match self.take_batch() {
            None => {
                self.give_place_back(after);
                let state = self.0.state.load(Ordering::Relaxed);
                after.extend(self.settle(outcome));
                if state & ITEM != 0 {
                    After::call_streams(after, stream_of(state));
                }
            }
            Some(batch) => {
                let nothing = self.settle(outcome);
                debug_assert!(nothing.is_none(), "a batch is awaited through its sink");
                after.extend(batch.ended().map(After::Wake));
            }
        }
    }

    /// Before the outcome can be seen: whoever sees it finds a place.
    #[inline]
    fn give_place_back(&self, after: &mut Vec<After>) {
        if self.0.state.load(Ordering::Relaxed) & PLACE != 0 {
            let gate = self.0.core().gate.as_ref();
            after.extend(gate.and_then(Gate::give_back).map(After::Wake));
        }
    }

    /// As [`finish`](Self::finish), with a result that is in its slot.
    #[inline]
    pub(crate) fn finish_small(self, reply: SmallReply, core: &Core, after: &mut Vec<After>) {
        let job = self.0;
        let state = job.state.load(Ordering::Relaxed);
        if state & (EXTRA | PLACE | GONE) != 0 {
            return self.finish(Outcome::Small(reply), after);
        }
        // JOB-1: the job is ours until DONE.
        job.set_small(reply.pack());
        if job.change(state, state | DONE | SMALL).is_err() {
            after.extend(self.settle(Outcome::Small(reply)));
        }
        if state & ITEM != 0 && core.has_sleeping_streams(stream_of(state)) {
            After::call_streams(after, stream_of(state));
        }
    }

    #[inline(never)]
    fn settle(self, outcome: Outcome) -> Option<After> {
        let job = self.0;
        let done = match outcome {
            Outcome::Small(reply) => {
                // JOB-1: the job is ours until DONE.
                job.set_small(reply.pack());
                DONE | SMALL
            }
            outcome => {
                // SAFETY: JOB-1: the job is ours until DONE.
                unsafe { *job.cold().stage.get() = Stage::Ended(outcome) };
                DONE
            }
        };
        let mut state = job.state.load(Ordering::Acquire);
        loop {
            if state & GONE != 0 {
                // SAFETY: JOB-1, and nobody will take the outcome.
                let outcome = unsafe { job.outcome(state | done) };
                job.free(state);
                return if state & REPORT == 0 { None } else { failure(&outcome).map(After::Report) };
            }
            if state & WAKER == 0 {
                match job.change(state, state | done) {
                    Ok(()) => return None,
                    Err(seen) => state = seen,
                }
                continue;
            }
            match job.change(state, state & !WAKER | BUSY) {
                Ok(()) => break,
                Err(seen) => state = seen,
            }
        }
        job.core().remove_sleeper();
        // SAFETY: JOB-2: BUSY makes the slot the pool's.
        let waker = unsafe { (*job.cold().waker.get()).take() };
        job.state.fetch_xor(BUSY | done, Ordering::SeqCst);
        waker.map(After::Wake)
    }
}

/// What is left to do when a job has ended: user code, so never while a station is owned.
#[derive(Debug)]
pub(crate) enum After {
    Wake(Waker),
    /// Nobody takes this failure, so it goes to the log.
    Report(TaskError),
    /// Items of these streams have ended, which may sleep.
    CallStreams(u64),
}

/// The stream of an item, as one bit.
#[inline]
fn stream_of(state: u64) -> u64 {
    1 << (state >> TAG_SHIFT & TAG_BITS)
}

impl After {
    #[cold]
    fn call_streams(after: &mut Vec<Self>, streams: u64) {
        match after.last_mut() {
            Some(Self::CallStreams(known)) => *known |= streams,
            _ => after.push(Self::CallStreams(streams)),
        }
    }
}

/// The error that a job ended with, if it did.
fn failure(outcome: &Outcome) -> Option<TaskError> {
    match outcome {
        Outcome::Failed(error) => Some(error.clone()),
        Outcome::Small(reply) => {
            crate::task::failure_of(reply.status, &reply.bytes()[..usize::from(reply.len)])
        }
        Outcome::Reply(reply) => crate::task::failure_of(reply.status, reply.body.as_bytes()),
        Outcome::BatchLost(_) => None,
    }
}
