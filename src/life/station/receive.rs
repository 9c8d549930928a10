//! What comes from a station's worker, and where it goes.

use super::{Owned, Stage};
use crate::error::TaskError;
use crate::ground::prefetch;
use crate::life::core::Core;
use crate::life::job::{After, Ended, JobRef, Outcome};
use crate::life::messages::Who;
use crate::life::meter::Meter;
use crate::life::service::Request;
use crate::life::tally::Tally;
use crate::life::verdict::Why;
use crate::memory::arena::ArenaReader;
use crate::memory::codec::AlignedBytes;
use crate::protocol::lane::{Form, Lane, Parcel, Reply, Run, Sink, SmallReply, Violation};
use crate::protocol::wire::Status;

impl Owned<'_> {
    /// Ends a job; its waker is called after the station is released.
    #[inline]
    pub(crate) fn finish(&mut self, job: JobRef, outcome: Outcome) {
        let inner = &mut **self;
        inner.tally.note(&outcome);
        job.finish(outcome, &mut inner.after);
    }

    /// The lane of a process that is over, or is not to be heard any more.
    pub(crate) fn take_lane(&mut self) -> Option<Lane<JobRef>> {
        let lane = self.lane.take()?;
        self.tally.note_lane(&lane.census());
        Some(lane)
    }

    /// Delivers what the worker has published. A violation ends the worker.
    #[inline]
    pub(crate) fn poll(&mut self) {
        self.poll_with(true);
    }

    /// As [`poll`](Self::poll), for a loop: looks at finished responses only, not at how far unfinished ones are, which
    /// would take the worker's line away from it time and again.
    #[inline]
    pub(crate) fn peek(&mut self) {
        self.has_looked = true;
        if self.lane.as_ref().is_some_and(Lane::ready) {
            self.poll_with(false);
        }
    }

    /// As [`poll`](Self::poll), for whoever waits and looks time and again: what a quiet batch has so far stays where it is.
    pub(crate) fn poll_news(&mut self) {
        self.peek();
        if self.lane.as_ref().is_some_and(Lane::has_news) {
            self.poll();
        }
    }

    #[inline]
    fn poll_with(&mut self, streams: bool) {
        self.has_looked = true;
        let (id, core, awaited) = (self.station.id, self.core, self.awaited);
        let inner = &mut **self;
        let Some(lane) = &mut inner.lane else { return };
        if inner.violation.is_some() || inner.is_given_up {
            return;
        }
        if inner.meter.is_some() {
            return self.poll_timed(streams);
        }
        let mut delivery = Delivery {
            after: &mut inner.after,
            ended: &mut inner.ended,
            calls: &mut inner.calls,
            tally: &mut inner.tally,
            core,
            station: id,
            generation: inner.generation,
        };
        let polled = lane.poll(&mut delivery, streams);
        inner.ended.look_after(awaited, core, &mut inner.after);
        self.note_poll(polled, streams);
    }

    /// As [`poll_with`](Self::poll_with), where tasks are timed.
    #[inline(never)]
    fn poll_timed(&mut self, streams: bool) {
        let (who, core) = (Who { station: self.station.id, generation: self.generation }, self.core);
        let inner = &mut **self;
        let (Some(lane), Some(meter)) = (&mut inner.lane, &mut inner.meter) else { return };
        let delivery = Delivery {
            after: &mut inner.after,
            ended: &mut inner.ended,
            calls: &mut inner.calls,
            tally: &mut inner.tally,
            core,
            station: who.station,
            generation: who.generation,
        };
        let polled = lane.poll(&mut Timed { delivery, meter, who }, streams);
        inner.ended.look_after(None, core, &mut inner.after);
        self.note_poll(polled, streams);
    }

    #[inline(always)]
    fn note_poll(&mut self, polled: Result<usize, Violation>, streams: bool) {
        self.has_found |= polled.as_ref().is_ok_and(|&replies| replies > 0);
        let inner = &mut **self;
        match polled {
            Ok(replies) => {
                inner.tasks_done += replies as u64;
                if replies > 0 {
                    inner.waits = 0;
                }
                if streams && inner.stage == Stage::Ready && inner.lane.as_ref().is_some_and(Lane::is_leaving)
                {
                    self.stop(Why::Recycled);
                }
            }
            Err(violation) => self.break_off(violation),
        }
    }

    /// The worker broke the protocol: it is killed, and its lane is not read any more.
    #[cold]
    pub(crate) fn break_off(&mut self, violation: Violation) {
        self.violation = Some(violation);
        self.signal(nix::libc::SIGKILL);
    }
}

/// Where a lane's deliveries go.
struct Delivery<'a> {
    after: &'a mut Vec<After>,
    ended: &'a mut Ended,
    calls: &'a mut Vec<Request>,
    tally: &'a mut Tally,
    core: &'a Core,
    station: usize,
    generation: u64,
}

impl Sink<JobRef> for Delivery<'_> {
    #[inline]
    fn expect(&self, job: &JobRef) {
        prefetch::for_writing(job.job());
    }

    #[inline]
    fn reply(&mut self, job: JobRef, reply: Reply) {
        self.tally.note_reply(reply.status);
        let outcome = match reply.status {
            Status::Skipped => Outcome::Failed(TaskError::Cancelled),
            _ => Outcome::Reply(reply),
        };
        job.finish(outcome, self.after);
    }

    #[inline]
    fn small_reply(&mut self, job: JobRef, reply: SmallReply) {
        job.finish_small(reply, self.station, self.core, self.ended, self.after);
    }

    #[inline]
    fn batch_done(&mut self, job: JobRef, time_code: u8) {
        self.tally.note_reply(Status::BatchDone);
        job.finish(Outcome::BatchDone(time_code), self.after);
    }

    fn last_results(&mut self, job: JobRef, form: Form, from: (ArenaReader<'_>, u64, usize), time_code: u8) {
        self.tally.note_reply(Status::BatchDone);
        job.finish_batch(Outcome::BatchDone(time_code), form, from, self.after);
    }

    fn cut(&mut self, job: JobRef, parcel: Parcel) {
        job.finish(Outcome::BatchLost(Box::new((parcel, None, None))), self.after);
    }

    fn results(&mut self, job: &mut JobRef, form: Form, arena: ArenaReader<'_>, position: u64, len: usize) {
        if let Some(batch) = job.batch() {
            self.after.extend(batch.append(form, arena, position, len).map(After::Wake));
        }
    }

    fn call(&mut self, number: u64, bytes: AlignedBytes) {
        self.calls.push(Request { station: self.station, generation: self.generation, number, bytes });
    }
}

/// Deliveries of a station that has a meter.
struct Timed<'a> {
    delivery: Delivery<'a>,
    meter: &'a mut Meter,
    who: Who,
}

impl Sink<JobRef> for Timed<'_> {
    const TIMED: bool = true;

    fn timed(&mut self, job: &JobRef, run: Run) {
        self.meter.note_answer(self.who, job, run);
    }

    fn expect(&self, job: &JobRef) {
        self.delivery.expect(job);
    }

    fn reply(&mut self, job: JobRef, reply: Reply) {
        self.delivery.reply(job, reply);
    }

    fn small_reply(&mut self, job: JobRef, reply: SmallReply) {
        self.delivery.small_reply(job, reply);
    }

    fn batch_done(&mut self, job: JobRef, time_code: u8) {
        self.delivery.batch_done(job, time_code);
    }

    fn last_results(&mut self, job: JobRef, form: Form, from: (ArenaReader<'_>, u64, usize), time_code: u8) {
        self.delivery.last_results(job, form, from, time_code);
    }

    fn cut(&mut self, job: JobRef, parcel: Parcel) {
        self.delivery.cut(job, parcel);
    }

    fn results(&mut self, job: &mut JobRef, form: Form, arena: ArenaReader<'_>, position: u64, len: usize) {
        self.delivery.results(job, form, arena, position, len);
    }

    fn call(&mut self, number: u64, bytes: AlignedBytes) {
        self.delivery.call(number, bytes);
    }
}
