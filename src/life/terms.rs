//! What is asked of the pool for a task, beyond running it.

use std::time::{Duration, Instant};

/// For each task, or by default for all tasks of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    /// From its start.
    pub(crate) timeout: Option<Duration>,
    /// From its submission.
    pub(crate) deadline: Option<Duration>,
    /// When that is, once the task is being submitted.
    pub(crate) due: Option<Instant>,
    /// How many times it is started again after the loss of its worker.
    pub(crate) retries: u32,
    /// Whether dropping its handle kills it.
    pub(crate) kill_on_drop: bool,
}

impl Terms {
    /// For a task that is submitted at this moment.
    pub(crate) fn starting_now(mut self) -> Self {
        // Beyond the clock's range is never.
        self.due = self.deadline.and_then(|deadline| Instant::now().checked_add(deadline));
        self
    }

    /// The limit that leaves a task no time at all, if there is one.
    #[inline]
    pub(crate) fn expired(&self) -> Option<Duration> {
        if self.timeout.is_some_and(|limit| limit.is_zero()) {
            return self.timeout;
        }
        self.deadline.filter(|limit| limit.is_zero() || self.due.is_some_and(|due| due <= Instant::now()))
    }
}

/// What a pool does when a worker is lost: it died without having been told to.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnWorkerLoss {
    /// The task that it ran ends with [`TaskError::WorkerLost`](crate::TaskError::WorkerLost), everything else goes on, and
    /// the worker is replaced.
    #[default]
    FailTask,
    /// The pool fails: that task ends with `WorkerLost`, all others with
    /// [`TaskError::PoolFailed`](crate::TaskError::PoolFailed), which names the loss.
    FailAll,
    /// The program is aborted, after a message: the rule of OCaml's Nproc.
    Abort,
}

/// How a pool treats its workers, as its builder was told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) max_payload: usize,
    /// For tasks that were submitted without terms of their own.
    pub(crate) terms: Terms,
    /// A signal that comes so long before SIGKILL.
    pub(crate) kill_signal: Option<(i32, Duration)>,
    pub(crate) on_worker_loss: OnWorkerLoss,
}
