//! Who sleeps for results, whether workers have to ring, and what the driver comes by for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Core, Listener, Phase};
use crate::life::job::Deadline;
use crate::life::timers::Timer;

impl Core {
    /// A stream is about to sleep, which has said whom to wake, and is going to look at its items once more.
    ///
    /// Edge ITEMS: the waker, this mark, a look at what is done, sequentially consistent; whoever ends an item stores that, fences (edge
    /// DONE), then looks for the mark. So one of the two sees the other.
    pub(crate) fn note_sleeping_stream(&self, tag: u8) {
        self.streams_sleep.fetch_or(1 << (tag % 64), Ordering::SeqCst);
    }

    /// A tag for a stream. Where there are more than 64, some are woken for others.
    pub(crate) fn next_stream_tag(&self) -> u8 {
        self.stream_tags.fetch_add(1, Ordering::Relaxed) % 64
    }

    #[inline]
    pub(crate) fn has_sleeping_streams(&self, streams: u64) -> bool {
        self.streams_sleep.load(Ordering::SeqCst) & streams != 0
    }

    /// Wakes those of these streams that sleep. One that marks itself meanwhile is woken, or marks the pool again.
    #[cold]
    pub(crate) fn call_streams(&self, streams: u64) {
        if !self.has_sleeping_streams(streams) {
            return;
        }
        let asleep = self.streams_sleep.fetch_and(!streams, Ordering::SeqCst) & streams;
        if asleep != 0 {
            let tell = |stream: &Arc<dyn Listener>| drop(crate::panics::guard(|| stream.items_ended(asleep)));
            self.listeners().iter().for_each(tell);
        }
    }

    /// How many workers have something to do, or are not ready. One whose small task nobody waits for may be missing.
    pub(crate) fn busy(&self) -> usize {
        match self.stations.len() {
            1 => 1,
            count => count - self.idle.len(),
        }
    }

    /// Somebody is about to sleep for a result.
    pub(crate) fn add_sleeper(&self) {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn remove_sleeper(&self) {
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether results may wait for the driver's next round.
    #[inline]
    pub(crate) fn may_watch(&self) -> bool {
        self.sleepers.load(Ordering::SeqCst) == 0 && self.service.is_none() && self.phase() < Phase::Closing
    }

    /// Makes the driver make rounds until no station is watched.
    pub(crate) fn start_rounds(&self) {
        if !self.rounds.swap(true, Ordering::SeqCst) {
            self.ring_driver();
        }
    }

    pub(crate) fn makes_rounds(&self) -> bool {
        self.rounds.load(Ordering::SeqCst)
    }

    /// The driver stops making rounds, unless a station wants it after all.
    pub(crate) fn end_rounds(&self) {
        self.rounds.store(false, Ordering::SeqCst);
        if self.watched.any() {
            self.rounds.store(true, Ordering::SeqCst);
        }
    }

    /// The driver is to look at a station from time to time.
    pub(crate) fn watch_time(&self, station: usize) {
        self.timed.set(station);
        self.ring_driver();
    }

    /// Has something happen at this time.
    pub(crate) fn set_timer(&self, at: Instant, timer: Timer) {
        if self.timers.add(at, timer) {
            self.ring_driver();
        }
    }

    /// Has a task ended when its time is over.
    pub(crate) fn set_deadline(&self, deadline: Deadline) {
        self.set_timer(deadline.at, Timer::Deadline(deadline));
    }

    /// Before somebody sleeps, who has been counted and stays so meanwhile: no worker may rely on the driver's rounds.
    pub(crate) fn stop_watching(&self) {
        for station in &self.stations {
            if self.watched.contains(station.id) {
                station.own(self).leave_watch();
            }
        }
    }
}
