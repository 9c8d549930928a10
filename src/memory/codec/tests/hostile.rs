use std::rc::Rc;

use super::*;

/// Xorshift: the same damage at every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// Reads a damaged archive every way there is. Any answer will do; a panic or a crash will not.
fn survive<T: Payload + Debug>(value: &T, rounds: usize) {
    let good = bytes_of(value);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut refused = 0;
    for round in 0..rounds {
        let mut bad = good.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bad.len());
            bad[at] ^= match round % 3 {
                0 => 1 << random.below(8),
                1 => 0xff,
                _ => random.below(256) as u8,
            };
        }
        if round % 5 == 0 {
            bad.truncate(random.below(good.len()));
        }
        match decode::<T>(&bad) {
            Ok(value) => drop(format!("{value:?}")),
            Err(_) => refused += 1,
        }
        if let Ok(archive) = OwnedArchive::<T>::new(bad) {
            drop(archive.deserialize());
        }
    }
    assert!(refused > rounds / 10, "{refused} of {rounds} refused");
}

#[test]
fn damaged_archives_never_panic() {
    let rounds = if cfg!(miri) { 50 } else { 4000 };
    survive(&deep(), rounds);
    survive(&deep().shapes, rounds);
    survive(&vec!["some".to_string(), "more ".repeat(9)], rounds);
    survive(&list(30), rounds);
    survive(&vec![vec![1u64, 2], vec![], vec![3]], rounds);
    survive(&deep().by_name, rounds);
    survive(&deep().ordered, rounds);
    let shared = Rc::new("shared".repeat(3));
    survive(&(shared.clone(), vec![shared], Some('x'), true), rounds);
    survive(&vec![1.5f32; 4], rounds);
}

#[test]
fn truncated_archives_are_errors() {
    fn check<T: Payload + Debug>(value: &T) {
        let bytes = bytes_of(value);
        for len in 0..size_of::<View<T>>() {
            let error = decode::<T>(&bytes[..len]).unwrap_err();
            assert!(!error.message().is_empty());
            assert!(OwnedArchive::<T>::new(AlignedBytes::from(&bytes[..len])).is_err());
        }
    }
    check(&deep());
    check(&7u64);
    check(&vec![1u32, 2]);
    check(&"a string outside of its pointer".to_string());
    assert!(decode::<u64>(&[0; 9]).is_err());
    assert!(decode::<()>(&[0]).is_err());
}

#[test]
fn values_that_are_none() {
    assert!(decode::<bool>(&AlignedBytes::from(&[2][..])).is_err());
    assert!(decode::<char>(&AlignedBytes::from(&[0xff; 4][..])).is_err());
    assert!(decode::<std::num::NonZeroUsize>(&AlignedBytes::from(&[0; 8][..])).is_err());
    assert!(view::<str>(&[0xff]).is_err());
    assert!(view::<std::ffi::CStr>(b"no end").is_err());
}

#[test]
fn errors_lead_to_the_field() {
    let mut bytes = bytes_of(&(7u8, deep().yes));
    bytes[1] = 9;
    let error = decode::<(u8, bool)>(&bytes).unwrap_err();
    assert!(error.message().contains("9") && error.message().contains("tuple"), "{error}");
    let mut bytes = bytes_of(&deep());
    let last = bytes.len() - 1;
    bytes[last - 7..].fill(0xff);
    bytes[last - 15..].fill(0xff);
    let error = decode::<Deep>(&bytes).unwrap_err();
    assert!(error.message().contains("Deep"), "{error}");
}

#[test]
fn misaligned_bytes_are_errors() {
    let mut shifted = AlignedBytes::from(&[0; 8][..]);
    shifted.extend_from_slice(&bytes_of(&flat()));
    let error = view::<Flat>(&shifted[8..]).unwrap_err();
    assert!(error.message().contains("not aligned to 16"), "{error}");
    assert!(decode::<Flat>(&shifted[8..]).is_err());
    assert!(view::<u64>(&shifted[1..9]).is_err());
    assert_eq!(decode::<u64>(&shifted[1..9]).unwrap().to_le_bytes(), shifted[1..9]);
}

#[test]
fn memory_of_others_is_copied() {
    let source = [5u8; 100];
    let mut bytes = AlignedBytes::from(&[1][..]);
    #[allow(unsafe_code, reason = "the function under test")]
    // SAFETY: `source` is a local array of 100 bytes.
    unsafe {
        bytes.extend_from_raw(source.as_ptr(), source.len());
    }
    assert_eq!((bytes.len(), bytes[0], &bytes[1..]), (101, 1, &source[..]));
}
