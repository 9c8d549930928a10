//! A task's cell: what a `Task` and the pool share about it.
//!
//! Cells come from a slab of this process, are never unmapped and are used again, each time under another
//! *generation*, so that a stale reference can tell. A cell is reached through plain `&'static` references.
//!
//! # Who may touch what
//!
//! * JOB-1: `place` is written by whoever holds the job on the pool's side: the submitting thread, then the owner of the
//!   station that it names. `stage` and `small` belong to the same until `place` says that the job has *ended*, from then on to the
//!   `Task`.
//! * JOB-2: `waker` belongs to the `Task` while WAKER and BUSY are clear. Whoever moves WAKER away has it: the `Task`, which
//!   clears it, or the pool's side, which sets BUSY until it has taken it.
//! * JOB-3: `core` is written only while the cell is free, by the thread that allocates it. A cell keeps its
//!   reference to the pool when it is freed, so that a task costs no reference count as long as cells stay with one
//!   pool. So the core of a pool that has ended may live as long as the process, and is dropped by whoever submits to another pool:
//!   plain memory, since the driver lets go of what is the program's before ([`finish`](super::driver)).
//! * JOB-4: a cell is freed once, by the `Task` when it sees that the job has ended, or by the pool's side when it finds GONE after
//!   that. If both do, the cell is whose compare-and-swap comes first: the `Task` takes GONE back, the pool's side adds BUSY. The
//!   `Task` also leaves the cell if the pool's side has set another flag since GONE: it did so before the end, so it finds GONE.
//! * JOB-5: a cell's cold part is made once, by whoever needs it first, and never unmapped.
//!
//! | flag | set by | meaning |
//! |---|---|---|
//! | WAKER | task | `waker` holds a waker that wants to be called |
//! | BUSY | pool | the waker is being taken, or the cell is about to be freed |
//! | GONE | task | nobody will take the outcome |
//! | PINNED | submitter | it must run at its station |
//! | REPORT | task | a failure goes to the log, since nobody takes the outcome |
//! | CALLED_OFF | whoever owns its station | it was cancelled while it ran |
//! | LIMITED | submitter | its terms have a time limit |
//! | PLACE | submitter | it holds a place of the pool's gate |
//! | KILL | submitter | who drops the task wants it killed |
//! | ITEM | submitter | it is an item of a stream, which looks for its end itself, and is [called](Core::call_streams) if it sleeps |
//! | EXTRA | whoever writes there | there may be something in the cold part that has to be dropped with the cell |
//!
//! Edge DONE: the pool's side stores in `place` that the job has ended, fences, and looks for WAKER and GONE; the `Task` sets one of
//! them (a compare-and-swap) and looks at `place` again. One of the two sees the other, so wakers are called and cells freed. One
//! fence does for all jobs that end in one look at a worker ([`Ended`]), and none is needed if the only one is that whose `Task` the
//! looking thread waits on. By then a cell may serve another task, which its generation tells.
//!
//! A cell is one cache line. What only some jobs need is in its *cold part*, which is made when somebody first needs it and
//! stays with the cell. A task whose input and result fit their slots, and which nobody awaits before it is done, has none:
//! a million of them take 64 MB, and lie one behind the other.
//!
//! The [`task`]'s side waits for the outcome and takes it. The pool's side has the job as a [`JobRef`], says and learns in
//! [`held`] what is special about it, gives it a [`place`] while it waits or runs, and [`end`]s it.

#![allow(unsafe_code, reason = "cells are shared by hand-over, as listed above")]

mod end;
mod held;
#[cfg(all(test, forkring_loom))]
mod loom;
mod place;
mod task;

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::task::Waker;

pub(crate) use self::end::{After, Ended};
pub(crate) use self::held::Deadline;
use self::held::Special;
pub(crate) use self::place::{Place, Spot};
use super::core::Core;
use super::crashers::Scene;
use super::slab;
use crate::error::TaskError;
use crate::memory::arena::ArenaReader;
use crate::protocol::lane::{Form, Parcel, Reply, SmallReply};

const WAKER: u64 = 1;
const BUSY: u64 = 1 << 1;
const GONE: u64 = 1 << 2;
const PINNED: u64 = 1 << 3;
const REPORT: u64 = 1 << 4;
const LIMITED: u64 = 1 << 5;
const PLACE: u64 = 1 << 6;
const CALLED_OFF: u64 = 1 << 7;
const EXTRA: u64 = 1 << 8;
const KILL: u64 = 1 << 9;
const ITEM: u64 = 1 << 10;
/// Of which stream, as a bit of 64: see [`Core::note_sleeping_stream`].
const TAG_SHIFT: u32 = 11;
const TAG_BITS: u64 = 63;
const GENERATION_SHIFT: u32 = 32;

/// How a job ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Small(SmallReply),
    Reply(Reply),
    Failed(TaskError),
    /// All results of a batch have come. How long it took, as it came.
    BatchDone(u8),
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
    /// Both at once.
    fn append_last(&self, form: Form, arena: ArenaReader<'_>, position: u64, len: usize) -> Option<Waker>;
}

/// A task's cell.
#[repr(C, align(64))]
pub(crate) struct Job {
    state: AtomicU64,
    /// Station and index: see [`Place`].
    place: AtomicU64,
    core: UnsafeCell<Option<Arc<Core>>>,
    /// A number on its way: a small outcome, see [`SmallReply::pack`], or before that the input of a job in a queue. Relaxed, word
    /// by word: `place` publishes the outcome.
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

pub(super) const LINE_BYTES: usize = 64;
const _: () = assert!(size_of::<Job>() == LINE_BYTES);

// SAFETY: every cell of interior mutability has one owner at a time, by JOB-1 to JOB-3.
unsafe impl Sync for Job {}

// As a pool.
impl std::panic::RefUnwindSafe for Job {}

/// A reference to a job on the pool's side. Not `Clone`: whoever holds it holds the job (JOB-1).
#[derive(Debug)]
pub(crate) struct JobRef(&'static Job);

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("state", &self.state).field("place", &self.place).finish_non_exhaustive()
    }
}

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
        // What a cell remembers of an earlier use may be no station of this pool. Release: whoever sees it sees the generation.
        job.place.store(Place { station: 0, spot: Spot::Queue }.pack(), Ordering::Release);
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

    pub(crate) fn is_killed_on_drop(&self) -> bool {
        self.state.load(Ordering::Relaxed) & KILL != 0
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.state.load(Ordering::Relaxed) & PINNED != 0
    }

    pub(crate) fn generation(&self) -> u64 {
        self.state.load(Ordering::Acquire) >> GENERATION_SHIFT
    }

    #[inline]
    fn change(&self, from: u64, to: u64) -> Result<(), u64> {
        self.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::Acquire).map(drop)
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
