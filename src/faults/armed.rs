//! The armed side of kill points, for tests.
//!
//! One page is shared by every process of every pool of the process that made it:
//!
//! * FAULT-1: it is made once, before the first fork of ours, and never unmapped, so a reference to it is good in
//!   every process of a pool for ever.
//! * FAULT-2: it holds atomics only, which all processes may access at any time.

#![allow(unsafe_code, reason = "a mapping that is shared with children")]

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::{Signal, kill};

use super::Point;

/// See the module's documentation.
#[repr(C)]
struct Page {
    /// The armed point in the upper half, in the lower how many passages are left; 0 where nothing is armed. One word,
    /// so that arming, counting and dying are one step each.
    armed: AtomicU64,
    /// How many processes have died at a point.
    deaths: AtomicU64,
    /// The process that died last.
    victim: AtomicU64,
}

/// Arms `point` for its `nth` passage from here on, counted from 1 and in all processes together. Replaces what was
/// armed; a point that has killed is disarmed.
///
/// # Panics
///
/// If `nth` is 0, or if there is no memory for the shared page.
pub fn arm(point: Point, nth: u32) {
    assert!(nth > 0, "passages are counted from 1");
    page().armed.store(word(point, nth), Ordering::SeqCst);
}

/// Disarms what is armed.
pub fn disarm() {
    page().armed.store(0, Ordering::SeqCst);
}

/// How many processes have died at a point so far.
pub fn deaths() -> u64 {
    page().deaths.load(Ordering::SeqCst)
}

/// The process that died last at a point.
pub fn victim() -> u32 {
    page().victim.load(Ordering::SeqCst) as u32
}

/// Makes the page. Called before every fork of a zygote, so that all processes share the same one (FAULT-1).
pub(crate) fn prepare() {
    page();
}

/// Dies here if this point is armed for this passage.
#[inline]
pub(crate) fn point(point: Point) {
    let page = page();
    let armed = page.armed.load(Ordering::Relaxed);
    if armed >> 32 == u64::from(point as u32) {
        passed(page, point, armed);
    }
}

#[cold]
fn passed(page: &Page, point: Point, mut armed: u64) {
    loop {
        let left = armed as u32;
        if armed >> 32 != u64::from(point as u32) || left == 0 {
            return;
        }
        let next = if left == 1 { 0 } else { word(point, left - 1) };
        match page.armed.compare_exchange(armed, next, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) if left == 1 => die(page),
            Ok(_) => return,
            Err(other) => armed = other,
        }
    }
}

fn die(page: &Page) -> ! {
    page.victim.store(u64::from(std::process::id()), Ordering::SeqCst);
    page.deaths.fetch_add(1, Ordering::SeqCst);
    let _ = kill(nix::unistd::Pid::this(), Signal::SIGKILL);
    // Never reached: SIGKILL ends the thread that sends it before it returns to user space.
    std::process::abort()
}

fn word(point: Point, left: u32) -> u64 {
    u64::from(point as u32) << 32 | u64::from(left)
}

fn page() -> &'static Page {
    static PAGE: OnceLock<&'static Page> = OnceLock::new();
    PAGE.get_or_init(|| {
        const BYTES: NonZeroUsize = NonZeroUsize::new(size_of::<Page>()).expect("it has fields");
        let (prot, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a mapping of its own, at an address of the kernel's choice.
        let address = unsafe { mmap_anonymous(None, BYTES, prot, flags) }.expect("a page is to be had");
        // SAFETY: FAULT-1, FAULT-2: large enough, page-aligned and zeroed, which is a valid value of atomics.
        unsafe { address.cast::<Page>().as_ref() }
    })
}
