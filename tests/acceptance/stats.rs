//! Acceptance cases: L-06, what `Pool::stats` counts; F-29, the progress of streams.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use forkring::{Granularity, Pool, Progress, Stats, Task, TaskFn, View, Worker, WorkerState};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;

use crate::crashes::{relent, set_limit};
use crate::streams::{counted, pulled};
use crate::support::{
    both, builder, cease_to_be_root, cell, counter, eventually, exit_code_of, fork_and, gate, held,
    in_process, new_pool, outcome, quietly, scenario, signal, zygote,
};

/// `[submitted, queued, running, done, failed, cancelled, lost]`, which has to add up.
#[track_caller]
fn all(stats: &Stats) -> [u64; 7] {
    let Stats { submitted, queued, running, done, failed, cancelled, lost, .. } = *stats;
    assert_eq!(submitted, queued + running + done + failed + cancelled + lost, "\n{stats}");
    for (sum, one) in [
        (stats.done, (|w| w.done) as fn(&forkring::WorkerStats) -> u64),
        (stats.failed, |w| w.failed),
        (stats.timed_out, |w| w.timed_out),
        (stats.cancelled, |w| w.cancelled),
        (stats.lost, |w| w.lost),
        (stats.running, |w| w.running),
    ] {
        assert_eq!(stats.workers.iter().map(one).sum::<u64>(), sum, "\n{stats}");
    }
    [submitted, queued, running, done, failed, cancelled, lost]
}

#[test]
fn l_06_two_run_and_three_wait() {
    both(|| {
        let pool = new_pool(2).unwrap();
        assert_eq!(all(&pool.stats()), [0; 7]);
        let running = [0, 1].map(|n| pool.submit(held, &n));
        counter(0).wait_for(2);
        let waiting = [2, 3, 4].map(|n| pool.submit(|n: u32| n, &n));
        let stats = pool.stats();
        assert_eq!(all(&stats), [5, 3, 2, 0, 0, 0, 0]);
        assert!(stats.workers.iter().all(|w| w.state == WorkerState::Busy && w.running == 1));
        assert_eq!(stats.workers.iter().map(|w| w.queued).sum::<u64>(), 3);

        assert!(waiting[2].cancel());
        assert_eq!(all(&pool.stats()), [5, 2, 2, 0, 0, 1, 0]);
        gate(0).open();
        for task in running.into_iter().chain(waiting) {
            let _ = outcome(task);
        }
        let stats = pool.stats();
        assert_eq!(all(&stats), [5, 0, 0, 4, 0, 1, 0]);
        assert!(stats.workers.iter().all(|w| w.state == WorkerState::Idle));

        pool.close().wait();
        assert!(outcome(pool.submit(|n: u32| n, &0)).unwrap_err().is_closed());
        let stats = pool.stats();
        assert_eq!(all(&stats), [5, 0, 0, 4, 0, 1, 0], "what was refused is no task of the pool");
        assert!(stats.workers.iter().all(|w| w.state == WorkerState::Missing && w.pid.is_none()));
    });
}

#[test]
fn l_06_each_way_to_end_has_its_counter() {
    both(|| {
        quietly();
        let pool = new_pool(1).unwrap();
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
        assert_eq!(outcome(pool.submit(|s: String| s.repeat(1000), &"long".to_owned())).unwrap().len(), 4000);
        assert!(outcome::<()>(pool.submit(|()| panic!("no"), &())).is_err());
        assert!(outcome::<()>(pool.submit(|()| panic!("{}", "no".repeat(1000)), &())).is_err());
        assert_eq!(all(&pool.stats()), [4, 0, 0, 2, 2, 0, 0]);

        let impatient = pool.options().timeout(Duration::from_millis(30));
        let slow = impatient.submit(|()| gate(0).wait(), &());
        assert!(outcome(slow).unwrap_err().is_timed_out());
        let stats = pool.stats();
        assert_eq!(all(&stats), [5, 0, 0, 2, 3, 0, 0]);
        assert_eq!(stats.timed_out, 1);

        // Where workers are processes, two tasks are lost in what follows.
        let lost = u64::from(!in_process());
        if lost == 1 {
            let crash = outcome::<()>(pool.submit(|()| std::process::abort(), &()));
            assert!(crash.unwrap_err().is_worker_lost());
        }
        assert_eq!(all(&pool.stats()), [5 + lost, 0, 0, 2, 3, 0, lost]);

        let busy = pool.submit(held, &0);
        counter(0).wait_for(1);
        let unstarted = pool.submit(held, &1);
        assert!(unstarted.cancel());
        drop(pool.submit(held, &2));
        busy.kill();
        assert!(outcome(busy).unwrap_err().is_cancelled());
        assert!(outcome(unstarted).unwrap_err().is_cancelled());
        // A request that was cancelled in the ring may still be answered: that is no second end.
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
        assert_eq!(all(&pool.stats()), [9 + lost, 0, 0, 3, 3, 3, lost]);

        // Two deaths and a retry after the first: one task.
        if lost == 1 {
            let again = pool.options().retries(1);
            let twice = again.submit(|()| std::process::abort(), &());
            assert!(outcome::<()>(twice).unwrap_err().is_worker_lost());
        }
        assert_eq!(all(&pool.stats()), [9 + 2 * lost, 0, 0, 3, 3, 3, 2 * lost]);

        // Not encoded, not sent.
        let tight = builder().workers(1).max_payload(4096).build().unwrap();
        assert!(outcome(tight.submit(|v: Vec<u8>| v.len(), &vec![0; 5000])).unwrap_err().is_too_large());
        assert_eq!(all(&tight.stats()), [0; 7]);

        let never = [pool.submit(held, &0), pool.submit(held, &1)];
        counter(0).wait_for(2);
        pool.terminate();
        assert!(never.into_iter().all(|task| outcome(task).unwrap_err().is_terminated()));
        let stats = pool.stats();
        assert_eq!(all(&stats), [11 + 2 * lost, 0, 0, 3, 3, 5, 2 * lost]);
        assert_eq!(stats.timed_out, 1);
    });
}

#[test]
fn l_06_a_worker_keeps_its_figures_when_its_process_is_replaced() {
    both(|| {
        quietly();
        let pool = new_pool(2).unwrap();
        let ones = || pool.broadcast(|w: &Worker| w.generation()).into_iter().map(Result::unwrap);
        assert!(ones().all(|generation| generation == 0));
        let before = pool.stats();
        assert_eq!(before.workers.iter().map(|w| w.id).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(before.workers.iter().filter_map(|w| w.pid).collect::<Vec<_>>(), pool.worker_pids());
        assert!(before.workers.iter().all(|w| (w.generation, w.restarts, w.done) == (0, 0, 1)));

        let killed = u64::from(!in_process());
        if killed == 1 {
            let pid = before.workers[0].pid.unwrap();
            signal(pid, Signal::SIGKILL);
            eventually("a replacement", || {
                let worker = &pool.stats().workers[0];
                worker.state == WorkerState::Idle && worker.pid.is_some_and(|other| other != pid)
            });
        }
        pool.recycle_workers();
        eventually("replacements", || {
            pool.stats().workers.iter().all(|w| w.state == WorkerState::Idle && w.restarts > 0)
                && pool.stats().workers[0].restarts == 1 + killed
        });
        assert_eq!(ones().collect::<Vec<_>>(), [1 + killed, 1]);
        let after = pool.stats();
        let seen: Vec<_> = after.workers.iter().map(|w| (w.generation, w.restarts, w.done)).collect();
        assert_eq!(seen, [(1 + killed, 1 + killed, 2), (1, 1, 2)]);
        let table = after.to_string();
        assert_eq!(table.lines().count(), 4, "{table}");
        assert!(table.contains(&after.workers[1].pid.unwrap().to_string()), "{table}");
        pool.close().wait();
        assert_eq!(pool.stats().workers[0].restarts, 1 + killed, "the end is no restart");
    });
}

/// A process that could not be had is no start, and no generation.
#[test]
fn l_06_a_worker_that_could_not_be_started_at_once_is_counted_once() {
    both(|| {
        cease_to_be_root();
        let pool = new_pool(1).unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
        let starter = if in_process() { std::process::id() } else { zygote() };
        relent(starter, Resource::RLIMIT_NPROC, soft, hard);
        set_limit(starter, Resource::RLIMIT_NPROC, 0, hard);
        pool.recycle_workers();
        counter(1).wait_for(3);
        let generation = outcome(pool.submit_with(|w: &Worker, _: &View<()>| w.generation(), &())).unwrap();
        let worker = &pool.stats().workers[0];
        assert_eq!((worker.generation, worker.restarts), (generation, 1));
        assert_eq!(generation, 1);
        pool.close().wait();
        let worker = &pool.stats().workers[0];
        assert_eq!((worker.generation, worker.restarts), (1, 1));
    });
}

/// How many of a hundred items, ten in a message, give a result.
fn good_by_ten(pool: &Pool, f: impl Fn(u32) -> u32 + TaskFn) -> usize {
    pool.map(0..100, f).granularity(Granularity::Fixed(10)).filter(Result::is_ok).count()
}

#[test]
fn l_06_a_message_of_a_stream_is_one_task() {
    both(|| {
        quietly();
        let pool = new_pool(2).unwrap();
        assert_eq!(good_by_ten(&pool, |n| n), 100);
        assert_eq!(all(&pool.stats()), [10, 0, 0, 10, 0, 0, 0]);
        // Whatever becomes of its items.
        assert_eq!(good_by_ten(&pool, |n| if n == 55 { panic!() } else { n }), 99);
        assert_eq!(all(&pool.stats()), [20, 0, 0, 20, 0, 0, 0]);
        // What is left of one is another one.
        if !in_process() {
            assert_eq!(good_by_ten(&pool, |n| if n == 55 { std::process::abort() } else { n }), 99);
            assert_eq!(all(&pool.stats()), [31, 0, 0, 30, 0, 0, 1]);
        }
    });
}

/// Some tasks panic, some take their worker along, some are cut off.
fn fate(n: u32) -> u32 {
    match n {
        n if n % 1000 == 500 => std::process::abort(),
        n if n % 97 == 3 => panic!("no"),
        n => n,
    }
}

/// How many tasks a submitter hands out.
const EACH: u32 = 4000;
/// Where submitters count what they are about to submit, and what they have submitted.
const BEGUN: usize = 4000;
const SUBMITTED: usize = 4001;

/// Submits tasks, drops and cancels some; how many gave a result and how many did not.
fn submit_many(pool: &Pool, first: u32) -> [u64; 4] {
    let tasks = (first..first + EACH).map(|n| {
        cell(BEGUN).fetch_add(1, SeqCst);
        let task = pool.submit(fate, &n);
        cell(SUBMITTED).fetch_add(1, SeqCst);
        if n % 31 == 7 {
            task.cancel();
        }
        task
    });
    let tasks: Vec<Task<u32>> = tasks.collect();
    let mut ends = [0; 4];
    for task in tasks {
        ends[match outcome(task) {
            Ok(_) => 0,
            Err(error) if error.is_panicked() => 1,
            Err(error) if error.is_cancelled() => 2,
            Err(error) if error.is_worker_lost() => 3,
            Err(error) => panic!("{error}"),
        }] += 1;
    }
    ends
}

#[test]
fn l_06_the_sums_hold_at_any_instant() {
    scenario(|| {
        quietly();
        let pool = new_pool(4).unwrap();
        let over = AtomicBool::new(false);
        let ends = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut last = [0; 7];
                let mut looks = 0_u32;
                while !over.load(SeqCst) {
                    let least = cell(SUBMITTED).load(SeqCst);
                    let stats = pool.stats();
                    let most = cell(BEGUN).load(SeqCst);
                    let seen = all(&stats);
                    assert!((least..=most).contains(&seen[0]), "{least} {most}\n{stats}");
                    // What has ended has ended, and nothing comes to the pool that goes away again.
                    for at in [0, 3, 4, 5, 6] {
                        assert!(seen[at] >= last[at], "{at}: {last:?}\n{stats}");
                    }
                    last = seen;
                    looks += 1;
                }
                looks
            });
            let submitters: Vec<_> = (0..3)
                .map(|k| {
                    scope.spawn({
                        let pool = &pool;
                        move || submit_many(pool, k * EACH)
                    })
                })
                .collect();
            let ends = submitters.into_iter().map(|one| one.join().unwrap());
            let ends = ends.fold([0; 4], |sum, one| std::array::from_fn(|at| sum[at] + one[at]));
            over.store(true, SeqCst);
            assert!(watcher.join().unwrap() > 10);
            ends
        });
        let [done, failed, cancelled, lost] = ends;
        let stats = pool.stats();
        assert_eq!(all(&stats), [u64::from(3 * EACH), 0, 0, done, failed, cancelled, lost], "\n{stats}");
        assert!(done > 0 && failed > 0 && lost > 0);
    });
}

#[test]
fn l_06_in_a_fork_there_is_nothing_to_count() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        outcome(pool.submit(|n: u32| n, &1)).unwrap();
        let child = fork_and(|| i32::from(pool.stats() != Stats::default()));
        assert_eq!(exit_code_of(child), 0);
        assert_eq!(pool.stats().done, 1);
    });
}

// ---- progress of streams

#[test]
fn f_29_progress_of_an_infinite_source_reads_nothing_ahead() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for ordered in [true, false] {
            let (seen, delivered) = (Cell::new(None), Cell::new(0_u64));
            let before = pulled();
            let stream = pool.map(counted(), |n: u32| n).window(20);
            let stream = if ordered { stream } else { stream.unordered() };
            let stream = stream.on_progress(|progress: Progress| {
                // The one that is told of is on its way out.
                assert_eq!(progress.done, delivered.get() + 1);
                seen.set(Some(progress));
            });
            for result in stream {
                delivered.set(delivered.get() + 1);
                assert!(result.is_ok());
                let ahead = pulled() - before - delivered.get();
                assert!(ahead <= 20, "{ahead} items were pulled and not delivered");
                if seen.get().is_some() {
                    break;
                }
            }
            let Progress { done, failed, total, elapsed, .. } = seen.get().unwrap();
            assert_eq!((failed, total), (0, None));
            assert!(elapsed >= Duration::from_millis(100));
            let rate = seen.get().unwrap().rate();
            assert!((rate * elapsed.as_secs_f64() - done as f64).abs() < 1.0, "{rate}");
        }
    });
}

#[test]
fn f_29_progress_goes_by_hundredths_where_the_total_is_known() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let mut told = Vec::new();
        let odd = |n: u32| if n == 100 { panic!("no") } else { n };
        let stream = pool.map(0..1000, odd).granularity(Granularity::Fixed(7));
        let mut items = 0;
        let summary =
            stream.on_progress(|progress| told.push(progress)).unordered().run(|_| items += 1).unwrap();
        assert_eq!((summary.items, summary.failed, items), (1000, 1, 1000));
        assert!(told.len() >= 101, "{}", told.len());
        assert!(told.is_sorted_by_key(|progress| (progress.done, progress.elapsed)));
        assert!(told.iter().all(|progress| progress.total == Some(1000)));
        assert_eq!(told.last().map(|progress| (progress.done, progress.failed)), Some((1000, 1)));
    });
}

#[test]
fn f_29_progress_counts_errors_of_the_source_and_ends_with_the_stream() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let last = Cell::new(None);
        let note = |progress: Progress| last.set(Some((progress.done, progress.failed, progress.total)));
        let items = ["1", "x", "3", "y"].map(str::parse::<u32>);
        let results = pool.try_map(items.clone(), |n: u32| n).on_progress(note).window(2);
        assert_eq!(results.indexed().filter(|(_, result)| result.is_err()).count(), 2);
        assert_eq!(last.take(), Some((4, 2, Some(4))));
        // A source that filters does not know its length.
        let even = (0..10).filter(|n| n % 2 == 0);
        assert_eq!(pool.map(even, |n: u32| n).on_progress(note).indexed().count(), 5);
        assert_eq!(last.take(), Some((5, 0, None)));
        let nothing = pool.map(0..0, |n: u32| n).on_progress(note);
        assert_eq!(nothing.count(), 0);
        assert_eq!(last.take(), Some((0, 0, Some(0))));
        // Stopped by the caller: the last call tells how far it came.
        let endless = pool.map(0.., |n: u32| n).on_progress(note);
        let run =
            endless.run(|n| if n.unwrap() == 9 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
        assert!(run.unwrap().stopped);
        assert_eq!(last.take(), Some((10, 0, None)));
    });
}
