//! What a stream does next: results that have come are delivered, else the window is filled, else there is something to wait for.

use std::time::Instant;

use super::Feed;
use crate::error::Error;
use crate::ground::sys::clock;
use crate::limits::check_granularity;
use crate::memory::codec::Payload;
use crate::stream::StreamSummary;
use crate::stream::engine::Engine;
use crate::stream::results::{Item, Outbox, Run};

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

    /// The results that go out next: they are put into `out`, which is empty, or are the values of the run. `None`: the stream is
    /// over. Whatever is there goes out before the source is pulled, which may block.
    #[inline(never)]
    pub(super) fn turn(&mut self, out: &mut Outbox<R>) -> Option<Run<'_, R>> {
        while self.is_here(out) {
            let engine = self.engine.as_mut()?;
            if engine.is_reading() {
                let run = self.engine.as_mut()?.read_note(out)?;
                return Some(out.behind(run));
            }
            // Between two deliveries the source is pulled once at least.
            if !std::mem::take(&mut self.has_delivered) {
                if engine.collect_singles(out) {
                    self.has_delivered = true;
                    let run = self.engine.as_ref()?.run_of_singles();
                    return Some(out.behind(run));
                }
                if engine.gather() {
                    self.has_delivered = true;
                    continue;
                }
            }
            let more = self.go_on(out);
            if !out.is_empty() {
                break;
            }
            if !more {
                return None;
            }
        }
        (!out.is_empty()).then(|| Run::new(0, &[]))
    }

    /// Delivers what has come, else fills the window, or waits if there is nothing to do. `false`: the stream is over.
    fn step(&mut self, out: &mut Outbox<R>) -> bool {
        if !self.is_here(out) {
            return false;
        }
        match &mut self.engine {
            Some(engine) if engine.has_news() => {
                engine.collect(out);
                true
            }
            _ => self.go_on(out),
        }
    }

    /// Whether this is the process of the pool. In another one the stream ends.
    fn is_here(&mut self, out: &mut Outbox<R>) -> bool {
        let Some(engine) = &mut self.engine else { return false };
        let here = engine.is_here();
        if !here {
            engine.disown(out);
            self.give_up(out);
        }
        here
    }

    /// Fills the window, or waits if there is nothing to do; `out` is empty. `false`: the stream is over.
    fn go_on(&mut self, out: &mut Outbox<R>) -> bool {
        self.refill(out);
        let Some(engine) = &mut self.engine else { return false };
        if engine.has_news() || !out.is_empty() {
            return true;
        }
        if self.source.is_none() && engine.is_empty() {
            return false;
        }
        if !engine.mind_slow_items(out) && out.is_empty() {
            engine.wait();
        }
        true
    }

    /// Pulls items while the results in `out` wait to be asked for, or gives the source up if the stream is over.
    fn refill(&mut self, out: &mut Outbox<R>) {
        let Some(engine) = self.engine.as_mut().filter(|_| self.source.is_some()) else { return };
        if !engine.is_over() {
            return (self.pull)(engine, &mut self.source, out);
        }
        engine.flush(out);
        if engine.is_stopped() {
            self.cut_short = true;
            self.source = None;
        } else if engine.is_empty() && out.is_empty() {
            self.give_up(out);
        }
    }

    /// The pool takes nothing more, and all else has gone out, since the source may block: the next item tells, if there is one.
    fn give_up(&mut self, out: &mut Outbox<R>) {
        let Some((engine, mut source)) = self.engine.as_mut().zip(self.source.take()) else { return };
        self.cut_short = (self.skip)(&mut source);
        if self.cut_short {
            engine.refuse_item(out);
        }
    }

    /// The next result.
    pub(super) fn advance(&mut self) -> Option<(u64, Item<R>)> {
        if self.out.is_low() {
            self.fetch();
        }
        self.out.pop()
    }

    /// Has results wait, if any are to come. A consumer that works through many must not let the workers run dry; but where the
    /// source is what takes time, those that wait go out before it is pulled again.
    fn fetch(&mut self) {
        if let Err(error) = self.open() {
            panic!("{error}");
        }
        let mut out = std::mem::take(&mut self.out);
        let mut is_slow = false;
        if !out.is_empty() && self.source.is_some() {
            // What has come makes the next pull end early.
            if let Some(engine) = self.engine.as_mut().filter(|engine| engine.has_news() && engine.is_here())
            {
                engine.collect(&mut out);
            }
            let before_ns = clock::coarse_now_ns();
            self.refill(&mut out);
            // A tick is some milliseconds. One that comes by chance costs a short row of results without a pull.
            is_slow = clock::coarse_now_ns() != before_ns;
        }
        while out.is_empty() && self.step(&mut out) {}
        self.out = out;
        let engine = self.engine.as_ref().filter(|_| self.source.is_some() && !is_slow);
        self.out.set_low_mark(engine.map_or(0, Engine::low_mark));
    }
}
