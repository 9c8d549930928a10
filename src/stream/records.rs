//! Where the results of a stream's batches arrive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};

use parking_lot::Mutex;

use crate::life::job::BatchSink;
use crate::memory::arena::ArenaReader;

/// What a stream and the deliverers of its results share.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    state: Mutex<State>,
    /// Whether `ready` has something, or the stream's owner was poked: a hint that costs a load.
    any: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Batches with records that nobody has looked at.
    ready: Vec<usize>,
    /// Whether there is something else to look at than batches.
    poked: bool,
    waker: Option<Waker>,
}

impl Arrivals {
    #[inline]
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Takes the batches that have something to look at.
    pub(super) fn take(&self, into: &mut Vec<usize>) {
        let mut state = self.state.lock();
        into.append(&mut state.ready);
        state.poked = false;
        self.any.store(false, Ordering::Release);
    }

    /// Wants `waker` called when a batch has something, or at a poke. `Ready`: there is something.
    pub(super) fn register(&self, waker: &Waker) -> Poll<()> {
        let mut state = self.state.lock();
        if !state.ready.is_empty() || state.poked {
            return Poll::Ready(());
        }
        if !state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
        Poll::Pending
    }

    /// Wakes whoever waits, and keeps who is about to from sleeping.
    pub(super) fn poke(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.poked = true;
            self.any.store(true, Ordering::Release);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn announce(&self, batch: usize) -> Option<Waker> {
        let mut state = self.state.lock();
        state.ready.push(batch);
        self.any.store(true, Ordering::Release);
        state.waker.take()
    }
}

/// The records of one batch, from the lane that receives them to the stream that reads them.
#[derive(Debug)]
pub(super) struct Records {
    /// Number of the batch in the stream's window.
    batch: usize,
    arrivals: Arc<Arrivals>,
    bytes: Mutex<Vec<u8>>,
    /// Whether nobody will read what comes.
    closed: AtomicBool,
    announced: AtomicBool,
}

impl Records {
    pub(super) fn new(batch: usize, arrivals: Arc<Arrivals>) -> Self {
        let (closed, announced) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { batch, arrivals, bytes: Mutex::new(Vec::new()), closed, announced }
    }

    /// What comes from here on is announced again. To be called before looking: news that come in between are then
    /// announced once too often rather than not at all.
    pub(super) fn accept_news(&self) {
        self.announced.store(false, Ordering::SeqCst);
    }

    /// Takes what has come, adding it to `into`.
    pub(super) fn take(&self, into: &mut Vec<u8>) {
        let mut bytes = self.bytes.lock();
        if into.is_empty() {
            std::mem::swap(into, &mut bytes);
        } else {
            into.append(&mut bytes);
        }
    }

    /// Lets go of what has come, and of what will.
    pub(super) fn close(&self) {
        let mut bytes = self.bytes.lock();
        self.closed.store(true, Ordering::Relaxed);
        *bytes = Vec::new();
    }

    fn announce(&self) -> Option<Waker> {
        if self.announced.swap(true, Ordering::SeqCst) { None } else { self.arrivals.announce(self.batch) }
    }
}

impl BatchSink for Records {
    fn append(&self, arena: ArenaReader<'_>, position: u64, len: usize) -> Option<Waker> {
        let mut bytes = self.bytes.lock();
        // Relaxed: under the lock.
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        arena.append_to(position, len, &mut *bytes);
        drop(bytes);
        self.announce()
    }

    fn ended(&self) -> Option<Waker> {
        self.announce()
    }
}
