//! Who is rung, and how the worker waits: it spins, then sleeps on its doorbell.

use std::time::{Duration, Instant};

use super::Port;
use crate::faults::{Point, point};
use crate::ground::barrier;
use crate::ground::doorbell::Ringer;
use crate::ground::sys::process;
use crate::protocol::wire::Wake;
use crate::sync::Ordering;

/// How long a worker sleeps that cannot be sure to have been seen sleeping.
const UNFENCED_SLEEP: Duration = Duration::from_millis(1);

/// Its descriptor was closed, or may not be written to any more.
const EXIT_UNHEARD: i32 = 74;

/// Rings. A worker that cannot is of no use: what it has published is read when it has ended, and another one takes its place.
fn be_heard(ringer: &Ringer) {
    if !ringer.ring() {
        process::exit_now(EXIT_UNHEARD);
    }
}

impl Port {
    /// As [`notify`](Self::notify), but of a quiet batch nobody is rung. What follows is a look at the marks (edge CUT), which
    /// takes the barrier in either case.
    pub(crate) fn notify_of_item(&mut self) {
        if self.quiet {
            barrier::light();
        } else {
            self.notify();
        }
    }

    /// Rings whoever on the master's side asked for it, once for each time it was asked.
    #[inline]
    pub(crate) fn notify(&mut self) {
        // Edge SLEEP: what was published comes before this look at the wake word; the master writes the word,
        // fences, and looks at what is published before it sleeps. One of the two sees the other.
        barrier::light();
        let wake = self.region.a().wake.0.load(Ordering::Relaxed);
        if wake != self.rung {
            self.ring(wake);
        }
    }

    fn ring(&mut self, mut wake: u64) {
        if Wake::leave_of(wake) > 0 && self.leaves(wake) {
            return;
        }
        // Whoever woke this worker may be waiting for the CPU that it woke up on.
        let has_woken = std::mem::take(&mut self.has_woken);
        if has_woken && Wake::of(wake) == Wake::Driver {
            // He may be about to look for himself, which spares two wake-ups. Edge SLEEP holds for this later look too. A nap that was
            // told follows in either case: he has been here, or is rung.
            std::thread::yield_now();
            wake = self.region.a().wake.0.load(Ordering::Relaxed);
        } else if Wake::of(wake) == Wake::Nobody && self.told_nap.is_some() {
            // He is awake, and what he sends next may come at once.
            self.end_nap();
        }
        self.rung = wake;
        match Wake::of(wake) {
            Wake::Nobody => {}
            Wake::Driver => {
                point(Point::RingingDriver);
                self.ring_driver();
            }
            Wake::Waiter => {
                point(Point::RingingWaiter);
                be_heard(&self.bells.response);
                // Most schedulers have run him at once, and he has been here since. A yield after that would be at the expense of
                // this worker's next wake-up; and one that sleeps at once gives its CPU away in doing so.
                let yields = has_woken && self.told_nap.is_none();
                if yields && self.region.a().wake.0.load(Ordering::Relaxed) == wake {
                    std::thread::yield_now();
                }
            }
        }
    }

    pub(super) fn ring_driver(&self) {
        be_heard(&self.bells.driver);
    }

    /// Whether the waiter can do without a ring for what has just been published.
    fn leaves(&mut self, wake: u64) -> bool {
        if self.late != wake {
            (self.late, self.leave) = (wake, Wake::leave_of(wake));
        }
        let leaves = self.leave > 0;
        self.leave = self.leave.saturating_sub(1);
        leaves
    }

    /// Nothing follows for a while: who left some responses is rung for those that have come.
    #[inline]
    pub(super) fn end_leave(&mut self) {
        if self.late != self.rung {
            self.leave = 0;
            match self.region.a().wake.0.load(Ordering::Relaxed) == self.late {
                true => self.notify(),
                false => self.late = self.rung,
            }
        }
    }

    /// As [`notify`](Self::notify), of something that this worker cannot go on without.
    pub(super) fn notify_at_once(&mut self) {
        let wake = self.region.a().wake.0.load(Ordering::Relaxed);
        (self.late, self.leave) = (wake, 0);
        self.notify();
    }

    /// Waits until `look` finds something. `None`: this worker was given up meanwhile.
    pub(super) fn wait_for<T>(&mut self, mut look: impl FnMut(&mut Self) -> Option<T>) -> Option<T> {
        debug_assert!(self.told_nap.is_none(), "what else the master publishes is not covered by edge TOLD");
        if let Some(found) = look(self) {
            return Some(found);
        }
        // Whatever this waits for, the master may have to be told first what is there already.
        self.notify_at_once();
        let spin = self.spin;
        let mut look = |port: &mut Self| match look(port) {
            Some(found) => Some(Some(found)),
            None => port.is_given_up().then_some(None),
        };
        loop {
            if let Some(found) = spin.spin(|| look(self)).or_else(|| self.sleep_until(&mut look)) {
                return found;
            }
        }
    }

    /// A response is about to be published, the first one since this worker has slept. If that took long, and whoever gets the
    /// response is to be rung, another nap follows at once; the response tells of it.
    ///
    /// Edge TOLD: the flag, then the response; the master takes the response, then looks at the flag if there is anything else
    /// for this worker. So neither side needs a fence.
    #[cold]
    pub(super) fn foretell_nap(&mut self) {
        self.first_since_nap = false;
        let wake = self.region.a().wake.0.load(Ordering::Relaxed);
        let rings_at_once = wake != self.rung && Wake::of(wake) != Wake::Nobody && Wake::leave_of(wake) == 0;
        if rings_at_once
            && self.patience.is_brief()
            && self.region.request(self.next).poll(self.next).is_none()
        {
            self.told_nap = Some(self.begin_nap());
        }
    }

    /// Sets the flag. The bell's rings before this nap.
    fn begin_nap(&mut self) -> u32 {
        self.naps += 1;
        // A ring for this nap cannot come before the flag.
        let rings = self.region.a().bell.0.rings();
        self.region.b().sleeping.0.store(2 * self.naps - 1, Ordering::Relaxed);
        point(Point::SleepStored);
        rings
    }

    /// Takes the flag back.
    pub(super) fn end_nap(&mut self) {
        self.told_nap = None;
        self.region.b().sleeping.0.store(2 * self.naps, Ordering::Relaxed);
    }

    /// One sleep on the doorbell, unless `look` finds something first. May return early with nothing.
    pub(super) fn sleep_until<T>(&mut self, mut look: impl FnMut(&mut Self) -> Option<T>) -> Option<T> {
        let (rings, fenced) = match self.told_nap {
            Some(rings) => (rings, true),
            // Edge BELL: the flag, a fence, a second look; the master publishes, fences, and looks at the flag.
            None => (self.begin_nap(), barrier::heavy()),
        };
        let found = look(self);
        if found.is_none() {
            point(Point::Drowsy);
            // Whoever publishes something meanwhile rings, and the bell remembers.
            (self.when_idle)();
            // The master's death ends this process, so the wait needs no limit but where the fence failed.
            let asleep_since = Instant::now();
            self.region.a().bell.0.wait(rings, (!fenced).then_some(UNFENCED_SLEEP));
            self.patience = self.spin.after_sleep(asleep_since.elapsed());
            (self.has_woken, self.first_since_nap) = (true, true);
            point(Point::Woken);
        }
        self.end_nap();
        found
    }
}
