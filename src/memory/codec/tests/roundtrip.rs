use std::cell::Cell;
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::ffi::CStr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rkyv::with::InlineAsBox;

use super::*;

macro_rules! numbers {
    ($check:ident) => {
        $check!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64)
    };
}

#[test]
fn numbers() {
    macro_rules! check {
        ($($number:ident)*) => { $(
            for value in [<$number>::MIN, <$number>::MAX, 0 as $number, 77 as $number] {
                round(value);
                round(vec![value; 5]);
                round(vec![value; 5].into_boxed_slice());
                round([value; 3]);
                round(Some(value));
            }
            round(Vec::<$number>::new());
            round(Vec::<$number>::new().into_boxed_slice());
        )* };
    }
    numbers!(check);
    round(usize::MAX - 5);
    round(1usize << 33);
    round((1u8, u128::MAX));
}

#[test]
fn plain_archives_are_rkyvs_own() {
    macro_rules! check {
        ($($number:ident)*) => { $(
            for value in [<$number>::MIN, <$number>::MAX, 0x5b as $number] {
                let theirs = rkyv::to_bytes::<rkyv::rancor::Error>(&value).unwrap();
                let ours = encode(&value, 64).unwrap();
                assert!(matches!(ours, Encoded::Inline { .. }));
                assert_eq!(ours.as_bytes(), &theirs[..]);
                assert_eq!(ours.as_bytes(), value.to_le_bytes());
                assert_eq!(plain_bytes(&value), Some(&theirs[..]));
                assert_eq!(plain_size::<$number>(), Some(theirs.len()));
                assert_eq!(view_align::<$number>(), align_of::<rkyv::Archived<$number>>());
                let many = vec![value; 100];
                assert_eq!(bytes_of(&many)[..], rkyv::to_bytes::<rkyv::rancor::Error>(&many).unwrap()[..]);
            }
        )* };
    }
    numbers!(check);
    assert_eq!(plain_size::<()>(), Some(0));
    assert_eq!(view_align::<()>(), 1);
    assert_eq!(plain_size::<bool>(), None);
    assert_eq!(plain_size::<char>(), None);
    assert_eq!(plain_size::<NonZeroU8>(), None);
    assert_eq!(plain_size::<str>(), None);
    assert_eq!(plain_size::<&u8>(), None);
    assert_eq!(plain_size::<Option<u8>>(), None);
}

#[test]
fn other_archives_are_rkyvs_own_too() {
    let value = deep();
    assert_eq!(bytes_of(&value)[..], rkyv::to_bytes::<rkyv::rancor::Error>(&value).unwrap()[..]);
}

#[test]
fn standard_types() {
    round(());
    round(true);
    round('∂');
    round(NonZeroUsize::MAX);
    round(String::new());
    round("short".to_string());
    round("a string that does not fit into its own pointer".to_string());
    round(Vec::<String>::new());
    round(vec![vec!["x".to_string(); 3]; 4]);
    round(vec![(); 3]);
    round(Box::new(5u16));
    round(Some(Some("x".repeat(100))));
    round(Ok::<u8, String>(1));
    round(Err::<u8, String>("no".into()));
    round(HashMap::from([("a".to_string(), vec![1u8]), ("b".to_string(), vec![])]));
    round(BTreeMap::from([(1u32, 'x'), (2, 'y')]));
    round((0..100u16).collect::<BTreeSet<_>>());
    round((0..100u16).collect::<HashSet<_>>());
    round((0..100u64).collect::<VecDeque<_>>());
    round(Duration::from_nanos(u64::MAX));
    round(Arc::new("shared".to_string()));
    round(c"from C".to_owned());
}

#[test]
fn derived_types() {
    round(flat());
    round(deep());
    round(vec![deep(), deep()]);
    round(list(20));
}

#[test]
fn shared_pointers_stay_shared() {
    let one = Rc::new("one".repeat(20));
    let bytes = bytes_of(&vec![one.clone(), one.clone(), Rc::new("other".repeat(20))]);
    let back = decode::<Vec<Rc<String>>>(&bytes).unwrap();
    assert!(Rc::ptr_eq(&back[0], &back[1]));
    assert!(!Rc::ptr_eq(&back[0], &back[2]));
    assert_eq!(back[0], one);
}

#[test]
fn unsized_inputs() {
    let text = "grüße, and enough of them to leave the inline buffer";
    assert_eq!(&bytes_of(text)[..], text.as_bytes());
    assert_eq!(view::<str>(&bytes_of(text)).unwrap(), text);
    assert_eq!(view::<str>(&text.as_bytes()[..2]).unwrap(), "gr");
    assert_eq!(view::<str>(&[]).unwrap(), "");
    assert_eq!(view::<CStr>(&bytes_of(c"from C")).unwrap(), c"from C");
    let numbers: &[u64] = &[1, 2, u64::MAX];
    assert_eq!(view::<[u64]>(&bytes_of(numbers)).unwrap(), numbers);
    assert!(view::<[u64]>(&bytes_of::<[u64]>(&[])).unwrap().is_empty());
    let words = ["a".to_string(), "b".repeat(30)];
    assert_eq!(view::<[String]>(&bytes_of(&words[..])).unwrap(), &words[..]);
    let wide = [u128::MAX, 7];
    assert_eq!(view::<[u128]>(&bytes_of(&wide[..])).unwrap(), &wide[..]);
}

#[derive(Archive, Serialize)]
struct Borrowing<'a> {
    #[rkyv(with = InlineAsBox)]
    text: &'a str,
    #[rkyv(with = InlineAsBox)]
    numbers: &'a [u32],
    flag: bool,
}

#[test]
fn inputs_that_borrow() {
    let (text, numbers) = ("local".repeat(10), vec![3, 4]);
    let bytes = bytes_of(&Borrowing { text: &text, numbers: &numbers, flag: true });
    let back = view::<Borrowing<'_>>(&bytes).unwrap();
    assert_eq!((&*back.text, &*back.numbers, back.flag), (&*text, &[3.into(), 4.into()][..], true));
}

#[test]
fn values_without_size() {
    #[derive(Archive, Serialize, Deserialize, Debug, PartialEq)]
    struct Unit;
    #[derive(Archive, Serialize, Deserialize, Debug, PartialEq)]
    struct Units([u64; 0], Unit);
    round(Unit);
    round(Units([], Unit));
    assert_eq!(encode(&(), 0).unwrap().len(), 0);
    assert_eq!(encode(&Units([], Unit), 0).unwrap().len(), 0);
    decode::<()>(&[]).unwrap();
    assert_eq!(decode::<Units>(&[]).unwrap(), Units([], Unit));
    view::<Units>(&[]).unwrap();
}

#[test]
fn generic_code_needs_one_bound() {
    struct Worker(u8);
    fn submit<I: Payload, R: Payload>(f: impl Fn(I) -> R + Copy + Send + 'static, input: &I) -> R {
        submit_with(move |_: &Worker, v: &View<I>| f(from_view::<I>(v).unwrap()), input)
    }
    fn submit_with<I, R>(f: impl Fn(&Worker, &View<I>) -> R, input: &I) -> R
    where
        I: Input + ?Sized,
        R: Payload,
    {
        let input = encode(input, 1000).unwrap().into_aligned();
        let output = encode(&f(&Worker(1), view::<I>(&input).unwrap()), 1000).unwrap().into_aligned();
        decode::<R>(&output).unwrap()
    }
    assert_eq!(submit_with(|w: &Worker, v: &View<str>| v.len() + usize::from(w.0), "text"), 5);
    assert_eq!(
        submit_with(|_, v: &View<[u64]>| v.iter().map(|n| n.to_native()).sum::<u64>(), &[1u64, 2][..]),
        3
    );
    assert_eq!(submit_with(|_, v| v.to_native() + 1, &41u64), 42);
    assert_eq!(submit_with(|_, v| v.small, &flat()), 3);
    assert_eq!(submit(|x: Vec<u32>| x.len(), &vec![1, 2, 3]), 3);
    assert_eq!(submit(|x: u64| x + 1, &1), 2);
}

#[test]
fn archives_read_in_place() {
    let archive = OwnedArchive::<Flat>::new(bytes_of(&flat())).unwrap();
    assert_eq!(archive.wide, u128::MAX - 7);
    assert!(format!("{archive:?}").contains("small: 3"));
    assert_eq!(archive.as_bytes().len(), size_of::<View<Flat>>());
    let moved = Cell::new(Some(archive));
    assert_eq!(moved.take().unwrap().small, 3);
    fn crosses_threads<T: Send + Sync>() {}
    crosses_threads::<OwnedArchive<Deep>>();
}
