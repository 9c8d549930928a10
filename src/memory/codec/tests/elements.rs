//! Rows of numbers: their archive is rkyv's, and they come back as what they were.

use super::*;

macro_rules! numbers {
    ($check:ident) => {
        $check!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64)
    };
}

/// Copies in two parts, as it comes.
fn copied(row: &ElementsRef<'_>, announced: usize) -> Elements {
    let mut copy = Elements::with_room(row.size(), announced).unwrap();
    let (front, back) = row.bytes().split_at(row.bytes().len() / 3);
    for part in [front, back] {
        copy.append(part);
    }
    copy
}

#[test]
fn the_archive_is_rkyvs_own_and_the_value_comes_back() {
    macro_rules! check {
        ($($number:ident)*) => { $(
            for count in (0..40).chain([1000, 5001]) {
                let row: Vec<$number> = (0..count).map(|i| (i * 3) as $number).collect();
                let elements = elements(&row).unwrap();
                assert_eq!(usize::from(elements.size()), size_of::<$number>());
                let bytes = bytes_of(&row);
                assert_eq!((&*elements.to_archive(), elements.archive_bytes()), (&*bytes, bytes.len()));
                let boxed = row.clone().into_boxed_slice();
                assert_eq!(*super::elements(&boxed).unwrap().to_archive(), *bytes_of(&boxed));
                assert_eq!(*super::elements(&row[..]).unwrap().to_archive(), *bytes_of(&row[..]));
                for announced in [elements.bytes().len(), 0] {
                    assert_eq!(copied(&elements, announced).to_archive()[..], bytes[..]);
                    assert_eq!(copied(&elements, announced).into_value::<Vec<$number>>().unwrap(), row);
                    assert_eq!(copied(&elements, announced).into_value::<Box<[$number]>>().unwrap(), boxed);
                }
            }
            assert_eq!(element_size::<Vec<$number>>(), Some(size_of::<$number>() as u8));
            assert_eq!(element_size::<Box<[$number]>>(), Some(size_of::<$number>() as u8));
        )* };
    }
    numbers!(check);
}

#[test]
fn what_is_no_row_of_numbers_is_none() {
    assert!(elements(&vec![true]).is_none() && elements(&vec!['x']).is_none());
    assert!(
        elements("text").is_none() && elements(&vec![vec![1_u8]]).is_none() && elements(&7_u64).is_none()
    );
    assert!(elements(&[1_u8; 4]).is_none(), "an array has another archive");
    let borrowed = 1_u8;
    assert!(elements(&vec![&borrowed]).is_none());
    assert_eq!(element_size::<u64>(), None);
    assert_eq!(element_size::<String>(), None);
}

#[test]
fn bytes_become_nothing_else_than_whole_numbers_of_their_size() {
    let row = vec![1_u32, 2, 3];
    let of = || copied(&elements(&row).unwrap(), 12);
    assert!(of().into_value::<Vec<u64>>().is_err() && of().into_value::<Vec<u8>>().is_err());
    assert!(of().into_value::<u32>().is_err() && of().into_value::<String>().is_err());
    assert_eq!(of().into_value::<Vec<i32>>().unwrap(), [1, 2, 3]);
    let mut torn = of();
    torn.append(&[7]);
    assert!(!torn.is_whole() && torn.into_value::<Vec<u32>>().is_err());
    assert!([0, 3, 5, 32, 255].into_iter().all(|size| Elements::with_room(size, 10).is_none()));
}
