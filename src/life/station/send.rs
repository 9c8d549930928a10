//! What goes to a station's worker: jobs are accepted, sent if they fit, and wait in the queue if they do not.

use super::arm::arm_before_first;
use super::{Cargo, Owned};
use crate::error::TaskError;
use crate::ground::prefetch::{self, Ahead};
use crate::life::job::{JobRef, Outcome, Place, Spot};
use crate::memory::codec::ElementsRef;
use crate::protocol::code::CodeId;
use crate::protocol::lane::{Batch, Lane, Parcel, Refusal, SmallRequest};

/// A submitter whose tasks go into the queue looks after so many whether the ring can be emptied.
const QUEUED_PER_LOOK: usize = 16;

/// The cell of a task in the queue is asked for when it is so far from the front.
const QUEUED_AHEAD: usize = 16;

impl Owned<'_> {
    /// Takes a job: into the ring if it is next and fits, else into the queue.
    #[inline]
    pub(crate) fn accept(&mut self, job: JobRef, parcel: Parcel) {
        if let Some(refusal) = &self.refusal {
            // No task of the pool's, so nobody counts it.
            let outcome = Outcome::Failed(refusal.clone());
            return job.finish(outcome, &mut self.after);
        }
        if self.queue.is_empty() && self.can_send() {
            if let Some((job, parcel)) = self.send(job, parcel) {
                self.enqueue(job, parcel);
            }
        } else {
            self.enqueue(job, parcel);
        }
    }

    fn enqueue(&mut self, mut job: JobRef, parcel: Parcel) {
        job.queue(parcel);
        job.set_place(Place { station: self.station.id, spot: Spot::Queue });
        self.may_spare |= !job.is_pinned();
        self.queue.push_back(job);
    }

    /// Takes a job that another station had taken. One that was submitted in time is not too late here.
    pub(crate) fn accept_moved(&mut self, job: JobRef, parcel: Parcel) {
        let closed = self.refusal.take_if(|refusal| refusal.is_closed());
        match &self.refusal {
            // The pool has ended since, and the job with it.
            Some(error) => {
                let outcome = Outcome::Failed(error.clone());
                self.finish(job, outcome);
            }
            None => self.accept(job, parcel),
        }
        if closed.is_some() {
            self.refusal = closed;
        }
    }

    /// Puts jobs in front of the queue: they were here before. If the pool has ended since, so have they.
    pub(crate) fn give_back(&mut self, jobs: Vec<(JobRef, Parcel)>) {
        let over = self.refusal.clone().filter(|refusal| !refusal.is_closed());
        for (mut job, parcel) in jobs.into_iter().rev() {
            if let Some(error) = &over {
                self.finish(job, Outcome::Failed(error.clone()));
                continue;
            }
            job.queue(parcel);
            job.set_place(Place { station: self.station.id, spot: Spot::Queue });
            self.may_spare |= !job.is_pinned();
            self.queue.push_front(job);
        }
    }

    /// As [`accept`](Self::accept), of a fresh job whose input is a number. Without a time limit, see
    /// [`Core::takes_small`](crate::life::core::Core::takes_small).
    #[inline]
    pub(crate) fn accept_small(&mut self, job: JobRef, request: &SmallRequest) {
        if self.refusal.is_some() {
            return self.accept(job, request.into());
        }
        let sent = match self.queue.is_empty() && self.can_send() {
            true => self.send_small(job, request),
            false => Err(job),
        };
        if let Err(mut job) = sent {
            job.queue_small(self.station.id, request);
            self.may_spare = true;
            self.queue.push_back(job);
        }
    }

    /// As [`send`](Self::send), of a number.
    #[inline]
    fn send_small(&mut self, job: JobRef, request: &SmallRequest) -> Result<(), JobRef> {
        let id = self.station.id;
        let inner = &mut **self;
        inner.load(Cargo::of(&job));
        let Some(lane) = inner.lane.as_mut().filter(|lane| lane.has_room()) else { return Err(job) };
        arm_before_first(lane, &mut inner.wake, inner.watched);
        let shared = job.job();
        let index = lane.push_small(job, request)?;
        JobRef::note_place(shared, Place { station: id, spot: Spot::Ring(index) });
        let is_alone = lane.in_flight() == 1;
        lane.ring_if_asleep();
        inner.may_spare = true;
        if !is_alone {
            self.leave_idle();
        }
        Ok(())
    }

    /// Publishes a request. What does not fit comes back.
    #[inline]
    pub(super) fn send(&mut self, job: JobRef, parcel: Parcel) -> Option<(JobRef, Parcel)> {
        if job.is_unwanted() {
            self.finish(job, Outcome::Failed(TaskError::Cancelled));
            return None;
        }
        let (id, core) = (self.station.id, self.core);
        let inner = &mut **self;
        inner.load(Cargo::of(&job));
        let lane = inner.lane.as_mut()?;
        arm_before_first(lane, &mut inner.wake, inner.watched);
        let (shared, spare) = (job.job(), !job.is_pinned());
        let limit = if job.is_limited(core) { job.timeout(core) } else { None };
        lane.set_caller(job.caller());
        match lane.push(job, parcel) {
            Ok(index) => {
                // The job is in the ring under this index; only this thread, its owner, moves it.
                JobRef::note_place(shared, Place { station: id, spot: Spot::Ring(index) });
                lane.ring_if_asleep();
                inner.may_spare |= spare;
                self.leave_idle();
                if let Some(limit) = limit {
                    self.watch_time(limit);
                }
                None
            }
            Err((job, parcel, Refusal::Full)) => Some((job, parcel)),
            Err((job, _, Refusal::Memory(error))) => {
                let error = TaskError::Encode(crate::error::CodecError::new(format_args!(
                    "no shared memory for the input: {error}"
                )));
                self.finish(job, Outcome::Failed(error));
                None
            }
        }
    }

    /// As [`accept`](Self::accept), of a row of numbers that is copied from where it is. The job comes back if it has to wait,
    /// or cannot be accepted.
    pub(crate) fn send_elements(
        &mut self,
        job: JobRef,
        code: CodeId,
        elements: &ElementsRef<'_>,
    ) -> Result<(), JobRef> {
        if self.refusal.is_some() || !self.queue.is_empty() || !self.can_send() {
            return Err(job);
        }
        self.leave_idle();
        let (id, core) = (self.station.id, self.core);
        let inner = &mut **self;
        inner.load(Cargo::Tasks);
        let Some(lane) = &mut inner.lane else { return Err(job) };
        arm_before_first(lane, &mut inner.wake, inner.watched);
        let (shared, spare) = (job.job(), !job.is_pinned());
        let limit = if job.is_limited(core) { job.timeout(core) } else { None };
        lane.set_caller(job.caller());
        let index = lane.push_elements(job, code, elements)?;
        JobRef::note_place(shared, Place { station: id, spot: Spot::Ring(index) });
        lane.ring_if_asleep();
        inner.may_spare |= spare;
        if let Some(limit) = limit {
            self.watch_time(limit);
        }
        Ok(())
    }

    /// As [`accept`](Self::accept), of a batch whose payload is copied from where it is. The job comes back if it has to wait, or
    /// cannot be accepted.
    pub(crate) fn send_batch(
        &mut self,
        job: JobRef,
        code: CodeId,
        batch: Batch,
        payload: &[u8],
    ) -> Result<Ahead, JobRef> {
        if self.refusal.is_some() || !self.queue.is_empty() || !self.can_send() {
            return Err(job);
        }
        self.leave_idle();
        let (id, core) = (self.station.id, self.core);
        let inner = &mut **self;
        inner.load(Cargo::Batches);
        let Some(lane) = &mut inner.lane else { return Err(job) };
        arm_before_first(lane, &mut inner.wake, inner.watched);
        let shared = job.job();
        let limit = if job.is_limited(core) { job.timeout(core) } else { None };
        lane.set_caller(job.caller());
        let index = lane.push_batch(job, code, batch, payload)?;
        JobRef::note_place(shared, Place { station: id, spot: Spot::Ring(index) });
        lane.ring_if_asleep();
        let ahead = lane.ahead();
        inner.may_spare = true;
        if let Some(limit) = limit {
            self.watch_time(limit);
        }
        Ok(ahead)
    }

    /// For an owner that looks around in a loop: the worker gets what waits in the queue before it runs dry.
    #[inline]
    pub(crate) fn keep_busy(&mut self) {
        if !self.queue.is_empty() && self.lane.as_ref().is_some_and(Lane::has_room) {
            self.refill();
        }
    }

    /// Moves jobs from the queue to the ring while they fit. A submitter who keeps the ring full also empties it, half a
    /// lap at a time.
    pub(super) fn refill(&mut self) {
        while !self.queue.is_empty() && self.can_send() {
            match &self.lane {
                Some(lane) if lane.has_room() => {}
                // The worker is writing thereabouts, so not at every task.
                Some(lane) if self.queue.len().is_multiple_of(QUEUED_PER_LOOK) && lane.half_is_ready() => {
                    self.poll();
                }
                _ => return,
            }
            if let Some(soon) = self.queue.get(QUEUED_AHEAD) {
                prefetch::for_writing(soon.job());
            }
            let Some(mut job) = self.queue.pop_front() else { return };
            let back = match job.queued_small() {
                Some(request) if !job.is_unwanted() => self.send_small(job, &request).err(),
                _ => {
                    let Some(parcel) = job.unqueue() else { continue };
                    self.send(job, parcel).map(|(mut job, parcel)| {
                        job.queue(parcel);
                        job.set_place(Place { station: self.station.id, spot: Spot::Queue });
                        job
                    })
                }
            };
            if let Some(job) = back {
                self.queue.push_front(job);
                return;
            }
        }
    }
}
