//! Workers that are threads of this process: what is different there. What is the same is tested by all scenarios that run
//! on [`both`](crate::support::both).

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use forkring::{
    Affinity, Builder, Granularity, NoService, OnWorkerLoss, Pool, Service, ServiceErrorKind, Shared, Signal,
    StartWorker, TaskError, View, Worker,
};

use crate::support::{
    BOUND, cell, children, count_fds, counter, eventually, exit_code_of, fork_and, gate, outcome, quietly,
    scenario, status_of,
};

fn threads() -> Builder<(), NoService, (), Shared> {
    Pool::builder().in_process()
}

/// How many threads this process has.
fn thread_count() -> u32 {
    status_of(std::process::id())["Threads"].parse().unwrap()
}

/// Waits until this process has as many threads as before.
#[track_caller]
fn threads_are(count: u32) {
    eventually("the end of the pool's threads", || thread_count() == count);
}

/// Notes its end in a counter.
struct Ends(usize);

impl Drop for Ends {
    fn drop(&mut self) {
        counter(self.0).bump();
    }
}

#[test]
fn there_is_no_process_and_no_descriptor() {
    scenario(|| {
        let (fds, before) = (count_fds(), thread_count());
        let pool = threads().workers(3).service(|n: u32| n).build().unwrap();
        assert_eq!(outcome(pool.submit(|()| std::process::id(), &())).unwrap(), std::process::id());
        assert_eq!(pool.worker_pids(), [std::process::id(); 3]);
        assert_eq!((children().len(), count_fds()), (0, fds));
        assert_eq!(thread_count(), before + 4, "three workers and the driver");
        let names = pool.broadcast(|_| std::thread::current().name().map(str::to_owned));
        let names: Vec<_> = names.into_iter().map(|name| name.unwrap().unwrap()).collect();
        assert_eq!(names, ["forkring-w0", "forkring-w1", "forkring-w2"]);
        pool.close().wait();
        threads_are(before);
    });
}

#[test]
fn the_environment_is_one_value_and_ends_with_the_pool() {
    scenario(|| {
        struct Tally(AtomicU64, #[allow(dead_code, reason = "dropped")] Ends);
        let pool = threads().workers(2).env(Tally(AtomicU64::new(0), Ends(0))).build().unwrap();
        pool.broadcast(|w: &Worker<Tally>| w.env().0.fetch_add(1, Ordering::SeqCst)).into_iter().for_each(
            |before| {
                before.unwrap();
            },
        );
        let both = pool.submit_with(|w: &Worker<Tally>, _: &View<()>| w.env().0.load(Ordering::SeqCst), &());
        assert_eq!(outcome(both).unwrap(), 2);
        assert_eq!(counter(0).get(), 0);
        pool.close().wait();
        assert_eq!(counter(0).get(), 1, "dropped once, before the pool has ended");
    });
}

/// E-01, as far as a thread goes: the task ends at its limit, the thread when the task returns.
#[test]
fn a_thread_out_of_time_is_given_up_and_replaced() {
    scenario(|| {
        let before = thread_count();
        let pool = threads()
            .workers(1)
            .state(|_, ()| Ok(Ends(1)))
            .on_exit(|_| {
                counter(2).bump();
            })
            .build()
            .unwrap();
        let stuck = pool.with_timeout(Duration::from_millis(50)).submit_with(
            |w: &Worker<(), NoService, Ends>, _: &View<()>| {
                drop(w.state());
                gate(0).wait();
                cell(0).store(u64::from(w.cancelled()) + 1, Ordering::SeqCst);
            },
            &(),
        );
        assert!(outcome(stuck).unwrap_err().is_timed_out());
        let generation = |w: &Worker<(), NoService, Ends>, _: &View<()>| w.generation();
        assert_eq!(outcome(pool.submit_with(generation, &())).unwrap(), 1);
        assert_eq!(counter(1).get(), 0, "its state lives on");
        gate(0).open();
        counter(1).wait_for(1);
        assert_eq!(cell(0).load(Ordering::SeqCst), 2, "it could see that it was not wanted");
        assert_eq!(counter(2).get(), 0);
        pool.close().wait();
        assert_eq!(counter(2).get(), 1, "on_exit ran in the one that left in good order");
        threads_are(before);
    });
}

/// E-21, likewise.
#[test]
fn the_first_signal_is_a_request() {
    scenario(|| {
        let pool = threads().workers(1).kill_signal(Signal::SIGTERM, 2 * BOUND).build().unwrap();
        let patient = pool.with_timeout(Duration::from_millis(50)).submit_with(
            |w: &Worker, _: &View<()>| {
                while !w.cancelled() {
                    std::thread::yield_now();
                }
                7
            },
            &(),
        );
        assert_eq!(outcome(patient).unwrap(), 7, "what it returns within the gap counts");
        assert_eq!(outcome(pool.submit_with(|w: &Worker, _: &View<()>| w.generation(), &())).unwrap(), 1);
    });
}

/// M-01, with a time limit: the thread goes on, and must not go on with the batch.
#[test]
fn a_batch_is_not_continued_by_who_was_given_up() {
    scenario(|| {
        const ITEMS: usize = 100;
        let before = thread_count();
        let pool = threads().workers(2).task_timeout(Duration::from_secs(1)).build().unwrap();
        let run = |item: usize| {
            cell(item).fetch_add(1, Ordering::SeqCst);
            if item == 7 {
                gate(0).wait();
                counter(0).bump();
            }
            item
        };
        for granularity in [25, ITEMS] {
            let results: Vec<_> =
                pool.map(0..ITEMS, run).granularity(Granularity::Fixed(granularity)).collect();
            for (item, result) in results.iter().enumerate() {
                match result {
                    Ok(value) => assert_eq!((*value, item != 7), (item, true)),
                    Err(error) => assert!(item == 7 && error.is_timed_out(), "{item}: {error}"),
                }
            }
        }
        gate(0).open();
        counter(0).wait_for(2);
        pool.close().wait();
        threads_are(before);
        (0..ITEMS).for_each(|item| assert_eq!(cell(item).load(Ordering::SeqCst), 2, "item {item}"));
    });
}

#[test]
fn results_of_any_size_do_not_keep_a_thread_that_was_given_up() {
    scenario(|| {
        let before = thread_count();
        for bytes in [0, 100, 1 << 20, 64 << 20] {
            let pool = threads().workers(1).build().unwrap();
            let task = pool.submit(
                |bytes: usize| {
                    counter(0).bump();
                    gate(0).wait();
                    (vec![1_u8; bytes], "x".repeat(bytes))
                },
                &bytes,
            );
            counter(0).wait_for(1);
            drop(pool);
            assert!(outcome(task).map(drop).unwrap_err().is_terminated());
        }
        gate(0).open();
        threads_are(before);
    });
}

#[test]
fn a_call_of_a_thread_that_was_given_up_is_refused() {
    scenario(|| {
        let before = thread_count();
        let pool = threads().workers(1).service(|()| gate(0).wait()).build().unwrap();
        let calling = pool.with_timeout(Duration::from_millis(50)).submit_with(
            |w: &Worker<(), Service<(), ()>>, _: &View<()>| {
                let refused = w.call(&()).unwrap_err();
                cell(0).store(u64::from(refused.kind() == ServiceErrorKind::Refused), Ordering::SeqCst);
                counter(0).bump();
            },
            &(),
        );
        assert!(outcome(calling).unwrap_err().is_timed_out());
        counter(0).wait_for(1);
        assert_eq!(cell(0).load(Ordering::SeqCst), 1);
        gate(0).open();
        pool.close().wait();
        threads_are(before);
    });
}

/// What `iter_stream` borrows is not touched after it has returned, though a thread cannot be killed.
#[test]
fn a_borrowed_closure_outlives_the_threads_that_run_it() {
    scenario(|| {
        let finished = AtomicBool::new(false);
        let summary = threads()
            .workers(2)
            .task_timeout(Duration::from_millis(50))
            .iter_stream(
                0..10,
                |item: u32| {
                    if item == 3 {
                        gate(0).wait();
                        std::thread::sleep(Duration::from_millis(50));
                        finished.store(true, Ordering::SeqCst);
                    }
                },
                |result| {
                    if result.is_err() {
                        gate(0).open();
                    }
                },
            )
            .unwrap();
        assert_eq!((summary.ok, summary.failed), (9, 1));
        assert!(finished.load(Ordering::SeqCst));
    });
}

#[test]
fn a_borrowed_closure_outlives_them_also_when_the_consumer_panics() {
    scenario(|| {
        let finished = AtomicU64::new(0);
        let run = || {
            threads().workers(2).iter_stream(
                0..2,
                |item: u32| {
                    if item == 1 {
                        counter(0).bump();
                        gate(0).wait();
                        std::thread::sleep(Duration::from_millis(50));
                        finished.store(1, Ordering::SeqCst);
                    } else {
                        counter(0).wait_for(1);
                    }
                },
                |_| -> () {
                    gate(0).open();
                    std::panic::resume_unwind(Box::new(()));
                },
            )
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        assert_eq!(finished.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn what_a_thread_cannot_have_is_an_error_that_names_the_way_out() {
    scenario(|| {
        let cases = [
            (threads().worker_env("A", "b"), "worker_env", "whole program"),
            (threads().max_address_space(1 << 30), "max_address_space", "ulimit"),
            (threads().max_worker_memory(1 << 30), "max_worker_memory", "max_tasks_per_worker"),
        ];
        for (builder, option, way_out) in cases {
            let error = builder.workers(1).build().unwrap_err().to_string();
            assert!(error.contains(option) && error.contains("in_process"), "{error}");
            assert!(error.contains(way_out), "{error}");
        }
        let late = Pool::builder().workers(1).init(|_| Ok(())).in_process().build().unwrap_err().to_string();
        assert!(late.contains("must come before"), "{late}");
        let pool = threads().workers(1).process_group(true).close_inherited_fds(true);
        let pool = pool.nice(1).affinity(Affinity::Spread).build().unwrap();
        assert_eq!(outcome(pool.submit(|n: u32| n + 1, &1)).unwrap(), 2);
    });
}

#[test]
fn start_worker_goes_on_or_says_why_not() {
    scenario(|| {
        let pool = StartWorker::catch(|| {
            threads()
                .workers(2)
                .init(|info| {
                    let _ends = Ends(info.id());
                    info.start_worker()
                })
                .build()
        });
        let pool = pool.unwrap();
        assert_eq!(outcome(pool.submit(|n: u32| n + 1, &1)).unwrap(), 2);
        assert_eq!((counter(0).get(), counter(1).get()), (1, 1), "what lay in init is dropped");
        let error = threads().workers(1).init(|info| info.start_worker()).build().unwrap_err().to_string();
        assert!(error.contains("no StartWorker::catch"), "{error}");
        let bound = StartWorker::catch(|| {
            threads().workers(1).init(|info| info.start_worker()).bind(|n: u32| n).unwrap_err().to_string()
        });
        assert!(bound.contains("bind"), "{bound}");
    });
}

#[test]
fn a_failed_start_has_the_same_words() {
    scenario(|| {
        quietly();
        let failed = threads().workers(2).init(|_| Err("no luck".into())).build().unwrap_err().to_string();
        assert!(failed.contains("init failed: no luck"), "{failed}");
        let panicked = threads().workers(2).init(|_| panic!("ouch")).build().unwrap_err().to_string();
        assert!(
            panicked.contains("init panicked: ouch (at ") && panicked.contains("in_process.rs"),
            "{panicked}"
        );
        let stateless = threads().workers(2).state(|_, ()| Err::<(), _>("none".into())).build().unwrap_err();
        assert!(stateless.to_string().contains("state failed: none"), "{stateless}");
        let slow = threads().workers(1).init_timeout(Duration::from_millis(50)).init(|_| {
            gate(0).wait();
            Ok(())
        });
        let slow = slow.build().unwrap_err().to_string();
        assert!(slow.contains("init_timeout"), "{slow}");
        gate(0).open();
    });
}

#[test]
fn handles_are_valid_in_a_worker() {
    scenario(|| {
        static POOL: OnceLock<Pool> = OnceLock::new();
        let pool = POOL.get_or_init(|| threads().workers(2).build().unwrap());
        let nested = pool.submit(
            |n: u32| POOL.get().unwrap().submit(|n: u32| n + 1, &n).wait().map_err(|error| error.to_string()),
            &1,
        );
        assert_eq!(outcome(nested).unwrap(), Ok(2));
        // In a fork of the program they are inert, as ever.
        let child = fork_and(|| {
            let task = POOL.get().unwrap().submit(|n: u32| n, &1);
            i32::from(!matches!(task.wait(), Err(TaskError::NotInThisProcess)))
        });
        assert_eq!(exit_code_of(child), 0);
        pool.close().wait();
    });
}

#[test]
fn the_last_handle_may_go_in_a_worker() {
    scenario(|| {
        static POOL: Mutex<Option<Pool>> = Mutex::new(None);
        let before = thread_count();
        let pool = threads().workers(1).build().unwrap();
        let ended = pool.closed();
        let task = pool.submit(
            |()| {
                gate(0).wait();
                drop(POOL.lock().unwrap().take());
                counter(0).bump();
            },
            &(),
        );
        *POOL.lock().unwrap() = Some(pool);
        gate(0).open();
        assert!(outcome(task).unwrap_err().is_terminated());
        futures::executor::block_on(ended);
        counter(0).wait_for(1);
        threads_are(before);
    });
}

#[test]
fn a_state_that_cannot_be_made_again_costs_the_worker() {
    scenario(|| {
        quietly();
        let pool = threads()
            .workers(1)
            .state(|info, ()| match counter(0).bump() {
                1 => Err("not again".into()),
                _ => Ok(info.generation()),
            })
            .on_worker_loss(OnWorkerLoss::FailTask)
            .build()
            .unwrap();
        let spoil = |w: &Worker<(), NoService, u64>, _: &View<()>| -> u64 {
            drop(w.state());
            panic!("spoiled")
        };
        assert!(outcome(pool.submit_with(spoil, &())).unwrap_err().is_panicked());
        let state = |w: &Worker<(), NoService, u64>, _: &View<()>| *w.state();
        assert_eq!(outcome(pool.submit_with(state, &())).unwrap(), 1);
    });
}

#[test]
fn a_program_that_decides_while_it_runs_gets_both() {
    scenario(|| {
        for on in [false, true] {
            let tables = Arc::new(vec![1, 2, 3]);
            let pool = Pool::builder().env(tables.clone()).in_process_if(on).workers(1).build().unwrap();
            let sum =
                |w: &Worker<Arc<Vec<u32>>>, _: &View<()>| (w.env().iter().sum::<u32>(), std::process::id());
            let (sum, pid) = outcome(pool.submit_with(sum, &())).unwrap();
            assert_eq!((sum, pid == std::process::id()), (6, on));
            assert_eq!(Arc::strong_count(&tables), 1 + usize::from(on), "the master's copy goes in build");
        }
    });
}

/// A task's output is the test's, which libtest shows only if the test fails.
#[test]
fn what_a_task_prints_is_captured() {
    let run = |fails: bool| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "in_process::prints_in_a_task", "--ignored"])
            .env(FAILS, if fails { "1" } else { "0" })
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (passed, stdout) = run(false);
    assert!(passed && stdout.contains("1 passed") && !stdout.contains("printed by a task"), "{stdout}");
    let (passed, stdout) = run(true);
    let section = stdout.split_once("---- in_process::prints_in_a_task stdout ----").unwrap().1;
    assert!(!passed && section.contains("printed by a task"), "{stdout}");
}

const FAILS: &str = "FORKRING_TEST_FAILS";

#[test]
#[ignore = "run by what_a_task_prints_is_captured"]
fn prints_in_a_task() {
    let pool = threads().workers(1).build().unwrap();
    outcome(pool.submit(|()| println!("printed by a task"), &())).unwrap();
    assert_ne!(std::env::var(FAILS).as_deref(), Ok("1"));
}

/// M-13: threads of the program that sleep at the moment of the fork are no threads of the worker, whose new ones are given
/// their stacks.
#[test]
fn m_13_a_pool_of_threads_in_a_task_beside_one_in_the_program() {
    scenario(|| {
        let service = |n: u32| n + 1;
        let outer = threads().workers(3).service(service).build().unwrap();
        let call = |w: &Worker<(), Service<u32, u32>>, n: &View<u32>| w.call(&n.to_native()).unwrap();
        assert_eq!(outcome(outer.submit_with(call, &1_u32)).unwrap(), 2);
        let body = |n: u32| {
            let service = |n: u32| n + 2;
            let inner = threads().workers(3).service(service).build().unwrap();
            let call = |w: &Worker<(), Service<u32, u32>>, n: &View<u32>| w.call(&n.to_native()).unwrap();
            let sum = inner.map_with(0..n, call).map(Result::unwrap).sum::<u32>();
            inner.close().wait();
            sum
        };
        for _ in 0..5 {
            let pool = Pool::new(2).unwrap();
            let tasks: Vec<_> = (0..4).map(|_| pool.submit(body, &100)).collect();
            for task in tasks {
                assert_eq!(outcome(task).unwrap(), 4950 + 200);
            }
            pool.close().wait();
        }
        assert_eq!(outcome(outer.submit_with(call, &1_u32)).unwrap(), 2);
    });
}
