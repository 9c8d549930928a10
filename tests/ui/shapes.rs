//! Types of every shape, in a package that has forkring and no rkyv.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use forkring::{Input, Payload, RemoteError};

#[derive(Payload)]
struct Unit;

#[derive(Payload)]
struct Tuple(u32, String);

#[derive(Payload)]
pub struct Named {
    pub map: HashMap<String, Vec<Tuple>>,
    error: Result<Unit, RemoteError>,
}

#[derive(Payload)]
#[repr(u8)]
enum Mixed {
    A = 3,
    B(u32, #[rkyv(with = forkring::rkyv::with::Skip)] u8),
    C { x: String },
}

#[derive(Payload)]
struct Generic<T, const N: usize>
where
    T: Clone,
{
    a: [T; N],
    b: Option<T>,
}

#[derive(Payload)]
enum Tree<T> {
    Leaf(T),
    Node(Box<Tree<T>>, Box<Self>),
}

#[derive(Payload)]
enum Json {
    Number(f64),
    List(Vec<Json>),
    Object(BTreeMap<String, Json>),
    Shared(Rc<Json>),
}

#[derive(Payload)]
struct Folder {
    entries: Vec<Entry>,
}

#[derive(Payload)]
enum Entry {
    File(String),
    Folder(#[rkyv(omit_bounds)] Folder),
}

#[derive(Input)]
struct Query<'a> {
    #[rkyv(with = forkring::rkyv::with::InlineAsBox)]
    text: &'a str,
}

/// The same names from elsewhere are other types.
mod other {
    #[derive(forkring::Payload)]
    pub struct Wheel<T>(pub T);
}

#[derive(Payload)]
struct Wheel<T> {
    inner: other::Wheel<T>,
}

macro_rules! made {
    ($name:ident, $field:ty) => {
        #[derive(Payload)]
        struct $name {
            one: $field,
            many: Vec<$field>,
        }
    };
}

made!(Made, String);

mod renamed {
    pub use forkring as pool;

    #[derive(pool::Payload)]
    #[payload(crate = crate::renamed::pool)]
    pub struct Here(pub u8);
}

fn travels<T: Payload>() {}
fn can_be_sent<T: Input>() {}

fn main() {
    travels::<(Unit, Tuple, Named, Mixed, Json, Folder, Made, renamed::Here)>();
    travels::<(Generic<String, 3>, Tree<u32>, Wheel<Vec<u8>>)>();
    can_be_sent::<Query>();

    #[derive(Payload)]
    struct Local(u8);
    travels::<Local>();
}
