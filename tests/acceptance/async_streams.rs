//! Acceptance cases, group F, of `map_stream`: asynchronous sources, under several executors and by hand; B-11, M-02.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use forkring::{MapStream, Pool, Progress, Stopper, TaskError, View, Worker};
use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::executor::block_on;
use futures::stream::{self, FusedStream};
use futures::{FutureExt, Stream, StreamExt, select_biased};

use crate::crashes::{Crash, die};
use crate::streams::{PULLED, counted, pulled};
use crate::support::{
    BOUND, both, builder, cell, counter, eventually, exit_code_of, fixed, fork_and, gate, meet, new_pool,
    scenario,
};

/// Polls by hand, and waits for being woken.
struct Hand {
    waker: Waker,
    woken: Arc<Woken>,
    told: mpsc::Receiver<()>,
}

struct Woken {
    times: AtomicUsize,
    tell: Mutex<mpsc::Sender<()>>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.times.fetch_add(1, SeqCst);
        let _ = self.tell.lock().unwrap().send(());
    }
}

impl Hand {
    fn new() -> Self {
        let (tell, told) = mpsc::channel();
        let woken = Arc::new(Woken { times: AtomicUsize::new(0), tell: Mutex::new(tell) });
        Self { waker: Waker::from(woken.clone()), woken, told }
    }

    fn poll<S: Stream + Unpin>(&self, stream: &mut S) -> Poll<Option<S::Item>> {
        stream.poll_next_unpin(&mut Context::from_waker(&self.waker))
    }

    #[track_caller]
    fn wait(&self) {
        self.told.recv_timeout(BOUND).expect("hang: a lost wake-up");
    }

    /// The next item, polling only when woken.
    #[track_caller]
    fn next<S: Stream + Unpin>(&self, stream: &mut S) -> Option<S::Item> {
        loop {
            match self.poll(stream) {
                Poll::Ready(item) => return item,
                Poll::Pending => self.wait(),
            }
        }
    }

    fn times(&self) -> usize {
        self.woken.times.load(SeqCst)
    }
}

/// Both workers are free and nothing of a stream is queued in front of this.
fn idle(pool: &Pool) {
    assert_eq!(pool.workers(), 2);
    assert!(pool.broadcast(|_: &Worker| meet(0, 2)).into_iter().all(|r| r.is_ok()));
}

/// Gives way to others before each item.
fn hesitant<S: Stream>(source: S) -> impl Stream<Item = S::Item> {
    source.then(|item| async {
        let mut first = true;
        std::future::poll_fn(|context| {
            if std::mem::take(&mut first) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        item
    })
}

async fn squares(pool: Pool, g: usize, pauses: bool) {
    let source = stream::iter(0..500_u64);
    let source: Pin<Box<dyn Stream<Item = u64> + Send>> =
        if pauses { Box::pin(hesitant(source)) } else { Box::pin(source) };
    let mut results = pool.map_stream(source, |n: u64| n * n).granularity(fixed(g));
    for n in 0..500 {
        assert!(!results.is_terminated());
        assert_eq!(results.next().await.unwrap().unwrap(), n * n);
    }
    assert!(results.next().await.is_none() && results.next().await.is_none(), "an end is an end");
    assert!(results.is_terminated());
}

#[test]
fn f_01_ordered_equals_sequential_on_every_executor() {
    both(|| {
        let pool = new_pool(4).unwrap();
        let tokio = tokio::runtime::Runtime::new().unwrap();
        for (g, pauses) in [1, 6, 37, 500, 510].into_iter().flat_map(|g| [(g, false), (g, true)]) {
            block_on(squares(pool.clone(), g, pauses));
            smol::block_on(squares(pool.clone(), g, pauses));
            tokio.block_on(squares(pool.clone(), g, pauses));
            // On a runtime's own threads, several at a time.
            let streams = (0..4).map(|_| tokio.spawn(squares(pool.clone(), g, pauses)));
            for stream in streams.collect::<Vec<_>>() {
                block_on(stream).unwrap();
            }
        }
    });
}

#[test]
fn f_02_unordered_is_a_permutation_that_knows_its_positions() {
    both(|| {
        let pool = new_pool(4).unwrap();
        for g in [1, 6, 37, 1000, 1010] {
            let source = hesitant(stream::iter(0..1000_u64));
            let results = pool.map_stream(source, |n: u64| n * n).unordered().granularity(fixed(g)).indexed();
            let mut results: Vec<_> = block_on(results.map(|(i, r)| (i, r.unwrap())).collect());
            results.sort_unstable();
            assert!(results.into_iter().eq((0..1000).map(|n| (n, n * n))), "{g}");
        }
    });
}

#[test]
fn f_03_unordered_yields_the_fastest_first() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for round in 0..30_u32 {
            let items = stream::iter((0..10).map(move |n| round * 10 + n));
            let f = |n: u32| {
                if n.is_multiple_of(10) {
                    gate(n as usize / 10).wait();
                }
                n
            };
            let mut results = pool.map_stream(items, f).unordered();
            block_on(async {
                let mut first: Vec<u32> = results.by_ref().take(9).map(Result::unwrap).collect().await;
                first.sort_unstable();
                assert_eq!(first, (1..10).map(|n| round * 10 + n).collect::<Vec<_>>());
                gate(round as usize).open();
                assert_eq!(results.next().await.unwrap().unwrap(), round * 10);
                assert!(results.next().await.is_none());
            });
        }
    });
}

#[test]
fn f_04_f_15_the_source_is_polled_while_the_window_has_room_only() {
    both(|| {
        let pool = new_pool(4).unwrap();
        let f = |n: u32| {
            if n == 0 {
                gate(0).wait();
            }
            counter(0).bump();
            n
        };
        let mut results = pool.map_stream(stream::iter(counted()), f).granularity(fixed(1)).window(32);
        assert_eq!(pulled(), 0, "lazy");
        let hand = Hand::new();
        assert!(hand.poll(&mut results).is_pending());
        // All but the first complete, and still nothing more is pulled, however often it is polled.
        counter(0).wait_for(31);
        for _ in 0..100 {
            assert!(hand.poll(&mut results).is_pending());
        }
        assert_eq!((pulled(), counter(0).get()), (32, 31));
        gate(0).open();
        assert_eq!(hand.next(&mut results).unwrap().unwrap(), 0);
        // Nobody asks, nobody pulls.
        let before = pulled();
        pool.submit(|_: ()| (), &()).wait().unwrap();
        assert_eq!(pulled(), before);
        assert!(before <= 64, "{before}");
        for n in 1..100 {
            assert_eq!(hand.next(&mut results).unwrap().unwrap(), n);
        }

        // F-15 as it stands: item 4 is produced after one of the first three completed.
        cell(PULLED).store(0, SeqCst);
        let f = |n: u32| {
            gate(10 + n as usize).wait();
            n
        };
        let mut results = pool.map_stream(stream::iter(counted().take(20)), f).window(3).unordered();
        assert!(hand.poll(&mut results).is_pending());
        assert_eq!(pulled(), 3);
        for n in [1, 0, 3, 2] {
            gate(10 + n).open();
            assert_eq!(hand.next(&mut results).unwrap().unwrap() as usize, n);
        }
        assert!(pulled() <= 7, "{}", pulled());
    });
}

#[test]
fn f_06_a_granularity_of_zero_is_refused() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let mut results = pool.map_stream(stream::iter(counted()), |n: u32| n).granularity(fixed(0));
        let hand = Hand::new();
        assert!(catch_unwind(AssertUnwindSafe(|| hand.poll(&mut results).is_ready())).is_err());
        assert_eq!(pulled(), 0);
    });
}

#[test]
fn f_07_f_08_no_items_and_few() {
    both(|| {
        let pool = new_pool(8).unwrap();
        let hand = Hand::new();
        for (n, g) in [0, 1, 3].into_iter().flat_map(|n| [(n, 1), (n, 10)]) {
            for unordered in [false, true] {
                let results = pool.map_stream(stream::iter(0..n), |n: u32| n + 1).granularity(fixed(g));
                let mut results = if unordered { results.unordered() } else { results };
                let mut got: Vec<u32> =
                    std::iter::from_fn(|| hand.next(&mut results)).map(Result::unwrap).collect();
                got.sort_unstable();
                assert!(got.into_iter().eq(1..=n));
            }
        }
        let mut empty = pool.map_stream(stream::iter(0..0_u32), |n: u32| n);
        assert!(matches!(hand.poll(&mut empty), Poll::Ready(None)), "at once");
    });
}

#[test]
fn f_09_m_01_every_item_of_a_batch_has_its_own_outcome() {
    scenario(|| {
        forkring::hooks::set_log_error(|_| ());
        let pool = Pool::new(2).unwrap();
        let f = |n: u32| match n {
            50 => panic!("fifty"),
            70 => die(Crash::Segv),
            _ => n,
        };
        for g in [1, 10, 100] {
            let results = pool.map_stream(hesitant(stream::iter(0..100_u32)), f).granularity(fixed(g));
            let results: Vec<_> = block_on(results.collect());
            assert_eq!(results.len(), 100);
            for (n, result) in (0..).zip(results) {
                match n {
                    50 => assert!(result.unwrap_err().is_panicked()),
                    70 => assert!(result.unwrap_err().is_worker_lost()),
                    n => assert_eq!(result.unwrap(), n),
                }
            }
        }
    });
}

#[test]
fn f_10_a_stream_that_is_dropped_starts_nothing_and_leaves_a_pool_that_works() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for (round, g) in [1, 10].into_iter().enumerate() {
            let f = |w: &Worker, item: &View<(u32, u32)>| {
                let (round, n) = (item.0.to_native() as usize, item.1.to_native());
                if n == 0 {
                    // A stream is pulled until something comes.
                    counter(100 + round).wait_for(30);
                    panic!("first");
                }
                counter(round).bump();
                eventually("it is cancelled", || w.cancelled());
            };
            let items = (0..100_u32).inspect(move |_| {
                counter(100 + round).bump();
            });
            let items = stream::iter(items.map(move |n| (round as u32, n)));
            let mut results = pool.map_stream_with(items, f).granularity(fixed(g));
            assert!(block_on(results.next()).unwrap().unwrap_err().is_panicked());
            counter(round).wait_for(2);
            drop(results);
            idle(&pool);
            assert_eq!(counter(round).get(), 2, "granularity {g}");
        }
    });
}

/// Says in gate 1 that it is gone.
struct Source<S>(S);

impl<S: Stream + Unpin> Stream for Source<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.0.poll_next_unpin(context)
    }
}

impl<S> Drop for Source<S> {
    fn drop(&mut self) {
        gate(1).open();
    }
}

#[test]
fn f_16_an_infinite_source_is_let_go_with_the_stream() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let source = Source(stream::iter(counted()));
        let mut results = pool.map_stream(source, |n: u32| n).granularity(fixed(100)).window(2000);
        let hand = Hand::new();
        for n in 0..100_000 {
            assert_eq!(hand.next(&mut results).unwrap().unwrap(), n);
            assert!(pulled() <= u64::from(n) + 2200);
        }
        assert!(!gate(1).is_open());
        drop(results);
        assert!(gate(1).is_open());
        let before = pulled();
        idle(&pool);
        assert_eq!(pulled(), before);
    });
}

#[test]
fn f_21_results_come_while_the_source_is_pending() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for g in [1, 10, 1000] {
            let (send, source) = unbounded();
            let mut results = pool.map_stream(source, |n: u32| n + 1).granularity(fixed(g));
            let hand = Hand::new();
            let mut sent = 0;
            for burst in [1, 3, 25, 1] {
                for _ in 0..burst {
                    send.unbounded_send(sent).unwrap();
                    sent += 1;
                }
                for n in sent - burst..sent {
                    // No further item comes before this result does.
                    assert_eq!(hand.next(&mut results).unwrap().unwrap(), n + 1);
                }
                assert!(hand.poll(&mut results).is_pending());
            }
            drop(send);
            assert!(hand.next(&mut results).is_none());
        }
    });
}

#[test]
fn f_21_an_item_that_comes_while_results_are_awaited_is_started() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let (send, source) = unbounded::<u32>();
        let f = |n: u32| {
            counter(0).bump();
            gate(n as usize).wait();
            n
        };
        let mut results = pool.map_stream(source, f);
        let hand = Hand::new();
        send.unbounded_send(0).unwrap();
        assert!(hand.poll(&mut results).is_pending());
        counter(0).wait_for(1);
        send.unbounded_send(1).unwrap();
        hand.wait();
        assert!(hand.poll(&mut results).is_pending());
        counter(0).wait_for(2);
        gate(1).open();
        gate(0).open();
        assert_eq!(
            (hand.next(&mut results).unwrap().unwrap(), hand.next(&mut results).unwrap().unwrap()),
            (0, 1)
        );
    });
}

#[test]
fn b_11_the_task_that_polled_last_is_woken() {
    both(|| {
        let pool = new_pool(1).unwrap();
        for round in 0..100 {
            let f = |n: u32| {
                gate(n as usize).wait();
                n
            };
            // The source has ended, or its own waker would be one more thing to wake by.
            let mut results = pool.map_stream(stream::iter([round]), f);
            let (a, b) = (Hand::new(), Hand::new());
            assert!(a.poll(&mut results).is_pending());
            let (b, mut results) = std::thread::spawn(move || {
                assert!(b.poll(&mut results).is_pending());
                (b, results)
            })
            .join()
            .unwrap();
            gate(round as usize).open();
            // What wakes comes a moment after the result.
            b.wait();
            assert_eq!(b.next(&mut results).unwrap().unwrap(), round);
            assert!(b.next(&mut results).is_none());
            assert_eq!(a.times(), 0);
        }
    });
}

#[test]
fn b_11_a_dropped_stream_lets_its_task_go_though_a_stopper_stays() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let mut results = pool.map_stream(stream::iter([0]), |n: u32| {
            gate(0).wait();
            n
        });
        let stopper = results.stopper();
        let hand = Hand::new();
        assert!(hand.poll(&mut results).is_pending());
        drop(results);
        assert_eq!(Arc::strong_count(&hand.woken), 2, "the hand's own and its waker's");
        gate(0).open();
        stopper.stop();
    });
}

#[test]
fn awaiting_a_result_can_be_given_up_without_a_loss() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for g in [1, 7] {
            let source = hesitant(stream::iter(0..2000_u32));
            let mut results = pool.map_stream(source, |n: u32| n).granularity(fixed(g));
            block_on(async {
                let (mut next, mut given_up) = (0, 0_u32);
                loop {
                    // Polled once and dropped, if there is nothing yet.
                    let result = select_biased! {
                        result = results.next().fuse() => result,
                        () = std::future::ready(()).fuse() => {
                            given_up += 1;
                            // So that it is not a spin for the executor alone.
                            std::thread::yield_now();
                            continue;
                        }
                    };
                    let Some(result) = result else { break };
                    assert_eq!(result.unwrap(), next);
                    next += 1;
                }
                assert_eq!(next, 2000);
                assert!(given_up > 0);
            });
        }
    });
}

#[test]
fn a_source_that_is_always_ready_lets_others_have_their_turn() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let f = |n: u32| {
            gate(0).wait();
            n
        };
        let source = stream::iter(counted());
        let mut results = pool.map_stream(source, f).granularity(fixed(1000)).window(1_000_000);
        let hand = Hand::new();
        for poll in 1..4 {
            assert!(hand.poll(&mut results).is_pending());
            assert!(pulled() <= poll * 2000, "{}", pulled());
            hand.wait();
        }
        gate(0).open();
        assert_eq!(hand.next(&mut results).unwrap().unwrap(), 0);
    });
}

/// A stream with a source that is pending for ever, one of whose items runs and waits for `gate(0)`.
fn waiting(pool: &Pool) -> (UnboundedSender<u32>, MapStream<impl Stream<Item = u32> + use<>, u32>, Stopper) {
    let (send, source) = unbounded();
    for n in 0..10 {
        send.unbounded_send(n).unwrap();
    }
    let f = |n: u32| {
        counter(0).bump();
        gate(0).wait();
        n
    };
    let results = pool.map_stream(Source(source), f).granularity(fixed(1));
    let stopper = results.stopper();
    (send, results, stopper)
}

#[test]
fn stop_wakes_the_task_and_calls_off_what_has_not_started() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let (_send, mut results, stopper) = waiting(&pool);
        let hand = Hand::new();
        assert!(hand.poll(&mut results).is_pending());
        counter(0).wait_for(1);
        stopper.stop();
        hand.wait();
        assert!(hand.poll(&mut results).is_pending(), "what is running goes on");
        assert!(gate(1).is_open(), "the source was let go");
        gate(0).open();
        assert_eq!(hand.next(&mut results).unwrap().unwrap(), 0);
        for _ in 1..10 {
            assert!(hand.next(&mut results).unwrap().unwrap_err().is_cancelled());
        }
        assert!(hand.next(&mut results).is_none());
        assert_eq!(counter(0).get(), 1);
    });
}

#[test]
fn a_stream_ends_with_its_pool_though_its_source_is_pending() {
    both(|| {
        for ending in ["terminate", "close"] {
            let pool = new_pool(1).unwrap();
            let (_send, mut results, _) = waiting(&pool);
            let hand = Hand::new();
            assert!(hand.poll(&mut results).is_pending());
            counter(0).wait_for(1);
            let closing = if ending == "close" {
                gate(0).open();
                Some(pool.close())
            } else {
                pool.terminate();
                None
            };
            for n in 0..10 {
                let result = hand.next(&mut results).unwrap();
                match ending {
                    "close" => assert_eq!(result.unwrap(), n),
                    _ => assert!(result.is_ok() || result.unwrap_err().is_terminated()),
                }
            }
            assert!(hand.next(&mut results).is_none());
            drop((pool, results));
            if let Some(closing) = closing {
                closing.wait();
            }
        }
    });
}

#[test]
fn a_stream_that_is_cut_short_has_an_error_if_its_source_is_ready() {
    both(|| {
        for g in [1, 10] {
            for ordered in [true, false] {
                cell(PULLED).store(0, SeqCst);
                let pool = new_pool(2).unwrap();
                let (items, source) = unbounded();
                let begin = |source| {
                    let results = pool.map_stream(source, |n: u32| n).granularity(fixed(g));
                    if ordered { results } else { results.unordered() }
                };
                let mut results = begin(source.boxed());
                let hand = Hand::new();
                items.unbounded_send(0).unwrap();
                assert_eq!(hand.next(&mut results).unwrap().unwrap(), 0);
                assert!(hand.poll(&mut results).is_pending());
                (1..5).for_each(|n| items.unbounded_send(n).unwrap());
                pool.close().wait();
                assert!(hand.next(&mut results).unwrap().unwrap_err().is_closed());
                assert!(hand.next(&mut results).is_none() && results.is_terminated());
                // Streams that begin then: one that has items, one that has none for the moment, and an empty one.
                let mut fresh = begin(stream::iter(counted()).boxed()).indexed();
                assert!(matches!(hand.next(&mut fresh), Some((0, Err(TaskError::Closed)))));
                assert!(hand.next(&mut fresh).is_none());
                assert_eq!(pulled(), 1);
                assert!(hand.next(&mut begin(stream::pending().boxed())).is_none());
                assert!(hand.next(&mut begin(stream::empty().boxed())).is_none());
            }
        }
    });
}

#[test]
fn m_02_a_stream_that_a_fork_inherits_ends_there_and_goes_on_here() {
    scenario(|| {
        let pool = Pool::new(2).unwrap();
        for g in [1, 10] {
            let mut results = pool.map_stream(stream::iter(0..500_u32), |n: u32| n).granularity(fixed(g));
            let stopper = results.stopper();
            let hand = Hand::new();
            for n in 0..20 {
                assert_eq!(hand.next(&mut results).unwrap().unwrap(), n);
            }
            let mut inherited = Some(results);
            let child = fork_and(|| {
                stopper.stop();
                let expected = |r: Result<u32, TaskError>| {
                    r.map_or_else(|error| error.is_not_in_this_process(), |n| (20..500).contains(&n))
                };
                let mut results = inherited.take().unwrap();
                // Everything is ready there: nothing can wake.
                let mut well = true;
                loop {
                    match hand.poll(&mut results) {
                        Poll::Ready(Some(result)) => well &= expected(result),
                        Poll::Ready(None) => break,
                        Poll::Pending => return 2,
                    }
                }
                drop(results);
                let mut fresh = pool.map_stream(stream::iter(counted()), |n: u32| n);
                let told =
                    matches!(hand.poll(&mut fresh), Poll::Ready(Some(Err(TaskError::NotInThisProcess))));
                i32::from(!(well && told && matches!(hand.poll(&mut fresh), Poll::Ready(None))))
            });
            assert_eq!(exit_code_of(child), 0);
            let mut results = inherited.unwrap();
            assert!(std::iter::from_fn(|| hand.next(&mut results)).map(Result::unwrap).eq(20..500));
        }
    });
}

#[test]
fn terms_closures_that_capture_and_the_worker_at_hand() {
    both(|| {
        forkring::hooks::set_log_error(|_| ());
        let pool = new_pool(2).unwrap();
        let impatient = pool.options().timeout(Duration::from_secs(1));
        let f = |n: u32| {
            if n == 2 {
                gate(0).wait();
            }
            n
        };
        let mut results = impatient.map_stream(stream::iter(0..4_u32), f).granularity(fixed(4)).indexed();
        while let Some((i, result)) = block_on(results.next()) {
            match result {
                Ok(n) => assert_eq!(u64::from(n), i),
                Err(error) => assert!(error.is_timed_out() && i == 2),
            }
        }
        let generation = |w: &Worker, n: &View<u32>| u64::from(n.to_native()) + 10 * (w.id() / 2) as u64;
        let results = impatient.map_stream_with(stream::iter(0..4_u32), generation);
        assert_eq!(block_on(results.map(Result::unwrap).collect::<Vec<_>>()), [0, 1, 2, 3]);

        let factor = 7;
        let bound = builder().workers(1).bind(move |n: u32| n * factor).unwrap();
        let results = bound.map_stream(stream::iter(0..4_u32));
        assert_eq!(block_on(results.map(Result::unwrap).collect::<Vec<_>>()), [0, 7, 14, 21]);
    });
}

/// F-29: what is told of a `Map` is told of an asynchronous stream.
#[test]
fn f_29_progress_goes_by_hundredths_where_the_total_is_known() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let odd = |n: u32| if n == 100 { panic!("no") } else { n };
        for ordered in [true, false] {
            let (mut told, delivered) = (Vec::new(), Cell::new(0_u64));
            // A filter does not know how many will come.
            let source = hesitant(stream::iter(0..1000_u32)).filter(|_| std::future::ready(true));
            let results = pool.map_stream(source, odd).granularity(fixed(7));
            let results = if ordered { results } else { results.unordered() };
            let mut results = results.on_progress(|progress: Progress| {
                // The one that is told of is on its way out.
                assert_eq!(progress.done, delivered.get() + u64::from(!progress.is_last));
                told.push(progress);
            });
            while block_on(results.next()).is_some() {
                delivered.set(delivered.get() + 1);
            }
            assert!(block_on(results.next()).is_none() && results.is_terminated());
            drop(results);
            let last = told.pop().unwrap();
            assert_eq!((last.done, last.failed, last.total, last.is_last), (1000, 1, None, true));
            assert!(told.iter().all(|progress| progress.total.is_none() && !progress.is_last), "{told:?}");

            let mut told = Vec::new();
            let results = pool.map_stream(stream::iter(0..1000_u32), odd);
            let results = if ordered { results } else { results.unordered() };
            let results = results.on_progress(|progress: Progress| told.push(progress)).granularity(fixed(7));
            assert_eq!(block_on(results.indexed().collect::<Vec<_>>()).len(), 1000);
            assert!(told.len() >= 101, "{}", told.len());
            assert!(told.is_sorted_by_key(|progress| (progress.done, progress.elapsed)));
            assert!(told.iter().all(|progress| progress.total == Some(1000)));
            let last = told.pop().unwrap();
            assert_eq!((last.done, last.failed, last.is_last), (1000, 1, true));
            assert!(told.iter().all(|progress| !progress.is_last));
        }
    });
}

#[test]
fn f_29_progress_is_told_once_at_the_end_and_never_of_what_was_dropped() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for ordered in [true, false] {
            let last = Cell::new(None);
            let tell = |progress: Progress| {
                if progress.is_last {
                    assert!(last.replace(Some(progress.done)).is_none(), "the second end");
                }
            };
            let results = |source| {
                let results = pool.map_stream(source, |n: u32| n);
                if ordered { results } else { results.unordered() }.on_progress(tell)
            };
            let hand = Hand::new();
            let (items, source) = unbounded();
            let mut stream = results(source);
            items.unbounded_send(1).unwrap();
            assert!(hand.next(&mut stream).unwrap().is_ok());
            // The source is pending, which is no news.
            assert!(hand.poll(&mut stream).is_pending());
            assert_eq!(last.get(), None);
            drop(items);
            assert!(hand.next(&mut stream).is_none() && hand.next(&mut stream).is_none());
            assert_eq!(last.take(), Some(1));

            // Stopped: the last call tells how far it came.
            let (items, source) = unbounded();
            let mut stream = results(source);
            (0..10).for_each(|n| items.unbounded_send(n).unwrap());
            assert!((0..10).all(|_| hand.next(&mut stream).unwrap().is_ok()));
            assert!(hand.poll(&mut stream).is_pending());
            stream.stopper().stop();
            assert!(hand.next(&mut stream).is_none());
            assert_eq!(last.take(), Some(10));

            let (items, source) = unbounded();
            let mut stream = results(source);
            items.unbounded_send(1).unwrap();
            assert!(hand.next(&mut stream).unwrap().is_ok());
            drop(stream);
            assert_eq!(last.take(), None);
        }
    });
}
