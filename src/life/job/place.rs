//! Where a job is, and the input of one that waits there.

#![allow(unsafe_code, reason = "cells are shared by hand-over: JOB-1 to JOB-5 of the parent module")]

use std::sync::atomic::Ordering;

use super::{Job, JobRef, Stage};
use crate::protocol::code::CodeId;
use crate::protocol::lane::{Parcel, SmallRequest};

/// Where a job is: at, or on its way from, a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) station: usize,
    pub(crate) spot: Spot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spot {
    /// In the ring. Of its index these are the lowest bits: see [`Place::ring_index`].
    Ring(u64),
    /// In the queue, or in the inbox.
    Queue,
    /// Taken out, to be moved to another station.
    Moving,
}

const STATION_BITS: u32 = 16;
/// The highest bit says that a job is not in a ring.
const INDEX_BITS: u32 = 64 - STATION_BITS - 1;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
const ENDED: u64 = (1 << (64 - STATION_BITS)) - 1;
/// With an outcome in the cell's `small` words, and not in `stage`.
const ENDED_SMALL: u64 = ENDED - 1;
const QUEUE: u64 = ENDED_SMALL - 1;
const MOVING: u64 = QUEUE - 1;
/// In the queue, with an input of so many bytes in the cell's `small` words: this number less the bytes.
const QUEUE_SMALL: u64 = MOVING - 1;
const SMALL_BYTES_MAX: u64 = 16;

impl Place {
    #[inline]
    pub(super) fn pack(self) -> u64 {
        let spot = match self.spot {
            Spot::Ring(index) => index & INDEX_MASK,
            Spot::Queue => QUEUE,
            Spot::Moving => MOVING,
        };
        spot << STATION_BITS | self.station as u64
    }

    /// `None`: the job has ended.
    #[inline]
    fn unpack(word: u64) -> Option<Self> {
        let spot = match word >> STATION_BITS {
            ENDED | ENDED_SMALL => return None,
            QUEUE => Spot::Queue,
            MOVING => Spot::Moving,
            spot if spot > INDEX_MASK => Spot::Queue,
            index => Spot::Ring(index),
        };
        Some(Self { station: station_of(word), spot })
    }

    /// The whole index of a request in flight, of which the oldest one has this index.
    pub(crate) fn ring_index(lowest_bits: u64, oldest: u64) -> u64 {
        oldest + (lowest_bits.wrapping_sub(oldest) & INDEX_MASK)
    }
}

fn station_of(place: u64) -> usize {
    (place & ((1 << STATION_BITS) - 1)) as usize
}

/// Whether the outcome of the job whose place this is can be taken.
#[inline]
pub(super) fn has_ended(word: u64) -> bool {
    // The topmost ones.
    word >= ENDED_SMALL << STATION_BITS
}

/// Of one that has: whether its outcome is in the cell's `small` words.
#[inline]
pub(super) fn has_ended_small(word: u64) -> bool {
    word >> STATION_BITS == ENDED_SMALL
}

const _: () = assert!(crate::limits::WORKERS_MAX <= 1 << STATION_BITS);
const _: () = assert!(QUEUE_SMALL - SMALL_BYTES_MAX > INDEX_MASK);

impl Job {
    /// Where it is, unless it has ended.
    pub(crate) fn place(&self) -> Option<Place> {
        Place::unpack(self.place.load(Ordering::Acquire))
    }

    /// The station where it is, or was last.
    pub(crate) fn station(&self) -> usize {
        station_of(self.place.load(Ordering::Acquire))
    }

    /// Sequentially consistent: see edges DONE and ITEMS.
    #[inline]
    pub(crate) fn is_done(&self) -> bool {
        has_ended(self.place.load(Ordering::SeqCst))
    }

    /// Whether the job that had this generation is over, for whoever does not hold it. The generation is read last: it vouches
    /// for the place.
    pub(crate) fn is_over(&self, generation: u64) -> bool {
        self.is_done() || self.generation() != generation
    }
}

impl JobRef {
    #[inline]
    pub(crate) fn set_place(&self, place: Place) {
        self.0.place.store(place.pack(), Ordering::Release);
    }

    /// As [`set_place`](Self::set_place), by the owner of the station whose ring holds the reference.
    #[inline]
    pub(crate) fn note_place(job: &'static Job, place: Place) {
        job.place.store(place.pack(), Ordering::Release);
    }

    /// Hands the outcome, which is in `small` or else in `stage`, to the task (JOB-1). What the task wants is to be looked at behind
    /// a fence (edge DONE); all that is safe to do with the cell until then is [`Job::look_after`].
    #[inline]
    pub(super) fn end(self, station: usize, is_small: bool) -> &'static Job {
        let ended = if is_small { ENDED_SMALL } else { ENDED };
        self.0.place.store(ended << STATION_BITS | station as u64, Ordering::Release);
        self.0
    }

    /// Keeps the input of a job that is to wait for its turn. The job's [place](Self::set_place) says so afterwards.
    pub(crate) fn queue(&mut self, parcel: Parcel) {
        // SAFETY: JOB-1.
        unsafe { *self.0.cold().stage.get() = Stage::Queued(parcel) };
    }

    /// As [`queue`](Self::queue), of a number, which fits the cell's first line. The job is in the queue of that station.
    #[inline]
    pub(crate) fn queue_small(&mut self, station: usize, request: &SmallRequest) {
        let SmallRequest { code, words: [low, high], len } = *request;
        self.0.set_small([code.place, code.types, low, high]);
        let spot = QUEUE_SMALL - len as u64;
        self.0.place.store(spot << STATION_BITS | station as u64, Ordering::Release);
    }

    /// What [`queue_small`](Self::queue_small) was given, for as long as the job is in that queue.
    #[inline]
    pub(crate) fn queued_small(&self) -> Option<SmallRequest> {
        // Relaxed: only whoever holds the job writes it.
        let spot = self.0.place.load(Ordering::Relaxed) >> STATION_BITS;
        let len = QUEUE_SMALL.checked_sub(spot).filter(|&len| len <= SMALL_BYTES_MAX)?;
        let [place, types, low, high] = self.0.small();
        Some(SmallRequest { code: CodeId { place, types }, words: [low, high], len: len as usize })
    }

    /// The input of a job that is taken out of a queue or an inbox, to be given another place.
    pub(crate) fn unqueue(&mut self) -> Option<Parcel> {
        if let Some(request) = self.queued_small() {
            return Some((&request).into());
        }
        // SAFETY: JOB-1.
        let stage = unsafe { &mut *self.0.cold().stage.get() };
        match std::mem::replace(stage, Stage::Empty) {
            Stage::Queued(parcel) => Some(parcel),
            Stage::Empty | Stage::Ended(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let small = QUEUE_SMALL - SMALL_BYTES_MAX;
        let spots = [Spot::Ring(0), Spot::Ring(INDEX_MASK), Spot::Queue, Spot::Moving];
        for spot in spots {
            let place = Place { station: 4095, spot };
            assert_eq!(Place::unpack(place.pack()), Some(place));
            assert!(!has_ended(place.pack()));
        }
        assert_eq!(Place::unpack(small << STATION_BITS).map(|place| place.spot), Some(Spot::Queue));
        for ended in [ENDED, ENDED_SMALL] {
            let word = ended << STATION_BITS | 7;
            assert!(has_ended(word) && Place::unpack(word).is_none() && station_of(word) == 7);
            assert_eq!(has_ended_small(word), ended == ENDED_SMALL);
        }
    }

    /// After 2^47 requests to one worker, two months at full speed.
    #[test]
    fn an_index_may_be_any_number() {
        for oldest in [0, 5, INDEX_MASK - 1, INDEX_MASK, INDEX_MASK + 1, u64::MAX >> 1] {
            for index in oldest..oldest + 4 {
                let place = Place { station: 1, spot: Spot::Ring(index) };
                let Some(Place { spot: Spot::Ring(bits), .. }) = Place::unpack(place.pack()) else {
                    panic!("it is in the ring")
                };
                assert_eq!(Place::ring_index(bits, oldest), index);
            }
        }
    }
}
