//! The claim word: who owns which published request.
//!
//! One free-running count with a SEALED bit. Requests below the count have been *claimed by the worker* or *taken
//! back by the master*; requests from the count on are unstarted. Both sides move the count forward with a
//! compare-and-swap, so every request has exactly one owner and a task starts at most once. The count never goes
//! back, and a sealed word never moves again.
//!
//! | actor | move | meaning |
//! |---|---|---|
//! | worker | `c → c + 1` | request `c` starts |
//! | master | `c → c + k` | the oldest `k` unstarted requests are the master's again |
//! | master | `c → c` with SEALED | nothing more starts in this worker; what is unstarted is the master's |
//! | worker | `c → c` with SEALED | the same, by its own decision: it leaves between two requests |
//!
//! The word lies in memory that the worker can write, so the master checks a count it reads against the range that
//! it knows must hold ([`crate::protocol`]).

use crate::sync::{AtomicU64, Ordering};

const SEALED: u64 = 1 << 63;

/// See the module's documentation.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct ClaimWord(AtomicU64);

/// What became of an attempt to claim.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The request is the worker's.
    Won,
    /// The master has taken requests back; the next candidate is this one.
    Moved(u64),
    /// Nothing more starts here.
    Sealed,
}

/// The count as read, and whether the word is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claimed {
    pub(crate) count: u64,
    pub(crate) sealed: bool,
}

impl Claimed {
    fn of(word: u64) -> Self {
        Self { count: word & !SEALED, sealed: word & SEALED != 0 }
    }
}

impl ClaimWord {
    #[cfg(test)]
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Worker: tries to start request `index`, which it has seen published.
    ///
    /// SeqCst on success: a full barrier between the claim and whatever the worker reads next (the cancel mark).
    #[inline]
    pub(crate) fn claim(&self, index: u64) -> Claim {
        match self.0.compare_exchange(index, index + 1, Ordering::SeqCst, Ordering::Acquire) {
            Ok(_) => Claim::Won,
            Err(word) if word & SEALED != 0 => Claim::Sealed,
            Err(word) => Claim::Moved(word),
        }
    }

    /// Either side: the present state. Stays a lower bound of the count.
    #[inline]
    pub(crate) fn load(&self) -> Claimed {
        Claimed::of(self.0.load(Ordering::Acquire))
    }

    /// Master: takes back at most `max` of the oldest unstarted requests below `sent`; the range is the master's.
    ///
    /// A count beyond `sent` yields an empty range; the caller, who knows what may be there, judges it by [`load`].
    ///
    /// [`load`]: Self::load
    pub(crate) fn take_back(&self, sent: u64, max: u64) -> std::ops::Range<u64> {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let Claimed { count, sealed } = Claimed::of(word);
            let k = sent.saturating_sub(count).min(max);
            if k == 0 || sealed {
                return count..count;
            }
            match self.0.compare_exchange_weak(word, count + k, Ordering::SeqCst, Ordering::Acquire) {
                Ok(_) => return count..count + k,
                Err(seen) => word = seen,
            }
        }
    }

    /// Either side: seals the word; the count that it was sealed at.
    pub(crate) fn seal(&self) -> u64 {
        Claimed::of(self.0.fetch_or(SEALED, Ordering::SeqCst)).count
    }
}

#[cfg(all(test, forkring_loom))]
mod loom;

#[cfg(all(test, not(forkring_loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64 as Count;

    #[test]
    fn a_claim_moves_the_count_by_one() {
        let word = ClaimWord::new();
        assert_eq!(word.claim(0), Claim::Won);
        assert_eq!(word.claim(0), Claim::Moved(1));
        assert_eq!(word.load(), Claimed { count: 1, sealed: false });
    }

    #[test]
    fn taking_back_takes_the_oldest_unstarted() {
        let word = ClaimWord::new();
        assert_eq!(word.claim(0), Claim::Won);
        assert_eq!(word.take_back(5, 2), 1..3);
        assert_eq!(word.claim(1), Claim::Moved(3));
        assert_eq!(word.take_back(5, u64::MAX), 3..5);
        assert_eq!(word.take_back(5, u64::MAX), 5..5);
    }

    #[test]
    fn a_sealed_word_never_moves() {
        let word = ClaimWord::new();
        assert_eq!(word.claim(0), Claim::Won);
        assert_eq!(word.seal(), 1);
        assert_eq!(word.claim(1), Claim::Sealed);
        assert!(word.take_back(9, 9).is_empty());
        assert_eq!(word.load(), Claimed { count: 1, sealed: true });
    }

    #[test]
    fn racing_claims_and_take_backs_give_every_request_one_owner() {
        const TOTAL: u64 = 50_000;
        let word = ClaimWord::new();
        let owners: Vec<Count> = (0..TOTAL).map(|_| Count::new(0)).collect();
        let own = |i: u64| owners[i as usize].fetch_add(1, Ordering::Relaxed);
        std::thread::scope(|s| {
            let worker = s.spawn(|| {
                let mut next = 0;
                while next < TOTAL {
                    match word.claim(next) {
                        Claim::Won => {
                            own(next);
                            next += 1;
                        }
                        Claim::Moved(to) => next = to,
                        Claim::Sealed => unreachable!("nobody seals"),
                    }
                }
            });
            while word.load().count < TOTAL {
                word.take_back(TOTAL, 3).for_each(|i| {
                    own(i);
                });
            }
            // ThreadSanitizer sees a join, but not the end of a scope.
            worker.join().unwrap();
        });
        assert!(owners.iter().all(|n| n.load(Ordering::Relaxed) == 1));
    }
}
