//! A batch's payload: how its items lie in it, how they are collected, and how they are found.

use std::borrow::Borrow;
use std::ops::Range;

use crate::ground::prefetch::{self, Ahead};
use crate::memory::codec::{self, AlignedBytes, EncodeError, Encoded, Filler, Input};
use crate::protocol::code::Shape;

/// The items of a batch's payload: equal strides for plain types, else a table of ends at the end.
///
/// The table has an 8-byte end for each item; an item starts at the next multiple of its alignment.
#[derive(Clone, Copy)]
pub(super) struct Items<'a> {
    pub(super) bytes: &'a [u8],
    table: &'a [u8],
    align: usize,
}

impl<'a> Items<'a> {
    #[inline]
    pub(super) fn new<I: Input + ?Sized>(bytes: &'a [u8], items: usize) -> Option<Self> {
        Self::with_layout(bytes, items, Layout::of::<I>())
    }

    #[inline]
    fn with_layout(bytes: &'a [u8], items: usize, Layout { stride, align }: Layout) -> Option<Self> {
        if let Some(stride) = stride {
            let fits = stride.checked_mul(items)? <= bytes.len();
            return fits.then_some(Self { bytes, table: &[], align });
        }
        let table = bytes.len().checked_sub(items.checked_mul(8)?)?;
        let (bytes, table) = bytes.split_at(table);
        Some(Self { bytes, table, align })
    }

    #[inline]
    pub(super) fn get<I: Input + ?Sized>(&self, i: usize) -> Option<&'a [u8]> {
        self.item(i, codec::plain_size::<I>())
    }

    #[inline]
    fn item(&self, i: usize, stride: Option<usize>) -> Option<&'a [u8]> {
        if let Some(stride) = stride {
            return self.bytes.get(i * stride..(i + 1) * stride);
        }
        self.by_table(i)
    }

    #[inline]
    fn by_table(&self, i: usize) -> Option<&'a [u8]> {
        let end = self.end(i)?;
        let start = if i == 0 { 0 } else { self.end(i - 1)?.checked_next_multiple_of(self.align)? };
        self.bytes.get(start..end)
    }

    fn end(&self, i: usize) -> Option<usize> {
        let word = self.table.get(i * 8..i * 8 + 8)?;
        usize::try_from(u64::from_le_bytes(word.try_into().ok()?)).ok()
    }
}

/// An item of a batch whose type is known by its shape only. As [`Items::get`].
pub(crate) fn item_of(bytes: &[u8], items: usize, i: usize, shape: Shape) -> Option<&[u8]> {
    let Shape { size, align, plain } = shape;
    if plain {
        return bytes.get(i.checked_mul(size)?..(i + 1).checked_mul(size)?);
    }
    let table = bytes.len().checked_sub(items.checked_mul(8)?)?;
    let (bytes, table) = bytes.split_at(table);
    let items = Items { bytes, table, align };
    items.by_table(i)
}

/// Collects the items of a batch in the form that [`Items`] reads.
#[derive(Debug, Default)]
pub(crate) struct BatchBytes {
    bytes: AlignedBytes,
    ends: Vec<u8>,
    items: u32,
    /// Where it is going to be copied to, and what is going to be read next, as far as is known.
    pub(crate) ahead: Ahead,
    /// What the items are, once there was one.
    layout: Option<Layout>,
}

/// What [`Items`] has to know of a type to find its values in a batch.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// The size of each, if they are all of one size.
    stride: Option<usize>,
    align: usize,
}

impl Layout {
    #[inline]
    fn of<I: Input + ?Sized>() -> Self {
        Self { stride: codec::plain_size::<I>(), align: codec::view_align::<I>() }
    }
}

impl BatchBytes {
    /// Adds an item. On an error, what was there before stays.
    #[inline]
    pub(crate) fn push<I: Input + ?Sized>(&mut self, item: &I, limit: usize) -> Result<(), EncodeError> {
        self.layout = Some(Layout::of::<I>());
        if let Some(plain) = codec::plain_bytes(item).filter(|plain| plain.len() <= limit) {
            self.bytes.extend_from_slice(plain);
            self.items += 1;
            return Ok(());
        }
        let (_, end) = codec::encode_into(item, limit, &mut self.bytes)?;
        if codec::plain_size::<I>().is_none() {
            self.ends.extend_from_slice(&(end as u64).to_le_bytes());
        }
        self.items += 1;
        Ok(())
    }

    /// Whether items of this type are [`fill`](Self::fill)ed in.
    #[inline]
    pub(crate) fn are_plain<I: Input>(limit: usize) -> bool {
        codec::plain_size::<I>().is_some_and(|bytes| (1..=limit).contains(&bytes))
    }

    /// Adds items of a plain type until there are `goal`, `enough` says so after one of them, which it is told the number of, or
    /// the source ends, which is `false`; and counts them. Whatever the source does, the items that it has given are there.
    #[inline]
    pub(crate) fn fill<T: Iterator<Item = B>, I: Input, B: Borrow<I>>(
        &mut self,
        source: &mut Option<T>,
        goal: u32,
        pulled: &mut u64,
        enough: impl FnMut(u32) -> bool,
    ) -> bool {
        if size_of::<T>() > HELD_BYTES_MAX {
            return source
                .as_mut()
                .is_some_and(|source| self.fill_from::<I, B>(source, goal, pulled, enough));
        }
        let mut held = Held { source: source.take(), home: source };
        held.source.as_mut().is_some_and(|source| self.fill_from::<I, B>(source, goal, pulled, enough))
    }

    #[inline(always)]
    fn fill_from<I: Input, B: Borrow<I>>(
        &mut self,
        source: &mut impl Iterator<Item = B>,
        goal: u32,
        pulled: &mut u64,
        mut enough: impl FnMut(u32) -> bool,
    ) -> bool {
        let Some(stride) = codec::plain_size::<I>().filter(|&bytes| bytes > 0) else { return true };
        self.layout = Some(Layout::of::<I>());
        let room = (goal.saturating_sub(self.items) as usize).min(FILL_BYTES / stride);
        let filler = Filler::new(&mut self.bytes, room * stride);
        let mut filling = Filling { filler, stride, items: &mut self.items, pulled };
        let mut ahead = self.ahead.after(filling.filler.len());
        while filling.filler.room() >= stride {
            ahead.ask();
            for _ in 0..(prefetch::LINE_BYTES / stride).max(1) {
                if filling.filler.room() < stride {
                    return true;
                }
                let Some(item) = source.next() else { return false };
                filling.filler.push(codec::plain_bytes(item.borrow()).unwrap_or_default());
                if enough((filling.filler.added() / stride) as u32) {
                    return true;
                }
            }
        }
        true
    }

    pub(crate) fn len(&self) -> u32 {
        self.items
    }

    /// The bytes of the items so far.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Part of a batch of so many items of the type that was collected last, as a batch of its own.
    pub(crate) fn part(&self, payload: &[u8], items: usize, part: Range<usize>) -> Option<Encoded> {
        let shape = self.layout?;
        let batch = Items::with_layout(payload, items, shape)?;
        if let Some(stride) = shape.stride {
            let bytes = batch.bytes.get(part.start * stride..part.end * stride)?;
            return Some(Encoded::Heap(AlignedBytes::from(bytes)));
        }
        let (mut bytes, mut ends) = (AlignedBytes::new(), Vec::new());
        for i in part {
            bytes.pad_to(shape.align);
            bytes.extend_from_slice(batch.item(i, shape.stride)?);
            ends.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        }
        bytes.extend_from_slice(&ends);
        Some(Encoded::Heap(bytes))
    }

    /// The payload of what was collected, until [`clear`](Self::clear).
    pub(crate) fn payload(&mut self) -> &[u8] {
        if !self.ends.is_empty() {
            self.bytes.extend_from_slice(&self.ends);
            self.ends.clear();
        }
        &self.bytes
    }

    /// Starts anew, in the same memory.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear_for_reuse();
        self.ends.clear();
        self.items = 0;
    }

    /// The payload of what was collected, to be kept; starts anew.
    pub(crate) fn finish(&mut self) -> Encoded {
        self.payload();
        self.items = 0;
        Encoded::Heap(std::mem::take(&mut self.bytes))
    }
}

/// Items are filled in up to this many bytes at a time, so that a source that gives few takes little memory.
const FILL_BYTES: usize = 64 << 10;

/// Larger sources are not moved.
const HELD_BYTES_MAX: usize = 128;

/// A source on the stack, where nothing points to it, so that the loop over its items keeps it in registers: through a
/// reference it would be stored for each of them. It goes back when the loop ends, by a panic too.
struct Held<'a, T> {
    source: Option<T>,
    home: &'a mut Option<T>,
}

impl<T> Drop for Held<'_, T> {
    #[inline]
    fn drop(&mut self) {
        *self.home = self.source.take();
    }
}

/// A [`BatchBytes::fill`] under way. Its counts are right also after a panic of the source.
struct Filling<'a> {
    filler: Filler<'a>,
    stride: usize,
    items: &'a mut u32,
    pulled: &'a mut u64,
}

impl Drop for Filling<'_> {
    #[inline]
    fn drop(&mut self) {
        let added = self.filler.added() / self.stride.max(1);
        *self.items += added as u32;
        *self.pulled += added as u64;
    }
}
