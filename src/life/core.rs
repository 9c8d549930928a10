//! What all handles of a pool, its tasks and its driver share.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use parking_lot::{Condvar, Mutex};

use super::crashers::Saver;
use super::gate::Gate;
use super::job::{Deadline, JobRef};
use super::journal::Journal;
use super::meter::Meter;
use super::service::{Host, Request};
use super::station::Station;
use super::terms::Policy;
use super::timers::{Timer, Timers};
use crate::error::{PoolFailure, TaskError};
use crate::ground::doorbell::Doorbell;
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
    /// Stations that run jobs with a time limit, so that the driver looks from time to time.
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
    /// For each station, the generation of the worker whose handler waits for a task of this pool, plus one.
    waiting: Box<[AtomicU64]>,
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

/// How far a pool is. Only moves down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    Building,
    Open,
    /// Takes nothing more, finishes what it has.
    Closing,
    /// Ends now: terminated, dropped, or failed.
    Ending,
    /// No process, descriptor or thread is left.
    Ended,
}

#[derive(Debug)]
struct Life {
    phase: Phase,
    failure: Option<PoolFailure>,
    wakers: Vec<Waker>,
    /// Until when the pool is to have closed, and whether it had to be ended for that.
    deadline: Option<Instant>,
    forced: bool,
    /// Tasks that had not ended when the pool was.
    unfinished: usize,
    /// The driver's doorbell, until the pool has ended.
    bell: Option<Arc<Doorbell>>,
}

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
            waiting: (0..count).map(|_| AtomicU64::new(0)).collect(),
            generations: (0..count).map(|_| AtomicU64::new(0)).collect(),
            service,
            crashers: None,
            takes_small: policy.terms.timeout.is_none() && policy.terms.deadline.is_none(),
            is_timed: false,
            journal: None,
            phase: AtomicU8::new(Phase::Building as u8),
            life: Mutex::new(Life {
                phase: Phase::Building,
                failure: None,
                wakers: Vec::new(),
                deadline: None,
                forced: false,
                unfinished: 0,
                bell: Some(bell),
            }),
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

    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Building,
            1 => Phase::Open,
            2 => Phase::Closing,
            3 => Phase::Ending,
            _ => Phase::Ended,
        }
    }

    /// Moves on to `phase` unless the pool is there or further already. `true`: it moved.
    pub(crate) fn advance(&self, phase: Phase, failure: Option<PoolFailure>) -> bool {
        let mut life = self.life.lock();
        if life.phase >= phase {
            return false;
        }
        life.phase = phase;
        if life.failure.is_none() {
            life.failure = failure;
        }
        self.phase.store(phase as u8, Ordering::Release);
        let mut wakers = match phase {
            Phase::Ended => std::mem::take(&mut life.wakers),
            _ => Vec::new(),
        };
        drop(life);
        if phase >= Phase::Closing {
            // Who waits for a place learns from a station how the pool ends.
            wakers.extend(self.gate.iter().flat_map(Gate::shut));
            let tell = |listener: &Arc<dyn Listener>| drop(crate::panics::guard(|| listener.pool_closes()));
            self.listeners().iter().for_each(tell);
        }
        self.life_changed.notify_all();
        // A panic in somebody's waker must not keep the others asleep, nor end the driver.
        wakers.into_iter().for_each(|waker| drop(crate::panics::guard(|| waker.wake())));
        true
    }

    pub(crate) fn failure(&self) -> Option<PoolFailure> {
        self.life.lock().failure.clone()
    }

    /// Wakes the driver, if the pool still has one.
    pub(crate) fn ring_driver(&self) {
        let bell = self.life.lock().bell.clone();
        if let Some(bell) = bell {
            bell.ring();
        }
    }

    /// Gives up the driver's doorbell: nobody can ring it any more.
    pub(crate) fn take_bell(&self) -> Option<Arc<Doorbell>> {
        self.life.lock().bell.take()
    }

    /// Blocks until the pool is at least in `phase`; `false` when the time is over first.
    pub(crate) fn wait_for(&self, phase: Phase, limit: Option<Duration>) -> bool {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut life = self.life.lock();
        while life.phase < phase {
            match deadline {
                None => self.life_changed.wait(&mut life),
                Some(deadline) => {
                    if self.life_changed.wait_until(&mut life, deadline).timed_out() {
                        return life.phase >= phase;
                    }
                }
            }
        }
        true
    }

    /// Whether the pool has ended; if not, `waker` is called when it has.
    pub(crate) fn poll_ended(&self, waker: &Waker) -> bool {
        let mut life = self.life.lock();
        if life.phase == Phase::Ended {
            return true;
        }
        if !life.wakers.iter().any(|known| known.will_wake(waker)) {
            life.wakers.push(waker.clone());
        }
        false
    }

    /// Takes no more tasks; those that were taken finish.
    pub(crate) fn close(&self) {
        if self.phase() >= Phase::Closing {
            return;
        }
        // Before the driver may take an empty station for the end.
        for station in &self.stations {
            let mut station = station.own(self);
            if station.refusal.is_none() {
                station.refusal = Some(TaskError::Closed);
            }
        }
        if self.advance(Phase::Closing, None) {
            self.ring_driver();
        }
    }

    /// As [`close`](Self::close), and has the driver end the pool if it has not closed in time. The earliest of
    /// several deadlines counts.
    pub(crate) fn close_within(&self, limit: Duration) {
        if let Some(deadline) = Instant::now().checked_add(limit) {
            let mut life = self.life.lock();
            life.deadline = Some(life.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
        }
        self.close();
        // Somebody else may have closed it, and the driver not know of a deadline.
        self.ring_driver();
    }

    /// Until when the pool is to have closed, if it is closing and that is limited.
    pub(crate) fn close_deadline(&self) -> Option<Instant> {
        let life = self.life.lock();
        life.deadline.filter(|_| life.phase == Phase::Closing)
    }

    /// The time to close is over.
    pub(crate) fn force(&self) {
        self.life.lock().forced = true;
        self.end(TaskError::Terminated);
    }

    /// How the pool closed: whether by force, and how many tasks had not ended.
    pub(crate) fn close_outcome(&self) -> (bool, usize) {
        let life = self.life.lock();
        (life.forced, life.unfinished)
    }

    pub(crate) fn add_unfinished(&self, tasks: usize) {
        self.life.lock().unfinished += tasks;
    }

    /// Whether no station holds a task, and none is between two of them. Stays true once nothing is accepted.
    pub(crate) fn is_empty(&self) -> bool {
        let before = self.moves.state();
        before.is_some()
            && self.stations.iter().all(|station| station.own(self).is_empty())
            && before == self.moves.state()
    }

    /// Ends the pool: what has not finished ends with `error`.
    pub(crate) fn end(&self, error: TaskError) {
        let failure = match &error {
            TaskError::PoolFailed(failure) => Some(failure.clone()),
            _ => None,
        };
        self.advance(Phase::Ending, failure);
        for station in &self.stations {
            let unfinished = station.own(self).put_down(&error);
            self.add_unfinished(unfinished);
        }
        self.ring_driver();
    }

    /// A stream is about to sleep, which has said whom to wake, and is going to look at its items once more.
    ///
    /// Edge ITEMS: the waker, this mark, a look at what is done, sequentially consistent; whoever ends an item stores that, fences (edge
    /// DONE), then looks for the mark. So one of the two sees the other.
    pub(crate) fn note_sleeping_stream(&self, tag: u8) {
        self.streams_sleep.fetch_or(1 << (tag % 64), Ordering::SeqCst);
    }

    /// A tag for a stream. Where there are more than 64, some are woken for others.
    pub(crate) fn next_stream_tag(&self) -> u8 {
        self.stream_tags.fetch_add(1, Ordering::Relaxed) % 64
    }

    #[inline]
    pub(crate) fn has_sleeping_streams(&self, streams: u64) -> bool {
        self.streams_sleep.load(Ordering::SeqCst) & streams != 0
    }

    /// Wakes those of these streams that sleep. One that marks itself meanwhile is woken, or marks the pool again.
    #[cold]
    pub(crate) fn call_streams(&self, streams: u64) {
        if !self.has_sleeping_streams(streams) {
            return;
        }
        let asleep = self.streams_sleep.fetch_and(!streams, Ordering::SeqCst) & streams;
        if asleep != 0 {
            let tell = |stream: &Arc<dyn Listener>| drop(crate::panics::guard(|| stream.items_ended(asleep)));
            self.listeners().iter().for_each(tell);
        }
    }

    /// How many workers have something to do, or are not ready.
    pub(crate) fn busy(&self) -> usize {
        match self.stations.len() {
            1 => 1,
            count => count - self.idle.len(),
        }
    }

    /// Somebody is about to sleep for a result.
    pub(crate) fn add_sleeper(&self) {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn remove_sleeper(&self) {
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether results may wait for the driver's next round.
    #[inline]
    pub(crate) fn may_watch(&self) -> bool {
        self.sleepers.load(Ordering::SeqCst) == 0 && self.service.is_none() && self.phase() < Phase::Closing
    }

    /// Makes the driver make rounds until no station is watched.
    pub(crate) fn start_rounds(&self) {
        if !self.rounds.swap(true, Ordering::SeqCst) {
            self.ring_driver();
        }
    }

    pub(crate) fn makes_rounds(&self) -> bool {
        self.rounds.load(Ordering::SeqCst)
    }

    /// The driver stops making rounds, unless a station wants it after all.
    pub(crate) fn end_rounds(&self) {
        self.rounds.store(false, Ordering::SeqCst);
        if self.watched.any() {
            self.rounds.store(true, Ordering::SeqCst);
        }
    }

    /// The driver is to look at a station's running job at least this often.
    pub(crate) fn watch_time(&self, station: usize) {
        self.timed.set(station);
        self.ring_driver();
    }

    /// Has something happen at this time.
    pub(crate) fn set_timer(&self, at: Instant, timer: Timer) {
        if self.timers.add(at, timer) {
            self.ring_driver();
        }
    }

    /// Has a task ended when its time is over.
    pub(crate) fn set_deadline(&self, deadline: Deadline) {
        self.set_timer(deadline.at, Timer::Deadline(deadline));
    }

    /// Before somebody sleeps, who has been counted and stays so meanwhile: no worker may rely on the driver's rounds.
    pub(crate) fn stop_watching(&self) {
        for station in &self.stations {
            if self.watched.contains(station.id) {
                station.own(self).leave_watch();
            }
        }
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

    /// The handler of this worker's call waits for a task of this pool. `true`: so do those of all other workers, and
    /// nobody is left to run it.
    pub(crate) fn handler_waits(&self, station: usize, generation: u64) -> bool {
        self.waiting[station].store(generation + 1, Ordering::SeqCst);
        let mut stations = self.waiting.iter().zip(&self.generations);
        stations.all(|(waiting, now)| waiting.load(Ordering::SeqCst) == now.load(Ordering::SeqCst) + 1)
    }

    pub(crate) fn handler_goes_on(&self, station: usize, generation: u64) {
        let waits = generation + 1;
        let _ = self.waiting[station].compare_exchange(waits, 0, Ordering::SeqCst, Ordering::SeqCst);
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

/// Counts moves of jobs between stations, during which they are in none.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// A move that is under way.
#[derive(Debug)]
pub(crate) struct Move<'a>(&'a Moves);

impl Moves {
    pub(crate) fn begin(&self) -> Move<'_> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        Move(self)
    }

    /// The number of moves that there were, if none is under way.
    fn state(&self) -> Option<usize> {
        let ended = self.ended.load(Ordering::SeqCst);
        (self.begun.load(Ordering::SeqCst) == ended).then_some(ended)
    }
}

impl Drop for Move<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

/// A set of stations that any thread may change.
#[derive(Debug)]
pub(crate) struct StationSet {
    /// Each in a line of its own: threads look at one set while others change another.
    words: Box<[CachePadded<AtomicU64>]>,
}

impl StationSet {
    fn new(stations: usize) -> Self {
        Self { words: (0..stations.div_ceil(64)).map(|_| CachePadded::default()).collect() }
    }

    /// SeqCst: whoever adds itself here and then looks at the other set is seen, or sees (edge BALANCE).
    pub(crate) fn set(&self, station: usize) {
        self.words[station / 64].fetch_or(1 << (station % 64), Ordering::SeqCst);
    }

    pub(crate) fn clear(&self, station: usize) {
        let word = &self.words[station / 64];
        if word.load(Ordering::Relaxed) & 1 << (station % 64) != 0 {
            word.fetch_and(!(1 << (station % 64)), Ordering::SeqCst);
        }
    }

    pub(crate) fn contains(&self, station: usize) -> bool {
        self.words[station / 64].load(Ordering::SeqCst) & 1 << (station % 64) != 0
    }

    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.words.iter().any(|word| word.load(Ordering::SeqCst) != 0)
    }

    /// The first member.
    pub(crate) fn first(&self) -> Option<usize> {
        self.words.iter().enumerate().find_map(|(i, word)| {
            let word = word.load(Ordering::SeqCst);
            (word != 0).then(|| i * 64 + word.trailing_zeros() as usize)
        })
    }

    /// How many members there are.
    pub(crate) fn len(&self) -> usize {
        self.words.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    /// Takes some member out.
    #[inline]
    pub(crate) fn take(&self) -> Option<usize> {
        for (i, word) in self.words.iter().enumerate() {
            loop {
                let bits = word.load(Ordering::Relaxed);
                if bits == 0 {
                    break;
                }
                // Of one bit, whose former value alone is asked for: one instruction, where a mask takes a loop.
                let at = bits.trailing_zeros();
                if word.fetch_and(!(1 << at), Ordering::SeqCst) & 1 << at != 0 {
                    return Some(i * 64 + at as usize);
                }
            }
        }
        None
    }
}
