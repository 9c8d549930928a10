//! Acceptance cases about workers that are replaced in good order, I-09, K-05, M-11.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use forkring::{Granularity, OnWorkerLoss, Pool, View, Worker, WorkerInfo, hooks};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use crate::support::{
    both, builder, cell, children, count_fds, counter, eventually, gate, gone, in_process, outcome,
    private_kib, return_freed_memory, rss_kib, scenario, signal, zygote,
};

static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static NOTICES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Collects what the pool says.
fn listen() {
    hooks::set_log_error(|text| ERRORS.lock().unwrap().push(text.to_owned()));
    hooks::set_log_info(|text| NOTICES.lock().unwrap().push(text.to_owned()));
}

#[track_caller]
fn no_errors() {
    let errors = ERRORS.lock().unwrap();
    assert!(errors.is_empty(), "{errors:?}");
}

fn recyclings() -> usize {
    NOTICES.lock().unwrap().iter().filter(|text| text.contains(", since it has ")).count()
}

fn pid() -> u32 {
    std::process::id()
}

#[test]
fn recycling_limits_of_nothing_are_errors() {
    both(|| {
        let fds = count_fds();
        for (builder, word) in [
            (builder().max_tasks_per_worker(0), "max_tasks_per_worker"),
            (builder().max_worker_memory(0), "max_worker_memory"),
        ] {
            let error = builder.workers(1).build().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(children().is_empty());
        assert_eq!(count_fds(), fds);
    });
}

#[test]
fn a_08_every_replacement_runs_init_once() {
    both(|| {
        listen();
        let pool = builder()
            .workers(2)
            .max_tasks_per_worker(1)
            .init(|info| {
                counter(0).bump();
                cell(100 + info.id()).store(info.generation() + 1, SeqCst);
                Ok(())
            })
            .build()
            .unwrap();
        let initialised = |w: &Worker, _: &View<()>| cell(100 + w.id()).load(SeqCst) == w.generation() + 1;
        let tasks: Vec<_> = (0..10).map(|_| pool.submit_with(initialised, &())).collect();
        assert!(tasks.into_iter().all(|task| outcome(task).unwrap()));
        pool.close().wait();
        let inits = counter(0).get();
        assert!((10..=12).contains(&inits), "{inits}");
        no_errors();
    });
}

#[test]
fn a_11_a_worker_is_replaced_after_its_tasks() {
    scenario(|| {
        listen();
        let pool = Pool::builder().workers(1).max_tasks_per_worker(3).build().unwrap();
        let pids: Vec<u32> = (0..4).map(|_| outcome(pool.submit(|()| pid(), &())).unwrap()).collect();
        assert!(pids[0] == pids[1] && pids[1] == pids[2] && pids[2] != pids[3], "{pids:?}");
        gone(pids[0]);
        assert_eq!(pool.worker_pids(), [pids[3]]);
        let zygote = zygote();
        assert_eq!(children().iter().filter(|p| p.pid != zygote).count(), 1);
        no_errors();
        let notices = NOTICES.lock().unwrap();
        let end = notices.iter().find(|text| text.contains(", since it has")).unwrap();
        assert!(end.contains(&pids[0].to_string()) && end.contains("max_tasks_per_worker"), "{end}");
    });
}

#[test]
fn a_11_a_batch_counts_as_its_items_and_is_not_cut() {
    both(|| {
        listen();
        let pool = builder().workers(1).max_tasks_per_worker(10).build().unwrap();
        let lives: Vec<u64> = pool
            .map_with(0..40_u32, |w: &Worker, _| w.generation())
            .granularity(Granularity::Fixed(8))
            .map(Result::unwrap)
            .collect();
        // Two messages of eight items each.
        assert!(lives.chunks(16).all(|run| run.iter().all(|life| *life == run[0])), "{lives:?}");
        assert_eq!(lives.iter().collect::<BTreeSet<_>>().len(), 3);
        no_errors();
    });
}

#[test]
fn a_12_a_backlog_outlives_its_workers() {
    both(|| {
        listen();
        for (workers, limit, tasks) in [(1, 2, 6), (2, 2, 8), (3, 1, 50)] {
            let pool = builder().workers(workers).max_tasks_per_worker(limit).build().unwrap();
            let submitted: Vec<_> = (0..tasks).map(|n| pool.submit(|n: u64| n * n, &n)).collect();
            for (n, task) in (0..tasks).zip(submitted) {
                assert_eq!(outcome(task).unwrap(), n * n);
            }
            pool.close().wait();
        }
        no_errors();
    });
}

/// What a leaving worker has not started must not wait for it: `on_exit` may take its time.
#[test]
fn a_12_what_a_leaving_worker_has_not_started_runs_elsewhere_at_once() {
    both(|| {
        listen();
        let pool = builder()
            .workers(2)
            .max_tasks_per_worker(2)
            .on_exit(|info| {
                if info.generation() == 0 && info.id() == 0 {
                    counter(0).bump();
                    gate(0).wait();
                }
            })
            .build()
            .unwrap();
        // The other worker is kept busy, so that all that follows goes to worker 0.
        let held = |w: &Worker, _: &View<()>| {
            counter(1).bump();
            gate(1).wait();
            w.id()
        };
        let first = [pool.submit_with(held, &()), pool.submit_with(held, &())];
        counter(1).wait_for(2);
        let id = |w: &Worker, _: &View<()>| (w.id(), w.generation());
        let rest: Vec<_> = (0..20).map(|_| pool.submit_with(id, &())).collect();
        gate(1).open();
        let mut ids = first.map(|task| outcome(task).unwrap());
        ids.sort_unstable();
        assert_eq!(ids, [0, 1]);
        // Worker 0 hangs in `on_exit` after its second task; all others end without it.
        let places: Vec<_> = rest.into_iter().map(|task| outcome(task).unwrap()).collect();
        assert!(places.iter().all(|&(id, generation)| id == 1 || generation == 0), "{places:?}");
        counter(0).wait_for(1);
        // Submitted when it has been leaving for long.
        for _ in 0..10 {
            assert_eq!(outcome(pool.submit_with(id, &())).unwrap().0, 1);
        }
        gate(0).open();
        pool.close().wait();
        no_errors();
    });
}

/// The first worker says that it is to leave, and waits.
fn first_one_stays(info: &WorkerInfo) {
    if info.generation() == 0 {
        counter(0).bump();
        gate(0).wait();
    }
}

/// What it takes to leave is user code, and may hang: it must not cost the pool a worker.
#[test]
fn a_12_a_worker_that_does_not_leave_is_replaced() {
    both(|| {
        listen();
        // Workers have to start within it too, on a busy machine.
        let limit = Duration::from_secs(4);
        let pool = builder()
            .workers(1)
            .max_tasks_per_worker(1)
            .init_timeout(limit)
            .on_worker_loss(OnWorkerLoss::FailAll)
            .on_exit(first_one_stays)
            .build()
            .unwrap();
        let life = |w: &Worker, _: &View<()>| w.generation();
        // Its task is older than the limit when it comes to that.
        let slow = |w: &Worker, limit: &View<Duration>| {
            let limit: Duration = w.decode(limit).unwrap();
            std::thread::sleep(limit + limit / 8);
            w.generation()
        };
        let first = pool.submit_with(slow, &limit);
        let second = pool.submit_with(life, &());
        assert_eq!(outcome(first).unwrap(), 0);
        assert_eq!(outcome(second).unwrap(), 1);
        assert_eq!(counter(0).get(), 1);
        assert_eq!(outcome(pool.submit_with(life, &())).unwrap(), 2);
        let errors = std::mem::take(&mut *ERRORS.lock().unwrap());
        assert!(errors.len() == 1 && errors[0].contains("on_exit"), "{errors:?}");
        // A thread that was given up is still there.
        gate(0).open();
        pool.close().wait();
        no_errors();
    });
}

#[test]
fn a_13_closing_waits_for_replacements_that_have_work() {
    both(|| {
        listen();
        for _ in 0..20 {
            let pool = builder().workers(3).max_tasks_per_worker(1).build().unwrap();
            let tasks: Vec<_> = (0..6).map(|n| pool.submit(|n: u64| n + 1, &n)).collect();
            pool.close().wait();
            for (n, task) in (0..6).zip(tasks) {
                assert_eq!(outcome(task).unwrap(), n + 1);
            }
            assert!(children().is_empty());
        }
        no_errors();
    });
}

#[test]
fn a_14_a_replacement_that_cannot_be_started_ends_the_pool_with_the_cause() {
    scenario(|| {
        listen();
        let pool = Pool::builder().workers(1).max_tasks_per_worker(1).build().unwrap();
        let first = pool.submit(
            |()| {
                counter(0).bump();
                gate(0).wait();
                7
            },
            &(),
        );
        counter(0).wait_for(1);
        let queued: Vec<_> = (0..3).map(|n| pool.submit(|n: u32| n, &n)).collect();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // No descriptor can be had for the next worker's memory.
        setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
        gate(0).open();
        assert_eq!(outcome(first).unwrap(), 7);
        for task in queued {
            let error = outcome(task).unwrap_err();
            let text = error.to_string();
            assert!(error.is_pool_failed() && text.contains("could not start worker 0"), "{text}");
            assert!(text.contains("Too many open files"), "{text}");
        }
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        pool.closed().wait();
        assert!(children().is_empty());
    });
}

#[test]
fn a_15_recycling_is_no_loss() {
    both(|| {
        listen();
        let pool = builder().workers(4).max_tasks_per_worker(1).build().unwrap();
        let tasks: Vec<_> = (0..200_u64)
            .map(|n| {
                pool.submit_with(|w: &Worker, n: &View<u64>| (n.to_native(), (w.id(), w.generation())), &n)
            })
            .collect();
        let mut lives = BTreeSet::new();
        for (n, task) in (0..200).zip(tasks) {
            let (m, life) = outcome(task).unwrap();
            assert_eq!(m, n);
            lives.insert(life);
        }
        assert_eq!(lives.len(), 200);
        pool.close().wait();
        no_errors();
        // The last ones may have been told to leave before they decided to.
        assert!((196..=200).contains(&recyclings()), "{}", recyclings());
    });
}

/// A crash between recyclings is still a crash, and `_exit(0)` in a task is no recycling.
#[test]
fn a_15_a_loss_is_no_recycling() {
    scenario(|| {
        listen();
        let pool = Pool::builder().workers(1).max_tasks_per_worker(2).build().unwrap();
        fn leave(_: ()) {
            std::process::exit(0)
        }
        for _ in 0..3 {
            assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
            let error = outcome(pool.submit(leave, &())).unwrap_err();
            assert!(error.is_worker_lost(), "{error}");
        }
        assert_eq!(recyclings(), 0);
    });
}

/// The state and `on_exit` of a worker that leaves are handled as on close, once each.
#[test]
fn a_15_a_leaving_worker_runs_on_exit_once() {
    both(|| {
        listen();
        struct Counted;
        impl Drop for Counted {
            fn drop(&mut self) {
                // Before `on_exit`.
                assert_eq!(counter(0).get(), counter(1).get());
                counter(1).bump();
            }
        }
        let pool = builder()
            .workers(1)
            .max_tasks_per_worker(2)
            .state(|_, ()| Ok(Counted))
            .on_exit(|_| {
                counter(0).bump();
            })
            .build()
            .unwrap();
        for _ in 0..6 {
            outcome(pool.submit(|()| (), &())).unwrap();
        }
        pool.close().wait();
        // Three that had run their tasks, and a fourth if it was there when the pool was closed.
        let (exits, dropped) = (counter(0).get(), counter(1).get());
        assert!((3..=4).contains(&exits), "{exits}");
        // A thread that was still being started when the pool closed drops what it has, and serves nobody before.
        let started = u32::from(in_process());
        assert!((exits..=exits + started).contains(&dropped) && dropped <= 4, "{exits} {dropped}");
        no_errors();
    });
}

#[test]
fn a_15_a_worker_that_is_killed_while_it_leaves_costs_no_task() {
    scenario(|| {
        hooks::set_log_error(|_| ());
        let pool =
            Pool::builder().workers(1).max_tasks_per_worker(1).on_exit(first_one_stays).build().unwrap();
        let tasks: Vec<_> = (0..5).map(|n| pool.submit(|n: u32| n, &n)).collect();
        counter(0).wait_for(1);
        signal(pool.worker_pids()[0], Signal::SIGKILL);
        for (n, task) in (0..5).zip(tasks) {
            assert_eq!(outcome(task).unwrap(), n);
        }
    });
}

/// All ways to call tasks off and to end the pool, while workers come and go.
#[test]
fn a_15_recycling_goes_with_cancelling_streams_and_termination() {
    both(|| {
        listen();
        for round in 0..30_u64 {
            let pool = builder().workers(3).max_tasks_per_worker(1 + round % 3).build().unwrap();
            let tasks: Vec<_> = (0..60).map(|n| pool.submit(|n: u64| n, &n)).collect();
            let sum: u64 = pool
                .map(0..100, |n: u64| n)
                .granularity(Granularity::Fixed(1 + round as usize % 7))
                .unordered()
                .map(Result::unwrap)
                .sum();
            assert_eq!(sum, 4950);
            for (n, task) in (0..60).zip(tasks) {
                if n % 3 == 0 {
                    drop(task);
                } else {
                    assert_eq!(outcome(task).unwrap(), n);
                }
            }
            if round % 2 == 0 {
                pool.close().wait();
            } else {
                let left = pool.submit(|n: u64| n, &round);
                pool.terminate();
                match outcome(left) {
                    Ok(n) => assert_eq!(n, round),
                    Err(error) => assert!(error.is_terminated(), "{error}"),
                }
            }
            assert!(children().is_empty());
        }
        no_errors();
    });
}

#[test]
fn i_03_replaced_workers_leave_no_zombies_and_no_descriptors() {
    scenario(|| {
        listen();
        let pool = Pool::builder().workers(2).max_tasks_per_worker(1).build().unwrap();
        let run = || outcome(pool.submit(|()| pid(), &())).unwrap();
        (0..20).for_each(|_| assert!(run() > 0));
        eventually("both workers", || pool.worker_pids().len() == 2);
        let fds = count_fds();
        let pids: Vec<u32> = (0..300).map(|_| run()).collect();
        for pid in pids {
            gone(pid);
        }
        eventually("as many descriptors as before", || count_fds() == fds);
        let zygote = zygote();
        eventually("two workers, no zombie", || {
            let workers: Vec<_> = children().into_iter().filter(|p| p.pid != zygote).collect();
            workers.len() == 2 && workers.iter().all(|p| p.state != 'Z')
        });
        no_errors();
    });
}

/// The tasks of I-09 and M-11 keep what they allocate.
fn leak(bytes: usize) -> u32 {
    std::mem::forget(std::hint::black_box(vec![1_u8; bytes]));
    pid()
}

#[test]
fn i_09_a_worker_that_grows_is_replaced() {
    scenario(|| {
        listen();
        const CAP: u64 = 100 << 20;
        let pool = Pool::builder().workers(1).max_worker_memory(CAP).build().unwrap();
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for _ in 0..500 {
            let pid = outcome(pool.submit(|()| leak(1 << 20), &())).unwrap();
            match runs.last_mut() {
                Some((last, tasks)) if *last == pid => *tasks += 1,
                _ => runs.push((pid, 1)),
            }
        }
        // A look comes a millisecond after the last one at the earliest, and leaking 1 MiB takes some of that.
        runs.pop();
        assert!(runs.len() >= 2 && runs.iter().all(|&(_, tasks)| (98..140).contains(&tasks)), "{runs:?}");
        pool.close().wait();
        no_errors();
        // The last one may have reached the limit, too.
        assert!((runs.len()..=runs.len() + 1).contains(&recyclings()), "{} {runs:?}", recyclings());
        assert!(NOTICES.lock().unwrap().iter().any(|text| text.contains("max_worker_memory")));
    });
}

#[test]
fn m_11_what_a_worker_inherited_is_no_growth() {
    scenario(|| {
        listen();
        return_freed_memory();
        let env = vec![7_u8; 500 << 20];
        let pool = Pool::builder().workers(1).env(env).max_worker_memory(100 << 20).build().unwrap();
        let at = |w: &Worker<Vec<u8>>, i: &View<usize>| (w.env()[i.to_native() as usize], pid());
        let mut pids = BTreeSet::new();
        for i in 0..1000_usize {
            let (byte, pid) = outcome(pool.submit_with(at, &(i << 18))).unwrap();
            assert_eq!(byte, 7);
            pids.insert(pid);
        }
        // Memory is looked at only where a millisecond has passed.
        std::thread::sleep(Duration::from_millis(2));
        pids.insert(outcome(pool.submit_with(at, &0_usize)).unwrap().1);
        std::thread::sleep(Duration::from_millis(2));
        pids.insert(outcome(pool.submit_with(at, &0_usize)).unwrap().1);
        assert_eq!(pids.len(), 1);
        assert_eq!(recyclings(), 0);
        no_errors();
        assert!(private_kib(*pids.first().unwrap()) < 100 << 10);
    });
}

#[test]
fn k_05_large_results_outlive_the_worker_that_made_them() {
    both(|| {
        listen();
        return_freed_memory();
        let pool = builder().workers(2).max_tasks_per_worker(2).build().unwrap();
        let mut stream = pool.map(0..50_u8, |n: u8| vec![n; 10 << 20]).window(4);
        let mut highest = 0;
        for n in 0..50 {
            assert!(stream.next().unwrap().unwrap() == vec![n; 10 << 20]);
            highest = rss_kib(std::process::id()).max(highest);
        }
        assert!(stream.next().is_none());
        assert!(highest < 250 << 10, "{highest} KiB");
        pool.close().wait();
        no_errors();
        assert!(recyclings() >= 24, "{}", recyclings());
    });
}

/// The options are the builder's, whatever kind of pool it makes.
#[test]
fn recycling_works_for_bound_pools_and_their_streams() {
    both(|| {
        listen();
        fn two() -> crate::support::EitherBuilder {
            builder().workers(2).max_tasks_per_worker(2)
        }
        let factor = 3;
        let times = two().bind(move |n: u64| n * factor).unwrap();
        for n in 0..10 {
            assert_eq!(outcome(times.submit(&n)).unwrap(), n * 3);
        }
        drop(times);
        let mut sum = 0;
        let summary = two().iter_stream(0..100_u64, |n: u64| n * factor, |n| sum += n.unwrap()).unwrap();
        assert_eq!((summary.ok, sum), (100, 14850));
        no_errors();
    });
}
