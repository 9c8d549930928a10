//! Asking for cache lines before they are needed.
//!
//! A slot's line was last read by the peer, so the next write to it has to take it away from there, which takes as long as a
//! message. Stores wait for that in a short queue, in their order, and once it is full the whole core waits with them. Whoever
//! is going to write a slot asks for its line some slots earlier; these requests overlap.

#![allow(unsafe_code, reason = "a prefetch takes a pointer, which it does not access")]

/// How many slots ahead lines are asked for.
pub(crate) const SLOTS_AHEAD: u64 = 8;

/// This thread is going to write to `what`.
#[inline]
pub(crate) fn for_writing<T>(what: &T) {
    for_writing_at(std::ptr::from_ref(what).cast());
}

/// This thread is going to write what lies some lines behind `place`.
#[inline]
pub(crate) fn for_writing_behind(place: *const u8) {
    const BYTES_AHEAD: usize = SLOTS_AHEAD as usize * 64;
    for_writing_at(place.wrapping_add(BYTES_AHEAD));
}

/// This thread has come to `what` in a step of so many bytes, and may be going on like that. A long step is none.
#[inline]
pub(crate) fn for_writing_ahead<T>(what: &T, step_bytes: isize) {
    const STEP_BYTES_MAX: usize = 128;
    const STEPS_AHEAD: isize = 16;
    if step_bytes.unsigned_abs() <= STEP_BYTES_MAX {
        for_writing_at(std::ptr::from_ref(what).cast::<u8>().wrapping_offset(step_bytes * STEPS_AHEAD));
    }
}

#[inline]
fn for_writing_at(place: *const u8) {
    // Not `_mm_prefetch`: without a target feature that only compilation for newer processors turns on, it asks for the line to
    // read it, and the store then has to ask again. Every x86-64 processor knows the instruction, if only as one that does
    // nothing.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint; no address makes it fault.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
    }
    #[cfg(any(not(target_arch = "x86_64"), miri))]
    let _ = place;
}

/// This thread is going to read `what`.
#[inline]
pub(crate) fn for_reading<T>(what: &T) {
    for_reading_at(std::ptr::from_ref(what).cast());
}

#[inline]
pub(crate) fn for_reading_at(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint; no address makes it fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
