//! Which descriptors of this process belong to pools, so that the zygote of one pool can close those of the others.
//!
//! The registry's lock also covers every moment at which a descriptor of a pool exists that is not registered yet, and
//! every fork of ours: a zygote therefore finds the list complete. Around forks of the host the lock is held by a
//! `pthread_atfork` handler, so that a child finds it free.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::slab::Depot;
use crate::ground::sys::{SysError, fork_generation};

/// Std's mutex: whoever lets go of it in a child touches this word and makes one system call. parking_lot's would look
/// for threads that wait, under a lock of its own that may have been held at the moment of the fork.
static REGISTRY: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

thread_local! {
    /// Whether this thread holds the registry while it forks a zygote.
    static FORKING: Cell<bool> = const { Cell::new(false) };
}

/// The lock, held while descriptors are made, closed, or inherited.
#[derive(Debug)]
pub(crate) struct Registry(Option<MutexGuard<'static, BTreeSet<RawFd>>>);

pub(crate) fn lock() -> Registry {
    Registry(Some(REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)))
}

impl Registry {
    pub(crate) fn add(&mut self, fd: BorrowedFd<'_>) {
        if let Some(fds) = &mut self.0 {
            fds.insert(fd.as_raw_fd());
        }
    }

    /// To be called before the descriptor is closed, under the same lock.
    pub(crate) fn remove(&mut self, fd: BorrowedFd<'_>) {
        if let Some(fds) = &mut self.0 {
            fds.remove(&fd.as_raw_fd());
        }
    }

    pub(crate) fn all(&self) -> Vec<RawFd> {
        self.0.iter().flat_map(|fds| fds.iter().copied()).collect()
    }

    /// In a zygote: forgets what belongs to the master, and leaves the lock free for pools of the workers' own.
    pub(crate) fn abandon(&mut self) {
        if let Some(mut fds) = self.0.take() {
            fds.clear();
        }
    }

    /// Runs `fork` with the registry held by this thread, so that our own handler does not wait for it.
    pub(crate) fn around_fork<T>(&self, fork: impl FnOnce() -> T) -> T {
        FORKING.set(true);
        let result = fork();
        FORKING.set(false);
        result
    }
}

static HOOKS: fork_generation::Hooks =
    fork_generation::Hooks { prepare: before_fork, parent: after_fork, child: after_fork };

/// Makes forks of this process count and leave our locks free in the child.
pub(crate) fn install() -> Result<(), SysError> {
    fork_generation::install_hooks(&HOOKS)
}

/// The locks that a fork of the host is made under.
#[derive(Default)]
struct Held {
    _registry: Option<MutexGuard<'static, BTreeSet<RawFd>>>,
    _depot: Option<MutexGuard<'static, Depot>>,
}

thread_local! {
    static HELD: RefCell<Held> = RefCell::default();
}

fn before_fork() {
    let held = Held {
        _registry: (!FORKING.get()).then(|| REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)),
        _depot: Some(super::slab::lock_depot()),
    };
    // A thread that forks while it is being destroyed lets go at once: its child cannot use pools.
    let _ = HELD.try_with(|slot| *slot.borrow_mut() = held);
}

/// In the parent, and in the child, whose only thread is the copy of the one that holds the locks.
fn after_fork() {
    let _ = HELD.try_with(|slot| drop(slot.take()));
}
