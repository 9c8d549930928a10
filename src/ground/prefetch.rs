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

#[inline]
fn for_writing_at(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: a hint; no address makes it fault.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(place.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// This thread is going to read `what`.
#[inline]
pub(crate) fn for_reading<T>(what: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint; no address makes it fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(what).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = what;
}
