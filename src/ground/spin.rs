//! How long to look before sleeping.

use std::time::{Duration, Instant};

use super::barrier;

/// What a side does while it waits for the other one.
///
/// Asleep costs nothing and takes a wake-up of 4 to 10 µs; awake costs a core and takes 0.1 µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitPolicy {
    /// Looks for a few microseconds while there are cores to spare, then sleeps. An idle pool uses no CPU.
    #[default]
    Adaptive,
    /// Never sleeps while something is expected. For pinned, dedicated cores.
    Spin,
    /// Sleeps at once.
    Park,
}

/// Looking pays off for about as long as a wake-up takes, times what a busy caller's next task is worth waiting for.
const ROOMY_SPIN: Duration = Duration::from_micros(40);
/// With more processes than cores, whoever spins keeps somebody from working.
const CROWDED_SPIN: Duration = Duration::from_micros(2);
/// Looks between two readings of the clock (24 ns each).
pub(crate) const LOOKS_PER_READING: u32 = 32;
/// So many looks come close one after the other: a tenth of a microsecond, in which a peer answers that is at it.
const CLOSE_LOOKS: u32 = 12;

/// The budget of one side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpinBudget {
    limit: Option<Duration>,
    cores: usize,
}

impl SpinBudget {
    /// For one of `peers` workers and their callers on `cores` usable cores.
    pub(crate) fn new(policy: WaitPolicy, peers: usize, cores: usize) -> Self {
        let limit = match policy {
            WaitPolicy::Adaptive if peers < cores => Some(ROOMY_SPIN),
            WaitPolicy::Adaptive => Some(CROWDED_SPIN),
            WaitPolicy::Spin => None,
            WaitPolicy::Park => Some(Duration::ZERO),
        };
        Self { limit, cores }
    }

    /// Whether so many busy workers leave no core to a caller.
    pub(crate) fn is_crowded(self, busy: usize) -> bool {
        busy >= self.cores
    }

    /// A caller's budget while only so many of the workers have something to do.
    pub(crate) fn beside(self, busy: usize) -> Self {
        match self.limit {
            Some(limit) if !limit.is_zero() && !self.is_crowded(busy) => {
                Self { limit: Some(ROOMY_SPIN), ..self }
            }
            _ => self,
        }
    }

    /// Whether a spin ends only when something is found.
    pub(crate) fn is_endless(self) -> bool {
        self.limit.is_none()
    }

    /// A short one, for whoever has something else to do than to wait.
    pub(crate) fn brief(self) -> Self {
        match self.limit {
            Some(limit) if limit <= CROWDED_SPIN => self,
            _ => Self { limit: Some(CROWDED_SPIN), ..self },
        }
    }

    /// One look, if it is a short one anyway.
    pub(crate) fn once(self) -> Self {
        match self.limit {
            Some(limit) if limit <= CROWDED_SPIN => Self { limit: Some(Duration::ZERO), ..self },
            _ => self,
        }
    }

    /// Whether it is a short one at most.
    pub(crate) fn is_brief(self) -> bool {
        self.limit.is_some_and(|limit| limit <= CROWDED_SPIN)
    }

    /// Whether it never spins.
    pub(crate) fn is_none(self) -> bool {
        self.limit == Some(Duration::ZERO)
    }

    /// The budget for the waits that follow a sleep of this length. One that was over before a roomy budget would have been says
    /// that spinning is the cheaper way. After a long one the next is likely to be as long; and if whoever woke this process
    /// shares a core with it, he gets that when the spinning is over.
    pub(crate) fn after_sleep(self, slept: Duration) -> Self {
        match self.limit {
            Some(limit) if !limit.is_zero() => {
                Self { limit: Some(if slept < ROOMY_SPIN { ROOMY_SPIN } else { CROWDED_SPIN }), ..self }
            }
            _ => self,
        }
    }

    /// Looks until `look` finds something or the budget is used up.
    #[inline]
    pub(crate) fn spin<T>(self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        if let Some(found) = look() {
            return Some(found);
        }
        if self.is_none() {
            return None;
        }
        for _ in 0..CLOSE_LOOKS {
            barrier::await_loads();
            if let Some(found) = look() {
                return Some(found);
            }
        }
        // The clock is not read before the first looks: what is nearly there would have to wait for it.
        let mut start = None;
        loop {
            for _ in 0..LOOKS_PER_READING {
                std::hint::spin_loop();
                if let Some(found) = look() {
                    return Some(found);
                }
            }
            let start = *start.get_or_insert_with(Instant::now);
            if self.limit.is_some_and(|limit| start.elapsed() >= limit) {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_sleep_makes_patient_and_a_long_one_does_not() {
        let (short, long) = (ROOMY_SPIN / 2, ROOMY_SPIN);
        for workers in [1, 64] {
            let budget = SpinBudget::new(WaitPolicy::Adaptive, workers, 2);
            assert_eq!(budget.after_sleep(short).limit, Some(ROOMY_SPIN));
            assert_eq!(budget.after_sleep(long).limit, Some(CROWDED_SPIN));
        }
        for other in [WaitPolicy::Spin, WaitPolicy::Park] {
            let budget = SpinBudget::new(other, 64, 2);
            assert_eq!(budget.after_sleep(short).limit, budget.limit);
            assert_eq!(budget.after_sleep(long).limit, budget.limit);
            assert_eq!(budget.beside(1).limit, budget.limit);
        }
    }

    #[test]
    fn a_caller_has_the_core_of_a_worker_that_is_idle() {
        let budget = SpinBudget::new(WaitPolicy::Adaptive, 2, 2);
        assert_eq!(budget.limit, Some(CROWDED_SPIN));
        assert_eq!(budget.beside(2).limit, Some(CROWDED_SPIN));
        assert_eq!(budget.beside(1).limit, Some(ROOMY_SPIN));
    }
}
