//! Who waits for something with a waker, in the order of arrival.
//!
//! Wakers are user code, and a line stands under a lock. So it takes wakers that have been cloned, and hands back those that
//! are to be called or dropped, for when the lock is released.

use std::collections::BTreeMap;
use std::task::Waker;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Line<T = ()> {
    /// Numbers are given once, so that of somebody who has left is nobody else's.
    next: u64,
    standing: BTreeMap<u64, Standing<T>>,
}

/// Somebody in line, and what else is known of him.
#[derive(Debug)]
pub(super) struct Standing<T = ()> {
    pub(super) about: T,
    pub(super) waker: Waker,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { next: 0, standing: BTreeMap::new() }
    }
}

impl<T> Line<T> {
    /// A number at the end of the line.
    pub(super) fn join(&mut self, about: T, waker: Waker) -> u64 {
        let number = self.next;
        self.next += 1;
        self.standing.insert(number, Standing { about, waker });
        number
    }

    /// The waker of somebody who still stands there.
    pub(super) fn waker_mut(&mut self, number: u64) -> Option<&mut Waker> {
        self.standing.get_mut(&number).map(|standing| &mut standing.waker)
    }

    pub(super) fn leave(&mut self, number: u64) -> Option<Standing<T>> {
        self.standing.remove(&number)
    }

    pub(super) fn pop_first(&mut self) -> Option<Standing<T>> {
        self.standing.pop_first().map(|(_, first)| first)
    }

    /// All of them, who stand there no longer.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Standing<T>> + use<T> {
        std::mem::take(&mut self.standing).into_values()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.standing.is_empty()
    }
}
