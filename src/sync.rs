//! The one door through which atomics enter, so that loom can stand in for them.
//!
//! `RUSTFLAGS="--cfg forkring_loom"` replaces the types by loom's; everything in [`crate::ground`] that
//! coordinates two sides is written against this module and runs on the heap as well as in shared memory.

#[cfg(not(forkring_loom))]
pub(crate) use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

#[cfg(forkring_loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
