//! The claim word: what the worker has started, and what this side takes back, cancels or cuts short.

use super::{Batch, Entry, Lane, Parcel, Violation};
use crate::ground::barrier;
use crate::ground::claim::Claimed;
use crate::ground::ring::Head;
use crate::memory::codec::{AlignedBytes, Encoded};
use crate::memory::layout::slot_of;
use crate::protocol::code::CodeId;
use crate::protocol::wire::{BATCH, CANCELLED, INLINE_WORD, Order, Place, SHORTENED, TIMED};
use crate::sync::{Ordering, fence};

const CLAIM_RANGE: Violation = Violation("the claim word is out of range");

impl<T> Lane<T> {
    /// The count in the claim word, if it is one that may be there.
    pub(super) fn seen_claim(&self) -> Result<u64, Violation> {
        let Claimed { count, sealed } = self.region.b().claim.0.load();
        // All that is answered or retired was claimed or taken back, and the count never goes back.
        // Once it is sealed it stays what it is, and the requests behind it are this side's. A worker that has decided to leave
        // seals it itself.
        let possible = match self.sealed {
            true => self.claimed..=self.claimed,
            false => self.answered.max(self.claimed)..=self.sent,
        };
        if !possible.contains(&count) || self.sealed && !sealed {
            return Err(CLAIM_RANGE);
        }
        // A worker answers one request before it claims another, or finds the master to have taken some between.
        let oldest = self.answered;
        let alone = |index| self.entries[slot_of(index)].as_ref().is_none_or(|entry| entry.taken);
        if count > oldest + 1 && !self.ready() && !alone(oldest) && !(oldest + 1..count).all(alone) {
            return Err(Violation("a request was passed over"));
        }
        Ok(count)
    }

    /// Whether the worker has sealed its claim word, because it is about to leave.
    pub(crate) fn is_leaving(&self) -> bool {
        !self.sealed && self.region.b().claim.0.load().sealed
    }

    pub(super) fn check_claim(&mut self) -> Result<u64, Violation> {
        self.claimed = self.seen_claim()?;
        Ok(self.claimed)
    }

    /// Requests that the worker has not claimed.
    pub(crate) fn unclaimed(&mut self) -> Result<u64, Violation> {
        Ok(self.sent - self.check_claim()?)
    }

    /// Takes back at most `max` of the oldest requests that have not started.
    pub(crate) fn take_back(&mut self, max: u64) -> Result<Vec<(T, Parcel)>, Violation> {
        let range = self.region.b().claim.0.take_back(self.sent, max);
        if range.start > self.sent || range.start < self.answered.max(self.claimed) {
            return Err(CLAIM_RANGE);
        }
        self.claimed = range.end;
        Ok(range.filter_map(|index| self.reclaim(index)).collect())
    }

    /// Takes the token and the request out of a slot that is the master's again.
    pub(super) fn reclaim(&mut self, index: u64) -> Option<(T, Parcel)> {
        let entry = self.entries[slot_of(index)].as_mut()?;
        entry.taken = true;
        let token = entry.token.take()?;
        self.emptied += 1;
        Some((token, self.parcel(index)))
    }

    /// Reads a request back from side `A`, which only this process writes.
    pub(super) fn parcel(&mut self, index: u64) -> Parcel {
        let slot = self.region.request(index);
        let head = slot.poll(index).unwrap_or(Head::new(Place::Inline as u8, 0));
        let items = slot.get(2);
        let timed = head.extra & TIMED != 0;
        let batch = Batch { items: items as u32, done: (items >> 32) as u32, timed };
        let batch = (head.extra & BATCH != 0).then_some(batch);
        let code = CodeId { place: slot.get(0), types: slot.get(1) };
        let (position, len) = (slot.get(INLINE_WORD), slot.get(INLINE_WORD + 1));
        let input = match Place::from_wire(head.kind) {
            Some(Place::Span) => {
                let mut bytes = AlignedBytes::with_capacity(len as usize);
                self.region.arena().reader().append_to(position, len as usize, &mut bytes);
                Encoded::Heap(bytes)
            }
            Some(Place::Stream) if self.outgoing.as_ref().is_some_and(|o| o.index == index) => {
                Encoded::Heap(self.outgoing.take().map(|o| o.bytes).unwrap_or_default())
            }
            _ => {
                let mut bytes = [0; 32];
                slot.get_bytes(INLINE_WORD, &mut bytes);
                Encoded::Inline { len: head.len, bytes }
            }
        };
        Parcel { code, batch, input }
    }

    /// Before the worker is ended on purpose: no other request starts in it. What has not started comes back.
    pub(crate) fn stop(&mut self) -> Result<Vec<(T, Parcel)>, Violation> {
        self.region.b().claim.0.seal();
        let count = self.check_claim()?;
        self.sealed = true;
        Ok((count..self.sent).filter_map(|index| self.reclaim(index)).collect())
    }

    /// After [`stop`](Self::stop): if the worker is at a batch, no other item of it starts. The caller [`poll`](Self::poll)s,
    /// and what is then not answered is running still.
    pub(crate) fn cut(&mut self) {
        // It runs one request at a time, in their order: the last one that it has claimed. Earlier ones may be answered, which
        // nobody has looked at.
        let claimed = (self.answered..self.claimed).rev();
        let is_claimed = |entry: &&mut Option<Entry<T>>| entry.as_ref().is_some_and(|entry| !entry.taken);
        for index in claimed {
            let Some(Some(entry)) = Some(&mut self.entries[slot_of(index)]).filter(is_claimed) else {
                continue;
            };
            if entry.batch.is_some() {
                entry.stopped = true;
                self.mark_cancelled(index);
                // Edge CUT: the mark, a barrier, then a look at the records.
                barrier::heavy_or_wait();
            }
            return;
        }
    }

    /// Lets go of a worker that cannot be killed, being a thread: nothing more starts in it, a batch that it runs ends with the
    /// item that runs, and it does not wait for this side any more.
    pub(crate) fn give_up(&mut self) {
        self.region.b().claim.0.seal();
        for index in self.answered..self.sent {
            if let Some(entry) = &mut self.entries[slot_of(index)]
                && !entry.taken
                && entry.batch.is_some()
            {
                entry.stopped = true;
                self.mark_cancelled(index);
            }
        }
        self.order(Order::GivenUp);
        // Nobody takes its responses any more, which edge TOLD relies on.
        self.ring();
    }

    /// Tells the task that runs that its result is not wanted.
    pub(crate) fn ask_to_stop(&mut self) {
        if let Some(index) = self.running().map(|running| running.index) {
            self.mark_cancelled(index);
        }
    }

    fn mark_cancelled(&mut self, index: u64) {
        self.mark(index, CANCELLED);
    }

    pub(super) fn is_marked(&self, index: u64, flags: u16) -> bool {
        self.region.request(index).poll(index).is_some_and(|head| head.extra & flags != 0)
    }

    fn mark(&mut self, index: u64, flag: u16) {
        let slot = self.region.request(index);
        if let Some(mut head) = slot.poll(index) {
            head.extra |= flag;
            slot.publish(index, head);
        }
    }

    /// If this request is a batch that is running, no other item of it starts, and the one that is running does not notice.
    /// Its request as it was. The caller [`poll`](Self::poll)s: of the items that have no result then, the first one may have
    /// started, the others have not and never will.
    pub(crate) fn shorten(&mut self, index: u64) -> Option<Parcel> {
        let running = self.running()?;
        if running.index != index || running.token.is_none() || self.outgoing.is_some() {
            return None;
        }
        let entry = self.entries[slot_of(index)].as_ref()?;
        // What was larger than the arena is not there any more.
        let head = self.region.request(index).poll(index)?;
        if entry.batch.is_none() || entry.stopped || Place::from_wire(head.kind) == Some(Place::Stream) {
            return None;
        }
        let parcel = self.parcel(index);
        self.mark(index, SHORTENED);
        // Edge CUT: the mark, a barrier, then a look at the records.
        barrier::heavy_or_wait();
        Some(parcel)
    }

    /// Marks a request as cancelled. The token comes back if it had not started: then it never does, and the worker's
    /// response, which comes in its turn, is dropped.
    pub(crate) fn cancel(&mut self, index: u64) -> Option<T> {
        if index < self.answered || index >= self.sent {
            return None;
        }
        self.mark_cancelled(index);
        // Edge CANCEL: the mark, a fence, the claim word; the worker claims with a full barrier, then looks for it.
        fence(Ordering::SeqCst);
        if self.region.b().claim.0.load().count > index {
            return None;
        }
        let token = self.entries[slot_of(index)].as_mut()?.token.take()?;
        self.emptied += 1;
        // Nobody reads it any more.
        self.outgoing.take_if(|outgoing| outgoing.index == index);
        Some(token)
    }
}
