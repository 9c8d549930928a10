//! A process pool that costs what a thread pool costs.
//!
//! Tasks run in forked worker processes, so a segfault, an abort, a leak or an OOM kill in one task costs that task and
//! nothing else. The data path is shared memory: no pipe, no socket and no system call while both sides are busy.
//!
//! ```
//! use forkring::Pool;
//!
//! let pool = Pool::new(2)?;
//! let length = pool.submit(|text: String| text.len(), &"hello".to_owned());
//! assert_eq!(length.wait()?, 5);
//!
//! let crash = pool.submit(|_: ()| std::process::abort(), &());
//! assert!(crash.wait().map(|()| ()).unwrap_err().is_worker_lost());
//!
//! let sum: u64 = pool.map(0..1000, |n: u64| n * n).map(Result::unwrap).sum();
//! assert_eq!(sum, 332_833_500);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! * [`Pool::submit`], [`Pool::submit_with`]: one task; [`Task`] is a future and can be waited for.
//! * [`Pool::map`], [`Pool::iter_stream`]: many items, in batches if wanted; [`Pool::map_stream`] for async code.
//! * [`Builder`]: workers, environment, state, service, and the rest.
//! * [`Builder::bind`], [`Builder::iter_stream`]: for closures that capture.
//! * [`Pool::stats`], [`Builder::timings`], [`Builder::record`]: what it is at, and was; [`hooks`] for messages and panics.
//! * [`Payload`](trait@Payload): what travels, with [`derive(Payload)`](derive@Payload) for types of one's own, and
//!   [`RemoteError`] for any error. Feature `serde`: `Serde` carries types that have serde's traits.
//!
//! The [`guide`] goes through them by question: which form of `submit`, failures, async servers, C libraries, limits, and
//! what a program looks like that comes from Nproc, Python or rayon.
//!
//! # Fork rules
//!
//! Build pools before the program starts threads. What a worker inherits, and what does not survive a fork, is in
//! [`guide::forking`].
//!
//! # Cancellation safety
//!
//! Everything that can be awaited here can be dropped at any time: [`Task`] (which cancels the task if it has not started),
//! [`ArchivedTask`], [`SubmitAsync`], [`Reserve`] (which leave the line), [`MapStream`] (which calls off what has not started),
//! [`Close`], [`CloseWithin`], [`Closed`] (whose dropping takes nothing back). Polling one by reference, as `select!` does,
//! and coming back later loses nothing.
//!
//! # Features
//!
//! None is on by default. `serde`: `Serde<T>` and `AsSerde`; `metrics`: `Builder::metrics`; `indicatif`: `progress_bar`; and `tracing`.
//!
//! ## `tracing`
//!
//! Each task, or message of a stream, runs in a span `task` of the level INFO and the target `forkring`, so whatever it logs through
//! the [`tracing`](https://docs.rs/tracing) crate says where it comes from:
//!
//! | field | |
//! |---|---|
//! | `pool`, `worker`, `generation`, `number` | as in [`CurrentTask`] |
//! | `caller.id` | the id of the span in which the task was submitted, a number, as the program's subscriber gave it |
//! | `caller.name` | the first 48 bytes of that span's name |
//!
//! Nothing else of the caller's span travels: not its fields, nor its parents. If the task was submitted in no span (or in one that
//! is filtered out), these two are not there. The span is a root: a worker's subscriber is a copy of the program's as it was when
//! the pool was built, knows no later span, and does not take `caller.id` for a parent. So install the subscriber before building
//! pools, with a writer that works in a forked process (standard streams and files do; what needs a thread of its own, such as
//! `tracing-appender`'s non-blocking writer, has none in a worker). `init`, `state` and `on_exit` run in no span.
//!
//! A panic in a worker is an event of the level ERROR in its task's span instead of a text on standard error, and the pool's own
//! messages are events of the target `forkring` (see [`hooks`]). A task that is submitted in a span takes the longer way of
//! submission; what is submitted in none, or without a subscriber, costs a load more.

#[cfg(not(target_os = "linux"))]
compile_error!("forkring runs on Linux only: it is built on memfd, pidfd, futexes and membarrier");

pub use rkyv;

/// Derives what the trait [`Payload`](trait@Payload) asks for: the one line that a type of one's own takes.
///
/// ```
/// use std::collections::BTreeMap;
/// use forkring::{Payload, Pool};
///
/// #[derive(Payload)]
/// enum Shape {
///     Circle { radius: f64 },
///     Polygon(Vec<(f64, f64)>),
///     Group(BTreeMap<String, Shape>), // a type may contain itself
///     Nothing,
/// }
///
/// fn parts(shape: Shape) -> usize {
///     match shape {
///         Shape::Circle { .. } => 1,
///         Shape::Polygon(corners) => corners.len(),
///         Shape::Group(members) => members.into_values().map(parts).sum(),
///         Shape::Nothing => 0,
///     }
/// }
///
/// let pool = Pool::new(1)?;
/// let circle = ("wheel".to_owned(), Shape::Circle { radius: 0.5 });
/// let line = ("axle".to_owned(), Shape::Polygon(vec![(0.0, 0.0), (1.0, 0.0)]));
/// let cart = Shape::Group([circle, line, ("load".to_owned(), Shape::Nothing)].into());
/// assert_eq!(pool.submit(parts, &cart).wait()?, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// For structs and enums of every shape, generic ones too; not for unions. Their fields must travel themselves.
///
/// It stands for rkyv's derives `Archive`, `Serialize` and `Deserialize`, with `#[rkyv(crate = forkring::rkyv)]`, so the
/// archived form of a `Job` is a type `ArchivedJob` beside it. All that rkyv can be told with
/// [`#[rkyv(…)]`](rkyv::Archive) can be said on type, variants and fields, for example how a foreign type travels:
///
/// ```
/// use std::path::PathBuf;
/// use forkring::rkyv::with::{AsString, Skip};
///
/// #[derive(forkring::Payload)]
/// #[rkyv(derive(Debug))] // for `ArchivedJob`
/// struct Job {
///     #[rkyv(with = AsString)]
///     file: PathBuf,
///     #[rkyv(with = Skip)] // comes back as its default
///     cache: Option<std::time::Instant>,
/// }
/// # fn travels<T: forkring::Payload>() {}
/// # travels::<Job>();
/// ```
///
/// # Types that contain themselves
///
/// A field whose type names the type itself, as in `Shape` above, needs nothing. Where the circle leads through other
/// types, one field on it is marked, in a type without parameters:
///
/// ```
/// #[derive(forkring::Payload)]
/// struct Folder {
///     entries: Vec<Entry>,
/// }
///
/// #[derive(forkring::Payload)]
/// enum Entry {
///     File(String),
///     Folder(#[rkyv(omit_bounds)] Folder),
/// }
/// # fn travels<T: forkring::Payload>() {}
/// # travels::<Folder>();
/// ```
///
/// # A renamed forkring
///
/// `#[payload(crate = path)]` says where forkring is, if not at `::forkring`.
pub use forkring_derive::Payload;

/// Derives what the trait [`Input`](trait@Input) asks for: for what is sent and read in place, and never comes back, such
/// as structs that borrow. What has `derive(Payload)` needs no more.
///
/// ```
/// use forkring::rkyv::with::InlineAsBox;
/// use forkring::{Input, Pool, View, Worker};
///
/// #[derive(Input)]
/// struct Query<'a> {
///     #[rkyv(with = InlineAsBox)]
///     text: &'a str,
///     limit: u32,
/// }
///
/// let pool = Pool::new(1)?;
/// let text = String::from("a rose is a rose");
/// let query = Query { text: &text, limit: 3 };
/// let words = pool.submit_with(
///     |_: &Worker, q: &View<Query>| q.text.split(' ').take(q.limit.to_native() as usize).count(),
///     &query,
/// );
/// assert_eq!(words.wait()?, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Everything else is as with [`derive(Payload)`](derive@Payload).
pub use forkring_derive::Input;

/// The README's programs are tests, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

/// What the derive macros refer to.
#[doc(hidden)]
pub mod __derive {
    use std::marker::PhantomData;

    pub use forkring_derive::consume;

    pub struct FieldOfPayload<T: crate::Payload>(PhantomData<T>);
    pub struct FieldOfInput<T: crate::Input>(PhantomData<T>);
}

mod bound;
mod builder;
mod caller;
mod context;
mod crashers;
mod error;
#[cfg(not(forkring_faults))]
mod faults;
#[cfg(forkring_faults)]
#[doc(hidden)]
pub mod faults;
mod given;
pub mod guide;
mod here;
pub mod hooks;
mod launch;
mod limits;
mod overload;
mod panics;
mod pool;
mod remote_error;
mod stats;
mod stream;
mod submitter;
mod task;
mod task_fn;
mod timings;
#[cfg(feature = "serde")]
mod with_serde;

mod ground;
mod life;
mod memory;
mod protocol;
mod sync;

pub use bound::{Bound, BoundPermit, BoundReserve, BoundSubmitter};
pub use builder::{Builder, NoService, Service};
pub use context::{ServiceError, ServiceErrorKind, StartWorker, Worker, WorkerInfo};
pub use crashers::{Crasher, replay, replay_with};
pub use error::{
    BoxError, CodecError, Error, LossHint, Panicked, PoolFailure, TaskError, TrySubmitError, WorkerLost,
};
pub use given::{Given, Inherited, Shared};
pub use ground::spin::WaitPolicy;
pub use here::{CurrentTask, current_task};
pub use life::service::BoxFuture;
pub use life::setup::Affinity;
pub use life::terms::OnWorkerLoss;
pub use memory::codec::{Input, OwnedArchive, Payload, View};
/// The signals that [`Builder::kill_signal`] takes.
pub use nix::sys::signal::Signal;
pub use overload::{Permit, Reserve, SubmitAsync};
pub use pool::{Close, CloseOutcome, CloseWithin, Closed, Pool};
pub use remote_error::RemoteError;
pub use stats::{Stats, WorkerState, WorkerStats};
#[cfg(feature = "indicatif")]
pub use stream::progress_bar;
pub use stream::{
    Flow, Granularity, Indexed, IndexedStream, Map, MapStream, Metered, Progress, Stopper, StreamSummary,
    TryIndexed, TryMap, Watch,
};
pub use submitter::Submitter;
pub use task::{ArchivedTask, Task, TaskHandle, TaskId};
pub use task_fn::TaskFn;
pub use timings::{Histogram, SlowTask, Timings};
#[cfg(feature = "serde")]
pub use with_serde::{ArchivedSerde, AsSerde, Serde};
