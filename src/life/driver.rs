//! The driver: the pool's one thread of its own. It sleeps until a doorbell or the zygote wakes it, delivers what
//! nobody else is waiting for, notices deaths, replaces workers, and takes the pool down at the end.
//!
//! No user code runs here, except for wakers, the log hook, and, where workers are threads, the destructors of what the builder was
//! given: the environment and what closures have captured.

use std::cell::Cell;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::{Core, Phase};
use super::crew::{self, Crew};
use super::end::{End, describe};
use super::events;
use super::job::Deadline;
use super::journal::Entry;
use super::messages::{MESSAGE_BYTES, Order, Report, Who};
use super::oom::OomWatch;
use super::registry;
use super::station::{Hold, Process, Stage};
use super::terms::OnWorkerLoss;
use super::timers::Timer;
use super::verdict::Why;
use crate::error::{LossHint, PoolFailure, TaskError};
use crate::ground::doorbell::Doorbell;
use crate::ground::sys::poll::{Epoll, EpollEvent};
use crate::ground::sys::process::{ExitStatus, PidFd};
use crate::ground::sys::socket::{Socket, TryRecv};
use crate::ground::sys::{SysError, advice, clock};
use crate::memory::region::Region;
use crate::protocol::lane::Lane;
use crate::protocol::port::Bells;
use crate::protocol::wire::{self, WorkerState};

thread_local! {
    static IS_DRIVER: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is a pool's driver, which must not wait for a pool.
pub(crate) fn is_this_thread() -> bool {
    IS_DRIVER.try_with(Cell::get).unwrap_or(false)
}

const BELL: u64 = 0;
const SOCKET: u64 = 1;
const ZYGOTE: u64 = 2;

/// Workers that die one after another before they were ready, by a signal and not by an error of `init`'s, end the
/// pool after this many.
const FAILED_STARTS_MAX: u32 = 8;
/// The pause before a worker is started again grows from the first to the second.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The driver comes by at a watched station this often. With several stations, one that has run dry may be waiting for
/// what another one has too much of.
const ROUND: Duration = Duration::from_millis(1);
/// A look that comes later than this after its time means that this process had been stopped.
const STOOD_STILL: Duration = Duration::from_millis(100);
/// A worker that died without having finished anything is replaced after this pause if its predecessor did the same, so that
/// tasks that all crash do not keep the machine busy with forks.
const CRASH_PAUSE: Duration = Duration::from_millis(2);
/// The zygote is given this long to kill and reap its workers.
const ZYGOTE_PATIENCE: Duration = Duration::from_secs(10);

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
    /// Workers that are not ready yet, and until when they have to be.
    starting: Vec<(Who, Instant)>,
    failed_starts: u32,
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
            failed_starts: 0,
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
        IS_DRIVER.set(true);
        loop {
            self.start_workers();
            if self.core.phase() >= Phase::Closing && self.wind_down() {
                break;
            }
            let mut timeout = self.next_event().map(|at| at.saturating_duration_since(Instant::now()));
            if self.core.makes_rounds() {
                timeout = Some(timeout.unwrap_or(ROUND).min(ROUND));
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
        self.finish();
    }

    fn next_event(&self) -> Option<Instant> {
        // A pool that is closing needs workers only if it has something to do.
        let wanted = |_: &Instant| match self.core.phase() {
            Phase::Building | Phase::Open => true,
            Phase::Closing => !self.core.is_empty(),
            Phase::Ending | Phase::Ended => false,
        };
        let vacant = self.vacant.iter().map(|&(_, at)| at).min().filter(wanted);
        let starting = self.starting.iter().map(|&(_, until)| until).min();
        let look = self.look_at.filter(|_| self.core.timed.any());
        [vacant, starting, look, self.core.timers.next(), self.core.close_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Looks at the stations that run jobs with a time limit.
    fn check_times(&mut self, now: Instant) {
        // If this process was stopped meanwhile, so were its clocks, as far as its tasks are concerned.
        let lost = self.look_at.and_then(|planned| now.checked_duration_since(planned));
        let lost = lost.filter(|&lost| lost > STOOD_STILL).unwrap_or_default();
        let core = self.core.clone();
        let timed = core.stations.iter().filter(|station| core.timed.contains(station.id));
        self.look_at = timed.filter_map(|station| station.own(&core).check_time(now, lost)).min();
    }

    /// Ends tasks whose deadlines are over, and workers that have had their gap.
    fn expire(&self) {
        let now = Instant::now();
        while let Some(timer) = self.core.timers.take_due(now) {
            match timer {
                Timer::Deadline(Deadline { job, generation, limit, .. }) => {
                    self.core.kill(job, generation, &TaskError::TimedOut { limit }, Why::Overtime);
                }
                // A panic in somebody's waker is that runtime's affair.
                Timer::Wake(waker) => drop(crate::panics::guard(|| waker.wake())),
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

    /// Comes by at the stations that are watched.
    fn make_round(&self) {
        for station in &self.core.stations {
            if self.core.watched.contains(station.id) {
                station.make_round(&self.core);
            }
        }
        if !self.core.watched.any() {
            self.core.end_rounds();
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

    /// Whether a starting worker has become ready or failed.
    fn check_start(&mut self, who: Who) -> bool {
        let core = self.core.clone();
        let mut owned = core.stations[who.station].own(&core);
        if owned.generation != who.generation || owned.stage != Stage::Starting {
            return true;
        }
        let Some(lane) = &owned.lane else { return true };
        if owned.process.is_none() {
            // It was quicker than the zygote's report, which brings it here again.
            return false;
        }
        match lane.worker_state() {
            Ok((WorkerState::Ready, _)) => {
                owned.stage = Stage::Ready;
                let pid = owned.process.as_ref().map_or(0, |process| process.pid);
                let (asked_ns, at_ns) = owned.tally.note_ready();
                drop(owned);
                if let Some(journal) = &core.journal {
                    journal.push(Entry::Ready { who, pid, asked_ns, at_ns });
                }
                self.failed_starts = 0;
                let Who { station, generation } = who;
                events::info(
                    &core,
                    format_args!("worker {station} is ready (generation {generation}, pid {pid})"),
                );
                true
            }
            Ok((WorkerState::Failed, text)) => {
                drop(owned);
                self.fail(text);
                true
            }
            Ok((WorkerState::Starting | WorkerState::Unwinding | WorkerState::Leaving, _)) => false,
            Err(violation) => {
                owned.break_off(violation);
                true
            }
        }
    }

    /// The pool is open once every worker of the first generation is ready.
    fn check_open(&mut self) {
        if self.core.phase() == Phase::Building && self.starting.is_empty() && self.vacant.is_empty() {
            let core = self.core.clone();
            let ready = core.stations.iter().all(|station| station.own(&core).stage == Stage::Ready);
            if ready {
                core.advance(Phase::Open, None);
            }
        }
    }

    fn check_starts(&mut self) {
        let now = Instant::now();
        let late: Vec<Who> =
            self.starting.iter().filter(|(_, until)| *until <= now).map(|(who, _)| *who).collect();
        for who in late {
            if self.check_start(who) {
                self.starting.retain(|(other, _)| *other != who);
                continue;
            }
            let unwinding = self.is_unwinding(who);
            self.fail(format!(
                "worker {} was not ready within init_timeout ({:?}); raise Builder::init_timeout if init or state takes \
                 longer{}",
                who.station,
                self.init_timeout,
                if unwinding { UNWINDING_HINT } else { "" }
            ));
            self.starting.clear();
        }
        if self.core.close_deadline().is_some_and(|deadline| deadline <= now) {
            events::info(&self.core, format_args!("the pool has not closed in time and is terminated"));
            self.core.force();
        }
        // All may have become ready by the looks above.
        self.check_open();
    }

    fn is_unwinding(&self, who: Who) -> bool {
        let owned = self.core.stations[who.station].own(&self.core);
        let state = owned.lane.as_ref().map(Lane::worker_state);
        matches!(state, Some(Ok((WorkerState::Unwinding, _))))
    }

    /// Asks the zygote for workers where they are missing and due.
    fn start_workers(&mut self) {
        if self.core.phase() >= Phase::Ending {
            self.vacant.clear();
            return;
        }
        let now = Instant::now();
        for _ in 0..self.vacant.len() {
            let Some((station, due)) = self.vacant.pop_front() else { break };
            if due > now {
                self.vacant.push_back((station, due));
                continue;
            }
            // A closing pool needs workers only for what it still has to do; a stream may yet send what is left of a batch.
            if self.core.phase() == Phase::Closing && self.core.is_empty() {
                self.vacant.push_back((station, due));
                continue;
            }
            if let Err(error) = self.start_worker(station) {
                return self.fail(format!("could not start worker {station}: {error}{}", error.advice()));
            }
        }
    }

    fn start_worker(&mut self, station: usize) -> Result<(), SysError> {
        let core = self.core.clone();
        let owned = core.stations[station].own(&core);
        let (Some(request), Some(response)) = (owned.request_bell.clone(), owned.response_bell.clone())
        else {
            return Ok(());
        };
        let who = Who { station, generation: owned.generation };
        drop(owned);
        let asked_ns = clock::now_ns();
        let socket = match &mut self.nursery {
            Nursery::Zygote { socket, .. } => socket,
            Nursery::Crew(_) => return self.start_thread(who, asked_ns, request, &response.0),
        };
        // Covers the moments in which descriptors exist that are not registered: no zygote is forked meanwhile. No
        // station is owned under it, since letting go of one may run user code.
        let registry = registry::lock();
        let (region, fds) = Region::create()?;
        if core.is_timed {
            region.reserve_stamps()?;
        }
        let mut send = vec![fds[0].as_fd(), fds[1].as_fd()];
        send.extend(request.fds());
        send.extend(response.0.fds());
        let sent = socket.try_send(&Order::Spawn(who).to_bytes(), &send);
        drop(send);
        drop(fds);
        drop(registry);
        let sent = match sent {
            // A zygote that has died. Its pidfd tells, and then how: a better cause than this error.
            Err(error) if matches!(error.errno(), nix::libc::EPIPE | nix::libc::ECONNRESET) => false,
            sent => sent?,
        };
        if !sent {
            // A zygote that is stopped: it must not stop this thread too.
            self.vacant.push_back((station, Instant::now() + BACKOFF_MAX));
            return Ok(());
        }
        // Before the zygote's report, which this thread reads.
        self.expect(who, asked_ns, region, request, None);
        Ok(())
    }

    /// The station has a worker that is about to start, or has been asked for.
    fn expect(
        &mut self,
        who: Who,
        asked_ns: u64,
        region: Region,
        request: Arc<Doorbell>,
        process: Option<Process>,
    ) {
        let core = self.core.clone();
        let mut owned = core.stations[who.station].own(&core);
        owned.lane = Some(Lane::new(region, request, core.policy.max_payload));
        owned.stage = Stage::Starting;
        owned.process = process;
        owned.reset(asked_ns);
        drop(owned);
        self.starting.push((who, Instant::now() + self.init_timeout));
    }

    fn start_thread(
        &mut self,
        who: Who,
        asked_ns: u64,
        request: Arc<Doorbell>,
        response: &Doorbell,
    ) -> Result<(), SysError> {
        let (region, theirs) = Region::on_heap()?;
        let bells = Bells {
            request: request.duplicate()?,
            response: response.duplicate()?,
            driver: self.bell.duplicate()?,
        };
        let Nursery::Crew(crew) = &mut self.nursery else { return Ok(()) };
        let member = crew.enlist(who);
        let process = Process { pid: crew::pid(), hold: Hold::Thread(member.clone()) };
        self.processes += 1;
        self.expect(who, asked_ns, region, request, Some(process));
        match &self.nursery {
            Nursery::Crew(crew) => crew.start(member, theirs, bells),
            Nursery::Zygote { .. } => Ok(()),
        }
    }

    /// Reads what threads have reported.
    fn hear_crew(&mut self) {
        while let Nursery::Crew(crew) = &self.nursery
            && let Some(report) = crew.next_report()
        {
            self.heed(report, None);
        }
    }

    fn read_reports(&mut self) {
        loop {
            let Nursery::Zygote { socket, .. } = &self.nursery else { return };
            let mut bytes = [0; MESSAGE_BYTES];
            let mut registry = registry::lock();
            let received = socket.try_recv(&mut bytes);
            let (len, mut fds) = match received {
                Ok(TryRecv::Message(len, fds)) => (len, fds),
                Ok(TryRecv::Empty | TryRecv::Closed) => return,
                Err(error) => {
                    drop(registry);
                    return self.fail(format!("the zygote cannot be heard: {error}"));
                }
            };
            let pidfd = fds.pop().map(PidFd::from);
            if let Some(pidfd) = &pidfd {
                registry.add(pidfd.as_fd());
            }
            drop(registry);
            match Report::from_bytes(&bytes[..len]) {
                Some(report) => self.heed(report, pidfd),
                None => self.fail("the zygote spoke nonsense".to_owned()),
            }
        }
    }

    fn heed(&mut self, report: Report, pidfd: Option<PidFd>) {
        match report {
            Report::Spawned { who, pid } => self.spawned(who, pid, pidfd),
            Report::Refused { who, errno } => {
                let error = std::io::Error::from_raw_os_error(errno);
                self.starting.retain(|(other, _)| *other != who);
                let advice = advice(errno);
                self.fail(format!("could not start worker {}: fork: {error}{advice}", who.station));
            }
            Report::Ended { who, pid, status, max_rss_kib, limited } => {
                let hint = self.oom.hint(status, limited);
                self.ended(who, pid, status, max_rss_kib, hint)
            }
        }
    }

    fn spawned(&mut self, who: Who, pid: u32, pidfd: Option<PidFd>) {
        self.processes += 1;
        let Some(pidfd) = pidfd else { return self.fail("the zygote sent no pidfd".to_owned()) };
        let mut owned = self.core.stations[who.station].own(&self.core);
        if owned.stage == Stage::Ending || owned.violation.is_some() {
            let _ = pidfd.kill(nix::libc::SIGKILL);
        }
        owned.process = Some(Process { pid, hold: Hold::Process(pidfd) });
        drop(owned);
        if self.check_start(who) {
            self.starting.retain(|(other, _)| *other != who);
            self.check_open();
        }
    }

    /// A worker has ended: its results are delivered, its running task fails, the rest runs elsewhere.
    fn ended(&mut self, who: Who, pid: u32, status: ExitStatus, max_rss_kib: u64, hint: Option<LossHint>) {
        self.processes = self.processes.saturating_sub(1);
        self.starting.retain(|(other, _)| *other != who);
        let core = self.core.clone();
        let mut owned = core.stations[who.station].own(&core);
        owned.poll();
        let stage = std::mem::replace(&mut owned.stage, Stage::Vacant);
        let (violation, verdict) = (owned.violation.take(), owned.verdict.take());
        owned.generation += 1;
        core.set_generation(who.station, owned.generation);
        let process = owned.process.take();
        owned.tally.note_end();
        let tasks_done = owned.tasks_done;
        let mut end =
            End { max_rss_kib, violation, verdict, tasks_done, hint, ..End::new(who, pid, status, stage) };
        let mut failed_text = None;
        let mut unwinding = false;
        if let Some(lane) = owned.take_lane() {
            end.parting = lane.parting();
            if let Ok((state, text)) = lane.worker_state() {
                failed_text = (state == WorkerState::Failed && stage == Stage::Starting).then_some(text);
                unwinding = state == WorkerState::Unwinding;
            }
            end.ran_for = lane.ran_for();
            owned.bury(lane, &mut end);
        }
        let pending = !owned.is_empty();
        drop(owned);
        if let Some(saver) = &core.crashers {
            saver.start();
        }
        release_pidfd(process);
        let phase = core.phase();
        end.report(&core, phase == Phase::Open || phase == Phase::Closing && pending);
        if core.phase() >= Phase::Ending {
            return;
        }
        if let Some(text) = failed_text {
            return self.fail(text);
        }
        if stage == Stage::Ending && !pending {
            return;
        }
        // There is work after all: the end begins again after it.
        self.orderly = false;
        if stage == Stage::Starting {
            return self.start_failed(who, status, unwinding);
        }
        if end.is_loss() {
            match core.policy.on_worker_loss {
                OnWorkerLoss::FailTask => {}
                OnWorkerLoss::FailAll => return self.fail(format!("a worker was lost: {end}")),
                OnWorkerLoss::Abort => {
                    events::error(&core, format_args!("a worker was lost, so the program is aborted: {end}"));
                    core.await_crashers();
                    std::process::abort();
                }
            }
        }
        let mut due = Instant::now();
        let barren = &mut self.barren[who.station];
        *barren = if end.is_loss() && end.tasks_done == 0 { barren.saturating_add(1) } else { 0 };
        if *barren > 1 {
            // One that took a task with it has made some progress. One that did not may go on like that for ever.
            let doublings = if end.lost_task { 0 } else { (*barren - 2).min(6) };
            due += CRASH_PAUSE * (1 << doublings);
        }
        self.vacant.push_back((who.station, due));
    }

    /// A worker died before it was ready, without saying why.
    fn start_failed(&mut self, who: Who, status: ExitStatus, unwinding: bool) {
        self.failed_starts += 1;
        let first = self.core.phase() == Phase::Building;
        if unwinding || first || self.failed_starts >= FAILED_STARTS_MAX {
            let hint = if unwinding { UNWINDING_HINT } else { "" };
            return self.fail(format!(
                "worker {} {} before it was ready{hint}",
                who.station,
                describe(status)
            ));
        }
        let pause = BACKOFF_MIN.saturating_mul(1 << (self.failed_starts - 1).min(16)).min(BACKOFF_MAX);
        self.vacant.push_back((who.station, Instant::now() + pause));
    }

    /// Takes the pool down step by step. `true`: all that is left is to let go of what it held.
    fn wind_down(&mut self) -> bool {
        let core = self.core.clone();
        if core.phase() == Phase::Closing && self.orderly && !core.is_empty() {
            // A stream has sent what was left of a batch: the end begins again after it.
            self.orderly = false;
            let now = Instant::now();
            for station in &core.stations {
                if station.own(&core).stage == Stage::Vacant {
                    self.vacant.push_back((station.id, now));
                }
            }
            self.start_workers();
        }
        if core.phase() == Phase::Closing && !self.orderly {
            if !core.is_empty() {
                return false;
            }
            self.orderly = true;
            self.vacant.clear();
            for station in &core.stations {
                let mut owned = station.own(&core);
                let starting = owned.stage == Stage::Starting;
                if let Some(lane) = &mut owned.lane {
                    lane.order(wire::Order::Exit);
                    owned.stage = Stage::Ending;
                }
                if starting {
                    // Nobody needs it, and it might never become ready.
                    owned.signal(nix::libc::SIGKILL);
                }
            }
        }
        if core.phase() == Phase::Closing {
            let asked = self.starting.len();
            return self.processes == 0 && asked == 0;
        }
        true
    }

    /// The zygote has died, and its workers with it.
    fn zygote_lost(&mut self) {
        if self.core.phase() < Phase::Ending && !(self.orderly && self.processes == 0) {
            let Nursery::Zygote { process, .. } = &self.nursery else { return };
            let how = match process.wait_child() {
                Ok(Some(status)) => describe(status),
                _ => "ended".to_owned(),
            };
            self.fail(format!("the zygote process {how}"));
        }
    }

    /// Lets go of processes, descriptors and memory.
    pub(crate) fn finish(self) {
        if self.core.phase() < Phase::Ending {
            self.core.advance(Phase::Ending, None);
        }
        let core = self.core.clone();
        // Whoever ends the pool goes from station to station; this thread may get to one of them first.
        let cause = match core.failure() {
            Some(failure) => TaskError::PoolFailed(failure),
            None if self.orderly => TaskError::Closed,
            None => TaskError::Terminated,
        };
        for station in &core.stations {
            let mut owned = station.own(&core);
            let told = owned.refusal.clone().filter(|refusal| !refusal.is_closed());
            let unfinished = owned.put_down(&told.unwrap_or_else(|| cause.clone()));
            core.add_unfinished(unfinished);
        }
        match &self.nursery {
            Nursery::Zygote { socket, process } => {
                let _ = socket.try_send(&Order::Terminate.to_bytes(), &[]);
                self.await_zygote(socket, process);
            }
            Nursery::Crew(crew) => {
                crew.await_idle();
                std::iter::from_fn(|| crew.next_report()).for_each(|report| self.note_last(report));
            }
        }
        core.await_crashers();
        if let Some(host) = core.service() {
            host.stop();
        }
        drop(core.take_bell());
        let mut bells = Vec::new();
        for station in &core.stations {
            let mut owned = station.own(&core);
            let process = owned.process.take();
            bells.extend(owned.request_bell.take());
            let response = owned.response_bell.take();
            drop(owned);
            release_pidfd(process);
            if let Some(bell) = response {
                bell.0.ring();
                let mut registry = registry::lock();
                bell.0.fds().for_each(|fd| registry.remove(fd));
                drop(bell);
            }
        }
        let Self { bell, nursery, epoll, .. } = self;
        let zygote = match nursery {
            Nursery::Zygote { socket, process } => Some((socket, process)),
            Nursery::Crew(crew) => {
                // The last one to have the seed drops what is the user's.
                let _ = crate::panics::guard(|| drop(crew));
                None
            }
        };
        {
            let mut registry = registry::lock();
            if let Some(epoll) = &epoll {
                registry.remove(epoll.as_fd());
            }
            for bell in bells.iter().chain([&bell]) {
                bell.fds().for_each(|fd| registry.remove(fd));
            }
            if let Some((socket, process)) = &zygote {
                registry.remove(socket.as_fd());
                registry.remove(process.as_fd());
            }
            drop((bells, epoll, bell, zygote));
        }
        if let Some(journal) = &core.journal {
            journal.close(&core);
        }
        core.advance(Phase::Ended, None);
    }

    /// Waits for the zygote to reap its workers and leave; reads what it says meanwhile.
    fn await_zygote(&self, socket: &Socket, zygote: &PidFd) {
        let deadline = Instant::now() + ZYGOTE_PATIENCE;
        while !zygote.has_exited() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                events::error(&self.core, format_args!("the zygote does not leave; it is killed"));
                let _ = zygote.kill(nix::libc::SIGKILL);
                break;
            }
            let fds = [zygote.as_fd(), socket.as_fd()];
            let _ = crate::ground::sys::poll::wait_readable(&fds, Some(left));
            self.read_last_reports(socket);
        }
        self.read_last_reports(socket);
        let _ = zygote.wait_child();
    }

    /// What the zygote says while it takes its workers down.
    fn read_last_reports(&self, socket: &Socket) {
        let mut bytes = [0; MESSAGE_BYTES];
        while let Ok(TryRecv::Message(len, _)) = socket.try_recv(&mut bytes) {
            if let Some(report) = Report::from_bytes(&bytes[..len]) {
                self.note_last(report);
            }
        }
    }

    /// Each end has its event, and nothing else matters any more.
    fn note_last(&self, report: Report) {
        if let Report::Ended { who, pid, status, .. } = report {
            End::new(who, pid, status, Stage::Ending).report(&self.core, false);
        }
    }
}

const UNWINDING_HINT: &str = ": start_worker() was unwinding towards StartWorker::catch, and something on the way \
     catches panics or waits for threads that do not exist in a worker, such as catch_unwind, thread::scope, \
     thread::spawn, tokio::spawn or the drop of a runtime; call build() outside of it";

fn release_pidfd(process: Option<Process>) {
    if let Some(Process { hold: Hold::Process(pidfd), .. }) = process {
        let mut registry = registry::lock();
        registry.remove(pidfd.as_fd());
        drop(pidfd);
    }
}
