//! [`Serde`]: serde's types among rkyv's.

use std::any::type_name;
use std::fmt;
use std::ops::{Deref, DerefMut};

use rkyv::Place;
use rkyv::rancor::{Fallible, Source};
use rkyv::ser::{Allocator, Writer};
use rkyv::vec::{ArchivedVec, VecResolver};
use rkyv::with::{ArchiveWith, DeserializeWith, SerializeWith};
use serde::Serialize as Encode;
use serde::de::DeserializeOwned as Decode;

use crate::Payload;
use crate::error::CodecError;

/// How deep a value that is read may nest, as archives may. Writing is the caller's own recursion, on its own value.
const DEPTH_MAX: usize = 256;

/// Carries a value of any type that has serde's `Serialize` and `DeserializeOwned` (feature `serde`).
///
/// For types of other crates, and for one's own that have serde's derives anyway. Types that the task reads in place, or
/// that are large, are better off with [`#[derive(Payload)]`](derive@crate::Payload), which needs no decoding.
///
/// ```
/// use std::collections::HashMap;
/// use forkring::{Pool, Serde};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// enum Query {
///     Total,
///     Of { name: String },
/// }
///
/// let pool = Pool::new(1)?;
/// let stock = HashMap::from([("nut".to_owned(), 40), ("bolt".to_owned(), 2)]);
/// let look_up = |Serde((stock, query)): Serde<(HashMap<String, u32>, Query)>| match query {
///     Query::Total => stock.values().sum(),
///     Query::Of { name } => stock.get(&name).copied().unwrap_or(0),
/// };
/// let mut question = Serde((stock, Query::Total));
/// assert_eq!(pool.submit(look_up, &question).wait()?, 42);
/// question.1 = Query::Of { name: "bolt".to_owned() };
/// assert_eq!(pool.submit(look_up, &question).wait()?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// It is a [`Payload`](trait@crate::Payload) like others: an argument, a result, an item of a stream, a part of a tuple,
/// a `Vec`, or a struct with `derive(Payload)`.
///
/// # What comes back
///
/// The format is MessagePack with the names of fields and variants, as [`rmp_serde`] writes it: whatever survives JSON
/// survives this, `#[serde(flatten)]`, `untagged`, `skip_serializing_if` and `serde_json::Value` included, and so do maps
/// with any keys, bytes, `u128`, infinities. As in JSON, `Some(None)` and `Some(())` come back as `None`.
///
/// What cannot be written or read is an error of its task, [`TaskError::Encode`](crate::TaskError::Encode) or
/// [`TaskError::Decode`](crate::TaskError::Decode), that names the type and says what serde says. Values come
/// back from up to 256 levels of nesting.
///
/// For a single field of a struct with [`derive(Payload)`](derive@crate::Payload) there is [`AsSerde`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Payload)]
#[payload(crate = crate)]
pub struct Serde<T>(#[rkyv(with = AsSerde)] pub T);

impl<T> Serde<T> {
    /// The value.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> From<T> for Serde<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for Serde<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Serde<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: fmt::Display> fmt::Display for Serde<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: Decode> ArchivedSerde<T> {
    /// The value, in a task that gets a [`View`](crate::View) of a `Serde`.
    ///
    /// # Errors
    ///
    /// If the bytes are not those of a `T`, or `T` does not read what it wrote.
    pub fn decode(&self) -> Result<T, CodecError> {
        decode(&self.0).map_err(CodecError::new)
    }
}

impl<T> fmt::Debug for ArchivedSerde<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArchivedSerde<{}>({} bytes)", type_name::<T>(), self.0.len())
    }
}

/// Has a single field travel as a [`Serde`] does (feature `serde`), for types that rkyv does not know.
///
/// ```
/// use forkring::{AsSerde, Payload, Pool};
///
/// #[derive(Payload)]
/// struct Message {
///     to: Vec<String>,
///     #[rkyv(with = AsSerde)]
///     body: serde_json::Value,
/// }
///
/// let pool = Pool::new(1)?;
/// let message = Message { to: vec!["Ada".to_owned()], body: serde_json::json!({ "lines": ["hello", "there"] }) };
/// let lines = pool.submit(|m: Message| m.to.len() * m.body["lines"].as_array().map_or(0, Vec::len), &message);
/// assert_eq!(lines.wait()?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct AsSerde;

/// Where the bytes are, and how many.
#[doc(hidden)]
pub struct BytesResolver {
    place: VecResolver,
    len: usize,
}

impl<T> ArchiveWith<T> for AsSerde {
    type Archived = ArchivedVec<u8>;
    type Resolver = BytesResolver;

    fn resolve_with(_: &T, resolver: BytesResolver, out: Place<ArchivedVec<u8>>) {
        ArchivedVec::resolve_from_len(resolver.len, resolver.place, out);
    }
}

impl<T: Encode, S> SerializeWith<T, S> for AsSerde
where
    S: Fallible<Error: Source> + Allocator + Writer + ?Sized,
{
    fn serialize_with(value: &T, serializer: &mut S) -> Result<BytesResolver, S::Error> {
        let bytes = encode(value).map_err(S::Error::new)?;
        let place = ArchivedVec::serialize_from_slice(&bytes, serializer)?;
        Ok(BytesResolver { place, len: bytes.len() })
    }
}

impl<T: Decode, D: Fallible<Error: Source> + ?Sized> DeserializeWith<ArchivedVec<u8>, T, D> for AsSerde {
    fn deserialize_with(bytes: &ArchivedVec<u8>, _: &mut D) -> Result<T, D::Error> {
        decode(bytes).map_err(D::Error::new)
    }
}

/// The bytes that serde makes of a value: readable forms, since those are what `flatten` and `untagged` understand.
fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, Failed> {
    let mut bytes = Vec::with_capacity(128);
    let mut serializer = rmp_serde::Serializer::new(&mut bytes).with_struct_map().with_human_readable();
    match value.serialize(&mut serializer) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(Failed::new::<T>(&error)),
    }
}

fn decode<T: Decode>(bytes: &[u8]) -> Result<T, Failed> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes).with_human_readable();
    deserializer.set_max_depth(DEPTH_MAX);
    T::deserialize(&mut deserializer).map_err(|error| Failed::new::<T>(&error))
}

/// What serde said, and about which type.
#[derive(Debug)]
struct Failed {
    ty: &'static str,
    message: String,
}

impl Failed {
    #[cold]
    fn new<T>(error: &dyn fmt::Display) -> Self {
        Self { ty: type_name::<T>(), message: error.to_string() }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "serde, of a `{}`: {}", self.ty, self.message)
    }
}

impl std::error::Error for Failed {}
