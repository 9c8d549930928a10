//! Tasks that spoil what their worker shares with the pool: doorbells, descriptors, the worker itself.

#![allow(unsafe_code, reason = "tasks that fork, close what is not theirs, and stop their process")]

use std::fs;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::Duration;

use forkring::{Pool, TaskError};
use futures::executor::block_on;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, write};

use crate::crashes::at_full_strength;
use crate::support::{BOUND, counter, eventually, outcome, process, scenario, signal};

/// Runs tasks on all workers, waiting in both ways.
#[track_caller]
fn works(pool: &Pool) {
    for n in 0..100_u32 {
        let task = pool.submit(|n: u32| n + 1, &n);
        let result = if n % 2 == 0 { outcome(task) } else { block_on(task) };
        assert_eq!(result.unwrap(), n + 1);
    }
}

/// The signal that ends this child.
fn ended_by(child: libc::pid_t) -> i32 {
    match waitpid(Pid::from_raw(child), None).unwrap() {
        WaitStatus::Signaled(_, signal, _) => signal as i32,
        other => panic!("{other:?}"),
    }
}

/// The pipes of this process.
fn pipes() -> Vec<libc::c_int> {
    let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let pipes = entries.filter(|entry| {
        fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("pipe:"))
    });
    pipes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Fills the doorbells that this worker has, and makes every write to them block, for whoever shares them. `before`: what the
/// program had.
fn fill_bells(before: &[libc::c_int]) {
    for fd in pipes().into_iter().filter(|fd| !before.contains(fd)) {
        // SAFETY: the bells are this worker's, which never closes them.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        while write(fd, &[0; 4096]).is_ok() {}
        fcntl(fd, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    }
}

#[test]
fn a_worker_that_fills_its_doorbells_holds_nobody_up() {
    scenario(|| {
        let before = pipes();
        let pool = Pool::new(2).unwrap();
        pool.spawn(
            |before: Vec<libc::c_int>| -> () {
                fill_bells(&before);
                counter(0).bump();
                loop {
                    // Again, when they have been emptied.
                    fill_bells(&before);
                    thread::sleep(Duration::from_millis(1));
                }
            },
            &before,
        );
        counter(0).wait_for(1);
        works(&pool);
        let waiting = pool.submit(
            |()| loop {
                thread::park()
            },
            &(),
        );
        let waiter = thread::spawn(move || outcome::<()>(waiting));
        pool.terminate();
        pool.closed().wait();
        assert!(matches!(waiter.join().unwrap(), Err(TaskError::Terminated)));
    });
}

#[test]
fn a_task_that_closes_every_descriptor_costs_its_worker_and_nothing_else() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        for round in 0..10_u32 {
            let task = pool.submit(
                |n: u32| {
                    // SAFETY: nothing of this process is used through a descriptor from here on.
                    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
                    // The caller has gone to sleep.
                    thread::sleep(Duration::from_millis(50));
                    n
                },
                &round,
            );
            let result = if round % 2 == 0 { outcome(task) } else { block_on(task) };
            assert_eq!(result.unwrap(), round);
            works(&pool);
        }
        at_full_strength(&pool);
    });
}

#[test]
fn a_child_that_comes_back_from_a_task_is_no_second_worker() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        for _ in 0..5 {
            let forks = |()| {
                // SAFETY: the worker has one thread. The child returns from the task, and should not get far.
                let child = unsafe { libc::fork() };
                (child > 0).then(|| ended_by(child))
            };
            let ended = outcome(pool.submit(forks, &())).unwrap();
            assert_eq!(ended, Some(libc::SIGSEGV), "it is the parent that answers");
            works(&pool);
            // SAFETY: as above; the parent leaves.
            let becomes_daemon = |()| unsafe { libc::daemon(1, 1) };
            let result = outcome(pool.submit(becomes_daemon, &()));
            assert!(matches!(result, Err(TaskError::WorkerLost(_))), "{result:?}");
            works(&pool);
        }
        at_full_strength(&pool);
    });
}

#[test]
fn a_task_before_a_worker_that_does_not_look_runs_elsewhere() {
    scenario(|| {
        let pool = Pool::builder().workers(2).task_timeout(BOUND).build().unwrap();
        let deaf = pool.worker_pids()[0];
        signal(deaf, Signal::SIGSTOP);
        eventually("it is stopped", || process(deaf).is_some_and(|p| p.state == 'T'));
        let all: Vec<_> = (0..10_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
        assert!(all.into_iter().map(|task| outcome(task).unwrap()).eq(0..10));
        eventually("another worker", || !pool.worker_pids().contains(&deaf));
        at_full_strength(&pool);
    });
}
