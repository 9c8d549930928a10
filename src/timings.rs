//! [`Timings`]: how long tasks have waited and run.

use std::fmt;
use std::time::Duration;

use crate::task::TaskId;

/// How many of the slowest tasks are remembered.
pub(crate) const SLOWEST: usize = 10;
/// A day. What takes longer counts as that.
const LONGEST_NS: u64 = 86_400_000_000_000;
/// Decimal digits of a duration that are kept.
const DIGITS: u8 = 2;

/// How long tasks have waited and run, where [`Builder::timings`](crate::Builder::timings) asked for it: of the pool in
/// [`Stats::timings`](crate::Stats::timings), of each worker in [`WorkerStats::timings`](crate::WorkerStats::timings).
///
/// Counted is each run of a task that a worker has started and that is over: with a result, a panic, an error, or because
/// the worker ended. A task that is started again after a loss counts each time. A message of a stream counts as one task,
/// whatever its granularity; one that is cut in the middle and sent again counts twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timings {
    /// From the submission to the start.
    pub wait: Histogram,
    /// From the start to the moment before the outcome was there, decoding the input and encoding the result included.
    pub run: Histogram,
    /// The ten that ran longest, the longest first.
    pub slowest: Vec<SlowTask>,
}

/// One of the tasks that ran longest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlowTask {
    /// As [`Task::id`](crate::Task::id) told while the task existed.
    pub id: TaskId,
    /// The worker that ran it, and which process of that worker.
    pub worker: usize,
    /// As [`WorkerStats::generation`](crate::WorkerStats::generation).
    pub generation: u64,
    /// Which of that process's tasks it was, from 0.
    pub number: u64,
    /// What the function is called in the program: for people, and different from compiler to compiler.
    pub function: &'static str,
    /// From its submission to its start.
    pub wait: Duration,
    /// From its start to its end.
    pub run: Duration,
}

impl Timings {
    /// Adds what somebody else has measured.
    pub(crate) fn add(&mut self, other: &Self) {
        self.wait.add(&other.wait);
        self.run.add(&other.run);
        self.slowest.extend_from_slice(&other.slowest);
        self.slowest.sort_by_key(|task| std::cmp::Reverse(task.run));
        self.slowest.truncate(SLOWEST);
    }
}

/// A distribution of durations, from a nanosecond to a day, each kept to 1 %.
#[derive(Clone, Default)]
pub struct Histogram {
    /// `None`: empty. It takes some memory.
    inner: Option<Box<hdrhistogram::Histogram<u64>>>,
}

impl PartialEq for Histogram {
    fn eq(&self, other: &Self) -> bool {
        match (&self.inner, &other.inner) {
            (Some(one), Some(other)) => one == other,
            _ => self.count() == other.count(),
        }
    }
}

impl Eq for Histogram {}

impl Histogram {
    pub(crate) fn record(&mut self, ns: u64) {
        let inner = self.inner.get_or_insert_with(|| {
            let made = hdrhistogram::Histogram::new_with_bounds(1, LONGEST_NS, DIGITS);
            Box::new(made.expect("constants that are within what it takes"))
        });
        inner.saturating_record(ns);
    }

    fn add(&mut self, other: &Self) {
        match (&mut self.inner, &other.inner) {
            (_, None) => {}
            (None, other) => self.inner.clone_from(other),
            (Some(inner), Some(other)) => {
                inner.add(&**other).expect("all histograms have the same bounds");
            }
        }
    }

    fn map(&self, of: impl FnOnce(&hdrhistogram::Histogram<u64>) -> u64) -> Duration {
        Duration::from_nanos(self.inner.as_deref().map_or(0, of))
    }

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.inner.as_ref().map_or(0, |inner| inner.len())
    }

    /// The least; zero if there is none.
    pub fn min(&self) -> Duration {
        self.map(|inner| inner.min())
    }

    /// The greatest; zero if there is none.
    pub fn max(&self) -> Duration {
        self.map(|inner| inner.max())
    }

    /// The mean; zero if there is none.
    pub fn mean(&self) -> Duration {
        self.map(|inner| inner.mean() as u64)
    }

    /// The duration that a part of them, `0.0 ..= 1.0`, does not exceed: `quantile(0.5)` is the median. Zero if there is
    /// none; what is out of range is taken for the nearest that is not.
    ///
    /// ```
    /// let pool = forkring::Pool::builder().workers(1).timings(true).build()?;
    /// pool.map(0..100_u64, |n: u64| n).granularity(forkring::Granularity::Fixed(1)).for_each(drop);
    /// let run = pool.stats().timings.unwrap_or_default().run;
    /// assert!(run.count() == 100 && run.min() <= run.quantile(0.5) && run.quantile(0.5) <= run.quantile(0.99));
    /// # Ok::<(), forkring::Error>(())
    /// ```
    pub fn quantile(&self, part: f64) -> Duration {
        self.map(|inner| inner.value_at_quantile(part))
    }

    /// The distribution itself: the upper ends of its steps, each with how many durations lie between the one before and it.
    /// Only steps that have some, in ascending order.
    pub fn steps(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let steps = self.inner.iter().flat_map(|inner| {
            inner.iter_recorded().map(|step| {
                (inner.highest_equivalent(step.value_iterated_to()), step.count_since_last_iteration())
            })
        });
        steps.map(|(ns, count)| (Duration::from_nanos(ns), count))
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Histogram({self})")
    }
}

impl fmt::Display for Histogram {
    /// On one line: `1000: p50 1.05ms, p99 1.2ms, max 3.1ms`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99, max) = (self.quantile(0.5), self.quantile(0.99), self.max());
        write!(f, "{}: p50 {}, p99 {}, max {}", self.count(), Short(p50), Short(p99), Short(max))
    }
}

/// Three digits of a duration.
pub(crate) struct Short(pub(crate) Duration);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.0.as_nanos();
        // What is cut off is noise.
        let step = 10_u128.pow(ns.checked_ilog10().unwrap_or(0).saturating_sub(2));
        write!(f, "{:?}", Duration::from_nanos(u64::try_from(ns / step * step).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        values.into_iter().for_each(|ns| histogram.record(ns));
        histogram
    }

    /// Whether two durations are equal to 1 %.
    fn near(one: Duration, ns: u64) -> bool {
        one.as_nanos().abs_diff(u128::from(ns)) * 100 <= u128::from(ns)
    }

    #[test]
    fn quantiles_are_exact_to_one_percent() {
        let all = of((1..=1000).map(|n| n * 1000));
        assert_eq!(all.count(), 1000);
        for (part, expected) in
            [(0.0, 1000), (0.5, 500_000), (0.99, 990_000), (1.0, 1_000_000), (7.0, 1_000_000)]
        {
            assert!(near(all.quantile(part), expected), "{part}: {:?}", all.quantile(part));
        }
        assert!(near(all.mean(), 500_500) && near(all.min(), 1000) && near(all.max(), 1_000_000));
        assert_eq!(all.steps().map(|(_, count)| count).sum::<u64>(), 1000);
        assert!(all.steps().is_sorted());
    }

    #[test]
    fn an_empty_one_has_zeros_and_equals_another() {
        let none = Histogram::default();
        assert_eq!((none.count(), none.quantile(0.5), none.steps().count()), (0, Duration::ZERO, 0));
        assert_eq!(none, of([]));
        assert_ne!(none, of([5]));
        assert_eq!(none.to_string(), "0: p50 0ns, p99 0ns, max 0ns");
    }

    #[test]
    fn what_is_out_of_bounds_counts_at_the_end() {
        let all = of([0, u64::MAX]);
        assert_eq!(all.count(), 2);
        assert!(near(all.max(), LONGEST_NS));
    }

    #[test]
    fn sums_have_everything_and_the_slowest_of_all() {
        let slow = |worker, ms| SlowTask {
            id: TaskId::default(),
            worker,
            generation: 0,
            number: ms,
            function: "f",
            wait: Duration::ZERO,
            run: Duration::from_millis(ms),
        };
        let one = |worker, runs: std::ops::Range<u64>| Timings {
            wait: of(runs.clone()),
            run: of(runs.clone()),
            slowest: runs.map(|ms| slow(worker, ms)).collect(),
        };
        let mut sum = Timings::default();
        sum.add(&one(0, 1..9));
        sum.add(&one(1, 5..15));
        assert_eq!((sum.wait.count(), sum.run.count(), sum.slowest.len()), (18, 18, SLOWEST));
        let numbers: Vec<u64> = sum.slowest.iter().map(|task| task.number).collect();
        assert_eq!(numbers, [14, 13, 12, 11, 10, 9, 8, 8, 7, 7]);
    }

    #[test]
    fn a_line_has_three_digits_of_each() {
        assert_eq!(of([1_234_567]).to_string(), "1: p50 1.23ms, p99 1.23ms, max 1.23ms");
    }
}
