//! [`AlignedBytes`]: the heap memory that archives live in.

#![allow(unsafe_code, reason = "appends from memory that no slice may be made of")]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr;

use rkyv::util::AlignedVec;

use crate::memory::copy::copy;

/// What the start of every buffer is aligned to: a cache line, and no archived type asks for more
/// unless its author did.
const ALIGN: usize = 128;

/// Room kept for a root behind a large write, so that a `Vec` of numbers takes one allocation.
const SLACK: usize = 64;

/// The most memory that a buffer keeps between two uses.
const KEPT_MAX: usize = 1 << 20;

/// A growing byte buffer whose first byte is aligned to 128.
#[derive(Clone, Default)]
pub(crate) struct AlignedBytes {
    inner: AlignedVec<ALIGN>,
}

impl AlignedBytes {
    /// An empty buffer, without memory yet.
    #[inline]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { inner: AlignedVec::with_capacity(bytes) }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.inner.capacity()
    }

    /// Makes room for exactly `additional` more bytes or, where that is less than doubling, for twice
    /// as much as before.
    #[inline]
    pub(crate) fn reserve(&mut self, additional: usize) {
        if self.inner.capacity() - self.inner.len() < additional {
            self.grow(additional);
        }
    }

    #[cold]
    fn grow(&mut self, additional: usize) {
        let needed = additional.saturating_add(SLACK);
        self.inner.reserve_exact(needed.max(self.inner.len()));
    }

    #[inline]
    pub(crate) fn extend_from_slice(&mut self, bytes: &[u8]) {
        // SAFETY: a slice, which is no part of a buffer that is borrowed mutably.
        unsafe { self.extend_from_raw(bytes.as_ptr(), bytes.len()) };
    }

    /// Appends `len` bytes starting at `src`, which may be memory that another process writes at the
    /// same time and that therefore must not be made a slice.
    ///
    /// # Safety
    ///
    /// `src .. src + len` is mapped, readable, and not part of this buffer.
    #[inline]
    pub(crate) unsafe fn extend_from_raw(&mut self, src: *const u8, len: usize) {
        self.reserve(len);
        let at = self.inner.len();
        let end = self.inner.as_mut_ptr().wrapping_add(at);
        // SAFETY: the caller vouches for `src`; `reserve` made room for `len` bytes behind `at`.
        unsafe { copy(src, end, len) };
        // SAFETY: the bytes up to `at + len` lie within the capacity and have just been written.
        unsafe { self.inner.set_len(at + len) };
    }

    /// Shortens to `len` bytes, keeping the memory; nothing happens if there are no more than that.
    pub(crate) fn truncate(&mut self, len: usize) {
        if len < self.inner.len() {
            self.inner.resize(len, 0);
        }
    }

    /// Empties the buffer for its next use. Memory beyond [`KEPT_MAX`] is given back: one large value must not be
    /// paid for until the process ends.
    #[inline]
    pub(crate) fn clear_for_reuse(&mut self) {
        if self.capacity() > KEPT_MAX {
            *self = Self::new();
        } else {
            self.inner.clear();
        }
    }

    /// Appends zeros until the length is a multiple of `align`, a power of two, and returns it.
    #[inline]
    pub(crate) fn pad_to(&mut self, align: usize) -> usize {
        let len = self.inner.len().next_multiple_of(align);
        if len > self.inner.len() {
            self.reserve(len - self.inner.len());
            self.inner.resize(len, 0);
        }
        len
    }
}

/// Appends many small pieces without going through the buffer's length each time: it is set when the filler is dropped.
///
/// * FILL-1: `next` is the end of the buffer's bytes, all of which are initialised, and at most `end`, the end of the room
///   that was made in it.
#[derive(Debug)]
pub(crate) struct Filler<'a> {
    bytes: &'a mut AlignedBytes,
    next: *mut u8,
    end: *mut u8,
}

impl<'a> Filler<'a> {
    /// Makes room for `additional` bytes.
    #[inline]
    pub(crate) fn new(bytes: &'a mut AlignedBytes, additional: usize) -> Self {
        bytes.reserve(additional);
        let next = bytes.inner.as_mut_ptr().wrapping_add(bytes.inner.len());
        Self { bytes, next, end: next.wrapping_add(additional) }
    }

    /// How many bytes still fit.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.end.addr() - self.next.addr()
    }

    /// How many bytes the buffer has.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.bytes.inner.len() + self.added()
    }

    /// How many bytes were appended so far.
    #[inline]
    pub(crate) fn added(&self) -> usize {
        self.next.addr() - self.bytes.inner.as_ptr().addr() - self.bytes.inner.len()
    }

    /// Appends a piece.
    ///
    /// # Panics
    ///
    /// If more is appended than room was made for.
    #[inline]
    pub(crate) fn push(&mut self, piece: &[u8]) {
        assert!(piece.len() <= self.room(), "a filler was given too much");
        // SAFETY: FILL-1 and the assertion; a piece that somebody else has borrowed is no part of a buffer that is
        // borrowed mutably.
        unsafe { ptr::copy_nonoverlapping(piece.as_ptr(), self.next, piece.len()) };
        // SAFETY: as above.
        self.next = unsafe { self.next.add(piece.len()) };
    }
}

impl Drop for Filler<'_> {
    #[inline]
    fn drop(&mut self) {
        let len = self.len();
        // SAFETY: FILL-1.
        unsafe { self.bytes.inner.set_len(len) };
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.inner.as_slice()
    }
}

impl DerefMut for AlignedBytes {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.inner.as_mut_slice()
    }
}

impl From<&[u8]> for AlignedBytes {
    fn from(bytes: &[u8]) -> Self {
        let mut aligned = Self::with_capacity(bytes.len());
        aligned.extend_from_slice(bytes);
        aligned
    }
}

impl fmt::Debug for AlignedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBytes({} bytes)", self.inner.len())
    }
}
