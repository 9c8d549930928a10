//! What can go wrong: [`TaskError`] for one task, [`Error`] for building pools and running streams.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::timings::Short;

/// A value could not be turned into bytes, or bytes could not be turned into the value.
///
/// The text is the one of the codec, for example the path to the field that failed validation; 2 KiB of it at most.
#[derive(Clone, Debug)]
pub struct CodecError {
    message: Arc<str>,
}

impl CodecError {
    pub(crate) fn new(message: impl fmt::Display) -> Self {
        const BYTES_MAX: usize = 2 << 10;
        let mut text = message.to_string();
        // An archive that nests too deep names each of its steps.
        if text.len() > BYTES_MAX {
            text.truncate(text.floor_char_boundary(BYTES_MAX));
            text.push('…');
        }
        Self { message: Arc::from(text) }
    }

    /// The codec's own words.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CodecError {}

/// Why one task has no result. A task that returns `Result<T, E>` comes back as `Ok(Result<T, E>)`: what is in here
/// is never the task's own error.
///
/// ```
/// use forkring::{Pool, TaskError};
///
/// let pool = Pool::new(1)?;
/// let outcome = pool.submit(|n: u32| if n > 2 { panic!("{n} is too many") } else { n }, &3).wait();
/// match outcome {
///     Err(TaskError::Panicked(panic)) => assert_eq!(panic.message(), "3 is too many"),
///     other => unreachable!("{other:?}"),
/// }
/// # Ok::<(), forkring::Error>(())
/// ```
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum TaskError {
    /// The task panicked. Its worker lives on.
    Panicked(Panicked),
    /// The worker process died while it ran this task, which may have had effects.
    WorkerLost(WorkerLost),
    /// The task or its deadline ran out of time.
    TimedOut {
        /// The limit that was in force.
        limit: Duration,
    },
    /// The task was cancelled, or killed on request.
    Cancelled,
    /// The pool was terminated, or its last handle dropped, before the task ended.
    Terminated,
    /// The task was submitted after the pool had been closed.
    Closed,
    /// The pool can run nothing any more.
    PoolFailed(PoolFailure),
    /// The input or the result could not be turned into bytes.
    Encode(CodecError),
    /// The input or the result could not be read from its bytes.
    Decode(CodecError),
    /// The input or the result is larger than the pool's `max_payload`. An input is refused before the task is sent, so the
    /// [`Task`](crate::Task) has ended as soon as it is there; a result is measured in the worker, when the task has run.
    TooLarge {
        /// Bytes that the value takes.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The workers do not have the task's code, for example because its library was loaded after the pool was built.
    UnknownTask,
    /// The handle belongs to another process: it was inherited by a worker or by a fork of the program.
    NotInThisProcess,
}

macro_rules! predicates {
    ($($(#[$doc:meta])* $name:ident => $pattern:pat,)+) => {
        impl TaskError {
            $($(#[$doc])* pub fn $name(&self) -> bool { matches!(self, $pattern) })+
        }
    };
}

predicates! {
    /// Whether this is [`TaskError::Panicked`].
    is_panicked => Self::Panicked(_),
    /// Whether this is [`TaskError::WorkerLost`].
    is_worker_lost => Self::WorkerLost(_),
    /// Whether this is [`TaskError::TimedOut`].
    is_timed_out => Self::TimedOut { .. },
    /// Whether this is [`TaskError::Cancelled`].
    is_cancelled => Self::Cancelled,
    /// Whether this is [`TaskError::Terminated`].
    is_terminated => Self::Terminated,
    /// Whether this is [`TaskError::Closed`].
    is_closed => Self::Closed,
    /// Whether this is [`TaskError::PoolFailed`].
    is_pool_failed => Self::PoolFailed(_),
    /// Whether this is [`TaskError::Encode`].
    is_encode => Self::Encode(_),
    /// Whether this is [`TaskError::Decode`].
    is_decode => Self::Decode(_),
    /// Whether this is [`TaskError::TooLarge`].
    is_too_large => Self::TooLarge { .. },
    /// Whether this is [`TaskError::UnknownTask`].
    is_unknown_task => Self::UnknownTask,
    /// Whether this is [`TaskError::NotInThisProcess`].
    is_not_in_this_process => Self::NotInThisProcess,
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(panic) => panic.fmt(f),
            Self::WorkerLost(lost) => lost.fmt(f),
            Self::TimedOut { limit } => write!(f, "the task ran out of its time limit of {limit:?}"),
            Self::Cancelled => f.write_str("the task was cancelled"),
            Self::Terminated => f.write_str(
                "the pool was terminated, or its last handle dropped, before the task ended; close() lets tasks finish",
            ),
            Self::Closed => f.write_str("the pool is closed; submit before close()"),
            Self::PoolFailed(failure) => write!(f, "the pool has failed: {failure}"),
            Self::Encode(error) => write!(f, "a value could not be encoded: {error}"),
            Self::Decode(error) => write!(f, "a value could not be decoded: {error}"),
            Self::TooLarge { size, limit } => {
                write!(
                    f,
                    "the input or the result takes {size} bytes and max_payload allows {limit}; raise \
                     Builder::max_payload, or send it in parts"
                )
            }
            Self::UnknownTask => f.write_str(
                "the workers do not have this function; load its library before the pool is built",
            ),
            Self::NotInThisProcess => f.write_str(
                "this handle belongs to another process; build a pool in the process that uses it",
            ),
        }
    }
}

impl TaskError {
    /// The same, seen from an item that was started so many times.
    pub(crate) fn after_attempts(mut self, attempts: u32) -> Self {
        if let Self::WorkerLost(lost) = &mut self {
            Arc::make_mut(&mut lost.inner).attempts = attempts;
        }
        self
    }
}

impl std::error::Error for TaskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Encode(error) | Self::Decode(error) => Some(error),
            _ => None,
        }
    }
}

/// A panic in a task.
#[derive(Clone, Debug)]
pub struct Panicked {
    message: Arc<str>,
    location: Arc<str>,
}

impl Panicked {
    pub(crate) fn new(message: &str, location: &str) -> Self {
        Self { message: message.into(), location: location.into() }
    }

    /// The panic's message, 1 MiB of it at most, or a stand-in where the payload was not a string.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Where the task panicked, as `file:line:column`; empty where that is not known.
    pub fn location(&self) -> &str {
        &self.location
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the task panicked: {}", self.message)?;
        if self.location.is_empty() { Ok(()) } else { write!(f, " (at {})", self.location) }
    }
}

/// The death of a worker process, seen from the task that it was running.
#[derive(Clone, Debug)]
pub struct WorkerLost {
    pub(crate) inner: Arc<LostDetails>,
}

#[derive(Clone, Debug)]
pub(crate) struct LostDetails {
    pub(crate) worker: usize,
    pub(crate) generation: u64,
    pub(crate) pid: u32,
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) max_rss_bytes: u64,
    pub(crate) attempts: u32,
    pub(crate) ran_for: Option<Duration>,
    pub(crate) tasks_done: u64,
    pub(crate) cause: Option<Arc<str>>,
    pub(crate) hint: Option<LossHint>,
}

/// What may lie behind the loss of a worker.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossHint {
    /// Memory ran out, by the looks of it: the worker aborted while its address space was limited
    /// ([`Builder::max_address_space`](crate::Builder::max_address_space), or `setrlimit`), or it was killed by SIGKILL
    /// when the kernel had just killed for want of memory, or might have.
    OutOfMemory,
    /// The worker had written something impossible to shared memory and was killed for it.
    Violation(&'static str),
}

impl WorkerLost {
    /// The worker's id, `0 .. workers`.
    pub fn worker(&self) -> usize {
        self.inner.worker
    }

    /// Which process of that worker it was, counted from 0.
    pub fn generation(&self) -> u64 {
        self.inner.generation
    }

    /// The process id that it had.
    pub fn pid(&self) -> u32 {
        self.inner.pid
    }

    /// The exit code, where the process left by itself.
    pub fn exit_code(&self) -> Option<i32> {
        self.inner.exit_code
    }

    /// The signal, where one ended the process. SIGABRT is an abort (`std::process::abort`, a panic within a panic, C's
    /// `abort`, an allocation that failed) or, in Rust, a stack that has overflowed: standard error says which, in the words of
    /// whoever aborted. SIGSEGV is an access to memory that is not the process's; in C, that includes a stack that has
    /// overflowed.
    pub fn signal(&self) -> Option<i32> {
        self.inner.signal
    }

    /// The most memory that the process ever had resident. A forked process starts with its parent's figure.
    pub fn max_rss_bytes(&self) -> u64 {
        self.inner.max_rss_bytes
    }

    /// How many times the task was started in all.
    pub fn attempts(&self) -> u32 {
        self.inner.attempts
    }

    /// How long the task had been running, to within a few milliseconds; in a stream, its batch. `None` if that is not known.
    pub fn ran_for(&self) -> Option<Duration> {
        self.inner.ran_for
    }

    /// How many tasks the process had finished before; a batch of a stream counts as one.
    pub fn tasks_done(&self) -> u64 {
        self.inner.tasks_done
    }

    /// Why the worker left, where it said so: its state could not be made anew after a panic in the item before, in a batch
    /// ([`Builder::state`](crate::Builder::state)).
    pub fn cause(&self) -> Option<&str> {
        self.inner.cause.as_deref()
    }

    /// What may lie behind it.
    pub fn hint(&self) -> Option<LossHint> {
        self.inner.hint
    }
}

impl fmt::Display for WorkerLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LostDetails {
            worker, generation, pid, exit_code, signal, attempts, cause, hint, ran_for, ..
        } = &*self.inner;
        write!(f, "worker {worker} (generation {generation}, pid {pid}) ")?;
        match (exit_code, signal) {
            (Some(code), _) => write!(f, "left with exit code {code}")?,
            (_, Some(signal)) => write!(f, "was ended by {}", signal_name(*signal))?,
            _ => f.write_str("was lost")?,
        }
        match ran_for {
            // The clock has steps of a few milliseconds.
            Some(time) if time.is_zero() => f.write_str(" at the beginning of the task")?,
            Some(time) => write!(f, " after {} of the task", Short(*time))?,
            None => f.write_str(" while it ran the task")?,
        }
        if *attempts > 1 {
            write!(f, " (attempt {attempts})")?;
        }
        cause.iter().try_for_each(|cause| write!(f, ": {cause}"))?;
        match hint {
            Some(LossHint::OutOfMemory) => f.write_str("; out of memory?"),
            Some(LossHint::Violation(what)) => write!(f, "; it broke the protocol: {what}"),
            None if *signal == Some(Signal::SIGABRT as i32) => {
                f.write_str("; an abort, or an overflow of the stack: standard error says which")
            }
            None if *signal == Some(Signal::SIGSEGV as i32) => {
                f.write_str("; memory that is not its own, or an overflow of the stack of a thread in C")
            }
            None => Ok(()),
        }
    }
}

/// A signal's name, as `SIGKILL (9)`.
pub(crate) fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(known) => format!("{} ({signal})", known.as_str()),
        Err(_) => format!("signal {signal}"),
    }
}

/// Why a task was not accepted at once. See [`Pool::try_submit`](crate::Pool::try_submit).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrySubmitError {
    /// As many tasks as [`Builder::queue_limit`](crate::Builder::queue_limit) allows have not started, or others wait
    /// for room.
    Full,
    /// The pool takes no more tasks: it was closed or terminated, or it has failed.
    Closed,
}

impl fmt::Display for TrySubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => {
                "the pool's queue limit is reached; try again later, or use submit(), which waits for room"
            }
            Self::Closed => "the pool takes no more tasks; submit before close()",
        })
    }
}

impl std::error::Error for TrySubmitError {}

/// Why a pool can run nothing any more.
#[derive(Clone, Debug)]
pub struct PoolFailure {
    message: Arc<str>,
}

impl PoolFailure {
    pub(crate) fn new(message: impl fmt::Display) -> Self {
        Self { message: Arc::from(message.to_string()) }
    }

    /// The cause.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for PoolFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PoolFailure {}

/// Any error of the user's, as `init` and `state` may return it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a pool could not be built or a stream could not run.
#[derive(Debug)]
pub struct Error {
    message: String,
    source: Option<BoxError>,
}

impl Error {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    pub(crate) fn caused(message: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self { message: message.into(), source: Some(source.into()) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{}: {source}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(signal: i32, ran_for: Option<Duration>, hint: Option<LossHint>) -> String {
        let inner = LostDetails {
            worker: 1,
            generation: 2,
            pid: 3,
            exit_code: None,
            signal: Some(signal),
            max_rss_bytes: 0,
            attempts: 1,
            ran_for,
            tasks_done: 0,
            cause: None,
            hint,
        };
        TaskError::WorkerLost(WorkerLost { inner: Arc::new(inner) }).to_string()
    }

    #[test]
    fn a_loss_says_when_and_what_may_be_behind_it() {
        let text = lost(9, Some(Duration::from_micros(1_234_567)), None);
        assert_eq!(text, "worker 1 (generation 2, pid 3) was ended by SIGKILL (9) after 1.23s of the task");
        assert!(lost(9, Some(Duration::from_millis(4)), None).ends_with(" after 4ms of the task"));
        assert!(lost(9, Some(Duration::ZERO), None).ends_with(" at the beginning of the task"));
        assert!(lost(9, None, None).ends_with(" while it ran the task"));
        let (abort, segv) = (lost(6, None, None), lost(11, None, None));
        assert!(abort.contains("overflow of the stack: standard error says which"), "{abort}");
        assert!(segv.contains("not its own"), "{segv}");
        let memory = lost(6, None, Some(LossHint::OutOfMemory));
        assert!(memory.ends_with("; out of memory?"), "{memory}");
    }

    #[test]
    fn a_value_that_is_too_large_names_the_way_out() {
        let text = TaskError::TooLarge { size: 10, limit: 5 }.to_string();
        assert!(
            text.contains("input or the result takes 10 bytes") && text.contains("max_payload"),
            "{text}"
        );
    }
}
