use std::collections::{BTreeMap, HashMap};
use forkring::Payload;

#[derive(Payload)]
struct Unit;
#[derive(Payload, Debug, Clone, PartialEq)]
struct Newtype(u32);
#[derive(Payload)]
struct Tuple(u32, String);
/// doc
#[derive(Payload)]
#[repr(C)]
#[allow(dead_code)]
pub struct Named { #[doc = "x"] pub a: u8, pub(crate) b: Option<String>, c: HashMap<String, Vec<Newtype>> }
#[derive(Payload)]
#[repr(u8)]
enum Mixed { A = 3, B(u32, #[rkyv(with = forkring::rkyv::with::Skip)] u8), C { x: String } }
#[derive(Payload)]
struct Generic<T, const N: usize> where T: Clone { a: [T; N], b: Option<T> }
#[derive(Payload)]
enum Tree<T> { Leaf(T), Node(Box<Tree<T>>, Box<Self>) }
#[derive(Payload)]
struct List<T: Ord> { x: T, next: Option<Box<List<T>>> }
#[derive(Payload)]
enum Json { Null, Num(f64), Arr(Vec<Json>), Obj(BTreeMap<String, Json>) }
#[derive(Payload)]
struct A { b: Vec<B> }
#[derive(Payload)]
struct B { #[rkyv(omit_bounds)] a: Vec<A> }
#[derive(Payload)]
struct Shared { a: std::rc::Rc<Shared2>, }
#[derive(Payload)]
struct Shared2 { a: Vec<std::sync::Arc<Shared2>>, }

mod other { 
    #[derive(forkring::Payload)]
    pub struct Outer { pub x: u32 } }
#[derive(Payload)]
struct Outer { inner: other::Outer, e: self::other::Outer }

macro_rules! made { ($name:ident, $t:ty) => { #[derive(Payload)] struct $name { x: $t, y: Vec<$t> } } }
made!(Made, String);

fn travels<T: Payload>() {}
fn main() {
    travels::<Unit>();
    travels::<(Newtype, Tuple, Named, Mixed, Made)>();
    travels::<Generic<String, 3>>();
    travels::<Tree<u32>>();
    travels::<List<String>>();
    travels::<(Json, A, B, Shared, Shared2, Outer)>();
    fn local() {
        #[derive(Payload)]
        struct Local(u8);
        travels::<Local>();
    }
    local();
}
