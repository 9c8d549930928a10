//! Blocking waits under every policy, and what is left in a task's cell.

#![allow(unsafe_code, reason = "a waker whose clone takes its time")]

use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};
use std::time::{Duration, Instant};

use forkring::{Granularity, Pool, Service, TaskError, TaskHandle, View, WaitPolicy, Worker};

use crate::support::{BOUND, both, builder, eventually, gate, new_pool, outcome};

fn spinning() -> crate::support::EitherBuilder {
    builder().workers(1).wait_policy(WaitPolicy::Spin)
}

#[test]
fn l_01_a_task_that_a_spinning_thread_waits_for_may_ask_the_service() {
    both(|| {
        let pool = spinning().service(|n: u64| n * 2).build().unwrap();
        let ask = |w: &Worker<(), Service<u64, u64>>, n: &View<u64>| w.call(&n.to_native()).unwrap();
        // Where three spin on two cores, each round takes some of the scheduler's slices.
        for n in 0..10_u64 {
            assert_eq!(outcome(pool.submit_with(ask, &n)).unwrap(), 2 * n);
        }
    });
}

#[test]
fn l_10_a_spinning_handler_that_waits_for_its_own_pool_gets_an_error() {
    static POOL: OnceLock<Pool<(), Service<u64, String>>> = OnceLock::new();
    both(|| {
        let handler = |n: u64| match POOL.get().unwrap().submit(|n: u64| n, &n).wait() {
            Ok(n) => n.to_string(),
            Err(error) => error.to_string(),
        };
        let pool = POOL.get_or_init(|| spinning().service(handler).build().unwrap());
        let ask = |w: &Worker<(), Service<u64, String>>, n: &View<u64>| w.call(&n.to_native()).unwrap();
        let answer = outcome(pool.submit_with(ask, &1_u64)).unwrap();
        assert!(answer.contains("deadlock"), "{answer}");
        pool.terminate();
    });
}

#[test]
fn g_06_a_spinning_thread_waits_for_room_no_longer_than_its_deadline() {
    both(|| {
        let pool = spinning().queue_limit(0).build().unwrap();
        let held = pool.submit(|(): ()| gate(0).wait(), &());
        let (limit, start) = (Duration::from_millis(50), Instant::now());
        let late = pool.options().deadline(limit).submit(|n: u64| n, &1);
        assert!(start.elapsed() >= limit);
        assert!(matches!(outcome(late), Err(TaskError::TimedOut { .. })));
        gate(0).open();
        outcome(held).unwrap();
    });
}

#[test]
fn a_spinning_thread_that_waits_for_the_last_of_many_gets_it() {
    both(|| {
        let pool = spinning().build().unwrap();
        // More than a ring.
        let mut tasks: Vec<_> = (0..6000_u64).map(|n| pool.submit(|n: u64| n + 1, &n)).collect();
        assert_eq!(outcome(tasks.pop().unwrap()).unwrap(), 6000);
        for (n, task) in (1..).zip(tasks) {
            assert_eq!(outcome(task).unwrap(), n);
        }
    });
}

#[test]
fn e_07_a_spinning_wait_ends_when_its_time_is_over() {
    both(|| {
        let pool = spinning().build().unwrap();
        let mut held = pool.submit(
            |n: u64| {
                gate(0).wait();
                n
            },
            &7,
        );
        let limit = Duration::from_millis(50);
        for _ in 0..3 {
            let start = Instant::now();
            assert!(held.wait_timeout(limit).is_none());
            assert!(start.elapsed() >= limit && start.elapsed() < BOUND);
        }
        gate(0).open();
        assert_eq!(outcome(held).unwrap(), 7);
    });
}

/// A waker whose clone comes when the task is over, and which counts its clones.
struct Late {
    clones: AtomicUsize,
    task: TaskHandle,
}

fn late(data: *const ()) -> &'static Late {
    // SAFETY: made from a leaked `Late`, in the one test that uses it.
    unsafe { &*data.cast::<Late>() }
}

static LATE: RawWakerVTable = RawWakerVTable::new(
    |data| {
        eventually("the task's end", || late(data).task.is_finished());
        late(data).clones.fetch_add(1, SeqCst);
        RawWaker::new(data, &LATE)
    },
    |data| _ = late(data).clones.fetch_sub(1, SeqCst),
    |_| (),
    |data| _ = late(data).clones.fetch_sub(1, SeqCst),
);

#[test]
fn b_11_a_waker_that_comes_too_late_is_not_kept() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let mut task = pool.submit(|n: u64| n + 1, &1);
        let waker: &'static Late =
            Box::leak(Box::new(Late { clones: AtomicUsize::new(1), task: task.handle() }));
        {
            // SAFETY: the functions of `LATE` expect a `Late`.
            let waker = unsafe { Waker::new(std::ptr::from_ref(waker).cast(), &LATE) };
            let poll = Pin::new(&mut task).poll(&mut Context::from_waker(&waker));
            assert!(matches!(poll, Poll::Ready(Ok(2))));
        }
        assert_eq!(waker.clones.load(SeqCst), 0, "a waker was left in the task's cell");
    });
}

#[test]
fn a_panic_of_a_task_with_a_large_row_leaves_a_state_alone_that_it_did_not_use() {
    both(|| {
        let pool = builder().workers(1).state(|_, ()| Ok(5_u64)).build().unwrap();
        type Here = Worker<(), forkring::NoService, u64>;
        for len in [1000_usize, 200 << 10] {
            let bump = pool.submit_with(
                |w: &Here, (): &View<()>| {
                    *w.state() += 1;
                    *w.state()
                },
                &(),
            );
            let before = outcome(bump).unwrap();
            let panicked = pool.submit(|row: Vec<u8>| assert!(row.is_empty()), &vec![1; len]);
            assert!(outcome(panicked).unwrap_err().is_panicked());
            let after = pool.submit_with(|w: &Here, (): &View<()>| *w.state(), &());
            assert_eq!(outcome(after).unwrap(), before, "{len}");
        }
    });
}

#[test]
fn f_09_values_behind_a_panic_arrive_whole_also_when_the_arena_is_full() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let items = 1_500_000_u32;
        let is_odd_one = |n: u32| n % 200_000 == 30_077;
        let (mut values, mut panics) = (0_u64, 0_u64);
        let stream = pool.map(0..items, |n: u32| -> u128 {
            assert!(n % 200_000 != 30_077, "{}", "x".repeat((n / 200_000 % 7) as usize));
            n.into()
        });
        for (index, result) in
            stream.unordered().granularity(Granularity::Fixed(50_000)).window(2_000_000).indexed()
        {
            match result {
                Ok(value) => {
                    assert_eq!(value, u128::from(index));
                    values += 1;
                }
                Err(error) => {
                    assert!(error.is_panicked() && is_odd_one(index as u32), "{index}: {error}");
                    panics += 1;
                }
            }
        }
        assert_eq!((values + panics, panics), (items.into(), 8));
    });
}

/// With many tasks before a worker, whoever waits is rung for some of its responses only; one behind which nothing comes for long
/// is not kept back.
#[test]
fn a_result_is_there_although_the_task_behind_it_takes_long() {
    both(|| {
        let pool = new_pool(1).unwrap();
        for round in 0..30 {
            let short = |n: u64| {
                std::thread::sleep(Duration::from_micros(300));
                n
            };
            let first: Vec<_> = (0..5_u64).map(|n| pool.submit(short, &n)).collect();
            let long = pool.submit(
                |round: u64| {
                    gate(round as usize).wait();
                    round
                },
                &round,
            );
            let others: Vec<_> = (0..60_u64).map(|n| pool.submit(|n: u64| n, &n)).collect();
            for (n, task) in (0..).zip(first) {
                assert_eq!(outcome(task).unwrap(), n);
            }
            assert!(!long.is_finished());
            gate(round as usize).open();
            assert_eq!(outcome(long).unwrap(), round);
            for (n, task) in (0..).zip(others) {
                assert_eq!(outcome(task).unwrap(), n);
            }
        }
    });
}

/// Between two tasks of a slow rhythm, a worker sleeps without a barrier behind its response (edge TOLD). The second request comes before
/// it, at that very moment, and after it.
#[test]
fn a_request_that_meets_a_worker_about_to_sleep_again_is_not_left() {
    both(|| {
        let pool = builder().workers(1).build().unwrap();
        // Longer than a short nap: the worker takes it for a slow rhythm.
        let pause = || spin_for(Duration::from_micros(150));
        let long = Duration::from_secs(30);
        for round in 0..1500_u32 {
            pause();
            let mut first = pool.submit(|n: u32| n + 1, &round);
            (0..round % 300 * 8).for_each(|_| std::hint::spin_loop());
            let mut second = pool.submit(|n: u32| n + 2, &round);
            match round % 3 {
                0 => {
                    assert_eq!(second.wait_timeout(long).expect("in time").unwrap(), round + 2);
                    assert_eq!(first.wait_timeout(long).expect("in time").unwrap(), round + 1);
                }
                1 => {
                    let both = futures::future::join(first, second);
                    let (first, second) = futures::executor::block_on(both);
                    assert_eq!((first.unwrap(), second.unwrap()), (round + 1, round + 2));
                }
                _ => {
                    // Asleep in the seat when the response comes.
                    let held = std::thread::scope(|scope| {
                        let waiter = scope.spawn(|| first.wait_timeout(long).expect("in time").unwrap());
                        let held = second.wait_timeout(long).expect("in time").unwrap();
                        assert_eq!(waiter.join().unwrap(), round + 1);
                        held
                    });
                    assert_eq!(held, round + 2);
                }
            }
        }
        // Nor is the order to leave.
        for round in 0..50_u32 {
            let pool = builder().workers(1).build().unwrap();
            pause();
            let task = pool.submit(|n: u32| n, &round);
            (0..round * 20).for_each(|_| std::hint::spin_loop());
            assert!(!pool.close_within(long).wait().forced);
            assert_eq!(outcome(task).unwrap(), round);
        }
    });
}

/// Keeps its CPU, so that the worker sleeps for this long and not until this thread has woken up.
fn spin_for(time: Duration) {
    let since = Instant::now();
    while since.elapsed() < time {
        std::hint::spin_loop();
    }
}
