//! [`Builder`]: everything that can be said about a pool before it is built.

use std::any::Any;
use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::bound::Bound;
use crate::context::{self, Worker, WorkerInfo};
use crate::error::{BoxError, Error, TaskError};
use crate::given::{Given, Inherited, Shared};
use crate::ground::spin::WaitPolicy;
use crate::launch::{self, Around, Plan};
use crate::life::crew::{Loan, Muster};
use crate::life::seed::BoundFn;
use crate::life::service::{Answer, BoxFuture, Handler, Spawn};
use crate::life::setup::Affinity;
use crate::life::terms::OnWorkerLoss;
use crate::limits;
use crate::memory::codec::{self, AlignedBytes, Payload, View};
use crate::pool::Pool;
use crate::protocol::wire::AnswerKind;
use crate::stream::{Flow, Granularity, StreamSummary};

/// The service type of a pool without a service.
#[derive(Debug)]
pub struct NoService(());

/// The service type of a pool whose workers can ask the master: requests of type `Q`, answers of type `A`.
pub struct Service<Q, A>(PhantomData<fn(Q) -> A>);

impl<Q, A> fmt::Debug for Service<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Service")
    }
}

/// What a pool is to be like. [`Pool::builder`] starts with the defaults.
///
/// ```
/// use std::collections::HashMap;
/// use forkring::{Pool, View, Worker};
///
/// let prices: HashMap<String, u32> = [("tea".to_owned(), 3)].into();
/// let pool = Pool::builder().workers(2).env(prices).name("till").build()?;
/// let price = pool.submit_with(|w: &Worker<HashMap<String, u32>>, item: &View<str>| w.env().get(item).copied(), "tea");
/// assert_eq!(price.wait()?, Some(3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// `M` says what it may be given: anything, or, after [`in_process`](Self::in_process), what threads may share. See
/// [`Given`].
#[must_use = "a builder does nothing until it is built"]
pub struct Builder<E = (), S = NoService, W = (), M = Inherited> {
    env: E,
    plan: Plan,
    granularity: Granularity,
    spawn: Option<Spawn>,
    /// A combination that cannot work, reported by `build`.
    misuse: Option<&'static str>,
    _types: Types<S, W, M>,
}

/// A builder holds values of none of these.
type Types<S, W, M> = PhantomData<fn() -> (S, W, M)>;

impl<E: fmt::Debug, S, W, M> fmt::Debug for Builder<E, S, W, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("env", &self.env).field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            env: (),
            plan: Plan::default(),
            granularity: Granularity::Auto,
            spawn: None,
            misuse: None,
            _types: PhantomData,
        }
    }
}

impl<E: 'static, S, W: 'static, M> Builder<E, S, W, M> {
    fn retyped<S2, W2, M2>(self) -> Builder<E, S2, W2, M2> {
        let Self { env, plan, granularity, spawn, misuse, _types } = self;
        Builder { env, plan, granularity, spawn, misuse, _types: PhantomData }
    }

    fn set(mut self, f: impl FnOnce(&mut Plan)) -> Self {
        f(&mut self.plan);
        self
    }

    /// How many workers. Default: the usable cores, by affinity and cgroup quota. 0 and more than 4096 are errors.
    pub fn workers(self, n: usize) -> Self {
        self.set(|plan| plan.workers = Some(n))
    }

    /// Data that every worker has: any type, inherited by fork, never serialized.
    ///
    /// The master drops its own copy inside `build()`, on that thread; clone what it still needs, or use an `Arc`. So
    /// a `Drop` with effects outside the process, such as deleting a directory, happens in the master then, and
    /// never in a worker. Workers share the memory page by page until somebody writes to a page.
    ///
    /// It is moved in, as the workers outlive whatever it could borrow from:
    ///
    /// ```compile_fail,E0597
    /// let table = vec![1, 2, 3];
    /// let pool = forkring::Pool::builder().env(&table).build();
    /// ```
    pub fn env<E2: Given<M> + 'static>(self, env: E2) -> Builder<E2, S, W, M> {
        let Self { env: _, plan, granularity, spawn, misuse, _types } = self;
        let late =
            plan.state.is_some().then_some("Builder::env must come before Builder::state, which uses it");
        Builder { env, plan, granularity, spawn, misuse: misuse.or(late), _types: PhantomData }
    }

    /// A value that each worker makes for itself, after `init`, and hands to its tasks as `&mut` through
    /// [`Worker::state`]. An error or a panic makes `build()` fail with that message; in a replacement it ends the pool.
    ///
    /// It is made anew after a panic in a task that used it, in that task's time. If that fails, the task ends with its panic all the
    /// same, the worker leaves, the log says why, and a replacement starts afresh: what lasts ends the pool. In a batch, the next item ends
    /// with [`WorkerLost`](crate::WorkerLost) then, which has [the cause](crate::WorkerLost::cause).
    ///
    /// ```
    /// use forkring::{Pool, View, Worker};
    ///
    /// let pool = Pool::builder().workers(1).state(|_, _| Ok(0_u64)).build()?;
    /// let count = |w: &Worker<(), forkring::NoService, u64>, step: &View<u64>| {
    ///     *w.state() += step.to_native();
    ///     *w.state()
    /// };
    /// assert_eq!(pool.submit_with(count, &2_u64).wait()?, 2);
    /// assert_eq!(pool.submit_with(count, &3_u64).wait()?, 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn state<W2: 'static>(
        self,
        f: impl Fn(&WorkerInfo, &E) -> Result<W2, BoxError> + Given<M> + 'static,
    ) -> Builder<E, S, W2, M> {
        let make = move |info: &WorkerInfo, env: &dyn Any| {
            let env = env.downcast_ref::<E>().ok_or("Builder::env was called after Builder::state")?;
            Ok(Box::new(f(info, env)?) as Box<dyn Any>)
        };
        self.set(|plan| plan.state = Some(Box::new(make))).retyped()
    }

    /// Runs in each worker before its first task, in replacements too. An error or a panic makes `build()` fail with
    /// that message; in a replacement it ends the pool.
    pub fn init(self, f: impl Fn(&WorkerInfo) -> Result<(), BoxError> + Given<M> + 'static) -> Self {
        self.set(|plan| plan.init = Some(Box::new(f)))
    }

    /// How long a worker may take until it is ready, and how long to leave once it has nothing more to run, if it is to be
    /// replaced. Default: 60 s. `Duration::MAX` is no limit, and zero an error of `build`.
    pub fn init_timeout(self, limit: Duration) -> Self {
        self.set(|plan| plan.init_timeout = limit)
    }

    /// Runs in each worker that leaves in good order: when the pool is closed or the worker is replaced because of
    /// [`max_tasks_per_worker`](Self::max_tasks_per_worker) or [`max_worker_memory`](Self::max_worker_memory), not when
    /// it is killed. Its successor starts afterwards: a worker that is to be replaced and takes longer than
    /// [`init_timeout`](Self::init_timeout) for this and the drop of its state is killed. When the pool is closed there is no
    /// limit but that of [`Pool::close_within`].
    pub fn on_exit(self, f: impl Fn(&WorkerInfo) + Given<M> + 'static) -> Self {
        self.set(|plan| plan.on_exit = Some(Box::new(f)))
    }

    /// Answers the requests of workers ([`Worker::call`]) in the master. Handlers run on threads of the pool, at most
    /// one for each worker, so one that blocks keeps only its caller waiting. A panic becomes an error in the task.
    ///
    /// It is dropped when the pool ends, before [`Pool::closed`](crate::Pool::closed) tells of that; a call that runs even then
    /// keeps it until it is over.
    ///
    /// ```
    /// use forkring::{Pool, Service, View, Worker};
    ///
    /// let pool = Pool::builder().workers(1).service(|n: u32| n * 2).build()?;
    /// let doubled = pool.submit_with(|w: &Worker<(), Service<u32, u32>>, n: &View<u32>| w.call(&n.to_native()), &4_u32);
    /// assert_eq!(doubled.wait()?, Ok(8));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn service<Q: Payload, A: Payload>(
        self,
        f: impl Fn(Q) -> A + Send + Sync + 'static,
    ) -> Builder<E, Service<Q, A>, W, M> {
        let handler = move |bytes: &[u8], limit: usize| match codec::decode::<Q>(bytes) {
            Ok(request) => answer(&f(request), limit),
            Err(error) => codec_answer(error),
        };
        self.set(|plan| plan.handler = Some(Handler::Sync(Arc::new(handler)))).retyped()
    }

    /// As [`service`](Self::service), with a handler that returns a future. It runs on one thread of the pool, or
    /// where [`service_on`](Self::service_on) puts it.
    pub fn service_async<Q: Payload, A: Payload, F>(
        self,
        f: impl Fn(Q) -> F + Send + Sync + 'static,
    ) -> Builder<E, Service<Q, A>, W, M>
    where
        F: Future<Output = A> + Send + 'static,
    {
        let handler = move |bytes: AlignedBytes, limit: usize| -> BoxFuture<'static, Answer> {
            match codec::decode::<Q>(&bytes) {
                Ok(request) => {
                    let future = f(request);
                    Box::pin(async move { answer(&future.await, limit) })
                }
                Err(error) => Box::pin(std::future::ready(codec_answer(error))),
            }
        };
        self.set(|plan| plan.handler = Some(Handler::Async(Arc::new(handler), None))).retyped()
    }

    /// Where the futures of [`service_async`](Self::service_async) run, for example
    /// `move |future| { handle.spawn(future); }` with a tokio handle.
    pub fn service_on(mut self, spawn: impl Fn(BoxFuture<'static, ()>) + Send + Sync + 'static) -> Self {
        self.spawn = Some(Arc::new(spawn));
        self
    }

    /// How many items of a stream share a message, unless the stream says otherwise: [`Granularity`]. Default:
    /// [`Granularity::Auto`].
    pub fn granularity(mut self, granularity: Granularity) -> Self {
        self.granularity = granularity;
        self
    }

    /// The most bytes that one input, result, service request or answer may take. Default: 4 GiB.
    pub fn max_payload(self, bytes: usize) -> Self {
        self.set(|plan| plan.policy.max_payload = bytes)
    }

    /// The most tasks that are accepted and have not started. Default: no limit.
    ///
    /// When it is reached, [`Pool::submit`] and its like wait until there is room, [`Pool::try_submit`] refuses, and
    /// [`Pool::submit_async`] and [`Pool::reserve`] wait without blocking a thread. Room is given in the order of
    /// arrival. With a limit of 0 a task is accepted only when a worker has nothing to do.
    ///
    /// Counted is a task that was submitted, from when it is accepted until it has ended in whatever way; so as many as
    /// the limit and the number of workers can exist at a time; while streams keep workers busy, so many may wait. Streams (which have windows of their own) and
    /// broadcasts are not counted, and never wait. Wakers and the log hook, where the pool calls them on its own
    /// thread, never wait either: what they submit is accepted beyond the limit.
    ///
    /// ```
    /// use forkring::{Pool, TrySubmitError};
    ///
    /// let pool = Pool::builder().workers(1).queue_limit(1).build()?;
    /// let room = [pool.try_reserve()?, pool.try_reserve()?]; // for one that runs and one that waits
    /// assert_eq!(pool.try_submit(|n: u32| n + 1, &1).unwrap_err(), TrySubmitError::Full);
    /// drop(room);
    /// assert_eq!(pool.try_submit(|n: u32| n + 1, &1)?.wait()?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn queue_limit(self, tasks: usize) -> Self {
        self.set(|plan| plan.queue_limit = Some(tasks))
    }

    /// Replaces a worker by a fresh process after so many tasks. Default: never. 0 is an error.
    ///
    /// The worker leaves in good order (with [`on_exit`](Self::on_exit)), no task is lost, and what it had not started
    /// runs elsewhere. In a stream each item counts, and the worker looks between messages, so it may run up to a
    /// message more. For tasks that leak: see also [`max_worker_memory`](Self::max_worker_memory).
    ///
    /// ```
    /// use forkring::Pool;
    ///
    /// let pool = Pool::builder().workers(1).max_tasks_per_worker(2).build()?;
    /// let pids: Vec<u32> =
    ///     (0..4).map(|_| pool.submit(|()| std::process::id(), &()).wait()).collect::<Result<_, _>>()?;
    /// assert!(pids[0] == pids[1] && pids[1] != pids[2] && pids[2] == pids[3]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn max_tasks_per_worker(self, tasks: u64) -> Self {
        self.set(|plan| plan.recycling.max_tasks = Some(tasks))
    }

    /// Replaces a worker, as [`max_tasks_per_worker`](Self::max_tasks_per_worker) does, when its resident memory has
    /// grown by more than this many bytes since it was ready. Default: never. 0 is an error.
    ///
    /// What counts is memory of the worker's own: neither what it inherited, such as a large environment, nor files
    /// and shared memory. It is looked at between tasks, once a millisecond at most, so a single task may take more;
    /// the kernel's figure can be some hundred KiB behind. Needs `/proc`, without which no worker starts.
    pub fn max_worker_memory(self, bytes: u64) -> Self {
        self.set(|plan| plan.recycling.max_growth_bytes = Some(bytes))
    }

    /// Limits the address space of each worker to so many bytes more than it has when it is ready (RLIMIT_AS, see
    /// setrlimit(2)). Default: no limit but the program's own. 0 is an error.
    ///
    /// A task that wants more is refused the memory, which Rust's allocator answers with an abort: the task ends with
    /// [`WorkerLost`](crate::WorkerLost) and the hint [`OutOfMemory`](crate::LossHint::OutOfMemory), before the machine
    /// runs out of memory. Addresses count, used or not: each thread that a task starts takes 2 MiB and more for its
    /// stack, and up to 128 MiB for an arena of glibc's malloc. A process that a task starts has the limit, too.
    ///
    /// ```
    /// use forkring::{LossHint, Pool, TaskError};
    ///
    /// let pool = Pool::builder().workers(1).max_address_space(64 << 20).build()?;
    /// let greedy = pool.submit(|bytes: usize| vec![1_u8; bytes].len(), &(1 << 30));
    /// match greedy.wait() {
    ///     Err(TaskError::WorkerLost(lost)) => assert_eq!(lost.hint(), Some(LossHint::OutOfMemory)),
    ///     other => unreachable!("{other:?}"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn max_address_space(self, bytes: u64) -> Self {
        self.set(|plan| plan.setup.address_space_bytes = Some(bytes))
    }

    /// Makes each worker the leader of a process group of its own, and kills what is left of the group when the worker
    /// dies in any way but in good order: processes that its tasks have started go with it. Default: off.
    ///
    /// Without it, they live on when a worker crashes or is killed. With it, they still do if they have left the group
    /// (setsid(2)), if the worker leaves in good order, or if the zygote itself is killed. The terminal's signals do
    /// not reach the workers then: Ctrl-Z stops the program but not its workers, and a task that reads from the
    /// terminal is stopped.
    pub fn process_group(self, on: bool) -> Self {
        self.set(|plan| plan.setup.process_group = on)
    }

    /// Sets an environment variable in each worker, before `init`. May be used several times; the last value of a name
    /// counts. A name that is empty or has a `=` in it, and zero bytes, are errors.
    ///
    /// ```
    /// use forkring::Pool;
    ///
    /// let pool = Pool::builder().workers(1).worker_env("OMP_NUM_THREADS", "1").build()?;
    /// let threads = pool.submit(|name: String| std::env::var(name).ok(), &"OMP_NUM_THREADS".to_owned());
    /// assert_eq!(threads.wait()?.as_deref(), Some("1"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn worker_env(self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.set(|plan| plan.setup.env.push((key.into(), value.into())))
    }

    /// Adds to the niceness of each worker, as `nice(1)` does: with more than 0, workers leave the cores to others
    /// first. Default: 0. Less than 0 takes a privilege, without which no worker starts.
    pub fn nice(self, steps: i32) -> Self {
        self.set(|plan| plan.setup.nice = steps)
    }

    /// Which cores the workers run on. Default: [`Affinity::Inherit`]. A core that this program may not run on, and a
    /// list without any, are errors.
    ///
    /// Threads and processes that a task starts stay on its worker's core.
    pub fn affinity(self, affinity: Affinity) -> Self {
        self.set(|plan| plan.setup.affinity = affinity)
    }

    /// How workers and waiting threads wait. Default: [`WaitPolicy::Adaptive`].
    pub fn wait_policy(self, policy: WaitPolicy) -> Self {
        self.set(|plan| plan.wait_policy = policy)
    }

    /// Closes in the workers every descriptor that the program had open, except for stdin, stdout and stderr. Default:
    /// they inherit them, as forked processes do.
    ///
    /// Values in the environment, or on a stack that [`WorkerInfo::start_worker`] unwinds, must not own one then: a
    /// worker that drops such a value would close somebody else's number.
    pub fn close_inherited_fds(self, on: bool) -> Self {
        self.set(|plan| plan.close_inherited_fds = on)
    }

    /// How long a task may run, from its start; in a stream, each item. At the limit its worker is killed and replaced, and the
    /// task ends with [`TaskError::TimedOut`]. Other tasks are not touched. Default: no limit.
    ///
    /// The clock is the master's (CLOCK_MONOTONIC) and is read from time to time: a task gets its limit at least, and about a
    /// sixteenth of it more at most. Time in which the program is stopped as a whole (SIGSTOP, Ctrl-Z) does not count. That of
    /// printing a panic does, see [`hooks`](crate::hooks).
    pub fn task_timeout(self, limit: Duration) -> Self {
        self.set(|plan| plan.policy.terms.timeout = Some(limit))
    }

    /// A signal that a worker gets before SIGKILL when its task is killed or runs out of time, and how long it may take to
    /// act on it: SIGTERM to clean up, SIGABRT for a core dump. Default: SIGKILL at once.
    ///
    /// A task that returns within that time has its result, be it late; its worker is replaced all the same.
    ///
    /// What a killed task has printed of an unfinished line is in its worker's memory and goes with it. A thread of the worker
    /// that waits for the signal saves it, since `exit` flushes:
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use forkring::{Pool, Signal};
    /// use nix::sys::signal::SigSet;
    ///
    /// let pool = Pool::builder()
    ///     .workers(1)
    ///     .kill_signal(Signal::SIGTERM, Duration::from_millis(100))
    ///     .init(|_| {
    ///         // Blocked before there is a second thread: nobody gets it but who waits for it.
    ///         let signals = SigSet::from(Signal::SIGTERM);
    ///         signals.thread_block()?;
    ///         std::thread::spawn(move || {
    ///             let _ = signals.wait();
    ///             std::process::exit(1);
    ///         });
    ///         Ok(())
    ///     })
    ///     .build()?;
    /// let task = pool.with_timeout(Duration::from_millis(50)).submit(
    ///     |_: ()| -> () {
    ///         print!("so far, and no");
    ///         loop {
    ///             std::thread::park();
    ///         }
    ///     },
    ///     &(),
    /// );
    /// // "so far, and no" has been written.
    /// assert!(task.wait().unwrap_err().is_timed_out());
    /// # Ok::<(), forkring::Error>(())
    /// ```
    pub fn kill_signal(self, first: Signal, gap: Duration) -> Self {
        self.set(|plan| plan.policy.kill_signal = Some((first as i32, gap)))
    }

    /// How many times a task is started again after the loss of its worker, never after a panic or a time-out. Default: 0, so
    /// that a task starts at most once.
    pub fn retries(self, n: u32) -> Self {
        self.set(|plan| plan.policy.terms.retries = n)
    }

    /// What the loss of a worker means for the pool. Default: [`OnWorkerLoss::FailTask`].
    pub fn on_worker_loss(self, policy: OnWorkerLoss) -> Self {
        self.set(|plan| plan.policy.on_worker_loss = policy)
    }

    /// Keeps the input of each task that ends with [`WorkerLost`](crate::WorkerLost), or runs out of time while it is running,
    /// as a file in this directory. [`replay`](crate::replay) runs the task function on it again, in one's own process,
    /// under a debugger. Default: off, which costs nothing; a task costs nothing extra either way.
    ///
    /// In a stream it is the input of exactly the item that was running, whatever the granularity. A task that is started
    /// again because of [`retries`](Self::retries) is saved when its last attempt is lost. Not saved is what ended by
    /// a panic, by [`Task::kill`](crate::Task::kill), or with its pool; nor the item of a batch whose worker broke the
    /// protocol, since it is not known which one that was.
    ///
    /// A file's name tells when it was, pool, worker, cause and function:
    /// `20261126T175402.031Z-forkring-w3-SIGSEGV-app__parse.crasher`. It begins with lines of text that say more, and
    /// only its owner may read it, as inputs may be confidential. No file is ever overwritten. An input of more than
    /// 64 MiB is not saved, and nothing is when the directory has 100 of these files, or 1 GiB of them. A
    /// thread of the pool's writes them, which exists only while there is something to write; what fails there (a
    /// full disk) is told to the log, and is no failure of anything else. [`close`](Pool::close), and the drop of the last
    /// handle, wait for it, up to five seconds.
    ///
    /// The directory is made by `build()` if it is not there; that it cannot be is an error of `build()`.
    ///
    /// ```
    /// use forkring::{Crasher, Pool};
    ///
    /// fn parse(text: String) -> usize {
    ///     if text.contains('\0') { std::process::abort() } // stands for a bug
    ///     text.len()
    /// }
    ///
    /// # let dir = std::env::temp_dir().join(format!("forkring-doc-{}", std::process::id()));
    /// let pool = Pool::builder().workers(1).save_crashers(&dir).build()?;
    /// let lost = pool.submit(parse, &"a\0b".to_owned()).wait();
    /// assert!(lost.is_err());
    /// pool.close().wait();
    ///
    /// // Later, and usually in another program or test:
    /// for file in std::fs::read_dir(&dir)? {
    ///     let path = file?.path();
    ///     let crasher = Crasher::read(&path)?;
    ///     println!("{crasher}");
    ///     assert_eq!(crasher.input::<String>()?, "a\0b");
    ///     // With `parse` in the place of this closure, and a debugger around the program, one sees where it dies.
    ///     assert_eq!(forkring::replay(&path, |text: String| text.len())?, 3);
    /// }
    /// # std::fs::remove_dir_all(&dir)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn save_crashers(self, dir: impl Into<PathBuf>) -> Self {
        self.set(|plan| plan.crashers = Some(dir.into()))
    }

    /// A name for messages and threads. Default: `forkring`. A zero byte in it is an error.
    pub fn name(self, name: impl Into<String>) -> Self {
        self.set(|plan| plan.name = name.into())
    }

    /// Measures how long each task waits and runs: [`Stats::timings`](crate::Stats::timings) of [`Pool::stats`] has the
    /// distributions, [`WorkerStats::busy_time`](crate::WorkerStats::busy_time) what became of each worker's time. Default: off.
    ///
    /// It takes three looks at the clock (20 to 40 ns each) and the longer way of submitting for each task or message of a
    /// stream, and 120 KiB for each worker. A pool that does not measure pays nothing for it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use forkring::Pool;
    ///
    /// let pool = Pool::builder().workers(1).timings(true).build()?;
    /// pool.map(0..20_u64, |_: u64| std::thread::sleep(Duration::from_millis(1))).for_each(drop);
    ///
    /// let stats = pool.stats();
    /// let timings = stats.timings.as_ref().unwrap();
    /// assert_eq!(timings.run.count(), 20);
    /// assert!(timings.run.quantile(0.5) >= Duration::from_millis(1));
    /// assert!(timings.slowest[0].function.contains("closure"));
    /// println!("{stats}");
    /// # Ok::<(), forkring::Error>(())
    /// ```
    pub fn timings(self, on: bool) -> Self {
        self.set(|plan| plan.timings = on)
    }

    /// Writes down what happens in the pool, as JSON for the trace viewers of Perfetto (<https://ui.perfetto.dev>) and Chrome
    /// (`chrome://tracing`): open the file there and see what each worker did when, and the gaps between. Default: off.
    ///
    /// It has a track for each worker (`worker 0`, …) with
    ///
    /// * a span for each task that has run, called as its function is in the program, with its [id](crate::TaskId), its number
    ///   in its process, how it ended (`done`, `panicked`, `failed`, `cut`, `lost`, `timed out`, `cancelled`, `terminated`), and
    ///   how long it had waited; a message of a stream is one span, with its number of items;
    /// * a span for each start and for each life of a process, and a mark for its end, with the reason;
    ///
    /// and a counter of the tasks that wait and run, which is looked at fifty times a second. Times are the clock's
    /// CLOCK_MONOTONIC, from the beginning of the recording.
    ///
    /// A file that exists is replaced. It is written by a thread of the pool, fifty times a second, and is whole JSON
    /// after each time, so it can be read while the pool runs (again, if something was added in the middle of reading), and
    /// after a crash of the program; it is complete when the pool has
    /// closed, also by [`terminate`](Pool::terminate), unless the disk takes longer than five seconds for the rest. A task takes
    /// 200 to 300 bytes, so a hot loop fills a disk quickly; what is not written in time is left out, and a mark says how much. An
    /// error of the disk is a message to the log, and ends the recording with what was there before. For each task it costs what
    /// [`timings`](Self::timings) does, and the text in another thread.
    ///
    /// ```
    /// let path = std::env::temp_dir().join(format!("forkring-record-{}.json", std::process::id()));
    /// let pool = forkring::Pool::builder().workers(2).record(&path).build()?;
    /// pool.map(0..10_u64, |n: u64| n * n).for_each(drop);
    /// pool.close().wait();
    ///
    /// let trace: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    /// let events = trace["traceEvents"].as_array().unwrap();
    /// assert_eq!(events.iter().filter(|event| event["cat"] == "task").count(), 10);
    /// # std::fs::remove_file(&path)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `build()` fails if the file cannot be created, or is not written at positions: a FIFO, a socket, a terminal.
    pub fn record(self, path: impl Into<PathBuf>) -> Self {
        self.set(|plan| plan.record = Some(path.into()))
    }

    /// Publishes the pool's figures through the facade of the [`metrics`](https://docs.rs/metrics) crate, for whatever recorder the
    /// program installs (Prometheus, StatsD, …). Default: off. All have the label `pool`, its [name](Self::name).
    ///
    /// | name | kind, labels | |
    /// |---|---|---|
    /// | `forkring_tasks_submitted_total` | counter | [`Stats::submitted`](crate::Stats::submitted) |
    /// | `forkring_tasks_total` | counter, `outcome`: `done`, `failed`, `cancelled`, `lost` | as in [`Stats`](crate::Stats) |
    /// | `forkring_tasks_timed_out_total` | counter | as there: a part of `failed` |
    /// | `forkring_tasks_queued`, `forkring_tasks_running` | gauges | as there |
    /// | `forkring_task_wait_seconds`, `forkring_task_run_seconds` | histograms | of each run, as in [`Timings`](crate::Timings) |
    /// | `forkring_workers` | gauge, `state`: `missing`, `starting`, `idle`, `busy`, `leaving` | workers in that [state](crate::WorkerState) |
    /// | `forkring_worker_restarts_total`, `forkring_worker_bytes_in_total`, `forkring_worker_bytes_out_total` | counters, `worker` | as in [`WorkerStats`](crate::WorkerStats) |
    /// | `forkring_worker_busy_seconds`, `forkring_worker_resident_bytes` | gauges, `worker` | as there |
    ///
    /// A thread of the pool does it: the histograms fifty times a second, the rest once a second, when the pool falls idle, and
    /// at its end, which waits for the recorder for five seconds at most. The recorder may be installed at any time; what it panics
    /// with is dropped. For each task it costs what [`timings`](Self::timings) does, and the recorder's work in another thread.
    /// Workers publish nothing: a recorder that they have inherited is a copy.
    ///
    /// Give such pools names of their own: those of one name overwrite each other's figures. And that thread is like one of the
    /// program's own to [`build`](Self::build): at the moment of another pool's fork it may hold a lock of the recorder, which stays
    /// held in the workers. Where tasks use the recorder, build the other pools first.
    ///
    /// ```
    /// let pool = forkring::Pool::builder().workers(1).name("till").metrics(true).build()?;
    /// assert_eq!(pool.submit(|n: u32| n + 1, &1).wait()?, 2);
    /// pool.close().wait(); // the last figures are published
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "metrics")]
    pub fn metrics(self, on: bool) -> Self {
        self.set(|plan| plan.metrics = on)
    }

    /// Builds the pool: forks the zygote, which forks the workers, and waits until they are ready.
    ///
    /// Build pools early, before the program starts threads, where that is possible: a worker inherits the memory of
    /// this process as it is, and a lock that another thread holds at the moment of the fork stays held in the
    /// workers for ever. Memory allocation is safe; the first such build of a process says so in the log.
    ///
    /// # Errors
    ///
    /// A setting out of range; a system call that failed, with its name and cause; `init` or `state` failed in a
    /// worker. Nothing is left behind then.
    pub fn build(self) -> Result<Pool<E, S, W>, Error> {
        let granularity = self.granularity;
        let handle = self.launch(None, &Muster::new())?;
        Ok(Pool::from_handle(handle, granularity))
    }

    fn launch(self, around: Option<Around>, muster: &Arc<Muster>) -> Result<crate::pool::Handle, Error> {
        if let Some(misuse) = self.misuse {
            return Err(Error::new(misuse));
        }
        limits::check_granularity(self.granularity)?;
        let mut plan = self.plan;
        if let Some(spawn) = self.spawn {
            match &mut plan.handler {
                Some(Handler::Async(_, on)) => *on = Some(spawn),
                _ => return Err(Error::new("Builder::service_on needs Builder::service_async")),
            }
        }
        launch::launch(plan, Box::new(self.env), around, muster)
    }

    /// A pool around one closure, which may capture: it forks when it has the closure.
    ///
    /// ```
    /// use forkring::Pool;
    ///
    /// let factor = 7;
    /// let times = Pool::builder().workers(2).bind(move |n: i64| n * factor)?;
    /// assert_eq!(times.submit(&6).wait()?, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn bind<I, R>(self, f: impl Fn(I) -> R + Given<M> + 'static) -> Result<Bound<I, R>, Error>
    where
        I: Payload,
        R: Payload,
    {
        self.bind_to(f)
    }

    /// As [`bind`](Self::bind), of a closure whose type has a name.
    fn bind_to<I, R, F>(self, f: F) -> Result<Bound<I, R>, Error>
    where
        I: Payload,
        R: Payload,
        F: Fn(I) -> R + Given<M> + 'static,
    {
        let granularity = self.granularity;
        let owner: Box<F> = Box::new(f);
        let place = BoundFn(std::ptr::from_ref::<F>(&owner).cast());
        let handle = self.launch(Some(Around { place, owner: Some(owner) }), &Muster::new())?;
        let pool = Pool::<E, S, W>::from_handle(handle, granularity);
        Ok(Bound::new(pool, context::bound_task::<F, I, R>()))
    }

    /// Builds a pool of its own around `f`, which may capture and borrow, runs a stream through it, and closes it.
    /// Otherwise as [`Pool::iter_stream`]; after a `ControlFlow::Break` too, closing waits for the items that are running.
    ///
    /// ```
    /// use forkring::{Granularity, Pool};
    ///
    /// let offset = 100_u64;
    /// let mut sum = 0;
    /// let summary = Pool::builder()
    ///     .workers(2)
    ///     .granularity(Granularity::Fixed(10))
    ///     .iter_stream(0..50, |n: u64| n + offset, |result| sum += result.unwrap())?;
    /// assert_eq!((summary.ok, sum), (50, 6225));
    /// # Ok::<(), forkring::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn iter_stream<I, R, F, G, Q>(
        self,
        items: impl IntoIterator<Item = I>,
        f: F,
        g: G,
    ) -> Result<StreamSummary, Error>
    where
        I: Payload,
        R: Payload,
        F: Fn(I) -> R + Given<M>,
        G: FnMut(Result<R, TaskError>) -> Q,
        Q: Flow,
    {
        let granularity = self.granularity;
        let muster = Muster::new();
        // Dropped after the pool: no thread is left then that could run what may be borrowed here.
        let _loan = Loan(muster.clone());
        let place = BoundFn(std::ptr::from_ref(&f).cast());
        let handle = self.launch(Some(Around { place, owner: None }), &muster)?;
        let pool = Pool::<E, S, W>::from_handle(handle, granularity);
        let summary = pool.map_named(items, context::bound_task::<F, I, R>()).unordered().run(g);
        pool.close().wait();
        summary
    }

    /// As [`iter_stream`](Self::iter_stream), with the worker and the item in place.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn iter_stream_with<I, R, F, G, Q>(
        self,
        items: impl IntoIterator<Item = I>,
        f: F,
        g: G,
    ) -> Result<StreamSummary, Error>
    where
        I: Payload,
        R: Payload,
        F: Fn(&Worker<E, S, W>, &View<I>) -> R + Given<M>,
        G: FnMut(Result<R, TaskError>) -> Q,
        Q: Flow,
    {
        let granularity = self.granularity;
        let muster = Muster::new();
        // Dropped after the pool: no thread is left then that could run what may be borrowed here.
        let _loan = Loan(muster.clone());
        let place = BoundFn(std::ptr::from_ref(&f).cast());
        let handle = self.launch(Some(Around { place, owner: None }), &muster)?;
        let pool = Pool::<E, S, W>::from_handle(handle, granularity);
        let named = context::bound_context_task::<F, E, S, W, I, R>();
        let summary = pool.map_named(items, named).unordered().run(g);
        pool.close().wait();
        summary
    }
}

impl<E: 'static, S, W: 'static> Builder<E, S, W> {
    /// Runs the workers on threads of this process: for debuggers, coverage, captured test output, and plain unit tests of a
    /// program that uses the pool. **A crash in a task is a crash of this program then.**
    ///
    /// Everything else is the same: tasks and their values travel encoded through the same rings, batches, services, states,
    /// recycling and limits work, and what cannot be encoded fails here, too.
    ///
    /// ```
    /// use forkring::Pool;
    ///
    /// fn shout(name: String) -> String {
    ///     println!("shouting {name}"); // `cargo test` shows it if the test fails, as for any thread of a test
    ///     name.to_uppercase()
    /// }
    ///
    /// # /*
    /// #[test]
    /// # */
    /// fn names_are_shouted() {
    ///     let pool = Pool::builder().in_process().workers(1).build().unwrap();
    ///     assert_eq!(pool.submit(shout, &"ann".to_owned()).wait().unwrap(), "ANN");
    /// }
    /// # names_are_shouted();
    /// ```
    ///
    /// Threads share what the builder is given, so all of it has to be `Send + Sync` (see [`Given`]); call this before
    /// `init`, `state` and `on_exit`. What a worker makes for itself, states and values of tasks, need not be either.
    ///
    /// | | workers are processes | workers are threads |
    /// |---|---|---|
    /// | a segfault, an abort, a stack overflow, `exit`, memory that runs out | the task is lost, the worker replaced | ends this program |
    /// | a panic | the task's error | the same |
    /// | a time limit, `kill`, `terminate`, dropping the last handle | the worker is killed | its task ends with the same error at the same moment, but a thread cannot be killed: it is *given up*, and another one takes its place. [`Worker::cancelled`] is true there, service calls are refused. It ends when its task returns; `on_exit` does not run. A task that never returns keeps its thread |
    /// | [`kill_signal`](Self::kill_signal) | comes first | `Worker::cancelled` is true for as long as the gap |
    /// | [`env`](Self::env) | each worker has a copy, the master's is dropped in `build` | one value for all, dropped on the pool's own thread at its end, before it counts as closed; likewise what closures have captured (`init`, `state`, `on_exit`). A destructor that blocks holds up the end. If a thread that was given up still uses them, they go when it ends |
    /// | a stream around a closure ([`iter_stream`](Self::iter_stream)) | | returns, or goes on unwinding, only when no thread runs the closure any more. With an [`init`](Self::init) that never returns it does not return either, though the pool fails after [`init_timeout`](Self::init_timeout) |
    /// | statics | a copy for each worker | the program's; thread-locals are each worker's own |
    /// | handles of pools, used in a task | inert, [`NotInThisProcess`](TaskError::NotInThisProcess) | work. If every worker waits for a task of its own pool, they wait for ever |
    /// | [`start_worker`](WorkerInfo::start_worker) | unwinds the inherited stack | goes on to the worker's loop: there is nothing to unwind. It fails where it fails otherwise |
    /// | pids | the workers' | this program's |
    /// | [`WorkerLost`](crate::WorkerLost) | | only if the state could not be made again after a panic in a batch, or memory was overwritten; peak memory is 0 |
    /// | [`max_worker_memory`](Self::max_worker_memory), [`max_address_space`](Self::max_address_space), [`worker_env`](Self::worker_env) | | an error of `build`, since threads share memory and environment |
    /// | [`process_group`](Self::process_group), [`close_inherited_fds`](Self::close_inherited_fds) | | no effect |
    /// | `cpu_time` and `resident_bytes` of [`stats`](Pool::stats) | the worker's | the whole program's, for each worker |
    /// | [`nice`](Self::nice), [`affinity`](Self::affinity) | of the process | of the thread |
    /// | signals | the worker's own | may come to a worker's thread, as to the one that built the pool |
    ///
    /// Such a pool runs under [Miri](https://github.com/rust-lang/miri), which knows nothing of the kernel's barriers, signals and forks:
    ///
    /// ```sh
    /// MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks -Zmiri-tree-borrows" cargo +nightly miri test
    /// ```
    ///
    /// Cells of tasks are never given back, which Miri takes for leaks, and rkyv follows relative pointers in a way that only tree
    /// borrows allow. A round trip takes some tenths of a second.
    ///
    /// Workers are named `<pool>-w<id>`, have stacks of 8 MiB, and run until the pool ends, as processes do; nothing of them
    /// is left then, apart from threads that were given up.
    pub fn in_process(self) -> Builder<E, S, W, Shared>
    where
        E: Send + Sync,
    {
        self.in_process_if(true)
    }

    /// As [`in_process`](Self::in_process), if `on`; otherwise the workers are processes as ever, and only what the builder may
    /// be given differs. For a program that decides while it runs.
    ///
    /// ```
    /// use forkring::Pool;
    ///
    /// let debugging = std::env::var_os("DEBUG_IN_PROCESS").is_some();
    /// let pool = Pool::builder().in_process_if(debugging).workers(1).build()?;
    /// let pid = pool.submit(|()| std::process::id(), &()).wait()?;
    /// assert_eq!(pid == std::process::id(), debugging);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn in_process_if(self, on: bool) -> Builder<E, S, W, Shared>
    where
        E: Send + Sync,
    {
        let Plan { init, state, on_exit, .. } = &self.plan;
        let late = (init.is_some() || state.is_some() || on_exit.is_some()).then_some(
            "Builder::in_process must come before init, state and on_exit, so that it is known whether threads may share them",
        );
        let mut builder = self.set(|plan| {
            plan.in_process = on;
            // What was given before could be anything.
            (plan.init, plan.state, plan.on_exit) = (None, None, None);
        });
        builder.misuse = builder.misuse.or(late);
        builder.retyped()
    }
}

fn answer<A: Payload>(answer: &A, limit: usize) -> Answer {
    match codec::encode(answer, limit) {
        Ok(bytes) => (AnswerKind::Value, bytes.into_aligned()),
        Err(error) => codec_answer(error),
    }
}

fn codec_answer(error: impl fmt::Display) -> Answer {
    (AnswerKind::Codec, AlignedBytes::from(error.to_string().as_bytes()))
}
