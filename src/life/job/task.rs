//! The task's side of a job: it waits for the outcome, takes it, or will not.

#![allow(unsafe_code, reason = "cells are shared by hand-over: JOB-1 to JOB-5 of the parent module")]

use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};

use super::end::failure;
use super::{BUSY, DONE, EXTRA, GONE, Job, Outcome, REPORT, SMALL, Stage, WAKER};
use crate::error::TaskError;
use crate::life::events;
use crate::protocol::lane::SmallReply;
use crate::protocol::wire::Status;

impl Job {
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
        let state = self.state.load(Ordering::Acquire);
        if state & (DONE | SMALL) != DONE | SMALL {
            return None;
        }
        // JOB-1: DONE hands the outcome to the task.
        let reply = SmallReply::unpack(self.small());
        (reply.status == Status::Value && is_wanted(&reply)).then(|| {
            self.free(state);
            reply
        })
    }

    /// Moves the outcome out of its place.
    ///
    /// # Safety
    ///
    /// The outcome has been written and is the caller's (JOB-1).
    #[inline]
    pub(super) unsafe fn outcome(&self, state: u64) -> Outcome {
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
                    events::detached(&core, &error);
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
}
