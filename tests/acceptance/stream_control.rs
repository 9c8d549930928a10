//! Acceptance cases, group F: streams that end before their source does, sources that fail; E-19.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;

use forkring::{Granularity, Map, Pool, Stopper, TaskError, View, Worker};
use nix::sys::signal::Signal;
use nix::unistd::gettid;

use crate::crashes::{Crash, at_full_strength, die};
use crate::payloads::Odd;
use crate::streams::{PULLED, counted, pulled};
use crate::support::{
    both, builder, cell, children, counter, eventually, exit_code_of, fixed, fork_and, gate, meet, new_pool,
    process, scenario, signal, zygote,
};

/// The thread that is to be seen asleep.
const SLEEPER: usize = 4001;

fn here_sleeps() {
    cell(SLEEPER).store(gettid().as_raw() as u64, SeqCst);
}

/// Waits until the thread that said so is seen asleep.
fn asleep() {
    let sleeps = || process(cell(SLEEPER).load(SeqCst) as u32).is_some_and(|thread| thread.state == 'S');
    eventually("a thread sleeps", || cell(SLEEPER).load(SeqCst) != 0 && sleeps());
}

/// Both workers are free and nothing of a stream is queued in front of this.
fn idle(pool: &Pool) {
    let parties = pool.workers() as u32;
    assert_eq!(parties, 2);
    assert!(pool.broadcast(|_: &Worker| meet(0, 2)).into_iter().all(|r| r.is_ok()));
}

// ---- Stopper

/// Item 0 waits for gate 0; whoever runs is counted.
fn gated(n: u32) -> u32 {
    counter(0).bump();
    if n == 0 {
        gate(0).wait();
    }
    n
}

#[test]
fn stop_wakes_a_consumer_and_calls_off_what_has_not_started() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let stream = pool.map(counted(), gated).granularity(fixed(1)).unordered().window(20);
        let stopper = stream.stopper();
        let reader = std::thread::spawn(move || {
            here_sleeps();
            let mut stream = stream.indexed();
            let early: Vec<_> = stream.by_ref().take(19).collect();
            gate(1).open();
            (early, stream.collect::<Vec<_>>())
        });
        counter(0).wait_for(1);
        asleep();
        stopper.stop();
        // Those that were called off come while the first one still runs.
        gate(1).wait();
        stopper.stop();
        gate(0).open();
        let (early, late) = reader.join().unwrap();
        assert!(
            early.iter().all(|(i, r)| *i > 0 && r.as_ref().is_err_and(TaskError::is_cancelled)),
            "{early:?}"
        );
        assert!(matches!(late[..], [(0, Ok(0))]), "what is running goes on: {late:?}");
        assert_eq!((counter(0).get(), pulled()), (1, 20));
    });
}

#[test]
fn stop_ends_the_batch_that_is_running_after_its_item() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let stream = pool.map(counted(), gated).granularity(fixed(7)).window(21);
        let stopper = stream.stopper();
        let reader = std::thread::spawn(move || {
            here_sleeps();
            let mut results = Vec::new();
            let summary = stream.run(|r| results.push(r)).unwrap();
            (results, summary)
        });
        counter(0).wait_for(1);
        asleep();
        stopper.clone().stop();
        gate(0).open();
        let (results, summary) = reader.join().unwrap();
        assert!(matches!(results[0], Ok(0)));
        assert!(results[1..].iter().all(|r| r.as_ref().is_err_and(TaskError::is_cancelled)), "{results:?}");
        assert_eq!((results.len(), counter(0).get(), pulled()), (21, 1, 21));
        assert_eq!((summary.items, summary.ok, summary.failed, summary.stopped), (21, 1, 20, true));
    });
}

#[test]
fn stop_calls_off_even_if_the_consumer_is_away() {
    both(|| {
        let pool = new_pool(1).unwrap();
        for (round, g) in [1, 5].into_iter().enumerate() {
            let f = |(round, n): (usize, u32)| {
                counter(round).bump();
                if n == 1 {
                    gate(round).wait();
                }
                n
            };
            let items = (0..).map(move |n| (round, n));
            let mut stream = pool.map(items, f).unordered().granularity(fixed(g)).window(20);
            assert_eq!(stream.next().unwrap().unwrap(), 0);
            // The second item runs and others are queued; the consumer looks no more. The stopper comes late.
            counter(round).wait_for(2);
            stream.stopper().stop();
            gate(round).open();
            // One worker works in order, so when this has run, so has all that will.
            pool.submit(|_: ()| (), &()).wait().unwrap();
            assert_eq!(counter(round).get(), 2, "granularity {g}");
            let results: Vec<_> = stream.collect();
            assert_eq!(results.iter().filter(|r| matches!(r, Ok(1))).count(), 1);
            assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1, "{results:?}");
        }
    });
}

#[test]
fn stop_is_seen_by_the_task_that_runs() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for (round, g) in [1, 10].into_iter().enumerate() {
            let base = 2 * round as u32;
            let f = |w: &Worker, n: &View<u32>| {
                counter(0).bump();
                eventually("it is cancelled", || w.cancelled());
                n.to_native()
            };
            let stream = pool.map_with(0.., f).unordered().granularity(fixed(g)).window(100);
            let stopper = stream.stopper();
            let reader = std::thread::spawn(move || stream.run(|_| ()).unwrap());
            counter(0).wait_for(base + 2);
            stopper.stop();
            let summary = reader.join().unwrap();
            assert_eq!((summary.ok, summary.failed, summary.stopped), (2, summary.items - 2, true));
            assert_eq!(counter(0).get(), base + 2);
            idle(&pool);
        }
    });
}

#[test]
fn stop_lets_the_source_go_while_items_run() {
    both(|| {
        let pool = new_pool(1).unwrap();
        struct OpensGate;
        impl Drop for OpensGate {
            fn drop(&mut self) {
                gate(1).open();
            }
        }
        let held = OpensGate;
        let source = (0..).inspect(move |_: &u32| {
            let _ = &held;
        });
        let stream = pool.map(source, gated).window(1);
        let stopper = stream.stopper();
        let reader = std::thread::spawn(move || {
            here_sleeps();
            stream.collect::<Vec<_>>()
        });
        counter(0).wait_for(1);
        asleep();
        stopper.stop();
        gate(1).wait();
        assert!(!reader.is_finished());
        gate(0).open();
        assert!(matches!(reader.join().unwrap()[..], [Ok(0)]));
    });
}

#[test]
fn stop_before_the_first_pull_after_the_end_and_twice() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for g in [1, 10] {
            // Before.
            let mut stream = pool.map(counted(), |n: u32| n).granularity(fixed(g));
            stream.stopper().stop();
            assert!(stream.next().is_none() && stream.next().is_none());
            let stream = pool.map(counted(), |n: u32| n).granularity(fixed(g));
            stream.stopper().stop();
            let summary = stream.run(|_| panic!("a result")).unwrap();
            assert_eq!((summary.items, summary.batches, summary.stopped), (0, 0, true));
            assert_eq!(pulled(), 0);
            // After.
            let mut stream = pool.map(0..50_u32, |n: u32| n).granularity(fixed(g));
            let stopper = stream.stopper();
            assert!(stream.by_ref().map(Result::unwrap).eq(0..50));
            stopper.stop();
            stopper.stop();
            assert!(stream.next().is_none());
            drop(stream);
            stopper.stop();
            // A stopper keeps neither the pool nor another stream from anything.
            assert!(pool.map(0..50_u32, |n: u32| n).granularity(fixed(g)).map(Result::unwrap).eq(0..50));
        }
        let stopper = pool.map(counted(), |n: u32| n).stopper();
        drop(pool);
        eventually("it keeps no pool alive", || children().is_empty());
        stopper.stop();
    });
}

#[test]
fn stop_from_within_g_and_from_the_source() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for g in [1, 10, 100] {
            for ordered in [true, false] {
                cell(PULLED).store(0, SeqCst);
                let stream = pool.map(counted(), |n: u32| n).granularity(fixed(g));
                let stream = if ordered { stream } else { stream.unordered() };
                let stopper = stream.stopper();
                let at_the_stop = Cell::new(None);
                let (mut ok, mut cancelled) = (0, 0);
                let summary = stream
                    .run(|result| {
                        match result {
                            Ok(_) => ok += 1,
                            Err(TaskError::Cancelled) => cancelled += 1,
                            Err(error) => panic!("{error}"),
                        }
                        if ok == 50 {
                            stopper.stop();
                            at_the_stop.set(at_the_stop.get().or(Some(pulled())));
                        }
                    })
                    .unwrap();
                assert!(summary.stopped);
                assert_eq!(at_the_stop.get(), Some(pulled()), "the source was pulled after the stop");
                assert_eq!((summary.items, summary.ok, summary.failed), (pulled(), ok, cancelled));

                // From the source: the item that it gives then is the last one.
                let stopper = Mutex::new(None::<Stopper>);
                let source = (0..).inspect(|&n: &u32| {
                    if n == 20 {
                        stopper.lock().unwrap().as_ref().unwrap().stop();
                    }
                });
                let stream = pool.map(source, |n: u32| n).granularity(fixed(g));
                let stream = if ordered { stream } else { stream.unordered() };
                *stopper.lock().unwrap() = Some(stream.stopper());
                let results: Vec<_> = stream.indexed().collect();
                let cancelled =
                    |(_, r): &(u64, Result<u32, TaskError>)| matches!(r, Err(TaskError::Cancelled));
                assert_eq!(results.len(), 21);
                assert!(results.iter().filter(|r| cancelled(r)).any(|(i, _)| *i == 20), "{results:?}");
                assert!(results.iter().all(|r| r.1.is_ok() || cancelled(r)));
            }
        }
        idle(&pool);
    });
}

#[test]
fn stop_at_any_moment_gives_every_item_one_outcome_that_is_true() {
    both(|| {
        let pool = new_pool(2).unwrap();
        // Runs of the body of item n are counted in cell n.
        const ITEMS: usize = 3000;
        for round in 0..120_usize {
            let (g, ordered, stop_at) = ([1, 7, 100][round % 3], round % 2 == 0, round as u64 * 17);
            let f = |n: u32| {
                cell(n as usize).fetch_add(1, SeqCst);
                n
            };
            cell(PULLED).store(0, SeqCst);
            let stream = pool.map(counted().take(ITEMS), f).granularity(fixed(g)).window(300);
            let stream = if ordered { stream } else { stream.unordered() };
            let stopper = stream.stopper();
            let thread = std::thread::spawn(move || {
                while pulled() < stop_at {
                    std::hint::spin_loop();
                }
                stopper.stop();
                pulled()
            });
            let results: Vec<_> = stream.indexed().collect();
            // One item may have been on its way out of the source.
            assert!(thread.join().unwrap() + 1 >= pulled());
            assert_eq!(results.len() as u64, pulled());
            let mut seen = [false; ITEMS];
            for (place, (i, result)) in results.into_iter().enumerate() {
                assert!(!ordered || place as u64 == i);
                assert!(!std::mem::replace(&mut seen[i as usize], true), "item {i} has two outcomes");
                let ran = cell(i as usize).swap(0, SeqCst);
                match result {
                    Ok(n) => assert_eq!((u64::from(n), ran), (i, 1)),
                    Err(TaskError::Cancelled) => assert_eq!(ran, 0, "item {i} ran (granularity {g})"),
                    Err(error) => panic!("{i}: {error}"),
                }
            }
        }
    });
}

#[test]
fn stop_and_a_crash_of_the_item_that_runs() {
    scenario(|| {
        forkring::hooks::set_log_error(|_| ());
        let pool = Pool::new(1).unwrap();
        for (round, g) in [1, 10].into_iter().enumerate() {
            let f = |(round, n): (usize, u32)| {
                counter(round).bump();
                if n == 3 {
                    gate(round).wait();
                    die(Crash::Segv);
                }
                n
            };
            let items = (0..).map(move |n| (round, n));
            let stream = pool.map(items, f).granularity(fixed(g)).window(30);
            let stopper = stream.stopper();
            let reader = std::thread::spawn(move || stream.collect::<Vec<_>>());
            counter(round).wait_for(4);
            stopper.stop();
            gate(round).open();
            let results = reader.join().unwrap();
            for (i, result) in results.into_iter().enumerate() {
                match (i, result) {
                    (0..3, result) => assert_eq!(result.unwrap(), i as u32),
                    (3, Err(TaskError::WorkerLost(lost))) => assert_eq!(lost.signal(), Some(11)),
                    (4.., Err(TaskError::Cancelled)) => {}
                    (i, result) => panic!("{i}: {result:?}"),
                }
            }
            assert_eq!(counter(round).get(), 4);
            at_full_strength(&pool);
        }
    });
}

#[test]
fn e_19_a_stream_that_is_cancelled_ends_and_leaves_idle_workers() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for round in 0..2_u32 {
            let f = |w: &Worker, item: &View<(u32, u32)>| {
                let (round, n) = (item.0.to_native(), item.1.to_native());
                if n > 0 {
                    eventually("it is cancelled", || w.cancelled());
                } else {
                    gate(round as usize).wait();
                }
                n
            };
            // The first result comes when all items are on their way.
            let end = std::iter::from_fn(move || {
                gate(round as usize).open();
                None
            });
            let mut stream = pool.map_with((0..5_u32).map(move |n| (round, n)).chain(end), f);
            assert_eq!(stream.next().unwrap().unwrap(), 0);
            if round == 0 {
                stream.stopper().stop();
                let rest: Vec<_> = stream.by_ref().collect();
                assert_eq!(rest.len(), 4);
                assert!(rest.iter().all(|r| r.as_ref().map_or_else(TaskError::is_cancelled, |n| *n > 0)));
                assert!(rest.iter().filter(|r| r.is_ok()).count() <= 2, "more ran than there are workers");
                assert!(stream.next().is_none());
            } else {
                drop(stream);
            }
            idle(&pool);
        }
    });
}

// ---- what g returns

#[test]
fn g_stops_a_stream_by_break() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for g in [1, 10, 1000] {
            for ordered in [true, false] {
                cell(PULLED).store(0, SeqCst);
                let stream = pool.map(counted(), |n: u32| n).granularity(fixed(g));
                let stream = if ordered { stream } else { stream.unordered() };
                let (mut calls, mut at_break) = (0, 0);
                let summary = stream
                    .run(|result| {
                        result.unwrap();
                        calls += 1;
                        at_break = pulled();
                        if calls == 50 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                    })
                    .unwrap();
                assert_eq!((calls, pulled()), (50, at_break), "nothing is pulled or delivered after Break");
                assert_eq!((summary.ok, summary.failed, summary.items), (50, 0, pulled()));
                assert!(summary.stopped);
                idle(&pool);
            }
        }
    });
}

#[test]
fn after_a_break_running_items_see_it_and_run_does_not_wait_for_them() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let f = |w: &Worker, n: &View<u32>| {
            if n.to_native() == 0 {
                // Delivered when the other one runs.
                counter(0).wait_for(1);
            } else {
                counter(0).bump();
                eventually("it is cancelled", || w.cancelled());
                gate(0).wait();
                counter(1).bump();
            }
        };
        let mut calls = 0;
        let break_at_once = |_| {
            calls += 1;
            ControlFlow::Break(())
        };
        let summary = pool.map_with(0.., f).unordered().window(2).run(break_at_once).unwrap();
        assert_eq!((calls, summary.ok, summary.items, summary.stopped), (1, 1, 2, true));
        assert_eq!(counter(1).get(), 0);
        gate(0).open();
        idle(&pool);
        assert_eq!((counter(0).get(), counter(1).get()), (1, 1), "it went on");
    });
}

#[test]
fn every_iter_stream_takes_a_g_that_breaks_or_never_returns() {
    both(|| {
        std::panic::set_hook(Box::new(|_| ()));
        let builder = || builder().workers(2).granularity(fixed(10));
        let pool = builder().build().unwrap();
        let plain = |n: u32| n;
        let with = |_: &Worker, n: &View<u32>| n.to_native();
        let mut calls = 0;
        let mut third = |result: Result<u32, TaskError>| {
            result.unwrap();
            calls += 1;
            if calls % 3 == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        for summary in [
            pool.iter_stream(0.., plain, &mut third),
            pool.iter_stream_with(0.., with, &mut third),
            builder().iter_stream(0.., plain, &mut third),
            builder().iter_stream_with(0.., with, &mut third),
            pool.try_map((0..).map(Ok::<_, ()>), plain).run(|result| third(result.unwrap())),
        ] {
            let summary = summary.unwrap();
            assert_eq!((summary.ok, summary.failed, summary.stopped), (3, 0, true));
        }
        let goes_on = |_: Result<u32, TaskError>| ControlFlow::Continue(());
        let summary = pool.iter_stream(0..100, plain, goes_on).unwrap();
        assert_eq!((summary.ok, summary.stopped), (100, false));
        // Closures whose type is that of a panic.
        for run in [
            catch_unwind(AssertUnwindSafe(|| pool.iter_stream(0.., plain, |_| panic!("g")))),
            catch_unwind(AssertUnwindSafe(|| pool.iter_stream_with(0.., with, |_| panic!("g")))),
            catch_unwind(AssertUnwindSafe(|| builder().iter_stream(0.., plain, |_| panic!("g")))),
            catch_unwind(AssertUnwindSafe(|| builder().iter_stream_with(0.., with, |_| panic!("g")))),
            catch_unwind(AssertUnwindSafe(|| pool.map(0.., plain).run(|_| panic!("g")))),
        ] {
            assert_eq!(run.unwrap_err().downcast_ref(), Some(&"g"));
        }
        idle(&pool);
    });
}

// ---- sources that fail

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fault(u32);

/// Good items and faults: `true` is a fault.
fn faulty(is_fault: impl Fn(u32) -> bool) -> impl Iterator<Item = Result<u32, Fault>> {
    counted().map(move |n| if is_fault(n) { Err(Fault(n)) } else { Ok(n) })
}

#[test]
fn f_12_an_error_of_the_source_comes_in_its_place() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let faults: [&dyn Fn(u32) -> bool; 6] =
            [&|n| n == 0, &|n| n == 50, &|n| n == 99, &|n| (20..60).contains(&n), &|n| n % 3 == 1, &|_| true];
        for (case, is_fault) in faults.into_iter().enumerate() {
            for g in [1, 2, 4, 1000] {
                let source = || faulty(is_fault).take(100);
                let f = |n: u32| if n == 77 { panic!("77") } else { n };
                let judge = |n: u32, result: Result<Result<u32, TaskError>, Fault>| match result {
                    Err(fault) => assert!(is_fault(n) && fault == Fault(n), "{n}: {fault:?}"),
                    Ok(Ok(value)) => assert!(!is_fault(n) && value == n && n != 77, "{n}: {value}"),
                    Ok(Err(error)) => assert!(!is_fault(n) && n == 77 && error.is_panicked(), "{n}: {error}"),
                };
                let context = format!("case {case}, granularity {g}");
                let stream = pool.try_map(source(), f).granularity(fixed(g));
                let in_order: Vec<_> = stream.collect();
                assert_eq!(in_order.len(), 100, "{context}");
                (0..).zip(in_order).for_each(|(n, result)| judge(n, result));

                let stream = pool.try_map(source(), f).granularity(fixed(g)).window(5).indexed();
                for (n, (i, result)) in (0..).zip(stream) {
                    assert_eq!(i, u64::from(n), "{context}");
                    judge(n, result);
                }

                let mut seen = [false; 100];
                for (i, result) in pool.try_map(source(), f).granularity(fixed(g)).unordered().indexed() {
                    assert!(!std::mem::replace(&mut seen[i as usize], true), "{context}: {i} comes twice");
                    judge(i as u32, result);
                }
                assert_eq!(seen, [true; 100], "{context}");

                let (stream, mut next) = (pool.try_map(source(), f).granularity(fixed(g)).indexed(), 0);
                let summary = stream.run(|(i, result)| {
                    assert_eq!(i, next, "{context}");
                    next += 1;
                    judge(i as u32, result);
                });
                assert_eq!((summary.unwrap().items, next), (100, 100), "{context}");

                let mut n = 0;
                let summary = pool.try_map(source(), f).granularity(fixed(g)).run(|result| {
                    judge(n, result);
                    n += 1;
                });
                let summary = summary.unwrap();
                let failed = (0..100).filter(|&n| is_fault(n) || n == 77).count() as u64;
                assert_eq!((summary.items, summary.ok, summary.failed), (100, 100 - failed, failed));
                assert!(!summary.stopped);
            }
        }
        assert!(pool.map(0..50_u32, |n: u32| n).map(Result::unwrap).eq(0..50));
    });
}

#[test]
fn f_12_errors_of_the_source_wait_for_the_items_before_them_within_the_window() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for (round, g) in [1, 4].into_iter().enumerate() {
            cell(PULLED).store(0, SeqCst);
            let source = faulty(|n| n > 0).map(move |item| item.map(|_| round));
            let mut stream =
                pool.try_map(source, |round: usize| gate(round).wait()).granularity(fixed(g)).window(40);
            let reader = std::thread::spawn(move || {
                here_sleeps();
                (stream.next().unwrap(), stream)
            });
            asleep();
            eventually("the source rests", || {
                let before = pulled();
                pool.submit(|_: ()| (), &()).wait().unwrap();
                before == pulled()
            });
            assert!((1..=41).contains(&pulled()), "{} pulled at granularity {g}", pulled());
            assert!(!reader.is_finished());
            gate(round).open();
            let (first, stream) = reader.join().unwrap();
            assert!(matches!(first, Ok(Ok(()))));
            // For ever errors, and never more ahead than the window.
            for (n, result) in (1..500).zip(stream) {
                assert_eq!(result.unwrap_err(), Fault(n));
                assert!(pulled() <= u64::from(n) + 82, "{} pulled at {n}", pulled());
            }
        }
    });
}

#[test]
fn f_12_an_unordered_error_of_the_source_does_not_wait() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let source = faulty(|n| n > 0);
        let f = |_: u32| {
            counter(0).bump();
            gate(0).wait();
        };
        let mut stream = pool.try_map(source, f).unordered();
        for n in 1..300 {
            assert_eq!(stream.next().unwrap().unwrap_err(), Fault(n));
        }
        counter(0).wait_for(1);
        stream.stopper().stop();
        gate(0).open();
        let rest: Vec<_> = stream.collect();
        assert_eq!(rest.iter().filter(|r| matches!(r, Ok(Ok(())))).count(), 1);
        assert!(pulled() <= 302);
    });
}

#[test]
fn items_that_cannot_be_sent_do_not_make_a_stream_run_away() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for g in [1, 10] {
            for ordered in [true, false] {
                cell(PULLED).store(0, SeqCst);
                let source = counted().map(|_| Odd(Odd::UNWRITABLE));
                let stream = pool.map(source, |odd: Odd| odd.0).granularity(fixed(g)).window(20);
                let stream = if ordered { stream } else { stream.unordered() };
                for (n, result) in (1..=100).zip(stream) {
                    assert!(result.unwrap_err().is_encode());
                    assert!(pulled() <= n + 40, "{} pulled at {n}", pulled());
                }
            }
        }
    });
}

// ---- pools that end under a stream

/// A stream over an infinite source ends when its pool does, with the error of one item more; then nothing more is pulled.
fn ends_with_its_pool(g: usize, end: impl FnOnce(&Pool), expected: impl Fn(&TaskError) -> bool) {
    cell(PULLED).store(0, SeqCst);
    let pool = new_pool(2).unwrap();
    let streams: Vec<Map<_, u32>> =
        (0..4).map(|_| pool.map(counted(), |n: u32| n).granularity(fixed(g))).collect();
    let [mut ordered, unordered, untouched, run]: [Map<_, u32>; 4] = streams.try_into().ok().unwrap();
    let mut unordered = unordered.unordered();
    for n in 0..50 {
        assert_eq!(ordered.next().unwrap().unwrap(), n);
        unordered.next().unwrap().unwrap();
    }
    let before = pulled();
    let delivered = cell(PULLED + 2);
    delivered.store(0, SeqCst);
    let running = std::thread::spawn(move || {
        run.run(|_| {
            cell(PULLED + 2).fetch_add(1, SeqCst);
        })
    });
    eventually("it runs", || delivered.load(SeqCst) > 100);
    end(&pool);
    let summary = running.join().unwrap().unwrap();
    assert!(summary.stopped);
    assert_eq!(summary.items, summary.ok + summary.failed, "every item that was pulled has an outcome");
    assert_eq!(pulled(), before + summary.items);
    let judge = |stream: Map<_, u32>| {
        let rest: Vec<_> = stream.collect();
        assert!(rest.iter().all(|r| r.as_ref().map_or_else(&expected, |_| true)), "{rest:?}");
        assert!(rest.last().unwrap().is_err(), "{rest:?}");
        rest.len() as u64
    };
    let rest = judge(ordered) + judge(unordered);
    assert_eq!(rest + 100, before + 2);
    assert_eq!(judge(untouched), 1);
    assert_eq!(pulled(), before + summary.items + 3, "nothing else is pulled after the end");
    // Streams that begin then.
    cut_short(&pool, expected);
    let (stopped, before) = (pool.map(counted(), |n: u32| n), pulled());
    stopped.stopper().stop();
    assert_eq!((stopped.count(), pulled()), (0, before));
}

/// Streams on a pool that takes nothing more, or of another process, pull one item: it ends as a task would.
fn cut_short(pool: &Pool, expected: impl Fn(&TaskError) -> bool) {
    assert!(pool.submit(|n: u32| n, &1).wait().is_err_and(|error| expected(&error)));
    let f = |n: u32| n;
    for g in [Granularity::Auto, fixed(1), fixed(10)] {
        let before = pulled();
        let all: Result<Vec<u32>, TaskError> = pool.map(counted(), f).granularity(g).collect();
        assert!(expected(&all.unwrap_err()));
        assert!(pool.map_ref(&[1, 2], f).granularity(g).all(|r| expected(&r.unwrap_err())));
        let texts = ["a", "b"].map(str::to_owned);
        let mut texts = pool.map(texts, |text: String| text).granularity(g).unordered().indexed();
        assert!(texts.next().is_some_and(|(i, r)| i == 0 && expected(&r.unwrap_err())));
        assert!(texts.next().is_none() && texts.next().is_none());
        // What the source has there makes no difference.
        let mut tried = pool.try_map(faulty(|_| true), f).granularity(g);
        assert!(tried.next().is_some_and(|r| expected(&r.unwrap().unwrap_err())));
        assert!(tried.next().is_none());
        let (stream, mut results) = (pool.map(counted(), f).granularity(g).unordered(), 0);
        let summary = stream.run(|r| results += u32::from(expected(&r.unwrap_err()))).unwrap();
        assert_eq!((results, summary.items, summary.failed, summary.stopped), (1, 1, 1, true));
        assert_eq!(pulled(), before + 3);
        // There is nothing to lose.
        let summary = pool.map(0..0, f).granularity(g).run(|_| panic!("a result")).unwrap();
        assert_eq!((summary.items, summary.stopped), (0, false));
    }
}

#[test]
fn a_stream_that_is_cut_short_has_an_error() {
    both(|| {
        for g in [Granularity::Auto, fixed(1), fixed(10), fixed(1000)] {
            for ordered in [true, false] {
                let pool = new_pool(2).unwrap();
                // The source itself closes the pool, and so nothing is pulled afterwards but the item that tells.
                let closing = pool.clone();
                let source = counted().inspect(move |n| {
                    if *n == 50 {
                        drop(closing.close());
                    }
                });
                cell(PULLED).store(0, SeqCst);
                let stream = pool.map(source, |n: u32| n).granularity(g);
                let stream = if ordered { stream } else { stream.unordered() };
                let (results, last): (Vec<_>, Vec<_>) = stream.indexed().partition(|(i, _)| *i < 51);
                assert!(
                    results
                        .iter()
                        .all(|(i, r)| r.as_ref().map_or_else(TaskError::is_closed, |n| u64::from(*n) == *i))
                );
                assert!(matches!(last[..], [(51, Err(TaskError::Closed))]), "{last:?}");
                assert_eq!((results.len(), pulled()), (51, 52));
            }
        }
        let bound = builder().workers(1).bind(|n: u32| n).unwrap();
        bound.close().wait();
        assert!(bound.map(0..5).collect::<Result<Vec<u32>, _>>().unwrap_err().is_closed());
    });
}

#[test]
fn m_02_a_stream_on_an_inherited_pool_has_an_error() {
    scenario(|| {
        let inherited = Pool::new(1).unwrap();
        let pool = Pool::builder().workers(1).env(inherited.clone()).build().unwrap();
        let task = pool.submit_with(
            |w: &Worker<Pool>, _: &View<()>| cut_short(w.env(), TaskError::is_not_in_this_process),
            &(),
        );
        task.wait().unwrap();
        assert_eq!(inherited.map(0..5, |n: u32| n).map(Result::unwrap).sum::<u32>(), 10);
    });
}

#[test]
fn a_stream_ends_when_its_pool_is_terminated() {
    both(|| {
        for g in [1, 10, 1000] {
            ends_with_its_pool(g, Pool::terminate, TaskError::is_terminated);
        }
    });
}

#[test]
fn a_stream_ends_when_its_pool_is_closed() {
    both(|| {
        for g in [1, 10, 1000] {
            ends_with_its_pool(g, |pool| drop(pool.close()), TaskError::is_closed);
            eventually("nothing is left", || children().is_empty());
        }
    });
}

#[test]
fn a_stream_ends_when_its_pool_fails() {
    scenario(|| {
        forkring::hooks::set_log_error(|_| ());
        for g in [1, 10, 1000] {
            let kill = |pool: &Pool| {
                signal(zygote(), Signal::SIGKILL);
                pool.closed().wait();
            };
            ends_with_its_pool(g, kill, TaskError::is_pool_failed);
        }
    });
}

#[test]
fn a_close_does_not_stop_a_stream_whose_source_has_ended() {
    both(|| {
        for (round, g) in [1, 10, 100].into_iter().enumerate() {
            let (items, ended) = (2 * round, 2 * round + 1);
            let pool = new_pool(2).unwrap();
            let end = std::iter::from_fn(move || {
                gate(ended).open();
                None
            });
            let source = (0..100_u32).map(move |n| (items, n)).chain(end);
            let f = |(items, n): (usize, u32)| {
                gate(items).wait();
                n
            };
            let stream = pool.map(source, f).granularity(fixed(g)).window(200);
            let reader = std::thread::spawn(move || stream.run(|_| ()).unwrap());
            gate(ended).wait();
            // All messages are full, so they have been sent before the source was asked for one item more.
            drop(pool.close());
            gate(items).open();
            let summary = reader.join().unwrap();
            assert_eq!((summary.ok, summary.failed, summary.stopped), (100, 0, false));
            pool.close().wait();
        }
    });
}

#[test]
fn m_02_a_stream_that_a_fork_inherits_ends_there_and_goes_on_here() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        for g in [1, 10] {
            let mut stream = pool.map(0..500_u32, |n: u32| n).granularity(fixed(g));
            let stopper = stream.stopper();
            for n in 0..20 {
                assert_eq!(stream.next().unwrap().unwrap(), n);
            }
            let mut inherited = Some(stream);
            let child = fork_and(|| {
                stopper.stop();
                // What had come before the fork is in its memory too.
                let expected = |r: Result<u32, TaskError>| {
                    r.map_or_else(|error| error.is_not_in_this_process(), |n| (20..500).contains(&n))
                };
                let mut stream = inherited.take().unwrap();
                let well = stream.by_ref().take(10_000).all(expected) && stream.next().is_none();
                drop(stream);
                let fresh = pool.iter_stream(0.., |n: u32| n, |r| assert!(expected(r))).unwrap();
                i32::from(!(well && fresh.stopped && (fresh.items, fresh.failed) == (1, 1)))
            });
            assert_eq!(exit_code_of(child), 0);
            assert!(inherited.unwrap().map(Result::unwrap).eq(20..500));
        }
    });
}

// ---- the rest of group F

#[test]
fn f_10_a_stream_that_is_dropped_after_an_error_leaves_a_pool_that_works() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for (round, g) in [1, 10].into_iter().enumerate() {
            let f = |w: &Worker, item: &View<(u32, u32)>| {
                let (round, n) = (item.0.to_native() as usize, item.1.to_native());
                if n == 0 {
                    panic!("first");
                }
                // Longer than the test may take, unless it is cancelled.
                counter(round).bump();
                eventually("it is cancelled", || w.cancelled());
                counter(100 + round).bump();
            };
            let items = (0..101_u32).map(|n| (round as u32, n));
            let mut stream = pool.map_with(items, f).granularity(fixed(g)).unordered();
            assert!(stream.next().unwrap().unwrap_err().is_panicked());
            counter(round).wait_for(1);
            drop(stream);
            idle(&pool);
            let started = counter(round).get();
            // A worker that was free may have taken one more before the drop.
            assert!((1..=2).contains(&started), "{started} started");
            assert_eq!(counter(100 + round).get(), started, "the running ones saw it");
        }
    });
}

#[test]
fn f_11_a_large_error_first_and_a_slow_item_after_it() {
    both(|| {
        std::panic::set_hook(Box::new(|_| ()));
        let pool = new_pool(2).unwrap();
        for (round, g) in [1, 5].into_iter().enumerate() {
            let f = |(round, n): (usize, u32)| -> Result<u32, String> {
                match n {
                    0 => Err("x".repeat(9 << 20)),
                    1 => panic!("{}", "y".repeat(9 << 20)),
                    2 => {
                        counter(round).bump();
                        gate(round).wait();
                        Ok(n)
                    }
                    n => Ok(n),
                }
            };
            let stream = pool.map((0..10).map(move |n| (round, n)), f).granularity(fixed(g));
            let reader = std::thread::spawn(move || stream.collect::<Vec<_>>());
            counter(round).wait_for(1);
            assert!(!reader.is_finished());
            gate(round).open();
            let results = reader.join().unwrap();
            assert_eq!(results.len(), 10);
            assert_eq!(results[0].as_ref().unwrap().as_ref().unwrap_err().len(), 9 << 20);
            assert!(results[1].as_ref().unwrap_err().is_panicked());
            for (n, result) in results.into_iter().enumerate().skip(2) {
                assert_eq!(result.unwrap().unwrap(), n as u32);
            }
        }
        pool.close().wait();
        assert!(children().is_empty());
    });
}

#[test]
fn f_30_every_item_has_one_outcome_through_kills_and_cancels() {
    scenario(|| {
        forkring::hooks::set_log_error(|_| ());
        const ITEMS: u64 = 1_000_000;
        let pool = Pool::new(3).unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Others cancel, drop and stop on the same pool all the time.
            scope.spawn(|| {
                let mut round = 0_u32;
                while !over.load(SeqCst) {
                    round += 1;
                    let tasks: Vec<_> = (0..20).map(|n: u32| pool.submit(|n: u32| n, &n)).collect();
                    for task in tasks.iter().step_by(2) {
                        task.cancel();
                    }
                    let stream =
                        pool.map(0..1000_u32, |n: u32| n).granularity(fixed(1 + round as usize % 30));
                    let stopper = stream.stopper();
                    let mut stream = stream.unordered().indexed();
                    let mut seen = [false; 1000];
                    for (i, _) in stream.by_ref().take(round as usize % 100) {
                        assert!(!std::mem::replace(&mut seen[i as usize], true));
                    }
                    if round.is_multiple_of(3) {
                        stopper.stop();
                        stream.for_each(|(i, _)| assert!(!std::mem::replace(&mut seen[i as usize], true)));
                    }
                }
            });
            let mut seen = vec![false; ITEMS as usize];
            let (mut delivered, mut kills, mut lost) = (0_u64, 0_usize, 0_usize);
            let stream = pool.map(0..ITEMS, |n: u64| n ^ 0x5555).granularity(fixed(64)).unordered().indexed();
            for (i, result) in stream {
                assert!(!std::mem::replace(&mut seen[i as usize], true), "item {i} has two outcomes");
                match result {
                    Ok(n) => assert_eq!(n ^ 0x5555, i),
                    Err(error) if error.is_worker_lost() => lost += 1,
                    Err(error) => panic!("{i}: {error}"),
                }
                delivered += 1;
                if delivered.is_multiple_of(40_000) {
                    let pids = pool.worker_pids();
                    if let Some(&pid) = pids.get(kills % 3) {
                        kills += 1;
                        // It may have died of the last one a moment ago.
                        let _ =
                            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL);
                    }
                }
            }
            over.store(true, SeqCst);
            assert!(seen.iter().all(|&seen| seen), "every item has an outcome");
            assert!(kills >= 10, "{kills} kills");
            assert!(lost <= kills, "{lost} items lost to {kills} kills");
        });
        at_full_strength(&pool);
    });
}
