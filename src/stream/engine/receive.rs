//! What has arrived is read, and results are delivered when it is their turn.

use std::sync::Arc;
use std::time::Instant;

use super::Engine;
use crate::error::{CodecError, TaskError};
use crate::life::job::Outcome;
use crate::memory::codec::{self, Payload};
use crate::protocol::lane::{Form, Reply};
use crate::protocol::records::{Parsed, parse, record_stride, value_bytes};
use crate::protocol::wire::{Status, time_of_code};
use crate::stream::records::{Address, Note, Records, What};
use crate::stream::results::{Item, Outbox, Run};
use crate::task;

impl<R: Payload> Engine<R> {
    /// Reads what has arrived.
    pub(in crate::stream) fn collect(&mut self, out: &mut Outbox<R>) {
        if self.collect_singles(out) {
            out.run(self.run_of_singles());
        }
        self.gather();
        while let Some(run) = self.read_note(out) {
            out.run(run);
        }
    }

    /// Takes what has arrived, to be [read](Self::read_note) note by note. `false`: nothing has.
    pub(in crate::stream) fn gather(&mut self) -> bool {
        let news = !self.is_reading() && self.arrivals.any();
        if news {
            self.news.clear();
            (self.notes_read, self.bytes_read) = (0, 0);
            self.arrivals.take(&mut self.news);
        }
        news
    }

    /// Whether some of what was gathered is still to be read.
    pub(in crate::stream) fn is_reading(&self) -> bool {
        self.notes_read < self.news.notes.len()
    }

    /// Reads the next note of what was gathered: delivers its results, or gives them back if they are values whose turn it
    /// is. `None`: all has been read.
    pub(in crate::stream) fn read_note(&mut self, out: &mut Outbox<R>) -> Option<Run<'_, R>> {
        let &Note { address, what } = self.news.notes.get(self.notes_read)?;
        self.notes_read += 1;
        let len = if let What::Results(_, len) = what { len } else { 0 };
        let start = self.bytes_read;
        self.bytes_read += len;
        let bytes = std::mem::take(&mut self.news.bytes);
        let first = self.accept(address, what, &bytes[start..start + len], out);
        self.news.bytes = bytes;
        let run = if first.is_some() { &self.news.bytes[start..start + len] } else { &[] };
        Some(Run::new(first.unwrap_or_default(), run))
    }

    /// Something has come for a message. The index of the first one, if they are values whose turn it is.
    #[inline]
    fn accept(&mut self, address: Address, what: What, bytes: &[u8], out: &mut Outbox<R>) -> Option<u64> {
        let at = address.slot as usize;
        let slot = &mut self.slots[at];
        if slot.records.address != address {
            // It was given up.
            return None;
        }
        slot.result_bytes += bytes.len();
        let mut run = None;
        let valid = match what {
            What::Results(Form::Values, _) => self.read_values(at, bytes, &mut run),
            What::Results(Form::Records, _) => self.read_records(at, bytes, out),
            What::Ended => {
                if let Some(job) = slot.job.take_if(|job| job.is_done()) {
                    self.end(at, job.take(), out);
                }
                true
            }
        };
        if !valid {
            self.abort(at, "a batch's results are damaged", out);
        }
        run
    }

    /// Reads whole records. `false`: they make no sense.
    fn read_records(&mut self, at: usize, new: &[u8], out: &mut Outbox<R>) -> bool {
        let stride = record_stride::<R>();
        let mut kept = std::mem::take(&mut self.slots[at].bytes);
        let torn = !kept.is_empty();
        if torn {
            kept.extend_from_slice(new);
        }
        let bytes = if torn { &*kept } else { new };
        let mut read = 0;
        let valid = loop {
            let (status, payload, len) = match parse(&bytes[read..], stride, self.max_payload) {
                Parsed::Partial => break true,
                Parsed::Invalid => break false,
                Parsed::Record { status, payload, bytes } => (status, payload, bytes),
            };
            if self.slots[at].received == self.slots[at].items {
                break false;
            }
            let item = match status {
                Status::Value => codec::decode::<R>(payload).map_err(TaskError::Decode),
                Status::SizedValue => {
                    self.aligned.clear_for_reuse();
                    self.aligned.extend_from_slice(payload);
                    task::decode_aligned::<R>(&self.aligned)
                }
                status => Err(task::error_of(status, payload)),
            };
            read += len;
            self.settle(at, item, out);
        };
        if torn {
            kept.drain(..read);
        } else {
            kept.extend_from_slice(&new[read..]);
        }
        self.slots[at].bytes = kept;
        valid
    }

    /// Settles a run of bare values; `run` is the index of the first one if it is their turn. `false`: they make no sense.
    #[inline]
    fn read_values(&mut self, at: usize, bytes: &[u8], run: &mut Option<u64>) -> bool {
        let Some(width) = value_bytes::<R>() else { return false };
        let front = !self.ordered || self.order.front() == Some(&at);
        let slot = &mut self.slots[at];
        let count = bytes.len() / width;
        if count * width != bytes.len() || count > (slot.items - slot.received) as usize {
            return false;
        }
        let first = slot.first + u64::from(slot.received);
        slot.received += count as u32;
        slot.losses = 0;
        if front {
            *run = Some(first);
        } else {
            slot.held.run(Run::new(first, bytes));
        }
        true
    }

    /// The next item of a message has this outcome.
    #[inline]
    pub(super) fn settle(&mut self, at: usize, item: Item<R>, out: &mut Outbox<R>) {
        let front = !self.ordered || self.order.front() == Some(&at);
        let slot = &mut self.slots[at];
        let index = slot.first + u64::from(slot.received);
        slot.received += 1;
        slot.losses = 0;
        if front {
            out.one(index, item);
        } else {
            slot.held.one(index, item);
        }
    }

    /// The message's job has ended.
    fn end(&mut self, at: usize, outcome: Outcome, out: &mut Outbox<R>) {
        match outcome {
            Outcome::BatchDone(time_code) => {
                let time = time_of_code(time_code);
                if let (Some(auto), Some(ns)) = (&mut self.auto, time) {
                    let slot = &self.slots[at];
                    let now = Instant::now();
                    if let Some(before) = self.answered_at.replace(now) {
                        auto.answered(now.duration_since(before).as_nanos() as u64, ns);
                    }
                    let items = slot.items - slot.received_sent;
                    auto.received(items, slot.result_bytes);
                    auto.done(slot.step, items, ns);
                }
                if self.slots[at].received == self.slots[at].items {
                    return self.close(at, out);
                }
                // The worker miscounted.
                self.fail_rest(at, &damaged("a batch ended before its items"), out);
            }
            Outcome::Small(reply) if self.slots[at].items == 1 => {
                let item = task::decode_small(&reply);
                self.settle(at, item, out);
                self.close(at, out);
            }
            Outcome::Small(reply) => self.end(at, Outcome::Reply(reply.into()), out),
            Outcome::Reply(Reply { status: Status::Value, body }) if self.slots[at].items == 1 => {
                let item = task::decode(body);
                self.settle(at, item, out);
                self.close(at, out);
            }
            Outcome::Reply(reply) => {
                self.fail_rest(at, &task::error_of(reply.status, reply.body.as_bytes()), out);
            }
            Outcome::Failed(error) => self.fail_rest(at, &error, out),
            Outcome::BatchLost(lost) => {
                let (parcel, error, scene) = *lost;
                if let Some(scene) = scene {
                    self.save_item(at, &parcel, scene);
                }
                self.go_on(at, parcel, error, out);
            }
        }
    }

    /// Gives up on a message whose results make no sense.
    fn abort(&mut self, at: usize, why: &str, out: &mut Outbox<R>) {
        if let Some(job) = self.slots[at].job.take() {
            let (core, generation) = (self.handle.core(), job.generation());
            if job.abandon(false) {
                core.call_off(job, generation, &TaskError::Cancelled);
            }
        }
        let slot = &mut self.slots[at];
        slot.bytes.clear();
        // For as long as the worker goes on, more may come.
        let address = Address { epoch: slot.records.address.epoch.wrapping_add(1), ..slot.records.address };
        slot.records = Arc::new(Records { address, arrivals: self.arrivals.clone() });
        self.fail_rest(at, &damaged(why), out);
    }

    pub(super) fn fail_rest(&mut self, at: usize, error: &TaskError, out: &mut Outbox<R>) {
        while self.slots[at].received < self.slots[at].items {
            self.settle(at, Err(error.clone()), out);
        }
        self.close(at, out);
    }

    /// All items of a message have their outcomes.
    pub(super) fn close(&mut self, at: usize, out: &mut Outbox<R>) {
        self.slots[at].bytes.clear();
        if !self.ordered {
            self.closed += u64::from(self.slots[at].items);
            self.free.push(at);
            return;
        }
        // In order: the front message leaves when it is complete, and the next one's results may go out.
        while let Some(&front) = self.order.front() {
            let slot = &mut self.slots[front];
            out.append(&mut slot.held);
            // All results may be there before the news that the job has ended, which must not find the slot's next message.
            if slot.received < slot.items || slot.job.is_some() {
                break;
            }
            self.closed += u64::from(slot.items);
            self.free.push(front);
            self.order.pop_front();
        }
    }
}

#[cold]
pub(super) fn damaged(why: &str) -> TaskError {
    TaskError::Decode(CodecError::new(why))
}
