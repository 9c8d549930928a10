//! The task's side of a job: it waits for the outcome, takes it, or will not.

#![allow(unsafe_code, reason = "cells are shared by hand-over: JOB-1 to JOB-5 of the parent module")]

use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};

use super::end::failure;
use super::place::{has_ended, has_ended_small};
use super::{BUSY, EXTRA, GONE, Job, Outcome, REPORT, Stage, WAKER};
use crate::error::TaskError;
use crate::life::events;
use crate::protocol::lane::SmallReply;

impl Job {
    /// Task: wants `waker` called when the job is done. `Ready`: it is.
    pub(crate) fn register(&self, waker: &Waker) -> Poll<()> {
        loop {
            if self.is_done() {
                return Poll::Ready(());
            }
            let state = self.withdraw();
            // SAFETY: JOB-2: WAKER is clear, so the slot is the task's.
            let slot = unsafe { &mut *self.cold().waker.get() };
            if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
                *slot = Some(waker.clone());
            }
            // Counted before it can be uncounted.
            self.core().add_sleeper();
            if self.change(state, state | WAKER | EXTRA).is_ok() {
                // Edge DONE.
                return if self.is_done() { Poll::Ready(()) } else { Poll::Pending };
            }
            // A flag of the pool's side was in the way. Whoever frees the cell would not know of the waker.
            self.core().remove_sleeper();
            *slot = None;
        }
    }

    /// Task: makes the waker's slot its own (JOB-2). Returns the state, in which neither WAKER nor BUSY is set.
    #[inline]
    fn withdraw(&self) -> u64 {
        let state = self.state.load(Ordering::Acquire);
        if state & (WAKER | BUSY) == 0 { state } else { self.withdraw_waker(state) }
    }

    #[cold]
    fn withdraw_waker(&self, mut state: u64) -> u64 {
        loop {
            if state & BUSY != 0 {
                std::hint::spin_loop();
                state = self.state.load(Ordering::Acquire);
            } else if state & WAKER == 0 {
                return state;
            } else {
                match self.change(state, state & !WAKER) {
                    Ok(()) => {
                        self.core().remove_sleeper();
                        return state & !WAKER;
                    }
                    Err(seen) => state = seen,
                }
            }
        }
    }

    /// Task: takes the outcome of a job that is done, and frees the cell.
    #[inline]
    pub(crate) fn take(&'static self) -> Outcome {
        let place = self.place.load(Ordering::Acquire);
        debug_assert!(has_ended(place));
        // SAFETY: JOB-1: it has ended.
        let outcome = unsafe { self.outcome(place) };
        self.free(self.withdraw());
        outcome
    }

    /// Gives the cell back in a process that is not the pool's: of a task that was refused there, or of one that is over. Any
    /// other cell may be in use, if only in the copy of a queue.
    pub(crate) fn discard(&'static self) {
        // A waker would be user code of the other process.
        if self.is_done() && self.state.load(Ordering::Acquire) & EXTRA == 0 {
            drop(self.take());
        }
    }

    /// As [`take`](Self::take), of a value that came in its slot, and of nothing else.
    #[inline(always)]
    pub(crate) fn take_value(&'static self) -> Option<SmallReply> {
        self.take_small(|_| true)
    }

    /// As [`take_value`](Self::take_value), of one that has so many bytes, two words at most.
    #[inline(always)]
    pub(crate) fn take_words(&'static self, bytes: usize) -> Option<[u64; 2]> {
        let [low, high, _] = self.take_small(|reply| usize::from(reply.len) == bytes)?.words;
        Some([low, high])
    }

    #[inline(always)]
    fn take_small(&'static self, is_wanted: impl FnOnce(&SmallReply) -> bool) -> Option<SmallReply> {
        if !has_ended_small(self.place.load(Ordering::Acquire)) {
            return None;
        }
        // JOB-1: it has ended.
        let reply = SmallReply::unpack(self.small());
        is_wanted(&reply).then(|| {
            self.free(self.withdraw());
            reply
        })
    }

    /// Moves the outcome of a job out of its cell, which has ended with this word in `place`.
    ///
    /// # Safety
    ///
    /// The outcome has been written and is the caller's (JOB-1).
    #[inline]
    pub(super) unsafe fn outcome(&self, place: u64) -> Outcome {
        if has_ended_small(place) {
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
        let flags = if report { GONE | REPORT } else { GONE };
        while !self.is_done() {
            let state = self.withdraw();
            if state & EXTRA != 0 {
                // Dropped here: a waker is user code, which the pool's side must not run.
                // SAFETY: JOB-2: WAKER and BUSY are clear, so the slot is the task's.
                drop(unsafe { (*self.cold().waker.get()).take() });
            }
            if self.change(state, state | flags).is_err() {
                continue;
            }
            // Edge DONE: if it has ended meanwhile, the pool's side may not have seen that nobody takes the outcome (JOB-4).
            if !self.is_done() || self.change(state | flags, state).is_err() {
                return true;
            }
        }
        let core = self.core().clone();
        let failure = failure(&self.take()).filter(|_| report);
        if let Some(error) = failure {
            events::detached(&core, &error);
        }
        false
    }
}
