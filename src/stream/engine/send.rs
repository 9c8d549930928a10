//! Items of the source become messages, and these are sent.

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Engine, Load, Room, Slot};
use crate::caller::Caller;
use crate::context::BatchBytes;
use crate::error::TaskError;
use crate::ground::sys::clock;
use crate::life::job::Job;
use crate::life::terms::Terms;
use crate::memory::codec::{self, Payload};
use crate::pool::encode_error;
use crate::protocol::lane::{Batch, Parcel};
use crate::stream::auto::Auto;
use crate::stream::records::{Address, Records};
use crate::stream::results::Outbox;
use crate::stream::stop::Message;

/// An automatic message waits for so long for a slow source to fill it.
const FILL_TIME_MAX: Duration = Duration::from_millis(1);

/// An automatic message with so many bytes is full.
const AUTO_BYTES_MAX: usize = 128 << 10;

/// When a message began that is not to wait for long until it is full.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    at: Instant,
    tick_ns: u64,
}

impl Begun {
    fn now() -> Self {
        Self { at: Instant::now(), tick_ns: clock::coarse_now_ns() }
    }

    /// Whether a message that has been given so many items in a row should go out. The clock is read for the first ones and for each
    /// 64th. In between a look at the coarse clock, for each eighth, tells of a source that has become slow.
    #[inline]
    fn is_late(&self, items: u32) -> bool {
        (items < 8 || items.is_multiple_of(8)) && self.asks_clock(items)
    }

    /// Apart, so that what the loop around counts can stay in registers.
    #[cold]
    #[inline(never)]
    fn asks_clock(&self, items: u32) -> bool {
        let is_time = items < 8 || items.is_multiple_of(64) || clock::coarse_now_ns() != self.tick_ns;
        is_time && self.at.elapsed() > FILL_TIME_MAX
    }
}

impl<R: Payload> Engine<R> {
    /// The next message begins.
    #[inline]
    fn begin(&mut self) {
        self.filling_first = self.pulled;
        if let Some(auto) = &mut self.auto {
            let left = self.total.map(|total| total.saturating_sub(self.pulled));
            self.granularity = auto.size(left);
            self.alone = self.granularity == 1 && auto.skips_timing();
            self.begun = (self.granularity > 1).then(Begun::now);
        }
    }

    /// Takes an item of the source in; sends the message when it is full.
    #[inline]
    pub(in crate::stream) fn push<I: Payload>(&mut self, item: &I, out: &mut Outbox<R>) {
        if self.is_single {
            return self.push_single(item);
        }
        if std::mem::replace(&mut self.encoding, true) {
            // The serializer of the item before panicked: its position stays empty, so the batch ends there.
            self.closed += 1;
            self.flush(out);
        }
        if self.filling.len() == 0 {
            self.begin();
        }
        let index = self.pulled;
        self.pulled += 1;
        let limit = self.max_payload;
        let result = if self.alone {
            codec::encode(item, limit).map(|input| {
                let at = self.open(index, 1, None);
                self.send(at, Load::One(input), out);
            })
        } else {
            self.filling.push(item, limit)
        };
        self.encoding = false;
        if let Err(error) = result {
            self.flush(out);
            let at = self.open(index, 1, None);
            self.fail_rest(at, &encode_error(error), out);
        } else if self.filling.len() as usize >= self.granularity
            || self.auto.is_some() && self.filling.bytes() >= AUTO_BYTES_MAX
            || self.begun.as_ref().is_some_and(|begun| begun.is_late(self.filling.len()))
        {
            self.flush(out);
        }
    }

    /// Whether items of this type are [`fill`](Self::fill)ed in.
    #[inline]
    pub(in crate::stream) fn fills<I: Payload>(&self) -> bool {
        (self.granularity > 1 || self.auto.is_some()) && BatchBytes::are_plain::<I>(self.max_payload)
    }

    /// Takes items of a plain type in, whose encoding is no user code, until the message is full and sent, something has
    /// come, or the stream is over. `false`: the source has ended.
    #[inline]
    pub(in crate::stream) fn fill<T: Iterator<Item = B>, I: Payload, B: Borrow<I>>(
        &mut self,
        source: &mut Option<T>,
        room: Room,
        out: &mut Outbox<R>,
    ) -> bool {
        if self.filling.len() == 0 {
            self.begin();
        }
        let goal = u32::try_from(self.granularity).unwrap_or(u32::MAX);
        let room = room.items.saturating_sub(self.pulled - self.closed);
        let most = room.saturating_add(self.filling.len().into()).min(goal.into()) as u32;
        // The end of the stream or of its pool is an arrival, too.
        let arrivals = &*self.arrivals;
        let mut late = false;
        // A loop for each, of which one has nothing to do with the clock.
        let more = match self.begun {
            None => self.filling.fill::<T, I, B>(source, most, &mut self.pulled, |_| arrivals.any()),
            Some(begun) => self.filling.fill::<T, I, B>(source, most, &mut self.pulled, |items| {
                late = begun.is_late(items);
                late || arrivals.any()
            }),
        };
        if self.filling.len() >= goal || late {
            self.flush(out);
        }
        more
    }

    /// An item of the source that no worker is needed for: its outcome is an error in its place, which the caller
    /// replaces.
    pub(in crate::stream) fn hold_place(&mut self, out: &mut Outbox<R>) {
        if self.is_single {
            return self.fail_single(TaskError::Cancelled);
        }
        self.flush(out);
        let index = self.pulled;
        self.pulled += 1;
        let at = self.open(index, 1, None);
        self.fail_rest(at, &TaskError::Cancelled, out);
    }

    /// Sends the batch that is being filled, if there is one.
    pub(in crate::stream) fn flush(&mut self, out: &mut Outbox<R>) {
        let items = self.filling.len();
        if items > 0 {
            let at = self.open(self.filling_first, items, None);
            self.send(at, Load::Filled, out);
        }
    }

    /// Takes a slot for a message of so many items; its place in the order of an ordered stream, if that is not the end.
    pub(super) fn open(&mut self, first: u64, items: u32, place: Option<usize>) -> usize {
        let at = self.free.pop().unwrap_or_else(|| {
            let address = Address { slot: self.slots.len() as u32, epoch: 0 };
            let records = Arc::new(Records { address, arrivals: self.arrivals.clone() });
            let (bytes, held) = (Vec::new(), Outbox::default());
            self.slots.push(Slot {
                job: None,
                records,
                items: 0,
                received: 0,
                first: 0,
                bytes,
                held,
                due: None,
                losses: 0,
                step: 0,
                received_sent: 0,
                result_bytes: 0,
                received_seen: None,
            });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[at];
        (slot.items, slot.received, slot.first) = (items, 0, first);
        (slot.due, slot.losses) = (None, 0);
        slot.step = self.auto.as_ref().map_or(0, Auto::step);
        if self.ordered {
            self.order.insert(place.unwrap_or(self.order.len()), at);
        }
        at
    }

    /// Why nothing is to be sent on these terms, if so.
    pub(super) fn refusal(&self, terms: Option<Terms>) -> Option<TaskError> {
        let core = self.handle.core();
        if !core.is_here() {
            Some(TaskError::NotInThisProcess)
        } else if self.control.is_stopped() {
            Some(TaskError::Cancelled)
        } else {
            let limit = terms.unwrap_or(core.policy.terms).expired()?;
            Some(TaskError::TimedOut { limit })
        }
    }

    pub(super) fn send(&mut self, at: usize, load: Load, out: &mut Outbox<R>) {
        // What is sent again has the time that is left.
        let mut terms = self.terms.map(Terms::starting_now);
        let slot = &mut self.slots[at];
        if let Some(terms) = &mut terms {
            terms.due = slot.due.or(terms.due);
            slot.due = terms.due;
        }
        if let Some(error) = self.refusal(terms) {
            if let Load::Filled = load {
                self.filling.clear();
            }
            return self.fail_rest(at, &error, out);
        }
        self.messages += 1;
        let (core, slot) = (self.handle.core(), &mut self.slots[at]);
        let (mut held, job) = Job::allocate(core);
        held.be_batch(slot.records.clone());
        held.note_caller(Caller::current());
        slot.job = Some(job);
        (slot.received_sent, slot.received_seen, slot.result_bytes) = (slot.received, None, 0);
        let timed = self.auto.is_some();
        let message = Message::of(slot.first, job);
        let deadline = terms.and_then(|terms| held.agree(terms));
        match load {
            Load::Again(parcel) => core.submit_again(held, parcel),
            Load::One(input) => {
                let parcel = Parcel { code: self.code, batch: None, input };
                self.station = core.submit_along(self.station, held, parcel);
            }
            Load::Filled => {
                let (code, batch) = (self.code, Batch { items: slot.items, done: 0, timed });
                let payload = self.filling.payload();
                self.station = match core.submit_batch_along(self.station, held, code, batch, payload) {
                    Ok((station, ahead)) => {
                        self.filling.clear();
                        self.filling.ahead = ahead;
                        station
                    }
                    Err((held, station)) => {
                        let parcel = Parcel { code, batch: Some(batch), input: self.filling.finish() };
                        core.leave_at(station, held, parcel);
                        station
                    }
                };
            }
        }
        if let Some(deadline) = deadline {
            core.set_deadline(deadline);
        }
        if self.control.is_watched() {
            self.control.note(at, message);
        }
    }
}
