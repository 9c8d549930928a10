//! Plain values: numbers, whose archive is their own bytes and for which every bit pattern is a value.
//!
//! They make up the hot loops, and cost about a nanosecond here. All questions about types are answered
//! while compiling. `bool`, `char` and the non-zero types are not plain: some bit patterns are none.

#![allow(unsafe_code, reason = "compares types that may borrow, and reads numbers as bytes")]

use std::any::{Any, TypeId};
use std::marker::PhantomData;
use std::{mem, slice};

use rkyv::Archived;
use rkyv::boxed::ArchivedBox;
use rkyv::vec::ArchivedVec;

use crate::error::CodecError;

/// Calls a macro with every plain number type. An archived `usize` has 64 bits; where the native one
/// has not, it is not plain.
macro_rules! for_each_number {
    ($apply:ident) => {
        $apply!(u8 u16 u32 u64 u128 i8 i16 i32 i64 i128 f32 f64);
        #[cfg(target_pointer_width = "64")]
        $apply!(usize isize);
    };
}
pub(super) use for_each_number;

/// Whether `T` is `U`. Type ids ignore lifetimes; `U` has none, so that equal ids are equal types.
#[inline]
fn same<T: ?Sized, U: Lifetimeless>() -> bool {
    non_static_id::<T>() == TypeId::of::<U>()
}

/// Types without lifetime parameters.
trait Lifetimeless: 'static {}

macro_rules! lifetimeless {
    ($($number:ident)*) => { $( impl Lifetimeless for $number {} )* };
}
for_each_number!(lifetimeless);
impl Lifetimeless for () {}

/// The id of a type that may borrow.
#[inline]
pub(super) fn non_static_id<T: ?Sized>() -> TypeId {
    trait Id {
        fn id(&self) -> TypeId
        where
            Self: 'static;
    }
    impl<T: ?Sized> Id for PhantomData<T> {
        #[inline]
        fn id(&self) -> TypeId
        where
            Self: 'static,
        {
            TypeId::of::<T>()
        }
    }
    let marker = PhantomData::<T>;
    let marker: &dyn Id = &marker;
    // SAFETY: only the lifetime bound of the trait object changes, and `id` looks at no data whatever.
    let marker = unsafe { mem::transmute::<&dyn Id, &(dyn Id + 'static)>(marker) };
    marker.id()
}

/// The size of the archive of a `T`, if `T` is plain.
#[inline]
pub(crate) fn plain_size<T: ?Sized>() -> Option<usize> {
    macro_rules! size {
        ($($number:ident)*) => { $( if same::<T, $number>() { return Some(size_of::<$number>()); } )* };
    }
    if cfg!(target_endian = "big") {
        return None;
    }
    for_each_number!(size);
    same::<T, ()>().then_some(0)
}

/// The archive of `value`, if that is plain: its own bytes.
#[inline]
pub(crate) fn plain_bytes<T: ?Sized>(value: &T) -> Option<&[u8]> {
    let size = plain_size::<T>()?;
    let bytes = (&raw const *value).cast::<u8>();
    // SAFETY: `T` is a number or `()` of that size, without padding, borrowed for as long as the result.
    Some(unsafe { slice::from_raw_parts(bytes, size) })
}

/// The archive of `value` as words, and how many bytes of them it is, if that is plain.
#[inline]
pub(crate) fn plain_words<T: ?Sized>(value: &T) -> Option<(u8, [u64; 2])> {
    let bytes = plain_bytes(value)?;
    let mut padded = [0; 16];
    padded.get_mut(..bytes.len())?.copy_from_slice(bytes);
    let [low, high] = [0, 8].map(|at| std::array::from_fn(|i| padded[at + i]));
    Some((bytes.len() as u8, [u64::from_le_bytes(low), u64::from_le_bytes(high)]))
}

/// The number that `bytes` are, if `R` is plain and of that size.
#[inline]
pub(crate) fn plain_value<R: 'static>(bytes: &[u8]) -> Option<R> {
    if plain_size::<R>() != Some(bytes.len()) || size_of::<R>() != bytes.len() {
        return None;
    }
    // SAFETY: `R` is a number or `()` of that size, every bit pattern of which is a value.
    Some(unsafe { bytes.as_ptr().cast::<R>().read_unaligned() })
}

/// The number that `bytes` are, if `R` is a plain scalar.
#[inline]
pub(super) fn decode_scalar<R: 'static>(bytes: &[u8]) -> Option<Result<R, CodecError>> {
    macro_rules! decode {
        ($($number:ident)*) => { $(
            if TypeId::of::<R>() == TypeId::of::<$number>() {
                let Ok(bytes) = bytes.try_into() else {
                    return Some(Err(wrong_size(bytes.len(), size_of::<$number>())));
                };
                return renamed::<$number, R>(<$number>::from_le_bytes(bytes)).map(Ok);
            }
        )* };
    }
    for_each_number!(decode);
    if TypeId::of::<R>() == TypeId::of::<()>() {
        return if bytes.is_empty() {
            renamed::<(), R>(()).map(Ok)
        } else {
            Some(Err(wrong_size(bytes.len(), 0)))
        };
    }
    None
}

/// From the archived number to the native one.
macro_rules! native {
    (u8) => {
        |byte| *byte
    };
    (i8) => {
        |byte| *byte
    };
    (usize) => {
        |number| number.to_native() as usize
    };
    (isize) => {
        |number| number.to_native() as isize
    };
    ($number:ident) => {
        |number| number.to_native()
    };
}

/// The elements of a validated view, if `R` is a `Vec` or boxed slice of numbers. Compiles to one copy.
#[inline]
pub(super) fn copy_vec<R: 'static, V: 'static>(view: &V) -> Option<R> {
    macro_rules! copy {
        ($($number:ident)*) => { $(
            if TypeId::of::<R>() == TypeId::of::<Vec<$number>>() {
                let archived = (view as &dyn Any).downcast_ref::<ArchivedVec<Archived<$number>>>()?;
                let copy: Vec<$number> = archived.iter().map(native!($number)).collect();
                return renamed::<Vec<$number>, R>(copy);
            }
            if TypeId::of::<R>() == TypeId::of::<Box<[$number]>>() {
                let archived = (view as &dyn Any).downcast_ref::<ArchivedBox<[Archived<$number>]>>()?;
                let copy: Box<[$number]> = archived.iter().map(native!($number)).collect();
                return renamed::<Box<[$number]>, R>(copy);
            }
        )* };
    }
    for_each_number!(copy);
    None
}

/// `value` under its other name. `None` if `A` and `B` are not the same type after all.
#[inline]
pub(super) fn renamed<A: 'static, B: 'static>(value: A) -> Option<B> {
    let mut value = Some(value);
    (&mut value as &mut dyn Any).downcast_mut::<Option<B>>()?.take()
}

#[cold]
fn wrong_size(found: usize, expected: usize) -> CodecError {
    CodecError::new(format_args!("{found} bytes where {expected} were expected"))
}
