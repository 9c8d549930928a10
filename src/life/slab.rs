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
