//! `Bound`: what a pool offers for functions, a pool around one closure offers for that.

use std::ops::ControlFlow;
use std::time::Duration;

use forkring::{Bound, Granularity, TaskError, TrySubmitError};
use futures::executor::block_on;
use futures::{FutureExt, StreamExt, stream};

use crate::support::{
    both, builder, collect_errors, counter, errors, eventually, gate, outcome, quietly, scenario,
};

const SHORT: Duration = Duration::from_millis(50);

/// Adds what it has captured; waits at a gate for some numbers, and panics at 13.
fn adding(pool: crate::support::EitherBuilder, offset: u64) -> Bound<u64, u64> {
    let add = move |n: u64| {
        assert_ne!(n, 13, "unlucky");
        if n >= 1000 {
            counter(n as usize - 1000).bump();
            gate(n as usize - 1000).wait();
        }
        n + offset
    };
    pool.bind::<u64, u64>(add).unwrap()
}

#[test]
fn a_bound_closure_has_terms() {
    both(|| {
        let add = adding(builder().workers(1), 5);
        assert!(outcome(add.with_timeout(SHORT).submit(&1000)).unwrap_err().is_timed_out());
        assert_eq!(outcome(add.with_timeout(Duration::from_secs(3600)).submit(&1)).unwrap(), 6);
        let limited = add.options().deadline(SHORT);
        let late = limited.try_submit(&1001).unwrap();
        assert!(matches!(outcome(late), Err(TaskError::TimedOut { limit: SHORT })));
        assert!(block_on(limited.submit_async(&1002)).unwrap_err().is_timed_out());
        // Of a batch, the item.
        let results = add.with_timeout(SHORT).map([1, 2, 1003, 4]).granularity(Granularity::Fixed(4));
        let results: Vec<_> = results.map(|one| one.ok()).collect();
        assert_eq!(results, [Some(6), Some(7), None, Some(9)]);

        let dropped = add.options().kill_on_drop();
        assert_eq!(dropped.bound().workers(), 1);
        let task = dropped.clone().submit(&1004);
        counter(4).wait_for(1);
        drop(task);
        assert_eq!(outcome(add.submit(&2)).unwrap(), 7);
        (0..5).for_each(|n| gate(n).open());
    });
}

#[test]
fn a_bound_closure_is_retried() {
    scenario(|| {
        let start = 3;
        let flaky = move |n: u32| if counter(0).bump() < n { std::process::abort() } else { start };
        let pool = forkring::Pool::builder().workers(1).bind(flaky).unwrap();
        assert!(outcome(pool.submit(&1)).unwrap_err().is_worker_lost());
        assert_eq!(outcome(pool.options().retries(2).submit(&3)).unwrap(), 3);
        assert_eq!(counter(0).get(), 4);
    });
}

#[test]
fn room_for_a_bound_closure_can_be_reserved() {
    both(|| {
        let add = adding(builder().workers(1).queue_limit(0), 5);
        let permit = add.reserve().wait();
        assert_eq!(add.try_reserve().unwrap_err(), TrySubmitError::Full);
        assert_eq!(add.try_submit(&1).unwrap_err(), TrySubmitError::Full);
        let mut waits = add.reserve();
        assert!((&mut waits).now_or_never().is_none());
        assert_eq!(outcome(permit.submit(&1)).unwrap(), 6);
        let permit = block_on(waits);
        drop(permit);
        assert_eq!(outcome(add.try_reserve().unwrap().submit(&2)).unwrap(), 7);
        add.close().wait();
        assert_eq!(add.try_reserve().unwrap_err(), TrySubmitError::Closed);
        assert!(outcome(add.reserve().wait().submit(&1)).unwrap_err().is_closed());
    });
}

#[test]
fn a_bound_closure_has_streams_of_every_kind() {
    both(|| {
        quietly();
        let add = adding(builder().workers(2), 5);
        let terms = add.options().timeout(Duration::from_secs(3600));
        let items: Vec<u64> = (0..100).filter(|n| *n != 13).collect();
        let expected: Vec<u64> = items.iter().map(|n| n + 5).collect();
        assert!(add.map_ref(&items).map(Result::unwrap).eq(expected.clone()));
        assert!(terms.map_ref(&items).map(Result::unwrap).eq(expected.clone()));
        assert!(terms.map(items.clone()).map(Result::unwrap).eq(expected.clone()));
        let streamed = terms.map_stream(stream::iter(items.clone()));
        assert_eq!(block_on(streamed.map(Result::unwrap).collect::<Vec<_>>()), expected);

        let texts = ["1", "x", "13", "4"];
        for results in
            [add.try_map(texts.map(str::parse::<u64>)), terms.try_map(texts.map(str::parse::<u64>))]
        {
            let results: Vec<_> = results.collect();
            let [Ok(Ok(6)), Err(_), Ok(Err(panic)), Ok(Ok(9))] = &results[..] else { panic!("{results:?}") };
            assert!(panic.is_panicked());
        }

        let mut got = Vec::new();
        let summary = add.iter_stream(items.clone(), |result| got.push(result.unwrap())).unwrap();
        got.sort_unstable();
        assert_eq!((summary.ok, got), (99, expected));
        let mut seen = 0;
        let stopped = terms.iter_stream(0.., |_| {
            seen += 1;
            if seen == 50 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(stopped.unwrap().stopped && seen == 50);
    });
}

#[test]
fn a_bound_closure_is_spawned_and_its_workers_renewed() {
    both(|| {
        collect_errors();
        let add = adding(builder().workers(1).name("adder"), 5);
        add.spawn(&13);
        add.options().spawn(&13);
        add.spawn(&1000);
        counter(0).wait_for(1);
        eventually("both failures are told", || errors().len() == 2);
        add.recycle_workers();
        gate(0).open();
        assert_eq!(outcome(add.submit(&1)).unwrap(), 6);
        eventually("a replacement", || add.stats().workers[0].restarts == 1);
        add.close().wait();
        let told = errors();
        assert!(told.iter().all(|line| line.contains("adder: a detached task failed")), "{told:?}");
    });
}
