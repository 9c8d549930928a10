//! What the zygote and the crew report: who has been started, and who has ended.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::finish::release_pidfd;
use super::{Driver, Nursery};
use crate::error::LossHint;
use crate::ground::sys::advice;
use crate::ground::sys::process::{ExitStatus, PidFd};
use crate::ground::sys::socket::TryRecv;
use crate::life::core::Phase;
use crate::life::end::End;
use crate::life::events;
use crate::life::messages::{MESSAGE_BYTES, Report, Who};
use crate::life::registry;
use crate::life::station::{Hold, Process, Stage};
use crate::life::terms::OnWorkerLoss;
use crate::protocol::wire::WorkerState;

/// A worker that died without having finished anything is replaced after this pause if its predecessor did the same, so that
/// tasks that all crash do not keep the machine busy with forks.
const CRASH_PAUSE: Duration = Duration::from_millis(2);

impl Driver {
    /// Reads what threads have reported.
    pub(super) fn hear_crew(&mut self) {
        while let Nursery::Crew(crew) = &self.nursery
            && let Some(report) = crew.next_report()
        {
            self.heed(report, None);
        }
    }

    pub(super) fn read_reports(&mut self) {
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
                let (stage, pending) = self.dismiss(who);
                if self.core.phase() >= Phase::Ending || stage == Stage::Ending && !pending {
                    return;
                }
                // There is work after all: the end begins again after it.
                self.orderly = false;
                let error = std::io::Error::from_raw_os_error(errno);
                self.not_started(who.station, &format!("fork: {error}{}", advice(errno)));
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
        owned.tally.note_start();
        drop(owned);
        if self.check_start(who) {
            self.starting.retain(|(other, _)| *other != who);
            self.check_open();
        }
    }

    /// A worker has ended: its results are delivered, its running task fails, the rest runs elsewhere.
    pub(super) fn ended(
        &mut self,
        who: Who,
        pid: u32,
        status: ExitStatus,
        max_rss_kib: u64,
        hint: Option<LossHint>,
    ) {
        let core = self.core.clone();
        let mut owned = core.stations[who.station].own(&core);
        if owned.generation != who.generation {
            // It was found dead before the zygote said so.
            return;
        }
        self.processes = self.processes.saturating_sub(1);
        self.starting.retain(|(other, _)| *other != who);
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
        let mut unwinding = false;
        if let Some(lane) = owned.take_lane() {
            end.parting = lane.parting();
            if let Ok((state, text)) = lane.worker_state() {
                end.failure = (state == WorkerState::Failed).then(|| text.into());
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
        // Later, a successor gets to try in a process that no task has spoilt; if that cannot start either, the pool fails.
        if let Some(text) = end.failure.as_ref().filter(|_| stage == Stage::Starting) {
            return self.fail(text.to_string());
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
}
