//! [`OwnedArchive`]: a result that stays in its archived form.

#![allow(unsafe_code, reason = "validates once instead of at every access")]

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use super::access::{aligned_if_empty, from_view, view};
use super::bytes::AlignedBytes;
use super::payload::{Payload, View};
use crate::error::CodecError;

/// An archived `R` with the bytes it lies in: validated, never deserialized.
///
/// Dereferences to the archived form, whose fields can be read without bringing the whole value back.
///
/// ARCHIVE-1: `bytes` passed the validation of a `View<R>`, and has not changed since.
pub struct OwnedArchive<R: Payload> {
    bytes: AlignedBytes,
    // Threads may share and send this as they may the archived form.
    form: PhantomData<View<R>>,
}

impl<R: Payload> OwnedArchive<R> {
    pub(crate) fn new(bytes: AlignedBytes) -> Result<Self, CodecError> {
        view::<R>(&bytes)?;
        Ok(Self { bytes, form: PhantomData })
    }

    /// The value itself.
    pub fn deserialize(&self) -> Result<R, CodecError> {
        from_view::<R>(&**self)
    }

    /// The archive, as rkyv laid it out.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl<R: Payload> Deref for OwnedArchive<R> {
    type Target = View<R>;

    fn deref(&self) -> &View<R> {
        // SAFETY: ARCHIVE-1. Archives hold relative pointers only, and the heap memory of `bytes` has
        // not moved; `view` validated the same position, counted from the end, at the same alignment.
        unsafe { rkyv::access_unchecked::<View<R>>(aligned_if_empty(&self.bytes)) }
    }
}

impl<R: Payload<Archived: fmt::Debug>> fmt::Debug for OwnedArchive<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnedArchive").field(&**self).finish()
    }
}
