//! Workers that are threads of this process: what the zygote is to workers that are processes.
//!
//! The driver starts them; each reports its own end, through the driver's doorbell. What cannot be done is to kill one:
//! where a process would be killed, a thread is *given up*. Its end is reported at once, so that its task fails and a successor
//! takes its place; nothing more starts in it, it waits for the pool no more, and it ends when the task that it runs returns. Its
//! region lives until then.
//!
//! Everybody who may touch what the pool was built from is [present](Presence) at the [`Muster`]: whoever lends the pool a
//! borrowed closure waits until nobody is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::messages::{Report, Who};
use super::seed::SharedSeed;
use super::worker;
use crate::ground::doorbell::Doorbell;
use crate::ground::monitor::{Condvar, Mutex};
use crate::ground::sys::process::{self, ExitStatus};
use crate::ground::sys::signals::Mask;
use crate::ground::sys::{Call, SysError, fork_generation};
use crate::memory::region::WorkerRegion;
use crate::panics;
use crate::protocol::port::Bells;

/// As the main thread of a process has as a rule, so that what fits there fits here.
const STACK_BYTES: usize = 8 << 20;

/// Threads that are in no task are given this long to leave.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a thread "ended" with that was given up: no process ends like that.
pub(crate) const GIVEN_UP: ExitStatus = ExitStatus::Signaled(0, false);

/// What threads say to the driver.
#[derive(Debug)]
struct Reports {
    queue: Mutex<VecDeque<Report>>,
    bell: Arc<Doorbell>,
}

/// Who may still touch what a pool was built from.
#[derive(Debug)]
pub(crate) struct Muster {
    present: Mutex<usize>,
    changed: Condvar,
    fork_generation: u32,
}

/// Somebody at the [`Muster`].
#[derive(Debug)]
pub(crate) struct Presence(Arc<Muster>);

impl Muster {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            present: Mutex::new(0),
            changed: Condvar::new(),
            fork_generation: fork_generation::current(),
        })
    }

    pub(crate) fn join(self: &Arc<Self>) -> Presence {
        *self.present.lock() += 1;
        Presence(self.clone())
    }

    /// Waits until nobody is present. In a fork of the program nobody is.
    pub(crate) fn wait_until_empty(&self) {
        if fork_generation::current() == self.fork_generation {
            let mut present = self.present.lock();
            while *present > 0 {
                self.changed.wait(&mut present);
            }
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        *self.0.present.lock() -= 1;
        self.0.changed.notify_all();
    }
}

/// Waits, when it is dropped, until nothing of a pool is left that could touch what was lent to it.
#[derive(Debug)]
pub(crate) struct Loan(pub(crate) Arc<Muster>);

impl Drop for Loan {
    fn drop(&mut self) {
        self.0.wait_until_empty();
    }
}

/// One worker.
#[derive(Debug)]
pub(crate) struct Member {
    who: Who,
    reports: Arc<Reports>,
    /// Whether its end has been reported.
    reported: AtomicBool,
    /// Whether it was given up in a task, so that nobody knows when it ends.
    engaged: AtomicBool,
    over: AtomicBool,
}

impl Member {
    /// It is not waited for any more. `engaged`: it may be in user code.
    pub(crate) fn give_up(&self, engaged: bool) {
        if engaged {
            self.engaged.store(true, Ordering::Release);
        }
        self.report(GIVEN_UP);
    }

    fn report(&self, status: ExitStatus) {
        if !self.reported.swap(true, Ordering::AcqRel) {
            let pid = pid();
            let report = Report::Ended { who: self.who, pid, status, max_rss_kib: 0, limited: false };
            self.reports.queue.lock().push_back(report);
            self.reports.bell.ring();
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Crew {
    seed: Arc<SharedSeed>,
    /// The pool's, for [`current_task`](crate::current_task): leaked, some bytes a pool.
    name: &'static str,
    /// What threads of the program get of its signals, and not what the driver gets, which is none.
    mask: Mask,
    reports: Arc<Reports>,
    members: Vec<Arc<Member>>,
    presence: Presence,
}

impl Crew {
    pub(crate) fn new(
        seed: SharedSeed,
        driver_bell: &Arc<Doorbell>,
        muster: &Arc<Muster>,
    ) -> Result<Self, SysError> {
        let name = Box::leak(seed.get().name.clone().into_boxed_str());
        Ok(Self {
            seed: Arc::new(seed),
            name,
            mask: Mask::current()?,
            reports: Arc::new(Reports { queue: Mutex::default(), bell: driver_bell.clone() }),
            members: Vec::new(),
            presence: muster.join(),
        })
    }

    /// A worker that is about to be started.
    pub(crate) fn enlist(&mut self, who: Who) -> Arc<Member> {
        self.members.retain(|member| !member.over.load(Ordering::Acquire));
        let member = Arc::new(Member {
            who,
            reports: self.reports.clone(),
            reported: AtomicBool::new(false),
            engaged: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        self.members.push(member.clone());
        member
    }

    pub(crate) fn start(
        &self,
        member: Arc<Member>,
        region: WorkerRegion,
        bells: Bells,
    ) -> Result<(), SysError> {
        let presence = self.presence.clone();
        let (seed, name, mask, who) = (self.seed.clone(), self.name, self.mask, member.who);
        let thread = std::thread::Builder::new()
            .name(format!("{}-w{}", seed.get().name, who.station))
            .stack_size(STACK_BYTES);
        let failed = member.clone();
        let started = thread.spawn(move || {
            mask.set();
            let code = worker::run_on_thread(seed.get(), name, who, region, bells);
            // If it is the last one: the user's destructors.
            let _ = panics::guard(|| drop(seed));
            member.over.store(true, Ordering::Release);
            member.report(ExitStatus::Exited(code));
            drop(presence);
        });
        if started.is_err() {
            failed.over.store(true, Ordering::Release);
        }
        started.call("pthread_create").map(drop)
    }

    pub(crate) fn next_report(&self) -> Option<Report> {
        self.reports.queue.lock().pop_front()
    }

    /// Waits for the threads that are in no task.
    pub(crate) fn await_idle(&self) {
        let deadline = Instant::now() + PATIENCE;
        let is_done = |member: &Arc<Member>| {
            member.over.load(Ordering::Acquire) || member.engaged.load(Ordering::Acquire)
        };
        let muster = &self.presence.0;
        let mut present = muster.present.lock();
        while !self.members.iter().all(is_done) {
            if muster.changed.wait_until(&mut present, deadline).timed_out() {
                return;
            }
        }
    }
}

impl Clone for Presence {
    fn clone(&self) -> Self {
        self.0.join()
    }
}

/// The pid of a worker of this kind.
pub(crate) fn pid() -> u32 {
    process::own_pid().unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loan_ends_when_nobody_is_present() {
        let muster = Muster::new();
        let first = muster.join();
        let second = first.clone();
        let started = Doorbell::local();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                started.ring();
                drop(Loan(muster.clone()));
            });
            assert!(started.wait(Some(Duration::from_secs(30))));
            drop(first);
            assert!(!waiter.is_finished(), "the second one is there");
            drop(second);
            waiter.join().unwrap();
        });
        assert_eq!(*muster.present.lock(), 0);
    }

    #[test]
    fn an_end_is_reported_once() {
        let reports = Arc::new(Reports { queue: Mutex::default(), bell: Arc::new(Doorbell::local()) });
        let member = Member {
            who: Who { station: 3, generation: 4 },
            reports: reports.clone(),
            reported: AtomicBool::new(false),
            engaged: AtomicBool::new(false),
            over: AtomicBool::new(false),
        };
        member.give_up(true);
        member.give_up(false);
        member.report(ExitStatus::Exited(0));
        assert!(reports.bell.wait(Some(Duration::ZERO)));
        let queue = reports.queue.lock();
        let statuses: Vec<ExitStatus> = queue
            .iter()
            .filter_map(|report| match report {
                Report::Ended { status, .. } => Some(*status),
                _ => None,
            })
            .collect();
        assert_eq!(statuses, [GIVEN_UP]);
    }
}
