//! How a request names its function: by the place of a constant, checked before it is believed.
//!
//! Workers are forked, so code lies at the same addresses everywhere; still no address travels. For each combination
//! of function, argument and result the compiler makes one [`TaskCode`] constant in read-only data, and a request
//! carries *(object, offset)* of it: which loaded ELF object, and how far from its base. The worker looks that up
//! among the objects that were loaded when the zygote was forked, and believes it only if the place is aligned,
//! wholly inside that object's read-only data, starts with the magic number, and belongs to the types that the
//! request says. So a function from a library that was loaded later is an error and not a jump into nowhere, and a
//! damaged word cannot make a worker jump.
//!
//! # Invariants
//!
//! * CODE-1: a `TaskCode` is made only by [`TaskCode::new`], in a constant; its `shim` is called only with the
//!   pointer type that the façade built it for ([`crate::context::Call`]), which `magic` stands for.

#![allow(unsafe_code, reason = "a checked place in read-only data is read as a constant")]

use std::any::{TypeId, type_name};
use std::hash::{Hash, Hasher};
use std::ptr::NonNull;

use crate::ground::sys::objects::Objects;
use crate::memory::codec::{self, Input};

const MAGIC: u64 = u64::from_le_bytes(*b"forkring");

/// Runs the requests of one (function, argument, result) in a worker. The pointer is to the worker's call.
pub(crate) type Shim = unsafe fn(NonNull<()>);

/// The constant that names a function. Its bytes are only ever read in place.
#[derive(Debug)]
#[repr(C, align(16))]
pub(crate) struct TaskCode {
    magic: u64,
    shim: Shim,
    types: fn() -> u64,
    about: fn() -> About,
}

/// What a function and its input are called and look like, for people and for files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About {
    pub(crate) function: &'static str,
    pub(crate) input: &'static str,
    pub(crate) result: &'static str,
    /// Of the input's archive.
    pub(crate) shape: Shape,
}

/// What an archive looks like, as far as it can be told without its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Of its root, or of each element of a slice.
    pub(crate) size: usize,
    pub(crate) align: usize,
    /// Whether it is a number, without any archive around it.
    pub(crate) plain: bool,
}

impl Shape {
    pub(crate) fn of<I: Input + ?Sized>() -> Self {
        let (size, plain) = codec::view_size::<I>();
        Self { size, align: codec::view_align::<I>(), plain }
    }
}

impl About {
    pub(crate) fn of<F, I: Input + ?Sized, R>() -> Self {
        let (function, input, result) = (type_name::<F>(), type_name::<I>(), type_name::<R>());
        Self { function, input, result, shape: Shape::of::<I>() }
    }
}

impl TaskCode {
    /// `types` tells apart what was compiled at this place from what another library put there after a reload.
    pub(crate) const fn new(shim: Shim, types: fn() -> u64, about: fn() -> About) -> Self {
        Self { magic: MAGIC, shim, types, about }
    }
}

/// A hash of the types `T` (a tuple of them), which the compiler folds to a constant.
pub(crate) fn hash_of<T: 'static>() -> u64 {
    struct Folded(u64);
    impl Hasher for Folded {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            for &byte in bytes {
                self.write_u64(u64::from(byte));
            }
        }
        fn write_u64(&mut self, word: u64) {
            self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
    let mut hasher = Folded(0);
    TypeId::of::<T>().hash(&mut hasher);
    hasher.finish()
}

/// The name of a function as it travels: two words of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CodeId {
    /// Object in the upper 16 bits, offset from its base in the lower 48.
    pub(crate) place: u64,
    pub(crate) types: u64,
}

const OFFSET_BITS: u32 = 48;

impl CodeId {
    /// A place that no worker accepts: what stands for a function outside all objects that the workers have.
    const NOWHERE: u64 = u64::MAX;

    /// Names `code` for workers that have `objects`.
    #[inline]
    pub(crate) fn of(code: &'static TaskCode, types: u64, objects: &Objects) -> Self {
        let place = match objects.locate(std::ptr::from_ref(code).expose_provenance(), size_of::<TaskCode>())
        {
            Some((object, offset)) if offset >> OFFSET_BITS == 0 => object << OFFSET_BITS | offset,
            _ => Self::NOWHERE,
        };
        Self { place, types }
    }

    /// Looks the function up in this process. `None`: this process does not have it.
    pub(crate) fn resolve(self, objects: &Objects) -> Option<Shim> {
        self.code(objects).map(|code| code.shim)
    }

    /// As [`resolve`](Self::resolve): what it is about.
    pub(crate) fn about(self, objects: &Objects) -> Option<About> {
        self.code(objects).map(|code| (code.about)())
    }

    /// What the function is called in its program, which may be changed by the next compiler.
    pub(crate) fn name(self, objects: &Objects) -> &'static str {
        self.about(objects).map_or("an unknown function", |about| about.function)
    }

    fn code(self, objects: &Objects) -> Option<&'static TaskCode> {
        let object = self.place >> OFFSET_BITS;
        let offset = self.place & ((1 << OFFSET_BITS) - 1);
        let address = objects.resolve(object, offset, size_of::<TaskCode>(), align_of::<TaskCode>())?;
        let magic = NonNull::new(std::ptr::with_exposed_provenance_mut::<u64>(address))?;
        // SAFETY: `resolve` vouches for aligned, readable memory of that size that nobody writes.
        if unsafe { magic.read() } != MAGIC {
            return None;
        }
        // SAFETY: as above, and the magic number stands for a `TaskCode` (CODE-1).
        let code = unsafe { magic.cast::<TaskCode>().as_ref() };
        ((code.types)() == self.types).then_some(code)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    unsafe fn shim(_: NonNull<()>) {}

    fn code_of<T: 'static>() -> &'static TaskCode {
        const { &TaskCode::new(shim, hash_of::<T>, About::of::<T, u8, ()>) }
    }

    #[test]
    fn a_function_is_found_again_by_its_name() {
        let objects = Objects::load();
        let id = CodeId::of(code_of::<u8>(), hash_of::<u8>(), &objects);
        assert!(id.resolve(&objects).is_some());
        let about = id.about(&objects).unwrap();
        assert_eq!((about.function, about.input), ("u8", "u8"));
        assert_eq!(about.shape, Shape { size: 1, align: 1, plain: true });
    }

    #[test]
    fn wrong_types_and_wrong_places_are_refused() {
        let objects = Objects::load();
        let id = CodeId::of(code_of::<u8>(), hash_of::<u8>(), &objects);
        assert!(CodeId { types: id.types ^ 1, ..id }.resolve(&objects).is_none());
        for bit in 0..64 {
            assert!(CodeId { place: id.place ^ 1 << bit, ..id }.resolve(&objects).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn closures_of_one_function_have_different_types() {
        fn hash<F: 'static>(_: F) -> u64 {
            hash_of::<F>()
        }
        assert_ne!(hash(|x: u64| x + 1), hash(|x: u64| x + 2));
    }
}
