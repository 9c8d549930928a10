//! How long tasks wait and run, where a pool was asked to measure it.
//!
//! Workers stamp each request when they start it and before they answer it ([`Run`]), beside its response. A job carries
//! the time of its submission. Both meet here, with whoever owns the station, when the response is taken: nothing is sent
//! for it, and nobody else has to look. A pool that was not asked has no meter, its workers take no stamps, and its tasks
//! take the short way that has no room for any of this.

use std::sync::Arc;
use std::time::Duration;

use super::job::JobRef;
use super::journal::{Entry, Journal, TaskEntry};
use super::messages::Who;
use super::station::Owned;
use crate::error::TaskError;
use crate::ground::sys::clock;
use crate::ground::sys::objects::Objects;
use crate::protocol::code::CodeId;
use crate::protocol::lane::{Lane, Run};
use crate::protocol::wire::Status;
use crate::task::TaskId;
use crate::timings::{Histogram, SLOWEST, SlowTask, Timings};

/// A station's (STATION-1).
#[derive(Debug)]
pub(crate) struct Meter {
    /// Whether there are to be distributions; if not, there is somebody who writes down each run.
    has_timings: bool,
    wait: Histogram,
    run: Histogram,
    /// The longest first.
    slowest: Vec<Slow>,
    busy_ns: u64,
    journal: Option<Arc<Journal>>,
}

#[derive(Clone, Copy, Debug)]
struct Slow {
    id: TaskId,
    who: Who,
    number: u64,
    code: CodeId,
    wait_ns: u64,
    run_ns: u64,
}

impl Meter {
    pub(crate) fn new(has_timings: bool, journal: Option<Arc<Journal>>) -> Self {
        Self {
            has_timings,
            wait: Histogram::default(),
            run: Histogram::default(),
            slowest: Vec::new(),
            busy_ns: 0,
            journal,
        }
    }

    /// A request has been run and answered.
    pub(crate) fn note_answer(&mut self, who: Who, job: &JobRef, run: Run) {
        self.note(who, job, run, outcome_of(run.status));
    }

    fn note(&mut self, who: Who, job: &JobRef, run: Run, outcome: &'static str) {
        // The stamps are the worker's: whatever they are, the differences are durations.
        let submitted_ns = job.submitted_ns();
        let wait_ns = run.started_ns.saturating_sub(submitted_ns);
        let run_ns = run.ended_ns.saturating_sub(run.started_ns);
        self.busy_ns = self.busy_ns.saturating_add(run_ns);
        let id = TaskId::of(job.job());
        if self.has_timings {
            self.wait.record(wait_ns);
            self.run.record(run_ns);
            self.rank(Slow { id, who, number: run.index, code: run.code, wait_ns, run_ns });
        }
        if let Some(journal) = &self.journal {
            let entry = TaskEntry { who, id, run, submitted_ns, outcome };
            journal.push(Entry::Task(entry));
        }
    }

    fn rank(&mut self, slow: Slow) {
        let place = self.slowest.partition_point(|other| other.run_ns >= slow.run_ns);
        if place < SLOWEST {
            self.slowest.insert(place, slow);
            self.slowest.truncate(SLOWEST);
        }
    }

    pub(super) fn timings(&self, objects: &Objects) -> Option<Timings> {
        let slowest = self.slowest.iter().map(|slow| SlowTask {
            id: slow.id,
            worker: slow.who.station,
            generation: slow.who.generation,
            number: slow.number,
            function: slow.code.name(objects),
            wait: Duration::from_nanos(slow.wait_ns),
            run: Duration::from_nanos(slow.run_ns),
        });
        self.has_timings.then(|| Timings {
            wait: self.wait.clone(),
            run: self.run.clone(),
            slowest: slowest.collect(),
        })
    }

    /// How long tasks have run, up to now if one still does.
    pub(super) fn busy(&self, lane: Option<&Lane<JobRef>>) -> Duration {
        let now_ns = clock::now_ns();
        let running = lane.and_then(|lane| lane.running_until(now_ns));
        let job = lane.and_then(Lane::running).and_then(|running| running.token);
        let running = running.filter(|run| has_started(run, job));
        let running_ns = running.map_or(0, |run| now_ns.saturating_sub(run.started_ns));
        Duration::from_nanos(self.busy_ns.saturating_add(running_ns))
    }
}

impl Owned<'_> {
    /// A worker is over, by its death or the pool's end, and so is the request that it ran, of this index.
    pub(super) fn note_cut_short(
        &mut self,
        who: Who,
        lane: &Lane<JobRef>,
        outcome: impl FnOnce(u64) -> &'static str,
    ) {
        let Some(meter) = &mut self.meter else { return };
        let Some(run) = lane.running_until(clock::now_ns()) else { return };
        if let Some(job) = lane.running().and_then(|running| running.token)
            && has_started(&run, Some(job))
        {
            meter.note(who, job, run, outcome(run.index));
        }
    }
}

/// Whether the stamp is of this job, and not of one that used the slot before it.
fn has_started(run: &Run, job: Option<&JobRef>) -> bool {
    job.is_some_and(|job| run.started_ns >= job.submitted_ns())
}

fn outcome_of(status: Status) -> &'static str {
    match status {
        Status::Value | Status::SizedValue | Status::BatchDone => "done",
        Status::Panicked => "panicked",
        Status::BatchCut => "cut",
        Status::Skipped => "cancelled",
        Status::Encode | Status::TooLarge | Status::Decode | Status::UnknownTask | Status::Memory => "failed",
    }
}

/// What a task that ended with this error is called.
pub(super) fn outcome_of_error(error: &TaskError) -> &'static str {
    match error {
        TaskError::Panicked(_) => "panicked",
        TaskError::WorkerLost(_) => "lost",
        TaskError::TimedOut { .. } => "timed out",
        TaskError::Cancelled => "cancelled",
        TaskError::Terminated | TaskError::Closed => "terminated",
        _ => "failed",
    }
}
