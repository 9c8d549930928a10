//! Models of a job's end, edge DONE: [`JobRef::finish_small`](super::JobRef::finish_small) and [`Ended`](super::Ended) on the
//! pool's side, `register`, `take` and `abandon` on the task's.
//!
//! Their steps are repeated here on loom's words, with a fence where the code relies on sequentially consistent accesses, which
//! loom takes for weaker ones. A waker that nobody calls shows as a deadlock.

#![allow(unsafe_code, reason = "what the words guard, whose races loom looks for")]

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Notify};
use loom::thread;

use super::{BUSY, CALLED_OFF, GENERATION_SHIFT, GONE, WAKER};
use crate::sync::{AtomicU64, fence};

const RUNS: u64 = 0;
const ENDED: u64 = 1;

type Waker = Arc<Notify>;

struct Cell {
    state: AtomicU64,
    place: AtomicU64,
    outcome: UnsafeCell<Option<u64>>,
    waker: UnsafeCell<Option<Waker>>,
    /// How often it was freed, and its outcome taken.
    frees: AtomicUsize,
}

fn generation_of(state: u64) -> u64 {
    state >> GENERATION_SHIFT
}

impl Cell {
    fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            place: AtomicU64::new(RUNS),
            outcome: UnsafeCell::new(None),
            waker: UnsafeCell::new(None),
            frees: AtomicUsize::new(0),
        }
    }

    fn change(&self, from: u64, to: u64) -> Result<(), u64> {
        let changed = self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        fence(Ordering::SeqCst);
        changed.map(drop)
    }

    fn has_ended(&self) -> bool {
        self.place.load(Ordering::Acquire) == ENDED
    }

    fn is_over(&self, generation: u64) -> bool {
        self.has_ended() || generation_of(self.state.load(Ordering::Acquire)) != generation
    }

    fn free(&self, state: u64) {
        // SAFETY: loom ends the model if somebody else is at it.
        self.outcome.with_mut(|outcome| unsafe { (*outcome).take() }).expect("it has an outcome");
        // SAFETY: as above.
        self.waker.with_mut(|waker| unsafe { *waker = None });
        self.frees.fetch_add(1, Ordering::Relaxed);
        self.state.store((generation_of(state) + 1) << GENERATION_SHIFT, Ordering::Release);
    }

    // The pool's side.

    fn end(&self, outcome: u64) -> u64 {
        let state = self.state.load(Ordering::Relaxed);
        // SAFETY: as above.
        self.outcome.with_mut(|place| unsafe { *place = Some(outcome) });
        self.place.store(ENDED, Ordering::Release);
        generation_of(state)
    }

    /// Behind a fence.
    fn look_after(&self, generation: u64) {
        let mut state = self.state.load(Ordering::Acquire);
        while state & (WAKER | GONE) != 0 && generation_of(state) == generation {
            let next = if state & GONE != 0 { state | BUSY } else { state & !WAKER | BUSY };
            if let Err(seen) = self.change(state, next) {
                state = seen;
                continue;
            }
            if state & GONE != 0 {
                return self.free(state);
            }
            // SAFETY: as above.
            let waker = self.waker.with_mut(|waker| unsafe { (*waker).take() });
            self.state.fetch_and(!BUSY, Ordering::Release);
            return waker.expect("WAKER says so").notify();
        }
    }

    // The task's side.

    fn withdraw(&self) -> u64 {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            if state & BUSY != 0 {
                thread::yield_now();
                state = self.state.load(Ordering::Acquire);
            } else if state & WAKER == 0 {
                return state;
            } else {
                match self.change(state, state & !WAKER) {
                    Ok(()) => return state & !WAKER,
                    Err(seen) => state = seen,
                }
            }
        }
    }

    /// `true`: it has ended.
    fn register(&self, waker: &Waker) -> bool {
        while !self.has_ended() {
            let state = self.withdraw();
            // SAFETY: as above.
            self.waker.with_mut(|slot| unsafe { *slot = Some(waker.clone()) });
            if self.change(state, state | WAKER).is_ok() {
                return self.has_ended();
            }
        }
        true
    }

    fn take(&self) -> u64 {
        // SAFETY: as above.
        let outcome = self.outcome.with(|outcome| unsafe { *outcome }).expect("it has ended");
        self.free(self.withdraw());
        outcome
    }

    fn wait(&self, waker: &Waker) -> u64 {
        while !self.register(waker) {
            waker.wait();
        }
        self.take()
    }

    fn abandon(&self) {
        while !self.has_ended() {
            let state = self.withdraw();
            // SAFETY: as above.
            drop(self.waker.with_mut(|waker| unsafe { (*waker).take() }));
            if self.change(state, state | GONE).is_err() {
                continue;
            }
            if !self.has_ended() || self.change(state | GONE, state).is_err() {
                return;
            }
        }
        self.take();
    }
}

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(f);
}

/// Ends jobs as one look at a worker does.
fn end_all(cells: &[Cell]) {
    let generations: Vec<u64> = cells.iter().map(|cell| cell.end(7)).collect();
    fence(Ordering::SeqCst);
    cells.iter().zip(generations).for_each(|(cell, generation)| cell.look_after(generation));
}

fn beside_a_pool<const CELLS: usize>(task: impl FnOnce(&[Cell; CELLS])) {
    let cells = Arc::new(std::array::from_fn(|_| Cell::new()));
    let pool = thread::spawn({
        let cells: Arc<[Cell; CELLS]> = cells.clone();
        move || end_all(&*cells)
    });
    task(&cells);
    pool.join().expect("it ends");
    for cell in cells.iter() {
        assert_eq!(cell.frees.load(Ordering::Relaxed), 1, "freed once");
    }
}

#[test]
fn whoever_waits_for_one_of_two_jobs_and_then_for_the_other_is_woken() {
    model(|| {
        beside_a_pool::<2>(|cells| {
            let waker = Waker::new(Notify::new());
            for cell in cells {
                assert_eq!(cell.wait(&waker), 7);
            }
        });
    });
}

#[test]
fn a_second_waker_is_called_or_not_needed() {
    model(|| {
        beside_a_pool::<1>(|[cell]| {
            let wakers = [(); 2].map(|()| Waker::new(Notify::new()));
            if cell.register(&wakers[0]) {
                cell.take();
            } else {
                cell.wait(&wakers[1]);
            }
        });
    });
}

#[test]
fn the_cell_of_a_task_that_is_dropped_is_freed_once() {
    model(|| beside_a_pool::<1>(|[cell]| cell.abandon()));
}

#[test]
fn the_cell_of_a_task_that_waits_and_is_dropped_is_freed_once() {
    model(|| {
        beside_a_pool::<1>(|[cell]| {
            if cell.register(&Waker::new(Notify::new())) {
                cell.take();
            } else {
                cell.abandon();
            }
        });
    });
}

/// The pool's side comes to look at a task that has long taken its outcome.
#[test]
fn the_next_task_of_a_cell_keeps_its_waker() {
    model(|| {
        beside_a_pool::<1>(|[cell]| {
            let waker = Waker::new(Notify::new());
            cell.wait(&waker);
            cell.place.store(RUNS, Ordering::Relaxed);
            let next = Waker::new(Notify::new());
            assert!(!cell.register(&next), "nobody has ended it");
            assert!(cell.state.load(Ordering::Relaxed) & WAKER != 0);
        });
    });
}

/// Edge ITEMS: `Core::note_sleeping_stream` and `Engine::register_singles` beside `Ended::look_after_all` and `Core::call_streams`.
#[test]
fn a_stream_that_falls_asleep_is_called_for_an_item() {
    model(|| {
        let shared = Arc::new((Cell::new(), AtomicU64::new(0), Notify::new()));
        let pool = thread::spawn({
            let shared = shared.clone();
            move || {
                let (item, asleep, waker) = &*shared;
                item.end(7);
                fence(Ordering::SeqCst);
                if asleep.load(Ordering::Relaxed) != 0 && asleep.fetch_and(0, Ordering::AcqRel) != 0 {
                    waker.notify();
                }
            }
        });
        let (item, asleep, waker) = &*shared;
        while !item.has_ended() {
            asleep.fetch_or(1, Ordering::AcqRel);
            fence(Ordering::SeqCst);
            if !item.has_ended() {
                waker.wait();
            }
        }
        item.take();
        pool.join().expect("it ends");
    });
}

/// A flag of the pool's side, here that a running job was cancelled, comes between.
#[test]
fn the_cell_of_a_cancelled_task_that_is_dropped_is_freed_once() {
    model(|| {
        let cell = Arc::new(Cell::new());
        let pool = thread::spawn({
            let cell = cell.clone();
            move || {
                cell.state.fetch_or(CALLED_OFF, Ordering::Relaxed);
                end_all(std::slice::from_ref(&*cell));
            }
        });
        cell.abandon();
        pool.join().expect("it ends");
        assert_eq!(cell.frees.load(Ordering::Relaxed), 1);
    });
}

/// `Job::is_over`, while the task takes its outcome and the cell serves another one.
#[test]
fn what_is_over_stays_so() {
    model(|| {
        let cell = Arc::new(Cell::new());
        cell.end(7);
        let task = thread::spawn({
            let cell = cell.clone();
            move || {
                cell.take();
                cell.place.store(RUNS, Ordering::Release);
            }
        });
        assert!(cell.is_over(0));
        assert!(cell.is_over(0), "it was over before");
        task.join().expect("it ends");
    });
}
