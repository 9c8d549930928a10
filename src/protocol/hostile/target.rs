//! Side `B` as a worker without manners sees it: words at offsets.
//!
//! * TARGET-1: `base` points to `SIDE_B_BYTES` bytes of shared memory, page-aligned and writable, that stay mapped for
//!   as long as the value is used. Whoever reads them expects them to change at any time.

#![allow(unsafe_code, reason = "writes at any place of a mapping")]

use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::source::Source;
use crate::ground::doorbell::Doorbell;
use crate::ground::ring::ResponseSlot;
use crate::ground::spin::{SpinBudget, WaitPolicy};
use crate::ground::sys::memory::Mapping;
use crate::memory::layout::{
    ARENA_B_AT, ARENA_BYTES, CALL_WINDOW_AT, OutWords, RESPONSES_AT, RING_SLOTS, SIDE_B_BYTES, SideA, SideB,
    StateWords, Transfer, WINDOW_BYTES, slot_of,
};
use crate::memory::region::WorkerRegion;
use crate::protocol::port::{Bells, Port};
use crate::protocol::wire::{Place, Status};

pub(super) const CLAIM: usize = offset_of!(SideB, claim);
pub(super) const ANSWER_RECEIVED: usize = offset_of!(SideB, answer_received);
pub(super) const SLEEPING: usize = offset_of!(SideB, sleeping);
const STATE: usize = offset_of!(SideB, state);
pub(super) const IN_RECEIVED: usize = offset_of!(SideB, in_received);
pub(super) const OUT: usize = offset_of!(SideB, out);
pub(super) const CALL: usize = offset_of!(SideB, call);
pub(super) const OUT_TAG: usize = OUT + offset_of!(OutWords, tag);
pub(super) const OUT_START: usize = OUT + offset_of!(OutWords, start);
pub(super) const OUT_SENT: usize = OUT + offset_of!(OutWords, sent);
pub(super) const OUT_TOTAL: usize = OUT + offset_of!(OutWords, total_bytes);
pub(super) const OUT_ELEMENT: usize = OUT + offset_of!(OutWords, element_bytes);
pub(super) const OUT_VALUES_END: usize = OUT + offset_of!(OutWords, values_end);
pub(super) const CALL_NUMBER: usize = CALL + offset_of!(Transfer, number);
pub(super) const CALL_TOTAL: usize = CALL + offset_of!(Transfer, total_bytes);
pub(super) const CALL_SENT: usize = CALL + offset_of!(Transfer, sent);

/// Every word of the header.
const HEADER: [usize; 15] = [
    CLAIM,
    SLEEPING,
    STATE + offset_of!(StateWords, state),
    STATE + offset_of!(StateWords, text_bytes),
    IN_RECEIVED,
    OUT_TAG,
    OUT_START,
    OUT_SENT,
    OUT_TOTAL,
    OUT_ELEMENT,
    OUT_VALUES_END,
    CALL_NUMBER,
    CALL_TOTAL,
    CALL_SENT,
    ANSWER_RECEIVED,
];

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    base: NonNull<u8>,
}

// SAFETY: all access is through atomics, or copies into bytes that readers expect to change (TARGET-1).
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// # Safety
    ///
    /// TARGET-1.
    pub(crate) unsafe fn new(base: NonNull<u8>) -> Self {
        Self { base }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at < SIDE_B_BYTES, "a word of the side");
        // SAFETY: TARGET-1 and the assertion.
        let word = unsafe { self.base.as_ptr().add(at) };
        // SAFETY: in bounds and aligned, by the above; other processes use atomics or copies of their own.
        unsafe { AtomicU64::from_ptr(word.cast()) }
    }

    pub(super) fn load(&self, at: usize) -> u64 {
        self.word(at).load(Ordering::SeqCst)
    }

    pub(super) fn store(&self, at: usize, value: u64) {
        self.word(at).store(value, Ordering::SeqCst);
    }

    /// One word of the response slot of `index`: 0 is the head.
    pub(super) fn response(index: u64, word: usize) -> usize {
        RESPONSES_AT + slot_of(index) * size_of::<ResponseSlot>() + 8 * word
    }

    /// Publishes an inline response as it should be.
    pub(super) fn answer(&self, index: u64, status: Status) {
        let head = u64::from((index as u32).wrapping_add(1)) | (Place::Inline as u64) << 32;
        self.store(Self::response(index, 0), head | 8 << 40 | (status as u64) << 48);
    }

    /// Publishes a value of so many bytes from that position on; `len` as in a head.
    #[cfg(test)]
    pub(super) fn store_response(&self, index: u64, extent: [u64; 2], place: Place, len: u8) {
        self.store(Self::response(index, 1), extent[0]);
        self.store(Self::response(index, 2), extent[1]);
        let head = u64::from((index as u32).wrapping_add(1)) | (place as u64) << 32 | u64::from(len) << 40;
        self.store(Self::response(index, 0), head | (Status::Value as u64) << 48);
    }

    /// Ends a batch whose records flow, as it should be.
    pub(super) fn end_batch(&self, index: u64) {
        let start = self.load(OUT_START);
        self.store(Self::response(index, 1), start);
        self.store(Self::response(index, 2), self.load(OUT_SENT).wrapping_sub(start));
        self.store(Self::response(index, 3), self.load(OUT_VALUES_END));
        let head = u64::from((index as u32).wrapping_add(1)) | (Place::Stream as u64) << 32;
        self.store(Self::response(index, 0), head | (Status::BatchDone as u64) << 48);
    }

    /// Publishes a response of any kind to `index`, as if the worker had come to it.
    pub(crate) fn forge_response(&self, index: u64, source: &mut Source<'_>) {
        let place = source.choose(&[Place::Inline as u8, Place::Span as u8, Place::Stream as u8, 0, 77]);
        let len = if source.one_in(3) { source.byte() } else { source.below(25) as u8 };
        let status = match source.below(4) {
            0 => Status::Value as u16,
            1 => Status::BatchDone as u16,
            2 => source.below(11) as u16,
            _ => source.word() as u16,
        };
        for word in 1..=3 {
            let valid = if word == 1 {
                self.load(OUT_START)
            } else {
                source.choose(&[30, 200, 5000, 100_000, 4 << 20])
            };
            let value = if source.one_in(5) { source.damaged(valid) } else { valid };
            self.store(Self::response(index, word), value);
        }
        let head = u64::from((index as u32).wrapping_add(1)) | u64::from(place) << 32;
        self.store(Self::response(index, 0), head | u64::from(len) << 40 | u64::from(status) << 48);
    }

    /// Changes one word, chosen from all of the side; near `index` where it is a slot's.
    pub(crate) fn scribble(&self, index: u64, source: &mut Source<'_>) {
        let at = match source.below(8) {
            0..4 => source.choose(&HEADER),
            4 | 5 => Self::response(index.wrapping_add(source.below(4) as u64), source.below(4)),
            6 => {
                let area = [
                    (RESPONSES_AT, RING_SLOTS * 32),
                    (CALL_WINDOW_AT, WINDOW_BYTES),
                    (ARENA_B_AT, ARENA_BYTES),
                ];
                let (start, bytes) = source.choose(&area);
                start + source.below(bytes / 8) * 8
            }
            _ => source.below(SIDE_B_BYTES / 8) * 8,
        };
        let value = source.damaged(self.load(at));
        self.store(at, value);
    }
}

/// A worker's end of a region in the master's process: a port that keeps the protocol, and a target beside it.
#[derive(Debug)]
pub(super) struct Peer {
    port: Option<Port>,
    /// PEER-1: from `Box::into_raw`; the port's only other reference is gone when the port is.
    region: NonNull<WorkerRegion>,
    map: Mapping,
}

impl Peer {
    pub(super) fn new(fds: &[OwnedFd; 2]) -> Self {
        let map = Mapping::read_write(&fds[1], SIDE_B_BYTES).expect("side B can be mapped twice");
        let region = WorkerRegion::map(&fds[0], &fds[1]).expect("a region can be mapped");
        let region = NonNull::from(Box::leak(Box::new(region)));
        let bell = || Doorbell::local().ringer().expect("a local one has some");
        let bells = Bells { response: bell(), driver: bell() };
        // SAFETY: PEER-1: leaked just now.
        let port = Port::new(
            unsafe { &mut *region.as_ptr() },
            bells,
            SpinBudget::new(WaitPolicy::Park, 1, 1),
            || (),
        );
        Self { port: Some(port), region, map }
    }

    /// The end that keeps the protocol, for as long as nobody has scribbled.
    pub(super) fn port(&mut self) -> Option<&mut Port> {
        self.port.as_mut()
    }

    /// From here on it is every word for itself.
    pub(super) fn turn_hostile(&mut self) {
        self.port = None;
    }

    pub(super) fn target(&self) -> Target {
        let base = NonNull::new(self.map.ptr()).expect("a mapping is not at the null address");
        // SAFETY: TARGET-1: `map` is writable and is dropped last; scenarios keep no target longer.
        unsafe { Target::new(base) }
    }

    /// What the master says on its side.
    pub(super) fn master(&self) -> &SideA {
        // SAFETY: PEER-1: shared with the port, which is not in use while `self` is borrowed.
        unsafe { self.region.as_ref() }.a()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.port = None;
        // SAFETY: PEER-1: nothing refers to the region any more.
        drop(unsafe { Box::from_raw(self.region.as_ptr()) });
    }
}
