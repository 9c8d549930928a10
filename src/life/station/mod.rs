//! A worker's place in the pool: the lane of its present process, and the queue in front of it.
//!
//! # Ownership
//!
//! A station is used by one thread at a time ([`Ownership`]), and **no user code runs while it is owned**: inputs
//! are encoded before, results decoded after, and wakers called after it. So it is held for as long as it takes to
//! copy some bytes, and whoever has to may wait for it. A submitter that finds it owned leaves its job in the inbox.
//! A thread that comes time and again, with nobody else between, keeps the station: it comes and goes without locked
//! instructions until somebody revokes that.
//!
//! * STATION-1: `inner` is touched only while the station is owned.
//! * STATION-2: what is in the inbox is a job that was left there and not yet taken in.
//! * STATION-3: while requests are in flight and nobody owns the station, either the worker is armed to ring the driver
//!   or the thread in the seat (which sleeps for a millisecond at most where it may miss a response), and has not rung since,
//!   or the one it rang is on its way and will own the station; or the station is *watched*: the driver comes by from time to time, and nobody
//!   sleeps for longer for what only it can bring; or the worker waits for the answer to a call, and whoever answers will own it.
//! * STATION-4: while the seat waits for a job, the job is neither over nor another station's once nobody owns this
//!   one; or the seat's bell has been rung.
//!
//! Jobs go through [`send`] and [`receive`] while it is [`owned`]; [`arm`] and [`settle`] make it ready to be left.

mod arm;
mod calls;
mod owned;
mod receive;
mod send;
mod settle;

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

pub(crate) use self::arm::{Bell, Seat};
use self::owned::KEEP_AFTER;
pub(crate) use self::owned::Owned;
use super::crew::Member;
use super::job::{After, Ended, JobRef};
use super::meter::Meter;
use super::service::Request;
use super::tally::Tally;
use super::verdict::{Seen, Verdict};
use crate::error::TaskError;
use crate::ground::ownership::{Ownership, ThreadNumber};
use crate::ground::sys::process::PidFd;
use crate::protocol::lane::{Lane, Violation};
use crate::protocol::wire::Wake;

/// With so many tasks in its ring a worker is busy for longer than a message takes.
const MANY: usize = 32;

/// After so many visits without a response, they are not taken for short any more.
const WAITS_MAX: u32 = 64;
/// Of single items, so many are on their way within microseconds, to a worker that may have to wake up first.
const WAITS_MAX_ITEMS: u32 = 1024;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Station {
    pub(crate) id: usize,
    ownership: CachePadded<Ownership>,
    /// How often others than the driver on its rounds have looked here for responses: written by owners, read by anyone.
    visits: AtomicUsize,
    /// The driver's: what it read there on its last round.
    visits_seen: AtomicUsize,
    inner: UnsafeCell<Inner>,
}

#[allow(unsafe_code, reason = "a cell that is guarded by an ownership flag")]
// SAFETY: `inner` is guarded by the ownership (STATION-1), and everything in it may move between threads.
unsafe impl Sync for Station {}

/// The process that serves a station, or the thread of this one.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) hold: Hold,
}

/// What a worker is ended by.
#[derive(Debug)]
pub(crate) enum Hold {
    Process(PidFd),
    Thread(Arc<Member>),
}

/// How far the station's process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// There is none; the driver will ask for one.
    Vacant,
    /// Asked for, or running `init`.
    Starting,
    Ready,
    /// Told to leave when it has finished what it is at, or killed: see [`Verdict`]. It is replaced.
    Leaving,
    /// Told to leave, or killed, because the pool ends.
    Ending,
}

/// What all requests in a ring are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cargo {
    /// Or a mixture.
    Tasks,
    /// Messages of streams, and items of streams that are tasks.
    Batches,
    Items,
}

impl Cargo {
    #[inline]
    fn of(job: &JobRef) -> Self {
        match job {
            job if job.is_plain() => Self::Tasks,
            job if job.is_item() => Self::Items,
            job if job.batch().is_some() => Self::Batches,
            _ => Self::Tasks,
        }
    }
}

/// What a station's owner may touch.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) stage: Stage,
    pub(crate) generation: u64,
    pub(crate) process: Option<Process>,
    pub(crate) lane: Option<Lane<JobRef>>,
    pub(crate) queue: VecDeque<JobRef>,
    /// What a job is refused with: the pool is closing, has ended or failed.
    pub(crate) refusal: Option<TaskError>,
    /// Set when the worker broke the protocol: its lane is not read any more.
    pub(crate) violation: Option<Violation>,
    /// Set when the worker, being a thread, was given up: what it says from then on is not heard.
    pub(crate) is_given_up: bool,
    /// Service requests that have come whole.
    pub(crate) calls: Vec<Request>,
    /// `None`: there has not been a worker yet, or there will not be another one.
    pub(crate) response_bell: Option<Arc<Bell>>,
    /// Who sleeps on `response_bell`.
    pub(crate) seat: Seat,
    /// When somebody last rose from it.
    pub(crate) last_sat: Option<Instant>,
    pub(crate) tasks_done: u64,
    pub(crate) tally: Tally,
    /// Where tasks are timed.
    pub(crate) meter: Option<Box<Meter>>,
    pub(crate) verdict: Option<Verdict>,
    /// Since when the process has to be dead.
    pub(crate) killed_at: Option<Instant>,
    /// What ran on the driver's last look, while there is anything with a time limit.
    pub(crate) seen: Option<Seen>,
    pub(crate) look_every: Option<Duration>,
    wake: Wake,
    /// Whether it is in the pool's set of idle stations, unless somebody has taken it out who is about to own it.
    is_idle: bool,
    has_surplus: bool,
    /// Whether something was added since it was last found that nothing here can move.
    may_spare: bool,
    /// Whether the driver comes by from time to time, so that nobody needs to be rung.
    watched: bool,
    /// What is in the ring.
    cargo: Cargo,
    /// How many owners have found more than one request in the ring and no response since the last one that came.
    waits: u32,
    /// Whether whoever slept here last has waited for long.
    is_seldom: bool,
    /// How many who waited have looked in vain in a row.
    vain_spins: u32,
    /// Since when the worker's way through single items is watched (0: it is not), and how many tasks were done then. It has had
    /// something to do ever since.
    paced: (u64, u64),
    after: Vec<After>,
    /// Empty but for the time of a look.
    ended: Ended,
    /// Who owned the station last, how often in a row, and how often it takes to keep it.
    last_owner: ThreadNumber,
    streak: u32,
    keep_after: u32,
}

impl Station {
    pub(crate) fn new(id: usize) -> Self {
        Self {
            id,
            ownership: CachePadded::new(Ownership::new()),
            visits: AtomicUsize::new(0),
            visits_seen: AtomicUsize::new(0),
            inner: UnsafeCell::new(Inner {
                stage: Stage::Vacant,
                generation: 0,
                process: None,
                lane: None,
                queue: VecDeque::new(),
                refusal: None,
                violation: None,
                is_given_up: false,
                calls: Vec::new(),
                response_bell: None,
                seat: Seat::Free,
                last_sat: None,
                tasks_done: 0,
                tally: Tally::default(),
                meter: None,
                verdict: None,
                killed_at: None,
                seen: None,
                look_every: None,
                wake: Wake::Nobody,
                is_idle: false,
                has_surplus: false,
                may_spare: false,
                watched: false,
                cargo: Cargo::Tasks,
                waits: 0,
                is_seldom: false,
                vain_spins: 0,
                paced: (0, 0),
                after: Vec::new(),
                ended: Ended::new(),
                last_owner: ThreadNumber::current(),
                streak: 0,
                keep_after: KEEP_AFTER,
            }),
        }
    }

    /// Has tasks timed from here on, which needs workers that know of it.
    pub(crate) fn set_meter(&mut self, meter: Meter) {
        self.inner.get_mut().meter = Some(Box::new(meter));
    }
}

impl Inner {
    /// Requests in the ring, those that are being answered included.
    #[inline]
    pub(crate) fn in_flight(&self) -> usize {
        self.lane.as_ref().map_or(0, Lane::in_flight)
    }

    /// Whether the worker has many tasks before it.
    #[inline]
    pub(crate) fn has_many(&self) -> bool {
        self.in_flight() >= MANY
    }

    /// Whether the worker sleeps, or has been rung and is not awake yet.
    pub(crate) fn is_asleep(&self) -> bool {
        self.lane.as_ref().is_some_and(Lane::is_asleep)
    }

    /// Whether the worker is ready for a task, and has none.
    #[inline]
    pub(crate) fn has_nothing_to_do(&self) -> bool {
        self.is_empty() && self.can_send()
    }

    /// Whether the station holds no task.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.in_flight() == 0
    }

    /// Whether a few requests behind the one that runs may stay: a stream's worker gets through them sooner than another one
    /// wakes up. Somebody has to look again: whoever sends the next one or waits, else the driver on its round.
    #[inline]
    fn is_patient(&self) -> bool {
        let waits_max = match self.cargo {
            Cargo::Tasks => return false,
            Cargo::Batches => WAITS_MAX,
            Cargo::Items => WAITS_MAX_ITEMS,
        };
        self.watched && self.waits < waits_max
    }

    /// Requests of this kind are about to be added to what is in the ring.
    #[inline]
    fn load(&mut self, cargo: Cargo) {
        if cargo == Cargo::Tasks {
            self.cargo = cargo;
        } else if self.in_flight() == 0 {
            (self.cargo, self.waits, self.paced.0) = (cargo, 0, 0);
        } else if self.cargo != cargo {
            self.cargo = Cargo::Tasks;
        }
    }

    #[inline]
    fn can_send(&self) -> bool {
        self.stage == Stage::Ready && self.violation.is_none()
    }
}
