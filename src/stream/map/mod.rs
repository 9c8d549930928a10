//! [`Map`]: a stream as an iterator.
//!
//! Items are [pulled](mod@pull) from the source, the [`feed`] says what is to be done next, and results go out through
//! [`run`], in a loop or one by one.

mod feed;
mod pull;
mod run;

use std::fmt;
use std::sync::Arc;

use self::pull::{Length, Pull, Skip, pull};
pub(super) use self::pull::{length, pull_into, skip};
pub use self::run::Indexed;
use super::engine::Engine;
use super::progress::{Metered, Progress, Watch};
use super::results::Outbox;
use super::stop::{Control, Flow, Stopper};
use super::{Granularity, StreamSummary};
use crate::context::{self, Named, Worker};
use crate::error::{Error, TaskError};
use crate::life::terms::Terms;
use crate::memory::codec::{Payload, View};
use crate::pool::{Handle, Pool};
use crate::task_fn::TaskFn;

/// The results of a function on the items of a source: an iterator of `Result<R, TaskError>`.
///
/// Lazy: nothing happens before the first `next`, and the source is never pulled further ahead than the window. In
/// the order of the items, unless [`unordered`](Self::unordered). It keeps the pool alive. Dropping it calls off what
/// has not started.
///
/// It ends when its source does, when it is [stopped](Self::stopper), or when the pool takes no more tasks because it was
/// closed, was terminated or failed, or belongs to another process. Every item that was pulled has an outcome then. In the last
/// case one more item is pulled, if the source has one, after all other results have gone out: its outcome, in its place, is the
/// error with which a task would end, so that nobody takes the results for complete.
///
/// ```
/// let pool = forkring::Pool::new(2)?;
/// let squares: Vec<u64> = pool.map(0..5, |n: u64| n * n).map(Result::unwrap).collect();
/// assert_eq!(squares, [0, 1, 4, 9, 16]);
/// # Ok::<(), forkring::Error>(())
/// ```
///
/// Where items take nanoseconds, [`run`](Self::run) takes about two thirds of the iterator's time: it hands results to its function
/// in a loop of its own.
///
/// `P` is who is told of its [progress](Self::on_progress): nobody, unless asked.
#[must_use = "a Map is lazy: iterate over it, or call .run(g)"]
pub struct Map<T, R, P = ()> {
    feed: Feed<T, R>,
    watch: P,
}

/// What a [`Map`] is but for whom it tells of its progress.
struct Feed<T, R> {
    source: Option<T>,
    handle: Handle,
    named: Named,
    terms: Option<Terms>,
    granularity: Granularity,
    window: Option<usize>,
    ordered: bool,
    control: Arc<Control>,
    /// Whether the source was given up before its end.
    cut_short: bool,
    /// Whether something was delivered since the last pull.
    has_delivered: bool,
    /// Made at the first pull, when the options are final.
    engine: Option<Engine<R>>,
    /// Results that have not been asked for.
    out: Outbox<R>,
    pull: Pull<T, R>,
    length: Length<T>,
    skip: Skip<T>,
}

impl<T, R, P> fmt::Debug for Map<T, R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("granularity", &self.feed.granularity)
            .field("ordered", &self.feed.ordered)
            .finish_non_exhaustive()
    }
}

impl<E, S, W> Pool<E, S, W> {
    /// Applies `f` to each item. See [`Map`].
    pub fn map<I, R, T>(&self, items: T, f: impl Fn(I) -> R + TaskFn) -> Map<T::IntoIter, R>
    where
        I: Payload,
        R: Payload,
        T: IntoIterator<Item = I>,
    {
        self.map_named(items, context::plain_task(&f))
    }

    /// Applies `f` to each item, which it reads in place, with the worker at hand. See [`Map`].
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
        self.map_named(items, context::context_task::<_, E, S, W, I, R>(&f))
    }

    /// Applies `f` to items that are borrowed. See [`Map`].
    ///
    /// ```
    /// let pool = forkring::Pool::new(2)?;
    /// let words = ["a".to_owned(), "bc".to_owned()];
    /// let lengths: Vec<usize> = pool.map_ref(&words, |word: String| word.len()).map(Result::unwrap).collect();
    /// assert_eq!(lengths, [1, 2]);
    /// # Ok::<(), forkring::Error>(())
    /// ```
    pub fn map_ref<'a, I, R, T>(&self, items: T, f: impl Fn(I) -> R + TaskFn) -> Map<T::IntoIter, R>
    where
        I: Payload,
        R: Payload,
        T: IntoIterator<Item = &'a I>,
    {
        self.map_ref_named(items, context::plain_task(&f))
    }

    /// Applies `f` to the items and hands each result to `g`, here, as it comes: in no particular order. Before each
    /// pull from the source, `g` gets everything that is there; item by item (`Fixed(1)`), what was there some milliseconds ago.
    ///
    /// `g` may stop the stream: by `ControlFlow::Break`, see [`Map::run`], or by a panic, which goes on in the caller.
    ///
    /// # Errors
    ///
    /// A granularity out of range.
    #[inline]
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

    /// As [`iter_stream`](Self::iter_stream), with the worker and the item in place.
    ///
    /// # Errors
    ///
    /// A granularity out of range.
    #[inline]
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

    pub(crate) fn map_named<I: Payload, R: Payload, T: IntoIterator<Item = I>>(
        &self,
        items: T,
        named: Named,
    ) -> Map<T::IntoIter, R> {
        Map::new(self, items.into_iter(), named, pull::<_, R, I, I>, length, skip)
    }

    pub(crate) fn map_ref_named<'a, I: Payload, R: Payload, T: IntoIterator<Item = &'a I>>(
        &self,
        items: T,
        named: Named,
    ) -> Map<T::IntoIter, R> {
        Map::new(self, items.into_iter(), named, pull::<_, R, I, &I>, length, skip)
    }
}

impl<T, R: Payload> Map<T, R> {
    pub(super) fn new<E, S, W>(
        pool: &Pool<E, S, W>,
        source: T,
        named: Named,
        pull: Pull<T, R>,
        length: Length<T>,
        skip: Skip<T>,
    ) -> Self {
        let feed = Feed {
            control: Arc::new(Control::new(pool.handle().core().clone())),
            cut_short: false,
            has_delivered: false,
            source: Some(source),
            handle: pool.handle().clone(),
            named,
            terms: None,
            granularity: pool.granularity(),
            window: None,
            ordered: true,
            engine: None,
            out: Outbox::default(),
            pull,
            length,
            skip,
        };
        Self { feed, watch: () }
    }

    /// Has `f` told how far the stream is, while its results are delivered: before one goes out of the iterator, after `g` of
    /// [`run`](Self::run) has had it.
    ///
    /// Called here, between two results, whenever 100 ms have passed since the last time or a hundredth of the total has
    /// come, and once at the end. A stream that is dropped before its end has no last call. Nothing is pulled from the
    /// source for it: it counts what has been delivered. The total is what the source's `size_hint` says, if that is exact.
    /// It costs a look at the clock for each result. What [`iter_stream`](Pool::iter_stream) does is
    /// `map(items, f).unordered().on_progress(tell).run(g)`, and [`Bound::map`](crate::Bound::map) takes closures that capture.
    ///
    /// ```
    /// let pool = forkring::Pool::new(2)?;
    /// let mut seen = Vec::new();
    /// let squares = pool.map(0..500_u64, |n: u64| n * n).on_progress(|p| seen.push((p.done, p.total)));
    /// assert_eq!(squares.map(Result::unwrap).sum::<u64>(), 41_541_750);
    /// assert_eq!(seen.last(), Some(&(500, Some(500))));
    /// assert!(seen.len() > 100);
    /// # Ok::<(), forkring::Error>(())
    /// ```
    pub fn on_progress<F: FnMut(Progress)>(self, f: F) -> Map<T, R, Metered<F>> {
        Map { feed: self.feed, watch: Metered::new(f) }
    }
}

impl<T, R: Payload, P: Watch> Map<T, R, P> {
    pub(crate) fn on_terms(mut self, terms: Terms) -> Self {
        self.feed.terms = Some(terms);
        self
    }

    /// Results as they come, instead of in the order of the items.
    pub fn unordered(mut self) -> Self {
        self.feed.ordered = false;
        self
    }

    /// How many items share a message. An invalid one is reported by [`run`](Self::run).
    ///
    /// # Panics
    ///
    /// `next` panics if the granularity is out of range.
    pub fn granularity(mut self, granularity: Granularity) -> Self {
        self.feed.granularity = granularity;
        self
    }

    /// At most about this many items are on their way, or wait for their turn, at a time; rounded up to whole
    /// messages, and the message that is being filled comes on top. Default: a few messages for each worker.
    pub fn window(mut self, items: usize) -> Self {
        self.feed.window = Some(items);
        self
    }

    /// Something that stops this stream from another thread, or from `g`. See [`Stopper::stop`].
    ///
    /// ```
    /// let pool = forkring::Pool::new(1)?;
    /// let mut stream = pool.map(0.., |n: u32| n);
    /// let stopper = stream.stopper();
    /// assert_eq!(stream.next().unwrap()?, 0);
    /// stopper.stop();
    /// // What was on its way comes, or was cancelled; then it is over.
    /// assert!(stream.all(|result| result.is_ok() || result.unwrap_err().is_cancelled()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stopper(&self) -> Stopper {
        self.feed.control.watch();
        if let Some(engine) = &self.feed.engine {
            engine.be_watched();
        }
        Stopper::new(self.feed.control.clone())
    }
}
