//! Where `membarrier` cannot be had, both sides of a sleep handshake fence: a handful of scenarios about who wakes whom, with a
//! filter that refuses the call.
//!
//! They show that the program takes that way and that all of it is there. That a fence is missing is seen once in a great many
//! runs, if at all: for that there are the models, in which both halves are fences anyway.
//!
//! `FORKRING_WITHOUT_MEMBARRIER=1` runs all scenarios of the suite so.

#![allow(unsafe_code, reason = "asks the kernel for a membarrier")]

use std::time::Duration;

use forkring::{Granularity, Pool, Service, TaskError, View, WaitPolicy, Worker};
use futures::executor::block_on;
use futures::{StreamExt, stream};
use nix::errno::Errno;
use nix::libc;

use crate::support::{
    both, builder, cell, counter, deny_membarrier, eventually, gate, outcome, quietly, scenario,
};

/// To be called first. `false`: filters cannot be had here.
#[must_use]
fn without_membarrier() -> bool {
    if let Err(error) = deny_membarrier() {
        eprintln!("SKIPPED: no filter for system calls: {error}");
        return false;
    }
    // SAFETY: asks what there is.
    let asked = unsafe { libc::syscall(libc::SYS_membarrier, 0_i64, 0_i64, 0_i64) };
    assert_eq!((asked, Errno::last()), (-1, Errno::ENOSYS));
    true
}

/// A program that builds its pool and gives up system calls afterwards, as one should.
#[test]
fn a_master_that_refuses_the_call_once_it_has_its_pool_is_woken_too() {
    both(|| {
        let pools = [WaitPolicy::Park, WaitPolicy::Adaptive]
            .map(|policy| builder().workers(2).wait_policy(policy).service(|n: u64| n + 1).build().unwrap());
        if !without_membarrier() {
            return;
        }
        for pool in pools {
            for n in 0..300_u64 {
                assert_eq!(outcome(pool.submit(|n: u64| n * 2, &n)).unwrap(), n * 2);
                assert_eq!(block_on(pool.submit(|n: u64| n * 3, &n)).unwrap(), n * 3);
            }
            let ask = |w: &Worker<(), Service<u64, u64>>, n: &View<u64>| w.call(&n.to_native()).unwrap();
            for n in 0..50_u64 {
                assert_eq!(outcome(pool.submit_with(ask, &n)).unwrap(), n + 1);
            }
            let doubled = pool.map(0..10_000_u64, |n: u64| n * 2).map(Result::unwrap);
            assert!(doubled.eq((0..10_000).map(|n| n * 2)));
        }
    });
}

#[test]
fn whoever_sleeps_is_woken() {
    both(|| {
        if !without_membarrier() {
            return;
        }
        for policy in [WaitPolicy::Park, WaitPolicy::Adaptive] {
            let pool = builder().workers(2).wait_policy(policy).service(|n: u64| n + 1).build().unwrap();
            // The worker falls asleep at the moment at which the next task comes.
            for n in 0..5000_u64 {
                assert_eq!(outcome(pool.submit(|n: u64| n * 2, &n)).unwrap(), n * 2);
            }
            for n in 0..2000_u64 {
                assert_eq!(block_on(pool.submit(|n: u64| n * 3, &n)).unwrap(), n * 3);
            }
            let ask = |w: &Worker<(), Service<u64, u64>>, n: &View<u64>| w.call(&n.to_native()).unwrap();
            for n in 0..200_u64 {
                assert_eq!(outcome(pool.submit_with(ask, &n)).unwrap(), n + 1);
            }
            // Nobody waits: the driver is there in the end.
            for _ in 0..100 {
                let before = counter(0).get();
                pool.spawn(|()| _ = counter(0).bump(), &());
                counter(0).wait_for(before + 1);
            }
            pool.close().wait();
        }
    });
}

/// One station, several submitters, each of which may keep it for a while (edge KEEP).
#[test]
fn threads_share_a_station() {
    both(|| {
        if !without_membarrier() {
            return;
        }
        let pool = builder().workers(1).build().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..3_u64 {
                let pool = &pool;
                scope.spawn(move || {
                    for round in 0..20 {
                        let tasks: Vec<_> =
                            (0..500).map(|n| pool.submit(|n: u64| n + 1, &(thread + round + n))).collect();
                        for (n, task) in (0..).zip(tasks) {
                            assert_eq!(outcome(task).unwrap(), thread + round + n + 1);
                        }
                    }
                });
            }
        });
        assert_eq!(pool.stats().done, 30_000);
    });
}

#[test]
fn streams_of_every_kind_come_to_their_end() {
    both(|| {
        if !without_membarrier() {
            return;
        }
        let pool = builder().workers(2).build().unwrap();
        for granularity in [Granularity::Fixed(1), Granularity::Fixed(64), Granularity::Auto] {
            let squares = pool.map(0..20_000_u64, |n: u64| n * n).granularity(granularity);
            assert!(squares.map(Result::unwrap).eq((0..20_000).map(|n| n * n)));
            let texts = pool.map(0..2000_u32, |n: u32| n.to_string()).granularity(granularity).unordered();
            assert_eq!(texts.map(Result::unwrap).map(|text| text.len()).sum::<usize>(), 6890);
            let streamed = pool.map_stream(stream::iter(0..2000_u32), |n: u32| n).granularity(granularity);
            assert_eq!(block_on(streamed.map(Result::unwrap).collect::<Vec<_>>()).len(), 2000);
        }
        let rows: Vec<Vec<f32>> = (0..4).map(|n| vec![n as f32; 200_000]).collect();
        assert!(pool.map_ref(&rows, |row: Vec<f32>| row).map(Result::unwrap).eq(rows.iter().cloned()));
    });
}

/// Edges CANCEL and CUT.
#[test]
fn what_is_cancelled_does_not_start() {
    both(|| {
        if !without_membarrier() {
            return;
        }
        let pool = builder().workers(1).build().unwrap();
        for round in 0..300_u32 {
            let tasks: Vec<_> = (0..10).map(|_| pool.submit(|()| counter(1).bump(), &())).collect();
            let cancelled = tasks.iter().skip(round as usize % 3).filter(|task| task.cancel()).count();
            let before = counter(1).get();
            let ends = tasks.into_iter().map(outcome).collect::<Vec<_>>();
            let ran = ends.iter().filter(|end| end.is_ok()).count();
            assert!(ends.iter().all(|end| end.as_ref().map_or_else(TaskError::is_cancelled, |_| true)));
            assert!(ran + cancelled <= 10 && counter(1).get() >= before);
        }
        // A batch that is stopped ends with the item that was running.
        for round in 0..20_usize {
            let run = |round: usize| {
                cell(round).fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                counter(10 + round).bump();
                gate(10 + round).wait();
            };
            // The source is pulled again once the stopper knows of the first batch.
            let last = std::iter::once_with(move || {
                counter(40 + round).bump();
                gate(70 + round).wait();
                round
            });
            let items = std::iter::repeat_n(round, 50).chain(last);
            let stream = pool.map(items, run).granularity(Granularity::Fixed(50));
            let stopper = stream.stopper();
            let reader = std::thread::spawn(move || stream.filter(Result::is_ok).count());
            counter(10 + round).wait_for(1);
            counter(40 + round).wait_for(1);
            stopper.stop();
            gate(10 + round).open();
            gate(70 + round).open();
            assert_eq!(reader.join().unwrap(), 1);
            assert_eq!(cell(round).load(std::sync::atomic::Ordering::SeqCst), 1);
        }
    });
}

#[test]
fn kills_and_time_limits_hit_one_task() {
    both(|| {
        if !without_membarrier() {
            return;
        }
        quietly();
        let pool = builder().workers(2).build().unwrap();
        for round in 1..=20 {
            let stuck = pool.submit(
                |()| {
                    counter(0).bump();
                    gate(0).wait();
                },
                &(),
            );
            let behind: Vec<_> = (0..20_u64).map(|n| pool.submit(|n: u64| n, &n)).collect();
            counter(0).wait_for(round);
            stuck.kill();
            assert!(outcome(stuck).unwrap_err().is_cancelled());
            for (n, task) in (0..).zip(behind) {
                assert_eq!(outcome(task).unwrap(), n);
            }
        }
        let limited = pool.with_timeout(Duration::from_millis(100));
        let run = |n: u64| {
            if n == 30 {
                gate(0).wait();
            }
            n
        };
        let results: Vec<_> = limited.map(0..100_u64, run).granularity(Granularity::Fixed(50)).collect();
        let late: Vec<_> = (0..100).filter(|n| results[*n].is_err()).collect();
        assert_eq!(late, [30]);
        assert!(results[30].as_ref().unwrap_err().is_timed_out());
        gate(0).open();
    });
}

#[test]
fn a_crash_costs_its_task_only() {
    scenario(|| {
        if !without_membarrier() {
            return;
        }
        quietly();
        let pool = Pool::new(2).unwrap();
        for _ in 0..20 {
            let crash = |n: u64| if n == 30 { std::process::abort() } else { n };
            let results: Vec<_> = pool.map(0..100_u64, crash).granularity(Granularity::Fixed(50)).collect();
            assert_eq!(results.iter().filter(|one| one.is_err()).count(), 1);
            assert!(results[30].as_ref().unwrap_err().is_worker_lost());
        }
    });
}

/// Both sides had agreed on `membarrier`, and one can make it no more: it looks by itself now and then.
#[test]
fn a_worker_that_sets_up_a_filter_goes_on_serving() {
    scenario(|| {
        let pool = Pool::builder().workers(1).wait_policy(WaitPolicy::Park).build().unwrap();
        let denied = |()| deny_membarrier().map_err(|error| error.to_string());
        if let Err(error) = outcome(pool.submit(denied, &())).unwrap() {
            return eprintln!("SKIPPED: no filter for system calls: {error}");
        }
        for n in 0..300_u64 {
            assert_eq!(outcome(pool.submit(|n: u64| n + 1, &n)).unwrap(), n + 1);
            assert_eq!(block_on(pool.submit(|n: u64| n + 2, &n)).unwrap(), n + 2);
        }
        assert_eq!(pool.map(0..5000_u64, |n: u64| n).map(Result::unwrap).sum::<u64>(), 12_497_500);
        let pid = pool.worker_pids()[0];
        eventually("it sleeps", || crate::support::process(pid).is_some_and(|p| p.state == 'S'));
        assert_eq!(pool.stats().workers[0].restarts, 0);
    });
}
