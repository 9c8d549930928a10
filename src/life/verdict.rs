//! Ending a worker on purpose: because its task ran out of time, because somebody wants that task killed, or because the
//! worker is to be renewed.
//!
//! The order of things makes sure that nobody else is touched:
//!
//! 1. The claim word is sealed, and before a kill a batch that is running is marked: nothing more starts in this worker. What
//!    had not started is the station's again and goes elsewhere.
//! 2. The responses are looked at once more. If the task has been answered, or the batch has come to another item, nobody is
//!    killed: the worker leaves by itself once it has finished what it is at.
//! 3. The verdict is written down: who is to die, and what the task ends with. It wins over the death notice.
//! 4. The signal is sent, through a pidfd. If the worker publishes a response before the signal gets to it, the response wins.
//!
//! A sealed word never moves again, so a worker that was spared is replaced all the same.
//!
//! A worker that is a thread cannot be killed. It is given up in the fourth step: see [`super::crew`].

use std::time::{Duration, Instant};

use super::core::Core;
use super::job::JobRef;
use super::messages::Who;
use super::station::{Hold, Owned, Stage};
use super::timers::Timer;
use crate::error::TaskError;
use crate::protocol::lane::Lane;
use crate::protocol::wire;

/// Why a worker is ended that might have served on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Its task ran out of time.
    Overtime,
    /// Somebody killed its task.
    Killed,
    /// It has decided so itself, having run or grown enough.
    Recycled,
    /// Somebody asked for fresh workers, or its task was over just before it was to be killed.
    Renewed,
    /// It was to leave, had nothing more to run, and did not go.
    Stuck,
}

impl Why {
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Overtime => "its task ran out of time",
            Self::Killed => "its task was killed",
            Self::Recycled => "it has run or grown enough",
            Self::Renewed => "it is renewed",
            Self::Stuck => "on_exit or the drop of its state took longer than init_timeout",
        }
    }
}

/// What was decided about a station's process.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) why: Why,
    /// The request that is to end with the worker, and what its task, or the running item of its batch, ends with. `None`: the
    /// worker leaves when it has finished what it is at.
    pub(crate) victim: Option<(u64, TaskError)>,
}

/// The request that runs at a station, as the driver saw it on its last look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    index: u64,
    progress: u64,
    since: Instant,
}

/// The progress of a request that the worker has not taken.
const UNTAKEN: u64 = u64::MAX;
/// A worker that is alive and has a CPU takes a request within microseconds; one that shares a CPU with many, within tenths of a second.
const RUNG_AGAIN_AFTER: Duration = Duration::from_secs(1);
const DEAF_AFTER: Duration = Duration::from_secs(10);
/// The zygote is given this long to say that a worker has ended that was killed.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// A task's time is looked at this many times, at least, before it is over.
const LOOKS: u32 = 16;
const LOOK_MIN: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(250);

impl Owned<'_> {
    /// Ends the request that is running, with its worker. `progress`: only if it has come no further than this.
    pub(crate) fn condemn(&mut self, index: u64, progress: Option<u64>, why: Why, error: TaskError) {
        if self.verdict.as_ref().is_some_and(|verdict| verdict.victim.is_some()) {
            // It is dying already, and the first cause holds.
            return;
        }
        self.stop(Why::Renewed);
        if self.violation.is_none()
            && let Some(lane) = &mut self.lane
        {
            lane.cut();
        }
        self.poll();
        let running = self.lane.as_ref().and_then(|lane| {
            let running = lane.running()?;
            Some((running.index, running.progress))
        });
        let still = running.is_some_and(|(at, reached)| at == index && progress.is_none_or(|p| p == reached));
        if !still || self.violation.is_some() {
            return;
        }
        self.verdict = Some(Verdict { why, victim: Some((index, error)) });
        let (first, gap) = match self.core.policy.kill_signal {
            Some((signal, gap)) => (signal, Some(gap)),
            None => (nix::libc::SIGKILL, None),
        };
        self.signal(first);
        let who = Who { station: self.station.id, generation: self.generation };
        if let Some(at) = gap.and_then(|gap| Instant::now().checked_add(gap)) {
            self.core.set_timer(at, Timer::Kill(who));
        }
    }

    /// Lets nothing more start in the worker, and tells it to leave when it has finished what it is at.
    pub(crate) fn stop(&mut self, why: Why) {
        if self.stage != Stage::Ready || self.violation.is_some() {
            return;
        }
        let Some(lane) = &mut self.lane else { return };
        let stopped = lane.stop();
        lane.order(wire::Order::Exit);
        self.stage = Stage::Leaving;
        self.verdict = Some(Verdict { why, victim: None });
        match stopped {
            Ok(unstarted) => self.give_back(unstarted),
            Err(violation) => self.break_off(violation),
        }
        // Also retires what was taken back.
        self.poll();
        // It may not go.
        self.look_after(LOOK_MAX);
    }

    /// The worker had time enough to leave, with nothing more to run.
    fn expel(&mut self) {
        self.verdict = Some(Verdict { why: Why::Stuck, victim: None });
        self.signal(nix::libc::SIGKILL);
    }

    /// Sends a signal. A thread is given up instead of killed, and other signals tell its task that it is not wanted any more.
    pub(crate) fn signal(&mut self, signal: i32) {
        let inner = &mut **self;
        let Some(process) = &inner.process else { return };
        match (&process.hold, &mut inner.lane) {
            (Hold::Process(pidfd), _) => {
                // An error means that there is nothing left to kill.
                let _ = pidfd.kill(signal);
                if signal == nix::libc::SIGKILL {
                    inner.killed_at.get_or_insert_with(Instant::now);
                    self.look_after(LOOK_MAX);
                }
            }
            (Hold::Thread(member), Some(lane)) if signal == nix::libc::SIGKILL => {
                let engaged = lane.running().is_some() || inner.stage == Stage::Starting;
                // Whoever condemned it has looked for the last time: its task ends as it was told to, whatever it does.
                inner.is_given_up = true;
                lane.give_up();
                member.give_up(engaged);
            }
            (Hold::Thread(_), Some(lane)) => lane.ask_to_stop(),
            // It was given up before the lane was taken.
            (Hold::Thread(_), None) => {}
        }
    }

    /// The worker has had its gap since the first signal.
    pub(crate) fn kill_at_last(&mut self, generation: u64) {
        if self.generation == generation && self.verdict.is_some() {
            self.signal(nix::libc::SIGKILL);
        }
    }

    /// Whether the death of a worker that was killed should be known long since; its pid, if it is dead.
    pub(crate) fn is_overdue(&self, now: Instant) -> Option<Option<u32>> {
        let at = self.killed_at.filter(|_| self.lane.is_some())?;
        (now.saturating_duration_since(at) >= KILL_PATIENCE).then_some(())?;
        let process = self.process.as_ref()?;
        Some(matches!(&process.hold, Hold::Process(pidfd) if pidfd.has_exited()).then_some(process.pid))
    }

    /// A job with a time limit has been sent: the driver has to look from time to time.
    pub(crate) fn watch_time(&mut self, limit: Duration) {
        self.look_after((limit / LOOKS).clamp(LOOK_MIN, LOOK_MAX));
    }

    fn look_after(&mut self, pause: Duration) {
        if self.look_every.is_none_or(|known| pause < known) {
            self.look_every = Some(pause);
            self.core.watch_time(self.station.id);
        }
    }

    /// The worker has not taken what it was sent for so long. It was stopped, or is kept from looking by something that an earlier
    /// task has left behind: none of this is the fault of the tasks before it, which go elsewhere.
    fn urge(&mut self, untaken: Duration) {
        if untaken >= DEAF_AFTER {
            self.stop(Why::Renewed);
            self.signal(nix::libc::SIGKILL);
        } else if untaken >= RUNG_AGAIN_AFTER {
            self.lane.iter().for_each(Lane::ring);
        }
    }

    /// Looks what is running and for how long. Returns when to look again at the latest; `None`: when the next job with a limit
    /// has been sent. `lost`: how long this process itself stood still since the last look, which is no task's fault.
    /// `to_leave`: how long a worker may take to leave, once it has nothing more to run.
    pub(crate) fn check_time(&mut self, now: Instant, lost: Duration, to_leave: Duration) -> Option<Instant> {
        self.disarm();
        self.poll();
        let pause = self.look_every?;
        let core = self.core;
        let inner = &mut **self;
        let (is_leaving, is_killed) = (inner.verdict.is_some(), inner.killed_at.is_some());
        let is_to_go = is_leaving || is_killed;
        let Some(lane) = inner.lane.as_ref().filter(|lane| is_to_go || lane.in_flight() > 0) else {
            inner.seen = None;
            inner.look_every = None;
            core.timed.clear(self.station.id);
            return None;
        };
        let mut next = now + pause;
        let (index, progress, limit) = match lane.running() {
            Some(running) => {
                let limit = running.token.and_then(|job: &JobRef| job.timeout(core));
                (running.index, running.progress, limit)
            }
            // What it is at comes after all requests.
            None if is_killed => {
                inner.seen = None;
                return Some(next);
            }
            None if is_leaving && lane.in_flight() == 0 => (lane.sent(), 0, Some(to_leave)),
            None => (lane.oldest(), UNTAKEN, None),
        };
        let is_over = index == lane.sent();
        let since = match inner.seen {
            Some(seen) if (seen.index, seen.progress) == (index, progress) => seen.since + lost,
            _ => now,
        };
        inner.seen = Some(Seen { index, progress, since });
        if progress == UNTAKEN {
            self.urge(now.saturating_duration_since(since));
            return Some(next);
        }
        if let Some(limit) = limit
            && let Some(end) = since.checked_add(limit)
        {
            if end > now {
                next = next.min(end);
            } else if is_over {
                self.expel();
            } else {
                self.condemn(index, Some(progress), Why::Overtime, TaskError::TimedOut { limit });
            }
        }
        Some(next)
    }
}

impl Core {
    /// Has every worker replaced when it has finished its task.
    pub(crate) fn renew_workers(&self) {
        for station in &self.stations {
            station.own(self).stop(Why::Renewed);
        }
    }
}
