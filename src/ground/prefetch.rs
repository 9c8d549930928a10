//! Asking for cache lines before they are needed.
//!
//! A slot's line was last read by the peer, so the next write to it has to take it away from there, which takes as long as a
//! message. Stores wait for that in a short queue, in their order, and once it is full the whole core waits with them. Whoever
//! is going to write a slot asks for its line some slots earlier; these requests overlap.

#![allow(unsafe_code, reason = "a prefetch takes a pointer, which it does not access")]

/// How many slots ahead lines are asked for.
pub(crate) const SLOTS_AHEAD: u64 = 8;
/// What is asked for at a time.
pub(crate) const LINE_BYTES: usize = 64;
const BYTES_AHEAD: usize = SLOTS_AHEAD as usize * LINE_BYTES;

/// This thread is going to write to `what`.
#[inline]
pub(crate) fn for_writing<T>(what: &T) {
    for_writing_at(std::ptr::from_ref(what).cast());
}

/// This thread is going to write what lies some lines behind `place`.
#[inline]
pub(crate) fn for_writing_behind(place: *const u8) {
    for_writing_at(place.wrapping_add(BYTES_AHEAD));
}

#[inline]
fn for_writing_at(place: *const u8) {
    // Spelt out: for a processor of no particular kind the compiler makes a prefetch for reading of `_MM_HINT_ET0`, which leaves
    // the peer its copy of the line. Those that do not know `prefetchw` take it for a no-op.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint; no address makes it fault, and it changes neither memory nor registers.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = place;
}

/// This thread is going to read `what`.
#[inline]
pub(crate) fn for_reading<T>(what: &T) {
    for_reading_at(std::ptr::from_ref(what).cast());
}

#[inline]
fn for_reading_at(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint; no address makes it fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Where this thread is going to write a row of lines, and read one, soon. Addresses to ask for, nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ahead {
    write: usize,
    read: usize,
}

impl Ahead {
    pub(crate) fn new(write: *const u8, read: *const u8) -> Self {
        Self { write: write.addr(), read: read.addr() }
    }

    /// Both, so many bytes further.
    #[inline]
    pub(crate) fn after(self, bytes: usize) -> Self {
        Self { write: self.write.wrapping_add(bytes), read: self.read.wrapping_add(bytes) }
    }

    /// Asks for the next line of both.
    #[inline]
    pub(crate) fn ask(&mut self) {
        for_writing_at(std::ptr::without_provenance(self.write));
        for_reading_at(std::ptr::without_provenance(self.read));
        *self = self.after(LINE_BYTES);
    }
}
