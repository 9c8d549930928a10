//! Byte rings for what does not fit a slot.
//!
//! A *position* is a free-running count of bytes; its place in the arena is the position modulo the arena's size.
//! A payload is either a *span*, contiguous, so that it can be read in place, or a *stream*, which may wrap and may
//! be longer than the arena, and is copied out while it flows.
//!
//! # Invariants
//!
//! * ARENA-1: `base` points to `bytes` bytes that stay mapped for `'a`, readable, and for a writer writable.
//! * ARENA-2: `bytes` is a power of two.
//!
//! Both processes may touch the bytes at once if the peer breaks the protocol. The copies below then yield bytes
//! of no meaning, which the codec validates; no reference into memory that a worker can write is ever made.

#![allow(unsafe_code, reason = "raw copies into and out of mapped memory")]

use std::marker::PhantomData;
use std::ptr::NonNull;

use super::codec::{AlignedBytes, Elements};
use super::copy::copy;
use crate::ground::prefetch;

/// Where the next span goes, or `None` while it does not fit.
///
/// `tail` is the oldest position in use, `head` the end of the youngest. An empty ring restarts at a multiple of its
/// size, so that a pool that keeps up stays in cache and touches little memory; its caller moves `tail` along.
pub(crate) fn place(tail: u64, head: u64, arena_bytes: u64, len: u64, align: u64) -> Option<u64> {
    if len > arena_bytes {
        return None;
    }
    if head == tail {
        return Some(head.next_multiple_of(arena_bytes));
    }
    let mut start = head.next_multiple_of(align);
    if start % arena_bytes + len > arena_bytes {
        start = start.next_multiple_of(arena_bytes);
    }
    (start + len <= tail + arena_bytes).then_some(start)
}

/// The reading side of an arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ArenaReader<'a> {
    base: NonNull<u8>,
    bytes: usize,
    _mapping: PhantomData<&'a [u8]>,
}

/// The writing side of an arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ArenaWriter<'a>(ArenaReader<'a>);

impl<'a> ArenaReader<'a> {
    /// # Safety
    ///
    /// ARENA-1 and ARENA-2.
    pub(crate) unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        debug_assert!(bytes.is_power_of_two());
        Self { base, bytes, _mapping: PhantomData }
    }

    fn at(&self, position: u64) -> usize {
        position as usize & (self.bytes - 1)
    }

    /// Where `position` is.
    pub(crate) fn address(&self, position: u64) -> *const u8 {
        self.base.as_ptr().wrapping_add(self.at(position))
    }

    /// Copies `out.len()` bytes from `position` on, around the end if need be. At most one lap.
    pub(crate) fn copy_out(&self, position: u64, out: &mut [u8]) {
        assert!(out.len() <= self.bytes, "a copy is at most one lap");
        let at = self.at(position);
        let first = out.len().min(self.bytes - at);
        let (front, back) = out.split_at_mut(first);
        self.copy_piece(at, front);
        self.copy_piece(0, back);
    }

    fn copy_piece(&self, at: usize, out: &mut [u8]) {
        debug_assert!(at + out.len() <= self.bytes);
        // SAFETY: ARENA-1, and the callers keep `at + out.len()` within the arena.
        let from = unsafe { self.base.as_ptr().add(at) };
        // SAFETY: `from` is good for `out.len()` bytes as above; `out` is memory of this process alone.
        unsafe { copy(from, out.as_mut_ptr(), out.len()) };
    }

    /// Appends `len` bytes from `position` on to `out`.
    pub(crate) fn append_to(&self, position: u64, len: usize, out: &mut impl Append) {
        let at = self.at(position);
        let first = len.min(self.bytes - at);
        assert!(len - first <= at, "a copy is at most one lap");
        for (at, len) in [(at, first), (0, len - first)] {
            // SAFETY: ARENA-1; both pieces lie within the arena.
            let from = unsafe { self.base.as_ptr().add(at) };
            // SAFETY: `from` is good for `len` bytes, as above.
            unsafe { out.append_raw(from, len) };
        }
    }

    /// Has the lines of a span brought into this core's cache.
    pub(crate) fn prefetch(&self, position: u64, len: usize) {
        let at = self.at(position);
        let from = self.base.as_ptr().wrapping_add(at);
        for line in (0..len.min(self.bytes - at)).step_by(prefetch::LINE_BYTES) {
            prefetch::for_reading_at(from.wrapping_add(line));
        }
    }

    /// A span read in place, if it lies within the arena.
    ///
    /// # Safety
    ///
    /// Nobody writes the span's bytes while the slice lives.
    pub(crate) unsafe fn span(&self, position: u64, len: usize) -> Option<&'a [u8]> {
        let at = self.at(position);
        if at.checked_add(len)? > self.bytes {
            return None;
        }
        // SAFETY: ARENA-1 and the check above.
        let from = unsafe { self.base.as_ptr().add(at) };
        // SAFETY: `from` is good for `len` bytes for `'a`, and the caller keeps writers away.
        Some(unsafe { std::slice::from_raw_parts(from, len) })
    }
}

impl<'a> ArenaWriter<'a> {
    /// # Safety
    ///
    /// ARENA-1, writable, and ARENA-2.
    pub(crate) unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        // SAFETY: the caller's promise includes what a reader needs.
        Self(unsafe { ArenaReader::new(base, bytes) })
    }

    pub(crate) fn reader(&self) -> ArenaReader<'a> {
        self.0
    }

    /// The place of `position`, and how many of `bytes` there are from there to the end of the arena.
    pub(crate) fn piece(&self, position: u64, bytes: usize) -> (NonNull<u8>, usize) {
        let at = self.0.at(position);
        // SAFETY: ARENA-1, and `at` lies in the arena.
        (unsafe { self.0.base.add(at) }, bytes.min(self.0.bytes - at))
    }

    /// Copies `bytes` in at `position`, around the end if need be. At most one lap.
    #[inline]
    pub(crate) fn copy_in(&self, position: u64, bytes: &[u8]) {
        let at = self.0.at(position);
        if at + bytes.len() <= self.0.bytes {
            return self.copy_piece(at, bytes);
        }
        assert!(bytes.len() <= self.0.bytes, "a copy is at most one lap");
        let (front, back) = bytes.split_at(bytes.len().min(self.0.bytes - at));
        self.copy_piece(at, front);
        self.copy_piece(0, back);
    }

    #[inline]
    fn copy_piece(&self, at: usize, bytes: &[u8]) {
        debug_assert!(at + bytes.len() <= self.0.bytes);
        // SAFETY: ARENA-1, and the caller keeps `at + bytes.len()` within the arena.
        let to = unsafe { self.0.base.as_ptr().add(at) };
        // SAFETY: `to` is good for `bytes.len()` bytes and writable; no reference to arena memory that the writer
        // overwrites exists (spans are freed before their place is used again).
        unsafe { copy(bytes.as_ptr(), to, bytes.len()) };
    }
}

/// What arena bytes can be appended to.
pub(crate) trait Append {
    /// Copies `len` bytes, of which no reference is made: the peer may be writing to them.
    ///
    /// # Safety
    ///
    /// `from` is good for reading `len` bytes that are not part of `self`.
    unsafe fn append_raw(&mut self, from: *const u8, len: usize);
}

impl Append for Vec<u8> {
    unsafe fn append_raw(&mut self, from: *const u8, len: usize) {
        self.reserve(len);
        let to = self.spare_capacity_mut().as_mut_ptr().cast();
        // SAFETY: there is room for `len` bytes at `to`, and the caller vouches for `from`.
        unsafe { copy(from, to, len) };
        // SAFETY: just initialised.
        unsafe { self.set_len(self.len() + len) };
    }
}

impl Append for AlignedBytes {
    unsafe fn append_raw(&mut self, from: *const u8, len: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.extend_from_raw(from, len) };
    }
}

impl Append for Elements {
    unsafe fn append_raw(&mut self, from: *const u8, len: usize) {
        // SAFETY: the caller's promise.
        unsafe { Elements::append_raw(self, from, len) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU8;

    use super::*;
    use crate::ground::ring::{Head, RequestSlot, ResponseSlot, Slot};

    const BYTES: u64 = 256;

    #[test]
    fn an_empty_ring_restarts_at_its_beginning() {
        assert_eq!(place(0, 0, BYTES, 10, 16), Some(0));
        assert_eq!(place(77, 77, BYTES, 256, 16), Some(256));
    }

    #[test]
    fn a_span_never_wraps_and_never_overlaps() {
        let mut seed = 0x9E37_79B9_u64;
        let mut random = move |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        let mut live: std::collections::VecDeque<(u64, u64)> = Default::default();
        let (mut head, mut tail) = (0, 0);
        for _ in 0..200_000 {
            // What has no bytes travels in its slot.
            let len = 1 + random(BYTES + 20);
            match place(tail, head, BYTES, len, 16) {
                Some(start) => {
                    assert!(start.is_multiple_of(16) && start >= head);
                    assert!(start % BYTES + len <= BYTES, "contiguous");
                    let first = live.front().map_or(start, |&(s, _)| s);
                    assert!(start + len - first <= BYTES, "no overlap");
                    if live.is_empty() {
                        tail = start;
                    }
                    live.push_back((start, start + len));
                    head = start + len;
                }
                None => assert!(!live.is_empty() || len > BYTES, "an empty ring takes what fits it"),
            }
            if random(3) == 0 {
                live.pop_front();
                tail = live.front().map_or(head, |&(s, _)| s);
            }
        }
    }

    /// Nothing but the slots orders the copies, as between two processes.
    #[test]
    fn spans_travel_between_threads() {
        const SLOTS: u64 = 4;
        const TOTAL: u64 = 10_000;
        let memory: Vec<AtomicU8> = (0..BYTES).map(|_| AtomicU8::new(0)).collect();
        let base = || NonNull::from(&memory[..]).cast();
        let filled: [RequestSlot; SLOTS as usize] = std::array::from_fn(|_| Slot::new());
        let freed: [ResponseSlot; SLOTS as usize] = std::array::from_fn(|_| Slot::new());
        let at = |index: u64| (index % SLOTS) as usize;
        let len_of = |index: u64| 1 + index * 37 % 100;
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                // SAFETY: `memory` outlives the scope and has a power of two of bytes.
                let arena = unsafe { ArenaReader::new(base(), memory.len()) };
                let mut bytes = Vec::new();
                for index in 0..TOTAL {
                    while filled[at(index)].poll(index).is_none() {
                        std::thread::yield_now();
                    }
                    bytes.clear();
                    arena.append_to(filled[at(index)].get(0), len_of(index) as usize, &mut bytes);
                    assert!(bytes.iter().all(|&byte| byte == index as u8), "span {index}");
                    freed[at(index)].publish(index, Head::new(1, 0));
                }
            });
            // SAFETY: as above; the bytes are atomics, so that a shared reference does not forbid to write them.
            let arena = unsafe { ArenaWriter::new(base(), memory.len()) };
            let (mut head, mut tail, mut oldest) = (0, 0, 0);
            let mut ends = std::collections::VecDeque::new();
            for index in 0..TOTAL {
                let len = len_of(index);
                let start = loop {
                    match place(tail, head, BYTES, len, 16) {
                        Some(start) if index - oldest < SLOTS => break start,
                        _ => {}
                    }
                    while freed[at(oldest)].poll(oldest).is_none() {
                        std::thread::yield_now();
                    }
                    tail = ends.pop_front().unwrap();
                    oldest += 1;
                };
                if ends.is_empty() {
                    tail = start;
                }
                head = start + len;
                ends.push_back(head);
                arena.copy_in(start, &vec![index as u8; len as usize]);
                filled[at(index)].set(0, start);
                filled[at(index)].publish(index, Head::new(1, 0));
            }
            // ThreadSanitizer sees a join, but not the end of a scope.
            reader.join().unwrap();
        });
    }

    #[test]
    fn bytes_travel_around_the_end() {
        let mut memory = vec![0_u8; BYTES as usize];
        let base = NonNull::new(memory.as_mut_ptr()).unwrap();
        // SAFETY: `memory` outlives the arena and has a power of two of bytes.
        let arena = unsafe { ArenaWriter::new(base, memory.len()) };
        let bytes: Vec<u8> = (0..100).collect();
        for position in [0, 156, 200, 255, 256, 1000] {
            arena.copy_in(position, &bytes);
            let mut out = vec![0; 100];
            arena.reader().copy_out(position, &mut out);
            assert_eq!(out, bytes);
            let mut appended = Vec::new();
            arena.reader().append_to(position, 100, &mut appended);
            assert_eq!(appended, bytes);
        }
    }
}
