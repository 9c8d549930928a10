//! Acceptance cases, group A: how pools begin, and that they leave everything where it was.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use forkring::{NoService, OnWorkerLoss, Pool, Task, TaskError, View, Worker, hooks};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use crate::support::{
    BOUND, Process, both, both_output, builder, cell, children, collect_errors, count_fds, counter, errors,
    eventually, fixed, gate, gone, in_process, meet, new_pool, nothing_left, outcome, private_kib, process,
    quietly, rss_kib, scenario, signal, zygote,
};

#[test]
fn a_01_no_workers_and_absurdly_many_are_errors() {
    both(|| {
        let fds = count_fds();
        for (workers, word) in [(0, "at least one"), (100_000, "100000"), (usize::MAX, "limit")] {
            let error = new_pool(workers).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
            nothing_left(fds);
        }
    });
}

#[test]
fn a_name_that_no_thread_can_have_is_an_error() {
    both(|| {
        let fds = count_fds();
        let error = builder().workers(1).name("a\0b").build().unwrap_err().to_string();
        assert!(error.contains("name") && error.contains("zero byte"), "{error}");
        nothing_left(fds);
    });
}

/// Panics where it is dropped, unless that is a worker.
struct Bomb(u32);

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::process::id() != self.0, "the environment is dropped");
    }
}

#[test]
fn an_environment_that_panics_when_it_is_dropped_leaves_nothing() {
    scenario(|| {
        std::panic::set_hook(Box::new(|_| ()));
        let first = new_pool(1).unwrap();
        let (fds, running) = (count_fds(), children().len());
        for _ in 0..3 {
            let built =
                std::panic::catch_unwind(|| Pool::builder().workers(2).env(Bomb(std::process::id())).build());
            let panic = built.unwrap_err();
            assert_eq!(*panic.downcast_ref::<&str>().unwrap(), "the environment is dropped");
            assert_eq!(count_fds(), fds);
            assert_eq!(children().len(), running, "{:?}", children());
        }
        assert_eq!(outcome(first.submit(|n: u32| n, &1)).unwrap(), 1);
        assert_eq!(outcome(new_pool(1).unwrap().submit(|n: u32| n, &2)).unwrap(), 2);
    });
}

#[test]
fn a_02_there_are_as_many_workers_as_asked_for() {
    scenario(|| {
        let pool = Pool::new(3).unwrap();
        assert_eq!(pool.workers(), 3);
        let zygote = zygote();
        let exactly_three = || {
            let workers: Vec<Process> = children().into_iter().filter(|p| p.pid != zygote).collect();
            assert_eq!(workers.len(), 3, "{workers:?}");
            assert!(workers.iter().all(|p| p.state != 'Z'), "{workers:?}");
            let pids: BTreeSet<u32> = workers.iter().map(|p| p.pid).collect();
            assert_eq!(pids, pool.worker_pids().into_iter().collect());
        };
        let gated = |n: usize| {
            counter(0).bump();
            gate(n).wait();
        };
        for round in 0..15 {
            let tasks: Vec<_> = (0..3).map(|_| pool.submit(gated, &round)).collect();
            counter(0).wait_for(3 * (round as u32 + 1));
            exactly_three();
            gate(round).open();
            tasks.into_iter().for_each(|task| outcome(task).unwrap());
            exactly_three();
        }
    });
}

#[test]
fn a_03_two_hundred_workers_compute_and_leave() {
    both_output(
        || {
            let pool = new_pool(200).unwrap();
            assert_eq!(pool.worker_pids().len(), 200);
            let sum: u64 = pool.map(0..1000, |n: u64| n * n).map(Result::unwrap).sum();
            assert_eq!(sum, 332_833_500);
            pool.close().wait();
            assert!(children().is_empty(), "{:?}", children());
        },
        |finished| {
            assert!(finished.status.success() && finished.stderr.is_empty(), "{finished:?}");
        },
    );
}

/// Injected by a limit on descriptors that grows from nothing until the pool can be built, so that each step of
/// the building fails once, in the master and in the zygote, which inherits the limit.
#[test]
fn a_04_whichever_descriptor_cannot_be_had_building_fails_and_leaves_nothing() {
    scenario(|| {
        Pool::new(1).unwrap().close().wait();
        let fds = count_fds();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let mut failures = 0;
        for limit in fds as u64 + 1.. {
            setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
            let built = Pool::builder().workers(5).init_timeout(Duration::from_secs(10)).build();
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            match built {
                Ok(pool) => {
                    // The limit was enough; the pool works.
                    let sum: u64 = pool.map(0..100, |n: u64| n).map(Result::unwrap).sum();
                    assert_eq!(sum, 4950);
                    pool.close().wait();
                    break;
                }
                Err(error) => {
                    assert!(error.to_string().contains("could not"), "limit {limit}: {error}");
                    failures += 1;
                }
            }
            nothing_left(fds);
        }
        nothing_left(fds);
        assert!(failures > 5, "{failures} failures were injected");
    });
}

/// A-04, by the number of processes. The limit does not hold for root, so this process becomes somebody that nobody
/// else is; without being root it could not know how many processes its user has.
#[test]
fn a_04_whichever_process_or_thread_cannot_be_had_building_fails_and_leaves_nothing() {
    scenario(|| {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: only root can become a user that nobody else is");
            return;
        }
        Pool::new(1).unwrap().close().wait();
        let uid = nix::unistd::Uid::from_raw(1_000_000 + std::process::id());
        nix::unistd::setresuid(uid, uid, uid).unwrap();
        nix::sys::prctl::set_dumpable(true).unwrap();
        let fds = count_fds();
        let mut failures = 0;
        for limit in 1..100 {
            setrlimit(Resource::RLIMIT_NPROC, limit, 100).unwrap();
            let built = Pool::new(5);
            setrlimit(Resource::RLIMIT_NPROC, 100, 100).unwrap();
            match built {
                Ok(pool) => {
                    let sum: u64 = pool.map(0..100, |n: u64| n).map(Result::unwrap).sum();
                    assert_eq!(sum, 4950);
                    pool.close().wait();
                    break;
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains("could not"), "limit {limit}: {text}");
                    failures += 1;
                }
            }
            nothing_left(fds);
        }
        nothing_left(fds);
        // The zygote, the driver and five workers.
        assert!(failures >= 7, "{failures} failures were injected");
    });
}

#[test]
fn a_05_init_runs_in_each_worker_before_its_first_task() {
    scenario(|| {
        static VALUE: AtomicU64 = AtomicU64::new(0);
        let value = 42;
        let pool = Pool::builder()
            .workers(3)
            .init(move |info| {
                VALUE.store(value + info.id() as u64, Ordering::Relaxed);
                counter(0).bump();
                Ok(())
            })
            .build()
            .unwrap();
        assert_eq!(counter(0).get(), 3, "build() waits for it");
        let body = |w: &Worker, _: &View<()>| {
            meet(0, 3);
            (w.id() as u64, VALUE.load(Ordering::Relaxed))
        };
        let tasks: Vec<_> = (0..3).map(|_| pool.submit_with(body, &())).collect();
        let mut seen: Vec<_> = tasks.into_iter().map(|task| outcome(task).unwrap()).collect();
        seen.sort_unstable();
        assert_eq!(seen, [(0, 42), (1, 43), (2, 44)]);
        assert_eq!(VALUE.load(Ordering::Relaxed), 0, "not in the master");
    });
}

#[test]
fn a_05_init_runs_in_replacements_too() {
    both(|| {
        let pool = builder()
            .workers(1)
            .init(|info| {
                cell(info.generation() as usize).fetch_add(1, Ordering::SeqCst);
                Ok(())
            })
            .build()
            .unwrap();
        for generation in 0..4 {
            let now = outcome(pool.submit_with(|w: &Worker, _: &View<()>| w.generation(), &())).unwrap();
            assert_eq!(now, generation);
            pool.recycle_workers();
        }
        assert_eq!(cell(0).load(Ordering::SeqCst), 1);
        assert_eq!(cell(3).load(Ordering::SeqCst), 1);
    });
}

#[test]
fn a_06_an_init_that_fails_fails_the_build_with_its_words() {
    both(|| {
        new_pool(1).unwrap().close().wait();
        let fds = count_fds();
        let error = builder().workers(3).init(|_| Err("no database today".into())).build().unwrap_err();
        assert!(error.to_string().contains("no database today"), "{error}");
        nothing_left(fds);

        let init = |info: &forkring::WorkerInfo| {
            counter(0).bump();
            if info.id() == 1 { panic!("init number {}", info.id()) } else { Ok(()) }
        };
        let error = builder().workers(3).init(init).build().unwrap_err().to_string();
        assert!(error.contains("init number 1") && error.contains("lifecycle.rs"), "{error}");
        assert!(counter(0).get() <= 3, "no respawn loop");
        nothing_left(fds);

        let error = builder().workers(2).state(|_, _| Err::<(), _>("no state".into())).build().unwrap_err();
        assert!(error.to_string().contains("no state"), "{error}");
        nothing_left(fds);
        let error = builder().workers(2).state(|_, _| -> Result<u8, _> { panic!("bad state") }).build();
        let error = error.unwrap_err().to_string();
        assert!(error.contains("bad state"), "{error}");
        nothing_left(fds);
    });
}

#[test]
fn a_06_an_init_that_dies_fails_the_build_and_is_not_repeated_for_ever() {
    scenario(|| {
        Pool::new(1).unwrap().close().wait();
        let fds = count_fds();
        let init = |_: &forkring::WorkerInfo| {
            counter(0).bump();
            std::process::abort()
        };
        let error = Pool::builder().workers(2).init(init).build().unwrap_err().to_string();
        assert!(error.contains("SIGABRT"), "{error}");
        assert!(counter(0).get() < 50, "{} starts", counter(0).get());
        nothing_left(fds);
    });
}

fn replacement_fails(init: fn() -> Result<(), forkring::BoxError>, word: &str) {
    hooks::set_log_error(|_| ());
    let pool = builder()
        .workers(1)
        .init(move |info| {
            counter(1).bump();
            if info.generation() == 0 { Ok(()) } else { init() }
        })
        .build()
        .unwrap();
    let fds = count_fds();
    let running = pool.submit(
        |_: ()| {
            counter(0).bump();
            gate(0).wait();
        },
        &(),
    );
    let pending: Vec<_> = (0..10_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
    counter(0).wait_for(1);
    if in_process() {
        running.kill();
        assert!(outcome(running).unwrap_err().is_cancelled());
    } else {
        signal(pool.worker_pids()[0], Signal::SIGKILL);
        assert!(outcome(running).unwrap_err().is_worker_lost());
    }
    for task in pending {
        let error = outcome(task).unwrap_err();
        assert!(error.is_pool_failed() && error.to_string().contains(word), "{error}");
    }
    let late = outcome(pool.submit(|n: u32| n, &1)).unwrap_err();
    assert!(late.is_pool_failed() && late.to_string().contains(word), "{late}");
    pool.closed().wait();
    assert!(counter(1).get() <= 3, "no respawn loop: {} starts", counter(1).get());
    assert!(children().is_empty(), "{:?}", children());
    assert!(in_process() || count_fds() < fds);
    pool.close().wait();
    pool.terminate();
}

#[test]
fn a_06_an_init_that_fails_in_a_replacement_fails_the_pool_and_what_is_pending() {
    both(|| replacement_fails(|| Err("the database has gone".into()), "the database has gone"));
}

#[test]
fn a_06_an_init_that_panics_in_a_replacement_fails_the_pool_and_what_is_pending() {
    both(|| replacement_fails(|| panic!("the database has burnt"), "the database has burnt"));
}

#[test]
fn a_07_an_init_that_hangs_is_killed_at_its_limit() {
    both(|| {
        new_pool(1).unwrap().close().wait();
        let fds = count_fds();
        let start = Instant::now();
        let init = |info: &forkring::WorkerInfo| {
            if info.id() == 1 {
                gate(9).wait();
            }
            Ok(())
        };
        let limit = Duration::from_millis(200);
        let error = builder().workers(2).init(init).init_timeout(limit).build().unwrap_err().to_string();
        assert!(error.contains("200ms"), "{error}");
        assert!(start.elapsed() < BOUND / 2, "before init would have ended by itself");
        nothing_left(fds);
    });
}

#[test]
fn a_07_an_init_that_hangs_in_a_replacement_fails_the_pool() {
    both(|| {
        hooks::set_log_error(|_| ());
        let start = Instant::now();
        let init = |info: &forkring::WorkerInfo| {
            if info.generation() > 0 {
                gate(9).wait();
            }
            Ok(())
        };
        let pool = builder().workers(1).init(init).init_timeout(Duration::from_millis(200)).build().unwrap();
        if in_process() {
            pool.recycle_workers();
        } else {
            signal(pool.worker_pids()[0], Signal::SIGKILL);
        }
        let error = outcome(pool.submit(|_: ()| (), &())).unwrap_err();
        // A task may have been started by the worker's last moment.
        if !error.is_worker_lost() {
            assert!(error.is_pool_failed() && error.to_string().contains("200ms"), "{error}");
        }
        pool.closed().wait();
        assert!(start.elapsed() < BOUND / 2, "before init would have ended by itself");
        assert!(children().is_empty(), "{:?}", children());
    });
}

#[test]
fn a_19_two_pools_at_once_and_one_after_another() {
    both(|| {
        let round = |n: u64| {
            let a = new_pool(1).unwrap();
            assert_eq!(outcome(a.submit(|n: u64| n, &n)).unwrap(), n);
            let b = new_pool(2).unwrap();
            let (one, two) = (a.submit(|n: u64| n + 1, &n), b.submit(|n: u64| n + 2, &n));
            assert_eq!((outcome(one).unwrap(), outcome(two).unwrap()), (n + 1, n + 2));
            if n.is_multiple_of(2) {
                drop(a);
                assert_eq!(outcome(b.submit(|n: u64| n, &n)).unwrap(), n);
            } else {
                b.close().wait();
                assert_eq!(outcome(a.submit(|n: u64| n, &n)).unwrap(), n);
            }
        };
        round(0);
        let fds = count_fds();
        for n in 0..100 {
            round(n);
            nothing_left(fds);
        }
    });
}

/// I-02, I-04, and the issue's own words.
#[test]
fn two_hundred_pools_leave_descriptors_processes_and_memory_where_they_were() {
    both(|| {
        let me = std::process::id();
        let maps = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let round = |n: u64| {
            let pool = builder().workers(2).service(|n: u64| n).build().unwrap();
            let big = pool.submit(|n: u64| vec![n; 100_000], &n);
            assert_eq!(outcome(big).unwrap().len(), 100_000);
            match n % 3 {
                0 => pool.close().wait(),
                1 => pool.terminate(),
                _ => drop(pool),
            }
        };
        (0..20).for_each(round);
        let (fds, rss, mapped, running) = (count_fds(), rss_kib(me), maps(), threads());
        (0..200).for_each(round);
        nothing_left(fds);
        let grown = rss_kib(me).saturating_sub(rss);
        // The allocator keeps an arena for each thread that ran at the same time.
        let allowed = if in_process() { 64 << 10 } else { 4096 };
        assert!(grown < allowed, "{grown} KiB more after 200 pools");
        eventually("as few threads as before", || threads() <= running);
        // So it does each arena's mappings, of which there are two; a thread's stack and its signal stack are four.
        let more = if in_process() { 8 } else { 4 };
        eventually("as few mappings as before", || maps() <= mapped + more);
        let text = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!text.contains("memfd"), "{text}");
    });
}

#[test]
fn a_20_dropping_the_last_handle_ends_its_tasks_and_its_processes() {
    both(|| {
        for round in 0..20 {
            let pool = new_pool(2).unwrap();
            let other = pool.clone();
            let gated = |n: usize| {
                counter(0).bump();
                gate(n).wait();
            };
            let tasks: Vec<_> = (0..10).map(|_| pool.submit(gated, &0)).collect();
            let quick = (round % 2 == 0).then(|| pool.submit(|_: ()| (), &()));
            counter(0).wait_for(2 * (round + 1));
            drop(pool);
            assert_eq!(other.worker_pids().len(), 2, "another handle keeps it");
            assert!(tasks.iter().all(|task| !task.is_finished()));
            drop(other);
            for task in tasks.into_iter().chain(quick) {
                assert!(outcome(task).unwrap_err().is_terminated());
            }
            assert!(children().is_empty(), "{:?}", children());
        }
    });
}

#[test]
fn a_20_tasks_that_are_awaited_end_when_the_pool_is_dropped() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let gated = |_: ()| {
            counter(0).bump();
            gate(0).wait();
        };
        let waiting: Vec<_> = (0..4)
            .map(|n| {
                let task = pool.submit(gated, &());
                std::thread::spawn(move || {
                    counter(1).bump();
                    if n % 2 == 0 { futures::executor::block_on(task) } else { outcome(task) }
                })
            })
            .collect();
        counter(0).wait_for(1);
        counter(1).wait_for(4);
        drop(pool);
        for thread in waiting {
            assert!(thread.join().unwrap().unwrap_err().is_terminated());
        }
        assert!(children().is_empty());
    });
}

/// Counts its drops, in cell 0 for the process `pid` and in cell 1 for others.
struct CountsDrops {
    pid: u32,
    words: Rc<HashMap<String, u32>>,
}

impl Drop for CountsDrops {
    fn drop(&mut self) {
        cell(usize::from(std::process::id() != self.pid)).fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn the_environment_reaches_the_workers_and_is_dropped_in_the_master_only() {
    scenario(|| {
        for round in 1..=10 {
            // Any type: neither Send nor a payload.
            let words = Rc::new(HashMap::from([("one".to_owned(), 1), ("two".to_owned(), 2)]));
            let env = CountsDrops { pid: std::process::id(), words: words.clone() };
            let pool = Pool::builder().workers(2).env(env).build().unwrap();
            assert_eq!(cell(0).load(Ordering::SeqCst), round, "dropped inside build()");
            assert_eq!(Rc::strong_count(&words), 1);
            let look_up = |w: &Worker<CountsDrops>, word: &View<str>| w.env().words.get(word).copied();
            assert_eq!(outcome(pool.submit_with(look_up, "two")).unwrap(), Some(2));
            assert_eq!(outcome(pool.submit_with(look_up, "three")).unwrap(), None);
            match round % 3 {
                0 => pool.close().wait(),
                1 => pool.terminate(),
                _ => {
                    signal(pool.worker_pids()[0], Signal::SIGKILL);
                    drop(pool);
                }
            }
            assert_eq!(cell(0).load(Ordering::SeqCst), round);
        }
        assert_eq!(cell(1).load(Ordering::SeqCst), 0, "never in a worker, nor in a zygote");
    });
}

#[test]
fn the_environment_is_dropped_in_the_master_when_building_fails() {
    scenario(|| {
        let env = || CountsDrops { pid: std::process::id(), words: Rc::default() };
        assert!(Pool::builder().workers(0).env(env()).build().is_err());
        assert_eq!(cell(0).load(Ordering::SeqCst), 1);
        assert!(Pool::builder().workers(1).env(env()).init(|_| Err("no".into())).build().is_err());
        assert_eq!(cell(0).load(Ordering::SeqCst), 2);
        assert_eq!(cell(1).load(Ordering::SeqCst), 0);
    });
}

/// K-08, small.
#[test]
fn a_large_environment_is_shared_and_not_copied() {
    scenario(|| {
        let env = vec![1_u8; 200 << 20];
        let pool = Pool::builder().workers(2).env(env).build().unwrap();
        assert!(rss_kib(std::process::id()) < 100 * 1024, "the master has let go");
        let body = |w: &Worker<Vec<u8>>, i: &View<u64>| w.env()[i.to_native() as usize * 4096];
        let tasks: Vec<_> = (0..10_000_u64).map(|i| pool.submit_with(body, &i)).collect();
        assert_eq!(tasks.into_iter().map(|task| u64::from(outcome(task).unwrap())).sum::<u64>(), 10_000);
        for pid in pool.worker_pids() {
            assert!(private_kib(pid) < 20 * 1024, "{} KiB", private_kib(pid));
        }
    });
}

#[test]
fn on_exit_runs_once_in_each_worker_on_close_and_not_on_kills() {
    scenario(|| {
        let build = || {
            let on_exit = |info: &forkring::WorkerInfo| {
                cell(info.id()).fetch_add(1, Ordering::SeqCst);
            };
            Pool::builder().workers(3).on_exit(on_exit).build().unwrap()
        };
        let ran = || (0..3).map(|id| cell(id).load(Ordering::SeqCst)).collect::<Vec<_>>();

        build().terminate();
        drop(build());
        assert_eq!(ran(), [0, 0, 0], "not when the pool is terminated");

        let pool = build();
        pool.close().wait();
        assert_eq!(ran(), [1, 1, 1]);

        let pool = build();
        let pid = pool.worker_pids()[1];
        signal(pid, Signal::SIGKILL);
        gone(pid);
        assert_eq!(ran(), [1, 1, 1], "not when a worker is killed");
        eventually("a replacement", || pool.worker_pids().len() == 3 && !pool.worker_pids().contains(&pid));
        pool.close().wait();
        assert!(cell(0).load(Ordering::SeqCst) == 2 && cell(2).load(Ordering::SeqCst) == 2);
    });
}

#[test]
fn an_on_exit_that_panics_does_not_keep_the_pool_from_closing() {
    both(|| {
        let pool = builder().workers(2).on_exit(|_| panic!("on the way out")).build().unwrap();
        let task = pool.submit(|n: u32| n, &3);
        pool.close().wait();
        assert_eq!(outcome(task).unwrap(), 3);
        assert!(children().is_empty());
    });
}

#[test]
fn the_state_is_each_workers_own_and_lasts_from_task_to_task() {
    both(|| {
        let pool =
            builder().workers(2).env(10_u64).state(|info, env| Ok(env + info.id() as u64)).build().unwrap();
        let body = |w: &Worker<u64, NoService, u64>, _: &View<()>| {
            meet(0, 2);
            *w.state() += 100;
            (w.id() as u64, *w.state())
        };
        for round in 1..=10 {
            let tasks: Vec<_> = (0..2).map(|_| pool.submit_with(body, &())).collect();
            for task in tasks {
                let (id, state) = outcome(task).unwrap();
                assert_eq!(state, 10 + id + round * 100);
            }
        }
    });
}

#[test]
fn the_state_is_made_anew_after_a_panic_that_held_it_and_only_then() {
    both(|| {
        type In = Worker<(), NoService, u64>;
        let make = |_: &forkring::WorkerInfo, _: &()| {
            counter(0).bump();
            Ok(0_u64)
        };
        let pool = builder().workers(1).state(make).build().unwrap();
        let step = |w: &In, _: &View<()>| {
            *w.state() += 1;
            *w.state()
        };
        assert_eq!(outcome(pool.submit_with(step, &())).unwrap(), 1);
        let innocent = pool.submit_with(|_: &In, _: &View<()>| -> u64 { panic!("without it") }, &());
        assert!(outcome(innocent).unwrap_err().is_panicked());
        assert_eq!(outcome(pool.submit_with(step, &())).unwrap(), 2, "kept");
        for _ in 0..100 {
            let guilty = pool.submit_with(
                |w: &In, _: &View<()>| -> u64 {
                    let mut state = w.state();
                    *state = 999;
                    panic!("with it in hand")
                },
                &(),
            );
            assert!(outcome(guilty).unwrap_err().is_panicked());
            assert_eq!(outcome(pool.submit_with(step, &())).unwrap(), 1, "made anew");
        }
        assert_eq!(counter(0).get(), 101);
    });
}

/// A task that panics with the state in its hands.
fn spoil(w: &Worker<(), NoService, u32>, _: &View<()>) -> u32 {
    spoil_state(w)
}

fn spoil_state(w: &Worker<(), NoService, u32>) -> u32 {
    drop(w.state());
    panic!("spoiled")
}

/// Uses the arena in which large results travel.
fn large(n: usize) -> Vec<u8> {
    vec![7; n]
}

#[test]
fn a_state_that_cannot_be_made_anew_costs_its_worker_and_says_why() {
    both(|| {
        collect_errors();
        // At its first and third making.
        let pool = builder().workers(1).retries(2).state(|_, ()| match counter(0).bump() {
            n @ (1 | 3) => Err(format!("the database is gone ({n})").into()),
            n => Ok(n),
        });
        let pool = pool.build().unwrap();
        assert_eq!(outcome(pool.submit(large, &100_000)).unwrap(), large(100_000));
        let panicked = outcome(pool.submit_with(spoil, &())).unwrap_err();
        assert!(panicked.is_panicked() && panicked.to_string().contains("spoiled"), "{panicked}");
        let state = |w: &Worker<(), NoService, u32>, _: &View<()>| (w.generation(), *w.state());
        assert_eq!(outcome(pool.submit_with(state, &())).unwrap(), (1, 2), "made by the replacement");
        let count = |text: &str| {
            let says = |line: &&String| {
                line.contains("left with exit code 70")
                    && line.contains(text)
                    && line.ends_with("it is replaced")
            };
            errors().iter().filter(says).count()
        };
        eventually("the log says why", || count("the database is gone (1)") == 1);
        // In a batch, what comes behind the panic is in the worker's hands.
        let item = |w: &Worker<(), NoService, u32>, n: &View<u32>| match n.to_native() {
            1 => spoil_state(w),
            n => n + w.generation() as u32,
        };
        let pool = pool.options().retries(0);
        let outcomes: Vec<_> = pool.map_with(0..4_u32, item).granularity(fixed(4)).collect();
        assert_eq!(outcomes[0].as_ref().ok(), Some(&1));
        assert!(outcomes[1].as_ref().unwrap_err().is_panicked());
        let Err(TaskError::WorkerLost(lost)) = &outcomes[2] else { panic!("{:?}", outcomes[2]) };
        assert_eq!(lost.cause(), Some("after a panic, state failed: the database is gone (3)"));
        assert!(lost.to_string().contains("the database is gone (3)"), "{lost}");
        assert_eq!(outcomes[3].as_ref().ok(), Some(&5));
    });
}

#[test]
fn a_state_that_cannot_be_made_anew_in_the_replacement_either_ends_the_pool() {
    both(|| {
        quietly();
        let make = |_: &forkring::WorkerInfo, _: &()| match cell(0).load(Ordering::SeqCst) {
            0 => Ok(5_u32),
            _ => panic!("the database has burnt"),
        };
        for policy in [OnWorkerLoss::FailAll, OnWorkerLoss::FailTask] {
            cell(0).store(0, Ordering::SeqCst);
            let pool = builder().workers(1).state(make).on_worker_loss(policy).build().unwrap();
            cell(0).store(1, Ordering::SeqCst);
            assert!(outcome(pool.submit_with(spoil, &())).unwrap_err().is_panicked());
            // The first one's end is that of the pool; the second one's successor cannot start.
            let error = outcome(pool.submit(|n: u32| n, &1)).unwrap_err();
            assert!(
                error.is_pool_failed() && error.to_string().contains("the database has burnt"),
                "{error}"
            );
            pool.closed().wait();
        }
    });
}

#[test]
fn a_broadcast_runs_once_in_every_worker() {
    both(|| {
        let pool = new_pool(4).unwrap();
        for round in 1..=50 {
            let all = pool.broadcast(|w: &Worker| {
                cell(w.id()).fetch_add(1, Ordering::SeqCst);
                (w.id(), std::process::id())
            });
            let all: Vec<_> = all.into_iter().map(Result::unwrap).collect();
            assert_eq!(all.iter().map(|one| one.0).collect::<Vec<_>>(), [0, 1, 2, 3]);
            assert_eq!(all.iter().map(|one| one.1).collect::<Vec<_>>(), pool.worker_pids());
            assert!((0..4).all(|id| cell(id).load(Ordering::SeqCst) == round));
        }
        let some = pool.broadcast(|w: &Worker| if w.id() == 2 { panic!("not I") } else { w.id() });
        assert!(some[2].as_ref().unwrap_err().is_panicked());
        assert_eq!(some.iter().filter(|one| one.is_ok()).count(), 3);
        pool.close().wait();
        assert!(pool.broadcast(|w: &Worker| w.id()).into_iter().all(|one| one.unwrap_err().is_closed()));
    });
}

#[test]
fn a_broadcast_brings_its_input_to_every_worker() {
    both(|| {
        let pool = builder().workers(3).max_payload(4 << 20).build().unwrap();
        let read = |w: &Worker, text: &View<str>| (w.id(), text.len());
        for len in [0, 5, 100, 1 << 20] {
            let all = pool.broadcast_with(read, &*"x".repeat(len));
            let all: Vec<_> = all.into_iter().map(Result::unwrap).collect();
            assert_eq!(all, [(0, len), (1, len), (2, len)]);
        }
        let numbers: Vec<u64> = (0..100_000).collect();
        let sum = |_: &Worker, v: &View<Vec<u64>>| v.iter().map(|n| n.to_native()).sum::<u64>();
        assert!(pool.broadcast_with(sum, &numbers).into_iter().all(|one| one.unwrap() == 4_999_950_000));
        let nothing = pool.broadcast_with(read, &*"x".repeat(5 << 20));
        assert_eq!(nothing.into_iter().filter(|one| one.as_ref().unwrap_err().is_too_large()).count(), 3);
        pool.close().wait();
        assert!(pool.broadcast_with(read, "x").into_iter().all(|one| one.unwrap_err().is_closed()));
    });
}

#[test]
fn a_broadcast_waits_for_a_busy_worker_and_leaves_the_others_to_work() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let busy = pool.submit(
            |_: ()| {
                counter(0).bump();
                gate(0).wait();
            },
            &(),
        );
        counter(0).wait_for(1);
        let all = std::thread::spawn({
            let pool = pool.clone();
            move || {
                pool.broadcast(|w: &Worker| {
                    counter(1).bump();
                    w.id()
                })
            }
        });
        counter(1).wait_for(1);
        assert_eq!(outcome(pool.submit(|n: u32| n, &5)).unwrap(), 5);
        assert_eq!(counter(1).get(), 1, "the busy one has not had its turn");
        gate(0).open();
        outcome(busy).unwrap();
        assert_eq!(all.join().unwrap().into_iter().map(Result::unwrap).collect::<Vec<_>>(), [0, 1]);
    });
}

#[test]
fn a_broadcast_to_a_worker_that_dies_ends() {
    scenario(|| {
        hooks::set_log_error(|_| ());
        let pool = Pool::new(3).unwrap();
        for _ in 0..20 {
            let all = pool.broadcast(|w: &Worker| if w.id() == 1 { std::process::abort() } else { w.id() });
            assert!(all[1].as_ref().unwrap_err().is_worker_lost());
            assert_eq!((all[0].as_ref().ok(), all[2].as_ref().ok()), (Some(&0), Some(&2)));
        }
    });
}

/// Collects what a hook is called with.
fn collected(set: impl FnOnce(Box<dyn Fn(&str) + Send + Sync>)) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let into = lines.clone();
    set(Box::new(move |line| into.lock().unwrap().push(line.to_owned())));
    lines
}

#[test]
fn the_failure_of_a_spawned_task_goes_to_the_log_hook() {
    both_output(
        || {
            let lines = collected(hooks::set_log_error);
            let pool = builder().workers(1).name("quiet").max_payload(1 << 20).build().unwrap();
            pool.spawn(
                |n: u32| {
                    if n == 1 {
                        panic!("nobody waits for me")
                    }
                },
                &1,
            );
            pool.spawn(
                |n: u32| {
                    if n == 1 {
                        panic!("nobody waits for me")
                    }
                },
                &2,
            );
            pool.submit(
                |n: u32| {
                    if n == 1 {
                        panic!("nor for me")
                    }
                },
                &1,
            )
            .detach();
            pool.spawn_with(
                |_: &Worker, text: &View<str>| {
                    if !text.is_empty() {
                        panic!("{text}")
                    }
                },
                "nor for that",
            );
            pool.spawn(|v: Vec<u8>| v.len(), &vec![0; 2 << 20]);
            pool.close().wait();
            pool.spawn(|_: ()| (), &());
            let lines = lines.lock().unwrap();
            let with = |word: &str| lines.iter().filter(|line| line.contains(word)).count();
            assert_eq!(with("nobody waits for me"), 1, "{lines:?}");
            assert_eq!(with("nor for me"), 1, "{lines:?}");
            assert_eq!(with("nor for that"), 1, "{lines:?}");
            assert_eq!(with("max_payload"), 1, "{lines:?}");
            assert_eq!(with("closed"), 1, "{lines:?}");
            assert!(lines.iter().all(|line| line.contains("quiet")), "{lines:?}");
        },
        |finished| {
            assert!(finished.status.success(), "{finished:?}");
            assert!(
                !finished.stderr.contains("forkring:"),
                "the hook takes the place of stderr: {finished:?}"
            );
        },
    );
}

#[test]
fn without_a_hook_and_a_logger_errors_go_to_stderr() {
    both_output(
        || {
            let pool = builder().workers(1).name("till").build().unwrap();
            pool.spawn(
                |n: u32| {
                    if n == 1 {
                        panic!("nobody waits for me")
                    }
                },
                &1,
            );
            pool.close().wait();
            pool.spawn(|n: u32| n, &1);
        },
        |finished| {
            assert!(finished.status.success(), "{finished:?}");
            let ours: Vec<_> = finished.stderr.lines().filter(|line| line.starts_with("forkring:")).collect();
            assert!(ours.len() == 1 && ours[0].contains("till: a detached task failed"), "{finished:?}");
            // What the worker has printed already is not printed again.
            assert!(!ours[0].contains("panicked"), "{finished:?}");
            assert_eq!(finished.stderr.matches("nobody waits for me").count(), 1, "{finished:?}");
        },
    );
}

#[test]
fn a_hook_that_panics_or_uses_the_pool_harms_nobody() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let inner = pool.clone();
        hooks::set_log_error(move |_| {
            inner.submit(|_: ()| counter(0).bump(), &()).detach();
            panic!("a bad hook");
        });
        for _ in 0..10 {
            pool.spawn(
                |n: u32| {
                    if n == 1 {
                        panic!("nobody waits for me")
                    }
                },
                &1,
            );
        }
        counter(0).wait_for(10);
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
        pool.close().wait();
    });
}

#[test]
fn the_death_and_the_replacement_of_a_worker_are_reported() {
    scenario(|| {
        let (errors, notices) = (collected(hooks::set_log_error), collected(hooks::set_log_info));
        let pool = Pool::builder().workers(1).name("mortal").build().unwrap();
        let pid = pool.worker_pids()[0];
        signal(pid, Signal::SIGKILL);
        gone(pid);
        assert_eq!(outcome(pool.submit_with(|w: &Worker, _: &View<()>| w.generation(), &())).unwrap(), 1);
        pool.close().wait();
        let all = [errors.lock().unwrap().clone(), notices.lock().unwrap().clone()].concat();
        let death = all.iter().find(|line| line.contains(&pid.to_string()) && line.contains("SIGKILL"));
        assert!(death.is_some_and(|line| line.contains("mortal")), "{all:?}");
    });
}

#[test]
fn the_panic_format_hook_writes_the_message() {
    both(|| {
        hooks::set_panic_format(|payload| match payload.downcast_ref::<i32>() {
            Some(code) => format!("code {code}"),
            None => panic!("a format that panics"),
        });
        let pool = new_pool(1).unwrap();
        let message = |task: Task<()>| match outcome(task) {
            Err(TaskError::Panicked(panic)) => panic.message().to_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(message(pool.submit(|_: ()| std::panic::panic_any(7), &())), "code 7");
        assert!(!message(pool.submit(|_: ()| panic!("text"), &())).is_empty());
        assert_eq!(message(pool.submit(|_: ()| std::panic::panic_any(8), &())), "code 8");
    });
}

/// D-13, and the issue's own words.
#[test]
fn an_idle_pool_of_four_workers_uses_no_cpu() {
    both(|| {
        let pool = new_pool(4).unwrap();
        let sum: u64 = pool.map(0..1000, |n: u64| n).map(Result::unwrap).sum();
        assert_eq!(sum, 499_500);
        let all: Vec<u32> = children().iter().map(|p| p.pid).chain([std::process::id()]).collect();
        assert_eq!(all.len(), if in_process() { 1 } else { 6 });
        let ticks = || all.iter().map(|&pid| process(pid).unwrap().ticks).sum::<u64>();
        let switches = || {
            let of = |pid: &u32| {
                let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
                let one = |task: std::fs::DirEntry| {
                    let text = std::fs::read_to_string(task.path().join("status")).unwrap();
                    let line = text.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
                    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
                };
                tasks.map(one).sum::<u64>()
            };
            all.iter().map(of).sum::<u64>()
        };
        // What has just run goes to sleep first.
        let mut last = switches();
        eventually("quiet", || {
            std::thread::sleep(Duration::from_millis(50));
            let now = switches();
            now - std::mem::replace(&mut last, now) <= 2
        });
        let (ticks_before, switches_before) = (ticks(), switches());
        // The one thing to wait for is time.
        std::thread::sleep(Duration::from_secs(5));
        let (used, woken) = (ticks() - ticks_before, switches() - switches_before);
        assert!(used <= 1, "{used} ticks of 10 ms in 5 s");
        // This thread's sleep, and reading /proc.
        assert!(woken <= 4, "{woken} wake-ups in 5 s");
        drop(pool);
    });
}

#[test]
fn a_pools_defaults_fit_the_machine() {
    scenario(|| {
        let pool = Pool::builder().build().unwrap();
        assert!((1..=std::thread::available_parallelism().unwrap().get()).contains(&pool.workers()));
        assert_eq!(pool.worker_pids().len(), pool.workers());
    });
}

#[test]
fn settings_that_contradict_each_other_are_errors() {
    both(|| {
        let fds = count_fds();
        let late = builder().workers(1).state(|_, _| Ok(1_u32)).env(5_u64).build();
        assert!(late.unwrap_err().to_string().contains("env"));
        let nowhere = builder().workers(1).service_on(|_| ()).build();
        assert!(nowhere.unwrap_err().to_string().contains("service_async"));
        assert!(builder().workers(1).max_payload(usize::MAX).build().is_err());
        let zero = builder().workers(1).granularity(forkring::Granularity::Fixed(0)).build();
        assert!(zero.unwrap_err().to_string().contains("granularity"));
        nothing_left(fds);
    });
}

#[test]
fn a_07_an_init_timeout_may_be_without_limit_but_not_nothing() {
    both(|| {
        let pool = builder().workers(1).init_timeout(Duration::MAX).build().unwrap();
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
        pool.close().wait();
        let error = builder().workers(1).init_timeout(Duration::ZERO).build().unwrap_err().to_string();
        assert!(error.contains("init_timeout of 0"), "{error}");
    });
}
