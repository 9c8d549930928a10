//! [`AlignedBytes`]: the heap memory that archives live in.

#![allow(unsafe_code, reason = "appends from memory that no slice may be made of")]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr;

use crate::memory::copy::copy;

/// What the start of every buffer is aligned to: a cache line, and no archived type asks for more
/// unless its author did.
const ALIGN: usize = 128;

/// Room kept for a root behind a large write, so that a `Vec` of numbers takes one allocation.
const SLACK: usize = 64;

/// The most memory that a buffer keeps between two uses.
const KEPT_MAX: usize = 1 << 20;

/// A growing byte buffer whose first byte is aligned to 128.
///
/// The alignment is made within memory that is asked for without: an allocator has that at hand, where glibc's cuts it out of a
/// larger piece (100 ns and more, since such pieces fit nobody else).
///
/// The content is what `memory` has from its first aligned byte on; the bytes before are zeros.
#[derive(Default)]
pub(crate) struct AlignedBytes {
    memory: Vec<u8>,
}

impl AlignedBytes {
    pub(super) const ALIGN: usize = ALIGN;

    /// An empty buffer, without memory yet.
    #[inline]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn with_capacity(bytes: usize) -> Self {
        if bytes == 0 {
            return Self::new();
        }
        Self::starting_in(Vec::with_capacity(bytes.saturating_add(ALIGN - 1)))
    }

    /// As [`with_capacity`](Self::with_capacity). `None`: there is no memory for that.
    pub(crate) fn try_with_capacity(bytes: usize) -> Option<Self> {
        let mut memory = Vec::new();
        memory.try_reserve_exact(bytes.checked_add(ALIGN - 1)?).ok()?;
        Some(Self::starting_in(memory))
    }

    fn starting_in(mut memory: Vec<u8>) -> Self {
        let start = memory.as_ptr().align_offset(ALIGN);
        memory.resize(start, 0);
        Self { memory }
    }

    /// Where the content starts. Without memory the pointer says nothing.
    #[inline]
    fn start(&self) -> usize {
        self.memory.as_ptr().align_offset(ALIGN).min(self.memory.len())
    }

    pub(crate) fn capacity(&self) -> usize {
        self.memory.capacity() - self.start()
    }

    /// Makes room for exactly `additional` more bytes or, where that is less than doubling, for twice
    /// as much as before.
    #[inline]
    pub(crate) fn reserve(&mut self, additional: usize) {
        if self.memory.capacity() - self.memory.len() < additional {
            self.grow(additional);
        }
    }

    /// As [`reserve`](Self::reserve). `false`: there is no memory for that.
    #[inline]
    pub(crate) fn try_reserve(&mut self, additional: usize) -> bool {
        self.memory.capacity() - self.memory.len() >= additional || self.try_grow(additional)
    }

    #[cold]
    fn grow(&mut self, additional: usize) {
        self.move_to(Self::with_capacity(self.grown(additional)));
    }

    #[cold]
    fn try_grow(&mut self, additional: usize) -> bool {
        let Some(grown) = Self::try_with_capacity(self.grown(additional)) else { return false };
        self.move_to(grown);
        true
    }

    fn grown(&self, additional: usize) -> usize {
        self.len().saturating_add(additional.saturating_add(SLACK).max(self.len()))
    }

    fn move_to(&mut self, mut grown: Self) {
        grown.memory.extend_from_slice(self);
        *self = grown;
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
        let at = self.memory.len();
        let end = self.memory.as_mut_ptr().wrapping_add(at);
        // SAFETY: the caller vouches for `src`; `reserve` made room for `len` bytes behind `at`.
        unsafe { copy(src, end, len) };
        // SAFETY: the bytes up to `at + len` lie within the capacity and have just been written.
        unsafe { self.memory.set_len(at + len) };
    }

    /// Shortens to `len` bytes, keeping the memory; nothing happens if there are no more than that.
    pub(crate) fn truncate(&mut self, len: usize) {
        let end = self.start().saturating_add(len);
        self.memory.truncate(end);
    }

    /// Empties the buffer for its next use. Memory beyond [`KEPT_MAX`] is given back: one large value must not be
    /// paid for until the process ends.
    #[inline]
    pub(crate) fn clear_for_reuse(&mut self) {
        if self.capacity() > KEPT_MAX {
            *self = Self::new();
        } else {
            let start = self.start();
            self.memory.truncate(start);
        }
    }

    /// Appends zeros until the length is a multiple of `align`, a power of two, and returns it.
    #[inline]
    pub(crate) fn pad_to(&mut self, align: usize) -> usize {
        let before = self.len();
        let len = before.next_multiple_of(align);
        if len > before {
            self.reserve(len - before);
            let end = self.start() + len;
            self.memory.resize(end, 0);
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
        let next = bytes.memory.as_mut_ptr().wrapping_add(bytes.memory.len());
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
        self.bytes.len() + self.added()
    }

    /// How many bytes were appended so far.
    #[inline]
    pub(crate) fn added(&self) -> usize {
        self.next.addr() - self.bytes.memory.as_ptr().addr() - self.bytes.memory.len()
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
        let len = self.bytes.memory.len() + self.added();
        // SAFETY: FILL-1.
        unsafe { self.bytes.memory.set_len(len) };
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.memory[self.start()..]
    }
}

impl DerefMut for AlignedBytes {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.start();
        &mut self.memory[start..]
    }
}

/// Not a clone of the memory, which would begin elsewhere.
impl Clone for AlignedBytes {
    fn clone(&self) -> Self {
        Self::from(&**self)
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
        write!(f, "AlignedBytes({} bytes)", self.len())
    }
}
