//! Acceptance cases, group D and its neighbours: workers that die, stop, or leave something behind.
//!
//! D-20 (a pid that is used again) cannot be provoked without driving the kernel's pid counter around.

#![allow(unsafe_code, reason = "tasks that end their process in every way there is, and raw forks")]

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use forkring::{Pool, TaskError, View, Worker, WorkerLost, hooks};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{Signal, raise};

use crate::support::{
    Finished, cease_to_be_root, cell, children, counter, eventually, fixed, gate, gone, in_process, meet,
    outcome, process, scenario, scenario_output, signal, zygote,
};

/// Ways for a process to end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Crash {
    Segv,
    Bus,
    Ill,
    Abort,
    Kill,
    Exit(i32),
}

/// Ends this process.
pub(crate) fn die(crash: Crash) -> ! {
    loop {
        match crash {
            Crash::Segv => {
                let nowhere = std::ptr::without_provenance_mut::<u8>(64);
                // SAFETY: none: nothing is ever mapped there, and the process is meant to die of it.
                unsafe { nowhere.write_volatile(1) };
            }
            Crash::Bus => raise(Signal::SIGBUS).unwrap(),
            Crash::Ill => raise(Signal::SIGILL).unwrap(),
            Crash::Abort => std::process::abort(),
            Crash::Kill => raise(Signal::SIGKILL).unwrap(),
            // SAFETY: it ends the process, and that is all.
            Crash::Exit(code) => unsafe { libc::_exit(code) },
        }
    }
}

/// As [`die`], for where a function that returns is expected.
fn crash(how: Crash) {
    die(how)
}

/// Leaves a process behind that maps and holds whatever this one does, until `gate(n)` opens. Its pid.
fn leave_grandchild(n: usize) -> u32 {
    // SAFETY: the worker has one thread, and the child only waits and leaves.
    match unsafe { libc::fork() } {
        0 => {
            counter(n).bump();
            gate(n).wait();
            // SAFETY: it ends the process, and that is all.
            unsafe { libc::_exit(0) }
        }
        pid => u32::try_from(pid).unwrap(),
    }
}

#[track_caller]
fn lost<R: std::fmt::Debug>(result: Result<R, TaskError>) -> WorkerLost {
    match result {
        Err(TaskError::WorkerLost(lost)) => lost,
        other => panic!("not a lost worker: {other:?}"),
    }
}

/// The pool has as many workers as it should, all different and alive, and each of them serves.
#[track_caller]
pub(crate) fn at_full_strength<E: 'static, S, W: 'static>(pool: &Pool<E, S, W>) {
    let n = pool.workers();
    let pids = pool.broadcast(|_: &Worker<E, S, W>| std::process::id());
    let mut pids: Vec<u32> = pids.into_iter().map(Result::unwrap).collect();
    assert_eq!(pids, pool.worker_pids());
    if in_process() {
        return assert_eq!(pids, vec![std::process::id(); n]);
    }
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), n);
    // The dead are reaped: what is left is the zygote and the workers.
    eventually("the dead are reaped", || {
        let all = children();
        all.iter().all(|p| p.state != 'Z') && all.iter().filter(|p| pids.contains(&p.pid)).count() == n
    });
}

/// Has the third failure to start a worker set a limit of process `pid` to `soft` again.
pub(crate) fn relent(pid: u32, which: Resource, soft: u64, hard: u64) {
    hooks::set_log_error(move |message| {
        if message.contains("could not start worker 0") && counter(1).bump() == 2 {
            set_limit(pid, which, soft, hard);
        }
    });
}

pub(crate) fn set_limit(pid: u32, which: Resource, soft: u64, hard: u64) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: reads the limit, and writes nothing.
    let done =
        unsafe { libc::prlimit(pid as libc::pid_t, which as _, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Worker 0 of two crashes, and its successor cannot be started for a moment.
fn crash_in_a_moment_of_shortage(pool: &Pool) {
    let results = pool.broadcast(|w: &Worker| {
        if w.id() == 0 {
            die(Crash::Kill)
        }
    });
    assert!(results[0].is_err() && results[1].is_ok(), "{results:?}");
    // The other worker goes on meanwhile.
    assert_eq!(outcome(pool.submit(|n: u32| n, &7)).unwrap(), 7);
    counter(1).wait_for(3);
    at_full_strength(pool);
}

#[test]
fn d_08_a_moment_without_descriptors_costs_no_pool() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        relent(std::process::id(), Resource::RLIMIT_NOFILE, soft, hard);
        set_limit(std::process::id(), Resource::RLIMIT_NOFILE, 3, hard);
        crash_in_a_moment_of_shortage(&pool);
    });
}

#[test]
fn d_08_a_moment_without_processes_costs_no_pool() {
    scenario(|| {
        cease_to_be_root();
        let pool = Pool::new(2).unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
        let zygote = zygote();
        relent(zygote, Resource::RLIMIT_NPROC, soft, hard);
        set_limit(zygote, Resource::RLIMIT_NPROC, 0, hard);
        crash_in_a_moment_of_shortage(&pool);
    });
}

#[test]
fn d_01_a_worker_killed_while_running_costs_one_task_of_a_hundred() {
    scenario(|| {
        let pool = Pool::new(3).unwrap();
        let tasks: Vec<_> = (0..100_u32)
            .map(|n| {
                pool.submit(
                    |n: u32| {
                        if n == 30 {
                            cell(0).store(u64::from(std::process::id()), SeqCst);
                            counter(0).bump();
                            gate(0).wait();
                        }
                        n
                    },
                    &n,
                )
            })
            .collect();
        counter(0).wait_for(1);
        let pid = cell(0).load(SeqCst) as u32;
        signal(pid, Signal::SIGKILL);
        for (n, task) in (0..).zip(tasks) {
            match task.wait() {
                Ok(result) => assert_eq!((result, n != 30), (n, true)),
                Err(TaskError::WorkerLost(lost)) => {
                    assert_eq!((n, lost.pid(), lost.signal(), lost.exit_code()), (30, pid, Some(9), None));
                }
                Err(error) => panic!("{n}: {error}"),
            }
        }
        at_full_strength(&pool);
    });
}

#[test]
fn d_02_each_deadly_signal_is_named() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        let cases =
            [(Crash::Segv, 11), (Crash::Bus, 7), (Crash::Ill, 4), (Crash::Abort, 6), (Crash::Kill, 9)];
        let tasks = [
            pool.submit(|(): ()| crash(Crash::Segv), &()),
            pool.submit(|(): ()| crash(Crash::Bus), &()),
            pool.submit(|(): ()| crash(Crash::Ill), &()),
            pool.submit(|(): ()| crash(Crash::Abort), &()),
            pool.submit(|(): ()| crash(Crash::Kill), &()),
        ];
        for (task, (crash, number)) in tasks.into_iter().zip(cases) {
            let lost = lost(task.wait());
            assert_eq!((lost.signal(), lost.exit_code()), (Some(number), None), "{crash:?}: {lost}");
            let text = lost.to_string();
            for part in
                [format!("({number})"), format!("pid {}", lost.pid()), format!("worker {}", lost.worker())]
            {
                assert!(text.contains(&part), "{text}");
            }
        }
        at_full_strength(&pool);
    });
}

/// Workers keep std's handlers of SIGSEGV and SIGBUS, which are made for faults.
#[test]
fn d_02_a_deadly_signal_has_to_be_sent_once() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        let signals = [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGABRT];
        for deadly in signals {
            let raised = pool.submit(|n: i32| raise(Signal::try_from(n).unwrap()).unwrap(), &(deadly as i32));
            assert_eq!(lost(raised.wait()).signal(), Some(deadly as i32));
        }
        for (n, deadly) in signals.into_iter().enumerate() {
            let busy = pool.submit(
                |n: usize| {
                    cell(n).store(std::process::id().into(), SeqCst);
                    counter(n).bump();
                    gate(9).wait();
                },
                &n,
            );
            counter(n).wait_for(1);
            signal(u32::try_from(cell(n).load(SeqCst)).unwrap(), deadly);
            assert_eq!(lost(busy.wait()).signal(), Some(deadly as i32));
            at_full_strength(&pool);
            // D-06.
            let idle = pool.worker_pids()[0];
            signal(idle, deadly);
            gone(idle);
            at_full_strength(&pool);
        }
    });
}

#[test]
fn d_03_an_exit_names_the_code_and_the_pid() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        for generation in 0..3 {
            let pid = pool.submit(|(): ()| std::process::id(), &()).wait().unwrap();
            let lost = lost(pool.submit(|(): ()| crash(Crash::Exit(99)), &()).wait());
            assert_eq!((lost.exit_code(), lost.signal(), lost.pid()), (Some(99), None, pid));
            assert_eq!((lost.worker(), lost.generation(), lost.attempts()), (0, generation, 1));
            assert!(lost.to_string().contains("exit code 99"), "{lost}");
        }
        at_full_strength(&pool);
    });
}

extern "C" fn at_exit() {
    let _ =
        std::fs::File::options().write(true).open("/dev/stderr").and_then(|mut f| f.write_all(b"[at exit]"));
}

#[test]
fn d_05_process_exit_in_a_task_leaves_the_master_alone() {
    let finished = scenario_output(|| {
        print!("[printed once]");
        // SAFETY: the handler unwinds nowhere.
        assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
        let pool = Pool::new(2).unwrap();
        for code in [1, 0] {
            let lost = lost(
                pool.submit(
                    |code: i32| {
                        if code < 2 {
                            std::process::exit(code)
                        }
                    },
                    &code,
                )
                .wait(),
            );
            assert_eq!((lost.exit_code(), lost.signal()), (Some(code), None));
        }
        assert_eq!(pool.submit(|n: u32| n, &3).wait().unwrap(), 3);
        at_full_strength(&pool);
        pool.close().wait();
    });
    let Some(Finished { status, stdout, stderr, .. }) = finished else { return };
    assert!(status.success(), "{stdout}{stderr}");
    assert_eq!(stdout.matches("[printed once]").count(), 1, "{stdout}");
    assert_eq!(stderr.matches("[at exit]").count(), 1, "{stderr}");
}

static EVENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[test]
fn d_06_a_worker_killed_while_idle_costs_nothing() {
    scenario(|| {
        forkring::hooks::set_log_error(|text| EVENTS.lock().unwrap().push(text.to_owned()));
        forkring::hooks::set_log_info(|text| EVENTS.lock().unwrap().push(text.to_owned()));
        let pool = Pool::new(2).unwrap();
        for round in 0..30_usize {
            let victim = pool.worker_pids()[round % 2];
            signal(victim, Signal::SIGKILL);
            let tasks: Vec<_> = (0..20_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
            if round % 3 == 0 {
                gone(victim);
            }
            for (n, task) in (0..).zip(tasks) {
                // It may have been caught running one of these, if it had not died yet.
                match task.wait() {
                    Ok(result) => assert_eq!(result, n),
                    Err(error) => {
                        let lost = lost(Err::<(), _>(error));
                        assert_eq!((lost.pid(), lost.signal()), (victim, Some(9)));
                    }
                }
            }
            gone(victim);
            let text = format!("{victim}");
            eventually("the death is told", || EVENTS.lock().unwrap().iter().any(|e| e.contains(&text)));
            at_full_strength(&pool);
        }
    });
}

#[test]
fn d_06_a_task_submitted_after_an_idle_worker_died_never_fails() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        for _ in 0..20 {
            let victim = pool.worker_pids()[0];
            signal(victim, Signal::SIGKILL);
            eventually("the death", || process(victim).is_none_or(|p| p.state == 'Z'));
            assert_eq!(pool.submit(|n: u32| n, &4).wait().unwrap(), 4);
        }
    });
}

#[test]
fn d_07_tasks_that_had_not_started_run_once_on_the_replacement() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        // Within the ring, around its size, and beyond it.
        for (round, queued) in [3_usize, 255, 256, 1000].into_iter().enumerate() {
            let first = pool.submit(
                |round: usize| {
                    counter(round).bump();
                    gate(100).wait();
                },
                &round,
            );
            let tasks: Vec<_> = (0..queued)
                .map(|n| {
                    let f = |w: &Worker, n: &View<usize>| {
                        cell(n.to_native() as usize).fetch_add(1, SeqCst);
                        w.generation()
                    };
                    pool.submit_with(f, &n)
                })
                .collect();
            counter(round).wait_for(1);
            signal(pool.worker_pids()[0], Signal::SIGKILL);
            assert_eq!(lost(first.wait()).signal(), Some(9));
            for (n, task) in tasks.into_iter().enumerate() {
                assert_eq!(task.wait().unwrap(), round as u64 + 1);
                assert_eq!(cell(n).swap(0, SeqCst), 1, "task {n} of {queued}");
            }
        }
    });
}

#[test]
fn d_07_large_inputs_that_had_not_started_are_sent_again() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        let first = pool.submit(
            |(): ()| {
                counter(0).bump();
                gate(0).wait();
            },
            &(),
        );
        let inputs: Vec<Vec<u8>> =
            [100, 1 << 20, 3 << 20, 6 << 20, 10].iter().map(|&n| vec![n as u8 ^ 0x5a; n]).collect();
        let tasks: Vec<_> = inputs.iter().map(|input| pool.submit(|v: Vec<u8>| v, input)).collect();
        counter(0).wait_for(1);
        signal(pool.worker_pids()[0], Signal::SIGKILL);
        assert!(first.wait().unwrap_err().is_worker_lost());
        for (task, input) in tasks.into_iter().zip(inputs) {
            assert!(task.wait().unwrap() == input);
        }
    });
}

#[test]
fn d_09_workers_that_kill_each_other_leave_no_task_pending() {
    scenario(|| {
        let pool = Pool::new(4).unwrap();
        for round in 0..15 {
            let pids = pool.worker_pids();
            let tasks: Vec<_> = (0..16_usize)
                .map(|n| {
                    let victim = pids[(n + 1) % pids.len()];
                    pool.submit(
                        |victim: u32| {
                            // A number that is no sibling any more is left alone.
                            let zygote = process(std::process::id()).map(|p| p.parent);
                            if process(victim).map(|p| p.parent) == zygote {
                                signal_gently(victim);
                            }
                            victim
                        },
                        &victim,
                    )
                })
                .collect();
            for mut task in tasks {
                let outcome = task.wait_timeout(Duration::from_secs(30)).expect("hang");
                if let Err(error) = outcome {
                    assert_eq!(lost(Err::<(), _>(error)).signal(), Some(9), "round {round}");
                }
            }
        }
        at_full_strength(&pool);
    });
}

/// A sibling may be gone by now.
fn signal_gently(pid: u32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL);
}

#[test]
fn d_10_a_death_while_a_large_result_is_written_tears_nothing() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        let (mut died, mut survived) = (0, 0);
        for round in 0..20_u64 {
            // A thread of the task's ends the process at some moment while the result flows.
            let doomed = pool.submit(
                |round: u64| {
                    std::thread::spawn(move || {
                        let mut waste = 0_u64;
                        for n in 0..round * round * 8000 {
                            waste = std::hint::black_box(waste ^ n);
                        }
                        die(Crash::Exit(7))
                    });
                    vec![round as u8; 6 << 20]
                },
                &round,
            );
            let other = pool.submit(|n: u64| vec![n as u8; 5 << 20], &round);
            match doomed.wait() {
                Ok(bytes) => {
                    survived += 1;
                    assert!(bytes == vec![round as u8; 6 << 20]);
                }
                Err(TaskError::WorkerLost(lost)) => {
                    died += 1;
                    assert_eq!(lost.exit_code(), Some(7), "{lost}");
                }
                Err(error) => panic!("{error}"),
            }
            match other.wait() {
                Ok(bytes) => assert!(bytes == vec![round as u8; 5 << 20]),
                // Only if it ran in the process that a former round had doomed.
                Err(TaskError::WorkerLost(lost)) => assert_eq!(lost.exit_code(), Some(7), "{lost}"),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(died + survived, 20);
    });
}

#[test]
fn d_14_a_stopped_worker_is_not_dead() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        let held = pool.submit(
            |(): ()| {
                cell(0).store(u64::from(std::process::id()), SeqCst);
                counter(0).bump();
                gate(0).wait();
                std::process::id()
            },
            &(),
        );
        counter(0).wait_for(1);
        let pid = cell(0).load(SeqCst) as u32;
        signal(pid, Signal::SIGSTOP);
        eventually("it is stopped", || process(pid).is_some_and(|p| p.state == 'T'));
        gate(0).open();
        for n in 0..2000_u32 {
            assert_eq!(pool.submit(|n: u32| n, &n).wait().unwrap(), n);
        }
        let all: Vec<_> = (0..1000_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
        assert!(all.into_iter().map(|task| task.wait().unwrap()).eq(0..1000));
        assert!(!held.is_finished());
        assert!(pool.worker_pids().contains(&pid));
        signal(pid, Signal::SIGCONT);
        assert_eq!(held.wait().unwrap(), pid);
        at_full_strength(&pool);
    });
}

#[test]
fn d_14_an_idle_worker_that_is_stopped_does_not_hold_up_the_rest() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        let pid = pool.worker_pids()[0];
        signal(pid, Signal::SIGSTOP);
        eventually("it is stopped", || process(pid).is_some_and(|p| p.state == 'T'));
        let all: Vec<_> = (0..1000_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
        // It may keep what it was given while it was idle: one task, which nobody can tell from a running one.
        eventually("the rest is done", || all.iter().filter(|task| task.is_finished()).count() >= 999);
        signal(pid, Signal::SIGCONT);
        assert!(all.into_iter().map(|task| task.wait().unwrap()).eq(0..1000));
        at_full_strength(&pool);
    });
}

#[test]
fn d_18_a_crash_during_close_does_not_hold_it_up() {
    scenario(|| {
        for how in [Crash::Segv, Crash::Exit(0), Crash::Kill] {
            let pool = Pool::builder().workers(2).env(how).build().unwrap();
            let n = counter(0).get();
            let task = pool.submit_with(
                |w: &Worker<Crash>, n: &View<u32>| {
                    counter(0).bump();
                    gate(n.to_native() as usize).wait();
                    crash(*w.env());
                },
                &n,
            );
            let behind: Vec<_> = (0..50_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
            counter(0).wait_for(n + 1);
            let close = pool.close();
            gate(n as usize).open();
            close.wait();
            lost(task.wait());
            assert!(behind.into_iter().map(|task| task.wait().unwrap()).eq(0..50));
            assert!(children().is_empty());
        }
    });
}

#[test]
fn c_05_an_abort_and_a_double_panic_cost_one_task() {
    let finished = scenario_output(|| {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("the second panic");
            }
        }
        let pool = Pool::new(2).unwrap();
        let tasks: Vec<_> = (0..50_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
        let double = pool.submit(
            |(): ()| {
                let _bomb = Bomb;
                assert!(counter(0).get() > 0, "the first panic");
            },
            &(),
        );
        assert_eq!(lost(double.wait()).signal(), Some(6));
        assert_eq!(lost(pool.submit(|(): ()| crash(Crash::Abort), &()).wait()).signal(), Some(6));
        assert!(tasks.into_iter().map(|task| task.wait().unwrap()).eq(0..50));
        at_full_strength(&pool);
    });
    let Some(Finished { status, stdout, stderr, .. }) = finished else { return };
    assert!(status.success(), "{stdout}{stderr}");
    assert!(stderr.contains("the first panic") && stderr.contains("the second panic"), "{stderr}");
}

#[inline(never)]
fn deeper(n: u64) -> u64 {
    let room = std::hint::black_box([n; 128]);
    if n == u64::MAX { 0 } else { deeper(n + 1) + room[n as usize % 128] }
}

#[test]
fn m_10_c_05_a_stack_overflow_is_reported_and_costs_one_task() {
    let finished = scenario_output(|| {
        let pool = Pool::new(1).unwrap();
        for _ in 0..3 {
            let lost = lost(pool.submit(|(): ()| deeper(0), &()).wait());
            assert!(matches!(lost.signal(), Some(6 | 11)), "{lost}");
        }
        // In a thread of the task's, too.
        let in_thread = pool.submit(|(): ()| std::thread::spawn(|| deeper(0)).join().unwrap(), &());
        assert!(matches!(lost(in_thread.wait()).signal(), Some(6 | 11)));
        at_full_strength(&pool);
    });
    let Some(Finished { status, stdout, stderr, .. }) = finished else { return };
    assert!(status.success(), "{stdout}{stderr}");
    assert_eq!(stderr.matches("has overflowed its stack").count(), 4, "{stderr}");
}

#[test]
fn m_10_a_task_that_writes_to_a_closed_pipe_gets_an_error() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        let task = pool.submit(
            |(): ()| {
                let (reader, mut writer) = std::io::pipe().unwrap();
                drop(reader);
                writer.write_all(b"x").unwrap_err().kind() == std::io::ErrorKind::BrokenPipe
            },
            &(),
        );
        assert!(task.wait().unwrap());
        assert_eq!(pool.submit(|(): ()| 1, &()).wait().unwrap(), 1);
    });
}

#[test]
fn m_16_a_grandchild_that_maps_the_region_disturbs_nobody() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        for n in 0..5_usize {
            let grandchild = pool.submit(leave_grandchild, &n).wait().unwrap();
            counter(n).wait_for(1);
            signal(pool.worker_pids()[0], Signal::SIGKILL);
            for k in 0..600_u32 {
                match pool.submit(|k: u32| k, &k).wait() {
                    Ok(result) => assert_eq!(result, k),
                    Err(error) => assert_eq!(lost(Err::<(), _>(error)).signal(), Some(9)),
                }
            }
            let large = vec![n as u8; 5 << 20];
            assert!(pool.submit(|v: Vec<u8>| v, &large).wait().unwrap() == large);
            assert!(process(grandchild).is_some_and(|p| p.state != 'Z'), "it is still there");
        }
        let stream = pool.map(0..1000_u64, |n: u64| n).granularity(forkring::Granularity::Fixed(10));
        assert!(stream.map(Result::unwrap).eq(0..1000));
        pool.close().wait();
        (0..5).for_each(|n| gate(n).open());
    });
}

#[test]
fn h_06_a_death_is_not_hidden_by_a_grandchild() {
    scenario(|| {
        let pool = Pool::new(3).unwrap();
        for n in 0..10_usize {
            let task = pool.submit(
                |n: usize| {
                    leave_grandchild(n);
                    cell(n).store(u64::from(std::process::id()), SeqCst);
                    counter(100 + n).bump();
                    gate(200).wait();
                },
                &n,
            );
            counter(100 + n).wait_for(1);
            counter(n).wait_for(1);
            let pid = cell(n).load(SeqCst) as u32;
            signal(pid, Signal::SIGKILL);
            // The grandchild lives, so nothing but the death itself can end this wait.
            assert_eq!(lost(task.wait()).pid(), pid);
        }
        at_full_strength(&pool);
        pool.terminate();
        (0..10).for_each(|n| gate(n).open());
    });
}

#[test]
fn no_short_task_waits_behind_a_long_one_while_another_worker_idles() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        let long = |n: u32| {
            counter(0).bump();
            gate(n as usize).wait();
            n
        };
        let short = |n: u32| n;
        for (round, count) in (0..).zip([1, 2, 5, 255, 256, 257, 600, 5000, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) {
            // Before, around and after the long one, which may sit in either ring.
            let mut shorts: Vec<_> = (0..count / 2).map(|n| pool.submit(short, &n)).collect();
            let held = pool.submit(long, &round);
            shorts.extend((count / 2..count).map(|n| pool.submit(short, &n)));
            counter(0).wait_for(round + 1);
            if round % 2 == 0 {
                assert!(shorts.into_iter().map(|task| task.wait().unwrap()).eq(0..count));
            } else {
                let all = futures::executor::block_on(futures::future::join_all(shorts));
                assert!(all.into_iter().map(Result::unwrap).eq(0..count));
            }
            assert!(!held.is_finished());
            gate(round as usize).open();
            assert_eq!(held.wait().unwrap(), round);
        }
    });
}

#[test]
fn work_of_each_kind_passes_a_long_task_that_nobody_waits_for() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        let long = |n: u32| {
            counter(0).bump();
            gate(n as usize).wait();
        };
        let shorts: [&dyn Fn(&Pool); 7] = [
            &|pool| assert_eq!(pool.submit(|n: u32| n + 1, &1).wait().unwrap(), 2),
            &|pool| {
                let both = [1, 2].map(|n| pool.submit(|n: u32| n, &n));
                assert_eq!(both.map(|task| task.wait().unwrap()), [1, 2]);
            },
            &|pool| assert_eq!(pool.submit(|s: String| s.len(), &"four".to_owned()).wait().unwrap(), 4),
            &|pool| assert_eq!(pool.submit(|v: Vec<u64>| v.len(), &vec![7; 100]).wait().unwrap(), 100),
            &|pool| {
                assert_eq!(
                    pool.map(0..100, |n: u32| n).granularity(fixed(1)).map(Result::unwrap).sum::<u32>(),
                    4950
                );
            },
            &|pool| {
                assert_eq!(
                    pool.map(0..100, |n: u32| n).granularity(fixed(10)).map(Result::unwrap).sum::<u32>(),
                    4950
                );
            },
            &|pool| {
                let task = pool.submit(|n: u32| n, &3);
                assert_eq!(futures::executor::block_on(task).unwrap(), 3);
            },
        ];
        let mut round = 0;
        for short in shorts {
            // Right behind it, and when it has been running for a while; also with a worker that has to wake up.
            for waits in [false, true] {
                let held = pool.submit(long, &round);
                if waits {
                    counter(0).wait_for(round + 1);
                }
                short(&pool);
                assert!(!held.is_finished());
                gate(round as usize).open();
                held.wait().unwrap();
                round += 1;
            }
        }
    });
}

#[test]
fn no_short_task_waits_behind_long_ones_on_all_workers_but_one() {
    scenario(|| {
        let pool = Pool::new(4).unwrap();
        for round in 0..30_u32 {
            let held: Vec<_> = (0..3)
                .map(|_| {
                    pool.submit(
                        |n: u32| {
                            counter(0).bump();
                            gate(n as usize).wait();
                        },
                        &round,
                    )
                })
                .collect();
            let shorts: Vec<_> = (0..300_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
            assert!(shorts.into_iter().map(|task| task.wait().unwrap()).eq(0..300));
            counter(0).wait_for(3 * (round + 1));
            gate(round as usize).open();
            held.into_iter().for_each(|task| task.wait().unwrap());
        }
    });
}

#[test]
fn tasks_meet_on_every_worker_whichever_ring_they_were_put_into() {
    scenario(|| {
        let pool = Pool::new(6).unwrap();
        for round in 0..40_u32 {
            let tasks: Vec<_> = (0..6).map(|_| pool.submit(|n: u32| meet(n as usize, 6), &round)).collect();
            tasks.into_iter().for_each(|task| task.wait().unwrap());
        }
    });
}

#[test]
fn a_broadcast_reaches_the_idle_workers_while_another_is_busy() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        for round in 0..20_u32 {
            let busy = pool.submit_with(
                |w: &Worker, n: &View<u32>| {
                    cell(0).store(w.id() as u64, SeqCst);
                    counter(0).bump();
                    gate(n.to_native() as usize).wait();
                },
                &round,
            );
            counter(0).wait_for(round + 1);
            cell(1).store(u64::from(round), SeqCst);
            // The part of the idle worker frees the busy one.
            let ids = pool.broadcast(|w: &Worker| {
                if w.id() as u64 != cell(0).load(SeqCst) {
                    gate(cell(1).load(SeqCst) as usize).open();
                }
                w.id()
            });
            assert_eq!(ids.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [0, 1]);
            busy.wait().unwrap();
        }
    });
}

#[test]
fn short_tasks_pass_a_busy_worker_whose_share_of_a_broadcast_waits() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        let busy = pool.submit(
            |(): ()| {
                counter(0).bump();
                gate(0).wait();
            },
            &(),
        );
        counter(0).wait_for(1);
        let other = pool.clone();
        let broadcast = std::thread::spawn(move || {
            other.broadcast(|w: &Worker| {
                counter(1).bump();
                w.id()
            })
        });
        counter(1).wait_for(1);
        let shorts: Vec<_> = (0..2000_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
        assert!(shorts.into_iter().map(|task| task.wait().unwrap()).eq(0..2000));
        assert_eq!(counter(1).get(), 1);
        gate(0).open();
        assert!(broadcast.join().unwrap().into_iter().all(|r| r.is_ok()));
        busy.wait().unwrap();
    });
}
