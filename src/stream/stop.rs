//! Stopping a stream, from outside ([`Stopper`]) and from inside ([`Flow`]).

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::records::Arrivals;
use crate::error::TaskError;
use crate::life::core::{Core, Phase};
use crate::life::job::Job;

/// Stops a stream, from any thread, also while another one waits for its results. See
/// [`Map::stopper`](super::Map::stopper).
///
/// ```
/// let pool = forkring::Pool::new(2)?;
/// let stream = pool.map(1.., |n: u64| n * n);
/// let stopper = stream.stopper();
/// let mut sum = 0;
/// let summary = stream.unordered().run(|square| {
///     sum += square.unwrap_or(0);
///     if sum > 1000 {
///         stopper.stop();
///     }
/// })?;
/// assert!(summary.stopped);
/// # Ok::<(), forkring::Error>(())
/// ```
#[derive(Clone)]
pub struct Stopper {
    control: Arc<Control>,
}

// As a pool: no code of the user's runs under its locks.
impl std::panic::UnwindSafe for Control {}
impl std::panic::RefUnwindSafe for Control {}

impl Stopper {
    pub(super) fn new(control: Arc<Control>) -> Self {
        Self { control }
    }

    /// Stops the stream: its source is not pulled again. Items that were pulled and have not started are called off,
    /// even if nobody looks at the stream for the moment, and end with [`TaskError::Cancelled`]. Those that are running
    /// go on, can see that they are cancelled ([`Worker::cancelled`](crate::Worker::cancelled)), and their results are
    /// delivered; of a batch, the items behind the one that is running are called off. Then the stream ends.
    ///
    /// Never waits for a task. Has no effect on a stream that is over or stopped already, nor in another process than
    /// the pool's.
    pub fn stop(&self) {
        self.control.stop();
    }
}

impl fmt::Debug for Stopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopper").field("stopped", &self.control.is_stopped()).finish()
    }
}

/// What a stream and its stoppers share. It keeps no pool alive.
pub(super) struct Control {
    core: Arc<Core>,
    pub(super) arrivals: Arc<Arrivals>,
    stopped: AtomicBool,
    /// Whether there is a stopper, which needs to know the jobs.
    watched: AtomicBool,
    /// For each slot of the window, its latest message.
    messages: Mutex<Vec<Option<Message>>>,
}

/// A message that was sent.
#[derive(Clone, Copy)]
pub(super) struct Message {
    /// Index of its first item in the stream.
    pub(super) first: u64,
    pub(super) job: &'static Job,
    /// Tells whether the cell still is that job.
    pub(super) generation: u64,
}

impl Message {
    #[inline]
    pub(super) fn of(first: u64, job: &'static Job) -> Self {
        Self { first, job, generation: job.generation() }
    }

    /// Nobody wants its results: what was sent, unless it is over.
    pub(super) fn abandon(first: u64, job: &'static Job) -> Option<Self> {
        // Once abandoned, the cell may be somebody else's.
        let message = Self::of(first, job);
        job.abandon(false).then_some(message)
    }
}

/// Calls messages off, the youngest first: a worker whose task ends because it sees that it is cancelled then finds
/// nothing to go on with.
pub(super) fn call_off(core: &Core, mut messages: Vec<Message>) {
    messages.sort_unstable_by_key(|message| std::cmp::Reverse(message.first));
    for Message { job, generation, .. } in messages {
        core.call_off(job, generation, &TaskError::Cancelled);
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("stopped", &self.stopped)
            .field("watched", &self.watched)
            .finish_non_exhaustive()
    }
}

impl Control {
    pub(super) fn new(core: Arc<Core>) -> Self {
        let arrivals = Arc::<Arrivals>::default();
        core.listen(arrivals.clone());
        Self {
            core,
            arrivals,
            stopped: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            messages: Mutex::new(Vec::new()),
        }
    }

    #[inline]
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Whether the source is not to be pulled again: the stream was stopped, or its pool takes nothing more.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.is_stopped() || self.core.phase() >= Phase::Closing
    }

    #[inline]
    pub(super) fn is_watched(&self) -> bool {
        // Set by whoever has the stream, who alone asks.
        self.watched.load(Ordering::Relaxed)
    }

    pub(super) fn watch(&self) {
        self.watched.store(true, Ordering::Relaxed);
    }

    /// This slot has this message. Called after it was sent: either the stopper finds it in the list, or it is called
    /// off here.
    pub(super) fn note(&self, at: usize, message: Message) {
        let stopped = {
            let mut messages = self.messages.lock();
            if messages.len() <= at {
                messages.resize(at + 1, None);
            }
            messages[at] = Some(message);
            self.is_stopped()
        };
        if stopped {
            call_off(&self.core, vec![message]);
        }
    }

    pub(super) fn stop(&self) {
        // In a fork of the program, the locks may be held by threads that do not exist there.
        if !self.core.is_here() {
            return;
        }
        let messages = {
            let mut messages = self.messages.lock();
            if self.stopped.swap(true, Ordering::AcqRel) {
                return;
            }
            std::mem::take(&mut *messages)
        };
        // Whoever pulls from the source looks for arrivals only.
        self.arrivals.poke();
        call_off(&self.core, messages.into_iter().flatten().collect());
        self.arrivals.poke();
    }
}

/// What the function that takes a stream's results may return: `()` to go on, or a [`ControlFlow`] that says whether
/// to.
///
/// ```
/// use std::ops::ControlFlow;
///
/// let pool = forkring::Pool::new(2)?;
/// let mut found = None;
/// let summary = pool.iter_stream(1.., |n: u64| (n % 91 == 0).then_some(n), |result| match result {
///     Ok(Some(n)) => {
///         found = Some(n);
///         ControlFlow::Break(())
///     }
///     _ => ControlFlow::Continue(()),
/// })?;
/// assert!(summary.stopped);
/// assert_eq!(found.map(|n| n % 91), Some(0));
/// # Ok::<(), forkring::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "the function that takes a stream's results returns `()` or `ControlFlow<()>`, not `{Self}`",
    label = "returns `{Self}`"
)]
pub trait Flow: sealed::Answer {}

mod sealed {
    pub trait Answer {
        /// Whether the stream is to stop.
        fn stops(self) -> bool;
    }

    /// What a function pointer returns: a way to name the type `!`.
    pub trait Returns {
        type Output;
    }

    impl<T> Returns for fn() -> T {
        type Output = T;
    }
}

pub(super) use sealed::Answer;

impl Flow for () {}
impl Answer for () {
    #[inline]
    fn stops(self) -> bool {
        false
    }
}

impl Flow for ControlFlow<()> {}
impl Answer for ControlFlow<()> {
    #[inline]
    fn stops(self) -> bool {
        self.is_break()
    }
}

/// The type of a closure's body that does nothing but panic.
type Never = <fn() -> ! as sealed::Returns>::Output;

impl Flow for Never {}
impl Answer for Never {
    fn stops(self) -> bool {
        self
    }
}
