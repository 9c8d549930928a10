//! [`MapStream`]: a stream over an asynchronous source, for async code.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_core::stream::FusedStream;

use super::Granularity;
use super::engine::Engine;
use super::progress::{Metered, Progress, Watch};
use super::results::{Item, Outbox};
use super::stop::{Control, Stopper};
use crate::context::{self, Named, Worker};
use crate::error::TaskError;
use crate::life::service::{NestedWait, nested_wait};
use crate::life::terms::Terms;
use crate::life::wait::Awaited;
use crate::limits::check_granularity;
use crate::memory::codec::{Payload, View};
use crate::pool::{Handle, Pool};
use crate::task_fn::TaskFn;

/// So many items are pulled in one poll at most: a source that always has another one must not keep the executor's
/// other tasks waiting for as long as filling a large window takes.
const PULLS_MAX: usize = 1024;

/// The results of a function on the items of an asynchronous source: a [`Stream`] of `Result<R, TaskError>`, on any
/// runtime or on none.
///
/// As [`Map`](super::Map), of which it has the options, but nothing blocks. Results of earlier items come while the
/// source is pending; what has been pulled of a message is sent then, whatever the granularity. The source is polled
/// only while the window has room, so a consumer that is slow slows the source down. It is dropped as soon as it has
/// ended. When the pool takes no more tasks, and all other results have gone out, it is polled once more: an item that is ready
/// then ends with the error that says so; if the source is pending, the stream just ends.
///
/// Cancellation-safe: a future of the next result that is abandoned loses nothing. The task that polled last is woken.
/// Dropping the stream calls off what has not started; what is running can see that it is cancelled
/// ([`Worker::cancelled`]), and is not waited for.
///
/// ```
/// use futures::StreamExt;
///
/// let pool = forkring::Pool::new(2)?;
/// let source = futures::stream::iter(0..5_u64);
/// let squares = pool.map_stream(source, |n: u64| n * n).map(Result::unwrap).collect::<Vec<_>>();
/// assert_eq!(futures::executor::block_on(squares), [0, 1, 4, 9, 16]);
/// # Ok::<(), forkring::Error>(())
/// ```
///
/// `P` is who is told of its [progress](Self::on_progress): nobody, unless asked.
#[must_use = "a MapStream is lazy: poll it"]
pub struct MapStream<T, R, P = ()> {
    feed: Feed<T, R>,
    watch: P,
}

/// What a [`MapStream`] is but for whom it tells of its progress.
struct Feed<T, R> {
    /// `None`: it has ended or was given up. In a box, so that the stream is `Unpin` and the source goes when it ends.
    source: Option<Pin<Box<T>>>,
    named: Named,
    terms: Option<Terms>,
    granularity: Granularity,
    window: Option<usize>,
    ordered: bool,
    control: Arc<Control>,
    /// Made at the first poll, when the options are final.
    engine: Option<Engine<R>>,
    /// Results that have not been asked for.
    out: Outbox<R>,
    sleeper: Sleeper,
    ended: bool,
}

impl<T, R, P> fmt::Debug for MapStream<T, R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapStream")
            .field("granularity", &self.feed.granularity)
            .field("ordered", &self.feed.ordered)
            .finish_non_exhaustive()
    }
}

/// A stream that waits counts as a sleeper of its pool until it is polled again or dropped.
struct Sleeper {
    handle: Handle,
    counted: bool,
    nested: NestedWait,
}

impl Sleeper {
    fn sleep(&mut self) {
        if !std::mem::replace(&mut self.counted, true) {
            self.handle.core().add_sleeper();
        }
        self.handle.core().stop_watching();
    }

    fn wake(&mut self) {
        if std::mem::take(&mut self.counted) {
            self.nested = NestedWait::default();
            self.handle.core().remove_sleeper();
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.wake();
    }
}

impl<E, S, W> Pool<E, S, W> {
    /// Applies `f` to each item of an asynchronous source. See [`MapStream`].
    ///
    /// ```
    /// use futures::{SinkExt, StreamExt};
    ///
    /// let pool = forkring::Pool::new(2)?;
    /// let (mut lines, source) = futures::channel::mpsc::channel::<String>(10);
    /// let mut lengths = pool.map_stream(source, |line: String| line.len());
    /// futures::executor::block_on(async {
    ///     lines.send("a line".into()).await?;
    ///     // The source has no more for the moment, and the result comes.
    ///     assert_eq!(lengths.next().await.unwrap()?, 6);
    ///     drop(lines);
    ///     assert!(lengths.next().await.is_none());
    ///     Ok::<(), Box<dyn std::error::Error>>(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map_stream<I, R, T>(&self, items: T, f: impl Fn(I) -> R + TaskFn) -> MapStream<T, R>
    where
        I: Payload,
        R: Payload,
        T: Stream<Item = I>,
    {
        self.map_stream_named(items, context::plain_task(&f))
    }

    /// As [`map_stream`](Self::map_stream), with the worker and the item in place.
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
        self.map_stream_named(items, context::context_task::<_, E, S, W, I, R>(&f))
    }

    pub(crate) fn map_stream_named<R: Payload, T: Stream>(&self, items: T, named: Named) -> MapStream<T, R> {
        let feed = Feed {
            source: Some(Box::pin(items)),
            control: Arc::new(Control::new(self.handle().core().clone())),
            sleeper: Sleeper { handle: self.handle().clone(), counted: false, nested: NestedWait::default() },
            named,
            terms: None,
            granularity: self.granularity(),
            window: None,
            ordered: true,
            engine: None,
            out: Outbox::default(),
            ended: false,
        };
        MapStream { feed, watch: () }
    }
}

impl<T, R: Payload> MapStream<T, R> {
    /// As [`Map::on_progress`](super::Map::on_progress). `f` is called inside of the poll that a result goes out of, before that
    /// result, and of the poll that ends the stream; it should not block. While nothing comes, nothing is told: neither a
    /// pending source nor a task that runs for long is news. A stream that is dropped before its end has no last call.
    ///
    /// ```
    /// use futures::StreamExt;
    ///
    /// let pool = forkring::Pool::new(2)?;
    /// let mut seen = Vec::new();
    /// let squares = pool.map_stream(futures::stream::iter(0..500_u64), |n: u64| n * n);
    /// let squares = squares.on_progress(|p| seen.push((p.done, p.total))).map(Result::unwrap);
    /// let sum = futures::executor::block_on(squares.fold(0, async |sum, n| sum + n));
    /// assert_eq!(sum, 41_541_750);
    /// assert_eq!(seen.last(), Some(&(500, Some(500))));
    /// assert!(seen.len() > 100);
    /// # Ok::<(), forkring::Error>(())
    /// ```
    pub fn on_progress<F: FnMut(Progress)>(self, f: F) -> MapStream<T, R, Metered<F>> {
        MapStream { feed: self.feed, watch: Metered::new(f) }
    }
}

impl<T, R: Payload, P: Watch> MapStream<T, R, P> {
    pub(crate) fn on_terms(mut self, terms: Terms) -> Self {
        self.feed.terms = Some(terms);
        self
    }

    /// Results as they come, instead of in the order of the items. As are all options, to be said before the first poll.
    pub fn unordered(mut self) -> Self {
        self.feed.ordered = false;
        self
    }

    /// How many items share a message. Fewer do when the source is pending.
    ///
    /// # Panics
    ///
    /// Polling panics if the granularity is out of range.
    pub fn granularity(mut self, granularity: Granularity) -> Self {
        self.feed.granularity = granularity;
        self
    }

    /// As [`Map::window`](super::Map::window).
    pub fn window(mut self, items: usize) -> Self {
        self.feed.window = Some(items);
        self
    }

    /// Results together with the positions of their items.
    pub fn indexed(self) -> IndexedStream<T, R, P> {
        IndexedStream(self)
    }

    /// Something that stops this stream, from any thread or task. See [`Stopper::stop`].
    pub fn stopper(&self) -> Stopper {
        self.feed.control.watch();
        if let Some(engine) = &self.feed.engine {
            engine.be_watched();
        }
        Stopper::new(self.feed.control.clone())
    }
}

/// What pulling ended with.
enum Pulled {
    /// There are results, or something to read.
    News,
    /// The window is full, the source is pending or it has ended: there is nothing to do but wait.
    Nothing,
    /// There is more to pull, after others had their turn.
    Enough,
}

impl<T: Stream<Item: Payload>, R: Payload, P: Watch> MapStream<T, R, P> {
    fn poll_result(&mut self, context: &mut Context<'_>) -> Poll<Option<(u64, Item<R>)>> {
        let feed = &self.feed;
        self.watch.begin(|| feed.length());
        let result = self.feed.poll_result(context);
        match &result {
            Poll::Ready(Some((_, item))) => self.watch.note(item.is_err()),
            Poll::Ready(None) => self.watch.end(),
            Poll::Pending => {}
        }
        result
    }
}

impl<T: Stream<Item: Payload>, R: Payload> Feed<T, R> {
    /// How many items the source has, if it says so exactly.
    fn length(&self) -> Option<u64> {
        let (least, most) = self.source.as_ref()?.size_hint();
        most.filter(|&most| most == least).map(|most| most as u64)
    }

    fn make_engine(&mut self) -> Engine<R> {
        check_granularity(self.granularity).unwrap_or_else(|error| panic!("{error}"));
        let (handle, control) = (self.sleeper.handle.clone(), self.control.clone());
        let (granularity, window) = (self.granularity, self.window);
        let mut engine =
            Engine::new(handle, control, self.named, granularity, window, self.ordered, self.terms);
        engine.expect(self.length());
        engine
    }

    /// Pulls items until the window is full, something has come, or the source has none for the moment.
    fn pull(
        engine: &mut Engine<R>,
        source: &mut Option<Pin<Box<T>>>,
        out: &mut Outbox<R>,
        budget: &mut usize,
        context: &mut Context<'_>,
    ) -> Pulled {
        let waiting = out.len();
        let room = engine.room(waiting);
        while let Some(items) = source {
            if engine.is_over() {
                engine.flush(out);
                if engine.is_stopped() {
                    *source = None;
                } else if engine.is_empty() && out.is_empty() {
                    Self::give_up(engine, source, out, context);
                }
                break;
            }
            if !engine.wants_items(room) {
                break;
            }
            if *budget == 0 {
                return Pulled::Enough;
            }
            match items.as_mut().poll_next(context) {
                Poll::Ready(Some(item)) => engine.push(&item, out),
                Poll::Ready(None) => {
                    *source = None;
                    engine.flush(out);
                }
                Poll::Pending => {
                    // Nobody knows when there will be another one.
                    engine.flush(out);
                    break;
                }
            }
            *budget -= 1;
            if engine.has_quick_news() || out.len() > waiting {
                return Pulled::News;
            }
        }
        if engine.has_news() || !out.is_empty() { Pulled::News } else { Pulled::Nothing }
    }

    /// The pool takes nothing more, and all else has gone out: the next item tells, if the source has it ready.
    fn give_up(
        engine: &mut Engine<R>,
        source: &mut Option<Pin<Box<T>>>,
        out: &mut Outbox<R>,
        context: &mut Context<'_>,
    ) {
        let next = source.take().map(|mut source| source.as_mut().poll_next(context));
        if let Some(Poll::Ready(Some(_))) = next {
            engine.refuse_item(out);
        }
    }

    fn poll_result(&mut self, context: &mut Context<'_>) -> Poll<Option<(u64, Item<R>)>> {
        if self.out.is_low() {
            if self.engine.is_none() {
                self.engine = Some(self.make_engine());
            }
            if self.fetch(context).is_pending() {
                return Poll::Pending;
            }
        }
        let result = self.out.pop();
        self.ended = result.is_none();
        Poll::Ready(result)
    }

    /// Has results wait in `out`, if any are to come. A consumer that works through many must not let the workers run dry.
    fn fetch(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Self { engine: Some(engine), source, out, sleeper, .. } = self else { return Poll::Ready(()) };
        if !engine.is_here() {
            engine.disown(out);
            Self::give_up(engine, source, out, context);
            return Poll::Ready(());
        }
        sleeper.wake();
        let mut budget = PULLS_MAX;
        // What is there already goes out first, unless the workers need more than it.
        let refill = !out.is_empty();
        loop {
            let news = engine.has_news();
            if news {
                engine.collect(out);
            }
            if news && !out.is_empty() && !refill {
                break;
            }
            let pulled = Self::pull(engine, source, out, &mut budget, context);
            if !out.is_empty() {
                break;
            }
            match pulled {
                Pulled::News => {}
                Pulled::Enough => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Pulled::Nothing if source.is_none() && engine.is_empty() => break,
                Pulled::Nothing => {
                    let news = engine.mind_slow_items(out);
                    if !out.is_empty() {
                        break;
                    }
                    if news {
                        continue;
                    }
                    if engine.register(context.waker()).is_pending() {
                        // In this order: what comes in between rings the driver, which wakes.
                        sleeper.sleep();
                        sleeper.nested = nested_wait(sleeper.handle.core(), engine);
                        return Poll::Pending;
                    }
                }
            }
        }
        out.set_low_mark(if source.is_some() { engine.low_mark() } else { 0 });
        Poll::Ready(())
    }
}

impl<T: Stream<Item: Payload>, R: Payload, P: Watch> Stream for MapStream<T, R, P> {
    type Item = Result<R, TaskError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = self.get_mut();
        if let Some(value) = stream.feed.out.pop_value() {
            stream.watch.note(false);
            return Poll::Ready(Some(Ok(value)));
        }
        stream.poll_result(context).map(|result| result.map(|(_, item)| item))
    }
}

/// Nothing but the source is ever pinned, and that is in a box.
impl<T, R, P> Unpin for MapStream<T, R, P> {}

impl<T: Stream<Item: Payload>, R: Payload, P: Watch> FusedStream for MapStream<T, R, P> {
    fn is_terminated(&self) -> bool {
        self.feed.ended
    }
}

/// A [`MapStream`] whose results carry the positions of their items.
///
/// ```
/// use futures::StreamExt;
///
/// let pool = forkring::Pool::new(2)?;
/// let mut stream = pool.map_stream(futures::stream::iter(10..20), |n: u64| n).unordered().indexed();
/// futures::executor::block_on(async {
///     while let Some((index, result)) = stream.next().await {
///         assert_eq!(result.unwrap(), index + 10);
///     }
/// });
/// # Ok::<(), forkring::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "it is lazy: poll it"]
pub struct IndexedStream<T, R, P = ()>(MapStream<T, R, P>);

impl<T: Stream<Item: Payload>, R: Payload, P: Watch> Stream for IndexedStream<T, R, P> {
    type Item = (u64, Result<R, TaskError>);

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.poll_result(context)
    }
}

impl<T: Stream<Item: Payload>, R: Payload, P: Watch> FusedStream for IndexedStream<T, R, P> {
    fn is_terminated(&self) -> bool {
        self.0.feed.ended
    }
}
