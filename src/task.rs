//! [`Task`]: the handle of one submitted task.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::error::{CodecError, Panicked, TaskError};
use crate::life::core::Core;
use crate::life::job::{Job, Outcome};
use crate::life::service::nested_poll;
use crate::life::verdict::Why;
use crate::memory::codec::{self, AlignedBytes, Encoded, OwnedArchive, Payload};
use crate::panics::{self, Caught};
use crate::protocol::lane::SmallReply;
use crate::protocol::records::{Panic, sizes_from_bytes};
use crate::protocol::wire::{RESPONSE_INLINE_BYTES, Status};

/// One submitted task: a future of its outcome, on any runtime or on none.
///
/// Every task ends with exactly one outcome. Dropping the handle cancels the task if it has not started; one that is
/// running goes on, can see that it is cancelled ([`Worker::cancelled`](crate::Worker::cancelled)), and its result is
/// thrown away.
///
/// Awaiting is cancellation-safe: a `Task` that is polled through a reference (`&mut task`) and abandoned in between
/// loses nothing.
///
/// Wakers are called by whichever thread finds the result, most often the pool's own. As a [log hook](crate::hooks), one must not block:
/// time limits, deaths and other futures would wait for it. Those of executors do not; a [`Wake`](std::task::Wake) of one's own should
/// send what takes time to another thread.
///
/// Polling it again after it has ended is an error of the caller's, and panics, as with other futures.
///
/// ```
/// use forkring::Pool;
///
/// let pool = Pool::new(1)?;
/// let task = pool.submit(|n: u64| n * n, &12);
/// assert_eq!(futures::executor::block_on(task)?, 144);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping a Task cancels it if it has not started; use .detach() to let it run"]
pub struct Task<R> {
    /// `None`: the outcome has been taken.
    job: Option<&'static Job>,
    _result: PhantomData<Box<R>>,
}

// Tasks are kept by the million.
const _: () = assert!(size_of::<Task<u64>>() == 8);

impl<R> fmt::Debug for Task<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("job", &self.job).finish()
    }
}

/// Names a task within this process. Ids are unique among the tasks that exist at one time.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct TaskId(usize, u64);

impl TaskId {
    pub(crate) fn of(job: &'static Job) -> Self {
        Self(std::ptr::from_ref(job).addr(), job.generation())
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{}", self.0, self.1)
    }
}

/// As it is shown: one task has one name in all logs.
impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({self})")
    }
}

impl<R> Task<R> {
    #[inline]
    pub(crate) fn submitted(job: &'static Job) -> Self {
        Self { job: Some(job), _result: PhantomData }
    }

    /// One that never got as far as a worker.
    #[cold]
    pub(crate) fn failed(core: &Arc<Core>, error: TaskError) -> Self {
        Self::submitted(Job::failed(core, error))
    }

    /// The job, if the handle is used in the process that it belongs to.
    #[inline]
    fn job(&self) -> Option<&'static Job> {
        self.job.filter(|job| job.core().is_here())
    }

    /// Whether the outcome is there. Once true, it stays true.
    pub fn is_finished(&self) -> bool {
        self.job().is_none_or(Job::is_done)
    }

    /// Cancels the task. `true`: it had not started and never will; it ends with [`TaskError::Cancelled`]. `false`: it
    /// is running, and can see that it is cancelled, or it is over. A worker that takes it at this very moment may see the cancellation
    /// and leave it: then it ends with `Cancelled` too, and has not run.
    pub fn cancel(&self) -> bool {
        self.job().is_some_and(|job| cancel(job.core(), job, job.generation()))
    }

    /// Ends the task, if it is running by killing its worker: it ends with [`TaskError::Cancelled`]. Other tasks are not
    /// touched: what the worker had not started runs elsewhere. A result that is there already stays.
    ///
    /// ```
    /// let pool = forkring::Pool::new(1)?;
    /// let endless = pool.submit(|_: ()| loop { std::hint::spin_loop() }, &());
    /// endless.kill();
    /// assert!(endless.wait().map(|()| ()).unwrap_err().is_cancelled());
    /// assert_eq!(pool.submit(|n: u32| n + 1, &1).wait()?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn kill(&self) {
        if let Some(job) = self.job() {
            kill(job.core(), job, job.generation());
        }
    }

    /// Lets the task run to its end without a handle. A failure goes to the log hook.
    pub fn detach(mut self) {
        match self.job.take() {
            Some(job) if job.core().is_here() => drop(job.abandon(true)),
            job => job.into_iter().for_each(Job::discard),
        }
    }

    /// A handle that can watch and cancel the task while somebody else waits for it.
    pub fn handle(&self) -> TaskHandle {
        TaskHandle { job: self.job.map(|job| (job, job.generation(), job.core().clone())) }
    }

    /// The task's name. It goes with the outcome: once that was taken, by [`wait_timeout`](Self::wait_timeout) or by a poll,
    /// this is [`TaskId::default`].
    pub fn id(&self) -> TaskId {
        self.job.map_or(TaskId::default(), TaskId::of)
    }

    /// Blocks until the outcome is there and takes it.
    fn block(&mut self, deadline: Option<Instant>) -> Option<Result<Body, TaskError>> {
        if let Some(job) = self.job() {
            // The job's own reference to its pool holds while this handle has the job.
            if !job.core().wait(&job, deadline) {
                return None;
            }
        }
        Some(self.take())
    }

    /// Takes an outcome that is there.
    fn take(&mut self) -> Result<Body, TaskError> {
        let job = self.job.take().expect("a task's outcome was taken already");
        if job.core().is_here() {
            return Body::of(job.take());
        }
        job.discard();
        Err(TaskError::NotInThisProcess)
    }

    fn poll_reply(&mut self, context: &mut Context<'_>) -> Poll<Result<Body, TaskError>> {
        if let Some(job) = self.job()
            && !job.is_done()
            && !job.core().glance(job)
            && job.register(context.waker()).is_pending()
        {
            // Counted on its own: the job may be delivered, and its waker uncounted, while this goes on.
            job.core().add_sleeper();
            job.core().stop_watching();
            job.core().remove_sleeper();
            nested_poll(job.core(), job);
            return Poll::Pending;
        }
        Poll::Ready(self.take())
    }
}

impl<R: Payload> Task<R> {
    /// Takes a result that is there and came in its slot, without a detour through memory.
    #[inline(always)]
    fn take_small(&mut self) -> Option<Result<R, TaskError>> {
        let reply = self.job?.take_value()?;
        self.job = None;
        Some(decode_small(&reply))
    }

    /// Blocks this thread until the task has ended.
    ///
    /// # Errors
    ///
    /// See [`TaskError`].
    #[inline]
    pub fn wait(mut self) -> Result<R, TaskError> {
        if let Some(job) = self.job() {
            if !job.is_done() {
                job.core().wait(&job, None);
            }
            if let Some(result) = self.take_small() {
                // Nothing is left to drop.
                std::mem::forget(self);
                return result;
            }
        }
        self.take_any()
    }

    #[inline(never)]
    fn take_any(mut self) -> Result<R, TaskError> {
        self.take()?.decode()
    }

    /// Waits no longer than `limit`. `None`: the task goes on; waiting is not killing. A zero limit takes what is
    /// there.
    ///
    /// # Panics
    ///
    /// If the outcome was taken by an earlier call.
    pub fn wait_timeout(&mut self, limit: Duration) -> Option<Result<R, TaskError>> {
        let deadline = Instant::now().checked_add(limit);
        Some(self.block(deadline)?.and_then(Body::decode))
    }

    /// Leaves the result in the form in which it arrives, validated and never deserialized.
    ///
    /// ```
    /// let pool = forkring::Pool::new(1)?;
    /// let words = pool.submit(|text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>(), &"a b".into());
    /// let archived = words.archived().wait()?;
    /// assert_eq!(archived.len(), 2);
    /// assert_eq!(archived[1], "b");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn archived(self) -> ArchivedTask<R> {
        ArchivedTask(self)
    }
}

impl<R: Payload> Future for Task<R> {
    type Output = Result<R, TaskError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let task = self.get_mut();
        if task.job().is_some_and(Job::is_done)
            && let Some(result) = task.take_small()
        {
            return Poll::Ready(result);
        }
        task.poll_reply(context).map(|reply| reply?.decode())
    }
}

impl<R> Drop for Task<R> {
    fn drop(&mut self) {
        let Some(job) = self.job else { return };
        if !job.core().is_here() {
            return job.discard();
        }
        let kill_on_drop = job.is_killed_on_drop();
        if job.is_done() {
            drop(job.take());
            return;
        }
        // Once abandoned, the cell may be somebody else's, so what is needed of it is taken before.
        let (core, generation) = (job.core().clone(), job.generation());
        if job.abandon(false) {
            if kill_on_drop {
                kill(&core, job, generation);
            } else {
                cancel(&core, job, generation);
            }
        }
    }
}

fn cancel(core: &Core, job: &'static Job, generation: u64) -> bool {
    core.call_off(job, generation, &TaskError::Cancelled)
}

fn kill(core: &Core, job: &'static Job, generation: u64) {
    core.kill(job, generation, &TaskError::Cancelled, Why::Killed);
}

/// A task whose result is left in its archived form. See [`Task::archived`].
#[derive(Debug)]
#[must_use = "dropping it cancels the task if it has not started"]
pub struct ArchivedTask<R>(Task<R>);

impl<R: Payload> ArchivedTask<R> {
    /// Blocks this thread until the task has ended.
    ///
    /// # Errors
    ///
    /// See [`TaskError`].
    pub fn wait(mut self) -> Result<OwnedArchive<R>, TaskError> {
        let reply = self.0.block(None).expect("a wait without a limit ends with an outcome");
        archive_of(reply?)
    }
}

impl<R: Payload> Future for ArchivedTask<R> {
    type Output = Result<OwnedArchive<R>, TaskError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().0.poll_reply(context).map(|reply| archive_of(reply?))
    }
}

/// Watches, cancels and kills a task while somebody else waits for it.
#[derive(Clone, Debug)]
pub struct TaskHandle {
    job: Option<(&'static Job, u64, Arc<Core>)>,
}

impl TaskHandle {
    /// Whether the task is over, or its outcome has been taken. Once true, it stays true.
    pub fn is_finished(&self) -> bool {
        match &self.job {
            Some((job, generation, core)) if core.is_here() => job.is_over(*generation),
            _ => true,
        }
    }

    /// As [`Task::cancel`].
    pub fn cancel(&self) -> bool {
        match &self.job {
            Some((job, generation, core)) if core.is_here() => cancel(core, job, *generation),
            _ => false,
        }
    }

    /// As [`Task::kill`].
    pub fn kill(&self) {
        if let Some((job, generation, core)) = &self.job
            && core.is_here()
        {
            kill(core, job, *generation);
        }
    }
}

/// The result that a job has ended with, in whichever form it came.
enum Body {
    Small(SmallReply),
    Other(Encoded),
}

impl Body {
    fn of(outcome: Outcome) -> Result<Self, TaskError> {
        match outcome {
            Outcome::Small(reply) => Ok(Self::Small(reply)),
            Outcome::Reply(reply) => match failure_of(reply.status, reply.body.as_bytes()) {
                None => Ok(Self::Other(reply.body)),
                Some(error) => Err(error),
            },
            Outcome::Failed(error) => Err(error),
            Outcome::BatchDone(_) => {
                Err(TaskError::Decode(CodecError::new("the end of a batch in the place of a value")))
            }
            Outcome::BatchLost(lost) => Err(lost.1.unwrap_or(TaskError::Cancelled)),
        }
    }

    #[inline]
    fn decode<R: Payload>(self) -> Result<R, TaskError> {
        match self {
            Self::Small(reply) => decode_small(&reply),
            Self::Other(body) => decode(body),
        }
    }

    fn into_aligned(self) -> AlignedBytes {
        match self {
            Self::Small(reply) => AlignedBytes::from(&reply.bytes()[..usize::from(reply.len)]),
            Self::Other(body) => body.into_aligned(),
        }
    }
}

/// Takes the outcome of a job that is done.
#[inline]
pub(crate) fn take_result<R: Payload>(job: &'static Job) -> Result<R, TaskError> {
    match job.take_value() {
        Some(reply) => decode_small(&reply),
        None => Body::of(job.take())?.decode(),
    }
}

/// The error that a status stands for, if it does.
#[inline]
pub(crate) fn failure_of(status: Status, bytes: &[u8]) -> Option<TaskError> {
    match status {
        Status::Value | Status::SizedValue | Status::BatchDone | Status::BatchCut => None,
        status => Some(error_of(status, bytes)),
    }
}

/// The error that a status other than a value stands for.
#[cold]
pub(crate) fn error_of(status: Status, bytes: &[u8]) -> TaskError {
    let text = || CodecError::new(String::from_utf8_lossy(bytes));
    match status {
        Status::Panicked => {
            let panic = Panic::from_bytes(bytes);
            TaskError::Panicked(Panicked::new(&panic.message, &panic.location))
        }
        Status::Encode => TaskError::Encode(text()),
        Status::Memory => TaskError::Encode(CodecError::new(format_args!(
            "no shared memory for the result: {}",
            String::from_utf8_lossy(bytes)
        ))),
        Status::TooLarge => {
            let (size, limit) = sizes_from_bytes(bytes);
            TaskError::TooLarge { size, limit }
        }
        Status::Decode => TaskError::Decode(text()),
        Status::UnknownTask => TaskError::UnknownTask,
        Status::Skipped => TaskError::Cancelled,
        Status::Value | Status::SizedValue | Status::BatchDone | Status::BatchCut => {
            TaskError::Decode(CodecError::new("a value in the place of an error"))
        }
    }
}

/// As [`decode`], of a result that came in its slot.
#[inline(always)]
pub(crate) fn decode_small<R: Payload>(reply: &SmallReply) -> Result<R, TaskError> {
    let mut aligned = Aligned([0; codec::INLINE_MAX]);
    aligned.0[..RESPONSE_INLINE_BYTES].copy_from_slice(&reply.bytes());
    let bytes = &aligned.0[..usize::from(reply.len)];
    if codec::plain_size::<R>().is_some() {
        return codec::decode(bytes).map_err(TaskError::Decode);
    }
    decode_aligned(bytes)
}

/// Brings a result back. User code: a panic of its deserializer is an error of this task.
#[inline]
pub(crate) fn decode<R: Payload>(body: Encoded) -> Result<R, TaskError> {
    match body {
        Encoded::Inline { len, bytes } if codec::plain_size::<R>().is_some() => {
            codec::decode(&bytes[..usize::from(len)]).map_err(TaskError::Decode)
        }
        Encoded::Inline { len, bytes } => {
            let aligned = Aligned(bytes);
            decode_aligned(&aligned.0[..usize::from(len)])
        }
        Encoded::Heap(bytes) => decode_aligned(&bytes),
        // Not what a task of this type answers, unless the worker's memory is spoilt.
        Encoded::Elements(elements) => elements.into_value().map_err(TaskError::Decode),
    }
}

/// As [`decode`], of bytes whose start is aligned for any view.
pub(crate) fn decode_aligned<R: Payload>(bytes: &[u8]) -> Result<R, TaskError> {
    match panics::guard(|| codec::decode(bytes)) {
        Ok(decoded) => decoded.map_err(TaskError::Decode),
        Err(Caught { message, .. }) => {
            Err(TaskError::Decode(CodecError::new(format_args!("deserializing panicked: {message}"))))
        }
    }
}

/// Inline bytes where any view may read them.
#[repr(align(64))]
struct Aligned([u8; codec::INLINE_MAX]);

fn archive_of<R: Payload>(body: Body) -> Result<OwnedArchive<R>, TaskError> {
    OwnedArchive::new(body.into_aligned()).map_err(TaskError::Decode)
}
