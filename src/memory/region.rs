//! A worker's region: two sealed memfds, split by who writes them, and the typed view of each side. For a worker that is a
//! thread of this process: two blocks of the heap, which both ends share.
//!
//! The master creates, maps and seals both files, sends the descriptors to the zygote and forgets them; the worker
//! maps the same files, `A` read-only. Nothing has a name, so nothing can be left behind. A region serves one worker
//! process and is never used for another.
//!
//! # Invariants
//!
//! * REGION-1: `a` and `b` are `SIDE_A_BYTES` and `SIDE_B_BYTES` bytes, page-aligned, zeroed when they were made, that live
//!   as long as the value: mappings, or blocks that are freed with the last of the two ends. Both files are sealed
//!   against shrinking, so no access to them can raise SIGBUS for want of length.
//! * REGION-2: every part lies within its side at an offset that is a multiple of its alignment (`const` assertions
//!   in [`layout`](super::layout)); headers and slots consist of atomics alone, so shared references to them stay
//!   sound whatever the other process does.

#![allow(unsafe_code, reason = "typed views of mapped memory")]

use std::alloc::{self, Layout};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

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
    fn up_to(&mut self, side: &Side, arena_at: usize, end: usize) -> Result<(), SysError> {
        if end <= self.0 {
            return Ok(());
        }
        let goal = end.next_multiple_of(RESERVE_STEP_BYTES).min(ARENA_BYTES);
        side.populate_write(arena_at + self.0..arena_at + goal)?;
        self.0 = goal;
        Ok(())
    }
}

/// Zeroed bytes of the heap that two threads share.
#[derive(Debug)]
struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its bytes and hands out a pointer to them, nothing else.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    fn new(bytes: usize) -> Result<Arc<Self>, SysError> {
        let no_memory = || SysError::new("malloc", std::io::ErrorKind::OutOfMemory);
        let layout = Layout::from_size_align(bytes, PAGE_BYTES).map_err(|_| no_memory())?;
        // SAFETY: the sides have more than no bytes.
        let start = NonNull::new(unsafe { alloc::alloc_zeroed(layout) }).ok_or_else(no_memory)?;
        Ok(Arc::new(Self { start, layout }))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nobody has the block any more.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// Where the bytes of a side are.
#[derive(Debug)]
enum Memory {
    Mapped(Mapping),
    /// Kept for as long as `start` is in use.
    Shared {
        _block: Arc<Block>,
    },
}

/// One side.
#[derive(Debug)]
struct Side {
    start: NonNull<u8>,
    bytes: usize,
    memory: Memory,
}

// SAFETY: `start` belongs to `memory`, which may move between threads and be used by several.
unsafe impl Send for Side {}
// SAFETY: as above.
unsafe impl Sync for Side {}

impl Side {
    /// Backs these bytes with memory. The heap's are.
    fn populate_write(&self, range: Range<usize>) -> Result<(), SysError> {
        match &self.memory {
            Memory::Mapped(mapping) => mapping.populate_write(range).map(drop),
            Memory::Shared { .. } => Ok(()),
        }
    }
}

impl From<Mapping> for Side {
    fn from(mapping: Mapping) -> Self {
        // SAFETY: a mapping does not start at the null address.
        let start = unsafe { NonNull::new_unchecked(mapping.ptr()) };
        Self { start, bytes: mapping.len(), memory: Memory::Mapped(mapping) }
    }
}

impl From<Arc<Block>> for Side {
    fn from(block: Arc<Block>) -> Self {
        Self { start: block.start, bytes: block.layout.size(), memory: Memory::Shared { _block: block } }
    }
}

/// A pair of sides with their typed parts; which of them may be written depends on the end.
#[derive(Debug)]
struct Sides {
    a: Side,
    b: Side,
}

impl Sides {
    #[inline]
    fn part<T>(side: &Side, at: usize) -> NonNull<T> {
        debug_assert!(at + size_of::<T>() <= side.bytes);
        // SAFETY: REGION-1 and REGION-2: the offset lies within the side.
        unsafe { side.start.add(at) }.cast()
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

    fn reader(side: &Side, at: usize, bytes: usize) -> ArenaReader<'_> {
        // SAFETY: ARENA-1 by REGION-1 for the lifetime of the borrow; ARENA-2 by the assertions on the layout.
        unsafe { ArenaReader::new(Self::part(side, at), bytes) }
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
        Ok((Self::of(a, b), [fd_a.into(), fd_b.into()]))
    }

    /// Creates a region on the heap, with the view of a worker that is a thread of this process.
    pub(crate) fn on_heap() -> Result<(Self, WorkerRegion), SysError> {
        let (a, b) = (Block::new(SIDE_A_BYTES)?, Block::new(SIDE_B_BYTES)?);
        Ok((Self::of(a.clone(), b.clone()), WorkerRegion::of(a, b)))
    }

    fn of(a: impl Into<Side>, b: impl Into<Side>) -> Self {
        Self { sides: Sides { a: a.into(), b: b.into() }, reserved: Reserved::default() }
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
        self.sides.a.populate_write(CALLERS_AT..SIDE_A_BYTES)
    }

    /// Backs the stamps of `B` with memory, so that neither side meets a shortage when it uses them.
    pub(crate) fn reserve_stamps(&self) -> Result<(), SysError> {
        self.sides.b.populate_write(STAMPS_AT..SIDE_B_BYTES)
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
        // A child that a task forks and that comes back from it is no second worker: it ends where it touches this side.
        b.dont_fork()?;
        Ok(Self::of(a, b))
    }

    fn of(a: impl Into<Side>, b: impl Into<Side>) -> Self {
        Self { sides: Sides { a: a.into(), b: b.into() }, reserved: Reserved::default() }
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

    /// Backs the first `bytes` of the call window.
    pub(crate) fn reserve_call_window(&self, bytes: usize) -> Result<(), SysError> {
        let bytes = bytes.next_multiple_of(PAGE_BYTES).min(WINDOW_BYTES);
        self.sides.b.populate_write(CALL_WINDOW_AT..CALL_WINDOW_AT + bytes)
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
