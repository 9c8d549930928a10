//! The items of a batch run one after another, and their results go out as records.

use std::ops::Range;
use std::time::Instant;

use super::Call;
use super::batch::Items;
use super::call::{Ended, Failure};
use crate::error::CodecError;
use crate::faults::{Point, point};
use crate::life::worker::WorkerCore;
use crate::memory::codec::{self, Input, Payload};
use crate::panics;
use crate::protocol::records::record_stride;
use crate::protocol::wire::{Status, time_code};

impl Call<'_> {
    #[inline]
    pub(super) fn run_batch<I: Input + ?Sized, R: Payload>(
        &mut self,
        items: usize,
        done: usize,
        f: impl Fn(&'static WorkerCore, &[u8]) -> Result<R, CodecError>,
    ) {
        let (core, index) = (self.core, self.request.index);
        core.state_used.set(false);
        let Some(batch) = Items::new::<I>(self.input, items) else {
            return core.port.borrow_mut().answer(index, Status::Decode, b"a batch's table is damaged");
        };
        let since = self.request.timed.then(Instant::now);
        let stride = record_stride::<R>();
        let start = {
            let mut port = core.port.borrow_mut();
            if let Err(error) = port.reserve_stream(items.saturating_mul(stride.map_or(64, |s| s + 1))) {
                return port.answer(index, Status::Memory, error.to_string().as_bytes());
            }
            if self.request.timed {
                port.be_quiet();
            }
            port.open_stream(index, 0, stride.is_some())
        };
        let mut status = Status::BatchDone;
        let mut next = done;
        while next < items {
            // One by one, so that a crash in the next item cannot take this one's result along.
            next = match stride {
                Some(_) => self.run_plain_items::<I, R>(&batch, next..items, &f),
                None => self.run_item::<I, R>(&batch, next, &f),
            };
            // Edge CUT: the record was committed before this look, with a barrier between; the master marks, fences, and
            // looks how many records there are. So it knows the last item that can have started.
            if next < items && core.port.borrow().ends_early(index) {
                status = Status::BatchCut;
                core.left_out.set((items - next) as u64);
                break;
            }
        }
        let time = since.map_or(0, |since| time_code(since.elapsed().as_nanos() as u64));
        core.port.borrow_mut().close_stream(index, start, status, time);
    }

    /// Runs items whose results are bare values (no serializer, no length) until there is something to look at; the item
    /// to go on with.
    #[inline]
    fn run_plain_items<I: Input + ?Sized, R: Payload>(
        &self,
        batch: &Items<'_>,
        items: Range<usize>,
        f: impl Fn(&'static WorkerCore, &[u8]) -> Result<R, CodecError>,
    ) -> usize {
        let core = self.core;
        let window = core.port.borrow_mut().window::<R>(self.request.index, items.len());
        let Some(window) = window else { return self.run_plain_item::<I, R>(batch, items.start, &f) };
        // One guard for all of them: whichever panics, it is the one behind those that are published.
        let ended = panics::guard(|| match codec::plain_size::<I>() {
            Some(stride @ 1..) => {
                let end = items.start + window.room().min(items.len());
                let inputs = batch.bytes.get(items.start * stride..end * stride).unwrap_or_default();
                window.run(inputs.chunks_exact(stride), |input| f(core, input))
            }
            _ => window.run(items.clone(), |i| f(core, batch.get::<I>(i).unwrap_or_default())),
        });
        let next = {
            let mut port = core.port.borrow_mut();
            let done = port.leave_window::<R>(items.len());
            port.notify_of_item();
            items.start + done
        };
        let ended = match ended {
            Ok(Ok(())) => return next,
            Ok(Err(error)) => Failure::Decode(error).ended(),
            Err(caught) => self.panicked(caught),
        };
        self.send_record(&ended);
        next + 1
    }

    /// As [`run_plain_items`](Self::run_plain_items), for one item whose result has to wait for room, or is a record since
    /// an earlier item of its batch had no value.
    #[cold]
    fn run_plain_item<I: Input + ?Sized, R: Payload>(
        &self,
        batch: &Items<'_>,
        i: usize,
        f: impl Fn(&'static WorkerCore, &[u8]) -> Result<R, CodecError>,
    ) -> usize {
        let core = self.core;
        point(Point::BeforeFunction);
        let ended = match panics::guard(|| f(core, batch.get::<I>(i).unwrap_or_default())) {
            Ok(Ok(value)) => {
                point(Point::AfterFunction);
                let mut port = core.port.borrow_mut();
                port.append_value(codec::plain_bytes(&value).unwrap_or_default());
                point(Point::RecordUncommitted);
                port.commit();
                point(Point::RecordDone);
                return i + 1;
            }
            Ok(Err(error)) => Failure::Decode(error).ended(),
            Err(caught) => self.panicked(caught),
        };
        self.send_record(&ended);
        i + 1
    }

    #[inline]
    fn run_item<I: Input + ?Sized, R: Payload>(
        &self,
        batch: &Items<'_>,
        i: usize,
        f: impl Fn(&'static WorkerCore, &[u8]) -> Result<R, CodecError>,
    ) -> usize {
        let bytes = batch.get::<I>(i).unwrap_or_default();
        self.item_in_buffer(bytes, Status::SizedValue, f, |port, status, bytes| {
            port.append_sized(status, bytes);
            point(Point::RecordUncommitted);
            port.commit();
            point(Point::RecordDone);
        });
        i + 1
    }

    fn send_record(&self, ended: &Ended) {
        {
            let mut port = self.core.port.borrow_mut();
            port.append_sized(ended.status, &ended.bytes);
            point(Point::RecordUncommitted);
            port.commit();
            point(Point::RecordDone);
        }
        self.core.leave_if_stateless();
    }
}
