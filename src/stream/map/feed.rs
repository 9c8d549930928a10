//! What a stream does next: results that have come are delivered, else the window is filled, else there is something to wait for.

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Instant;

use super::Feed;
use crate::error::Error;
use crate::ground::sys::clock;
use crate::limits::check_granularity;
use crate::memory::codec::Payload;
use crate::stream::StreamSummary;
use crate::stream::engine::{Deliver, Engine, Item, Run};

impl<T, R: Payload> Feed<T, R> {
    #[inline]
    pub(super) fn length(&self) -> Option<u64> {
        self.source.as_ref().and_then(self.length)
    }

    #[inline]
    pub(super) fn open(&mut self) -> Result<(), Error> {
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

    pub(super) fn summary(&self, start: Instant, ok: u64, failed: u64) -> StreamSummary {
        let (items, batches) = self.engine.as_ref().map_or((0, 0), |engine| (engine.pulled, engine.messages));
        let stopped = self.cut_short || self.control.is_stopped();
        StreamSummary { items, ok, failed, batches, elapsed: start.elapsed(), stopped }
    }

    /// The next results to be delivered: first those that are put into `items`, which is empty, then those of the run. `None`:
    /// the stream is over. Whatever is there goes out before the source is pulled, which may block.
    #[inline(never)]
    pub(super) fn turn(&mut self, items: &mut Vec<(u64, Item<R>)>) -> Option<Run<'_, R>> {
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
        let news = engine.mind_slow_items(&mut |index, item| {
            delivered.set(true);
            deliver.one(index, item);
        });
        if !news && !delivered.get() {
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
    pub(super) fn advance(&mut self) -> Option<(u64, Item<R>)> {
        if self.out.len() < self.low_mark.max(1) {
            self.fetch();
        }
        self.out.pop_front()
    }

    /// Has results wait, if any are to come. A consumer that works through many must not let the workers run dry; but where the
    /// source is what takes time, those that wait go out before it is pulled again.
    fn fetch(&mut self) {
        let mut out = std::mem::take(&mut self.out);
        let mut is_slow = false;
        if !out.is_empty() && self.source.is_some() {
            // What has come makes the next pull end early.
            if let Some(engine) = self.engine.as_mut().filter(|engine| engine.has_news() && engine.is_here())
            {
                engine.collect(&mut Waiting(&mut out));
            }
            let (waiting, before_ns) = (out.len(), clock::coarse_now_ns());
            self.refill(waiting, &mut |index, item| out.push_back((index, item)));
            // A tick is some milliseconds. One that comes by chance costs a short row of results without a pull.
            is_slow = clock::coarse_now_ns() != before_ns;
        }
        while out.is_empty() && self.step(&mut Waiting(&mut out)) {}
        self.out = out;
        let engine = self.engine.as_ref().filter(|_| self.source.is_some() && !is_slow);
        self.low_mark = engine.map_or(0, Engine::low_mark);
    }
}

/// Where an iterator's results wait to be asked for.
pub(in crate::stream) struct Waiting<'a, R>(pub(in crate::stream) &'a mut VecDeque<(u64, Item<R>)>);

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
