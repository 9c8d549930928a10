//! A worker's place in the pool: the lane of its present process, and the queue in front of it.
//!
//! # Ownership
//!
//! A station is used by one thread at a time. Ownership is a flag, and **no user code runs while it is held**: inputs
//! are encoded before, results decoded after, and wakers called after it. So it is held for as long as it takes to
//! copy some bytes, and whoever has to may wait for it.
//!
//! A submitter does not even wait: if the station is owned, it pushes its job on the *inbox*, which is part of the
//! same word, and the owner takes it in before it lets go. Nothing is left behind, because letting go is a
//! compare-and-swap that fails while the inbox is not empty.
//!
//! | word | meaning |
//! |---|---|
//! | 0 | free |
//! | OWNED | owned, inbox empty |
//! | pointer + OWNED | owned, inbox is a list of jobs, youngest first |
//! | … + WANTED | somebody waits for the station; an owner that only looks for responses lets go |
//!
//! * STATION-1: `inner` is touched only between the compare-and-swap that sets OWNED and the one that clears it.
//! * STATION-2: the word's pointer is null or a job that was pushed and not yet taken in.
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

use crossbeam_utils::{Backoff, CachePadded};

use super::core::{Core, Phase};
use super::driver;
use super::events;
use super::job::{After, Job, JobRef, Outcome, Place, Spot};
use super::service::Request;
use super::verdict::{Seen, Verdict, Why};
use crate::error::TaskError;
use crate::ground::doorbell::Doorbell;
use crate::ground::sys::process::PidFd;
use crate::memory::arena::ArenaReader;
use crate::memory::codec::AlignedBytes;
use crate::panics;
use crate::protocol::lane::{Lane, Parcel, Refusal, Reply, Sink, Violation};
use crate::protocol::wire::{Status, Wake};

const OWNED: usize = 1;
const WANTED: usize = 2;
const FLAGS: usize = OWNED | WANTED;

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
    word: CachePadded<AtomicUsize>,
    /// How often the station was owned by others than the driver on its rounds: written by owners, read by anyone.
    visits: AtomicUsize,
    /// The driver's: what it read there on its last round.
    visits_seen: AtomicUsize,
    inner: UnsafeCell<Inner>,
}

// SAFETY: `inner` is guarded by the word (STATION-1), and everything in it may move between threads.
unsafe impl Sync for Station {}

/// The process that serves a station.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) pidfd: PidFd,
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
    /// Service requests that have come whole.
    pub(crate) calls: Vec<Request>,
    pub(crate) response_bell: Option<Arc<Bell>>,
    pub(crate) request_bell: Option<Arc<Doorbell>>,
    /// Who sleeps on `response_bell`.
    pub(crate) seat: Seat,
    /// When somebody last rose from it.
    pub(crate) last_sat: Option<Instant>,
    pub(crate) tasks_done: u64,
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
    after: Vec<After>,
}

impl Station {
    pub(crate) fn new(id: usize, request_bell: Arc<Doorbell>, response_bell: Arc<Bell>) -> Self {
        Self {
            id,
            word: CachePadded::new(AtomicUsize::new(0)),
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
                calls: Vec::new(),
                response_bell: Some(response_bell),
                request_bell: Some(request_bell),
                seat: Seat::Free,
                last_sat: None,
                tasks_done: 0,
                verdict: None,
                seen: None,
                look_every: None,
                wake: Wake::Nobody,
                is_idle: false,
                has_surplus: false,
                may_spare: false,
                watched: false,
                after: Vec::new(),
            }),
        }
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
        let won = self.word.compare_exchange(0, OWNED, Ordering::Acquire, Ordering::Relaxed).is_ok();
        // Lazily: an `Owned` that is made and dropped would let go of somebody else's station.
        won.then(|| Owned { station: self, core, quiet: false, round: false, puts_off: false })
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
            if owned.tasks_done == done {
                owned.round = true;
                owned.leave_watch();
            }
        }
    }

    /// Waits until the station can be owned.
    pub(crate) fn own<'a>(&'a self, core: &'a Core) -> Owned<'a> {
        let backoff = Backoff::new();
        loop {
            if let Some(owned) = self.try_own(core) {
                return owned;
            }
            // An owner that looks for responses in a loop sees this and lets go.
            self.word.fetch_or(WANTED, Ordering::Relaxed);
            // A WANTED that is set on a free word would keep it from being owned.
            let _ = self.word.compare_exchange(WANTED, 0, Ordering::Relaxed, Ordering::Relaxed);
            backoff.snooze();
        }
    }

    /// Owns the station, or leaves the job with whoever does.
    #[inline]
    pub(crate) fn own_or_leave<'a>(
        &'a self,
        core: &'a Core,
        mut job: JobRef,
        parcel: Parcel,
    ) -> Option<(Owned<'a>, JobRef, Parcel)> {
        if let Some(owned) = self.try_own(core) {
            return Some((owned, job, parcel));
        }
        job.queue(parcel);
        // A place that names the station lets a canceller find the job once the station has taken it in.
        job.set_place(Place { station: self.id, spot: Spot::Queue });
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & OWNED == 0 {
                match self.word.compare_exchange(word, OWNED, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => {
                        let owned =
                            Owned { station: self, core, quiet: false, round: false, puts_off: false };
                        let parcel = job.unqueue()?;
                        return Some((owned, job, parcel));
                    }
                    Err(seen) => word = seen,
                }
                continue;
            }
            job.link().store((word & !FLAGS) as *mut Job, Ordering::Relaxed);
            let raw = job.into_raw();
            // Release: the job's fields before its presence in the inbox (STATION-2).
            match self.word.compare_exchange(
                word,
                raw as usize | word & FLAGS,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return None,
                Err(seen) => {
                    word = seen;
                    // SAFETY: the exchange failed, so nobody has seen the pointer.
                    job = unsafe { JobRef::from_raw(raw) };
                }
            }
        }
    }
}

/// Ownership of a station. Dropping it settles what is owed and lets go.
#[derive(Debug)]
pub(crate) struct Owned<'a> {
    pub(crate) station: &'a Station,
    pub(crate) core: &'a Core,
    /// Whether this owner moves work itself, so that letting go does not start it again.
    quiet: bool,
    /// Whether this is the driver on its round, which is no sign of life.
    round: bool,
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
        let mut rebalance = self.settle();
        let mut after = Afterwards::default();
        if !self.puts_off {
            after.collect(self);
        }
        while self.station.word.compare_exchange(OWNED, 0, Ordering::Release, Ordering::Relaxed).is_err() {
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
                After::Report(error) => events::error(core, format_args!("a detached task failed: {error}")),
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
    pub(crate) fn in_flight(&self) -> usize {
        self.lane.as_ref().map_or(0, Lane::in_flight)
    }

    /// Whether the station holds no task.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.in_flight() == 0
    }

    fn can_send(&self) -> bool {
        self.stage == Stage::Ready && self.violation.is_none()
    }
}

impl<'a> Owned<'a> {
    /// This owner moves work between stations itself.
    pub(crate) fn keep_quiet(&mut self) {
        self.quiet = true;
    }

    /// Leaves user code to the next owner: this thread holds jobs that the code may want to call off.
    pub(crate) fn put_off(&mut self) {
        self.puts_off = true;
    }

    /// Whether an owner that only looks for responses should let go: somebody waits, or has left a job.
    #[inline]
    pub(crate) fn contended(&self) -> bool {
        self.station.word.load(Ordering::Relaxed) != OWNED
    }

    fn take_inbox(&mut self) {
        // Acquire: the fields of the jobs in it (STATION-2).
        let word = self.station.word.swap(OWNED, Ordering::Acquire);
        let mut next = (word & !FLAGS) as *mut Job;
        let mut jobs = Vec::new();
        while !next.is_null() {
            // SAFETY: STATION-2, and the swap made the list ours.
            let job = unsafe { JobRef::from_raw(next) };
            next = job.link().load(Ordering::Relaxed);
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
            let refusal = refusal.clone();
            return self.finish(job, Outcome::Failed(refusal));
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
        match self.refusal.take_if(|refusal| refusal.is_closed()) {
            None => self.accept(job, parcel),
            Some(closed) => {
                self.accept(job, parcel);
                self.refusal = Some(closed);
            }
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
        // STATION-3. Arming before the first request is published needs no fence: nothing can come before it. With
        // others in flight, something may just have come, so it is left to `settle`, which looks again.
        if inner.wake == Wake::Nobody && !inner.watched && lane.in_flight() == 0 {
            inner.wake = Wake::Driver;
            lane.arm(Wake::Driver);
        }
        let (shared, spare) = (job.job(), !job.is_pinned());
        let limit = if job.is_limited(core) { job.timeout(core) } else { None };
        match lane.push(job, parcel) {
            Ok(index) => {
                // The job is in the ring under this index; only this thread, its owner, moves it.
                JobRef::note_place(shared, Place { station: id, spot: Spot::Ring(index) });
                lane.ring_if_asleep();
                inner.may_spare |= spare;
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

    /// Ends a job; its waker is called after the station is released.
    #[inline]
    pub(crate) fn finish(&mut self, job: JobRef, outcome: Outcome) {
        job.finish(outcome, &mut self.after);
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
        if self.lane.as_ref().is_some_and(Lane::ready) {
            self.poll_with(false);
        }
    }

    #[inline]
    fn poll_with(&mut self, streams: bool) {
        let id = self.station.id;
        let inner = &mut **self;
        let Some(lane) = &mut inner.lane else { return };
        if inner.violation.is_some() {
            return;
        }
        let mut delivery = Delivery {
            after: &mut inner.after,
            calls: &mut inner.calls,
            station: id,
            generation: inner.generation,
        };
        match lane.poll(&mut delivery, streams) {
            Ok(replies) => {
                inner.tasks_done += replies as u64;
                if streams && inner.stage == Stage::Ready && lane.is_leaving() {
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

    /// Moves jobs from the queue to the ring while they fit. A submitter who keeps the ring full also empties it, half a
    /// lap at a time.
    fn refill(&mut self) {
        while !self.queue.is_empty() && self.can_send() {
            match &self.lane {
                Some(lane) if lane.has_room() => {}
                Some(lane) if lane.half_is_ready() => self.poll(),
                _ => return,
            }
            let Some(mut job) = self.queue.pop_front() else { return };
            let Some(parcel) = job.unqueue() else { continue };
            if let Some((mut job, parcel)) = self.send(job, parcel) {
                job.queue(parcel);
                self.queue.push_front(job);
                return;
            }
        }
    }

    /// Brings the station into the state in which it may be left: STATION-3, and the pool's sets of idle stations and
    /// of stations with more than they need. `true`: the pool has both, so work should move.
    #[inline]
    fn settle(&mut self) -> bool {
        self.refill();
        if !self.round {
            // Only the owner writes it.
            let visits = &self.station.visits;
            visits.store(visits.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
        let mut looks = 0;
        loop {
            let is_watched = self.may_be_watched() && self.watch();
            let inner = &mut **self;
            let Some(lane) = &mut inner.lane else { break };
            if inner.wake != Wake::Nobody || inner.violation.is_some() || inner.stage == Stage::Vacant {
                break;
            }
            if lane.in_flight() == 0 || is_watched {
                break;
            }
            inner.wake = if inner.seat == Seat::Free { Wake::Driver } else { Wake::Waiter };
            lane.arm(inner.wake);
            if !lane.fence_and_ready() {
                break;
            }
            looks += 1;
            if looks == LOOKS_MAX {
                // A worker that always has something, be it nonsense, must not hold whoever owns its station.
                self.core.ring_driver();
                break;
            }
            // Something came in between: the ring may be lost, so it is taken here.
            self.disarm();
            self.poll();
            self.refill();
        }
        if let Seat::Waits(job) = self.seat
            && (job.is_done() || job.place().station != self.station.id)
        {
            self.call_seat();
        }
        if self.core.phase() >= Phase::Closing && self.is_empty() && !driver::is_this_thread() {
            // The driver waits for the last task.
            self.core.ring_driver();
        }
        self.classify()
    }

    /// Whether it is enough that the driver comes by: somebody is here time and again, and nobody sleeps.
    #[inline]
    fn may_be_watched(&self) -> bool {
        self.wake == Wake::Nobody
            && self.in_flight() > 0
            && !self.round
            && self.seat == Seat::Free
            && self.core.may_watch()
    }

    /// Has the driver come by. `false`: somebody has gone to sleep meanwhile.
    fn watch(&mut self) -> bool {
        if !self.watched {
            self.watched = true;
            self.core.watched.set(self.station.id);
            self.core.start_rounds();
        }
        // Edge WATCH: in the set, then this look; who goes to sleep is counted, then looks at the set.
        self.core.may_watch()
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
        if inner.violation.is_some() {
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

    /// A fresh process: nothing is armed in its memory, and nothing is known against it.
    pub(crate) fn reset(&mut self) {
        self.wake = Wake::Nobody;
        self.violation = None;
        self.verdict = None;
        self.seen = None;
        self.tasks_done = 0;
    }

    #[inline]
    fn classify(&mut self) -> bool {
        let (id, core) = (self.station.id, self.core);
        if core.stations.len() == 1 {
            return false;
        }
        let inner = &mut **self;
        let in_flight = inner.in_flight();
        let surplus = inner.may_spare && (!inner.queue.is_empty() || in_flight > 1);
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

/// Where a lane's deliveries go.
struct Delivery<'a> {
    after: &'a mut Vec<After>,
    calls: &'a mut Vec<Request>,
    station: usize,
    generation: u64,
}

impl Sink<JobRef> for Delivery<'_> {
    #[inline]
    fn reply(&mut self, job: JobRef, reply: Reply) {
        let outcome = match reply.status {
            Status::Skipped => Outcome::Failed(TaskError::Cancelled),
            _ => Outcome::Reply(reply),
        };
        job.finish(outcome, self.after);
    }

    fn cut(&mut self, job: JobRef, parcel: Parcel) {
        job.finish(Outcome::BatchLost(Box::new((parcel, None))), self.after);
    }

    fn records(&mut self, job: &mut JobRef, arena: ArenaReader<'_>, position: u64, len: usize) {
        if let Some(batch) = job.batch() {
            self.after.extend(batch.append(arena, position, len).map(After::Wake));
        }
    }

    fn call(&mut self, number: u64, bytes: AlignedBytes) {
        self.calls.push(Request { station: self.station, generation: self.generation, number, bytes });
    }
}

#[cfg(all(test, forkring_loom))]
mod loom;
