//! Copying what is large.

#![allow(unsafe_code, reason = "copies memory that no slice may be made of")]

use std::hint::black_box;
use std::ptr;

/// Below the size from which glibc's `memcpy` leaves the work to `rep movsb`. On Zen 3 that takes 16 times as long where
/// the destination lies a little behind the source within its page (256 KiB: 124 instead of 7 µs), which is the
/// usual case between an arena, which begins with a page, and a large `Vec`, which begins 16 bytes behind one.
const PIECE_BYTES: usize = 2048;

/// Copies `len` bytes, at the same speed wherever they lie.
///
/// # Safety
///
/// As for [`ptr::copy_nonoverlapping`]. Somebody else may be writing to `from` if the bytes are taken for what they are:
/// bytes of no meaning.
#[inline]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    if len <= PIECE_BYTES {
        // SAFETY: the caller's promise.
        return unsafe { ptr::copy_nonoverlapping(from, to, len) };
    }
    // SAFETY: the caller's promise.
    unsafe { copy_pieces(from, to, len) }
}

/// # Safety
///
/// As for [`copy`].
unsafe fn copy_pieces(mut from: *const u8, mut to: *mut u8, mut len: usize) {
    while len > 0 {
        // The compiler would make one call of it again if it knew the size.
        let now = len.min(black_box(PIECE_BYTES));
        // SAFETY: the caller's promise, and `now` is at most what is left.
        unsafe { ptr::copy_nonoverlapping(from, to, now) };
        // SAFETY: as above; at most one past the end.
        from = unsafe { from.add(now) };
        // SAFETY: as above.
        to = unsafe { to.add(now) };
        len -= now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_arrives_and_no_other_is_touched() {
        for len in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 10_007] {
            let from: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let mut to = vec![255; len + 2];
            // SAFETY: both have so many bytes.
            unsafe { copy(from.as_ptr(), to.as_mut_ptr().wrapping_add(1), len) };
            assert_eq!(to[1..=len], from);
            assert_eq!((to[0], to[len + 1]), (255, 255));
        }
    }
}
