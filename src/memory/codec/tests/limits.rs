use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use rkyv::Place;
use rkyv::rancor::{Fallible, Source, fail};

use super::super::check::MAX_DEPTH;
use super::*;

#[test]
fn sizes_beyond_the_limit_are_named() {
    let check = |result: Result<Encoded, EncodeError>, size, limit| match result {
        Err(EncodeError::TooLarge { size: s, limit: l }) => assert_eq!((s, l), (size, limit)),
        other => panic!("{other:?}"),
    };
    check(encode(&7u64, 7), 8, 7);
    assert!(encode(&7u64, 8).is_ok());
    check(encode("three", 3), 5, 3);
    let size = bytes_of(&deep()).len();
    for limit in [0, 1, 31, 32, 33, 64, size / 2, size - 1] {
        check(encode(&deep(), limit), size, limit);
    }
    assert_eq!(encode(&deep(), size).unwrap().len(), size);
    let error = encode(&vec![0u8; 1000], 100).unwrap_err();
    assert_eq!(error.to_string(), "1016 bytes exceed the limit of 100");
}

#[test]
fn what_fits_stays_inline() {
    for len in 0..100 {
        let encoded = encode(&*"x".repeat(len), 100).unwrap();
        assert_eq!(encoded.as_bytes(), "x".repeat(len).as_bytes());
        assert_eq!(matches!(encoded, Encoded::Inline { .. }), len <= INLINE_MAX);
        let aligned = encoded.into_aligned();
        assert!(aligned.is_empty() || aligned.as_ptr().addr() % 128 == 0);
    }
}

#[test]
fn large_vectors_take_one_allocation_of_their_size() {
    let Encoded::Heap(bytes) = encode(&vec![1u64; 100_000], usize::MAX).unwrap() else { panic!("inline") };
    assert!(bytes.capacity() < bytes.len() + 256, "{} for {}", bytes.capacity(), bytes.len());
}

#[test]
fn items_of_a_batch() {
    let mut batch = AlignedBytes::new();
    let mut spans = Vec::new();
    for i in 0..50u64 {
        spans.push((i, encode_into(&(i as u8), 100, &mut batch).unwrap()));
        spans.push((i, encode_into(&i, 100, &mut batch).unwrap()));
        spans.push((i, encode_into(&deep(), 100_000, &mut batch).unwrap()));
        spans.push((i, encode_into(&*format!("{i}"), 100, &mut batch).unwrap()));
        spans.push((i, encode_into(&(Box::new(u128::from(i)), true), 100, &mut batch).unwrap()));
    }
    for of_one in spans.chunks(5) {
        let bytes = |k: usize| {
            let (_, (start, end)) = of_one[k];
            &batch[start..end]
        };
        let i = of_one[0].0;
        assert_eq!(decode::<u8>(bytes(0)).unwrap(), i as u8);
        assert_eq!(*view::<u64>(bytes(1)).unwrap(), i);
        assert_eq!(decode::<Deep>(bytes(2)).unwrap(), deep());
        assert_eq!(view::<str>(bytes(3)).unwrap(), i.to_string());
        assert_eq!(*decode::<(Box<u128>, bool)>(bytes(4)).unwrap().0, u128::from(i));
    }
    assert_eq!(spans[0].1, (0, 1));
    assert_eq!(spans[1].1, (8, 16));
}

#[test]
fn plain_items_lie_dense() {
    let mut batch = AlignedBytes::with_capacity(800);
    for i in 0..100u64 {
        assert_eq!(encode_into(&i, 8, &mut batch).unwrap(), (8 * i as usize, 8 * i as usize + 8));
    }
}

/// Serializes to an error or a panic, after having written something.
struct Broken {
    panics: bool,
}

impl Archive for Broken {
    type Archived = ();
    type Resolver = ();
    fn resolve(&self, (): (), _: Place<()>) {}
}

#[derive(Debug)]
struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("refused by hand")
    }
}

impl std::error::Error for Refused {}

impl<S: Fallible<Error: Source> + rkyv::ser::Writer + ?Sized> Serialize<S> for Broken {
    fn serialize(&self, serializer: &mut S) -> Result<(), S::Error> {
        serializer.write(&[1; 100])?;
        assert!(!self.panics, "by hand");
        fail!(Refused)
    }
}

#[test]
fn serializers_that_fail() {
    let broken = vec![Broken { panics: false }];
    match encode(&broken, 1000) {
        Err(EncodeError::Codec(error)) => assert_eq!(error.message(), "refused by hand"),
        other => panic!("{other:?}"),
    }
    let mut batch = AlignedBytes::from(&b"before"[..]);
    assert!(encode_into(&broken, 1000, &mut batch).is_err());
    assert!(encode_into(&deep(), 100, &mut batch).is_err());
    assert!(encode_into(&1u64, 7, &mut batch).is_err());
    assert_eq!(&batch[..], b"before");
}

#[test]
fn serializers_that_panic() {
    let broken = vec![Broken { panics: true }];
    let panic = catch_unwind(|| encode(&broken, 1000).map(drop)).unwrap_err();
    assert_eq!(*panic.downcast_ref::<&str>().unwrap(), "by hand");
    let mut batch = AlignedBytes::from(&b"before"[..]);
    catch_unwind(AssertUnwindSafe(|| encode_into(&broken, 1000, &mut batch))).unwrap_err();
    assert_eq!(&batch[..], b"before");
}

#[test]
fn nesting_is_bounded_before_the_stack_is() {
    let on_a_small_stack = |links| {
        let bytes = thread::Builder::new().stack_size(64 << 20);
        let bytes = bytes.spawn(move || bytes_of(&list(links))).unwrap().join().unwrap();
        let reading = thread::Builder::new().stack_size(2 << 20);
        reading.spawn(move || decode::<Link>(&bytes).map(|list| list.value)).unwrap().join().unwrap()
    };
    let deepest = MAX_DEPTH as usize;
    assert_eq!(on_a_small_stack(deepest).unwrap(), MAX_DEPTH - 1);
    for links in [deepest + 1, 10 * deepest, 100 * deepest] {
        let error = on_a_small_stack(links).unwrap_err();
        assert!(error.message().starts_with("the archive nests more than 256 pointers deep"), "{error}");
    }
}
