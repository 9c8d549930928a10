//! A load that passes every kill point of a worker's, and what must hold whatever dies under it.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use forkring::{Granularity, Payload, Pool, Service, TaskError, View, Worker, WorkerLost};

use crate::support::{cell, children, count_fds, counter, eventually, gate, process};

pub(crate) type Bytes = Vec<u8>;
pub(crate) type Here = Worker<(), Service<Bytes, Bytes>, u64>;
pub(crate) type Tested = Pool<(), Service<Bytes, Bytes>, u64>;

pub(crate) const WORKERS: usize = 2;

// Cells of the shared page. Items of the load are numbered through.
/// How often the item's body has started.
const STARTED: usize = 0;
/// How often the service was asked by the item.
const ASKED: usize = 1000;
/// The item that a process has started last, plus one.
const LAST: usize = 2000;
const GENERATIONS: usize = 1000;
/// Which worker this process is.
static HERE: AtomicU64 = AtomicU64::new(0);
static GENERATION: AtomicU64 = AtomicU64::new(0);
/// How many workers have left through `on_exit`.
pub(crate) const EXITS: usize = 250;

const MIB: usize = 1 << 20;
/// More than an arena, both ways.
const LONG_BYTES: usize = 7 * MIB;
/// What a call sends and receives does not fit into the window of 64 KiB.
const LONG_CALL_BYTES: usize = 200_000;

/// A pool with all there is on a worker's path: `init`, a state, a service, `on_exit`.
pub(crate) fn build() -> Result<Tested, forkring::Error> {
    std::panic::set_hook(Box::new(|_| ()));
    Pool::builder()
        .workers(WORKERS)
        .init(|_| Ok(()))
        .state(|info, ()| {
            HERE.store(info.id() as u64, SeqCst);
            GENERATION.store(info.generation(), SeqCst);
            Ok(0_u64)
        })
        .on_exit(|_| {
            counter(EXITS).bump();
        })
        .service(|request: Bytes| {
            cell(ASKED + id_of(&request)).fetch_add(1, SeqCst);
            request
        })
        .build()
}

/// What a pool may have of the system's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Holdings {
    fds: usize,
    processes: usize,
    mappings: usize,
}

impl Holdings {
    pub(crate) fn now() -> Self {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mappings = maps.lines().filter(|line| line.contains("/memfd:")).count();
        Self { fds: count_fds(), processes: children().len(), mappings }
    }

    /// Waits until this process has again what it had.
    #[track_caller]
    pub(crate) fn again(&self) {
        let mut last = Self::now();
        let deadline = std::time::Instant::now() + crate::support::BOUND;
        while last != *self {
            assert!(std::time::Instant::now() < deadline, "{last:?} instead of {self:?}");
            std::thread::yield_now();
            last = Self::now();
        }
    }
}

/// The pool has as many workers as it should, all different, and each of them serves.
#[track_caller]
pub(crate) fn at_full_strength(pool: &Tested) {
    let pids = pool.broadcast(|_: &Here| std::process::id());
    let mut pids: Vec<u32> = pids.into_iter().map(Result::unwrap).collect();
    assert_eq!(pids, pool.worker_pids());
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), WORKERS);
}

/// Waits until every worker sleeps, or until `or`.
#[track_caller]
pub(crate) fn idle(pool: &Tested, or: impl Fn() -> bool) {
    eventually("the workers' sleep", || {
        let asleep = |pid: u32| process(pid).is_some_and(|p| p.state == 'S');
        or() || pool.worker_pids().into_iter().all(asleep)
    });
}

/// An input that begins with its number.
pub(crate) fn numbered(id: usize, bytes: usize) -> Bytes {
    let mut input = vec![id as u8; bytes.max(8)];
    input[..8].copy_from_slice(&(id as u64).to_le_bytes());
    input
}

fn id_of(bytes: &[u8]) -> usize {
    u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

/// The first step of every body.
fn begin(w: &Here, id: usize) {
    cell(STARTED + id).fetch_add(1, SeqCst);
    last(w.id(), w.generation()).store(id as u64 + 1, SeqCst);
    *w.state() += 1;
}

fn last(worker: usize, generation: u64) -> &'static std::sync::atomic::AtomicU64 {
    assert!(generation < GENERATIONS as u64, "too many deaths for one scenario");
    cell(LAST + worker * GENERATIONS + generation as usize)
}

fn small(w: &Here, id: &View<u64>) -> u64 {
    begin(w, id.to_native() as usize);
    id.to_native() * 3
}

fn panicking(w: &Here, id: &View<u64>) -> u64 {
    begin(w, id.to_native() as usize);
    panic!("as it should")
}

/// Whether [`mixed`] panics.
fn is_odd_one(id: usize) -> bool {
    id % 5 == 3
}

/// Some values, some panics: bare values end in the middle of a batch.
fn mixed(w: &Here, id: &View<u64>) -> u64 {
    begin(w, id.to_native() as usize);
    assert!(!is_odd_one(id.to_native() as usize), "as it should");
    id.to_native() * 3
}

fn echo(w: &Here, input: &View<Bytes>) -> Bytes {
    begin(w, id_of(input));
    input.to_vec()
}

/// An input that is copied while it comes. Its body sees no worker.
fn owned(input: Bytes) -> Bytes {
    let id = id_of(&input);
    cell(STARTED + id).fetch_add(1, SeqCst);
    last(HERE.load(SeqCst) as usize, GENERATION.load(SeqCst)).store(id as u64 + 1, SeqCst);
    input
}

fn ask(w: &Here, input: &View<Bytes>) -> Bytes {
    begin(w, id_of(input));
    w.call(&input.to_vec()).unwrap()
}

/// Waits for the gate, then answers with as much as it was given.
pub(crate) fn gated_echo(w: &Here, input: &View<Bytes>) -> Bytes {
    gate(id_of(input)).wait();
    echo(w, input)
}

/// How each item ended. `Ok`: with the value that it should have.
pub(crate) type Outcomes = Vec<Result<(), TaskError>>;

fn check<R: PartialEq>(result: Result<R, TaskError>, expected: &R) -> Result<(), TaskError> {
    result.map(|value| assert!(value == *expected, "a wrong result"))
}

/// Runs the load once. In the end every item has exactly one outcome.
pub(crate) fn run(pool: &Tested) -> Outcomes {
    for id in 0..1000 {
        cell(STARTED + id).store(0, SeqCst);
        cell(ASKED + id).store(0, SeqCst);
    }
    let mut next = 0;
    let mut ids = |n: usize| {
        next += n;
        next - n..next
    };
    // First, while nothing is in front of it: what has to wait goes by way of the heap.
    let flowing: Vec<_> = ids(4).map(|id| (id, pool.submit(owned, &numbered(id, MIB)))).collect();
    // Submitted at once, so that both workers have something to run and something that has not started.
    let plain: Vec<_> = ids(30).map(|id| (id, pool.submit_with(small, &(id as u64)))).collect();
    let echoes = |ids: std::ops::Range<usize>, bytes| -> Vec<_> {
        ids.map(|id| (id, pool.submit_with(echo, &numbered(id, bytes)))).collect()
    };
    let long = echoes(ids(2), LONG_BYTES);
    let spans = echoes(ids(4), MIB);
    let asking = |ids: std::ops::Range<usize>, bytes| -> Vec<_> {
        ids.map(|id| (id, pool.submit_with(ask, &numbered(id, bytes)))).collect()
    };
    let calls = asking(ids(4), 100);
    let long_calls = asking(ids(2), LONG_CALL_BYTES);
    let panics: Vec<_> = ids(2).map(|id| (id, pool.submit_with(panicking, &(id as u64)))).collect();

    let (numbers, odd, records, bulky) = (ids(60), ids(40), ids(40), ids(6));
    let awaited: Vec<_> = ids(8).map(|id| (id, pool.submit_with(small, &(id as u64)))).collect();
    let mut outcomes: Vec<Option<Result<(), TaskError>>> = (0..next).map(|_| None).collect();
    let mut settle = |id: usize, outcome| {
        assert!(outcomes[id].replace(outcome).is_none(), "item {id} has two outcomes");
    };

    let batch = Granularity::Fixed(10);
    let first = numbers.start;
    let stream = pool.map_with(numbers.map(|id| id as u64), small).granularity(batch).indexed();
    for (index, result) in stream {
        let id = first + index as usize;
        settle(id, check(result, &(id as u64 * 3)));
    }
    let first = odd.start;
    for (index, result) in pool.map_with(odd.map(|id| id as u64), mixed).granularity(batch).indexed() {
        let id = first + index as usize;
        settle(id, if is_odd_one(id) { panicked(result) } else { check(result, &(id as u64 * 3)) });
    }
    let mut of_bytes = |ids: std::ops::Range<usize>, bytes, batch| {
        let first = ids.start;
        let stream = pool.map_with(ids.map(move |id| numbered(id, bytes)), echo).granularity(batch);
        for (index, result) in stream.indexed() {
            let id = first + index as usize;
            settle(id, check(result, &numbered(id, bytes)));
        }
    };
    of_bytes(records, 40, batch);
    // One message, whose results need more than the arena.
    of_bytes(bulky, MIB, Granularity::Fixed(6));

    for (id, task) in awaited {
        settle(id, check(futures::executor::block_on(task), &(id as u64 * 3)));
    }
    for (id, task) in plain {
        settle(id, check(task.wait(), &(id as u64 * 3)));
    }
    let kinds =
        [(long, LONG_BYTES), (spans, MIB), (flowing, MIB), (calls, 100), (long_calls, LONG_CALL_BYTES)];
    for (tasks, bytes) in kinds {
        for (id, task) in tasks {
            settle(id, check(task.wait(), &numbered(id, bytes)));
        }
    }
    for (id, task) in panics {
        settle(id, panicked(task.wait()));
    }
    outcomes.into_iter().map(|outcome| outcome.expect("every item has an outcome")).collect()
}

fn panicked<R: Payload + std::fmt::Debug>(result: Result<R, TaskError>) -> Result<(), TaskError> {
    match result {
        Err(TaskError::Panicked(_)) => Ok(()),
        Err(other) => Err(other),
        Ok(value) => panic!("{value:?} instead of a panic"),
    }
}

/// Who is to be blamed for a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// Nobody: nothing was running, or its result is published.
    Nobody,
    /// The item that was running, whose body had not started.
    Claimed,
    /// The item that was running, whose body had started.
    Started,
    /// The item that was running, in whatever state.
    Running,
    /// The item that was running, if there was one.
    Whoever,
}

/// Every item but the one that was running has its result, no body ran twice, and no call was answered twice.
#[track_caller]
pub(crate) fn judge(outcomes: &Outcomes, blame: Blame, victim: u32) {
    let mut lost: Vec<(usize, &WorkerLost)> = Vec::new();
    for (id, outcome) in outcomes.iter().enumerate() {
        let started = cell(STARTED + id).load(SeqCst);
        assert!(cell(ASKED + id).load(SeqCst) <= 1, "item {id} was answered twice");
        match outcome {
            Ok(()) => assert_eq!(started, 1, "item {id} has a result"),
            Err(TaskError::WorkerLost(one)) => {
                assert!(started <= 1, "item {id} ran {started} times");
                lost.push((id, one));
            }
            Err(other) => panic!("item {id}: {other:?}"),
        }
    }
    let count = match blame {
        Blame::Nobody => 0..=0,
        Blame::Claimed | Blame::Started | Blame::Running => 1..=1,
        Blame::Whoever => 0..=1,
    };
    assert!(count.contains(&lost.len()), "{blame:?}, but lost are {lost:?}");
    for (id, lost) in lost {
        assert_eq!((lost.pid(), lost.signal()), (victim, Some(9)), "{lost:?}");
        let started = cell(STARTED + id).load(SeqCst) == 1;
        match blame {
            Blame::Claimed => assert!(!started, "item {id} had not started"),
            Blame::Started => assert!(started, "item {id} had started"),
            _ => {}
        }
        if started {
            let last = last(lost.worker(), lost.generation()).load(SeqCst);
            assert_eq!(last, id as u64 + 1, "another item was running");
        }
    }
}
