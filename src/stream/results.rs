//! Results on their way to whoever consumes a stream.

use std::collections::VecDeque;
use std::marker::PhantomData;

use crate::error::TaskError;
use crate::memory::codec::{self, Payload};
use crate::protocol::records::{record_stride, value_bytes};

/// The most memory that a buffer for results keeps between two uses.
pub(super) const KEPT_BYTES_MAX: usize = 1 << 20;

/// A stream's outcome of one item.
pub(super) type Item<R> = Result<R, TaskError>;

/// Values of items that follow each other, as they came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'a, R> {
    /// The index of the first item.
    pub(super) first: u64,
    bytes: &'a [u8],
    _values: PhantomData<fn() -> R>,
}

impl<'a, R: Payload> Run<'a, R> {
    pub(super) fn new(first: u64, bytes: &'a [u8]) -> Self {
        Self { first, bytes, _values: PhantomData }
    }

    #[inline]
    pub(super) fn values(&self) -> impl Iterator<Item = R> + use<'a, R> {
        let (stride, width) = (record_stride::<R>().unwrap_or(0), value_bytes::<R>().unwrap_or(1));
        self.bytes.chunks_exact(width).map_while(move |bytes| codec::plain_value::<R>(&bytes[..stride]))
    }
}

/// What goes out in one piece.
pub(super) enum Part<'a, R> {
    One(u64, Item<R>),
    Run(Run<'a, R>),
}

/// Results that wait to go out, in order. Runs of values stay the bytes that they came as: a number takes 8 where its
/// [`Item`] with its index takes 48, and a window of those is more than a cache holds.
#[derive(Debug)]
pub(super) struct Outbox<R> {
    /// The values of all runs, one after the other.
    bytes: Vec<u8>,
    /// Where the next value is, and where the run that is going out ends.
    at: usize,
    run_end: usize,
    /// Up to where values go out without further ado: up to the low mark, or the end of the run.
    quick_end: usize,
    /// The index of the item behind the run's last.
    run_behind: u64,
    entries: VecDeque<Entry<R>>,
    /// How many results the entries hold.
    entered: usize,
    low_mark: usize,
}

#[derive(Debug)]
enum Entry<R> {
    One(u64, Item<R>),
    Run { first: u64, count: usize },
}

impl<R> Default for Outbox<R> {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            at: 0,
            run_end: 0,
            quick_end: 0,
            run_behind: 0,
            entries: VecDeque::new(),
            entered: 0,
            low_mark: 0,
        }
    }
}

impl<R: Payload> Outbox<R> {
    /// How many results there are.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.entered + self.run_left()
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many values of the run are left.
    #[inline]
    fn run_left(&self) -> usize {
        value_bytes::<R>().map_or(0, |width| (self.run_end - self.at) / width)
    }

    /// Adds an outcome.
    #[inline]
    pub(super) fn one(&mut self, index: u64, item: Item<R>) {
        self.entered += 1;
        self.entries.push_back(Entry::One(index, item));
    }

    /// Adds a run.
    pub(super) fn run(&mut self, run: Run<'_, R>) {
        let count = value_bytes::<R>().map_or(0, |width| run.bytes.len() / width);
        if count > 0 {
            self.compact();
            self.bytes.extend_from_slice(run.bytes);
            self.entries.push_back(Entry::Run { first: run.first, count });
            self.entered += count;
        }
    }

    /// While there are fewer results than this, [`pop_value`](Self::pop_value) has none.
    pub(super) fn set_low_mark(&mut self, low_mark: usize) {
        self.low_mark = low_mark;
        self.set_quick_end();
    }

    /// Whether results are as few as that.
    pub(super) fn is_low(&self) -> bool {
        self.len() < self.low_mark.max(1)
    }

    fn set_quick_end(&mut self) {
        let kept = self.low_mark.saturating_sub(self.entered).saturating_sub(1);
        let width = value_bytes::<R>().unwrap_or(1);
        self.quick_end = self.run_end.saturating_sub(kept.saturating_mul(width));
    }

    /// The next value, if it is of the run that is going out and there are more results than the low mark.
    ///
    /// By itself, since a value alone is in a register, where an `Option<(u64, Item<R>)>` is written to memory and read back in other
    /// portions, which takes longer than all the rest. And it counts nothing but where it is, for the same reason.
    #[inline]
    pub(super) fn pop_value(&mut self) -> Option<R> {
        if self.at < self.quick_end { self.take_value() } else { None }
    }

    /// The next value of the run that is going out.
    #[inline]
    fn take_value(&mut self) -> Option<R> {
        let bytes = self.bytes.get(self.at..)?.get(..record_stride::<R>()?)?;
        self.at += value_bytes::<R>()?;
        codec::plain_value(bytes)
    }

    /// The next result.
    pub(super) fn pop(&mut self) -> Option<(u64, Item<R>)> {
        if let Some(one) = self.begin_part()? {
            return Some(one);
        }
        let index = self.run_behind - self.run_left() as u64;
        Some((index, Ok(self.take_value()?)))
    }

    /// The next result, or all of a run's that are left.
    pub(super) fn pop_part(&mut self) -> Option<Part<'_, R>> {
        if let Some((index, item)) = self.begin_part()? {
            return Some(Part::One(index, item));
        }
        let first = self.run_behind - self.run_left() as u64;
        let start = std::mem::replace(&mut self.at, self.run_end);
        Some(Part::Run(Run::new(first, self.bytes.get(start..self.run_end)?)))
    }

    /// If no run is going out: a result that is by itself, or the next run begins.
    #[inline]
    #[expect(clippy::option_option, reason = "nothing at all, or nothing by itself")]
    fn begin_part(&mut self) -> Option<Option<(u64, Item<R>)>> {
        if self.run_left() > 0 {
            return Some(None);
        }
        let one = match self.entries.pop_front()? {
            Entry::One(index, item) => {
                self.entered -= 1;
                Some((index, item))
            }
            Entry::Run { first, count } => {
                self.entered -= count;
                self.run_end = self.at + count * value_bytes::<R>()?;
                self.run_behind = first + count as u64;
                self.set_quick_end();
                None
            }
        };
        Some(one)
    }

    /// Takes over all results of another one.
    pub(super) fn append(&mut self, other: &mut Self) {
        while let Some(part) = other.pop_part() {
            match part {
                Part::One(index, item) => self.one(index, item),
                Part::Run(run) => self.run(run),
            }
        }
    }

    /// A run that goes out next, behind what waits: what is left to be handed on from where it is.
    pub(super) fn behind<'a>(&mut self, run: Run<'a, R>) -> Run<'a, R> {
        if self.is_empty() {
            return run;
        }
        self.run(run);
        Run::new(0, &[])
    }

    /// Makes room behind the bytes that wait; each is moved once at most for each byte that has gone out.
    fn compact(&mut self) {
        let out = self.at;
        if out == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT_BYTES_MAX);
        } else if out > self.bytes.len() / 2 {
            self.bytes.drain(..out);
        } else {
            return;
        }
        self.at = 0;
        self.run_end -= out;
        self.quick_end = self.quick_end.saturating_sub(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::TaskError;

    fn run_of(values: std::ops::Range<u64>) -> (u64, Vec<u8>) {
        (values.start, values.flat_map(u64::to_le_bytes).collect())
    }

    fn filled() -> Outbox<u64> {
        let mut outbox = Outbox::default();
        for values in [0..3, 3..3, 3..5] {
            let (first, bytes) = run_of(values);
            outbox.run(Run::new(first, &bytes));
        }
        outbox.one(5, Err(TaskError::Cancelled));
        outbox.one(6, Ok(6));
        let (first, bytes) = run_of(7..9);
        outbox.run(Run::new(first, &bytes));
        outbox
    }

    #[test]
    fn results_go_out_one_by_one_in_order() {
        let mut outbox = filled();
        for index in 0..9 {
            assert_eq!(outbox.len(), 9 - index as usize);
            let (at, item) = outbox.pop().unwrap();
            assert_eq!(at, index);
            assert!(if index == 5 { item.is_err() } else { item.is_ok_and(|value| value == index) });
        }
        assert!(outbox.pop().is_none() && outbox.is_empty());
    }

    #[test]
    fn a_run_that_was_begun_goes_out_with_the_rest() {
        for taken in 0..=9 {
            let mut outbox = filled();
            for _ in 0..taken {
                outbox.pop();
            }
            let mut rest = Vec::new();
            while let Some(part) = outbox.pop_part() {
                match part {
                    Part::One(index, item) => rest.push((index, item.ok())),
                    Part::Run(run) => rest.extend((run.first..).zip(run.values().map(Some))),
                }
            }
            let expected = (taken..9).map(|index| (index, (index != 5).then_some(index)));
            assert!(rest.into_iter().eq(expected));
            assert!(outbox.is_empty() && outbox.pop().is_none());
        }
    }

    #[test]
    fn values_are_at_hand_down_to_the_low_mark() {
        for low_mark in 0..12 {
            let mut outbox = filled();
            outbox.set_low_mark(low_mark);
            let mut indices = 0..9;
            while !outbox.is_empty() {
                let at_hand = outbox.run_left() > 0 && outbox.len() >= low_mark;
                assert_eq!(outbox.is_low(), outbox.len() < low_mark);
                let value = outbox.pop_value();
                assert_eq!(value.is_some(), at_hand, "{outbox:?}");
                let index = indices.next().unwrap();
                assert_eq!(value.unwrap_or_else(|| outbox.pop().unwrap().0), index);
            }
            assert!(indices.is_empty() && outbox.is_low() && outbox.pop_value().is_none());
        }
    }

    #[test]
    fn what_is_never_empty_does_not_grow() {
        let mut outbox = Outbox::<u64>::default();
        let (mut next, mut bytes_most) = (0, 0);
        for first in (0..100_000).step_by(10) {
            let (first, bytes) = run_of(first..first + 10);
            outbox.run(Run::new(first, &bytes));
            while outbox.len() > 15 {
                assert_eq!(outbox.pop().unwrap().1.unwrap(), next);
                next += 1;
            }
            bytes_most = bytes_most.max(outbox.bytes.len());
        }
        assert!(bytes_most <= 2 * 25 * 8 + 80, "{bytes_most} bytes");
    }

    #[test]
    fn values_without_bytes_are_counted() {
        let mut outbox = Outbox::<()>::default();
        outbox.run(Run::new(4, &[0; 3]));
        let indices: Vec<_> = std::iter::from_fn(|| outbox.pop()).map(|(index, _)| index).collect();
        assert_eq!(indices, [4, 5, 6]);
    }
}
