//! More workers than cores.

use std::hint::black_box;
use std::time::{Duration, Instant};

use forkring::Pool;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::measure::{Comparison, MEAN, P50, Sampling, Scale, rate};
use crate::report::Goal::{AtLeast, AtMost};
use crate::report::Report;
use crate::rivals::threads::{rayon_pool, rayon_spawn, receive};

pub(crate) fn many_workers(scale: Scale) -> Report {
    let sampling = Sampling::awake(scale.pick(50_000, 200), Duration::from_secs(1));
    let [one, many] = [1, 64].map(|workers| Pool::new(workers).expect("a pool"));
    let round_trips = |pool: &Pool| {
        sampling.latencies_and_mean(
            |n| pool.submit(|n: u64| n + 1, black_box(&n)).wait().expect("a reply"),
            |n, reply| assert_eq!(reply, n + 1),
        )
    };
    let submits = |pool: &Pool| {
        sampling.latencies_and_mean(
            |n| pool.submit(|n: u64| n + 1, black_box(&n)),
            |n, task| assert_eq!(task.wait().expect("a reply"), n + 1),
        )
    };
    let mut all = Comparison::new();
    let trip_one = all.add("round trip, 1 worker", || round_trips(&one));
    let trip_many = all.add("round trip, 64 workers", || round_trips(&many));
    let submit_one = all.add("submit(..) alone, 1 worker", || submits(&one));
    let submit_many = all.add("submit(..) alone, 64 workers", || submits(&many));
    let outcome = all.run(scale);
    let mut report = outcome.latency_and_mean_report();
    report.checks = vec![
        outcome
            .ratio("mean of submit(..), 64 workers / 1 worker", submit_many, submit_one, MEAN, AtMost(1.3))
            .stretch(1.0),
        outcome
            .ratio("p50 of a round trip, 64 workers / 1 worker", trip_many, trip_one, P50, AtMost(1.3))
            .stretch(1.0),
    ];
    report
}

/// What a task takes.
const WORK: Duration = Duration::from_micros(20);

/// A fixed amount of work. Waiting for the clock would be done sooner by those who do not get a core. The same code for all,
/// and nothing in it goes through memory, whose renaming on some processors makes a loop three times as fast in one place as
/// in another.
#[inline(never)]
fn work(turns: u64) -> u64 {
    (0..turns).fold(1, |x: u64, turn| (x ^ turn).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// So many turns take [`WORK`] on a core of one's own.
fn turns_of_work() -> u64 {
    const TURNS: u64 = 100_000;
    let times = (0..50).map(|_| {
        let start = Instant::now();
        black_box(work(black_box(TURNS)));
        start.elapsed()
    });
    let fastest = times.min().expect("several");
    (TURNS as f64 * WORK.as_secs_f64() / fastest.as_secs_f64()) as u64
}

pub(crate) fn oversubscribed(scale: Scale) -> Report {
    let cores = use_cores(2);
    let turns = turns_of_work();
    let expected = work(turns);
    let tasks = scale.pick(20_000, 500);
    let pool = Pool::new(4).expect("a pool");
    let rayon = rayon_pool(4);

    let mut all = Comparison::new();
    let forkring = all.add("forkring, 4 workers", || {
        rate(tasks, || {
            let sent: Vec<_> = (0..tasks).map(|_| pool.submit(work, &turns)).collect();
            for task in sent {
                assert_eq!(task.wait().expect("a result"), expected);
            }
        })
    });
    let rival = all.add("rayon spawn + oneshot, 4 threads", || {
        rate(tasks, || {
            let sent: Vec<_> = (0..tasks).map(|_| rayon_spawn(&rayon, move || work(turns))).collect();
            for receiver in sent {
                assert_eq!(receive(receiver), expected);
            }
        })
    });
    let outcome = all.run(scale);
    let mut report = outcome.rate_report("task");
    report.checks =
        vec![outcome.ratio("throughput / rayon's", rival, forkring, 0, AtLeast(0.95)).stretch(1.0)];
    if cores != 2 {
        report.skip("on 2 cores", format!("this ran on {cores}"));
    }
    report
}

/// Restricts this process, and what it forks, to so many cores. Returns how many it has then.
fn use_cores(wanted: usize) -> usize {
    let this = Pid::from_raw(0);
    let Ok(usable) = sched_getaffinity(this) else { return 0 };
    let cores = (0..CpuSet::count()).filter(|&core| usable.is_set(core) == Ok(true));
    let mut few = CpuSet::new();
    let taken = cores.take(wanted).filter(|&core| few.set(core).is_ok()).count();
    if sched_setaffinity(this, &few).is_ok() { taken } else { 0 }
}
