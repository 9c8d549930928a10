//! Values to bytes and back: rkyv archives, written into small inline buffers first and validated
//! wherever they are read.
//!
//! One archive has one layout wherever it lies: positions count from its first byte, and the root is
//! what was written last. A sized root is the archived type itself; a slice needs a length, so its root
//! is an [`ArchivedBox`](rkyv::boxed::ArchivedBox) behind the elements; a `str` is nothing but its bytes.
//!
//! * `payload`: [`Payload`], [`Input`] and [`View`], and the strategy types behind their bounds
//! * `sink`: where archives are written, and what an encoded value is
//! * `bytes`: the aligned memory they lie in
//! * `encode`: values to bytes
//! * `access`: bytes to views and values
//! * `check`: the validator, which bounds how deep an archive may nest
//! * `plain`: numbers, which skip all of this
//! * `elements`: rows of numbers, which skip most of it
//! * `archive`: [`OwnedArchive`]
//!
//! Neither direction trusts the other: a hand-written `Serialize` may be wrong, and a worker's memory
//! may be anything. Reading is always preceded by validation, numbers excepted, for which every bit
//! pattern is a value.

mod access;
mod archive;
mod bytes;
mod check;
mod elements;
mod encode;
mod payload;
mod plain;
mod sink;
#[cfg(test)]
mod tests;

pub use archive::OwnedArchive;
pub use payload::{Input, Payload, View};

pub(crate) use access::{decode, from_view, view, view_align, view_size, with_view};
pub(crate) use bytes::{AlignedBytes, Filler};
pub(crate) use elements::{Elements, ElementsRef, element_size, elements};
pub(crate) use encode::{encode, encode_into};
pub(crate) use plain::{plain_bytes, plain_size, plain_value, plain_words};
pub(crate) use sink::{EncodeError, Encoded, INLINE_MAX, no_memory};
