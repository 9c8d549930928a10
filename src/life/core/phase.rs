//! How far a pool is: open, closing, ending, ended; and who waits for that.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Core, Listener};
use crate::error::{PoolFailure, TaskError};
use crate::ground::doorbell::Doorbell;
use crate::life::driver;
use crate::life::gate::Gate;
use crate::life::line::Line;

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
pub(super) struct Life {
    pub(super) phase: Phase,
    failure: Option<PoolFailure>,
    /// Futures of the end.
    pub(super) line: Line,
    /// Until when the pool is to have closed, and whether it had to be ended for that.
    deadline: Option<Instant>,
    forced: bool,
    /// Tasks that had not ended when the pool was.
    unfinished: usize,
    /// The driver's doorbell, until the pool has ended.
    bell: Option<Arc<Doorbell>>,
}

impl Life {
    pub(super) fn new(bell: Arc<Doorbell>) -> Self {
        Self {
            phase: Phase::Building,
            failure: None,
            line: Line::default(),
            deadline: None,
            forced: false,
            unfinished: 0,
            bell: Some(bell),
        }
    }
}

impl Core {
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
            // A handler of the service waits for no more than the first.
            Phase::Closing | Phase::Ended => life.line.take_all().map(|standing| standing.waker).collect(),
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

    /// Blocks until the pool is at least in `phase`; `false` when the time is over first, and on the pool's driver, which
    /// would wait for itself.
    pub(crate) fn wait_for(&self, phase: Phase, limit: Option<Duration>) -> bool {
        if driver::drives(self) {
            return self.phase() >= phase;
        }
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

    /// How a task ends that is submitted to a pool that takes no more, or in another process.
    pub(crate) fn refusal(&self) -> TaskError {
        if !self.is_here() {
            return TaskError::NotInThisProcess;
        }
        let told = self.stations.first().and_then(|station| station.own(self).refusal.clone());
        // Whoever ends the pool has not come to the station yet.
        told.or_else(|| self.failure().map(TaskError::PoolFailed)).unwrap_or(TaskError::Terminated)
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
}
