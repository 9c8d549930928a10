//! [`current_task`]: where code runs that may be part of a task.

use std::cell::Cell;
use std::fmt;
use std::sync::OnceLock;

/// Which worker this is, and which task it runs. See [`current_task`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CurrentTask {
    /// The name of the worker's pool.
    pub pool: &'static str,
    /// The worker's id, `0 .. workers`.
    pub worker: usize,
    /// Which process of that worker it is, from 0.
    pub generation: u64,
    /// Which of that process's tasks runs, from 0; a message of a stream is one task. `None` in `init`, `state` and `on_exit`, between
    /// tasks, and in threads that a task has started.
    pub number: Option<u64>,
}

impl fmt::Display for CurrentTask {
    /// `forkring: worker 0 (generation 0, pid 4711), task 17`, with the pool's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, worker, generation, number } = self;
        let pid = std::process::id();
        write!(f, "{pool}: worker {worker} (generation {generation}, pid {pid})")?;
        number.map_or(Ok(()), |number| write!(f, ", task {number}"))
    }
}

/// What the code that calls this is part of: `None` unless it runs in a worker. For panic hooks, loggers and the like, which
/// are not handed a [`Worker`](crate::Worker).
///
/// A thread that a task has started gets its worker, without the task's number. Where workers are threads
/// ([`Builder::in_process`](crate::Builder::in_process)) it gets `None`: nothing tells it from the program's other threads.
///
/// ```
/// let pool = forkring::Pool::builder().workers(1).name("till").build()?;
/// assert_eq!(forkring::current_task(), None);
/// let line = pool.submit(|()| forkring::current_task().map(|task| format!("{task}: hello")), &());
/// let line = line.wait()?.unwrap();
/// assert!(line.starts_with("till: worker 0 (generation 0, pid ") && line.ends_with("), task 0: hello"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn current_task() -> Option<CurrentTask> {
    let thread = THREAD.try_with(Cell::get).ok().flatten();
    let (pool, worker, generation) =
        thread.or_else(|| WORKERS.iter().rev().find_map(OnceLock::get).copied())?;
    let number = TASK.try_with(Cell::get).ok().flatten().and_then(Cell::get);
    Some(CurrentTask { pool, worker, generation, number })
}

/// Name of the pool, id and generation.
type Place = (&'static str, usize, u64);

/// The workers that this process is: one more where a worker's task has built a pool of its own. No lock: it may be forked
/// at any time.
static WORKERS: [OnceLock<Place>; 4] = [const { OnceLock::new() }; 4];

thread_local! {
    /// The worker that this thread is, where workers are threads.
    static THREAD: Cell<Option<Place>> = const { Cell::new(None) };
    /// Where the thread that runs tasks notes which one.
    static TASK: Cell<Option<&'static Cell<Option<u64>>>> = const { Cell::new(None) };
}

/// From here on this process is a worker, and `task` tells what this thread runs.
pub(crate) fn note_worker(
    pool: &'static str,
    worker: usize,
    generation: u64,
    task: &'static Cell<Option<u64>>,
) {
    let _ = WORKERS.iter().find(|known| known.set((pool, worker, generation)).is_ok());
    // The thread that forked may have been a worker of another pool.
    THREAD.set(None);
    TASK.set(Some(task));
}

/// From here on this thread is that worker, and `task` tells what it runs; or it is none.
pub(crate) fn note_thread(place: Option<Place>, task: Option<&'static Cell<Option<u64>>>) {
    THREAD.set(place);
    TASK.set(task);
}
