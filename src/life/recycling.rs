//! Recycling: a worker that has reached a limit leaves in good order, and a fresh process takes its place.
//!
//! The worker decides, between two requests: it seals its own claim word, so that nothing more starts in it, says why,
//! and leaves as it does when told to. The master takes back what had not started as soon as it sees that, replaces
//! the worker when it has gone, and reports no loss. Nobody has to stop the worker in the middle of anything, and the
//! master counts nothing.

use std::time::{Duration, Instant};

use crate::ground::sys::Result;
use crate::ground::sys::usage::Statm;
use crate::protocol::wire::Parting;

/// Memory is looked at no more often than this: a look costs a system call, tiny tasks cost less.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// What a worker may use up before it leaves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Recycling {
    pub(crate) max_tasks: Option<u64>,
    pub(crate) max_growth_bytes: Option<u64>,
}

/// In a worker: what is left of that.
#[derive(Debug)]
pub(crate) struct Allowance {
    tasks: Option<u64>,
    growth: Option<Growth>,
}

#[derive(Debug)]
struct Growth {
    statm: Statm,
    limit_bytes: u64,
    start_bytes: u64,
    looked: Instant,
}

impl Allowance {
    /// `None`: there is no limit. To be called when the worker is ready, since memory is counted from here.
    pub(crate) fn start(recycling: &Recycling) -> Result<Option<Self>> {
        let Recycling { max_tasks, max_growth_bytes } = *recycling;
        let growth = max_growth_bytes.map(Growth::start).transpose()?;
        Ok((max_tasks.is_some() || growth.is_some()).then_some(Self { tasks: max_tasks, growth }))
    }

    /// So many tasks have been run. `Some`: it is time to leave.
    pub(crate) fn spend(&mut self, tasks: u64) -> Option<Parting> {
        if let Some(left) = &mut self.tasks {
            *left = left.saturating_sub(tasks);
            if *left == 0 {
                return Some(Parting::Tasks);
            }
        }
        let growth = self.growth.as_mut()?;
        growth.is_too_much().then_some(Parting::Memory)
    }
}

impl Growth {
    fn start(limit_bytes: u64) -> Result<Self> {
        let statm = Statm::open()?;
        let start_bytes = statm.read()?.anonymous_bytes;
        Ok(Self { statm, limit_bytes, start_bytes, looked: Instant::now() })
    }

    fn is_too_much(&mut self) -> bool {
        let now = Instant::now();
        if now.duration_since(self.looked) < LOOK_INTERVAL {
            return false;
        }
        self.looked = now;
        // A task may have closed all descriptors that it did not know. Then nothing is known, and nothing is done.
        self.statm
            .read()
            .is_ok_and(|usage| usage.anonymous_bytes.saturating_sub(self.start_bytes) > self.limit_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::sys::testing::in_own_process;

    #[test]
    fn nothing_is_watched_without_a_limit() {
        assert!(Allowance::start(&Recycling::default()).unwrap().is_none());
    }

    #[test]
    fn tasks_are_counted_down_and_a_batch_may_overshoot() {
        let recycling = Recycling { max_tasks: Some(5), max_growth_bytes: None };
        let start = || Allowance::start(&recycling).unwrap().unwrap();
        let mut one_by_one = start();
        assert!((0..4).all(|_| one_by_one.spend(1).is_none()));
        assert_eq!(one_by_one.spend(1), Some(Parting::Tasks));
        let mut batches = start();
        assert_eq!(batches.spend(3), None);
        assert_eq!(batches.spend(3), Some(Parting::Tasks));
    }

    #[test]
    fn memory_is_looked_at_once_in_an_interval() {
        in_own_process(concat!(module_path!(), "::memory_is_looked_at_once_in_an_interval"), || {
            let recycling = Recycling { max_tasks: None, max_growth_bytes: Some(16 << 20) };
            let mut allowance = Allowance::start(&recycling).unwrap().unwrap();
            let block = vec![1_u8; 64 << 20];
            let mut spend_after = |looked| {
                if let Some(growth) = &mut allowance.growth {
                    growth.looked = looked;
                }
                allowance.spend(1)
            };
            assert_eq!(spend_after(Instant::now() + Duration::from_secs(3600)), None);
            assert_eq!(spend_after(Instant::now() - LOOK_INTERVAL), Some(Parting::Memory));
            drop(std::hint::black_box(block));
        });
    }
}
