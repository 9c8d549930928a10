//! Acceptance cases, group G: how pools end, and what is left of them.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};

use forkring::{Pool, Service, Task, View, Worker, hooks};
use futures::FutureExt;
use nix::sys::signal::Signal;

use crate::support::{
    BOUND, Finished, both, both_output, builder, cell, children, count_fds, counter, eventually, gate, gone,
    new_pool, outcome, scenario, scenario_output, signal, zygote,
};

/// Waits until the pool has closed, within the bound.
#[track_caller]
fn within_bound(closing: impl FnOnce() + Send + 'static) {
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        closing();
        let _ = tell.send(());
    });
    match told.recv_timeout(BOUND) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("hang: the pool does not end"),
        _ => thread.join().unwrap(),
    }
}

fn close(pool: &Pool) {
    let pool = pool.clone();
    within_bound(move || pool.close().wait());
}

/// A task that counts itself in counter 0 and runs until gate `n` opens; `cell(n)` tells that it came to its end.
fn held(pool: &Pool, n: usize) -> Task<u32> {
    let body = |n: usize| {
        counter(0).bump();
        gate(n).wait();
        cell(n).store(1, Ordering::SeqCst);
        std::process::id()
    };
    pool.submit(body, &n)
}

#[test]
fn g_01_close_lets_everything_submitted_finish() {
    both(|| {
        for round in 0..20 {
            let pool = new_pool(2).unwrap();
            let first = [held(&pool, round), held(&pool, round)];
            let tasks: Vec<_> = (0..50_u64).map(|n| pool.submit(|n: u64| n * n, &n)).collect();
            let close = pool.close();
            assert!(first.iter().chain([&first[0]]).all(|task| !task.is_finished()));
            gate(round).open();
            within_bound(move || close.wait());
            assert!(children().is_empty(), "{:?}", children());
            for (n, task) in tasks.into_iter().enumerate() {
                assert!(task.is_finished());
                assert_eq!(outcome(task).unwrap(), (n * n) as u64);
            }
            first.into_iter().for_each(|task| assert!(outcome(task).is_ok()));
        }
    });
}

#[test]
fn g_01_closing_while_tasks_move_between_workers_refuses_none_of_them() {
    both(|| {
        for round in 0..100 {
            let pool = new_pool(2).unwrap();
            let first = [held(&pool, 2 * round), held(&pool, 2 * round + 1)];
            counter(0).wait_for(2 * round as u32 + 2);
            let tasks: Vec<_> = (0..200_u64).map(|n| pool.submit(|n: u64| n * n, &n)).collect();
            // One worker becomes free and is given what waits behind the other.
            gate(2 * round).open();
            let close = pool.close();
            for (n, task) in tasks.into_iter().enumerate() {
                assert_eq!(outcome(task).unwrap(), (n * n) as u64, "round {round}");
            }
            gate(2 * round + 1).open();
            within_bound(move || close.wait());
            first.into_iter().for_each(|task| assert!(outcome(task).is_ok()));
        }
    });
}

#[test]
fn g_01_detached_tasks_finish_too_and_dropping_the_closing_future_changes_nothing() {
    both(|| {
        let pool = new_pool(1).unwrap();
        held(&pool, 0).detach();
        pool.spawn(|_: ()| counter(1).bump(), &());
        drop(pool.close());
        let closed = pool.closed();
        drop(pool.clone());
        gate(0).open();
        within_bound(move || closed.wait());
        assert_eq!((cell(0).load(Ordering::SeqCst), counter(1).get()), (1, 1));
    });
}

#[test]
fn g_02_a_fresh_pool_closes() {
    both(|| {
        let fds = {
            close(&new_pool(1).unwrap());
            count_fds()
        };
        for workers in [1, 2, 5] {
            let pool = new_pool(workers).unwrap();
            close(&pool);
            assert!(pool.worker_pids().is_empty());
            assert!(children().is_empty(), "{:?}", children());
        }
        assert_eq!(count_fds(), fds);
    });
}

#[test]
fn g_03_ending_twice_is_ending_once() {
    both(|| {
        let pool = new_pool(1).unwrap();
        close(&pool);
        close(&pool);
        pool.terminate();
        futures::executor::block_on(pool.closed());
        assert!(outcome(pool.submit(|n: u32| n, &1)).unwrap_err().is_closed());

        let pool = new_pool(1).unwrap();
        pool.terminate();
        pool.terminate();
        close(&pool);
        let error = outcome(pool.submit(|n: u32| n, &1)).unwrap_err();
        assert!(error.is_terminated() || error.is_closed(), "{error}");

        // Terminating what is closing hurries it up.
        let pool = new_pool(1).unwrap();
        let (task, closing) = (held(&pool, 0), pool.close());
        counter(0).wait_for(1);
        pool.terminate();
        within_bound(move || closing.wait());
        assert!(outcome(task).unwrap_err().is_terminated());
    });
}

/// Ends the pool when it is woken.
struct Ends(Pool, fn(&Pool), AtomicBool);

impl Wake for Ends {
    fn wake(self: Arc<Self>) {
        (self.1)(&self.0);
        self.2.store(true, Ordering::SeqCst);
    }
}

#[test]
fn g_03_a_pool_can_be_ended_in_a_callback() {
    both(|| {
        let ways: [fn(&Pool); 3] =
            [|pool| drop(pool.close()), |pool| pool.terminate(), |pool| drop(pool.clone())];
        for (round, way) in ways.into_iter().enumerate() {
            let pool = new_pool(1).unwrap();
            let mut task = held(&pool, round);
            let ends = Arc::new(Ends(pool.clone(), way, AtomicBool::new(false)));
            let waker = Waker::from(ends.clone());
            assert!(task.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
            drop(waker);
            let closed = pool.closed();
            gate(round).open();
            eventually("a wake-up", || ends.2.load(Ordering::SeqCst));
            assert!(outcome(task).is_ok());
            drop((pool, ends));
            within_bound(move || closed.wait());
            assert!(children().is_empty(), "{:?}", children());
        }
    });
}

#[test]
fn g_03_a_pool_can_be_ended_by_its_service_and_by_the_log_hook() {
    both(|| {
        type Doubling = Pool<(), Service<u32, u32>>;
        let place: Arc<Mutex<Option<Doubling>>> = Arc::default();
        let inner = place.clone();
        let handler = move |n: u32| {
            drop(inner.lock().unwrap().take().unwrap().close());
            n
        };
        let pool = builder().workers(1).service(handler).build().unwrap();
        *place.lock().unwrap() = Some(pool.clone());
        let body = |w: &Worker<(), Service<u32, u32>>, n: &View<u32>| w.call(&n.to_native()).is_ok();
        let task = pool.submit_with(body, &1_u32);
        let closed = pool.closed();
        within_bound(move || closed.wait());
        // The call may have been refused; the task has ended.
        assert!(task.is_finished());
        assert!(outcome(task).is_ok());

        let pool = new_pool(1).unwrap();
        let place = Mutex::new(Some(pool.clone()));
        hooks::set_log_error(move |_| {
            let pool = place.lock().unwrap().take();
            if let Some(pool) = pool {
                pool.terminate();
            }
        });
        pool.spawn(
            |n: u32| {
                if n > 0 {
                    panic!("reported")
                }
            },
            &1,
        );
        let closed = pool.closed();
        within_bound(move || closed.wait());
        assert!(children().is_empty(), "{:?}", children());
    });
}

#[test]
fn g_06_terminate_ends_everything_at_once() {
    both(|| {
        for round in 0..50 {
            let pool = new_pool(2).unwrap();
            let mut tasks = vec![held(&pool, 7), held(&pool, 7)];
            counter(0).wait_for(2 * round + 2);
            tasks.extend((0..20).map(|_| held(&pool, 7)));
            let big = pool.submit(|v: Vec<u8>| v, &vec![1; 3 << 20]);
            pool.terminate();
            assert!(children().is_empty(), "{:?}", children());
            for task in tasks {
                assert!(task.is_finished());
                assert!(outcome(task).unwrap_err().is_terminated());
            }
            assert!(outcome(big).unwrap_err().is_terminated());
        }
        assert_eq!(cell(7).load(Ordering::SeqCst), 0, "nobody came to the end");
        gate(7).open();
    });
}

#[test]
fn g_06_terminate_spares_results_that_were_there() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let done: Vec<_> = (0..10_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
        eventually("results", || done.iter().all(Task::is_finished));
        pool.terminate();
        for (n, task) in done.into_iter().enumerate() {
            assert_eq!(outcome(task).unwrap() as usize, n);
        }
    });
}

#[test]
fn g_06_ending_races_with_submitting_and_no_task_is_forgotten() {
    both(|| {
        for round in 0..60 {
            let pool = new_pool(2).unwrap();
            let submitters: Vec<_> = (0..3)
                .map(|_| {
                    let pool = pool.clone();
                    std::thread::spawn(move || {
                        let mut tasks = Vec::new();
                        loop {
                            counter(1).bump();
                            let task = pool.submit(|n: u64| n + 1, &1);
                            let over = task.is_finished() && tasks.len() > 5000;
                            tasks.push(task);
                            if over || tasks.len() > 20_000 {
                                break tasks;
                            }
                        }
                    })
                })
                .collect();
            counter(1).wait_for(counter(1).get() + 50);
            match round % 2 {
                0 => pool.terminate(),
                _ => close(&pool),
            }
            for thread in submitters {
                for task in thread.join().unwrap() {
                    match outcome(task) {
                        Ok(value) => assert_eq!(value, 2),
                        Err(error) => {
                            let expected = error.is_closed() || round % 2 == 0 && error.is_terminated();
                            assert!(expected, "{error}");
                        }
                    }
                }
            }
            assert!(children().is_empty(), "{:?}", children());
        }
    });
}

#[test]
fn g_07_terminate_and_close_do_not_mind_dead_workers() {
    scenario(|| {
        hooks::set_log_error(|_| ());
        for round in 0..20 {
            let pool = Pool::new(2).unwrap();
            for pid in pool.worker_pids() {
                signal(pid, Signal::SIGKILL);
                if round % 4 < 2 {
                    gone(pid);
                }
            }
            match round % 2 {
                0 => pool.terminate(),
                _ => close(&pool),
            }
            assert!(children().is_empty(), "{:?}", children());
        }
    });
}

/// D-18.
#[test]
fn a_crash_while_the_pool_closes_is_the_tasks_own() {
    scenario(|| {
        hooks::set_log_error(|_| ());
        for round in 0..20 {
            let pool = Pool::new(1).unwrap();
            let body = |n: usize| {
                gate(n).wait();
                if n < 1000 {
                    std::process::abort()
                }
            };
            let crash = pool.submit(body, &round);
            let behind: Vec<_> = (0..5_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
            let closing = pool.close();
            gate(round).open();
            within_bound(move || closing.wait());
            assert!(outcome(crash).unwrap_err().is_worker_lost());
            for (n, task) in behind.into_iter().enumerate() {
                assert_eq!(outcome(task).unwrap() as usize, n, "they had not started");
            }
        }
    });
}

#[test]
fn g_10_results_that_nobody_reads_do_not_hold_up_closing() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let tasks: Vec<_> =
            (0..1000_usize).map(|n| pool.submit(|n: usize| vec![n as u8; 100_000], &n)).collect();
        close(&pool);
        for (n, task) in tasks.into_iter().enumerate() {
            let result = outcome(task).unwrap();
            assert!(result.len() == 100_000 && result[99_999] == n as u8);
        }
    });
}

/// The process has left in good order and without a word.
fn quiet(finished: &Finished) {
    assert!(finished.status.success(), "{finished:?}");
    assert!(finished.stderr.is_empty(), "{finished:?}");
}

#[test]
fn g_11_main_returns_while_tasks_run_and_handles_are_leaked() {
    both_output(
        || {
            let pool = new_pool(2).unwrap();
            std::mem::forget((held(&pool, 0), held(&pool, 0), held(&pool, 0)));
            counter(0).wait_for(2);
            std::mem::forget(pool);
        },
        quiet,
    );
}

#[test]
fn g_11_main_returns_while_tasks_run_and_handles_are_dropped() {
    both_output(
        || {
            let pool = new_pool(2).unwrap();
            let _running = [held(&pool, 0), held(&pool, 0)];
            let _queued = held(&pool, 0);
            counter(0).wait_for(2);
            drop(held(&pool, 0));
        },
        quiet,
    );
}

#[test]
fn g_11_the_program_exits_in_the_middle() {
    both_output(
        || {
            let pool = builder().workers(2).on_exit(|_| eprintln!("on_exit")).build().unwrap();
            let _running = held(&pool, 0);
            counter(0).wait_for(1);
            std::process::exit(0);
        },
        quiet,
    );
}

#[test]
fn g_11_a_pool_in_a_static_does_not_keep_the_program() {
    static POOL: std::sync::OnceLock<Pool> = std::sync::OnceLock::new();
    both_output(
        || {
            let pool = POOL.get_or_init(|| new_pool(2).unwrap());
            held(pool, 0).detach();
            counter(0).wait_for(1);
        },
        quiet,
    );
}

#[test]
fn g_14_a_panic_in_the_master_drops_the_pool_and_goes_on() {
    both(|| {
        for round in 0..10 {
            let thread = std::thread::spawn(move || {
                let pool = new_pool(2).unwrap();
                let _running = held(&pool, 0);
                let _queued: Vec<_> = (0..10).map(|_| held(&pool, 0)).collect();
                counter(0).wait_for(2 * round + 1);
                std::panic::resume_unwind(Box::new("on its way"));
            });
            let panic = thread.join().unwrap_err();
            assert_eq!(*panic.downcast_ref::<&str>().unwrap(), "on its way");
            eventually("the end of the processes", || children().is_empty());
        }
        // A pool that is built, used and closed while its thread unwinds.
        struct Late;
        impl Drop for Late {
            fn drop(&mut self) {
                let pool = new_pool(1).unwrap();
                assert_eq!(outcome(pool.submit(|n: u32| n + 1, &1)).unwrap(), 2);
                pool.close().wait();
                counter(2).bump();
            }
        }
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let _late = Late;
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(unwound.is_err() && counter(2).get() == 1);
    });
}

#[test]
fn a_closing_pool_is_a_future_on_any_runtime() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let task = held(&pool, 0);
        let mut closed = pin!(pool.closed());
        let mut closing = pin!(pool.close());
        let context = &mut Context::from_waker(Waker::noop());
        assert!(closed.as_mut().poll(context).is_pending());
        assert!(closing.as_mut().poll(context).is_pending());
        gate(0).open();
        let tokio = tokio::runtime::Runtime::new().unwrap();
        tokio.block_on(async { tokio::time::timeout(BOUND, closing).await.expect("hang") });
        smol::block_on(closed);
        assert!(outcome(task).is_ok());
    });
}

/// Runs `prepare`, which leaves a pool in some state, and kills the process. Nothing of it may be left.
fn killed(finished: Option<Finished>) {
    if let Some(finished) = finished {
        assert_eq!(finished.signal(), Some(9), "{finished:?}");
    }
}

fn kill_myself() {
    signal(std::process::id(), Signal::SIGKILL);
}

#[test]
fn a_master_killed_while_its_workers_are_idle_leaves_nothing() {
    killed(scenario_output(|| {
        let pool = Pool::new(4).unwrap();
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
        kill_myself();
    }));
}

#[test]
fn a_master_killed_while_its_workers_block_leaves_nothing() {
    killed(scenario_output(|| {
        let pool = Pool::new(2).unwrap();
        let _tasks = [held(&pool, 0), held(&pool, 0), held(&pool, 0)];
        counter(0).wait_for(2);
        kill_myself();
    }));
}

#[test]
fn a_master_killed_while_its_workers_compute_leaves_nothing() {
    killed(scenario_output(|| {
        let pool = Pool::new(2).unwrap();
        let body = |_: ()| {
            counter(0).bump();
            loop {
                std::hint::spin_loop();
            }
        };
        let _tasks: [Task<()>; 2] = [pool.submit(body, &()), pool.submit(body, &())];
        counter(0).wait_for(2);
        kill_myself();
    }));
}

#[test]
fn a_master_killed_while_its_workers_ignore_signals_leaves_nothing() {
    killed(scenario_output(|| {
        let pool = Pool::new(1).unwrap();
        let body = |_: ()| {
            crate::support::disposition(Signal::SIGTERM, true);
            crate::support::disposition(Signal::SIGHUP, true);
            counter(0).bump();
            gate(0).wait();
        };
        let _task = pool.submit(body, &());
        counter(0).wait_for(1);
        kill_myself();
    }));
}

#[test]
fn a_master_killed_in_the_middle_of_a_flood_leaves_nothing() {
    killed(scenario_output(|| {
        let pool = Pool::new(2).unwrap();
        std::thread::spawn({
            let pool = pool.clone();
            move || {
                loop {
                    let tasks: Vec<_> =
                        (0..1000_u64).map(|n| pool.submit(|n: u64| vec![n; 100], &n)).collect();
                    tasks.into_iter().for_each(|task| drop(task.wait()));
                    counter(1).bump();
                }
            }
        });
        counter(1).wait_for(3);
        kill_myself();
    }));
}

/// J-04.
#[test]
fn a_master_killed_while_its_workers_start_leaves_nothing() {
    killed(scenario_output(|| {
        std::thread::spawn(|| {
            counter(0).wait_for(1);
            kill_myself();
        });
        let init = |_: &forkring::WorkerInfo| {
            counter(0).bump();
            gate(0).wait();
            Ok(())
        };
        let _pool = Pool::builder().workers(3).init(init).build();
    }));
}

#[test]
fn a_master_killed_inside_a_service_call_leaves_nothing() {
    killed(scenario_output(|| {
        let handler = |n: u32| {
            counter(0).bump();
            gate(0).wait();
            n
        };
        let pool = Pool::builder().workers(2).service(handler).build().unwrap();
        let body = |w: &Worker<(), Service<u32, u32>>, n: &View<u32>| w.call(&n.to_native()).is_ok();
        let _tasks = [pool.submit_with(body, &1_u32), pool.submit_with(body, &2_u32)];
        counter(0).wait_for(2);
        kill_myself();
    }));
}

/// J-02.
#[test]
fn a_master_ended_by_sigterm_leaves_nothing() {
    let finished = scenario_output(|| {
        let pool = Pool::new(2).unwrap();
        let _tasks = [held(&pool, 0), held(&pool, 0)];
        counter(0).wait_for(2);
        signal(std::process::id(), Signal::SIGTERM);
        // The signal may be delivered to another thread a moment later.
        gate(1).wait();
    });
    if let Some(finished) = finished {
        assert_eq!(finished.signal(), Some(15), "{finished:?}");
    }
}

/// The zygote of a pool has been killed: the pool fails, and says so.
#[track_caller]
fn fails_for_its_zygote(pool: &Pool, tasks: Vec<Task<u32>>) {
    for task in tasks {
        let error = outcome(task).unwrap_err();
        let expected =
            error.is_pool_failed() && error.to_string().contains("zygote") || error.is_worker_lost();
        assert!(expected, "{error}");
    }
    let closed = pool.closed();
    within_bound(move || closed.wait());
    let late = outcome(pool.submit(|n: u32| n, &1)).unwrap_err();
    assert!(late.is_pool_failed() && late.to_string().contains("zygote"), "{late}");
    close(pool);
    pool.terminate();
    // Orphans are reaped by init.
    eventually("the end of the processes", || children().is_empty());
}

#[test]
fn m_06_an_idle_pool_fails_when_its_zygote_is_killed() {
    scenario(|| {
        hooks::set_log_error(|_| ());
        for _ in 0..20 {
            let pool = Pool::new(2).unwrap();
            let workers = pool.worker_pids();
            signal(zygote(), Signal::SIGKILL);
            fails_for_its_zygote(&pool, Vec::new());
            for pid in workers {
                eventually("a worker's end", || crate::support::process(pid).is_none_or(|p| p.state == 'Z'));
            }
        }
    });
}

#[test]
fn m_06_a_busy_pool_fails_when_its_zygote_is_killed() {
    scenario(|| {
        hooks::set_log_error(|_| ());
        for round in 0..20 {
            let pool = Pool::new(2).unwrap();
            let tasks: Vec<_> = (0..20).map(|_| held(&pool, 0)).collect();
            counter(0).wait_for(2 * round + 2);
            signal(zygote(), Signal::SIGKILL);
            fails_for_its_zygote(&pool, tasks);
        }
        assert_eq!(cell(0).load(Ordering::SeqCst), 0, "nobody came to the end");
    });
}

#[test]
fn m_06_a_pool_that_is_replacing_workers_fails_when_its_zygote_is_killed() {
    scenario(|| {
        hooks::set_log_error(|_| ());
        for round in 0..20 {
            let init = |info: &forkring::WorkerInfo| {
                if info.generation() > 0 {
                    counter(1).bump();
                    gate(0).wait();
                }
                Ok(())
            };
            let pool = Pool::builder().workers(2).init(init).build().unwrap();
            let tasks: Vec<_> = (0..6).map(|_| held(&pool, 0)).collect();
            counter(0).wait_for(2 * round + 2);
            signal(pool.worker_pids()[0], Signal::SIGKILL);
            counter(1).wait_for(round + 1);
            signal(zygote(), Signal::SIGKILL);
            fails_for_its_zygote(&pool, tasks);
        }
    });
}

#[test]
fn m_06_a_stopped_zygote_does_not_stop_tasks() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        let zygote = zygote();
        signal(zygote, Signal::SIGSTOP);
        for n in 0..100_u32 {
            assert_eq!(outcome(pool.submit(|n: u32| n, &n)).unwrap(), n);
        }
        signal(zygote, Signal::SIGCONT);
        close(&pool);
    });
}
