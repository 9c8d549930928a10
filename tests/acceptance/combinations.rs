//! Two things at once: a deadline and a full pool, a cancel and a retry, a batch that breaks off while the pool closes, a worker
//! that leaves while its work is being moved.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use forkring::{Granularity, Pool, Signal, TaskError, View, Worker};

use crate::crashes::{Crash, die};
use crate::support::{
    BOUND, both, builder, cell, counter, eventually, gate, new_pool, outcome, scenario, signal,
};

const SHORT: Duration = Duration::from_millis(50);

/// A pool of one worker with room for nothing but what runs, which waits for `gate(0)`.
fn full() -> (Pool, forkring::Task<u32>) {
    let pool = builder().workers(1).queue_limit(0).build().unwrap();
    let busy = pool.submit(
        |()| {
            let before = counter(0).bump();
            gate(0).wait();
            before
        },
        &(),
    );
    counter(0).wait_for(1);
    (pool, busy)
}

#[test]
fn b_19_a_deadline_ends_the_wait_for_room_of_a_thread() {
    both(|| {
        let (pool, busy) = full();
        let start = Instant::now();
        let late = pool.options().deadline(SHORT).submit(|()| counter(1).bump(), &());
        assert!(outcome(late).unwrap_err().is_timed_out());
        assert!(start.elapsed() >= SHORT);
        gate(0).open();
        outcome(busy).unwrap();
        assert_eq!(outcome(pool.submit(|n: u32| n, &4)).unwrap(), 4, "the place in line was given back");
        assert_eq!(counter(1).get(), 0);
    });
}

#[test]
fn b_19_a_deadline_ends_the_wait_for_room_of_a_future() {
    both(|| {
        let (pool, busy) = full();
        let late = pool.options().deadline(SHORT).submit_async(|()| counter(1).bump(), &());
        assert!(futures::executor::block_on(late).unwrap_err().is_timed_out());
        gate(0).open();
        outcome(busy).unwrap();
        assert_eq!(outcome(pool.submit(|n: u32| n, &4)).unwrap(), 4);
        assert_eq!(counter(1).get(), 0);
    });
}

#[test]
fn d_16_a_task_that_was_cancelled_while_it_ran_is_not_started_again() {
    scenario(|| {
        let pool = Pool::builder().workers(1).retries(5).build().unwrap();
        let task = pool.submit_with(
            |w: &Worker, _: &View<()>| -> () {
                counter(0).bump();
                while !w.cancelled() {
                    std::thread::yield_now();
                }
                die(Crash::Abort)
            },
            &(),
        );
        counter(0).wait_for(1);
        assert!(!task.cancel());
        assert!(outcome(task).unwrap_err().is_worker_lost());
        assert_eq!(counter(0).get(), 1);
    });
}

#[test]
fn d_18_a_batch_whose_worker_is_renewed_while_the_pool_closes_is_finished() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let run = |n: u64| {
            counter(0).bump();
            if n == 0 {
                gate(0).wait();
            }
            n
        };
        let mut map = pool.map(0..100_u64, run).granularity(Granularity::Fixed(100));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| map.next().unwrap().unwrap());
            counter(0).wait_for(1);
            pool.recycle_workers();
            let close = pool.close();
            gate(0).open();
            assert_eq!(first.join().unwrap(), 0);
            close.wait();
        });
        assert_eq!(map.map(Result::unwrap).sum::<u64>(), 99 * 50);
    });
}

#[test]
fn d_18_an_item_that_is_retried_while_the_pool_closes_runs() {
    scenario(|| {
        let pool = Pool::builder().workers(2).retries(1).build().unwrap();
        let run = |n: u64| {
            if n == 0 && counter(0).bump() == 0 {
                gate(0).wait();
                die(Crash::Abort)
            }
            n
        };
        let map = pool.map(0..10_u64, run).granularity(Granularity::Fixed(10));
        std::thread::scope(|scope| {
            let results = scope.spawn(|| map.collect::<Vec<_>>());
            counter(0).wait_for(1);
            // Keeps the pool from being empty between the loss and the second start.
            let long = pool.submit(|()| gate(1).wait(), &());
            let close = pool.close();
            gate(0).open();
            counter(0).wait_for(2);
            gate(1).open();
            let results = results.join().unwrap();
            assert!(results.iter().all(Result::is_ok), "{results:?}");
            outcome(long).unwrap();
            close.wait();
        });
    });
}

#[test]
fn d_18_a_batch_that_breaks_off_while_the_pool_closes_ends_item_by_item() {
    scenario(|| {
        for round in 0..40 {
            let pool = Pool::new(1).unwrap();
            let run = |n: u64| {
                if n == 3 {
                    counter(0).bump();
                    die(Crash::Abort)
                }
                n
            };
            let map = pool.map(0..10_u64, run).granularity(Granularity::Fixed(10));
            std::thread::scope(|scope| {
                let results = scope.spawn(|| map.collect::<Vec<_>>());
                counter(0).wait_for(round + 1);
                pool.close().wait();
                for (n, result) in (0..).zip(results.join().unwrap()) {
                    match result {
                        Ok(value) => assert_eq!(value, n),
                        Err(TaskError::WorkerLost(_)) => assert_eq!(n, 3),
                        // What the stream had not sent again before nothing was left to do.
                        Err(TaskError::Closed) => assert!(n > 3),
                        Err(other) => panic!("{n}: {other}"),
                    }
                }
            });
        }
    });
}

#[test]
fn a_07_a_pool_closes_although_a_replacement_hangs_in_init() {
    both(|| {
        let pool = builder()
            .workers(1)
            .max_tasks_per_worker(1)
            .init(|info| {
                if info.generation() > 0 {
                    counter(0).bump();
                    gate(0).wait();
                }
                Ok(())
            })
            .build()
            .unwrap();
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
        counter(0).wait_for(1);
        pool.close().wait();
    });
}

#[test]
fn a_12_workers_that_leave_while_their_work_is_moved() {
    both(|| {
        let pool = builder().workers(4).max_tasks_per_worker(3).build().unwrap();
        let mut sum = 0;
        for _ in 0..60 {
            let tasks: Vec<_> = (0..64_u64).map(|n| pool.submit(|n: u64| n, &n)).collect();
            for mut task in tasks {
                sum += task.wait_timeout(BOUND).expect("hang").unwrap();
            }
        }
        assert_eq!(sum, 60 * 63 * 32);
        pool.close().wait();
    });
}

#[test]
fn m_04_a_time_out_after_a_renewal_hits_one_item() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let run = |n: u64| {
            cell(n as usize).fetch_add(1, SeqCst);
            counter(0).bump();
            if n == 20 {
                gate(0).wait();
            }
            n
        };
        let limited = pool.with_timeout(Duration::from_millis(200));
        let map = limited.map(0..50_u64, run).granularity(Granularity::Fixed(50));
        std::thread::scope(|scope| {
            let results = scope.spawn(|| map.collect::<Vec<_>>());
            counter(0).wait_for(21);
            // The worker is to leave after its batch, in which an item then runs out of time.
            pool.recycle_workers();
            for (n, result) in (0..).zip(results.join().unwrap()) {
                match result {
                    Ok(value) => assert_eq!(value, n),
                    Err(error) => assert!(error.is_timed_out() && n == 20, "{n}: {error}"),
                }
            }
        });
        assert!((0..50).all(|n| cell(n).load(SeqCst) == 1));
    });
}

#[test]
fn b_13_work_that_is_moved_away_for_many_laps_does_not_lose_its_worker() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        let pids = pool.worker_pids();
        // It has nothing in hand, so what it is given is taken back and retired, lap after lap, before it can look.
        signal(pids[0], Signal::SIGSTOP);
        let tasks: Vec<_> = (0..40_000_u64).map(|n| pool.submit(|n: u64| n, &n)).collect();
        // All but what a stopped worker may hold on to.
        eventually("the other one has done the rest", || {
            tasks.iter().filter(|task| !task.is_finished()).count() <= 1
        });
        signal(pids[0], Signal::SIGCONT);
        let served: Vec<_> =
            pool.broadcast(|_: &Worker| std::process::id()).into_iter().map(Result::unwrap).collect();
        assert_eq!(served, pids);
        for (n, mut task) in (0..).zip(tasks) {
            assert_eq!(task.wait_timeout(BOUND).expect("hang").unwrap(), n);
        }
    });
}
