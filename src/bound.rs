//! [`Bound`]: a pool around one closure.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use futures_core::Stream;

use crate::builder::NoService;
use crate::context::Named;
use crate::error::TrySubmitError;
use crate::memory::codec::Payload;
use crate::overload::{self, SubmitAsync};
use crate::pool::{Close, CloseWithin, Closed, Pool};
use crate::stats::Stats;
use crate::stream::{Map, MapStream};
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

    /// Runs the closure on each item. As [`Pool::map`].
    pub fn map<T: IntoIterator<Item = I>>(&self, items: T) -> Map<T::IntoIter, R> {
        self.pool.map_named(items, self.named)
    }

    /// Runs the closure on each item of an asynchronous source. As [`Pool::map_stream`].
    pub fn map_stream<T: Stream<Item = I>>(&self, items: T) -> MapStream<T, R> {
        self.pool.map_stream_named(items, self.named)
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
