//! Bytes to views and values.

use std::any::type_name;
use std::ffi::CStr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rkyv::api::access_with_context;
use rkyv::boxed::{ArchivedBox, BoxResolver};
use rkyv::bytecheck::CheckBytes;
use rkyv::de::Pool;
use rkyv::rancor::{Fallible, Source, Strategy};
use rkyv::{Archive, ArchiveUnsized, Deserialize as _, Place, Portable, Serialize, SerializeUnsized};

use super::bytes::AlignedBytes;
use super::check::Checker;
use super::payload::{Encoder, Fault, Input, Payload, View};
use super::plain;
use crate::error::CodecError;

/// rkyv's primitives need no more, so that whatever lies inside an archive is aligned if its start is.
const PAYLOAD_ALIGN: usize = 16;

/// What the first byte of an encoded `I` must be aligned to: its own size for a plain number, nothing
/// for a `str`, else 16 or what the archived type asks for.
#[inline]
pub(crate) fn view_align<I: Input + ?Sized>() -> usize {
    match plain::plain_size::<I>() {
        Some(size) => size.max(1),
        None => <View<I> as Root>::ALIGN,
    }
}

/// How many bytes the root of an archived `I` takes, or each of its elements, and whether it is a number.
pub(crate) fn view_size<I: Input + ?Sized>() -> (usize, bool) {
    (<View<I> as Root>::SIZE, plain::plain_size::<I>().is_some())
}

/// Validates `bytes` and reads them in place. They must be aligned to [`view_align`]; an error if not.
#[inline]
pub(crate) fn view<I: Input + ?Sized>(bytes: &[u8]) -> Result<&View<I>, CodecError> {
    let bytes = aligned_if_empty(bytes);
    let align = view_align::<I>();
    if bytes.as_ptr().addr() & (align - 1) != 0 {
        return Err(misaligned::<I>(align));
    }
    if plain::plain_size::<I>().is_some() {
        return <View<I> as Root>::access(bytes).map_err(CodecError::new);
    }
    // Damage must end as an error, and with overflow checks on, rkyv's validation of a hash table
    // panics over an impossible capacity (0.8.18, `probe_cap`). Nothing half done outlives the panic.
    match catch_unwind(AssertUnwindSafe(|| <View<I> as Root>::access(bytes))) {
        Ok(checked) => checked.map_err(CodecError::new),
        Err(_) => Err(panicked::<I>()),
    }
}

/// Validates `bytes` and makes a value of them. Plain numbers may lie anywhere, everything else must be
/// aligned to [`view_align`]. A panic of the value's own `Deserialize` passes through.
#[inline]
pub(crate) fn decode<R: Payload>(bytes: &[u8]) -> Result<R, CodecError> {
    if let Some(value) = plain::decode_scalar(bytes) {
        return value;
    }
    with_view::<R, _>(bytes, from_view)?
}

/// As [`view`], for `f`, wherever in a buffer an archive lies. What a pointer in it leads to may be aligned to more than
/// its root, which no type says: then `f` sees a copy.
#[inline]
pub(crate) fn with_view<I: Input + ?Sized, T>(
    bytes: &[u8],
    f: impl FnOnce(&View<I>) -> T,
) -> Result<T, CodecError> {
    let copy;
    let view = match view::<I>(bytes) {
        Ok(view) => view,
        Err(error) => {
            copy = realigned(bytes, view_align::<I>()).ok_or(error)?;
            view::<I>(&copy)?
        }
    };
    Ok(f(view))
}

/// A copy of an archive at an address where everything in it is aligned, if its own is none but does for its root.
#[cold]
fn realigned(bytes: &[u8], align: usize) -> Option<AlignedBytes> {
    let is_at = |align: usize| bytes.as_ptr().addr().is_multiple_of(align);
    (is_at(align) && !is_at(AlignedBytes::ALIGN)).then(|| AlignedBytes::from(bytes))
}

/// Makes a value of a validated view.
#[inline]
pub(crate) fn from_view<I: Payload>(view: &View<I>) -> Result<I, CodecError> {
    if let Some(value) = plain::copy_vec::<I, View<I>>(view) {
        return Ok(value);
    }
    view.deserialize(Strategy::wrap(&mut Pool::new())).map_err(|fault: Fault| CodecError::new(fault))
}

#[cold]
fn panicked<I: ?Sized>() -> CodecError {
    CodecError::new(format_args!("validating the bytes of a `{}` panicked", type_name::<I>()))
}

#[cold]
fn misaligned<I: ?Sized>(align: usize) -> CodecError {
    CodecError::new(format_args!("the bytes of a `{}` are not aligned to {align}", type_name::<I>()))
}

/// An empty buffer's pointer need not be aligned to anything, but values without size want it to be.
#[inline]
pub(super) fn aligned_if_empty(bytes: &[u8]) -> &[u8] {
    #[repr(align(64))]
    struct Empty([u8; 0]);
    static EMPTY: Empty = Empty([]);
    if bytes.is_empty() { &EMPTY.0 } else { bytes }
}

/// An archived type that can be a root: how it is found in the bytes, and how it got there.
///
/// Sized types, slices, `str` and `CStr`; nothing else is `Archived` of anything in rkyv.
pub trait Root: Portable {
    /// What the first byte must be aligned to.
    #[doc(hidden)]
    const ALIGN: usize;

    /// How many bytes it, or each of its elements, takes.
    #[doc(hidden)]
    const SIZE: usize;

    /// Bytes that [`write`](Self::write) wrote, or anything else: validates.
    #[doc(hidden)]
    fn access(bytes: &[u8]) -> Result<&Self, Fault>;

    /// Writes `value` and, last, what [`access`](Self::access) starts from.
    #[doc(hidden)]
    #[inline]
    fn write<I>(value: &I, encoder: &mut Encoder) -> Result<(), Fault>
    where
        I: SerializeUnsized<Encoder> + ArchiveUnsized<Archived = Self> + ?Sized,
    {
        value.serialize_unsized(encoder).map(drop)
    }
}

impl<A: Portable + CheckBytes<Strategy<Checker, Fault>>> Root for A {
    const ALIGN: usize = if align_of::<A>() > PAYLOAD_ALIGN { align_of::<A>() } else { PAYLOAD_ALIGN };
    const SIZE: usize = size_of::<A>();

    #[inline]
    fn access(bytes: &[u8]) -> Result<&Self, Fault> {
        access_with_context::<A, Checker, Fault>(bytes, &mut Checker::new(bytes))
    }
}

impl<A: Portable + CheckBytes<Strategy<Checker, Fault>>> Root for [A] {
    const ALIGN: usize = <A as Root>::ALIGN;
    const SIZE: usize = size_of::<A>();

    #[inline]
    fn access(bytes: &[u8]) -> Result<&Self, Fault> {
        <ArchivedBox<[A]> as Root>::access(bytes).map(ArchivedBox::get)
    }

    #[inline]
    fn write<I>(value: &I, encoder: &mut Encoder) -> Result<(), Fault>
    where
        I: SerializeUnsized<Encoder> + ArchiveUnsized<Archived = Self> + ?Sized,
    {
        Indirect(value).serialize_unsized(encoder).map(drop)
    }
}

impl Root for str {
    const ALIGN: usize = 1;
    const SIZE: usize = 1;

    #[inline]
    fn access(bytes: &[u8]) -> Result<&Self, Fault> {
        std::str::from_utf8(bytes).map_err(Fault::new)
    }
}

impl Root for CStr {
    const ALIGN: usize = 1;
    const SIZE: usize = 1;

    #[inline]
    fn access(bytes: &[u8]) -> Result<&Self, Fault> {
        CStr::from_bytes_with_nul(bytes).map_err(Fault::new)
    }
}

/// A slice as the `Box` of it would be archived: elements first, then where and how many.
struct Indirect<'a, I: ?Sized>(&'a I);

impl<I: ArchiveUnsized + ?Sized> Archive for Indirect<'_, I> {
    type Archived = ArchivedBox<I::Archived>;
    type Resolver = BoxResolver;

    fn resolve(&self, resolver: BoxResolver, out: Place<Self::Archived>) {
        ArchivedBox::resolve_from_ref(self.0, resolver, out);
    }
}

impl<I: SerializeUnsized<S> + ?Sized, S: Fallible + ?Sized> Serialize<S> for Indirect<'_, I> {
    fn serialize(&self, serializer: &mut S) -> Result<BoxResolver, S::Error> {
        ArchivedBox::serialize_from_ref(self.0, serializer)
    }
}
