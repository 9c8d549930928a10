//! Fences. That of a sleep handshake is split into a cheap half and a dear half.
//!
//! Whoever is about to sleep stores "I sleep", fences, and looks again; whoever publishes something fences and looks
//! whether the other one sleeps. One of the two then sees the other (Dekker). The publisher does this for every
//! message and the sleeper hardly ever, so `membarrier(2)` makes the sleeper pay for both: [`heavy`] has the kernel
//! run a full barrier on every CPU that runs a registered process, and [`light`] only keeps the compiler in order.
//! It works across processes. Where the call cannot be had, both halves are `fence(SeqCst)`.

#![allow(unsafe_code, reason = "membarrier(2), which nix does not offer, and instructions of a processor")]

use std::sync::atomic::{AtomicU8, Ordering as O, compiler_fence};
use std::time::Duration;

use nix::libc;

use crate::sync::{Ordering, fence};

const UNDECIDED: u8 = 0;
const FENCES: u8 = 1;
const MEMBARRIER: u8 = 2;

/// Decided once in a process, before the first pool, and inherited by its workers: both sides must agree.
static MODE: AtomicU8 = AtomicU8::new(UNDECIDED);

const QUERY: libc::c_int = 0;
const GLOBAL_EXPEDITED: libc::c_int = 1 << 1;
const REGISTER_GLOBAL_EXPEDITED: libc::c_int = 1 << 2;

fn membarrier(command: libc::c_int) -> libc::c_long {
    if cfg!(miri) {
        // Which does not know the call, and whose fences are as good.
        return -1;
    }
    let (command, none) = (libc::c_long::from(command), 0 as libc::c_long);
    // SAFETY: takes integers, changes no memory.
    unsafe { libc::syscall(libc::SYS_membarrier, command, none, none) }
}

/// Decides for this process, and makes it take part. Registering takes milliseconds in a process with threads, once.
pub(crate) fn install() {
    if MODE.load(O::Relaxed) != UNDECIDED {
        return;
    }
    let wanted = libc::c_long::from(GLOBAL_EXPEDITED | REGISTER_GLOBAL_EXPEDITED);
    let offered = membarrier(QUERY);
    let usable = offered >= 0 && offered & wanted == wanted && membarrier(REGISTER_GLOBAL_EXPEDITED) == 0;
    MODE.store(if usable { MEMBARRIER } else { FENCES }, O::Relaxed);
}

/// Makes a forked process take part.
pub(crate) fn join() {
    if MODE.load(O::Relaxed) == MEMBARRIER {
        // What the parent could do, this process can: it cannot have a filter yet.
        let _ = membarrier(REGISTER_GLOBAL_EXPEDITED);
    }
}

/// The publisher's half.
#[inline]
pub(crate) fn light() {
    if MODE.load(O::Relaxed) == MEMBARRIER {
        compiler_fence(O::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// The publisher's half for a loop, which knows what it has to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Light {
    fences: bool,
}

impl Light {
    pub(crate) fn get() -> Self {
        Self { fences: MODE.load(O::Relaxed) != MEMBARRIER }
    }

    /// As [`light`].
    #[inline]
    pub(crate) fn barrier(self) {
        if self.fences {
            fence(Ordering::SeqCst);
        } else {
            compiler_fence(O::SeqCst);
        }
    }
}

/// Both halves in one: a fence between what this thread has written and what it reads next.
#[inline]
pub(crate) fn full() {
    #[cfg(all(target_arch = "x86_64", not(forkring_loom), not(miri)))]
    // A locked instruction is a full barrier for ordinary memory, and takes half the time of the `mfence` that a compiler makes of the
    // other.
    // SAFETY: the byte on top of the stack, which is there and above the red zone, stays as it is.
    unsafe {
        std::arch::asm!("lock or byte ptr [rsp], 0", options(nostack));
    }
    #[cfg(not(all(target_arch = "x86_64", not(forkring_loom), not(miri))))]
    fence(Ordering::SeqCst);
}

/// Between two looks at a word that is about to change: waits for the first one, a dozen cycles. Without that, loads run ahead of the
/// looks, and all that follows is thrown away when the word changes. [`std::hint::spin_loop`] sees to that too, but takes 65 cycles on
/// Zen and 140 on recent Xeons.
#[inline]
pub(crate) fn await_loads() {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: every x86-64 processor has SSE2.
    unsafe {
        std::arch::x86_64::_mm_lfence();
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    std::hint::spin_loop();
}

/// The sleeper's half. `false`: there was no barrier (a task may have set up a system call filter), so whoever goes to
/// sleep must look again by himself after a while.
pub(crate) fn heavy() -> bool {
    fence(Ordering::SeqCst);
    MODE.load(O::Relaxed) != MEMBARRIER || membarrier(GLOBAL_EXPEDITED) == 0
}

/// As [`heavy`], in the master, which nobody else looks after. If it has set up a filter since it built the pool, time has to do:
/// no store stays in a store buffer for so long.
pub(crate) fn heavy_or_wait() {
    if !heavy() {
        std::thread::sleep(Duration::from_millis(1));
    }
}
