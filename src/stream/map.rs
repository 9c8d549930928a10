//! [`Map`]: a stream as an iterator.

use std::borrow::Borrow;
use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::time::Instant;

use super::engine::{Deliver, Engine, Item, Run};
use super::progress::{Metered, Progress, Watch};
use super::stop::{Control, Flow, Stopper};
use super::{Granularity, StreamSummary};
use crate::context::{self, Named, Worker};
use crate::error::{Error, TaskError};
use crate::life::terms::Terms;
use crate::limits::check_granularity;
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
/// closed, was terminated or failed: every item that was pulled has an outcome then, and the source is not pulled again.
///
/// ```
/// let pool = forkring::Pool::new(2)?;
/// let squares: Vec<u64> = pool.map(0..5, |n: u64| n * n).map(Result::unwrap).collect();
/// assert_eq!(squares, [0, 1, 4, 9, 16]);
/// # Ok::<(), forkring::Error>(())
/// ```
///
/// Where items take nanoseconds, [`run`](Self::run) is several times as fast as the iterator: it hands results to its function
/// in a loop of its own, without an `Option<Result<R, TaskError>>` that goes through memory for each.
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
    out: VecDeque<(u64, Item<R>)>,
    /// While fewer of them wait, there is something to do before the next one goes out.
    low_mark: usize,
    pull: Pull<T, R>,
    length: Length<T>,
}

/// How many items a source has, if it says so exactly.
pub(super) type Length<T> = fn(&T) -> Option<u64>;

pub(super) fn length<T: Iterator>(source: &T) -> Option<u64> {
    let (least, most) = source.size_hint();
    most.filter(|&most| most == least).map(|most| most as u64)
}

/// Pulls items from the source into the engine until the window is full, results have come, or the source ends, which
/// is then let go. A pointer, so that `Map` has no type parameter for the item; the loop is inside of it, since a call for
/// each item would cost as much as the item. The number is that of results that wait to be asked for.
pub(super) type Pull<T, R> = fn(&mut Engine<R>, &mut Option<T>, usize, &mut Sink<'_, R>);

/// Where a pull leaves results that need no worker.
pub(super) type Sink<'a, R> = dyn FnMut(u64, Item<R>) + 'a;

fn pull<T, R, I, B>(engine: &mut Engine<R>, source: &mut Option<T>, waiting: usize, deliver: &mut Sink<'_, R>)
where
    T: Iterator<Item = B>,
    R: Payload,
    I: Payload,
    B: Borrow<I>,
{
    if engine.fills::<I>() {
        return pull_plain::<T, R, I, B>(engine, source, waiting, deliver);
    }
    let more = source.as_mut().is_some_and(|source| {
        pull_into(engine, source, waiting, deliver, |engine, item, mut deliver| {
            engine.push(item.borrow(), &mut deliver);
        })
    });
    if !more {
        *source = None;
    }
}

/// As [`pull_into`], for items that are filled into a message in one loop.
#[inline]
fn pull_plain<T, R, I, B>(
    engine: &mut Engine<R>,
    source: &mut Option<T>,
    waiting: usize,
    deliver: &mut Sink<'_, R>,
) where
    T: Iterator<Item = B>,
    R: Payload,
    I: Payload,
    B: Borrow<I>,
{
    let room = engine.room(waiting);
    let delivered = Cell::new(false);
    let mut deliver = |index, item| {
        delivered.set(true);
        deliver(index, item);
    };
    while engine.wants_items(room) {
        if !engine.fill::<T, I, B>(source, room, &mut deliver) {
            *source = None;
            return engine.flush(&mut deliver);
        }
        if engine.has_news() || delivered.get() || engine.is_over() {
            break;
        }
    }
}

/// The loop of a [`Pull`], around what is to be done with an item. `false`: the source has ended.
#[inline]
pub(super) fn pull_into<T: Iterator, R: Payload>(
    engine: &mut Engine<R>,
    source: &mut T,
    waiting: usize,
    deliver: &mut Sink<'_, R>,
    push: impl Fn(&mut Engine<R>, T::Item, &mut Sink<'_, R>),
) -> bool {
    let room = engine.room(waiting);
    let delivered = Cell::new(false);
    let mut deliver = |index, item| {
        delivered.set(true);
        deliver(index, item);
    };
    while engine.wants_items(room) {
        let Some(item) = source.next() else {
            engine.flush(&mut deliver);
            return false;
        };
        push(engine, item, &mut deliver);
        if engine.has_quick_news() || delivered.get() || engine.is_over() {
            break;
        }
    }
    true
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
    /// pull from the source, `g` gets everything that is there.
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
        Map::new(self, items.into_iter(), named, pull::<_, R, I, I>, length)
    }

    pub(crate) fn map_ref_named<'a, I: Payload, R: Payload, T: IntoIterator<Item = &'a I>>(
        &self,
        items: T,
        named: Named,
    ) -> Map<T::IntoIter, R> {
        Map::new(self, items.into_iter(), named, pull::<_, R, I, &I>, length)
    }
}

impl<T, R: Payload> Map<T, R> {
    pub(super) fn new<E, S, W>(
        pool: &Pool<E, S, W>,
        source: T,
        named: Named,
        pull: Pull<T, R>,
        length: Length<T>,
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
            out: VecDeque::new(),
            low_mark: 0,
            pull,
            length,
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
    /// messages. Default: a few messages for each worker.
    pub fn window(mut self, items: usize) -> Self {
        self.feed.window = Some(items);
        self
    }

    /// Results together with the positions of their items.
    pub fn indexed(self) -> Indexed<T, R, P> {
        Indexed(self)
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

    /// Hands every result to `g`, here.
    ///
    /// `g` may return a [`ControlFlow`](std::ops::ControlFlow): a `Break` stops the stream as [`Stopper::stop`] does, and
    /// `g` is not called again. `run` does not wait for the items that are running then. A panic in `g` does the same and
    /// goes on in the caller.
    ///
    /// # Errors
    ///
    /// A granularity out of range.
    #[inline]
    pub fn run<F: Flow>(self, mut g: impl FnMut(Result<R, TaskError>) -> F) -> Result<StreamSummary, Error> {
        self.run_judged(move |_, item| {
            let failed = item.is_err();
            (failed, g(item))
        })
    }

    /// As [`run`](Self::run). `g` also says whether its item failed.
    ///
    /// Small, so that it becomes part of its caller: nothing that `g` captures is then seen by any other code, and what it
    /// counts stays in registers while a run of values goes by.
    #[inline]
    pub(super) fn run_judged<F: Flow>(
        self,
        mut g: impl FnMut(u64, Item<R>) -> (bool, F),
    ) -> Result<StreamSummary, Error> {
        let Self { mut feed, mut watch } = self;
        let start = Instant::now();
        feed.open()?;
        watch.begin(|| feed.length());
        let (mut done, mut failed, mut broken) = (0, 0, false);
        let mut items = Vec::new();
        'stream: while let Some(run) = feed.turn(&mut items) {
            for (index, item) in items.drain(..) {
                let (fails, flow) = g(index, item);
                (done, failed) = (done + 1, failed + u64::from(fails));
                watch.note(fails);
                broken = flow.stops();
                if broken {
                    break 'stream;
                }
            }
            for (index, value) in (run.first..).zip(run.values()) {
                let (fails, flow) = g(index, Ok(value));
                (done, failed) = (done + 1, failed + u64::from(fails));
                watch.note(fails);
                broken = flow.stops();
                if broken {
                    break 'stream;
                }
            }
        }
        if broken {
            feed.control.stop();
        }
        watch.end();
        Ok(feed.summary(start, done - failed, failed))
    }

    /// The next result, which the watch is still to be told of.
    #[inline]
    pub(super) fn advance(&mut self) -> Option<(u64, Item<R>)> {
        if let Err(error) = self.feed.open() {
            panic!("{error}");
        }
        let feed = &self.feed;
        self.watch.begin(|| feed.length());
        let next = self.feed.advance();
        if next.is_none() {
            self.watch.end();
        }
        next
    }

    /// A result goes out.
    #[inline]
    pub(super) fn note(&mut self, failed: bool) {
        self.watch.note(failed);
    }
}

impl<T, R: Payload> Feed<T, R> {
    fn length(&self) -> Option<u64> {
        self.source.as_ref().and_then(self.length)
    }

    #[inline]
    fn open(&mut self) -> Result<(), Error> {
        if self.engine.is_none() { self.make_engine() } else { Ok(()) }
    }

    fn make_engine(&mut self) -> Result<(), Error> {
        check_granularity(self.granularity)?;
        let (handle, control) = (self.handle.clone(), self.control.clone());
        let mut engine =
            Engine::new(handle, control, self.named, self.granularity, self.window, self.ordered, self.terms);
        engine.expect(self.length());
        self.engine = Some(engine);
        Ok(())
    }

    fn summary(&self, start: Instant, ok: u64, failed: u64) -> StreamSummary {
        let (items, batches) = self.engine.as_ref().map_or((0, 0), |engine| (engine.pulled, engine.messages));
        let stopped = self.cut_short || self.control.is_stopped();
        StreamSummary { items, ok, failed, batches, elapsed: start.elapsed(), stopped }
    }

    /// The next results to be delivered: first those that are put into `items`, which is empty, then those of the run. `None`:
    /// the stream is over. Whatever is there goes out before the source is pulled, which may block.
    #[inline(never)]
    fn turn(&mut self, items: &mut Vec<(u64, Item<R>)>) -> Option<Run<'_, R>> {
        let mut deliver = |index, item| items.push((index, item));
        while self.is_here(&mut deliver) {
            let engine = self.engine.as_mut()?;
            if engine.is_reading() {
                return self.engine.as_mut()?.read_note(&mut deliver);
            }
            // Between two deliveries the source is pulled once at least.
            if !std::mem::take(&mut self.has_delivered) {
                if engine.collect_singles(&mut deliver) {
                    self.has_delivered = true;
                    return self.engine.as_ref().map(Engine::run_of_singles);
                }
                if engine.gather() {
                    self.has_delivered = true;
                    continue;
                }
            }
            let delivered = Cell::new(false);
            let more = self.go_on(&mut |index, item| {
                delivered.set(true);
                deliver(index, item);
            });
            if delivered.get() {
                return Some(Run::empty());
            }
            if !more {
                return None;
            }
        }
        (!items.is_empty()).then(Run::empty)
    }

    /// Delivers what has come, else fills the window, or waits if there is nothing to do. `false`: the stream is over.
    fn step(&mut self, deliver: &mut impl Deliver<R>) -> bool {
        if !self.is_here(deliver) {
            return false;
        }
        match &mut self.engine {
            Some(engine) if engine.has_news() => {
                engine.collect(deliver);
                true
            }
            _ => self.go_on(deliver),
        }
    }

    /// Whether this is the process of the pool. In another one the stream ends.
    fn is_here(&mut self, deliver: &mut impl Deliver<R>) -> bool {
        let Some(engine) = &mut self.engine else { return false };
        let here = engine.is_here();
        if !here {
            self.cut_short |= self.source.take().is_some();
            engine.disown(deliver);
        }
        here
    }

    /// Fills the window, or waits if there is nothing to do. `false`: the stream is over.
    fn go_on(&mut self, deliver: &mut impl Deliver<R>) -> bool {
        let delivered = Cell::new(false);
        self.refill(0, &mut |index, item| {
            delivered.set(true);
            deliver.one(index, item);
        });
        let Some(engine) = &self.engine else { return false };
        if engine.has_news() || delivered.get() {
            return true;
        }
        if self.source.is_none() && engine.is_empty() {
            return false;
        }
        let Some(engine) = &mut self.engine else { return false };
        engine.mind_slow_items(&mut |index, item| {
            delivered.set(true);
            deliver.one(index, item);
        });
        if !delivered.get() {
            engine.wait();
        }
        true
    }

    /// Pulls items while so many results wait to be asked for, or gives the source up if the stream is over.
    fn refill(&mut self, waiting: usize, deliver: &mut impl FnMut(u64, Item<R>)) {
        let Some(engine) = self.engine.as_mut().filter(|_| self.source.is_some()) else { return };
        if engine.is_over() {
            self.cut_short = true;
            self.source = None;
            engine.flush(deliver);
        } else {
            (self.pull)(engine, &mut self.source, waiting, deliver);
        }
    }

    /// The next result.
    #[inline]
    fn advance(&mut self) -> Option<(u64, Item<R>)> {
        if self.out.len() < self.low_mark.max(1) {
            self.fetch();
        }
        self.out.pop_front()
    }

    /// Has results wait, if any are to come. A consumer that works through many must not let the workers run dry.
    fn fetch(&mut self) {
        let mut out = std::mem::take(&mut self.out);
        if !out.is_empty() && self.source.is_some() {
            // What has come makes the next pull end early.
            if let Some(engine) = self.engine.as_mut().filter(|engine| engine.has_news() && engine.is_here())
            {
                engine.collect(&mut Waiting(&mut out));
            }
            let waiting = out.len();
            self.refill(waiting, &mut |index, item| out.push_back((index, item)));
        }
        while out.is_empty() && self.step(&mut Waiting(&mut out)) {}
        self.out = out;
        let engine = self.engine.as_ref().filter(|_| self.source.is_some());
        self.low_mark = engine.map_or(0, Engine::low_mark);
    }
}

/// Where an iterator's results wait to be asked for.
pub(super) struct Waiting<'a, R>(pub(super) &'a mut VecDeque<(u64, Item<R>)>);

impl<R> Deliver<R> for Waiting<'_, R> {
    #[inline]
    fn one(&mut self, index: u64, item: Item<R>) {
        self.0.push_back((index, item));
    }

    #[inline]
    fn run(&mut self, first: u64, values: impl Iterator<Item = R>) {
        self.0.extend((first..).zip(values.map(Ok)));
    }
}

impl<T, R: Payload, P: Watch> Iterator for Map<T, R, P> {
    type Item = Result<R, TaskError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (_, item) = self.advance()?;
        self.note(item.is_err());
        Some(item)
    }
}

impl<T, R: Payload, P: Watch> FusedIterator for Map<T, R, P> {}

/// A [`Map`] whose results carry the positions of their items.
///
/// ```
/// let pool = forkring::Pool::new(2)?;
/// for (index, result) in pool.map(10..20, |n: usize| n).unordered().indexed() {
///     assert_eq!(result.unwrap(), index as usize + 10);
/// }
/// # Ok::<(), forkring::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "it is lazy: iterate over it"]
pub struct Indexed<T, R, P = ()>(Map<T, R, P>);

impl<T, R: Payload, P: Watch> Iterator for Indexed<T, R, P> {
    type Item = (u64, Result<R, TaskError>);

    fn next(&mut self) -> Option<Self::Item> {
        let (index, item) = self.0.advance()?;
        self.0.note(item.is_err());
        Some((index, item))
    }
}

impl<T, R: Payload, P: Watch> FusedIterator for Indexed<T, R, P> {}
