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
    /// In the ring, under this index.
    Ring(u64),
    /// In the queue, or in the inbox.
    Queue,
    /// Taken out, to be moved to another station.
    Moving,
    /// Its outcome is the task's.
    Ended,
}

const STATION_BITS: u32 = 16;
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
            Spot::Ring(index) => index,
            Spot::Queue => QUEUE,
            Spot::Moving => MOVING,
            Spot::Ended => ENDED,
        };
        spot << STATION_BITS | self.station as u64
    }

    #[inline]
    pub(super) fn unpack(word: u64) -> Self {
        let spot = match word >> STATION_BITS {
            ENDED | ENDED_SMALL => Spot::Ended,
            QUEUE => Spot::Queue,
            MOVING => Spot::Moving,
            spot if spot >= QUEUE_SMALL - SMALL_BYTES_MAX => Spot::Queue,
            index => Spot::Ring(index),
        };
        Self { station: (word & ((1 << STATION_BITS) - 1)) as usize, spot }
    }
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

    /// Hands the outcome to the task (JOB-1). What the task wants is to be looked at behind a fence: edge DONE.
    #[inline]
    pub(super) fn end_small(job: &Job, station: usize) {
        job.place.store(ENDED_SMALL << STATION_BITS | station as u64, Ordering::Release);
    }

    /// As [`end_small`](Self::end_small), of an outcome in `stage`. The job keeps its station.
    #[inline]
    pub(super) fn end(job: &Job) {
        let place = Place { spot: Spot::Ended, ..job.place() };
        job.place.store(place.pack(), Ordering::Release);
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
