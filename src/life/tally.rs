//! What becomes of a pool's tasks, counted where it happens.
//!
//! A station's counters are plain fields of its owner's, and what a task does to them costs nothing on its usual way: a
//! result is counted by the lane, whose number of answered requests says how many there were ([`Census`]). Here is what
//! goes another way.
//!
//! * TALLY-1: what a station was given is what it holds, what ended there, and what it has handed on, less what it was
//!   handed: `held + ended + moved_out - moved_in`. Each owner leaves that sum as large as he found it, or larger.
//!
//! So the sum over all stations never goes back, though they are looked at one after the other and jobs move meanwhile. The
//! difference of `moved_out` and `moved_in` is the jobs that are on their way, or were looked at twice.

use std::time::Duration;

use super::core::{Core, Phase};
use super::job::Outcome;
use super::station::{Owned, Stage};
use crate::error::TaskError;
use crate::ground::sys::process::Pid;
use crate::ground::sys::{clock, usage};
use crate::protocol::lane::{Census, Lane};
use crate::protocol::wire::Status;
use crate::stats::{Stats, WorkerState, WorkerStats};

/// How often all stations are looked at until the numbers of one moment can be told from those of another.
const TRIES: u32 = 16;
/// And how long it takes until a job that is on its way has come to its station.
const PAUSE: Duration = Duration::from_micros(50);

/// A station's counters (STATION-1).
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Responses that the lanes of earlier processes have delivered.
    delivered: u64,
    /// Of all responses, those that are no results.
    odd: u64,
    failed: u64,
    /// Of those.
    timed_out: u64,
    cancelled: u64,
    lost: u64,
    pub(super) moved_out: u64,
    pub(super) moved_in: u64,
    /// Processes that were started: those that were asked for and could not be had are none.
    starts: u64,
    /// Bytes that lanes of earlier processes have carried.
    in_bytes: u64,
    out_bytes: u64,
    /// When a process was last asked for; when that was for the present one, and when that became ready, of [`clock::now_ns`].
    ordered_ns: u64,
    asked_ns: Option<u64>,
    ready_ns: Option<u64>,
    /// How long earlier ones took to become ready, and how long they were.
    init: Duration,
    ready: Duration,
}

impl Tally {
    /// A job ends without a response.
    #[cold]
    pub(super) fn note(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Failed(error) => self.note_error(error),
            // What is left of a message is another one.
            Outcome::BatchLost(lost) if let Some(error) = &lost.1 => self.note_error(error),
            Outcome::BatchDone(_) | Outcome::BatchLost(_) | Outcome::Reply(_) | Outcome::Small(_) => {
                self.delivered += 1
            }
        }
    }

    fn note_error(&mut self, error: &TaskError) {
        match error {
            TaskError::WorkerLost(_) => self.lost += 1,
            TaskError::Cancelled | TaskError::Terminated | TaskError::Closed => self.cancelled += 1,
            TaskError::TimedOut { .. } => {
                self.failed += 1;
                self.timed_out += 1;
            }
            _ => self.failed += 1,
        }
    }

    /// A response has come.
    #[inline]
    pub(super) fn note_reply(&mut self, status: Status) {
        if !matches!(status, Status::Value | Status::BatchDone) {
            self.odd += 1;
            *if status == Status::Skipped { &mut self.cancelled } else { &mut self.failed } += 1;
        }
    }

    /// A lane comes to its end.
    pub(super) fn note_lane(&mut self, census: &Census) {
        self.delivered += census.delivered;
        self.in_bytes += census.in_bytes;
        self.out_bytes += census.out_bytes;
    }

    /// A process was asked for.
    pub(super) fn note_order(&mut self, asked_ns: u64) {
        self.ordered_ns = asked_ns;
    }

    /// It was to be had.
    pub(super) fn note_start(&mut self) {
        self.starts += 1;
        self.asked_ns = Some(self.ordered_ns);
        self.ready_ns = None;
    }

    /// It has become ready. When it was asked for, and when that was.
    pub(super) fn note_ready(&mut self) -> (u64, u64) {
        let now_ns = clock::now_ns();
        self.ready_ns = Some(now_ns);
        (self.asked_ns.unwrap_or(now_ns), now_ns)
    }

    /// It has ended.
    pub(super) fn note_end(&mut self) {
        (self.init, self.ready) = self.times();
        (self.asked_ns, self.ready_ns) = (None, None);
    }

    /// How long the station's processes have taken to become ready, and how long they have been, up to now.
    fn times(&self) -> (Duration, Duration) {
        let Some(asked_ns) = self.asked_ns else { return (self.init, self.ready) };
        let now_ns = clock::now_ns();
        let ready_ns = self.ready_ns.unwrap_or(now_ns);
        let between = |from: u64, to: u64| Duration::from_nanos(to.saturating_sub(from));
        (self.init + between(asked_ns, ready_ns), self.ready + between(ready_ns, now_ns))
    }
}

impl Owned<'_> {
    /// The station's figures, and how many jobs more it has handed on than it was handed.
    fn figures(&mut self) -> (WorkerStats, i64) {
        // What is answered is not running any more.
        self.poll();
        let census = self.lane.as_ref().map(Lane::census);
        let census = census.unwrap_or_default();
        let tally = &self.tally;
        let state = match self.stage {
            _ if self.core.phase() == Phase::Ended => WorkerState::Missing,
            Stage::Vacant => WorkerState::Missing,
            Stage::Starting => WorkerState::Starting,
            Stage::Ready if census.running > 0 => WorkerState::Busy,
            Stage::Ready => WorkerState::Idle,
            Stage::Leaving | Stage::Ending => WorkerState::Leaving,
        };
        let restarts = tally.starts.saturating_sub(1);
        let (init_time, ready_time) = tally.times();
        let stats = WorkerStats {
            id: self.station.id,
            generation: restarts,
            pid: self.process.as_ref().map(|process| process.pid),
            state,
            restarts,
            queued: self.queue.len() as u64 + census.unclaimed,
            running: census.running,
            done: (tally.delivered + census.delivered).saturating_sub(tally.odd),
            failed: tally.failed,
            timed_out: tally.timed_out,
            cancelled: tally.cancelled,
            lost: tally.lost,
            bytes_in: tally.in_bytes + census.in_bytes,
            bytes_out: tally.out_bytes + census.out_bytes,
            init_time,
            ready_time,
            busy_time: self.meter.as_ref().map(|meter| meter.busy(self.lane.as_ref())),
            // From the kernel, when the station is let go.
            cpu_time: None,
            resident_bytes: None,
            timings: self.meter.as_ref().and_then(|meter| meter.timings(&self.core.objects)),
        };
        (stats, tally.moved_out.wrapping_sub(tally.moved_in) as i64)
    }
}

impl Core {
    /// The figures of all stations, and what the kernel knows of their processes.
    pub(crate) fn stats(&self) -> Stats {
        let mut stats = self.figures();
        for worker in &mut stats.workers {
            let Some(pid) = worker.pid.and_then(|pid| Pid::try_from(pid).ok()) else { continue };
            worker.cpu_time = usage::cpu_time(pid).ok();
            worker.resident_bytes = usage::resident_bytes(pid).ok();
        }
        stats
    }

    /// How many tasks wait, and how many run.
    pub(crate) fn depth(&self) -> (u64, u64) {
        self.stations.iter().fold((0, 0), |(queued, running), station| {
            let mut owned = station.own(self);
            owned.only_look();
            let census = owned.lane.as_ref().map(Lane::census).unwrap_or_default();
            (queued + owned.queue.len() as u64 + census.unclaimed, running + census.running)
        })
    }

    fn figures(&self) -> Stats {
        for _ in 1..TRIES {
            if let (stats, 0) = self.look_at_all() {
                return stats;
            }
            std::thread::sleep(PAUSE);
        }
        self.look_at_all().0
    }

    /// Also how many jobs were counted twice, or had come to the pool after their station had been looked at: none, unless
    /// jobs move.
    fn look_at_all(&self) -> (Stats, u64) {
        let mut on_the_way = 0_i64;
        let figures = self.stations.iter().map(|station| {
            let mut owned = station.own(self);
            owned.only_look();
            let (stats, moved) = owned.figures();
            on_the_way += moved;
            stats
        });
        let stats = Stats::of(figures.collect());
        // One that was seen where it had been, and then where it had got to, is in no queue any more.
        let queued = i64::try_from(stats.queued).unwrap_or(i64::MAX).saturating_add(on_the_way);
        (stats.with_queued(queued.try_into().unwrap_or(0)), queued.min(0).unsigned_abs())
    }
}
