//! A worker's place in the pool: the lane of its present process, and the queue in front of it.
//!
//! # Ownership
//!
//! A station is used by one thread at a time ([`Ownership`]), and **no user code runs while it is owned**: inputs
//! are encoded before, results decoded after, and wakers called after it. So it is held for as long as it takes to
//! copy some bytes, and whoever has to may wait for it. A submitter that finds it owned leaves its job in the inbox.
//! A thread that comes time and again, with nobody else between, keeps the station: it comes and goes without locked
//! instructions until somebody revokes that.
//!
//! * STATION-1: `inner` is touched only while the station is owned.
//! * STATION-2: what is in the inbox is a job that was left there and not yet taken in.
//! * STATION-3: while requests are in flight and nobody owns the station, either the worker is armed to ring the driver
//!   or the thread in the seat, and has not rung since, or the one it rang is on its way and will own the station; or
//!   the station is *watched*: the driver comes by from time to time, and nobody sleeps for one of its results.
//! * STATION-4: while the seat waits for a job, the job is neither over nor another station's once nobody owns this
//!   one; or the seat's bell has been rung.

#![allow(unsafe_code, reason = "a cell that is guarded by an ownership flag; an intrusive list")]

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake as TaskWake, Waker};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use super::core::{Core, Phase};
use super::crew::Member;
use super::driver;
use super::events;
use super::job::{After, Job, JobRef, Outcome, Place, Spot};
use super::messages::Who;
use super::meter::Meter;
use super::service::Request;
use super::tally::Tally;
use super::verdict::{Seen, Verdict, Why};
use crate::error::TaskError;
use crate::ground::doorbell::Doorbell;
use crate::ground::ownership::{Grip, NODE_ALIGN, Ownership, ThreadNumber};
use crate::ground::prefetch::{self, Ahead};
use crate::ground::sys::process::PidFd;
use crate::memory::arena::ArenaReader;
use crate::memory::codec::{AlignedBytes, ElementsRef};
use crate::panics;
use crate::protocol::code::CodeId;
use crate::protocol::lane::{
    Batch, Form, Lane, Parcel, Refusal, Reply, Run, Sink, SmallReply, SmallRequest, Violation,
};
use crate::protocol::wire::{Status, Wake};

/// Who has owned a station so often in a row keeps it. Four times as often after each revocation (which takes two
/// microseconds), up to a maximum.
const KEEP_AFTER: u32 = 16;
const KEEP_AFTER_MAX: u32 = 1 << 16;

const _: () = assert!(align_of::<Job>() >= NODE_ALIGN, "a job's address names it in an inbox");

/// A submitter whose tasks go into the queue looks after so many whether the ring can be emptied.
const QUEUED_PER_LOOK: usize = 16;

/// The cell of a task in the queue is asked for when it is so far from the front.
const QUEUED_AHEAD: usize = 16;

/// With so many tasks in its ring a worker is busy for longer than a message takes.
const MANY: usize = 32;

/// How often a submitter looks whether a station is free before it leaves its job in the inbox: about a microsecond.
const TRIES_BEFORE_LEAVING: u32 = 32;

/// So many messages of a stream may be in a ring before others get some.
const RUN: usize = 16;
/// After so many visits without a response, they are not taken for short any more.
const WAITS_MAX: u32 = 64;

/// How often an owner that wants to let go looks at what has come meanwhile, before it leaves the rest to the driver.
const LOOKS_MAX: u32 = 64;

/// A doorbell that can be a task's waker: how a thread that sleeps in a station's seat is woken by the pool.
#[derive(Debug)]
pub(crate) struct Bell(pub(crate) Doorbell);

impl TaskWake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.ring();
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Station {
    pub(crate) id: usize,
    ownership: CachePadded<Ownership>,
    /// How often others than the driver on its rounds have looked here for responses: written by owners, read by anyone.
    visits: AtomicUsize,
    /// The driver's: what it read there on its last round.
    visits_seen: AtomicUsize,
    inner: UnsafeCell<Inner>,
}

// SAFETY: `inner` is guarded by the ownership (STATION-1), and everything in it may move between threads.
unsafe impl Sync for Station {}

/// The process that serves a station, or the thread of this one.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) hold: Hold,
}

/// What a worker is ended by.
#[derive(Debug)]
pub(crate) enum Hold {
    Process(PidFd),
    Thread(Arc<Member>),
}

/// How far the station's process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// There is none; the driver will ask for one.
    Vacant,
    /// Asked for, or running `init`.
    Starting,
    Ready,
    /// Told to leave when it has finished what it is at, or killed: see [`Verdict`]. It is replaced.
    Leaving,
    /// Told to leave, or killed, because the pool ends.
    Ending,
}

/// Who sleeps in a station until its bell rings.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seat {
    Free,
    /// A thread that waits for this job, which it holds. It is no sleeper to the rest of the pool: whoever ends its job, or
    /// takes it elsewhere, owns this station, and calls the thread when he lets go (STATION-4).
    Waits(&'static Job),
    /// A thread that is woken by somebody else too, or has been called.
    Taken,
}

impl PartialEq for Seat {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Waits(one), Self::Waits(other)) => std::ptr::eq(*one, *other),
            (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
        }
    }
}

impl Eq for Seat {}

/// What a station's owner may touch.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) stage: Stage,
    pub(crate) generation: u64,
    pub(crate) process: Option<Process>,
    pub(crate) lane: Option<Lane<JobRef>>,
    pub(crate) queue: VecDeque<JobRef>,
    /// What a job is refused with: the pool is closing, has ended or failed.
    pub(crate) refusal: Option<TaskError>,
    /// Set when the worker broke the protocol: its lane is not read any more.
    pub(crate) violation: Option<Violation>,
    /// Set when the worker, being a thread, was given up: what it says from then on is not heard.
    pub(crate) is_given_up: bool,
    /// Service requests that have come whole.
    pub(crate) calls: Vec<Request>,
    pub(crate) response_bell: Option<Arc<Bell>>,
    pub(crate) request_bell: Option<Arc<Doorbell>>,
    /// Who sleeps on `response_bell`.
    pub(crate) seat: Seat,
    /// When somebody last rose from it.
    pub(crate) last_sat: Option<Instant>,
    pub(crate) tasks_done: u64,
    pub(crate) tally: Tally,
    /// Where tasks are timed.
    pub(crate) meter: Option<Box<Meter>>,
    pub(crate) verdict: Option<Verdict>,
    /// What ran on the driver's last look, while there is anything with a time limit.
    pub(crate) seen: Option<Seen>,
    pub(crate) look_every: Option<Duration>,
    wake: Wake,
    is_idle: bool,
    has_surplus: bool,
    /// Whether something was added since it was last found that nothing here can move.
    may_spare: bool,
    /// Whether the driver comes by from time to time, so that nobody needs to be rung.
    watched: bool,
    /// Whether all that is in the ring is messages of streams.
    streams_only: bool,
    /// How many owners have found more than one request in the ring and no response since the last one that came.
    waits: u32,
    after: Vec<After>,
    /// Who owned the station last, how often in a row, and how often it takes to keep it.
    last_owner: ThreadNumber,
    streak: u32,
    keep_after: u32,
}

impl Station {
    pub(crate) fn new(id: usize, request_bell: Arc<Doorbell>, response_bell: Arc<Bell>) -> Self {
        Self {
            id,
            ownership: CachePadded::new(Ownership::new()),
            visits: AtomicUsize::new(0),
            visits_seen: AtomicUsize::new(0),
            inner: UnsafeCell::new(Inner {
                stage: Stage::Vacant,
                generation: 0,
                process: None,
                lane: None,
                queue: VecDeque::new(),
                refusal: None,
                violation: None,
                is_given_up: false,
                calls: Vec::new(),
                response_bell: Some(response_bell),
                request_bell: Some(request_bell),
                seat: Seat::Free,
                last_sat: None,
                tasks_done: 0,
                tally: Tally::default(),
                meter: None,
                verdict: None,
                seen: None,
                look_every: None,
                wake: Wake::Nobody,
                is_idle: false,
                has_surplus: false,
                may_spare: false,
                watched: false,
                streams_only: false,
                waits: 0,
                after: Vec::new(),
                last_owner: ThreadNumber::current(),
                streak: 0,
                keep_after: KEEP_AFTER,
            }),
        }
    }

    /// Has tasks timed from here on, which needs workers that know of it.
    pub(crate) fn set_meter(&mut self, meter: Meter) {
        self.inner.get_mut().meter = Some(Box::new(meter));
    }

    /// The descriptors of both doorbells.
    pub(crate) fn for_each_fd(&mut self, mut f: impl FnMut(BorrowedFd<'_>)) {
        let inner = self.inner.get_mut();
        inner.request_bell.iter().for_each(|bell| bell.fds().for_each(&mut f));
        inner.response_bell.iter().for_each(|bell| bell.0.fds().for_each(&mut f));
    }

    /// Owns the station if nobody does.
    #[inline]
    pub(crate) fn try_own<'a>(&'a self, core: &'a Core) -> Option<Owned<'a>> {
        let me = ThreadNumber::current();
        // Lazily: an `Owned` that is made and dropped would let go of somebody else's station.
        self.ownership.try_own(me).map(|grip| Owned::new(self, core, me, grip))
    }

    /// The driver is on its round. If somebody has been here since the last one, he is not disturbed; if nobody has, the driver
    /// looks itself, and if nothing has come either, the worker is armed as usual.
    pub(crate) fn make_round(&self, core: &Core) {
        let visits = self.visits.load(Ordering::Relaxed);
        if self.visits_seen.swap(visits, Ordering::Relaxed) == visits {
            let mut owned = self.own(core);
            let done = owned.tasks_done;
            owned.disarm();
            owned.poll();
            // That was the driver's own look.
            owned.has_looked = false;
            if owned.tasks_done == done {
                owned.round = true;
                owned.leave_watch();
            }
        }
    }

    /// Waits until the station can be owned.
    pub(crate) fn own<'a>(&'a self, core: &'a Core) -> Owned<'a> {
        let me = ThreadNumber::current();
        Owned::new(self, core, me, self.ownership.own(me))
    }

    /// Owns the station, or leaves the job with whoever does.
    #[inline]
    pub(crate) fn own_or_leave<'a>(
        &'a self,
        core: &'a Core,
        job: JobRef,
        parcel: Parcel,
    ) -> Option<(Owned<'a>, JobRef, Parcel)> {
        match self.try_own(core) {
            Some(owned) => Some((owned, job, parcel)),
            None => self.leave(core, job, parcel),
        }
    }

    #[inline(never)]
    fn leave<'a>(
        &'a self,
        core: &'a Core,
        mut job: JobRef,
        parcel: Parcel,
    ) -> Option<(Owned<'a>, JobRef, Parcel)> {
        // Owners are quick. One that finds a job in the inbox stays, and finds the next one there when it has seen to that: it
        // would be kept for as long as somebody submits.
        for _ in 0..TRIES_BEFORE_LEAVING {
            std::hint::spin_loop();
            if let Some(owned) = self.try_own(core) {
                return Some((owned, job, parcel));
            }
        }
        job.queue(parcel);
        // A place that names the station lets a canceller find the job once the station has taken it in.
        job.set_place(Place { station: self.id, spot: Spot::Queue });
        let raw = job.into_raw();
        let link = |next: usize| {
            // SAFETY: cells are never unmapped, and this thread holds the job until it is in the inbox.
            let job = unsafe { &*raw };
            job.link().store(std::ptr::with_exposed_provenance_mut(next), Ordering::Relaxed);
        };
        let me = ThreadNumber::current();
        let grip = self.ownership.own_or_leave(me, raw.expose_provenance(), link)?;
        let owned = Owned::new(self, core, me, grip);
        // SAFETY: it was not left, so it is still this thread's.
        let mut job = unsafe { JobRef::from_raw(raw) };
        let parcel = job.unqueue()?;
        Some((owned, job, parcel))
    }
}

/// Ownership of a station. Dropping it settles what is owed and lets go.
#[derive(Debug)]
pub(crate) struct Owned<'a> {
    pub(crate) station: &'a Station,
    pub(crate) core: &'a Core,
    me: ThreadNumber,
    grip: Grip,
    /// Whether this owner moves work itself, so that letting go does not start it again.
    quiet: bool,
    /// Whether this is the driver on its round, which is no sign of life.
    round: bool,
    /// Whether it has looked for responses.
    has_looked: bool,
    /// Whether wakers and reports are left to the next owner.
    puts_off: bool,
}

impl Deref for Owned<'_> {
    type Target = Inner;
    #[inline]
    fn deref(&self) -> &Inner {
        // SAFETY: STATION-1: an `Owned` exists only between the two exchanges.
        unsafe { &*self.station.inner.get() }
    }
}

impl DerefMut for Owned<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Inner {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { &mut *self.station.inner.get() }
    }
}

impl Drop for Owned<'_> {
    #[inline]
    fn drop(&mut self) {
        let rebalance = self.settle();
        let has_nothing_to_do = self.after.is_empty() && self.calls.is_empty() && !rebalance;
        let keep = self.may_keep();
        if !(has_nothing_to_do && self.station.ownership.try_let_go(self.grip, self.me, keep)) {
            self.let_go(rebalance, keep);
        }
    }
}

/// What an owner takes along to do after it has let go.
#[derive(Debug, Default)]
struct Afterwards {
    after: Vec<After>,
    calls: Vec<Request>,
}

impl Afterwards {
    #[inline]
    fn collect(&mut self, inner: &mut Inner) {
        if !inner.after.is_empty() {
            self.after.append(&mut inner.after);
        }
        if !inner.calls.is_empty() {
            self.calls.append(&mut inner.calls);
        }
    }

    fn is_empty(&self) -> bool {
        self.after.is_empty() && self.calls.is_empty()
    }

    /// Calls wakers and the log hook, which is user code, and hands calls to the service.
    #[cold]
    fn run(self, core: &Core) {
        let mut unfinished = 0_usize;
        for after in self.after {
            match after {
                // A panic in somebody's waker is that runtime's affair; the other wakers still have to be called.
                After::Wake(waker) => drop(panics::guard(|| waker.wake())),
                After::Report(TaskError::Terminated) => unfinished += 1,
                After::Report(error) => events::detached(core, &error),
            }
        }
        if unfinished > 0 {
            events::error(
                core,
                format_args!("{unfinished} detached tasks had not ended when the pool was terminated"),
            );
        }
        for call in self.calls {
            core.serve(call);
        }
    }
}

impl Inner {
    /// Requests in the ring, those that are being answered included.
    #[inline]
    pub(crate) fn in_flight(&self) -> usize {
        self.lane.as_ref().map_or(0, Lane::in_flight)
    }

    /// Whether the worker has many tasks before it.
    #[inline]
    pub(crate) fn has_many(&self) -> bool {
        self.in_flight() >= MANY
    }

    /// Whether the worker sleeps, or has been rung and is not awake yet.
    pub(crate) fn is_asleep(&self) -> bool {
        self.lane.as_ref().is_some_and(Lane::is_asleep)
    }

    /// Whether the station holds no task.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.in_flight() == 0
    }

    /// Whether a few requests behind the one that runs may stay: a stream's worker gets through them sooner than another one
    /// wakes up. Somebody has to look again: whoever sends the next one or waits, else the driver on its round.
    #[inline]
    fn is_patient(&self) -> bool {
        self.streams_only && self.watched && self.waits < WAITS_MAX
    }

    fn can_send(&self) -> bool {
        self.stage == Stage::Ready && self.violation.is_none()
    }
}

impl<'a> Owned<'a> {
    #[inline]
    fn new(station: &'a Station, core: &'a Core, me: ThreadNumber, grip: Grip) -> Self {
        Self { station, core, me, grip, quiet: false, round: false, has_looked: false, puts_off: false }
    }

    /// Whether the thread that lets go may keep the station.
    #[inline]
    fn may_keep(&mut self) -> bool {
        if self.grip == Grip::Kept {
            return true;
        }
        let (me, grip) = (self.me, self.grip);
        let inner = &mut **self;
        if grip == Grip::Revoked && !driver::is_this_thread() {
            inner.keep_after = (inner.keep_after * 4).min(KEEP_AFTER_MAX);
        }
        inner.streak = if inner.last_owner == me { inner.streak.saturating_add(1) } else { 0 };
        inner.last_owner = me;
        inner.streak >= inner.keep_after && me.is_keeper() && !driver::is_this_thread()
    }

    /// Lets go, and does what is left to do.
    #[inline(never)]
    fn let_go(&mut self, mut rebalance: bool, keep: bool) {
        let mut after = Afterwards::default();
        if !self.puts_off {
            after.collect(self);
        }
        while !self.station.ownership.try_let_go(self.grip, self.me, keep) {
            self.take_inbox();
            rebalance |= self.settle();
            if !self.puts_off {
                after.collect(self);
            }
        }
        // The station is free; what follows touches only what was moved out of it.
        if !after.is_empty() {
            after.run(self.core);
        }
        if rebalance && !self.quiet {
            self.core.rebalance();
        }
    }

    /// This owner moves work between stations itself.
    pub(crate) fn keep_quiet(&mut self) {
        self.quiet = true;
    }

    /// This is a look from outside, which tells nothing of how the station is used: whoever kept it is to keep it again.
    pub(crate) fn only_look(&mut self) {
        if self.grip == Grip::Revoked {
            self.grip = Grip::Owned;
        }
    }

    /// Leaves user code to the next owner: this thread holds jobs that the code may want to call off.
    pub(crate) fn put_off(&mut self) {
        self.puts_off = true;
    }

    /// Whether there is something to do that has to wait until the station is let go.
    #[inline]
    pub(crate) fn owes(&self) -> bool {
        !self.after.is_empty() || !self.calls.is_empty()
    }

    /// Whether an owner that only looks for responses should let go: somebody waits, or has left a job.
    #[inline]
    pub(crate) fn contended(&self) -> bool {
        self.station.ownership.is_contended(self.grip, self.me)
    }

    fn take_inbox(&mut self) {
        let mut next: *mut Job = std::ptr::with_exposed_provenance_mut(self.station.ownership.take_inbox());
        let mut jobs = Vec::new();
        while !next.is_null() {
            // SAFETY: STATION-2, and the list has been taken.
            let job = unsafe { JobRef::from_raw(next) };
            next = job.job().link().load(Ordering::Relaxed);
            jobs.push(job);
        }
        if !jobs.is_empty() {
            self.leave_idle();
        }
        for mut job in jobs.into_iter().rev() {
            if let Some(parcel) = job.unqueue() {
                self.accept(job, parcel);
            }
        }
    }

    /// Takes a job: into the ring if it is next and fits, else into the queue.
    #[inline]
    pub(crate) fn accept(&mut self, job: JobRef, parcel: Parcel) {
        if let Some(refusal) = &self.refusal {
            // No task of the pool's, so nobody counts it.
            let outcome = Outcome::Failed(refusal.clone());
            return job.finish(outcome, &mut self.after);
        }
        if self.queue.is_empty() && self.can_send() {
            if let Some((job, parcel)) = self.send(job, parcel) {
                self.enqueue(job, parcel);
            }
        } else {
            self.enqueue(job, parcel);
        }
    }

    fn enqueue(&mut self, mut job: JobRef, parcel: Parcel) {
        job.queue(parcel);
        job.set_place(Place { station: self.station.id, spot: Spot::Queue });
        self.may_spare |= !job.is_pinned();
        self.queue.push_back(job);
    }

    /// Takes a job that another station had taken. One that was submitted in time is not too late here.
    pub(crate) fn accept_moved(&mut self, job: JobRef, parcel: Parcel) {
        let closed = self.refusal.take_if(|refusal| refusal.is_closed());
        match &self.refusal {
            // The pool has ended since, and the job with it.
            Some(error) => {
                let outcome = Outcome::Failed(error.clone());
                self.finish(job, outcome);
            }
            None => self.accept(job, parcel),
        }
        if closed.is_some() {
            self.refusal = closed;
        }
    }

    /// Puts jobs in front of the queue: they were here before. If the pool has ended since, so have they.
    pub(crate) fn give_back(&mut self, jobs: Vec<(JobRef, Parcel)>) {
        let over = self.refusal.clone().filter(|refusal| !refusal.is_closed());
        for (mut job, parcel) in jobs.into_iter().rev() {
            if let Some(error) = &over {
                self.finish(job, Outcome::Failed(error.clone()));
                continue;
            }
            job.queue(parcel);
            job.set_place(Place { station: self.station.id, spot: Spot::Queue });
            self.may_spare |= !job.is_pinned();
            self.queue.push_front(job);
        }
    }

    /// As [`accept`](Self::accept), of a fresh job whose input is a number. Without a time limit, see [`Core::takes_small`].
    #[inline]
    pub(crate) fn accept_small(&mut self, job: JobRef, request: &SmallRequest) {
        if self.refusal.is_some() {
            // `settle` puts it back among the idle ones.
            self.leave_idle();
            return self.accept(job, request.into());
        }
        let sent =
            if self.queue.is_empty() && self.can_send() { self.send_small(job, request) } else { Err(job) };
        if let Err(mut job) = sent {
            job.queue_small(self.station.id, request);
            self.may_spare = true;
            self.queue.push_back(job);
        }
    }

    /// As [`send`](Self::send), of a number.
    #[inline]
    fn send_small(&mut self, job: JobRef, request: &SmallRequest) -> Result<(), JobRef> {
        let id = self.station.id;
        let inner = &mut **self;
        let Some(lane) = inner.lane.as_mut().filter(|lane| lane.has_room()) else { return Err(job) };
        arm_before_first(lane, &mut inner.wake, inner.watched);
        let shared = job.job();
        let index = lane.push_small(job, request)?;
        inner.streams_only = false;
        JobRef::note_place(shared, Place { station: id, spot: Spot::Ring(index) });
        lane.ring_if_asleep();
        inner.may_spare = true;
        self.leave_idle();
        Ok(())
    }

    /// Publishes a request. What does not fit comes back.
    #[inline]
    fn send(&mut self, job: JobRef, parcel: Parcel) -> Option<(JobRef, Parcel)> {
        if job.is_unwanted() {
            self.finish(job, Outcome::Failed(TaskError::Cancelled));
            return None;
        }
        let (id, core) = (self.station.id, self.core);
        let inner = &mut **self;
        let lane = inner.lane.as_mut()?;
        arm_before_first(lane, &mut inner.wake, inner.watched);
        let streams_only = job.batch().is_some() && (inner.streams_only || lane.in_flight() == 0);
        if lane.in_flight() == 0 {
            inner.waits = 0;
        }
        let (shared, spare) = (job.job(), !job.is_pinned());
        let limit = if job.is_limited(core) { job.timeout(core) } else { None };
        lane.set_caller(job.caller());
        match lane.push(job, parcel) {
            Ok(index) => {
                // The job is in the ring under this index; only this thread, its owner, moves it.
                JobRef::note_place(shared, Place { station: id, spot: Spot::Ring(index) });
                lane.ring_if_asleep();
                inner.may_spare |= spare;
                inner.streams_only = streams_only;
                self.leave_idle();
                if let Some(limit) = limit {
                    self.watch_time(limit);
                }
                None
            }
            Err((job, parcel, Refusal::Full)) => Some((job, parcel)),
            Err((job, _, Refusal::Memory(error))) => {
                let error = TaskError::Encode(crate::error::CodecError::new(format_args!(
                    "no shared memory for the input: {error}"
                )));
                self.finish(job, Outcome::Failed(error));
                None
            }
        }
    }

    /// As [`accept`](Self::accept), of a row of numbers that is copied from where it is. The job comes back if it has to wait,
    /// or cannot be accepted.
    pub(crate) fn send_elements(
        &mut self,
        job: JobRef,
        code: CodeId,
        elements: &ElementsRef<'_>,
    ) -> Result<(), JobRef> {
        if self.refusal.is_some() || !self.queue.is_empty() || !self.can_send() {
            return Err(job);
        }
        self.leave_idle();
        let (id, core) = (self.station.id, self.core);
        let inner = &mut **self;
        let Some(lane) = &mut inner.lane else { return Err(job) };
        arm_before_first(lane, &mut inner.wake, inner.watched);
        let (shared, spare) = (job.job(), !job.is_pinned());
        let limit = if job.is_limited(core) { job.timeout(core) } else { None };
        lane.set_caller(job.caller());
        let index = lane.push_elements(job, code, elements)?;
        inner.streams_only = false;
        JobRef::note_place(shared, Place { station: id, spot: Spot::Ring(index) });
        lane.ring_if_asleep();
        inner.may_spare |= spare;
        if let Some(limit) = limit {
            self.watch_time(limit);
        }
        Ok(())
    }

    /// As [`accept`](Self::accept), of a batch whose payload is copied from where it is. The job comes back if it has to wait, or
    /// cannot be accepted.
    pub(crate) fn send_batch(
        &mut self,
        job: JobRef,
        code: CodeId,
        batch: Batch,
        payload: &[u8],
    ) -> Result<Ahead, JobRef> {
        if self.refusal.is_some() || !self.queue.is_empty() || !self.can_send() {
            return Err(job);
        }
        self.leave_idle();
        let (id, core) = (self.station.id, self.core);
        let inner = &mut **self;
        let Some(lane) = &mut inner.lane else { return Err(job) };
        let was_empty = lane.in_flight() == 0;
        arm_before_first(lane, &mut inner.wake, inner.watched);
        let shared = job.job();
        let limit = if job.is_limited(core) { job.timeout(core) } else { None };
        lane.set_caller(job.caller());
        let index = lane.push_batch(job, code, batch, payload)?;
        JobRef::note_place(shared, Place { station: id, spot: Spot::Ring(index) });
        lane.ring_if_asleep();
        let ahead = lane.ahead();
        inner.may_spare = true;
        inner.streams_only |= was_empty;
        if was_empty {
            inner.waits = 0;
        }
        if let Some(limit) = limit {
            self.watch_time(limit);
        }
        Ok(ahead)
    }

    /// Ends a job; its waker is called after the station is released.
    #[inline]
    pub(crate) fn finish(&mut self, job: JobRef, outcome: Outcome) {
        let inner = &mut **self;
        inner.tally.note(&outcome);
        job.finish(outcome, &mut inner.after);
    }

    /// The lane of a process that is over, or is not to be heard any more.
    pub(crate) fn take_lane(&mut self) -> Option<Lane<JobRef>> {
        let lane = self.lane.take()?;
        self.tally.note_lane(&lane.census());
        Some(lane)
    }

    /// Delivers what the worker has published. A violation ends the worker.
    #[inline]
    pub(crate) fn poll(&mut self) {
        self.poll_with(true);
    }

    /// As [`poll`](Self::poll), for a loop: looks at finished responses only, not at how far unfinished ones are, which
    /// would take the worker's line away from it time and again.
    #[inline]
    pub(crate) fn peek(&mut self) {
        self.has_looked = true;
        if self.lane.as_ref().is_some_and(Lane::ready) {
            self.poll_with(false);
        }
    }

    #[inline]
    fn poll_with(&mut self, streams: bool) {
        self.has_looked = true;
        let id = self.station.id;
        let inner = &mut **self;
        let Some(lane) = &mut inner.lane else { return };
        if inner.violation.is_some() || inner.is_given_up {
            return;
        }
        if inner.meter.is_some() {
            return self.poll_timed(streams);
        }
        let mut delivery = Delivery {
            after: &mut inner.after,
            calls: &mut inner.calls,
            tally: &mut inner.tally,
            station: id,
            generation: inner.generation,
        };
        let polled = lane.poll(&mut delivery, streams);
        self.note_poll(polled, streams);
    }

    /// As [`poll_with`](Self::poll_with), where tasks are timed.
    #[inline(never)]
    fn poll_timed(&mut self, streams: bool) {
        let who = Who { station: self.station.id, generation: self.generation };
        let inner = &mut **self;
        let (Some(lane), Some(meter)) = (&mut inner.lane, &mut inner.meter) else { return };
        let delivery = Delivery {
            after: &mut inner.after,
            calls: &mut inner.calls,
            tally: &mut inner.tally,
            station: who.station,
            generation: who.generation,
        };
        let polled = lane.poll(&mut Timed { delivery, meter, who }, streams);
        self.note_poll(polled, streams);
    }

    #[inline(always)]
    fn note_poll(&mut self, polled: Result<usize, Violation>, streams: bool) {
        let inner = &mut **self;
        match polled {
            Ok(replies) => {
                inner.tasks_done += replies as u64;
                if replies > 0 {
                    inner.waits = 0;
                }
                if streams && inner.stage == Stage::Ready && inner.lane.as_ref().is_some_and(Lane::is_leaving)
                {
                    self.stop(Why::Recycled);
                }
            }
            Err(violation) => self.break_off(violation),
        }
    }

    /// The worker broke the protocol: it is killed, and its lane is not read any more.
    #[cold]
    pub(crate) fn break_off(&mut self, violation: Violation) {
        self.violation = Some(violation);
        self.signal(nix::libc::SIGKILL);
    }

    /// For an owner that looks around in a loop: the worker gets what waits in the queue before it runs dry.
    #[inline]
    pub(crate) fn keep_busy(&mut self) {
        if !self.queue.is_empty() && self.lane.as_ref().is_some_and(Lane::has_room) {
            self.refill();
        }
    }

    /// Moves jobs from the queue to the ring while they fit. A submitter who keeps the ring full also empties it, half a
    /// lap at a time.
    fn refill(&mut self) {
        while !self.queue.is_empty() && self.can_send() {
            match &self.lane {
                Some(lane) if lane.has_room() => {}
                // The worker is writing thereabouts, so not at every task.
                Some(lane) if self.queue.len().is_multiple_of(QUEUED_PER_LOOK) && lane.half_is_ready() => {
                    self.poll();
                }
                _ => return,
            }
            if let Some(soon) = self.queue.get(QUEUED_AHEAD) {
                prefetch::for_writing(soon.job());
            }
            let Some(mut job) = self.queue.pop_front() else { return };
            let back = match job.queued_small() {
                Some(request) if !job.is_unwanted() => self.send_small(job, &request).err(),
                _ => {
                    let Some(parcel) = job.unqueue() else { continue };
                    self.send(job, parcel).map(|(mut job, parcel)| {
                        job.queue(parcel);
                        job.set_place(Place { station: self.station.id, spot: Spot::Queue });
                        job
                    })
                }
            };
            if let Some(job) = back {
                self.queue.push_front(job);
                return;
            }
        }
    }

    /// Brings the station into the state in which it may be left: STATION-3, and the pool's sets of idle stations and
    /// of stations with more than they need. `true`: the pool has both, so work should move.
    #[inline]
    fn settle(&mut self) -> bool {
        if !self.queue.is_empty() {
            self.refill();
        }
        if self.streams_only {
            self.look_along();
        }
        if self.has_looked && !self.round {
            // Only the owner writes it.
            let visits = &self.station.visits;
            visits.store(visits.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
        let is_closing = self.core.phase() >= Phase::Closing;
        if self.wake == Wake::Nobody && self.in_flight() > 0 && (is_closing || !self.is_watched()) {
            self.watch_or_arm();
        }
        if let Seat::Waits(job) = self.seat
            && (job.is_done() || job.place().station != self.station.id)
        {
            self.call_seat();
        }
        if is_closing && self.is_empty() && !driver::is_this_thread() {
            // The driver waits for the last task.
            self.core.ring_driver();
        }
        self.core.stations.len() > 1 && self.classify()
    }

    /// A stream looks for results while it sends, so that its worker has something to do meanwhile, what is there is delivered
    /// before the next item is pulled, and what is answered is no surplus.
    #[inline(never)]
    fn look_along(&mut self) {
        let is_time = |lane: &Lane<JobRef>| match lane.in_flight() {
            0 | 1 => false,
            2..=RUN => true,
            _ => lane.sent().is_multiple_of(RUN as u64),
        };
        if self.lane.as_ref().is_some_and(is_time) {
            self.peek();
        }
    }

    /// Whether the driver comes by, so that nobody needs to be rung.
    #[inline]
    fn is_watched(&self) -> bool {
        self.watched && self.seat == Seat::Free && !self.round
    }

    /// Makes sure that somebody learns of what is in flight.
    #[inline(never)]
    fn watch_or_arm(&mut self) {
        let mut looks = 0;
        loop {
            let is_watched = !self.round && self.seat == Seat::Free && self.core.may_watch() && self.watch();
            let inner = &mut **self;
            let Some(lane) = &mut inner.lane else { return };
            let is_deaf = inner.violation.is_some() || inner.is_given_up;
            if inner.wake != Wake::Nobody || is_deaf || inner.stage == Stage::Vacant {
                return;
            }
            if lane.in_flight() == 0 || is_watched {
                return;
            }
            inner.wake = if inner.seat == Seat::Free { Wake::Driver } else { Wake::Waiter };
            lane.arm(inner.wake);
            if !lane.fence_and_ready() {
                return;
            }
            looks += 1;
            if looks == LOOKS_MAX {
                // A worker that always has something, be it nonsense, must not hold whoever owns its station.
                return self.core.ring_driver();
            }
            // Something came in between: the ring may be lost, so it is taken here.
            self.disarm();
            self.poll();
            self.refill();
        }
    }

    /// Has the driver come by. `false`: somebody has gone to sleep meanwhile.
    fn watch(&mut self) -> bool {
        if !self.watched {
            self.watched = true;
            self.core.watched.set(self.station.id);
            self.core.start_rounds();
        }
        // Edge WATCH: in the set, then this look; who goes to sleep is counted, then looks at the set.
        let may = self.core.may_watch();
        if !may {
            // Who sleeps may have looked before the station was in the set, and will not look again.
            self.leave_watch();
        }
        may
    }

    /// The driver was rung.
    pub(crate) fn attend(&mut self) {
        // The ring may have been this station's: it is armed again when it is let go.
        self.disarm();
        self.poll();
    }

    /// What follows is armed for, not watched.
    pub(crate) fn leave_watch(&mut self) {
        if self.watched {
            self.watched = false;
            self.core.watched.clear(self.station.id);
        }
    }

    /// Whoever waited here has seen nothing come.
    pub(crate) fn lose_patience(&mut self) {
        self.waits = WAITS_MAX;
    }

    /// Takes the armed ring back: this owner is going to look.
    #[inline]
    pub(crate) fn disarm(&mut self) {
        let inner = &mut **self;
        if inner.wake != Wake::Nobody {
            inner.wake = Wake::Nobody;
            if let Some(lane) = &mut inner.lane {
                lane.arm(Wake::Nobody);
            }
        }
    }

    /// The thread in the seat waits for what does not come from this worker any more (STATION-4).
    #[cold]
    fn call_seat(&mut self) {
        let inner = &mut **self;
        inner.seat = Seat::Taken;
        let bell = inner.response_bell.clone();
        inner.after.extend(bell.map(|bell| After::Wake(Waker::from(bell))));
    }

    /// Makes the worker ring the seat's bell. `false`: something has come already, look again instead of sleeping.
    ///
    /// To be called after [`poll`](Self::poll). If the worker was to ring the driver, and has not been looked at in vain since,
    /// that is changed without a fence (edge SLEEP): a response that comes before the worker can see the change rings the
    /// driver, who calls the seat (STATION-4).
    pub(crate) fn arm_seat(&mut self) -> bool {
        let inner = &mut **self;
        let Some(lane) = &mut inner.lane else { return true };
        if inner.violation.is_some() || inner.is_given_up {
            return true;
        }
        let takes_over = inner.wake == Wake::Driver;
        inner.wake = Wake::Waiter;
        lane.arm(Wake::Waiter);
        if !takes_over && lane.fence_and_ready() {
            self.disarm();
            return false;
        }
        true
    }

    /// A fresh process, asked for at this moment: nothing is armed in its memory, and nothing is known against it.
    pub(crate) fn reset(&mut self, asked_ns: u64) {
        self.wake = Wake::Nobody;
        self.violation = None;
        self.is_given_up = false;
        self.verdict = None;
        self.seen = None;
        self.tasks_done = 0;
        self.tally.note_start(asked_ns);
    }

    #[inline]
    fn classify(&mut self) -> bool {
        let (id, core) = (self.station.id, self.core);
        let inner = &mut **self;
        let in_flight = inner.in_flight();
        if in_flight == 1 && inner.queue.is_empty() && !inner.is_idle && !inner.has_surplus {
            // The one that runs is no surplus.
            return false;
        }
        let kept = if inner.is_patient() { RUN } else { 1 };
        if in_flight > 1 {
            inner.waits = inner.waits.saturating_add(1);
        }
        let surplus = inner.may_spare && (!inner.queue.is_empty() || in_flight > kept);
        // A pool that is closing still moves what it has.
        let over = inner.refusal.as_ref().is_some_and(|refusal| !refusal.is_closed());
        let idle = in_flight == 0 && inner.queue.is_empty() && inner.can_send() && !over;
        let mut rebalance = false;
        if surplus != inner.has_surplus {
            inner.has_surplus = surplus;
            if surplus {
                core.surplus.set(id);
                rebalance = core.idle.any();
            } else {
                core.surplus.clear(id);
            }
        }
        if idle && !inner.is_idle {
            inner.is_idle = true;
            core.idle.set(id);
            rebalance |= core.surplus.any();
        } else if !idle && inner.is_idle {
            inner.is_idle = false;
            core.idle.clear(id);
        }
        rebalance
    }

    /// The station is about to be given work. [`settle`](Self::settle) puts it back if that comes to nothing.
    #[inline]
    pub(crate) fn leave_idle(&mut self) {
        if self.is_idle {
            self.is_idle = false;
            self.core.idle.clear(self.station.id);
        }
    }

    /// Nothing here can be moved to another station at present.
    pub(crate) fn no_surplus(&mut self) {
        self.may_spare = false;
        if self.has_surplus {
            self.has_surplus = false;
            self.core.surplus.clear(self.station.id);
        }
    }
}

/// Before a request is published (STATION-3). Before the first one it needs no fence: no response can come before it. With
/// others in flight, something may just have come, so it is left to [`settle`](Owned::settle), which looks again.
#[inline(always)]
fn arm_before_first(lane: &mut Lane<JobRef>, wake: &mut Wake, watched: bool) {
    if *wake == Wake::Nobody && !watched && lane.in_flight() == 0 {
        *wake = Wake::Driver;
        lane.arm(Wake::Driver);
    }
}

/// Where a lane's deliveries go.
struct Delivery<'a> {
    after: &'a mut Vec<After>,
    calls: &'a mut Vec<Request>,
    tally: &'a mut Tally,
    station: usize,
    generation: u64,
}

impl Sink<JobRef> for Delivery<'_> {
    #[inline]
    fn expect(&self, job: &JobRef) {
        prefetch::for_writing(job.job());
    }

    #[inline]
    fn reply(&mut self, job: JobRef, reply: Reply) {
        self.tally.note_reply(reply.status);
        let outcome = match reply.status {
            Status::Skipped => Outcome::Failed(TaskError::Cancelled),
            _ => Outcome::Reply(reply),
        };
        job.finish(outcome, self.after);
    }

    #[inline]
    fn small_reply(&mut self, job: JobRef, reply: SmallReply) {
        if reply.status != Status::Value {
            return self.reply(job, reply.into());
        }
        job.finish_small(reply, self.after);
    }

    fn cut(&mut self, job: JobRef, parcel: Parcel) {
        job.finish(Outcome::BatchLost(Box::new((parcel, None, None))), self.after);
    }

    fn results(&mut self, job: &mut JobRef, form: Form, arena: ArenaReader<'_>, position: u64, len: usize) {
        if let Some(batch) = job.batch() {
            self.after.extend(batch.append(form, arena, position, len).map(After::Wake));
        }
    }

    fn call(&mut self, number: u64, bytes: AlignedBytes) {
        self.calls.push(Request { station: self.station, generation: self.generation, number, bytes });
    }
}

/// Deliveries of a station that has a meter.
struct Timed<'a> {
    delivery: Delivery<'a>,
    meter: &'a mut Meter,
    who: Who,
}

impl Sink<JobRef> for Timed<'_> {
    const TIMED: bool = true;

    fn timed(&mut self, job: &JobRef, run: Run) {
        self.meter.note_answer(self.who, job, run);
    }

    fn expect(&self, job: &JobRef) {
        self.delivery.expect(job);
    }

    fn reply(&mut self, job: JobRef, reply: Reply) {
        self.delivery.reply(job, reply);
    }

    fn small_reply(&mut self, job: JobRef, reply: SmallReply) {
        self.delivery.small_reply(job, reply);
    }

    fn cut(&mut self, job: JobRef, parcel: Parcel) {
        self.delivery.cut(job, parcel);
    }

    fn results(&mut self, job: &mut JobRef, form: Form, arena: ArenaReader<'_>, position: u64, len: usize) {
        self.delivery.results(job, form, arena, position, len);
    }

    fn call(&mut self, number: u64, bytes: AlignedBytes) {
        self.delivery.call(number, bytes);
    }
}
