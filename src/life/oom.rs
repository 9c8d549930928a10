//! Whether a worker died for want of memory. Nobody says so; there are signs.

use std::time::{Duration, Instant};

use crate::error::LossHint;
use crate::ground::sys::process::ExitStatus;
use crate::ground::sys::usage;

/// Several workers may be killed together, and the first death that is looked at finds the counter moved for all.
const TOGETHER: Duration = Duration::from_secs(1);

/// Watches the kernel's count of processes that it killed because memory had run out.
#[derive(Debug)]
pub(crate) struct OomWatch {
    /// `None` where it cannot be read.
    kills: Option<u64>,
    moved: Option<Instant>,
}

impl OomWatch {
    pub(crate) fn new() -> Self {
        Self { kills: usage::oom_kills().ok(), moved: None }
    }

    /// What lies behind the death of a worker. `limited`: its addresses were.
    pub(crate) fn hint(&mut self, status: ExitStatus, limited: bool) -> Option<LossHint> {
        let starved = match status.signal() {
            // How Rust's and C++'s allocators end a process that is refused memory.
            Some(nix::libc::SIGABRT) => limited,
            Some(nix::libc::SIGKILL) => self.may_have_killed(usage::oom_kills().ok()),
            _ => false,
        };
        starved.then_some(LossHint::OutOfMemory)
    }

    fn may_have_killed(&mut self, kills: Option<u64>) -> bool {
        let before = std::mem::replace(&mut self.kills, kills);
        // Without the counter every SIGKILL may be the kernel's.
        let (Some(before), Some(kills)) = (before, kills) else { return true };
        let now = Instant::now();
        if kills != before {
            self.moved = Some(now);
        }
        self.moved.is_some_and(|moved| now.duration_since(moved) < TOGETHER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_the_kernels_if_its_counter_has_moved() {
        let mut watch = OomWatch { kills: Some(3), moved: None };
        assert!(!watch.may_have_killed(Some(3)));
        assert!(watch.may_have_killed(Some(5)));
        assert!(watch.may_have_killed(Some(5)), "two at a time");
        watch.moved = Instant::now().checked_sub(2 * TOGETHER);
        assert!(!watch.may_have_killed(Some(5)));
        assert!(watch.may_have_killed(None) && watch.may_have_killed(Some(5)), "unknown");
        assert!(!watch.may_have_killed(Some(5)));
    }

    #[test]
    fn an_abort_needs_a_limit_and_other_ends_have_no_hint() {
        let mut watch = OomWatch::new();
        let aborted = ExitStatus::Signaled(nix::libc::SIGABRT, true);
        assert_eq!(watch.hint(aborted, true), Some(LossHint::OutOfMemory));
        assert_eq!(watch.hint(aborted, false), None);
        assert_eq!(watch.hint(ExitStatus::Signaled(nix::libc::SIGSEGV, false), true), None);
        assert_eq!(watch.hint(ExitStatus::Exited(0), true), None);
    }
}
