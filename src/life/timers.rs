//! What is to happen at a certain time: deadlines of tasks, and of futures that wait for room; the SIGKILL after a gentler
//! signal. The driver sleeps no longer than until the first of them.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::task::Waker;
use std::time::Instant;

use parking_lot::Mutex;

use super::gate::Alarm;
use super::job::Deadline;
use super::messages::Who;
use crate::panics;

/// Something that becomes due.
#[derive(Debug)]
pub(crate) enum Timer {
    /// The task has to be over. It may be over long since, and its cell serve another one.
    Deadline(Deadline),
    /// The worker has had its gap.
    Kill(Who),
    /// A future has waited for room for long enough. It may have left the line long since.
    Alarm(Alarm),
    /// A stream's own, for a moment: the program's would be kept until its time.
    Wake(Waker),
}

impl Timer {
    fn is_over(&self) -> bool {
        match self {
            Self::Deadline(Deadline { job, generation, .. }) => job.is_over(*generation),
            Self::Alarm(alarm) => alarm.is_over(),
            Self::Kill(_) | Self::Wake(_) => false,
        }
    }
}

#[derive(Debug)]
struct Entry {
    at: Instant,
    timer: Timer,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.cmp(&other.at)
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    /// How many entries there are when those that are over are thrown out next.
    sweep_at: usize,
    /// Nothing becomes due any more.
    closed: bool,
}

/// Fewer entries are not worth a sweep.
const SWEEP_MIN: usize = 1024;

impl Timers {
    /// `true`: it is the first one, so the driver must be told.
    pub(crate) fn add(&self, at: Instant, timer: Timer) -> bool {
        let mut queue = self.queue.lock();
        if queue.closed {
            // It may be all that is left of a stream, which has a waker of the program's: dropped outside of the lock.
            drop(queue);
            drop(timer);
            return false;
        }
        if queue.heap.len() >= queue.sweep_at.max(SWEEP_MIN) {
            // Tasks and waits end long before their deadlines as a rule. Each entry pays for two looks, amortised.
            queue.heap.retain(|Reverse(entry)| !entry.timer.is_over());
            queue.sweep_at = 2 * queue.heap.len();
        }
        let first = queue.heap.peek().is_none_or(|Reverse(entry)| at < entry.at);
        queue.heap.push(Reverse(Entry { at, timer }));
        first
    }

    /// When the first one is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        let mut queue = self.queue.lock();
        while queue.heap.peek().is_some_and(|Reverse(entry)| entry.timer.is_over()) {
            queue.heap.pop();
        }
        queue.heap.peek().map(|Reverse(entry)| entry.at)
    }

    /// Takes one that is due.
    pub(crate) fn take_due(&self, now: Instant) -> Option<Timer> {
        let mut queue = self.queue.lock();
        let due = queue.heap.peek().is_some_and(|Reverse(entry)| entry.at <= now);
        if due { queue.heap.pop().map(|Reverse(entry)| entry.timer) } else { None }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.queue.lock().heap.len()
    }

    /// Forgets all, and what comes after: the pool has ended, and with it whatever was to end in time.
    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        let entries = std::mem::take(&mut queue.heap).into_vec();
        drop(queue);
        // One by one: a waker whose drop panics is that runtime's affair, and the others are dropped all the same.
        entries.into_iter().for_each(|entry| drop(panics::guard(|| drop(entry))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn timers_come_in_the_order_of_their_times() {
        let timers = Timers::default();
        let start = Instant::now();
        let at = |n: u64| start + Duration::from_secs(n);
        let who = |n: u64| Timer::Kill(Who { station: 0, generation: n });
        assert!(timers.add(at(3), who(3)));
        assert!(timers.add(at(1), who(1)));
        assert!(!timers.add(at(2), who(2)));
        assert_eq!(timers.next(), Some(at(1)));
        assert!(timers.take_due(start).is_none());
        for n in 1..=3 {
            let Some(Timer::Kill(who)) = timers.take_due(at(3)) else { panic!("one is due") };
            assert_eq!(who.generation, n);
        }
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_pool_that_has_ended_keeps_nobodys_waker() {
        struct Nobody;
        impl std::task::Wake for Nobody {
            fn wake(self: Arc<Self>) {}
        }
        let (timers, waker) = (Timers::default(), Arc::new(Nobody));
        let in_an_hour = Instant::now() + Duration::from_secs(3600);
        assert!(timers.add(in_an_hour, Timer::Wake(waker.clone().into())));
        timers.close();
        assert_eq!(Arc::strong_count(&waker), 1);
        assert!(!timers.add(in_an_hour, Timer::Wake(waker.clone().into())));
        assert_eq!((Arc::strong_count(&waker), timers.next()), (1, None));
    }
}
