//! Waiting for a pool's end, as a thread or as a future.

use std::sync::Arc;
use std::task::{Poll, Waker};

use super::{Core, Phase};
use crate::life::service;

/// Somebody's wait for a pool's end. Of the wakers that it is polled with the last one is kept, for as long as this lives.
pub(crate) struct UntilEnded {
    core: Arc<Core>,
    /// Where that waker is in line, unless it has been called since. It keeps the number, and comes back to the end.
    number: Option<u64>,
}

impl UntilEnded {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core, number: None }
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// Blocks until the pool has ended, unless it would wait for this thread.
    pub(crate) fn wait(&self) {
        if !self.core.is_here() {
            return;
        }
        if service::is_handler_of(&self.core) {
            self.core.wait_for(Phase::Closing, None);
        }
        if !self.comes_after_this_handler() {
            self.core.wait_for(Phase::Ended, None);
        }
    }

    /// Likewise without blocking: if it is pending, `waker` is called when the pool begins to end and when it has ended.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Poll<()> {
        let is_over = !self.core.is_here() || self.register(waker) || self.comes_after_this_handler();
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether the pool has ended; if not, `waker` stands in line in the place of the one before.
    fn register(&mut self, waker: &Waker) -> bool {
        if self.core.phase() == Phase::Ended {
            return true;
        }
        let waker = waker.clone();
        let mut life = self.core.life.lock();
        let is_over = life.phase == Phase::Ended;
        let unwanted = if is_over {
            Some(waker)
        } else if let Some(former) = self.number.and_then(|number| life.line.waker_mut(number)) {
            Some(std::mem::replace(former, waker))
        } else {
            self.number = Some(life.line.join((), waker));
            None
        };
        drop(life);
        drop(unwanted);
        is_over
    }

    /// Whether the pool is closing and waits for the task that has called the handler that this thread runs, however long.
    fn comes_after_this_handler(&self) -> bool {
        self.core.phase() == Phase::Closing
            && self.core.close_deadline().is_none()
            && service::is_handler_of(&self.core)
    }
}

/// Another one's wait, which has not begun.
impl Clone for UntilEnded {
    fn clone(&self) -> Self {
        Self::new(self.core.clone())
    }
}

impl std::fmt::Debug for UntilEnded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UntilEnded").field("pool", &self.core.name).finish_non_exhaustive()
    }
}

impl Drop for UntilEnded {
    fn drop(&mut self) {
        // In another process the lock may be held by a thread that does not exist there, and a waker is user code of this one.
        if let Some(number) = self.number
            && self.core.is_here()
        {
            let left = self.core.life.lock().line.leave(number);
            drop(left);
        }
    }
}
