//! Acceptance cases F-24 to F-28: streams that find out themselves how many items share a message.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use forkring::{Granularity, Pool, StreamSummary, TaskError};
use futures::StreamExt;
use futures::executor::block_on;

use crate::support::{both, builder, cell, counter, eventually, gate, new_pool, scenario};

const AUTO: Granularity = Granularity::Auto;

fn pool(workers: usize) -> Pool {
    Pool::builder().workers(workers).granularity(AUTO).build().unwrap()
}

fn ok(result: Result<u64, TaskError>) {
    result.unwrap();
}

/// Items for each message.
fn average(summary: StreamSummary) -> u64 {
    summary.items / summary.batches
}

/// Takes so long, asleep: a machine that is busy does not make it much longer.
fn nap(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

#[test]
fn f_24_messages_grow_for_tiny_items_and_carry_one_slow_item() {
    both(|| {
        let pool = pool(2);
        let tiny = pool.iter_stream(0..100_000_u64, |n: u64| n, ok).unwrap();
        assert!(average(tiny) > 10, "{tiny:?}");
        let slow = pool.iter_stream(0..40_u64, |n: u64| (nap(10), n).1, ok);
        assert_eq!(slow.unwrap().batches, 40);
    });
}

/// F-25: items that are slow from the middle on travel alone soon, however many shared a message before.
#[test]
fn f_25_items_that_become_slow_travel_alone_soon() {
    both(|| {
        let pool = pool(2);
        const STEP: u64 = 50_000;
        const SLOW: u64 = 300;
        let f = |n: u64| {
            if n >= STEP {
                nap(3);
            }
            n
        };
        let mut stream = pool.map(0..STEP + SLOW, f).window(4000);
        assert_eq!(
            stream.by_ref().take(STEP as usize).map(Result::unwrap).sum::<u64>(),
            STEP * (STEP - 1) / 2
        );
        // From here on what is pulled is pulled for slow items, but for what the window holds.
        assert_eq!(stream.map(Result::unwrap).count() as u64, SLOW);
    });
}

/// F-25, counted: which message each item was in. What is on its way when the first slow item runs, the window, may share messages;
/// what is pulled once that is known does not.
#[test]
fn f_25_slow_items_that_are_pulled_later_have_messages_of_their_own() {
    both(|| {
        const STEP: u64 = 50_000;
        const SLOW: u64 = 1000;
        const WINDOW: u64 = 80;
        let pool = pool(2);
        let message = |n: u64| {
            if n >= STEP {
                nap(2);
            }
            let task = forkring::current_task().unwrap();
            (task.worker as u64, task.number.unwrap())
        };
        let results = pool.map(0..STEP + SLOW, message).window(WINDOW as usize);
        let messages: Vec<_> = results.map(Result::unwrap).collect();
        let (fast, slow) = messages.split_at(STEP as usize);
        let count = |of: &[(u64, u64)]| of.iter().collect::<HashSet<_>>().len() as u64;
        let (fast, slow) = (count(fast), count(slow));
        assert!(STEP / fast > 5, "{fast} messages of fast items");
        // A few more while what a slow item takes is believed.
        assert!(slow >= SLOW - WINDOW - 20, "{slow} messages of {SLOW} slow items");
    });
}

/// The default, and a source that gives an item every 5 ms after many quick ones: each of these goes out at once, and its result
/// comes when the source is pulled next or soon after, although messages are large.
#[test]
fn results_of_a_source_that_becomes_slow_do_not_wait_for_messages_to_fill() {
    both(|| {
        const QUICK: u64 = 20_000;
        const LATE: u64 = 40;
        // Messages may be full, or not, when the source becomes slow.
        for (round, more) in [0, 1, 20, 50, 1000, 1013].into_iter().enumerate() {
            let pool = new_pool(2).unwrap();
            let (quick, seen, behind) = (QUICK + more, Cell::new(0), RefCell::new(Vec::new()));
            let source = (0..quick + LATE).map(|n| {
                if n >= quick {
                    behind.borrow_mut().push(n - seen.get());
                    nap(5);
                }
                n | (round as u64) << 32
            });
            // How many there are is not known: then messages would shrink anyway.
            let source = source.filter(|_| true);
            let run = pool.map(source, |n: u64| {
                counter((n >> 32) as usize).bump();
                n
            });
            let run = run.unordered().run(|result| {
                result.unwrap();
                seen.set(seen.get() + 1);
            });
            let run = run.unwrap();
            assert!(average(run) > 10, "{run:?}");
            // When the first few of them are pulled, what the quick ones have left is on its way still.
            let behind = behind.into_inner();
            assert!(behind.iter().skip(10).all(|&items| items <= 10), "{behind:?}");
        }
    });
}

/// F-26: slow items travel alone until the end, so that all workers have something to do. (How the end of many quick ones is
/// divided is a unit test's matter.)
#[test]
fn f_26_the_end_is_divided_among_the_workers() {
    both(|| {
        let pool = pool(4);
        let summary = pool.iter_stream(0..103_u64, |n: u64| (nap(20), n).1, ok).unwrap();
        assert_eq!((summary.ok, summary.batches), (103, 103));
    });
}

/// F-28: what was learnt from one stream is not carried over to the next.
#[test]
fn f_28_each_stream_begins_anew() {
    both(|| {
        let pool = pool(2);
        let tiny = |pool: &Pool| pool.iter_stream(0..50_000_u64, |n: u64| n, ok).unwrap();
        assert!(average(tiny(&pool)) > 10);
        // Both items travel at once, each in a message of its own.
        let meet = pool.iter_stream(
            0..2_u64,
            |n: u64| {
                counter(0).bump();
                counter(0).wait_for(2);
                n
            },
            ok,
        );
        assert_eq!(meet.unwrap().batches, 2);
        assert!(average(tiny(&pool)) > 10);
    });
}

/// Those behind it in its message run elsewhere while it runs. It sees nothing of that.
#[test]
fn one_slow_item_keeps_no_others_from_running() {
    both(|| {
        const ITEMS: u64 = 40_000;
        const SLOW: u64 = 20_000;
        for (round, ordered) in [false, true].into_iter().enumerate() {
            let pool = builder().workers(2).granularity(AUTO).env(round).build().unwrap();
            let f = |w: &forkring::Worker<usize>, n: &forkring::View<u64>| {
                let n = n.to_native();
                let round = *w.env();
                if n == SLOW {
                    gate(round).wait();
                    assert!(!w.cancelled());
                }
                cell(round).fetch_add(1, SeqCst);
                n
            };
            // Bounded, so that what is sent while the slow one runs ends somewhere.
            let stream = pool.map_with(0..ITEMS, f).window(8000);
            let reader = std::thread::spawn(move || {
                let mut stream = if ordered { stream } else { stream.unordered() };
                let mut got: Vec<u64> = stream.by_ref().map(Result::unwrap).collect();
                if !ordered {
                    got.sort_unstable();
                }
                assert_eq!(got, (0..ITEMS).collect::<Vec<_>>());
            });
            let ran = move || cell(round).load(SeqCst);
            if ordered {
                // All that was pulled but the slow one itself.
                eventually("the items behind the slow one have run", || ran() > SLOW);
            } else {
                eventually("all items but the slow one have run", || ran() == ITEMS - 1);
            }
            assert!(!reader.is_finished());
            gate(round).open();
            reader.join().unwrap();
            assert_eq!(ran(), ITEMS, "each item runs once");
        }
    });
}

/// Likewise for inputs and results of variable size, and in async code, where nobody looks but when woken.
#[test]
fn one_slow_item_of_an_async_stream_keeps_no_others_from_running() {
    both(|| {
        const ITEMS: u64 = 20_000;
        let pool = pool(2);
        let f = |text: String| {
            if text == "10000" {
                gate(0).wait();
            }
            counter(0).bump();
            format!("<{text}>")
        };
        let items = futures::stream::iter((0..ITEMS).map(|n| n.to_string()));
        let stream = pool.map_stream(items, f).unordered();
        let reader = std::thread::spawn(move || {
            let mut got: Vec<String> = block_on(stream.map(Result::unwrap).collect());
            got.sort_by_key(|text| text.trim_matches(['<', '>']).parse::<u64>().unwrap());
            assert!(got.iter().eq((0..ITEMS).map(|n| format!("<{n}>")).collect::<Vec<_>>().iter()));
        });
        eventually("all items but the slow one have run", || u64::from(counter(0).get()) == ITEMS - 1);
        gate(0).open();
        reader.join().unwrap();
        assert_eq!(u64::from(counter(0).get()), ITEMS);
    });
}

/// The worker dies at the slow item after the others were taken away: that item is lost, once.
#[test]
fn a_crash_of_the_slow_item_costs_that_item() {
    scenario(|| {
        const ITEMS: u64 = 20_000;
        let pool = pool(2);
        let f = |text: String| {
            if text == "10000" {
                gate(0).wait();
                std::process::abort();
            }
            counter(0).bump();
            text
        };
        let stream = pool.map((0..ITEMS).map(|n| n.to_string()), f).unordered().indexed();
        let reader = std::thread::spawn(move || stream.partition::<Vec<_>, _>(|(_, result)| result.is_ok()));
        eventually("all items but the slow one have run", || u64::from(counter(0).get()) == ITEMS - 1);
        gate(0).open();
        let (ok, failed) = reader.join().unwrap();
        assert_eq!(ok.len() as u64, ITEMS - 1);
        assert!(ok.iter().all(|(index, result)| result.as_ref().unwrap() == &index.to_string()));
        let [(10_000, Err(error))] = &failed[..] else { panic!("{failed:?}") };
        assert!(error.is_worker_lost(), "{error}");
        assert_eq!(u64::from(counter(0).get()), ITEMS - 1);
    });
}

/// Results, order, windows and outcomes are those of any granularity, whoever makes the stream.
#[test]
fn every_kind_of_stream_may_be_automatic() {
    both(|| {
        let expected: Vec<u64> = (0..5000).map(|n| n * n).collect();
        let sorted = |mut got: Vec<u64>| {
            got.sort_unstable();
            got
        };
        let offset = 1_u64;
        let mut got = Vec::new();
        let own = builder().workers(2).granularity(AUTO);
        let ran = own.iter_stream(0..5000_u64, move |n: u64| n * n + offset, |r| got.push(r.unwrap() - 1));
        assert_eq!((ran.unwrap().ok, sorted(got)), (5000, expected.clone()));

        let bound = builder().workers(2).granularity(AUTO).bind(move |n: u64| n * n + offset).unwrap();
        assert!(bound.map(0..5000).map(Result::unwrap).eq(expected.iter().map(|n| n + 1)));

        let pool = new_pool(3).unwrap();
        let submitter = pool.options().timeout(Duration::from_secs(20));
        assert!(
            submitter.map(0..5000, |n: u64| n * n).granularity(AUTO).map(Result::unwrap).eq(expected.clone())
        );
        let stream = pool.map_stream(futures::stream::iter(0..5000), |n: u64| n * n).granularity(AUTO);
        assert!(block_on(stream.map(Result::unwrap).collect::<Vec<_>>()).eq(&expected));
        let texts: Vec<String> = (0..5000).map(|n| "x".repeat(n % 300)).collect();
        let lengths = pool.map_ref(&texts, |text: String| (text.len(), text)).granularity(AUTO);
        assert!(lengths.map(Result::unwrap).eq(texts.iter().map(|text| (text.len(), text.clone()))));
        let some = |n: u64| if n.is_multiple_of(100) { panic!("{n}") } else { n };
        let failed = pool.map(0..5000, some).granularity(AUTO).enumerate().filter(|(_, r)| r.is_err());
        assert!(failed.map(|(at, _)| at).eq((0..5000).step_by(100)));
        assert_eq!(pool.map(std::iter::empty::<u64>(), |n: u64| n).granularity(AUTO).count(), 0);
    });
}
