//! Contenders that take turns in one process.
//!
//! Machines have phases, so a single figure says little: what counts is the median over the rounds, and for ratios the
//! median of the ratios *within* a round.

use std::time::{Duration, Instant};

use crate::report::{Check, Goal, Line, Report, Waits};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) quick: bool,
}

impl Scale {
    /// `full`, or `quick` where only the smoke counts.
    pub(crate) fn pick<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Rounds of a comparison: odd, so that a median is a round's own figure.
    pub(crate) fn rounds(self) -> usize {
        self.pick(7, 5)
    }
}

/// What a latency is reported at.
pub(crate) const QUANTILES: [f64; 10] = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.995, 0.999, 0.9999];
pub(crate) const QUANTILE_NAMES: [&str; 10] =
    ["p1", "p10", "p25", "p50", "p75", "p90", "p99", "p99.5", "p99.9", "p99.99"];
/// Where in [`QUANTILES`] the printed ones are.
pub(crate) const P50: usize = 3;
pub(crate) const P99: usize = 6;
pub(crate) const P99_9: usize = 8;
/// Where [`Sampling::latencies_and_mean`] has the mean.
pub(crate) const MEAN: usize = QUANTILES.len();
/// The part of the times that a mean is of: the highest ones are somebody else's.
const MEAN_OF: f64 = 0.95;

/// Exchanges in a run.
const RUN: u64 = 1000;

/// What a contender says after its turn: one figure for each column.
type Figures = Vec<f64>;

/// A list of contenders.
pub(crate) struct Comparison<'a> {
    contenders: Vec<(String, Box<dyn FnMut() -> Figures + 'a>)>,
    waits: Vec<Option<Waits>>,
}

/// The place of a contender in its comparison.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Id(usize);

impl<'a> Comparison<'a> {
    pub(crate) fn new() -> Self {
        Self { contenders: Vec::new(), waits: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: impl Into<String>, turn: impl FnMut() -> Figures + 'a) -> Id {
        self.contenders.push((name.into(), Box::new(turn)));
        self.waits.push(None);
        Id(self.contenders.len() - 1)
    }

    /// As [`add`](Self::add), and says how the two sides wait for each other.
    pub(crate) fn add_waiting(
        &mut self,
        waits: Waits,
        name: impl Into<String>,
        turn: impl FnMut() -> Figures + 'a,
    ) -> Id {
        let id = self.add(name, turn);
        self.waits[id.0] = Some(waits);
        id
    }

    /// One turn each to warm up, then `rounds` turns that count. Every other round runs backwards, so that nobody always
    /// follows the same neighbour.
    pub(crate) fn run(mut self, scale: Scale) -> Outcome {
        for (_, turn) in &mut self.contenders {
            turn();
        }
        let mut rounds = vec![Vec::new(); self.contenders.len()];
        for round in 0..scale.rounds() {
            let mut order: Vec<usize> = (0..self.contenders.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for at in order {
                rounds[at].push((self.contenders[at].1)());
            }
        }
        let names = self.contenders.into_iter().map(|(name, _)| name).collect();
        Outcome { names, waits: self.waits, rounds }
    }
}

/// What the contenders have reached: for each its figures, round by round.
#[derive(Debug)]
pub(crate) struct Outcome {
    names: Vec<String>,
    waits: Vec<Option<Waits>>,
    rounds: Vec<Vec<Figures>>,
}

impl Outcome {
    /// The median over the rounds.
    pub(crate) fn figure(&self, Id(of): Id, column: usize) -> f64 {
        median(self.rounds[of].iter().map(|figures| figures[column]).collect())
    }

    /// All contenders.
    pub(crate) fn ids(&self) -> impl Iterator<Item = Id> + use<> {
        (0..self.names.len()).map(Id)
    }

    /// The one of several forms of the same that takes least, so that what is compared with is the best of its kind.
    pub(crate) fn fastest<const N: usize>(&self, of: [Id; N], column: usize) -> Id {
        let fastest =
            of.into_iter().min_by(|&a, &b| self.figure(a, column).total_cmp(&self.figure(b, column)));
        fastest.expect("several")
    }

    fn column(&self, Id(of): Id, column: usize) -> impl Iterator<Item = f64> {
        self.rounds[of].iter().map(move |figures| figures[column])
    }

    fn lowest(&self, of: Id, column: usize) -> f64 {
        self.column(of, column).fold(f64::INFINITY, f64::min)
    }

    fn highest(&self, of: Id, column: usize) -> f64 {
        self.column(of, column).fold(0.0, f64::max)
    }

    /// How many times as much `of` takes as `than`, against a goal.
    pub(crate) fn ratio(
        &self,
        what: impl Into<String>,
        of: Id,
        than: Id,
        column: usize,
        goal: Goal,
    ) -> Check {
        let rounds = self.column(of, column).zip(self.column(than, column));
        Check {
            what: what.into(),
            value: median(rounds.map(|(a, b)| a / b).collect()),
            lowest: Some(self.lowest(of, column) / self.lowest(than, column)),
            unit: "×".to_owned(),
            goal,
            stretch: None,
        }
    }

    /// A figure against a goal.
    pub(crate) fn value(
        &self,
        what: impl Into<String>,
        of: Id,
        column: usize,
        unit: &str,
        goal: Goal,
    ) -> Check {
        Check {
            what: what.into(),
            value: self.figure(of, column),
            lowest: Some(self.lowest(of, column)),
            unit: unit.to_owned(),
            goal,
            stretch: None,
        }
    }

    /// The report of a row, of which `shown` columns are printed and the rest is for the plots.
    pub(crate) fn report(&self, unit: &str, columns: &[&str], shown: &[usize]) -> Report {
        let lines = self.ids().map(|id| Line {
            name: self.names[id.0].clone(),
            figures: (0..columns.len()).map(|column| self.figure(id, column)).collect(),
            lowest: self.lowest(id, shown[0]),
            highest: self.highest(id, shown[0]),
            waits: self.waits[id.0],
        });
        Report {
            unit: unit.to_owned(),
            columns: columns.iter().map(|&column| column.to_owned()).collect(),
            shown: shown.to_vec(),
            rounds: self.rounds.first().map_or(0, Vec::len),
            lines: lines.collect(),
            ..Report::default()
        }
    }

    /// The report of a row of latencies.
    pub(crate) fn latency_report(&self) -> Report {
        self.report("µs", &QUANTILE_NAMES, &[P50, P99, P99_9])
    }

    /// Likewise, with means.
    pub(crate) fn latency_and_mean_report(&self) -> Report {
        let columns: Vec<&str> = QUANTILE_NAMES.into_iter().chain(["mean"]).collect();
        self.report("µs", &columns, &[MEAN, P50, P99, P99_9])
    }

    /// The report of a row that measures a time for each of many.
    pub(crate) fn rate_report(&self, of: &str) -> Report {
        self.report(
            &format!("ns a{} {of}", if of.starts_with('i') { "n" } else { "" }),
            &["time", "M/s"],
            &[0, 1],
        )
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// How often and how an exchange is timed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampling {
    pub(crate) samples: usize,
    /// An end to it: next to somebody who uses all cores, an exchange may take a turn of the scheduler.
    pub(crate) limit: Duration,
    /// What is slept before each exchange.
    pub(crate) gap: Option<Duration>,
}

impl Sampling {
    /// As many as fit, without a gap.
    pub(crate) fn awake(samples: usize, limit: Duration) -> Self {
        Self { samples, limit, gap: None }
    }

    /// With a gap in which both sides fall asleep.
    pub(crate) fn asleep(samples: usize, limit: Duration) -> Self {
        Self { samples, limit, gap: Some(Duration::from_millis(1)) }
    }

    /// Times every call of `exchange` on its own and returns the [`QUANTILES`] in microseconds, less what reading the
    /// clock takes. What it returned goes to `check`, which is not timed.
    pub(crate) fn latencies<T>(
        self,
        mut exchange: impl FnMut(u64) -> T,
        mut check: impl FnMut(u64, T),
    ) -> Figures {
        let clock_ns = clock_ns();
        let mut times = Vec::with_capacity(self.samples);
        // The first tenth is for warming up, be it of the samples or of the time.
        let mut warm_up = self.samples / 10;
        let start = Instant::now();
        for n in 0.. {
            if let Some(gap) = self.gap {
                std::thread::sleep(gap);
            }
            let before = Instant::now();
            let reply = exchange(n);
            let after = Instant::now();
            check(n, reply);
            if warm_up > 0 && after - start < self.limit / 10 {
                warm_up -= 1;
            } else {
                warm_up = 0;
                times.push(((after - before).as_nanos() as f64 - clock_ns) / 1000.0);
            }
            if times.len() == self.samples || after - start > self.limit && !times.is_empty() {
                break;
            }
        }
        times.sort_by(f64::total_cmp);
        QUANTILES.map(|share| times[(times.len() as f64 * share) as usize]).to_vec()
    }

    /// As [`latencies`](Self::latencies), and the mean of all but the highest twentieth, for what takes hardly longer than a tick
    /// of the clock: a single difference is so many whole ticks, their mean is not. What the clock takes is the mean of
    /// as many differences with nothing in between. The two take turns, so that whatever an exchange leaves
    /// behind is there for both.
    pub(crate) fn latencies_and_mean<T>(
        self,
        mut exchange: impl FnMut(u64) -> T,
        mut check: impl FnMut(u64, T),
    ) -> Figures {
        let (mut times, mut clock) = (Vec::with_capacity(self.samples), Vec::with_capacity(self.samples));
        let mut warm_up = self.samples / 10;
        let start = Instant::now();
        for n in 0.. {
            let before = Instant::now();
            let nothing = (n % 2 == 1).then(Instant::now);
            let reply = exchange(n);
            let after = Instant::now();
            check(n, reply);
            let list = if nothing.is_some() { &mut clock } else { &mut times };
            list.push((nothing.unwrap_or(after) - before).as_nanos() as f64 / 1000.0);
            if warm_up > 0 {
                warm_up -= 1;
                list.clear();
            }
            if times.len() >= self.samples || after - start > self.limit && !times.is_empty() {
                break;
            }
        }
        let [clock, mean] = [&mut clock, &mut times].map(|list| {
            list.sort_by(f64::total_cmp);
            let counted = &list[..(list.len() as f64 * MEAN_OF).ceil() as usize];
            counted.iter().sum::<f64>() / counted.len().max(1) as f64
        });
        let quantiles = QUANTILES.map(|share| times[(times.len() as f64 * share) as usize] - clock);
        quantiles.into_iter().chain([mean - clock]).collect()
    }

    /// Exchanges in runs of [`RUN`], each of which is timed as a whole: the [`QUANTILES`] of their means. The clock
    /// is no part of it: whether it is right to take one reading off, as [`latencies`](Self::latencies) does, matters
    /// where an exchange takes hardly longer. (It is, to 10 %: 110 to 120 ns beside 104 to 112 in runs.)
    pub(crate) fn runs(self, mut exchange: impl FnMut(u64) -> u64) -> Figures {
        let runs = Self { samples: (self.samples / RUN as usize).max(3), ..self };
        let run = |n: u64| (n * RUN..(n + 1) * RUN).all(|n| exchange(n) == n + 1);
        let figures = runs.latencies(run, |_, all_right| assert!(all_right));
        figures.into_iter().map(|micros| micros / RUN as f64).collect()
    }

    /// As [`latencies`](Self::latencies), of something that answers `n` with `n + 1`.
    pub(crate) fn increments(self, exchange: impl FnMut(u64) -> u64) -> Figures {
        self.latencies(exchange, |n, reply| assert_eq!(reply, n + 1))
    }
}

/// What one reading of the clock takes.
fn clock_ns() -> f64 {
    const READINGS: u32 = 1000;
    let start = Instant::now();
    for _ in 0..READINGS {
        std::hint::black_box(Instant::now());
    }
    start.elapsed().as_nanos() as f64 / f64::from(READINGS)
}

/// The time of `work` in nanoseconds for each of `n`, and how many millions of them fit into a second.
pub(crate) fn rate(n: u64, work: impl FnOnce()) -> Figures {
    let start = Instant::now();
    work();
    let ns = start.elapsed().as_nanos() as f64 / n as f64;
    vec![ns, 1000.0 / ns]
}
