//! Streams of `u64`: batches of several sizes, and item by item.

use std::collections::VecDeque;
use std::hint::black_box;

use forkring::{Granularity, Pool};
use rayon::ThreadPool;
use rayon::iter::{ParallelBridge, ParallelIterator};

use crate::measure::{Comparison, Scale, rate};
use crate::report::Goal::{AtLeast, None as NoGoal};
use crate::report::{Axis, Plot, Report, Series};
use crate::rivals::threads::{Receiver, rayon_pool, rayon_spawn, receive};

const GRANULARITIES: [usize; 5] = [1, 10, 100, 1000, 10_000];
/// The one that the goal is about.
const GOAL: usize = 1000;
/// How many of rayon's chunks are in flight.
const CHUNKS_IN_FLIGHT: usize = 64;

/// Enough items that a turn takes some tens of milliseconds.
fn items(scale: Scale, granularity: usize) -> u64 {
    let full = match granularity {
        0..10 => 200_000,
        10..100 => 1_000_000,
        _ => 5_000_000,
    };
    scale.pick(full, 10_000)
}

fn pool(workers: usize, granularity: usize) -> Pool {
    let granularity = Granularity::Fixed(granularity);
    Pool::builder().workers(workers).granularity(granularity).build().expect("a pool")
}

pub(crate) fn batches(scale: Scale) -> Report {
    // In this order: what forks comes before what starts threads.
    let pools = GRANULARITIES.map(|granularity| pool(1, granularity));
    let rayon = rayon_pool(1);

    let mut all = Comparison::new();
    let forkring = GRANULARITIES.map(|granularity| {
        let at = GRANULARITIES.iter().position(|&other| other == granularity).expect("one of them");
        let (pool, n) = (&pools[at], items(scale, granularity));
        all.add(format!("forkring iter_stream, granularity {granularity}"), move || {
            rate(n, || iter_stream(pool, n))
        })
    });
    let rivals = GRANULARITIES.map(|granularity| {
        let (rayon, n) = (&rayon, items(scale, granularity));
        all.add(format!("rayon spawn of Vecs of {granularity} + oneshot"), move || {
            rate(n, || spawn_chunks(rayon, n, granularity))
        })
    });
    let outcome = all.run(scale);
    let mut report = outcome.rate_report("item");
    for ((granularity, forkring), rival) in GRANULARITIES.into_iter().zip(forkring).zip(rivals) {
        let what = format!("time of rayon / forkring's, granularity {granularity}");
        report.checks.push(match granularity {
            GOAL => outcome.ratio(what, rival, forkring, 0, AtLeast(1.2)).stretch(1.8),
            _ => outcome.ratio(what, rival, forkring, 0, NoGoal),
        });
    }
    let series = [("forkring iter_stream", forkring), ("rayon spawn of Vecs + oneshot", rivals)];
    report.plot = Some(Plot {
        file: "granularity.svg".to_owned(),
        x: Axis::Count,
        x_label: "items in a batch".to_owned(),
        y_label: "million items a second".to_owned(),
        series: series
            .map(|(name, ids)| Series {
                name: name.to_owned(),
                points: GRANULARITIES
                    .into_iter()
                    .zip(ids)
                    .map(|(granularity, id)| (granularity as f64, outcome.figure(id, 1)))
                    .collect(),
            })
            .into(),
    });
    report
}

pub(crate) fn single(scale: Scale) -> Report {
    // The same for all, and so many that a thread has time to wake.
    let n = scale.pick(1_000_000, 10_000);
    let [one, two] = [1, 2].map(|workers| pool(workers, 1));
    let rayon = rayon_pool(2);

    let mut all = Comparison::new();
    let one = all.add("forkring iter_stream, 1 worker", || rate(n, || iter_stream(&one, n)));
    let two = all.add("forkring iter_stream, 2 workers", || rate(n, || iter_stream(&two, n)));
    let rival = all.add("rayon par_bridge, 2 threads", || {
        rate(n, || {
            let sum: u64 = rayon.install(|| (0..black_box(n)).par_bridge().map(|n| black_box(n) + 1).sum());
            assert_eq!(sum, expected(n));
        })
    });
    let outcome = all.run(scale);
    let mut report = outcome.rate_report("item");
    report.checks = vec![
        outcome
            .ratio("time of par_bridge / forkring's with 2 workers", rival, two, 0, AtLeast(2.0))
            .stretch(3.0),
        outcome.ratio("time of par_bridge / forkring's with 1 worker", rival, one, 0, NoGoal),
    ];
    report
}

/// The sum of `n + 1` for all `n` below `items`.
fn expected(items: u64) -> u64 {
    items * (items + 1) / 2
}

fn iter_stream(pool: &Pool, items: u64) {
    let (mut count, mut sum) = (0, 0);
    let summary = pool.iter_stream(
        0..black_box(items),
        |n: u64| n + 1,
        |result| {
            count += 1;
            sum += result.expect("a result");
        },
    );
    assert_eq!(summary.expect("a valid granularity").ok, items);
    assert_eq!((count, sum), (items, expected(items)));
}

/// Once the window is full, the oldest chunk is taken before the next is sent.
fn spawn_chunks(rayon: &ThreadPool, items: u64, chunk: usize) {
    let (mut count, mut sum) = (0, 0);
    let mut take = |receiver: Receiver<Vec<u64>>| {
        for result in receive(receiver) {
            count += 1;
            sum += result;
        }
    };
    let mut window = VecDeque::with_capacity(CHUNKS_IN_FLIGHT);
    for first in (0..black_box(items)).step_by(chunk) {
        let chunk: Vec<u64> = (first..items.min(first + chunk as u64)).collect();
        window.push_back(rayon_spawn(rayon, move || chunk.into_iter().map(|n| n + 1).collect()));
        if window.len() == CHUNKS_IN_FLIGHT {
            window.pop_front().into_iter().for_each(&mut take);
        }
    }
    window.into_iter().for_each(take);
    assert_eq!((count, sum), (items, expected(items)));
}
