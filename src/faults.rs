//! Kill points: numbered places in the worker and in the zygote at which a test lets the process die.
//!
//! Without `--cfg forkring_faults` a [`point`] is nothing at all. With it, a test arms one of them for its `n`-th
//! passage, in whatever process that is, and the process that gets there sends itself SIGKILL before its next step.
//! `tests/faults` goes through all of them and checks after each death what DESIGN.md promises.
//!
//! A point stands *between* two steps that another process can tell apart. Recovery must be right for a death at any
//! of them, so a step that is added to a path deserves a point of its own.

#[cfg(forkring_faults)]
mod armed;
#[cfg(forkring_faults)]
pub mod fuzz;
#[cfg(forkring_faults)]
pub mod scribble;

#[cfg(forkring_faults)]
pub use armed::{arm, deaths, disarm, victim};

#[cfg(forkring_faults)]
pub(crate) use armed::{point, prepare};

/// Declares the points, in the order in which a process comes by.
macro_rules! points {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)+) => {
        /// A place at which a process can be made to die. See the module's documentation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(not(forkring_faults), allow(unreachable_pub, reason = "public for tests only"))]
        #[repr(u32)]
        pub enum Point { $($(#[$doc])* $name = $number,)+ }

        /// All points.
        #[cfg(forkring_faults)]
        pub const POINTS: &[Point] = &[$(Point::$name),+];
    };
}

points! {
    // ---- a worker, from the fork to its loop
    /// Forked; not yet bound to the zygote's life.
    WorkerForked = 1,
    /// Holds its descriptors, has not mapped its region.
    WorkerUnmapped = 2,
    /// Has mapped its region, has not run `init`.
    WorkerMapped = 3,
    /// `init` has returned, or has unwound the stack to `StartWorker::catch`.
    Initialised = 4,
    /// The state is made, the master does not know that the worker is ready.
    Unready = 5,
    /// The word says that it is ready (or has failed), the driver's bell has not rung.
    StateUnannounced = 6,
    /// Ready, and the driver has been told.
    Ready = 7,

    // ---- a worker, waiting for requests
    /// `sleeping` is set, the fence and the second look are to come.
    SleepStored = 10,
    /// The second look found nothing; the next step is to wait.
    Drowsy = 11,
    /// The doorbell rang, `sleeping` still says that it sleeps.
    Woken = 12,
    /// Has seen a request, has not claimed it.
    RequestSeen = 13,
    /// Has claimed a request.
    Claimed = 14,

    // ---- a worker, with a claimed request
    /// The function is known, the input is not there yet.
    Resolved = 20,
    /// Has opened a request that flows, nothing of it has been read.
    ReceiveOpened = 21,
    /// A part of the request has been seen, not copied.
    ChunkSeen = 22,
    /// A part of a row of numbers has been seen, not copied.
    PartSeen = 29,
    /// A part has been copied, its room has not been given back.
    ChunkCopied = 23,
    /// The room of a part has been given back, nobody has been rung.
    ChunkReceived = 24,
    /// The input is there, nothing of the user's has run.
    BeforeFunction = 25,
    /// The function has returned, its result is not encoded.
    AfterFunction = 26,
    /// A task has panicked, the state has not been made anew.
    PanicCaught = 27,
    /// A single task's outcome is encoded, nothing is written.
    Encoded = 28,

    // ---- a worker, answering
    /// An inline answer is in its slot, the head is not published.
    InlineWritten = 30,
    /// An inline answer is published, nobody has been rung.
    InlinePublished = 31,
    /// Room for a span is taken, nothing is copied.
    SpanReserved = 32,
    /// A span is copied, not published.
    SpanCopied = 33,
    /// A span is published, nobody has been rung.
    SpanPublished = 34,
    /// The words of a stream are rewritten, the tag that announces them is not.
    StreamUntagged = 35,
    /// A stream is open, a long answer's or a batch's, and empty.
    StreamOpened = 36,
    /// A part of a stream has been copied, not committed.
    PartCopied = 37,
    /// A part of a long answer, or a record of a batch, is committed, nobody has been rung.
    Committed = 38,
    /// A part of a stream has been committed because the arena is full; more is to come.
    PartCommitted = 39,
    /// All of a long answer is committed, its slot is not published.
    StreamUnpublished = 40,
    /// A long answer's slot is published, nobody has been rung.
    StreamPublished = 41,
    /// An answer is published and its doorbell rung, if somebody asked.
    Answered = 42,

    // ---- a worker, ringing
    /// Is about to ring the driver.
    RingingDriver = 45,
    /// Is about to ring a thread that waits.
    RingingWaiter = 46,

    // ---- a worker, in a batch
    /// Between the two writes of a record.
    RecordTorn = 50,
    /// A record is copied, not committed.
    RecordUncommitted = 51,
    /// A record is done with; the next item is to come, if there is one.
    RecordDone = 52,
    /// Where a batch's bare values end is stored, the record that follows them is not.
    ValuesEnded = 55,
    /// All items are done, the slot is not published.
    BatchUnpublished = 53,
    /// The batch's slot is published, nobody has been rung.
    BatchPublished = 54,

    // ---- a worker, in a service call
    /// The call's length is stored, its number is not.
    CallUnnumbered = 60,
    /// The call is announced, nothing of it is in the window.
    CallNumbered = 61,
    /// A part of the call is in the window, its position is not published.
    CallCopied = 62,
    /// A part of the call is published; more may follow.
    CallSent = 63,
    /// The answer's size is known, nothing of it has been read.
    AnswerSeen = 64,
    /// A part of the answer has been read, its room has not been given back.
    AnswerCopied = 65,
    /// All of the answer has been read.
    AnswerReceived = 66,

    // ---- a worker, leaving
    /// Has seen the order to leave.
    Leaving = 70,
    /// The state is dropped and `on_exit` has run.
    Left = 71,

    // ---- the zygote
    /// Serves; no order has been read.
    ZygoteServing = 80,
    /// Has read the order to fork a worker.
    SpawnOrdered = 81,
    /// Has forked a worker that nobody else knows of.
    SpawnForked = 82,
    /// Holds the worker's pidfd, has not sent it.
    SpawnUnreported = 83,
    /// Has reported the worker.
    SpawnReported = 84,
    /// Knows that a worker has ended, has not reaped it.
    DeathSeen = 85,
    /// Has reaped a worker, has not said so.
    DeathUnreported = 86,
    /// Has reported a worker's end.
    DeathReported = 87,
    /// Has read the order to end.
    EndOrdered = 88,
    /// Has killed the workers, has not reaped them.
    EndKilled = 89,
    /// Has reaped the workers, has not left.
    EndReaped = 90,
}

/// Dies here if this point is armed for this passage.
#[cfg(not(forkring_faults))]
#[inline(always)]
pub(crate) fn point(_: Point) {}

/// Makes what [`point`] looks at, in the process that forks all others.
#[cfg(not(forkring_faults))]
#[inline(always)]
pub(crate) fn prepare() {}
