//! Acceptance cases, group F: streams, their order, batches, windows; and M-01, crashes inside a batch.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::SeqCst;

use forkring::{Granularity, Pool, TaskError, View, Worker};

use crate::crashes::{Crash, die};
use crate::payloads::Odd;
use crate::support::{
    both, builder, cell, children, counter, eventually, fixed, gate, meet, new_pool, return_freed_memory,
    rss_kib, scenario, signal,
};

/// Sizes 1, 6, n, n + 10 for n items, and one that does not divide n.
fn sizes(n: usize) -> [Granularity; 5] {
    [1, 6, 37, n, n + 10].map(fixed)
}

fn sorted<T: Ord>(mut values: Vec<T>) -> Vec<T> {
    values.sort();
    values
}

/// What the panic was about.
fn text_of(payload: &(dyn std::any::Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => String::new(),
    }
}

#[test]
fn f_01_ordered_equals_sequential() {
    both(|| {
        let pool = new_pool(4).unwrap();
        let mut stream = pool.map(0..1000_u64, |n: u64| n * n);
        for n in 0..1000 {
            assert_eq!(stream.next().unwrap().unwrap(), n * n);
        }
        assert!(stream.next().is_none());
        assert!(stream.next().is_none(), "an end is an end");
    });
}

#[test]
fn f_02_unordered_is_a_permutation() {
    both(|| {
        let pool = new_pool(4).unwrap();
        for g in sizes(1000) {
            let got = pool.map(0..1000_u64, |n: u64| n * n).unordered().granularity(g);
            let got: Vec<u64> = got.map(Result::unwrap).collect();
            assert_eq!(sorted(got), (0..1000).map(|n| n * n).collect::<Vec<u64>>(), "{g:?}");
        }
    });
}

#[test]
fn f_03_unordered_yields_the_fastest_first() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for round in 0..30_u32 {
            let items = (0..10).map(|n| round * 10 + n);
            let mut stream = pool
                .map(items, |n: u32| {
                    if n.is_multiple_of(10) {
                        gate(n as usize / 10).wait();
                    }
                    n
                })
                .unordered();
            let mut first: Vec<u32> = stream.by_ref().take(9).map(Result::unwrap).collect();
            first.sort_unstable();
            assert_eq!(first, (1..10).map(|n| round * 10 + n).collect::<Vec<_>>());
            gate(round as usize).open();
            assert_eq!(stream.next().unwrap().unwrap(), round * 10);
            assert!(stream.next().is_none());
        }
    });
}

/// Items pulled from a source so far.
pub(crate) const PULLED: usize = 4000;

pub(crate) fn counted() -> impl Iterator<Item = u32> + Send {
    (0..).inspect(|_| {
        cell(PULLED).fetch_add(1, SeqCst);
    })
}

pub(crate) fn pulled() -> u64 {
    cell(PULLED).load(SeqCst)
}

#[test]
fn f_04_an_ordered_stream_holds_back_no_more_than_its_window() {
    both(|| {
        let pool = new_pool(4).unwrap();
        let f = |n: u32| {
            if n == 0 {
                gate(0).wait();
            }
            counter(0).bump();
            n
        };
        let mut stream = pool.map(counted(), f).granularity(fixed(1)).window(32);
        let reader = std::thread::spawn(move || (stream.next().unwrap().unwrap(), stream));
        // All but the first complete, and still nothing more is pulled: nothing is left that could cause it.
        counter(0).wait_for(31);
        eventually("every pulled item but one has run", || u64::from(counter(0).get()) + 1 == pulled());
        assert_eq!(pulled(), 32);
        assert!(!reader.is_finished());
        gate(0).open();
        let (first, stream) = reader.join().unwrap();
        assert_eq!(first, 0);
        assert!(pulled() <= 64, "{}", pulled());
        let next: Vec<u32> = stream.take(100).map(Result::unwrap).collect();
        assert_eq!(next, (1..101).collect::<Vec<_>>());
    });
}

#[test]
fn f_04_the_default_window_is_bounded_too_at_any_granularity() {
    both(|| {
        for (round, g) in [1, 10, 1000].into_iter().enumerate() {
            let pool = builder().workers(2).env(round).build().unwrap();
            cell(PULLED).store(0, SeqCst);
            let f = |w: &Worker<usize>, n: &View<u32>| {
                if n.to_native() == 0 {
                    counter(*w.env()).bump();
                    gate(*w.env()).wait();
                }
                n.to_native()
            };
            let mut stream = pool.map_with(counted(), f).granularity(fixed(g));
            let reader = std::thread::spawn(move || stream.next().unwrap().unwrap());
            counter(round).wait_for(1);
            let limit = 2 * 64 * g as u64 + g as u64;
            // It stands still: two looks with a task in between that every worker that is free has finished.
            eventually("the source rests", || {
                let before = pulled();
                pool.submit(|_: ()| (), &()).wait().unwrap();
                before == pulled()
            });
            assert!(pulled() <= limit, "{} pulled at granularity {g}", pulled());
            gate(round).open();
            assert_eq!(reader.join().unwrap(), 0);
        }
    });
}

#[test]
fn f_04_what_waits_for_a_slow_reader_stays_within_the_window() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for ordered in [true, false] {
            for g in [1, 5] {
                let base = u64::from(counter(0).get());
                cell(PULLED).store(0, SeqCst);
                let f = |n: u32| {
                    counter(0).bump();
                    n
                };
                let stream = pool.map(counted(), f).window(20).granularity(fixed(g));
                let mut stream = if ordered { stream } else { stream.unordered() };
                for read in 1..=100 {
                    stream.next().unwrap().unwrap();
                    // The reader is slow: everything that was sent has long been done when it comes back.
                    let sent = || pulled() - pulled() % g as u64;
                    eventually("the workers are done", || u64::from(counter(0).get()) - base >= sent());
                    let waiting = pulled() - read;
                    assert!(
                        waiting <= 20 + 2 * g as u64,
                        "{waiting} items wait (ordered {ordered}, granularity {g})"
                    );
                }
            }
        }
    });
}

#[test]
fn f_05_results_are_the_same_at_every_granularity() {
    both(|| {
        let pool = builder().workers(2).env(7_u64).build().unwrap();
        let n = 100_u64;
        let plain: Vec<u64> = (0..n).map(|n| n + 7).collect();
        let texts: Vec<String> = (0..n).map(|n| "x".repeat(n as usize)).collect();
        for g in sizes(n as usize) {
            let got: Vec<u64> = pool.map(0..n, |n: u64| n + 7).granularity(g).map(Result::unwrap).collect();
            assert_eq!(got, plain, "map, {g:?}");
            let f = |w: &Worker<u64>, n: &View<u64>| n.to_native() + w.env();
            let got: Vec<u64> = pool.map_with(0..n, f).granularity(g).map(Result::unwrap).collect();
            assert_eq!(got, plain, "map_with, {g:?}");
            let lengths = pool.map_ref(&texts, |text: String| text.len() as u64 + 7).granularity(g);
            assert_eq!(lengths.map(Result::unwrap).collect::<Vec<_>>(), plain, "map_ref, {g:?}");
            let got: Vec<String> =
                pool.map(0..n, |n: u64| "x".repeat(n as usize)).granularity(g).map(Result::unwrap).collect();
            assert_eq!(got, texts, "results of every size, {g:?}");
            let got: Vec<String> =
                pool.map_ref(&texts, |text: String| text).granularity(g).map(Result::unwrap).collect();
            assert_eq!(got, texts, "items and results of every size, {g:?}");
            let units = pool.map(0..n, |_: u64| ()).granularity(g).map(Result::unwrap).count();
            assert_eq!(units, 100, "results without size, {g:?}");
            let got = pool.map((0..n).map(|_| ()), |(): ()| 5_u8).granularity(g).map(Result::unwrap);
            assert_eq!(got.map(u32::from).sum::<u32>(), 500, "items without size, {g:?}");
            let wide = pool.map(0..n, |n: u64| [u128::from(n); 4]).granularity(g).map(Result::unwrap);
            assert!(wide.eq((0..n).map(|n| [u128::from(n); 4])), "{g:?}");
            for (i, result) in pool.map(0..n, |n: u64| n).unordered().indexed().take(1000).collect::<Vec<_>>()
            {
                assert_eq!(result.unwrap(), i);
            }
            for (i, result) in pool.map(0..n, |n: u64| n).granularity(g).unordered().indexed() {
                assert_eq!(result.unwrap(), i, "indexed, {g:?}");
            }
            let ordered = pool.map(0..n, |n: u64| n).granularity(g).indexed();
            assert!(ordered.map(|(i, result)| (i, result.unwrap())).eq((0..n).map(|n| (n, n))), "{g:?}");
            let (stream, mut next) = (pool.map(0..n, |n: u64| n).granularity(g).indexed(), 0);
            let summary = stream.run(|(i, result)| {
                assert_eq!((i, result.unwrap()), (next, next), "indexed, run, {g:?}");
                next += 1;
            });
            assert_eq!((summary.unwrap().ok, next), (n, n));
        }
    });
}

/// 9 bytes a record, or 17: neither divides an arena of 4 MiB, so that some go around its end; and an item that panics
/// ends the run that it is in, not the batch.
#[test]
fn f_05_results_that_go_around_the_arena_are_all_there() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let n = 1_000_003_u64;
        let fails = |n: u64| n % 250_000 == 3;
        let f = |n: u64| if n % 250_000 == 3 { panic!("three") } else { u128::from(n) << 70 };
        let mut next = 0;
        for result in pool.map(0..n, f).granularity(fixed(2_000_000)) {
            match result {
                Ok(value) => assert_eq!(value, u128::from(next) << 70),
                Err(TaskError::Panicked(_)) => assert!(fails(next), "{next}"),
                Err(error) => panic!("{next}: {error}"),
            }
            next += 1;
        }
        assert_eq!(next, n);
        let squares = pool.map(0..n, |n: u64| n * n).granularity(fixed(300_000));
        assert!(squares.map(Result::unwrap).eq((0..n).map(|n| n * n)));
    });
}

#[test]
fn f_05_iter_streams_give_the_same_at_every_granularity() {
    both(|| {
        let n = 100_u64;
        let expected: Vec<u64> = (0..n).map(|n| n + 7).collect();
        for g in sizes(n as usize) {
            let messages = n.div_ceil(match g {
                Granularity::Fixed(g) => g as u64,
                _ => unreachable!(),
            });
            let builder = || builder().workers(2).granularity(g);
            let offset = std::hint::black_box(7); // captured
            let mut got = Vec::new();
            let summary = builder().iter_stream(0..n, |n: u64| n + offset, |r| got.push(r.unwrap())).unwrap();
            assert_eq!(sorted(got), expected, "{g:?}");
            assert_eq!((summary.items, summary.ok, summary.failed, summary.stopped), (n, n, 0, false));
            assert_eq!(summary.batches, messages, "{g:?}");

            let mut got = Vec::new();
            let f = |w: &Worker<u64>, n: &View<u64>| n.to_native() + w.env() + offset - 7;
            builder().env(7_u64).iter_stream_with(0..n, f, |r| got.push(r.unwrap())).unwrap();
            assert_eq!(sorted(got), expected, "{g:?}");

            let bound = builder().bind(move |n: u64| n + offset).unwrap();
            assert!(bound.map(0..n).map(Result::unwrap).eq(expected.iter().copied()), "{g:?}");
            assert_eq!(bound.submit(&1).wait().unwrap(), 8);

            let pool = builder().build().unwrap();
            let mut got = Vec::new();
            let summary = pool.iter_stream(0..n, |n: u64| n + 7, |r| got.push(r.unwrap())).unwrap();
            assert_eq!(sorted(got), expected, "{g:?}");
            assert_eq!((summary.ok, summary.batches), (n, messages));
            let mut got = Vec::new();
            let f = |_: &Worker, n: &View<u64>| n.to_native() + 7;
            pool.iter_stream_with(0..n, f, |r| got.push(r.unwrap())).unwrap();
            assert_eq!(sorted(got), expected, "{g:?}");
        }
        assert!(children().is_empty(), "{:?}", children());
    });
}

/// A worker that is a process has a copy of its own.
#[test]
fn f_05_what_a_closure_captures_need_not_be_shared_between_threads() {
    scenario(|| {
        let offset = Cell::new(7);
        let mut got = Vec::new();
        let add = |n: u64| n + offset.replace(offset.get());
        let run = Pool::builder().workers(2).iter_stream(0..100, add, |r| got.push(r.unwrap()));
        assert_eq!((run.unwrap().ok, sorted(got)), (100, (7..107).collect()));
        let bound = Pool::builder().workers(2).bind(move |n: u64| n + offset.get()).unwrap();
        assert!(bound.map(0..100).map(Result::unwrap).eq(7..107));
    });
}

#[test]
fn f_05_a_closure_that_borrows_the_callers_stack_works() {
    both(|| {
        let table: Vec<String> = (0..50).map(|n| format!("<{n}>")).collect();
        let borrowed = &table;
        let mut got = Vec::new();
        builder()
            .workers(2)
            .granularity(fixed(4))
            .iter_stream(0..50_usize, |n: usize| borrowed[n].clone(), |r| got.push(r.unwrap()))
            .unwrap();
        assert_eq!(sorted(got), sorted(table));
    });
}

#[test]
fn f_06_a_granularity_of_zero_is_an_error_everywhere() {
    both(|| {
        let pool = new_pool(1).unwrap();
        for bad in [fixed(0), fixed(usize::MAX)] {
            let error = pool.map(0..3_u32, |n: u32| n).granularity(bad).run(|_| ()).unwrap_err();
            assert!(error.to_string().contains("granularity"), "{error}");
            assert!(builder().workers(1).granularity(bad).build().is_err());
            let builder = builder().workers(1).granularity(bad);
            assert!(builder.iter_stream(0..3_u32, |n: u32| n, |_| panic!("ran")).is_err());
            let mut stream = pool.map(0..3_u32, |n: u32| n).granularity(bad);
            let panic = catch_unwind(AssertUnwindSafe(|| stream.next().is_none())).unwrap_err();
            assert!(text_of(&*panic).contains("granularity"));
        }
        assert_eq!(pool.submit(|n: u32| n, &5).wait().unwrap(), 5);
    });
}

#[test]
fn f_07_an_empty_input_ends_at_once_without_a_message() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let none = std::iter::empty::<u32>;
        for g in sizes(100) {
            assert!(pool.map(none(), |n: u32| n).granularity(g).next().is_none());
            assert!(pool.map(none(), |n: u32| n).granularity(g).unordered().next().is_none());
            let summary = pool.map(none(), |n: u32| n).granularity(g).run(|_| panic!("a result")).unwrap();
            assert_eq!((summary.items, summary.ok, summary.failed, summary.batches), (0, 0, 0, 0));
            let builder = builder().workers(1).granularity(g);
            let summary = builder.iter_stream(none(), |n: u32| n, |_| panic!("a result")).unwrap();
            assert_eq!(summary.batches, 0);
        }
    });
}

#[test]
fn f_08_fewer_items_than_workers() {
    both(|| {
        let pool = new_pool(8).unwrap();
        for n in [1, 3] {
            for g in [1, 2, 100] {
                let got = pool.map(0..n, |n: u32| n + 1).granularity(fixed(g)).map(Result::unwrap);
                assert!(got.eq(1..=n));
            }
        }
        let ids = pool.broadcast(|w: &Worker| w.id());
        assert_eq!(ids.into_iter().map(Result::unwrap).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
    });
}

#[test]
fn f_09_an_error_of_one_item_leaves_its_batch_mates_alone() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let f = |n: u32| if n == 50 { panic!("fifty") } else { n };
        for g in [1, 10, 100, 1000] {
            for (i, result) in pool.map(0..100_u32, f).granularity(fixed(g)).indexed() {
                match result {
                    Ok(n) => assert_eq!(u64::from(n), i),
                    Err(TaskError::Panicked(panic)) => {
                        assert_eq!((i, panic.message()), (50, "fifty"));
                        assert!(panic.location().contains("streams.rs:"), "{}", panic.location());
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            let summary = pool.map(0..100_u32, f).granularity(fixed(g)).run(|_| ()).unwrap();
            assert_eq!((summary.items, summary.ok, summary.failed), (100, 99, 1));
        }
    });
}

#[test]
fn items_and_results_that_cannot_be_encoded_or_decoded_keep_their_place() {
    both(|| {
        std::panic::set_hook(Box::new(|_| ()));
        let pool = builder().workers(2).max_payload(1 << 20).build().unwrap();
        let odd = [(3, Odd::UNWRITABLE), (4, Odd::UNWRITABLE), (17, Odd::UNREADABLE), (18, Odd::READ_PANICS)];
        let late =
            [(30, Odd::UNWRITABLE), (31, Odd::UNREADABLE), (32, Odd::WRITE_PANICS), (33, Odd::READ_PANICS)];
        for g in [1, 2, 5, 100] {
            for ordered in [true, false] {
                let items: Vec<(Odd, u32)> = (0..40_u32)
                    .map(|n| {
                        let own = odd.iter().find(|(at, _)| *at == n).map_or(n, |(_, kind)| *kind);
                        (Odd(own), late.iter().find(|(at, _)| *at == n).map_or(n, |(_, kind)| *kind))
                    })
                    .collect();
                let stream = pool.map(items, |(_, n): (Odd, u32)| Odd(n)).granularity(fixed(g));
                let stream = if ordered { stream } else { stream.unordered() };
                let mut seen = [0; 40];
                for (place, (i, result)) in stream.indexed().enumerate() {
                    seen[i as usize] += 1;
                    if ordered {
                        assert_eq!(place as u64, i);
                    }
                    match (i, result) {
                        (3 | 4 | 30, Err(error)) => assert!(error.is_encode(), "{i}: {error}"),
                        (17 | 31 | 33, Err(error)) => assert!(error.is_decode(), "{i}: {error}"),
                        (18 | 32, Err(error)) => assert!(error.is_panicked(), "{i}: {error}"),
                        (i, Ok(Odd(n))) => assert_eq!(u64::from(n), i),
                        (i, Err(error)) => panic!("{i}: {error}"),
                    }
                }
                assert_eq!(seen, [1; 40], "granularity {g}, ordered {ordered}");
            }
            let sizes = [10, 2 << 20, 20];
            let results: Vec<_> = pool.map(sizes, |n: usize| vec![1_u8; n]).granularity(fixed(g)).collect();
            assert_eq!(results[0].as_ref().unwrap().len(), 10);
            match results[1] {
                Err(TaskError::TooLarge { size, limit }) => assert!(size > 2 << 20 && limit == 1 << 20),
                _ => panic!("{:?}", results[1]),
            }
            assert_eq!(results[2].as_ref().unwrap().len(), 20);
            let items = sizes.map(|n| vec![1_u8; n]);
            let results: Vec<_> = pool.map(items, |v: Vec<u8>| v.len()).granularity(fixed(g)).collect();
            assert!(results[1].as_ref().is_err_and(TaskError::is_too_large), "{:?}", results[1]);
            assert_eq!((results[0].as_ref().ok(), results[2].as_ref().ok()), (Some(&10), Some(&20)));
        }
        // No worker was lost over it.
        assert!(pool.broadcast(|w: &Worker| w.generation()).into_iter().all(|g| g.unwrap() == 0));
    });
}

#[test]
fn a_serializer_that_panics_inside_a_batch_leaves_a_stream_that_goes_on() {
    both(|| {
        std::panic::set_hook(Box::new(|_| ()));
        let pool = new_pool(2).unwrap();
        for g in [1, 4, 100] {
            let items = (0..20_u32).map(|n| Odd(if n == 6 { Odd::WRITE_PANICS } else { n }));
            let mut stream = pool.map(items, |odd: Odd| odd.0).granularity(fixed(g)).indexed();
            let (mut panics, mut got) = (0, Vec::new());
            loop {
                match catch_unwind(AssertUnwindSafe(|| stream.next())) {
                    Ok(None) => break,
                    Ok(Some((i, Ok(n)))) => got.push((i, n)),
                    Ok(Some((i, Err(error)))) => assert_eq!(i, 6, "{error}"),
                    Err(_) => panics += 1,
                }
                assert!(panics < 2);
            }
            assert_eq!(panics, 1);
            let expected: Vec<_> = (0..20).filter(|&n| n != 6).map(|n| (u64::from(n), n)).collect();
            assert_eq!(got, expected, "granularity {g}");
        }
    });
}

#[test]
fn f_13_a_panic_in_g_goes_on_in_the_caller_after_a_clean_stop() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for g in [1, 10, 1000] {
            let mut seen = 0;
            let run = catch_unwind(AssertUnwindSafe(|| {
                pool.map(0..100_000_u32, |n: u32| n).granularity(fixed(g)).run(|_| {
                    seen += 1;
                    if seen == 50 {
                        std::panic::panic_any("from g");
                    }
                })
            }));
            assert_eq!(text_of(&*run.unwrap_err()), "from g");
            assert_eq!(seen, 50);
            let sum: u32 = pool.map(0..100_u32, |n: u32| n).granularity(fixed(g)).map(Result::unwrap).sum();
            assert_eq!(sum, 4950);
        }
        pool.close().wait();
        let run = catch_unwind(|| {
            let g = |_: Result<u32, TaskError>| std::panic::panic_any("from g");
            builder().workers(2).iter_stream(0..100_u32, |n: u32| n, g)
        });
        assert_eq!(text_of(&*run.unwrap_err()), "from g");
        eventually("nothing is left", || children().is_empty());
    });
}

#[test]
fn f_13_a_panic_in_the_source_goes_on_in_the_caller_too() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let source = || (0..100_u32).inspect(|&n| assert!(n < 50, "from the source"));
        for g in [1, 7] {
            let run = catch_unwind(AssertUnwindSafe(|| {
                pool.map(source(), |n: u32| n).granularity(fixed(g)).run(|r| assert!(r.is_ok()))
            }));
            assert!(text_of(&*run.unwrap_err()).contains("from the source"));
            assert_eq!(pool.map(0..100_u32, |n: u32| n).filter(Result::is_ok).count(), 100);
        }
        let run = catch_unwind(|| builder().workers(1).iter_stream(source(), |n: u32| n, |_| ()));
        assert!(run.is_err());
    });
}

#[test]
fn g_runs_in_the_callers_thread() {
    both(|| {
        let me = std::thread::current().id();
        let pool = new_pool(2).unwrap();
        let here = |_: Result<u32, TaskError>| assert_eq!(std::thread::current().id(), me);
        pool.iter_stream(0..500_u32, |n: u32| n, here).unwrap();
        builder().workers(2).iter_stream(0..50_u32, |n: u32| n, here).unwrap();
    });
}

#[test]
fn f_15_an_item_is_produced_only_when_the_window_has_room() {
    both(|| {
        let pool = new_pool(2).unwrap();
        const DONE: usize = 1;
        for window in [1, 3] {
            cell(DONE).store(0, SeqCst);
            let source = (0..200_u64).inspect(|&n| {
                let done = cell(DONE).load(SeqCst);
                assert!(n < window + done, "item {n} was pulled when {done} had completed");
            });
            let stream = pool.map(source, |n: u64| {
                cell(DONE).fetch_add(1, SeqCst);
                n
            });
            assert_eq!(cell(DONE).load(SeqCst), 0, "lazy");
            assert!(stream.window(window as usize).map(Result::unwrap).eq(0..200));
        }
        // Nothing at all is pulled before the first `next`.
        let stream = pool.map((0..3_u32).inspect(|_| panic!("pulled")), |n: u32| n);
        drop(stream.unordered().window(5).granularity(fixed(2)));
    });
}

#[test]
fn f_16_an_infinite_source_takes_no_memory_and_stops_when_dropped() {
    both(|| {
        return_freed_memory();
        let pool = new_pool(2).unwrap();
        // A worker that is held up for a while has its arenas filled, which are touched here before anything is measured.
        let echo = |_: &Worker, row: &View<[u8]>| row.to_vec();
        for row in pool.broadcast_with(echo, &vec![7_u8; (4 << 20) - 1024][..]) {
            assert_eq!(row.unwrap().len(), (4 << 20) - 1024);
        }
        for ordered in [true, false] {
            cell(PULLED).store(0, SeqCst);
            let stream = pool.map(counted(), |n: u32| n).granularity(fixed(500));
            let mut stream = if ordered { stream } else { stream.unordered() };
            assert_eq!(stream.by_ref().take(300_000).filter(Result::is_ok).count(), 300_000);
            let before = rss_kib(std::process::id());
            assert_eq!(stream.by_ref().take(700_000).filter(Result::is_ok).count(), 700_000);
            let after = rss_kib(std::process::id());
            assert!(after < before + 4096, "{before} KiB became {after} KiB (ordered {ordered})");
            drop(stream);
            let at_the_end = pulled();
            // Both workers are free again.
            assert!(pool.broadcast(|_: &Worker| meet(0, 2)).into_iter().all(|r| r.is_ok()));
            assert_eq!(pulled(), at_the_end);
        }
    });
}

#[test]
fn f_18_two_streams_and_submits_share_a_pool() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let mut a = pool.map(0..2000_u32, |n: u32| n * 2).granularity(fixed(3));
        let mut b = pool.map(0..2000_u32, |n: u32| format!("{n}")).unordered().indexed();
        for n in 0..2000 {
            assert_eq!(a.next().unwrap().unwrap(), n * 2);
            let (i, text) = b.next().unwrap();
            assert_eq!(text.unwrap(), i.to_string());
            assert_eq!(pool.submit(|n: u32| n + 1, &n).wait().unwrap(), n + 1);
        }
        assert!(a.next().is_none() && b.next().is_none());
    });
}

#[test]
fn f_18_streams_from_several_threads_do_not_mix() {
    both(|| {
        let pool = new_pool(2).unwrap();
        std::thread::scope(|scope| {
            for t in 0..4_u64 {
                let pool = &pool;
                scope.spawn(move || {
                    for round in 0..20 {
                        let base = t * 1_000_000 + round * 1000;
                        let g = fixed(1 + (round as usize * 7) % 40);
                        let got =
                            pool.map(base..base + 200, |n: u64| n + 1).granularity(g).map(Result::unwrap);
                        assert!(got.eq(base + 1..base + 201));
                    }
                });
            }
        });
    });
}

#[test]
fn f_19_a_new_stream_works_after_one_that_failed_or_was_dropped() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for round in 0..50_usize {
            let g = fixed(1 + round % 5);
            let mut stream = pool.map(0.., |n: u64| if n % 3 == 1 { panic!() } else { n }).granularity(g);
            for n in 0..round as u64 {
                assert_eq!(stream.next().unwrap().is_ok(), n % 3 != 1);
            }
            drop(stream);
            assert!(pool.map(0..50_u64, |n: u64| n).granularity(g).map(Result::unwrap).eq(0..50));
        }
    });
}

#[test]
fn f_21_iter_stream_delivers_what_is_there_before_it_pulls() {
    both(|| {
        // So that what was pulled is on its way.
        let pool = builder().workers(1).granularity(fixed(1)).build().unwrap();
        let delivered = Cell::new(0_u64);
        let source = (0..200_u64).inspect(|&n| {
            // All results that were there when the last pull returned: those of the items before the last.
            assert!(delivered.get() + 1 >= n, "{} delivered before pull {n}", delivered.get());
            // One worker works in order, so when this has an outcome, all items so far have theirs.
            pool.submit(|_: ()| (), &()).wait().unwrap();
        });
        let summary = pool.iter_stream(source, |n: u64| n, |_| delivered.set(delivered.get() + 1)).unwrap();
        assert_eq!((summary.ok, delivered.get()), (200, 200));
    });
}

#[test]
fn f_22_a_source_may_use_the_pool() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let source = (0..50_u64).map(|n| {
            let inner: u64 = pool.map(0..n, |n: u64| n).granularity(fixed(3)).map(Result::unwrap).sum();
            inner + pool.submit(|n: u64| n, &n).wait().unwrap()
        });
        let got: Vec<u64> = pool.map(source, |n: u64| n).map(Result::unwrap).collect();
        assert!(got.into_iter().eq((0..50).map(|n| n * (n + 1) / 2)));
        // And so may `g`.
        let mut sum = 0;
        pool.iter_stream(
            0..50_u64,
            |n: u64| n,
            |r| sum += pool.submit(|n: u64| n, &r.unwrap()).wait().unwrap(),
        )
        .unwrap();
        assert_eq!(sum, 1225);
    });
}

#[test]
fn f_28_a_streams_granularity_is_its_own() {
    both(|| {
        let pool = builder().workers(2).granularity(fixed(4)).build().unwrap();
        let run = |g: Option<usize>| {
            let stream = pool.map(0..100_u32, |n: u32| n);
            let stream = g.map(fixed).into_iter().fold(stream, forkring::Map::granularity);
            stream.run(|_| ()).unwrap().batches
        };
        assert_eq!([run(None), run(Some(50)), run(None), run(Some(1))], [25, 2, 25, 100]);
    });
}

#[test]
fn f_31_ten_thousand_results_in_one_burst() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let first = pool.submit(|_: ()| gate(0).wait(), &());
        let tasks: Vec<_> = (0..10_000_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
        let other = pool.submit(|_: ()| 5, &());
        let other = std::thread::spawn(move || futures::executor::block_on(other).unwrap());
        let all = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
            let all = futures::executor::block_on(futures::future::join_all(tasks));
            all.into_iter().map(|r| u64::from(r.unwrap())).sum::<u64>()
        });
        gate(0).open();
        assert_eq!(all.unwrap().join().unwrap(), 49_995_000);
        assert_eq!(other.join().unwrap(), 5);
        first.wait().unwrap();
    });
}

#[test]
fn f_32_an_ordered_stream_runs_its_items_at_the_same_time() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for round in 0..30_u32 {
            // The first two meet, so they run at the same time whatever else is queued.
            let items = (0..20).map(|n| (round, n));
            let f = |(round, n): (u32, u32)| {
                if n < 2 {
                    meet(round as usize, 2);
                }
                n
            };
            assert!(pool.map(items, f).map(Result::unwrap).eq(0..20));
        }
    });
}

// ---- M-01

/// Runs of the body of item `n` are counted in cell `n`.
const ITEMS: usize = 1000;
const VICTIM: u64 = 500;

fn body(n: u64, crash: impl FnOnce()) -> u64 {
    cell(n as usize).fetch_add(1, SeqCst);
    if n == VICTIM {
        crash();
    }
    n * 3
}

/// One item of a stream of 1000 dies; looks at what the rest of the stream and the pool make of it.
fn judge(pool: &Pool, results: Vec<(u64, Result<u64, TaskError>)>, code: Option<i32>, signal: Option<i32>) {
    let mut seen = [false; ITEMS];
    for (i, result) in results {
        assert!(!std::mem::replace(&mut seen[i as usize], true), "item {i} has two outcomes");
        match result {
            Ok(n) => assert_eq!((n, i != VICTIM), (i * 3, true)),
            Err(TaskError::WorkerLost(lost)) => {
                assert_eq!(i, VICTIM, "{lost}");
                assert_eq!((lost.exit_code(), lost.signal(), lost.attempts()), (code, signal, 1), "{lost}");
            }
            Err(error) => panic!("{i}: {error}"),
        }
    }
    assert_eq!(seen, [true; ITEMS]);
    for n in 0..ITEMS {
        assert_eq!(cell(n).swap(0, SeqCst), 1, "item {n}");
    }
    assert_eq!(pool.broadcast(|w: &Worker| w.id()).into_iter().filter(Result::is_ok).count(), pool.workers());
}

#[test]
fn m_01_a_segfault_inside_a_batch_costs_one_item() {
    scenario(|| {
        let pool = new_pool(2).unwrap();
        for g in [1000, 7, 1] {
            let f = |n: u64| body(n, || die(Crash::Segv));
            let results = pool.map(0..ITEMS as u64, f).granularity(fixed(g)).indexed().collect();
            judge(&pool, results, None, Some(11));
        }
    });
}

#[test]
fn m_01_an_exit_inside_a_batch_costs_one_item() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for g in [1000, 7, 1] {
            let f = |n: u64| body(n, || die(Crash::Exit(0)));
            let results = pool.map(0..ITEMS as u64, f).granularity(fixed(g)).unordered().indexed().collect();
            judge(&pool, results, Some(0), None);
        }
    });
}

#[test]
fn m_01_a_kill_from_outside_inside_a_batch_costs_one_item() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        const PID: usize = 2000;
        for (round, g) in [1000, 7, 1].into_iter().enumerate() {
            let killer = std::thread::spawn(move || {
                counter(0).wait_for(round as u32 + 1);
                signal(cell(PID).load(SeqCst) as u32, nix::sys::signal::SIGKILL);
            });
            let f = |n: u64| {
                body(n, || {
                    cell(PID).store(u64::from(std::process::id()), SeqCst);
                    counter(0).bump();
                    gate(0).wait();
                })
            };
            let results = pool.map(0..ITEMS as u64, f).granularity(fixed(g)).indexed().collect();
            killer.join().unwrap();
            judge(&pool, results, None, Some(9));
        }
    });
}

#[test]
fn m_01_earlier_items_of_a_batch_are_delivered_while_a_later_one_runs() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let f = |n: u64| {
            if n == 500 {
                gate(0).wait();
            }
            n
        };
        let mut stream = pool.map(0..1000_u64, f).granularity(fixed(1000));
        assert!(stream.by_ref().take(500).map(Result::unwrap).eq(0..500));
        gate(0).open();
        assert!(stream.map(Result::unwrap).eq(500..1000));
    });
}

#[test]
fn m_01_several_crashes_of_every_kind_at_small_granularity() {
    scenario(|| {
        let pool = Pool::new(4).unwrap();
        let crashing = |n: u64| n % 97 == 13 || n == 0 || n == 999 || n == 500 || n == 501;
        for ordered in [true, false] {
            for g in [7, 1000, 1] {
                let f = |n: u64| {
                    cell(n as usize).fetch_add(1, SeqCst);
                    if n % 97 == 13 || n == 0 || n == 999 || n == 500 || n == 501 {
                        die([Crash::Segv, Crash::Exit(3), Crash::Kill, Crash::Abort][n as usize % 4]);
                    }
                    "y".repeat(n as usize)
                };
                let stream = pool.map(0..ITEMS as u64, f).granularity(fixed(g));
                let stream = if ordered { stream } else { stream.unordered() };
                let mut seen = [false; ITEMS];
                for (place, (i, result)) in stream.indexed().enumerate() {
                    if ordered {
                        assert_eq!(place as u64, i);
                    }
                    assert!(!std::mem::replace(&mut seen[i as usize], true), "item {i} has two outcomes");
                    match result {
                        Ok(text) => assert!(!crashing(i) && text.len() as u64 == i),
                        Err(TaskError::WorkerLost(lost)) => {
                            assert!(crashing(i), "{i}: {lost}");
                            let expected =
                                [(None, Some(11)), (Some(3), None), (None, Some(9)), (None, Some(6))];
                            assert_eq!(
                                (lost.exit_code(), lost.signal()),
                                expected[i as usize % 4],
                                "{i}: {lost}"
                            );
                        }
                        Err(error) => panic!("{i}: {error}"),
                    }
                }
                assert_eq!(seen, [true; ITEMS]);
                for n in 0..ITEMS {
                    assert_eq!(cell(n).swap(0, SeqCst), 1, "item {n} (granularity {g}, ordered {ordered})");
                }
            }
        }
        assert_eq!(pool.broadcast(|w: &Worker| w.id()).into_iter().filter(Result::is_ok).count(), 4);
    });
}

#[test]
fn m_01_a_crash_in_a_stream_of_large_results_tears_nothing() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        // Results larger than the arena, in a batch, with a crash between them.
        let f = |n: u64| {
            if n == 4 {
                die(Crash::Kill);
            }
            vec![n as u8; 5 << 20]
        };
        for (i, result) in pool.map(0..8_u64, f).granularity(fixed(8)).indexed() {
            match result {
                Ok(bytes) => assert!(i != 4 && bytes == vec![i as u8; 5 << 20]),
                Err(error) => assert!(i == 4 && error.is_worker_lost(), "{i}: {error}"),
            }
        }
    });
}

// ---- items that are tasks: granularity 1

#[test]
fn single_items_behind_a_slow_one_come_for_as_long_as_it_takes() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let slow_first = |n: u32| {
            if n == 0 {
                gate(0).wait();
            }
            n
        };
        let (mut sum, mut last) = (0, None);
        // More items than the window has places, so that theirs are used again around the one that stays.
        let stream = pool.map(0..3000_u32, slow_first).granularity(fixed(1)).unordered().indexed();
        for (count, (index, result)) in stream.enumerate() {
            assert_eq!(u64::from(result.unwrap()), index);
            sum += index;
            last = Some(index);
            if count == 2998 {
                gate(0).open();
            }
        }
        assert_eq!((sum, last), (2999 * 3000 / 2, Some(0)));
    });
}

#[test]
fn a_stream_of_single_items_sleeps_and_is_woken_whoever_delivers() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    // Takes the station from the stream's thread, and delivers its results.
                    while !over.load(SeqCst) {
                        assert_eq!(pool.submit(|n: u32| n + 1, &1).wait().unwrap(), 2);
                    }
                });
            }
            for ordered in [true, false] {
                let stream = pool.map(0..2000_u64, |n: u64| n).granularity(fixed(1)).window(2);
                let stream = if ordered { stream } else { stream.unordered() };
                assert_eq!(stream.map(Result::unwrap).sum::<u64>(), 1999 * 1000);
                let items = futures::stream::iter(0..2000_u64);
                let stream = pool.map_stream(items, |n: u64| n).granularity(fixed(1)).window(2);
                let stream = if ordered { stream } else { stream.unordered() };
                let sum = futures::StreamExt::fold(stream, 0, async |sum, n| sum + n.unwrap());
                assert_eq!(futures::executor::block_on(sum), 1999 * 1000);
            }
            over.store(true, SeqCst);
        });
    });
}

#[test]
fn texts_travel_as_single_items_and_their_errors_stay_in_place() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let shout = |text: String| {
            assert!(!text.ends_with('7'), "no sevens");
            text + "!"
        };
        let items = (0..500).map(|n| format!("item {n}"));
        for (n, result) in pool.map(items, shout).granularity(fixed(1)).enumerate() {
            match n % 10 {
                7 => assert!(result.unwrap_err().is_panicked()),
                _ => assert_eq!(result.unwrap(), format!("item {n}!")),
            }
        }
    });
}

#[test]
fn a_stream_that_sleeps_is_not_woken_by_the_items_of_another_one() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let switches = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                let before = switches();
                let held = |_: u32| {
                    counter(0).bump();
                    gate(0).wait();
                };
                assert!(pool.map(0..1_u32, held).granularity(fixed(1)).all(|result| result.is_ok()));
                switches() - before
            });
            counter(0).wait_for(1);
            // Small windows, so that this stream sleeps, too.
            let busy = pool.map(0..20_000_u64, |n: u64| n).granularity(fixed(1)).window(4).unordered();
            assert_eq!(busy.map(Result::unwrap).sum::<u64>(), 19_999 * 10_000);
            gate(0).open();
            let slept = sleeper.join().unwrap();
            assert!(slept < 500, "{slept} times");
        });
    });
}

#[test]
fn results_do_not_wait_for_a_source_that_became_slow() {
    both(|| {
        let pool = new_pool(1).unwrap();
        for granularity in [fixed(1), Granularity::Auto] {
            let pulled = Cell::new(0_u64);
            let items = (0..700_u64).inspect(|&n| {
                pulled.set(pulled.get() + 1);
                if n >= 500 {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
            });
            let mut behind = 0;
            for (n, result) in (0..).zip(pool.map(items, |n: u64| n).granularity(granularity)) {
                assert_eq!(result.unwrap(), n);
                // Those that were waiting when it became slow go out within some ticks of the coarse clock.
                if n >= 600 {
                    behind = behind.max(pulled.get() - n);
                }
            }
            assert!(behind < 40, "{behind} items behind");
        }
    });
}
