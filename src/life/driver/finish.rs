//! The pool is taken down: what is to be waited for first, and what is let go of.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Driver, Nursery};
use crate::error::TaskError;
use crate::ground::sys::process::PidFd;
use crate::ground::sys::socket::{Socket, TryRecv};
use crate::life::core::Phase;
use crate::life::end::{End, describe};
use crate::life::events;
use crate::life::messages::{MESSAGE_BYTES, Order, Report};
use crate::life::registry;
use crate::life::station::{Bell, Hold, Process, Stage};
use crate::protocol::wire;

/// The zygote is given this long to kill and reap its workers.
const ZYGOTE_PATIENCE: Duration = Duration::from_secs(10);

impl Driver {
    /// Takes the pool down step by step. `true`: all that is left is to let go of what it held.
    pub(super) fn wind_down(&mut self) -> bool {
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
            self.rouse_zygote();
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

    /// Whoever has stopped the zygote: there is something for it to do.
    pub(super) fn rouse_zygote(&self) {
        if let Nursery::Zygote { process, .. } = &self.nursery {
            let _ = process.kill(nix::libc::SIGCONT);
        }
    }

    /// The zygote has died, and its workers with it.
    pub(super) fn zygote_lost(&mut self) {
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
        self.rouse_zygote();
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
        drop(core.take_bell());
        for station in &core.stations {
            let mut owned = station.own(&core);
            let process = owned.process.take();
            let response = owned.response_bell.take();
            drop(owned);
            release_pidfd(process);
            if let Some(bell) = response {
                release_bell(bell);
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
            bell.fds().for_each(|fd| registry.remove(fd));
            if let Some((socket, process)) = &zygote {
                registry.remove(socket.as_fd());
                registry.remove(process.as_fd());
            }
            drop((epoll, bell, zygote));
        }
        if let Some(journal) = &core.journal {
            journal.close(&core);
        }
        // Free cells keep the core (JOB-3), so what is the program's does not wait for that to go. Its destructors may take their
        // time, and all else is let go of by now.
        core.timers.close();
        if let Some(host) = core.service() {
            host.end();
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

/// A station does without its doorbell; who sleeps there is woken, and has it for as long as that takes.
pub(super) fn release_bell(bell: Arc<Bell>) {
    bell.0.ring();
    let mut registry = registry::lock();
    bell.0.fds().for_each(|fd| registry.remove(fd));
    drop(bell);
}

pub(super) fn release_pidfd(process: Option<Process>) {
    if let Some(Process { hold: Hold::Process(pidfd), .. }) = process {
        let mut registry = registry::lock();
        registry.remove(pidfd.as_fd());
        drop(pidfd);
    }
}
