//! Where the results of a stream's messages arrive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, Wake, Waker};

use parking_lot::Mutex;

use crate::life::core::Listener;
use crate::life::job::BatchSink;
use crate::memory::arena::ArenaReader;
use crate::protocol::lane::Form;
use crate::stream::results::KEPT_BYTES_MAX;

/// What a stream and the deliverers of its results share: a mailbox, which the stream empties as a whole.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    state: Mutex<State>,
    /// Whether there is news, or the stream's owner was poked: a hint that costs a load.
    any: AtomicBool,
    /// The stream's tag as a bit, if its items are tasks, whose ends are no news.
    items_of: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    news: News,
    /// Whether there is something else to look at than news.
    poked: bool,
    /// Whether nobody will look any more.
    closed: bool,
    waker: Option<Waker>,
}

/// What has come, in its order.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) notes: Vec<Note>,
    /// The results that the notes are about, one after the other.
    pub(super) bytes: Vec<u8>,
}

/// Something that has come for a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note {
    pub(super) address: Address,
    pub(super) what: What,
}

/// A slot of the stream's window, and which of its uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) slot: u32,
    pub(super) epoch: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// So many bytes of results.
    Results(Form, usize),
    /// The message's job is done, and all of its results were before this.
    Ended,
}

impl News {
    #[inline]
    fn add_results(
        &mut self,
        address: Address,
        form: Form,
        (arena, position, len): (ArenaReader<'_>, u64, usize),
    ) {
        arena.append_to(position, len, &mut self.bytes);
        match self.notes.last_mut() {
            Some(Note { address: last, what: What::Results(last_form, before) })
                if *last == address && *last_form == form =>
            {
                *before += len;
            }
            _ => self.notes.push(Note { address, what: What::Results(form, len) }),
        }
    }

    #[inline]
    fn add_end(&mut self, address: Address) {
        self.notes.push(Note { address, what: What::Ended });
    }

    pub(super) fn clear(&mut self) {
        self.notes.clear();
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
    }
}

impl Arrivals {
    /// Has the stream woken when an item ends: see [`Core::call_streams`](crate::life::core::Core::call_streams).
    pub(super) fn expect_items(&self, tag: u8) {
        self.items_of.store(1 << (tag % 64), Ordering::Relaxed);
    }

    /// Nobody waits any more: what comes next need not wake.
    pub(super) fn unregister(&self) {
        let waker = self.state.lock().waker.take();
        drop(waker);
    }

    #[inline]
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Takes what has come; `news`, which is empty, is what comes next collected in.
    pub(super) fn take(&self, news: &mut News) {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.news, news);
        state.poked = false;
        self.any.store(false, Ordering::Release);
    }

    /// Wants `waker` called when something comes, or at a poke. `Ready`: there is something.
    pub(super) fn register(&self, waker: &Waker) -> Poll<()> {
        // Whoever delivers takes the lock while it owns a station, so user code runs without it: the clone, and the drop of what
        // may be all that is left of a task that has a stopper of this stream.
        let waker = waker.clone();
        let mut state = self.state.lock();
        let is_there = !state.news.notes.is_empty() || state.poked;
        let unwanted = if is_there { Some(waker) } else { state.waker.replace(waker) };
        drop(state);
        drop(unwanted);
        if is_there { Poll::Ready(()) } else { Poll::Pending }
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

    /// Lets go of what has come, and of what will.
    #[cold]
    pub(super) fn close(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.closed = true;
            state.news = News::default();
            state.waker.take()
        };
        // Whoever still has the mailbox keeps no task alive.
        drop(waker);
    }

    #[inline]
    fn announce(&self, add: impl FnOnce(&mut News)) -> Option<Waker> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.closed {
            return None;
        }
        let is_first = state.news.notes.is_empty();
        add(&mut state.news);
        if is_first {
            self.any.store(true, Ordering::Release);
        }
        state.waker.take()
    }
}

impl Wake for Arrivals {
    fn wake(self: Arc<Self>) {
        self.poke();
    }
}

impl Listener for Arrivals {
    fn pool_closes(&self) {
        self.poke();
    }

    fn items_ended(&self, streams: u64) {
        if self.items_of.load(Ordering::Relaxed) & streams != 0 && self.state.lock().waker.is_some() {
            self.poke();
        }
    }
}

/// The way of one message's results, from the lane that receives them to the stream that reads them.
#[derive(Debug)]
pub(super) struct Records {
    pub(super) address: Address,
    pub(super) arrivals: Arc<Arrivals>,
}

impl BatchSink for Records {
    fn append(&self, form: Form, arena: ArenaReader<'_>, position: u64, len: usize) -> Option<Waker> {
        self.arrivals.announce(|news| news.add_results(self.address, form, (arena, position, len)))
    }

    fn ended(&self) -> Option<Waker> {
        self.arrivals.announce(|news| news.add_end(self.address))
    }

    fn append_last(&self, form: Form, arena: ArenaReader<'_>, position: u64, len: usize) -> Option<Waker> {
        self.arrivals.announce(|news| {
            news.add_results(self.address, form, (arena, position, len));
            news.add_end(self.address);
        })
    }
}
