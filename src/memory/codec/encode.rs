//! Values to bytes, and the two helpers of the serializer that cost nothing until a type asks for them.

#![allow(unsafe_code, reason = "rkyv's allocator interface is unsafe")]

use std::alloc::Layout;
use std::ptr::NonNull;

use rkyv::rancor::{Source, Strategy};
use rkyv::ser;
use rkyv::ser::allocator::{Allocator, Arena, ArenaHandle};
use rkyv::ser::sharing::{Share, SharingState};

use super::access::{Root, view_align};
use super::bytes::AlignedBytes;
use super::payload::{Encoder, Input, View};
use super::plain::plain_bytes;
use super::sink::{EncodeError, Encoded, INLINE_MAX, Sink};
use crate::error::CodecError;

/// Encodes `value`, unless that takes more than `limit` bytes.
///
/// A panic of the value's own `Serialize` passes through; nothing is left behind.
#[inline]
pub(crate) fn encode<I: Input + ?Sized>(value: &I, limit: usize) -> Result<Encoded, EncodeError> {
    if let Some(bytes) = plain_bytes(value) {
        return encode_plain(bytes, limit);
    }
    let mut serializer = ser::Serializer::new(Sink::new(limit), Scratch::new(), Sharing::new());
    write_root(value, &mut serializer)?;
    serializer.into_writer().finish()
}

#[inline]
fn encode_plain(bytes: &[u8], limit: usize) -> Result<Encoded, EncodeError> {
    const { assert!(size_of::<u128>() <= INLINE_MAX, "every plain value fits inline") };
    if bytes.len() > limit {
        return Err(EncodeError::TooLarge { size: bytes.len(), limit });
    }
    Ok(Encoded::inline(bytes))
}

/// Appends `value` to `buffer` at the next multiple of [`view_align`], and returns where it starts and
/// ends. `limit` is for this value alone. On an error or a panic the buffer is as it was.
pub(crate) fn encode_into<I: Input + ?Sized>(
    value: &I,
    limit: usize,
    buffer: &mut AlignedBytes,
) -> Result<(usize, usize), EncodeError> {
    let before = buffer.len();
    if let Some(bytes) = plain_bytes(value) {
        if bytes.len() > limit {
            return Err(EncodeError::TooLarge { size: bytes.len(), limit });
        }
        let start = buffer.pad_to(view_align::<I>());
        buffer.extend_from_slice(bytes);
        return Ok((start, buffer.len()));
    }
    let start = buffer.pad_to(view_align::<I>());
    let sink = Sink::append_to(std::mem::take(buffer), limit);
    let serializer = ser::Serializer::new(sink, Scratch::new(), Sharing::new());
    let mut appending = Appending { serializer, buffer, keep: before };
    write_root(value, &mut appending.serializer)?;
    let len = appending.serializer.writer.checked_len()?;
    appending.keep = start + len;
    Ok((start, start + len))
}

#[inline]
fn write_root<I: Input + ?Sized>(value: &I, serializer: &mut RawEncoder) -> Result<(), EncodeError> {
    let encoder: &mut Encoder = Strategy::wrap(serializer);
    View::<I>::write(value, encoder).map_err(|fault| EncodeError::Codec(CodecError::new(fault)))
}

type RawEncoder = ser::Serializer<Sink, Scratch, Sharing>;

/// Gives the buffer back when it goes, by return or by panic, cut to what shall stay of it.
struct Appending<'a> {
    serializer: RawEncoder,
    buffer: &'a mut AlignedBytes,
    keep: usize,
}

impl Drop for Appending<'_> {
    #[inline]
    fn drop(&mut self) {
        *self.buffer = self.serializer.writer.take_heap();
        self.buffer.truncate(self.keep);
    }
}

/// Memory for what a serializer notes down on the way, such as the positions of a `Vec<String>`'s
/// elements. Vectors of numbers and flat structs never ask.
///
/// Invariants: SCRATCH-1: `arena` came from `Box::leak` in `start`, nothing else points to it, and
/// only `drop` frees it. SCRATCH-2: `handle` is `Some` exactly when `arena` is, and is the arena's only
/// user until then.
#[derive(Default)]
pub struct Scratch {
    handle: Option<ArenaHandle<'static>>,
    arena: Option<NonNull<Arena>>,
}

impl Scratch {
    #[inline]
    pub(super) fn new() -> Self {
        Self::default()
    }

    #[cold]
    fn start(&mut self) -> &mut ArenaHandle<'static> {
        let arena = NonNull::from(Box::leak(Box::new(Arena::new())));
        self.arena = Some(arena);
        // SAFETY: SCRATCH-1: it lives until `drop`, which gives up the handle first (SCRATCH-2), so
        // no use of the `'static` borrow comes after its end.
        let arena: &'static mut Arena = unsafe { &mut *arena.as_ptr() };
        self.handle.insert(arena.acquire())
    }

    #[inline]
    fn handle(&mut self) -> &mut ArenaHandle<'static> {
        if self.handle.is_none() {
            return self.start();
        }
        self.handle.as_mut().expect("checked the line above")
    }
}

impl Drop for Scratch {
    #[inline]
    fn drop(&mut self) {
        self.handle = None;
        if let Some(arena) = self.arena.take() {
            // SAFETY: SCRATCH-1: from `Box::leak`, freed here only; the handle is gone.
            drop(unsafe { Box::from_raw(arena.as_ptr()) });
        }
    }
}

// SAFETY: `ArenaHandle` keeps the contract, and everything is forwarded to the one handle there is.
unsafe impl<E: Source> Allocator<E> for Scratch {
    #[inline]
    unsafe fn push_alloc(&mut self, layout: Layout) -> Result<NonNull<[u8]>, E> {
        // SAFETY: the caller's promise is the one that is asked for here.
        unsafe { self.handle().push_alloc(layout) }
    }

    #[inline]
    unsafe fn pop_alloc(&mut self, ptr: NonNull<u8>, layout: Layout) -> Result<(), E> {
        // SAFETY: the caller's promise is the one that is asked for here.
        unsafe { self.handle().pop_alloc(ptr, layout) }
    }
}

/// Finds `Rc`s and `Arc`s that have been written already. Allocates when the first one comes.
#[derive(Debug, Default)]
pub struct Sharing {
    seen: Option<Box<Share>>,
}

impl Sharing {
    #[inline]
    pub(super) fn new() -> Self {
        Self::default()
    }
}

impl<E: Source> ser::Sharing<E> for Sharing {
    fn start_sharing(&mut self, address: usize) -> SharingState {
        let seen = self.seen.get_or_insert_default();
        ser::Sharing::<E>::start_sharing(&mut **seen, address)
    }

    fn finish_sharing(&mut self, address: usize, pos: usize) -> Result<(), E> {
        self.seen.get_or_insert_default().finish_sharing(address, pos)
    }
}
