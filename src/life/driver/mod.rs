//! The driver: the pool's one thread of its own. It sleeps until a doorbell or the zygote wakes it, delivers what
//! nobody else is waiting for, notices deaths, replaces workers, and takes the pool down at the end.
//!
//! No user code runs here, except for wakers, the log hook, and, at the end, the destructors of what the service's closures have
//! captured and, where workers are threads, of what else the builder was given.
//!
//! This is its loop. It [`start`]s workers, heeds the [`reports`] of those who know how they do, and [`finish`]es what is left
//! when the pool ends.

mod finish;
mod reports;
mod start;

use std::cell::Cell;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::{Core, Phase};
use super::crew::Crew;
use super::events;
use super::job::Deadline;
use super::messages::Who;
use super::oom::OomWatch;
use super::registry;
use super::timers::Timer;
use super::verdict::Why;
use crate::error::{PoolFailure, TaskError};
use crate::ground::doorbell::Doorbell;
use crate::ground::sys::SysError;
use crate::ground::sys::poll::{Epoll, EpollEvent};
use crate::ground::sys::process::{ExitStatus, PidFd};
use crate::ground::sys::socket::Socket;
use crate::panics;

thread_local! {
    /// Whose driver this thread is.
    static DRIVEN: Cell<*const Core> = const { Cell::new(std::ptr::null()) };
}

fn driven() -> *const Core {
    DRIVEN.try_with(Cell::get).unwrap_or(std::ptr::null())
}

/// Whether this thread is a pool's driver, which must not wait for a pool.
pub(crate) fn is_this_thread() -> bool {
    !driven().is_null()
}

/// Whether this thread is the driver of this pool.
pub(crate) fn drives(core: &Core) -> bool {
    std::ptr::eq(driven(), core)
}

const BELL: u64 = 0;
const SOCKET: u64 = 1;
const ZYGOTE: u64 = 2;

/// The driver comes by at a watched station this often, where nobody else is there. With several stations, one that has run dry
/// may be waiting for what another one has too much of.
const ROUND: Duration = Duration::from_millis(1);
/// Where somebody is there anyway.
const ROUND_MAX: Duration = Duration::from_millis(4);
/// A look that comes later than this after its time means that this process had been stopped.
const STOOD_STILL: Duration = Duration::from_millis(100);

/// Where workers come from.
#[derive(Debug)]
pub(crate) enum Nursery {
    Zygote {
        socket: Socket,
        process: PidFd,
    },
    /// They are threads of this process.
    Crew(Crew),
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Driver {
    core: Arc<Core>,
    bell: Arc<Doorbell>,
    nursery: Nursery,
    /// `None` while it is made, and where there is nothing to wait for but the bell.
    epoll: Option<Epoll>,
    init_timeout: Duration,
    /// Stations that want a worker, and from when on.
    vacant: VecDeque<(usize, Instant)>,
    /// Workers that are not ready yet, and until when they have to be (`None`: without limit).
    starting: Vec<(Who, Option<Instant>)>,
    /// Until its next round.
    pace: Duration,
    /// Failures to start workers in a row; those before `paused_until` are one with the last.
    failed_starts: u32,
    paused_until: Instant,
    /// For each station, how many workers were lost in a row without having finished anything.
    barren: Box<[u32]>,
    /// When the stations that run jobs with a time limit are looked at next.
    look_at: Option<Instant>,
    oom: OomWatch,
    /// Workers that have not ended.
    processes: usize,
    orderly: bool,
}

impl Driver {
    /// If this fails, the pool has been taken down.
    pub(crate) fn new(
        core: Arc<Core>,
        bell: Arc<Doorbell>,
        nursery: Nursery,
        init_timeout: Duration,
    ) -> Result<Self, SysError> {
        let now = Instant::now();
        let vacant = (0..core.stations.len()).map(|station| (station, now)).collect();
        let barren = vec![0; core.stations.len()].into();
        let mut driver = Self {
            core,
            bell,
            nursery,
            epoll: None,
            init_timeout,
            vacant,
            starting: Vec::new(),
            pace: ROUND,
            failed_starts: 0,
            paused_until: now,
            barren,
            look_at: None,
            oom: OomWatch::new(),
            processes: 0,
            orderly: false,
        };
        match driver.watch() {
            Ok(epoll) => driver.epoll = epoll,
            Err(error) => {
                driver.finish();
                return Err(error);
            }
        }
        Ok(driver)
    }

    fn watch(&self) -> Result<Option<Epoll>, SysError> {
        let (Nursery::Zygote { socket, process }, Some(bell)) = (&self.nursery, self.bell.wait_fd()) else {
            return Ok(None);
        };
        // Covers the moment in which a descriptor exists that is not registered.
        let mut registry = registry::lock();
        let epoll = Epoll::new()?;
        registry.add(epoll.as_fd());
        let added = epoll
            .add(&bell, BELL)
            .and_then(|()| epoll.add(socket, SOCKET))
            .and_then(|()| epoll.add(process, ZYGOTE));
        if added.is_err() {
            registry.remove(epoll.as_fd());
        }
        added.map(|()| Some(epoll))
    }

    /// What there is to see, at the latest after `timeout`.
    fn listen(&self, timeout: Option<Duration>) -> Result<Vec<u64>, SysError> {
        let mut events = [EpollEvent::empty(); 4];
        match &self.epoll {
            Some(epoll) => epoll.wait(&mut events, timeout).map(Iterator::collect),
            None => Ok(self.bell.await_ring(timeout).then_some(BELL).into_iter().collect()),
        }
    }

    /// Runs until the pool has ended.
    pub(crate) fn run(mut self) {
        DRIVEN.set(Arc::as_ptr(&self.core));
        // Without a driver everybody would wait for ever.
        if let Err(caught) = panics::guard(|| self.drive()) {
            self.fail(format!("its driver panicked, which is a defect of forkring: {caught}"));
        }
        self.finish();
    }

    fn drive(&mut self) {
        loop {
            self.start_workers();
            if self.core.phase() >= Phase::Closing && self.wind_down() {
                break;
            }
            let mut timeout = self.next_event().map(|at| at.saturating_duration_since(Instant::now()));
            if self.core.makes_rounds() {
                timeout = Some(timeout.unwrap_or(self.pace).min(self.pace));
            }
            let tokens = self.listen(timeout).unwrap_or_else(|error| {
                self.fail(format!("the driver cannot wait for events: {error}"));
                Vec::new()
            });
            let now = Instant::now();
            let rung = tokens.contains(&BELL);
            if rung {
                self.bell.clear();
                self.attend();
            } else if self.core.makes_rounds() {
                self.make_round();
            }
            if tokens.contains(&SOCKET) {
                self.read_reports();
            }
            if rung {
                self.hear_crew();
            }
            if tokens.contains(&ZYGOTE) {
                self.read_reports();
                self.zygote_lost();
                break;
            }
            self.check_starts();
            if self.core.timed.any() && (rung || self.look_at.is_none_or(|at| at <= now)) {
                self.check_times(now);
            }
            self.expire();
        }
    }

    fn next_event(&self) -> Option<Instant> {
        // A pool that is closing needs workers only if it has something to do.
        let wanted = |_: &Instant| match self.core.phase() {
            Phase::Building | Phase::Open => true,
            Phase::Closing => !self.core.is_empty(),
            Phase::Ending | Phase::Ended => false,
        };
        let vacant = self.vacant.iter().map(|&(_, at)| at).min().filter(wanted);
        let starting = self.starting.iter().filter_map(|&(_, until)| until).min();
        let look = self.look_at.filter(|_| self.core.timed.any());
        [vacant, starting, look, self.core.timers.next(), self.core.close_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Looks at the stations that run jobs with a time limit, or whose workers are to leave.
    fn check_times(&mut self, now: Instant) {
        // If this process was stopped meanwhile, so were its clocks, as far as its tasks are concerned.
        let lost = self.look_at.and_then(|planned| now.checked_duration_since(planned));
        let lost = lost.filter(|&lost| lost > STOOD_STILL).unwrap_or_default();
        let core = self.core.clone();
        self.look_at = None;
        for station in core.stations.iter().filter(|station| core.timed.contains(station.id)) {
            let mut owned = station.own(&core);
            let next = owned.check_time(now, lost, self.init_timeout);
            let who = Who { station: station.id, generation: owned.generation };
            let overdue = owned.is_overdue(now);
            drop(owned);
            self.look_at = self.look_at.into_iter().chain(next).min();
            if let Some(dead) = overdue {
                self.rouse_zygote();
                if let Some(pid) = dead {
                    // Stopped, or kept from reaping by a tracer, the zygote must not make time limits void.
                    let status = ExitStatus::Signaled(nix::libc::SIGKILL, false);
                    self.ended(who, pid, status, 0, None);
                }
            }
        }
    }

    /// Ends tasks whose deadlines are over, and workers that have had their gap.
    fn expire(&self) {
        let now = Instant::now();
        while let Some(timer) = self.core.timers.take_due(now) {
            match timer {
                Timer::Deadline(Deadline { job, generation, limit, .. }) => {
                    self.core.kill(job, generation, &TaskError::TimedOut { limit }, Why::Overtime);
                }
                Timer::Alarm(alarm) => self.core.call_in_line(&alarm),
                // A panic in somebody's waker is that runtime's affair.
                Timer::Wake(waker) => drop(panics::guard(|| waker.wake())),
                Timer::Kill(who) => {
                    self.core.stations[who.station].own(&self.core).kill_at_last(who.generation)
                }
            }
        }
    }

    fn fail(&mut self, message: String) {
        let failure = PoolFailure::new(message);
        // Who builds a pool is told.
        if (Phase::Open..Phase::Ending).contains(&self.core.phase()) {
            events::error(&self.core, format_args!("the pool has failed: {failure}"));
        }
        self.core.end(TaskError::PoolFailed(failure));
    }

    /// Comes by at the stations that are watched, less often where somebody is there anyway.
    fn make_round(&mut self) {
        let mut is_alone = false;
        for station in &self.core.stations {
            if self.core.watched.contains(station.id) {
                is_alone |= !station.make_round(&self.core);
            }
        }
        self.pace = if is_alone { ROUND } else { (2 * self.pace).min(ROUND_MAX) };
        if !self.core.watched.any() {
            self.core.end_rounds();
            self.pace = ROUND;
        }
    }

    /// Delivers what workers have published, and sees who has become ready.
    fn attend(&mut self) {
        let core = self.core.clone();
        for station in &core.stations {
            station.own(&core).attend();
        }
        let starting = std::mem::take(&mut self.starting);
        for (who, until) in starting {
            if !self.check_start(who) {
                self.starting.push((who, until));
            }
        }
        self.check_open();
    }
}
