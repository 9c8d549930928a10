//! The map of a worker's region: every word, with its writer.
//!
//! Side `A` is written by the master alone (the worker maps it read-only), side `B` by the worker, with one
//! exception: the claim word in `B` is moved by both. Each line below is 128 bytes, so that neither true sharing
//! nor the adjacent-line prefetcher couples two of them.

use crate::caller::CALLER_WORDS;
use crate::ground::claim::ClaimWord;
use crate::ground::doorbell::WordBell;
use crate::ground::ring::{RequestSlot, ResponseSlot};
use crate::sync::AtomicU64;

/// Slots in each ring: what a worker can do on its own while the thread that feeds it waits for a core. With 256 a machine that
/// is not quiet made a hot loop three times slower. A lap fits the L2 cache.
pub(crate) const RING_SLOTS: usize = 2048;
/// Bytes of each arena. Address space, not memory: pages count once they are touched.
pub(crate) const ARENA_BYTES: usize = 4 << 20;
/// Bytes of each service window.
pub(crate) const WINDOW_BYTES: usize = 64 << 10;
/// Alignment of every payload that does not fit a slot: that of the most demanding types in use.
pub(crate) const SPAN_ALIGN: usize = 128;

pub(crate) const PAGE_BYTES: usize = 4096;

/// One line of the header.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Line<T>(pub(crate) T);

/// Side `A`'s header: written by the master.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct SideA {
    /// Whom the worker rings after it has published something: see [`crate::protocol::wire::Wake`].
    pub(crate) wake: Line<AtomicU64>,
    /// Wakes the worker.
    pub(crate) bell: Line<WordBell>,
    /// The standing order: see [`crate::protocol::wire::Order`].
    pub(crate) order: Line<AtomicU64>,
    /// Position up to which the request being streamed is in the arena of `A`.
    pub(crate) in_sent: Line<AtomicU64>,
    /// Position up to which the master has copied out of the arena of `B`.
    pub(crate) out_received: Line<AtomicU64>,
    /// The answer to the worker's service call.
    pub(crate) answer: Line<Transfer>,
    /// Position up to which the master has copied out of the call window in `B`.
    pub(crate) call_received: Line<AtomicU64>,
}

/// Side `B`'s header: written by the worker, except for `claim`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct SideB {
    /// Moved by both sides: see [`crate::ground::claim`].
    pub(crate) claim: Line<ClaimWord>,
    /// Odd while the worker sleeps on its doorbell or is about to; counts up with each nap. A hint.
    pub(crate) sleeping: Line<AtomicU64>,
    /// How far the worker has come: see [`crate::protocol::wire::WorkerState`].
    pub(crate) state: Line<StateWords>,
    /// Position up to which the worker has copied the request being streamed out of the arena of `A`.
    pub(crate) in_received: Line<AtomicU64>,
    /// The response being streamed through the arena of `B`.
    pub(crate) out: Line<OutWords>,
    /// The worker's service call.
    pub(crate) call: Line<Transfer>,
    /// Position up to which the worker has copied out of the answer window in `A`.
    pub(crate) answer_received: Line<AtomicU64>,
    /// When the worker last had nothing in hand: see [`coarse_now_ns`](crate::ground::sys::clock::coarse_now_ns).
    pub(crate) free_at_ns: Line<AtomicU64>,
}

/// A worker's state and what explains it: the length of a message, which is in the call window, or a number.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct StateWords {
    pub(crate) state: AtomicU64,
    pub(crate) text_bytes: AtomicU64,
    /// Why a worker leaves by its own decision: see [`crate::protocol::wire::Parting`].
    pub(crate) parting: AtomicU64,
}

/// A response that flows while it is made: the items of a batch, or a result larger than the arena.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct OutWords {
    /// Index of the request, plus one. Written after all but `sent`, which moves on (edge OUT-OPEN).
    pub(crate) tag: AtomicU64,
    /// Position of the first byte.
    pub(crate) start: AtomicU64,
    /// Position behind the last byte that is complete (edge OUT-SENT).
    pub(crate) sent: AtomicU64,
    /// Bytes in all if known at the start, else 0. A hint for the reader's allocation.
    pub(crate) total_bytes: AtomicU64,
    /// The size of an element, if it is a row of numbers and nothing else, else 0.
    pub(crate) element_bytes: AtomicU64,
    /// Of a batch: position behind the bare values, where records begin; the greatest number while there are none.
    /// Written once, before `sent` goes beyond it (edge OUT-SENT).
    pub(crate) values_end: AtomicU64,
}

/// One message of the service's dialogue, which flows through a window.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Transfer {
    /// Number of the call, from 1. Written after the other words (edge CALL-OPEN).
    pub(crate) number: AtomicU64,
    /// Kind of an answer: see [`crate::protocol::wire`].
    pub(crate) kind: AtomicU64,
    pub(crate) total_bytes: AtomicU64,
    /// Bytes of this message that are in the window or have passed through it.
    pub(crate) sent: AtomicU64,
}

/// When a request was started and when it was answered, of [`now_ns`](crate::ground::sys::clock::now_ns). Written
/// by workers that are asked to, before the response (edge PUBLISH).
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Stamps {
    pub(crate) started_ns: AtomicU64,
    pub(crate) answered_ns: AtomicU64,
}

/// What travels beside a request for whoever reads the worker's log: see [`crate::caller`]. Written by the master before the
/// request (edge PUBLISH).
#[derive(Debug)]
#[repr(C)]
pub(crate) struct CallerWords(pub(crate) [AtomicU64; CALLER_WORDS]);

const fn pages(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_BYTES) * PAGE_BYTES
}

pub(crate) const REQUESTS_AT: usize = pages(size_of::<SideA>());
pub(crate) const ANSWER_WINDOW_AT: usize = REQUESTS_AT + pages(RING_SLOTS * size_of::<RequestSlot>());
pub(crate) const ARENA_A_AT: usize = ANSWER_WINDOW_AT + WINDOW_BYTES;
/// One for each request slot.
pub(crate) const CALLERS_AT: usize = ARENA_A_AT + ARENA_BYTES;
pub(crate) const SIDE_A_BYTES: usize = CALLERS_AT + pages(RING_SLOTS * size_of::<CallerWords>());

pub(crate) const RESPONSES_AT: usize = pages(size_of::<SideB>());
pub(crate) const CALL_WINDOW_AT: usize = RESPONSES_AT + pages(RING_SLOTS * size_of::<ResponseSlot>());
pub(crate) const ARENA_B_AT: usize = CALL_WINDOW_AT + WINDOW_BYTES;
/// One for each response slot.
pub(crate) const STAMPS_AT: usize = ARENA_B_AT + ARENA_BYTES;
pub(crate) const SIDE_B_BYTES: usize = STAMPS_AT + pages(RING_SLOTS * size_of::<Stamps>());

const _: () = {
    assert!(RING_SLOTS.is_power_of_two() && ARENA_BYTES.is_power_of_two() && WINDOW_BYTES.is_power_of_two());
    assert!(STAMPS_AT.is_multiple_of(PAGE_BYTES) && CALLERS_AT.is_multiple_of(PAGE_BYTES));
    assert!(ANSWER_WINDOW_AT.is_multiple_of(PAGE_BYTES) && ARENA_A_AT.is_multiple_of(PAGE_BYTES));
    assert!(CALL_WINDOW_AT.is_multiple_of(PAGE_BYTES) && ARENA_B_AT.is_multiple_of(PAGE_BYTES));
};

/// Which slot a message of this index lives in.
#[inline]
pub(crate) const fn slot_of(index: u64) -> usize {
    index as usize & (RING_SLOTS - 1)
}
