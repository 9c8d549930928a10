//! Submitting to a pool whose [queue limit](crate::Builder::queue_limit) may be reached: not at all, without blocking,
//! or with room that was reserved.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::builder::NoService;
use crate::context::{self, Named, Worker};
use crate::error::{TaskError, TrySubmitError};
use crate::life::core::Core;
use crate::life::gate::{Admission, Pass};
use crate::life::terms::Terms;
use crate::memory::codec::{self, Encoded, Input, Payload, View};
use crate::pool::{self, Handle, Pool, Types, encode_error};
use crate::task::Task;
use crate::task_fn::TaskFn;

/// Submits a task if there is room. Of a full pool's refusal the input sees nothing: it is not encoded.
pub(crate) fn try_start<I: Input + ?Sized, R>(
    core: &Arc<Core>,
    named: Named,
    input: &I,
    terms: Option<Terms>,
) -> Result<Task<R>, TrySubmitError> {
    let terms = match pool::begin(core, terms) {
        Ok(terms) => terms,
        Err(error) => return Ok(Task::failed(core, error)),
    };
    core.expects_place()?;
    // Encoding is user code, so no place is held meanwhile.
    match codec::encode(input, core.policy.max_payload) {
        Ok(input) => Ok(pool::hand_over(core, named, input, core.try_take_place()?, terms)),
        Err(error) => Ok(Task::failed(core, encode_error(error))),
    }
}

/// Encodes an input and submits the task, or has it submitted when there is room.
pub(crate) fn start_async<I: Input + ?Sized, R>(
    core: &Arc<Core>,
    named: Named,
    input: &I,
    terms: Option<Terms>,
) -> SubmitAsync<R> {
    let task = |task| SubmitAsync { state: State::Task(task) };
    let terms = match pool::begin(core, terms) {
        Ok(terms) => terms,
        Err(error) => return task(Task::failed(core, error)),
    };
    let input = match codec::encode(input, core.policy.max_payload) {
        Ok(input) => input,
        Err(error) => return task(Task::failed(core, encode_error(error))),
    };
    match core.take_place_now() {
        Some(pass) => task(pool::hand_over(core, named, input, pass, terms)),
        None => SubmitAsync {
            state: State::Waiting(Waiting {
                admission: Admission::new(core.clone()),
                named,
                input: Some(input),
                terms,
            }),
        },
    }
}

impl<E, S, W> Pool<E, S, W> {
    /// As [`submit`](Self::submit), if there is room at once. Never blocks.
    ///
    /// # Errors
    ///
    /// [`TrySubmitError::Full`] when the pool's [queue limit](crate::Builder::queue_limit) is reached, or others wait for
    /// room already. [`TrySubmitError::Closed`] when the pool takes no more tasks. Everything else is the task's
    /// outcome, as with [`submit`](Self::submit).
    ///
    /// # Panics
    ///
    /// As [`submit`](Self::submit).
    pub fn try_submit<I, R>(&self, f: impl Fn(I) -> R + TaskFn, input: &I) -> Result<Task<R>, TrySubmitError>
    where
        I: Payload,
        R: Payload,
    {
        let named = context::plain_task(&f);
        try_start(self.handle().core(), named, input, None)
    }

    /// As [`try_submit`](Self::try_submit), with the worker and the input in place.
    ///
    /// # Errors
    ///
    /// As [`try_submit`](Self::try_submit).
    pub fn try_submit_with<I, R>(
        &self,
        f: impl Fn(&Worker<E, S, W>, &View<I>) -> R + TaskFn,
        input: &I,
    ) -> Result<Task<R>, TrySubmitError>
    where
        I: Input + ?Sized,
        R: Payload,
    {
        let named = context::context_task::<_, E, S, W, I, R>(&f);
        try_start(self.handle().core(), named, input, None)
    }

    /// As [`submit`](Self::submit), for async code: where that would block, the future waits.
    ///
    /// The input is encoded at once and not borrowed. If there is room the task is submitted at once too; otherwise the
    /// future stands in line from when it is first polled.
    ///
    /// ```
    /// # futures::executor::block_on(async {
    /// let pool = forkring::Pool::builder().workers(1).queue_limit(2).build()?;
    /// let squares = (0..10_u64).map(|n| pool.submit_async(|n: u64| n * n, &n));
    /// let sum: u64 = futures::future::try_join_all(squares).await?.into_iter().sum();
    /// assert_eq!(sum, 285);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Panics
    ///
    /// As [`submit`](Self::submit).
    pub fn submit_async<I, R>(&self, f: impl Fn(I) -> R + TaskFn, input: &I) -> SubmitAsync<R>
    where
        I: Payload,
        R: Payload,
    {
        let named = context::plain_task(&f);
        start_async(self.handle().core(), named, input, None)
    }

    /// As [`submit_async`](Self::submit_async), with the worker and the input in place.
    pub fn submit_async_with<I, R>(
        &self,
        f: impl Fn(&Worker<E, S, W>, &View<I>) -> R + TaskFn,
        input: &I,
    ) -> SubmitAsync<R>
    where
        I: Input + ?Sized,
        R: Payload,
    {
        let named = context::context_task::<_, E, S, W, I, R>(&f);
        start_async(self.handle().core(), named, input, None)
    }

    /// Waits for room for one task and keeps it: await the result, or [`wait`](Reserve::wait) for it. The room belongs
    /// to the [`Permit`] until that is used or dropped.
    ///
    /// A pool that takes no more tasks, or is closed meanwhile, gives a permit at once; what is submitted with it ends
    /// with the error that says so.
    ///
    /// ```
    /// # futures::executor::block_on(async {
    /// let pool = forkring::Pool::builder().workers(1).queue_limit(10).build()?;
    /// let permit = pool.reserve().await;
    /// let input = vec![1_u64, 2, 3]; // made only when there is room for it
    /// assert_eq!(permit.submit(|v: Vec<u64>| v.iter().sum::<u64>(), &input).await?, 6);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn reserve(&self) -> Reserve<E, S, W> {
        Reserve {
            admission: Admission::new(self.handle().core().clone()),
            handle: self.handle().clone(),
            _types: PhantomData,
        }
    }

    /// Room for one task, if there is some at once. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`try_submit`](Self::try_submit).
    pub fn try_reserve(&self) -> Result<Permit<E, S, W>, TrySubmitError> {
        let core = self.handle().core();
        let pass = if core.is_here() { Ok(core.try_take_place()?) } else { Err(TaskError::NotInThisProcess) };
        Ok(Permit::new(self.handle().clone(), pass))
    }
}

/// A task on its way: first it waits for room in the pool, then for its result. See [`Pool::submit_async`].
///
/// Dropping it gives up its position in line, and cancels a task that has been submitted but has not started. Like
/// [`Task`], it does not keep the pool alive.
///
/// # Panics
///
/// Polling it again after it was ready panics.
#[must_use = "dropping it cancels the task if it has not started"]
pub struct SubmitAsync<R> {
    state: State<R>,
}

enum State<R> {
    Waiting(Waiting),
    Task(Task<R>),
}

struct Waiting {
    admission: Admission,
    named: Named,
    input: Option<Encoded>,
    terms: Option<Terms>,
}

impl<R> fmt::Debug for SubmitAsync<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("SubmitAsync");
        match &self.state {
            State::Waiting(_) => debug.finish_non_exhaustive(),
            State::Task(task) => debug.field("task", task).finish(),
        }
    }
}

impl<R: Payload> Future for SubmitAsync<R> {
    type Output = Result<R, TaskError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            let Waiting { admission, named, input, terms } = match &mut this.state {
                State::Task(task) => return Pin::new(task).poll(context),
                State::Waiting(waiting) => waiting,
            };
            let expired = || terms.and_then(|terms| terms.expired());
            let task = if !admission.core().is_here() {
                Task::failed(admission.core(), TaskError::NotInThisProcess)
            } else if let Some(limit) = expired() {
                Task::failed(admission.core(), TaskError::TimedOut { limit })
            } else {
                let due = terms.and_then(|terms| terms.due);
                let Poll::Ready(admitted) = admission.poll(context.waker(), due) else {
                    // The alarm may have called the waker before this one.
                    if expired().is_some() {
                        continue;
                    }
                    return Poll::Pending;
                };
                match (admitted, input.take()) {
                    (Ok(pass), Some(input)) => pool::hand_over(admission.core(), *named, input, pass, *terms),
                    (Ok(pass), None) => {
                        admission.core().give_back_place(pass);
                        Task::failed(admission.core(), TaskError::Cancelled)
                    }
                    (Err(error), _) => Task::failed(admission.core(), error),
                }
            };
            this.state = State::Task(task);
        }
    }
}

/// A future of room for one task. See [`Pool::reserve`]. It counts as a handle of the pool. Dropping it gives up its
/// position in line.
///
/// Awaiting is cancellation-safe only through a reference: a `Reserve` that is dropped starts at the end of the line
/// when it is made again.
#[must_use = "a future does nothing until it is polled; use .wait() to block"]
pub struct Reserve<E = (), S = NoService, W = ()> {
    admission: Admission,
    handle: Handle,
    _types: Types<E, S, W>,
}

impl<E, S, W> fmt::Debug for Reserve<E, S, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reserve").field("admission", &self.admission).finish_non_exhaustive()
    }
}

impl<E, S, W> Reserve<E, S, W> {
    /// Blocks until there is room, as [`Pool::submit`] does.
    pub fn wait(self) -> Permit<E, S, W> {
        let Self { admission, handle, _types } = self;
        // It may have been admitted since it was polled, and this thread must not wait for its own place.
        drop(admission);
        let core = handle.core();
        let pass = if core.is_here() { core.take_place(None) } else { Err(TaskError::NotInThisProcess) };
        Permit::new(handle, pass)
    }
}

impl<E, S, W> Future for Reserve<E, S, W> {
    type Output = Permit<E, S, W>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let pass = if this.handle.core().is_here() {
            let Poll::Ready(admitted) = this.admission.poll(context.waker(), None) else {
                return Poll::Pending;
            };
            admitted
        } else {
            Err(TaskError::NotInThisProcess)
        };
        Poll::Ready(Permit::new(this.handle.clone(), pass))
    }
}

/// Room for one task in a pool with a [queue limit](crate::Builder::queue_limit). See [`Pool::reserve`].
///
/// Dropping it gives the room back. It counts as a handle of the pool.
#[must_use = "room that is not used keeps others waiting; drop the permit to give it back"]
pub struct Permit<E = (), S = NoService, W = ()> {
    room: Room,
    _types: Types<E, S, W>,
}

struct Room {
    handle: Handle,
    /// Or why nothing can be submitted.
    pass: Result<Pass, TaskError>,
}

impl Drop for Room {
    fn drop(&mut self) {
        let core = self.handle.core();
        if core.is_here()
            && let Ok(pass) = std::mem::replace(&mut self.pass, Ok(Pass::free()))
        {
            core.give_back_place(pass);
        }
    }
}

impl<E, S, W> fmt::Debug for Permit<E, S, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("handle", &self.room.handle).finish_non_exhaustive()
    }
}

impl<E, S, W> Permit<E, S, W> {
    fn new(handle: Handle, pass: Result<Pass, TaskError>) -> Self {
        Self { room: Room { handle, pass }, _types: PhantomData }
    }

    /// As [`Pool::submit`], without waiting. If the input cannot be encoded the room is given back.
    ///
    /// # Panics
    ///
    /// As [`Pool::submit`]; the room is given back.
    pub fn submit<I, R>(self, f: impl Fn(I) -> R + TaskFn, input: &I) -> Task<R>
    where
        I: Payload,
        R: Payload,
    {
        let named = context::plain_task(&f);
        self.start(named, input)
    }

    /// As [`Pool::submit_with`], without waiting. If the input cannot be encoded the room is given back.
    ///
    /// # Panics
    ///
    /// As [`Pool::submit`]; the room is given back.
    pub fn submit_with<I, R>(self, f: impl Fn(&Worker<E, S, W>, &View<I>) -> R + TaskFn, input: &I) -> Task<R>
    where
        I: Input + ?Sized,
        R: Payload,
    {
        let named = context::context_task::<_, E, S, W, I, R>(&f);
        self.start(named, input)
    }

    pub(crate) fn start<I: Input + ?Sized, R>(mut self, named: Named, input: &I) -> Task<R> {
        if !self.room.handle.core().is_here() {
            return Task::failed(self.room.handle.core(), TaskError::NotInThisProcess);
        }
        let encoded = codec::encode(input, self.room.handle.core().policy.max_payload);
        match (encoded, std::mem::replace(&mut self.room.pass, Ok(Pass::free()))) {
            (Ok(input), Ok(pass)) => pool::hand_over(self.room.handle.core(), named, input, pass, None),
            (Ok(_), Err(error)) => Task::failed(self.room.handle.core(), error),
            (Err(error), pass) => {
                self.room.pass = pass;
                Task::failed(self.room.handle.core(), encode_error(error))
            }
        }
    }
}
