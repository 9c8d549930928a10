//! [`Pool`]: the handle through which tasks are submitted, and what ends a pool.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::builder::{Builder, NoService};
use crate::caller::Caller;
use crate::context::{self, Named, Worker};
use crate::error::{Error, TaskError};
use crate::life::core::{Core, Phase, UntilEnded};
use crate::life::driver;
use crate::life::gate::Pass;
use crate::life::job::{Job, JobRef};
use crate::life::terms::Terms;
use crate::memory::codec::{self, ElementsRef, EncodeError, Encoded, INLINE_MAX, Input, Payload, View};
use crate::protocol::code::CodeId;
use crate::protocol::lane::{Parcel, SmallRequest};
use crate::stats::Stats;
use crate::stream::Granularity;
use crate::submitter::Submitter;
use crate::task::Task;
use crate::task_fn::TaskFn;

/// How long the end of a pool may take before a thread that drops or terminates it stops waiting for it. The pool's
/// own thread goes on.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// A pool of worker processes, or rather a handle of one: clone it freely, use it from any thread.
///
/// `E` is the type of the environment, `S` the service's, `W` that of the workers' state; all have defaults.
///
/// Dropping the last handle terminates the pool: tasks that have not ended end with [`TaskError::Terminated`].
/// [`close`](Self::close) lets them finish first. A handle that a worker or a fork of the program inherits is inert
/// there: its tasks end with [`TaskError::NotInThisProcess`].
///
/// ```
/// use forkring::Pool;
///
/// let pool = Pool::new(2)?;
/// let squares: Vec<_> = (0..4_u64).map(|n| pool.submit(|n: u64| n * n, &n)).collect();
/// let sum: u64 = squares.into_iter().map(|task| task.wait().unwrap()).sum();
/// assert_eq!(sum, 14);
/// pool.close().wait();
/// # Ok::<(), forkring::Error>(())
/// ```
pub struct Pool<E = (), S = NoService, W = ()> {
    handle: Handle,
    granularity: Granularity,
    _types: Types<E, S, W>,
}

/// A pool holds values of none of its types, so it is `Send` and `Sync` whatever they are.
pub(crate) type Types<E, S, W> = PhantomData<fn() -> (E, S, W)>;

impl<E, S, W> Clone for Pool<E, S, W> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), granularity: self.granularity, _types: PhantomData }
    }
}

impl<E, S, W> fmt::Debug for Pool<E, S, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("name", &self.handle.core.name).finish_non_exhaustive()
    }
}

/// A counted reference to a pool: when the last one goes, the pool is terminated.
#[derive(Debug)]
pub(crate) struct Handle {
    core: Arc<Core>,
}

impl Handle {
    /// The first one: the core starts with a count of one.
    pub(crate) fn first(core: Arc<Core>) -> Self {
        Self { core }
    }

    #[inline]
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        self.core.add_handle();
        Self { core: self.core.clone() }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.core.is_here() && self.core.drop_handle() {
            if self.core.phase() < Phase::Ended {
                end(&self.core);
            }
            // A stream may have found one after the pool had ended.
            self.core.await_crashers();
        }
    }
}

/// Terminates a pool and waits, but not for long, until nothing of it is left.
fn end(core: &Core) {
    core.end(TaskError::Terminated);
    if !driver::is_this_thread() {
        core.wait_for(Phase::Ended, Some(END_PATIENCE));
    }
}

impl Pool {
    /// A pool of `workers` processes with the defaults of [`Builder`].
    ///
    /// # Errors
    ///
    /// Where the processes or their memory cannot be had, or `workers` is 0 or absurd.
    pub fn new(workers: usize) -> Result<Pool, Error> {
        Self::builder().workers(workers).build()
    }

    /// Everything that can be said about a pool before it is built.
    pub fn builder() -> Builder {
        Builder::new()
    }
}

impl<E, S, W> Pool<E, S, W> {
    pub(crate) fn from_handle(handle: Handle, granularity: Granularity) -> Self {
        Self { handle, granularity, _types: PhantomData }
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(crate) fn granularity(&self) -> Granularity {
        self.granularity
    }

    #[inline]
    fn core(&self) -> &Arc<Core> {
        &self.handle.core
    }

    /// Submits a task: `f` runs in a worker with a copy of `input`, and its result comes back through the [`Task`].
    ///
    /// `f` captures nothing: a worker has the code but not this process's present memory. Data goes into the argument
    /// or the pool's environment; [`Builder::bind`] takes a closure that captures.
    ///
    /// ```compile_fail,E0080
    /// let pool = forkring::Pool::new(1).unwrap();
    /// let factor = 3;
    /// let _ = pool.submit(move |n: i32| n * factor, &5).wait(); // captures `factor`
    /// ```
    ///
    /// Does not fail by itself: a closed pool, an input that cannot be encoded or is too large give a task that ends
    /// with that error. Never blocks, unless the pool has a [queue limit](Builder::queue_limit) and it is reached: then
    /// it waits until there is room or the pool is closed.
    ///
    /// # Panics
    ///
    /// If the input's own serializer panics; the pool is none the worse for it.
    #[inline]
    pub fn submit<I, R>(&self, f: impl Fn(I) -> R + TaskFn, input: &I) -> Task<R>
    where
        I: Payload,
        R: Payload,
    {
        let named = context::plain_task(&f);
        self.start(named, input)
    }

    /// Submits a task that sees its worker and reads its input in place, without deserializing it.
    ///
    /// ```
    /// use forkring::{Pool, View, Worker};
    ///
    /// let pool = Pool::new(1)?;
    /// let words = pool.submit_with(|_: &Worker, text: &View<str>| text.split(' ').count(), "to be or not");
    /// assert_eq!(words.wait()?, 4);
    /// let sum = pool.submit_with(|_: &Worker, v: &View<[u32]>| v.iter().map(|n| n.to_native()).sum::<u32>(), &[1_u32, 2][..]);
    /// assert_eq!(sum.wait()?, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// What the view borrows cannot leave the task:
    ///
    /// ```compile_fail,E0521
    /// use forkring::{Pool, View, Worker};
    /// # let pool = Pool::new(1).unwrap();
    /// static KEPT: std::sync::Mutex<Option<&'static str>> = std::sync::Mutex::new(None);
    /// let _ = pool.submit_with(|_: &Worker, text: &View<str>| *KEPT.lock().unwrap() = Some(text), "x");
    /// ```
    // The view's lifetime is what keeps the second example from compiling (E0521).
    #[inline]
    pub fn submit_with<I, R>(
        &self,
        f: impl Fn(&Worker<E, S, W>, &View<I>) -> R + TaskFn,
        input: &I,
    ) -> Task<R>
    where
        I: Input + ?Sized,
        R: Payload,
    {
        let named = context::context_task::<_, E, S, W, I, R>(&f);
        self.start(named, input)
    }

    #[inline]
    pub(crate) fn start<I: Input + ?Sized, R>(&self, named: Named, input: &I) -> Task<R> {
        start(self.core(), named, input, None)
    }

    /// Terms for some of the tasks: time limits, retries, what dropping a handle means. See [`Submitter`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use forkring::Pool;
    ///
    /// let pool = Pool::new(1)?;
    /// let impatient = pool.options().timeout(Duration::from_millis(50)).kill_on_drop();
    /// let endless = impatient.submit(|_: ()| loop { std::hint::spin_loop() }, &());
    /// assert!(endless.wait().map(|()| ()).unwrap_err().is_timed_out());
    /// assert_eq!(impatient.submit(|n: u32| n + 1, &1).wait()?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn options(&self) -> Submitter<E, S, W> {
        Submitter::new(self.clone(), self.core().policy.terms)
    }

    /// Short for [`options`](Self::options)`().`[`timeout`](Submitter::timeout)`(limit)`.
    pub fn with_timeout(&self, limit: Duration) -> Submitter<E, S, W> {
        self.options().timeout(limit)
    }

    /// Has every worker replaced by a fresh process, each once it has finished the task that it runs. Returns at once. Tasks
    /// that have not started run in the replacements.
    pub fn recycle_workers(&self) {
        if self.core().is_here() {
            self.core().renew_workers();
        }
    }

    /// Submits a task that nobody waits for. A failure goes to the log hook. Blocks as [`submit`](Self::submit) does.
    pub fn spawn<I, R>(&self, f: impl Fn(I) -> R + TaskFn, input: &I)
    where
        I: Payload,
        R: Payload,
    {
        self.detach(self.submit(f, input));
    }

    /// As [`spawn`](Self::spawn), with the worker and the input in place.
    pub fn spawn_with<I, R>(&self, f: impl Fn(&Worker<E, S, W>, &View<I>) -> R + TaskFn, input: &I)
    where
        I: Input + ?Sized,
        R: Payload,
    {
        self.detach(self.submit_with(f, input));
    }

    pub(crate) fn detach<R>(&self, task: Task<R>) {
        if !self.core().is_here() {
            crate::life::events::detached(self.core(), &TaskError::NotInThisProcess);
        }
        task.detach();
    }

    /// Runs `f` once in every worker, and waits for all of them. The results are in the order of the workers' ids.
    ///
    /// ```
    /// use forkring::{Pool, Worker};
    ///
    /// let pool = Pool::new(3)?;
    /// let ids: Vec<usize> = pool.broadcast(|w: &Worker| w.id()).into_iter().map(Result::unwrap).collect();
    /// assert_eq!(ids, [0, 1, 2]);
    /// # Ok::<(), forkring::Error>(())
    /// ```
    pub fn broadcast<R: Payload>(
        &self,
        f: impl Fn(&Worker<E, S, W>) -> R + TaskFn,
    ) -> Vec<Result<R, TaskError>> {
        let named = context::broadcast_task::<_, E, S, W, R>(&f);
        self.to_all(named, || Encoded::inline(&[]))
    }

    /// As [`broadcast`](Self::broadcast), with an input, which each worker reads in place.
    ///
    /// ```
    /// use forkring::{Pool, View, Worker};
    ///
    /// let pool = Pool::new(2)?;
    /// let sizes = pool.broadcast_with(|w: &Worker, words: &View<[u32]>| (w.id(), words.len()), &[5_u32, 6, 7][..]);
    /// let sizes: Vec<_> = sizes.into_iter().map(Result::unwrap).collect();
    /// assert_eq!(sizes, [(0, 3), (1, 3)]);
    /// # Ok::<(), forkring::Error>(())
    /// ```
    ///
    /// An input that cannot be encoded or is too large gives that error once for each worker.
    ///
    /// # Panics
    ///
    /// If the input's own serializer panics.
    pub fn broadcast_with<I, R>(
        &self,
        f: impl Fn(&Worker<E, S, W>, &View<I>) -> R + TaskFn,
        input: &I,
    ) -> Vec<Result<R, TaskError>>
    where
        I: Input + ?Sized,
        R: Payload,
    {
        let named = context::context_task::<_, E, S, W, I, R>(&f);
        let core = self.core();
        if !core.is_here() {
            return core.stations.iter().map(|_| Err(TaskError::NotInThisProcess)).collect();
        }
        // Once, since the serializer may be slow, or give something else each time.
        match codec::encode(input, core.policy.max_payload) {
            Ok(input) => self.to_all(named, || input.copy()),
            Err(error) => {
                let error = encode_error(error);
                core.stations.iter().map(|_| Err(error.clone())).collect()
            }
        }
    }

    /// Runs this once in every worker.
    fn to_all<R: Payload>(&self, named: Named, input: impl Fn() -> Encoded) -> Vec<Result<R, TaskError>> {
        let core = self.core();
        let stations = 0..core.stations.len();
        let tasks: Vec<Task<R>> = stations.map(|station| start_at(core, named, station, input())).collect();
        tasks.into_iter().map(Task::wait).collect()
    }

    /// Takes no more tasks and lets those that were submitted finish; then the workers leave. Awaiting or
    /// [`wait`](Close::wait)ing for the result is optional. Idempotent.
    ///
    /// The result counts as a handle of the pool.
    pub fn close(&self) -> Close {
        if self.core().is_here() {
            self.core().close();
        }
        Close::new(self.handle.clone())
    }

    /// As [`close`](Self::close), but not for longer than `limit`: if the pool has not closed by then, it is
    /// [terminated](Self::terminate), and tasks that have not ended end with [`TaskError::Terminated`]. Idempotent: the
    /// earliest of several limits counts, and dropping the result takes nothing back.
    ///
    /// The pool measures the time, so that the result can be awaited under any executor. After the limit, killing and
    /// reaping the workers takes another moment.
    ///
    /// ```
    /// use std::time::Duration;
    /// use forkring::Pool;
    ///
    /// let pool = Pool::new(1)?;
    /// let quick = pool.submit(|n: u32| n + 1, &1);
    /// let outcome = pool.close_within(Duration::from_secs(60)).wait();
    /// assert!(!outcome.forced && outcome.unfinished == 0);
    /// assert_eq!(quick.wait()?, 2);
    ///
    /// let pool = Pool::new(1)?;
    /// let endless = pool.submit(|_: ()| loop { std::thread::park() }, &());
    /// let outcome = pool.close_within(Duration::from_millis(10)).wait();
    /// assert!(outcome.forced && outcome.unfinished == 1);
    /// assert!(endless.wait().map(|()| ()).unwrap_err().is_terminated());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close_within(&self, limit: Duration) -> CloseWithin {
        if self.core().is_here() {
            self.core().close_within(limit);
        }
        CloseWithin { close: Close::new(self.handle.clone()) }
    }

    /// Kills the workers at once. Tasks that have not ended end with [`TaskError::Terminated`]. Returns when nothing of
    /// the pool is left, or after a few seconds. Idempotent.
    pub fn terminate(&self) {
        if self.core().is_here() && self.core().phase() < Phase::Ended {
            end(self.core());
        }
    }

    /// A future that ends when the pool has closed, for whatever reason: no process, descriptor or memory of it is left.
    pub fn closed(&self) -> Closed {
        Closed { end: UntilEnded::new(self.core().clone()) }
    }

    /// How many tasks wait, run and have ended, and how; for each worker too. Also of a pool that has closed. In another
    /// process than the pool's all of it is empty.
    ///
    /// ```
    /// use forkring::Pool;
    ///
    /// let pool = Pool::new(2)?;
    /// let good = pool.submit(|n: u32| n + 1, &1);
    /// let bad = pool.submit(|_: u32| -> u32 { std::process::abort() }, &1);
    /// assert!(good.wait().is_ok() && bad.wait().is_err());
    ///
    /// let stats = pool.stats();
    /// assert_eq!((stats.submitted, stats.done, stats.lost), (2, 1, 1));
    /// assert_eq!(stats.workers.iter().map(|w| w.done).sum::<u64>(), 1);
    /// println!("{stats}"); // a table
    /// # Ok::<(), forkring::Error>(())
    /// ```
    ///
    /// Costs a task nothing: most of it is derived from what the pool knows anyway. The workers are looked at one after the
    /// other, each for a moment in which nobody else submits to it or takes from it; so their figures are of different
    /// moments, a few microseconds apart. What moves between them meanwhile is counted once all the same, see [`Stats`].
    pub fn stats(&self) -> Stats {
        if self.core().is_here() { self.core().stats() } else { Stats::default() }
    }

    /// How many workers the pool has.
    pub fn workers(&self) -> usize {
        self.core().stations.len()
    }

    /// The process ids of the workers that there are at the moment, those that are starting too, in the order of their ids. For looking at them from
    /// outside; a pid may belong to another process by the time it is used.
    pub fn worker_pids(&self) -> Vec<u32> {
        let core = self.core();
        if !core.is_here() {
            return Vec::new();
        }
        let pid = |station: &crate::life::station::Station| station.own(core).process.as_ref().map(|p| p.pid);
        core.stations.iter().filter_map(pid).collect()
    }
}

/// What every submission begins with: its terms count from this moment, unless it has no future.
#[inline]
pub(crate) fn begin(core: &Core, terms: Option<Terms>) -> Result<Option<Terms>, TaskError> {
    if !core.is_here() {
        return Err(TaskError::NotInThisProcess);
    }
    let terms = terms.map(Terms::starting_now);
    match terms.unwrap_or(core.policy.terms).expired() {
        Some(limit) => Err(TaskError::TimedOut { limit }),
        None => Ok(terms),
    }
}

/// Encodes an input and hands the task to a station. Without terms of its own it has those of the pool.
#[inline]
pub(crate) fn start<I: Input + ?Sized, R>(
    core: &Arc<Core>,
    named: Named,
    input: &I,
    terms: Option<Terms>,
) -> Task<R> {
    if let Some((len, [low, high])) = codec::plain_words(input)
        && terms.is_none()
        && core.takes_small()
        && core.is_here()
        && Caller::current().is_none()
        && usize::from(len) <= core.policy.max_payload
    {
        let code = CodeId::of(named.code, named.types, &core.objects);
        let (held, job) = Job::allocate(core);
        core.submit_small(held, &SmallRequest { code, words: [low, high], len: len.into() });
        return Task::submitted(job);
    }
    start_any(core, named, input, terms)
}

fn start_any<I: Input + ?Sized, R>(
    core: &Arc<Core>,
    named: Named,
    input: &I,
    terms: Option<Terms>,
) -> Task<R> {
    let terms = match begin(core, terms) {
        Ok(terms) => terms,
        Err(error) => return Task::failed(core, error),
    };
    if let Some(elements) = codec::elements(input).filter(|e| e.archive_bytes() > INLINE_MAX) {
        return start_elements(core, named, &elements, terms);
    }
    match codec::encode(input, core.policy.max_payload) {
        Ok(input) => match core.take_place(terms.and_then(|terms| terms.due)) {
            Ok(pass) => hand_over(core, named, input, pass, terms),
            Err(error) => no_place(core, error, terms),
        },
        Err(error) => Task::failed(core, encode_error(error)),
    }
}

fn no_place<R>(core: &Arc<Core>, error: TaskError, terms: Option<Terms>) -> Task<R> {
    let limit = terms.and_then(|terms| terms.expired());
    Task::failed(core, limit.map_or(error, |limit| TaskError::TimedOut { limit }))
}

/// As [`start`], of a row of numbers: straight into a worker's arena if a station is free and has room, else by way of the
/// heap, as everything that waits.
fn start_elements<R>(
    core: &Arc<Core>,
    named: Named,
    elements: &ElementsRef<'_>,
    terms: Option<Terms>,
) -> Task<R> {
    let (size, limit) = (elements.archive_bytes(), core.policy.max_payload);
    if size > limit {
        return Task::failed(core, encode_error(EncodeError::TooLarge { size, limit }));
    }
    match core.take_place(terms.and_then(|terms| terms.due)) {
        Ok(pass) => hand_over_by(core, named, pass, terms, |job, code| {
            if let Err((job, station)) = core.submit_elements(job, code, elements) {
                match elements.try_to_archive().map(Encoded::Heap) {
                    Some(input) => core.leave_at(station, job, Parcel { code, batch: None, input }),
                    None => core.end_at(station, job, encode_error(codec::no_memory(size))),
                }
            }
        }),
        Err(error) => no_place(core, error, terms),
    }
}

/// Hands a task that is accepted to a station.
#[inline]
pub(crate) fn hand_over<R>(
    core: &Arc<Core>,
    named: Named,
    input: Encoded,
    pass: Pass,
    terms: Option<Terms>,
) -> Task<R> {
    hand_over_by(core, named, pass, terms, |job, code| {
        core.submit(job, Parcel { code, batch: None, input });
    })
}

#[inline]
fn hand_over_by<R>(
    core: &Arc<Core>,
    named: Named,
    pass: Pass,
    terms: Option<Terms>,
    submit: impl FnOnce(JobRef, CodeId),
) -> Task<R> {
    if let Some(limit) = terms.and_then(|terms| terms.expired()) {
        // It waited for room for too long.
        core.give_back_place(pass);
        return Task::failed(core, TaskError::TimedOut { limit });
    }
    let code = CodeId::of(named.code, named.types, &core.objects);
    let (mut held, job) = Job::allocate(core);
    held.admit(pass);
    held.note_caller(Caller::current());
    match terms {
        None => {
            submit(held, code);
            Task::submitted(job)
        }
        Some(terms) => {
            let deadline = held.agree(terms);
            submit(held, code);
            if let Some(deadline) = deadline {
                core.set_deadline(deadline);
            }
            Task::submitted(job)
        }
    }
}

fn start_at<R>(core: &Arc<Core>, named: Named, station: usize, input: Encoded) -> Task<R> {
    if let Err(error) = begin(core, None) {
        return Task::failed(core, error);
    }
    let code = CodeId::of(named.code, named.types, &core.objects);
    let (mut held, job) = Job::allocate(core);
    held.note_caller(Caller::current());
    held.pin();
    core.submit_at(station, held, Parcel { code, batch: None, input });
    Task::submitted(job)
}

#[cold]
pub(crate) fn encode_error(error: EncodeError) -> TaskError {
    match error {
        EncodeError::TooLarge { size, limit } => TaskError::TooLarge { size, limit },
        EncodeError::Codec(error) => TaskError::Encode(error),
    }
}

/// A pool that is closing. See [`Pool::close`]. Dropping it does not take the closing back.
#[derive(Debug)]
pub struct Close {
    /// Before the handle, whose drop may wait for the end.
    end: UntilEnded,
    _handle: Handle,
}

impl Close {
    fn new(handle: Handle) -> Self {
        Self { end: UntilEnded::new(handle.core.clone()), _handle: handle }
    }

    /// Blocks until all tasks have ended and nothing of the pool is left.
    ///
    /// A handler of the pool's own service, whose caller is one of those tasks, would wait for itself: there this returns
    /// at once, and awaiting it is ready at once. So does this in a waker or the log hook that the pool calls on its own thread, since that
    /// thread does the closing.
    pub fn wait(self) {
        self.end.wait();
    }
}

impl Future for Close {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.end.poll(context.waker())
    }
}

/// A pool that is closing, but not for ever. See [`Pool::close_within`]. Dropping it does not take that back.
#[derive(Debug)]
pub struct CloseWithin {
    close: Close,
}

/// How a pool closed that was given a limit.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseOutcome {
    /// Whether the limit was reached and the workers had to be killed.
    pub forced: bool,
    /// How many tasks had not ended when the pool was ended by force, by [`Pool::terminate`] or by a failure. A message
    /// of a stream counts as one task, whatever its granularity.
    pub unfinished: usize,
}

impl CloseWithin {
    /// Blocks until nothing of the pool is left. In a handler of the pool's own service that takes until the limit; in wakers and the
    /// log hook no time, as [`Close::wait`] has it: then the outcome is what is known so far.
    pub fn wait(self) -> CloseOutcome {
        self.close.end.wait();
        CloseOutcome::of(self.close.end.core())
    }
}

impl Future for CloseWithin {
    type Output = CloseOutcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<CloseOutcome> {
        let end = &mut self.close.end;
        end.poll(context.waker()).map(|()| CloseOutcome::of(end.core()))
    }
}

impl CloseOutcome {
    /// Of a pool that has ended; of one of another process nothing is known.
    fn of(core: &Core) -> Self {
        if !core.is_here() {
            return Self { forced: false, unfinished: 0 };
        }
        let (forced, unfinished) = core.close_outcome();
        Self { forced, unfinished }
    }
}

/// A future that ends when the pool has closed. See [`Pool::closed`]. Not a handle: it keeps no pool alive.
#[must_use = "a future does nothing until it is polled"]
#[derive(Clone, Debug)]
pub struct Closed {
    end: UntilEnded,
}

impl Closed {
    /// Blocks until the pool has closed; in a handler of its own service until it begins to; not in wakers and the log hook, as
    /// [`Close::wait`] has it.
    pub fn wait(self) {
        self.end.wait();
    }
}

impl Future for Closed {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.end.poll(context.waker())
    }
}
