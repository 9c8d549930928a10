//! How far a stream is: [`Progress`], and who is told.

use std::fmt;
use std::time::{Duration, Instant};

/// The least time between two calls, unless much has come meanwhile.
const PAUSE: Duration = Duration::from_millis(100);
/// Of a stream of a known length, whatever comes first: the time, or such a part.
const PARTS: u64 = 100;

/// How far a stream is. See [`Map::on_progress`](super::Map::on_progress), and
/// [`MapStream::on_progress`](super::MapStream::on_progress) in async code.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// Items whose outcomes have been delivered, the failed ones included.
    pub done: u64,
    /// Of those, items that ended with an error.
    pub failed: u64,
    /// How many items there are in all, if the source's `size_hint` said so exactly when the stream began.
    pub total: Option<u64>,
    /// Since the stream began: since its source was pulled for the first time.
    pub elapsed: Duration,
    /// Whether the stream is over, and this the last call.
    pub is_last: bool,
}

impl Progress {
    /// Items a second, from the beginning until now; 0 where that is too short to tell.
    ///
    /// ```
    /// let pool = forkring::Pool::new(1)?;
    /// let numbers = pool.map(0..1000_u32, |n: u32| n).on_progress(|p| {
    ///     let left = p.total.unwrap_or(0) - p.done;
    ///     println!("{} left, {:.0} a second", left, p.rate());
    /// });
    /// assert_eq!(numbers.count(), 1000);
    /// # Ok::<(), forkring::Error>(())
    /// ```
    pub fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.done as f64 / seconds } else { 0.0 }
    }
}

impl fmt::Display for Progress {
    /// For a line of a log: `120 of 500 done, 3 failed, 40.0 a second`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.done)?;
        if let Some(total) = self.total {
            write!(f, " of {total}")?;
        }
        write!(f, " done, {} failed, {:.1} a second", self.failed, self.rate())
    }
}

/// Who watches a stream: nobody, `()`, or a [`Metered`] function. Implemented for these two only.
pub trait Watch: sealed::Meter {}

mod sealed {
    pub trait Meter {
        /// The stream begins, unless it has begun. `total` costs a call of the source's.
        fn begin(&mut self, total: impl FnOnce() -> Option<u64>);
        /// An item's outcome is delivered.
        fn note(&mut self, failed: bool);
        /// The stream is over; may be said again.
        fn end(&mut self);
    }
}

pub(super) use sealed::Meter;

impl Watch for () {}

impl Meter for () {
    #[inline]
    fn begin(&mut self, _: impl FnOnce() -> Option<u64>) {}

    #[inline]
    fn note(&mut self, _: bool) {}

    #[inline]
    fn end(&mut self) {}
}

/// A function that is told how far a stream is: see [`Map::on_progress`](super::Map::on_progress).
pub struct Metered<F> {
    call: F,
    /// `None`: it has not begun.
    start: Option<Instant>,
    total: Option<u64>,
    done: u64,
    failed: u64,
    /// When it was called last, and when to call it again, by what is done and by the time.
    last: Option<Instant>,
    next_done: u64,
    is_over: bool,
}

impl<F> fmt::Debug for Metered<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metered")
            .field("done", &self.done)
            .field("failed", &self.failed)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

impl<F: FnMut(Progress)> Metered<F> {
    pub(super) fn new(call: F) -> Self {
        Self {
            call,
            start: None,
            total: None,
            done: 0,
            failed: 0,
            last: None,
            next_done: u64::MAX,
            is_over: false,
        }
    }

    fn tell(&mut self, now: Instant, is_last: bool) {
        let elapsed = self.start.map(|start| now.duration_since(start)).unwrap_or_default();
        self.last = Some(now);
        if let Some(total) = self.total {
            self.next_done = self.done.saturating_add(total.div_ceil(PARTS).max(1));
        }
        let Self { done, failed, total, .. } = *self;
        (self.call)(Progress { done, failed, total, elapsed, is_last });
    }
}

impl<F: FnMut(Progress)> Watch for Metered<F> {}

impl<F: FnMut(Progress)> Meter for Metered<F> {
    fn begin(&mut self, total: impl FnOnce() -> Option<u64>) {
        if self.start.is_none() {
            self.total = total();
            self.next_done = self.total.map_or(u64::MAX, |total| total.div_ceil(PARTS).max(1));
            self.start = Some(Instant::now());
            self.last = self.start;
        }
    }

    fn note(&mut self, failed: bool) {
        self.done += 1;
        self.failed += u64::from(failed);
        let now = Instant::now();
        let is_time = self.last.is_none_or(|last| now.duration_since(last) >= PAUSE);
        if is_time || self.done >= self.next_done {
            self.tell(now, false);
        }
    }

    fn end(&mut self) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.tell(Instant::now(), true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a function is told of a stream of so many items, one of which fails.
    fn told(total: Option<u64>, items: u64) -> Vec<Progress> {
        let mut told = Vec::new();
        let mut meter = Metered::new(|progress| told.push(progress));
        meter.begin(|| total);
        meter.begin(|| unreachable!("it has begun"));
        (0..items).for_each(|n| meter.note(n == 5));
        meter.end();
        meter.end();
        told
    }

    #[test]
    fn it_is_called_for_each_hundredth_and_at_the_end() {
        let told = told(Some(1000), 1000);
        // More often on a machine that stands still for longer than the pause.
        assert!(told.len() >= 101, "{}", told.len());
        assert!(told.is_sorted_by_key(|p| p.done));
        assert!(told.iter().all(|p| p.total == Some(1000) && p.failed == u64::from(p.done > 5)));
        assert_eq!(told.last().map(|p| (p.done, p.failed)), Some((1000, 1)));
        assert!(told.iter().rev().skip(1).all(|p| !p.is_last) && told.last().is_some_and(|p| p.is_last));
    }

    #[test]
    fn it_is_called_at_the_end_of_nothing() {
        assert_eq!(told(Some(0), 0).iter().map(|p| p.done).collect::<Vec<_>>(), [0]);
        assert_eq!(told(None, 0).len(), 1);
    }

    #[test]
    fn without_a_total_the_time_decides() {
        let told = told(None, 100_000);
        let end = told.last().map(|p| (p.done, p.total, p.elapsed));
        let (done, total, elapsed) = end.unwrap_or_default();
        assert_eq!((done, total), (100_000, None));
        assert!(told.len() as u128 <= 1 + elapsed.as_millis() / PAUSE.as_millis());
    }

    #[test]
    fn a_rate_is_a_number() {
        let elapsed = Duration::from_secs(2);
        let progress = Progress { done: 10, failed: 1, total: Some(20), elapsed, is_last: false };
        assert_eq!(progress.rate(), 5.0);
        assert_eq!(progress.to_string(), "10 of 20 done, 1 failed, 5.0 a second");
        assert_eq!(Progress { elapsed: Duration::ZERO, ..progress }.rate(), 0.0);
    }
}
