//! What the benches share: the command line, alternating rounds, the tables.
//!
//! A comparison is a list of contenders that take turns in one process. The machine has phases, so a single figure
//! says little: what counts is the median over the rounds, and for ratios the median of the ratios *within* a round.

#![allow(dead_code, reason = "each bench uses its part")]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use criterion::Criterion;
use futures::channel::oneshot;
use futures::executor::block_on;

/// How a bench was called. Criterion reads the same arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `cargo bench`: measure.
    Measure,
    /// `cargo bench -- --test`, or `cargo test --benches`: run everything once, small.
    Smoke,
    /// `--list`: criterion prints its names, and nothing runs.
    List,
}

impl Mode {
    pub(crate) fn from_args() -> Self {
        let has = |flag: &str| std::env::args().any(|arg| arg == flag);
        match () {
            () if has("--list") => Self::List,
            () if has("--test") || !has("--bench") => Self::Smoke,
            () => Self::Measure,
        }
    }

    /// `full`, or `small` where only the smoke counts.
    pub(crate) fn pick<T>(self, full: T, small: T) -> T {
        if self == Self::Measure { full } else { small }
    }

    /// Rounds of a comparison: odd, so that a median is a round's own figure.
    pub(crate) fn rounds(self) -> usize {
        self.pick(9, 5)
    }
}

/// Criterion with shorter runs than its own: the tables, not it, carry the comparisons.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .configure_from_args()
}

/// A row of a comparison: a name, and one turn of it, which returns its figures.
pub(crate) struct Contender<'a, const N: usize> {
    name: &'static str,
    turn: Box<dyn FnMut() -> [f64; N] + 'a>,
}

impl<'a, const N: usize> Contender<'a, N> {
    pub(crate) fn new(name: &'static str, turn: impl FnMut() -> [f64; N] + 'a) -> Self {
        Self { name, turn: Box::new(turn) }
    }
}

/// What the contenders of a comparison have reached: for each its figures, round by round.
#[derive(Debug)]
pub(crate) struct Results<const N: usize> {
    names: Vec<&'static str>,
    rounds: Vec<Vec<[f64; N]>>,
}

/// Lets the contenders take turns: one turn each to warm up, then `rounds` turns that count. Every other round runs
/// backwards, so that nobody always follows the same neighbour.
pub(crate) fn alternate<const N: usize>(rounds: usize, mut contenders: Vec<Contender<'_, N>>) -> Results<N> {
    for contender in &mut contenders {
        (contender.turn)();
    }
    let names = contenders.iter().map(|contender| contender.name).collect();
    let mut results = Results { names, rounds: vec![Vec::new(); contenders.len()] };
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            results.rounds[at].push((contenders[at].turn)());
        }
    }
    results
}

impl<const N: usize> Results<N> {
    /// The median over the rounds of one figure of one contender.
    pub(crate) fn figure(&self, contender: usize, figure: usize) -> f64 {
        median(self.rounds[contender].iter().map(|figures| figures[figure]).collect())
    }

    /// One half of the rounds: two of every four, one in each order.
    pub(crate) fn half(&self, half: usize) -> Self {
        let of_half = |(round, figures): (usize, &[f64; N])| (round / 2 % 2 == half).then_some(*figures);
        let some = |rounds: &Vec<[f64; N]>| rounds.iter().enumerate().filter_map(of_half).collect();
        Self { names: self.names.clone(), rounds: self.rounds.iter().map(some).collect() }
    }

    /// The median of the rounds' ratios `contender / other`, by one figure.
    pub(crate) fn ratio(&self, contender: usize, other: usize, figure: usize) -> f64 {
        let rounds = self.rounds[contender].iter().zip(&self.rounds[other]);
        median(rounds.map(|(a, b)| a[figure] / b[figure]).collect())
    }

    /// Lowest and highest round of one figure.
    fn spread(&self, contender: usize, figure: usize) -> (f64, f64) {
        let figures = self.rounds[contender].iter().map(|figures| figures[figure]);
        figures.fold((f64::INFINITY, 0.0), |(low, high), x| (low.min(x), high.max(x)))
    }

    /// The ratio of the lowest rounds. Where a contender has two modes, as whoever sleeps has on a machine that is not
    /// quiet, this compares the better one.
    pub(crate) fn best_ratio(&self, contender: usize, other: usize, figure: usize) -> f64 {
        self.spread(contender, figure).0 / self.spread(other, figure).0
    }

    /// Prints the contenders' figures, the range over the rounds of the first figure, and how many times as much it is
    /// as the first contender's: in the median, and with the lowest round of each.
    pub(crate) fn print(&self, title: &str, columns: [&str; N]) {
        println!("\n{title}: medians of {} alternating rounds", self.rounds[0].len());
        print!("{:<36}", "");
        columns.iter().for_each(|column| print!("{column:>10}"));
        println!("{:>18}{:>14}{:>10}", "lowest…highest", "× first row", "lowest");
        for (at, name) in self.names.iter().enumerate() {
            print!("{name:<36}");
            (0..N).for_each(|figure| print!("{:>10}", short(self.figure(at, figure))));
            let (low, high) = self.spread(at, 0);
            let range = format!("{}…{}", short(low), short(high));
            println!(
                "{range:>18}{:>14}{:>10}",
                short(self.ratio(at, 0, 0)),
                short(self.best_ratio(at, 0, 0))
            );
        }
    }
}

/// Three digits that count.
fn short(x: f64) -> String {
    match x {
        x if x >= 100.0 => format!("{x:.0}"),
        x if x >= 10.0 => format!("{x:.1}"),
        x => format!("{x:.2}"),
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Times every call of `exchange` on its own and returns p50, p99 and p99.9 in nanoseconds, less what reading the
/// clock takes: between two readings lie one call and one reading. Ends early after `limit`, since on one core, or next
/// to somebody who uses both, an exchange may take a turn of the scheduler.
pub(crate) fn percentiles(samples: usize, limit: Duration, mut exchange: impl FnMut(u64)) -> [f64; 3] {
    let clock = clock_ns();
    let mut times = Vec::with_capacity(samples);
    // The first tenth is for warming up, be it of the samples or of the time.
    let mut warm_up = samples / 10;
    let start = Instant::now();
    let mut last = start;
    for i in 0.. {
        exchange(i);
        let now = Instant::now();
        if warm_up > 0 && now - start < limit / 10 {
            warm_up -= 1;
        } else {
            warm_up = 0;
            times.push((now - last).as_nanos() as f64 - clock);
        }
        if times.len() == samples || now - start > limit {
            break;
        }
        last = now;
    }
    if times.is_empty() {
        return [limit.as_nanos() as f64; 3];
    }
    times.sort_by(f64::total_cmp);
    [0.5, 0.99, 0.999].map(|share| times[(times.len() as f64 * share) as usize])
}

/// What one reading of the clock takes.
pub(crate) fn clock_ns() -> f64 {
    const READINGS: u32 = 1000;
    let start = Instant::now();
    for _ in 0..READINGS {
        std::hint::black_box(Instant::now());
    }
    start.elapsed().as_nanos() as f64 / f64::from(READINGS)
}

/// The time of `work`.
pub(crate) fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// The time of `work`, in nanoseconds for each of `n`.
pub(crate) fn ns_each(n: u64, work: impl FnOnce()) -> f64 {
    timed(work).as_nanos() as f64 / n as f64
}

/// A rayon pool of its own, so that its size does not depend on the machine.
pub(crate) fn rayon_pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads for rayon")
}

/// Waits for what comes through a oneshot channel. Among std's and crossbeam's channels and this one, this one makes the
/// fastest thread pools here (rayon's hot loop takes 0.33 µs a task with it, 0.7 to 1.2 with the others), so it is what
/// they are given.
pub(crate) fn receive<T>(receiver: oneshot::Receiver<T>) -> T {
    block_on(receiver).expect("a reply")
}

/// Keeps `depth` requests in flight: once the window is full, the oldest is taken before the next is sent.
pub(crate) fn windowed<T>(requests: impl Iterator<Item = T>, depth: usize, mut take: impl FnMut(T)) {
    let mut window = VecDeque::with_capacity(depth);
    for request in requests {
        window.push_back(request);
        if window.len() == depth {
            window.pop_front().into_iter().for_each(&mut take);
        }
    }
    window.into_iter().for_each(take);
}
