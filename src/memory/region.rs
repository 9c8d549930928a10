//! A worker's region: two sealed memfds, split by who writes them, and the typed view of each side.
//!
//! The master creates, maps and seals both files, sends the descriptors to the zygote and forgets them; the worker
//! maps the same files, `A` read-only. Nothing has a name, so nothing can be left behind. A region serves one worker
//! process and is never used for another.
//!
//! # Invariants
//!
//! * REGION-1: `a` and `b` are mappings of `SIDE_A_BYTES` and `SIDE_B_BYTES` bytes, page-aligned, zeroed when the
//!   files were made, that live as long as the value. Both files are sealed against shrinking, so no access to them
//!   can raise SIGBUS for want of length.
//! * REGION-2: every part lies within its side at an offset that is a multiple of its alignment (`const` assertions
//!   in [`layout`](super::layout)); headers and slots consist of atomics alone, so shared references to them stay
//!   sound whatever the other process does.

#![allow(unsafe_code, reason = "typed views of mapped memory")]

use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use super::arena::{ArenaReader, ArenaWriter};
use super::layout::*;
use crate::ground::ring::{RequestSlot, ResponseSlot};
use crate::ground::sys::SysError;
use crate::ground::sys::memory::{Mapping, Memfd};

/// Arena pages are reserved in steps of this many bytes before they are first written.
const RESERVE_STEP_BYTES: usize = 256 << 10;

/// The bytes of a writer's arena that are known to be backed by memory.
#[derive(Debug, Default)]
struct Reserved(usize);

impl Reserved {
    /// Backs the arena up to `end` (an offset): a shortage is an error here instead of a SIGBUS in the copy.
    fn up_to(&mut self, mapping: &Mapping, arena_at: usize, end: usize) -> Result<(), SysError> {
        if end <= self.0 {
            return Ok(());
        }
        let goal = end.next_multiple_of(RESERVE_STEP_BYTES).min(ARENA_BYTES);
        mapping.populate_write(arena_at + self.0..arena_at + goal)?;
        self.0 = goal;
        Ok(())
    }
}

/// A pair of mappings with their typed parts; which of them may be written depends on the process.
#[derive(Debug)]
struct Sides {
    a: Mapping,
    b: Mapping,
}

impl Sides {
    fn part<T>(mapping: &Mapping, at: usize) -> NonNull<T> {
        debug_assert!(at + size_of::<T>() <= mapping.len());
        // SAFETY: REGION-1 and REGION-2: the offset lies within the mapping.
        let part = unsafe { mapping.ptr().add(at) };
        // SAFETY: a mapping does not start at the null address, nor does anything in it.
        unsafe { NonNull::new_unchecked(part.cast()) }
    }

    #[inline]
    fn header_a(&self) -> &SideA {
        // SAFETY: REGION-2, and the mapping lives as long as `self`.
        unsafe { Self::part::<SideA>(&self.a, 0).as_ref() }
    }

    #[inline]
    fn header_b(&self) -> &SideB {
        // SAFETY: as above.
        unsafe { Self::part::<SideB>(&self.b, 0).as_ref() }
    }

    #[inline]
    fn request(&self, index: u64) -> &RequestSlot {
        let at = REQUESTS_AT + slot_of(index) * size_of::<RequestSlot>();
        // SAFETY: as above; `slot_of` stays below the number of slots.
        unsafe { Self::part::<RequestSlot>(&self.a, at).as_ref() }
    }

    #[inline]
    fn response(&self, index: u64) -> &ResponseSlot {
        let at = RESPONSES_AT + slot_of(index) * size_of::<ResponseSlot>();
        // SAFETY: as above.
        unsafe { Self::part::<ResponseSlot>(&self.b, at).as_ref() }
    }

    #[inline]
    fn stamps(&self, index: u64) -> &Stamps {
        let at = STAMPS_AT + slot_of(index) * size_of::<Stamps>();
        // SAFETY: as above.
        unsafe { Self::part::<Stamps>(&self.b, at).as_ref() }
    }

    fn callers(&self, index: u64) -> &CallerWords {
        let at = CALLERS_AT + slot_of(index) * size_of::<CallerWords>();
        // SAFETY: as above.
        unsafe { Self::part::<CallerWords>(&self.a, at).as_ref() }
    }

    fn reader(mapping: &Mapping, at: usize, bytes: usize) -> ArenaReader<'_> {
        // SAFETY: ARENA-1 by REGION-1 for the lifetime of the borrow; ARENA-2 by the assertions on the layout.
        unsafe { ArenaReader::new(Self::part(mapping, at), bytes) }
    }
}

/// The master's view: writes `A`, reads `B` and moves its claim word.
#[derive(Debug)]
pub(crate) struct Region {
    sides: Sides,
    reserved: Reserved,
}

impl Region {
    /// Creates a region and the two descriptors (`A`, `B`) that its worker is to be given.
    pub(crate) fn create() -> Result<(Self, [OwnedFd; 2]), SysError> {
        let fd_a = Memfd::create(c"forkring-a", SIDE_A_BYTES)?;
        let fd_b = Memfd::create(c"forkring-b", SIDE_B_BYTES)?;
        let a = Mapping::read_write(&fd_a, SIDE_A_BYTES)?;
        let b = Mapping::read_write(&fd_b, SIDE_B_BYTES)?;
        a.dont_fork()?;
        b.dont_fork()?;
        // The mapping of `A` that exists stays writable; nobody can make another.
        fd_a.seal_read_only_for_others()?;
        fd_b.seal_shared()?;
        a.populate_write(0..ANSWER_WINDOW_AT)?;
        b.populate_write(0..CALL_WINDOW_AT)?;
        Ok((Self { sides: Sides { a, b }, reserved: Reserved::default() }, [fd_a.into(), fd_b.into()]))
    }

    #[inline]
    pub(crate) fn a(&self) -> &SideA {
        self.sides.header_a()
    }

    #[inline]
    pub(crate) fn b(&self) -> &SideB {
        self.sides.header_b()
    }

    #[inline]
    pub(crate) fn request(&self, index: u64) -> &RequestSlot {
        self.sides.request(index)
    }

    #[inline]
    pub(crate) fn response(&self, index: u64) -> &ResponseSlot {
        self.sides.response(index)
    }

    #[inline]
    pub(crate) fn stamps(&self, index: u64) -> &Stamps {
        self.sides.stamps(index)
    }

    pub(crate) fn callers(&self, index: u64) -> &CallerWords {
        self.sides.callers(index)
    }

    /// Backs the words about callers in `A` with memory.
    pub(crate) fn reserve_callers(&self) -> Result<(), SysError> {
        self.sides.a.populate_write(CALLERS_AT..SIDE_A_BYTES).map(drop)
    }

    /// Backs the stamps of `B` with memory, so that neither side meets a shortage when it uses them.
    pub(crate) fn reserve_stamps(&self) -> Result<(), SysError> {
        self.sides.b.populate_write(STAMPS_AT..SIDE_B_BYTES).map(drop)
    }

    /// The arena of `A`.
    pub(crate) fn arena(&self) -> ArenaWriter<'_> {
        // SAFETY: as in `Sides::reader`, and this process maps `A` writable.
        unsafe { ArenaWriter::new(Sides::part(&self.sides.a, ARENA_A_AT), ARENA_BYTES) }
    }

    /// The arena of `B`.
    pub(crate) fn peer_arena(&self) -> ArenaReader<'_> {
        Sides::reader(&self.sides.b, ARENA_B_AT, ARENA_BYTES)
    }

    pub(crate) fn answer_window(&self) -> ArenaWriter<'_> {
        // SAFETY: as for `arena`.
        unsafe { ArenaWriter::new(Sides::part(&self.sides.a, ANSWER_WINDOW_AT), WINDOW_BYTES) }
    }

    pub(crate) fn call_window(&self) -> ArenaReader<'_> {
        Sides::reader(&self.sides.b, CALL_WINDOW_AT, WINDOW_BYTES)
    }

    /// Backs the arena of `A` for a write that ends at offset `end`.
    pub(crate) fn reserve(&mut self, end: usize) -> Result<(), SysError> {
        self.reserved.up_to(&self.sides.a, ARENA_A_AT, end)
    }
}

/// The worker's view: reads `A`, writes `B`.
#[derive(Debug)]
pub(crate) struct WorkerRegion {
    sides: Sides,
    reserved: Reserved,
}

impl WorkerRegion {
    /// The first byte of side `B`, for whoever is to spoil it.
    #[cfg(forkring_faults)]
    pub(crate) fn side_b(&self) -> NonNull<u8> {
        Sides::part(&self.sides.b, 0)
    }

    /// Maps a region from the descriptors that [`Region::create`] returned.
    pub(crate) fn map(a: &OwnedFd, b: &OwnedFd) -> Result<Self, SysError> {
        let a = Mapping::read_only(a, SIDE_A_BYTES)?;
        let b = Mapping::read_write(b, SIDE_B_BYTES)?;
        Ok(Self { sides: Sides { a, b }, reserved: Reserved::default() })
    }

    #[inline]
    pub(crate) fn a(&self) -> &SideA {
        self.sides.header_a()
    }

    #[inline]
    pub(crate) fn b(&self) -> &SideB {
        self.sides.header_b()
    }

    #[inline]
    pub(crate) fn request(&self, index: u64) -> &RequestSlot {
        self.sides.request(index)
    }

    #[inline]
    pub(crate) fn response(&self, index: u64) -> &ResponseSlot {
        self.sides.response(index)
    }

    #[inline]
    pub(crate) fn stamps(&self, index: u64) -> &Stamps {
        self.sides.stamps(index)
    }

    #[cfg(feature = "tracing")]
    pub(crate) fn callers(&self, index: u64) -> &CallerWords {
        self.sides.callers(index)
    }

    /// The arena of `A`.
    pub(crate) fn peer_arena(&self) -> ArenaReader<'_> {
        Sides::reader(&self.sides.a, ARENA_A_AT, ARENA_BYTES)
    }

    /// The arena of `B`.
    pub(crate) fn arena(&self) -> ArenaWriter<'_> {
        // SAFETY: ARENA-1 by REGION-1, and this process maps `B` writable; ARENA-2 by the layout.
        unsafe { ArenaWriter::new(Sides::part(&self.sides.b, ARENA_B_AT), ARENA_BYTES) }
    }

    pub(crate) fn answer_window(&self) -> ArenaReader<'_> {
        Sides::reader(&self.sides.a, ANSWER_WINDOW_AT, WINDOW_BYTES)
    }

    pub(crate) fn call_window(&self) -> ArenaWriter<'_> {
        // SAFETY: as for `arena`.
        unsafe { ArenaWriter::new(Sides::part(&self.sides.b, CALL_WINDOW_AT), WINDOW_BYTES) }
    }

    /// The inline payload of a request, in place.
    ///
    /// # Safety
    ///
    /// The master does not rewrite the slot while the slice lives: it does so only after the request's response.
    pub(crate) unsafe fn inline_payload(&self, index: u64, len: usize) -> &[u8] {
        let at = REQUESTS_AT
            + slot_of(index) * size_of::<RequestSlot>()
            + 8 * (1 + crate::protocol::wire::INLINE_WORD);
        let from = Sides::part::<u8>(&self.sides.a, at);
        // SAFETY: REGION-1: the slot is mapped; the length is cut to what the slot holds; no writer, says the caller.
        unsafe {
            std::slice::from_raw_parts(from.as_ptr(), len.min(crate::protocol::wire::REQUEST_INLINE_BYTES))
        }
    }

    /// Backs the arena of `B` for a write that ends at offset `end`.
    pub(crate) fn reserve(&mut self, end: usize) -> Result<(), SysError> {
        self.reserved.up_to(&self.sides.b, ARENA_B_AT, end)
    }
}
