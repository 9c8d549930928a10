//! Streams of `u64`, one worker, at several granularities: `iter_stream` (results as they come) and `map` (in order).
//! Beside them rayon with one thread and the same source: `spawn` of a `Vec` of 1000 items with a oneshot channel, 64
//! of them in flight. All in one process run, taking turns; every result is checked.

mod common;

use std::hint::black_box;

use common::{Contender, Mode, alternate, ns_each, rayon_pool, receive, timed, windowed};
use criterion::{BenchmarkId, Criterion, Throughput};
use forkring::{Granularity, Pool};
use futures::channel::oneshot;
use rayon::ThreadPool;

const GRANULARITIES: [usize; 4] = [1, 10, 100, 1000];
/// What rayon's chunks have, and how many of them are in flight.
const CHUNK: usize = 1000;
const CHUNKS_IN_FLIGHT: usize = 64;

fn main() {
    let mode = Mode::from_args();
    // In this order: what forks comes before what starts threads.
    let pools = GRANULARITIES.map(|granularity| {
        let pool =
            Pool::builder().workers(1).granularity(Granularity::Fixed(granularity)).build().expect("a pool");
        (granularity, pool)
    });
    let rayon = rayon_pool(1);

    for (_, pool) in &pools {
        iter_stream(pool, 5_000);
        map(pool, 5_000);
    }
    spawn_chunks(&rayon, 5_000);

    if mode != Mode::List {
        compare(mode, &pools, &rayon);
    }
    let mut criterion = common::criterion();
    bench(&mut criterion, mode, &pools, &rayon);
    criterion.final_summary();
}

/// Enough items that a turn takes some tens of milliseconds.
fn items(mode: Mode, granularity: usize) -> u64 {
    let full = match granularity {
        0..10 => 500_000,
        10..100 => 2_000_000,
        _ => 10_000_000,
    };
    mode.pick(full, 10_000)
}

fn compare(mode: Mode, pools: &[(usize, Pool)], rayon: &ThreadPool) {
    let figures = |ns: f64| [ns, 1000.0 / ns];
    let chunks = items(mode, CHUNK);
    let mut contenders = vec![Contender::new("rayon spawn of 1000, 64 in flight", move || {
        figures(ns_each(chunks, || spawn_chunks(rayon, chunks)))
    })];
    let names = [
        ["iter_stream, granularity 1", "map, granularity 1"],
        ["iter_stream, granularity 10", "map, granularity 10"],
        ["iter_stream, granularity 100", "map, granularity 100"],
        ["iter_stream, granularity 1000", "map, granularity 1000"],
    ];
    for ((granularity, pool), [stream_name, map_name]) in pools.iter().zip(names) {
        let n = items(mode, *granularity);
        contenders.push(Contender::new(stream_name, move || figures(ns_each(n, || iter_stream(pool, n)))));
        contenders.push(Contender::new(map_name, move || figures(ns_each(n, || map(pool, n)))));
    }
    let results = alternate(mode.rounds(), contenders);
    results.print("streams of u64, one worker", ["ns an item", "M items/s"]);
}

fn bench(criterion: &mut Criterion, mode: Mode, pools: &[(usize, Pool)], rayon: &ThreadPool) {
    let mut group = criterion.benchmark_group("stream");
    let mut add = |name: &str, granularity: usize, run: &dyn Fn(u64)| {
        let n = items(mode, granularity) / mode.pick(10, 1);
        group.throughput(Throughput::Elements(n));
        group.bench_function(BenchmarkId::new(name, granularity), |b| {
            b.iter_custom(|loops| timed(|| (0..loops).for_each(|_| run(n))));
        });
    };
    for (granularity, pool) in pools {
        add("iter_stream", *granularity, &|n| iter_stream(pool, n));
        add("map", *granularity, &|n| map(pool, n));
    }
    add("rayon", CHUNK, &|n| spawn_chunks(rayon, n));
    group.finish();
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

fn map(pool: &Pool, items: u64) {
    let mut count = 0;
    for result in pool.map(0..black_box(items), |n: u64| n + 1) {
        count += 1;
        assert_eq!(result.expect("a result"), count);
    }
    assert_eq!(count, items);
}

fn spawn_chunks(rayon: &ThreadPool, items: u64) {
    let (mut count, mut sum) = (0, 0);
    let sent = (0..black_box(items)).step_by(CHUNK).map(|first| {
        let chunk: Vec<u64> = (first..items.min(first + CHUNK as u64)).collect();
        let (sender, receiver) = oneshot::channel();
        rayon.spawn(move || {
            let results: Vec<u64> = chunk.into_iter().map(|n| n + 1).collect();
            sender.send(results).expect("a listener");
        });
        receiver
    });
    windowed(sent, CHUNKS_IN_FLIGHT, |receiver: oneshot::Receiver<Vec<u64>>| {
        for result in receive(receiver) {
            count += 1;
            sum += result;
        }
    });
    assert_eq!((count, sum), (items, expected(items)));
}
