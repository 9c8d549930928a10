//! A job ends: its outcome is put where the task finds it, and whoever waits is called.

#![allow(unsafe_code, reason = "cells are shared by hand-over: JOB-1 to JOB-5 of the parent module")]

use std::sync::atomic::Ordering;
use std::task::Waker;

use super::{
    BUSY, DONE, EXTRA, GONE, ITEM, JobRef, Outcome, PLACE, REPORT, SMALL, Stage, TAG_BITS, TAG_SHIFT, WAKER,
};
use crate::error::TaskError;
use crate::life::core::Core;
use crate::life::gate::Gate;
use crate::memory::arena::ArenaReader;
use crate::protocol::lane::{Form, SmallReply};

impl JobRef {
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

    /// As [`finish`](Self::finish), of a batch whose last results are in the arena.
    #[inline]
    pub(crate) fn finish_batch(
        self,
        outcome: Outcome,
        form: Form,
        (arena, position, len): (ArenaReader<'_>, u64, usize),
        after: &mut Vec<After>,
    ) {
        let Some(batch) = self.take_batch() else { return self.finish(outcome, after) };
        let nothing = self.settle(outcome);
        debug_assert!(nothing.is_none(), "a batch is awaited through its sink");
        after.extend(batch.append_last(form, arena, position, len).map(After::Wake));
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
    pub(super) fn settle(self, outcome: Outcome) -> Option<After> {
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
pub(super) fn failure(outcome: &Outcome) -> Option<TaskError> {
    match outcome {
        Outcome::Failed(error) => Some(error.clone()),
        Outcome::Small(reply) => {
            crate::task::failure_of(reply.status, &reply.bytes()[..usize::from(reply.len)])
        }
        Outcome::Reply(reply) => crate::task::failure_of(reply.status, reply.body.as_bytes()),
        Outcome::BatchLost(_) => None,
    }
}
