//! A worker that writes what it likes over its side of the shared memory.

#![allow(unsafe_code, reason = "a pointer to the process's only region")]

use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::{Duration, Instant};

use crate::protocol::hostile::source::Source;
use crate::protocol::hostile::target::Target;

/// Side `B` of this process's worker, which is never unmapped.
static SIDE_B: AtomicPtr<u8> = AtomicPtr::new(null_mut());

/// This process is a worker, and this is its side `B`.
pub(crate) fn note(base: NonNull<u8>) {
    SIDE_B.store(base.as_ptr(), Ordering::Release);
}

/// How to scribble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// A word or two, before this returns.
    Once,
    /// From a thread, while the worker goes on; after a moment the process aborts.
    Meanwhile,
}

/// Scribbles over the memory of the worker that runs this. `seed` decides where and what.
///
/// # Panics
///
/// If this process is no worker.
pub fn scribble(seed: u64, how: How) {
    let base = NonNull::new(SIDE_B.load(Ordering::Acquire)).expect("this process is a worker");
    // SAFETY: TARGET-1: a worker's region stays mapped, writable, until the process ends.
    let target = unsafe { Target::new(base) };
    let mut state = seed;
    match how {
        How::Once => damage(target, &mut state, 2),
        How::Meanwhile => {
            std::thread::spawn(move || {
                let end = Instant::now() + Duration::from_millis(20);
                while Instant::now() < end {
                    damage(target, &mut state, 100);
                }
                std::process::abort();
            });
        }
    }
}

fn damage(target: Target, state: &mut u64, words: usize) {
    for _ in 0..words {
        let bytes: Vec<u8> = (0..8)
            .flat_map(|_| {
                *state =
                    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((*state >> 16) as u32).to_le_bytes()
            })
            .collect();
        target.scribble(u64::from(bytes[31]), &mut Source::new(&bytes));
    }
}
