//! Blocking waits. Whoever waits may drive: it looks at the worker's responses itself, and when it sleeps, the worker
//! wakes it directly.
//!
//! A wait is a loop of three steps. *Look*: own the station of the task and poll it for as long as the spin budget
//! says, letting go as soon as somebody else wants it. While the worker is only about to wake up there is nothing to see,
//! and it may need this very CPU for it: then one look is all. *Sit*: take the station's seat, arm the worker to ring the
//! seat's bell, look once more, sleep. There is one seat; who finds it taken *parks* and is woken through the task's
//! waker by whoever delivers its result: the thread in the seat, a submitter, or the driver.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::core::Core;
use super::job::Job;
use super::station::{Seat, Station};
use crate::error::TaskError;

/// A thread that can be woken as a task is.
#[derive(Debug)]
pub(crate) struct Parker {
    thread: Thread,
    woken: AtomicBool,
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Parker {
    /// This thread's.
    pub(crate) fn current() -> Arc<Self> {
        thread_local! {
            static PARKER: RefCell<Option<Arc<Parker>>> = const { RefCell::new(None) };
        }
        let make = || Arc::new(Self { thread: std::thread::current(), woken: AtomicBool::new(false) });
        PARKER
            .try_with(|parker| parker.borrow_mut().get_or_insert_with(make).clone())
            .unwrap_or_else(|_| make())
    }

    /// Forgets a wake-up that was meant for an earlier wait.
    pub(crate) fn reset(&self) {
        self.woken.store(false, Ordering::Relaxed);
    }

    /// Sleeps until woken; `false` when the time is over first.
    pub(crate) fn park(&self, deadline: Option<Instant>) -> bool {
        while !self.woken.swap(false, Ordering::Acquire) {
            match deadline {
                None => std::thread::park(),
                Some(deadline) => {
                    let Some(left) = left(deadline) else { return false };
                    std::thread::park_timeout(left);
                }
            }
        }
        true
    }
}

fn left(deadline: Instant) -> Option<Duration> {
    deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
}

/// What a thread can wait for.
pub(crate) trait Awaited {
    fn is_done(&self) -> bool;
    /// The station whose worker is expected to bring it.
    fn station(&self) -> usize;
    /// What it is, if it is one job whose task stays the caller's, and nobody else's, for as long as he waits: nobody drops it then, nor has
    /// another waker called (edge DONE).
    fn job(&self) -> Option<&'static Job>;
    /// The job at [`station`](Self::station) without which there is nothing to wake up for, likewise. `None`: it may be anything, from
    /// any station.
    fn needs(&self) -> Option<&'static Job>;
    /// The only station whose worker can bring it, if there is but one.
    fn only_at(&self) -> Option<usize> {
        None
    }
    /// Wants `waker` called when it is done. `Ready`: it is.
    fn register(&self, waker: &Waker) -> Poll<()>;
    /// Nobody is to be woken any more.
    fn unregister(&self) {}
    /// Gives up on what has not started.
    fn call_off(&self, core: &Core, error: &TaskError);
}

impl Awaited for &'static Job {
    #[inline]
    fn is_done(&self) -> bool {
        Job::is_done(self)
    }

    fn station(&self) -> usize {
        Job::station(self)
    }

    fn job(&self) -> Option<&'static Job> {
        Some(self)
    }

    fn needs(&self) -> Option<&'static Job> {
        self.job()
    }

    fn only_at(&self) -> Option<usize> {
        self.is_pinned().then(|| Job::station(self))
    }

    fn register(&self, waker: &Waker) -> Poll<()> {
        Job::register(self, waker)
    }

    fn call_off(&self, core: &Core, error: &TaskError) {
        core.call_off(self, self.generation(), error);
    }
}

/// Who looks at somebody else's looking tries to own the station again after so many.
const LOOKS_MAX: u32 = 1 << 14;

/// One look in so many also asks how far unfinished responses are.
const LOOKS_PER_POLL: u32 = 64;

/// With many tasks before the worker, their responses are waited for together: each look takes a line away from the worker that
/// it is about to write the next response to.
const LOOKS_PER_PEEK: u32 = 16;
/// Who sits again so soon after the last time, and finds the worker asleep all the same, shares one core with it. He looks for
/// as long as he may: the scheduler sees that both want to run, and moves one of them. If he slept at once they would take
/// turns there for ever, 13 µs each.
const AT_ONCE: Duration = Duration::from_micros(20);

/// How long a thread sleeps whom a single response might not ring: that takes a barrier that a worker is interrupted for, 1.7 µs on
/// hardware and 20 µs on a virtual machine.
const SHORT_SLEEP: Duration = Duration::from_millis(1);

/// How often a thread steps back for the service before it sleeps.
const YIELDS: u32 = 4;

/// What a look at a station ended with.
enum Looked {
    Done,
    Again,
    Nothing,
    /// The worker waits for the service.
    Owing,
}

/// Leaves this CPU to the service's thread, which may be waiting for it, and will look for what follows its answer. Whether the
/// job is done then.
fn steps_back(job: &impl Awaited) -> bool {
    (0..YIELDS).any(|_| {
        std::thread::yield_now();
        job.is_done()
    })
}

impl Core {
    /// Waits for a job that is the caller's to take, or for whatever else comes from a worker. `false`: the time was over first.
    pub(crate) fn wait(&self, job: &impl Awaited, deadline: Option<Instant>) -> bool {
        // Who spins for ever does not come to where others sleep.
        let _nested =
            (self.spin.is_endless() && !job.is_done()).then(|| super::service::nested_wait(self, job));
        loop {
            if job.is_done() {
                return true;
            }
            let station = &self.stations[job.station()];
            match self.look(station, job, deadline) {
                Looked::Done => return true,
                Looked::Again => {}
                Looked::Owing if steps_back(job) => return true,
                Looked::Nothing | Looked::Owing => {
                    if deadline.is_some_and(|deadline| left(deadline).is_none()) {
                        return job.is_done();
                    }
                    let _nested = super::service::nested_wait(self, job);
                    if !self.sit(station, job, deadline) {
                        self.park(job, deadline);
                    }
                }
            }
            if deadline.is_some_and(|deadline| left(deadline).is_none()) {
                return job.is_done();
            }
        }
    }

    #[inline]
    fn look(&self, station: &Station, job: &impl Awaited, deadline: Option<Instant>) -> Looked {
        let mut looks = 0_u32;
        let mut owned = station.try_own(self);
        if let Some(owned) = &mut owned {
            // Among those that are busy it is to be counted too.
            owned.leave_idle();
        }
        let spin = self.spin.beside(self.busy());
        let Some(mut owned) = owned else {
            // Whoever owns it will deliver; a moment's patience saves a sleep.
            let found = spin.spin(|| {
                looks += 1;
                if job.is_done() {
                    Some(Looked::Done)
                } else {
                    // One that does not end by itself has to see when the station is free, or the time over.
                    looks.is_multiple_of(LOOKS_MAX).then_some(Looked::Again)
                }
            });
            return found.unwrap_or(Looked::Nothing);
        };
        owned.set_awaited(job.job());
        // With many tasks before it the worker has been rung for another one, and has more to tell than this answer.
        let asleep = !owned.has_many() && owned.is_asleep();
        if asleep && !self.spin.is_endless() && owned.last_sat.is_none_or(|at| at.elapsed() > AT_ONCE) {
            // What is armed stays so: the seat can take it over.
            owned.poll_news();
            return if job.is_done() { Looked::Done } else { Looked::Nothing };
        }
        owned.disarm();
        let spin = if owned.spins_in_vain() { spin.once() } else { spin };
        let found = spin.spin(|| {
            looks += 1;
            if looks.is_multiple_of(LOOKS_PER_POLL) {
                owned.poll_news();
                if owned.owes_answer() && !self.spin.is_endless() {
                    return Some(Looked::Owing);
                }
                if owned.has_many() && owned.is_asleep() {
                    // It may be waiting for this very CPU.
                    std::thread::yield_now();
                }
            } else if looks == 1 || !owned.has_many() || looks.is_multiple_of(LOOKS_PER_PEEK) {
                owned.peek();
                owned.keep_busy();
            }
            if job.is_done() {
                Some(Looked::Done)
            } else if owned.contended() || owned.owes() || job.station() != station.id {
                Some(Looked::Again)
            } else if looks.is_multiple_of(LOOKS_PER_POLL)
                && deadline.is_some_and(|deadline| left(deadline).is_none())
            {
                Some(Looked::Nothing)
            } else {
                None
            }
        });
        owned.note_spin(found.is_some());
        found.unwrap_or_else(|| {
            owned.lose_patience();
            Looked::Nothing
        })
    }

    /// Looks for a job whose task is being polled. To be woken costs a barrier and a hop over the driver, 5 to 10 µs; an executor's
    /// other tasks may as well wait for 2, for a worker that is awake and has nothing else before it.
    pub(crate) fn glance(&self, job: &'static Job) -> bool {
        let Some(mut owned) = self.stations[job.station()].try_own(self) else { return job.is_done() };
        owned.leave_idle();
        if owned.in_flight() != 1 || owned.is_asleep() {
            return job.is_done();
        }
        if owned.spins_in_vain() {
            owned.note_spin(false);
            return job.is_done();
        }
        owned.disarm();
        let found = self.spin.brief().spin(|| {
            owned.peek();
            (job.is_done() || owned.contended()).then(|| job.is_done())
        });
        owned.note_spin(found == Some(true));
        found == Some(true)
    }

    /// Sleeps in the station's seat until its bell rings. `false`: the seat is taken.
    fn sit(&self, station: &Station, job: &impl Awaited, deadline: Option<Instant>) -> bool {
        let (bell, leave, wants_any) = {
            let mut owned = station.own(self);
            owned.poll_news();
            if job.is_done() || job.station() != station.id {
                return true;
            }
            let is_free = owned.seat == Seat::Free;
            let Some(bell) = owned.response_bell.clone().filter(|_| is_free) else { return false };
            let leave = owned.may_leave();
            if !owned.arm_seat(leave) {
                return true;
            }
            let needs = job.needs();
            owned.seat = needs.map_or(Seat::Taken, Seat::Waits);
            (bell, leave, needs.is_none())
        };
        let limit = deadline.map(|deadline| left(deadline).unwrap_or_default());
        let limit = match leave {
            None => limit,
            Some(_) => Some(limit.unwrap_or(SHORT_SLEEP).min(SHORT_SLEEP)),
        };
        let asleep_since = Instant::now();
        let mut rung = true;
        if job.job().is_some() {
            rung = bell.0.wait(limit);
        } else if job.register(&Waker::from(bell.clone())) == Poll::Pending {
            // Who sleeps for a short time leaves the other stations to the driver's rounds.
            let everywhere = wants_any && self.stations.len() > 1 && leave.is_none();
            if everywhere {
                self.add_sleeper();
                self.stop_watching();
            }
            rung = bell.0.wait(limit);
            // What this thread is about to find itself is not to ring its own bell.
            job.unregister();
            if everywhere {
                self.remove_sleeper();
            }
        }
        let mut owned = station.own(self);
        owned.seat = Seat::Free;
        let now = Instant::now();
        owned.last_sat = Some(now);
        owned.disarm();
        owned.poll_news();
        // Who was woken for what is not his sleeps the usual way the next time.
        owned.note_sleep(now - asleep_since, rung && (!wants_any || job.is_done()));
        true
    }

    fn park(&self, job: &impl Awaited, deadline: Option<Instant>) {
        let parker = Parker::current();
        parker.reset();
        if job.register(&Waker::from(parker.clone())) == Poll::Pending {
            self.add_sleeper();
            self.stop_watching();
            parker.park(deadline);
            self.remove_sleeper();
        }
    }
}
