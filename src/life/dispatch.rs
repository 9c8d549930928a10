//! Which station a task goes to, how work moves between stations, and how it is called off.
//!
//! A task goes to an idle station if there is one, else around. Whenever a station has nothing to do while another
//! holds tasks that it has not started, some of those move: a station that becomes idle adds itself to the idle set and
//! then looks for surplus; one that gets a surplus adds itself to that set and then looks for idle stations. Both do
//! so with sequentially consistent operations, so one of the two sees the other (edge BALANCE).
//!
//! A station that gets one small task stays in the idle set: a submit then changes no word that others use. So whoever takes a station
//! for idle looks, as its owner, whether it is, and has it leave the set if not; and so does whoever waits for that task, who has the
//! time for it.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use super::core::{Core, Phase};
use super::job::{Job, JobRef, Outcome, Place, Spot};
use super::messages::Who;
use super::meter::outcome_of_error;
use super::station::{Owned, Stage, Station};
use super::verdict::Why;
use crate::error::TaskError;
use crate::ground::prefetch::Ahead;
use crate::memory::codec::ElementsRef;
use crate::protocol::code::CodeId;
use crate::protocol::lane::{Batch, Lane, Parcel, SmallRequest};

/// At most this many tasks move at a time.
const MOVE_MAX: usize = 128;

/// How many tasks in a row a thread hands to one station. It finds that one in its cache, and other threads elsewhere.
const RUN: u32 = 16;

thread_local! {
    /// How many tasks this thread has handed out, not counting the first.
    static TASKS: Cell<Option<u32>> = const { Cell::new(None) };
    /// The idle station that this thread found last. Its worker is awake for longest, and nobody else may have been there.
    static FOUND: Cell<usize> = const { Cell::new(0) };
}

/// Whose turn it is for the next task of this thread: a number that grows by one after each run.
#[inline]
fn turn() -> u32 {
    static THREADS: AtomicU32 = AtomicU32::new(0);
    // Threads start at different stations.
    let tasks = TASKS.get().unwrap_or_else(|| THREADS.fetch_add(1, Ordering::Relaxed).wrapping_mul(RUN));
    TASKS.set(Some(tasks.wrapping_add(1)));
    tasks / RUN
}

/// The turn ends early: somebody else is at that station.
fn end_turn() {
    TASKS.set(TASKS.get().map(|tasks| match tasks % RUN {
        0 => tasks,
        begun => tasks.wrapping_add(RUN - begun),
    }));
}

impl Core {
    /// Hands a job to a station.
    #[inline]
    pub(crate) fn submit(&self, job: JobRef, parcel: Parcel) {
        match self.own_idle() {
            Some(mut owned) => {
                self.note_submitted(&job);
                owned.accept(job, parcel);
            }
            None => self.submit_at(self.next_in_turn(), job, parcel),
        }
    }

    /// Hands a fresh job whose input fits a slot to a station.
    #[inline]
    pub(crate) fn submit_small(&self, job: JobRef, request: &SmallRequest) {
        let idle = self.idle_at_hand();
        let mut owned = self.stations[idle.unwrap_or_else(|| self.next_in_turn())].try_own(self);
        // By reference: a move would load flags as one word that have just been stored as bytes.
        match &mut owned {
            Some(owned) if idle.is_none() || owned.has_nothing_to_do() => owned.accept_small(job, request),
            _ => {
                drop(owned);
                self.submit_small_elsewhere(job, request);
            }
        }
    }

    /// The station that was tried first is somebody else's, or not idle after all.
    #[inline(never)]
    fn submit_small_elsewhere(&self, job: JobRef, request: &SmallRequest) {
        if let Some(mut owned) = self.own_idle() {
            return owned.accept_small(job, request);
        }
        if self.stations.len() > 1 {
            end_turn();
        }
        let station = self.next_in_turn();
        match &mut self.stations[station].try_own(self) {
            Some(owned) => owned.accept_small(job, request),
            None => self.submit_at(station, job, request.into()),
        }
    }

    /// A station that is said to be idle, and that this thread can have for the asking.
    #[inline]
    fn idle_at_hand(&self) -> Option<usize> {
        if self.stations.len() == 1 || !self.idle.any() {
            return None;
        }
        let found = FOUND.get();
        match self.idle.contains(found) && self.stations[found].is_at_hand() {
            true => Some(found),
            false => self.find_idle(found),
        }
    }

    #[inline(never)]
    fn find_idle(&self, first: usize) -> Option<usize> {
        let found = self.idle.find(first, |station| self.stations[station].is_at_hand())?;
        FOUND.set(found);
        Some(found)
    }

    /// Whether any worker has nothing to do.
    pub(crate) fn has_idle(&self) -> bool {
        self.own_idle().is_some()
    }

    /// Owns a station that is idle. It is in the set still if it was at hand.
    fn own_idle(&self) -> Option<Owned<'_>> {
        while let Some(station) = self.idle_at_hand() {
            if let Some(mut owned) = self.stations[station].try_own(self) {
                if owned.has_nothing_to_do() {
                    return Some(owned);
                }
                owned.leave_idle();
            }
        }
        self.take_idle(false)
    }

    /// Takes an idle station out of the set, whoever has it. `is_quiet`: for a move.
    fn take_idle(&self, is_quiet: bool) -> Option<Owned<'_>> {
        loop {
            let mut owned = self.stations[self.idle.take()?].own(self);
            if is_quiet {
                owned.keep_quiet();
            }
            owned.leave_idle();
            if owned.has_nothing_to_do() {
                return Some(owned);
            }
        }
    }

    #[inline]
    pub(crate) fn next_in_turn(&self) -> usize {
        match self.stations.len() {
            1 => 0,
            count => turn() as usize % count,
        }
    }

    /// Sends a row of numbers from where it is. The job comes back, with the station to leave it at, if that is not possible
    /// at once.
    pub(crate) fn submit_elements(
        &self,
        job: JobRef,
        code: CodeId,
        elements: &ElementsRef<'_>,
    ) -> Result<(), (JobRef, usize)> {
        self.note_submitted(&job);
        let mut owned = match self.own_idle() {
            Some(owned) => owned,
            None => {
                let station = self.next_in_turn();
                match self.stations[station].try_own(self) {
                    Some(owned) => owned,
                    None => return Err((job, station)),
                }
            }
        };
        let station = owned.station.id;
        owned.send_elements(job, code, elements).map_err(|job| (job, station))
    }

    /// Hands a stream's message to the station that had the one before, unless that has more than enough; the station. A
    /// worker that is awake and keeps up is cheaper than one that has to be woken for each message.
    #[inline]
    pub(crate) fn submit_along(&self, station: usize, job: JobRef, parcel: Parcel) -> usize {
        let station = self.choose_along(station);
        self.submit_at(station, job, parcel);
        station
    }

    /// As [`submit_along`](Self::submit_along), of a batch whose payload is copied from where it is. The job comes back, with
    /// the station to leave it at, if that is not possible at once.
    pub(crate) fn submit_batch_along(
        &self,
        station: usize,
        job: JobRef,
        code: CodeId,
        batch: Batch,
        payload: &[u8],
    ) -> Result<(usize, Ahead), (JobRef, usize)> {
        let station = self.choose_along(station);
        self.note_submitted(&job);
        match self.stations[station].try_own(self) {
            Some(mut owned) => match owned.send_batch(job, code, batch, payload) {
                Ok(ahead) => Ok((station, ahead)),
                Err(job) => Err((job, station)),
            },
            None => Err((job, station)),
        }
    }

    /// As [`submit_along`](Self::submit_along), of an item whose input fits a slot.
    #[inline]
    pub(crate) fn submit_item_along(&self, station: usize, job: JobRef, request: &SmallRequest) -> usize {
        let station = self.choose_along(station);
        match self.stations[station].try_own(self) {
            Some(mut owned) => {
                // Streams look for their items at stations that are not idle.
                owned.leave_idle();
                owned.accept_small(job, request);
            }
            None => self.submit_at(station, job, request.into()),
        }
        station
    }

    /// Delivers what has come from a worker, unless somebody else is at it.
    #[inline]
    pub(crate) fn peek_at(&self, station: usize) {
        if let Some(mut owned) = self.stations[station].try_own(self) {
            owned.peek();
        }
    }

    /// Likewise, from all workers that have something to do.
    pub(crate) fn peek_everywhere(&self) {
        self.busy_stations().for_each(|station| self.peek_at(station.id));
    }

    /// As [`peek_everywhere`](Self::peek_everywhere), and how far unfinished batches are.
    pub(crate) fn poll_everywhere(&self) {
        self.busy_stations().for_each(|station| station.own(self).poll());
    }

    /// Those that have something to do. One that has no more than a small task may be missing, which no stream has sent.
    fn busy_stations(&self) -> impl Iterator<Item = &Station> {
        self.stations.iter().filter(|station| !self.idle.contains(station.id))
    }

    #[inline]
    fn choose_along(&self, station: usize) -> usize {
        match self.stations.len() {
            1 => 0,
            _ if !self.surplus.contains(station) => station,
            // In runs, when all have enough.
            _ => self.own_idle().map_or_else(|| self.next_in_turn(), |owned| owned.station.id),
        }
    }

    /// Hands a job to this station.
    pub(crate) fn submit_at(&self, station: usize, job: JobRef, parcel: Parcel) {
        self.note_submitted(&job);
        self.leave_at(station, job, parcel);
    }

    /// Likewise, of one that could not be sent from where its input is.
    pub(crate) fn leave_at(&self, station: usize, job: JobRef, parcel: Parcel) {
        if let Some((mut owned, job, parcel)) = self.stations[station].own_or_leave(self, job, parcel) {
            owned.leave_idle();
            owned.accept(job, parcel);
        }
    }

    /// Ends a job that was submitted and cannot be sent.
    #[cold]
    pub(crate) fn end_at(&self, station: usize, job: JobRef, error: TaskError) {
        self.stations[station].own(self).finish(job, Outcome::Failed(error));
    }

    /// Hands over what is left of a job that was submitted in time, so that a pool that is closing still takes it.
    #[cold]
    pub(crate) fn submit_again(&self, job: JobRef, parcel: Parcel) {
        let at = self.next_in_turn();
        self.note_submitted(&job);
        let mut owned = self.stations[at].own(self);
        owned.leave_idle();
        if self.phase() >= Phase::Ending {
            // Whoever puts the station down may have been here already.
            owned.accept(job, parcel);
        } else {
            owned.accept_moved(job, parcel);
        }
        drop(owned);
        self.ring_driver();
    }

    /// Moves tasks from stations that hold more than they run to stations that have nothing to do.
    #[cold]
    pub(crate) fn rebalance(&self) {
        let moving = self.moves.begin();
        self.move_jobs();
        drop(moving);
        if self.phase() >= Phase::Closing {
            // Who looked whether the pool is empty could not tell.
            self.ring_driver();
        }
    }

    fn move_jobs(&self) {
        while self.idle.any() {
            let Some(rich) = self.surplus.first() else { return };
            let jobs = {
                let mut owned = self.stations[rich].own(self);
                owned.keep_quiet();
                owned.put_off();
                owned.spare()
            };
            if jobs.is_empty() {
                self.catch_up(rich);
                continue;
            }
            let Some(mut poor) = self.take_idle(true) else {
                let mut owned = self.stations[rich].own(self);
                owned.keep_quiet();
                owned.tally.moved_in += jobs.len() as u64;
                owned.give_back(jobs);
                drop(owned);
                // The second look of edge BALANCE: somebody may have become idle while this station looked poor.
                continue;
            };
            poor.tally.moved_in += jobs.len() as u64;
            for (job, parcel) in jobs {
                poor.accept_moved(job, parcel);
            }
            drop(poor);
            self.catch_up(rich);
        }
    }

    /// Does what was put off while jobs were in nobody's station but this thread's hands.
    fn catch_up(&self, station: usize) {
        self.stations[station].own(self).keep_quiet();
    }

    /// Calls a job off. `true`: it had not started and never will; it ends with `error`.
    pub(crate) fn call_off(&self, job: &'static Job, generation: u64, error: &TaskError) -> bool {
        self.reach(job, generation, error, None)
    }

    /// Ends a job, if need be by killing its worker.
    pub(crate) fn kill(&self, job: &'static Job, generation: u64, error: &TaskError, why: Why) {
        self.reach(job, generation, error, Some(why));
    }

    /// Whether this job is running, as far as is known; delivers what has come of it.
    pub(crate) fn is_running(&self, job: &'static Job, generation: u64) -> bool {
        self.at_ring(job, generation, |owned, index| {
            owned.poll();
            owned.lane.as_ref().and_then(|lane| lane.running()).is_some_and(|running| running.index == index)
        })
        .unwrap_or(false)
    }

    /// If this job is a batch that is running, no other item of it starts: see
    /// [`Lane::shorten`](crate::protocol::lane::Lane::shorten). What has come is delivered when this returns.
    pub(crate) fn shorten(&self, job: &'static Job, generation: u64) -> Option<Parcel> {
        self.at_ring(job, generation, |owned, index| {
            let parcel = owned.lane.as_mut()?.shorten(index)?;
            owned.poll();
            Some(parcel)
        })?
    }

    /// Owns the station in whose ring this job is.
    fn at_ring<T>(
        &self,
        job: &'static Job,
        generation: u64,
        act: impl FnOnce(&mut Owned<'_>, u64) -> T,
    ) -> Option<T> {
        let at = job.station();
        let mut station = self.stations.get(at)?.own(self);
        let Place { station: now, spot: Spot::Ring(bits) } = job.place()? else { return None };
        if now != at || job.is_over(generation) || station.violation.is_some() {
            return None;
        }
        let oldest = station.lane.as_ref()?.answered();
        Some(act(&mut station, Place::ring_index(bits, oldest)))
    }

    fn reach(&self, job: &'static Job, generation: u64, error: &TaskError, kill: Option<Why>) -> bool {
        loop {
            let at = job.station();
            // The cell may serve another pool by now, with other stations.
            let Some(station) = self.stations.get(at).filter(|_| job.generation() == generation) else {
                return false;
            };
            let mut station = station.own(self);
            // Where the job is cannot change while its station is owned; it may have moved before.
            let Some(Place { station: now, spot }) = job.place().filter(|_| !job.is_over(generation)) else {
                return false;
            };
            if now != at {
                continue;
            }
            if spot == Spot::Moving {
                // In the hands of another thread, for a moment.
                drop(station);
                std::thread::yield_now();
                continue;
            }
            if let Spot::Ring(bits) = spot {
                let index = Place::ring_index(bits, station.lane.as_ref().map_or(0, Lane::answered));
                let unstarted = station.lane.as_mut().and_then(|lane| lane.cancel(index));
                return match (unstarted, kill) {
                    (Some(job), _) => {
                        station.finish(job, Outcome::Failed(error.clone()));
                        true
                    }
                    (None, Some(why)) => {
                        station.condemn(index, None, why, error.clone());
                        false
                    }
                    (None, None) => {
                        JobRef::note_called_off(job);
                        false
                    }
                };
            }
            let Some(position) = station.queue.iter().position(|queued| std::ptr::eq(queued.job(), job))
            else {
                // Still in an inbox: its owner takes it in before it lets go, so look again.
                drop(station);
                std::hint::spin_loop();
                continue;
            };
            if let Some(mut job) = station.queue.remove(position) {
                drop(job.unqueue());
                station.finish(job, Outcome::Failed(error.clone()));
            }
            return true;
        }
    }
}

impl Owned<'_> {
    /// Tasks that have not started here and may as well run elsewhere: about half of them.
    fn spare(&mut self) -> Vec<(JobRef, Parcel)> {
        // What is answered already is no surplus.
        self.disarm();
        self.poll();
        let mut spare = Vec::new();
        let half = self.queue.len().div_ceil(2).min(MOVE_MAX);
        let mut pinned = Vec::new();
        while spare.len() < half
            && let Some(mut job) = self.queue.pop_front()
        {
            if job.is_pinned() {
                pinned.push(job);
            } else if let Some(parcel) = job.unqueue() {
                spare.push((job, parcel));
            }
        }
        pinned.into_iter().rev().for_each(|job| self.queue.push_front(job));
        if spare.is_empty() && self.stage == Stage::Ready && self.violation.is_none() {
            self.take_back(&mut spare);
        }
        // Retires what was taken back: nobody answers it.
        self.poll();
        if spare.is_empty() {
            self.no_surplus();
        }
        self.tally.moved_out += spare.len() as u64;
        for (job, _) in &spare {
            job.set_place(Place { station: self.station.id, spot: Spot::Moving });
        }
        spare
    }

    /// Takes back from the ring, until something comes that may move.
    fn take_back(&mut self, spare: &mut Vec<(JobRef, Parcel)>) {
        let mut pinned = Vec::new();
        while spare.is_empty() {
            // What a worker that leaves has not claimed is taken from it when that is noticed.
            let Some(lane) = self.lane.as_mut().filter(|lane| !lane.is_leaving()) else { break };
            let taken = lane.unclaimed().and_then(|unclaimed| {
                let half = unclaimed.div_ceil(2).min(MOVE_MAX as u64);
                Ok((unclaimed, lane.take_back(half)?))
            });
            match taken {
                Ok((0, _)) => break,
                Ok((_, taken)) => {
                    for (job, parcel) in taken {
                        if job.is_pinned() { &mut pinned } else { &mut *spare }.push((job, parcel));
                    }
                }
                Err(violation) => {
                    self.break_off(violation);
                    break;
                }
            }
        }
        self.give_back(pinned);
    }

    /// Ends everything here with `error` and kills the worker. Published results win. How many had not ended.
    pub(crate) fn put_down(&mut self, error: &TaskError) -> usize {
        self.refusal = Some(error.clone());
        // Nothing more starts; then the last look. A claim word that is out of range is the concern of what remains.
        let unstarted = self.lane.as_mut().and_then(|lane| lane.stop().ok()).unwrap_or_default();
        let mut unfinished = unstarted.len();
        for (job, _) in unstarted {
            self.finish(job, Outcome::Failed(error.clone()));
        }
        self.poll();
        self.signal(nix::libc::SIGKILL);
        if self.stage != Stage::Vacant {
            self.stage = Stage::Ending;
        }
        if let Some(lane) = self.take_lane() {
            let who = Who { station: self.station.id, generation: self.generation };
            self.note_cut_short(who, &lane, |_| outcome_of_error(error));
            let remains = lane.remains();
            let started = remains.started.into_iter().map(|(_, job, parcel)| (job, parcel));
            for (job, _) in started.chain(remains.unstarted) {
                self.finish(job, Outcome::Failed(error.clone()));
                unfinished += 1;
            }
        }
        while let Some(mut job) = self.queue.pop_front() {
            drop(job.unqueue());
            self.finish(job, Outcome::Failed(error.clone()));
            unfinished += 1;
        }
        unfinished
    }
}
