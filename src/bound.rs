//! [`Bound`]: a pool around one closure.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;

use crate::builder::NoService;
use crate::context::Named;
use crate::error::{Error, TaskError, TrySubmitError};
use crate::life::terms::Terms;
use crate::memory::codec::Payload;
use crate::overload::{self, Permit, Reserve, SubmitAsync};
use crate::pool::{self, Close, CloseWithin, Closed, Pool};
use crate::stats::Stats;
use crate::stream::{Flow, Map, MapStream, StreamSummary, TryMap};
use crate::task::Task;

/// A pool that runs one closure, which it was forked around: see [`Builder::bind`](crate::Builder::bind).
pub struct Bound<I, R> {
    pool: Pool<(), NoService, ()>,
    named: Named,
    _types: PhantomData<fn(I) -> R>,
}

impl<I, R> Clone for Bound<I, R> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), named: self.named, _types: PhantomData }
    }
}

impl<I, R> fmt::Debug for Bound<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").field("pool", &self.pool).finish_non_exhaustive()
    }
}

impl<I: Payload, R: Payload> Bound<I, R> {
    pub(crate) fn new<E, S, W>(pool: Pool<E, S, W>, named: Named) -> Self {
        Self {
            pool: Pool::from_handle(pool.handle().clone(), pool.granularity()),
            named,
            _types: PhantomData,
        }
    }

    /// Runs the closure in a worker with a copy of `input`. As [`Pool::submit`].
    pub fn submit(&self, input: &I) -> Task<R> {
        self.pool.start(self.named, input)
    }

    /// As [`submit`](Self::submit), if there is room at once. As [`Pool::try_submit`].
    ///
    /// # Errors
    ///
    /// See [`TrySubmitError`].
    pub fn try_submit(&self, input: &I) -> Result<Task<R>, TrySubmitError> {
        overload::try_start(self.pool.handle().core(), self.named, input, None)
    }

    /// As [`submit`](Self::submit), without blocking. As [`Pool::submit_async`].
    pub fn submit_async(&self, input: &I) -> SubmitAsync<R> {
        overload::start_async(self.pool.handle().core(), self.named, input, None)
    }

    /// Terms for some of the tasks: time limits, retries, what dropping a handle means. As [`Pool::options`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use forkring::Pool;
    ///
    /// let hang_at = 3;
    /// let odd = Pool::builder().workers(1).bind(move |n: u32| {
    ///     while n == hang_at {
    ///         std::hint::spin_loop();
    ///     }
    ///     n % 2 == 1
    /// })?;
    /// let impatient = odd.options().timeout(Duration::from_millis(50)).retries(1);
    /// assert!(impatient.submit(&3).wait().unwrap_err().is_timed_out());
    /// assert!(impatient.submit(&5).wait()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn options(&self) -> BoundSubmitter<I, R> {
        BoundSubmitter { bound: self.clone(), terms: self.pool.handle().core().policy.terms }
    }

    /// Short for [`options`](Self::options)`().`[`timeout`](BoundSubmitter::timeout)`(limit)`.
    pub fn with_timeout(&self, limit: Duration) -> BoundSubmitter<I, R> {
        self.options().timeout(limit)
    }

    /// Runs the closure for its effects: nobody waits, and a failure goes to the log hook. As [`Pool::spawn`].
    pub fn spawn(&self, input: &I) {
        self.pool.detach(self.submit(input));
    }

    /// Waits for room for one task and keeps it. As [`Pool::reserve`].
    ///
    /// ```
    /// # futures::executor::block_on(async {
    /// let factor = 2;
    /// let double = forkring::Pool::builder().workers(1).queue_limit(10).bind(move |n: u64| n * factor)?;
    /// let permit = double.reserve().await;
    /// assert_eq!(permit.submit(&21).await?, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn reserve(&self) -> BoundReserve<I, R> {
        BoundReserve { room: self.pool.reserve(), named: self.named, _types: PhantomData }
    }

    /// Room for one task, if there is some at once. As [`Pool::try_reserve`].
    ///
    /// # Errors
    ///
    /// See [`TrySubmitError`].
    pub fn try_reserve(&self) -> Result<BoundPermit<I, R>, TrySubmitError> {
        Ok(BoundPermit { permit: self.pool.try_reserve()?, named: self.named, _types: PhantomData })
    }

    /// Runs the closure on each item. As [`Pool::map`].
    pub fn map<T: IntoIterator<Item = I>>(&self, items: T) -> Map<T::IntoIter, R> {
        self.pool.map_named(items, self.named)
    }

    /// Runs the closure on items that are borrowed. As [`Pool::map_ref`].
    pub fn map_ref<'a, T: IntoIterator<Item = &'a I>>(&self, items: T) -> Map<T::IntoIter, R>
    where
        I: 'a,
    {
        self.pool.map_ref_named(items, self.named)
    }

    /// Runs the closure on each good item of a source that may fail. As [`Pool::try_map`].
    ///
    /// ```
    /// let offset = 10;
    /// let add = forkring::Pool::builder().workers(2).bind(move |n: u32| n + offset)?;
    /// let results: Vec<_> = add.try_map(["1", "x", "3"].map(str::parse::<u32>)).collect();
    /// assert!(matches!(results[0], Ok(Ok(11))));
    /// assert!(results[1].is_err()); // the parser's error
    /// assert!(matches!(results[2], Ok(Ok(13))));
    /// # Ok::<(), forkring::Error>(())
    /// ```
    pub fn try_map<X, T: IntoIterator<Item = Result<I, X>>>(&self, items: T) -> TryMap<T::IntoIter, R, X> {
        self.pool.try_map_named(items, self.named)
    }

    /// Runs the closure on each item of an asynchronous source. As [`Pool::map_stream`].
    pub fn map_stream<T: Stream<Item = I>>(&self, items: T) -> MapStream<T, R> {
        self.pool.map_stream_named(items, self.named)
    }

    /// Runs the closure on the items and hands each result to `g`, here, as it comes. As [`Pool::iter_stream`].
    ///
    /// ```
    /// let names = vec!["ann".to_owned(), "bob".to_owned()];
    /// let greet = forkring::Pool::builder().workers(2).bind(move |n: usize| format!("hello, {}", names[n]))?;
    /// let mut lines = Vec::new();
    /// let summary = greet.iter_stream(0..2, |line| lines.push(line.unwrap()))?;
    /// lines.sort();
    /// assert_eq!((summary.ok, lines), (2, vec!["hello, ann".to_owned(), "hello, bob".to_owned()]));
    /// # Ok::<(), forkring::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// A granularity out of range.
    pub fn iter_stream<T: IntoIterator<Item = I>, Q: Flow>(
        &self,
        items: T,
        g: impl FnMut(Result<R, TaskError>) -> Q,
    ) -> Result<StreamSummary, Error> {
        self.map(items).unordered().run(g)
    }

    /// As [`Pool::recycle_workers`].
    pub fn recycle_workers(&self) {
        self.pool.recycle_workers();
    }

    /// As [`Pool::close`].
    pub fn close(&self) -> Close {
        self.pool.close()
    }

    /// As [`Pool::close_within`].
    pub fn close_within(&self, limit: Duration) -> CloseWithin {
        self.pool.close_within(limit)
    }

    /// As [`Pool::closed`].
    pub fn closed(&self) -> Closed {
        self.pool.closed()
    }

    /// As [`Pool::terminate`].
    pub fn terminate(&self) {
        self.pool.terminate();
    }

    /// As [`Pool::stats`].
    pub fn stats(&self) -> Stats {
        self.pool.stats()
    }

    /// As [`Pool::workers`].
    pub fn workers(&self) -> usize {
        self.pool.workers()
    }

    /// As [`Pool::worker_pids`].
    pub fn worker_pids(&self) -> Vec<u32> {
        self.pool.worker_pids()
    }
}

/// Runs a bound closure on terms of their own: see [`Bound::options`]. A handle of the pool, cheap to clone.
///
/// The terms are those of a [`Submitter`](crate::Submitter), which has them in full.
#[must_use = "terms do nothing until a task is submitted on them"]
pub struct BoundSubmitter<I, R> {
    bound: Bound<I, R>,
    terms: Terms,
}

impl<I, R> Clone for BoundSubmitter<I, R> {
    fn clone(&self) -> Self {
        Self { bound: self.bound.clone(), terms: self.terms }
    }
}

impl<I, R> fmt::Debug for BoundSubmitter<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundSubmitter").field("bound", &self.bound).field("terms", &self.terms).finish()
    }
}

impl<I: Payload, R: Payload> BoundSubmitter<I, R> {
    /// As [`Submitter::timeout`](crate::Submitter::timeout).
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.terms.timeout = Some(limit);
        self
    }

    /// As [`Submitter::deadline`](crate::Submitter::deadline).
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.terms.deadline = Some(limit);
        self
    }

    /// As [`Submitter::retries`](crate::Submitter::retries).
    pub fn retries(mut self, n: u32) -> Self {
        self.terms.retries = n;
        self
    }

    /// As [`Submitter::kill_on_drop`](crate::Submitter::kill_on_drop).
    pub fn kill_on_drop(mut self) -> Self {
        self.terms.kill_on_drop = true;
        self
    }

    /// The pool with its closure.
    pub fn bound(&self) -> &Bound<I, R> {
        &self.bound
    }

    /// As [`Bound::submit`].
    pub fn submit(&self, input: &I) -> Task<R> {
        pool::start(self.bound.pool.handle().core(), self.bound.named, input, Some(self.terms))
    }

    /// As [`Bound::try_submit`].
    ///
    /// # Errors
    ///
    /// See [`TrySubmitError`].
    pub fn try_submit(&self, input: &I) -> Result<Task<R>, TrySubmitError> {
        overload::try_start(self.bound.pool.handle().core(), self.bound.named, input, Some(self.terms))
    }

    /// As [`Bound::submit_async`]. Time spent waiting for room counts towards a deadline.
    pub fn submit_async(&self, input: &I) -> SubmitAsync<R> {
        overload::start_async(self.bound.pool.handle().core(), self.bound.named, input, Some(self.terms))
    }

    /// As [`Bound::spawn`].
    pub fn spawn(&self, input: &I) {
        self.bound.pool.detach(self.submit(input));
    }

    /// As [`Bound::map`].
    pub fn map<T: IntoIterator<Item = I>>(&self, items: T) -> Map<T::IntoIter, R> {
        self.bound.map(items).on_terms(self.terms)
    }

    /// As [`Bound::map_ref`].
    pub fn map_ref<'a, T: IntoIterator<Item = &'a I>>(&self, items: T) -> Map<T::IntoIter, R>
    where
        I: 'a,
    {
        self.bound.map_ref(items).on_terms(self.terms)
    }

    /// As [`Bound::try_map`].
    pub fn try_map<X, T: IntoIterator<Item = Result<I, X>>>(&self, items: T) -> TryMap<T::IntoIter, R, X> {
        self.bound.try_map(items).on_terms(self.terms)
    }

    /// As [`Bound::map_stream`].
    pub fn map_stream<T: Stream<Item = I>>(&self, items: T) -> MapStream<T, R> {
        self.bound.map_stream(items).on_terms(self.terms)
    }

    /// As [`Bound::iter_stream`].
    ///
    /// # Errors
    ///
    /// A granularity out of range.
    pub fn iter_stream<T: IntoIterator<Item = I>, Q: Flow>(
        &self,
        items: T,
        g: impl FnMut(Result<R, TaskError>) -> Q,
    ) -> Result<StreamSummary, Error> {
        self.map(items).unordered().run(g)
    }
}

/// A future of room for one run of a bound closure. See [`Bound::reserve`]; otherwise as [`Reserve`].
#[must_use = "a future does nothing until it is polled; use .wait() to block"]
pub struct BoundReserve<I, R> {
    room: Reserve,
    named: Named,
    _types: PhantomData<fn(I) -> R>,
}

impl<I, R> fmt::Debug for BoundReserve<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BoundReserve").field(&self.room).finish()
    }
}

impl<I, R> BoundReserve<I, R> {
    /// As [`Reserve::wait`].
    pub fn wait(self) -> BoundPermit<I, R> {
        BoundPermit { permit: self.room.wait(), named: self.named, _types: PhantomData }
    }
}

impl<I, R> Future for BoundReserve<I, R> {
    type Output = BoundPermit<I, R>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let permit = Pin::new(&mut this.room).poll(context);
        permit.map(|permit| BoundPermit { permit, named: this.named, _types: PhantomData })
    }
}

/// Room for one run of a bound closure. See [`Bound::reserve`]; otherwise as [`Permit`].
#[must_use = "room that is not used keeps others waiting; drop the permit to give it back"]
pub struct BoundPermit<I, R> {
    permit: Permit,
    named: Named,
    _types: PhantomData<fn(I) -> R>,
}

impl<I, R> fmt::Debug for BoundPermit<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BoundPermit").field(&self.permit).finish()
    }
}

impl<I: Payload, R: Payload> BoundPermit<I, R> {
    /// As [`Bound::submit`], without waiting. If the input cannot be encoded the room is given back.
    pub fn submit(self, input: &I) -> Task<R> {
        self.permit.start(self.named, input)
    }
}
