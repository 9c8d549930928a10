//! Models of a slot: edge PUBLISH both ways, and a slot that is used again.
//!
//! The rings have one slot each here, so that every message after the first one reuses it. `Span` is a place in an
//! arena: plain memory, for which loom reports any two accesses that are not ordered.

#![allow(unsafe_code, reason = "bytes of an arena, whose races loom looks for")]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use super::{Head, Slot};

/// What a slot and its neighbours in the arena are for one message at a time.
struct Place {
    slot: Slot<1>,
    span: UnsafeCell<u64>,
}

impl Place {
    fn new() -> Self {
        Self { slot: Slot::new(), span: UnsafeCell::new(0) }
    }

    /// Writer: the only one whose turn it is, as the numbering of the messages has it.
    fn send(&self, index: u64, word: u64, span: u64) {
        // SAFETY: loom ends the model if another thread may be at it.
        self.span.with_mut(|bytes| unsafe { *bytes = span });
        self.slot.set(0, word);
        self.slot.publish(index, Head::new(1, 8));
    }

    /// Reader: waits for message `index`.
    fn receive(&self, index: u64) -> (u64, u64) {
        while self.slot.poll(index).is_none() {
            thread::yield_now();
        }
        // SAFETY: as above.
        let span = self.span.with(|bytes| unsafe { *bytes });
        (self.slot.get(0), span)
    }
}

#[test]
fn a_message_brings_its_words_and_its_span() {
    loom::model(|| {
        let place = Arc::new(Place::new());
        let writer = thread::spawn({
            let place = place.clone();
            move || place.send(0, 7, 8)
        });
        assert_eq!(place.receive(0), (7, 8));
        writer.join().expect("the writer ends");
    });
}

#[test]
fn a_slot_is_free_again_once_its_response_was_consumed() {
    const LAPS: u64 = 3;
    loom::model(|| {
        let ring = Arc::new([Place::new(), Place::new()]);
        let worker = thread::spawn({
            let ring = ring.clone();
            move || {
                let [requests, responses] = &*ring;
                for index in 0..LAPS {
                    assert_eq!(requests.receive(index), (10 + index, 20 + index), "request {index}");
                    responses.send(index, 30 + index, 40 + index);
                }
            }
        });
        let [requests, responses] = &*ring;
        for index in 0..LAPS {
            requests.send(index, 10 + index, 20 + index);
            assert_eq!(responses.receive(index), (30 + index, 40 + index), "response {index}");
        }
        worker.join().expect("the worker ends");
    });
}

#[test]
fn an_amended_head_still_brings_the_words() {
    loom::model(|| {
        let place = Arc::new(Place::new());
        let writer = thread::spawn({
            let place = place.clone();
            move || {
                place.send(0, 7, 8);
                place.slot.publish(0, Head { extra: 1, ..Head::new(1, 8) });
            }
        });
        assert_eq!(place.receive(0), (7, 8));
        assert!(place.slot.poll(0).is_some(), "an amended message stays published");
        writer.join().expect("the writer ends");
    });
}
