//! What all handles of a pool, its tasks and its driver share: its stations, how far it [is](phase), who [waits](until_ended) for
//! its end, who [sleeps](sleep), and [sets](sets) of stations.

mod phase;
mod sets;
mod sleep;
mod until_ended;

use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use crossbeam_utils::CachePadded;

use self::phase::Life;
pub(crate) use self::phase::Phase;
use self::sets::{Moves, StationSet};
pub(crate) use self::until_ended::UntilEnded;
use super::crashers::Saver;
use super::gate::Gate;
use super::job::JobRef;
use super::journal::Journal;
use super::meter::Meter;
use super::service::{Host, Request, Waiting};
use super::station::Station;
use super::terms::Policy;
use super::timers::Timers;
use crate::ground::doorbell::Doorbell;
use crate::ground::monitor::{Condvar, Mutex};
use crate::ground::spin::SpinBudget;
use crate::ground::sys::objects::Objects;
use crate::ground::sys::{clock, fork_generation};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Core {
    /// Set once the pool is shared.
    pub(crate) me: OnceLock<Weak<Core>>,
    pub(crate) name: String,
    fork_generation: u32,
    pub(crate) objects: Objects,
    pub(crate) spin: SpinBudget,
    pub(crate) policy: Policy,
    pub(crate) timers: Timers,
    pub(crate) stations: Box<[Station]>,
    /// Stations that have nothing to do, and stations that hold more than they are running.
    pub(crate) idle: StationSet,
    pub(crate) surplus: StationSet,
    /// Stations that the driver comes by at.
    pub(crate) watched: StationSet,
    /// Stations that run jobs with a time limit, or whose workers are to leave, so that the driver looks from time to time.
    pub(crate) timed: StationSet,
    /// Jobs may be between two stations.
    pub(crate) moves: Moves,
    /// Threads and futures that sleep until a result comes.
    sleepers: CachePadded<AtomicUsize>,
    /// Which streams whose items are tasks may sleep, by their tags; and the next tag.
    streams_sleep: AtomicU64,
    stream_tags: AtomicU8,
    /// Whether the driver makes rounds.
    rounds: AtomicBool,
    handles: CachePadded<AtomicUsize>,
    /// Bounds the tasks that are accepted, if there is a limit.
    pub(crate) gate: Option<Gate>,
    /// For each station, what the handler of its worker's call waits for.
    pub(super) waiting: Box<[Mutex<Waiting>]>,
    /// For each station, the generation of its present worker.
    generations: Box<[AtomicU64]>,
    service: Option<Host>,
    /// Keeps the inputs that cost a worker, if that is wanted.
    pub(crate) crashers: Option<Arc<Saver>>,
    takes_small: bool,
    /// Whether workers stamp requests.
    pub(crate) is_timed: bool,
    pub(crate) journal: Option<Arc<Journal>>,
    phase: AtomicU8,
    life: Mutex<Life>,
    life_changed: Condvar,
    listeners: Mutex<Vec<Weak<dyn Listener>>>,
}

/// Something that has to know of what happens in the pool.
pub(crate) trait Listener: Send + Sync + std::fmt::Debug {
    /// The pool takes nothing more. Called at least once.
    fn pool_closes(&self);
    /// Items of these streams have ended.
    fn items_ended(&self, streams: u64);
}

// No code of the user's runs while anything in it is half changed, so whoever catches a panic of his own finds his pools whole.
impl UnwindSafe for Core {}
impl RefUnwindSafe for Core {}

impl Core {
    pub(crate) fn new(
        name: String,
        objects: Objects,
        spin: SpinBudget,
        policy: Policy,
        stations: Box<[Station]>,
        service: Option<Host>,
        bell: Arc<Doorbell>,
    ) -> Self {
        let count = stations.len();
        Self {
            me: OnceLock::new(),
            name,
            fork_generation: fork_generation::current(),
            objects,
            spin,
            policy,
            timers: Timers::default(),
            stations,
            idle: StationSet::new(count),
            surplus: StationSet::new(count),
            watched: StationSet::new(count),
            timed: StationSet::new(count),
            moves: Moves::default(),
            sleepers: CachePadded::default(),
            streams_sleep: AtomicU64::new(0),
            stream_tags: AtomicU8::new(0),
            rounds: AtomicBool::new(false),
            handles: CachePadded::new(AtomicUsize::new(1)),
            gate: None,
            waiting: (0..count).map(|_| Mutex::default()).collect(),
            generations: (0..count).map(|_| AtomicU64::new(0)).collect(),
            service,
            crashers: None,
            takes_small: policy.terms.timeout.is_none() && policy.terms.deadline.is_none(),
            is_timed: false,
            journal: None,
            phase: AtomicU8::new(Phase::Building as u8),
            life: Mutex::new(Life::new(bell)),
            life_changed: Condvar::new(),
            listeners: Mutex::default(),
        }
    }

    /// Has `listener` told what happens, for as long as it lives.
    pub(crate) fn listen(&self, listener: Arc<dyn Listener>) {
        if !self.is_here() {
            // Nothing happens there, and a thread that does not exist there may hold the lock.
            return;
        }
        let mut listeners = self.listeners.lock();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(Arc::downgrade(&listener));
    }

    /// Those that live.
    fn listeners(&self) -> Vec<Arc<dyn Listener>> {
        self.listeners.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// With room for so many tasks that have not started.
    pub(crate) fn with_queue_limit(mut self, tasks: Option<usize>) -> Self {
        self.gate = tasks.map(|tasks| Gate::new(self.stations.len(), tasks));
        self.takes_small &= self.gate.is_none();
        self
    }

    /// Keeping inputs that cost a worker.
    pub(crate) fn with_crashers(mut self, saver: Option<Arc<Saver>>) -> Self {
        self.crashers = saver;
        self
    }

    /// Until the inputs that are to be kept are written, but not for ever.
    pub(crate) fn await_crashers(&self) {
        if let Some(saver) = &self.crashers {
            saver.finish();
        }
    }

    /// With meters at all stations.
    pub(crate) fn with_meters(mut self, timings: bool, journal: Option<Arc<Journal>>) -> Self {
        self.is_timed = true;
        self.takes_small = false;
        for station in &mut self.stations {
            station.set_meter(Meter::new(timings, journal.clone()));
        }
        self.journal = journal;
        self
    }

    /// A job is submitted. On the way of all but small tasks, which pools with meters do not have.
    #[inline]
    pub(crate) fn note_submitted(&self, job: &JobRef) {
        if self.is_timed {
            job.note_submitted(clock::now_ns());
            self.journal.iter().for_each(|journal| journal.note_submitted());
        }
    }

    /// Whether a small task needs nothing looked after: there is no limit to the number of tasks nor to their time, and nobody
    /// measures it.
    #[inline]
    pub(crate) fn takes_small(&self) -> bool {
        self.takes_small
    }

    /// Whether this process is the one that built the pool. In any other its handles are inert.
    #[inline]
    pub(crate) fn is_here(&self) -> bool {
        fork_generation::current() == self.fork_generation
    }

    pub(crate) fn add_handle(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    /// `true`: that was the last one.
    pub(crate) fn drop_handle(&self) -> bool {
        self.handles.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// A station has a successor to its worker.
    pub(crate) fn set_generation(&self, station: usize, generation: u64) {
        self.generations[station].store(generation, Ordering::SeqCst);
    }

    /// The generation of a station's present worker.
    pub(super) fn generation_of(&self, station: usize) -> u64 {
        self.generations[station].load(Ordering::SeqCst)
    }

    /// Passes a service call on. Must not be called while a station is owned.
    pub(crate) fn serve(self: &Core, call: Request) {
        match &self.service {
            Some(host) => host.serve(self, call),
            None => self.refuse_call(&call, "the pool has no service"),
        }
    }

    pub(crate) fn service(&self) -> Option<&Host> {
        self.service.as_ref()
    }
}
