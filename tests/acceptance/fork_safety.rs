//! Acceptance cases, group H: forks of processes with threads, locks, descriptors and signals; and handles that were
//! inherited.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use forkring::{Pool, Task, TaskError, View, Worker, hooks};
use nix::sys::signal::{SigSet, Signal};

use crate::support::{
    BOUND, cell, children, counter, descendants, disposition, eventually, exit_code_of, fds_of, fork_and,
    gate, gone, outcome, process, scenario, signal, status_of, zygote,
};

/// Ends every worker of a pool and waits until each has a successor that works.
fn replace_workers(pool: &Pool) {
    for pid in pool.worker_pids() {
        // It may have been killed before, and be on the list still.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL);
        gone(pid);
    }
    let ids = pool.broadcast(|w: &Worker| w.id());
    assert_eq!(ids.len(), pool.workers());
    for (n, id) in ids.into_iter().enumerate() {
        match id {
            Ok(id) => assert_eq!(id, n),
            // The worker had died when it was handed its turn.
            Err(error) => assert!(error.is_worker_lost(), "{error}"),
        }
    }
}

/// Threads that do `body` until the value is dropped.
struct Busy(Arc<AtomicBool>, Vec<std::thread::JoinHandle<()>>);

impl Busy {
    fn new(bodies: Vec<fn()>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = |body: fn()| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    body();
                }
            })
        };
        let threads = bodies.into_iter().map(thread).collect();
        Self(stop, threads)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn h_01_pools_are_built_and_workers_replaced_while_threads_hold_locks() {
    scenario(|| {
        hooks::set_log_error(|_| ());
        static MINE: Mutex<u64> = Mutex::new(0);
        let _busy = Busy::new(vec![
            || drop(std::hint::black_box(vec![1_u8; 1 << 12])),
            || {
                let mut out = std::io::stdout().lock();
                let _ = out.write_all(b"").and_then(|()| out.flush());
            },
            || drop(std::io::stderr().lock()),
            || *MINE.lock().unwrap() += 1,
            || drop(std::env::var_os("PATH")),
        ]);
        let body = |n: usize| {
            // The locks of std and of malloc, which a worker may use; not the program's own.
            print!("");
            eprint!("");
            let text = std::env::var("PATH").map_or(0, |path| path.len());
            vec![format!("{n} {text}"); n].len()
        };
        for round in 0..60 {
            let pool = Pool::new(2).unwrap();
            let tasks: Vec<_> = (0..10_usize).map(|n| pool.submit(body, &n)).collect();
            for (n, task) in tasks.into_iter().enumerate() {
                assert_eq!(outcome(task).unwrap(), n, "round {round}");
            }
            if round % 4 == 0 {
                (0..5).for_each(|_| replace_workers(&pool));
                assert_eq!(outcome(pool.submit(body, &50)).unwrap(), 50);
            }
        }
    });
}

#[test]
fn h_02_rayon_works_in_tasks_when_the_pool_was_built_first() {
    scenario(|| {
        use rayon::prelude::*;
        let pool = Pool::new(2).unwrap();
        let sum = |n: u64| (0..n).into_par_iter().map(|n| n * n).sum::<u64>();
        // Here, and then there: the zygote was forked before there were threads.
        assert_eq!(sum(1000), 332_833_500);
        for _ in 0..10 {
            let tasks: Vec<_> = (0..4).map(|_| pool.submit(sum, &1000)).collect();
            tasks.into_iter().for_each(|task| assert_eq!(outcome(task).unwrap(), 332_833_500));
            replace_workers(&pool);
            assert_eq!(outcome(pool.submit(sum, &1000)).unwrap(), 332_833_500, "in a replacement");
        }
    });
}

/// Threads do not survive a fork, rayon's global ones neither: documented at `build()`, and said in the log. A thread
/// pool of the task's own works.
#[test]
fn h_02_a_pool_built_after_rayon_says_so_and_tasks_can_have_threads_of_their_own() {
    scenario(|| {
        use rayon::prelude::*;
        let notices = Arc::new(Mutex::new(Vec::new()));
        let into = notices.clone();
        hooks::set_log_info(move |line| into.lock().unwrap().push(line.to_owned()));
        assert_eq!((0..1000_u64).into_par_iter().sum::<u64>(), 499_500);
        let pool = Pool::new(2).unwrap();
        let warned = notices.lock().unwrap().iter().filter(|line| line.contains("other threads")).count();
        assert_eq!(warned, 1, "{notices:?}");
        let body = |n: u64| {
            let own = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            own.install(|| (0..n).into_par_iter().sum::<u64>())
        };
        assert_eq!(outcome(pool.submit(body, &1000)).unwrap(), 499_500);
        let second = Pool::new(1).unwrap();
        assert_eq!(outcome(second.submit(body, &10)).unwrap(), 45);
        let warned = notices.lock().unwrap().iter().filter(|line| line.contains("other threads")).count();
        assert_eq!(warned, 1, "once a process");
    });
}

#[test]
fn h_04_workers_are_replaced_under_a_busy_tokio_runtime() {
    scenario(|| {
        hooks::set_log_error(|_| ());
        let tokio =
            tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
        tokio.block_on(async {
            let stop = Arc::new(AtomicBool::new(false));
            let churn: Vec<_> = (0..4)
                .map(|_| {
                    let stop = stop.clone();
                    tokio::spawn(async move {
                        while !stop.load(Ordering::Relaxed) {
                            drop(std::hint::black_box(vec![0_u8; 5000]));
                            tokio::task::yield_now().await;
                        }
                    })
                })
                .collect();
            // Built inside of the runtime, too.
            let pool = Pool::new(2).unwrap();
            let body = |n: u64| (0..n).map(|n| n.to_string()).collect::<Vec<_>>().len() as u64;
            let mut lost = 0;
            for round in 0..30_u64 {
                let tasks: Vec<_> = (0..10).map(|_| pool.submit(body, &100)).collect();
                signal(pool.worker_pids()[(round % 2) as usize % pool.worker_pids().len()], Signal::SIGKILL);
                for task in tasks {
                    match tokio::time::timeout(BOUND, task).await.expect("hang") {
                        Ok(value) => assert_eq!(value, 100),
                        Err(error) if error.is_worker_lost() => lost += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                eventually("a replacement", || {
                    let pids = pool.worker_pids();
                    pids.len() == 2 && pids.iter().all(|&pid| process(pid).is_some_and(|p| p.state != 'Z'))
                });
            }
            assert!(lost <= 30, "at most one for each kill: {lost}");
            stop.store(true, Ordering::Relaxed);
            for task in churn {
                task.await.unwrap();
            }
            tokio::time::timeout(BOUND, pool.close()).await.expect("hang");
        });
    });
}

/// The descriptors of a process, by kind.
fn kinds(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for target in fds_of(pid).into_values() {
        let kind = target.split(['[', '(']).next().unwrap_or_default();
        let kind = if target.starts_with("anon_inode") { target.as_str() } else { kind };
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    kinds
}

/// The inodes of a process's pipes and sockets.
fn identities(pid: u32) -> BTreeSet<String> {
    fds_of(pid)
        .into_values()
        .filter(|target| target.starts_with("pipe:") || target.starts_with("socket:"))
        .collect()
}

/// How many of these a process that holds `before` does not have.
fn bells(of: &BTreeSet<String>, before: &BTreeSet<String>) -> usize {
    of.difference(before).filter(|id| id.starts_with("pipe:")).count()
}

/// The inodes of a process's shared-memory mappings.
fn mapped(pid: u32) -> BTreeSet<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let inode =
        |line: &str| line.contains("/memfd:").then(|| line.split_whitespace().nth(4).map(str::to_owned))?;
    maps.lines().filter_map(inode).collect()
}

#[test]
fn h_05_a_worker_has_its_own_descriptors_and_its_programs_and_nobody_elses() {
    scenario(|| {
        let (_mine, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let own = kinds(std::process::id());
        let mine = identities(std::process::id());
        let small = Pool::new(1).unwrap();
        let alone = kinds(small.worker_pids()[0]);
        drop(small);
        let pool = Pool::new(64).unwrap();
        let workers = pool.worker_pids();
        for &pid in &workers {
            assert_eq!(kinds(pid), alone, "as few as with one worker");
            assert_eq!(mapped(pid).len(), mapped(workers[0]).len());
        }
        // What the program had open is inherited, as documented; beyond that, bells.
        let extra: usize = alone.values().sum::<usize>() - own.values().sum::<usize>();
        assert!(extra <= 6, "{alone:#?} after {own:#?}");
        assert_eq!(alone.get("socket:"), own.get("socket:"));
        let memory = |kinds: &BTreeMap<String, usize>| {
            let of = |(kind, n): (&String, &usize)| {
                (kind.contains("pidfd") || kind.contains("memfd")).then_some(*n)
            };
            kinds.iter().filter_map(of).sum::<usize>()
        };
        assert_eq!(memory(&alone), memory(&own), "{alone:?}");
        // Between any two there is the driver's bell and what the program had, and no memory.
        let all: Vec<_> = workers.iter().map(|&pid| (identities(pid), mapped(pid))).collect();
        let common: BTreeSet<_> = all[0].0.intersection(&all[1].0).cloned().collect();
        assert_eq!(bells(&common, &mine), 1, "{common:?}");
        for (i, one) in all.iter().enumerate() {
            for other in &all[i + 1..] {
                assert_eq!(one.0.intersection(&other.0).cloned().collect::<BTreeSet<_>>(), common);
                let shared: Vec<_> = one.1.intersection(&other.1).collect();
                assert!(shared.is_empty(), "{shared:?}");
            }
        }
    });
}

#[test]
fn h_05_with_close_inherited_fds_nothing_of_the_program_is_left_but_stdio() {
    scenario(|| {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = fs::File::open("/proc/self/exe").unwrap();
        let pool = Pool::builder().workers(8).close_inherited_fds(true).build().unwrap();
        let bound = Pool::builder().workers(1).bind(|n: u32| n).unwrap();
        let open_in =
            |pid: u32| fds_of(pid).into_iter().filter(|(fd, _)| *fd > 2).collect::<BTreeMap<_, _>>();
        for pid in pool.worker_pids() {
            let open = open_in(pid);
            assert!(open.values().all(|target| target.starts_with("pipe:")), "{open:?}");
            assert!(open.len() <= 4, "{open:?}");
            assert!([0, 1, 2].iter().all(|fd| fds_of(pid).contains_key(fd)));
        }
        let inherits = open_in(bound.worker_pids()[0]);
        for fd in [one.as_raw_fd(), other.as_raw_fd(), file.as_raw_fd()] {
            assert!(inherits.contains_key(&fd), "the default: {inherits:?}");
        }
        // Replacements likewise.
        hooks::set_log_error(|_| ());
        replace_workers(&pool);
        for pid in pool.worker_pids() {
            assert!(open_in(pid).values().all(|target| target.starts_with("pipe:")));
        }
        assert_eq!(outcome(pool.submit(|n: u32| n, &3)).unwrap(), 3);
    });
}

#[test]
fn h_06_a_death_is_noticed_although_a_grandchild_holds_all_that_it_inherited() {
    scenario(|| {
        hooks::set_log_error(|_| ());
        for workers in [1, 3] {
            let pool = Pool::new(workers).unwrap();
            let body = |n: usize| {
                let child = fork_and(|| {
                    gate(n).wait();
                    0
                });
                cell(n).store(child.into(), Ordering::SeqCst);
                counter(n).bump();
                gate(100).wait();
            };
            let task = pool.submit(body, &workers);
            counter(workers).wait_for(1);
            let grandchild = cell(workers).load(Ordering::SeqCst) as u32;
            let worker = process(grandchild).unwrap().parent;
            signal(worker, Signal::SIGKILL);
            match outcome(task) {
                Err(TaskError::WorkerLost(lost)) => {
                    assert_eq!((lost.pid(), lost.signal()), (worker, Some(9)))
                }
                other => panic!("{other:?}"),
            }
            // M-16: the pool goes on and ends while somebody still maps the region.
            for n in 0..100_u32 {
                assert_eq!(outcome(pool.submit(|n: u32| n, &n)).unwrap(), n);
            }
            pool.close().wait();
            assert!(process(grandchild).is_some_and(|p| p.state != 'Z'), "it has lived through it");
            gate(workers).open();
            eventually("the grandchild's end", || process(grandchild).is_none_or(|p| p.state == 'Z'));
        }
    });
}

/// A line of `/proc/<pid>/status` as a set of signals.
fn signals(pid: u32, line: &str) -> Vec<i32> {
    let mask = u64::from_str_radix(&status_of(pid)[line], 16).unwrap();
    // 32 and 33 are glibc's own: its `posix_spawn`, by which this process was started, leaves them ignored.
    (1..=64).filter(|n| mask >> (n - 1) & 1 == 1 && !matches!(n, 32 | 33)).collect()
}

#[test]
fn h_08_signals_begin_afresh_in_workers_and_stay_as_they_are_in_the_master() {
    scenario(|| {
        let me = std::process::id();
        let blocked: SigSet = [Signal::SIGTERM, Signal::SIGUSR2, Signal::SIGCHLD].into_iter().collect();
        blocked.thread_block().unwrap();
        for handled in [Signal::SIGUSR1, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
            disposition(handled, false);
        }
        disposition(Signal::SIGALRM, true);
        disposition(Signal::SIGQUIT, true);
        let masters = || (signals(me, "SigCgt"), signals(me, "SigIgn"), SigSet::thread_get_mask().unwrap());
        let before = masters();
        let pool = Pool::new(2).unwrap();
        let check = |pid: u32, what: &str| {
            assert_eq!(signals(pid, "SigBlk"), [0; 0], "{what}: blocked");
            // A terminal's signal that somebody ignored stays so: that is how `nohup` protects whole jobs.
            let ignored = [Signal::SIGQUIT as i32, Signal::SIGPIPE as i32];
            assert_eq!(signals(pid, "SigIgn"), ignored, "{what}: ignored");
            // std's own, which tell of a stack overflow, and an empty one: Ctrl-C is the master's business.
            let expected = [Signal::SIGINT, Signal::SIGSEGV, Signal::SIGBUS].map(|signal| signal as i32);
            let caught = signals(pid, "SigCgt");
            assert!(caught.iter().all(|signal| expected.contains(signal)), "{what}: caught {caught:?}");
        };
        pool.worker_pids().into_iter().for_each(|pid| check(pid, "a worker"));
        assert!(!signals(zygote(), "SigCgt").contains(&(Signal::SIGUSR1 as i32)));
        hooks::set_log_error(|_| ());
        replace_workers(&pool);
        pool.worker_pids().into_iter().for_each(|pid| check(pid, "a replacement"));
        // What a task starts begins afresh as well.
        let mask = |_: ()| {
            let output = Command::new("grep").args(["SigBlk", "/proc/self/status"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let text = outcome(pool.submit(mask, &())).unwrap();
        assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
        pool.close().wait();
        // J-06.
        assert_eq!(masters(), before);
    });
}

/// J-01, in small: what the terminal sends goes to the whole group.
#[test]
fn an_interrupt_to_the_group_is_the_masters_business() {
    scenario(|| {
        disposition(Signal::SIGINT, false);
        let pool = Pool::new(2).unwrap();
        let body = |n: u32| {
            counter(0).bump();
            gate(0).wait();
            n
        };
        let tasks = [pool.submit(body, &1), pool.submit(body, &2)];
        counter(0).wait_for(2);
        let pids = pool.worker_pids();
        nix::sys::signal::killpg(nix::unistd::getpgrp(), Signal::SIGINT).unwrap();
        // Each worker has had the signal before another that ends it.
        for pid in &pids {
            signal(*pid, Signal::SIGSTOP);
            eventually("a stop", || process(*pid).is_some_and(|p| p.state == 'T'));
            signal(*pid, Signal::SIGCONT);
        }
        gate(0).open();
        for (n, task) in tasks.into_iter().enumerate() {
            assert_eq!(outcome(task).unwrap() as usize, n + 1);
        }
        assert_eq!(pool.worker_pids(), pids);
    });
}

#[test]
fn a_program_that_ignores_or_reaps_all_children_keeps_its_pools() {
    scenario(|| {
        hooks::set_log_error(|_| ());
        disposition(Signal::SIGCHLD, true);
        for round in 0..10 {
            let pool = Pool::new(2).unwrap();
            let crash = pool.submit(
                |n: i32| {
                    if n > 0 {
                        std::process::exit(n)
                    }
                },
                &77,
            );
            match outcome(crash) {
                Err(TaskError::WorkerLost(lost)) => assert_eq!(lost.exit_code(), Some(77), "round {round}"),
                other => panic!("{other:?}"),
            }
            assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
            pool.close().wait();
            assert!(children().is_empty());
        }
        disposition(Signal::SIGCHLD, false);
        let _reaper = Busy::new(vec![|| {
            // Somebody else's children, too.
            let _ = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
            std::thread::yield_now();
        }]);
        for _ in 0..10 {
            let pool = Pool::new(2).unwrap();
            assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
            pool.close().wait();
            eventually("the end", || children().is_empty());
        }
    });
}

/// What M-02 inherits.
struct Inherited {
    pool: Pool,
    tasks: Vec<Task<u32>>,
}

static INHERITED: Mutex<Option<Inherited>> = Mutex::new(None);

/// Uses and drops everything inherited; 0 if all of it is inert.
fn use_and_drop() -> i32 {
    let Ok(Some(Inherited { pool, tasks })) = INHERITED.lock().map(|mut place| place.take()) else {
        return 1;
    };
    let inert = |result: Result<u32, TaskError>| result.is_err_and(|error| error.is_not_in_this_process());
    if !inert(pool.submit(|n: u32| n, &1).wait()) {
        return 2;
    }
    if !pool.broadcast(|_: &Worker| 1_u32).into_iter().all(inert) {
        return 3;
    }
    let mut outcomes = pool.map(0..3_u32, |n: u32| n);
    if outcomes.any(|result| result.is_ok()) {
        return 4;
    }
    drop(outcomes);
    for (n, mut task) in tasks.into_iter().enumerate() {
        let handle = task.handle();
        if task.cancel() || handle.cancel() {
            return 5;
        }
        let _ = (task.id(), task.is_finished(), handle.is_finished());
        let over = match n % 5 {
            0 => inert(task.wait()),
            1 => task.wait_timeout(BOUND).is_some_and(inert),
            2 => inert(futures::executor::block_on(task)),
            3 => {
                task.detach();
                true
            }
            _ => {
                drop(task);
                true
            }
        };
        if !over {
            return 10 + n as i32;
        }
    }
    pool.spawn(|n: u32| n, &1);
    if !pool.worker_pids().is_empty() {
        return 6;
    }
    pool.terminate();
    pool.close().wait();
    pool.closed().wait();
    futures::executor::block_on(pool.close());
    let other = pool.clone();
    drop(pool);
    drop(other);
    0
}

/// A pool with one task running, nine queued and some done, in the static; and the running one's gate is gate 0.
fn leave_for_others() {
    let pool = Pool::new(1).unwrap();
    let done = pool.submit(|n: u32| n, &1);
    eventually("a result", || done.is_finished());
    let body = |n: u32| {
        counter(0).bump();
        gate(0).wait();
        n
    };
    let tasks = [done].into_iter().chain((0..9).map(|n| pool.submit(body, &n))).collect();
    counter(0).wait_for(1);
    *INHERITED.lock().unwrap() = Some(Inherited { pool, tasks });
}

/// The owner's handles work as if nothing had happened.
fn all_is_well() {
    gate(0).open();
    let Inherited { pool, tasks } = INHERITED.lock().unwrap().take().unwrap();
    for (n, task) in tasks.into_iter().enumerate() {
        assert_eq!(outcome(task).unwrap() as usize, if n == 0 { 1 } else { n - 1 });
    }
    assert_eq!(outcome(pool.submit(|n: u32| n, &9)).unwrap(), 9);
    pool.close().wait();
}

#[test]
fn m_02_a_fork_of_the_program_can_do_nothing_with_the_handles_it_inherits() {
    scenario(|| {
        leave_for_others();
        for _ in 0..10 {
            let child = fork_and(use_and_drop);
            assert_eq!(exit_code_of(child), 0);
        }
        // A fork of the program may have pools of its own.
        let child = fork_and(|| {
            let pool = Pool::new(1).unwrap();
            let value = pool.submit(|n: u32| n + 1, &1).wait();
            pool.close().wait();
            i32::from(value.ok() != Some(2))
        });
        assert_eq!(exit_code_of(child), 0);
        all_is_well();
    });
}

#[test]
fn m_02_g_15_a_worker_can_do_nothing_with_the_handles_it_inherits() {
    scenario(|| {
        leave_for_others();
        let pool = Pool::new(2).unwrap();
        let codes: Vec<_> =
            pool.broadcast(|_: &Worker| use_and_drop()).into_iter().map(Result::unwrap).collect();
        assert_eq!(codes, [0, 0]);
        hooks::set_log_error(|_| ());
        replace_workers(&pool);
        let codes: Vec<_> =
            pool.broadcast(|_: &Worker| use_and_drop()).into_iter().map(Result::unwrap).collect();
        assert_eq!(codes, [0, 0], "the zygote's copy is untouched");
        // Another way in: as part of the environment.
        let handle = INHERITED.lock().unwrap().as_ref().map(|inherited| inherited.pool.clone());
        let second = Pool::builder().workers(1).env(handle).build().unwrap();
        let body = |w: &Worker<Option<Pool>>, n: &View<u32>| {
            let task = w.env().as_ref().unwrap().submit(|n: u32| n, &n.to_native());
            task.wait().is_err_and(|error| error.is_not_in_this_process())
        };
        assert!(outcome(second.submit_with(body, &1_u32)).unwrap());
        drop(second);
        drop(pool);
        all_is_well();
    });
}

#[test]
fn m_02_a_fork_that_ends_by_unwinding_or_exit_harms_nobody() {
    scenario(|| {
        leave_for_others();
        let unwinds = fork_and(|| {
            let _inherited = INHERITED.lock().unwrap().take();
            std::panic::resume_unwind(Box::new(()));
        });
        assert_eq!(exit_code_of(unwinds), 101);
        all_is_well();
    });
}

#[test]
fn m_03_a_pool_built_beside_another_has_nothing_of_it() {
    scenario(|| {
        hooks::set_log_error(|_| ());
        let program = identities(std::process::id());
        let first = Pool::new(2).unwrap();
        for _ in 0..5 {
            let builders: Vec<_> = (0..3).map(|_| std::thread::spawn(|| Pool::new(2).unwrap())).collect();
            let killed = first.worker_pids();
            for pid in killed {
                signal(pid, Signal::SIGKILL);
            }
            let mut pools: Vec<Pool> = builders.into_iter().map(|thread| thread.join().unwrap()).collect();
            replace_workers(&first);
            pools.push(first.clone());
            // The zygotes and workers of each pool.
            let trees: Vec<Vec<u32>> = pools
                .iter()
                .map(|pool| {
                    let zygote = process(pool.worker_pids()[0]).unwrap().parent;
                    descendants(zygote).into_iter().map(|p| p.pid).chain([zygote]).collect()
                })
                .collect();
            let of_tree = |tree: &Vec<u32>| {
                tree.iter().fold((BTreeSet::new(), BTreeSet::new()), |(mut fds, mut maps), &pid| {
                    fds.extend(identities(pid).difference(&program).cloned());
                    maps.extend(mapped(pid));
                    (fds, maps)
                })
            };
            let all: Vec<_> = trees.iter().map(of_tree).collect();
            for (i, one) in all.iter().enumerate() {
                assert!(!one.1.is_empty() && !one.0.is_empty());
                for other in &all[i + 1..] {
                    let fds: Vec<_> = one.0.intersection(&other.0).collect();
                    assert!(fds.is_empty(), "{fds:?}");
                    let maps: Vec<_> = one.1.intersection(&other.1).collect();
                    assert!(maps.is_empty(), "{maps:?}");
                }
            }
            for pool in &pools {
                assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
            }
        }
    });
}

#[test]
fn m_03_many_threads_build_use_and_drop_pools_at_once() {
    scenario(|| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    for n in 0..25_u32 {
                        let pool = Pool::new(2).unwrap();
                        assert_eq!(outcome(pool.submit(|n: u32| n + 1, &n)).unwrap(), n + 1);
                        match n % 2 {
                            0 => pool.close().wait(),
                            _ => drop(pool),
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(children().is_empty(), "{:?}", children());
    });
}

#[test]
fn m_13_a_task_builds_a_pool_uses_it_and_closes_it() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        let body = |n: u64| {
            let inner = Pool::new(2).unwrap();
            let sum: u64 = inner.map(0..n, |n: u64| n * n).map(Result::unwrap).sum();
            if n.is_multiple_of(2) {
                inner.close().wait();
            }
            sum
        };
        let tasks: Vec<_> = (0..10).map(|n| pool.submit(body, &(1000 + n))).collect();
        for (n, task) in tasks.into_iter().enumerate() {
            assert_eq!(outcome(task).unwrap(), (0..1000 + n as u64).map(|n| n * n).sum::<u64>());
        }
        let workers: BTreeSet<u32> = pool.worker_pids().into_iter().chain([zygote()]).collect();
        let left: Vec<_> = children().into_iter().filter(|p| !workers.contains(&p.pid)).collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
fn m_13_the_processes_of_a_tasks_own_pool_go_with_its_worker() {
    scenario(|| {
        hooks::set_log_error(|_| ());
        static INNER: OnceLock<Pool> = OnceLock::new();
        let pool = Pool::new(1).unwrap();
        let body = |_: ()| {
            let inner = INNER.get_or_init(|| Pool::new(2).unwrap());
            let task = inner.submit(
                |_: ()| {
                    counter(0).bump();
                    gate(0).wait();
                },
                &(),
            );
            counter(0).wait_for(1);
            task.detach();
        };
        outcome(pool.submit(body, &())).unwrap();
        let inner: Vec<u32> = descendants(pool.worker_pids()[0]).into_iter().map(|p| p.pid).collect();
        assert_eq!(inner.len(), 3, "a zygote and two workers");
        signal(pool.worker_pids()[0], Signal::SIGKILL);
        for pid in inner {
            eventually("its end", || process(pid).is_none_or(|p| p.state == 'Z'));
        }
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
    });
}

#[test]
fn output_that_was_not_flushed_appears_once() {
    let finished = crate::support::scenario_output(|| {
        print!("half a line");
        let pool = Pool::new(2).unwrap();
        let body = |n: u32| {
            print!("");
            if n > 0 {
                std::process::exit(3)
            }
        };
        hooks::set_log_error(|_| ());
        for _ in 0..4 {
            assert!(outcome(pool.submit(body, &1)).unwrap_err().is_worker_lost());
        }
        pool.close().wait();
        println!(", and its end");
    });
    if let Some(finished) = finished {
        assert!(finished.status.success(), "{finished:?}");
        assert_eq!(finished.stdout.matches("half a line").count(), 1, "{finished:?}");
    }
}

/// A crash reporter: a panic hook that forks, while another thread builds the first pool and waits for the hook to return.
#[test]
fn a_panic_hook_may_fork_while_a_pool_is_built() {
    static BUILDER: AtomicI32 = AtomicI32::new(0);
    scenario(|| {
        std::panic::set_hook(Box::new(|_| {
            counter(0).bump();
            eventually("the builder waits", || {
                let thread = BUILDER.load(Ordering::SeqCst);
                let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
                thread != 0 && stat.is_ok_and(|stat| stat.contains(") S "))
            });
            assert_eq!(exit_code_of(fork_and(|| 7)), 7);
            counter(1).bump();
        }));
        let reporting = std::thread::spawn(|| std::panic::catch_unwind(|| panic!("reported")).is_err());
        counter(0).wait_for(1);
        let building = std::thread::spawn(|| {
            BUILDER.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
            Pool::new(1).unwrap()
        });
        counter(1).wait_for(1);
        assert!(reporting.join().unwrap());
        let pool = building.join().unwrap();
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
    });
}
