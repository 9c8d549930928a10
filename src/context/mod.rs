//! What a task sees of its worker, and the shims that run tasks there.
//!
//! A request names one of the [`shims`], which recovers the task's types and has its [`call`] run it. [`run_batch`] goes through
//! the items of a batch, which lie as [`batch`] says. [`service`] asks the master.

mod batch;
mod call;
mod run_batch;
mod service;
mod shims;

use std::any::Any;
use std::cell::{Ref, RefMut};
use std::fmt;
use std::marker::PhantomData;

pub(crate) use self::batch::{BatchBytes, item_of};
pub(crate) use self::call::Call;
pub use self::service::{ServiceError, ServiceErrorKind};
pub(crate) use self::shims::{
    Named, bound_context_task, bound_task, broadcast_task, context_task, plain_task,
};
use crate::error::CodecError;
use crate::life::worker::{CatchGuard, WorkerCore, unwind_to_catch};
use crate::memory::codec::{self, Payload, View};
use crate::protocol::port::Port;

/// The worker that a task runs in: its environment, its state, and the way to the master's service.
///
/// ```
/// use forkring::{Pool, View, Worker};
///
/// let pool = Pool::builder().workers(2).env(vec![10, 20, 30]).build()?;
/// let third = pool.submit_with(|w: &Worker<Vec<i32>>, i: &View<usize>| w.env()[i.to_native() as usize], &2_usize);
/// assert_eq!(third.wait()?, 30);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// `E` is the type of the pool's environment, `S` of its service, `W` of its state; `Worker` alone means that it has none. A
/// task that names other types than its pool has is refused:
///
/// ```compile_fail,E0631
/// # use forkring::{Pool, View, Worker};
/// let pool = Pool::builder().workers(1).env(vec![10, 20, 30]).build().unwrap();
/// let _ = pool.submit_with(|_: &Worker, i: &View<u32>| i.to_native(), &2_u32); // `&Worker<Vec<i32>>` is what it has to be
/// ```
///
/// It belongs to the thread that runs the task. Threads that a task starts get what they need from it beforehand:
///
/// ```compile_fail,E0277
/// # use forkring::{Pool, View, Worker};
/// let pool = Pool::new(1).unwrap();
/// let _ = pool.submit_with(
///     |w: &Worker, _: &View<u32>| std::thread::scope(|scope| scope.spawn(|| w.id()).join().unwrap()), // take the id before
///     &2_u32,
/// );
/// ```
pub struct Worker<E = (), S = crate::NoService, W = ()> {
    core: &'static WorkerCore,
    /// `E` and `W` live in the worker, which is one process with one such value: neither `Send` nor `Sync`.
    _types: PhantomData<(*const E, *const S, *const W)>,
}

impl<E, S, W> fmt::Debug for Worker<E, S, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("info", &self.core.info).finish_non_exhaustive()
    }
}

impl<E: 'static, S, W: 'static> Worker<E, S, W> {
    /// The environment that the pool was built with, inherited by fork: the worker's own copy, shared with the other
    /// processes page by page until somebody writes to it. With [`in_process`](crate::Builder::in_process), the one of all workers.
    pub fn env(&self) -> &E {
        self.core.seed.env.downcast_ref().expect("the pool's type says what its environment is")
    }

    /// The worker's state, made by [`Builder::state`](crate::Builder::state).
    ///
    /// # Panics
    ///
    /// If the task has borrowed it already.
    pub fn state(&self) -> RefMut<'_, W> {
        self.core.state_used.set(true);
        let state = self.core.state.try_borrow_mut().expect("the task has borrowed the state already");
        RefMut::map(state, |state| {
            // A pool without `state` has the state `()`.
            let state = state.get_or_insert_with(|| Box::new(()) as Box<dyn Any>);
            state.downcast_mut().expect("the pool's type says what its state is")
        })
    }
}

impl<E, S, W> Worker<E, S, W> {
    /// The worker's id, `0 .. workers`. A replacement has its predecessor's.
    pub fn id(&self) -> usize {
        self.core.info.id
    }

    /// Which process of that worker this is, counted from 0.
    pub fn generation(&self) -> u64 {
        self.core.info.generation
    }

    /// Whether the running task has been cancelled: its result will be thrown away, so it may as well stop. Costs two
    /// loads from shared memory. Once true, it stays true for this task.
    pub fn cancelled(&self) -> bool {
        self.core.request.get().is_some_and(|index| {
            let is_over = |port: Ref<'_, Port>| port.cancelled(index) || port.is_given_up();
            self.core.port.try_borrow().is_ok_and(is_over)
        })
    }

    /// Brings an input, or part of one, back as an owned value.
    ///
    /// # Errors
    ///
    /// Where the type's own deserialization fails.
    pub fn decode<I: Payload>(&self, view: &View<I>) -> Result<I, CodecError> {
        codec::from_view::<I>(view)
    }
}

/// Which worker this is, as `init`, `state` and `on_exit` see it.
#[derive(Debug)]
pub struct WorkerInfo {
    id: usize,
    generation: u64,
}

impl WorkerInfo {
    pub(crate) fn new(id: usize, generation: u64) -> Self {
        Self { id, generation }
    }

    /// The worker's id, `0 .. workers`.
    pub fn id(&self) -> usize {
        self.id
    }

    /// Which process of that worker this is, counted from 0.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// From inside `init`: unwinds the stack that the worker inherited, so that what the program had allocated on
    /// the way to [`Builder::build`](crate::Builder::build) is dropped in this worker, up to [`StartWorker::catch`],
    /// which then runs the worker's loop. Never returns.
    ///
    /// The destructors of everything on that stack run here too: one that deletes a file or says goodbye on a socket
    /// does so in every worker. Keep such values off the path between `catch` and `build`.
    ///
    /// Where it cannot work, `build()` fails and says why: without a `catch` on the building thread, in a program
    /// built with `panic = "abort"`, under `iter_stream` and `bind`, or where something between `catch` and `build`
    /// catches panics (`catch_unwind`, `thread::scope`, a runtime's `spawn`).
    pub fn start_worker(&self) -> ! {
        unwind_to_catch()
    }
}

/// The place up to which [`WorkerInfo::start_worker`] unwinds.
#[derive(Debug)]
pub struct StartWorker;

impl StartWorker {
    /// Runs `f`, which builds pools; workers that call [`WorkerInfo::start_worker`] unwind to here and serve.
    ///
    /// ```
    /// use forkring::{Pool, StartWorker};
    ///
    /// let pool = StartWorker::catch(|| {
    ///     let large = vec![1_u8; 1 << 20];
    ///     let pool = Pool::builder().workers(1).init(|info| info.start_worker()).build();
    ///     drop(large); // the worker has dropped its copy too
    ///     pool
    /// })?;
    /// assert_eq!(pool.submit(|n: u32| n + 1, &1).wait()?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn catch<T>(f: impl FnOnce() -> T) -> T {
        let _guard = CatchGuard::new();
        f()
    }
}
