//! Acceptance cases about the program that hosts a pool: what it may do with signals, children and forks, and what it
//! finds unchanged afterwards. H-05 and H-08 are in `fork_safety`, J-02 and J-04 in `shutdown`, I-09 in `recycling`,
//! I-12 in `hygiene`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forkring::{Pool, TaskError, Worker};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitPidFlag, waitpid};

use crate::support::{
    children, count_fds, counter, disposition, eventually, exit_code_of, fds_of, fork_and, gate, gone,
    outcome, process, quietly, return_freed_memory, rss_kib, scenario, scenario_output, signal, zygote,
};

fn pid(_: ()) -> u32 {
    std::process::id()
}

/// Kills the worker that runs this task.
fn kill_this_worker(_: ()) {
    raise(Signal::SIGKILL).unwrap();
}

/// Uses a pool in all ways that matter to a host; 0 if that went well.
fn use_a_pool() -> i32 {
    quietly();
    let Ok(pool) = Pool::new(2) else { return 1 };
    let sum: u64 = pool.map(0..100, |n: u64| n).map(Result::unwrap).sum();
    if sum != 4950 {
        return 2;
    }
    for _ in 0..3 {
        match outcome(pool.submit(kill_this_worker, &())) {
            Err(TaskError::WorkerLost(lost)) if lost.signal() == Some(9) => {}
            _ => return 3,
        }
        if outcome(pool.submit(|n: u32| n, &4)).ok() != Some(4) {
            return 4;
        }
    }
    pool.close().wait();
    0
}

// ---- children and forks of the host

#[test]
fn a_host_that_reaps_everything_while_workers_are_killed_keeps_its_pool() {
    static STOP: AtomicBool = AtomicBool::new(false);
    scenario(|| {
        quietly();
        let reaper = std::thread::spawn(|| {
            while !STOP.load(Ordering::Relaxed) {
                // As soon as the zygote ends, too.
                let _ = waitpid(None, Some(WaitPidFlag::WNOHANG));
                std::thread::yield_now();
            }
        });
        for _ in 0..5 {
            assert_eq!(use_a_pool(), 0);
            eventually("the end", || children().is_empty());
        }
        STOP.store(true, Ordering::Relaxed);
        reaper.join().unwrap();
    });
}

#[test]
fn a_host_that_ignores_sigchld_keeps_its_pool_while_workers_are_killed() {
    scenario(|| {
        disposition(Signal::SIGCHLD, true);
        for _ in 0..5 {
            assert_eq!(use_a_pool(), 0);
            eventually("the end", || children().is_empty());
        }
    });
}

#[test]
fn a_host_that_forks_itself_in_the_middle_keeps_its_pool_and_its_fork_has_one_of_its_own() {
    static STOP: AtomicBool = AtomicBool::new(false);
    scenario(|| {
        quietly();
        let pool = Pool::new(2).unwrap();
        let user = {
            let pool = pool.clone();
            std::thread::spawn(move || {
                let mut sum = 0;
                while !STOP.load(Ordering::Relaxed) {
                    sum += outcome(pool.submit(|n: u64| n, &1)).unwrap();
                }
                sum
            })
        };
        for round in 0..20 {
            let child = fork_and(|| {
                // The inherited one is inert, one of its own is not.
                if pool.submit(|n: u32| n, &1).wait().is_ok() { 9 } else { use_a_pool() }
            });
            if round % 4 == 0 {
                signal(pool.worker_pids()[0], Signal::SIGKILL);
                eventually("a replacement", || pool.broadcast(|_: &Worker| ()).iter().all(Result::is_ok));
            }
            assert_eq!(exit_code_of(child), 0);
        }
        STOP.store(true, Ordering::Relaxed);
        // Which task ran in a worker that was killed is a matter of luck.
        let _ = user.join();
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
    });
}

/// In a container without an init, the program is process 1 of its namespace: its own number is the parent's of the
/// zygote, orphans are its children, and signals without a handler do not reach it.
#[test]
fn a_host_that_is_process_1_keeps_its_pool() {
    scenario(|| {
        let child = fork_and(|| {
            if unshare(CloneFlags::CLONE_NEWPID).is_err() {
                return 77;
            }
            // The first child is process 1 of the namespace; `waitpid` sees it by its number outside.
            let init = fork_and(|| if std::process::id() == 1 { use_a_pool() } else { 50 });
            exit_code_of(init)
        });
        match exit_code_of(child) {
            77 => eprintln!("SKIPPED: no pid namespace may be made here"),
            code => assert_eq!(code, 0),
        }
    });
}

// ---- signals

#[test]
fn j_06_handlers_and_mask_of_the_host_are_as_they_were() {
    fn of_signals() -> Vec<(String, String)> {
        // Of this thread: the harness's own may be in the middle of starting it, for which libc blocks everything.
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let wanted = |line: &&str| ["SigBlk", "SigIgn", "SigCgt"].iter().any(|key| line.starts_with(key));
        let lines: Vec<_> = text.lines().filter(wanted).filter_map(|line| line.split_once(':')).collect();
        assert_eq!(lines.len(), 3);
        lines.into_iter().map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
    }
    scenario(|| {
        disposition(Signal::SIGINT, false);
        disposition(Signal::SIGCHLD, false);
        disposition(Signal::SIGTERM, true);
        let before = of_signals();
        assert_eq!(use_a_pool(), 0);
        assert_eq!(of_signals(), before);
        let pool = Pool::new(1).unwrap();
        assert_eq!(of_signals(), before);
        pool.terminate();
        assert_eq!(of_signals(), before);
    });
}

#[test]
fn j_08_a_finished_pool_does_nothing_about_signals() {
    let finished = scenario_output(|| {
        disposition(Signal::SIGINT, false);
        let pool = Pool::new(2).unwrap();
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
        pool.close().wait();
        let fds = count_fds();
        nix::sys::signal::killpg(nix::unistd::getpgrp(), Signal::SIGINT).unwrap();
        pool.terminate();
        drop(pool);
        assert!(children().is_empty());
        assert_eq!(count_fds(), fds);
    });
    if let Some(finished) = finished {
        assert!(finished.status.success() && finished.stderr.is_empty(), "{finished:?}");
    }
}

/// J-08, D-20: numbers of workers that are gone may name others by now.
#[test]
fn j_08_who_has_a_dead_workers_number_is_left_alone() {
    scenario(|| {
        quietly();
        let pool = Pool::builder().workers(1).process_group(true).build().unwrap();
        let old = outcome(pool.submit(pid, &())).unwrap();
        signal(old, Signal::SIGKILL);
        gone(old);
        assert_ne!(outcome(pool.submit(pid, &())).unwrap(), old);
        // The next process gets the number after this one (proc(5)).
        let mut heir = None;
        for _ in 0..100 {
            if std::fs::write("/proc/sys/kernel/ns_last_pid", (old - 1).to_string()).is_err() {
                eprintln!("SKIPPED: numbers of processes cannot be chosen here");
                return;
            }
            let child = fork_and(|| {
                let _ = nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0));
                counter(0).bump();
                gate(0).wait();
                5
            });
            if child == old {
                heir = Some(child);
                break;
            }
            // Somebody else was quicker.
            signal(child, Signal::SIGKILL);
            let _ = waitpid(nix::unistd::Pid::from_raw(child as i32), None);
        }
        let Some(heir) = heir else {
            eprintln!("SKIPPED: others take the numbers here");
            return;
        };
        counter(0).wait_for(1);
        pool.terminate();
        drop(pool);
        assert!(process(heir).is_some_and(|p| p.state != 'Z'));
        gate(0).open();
        assert_eq!(exit_code_of(heir), 5);
    });
}

// ---- resources

/// One task in many ends its worker, in one of three ways.
fn mixed(n: u32) -> u32 {
    match n % 60 {
        7 | 27 => panic!("{n}"),
        19 => std::process::exit(0),
        39 => std::process::exit(1),
        _ => n,
    }
}

#[test]
fn i_01_tasks_take_no_descriptors_however_they_end() {
    scenario(|| {
        quietly();
        let pool = Pool::new(2).unwrap();
        let fds_of_workers =
            || pool.worker_pids().into_iter().map(|pid| fds_of(pid).len()).collect::<Vec<_>>();
        let run = |from: u32, to: u32| {
            let tasks: Vec<_> = (from..to).map(|n| (n, pool.submit(mixed, &n))).collect();
            for (n, task) in tasks {
                match (n % 60, outcome(task)) {
                    (7 | 27, Err(error)) => assert!(error.is_panicked(), "{error}"),
                    (19, Err(TaskError::WorkerLost(lost))) => assert_eq!(lost.exit_code(), Some(0)),
                    (39, Err(TaskError::WorkerLost(lost))) => assert_eq!(lost.exit_code(), Some(1)),
                    (_, result) => assert_eq!(result.unwrap(), n),
                }
            }
            eventually("both workers", || pool.broadcast(|_: &Worker| ()).iter().all(Result::is_ok));
        };
        run(0, 600);
        let (fds, of_workers) = (count_fds(), fds_of_workers());
        run(0, 10_000);
        eventually("as many descriptors as before", || count_fds() == fds);
        assert_eq!(fds_of_workers(), of_workers);
    });
}

#[test]
fn i_03_a_storm_of_kills_leaves_no_zombie() {
    scenario(|| {
        quietly();
        let pool = Pool::new(3).unwrap();
        let zygote = zygote();
        for _ in 0..100 {
            for pid in pool.worker_pids() {
                // It may have been replaced meanwhile.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
            assert!(
                pool.broadcast(|_: &Worker| ())
                    .into_iter()
                    .all(|one| one.is_ok() || one.unwrap_err().is_worker_lost())
            );
        }
        eventually("workers only", || {
            let workers: Vec<_> = children().into_iter().filter(|p| p.pid != zygote).collect();
            workers.len() == 3 && workers.iter().all(|p| p.state != 'Z')
        });
        pool.close().wait();
        assert!(children().is_empty(), "{:?}", children());
    });
}

/// What this process has mapped of pools' shared memory.
fn mapped_regions() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("memfd:forkring")).count()
}

#[test]
fn i_04_shared_memory_goes_with_the_pool_whichever_way_it_ends() {
    scenario(|| {
        quietly();
        let shm = || std::fs::read_dir("/dev/shm").map_or(0, Iterator::count);
        let (before, fds) = (shm(), count_fds());
        let used = || {
            let pool = Pool::new(2).unwrap();
            assert_eq!(outcome(pool.submit(|n: usize| vec![1_u8; n].len(), &(1 << 20))).unwrap(), 1 << 20);
            assert_eq!(mapped_regions(), 4);
            pool
        };
        used().close().wait();
        used().terminate();
        drop(used());
        let panicked = std::panic::catch_unwind(|| {
            let _pool = used();
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(panicked.is_err());
        let pool = used();
        signal(zygote(), Signal::SIGKILL);
        pool.closed().wait();
        drop(pool);
        assert_eq!(mapped_regions(), 0);
        assert_eq!(shm(), before);
        assert_eq!(count_fds(), fds);
    });
}

#[test]
fn i_06_the_end_of_a_worker_takes_nothing_from_the_others() {
    scenario(|| {
        quietly();
        let pool = Pool::new(2).unwrap();
        let big = |n: u32| {
            counter(0).bump();
            gate(0).wait();
            vec![n; 1 << 20]
        };
        let task = pool.submit(big, &7);
        counter(0).wait_for(1);
        for _ in 0..10 {
            assert!(outcome(pool.submit(kill_this_worker, &())).unwrap_err().is_worker_lost());
            assert_eq!(mapped_regions() % 2, 0);
        }
        gate(0).open();
        assert!(outcome(task).unwrap() == vec![7; 1 << 20]);
    });
}

#[test]
fn i_07_no_room_for_shared_memory_is_an_error() {
    scenario(|| {
        Pool::new(1).unwrap().close().wait();
        let fds = count_fds();
        let pages: u64 =
            std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').next().unwrap().parse().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
        // Room for the driver and for the first of two regions, or not even that.
        let mut failures = 0;
        for mib in [1_u64, 4, 10, 14, 18, 22, 26] {
            setrlimit(Resource::RLIMIT_AS, pages * 4096 + (mib << 20), hard).unwrap();
            let built = Pool::new(2);
            setrlimit(Resource::RLIMIT_AS, soft, hard).unwrap();
            match built {
                Ok(pool) => pool.close().wait(),
                Err(error) => {
                    failures += 1;
                    assert!(error.to_string().contains("could not"), "{error}");
                }
            }
            assert!(children().is_empty());
            assert_eq!(count_fds(), fds);
        }
        assert!(failures >= 2, "{failures}");
    });
}

#[test]
fn i_07_an_input_that_there_is_no_memory_to_copy_is_an_error() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        // More than an arena of the allocator's has in reserve.
        let row = vec![7_u8; 100 << 20];
        let words: Vec<String> = (0..100).map(|_| "w".repeat(1 << 20)).collect();
        let pages: u64 =
            std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').next().unwrap().parse().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
        setrlimit(Resource::RLIMIT_AS, pages * 4096 + (30 << 20), hard).unwrap();
        let errors = [
            outcome(pool.submit(|v: Vec<u8>| v.len(), &row)).unwrap_err(),
            outcome(pool.submit(|v: Vec<String>| v.len(), &words)).unwrap_err(),
        ];
        let small = outcome(pool.submit(|v: Vec<u8>| v.len(), &vec![1; 1 << 20]));
        setrlimit(Resource::RLIMIT_AS, soft, hard).unwrap();
        for error in errors {
            assert!(
                matches!(&error, TaskError::Encode(_)) && error.to_string().contains("no memory"),
                "{error}"
            );
        }
        assert_eq!(small.unwrap(), 1 << 20);
        assert_eq!(outcome(pool.submit(|v: Vec<u8>| v.len(), &row)).unwrap(), 100 << 20);
        assert_eq!(outcome(pool.submit(|v: Vec<String>| v.len(), &words)).unwrap(), 100);
    });
}

#[test]
fn i_08_memory_is_flat_over_many_tasks() {
    scenario(|| {
        return_freed_memory();
        let pool = Pool::new(1).unwrap();
        let run = || {
            for _ in 0..100 {
                let tasks: Vec<_> = (0..1000_u64).map(|n| pool.submit(|n: u64| n, &n)).collect();
                let sum: u64 = tasks.into_iter().map(|task| task.wait().unwrap()).sum();
                assert_eq!(sum, 499_500);
            }
        };
        let memory = || [std::process::id(), pool.worker_pids()[0]].map(rss_kib);
        run();
        let before = memory();
        run();
        run();
        run();
        let after = memory();
        // 300 000 tasks: a leak of 16 bytes each would be 4.6 MiB.
        assert!(
            after.iter().zip(before).all(|(after, before)| *after < before + 3072),
            "{before:?} {after:?}"
        );
    });
}

#[test]
fn i_11_a_failed_init_leaves_nothing() {
    scenario(|| {
        quietly();
        let shm = || std::fs::read_dir("/dev/shm").map_or(0, Iterator::count);
        assert!(Pool::builder().workers(3).init(|_| Err("no".into())).build().is_err());
        let (fds, files) = (count_fds(), shm());
        for round in 0..40 {
            let init = move |info: &forkring::WorkerInfo| match (round % 4, info.id()) {
                (0, 1) => Err("an error".into()),
                (1, 1) => panic!("a panic"),
                (2, 1) => std::process::exit(3),
                (3, 1) => loop {
                    std::thread::sleep(Duration::from_secs(1));
                },
                _ => Ok(()),
            };
            let builder = Pool::builder().workers(3).init(init).init_timeout(Duration::from_millis(300));
            assert!(builder.build().is_err());
            assert!(children().is_empty(), "{:?}", children());
            assert_eq!((count_fds(), shm(), mapped_regions()), (fds, files, 0));
        }
    });
}
