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
//! * [`Pool::map`], [`Pool::iter_stream`]: many items, in batches if wanted.
//! * [`Builder`]: workers, environment, state, service, and the rest.
//! * [`Builder::bind`], [`Builder::iter_stream`]: for closures that capture.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "forkring runs on Linux only: it is built on memfd, eventfd, pidfd and futex-free shared memory"
);

pub use rkyv;

mod bound;
mod builder;
mod context;
mod error;
#[cfg(not(forkring_faults))]
mod faults;
#[cfg(forkring_faults)]
#[doc(hidden)]
pub mod faults;
pub mod hooks;
mod launch;
mod limits;
mod overload;
mod panics;
mod pool;
mod stream;
mod submitter;
mod task;

mod ground;
mod life;
mod memory;
mod protocol;
mod sync;

pub use bound::Bound;
pub use builder::{Builder, NoService, Service};
pub use context::{ServiceError, ServiceErrorKind, StartWorker, Worker, WorkerInfo};
pub use error::{
    BoxError, CodecError, Error, LossHint, Panicked, PoolFailure, TaskError, TrySubmitError, WorkerLost,
};
pub use ground::spin::WaitPolicy;
pub use life::service::BoxFuture;
pub use life::setup::Affinity;
pub use life::terms::OnWorkerLoss;
pub use memory::codec::{Input, OwnedArchive, Payload, View};
/// The signals that [`Builder::kill_signal`] takes.
pub use nix::sys::signal::Signal;
pub use overload::{Permit, Reserve, SubmitAsync};
pub use pool::{Close, CloseOutcome, CloseWithin, Closed, Pool};
pub use stream::{Flow, Granularity, Indexed, Map, Stopper, StreamSummary, TryIndexed, TryMap};
pub use submitter::Submitter;
pub use task::{ArchivedTask, Task, TaskHandle, TaskId};
