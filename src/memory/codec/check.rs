//! The validator.

#![allow(unsafe_code, reason = "rkyv's validation interface is unsafe")]

use std::alloc::Layout;
use std::any::TypeId;
use std::fmt;
use std::ops::Range;

use rkyv::erased::{ErasedPtr, Metadata};
use rkyv::rancor::fail;
use rkyv::validation::shared::{SharedValidator, ValidationState};
use rkyv::validation::{ArchiveContext, SharedContext};

use super::payload::Fault;

/// How many pointers deep an archive may nest, its root included.
///
/// Validation and deserialization recurse once a level, and the threads that take results have 2 MiB of
/// stack. Measured in debug builds, a list of boxes takes 0.7 to 1 KiB a level (2000 levels fit, 3000 do
/// not), so that seven eighths of the stack remain for types that are large themselves.
pub(super) const MAX_DEPTH: u32 = 256;

/// Checks that everything an archive points to lies in the archive, once, and not too deep.
///
/// The same rules as rkyv's `ArchiveValidator`, which cannot be named without a lifetime; a lifetime
/// here would make every bound on [`Payload`](super::Payload) a higher-ranked one.
///
/// Known gap, rkyv's own (0.8.18, `swiss_table/table.rs`, `probe_cap`): without overflow checks, a forged
/// capacity near 2⁶⁴ of a hash table *whose entries have no size* (`HashSet<()>`) passes its layout check
/// and is read beyond the archive. For entries of any size the layout overflows and is refused.
///
/// CHECK-1: `range` lies in the bytes that `new` was given. A `Checker` is made for one access, in the
/// function that holds those bytes borrowed, and dropped there.
#[derive(Debug)]
pub struct Checker {
    range: Range<usize>,
    depth_left: u32,
    shared: SharedValidator,
}

impl Checker {
    #[inline]
    pub(super) fn new(bytes: &[u8]) -> Self {
        let Range { start, end } = bytes.as_ptr_range();
        let range = start.addr()..end.addr();
        Self { range, depth_left: MAX_DEPTH, shared: SharedValidator::new() }
    }
}

// SAFETY: `check_subtree_ptr` accepts only what lies wholly inside `range`, which the borrowed bytes
// contain (CHECK-1), and is aligned. Subtree ranges only ever shrink what is left (see `push`).
unsafe impl ArchiveContext<Fault> for Checker {
    #[inline]
    fn check_subtree_ptr(&mut self, ptr: *const u8, layout: &Layout) -> Result<(), Fault> {
        let start = ptr.addr();
        let inside = start.checked_add(layout.size()).is_some_and(|end| end <= self.range.end);
        if !inside || start < self.range.start {
            fail!(Misplaced::Outside {
                offset: start.wrapping_sub(self.range.start) as isize,
                size: layout.size(),
                available: self.range.len(),
            });
        }
        if start & (layout.align() - 1) != 0 {
            fail!(Misplaced::Unaligned { align: layout.align() });
        }
        Ok(())
    }

    /// What lies before `root` is left to the subtree; what lies behind its end comes back with `pop`.
    #[inline]
    unsafe fn push_subtree_range(&mut self, root: *const u8, end: *const u8) -> Result<Range<usize>, Fault> {
        let Some(depth_left) = self.depth_left.checked_sub(1) else { fail!(Misplaced::TooDeep) };
        self.depth_left = depth_left;
        let rest = end.addr()..self.range.end;
        self.range.end = root.addr();
        Ok(rest)
    }

    #[inline]
    unsafe fn pop_subtree_range(&mut self, range: Range<usize>) -> Result<(), Fault> {
        if range.start < self.range.end {
            fail!(Misplaced::OutOfOrder);
        }
        self.range = range;
        self.depth_left += 1;
        Ok(())
    }
}

impl SharedContext<Fault> for Checker {
    fn start_shared(
        &mut self,
        type_id: TypeId,
        ptr: ErasedPtr,
        metadata_is_eq: unsafe fn(Metadata, Metadata) -> bool,
    ) -> Result<ValidationState, Fault> {
        self.shared.start_shared(type_id, ptr, metadata_is_eq)
    }

    fn finish_shared(&mut self, type_id: TypeId, ptr: ErasedPtr) -> Result<(), Fault> {
        self.shared.finish_shared(type_id, ptr)
    }
}

#[derive(Debug)]
enum Misplaced {
    Outside { offset: isize, size: usize, available: usize },
    Unaligned { align: usize },
    TooDeep,
    OutOfOrder,
}

impl fmt::Display for Misplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside { offset, size, available } => {
                write!(
                    f,
                    "{size} bytes at offset {offset} are not within the {available} bytes of the archive"
                )
            }
            Self::Unaligned { align } => write!(f, "a value in the archive is not aligned to {align}"),
            Self::TooDeep => write!(f, "the archive nests more than {MAX_DEPTH} pointers deep"),
            Self::OutOfOrder => f.write_str("parts of the archive overlap"),
        }
    }
}

impl std::error::Error for Misplaced {}
