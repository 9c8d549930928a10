//! What can travel: [`Payload`](trait@Payload), [`Input`](trait@Input) and [`View`].
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

/// What can be sent to a task: `str`, slices, structs that borrow, and every [`Payload`](trait@Payload).
///
/// The task sees the [`View`] of it, validated and in place. Implemented for every type that rkyv can
/// archive and validate; there is nothing to implement by hand: derive [`Payload`](derive@crate::Payload), or
/// [`Input`](derive@crate::Input) for a type that borrows.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be sent to a task",
    label = "this type has no archived form that a worker could read",
    note = "derive it with `#[derive(forkring::Payload)]`, or `#[derive(forkring::Input)]` if it borrows, on this type \
            and on the types of its fields",
    note = "or wrap a type that has serde's traits in `forkring::Serde` (feature `serde`)",
    note = "a field that borrows needs `#[rkyv(with = forkring::rkyv::with::InlineAsBox)]` or the like",
    note = "what cannot be copied into another process at all goes into the pool's `env`, which workers inherit"
)]
pub trait Input: ArchiveUnsized<Archived: Root> + SerializeUnsized<Encoder> {}

#[diagnostic::do_not_recommend]
impl<I> Input for I where I: ArchiveUnsized<Archived: Root> + SerializeUnsized<Encoder> + ?Sized {}

/// What can be sent and brought back as a value of its own: any type that rkyv can archive, validate
/// and deserialize.
///
/// ```
/// use forkring::{Payload, Pool};
///
/// #[derive(Payload)]
/// struct Order {
///     customer: String,
///     amounts: Vec<u32>,
/// }
///
/// #[derive(Payload, Debug, PartialEq)]
/// enum Verdict {
///     Accepted { total: u32 },
///     Empty,
/// }
///
/// let pool = Pool::new(1)?;
/// let order = Order { customer: "Ada".to_owned(), amounts: vec![3, 4] };
/// let judge = |order: Order| match order.amounts.iter().sum() {
///     0 => Err(format!("{} orders nothing", order.customer)),
///     total => Ok(Verdict::Accepted { total }),
/// };
/// assert_eq!(pool.submit(judge, &order).wait()?, Ok(Verdict::Accepted { total: 7 }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// What travels:
///
/// * numbers, `bool`, `char`, `String`, `Option`, `Result`, `Vec`, `Box`, arrays, tuples, the standard maps and sets,
///   `Rc` and `Arc`, `Duration`, IP addresses, ranges, of whatever travels;
/// * types of one's own, with [`#[derive(forkring::Payload)]`](derive@crate::Payload);
/// * types of others that implement serde's traits, in a `forkring::Serde` (feature `serde`);
/// * any error, as [`RemoteError`](crate::RemoteError).
///
/// In generic code, ask for what travels: of `T: Payload` alone the compiler does not conclude that a `Vec<T>` travels, but
/// `where Vec<T>: Payload` says so.
///
/// Implemented for every such type; there is nothing to implement by hand. Archives may nest 256
/// pointers deep, which a linked list of boxes reaches sooner than one thinks: prefer a `Vec`.
///
/// What else is used as an argument or a result is refused, with an error that says what to do:
///
/// ```compile_fail,E0277
/// struct Order(u32); // derives nothing
/// let pool = forkring::Pool::new(1).unwrap();
/// let _ = pool.submit(|order: Order| order.0, &Order(1));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot travel between processes",
    label = "this type cannot be copied into another process and brought back",
    note = "derive it with `#[derive(forkring::Payload)]`, on this type and on the types of its fields",
    note = "or wrap a type that has serde's traits in `forkring::Serde` (feature `serde`); an error travels as \
            `forkring::RemoteError`",
    note = "a type that borrows can be the input of `submit_with`, with `#[derive(forkring::Input)]`, but not come back",
    note = "what cannot be copied into another process at all goes into the pool's `env` or `state`"
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
