//! Wakers are user code: a future keeps the last one only, for as long as it lives, and none is cloned or dropped under a lock.

#![allow(unsafe_code, reason = "wakers whose clones and drops run code")]

use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};
use std::time::Duration;

use forkring::{Closed, Pool, SubmitAsync};
use futures::{Stream, StreamExt, stream};

use crate::support::{
    BOUND, both, builder, counter, eventually, exit_code_of, fixed, fork_and, gate, held, new_pool, outcome,
    scenario,
};

const HOUR: Duration = Duration::from_secs(3600);

type Hook = Option<Box<dyn Fn() + Send + Sync>>;

/// What its wakers tell.
#[derive(Default)]
struct Probe {
    calls: AtomicUsize,
    /// Wakers that there are.
    wakers: AtomicUsize,
    cloned: Hook,
    dropped: Hook,
}

impl Probe {
    fn new() -> Arc<Self> {
        Arc::default()
    }

    fn with(cloned: Hook, dropped: Hook) -> Arc<Self> {
        Arc::new(Self { cloned, dropped, ..Self::default() })
    }

    /// How many wakers somebody has kept.
    fn kept(&self) -> usize {
        self.wakers.load(SeqCst)
    }

    fn is_woken(&self) -> bool {
        self.calls.load(SeqCst) > 0
    }

    fn poll<F: Future + Unpin>(self: &Arc<Self>, future: &mut F) -> Poll<F::Output> {
        self.lend(|context| Pin::new(future).poll(context))
    }

    fn next<S: Stream + Unpin>(self: &Arc<Self>, stream: &mut S) -> Poll<Option<S::Item>> {
        self.lend(|context| stream.poll_next_unpin(context))
    }

    fn lend<T>(self: &Arc<Self>, poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
        let raw = RawWaker::new(Arc::as_ptr(self).cast(), &PROBE);
        // SAFETY: the functions of `PROBE` expect an `Arc<Probe>`. This waker borrows it, so it is not dropped.
        let waker = ManuallyDrop::new(unsafe { Waker::from_raw(raw) });
        poll(&mut Context::from_waker(&waker))
    }
}

static PROBE: RawWakerVTable = RawWakerVTable::new(
    |data| {
        let probe = probe(data);
        probe.cloned.iter().for_each(|hook| hook());
        probe.wakers.fetch_add(1, SeqCst);
        RawWaker::new(Arc::into_raw(Arc::clone(&probe)).cast(), &PROBE)
    },
    |data| {
        probe(data).calls.fetch_add(1, SeqCst);
        let_go(data);
    },
    |data| _ = probe(data).calls.fetch_add(1, SeqCst),
    let_go,
);

fn probe(data: *const ()) -> ManuallyDrop<Arc<Probe>> {
    // SAFETY: made from an `Arc` that the waker has or borrows, and that this one does not let go of.
    ManuallyDrop::new(unsafe { Arc::from_raw(data.cast()) })
}

fn let_go(data: *const ()) {
    let mut probe = probe(data);
    probe.wakers.fetch_sub(1, SeqCst);
    probe.dropped.iter().for_each(|hook| hook());
    // SAFETY: the waker's own reference, which nobody uses any more.
    unsafe { ManuallyDrop::drop(&mut probe) };
}

/// Keeps the last waker, and lets go of it when it is dropped.
fn keeps_the_last<F: Future<Output: std::fmt::Debug> + Unpin>(mut future: F) {
    let [first, second] = [(); 2].map(|()| Probe::new());
    assert!(first.poll(&mut future).is_pending());
    assert_eq!(first.kept(), 1);
    for _ in 0..3 {
        assert!(second.poll(&mut future).is_pending());
        assert_eq!((first.kept(), second.kept()), (0, 1));
    }
    drop(future);
    assert_eq!((first.kept(), second.kept()), (0, 0));
}

// ---- of a pool's end

#[test]
fn g_05_a_future_of_the_end_keeps_one_waker_for_as_long_as_it_lives() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let task = pool.submit(held, &1);
        counter(0).wait_for(1);
        keeps_the_last(pool.closed());
        keeps_the_last(pool.close_within(HOUR));
        keeps_the_last(pool.close());
        keeps_the_last(pool.closed());
        drop(pool.closed());

        // Others come and go meanwhile, its own clones too.
        let [one, two, gone] = [(); 3].map(|()| Probe::new());
        let mut first = pool.closed();
        assert!(one.poll(&mut first).is_pending());
        let mut second = first.clone();
        assert!(two.poll(&mut second).is_pending());
        let mut third = second.clone();
        assert!(gone.poll(&mut third).is_pending());
        drop((third, second.clone()));
        assert_eq!((one.kept(), two.kept(), gone.kept()), (1, 1, 0));
        gate(0).open();
        eventually("both are woken", || one.is_woken() && two.is_woken());
        eventually("both are let go of", || one.kept() + two.kept() == 0);
        assert!(one.poll(&mut first).is_ready() && two.poll(&mut second).is_ready());
        assert_eq!((one.kept(), two.kept(), gone.calls.load(SeqCst)), (0, 0, 0));
        assert_eq!(outcome(task).unwrap(), 1);
    });
}

#[test]
fn g_05_futures_of_the_end_move_between_threads_and_are_woken_in_the_end() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let task = pool.submit(held, &1);
        counter(0).wait_for(1);
        let mut closed = pool.closed();
        assert!(Probe::new().poll(&mut closed).is_pending());
        // The beginning of the end wakes it, and it waits for the rest.
        let mut closing = pool.close_within(HOUR);
        let last = Probe::new();
        let elsewhere = last.clone();
        let mut closed = std::thread::spawn(move || {
            assert!(elsewhere.poll(&mut closed).is_pending());
            closed
        })
        .join()
        .unwrap();
        let other = Probe::new();
        assert!(other.poll(&mut closing).is_pending());
        gate(0).open();
        eventually("both are woken", || last.is_woken() && other.is_woken());
        assert!(last.poll(&mut closed).is_ready());
        let Poll::Ready(how) = other.poll(&mut closing) else { panic!("it has ended") };
        assert!(!how.forced);
        assert_eq!(outcome(task).unwrap(), 1);
    });
}

/// Takes the locks that a pool has for everybody, and blocks for nothing else.
fn use_of(pool: &Pool) -> Hook {
    let pool = pool.clone();
    Some(Box::new(move || {
        let _ = Pin::new(&mut pool.closed()).poll(&mut Context::from_waker(Waker::noop()));
        let _ = pool.stats();
        counter(1).bump();
    }))
}

#[test]
fn g_05_wakers_of_the_end_may_use_the_pool() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let mut closed = pool.closed();
        for _ in 0..2 {
            let probe = Probe::with(use_of(&pool), use_of(&pool));
            assert!(probe.poll(&mut closed).is_pending());
        }
        drop(closed);
        assert_eq!(counter(1).get(), 4);
        // One that ends the pool between the look at it and the registration.
        let ended = pool.clone();
        let probe = Probe::with(Some(Box::new(move || ended.terminate())), use_of(&pool));
        let mut closed = pool.closed();
        assert!(probe.poll(&mut closed).is_ready());
        assert_eq!(probe.kept(), 0);
    });
}

static INHERITED: Mutex<Option<Closed>> = Mutex::new(None);

#[test]
fn m_02_an_inherited_future_of_the_end_leaves_its_waker_alone() {
    scenario(|| {
        let pool = new_pool(1).unwrap();
        let mut closed = pool.closed();
        let probe = Probe::new();
        assert!(probe.poll(&mut closed).is_pending());
        *INHERITED.lock().unwrap() = Some(closed);
        let child = fork_and(|| {
            let mut closed = INHERITED.lock().unwrap().take().unwrap();
            let is_over = probe.poll(&mut closed).is_ready();
            drop(closed);
            i32::from(!is_over || probe.kept() != 1)
        });
        assert_eq!(exit_code_of(child), 0);
        let mut closed = INHERITED.lock().unwrap().take().unwrap();
        drop(pool);
        eventually("a wake-up", || probe.is_woken());
        eventually("the end", || probe.poll(&mut closed).is_ready());
    });
}

// ---- of who waits for room with a deadline

/// A pool whose only place is taken until gate 0 opens.
fn full() -> Pool {
    let pool = builder().workers(1).queue_limit(0).build().unwrap();
    pool.spawn(held, &0);
    counter(0).wait_for(1);
    pool
}

fn submit(pool: &Pool, deadline: Duration) -> SubmitAsync<u32> {
    pool.options().deadline(deadline).submit_async(|n: u32| n, &7)
}

#[test]
fn b_19_who_waits_for_room_until_a_deadline_keeps_one_waker_for_as_long_as_he_waits() {
    both(|| {
        let pool = full();
        for _ in 0..3 {
            keeps_the_last(submit(&pool, HOUR));
        }
        // Whoever got room has no waker left there either.
        let probe = Probe::new();
        let mut lucky = submit(&pool, HOUR);
        assert!(probe.poll(&mut lucky).is_pending());
        gate(0).open();
        eventually("room and a result", || probe.poll(&mut lucky).is_ready());
        drop(lucky);
        eventually("it is let go of", || probe.kept() == 0);
    });
}

#[track_caller]
fn times_out(probe: &Arc<Probe>, future: &mut SubmitAsync<u32>) {
    let mut polled = probe.poll(future);
    if polled.is_pending() {
        eventually("the deadline", || probe.is_woken());
        polled = probe.poll(future);
    }
    let Poll::Ready(outcome) = polled else { panic!("its time is over") };
    assert!(outcome.unwrap_err().is_timed_out());
}

/// A future with this deadline that was polled with this waker in time.
fn pending(pool: &Pool, deadline: Duration, probe: &Arc<Probe>) -> SubmitAsync<u32> {
    let mut future = submit(pool, deadline);
    while probe.poll(&mut future).is_ready() {
        future = submit(pool, deadline);
    }
    future
}

#[test]
fn b_19_the_deadline_wakes_whoever_polled_last() {
    both(|| {
        let pool = full();
        let [first, last] = [(); 2].map(|()| Probe::new());
        let mut future = pending(&pool, Duration::from_millis(50), &first);
        times_out(&last, &mut future);
        assert_eq!((first.kept(), last.kept()), (0, 0));
        gate(0).open();
    });
}

#[test]
fn b_19_a_deadline_that_wakes_the_former_waker_is_seen_by_who_replaces_it() {
    both(|| {
        let pool = full();
        let first = Probe::new();
        let mut future = pending(&pool, Duration::from_millis(50), &first);
        let woken = first.clone();
        let is_late = move || eventually("the former waker's call", || woken.is_woken());
        times_out(&Probe::with(Some(Box::new(is_late)), None), &mut future);
        gate(0).open();
    });
}

// ---- of streams

/// While it is cloned, the results come that it is to be called for; and whoever delivers them owns a station.
#[test]
fn b_11_a_stream_lets_results_arrive_while_a_waker_is_cloned() {
    both(|| {
        let pool = new_pool(1).unwrap();
        for g in [1, 4] {
            let items = stream::iter((0..4_usize).map(move |n| (g, n)));
            let f = |(g, n): (usize, usize)| {
                gate(g).wait();
                n
            };
            let mut results = pool.map_stream(items, f).granularity(fixed(g));
            let behind = pool.clone();
            let deliver = move || {
                gate(g).open();
                let behind = behind.submit(|n: usize| n, &g).wait_timeout(BOUND);
                assert_eq!(behind.unwrap().unwrap(), g);
            };
            let probe = Probe::with(Some(Box::new(deliver)), use_of(&pool));
            for n in 0..4 {
                let mut next = Poll::Pending;
                eventually("a result", || {
                    next = probe.next(&mut results);
                    next.is_ready()
                });
                let Poll::Ready(Some(Ok(result))) = next else { panic!("{next:?}") };
                assert_eq!(result, n);
            }
            drop(results);
            assert_eq!(probe.kept(), 0);
        }
    });
}
