//! Slots: the cache lines through which small tasks and small results travel.
//!
//! A slot holds a *head* and a few words of payload in one line, so that a small message costs one line transfer.
//! The head is published last and carries the low half of the message's index, which is how the reader tells the
//! message it waits for from what the slot held one lap earlier.
//!
//! There is no shared head or tail index. Requests are numbered 0, 1, 2, … for a worker's whole life; request `i`
//! lives in request slot `i mod N` and its response in response slot `i mod N`. The master publishes request `i`
//! only after it has consumed the response to `i − N` (or has taken that request back), so the existence of request
//! `i` is the proof that both slots are free. Neither side ever waits for the other's index.
//!
//! Edge **PUBLISH**: `Slot::publish` (store, Release) → `Slot::poll` (load, Acquire) makes the payload words, and
//! whatever bytes in the arena they describe, visible to the reader.

use crate::sync::{AtomicU64, Ordering};

/// Payload words of a request slot; with the head it fills one cache line.
pub(crate) const REQUEST_WORDS: usize = 7;
/// Payload words of a response slot; two of them share a cache line.
pub(crate) const RESPONSE_WORDS: usize = 3;

/// What a head says beside the index: which message it is, how long its inline payload, and 16 bits of the kind's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: u8,
    pub(crate) len: u8,
    pub(crate) extra: u16,
}

impl Head {
    pub(crate) const fn new(kind: u8, len: u8) -> Self {
        Self { kind, len, extra: 0 }
    }

    const fn pack(self, index: u64) -> u64 {
        seq(index) as u64 | (self.kind as u64) << 32 | (self.len as u64) << 40 | (self.extra as u64) << 48
    }

    const fn unpack(word: u64) -> Self {
        Self { kind: (word >> 32) as u8, len: (word >> 40) as u8, extra: (word >> 48) as u16 }
    }
}

/// The part of an index that a head carries: never 0 for index 0, so that a zeroed slot is unpublished.
const fn seq(index: u64) -> u32 {
    (index as u32).wrapping_add(1)
}

/// A head and `W` payload words. All zero is the unpublished state.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Slot<const W: usize> {
    head: AtomicU64,
    words: [AtomicU64; W],
}

pub(crate) type RequestSlot = Slot<REQUEST_WORDS>;
pub(crate) type ResponseSlot = Slot<RESPONSE_WORDS>;

#[cfg(not(forkring_loom))]
const _: () = {
    assert!(size_of::<RequestSlot>() == 64 && align_of::<RequestSlot>() == 8);
    assert!(size_of::<ResponseSlot>() == 32);
};

impl<const W: usize> Slot<W> {
    /// An unpublished slot on the heap.
    #[cfg(test)]
    pub(crate) fn new() -> Self {
        Self { head: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Writer: sets payload word `i`. Only while the slot is the writer's.
    #[inline]
    pub(crate) fn set(&self, i: usize, value: u64) {
        // Relaxed: made visible by PUBLISH.
        self.words[i].store(value, Ordering::Relaxed);
    }

    /// Reader: fetches payload word `i` once. The caller validates the copy.
    #[inline]
    pub(crate) fn get(&self, i: usize) -> u64 {
        // Relaxed: ordered by PUBLISH.
        self.words[i].load(Ordering::Relaxed)
    }

    /// Writer: makes message `index` visible (PUBLISH, release side). Publishing the same index again amends the
    /// head, for a reader that looks twice (the cancel mark).
    #[inline]
    pub(crate) fn publish(&self, index: u64, head: Head) {
        self.head.store(head.pack(index), Ordering::Release);
    }

    /// Reader: the head of message `index`, once it is published (PUBLISH, acquire side).
    #[inline]
    pub(crate) fn poll(&self, index: u64) -> Option<Head> {
        let word = self.head.load(Ordering::Acquire);
        (word as u32 == seq(index)).then(|| Head::unpack(word))
    }

    /// The head as it is, to tell whether it changes.
    #[inline]
    pub(crate) fn word(&self) -> u64 {
        // Relaxed: whoever sees another one polls.
        self.head.load(Ordering::Relaxed)
    }

    /// Writes `bytes` (at most 8 × the words left) to the payload words from word `first` on, little-endian.
    #[inline]
    pub(crate) fn set_bytes(&self, first: usize, bytes: &[u8]) {
        for (i, chunk) in (first..).zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.set(i, u64::from_le_bytes(word));
        }
    }

    /// Fetches `out.len()` bytes from the payload words, from word `first` on.
    #[inline]
    pub(crate) fn get_bytes(&self, first: usize, out: &mut [u8]) {
        for (i, chunk) in out.chunks_mut(8).enumerate() {
            let word = self.get(first + i).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

#[cfg(all(test, forkring_loom))]
mod loom;

#[cfg(all(test, not(forkring_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_slot_has_no_message() {
        let slot = RequestSlot::new();
        for index in [0, 1, 255, u64::from(u32::MAX) - 1] {
            assert_eq!(slot.poll(index), None);
        }
    }

    #[test]
    fn a_message_is_seen_under_its_own_index_only() {
        let slot = ResponseSlot::new();
        slot.publish(7, Head { kind: 3, len: 24, extra: 0xBEEF });
        assert_eq!(slot.poll(7), Some(Head { kind: 3, len: 24, extra: 0xBEEF }));
        assert_eq!(slot.poll(7 + 256), None);
        assert_eq!(slot.poll(6), None);
    }

    #[test]
    fn bytes_survive_the_words_at_every_length() {
        let bytes: Vec<u8> = (1..=32).collect();
        for len in 0..=32 {
            let slot = RequestSlot::new();
            slot.set_bytes(3, &bytes[..len]);
            let mut out = vec![0; len];
            slot.get_bytes(3, &mut out);
            assert_eq!(out, bytes[..len]);
        }
    }

    #[test]
    fn a_writer_and_a_reader_exchange_every_message_in_order() {
        const N: u64 = 16;
        let requests: Vec<RequestSlot> = (0..N).map(|_| Slot::new()).collect();
        let responses: Vec<ResponseSlot> = (0..N).map(|_| Slot::new()).collect();
        let total = 100_000;
        std::thread::scope(|s| {
            let worker = s.spawn(|| {
                for i in 0..total {
                    let request = &requests[(i % N) as usize];
                    while request.poll(i).is_none() {
                        std::hint::spin_loop();
                    }
                    let response = &responses[(i % N) as usize];
                    response.set(0, request.get(0) * 3);
                    response.publish(i, Head::new(1, 8));
                }
            });
            let (mut sent, mut answered) = (0, 0);
            while answered < total {
                while sent < total && sent - answered < N {
                    let request = &requests[(sent % N) as usize];
                    request.set(0, sent);
                    request.publish(sent, Head::new(1, 8));
                    sent += 1;
                }
                let response = &responses[(answered % N) as usize];
                if response.poll(answered).is_some() {
                    assert_eq!(response.get(0), answered * 3);
                    answered += 1;
                }
            }
            // ThreadSanitizer sees a join, but not the end of a scope.
            worker.join().unwrap();
        });
    }
}
