//! What is sent again: the rest of a batch that was cut short, and what waits behind a slow item.

use std::ops::Range;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::receive::damaged;
use super::{Engine, Load, Slot};
use crate::context::item_of;
use crate::error::TaskError;
use crate::life::crashers::Scene;
use crate::life::timers::Timer;
use crate::memory::codec::{AlignedBytes, Encoded, Payload};
use crate::protocol::lane::{Batch, Parcel};
use crate::stream::results::Outbox;

/// An item that has not ended between two looks, so far apart, is slow: others do not wait behind it.
const SLOW: Duration = Duration::from_millis(2);

impl<R: Payload> Engine<R> {
    /// The item that was running is one whose inputs are to be kept, unless it is to be started again.
    #[cold]
    pub(super) fn save_item(&self, at: usize, parcel: &Parcel, scene: Scene) {
        let (core, slot) = (self.handle.core(), &self.slots[at]);
        let retries = self.terms.unwrap_or(core.policy.terms).retries;
        if slot.received == slot.items || scene.is_loss && slot.losses < retries {
            return;
        }
        let Some((saver, about)) = core.crashers.as_ref().zip(parcel.code.about(&core.objects)) else {
            return;
        };
        // One that was shortened still has the table of all that it had.
        let items = parcel.batch.map_or(slot.items, |batch| batch.items) as usize;
        let running = slot.received as usize;
        if let Some(item) = item_of(parcel.input.as_bytes(), items, running, about.shape) {
            saver.keep(scene, Some(about), Encoded::Heap(AlignedBytes::from(item)));
            saver.start();
        }
    }

    /// A batch was cut short, by the end of its worker if there is an error: the item that was running fails, and the rest
    /// runs elsewhere.
    pub(super) fn go_on(
        &mut self,
        at: usize,
        mut parcel: Parcel,
        error: Option<TaskError>,
        out: &mut Outbox<R>,
    ) {
        let retries = self.terms.unwrap_or(self.handle.core().policy.terms).retries;
        let slot = &mut self.slots[at];
        // A record that is not whole was the victim's.
        slot.bytes.clear();
        match error {
            Some(error) if slot.received < slot.items => {
                slot.losses += 1;
                if !error.is_worker_lost() || slot.losses > retries {
                    let error = error.after_attempts(slot.losses);
                    self.settle(at, Err(error), out);
                }
            }
            _ => {}
        }
        let Slot { items, received: done, .. } = self.slots[at];
        if done == items {
            return self.close(at, out);
        }
        if let Some(batch) = parcel.batch.filter(|batch| batch.items != items) {
            // It was shortened, and a batch consists of its items and nothing else.
            let part = self.filling.part(parcel.input.as_bytes(), batch.items as usize, 0..items as usize);
            let Some(input) = part else {
                return self.fail_rest(at, &damaged("a batch's table is damaged"), out);
            };
            parcel.input = input;
        }
        let timed = self.auto.is_some();
        parcel.batch = Some(Batch { items, done, timed });
        self.send(at, Load::Again(parcel), out);
    }

    /// To be called before a wait for results, where all that has come has been read: takes back what waits behind a slow item
    /// while there is a worker that has nothing to do, and has the stream woken when it is time to look again. `true`: something has
    /// come, so there may be room.
    pub(in crate::stream) fn mind_slow_items(&mut self, out: &mut Outbox<R>) -> bool {
        let is_batch = |slot: &Slot<R>| slot.job.is_some() && slot.items - slot.received > 1;
        if self.auto.is_none() || !self.slots.iter().any(is_batch) {
            return false;
        }
        let now = Instant::now();
        if self.look_at.is_some_and(|at| now < at) {
            return false;
        }
        // Nobody has looked how far they are.
        self.handle.core().poll_everywhere();
        let news = self.has_news();
        self.collect(out);
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            if is_batch(slot) && slot.received_seen.replace(slot.received) == Some(slot.received) {
                self.shorten(at, out);
            }
        }
        self.look_at = Some(now + SLOW);
        self.handle.core().set_timer(now + SLOW, Timer::Wake(Waker::from(self.arrivals.clone())));
        news
    }

    /// If this message is at the item at which it was when it was looked at last, the items behind go elsewhere.
    fn shorten(&mut self, at: usize, out: &mut Outbox<R>) {
        let core = self.handle.core();
        let Some(job) = self.slots[at].job else { return };
        let generation = job.generation();
        if !core.is_running(job, generation) {
            return;
        }
        // That has delivered what there is.
        self.collect(out);
        let slot = &self.slots[at];
        if slot.received_seen != Some(slot.received) || slot.job.is_none() {
            return;
        }
        if let Some(auto) = &mut self.auto {
            auto.is_running(SLOW.as_nanos() as u64);
        }
        let core = self.handle.core();
        if !core.has_idle() {
            return;
        }
        let Some(Parcel { code: _, batch: Some(batch), input }) = core.shorten(job, generation) else {
            return;
        };
        self.collect(out);
        let slot = &mut self.slots[at];
        let (first, rest, items) = (slot.first, slot.received + 1, slot.items);
        // It may have ended since, and what remained of it been sent again.
        let is_same = slot.job.is_some_and(|now| std::ptr::eq(now, job) && now.generation() == generation);
        if !is_same || rest >= items {
            return;
        }
        // Of the items that have no result the first one runs there, or comes back with what remains of the message.
        let Some(parts) = self.parts(&input, batch, rest..items) else { return };
        let slot = &mut self.slots[at];
        slot.items = rest;
        let mut place = self.order.iter().position(|&other| other == at);
        for (part, input) in parts {
            place = place.map(|place| place + 1);
            let to = self.open(first + u64::from(part.start), part.end - part.start, place);
            let batch = Some(Batch { items: part.end - part.start, done: 0, timed: true });
            self.send(to, Load::Again(Parcel { code: self.code, batch, input }), out);
        }
    }

    /// Items of a message as messages of their own.
    fn parts(&self, input: &Encoded, batch: Batch, items: Range<u32>) -> Option<Vec<(Range<u32>, Encoded)>> {
        let workers = self.handle.core().stations.len() as u32;
        let size = self.auto.as_ref()?.size(None) as u32;
        let size = size.min(items.len().div_ceil(workers as usize) as u32).max(1);
        let starts = items.clone().step_by(size as usize);
        let parts = starts.map(|start| {
            let part = start..items.end.min(start + size);
            let range = part.start as usize..part.end as usize;
            Some((part, self.filling.part(input.as_bytes(), batch.items as usize, range)?))
        });
        parts.collect()
    }
}
