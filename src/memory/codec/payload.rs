//! What can travel: [`Payload`], [`Input`] and [`View`].
//!
//! The bounds name concrete strategy types without lifetimes, and sit on supertraits, where they are
//! implied: whoever writes `T: Payload` may call everything in this module.

use std::fmt;

use rkyv::de::Pool;
use rkyv::rancor::{Source, Strategy, Trace};
use rkyv::ser;
use rkyv::{ArchiveUnsized, Deserialize, SerializeUnsized};

use super::access::Root;
use super::encode::{Scratch, Sharing};
use super::sink::Sink;

/// The serializer that every input and result is written by.
pub(super) type Encoder = Strategy<ser::Serializer<Sink, Scratch, Sharing>, Fault>;

/// The deserializer that every value is brought back by. The pool allocates when a shared pointer asks.
pub(super) type Decoder = Strategy<Pool, Fault>;

/// The archived form of `I`, which a task reads in place.
///
/// ```
/// fn length(text: &forkring::View<str>) -> usize {
///     text.len()
/// }
/// assert_eq!(length("nine"), 4);
/// ```
pub type View<I> = <I as ArchiveUnsized>::Archived;

/// What can be sent to a task: `str`, slices, structs that borrow, and every [`Payload`].
///
/// The task sees the [`View`] of it, validated and in place. Implemented for every type that rkyv can
/// archive and validate; there is nothing to implement by hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be sent to a task",
    label = "this type has no archived form that a worker could read",
    note = "derive it: `#[derive(rkyv::Archive, rkyv::Serialize)]` with the `rkyv` that `forkring` re-exports, \
            on this type and on the types of its fields",
    note = "a field that borrows needs `#[rkyv(with = rkyv::with::InlineAsBox)]` or the like"
)]
pub trait Input: ArchiveUnsized<Archived: Root> + SerializeUnsized<Encoder> {}

#[diagnostic::do_not_recommend]
impl<I> Input for I where I: ArchiveUnsized<Archived: Root> + SerializeUnsized<Encoder> + ?Sized {}

/// What can be sent and brought back as a value of its own: any type that rkyv can archive, validate
/// and deserialize.
///
/// Implemented for every such type; there is nothing to implement by hand. Archives may nest 256
/// pointers deep, which a linked list of boxes reaches sooner than one thinks: prefer a `Vec`.
///
/// ```
/// fn travels<T: forkring::Payload>() {}
/// travels::<(u32, String)>();
/// travels::<std::collections::HashMap<u64, Vec<Option<f32>>>>();
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot travel between processes",
    label = "rkyv cannot archive, validate and bring back this type",
    note = "derive it: `#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]` with the `rkyv` that \
            `forkring` re-exports, on this type and on the types of its fields",
    note = "a type that borrows can be an input of the `_with` methods, but not come back"
)]
pub trait Payload:
    Input + ArchiveUnsized<Archived: Sized + Deserialize<Self, Decoder>> + Sized + 'static
{
}

#[diagnostic::do_not_recommend]
impl<T> Payload for T where
    T: Input + ArchiveUnsized<Archived: Sized + Deserialize<Self, Decoder>> + Sized + 'static
{
}

/// What went wrong inside rkyv, in words, innermost first.
///
/// rkyv's own error type keeps its words in debug builds only.
#[derive(Debug)]
#[expect(clippy::box_collection, reason = "one word: every step of a serializer returns a `Result` of this")]
pub struct Fault(Box<String>);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

impl Trace for Fault {
    #[cold]
    fn trace<R: fmt::Debug + fmt::Display + Send + Sync + 'static>(mut self, trace: R) -> Self {
        self.0.push_str(&format!("; {trace}"));
        self
    }
}

impl Source for Fault {
    #[cold]
    fn new<T: std::error::Error + Send + Sync + 'static>(source: T) -> Self {
        Self(Box::new(source.to_string()))
    }
}
