//! Sets of stations, and jobs that are in none.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

/// Counts moves of jobs between stations, during which they are in none.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// A move that is under way.
#[derive(Debug)]
pub(crate) struct Move<'a>(&'a Moves);

impl Moves {
    pub(crate) fn begin(&self) -> Move<'_> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        Move(self)
    }

    /// The number of moves that there were, if none is under way.
    pub(super) fn state(&self) -> Option<usize> {
        let ended = self.ended.load(Ordering::SeqCst);
        (self.begun.load(Ordering::SeqCst) == ended).then_some(ended)
    }
}

impl Drop for Move<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

/// A set of stations that any thread may change.
#[derive(Debug)]
pub(crate) struct StationSet {
    /// Each in a line of its own: threads look at one set while others change another.
    words: Box<[CachePadded<AtomicU64>]>,
}

impl StationSet {
    pub(super) fn new(stations: usize) -> Self {
        Self { words: (0..stations.div_ceil(64)).map(|_| CachePadded::default()).collect() }
    }

    /// SeqCst: whoever adds itself here and then looks at the other set is seen, or sees (edge BALANCE).
    pub(crate) fn set(&self, station: usize) {
        self.words[station / 64].fetch_or(1 << (station % 64), Ordering::SeqCst);
    }

    pub(crate) fn clear(&self, station: usize) {
        let word = &self.words[station / 64];
        if word.load(Ordering::Relaxed) & 1 << (station % 64) != 0 {
            word.fetch_and(!(1 << (station % 64)), Ordering::SeqCst);
        }
    }

    #[inline]
    pub(crate) fn contains(&self, station: usize) -> bool {
        self.words
            .get(station / 64)
            .is_some_and(|word| word.load(Ordering::SeqCst) & 1 << (station % 64) != 0)
    }

    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.words.iter().any(|word| word.load(Ordering::SeqCst) != 0)
    }

    /// The first member.
    pub(crate) fn first(&self) -> Option<usize> {
        self.words.iter().enumerate().find_map(|(i, word)| {
            let word = word.load(Ordering::SeqCst);
            (word != 0).then(|| i * 64 + word.trailing_zeros() as usize)
        })
    }

    /// A member that `suits`: this one if it is one, else one of those behind it.
    pub(crate) fn find(&self, first: usize, suits: impl Fn(usize) -> bool) -> Option<usize> {
        let (before, behind) = self.words.split_at((first / 64).min(self.words.len()));
        for (base, word) in (before.len()..).zip(behind).chain((0..).zip(before)) {
            let mut bits = word.load(Ordering::Relaxed);
            while bits != 0 {
                let turned = bits.rotate_right(first as u32 % 64);
                let at = (first + turned.trailing_zeros() as usize) % 64;
                if suits(base * 64 + at) {
                    return Some(base * 64 + at);
                }
                bits &= !(1 << at);
            }
        }
        None
    }

    /// How many members there are.
    pub(crate) fn len(&self) -> usize {
        self.words.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    /// Takes some member out.
    #[inline]
    pub(crate) fn take(&self) -> Option<usize> {
        for (i, word) in self.words.iter().enumerate() {
            loop {
                let bits = word.load(Ordering::Relaxed);
                if bits == 0 {
                    break;
                }
                // Of one bit, whose former value alone is asked for: one instruction, where a mask takes a loop.
                let at = bits.trailing_zeros();
                if word.fetch_and(!(1 << at), Ordering::SeqCst) & 1 << at != 0 {
                    return Some(i * 64 + at as usize);
                }
            }
        }
        None
    }
}
