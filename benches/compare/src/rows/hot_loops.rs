//! Submitting a million tasks, then taking all results in order.

use std::hint::black_box;

use forkring::Pool;

use crate::measure::{Comparison, Scale, rate};
use crate::report::Goal::AtLeast;
use crate::report::Report;
use crate::rivals::threads::{
    ChannelPool, rayon_pool, rayon_spawn, rayon_spawn_oneshot, receive, tokio_here,
};

fn tasks(scale: Scale) -> u64 {
    scale.pick(1_000_000, 10_000)
}

pub(crate) fn one(scale: Scale) -> Report {
    compare(scale, 1, 10.0, 18.0)
}

pub(crate) fn four(scale: Scale) -> Report {
    compare(scale, 4, 3.0, 5.0)
}

/// So many workers, which get their tasks from as many threads.
fn compare(scale: Scale, threads: usize, goal: f64, stretch: f64) -> Report {
    let tasks = tasks(scale);
    // In this order: what forks comes before what starts threads.
    let pool = Pool::new(threads).expect("a pool");
    let rayon = rayon_pool(threads);
    let channel = ChannelPool::new(threads);

    let mut all = Comparison::new();
    let forkring = all.add("forkring", || {
        rate(tasks, || {
            submit_then_take(
                tasks,
                threads,
                |n| pool.submit(|n: u64| n + 1, &n),
                |task| task.wait().expect("a result"),
            );
        })
    });
    let rival = all.add("rayon spawn + oneshot", || {
        rate(tasks, || submit_then_take(tasks, threads, |n| rayon_spawn(&rayon, move || n + 1), receive))
    });
    let rival_too = all.add("rayon spawn + oneshot crate", || {
        rate(tasks, || {
            submit_then_take(
                tasks,
                threads,
                |n| rayon_spawn_oneshot(&rayon, move || n + 1),
                |receiver| receiver.recv().expect("a result"),
            );
        })
    });
    all.add("crossbeam-channel pool + oneshot", || {
        rate(tasks, || submit_then_take(tasks, threads, |n| channel.spawn(move || n + 1), receive))
    });
    let outcome = all.run(scale);
    let mut report = outcome.rate_report("task");
    let rival = outcome.fastest([rival, rival_too], 0);
    report.checks =
        vec![outcome.ratio("time of rayon / forkring's", rival, forkring, 0, AtLeast(goal)).stretch(stretch)];
    report
}

/// Submits `tasks` in all from `threads` at once, each of which takes the results of its own.
fn submit_then_take<T>(
    tasks: u64,
    threads: usize,
    submit: impl Fn(u64) -> T + Sync,
    take: impl Fn(T) -> u64 + Sync,
) {
    let share = tasks / threads as u64;
    let one_thread = || {
        let sent: Vec<T> = (0..share).map(|n| submit(black_box(n))).collect();
        for (n, task) in (0..).zip(sent) {
            assert_eq!(take(task), n + 1);
        }
    };
    if threads == 1 {
        return one_thread();
    }
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(one_thread);
        }
    });
}

pub(crate) fn futures(scale: Scale) -> Report {
    let tasks = tasks(scale);
    let pool = Pool::new(1).expect("a pool");
    let tokio = tokio_here();

    let mut all = Comparison::new();
    let forkring = all.add("forkring", || {
        rate(tasks, || {
            tokio.block_on(async {
                let sent: Vec<_> = (0..tasks).map(|n| pool.submit(|n: u64| n + 1, black_box(&n))).collect();
                for (n, task) in (0..).zip(sent) {
                    assert_eq!(task.await.expect("a result"), n + 1);
                }
            });
        })
    });
    let rival = all.add("tokio spawn", || {
        rate(tasks, || {
            tokio.block_on(async {
                let spawn = |n: u64| tokio::spawn(async move { n + 1 });
                let sent: Vec<_> = (0..tasks).map(|n| spawn(black_box(n))).collect();
                for (n, task) in (0..).zip(sent) {
                    assert_eq!(task.await.expect("a result"), n + 1);
                }
            });
        })
    });
    let outcome = all.run(scale);
    let mut report = outcome.rate_report("task");
    report.checks =
        vec![outcome.ratio("time of tokio / forkring's", rival, forkring, 0, AtLeast(5.0)).stretch(9.0)];
    report
}
