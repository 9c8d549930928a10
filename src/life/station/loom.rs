//! Models of the ownership word and its inbox.
//!
//! `Station::try_own`, `own`, `own_or_leave`, `Owned::take_inbox` and the drop of `Owned`, step by step, with the
//! indices of jobs where the real word has their addresses. The contents of jobs and station are plain memory, for which
//! loom reports any two accesses that are not ordered (STATION-1, STATION-2).

#![allow(unsafe_code, reason = "what the word guards, whose races loom looks for")]

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::{FLAGS, OWNED, WANTED};

/// Jobs are numbered from 1; in the word the number stands above the flags, and 0 is no job.
const STEP: usize = FLAGS + 1;

struct Job {
    link: AtomicUsize,
    parcel: UnsafeCell<Option<usize>>,
}

struct Station<const JOBS: usize> {
    word: AtomicUsize,
    jobs: [Job; JOBS],
    /// The parcels that the station has taken.
    inner: UnsafeCell<Vec<usize>>,
}

impl<const JOBS: usize> Station<JOBS> {
    fn new() -> Self {
        Self {
            word: AtomicUsize::new(0),
            jobs: std::array::from_fn(|_| Job { link: AtomicUsize::new(0), parcel: UnsafeCell::new(None) }),
            inner: UnsafeCell::new(Vec::new()),
        }
    }

    fn try_own(&self) -> bool {
        self.word.compare_exchange(0, OWNED, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn own(&self) {
        while !self.try_own() {
            self.word.fetch_or(WANTED, Ordering::Relaxed);
            let _ = self.word.compare_exchange(WANTED, 0, Ordering::Relaxed, Ordering::Relaxed);
            thread::yield_now();
        }
    }

    /// `true`: owned, and the job is the caller's. `false`: left with the owner.
    fn own_or_leave(&self, job: usize) -> bool {
        if self.try_own() {
            return true;
        }
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & OWNED == 0 {
                match self.word.compare_exchange(word, OWNED, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => return true,
                    Err(seen) => word = seen,
                }
                continue;
            }
            self.jobs[job - 1].link.store((word & !FLAGS) / STEP, Ordering::Relaxed);
            let left = (job * STEP) | (word & FLAGS);
            match self.word.compare_exchange(word, left, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return false,
                Err(seen) => word = seen,
            }
        }
    }

    fn submit(&self, job: usize) {
        // SAFETY: loom ends the model if another thread may be at it.
        self.jobs[job - 1].parcel.with_mut(|parcel| unsafe { *parcel = Some(job) });
        if self.own_or_leave(job) {
            self.accept(job);
            self.let_go();
        }
    }

    fn accept(&self, job: usize) {
        // SAFETY: as above.
        let parcel = self.jobs[job - 1].parcel.with_mut(|parcel| unsafe { (*parcel).take() });
        // SAFETY: as above.
        self.inner.with_mut(|taken| unsafe { (*taken).extend(parcel) });
    }

    fn take_inbox(&self) {
        let word = self.word.swap(OWNED, Ordering::Acquire);
        let mut next = (word & !FLAGS) / STEP;
        while next != 0 {
            let job = next;
            next = self.jobs[job - 1].link.load(Ordering::Relaxed);
            self.accept(job);
        }
    }

    fn let_go(&self) {
        while self.word.compare_exchange(OWNED, 0, Ordering::Release, Ordering::Relaxed).is_err() {
            self.take_inbox();
        }
    }

    /// After all have ended: the word is free, and every job was taken once.
    fn assert_settled(&self) {
        assert!(self.try_own(), "the word is not free: {:#x}", self.word.load(Ordering::Relaxed));
        // SAFETY: as above.
        let mut taken = self.inner.with(|taken| unsafe { (*taken).clone() });
        taken.sort_unstable();
        assert_eq!(taken, (1..=JOBS).collect::<Vec<_>>());
    }
}

/// Runs `actors` at once, each on a thread of its own.
fn race<const JOBS: usize>(preemptions: usize, actors: &'static [fn(&Station<JOBS>)]) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        let station = Arc::new(Station::new());
        let threads: Vec<_> = actors
            .iter()
            .map(|actor| {
                let station = station.clone();
                thread::spawn(move || actor(&station))
            })
            .collect();
        for thread in threads {
            thread.join().expect("the actor ends");
        }
        station.assert_settled();
    });
}

#[test]
fn no_job_is_left_behind_in_a_free_word() {
    race::<3>(
        3,
        &[
            |station| {
                station.submit(1);
                station.submit(2);
            },
            |station| station.submit(3),
        ],
    );
}

#[test]
fn three_submitters_lose_nothing() {
    race::<3>(2, &[|station| station.submit(1), |station| station.submit(2), |station| station.submit(3)]);
}

#[test]
fn one_who_waits_gets_the_station_and_disturbs_no_submitter() {
    race::<2>(
        3,
        &[
            |station| station.submit(1),
            |station| station.submit(2),
            |station| {
                station.own();
                // SAFETY: loom ends the model if another thread may be at it.
                station.inner.with_mut(|taken| unsafe { (*taken).reserve(1) });
                station.let_go();
            },
        ],
    );
}
