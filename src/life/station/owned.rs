//! Owning a station: one thread at a time, what it owes when it lets go, and what was left in the inbox meanwhile.

#![allow(unsafe_code, reason = "a cell that is guarded by an ownership flag; an intrusive list")]

use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;

use super::{Inner, Station};
use crate::error::TaskError;
use crate::ground::ownership::{Grip, NODE_ALIGN, ThreadNumber};
use crate::life::core::Core;
use crate::life::driver;
use crate::life::events;
use crate::life::job::{After, Job, JobRef, Place, Spot};
use crate::life::service::Request;
use crate::panics;
use crate::protocol::lane::Parcel;

/// Who has owned a station so often in a row keeps it. Four times as often after each revocation (which takes two
/// microseconds), up to a maximum.
pub(super) const KEEP_AFTER: u32 = 16;
const KEEP_AFTER_MAX: u32 = 1 << 16;

const _: () = assert!(align_of::<Job>() >= NODE_ALIGN, "a job's address names it in an inbox");

/// How often a submitter looks whether a station is free before it leaves its job in the inbox: about a microsecond.
const TRIES_BEFORE_LEAVING: u32 = 32;

impl Station {
    /// Owns the station if nobody does.
    #[inline]
    pub(crate) fn try_own<'a>(&'a self, core: &'a Core) -> Option<Owned<'a>> {
        let me = ThreadNumber::current();
        // Lazily: an `Owned` that is made and dropped would let go of somebody else's station.
        self.ownership.try_own(me).map(|grip| Owned::new(self, core, me, grip))
    }

    /// Whether this thread can own the station without taking it from another one.
    #[inline]
    pub(crate) fn is_at_hand(&self) -> bool {
        self.ownership.is_at_hand(ThreadNumber::current())
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
    pub(super) round: bool,
    /// Whether it has looked for responses.
    pub(super) has_looked: bool,
    /// Whether it has found any.
    pub(super) has_found: bool,
    /// Whether wakers and reports are left to the next owner.
    puts_off: bool,
    /// The job whose task this thread holds and waits for.
    pub(super) awaited: Option<&'static Job>,
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
        debug_assert!(self.ended.is_empty(), "a look ends by looking after what has ended");
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
                After::CallStreams(streams) => core.call_streams(streams),
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

impl<'a> Owned<'a> {
    #[inline]
    fn new(station: &'a Station, core: &'a Core, me: ThreadNumber, grip: Grip) -> Self {
        Self {
            station,
            core,
            me,
            grip,
            quiet: false,
            round: false,
            has_looked: false,
            has_found: false,
            puts_off: false,
            awaited: None,
        }
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

    /// This thread holds the job's task, and waits for it.
    #[inline]
    pub(crate) fn set_awaited(&mut self, job: Option<&'static Job>) {
        self.awaited = job;
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
}
