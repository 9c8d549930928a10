//! Acceptance cases, group B: submitting tasks and waiting for them, on threads and on runtimes.

use std::collections::BTreeSet;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::abort;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use forkring::{Pool, Task, TaskError, View, Worker};
use futures::FutureExt;
use futures::executor::block_on;
use futures::future::{join_all, select};

use crate::support::{
    BOUND, Gate, both, cell, children, count_fds, counter, eventually, gate, meet, new_pool, outcome,
    process, rss_kib, scenario,
};

/// Starts a task that runs until the gate opens; returns when it runs. It counts itself in counter 0.
fn held(pool: &Pool, n: usize) -> Task<u32> {
    let before = counter(0).get();
    let task = pool.submit(
        |n: usize| {
            counter(0).bump();
            gate(n).wait();
            std::process::id()
        },
        &n,
    );
    counter(0).wait_for(before + 1);
    task
}

#[test]
fn b_01_a_task_computes() {
    both(|| {
        let pool = new_pool(1).unwrap();
        assert_eq!(pool.submit(|n: u32| 2_u64.pow(n), &8).wait().unwrap(), 256);
    });
}

#[test]
fn a_task_waits_for_a_gate_and_says_whether_it_is_finished() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let task = held(&pool, 0);
        let handle = task.handle();
        assert!(!task.is_finished() && !handle.is_finished());
        gate(0).open();
        let worker = task.wait().unwrap();
        assert!(handle.is_finished());
        assert!(!handle.cancel(), "E-15: cancelling what is over has no effect");
        assert_eq!([worker], pool.worker_pids()[..]);
    });
}

#[test]
fn b_02_two_tasks_that_meet_run_in_two_workers() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for _ in 0..50 {
            let meeting = |w: &Worker, _: &View<()>| {
                meet(0, 2);
                w.id()
            };
            let tasks: Vec<_> = (0..4).map(|_| pool.submit_with(meeting, &())).collect();
            let single = pool.submit_with(|w: &Worker, _: &View<()>| w.id(), &());
            let ids: BTreeSet<usize> = tasks.into_iter().map(|task| outcome(task).unwrap()).collect();
            assert_eq!(ids.len(), 2);
            assert!(ids.contains(&outcome(single).unwrap()));
        }
    });
}

#[test]
fn b_03_ten_threads_do_not_disturb_each_other() {
    both(|| {
        let pool = new_pool(2).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..10_u64 {
                let pool = pool.clone();
                scope.spawn(move || {
                    for round in 0..5 {
                        let base = thread * 1_000_000 + round * 1000;
                        stream_of_40(&pool, base);
                        let tasks: Vec<_> =
                            (0..20).map(|n| pool.submit(|n: u64| n + 1, &(base + n))).collect();
                        let cancelled: Vec<bool> =
                            tasks.iter().enumerate().map(|(n, task)| n % 2 == 1 && task.cancel()).collect();
                        for (n, (task, cancelled)) in tasks.into_iter().zip(cancelled).enumerate() {
                            match outcome(task) {
                                Ok(value) => assert_eq!((value, cancelled), (base + n as u64 + 1, false)),
                                Err(error) => assert!(error.is_cancelled() && n % 2 == 1, "{n}: {error}"),
                            }
                        }
                        stream_of_40(&pool, base + 500);
                    }
                });
            }
        });
        pool.close().wait();
    });
}

fn stream_of_40(pool: &Pool, base: u64) {
    let got: Vec<u64> = pool.map(base..base + 40, |n: u64| n * 2).map(Result::unwrap).collect();
    assert_eq!(got, (base..base + 40).map(|n| n * 2).collect::<Vec<_>>());
}

#[test]
fn b_05_a_continuation_that_panics_is_its_owners_business() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let task = pool.submit(|n: u32| n + 1, &1);
        let continuation = async move {
            let n = task.await.unwrap();
            assert_eq!(n, 0, "the continuation's own panic");
        };
        let panic = catch_unwind(AssertUnwindSafe(|| block_on(continuation))).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("the continuation's own panic"));
        assert_eq!(outcome(pool.submit(|n: u32| n + 1, &2)).unwrap(), 3);
    });
}

/// Its `wake` panics.
struct BadWaker;

impl Wake for BadWaker {
    fn wake(self: Arc<Self>) {
        panic!("a waker that panics");
    }
}

#[test]
fn b_05_a_waker_that_panics_does_not_harm_the_pool() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let mut task = held(&pool, 0);
        let waker = Waker::from(Arc::new(BadWaker));
        assert!(task.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
        gate(0).open();
        // Whoever collects completions calls the waker: not one of these threads, or with no effect on it.
        let later = std::thread::spawn({
            let pool = pool.clone();
            move || (0..100_u32).all(|n| outcome(pool.submit(|n: u32| n + 1, &n)).unwrap() == n + 1)
        });
        let later = later.join();
        assert!(outcome(task).is_ok());
        assert!(later.expect("another thread's waker must not panic here"));
        block_on(async { assert_eq!(pool.submit(|n: u32| n, &5).await.unwrap(), 5) });
        pool.close().wait();
    });
}

#[test]
fn b_06_a_continuation_that_submits_a_crash_loses_that_task_only() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        block_on(async {
            assert_eq!(pool.submit(|n: u32| n + 1, &1).await.unwrap(), 2);
            let crash = pool
                .submit(
                    |n: u32| {
                        if n > 0 {
                            abort()
                        }
                    },
                    &1,
                )
                .await;
            assert!(crash.unwrap_err().is_worker_lost());
            assert_eq!(pool.submit(|n: u32| n + 1, &2).await.unwrap(), 3);
        });
    });
}

#[test]
fn b_07_tasks_dropped_unread_leak_nothing() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let rounds = |n: u32| {
            for i in 0..n {
                drop(pool.submit(|i: u32| vec![i; 100], &i));
            }
            // The pool works: what was submitted before this has ended.
            assert_eq!(outcome(pool.submit(|i: u32| i, &n)).unwrap(), n);
        };
        rounds(20_000);
        let (fds, rss) = (count_fds(), rss_kib(std::process::id()));
        rounds(100_000);
        let grown = rss_kib(std::process::id()).saturating_sub(rss);
        assert!(grown < 16 * 1024, "{grown} KiB more after 100000 dropped tasks");
        assert_eq!(count_fds(), fds);
        pool.close().wait();
    });
}

#[test]
fn b_08_a_dropped_task_never_runs_and_a_detached_one_does() {
    both(|| {
        for round in 0..50 {
            let pool = new_pool(1).unwrap();
            let task = held(&pool, round);
            let queued: Vec<_> = (0..15_u32)
                .map(|n| {
                    let body = |n: u32| {
                        cell(n as usize).fetch_add(1, Ordering::SeqCst);
                        n
                    };
                    (n, pool.submit(body, &n))
                })
                .collect();
            let mut kept = Vec::new();
            for (n, task) in queued {
                match n % 3 {
                    0 => drop(task),
                    1 => task.detach(),
                    _ => kept.push((n, task)),
                }
            }
            gate(round).open();
            assert!(outcome(task).is_ok());
            for (n, task) in kept {
                assert_eq!(outcome(task).unwrap(), n);
            }
            pool.close().wait();
            for n in 0..15 {
                let ran = cell(n).swap(0, Ordering::SeqCst);
                assert_eq!(ran, u64::from(n % 3 != 0), "task {n}, round {round}");
            }
        }
    });
}

#[test]
fn e_10_a_queued_task_is_cancelled_and_those_behind_it_run() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let task = held(&pool, 0);
        let body = |n: usize| {
            cell(n).fetch_add(1, Ordering::SeqCst);
            n
        };
        let (second, third) = (pool.submit(body, &2), pool.submit(body, &3));
        assert!(second.cancel());
        assert!(!task.cancel(), "it runs");
        gate(0).open();
        assert!(outcome(second).unwrap_err().is_cancelled());
        assert_eq!(outcome(third).unwrap(), 3);
        let _ = outcome(task);
        assert_eq!((cell(2).load(Ordering::SeqCst), cell(3).load(Ordering::SeqCst)), (0, 1));
    });
}

#[test]
fn a_running_task_sees_that_it_is_cancelled() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let task = pool.submit_with(
            |w: &Worker, _: &View<()>| {
                counter(0).bump();
                while !w.cancelled() {
                    std::thread::yield_now();
                }
                counter(1).bump();
            },
            &(),
        );
        counter(0).wait_for(1);
        assert!(!task.cancel(), "it had started");
        counter(1).wait_for(1);
        let _ = outcome(task);
        assert_eq!(
            outcome(pool.submit_with(|w: &Worker, _: &View<()>| w.cancelled(), &())).ok(),
            Some(false)
        );
    });
}

#[test]
fn b_09_a_shared_task_gives_everyone_the_same_value() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let first = held(&pool, 0);
        let shared = pool.submit(|_: ()| "the one value".to_owned(), &()).map(Result::unwrap).shared();
        let waiters: Vec<_> = (0..8)
            .map(|_| {
                let shared = shared.clone();
                std::thread::spawn(move || block_on(shared))
            })
            .collect();
        gate(0).open();
        assert!(outcome(first).is_ok());
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), "the one value");
        }
    });
}

#[test]
fn b_10_waiting_for_the_first_for_all_and_for_a_time_gives_each_outcome_once() {
    both(|| {
        let pool = new_pool(3).unwrap();
        let mut slow = held(&pool, 0);
        assert!(slow.wait_timeout(Duration::ZERO).is_none(), "a zero limit: it runs");
        assert!(slow.wait_timeout(Duration::from_millis(20)).is_none(), "waiting is not killing");

        let fast = pool.submit(|n: u32| n, &1);
        let slow = match block_on(select(slow, fast)) {
            futures::future::Either::Right((value, slow)) => {
                assert_eq!(value.unwrap(), 1);
                slow
            }
            futures::future::Either::Left(_) => panic!("the gated task was first"),
        };

        let mut done = pool.submit(|n: u32| n, &2);
        block_on(std::future::poll_fn(|context| match done.is_finished() {
            true => Poll::Ready(()),
            false => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }));
        assert_eq!(done.wait_timeout(Duration::ZERO).unwrap().unwrap(), 2);

        let body = |n: u32| if n.is_multiple_of(2) { n } else { panic!("odd") };
        let mixed: Vec<_> = (0..20).map(|n| pool.submit(body, &n)).collect();
        for (n, result) in block_on(join_all(mixed)).into_iter().enumerate() {
            match result {
                Ok(value) => assert!(value as usize == n && n % 2 == 0),
                Err(error) => assert!(error.is_panicked() && n % 2 == 1),
            }
        }
        gate(0).open();
        assert!(outcome(slow).is_ok());
    });
}

/// Counts how often it is woken, and tells.
struct Counting {
    woken: AtomicUsize,
    tell: mpsc::Sender<()>,
}

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::SeqCst);
        let _ = self.tell.send(());
    }
}

#[test]
fn b_11_a_task_that_moves_between_runtimes_wakes_the_last_one_once() {
    both(|| {
        let pool = new_pool(1).unwrap();
        for round in 0..100 {
            let mut task = held(&pool, round);
            let counting = || {
                let (tell, told) = mpsc::channel();
                (Arc::new(Counting { woken: AtomicUsize::new(0), tell }), told)
            };
            let ((a, _told_a), (b, told_b)) = (counting(), counting());
            assert!(task.poll_unpin(&mut Context::from_waker(&Waker::from(a.clone()))).is_pending());
            let moved = std::thread::spawn({
                let b = b.clone();
                move || {
                    let pending = task.poll_unpin(&mut Context::from_waker(&Waker::from(b))).is_pending();
                    (pending, task)
                }
            });
            let (pending, mut task) = moved.join().unwrap();
            assert!(pending);
            gate(round).open();
            told_b.recv_timeout(BOUND).expect("hang: a lost wake-up");
            let ready = task.poll_unpin(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(ready, Poll::Ready(Ok(_))), "woken before the outcome was there");
            let _later = outcome(pool.submit(|_: ()| (), &()));
            assert_eq!((a.woken.load(Ordering::SeqCst), b.woken.load(Ordering::SeqCst)), (0, 1));
        }
    });
}

#[test]
fn b_11_a_task_polled_in_vain_on_one_runtime_ends_on_another() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let tokio = tokio::runtime::Runtime::new().unwrap();
        for round in 0..50 {
            let mut task = held(&pool, round);
            let pending = tokio.block_on(async { futures::poll!(&mut task).is_pending() });
            assert!(pending);
            let opener = std::thread::spawn(move || gate(round).open());
            assert!(smol::block_on(task).is_ok());
            opener.join().unwrap();
        }
    });
}

#[test]
fn b_13_every_worker_holds_one_task_whatever_the_number_of_cores() {
    both(|| {
        let cores = std::thread::available_parallelism().unwrap().get();
        let workers = 2 * cores + 2;
        let pool = new_pool(workers).unwrap();
        for _ in 0..20 {
            let meeting = |parties: u32| meet(0, parties);
            let tasks: Vec<_> = (0..workers).map(|_| pool.submit(meeting, &(workers as u32))).collect();
            tasks.into_iter().for_each(|task| outcome(task).unwrap());
        }
    });
}

#[test]
fn b_13_a_short_task_does_not_wait_behind_a_long_one_while_a_worker_idles() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for round in 0..100 {
            // Both workers busy, many short tasks queued with either; then one worker becomes free.
            let (long, other) = (held(&pool, 2 * round), held(&pool, 2 * round + 1));
            let short: Vec<_> = (0..40_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
            gate(2 * round + 1).open();
            for (n, task) in short.into_iter().enumerate() {
                assert_eq!(outcome(task).unwrap() as usize, n, "round {round}");
            }
            assert!(!long.is_finished());
            gate(2 * round).open();
            assert!(outcome(long).is_ok() && outcome(other).is_ok());
        }
    });
}

/// A thread that waits for a task behind one that runs, seen asleep. It gives what the task ended with.
fn seated(task: Task<u32>) -> std::thread::JoinHandle<Result<u32, TaskError>> {
    let (said, heard) = mpsc::channel();
    let waits = std::thread::spawn(move || {
        said.send(nix::unistd::gettid().as_raw() as u32).unwrap();
        task.wait()
    });
    let thread = heard.recv_timeout(BOUND).unwrap();
    eventually("the waiter sleeps", || process(thread).is_some_and(|thread| thread.state == 'S'));
    waits
}

#[test]
fn who_sleeps_for_a_task_learns_of_it_when_another_worker_runs_it() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        let (first, second) = (held(&pool, 0), held(&pool, 1));
        // One behind each of those that run, so one of them has to move, whoever is free first.
        let behind = [0, 1].map(|_| seated(pool.submit(|_: ()| std::process::id(), &())));
        gate(1).open();
        let free = outcome(second).unwrap();
        for waits in behind {
            assert_eq!(waits.join().unwrap().unwrap(), free);
        }
        assert!(!first.is_finished());
        gate(0).open();
        outcome(first).unwrap();
    });
}

#[test]
fn who_sleeps_for_a_task_learns_of_it_when_others_call_it_off_or_end_it() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let first = held(&pool, 0);
        let task = pool.submit(|_: ()| 7, &());
        let handle = task.handle();
        let waits = seated(task);
        assert!(handle.cancel());
        assert!(waits.join().unwrap().unwrap_err().is_cancelled());
        let task = pool.submit(|_: ()| 7, &());
        let waits = seated(task);
        // Its worker is lost with the task in front of it; a successor runs it.
        first.kill();
        assert_eq!(waits.join().unwrap().unwrap(), 7);
        assert!(outcome(first).unwrap_err().is_cancelled());
        let running = held(&pool, 1);
        let handle = running.handle();
        let waits = seated(running);
        handle.kill();
        assert!(waits.join().unwrap().unwrap_err().is_cancelled());
        let waits = seated(held(&pool, 1));
        pool.terminate();
        assert!(matches!(waits.join().unwrap(), Err(TaskError::Terminated)));
    });
}

#[test]
fn b_15_a_task_submitted_after_close_ends_with_closed() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let held = held(&pool, 0);
        let close = pool.close();
        let late = pool.submit(|n: u32| n, &1);
        assert!(outcome(late).unwrap_err().is_closed());
        assert!(!held.is_finished(), "it waited for nothing");
        gate(0).open();
        assert!(outcome(held).is_ok(), "submitted before");
        close.wait();
        assert!(outcome(pool.submit(|n: u32| n, &1)).unwrap_err().is_closed());
        assert!(children().is_empty());
    });
}

#[test]
fn tasks_end_on_tokio() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let tokio =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        tokio.block_on(async {
            let spawned: Vec<_> = (0..500_u64)
                .map(|n| {
                    let pool = pool.clone();
                    tokio::spawn(async move { pool.submit(|n: u64| n * n, &n).await.unwrap() })
                })
                .collect();
            for (n, task) in spawned.into_iter().enumerate() {
                let value = tokio::time::timeout(BOUND, task).await.expect("hang").unwrap();
                assert_eq!(value, (n * n) as u64);
            }
            tokio::time::timeout(BOUND, pool.close()).await.expect("hang: close");
        });
    });
}

#[test]
fn tasks_end_on_smol() {
    both(|| {
        let pool = new_pool(2).unwrap();
        smol::block_on(async {
            let submit = |n: u64| {
                let pool = pool.clone();
                smol::spawn(async move { pool.submit(|n: u64| n * n, &n).await.unwrap() })
            };
            let spawned: Vec<_> = (0..500).map(submit).collect();
            for (n, task) in spawned.into_iter().enumerate() {
                assert_eq!(task.await, (n * n) as u64);
            }
            pool.close().await;
        });
    });
}

#[test]
fn tasks_end_on_the_futures_executor() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let tasks: Vec<_> = (0..500_u64).map(|n| pool.submit(|n: u64| n * n, &n)).collect();
        let values = block_on(join_all(tasks));
        for (n, value) in values.into_iter().enumerate() {
            assert_eq!(value.unwrap(), (n * n) as u64);
        }
        block_on(pool.close());
        block_on(pool.closed());
    });
}

/// Polls another future on the same thread, in the middle of its own poll.
struct Nested(Pin<Box<dyn Future<Output = u32>>>);

impl Future for Nested {
    type Output = u32;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<u32> {
        self.0.as_mut().poll(context)
    }
}

#[test]
fn a_task_awaits_well_inside_other_futures_and_selects() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for _ in 0..200 {
            let (one, two) = (pool.submit(|n: u32| n, &1), pool.submit(|n: u32| n, &2));
            let nested = Nested(Box::pin(async { one.await.unwrap() + two.await.unwrap() }));
            assert_eq!(block_on(nested), 3);
        }
    });
}

#[test]
fn many_threads_wait_for_tasks_that_others_complete() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let (send, receive) = mpsc::sync_channel::<(u64, Task<u64>)>(64);
        let receive = Arc::new(std::sync::Mutex::new(receive));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let receive = receive.clone();
                scope.spawn(move || {
                    loop {
                        let next = receive.lock().unwrap().recv();
                        let Ok((n, task)) = next else { break };
                        let value = if n % 2 == 0 { block_on(task) } else { outcome(task) };
                        assert_eq!(value.unwrap(), n + 1);
                    }
                });
            }
            for n in 0..20_000 {
                send.send((n, pool.submit(|n: u64| n + 1, &n))).unwrap();
            }
            drop(send);
        });
    });
}

#[test]
fn an_archived_result_is_read_in_place() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let body = |n: u32| (0..n).map(|i| format!("entry {i}")).collect::<Vec<_>>();
        let archived = pool.submit(body, &1000).archived().wait().unwrap();
        assert_eq!(archived.len(), 1000);
        assert_eq!(archived[999], "entry 999");
        let archived = block_on(pool.submit(body, &3).archived()).unwrap();
        assert_eq!(
            archived.iter().map(|s| s.as_str()).collect::<Vec<_>>(),
            ["entry 0", "entry 1", "entry 2"]
        );
        let failed = pool.submit(|_: ()| -> u32 { panic!("no") }, &()).archived().wait();
        assert!(failed.unwrap_err().is_panicked());
    });
}

#[test]
fn task_ids_are_unique_among_the_living() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let first: Gate = gate(0);
        let task = held(&pool, 0);
        let queued: Vec<_> = (0..1000_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
        let ids: std::collections::HashSet<_> = queued.iter().map(Task::id).chain([task.id()]).collect();
        assert_eq!(ids.len(), 1001);
        assert_eq!(format!("{:?}", task.id()), format!("TaskId({})", task.id()));
        first.open();
        assert!(outcome(task).is_ok());
        queued.into_iter().for_each(|task| assert!(outcome(task).is_ok()));
    });
}
