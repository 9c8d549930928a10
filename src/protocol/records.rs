//! The items of a batch on their way back, and what a panic looks like in bytes.
//!
//! A batch's results flow through the arena as one stream, in item order. Results of a fixed size come as *bare values*,
//! one after the other (one without bytes takes a byte), up to the first item that has no value. From there on, and
//! from the beginning if the results have no fixed size, the stream consists of *records*: a status byte and then, for
//! [`Status::Value`], the fixed-size archive of the result; for every other status, a length (8 bytes, little-endian)
//! and that many bytes. Records are packed. Where they begin is one position beside the stream.

use super::wire::Status;
use crate::memory::codec::{self, Payload};

/// The texts of errors and panics are cut off here by the worker; a longer one is no worker's.
pub(crate) const TEXT_BYTES_MAX: usize = 1 << 20;
/// The position where bare values end that have not ended.
pub(crate) const OPEN_END: u64 = u64::MAX;
/// The status and the length in front of a record's payload.
pub(crate) const SIZED_HEADER_BYTES: usize = 9;

/// Fixed-size results up to this many bytes travel without a length.
pub(crate) const STRIDE_MAX: usize = 16;

/// The size of a batch's results, if they travel without a length. Both ends ask here.
#[inline]
pub(crate) fn record_stride<R: Payload>() -> Option<usize> {
    codec::plain_size::<R>().filter(|&bytes| bytes <= STRIDE_MAX)
}

/// What a bare value takes: a byte at least.
#[inline]
pub(crate) fn value_bytes<R: Payload>() -> Option<usize> {
    record_stride::<R>().map(|bytes| bytes.max(1))
}

/// What [`parse`] found at the start of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed<'a> {
    /// A record, and the number of bytes it takes.
    Record { status: Status, payload: &'a [u8], bytes: usize },
    /// The record is not whole yet.
    Partial,
    /// No worker that keeps the protocol writes this.
    Invalid,
}

/// Reads the first record. `stride` is the size of a fixed-size result, `value_max` the most that any other may have:
/// what is announced to be longer is not waited for.
#[inline]
pub(crate) fn parse(bytes: &[u8], stride: Option<usize>, value_max: usize) -> Parsed<'_> {
    let Some((&status, rest)) = bytes.split_first() else { return Parsed::Partial };
    if status == Status::Value as u8 {
        let Some(stride) = stride else { return Parsed::Invalid };
        return match rest.get(..stride) {
            Some(payload) => Parsed::Record { status: Status::Value, payload, bytes: 1 + stride },
            None => Parsed::Partial,
        };
    }
    let status = match Status::from_wire(status) {
        Some(Status::BatchDone | Status::BatchCut | Status::Skipped) | None => return Parsed::Invalid,
        Some(status) => status,
    };
    let Some((len, rest)) = rest.split_first_chunk::<8>() else { return Parsed::Partial };
    let limit = if status == Status::SizedValue { value_max } else { TEXT_BYTES_MAX };
    let len = match usize::try_from(u64::from_le_bytes(*len)) {
        Ok(len) if len <= limit => len,
        _ => return Parsed::Invalid,
    };
    match rest.get(..len) {
        Some(payload) => Parsed::Record { status, payload, bytes: SIZED_HEADER_BYTES + len },
        None => Parsed::Partial,
    }
}

/// The bytes in front of a record's payload, if it carries a length.
pub(crate) fn sized_header(status: Status, len: usize) -> [u8; SIZED_HEADER_BYTES] {
    let mut header = [status as u8; SIZED_HEADER_BYTES];
    header[1..].copy_from_slice(&(len as u64).to_le_bytes());
    header
}

/// A panic's message and place, as the payload of [`Status::Panicked`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Panic<'a> {
    pub(crate) message: std::borrow::Cow<'a, str>,
    pub(crate) location: std::borrow::Cow<'a, str>,
}

impl<'a> Panic<'a> {
    /// Cut to [`TEXT_BYTES_MAX`].
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let location = cut(self.location.as_bytes(), TEXT_BYTES_MAX / 4);
        let message = cut(self.message.as_bytes(), TEXT_BYTES_MAX - 8 - location.len());
        let mut bytes = Vec::with_capacity(8 + message.len() + location.len());
        bytes.extend_from_slice(&(message.len() as u64).to_le_bytes());
        bytes.extend_from_slice(message);
        bytes.extend_from_slice(location);
        bytes
    }

    /// Reads what a worker wrote; whatever the bytes, there is a text.
    pub(crate) fn from_bytes(bytes: &'a [u8]) -> Self {
        let (message, location) = bytes
            .split_first_chunk::<8>()
            .and_then(|(len, rest)| rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?))
            .unwrap_or((bytes, b""));
        Self { message: String::from_utf8_lossy(message), location: String::from_utf8_lossy(location) }
    }
}

/// The text of an error, cut to [`TEXT_BYTES_MAX`].
pub(crate) fn text_to_bytes(text: String) -> Vec<u8> {
    let mut bytes = text.into_bytes();
    bytes.truncate(TEXT_BYTES_MAX);
    bytes
}

fn cut(text: &[u8], bytes_max: usize) -> &[u8] {
    &text[..text.len().min(bytes_max)]
}

/// Two sizes, as the payload of [`Status::TooLarge`].
pub(crate) fn sizes_to_bytes(size: usize, limit: usize) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(size as u64).to_le_bytes());
    bytes[8..].copy_from_slice(&(limit as u64).to_le_bytes());
    bytes
}

/// Reads [`sizes_to_bytes`]; zeros where bytes are missing.
pub(crate) fn sizes_from_bytes(bytes: &[u8]) -> (usize, usize) {
    let word = |at: usize| {
        let word = bytes.get(at..at + 8).and_then(|b| <[u8; 8]>::try_from(b).ok()).unwrap_or_default();
        usize::try_from(u64::from_le_bytes(word)).unwrap_or(usize::MAX)
    };
    (word(0), word(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_back_and_partial_ones_wait() {
        let mut stream = vec![Status::Value as u8];
        stream.extend_from_slice(&7_u64.to_le_bytes());
        let sized_at = stream.len();
        stream.extend_from_slice(&sized_header(Status::SizedValue, 3));
        stream.extend_from_slice(b"abc");

        for cut in 0..sized_at {
            assert_eq!(parse(&stream[..cut], Some(8), 64), Parsed::Partial);
        }
        let first = Parsed::Record { status: Status::Value, payload: &7_u64.to_le_bytes(), bytes: 9 };
        assert_eq!(parse(&stream, Some(8), 64), first);
        for cut in sized_at..stream.len() {
            assert_eq!(parse(&stream[sized_at..cut], Some(8), 64), Parsed::Partial);
        }
        let second = Parsed::Record { status: Status::SizedValue, payload: b"abc", bytes: 12 };
        assert_eq!(parse(&stream[sized_at..], Some(8), 64), second);
    }

    #[test]
    fn what_no_worker_writes_is_invalid() {
        assert_eq!(parse(&[0; 9], None, 64), Parsed::Invalid);
        assert_eq!(parse(&[200; 20], Some(8), 64), Parsed::Invalid);
        assert_eq!(parse(&[Status::BatchDone as u8; 20], Some(8), 64), Parsed::Invalid);
        // What is too long is not waited for.
        for (status, limit) in [(Status::SizedValue, 64), (Status::Panicked, TEXT_BYTES_MAX)] {
            assert_eq!(parse(&sized_header(status, limit), None, 64), Parsed::Partial);
            assert_eq!(parse(&sized_header(status, limit + 1), None, 64), Parsed::Invalid);
            assert_eq!(parse(&sized_header(status, usize::MAX), None, 64), Parsed::Invalid);
        }
    }

    #[test]
    fn a_panic_survives_and_garbage_has_a_text() {
        let panic = Panic { message: "no".into(), location: "src/x.rs:3:5".into() };
        assert_eq!(Panic::from_bytes(&panic.to_bytes()), panic);
        assert_eq!(Panic::from_bytes(b"abc").message, "abc");
        assert_eq!(Panic::from_bytes(&[0xFF; 9]).location, "");
    }

    #[test]
    fn long_texts_are_cut() {
        let panic = Panic { message: "m".repeat(3 << 20).into(), location: "l".repeat(3 << 20).into() };
        let bytes = panic.to_bytes();
        assert_eq!(bytes.len(), TEXT_BYTES_MAX);
        let cut = Panic::from_bytes(&bytes);
        assert!(panic.message.starts_with(&*cut.message) && panic.location.starts_with(&*cut.location));
        assert_eq!(text_to_bytes("t".repeat(3 << 20)).len(), TEXT_BYTES_MAX);
    }

    #[test]
    fn sizes_survive() {
        assert_eq!(sizes_from_bytes(&sizes_to_bytes(5, usize::MAX)), (5, usize::MAX));
        assert_eq!(sizes_from_bytes(b"12"), (0, 0));
    }
}
