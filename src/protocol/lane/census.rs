//! What is known of a worker: what it runs, how much it has done, its state, and what it leaves.

use std::time::Duration;

use super::{Lane, Parcel, Violation};
use crate::ground::sys::clock;
use crate::memory::layout::{WINDOW_BYTES, slot_of};
use crate::protocol::wire::{Parting, WorkerState};
use crate::sync::Ordering;

/// A request that is running, and a figure that grows whenever a part of its response has been received: an item of a batch, a
/// piece of a large result.
#[derive(Debug)]
pub(crate) struct Running<'a, T> {
    pub(crate) index: u64,
    pub(crate) progress: u64,
    /// `None`: nobody wants the response.
    pub(crate) token: Option<&'a T>,
}

/// Requests of a lane that have, or had, somebody who wants their responses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) unclaimed: u64,
    /// Claimed, and the response has not been delivered.
    pub(crate) running: u64,
    /// Since the lane was made.
    pub(crate) delivered: u64,
    /// Likewise: bytes of requests and of responses that did not fit their slots.
    pub(crate) in_bytes: u64,
    pub(crate) out_bytes: u64,
}

/// What a dead worker leaves.
#[derive(Debug)]
pub(crate) struct Remains<T> {
    /// With their indices.
    pub(crate) started: Vec<(u64, T, Parcel)>,
    pub(crate) unstarted: Vec<(T, Parcel)>,
    /// Whether the claim word could be believed.
    pub(crate) valid: bool,
}

impl<T> Lane<T> {
    /// How long the worker has had something in hand; the word is its own, so it is a figure to show, nothing more.
    pub(crate) fn ran_for(&self) -> Option<Duration> {
        let free_at = self.region.b().free_at_ns.0.load(Ordering::Relaxed);
        (free_at > 0).then(|| Duration::from_nanos(clock::coarse_now_ns().saturating_sub(free_at)))
    }

    /// The request that the worker is running, as far as is known: the oldest one that is not answered, if it was claimed.
    pub(crate) fn running(&self) -> Option<Running<'_, T>> {
        let index = self.answered;
        let entry = self.entries.get(slot_of(index))?.as_ref().filter(|entry| !entry.taken)?;
        if index == self.sent || self.region.b().claim.0.load().count <= index {
            return None;
        }
        // What has been copied, and not what the worker says: its words could go back and forth for ever.
        let progress = self.incoming.as_ref().map_or(0, |incoming| incoming.at - incoming.start);
        Some(Running { index, progress, token: entry.token.as_ref() })
    }

    /// The oldest request that has not been answered, or the next one that will be sent.
    pub(crate) fn oldest(&self) -> u64 {
        self.answered
    }

    /// Where its requests are. Goes over all that are in flight.
    pub(crate) fn census(&self) -> Census {
        // Where the word is nonsense, what it was when it made sense last.
        let claimed = self.seen_claim().unwrap_or(self.claimed);
        let (mut unclaimed, mut running, mut empty) = (0, 0, 0);
        for index in self.answered..self.sent {
            let wanted = self.entries[slot_of(index)].as_ref().is_some_and(|entry| entry.token.is_some());
            *match wanted {
                false => &mut empty,
                true if index < claimed => &mut running,
                true => &mut unclaimed,
            } += 1;
        }
        // All others that are empty have been retired, without a delivery.
        let dropped = self.emptied.saturating_sub(empty);
        let delivered = self.answered.saturating_sub(dropped);
        Census { unclaimed, running, delivered, in_bytes: self.in_bytes, out_bytes: self.out_bytes }
    }

    /// After the worker's death and a last [`poll`](Self::poll): the request that it was running, and those that had
    /// not started. If the claim word is nonsense, each may have started.
    pub(crate) fn remains(mut self) -> Remains<T> {
        let seen = self.seen_claim();
        let (claimed, valid) = (seen.unwrap_or(self.sent), seen.is_ok());
        let mut remains = Remains { started: Vec::new(), unstarted: Vec::new(), valid };
        for index in self.answered..self.sent {
            if let Some((token, parcel)) = self.reclaim(index) {
                if index < claimed {
                    remains.started.push((index, token, parcel));
                } else {
                    remains.unstarted.push((token, parcel));
                }
            }
        }
        remains
    }

    /// The worker's state and, where it failed, why.
    pub(crate) fn worker_state(&self) -> Result<(WorkerState, String), Violation> {
        let words = &self.region.b().state.0;
        let state = WorkerState::from_wire(words.state.load(Ordering::Acquire));
        let state = state.ok_or(Violation("a worker's state is unknown"))?;
        let mut text = String::new();
        if state == WorkerState::Failed {
            // Edge STATE: the text is older than the state.
            let len = words.text_bytes.load(Ordering::Relaxed).min(WINDOW_BYTES as u64) as usize;
            let mut bytes = vec![0; len];
            self.region.call_window().copy_out(0, &mut bytes);
            text = String::from_utf8_lossy(&bytes).into_owned();
        }
        Ok((state, text))
    }

    /// Why the worker leaves, if it does so by its own decision.
    pub(crate) fn parting(&self) -> Option<Parting> {
        let words = &self.region.b().state.0;
        // Edge STATE: the reason is older than the state.
        let state = WorkerState::from_wire(words.state.load(Ordering::Acquire));
        let leaving = state == Some(WorkerState::Leaving);
        leaving.then(|| Parting::from_wire(words.parting.load(Ordering::Relaxed))).flatten()
    }
}
