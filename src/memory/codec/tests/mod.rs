//! Tests of the whole room: what goes in comes out, and what is damaged does not come out.

mod elements;
mod hostile;
mod limits;
mod roundtrip;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;

use rkyv::{Archive, Deserialize, Serialize};

use super::*;

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[rkyv(derive(Debug))]
struct Flat {
    wide: u128,
    small: u8,
    pair: (i16, f64),
    unit: (),
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
enum Shape {
    Nothing,
    Named { name: String, tags: Vec<String> },
    Pair(Box<Flat>, Option<char>),
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
struct Deep {
    shapes: Vec<Shape>,
    by_name: HashMap<String, Vec<u32>>,
    ordered: BTreeMap<u64, Option<String>>,
    yes: bool,
}

/// A list whose every link is a pointer. The bounds are what rkyv asks of any recursive type.
#[derive(Archive, Serialize, Deserialize, Debug, PartialEq)]
#[rkyv(serialize_bounds(__S: rkyv::ser::Writer + rkyv::ser::Allocator))]
#[rkyv(deserialize_bounds(__D::Error: rkyv::rancor::Source))]
#[rkyv(bytecheck(bounds(__C: rkyv::validation::ArchiveContext, __C::Error: rkyv::rancor::Source)))]
struct Link {
    value: u32,
    #[rkyv(omit_bounds)]
    next: Option<Box<Link>>,
}

fn list(links: usize) -> Link {
    let mut list = Link { value: 0, next: None };
    for value in 1..links as u32 {
        list = Link { value, next: Some(Box::new(list)) };
    }
    list
}

fn flat() -> Flat {
    Flat { wide: u128::MAX - 7, small: 3, pair: (-2, 0.5), unit: () }
}

fn deep() -> Deep {
    let named =
        Shape::Named { name: "n".repeat(40), tags: vec!["a".into(), String::new(), "long".repeat(9)] };
    Deep {
        shapes: vec![Shape::Nothing, named, Shape::Pair(Box::new(flat()), Some('ß'))],
        by_name: (0..20).map(|i| (format!("key {i}"), (0..i).collect())).collect(),
        ordered: (0..30).map(|i| (i, (i % 3 == 0).then(|| i.to_string()))).collect(),
        yes: true,
    }
}

fn bytes_of<I: Input + ?Sized>(value: &I) -> AlignedBytes {
    encode(value, usize::MAX).unwrap().into_aligned()
}

#[track_caller]
fn round<T: Payload + PartialEq + Debug>(value: T) {
    let bytes = bytes_of(&value);
    assert_eq!(decode::<T>(&bytes).unwrap(), value);
    assert_eq!(from_view::<T>(view::<T>(&bytes).unwrap()).unwrap(), value);
    let archive = OwnedArchive::<T>::new(bytes).unwrap();
    assert_eq!(archive.deserialize().unwrap(), value);
}
