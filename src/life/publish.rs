//! Feature `metrics`: a pool's figures through the facade of the `metrics` crate, by the thread of the
//! [`journal`](super::journal). [`Builder::metrics`](crate::Builder::metrics) lists the names.

use std::time::{Duration, Instant};

use metrics::{
    SharedString, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use super::journal::Entry;
use crate::stats::{Stats, WorkerState};

/// How often counters and gauges are looked at. The distributions have each task.
const PAUSE: Duration = Duration::from_secs(1);

const STATES: [WorkerState; 5] =
    [WorkerState::Missing, WorkerState::Starting, WorkerState::Idle, WorkerState::Busy, WorkerState::Leaving];

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Metrics {
    pool: SharedString,
    last: Option<Instant>,
}

impl Metrics {
    pub(crate) fn new(pool: &str) -> Self {
        Self { pool: pool.to_owned().into(), last: None }
    }

    /// Takes what has happened. `stats` is called when it is time for it, or if this is the `last` call before a while.
    pub(crate) fn publish(&mut self, entries: &[Entry], last: bool, stats: impl FnOnce() -> Stats) {
        let pool = || self.pool.clone();
        // Handles are asked for each time, and what they mean is said with each publication, as the program may install its recorder when it likes.
        let (wait, run) = (
            histogram!("forkring_task_wait_seconds", "pool" => pool()),
            histogram!("forkring_task_run_seconds", "pool" => pool()),
        );
        for entry in entries {
            if let Entry::Task(task) = entry {
                let seconds =
                    |from: u64, to: u64| Duration::from_nanos(to.saturating_sub(from)).as_secs_f64();
                wait.record(seconds(task.submitted_ns, task.run.started_ns));
                run.record(seconds(task.run.started_ns, task.run.ended_ns));
            }
        }
        if last || self.last.is_none_or(|last| last.elapsed() >= PAUSE) {
            self.last = Some(Instant::now());
            describe();
            self.figures(&stats());
        }
    }

    fn figures(&self, stats: &Stats) {
        let pool = || self.pool.clone();
        counter!("forkring_tasks_submitted_total", "pool" => pool()).absolute(stats.submitted);
        for (outcome, tasks) in [
            ("done", stats.done),
            ("failed", stats.failed),
            ("cancelled", stats.cancelled),
            ("lost", stats.lost),
        ] {
            counter!("forkring_tasks_total", "pool" => pool(), "outcome" => outcome).absolute(tasks);
        }
        counter!("forkring_tasks_timed_out_total", "pool" => pool()).absolute(stats.timed_out);
        gauge!("forkring_tasks_queued", "pool" => pool()).set(stats.queued as f64);
        gauge!("forkring_tasks_running", "pool" => pool()).set(stats.running as f64);
        for state in STATES {
            let workers = stats.workers.iter().filter(|w| w.state == state).count();
            gauge!("forkring_workers", "pool" => pool(), "state" => state.to_string()).set(workers as f64);
        }
        for w in &stats.workers {
            let labels = || [("pool", pool()), ("worker", w.id.to_string().into())];
            counter!("forkring_worker_restarts_total", &labels()).absolute(w.restarts);
            counter!("forkring_worker_bytes_in_total", &labels()).absolute(w.bytes_in);
            counter!("forkring_worker_bytes_out_total", &labels()).absolute(w.bytes_out);
            gauge!("forkring_worker_busy_seconds", &labels())
                .set(w.busy_time.unwrap_or_default().as_secs_f64());
            gauge!("forkring_worker_resident_bytes", &labels()).set(w.resident_bytes.unwrap_or(0) as f64);
        }
    }
}

fn describe() {
    describe_histogram!("forkring_task_wait_seconds", Unit::Seconds, "from a task's submission to its start");
    describe_histogram!("forkring_task_run_seconds", Unit::Seconds, "from a task's start to its end");
    describe_counter!("forkring_tasks_submitted_total", Unit::Count, "tasks that the pool has, or had");
    describe_counter!("forkring_tasks_total", Unit::Count, "tasks that have ended, by how they did");
    describe_counter!(
        "forkring_tasks_timed_out_total",
        Unit::Count,
        "of those that have failed: took too long"
    );
    describe_gauge!("forkring_tasks_queued", Unit::Count, "tasks that have not started");
    describe_gauge!("forkring_tasks_running", Unit::Count, "tasks that have started and not ended");
    describe_gauge!("forkring_workers", Unit::Count, "workers, by what they are at");
    describe_counter!("forkring_worker_restarts_total", Unit::Count, "processes started in place of another");
    describe_counter!(
        "forkring_worker_bytes_in_total",
        Unit::Bytes,
        "inputs that did not fit their requests"
    );
    describe_counter!(
        "forkring_worker_bytes_out_total",
        Unit::Bytes,
        "results that did not fit their responses"
    );
    describe_gauge!("forkring_worker_busy_seconds", Unit::Seconds, "how long the worker has run tasks");
    describe_gauge!("forkring_worker_resident_bytes", Unit::Bytes, "resident memory of the worker's process");
}
