//! A job in the hands of the pool's side: what was agreed on for it, and what has become of it so far.

#![allow(unsafe_code, reason = "cells are shared by hand-over: JOB-1 to JOB-5 of the parent module")]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{
    BatchSink, CALLED_OFF, EXTRA, GONE, ITEM, Job, JobRef, KILL, LIMITED, PINNED, PLACE, REPORT, TAG_BITS,
    TAG_SHIFT,
};
use crate::caller::Caller;
use crate::life::core::Core;
use crate::life::gate::Pass;
use crate::life::terms::Terms;

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
pub(super) struct Special {
    /// `None`: the pool's.
    terms: Option<Terms>,
    /// How many workers were lost over it.
    losses: u32,
    caller: Option<Caller>,
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

    /// It is a fresh job, and a batch.
    pub(crate) fn be_batch(&mut self, sink: Arc<dyn BatchSink>) {
        // Nobody else knows of it.
        let state = self.0.state.load(Ordering::Relaxed);
        self.0.state.store(state | EXTRA, Ordering::Relaxed);
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

    #[inline]
    pub(super) fn take_batch(&self) -> Option<Arc<dyn BatchSink>> {
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
        self.0.is_pinned()
    }

    /// Whether the job is not to start: nobody wants it, and it was not detached.
    #[inline]
    pub(crate) fn is_unwanted(&self) -> bool {
        let state = self.0.state.load(Ordering::Acquire);
        state & (GONE | REPORT) == GONE
    }
}
