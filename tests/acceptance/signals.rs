//! Acceptance cases about signals that reach workers and the master from elsewhere: J-09, J-10. J-01 is in `hygiene`, J-02
//! and J-04 in `shutdown`, J-06 and J-08 in `host`, J-11 in `limits`.

#![allow(unsafe_code, reason = "the disposition of a signal")]

use std::sync::Mutex;

use forkring::{Pool, Signal, TaskError, hooks};
use nix::libc;

use crate::crashes::at_full_strength;
use crate::support::{counter, eventually, gate, gone, outcome, process, quietly, scenario, signal, zygote};

/// As in a program of another language, for which std has not ignored the signal: it would be deadly.
fn die_of_sigpipe() {
    // SAFETY: no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

fn length(bytes: Vec<u8>) -> usize {
    bytes.len()
}

/// Requests that travel in the slot, in the arena, and in parts through the arena.
const SIZES: [usize; 3] = [8, 100_000, 9 << 20];

#[track_caller]
fn dead(pid: u32) {
    eventually("a death", || process(pid).is_none_or(|p| p.state == 'Z'));
}

/// The zygote is stopped, so nobody tells the master of the death before it writes. What had not started runs on the
/// replacement (D-07).
#[test]
fn j_09_a_worker_that_is_dead_before_the_first_write_is_no_sigpipe() {
    scenario(|| {
        die_of_sigpipe();
        quietly();
        let pool = Pool::new(1).unwrap();
        let zygote = zygote();
        for bytes in SIZES {
            let victim = pool.worker_pids()[0];
            signal(zygote, Signal::SIGSTOP);
            signal(victim, Signal::SIGKILL);
            dead(victim);
            let task = pool.submit(length, &vec![1; bytes]);
            assert!(!task.is_finished());
            signal(zygote, Signal::SIGCONT);
            assert_eq!(outcome(task).unwrap(), bytes);
        }
        at_full_strength(&pool);
        pool.close().wait();
    });
}

/// The master has written the request, or as much of it as fits, when the worker dies.
#[test]
fn j_09_a_worker_that_dies_before_the_first_read_is_no_sigpipe() {
    scenario(|| {
        die_of_sigpipe();
        quietly();
        let pool = Pool::new(1).unwrap();
        for bytes in SIZES {
            let victim = pool.worker_pids()[0];
            signal(victim, Signal::SIGSTOP);
            eventually("a stop", || process(victim).is_some_and(|p| p.state == 'T'));
            let task = pool.submit(length, &vec![1; bytes]);
            signal(victim, Signal::SIGKILL);
            assert_eq!(outcome(task).unwrap(), bytes);
            gone(victim);
        }
        at_full_strength(&pool);
        pool.close().wait();
    });
}

#[test]
fn j_09_a_worker_that_dies_with_its_task_and_a_zygote_that_dies_are_no_sigpipe() {
    scenario(|| {
        die_of_sigpipe();
        quietly();
        let pool = Pool::new(1).unwrap();
        for (started, bytes) in (1..).zip(SIZES) {
            let task = pool.submit(
                |bytes: Vec<u8>| {
                    counter(0).bump();
                    gate(0).wait();
                    bytes
                },
                &vec![1; bytes],
            );
            counter(0).wait_for(started);
            signal(pool.worker_pids()[0], Signal::SIGKILL);
            match outcome(task) {
                Err(TaskError::WorkerLost(lost)) => assert_eq!(lost.signal(), Some(libc::SIGKILL)),
                other => panic!("{:?}", other.map(|bytes| bytes.len())),
            }
            at_full_strength(&pool);
        }
        // The only peer that the master writes to through a socket. Orders for it are on their way.
        pool.recycle_workers();
        signal(zygote(), Signal::SIGKILL);
        pool.closed().wait();
        assert!(matches!(outcome(pool.submit(length, &vec![1])), Err(TaskError::PoolFailed(_))));
    });
}

static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[test]
fn j_10_a_sigterm_to_an_idle_worker_costs_nothing_and_is_reported() {
    scenario(|| {
        hooks::set_log_error(|text| ERRORS.lock().unwrap().push(text.to_owned()));
        let pool = Pool::new(2).unwrap();
        let victim = pool.worker_pids()[0];
        signal(victim, Signal::SIGTERM);
        gone(victim);
        let sum: u64 = pool.map(0..1000, |n: u64| n).map(Result::unwrap).sum();
        assert_eq!(sum, 499_500);
        at_full_strength(&pool);
        let errors = ERRORS.lock().unwrap();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains(&victim.to_string()) && errors[0].contains("SIGTERM"), "{errors:?}");
    });
}

#[test]
fn j_10_a_sigterm_to_a_busy_worker_costs_its_task() {
    scenario(|| {
        quietly();
        let pool = Pool::new(2).unwrap();
        let held = |n: u32| {
            counter(0).bump();
            gate(n as usize).wait();
            std::process::id()
        };
        let tasks = [0, 1].map(|n| pool.submit(held, &n));
        counter(0).wait_for(2);
        let behind: Vec<_> = (0..20_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
        signal(pool.worker_pids()[0], Signal::SIGTERM);
        eventually("the loss", || tasks.iter().any(forkring::Task::is_finished));
        gate(0).open();
        gate(1).open();
        let (mut signals, mut results) = (Vec::new(), 0);
        for task in tasks {
            match outcome(task) {
                Ok(_) => results += 1,
                Err(TaskError::WorkerLost(lost)) => signals.push(lost.signal()),
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!((signals, results), (vec![Some(libc::SIGTERM)], 1));
        for (n, task) in (0..).zip(behind) {
            assert_eq!(outcome(task).unwrap(), n);
        }
        at_full_strength(&pool);
    });
}
