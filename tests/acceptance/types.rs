//! What travels: types with `derive(forkring::Payload)` in every shape, errors as `RemoteError`, and, under the feature
//! `serde`, whatever has serde's traits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::fmt;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use forkring::rkyv::with::{InlineAsBox, Skip};
use forkring::{Granularity, Input, Payload, Pool, RemoteError, View, Worker};

use crate::support::{both, new_pool, outcome};

/// There and back by every way: as an argument, as a result, behind others in streams.
#[track_caller]
fn round_trips<T: Payload + Clone + PartialEq + fmt::Debug>(pool: &Pool, values: &[T]) {
    for value in values {
        assert_eq!(pool.submit(|value: T| value, value).wait().unwrap(), *value);
        let read = pool.submit_with(|w: &Worker, view: &View<T>| w.decode::<T>(view).unwrap(), value);
        assert_eq!(read.wait().unwrap(), *value);
        assert_eq!(
            pool.submit(|value: T| value, value).archived().wait().unwrap().deserialize().unwrap(),
            *value
        );
    }
    for granularity in [1, 100] {
        let items: Vec<T> = values.iter().cycle().take(250).cloned().collect();
        let stream = pool.map_ref(&items, |value: T| value).granularity(Granularity::Fixed(granularity));
        assert!(stream.map(Result::unwrap).eq(items.iter().cloned()), "granularity {granularity}");
    }
}

#[derive(Payload, Clone, Debug, PartialEq)]
struct Unit;

#[derive(Payload, Clone, Debug, PartialEq)]
struct Newtype(u64);

#[derive(Payload, Clone, Debug, PartialEq)]
struct Tuple(u8, String, [Newtype; 3]);

/// With attributes of others, and of rkyv's.
#[derive(Clone, Debug, Payload, PartialEq)]
#[repr(C)]
#[rkyv(archived = NamedInPlace, attr(allow(dead_code)))]
#[allow(dead_code, reason = "an attribute of somebody else")]
pub(crate) struct Named {
    /// A comment.
    pub(crate) id: u32,
    #[cfg(target_os = "linux")]
    text: Option<String>,
    #[cfg(not(target_os = "linux"))]
    absent: NoSuchType,
    map: BTreeMap<String, Vec<Newtype>>,
    #[rkyv(with = Skip)]
    cache: u32,
}

#[derive(Payload, Clone, Copy, Debug, PartialEq)]
enum Plain {
    One = 1,
    Seven = 7,
}

#[derive(Payload, Clone, Debug, PartialEq, Default)]
#[repr(u8)]
enum Mixed {
    #[default]
    Nothing = 3,
    Value(f64, char),
    Named {
        who: String,
        how: Plain,
    },
}

#[derive(Payload, Clone, Debug, PartialEq)]
struct Generic<T, const N: usize>
where
    T: Clone,
{
    all: [T; N],
    rest: Vec<T>,
}

#[derive(Payload, Clone, Debug, PartialEq)]
struct Holder<C: Container>
where
    C::Item: Clone,
{
    item: C::Item,
}

trait Container {
    type Item;
}

impl Container for () {
    type Item = String;
}

#[derive(Payload, Clone, Debug, PartialEq)]
struct Foreign {
    wait: Duration,
    from: Ipv4Addr,
    range: std::ops::Range<u32>,
    set: BTreeSet<(i8, bool)>,
    shared: Arc<str>,
    boxed: Box<[u16]>,
}

#[test]
fn derived_types_of_every_shape_go_there_and_back() {
    both(|| {
        let pool = new_pool(2).unwrap();
        round_trips(&pool, &[Unit]);
        round_trips(&pool, &[Newtype(0), Newtype(u64::MAX)]);
        round_trips(&pool, &[Tuple(1, "a".repeat(1000), [Newtype(1), Newtype(2), Newtype(3)])]);
        let map = BTreeMap::from([("x".to_owned(), vec![Newtype(4); 30]), (String::new(), vec![])]);
        let named = Named { id: 1, text: None, map: map.clone(), cache: 0 };
        round_trips(&pool, &[named.clone(), Named { text: Some("there".to_owned()), ..named.clone() }]);
        let gone = pool.submit(|named: Named| named.cache, &Named { cache: 9, ..named.clone() });
        assert_eq!(gone.wait().unwrap(), 0, "what is skipped comes as its default");
        let archived = pool.submit(|named: Named| named, &named).archived().wait().unwrap();
        let in_place: &NamedInPlace = &archived;
        assert_eq!((in_place.id.to_native(), in_place.map.len()), (1, 2));

        round_trips(&pool, &[Plain::One, Plain::Seven]);
        let who = Mixed::Named { who: "Ada".to_owned(), how: Plain::Seven };
        round_trips(&pool, &[Mixed::Nothing, Mixed::Value(0.5, 'ä'), who]);
        round_trips(&pool, &[Generic { all: [1_u32, 2, 3], rest: vec![4] }]);
        let text = |text: &str| text.to_owned();
        round_trips(&pool, &[Generic { all: [text("a")], rest: vec![text("b"), text("c")] }]);
        round_trips(&pool, &[Generic { all: [], rest: vec![Mixed::Nothing] }]);
        round_trips(&pool, &[Holder::<()> { item: text("whole") }]);
        round_trips(
            &pool,
            &[Foreign {
                wait: Duration::from_nanos(1_000_000_007),
                from: Ipv4Addr::new(10, 0, 0, 1),
                range: 3..9,
                set: [(1, true), (-1, false)].into(),
                shared: "shared".into(),
                boxed: [1, 2].into(),
            }],
        );
    });
}

type Parts = (u8, Option<Newtype>, Vec<Result<Named, Mixed>>, HashMap<u8, Unit>);

#[test]
fn derived_types_are_parts_of_others() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let named = Named { id: 1, text: None, map: BTreeMap::new(), cache: 0 };
        let parts: Parts = (
            1,
            Some(Newtype(2)),
            vec![Ok(named), Err(Mixed::Nothing)],
            HashMap::from([(3, Unit), (4, Unit)]),
        );
        round_trips(&pool, &[parts, (0, None, vec![], HashMap::new())]);
    });
}

/// A type that contains itself, in several fields and by several names.
#[derive(Payload, Clone, Debug, PartialEq)]
enum Json {
    Null,
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object { members: BTreeMap<String, Self>, first: Option<Box<crate::types::Json>> },
}

#[derive(Payload, Clone, Debug, PartialEq)]
enum Tree<T> {
    Leaf(T),
    Node(Box<Tree<T>>, Box<Tree<T>>),
}

#[derive(Payload, Clone, Debug, PartialEq)]
struct Folder {
    name: String,
    entries: Vec<Entry>,
}

#[derive(Payload, Clone, Debug, PartialEq)]
enum Entry {
    File(u64),
    Folder(#[rkyv(omit_bounds)] Folder),
}

#[derive(Payload, Clone, Debug, PartialEq)]
struct Shared {
    value: u8,
    next: Vec<Rc<Shared>>,
}

/// Of the same name as a type of a field, which is no recursion.
mod outer {
    #[derive(forkring::Payload, Clone, Debug, PartialEq)]
    pub(super) struct Wheel<T>(pub(super) T);
}

#[derive(Payload, Clone, Debug, PartialEq)]
struct Wheel<T> {
    inner: outer::Wheel<T>,
}

#[test]
fn derived_types_may_contain_themselves() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let list =
            Json::List(vec![Json::Null, Json::Number(1.5), Json::Text("a".repeat(99)), Json::List(vec![])]);
        let object = Json::Object {
            members: [("list".to_owned(), list.clone())].into(),
            first: Some(Box::new(Json::Object { members: BTreeMap::new(), first: None })),
        };
        round_trips(&pool, &[list, object, Json::Null]);
        let leaf = |text: &str| Box::new(Tree::Leaf(text.to_owned()));
        round_trips(&pool, &[Tree::Node(leaf("a"), Box::new(Tree::Node(leaf("b"), leaf("c"))))]);
        let inner = Entry::Folder(Folder { name: "in".to_owned(), entries: vec![Entry::File(7)] });
        round_trips(&pool, &[Folder { name: "out".to_owned(), entries: vec![inner, Entry::File(8)] }]);
        let end = Rc::new(Shared { value: 1, next: vec![] });
        let both = Shared { value: 2, next: vec![end.clone(), end] };
        round_trips(&pool, std::slice::from_ref(&both));
        let shared = pool.submit(|s: Shared| Rc::ptr_eq(&s.next[0], &s.next[1]), &both);
        assert!(shared.wait().unwrap(), "one value stays one value");
        round_trips(&pool, &[Wheel { inner: outer::Wheel(vec![1_u8]) }]);
    });
}

#[derive(Input)]
struct Query<'a> {
    #[rkyv(with = InlineAsBox)]
    text: &'a str,
    #[rkyv(with = InlineAsBox)]
    numbers: &'a [u32],
    exact: bool,
}

#[test]
fn derived_inputs_borrow_and_are_read_in_place() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let count = |_: &Worker, q: &View<Query>| {
            let sum: u32 = q.numbers.iter().map(|n| n.to_native()).sum();
            if q.exact { sum + q.text.len() as u32 } else { 0 }
        };
        let (text, numbers) = ("z".repeat(100), vec![1, 2, 3]);
        let query = Query { text: &text, numbers: &numbers, exact: true };
        assert_eq!(pool.submit_with(count, &query).wait().unwrap(), 106);
        for n in 0..300 {
            let query = Query { text: &text[..n % 100], numbers: &numbers[..n % 3], exact: n % 2 == 0 };
            let expected = if n % 2 == 0 { n % 100 + [0, 1, 3][n % 3] } else { 0 };
            assert_eq!(pool.submit_with(count, &query).wait().unwrap(), expected as u32);
        }
    });
}

/// An error of the user's, as for C-03 and C-17, with a derive for what travels and hand-written traits for people.
#[derive(Payload, Clone, Debug, PartialEq)]
enum Failure {
    NotFound { key: String },
    Refused(u8),
    Because(Box<Failure>),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { key } => write!(f, "{key} was not found"),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::Because(_) => f.write_str("it failed"),
        }
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Because(cause) => Some(cause),
            _ => None,
        }
    }
}

fn fails(n: u32) -> Result<u32, Failure> {
    match n % 5 {
        0 => Ok(n),
        1 => Err(Failure::NotFound { key: n.to_string() }),
        2 => Err(Failure::Because(Box::new(Failure::Because(Box::new(Failure::Refused(n as u8)))))),
        3 => panic!("{n}"),
        _ => Err(Failure::Refused(n as u8)),
    }
}

#[test]
fn c_03_a_derived_error_that_is_returned_is_a_value() {
    both(|| {
        let pool = new_pool(1).unwrap();
        assert_eq!(outcome(pool.submit(fails, &5)).unwrap(), Ok(5));
        assert_eq!(outcome(pool.submit(fails, &6)).unwrap(), Err(Failure::NotFound { key: "6".to_owned() }));
        round_trips(&pool, &[fails(2), fails(4)]);
    });
}

#[test]
fn c_17_derived_errors_keep_their_class_beside_the_pools() {
    both(|| {
        let pool = new_pool(2).unwrap();
        // A task's panic is reported by its worker, on stderr.
        pool.broadcast(|_: &Worker| std::panic::set_hook(Box::new(|_| ())));
        for granularity in [1, 100] {
            let stream = pool.map(0..250_u32, fails).granularity(Granularity::Fixed(granularity));
            for (n, result) in (0..).zip(stream) {
                match (n % 5, result) {
                    (3, Err(error)) => assert!(error.is_panicked()),
                    (k, Ok(value)) if k != 3 => assert_eq!(value, fails(n)),
                    (_, other) => panic!("{n}: {other:?}"),
                }
            }
        }
    });
}

fn remote(n: u32) -> Result<u32, RemoteError> {
    let parsed: i8 = n.to_string().parse()?;
    if n == 100 {
        std::fs::read("/no/such/file")?;
    }
    if n > 100 {
        Err(Failure::Because(Box::new(Failure::Because(Box::new(Failure::Refused(9))))))?;
    }
    Ok(parsed as u32)
}

#[test]
fn any_error_of_a_task_travels_with_its_chain() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let of = |n| outcome(pool.submit(remote, &n)).unwrap();
        assert_eq!(of(7).unwrap(), 7);
        let error = of(1000).unwrap_err();
        assert_eq!(error.message(), "number too large to fit in target type");
        assert!(error.type_name().ends_with("ParseIntError"));
        assert_eq!(error.chain().count(), 1);
        let error = of(100).unwrap_err();
        assert_eq!((error.type_name(), error.root_cause()), ("std::io::error::Error", error.message()));
        assert!(error.message().contains("os error 2"), "{error}");

        let chain = ["it failed", "it failed", "refused: 9"];
        let error = of(101).unwrap_err();
        assert!(error.chain().eq(chain) && error.type_name().ends_with("types::Failure"));
        assert_eq!(format!("{error:#}"), "it failed: it failed: refused: 9");
        let mut source = Some(error.as_error() as &(dyn Error + 'static));
        for message in chain {
            let error = source.unwrap();
            assert_eq!(error.to_string(), message);
            source = error.source();
        }
        assert!(source.is_none());

        for granularity in [1, 100] {
            let stream = pool.map(0..128_u32, remote).granularity(Granularity::Fixed(granularity));
            for (n, result) in (0..).zip(stream) {
                match result.unwrap() {
                    Ok(value) => assert!(n < 100 && value == n),
                    Err(error) => assert_eq!(error.chain().count(), if n == 100 { 1 } else { 3 }),
                }
            }
        }

        // Through a second pool, as the error that it has become, with what the program adds.
        let error = of(101).unwrap_err().context("in the first");
        let echo =
            |error: RemoteError| Err::<(), _>(RemoteError::new(error.as_error()).context("in the second"));
        let error = outcome(pool.submit(echo, &error)).unwrap().unwrap_err();
        assert!(error.chain().eq(["in the second", "in the first", "it failed", "it failed", "refused: 9"]));
        // The longest chain there is.
        let long = (0..200).fold(RemoteError::msg("first"), |error, n| error.context(n));
        let echoed = outcome(pool.submit(|error: RemoteError| error, &long)).unwrap();
        assert!(echoed.chain().eq(long.chain()) && echoed.chain().count() == 64);
    });
}

#[test]
fn a_remote_error_is_any_other_error_where_it_arrives() {
    both(|| {
        fn caller(pool: &Pool) -> Result<u32, Box<dyn Error + Send + Sync>> {
            let n = pool.submit(remote, &5).wait()??;
            Ok(n + pool.submit(remote, &101).wait()??)
        }
        let error = caller(&new_pool(1).unwrap()).unwrap_err();
        assert_eq!(error.source().unwrap().source().unwrap().to_string(), "refused: 9");
    });
}

#[cfg(feature = "serde")]
mod with_serde {
    use forkring::{AsSerde, Serde, TaskError};
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
    enum Shape {
        Unit,
        Newtype(i64),
        Tuple(u128, f64),
        Struct { points: Vec<(i32, i32)>, of: Option<Box<Shape>> },
    }

    fn shapes() -> Vec<Serde<Shape>> {
        let of = Some(Box::new(Shape::Newtype(i64::MIN)));
        let last = Shape::Struct { points: (0..20).map(|n| (n, -n)).collect(), of };
        [Shape::Unit, Shape::Newtype(-3), Shape::Tuple(u128::MAX, f64::INFINITY), last].map(Serde).into()
    }

    #[test]
    fn serde_types_go_there_and_back() {
        both(|| {
            let pool = new_pool(2).unwrap();
            round_trips(&pool, &shapes());
            let map: HashMap<u32, Vec<Shape>> =
                (0..3).map(|n| (n, shapes().into_iter().map(Serde::into_inner).collect())).collect();
            round_trips(&pool, &[Serde(map.clone()), Serde(HashMap::new())]);
            round_trips(
                &pool,
                &[(Serde(map), 3_u8, Some(Serde(Shape::Unit)), vec![Serde("text".to_owned())])],
            );
            round_trips(&pool, &[Serde(()), Serde(())]);
            round_trips(&pool, &[Serde(vec![0_u8; 5000])]);
            let keys = HashMap::from([((1_u8, 'a'), vec![Some(1), None]), ((2, 'b'), vec![])]);
            round_trips(&pool, &[Serde(keys)]);
            round_trips(&pool, &[Ok(Serde(1_u8)), Err(Serde(Shape::Unit))]);

            // As an argument only, as a result only, in place.
            let area = pool.submit(|Serde(shape): Serde<Shape>| format!("{shape:?}"), &Serde(Shape::Unit));
            assert_eq!(area.wait().unwrap(), "Unit");
            let result = pool.submit(|n: i64| Serde(Shape::Newtype(n)), &7).wait().unwrap();
            assert_eq!(result.into_inner(), Shape::Newtype(7));
            let view =
                |_: &Worker, shape: &View<Serde<Shape>>| shape.decode().is_ok_and(|s| s == Shape::Newtype(7));
            assert!(pool.submit_with(view, &Serde(Shape::Newtype(7))).wait().unwrap());
        });
    }

    /// What formats that do not describe themselves cannot bring back.
    #[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
    struct Loose {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        first: Option<u8>,
        second: Option<u8>,
        #[serde(flatten)]
        rest: BTreeMap<String, serde_json::Value>,
    }

    #[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
    #[serde(tag = "type", rename_all = "snake_case")]
    enum Tagged {
        Moved { to: Ipv4Addr },
        Gone,
    }

    #[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
    #[serde(untagged)]
    enum Untagged {
        Number(u64),
        Address(Ipv4Addr),
        Text(String),
        Many(Vec<Untagged>),
    }

    #[test]
    fn serde_types_that_need_a_look_at_their_data_come_back_as_well() {
        both(|| {
            let pool = new_pool(1).unwrap();
            let rest =
                [("more".to_owned(), serde_json::json!({ "a": [1, -2.5, null, "x"], "b": {} }))].into();
            round_trips(&pool, &[Loose { first: None, second: Some(5), rest }, Loose::default()].map(Serde));
            let home = Ipv4Addr::LOCALHOST;
            round_trips(&pool, &[Tagged::Moved { to: home }, Tagged::Gone].map(Serde));
            let many =
                vec![Untagged::Number(u64::MAX), Untagged::Address(home), Untagged::Text("a".to_owned())];
            round_trips(&pool, &[Untagged::Many(many), Untagged::Number(0)].map(Serde));
            round_trips(&pool, &[Serde(serde_json::json!([{ "k": true }, 1e300, u64::MAX, i64::MIN]))]);
        });
    }

    #[derive(Payload, Clone, Debug, PartialEq)]
    struct Mail {
        to: Vec<String>,
        #[rkyv(with = AsSerde)]
        body: serde_json::Value,
        shape: Serde<Shape>,
    }

    #[test]
    fn serde_types_are_fields_of_derived_ones() {
        both(|| {
            let pool = new_pool(1).unwrap();
            let body = serde_json::json!({ "lines": ["a", "b"] });
            let shape = shapes().pop().unwrap();
            round_trips(&pool, &[Mail { to: vec!["Ada".to_owned()], body, shape }]);
        });
    }

    /// Is written and read unless it is one of the bad ones.
    #[derive(Clone, Debug, PartialEq)]
    struct Fragile(u32);

    impl Serialize for Fragile {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match self.0 {
                1 => Err(serde::ser::Error::custom("this one does not travel")),
                2 => panic!("serialize panics"),
                n => n.serialize(serializer),
            }
        }
    }

    impl<'de> Deserialize<'de> for Fragile {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            match u32::deserialize(deserializer)? {
                3 => Err(serde::de::Error::custom("this one does not come back")),
                4 => panic!("deserialize panics"),
                n => Ok(Self(n)),
            }
        }
    }

    #[test]
    fn what_serde_refuses_is_an_error_of_its_task_that_says_why() {
        both(|| {
            let pool = new_pool(1).unwrap();
            pool.broadcast(|_: &Worker| std::panic::set_hook(Box::new(|_| ())));
            let there = |n| outcome(pool.submit(|Serde(f): Serde<Fragile>| f.0, &Serde(Fragile(n))));
            let back = |n: u32| outcome(pool.submit(|n: u32| Serde(Fragile(n)), &n));
            let says = |error: TaskError, what: &str| {
                let text = error.to_string();
                assert!(text.contains(what) && text.contains("Fragile"), "{text}");
            };
            assert_eq!(there(7).unwrap(), 7);
            assert_eq!(back(7).unwrap().0, Fragile(7));
            for error in [there(1).unwrap_err(), back(1).unwrap_err()] {
                assert!(error.is_encode(), "{error:?}");
                says(error, "does not travel");
            }
            for error in [there(3).unwrap_err(), back(3).unwrap_err()] {
                assert!(error.is_decode(), "{error:?}");
                says(error, "does not come back");
            }
            assert!(there(4).unwrap_err().is_panicked());
            assert!(back(2).unwrap_err().is_panicked());
            for granularity in [1, 100] {
                let items = (0..200).map(|n| Serde(Fragile(if n % 10 == 0 { 3 } else { n + 10 })));
                let stream = pool.map(items, |Serde(f): Serde<Fragile>| f.0);
                for (n, result) in (0..).zip(stream.granularity(Granularity::Fixed(granularity))) {
                    match result {
                        Ok(value) => assert_eq!(value, n + 10),
                        Err(error) => assert!(n % 10 == 0 && error.is_decode()),
                    }
                }
            }
            // Reading recurses, on stacks that nobody knows the size of.
            let nested = |n| {
                Serde((0..n).fold(serde_json::json!(1), |inner, _| serde_json::Value::Array(vec![inner])))
            };
            let depth = |Serde(mut value): Serde<serde_json::Value>| {
                let mut depth = 0;
                while let serde_json::Value::Array(mut inner) = value {
                    (value, depth) = (inner.pop().unwrap(), depth + 1);
                }
                depth
            };
            assert_eq!(outcome(pool.submit(depth, &nested(200))).unwrap(), 200);
            assert_eq!(outcome(pool.submit(nested, &200)).unwrap(), nested(200));
            assert!(outcome(pool.submit(depth, &nested(300))).unwrap_err().is_decode());
            assert!(outcome(pool.submit(nested, &300)).unwrap_err().is_decode());
            assert_eq!(there(7).unwrap(), 7);
        });
    }

    #[test]
    fn a_serde_is_its_value() {
        let mut value = Serde::from(vec![1, 2]);
        value.push(3);
        assert_eq!(value.len(), 3);
        assert_eq!(value, Serde(vec![1, 2, 3]));
        assert_eq!(Serde(7).to_string(), "7");
        assert_eq!(value.into_inner(), [1, 2, 3]);
    }
}

#[test]
fn handles_pass_through_catch_unwind() {
    use std::panic::{RefUnwindSafe, UnwindSafe};
    fn whole<T: UnwindSafe + RefUnwindSafe>() {}
    whole::<Pool>();
    whole::<forkring::Task<String>>();
    whole::<forkring::TaskHandle>();
    whole::<forkring::Submitter>();
    whole::<forkring::Stopper>();
    whole::<forkring::Close>();
    whole::<forkring::Closed>();
    whole::<forkring::TaskError>();
    whole::<forkring::Permit>();
    both(|| {
        let pool = new_pool(1).unwrap();
        let caught = std::panic::catch_unwind(|| {
            let _task = pool.submit(|n: u32| n, &1);
            panic!("of the caller's");
        });
        assert!(caught.is_err());
        assert_eq!(pool.submit(|n: u32| n, &2).wait().unwrap(), 2);
    });
}
