//! Acceptance cases: L-07, how long tasks wait and run; L-08, what each worker's time goes to.

use std::time::{Duration, Instant};

use forkring::{Granularity, Histogram, Pool, Stats, Timings, WorkerStats};
use nix::time::{ClockId, clock_gettime};

use crate::support::{
    both, builder, counter, eventually, gate, in_process, new_pool, outcome, process, quietly, scenario,
};

const MS: Duration = Duration::from_millis(1);

#[track_caller]
fn timings(stats: &Stats) -> &Timings {
    let timings = stats.timings.as_ref().expect("tasks are timed");
    let sum = |of: fn(&Timings) -> &Histogram| -> u64 {
        stats.workers.iter().filter_map(|w| w.timings.as_ref()).map(|one| of(one).count()).sum()
    };
    assert_eq!(sum(|t| &t.wait), timings.wait.count());
    assert_eq!(sum(|t| &t.run), timings.run.count());
    timings
}

#[test]
fn l_07_a_thousand_tasks_of_a_millisecond() {
    both(|| {
        let pool = builder().workers(2).timings(true).build().unwrap();
        let tasks: Vec<_> = (0..1000)
            .map(|n| {
                pool.submit(
                    |n: u32| {
                        std::thread::sleep(MS);
                        n
                    },
                    &n,
                )
            })
            .collect();
        for (n, task) in (0..).zip(tasks) {
            assert_eq!(outcome(task).unwrap(), n);
        }
        let stats = pool.stats();
        let Timings { wait, run, slowest, .. } = timings(&stats);
        assert_eq!((wait.count(), run.count(), stats.done), (1000, 1000, 1000));
        assert!(run.min() >= MS && run.quantile(0.5) >= MS && run.quantile(0.5) < 100 * MS, "{run}");
        // The last of them waited for about half of the others.
        assert!(wait.max() >= 400 * MS && wait.min() < wait.quantile(0.5), "{wait}");
        assert_eq!(slowest.len(), 10);
        assert!(slowest.is_sorted_by(|one, next| one.run >= next.run));
        // In a histogram the longest is known to 1 %.
        assert!(slowest[0].run <= run.max() && slowest[0].run >= run.max().mul_f64(0.98));
    });
}

#[test]
fn l_07_what_was_not_asked_for_is_not_there() {
    both(|| {
        let pool = new_pool(1).unwrap();
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
        let stats = pool.stats();
        assert_eq!(stats.timings, None);
        assert!(stats.workers.iter().all(|w| w.timings.is_none() && w.busy_time.is_none()));
        assert!(stats.workers.iter().all(|w| w.utilization().is_none() && w.ready_time > Duration::ZERO));
    });
}

#[test]
fn l_07_each_form_of_task_is_timed_however_it_ends() {
    both(|| {
        quietly();
        let pool = builder().workers(1).timings(true).build().unwrap();
        let count = || timings(&pool.stats()).run.count();
        assert_eq!(outcome(pool.submit(|s: String| s.len(), &"long".repeat(100))).unwrap(), 400);
        assert_eq!(outcome(pool.submit(|v: Vec<f64>| v, &vec![0.5; 100_000])).unwrap().len(), 100_000);
        assert_eq!(
            outcome(pool.submit(|n: usize| vec!["x".to_owned(); n], &200_000)).unwrap().len(),
            200_000
        );
        assert_eq!(count(), 3);
        assert!(outcome::<()>(pool.submit(|()| panic!("no"), &())).is_err());
        assert_eq!(pool.broadcast(|_: &forkring::Worker| 1).len(), 1);
        assert_eq!(count(), 5);
        // Ten messages of ten items each.
        let map = pool.map(0..100_u64, |n: u64| n + 1).granularity(Granularity::Fixed(10));
        assert_eq!(map.map(Result::unwrap).sum::<u64>(), 5050);
        assert_eq!(count(), 15);
        let words = pool.map(0..20_u64, |n: u64| n.to_string()).granularity(Granularity::Fixed(10));
        assert_eq!(words.map(Result::unwrap).map(|word| word.len()).sum::<usize>(), 30);
        assert_eq!(count(), 17);
        // One that never starts is not timed.
        let busy = pool.submit(
            |()| {
                counter(0).bump();
                gate(0).wait()
            },
            &(),
        );
        counter(0).wait_for(1);
        let unstarted = pool.submit(|n: u32| n, &1);
        assert!(unstarted.cancel());
        gate(0).open();
        outcome(busy).unwrap();
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
        assert_eq!(count(), 19);
        // Those that end with their workers are.
        let lost = u64::from(!in_process());
        if lost == 1 {
            let crash = outcome::<()>(pool.submit(|()| std::process::abort(), &()));
            assert!(crash.unwrap_err().is_worker_lost());
        }
        let late = pool.options().timeout(50 * MS).submit(|()| gate(1).wait(), &());
        let id = late.id();
        assert!(outcome(late).unwrap_err().is_timed_out());
        let stats = pool.stats();
        let timings = timings(&stats);
        assert_eq!(timings.run.count(), 20 + lost);
        let slowest = timings.slowest.iter().find(|task| task.id == id && task.generation == lost);
        let slowest = slowest.unwrap_or_else(|| panic!("{timings:?}"));
        assert!(slowest.run >= 50 * MS, "{slowest:?}");
        assert_eq!((slowest.worker, slowest.generation), (0, lost));
        assert!(slowest.function.contains("each_form_of_task"), "{slowest:?}");
    });
}

#[test]
fn l_07_a_task_that_is_moved_or_retried_has_waited_since_its_submission() {
    scenario(|| {
        quietly();
        let pool = Pool::builder().workers(1).timings(true).build().unwrap();
        let once = || {
            if counter(0).bump() == 0 {
                std::thread::sleep(20 * MS);
                std::process::abort();
            }
        };
        let again = pool.options().retries(1).submit(move |()| once(), &());
        outcome(again).unwrap();
        let stats = pool.stats();
        let Timings { wait, run, .. } = timings(&stats);
        assert_eq!((wait.count(), stats.done, stats.lost), (2, 1, 0));
        assert!(wait.max() >= 20 * MS && run.max() >= 20 * MS, "{wait} {run}");
    });
}

/// What a worker's time has gone to.
fn spent(w: &WorkerStats) -> Duration {
    w.init_time + w.ready_time
}

#[test]
fn l_08_a_workers_times_sum_to_the_wall_clock() {
    both(|| {
        let start = Instant::now();
        let pool = builder()
            .workers(2)
            .timings(true)
            .init(|_| {
                std::thread::sleep(30 * MS);
                Ok(())
            })
            .build()
            .unwrap();
        let built = Instant::now();
        // Worker 0 sleeps, worker 1 works, for as long as the test says.
        let both = pool.submit(
            |()| {
                counter(0).bump();
                gate(0).wait()
            },
            &(),
        );
        counter(0).wait_for(1);
        // In the middle of a task.
        std::thread::sleep(50 * MS);
        let before = built.elapsed();
        let stats = pool.stats();
        let after = start.elapsed();
        for w in &stats.workers {
            assert!(w.init_time >= 30 * MS, "{w:?}");
            assert!(spent(w) <= after && spent(w) >= before, "{w:?} {before:?} {after:?}");
            assert!(w.busy_time.unwrap() <= w.ready_time, "{w:?}");
        }
        let busy: Vec<_> = stats.workers.iter().filter(|w| w.busy_time.unwrap() >= 50 * MS).collect();
        assert_eq!(busy.len(), 1, "{stats:?}");
        assert!(busy[0].utilization().unwrap() > 0.0);
        gate(0).open();
        outcome(both).unwrap();
        let stats = pool.stats();
        assert!(stats.workers.iter().map(|w| w.busy_time.unwrap()).sum::<Duration>() >= 50 * MS);

        // A process that is gone is remembered, and gaps are nobody's time.
        pool.recycle_workers();
        eventually("replacements", || {
            pool.stats().workers.iter().all(|w| w.restarts == 1 && w.pid.is_some())
        });
        pool.broadcast(|_: &forkring::Worker| ());
        for w in &pool.stats().workers {
            assert!(w.init_time >= 60 * MS && spent(w) <= start.elapsed(), "{w:?}");
        }
    });
}

#[test]
fn l_08_bytes_memory_and_processor_time_of_each_worker() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let sums = |stats: &Stats| {
            let sum = |of: fn(&WorkerStats) -> u64| stats.workers.iter().map(of).sum::<u64>();
            (sum(|w| w.bytes_in), sum(|w| w.bytes_out))
        };
        assert_eq!(outcome(pool.submit(|n: u64| n, &7)).unwrap(), 7);
        assert_eq!(sums(&pool.stats()), (0, 0), "what travels in a slot does not count");
        let long = "a".repeat(100_000);
        assert_eq!(outcome(pool.submit(|s: String| s.len(), &long)).unwrap(), 100_000);
        let (bytes_in, bytes_out) = sums(&pool.stats());
        assert!((100_000..101_000).contains(&bytes_in) && bytes_out == 0, "{bytes_in} {bytes_out}");
        // Flows in and out, in parts.
        let row = vec![1.5_f64; 1 << 20];
        assert_eq!(outcome(pool.submit(|v: Vec<f64>| v, &row)).unwrap(), row);
        let (bytes_in, bytes_out) = sums(&pool.stats());
        assert!((8 << 20..(8 << 20) + 102_000).contains(&bytes_in), "{bytes_in}");
        assert!((8 << 20..(8 << 20) + 1000).contains(&bytes_out), "{bytes_out}");
        let strings = pool.map(0..100_u64, |_: u64| "b".repeat(1000)).granularity(Granularity::Fixed(10));
        assert_eq!(strings.map(Result::unwrap).count(), 100);
        let (_, more) = sums(&pool.stats());
        assert!((100_000..110_000).contains(&(more - bytes_out)), "{bytes_out} {more}");

        // A worker keeps what its earlier processes had.
        let before = sums(&pool.stats());
        pool.recycle_workers();
        eventually("replacements", || {
            pool.stats().workers.iter().all(|w| w.restarts == 1 && w.pid.is_some())
        });
        assert_eq!(sums(&pool.stats()), before);

        let grown = pool.broadcast(|w: &forkring::Worker| {
            if w.id() == 1 {
                let used = || clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap();
                let before = used();
                while used() < before + 40 * MS {}
                std::mem::forget(vec![1_u8; 64 << 20]);
            }
        });
        assert!(grown.into_iter().all(|one| one.is_ok()));
        let stats = pool.stats();
        let [idle, busy] = &stats.workers[..] else { unreachable!() };
        let memory = |w: &WorkerStats| w.resident_bytes.unwrap();
        assert!(busy.cpu_time.unwrap() >= 40 * MS, "{stats:?}");
        if in_process() {
            // All are this process.
            assert!(memory(busy) >= 64 << 20 && memory(idle) >= 64 << 20, "{stats:?}");
        } else {
            assert!(memory(busy) > memory(idle) + (48 << 20), "{stats:?}");
            assert!(busy.cpu_time > idle.cpu_time, "{stats:?}");
        }
        let ticks = process(busy.pid.unwrap()).unwrap().ticks;
        assert!(busy.cpu_time.unwrap() <= Duration::from_millis(10 * (ticks + 2)) + 100 * MS);

        pool.close().wait();
        let stats = pool.stats();
        assert!(stats.workers.iter().all(|w| w.resident_bytes.is_none() && w.cpu_time.is_none()));
        let (first, second) = (stats, pool.stats());
        assert_eq!(first, second, "nothing goes on after the end");
    });
}

#[test]
fn l_07_figures_can_be_read_while_the_pool_runs() {
    both(|| {
        let pool = builder().workers(2).timings(true).build().unwrap();
        let reader = pool.clone();
        let mut last = 0;
        let sum: u64 = pool
            .map(0..20_000_u64, |n: u64| n)
            .granularity(Granularity::Fixed(1))
            .map(Result::unwrap)
            .inspect(|n| {
                if n % 1000 == 0 {
                    let stats = reader.stats();
                    let count = timings(&stats).run.count();
                    assert!(count >= last && count <= stats.done + stats.failed, "{stats}");
                    assert_eq!(count, stats.done);
                    last = count;
                }
            })
            .sum();
        assert_eq!(sum, 199_990_000);
        assert_eq!(timings(&pool.stats()).wait.count(), 20_000);
    });
}
