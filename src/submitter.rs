//! [`Submitter`]: tasks on terms of their own.

use std::fmt;
use std::time::Duration;

use futures_core::Stream;

use crate::builder::NoService;
use crate::context::{self, Named, Worker};
use crate::error::{Error, TaskError, TrySubmitError};
use crate::life::terms::Terms;
use crate::memory::codec::{Input, Payload, View};
use crate::overload::{self, SubmitAsync};
use crate::pool::{self, Pool};
use crate::stream::{Flow, Map, MapStream, StreamSummary, TryMap};
use crate::task::Task;
use crate::task_fn::TaskFn;

/// Submits tasks to a pool on terms of their own: see [`Pool::options`]. A handle of the pool, cheap to clone.
///
/// What is not said is as the pool's builder said it.
///
/// ```
/// use std::time::Duration;
/// use forkring::{Pool, Submitter};
///
/// struct Server {
///     urgent: Submitter, // or, of a pool with an environment, `Submitter<Tables>`
/// }
///
/// let pool = Pool::new(1)?;
/// let server = Server { urgent: pool.options().deadline(Duration::from_secs(5)).retries(1) };
/// let same = server.urgent.clone();
/// assert_eq!(same.submit(|n: u32| n + 1, &1).wait()?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "terms do nothing until a task is submitted on them"]
pub struct Submitter<E = (), S = NoService, W = ()> {
    pool: Pool<E, S, W>,
    terms: Terms,
}

/// Whatever its types are: it holds none of their values.
impl<E, S, W> Clone for Submitter<E, S, W> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), terms: self.terms }
    }
}

impl<E, S, W> fmt::Debug for Submitter<E, S, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submitter").field("pool", &self.pool).field("terms", &self.terms).finish()
    }
}

impl<E, S, W> Submitter<E, S, W> {
    pub(crate) fn new(pool: Pool<E, S, W>, terms: Terms) -> Self {
        Self { pool, terms }
    }

    /// How long a task may run, from its start; in a stream, each item. As
    /// [`Builder::task_timeout`](crate::Builder::task_timeout). A limit of zero ends tasks before they start.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.terms.timeout = Some(limit);
        self
    }

    /// When a task has to be over, counted from its submission: one that still waits then never starts, one that runs is
    /// killed as by a time-out. Waiting for room in a pool with a [queue limit](crate::Builder::queue_limit) counts, and ends
    /// at the deadline. In a stream it counts from the sending of each message.
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.terms.deadline = Some(limit);
        self
    }

    /// As [`Builder::retries`](crate::Builder::retries).
    pub fn retries(mut self, n: u32) -> Self {
        self.terms.retries = n;
        self
    }

    /// Dropping the [`Task`] kills it even while it runs: see [`Task::kill`].
    pub fn kill_on_drop(mut self) -> Self {
        self.terms.kill_on_drop = true;
        self
    }

    /// The pool.
    pub fn pool(&self) -> &Pool<E, S, W> {
        &self.pool
    }

    fn start<I: Input + ?Sized, R>(&self, named: Named, input: &I) -> Task<R> {
        pool::start(self.pool.handle().core(), named, input, Some(self.terms))
    }

    /// As [`Pool::submit`].
    pub fn submit<I, R>(&self, f: impl Fn(I) -> R + TaskFn, input: &I) -> Task<R>
    where
        I: Payload,
        R: Payload,
    {
        self.start(context::plain_task(&f), input)
    }

    /// As [`Pool::submit_with`].
    pub fn submit_with<I, R>(
        &self,
        f: impl Fn(&Worker<E, S, W>, &View<I>) -> R + TaskFn,
        input: &I,
    ) -> Task<R>
    where
        I: Input + ?Sized,
        R: Payload,
    {
        self.start(context::context_task::<_, E, S, W, I, R>(&f), input)
    }

    /// As [`Pool::try_submit`].
    ///
    /// # Errors
    ///
    /// As [`Pool::try_submit`].
    pub fn try_submit<I, R>(&self, f: impl Fn(I) -> R + TaskFn, input: &I) -> Result<Task<R>, TrySubmitError>
    where
        I: Payload,
        R: Payload,
    {
        overload::try_start(self.pool.handle().core(), context::plain_task(&f), input, Some(self.terms))
    }

    /// As [`Pool::try_submit_with`].
    ///
    /// # Errors
    ///
    /// As [`Pool::try_submit`].
    pub fn try_submit_with<I, R>(
        &self,
        f: impl Fn(&Worker<E, S, W>, &View<I>) -> R + TaskFn,
        input: &I,
    ) -> Result<Task<R>, TrySubmitError>
    where
        I: Input + ?Sized,
        R: Payload,
    {
        let named = context::context_task::<_, E, S, W, I, R>(&f);
        overload::try_start(self.pool.handle().core(), named, input, Some(self.terms))
    }

    /// As [`Pool::submit_async`]. Time spent waiting for room counts towards a deadline.
    pub fn submit_async<I, R>(&self, f: impl Fn(I) -> R + TaskFn, input: &I) -> SubmitAsync<R>
    where
        I: Payload,
        R: Payload,
    {
        overload::start_async(self.pool.handle().core(), context::plain_task(&f), input, Some(self.terms))
    }

    /// As [`Pool::submit_async_with`].
    pub fn submit_async_with<I, R>(
        &self,
        f: impl Fn(&Worker<E, S, W>, &View<I>) -> R + TaskFn,
        input: &I,
    ) -> SubmitAsync<R>
    where
        I: Input + ?Sized,
        R: Payload,
    {
        let named = context::context_task::<_, E, S, W, I, R>(&f);
        overload::start_async(self.pool.handle().core(), named, input, Some(self.terms))
    }

    /// As [`Pool::try_map`].
    pub fn try_map<I, X, R, T>(&self, items: T, f: impl Fn(I) -> R + TaskFn) -> TryMap<T::IntoIter, R, X>
    where
        I: Payload,
        R: Payload,
        T: IntoIterator<Item = Result<I, X>>,
    {
        self.pool.try_map(items, f).on_terms(self.terms)
    }

    /// As [`Pool::spawn`].
    pub fn spawn<I, R>(&self, f: impl Fn(I) -> R + TaskFn, input: &I)
    where
        I: Payload,
        R: Payload,
    {
        self.pool.detach(self.submit(f, input));
    }

    /// As [`Pool::spawn_with`].
    pub fn spawn_with<I, R>(&self, f: impl Fn(&Worker<E, S, W>, &View<I>) -> R + TaskFn, input: &I)
    where
        I: Input + ?Sized,
        R: Payload,
    {
        self.pool.detach(self.submit_with(f, input));
    }

    /// As [`Pool::map`].
    pub fn map<I, R, T>(&self, items: T, f: impl Fn(I) -> R + TaskFn) -> Map<T::IntoIter, R>
    where
        I: Payload,
        R: Payload,
        T: IntoIterator<Item = I>,
    {
        self.pool.map(items, f).on_terms(self.terms)
    }

    /// As [`Pool::map_with`].
    pub fn map_with<I, R, T>(
        &self,
        items: T,
        f: impl Fn(&Worker<E, S, W>, &View<I>) -> R + TaskFn,
    ) -> Map<T::IntoIter, R>
    where
        I: Payload,
        R: Payload,
        T: IntoIterator<Item = I>,
    {
        self.pool.map_with(items, f).on_terms(self.terms)
    }

    /// As [`Pool::map_ref`].
    pub fn map_ref<'a, I, R, T>(&self, items: T, f: impl Fn(I) -> R + TaskFn) -> Map<T::IntoIter, R>
    where
        I: Payload,
        R: Payload,
        T: IntoIterator<Item = &'a I>,
    {
        self.pool.map_ref(items, f).on_terms(self.terms)
    }

    /// As [`Pool::map_stream`].
    pub fn map_stream<I, R, T>(&self, items: T, f: impl Fn(I) -> R + TaskFn) -> MapStream<T, R>
    where
        I: Payload,
        R: Payload,
        T: Stream<Item = I>,
    {
        self.pool.map_stream(items, f).on_terms(self.terms)
    }

    /// As [`Pool::map_stream_with`].
    pub fn map_stream_with<I, R, T>(
        &self,
        items: T,
        f: impl Fn(&Worker<E, S, W>, &View<I>) -> R + TaskFn,
    ) -> MapStream<T, R>
    where
        I: Payload,
        R: Payload,
        T: Stream<Item = I>,
    {
        self.pool.map_stream_with(items, f).on_terms(self.terms)
    }

    /// As [`Pool::iter_stream`].
    ///
    /// # Errors
    ///
    /// A granularity out of range.
    pub fn iter_stream<I, R, T, Q>(
        &self,
        items: T,
        f: impl Fn(I) -> R + TaskFn,
        g: impl FnMut(Result<R, TaskError>) -> Q,
    ) -> Result<StreamSummary, Error>
    where
        I: Payload,
        R: Payload,
        T: IntoIterator<Item = I>,
        Q: Flow,
    {
        self.map(items, f).unordered().run(g)
    }

    /// As [`Pool::iter_stream_with`].
    ///
    /// # Errors
    ///
    /// A granularity out of range.
    pub fn iter_stream_with<I, R, T, Q>(
        &self,
        items: T,
        f: impl Fn(&Worker<E, S, W>, &View<I>) -> R + TaskFn,
        g: impl FnMut(Result<R, TaskError>) -> Q,
    ) -> Result<StreamSummary, Error>
    where
        I: Payload,
        R: Payload,
        T: IntoIterator<Item = I>,
        Q: Flow,
    {
        self.map_with(items, f).unordered().run(g)
    }
}
