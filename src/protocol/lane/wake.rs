//! Who is rung: the worker by this side, this side by the worker.

use super::Lane;
use crate::ground::barrier;
use crate::memory::layout::{ARENA_BYTES, WINDOW_BYTES, slot_of};
use crate::protocol::wire::{Order, Wake};
use crate::sync::Ordering;

/// So many bytes of a quiet batch are news before its end: long before its worker waits for room.
const QUIET_BYTES_MAX: u64 = 64 << 10;
const _: () = assert!(QUIET_BYTES_MAX < ARENA_BYTES as u64 / 2);

impl<T> Lane<T> {
    /// Wakes the worker if it sleeps, after something was published for it.
    #[inline]
    pub(crate) fn ring_if_asleep(&mut self) {
        // Edge BELL: the publication, a fence, this look; the worker sets the word, fences, and looks again. An odd
        // number is a nap, and one ring is enough for each, however long it takes until the worker runs.
        barrier::light();
        let nap = self.region.b().sleeping.0.load(Ordering::Relaxed);
        if nap % 2 == 1 && nap != self.rung_nap {
            self.rung_nap = nap;
            self.ring();
        }
    }

    /// Wakes the worker, whatever it says of itself.
    pub(crate) fn ring(&self) {
        self.region.a().bell.0.ring();
    }

    /// Whether the worker sleeps, or has been rung and is not awake yet: an answer is several microseconds away.
    pub(crate) fn is_asleep(&self) -> bool {
        self.region.b().sleeping.0.load(Ordering::Relaxed) % 2 == 1
    }

    /// Says whom the worker is to ring. Publishing a request afterwards needs no fence: its response cannot come
    /// before it. Otherwise the caller fences ([`fence_and_ready`](Self::fence_and_ready)) and looks again.
    #[inline]
    pub(crate) fn arm(&mut self, wake: Wake) {
        self.arm_late(wake, 0);
    }

    /// As [`arm`](Self::arm), for a waiter who need not be rung for that many responses, unless nothing comes after them. He
    /// looks himself after a while.
    #[inline]
    pub(crate) fn arm_late(&mut self, wake: Wake, leave: u8) {
        self.wake_epoch += 1;
        self.region.a().wake.0.store(wake.word(self.wake_epoch, leave), Ordering::Release);
    }

    /// The second look before a sleep (edge SLEEP): whether something has come since.
    pub(crate) fn fence_and_ready(&self) -> bool {
        barrier::heavy_or_wait();
        self.has_news()
    }

    /// Whether there is anything for a [`poll`](Self::poll).
    pub(crate) fn has_news(&self) -> bool {
        self.ready() || self.stream_pending()
    }

    /// Whether a stream can be moved on.
    fn stream_pending(&self) -> bool {
        if self.seen_claim().is_err() {
            return true;
        }
        if self.region.b().call.0.number.load(Ordering::Acquire) != self.calls.received {
            let sent = self.region.b().call.0.sent.load(Ordering::Acquire);
            if self.calls.incoming.is_none() || sent != self.calls.in_bytes {
                return true;
            }
        }
        if self.calls.outgoing.is_some()
            && self.calls.out_bytes.wrapping_sub(self.region.b().answer_received.0.load(Ordering::Acquire))
                != WINDOW_BYTES as u64
        {
            return true;
        }
        if let Some(outgoing) = &self.outgoing {
            let sent = self.region.a().in_sent.0.load(Ordering::Relaxed);
            let received = self.region.b().in_received.0.load(Ordering::Acquire).max(outgoing.start);
            let unsent = sent - outgoing.start < outgoing.bytes.len() as u64;
            if unsent && sent.saturating_sub(received) < ARENA_BYTES as u64 && self.has_arena(outgoing.index)
            {
                return true;
            }
        }
        let out = &self.region.b().out.0;
        if self.sent != self.answered && out.tag.load(Ordering::Acquire) == self.answered + 1 {
            let sent = out.sent.load(Ordering::Acquire);
            let known = self.incoming.as_ref().map(|incoming| incoming.at);
            if self.entries[slot_of(self.answered)].as_ref().is_some_and(|entry| entry.quiet) {
                let start = known.unwrap_or_else(|| out.start.load(Ordering::Relaxed));
                return sent.wrapping_sub(start) >= QUIET_BYTES_MAX;
            }
            return known != Some(sent);
        }
        false
    }

    /// Gives the standing order and makes sure that the worker looks at it.
    pub(crate) fn order(&mut self, order: Order) {
        self.is_ordered = true;
        self.region.a().order.0.store(order as u64, Ordering::Release);
        self.ring_if_asleep();
    }
}
