//! Acceptance cases, group E and its neighbours: time limits, kills, retries, and what a loss means for the pool.

#![allow(unsafe_code, reason = "tasks that set signal handlers")]

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use forkring::{Granularity, OnWorkerLoss, Pool, Signal, TaskError, View, Worker};
use nix::libc;

use crate::crashes::{Crash, at_full_strength, die};
use crate::support::{
    BOUND, both, builder, cell, collect_errors, count_fds, counter, errors, eventually, gate, gone,
    in_process, new_pool, outcome, process, scenario, scenario_output, signal, zygote,
};

const SHORT: Duration = Duration::from_millis(50);

fn forever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn pid(_: ()) -> u32 {
    std::process::id()
}

/// Which of the only worker's lives serves.
fn life(pool: &Pool) -> u64 {
    pool.submit_with(|w: &Worker, _: &View<()>| w.generation(), &()).wait().unwrap()
}

/// The process that was killed has gone, where it was one.
fn ended(pid: u32) {
    if !in_process() {
        gone(pid);
    }
}

/// A pool whose only worker is busy until `gate(0)` opens.
fn busy(pool: &Pool) -> forkring::Task<u32> {
    let task = pool.submit(
        |_: ()| {
            counter(0).bump();
            gate(0).wait();
            std::process::id()
        },
        &(),
    );
    counter(0).wait_for(1);
    task
}

#[test]
fn e_01_a_task_that_runs_out_of_time_is_killed_and_its_worker_replaced() {
    both(|| {
        let pool = builder().workers(1).task_timeout(Duration::from_millis(100)).build().unwrap();
        let old = pool.worker_pids()[0];
        assert_eq!(life(&pool), 0);
        let start = Instant::now();
        let error = pool.submit(|_: ()| -> () { forever() }, &()).wait().unwrap_err();
        assert!(
            matches!(error, TaskError::TimedOut { limit } if limit == Duration::from_millis(100)),
            "{error}"
        );
        assert!(start.elapsed() >= Duration::from_millis(100));
        assert_eq!(life(&pool), 1);
        ended(old);
    });
}

/// Whose death only the zygote can report, and the zygote is a process that tasks can name.
#[test]
fn e_01_a_zygote_that_is_stopped_does_not_make_limits_void() {
    scenario(|| {
        collect_errors();
        let stop = |zygote| {
            signal(zygote, Signal::SIGSTOP);
            eventually("a stopped zygote", || process(zygote).unwrap().state == 'T');
        };
        let pool = Pool::new(2).unwrap();
        stop(zygote());
        let endless = pool.with_timeout(SHORT).submit(|_: ()| -> () { forever() }, &());
        assert!(outcome(endless).unwrap_err().is_timed_out());
        at_full_strength(&pool);
        stop(zygote());
        pool.close().wait();
        let pool = Pool::new(2).unwrap();
        stop(zygote());
        pool.terminate();
        // Such as that it had to be killed.
        assert!(errors().is_empty(), "{:?}", errors());
    });
}

#[test]
fn e_01_a_dead_worker_that_cannot_be_reaped_does_not_keep_its_task() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        let old = pool.worker_pids()[0];
        let tracer = std::thread::spawn(move || {
            // SAFETY: it touches no memory.
            let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, old as libc::pid_t, 0_usize, 0_usize) };
            cell(0).store(u64::from(seized == 0), SeqCst);
            counter(0).bump();
            gate(0).wait();
        });
        counter(0).wait_for(1);
        if cell(0).load(SeqCst) == 1 {
            let endless = pool.with_timeout(SHORT).submit(|_: ()| -> () { forever() }, &());
            assert!(outcome(endless).unwrap_err().is_timed_out());
            assert_eq!(life(&pool), 1);
            assert_eq!(process(old).unwrap().state, 'Z');
        } else {
            eprintln!("SKIPPED: ptrace is not permitted here");
        }
        gate(0).open();
        // Its end is reported to the zygote when nobody traces it any more.
        tracer.join().unwrap();
        at_full_strength(&pool);
    });
}

/// What a worker says of how far a result has come is not taken for progress.
#[test]
fn e_01_words_that_go_back_and_forth_are_no_progress() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        let liar = |_: ()| {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            let side_b =
                maps.lines().find(|line| line.contains("forkring-b") && line.contains("rw-s")).unwrap();
            let start = usize::from_str_radix(side_b.split('-').next().unwrap(), 16).unwrap();
            // The words of a response that flows: tag, start, sent.
            let word = |n: usize| std::ptr::with_exposed_provenance::<AtomicU64>(start + 4 * 128 + 8 * n);
            // SAFETY: shared words of a mapping that stays.
            let [tag, from, sent] = [0, 1, 2].map(|n| unsafe { &*word(n) });
            from.store(128, SeqCst);
            sent.store(128, SeqCst);
            loop {
                // It is the worker's first request.
                tag.fetch_xor(1, SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let limit = Duration::from_millis(320);
        let lie = pool.with_timeout(limit).submit(move |n: ()| -> () { liar(n) }, &());
        assert!(outcome(lie).unwrap_err().is_timed_out());
    });
}

#[test]
fn e_01_a_time_out_is_per_task_too_and_wins_over_the_pools() {
    both(|| {
        let pool = builder().workers(1).task_timeout(Duration::from_secs(3600)).build().unwrap();
        let error = pool.with_timeout(SHORT).submit(|_: ()| -> () { forever() }, &()).wait().unwrap_err();
        assert!(matches!(error, TaskError::TimedOut { limit } if limit == SHORT), "{error}");
        let patient = pool.options().timeout(Duration::from_secs(3600));
        assert!(patient.submit(pid, &()).wait().is_ok());
    });
}

#[test]
fn e_02_the_clock_starts_when_the_task_does() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let slow = busy(&pool);
        let limit = Duration::from_millis(200);
        let fast = pool.with_timeout(limit).submit(|n: u32| n, &7);
        // Longer than the limit: the task behind must not have been on the clock.
        std::thread::sleep(3 * limit);
        gate(0).open();
        slow.wait().unwrap();
        assert_eq!(fast.wait().unwrap(), 7);
        let endless = pool.with_timeout(SHORT).submit(|_: ()| -> () { forever() }, &());
        assert!(endless.wait().unwrap_err().is_timed_out());
    });
}

#[test]
fn e_03_some_time_out_and_others_do_not() {
    both(|| {
        let pool = builder().workers(3).task_timeout(Duration::from_millis(100)).build().unwrap();
        let tasks: Vec<_> = (0..6_u32)
            .map(|n| {
                pool.submit(
                    |n: u32| {
                        if n % 2 == 1 {
                            forever()
                        }
                        n
                    },
                    &n,
                )
            })
            .collect();
        for (n, task) in (0..).zip(tasks) {
            match task.wait() {
                Ok(value) => assert_eq!((value, n % 2), (n, 0)),
                Err(error) => assert!(error.is_timed_out() && n % 2 == 1, "{n}: {error}"),
            }
        }
        at_full_strength(&pool);
    });
}

#[test]
fn e_04_a_time_out_does_not_disturb_another_task() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let mut gated = busy(&pool);
        let endless = pool.with_timeout(SHORT).submit(|_: ()| -> () { forever() }, &());
        assert!(endless.wait().unwrap_err().is_timed_out());
        assert!(gated.wait_timeout(Duration::ZERO).is_none());
        gate(0).open();
        assert!(gated.wait().is_ok());
    });
}

#[test]
fn e_07_waiting_is_not_killing() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let mut task = busy(&pool);
        assert!(task.wait_timeout(SHORT).is_none());
        gate(0).open();
        assert_eq!(task.wait().unwrap(), pool.worker_pids()[0]);
    });
}

/// Sleeps as long as its input says, in microseconds, and returns it.
fn nap(us: u64) -> u64 {
    std::thread::sleep(Duration::from_micros(us));
    us
}

#[test]
fn e_08_m_04_a_result_races_its_limit_and_nobody_else_is_hit() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let limited = pool.with_timeout(Duration::from_millis(2));
        let mut late = 0;
        for round in 0..500_u64 {
            // Around the limit, so that some make it, some do not, and some end while they are being killed.
            let task = limited.submit(nap, &(1_800 + round % 7 * 100));
            let behind: Vec<_> = (0..8_u64).map(|n| pool.submit(|n: u64| n * 3, &n)).collect();
            match task.wait() {
                Ok(us) => assert_eq!(us, 1_800 + round % 7 * 100),
                Err(error) => {
                    assert!(error.is_timed_out(), "{error}");
                    late += 1;
                }
            }
            for (n, task) in (0..).zip(behind) {
                assert_eq!(task.wait().unwrap(), n * 3);
            }
        }
        assert!(late > 0);
        at_full_strength(&pool);
    });
}

#[test]
fn m_04_a_kill_races_completion_and_nobody_else_is_hit() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let (mut killed, mut done) = (0, 0);
        // On a machine that is busy a task may take long to begin: then some are left alone for longer, until one has ended.
        for round in 0..100_000_u64 {
            if round >= 1000 && killed > 0 && done > 0 {
                break;
            }
            let task = pool.submit(nap, &(round % 50));
            let behind: Vec<_> = (0..4_u64).map(|n| pool.submit(|n: u64| n + 1, &n)).collect();
            let pause = Duration::from_micros(round * 7 % 130) * (1 + round as u32 / 1000);
            let start = Instant::now();
            while start.elapsed() < pause {
                std::hint::spin_loop();
            }
            task.kill();
            match task.wait() {
                Ok(us) => {
                    assert_eq!(us, round % 50);
                    done += 1;
                }
                Err(error) => {
                    assert!(error.is_cancelled(), "{error}");
                    killed += 1;
                }
            }
            for (n, task) in (0..).zip(behind) {
                assert_eq!(task.wait().unwrap(), n + 1);
            }
        }
        assert!(killed > 0 && done > 0, "{killed} killed, {done} done");
        at_full_strength(&pool);
    });
}

#[test]
fn e_10_e_11_tasks_behind_a_cancelled_and_a_killed_one_run() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let first = busy(&pool);
        let second = pool.submit(|_: ()| counter(1).bump(), &());
        let third = pool.submit(|_: ()| 3, &());
        assert!(second.cancel());
        first.kill();
        assert!(first.wait().unwrap_err().is_cancelled());
        assert!(second.wait().unwrap_err().is_cancelled());
        assert_eq!(third.wait().unwrap(), 3);
        assert_eq!(counter(1).get(), 0, "a cancelled task never runs");
    });
}

#[test]
fn e_12_a_running_task_is_killed() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let old = pool.worker_pids()[0];
        let task = busy(&pool);
        let handle = task.handle();
        let killer = std::thread::spawn(move || handle.kill());
        assert!(task.wait().unwrap_err().is_cancelled());
        killer.join().unwrap();
        assert_eq!(life(&pool), 1);
        ended(old);
    });
}

#[test]
fn e_12_a_queued_task_that_is_killed_never_runs_and_no_worker_dies() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let first = busy(&pool);
        let second = pool.submit(|_: ()| counter(1).bump(), &());
        second.kill();
        assert!(second.wait().unwrap_err().is_cancelled());
        gate(0).open();
        assert_eq!(first.wait().unwrap(), pool.worker_pids()[0]);
        assert_eq!(counter(1).get(), 0);
    });
}

#[test]
fn e_12_killing_a_finished_task_or_one_of_another_pool_does_nothing() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let old = pool.worker_pids()[0];
        let task = pool.submit(pid, &());
        eventually("the task's end", || task.is_finished());
        let handle = task.handle();
        task.kill();
        assert_eq!(task.wait().unwrap(), old);
        // The cell may serve another task by this time.
        let next = busy(&pool);
        handle.kill();
        gate(0).open();
        assert_eq!(next.wait().unwrap(), old);
        drop(pool);
        handle.kill();
    });
}

#[test]
fn e_12_kill_on_drop_ends_a_running_task_and_plain_dropping_does_not() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let old = pool.worker_pids()[0];
        drop(busy(&pool));
        gate(0).open();
        assert_eq!(life(&pool), 0);
        let task = pool.options().kill_on_drop().submit(
            |_: ()| {
                counter(1).bump();
                forever()
            },
            &(),
        );
        let task: forkring::Task<()> = task;
        counter(1).wait_for(1);
        drop(task);
        ended(old);
        assert_eq!(life(&pool), 1);
    });
}

#[test]
fn e_12_kill_on_drop_of_a_future_that_a_select_abandons() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let old = pool.worker_pids()[0];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let task = pool.options().kill_on_drop().submit(|_: ()| -> () { forever() }, &());
            assert!(tokio::time::timeout(SHORT, task).await.is_err());
        });
        ended(old);
        assert_eq!(life(&pool), 1);
    });
}

#[test]
fn e_14_no_time_at_all_ends_a_task_before_it_runs() {
    both(|| {
        let pool = builder().workers(1).task_timeout(Duration::ZERO).build().unwrap();
        let run = |_: ()| counter(0).bump();
        assert!(pool.submit(run, &()).wait().unwrap_err().is_timed_out());
        let runs = |_: &Worker| counter(0).bump();
        let runs_with = |_: &Worker, _: &View<u32>| counter(0).bump();
        for outcome in [pool.broadcast(runs), pool.broadcast_with(runs_with, &1_u32)].into_iter().flatten() {
            assert!(outcome.unwrap_err().is_timed_out());
        }
        let pool = new_pool(1).unwrap();
        assert!(pool.with_timeout(Duration::ZERO).submit(run, &()).wait().unwrap_err().is_timed_out());
        let late = pool.options().deadline(Duration::ZERO);
        assert!(late.submit(run, &()).wait().unwrap_err().is_timed_out());
        let results: Vec<_> = late.map([(), ()], run).collect();
        assert!(results.len() == 2 && results.iter().all(|r| r.as_ref().is_err_and(TaskError::is_timed_out)));
        assert_eq!(counter(0).get(), 0);
    });
}

#[test]
fn e_15_cancelling_a_finished_task_has_no_effect() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let task = pool.submit(|n: u32| n, &5);
        eventually("the task's end", || task.is_finished());
        assert!(!task.cancel());
        assert_eq!(task.wait().unwrap(), 5);
    });
}

#[test]
fn e_16_submit_cancel_and_close_at_once() {
    both(|| {
        for _ in 0..20 {
            let pool = new_pool(1).unwrap();
            let task = pool.submit(|n: u32| n, &5);
            task.cancel();
            pool.close().wait();
            assert!(matches!(task.wait(), Ok(5) | Err(TaskError::Cancelled)));
        }
    });
}

#[test]
fn e_17_cancelling_with_big_data_in_flight() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let big = vec![1_u8; 20 << 20];
        let tasks: Vec<_> = (0..10).map(|_| pool.submit(|v: Vec<u8>| v.len(), &big)).collect();
        let mut tasks = tasks.into_iter();
        assert_eq!(tasks.next().unwrap().wait().unwrap(), big.len());
        let rest: Vec<_> = tasks.collect();
        for task in &rest {
            task.cancel();
        }
        for task in rest {
            assert!(matches!(task.wait(), Ok(_) | Err(TaskError::Cancelled)));
        }
        assert_eq!(pool.submit(|n: u32| n, &1).wait().unwrap(), 1);
    });
}

#[test]
fn e_18_repeated_kills_and_cancels_leave_one_worker_and_no_descriptor() {
    both(|| {
        let pool = new_pool(1).unwrap();
        pool.submit(|n: u32| n, &1).wait().unwrap();
        let fds = count_fds();
        for round in 1..=100 {
            let started: forkring::Task<()> = pool.submit(
                |_: ()| {
                    counter(0).bump();
                    forever()
                },
                &(),
            );
            counter(0).wait_for(round);
            started.kill();
            assert!(started.wait().unwrap_err().is_cancelled());
            // This one may or may not have started.
            let task = pool.submit(|_: ()| -> () { forever() }, &());
            task.kill();
            assert!(task.wait().unwrap_err().is_cancelled());
        }
        at_full_strength(&pool);
        eventually("as many descriptors as before", || count_fds() <= fds + 2);
    });
}

#[test]
fn e_21_the_first_signal_comes_first_and_sigkill_after_the_gap() {
    scenario(|| {
        extern "C" fn note(_: libc::c_int) {
            cell(0).fetch_add(1, SeqCst);
        }
        let gap = Duration::from_millis(200);
        let pool = Pool::builder().workers(1).kill_signal(Signal::SIGTERM, gap).build().unwrap();
        let stubborn = pool.with_timeout(SHORT).submit(
            |_: ()| -> () {
                let handler: extern "C" fn(libc::c_int) = note;
                // SAFETY: the handler adds to an atomic, which is async-signal-safe.
                unsafe { libc::signal(libc::SIGTERM, handler as libc::sighandler_t) };
                forever()
            },
            &(),
        );
        let start = Instant::now();
        assert!(stubborn.wait().unwrap_err().is_timed_out());
        assert_eq!(cell(0).load(SeqCst), 1);
        assert!(start.elapsed() >= SHORT + gap, "{:?}", start.elapsed());
        // One that obeys the first signal does not keep anybody waiting for the gap.
        let pool = Pool::builder().workers(1).kill_signal(Signal::SIGTERM, 2 * BOUND).build().unwrap();
        let obedient = pool.with_timeout(SHORT).submit(|_: ()| -> () { forever() }, &());
        assert!(obedient.wait().unwrap_err().is_timed_out());
        at_full_strength(&pool);
    });
}

#[test]
fn e_21_a_result_that_comes_within_the_gap_counts() {
    scenario(|| {
        let pool = Pool::builder().workers(1).kill_signal(Signal::SIGUSR1, BOUND).build().unwrap();
        let old = pool.worker_pids()[0];
        let task = pool.with_timeout(SHORT).submit_with(
            |_: &Worker, _: &View<()>| {
                extern "C" fn note(_: libc::c_int) {
                    counter(0).bump();
                }
                let handler: extern "C" fn(libc::c_int) = note;
                // SAFETY: the handler adds to an atomic and wakes a futex, which is async-signal-safe.
                unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
                counter(0).wait_for(1);
                5
            },
            &(),
        );
        assert_eq!(task.wait().unwrap(), 5);
        // It was told to leave, and is replaced.
        assert_ne!(pool.submit(pid, &()).wait().unwrap(), old);
        gone(old);
    });
}

#[test]
fn e_01_a_deadline_ends_what_still_waits_and_what_runs() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let first = busy(&pool);
        let start = Instant::now();
        let waiting = pool.options().deadline(SHORT).submit(|_: ()| counter(1).bump(), &());
        assert!(waiting.wait().unwrap_err().is_timed_out());
        assert!(start.elapsed() >= SHORT);
        gate(0).open();
        let old = first.wait().unwrap();
        assert_eq!(life(&pool), 0, "nobody was killed for it");
        let running = pool.options().deadline(SHORT).submit(|_: ()| -> () { forever() }, &());
        assert!(running.wait().unwrap_err().is_timed_out());
        ended(old);
        assert_eq!(counter(1).get(), 0);
        // Many, most of which are over long before.
        let relaxed = pool.options().deadline(Duration::from_secs(3600));
        for n in 0..5000_u32 {
            assert_eq!(relaxed.submit(|n: u32| n, &n).wait().unwrap(), n);
        }
    });
}

#[test]
fn m_01_a_time_out_in_a_batch_ends_one_item() {
    both(|| {
        for granularity in [1, 7, 1000] {
            let pool = builder().workers(2).task_timeout(Duration::from_millis(100)).build().unwrap();
            let base = cell(0).fetch_add(1, SeqCst);
            let run = |n: u64| {
                cell(1 + n as usize).fetch_add(1, SeqCst);
                if n == 500 {
                    forever()
                }
                n
            };
            let map = pool.map(0..1000_u64, run).granularity(Granularity::Fixed(granularity));
            let results: Vec<_> = map.collect();
            for (n, result) in (0..).zip(results) {
                match result {
                    Ok(value) => assert_eq!(value, n),
                    Err(error) => assert!(error.is_timed_out() && n == 500, "{granularity}, {n}: {error}"),
                }
            }
            assert!((1..=1000).all(|n| cell(n).load(SeqCst) == base + 1), "each body ran once");
            at_full_strength(&pool);
        }
    });
}

#[test]
fn e_02_in_a_stream_the_limit_is_per_item() {
    both(|| {
        // Each item takes less than the limit, the batch of them much more.
        let pool = builder().workers(1).task_timeout(Duration::from_millis(200)).build().unwrap();
        let map = pool.map(0..30_u64, |n| nap(20_000) + n).granularity(Granularity::Fixed(30));
        assert_eq!(map.map(Result::unwrap).sum::<u64>(), 30 * 20_000 + 29 * 15);
    });
}

#[test]
fn m_01_workers_are_renewed_in_the_middle_of_batches() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let run = |n: u64| {
            cell(n as usize).fetch_add(1, SeqCst);
            counter(0).bump();
            nap(n % 3)
        };
        let mut map = pool.map(0..2000_u64, run).granularity(Granularity::Fixed(100));
        let mut seen = 0;
        for wanted in [1_u32, 300, 700, 1500] {
            while counter(0).get() < wanted {
                assert_eq!(map.next().unwrap().unwrap(), seen % 3);
                seen += 1;
            }
            pool.recycle_workers();
        }
        for result in map {
            assert_eq!(result.unwrap(), seen % 3);
            seen += 1;
        }
        assert_eq!(seen, 2000);
        assert!((0..2000).all(|n| cell(n).load(SeqCst) == 1), "each body ran once");
        at_full_strength(&pool);
        assert!(pool.stats().workers.iter().all(|w| w.generation > 0));
    });
}

#[test]
fn a_15_renewed_workers_are_no_losses() {
    both(|| {
        static TROUBLE: Mutex<Vec<String>> = Mutex::new(Vec::new());
        static NOTICES: Mutex<Vec<String>> = Mutex::new(Vec::new());
        forkring::hooks::set_log_error(|text| TROUBLE.lock().unwrap().push(text.to_owned()));
        forkring::hooks::set_log_info(|text| NOTICES.lock().unwrap().push(text.to_owned()));
        let pool = new_pool(3).unwrap();
        let tasks: Vec<_> = (0..300_u32)
            .map(|n| {
                if n % 50 == 25 {
                    pool.recycle_workers();
                }
                pool.submit(|n: u32| n, &n)
            })
            .collect();
        for (n, task) in (0..).zip(tasks) {
            assert_eq!(task.wait().unwrap(), n);
        }
        at_full_strength(&pool);
        assert_eq!(*TROUBLE.lock().unwrap(), [""; 0]);
        assert!(NOTICES.lock().unwrap().iter().any(|text| text.contains("because it is renewed")));
    });
}

#[test]
fn a_13_renewing_and_closing_at_once() {
    both(|| {
        for _ in 0..20 {
            let pool = new_pool(2).unwrap();
            let tasks: Vec<_> = (0..50_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
            pool.recycle_workers();
            pool.close().wait();
            for (n, task) in (0..).zip(tasks) {
                assert_eq!(task.wait().unwrap(), n);
            }
        }
    });
}

#[test]
fn d_14_a_stopped_worker_is_killed_by_its_tasks_time_out() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        let old = pool.worker_pids()[0];
        let task = pool.with_timeout(Duration::from_millis(300)).submit(
            |_: ()| -> () {
                counter(0).bump();
                forever()
            },
            &(),
        );
        counter(0).wait_for(1);
        signal(old, Signal::SIGSTOP);
        assert!(task.wait().unwrap_err().is_timed_out());
        gone(old);
        at_full_strength(&pool);
    });
}

#[test]
fn d_16_a_poison_task_ends_after_its_retries() {
    scenario(|| {
        let pool = Pool::builder().workers(2).retries(3).build().unwrap();
        let poison = pool.submit(
            |_: ()| -> () {
                counter(0).bump();
                die(Crash::Abort)
            },
            &(),
        );
        match poison.wait().unwrap_err() {
            TaskError::WorkerLost(lost) => assert_eq!(lost.attempts(), 4),
            other => panic!("{other}"),
        }
        assert_eq!(counter(0).get(), 4);
        let once = pool.submit(
            |_: ()| {
                if counter(1).bump() == 0 {
                    die(Crash::Abort)
                }
                11
            },
            &(),
        );
        assert_eq!(once.wait().unwrap(), 11);
        // Panics and time-outs are no losses.
        assert!(
            pool.submit(|_: ()| -> () { panic!("{}", counter(2).bump()) }, &())
                .wait()
                .unwrap_err()
                .is_panicked()
        );
        let late = pool.with_timeout(SHORT).submit(
            |_: ()| -> () {
                counter(3).bump();
                forever()
            },
            &(),
        );
        assert!(late.wait().unwrap_err().is_timed_out());
        assert_eq!((counter(2).get(), counter(3).get()), (1, 1));
        // By default there are none; an option can say so too.
        let none = pool.options().retries(0).submit(
            |_: ()| -> () {
                counter(4).bump();
                die(Crash::Abort)
            },
            &(),
        );
        assert!(none.wait().unwrap_err().is_worker_lost());
        assert_eq!(counter(4).get(), 1);
    });
}

#[test]
fn d_16_items_of_a_batch_are_retried_one_by_one() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        let run = |n: u64| {
            let before = cell(n as usize).fetch_add(1, SeqCst);
            if n == 30 && before == 0 || n == 60 {
                die(Crash::Segv)
            }
            n
        };
        let map = pool.options().retries(2).map(0..100_u64, run).granularity(Granularity::Fixed(50));
        for (n, result) in (0..).zip(map) {
            match result {
                Ok(value) => assert_eq!(value, n),
                Err(TaskError::WorkerLost(lost)) => assert_eq!((n, lost.attempts()), (60, 3)),
                Err(other) => panic!("{n}: {other}"),
            }
        }
        let runs = |n: usize| cell(n).load(SeqCst);
        assert_eq!((runs(30), runs(60), runs(31), runs(99)), (2, 3, 1, 1));
    });
}

#[test]
fn d_15_tasks_that_all_crash_end_one_by_one() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        let tasks: Vec<_> = (0..300).map(|_| pool.submit(|_: ()| -> () { die(Crash::Abort) }, &())).collect();
        for task in tasks {
            assert!(task.wait().unwrap_err().is_worker_lost());
        }
        at_full_strength(&pool);
    });
}

#[test]
fn d_17_victims_run_at_most_once() {
    scenario(|| {
        let pool = Pool::new(4).unwrap();
        let tasks: Vec<_> =
            (0..4000_u64).map(|n| pool.submit(|n: u64| cell(n as usize).fetch_add(1, SeqCst), &n)).collect();
        let mut lost = 0;
        for (n, task) in tasks.into_iter().enumerate() {
            if n % 100 == 0
                && let Some(&victim) = pool.worker_pids().first()
            {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(victim as i32), Signal::SIGKILL);
            }
            match task.wait() {
                Ok(before) => assert_eq!(before, 0),
                Err(error) => {
                    assert!(error.is_worker_lost(), "{error}");
                    lost += 1;
                }
            }
        }
        assert!(lost <= 40);
        assert!((0..4000).all(|n| cell(n).load(SeqCst) <= 1));
        at_full_strength(&pool);
    });
}

#[test]
fn d_01_a_loss_tells_all_that_is_known() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        for n in 0..5_u32 {
            pool.submit(|n: u32| n, &n).wait().unwrap();
        }
        let pid = pool.worker_pids()[0];
        let crash = pool.submit(
            |_: ()| -> () {
                nap(100_000);
                die(Crash::Segv)
            },
            &(),
        );
        let TaskError::WorkerLost(lost) = crash.wait().unwrap_err() else { panic!("not lost") };
        assert_eq!((lost.worker(), lost.generation(), lost.pid(), lost.attempts()), (0, 0, pid, 1));
        assert_eq!((lost.signal(), lost.exit_code()), (Some(libc::SIGSEGV), None));
        assert_eq!(lost.tasks_done(), 5);
        assert!(lost.max_rss_bytes() > 0);
        let ran = lost.ran_for().unwrap();
        assert!(ran >= Duration::from_millis(90) && ran < BOUND, "{ran:?}");
        let text = lost.to_string();
        assert!(text.contains("SIGSEGV") && text.contains(&pid.to_string()), "{text}");
    });
}

#[test]
fn d_01_fail_all_ends_the_pool_with_the_cause() {
    scenario(|| {
        let pool = Pool::builder().workers(2).on_worker_loss(OnWorkerLoss::FailAll).build().unwrap();
        let gated = busy(&pool);
        let crash = pool.submit(|_: ()| -> () { die(Crash::Segv) }, &());
        assert!(crash.wait().unwrap_err().is_worker_lost());
        let error = gated.wait().unwrap_err();
        assert!(error.is_pool_failed() && error.to_string().contains("SIGSEGV"), "{error}");
        pool.closed().wait();
        assert!(pool.submit(|n: u32| n, &1).wait().unwrap_err().is_pool_failed());
    });
}

#[test]
fn d_01_fail_all_does_not_mind_kills_and_renewals() {
    scenario(|| {
        let pool = Pool::builder().workers(1).on_worker_loss(OnWorkerLoss::FailAll).build().unwrap();
        let late = pool.with_timeout(SHORT).submit(|_: ()| -> () { forever() }, &());
        assert!(late.wait().unwrap_err().is_timed_out());
        let task = busy(&pool);
        task.kill();
        assert!(task.wait().unwrap_err().is_cancelled());
        pool.recycle_workers();
        assert_eq!(pool.submit(|n: u32| n, &4).wait().unwrap(), 4);
    });
}

#[test]
fn d_01_abort_ends_the_program_as_nproc_does() {
    let finished = scenario_output(|| {
        let pool = Pool::builder().workers(2).on_worker_loss(OnWorkerLoss::Abort).build().unwrap();
        let _ = pool.submit(|_: ()| -> () { die(Crash::Segv) }, &()).wait();
        gate(0).wait();
    });
    if let Some(finished) = finished {
        assert_eq!(finished.signal(), Some(libc::SIGABRT));
        assert!(finished.stderr.contains("the program is aborted"), "{}", finished.stderr);
    }
}

#[test]
fn j_11_stopping_the_whole_program_times_nobody_out() {
    scenario(|| {
        // The helper outside of the pool stops and continues everybody.
        let master = std::process::id();
        let pool = Pool::builder().workers(1).task_timeout(Duration::from_millis(400)).build().unwrap();
        let worker = pool.worker_pids()[0];
        let task = pool.submit(
            |_: ()| {
                counter(0).bump();
                counter(1).wait_for(1);
                9
            },
            &(),
        );
        counter(0).wait_for(1);
        let helper = crate::support::fork_and(move || {
            let all = [worker, master];
            all.iter().for_each(|&pid| signal(pid, Signal::SIGSTOP));
            std::thread::sleep(Duration::from_millis(1500));
            all.iter().rev().for_each(|&pid| signal(pid, Signal::SIGCONT));
            counter(1).bump();
            0
        });
        assert_eq!(task.wait().unwrap(), 9);
        assert_eq!(crate::support::exit_code_of(helper), 0);
        assert!(process(worker).is_some());
    });
}

#[test]
fn e_13_kills_of_tasks_in_another_process_do_nothing() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        let task = busy(&pool);
        let (handle, limited) = (task.handle(), pool.with_timeout(SHORT));
        let child = crate::support::fork_and(|| {
            handle.kill();
            task.kill();
            pool.recycle_workers();
            i32::from(!limited.submit(|n: u32| n, &1).wait().unwrap_err().is_not_in_this_process())
        });
        assert_eq!(crate::support::exit_code_of(child), 0);
        gate(0).open();
        assert_eq!(task.wait().unwrap(), pool.worker_pids()[0]);
    });
}
