//! Acceptance cases, group L and its neighbours: workers that ask the master.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Instant;

use forkring::{
    BoxFuture, Granularity, Pool, Service, ServiceErrorKind, Task, TaskError, View, WaitPolicy, Worker,
};
use futures::channel::oneshot;
use futures::executor::block_on;
use futures::future::join_all;
use futures::stream::{self, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use crate::crashes::at_full_strength;
use crate::payloads::Odd;
use crate::support::{
    BOUND, both, builder, cease_to_be_root, cell, children, collect_errors, counter, errors, eventually,
    gate, gone, outcome, quietly, scenario, signal,
};

/// A worker of a pool whose service answers a `Q` with an `A`.
type Asking<Q, A> = Worker<(), Service<Q, A>>;
type Numbers = Pool<(), Service<u32, u32>>;

fn ask(w: &Asking<u32, u32>, n: &View<u32>) -> Result<u32, forkring::ServiceError> {
    w.call(&n.to_native())
}

/// A task that asks, and returns the answer.
fn asks(pool: &Numbers, n: u32) -> Task<Result<u32, forkring::ServiceError>> {
    pool.submit_with(ask, &n)
}

/// Numbers from here on make the handlers below do something else than to double.
fn doubling(n: u32) -> u32 {
    match n {
        900 => panic!("the handler panics"),
        // Started, then held.
        901.. => {
            counter(n as usize - 900).bump();
            gate(n as usize - 900).wait();
            n
        }
        _ => n * 2,
    }
}

fn numbers(workers: usize) -> Numbers {
    builder().workers(workers).service(doubling).build().unwrap()
}

#[test]
fn l_01_each_task_makes_three_requests() {
    both(|| {
        let pool = numbers(3);
        let f = |w: &Asking<u32, u32>, n: &View<u32>| {
            let once = w.call(&n.to_native()).unwrap();
            let twice = w.call(&once).unwrap();
            [once, twice, w.call(&(twice % 100)).unwrap()]
        };
        let tasks: Vec<_> = (0..200_u32).map(|n| pool.submit_with(f, &n)).collect();
        for (n, task) in (0..).zip(tasks) {
            assert_eq!(task.wait().unwrap(), [n * 2, n * 4, n * 4 % 100 * 2]);
        }
    });
}

#[test]
fn l_01_other_workers_are_served_while_a_handler_blocks() {
    both(|| {
        let pool = numbers(3);
        let held = [901, 902].map(|n| asks(&pool, n));
        counter(1).wait_for(1);
        counter(2).wait_for(1);
        for n in 0..500 {
            assert_eq!(asks(&pool, n).wait().unwrap(), Ok(n * 2));
        }
        assert!(held.iter().all(|task| !task.is_finished()));
        gate(1).open();
        gate(2).open();
        assert_eq!(held.map(|task| task.wait().unwrap()), [Ok(901), Ok(902)]);
    });
}

#[test]
fn a_service_is_asked_from_inside_batches() {
    both(|| {
        let pool = numbers(2);
        for g in [1, 10, 100] {
            let stream = pool.map_with(0..300_u32, ask).granularity(Granularity::Fixed(g));
            assert!(stream.map(|r| r.unwrap().unwrap()).eq((0..300).map(|n| n * 2)));
        }
        let mut sum = 0;
        let builder = builder().workers(2).granularity(Granularity::Fixed(7)).service(doubling);
        builder.iter_stream_with(0..100_u32, ask, |r| sum += r.unwrap().unwrap()).unwrap();
        assert_eq!(sum, 9900);
    });
}

#[test]
fn a_result_from_before_a_call_does_not_wait_for_its_answer() {
    both(|| {
        for (round, policy) in
            [WaitPolicy::Adaptive, WaitPolicy::Park, WaitPolicy::Spin].into_iter().enumerate()
        {
            // Answers when this thread has had the result of the task before.
            let service = move |n: u32| {
                counter(round).wait_for(n);
                n
            };
            let pool = builder().workers(1).wait_policy(policy).service(service).build().unwrap();
            for n in 1..=if policy == WaitPolicy::Spin { 5 } else { 200 } {
                let quick = pool.submit(|n: u32| n, &n);
                let asking = asks(&pool, n);
                let answer = if n % 2 == 0 { quick.wait() } else { block_on(quick) };
                assert_eq!(answer.unwrap(), n);
                counter(round).bump();
                assert_eq!(asking.wait().unwrap().unwrap(), n);
            }
        }
    });
}

#[test]
fn a_task_that_asks_all_the_time_ends_and_others_are_heard_meanwhile() {
    both(|| {
        let pool = numbers(2);
        let f = |w: &Asking<u32, u32>, n: &View<u32>| {
            (0..n.to_native()).map(|n| u64::from(w.call(&(n % 100)).unwrap())).sum::<u64>()
        };
        let busy = [pool.submit_with(f, &20_000_u32), pool.submit_with(f, &20_000_u32)];
        // Taken back, submitted and asked from other threads while the service's threads look for the next call.
        let asking = thread::scope(|scope| {
            let threads = [0, 1].map(|_| scope.spawn(|| (0..50).map(|n| asks(&pool, n)).collect::<Vec<_>>()));
            threads.map(|thread| thread.join().unwrap())
        });
        for task in busy {
            assert_eq!(task.wait().unwrap(), 200 * (0..100).map(|n| n * 2).sum::<u64>());
        }
        for (n, task) in asking.into_iter().flat_map(|tasks| (0..).zip(tasks)) {
            assert_eq!(task.wait().unwrap().unwrap(), n * 2);
        }
    });
}

#[test]
fn d_23_a_handler_that_panics_is_an_error_in_the_task() {
    both(|| {
        std::panic::set_hook(Box::new(|_| ()));
        let pool = numbers(2);
        let f = |w: &Asking<u32, u32>, n: &View<u32>| (w.call(&n.to_native()), w.call(&21));
        for _ in 0..200 {
            let (first, second) = pool.submit_with(f, &900_u32).wait().unwrap();
            let error = first.unwrap_err();
            assert_eq!(error.kind(), ServiceErrorKind::Panicked);
            assert!(error.message().contains("the handler panics"), "{error}");
            assert_eq!(second.unwrap(), 42);
        }
        let asynchronous = builder().workers(1).service_async(|n: u32| async move { doubling(n) });
        let pool = asynchronous.build().unwrap();
        let early =
            builder().workers(1).service_async(|n: u32| std::future::ready(doubling(n))).build().unwrap();
        for pool in [pool, early] {
            let (first, second) = pool.submit_with(f, &900_u32).wait().unwrap();
            assert_eq!(first.unwrap_err().kind(), ServiceErrorKind::Panicked);
            assert_eq!(second.unwrap(), 42);
        }
    });
}

#[test]
fn d_22_a_worker_that_dies_in_a_call_leaves_no_answer_behind() {
    scenario(|| {
        let pool = numbers(1);
        for round in 1..=20_u32 {
            let task = asks(&pool, 900 + round);
            counter(round as usize).wait_for(1);
            let victim = pool.worker_pids()[0];
            signal(victim, Signal::SIGKILL);
            let Err(TaskError::WorkerLost(lost)) = task.wait() else { panic!() };
            assert_eq!(lost.pid(), victim);
            if round % 2 == 0 {
                // The old answer comes while the replacement waits for its own.
                let next = asks(&pool, 950 + round);
                counter(50 + round as usize).wait_for(1);
                gate(round as usize).open();
                gate(50 + round as usize).open();
                assert_eq!(next.wait().unwrap(), Ok(950 + round));
            } else {
                gate(round as usize).open();
            }
            assert_eq!(asks(&pool, round).wait().unwrap(), Ok(round * 2));
        }
        at_full_strength(&pool);
    });
}

#[test]
fn d_22_a_stuck_handler_of_a_dead_worker_does_not_block_the_replacement() {
    scenario(|| {
        // One worker, so one service thread; the handler of the dead one never returns.
        let pool = numbers(1);
        let task = asks(&pool, 901);
        counter(1).wait_for(1);
        signal(pool.worker_pids()[0], Signal::SIGKILL);
        assert!(task.wait().unwrap_err().is_worker_lost());
        let start = Instant::now();
        assert_eq!(asks(&pool, 4).wait().unwrap(), Ok(8));
        assert!(start.elapsed() < BOUND, "not before the stuck handler gave up");
        gate(1).open();
    });
}

static NUMBERS: OnceLock<Numbers> = OnceLock::new();

/// Uses the pool that it serves in one of many ways.
fn nesting(way: u32) -> u32 {
    let pool = NUMBERS.get().unwrap();
    let outcome = match way {
        0 => pool.submit(|n: u32| n, &7).wait(),
        1 => block_on(pool.submit(|n: u32| n, &7)),
        2 => pool.submit(|n: u32| n, &7).wait_timeout(BOUND * 2).unwrap(),
        3 => pool.map([7_u32], |n: u32| n).next().unwrap(),
        4 => {
            let mut last = None;
            pool.iter_stream([7_u32], |n: u32| n, |r| last = Some(r)).unwrap();
            last.unwrap()
        }
        _ => pool.broadcast(|_: &Asking<u32, u32>| 7_u32).remove(0),
    };
    match outcome {
        Ok(n) => n,
        Err(error) => {
            assert!(error.to_string().contains("deadlock"), "{error}");
            500
        }
    }
}

fn nested(way: u32) {
    let pool = builder().workers(1).service(nesting).build().unwrap();
    assert!(NUMBERS.set(pool.clone()).is_ok());
    for _ in 0..20 {
        assert_eq!(asks(&pool, way).wait().unwrap(), Ok(500));
        assert_eq!(pool.submit(|n: u32| n, &1).wait().unwrap(), 1);
    }
    pool.close().wait();
}

#[test]
fn l_03_a_handler_that_waits_for_its_own_pool_gets_an_error() {
    both(|| nested(0));
}

#[test]
fn l_03_a_handler_that_blocks_on_a_future_of_its_own_pool_gets_an_error() {
    both(|| nested(1));
}

#[test]
fn l_03_a_handler_that_waits_with_a_limit_gets_an_error() {
    both(|| nested(2));
}

#[test]
fn l_03_a_handler_that_maps_over_its_own_pool_gets_an_error() {
    both(|| nested(3));
}

#[test]
fn l_03_a_handler_that_streams_through_its_own_pool_gets_an_error() {
    both(|| nested(4));
}

#[test]
fn l_03_a_handler_that_broadcasts_to_its_own_pool_gets_an_error() {
    both(|| nested(5));
}

#[test]
fn l_03_an_async_handler_that_waits_for_its_own_pool_gets_an_error() {
    both(|| {
        let handler = |_: u32| async {
            let task = NUMBERS.get().unwrap().submit(|n: u32| n, &7);
            let error = task.await.unwrap_err();
            assert!(error.to_string().contains("deadlock"), "{error}");
            500
        };
        let pool = builder().workers(2).service_async(handler).build().unwrap();
        assert!(NUMBERS.set(pool.clone()).is_ok());
        // Both workers meet in their calls, or one is served by the other: then there is no deadlock to name.
        let pool1 = builder().workers(1).service_async(|n: u32| async move { n }).build().unwrap();
        assert_eq!(asks(&pool1, 3).wait().unwrap(), Ok(3));
        drop(pool);
        NUMBERS.get().unwrap().close().wait();
    });
}

#[test]
fn l_03_there_is_no_deadlock_while_another_worker_is_free() {
    both(|| {
        let pool = builder().workers(2).service(nesting).build().unwrap();
        assert!(NUMBERS.set(pool.clone()).is_ok());
        for n in 0..200 {
            assert_eq!(asks(&pool, n % 5).wait().unwrap(), Ok(7), "way {}", n % 5);
        }
        // With both in calls at once, each ends one way or the other.
        for n in 0..200 {
            let tasks = [asks(&pool, n % 5), asks(&pool, (n + 1) % 5)];
            for task in tasks {
                assert!(matches!(task.wait().unwrap(), Ok(7 | 500)));
            }
        }
        pool.close().wait();
    });
}

fn ends_in_deadlock<T: std::fmt::Debug>(outcome: Result<T, TaskError>) {
    let error = outcome.unwrap_err();
    assert!(error.to_string().contains("deadlock"), "{error}");
}

/// Blocks on its own pool's futures time and again.
fn polling(way: u32) -> u32 {
    let pool = NUMBERS.get().unwrap();
    for _ in 0..3 {
        match way {
            0 => ends_in_deadlock(block_on(pool.submit(|n: u32| n, &7))),
            1 => {
                let tasks = (0..3).map(|n| pool.submit(|n: u32| n, &n));
                block_on(join_all(tasks)).into_iter().for_each(ends_in_deadlock);
            }
            2 => ends_in_deadlock(block_on(pool.submit(|n: u32| n, &7).archived())),
            3 => {
                let stream = pool.map_stream(stream::iter(0..50_u32), |n: u32| n).window(2);
                let outcomes: Vec<_> = block_on(stream.collect());
                assert_eq!(outcomes.len(), 50);
                outcomes.into_iter().for_each(ends_in_deadlock);
            }
            _ => {
                // One after another is refused what it waits for, each in its own way.
                ends_in_deadlock(block_on(pool.submit(|n: u32| n, &7)));
                ends_in_deadlock(pool.submit(|n: u32| n, &7).wait());
                ends_in_deadlock(pool.map([7_u32], |n: u32| n).next().unwrap());
            }
        }
    }
    500
}

#[test]
fn l_03_a_handler_that_blocks_on_its_own_pool_time_and_again_gets_an_error_each_time() {
    both(|| {
        let pool = builder().workers(1).service(polling).build().unwrap();
        assert!(NUMBERS.set(pool.clone()).is_ok());
        for way in 0..5 {
            assert_eq!(outcome(asks(&pool, way)).unwrap(), Ok(500), "way {way}");
            assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
        }
        pool.close().wait();
    });
}

#[test]
fn l_03_an_async_handler_that_polls_its_own_pool_time_and_again_gets_an_error_each_time() {
    both(|| {
        let handler = |_: u32| async {
            for _ in 0..3 {
                let pool = NUMBERS.get().unwrap();
                let tasks: FuturesUnordered<_> = (0..3).map(|n| pool.submit(|n: u32| n, &n)).collect();
                tasks.for_each(async |outcome| ends_in_deadlock(outcome)).await;
                let stream = pool.map_stream(stream::iter(0..50_u32), |n: u32| n).window(2);
                stream.for_each(async |outcome| ends_in_deadlock(outcome)).await;
            }
            500
        };
        let pool = builder().workers(1).service_async(handler).build().unwrap();
        assert!(NUMBERS.set(pool.clone()).is_ok());
        for _ in 0..5 {
            assert_eq!(outcome(asks(&pool, 1)).unwrap(), Ok(500));
        }
        pool.close().wait();
    });
}

fn held_here(n: u32) -> u32 {
    gate(n as usize).wait();
    n
}

#[test]
fn l_03_a_handler_that_has_what_it_polled_for_does_not_count_as_waiting() {
    both(|| {
        let handler = |n: u32| {
            let pool = NUMBERS.get().unwrap();
            if n < 10 {
                // Each is polled while its task runs, by the other worker.
                let polled = || counter(30 + n as usize).bump();
                if n == 2 {
                    let mut stream = pool.map_stream(stream::iter([n]), held_here);
                    assert!(stream.next().now_or_never().is_none());
                    polled();
                    assert_eq!(block_on(stream.next()).unwrap().unwrap(), n);
                } else {
                    let mut task = pool.submit(held_here, &n);
                    assert!((&mut task).now_or_never().is_none());
                    polled();
                    let outcome = if n == 0 { block_on(task) } else { task.wait_timeout(BOUND).unwrap() };
                    assert_eq!(outcome.unwrap(), n);
                }
                counter(20 + n as usize).bump();
                gate(20 + n as usize).wait();
                return n;
            }
            counter(n as usize).bump();
            pool.submit(|n: u32| n, &n).wait().unwrap_or(500)
        };
        let pool = builder().workers(2).service(handler).build().unwrap();
        assert!(NUMBERS.set(pool.clone()).is_ok());
        for n in 0..3 {
            let first = asks(&pool, n);
            counter(30 + n as usize).wait_for(1);
            gate(n as usize).open();
            counter(20 + n as usize).wait_for(1);
            // The first handler works; this one waits for what its worker does then.
            let second = asks(&pool, 10 + n);
            counter(10 + n as usize).wait_for(1);
            gate(20 + n as usize).open();
            assert_eq!(outcome(first).unwrap(), Ok(n));
            assert_eq!(outcome(second).unwrap(), Ok(10 + n));
        }
        pool.close().wait();
    });
}

#[test]
fn l_03_a_broadcast_in_a_handler_names_the_deadlock_where_its_caller_would_have_to_run_it() {
    both(|| {
        for workers in [1, 2, 3] {
            static POOL: Mutex<Option<Numbers>> = Mutex::new(None);
            let handler = |_: u32| {
                let pool = POOL.lock().unwrap().clone().unwrap();
                let outcomes = pool.broadcast(|w: &Asking<u32, u32>| w.id());
                let (lost, brought): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_err);
                lost.into_iter().for_each(ends_in_deadlock);
                brought.len() as u32
            };
            let pool = builder().workers(workers).service(handler).build().unwrap();
            *POOL.lock().unwrap() = Some(pool.clone());
            for _ in 0..10 {
                assert_eq!(outcome(asks(&pool, 1)).unwrap(), Ok(workers as u32 - 1));
            }
            // Handlers that wait for each other's callers.
            let tasks: Vec<_> = (0..20).map(|n| asks(&pool, n)).collect();
            for task in tasks {
                assert!(outcome(task).unwrap().unwrap() < workers as u32);
            }
            *POOL.lock().unwrap() = None;
            pool.close().wait();
        }
    });
}

static HELD: Mutex<Option<Task<u32>>> = Mutex::new(None);

/// How many threads of the service sleep.
fn sleeping_handlers() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let stats = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("stat")).ok());
    stats.filter(|stat| stat.contains("service) S")).count()
}

#[test]
fn l_03_a_handler_of_a_dead_worker_does_not_count_as_waiting() {
    scenario(|| {
        let handler = |n: u32| {
            counter(n as usize).bump();
            let task = match n {
                1 => HELD.lock().unwrap().take().unwrap(),
                _ => NUMBERS.get().unwrap().submit(|n: u32| n, &2),
            };
            task.wait().unwrap_or_else(|error| panic!("{error}"))
        };
        let pool = Pool::builder().workers(2).service(handler).name("n").build().unwrap();
        assert!(NUMBERS.set(pool.clone()).is_ok());
        let held = pool.submit(
            |n: u32| {
                cell(0).store(u64::from(std::process::id()), SeqCst);
                counter(0).bump();
                gate(0).wait();
                n
            },
            &1,
        );
        counter(0).wait_for(1);
        let busy = cell(0).load(SeqCst) as u32;
        *HELD.lock().unwrap() = Some(held);
        let first = asks(&pool, 1);
        counter(1).wait_for(1);
        eventually("the handler sleeps", || sleeping_handlers() == 1);
        let victim = pool.worker_pids().into_iter().find(|&pid| pid != busy).unwrap();
        signal(victim, Signal::SIGKILL);
        assert!(first.wait().unwrap_err().is_worker_lost());
        gone(victim);
        // This one's handler waits too, but for a task that the busy worker will come to.
        let second = asks(&pool, 2);
        counter(2).wait_for(1);
        eventually("both handlers sleep", || sleeping_handlers() == 2 || second.is_finished());
        gate(0).open();
        assert_eq!(second.wait().unwrap(), Ok(2));
        pool.close().wait();
    });
}

#[test]
fn l_04_close_waits_for_a_task_in_a_call() {
    both(|| {
        let pool = numbers(2);
        let task = pool.submit_with(
            |w: &Asking<u32, u32>, n: &View<u32>| {
                let first = w.call(&n.to_native()).unwrap();
                // A call that begins while the pool closes is answered.
                first + w.call(&1).unwrap()
            },
            &901_u32,
        );
        counter(1).wait_for(1);
        let close = pool.close();
        assert!(pool.submit(|n: u32| n, &1).wait().unwrap_err().is_closed());
        assert!(!task.is_finished());
        gate(1).open();
        close.wait();
        assert_eq!(task.wait().unwrap(), 903);
        assert!(children().is_empty());
    });
}

#[test]
fn l_04_terminate_does_not_wait_for_handlers() {
    both(|| {
        let pool = builder().workers(2).service(doubling).name("n").build().unwrap();
        let tasks = [901, 902].map(|n| asks(&pool, n));
        counter(1).wait_for(1);
        counter(2).wait_for(1);
        pool.terminate();
        assert!(tasks.into_iter().all(|task| task.wait().is_err_and(|e| e.is_terminated())));
        assert!(children().is_empty());
        // The handlers' answers have nowhere to go, and do no harm.
        gate(1).open();
        gate(2).open();
        eventually("the handlers' threads leave", || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let mut names = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok());
            !names.any(|name| name.starts_with("forkring-servic"))
        });
    });
}

#[test]
fn l_04_a_handler_may_end_the_pool_that_it_serves() {
    both(|| {
        let handler = |n: u32| {
            NUMBERS.get().unwrap().terminate();
            n
        };
        let pool = builder().workers(1).service(handler).build().unwrap();
        assert!(NUMBERS.set(pool.clone()).is_ok());
        assert!(asks(&pool, 1).wait().unwrap_err().is_terminated());
        pool.closed().wait();
        assert!(children().is_empty());
    });
}

/// Waits for the end of the pool that it serves in one of many ways.
fn closing(way: u32) -> u32 {
    let pool = NUMBERS.get().unwrap();
    match way {
        0 => pool.close().wait(),
        1 => block_on(pool.close()),
        2 | 3 => {
            let closed = pool.closed();
            thread::spawn(move || {
                // As the handler waits, or before.
                NUMBERS.get().unwrap().close();
            });
            if way == 2 { closed.wait() } else { block_on(closed) }
        }
        _ => assert!(pool.close_within(std::time::Duration::from_millis(1)).wait().forced),
    }
    way
}

fn closes(way: u32) {
    let pool = builder().workers(2).service(closing).build().unwrap();
    assert!(NUMBERS.set(pool.clone()).is_ok());
    let asking = asks(&pool, way);
    match way {
        0..4 => assert_eq!(outcome(asking).unwrap(), Ok(way)),
        _ => assert!(outcome(asking).unwrap_err().is_terminated()),
    }
    pool.closed().wait();
    assert!(children().is_empty());
}

#[test]
fn l_04_a_handler_that_waits_until_its_own_pool_has_closed_is_not_waited_for() {
    both(|| closes(0));
}

#[test]
fn l_04_a_handler_that_blocks_on_the_close_of_its_own_pool_is_not_waited_for() {
    both(|| closes(1));
}

#[test]
fn l_04_a_handler_that_waits_for_the_end_of_its_own_pool_goes_on_when_that_closes() {
    both(|| closes(2));
}

#[test]
fn l_04_a_handler_that_blocks_on_the_end_of_its_own_pool_goes_on_when_that_closes() {
    both(|| closes(3));
}

#[test]
fn l_04_a_handler_that_closes_its_own_pool_within_a_limit_waits_for_it() {
    both(|| closes(4));
}

#[test]
fn l_04_an_async_handler_that_closes_its_own_pool_is_not_waited_for() {
    both(|| {
        let handler = |n: u32| async move {
            NUMBERS.get().unwrap().close().await;
            n
        };
        let pool = builder().workers(1).service_async(handler).build().unwrap();
        assert!(NUMBERS.set(pool.clone()).is_ok());
        assert_eq!(outcome(asks(&pool, 5)).unwrap(), Ok(5));
        pool.closed().wait();
    });
}

/// What a closure may capture that says when it is dropped: its receiver finds nobody left.
fn capture() -> (mpsc::Sender<()>, mpsc::Receiver<()>) {
    mpsc::channel()
}

fn is_dropped(receiver: &mpsc::Receiver<()>) -> bool {
    receiver.try_recv() == Err(mpsc::TryRecvError::Disconnected)
}

#[test]
fn l_04_what_a_handler_has_captured_goes_before_the_pool_has_ended() {
    both(|| {
        for round in 0..10 {
            let ((sync, first), (future, second), (made, third), (spawn, fourth)) =
                (capture(), capture(), capture(), capture());
            let sync = builder().workers(2).service(move |n: u32| (n * 2, &sync).0).build().unwrap();
            let here = move |n: u32| {
                let _ = &future;
                async move { n * 2 }
            };
            let here = builder().workers(2).service_async(here).build().unwrap();
            let elsewhere = move |n: u32| {
                let _ = &made;
                async move { n * 2 }
            };
            let elsewhere = builder().workers(2).service_async(elsewhere).service_on(move |future| {
                let _ = &spawn;
                block_on(future);
            });
            let elsewhere = elsewhere.build().unwrap();
            for (pool, of_handler) in [(sync, &first), (here, &second), (elsewhere, &third)] {
                let closed = pool.closed();
                for n in 0..20 {
                    assert_eq!(asks(&pool, n).wait().unwrap(), Ok(n * 2));
                }
                assert!(!is_dropped(of_handler));
                match round % 3 {
                    0 => pool.close().wait(),
                    1 => pool.terminate(),
                    _ => drop(pool),
                }
                closed.wait();
                assert!(is_dropped(of_handler), "round {round}");
            }
            // The thread that has handed the last call over may not be back yet.
            assert_eq!(fourth.recv_timeout(BOUND), Err(mpsc::RecvTimeoutError::Disconnected));
        }
    });
}

#[test]
fn l_04_a_handler_that_runs_keeps_what_it_has_captured() {
    both(|| {
        let (sender, receiver) = capture();
        let handler = move |n: u32| {
            counter(0).bump();
            gate(0).wait();
            let _ = &sender;
            n
        };
        let pool = builder().workers(1).service(handler).build().unwrap();
        let task = asks(&pool, 1);
        counter(0).wait_for(1);
        pool.terminate();
        assert!(outcome(task).unwrap_err().is_terminated());
        assert!(!is_dropped(&receiver));
        gate(0).open();
        assert_eq!(receiver.recv_timeout(BOUND), Err(mpsc::RecvTimeoutError::Disconnected));
    });
}

#[test]
fn l_04_a_call_that_its_runtime_never_starts_does_not_keep_the_handler() {
    both(|| {
        static NEVER_POLLED: Mutex<Vec<BoxFuture<'static, ()>>> = Mutex::new(Vec::new());
        let (sender, receiver) = capture();
        let handler = move |n: u32| {
            let _ = &sender;
            async move { n }
        };
        let keep = |future| {
            NEVER_POLLED.lock().unwrap().push(future);
            counter(0).bump();
        };
        let pool = builder().workers(1).service_async(handler).service_on(keep).build().unwrap();
        let task = asks(&pool, 1);
        counter(0).wait_for(1);
        pool.terminate();
        assert!(is_dropped(&receiver));
        assert!(outcome(task).unwrap_err().is_terminated());
        // One that is polled after all finds no handler.
        let late = std::mem::take(&mut *NEVER_POLLED.lock().unwrap());
        late.into_iter().for_each(block_on);
    });
}

#[test]
fn l_04_a_handler_that_panics_when_it_is_dropped_harms_nobody() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            counter(0).bump();
            panic!("dropped");
        }
    }
    both(|| {
        std::panic::set_hook(Box::new(|_| ()));
        let bomb = Bomb;
        let handler = move |n: u32| {
            let _ = &bomb;
            n * 2
        };
        let pool = builder().workers(1).service(handler).build().unwrap();
        assert_eq!(asks(&pool, 1).wait().unwrap(), Ok(2));
        pool.close().wait();
        assert_eq!(counter(0).get(), 1);
        assert!(pool.submit(|n: u32| n, &1).wait().unwrap_err().is_closed());
    });
}

/// Has the program, which is not root's from here on, start no thread as long as this lives. Threads that it has go on.
struct NoThreads(u64, u64);

impl NoThreads {
    fn begin() -> Self {
        cease_to_be_root();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
        setrlimit(Resource::RLIMIT_NPROC, 0, hard).unwrap();
        Self(soft, hard)
    }
}

impl Drop for NoThreads {
    fn drop(&mut self) {
        setrlimit(Resource::RLIMIT_NPROC, self.0, self.1).unwrap();
    }
}

#[test]
fn l_01_a_call_that_no_thread_can_be_started_for_is_refused_with_the_cause() {
    both(|| {
        quietly();
        let later = |n: u32| async move { n * 2 };
        let here = builder().workers(1).service_async(later).build().unwrap();
        let elsewhere = builder().workers(1).service_async(later).service_on(block_on).build().unwrap();
        let pools = [numbers(1), here, elsewhere];
        let no_threads = NoThreads::begin();
        for pool in &pools {
            for n in 0..3 {
                let error = outcome(asks(pool, n)).unwrap().unwrap_err();
                assert_eq!(error.kind(), ServiceErrorKind::Refused, "{error}");
                let text = error.to_string();
                assert!(
                    text.contains("thread could not be started") && text.contains("os error 11"),
                    "{text}"
                );
            }
        }
        drop(no_threads);
        for pool in pools {
            assert_eq!(outcome(asks(&pool, 5)).unwrap(), Ok(10));
            pool.close().wait();
        }
    });
}

#[test]
fn l_01_a_call_waits_for_a_thread_that_there_is_where_no_other_can_be_started() {
    both(|| {
        collect_errors();
        let pool = numbers(2);
        let first = asks(&pool, 901);
        counter(1).wait_for(1);
        let no_threads = NoThreads::begin();
        let second = asks(&pool, 5);
        eventually("the failure to start a thread", || !errors().is_empty());
        gate(1).open();
        assert_eq!((outcome(first).unwrap(), outcome(second).unwrap()), (Ok(901), Ok(10)));
        assert!(errors()[0].contains("a service thread could not be started"), "{:?}", errors());
        drop(no_threads);
        pool.close().wait();
    });
}

#[test]
fn l_04_a_task_that_is_dropped_in_a_call_leaves_the_worker_usable() {
    both(|| {
        let pool = numbers(1);
        for n in 1..=10 {
            let task = asks(&pool, 900 + n);
            counter(n as usize).wait_for(1);
            assert!(!task.cancel());
            drop(task);
            gate(n as usize).open();
            assert_eq!(asks(&pool, n).wait().unwrap(), Ok(n * 2));
        }
    });
}

type Bytes = Asking<Vec<u8>, Vec<u8>>;
const TEN: usize = 10_000_000;

fn reversed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.reverse();
    bytes
}

/// 10 MB in, 10 MB asked, 10 MB answered, 10 MB out.
fn everything_large(w: &Bytes, input: &View<Vec<u8>>) -> Vec<u8> {
    let mut bytes = w.decode::<Vec<u8>>(input).unwrap();
    bytes[0] = 3;
    let mut answer = w.call(&bytes).unwrap();
    assert_eq!((answer.len(), answer[TEN - 1], answer[0]), (TEN, 3, 9));
    answer[1] = 5;
    answer
}

fn large() -> Vec<u8> {
    let mut large = vec![1; TEN];
    large[TEN - 1] = 9;
    large
}

fn check(result: Result<Vec<u8>, TaskError>) {
    let result = result.unwrap();
    assert_eq!((result.len(), result[0], result[1], result[2], result[TEN - 1]), (TEN, 9, 5, 1, 3));
}

#[test]
fn m_07_all_workers_in_calls_and_everything_is_large() {
    both(|| {
        let pool = builder().workers(2).service(reversed).build().unwrap();
        let input = large();
        let tasks: Vec<_> = (0..8).map(|_| pool.submit_with(everything_large, &input)).collect();
        // Nobody takes a result before all are there.
        let small: Vec<_> = (0..600_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
        assert!(small.into_iter().map(|task| task.wait().unwrap()).eq(0..600));
        tasks.into_iter().for_each(|task| check(task.wait()));
        let stream = pool.map_with(vec![input; 6], everything_large).granularity(Granularity::Fixed(3));
        stream.for_each(check);
    });
}

#[test]
fn m_07_calls_get_through_while_the_response_ring_is_full() {
    both(|| {
        let pool = numbers(1);
        // Many small results that nobody takes, with calls between them, then many medium ones.
        let tasks: Vec<_> = (0..2000_u32).map(|n| asks(&pool, n % 800)).collect();
        let medium: Vec<_> = (0..100_u32)
            .map(|n| {
                let f = |w: &Asking<u32, u32>, n: &View<u32>| vec![w.call(&n.to_native()).unwrap(); 50_000];
                pool.submit_with(f, &n)
            })
            .collect();
        pool.close().wait();
        for (n, task) in (0..).zip(tasks) {
            assert_eq!(task.wait().unwrap(), Ok(n % 800 * 2));
        }
        for (n, task) in (0..).zip(medium) {
            assert_eq!(task.wait().unwrap(), vec![n * 2; 50_000]);
        }
    });
}

#[test]
fn m_08_a_handler_waits_for_what_another_workers_answered_call_does() {
    both(|| {
        let pool = numbers(2);
        for round in 1..=20 {
            let first = asks(&pool, 900 + round);
            counter(round as usize).wait_for(1);
            let second = pool.submit_with(
                |w: &Asking<u32, u32>, n: &View<u32>| {
                    let answer = w.call(&4);
                    gate(n.to_native() as usize).open();
                    answer
                },
                &round,
            );
            assert_eq!(first.wait().unwrap(), Ok(900 + round));
            assert_eq!(second.wait().unwrap(), Ok(8));
        }
    });
}

static ARRIVED: Mutex<Vec<oneshot::Sender<()>>> = Mutex::new(Vec::new());

/// Answers when three requests have arrived.
async fn three_together(n: u32) -> u32 {
    let (sender, receiver) = oneshot::channel();
    {
        let mut arrived = ARRIVED.lock().unwrap();
        arrived.push(sender);
        if arrived.len() == 3 {
            arrived.drain(..).for_each(|sender| sender.send(()).unwrap());
        }
    }
    receiver.await.unwrap();
    n + 1
}

fn meets_in_the_service(pool: &Numbers) {
    for _ in 0..50 {
        let tasks = [1, 2, 3].map(|n| asks(pool, n));
        assert_eq!(tasks.map(|task| task.wait().unwrap()), [Ok(2), Ok(3), Ok(4)]);
    }
}

#[test]
fn async_handlers_interleave_on_the_pools_own_executor() {
    both(|| {
        let pool = builder().workers(3).service_async(three_together).build().unwrap();
        meets_in_the_service(&pool);
        // Woken from another thread, and from inside its own poll.
        let handler = |n: u32| async move {
            let (sender, receiver) = oneshot::channel();
            std::thread::spawn(move || sender.send(n * 3).unwrap());
            futures::future::poll_fn(|context| {
                context.waker().wake_by_ref();
                if counter(0).bump() % 5 == 4 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            })
            .await;
            receiver.await.unwrap()
        };
        let pool = builder().workers(2).service_async(handler).build().unwrap();
        let stream = pool.map_with(0..200_u32, ask).granularity(Granularity::Fixed(5));
        assert!(stream.map(|r| r.unwrap().unwrap()).eq((0..200).map(|n| n * 3)));
    });
}

#[test]
fn async_handlers_run_on_tokio() {
    both(|| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let spawn = move |future: BoxFuture<'static, ()>| {
            handle.spawn(future);
        };
        let pool = builder().workers(3).service_async(three_together).service_on(spawn).build().unwrap();
        meets_in_the_service(&pool);
        let handle = runtime.handle().clone();
        let handler = |n: u32| async move {
            // Panics outside of a tokio runtime.
            tokio::task::spawn_blocking(move || n * 5).await.unwrap()
        };
        let builder = builder().workers(2).service_async(handler).service_on(move |future| {
            handle.spawn(future);
        });
        let pool = builder.build().unwrap();
        let stream = pool.map_with(0..200_u32, ask);
        assert!(stream.map(|r| r.unwrap().unwrap()).eq((0..200).map(|n| n * 5)));
    });
}

#[test]
fn a_handler_that_its_runtime_drops_is_an_error_in_the_task() {
    both(|| {
        std::panic::set_hook(Box::new(|_| ()));
        let service = || builder().workers(1).service_async(|n: u32| async move { n });
        let dropping = service().service_on(drop).build().unwrap();
        let panicking = service().service_on(|_| panic!("no more tasks")).build().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let handle = runtime.handle().clone();
        runtime.shutdown_background();
        let gone = service().service_on(move |future| drop(handle.spawn(future))).build().unwrap();
        // Polled once, then dropped.
        let pending = builder().workers(1).service_async(|_: u32| std::future::pending::<u32>());
        let once = |mut future: BoxFuture<'static, ()>| {
            let waker = futures::task::noop_waker();
            assert!(future.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
        };
        let polled = pending.service_on(once).build().unwrap();
        for pool in [dropping, panicking, gone, polled] {
            for _ in 0..3 {
                let error = asks(&pool, 1).wait().unwrap().unwrap_err();
                assert_eq!(error.kind(), ServiceErrorKind::Refused, "{error}");
            }
        }
    });
}

#[test]
fn requests_and_answers_that_cannot_be_encoded_decoded_or_are_too_large() {
    both(|| {
        std::panic::set_hook(Box::new(|_| ()));
        // The request names what the answer is to be.
        let pool = builder().workers(1).service(|(odd, n): (Odd, u32)| Odd(odd.0.max(n))).build().unwrap();
        type Odds = Asking<(Odd, u32), Odd>;
        let f = |w: &Odds, kinds: &View<(u32, u32)>| {
            let answer = w.call(&(Odd(kinds.0.to_native()), kinds.1.to_native()));
            (answer.map(|odd| odd.0), w.call(&(Odd(1), 2)).unwrap().0)
        };
        for (kinds, expected) in [
            ((Odd::UNWRITABLE, 0), ServiceErrorKind::Codec),
            ((Odd::UNREADABLE, 0), ServiceErrorKind::Codec),
            ((Odd::READ_PANICS, 0), ServiceErrorKind::Panicked),
            ((1, Odd::UNWRITABLE), ServiceErrorKind::Codec),
            ((1, Odd::WRITE_PANICS), ServiceErrorKind::Panicked),
            ((1, Odd::UNREADABLE), ServiceErrorKind::Codec),
        ] {
            let (first, second) = pool.submit_with(f, &kinds).wait().unwrap();
            assert_eq!(first.unwrap_err().kind(), expected, "{kinds:?}");
            assert_eq!(second, 2);
        }
        let pool =
            builder().workers(1).max_payload(100_000).service(|n: usize| vec![1_u8; n]).build().unwrap();
        let f = |w: &Asking<usize, Vec<u8>>, n: &View<usize>| {
            w.call(&(n.to_native() as usize)).map(|answer| answer.len())
        };
        assert_eq!(pool.submit_with(f, &90_000_usize).wait().unwrap(), Ok(90_000));
        let error = pool.submit_with(f, &200_000_usize).wait().unwrap().unwrap_err();
        assert!(error.kind() == ServiceErrorKind::Codec && error.to_string().contains("100000"), "{error}");
        let pool = builder().workers(1).max_payload(100_000).service(|v: Vec<u8>| v.len()).build().unwrap();
        let f = |w: &Asking<Vec<u8>, usize>, n: &View<usize>| w.call(&vec![1; n.to_native() as usize]);
        assert_eq!(pool.submit_with(f, &90_000_usize).wait().unwrap(), Ok(90_000));
        let error = pool.submit_with(f, &200_000_usize).wait().unwrap().unwrap_err();
        assert!(error.kind() == ServiceErrorKind::Codec && error.to_string().contains("100000"), "{error}");
    });
}

#[test]
fn a_limit_on_payloads_holds_for_answers_wherever_it_is_set() {
    both(|| {
        let pool = builder().workers(1).service(|n: usize| vec![1_u8; n]).max_payload(1000);
        match pool.build() {
            Err(error) => assert!(error.to_string().contains("max_payload"), "{error}"),
            Ok(pool) => {
                let f = |w: &Asking<usize, Vec<u8>>, n: &View<usize>| {
                    w.call(&(n.to_native() as usize)).map(|answer| answer.len())
                };
                assert!(pool.submit_with(f, &5000_usize).wait().unwrap().is_err());
            }
        }
    });
}

#[test]
fn m_12_a_slow_codec_of_a_call_delays_only_its_own_task() {
    both(|| {
        let pool = builder().workers(2).service(|odd: Odd| odd).build().unwrap();
        // It waits where the service reads the request; gate 201 is opened by whoever has been served meanwhile.
        let f = |w: &Asking<Odd, Odd>, n: &View<u32>| w.call(&Odd(n.to_native())).map(|odd| odd.0);
        let slow = pool.submit_with(f, &Odd::SLOW_TO_READ);
        counter(201).wait_for(1);
        for n in 0..300 {
            assert_eq!(pool.submit_with(f, &n).wait().unwrap(), Ok(n));
        }
        assert!(!slow.is_finished());
        gate(201).open();
        assert_eq!(slow.wait().unwrap(), Ok(Odd::SLOW_TO_READ));
    });
}
