//! Who learns of what is in flight while nobody owns the station (STATION-3, STATION-4): the driver, who is rung or comes by,
//! or the thread in the seat.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Wake as TaskWake, Waker};
use std::time::Duration;

use super::{Owned, Stage, Station, WAITS_MAX, WAITS_MAX_ITEMS};
use crate::ground::doorbell::Doorbell;
use crate::life::core::Core;
use crate::life::job::{After, Job, JobRef};
use crate::protocol::lane::Lane;
use crate::protocol::wire::Wake;

/// How often an owner that wants to let go looks at what has come meanwhile, before it leaves the rest to the driver.
const LOOKS_MAX: u32 = 64;

/// Whoever waits for one of many tasks is rung after so many responses more, if they come so often: he gets them all at once, and
/// takes a CPU from nobody in between.
const LEAVE: u8 = 7;
const OFTEN: Duration = Duration::from_micros(500);

/// So many short spins in vain, and the next ones are left out.
const VAIN_SPINS: u32 = 4;

/// A doorbell that can be a task's waker: how a thread that sleeps in a station's seat is woken by the pool.
#[derive(Debug)]
pub(crate) struct Bell(pub(crate) Doorbell);

impl TaskWake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.ring();
    }
}

/// Who sleeps in a station until its bell rings.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seat {
    Free,
    /// A thread that waits for this job, which it holds. It is no sleeper to the rest of the pool: whoever ends its job, or
    /// takes it elsewhere, owns this station, and calls the thread when he lets go (STATION-4).
    Waits(&'static Job),
    /// A thread that is woken by somebody else too, or has been called.
    Taken,
}

impl PartialEq for Seat {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Waits(one), Self::Waits(other)) => std::ptr::eq(*one, *other),
            (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
        }
    }
}

impl Eq for Seat {}

impl Station {
    /// The driver is on its round. If somebody is here, or has been since the last one, he is not disturbed; if nobody has, the driver
    /// looks itself, and if nothing has come either, the worker is armed as usual. Whether there was somebody.
    pub(crate) fn make_round(&self, core: &Core) -> bool {
        let visits = self.visits.load(Ordering::Relaxed);
        if self.visits_seen.swap(visits, Ordering::Relaxed) != visits {
            return true;
        }
        let Some(mut owned) = self.try_own(core) else { return true };
        let done = owned.tasks_done;
        owned.disarm();
        owned.poll();
        // That was the driver's own look.
        owned.has_looked = false;
        if owned.tasks_done == done {
            owned.round = true;
            owned.end_patience();
            owned.leave_watch();
        }
        false
    }
}

impl Owned<'_> {
    /// Whether the driver comes by, so that nobody needs to be rung.
    #[inline]
    pub(super) fn is_watched(&self) -> bool {
        self.watched && self.seat == Seat::Free && !self.round
    }

    /// Makes sure that somebody learns of what is in flight.
    #[inline(never)]
    pub(super) fn watch_or_arm(&mut self) {
        let mut looks = 0;
        loop {
            let is_watched = !self.round && self.seat == Seat::Free && self.core.may_watch() && self.watch();
            let inner = &mut **self;
            let Some(lane) = &mut inner.lane else { return };
            let is_deaf = inner.violation.is_some() || inner.is_given_up;
            if inner.wake != Wake::Nobody || is_deaf || inner.stage == Stage::Vacant {
                return;
            }
            if lane.in_flight() == 0 || is_watched {
                return;
            }
            if lane.owes_answer() && !lane.has_news() {
                // What it says next, it says to whoever answers.
                return;
            }
            inner.wake = if inner.seat == Seat::Free { Wake::Driver } else { Wake::Waiter };
            lane.arm(inner.wake);
            if !lane.fence_and_ready() {
                return;
            }
            looks += 1;
            if looks == LOOKS_MAX {
                // A worker that always has something, be it nonsense, must not hold whoever owns its station.
                return self.core.ring_driver();
            }
            // Something came in between: the ring may be lost, so it is taken here.
            self.disarm();
            self.poll();
            self.refill();
        }
    }

    /// A stream that sends message after message is not to have the driver rung for the first answer, and others look after what
    /// waits behind it.
    #[inline(never)]
    pub(super) fn watch_instead(&mut self) {
        if self.core.may_watch() && self.watch() {
            self.disarm();
        }
    }

    /// Has the driver come by. `false`: somebody has gone to sleep meanwhile.
    fn watch(&mut self) -> bool {
        if !self.watched {
            self.watched = true;
            self.core.watched.set(self.station.id);
            self.core.start_rounds();
        }
        // Edge WATCH: in the set, then this look; who goes to sleep is counted, then looks at the set.
        let may = self.core.may_watch();
        if !may {
            // Who sleeps may have looked before the station was in the set, and will not look again.
            self.leave_watch();
        }
        may
    }

    /// The driver was rung.
    pub(crate) fn attend(&mut self) {
        // The ring may have been this station's: it is armed again when it is let go.
        self.disarm();
        self.poll();
    }

    /// What follows is armed for, not watched.
    pub(crate) fn leave_watch(&mut self) {
        if self.watched {
            self.watched = false;
            self.core.watched.clear(self.station.id);
        }
    }

    /// Whether the worker answers so often that whoever waits need sleep for short times only, and how many of its responses he may
    /// leave until he is rung.
    pub(crate) fn may_leave(&self) -> Option<u8> {
        (self.has_many() && !self.is_seldom).then_some(LEAVE)
    }

    /// A thread has slept in the seat for so long; `rung`: and something has come.
    pub(crate) fn note_sleep(&mut self, slept: Duration, rung: bool) {
        self.is_seldom = !rung || slept >= OFTEN;
    }

    /// Whether the last ones who waited here would have done better to sleep at once. One in sixteen tries again.
    pub(crate) fn spins_in_vain(&self) -> bool {
        self.vain_spins >= VAIN_SPINS && !self.vain_spins.is_multiple_of(16)
    }

    pub(crate) fn note_spin(&mut self, has_found: bool) {
        self.vain_spins = if has_found { 0 } else { self.vain_spins.wrapping_add(1) };
    }

    /// Whoever waited here has seen nothing come, from a worker that is awake.
    pub(crate) fn lose_patience(&mut self) {
        if !self.is_asleep() {
            self.end_patience();
        }
    }

    /// What waits here is a surplus until something comes.
    fn end_patience(&mut self) {
        self.waits = WAITS_MAX.max(WAITS_MAX_ITEMS);
    }

    /// Takes the armed ring back: this owner is going to look.
    #[inline]
    pub(crate) fn disarm(&mut self) {
        let inner = &mut **self;
        if inner.wake != Wake::Nobody {
            inner.wake = Wake::Nobody;
            if let Some(lane) = &mut inner.lane {
                lane.arm(Wake::Nobody);
            }
        }
    }

    /// The thread in the seat waits for what does not come from this worker any more (STATION-4).
    #[cold]
    pub(super) fn call_seat(&mut self) {
        let inner = &mut **self;
        inner.seat = Seat::Taken;
        let bell = inner.response_bell.clone();
        inner.after.extend(bell.map(|bell| After::Wake(Waker::from(bell))));
    }

    /// Makes the worker ring the seat's bell. `false`: something has come already, look again instead of sleeping.
    ///
    /// To be called after [`poll`](Self::poll). If the worker was to ring the driver, and has not been looked at in vain since,
    /// that is changed without a fence (edge SLEEP): a response that comes before the worker can see the change rings the
    /// driver, who calls the seat (STATION-4).
    ///
    /// For a short sleep it need not ring for the first `leave` responses, and no fence is made: of those that come at this very
    /// moment one may not be counted.
    pub(crate) fn arm_seat(&mut self, leave: Option<u8>) -> bool {
        let inner = &mut **self;
        let Some(lane) = &mut inner.lane else { return true };
        if inner.violation.is_some() || inner.is_given_up {
            return true;
        }
        let is_only = lane.in_flight() == 1;
        let takes_over = inner.wake == Wake::Driver;
        inner.wake = Wake::Waiter;
        lane.arm_late(Wake::Waiter, leave.unwrap_or(0));
        let is_late = match leave {
            None if takes_over => false,
            None => lane.fence_and_ready(),
            Some(_) => lane.has_news(),
        };
        if is_late {
            self.disarm();
            return false;
        }
        if is_only {
            // Nothing else is to come. Where nobody comes by, the next request is armed for in advance, without a fence.
            self.leave_watch();
        }
        true
    }
}

/// Before a request is published (STATION-3). Before the first one it needs no fence: no response can come before it. With
/// others in flight, something may just have come, so it is left to [`settle`](Owned::settle), which looks again.
#[inline(always)]
pub(super) fn arm_before_first(lane: &mut Lane<JobRef>, wake: &mut Wake, watched: bool) {
    if *wake == Wake::Nobody && !watched && lane.in_flight() == 0 {
        *wake = Wake::Driver;
        lane.arm(Wake::Driver);
    }
}
