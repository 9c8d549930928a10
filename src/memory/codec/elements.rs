//! Plain elements: a `Vec`, boxed slice or slice of numbers, which needs to be copied and nothing else.
//!
//! Their archive is known beforehand: the elements, then a root that says where they are and how many. So an input of
//! that kind is written straight into shared memory, and a result travels without a root and is copied once, into the
//! memory that the value keeps. No code of the user's has a part in it.

#![allow(unsafe_code, reason = "sees numbers as bytes, and bytes as numbers")]

use std::any::TypeId;
use std::{mem, ptr, slice};

use super::bytes::AlignedBytes;
use super::plain::{for_each_number, non_static_id, renamed};
use crate::error::CodecError;
use crate::memory::copy::copy;

/// What a root of plain elements begins at a multiple of.
const ROOT_ALIGN: usize = 8;
/// Where the elements are, and how many: an `ArchivedVec` and an `ArchivedBox` of a slice look alike.
const ROOT_BYTES: usize = 16;

/// The elements of a value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ElementsRef<'a> {
    bytes: &'a [u8],
    size: u8,
}

/// The elements of `value`, if it is a row of numbers.
#[inline]
pub(crate) fn elements<T: ?Sized>(value: &T) -> Option<ElementsRef<'_>> {
    let id = non_static_id::<T>();
    macro_rules! look {
        ($($number:ident)*) => { $(
            if id == TypeId::of::<Vec<$number>>() {
                // SAFETY: `T` is that type; ids ignore lifetimes only, and it has none.
                let value = unsafe { mem::transmute_copy::<&T, &Vec<$number>>(&value) };
                return Some(ElementsRef::of(value));
            }
            if id == TypeId::of::<Box<[$number]>>() {
                // SAFETY: as above.
                let value = unsafe { mem::transmute_copy::<&T, &Box<[$number]>>(&value) };
                return Some(ElementsRef::of(value));
            }
            if id == TypeId::of::<[$number]>() {
                // SAFETY: as above; both references are a pointer and a length.
                let value = unsafe { mem::transmute_copy::<&T, &[$number]>(&value) };
                return Some(ElementsRef::of(value));
            }
        )* };
    }
    if cfg!(target_endian = "big") {
        return None;
    }
    for_each_number!(look);
    None
}

/// The size of an element of `R`, if that is an owned row of numbers.
#[inline]
pub(crate) fn element_size<R: 'static>() -> Option<u8> {
    let id = TypeId::of::<R>();
    macro_rules! size {
        ($($number:ident)*) => { $(
            if id == TypeId::of::<Vec<$number>>() || id == TypeId::of::<Box<[$number]>>() {
                return Some(size_of::<$number>() as u8);
            }
        )* };
    }
    if cfg!(target_endian = "big") {
        return None;
    }
    for_each_number!(size);
    None
}

impl<'a> ElementsRef<'a> {
    /// `T` is a number.
    #[inline]
    fn of<T: Copy>(values: &'a [T]) -> Self {
        // SAFETY: numbers have no padding, and a byte has no alignment.
        let bytes = unsafe { slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        Self { bytes, size: size_of::<T>() as u8 }
    }

    #[inline]
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes of one element.
    #[inline]
    pub(crate) fn size(&self) -> u8 {
        self.size
    }

    /// How long the archive of the value is: elements, padding, root.
    #[inline]
    pub(crate) fn archive_bytes(&self) -> usize {
        self.bytes.len().next_multiple_of(ROOT_ALIGN) + ROOT_BYTES
    }

    /// What follows the elements in the archive: some padding, of which the first number says how much is not needed, and
    /// the root.
    #[inline]
    pub(crate) fn tail(&self) -> (usize, [u8; ROOT_ALIGN + ROOT_BYTES]) {
        let root_at = self.bytes.len().next_multiple_of(ROOT_ALIGN);
        let count = self.bytes.len() / usize::from(self.size);
        let mut tail = [0; ROOT_ALIGN + ROOT_BYTES];
        tail[ROOT_ALIGN..ROOT_ALIGN + 8].copy_from_slice(&(-(root_at as i64)).to_le_bytes());
        tail[ROOT_ALIGN + 8..].copy_from_slice(&(count as u64).to_le_bytes());
        (ROOT_ALIGN - (root_at - self.bytes.len()), tail)
    }

    /// The archive.
    pub(crate) fn to_archive(self) -> AlignedBytes {
        self.archive_in(AlignedBytes::with_capacity(self.archive_bytes()))
    }

    /// The archive, if there is memory for it.
    pub(crate) fn try_to_archive(self) -> Option<AlignedBytes> {
        AlignedBytes::try_with_capacity(self.archive_bytes()).map(|archive| self.archive_in(archive))
    }

    fn archive_in(self, mut archive: AlignedBytes) -> AlignedBytes {
        archive.extend_from_slice(self.bytes);
        let (skip, tail) = self.tail();
        archive.extend_from_slice(&tail[skip..]);
        archive
    }
}

/// Elements on their way into a value: they are copied in piece by piece, where the value will keep them.
///
/// * ELEM-1: the first `filled` bytes of the vector's memory are initialised; its own length is 0.
#[derive(Debug)]
pub(crate) struct Elements {
    room: Room,
    filled: usize,
}

/// Memory by the size of an element, which is its alignment too.
#[derive(Debug)]
enum Room {
    One(Vec<u8>),
    Two(Vec<u16>),
    Four(Vec<u32>),
    Eight(Vec<u64>),
    Sixteen(Vec<u128>),
}

macro_rules! with_room {
    ($room:expr, $vec:ident => $then:expr) => {
        match $room {
            Room::One($vec) => $then,
            Room::Two($vec) => $then,
            Room::Four($vec) => $then,
            Room::Eight($vec) => $then,
            Room::Sixteen($vec) => $then,
        }
    };
}

impl Room {
    fn new(size: u8, bytes: usize) -> Option<Self> {
        Some(match size {
            1 => Self::One(Vec::with_capacity(bytes)),
            2 => Self::Two(Vec::with_capacity(bytes.div_ceil(2))),
            4 => Self::Four(Vec::with_capacity(bytes.div_ceil(4))),
            8 => Self::Eight(Vec::with_capacity(bytes.div_ceil(8))),
            16 => Self::Sixteen(Vec::with_capacity(bytes.div_ceil(16))),
            _ => return None,
        })
    }

    fn size(&self) -> u8 {
        match self {
            Self::One(_) => 1,
            Self::Two(_) => 2,
            Self::Four(_) => 4,
            Self::Eight(_) => 8,
            Self::Sixteen(_) => 16,
        }
    }

    fn bytes(&self) -> usize {
        with_room!(self, vec => vec.capacity()).saturating_mul(usize::from(self.size()))
    }

    fn start(&self) -> *const u8 {
        with_room!(self, vec => vec.as_ptr().cast())
    }

    fn start_mut(&mut self) -> *mut u8 {
        with_room!(self, vec => vec.as_mut_ptr().cast())
    }
}

impl Elements {
    /// Room for so many bytes of elements of that size. `None`: no number has that size.
    pub(crate) fn with_room(size: u8, bytes: usize) -> Option<Self> {
        Some(Self { room: Room::new(size, bytes)?, filled: 0 })
    }

    /// Bytes that are there.
    pub(crate) fn len(&self) -> usize {
        self.filled
    }

    /// Whether the last element is whole.
    pub(crate) fn is_whole(&self) -> bool {
        self.filled.is_multiple_of(usize::from(self.room.size()))
    }

    pub(crate) fn size(&self) -> u8 {
        self.room.size()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        // SAFETY: ELEM-1.
        unsafe { slice::from_raw_parts(self.room.start(), self.filled) }
    }

    /// Appends bytes that somebody else may be writing to.
    ///
    /// # Safety
    ///
    /// `from` is good for reading `len` bytes that are not part of this.
    pub(crate) unsafe fn append_raw(&mut self, from: *const u8, len: usize) {
        let end = self.filled + len;
        if end > self.room.bytes() {
            self.grow(end);
        }
        // SAFETY: ELEM-1, and there is room up to `end`.
        let to = unsafe { self.room.start_mut().add(self.filled) };
        // SAFETY: the caller's promise, and the line above.
        unsafe { copy(from, to, len) };
        self.filled = end;
    }

    #[cfg(test)]
    pub(super) fn append(&mut self, bytes: &[u8]) {
        // SAFETY: a slice, which is no part of what is borrowed mutably.
        unsafe { self.append_raw(bytes.as_ptr(), bytes.len()) };
    }

    /// More has come than was announced.
    #[cold]
    fn grow(&mut self, bytes: usize) {
        let wanted = bytes.max(self.filled.saturating_mul(2));
        let Some(mut room) = Room::new(self.room.size(), wanted) else { return };
        // SAFETY: ELEM-1; the other memory is fresh and larger.
        unsafe { ptr::copy_nonoverlapping(self.room.start(), room.start_mut(), self.filled) };
        self.room = room;
    }

    /// The value, if `R` is an owned row of numbers of that size.
    pub(crate) fn into_value<R: 'static>(self) -> Result<R, CodecError> {
        if !self.is_whole() {
            return Err(CodecError::new("the last element is torn"));
        }
        let id = TypeId::of::<R>();
        macro_rules! make {
            ($($number:ident)*) => { $(
                if id == TypeId::of::<Vec<$number>>() {
                    return self.into_vec::<$number>().and_then(renamed::<Vec<$number>, R>).ok_or_else(unlike);
                }
                if id == TypeId::of::<Box<[$number]>>() {
                    let boxed = self.into_vec::<$number>().map(Vec::into_boxed_slice);
                    return boxed.and_then(renamed::<Box<[$number]>, R>).ok_or_else(unlike);
                }
            )* };
        }
        for_each_number!(make);
        Err(unlike())
    }

    /// `T` is a number.
    fn into_vec<T: Copy>(self) -> Option<Vec<T>> {
        if usize::from(self.room.size()) != size_of::<T>() {
            return None;
        }
        let count = self.filled / size_of::<T>();
        with_room!(self.room, vec => recast(vec, count))
    }

    /// The archive of the value.
    pub(crate) fn to_archive(&self) -> AlignedBytes {
        ElementsRef { bytes: self.as_bytes(), size: self.size() }.to_archive()
    }
}

/// The same memory, as a vector of `count` numbers of another type. `None` if the two differ in size or alignment.
fn recast<A: Copy, B: Copy>(vec: Vec<A>, count: usize) -> Option<Vec<B>> {
    if size_of::<A>() != size_of::<B>() || align_of::<A>() != align_of::<B>() || count > vec.capacity() {
        return None;
    }
    let mut vec = mem::ManuallyDrop::new(vec);
    // SAFETY: the memory was allocated for as many elements of the same size and alignment; by ELEM-1 the first `count`
    // are initialised, and of a number every bit pattern is a value.
    Some(unsafe { Vec::from_raw_parts(vec.as_mut_ptr().cast(), count, vec.capacity()) })
}

#[cold]
fn unlike() -> CodecError {
    CodecError::new("numbers in the place of something else")
}
