//! Which request is next: it is looked for, waited for and claimed.

use super::{Port, Request};
use crate::faults::{Point, point};
use crate::ground::claim::Claim;
use crate::ground::prefetch;
use crate::ground::sys::clock;
use crate::memory::layout::RING_SLOTS;
use crate::sync::Ordering;

/// After so many requests in a row the next one is no answer to a response.
const LONG_RUN: u32 = 8;
/// How long the next one is given: some tenths of a microsecond.
const LULL_PAUSES: u32 = 16;

enum Look {
    Start,
    Leave,
}

impl Port {
    /// Blocks until there is a request to run. `false`: the worker is to leave.
    #[inline]
    pub(crate) fn next_request(&mut self, request: &mut Request) -> bool {
        self.stamp();
        match self.look(request) {
            Some(Look::Start) => {
                self.run = self.run.saturating_add(1);
                true
            }
            Some(Look::Leave) => false,
            None => self.wait_for_request(request),
        }
    }

    /// Looks for the next request until there is one.
    #[inline(never)]
    fn wait_for_request(&mut self, request: &mut Request) -> bool {
        // The stamp moves every few milliseconds.
        let stamp = self.region.b().free_at_ns.0.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.idle_at_ns, stamp) != stamp {
            (self.when_idle)();
        }
        self.end_leave();
        if self.run >= LONG_RUN && !self.spin.is_none() {
            // Whoever publishes in a loop is quicker when nobody tears the line away that it is about to write.
            (0..LULL_PAUSES).for_each(|_| std::hint::spin_loop());
        }
        self.run = 0;
        loop {
            let spin = self.patience;
            if self.told_nap.is_none() && spin.spin(|| self.has_news().then_some(())).is_some() {
                if spin.is_endless() {
                    self.stamp();
                }
                match self.look(request) {
                    Some(Look::Start) => return true,
                    Some(Look::Leave) => return false,
                    // A claim word that cannot be: the master has been told.
                    None => {}
                }
            }
            let found = self.sleep_until(|port| port.look(request));
            self.stamp();
            match found {
                Some(Look::Start) => return true,
                Some(Look::Leave) => return false,
                None => {}
            }
        }
    }

    /// Whether there is anything for [`look`](Self::look) to see.
    #[inline]
    fn has_news(&self) -> bool {
        let claimed = self.region.b().claim.0.load();
        self.region.request(self.next).poll(self.next).is_some()
            || claimed.sealed
            || claimed.count != self.next
            || self.ordered_to_leave()
    }

    /// Notes that nothing is in hand at the moment. After an answer rather than before a task: nobody waits for it there.
    #[inline]
    fn stamp(&self) {
        let now = clock::coarse_now_ns();
        self.region.b().free_at_ns.0.store(now, Ordering::Relaxed);
    }

    /// The next request, if there is one to run.
    #[cfg(any(test, forkring_faults))]
    pub(crate) fn try_next_request(&mut self) -> Option<Request> {
        let mut request = Request::default();
        matches!(self.look(&mut request), Some(Look::Start)).then_some(request)
    }

    #[inline]
    fn look(&mut self, request: &mut Request) -> Option<Look> {
        loop {
            let Some(head) = self.region.request(self.next).poll(self.next) else {
                let claimed = self.region.b().claim.0.load();
                if claimed.sealed {
                    self.complain();
                } else if claimed.count != self.next && self.follow(claimed.count) {
                    // Requests were taken back while this worker was busy with an earlier one.
                    continue;
                }
                return self.ordered_to_leave().then_some(Look::Leave);
            };
            point(Point::RequestSeen);
            if self.run < LONG_RUN {
                // Two responses share a line, and the master has just read the other one.
                prefetch::for_writing(self.region.response(self.next));
            }
            match self.region.b().claim.0.claim(self.next) {
                Claim::Won => {
                    point(Point::Claimed);
                    let index = self.next;
                    self.next += 1;
                    self.complained = false;
                    if self.run >= LONG_RUN {
                        prefetch::for_reading(self.region.request(index + prefetch::SLOTS_AHEAD));
                    }
                    if self.open(index, head, request) {
                        if self.told_nap.is_some() {
                            self.end_nap();
                        }
                        return Some(Look::Start);
                    }
                }
                Claim::Moved(to) if self.follow(to) => {}
                Claim::Moved(_) => return None,
                Claim::Sealed => {
                    self.complain();
                    return self.ordered_to_leave().then_some(Look::Leave);
                }
            }
        }
    }

    /// Goes on at the request that the claim word names, if the master may have taken back all below it, which it has
    /// then published. `false`: a stray write of this process has hit the word.
    fn follow(&mut self, to: u64) -> bool {
        let published = |last: u64| {
            let slot = self.region.request(last);
            // What was taken back is retired, and the slot may have been used once more.
            slot.poll(last).is_some() || slot.poll(last.wrapping_add(RING_SLOTS as u64)).is_some()
        };
        // Between two looks of this worker, with no request in hand, the master may have published and taken back many laps, but not so
        // many that the halves of the numbers that heads carry come around.
        if to > self.next && to - self.next < 1 << 31 && published(to - 1) {
            self.next = to;
            return true;
        }
        // If the word has moved on, the slot may have been used twice.
        let moved = self.region.b().claim.0.load().count != to;
        if !moved {
            self.complain();
        }
        moved
    }

    /// Has the master look at the claim word: it alone knows what should be there, and ends a worker that has lost it.
    /// If it has sealed the word itself, that is on its way.
    #[cold]
    fn complain(&mut self) {
        if !std::mem::replace(&mut self.complained, true) {
            self.bells.driver.ring();
        }
    }
}
