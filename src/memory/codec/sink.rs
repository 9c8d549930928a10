//! Where archives are written: [`Sink`], and what comes out of it: [`Encoded`].

use std::fmt;

use rkyv::ser::{Positional, Writer};

use super::bytes::AlignedBytes;
use super::elements::Elements;
use crate::error::CodecError;

/// Archives up to this size never touch the heap.
pub(crate) const INLINE_MAX: usize = 32;

/// An encoded value.
#[derive(Debug)]
pub(crate) enum Encoded {
    /// Short enough for a slot: the first `len` bytes.
    Inline {
        len: u8,
        bytes: [u8; INLINE_MAX],
    },
    Heap(AlignedBytes),
    /// The elements of a row of numbers, without a root: a result on its way into the memory that it will keep.
    Elements(Elements),
}

impl Encoded {
    /// `bytes` must not be longer than [`INLINE_MAX`].
    #[inline]
    pub(crate) fn inline(bytes: &[u8]) -> Self {
        let mut inline = [0; INLINE_MAX];
        inline[..bytes.len()].copy_from_slice(bytes);
        Self::Inline { len: bytes.len() as u8, bytes: inline }
    }

    /// What it travels as.
    #[inline]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Self::Heap(bytes) => bytes,
            Self::Elements(elements) => elements.as_bytes(),
        }
    }

    /// The same once more.
    pub(crate) fn copy(&self) -> Self {
        match self {
            Self::Inline { len, bytes } => Self::Inline { len: *len, bytes: *bytes },
            Self::Heap(bytes) => Self::Heap(AlignedBytes::from(&**bytes)),
            Self::Elements(elements) => Self::Heap(elements.to_archive()),
        }
    }

    #[inline]
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// The same bytes in memory that is aligned for reading, which the inline ones are not.
    pub(crate) fn into_aligned(self) -> AlignedBytes {
        match self {
            Self::Inline { .. } => AlignedBytes::from(self.as_bytes()),
            Self::Heap(bytes) => bytes,
            Self::Elements(elements) => elements.to_archive(),
        }
    }
}

/// Why a value was not encoded.
#[derive(Clone, Debug)]
pub(crate) enum EncodeError {
    /// The archive would have `size` bytes.
    TooLarge { size: usize, limit: usize },
    /// The value's own `Serialize` failed.
    Codec(CodecError),
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { size, limit } => write!(f, "{size} bytes exceed the limit of {limit}"),
            Self::Codec(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EncodeError {}

/// There is no memory for so many bytes.
#[cold]
pub(crate) fn no_memory(bytes: usize) -> EncodeError {
    EncodeError::Codec(CodecError::new(format_args!(
        "no memory for the {bytes} bytes that it takes; see `ulimit -v` and the memory of this machine"
    )))
}

/// A writer that starts in itself, moves to the heap when that is full, and past the limit only counts.
///
/// Positions start at 0 wherever the bytes end up.
#[derive(Debug)]
pub struct Sink {
    stage: Stage,
    /// Bytes written, including those that were only counted.
    len: usize,
    limit: usize,
    inline: [u8; INLINE_MAX],
    heap: AlignedBytes,
    /// Bytes in `heap` that were there before and belong to others.
    base: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Inline,
    Heap,
    /// Nothing is kept any more, but the error shall name the whole size.
    Counting,
    /// Likewise, since there was no memory for it.
    Exhausted,
}

impl Sink {
    #[inline]
    pub(super) fn new(limit: usize) -> Self {
        let heap = AlignedBytes::new();
        Self { stage: Stage::Inline, len: 0, limit, inline: [0; INLINE_MAX], heap, base: 0 }
    }

    /// Appends to `heap`, without the inline stage. `limit` counts what is appended.
    #[inline]
    pub(super) fn append_to(heap: AlignedBytes, limit: usize) -> Self {
        let base = heap.len();
        Self { stage: Stage::Heap, len: 0, limit, inline: [0; INLINE_MAX], heap, base }
    }

    /// The size, unless it is beyond the limit.
    #[inline]
    pub(super) fn checked_len(&self) -> Result<usize, EncodeError> {
        match self.stage {
            Stage::Counting => Err(EncodeError::TooLarge { size: self.len, limit: self.limit }),
            Stage::Exhausted => Err(no_memory(self.len)),
            Stage::Inline | Stage::Heap => Ok(self.len),
        }
    }

    #[inline]
    pub(super) fn finish(self) -> Result<Encoded, EncodeError> {
        let len = self.checked_len()?;
        Ok(match self.stage {
            Stage::Heap => Encoded::Heap(self.heap),
            _ => Encoded::Inline { len: len as u8, bytes: self.inline },
        })
    }

    /// The buffer, with whatever has been appended.
    #[inline]
    pub(super) fn take_heap(&mut self) -> AlignedBytes {
        std::mem::take(&mut self.heap)
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        let end = self.len.saturating_add(bytes.len());
        match self.stage {
            Stage::Inline if end <= INLINE_MAX && end <= self.limit => {
                self.inline[self.len..end].copy_from_slice(bytes);
            }
            Stage::Heap if end <= self.limit && self.heap.try_reserve(bytes.len()) => {
                self.heap.extend_from_slice(bytes);
            }
            _ => self.put_outside(bytes, end),
        }
        self.len = end;
    }

    /// What leaves the stage.
    #[cold]
    fn put_outside(&mut self, bytes: &[u8], end: usize) {
        match self.stage {
            Stage::Inline if end <= self.limit && self.heap.try_reserve(end) => {
                self.stage = Stage::Heap;
                self.heap.extend_from_slice(&self.inline[..self.len]);
                self.heap.extend_from_slice(bytes);
            }
            Stage::Inline | Stage::Heap => {
                self.stage = if end <= self.limit { Stage::Exhausted } else { Stage::Counting };
                self.discard();
            }
            Stage::Exhausted if end > self.limit => self.stage = Stage::Counting,
            Stage::Counting | Stage::Exhausted => {}
        }
    }

    fn discard(&mut self) {
        if self.base == 0 {
            self.heap = AlignedBytes::new();
        } else {
            self.heap.truncate(self.base);
        }
    }
}

impl Positional for Sink {
    #[inline]
    fn pos(&self) -> usize {
        self.len
    }
}

impl<E> Writer<E> for Sink {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), E> {
        self.put(bytes);
        Ok(())
    }
}
