//! Acceptance cases about closing within a limit: G-05, G-09, G-13.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use forkring::{CloseOutcome, Pool, Task, hooks};
use nix::sys::signal::Signal;

use crate::support::{
    BOUND, both, builder, count_fds, counter, eventually, fork_and, gate, held, new_pool, nothing_left,
    outcome, process, quietly, scenario, signal,
};

#[test]
fn g_05_a_limit_of_nothing_ends_everything_at_once() {
    both(|| {
        let fds = count_fds();
        let pool = new_pool(2).unwrap();
        let tasks: Vec<_> = (0..50).map(|n| pool.submit(held, &n)).collect();
        counter(0).wait_for(2);
        let closed = pool.close_within(Duration::ZERO).wait();
        assert!(closed.forced);
        assert_eq!(closed.unfinished, 50);
        for task in tasks {
            assert!(task.is_finished());
            assert!(outcome(task).unwrap_err().is_terminated());
        }
        assert!(outcome(pool.submit(held, &1)).is_err());
        drop(pool);
        nothing_left(fds);
        // Nobody has come to the end.
        assert_eq!(counter(0).get(), 2);
    });
}

#[test]
fn g_09_at_the_deadline_what_has_not_ended_is_ended() {
    both(|| {
        let fds = count_fds();
        let pool = new_pool(2).unwrap();
        let quick: Vec<_> = (0..20).map(|n| pool.submit(|n: u32| n, &n)).collect();
        eventually("the ends of short tasks", || quick.iter().all(Task::is_finished));
        let slow: Vec<_> = (0..4).map(|n| pool.submit(held, &n)).collect();
        counter(0).wait_for(2);
        let start = Instant::now();
        let closed = pool.close_within(Duration::from_millis(500)).wait();
        assert!(start.elapsed() >= Duration::from_millis(500));
        assert!(closed.forced);
        assert_eq!(closed.unfinished, 4);
        for (n, task) in (0..).zip(quick) {
            assert_eq!(outcome(task).unwrap(), n);
        }
        assert!(slow.into_iter().all(|task| outcome(task).unwrap_err().is_terminated()));
        drop(pool);
        nothing_left(fds);
    });
}

#[test]
fn g_09_a_pool_that_closes_in_time_is_not_forced() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let tasks: Vec<_> = (0..10).map(|n| pool.submit(held, &n)).collect();
        counter(0).wait_for(2);
        let closing = pool.close_within(BOUND);
        gate(0).open();
        let closed = closing.wait();
        assert_eq!((closed.forced, closed.unfinished), (false, 0));
        for (n, task) in (0..).zip(tasks) {
            assert_eq!(outcome(task).unwrap(), n);
        }
        // Too late to change anything, and it says the same.
        let again = pool.close_within(Duration::ZERO).wait();
        assert_eq!(again, closed);
        assert!(outcome(pool.submit(held, &1)).unwrap_err().is_closed());
    });
}

/// The driver calls the wakers of tasks that nobody waits for, and cannot wait for itself.
#[test]
fn g_05_a_waker_that_waits_for_the_end_does_not_hold_it_up() {
    struct Closes(Pool);
    impl Wake for Closes {
        fn wake(self: Arc<Self>) {
            self.0.close().wait();
            self.0.closed().wait();
            counter(1).bump();
        }
    }
    both(|| {
        let pool = new_pool(1).unwrap();
        let mut task = pool.submit(held, &7);
        let waker = Waker::from(Arc::new(Closes(pool.clone())));
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
        gate(0).open();
        counter(1).wait_for(1);
        pool.close().wait();
        assert_eq!(outcome(task).unwrap(), 7);
    });
}

/// Any executor will do: the time is the pool's to measure.
#[test]
fn g_09_the_deadline_needs_no_timer_of_a_runtime() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let task = pool.submit(held, &1);
        counter(0).wait_for(1);
        let mut closing = Box::pin(pool.close_within(Duration::from_millis(50)));
        let mut unwoken = Context::from_waker(Waker::noop());
        assert_eq!(closing.as_mut().poll(&mut unwoken), Poll::Pending);
        let closed: CloseOutcome = futures::executor::block_on(closing);
        assert!(closed.forced && closed.unfinished == 1);
        assert!(outcome(task).unwrap_err().is_terminated());
        // Nobody needs to wait for it either.
        let pool = new_pool(1).unwrap();
        let task = pool.submit(held, &1);
        drop(pool.close_within(Duration::from_millis(1)));
        assert!(outcome(task).unwrap_err().is_terminated());
        pool.closed().wait();
    });
}

#[test]
fn g_09_the_earliest_of_several_deadlines_counts() {
    both(|| {
        for order in [[BOUND, Duration::from_millis(20)], [Duration::from_millis(20), BOUND]] {
            let pool = new_pool(1).unwrap();
            let task = pool.submit(held, &1);
            let closings = order.map(|limit| pool.close_within(limit));
            for closed in closings.map(|closing| closing.wait()) {
                assert!(closed.forced);
            }
            assert!(outcome(task).unwrap_err().is_terminated());
        }
        // After a close without a limit, and with more time than there is.
        let pool = new_pool(1).unwrap();
        let task = pool.submit(held, &1);
        let unlimited = pool.close();
        let endless = pool.close_within(Duration::MAX);
        assert!(pool.close_within(Duration::from_millis(20)).wait().forced);
        unlimited.wait();
        assert!(endless.wait().forced);
        assert!(outcome(task).unwrap_err().is_terminated());
    });
}

#[test]
fn g_09_who_terminates_meanwhile_does_not_wait_for_the_limit() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let tasks: Vec<_> = (0..4).map(|n| pool.submit(held, &n)).collect();
        counter(0).wait_for(2);
        let closing = pool.close_within(BOUND);
        pool.terminate();
        let closed = closing.wait();
        assert!(!closed.forced);
        assert_eq!(closed.unfinished, 4);
        assert!(tasks.into_iter().all(|task| outcome(task).unwrap_err().is_terminated()));
    });
}

/// What hangs is not a task but the leaving itself.
#[test]
fn g_09_a_worker_that_hangs_in_on_exit_is_killed_at_the_deadline() {
    both(|| {
        let on_exit = |_: &forkring::WorkerInfo| {
            counter(1).bump();
            gate(0).wait();
        };
        let pool = builder().workers(1).on_exit(on_exit).build().unwrap();
        let task = pool.submit(|n: u32| n, &1);
        assert_eq!(outcome(task).unwrap(), 1);
        pool.close();
        counter(1).wait_for(1);
        let closing = pool.close_within(Duration::from_millis(50));
        let closed = closing.wait();
        assert_eq!((closed.forced, closed.unfinished), (true, 0));
    });
}

#[test]
fn g_13_a_stopped_worker_is_killed_at_the_deadline() {
    scenario(|| {
        hooks::set_log_error(|_| ());
        let fds = count_fds();
        let pool = Pool::new(2).unwrap();
        let stopped = pool.worker_pids()[0];
        signal(stopped, Signal::SIGSTOP);
        eventually("a stop", || process(stopped).is_some_and(|p| p.state == 'T'));
        let closed = pool.close_within(Duration::from_millis(100)).wait();
        assert!(closed.forced);
        drop(pool);
        nothing_left(fds);
    });
}

/// M-02: a handle that was inherited has nothing to close.
#[test]
fn g_09_a_fork_of_the_program_closes_nothing() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        let task = pool.submit(held, &1);
        counter(0).wait_for(1);
        let child = fork_and(|| {
            let closed = pool.close_within(Duration::ZERO).wait();
            i32::from(closed.forced) + closed.unfinished as i32
        });
        assert_eq!(crate::support::exit_code_of(child), 0);
        gate(0).open();
        assert_eq!(outcome(task).unwrap(), 1);
        assert_eq!(outcome(pool.submit(|n: u32| n, &7)).unwrap(), 7);
    });
}

/// A replacement that is put off, since workers have died in a row without having finished anything, still comes for what a
/// closing pool has left.
#[test]
fn a_pool_closes_that_has_work_left_and_whose_worker_is_put_off() {
    scenario(|| {
        quietly();
        for _ in 0..20 {
            let pool = Pool::new(1).unwrap();
            for _ in 0..3 {
                assert!(pool.submit(|()| -> () { std::process::abort() }, &()).wait().is_err());
            }
            let last = pool.submit(|n: u32| n + 1, &1);
            pool.close().wait();
            assert_eq!(last.wait().unwrap(), 2);
        }
    });
}
