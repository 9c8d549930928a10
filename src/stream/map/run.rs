//! Results go out: to a function in a loop, or one by one.

use std::iter::FusedIterator;
use std::time::Instant;

use super::Map;
use crate::error::{Error, TaskError};
use crate::memory::codec::Payload;
use crate::stream::StreamSummary;
use crate::stream::progress::Watch;
use crate::stream::results::{Item, Part};
use crate::stream::stop::Flow;

impl<T, R: Payload, P: Watch> Map<T, R, P> {
    /// Results together with the positions of their items.
    pub fn indexed(self) -> Indexed<T, R, P> {
        Indexed(self)
    }

    /// Hands every result to `g`, here.
    ///
    /// `g` may return a [`ControlFlow`](std::ops::ControlFlow): a `Break` stops the stream as
    /// [`Stopper::stop`](crate::Stopper::stop) does, and `g` is not called again. `run` does not wait for the items that are
    /// running then. A panic in `g` does the same and goes on in the caller.
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
    pub(in crate::stream) fn run_judged<F: Flow>(
        self,
        mut g: impl FnMut(u64, Item<R>) -> (bool, F),
    ) -> Result<StreamSummary, Error> {
        let Self { mut feed, mut watch } = self;
        let start = Instant::now();
        feed.open()?;
        watch.begin(|| feed.length());
        let (mut done, mut failed, mut broken) = (0, 0, false);
        let mut out = std::mem::take(&mut feed.out);
        'stream: loop {
            let part = match out.pop_part() {
                Some(part) => part,
                None => match feed.turn(&mut out) {
                    Some(run) => Part::Run(run),
                    None => break,
                },
            };
            match part {
                Part::One(index, item) => {
                    let (fails, flow) = g(index, item);
                    (done, failed) = (done + 1, failed + u64::from(fails));
                    watch.note(fails);
                    broken = flow.stops();
                    if broken {
                        break 'stream;
                    }
                }
                Part::Run(run) => {
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
            }
        }
        if broken {
            feed.control.stop();
        }
        watch.end();
        Ok(feed.summary(start, done - failed, failed))
    }

    #[inline(never)]
    fn next_item(&mut self) -> Option<Item<R>> {
        let (_, item) = self.advance()?;
        self.note(item.is_err());
        Some(item)
    }

    /// The next result, which the watch is still to be told of.
    pub(in crate::stream) fn advance(&mut self) -> Option<(u64, Item<R>)> {
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
    pub(in crate::stream) fn note(&mut self, failed: bool) {
        self.watch.note(failed);
    }
}

impl<T, R: Payload, P: Watch> Iterator for Map<T, R, P> {
    type Item = Result<R, TaskError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if let Some(value) = self.feed.out.pop_value() {
            self.note(false);
            return Some(Ok(value));
        }
        self.next_item()
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

impl<T, R: Payload, P: Watch> Indexed<T, R, P> {
    /// As [`Map::run`]: `g` gets each result with the position of its item.
    ///
    /// # Errors
    ///
    /// A granularity out of range.
    #[inline]
    pub fn run<F: Flow>(
        self,
        mut g: impl FnMut((u64, Result<R, TaskError>)) -> F,
    ) -> Result<StreamSummary, Error> {
        self.0.run_judged(move |index, item| {
            let failed = item.is_err();
            (failed, g((index, item)))
        })
    }
}

impl<T, R: Payload, P: Watch> Iterator for Indexed<T, R, P> {
    type Item = (u64, Result<R, TaskError>);

    fn next(&mut self) -> Option<Self::Item> {
        let (index, item) = self.0.advance()?;
        self.0.note(item.is_err());
        Some((index, item))
    }
}

impl<T, R: Payload, P: Watch> FusedIterator for Indexed<T, R, P> {}
