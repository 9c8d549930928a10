//! The state in which a station may be left, and which of the pool's sets it is in then.

use std::sync::atomic::Ordering;

use super::{Cargo, Inner, Owned, Seat};
use crate::ground::spin::SpinBudget;
use crate::ground::sys::clock;
use crate::life::core::Phase;
use crate::life::driver;
use crate::life::job::JobRef;
use crate::protocol::lane::Lane;
use crate::protocol::wire::Wake;

/// So many messages of a stream may be in a ring before others get some; or items that are tasks.
const RUN: usize = 16;
const RUN_ITEMS: usize = 64;

/// Where a second worker takes its CPU from the caller, it is worth that when an item takes so long.
const SLOW_ITEM_NS: u64 = 5_000;
/// What is found in less time is chance.
const PACE_NS: u64 = 20_000;

impl Inner {
    /// How many requests the worker may have before some of them are better off elsewhere.
    #[inline]
    fn kept(&mut self, spin: SpinBudget) -> usize {
        match self.cargo {
            _ if !self.is_patient() => 1,
            Cargo::Tasks | Cargo::Batches => RUN,
            Cargo::Items if self.in_flight() <= RUN_ITEMS || self.has_surplus => RUN_ITEMS,
            // It may be about to wake up, or to get its CPU back.
            Cargo::Items if self.waits > 0 => usize::MAX,
            Cargo::Items => match spin.is_crowded(2) && !self.is_slow() {
                true => usize::MAX,
                false => RUN_ITEMS,
            },
        }
    }

    /// Whether the worker, from which something has just come, takes long for single items.
    fn is_slow(&mut self) -> bool {
        let now_ns = clock::now_ns();
        let (since_ns, done) = self.paced;
        let (elapsed_ns, items) = (now_ns.saturating_sub(since_ns), self.tasks_done.saturating_sub(done));
        if since_ns > 0 && elapsed_ns < PACE_NS {
            return false;
        }
        self.paced = (now_ns, self.tasks_done);
        since_ns > 0 && elapsed_ns / SLOW_ITEM_NS > items
    }
}

impl Owned<'_> {
    /// Brings the station into the state in which it may be left: STATION-3, and the pool's sets of idle stations and
    /// of stations with more than they need. `true`: the pool has both, so work should move.
    #[inline]
    pub(super) fn settle(&mut self) -> bool {
        if !self.queue.is_empty() {
            self.refill();
        }
        if self.cargo == Cargo::Batches {
            self.look_along();
        }
        // Single items are looked for so often that looks in vain must not keep the driver away from what waits behind a slow one.
        let is_visit = self.has_looked && (self.has_found || self.cargo != Cargo::Items);
        if is_visit && !self.round {
            // Only the owner writes it.
            let visits = &self.station.visits;
            visits.store(visits.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
        let is_closing = self.core.phase() >= Phase::Closing;
        if self.wake == Wake::Nobody && self.in_flight() > 0 && (is_closing || !self.is_watched()) {
            self.watch_or_arm();
        }
        let is_armed = self.cargo != Cargo::Tasks && self.wake == Wake::Driver && self.in_flight() > 1;
        if is_armed && !is_closing && !self.round && self.core.stations.len() > 1 {
            self.watch_instead();
        }
        if let Seat::Waits(job) = self.seat
            && (job.is_done() || job.station() != self.station.id)
        {
            self.call_seat();
        }
        if is_closing && self.is_empty() && !driver::is_this_thread() {
            // The driver waits for the last task.
            self.core.ring_driver();
        }
        self.core.stations.len() > 1 && self.classify()
    }

    /// A stream looks for results while it sends, so that its worker has something to do meanwhile, what is there is delivered
    /// before the next item is pulled, and what is answered is no surplus.
    #[inline(never)]
    fn look_along(&mut self) {
        let is_time = |lane: &Lane<JobRef>| match lane.in_flight() {
            0 | 1 => false,
            2..=RUN => true,
            _ => lane.sent().is_multiple_of(RUN as u64),
        };
        if self.lane.as_ref().is_some_and(is_time) {
            self.peek();
        }
    }

    #[inline]
    fn classify(&mut self) -> bool {
        let (id, core) = (self.station.id, self.core);
        let inner = &mut **self;
        let in_flight = inner.in_flight();
        if in_flight == 1 && inner.queue.is_empty() && !inner.has_surplus {
            // The one that runs is no surplus. If it is a small task, the station may be in the idle set still.
            return false;
        }
        let kept = inner.kept(core.spin);
        if in_flight > 1 {
            inner.waits = inner.waits.saturating_add(1);
        }
        let surplus = inner.may_spare && (!inner.queue.is_empty() || in_flight > kept);
        // A pool that is closing still moves what it has.
        let over = inner.refusal.as_ref().is_some_and(|refusal| !refusal.is_closed());
        let idle = inner.has_nothing_to_do() && !over;
        let mut rebalance = false;
        if surplus != inner.has_surplus {
            inner.has_surplus = surplus;
            if surplus {
                core.surplus.set(id);
                rebalance = core.idle.any();
            } else {
                core.surplus.clear(id);
            }
        }
        if idle && !inner.is_idle {
            inner.is_idle = true;
            core.idle.set(id);
            rebalance |= core.surplus.any();
        } else if !idle && inner.is_idle {
            inner.is_idle = false;
            core.idle.clear(id);
        }
        rebalance
    }

    /// The station is about to be given work. [`settle`](Self::settle) puts it back if that comes to nothing.
    #[inline]
    pub(crate) fn leave_idle(&mut self) {
        if self.is_idle {
            self.is_idle = false;
            self.core.idle.clear(self.station.id);
        }
    }

    /// Nothing here can be moved to another station at present.
    pub(crate) fn no_surplus(&mut self) {
        self.may_spare = false;
        if self.has_surplus {
            self.has_surplus = false;
            self.core.surplus.clear(self.station.id);
        }
    }

    /// A fresh process, asked for at this moment: nothing is armed in its memory, and nothing is known against it.
    pub(crate) fn reset(&mut self, asked_ns: u64) {
        self.wake = Wake::Nobody;
        self.violation = None;
        self.is_given_up = false;
        self.verdict = None;
        self.killed_at = None;
        self.seen = None;
        self.look_every = None;
        self.core.timed.clear(self.station.id);
        self.tasks_done = 0;
        self.tally.note_order(asked_ns);
    }
}
