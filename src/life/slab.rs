//! Free cells: a small store for each thread, over one depot for all.
//!
//! * SLAB-1: a thread's store is touched by that thread alone, in functions that run nobody else's code meanwhile.

#![allow(unsafe_code, reason = "a thread's own store, without a flag that says so")]

use std::cell::{Cell, UnsafeCell};
use std::mem::ManuallyDrop;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::job::{Job, LINE_BYTES};
use crate::ground::prefetch;
use crate::ground::sys::memory::{HUGE_PAGE_BYTES, leak};

/// A thread keeps at most this many free cells; half of them move to or from the depot at a time.
const STORE_MAX: usize = 1024;
/// Cells are made so many at a time, or as many as there are already, up to two mebibytes.
const BLOCK: usize = 128;
const BLOCK_MAX: usize = HUGE_PAGE_BYTES / LINE_BYTES;
/// How many allocations before its use a cell is asked for.
const CELLS_AHEAD: usize = 8;

/// Cells that no thread has in its store.
#[derive(Debug)]
pub(crate) struct Depot {
    free: Vec<&'static Job>,
    /// How many cells there are.
    made: usize,
}

/// Std's mutex, for the reason given in [`registry`](super::registry).
static DEPOT: Mutex<Depot> = Mutex::new(Depot { free: Vec::new(), made: 0 });

fn depot() -> MutexGuard<'static, Depot> {
    DEPOT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Held across a fork, so that the child finds the depot whole.
pub(crate) fn lock_depot() -> MutexGuard<'static, Depot> {
    depot()
}

impl Depot {
    /// Moves some cells to `to`, one at least. The last ones lie in the order in which they are to be used.
    fn withdraw(&mut self, to: &mut Vec<&'static Job>) {
        if self.free.is_empty() {
            let count = self.made.clamp(BLOCK, BLOCK_MAX);
            self.made += count;
            // Cells live as long as the process: that is what lets a stale handle look at one.
            self.free.extend(leak(count, Job::new).iter().rev());
        }
        let keep = self.free.len().saturating_sub(STORE_MAX / 2);
        to.extend(self.free.drain(keep..));
    }
}

/// Without a destructor, so that it costs nothing to get at.
struct Store {
    cells: UnsafeCell<ManuallyDrop<Vec<&'static Job>>>,
    /// The cell that was freed last.
    freed: Cell<usize>,
}

thread_local! {
    static STORE: Store =
        const { Store { cells: UnsafeCell::new(ManuallyDrop::new(Vec::new())), freed: Cell::new(0) } };
    static RETURN: Return = const { Return };
}

/// Gives the cells of a thread back when that ends.
struct Return;

impl Drop for Return {
    fn drop(&mut self) {
        STORE.with(|store| {
            // SAFETY: SLAB-1.
            let cells = unsafe { &mut *store.cells.get() };
            depot().free.append(cells);
            // Without room it is filled no more.
            **cells = Vec::new();
        });
    }
}

/// Gives the store its room, unless the thread is ending.
#[cold]
fn open(cells: &mut Vec<&'static Job>) -> bool {
    let lives = RETURN.try_with(|_| ()).is_ok();
    if lives {
        cells.reserve_exact(STORE_MAX);
    }
    lives
}

#[inline]
pub(super) fn take() -> &'static Job {
    STORE.with(|store| {
        // SAFETY: SLAB-1.
        let cells = unsafe { &mut *store.cells.get() };
        let Some(job) = cells.pop() else { return refill(cells) };
        // Cells that have not been used for a while are far away.
        if let Some(soon) = cells.get(cells.len().wrapping_sub(CELLS_AHEAD)) {
            prefetch::for_writing(*soon);
        }
        job
    })
}

#[cold]
fn refill(cells: &mut Vec<&'static Job>) -> &'static Job {
    let is_open = cells.capacity() > 0 || open(cells);
    depot().withdraw(cells);
    let job = cells.pop().expect("there is one at least");
    if !is_open {
        depot().free.append(cells);
        *cells = Vec::new();
    }
    job
}

#[inline]
pub(super) fn give(job: &'static Job) {
    STORE.with(|store| {
        // SAFETY: SLAB-1.
        let cells = unsafe { &mut *store.cells.get() };
        // Results are taken in the order of their tasks as a rule, and cells are used in the order in which they lie.
        let here = std::ptr::from_ref(job).addr();
        prefetch::for_writing_ahead(job, here.wrapping_sub(store.freed.replace(here)) as isize);
        if cells.len() < cells.capacity() {
            cells.push(job);
        } else {
            give_to_many(cells, job);
        }
    });
}

/// Into a store that is full, or has no room at all.
#[cold]
fn give_to_many(cells: &mut Vec<&'static Job>, job: &'static Job) {
    if cells.capacity() == 0 && !open(cells) {
        depot().free.push(job);
        return;
    }
    if cells.len() >= STORE_MAX {
        depot().free.extend(cells.drain(..STORE_MAX / 2));
    }
    cells.push(job);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn address(job: &'static Job) -> usize {
        std::ptr::from_ref(job).addr()
    }

    /// How many this thread has in its store, and how many it has room for.
    fn store() -> (usize, usize) {
        STORE.with(|store| {
            // SAFETY: SLAB-1.
            let cells = unsafe { &*store.cells.get() };
            (cells.len(), cells.capacity())
        })
    }

    /// Runs this on a thread of its own, whose store is empty.
    fn elsewhere(f: impl FnOnce() + Send + 'static) {
        std::thread::spawn(f).join().expect("the thread ends well");
    }

    #[test]
    fn nobody_has_a_cell_that_another_has() {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    let mut held: Vec<&'static Job> = (0..700).map(|_| take()).collect();
                    for round in 0..50 {
                        held.drain(..300 + round).for_each(give);
                        held.extend((0..300 + round).map(|_| take()));
                    }
                    held.into_iter().map(address).collect::<Vec<_>>()
                })
            })
            .collect();
        // They are still theirs: nobody has given them back.
        let all: Vec<usize> =
            threads.into_iter().flat_map(|thread| thread.join().expect("it ends")).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 4 * 700);
        assert!(all.iter().all(|at| at.is_multiple_of(LINE_BYTES)), "a line each");
    }

    #[test]
    fn a_cell_that_was_given_back_is_taken_first() {
        elsewhere(|| {
            let cells = [take(), take()].map(|job| (job, address(job)));
            cells.into_iter().for_each(|(job, _)| give(job));
            assert_eq!([take(), take()].map(address), [cells[1].1, cells[0].1]);
        });
    }

    #[test]
    fn a_store_is_bounded() {
        elsewhere(|| {
            let cells: Vec<_> = (0..5 * STORE_MAX).map(|_| take()).collect();
            for job in cells {
                give(job);
                let (len, room) = store();
                assert!(len <= STORE_MAX && room >= STORE_MAX, "{len} of {room}");
            }
        });
    }

    /// Whoever only gives, as a thread does that takes results of others' tasks, gets a store too.
    #[test]
    fn a_thread_may_begin_with_giving() {
        elsewhere(|| {
            let cells: Vec<_> = (0..STORE_MAX).map(|_| take()).collect();
            elsewhere(move || {
                cells.into_iter().for_each(give);
                assert_eq!(store().0, STORE_MAX);
            });
        });
    }

    #[test]
    fn blocks_grow_and_their_cells_come_in_order() {
        let mut depot = Depot { free: Vec::new(), made: 0 };
        let (mut sizes, mut cells) = (Vec::new(), Vec::new());
        while depot.made < 4 * BLOCK_MAX {
            let before = depot.made;
            depot.withdraw(&mut cells);
            assert!(!cells.is_empty() && cells.len() <= STORE_MAX / 2);
            // The next one is the one behind, as long as a block lasts.
            let at: Vec<usize> = cells.drain(..).rev().map(address).collect();
            assert!(at.windows(2).all(|pair| pair[1] == pair[0] + LINE_BYTES));
            sizes.extend((depot.made > before).then_some(depot.made - before));
        }
        assert_eq!(sizes[..3], [BLOCK, BLOCK, 2 * BLOCK], "as many as there are");
        assert_eq!(sizes.last(), Some(&BLOCK_MAX));
    }

    /// Gives cells back when its thread ends, and uses some.
    struct Late(Cell<Vec<&'static Job>>);

    impl Drop for Late {
        fn drop(&mut self) {
            let held: Vec<_> = (0..10).map(|_| take()).collect();
            held.into_iter().chain(self.0.take()).for_each(give);
        }
    }

    thread_local! {
        static BEFORE: Late = const { Late(Cell::new(Vec::new())) };
        static AFTER: Late = const { Late(Cell::new(Vec::new())) };
    }

    /// Whichever of a thread's values are dropped first.
    #[test]
    fn the_cells_of_threads_that_end_are_not_lost() {
        let made = depot().made;
        for _ in 0..200 {
            elsewhere(|| {
                BEFORE.with(|_| ());
                let mut cells: Vec<_> = (0..1200).map(|_| take()).collect();
                AFTER.with(|late| late.0.set(cells.drain(..400).collect()));
                BEFORE.with(|late| late.0.set(cells.drain(..400).collect()));
                cells.into_iter().for_each(give);
            });
        }
        // Other tests may make some meanwhile; of each 400 these threads would have lost 80,000.
        let more = depot().made - made;
        assert!(more < 60_000, "{more} more");
    }
}
