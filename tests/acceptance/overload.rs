//! Acceptance cases, group B, of a pool with a queue limit: who is refused, who waits, and where places go.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};

use forkring::{Permit, Pool, Reserve, Service, SubmitAsync, TaskError, TrySubmitError, View};
use forkring::{WaitPolicy, Worker};
use futures::executor::block_on;
use futures::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{
    both, builder, cell, counter, eventually, exit_code_of, fork_and, gate, new_pool, outcome, scenario,
    signal, zygote,
};

fn limited(workers: usize, limit: usize) -> Pool {
    builder().workers(workers).queue_limit(limit).build().unwrap()
}

/// Counts itself in counter 0 when it starts, and ends when its gate opens.
fn gated(n: usize) -> usize {
    counter(0).bump();
    gate(n).wait();
    n
}

fn quick(n: usize) -> usize {
    n
}

/// All places that can be had at once.
fn free_places(pool: &Pool) -> usize {
    let permits: Vec<Permit> = std::iter::from_fn(|| pool.try_reserve().ok()).take(1000).collect();
    permits.len()
}

/// Whatever has ended without anybody's seeing it has given its place back by then, and not twice.
#[track_caller]
fn all_come_back(pool: &Pool, places: usize) {
    eventually("all places are free", || {
        let free = free_places(pool);
        assert!(free <= places, "{free} of {places} places are free");
        free == places
    });
}

/// Counts its calls.
#[derive(Default)]
struct Calls(AtomicUsize);

impl Wake for Calls {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A future that is polled by hand, with a waker of its own.
struct ByHand<F> {
    future: F,
    calls: Arc<Calls>,
}

impl<F: Future + Unpin> ByHand<F> {
    fn new(future: F) -> Self {
        Self { future, calls: Arc::default() }
    }

    fn poll(&mut self) -> Poll<F::Output> {
        let waker = Waker::from(self.calls.clone());
        Pin::new(&mut self.future).poll(&mut Context::from_waker(&waker))
    }

    fn is_woken(&self) -> bool {
        self.calls.0.load(SeqCst) > 0
    }
}

/// A thread that can be recognised, and so be seen to sleep.
fn submitter<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
    std::thread::Builder::new().name("submitter".to_owned()).spawn(f).unwrap()
}

/// How many of them sleep.
fn sleeping_submitters() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let stats = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("stat")).ok());
    stats.filter(|stat| stat.contains("(submitter) S")).count()
}

#[track_caller]
fn sleep_all(n: usize) {
    eventually("all submitters sleep", || sleeping_submitters() == n);
}

#[test]
fn b_17_the_queue_limit_refuses_what_is_too_much() {
    both(|| {
        let pool = limited(2, 3);
        for round in 0..20 {
            let mut tasks: Vec<_> = (0..5).map(|_| pool.try_submit(gated, &round).unwrap()).collect();
            counter(0).wait_for(round as u32 * 5 + 2);
            assert_eq!(pool.try_submit(gated, &round).unwrap_err(), TrySubmitError::Full);
            assert_eq!(
                pool.try_submit_with(|_: &Worker, _: &View<usize>| (), &round).unwrap_err(),
                TrySubmitError::Full
            );
            assert!(pool.try_reserve().is_err());
            gate(round).open();
            for task in tasks.drain(..) {
                assert_eq!(outcome(task).unwrap(), round);
                // Whoever has seen an outcome finds a place.
                drop(pool.try_reserve().unwrap());
            }
        }
        assert_eq!(free_places(&pool), 5);
        pool.close().wait();
    });
}

#[test]
fn b_17_with_a_limit_of_zero_a_task_is_accepted_when_a_worker_is_free() {
    both(|| {
        let pool = limited(2, 0);
        let tasks = [0, 1].map(|n| pool.try_submit(gated, &n).unwrap());
        assert_eq!(pool.try_submit(gated, &2).unwrap_err(), TrySubmitError::Full);
        gate(0).open();
        let [first, second] = tasks;
        assert_eq!(outcome(first).unwrap(), 0);
        assert_eq!(outcome(pool.try_submit(quick, &7).unwrap()).unwrap(), 7);
        gate(1).open();
        assert_eq!(outcome(second).unwrap(), 1);
        assert_eq!(free_places(&pool), 2);
    });
}

#[test]
fn without_a_limit_nothing_is_refused_and_nobody_waits() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let held = pool.try_submit(gated, &0).unwrap();
        let tasks: Vec<_> = (0..1000).map(|n| pool.try_submit(quick, &n).unwrap()).collect();
        let others: Vec<_> = (0..1000).map(|n| pool.submit_async(quick, &n)).collect();
        let permits: Vec<_> = (0..1000).map(|_| pool.reserve().wait()).collect();
        gate(0).open();
        assert_eq!(outcome(held).unwrap(), 0);
        for (n, (task, permit)) in tasks.into_iter().zip(permits).enumerate() {
            assert_eq!(outcome(task).unwrap(), n);
            assert_eq!(outcome(permit.submit(quick, &n)).unwrap(), n);
        }
        let others: Vec<usize> = block_on(join_all(others)).into_iter().map(Result::unwrap).collect();
        assert_eq!(others, (0..1000).collect::<Vec<_>>());
    });
}

#[test]
fn b_15_a_pool_that_is_over_refuses_at_once() {
    scenario(|| {
        let over = |end: fn(&Pool), is_cause: fn(&TaskError) -> bool| {
            for pool in [Pool::new(1).unwrap(), limited(1, 0)] {
                let permit = pool.reserve().wait();
                end(&pool);
                for _ in 0..3 {
                    assert_eq!(pool.try_submit(quick, &1).unwrap_err(), TrySubmitError::Closed);
                    let refused = pool.try_submit_with(|_: &Worker, _: &View<str>| (), "x");
                    assert_eq!(refused.unwrap_err(), TrySubmitError::Closed);
                    assert_eq!(pool.try_reserve().unwrap_err(), TrySubmitError::Closed);
                    let submitted = outcome(pool.submit(quick, &1)).unwrap_err();
                    assert!(is_cause(&submitted), "{submitted}");
                    assert!(is_cause(&block_on(pool.submit_async(quick, &1)).unwrap_err()));
                    assert!(is_cause(&outcome(block_on(pool.reserve()).submit(quick, &1)).unwrap_err()));
                }
                let late = outcome(permit.submit(quick, &1)).unwrap_err();
                assert!(is_cause(&late), "{late}");
            }
        };
        over(|pool| pool.close().wait(), TaskError::is_closed);
        over(Pool::terminate, TaskError::is_terminated);
        let fail = |pool: &Pool| {
            // The other pool of the round may have a zygote too, which does no harm.
            let victim = pool.submit(|_: ()| nix::unistd::getppid().as_raw() as u32, &());
            signal(outcome(victim).unwrap(), Signal::SIGKILL);
            pool.closed().wait();
        };
        let pool = limited(1, 0);
        fail(&pool);
        assert_eq!(pool.try_submit(quick, &1).unwrap_err(), TrySubmitError::Closed);
        assert!(outcome(pool.submit(quick, &1)).unwrap_err().is_pool_failed());
        assert!(block_on(pool.submit_async(quick, &1)).unwrap_err().is_pool_failed());
    });
}

#[test]
fn b_19_a_blocking_submit_waits_until_there_is_room() {
    both(|| {
        let pool = limited(1, 1);
        let (first, second) = (pool.submit(gated, &0), pool.submit(gated, &1));
        let third = {
            let pool = pool.clone();
            submitter(move || pool.submit(quick, &2))
        };
        sleep_all(1);
        gate(0).open();
        let third = third.join().unwrap();
        assert!(!second.is_finished());
        assert_eq!(outcome(first).unwrap(), 0);
        gate(1).open();
        assert_eq!(outcome(second).unwrap(), 1);
        assert_eq!(outcome(third).unwrap(), 2);
        assert_eq!(free_places(&pool), 2);
    });
}

#[test]
fn b_19_an_async_submit_waits_until_there_is_room_and_cancelling_it_gives_its_place_up() {
    both(|| {
        let pool = limited(1, 1);
        let (first, second) = (pool.submit(gated, &0), pool.submit(gated, &1));
        counter(0).wait_for(1);
        let [mut third, mut fourth, mut fifth] = [2, 3, 4].map(|n| ByHand::new(pool.submit_async(quick, &n)));
        for waiting in [&mut third, &mut fourth, &mut fifth] {
            assert!(waiting.poll().is_pending());
            assert!(waiting.poll().is_pending());
        }
        drop(fourth);
        gate(0).open();
        assert_eq!(outcome(first).unwrap(), 0);
        eventually("room for the third", || third.is_woken());
        assert!(!fifth.is_woken());
        // The place is the third's, although it has not come for it.
        assert_eq!(pool.try_submit(quick, &9).unwrap_err(), TrySubmitError::Full);
        drop(third);
        assert!(fifth.is_woken(), "a place that was granted and is not wanted goes to the next one");
        assert!(fifth.poll().is_pending(), "it is submitted, and waits for its result");
        gate(1).open();
        assert_eq!(outcome(second).unwrap(), 1);
        assert_eq!(block_on(fifth.future).unwrap(), 4);
        assert_eq!(free_places(&pool), 2);
    });
}

#[test]
fn an_async_submit_with_room_is_on_its_way_at_once_and_does_not_borrow_its_input() {
    both(|| {
        let pool = limited(1, 0);
        let text = "some text".to_owned();
        let length = pool.submit_async_with(
            |_: &Worker, text: &View<str>| {
                counter(1).bump();
                text.len()
            },
            text.as_str(),
        );
        drop(text);
        counter(1).wait_for(1);
        assert_eq!(block_on(length).unwrap(), 9);
        // One that is dropped before it started never runs.
        let held = pool.submit(gated, &0);
        let bumps = |_: ()| counter(2).bump();
        let mut waiting = ByHand::new(pool.submit_async(bumps, &()));
        assert!(waiting.poll().is_pending());
        let never_polled = pool.submit_async(bumps, &());
        drop((waiting, never_polled));
        gate(0).open();
        assert_eq!(outcome(held).unwrap(), 0);
        assert_eq!(outcome(pool.submit(quick, &1)).unwrap(), 1);
        assert_eq!(counter(2).get(), 0);
        all_come_back(&pool, 1);
    });
}

#[test]
fn a_permit_keeps_room_for_one_task() {
    both(|| {
        let pool = limited(1, 1);
        let permit = pool.try_reserve().unwrap();
        let other = block_on(pool.reserve());
        assert_eq!(pool.try_submit(quick, &1).unwrap_err(), TrySubmitError::Full);
        let mut third = ByHand::new(pool.reserve());
        assert!(third.poll().is_pending());
        assert_eq!(outcome(permit.submit(quick, &1)).unwrap(), 1);
        assert!(third.is_woken());
        let Poll::Ready(third) = third.poll() else { panic!("it was woken") };
        let words = third.submit_with(|_: &Worker, text: &View<str>| text.split(' ').count(), "to be or not");
        assert_eq!(outcome(words).unwrap(), 4);
        drop(other);
        assert_eq!(free_places(&pool), 2);
        // A reservation that was polled can still be waited for by a thread, even if it is granted meanwhile.
        let permits = [(); 2].map(|()| pool.try_reserve().unwrap());
        let mut polled = ByHand::new(pool.reserve());
        assert!(polled.poll().is_pending());
        drop(permits);
        assert_eq!(outcome(polled.future.wait().submit(quick, &3)).unwrap(), 3);
        assert_eq!(free_places(&pool), 2);
    });
}

/// Its serializer panics.
struct Panics;

impl forkring::rkyv::Archive for Panics {
    type Archived = ();
    type Resolver = ();
    fn resolve(&self, (): (), _: forkring::rkyv::Place<()>) {}
}

impl<S: forkring::rkyv::rancor::Fallible + ?Sized> forkring::rkyv::Serialize<S> for Panics {
    fn serialize(&self, _: &mut S) -> Result<(), S::Error> {
        panic!("a serializer that panics")
    }
}

#[test]
fn inputs_that_cannot_be_encoded_take_no_place() {
    both(|| {
        let pool = builder().workers(1).queue_limit(1).max_payload(64).build().unwrap();
        let large = vec![7_u8; 1000];
        let length = |v: Vec<u8>| v.len();
        for _ in 0..10 {
            assert!(outcome(pool.submit(length, &large)).unwrap_err().is_too_large());
            assert!(outcome(pool.try_submit(length, &large).unwrap()).unwrap_err().is_too_large());
            assert!(block_on(pool.submit_async(length, &large)).unwrap_err().is_too_large());
            assert!(outcome(pool.try_reserve().unwrap().submit(length, &large)).unwrap_err().is_too_large());
            let permit = pool.try_reserve().unwrap();
            let body = |_: &Worker, _: &View<Panics>| ();
            catch_unwind(AssertUnwindSafe(|| permit.submit_with(body, &Panics))).unwrap_err();
            catch_unwind(AssertUnwindSafe(|| pool.try_submit_with(body, &Panics))).unwrap_err();
            assert_eq!(free_places(&pool), 2);
        }
    });
}

#[test]
fn room_is_given_in_the_order_of_arrival_to_threads_and_futures_alike() {
    both(|| {
        let pool = limited(1, 0);
        let held = pool.submit(gated, &0);
        static ORDER: Mutex<Vec<usize>> = Mutex::new(Vec::new());
        let mut futures = Vec::new();
        let mut threads = Vec::new();
        for n in 0..8 {
            if n % 2 == 0 {
                let mut future = ByHand::new(pool.reserve());
                assert!(future.poll().is_pending());
                futures.push((n, future));
                continue;
            }
            let pool = pool.clone();
            threads.push(submitter(move || {
                let permit = pool.reserve().wait();
                ORDER.lock().unwrap().push(n);
                drop(permit);
            }));
            sleep_all(threads.len());
        }
        assert_eq!(pool.try_submit(quick, &1).unwrap_err(), TrySubmitError::Full);
        gate(0).open();
        assert_eq!(outcome(held).unwrap(), 0);
        for (n, mut future) in futures {
            eventually("the future's turn", || future.is_woken());
            let Poll::Ready(permit) = future.poll() else { panic!("it was woken") };
            ORDER.lock().unwrap().push(n);
            drop(permit);
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*ORDER.lock().unwrap(), (0..8).collect::<Vec<_>>());
        assert_eq!(free_places(&pool), 1);
    });
}

#[test]
fn many_threads_submit_into_little_room_while_others_drop_their_tasks() {
    both(|| {
        for policy in [WaitPolicy::Adaptive, WaitPolicy::Park] {
            let builder = builder().workers(2).queue_limit(3).wait_policy(policy);
            let pool: Pool = builder.build().unwrap();
            std::thread::scope(|scope| {
                for thread in 0..8 {
                    let pool = &pool;
                    scope.spawn(move || {
                        let mut kept = None;
                        for n in 0..300 {
                            let task = pool.submit(quick, &n);
                            match (n + thread) % 4 {
                                0 => drop(task),
                                1 => task.detach(),
                                2 => assert_eq!(outcome(task).unwrap(), n),
                                _ => kept = Some((n, task)),
                            }
                        }
                        let (n, task) = kept.unwrap();
                        assert_eq!(outcome(task).unwrap(), n);
                    });
                }
            });
            all_come_back(&pool, 5);
            pool.close().wait();
        }
    });
}

#[test]
fn a_flood_of_detached_tasks_runs_whole_through_a_small_queue() {
    both(|| {
        for (workers, limit) in [(1, 0), (1, 10), (3, 1)] {
            let pool = limited(workers, limit);
            let before = cell(0).load(SeqCst);
            for _ in 0..5000 {
                pool.spawn(|_: ()| cell(0).fetch_add(1, SeqCst), &());
            }
            pool.close().wait();
            assert_eq!(cell(0).load(SeqCst) - before, 5000);
        }
    });
}

#[test]
fn futures_that_are_dropped_at_any_moment_lose_no_place() {
    both(|| {
        let pool = limited(1, 1);
        for round in 0..300_usize {
            let tasks = [pool.submit(quick, &0), pool.submit(quick, &1)];
            let mut submits: Vec<_> = (0..4).map(|n| ByHand::new(pool.submit_async(quick, &n))).collect();
            let mut reserves: Vec<_> = (0..4).map(|_| ByHand::new(pool.reserve())).collect();
            submits.iter_mut().for_each(|future| drop(future.poll()));
            reserves.iter_mut().for_each(|future| drop(future.poll()));
            let others = std::thread::spawn(move || {
                for n in 0..(round % 7) * 30 {
                    std::hint::black_box(n);
                }
                // Some of them are granted at this very moment.
                drop((submits, reserves));
            });
            for task in tasks {
                assert!(outcome(task).is_ok());
            }
            others.join().unwrap();
            all_come_back(&pool, 2);
        }
    });
}

#[test]
fn a_pool_that_is_closed_turns_away_whoever_waits_for_room() {
    both(|| {
        let end = |close: bool| {
            let pool = limited(1, 0);
            let held = pool.submit(gated, &usize::from(close));
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let pool = pool.clone();
                    submitter(move || outcome(pool.submit(quick, &1)))
                })
                .collect();
            sleep_all(4);
            let mut submit = ByHand::new(pool.submit_async(quick, &1));
            let mut reserve = ByHand::new(pool.reserve());
            assert!(submit.poll().is_pending() && reserve.poll().is_pending());
            let unpolled = pool.submit_async(quick, &1);
            let closing = close.then(|| pool.close());
            if !close {
                pool.terminate();
            }
            let is_cause = |error: TaskError| if close { error.is_closed() } else { error.is_terminated() };
            for thread in threads {
                assert!(is_cause(thread.join().unwrap().unwrap_err()));
            }
            assert!(submit.is_woken() && reserve.is_woken());
            assert!(is_cause(block_on(submit.future).unwrap_err()));
            assert!(is_cause(block_on(unpolled).unwrap_err()));
            assert!(is_cause(outcome(block_on(reserve.future).submit(quick, &1)).unwrap_err()));
            if let Some(closing) = closing {
                gate(1).open();
                assert_eq!(outcome(held).unwrap(), 1);
                closing.wait();
            } else {
                assert!(outcome(held).unwrap_err().is_terminated());
            }
        };
        end(true);
        end(false);
    });
}

#[test]
fn a_pool_that_fails_turns_away_whoever_waits_for_room() {
    scenario(|| {
        let pool = limited(1, 0);
        let held = pool.submit(gated, &0);
        let thread = {
            let pool = pool.clone();
            submitter(move || outcome(pool.submit(quick, &1)))
        };
        sleep_all(1);
        signal(zygote(), Signal::SIGKILL);
        assert!(thread.join().unwrap().unwrap_err().is_pool_failed());
        assert!(outcome(held).unwrap_err().is_pool_failed());
    });
}

#[test]
fn a_submit_that_waits_keeps_no_pool_alive_and_a_reservation_does() {
    both(|| {
        let pool = limited(1, 0);
        let held = pool.submit(gated, &0);
        let mut submit = ByHand::new(pool.submit_async(quick, &1));
        assert!(submit.poll().is_pending());
        drop(pool);
        assert!(block_on(submit.future).unwrap_err().is_terminated());
        assert!(outcome(held).unwrap_err().is_terminated());

        let pool = limited(1, 0);
        let held = pool.submit(gated, &1);
        let mut reserve = ByHand::new(pool.reserve());
        assert!(reserve.poll().is_pending());
        drop(pool);
        gate(1).open();
        assert_eq!(outcome(held).unwrap(), 1);
        let task = block_on(reserve.future).submit(quick, &5);
        // The permit was the last handle.
        assert!(outcome(task).map_or_else(|error| error.is_terminated(), |n| n == 5));
    });
}

#[test]
fn a_stalled_stream_never_blocks_a_submit() {
    both(|| {
        let pool = limited(2, 1);
        let mut stalled = pool.map(0_usize.., |n: usize| vec![n; 1000]);
        assert_eq!(stalled.next().unwrap().unwrap()[0], 0);
        for n in 0..500 {
            assert_eq!(outcome(pool.submit(quick, &n)).unwrap(), n);
            assert_eq!(outcome(pool.try_submit(quick, &n).unwrap()).unwrap(), n);
        }
        assert_eq!(free_places(&pool), 3);
        // And a full gate does not block a stream or a broadcast.
        let permits = [(); 3].map(|()| pool.try_reserve().unwrap());
        for n in 1..200 {
            assert_eq!(stalled.next().unwrap().unwrap()[0], n);
        }
        drop(stalled);
        assert_eq!(pool.map(0..100_usize, quick).map(Result::unwrap).sum::<usize>(), 4950);
        assert_eq!(pool.broadcast(|w: &Worker| w.id()).len(), 2);
        assert!(pool.try_submit(quick, &1).is_err());
        drop(permits);
        assert_eq!(free_places(&pool), 3);
    });
}

#[test]
fn d_17_places_come_back_from_ten_thousand_tasks_whose_workers_are_killed() {
    scenario(|| {
        forkring::hooks::set_log_error(|_| {});
        let pool = limited(2, 6);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let pool = &pool;
                scope.spawn(move || {
                    let mut tasks = std::collections::VecDeque::new();
                    for n in 0..5000_usize {
                        let task = pool.submit(
                            |n: usize| {
                                cell(n).fetch_add(1, SeqCst);
                                if n % 400 == 399 {
                                    std::process::abort();
                                }
                            },
                            &(n % 2500),
                        );
                        match n % 3 {
                            0 => tasks.push_back(task),
                            1 => task.detach(),
                            _ => drop(task),
                        }
                        if tasks.len() > 2 {
                            let result = outcome(tasks.pop_front().unwrap());
                            assert!(result.map_or_else(|error| error.is_worker_lost(), |()| true));
                        }
                        if n % 1000 == 500 + thread {
                            // From outside, too. It may have gone.
                            let victim = pool.worker_pids().first().copied();
                            victim.map(|pid| kill(Pid::from_raw(pid as i32), Signal::SIGKILL));
                        }
                    }
                });
            }
        });
        all_come_back(&pool, 8);
        assert!((0..2500).all(|n| cell(n).load(SeqCst) <= 4), "a task starts at most once");
        pool.close().wait();
    });
}

// ---- in other processes

struct Inherited {
    pool: Pool,
    permit: Permit,
    reserve: Reserve,
    submit: SubmitAsync<usize>,
    unpolled: SubmitAsync<usize>,
}

static INHERITED: Mutex<Option<Inherited>> = Mutex::new(None);

/// Uses and drops everything inherited; 0 if all of it is inert.
fn use_and_drop() -> i32 {
    let Ok(Some(inherited)) = INHERITED.lock().map(|mut place| place.take()) else { return 1 };
    let Inherited { pool, permit, mut reserve, submit, unpolled } = inherited;
    let inert = |result: Result<usize, TaskError>| result.is_err_and(|e| e.is_not_in_this_process());
    let checks = [
        inert(pool.submit(quick, &1).wait()),
        pool.try_submit(quick, &1).is_ok_and(|task| inert(task.wait())),
        inert(block_on(pool.submit_async(quick, &1))),
        pool.try_reserve().is_ok_and(|permit| inert(permit.submit(quick, &1).wait())),
        inert(pool.reserve().wait().submit(quick, &1).wait()),
        inert(block_on(pool.reserve()).submit(quick, &1).wait()),
        inert(block_on(&mut reserve).submit(quick, &1).wait()),
        inert(permit.submit(quick, &1).wait()),
        inert(block_on(submit)),
    ];
    drop((reserve, unpolled, pool));
    checks.iter().position(|&holds| !holds).map_or(0, |at| 10 + at as i32)
}

#[test]
fn m_02_inherited_permits_and_places_in_line_are_inert() {
    scenario(|| {
        let pool = limited(1, 1);
        let held = pool.submit(gated, &0);
        counter(0).wait_for(1);
        let permit = pool.try_reserve().unwrap();
        let mut reserve = ByHand::new(pool.reserve());
        let mut submit = ByHand::new(pool.submit_async(quick, &2));
        assert!(reserve.poll().is_pending() && submit.poll().is_pending());
        let inherited = Inherited {
            pool: pool.clone(),
            permit,
            reserve: reserve.future,
            submit: submit.future,
            unpolled: pool.submit_async(quick, &3),
        };
        *INHERITED.lock().unwrap() = Some(inherited);
        for _ in 0..10 {
            assert_eq!(exit_code_of(fork_and(use_and_drop)), 0);
            // One that just drops them.
            let child =
                fork_and(|| INHERITED.lock().map_or(1, |mut place| i32::from(place.take().is_none())));
            assert_eq!(exit_code_of(child), 0);
        }
        let Inherited { permit, reserve, submit, unpolled, .. } = INHERITED.lock().unwrap().take().unwrap();
        gate(0).open();
        assert_eq!(outcome(permit.submit(quick, &4)).unwrap(), 4);
        assert_eq!(outcome(held).unwrap(), 0);
        assert_eq!(outcome(block_on(reserve).submit(quick, &1)).unwrap(), 1);
        assert_eq!(block_on(submit).unwrap(), 2);
        assert_eq!(block_on(unpolled).unwrap(), 3);
        assert_eq!(free_places(&pool), 2);
        pool.close().wait();
    });
}

// ---- with a service

type Numbers = Pool<(), Service<usize, usize>>;
type Asking = Worker<(), Service<usize, usize>>;

static NUMBERS: OnceLock<Numbers> = OnceLock::new();

const DEADLOCK: usize = 500;

fn named(result: Result<usize, TaskError>) -> usize {
    result.unwrap_or_else(|error| {
        assert!(error.to_string().contains("deadlock"), "{error}");
        DEADLOCK
    })
}

/// Submits to the full pool that it serves, in one of several ways.
fn nesting(way: usize) -> usize {
    counter(1).bump();
    let pool = NUMBERS.get().unwrap();
    named(match way {
        0 => pool.submit(quick, &7).wait(),
        1 => block_on(pool.submit_async(quick, &7)),
        2 => pool.reserve().wait().submit(quick, &7).wait(),
        _ => block_on(async { pool.reserve().await.submit(quick, &7).await }),
    })
}

fn ask(w: &Asking, way: &View<usize>) -> usize {
    w.call(&(way.to_native() as usize)).unwrap()
}

#[test]
fn l_03_a_handler_that_waits_for_room_that_only_its_caller_can_make_gets_an_error() {
    both(|| {
        let pool = builder().workers(1).queue_limit(0).service(nesting).build().unwrap();
        assert!(NUMBERS.set(pool.clone()).is_ok());
        for round in 0..40_usize {
            assert_eq!(outcome(pool.submit_with(ask, &(round % 4))).unwrap(), DEADLOCK, "way {}", round % 4);
            assert_eq!(outcome(pool.submit(quick, &1)).unwrap(), 1);
        }
        pool.close().wait();
    });
}

#[test]
fn l_03_an_async_handler_that_waits_for_room_that_only_its_caller_can_make_gets_an_error() {
    both(|| {
        let handler = |way: usize| async move {
            let pool = NUMBERS.get().unwrap();
            named(match way {
                0 => pool.submit_async(quick, &7).await,
                _ => pool.reserve().await.submit(quick, &7).await,
            })
        };
        let pool = builder().workers(1).queue_limit(0).service_async(handler).build().unwrap();
        assert!(NUMBERS.set(pool.clone()).is_ok());
        for round in 0..40_usize {
            assert_eq!(outcome(pool.submit_with(ask, &(round % 2))).unwrap(), DEADLOCK);
            assert_eq!(outcome(pool.submit(quick, &1)).unwrap(), 1);
        }
        pool.close().wait();
    });
}

#[test]
fn l_03_a_handler_waits_for_room_while_another_worker_can_make_some() {
    both(|| {
        let pool = builder().workers(2).queue_limit(0).service(nesting).build().unwrap();
        assert!(NUMBERS.set(pool.clone()).is_ok());
        for way in 0..4 {
            let held = pool.submit(gated, &way);
            counter(0).wait_for(way as u32 + 1);
            let asking = pool.submit_with(ask, &way);
            // The pool is full: the handler has to wait until the other worker is free.
            counter(1).wait_for(way as u32 + 1);
            assert_eq!(pool.try_submit(quick, &1).unwrap_err(), TrySubmitError::Full);
            assert!(!asking.is_finished());
            gate(way).open();
            assert_eq!(outcome(held).unwrap(), way);
            assert_eq!(outcome(asking).unwrap(), 7, "way {way}");
        }
        pool.close().wait();
    });
}

#[test]
fn handlers_and_threads_that_submit_at_once_all_come_to_an_end() {
    both(|| {
        let pool = builder().workers(2).queue_limit(1).service(nesting).build().unwrap();
        assert!(NUMBERS.set(pool.clone()).is_ok());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let pool = &pool;
                scope.spawn(move || {
                    for n in 0..100_usize {
                        let asked = outcome(pool.submit_with(ask, &((n + thread) % 4))).unwrap();
                        assert!(matches!(asked, 7 | DEADLOCK), "{asked}");
                    }
                });
            }
        });
        pool.close().wait();
    });
}

// ---- user code on the pool's own thread

/// When it is woken it submits more than there is room for.
struct Submits(Pool);

impl Wake for Submits {
    fn wake(self: Arc<Self>) {
        for _ in 0..5 {
            self.0.spawn(|_: ()| counter(2).bump(), &());
        }
        counter(3).bump();
    }
}

#[test]
fn g_03_a_waker_that_submits_to_a_full_pool_does_not_stop_it() {
    both(|| {
        let pool = limited(1, 0);
        let mut task = pool.submit(gated, &0);
        counter(0).wait_for(1);
        let waker = Waker::from(Arc::new(Submits(pool.clone())));
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
        gate(0).open();
        // Nobody else looks: it is the pool's own thread that calls the waker.
        counter(3).wait_for(1);
        counter(2).wait_for(5);
        assert_eq!(outcome(task).unwrap(), 0);
        all_come_back(&pool, 1);
        drop(waker);
        pool.close().wait();
    });
}

#[test]
fn a_bound_pool_has_a_limit_too() {
    both(|| {
        let factor = 7;
        let builder = builder().workers(1).queue_limit(0);
        let pool = builder
            .bind(move |n: usize| {
                gate(0).wait();
                n * factor
            })
            .unwrap();
        let first = pool.try_submit(&1).unwrap();
        assert_eq!(pool.try_submit(&2).unwrap_err(), TrySubmitError::Full);
        let second = pool.submit_async(&2);
        gate(0).open();
        assert_eq!(outcome(first).unwrap(), 7);
        assert_eq!(block_on(second).unwrap(), 14);
        assert_eq!(outcome(pool.submit(&3)).unwrap(), 21);
    });
}
