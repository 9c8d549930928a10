//! A job ends: its outcome is put where the task finds it, and whoever waits is called.

#![allow(unsafe_code, reason = "cells are shared by hand-over: JOB-1 to JOB-5 of the parent module")]

use std::sync::atomic::Ordering;
use std::task::Waker;

use super::{
    BUSY, EXTRA, GENERATION_SHIFT, GONE, ITEM, Job, JobRef, Outcome, PLACE, REPORT, Stage, TAG_BITS,
    TAG_SHIFT, WAKER,
};
use crate::error::TaskError;
use crate::ground::barrier;
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
                self.settle_batch(outcome);
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
        self.settle_batch(outcome);
        after.extend(batch.append_last(form, arena, position, len).map(After::Wake));
    }

    fn settle_batch(self, outcome: Outcome) {
        let nothing = self.settle(outcome);
        debug_assert!(nothing.is_none(), "a batch is awaited through its sink");
    }

    /// Before the outcome can be seen: whoever sees it finds a place.
    #[inline]
    fn give_place_back(&self, after: &mut Vec<After>) {
        if self.0.state.load(Ordering::Relaxed) & PLACE != 0 {
            let gate = self.0.core().gate.as_ref();
            after.extend(gate.and_then(Gate::give_back).map(After::Wake));
        }
    }

    /// As [`finish`](Self::finish), with a result that is in its slot, by the owner of this station.
    #[inline]
    pub(crate) fn finish_small(
        self,
        reply: SmallReply,
        station: usize,
        core: &Core,
        ended: &mut Ended,
        after: &mut Vec<After>,
    ) {
        let job = self.0;
        let state = job.state.load(Ordering::Relaxed);
        if state & (EXTRA | PLACE | GONE) != 0 {
            return self.finish(Outcome::Small(reply), after);
        }
        // JOB-1: the job is ours until it has ended.
        job.set_small(reply.pack());
        ended.push(self.end(station, true), state);
        if ended.is_full() {
            ended.look_after_all(core, after);
        }
    }

    #[inline(never)]
    pub(super) fn settle(self, outcome: Outcome) -> Option<After> {
        let (station, generation) = (self.0.station(), self.0.generation());
        let is_small = match outcome {
            Outcome::Small(reply) => {
                // JOB-1: the job is ours until it has ended.
                self.0.set_small(reply.pack());
                true
            }
            outcome => {
                // SAFETY: JOB-1: the job is ours until it has ended.
                unsafe { *self.0.cold().stage.get() = Stage::Ended(outcome) };
                false
            }
        };
        let job = self.end(station, is_small);
        barrier::full();
        job.look_after(generation)
    }
}

impl Job {
    /// Pool: calls the task of a job that has ended, or frees the cell if there is none any more. Edge DONE: a fence after the end,
    /// then this.
    #[inline]
    fn look_after(&'static self, generation: u64) -> Option<After> {
        // Of this job's task, or of that of its cell's next job.
        let is_wanted = self.state.load(Ordering::Relaxed) & (WAKER | GONE) != 0;
        if is_wanted { self.call_or_free(generation) } else { None }
    }

    #[cold]
    fn call_or_free(&'static self, generation: u64) -> Option<After> {
        let mut state = self.state.load(Ordering::Acquire);
        while state >> GENERATION_SHIFT == generation {
            let next = match state {
                gone if gone & GONE != 0 => gone | BUSY,
                waits if waits & WAKER != 0 => waits & !WAKER | BUSY,
                _ => return None,
            };
            if let Err(seen) = self.change(state, next) {
                state = seen;
                continue;
            }
            if state & GONE != 0 {
                // SAFETY: JOB-1 and JOB-4: nobody will take the outcome.
                let outcome = unsafe { self.outcome(self.place.load(Ordering::Relaxed)) };
                self.free(state);
                return failure(&outcome).filter(|_| state & REPORT != 0).map(After::Report);
            }
            self.core().remove_sleeper();
            // SAFETY: JOB-2: BUSY makes the slot the pool's.
            let waker = unsafe { (*self.cold().waker.get()).take() };
            self.state.fetch_and(!BUSY, Ordering::Release);
            return waker.map(After::Wake);
        }
        None
    }
}

/// Jobs whose outcome can be seen, and whose tasks are still to be looked at: one fence for all of them (edge DONE).
#[derive(Debug)]
pub(crate) struct Ended {
    /// And their last states, for the generation. After so many the first ones are still in the nearest cache.
    jobs: [Option<(&'static Job, u64)>; 64],
    len: usize,
    /// Those of them that are items are of these streams.
    streams: u64,
}

impl Ended {
    pub(crate) fn new() -> Self {
        Self { jobs: [None; 64], len: 0, streams: 0 }
    }

    #[inline]
    fn push(&mut self, job: &'static Job, state: u64) {
        if state & ITEM != 0 {
            self.streams |= stream_of(state);
        }
        self.jobs[self.len] = Some((job, state));
        self.len += 1;
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.len == self.jobs.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Looks at their tasks, before the station is released. The caller holds the task of `awaited`, if any, so nobody wants anything
    /// of it meanwhile; one that has left a waker earlier does not end here ([`finish_small`](JobRef::finish_small)).
    #[inline]
    pub(crate) fn look_after(&mut self, awaited: Option<&'static Job>, core: &Core, after: &mut Vec<After>) {
        match (self.len, self.jobs[0], awaited) {
            (0, ..) => {}
            (1, Some((job, _)), Some(awaited)) if std::ptr::eq(job, awaited) => self.len = 0,
            _ => self.look_after_all(core, after),
        }
    }

    #[inline(never)]
    fn look_after_all(&mut self, core: &Core, after: &mut Vec<After>) {
        barrier::full();
        let streams = std::mem::take(&mut self.streams);
        if streams != 0 && core.has_sleeping_streams(streams) {
            After::call_streams(after, streams);
        }
        for ended in &self.jobs[..std::mem::take(&mut self.len)] {
            if let &Some((job, state)) = ended
                && let Some(next) = job.look_after(state >> GENERATION_SHIFT)
            {
                after.push(next);
            }
        }
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
        Outcome::Reply(reply) => crate::task::failure_of(reply.status, reply.body.as_bytes()),
        Outcome::Small(_) | Outcome::BatchDone(_) | Outcome::BatchLost(_) => None,
    }
}
