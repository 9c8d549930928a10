//! The ownership of something that several threads use, one at a time: a flag, an inbox, and a keeper.
//!
//! Whoever wants it briefly *owns* it. Who would rather not wait leaves a node in the *inbox*, which is part of the same
//! word, and the owner takes it in before it lets go: letting go is a compare-and-swap that fails while the inbox is not
//! empty, so nothing is left behind.
//!
//! A thread that has owned it time and again may *keep* it: it then comes and goes with plain stores to a word of its own,
//! which says what it is *inside* of, and no locked instruction. Whoever else wants it *revokes* that once: it makes the
//! ownership word its own, has [`barrier::heavy`] run, and waits until the keeper is not inside.
//!
//! | word | meaning |
//! |---|---|
//! | 0 | free |
//! | OWNED | owned, inbox empty |
//! | node + OWNED | owned, inbox is a list of nodes, youngest first |
//! | … + WANTED | somebody waits; an owner that only looks around lets go |
//! | number × 8 + KEPT | kept by the thread of that number, which is inside or not |
//!
//! Edge KEEP: the keeper stores that it is inside, has the light half of the barrier, and looks at the word; a revoker
//! changes the word, has the heavy half, and looks whether the keeper is inside. Either the keeper sees the changed word
//! and stays out, or the revoker sees it inside and waits until it has left (Release/Acquire). A keeper's word is set by
//! that thread alone, so it cannot come back between the two; and each thread says in a word of its own where it is, so
//! one that comes late, when another thread keeps the same thing, disturbs nobody.

use crossbeam_utils::{Backoff, CachePadded};

use super::barrier;
use crate::sync::{AtomicUsize, Ordering};

const OWNED: usize = 1;
const WANTED: usize = 2;
const KEPT: usize = 4;
const FLAGS: usize = OWNED | WANTED | KEPT;

/// Nodes are named by numbers that leave the flags free: addresses of something aligned to this.
pub(crate) const NODE_ALIGN: usize = FLAGS + 1;

/// How many threads can be keepers at a time. Others own things without keeping them.
#[cfg(not(forkring_loom))]
const KEEPERS: usize = 256;
#[cfg(forkring_loom)]
const KEEPERS: usize = 4;

/// For each keeper, the address of what it is inside of, or 0. Written by that thread alone.
struct Keepers {
    inside: [CachePadded<AtomicUsize>; KEEPERS],
}

#[cfg(not(forkring_loom))]
static THREADS: Keepers = Keepers { inside: [const { CachePadded::new(AtomicUsize::new(0)) }; KEEPERS] };

#[cfg(forkring_loom)]
::loom::lazy_static! {
    static ref THREADS: Keepers =
        Keepers { inside: std::array::from_fn(|_| CachePadded::new(AtomicUsize::new(0))) };
}

/// A thread among the keepers, or one of the many that are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadNumber(usize);

impl ThreadNumber {
    const NONE: usize = KEEPERS;

    /// This thread's number. It goes to another thread when this one ends, and what it keeps with it.
    #[cfg(not(forkring_loom))]
    #[inline]
    pub(crate) fn current() -> Self {
        numbers::current()
    }

    /// In models, threads say themselves who they are.
    #[cfg(forkring_loom)]
    pub(crate) fn current() -> Self {
        Self(Self::NONE)
    }

    #[cfg(all(test, forkring_loom))]
    pub(crate) fn new(number: usize) -> Self {
        Self(number)
    }

    /// Whether it can keep anything.
    pub(crate) fn is_keeper(self) -> bool {
        self.0 != Self::NONE
    }

    #[inline]
    fn kept(self) -> usize {
        (self.0 * NODE_ALIGN) | KEPT
    }

    #[inline]
    fn inside(self) -> &'static AtomicUsize {
        &THREADS.inside[self.0 % KEEPERS]
    }
}

/// How something is owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grip {
    /// By the flag.
    Owned,
    /// By the flag, which was taken from a keeper.
    Revoked,
    /// By its keeper.
    Kept,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Ownership {
    word: AtomicUsize,
}

impl Ownership {
    pub(crate) fn new() -> Self {
        Self { word: AtomicUsize::new(0) }
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Whether it is free, or this thread's to keep.
    #[inline]
    pub(crate) fn is_at_hand(&self, me: ThreadNumber) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        word == 0 || word == me.kept()
    }

    /// Owns it if nobody does. Waits for a keeper only, and only while that is inside.
    #[inline]
    pub(crate) fn try_own(&self, me: ThreadNumber) -> Option<Grip> {
        let word = self.word.load(Ordering::Relaxed);
        if word == me.kept() { self.enter(me, word) } else { self.try_own_word(word) }
    }

    #[inline]
    fn try_own_word(&self, word: usize) -> Option<Grip> {
        if word == 0 {
            let won = self.word.compare_exchange(0, OWNED, Ordering::Acquire, Ordering::Relaxed);
            return won.ok().map(|_| Grip::Owned);
        }
        if word & KEPT == 0 { None } else { self.revoke(word) }
    }

    /// The keeper comes in, unless its keeping has been revoked.
    #[inline]
    fn enter(&self, me: ThreadNumber, word: usize) -> Option<Grip> {
        let inside = me.inside();
        match inside.load(Ordering::Relaxed) {
            0 => {}
            // It owns this already.
            here if here == self.address() => return None,
            // It is inside of something else, and has but one word.
            _ => return self.revoke(word),
        }
        // Release: whoever finds this thread here, and looks for it elsewhere, sees that it has left there.
        inside.store(self.address(), Ordering::Release);
        // Edge KEEP.
        barrier::light();
        if self.word.load(Ordering::Relaxed) == word {
            return Some(Grip::Kept);
        }
        inside.store(0, Ordering::Release);
        None
    }

    /// Takes it from its keeper.
    #[cold]
    fn revoke(&self, word: usize) -> Option<Grip> {
        self.word.compare_exchange(word, OWNED, Ordering::Acquire, Ordering::Relaxed).ok()?;
        // Edge KEEP.
        barrier::heavy_or_wait();
        let inside = ThreadNumber(word / NODE_ALIGN).inside();
        let backoff = Backoff::new();
        while inside.load(Ordering::Acquire) == self.address() {
            pause(&backoff);
        }
        Some(Grip::Revoked)
    }

    /// Waits until it can be owned.
    pub(crate) fn own(&self, me: ThreadNumber) -> Grip {
        let backoff = Backoff::new();
        loop {
            if let Some(grip) = self.try_own(me) {
                return grip;
            }
            let word = self.word.load(Ordering::Relaxed);
            if word & OWNED != 0 {
                // An owner that looks around in a loop sees this and lets go. In vain if it has just done so.
                let _ = self.word.compare_exchange(word, word | WANTED, Ordering::Relaxed, Ordering::Relaxed);
            }
            pause(&backoff);
        }
    }

    /// Owns it, or leaves `node` with whoever does; `link` gives the node its successor in the inbox. Release: what was
    /// written to the node before its presence in the inbox.
    pub(crate) fn own_or_leave(&self, me: ThreadNumber, node: usize, link: impl Fn(usize)) -> Option<Grip> {
        debug_assert!(node != 0 && node & FLAGS == 0);
        loop {
            if let Some(grip) = self.try_own(me) {
                return Some(grip);
            }
            let word = self.word.load(Ordering::Relaxed);
            if word & OWNED == 0 {
                continue;
            }
            link(word & !FLAGS);
            let left = node | (word & FLAGS);
            if self.word.compare_exchange(word, left, Ordering::Release, Ordering::Relaxed).is_ok() {
                return None;
            }
        }
    }

    /// Owner: whether it should let go if it only looks around: somebody waits, or has left something.
    #[inline]
    pub(crate) fn is_contended(&self, grip: Grip, me: ThreadNumber) -> bool {
        let alone = if grip == Grip::Kept { me.kept() } else { OWNED };
        self.word.load(Ordering::Relaxed) != alone
    }

    /// Owner: takes the nodes of the inbox, youngest first; 0 if there is none.
    pub(crate) fn take_inbox(&self) -> usize {
        self.word.swap(OWNED, Ordering::Acquire) & !FLAGS
    }

    /// Owner: lets go, to keep it if `keep`. `false`: first there is an inbox to be taken.
    #[inline]
    pub(crate) fn try_let_go(&self, grip: Grip, me: ThreadNumber, keep: bool) -> bool {
        if grip == Grip::Kept {
            me.inside().store(0, Ordering::Release);
            return true;
        }
        let to = if keep { me.kept() } else { 0 };
        self.word.compare_exchange(OWNED, to, Ordering::Release, Ordering::Relaxed).is_ok()
    }
}

fn pause(backoff: &Backoff) {
    #[cfg(forkring_loom)]
    ::loom::thread::yield_now();
    backoff.snooze();
}

/// Which thread has which number.
#[cfg(not(forkring_loom))]
mod numbers {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{KEEPERS, ThreadNumber};

    /// A bit for each number that is taken.
    static TAKEN: [AtomicU64; KEEPERS / 64] = [const { AtomicU64::new(0) }; KEEPERS / 64];

    const UNKNOWN: usize = usize::MAX;

    thread_local! {
        /// Without a destructor, so that it costs a load.
        static NUMBER: Cell<usize> = const { Cell::new(UNKNOWN) };
        static RETURN: Return = const { Return };
    }

    /// Gives the number of a thread back when that ends.
    struct Return;

    impl Drop for Return {
        fn drop(&mut self) {
            let number = NUMBER.replace(ThreadNumber::NONE);
            if number < KEEPERS {
                // Release: whoever is given the number goes on where this thread has left off.
                TAKEN[number / 64].fetch_and(!(1 << (number % 64)), Ordering::Release);
            }
        }
    }

    #[inline]
    pub(super) fn current() -> ThreadNumber {
        match NUMBER.get() {
            UNKNOWN => assign(),
            number => ThreadNumber(number),
        }
    }

    #[cold]
    fn assign() -> ThreadNumber {
        // A thread that is ending has no use for one.
        let number = RETURN.try_with(|_| take()).unwrap_or(ThreadNumber::NONE);
        NUMBER.set(number);
        ThreadNumber(number)
    }

    fn take() -> usize {
        for (at, word) in TAKEN.iter().enumerate() {
            let mut taken = word.load(Ordering::Relaxed);
            while taken != u64::MAX {
                let bit = (!taken).trailing_zeros();
                let seen = word.fetch_or(1 << bit, Ordering::Acquire);
                if seen & 1 << bit == 0 {
                    return at * 64 + bit as usize;
                }
                taken = seen;
            }
        }
        ThreadNumber::NONE
    }
}

#[cfg(all(test, forkring_loom))]
mod loom;
