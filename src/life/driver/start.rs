//! Workers are started, and become ready or fail.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::finish::release_bell;
use super::{Driver, Nursery};
use crate::ground::doorbell::Doorbell;
use crate::ground::sys::process::ExitStatus;
use crate::ground::sys::{SysError, clock};
use crate::life::core::Phase;
use crate::life::crew;
use crate::life::end::describe;
use crate::life::events;
use crate::life::journal::Entry;
use crate::life::messages::{Order, Who};
use crate::life::registry;
use crate::life::station::{Bell, Hold, Process, Stage};
use crate::memory::region::Region;
use crate::protocol::lane::Lane;
use crate::protocol::port::Bells;
use crate::protocol::wire::WorkerState;

/// Workers that cannot be started, or die one after another before they were ready, by a signal and not by an error of `init`'s,
/// end the pool after this many.
const FAILED_STARTS_MAX: u32 = 8;
/// The pause before a worker is started again grows from the first to the second.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

const UNWINDING_HINT: &str = ": start_worker() was unwinding towards StartWorker::catch, and something on the way \
     catches panics or waits for threads that do not exist in a worker, such as catch_unwind, thread::scope, \
     thread::spawn, tokio::spawn or the drop of a runtime; call build() outside of it";

impl Driver {
    /// Whether a starting worker has become ready or failed.
    pub(super) fn check_start(&mut self, who: Who) -> bool {
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
    pub(super) fn check_open(&mut self) {
        if self.core.phase() == Phase::Building && self.starting.is_empty() && self.vacant.is_empty() {
            let core = self.core.clone();
            let ready = core.stations.iter().all(|station| station.own(&core).stage == Stage::Ready);
            if ready {
                core.advance(Phase::Open, None);
            }
        }
    }

    pub(super) fn check_starts(&mut self) {
        let now = Instant::now();
        let is_late = |until: Option<Instant>| until.is_some_and(|until| until <= now);
        let late: Vec<Who> =
            self.starting.iter().filter(|(_, until)| is_late(*until)).map(|(who, _)| *who).collect();
        for who in late {
            if self.check_start(who) {
                self.starting.retain(|(other, _)| *other != who);
                continue;
            }
            let (station, limit) = (who.station, self.init_timeout);
            let is_forked = self.core.stations[station].own(&self.core).process.is_some();
            let hint = if self.is_unwinding(who) { UNWINDING_HINT } else { "" };
            self.fail(match is_forked {
                true => format!(
                    "worker {station} was not ready within init_timeout ({limit:?}); raise Builder::init_timeout if init or state \
                     takes longer{hint}"
                ),
                false => format!("the zygote process did not fork worker {station} within init_timeout ({limit:?})"),
            });
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
    pub(super) fn start_workers(&mut self) {
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
                self.not_started(station, &format!("{error}{}", error.advice()));
            }
        }
    }

    fn start_worker(&mut self, station: usize) -> Result<(), SysError> {
        let core = self.core.clone();
        let generation = core.stations[station].own(&core).generation;
        let who = Who { station, generation };
        let asked_ns = clock::now_ns();
        let socket = match &mut self.nursery {
            Nursery::Zygote { socket, .. } => socket,
            Nursery::Crew(_) => return self.start_thread(who, asked_ns),
        };
        // Covers the moments in which descriptors exist that are not registered: no zygote is forked meanwhile. No
        // station is owned under it, since letting go of one may run user code.
        let mut registry = registry::lock();
        let (region, fds) = Region::create()?;
        let (bell, ringer) = Doorbell::new()?;
        if core.is_timed {
            region.reserve_stamps()?;
        }
        let send = [fds[0].as_fd(), fds[1].as_fd(), ringer.as_fd()];
        let sent = socket.try_send(&Order::Spawn(who).to_bytes(), &send);
        drop((fds, ringer));
        bell.fds().for_each(|fd| registry.add(fd));
        drop(registry);
        // Before an error is returned: the bell is the station's to let go of.
        self.hang(station, bell);
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
        self.expect(who, asked_ns, region, None);
        Ok(())
    }

    /// Gives the station another doorbell, for a worker that is about to start: who has the ringer of an earlier one, or has made
    /// himself a reader of it, has nothing to do with this one.
    fn hang(&self, station: usize, bell: Doorbell) {
        let former = {
            let mut owned = self.core.stations[station].own(&self.core);
            owned.response_bell.replace(Arc::new(Bell(bell)))
        };
        if let Some(former) = former {
            release_bell(former);
        }
    }

    /// The station has a worker that is about to start, or has been asked for.
    fn expect(&mut self, who: Who, asked_ns: u64, region: Region, process: Option<Process>) {
        let core = self.core.clone();
        let mut owned = core.stations[who.station].own(&core);
        owned.lane = Some(Lane::new(region, core.policy.max_payload));
        owned.stage = Stage::Starting;
        owned.process = process;
        owned.reset(asked_ns);
        drop(owned);
        self.starting.push((who, Instant::now().checked_add(self.init_timeout)));
    }

    fn start_thread(&mut self, who: Who, asked_ns: u64) -> Result<(), SysError> {
        let (region, theirs) = Region::on_heap()?;
        let response = Doorbell::local();
        let ringers = (response.ringer(), self.bell.ringer());
        let (Nursery::Crew(crew), (Some(response_ringer), Some(driver_ringer))) =
            (&mut self.nursery, ringers)
        else {
            return Ok(());
        };
        let bells = Bells { response: response_ringer, driver: driver_ringer };
        let member = crew.enlist(who);
        let process = Process { pid: crew::pid(), hold: Hold::Thread(member.clone()) };
        self.processes += 1;
        self.hang(who.station, response);
        self.expect(who, asked_ns, region, Some(process));
        let Nursery::Crew(crew) = &self.nursery else { return Ok(()) };
        crew.start(member, theirs, bells).inspect_err(|_| {
            self.processes -= 1;
            self.dismiss(who);
        })?;
        self.core.stations[who.station].own(&self.core).tally.note_start();
        Ok(())
    }

    /// Nobody comes, so the station is as it was before it was asked for one. Where it had got to meanwhile, and whether it has work.
    pub(super) fn dismiss(&mut self, who: Who) -> (Stage, bool) {
        self.starting.retain(|(other, _)| *other != who);
        let mut owned = self.core.stations[who.station].own(&self.core);
        let stage = std::mem::replace(&mut owned.stage, Stage::Vacant);
        owned.process = None;
        drop(owned.take_lane());
        (stage, !owned.is_empty())
    }

    /// A worker died before it was ready, without saying why.
    pub(super) fn start_failed(&mut self, who: Who, status: ExitStatus, unwinding: bool) {
        let (station, end) = (who.station, describe(status));
        let what = format!("worker {station} {end} before it was ready");
        if unwinding {
            return self.fail(what + UNWINDING_HINT);
        }
        self.back_off(station, what);
    }

    /// There was no worker to be had.
    pub(super) fn not_started(&mut self, station: usize, why: &str) {
        let what = format!("could not start worker {station}: {why}");
        if self.core.phase() > Phase::Building {
            events::error(&self.core, format_args!("{what}"));
        }
        self.back_off(station, what);
    }

    /// Tries again after a pause, since what is short may be there again; but not for ever, and not if the pool is only being built.
    fn back_off(&mut self, station: usize, what: String) {
        if self.core.phase() == Phase::Building {
            return self.fail(what);
        }
        let now = Instant::now();
        if now >= self.paused_until {
            self.failed_starts += 1;
            if self.failed_starts >= FAILED_STARTS_MAX {
                return self.fail(format!("{what}, as {} before it in a row", FAILED_STARTS_MAX - 1));
            }
            let pause = BACKOFF_MIN.saturating_mul(1 << (self.failed_starts - 1).min(16)).min(BACKOFF_MAX);
            self.paused_until = now + pause;
        }
        self.vacant.push_back((station, self.paused_until));
    }
}
