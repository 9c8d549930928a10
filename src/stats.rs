//! [`Stats`]: how many tasks a pool has, and what became of those that it had.

use std::fmt;
use std::time::Duration;

use crate::timings::{Short, Timings};

/// What [`Pool::stats`](crate::Pool::stats) tells: where the pool's tasks are at the moment, and how those have ended that
/// it had.
///
/// Each task is in one of the counters, so `submitted` is `queued + running + done + failed + cancelled + lost` whenever
/// one looks, and never goes back.
///
/// A message of a stream counts as one task, whatever its granularity. It is `done` if a worker came to its end, however its
/// items ended; if not, it counts as the item that was running, and what was left of it is another message.
///
/// What was refused is no task of the pool's and is not counted: what was submitted to a pool that takes nothing more, or could
/// not be encoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// All tasks that the pool has, or had: the sum of those below.
    pub submitted: u64,
    /// Tasks that have not started.
    pub queued: u64,
    /// Tasks that have started, and whose outcomes have not come.
    pub running: u64,
    /// Tasks that have given a result. Whether it can be decoded is found by who takes it.
    pub done: u64,
    /// Tasks that have panicked, took too long, or could not be run.
    pub failed: u64,
    /// Of those that have failed: tasks that took too long.
    pub timed_out: u64,
    /// Tasks that nobody wanted any more: cancelled, killed, or not ended when the pool was.
    pub cancelled: u64,
    /// Tasks that ended with [`TaskError::WorkerLost`](crate::TaskError::WorkerLost).
    pub lost: u64,
    /// Each worker's share, in the order of their ids. A task counts where it is, or where it ended; tasks that move from one
    /// worker to another while one looks are in none's queue, or in two.
    pub workers: Vec<WorkerStats>,
    /// How long tasks have waited and run, if [`Builder::timings`](crate::Builder::timings) asked for it.
    pub timings: Option<Timings>,
}

/// A worker's share of [`Stats`]. It stays what it was when the worker's process is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// The worker's id, `0 .. workers`.
    pub id: usize,
    /// The generation of its process, or of the last one that it had.
    pub generation: u64,
    /// Its process, if it has one. May belong to another process by the time it is used.
    pub pid: Option<u32>,
    /// What it is at.
    pub state: WorkerState,
    /// How many processes have been started in place of one that had ended, for whatever reason.
    pub restarts: u64,
    /// Tasks that wait for this worker. Others may take them.
    pub queued: u64,
    /// The task that it has started. May be more than one for a moment, when results have just come.
    pub running: u64,
    /// As [`Stats::done`].
    pub done: u64,
    /// As [`Stats::failed`].
    pub failed: u64,
    /// As [`Stats::timed_out`].
    pub timed_out: u64,
    /// As [`Stats::cancelled`].
    pub cancelled: u64,
    /// As [`Stats::lost`].
    pub lost: u64,
    /// Bytes of inputs that were sent to it, archived. Those of up to 32 bytes travel beside their request and do not count.
    pub bytes_in: u64,
    /// Bytes of results that have come from it, archived. Those of up to 24 bytes of single tasks do not count.
    pub bytes_out: u64,
    /// How long its processes have taken to start, `init` and `state` included.
    pub init_time: Duration,
    /// How long its processes have been ready for tasks, up to now. What is left of the pool's life besides this and
    /// `init_time` is the time between the end of a process and the start of the next one.
    pub ready_time: Duration,
    /// How much of `ready_time` it has run tasks, up to now. `None` unless
    /// [`Builder::timings`](crate::Builder::timings) or [`Builder::record`](crate::Builder::record) asked for it.
    pub busy_time: Option<Duration>,
    /// The CPU time of its present process, all threads together: what it spends on looking for tasks is in there, what
    /// tasks sleep is not.
    pub cpu_time: Option<Duration>,
    /// Resident memory of its present process. What it shares with the program and the other workers counts in each. `None`
    /// also without `/proc`.
    pub resident_bytes: Option<u64>,
    /// How long its tasks have waited and run, if [`Builder::timings`](crate::Builder::timings) asked for it.
    pub timings: Option<Timings>,
}

impl WorkerStats {
    /// The part of `ready_time` in which it has run tasks, `0.0 ..= 1.0`; `None` if
    /// [`busy_time`](Self::busy_time) is.
    pub fn utilization(&self) -> Option<f64> {
        let ready = self.ready_time.as_secs_f64();
        self.busy_time.map(|busy| if ready > 0.0 { (busy.as_secs_f64() / ready).min(1.0) } else { 0.0 })
    }
}

/// What a worker is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkerState {
    /// It has no process: the last one has ended. Another one follows, unless the pool is at its end.
    Missing,
    /// Its process is being started, or runs `init`.
    Starting,
    /// It has nothing to do.
    Idle,
    /// It runs a task.
    Busy,
    /// It is to end, or has been killed: after a time-out, to be renewed, or because the pool closes.
    Leaving,
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Missing => "missing",
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Leaving => "leaving",
        })
    }
}

impl Stats {
    /// The sums.
    pub(crate) fn of(workers: Vec<WorkerStats>) -> Self {
        let sum = |of: fn(&WorkerStats) -> u64| workers.iter().map(of).sum::<u64>();
        let stats = Self {
            submitted: 0,
            queued: 0,
            running: sum(|w| w.running),
            done: sum(|w| w.done),
            failed: sum(|w| w.failed),
            timed_out: sum(|w| w.timed_out),
            cancelled: sum(|w| w.cancelled),
            lost: sum(|w| w.lost),
            workers: Vec::new(),
            timings: workers.iter().filter_map(|w| w.timings.as_ref()).fold(None, |sum, timings| {
                let mut sum: Timings = sum.unwrap_or_default();
                sum.add(timings);
                Some(sum)
            }),
        };
        let queued = sum(|w| w.queued);
        Self { workers, ..stats }.with_queued(queued)
    }

    pub(crate) fn with_queued(self, queued: u64) -> Self {
        let submitted = queued + self.running + self.done + self.failed + self.cancelled + self.lost;
        Self { submitted, queued, ..self }
    }
}

impl fmt::Display for Stats {
    /// A table: a line for each worker, and one for the pool; two more if tasks are timed.
    ///
    /// What has timed out is part of what has failed. `memory` is resident, `cpu` what the present process has used, `in` and
    /// `out` are bytes of inputs and results: see [`WorkerStats`]. Memory and CPU time have no sum: processes share
    /// pages, and threads ([`Builder::in_process`](crate::Builder::in_process)) each show their program's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6} {:>8} {:>8} {:>8}", "worker", "pid", "state", "restarts")?;
        let counts = ["queued", "running", "done", "failed", "timed out", "cancelled", "lost"];
        writeln!(f, "{}", Row(counts, ["memory", "cpu", "in", "out"].map(str::to_owned)))?;
        for w in &self.workers {
            let pid = w.pid.map_or_else(none, |pid| pid.to_string());
            write!(f, "{:>6} {pid:>8} {:>8} {:>8}", w.id, w.state, w.restarts)?;
            let counts = [w.queued, w.running, w.done, w.failed, w.timed_out, w.cancelled, w.lost];
            let cpu = w.cpu_time.map_or_else(none, |time| Short(time).to_string());
            let memory = w.resident_bytes.map_or_else(none, size);
            writeln!(f, "{}", Row(counts, [memory, cpu, size(w.bytes_in), size(w.bytes_out)]))?;
        }
        let sum = |of: fn(&WorkerStats) -> u64| self.workers.iter().map(of).sum::<u64>();
        write!(f, "{:>6} {:>8} {:>8} {:>8}", "all", "", "", sum(|w| w.restarts))?;
        let counts =
            [self.queued, self.running, self.done, self.failed, self.timed_out, self.cancelled, self.lost];
        let bytes = [size(sum(|w| w.bytes_in)), size(sum(|w| w.bytes_out))];
        let [bytes_in, bytes_out] = bytes;
        write!(f, "{}", Row(counts, [String::new(), String::new(), bytes_in, bytes_out]))?;
        match &self.timings {
            Some(Timings { wait, run, .. }) => write!(f, "\nwaited {wait}\nran    {run}"),
            None => Ok(()),
        }
    }
}

/// The part of a line that counts tasks, and what they took.
struct Row<T>([T; 7], [String; 4]);

impl<T: fmt::Display> fmt::Display for Row<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|cell| write!(f, " {cell:>9}"))?;
        self.1.iter().try_for_each(|cell| write!(f, " {cell:>9}"))
    }
}

/// What is not known.
fn none() -> String {
    "-".to_owned()
}

/// Bytes, in the unit that shows them in a few digits.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be rounded to 1024 is one of the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_worker_and_one_for_all() {
        let worker = |id, pid, state, done| WorkerStats {
            id,
            generation: 1,
            pid,
            state,
            restarts: 1,
            queued: 2,
            running: 1,
            done,
            failed: 1,
            timed_out: 1,
            cancelled: 0,
            lost: 3,
            bytes_in: 1000,
            bytes_out: 3 << 19,
            init_time: Duration::ZERO,
            ready_time: Duration::from_secs(8),
            busy_time: Some(Duration::from_secs(2)),
            cpu_time: pid.map(|_| Duration::from_micros(1_234_567)),
            resident_bytes: pid.map(|_| 5 << 20),
            timings: None,
        };
        let workers =
            vec![worker(0, Some(4711), WorkerState::Busy, 10), worker(1, None, WorkerState::Missing, 5)];
        let stats = Stats::of(workers);
        assert_eq!((stats.submitted, stats.queued, stats.done, stats.timed_out), (29, 4, 15, 2));
        assert_eq!(stats.workers[0].utilization(), Some(0.25));
        let expected = "
worker      pid    state restarts    queued   running      done    failed timed out cancelled      lost    memory       cpu        in       out
     0     4711     busy        1         2         1        10         1         1         0         3   5.0 MiB     1.23s    1000 B   1.5 MiB
     1        -  missing        1         2         1         5         1         1         0         3         -         -    1000 B   1.5 MiB
   all                          2         4         2        15         2         2         0         6                       2.0 KiB   3.0 MiB";
        assert_eq!(format!("\n{stats}"), expected);
    }

    #[test]
    fn sizes_have_few_digits() {
        let texts = [0, 1023, 1024, 1536, (1 << 20) - 1, 1 << 20, 5 << 30, 7 << 40, u64::MAX].map(size);
        let expected = [
            "0 B",
            "1023 B",
            "1.0 KiB",
            "1.5 KiB",
            "1.0 MiB",
            "1.0 MiB",
            "5.0 GiB",
            "7.0 TiB",
            "16777216.0 TiB",
        ];
        assert_eq!(texts, expected);
    }
}
