//! [`TryMap`]: a stream over a source that may fail.

use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;

use parking_lot::Mutex;

use super::engine::Engine;
use super::map::{Map, length, pull_into, skip};
use super::progress::{Metered, Progress, Watch};
use super::results::{Item, Outbox};
use super::stop::{Flow, Stopper};
use super::{Granularity, StreamSummary};
use crate::context::{self, Named};
use crate::error::{Error, TaskError};
use crate::life::terms::Terms;
use crate::memory::codec::Payload;
use crate::pool::Pool;
use crate::task_fn::TaskFn;

/// The results of a function on the good items of a source that may fail: an iterator of
/// `Result<Result<R, TaskError>, X>`, where `X` is the source's error.
///
/// An error of the source comes in its place; of [`unordered`](Self::unordered) results, as soon as it is pulled. It
/// ends nothing: the stream goes on for as long as the source does. Otherwise as [`Map`]; the item that tells that the pool takes
/// no more tasks may be an error of the source. See [`Pool::try_map`].
#[must_use = "a TryMap is lazy: iterate over it, or call .run(g)"]
pub struct TryMap<T, R, X, P = ()> {
    map: Map<Fallible<T, X>, R, P>,
    errors: Arc<Errors<X>>,
}

/// The source, which leaves its errors aside.
struct Fallible<T, X> {
    source: T,
    errors: Arc<Errors<X>>,
}

/// Errors of the source that were not delivered, with the positions that the stream holds for them, in order: they are
/// delivered in the order in which they were pulled, whether other results are or not.
struct Errors<X>(Mutex<VecDeque<(u64, X)>>);

impl<X> Errors<X> {
    /// What the stream has at this position.
    fn at<R>(&self, index: u64, item: Item<R>) -> Result<Item<R>, X> {
        if item.is_ok() {
            return Ok(item);
        }
        let error = self.0.lock().pop_front_if(|(at, _)| *at == index);
        error.map_or(Ok(item), |(_, error)| Err(error))
    }
}

impl<T, R, X, P> fmt::Debug for TryMap<T, R, X, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TryMap").field(&self.map).finish()
    }
}

fn pull<T, R, I, X>(engine: &mut Engine<R>, source: &mut Option<Fallible<T, X>>, out: &mut Outbox<R>)
where
    T: Iterator<Item = Result<I, X>>,
    R: Payload,
    I: Payload,
{
    let Some(Fallible { source: items, errors }) = source else { return };
    let more = pull_into(engine, items, out, |engine, item, out| match item {
        Ok(item) => engine.push(&item, out),
        Err(error) => {
            errors.0.lock().push_back((engine.pulled, error));
            engine.hold_place(out);
        }
    });
    if !more {
        *source = None;
    }
}

impl<E, S, W> Pool<E, S, W> {
    /// Applies `f` to each good item of a source that may fail, such as the lines of a file. See [`TryMap`].
    ///
    /// ```
    /// let pool = forkring::Pool::new(2)?;
    /// let items = ["1", "2", "x", "4"].map(str::parse::<u32>);
    /// let results: Vec<_> = pool.try_map(items, |n: u32| n * n).collect();
    /// assert!(matches!(results[1], Ok(Ok(4))));
    /// assert!(results[2].is_err()); // the parser's error
    /// assert!(matches!(results[3], Ok(Ok(16))));
    /// # Ok::<(), forkring::Error>(())
    /// ```
    pub fn try_map<I, R, T, X>(&self, items: T, f: impl Fn(I) -> R + TaskFn) -> TryMap<T::IntoIter, R, X>
    where
        I: Payload,
        R: Payload,
        T: IntoIterator<Item = Result<I, X>>,
    {
        self.try_map_named(items, context::plain_task(&f))
    }

    pub(crate) fn try_map_named<I, R, T, X>(&self, items: T, named: Named) -> TryMap<T::IntoIter, R, X>
    where
        I: Payload,
        R: Payload,
        T: IntoIterator<Item = Result<I, X>>,
    {
        let errors = Arc::new(Errors(Mutex::default()));
        let source = Fallible { source: items.into_iter(), errors: errors.clone() };
        let length = |source: &Fallible<T::IntoIter, X>| length(&source.source);
        let skip = |source: &mut Fallible<T::IntoIter, X>| skip(&mut source.source);
        TryMap { map: Map::new(self, source, named, pull::<_, R, I, X>, length, skip), errors }
    }
}

impl<T, R: Payload, X> TryMap<T, R, X> {
    /// As [`Map::on_progress`]. An error of the source counts as an item that failed.
    pub fn on_progress<F: FnMut(Progress)>(self, f: F) -> TryMap<T, R, X, Metered<F>> {
        self.with(|map| map.on_progress(f))
    }
}

impl<T, R: Payload, X, P: Watch> TryMap<T, R, X, P> {
    fn with<Q>(
        self,
        option: impl FnOnce(Map<Fallible<T, X>, R, P>) -> Map<Fallible<T, X>, R, Q>,
    ) -> TryMap<T, R, X, Q> {
        TryMap { map: option(self.map), errors: self.errors }
    }

    pub(crate) fn on_terms(self, terms: Terms) -> Self {
        self.with(|map| map.on_terms(terms))
    }

    /// As [`Map::unordered`].
    pub fn unordered(self) -> Self {
        self.with(Map::unordered)
    }

    /// As [`Map::granularity`]. A message ends before an error of the source.
    ///
    /// # Panics
    ///
    /// `next` panics if the granularity is out of range.
    pub fn granularity(self, granularity: Granularity) -> Self {
        self.with(|map| map.granularity(granularity))
    }

    /// As [`Map::window`].
    pub fn window(self, items: usize) -> Self {
        self.with(|map| map.window(items))
    }

    /// As [`Map::indexed`]. Positions are those in the source, its errors included.
    pub fn indexed(self) -> TryIndexed<T, R, X, P> {
        TryIndexed(self)
    }

    /// As [`Map::stopper`].
    pub fn stopper(&self) -> Stopper {
        self.map.stopper()
    }

    /// As [`Map::run`]. The summary counts an error of the source as an item that failed.
    ///
    /// # Errors
    ///
    /// A granularity out of range.
    pub fn run<F: Flow>(
        self,
        mut g: impl FnMut(Result<Result<R, TaskError>, X>) -> F,
    ) -> Result<StreamSummary, Error> {
        self.indexed().run(move |(_, result)| g(result))
    }

    fn advance(&mut self) -> Option<(u64, Result<Item<R>, X>)> {
        let (index, item) = self.map.advance()?;
        let result = self.errors.at(index, item);
        self.map.note(!matches!(result, Ok(Ok(_))));
        Some((index, result))
    }
}

impl<T, R: Payload, X, P: Watch> Iterator for TryMap<T, R, X, P> {
    type Item = Result<Result<R, TaskError>, X>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().map(|(_, result)| result)
    }
}

impl<T, R: Payload, X, P: Watch> FusedIterator for TryMap<T, R, X, P> {}

/// A [`TryMap`] whose results carry the positions of their items in the source.
#[derive(Debug)]
#[must_use = "it is lazy: iterate over it"]
pub struct TryIndexed<T, R, X, P = ()>(TryMap<T, R, X, P>);

impl<T, R: Payload, X, P: Watch> TryIndexed<T, R, X, P> {
    /// As [`TryMap::run`]: `g` gets each result with the position of its item.
    ///
    /// # Errors
    ///
    /// A granularity out of range.
    pub fn run<F: Flow>(
        self,
        mut g: impl FnMut((u64, Result<Result<R, TaskError>, X>)) -> F,
    ) -> Result<StreamSummary, Error> {
        let TryMap { map, errors } = self.0;
        map.run_judged(move |index, item| {
            let result = errors.at(index, item);
            let failed = !matches!(result, Ok(Ok(_)));
            (failed, g((index, result)))
        })
    }
}

impl<T, R: Payload, X, P: Watch> Iterator for TryIndexed<T, R, X, P> {
    type Item = (u64, Result<Result<R, TaskError>, X>);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.advance()
    }
}

impl<T, R: Payload, X, P: Watch> FusedIterator for TryIndexed<T, R, X, P> {}
